"""The bus inside one process, for the all-in-one run and for tests: every promise of `bus.py`, no network.

Memory is bounded. What every group has committed is forgotten, and so is what is older than the topic's retention. When
a log is full all the same, `send` waits for its readers; a topic that nobody has ever read drops its oldest instead.

Appended is acknowledged here, so `max_in_flight` has nothing to hold back: the full log does. A member that stops
polling for the session time-out loses its partitions to the others, as it would with Kafka.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from threading import Condition, Lock
from typing import Final
from zlib import crc32

from pipeline.bus import Headers, Record, Span, StartAt, TopicPartition, TopicSpec
from pipeline.errors import TransportError

RECORD_OVERHEAD_BYTES: Final = 256  # the tuple, its bytes objects and the list's slot, about


def _size(key: bytes, value: bytes, headers: Headers) -> int:
    return len(key) + len(value) + sum(len(name) + len(text) for name, text in headers)


class _Log:
    """One partition: the records from `start` on."""

    def __init__(self) -> None:
        self.start = 0
        self.records: list[Record] = []
        self.bytes = 0

    @property
    def end(self) -> int:
        return self.start + len(self.records)

    def append(self, record: Record) -> None:
        self.records.append(record)
        self.bytes += RECORD_OVERHEAD_BYTES + _size(record.key, record.value, record.headers)

    def drop(self, count: int) -> None:
        """Forget the oldest *count* records."""
        gone = self.records[:count]
        del self.records[:count]
        self.start += len(gone)
        self.bytes -= sum(RECORD_OVERHEAD_BYTES + _size(r.key, r.value, r.headers) for r in gone)


class _Member:
    """A consumer as its group sees it."""

    def __init__(self, name: str, *, static: bool) -> None:
        self.name = name
        self.static = static
        self.positions: dict[int, int | None] = {}  # of its partitions; None until it is known where to start
        self.polling = False
        self.polled_at = time.monotonic()
        self.gone = ""  # why it will never read again


class _Group:
    """Who reads which partition of one topic, and how far they are done."""

    def __init__(self, partitions: int) -> None:
        self.members: dict[str, _Member] = {}
        self.wanted: list[str | None] = [None] * partitions  # whose a partition shall be
        self.owners: list[_Member | None] = [None] * partitions  # whose it is until that one polls again or goes
        self.committed: list[int | None] = [None] * partitions

    def join(self, member: _Member) -> None:
        """Let *member* in, in the place of one of the same name."""
        if before := self.members.get(member.name):
            self.release(before)
            before.gone = before.gone or "another consumer has joined as this member"
        member.polled_at = time.monotonic()
        self.members[member.name] = member
        self.share()

    def leave(self, member: _Member) -> None:
        """Give what *member* had to the others; the place of a static one is kept for the session time-out."""
        self.release(member)
        if not member.static and self.members.get(member.name) is member:
            del self.members[member.name]
            self.share()

    def evict(self, session_timeout_s: float) -> None:
        """Put out who stopped polling."""
        now = time.monotonic()
        for member in list(self.members.values()):
            if not member.polling and now - member.polled_at > session_timeout_s:
                self.release(member)
                del self.members[member.name]
                self.share()

    def next_eviction_s(self, session_timeout_s: float) -> float:
        """Seconds until somebody may have to be put out."""
        now = time.monotonic()
        idle_since = min((m.polled_at for m in self.members.values() if not m.polling), default=now)
        return max(idle_since + session_timeout_s - now, 0.0) + 0.001

    def share(self) -> None:
        """Spread the partitions evenly, moving as few as possible."""
        shares: dict[str, list[int]] = {name: [] for name in self.members}
        if not shares:
            self.wanted = [None] * len(self.wanted)
            return
        for partition, name in enumerate(self.wanted):
            (shares[name] if name in shares else min(shares.values(), key=len)).append(partition)
        while len(most := max(shares.values(), key=len)) > len(least := min(shares.values(), key=len)) + 1:
            least.append(most.pop())
        for name, partitions in shares.items():
            for partition in partitions:
                self.wanted[partition] = name

    def release(self, member: _Member) -> None:
        """Take everything from *member*."""
        self.owners = [None if owner is member else owner for owner in self.owners]
        member.positions.clear()

    def hand_over(self, member: _Member) -> None:
        """Take from *member* what shall be another's, give it what shall be its own and is free."""
        for partition, (wanted, owner) in enumerate(zip(self.wanted, self.owners, strict=True)):
            if owner is member and wanted != member.name:
                self.owners[partition] = None
                del member.positions[partition]
            elif owner is None and wanted == member.name:
                self.owners[partition] = member
                member.positions[partition] = None


