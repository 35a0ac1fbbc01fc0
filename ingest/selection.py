"""Which few crops of a passage are sent: the best ones, spread over it, the first one early.

    seen       ·  ·  · │confirmed·  ·  · │ ·  ·  ·  ·  ·  · │ ·  ·  ...   · │ ended
    sent               0: best so far     1: best of slot    2: best of slot  last: best of what is left

Slots grow (1, 1, 2, 4 ... intervals), so that somebody who stays for an hour costs as little as somebody who walks by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ingest.detector import Image


class Candidate(NamedTuple):
    """A crop that might be sent."""

    quality: float
    captured_at: float
    side_px: float
    crop: Image


@dataclass(frozen=True, slots=True)
class SelectionConfig:
    """How many and how far apart."""

    max_crops: int = 8
    interval_s: float = 0.6
    least_quality: float = 0.15


@dataclass(slots=True)
class Selection:
    """The crops of one track."""

    config: SelectionConfig
    sent: int = 0
    below_bar: int = 0
    _best: Candidate | None = None
    _slot_ends: float = 0.0

    def offer(self, candidate: Candidate) -> None:
        """Consider a crop; only the best of its slot is held."""
        if candidate.quality < self.config.least_quality:
            self.below_bar += 1
        elif self._best is None or candidate.quality > self._best.quality:
            self._best = candidate

    def due(self, at: float) -> Candidate | None:
        """Give the crop to send at *at*, of a confirmed track, if it is time for one."""
        if self.sent >= self.config.max_crops - 1 or at < self._slot_ends:  # the last place is kept for `last`
            return None
        return self._take(at)

    def last(self) -> Candidate | None:
        """Give the best of what is left, as the track ends."""
        return self._take(0.0) if self.sent < self.config.max_crops else None

    def _take(self, at: float) -> Candidate | None:
        best, self._best = self._best, None
        if best is not None:
            self._slot_ends = at + self.config.interval_s * 2 ** max(0, self.sent - 1)
            self.sent += 1
        return best
