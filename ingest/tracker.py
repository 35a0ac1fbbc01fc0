"""Faces to tracks: one person's passage before one camera.

Two-stage association as in Y. Zhang et al., "ByteTrack: Multi-Object Tracking by Associating Every Detection Box", ECCV 2022:
sure detections first, then doubtful ones for tracks that would else be lost; last of all, tracks that are hidden get what is
left, as in the cascade of N. Wojke et al., "Simple Online and Realtime Tracking with a Deep Association Metric", ICIP 2017.
Motion is constant velocity in seconds, not in frames, because the cadence changes; it is the slope of the last looks, since one
look's box jitters. The distance is measured in faces: at a few frames per second boxes of one walker may not overlap at all,
so that IoU says nothing.

A camera that sees nothing for a while (a lost connection, a failed light) is blind: that time is no gap. Who is found
afterwards where somebody was, or was about to be, is the same person, and is not counted again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from ingest.detector import FaceBox
from ingest.quality import looks_like_a_face

_REMEMBERED: Final = 8  # looks that the velocity is the slope of: a second, at eight a second
_SMALL_PX: Final = 20.0  # smaller faces jitter by pixels, not by a share of their size
_LEFT: Final = 0.25  # face sides beyond the picture's edge, where a face is out of view
_LEFT_AFTER_S: Final = 0.3


@dataclass(frozen=True, slots=True)
class TrackerConfig:
    """How sure is sure. Times in seconds, distances in face sides."""

    sure_score: float = 0.7
    least_hits: int = 3
    least_mean_score: float = 0.75
    least_plausible: float = 0.6  # share of detections whose landmarks look like a face
    max_gap_s: float = 2.5  # a shorter occlusion is bridged
    hidden_s: float = 0.6  # unseen for longer, a track takes only what no other wants
    first_reach: float = 1.1  # how far a face may be from its last place, while its velocity is unknown
    reach: float = 0.3  # how far from its predicted place, by the jitter of boxes ...
    agility: float = (
        10.0  # ... and this times the seconds squared: nobody turns round faster (5 m/s², a face being 0.25 m)
    )
    most_reach: float = 1.5
    max_scale: float = 1.7  # a face does not grow or shrink faster between two looks


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
    blind_before: float = 0.0  # seconds for which the camera had been blind when this was last seen
    looks: deque[tuple[float, float, float]] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    """The last looks: seconds since the epoch, and the centre's x and y in pixels."""

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
    """The tracks of one camera, for as long as it is watched without a long break."""

    config: TrackerConfig = field(default_factory=TrackerConfig)
    tracks: list[Track] = field(default_factory=list)
    _next: int = 0
    _blind_s: float = 0.0  # in all
    _size: tuple[int, int] | None = None
    _last_at: float = 0.0

    def update(self, faces: Sequence[FaceBox], at: float, size: tuple[int, int] | None = None) -> TrackUpdate:
        """Take the faces found at *at* (seconds since the epoch, not before the last call's).

        *size* is the picture's width and height; where it is known, who walks out of the picture has left at once. A
        camera may change it: tracks go on, at the same place in the picture.
        """
        if size is not None and self._size is not None and size != self._size:
            self._rescale(size[0] / self._size[0], size[1] / self._size[1])
        self._size = size
        sure = [face for face in faces if face.score >= self.config.sure_score]
        doubtful = [face for face in faces if face.score < self.config.sure_score]
        seen: list[Track] = []

        # Looks may be far apart, where only key frames are decoded: then two of them are no gap.
        most = max(self.config.max_gap_s, 1.5 * (at - self._last_at)) if self.tracks else 0.0
        self._last_at = at
        gone = [track for track in self.tracks if self._has_left(track, at) or self._gap(track, at) > most]
        there = [track for track in self.tracks if track not in gone]
        fresh = [track for track in there if self._gap(track, at) <= self.config.hidden_s]
        hidden = [track for track in there if self._gap(track, at) > self.config.hidden_s]
        unmatched, new = self._associate(fresh, sure, at, seen)
        self._associate([track for track in unmatched if track.confirmed], doubtful, at, seen)
        _, new = self._associate(hidden, new, at, seen)
        for face in new:
            track = Track(
                self._next, face, at, at, score_sum=face.score, plausible=int(looks_like_a_face(face.landmarks)),
                blind_before=self._blind_s,
            )  # fmt: skip
            track.looks.append((at, *track.centre()))
            self._next += 1
            self.tracks.append(track)
            seen.append(track)
        for track in seen:
            track.confirmed = track.confirmed or self._is_visitor(track)

        return self._end(gone, seen)

    def blind(self, seconds: float) -> None:
        """Say that nothing could be seen for *seconds*, whoever was there: it is no gap of anybody's."""
        self._blind_s += max(0.0, seconds)

    def drop(self, track: Track) -> None:
        """Follow *track* no longer, and say nothing of its end."""
        self.tracks.remove(track)

    def close(self) -> TrackUpdate:
        """End every track: nobody looks any more."""
        return self._end(list(self.tracks), [])

    def _gap(self, track: Track, at: float) -> float:
        """Give for how long *track* has not been seen while the camera could see."""
        return at - track.last_seen - (self._blind_s - track.blind_before)

    def _has_left(self, track: Track, at: float) -> bool:
        if self._size is None or at - track.last_seen <= _LEFT_AFTER_S:
            return False
        x, y = track.predicted_centre(at)
        margin = _LEFT * track.face.side_px
        return not (-margin <= x <= self._size[0] + margin and -margin <= y <= self._size[1] + margin)

    def _rescale(self, across: float, down: float) -> None:
        by = np.array((across, down))
        for track in self.tracks:
            left, top, right, bottom = track.face.xyxy
            track.face = FaceBox(
                (left * across, top * down, right * across, bottom * down),
                (track.face.landmarks * by).astype(np.float32),
                track.face.score,
            )
            track.velocity = None if track.velocity is None else track.velocity * by
            looks = [(at, x * across, y * down) for at, x, y in track.looks]
            track.looks.clear()
            track.looks.extend(looks)

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
        mean_side = np.maximum(_SMALL_PX, (was[:, None] + sides[None, :]) / 2)
        away = np.hypot(*(places[:, None] - centres[None]).transpose(2, 0, 1)) / mean_side
        growth = np.abs(np.log(np.maximum(_SMALL_PX, sides)[None, :] / np.maximum(_SMALL_PX, was)[:, None]))
        reach = np.array([self._reach(track, at) for track in tracks])[:, None]
        # Somebody who is a little off and a little larger is already somebody else: the gate is an ellipse.
        since = np.array([min(1.0, at - track.last_seen) for track in tracks])[:, None]
        most_growth = np.log(self.config.max_scale) * (1 + since)
        inside = (away / reach) ** 2 + (growth / most_growth) ** 2 <= 1
        return np.where(inside, away + growth, np.inf)

    def _reach(self, track: Track, at: float) -> float:
        """Grow the reach with the time since the last look: the longer ago, the less the place is known."""
        config = self.config
        if track.velocity is None:
            return config.first_reach
        return min(config.most_reach, config.reach + config.agility * (at - track.last_seen) ** 2)

    def _extend(self, track: Track, face: FaceBox, at: float) -> None:
        track.face, track.last_seen, track.blind_before = face, at, self._blind_s
        track.hits += 1
        track.score_sum += face.score
        track.plausible += int(looks_like_a_face(face.landmarks))
        track.looks.append((at, *track.centre()))
        track.velocity = _slope(track.looks, track.velocity)


def _slope(
    looks: Sequence[tuple[float, float, float]], before: NDArray[np.float64] | None
) -> NDArray[np.float64] | None:
    """Fit a straight line to the last looks of the last second or so; *before* where they are all of one moment."""
    points = np.array(looks)
    times = points[:, 0] - points[:, 0].mean()
    spread = float(times @ times)
    if spread <= 0:
        return before
    slope: NDArray[np.float64] = times @ points[:, 1:] / spread
    return slope
