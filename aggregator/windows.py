"""Rolling windows as arithmetic on fixed buckets.

A visitor is counted in the bucket of first sight, once for every resolution; a window is the sum of the buckets that it
touches, the current one included. It is read at the coarsest resolution that still gives it twelve buckets, so that a day
costs no more to read than an hour.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

RESOLUTIONS_S: Final = (5, 60, 600)
LEAST_BUCKETS: Final = 12
MOST_AHEAD_S: Final = 300.0  # of the log's own clock; what is further ahead is not counted


class RollingWindow(NamedTuple):
    """A window and the buckets that it is read from."""

    name: str
    seconds: int
    bucket_s: int

    def buckets(self, now: float) -> range:
        """List the starts of its buckets at *now*, oldest first, in seconds since the epoch."""
        last = int(now // self.bucket_s) * self.bucket_s
        count = -(-self.seconds // self.bucket_s)
        return range(last - (count - 1) * self.bucket_s, last + 1, self.bucket_s)


def rolling(name: str, seconds: int) -> RollingWindow:
    """Give the window of *seconds*, at the resolution that suits it."""
    fitting = [bucket_s for bucket_s in RESOLUTIONS_S if seconds >= LEAST_BUCKETS * bucket_s]
    return RollingWindow(name, seconds, max(fitting, default=min(RESOLUTIONS_S)))


def rolling_windows(seconds_by_name: Mapping[str, int]) -> tuple[RollingWindow, ...]:
    """Give every window of the settings, in their order."""
    return tuple(rolling(name, seconds) for name, seconds in seconds_by_name.items())


class Retention(NamedTuple):
    """How long the buckets of each resolution are kept."""

    bucket_s: int
    keep_s: int

    def bucket(self, at: float) -> int:
        """Give the start of the bucket that *at* falls into."""
        return int(at // self.bucket_s) * self.bucket_s

    def starts(self, now: float) -> range:
        """List the starts of all buckets that may be kept at *now*, those of clocks that are somewhat ahead included."""
        return range(self.bucket(now - self.keep_s), self.bucket(now + MOST_AHEAD_S) + 1, self.bucket_s)

    def expires(self, bucket: int) -> int:
        """Give the second since the epoch after which no window reads *bucket*."""
        return bucket + self.keep_s


def retentions(windows: Iterable[RollingWindow]) -> tuple[Retention, ...]:
    """Say which resolutions are written for *windows*, and how long their buckets stay, with some minutes' grace.

    Each resolution is kept for an hour of buckets at least (12 for the finest), so that there is a trend to draw.
    """
    keep: dict[int, int] = {}
    for window in windows:
        trend_s = 60 * window.bucket_s
        keep[window.bucket_s] = max(keep.get(window.bucket_s, 0), window.seconds, trend_s)
    return tuple(Retention(bucket_s, seconds + bucket_s + 300) for bucket_s, seconds in sorted(keep.items()))
