"""The aggregator's side of the worker loop: each partition's records, applied to the store exactly once.

The state of a partition is held in memory while it is ours, and loaded again whenever the store says that somebody else has
applied: two owners in the middle of a rebalance cannot both count.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from aggregator.step import Closed, CountingConfig, Step, advance, close_idle
from aggregator.store import PartitionState, Position, Store
from pipeline import telemetry as metrics
from pipeline.bus import Record, TopicPartition
from pipeline.errors import InvalidMessage
from pipeline.messages import CameraStatus, Message, Prediction, TrackEnded, decode
from pipeline.telemetry import Telemetry

log = structlog.get_logger()

IDLE_CHECK_S: Final = 5.0


class CountingHandler:
    """Applies predictions to the store. One thread owns it."""

    def __init__(
        self,
        store: Store,
        config: CountingConfig,
        telemetry: Telemetry,
        *,
        dead_letter: Callable[[Record, InvalidMessage], None],
        on_closed: Callable[[Sequence[Closed]], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._config = config
        self._telemetry = telemetry
        self._dead_letter = dead_letter
        self._on_closed = on_closed
        self._clock = clock
        self._held: dict[int, PartitionState] = {}
        self._heard: dict[int, dict[str, float]] = defaultdict(dict)  # partition -> camera -> processing time
        self._checked = 0.0

    def start_at(self, partition: TopicPartition) -> int | None:
        """Say where to read from: after what the counts hold, whatever has been committed."""
        state = self._held[partition.partition] = self._store.load(partition.partition)
        now = self._clock()
        self._heard[partition.partition] = {key[0]: now for key in state.tracks}
        return state.position.offset if state.position else None

    def handle(self, records: Sequence[Record]) -> None:
        """Apply the records; returns once the store holds them. Raises TransportError: repeat the call."""
        by_partition: defaultdict[int, list[Record]] = defaultdict(list)
        for record in records:
            by_partition[record.partition].append(record)
        for partition, mine in by_partition.items():
            self._apply(partition, mine)

    def idle(self, assignment: frozenset[TopicPartition], lag: Callable[[TopicPartition], int]) -> None:
        """Close the tracks of cameras that have gone silent, where everything there is has been read."""
        now = self._clock()
        if now - self._checked < IDLE_CHECK_S:
            return
        self._checked = now
        for gone in self._held.keys() - {owned.partition for owned in assignment}:
            del self._held[gone]
        for owned in assignment:
            state = self._held.get(owned.partition)
            if state is None or state.position is None or lag(owned):
                continue
            heard = self._heard[owned.partition]
            waiting = {key[0] for key, track in state.tracks.items() if not track.closed}
            silent = {camera for camera in waiting if now - heard.setdefault(camera, now) > self._config.idle_s}
            if silent:
                step = close_idle(state.tracks, silent, self._config)
                log.info("silent_cameras_closed", cameras=sorted(silent), tracks=len(step.closed))
                self._commit(owned.partition, state, step, state.position.offset)
        self._telemetry.set(
            metrics.OPEN_TRACKS,
            sum(not track.closed for state in self._held.values() for track in state.tracks.values()),
        )

    def _apply(self, partition: int, records: list[Record]) -> None:
        while True:
            state = self._held.get(partition)
            if state is None:
                state = self._held[partition] = self._store.load(partition)
            done = state.position.offset if state.position else 0
            fresh = [record for record in records if record.offset >= done]
            if not fresh:
                return
            messages = self._decode(fresh)
            step = advance(state.tracks, messages, self._config)
            if self._commit(partition, state, step, fresh[-1].offset + 1):
                self._observe(messages, step, fresh)
                return

    def _commit(self, partition: int, state: PartitionState, step: Step, offset: int) -> bool:
        end = Position(offset, state.position.revision + 1 if state.position else 1)
        if not self._store.apply(partition, step.changes, start=state.position, end=end):
            log.warning("partition_applied_elsewhere", partition=partition, position=state.position)
            del self._held[partition]
            return False
        for key, track in step.changes.tracks.items():
            if track is None:
                state.tracks.pop(key, None)
            else:
                state.tracks[key] = track
        self._held[partition] = PartitionState(end, state.tracks)
        now = self._clock()
        heard = self._heard[partition]
        for camera in {key[0] for key in step.changes.tracks} | step.changes.cameras.keys():
            heard[camera] = now
        if self._on_closed and step.closed:
            self._on_closed(step.closed)
        return True

    def _decode(self, records: list[Record]) -> list[Message]:
        messages: list[Message] = []
        for record in records:
            try:
                message = decode(record.value, record.headers)
                if not isinstance(message, (Prediction, TrackEnded, CameraStatus)):
                    raise InvalidMessage("malformed", f"a {type(message).__name__} is not for this topic")  # noqa: TRY301
            except InvalidMessage as error:
                self._dead_letter(record, error)
            else:
                messages.append(message)
        return messages

    def _observe(self, messages: list[Message], step: Step, records: list[Record]) -> None:
        now = self._clock()
        self._telemetry.add(metrics.APPLIED, len(records))
        for record in records:
            self._telemetry.observe(metrics.BUS_TO_COUNT, max(0.0, now - record.timestamp))
        self._telemetry.add(metrics.DUPLICATES, step.duplicates)
        oldest = now - self._config.longest_window_s
        self._telemetry.add(metrics.LATE, sum(closed.track.first_seen < oldest for closed in step.closed))
        for message in messages:
            if isinstance(message, Prediction):
                self._telemetry.observe(metrics.CAPTURE_TO_COUNT, max(0.0, now - message.captured_at))
