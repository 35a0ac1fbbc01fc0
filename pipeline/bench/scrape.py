"""Everything that Prometheus reads from an aggregator, from the store to the last byte, with 200 cameras after a full day."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from prometheus_client import generate_latest

from aggregator.exporter import VisitorsCollector
from aggregator.fusion import Cell
from aggregator.redis_store import RedisStore
from aggregator.store import Changes, PlaceCell, Position
from aggregator.windows import retentions, rolling_windows
from pipeline.attributes import AGE_BANDS, ETHNICITIES, GENDERS
from pipeline.bench.rows import ROUNDS, Row, Workbench
from pipeline.embedded_valkey import EmbeddedValkey
from pipeline.exposition import exposition
from pipeline.telemetry import Telemetry

PART: Final = "scrape"
CAMERAS: Final = 200
VISITORS_AN_HOUR: Final = 30  # before each camera, all day long


def measure(bench: Workbench) -> list[Row]:
    """Measure a scrape, and the same after ten times as many visitors."""
    few, many = (_scrape(bench, visitors_an_hour) for visitors_an_hour in (VISITORS_AN_HOUR, 10 * VISITORS_AN_HOUR))
    writing, limit = "prometheus_client.generate_latest writes it", "what has changed is read, nothing is written"
    tenth = "a tenth of the visitors"
    return [
        Row(PART, few.what, few.ours_ms, "ms", writing, few.library_ms, limit=few.read_ms, limit_of=limit),
        Row(PART, many.what, many.ours_ms, "ms", tenth, few.ours_ms, limit=many.read_ms, limit_of=limit),
        Row(PART, f"each line: {many.what}", many.line_us, "us", tenth, few.line_us),
        Row(PART, f"the store read: {many.what}", many.read_ms, "ms", tenth, few.read_ms),
        Row(PART, f"the first read after a start: {many.what}", many.first_ms, "ms", tenth, few.first_ms),
        Row(PART, f"memory of the store: {few.what}", few.store_mib, "MiB"),
        Row(PART, f"memory of the store: {many.what}", many.store_mib, "MiB"),
    ]


class _Scraped(NamedTuple):
    what: str
    ours_ms: float
    library_ms: float
    read_ms: float
    first_ms: float
    store_mib: float
    lines: int

    @property
    def line_us(self) -> float:
        return 1000 * self.ours_ms / self.lines


def _scrape(bench: Workbench, visitors_an_hour: int) -> _Scraped:
    bench.progress(f"{PART}: {CAMERAS * 24 * visitors_an_hour:,} visitors")
    windows = rolling_windows(bench.settings.windows_s)
    draw = random.Random(1)  # noqa: S311  for a measurement
    cells = [Cell(*labels) for labels in itertools.product(GENDERS, AGE_BANDS, ETHNICITIES)]
    partitions = bench.settings.kafka.partitions
    telemetry = Telemetry(("aggregator",))
    with EmbeddedValkey() as valkey:
        store = RedisStore(valkey.url, retentions(windows))
        now = time.time()

        def count(camera: int, visitors: int, within_s: float) -> None:
            changes = Changes()
            for _ in range(visitors):
                counted = PlaceCell("site", f"camera-{camera}", draw.choice(cells))
                changes.counted[now - draw.random() * within_s, counted] += 1
                changes.totals[counted] += 1
            partition = camera % partitions
            held = store.positions([partition])[partition]
            end = Position(held.offset + 1, held.revision + 1) if held else Position(1, 1)
            store.load(partition)
            assert store.apply(partition, changes, start=held, end=end)

        for camera in range(CAMERAS):
            count(camera, 24 * visitors_an_hour, 86400)
        used = store.ask(lambda client: client.info("memory"))["used_memory"]

        def least_ms(work: Callable[[], object]) -> float:
            taken = []
            for _ in range(ROUNDS):
                for camera in range(CAMERAS):  # what comes between two scrapes
                    count(camera, 1, 15)
                start = time.perf_counter()
                work()
                taken.append(1000 * (time.perf_counter() - start))
            return min(taken)

        def first() -> float:
            anew = RedisStore(valkey.url, retentions(windows))
            start = time.perf_counter()
            anew.snapshot(now, windows)
            taken = 1000 * (time.perf_counter() - start)
            anew.close()
            return taken

        telemetry.collect_with(VisitorsCollector(store, windows, telemetry, clock=lambda: now))
        lines = len(exposition(telemetry.registry).splitlines())
        scraped = _Scraped(
            f"{CAMERAS} cameras, {CAMERAS * 24 * visitors_an_hour:,} visitors of the last day, {lines:,} lines",
            ours_ms=least_ms(lambda: exposition(telemetry.registry)),
            library_ms=least_ms(lambda: generate_latest(telemetry.registry)),
            read_ms=least_ms(lambda: store.snapshot(now, windows)),
            first_ms=min(first() for _ in range(ROUNDS)),
            store_mib=int(used) / (1 << 20),
            lines=lines,
        )
        store.close()
    return scraped
