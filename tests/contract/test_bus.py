"""What pipeline/bus.py promises, held against every implementation."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bus import Bus, Consumer, Headers, Record, TopicPartition, TopicSpec
from pipeline.errors import TransportError
from pipeline.memory_bus import MemoryBus
from tests.contract.conftest import SESSION_S, BusMaker
from tests.servers import wait_until

PATIENCE_S = 20.0


@pytest.fixture
def topic(bus: Bus, topic_prefix: str) -> str:
    """Make a topic with one partition."""
    return make_topic(bus, f"{topic_prefix}one", 1)


@pytest.fixture
def wide_topic(bus: Bus, topic_prefix: str) -> str:
    """Make a topic with four partitions."""
    return make_topic(bus, f"{topic_prefix}four", 4)


def make_topic(bus: Bus, name: str, partitions: int) -> str:
    """Create a topic that keeps its records for the test's time."""
    bus.ensure_topics([TopicSpec(name, partitions, retention_s=600, max_message_bytes=100_000)])
    return name


def send(bus: Bus, topic: str, values: Sequence[str], *, keys: int = 1) -> None:
    """Send *values*, their keys k0, k1 ... in turn, and see them acknowledged."""
    producer = bus.producer()
    for n, value in enumerate(values):
        producer.send(topic, key=b"k%d" % (n % keys), value=value.encode(), headers=())
    producer.flush(PATIENCE_S)
    producer.close()


def read(consumer: Consumer, count: int) -> list[Record]:
    """Poll until there are *count* records."""
    got: list[Record] = []

    def enough() -> bool:
        got.extend(consumer.poll(0.2, count - len(got)))
        return len(got) >= count

    wait_until(enough, timeout_s=PATIENCE_S, what=f"{count} records")
    return got


def poll_until(happened: Callable[[], bool], *consumers: Consumer) -> list[Record]:
    """Poll all *consumers* in turn until something has happened; give what they read."""
    got: list[Record] = []

    def polled() -> bool:
        for consumer in consumers:
            got.extend(consumer.poll(0.05, 1000))
        return happened()

    wait_until(polled, timeout_s=PATIENCE_S, what="what the members were polled for")
    return got


def values(records: Sequence[Record]) -> list[str]:
    """Give what the test has sent, in the order of reading."""
    return [record.value.decode() for record in records]


def numbered(count: int) -> list[str]:
    """Make values whose order is that of sending."""
    return [f"{n:03}" for n in range(count)]


def test_records_with_one_key_keep_their_order_in_one_partition(bus: Bus, wide_topic: str) -> None:
    """Whatever the number of partitions, one camera's records stay a sequence."""
    send(bus, wide_topic, numbered(60), keys=7)
    seen: dict[bytes, list[Record]] = defaultdict(list)
    for record in read(bus.consumer(wide_topic, group="g"), 60):
        seen[record.key].append(record)
    assert len(seen) == 7
    assert len({record.partition for records in seen.values() for record in records}) > 1
    for records in seen.values():
        assert values(records) == sorted(values(records))
        assert [r.offset for r in records] == sorted(r.offset for r in records)
        assert len({record.partition for record in records}) == 1


@pytest.mark.parametrize(
    ("key", "value", "headers"),
    [
        (b"entrance", b"jpeg", (("schema", b"1"),)),
        (b"\x00\xff\n", bytes(range(256)), (("a", b""), ("a", b"\x00"), ("é", b"\xff"))),
        ("caméra".encode(), b"x" * 90_000, ()),
    ],
)
def test_key_value_and_headers_come_back_as_they_were_sent(
    bus: Bus, topic: str, key: bytes, value: bytes, headers: Headers
) -> None:
    """The bus looks at nothing and changes nothing."""
    before = time.time()
    producer = bus.producer()
    producer.send(topic, key=key, value=value, headers=headers)
    producer.flush(PATIENCE_S)
    (record,) = read(bus.consumer(topic, group="g"), 1)
    assert (record.topic, record.partition, record.offset) == (topic, 0, 0)
    assert (record.key, record.value, record.headers) == (key, value, headers)
    assert record.topic_partition == TopicPartition(topic, 0)
    assert before - 0.01 <= record.timestamp <= time.time() + 0.01


