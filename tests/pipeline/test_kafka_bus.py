"""What is Kafka's alone: brokers that are away, crash or freeze, and settings that reach them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from math import inf

import pytest
import structlog

from pipeline import kafka_bus
from pipeline.bus import Consumer, Producer, Record, TopicPartition, TopicSpec
from pipeline.errors import ConfigError, TransportError
from pipeline.kafka_bus import KafkaBus
from tests.servers import KafkaServer, free_port, wait_until

PATIENCE_S = 30.0

BusFactory = Callable[..., KafkaBus]


@pytest.fixture
def kafka_bus_of(kafka_server: KafkaServer) -> Iterator[BusFactory]:
    """Open buses with quick sessions and any other setting; they are closed in the end."""
    opened: list[KafkaBus] = []

    def open_bus(**settings: object) -> KafkaBus:
        quick = {"session_timeout_s": 2.0, "heartbeat_interval_s": 0.2, "max_poll_interval_s": 20.0, "timeout_s": 5.0}
        opened.append(KafkaBus(kafka_server.bootstrap_servers, **{**quick, **settings}))  # type: ignore[arg-type]
        return opened[-1]

    yield open_bus
    for bus in opened:
        bus.close()


@pytest.fixture
def topic(kafka_bus_of: BusFactory, topic_prefix: str) -> str:
    """Make a topic with one partition."""
    kafka_bus_of().ensure_topics([TopicSpec(f"{topic_prefix}one", 1, retention_s=600)])
    return f"{topic_prefix}one"


def send(producer: Producer, topic: str, values: range) -> None:
    """Send numbers as records of one key."""
    for n in values:
        producer.send(topic, key=b"k", value=b"%d" % n, headers=())


def read_until(consumer: Consumer, enough: Callable[[list[Record]], bool]) -> list[Record]:
    """Poll, whatever the broker does, until there is enough."""
    got: list[Record] = []

    def polled() -> bool:
        try:
            got.extend(consumer.poll(0.2, 500))
        except TransportError as error:
            assert "127.0.0.1" in str(error)  # noqa: PT017  it may fail or be empty, but says who
        return enough(got)

    wait_until(polled, timeout_s=PATIENCE_S, what="the records")
    return got


def numbers(records: list[Record]) -> list[int]:
    """Give what `send` has sent."""
    return [int(record.value) for record in records]


@pytest.mark.kafka
def test_the_broker_says_how_long_a_topic_keeps_its_records(kafka_bus_of: BusFactory, topic: str) -> None:
    """Ten minutes, and the quarter of them for which a segment may be written to; what is not there is left out."""
    assert kafka_bus_of().retentions([topic, "no-such-topic"]) == {topic: 750}


@pytest.mark.parametrize(
    ("changed", "seconds"),
    [
        ({}, 750),
        ({"retention.ms": "-1"}, inf),
        ({"cleanup.policy": "compact"}, inf),
        ({"segment.ms": "604800000"}, 1200),
    ],
)
def test_a_topic_that_keeps_its_records_for_ever_says_so(changed: dict[str, str], seconds: float) -> None:
    """Whatever setting makes it so; a segment is closed after its retention at the latest, at the next record."""
    settings = {"retention.ms": "600000", "segment.ms": "150000", "cleanup.policy": "delete"}
    assert kafka_bus._retention_s({**settings, **changed}) == seconds


@pytest.mark.parametrize(
    "ask",
    [
        lambda bus: bus.ensure_topics([TopicSpec("t", 1, 60)]),
        lambda bus: bus.producer(),
        lambda bus: bus.consumer("t", group="g"),
    ],
    ids=["ensure_topics", "producer", "consumer"],
)
def test_a_broker_that_is_down_at_the_start_is_named_soon_and_leaves_no_thread(
    ask: Callable[[KafkaBus], object],
) -> None:
    """The service says what is missing and tries again, for hours if it must."""
    threads = set(threading.enumerate())
    bus = KafkaBus(f"127.0.0.1:{free_port()}", timeout_s=0.6)
    started = time.monotonic()
    with pytest.raises(TransportError, match=r"Kafka at 127\.0\.0\.1:\d+ failed while .*check that it runs"):
        ask(bus)
    assert time.monotonic() - started < 3
    bus.close()
    assert set(threading.enumerate()) <= threads


def test_an_unknown_security_setting_is_a_configuration_error() -> None:
    """A typing error must not mean an open connection."""
    with pytest.raises(ConfigError, match="sasl_plain_pasword") as raised:
        KafkaBus("127.0.0.1:1", security={"sasl_plain_pasword": "hunter2", "bootstrap_servers": "x"})
    assert len(raised.value.problems) == 2
    assert "hunter2" not in str(raised.value)


@pytest.mark.kafka
def test_no_password_is_said_when_a_broker_refuses(kafka_server: KafkaServer, caplog: pytest.LogCaptureFixture) -> None:
    """Errors and logs go to places that passwords must not reach."""
    security = {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-256",
        "sasl_plain_username": "someone",
        "sasl_plain_password": "hunter2",
    }
    caplog.set_level(logging.DEBUG)
    bus = KafkaBus(kafka_server.bootstrap_servers, security=security, timeout_s=1)
    with structlog.testing.capture_logs() as logs, pytest.raises(TransportError) as raised:
        bus.ensure_topics([TopicSpec("t", 1, 60)])
    assert "hunter2" not in f"{raised.value!r} {raised.value.__cause__!r} {logs} {caplog.text}"


@pytest.mark.kafka
@pytest.mark.parametrize("how", ["restart", "power cut"])
def test_nothing_is_lost_over_a_broker_that_goes_and_comes(
    kafka_server: KafkaServer, kafka_bus_of: BusFactory, topic: str, how: str
) -> None:
    """Producers hold their records, consumers wait, and both go on by themselves."""
    bus = kafka_bus_of()
    producer, consumer = bus.producer(), bus.consumer(topic, group="g")
    send(producer, topic, range(100))
    producer.flush(PATIENCE_S)
    before = read_until(consumer, lambda got: len(got) >= 100)
    consumer.commit({TopicPartition(topic, 0): 100})
    try:
        if how == "restart":
            kafka_server.stop()
        else:
            kafka_server.kill()
        send(producer, topic, range(100, 200))
        read_until(consumer, lambda _: True)
    finally:
        kafka_server.start()
    send(producer, topic, range(200, 300))
    producer.flush(PATIENCE_S)
    after = read_until(consumer, lambda got: bool(got) and numbers(got)[-1] == 299)
    assert numbers(before) == list(range(100))
    assert [n for n in numbers(after) if n >= 100] == list(range(100, 300))
    consumer.commit({TopicPartition(topic, 0): after[-1].offset + 1})


@pytest.mark.kafka
def test_flush_tells_of_records_that_were_given_up_once(
    kafka_server: KafkaServer, kafka_bus_of: BusFactory, topic: str
) -> None:
    """Offsets must not be committed for predictions that never reached the log."""
    producer = kafka_bus_of(timeout_s=0.6, delivery_timeout_s=0.7).producer(send_timeout_s=3)
    send(producer, topic, range(1))
    producer.flush(PATIENCE_S)
    kafka_server.pause()
    try:
        send(producer, topic, range(5))
        with pytest.raises(TransportError, match="not acknowledged 5 records"):
            producer.flush(0.1)
        with pytest.raises(TransportError, match="did not take 5 records"):
            producer.flush(5)
    finally:
        kafka_server.resume()
    producer.flush(0)
    wait_until(lambda: _sent(producer, topic), timeout_s=PATIENCE_S, what="a record after the freeze")


def _sent(producer: Producer, topic: str) -> bool:
    producer.send(topic, key=b"k", value=b"again", headers=())
    try:
        producer.flush(PATIENCE_S)
    except TransportError:
        return False
    return True


@pytest.mark.kafka
def test_closing_a_producer_while_no_broker_answers_is_bounded_and_quiet(
    kafka_server: KafkaServer, kafka_bus_of: BusFactory, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shutting down does not wait for a network that is away."""
    monkeypatch.setattr(kafka_bus, "CLOSE_S", 0.3)
    bus = kafka_bus_of()
    before = set(threading.enumerate())
    producer = bus.producer()
    send(producer, topic, range(1))
    producer.flush(PATIENCE_S)
    kafka_server.pause()
    try:
        send(producer, topic, range(5))
        started = time.monotonic()
        producer.close()
        assert time.monotonic() - started < 3
    finally:
        kafka_server.resume()
    wait_until(lambda: set(threading.enumerate()) <= before, timeout_s=5, what="end of the producer's thread")


