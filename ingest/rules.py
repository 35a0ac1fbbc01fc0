"""What counts as a visitor at one camera: where faces are looked at all, who is inside, who crosses the line, for how long.

Everything is in relative coordinates: (0, 0) is the picture's top left, (1, 1) its bottom right, so that a rule outlives a change
of the stream's size. A person is where the middle of the face is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import hypot

from ingest.detector import FaceBox
from pipeline.cameras import Camera, Line, Point

_HYSTERESIS = 0.2  # face sides on either side of a line, in which nobody has crossed it yet


def inside(point: Point, polygon: Sequence[Point]) -> bool:
    """Tell whether *point* lies in *polygon*, by the even-odd rule (M. Shimrat, "Algorithm 112", CACM 5(8), 1962)."""
    x, y = point
    odd = False
    for (x1, y1), (x2, y2) in zip(polygon, (*polygon[1:], polygon[0]), strict=True):
        if (y1 > y) != (y2 > y) and x < x1 + (y - y1) * (x2 - x1) / (y2 - y1):
            odd = not odd
    return odd


def place_of(face: FaceBox, size: tuple[int, int]) -> Point:
    """Give where a face is in a picture of *size* (width, height), in relative coordinates."""
    left, top, right, bottom = face.xyxy
    return ((left + right) / 2 / size[0], (top + bottom) / 2 / size[1])


def distance(point: Point, line: Line, size: tuple[int, int]) -> float:
    """Give how far *point* is from the infinite line, in pixels of a picture of *size*; positive on the inner side."""
    (x1, y1), (x2, y2), (xi, yi), (x, y) = (
        (px * size[0], py * size[1]) for px, py in (line.start, line.end, line.inside, point)
    )
    dx, dy = x2 - x1, y2 - y1
    length = hypot(dx, dy)
    inner = dx * (yi - y1) - dy * (xi - x1)
    return (dx * (y - y1) - dy * (x - x1)) / length * (1.0 if inner > 0 else -1.0)


def along(point: Point, line: Line, size: tuple[int, int]) -> float:
    """Give where the foot of *point* is on the line: 0 at its start, 1 at its end."""
    (x1, y1), (x2, y2), (x, y) = ((px * size[0], py * size[1]) for px, py in (line.start, line.end, point))
    dx, dy = x2 - x1, y2 - y1
    return ((x - x1) * dx + (y - y1) * dy) / (dx * dx + dy * dy)


@dataclass(slots=True)
class Progress:
    """How far one track has come by the rule."""

    dwell_s: float = 0.0
    entries: int = 0
    exits: int = 0
    present: bool = False  # in the zone at the last look
    _last_at: float | None = None
    _side: int = 0  # of the line: 1 inside, -1 outside, 0 not known yet
    _last: Point | None = None

    def see(self, rule: Rule, face: FaceBox, at: float, size: tuple[int, int]) -> None:
        """Take in where the person is at *at* (seconds since the epoch)."""
        point = place_of(face, size)
        here = rule.zone is None or inside(point, rule.zone)
        if here and self.present and self._last_at is not None:
            self.dwell_s += max(0.0, at - self._last_at)
        self.present, self._last_at = here, at
        if rule.line is not None:
            self._cross(rule.line, point, face.side_px, size)

    def _cross(self, line: Line, point: Point, side_px: float, size: tuple[int, int]) -> None:
        away = distance(point, line, size)
        last, self._last = self._last or point, point
        if abs(away) < _HYSTERESIS * side_px:
            return
        side = 1 if away > 0 else -1
        if self._side and side != self._side:
            slack = side_px / max(
                1.0, hypot((line.end[0] - line.start[0]) * size[0], (line.end[1] - line.start[1]) * size[1])
            )
            middle = ((last[0] + point[0]) / 2, (last[1] + point[1]) / 2)
            if -slack / 2 <= along(middle, line, size) <= 1 + slack / 2:  # else it went round the line's end
                self.entries += side > 0
                self.exits += side < 0
        self._side = side


@dataclass(frozen=True, slots=True)
class Rule:
    """One camera's rule; an empty one counts everybody who is confirmed."""

    zone: tuple[Point, ...] | None = None
    line: Line | None = None
    min_dwell_s: float = 0.0
    exclude: tuple[tuple[Point, ...], ...] = field(default=())

    @classmethod
    def of(cls, camera: Camera) -> Rule:
        """Take a camera's."""
        return cls(camera.zone, camera.line, camera.min_dwell_s, camera.exclude)

    def masked(self, face: FaceBox, size: tuple[int, int]) -> bool:
        """Tell whether a face is in an excluded place: a poster, a screen, a shop across the street."""
        return any(inside(place_of(face, size), polygon) for polygon in self.exclude)

    def counts(self, progress: Progress) -> bool:
        """Tell whether somebody who has come so far is a visitor."""
        if self.line is not None:
            crossed = {"in": progress.entries, "out": progress.exits, "both": progress.entries + progress.exits}
            if not crossed[self.line.counts]:
                return False
        if self.zone is not None and not (progress.present or progress.dwell_s > 0):
            return False
        return progress.dwell_s >= self.min_dwell_s
