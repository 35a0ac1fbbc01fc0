"""How usable a crop is: each thing that spoils a face lowers its quality, and what is no face is told apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise, permutations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from demo.composer import CastMember
from ingest.alignment import align
from ingest.detector import FaceBox, Image
from ingest.quality import exposure, frontality, inside, looks_like_a_face, quality, sharpness
from ingest.yunet_detector import YunetDetector
from pipeline.manifest import CropRecipe
from tests.ingest.conftest import FRONTAL, face_at

SHAPE = (360, 640, 3)


@pytest.fixture(scope="module")
def crop(cast: tuple[CastMember, ...], yunet: YunetDetector, recipe: CropRecipe) -> Image:
    """Cut a good face."""
    return align(cast[0].face, yunet.detect(cast[0].face)[0].landmarks, recipe)


def turned(points: NDArray[np.float32], degrees: float) -> NDArray[np.float32]:
    """Tilt the head."""
    angle = np.deg2rad(degrees)
    turn = np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
    middle = points.mean(0)
    return np.asarray((points - middle) @ turn.T + middle, np.float32)


def is_falling(values: Sequence[float]) -> bool:
    """Whether each is less than the one before."""
    return all(a > b for a, b in pairwise(values))


# ── what looks like a face ────────────────────────────────────────────────────────────────────────────────────────────


def test_real_faces_look_like_faces_upright_and_tilted(cast: tuple[CastMember, ...], yunet: YunetDetector) -> None:
    """Every face of the cast, as the detector marks it, in pictures turned by up to forty degrees."""
    for member in cast:
        wide = cv2.copyMakeBorder(member.face, 60, 60, 60, 60, cv2.BORDER_REPLICATE)
        for degrees in (-40, -20, 0, 20, 40):
            matrix = cv2.getRotationMatrix2D((160, 160), degrees, 1.0)
            tilted = np.asarray(cv2.warpAffine(wide, matrix, (320, 320), borderMode=cv2.BORDER_REPLICATE), np.uint8)
            found = yunet.detect(tilted)
            assert found, f"{member.file} at {degrees} degrees"
            assert looks_like_a_face(found[0].landmarks), f"{member.file} at {degrees} degrees"


@given(st.floats(-180, 180), st.floats(12, 900), st.floats(-500, 3000), st.floats(-500, 3000))
def test_neither_tilt_nor_size_nor_place_makes_a_face_less_of_one(
    degrees: float, side: float, x: float, y: float
) -> None:
    """It is measured in the face's own frame."""
    assert looks_like_a_face(turned(FRONTAL * side + (x, y), degrees))


def test_mixed_up_landmarks_are_no_face(cast: tuple[CastMember, ...], yunet: YunetDetector) -> None:
    """Of the 120 ways to name five landmarks, the right one passes, and none that is not it turned on its side or head."""
    # right eye, left eye, nose, right and left corner of the mouth: as it is, and by a quarter, a half, three quarters
    turns = {(0, 1, 2, 3, 4), (3, 0, 2, 4, 1), (4, 3, 2, 1, 0), (1, 4, 2, 0, 3)}
    for member in cast:
        landmarks = yunet.detect(member.face)[0].landmarks
        passing = {order for order in permutations(range(5)) if looks_like_a_face(landmarks[list(order)])}
        assert (0, 1, 2, 3, 4) in passing
        assert passing <= turns


@pytest.mark.parametrize(
    "landmarks",
    [
        pytest.param(np.zeros((5, 2)), id="all in one point"),
        pytest.param(FRONTAL * (1, 0) * 80, id="all on one line"),
        pytest.param(FRONTAL * 1.5, id="eyes a pixel apart"),
        pytest.param(FRONTAL * (1, 0.3) * 80, id="mouth in the nose"),
        pytest.param(FRONTAL * (1, 4) * 80, id="mouth on the chest"),
        pytest.param(FRONTAL * (-1, 1) * 80, id="mirrored"),
        pytest.param(np.array([(24, 24), (56, 24), (40, 20), (27, 58), (53, 58)]), id="nose above the eyes"),
        pytest.param(np.array([(24, 24), (56, 24), (40, 70), (27, 58), (53, 58)]), id="nose below the mouth"),
        pytest.param(np.array([(24, 24), (56, 24), (40, 42), (39, 58), (41, 58)]), id="a mouth without width"),
    ],
)
def test_what_fires_a_detector_without_a_face_is_told_apart(landmarks: NDArray[np.float64]) -> None:
    """Backs of heads and prints on shirts have landmarks that collapse or mix up."""
    assert not looks_like_a_face(landmarks.astype(np.float32))


