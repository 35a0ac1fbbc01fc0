"""One look at one camera's picture: faces to tracks, tracks to the messages that are due.

Plain functions on values; the camera loop in camera.py brings the pictures and takes the messages away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ingest.detector import FaceBox, Image
from ingest.quality import quality
from ingest.selection import Candidate, Selection, SelectionConfig
from ingest.tracker import Track, Tracker, TrackerConfig, TrackUpdate
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

    def track_id(self, number: int) -> int:
        """Give an id that is unique for camera and connection."""
        return (self.connection << 20) + number


@dataclass(slots=True)
class Look:
    """What came of one look."""

    messages: list[FaceCrop | TrackEnded] = field(default_factory=list)
    face_sizes_px: list[float] = field(default_factory=list)  # of the crops sent
    tracks_ended: int = 0
    unconfirmed: int = 0
    below_bar: int = 0


@dataclass(slots=True)
class View:
    """What is known of one camera during one connection."""

    identity: Identity
    cutter: Cutter
    tracker: Tracker
    selection: SelectionConfig
    selections: dict[int, Selection] = field(default_factory=dict)


def open_view(identity: Identity, cutter: Cutter, tracker: TrackerConfig, selection: SelectionConfig) -> View:
    """Start afresh, for a new connection."""
    return View(identity, cutter, Tracker(tracker), selection)


def look(view: View, image: Image, faces: Sequence[FaceBox], at: float) -> Look:
    """Take in the *faces* found in *image* (height, width, 3) at *at*, and give the messages that are due, in order."""
    update = view.tracker.update(faces, at)
    result = Look()
    for track in update.seen:
        selection = view.selections.setdefault(track.number, Selection(view.selection))
        below = selection.below_bar
        _offer(view, selection, track, image, at)
        result.below_bar += selection.below_bar - below
        if track.confirmed and (candidate := selection.due(at)) is not None:
            _send(view, track, selection, candidate, result)
    _end(view, update, result)
    return result


def close_view(view: View) -> Look:
    """End every track: the connection is over."""
    result = Look()
    _end(view, view.tracker.close(), result)
    view.selections.clear()
    return result


def _offer(view: View, selection: Selection, track: Track, image: Image, at: float) -> None:
    try:
        crop = view.cutter.cut(image, track.face.landmarks)
    except ValueError:  # landmarks that coincide: no face to cut
        selection.below_bar += 1
        return
    selection.offer(Candidate(quality(track.face, crop, image.shape), at, track.face.side_px, crop))


def _send(view: View, track: Track, selection: Selection, candidate: Candidate, result: Look) -> None:
    identity = view.identity
    result.face_sizes_px.append(candidate.side_px)
    result.messages.append(
        FaceCrop(
            camera_id=identity.camera_id,
            site=identity.site,
            track_id=identity.track_id(track.number),
            sequence=selection.sent - 1,
            first_seen=track.first_seen,
            captured_at=candidate.captured_at,
            quality=candidate.quality,
            jpeg=view.cutter.encode(candidate.crop),
        )
    )


def _end(view: View, update: TrackUpdate, result: Look) -> None:
    identity = view.identity
    for track in update.ended:
        selection = view.selections[track.number]
        if (candidate := selection.last()) is not None:
            _send(view, track, selection, candidate, result)
        result.messages.append(
            TrackEnded(
                camera_id=identity.camera_id,
                site=identity.site,
                track_id=identity.track_id(track.number),
                first_seen=track.first_seen,
                last_seen=track.last_seen,
                crops=selection.sent,
            )
        )
    result.tracks_ended = len(update.ended)
    result.unconfirmed = update.unconfirmed
    alive = {track.number for track in view.tracker.tracks}
    for number in view.selections.keys() - alive:
        del view.selections[number]