@given(
    sent=st.lists(
        st.tuples(
            st.binary(max_size=40),
            st.binary(max_size=200),
            st.lists(st.tuples(st.text(max_size=10), st.binary(max_size=10)), max_size=3).map(tuple),
        ),
        max_size=30,
    ),
    partitions=st.integers(1, 5),
    at_once=st.integers(1, 10),
)
@settings(deadline=None, max_examples=50)
def test_any_bytes_arrive_once_in_the_order_of_their_key(
    sent: list[tuple[bytes, bytes, Headers]], partitions: int, at_once: int
) -> None:
    """A law of the bus in this process; Kafka gets the examples above."""
    memory = MemoryBus()
    memory.ensure_topics([TopicSpec("t", partitions, retention_s=600)])
    producer = memory.producer()
    for key, value, headers in sent:
        producer.send("t", key=key, value=value, headers=headers)
    consumer = memory.consumer("t", group="g")
    got: list[Record] = []
    while records := consumer.poll(0, at_once):
        assert len(records) <= at_once
        got += records
    for key in {key for key, _, _ in sent}:
        assert [(r.value, r.headers) for r in got if r.key == key] == [(v, h) for k, v, h in sent if k == key]
    assert len(got) == len(sent)


def test_poll_gives_no_more_than_asked_for(bus: Bus, topic: str) -> None:
    """A batch has the size that the model wants."""
    send(bus, topic, numbered(10))
    consumer = bus.consumer(topic, group="g")
    assert values(read(consumer, 4)) == numbered(10)[:4]
    assert len(consumer.poll(5, 3)) == 3
    assert values(consumer.poll(5, 100)) == numbered(10)[7:]


def test_poll_is_empty_once_the_time_is_over(bus: Bus, topic: str) -> None:
    """A service that waits for records still gets round to everything else."""
    consumer = bus.consumer(topic, group="g")
    poll_until(lambda: bool(consumer.assignment()), consumer)
    started = time.monotonic()
    assert list(consumer.poll(0.3, 10)) == []
    assert 0.25 <= time.monotonic() - started < 2


def test_only_what_was_not_committed_comes_again_after_a_close(bus: Bus, topic: str) -> None:
    """At least once, and not more often than need be."""
    send(bus, topic, numbered(6))
    first = bus.consumer(topic, group="g")
    read(first, 6)
    first.commit({TopicPartition(topic, 0): 4})
    first.close()
    assert values(read(bus.consumer(topic, group="g"), 2)) == ["004", "005"]


def test_records_of_a_member_that_stopped_polling_go_to_another(bus: Bus, topic: str) -> None:
    """A hung worker does not keep a camera's records to itself, and what it says later is passed over."""
    send(bus, topic, numbered(6))
    hung = bus.consumer(topic, group="g")
    read(hung, 6)
    hung.commit({TopicPartition(topic, 0): 2})
    other = bus.consumer(topic, group="g")
    assert values(read(other, 4)) == ["002", "003", "004", "005"]
    assert not hung.commit({TopicPartition(topic, 0): 6})  # type: ignore[func-returns-value]  # it does not raise
    other.close()
    hung.close()
    assert values(read(bus.consumer(topic, group="g"), 4)) == ["002", "003", "004", "005"]


def test_a_member_that_was_put_out_joins_again_when_it_polls(bus: Bus, topic: str) -> None:
    """A worker that took too long for one batch goes on from the last commit."""
    send(bus, topic, numbered(3))
    slow = bus.consumer(topic, group="g")
    read(slow, 3)
    other = bus.consumer(topic, group="g")
    read(other, 3)
    other.close()
    assert values(read(slow, 3)) == numbered(3)


def test_two_members_share_the_partitions_and_the_one_that_stays_takes_over(bus: Bus, wide_topic: str) -> None:
    """Scaling out and in, with nothing lost and one reader for a partition."""
    every = {TopicPartition(wide_topic, n) for n in range(4)}
    first, second = bus.consumer(wide_topic, group="g"), bus.consumer(wide_topic, group="g")
    poll_until(lambda: len(first.assignment()) == len(second.assignment()) == 2, first, second)
    assert first.assignment() | second.assignment() == every

    send(bus, wide_topic, numbered(40), keys=20)
    got: dict[Consumer, list[Record]] = {first: [], second: []}

    def all_read() -> bool:
        for consumer in got:
            got[consumer] += consumer.poll(0.05, 100)
        return sum(map(len, got.values())) == 40

    wait_until(all_read, timeout_s=PATIENCE_S, what="40 records")
    for consumer, records in got.items():
        assert {record.topic_partition for record in records} <= consumer.assignment()
    first.commit(dict.fromkeys(second.assignment(), 1 << 20))  # not its own: passed over
    second.commit({r.topic_partition: r.offset + 1 for r in got[second]})
    second.close()
    again = poll_until(lambda: first.assignment() == every, first)
    assert again == []


