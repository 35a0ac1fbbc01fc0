"""The counts in this process: for tests, and as the plainest statement of what a store promises."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from aggregator.fields import bucket_deltas, passages, tallies, total_deltas
from aggregator.store import (
    TOLD_S,
    Bucket,
    CameraClock,
    Changes,
    Dump,
    PartitionState,
    Place,
    Position,
    Snapshot,
    Tally,
    TrackKey,
    TrackState,
)
from aggregator.windows import Retention, RollingWindow
from pipeline.messages import CameraStatus


class MemoryStore:
    """Keeps everything in dictionaries under one lock; forgets nothing."""

    def __init__(self, retentions: Iterable[Retention]) -> None:
        self._retentions = tuple(retentions)
        self._lock = threading.Lock()
        self._positions: dict[int, Position] = {}
        self._tracks: defaultdict[int, dict[TrackKey, TrackState]] = defaultdict(dict)
        self._clocks: defaultdict[int, dict[str, CameraClock]] = defaultdict(dict)
        self._buckets: defaultdict[int, defaultdict[Bucket, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
        self._totals: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self._cameras: dict[str, CameraStatus] = {}
        self._told: dict[str, tuple[float, dict[str, Any]]] = {}

    def load(self, partition: int) -> PartitionState:
        """Give what is held of *partition*."""
        with self._lock:
            return PartitionState(
                self._positions.get(partition), dict(self._tracks[partition]), dict(self._clocks[partition])
            )

    def apply(self, partition: int, changes: Changes, *, start: Position | None, end: Position) -> bool:
        """Apply *changes* and move the position from *start* to *end*, both or neither."""
        with self._lock:
            if self._positions.get(partition) != start:
                return False
            for bucket, counts in bucket_deltas(changes, self._retentions).items():
                self._buckets[partition][bucket].update(counts)
            self._totals[partition].update(total_deltas(changes))
            for key, state in changes.tracks.items():
                if state is None:
                    self._tracks[partition].pop(key, None)
                else:
                    self._tracks[partition][key] = state
            self._clocks[partition].update(changes.clocks)
            self._cameras.update(changes.cameras)
            self._positions[partition] = end
            return True

    def positions(self, partitions: Iterable[int]) -> Mapping[int, Position | None]:
        """Say how far each of *partitions* has been applied."""
        with self._lock:
            return {partition: self._positions.get(partition) for partition in partitions}

    def snapshot(self, now: float, windows: Iterable[RollingWindow]) -> Snapshot:
        """Read every count at *now*."""
        with self._lock:
            totals = sum(self._totals.values(), Counter())
            return Snapshot(
                {window.name: tallies(self._sum(window, now)) for window in windows},
                tallies(totals),
                dict(self._cameras),
                passages(totals),
            )

    def series(self, now: float, window: RollingWindow) -> list[tuple[int, Mapping[Place, Tally]]]:
        """Read one window bucket by bucket, oldest first."""
        with self._lock:
            return [(start, tallies(self._bucket(Bucket(window.bucket_s, start)))) for start in window.buckets(now)]

    def dump(self, partition: int, now: float) -> Dump:
        """Read every count of *partition*."""
        kept = {retention.bucket_s: retention for retention in self._retentions}
        with self._lock:
            buckets = {
                bucket: {field: n for field, n in counts.items() if n}
                for bucket, counts in self._buckets[partition].items()
                if kept[bucket.bucket_s].expires(bucket.start) > now
            }
            return Dump(
                self._positions.get(partition),
                dict(self._totals[partition]),
                {bucket: counts for bucket, counts in buckets.items() if counts},
            )

    def tell(self, who: str, said: Mapping[str, Any], now: float) -> None:
        """Keep what an aggregator says of itself."""
        with self._lock:
            self._told[who] = (now, dict(said))

    def told(self, now: float) -> Mapping[str, Mapping[str, Any]]:
        """Give what was told lately."""
        with self._lock:
            return {who: said for who, (at, said) in sorted(self._told.items()) if now - at <= TOLD_S}

    def ping(self) -> None:
        """Return: this process is there."""

    def _sum(self, window: RollingWindow, now: float) -> Counter[str]:
        total: Counter[str] = Counter()
        for start in window.buckets(now):
            total.update(self._bucket(Bucket(window.bucket_s, start)))
        return total

    def _bucket(self, bucket: Bucket) -> Counter[str]:
        total: Counter[str] = Counter()
        for buckets in self._buckets.values():
            total.update(buckets.get(bucket, Counter()))
        return total
