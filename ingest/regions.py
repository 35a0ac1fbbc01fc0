"""Between two full looks: only the places where the people who are followed should be.

A region is searched at the scale of the full look, so that a face is as large to the detector in either, and is found alike.
Whoever is new outside the regions is found by the next full look.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil, floor
from typing import Final

import numpy as np

from ingest.detector import Detector, FaceBox, Image
from ingest.tracker import Track
from ingest.yunet_detector import scale_of, scaled

Region = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels of the picture."""

AROUND: Final = 1.0  # sides of a face left free around where it should be: about as far as the tracker follows it
MOST: Final = 0.6  # share of the picture: beyond it one full look costs no more
CELL_PX: Final = 32  # the coarsest cells of YuNet: where they lie as in the full look, it says the same
_EDGE_PX: Final = 1.0


def regions(tracks: Iterable[Track], at: float, size: tuple[int, int], max_side_px: int) -> list[Region]:
    """Give where to look for *tracks* at *at* (seconds since the epoch), no two overlapping.

    *size* is the picture's width and height, *max_side_px* the size at which a full look searches it.
    Empty where nobody should be in the picture, or where a full look costs no more.
    """
    apart: list[Region] = []
    step = CELL_PX / scale_of(size, max_side_px)
    for track in tracks:
        region = _around(track, at, size, step)
        if region is None:
            continue
        while (other := next((each for each in apart if _overlap(each, region)), None)) is not None:
            apart.remove(other)
            region = _union(other, region)
        apart.append(region)
    area = sum((right - left) * (bottom - top) for left, top, right, bottom in apart)
    return apart if area <= MOST * size[0] * size[1] else []


def search(detector: Detector, image: Image, around: Iterable[Region], max_side_px: int) -> list[FaceBox]:
    """Find the faces within the regions of *image*, a picture that a full look would search at *max_side_px*.

    A face that a region cuts through is left to the next full look: half of it is somewhere else than the whole.
    """
    size = (image.shape[1], image.shape[0])
    scale = scale_of(image.shape, max_side_px)
    found = []
    for region in around:
        left, top, right, bottom = region
        part = scaled(image[top:bottom, left:right], scale)
        back = ((right - left) / part.shape[1], (bottom - top) / part.shape[0])
        for face in detector.detect(part):
            moved = _moved(face, back, (left, top))
            if not _cut(moved, region, size):
                found.append(moved)
    return sorted(found, key=lambda face: -face.score)


def _around(track: Track, at: float, size: tuple[int, int], step: float) -> Region | None:
    left, top, right, bottom = track.face.xyxy
    x, y = track.predicted_centre(at)
    free = AROUND * max(right - left, bottom - top)
    across, down = (right - left) / 2 + free, (bottom - top) / 2 + free
    region = (
        max(0, round(step * floor((x - across) / step))),
        max(0, round(step * floor((y - down) / step))),
        min(size[0], round(step * ceil((x + across) / step))),
        min(size[1], round(step * ceil((y + down) / step))),
    )
    return region if region[0] < region[2] and region[1] < region[3] else None


def _overlap(one: Region, other: Region) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _union(one: Region, other: Region) -> Region:
    return (min(one[0], other[0]), min(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3]))


def _moved(face: FaceBox, back: tuple[float, float], corner: tuple[int, int]) -> FaceBox:
    left, top, right, bottom = face.xyxy
    return FaceBox(
        (
            left * back[0] + corner[0],
            top * back[1] + corner[1],
            right * back[0] + corner[0],
            bottom * back[1] + corner[1],
        ),
        (face.landmarks * np.array(back, np.float32) + np.array(corner, np.float32)).astype(np.float32),
        face.score,
    )


def _cut(face: FaceBox, region: Region, size: tuple[int, int]) -> bool:
    """Tell whether *face* reaches an edge of *region* that is not the picture's."""
    left, top, right, bottom = face.xyxy
    return (
        (region[0] > 0 and left < region[0] + _EDGE_PX)
        or (region[1] > 0 and top < region[1] + _EDGE_PX)
        or (region[2] < size[0] and right > region[2] - _EDGE_PX)
        or (region[3] < size[1] and bottom > region[3] - _EDGE_PX)
    )