class _Topic:
    """Logs, groups and the condition that guards them."""

    def __init__(self, spec: TopicSpec, *, max_bytes: int, clock: Callable[[], float]) -> None:
        self.spec = spec
        self.changed = Condition()
        self.logs = [_Log() for _ in range(spec.partitions)]
        self.groups: dict[str, _Group] = {}
        self.closed = False
        self._max_bytes = max_bytes
        self._clock = clock

    def append(self, key: bytes, value: bytes, headers: Headers, timeout_s: float) -> None:
        size = _size(key, value, headers)
        if size > self.spec.max_message_bytes:
            raise ValueError(f"{size} bytes for {self.spec.name}, which takes at most {self.spec.max_message_bytes}")
        partition = crc32(key) % len(self.logs)
        deadline = time.monotonic() + timeout_s
        with self.changed:
            while not self._has_room_for(size + RECORD_OVERHEAD_BYTES):
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise TransportError(
                        f"{self.spec.name} is full and its readers did not catch up within {timeout_s:g} s; send later"
                    )
                self.changed.wait(min(left_s, 1.0))  # retention makes room without telling anybody
            log = self.logs[partition]
            log.append(Record(self.spec.name, partition, log.end, key, value, headers, self._clock()))
            self.changed.notify_all()

    def trim(self) -> None:
        """Forget what every group is done with and what is too old."""
        if self.spec.compact:  # whoever comes reads it from its beginning
            return
        oldest = self._clock() - self.spec.retention_s
        for partition, log in enumerate(self.logs):
            done = min((group.committed[partition] or 0 for group in self.groups.values()), default=0)
            count = min(max(done - log.start, 0), len(log.records))
            while count < len(log.records) and log.records[count].timestamp < oldest:
                count += 1
            if count:
                log.drop(count)

    def _has_room_for(self, size: int) -> bool:
        self.raise_if_closed()
        if sum(log.bytes for log in self.logs) + size <= self._max_bytes:
            return True
        self.trim()
        while (held := sum(log.bytes for log in self.logs)) + size > self._max_bytes and held:
            if self.groups:
                return False
            min((log for log in self.logs if log.records), key=lambda log: log.records[0].timestamp).drop(1)
        return True  # one record always fits, however small the bound

    def raise_if_closed(self) -> None:
        if self.closed:
            raise TransportError("the bus is closed")


class MemoryProducer:
    """Appends to the logs of one MemoryBus."""

    def __init__(self, topic: Callable[[str], _Topic], *, send_timeout_s: float) -> None:
        self._topic = topic
        self._send_timeout_s = send_timeout_s

    def send(self, topic: str, *, key: bytes, value: bytes, headers: Headers) -> None:
        """Append one record; waits while the log is full, then raises TransportError."""
        self._topic(topic).append(key, value, headers, self._send_timeout_s)

    def flush(self, timeout_s: float) -> None:
        """Return at once: appended is acknowledged."""

    def close(self) -> None:
        """Let go; nothing is held."""


