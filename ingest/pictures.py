"""Posters, prints and screens: faces that do not move at all for a minute are pictures of faces, and no visitors.

A detector that knows nothing but pictures cannot tell a photograph from a person who holds still for some seconds; time can.
Whoever stands sways, and hardly anybody holds the head within a thirtieth of a face for a minute. So a track that does is
said to have been no visitor: it leaves the counts, and its place is passed over from then on.

That may be wrong for once, for somebody who sits like a statue. Whoever moves in the end is no picture: the place is looked at
again, and the person is a track, and a visitor, like any other. So a mistake lasts as long as the stillness.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from ingest.detector import FaceBox

SAMPLES: Final = 60  # within the time after which a face is a picture
LEAST_SAMPLES: Final = 30  # the rest may be hidden behind people who pass
SHARE: Final = 0.9  # of them at the one place: a detector errs now and then, and who passes hides a part
REACH: Final = 0.03  # face sides from the one place
GROWTH: Final = 0.06
LEFT_REACH: Final = 1.0  # face sides within which a face that has left its place may be found
STRAYED: Final = 3  # looks in a row: once is a detector's error
FORGOTTEN_S: Final = 900.0  # a picture that was not seen for so long has been taken down, or the camera turned away

Size = tuple[int, int]
Box = tuple[float, float, float, float]  # left, top, right, bottom, in shares of the picture's width and height


class Spot(NamedTuple):
    """Where a face is, in shares of the picture's width and height, and its smaller side in widths."""

    x: float
    y: float
    side: float

    @classmethod
    def of(cls, face: FaceBox, size: Size) -> Spot:
        """Say where *face* is in a picture of *size* (width, height)."""
        left, top, right, bottom = face.xyxy
        return cls((left + right) / 2 / size[0], (top + bottom) / 2 / size[1], face.side_px / size[0])

    def away(self, other: Spot, size: Size) -> float:
        """Give the distance to *other* in sides of this face."""
        return float(np.hypot((self.x - other.x) * size[0], (self.y - other.y) * size[1]) / (self.side * size[0]))

    def alike(self, other: Spot, growth: float) -> bool:
        """Tell whether *other* is of the same size, up to a share of *growth*."""
        return abs(other.side / self.side - 1) <= growth


@dataclass(slots=True)
class Stillness:
    """Where one face has been within the last *after_s* seconds."""

    after_s: float
    _spots: deque[tuple[float, Spot]] = field(default_factory=deque)

    def see(self, face: FaceBox, at: float, size: Size) -> Spot | None:
        """Take in where the face is at *at*; once it has not moved at all for long, give where that is."""
        if self._spots and at - self._spots[-1][0] < self.after_s / SAMPLES:
            return None
        self._spots.append((at, Spot.of(face, size)))
        while at - self._spots[0][0] > self.after_s:
            self._spots.popleft()
        if len(self._spots) < LEAST_SAMPLES or at - self._spots[0][0] < 0.95 * self.after_s:
            return None
        spots = np.array([spot for _, spot in self._spots])
        middle = np.median(spots, axis=0)
        away = np.hypot(*((spots - middle)[:, :2] * size).T) / (middle[2] * size[0])
        near = (away <= REACH) & (np.abs(spots[:, 2] / middle[2] - 1) <= GROWTH)
        return Spot(*map(float, middle)) if near.mean() >= SHARE else None


@dataclass(slots=True)
class _Picture:
    """One face that is a picture."""

    spot: Spot
    box: Box
    seen_at: float
    strayed: int = 0  # looks in a row that have shown it elsewhere


@dataclass(slots=True)
class Gallery:
    """The faces of one camera that are pictures."""

    _pictures: list[_Picture] = field(default_factory=list)

    def hang(self, face: FaceBox, spot: Spot, at: float, size: Size) -> None:
        """Take *face*, which is at *spot* but for its jitter, for a picture from now on."""
        self._pictures.append(_Picture(spot, around(face, size), at))

    def part(
        self, faces: Sequence[FaceBox], people: Iterable[FaceBox], at: float, size: Size
    ) -> tuple[list[FaceBox], int]:
        """Give the *faces* that are no pictures, and how many are.

        A picture that is not in its place, while beside it is a face of its size that is none of the *people* who are followed,
        has moved: it was somebody, and is a face like any other.
        """
        self._pictures = [picture for picture in self._pictures if at - picture.seen_at <= FORGOTTEN_S]
        left = list(faces)
        followed = [Spot.of(face, size) for face in people] if self._pictures else []
        pictures = 0
        for picture in list(self._pictures):
            spots = [(picture.spot.away(Spot.of(face, size), size), n) for n, face in enumerate(left)]
            there = [
                (away, n) for away, n in spots
                if away <= 2 * REACH and picture.spot.alike(Spot.of(left[n], size), 2 * GROWTH)
            ]  # fmt: skip
            if there:
                picture.seen_at, picture.strayed = at, 0
                pictures += 1
                del left[min(there)[1]]
            elif any(
                away <= LEFT_REACH
                and picture.spot.alike(spot := Spot.of(left[n], size), 0.5)
                and not any(spot.away(other, size) < 0.5 for other in followed)
                for away, n in spots
            ):
                picture.strayed += 1
                if picture.strayed >= STRAYED:
                    self._pictures.remove(picture)
        return left, pictures

    def advice(self) -> list[str]:
        """Say of each where it is and the line that keeps it out for good."""
        return [
            f"a face at {picture.spot.x:.2f}, {picture.spot.y:.2f} does not move at all; if it is a poster or a screen, add "
            f"exclude: [{exclusion(picture.box)}]"
            for picture in self._pictures
        ]


def around(face: FaceBox, size: Size) -> Box:
    """Give the box of *face* in a picture of *size*, with a fifth of its side about it."""
    left, top, right, bottom = face.xyxy
    margin = 0.2 * face.side_px
    return (left - margin) / size[0], (top - margin) / size[1], (right + margin) / size[0], (bottom + margin) / size[1]


def exclusion(box: Box) -> str:
    """Write the polygon of *box* as cameras.yaml has it."""
    left, top, right, bottom = (min(1.0, max(0.0, value)) for value in box)
    corners = ((left, top), (right, top), (right, bottom), (left, bottom))
    return json.dumps([[round(value, 3) for value in corner] for corner in corners])
