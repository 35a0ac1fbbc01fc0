"""How long anything stays: every topic and every key has a setting with a bound, and what is written keeps to it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from annotated_types import Ge, Le

from aggregator.fusion import Cell
from aggregator.redis_store import RedisStore, open_store
from aggregator.service import windows_of
from aggregator.store import CameraClock, Changes, PlaceCell, Position, TrackState
from pipeline.bus import CAMERAS, SWITCHES
from pipeline.kafka_bus import KafkaBus
from pipeline.messages import CameraStatus
from pipeline.settings import LONGEST_WINDOW_S, KafkaSettings, RedisSettings, Settings, load_settings
from tests.servers import KafkaServer, ValkeyServer

HOUR, DAY = 3600, 86400
NOW = 1_790_000_000.0

# What nobody may set more of. A longer one is a decision about people, not about disks: docs/privacy.md says each.
BOUNDS = {
    "face_crops_retention_s": HOUR,
    "predictions_retention_s": 7 * DAY,
    "dead_letters_retention_s": 30 * DAY,
    "audit_retention_s": 1100 * DAY,
    "tracks_retention_s": 30 * DAY,
    "totals_retention_s": 1100 * DAY,
}


def declared() -> Iterator[tuple[str, float, float, float]]:
    """List every setting of a retention: name, least, default, most."""
    for section in (KafkaSettings, RedisSettings):
        for name, field in section.model_fields.items():
            if name.endswith("retention_s"):
                least = next((float(str(m.ge)) for m in field.metadata if isinstance(m, Ge)), math.nan)
                most = next((float(str(m.le)) for m in field.metadata if isinstance(m, Le)), math.inf)
                yield name, least, float(field.get_default()), most


def test_every_retention_has_its_bound() -> None:
    """The bounds are these; a new setting needs one here."""
    assert {name: most for name, _, _, most in declared()} == BOUNDS
    assert all(0 < least <= default <= most for _, least, default, most in declared())
    assert LONGEST_WINDOW_S == 31 * DAY


def test_every_topic_that_holds_anything_of_people_has_a_retention() -> None:
    """The cameras and the last word on each are kept for ever: they hold no visitor, and no secret."""
    for spec in KafkaSettings().topics():
        assert spec.compact == (spec.name in {CAMERAS, SWITCHES}), spec
        assert spec.compact or 0 < spec.retention_s <= BOUNDS[f"{spec.name.replace('-', '_')}_retention_s"], spec


def test_tracks_stay_for_as_long_as_a_record_can_come_again() -> None:
    """Else a repetition would count somebody twice."""
    bounds = {name: (least, most) for name, least, _, most in declared()}
    assert bounds["tracks_retention_s"][0] > bounds["predictions_retention_s"][1]
    assert bounds["totals_retention_s"][0] > bounds["tracks_retention_s"][1]


def everything() -> Changes:
    """Change whatever there is to change."""
    whose = PlaceCell("museum", "hall", Cell("female", "25-34", "asian"))
    changes = Changes()
    changes.counted[(NOW, whose)] += 1
    changes.totals[whose] += 1
    changes.passages[("x", "museum", "hall", "in")] += 1
    changes.tracks[("hall", 1)] = TrackState("museum", "hall", 1, NOW, NOW)
    changes.clocks["hall"] = CameraClock(1, NOW, NOW)
    changes.cameras["hall"] = CameraStatus(camera_id="hall", site="museum", at=NOW, state="running")
    return changes


def opened(server: ValkeyServer, namespace: str, **settings: Any) -> tuple[Settings, RedisStore]:
    """Open the store that the settings describe."""
    made = load_settings({}, redis={"url": server.url, "namespace": namespace}, **settings)
    return made, open_store(made, windows_of(made))


def test_every_key_expires_by_itself(valkey_server: ValkeyServer, topic_prefix: str) -> None:
    """Nothing outlives an abandoned deployment; only the numbers of its partitions stay."""
    settings, store = opened(valkey_server, topic_prefix)
    store.load(3)
    assert store.apply(3, everything(), start=None, end=Position(5, 1))
    client = redis.Redis(port=valkey_server.port, decode_responses=True)
    keys = {str(key): int(client.ttl(key)) for key in client.scan_iter(f"{topic_prefix}:*")}
    assert keys.pop(f"{topic_prefix}:partitions") == -1
    kinds = {key.split(":")[2] for key in keys}
    assert kinds == {
        "position",
        "tracks",
        "totals",
        "clocks",
        "cameras",
    }  # the bucket of an hour long past is gone already
    for key, seconds in keys.items():
        kind = key.split(":")[2]
        bound = (
            settings.redis.totals_retention_s if kind in {"position", "totals"} else settings.redis.tracks_retention_s
        )
        assert bound - 60 < seconds <= bound, key
    client.close()
    store.close()


def test_ethnicity_that_is_switched_off_is_deleted(valkey_server: ValkeyServer, topic_prefix: str) -> None:
    """When the partition is next taken up; the totals of gender and age stay."""
    _, store = opened(valkey_server, topic_prefix)
    store.apply(3, everything(), start=None, end=Position(5, 1))
    assert any(field.startswith("e|") for field in store.dump(3, NOW).totals)
    store.close()
    _, narrow = opened(valkey_server, topic_prefix, attributes=("age", "gender"))
    assert narrow.load(3).position == Position(5, 1)
    assert set(narrow.dump(3, NOW).totals) == {"p|museum|hall|female|25-34", "x|museum|hall|in"}
    narrow.close()


@pytest.mark.kafka
def test_the_broker_keeps_topics_as_the_settings_say(kafka_server: KafkaServer) -> None:
    """And says so when asked: a record lies in its segment for a quarter of the retention at most, and then for the retention."""
    bus = KafkaBus(kafka_server.bootstrap_servers)
    specs = [spec._replace(name=f"kept-{spec.name}") for spec in KafkaSettings(partitions=1).topics()]
    bus.ensure_topics(specs)
    found = bus.retentions([spec.name for spec in specs])
    bus.close()
    for spec in specs:
        assert found[spec.name] == (math.inf if spec.compact else pytest.approx(1.25 * spec.retention_s)), spec.name
