"""Messages of one partition to changes of its counts: plain functions, repeatable, free of I/O.

    predictions   0 ─ 1 ─────── 2 ─────── 3 ── ended
    the cell          counted   corrected       total + 1
                      as 18-24  to 25-34

Whatever comes again, or after the end, changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import NamedTuple

from msgspec.structs import replace

from aggregator.fields import dwell_bucket
from aggregator.fusion import Visitor, evidence_of, fuse
from aggregator.store import Changes, PlaceCell, TrackKey, TrackState
from pipeline.messages import CameraStatus, Message, Prediction, TrackEnded


@dataclass(frozen=True, slots=True)
class CountingConfig:
    """When a visitor is counted, closed, forgotten. Times in seconds."""

    enough_crops: int = 2
    least_evidence: float = 0.15
    idle_s: float = 60.0
    remember_s: float = 3600.0
    longest_window_s: float = 86400.0


class Closed(NamedTuple):
    """A track that has ended in this step, and what it was counted as."""

    track: TrackState
    visitor: Visitor


@dataclass
class Step:
    """One batch's outcome."""

    changes: Changes = field(default_factory=Changes)
    closed: list[Closed] = field(default_factory=list)
    duplicates: int = 0


class _Tracks:
    """The tracks as this step leaves them: what is held, overlaid by what has changed."""

    def __init__(
        self, held: Mapping[TrackKey, TrackState], changed: MutableMapping[TrackKey, TrackState | None]
    ) -> None:
        self._held = held
        self._changed = changed

    def get(self, key: TrackKey) -> TrackState | None:
        return self._changed[key] if key in self._changed else self._held.get(key)

    def put(self, state: TrackState) -> None:
        self._changed[(state.camera_id, state.track_id)] = state


def advance(held: Mapping[TrackKey, TrackState], messages: Iterable[Message], config: CountingConfig) -> Step:
    """Take in the next *messages* of a partition, in order, on top of the tracks *held*."""
    step = Step()
    tracks = _Tracks(held, step.changes.tracks)
    clocks: dict[str, float] = {}
    for message in messages:
        if isinstance(message, Prediction):
            clocks[message.camera_id] = max(clocks.get(message.camera_id, 0.0), message.captured_at)
            _hear(step, tracks, message, config)
        elif isinstance(message, TrackEnded):
            clocks[message.camera_id] = max(clocks.get(message.camera_id, 0.0), message.last_seen)
            _end(step, tracks, message, config)
        elif isinstance(message, CameraStatus):
            step.changes.cameras[message.camera_id] = message
    _tidy(step, tracks, {*held, *step.changes.tracks}, clocks, config)
    return step


def close_idle(held: Mapping[TrackKey, TrackState], silent: Iterable[str], config: CountingConfig) -> Step:
    """Close the open tracks of cameras that have gone *silent*: nobody will say that they ended."""
    step = Step()
    tracks, gone = _Tracks(held, step.changes.tracks), set(silent)
    for state in held.values():
        if not state.closed and state.camera_id in gone:
            _close(step, tracks, state, config)
    return step


def _hear(step: Step, tracks: _Tracks, prediction: Prediction, config: CountingConfig) -> None:
    state = tracks.get((prediction.camera_id, prediction.track_id)) or TrackState(
        prediction.site, prediction.camera_id, prediction.track_id, prediction.first_seen, prediction.captured_at
    )
    if state.closed or any(item.sequence == prediction.sequence for item in state.evidence):
        step.duplicates += 1
        return
    evidence = (*state.evidence, evidence_of(prediction))
    state = replace(state, evidence=evidence, last_seen=max(state.last_seen, prediction.captured_at))
    if len(evidence) >= config.enough_crops:
        state = _recount(step, state, fuse(evidence, config.least_evidence))
    tracks.put(state)


def _end(step: Step, tracks: _Tracks, ended: TrackEnded, config: CountingConfig) -> None:
    state = tracks.get((ended.camera_id, ended.track_id)) or TrackState(
        ended.site, ended.camera_id, ended.track_id, ended.first_seen, ended.last_seen
    )
    if state.closed:
        step.duplicates += 1
        return
    state = replace(state, last_seen=max(state.last_seen, ended.last_seen))
    _add_passage(step, ended)
    if ended.visitor:
        _close(step, tracks, state, config)
    else:  # remembered like a visitor, so that a repetition counts no crossing twice
        tracks.put(replace(state, evidence=(), closed=True))


def _add_passage(step: Step, ended: TrackEnded) -> None:
    """Count the crossings of a passage, and for a visitor its dwell."""
    place = (ended.site, ended.camera_id)
    for label, amount in (("in", ended.entries), ("out", ended.exits)):
        if amount:
            step.changes.passages[("x", *place, label)] += amount
    if ended.visitor and ended.dwell_s is not None:
        step.changes.passages[("d", *place, dwell_bucket(ended.dwell_s))] += 1
        step.changes.passages[("t", *place, "ms")] += round(1000 * ended.dwell_s)


def _close(step: Step, tracks: _Tracks, state: TrackState, config: CountingConfig) -> None:
    visitor = fuse(state.evidence, config.least_evidence)
    state = _recount(step, state, visitor)
    step.changes.totals[PlaceCell(state.site, state.camera_id, visitor.cell)] += 1
    step.closed.append(Closed(state, visitor))
    tracks.put(replace(state, evidence=(), closed=True))


def _recount(step: Step, state: TrackState, visitor: Visitor) -> TrackState:
    """Count the visitor in the cell that the evidence now says, and take it out of the one that it said before."""
    if visitor.cell == state.counted:
        return state
    counted = step.changes.counted
    if state.counted is not None:
        counted[(state.first_seen, PlaceCell(state.site, state.camera_id, state.counted))] -= 1
    counted[(state.first_seen, PlaceCell(state.site, state.camera_id, visitor.cell))] += 1
    return replace(state, counted=visitor.cell)


def _tidy(
    step: Step, tracks: _Tracks, keys: Iterable[TrackKey], clocks: Mapping[str, float], config: CountingConfig
) -> None:
    """Close what the camera's own later evidence has left behind, and forget what nobody will repeat any more."""
    if not clocks:
        return
    for key in sorted(keys):
        state, clock = tracks.get(key), clocks.get(key[0])
        if state is None or clock is None:
            continue
        if not state.closed and clock - state.last_seen > config.idle_s:
            _close(step, tracks, state, config)
        elif state.closed and clock - state.last_seen > config.remember_s:
            step.changes.tracks[key] = None
