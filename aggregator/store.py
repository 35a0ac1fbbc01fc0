"""The store port: what is counted, and the promise that it is counted once.

Counts and the offset they came from move in one atomic step (law 2). A step names the position that it starts from; where the
store has another, somebody else has applied, and nothing is changed. tests/contract/test_store.py holds both implementations
to it: `redis_store`, and `memory_store` for tests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol

import msgspec
from msgspec import Struct

from aggregator.fusion import Cell, Evidence
from aggregator.windows import RollingWindow
from pipeline.messages import CameraStatus
from pipeline.telemetry import DWELL

DWELL_BUCKETS_S: Final = DWELL.buckets


class Position(NamedTuple):
    """How far a partition has been applied: the next offset, and how many steps it took (some move no offset)."""

    offset: int
    revision: int


class TrackState(Struct, frozen=True, array_like=True, gc=False):
    """One track as far as it is known. A closed one is remembered for a while, to tell repeats."""

    site: str
    camera_id: str
    track_id: int
    first_seen: float
    last_seen: float
    evidence: tuple[Evidence, ...] = ()
    counted: Cell | None = None
    closed: bool = False


TrackKey = tuple[str, int]


class CameraClock(Struct, frozen=True, array_like=True, gc=False):
    """How far a camera's evidence has come, in event time: what is idle and what is too old is judged by it.

    A new connection anchors its clock anew, and a film that is read again begins before it ended: so each connection has its
    own time, and tracks of an earlier one are judged by what the newest has reached since it began.
    """

    connection: int  # the newest; see pipeline.messages.connection_of
    began: float  # its first event
    now: float  # its latest
    before: float = 0.0  # the latest of all earlier connections


class PlaceCell(NamedTuple):
    """Where and what."""

    site: str
    camera_id: str
    cell: Cell


class Place(NamedTuple):
    """One camera."""

    site: str
    camera_id: str


@dataclass
class Changes:
    """What one step changes. Applied as a whole or not at all."""

    counted: Counter[tuple[float, PlaceCell]] = field(default_factory=Counter)
    """Visitors by first sight (seconds since the epoch) and cell; corrections are negative."""
    totals: Counter[PlaceCell] = field(default_factory=Counter)
    """Visitors whose passage has ended; never negative."""
    passages: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    """What ended passages add up to besides: (kind, site, camera, label), as fields.py writes it down; never negative."""
    tracks: dict[TrackKey, TrackState | None] = field(default_factory=dict)
    """New states; None forgets."""
    clocks: dict[str, CameraClock] = field(default_factory=dict)
    cameras: dict[str, CameraStatus] = field(default_factory=dict)


class PartitionState(NamedTuple):
    """What the store holds of one partition."""

    position: Position | None
    tracks: dict[TrackKey, TrackState]
    clocks: dict[str, CameraClock]


class Tally(NamedTuple):
    """Visitors of one camera in one window or ever, by gender and age band, and by ethnicity."""

    people: Counter[tuple[str, str]]
    ethnicity: Counter[str]


class Passages(Struct):
    """What the ended passages of one camera add up to, ever."""

    entries: int = 0  # crossings of its line
    exits: int = 0
    dwell: Counter[str] = msgspec.field(
        default_factory=Counter
    )  # visitors by the bucket of their dwell: DWELL_BUCKETS_S, inf
    dwell_s: float = 0.0  # of all together


TOLD_S: Final = 30.0  # what an aggregator has said of itself is no longer so


class Snapshot(NamedTuple):
    """Everything that is shown, at one moment."""

    windows: Mapping[str, Mapping[Place, Tally]]  # by the window's name
    totals: Mapping[Place, Tally]
    cameras: Mapping[str, CameraStatus]
    passages: Mapping[Place, Passages] = MappingProxyType({})


class Bucket(NamedTuple):
    """A slice of time at one resolution, in seconds since the epoch."""

    bucket_s: int
    start: int


class Dump(NamedTuple):
    """Every count of one partition and the position that they are of, in the store's own words (see fields.py)."""

    position: Position | None
    totals: Mapping[str, int]
    buckets: Mapping[Bucket, Mapping[str, int]]  # those that have not expired, without empty ones


class Store(Protocol):
    """Keeps the counts. Every method raises TransportError where the store does not answer."""

    def load(self, partition: int) -> PartitionState:
        """Give what is held of *partition*."""

    def apply(self, partition: int, changes: Changes, *, start: Position | None, end: Position) -> bool:
        """Apply *changes* and move the position from *start* to *end*, both or neither.

        False where the position is not *start*: somebody else has applied; load again.
        """

    def positions(self, partitions: Iterable[int]) -> Mapping[int, Position | None]:
        """Say how far each of *partitions* has been applied."""

    def snapshot(self, now: float, windows: Iterable[RollingWindow]) -> Snapshot:
        """Read every count, over all partitions, at *now* (seconds since the epoch)."""

    def series(self, now: float, window: RollingWindow) -> list[tuple[int, Mapping[Place, Tally]]]:
        """Read one window bucket by bucket, oldest first, empty buckets included."""

    def dump(self, partition: int, now: float) -> Dump:
        """Read every count of *partition*, at one moment; *now* tells which buckets there can be."""

    def ping(self) -> None:
        """Return where the store answers."""


class Board(Protocol):
    """What aggregators say of themselves, kept beside the counts for whoever reads those. Raises TransportError."""

    def tell(self, who: str, said: Mapping[str, Any], now: float) -> None:
        """Keep what *who* says at *now*, in place of what it said before."""

    def told(self, now: float) -> Mapping[str, Mapping[str, Any]]:
        """Give what was told within the last TOLD_S, by who has told it."""
