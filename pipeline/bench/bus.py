"""Face crops through the bus: in process, and where a broker is named, through a real Kafka.

The broker should be nobody else's: the bench makes a topic there and fills it.
"""

from __future__ import annotations

import queue
import secrets
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any, Final, NamedTuple

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer

from pipeline.bench.rows import ROUNDS, Row, Workbench, best_rate
from pipeline.bus import Bus, TopicSpec
from pipeline.kafka_bus import BATCH_BYTES, FETCH_MAX_BYTES, KafkaBus
from pipeline.memory_bus import MemoryBus
from pipeline.messages import headers

PART: Final = "bus"
TOPIC: Final = "demographics-bench"
CROP_BYTES: Final = 5000
CROPS: Final = 5000
CAMERAS: Final = 40
VALUE: Final = bytes(range(256)) * (CROP_BYTES // 256)


def measure(bench: Workbench) -> list[Row]:
    """Measure sending, reading and committing crops of 5 kB."""
    rows = _in_process()
    if bench.kafka:
        bench.progress(f"{PART}: Kafka at {bench.kafka}")
        rows += _kafka(bench.kafka)
    return rows


def _in_process() -> list[Row]:
    memory = MemoryBus()
    memory.ensure_topics([TopicSpec(TOPIC, 4, 600)])
    rate = best_rate(partial(_through, memory, TOPIC))
    memory.close()
    plain: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def put_and_get() -> int:
        for _ in range(CROPS):
            plain.put(VALUE)
        for _ in range(CROPS):
            plain.get()
        return CROPS

    return [
        Row(
            PART, "in process: crops of 5 kB sent, read and committed", rate, "crops/s",
            limit=best_rate(put_and_get), limit_of="Python's SimpleQueue, which keeps nothing for a replay",
        )
    ]  # fmt: skip


def _through(bus: Bus, topic: str) -> int:
    producer, consumer = bus.producer(), bus.consumer(topic, group="bench")
    head = headers(VALUE)
    for number in range(CROPS):
        producer.send(topic, key=_key(number), value=VALUE, headers=head)
    producer.flush(60)
    done = 0
    while done < CROPS:
        records = consumer.poll(1.0, 500)
        done += len(records)
        consumer.commit({record.topic_partition: record.offset + 1 for record in records})
    consumer.close()
    producer.close()
    return done


def _key(number: int) -> bytes:
    return b"camera-%d" % (number % CAMERAS)


class _Cost(NamedTuple):
    wall_s: float
    cpu_s: float

    @property
    def megabytes_a_second(self) -> float:
        return CROPS * len(VALUE) / 1e6 / self.wall_s

    @property
    def cpu_us(self) -> float:
        return 1e6 * self.cpu_s / CROPS


def _kafka(servers: str) -> list[Row]:
    """Measure what this process spends on a crop; the broker is another, and its time is its own."""
    costs: dict[str, list[_Cost]] = {}
    for _ in range(ROUNDS):  # in turn, so that a busy moment of the machine is everybody's
        for name, work in (
            ("send", partial(_send_ours, servers)),
            ("send raw", partial(_send_raw, servers, batch_size=BATCH_BYTES, linger_ms=5)),
            ("send plain", partial(_send_raw, servers)),
        ):
            topic = _fresh_topic(servers)
            costs.setdefault(name, []).append(work(topic))
            if name != "send raw":
                continue
            costs.setdefault("read", []).append(_read_ours(servers, topic))
            costs.setdefault("read raw", []).append(_read_raw(servers, topic))
    best = {name: min(taken, key=lambda cost: cost.cpu_s) for name, taken in costs.items()}
    fast = {name: min(taken, key=lambda cost: cost.wall_s) for name, taken in costs.items()}
    raw = "kafka-python with the same settings, no bound, no sign of what was lost"
    return [
        Row(
            PART, "Kafka: crops of 5 kB sent and acknowledged", fast["send"].megabytes_a_second, "MB/s",
            "kafka-python with its default settings", fast["send plain"].megabytes_a_second,
            limit=fast["send raw"].megabytes_a_second, limit_of=raw,
        ),
        Row(
            PART, "Kafka: CPU to send a crop", best["send"].cpu_us, "us",
            "kafka-python with its default settings", best["send plain"].cpu_us,
            limit=best["send raw"].cpu_us, limit_of=raw,
        ),
        Row(
            PART, "Kafka: crops of 5 kB read", fast["read"].megabytes_a_second, "MB/s",
            limit=fast["read raw"].megabytes_a_second, limit_of="kafka-python alone, same settings",
        ),
        Row(
            PART, "Kafka: CPU to read a crop", best["read"].cpu_us, "us",
            limit=best["read raw"].cpu_us, limit_of="kafka-python alone, same settings",
        ),
    ]  # fmt: skip


def _fresh_topic(servers: str) -> str:
    """Make a topic that nobody has read or written; the ones before are removed, so that the disk holds one."""
    topic = f"{TOPIC}-{secrets.token_hex(4)}"
    with closing(KafkaAdminClient(bootstrap_servers=servers)) as admin:
        old = [name for name in admin.list_topics() if name.startswith(TOPIC)]
        if old:
            admin.delete_topics(old)
    bus = KafkaBus(servers)
    bus.ensure_topics([TopicSpec(topic, 4, 600)])
    bus.close()
    return topic


def _timed(work: Callable[[], None]) -> _Cost:
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return _Cost(time.perf_counter() - start, time.process_time() - cpu)


def _send_ours(servers: str, topic: str) -> _Cost:
    bus, head = KafkaBus(servers), headers(VALUE)
    producer = bus.producer()
    _settle(producer, topic)

    def work() -> None:
        for number in range(CROPS):
            producer.send(topic, key=_key(number), value=VALUE, headers=head)
        producer.flush(60)

    cost = _timed(work)
    bus.close()
    return cost


def _settle(producer: Any, topic: str) -> None:
    """Send one record, so that what is known once (the topic, the producer's id) is known."""
    producer.send(topic, key=b"first", value=VALUE, headers=headers(VALUE))
    producer.flush(30)


def _send_raw(servers: str, topic: str, **settings: int) -> _Cost:
    producer = KafkaProducer(
        bootstrap_servers=servers, acks="all", enable_idempotence=True, metrics_enabled=False, **settings
    )
    head = list(headers(VALUE))
    producer.send(topic, key=b"first", value=VALUE, headers=head)
    producer.flush(30)

    def work() -> None:
        for number in range(CROPS):
            producer.send(topic, key=_key(number), value=VALUE, headers=head)
        producer.flush(60)

    cost = _timed(work)
    producer.close()
    return cost


def _read_ours(servers: str, topic: str) -> _Cost:
    bus = KafkaBus(servers)
    consumer = bus.consumer(topic, group=f"ours-{topic}")
    got = len(consumer.poll(30.0, 1))

    def work() -> None:
        nonlocal got
        while got < CROPS:
            got += len(consumer.poll(1.0, 500))

    cost = _timed(work)
    bus.close()
    return cost


def _read_raw(servers: str, topic: str) -> _Cost:
    consumer = KafkaConsumer(
        topic, bootstrap_servers=servers, group_id=f"raw-{topic}", auto_offset_reset="earliest",
        enable_auto_commit=False, isolation_level="read_committed", fetch_max_bytes=FETCH_MAX_BYTES, metrics_enabled=False,
    )  # fmt: skip
    got = 0
    while not got:
        got = sum(map(len, consumer.poll(timeout_ms=1000, max_records=1).values()))

    def work() -> None:
        nonlocal got
        while got < CROPS:
            got += sum(map(len, consumer.poll(timeout_ms=1000, max_records=500).values()))

    cost = _timed(work)
    consumer.close()
    return cost
