"""Which few crops of a passage are sent: the best ones, spread over it, the first one early.

    seen       ·  ·  · │confirmed·  ·  · │ ·  ·  ·  ·  ·  · │ ·  ·  ...   · │ ended
    sent               0: best so far     1: best of slot    2: best of slot  last: best of what is left

Slots grow (1, 1, 2, 4 ... intervals), so that somebody who stays for an hour costs as little as somebody who walks by. No crop
is held for much longer than `hold_s`: what is sent is counted while it is news (docs/decisions/0045).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
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
    hold_s: float = 1.0


@dataclass(slots=True)
class Selection:
    """The crops of one track."""

    config: SelectionConfig
    sent: int = 0
    below_bar: int = 0
    _held: deque[Candidate] = field(default_factory=deque)  # each better than all after it, the oldest and best first
    _slot_ends: float = 0.0

    def offer(self, candidate: Candidate) -> None:
        """Consider a crop; the best of its slot is held, and gives way to the next best when it has been held for too long."""
        held = self._held
        if candidate.quality < self.config.least_quality:
            self.below_bar += 1
            return
        while held and held[-1].quality < candidate.quality:
            held.pop()
        held.append(candidate)
        while candidate.captured_at - held[0].captured_at > self.config.hold_s:
            held.popleft()

    def due(self, at: float) -> Candidate | None:
        """Give the crop to send at *at*, of a confirmed track, if it is time for one."""
        if self.sent >= self.config.max_crops - 1 or at < self._slot_ends:  # the last place is kept for `last`
            return None
        return self._take(at)

    def unseen(self, at: float) -> Candidate | None:
        """Give the crop to send of a confirmed track that the look at *at* did not show: it may have left."""
        if not self._held or at - self._held[0].captured_at < self.config.hold_s or self.sent >= self.config.max_crops:
            return None
        return self._take(at)

    def last(self) -> Candidate | None:
        """Give the best of what is left, as the track ends."""
        return self._take(0.0) if self.sent < self.config.max_crops else None

    def _take(self, at: float) -> Candidate | None:
        if not self._held:
            return None
        best = self._held[0]
        self._held.clear()
        self._slot_ends = at + self.config.interval_s * 2 ** max(0, self.sent - 1)
        self.sent += 1
        return best
