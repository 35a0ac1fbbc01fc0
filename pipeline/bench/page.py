"""One page of results: a table for the terminal, the same as Markdown, and a plot."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

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
    """Draw how many times better than its peer each figure is, and which share of its limit. Raises ConfigError."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415  optional
    except ImportError:
        raise ConfigError("plots need matplotlib, which is not installed: pip install demographics[training]") from None
    compared = [row for row in rows if row.ratio is not None][::-1]
    limited = [row for row in rows if row.of_limit is not None][::-1]
    figure = Figure(figsize=(11, 1.6 + 0.32 * (len(compared) + len(limited))), layout="constrained")
    heights = (max(len(compared), 1), max(len(limited), 1))
    above, below = figure.subplots(2, 1, height_ratios=heights)
    for axes, shown, values, title in (
        (above, compared, [row.ratio or 0 for row in compared], "times better than the peer (log)"),
        (below, limited, [100 * (row.of_limit or 0) for row in limited], "% of the limit"),
    ):
        bars = axes.barh([_short(row) for row in shown], values, color="#1f77b4")
        axes.bar_label(bars, [f" {number(value)}" for value in values], fontsize=8)
        axes.set_title(title, fontsize=10, loc="left")
        axes.tick_params(labelsize=8)
        axes.margins(x=0.12)
        axes.spines[["top", "right"]].set_visible(False)
    above.set_xscale("log")
    above.axvline(1, color="#888", linewidth=1)
    below.axvline(100, color="#888", linewidth=1)
    figure.savefig(path, dpi=120)


def _short(row: Row) -> str:
    text = f"{row.part}: {row.figure}"
    return text if len(text) <= 60 else text[:59] + "…"
