"""A hundred thousand damaged records, through inference and aggregator: nothing falls over, nobody else is harmed."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from random import Random
from typing import Final

import cv2
import msgspec
import numpy as np
import pytest

from aggregator.memory_store import MemoryStore
from aggregator.service import AggregatorService
from aggregator.windows import retentions, rolling_windows
from inference.service import InferenceService
from pipeline.bus import FACE_CROPS, PREDICTIONS, Headers
from pipeline.errors import TransportError
from pipeline.memory_bus import MemoryBus
from pipeline.messages import FaceCrop, Prediction, TrackEnded, encode, headers
from pipeline.settings import Settings
from pipeline.telemetry import DEAD_LETTERS_TOTAL, RECORDS, Telemetry
from tests.chaos.script import MANIFEST, ScriptedEngine, cells, events, people, picture
from tests.servers import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BAD: Final = 100_000
CAMERAS: Final = ("hall", "door")
PEOPLE: Final = 500
SEED: Final = 20_261_125
NOW: Final = time.time()
MOST_GROWTH_BYTES: Final = 300 << 20

Damage = Callable[[Random, bytes], tuple[bytes, Headers]]


def flipped(random: Random, value: bytes) -> tuple[bytes, Headers]:
    """Turn some bits over."""
    changed = bytearray(value)
    for _ in range(random.choice((1, 1, 2, 8, 64))):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed), headers()


def cut(random: Random, value: bytes) -> tuple[bytes, Headers]:
    """Leave out the end."""
    return value[: random.randrange(len(value))], headers()


def spliced(random: Random, value: bytes) -> tuple[bytes, Headers]:
    """Repeat a piece in the middle of itself."""
    at, length = random.randrange(len(value)), random.randrange(1, 200)
    return value[:at] + value[:length] + value[at:], headers()


def version(random: Random, value: bytes) -> tuple[bytes, Headers]:
    """Claim to be of another version, or of none."""
    return value, random.choice(((), (("schema", random.randbytes(3)),), (("schema", b"0"),), (("schema", b"2"),)))


def noise(random: Random, value: bytes) -> tuple[bytes, Headers]:
    """Say nothing at all."""
    return random.randbytes(random.randrange(2000)), headers()


def lies(random: Random, value: bytes) -> tuple[bytes, Headers]:
    """Claim to be enormous: containers with four thousand million items, nested a thousand deep."""
    claim = random.choice(
        (b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff")
    )
    return random.choice(
        (claim + value, b"\x91" * 5000, b"\x81\xa4type" * 2000, value[:20] + claim + value[20:])
    ), headers()


def bomb(random: Random, value: bytes) -> tuple[bytes, Headers]:
    """Hold a JPEG that is harmless to send and dangerous to open."""
    jpeg = random.choice(BOMBS)
    crop = FaceCrop(
        camera_id="fuzz", track_id=random.randrange(1 << 40), sequence=0, first_seen=NOW, captured_at=NOW, quality=0.5,
        jpeg=jpeg,
    )  # fmt: skip
    return encode(crop), headers()


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
DAMAGES: Final[tuple[Damage, ...]] = (flipped, flipped, flipped, cut, spliced, version, noise, lies)


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


def test_a_hundred_thousand_damaged_records_harm_nobody() -> None:
    """Each is a dead letter or a message like any other; the people between them are all counted, memory stays."""
    random = Random(SEED)
    bus, settings, stop = MemoryBus(), Settings(), threading.Event()
    bus.ensure_topics(settings.kafka.topics())
    store = MemoryStore(retentions(rolling_windows({"24h": 86400})))
    own = {"inference": Telemetry(("inference",)), "aggregator": Telemetry(("aggregator",))}
    inference = InferenceService(settings, bus, ScriptedEngine(0), MANIFEST, own["inference"])
    aggregator = AggregatorService(settings, bus, store, own["aggregator"])
    threads = [threading.Thread(target=one.worker.run, args=(stop,)) for one in (inference, aggregator)]
    for thread in threads:
        thread.start()
    good = [
        (camera, encode(message))
        for camera in CAMERAS
        for _, message in events(people(SEED, camera, PEOPLE, 1.0), camera, NOW - PEOPLE - 10)
    ]
    producer = bus.producer(send_timeout_s=60)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sent = {FACE_CROPS: 0, PREDICTIONS: 0}
    every = BAD // len(good)
    source = victims(random)
    try:
        for n in range(BAD):
            if n % every == 0 and n // every < len(good):
                camera, value = good[n // every]
                producer.send(FACE_CROPS, key=camera.encode(), value=value, headers=headers())
            topic, value = next(source)
            value, said = bomb(random, value) if n % 500 == 0 else random.choice(DAMAGES)(random, value)
            key = random.choice((b"fuzz", *(camera.encode() for camera in CAMERAS), random.randbytes(20)))
            producer.send(FACE_CROPS if n % 500 == 0 else topic, key=key, value=value, headers=said)
            sent[FACE_CROPS if n % 500 == 0 else topic] += 1
            assert n % 1000 or all(thread.is_alive() for thread in threads)
        for camera, value in good[-(-BAD // every) :]:
            producer.send(FACE_CROPS, key=camera.encode(), value=value, headers=headers())
        wait_until(
            lambda: bus.drained(FACE_CROPS, "inference") and bus.drained(PREDICTIONS, "aggregator"),
            timeout_s=300,
            what="the end of the fuzz",
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

    counts = store.snapshot(time.time(), rolling_windows({"24h": 86400}))
    shown = {place: tally for place, tally in counts.totals.items() if place.camera_id in CAMERAS}
    expected = cells(CAMERAS, SEED, PEOPLE, 1.0)
    assert sum(tally.people.total() for tally in shown.values()) == len(CAMERAS) * PEOPLE
    for place, tally in shown.items():
        for cell, count in tally.people.items():
            assert count == sum(
                n for (camera, *labels, _), n in expected.items() if (camera, *labels) == (place.camera_id, *cell)
            )
    letters = {name: _letters(telemetry) for name, telemetry in own.items()}
    assert set(letters["inference"]) == {"schema", "malformed", "image"}
    assert set(letters["aggregator"]) >= {"schema", "malformed"}
    # Whatever was sent to inference is a letter there, or has come on to the aggregator; nothing is neither.
    handled = {name: _records(telemetry) for name, telemetry in own.items()}
    assert handled["inference"] == sent[FACE_CROPS] + len(good)
    assert handled["aggregator"] == handled["inference"] - sum(letters["inference"].values()) + sent[PREDICTIONS]
    assert sum(sum(by_reason.values()) for by_reason in letters.values()) > BAD / 2
    assert grown < MOST_GROWTH_BYTES
    print(msgspec.json.encode({"bad": BAD, "letters": letters, "grown_mib": grown >> 20}).decode())  # noqa: T201


def _letters(telemetry: Telemetry) -> dict[str, int]:
    (family,) = (f for f in telemetry.registry.collect() if f.name == DEAD_LETTERS_TOTAL.name.removesuffix("_total"))
    return {s.labels["reason"]: int(s.value) for s in family.samples if s.name.endswith("_total") and s.value}


def _records(telemetry: Telemetry) -> int:
    (family,) = (f for f in telemetry.registry.collect() if f.name == RECORDS.name.removesuffix("_total"))
    return sum(int(s.value) for s in family.samples if s.name.endswith("_total"))


def test_the_bombs_are_what_they_are_called() -> None:
    """The damage is real: each is small, and some would be large."""
    assert all(len(bomb) < 1_000_000 for bomb in BOMBS)
