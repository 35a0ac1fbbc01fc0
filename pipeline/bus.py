"""The bus: partitioned, ordered, replayable logs between the services.

The port, in Kafka's own words. `kafka_bus` is Apache Kafka; `memory_bus` is the same promises inside one process, for
the all-in-one run. tests/contract/test_bus.py holds both to them:

- records with one key keep their order, in one partition;
- a record is delivered at least once to every consumer group, and again after a crash unless its offset was committed;
- within a group, a partition has one reader at a time;
- a producer holds a bounded number of unacknowledged records; `send` waits, then raises TransportError.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

FACE_CROPS: Final = "face-crops"
PREDICTIONS: Final = "predictions"
CAMERAS: Final = "cameras"
SWITCHES: Final = "camera-switches"
AUDIT: Final = "audit"
DEAD_LETTERS: Final = "dead-letters"

Headers = tuple[tuple[str, bytes], ...]


class TopicPartition(NamedTuple):
    """One log."""

    topic: str
    partition: int


class Record(NamedTuple):
    """Bytes in a log and where they lie."""

    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes
    headers: Headers
    timestamp: float  # seconds since the epoch, UTC: when the log took it

    @property
    def topic_partition(self) -> TopicPartition:
        """The log it lies in."""
        return TopicPartition(self.topic, self.partition)


class Span(NamedTuple):
    """What a log holds: the offset of its earliest record, and the one that its next record will have."""

    begin: int
    end: int


class TopicSpec(NamedTuple):
    """A topic as this product wants it; created when missing."""

    name: str
    partitions: int
    retention_s: float
    max_message_bytes: int = 1 << 20
    replication: int = 1
    compact: bool = False
    """Keep the last record of every key for ever, instead of every record for a while. An empty value removes its key."""


StartAt = Callable[[TopicPartition], int | None]
"""Asked for each partition as it is assigned, in the thread that polls: the offset to read from, or None for the
committed one. An offset outside the log means its earliest record. If it raises, `poll` does, and it is asked again."""


class Producer(Protocol):
    """Appends records. Safe to call from several threads."""

    def send(self, topic: str, *, key: bytes, value: bytes, headers: Headers) -> None:
        """Hand over one record; it may still be on its way, and `flush` tells whether it arrived.

        Raises TransportError when the bus takes no more, ValueError for a record that is larger than it ever takes.
        """

    def flush(self, timeout_s: float) -> None:
        """Return once everything sent has been acknowledged.

        Raises TransportError when something was not; then send again what was sent since the last flush.
        """

    def close(self) -> None:
        """Flush for a moment, then let go. Never raises."""


class Consumer(Protocol):
    """Reads its share of a topic as a member of a group. One thread owns it."""

    def poll(self, timeout_s: float, max_records: int) -> Sequence[Record]:
        """Give the next records, in order within each partition; empty after *timeout_s*. Raises TransportError."""

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Say that everything below these offsets is done with. A lost partition is passed over. Raises TransportError."""

    def begin_again(self, partitions: Collection[TopicPartition]) -> None:
        """Have the next `poll` ask `start_at` for these partitions, and read them from there, as if they were newly assigned."""

    def span(self, partition: TopicPartition) -> Span:
        """Ask what a log holds. Raises TransportError."""

    def assignment(self) -> frozenset[TopicPartition]:
        """Name the partitions that are this consumer's now."""

    def lag(self) -> Mapping[TopicPartition, int]:
        """Count the records not yet read, per assigned partition, as far as known without asking the network."""

    def close(self) -> None:
        """Leave the group. Never raises."""


class Reader(Protocol):
    """Looks into one topic beside its groups: nothing is joined, nothing committed. One thread owns it."""

    def spans(self) -> Mapping[TopicPartition, Span]:
        """Say what each log of the topic holds. Raises TransportError."""

    def since(self, at: float) -> Mapping[TopicPartition, int]:
        """Give each log's first offset that was taken at *at* (seconds since the epoch) or later. Raises TransportError."""

    def read(self, partition: TopicPartition, begin: int, end: int) -> Iterator[Record]:
        """Give the records of one log from offset *begin* to before *end*, as far as it has them. Raises TransportError."""

    def close(self) -> None:
        """Let go. Never raises."""


class Bus(Protocol):
    """A way to the logs."""

    def ensure_topics(self, topics: Sequence[TopicSpec]) -> None:
        """Create what is missing; leave what is there. Raises TransportError."""

    def producer(self, *, max_in_flight: int = 1000, send_timeout_s: float = 10.0) -> Producer:
        """Open a producer that holds at most *max_in_flight* unacknowledged records."""

    def consumer(
        self, topic: str, *, group: str, member: str | None = None, start_at: StartAt | None = None
    ) -> Consumer:
        """Join *group* on *topic*, from the earliest record where nothing was committed.

        *member* makes membership static: a restart within the session time-out gets the same partitions back; so its
        partitions wait that long when it does not come back. Raises TransportError, also for a topic that is missing.
        """

    def reader(self, topic: str) -> Reader:
        """Look into *topic*. Raises TransportError, also for a topic that is missing."""

    def close(self) -> None:
        """Let go of everything. Never raises."""
