"""A hundred thousand damaged records, through inference and aggregator: nothing falls over, nobody else is harmed."""

from __future__ import annotations

import resource
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from random import Random
from typing import Final, Generic, NamedTuple, TypeVar

import cv2
import msgspec
import numpy as np
import pytest

from aggregator.memory_store import MemoryStore
from aggregator.service import AggregatorService
from aggregator.windows import retentions, rolling_windows
from inference.service import InferenceService
from pipeline.bus import DEAD_LETTERS, FACE_CROPS, PREDICTIONS, Headers, Record
from pipeline.errors import InvalidMessage, TransportError
from pipeline.memory_bus import MemoryBus
from pipeline.messages import (
    CHECKSUM_HEADER,
    DeadLetter,
    FaceCrop,
    Prediction,
    TrackEnded,
    decode,
    encode,
    headers,
)
from pipeline.settings import AggregatorSettings, Settings
from pipeline.telemetry import RECORDS, Telemetry
from tests.chaos.script import MANIFEST, ScriptedEngine, cells, events, people, picture
from tests.plain_messages import reason_to_refuse
from tests.servers import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BAD: Final = 100_000
CAMERAS: Final = ("hall", "door")
PEOPLE: Final = 500
SEED: Final = 20_261_125
NOW: Final = time.time()
MOST_GROWTH_BYTES: Final = 300 << 20
DAMAGED: Final = "damaged"  # a header of the test's own

T = TypeVar("T")
Damage = Callable[[Random, bytes], bytes]


def flipped(random: Random, value: bytes) -> bytes:
    """Turn some bits over."""
    changed = bytearray(value)
    for _ in range(random.choice((1, 1, 2, 8, 64))):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def cut(random: Random, value: bytes) -> bytes:
    """Leave out the end."""
    return value[: random.randrange(len(value))]


def spliced(random: Random, value: bytes) -> bytes:
    """Repeat a piece in the middle of itself."""
    at, length = random.randrange(len(value)), random.randrange(1, 200)
    return value[:at] + value[:length] + value[at:]


def same(_: Random, value: bytes) -> bytes:
    """Leave it as it is: what is wrong is in the headers."""
    return value


def noise(random: Random, _: bytes) -> bytes:
    """Say nothing at all."""
    return random.randbytes(random.randrange(2000))


