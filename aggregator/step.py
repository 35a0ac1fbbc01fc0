"""Messages of one partition to changes of its counts: plain functions, repeatable, free of I/O.

    predictions   0 ─ 1 ─────── 2 ─────── 3 ── ended
    the cell          counted   corrected       total + 1
                      as 18-24  to 25-34

Whatever comes again, or after the end, changes nothing. Each message is taken in by itself, in the order of the log, so that
the counts are a function of the log alone: however it is cut into batches, whoever applies them, however often.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from msgspec import UNSET
from msgspec.structs import replace

from aggregator.fields import dwell_bucket
from aggregator.fusion import Visitor, evidence_of, fuse
from aggregator.store import CameraClock, Changes, PlaceCell, TrackKey, TrackState
from pipeline.attributes import ATTRIBUTES, Attribute
from pipeline.messages import CameraStatus, Message, Prediction, TrackEnded, connection_of


@dataclass(frozen=True, slots=True)
class CountingConfig:
    """When a visitor is counted, closed, forgotten. Times in seconds."""

    enough_crops: int = 2
    least_evidence: float = 0.15
    idle_s: float = 60.0
    remember_s: float = 3600.0
    longest_window_s: float = 86400.0
    attributes: frozenset[Attribute] = frozenset(ATTRIBUTES)  # what is kept; the rest of what the log says is not


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
    too_late: int = 0
    unsettled: set[TrackKey] = field(default_factory=set)
    """Open tracks with new evidence, whose cell has not been looked at yet: only the last one of a step is counted."""


class Tracks:
    """The tracks and clocks of one partition as the steps so far leave them.

    `advance` moves it on, so that a step costs what is new in it, not what is remembered. Where a step was not applied, its
    tracks are worth nothing: load them again.
    """

    def __init__(self, tracks: Mapping[TrackKey, TrackState], clocks: Mapping[str, CameraClock]) -> None:
        self.clocks = dict(clocks)
        self._known: dict[TrackKey, TrackState] = {}
        self._open: defaultdict[str, dict[int, TrackState]] = defaultdict(dict)
        self._idle_from: dict[str, float] = {}  # no open track of the camera was heard of last before
        self._closed: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)  # heaps: last seen, track
        for state in tracks.values():
            self.put(state)

    def move(self, camera: str, clock: CameraClock) -> None:
        """Set a camera's clock."""
        before = self.clocks.get(camera)
        self.clocks[camera] = clock
        if before is not None and clock.connection != before.connection:
            self._idle_from[camera] = 0.0  # tracks of earlier connections are judged anew

    def get(self, key: TrackKey) -> TrackState | None:
        """Give a track, open or closed, as long as it is remembered."""
        return self._known.get(key)

    def put(self, state: TrackState) -> None:
        """Take in a track's new state. What is closed is not put again."""
        camera, track = state.camera_id, state.track_id
        self._known[(camera, track)] = state
        if state.closed:
            self._open[camera].pop(track, None)
            heapq.heappush(self._closed[camera], (state.last_seen, track))
        else:
            self._open[camera][track] = state
            if state.last_seen < self._idle_from.get(camera, inf):
                self._idle_from[camera] = state.last_seen

    def open(self, cameras: Collection[str] | None = None) -> list[TrackState]:
        """List the open tracks, of all cameras or of those named."""
        wanted = self._open.keys() if cameras is None else [camera for camera in cameras if camera in self._open]
        return [state for camera in wanted for state in self._open[camera].values()]

    def waiting(self) -> set[str]:
        """Name the cameras that have open tracks."""
        return {camera for camera, tracks in self._open.items() if tracks}

    def idle(self, clock: CameraClock, camera: str, idle_s: float) -> list[TrackState]:
        """List the open tracks that the camera's clock has left behind by more than *idle_s*, oldest first."""
        if clock.now - self._idle_from.get(camera, clock.now) <= idle_s:
            return []
        heard = {track: _heard_last(state, clock) for track, state in self._open[camera].items()}
        gone = [state for track, state in self._open[camera].items() if clock.now - heard[track] > idle_s]
        self._idle_from[camera] = min((at for at in heard.values() if clock.now - at <= idle_s), default=clock.now)
        return sorted(gone, key=lambda state: (state.last_seen, state.track_id))

    def forget(self, clock: CameraClock, camera: str, remember_s: float) -> list[TrackKey]:
        """Drop the closed tracks that are too old to be told from new ones, and name them."""
        closed = self._closed[camera]
        gone: list[TrackKey] = []
        while closed and clock.now - closed[0][0] > remember_s:
            _, track = heapq.heappop(closed)
            del self._known[(camera, track)]
            gone.append((camera, track))
        return gone


