"""What a scrape costs depends on the cells that are filled, not on how many visitors stand in them: by counts, not by time."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
import redis

from aggregator.exporter import VisitorsCollector
from aggregator.fusion import Cell
from aggregator.redis_store import RedisStore
from aggregator.store import Changes, PlaceCell, Position
from aggregator.windows import retentions, rolling_windows
from pipeline.attributes import AGE_BANDS, ETHNICITIES, GENDERS
from pipeline.embedded_valkey import EmbeddedValkey
from pipeline.exposition import exposition
from pipeline.telemetry import Telemetry

WINDOWS = rolling_windows({"1m": 60, "1h": 3600, "24h": 86400})
CELLS = [Cell(*labels) for labels in itertools.product(GENDERS, AGE_BANDS, ETHNICITIES)]


def scraped(url: str, namespace: str, visitors_in_a_cell: int) -> tuple[int, int, dict[str, Any], float]:
    """Count visitors into every cell of three cameras; give the lines and commands of a scrape, and what is shown in all."""
    store = RedisStore(url, retentions(WINDOWS), namespace=namespace)
    now, changes = time.time(), Changes()
    for camera, cell in itertools.product(("a", "b", "c"), CELLS):
        changes.counted[now - 20, PlaceCell("site", camera, cell)] += visitors_in_a_cell
        changes.totals[PlaceCell("site", camera, cell)] += visitors_in_a_cell
    assert store.apply(0, changes, start=None, end=Position(1, 1))
    telemetry = Telemetry(("aggregator",))
    telemetry.collect_with(VisitorsCollector(store, WINDOWS, telemetry, clock=lambda: now))
    with redis.Redis.from_url(url) as client:
        exposition(telemetry.registry)  # the first one brings its script along
        client.config_resetstat()
        text = exposition(telemetry.registry).decode()
        used = {name: stats["calls"] for name, stats in client.info("commandstats").items() if "config" not in name}
    store.close()
    shown = sum(
        float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith("demographics_visitors_total{")
    )
    return len(text.splitlines()), sum(used.values()), used, shown


def test_a_thousand_times_the_visitors_are_as_many_lines_and_as_many_commands() -> None:
    """Once the cells are filled nothing grows, but the numbers in them."""
    with EmbeddedValkey() as valkey:
        few, many = scraped(valkey.url, "few", 1), scraped(valkey.url, "many", 1000)
    assert many[3] == pytest.approx(1000 * few[3])
    assert few[3] == 3 * len(CELLS)
    assert many[0] == few[0]
    assert many[1] == few[1], (few[2], many[2])
