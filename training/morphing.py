"""A face between two others, as a picture: features moved to where both have them, skin of both inside the face.

Thin plates through the landmarks say where every pixel comes from: F. L. Bookstein, "Principal Warps: Thin-Plate Splines and
the Decomposition of Deformations", IEEE TPAMI 11(6), 1989. Around the face all is the first's, moved along: hair
of two heads over each other looks like nobody.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator

from ingest.alignment import similarity
from ingest.detector import Image

Landmarks = NDArray[np.float32]
"""(5, 2), in pixels: right eye, left eye, nose, right and left corner of the mouth."""
_Floats = NDArray[np.float32]

_GRID: Final = 40  # places a side at which the plates are worked out; between them they are as good as straight
_STIFFNESS: Final = 1e-3  # for landmarks that lie upon each other, as in a face from the side
# Of the ellipse that is the face's inside: its middle on the way from mouth to eyes, half its sides in distances between
# those two, chosen by eye on two dozen faces.
_MIDDLE: Final = 0.45
_HALF_WIDTH: Final = 0.85
_HALF_HEIGHT: Final = 1.25
_FEATHER: Final = 0.12
_CONTRAST: Final = (0.7, 1.4)  # by which a colour's spread is changed at most: noise is not to be blown up


def morph(
    first: Image, second: Image, one: Landmarks, two: Landmarks, *, shape: float, share: float
) -> tuple[Image, Landmarks]:
    """Blend two pictures, each with its face's landmarks: the picture, of *first*'s size, and where its landmarks are.

    *shape* is how far features lie where the first has them (0 where the second has them, once it is laid onto the first),
    *share* how much of the skin is the first's, each from 0 to 1. Raises ValueError where the two faces do not fit.
    """
    laid = similarity(two, one)  # takes the second's picture onto the first's
    second_there = cv2.transform(two[None].astype(np.float64), laid)[0]
    landmarks = shape * one + (1 - shape) * second_there
    height, width = first.shape[:2]
    own = _sources(landmarks, one, height, width)
    image = _taken(first, own)
    if share < 1:
        back = cv2.invertAffineTransform(laid)
        others = _sources(landmarks, second_there, height, width) @ back[:, :2].T + back[:, 2]
        image = _mixed(image, _taken(second, others.astype(np.float32)), _inside(landmarks, height, width), share)
    return np.asarray(np.clip(np.rint(image), 0, 255), np.uint8), landmarks.astype(np.float32)


def _sources(landmarks: NDArray[np.float64], source: NDArray[np.floating], height: int, width: int) -> _Floats:
    """Say where each pixel comes from, (height, width, 2), x before y: landmarks from *source*, the edge from itself."""
    along_x, along_y = (np.linspace(0, side - 1, 4) for side in (width, height))
    edge = np.array([(x, y) for x in along_x for y in along_y if x in along_x[[0, -1]] or y in along_y[[0, -1]]])
    places = np.concatenate([landmarks, edge])
    shifts = np.concatenate([source - landmarks, np.zeros_like(edge)])
    xs, ys = np.meshgrid(np.linspace(0, width - 1, _GRID), np.linspace(0, height - 1, _GRID))
    plates = RBFInterpolator(places, shifts, kernel="thin_plate_spline", smoothing=_STIFFNESS)
    coarse = plates(np.stack([xs.ravel(), ys.ravel()], axis=1)).reshape(_GRID, _GRID, 2).astype(np.float32)
    # The grid's corners are the picture's, so it is not `cv2.resize` that spreads it, which takes places for areas.
    at_x, at_y = np.meshgrid(
        np.linspace(0, _GRID - 1, width, dtype=np.float32), np.linspace(0, _GRID - 1, height, dtype=np.float32)
    )
    moved = cv2.remap(coarse, at_x, at_y, cv2.INTER_LINEAR)
    pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)
    return np.asarray(pixels + moved, np.float32)


def _taken(picture: Image, sources: _Floats) -> _Floats:
    taken = cv2.remap(
        picture, np.ascontiguousarray(sources[..., 0]), np.ascontiguousarray(sources[..., 1]), cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
    return np.asarray(taken, np.float32)


def _inside(landmarks: NDArray[np.float64], height: int, width: int) -> _Floats:
    """Say how much each pixel belongs to the face's inside: (height, width, 1), 0 to 1."""
    eyes, mouth = landmarks[:2].mean(axis=0), landmarks[3:].mean(axis=0)
    length = max(float(np.hypot(*(mouth - eyes))), 1.0)
    across = landmarks[1] - landmarks[0]
    middle = _MIDDLE * eyes + (1 - _MIDDLE) * mouth
    box = (2 * _HALF_WIDTH * length, 2 * _HALF_HEIGHT * length)
    mask = np.zeros((height, width), np.float32)
    cv2.ellipse(mask, (middle.tolist(), box, float(np.degrees(np.arctan2(across[1], across[0])))), 1.0, cv2.FILLED)
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), _FEATHER * length), np.float32)[..., None]


def _mixed(first: _Floats, second: _Floats, inside: _Floats, share: float) -> _Floats:
    """Mix the insides, both brought to the colours between theirs; around them all is the first's, in those colours."""
    weight = inside / max(float(inside.sum()), 1.0)

    def colours(image: _Floats) -> tuple[_Floats, _Floats]:
        mean = (image * weight).sum(axis=(0, 1))
        return mean, np.sqrt(((image - mean) ** 2 * weight).sum(axis=(0, 1))) + 1

    (mean, spread), (other_mean, other_spread) = colours(first), colours(second)
    wanted, wanted_spread = share * mean + (1 - share) * other_mean, share * spread + (1 - share) * other_spread
    first = (first - mean) * np.clip(wanted_spread / spread, *_CONTRAST) + wanted
    second = (second - other_mean) * np.clip(wanted_spread / other_spread, *_CONTRAST) + wanted
    return np.asarray(first + inside * (1 - share) * (second - first), np.float32)