def _heard_last(state: TrackState, clock: CameraClock) -> float:
    """Say when a track was heard of last, by the clock of the newest connection."""
    return state.last_seen if connection_of(state.track_id) >= clock.connection else max(state.last_seen, clock.began)


def advance(tracks: Tracks, messages: Iterable[Message], config: CountingConfig) -> Step:
    """Take in the next *messages* of a partition, in order; moves *tracks* on."""
    step = Step()
    for message in messages:
        if isinstance(message, Prediction):
            _take_in(step, tracks, message, message.captured_at, config)
        elif isinstance(message, TrackEnded):
            _take_in(step, tracks, message, message.last_seen, config)
        elif isinstance(message, CameraStatus):
            step.changes.cameras[message.camera_id] = message
    for key in step.unsettled:
        state = tracks.get(key)
        assert state is not None, "an open track is not forgotten"
        _put(step, tracks, _recount(step, state, fuse(state.evidence, config.least_evidence, config.attributes)))
    step.unsettled.clear()
    return step


def ends_of(tracks: Tracks, silent: Collection[str]) -> list[TrackEnded]:
    """Say the ends that cameras which have gone *silent* will not say. They count once they have been through the log."""
    return [
        TrackEnded(
            camera_id=state.camera_id,
            site=state.site,
            track_id=state.track_id,
            first_seen=state.first_seen,
            last_seen=state.last_seen,
            crops=len(state.evidence),
        )
        for state in tracks.open(silent)
    ]


def _take_in(step: Step, tracks: Tracks, message: Prediction | TrackEnded, at: float, config: CountingConfig) -> None:
    camera = message.camera_id
    before = tracks.clocks.get(camera)
    clock = _moved(before, connection_of(message.track_id), at)
    if clock is not before:
        tracks.move(camera, clock)
        step.changes.clocks[camera] = clock
    state = tracks.get((camera, message.track_id))
    if state is None and _is_forgotten(message, clock, at, config):
        step.too_late += 1
    elif isinstance(message, Prediction):
        _hear(step, tracks, state, message, config)
    else:
        _end(step, tracks, state, message, config)
    for idle in tracks.idle(clock, camera, config.idle_s):
        _close(step, tracks, idle, config)
    for key in tracks.forget(clock, camera, config.remember_s):
        step.changes.tracks[key] = None


def _moved(clock: CameraClock | None, connection: int, at: float) -> CameraClock:
    """Give the camera's clock after an event of *connection* at *at*."""
    if clock is None:
        return CameraClock(connection, at, at)
    if connection > clock.connection:
        return CameraClock(connection, at, at, max(clock.now, clock.before))
    if connection == clock.connection and at > clock.now:
        return CameraClock(connection, clock.began, at, clock.before)
    return clock


def _is_forgotten(message: Prediction | TrackEnded, clock: CameraClock, at: float, config: CountingConfig) -> bool:
    """Tell whether an unknown track may be one that was counted and forgotten: it is not counted then.

    The first thing that is ever said of a track is judged by its own time, whatever comes later by the track's first sight:
    a track is forgotten only when all that was said of it is too old by this rule.
    """
    first_word = message.sequence == 0 if isinstance(message, Prediction) else message.crops == 0
    now = clock.now if connection_of(message.track_id) == clock.connection else max(clock.now, clock.before)
    return now - (at if first_word else message.first_seen) > config.remember_s