class MemoryConsumer:
    """One member of a group."""

    def __init__(
        self, topic: _Topic, group: _Group, member: _Member, *, start_at: StartAt | None, session_timeout_s: float
    ) -> None:
        self._topic = topic
        self._group = group
        self._member = member
        self._start_at = start_at
        self._session_timeout_s = session_timeout_s
        self._turn = 0
        with topic.changed:
            group.join(member)
            topic.changed.notify_all()

    def poll(self, timeout_s: float, max_records: int) -> Sequence[Record]:
        """Give the next records; blocks until there are some or *timeout_s* is over."""
        deadline = time.monotonic() + timeout_s
        with self._topic.changed:
            self._raise_if_gone()
            self._member.polling = True
            if self._group.members.get(self._member.name) is not self._member:  # it was put out for not polling
                self._group.join(self._member)
                self._topic.changed.notify_all()
        try:
            while True:
                with self._topic.changed:
                    self._raise_if_gone()
                    self._rebalance()
                    if not (new := [p for p, position in self._member.positions.items() if position is None]):
                        self._topic.trim()
                        records = self._take(max_records)
                        left_s = deadline - time.monotonic()
                        if records or left_s <= 0:
                            return records
                        self._topic.changed.wait(min(left_s, self._group.next_eviction_s(self._session_timeout_s)))
                for partition in new:  # without the lock: the answer may take a round trip to the store
                    self._begin(partition)
        finally:
            with self._topic.changed:
                self._member.polling = False
                self._member.polled_at = time.monotonic()

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Move the group's offsets; those of partitions that are no longer ours are passed over."""
        with self._topic.changed:
            self._raise_if_gone()
            for (topic, partition), offset in offsets.items():
                if topic == self._topic.spec.name and partition in self._member.positions:
                    self._group.committed[partition] = offset
            self._topic.trim()
            self._topic.changed.notify_all()

    def begin_again(self, partitions: Collection[TopicPartition]) -> None:
        """Have the next poll ask where to read these partitions from."""
        with self._topic.changed:
            for topic, partition in partitions:
                if topic == self._topic.spec.name and partition in self._member.positions:
                    self._member.positions[partition] = None

    def span(self, partition: TopicPartition) -> Span:
        """Say what a log holds."""
        with self._topic.changed:
            self._topic.raise_if_closed()
            log = self._topic.logs[partition.partition]
            return Span(log.start, log.end)

    def assignment(self) -> frozenset[TopicPartition]:
        """Name the partitions that are ours now."""
        with self._topic.changed:
            return frozenset(TopicPartition(self._topic.spec.name, partition) for partition in self._member.positions)

    def lag(self) -> Mapping[TopicPartition, int]:
        """Count the records of each partition that were not given out yet."""
        with self._topic.changed:
            return {
                TopicPartition(self._topic.spec.name, partition): log.end - max(position, log.start)
                for partition, position in self._member.positions.items()
                if position is not None
                for log in (self._topic.logs[partition],)
            }

    def close(self) -> None:
        """Leave the group."""
        with self._topic.changed:
            if not self._member.gone:
                self._member.gone = "the consumer is closed"
                self._group.leave(self._member)
                self._topic.changed.notify_all()

    def _rebalance(self) -> None:
        before = list(self._group.owners)
        self._group.evict(self._session_timeout_s)
        self._group.hand_over(self._member)
        if before != self._group.owners:
            self._topic.changed.notify_all()

    def _begin(self, partition: int) -> None:
        asked = self._start_at(TopicPartition(self._topic.spec.name, partition)) if self._start_at else None
        with self._topic.changed:
            log = self._topic.logs[partition]
            start = self._group.committed[partition] if asked is None else asked
            if partition in self._member.positions:  # it may be another's by now
                outside = start is None or not log.start <= start <= log.end
                self._member.positions[partition] = log.start if outside else start

    def _take(self, max_records: int) -> list[Record]:
        """Read on from every partition, another one first each time, so that a busy camera starves nobody."""
        taken: list[Record] = []
        positions = self._member.positions
        mine = sorted(positions)
        self._turn += 1
        for n in range(len(mine)):
            partition = mine[(self._turn + n) % len(mine)]
            log = self._topic.logs[partition]
            begin = max((positions[partition] or 0) - log.start, 0)
            records = log.records[begin : begin + max_records - len(taken)]
            positions[partition] = log.start + begin + len(records)
            taken += records
        return taken

    def _raise_if_gone(self) -> None:
        self._topic.raise_if_closed()
        if self._member.gone:
            raise TransportError(self._member.gone)


