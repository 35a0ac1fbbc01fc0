"""Dead letters: listed without what they hold, and sent in again."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from pipeline.bus import DEAD_LETTERS, FACE_CROPS, PREDICTIONS, TopicSpec
from pipeline.errors import ConfigError, InvalidMessage
from pipeline.letters import document, read_letters, requeue, table, wanted
from pipeline.memory_bus import MemoryBus
from pipeline.messages import FaceCrop, encode, headers
from pipeline.telemetry import Telemetry
from pipeline.worker import DeadLetters

CROP = FaceCrop(
    camera_id="hall", track_id=1, sequence=0, first_seen=1.0, captured_at=1.0, quality=0.5, jpeg=b"a face, as it were"
)


@pytest.fixture
def bus() -> Iterator[MemoryBus]:
    """Lay two records of crops and one of predictions down, and the letters of two of them; one of these was said twice."""
    bus = MemoryBus()
    bus.ensure_topics([TopicSpec(name, 2, 3600) for name in (FACE_CROPS, PREDICTIONS, DEAD_LETTERS)])
    producer = bus.producer()
    for topic, value in ((FACE_CROPS, b"junk"), (FACE_CROPS, encode(CROP)), (PREDICTIONS, b"\x00")):
        producer.send(topic, key=b"hall", value=value, headers=(*headers(), ("from", b"hall")))
    write = DeadLetters(producer, "inference", Telemetry(()))
    crops = [
        record
        for tp, span in bus.reader(FACE_CROPS).spans().items()
        for record in bus.reader(FACE_CROPS).read(tp, *span)
    ]
    said = [
        record
        for tp, span in bus.reader(PREDICTIONS).spans().items()
        for record in bus.reader(PREDICTIONS).read(tp, *span)
    ]
    for record, reason in ((crops[1], "image"), (crops[1], "image"), (said[0], "malformed")):
        write(record, InvalidMessage(reason, "what was wrong"))
    producer.send(DEAD_LETTERS, key=b"", value=b"junk among the letters", headers=())
    yield bus
    bus.close()


def test_letters_are_listed_once_each_without_what_they_hold(bus: MemoryBus) -> None:
    """Coordinates, reason, schema; no picture."""
    letters = read_letters(bus, wanted(None, None, None, time.time()))
    assert [(letter.topic, letter.offset, letter.reason, letter.schema) for letter in letters] == [
        (FACE_CROPS, 1, "image", "1"),
        (PREDICTIONS, 0, "malformed", "1"),
    ]
    assert "as it were" not in str(document(letters))
    assert table(letters, 1).row_count == 1
    assert "1 image, 1 malformed" in str(table(letters, 1).title)


@pytest.mark.parametrize(
    ("reason", "topic", "since_s", "count"),
    [("image", None, None, 1), (None, PREDICTIONS, None, 1), ("image", PREDICTIONS, None, 0), (None, None, 60, 2)],
)
def test_letters_can_be_chosen(
    bus: MemoryBus, reason: str | None, topic: str | None, since_s: float | None, count: int
) -> None:
    """By reason, topic and age."""
    assert len(read_letters(bus, wanted(reason, topic, since_s, time.time()))) == count
    assert read_letters(bus, wanted(reason, topic, since_s, time.time() + 1000)) == [] or since_s is None


def test_a_choice_that_is_none_is_refused() -> None:
    """Both problems at once, each with what was meant."""
    with pytest.raises(ConfigError) as refused:
        wanted("imgae", "face-crop", None, 0.0)
    assert len(refused.value.problems) == 2
    assert "'image'" in str(refused.value)
    assert "'face-crops'" in str(refused.value)


def test_a_record_is_sent_in_again_as_it_was(bus: MemoryBus) -> None:
    """Key, value and headers, with a note where it came from; at the end of its own topic."""
    letters = read_letters(bus, wanted("image", None, None, time.time()))
    assert requeue(bus, letters) == (1, 0)
    reader = bus.reader(FACE_CROPS)
    (partition, span) = next((tp, span) for tp, span in reader.spans().items() if span.end)
    again = list(reader.read(partition, 2, span.end))
    assert [(record.key, record.value) for record in again] == [(b"hall", encode(CROP))]
    note = f"{partition.partition}/1".encode()
    assert again[0].headers == (*headers(), ("from", b"hall"), ("requeued-from", note))


def test_what_the_log_has_no_longer_is_said() -> None:
    """Crops are kept for minutes, letters for days."""
    clock = [1000.0]
    bus = MemoryBus(clock=lambda: clock[0])
    bus.ensure_topics([TopicSpec(FACE_CROPS, 1, 600), TopicSpec(DEAD_LETTERS, 1, 86400)])
    producer = bus.producer()
    producer.send(FACE_CROPS, key=b"hall", value=b"junk", headers=headers())
    (record,) = bus.consumer(FACE_CROPS, group="g").poll(0, 10)
    DeadLetters(producer, "inference", Telemetry(()))(record, InvalidMessage("malformed", "junk"))
    clock[0] += 700
    bus.consumer(FACE_CROPS, group="h").poll(0, 10)  # the log forgets when somebody looks
    assert requeue(bus, read_letters(bus, wanted(None, None, None, time.time()))) == (0, 1)
    bus.close()