def _hear(step: Step, tracks: Tracks, state: TrackState | None, prediction: Prediction, config: CountingConfig) -> None:
    state = state or TrackState(
        prediction.site, prediction.camera_id, prediction.track_id, prediction.first_seen, prediction.captured_at
    )
    if state.closed or prediction.sequence in [item.sequence for item in state.evidence]:
        step.duplicates += 1
        return
    evidence = (*state.evidence, evidence_of(prediction, config.attributes))
    state = replace(state, evidence=evidence, last_seen=max(state.last_seen, prediction.captured_at))
    if len(evidence) >= config.enough_crops:
        step.unsettled.add((state.camera_id, state.track_id))
    _put(step, tracks, state)


def _end(step: Step, tracks: Tracks, state: TrackState | None, ended: TrackEnded, config: CountingConfig) -> None:
    state = state or TrackState(ended.site, ended.camera_id, ended.track_id, ended.first_seen, ended.last_seen)
    if state.closed:
        step.duplicates += 1
        return
    state = replace(state, last_seen=max(state.last_seen, ended.last_seen))
    _add_passage(step, ended)
    if ended.visitor:
        _close(step, tracks, state, config, allowed=ATTRIBUTES if ended.attributes is UNSET else ended.attributes)
    else:  # remembered like a visitor, so that a repetition counts no crossing twice
        step.unsettled.discard((state.camera_id, state.track_id))
        _put(step, tracks, replace(_taken_back(step, state), evidence=(), closed=True))


def _add_passage(step: Step, ended: TrackEnded) -> None:
    """Count the crossings of a passage, and for a visitor its dwell."""
    place = (ended.site, ended.camera_id)
    for label, amount in (("in", ended.entries), ("out", ended.exits)):
        if amount:
            step.changes.passages[("x", *place, label)] += amount
    if ended.visitor and ended.dwell_s is not None:
        step.changes.passages[("d", *place, dwell_bucket(ended.dwell_s))] += 1
        step.changes.passages[("t", *place, "ms")] += round(1000 * ended.dwell_s)


def _close(
    step: Step,
    tracks: Tracks,
    state: TrackState,
    config: CountingConfig,
    *,
    allowed: Collection[Attribute] = ATTRIBUTES,
) -> None:
    step.unsettled.discard((state.camera_id, state.track_id))
    visitor = fuse(state.evidence, config.least_evidence, config.attributes.intersection(allowed))
    state = _recount(step, state, visitor)
    step.changes.totals[PlaceCell(state.site, state.camera_id, visitor.cell)] += 1
    step.closed.append(Closed(state, visitor))
    _put(step, tracks, replace(state, evidence=(), closed=True))


def _taken_back(step: Step, state: TrackState) -> TrackState:
    """Take a track out of the cell that it was counted in early: it has turned out to be no visitor."""
    if state.counted is not None:
        step.changes.counted[(state.first_seen, PlaceCell(state.site, state.camera_id, state.counted))] -= 1
    return replace(state, counted=None)


def _put(step: Step, tracks: Tracks, state: TrackState) -> None:
    tracks.put(state)
    step.changes.tracks[(state.camera_id, state.track_id)] = state


def _recount(step: Step, state: TrackState, visitor: Visitor) -> TrackState:
    """Count the visitor in the cell that the evidence now says, and take it out of the one that it said before."""
    if visitor.cell == state.counted:
        return state
    counted = step.changes.counted
    if state.counted is not None:
        counted[(state.first_seen, PlaceCell(state.site, state.camera_id, state.counted))] -= 1
    counted[(state.first_seen, PlaceCell(state.site, state.camera_id, visitor.cell))] += 1
    return replace(state, counted=visitor.cell)
