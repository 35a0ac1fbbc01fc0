"""What is the in-process bus's alone: how it bounds memory, and when a run that ends has ended."""

from __future__ import annotations

import threading
import time

import pytest

from pipeline.bus import TopicPartition, TopicSpec
from pipeline.errors import TransportError
from pipeline.memory_bus import RECORD_OVERHEAD_BYTES, MemoryBus

ONLY = TopicPartition("t", 0)


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        """Say what time it is."""
        return self.now


def bus_of(*, records: int, clock: Clock | None = None) -> MemoryBus:
    """Make a bus whose one topic `t` has room for that many records of one byte."""
    bus = MemoryBus(max_topic_bytes=records * (RECORD_OVERHEAD_BYTES + 2), clock=clock or time.time)
    bus.ensure_topics([TopicSpec("t", 1, retention_s=60)])
    return bus


def send(bus: MemoryBus, values: str, *, timeout_s: float = 0.0) -> None:
    """Send each letter as one record."""
    producer = bus.producer(send_timeout_s=timeout_s)
    for value in values:
        producer.send("t", key=b"k", value=value.encode(), headers=())


def read(bus: MemoryBus, group: str) -> str:
    """Read what is there."""
    consumer = bus.consumer("t", group=group)
    letters = "".join(record.value.decode() for record in consumer.poll(0, 100))
    consumer.close()
    return letters


def test_a_topic_that_nobody_reads_drops_its_oldest() -> None:
    """Dead letters without a reader fill no memory and stop no service."""
    bus = bus_of(records=3)
    send(bus, "abcde")
    assert read(bus, "g") == "cde"


def test_a_full_log_waits_for_its_slowest_group() -> None:
    """Nothing is dropped that somebody has joined to read."""
    bus = bus_of(records=3)
    fast, slow = bus.consumer("t", group="fast"), bus.consumer("t", group="slow")
    send(bus, "abc")
    fast.poll(0, 10)
    fast.commit({ONLY: 3})
    with pytest.raises(TransportError, match="t is full"):
        send(bus, "d")
    slow.poll(0, 10)
    slow.commit({ONLY: 2})
    send(bus, "de")
    assert "".join(record.value.decode() for record in slow.poll(0, 10)) == "de"


def test_a_waiting_sender_goes_on_as_soon_as_there_is_room() -> None:
    """Back-pressure holds a sender back no longer than need be."""
    bus = bus_of(records=2)
    consumer = bus.consumer("t", group="g")
    send(bus, "ab")
    sender = threading.Thread(target=send, args=(bus, "cd"), kwargs={"timeout_s": 20})
    sender.start()
    consumer.poll(0, 10)
    consumer.commit({ONLY: 2})
    got = ""
    while got != "cd":
        got += "".join(record.value.decode() for record in consumer.poll(5, 10))
    sender.join(5)
    assert not sender.is_alive()


def test_nothing_outlives_its_retention_whoever_has_not_read_it() -> None:
    """No picture outlives its use, also where a group hangs."""
    clock = Clock()
    bus = bus_of(records=10, clock=clock)
    hung = bus.consumer("t", group="hung")
    send(bus, "ab")
    clock.now += 40
    send(bus, "c")
    clock.now += 30
    # a, b: 70 s old   c: 30 s old   retention 60 s
    assert read(bus, "other") == "c"
    assert [record.value for record in hung.poll(0, 10)] == [b"c"]


def test_one_record_fits_however_small_the_bound() -> None:
    """A bound that is set too low slows down; it does not stop."""
    bus = bus_of(records=1)
    consumer = bus.consumer("t", group="g")
    bus.producer().send("t", key=b"k", value=b"x" * 10_000, headers=())
    assert len(consumer.poll(0, 10)) == 1


def test_drained_once_everything_sent_is_committed() -> None:
    """A run over files ends then, and not before."""
    bus = bus_of(records=10)
    assert bus.drained("t", "g")
    send(bus, "ab")
    assert not bus.drained("t", "g")
    consumer = bus.consumer("t", group="g")
    consumer.poll(0, 10)
    assert not bus.drained("t", "g")
    consumer.commit({ONLY: 2})
    assert bus.drained("t", "g")
    assert not bus.drained("t", "another")


def test_drained_does_not_wait_for_what_is_too_old_to_be_read() -> None:
    """Otherwise a run would wait for records that are gone."""
    clock = Clock()
    bus = bus_of(records=10, clock=clock)
    send(bus, "ab")
    clock.now += 100
    assert bus.consumer("t", group="g").poll(0, 10) == []
    assert bus.drained("t", "g")


def test_closing_the_bus_wakes_whoever_waits() -> None:
    """Shutting down does not wait for a poll to end."""
    bus = bus_of(records=1)
    consumer = bus.consumer("t", group="g")
    raised: list[TransportError] = []

    def wait() -> None:
        try:
            consumer.poll(60, 1)
        except TransportError as error:
            raised.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    bus.close()
    waiting.join(5)
    assert not waiting.is_alive()
    assert [str(error) for error in raised] == ["the bus is closed"]