def test_what_the_leaving_member_did_not_commit_is_read_by_the_one_that_stays(bus: Bus, wide_topic: str) -> None:
    """A crash between reading and committing loses nothing."""
    send(bus, wide_topic, numbered(40), keys=20)
    first, second = bus.consumer(wide_topic, group="g"), bus.consumer(wide_topic, group="g")
    kept = poll_until(lambda: len(first.assignment()) == len(second.assignment()) == 2, first, second)
    second.close()
    while set(values(kept)) != set(numbered(40)):
        kept += read(first, 1)


def test_two_groups_each_get_everything(bus: Bus, wide_topic: str) -> None:
    """Inference and an archive may both read the crops."""
    one, other = bus.consumer(wide_topic, group="one"), bus.consumer(wide_topic, group="other")
    send(bus, wide_topic, numbered(20), keys=5)
    assert sorted(values(read(one, 20))) == numbered(20)
    one.commit({TopicPartition(wide_topic, n): 20 for n in range(4)})
    assert sorted(values(read(other, 20))) == numbered(20)


def test_a_static_member_gets_its_partitions_back(bus: Bus, wide_topic: str) -> None:
    """A restart within the session moves nobody else's partitions."""
    first = bus.consumer(wide_topic, group="g", member="first")
    second = bus.consumer(wide_topic, group="g", member="second")
    poll_until(lambda: len(first.assignment()) == len(second.assignment()) == 2, first, second)
    had, others = first.assignment(), second.assignment()
    first.close()
    back = bus.consumer(wide_topic, group="g", member="first")
    poll_until(lambda: back.assignment() == had, back, second)
    assert second.assignment() == others


def test_start_at_overrides_the_committed_offset_and_is_asked_once(bus: Bus, wide_topic: str) -> None:
    """The sink's applied offsets rule: nothing before them is given out, even for a moment."""
    send(bus, wide_topic, numbered(80), keys=40)
    first = bus.consumer(wide_topic, group="g")
    ends = {record.topic_partition: record.offset + 1 for record in read(first, 80)}
    assert len(ends) == 4
    first.commit(dict.fromkeys(ends, 1))
    first.close()
    asked: list[TopicPartition] = []

    def applied(tp: TopicPartition) -> int | None:
        asked.append(tp)
        return None if tp.partition == 3 else 3

    second = bus.consumer(wide_topic, group="g", start_at=applied)
    expected = sum(end - (1 if tp.partition == 3 else 3) for tp, end in ends.items())
    got = read(second, expected)
    first_offsets = {tp.partition: min(r.offset for r in got if r.topic_partition == tp) for tp in ends}
    assert first_offsets == {0: 3, 1: 3, 2: 3, 3: 1}
    assert list(second.poll(0.3, 10)) == []
    assert sorted(asked) == sorted(ends)


def test_start_at_is_asked_again_for_a_partition_that_comes_back(bus: Bus, topic: str) -> None:
    """Between two assignments another member may have moved the sink."""
    send(bus, topic, numbered(4))
    asked: list[TopicPartition] = []

    def applied(tp: TopicPartition) -> int:
        asked.append(tp)
        return 3

    slow = bus.consumer(topic, group="g", start_at=applied)
    assert values(read(slow, 1)) == ["003"]
    other = bus.consumer(topic, group="g")
    read(other, 4)
    other.close()
    assert values(read(slow, 1)) == ["003"]
    assert len(asked) == 2


def test_a_partition_that_is_begun_again_is_read_from_where_start_at_says(bus: Bus, wide_topic: str) -> None:
    """The sink has lost its latest steps: the consumer goes back there, and nobody else's records come twice."""
    send(bus, wide_topic, numbered(40), keys=20)
    starts: dict[int, int] = {}
    consumer = bus.consumer(wide_topic, group="g", start_at=lambda tp: starts.get(tp.partition, 0))
    first = read(consumer, 40)
    back = first[-1].topic_partition
    expected = [(r.topic_partition, r.offset) for r in first if r.topic_partition == back and r.offset >= 2]
    starts[back.partition] = 2
    consumer.begin_again([back, TopicPartition(wide_topic, 99), TopicPartition("another", 0)])
    assert [(r.topic_partition, r.offset) for r in read(consumer, len(expected))] == expected
    assert list(consumer.poll(0.3, 10)) == []


