"""`demographics deadletters`: what could not be read, where it lies and why; and the records sent in once more.

A letter holds no contents, only coordinates: listing shows no picture, and what is sent in again comes from where it lay, while
the log still has it. Whatever of it was counted already is told by its identity, so sending in twice counts nobody twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from rich.table import Table

from pipeline.bus import DEAD_LETTERS, FACE_CROPS, PREDICTIONS, Bus, Record, TopicPartition
from pipeline.errors import ConfigError, InvalidMessage
from pipeline.messages import DeadLetter, decode
from pipeline.settings import known_names

TOPICS: Final = (FACE_CROPS, PREDICTIONS)
REQUEUED_HEADER: Final = "requeued-from"
MAX_IN_FLIGHT: Final = 200
FLUSH_S: Final = 30.0

Wanted = Callable[[DeadLetter], bool]


class Requeued(NamedTuple):
    """What became of dead letters that were to be sent in again."""

    sent: int
    gone: int  # the log has the record no longer


def wanted(reason: str | None, topic: str | None, since_s: float | None, now: float) -> Wanted:
    """Make a filter. Raises ConfigError for a reason or a topic that is none."""
    problems = []
    if reason is not None and reason not in InvalidMessage.REASONS:
        problems.append(f"--reason {reason}: no such reason; {known_names(InvalidMessage.REASONS, reason)}")
    if topic is not None and topic not in TOPICS:
        problems.append(f"--topic {topic}: no such topic; {known_names(TOPICS, topic)}")
    if problems:
        raise ConfigError(problems)

    def fits(letter: DeadLetter) -> bool:
        return (
            reason in {None, letter.reason}
            and topic in {None, letter.topic}
            and (since_s is None or letter.failed_at >= now - since_s)
        )

    return fits


def read_letters(bus: Bus, fits: Wanted) -> list[DeadLetter]:
    """Read the dead letters, oldest first; of a record that has several, the latest. Raises TransportError."""
    found: dict[tuple[str, int, int], DeadLetter] = {}
    for record in _everything(bus, DEAD_LETTERS):
        try:
            letter = decode(record.value, record.headers)
        except InvalidMessage:
            continue  # not of our making
        if isinstance(letter, DeadLetter):
            found[(letter.topic, letter.partition, letter.offset)] = letter
    return sorted((letter for letter in found.values() if fits(letter)), key=lambda letter: letter.failed_at)


def requeue(bus: Bus, letters: Iterable[DeadLetter]) -> Requeued:
    """Send the records of *letters* in again, at the end of their topic. Raises TransportError: some may have been sent."""
    producer = bus.producer(max_in_flight=MAX_IN_FLIGHT)
    sent = gone = 0
    by_topic: dict[str, list[DeadLetter]] = {}
    for letter in letters:
        by_topic.setdefault(letter.topic, []).append(letter)
    for topic, mine in by_topic.items():
        reader = bus.reader(topic)
        try:
            for letter in mine:
                partition = TopicPartition(topic, letter.partition)
                record = next(iter(reader.read(partition, letter.offset, letter.offset + 1)), None)
                if record is None:
                    gone += 1
                    continue
                where = f"{letter.partition}/{letter.offset}".encode()
                kept = tuple(header for header in record.headers if header[0] != REQUEUED_HEADER)
                producer.send(topic, key=record.key, value=record.value, headers=(*kept, (REQUEUED_HEADER, where)))
                sent += 1
        finally:
            reader.close()
    producer.flush(FLUSH_S)
    producer.close()
    return Requeued(sent, gone)


def _everything(bus: Bus, topic: str) -> Iterator[Record]:
    reader = bus.reader(topic)
    try:
        for partition, span in reader.spans().items():
            yield from reader.read(partition, span.begin, span.end)
    finally:
        reader.close()


def document(letters: Iterable[DeadLetter]) -> list[dict[str, Any]]:
    """Give dead letters as documents."""
    return [{name: getattr(letter, name) for name in letter.__struct_fields__} for letter in letters]


def table(letters: list[DeadLetter], most: int) -> Table:
    """Draw the latest *most*, and how many there are by reason."""
    reasons = Counter(letter.reason for letter in letters)
    said = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())) or "none"
    drawn = Table(title=f"dead letters: {said}", title_justify="left", pad_edge=False)
    for name in ("when", "service", "topic", "partition", "offset", "bytes", "schema", "reason", "detail"):
        drawn.add_column(name, justify="right" if name in {"partition", "offset", "bytes"} else "left")
    for letter in letters[-most:]:
        when = datetime.fromtimestamp(letter.failed_at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        drawn.add_row(
            when, letter.service, letter.topic, str(letter.partition), str(letter.offset), str(letter.size_bytes),
            letter.schema, letter.reason, letter.detail,
        )  # fmt: skip
    return drawn
