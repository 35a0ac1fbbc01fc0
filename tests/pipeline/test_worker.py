"""The worker loop: commits after effects, repeats what failed, dead-letters what never decodes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from pipeline.bus import DEAD_LETTERS, Record, TopicPartition, TopicSpec
from pipeline.errors import InvalidMessage, TransportError
from pipeline.memory_bus import MemoryBus
from pipeline.messages import DeadLetter, decode, headers
from pipeline.telemetry import DEAD_LETTERS_TOTAL, LAG, Telemetry
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

    def handle(self, records: Sequence[Record]) -> tuple[TopicPartition, ...]:
        """Take the records, or say that the network said no."""
        self.calls += 1
        if self.calls <= self.failures:
            raise TransportError("the sink is away")
        self.batches.append(len(records))
        self.done += [record.value for record in records]
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
