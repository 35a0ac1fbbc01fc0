"""One page of results: a table for the terminal, the same as Markdown, and a plot."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from pipeline.bench.rows import Row
from pipeline.errors import ConfigError

BEGIN: Final = "<!-- measured: begin -->"
END: Final = "<!-- measured: end -->"


def number(value: float | None) -> str:
    """Write a figure with three or so digits that mean something."""
    if value is None:
        return ""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def cells(row: Row) -> tuple[str, ...]:
    """Write a row in words: part, figure, value with its unit, peer, ratio, limit, share of the limit."""
    peer = f"{number(row.peer_value)}: {row.peer}" if row.peer_value is not None else row.peer
    limit = f"{number(row.limit)}: {row.limit_of}" if row.limit is not None else row.limit_of
    ratio = f"{number(row.ratio)} x" if row.ratio is not None else ""
    share = f"{100 * row.of_limit:.0f} %" if row.of_limit is not None else ""
    return row.part, row.figure, f"{number(row.value)} {row.unit}", peer, ratio, limit, share


HEADINGS: Final = ("part", "what", "figure", "peer", "better by", "limit", "of it")


INFERENCE: Final = "inference"
GROWTH: Final = "growth"
INSTRUCTIONS: Final = {
    "amx_int8": ", AMX",
    "avx512_vnni": ", AVX-512 with VNNI",
    "avx_vnni": ", AVX2 with VNNI",
    "avx512f": ", AVX-512 without VNNI",
    "avx2": ", AVX2 without VNNI",
}
"""What decides how fast numbers of 8 bits are multiplied, by the word of /proc/cpuinfo."""


def machine() -> str:
    """Say what the figures stand on."""
    name, known = platform.processor() or platform.machine(), set[str]()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
        known = next((set(line.split()) for line in lines if line.startswith("flags")), known)
    except OSError:
        pass
    widest = next((said for flag, said in INSTRUCTIONS.items() if flag in known), "")
    load = ", ".join(f"{busy:.1f}" for busy in os.getloadavg())
    return (
        f"{os.cpu_count()} cores ({name}{widest}), load {load}, Python {platform.python_version()}, {platform.system()}"
    )


def table(rows: Sequence[Row]) -> Table:
    """Lay the rows out for a terminal."""
    made = Table(*HEADINGS, title=f"this run: {machine()}", title_justify="left", show_lines=True)
    for row in rows:
        made.add_row(*cells(row))
    return made


def markdown(rows: Sequence[Row], command: str) -> str:
    """Write the rows as Markdown, with command, date and machine."""
    lines = [
        f"`{command}`, {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}, {machine()}.",
        "",
        f"| {' | '.join(HEADINGS)} |",
        f"|{'---|' * len(HEADINGS)}",
        *(f"| {' | '.join(_escaped(cells(row)))} |" for row in rows),
    ]
    return "\n".join(lines)


def _escaped(texts: Sequence[str]) -> list[str]:
    return [text.replace("|", "\\|") for text in texts]


def put_between_marks(path: Path, text: str) -> None:
    """Replace what stands between the marks of a page. Raises ConfigError where there are none."""
    try:
        page = path.read_text()
    except OSError as error:
        raise ConfigError(f"--write {path}: it cannot be read ({error.strerror})") from None
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f"--write {path}: put the lines {BEGIN} and {END} where the figures are to stand")
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw how many times better than its peer each figure is, which share of its limit, and growth. Raises ConfigError."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415  optional
    except ImportError:
        raise ConfigError("plots need matplotlib, which is not installed: pip install demographics[training]") from None
    grown = [row for row in rows if row.part == GROWTH]
    bars = [row for row in rows if row.part != GROWTH]
    compared = _best([row for row in bars if row.ratio is not None], lambda row: row.ratio or 0.0)[::-1]
    limited = _best([row for row in bars if row.of_limit is not None], lambda row: row.of_limit or 0.0)[::-1]
    heights = [0.42 * max(len(shown), 1) for shown in (compared, limited)] + ([3.5] if grown else [])
    figure = Figure(figsize=(12, 2 + sum(heights)), layout="constrained")
    axes = figure.subplots(len(heights), 1, height_ratios=heights)
    better = [row.ratio or 0.0 for row in compared]
    _bars(axes[0], [f"{_short(row.part, row.figure)}\nthan {_short(row.peer)}" for row in compared], better, 1.0)
    axes[0].set_title("times better than the peer (log)", fontsize=10, loc="left")
    axes[0].set_xscale("log")
    shares = [100 * (row.of_limit or 0.0) for row in limited]
    _bars(axes[1], [f"{_short(row.part, row.figure)}\nof {_short(row.limit_of)}" for row in limited], shares, 0.0)
    axes[1].axvline(100, color="#888", linewidth=1)
    axes[1].set_title("% of the limit", fontsize=10, loc="left")
    if grown:
        _lines(axes[2], grown)
    figure.savefig(path, dpi=110)


def _best(rows: Sequence[Row], key: Callable[[Row], float]) -> list[Row]:
    """Keep, of rows that differ by engine or batch only, the one that a service would choose."""
    best: dict[tuple[str, ...], Row] = {}
    for number, row in enumerate(rows):
        threads = row.figure.rpartition(", ")[2]
        alike = (row.part, threads, row.peer or row.limit_of) if row.part == INFERENCE else (str(number),)
        if alike not in best or key(row) > key(best[alike]):
            best[alike] = row
    return list(best.values())


def _bars(axes: Any, labels: Sequence[str], values: Sequence[float], start: float) -> None:
    places = range(len(labels))
    colours = ["#1f77b4" if value >= start else "#d95f02" for value in values]
    drawn = axes.barh(places, [value - start for value in values], left=start, color=colours, height=0.6)
    axes.bar_label(drawn, [f" {number(value)}" for value in values], fontsize=8)
    axes.set_yticks(places, labels)
    axes.tick_params(labelsize=7.5)
    axes.margins(x=0.12, y=0.01)
    axes.axvline(start, color="#888", linewidth=1)
    axes.spines[["top", "right"]].set_visible(False)


def _lines(axes: Any, rows: Sequence[Row]) -> None:
    """Draw what each camera costs and how often it is searched, by how many there are."""
    other = axes.twinx()
    for ending, where, colour, name in (
        ("cost of each", axes, "#1f77b4", "% of a core for each camera"),
        ("searched", other, "#d95f02", "looks a second at each camera"),
    ):
        points = [(int(row.figure.split()[0]), row.value) for row in rows if row.figure.endswith(ending)]
        where.plot(*zip(*points, strict=True), marker="o", color=colour)
        where.set_ylabel(name, color=colour, fontsize=8)
        where.set_ylim(bottom=0)
        where.tick_params(labelsize=8)
    axes.set_xscale("log", base=2)
    axes.set_xticks([count for count, _ in points], [str(count) for count, _ in points])
    axes.set_title("growth: cameras of 1080p at 25 frames a second on this machine", fontsize=10, loc="left")


def _short(*words: str) -> str:
    text = ": ".join(words)
    return text if len(text) <= 70 else text[:69] + "…"