@pytest.mark.kafka
def test_a_crashed_members_records_go_to_another_after_the_session(kafka_bus_of: BusFactory, topic: str) -> None:
    """No goodbye, only silence."""
    bus = kafka_bus_of()
    producer = bus.producer()
    send(producer, topic, range(10))
    producer.flush(PATIENCE_S)
    crashed = bus.consumer(topic, group="g")
    read_until(crashed, lambda got: len(got) == 10)
    crashed.commit({TopicPartition(topic, 0): 4})
    crashed._consumer._client.close()  # what a killed process leaves: closed connections
    other = bus.consumer(topic, group="g")
    assert numbers(read_until(other, lambda got: len(got) == 6)) == [4, 5, 6, 7, 8, 9]


@pytest.mark.kafka
def test_a_member_that_was_put_out_without_noticing_starts_anew(kafka_bus_of: BusFactory, topic: str) -> None:
    """Another may have counted meanwhile: what is in the store decides where to go on, not what this member remembers."""
    producer = kafka_bus_of().producer()
    send(producer, topic, range(3))
    producer.flush(PATIENCE_S)
    asked: list[TopicPartition] = []

    def applied(partition: TopicPartition) -> int:
        asked.append(partition)
        return 0 if len(asked) == 1 else 1

    deaf = kafka_bus_of().consumer(topic, group="g", start_at=applied)
    read_until(deaf, lambda got: len(got) == 3)
    deaf._consumer._coordinator._disable_heartbeat()  # the broker puts it out, and it does not hear of it
    other = kafka_bus_of().consumer(topic, group="g")
    read_until(other, lambda got: len(got) == 3)
    other.close()
    deaf._consumer._coordinator.request_rejoin()  # as the change of its topic's partitions would
    assert numbers(read_until(deaf, lambda got: len(got) == 2)) == [1, 2]
    assert len(asked) == 2


