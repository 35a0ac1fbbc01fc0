"""Looks between two full ones: what they find is what a full look finds, near the people who are followed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.composer import CastMember
from ingest.detection import open_detection
from ingest.detector import FaceBox
from ingest.regions import MOST, Region, regions, search
from ingest.tracker import Track
from tests.ingest.conftest import crowd

SIZE = (1280, 720)
FACE_PX = 120
PLACES = [(100 + 290 * column, 80 + 330 * row) for row in range(2) for column in range(4)]


def box(left: float, top: float, side: float) -> FaceBox:
    """Give a face."""
    return FaceBox((left, top, left + side, top + side), np.zeros((5, 2), np.float32), 0.9)


def track(left: float, top: float, side: float, velocity: tuple[float, float] = (0.0, 0.0)) -> Track:
    """Give somebody who was seen at 0."""
    return Track(0, box(left, top, side), 0.0, 0.0, velocity=np.array(velocity))


people = st.lists(
    st.builds(
        track,
        st.floats(-200, 1400),
        st.floats(-200, 900),
        st.floats(8, 400),
        st.tuples(st.floats(-800, 800), st.floats(-800, 800)),
    ),
    max_size=12,
)


def inside(region: Region, x: float, y: float) -> bool:
    """Tell whether a point lies in a region."""
    return region[0] <= x <= region[2] and region[1] <= y <= region[3]


@given(people, st.floats(0, 0.5))
def test_everybody_who_should_be_in_the_picture_is_looked_for_once(tracks: list[Track], at: float) -> None:
    """Regions lie in the picture, apart from each other, and are less than a full look; or there is none, which asks for one."""
    found = regions(tracks, at, SIZE, 640)
    assert all(0 <= left < right <= SIZE[0] and 0 <= top < bottom <= SIZE[1] for left, top, right, bottom in found)
    for n, one in enumerate(found):
        for other in found[n + 1 :]:
            assert one[0] >= other[2] or other[0] >= one[2] or one[1] >= other[3] or other[1] >= one[3]
    assert sum((right - left) * (bottom - top) for left, top, right, bottom in found) <= MOST * SIZE[0] * SIZE[1]
    if not found:
        return
    for person in tracks:
        x, y = person.predicted_centre(at)
        if 0 <= x < SIZE[0] and 0 <= y < SIZE[1]:
            assert sum(inside(region, x, y) for region in found) >= 1


def test_who_has_left_the_picture_is_not_looked_for() -> None:
    """And a crowd that fills it is looked at as a whole."""
    assert regions([track(-400, 100, 100)], 0.1, SIZE, 640) == []
    assert regions([track(0, 0, 700)], 0.1, SIZE, 640) == []
    assert regions([], 0.1, SIZE, 640) == []


@pytest.mark.parametrize("max_side_px", [320, 640, 1280])
def test_faces_are_found_where_a_full_look_finds_them(cast: tuple[CastMember, ...], max_side_px: int) -> None:
    """The same boxes and landmarks, to a twelfth of a face; nobody else, and nobody twice."""
    image, detector = crowd(cast[:8], PLACES, FACE_PX), open_detection("auto")(max_side_px)
    whole = sorted(detector.detect(image), key=lambda face: face.xyxy)
    assert len(whole) == len(PLACES)
    followed = [Track(n, whole[n], 0.0, 0.0, velocity=np.zeros(2)) for n in (0, 5)]  # none beside another
    found = sorted(
        search(detector, image, regions(followed, 0.125, SIZE, max_side_px), max_side_px),
        key=lambda face: face.xyxy,
    )
    assert len(found) == len(followed)
    for face, person in zip(found, followed, strict=True):
        assert face.xyxy == pytest.approx(person.face.xyxy, abs=FACE_PX / 12)
        assert np.abs(face.landmarks - person.face.landmarks).max() < FACE_PX / 12


def test_a_face_that_a_region_cuts_through_is_left_to_the_next_full_look(cast: tuple[CastMember, ...]) -> None:
    """Half a face has its middle elsewhere: the tracker would take it for a move. At the picture's edge it is all there is."""
    image, detector = crowd(cast[:8], PLACES, FACE_PX), open_detection("auto")(1280)
    x, y = PLACES[1]
    cut = (x - 150, y - 60, x + FACE_PX * 3 // 4, y + FACE_PX + 60)
    part = image[cut[1] : cut[3], cut[0] : cut[2]]
    assert detector.detect(part), "the detector sees the cut face; otherwise this shows nothing"
    assert search(detector, image, [cut], 1280) == []
    assert search(detector, part, [(0, 0, part.shape[1], part.shape[0])], 1280)
