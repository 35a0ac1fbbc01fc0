"""How often a camera is searched, and which frames are decoded: less where the worker cannot keep up, before anything queues.

A worker that is too slow shows it in one place: pictures are old when their turn comes, since the camera's packets wait in
the kernel. What counts is the age that stands: the least of a while, since a burst passes by itself (K. Nichols,
V. Jacobson, "Controlling queue delay", CACM 55(7), 2012). Additive increase, multiplicative decrease, as V. Jacobson,
"Congestion avoidance and control", SIGCOMM 1988.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

_SLOWER: Final = 0.7
_FASTER: Final = 0.05  # of what is wanted
_LATE_S: Final = 0.2
_PUNCTUAL_S: Final = 0.1
_PATIENCE_S: Final = 1.0  # between two changes, so that one shows before the next
_FAR_BEHIND_S: Final = 0.8  # searching less often was not enough
_CAUGHT_UP_S: Final = 0.2
_STALL_S: Final = 0.5  # what came in a burst after a stall has been decoded by then


@dataclass(slots=True)
class Cadence:
    """When the next look is due. Times are the frames' own, in seconds since the epoch."""

    wanted_fps: float
    least_fps: float = 1.0
    fps: float = field(init=False)
    _due: float = 0.0
    _changed_at: float = 0.0
    _least_lag_s: float | None = None
    _standing_s: float = field(
        default=float("inf"), init=False
    )  # the least lateness since a change was last thought of

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
        self._standing_s = min(self._standing_s, lag_s - self._least_lag_s)
        if now - self._changed_at < _PATIENCE_S:
            return
        least_fps = min(self.least_fps, self.wanted_fps)
        if self._standing_s > _LATE_S:
            self.fps = max(least_fps, self.fps * _SLOWER)
        elif self._standing_s < _PUNCTUAL_S:
            self.fps = min(self.wanted_fps, self.fps + _FASTER * self.wanted_fps)
        self._changed_at, self._standing_s = now, float("inf")


@dataclass(slots=True)
class CatchUp:
    """Whether only key frames are decoded: while pictures come late and stay so, or they would queue for minutes."""

    keys_only: bool = field(default=False, init=False)
    late_s: float = field(default=0.0, init=False)
    _least_lag_s: float = field(default=float("inf"), init=False)
    _behind_since: float | None = field(default=None, init=False)

    def feel(self, lag_s: float, now: float, *, at_key: bool) -> bool:
        """Take in how old a picture is when it has been decoded, and whether it is a key frame; tells of a change."""
        self._least_lag_s = min(lag_s, self._least_lag_s + 0.0001)
        self.late_s = lag_s - self._least_lag_s
        if self.late_s <= _FAR_BEHIND_S:
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = now
        before = self.keys_only
        if self._behind_since is not None and now - self._behind_since >= _STALL_S:
            self.keys_only = True
        elif at_key and self.late_s < _CAUGHT_UP_S:  # what is between two of them cannot be decoded without the first
            self.keys_only = False
        return self.keys_only != before
