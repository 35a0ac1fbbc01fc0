"""Everything that Prometheus reads from an aggregator, from the store to the last byte, with 200 cameras after a full day."""

from __future__ import annotations

import itertools
import random
import time
from typing import Final

from prometheus_client import generate_latest

from aggregator.exporter import VisitorsCollector
from aggregator.fusion import Cell
from aggregator.redis_store import RedisStore
from aggregator.store import Changes, PlaceCell, Position
from aggregator.windows import retentions, rolling_windows
from pipeline.attributes import AGE_BANDS, ETHNICITIES, GENDERS
from pipeline.bench.rows import Row, Workbench, best_rate
from pipeline.embedded_valkey import EmbeddedValkey
from pipeline.exposition import exposition
from pipeline.telemetry import Telemetry

PART: Final = "scrape"
CAMERAS: Final = 200
VISITORS_AN_HOUR: Final = 30  # before each camera, all day long


def measure(bench: Workbench) -> list[Row]:
    """Measure a scrape, and the same after ten times as many visitors."""
    rows = []
    few_ms = 0.0
    for visitors_an_hour in (VISITORS_AN_HOUR, 10 * VISITORS_AN_HOUR):
        bench.progress(f"{PART}: {CAMERAS * 24 * visitors_an_hour:,} visitors")
        ours_ms, library_ms, read_ms, lines, store_mib = _scrape(bench, visitors_an_hour)
        what = f"{CAMERAS} cameras, {CAMERAS * 24 * visitors_an_hour:,} visitors of the last day, {lines:,} lines"
        if visitors_an_hour == VISITORS_AN_HOUR:
            few_ms = ours_ms
            rows.append(
                Row(
                    PART, what, ours_ms, "ms", "prometheus_client.generate_latest writes it", library_ms,
                    limit=read_ms, limit_of="the store is read, nothing is written",
                )
            )  # fmt: skip
        else:
            rows.append(
                Row(
                    PART,
                    what,
                    ours_ms,
                    "ms",
                    "a tenth of the visitors",
                    few_ms,
                    limit=read_ms,
                    limit_of=rows[0].limit_of,
                )
            )
        rows.append(Row(PART, f"memory of the store: {what.rpartition(',')[0]}", store_mib, "MiB"))
    return rows


def _scrape(bench: Workbench, visitors_an_hour: int) -> tuple[float, float, float, int, float]:
    windows = rolling_windows(bench.settings.windows_s)
    draw = random.Random(1)  # noqa: S311  for a measurement
    cells = [Cell(*labels) for labels in itertools.product(GENDERS, AGE_BANDS, ETHNICITIES)]
    partitions = bench.settings.kafka.partitions
    telemetry = Telemetry(("aggregator",))
    with EmbeddedValkey() as valkey:
        store = RedisStore(valkey.url, retentions(windows))
        now = time.time()
        for partition in range(partitions):
            for camera in range(partition, CAMERAS, partitions):
                changes = Changes()
                for _ in range(24 * visitors_an_hour):
                    counted = PlaceCell("site", f"camera-{camera}", draw.choice(cells))
                    changes.counted[now - draw.random() * 86400, counted] += 1
                    changes.totals[counted] += 1
                held = store.positions([partition])[partition]
                store.apply(partition, changes, start=held, end=Position(1, camera + 1))
        used = store.ask(lambda client: client.info("memory"))["used_memory"]
        telemetry.collect_with(VisitorsCollector(store, windows, telemetry))
        lines = len(exposition(telemetry.registry).splitlines())

        def ours() -> int:
            exposition(telemetry.registry)
            return 1

        def library() -> int:
            generate_latest(telemetry.registry)
            return 1

        def read() -> int:
            store.snapshot(now, windows)
            return 1

        taken = tuple(1000 / best_rate(work) for work in (ours, library, read))
        store.close()
    return taken[0], taken[1], taken[2], lines, int(used) / (1 << 20)
