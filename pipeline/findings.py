"""What doctor finds: how it is said, and judged as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from math import isinf
from typing import Any, Final, NamedTuple

from rich.table import Table
from rich.text import Text

from aggregator.windows import MOST_AHEAD_S

PARTS: Final = ("settings", "kafka", "topics", "groups", "redis", "clock", "model", "gpu", "cameras", "disk")
FULL_RATIO: Final = 0.85
CLOCKS_APART_S: Final = 2.0


class State(StrEnum):
    """How it is."""

    OK = "ok"
    WARNING = "warning"  # it works, and may not for long, or not as one would think
    FAILED = "failed"  # it does not work, or a promise is broken
    SKIPPED = "skipped"  # nobody could look


class Finding(NamedTuple):
    """One thing that was looked at."""

    part: str  # of PARTS
    state: State
    what: str
    do: str = ""  # what to do about it; always said of what is not ok

    def document(self) -> dict[str, str]:
        """Give it as JSON's types."""
        return {"part": self.part, "state": self.state.value, "what": self.what, "do": self.do}


class Away(Exception):  # noqa: N818  nothing is wrong with this one
    """What a look depends on is not there, and that has been said."""


def clock_finding(whose: str, ahead_s: float, *, known_behind: bool) -> Finding:
    """Judge a clock that is *ahead_s* before ours; where not *known_behind*, its being behind cannot be seen."""
    apart = abs(ahead_s) if known_behind else max(0.0, ahead_s)
    if apart < CLOCKS_APART_S:
        return Finding(
            "clock", State.OK, f"{whose}'s: {apart:.1f} s apart" if known_behind else f"{whose}'s: not ahead"
        )
    return Finding(
        "clock",
        State.FAILED if apart > MOST_AHEAD_S else State.WARNING,
        f"{whose}'s is {apart:.0f} s {'ahead of' if ahead_s > 0 else 'behind'} this machine's:"
        " people are counted at the wrong time",
        "run an NTP client (chrony, systemd-timesyncd) on every machine",
    )


def document(findings: Sequence[Finding]) -> dict[str, Any]:
    """Give the findings as one document; `state` is that of the worst."""
    states = {finding.state for finding in findings}
    worst = next((state for state in (State.FAILED, State.WARNING) if state in states), State.OK)
    return {"state": worst.value, "findings": [finding.document() for finding in findings]}


_SIGNS: Final = {
    State.OK: ("✔", "green"),
    State.WARNING: ("!", "yellow"),
    State.FAILED: ("✘", "red"),
    State.SKIPPED: ("–", "dim"),
}


def table(findings: Iterable[Finding]) -> Table:
    """Draw the findings, each with what to do below."""
    drawn = Table(show_header=False, box=None, pad_edge=False)
    drawn.add_column()
    drawn.add_column(no_wrap=True)
    drawn.add_column(overflow="fold")
    for finding in findings:
        sign, colour = _SIGNS[finding.state]
        drawn.add_row(Text(sign, colour), Text(finding.part, "bold"), Text(finding.what))
        if finding.do:
            drawn.add_row("", "", Text(f"→ {finding.do}", colour))
    return drawn


def span(seconds: float) -> str:
    """Say a time for people."""
    if isinf(seconds):
        return "ever"
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.0f} s"


def in_bytes(count: float) -> str:
    """Say a size for people."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count / 1024:.0f} KiB"


def numbers(partitions: Iterable[int]) -> str:
    """List numbers."""
    return ", ".join(map(str, partitions))
