"""The worker loop: commits after effects, repeats what failed, dead-letters what never decodes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import pytest

from pipeline.bus import DEAD_LETTERS, Record, Span, TopicPartition, TopicSpec
from pipeline.errors import InvalidMessage, TransportError
from pipeline.memory_bus import MemoryBus
from pipeline.messages import DeadLetter, decode, headers
from pipeline.telemetry import BATCH_WAIT, DEAD_LETTERS_TOTAL, LAG, Telemetry
from pipeline.worker import DeadLetters, Worker

TOPIC = "work"


def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until *true*, or fail."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


@pytest.fixture
def bus() -> Iterator[MemoryBus]:
    """One partition, so that order is plain."""
    bus = MemoryBus()
    bus.ensure_topics([TopicSpec(TOPIC, 1, 3600), TopicSpec(DEAD_LETTERS, 1, 3600)])
    yield bus
    bus.close()


class Handler:
    """Does what a script says: fails the first *failures* times."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.done: list[bytes] = []
        self.batches: list[int] = []
        self.calls = 0
        self.after: Callable[[], object] = lambda: None

    def handle(self, records: Sequence[Record]) -> tuple[TopicPartition, ...]:
        """Take the records, or say that the network said no."""
        self.calls += 1
        if self.calls <= self.failures:
            raise TransportError("the sink is away")
        self.batches.append(len(records))
        self.done += [record.value for record in records]
        self.after()
        return ()

    def idle(self) -> tuple[TopicPartition, ...]:
        """Do nothing."""
        return ()


class Running:
    """A worker on a thread, stopped at the end."""

    def __init__(self, bus: MemoryBus, handler: Handler, **options: float) -> None:
        self.telemetry = Telemetry(())
        self.consumer = bus.consumer(TOPIC, group="g")
        self.worker = Worker(
            self.consumer,
            handler,
            self.telemetry,
            max_records=int(options.get("max_records", 10)),
            max_wait_s=options.get("max_wait_s", 0),
            enough=int(options["enough"]) if "enough" in options else None,
        )
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.worker.run, args=(self.stop,))
        self.thread.start()

    def __enter__(self) -> Running:
        """Run."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop.set()
        self.thread.join(10)
        self.consumer.close()
        assert not self.thread.is_alive()


def send(bus: MemoryBus, *values: bytes) -> None:
    """Put values into the topic."""
    producer = bus.producer()
    for value in values:
        producer.send(TOPIC, key=b"k", value=value, headers=headers())
    producer.flush(1)
    producer.close()


def test_records_are_handled_in_order_and_committed(bus: MemoryBus) -> None:
    """The next owner begins after them."""
    send(bus, b"1", b"2", b"3")
    with Running(bus, handler := Handler()):
        until(lambda: len(handler.done) == 3)
    assert handler.done == [b"1", b"2", b"3"]
    assert bus.drained(TOPIC, "g")


def test_a_batch_that_failed_is_repeated_until_it_is_durable(bus: MemoryBus) -> None:
    """The sink was away for two calls; nothing is lost, nothing is committed before."""
    send(bus, b"1", b"2")
    with Running(bus, handler := Handler(failures=2)) as running:
        until(lambda: handler.calls >= 1)
        until(lambda: handler.done == [b"1", b"2"])
        assert running.telemetry.registry.get_sample_value("demographics_bus_failures_total") == 2
    assert bus.drained(TOPIC, "g")


def test_nothing_is_committed_when_it_is_stopped_before_the_batch_is_durable(bus: MemoryBus) -> None:
    """A successor gets the batch again: law 1."""
    send(bus, b"1")
    with Running(bus, failing := Handler(failures=10**6)):
        until(lambda: failing.calls >= 1)
    assert not bus.drained(TOPIC, "g")
    with Running(bus, handler := Handler()):
        until(lambda: handler.done == [b"1"])


def test_a_batch_is_never_larger_than_allowed(bus: MemoryBus) -> None:
    """However much waits."""
    send(bus, *(bytes([n]) for n in range(25)))
    with Running(bus, handler := Handler(), max_records=10, max_wait_s=1):
        until(lambda: len(handler.done) == 25 or sum(handler.batches) >= 20)
        assert max(handler.batches) == 10


def test_records_that_trickle_in_share_a_batch(bus: MemoryBus) -> None:
    """A batch waits a little for others; three senders, one pass."""
    with Running(bus, handler := Handler(), max_records=3, max_wait_s=30):
        for value in (b"1", b"2", b"3"):
            send(bus, value)
        until(lambda: len(handler.done) == 3)
    assert handler.batches == [3]


def test_a_batch_goes_with_what_is_enough_and_takes_what_is_there(bus: MemoryBus) -> None:
    """It does not wait to be full once it has enough; where more is waiting, it takes that too. How long it waited is said."""
    producer = bus.producer()
    for number in range(8):
        producer.send(TOPIC, key=b"k", value=b"%d" % number, headers=headers())
    handler = Handler()
    with Running(bus, handler, max_records=8, enough=2, max_wait_s=60) as running:
        until(lambda: len(handler.done) == 8)
        for number in range(2):
            producer.send(TOPIC, key=b"k", value=b"%d" % number, headers=headers())
        until(lambda: len(handler.done) == 10)
        waited = running.telemetry.registry.get_sample_value(f"{BATCH_WAIT.name}_count")
        assert waited == len(handler.batches)
    assert handler.batches[0] == 8


def test_lag_is_said_for_each_partition(bus: MemoryBus) -> None:
    """A worker that cannot keep up shows it."""
    send(bus, b"1")
    with Running(bus, Handler()) as running:
        labels = {"topic": TOPIC, "partition": "0"}
        until(lambda: running.telemetry.registry.get_sample_value(LAG.name, labels) == 0)


def test_a_dead_letter_says_where_and_why_but_not_what(bus: MemoryBus) -> None:
    """Coordinates, reason, size; never the record's own bytes."""
    telemetry, producer = Telemetry(()), bus.producer()
    record = Record("face-crops", 3, 99, b"entrance", b"a face, as it were", headers(), 0.0)
    DeadLetters(producer, "inference", telemetry)(record, InvalidMessage("image", "truncated JPEG"))
    producer.flush(1)
    (written,) = bus.consumer(DEAD_LETTERS, group="look").poll(1, 10)
    letter = decode(written.value, written.headers)
    assert isinstance(letter, DeadLetter)
    assert (letter.topic, letter.partition, letter.offset, letter.reason) == ("face-crops", 3, 99, "image")
    assert (letter.size_bytes, letter.service, letter.schema) == (18, "inference", "1")
    assert b"as it were" not in written.value
    assert telemetry.registry.get_sample_value(DEAD_LETTERS_TOTAL.name, {"reason": "image"}) == 1