@pytest.mark.kafka
def test_a_second_member_of_one_name_puts_the_first_out(kafka_bus_of: BusFactory, topic: str) -> None:
    """Two workers that were given one name say so, instead of counting twice."""
    bus = kafka_bus_of()
    first = bus.consumer(topic, group="g", member="worker-0")
    read_until(first, lambda _: bool(first.assignment()))
    second = bus.consumer(topic, group="g", member="worker-0")
    read_until(second, lambda _: bool(second.assignment()))
    with pytest.raises(TransportError, match="another consumer with this member's name"):
        first.commit({TopicPartition(topic, 0): 0})


@pytest.mark.kafka
def test_crops_are_gone_soon_after_their_retention(kafka_bus_of: BusFactory, topic_prefix: str) -> None:
    """No picture outlives its use, also while new ones keep coming."""
    bus = kafka_bus_of()
    name = f"{topic_prefix}short"
    bus.ensure_topics([TopicSpec(name, 1, retention_s=1)])
    producer = bus.producer()
    started = time.monotonic()

    def oldest_is_gone() -> bool:
        send(producer, name, range(1))
        producer.flush(PATIENCE_S)
        fresh = bus.consumer(name, group=f"g{time.monotonic_ns()}")
        (first, *_) = read_until(fresh, bool)
        fresh.close()
        return first.offset > 0

    wait_until(oldest_is_gone, timeout_s=PATIENCE_S, what="deletion")
    assert time.monotonic() - started < 10