def lies(random: Random, value: bytes) -> bytes:
    """Claim to be enormous: containers with four thousand million items, nested a thousand deep."""
    claim = random.choice(
        (b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff")
    )
    return random.choice((claim + value, b"\x91" * 5000, b"\x81\xa4type" * 2000, value[:20] + claim + value[20:]))


def bomb(random: Random, _: bytes) -> bytes:
    """Hold a JPEG that is harmless to send and dangerous to open."""
    jpeg = random.choice(BOMBS)
    crop = FaceCrop(
        camera_id="fuzz", track_id=random.randrange(1 << 40), sequence=0, first_seen=NOW, captured_at=NOW, quality=0.5,
        jpeg=jpeg,
    )  # fmt: skip
    return encode(crop)


def locked(random: Random, _: bytes) -> bytes:
    """Hold a picture that was sealed with a key that nobody has here."""
    crop = FaceCrop(
        camera_id="fuzz", track_id=random.randrange(1 << 40), sequence=0, first_seen=NOW, captured_at=NOW, quality=0.5,
        jpeg=random.randbytes(random.randrange(2000)), sealed_with=random.choice(("gone", "2026-11", "a" * 32)),
    )  # fmt: skip
    return encode(crop)


def sealed(random: Random, damage: Damage, value: bytes, damaged: bytes) -> Headers:
    """Say what the headers of a damaged record claim."""
    if damage is same:
        return random.choice(
            ((), (("schema", random.randbytes(3)),), (("schema", b"0"),), (("schema", b"2"),), (*headers(value)[1:],))
        )
    if damage in WHOLE:
        return headers(damaged)
    # A line or a disk that is faulty; a writer that is, which seals what it has made; one from before there were checksums.
    return headers(random.choice((value, damaged, None)))


def _bombs() -> list[bytes]:
    plain = picture(30, 1, 1)
    at = plain.index(b"\xff\xc0")
    wide = plain[: at + 5] + b"\xff\xff\xff\xff" + plain[at + 9 :]
    large = cv2.imencode(".jpg", np.zeros((8000, 8000), np.uint8))[1].tobytes()  # 64 million pixels in half a megabyte
    start = plain.index(b"\xff\xda")
    many_scans = plain[:start] + plain[start:-2] * 300 + plain[-2:]
    comments = plain[:2] + (b"\xff\xfe\xff\xff" + b"x" * 65533) * 12 + plain[2:]
    thumbnails = plain[:2] + b"\xff\xe1\xff\xff" + plain * 60 + b"x" * 70_000 + plain[2:]
    grey16 = cv2.imencode(".png", np.zeros((32, 32), np.uint16))[1].tobytes()
    return [
        wide,
        large,
        many_scans,
        comments,
        thumbnails,
        grey16,
        b"\xff\xd8\xff\xd9",
        plain[:-2] + b"\x00" * 900_000 + plain[-2:],
    ]


BOMBS: Final = _bombs()
WHOLE: Final[tuple[Damage, ...]] = (bomb, locked)  # what is wrong was so when it was written
DAMAGES: Final[tuple[Damage, ...]] = (flipped, flipped, flipped, cut, spliced, same, noise, lies)


def victims(random: Random) -> Iterator[tuple[str, bytes]]:
    """Give good records without end, to be damaged; their camera is one that nobody counts on."""
    while True:
        number = random.randrange(1 << 30)
        common = {"camera_id": "fuzz", "track_id": number, "first_seen": NOW}
        jpeg = picture(random.choice((5, 30, 60)), random.randrange(4), random.randrange(5))
        yield FACE_CROPS, encode(FaceCrop(**common, sequence=0, captured_at=NOW, quality=0.5, jpeg=jpeg))  # type: ignore[arg-type]
        yield FACE_CROPS, encode(TrackEnded(**common, last_seen=NOW, crops=1))  # type: ignore[arg-type]
        said = {"age": 30.0, "age_spread": 4.0, "p_female": 0.3, "p_ethnicity": (0.6, 0.1, 0.1, 0.1, 0.1)}
        yield PREDICTIONS, encode(Prediction(**common, **said, sequence=0, captured_at=NOW, quality=0.5))  # type: ignore[arg-type]


class Witness(Generic[T]):
    """Reads a topic beside those who work on it, and keeps what *see* makes of every record, by where it lies."""

    def __init__(self, bus: MemoryBus, topic: str, see: Callable[[Record], T]) -> None:
        self.seen: dict[tuple[str, int, int], T] = {}
        self._see = see
        self._consumer = bus.consumer(topic, group="witness")
        self.thread = threading.Thread(target=self._run, name=f"witness-{topic}")
        self.thread.start()

    def _run(self) -> None:
        with suppress(TransportError):  # the bus is closed when all is over
            while True:
                records = self._consumer.poll(0.5, 500)
                for record in records:
                    self.seen[record[:3]] = self._see(record)
                self._consumer.commit({record.topic_partition: record.offset + 1 for record in records})


class Judged(NamedTuple):
    """What a reader of another making says of a record."""

    reason: str | None  # to refuse it
    sealed: bool
    damaged: bool


def judged(record: Record) -> Judged:
    """Have the other reader look at a record."""
    said = dict(record.headers)
    return Judged(reason_to_refuse(record, MANIFEST.crop.size_px), CHECKSUM_HEADER in said, DAMAGED in said)


def of_letter(record: Record) -> tuple[tuple[str, int, int], str]:
    """Read a dead letter: where its record lies, and the reason."""
    letter = decode(record.value, record.headers)
    assert isinstance(letter, DeadLetter)
    assert CHECKSUM_HEADER in dict(record.headers)
    return (letter.topic, letter.partition, letter.offset), letter.reason


def test_a_hundred_thousand_damaged_records_harm_nobody() -> None:
    """Each is a dead letter, or a message by another reader's judgement too; the people between are all counted, memory stays."""
    random = Random(SEED)
    settings = Settings(aggregator=AggregatorSettings(idle_s=3600))  # no camera falls silent, however busy the machine
    bus, stop = MemoryBus(), threading.Event()
    bus.ensure_topics(settings.kafka.topics())
    store = MemoryStore(retentions(rolling_windows({"24h": 86400})))
    own = {"inference": Telemetry(("inference",)), "aggregator": Telemetry(("aggregator",))}
    inference = InferenceService(settings, bus, ScriptedEngine(0), MANIFEST, own["inference"])
    aggregator = AggregatorService(settings, bus, store, own["aggregator"])
    threads = [threading.Thread(target=one.worker.run, args=(stop,)) for one in (inference, aggregator)]
    for thread in threads:
        thread.start()
    crops, predictions = Witness(bus, FACE_CROPS, judged), Witness(bus, PREDICTIONS, judged)
    letters = Witness(bus, DEAD_LETTERS, of_letter)
    witnesses = (crops, predictions, letters)
    good = [
        (camera, encode(message))
        for camera in CAMERAS
        for _, message in events(people(SEED, camera, PEOPLE, 1.0), camera, NOW - PEOPLE - 10)
    ]
    producer = bus.producer(send_timeout_s=60)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sent = {FACE_CROPS: 0, PREDICTIONS: 0}
    unsealed = Counter[str]()
    every = BAD // len(good)
    source = victims(random)
    try:
        for n in range(BAD):
            if n % every == 0 and n // every < len(good):
                camera, value = good[n // every]
                producer.send(FACE_CROPS, key=camera.encode(), value=value, headers=headers(value))
            topic, value = next(source)
            damage = WHOLE[n // 250 % 2] if n % 250 == 0 else random.choice(DAMAGES)
            topic = FACE_CROPS if damage in WHOLE else topic
            damaged = damage(random, value)
            key = random.choice((b"fuzz", *(camera.encode() for camera in CAMERAS), random.randbytes(20)))
            said = sealed(random, damage, value, damaged)
            producer.send(topic, key=key, value=damaged, headers=(*said, (DAMAGED, b"")))
            sent[topic] += 1
            unsealed[topic] += CHECKSUM_HEADER not in dict(said)
            assert n % 1000 or all(thread.is_alive() for thread in (*threads, *(one.thread for one in witnesses)))
        for camera, value in good[-(-BAD // every) :]:
            producer.send(FACE_CROPS, key=camera.encode(), value=value, headers=headers(value))
        wait_until(
            lambda: bus.drained(FACE_CROPS, "inference") and bus.drained(PREDICTIONS, "aggregator"),
            timeout_s=300,
            what="the end of the fuzz",
        )
        wait_until(
            lambda: all(bus.drained(topic, "witness") for topic in (FACE_CROPS, PREDICTIONS, DEAD_LETTERS)),
            timeout_s=300,
            what="the witnesses",
        )
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
        with suppress(TransportError):
            inference.close()
            aggregator.close()
        bus.close()
        for one in witnesses:
            one.thread.join(30)

    # Nobody between the damaged records is lost or counted otherwise.
    counts = store.snapshot(time.time(), rolling_windows({"24h": 86400}))
    shown = {place: tally for place, tally in counts.totals.items() if place.camera_id in CAMERAS}
    expected = cells(CAMERAS, SEED, PEOPLE, 1.0)
    assert sum(tally.people.total() for tally in shown.values()) == len(CAMERAS) * PEOPLE
    for place, tally in shown.items():
        for cell, count in tally.people.items():
            assert count == sum(
                n for (camera, *labels, _), n in expected.items() if (camera, *labels) == (place.camera_id, *cell)
            )

    # Each record by itself: it is a dead letter for the reason that the other reader has found, or that reader takes it too.
    verdicts = {**crops.seen, **predictions.seen}
    assert len(crops.seen) == sent[FACE_CROPS] + len(good)
    refused = {where: said.reason for where, said in verdicts.items() if said.reason is not None}
    told = dict(letters.seen.values())
    # Of a JPEG, ours wants every segment in its place, where Pillow looks for the next one.
    stricter = {where for where, reason in told.items() if reason == "image" and where not in refused}
    assert {where: reason for where, reason in told.items() if where not in stricter} == refused
    assert len(letters.seen) == len(told)  # once each
    by_reason = Counter(told.values())
    taken = sum(said.damaged and where not in told for where, said in verdicts.items())
    assert 0 < taken < BAD / 10
    assert set(by_reason) == set(InvalidMessage.REASONS)

    # Nothing is neither: what inference has not refused has come on to the aggregator, sealed anew.
    handled = {name: _records(telemetry) for name, telemetry in own.items()}
    refused_crops = sum(topic == FACE_CROPS for topic, _, _ in told)
    assert handled["inference"] == len(crops.seen)
    assert handled["aggregator"] == len(predictions.seen) == len(crops.seen) - refused_crops + sent[PREDICTIONS]
    assert sum(not said.sealed for said in predictions.seen.values()) == unsealed[PREDICTIONS]
    assert grown < MOST_GROWTH_BYTES
    print(  # noqa: T201
        msgspec.json.encode(
            {
                "bad": BAD,
                "letters": by_reason,
                "taken": taken,
                "stricter": len(stricter),
                "grown_mib": grown >> 20,
            }
        ).decode()
    )


def _records(telemetry: Telemetry) -> int:
    (family,) = (f for f in telemetry.registry.collect() if f.name == RECORDS.name.removesuffix("_total"))
    return sum(int(s.value) for s in family.samples if s.name.endswith("_total"))


def test_the_bombs_are_what_they_are_called() -> None:
    """The damage is real: each is small, and some would be large."""
    assert all(len(bomb) < 1_000_000 for bomb in BOMBS)