class MemoryReader:
    """Looks into one topic."""

    def __init__(self, topic: _Topic) -> None:
        self._topic = topic

    def spans(self) -> Mapping[TopicPartition, Span]:
        """Say what each log holds."""
        with self._topic.changed:
            self._topic.raise_if_closed()
            return {
                TopicPartition(self._topic.spec.name, partition): Span(log.start, log.end)
                for partition, log in enumerate(self._topic.logs)
            }

    def since(self, at: float) -> Mapping[TopicPartition, int]:
        """Give each log's first offset that was taken at *at* or later."""
        with self._topic.changed:
            self._topic.raise_if_closed()
            return {
                TopicPartition(self._topic.spec.name, partition): next(
                    (record.offset for record in log.records if record.timestamp >= at), log.end
                )
                for partition, log in enumerate(self._topic.logs)
            }

    def read(self, partition: TopicPartition, begin: int, end: int) -> Iterator[Record]:
        """Give the records of one log from *begin* to before *end*, as it is when the first is asked for."""
        with self._topic.changed:
            self._topic.raise_if_closed()
            log = self._topic.logs[partition.partition]
            records = log.records[max(begin - log.start, 0) : max(end - log.start, 0)]
        yield from records

    def close(self) -> None:
        """Let go; nothing is held."""


class MemoryBus:
    """Topics in this process's memory, each holding at most *max_topic_bytes*."""

    def __init__(
        self,
        *,
        max_topic_bytes: int = 64 << 20,
        session_timeout_s: float = 60.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._max_topic_bytes = max_topic_bytes
        self._session_timeout_s = session_timeout_s
        self._clock = clock
        self._lock = Lock()
        self._topics: dict[str, _Topic] = {}
        self._consumers = 0
        self._closed = False

    def ensure_topics(self, topics: Sequence[TopicSpec]) -> None:
        """Create what is missing; an existing topic keeps its settings."""
        with self._lock:
            if self._closed:
                raise TransportError("the bus is closed")
            for spec in topics:
                if spec.name not in self._topics:
                    self._topics[spec.name] = _Topic(spec, max_bytes=self._max_topic_bytes, clock=self._clock)

    def producer(self, *, max_in_flight: int = 1000, send_timeout_s: float = 10.0) -> MemoryProducer:  # noqa: ARG002
        """Open a producer; `send` waits up to *send_timeout_s* for room in the log."""
        return MemoryProducer(self._topic, send_timeout_s=send_timeout_s)

    def consumer(
        self, topic: str, *, group: str, member: str | None = None, start_at: StartAt | None = None
    ) -> MemoryConsumer:
        """Join *group* on *topic*, which must exist."""
        found = self._topic(topic)
        with self._lock:
            self._consumers += 1
            name = member or f"#{self._consumers}"
        with found.changed:
            joined = found.groups.setdefault(group, _Group(len(found.logs)))
        who = _Member(name, static=member is not None)
        return MemoryConsumer(found, joined, who, start_at=start_at, session_timeout_s=self._session_timeout_s)

    def reader(self, topic: str) -> MemoryReader:
        """Look into *topic*, which must exist."""
        return MemoryReader(self._topic(topic))

    def drained(self, topic: str, group: str) -> bool:
        """Whether *group* has committed everything that was sent to *topic*."""
        return self.unread(topic, group) == 0

    def unread(self, topic: str, group: str) -> int:
        """Count what was sent to *topic* and *group* has not committed."""
        found = self._topic(topic)
        with found.changed:
            if (joined := found.groups.get(group)) is None:
                return sum(log.end for log in found.logs)
            return sum(
                max(0, log.end - max(log.start, done or 0))
                for log, done in zip(found.logs, joined.committed, strict=True)
            )

    def close(self) -> None:
        """Forget everything; whoever still polls or sends gets TransportError."""
        with self._lock:
            self._closed = True
            topics = list(self._topics.values())
        for topic in topics:
            with topic.changed:
                topic.closed = True
                topic.logs = [_Log() for _ in topic.logs]
                topic.changed.notify_all()

    def _topic(self, name: str) -> _Topic:
        with self._lock:
            if self._closed:
                raise TransportError("the bus is closed")
            if name not in self._topics:
                raise TransportError(f"there is no topic {name}; ensure_topics creates it")
            return self._topics[name]