# ── each factor ───────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.floats(-180, 180), st.floats(20, 400))
def test_the_further_the_nose_is_from_the_middle_the_less_frontal(degrees: float, side: float) -> None:
    """1 in the middle of the eyes, falling evenly to either side, 0 from the eyes outwards; at any tilt."""

    def at(shift: float) -> float:
        landmarks = FRONTAL.copy()
        landmarks[2, 0] += shift * 0.4  # in distances between the eyes
        return frontality(turned(landmarks * side, degrees))

    assert at(0) == pytest.approx(1.0, abs=1e-3)
    for sign in (-1, 1):
        assert is_falling([at(sign * shift) for shift in (0, 0.1, 0.2, 0.3, 0.4)])
        assert at(sign * 0.25) == pytest.approx(0.5, abs=1e-2)
        assert at(sign * 0.6) == at(sign * 2.0) == 0.0


def test_eyes_in_one_point_are_not_frontal() -> None:
    """A division by nothing is no frontality."""
    assert frontality(np.zeros((5, 2), np.float32)) == 0.0


def test_the_more_blurred_the_less_sharp(crop: Image) -> None:
    """From a crisp face to fog; a plain colour has none."""
    blurred = [crop, *(np.asarray(cv2.GaussianBlur(crop, (0, 0), sigma), np.uint8) for sigma in (0.7, 1.5, 3, 8))]
    values = [sharpness(image) for image in blurred]
    assert is_falling(values)
    assert 0.5 < values[0] < 1.0
    assert values[-1] < 0.1
    assert sharpness(np.full((96, 96, 3), 127, np.uint8)) == 0.0


def test_the_darker_or_the_more_burnt_out_the_worse_the_exposure() -> None:
    """1 over the ordinary range, 0 for black and for white."""

    def plain(value: int) -> float:
        return exposure(np.full((96, 96, 3), value, np.uint8))

    assert [plain(value) for value in (50, 90, 127, 180, 220)] == [1.0] * 5
    assert is_falling([plain(value) for value in (50, 40, 20, 5, 0)])
    assert is_falling([plain(value) for value in (220, 235, 250, 255)])
    assert plain(0) == plain(255) == 0.0


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_share_inside_is_what_the_picture_shows_of_the_box(out_left: float, out_above: float) -> None:
    """A box that sticks out to the left and above, by parts of its side."""
    face = face_at(40 - 80 * out_left, 40 - 80 * out_above, side=80)
    assert inside(face, 640, 360) == pytest.approx((1 - out_left) * (1 - out_above), abs=1e-6)


@pytest.mark.parametrize(("x", "y"), [(-100, 180), (800, 180), (320, -100), (320, 500)])
def test_a_box_beyond_the_picture_is_not_inside(x: float, y: float) -> None:
    """Left, right, above, below."""
    assert inside(face_at(x, y), 640, 360) == 0.0


# ── all together ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_quality_falls_with_everything_that_spoils_a_face(crop: Image) -> None:
    """Smaller, turned away, blurred, dark, unsure, half out of view: each alone."""
    best = face_at(320, side=90, score=0.95)

    def profile(shift: float) -> FaceBox:
        landmarks = best.landmarks.copy()
        landmarks[2, 0] += shift * 36
        return dataclasses.replace(best, landmarks=landmarks)

    def dimmed(share: float) -> Image:
        return (crop * share).astype(np.uint8)

    assert is_falling([quality(face_at(320, side=side, score=0.95), crop, SHAPE) for side in (90, 60, 40, 20)])
    assert is_falling([quality(profile(shift), crop, SHAPE) for shift in (0, 0.2, 0.35, 0.5)])
    assert is_falling(
        [quality(best, np.asarray(cv2.GaussianBlur(crop, (0, 0), s), np.uint8), SHAPE) for s in (0.5, 1, 3, 9)]
    )
    assert is_falling([quality(best, dimmed(share), SHAPE) for share in (1.0, 0.2, 0.1, 0.0)])
    assert is_falling([quality(face_at(320, side=90, score=s), crop, SHAPE) for s in (0.95, 0.8, 0.6)])
    assert is_falling([quality(face_at(x, side=90, score=0.95), crop, SHAPE) for x in (45, 30, 10, -10, -45)])


def test_a_good_face_is_well_above_the_bar(crop: Image) -> None:
    """Large, frontal, sharp, lit."""
    assert quality(face_at(320, side=100, score=0.95), crop, SHAPE) > 0.6


@given(
    st.lists(st.tuples(st.floats(-700, 1400), st.floats(-400, 800)), min_size=5, max_size=5),
    st.floats(-700, 1400),
    st.floats(0, 500),
    st.floats(0, 1),
    st.integers(0, 255),
)
def test_quality_is_from_0_to_1_whatever_was_found(
    points: list[tuple[float, float]], x: float, side: float, score: float, grey: int
) -> None:
    """It goes out in a message that is refused otherwise."""
    landmarks = np.array(points, np.float32)
    face = dataclasses.replace(face_at(x, side=side, score=score), landmarks=landmarks)
    assert 0.0 <= quality(face, np.full((96, 96, 3), grey, np.uint8), SHAPE) <= 1.0
    assert 0.0 <= frontality(landmarks) <= 1.0
