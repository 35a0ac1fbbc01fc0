"""How often a camera is searched: as often as wanted, and less where the worker cannot keep up, before anything queues.

A worker that is too slow shows it in one place: pictures are old when their turn comes, since the camera's packets wait in
the kernel. Additive increase, multiplicative decrease, as V. Jacobson, "Congestion avoidance and control", SIGCOMM 1988.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

_SLOWER: Final = 0.7
_LATE_S: Final = 0.6
_PUNCTUAL_S: Final = 0.3
_PATIENCE_S: Final = 2.0  # between two changes, so that one shows before the next


@dataclass(slots=True)
class Cadence:
    """When the next look is due. Times are the frames' own, in seconds since the epoch."""

    wanted_fps: float
    least_fps: float = 1.0
    fps: float = field(init=False)
    _due: float = 0.0
    _changed_at: float = 0.0
    _least_lag_s: float | None = None

    def __post_init__(self) -> None:
        self.fps = self.wanted_fps

    def due(self, at: float) -> bool:
        """Tell whether the frame of *at* is to be looked at, and if so wait for the next."""
        # Half a frame's tolerance: at 25 fps and 8 looks a second, 0.12 s is one look, not a miss.
        if at < self._due - 0.02:
            return False
        period = 1.0 / self.fps
        self._due = max(self._due + period, at + period / 2) if self._due else at + period
        return True

    def feel(self, lag_s: float, now: float) -> None:
        """Take in how old a picture was when its look was over; *now* is any clock in seconds.

        Ages are compared with the youngest picture so far: a stream is anchored when its first frame has been decoded, and
        that may have been late already.
        """
        self._least_lag_s = lag_s if self._least_lag_s is None else min(lag_s, self._least_lag_s + 0.001)
        late_s = lag_s - self._least_lag_s
        if now - self._changed_at < _PATIENCE_S:
            return
        if late_s > _LATE_S and self.fps > min(self.least_fps, self.wanted_fps):
            self.fps, self._changed_at = max(min(self.least_fps, self.wanted_fps), self.fps * _SLOWER), now
        elif late_s < _PUNCTUAL_S and self.fps < self.wanted_fps:
            self.fps, self._changed_at = min(self.wanted_fps, self.fps + 0.1 * self.wanted_fps), now
