"""The loop every consuming service runs: poll, decode, handle, commit.

Law 1: a handler returns once its effects are durable, and only then are offsets committed. A crash in between replays the
batch, so handlers are written to be repeated.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Final, Protocol

import structlog

from pipeline import telemetry as metrics
from pipeline.bus import DEAD_LETTERS, Consumer, Producer, Record, TopicPartition
from pipeline.errors import InvalidMessage, TransportError
from pipeline.messages import SCHEMA_HEADER, DeadLetter, encode, headers
from pipeline.telemetry import Telemetry

log = structlog.get_logger()

COMMIT_INTERVAL_S: Final = 1.0
LAG_INTERVAL_S: Final = 2.0
LONGEST_PAUSE_S: Final = 5.0
LOOKS: Final = 4  # for more records, while a batch waits to be filled
_CAMERA_ID: Final = re.compile(rb"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class Handler(Protocol):
    """What one service does with a batch."""

    def handle(self, records: Sequence[Record]) -> Collection[TopicPartition]:
        """Do it; return once it is durable. Raises TransportError: the same batch is handed in again.

        Names the partitions whose records were not taken: they are read again, from where `start_at` says.
        """

    def idle(self) -> Collection[TopicPartition]:
        """Do what time asks for, between batches. Raises TransportError: it is called again.

        Names partitions to be read again, as `handle` does.
        """


class DeadLetters:
    """Writes down where an undecodable record lies and why; never what it held."""

    def __init__(self, producer: Producer, service: str, telemetry: Telemetry) -> None:
        self._producer = producer
        self._service = service
        self._telemetry = telemetry

    def __call__(self, record: Record, error: InvalidMessage) -> None:
        """Dead-letter *record*. Durable with the producer's next flush. Raises TransportError."""
        letter = DeadLetter(
            reason=error.reason,
            detail=error.detail[:300],
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            schema=dict(record.headers).get(SCHEMA_HEADER, b"").decode("ascii", "replace")[:16],
            size_bytes=len(record.value),
            failed_at=time.time(),
            service=self._service,
        )
        # A key that is no camera's may be anything, a piece of what the record should have held among it.
        key = record.key if _CAMERA_ID.fullmatch(record.key) else b""
        value = encode(letter)
        self._producer.send(DEAD_LETTERS, key=key, value=value, headers=headers(value))
        self._telemetry.add(metrics.DEAD_LETTERS_TOTAL, reason=error.reason)
        log.warning(
            "dead_letter",
            reason=error.reason,
            detail=error.detail[:300],
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
        )


class Worker:
    """Runs a handler over a topic until it is stopped."""

    def __init__(
        self,
        consumer: Consumer,
        handler: Handler,
        telemetry: Telemetry,
        *,
        max_records: int,
        max_wait_s: float,
        enough: int | None = None,
    ) -> None:
        """Set up. A batch waits until it has *enough* records, or *max_wait_s* after its first; it takes up to *max_records*.

        Without *enough* it waits for *max_records*.
        """
        self._consumer = consumer
        self._handler = handler
        self._telemetry = telemetry
        self._max_records = max_records
        self._enough = max_records if enough is None else enough
        self._max_wait_s = max_wait_s
        self._uncommitted: dict[TopicPartition, int] = {}
        self._commit_due = self._lag_due = 0.0
        self.ready = threading.Event()  # partitions are ours, or nobody has any for us

    def run(self, stop: threading.Event) -> None:
        """Run until *stop* is set; then commit what is done."""
        while not stop.is_set():
            try:
                batch = self.collect()
            except TransportError as error:
                self._failed("poll", error)
                stop.wait(1.0)
                continue
            if batch and not self._handle(batch, stop):
                break
            try:
                self._begin_again(self._handler.idle())
            except TransportError as error:
                self._failed("idle", error)
                stop.wait(1.0)
            self._commit_if_due(now=time.monotonic())
            self._say_lag()
        self._commit_if_due(now=float("inf"))

    def collect(self) -> list[Record]:
        """Gather one batch; empty when nothing came for a moment. Raises TransportError."""
        batch = list(self._consumer.poll(0.2, self._max_records))
        self.ready.set()
        first_at = time.monotonic()
        deadline = first_at + self._max_wait_s
        while batch and len(batch) < self._enough and (left := deadline - time.monotonic()) > 0:
            # A poll comes back with the first record there is: one poll a record costs more than the record.
            time.sleep(min(left, self._max_wait_s / LOOKS))
            try:
                more = self._consumer.poll(0.0, self._max_records - len(batch))
            except TransportError as error:  # what has been read must not be passed over
                self._failed("poll", error)
                break
            ours = self._consumer.assignment()  # a batch does not outlive the partitions it came from
            batch = [*(record for record in batch if record.topic_partition in ours), *more]
        if batch:
            self._telemetry.observe(metrics.BATCH_WAIT, time.monotonic() - first_at)
        return batch

    def _handle(self, batch: list[Record], stop: threading.Event) -> bool:
        """Handle the batch, again and again until it is durable; False when stopped before that."""
        pause_s = 0.1
        while True:
            try:
                again = frozenset(self._handler.handle(batch))
                break
            except TransportError as error:
                self._failed("handle", error)
                if stop.wait(pause_s):
                    return False
                pause_s = min(LONGEST_PAUSE_S, pause_s * 2)
        handled: Counter[str] = Counter()
        for record in batch:
            if record.topic_partition not in again:
                self._uncommitted[record.topic_partition] = record.offset + 1
                handled[record.topic] += 1
        for topic, records in handled.items():
            self._telemetry.add(metrics.RECORDS, records, topic=topic)
        self._begin_again(again)
        return True

    def _begin_again(self, partitions: Collection[TopicPartition]) -> None:
        if partitions:
            for partition in partitions:
                self._uncommitted.pop(partition, None)
            self._consumer.begin_again(partitions)

    def _commit_if_due(self, now: float) -> None:
        if not self._uncommitted or now < self._commit_due:
            return
        try:
            self._consumer.commit(self._uncommitted)
        except TransportError as error:
            self._failed("commit", error)  # replayed at worst, and handlers are repeatable
            return
        self._uncommitted.clear()
        self._commit_due = time.monotonic() + COMMIT_INTERVAL_S

    def _say_lag(self) -> None:
        if time.monotonic() < self._lag_due:
            return
        self._lag_due = time.monotonic() + LAG_INTERVAL_S
        self._telemetry.forget(metrics.LAG)  # a partition that went elsewhere is said there
        for owned, lag in self._consumer.lag().items():
            self._telemetry.set(metrics.LAG, lag, topic=owned.topic, partition=str(owned.partition))

    def _failed(self, doing: str, error: TransportError) -> None:
        self._telemetry.add(metrics.BUS_FAILURES)
        log.warning("worker_retries", doing=doing, detail=str(error))
