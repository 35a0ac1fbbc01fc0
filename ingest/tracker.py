"""Faces to tracks: one person's passage before one camera.

Two-stage association as in Y. Zhang et al., "ByteTrack: Multi-Object Tracking by Associating Every Detection Box", ECCV 2022:
sure detections first, then doubtful ones for tracks that would else be lost. Motion is constant velocity in seconds, not in
frames, because the cadence changes. The distance is measured in faces: at a few frames per second boxes of one walker may not
overlap at all, so that IoU says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from ingest.detector import FaceBox
from ingest.quality import looks_like_a_face


@dataclass(frozen=True, slots=True)
class TrackerConfig:
    """How sure is sure. Times in seconds, distances in face sides."""

    sure_score: float = 0.7
    least_hits: int = 3
    least_mean_score: float = 0.75
    least_plausible: float = 0.6  # share of detections whose landmarks look like a face
    max_gap_s: float = 1.2  # a shorter occlusion is bridged
    reach: float = 0.75  # how far from its predicted place a face may be
    first_reach: float = 1.1  # while the velocity is unknown
    max_scale: float = 1.6  # a face does not grow or shrink faster between two looks


@dataclass(slots=True)
class Track:
    """One person's passage as far as it has been seen."""

    number: int  # 0, 1, 2 ... within the connection
    face: FaceBox
    first_seen: float  # seconds since the epoch
    last_seen: float
    hits: int = 1
    score_sum: float = 0.0
    plausible: int = 0
    velocity: NDArray[np.float64] | None = None  # px/s of the centre
    confirmed: bool = False

    def centre(self) -> NDArray[np.float64]:
        """Give the middle of the last box, in pixels."""
        left, top, right, bottom = self.face.xyxy
        return np.array(((left + right) / 2, (top + bottom) / 2))

    def predicted_centre(self, at: float) -> NDArray[np.float64]:
        """Give where the middle should be at *at* (seconds since the epoch)."""
        if self.velocity is None:
            return self.centre()
        return self.centre() + self.velocity * (at - self.last_seen)


class TrackUpdate(NamedTuple):
    """What one look has changed."""

    seen: list[Track]  # matched or new, with `face` as found now
    ended: list[Track]  # confirmed ones that have left
    unconfirmed: int  # tracks given up that were no visitor


@dataclass(slots=True)
class Tracker:
    """The tracks of one connection to one camera."""

    config: TrackerConfig = field(default_factory=TrackerConfig)
    tracks: list[Track] = field(default_factory=list)
    _next: int = 0

    def update(self, faces: Sequence[FaceBox], at: float) -> TrackUpdate:
        """Take the faces found at *at* (seconds since the epoch, not before the last call's)."""
        sure = [face for face in faces if face.score >= self.config.sure_score]
        doubtful = [face for face in faces if face.score < self.config.sure_score]
        seen: list[Track] = []

        unmatched, new = self._associate(self.tracks, sure, at, seen)
        self._associate([track for track in unmatched if track.confirmed], doubtful, at, seen)
        for face in new:
            track = Track(
                self._next, face, at, at, score_sum=face.score, plausible=int(looks_like_a_face(face.landmarks))
            )
            self._next += 1
            self.tracks.append(track)
            seen.append(track)
        for track in seen:
            track.confirmed = track.confirmed or self._is_visitor(track)

        gone = [track for track in self.tracks if at - track.last_seen > self.config.max_gap_s]
        return self._end(gone, seen)

    def close(self) -> TrackUpdate:
        """End every track: the connection is over."""
        return self._end(list(self.tracks), [])

    def _end(self, gone: list[Track], seen: list[Track]) -> TrackUpdate:
        self.tracks = [track for track in self.tracks if track not in gone] if gone else self.tracks
        ended = [track for track in gone if track.confirmed]
        return TrackUpdate(seen, ended, len(gone) - len(ended))

    def _is_visitor(self, track: Track) -> bool:
        config = self.config
        return (
            track.hits >= config.least_hits
            and track.score_sum >= config.least_mean_score * track.hits
            and track.plausible >= config.least_plausible * track.hits
        )

    def _associate(
        self, tracks: list[Track], faces: list[FaceBox], at: float, seen: list[Track]
    ) -> tuple[list[Track], list[FaceBox]]:
        """Match *faces* to *tracks*, at the least total distance; gives what is left of both."""
        if not tracks or not faces:
            return tracks, faces
        cost = self._distances(tracks, faces, at)
        rows, columns = linear_sum_assignment(np.where(np.isfinite(cost), cost, 1e3))
        pairs = [(row, column) for row, column in zip(rows, columns, strict=True) if np.isfinite(cost[row, column])]
        for row, column in pairs:
            self._extend(tracks[row], faces[column], at)
            seen.append(tracks[row])
        taken_tracks, taken_faces = {row for row, _ in pairs}, {column for _, column in pairs}
        return (
            [track for row, track in enumerate(tracks) if row not in taken_tracks],
            [face for column, face in enumerate(faces) if column not in taken_faces],
        )

    def _distances(self, tracks: list[Track], faces: list[FaceBox], at: float) -> NDArray[np.float64]:
        """Give (tracks, faces) distances in faces, infinite where a match is out of the question."""
        boxes = np.array([face.xyxy for face in faces])
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        sides = np.array([face.side_px for face in faces])
        places = np.array([track.predicted_centre(at) for track in tracks])
        was = np.array([track.face.side_px for track in tracks])
        mean_side = np.maximum(1.0, (was[:, None] + sides[None, :]) / 2)
        away = np.hypot(*(places[:, None] - centres[None]).transpose(2, 0, 1)) / mean_side
        growth = np.abs(np.log(np.maximum(1.0, sides)[None, :] / np.maximum(1.0, was)[:, None]))
        reach = np.array([self._reach(track, at) for track in tracks])[:, None]
        return np.where((away <= reach) & (growth <= np.log(self.config.max_scale)), away + growth, np.inf)

    def _reach(self, track: Track, at: float) -> float:
        """Grow the reach while a track is hidden: the longer ago, the less its place is known."""
        if track.velocity is None:
            return self.config.first_reach
        return self.config.reach * (1.0 + min(1.0, at - track.last_seen))

    @staticmethod
    def _extend(track: Track, face: FaceBox, at: float) -> None:
        before, passed = track.centre(), at - track.last_seen
        track.face, track.last_seen = face, at
        track.hits += 1
        track.score_sum += face.score
        track.plausible += int(looks_like_a_face(face.landmarks))
        if passed > 0:
            velocity = (track.centre() - before) / passed
            track.velocity = velocity if track.velocity is None else 0.6 * track.velocity + 0.4 * velocity