@pytest.mark.kafka
def test_a_partition_that_stands_still_before_the_end_is_fetched_anew(
    kafka_bus_of: BusFactory, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One deaf partition is one camera that nobody counts any more."""
    monkeypatch.setattr(kafka_bus, "STALL_CHECK_S", 0.3)
    stalled: list[TopicPartition] = []
    bus = kafka_bus_of(on_stall=stalled.append)
    producer, consumer = bus.producer(), bus.consumer(topic, group="g")
    send(producer, topic, range(3))
    producer.flush(PATIENCE_S)
    read_until(consumer, lambda got: len(got) == 3)
    (partition,) = consumer._consumer.assignment()
    consumer._consumer.pause(partition)  # as if the client had forgotten it
    send(producer, topic, range(3, 6))
    producer.flush(PATIENCE_S)
    read_until(consumer, lambda _: bool(stalled))
    assert set(stalled) == {TopicPartition(topic, 0)}
    consumer._consumer.resume(partition)
    assert numbers(read_until(consumer, lambda got: len(got) == 3)) == [3, 4, 5]


@pytest.mark.kafka
def test_who_joins_takes_only_its_share_and_the_rest_is_read_on(kafka_bus_of: BusFactory, topic_prefix: str) -> None:
    """Cooperative-sticky: what stays is neither taken away nor asked for its start again, and its records come meanwhile."""
    name = f"{topic_prefix}four"
    partitions = [TopicPartition(name, n) for n in range(4)]
    bus = kafka_bus_of()
    bus.ensure_topics([TopicSpec(name, 4, retention_s=600)])
    asked: list[TopicPartition] = []

    def start(partition: TopicPartition) -> None:
        asked.append(partition)

    first = bus.consumer(name, group=f"{topic_prefix}g", start_at=start)
    wait_until(
        lambda: first.poll(0.1, 10) == () and len(first.assignment()) == 4, timeout_s=PATIENCE_S, what="all four"
    )
    assert sorted(asked) == partitions

    producer = bus.producer()
    stop = threading.Event()

    def feed() -> None:
        while not stop.wait(0.02):
            for n in range(16):  # keys in every partition
                producer.send(name, key=b"k%d" % n, value=b"0", headers=())

    feeding, others = (
        threading.Thread(target=feed),
        threading.Thread(target=lambda: _poll_until(second, joined, got_by_second)),
    )
    second, joined, got_by_second = bus.consumer(name, group=f"{topic_prefix}g"), threading.Event(), list[Record]()
    feeding.start()
    others.start()
    owned: list[frozenset[TopicPartition]] = []
    rounds: list[set[TopicPartition]] = []
    try:

        def shared() -> bool:
            got = first.poll(0.05, 500)
            owned.append(first.assignment())
            rounds.append({record.topic_partition for record in got})
            return len(first.assignment()) == 2 and bool(got_by_second)

        wait_until(shared, timeout_s=PATIENCE_S, what="two for each")
    finally:
        joined.set()
        stop.set()
        others.join(PATIENCE_S)
        feeding.join(PATIENCE_S)
    kept = first.assignment()
    assert all(kept <= had for had in owned)  # at no time taken away
    assert len(asked) == 4  # nor begun anew
    #  before │ the second joins: all four ─▶ two │ two
    moved = next(n for n, had in enumerate(owned) if len(had) < 4)
    assert any(kept & got for got in rounds[moved:])
    assert {record.topic_partition for record in got_by_second} <= set(partitions) - kept


def _poll_until(consumer: Consumer, over: threading.Event, got: list[Record]) -> None:
    while not over.is_set():
        got.extend(consumer.poll(0.05, 500))
