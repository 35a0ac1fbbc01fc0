"""The parts in their order, and the command that runs them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from pipeline.bench import (
    aggregation,
    bus,
    camera,
    cut,
    decode,
    detect,
    end_to_end,
    gpu,
    growth,
    inference,
    latency,
    scrape,
)
from pipeline.bench.page import table
from pipeline.bench.rows import Part, Row, Workbench
from pipeline.errors import ConfigError
from pipeline.settings import Settings, known_names

PARTS: Final[Mapping[str, Part]] = {
    module.PART: module.measure
    for module in (decode, detect, camera, cut, bus, inference, aggregation, scrape, end_to_end, latency)
}
LONG: Final[Mapping[str, Part]] = {growth.PART: growth.measure, gpu.PART: gpu.measure}
"""Measured only when they are named: minutes each, and not every machine has a GPU."""

WIDE: Final = 160  # where nobody says how wide it is


def run_bench(settings: Settings, only: Sequence[str] = (), *, kafka: str | None = None) -> list[Row]:
    """Measure the parts named, or all that are quick; shows the page on stderr. Raises ConfigError for a part that is none."""
    known = {**PARTS, **LONG}
    unknown = [part for part in only if part not in known]
    if unknown:
        raise ConfigError(f"--only {part}: no such part; {known_names(known, part)}" for part in unknown)
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="demographics-bench-") as folder, console.status("") as status:
        bench = Workbench(Path(folder), settings, kafka, progress=lambda text: status.update(f"measuring {text}"))
        for part in only or PARTS:
            bench.progress(part)
            rows += known[part](bench)
    console.print(table(rows))
    return rows
