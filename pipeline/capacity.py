"""`demographics capacity`: what so many cameras need, worked out from what this machine was just measured to spend on each.

    cameras ──▶ frames ──▶ looks ──▶ people ──▶ crops ──▶ records ──▶ counts
                ingest: % of a core   inference: us a crop   aggregator, Redis: us a crop

What is worked out and what is measured stays apart: unit costs are measured, everything in the table is arithmetic on them.
"""

from __future__ import annotations

import math
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import redis
from rich.console import Console
from rich.table import Table

from aggregator.fusion import Cell
from aggregator.redis_store import RedisStore
from aggregator.service import windows_of
from aggregator.step import CountingConfig
from aggregator.store import Changes, PlaceCell, Position, TrackState
from aggregator.windows import retentions
from inference.service import engine_of
from pipeline import crowd
from pipeline.bench import aggregation, page
from pipeline.bench import camera as camera_part
from pipeline.bench.rows import Workbench, least_cpu_s
from pipeline.crowd import Crowd
from pipeline.embedded_valkey import EmbeddedValkey
from pipeline.settings import Settings
from pipeline.simulate import crops_of_kinds, simulate

SIZES: Final = (10, 100, 1000, 10_000)
SIMULATED: Final = 500
SIMULATED_S: Final = 15.0
FULL: Final = 0.7  # of a core, of a link: what is planned with; the rest is for bursts
STATUS_BYTES: Final = 150
REMEMBERED_CAMERAS: Final = 10


@dataclass(frozen=True)
class UnitCosts:
    """What was measured. CPU in shares of one core of this machine."""

    camera_with_people: float  # 1080p25, 5 looks/s
    camera_empty: float
    network_us: float  # of a crop, in batches of 32
    step_us: float  # of a crop, inference without the network: messages, JPEG
    aggregator_us: float  # of a crop, with its share of ends and states
    redis_us: float
    crop_bytes: float
    redis_bytes: float  # of a camera, after a day
    partition_records_s: float  # what one aggregator reads of one partition at most


@dataclass(frozen=True)
class Plan:
    """What a number of cameras needs, at people_per_minute before each of them."""

    cameras: int
    people_per_s: float
    crops_per_s: float
    ingest_cores: float
    inference_cores: float
    aggregator_cores: float
    redis_cores: float
    bus_mb_s: float  # into Kafka; twice as much with replication 2 ...
    redis_mb: float
    partitions: int  # at least, so that none is fuller than FULL
    first: str  # the stage that needs most cores

    @property
    def cores(self) -> float:
        """All together."""
        return self.ingest_cores + self.inference_cores + self.aggregator_cores + self.redis_cores


def plan(costs: UnitCosts, cameras: int, people_per_minute: float, *, status_every_s: float = 2.0) -> Plan:
    """Work out what *cameras* need."""
    script = Crowd(cameras, people_per_minute, 1.0)
    stay_s = (crowd.SHORTEST_S + crowd.LONGEST_S) / 2
    busy = 1 - math.exp(-people_per_minute / 60 * stay_s)  # somebody is in view: Poisson arrivals, each for stay_s
    crops = script.people_per_s * script.crops_of_a_person
    records = crops + script.people_per_s + cameras / status_every_s
    shares = {
        "ingest": cameras * (busy * costs.camera_with_people + (1 - busy) * costs.camera_empty),
        "inference": crops * (costs.network_us + costs.step_us) / 1e6,
        "aggregator": crops * costs.aggregator_us / 1e6,
        "redis": crops * costs.redis_us / 1e6,
    }
    return Plan(
        cameras=cameras,
        people_per_s=script.people_per_s,
        crops_per_s=crops,
        ingest_cores=shares["ingest"],
        inference_cores=shares["inference"],
        aggregator_cores=shares["aggregator"],
        redis_cores=shares["redis"],
        bus_mb_s=(crops * costs.crop_bytes + records * STATUS_BYTES) / 1e6,
        redis_mb=cameras * costs.redis_bytes / 1e6,
        partitions=max(1, math.ceil(records / (FULL * costs.partition_records_s))),
        first=max(shares, key=lambda stage: shares[stage]),
    )