class Rebalancing:
    """A consumer whose second partition goes to somebody else in the middle of a batch."""

    def __init__(self) -> None:
        self.polls = 0
        self.committed: dict[TopicPartition, int] = {}

    def poll(self, timeout_s: float, max_records: int) -> Sequence[Record]:
        """Give two partitions' records, then only the first one's, then nothing."""
        self.polls += 1
        partitions = {1: (0, 1), 2: (0,), 3: (0,)}.get(self.polls, ())
        return [Record(TOPIC, partition, self.polls, b"k", b"%d" % partition, (), 0.0) for partition in partitions]

    def assignment(self) -> frozenset[TopicPartition]:
        """Name the first, and at first the second."""
        return frozenset(TopicPartition(TOPIC, partition) for partition in ((0, 1) if self.polls == 1 else (0,)))

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Remember it."""
        self.committed |= offsets

    def lag(self) -> Mapping[TopicPartition, int]:
        """Know nothing."""
        return {}

    def begin_again(self, partitions: Collection[TopicPartition]) -> None:
        """Do nothing."""

    def span(self, partition: TopicPartition) -> Span:
        """Hold nothing."""
        return Span(0, 0)

    def close(self) -> None:
        """Let go."""


def test_a_batch_does_not_outlive_the_partitions_that_it_came_from() -> None:
    """A rebalance while it was gathered: what has gone to another is the other's to handle, and to commit."""
    consumer, handler = Rebalancing(), Handler()
    worker = Worker(consumer, handler, Telemetry(()), max_records=3, max_wait_s=30)
    assert [record.partition for record in worker.collect()] == [0, 0, 0]
    stop = threading.Event()
    consumer.polls = 0
    handler.after = stop.set
    worker.run(stop)
    assert handler.done == [b"0", b"0", b"0"]
    assert consumer.committed == {TopicPartition(TOPIC, 0): 4}


def test_a_partition_that_the_handler_names_is_read_again_and_not_committed(bus: MemoryBus) -> None:
    """The store is not where the handler left it: reading begins again where the store says."""
    send(bus, b"1", b"2", b"3")
    asked: list[TopicPartition] = []

    class Elsewhere(Handler):
        def handle(self, records: Sequence[Record]) -> tuple[TopicPartition, ...]:
            super().handle(records)
            return () if len(asked) > 1 else (records[0].topic_partition,)

    def start_at(partition: TopicPartition) -> int:
        asked.append(partition)
        return 0 if len(asked) == 1 else 1

    handler, stop = Elsewhere(), threading.Event()
    consumer = bus.consumer(TOPIC, group="g", start_at=start_at)
    worker = Worker(consumer, handler, Telemetry(()), max_records=10, max_wait_s=0)
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    until(lambda: len(handler.done) == 5)
    stop.set()
    thread.join(10)
    consumer.close()
    assert handler.done == [b"1", b"2", b"3", b"2", b"3"]
    assert bus.drained(TOPIC, "g")
