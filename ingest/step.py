"""One look at one camera's picture: faces to tracks, tracks to the messages that are due.

Plain functions on values; the camera loop in camera.py brings the pictures and takes the messages away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from ingest.detector import FaceBox, Image
from ingest.pictures import Gallery, Stillness
from ingest.quality import QUALITY_FAULTS, QualityBar, assess
from ingest.rules import Progress, Rule
from ingest.selection import Candidate, Selection, SelectionConfig
from ingest.tracker import Track, Tracker, TrackerConfig, TrackUpdate
from pipeline.attributes import ATTRIBUTES, Attribute
from pipeline.messages import FaceCrop, TrackEnded


class Cutter(Protocol):
    """The face crop, for those who must not know how pictures are cut."""

    def cut(self, image: Image, landmarks: NDArray[np.float32]) -> Image:
        """Cut the aligned face out of *image*. Raises ValueError where the landmarks are none."""

    def encode(self, crop: Image) -> bytes:
        """Compress a crop."""


class Identity(NamedTuple):
    """Whose tracks these are."""

    camera_id: str
    site: str
    connection: int  # unique for the camera; grows from one connection to the next
    attributes: tuple[Attribute, ...] = (
        ATTRIBUTES  # what may be said of its visitors; none: they are counted, no face is cut
    )

    @property
    def said(self) -> tuple[Attribute, ...] | UnsetType:
        """What a message says of it: nothing where it is everything."""
        return UNSET if self.attributes == ATTRIBUTES else self.attributes

    def track_id(self, number: int) -> int:
        """Give an id that is unique for camera and connection."""
        return (self.connection << 20) + number


@dataclass(slots=True)
class Look:
    """What came of one look."""

    messages: list[FaceCrop | TrackEnded] = field(default_factory=list)
    face_sizes_px: list[float] = field(default_factory=list)  # of the crops sent
    tracks_ended: int = 0  # visitors whose passage has ended
    rejects: Counter[str] = field(default_factory=Counter)  # by reason: REJECTS
    seen: list[Track] = field(default_factory=list)  # whom this look showed


REJECTS: Final = ("unconfirmed", "masked", "picture", "not_counted", "landmarks", *QUALITY_FAULTS, "quality")
"""What is not used: tracks that were no face, faces in an excluded place, those that are pictures, people whom the camera's rule
does not count, and crops whose landmarks are none or that are below a bar, the last one that of quality as a whole."""


@dataclass(frozen=True, slots=True)
class ViewConfig:
    """How one camera is watched."""

    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    rule: Rule = field(default_factory=Rule)
    bar: QualityBar = field(default_factory=QualityBar)
    picture_s: float = 0.0  # a face that does not move for this long is a picture; 0: none ever is


@dataclass(slots=True)
class _Passage:
    """What is kept of one track beside the track itself."""

    selection: Selection
    progress: Progress = field(default_factory=Progress)
    counts: bool = False  # by the camera's rule; once so, for good
    stillness: Stillness = field(default_factory=lambda: Stillness(0.0))


@dataclass(slots=True)
class View:
    """What is known of one camera, for as long as it is watched without a long break."""

    identity: Identity
    cutter: Cutter
    config: ViewConfig
    tracker: Tracker
    passages: dict[int, _Passage] = field(default_factory=dict)
    last_at: float | None = None  # the last look that showed anything at all
    gallery: Gallery = field(default_factory=Gallery)

    @property
    def present(self) -> int:
        """Count confirmed people who are in the zone, or in view, as far as is known."""
        return sum(
            track.confirmed and track.number in self.passages and self.passages[track.number].progress.present
            for track in self.tracker.tracks
        )


def open_view(identity: Identity, cutter: Cutter, config: ViewConfig, gallery: Gallery | None = None) -> View:
    """Start afresh, but for the pictures that are known to hang there."""
    return View(identity, cutter, config, Tracker(config.tracker), gallery=gallery or Gallery())


def look(view: View, image: Image, faces: Sequence[FaceBox], at: float) -> Look:
    """Take in the *faces* found in *image* (height, width, 3) at *at*, and give the messages that are due, in order."""
    size = (int(image.shape[1]), int(image.shape[0]))
    result = Look()
    rule = view.config.rule
    shown = [face for face in faces if not rule.masked(face, size)]
    result.rejects["masked"] += len(faces) - len(shown)
    shown, result.rejects["picture"] = view.gallery.part(shown, (track.face for track in view.tracker.tracks), at, size)
    update = view.tracker.update(shown, at, size)
    view.last_at = at
    result.seen = update.seen
    for track in update.seen:
        passage = view.passages.get(track.number) or view.passages.setdefault(
            track.number, _Passage(Selection(view.config.selection), stillness=Stillness(view.config.picture_s))
        )
        passage.progress.see(rule, track.face, at, size)
        if view.identity.attributes:
            _offer(view, passage.selection, track, image, at, result)
        passage.counts = passage.counts or (track.confirmed and rule.counts(passage.progress))
        if passage.counts and (candidate := passage.selection.due(at)) is not None:
            _send(view, track, passage.selection, candidate, result)
        if view.config.picture_s and track.confirmed and (spot := passage.stillness.see(track.face, at, size)):
            view.gallery.hang(track.face, spot, at, size)
            _take_for_a_picture(view, track, passage, result)
    _send_held(view, at, result)
    _end(view, update, result)
    return result


def blind(view: View, seconds: float) -> None:
    """Say that the camera could see nothing for *seconds*: a loss, the dark. Whoever was there may still be."""
    view.tracker.blind(seconds)


def close_view(view: View) -> Look:
    """End every track: nobody looks any more."""
    result = Look()
    _end(view, view.tracker.close(), result)
    view.passages.clear()
    return result


def _take_for_a_picture(view: View, track: Track, passage: _Passage, result: Look) -> None:
    """Say that *track* was no visitor; its place is passed over from now on."""
    view.tracker.drop(track)
    result.rejects["picture"] += 1
    if passage.counts:
        result.messages.append(_ended(view, track, passage, visitor=False))


def _offer(view: View, selection: Selection, track: Track, image: Image, at: float, result: Look) -> None:
    try:
        crop = view.cutter.cut(image, track.face.landmarks)
    except ValueError:  # landmarks that coincide: no face to cut
        result.rejects["landmarks"] += 1
        return
    usable = assess(track.face, crop, image.shape, view.config.bar)
    if usable.fault:
        result.rejects[usable.fault] += 1
        return
    below = selection.below_bar
    selection.offer(Candidate(usable.quality, at, track.face.side_px, crop))
    result.rejects["quality"] += selection.below_bar - below


def _send(view: View, track: Track, selection: Selection, candidate: Candidate, result: Look) -> None:
    identity = view.identity
    result.face_sizes_px.append(candidate.side_px)
    result.messages.append(
        FaceCrop(
            camera_id=identity.camera_id,
            site=identity.site,
            track_id=identity.track_id(track.number),
            attributes=identity.said,
            sequence=selection.sent - 1,
            first_seen=track.first_seen,
            captured_at=candidate.captured_at,
            quality=candidate.quality,
            jpeg=view.cutter.encode(candidate.crop),
        )
    )


def _send_held(view: View, at: float, result: Look) -> None:
    """Send what is held of those whom this look did not show, before it is no news any more."""
    seen = {track.number for track in result.seen}
    for track in view.tracker.tracks:
        passage = view.passages.get(track.number)
        if passage is None or not passage.counts or track.number in seen:
            continue
        if (candidate := passage.selection.unseen(at)) is not None:
            _send(view, track, passage.selection, candidate, result)


def _ended(view: View, track: Track, passage: _Passage, *, visitor: bool) -> TrackEnded:
    identity, progress = view.identity, passage.progress
    return TrackEnded(
        camera_id=identity.camera_id,
        site=identity.site,
        track_id=identity.track_id(track.number),
        attributes=identity.said,
        first_seen=track.first_seen,
        last_seen=track.last_seen,
        crops=passage.selection.sent,
        visitor=visitor,
        entries=progress.entries,
        exits=progress.exits,
        dwell_s=round(progress.dwell_s, 3),
    )


def _end(view: View, update: TrackUpdate, result: Look) -> None:
    for track in update.ended:
        passage = view.passages[track.number]
        progress = passage.progress
        if passage.counts:
            result.tracks_ended += 1
            if (candidate := passage.selection.last()) is not None:
                _send(view, track, passage.selection, candidate, result)
        else:
            result.rejects["not_counted"] += 1
        if passage.counts or progress.entries or progress.exits:
            result.messages.append(_ended(view, track, passage, visitor=passage.counts))
    result.rejects["unconfirmed"] += update.unconfirmed
    alive = {track.number for track in view.tracker.tracks}
    for number in view.passages.keys() - alive:
        del view.passages[number]
