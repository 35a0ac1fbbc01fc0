"""What a part of the bench says: a figure, the peer's and the limit, all measured in the same run.

Each rate is the best of several rounds, since machines are noisy and nothing runs faster than it can. Compare figures of one
run, never of two machines.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from pipeline.settings import Settings

ROUNDS: Final = 3
_RATES: Final = ("/s", "x real time", "per core", "% of the peak")


@dataclass(frozen=True)
class Row:
    """One figure.

    *peer* is what others do for the same end, *limit* what the machine would allow: the value of a bare loop around the
    libraries, or of what physics leaves. *ratio* says how many times better than the peer the value is, whichever way is better;
    it is computed where it is left out. None where there is no such thing.
    """

    part: str
    figure: str  # what was measured, in words
    value: float
    unit: str
    peer: str = ""
    peer_value: float | None = None  # in the same unit
    ratio: float | None = None
    limit: float | None = None  # in the same unit
    limit_of: str = ""  # what the limit is, in words

    def __post_init__(self) -> None:
        if self.ratio is None and self.peer_value and self.value:
            object.__setattr__(self, "ratio", self._better(self.value, self.peer_value))

    @property
    def more_is_better(self) -> bool:
        """Rates are better when larger; times, sizes and shares when smaller."""
        return self.unit.endswith(_RATES)

    @property
    def of_limit(self) -> float | None:
        """Which fraction of the limit was reached: 1 is all of it."""
        return self._better(self.value, self.limit) if self.limit and self.value else None

    def _better(self, mine: float, theirs: float) -> float:
        return mine / theirs if self.more_is_better else theirs / mine

    def document(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        return {**asdict(self), "of_limit": self.of_limit}


@dataclass(frozen=True)
class Workbench:
    """What a part is given."""

    folder: Path  # its own, empty at first, gone after the run
    settings: Settings
    kafka: str | None = None  # servers of a broker that nobody else uses
    progress: Callable[[str], None] = lambda _: None


Part = Callable[[Workbench], list[Row]]


def best_rate(work: Callable[[], int], rounds: int = ROUNDS) -> float:
    """Give the most units a second that *work* (returning how many it did) reached in several rounds."""
    rates = []
    for _ in range(rounds):
        start = time.perf_counter()
        done = work()
        rates.append(done / (time.perf_counter() - start))
    return max(rates)


def least_cpu_s(work: Callable[[], object], rounds: int = 2) -> float:
    """Give the CPU seconds that *work* takes in this process, all threads together, the least of several rounds."""
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return min(taken)


def versus(rows: list[Row], peer: Row) -> list[Row]:
    """Put *peer*'s figure beside each of *rows*."""
    return [replace(row, peer=peer.figure, peer_value=peer.value, ratio=None) for row in rows]
