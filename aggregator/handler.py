"""The aggregator's side of the worker loop: each partition's records, applied to the store exactly once.

A partition's state is held in memory while it is ours. The store's compare is the fence: where it says that its position is
not the one that we hold, another owner has applied, or the store has lost its latest steps. Either way what we hold is worth
nothing. It is dropped, and the partition is read again from where the store is: two owners in the middle of a rebalance cannot
both count, and a store that came back older than it was is filled up from the log.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from aggregator.step import Closed, CountingConfig, Step, Tracks, advance, ends_of
from aggregator.store import Position, Store
from aggregator.windows import MOST_AHEAD_S
from pipeline import telemetry as metrics
from pipeline.bus import Record, Span, TopicPartition
from pipeline.errors import InvalidMessage
from pipeline.messages import CameraStatus, Prediction, TrackEnded, connection_of, decode
from pipeline.telemetry import Telemetry

log = structlog.get_logger()

IDLE_CHECK_S: Final = 5.0

Counted = Prediction | TrackEnded | CameraStatus
"""What the topic of predictions is for."""


@dataclass
class _Held:
    """One partition while it is ours."""

    position: Position | None  # in the store
    next: int  # the offset that comes next
    tracks: Tracks
    heard: dict[str, float]  # camera -> processing time


class CountingHandler:
    """Applies predictions to the store. One thread owns it."""

    def __init__(
        self,
        store: Store,
        config: CountingConfig,
        telemetry: Telemetry,
        *,
        dead_letter: Callable[[Record, InvalidMessage], None],
        publish: Callable[[Sequence[TrackEnded]], None],
        settle: Callable[[], None] = lambda: None,
        on_closed: Callable[[Sequence[Closed]], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Set up. *publish* appends ends to the log of predictions, *settle* makes dead letters durable.

        Both may raise TransportError.
        """
        self._store = store
        self._config = config
        self._telemetry = telemetry
        self._dead_letter = dead_letter
        self._publish = publish
        self._settle = settle
        self._on_closed = on_closed
        self._clock = clock
        self._held: dict[int, _Held] = {}
        self._holes: dict[int, tuple[int, int]] = {}  # partition -> the offsets that were missing the last time
        self._checked = 0.0

    def start_at(self, partition: TopicPartition, span: Span) -> int:
        """Say where to read from: after what the counts hold, whatever has been committed."""
        number = partition.partition
        self._held.pop(number, None)
        state = self._store.load(number)
        start = self._start(number, state.position, span)
        tracks = Tracks(state.tracks, state.clocks)
        now = self._clock()
        self._held[number] = _Held(state.position, start, tracks, dict.fromkeys(tracks.waiting(), now))
        return start

    def handle(self, records: Sequence[Record]) -> frozenset[TopicPartition]:
        """Apply the records; returns once the store holds them. Names the partitions that have to be read again.

        Raises TransportError: repeat the call.
        """
        by_partition: defaultdict[int, list[Record]] = defaultdict(list)
        for record in records:
            by_partition[record.partition].append(record)
        return frozenset(
            mine[0].topic_partition for partition, mine in by_partition.items() if not self._apply(partition, mine)
        )

    def idle(
        self, assignment: frozenset[TopicPartition], lag: Callable[[TopicPartition], int]
    ) -> frozenset[TopicPartition]:
        """Now and then, look whether the store still is where we left it, and end the tracks of cameras that have gone silent.

        Names the partitions that have to be read again. Raises TransportError: it is called again.
        """
        now = self._clock()
        if now - self._checked < IDLE_CHECK_S:
            return frozenset()
        self._checked = now
        for gone in self._held.keys() - {owned.partition for owned in assignment}:
            del self._held[gone]
        self._drop_moved()
        for owned in assignment:
            held = self._held.get(owned.partition)
            if held is not None and held.position is not None and not lag(owned):
                self._end_silent(held, now)
        self._telemetry.set(metrics.OPEN_TRACKS, sum(len(held.tracks.open()) for held in self._held.values()))
        return frozenset(owned for owned in assignment if owned.partition not in self._held)

    def _start(self, partition: int, position: Position | None, span: Span) -> int:
        if position is None:
            if span.begin:  # a store that is new, or has lost its counts, gets what the log still has
                log.warning("counts_rebuilt_in_part", partition=partition, from_offset=span.begin, missing=span.begin)
                self._telemetry.add(metrics.MISSING, span.begin)
            return span.begin
        if position.offset < span.begin:
            missing = span.begin - position.offset
            log.error("records_expired_uncounted", partition=partition, from_offset=position.offset, missing=missing)
            self._telemetry.add(metrics.MISSING, missing)
            return span.begin
        if position.offset > span.end:  # deleted and made again, or cut off: what it holds now has not been counted
            log.error("log_is_another", partition=partition, applied=position.offset, begin=span.begin, end=span.end)
            return span.begin
        return position.offset

    def _drop_moved(self) -> None:
        """Drop the partitions whose position in the store is not the one that we left."""
        positions = self._store.positions(self._held)
        moved = {partition for partition, held in self._held.items() if held.position != positions[partition]}
        for partition in moved:
            log.warning(
                "store_is_elsewhere",
                partition=partition,
                held=self._held[partition].position,
                store=positions[partition],
            )
            del self._held[partition]

    def _end_silent(self, held: _Held, now: float) -> None:
        """Say in the log that the tracks of silent cameras have ended; they are closed when that is read.

        So the counts stay a function of the log, though the silence is one of processing time.
        """
        silent = {
            camera for camera in held.tracks.waiting() if now - held.heard.setdefault(camera, now) > self._config.idle_s
        }
        if silent:
            held.heard.update(dict.fromkeys(silent, now))  # where it fails, the bus is silent, and not the cameras
            ends = ends_of(held.tracks, silent)
            self._publish(ends)
            log.info("silent_cameras_ended", cameras=sorted(silent), tracks=len(ends))

    def _apply(self, partition: int, records: list[Record]) -> bool:
        """Apply one partition's records; False where it has to be read again."""
        held = self._held.pop(partition, None)  # and put back once the store has taken the step
        if held is None:
            return False
        fresh, whole = self._fresh(partition, held, records)
        if fresh:
            messages = self._decode(fresh)
            step = advance(held.tracks, messages, self._config)
            end = Position(fresh[-1].offset + 1, held.position.revision + 1 if held.position else time.time_ns())
            if not self._store.apply(partition, step.changes, start=held.position, end=end):
                log.warning("partition_applied_elsewhere", partition=partition, position=held.position)
                return False
            held.position, held.next = end, end.offset
            self._observe(held, messages, step, fresh)
        if whole:
            self._held[partition] = held
        return whole

    def _fresh(self, partition: int, held: _Held, records: list[Record]) -> tuple[list[Record], bool]:
        """Give the records that come next, up to where some are missing, unless the same were the last time; and whether all.

        The reader may have been put elsewhere in the middle of a batch. Asked once more, what is missing is not in the log.
        """
        fresh: list[Record] = []
        offset = held.next
        for record in records:
            if record.offset < offset:
                continue
            if record.offset > offset:
                if self._holes.get(partition) != (offset, record.offset):
                    self._holes[partition] = (offset, record.offset)
                    return fresh, False
                log.warning(
                    "offsets_missing_in_log", partition=partition, offset=offset, missing=record.offset - offset
                )
            fresh.append(record)
            offset = record.offset + 1
        return fresh, True

    def _decode(self, records: list[Record]) -> list[Counted]:
        messages: list[Counted] = []
        letters = 0
        for record in records:
            try:
                messages.append(_decode_one(record))
            except InvalidMessage as error:
                self._dead_letter(record, error)
                letters += 1
        if letters:
            self._settle()  # before the position moves past them
        return messages

    def _observe(self, held: _Held, messages: list[Counted], step: Step, records: list[Record]) -> None:
        now = self._clock()
        tell = self._telemetry.observe_all
        tell(metrics.BUS_TO_COUNT, [max(0.0, now - record.timestamp) for record in records])
        captured = [message.captured_at for message in messages if isinstance(message, Prediction)]
        tell(metrics.CAPTURE_TO_COUNT, [max(0.0, now - at) for at in captured])
        held.heard.update(dict.fromkeys({message.camera_id for message in messages}, now))
        self._telemetry.add(metrics.APPLIED, len(records))
        self._telemetry.add(metrics.DUPLICATES, step.duplicates)
        self._telemetry.add(metrics.TOO_LATE, step.too_late)
        oldest = now - self._config.longest_window_s
        self._telemetry.add(metrics.LATE, sum(closed.track.first_seen < oldest for closed in step.closed))
        if self._on_closed and step.closed:
            self._on_closed(step.closed)


def _decode_one(record: Record) -> Counted:
    """Decode a record of the topic of predictions. Raises InvalidMessage.

    One event far in the future would move its camera's clock there, and leave behind every track that comes after.
    """
    message = decode(record.value, record.headers)
    latest = record.timestamp + MOST_AHEAD_S
    if isinstance(message, Prediction):
        ahead = message.captured_at > latest or message.first_seen > latest
    elif isinstance(message, TrackEnded):
        ahead = message.last_seen > latest or message.first_seen > latest
    elif isinstance(message, CameraStatus):
        return message
    else:
        raise InvalidMessage("malformed", f"a {type(message).__name__} is not for this topic")
    if ahead or connection_of(message.track_id) > latest:
        raise InvalidMessage(
            "future", f"more than {MOST_AHEAD_S:.0f} s ahead of the log's clock; check the clock of the ingest worker"
        )
    return message
