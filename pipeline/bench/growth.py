"""From one camera to more than the machine can carry: what each costs, and what gives way first.

Films of 1080p at 25 fps are played in real time, everything runs in one process as in `demographics run`. While there is room, a
camera costs what a camera costs. Past that, frames that come too late give way and pictures are searched less often; what is
counted is counted as soon as before. Takes about five minutes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import redis

from pipeline import telemetry as metrics
from pipeline.bench import films, histograms
from pipeline.bench.rows import Row, Workbench
from pipeline.cameras import Camera
from pipeline.local import LocalRun
from pipeline.telemetry import Telemetry

PART: Final = "growth"
CAMERAS: Final = (1, 2, 4, 8, 16, 32)
LOOKS_A_SECOND: Final = 5.0
FILM_S: Final = 30.0  # longer than a measurement, so that no film ends in one
WARM_UP_S: Final = 8.0
MEASURED_S: Final = 20.0
TIMES: Final = (metrics.CAPTURE_TO_COUNT, metrics.PICTURE_AGE, metrics.BUS_TO_COUNT)


@dataclass(frozen=True)
class Load:
    """What one number of cameras came to."""

    cameras: int
    cores: float  # busy, of this process and its Valkey
    looks_a_second: float  # of a camera
    late: float  # share of the frames that a newer one replaced
    p50_s: float  # capture to count
    p99_s: float
    age_p99_s: float  # of a picture once it has been searched
    behind_p99_s: float  # bus to count


def measure(bench: Workbench) -> list[Row]:
    """Measure each number of cameras for some seconds."""
    scenes = [films.people(bench.folder, size=(1920, 1080), seconds=FILM_S, walkers=14, seed=seed) for seed in (5, 6)]
    loads = []
    for count in CAMERAS:
        bench.progress(f"{PART}: {count} cameras")
        loads.append(_load(bench, scenes, count))
    return [row for load in loads for row in _rows(load, loads[0])]


def _rows(load: Load, alone: Load) -> list[Row]:
    what = f"{load.cameras} camera{'s' if load.cameras > 1 else ''} of 1080p25"
    return [
        Row(
            PART, f"{what}: cost of each", 100 * load.cores / load.cameras, "% of a core", "one camera alone",
            100 * alone.cores, limit_of=f"{load.cores:.2f} cores busy, {100 * load.late:.0f} % of the frames came too late",
        ),
        Row(
            PART, f"{what}: searched", load.looks_a_second, "looks/s", limit=LOOKS_A_SECOND, limit_of="what is wanted",
        ),
        Row(
            PART, f"{what}: age of a picture once it has been searched, p99", load.age_p99_s, "s", "one camera alone",
            alone.age_p99_s, limit_of=f"a crop in the bus is counted after {load.behind_p99_s:.2f} s, p99",
        ),
        Row(
            PART, f"{what}: capture to count, three looks that confirm included, p99", load.p99_s, "s", "one camera alone",
            alone.p99_s, limit_of=f"p50 {load.p50_s:.2f} s",
        ),
    ]  # fmt: skip


def _load(bench: Workbench, scenes: list[Path], count: int) -> Load:
    cameras = [
        Camera.model_validate(
            {"id": f"camera-{n}", "url": str(scenes[n % len(scenes)]), "detect_fps": LOOKS_A_SECOND, "realtime": True}
        )
        for n in range(count)
    ]
    with LocalRun(bench.settings, cameras, port=0) as local, redis.Redis.from_url(local.valkey_url) as client:

        def cpu_s() -> float:
            used = client.info("cpu")
            return time.process_time() + float(used["used_cpu_user"]) + float(used["used_cpu_sys"])

        local.start()
        time.sleep(WARM_UP_S)
        watch = local.telemetry
        taken, looked = (
            {each: histograms.of_telemetry(watch, each) for each in TIMES},
            _sum(watch, metrics.FRAMES_DETECTED),
        )
        began, spent, frames = (
            time.monotonic(),
            cpu_s(),
            [(loop.state.frames, loop.state.drops) for loop in local.fleet.loops],
        )
        time.sleep(MEASURED_S)
        wall, spent = time.monotonic() - began, cpu_s() - spent
        came = [(loop.state.frames, loop.state.drops) for loop in local.fleet.loops]
        times = {each: histograms.since(histograms.of_telemetry(watch, each), taken[each]) for each in TIMES}
        looks = _sum(watch, metrics.FRAMES_DETECTED) - looked
    seen = sum(now[0] - before[0] for now, before in zip(came, frames, strict=True))
    return Load(
        cameras=count,
        cores=spent / wall,
        looks_a_second=looks / wall / count,
        late=max(0.0, 1 - seen / (25 * wall * count)),
        p50_s=histograms.quantile(0.5, times[metrics.CAPTURE_TO_COUNT]),
        p99_s=histograms.quantile(0.99, times[metrics.CAPTURE_TO_COUNT]),
        age_p99_s=histograms.quantile(0.99, times[metrics.PICTURE_AGE]),
        behind_p99_s=histograms.quantile(0.99, times[metrics.BUS_TO_COUNT]),
    )


def _sum(telemetry: Telemetry, metric: metrics.Metric) -> float:
    return sum(value for name, _, value in telemetry.samples(metric) if name.endswith("_total"))