def cameras_per_core(costs: UnitCosts, people_per_minute: float) -> dict[str, float]:
    """Say how many cameras one core of each stage carries, one GPU of 10,000 faces/s, and one partition. Worked out."""
    thousand = plan(costs, 1000, people_per_minute)
    records = thousand.crops_per_s + thousand.people_per_s + 500
    return {
        "ingest": 1000 / thousand.ingest_cores,
        "inference": 1000 / thousand.inference_cores,
        "aggregator": 1000 / thousand.aggregator_cores,
        "redis": 1000 / thousand.redis_cores,
        "gpu of 10,000 faces/s": 10_000 * 1000 / thousand.crops_per_s,
        "core that decodes JPEG for a GPU": 1e6 / costs.step_us * 1000 / thousand.crops_per_s,
        "partition": costs.partition_records_s * 1000 / records,
    }


def measure(settings: Settings, people_per_minute: float, progress: Callable[[str], None]) -> UnitCosts:
    """Measure the unit costs on this machine; takes about two minutes. Raises ConfigError, TransportError."""
    with tempfile.TemporaryDirectory(prefix="demographics-capacity-") as folder:
        bench = Workbench(Path(folder), settings, progress=progress)
        progress("a camera with people, and one without")
        with_people, empty = camera_part.shares(bench)
    progress("the network")
    engine = engine_of(settings.inference, say=progress)
    side = engine.manifest.crop.size_px
    crops = np.random.default_rng(0).integers(0, 256, (32, side, side, 3), dtype=np.uint8)
    network_s = least_cpu_s(lambda: [engine.predict(crops) for _ in range(10)], rounds=3)
    progress(f"{SIMULATED} cameras, simulated")
    script = Crowd(SIMULATED, people_per_minute, SIMULATED_S)
    simulated = simulate(settings, script, progress=progress)["cpu_us_per_crop"]
    progress("Redis after a day")
    jpegs = crops_of_kinds(engine.manifest.crop, coded=False)
    return UnitCosts(
        camera_with_people=with_people,
        camera_empty=empty,
        network_us=1e6 * network_s / 320,
        step_us=simulated["inference"],
        aggregator_us=simulated["aggregator"],
        redis_us=simulated["redis"],
        crop_bytes=sum(map(len, jpegs)) / len(jpegs),
        redis_bytes=_redis_bytes(settings, people_per_minute),
        partition_records_s=aggregation.rate(settings),
    )


def _redis_bytes(settings: Settings, people_per_minute: float) -> float:
    """Fill a store with a day of some cameras, and with the closed tracks that are still remembered; gives bytes per camera."""
    draw = random.Random(1)  # noqa: S311  for a measurement
    now, remember_s = time.time(), CountingConfig().remember_s
    with EmbeddedValkey() as valkey, redis.Redis.from_url(valkey.url) as client:
        store = RedisStore(valkey.url, retentions(windows_of(settings)))
        before = _used(client)
        for number in range(REMEMBERED_CAMERAS):
            changes, name = Changes(), crowd.camera_name(number)
            for track in range(round(1440 * people_per_minute)):
                kind, at = crowd.kind_of(draw.randrange(crowd.KINDS)), now - draw.random() * 86400
                counted = Cell(kind.gender, kind.age_band, kind.ethnicity)
                changes.counted[at, PlaceCell(crowd.SITE, name, counted)] += 1
                changes.totals[PlaceCell(crowd.SITE, name, counted)] += 1
                if now - at < remember_s:
                    changes.tracks[name, track] = TrackState(crowd.SITE, name, track, at, at, (), counted, closed=True)
            store.apply(number % settings.kafka.partitions, changes, start=_held(store, number % settings.kafka.partitions),
                        end=Position(1, number + 1))  # fmt: skip
        used = _used(client) - before
        store.close()
    return used / REMEMBERED_CAMERAS