def test_the_span_of_a_log_is_what_it_holds(bus: Bus, wide_topic: str) -> None:
    """From its earliest record to the one that comes next."""
    consumer = bus.consumer(wide_topic, group="g")
    assert consumer.span(TopicPartition(wide_topic, 0)) == (0, 0)
    send(bus, wide_topic, numbered(40), keys=1)
    (where,) = {record.topic_partition for record in read(consumer, 40)}
    assert consumer.span(where) == (0, 40)


def test_a_reader_sees_what_lies_there_and_disturbs_nobody(bus: Bus, wide_topic: str) -> None:
    """Replay and the look at dead letters read beside the groups, from any offset or time."""
    send(bus, wide_topic, numbered(20), keys=10)
    between = time.time()
    wait_until(lambda: time.time() > between + 0.01, timeout_s=1, what="the next hundredth of a second")
    send(bus, wide_topic, numbered(40)[20:], keys=10)
    reader = bus.reader(wide_topic)
    spans = reader.spans()
    assert sum(span.end - span.begin for span in spans.values()) == 40
    assert len(spans) == 4
    everything = {tp: list(reader.read(tp, span.begin, span.end)) for tp, span in spans.items()}
    assert sorted(value for records in everything.values() for value in values(records)) == numbered(40)
    for tp, records in everything.items():
        assert [record.offset for record in records] == list(range(len(records)))
        assert list(reader.read(tp, 1, 3)) == records[1:3]
        assert list(reader.read(tp, 0, 1 << 30)) == records
        assert list(reader.read(tp, len(records), 1 << 30)) == []
    since = reader.since(between + 0.005)
    later = [value for tp, records in everything.items() for value in values(records[since[tp] :])]
    assert sorted(later) == numbered(40)[20:]
    assert reader.since(time.time() + 3600) == {tp: span.end for tp, span in spans.items()}
    reader.close()
    assert sorted(values(read(bus.consumer(wide_topic, group="g"), 40))) == numbered(40)


def test_a_reader_of_a_missing_topic_says_so(bus: Bus, topic_prefix: str) -> None:
    """A typing error is found at once."""
    with pytest.raises(TransportError, match=f"{topic_prefix}nowhere"):
        bus.reader(f"{topic_prefix}nowhere")


def test_a_start_at_that_fails_is_asked_again_and_nothing_is_lost(bus: Bus, wide_topic: str) -> None:
    """Redis may be away at the moment of a rebalance."""
    send(bus, wide_topic, numbered(20), keys=20)
    answers = iter([None, ConnectionError("store"), None, ConnectionError("store")])

    def applied(tp: TopicPartition) -> int | None:
        if answer := next(answers, None):
            raise answer
        return None

    consumer = bus.consumer(wide_topic, group="g", start_at=applied)
    got: list[Record] = []
    failures = 0
    while len(got) < 20:
        try:
            got += read(consumer, 20 - len(got))
        except ConnectionError:
            failures += 1
    assert failures == 2
    assert sorted(values(got)) == numbered(20)


def test_a_start_outside_the_log_means_from_the_earliest(bus: Bus, topic: str) -> None:
    """The sink may know of a log that is gone."""
    send(bus, topic, numbered(3))
    assert values(read(bus.consumer(topic, group="g", start_at=lambda _: 1_000), 3)) == numbered(3)


def test_a_start_at_the_end_of_the_log_waits_for_what_comes(bus: Bus, topic: str) -> None:
    """Everything was applied: nothing comes again."""
    send(bus, topic, numbered(3))
    consumer = bus.consumer(topic, group="g", start_at=lambda _: 3)
    assert poll_until(lambda: bool(consumer.assignment()), consumer) == []
    send(bus, topic, ["next"])
    assert values(read(consumer, 1)) == ["next"]


def test_a_producer_that_is_not_served_raises_and_goes_on_later(bus: Bus, bus_maker: BusMaker, topic: str) -> None:
    """Memory is bounded: the sender hears of it, and nothing that was taken is lost."""
    consumer = bus.consumer(topic, group="g")
    poll_until(lambda: bool(consumer.assignment()), consumer)
    producer = bus.producer(max_in_flight=20, send_timeout_s=0.3)
    producer.send(topic, key=b"k", value=b"first", headers=())
    producer.flush(PATIENCE_S)
    read(consumer, 1)
    sent: list[int] = []

    def send_without_end() -> None:
        for n in range(5_000):
            producer.send(topic, key=b"k", value=b"x" * 1_000, headers=())
            sent.append(n)

    with bus_maker.taking_nothing():
        started = time.monotonic()
        with pytest.raises(TransportError):
            send_without_end()
        assert len(sent) >= 20
        assert 0.25 <= time.monotonic() - started < 2
    got = read(consumer, len(sent))
    consumer.commit({TopicPartition(topic, 0): got[-1].offset + 1})
    producer.send(topic, key=b"k", value=b"again", headers=())
    producer.flush(PATIENCE_S)
    assert values(read(consumer, 1)) == ["again"]


