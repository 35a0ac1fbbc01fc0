"""`demographics report` shows what the page shows."""

from __future__ import annotations

import time

import pytest
from pydantic import SecretStr
from rich.console import Console

from aggregator.fusion import UNKNOWN_CELL, Cell
from aggregator.health import HealthTeller, PipelineHealth
from aggregator.redis_store import RedisStore
from aggregator.service import windows_of
from aggregator.store import Changes, PlaceCell, Position
from aggregator.windows import retentions
from pipeline import telemetry as metrics
from pipeline.messages import CameraStatus
from pipeline.reading import read_report
from pipeline.report import trend_line
from pipeline.settings import Settings, load_settings
from pipeline.telemetry import Telemetry
from tests.servers import ValkeyServer


@pytest.fixture
def settings(valkey_server: ValkeyServer, topic_prefix: str) -> Settings:
    """Fill a store with three visitors and a lost camera, and give the settings that lead to it."""
    settings = load_settings({}, redis={"url": SecretStr(valkey_server.url), "namespace": f"{topic_prefix}report"})
    windows = windows_of(settings)
    store = RedisStore(valkey_server.url, retentions(windows), namespace=settings.redis.namespace)
    changes = Changes()
    for cell in (Cell("female", "25-34", "asian"), Cell("male", "65+", "black"), UNKNOWN_CELL):
        changes.counted[time.time(), PlaceCell("museum", "hall", cell)] += 1
    changes.cameras["hall"] = CameraStatus(
        camera_id="hall",
        site="museum",
        at=time.time(),
        state="unreachable",
        reason="nobody answers at [red]10.0.0.1[/red]",
    )
    store.load(0)
    assert store.apply(0, changes, start=None, end=Position(1, 1))
    telemetry = Telemetry(("aggregator",))
    telemetry.observe(metrics.CAPTURE_TO_COUNT, 0.7)
    telemetry.add(metrics.DEAD_LETTERS_TOTAL, 4, reason="image")
    telemetry.set(metrics.LAG, 17, topic="predictions", partition="0")
    HealthTeller(PipelineHealth(telemetry), store, "host-a:8080").tell()
    HealthTeller(PipelineHealth(telemetry, lambda: ["Kafka [b]away[/b]"]), store, "host-b:8080").tell()
    store.close()
    return settings


@pytest.mark.parametrize("window", ["15m", "all"])
def test_the_report_shows_counts_trend_and_cameras(settings: Settings, window: str) -> None:
    """The document has the figures; the terminal the same, in words."""
    document, shown = read_report(settings, window)
    tally = document if window != "all" else next(w for w in document["windows"] if w["name"] == "15m")
    assert (tally["visitors"], tally["unknown"], tally["gender"]) == (3, 1, {"male": 1, "female": 1})
    assert sum(bucket["visitors"] for bucket in document["trend"]) == 3
    assert [(camera["id"], camera["state"]) for camera in document["status"]] == [("hall", "unreachable")]
    assert {who: said["state"] for who, said in document["pipeline"].items()} == {
        "host-a:8080": "good", "host-b:8080": "trouble",
    }  # fmt: skip
    assert document["pipeline"]["host-a:8080"]["waiting"] == {"predictions": 17}
    console = Console(width=160, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(shown)
    text = captured.get()
    for said in (
        "visitors",
        "female",
        "65+",
        "asian",
        "unreachable",
        "nobody answers at [red]10.0.0.1[/red]",
        "busiest",
        "host-a:8080",
        "Kafka [b]away[/b]",
        "in trouble",
    ):
        assert said in text
    if window != "all":
        assert "33%" in text  # unknown, of all
        assert "50%" in text  # each gender, of those who could be told


def test_one_visitor_is_never_drawn_as_none() -> None:
    """However busy another minute was."""
    buckets = [{"start": 60 * n, "visitors": count} for n, count in enumerate((0, 1, 500, 0))]
    assert "▏ ▁█ ▕" in trend_line({"window": "4m", "bucket_s": 60, "buckets": buckets}).plain
    assert "nobody yet" in trend_line({"window": "4m", "bucket_s": 60, "buckets": buckets[:1]}).plain


def test_without_an_aggregator_the_report_says_so(
    settings: Settings, valkey_server: ValkeyServer, topic_prefix: str
) -> None:
    """The counts of before are shown; that nobody counts is, too."""
    other = settings.model_copy(
        update={"redis": settings.redis.model_copy(update={"namespace": f"{topic_prefix}empty"})}
    )
    document, shown = read_report(other, "15m")
    assert document["pipeline"] == {}
    console = Console(width=160)
    with console.capture() as captured:
        console.print(shown)
    assert "no aggregator has said how it does" in captured.get()