def _used(client: Any) -> int:
    return int(client.info("memory")["used_memory"])


def _held(store: RedisStore, partition: int) -> Position | None:
    return store.positions([partition])[partition]


HEADINGS: Final = (
    "cameras",
    "people/s",
    "crops/s",
    "cores: ingest",
    "inference",
    "aggregator",
    "Redis",
    "together",
    "Kafka MB/s",
    "Redis MB",
    "partitions",
    "most cores",
)


def cells(one: Plan) -> tuple[str, ...]:
    """Write a plan as a row."""
    figures = (one.people_per_s, one.crops_per_s, one.ingest_cores, one.inference_cores, one.aggregator_cores, one.redis_cores,
               one.cores, one.bus_mb_s, one.redis_mb)  # fmt: skip
    return (f"{one.cameras:,}", *map(page.number, figures), f"{one.partitions}", one.first)


def document(costs: UnitCosts, people_per_minute: float) -> dict[str, Any]:
    """Give all of it as JSON has it."""
    plans = [plan(costs, cameras, people_per_minute) for cameras in SIZES]
    return {
        "people_per_minute": people_per_minute,
        "unit_costs": asdict(costs),
        "cameras_per": cameras_per_core(costs, people_per_minute),
        "plans": [{**asdict(one), "cores": one.cores} for one in plans],
    }


def markdown(costs: UnitCosts, people_per_minute: float, command: str) -> str:
    """Write unit costs and plans as Markdown."""
    plans = [plan(costs, cameras, people_per_minute) for cameras in SIZES]
    carries = cameras_per_core(costs, people_per_minute)
    lines = [
        f"`{command}`, {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}, {page.machine()}.",
        "",
        "| measured | |",
        "|---|---|",
        f"| a camera of 1080p25 with people, 5 looks/s | {100 * costs.camera_with_people:.1f} % of a core |",
        f"| the same, nobody there | {100 * costs.camera_empty:.1f} % of a core |",
        f"| the network, of a crop | {costs.network_us:,.0f} us |",
        f"| inference without it, of a crop | {costs.step_us:,.0f} us |",
        f"| aggregator, of a crop with its share of ends and states | {costs.aggregator_us:,.0f} us |",
        f"| Valkey, of a crop | {costs.redis_us:,.0f} us |",
        f"| a crop | {costs.crop_bytes:,.0f} bytes |",
        f"| a camera in Valkey, after a day | {costs.redis_bytes / 1e3:,.0f} kB |",
        f"| records that an aggregator reads of one partition | {costs.partition_records_s:,.0f} a second |",
        "",
        f"Worked out from that, for {people_per_minute:g} people a minute before each camera:",
        "",
        "| one ... | carries cameras |",
        "|---|---|",
        *(f"| {'core of ' if name in {'ingest', 'inference', 'aggregator', 'redis'} else ''}{name} | {amount:,.0f} |"
          for name, amount in carries.items()),
        "",
        f"| {' | '.join(HEADINGS)} |",
        f"|{'---:|' * len(HEADINGS)}",
        *(f"| {' | '.join(cells(one))} |" for one in plans),
    ]  # fmt: skip
    return "\n".join(lines)


def table(plans: Sequence[Plan]) -> Table:
    """Lay plans out for a terminal."""
    made = Table(*HEADINGS, title=f"worked out from this run: {page.machine()}", title_justify="left")
    for one in plans:
        made.add_row(*cells(one))
    return made


def run_capacity(settings: Settings, people_per_minute: float) -> UnitCosts:
    """Measure, showing progress and the table on stderr."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        console.width = 160
    with console.status("starting") as status:
        costs = measure(settings, people_per_minute, lambda text: status.update(f"measuring {text}"))
    console.print(table([plan(costs, cameras, people_per_minute) for cameras in SIZES]))
    return costs