def test_what_was_flushed_can_be_read_by_anyone(bus_maker: BusMaker, bus: Bus, topic: str) -> None:
    """Offsets may be committed after a flush: the records that they stand for are in the log."""
    producer = bus.producer()
    for n in range(500):
        producer.send(topic, key=b"k", value=b"%d" % n, headers=())
    producer.flush(PATIENCE_S)
    assert len(read(bus_maker.bus().consumer(topic, group="g"), 500)) == 500


def test_an_existing_topic_is_left_as_it_is(bus: Bus, wide_topic: str, topic_prefix: str) -> None:
    """Every service may call ensure_topics at its start, with others running."""
    bus.ensure_topics([TopicSpec(wide_topic, 9, retention_s=5), TopicSpec(f"{topic_prefix}new", 2, retention_s=600)])
    bus.ensure_topics([TopicSpec(wide_topic, 9, retention_s=5)])
    consumer = bus.consumer(wide_topic, group="g")
    poll_until(lambda: len(consumer.assignment()) == 4, consumer)
    new = bus.consumer(f"{topic_prefix}new", group="g")
    poll_until(lambda: len(new.assignment()) == 2, new)


def test_a_missing_topic_is_named(bus: Bus, topic_prefix: str) -> None:
    """A typing error in a setting is found at the start, not by an empty page."""
    with pytest.raises(TransportError, match=f"{topic_prefix}nowhere"):
        bus.consumer(f"{topic_prefix}nowhere", group="g")
    with pytest.raises(TransportError, match=f"{topic_prefix}nowhere"):
        bus.producer(send_timeout_s=0.3).send(f"{topic_prefix}nowhere", key=b"k", value=b"v", headers=())


def test_a_record_that_no_topic_takes_is_an_error_of_the_caller(bus: Bus, topic: str) -> None:
    """Sending it again will not help, so it is no TransportError."""
    producer = bus.producer()
    with pytest.raises(ValueError, match=topic):
        producer.send(topic, key=b"k", value=b"x" * (2 << 20), headers=())
    producer.send(topic, key=b"k", value=b"small", headers=())
    producer.flush(PATIENCE_S)


def test_lag_counts_what_was_not_given_out_yet(bus: Bus, topic: str) -> None:
    """Scaling goes by it."""
    send(bus, topic, numbered(10))
    consumer = bus.consumer(topic, group="g")
    assert consumer.lag() == {}
    read(consumer, 3)
    assert consumer.lag() == {TopicPartition(topic, 0): 7}
    read(consumer, 7)
    assert consumer.lag() == {TopicPartition(topic, 0): 0}
    send(bus, topic, numbered(2))
    read(consumer, 1)
    assert consumer.lag() == {TopicPartition(topic, 0): 1}


def test_closing_twice_is_harmless_and_a_closed_consumer_says_so(bus: Bus, topic: str) -> None:
    """Shutting down goes through the same lines in any order."""
    producer, consumer = bus.producer(), bus.consumer(topic, group="g")
    for _ in range(2):
        consumer.close()
        producer.close()
    assert consumer.assignment() == frozenset()
    with pytest.raises(TransportError, match="closed"):
        consumer.poll(0, 1)


def test_closing_the_bus_closes_what_it_opened(bus_maker: BusMaker, topic_prefix: str) -> None:
    """One call lets go of everything."""
    bus = bus_maker.bus()
    name = make_topic(bus, f"{topic_prefix}t", 1)
    producer, consumer = bus.producer(), bus.consumer(name, group="g")
    bus.close()
    bus.close()
    with pytest.raises(TransportError, match="closed"):
        consumer.poll(0, 1)
    with pytest.raises(TransportError, match="closed"):
        producer.send(name, key=b"k", value=b"v", headers=())


def test_a_session_is_shorter_than_our_patience() -> None:
    """The suite's own arithmetic: taking over needs a few sessions' time."""
    assert SESSION_S * 4 < PATIENCE_S
