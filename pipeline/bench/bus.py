"""Face crops through the bus: in process, and where a broker is named, through a real Kafka.

The broker should be nobody else's: the bench makes a topic there and fills it.
"""

from __future__ import annotations

import gzip
import queue
import random
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
from pipeline.manifest import load_manifest
from pipeline.memory_bus import MemoryBus
from pipeline.messages import FaceCrop, Prediction, encode, headers
from pipeline.simulate import crops_of_kinds

PART: Final = "bus"
TOPIC: Final = "demographics-bench"
CROP_BYTES: Final = 5000
CROPS: Final = 5000
CAMERAS: Final = 40
TOGETHER: Final = 8  # crops in one record, to see what that would save
VALUE: Final = bytes(range(256)) * (CROP_BYTES // 256)


def measure(bench: Workbench) -> list[Row]:
    """Measure sending, reading and committing crops of 5 kB."""
    rows = [*_in_process(), *_compression(bench)]
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


def _compression(bench: Workbench) -> list[Row]:
    """Measure what gzip, which needs no further package, would do to a batch of crops, and to one of predictions."""
    jpegs = crops_of_kinds(load_manifest(bench.settings.inference.model).crop, coded=False)
    now = time.time()
    batches = {
        "crops": [
            encode(FaceCrop(camera_id="hall", track_id=n, sequence=0, first_seen=now, captured_at=now, quality=0.8, jpeg=jpeg))
            for n, jpeg in enumerate(jpegs * 3)
        ],
        "predictions": [encode(_some_prediction(n, now)) for n in range(1200)],
    }  # fmt: skip
    rows = []
    for name, records in batches.items():
        batch = b"".join(records)
        saved = 100 * (1 - len(gzip.compress(batch, 6)) / len(batch))
        rate = best_rate(lambda batch=batch, records=records: len(records) if gzip.compress(batch, 6) else 0)  # type: ignore[misc]
        rows.append(
            Row(PART, f"CPU to gzip one of many {name}, were batches compressed", 1e6 / rate, "us",
                limit_of=f"saves {saved:.0f} % of {len(batch) / len(records):,.0f} bytes; see docs/decisions/0046")
        )  # fmt: skip
    return rows


def _some_prediction(number: int, now: float) -> Prediction:
    """Say of a crop what the model might, in as many digits."""
    draw = random.Random(number)  # noqa: S311  for a measurement
    rest = [round(draw.random() / 4, 6) for _ in range(4)]
    return Prediction(
        camera_id=f"hall-{number % CAMERAS}", track_id=(int(now) << 20) + number // 6, sequence=number % 6,
        first_seen=now + number / 7,
        captured_at=now + number / 7 + draw.random(), quality=draw.random(), age=round(80 * draw.random(), 3),
        age_spread=round(5 + 5 * draw.random(), 3), p_female=round(draw.random(), 6),
        p_ethnicity=(1 - sum(rest), rest[0], rest[1], rest[2], rest[3]), model="0123456789ab",
    )  # fmt: skip


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
            (f"send {TOGETHER}", partial(_send_ours, servers, together=TOGETHER)),
        ):
            topic = _fresh_topic(servers)
            costs.setdefault(name, []).append(work(topic))
            if name == "send raw":
                costs.setdefault("read", []).append(_read_ours(servers, topic))
                costs.setdefault("read raw", []).append(_read_raw(servers, topic))
            elif name == f"send {TOGETHER}":
                costs.setdefault(f"read {TOGETHER}", []).append(_read_ours(servers, topic, CROPS // TOGETHER))
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
        Row(
            PART, f"Kafka: CPU to send a crop, were {TOGETHER} in a record", best[f"send {TOGETHER}"].cpu_us, "us",
            "one in a record, as it is", best["send"].cpu_us, limit_of="see docs/decisions/0046",
        ),
        Row(
            PART, f"Kafka: CPU to read a crop, were {TOGETHER} in a record", best[f"read {TOGETHER}"].cpu_us, "us",
            "one in a record, as it is", best["read"].cpu_us, limit_of="see docs/decisions/0046",
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


def _send_ours(servers: str, topic: str, *, together: int = 1) -> _Cost:
    value = VALUE * together
    bus, head = KafkaBus(servers), headers(value)
    producer = bus.producer()
    _settle(producer, topic)

    def work() -> None:
        for number in range(CROPS // together):
            producer.send(topic, key=_key(number), value=value, headers=head)
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


def _read_ours(servers: str, topic: str, records: int = CROPS) -> _Cost:
    bus = KafkaBus(servers)
    consumer = bus.consumer(topic, group=f"ours-{topic}")
    got = len(consumer.poll(30.0, 1))

    def work() -> None:
        nonlocal got
        while got < records:
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
