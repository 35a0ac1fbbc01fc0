"""A morph lies between its two faces: in where its features are, in its skin; around the face it is the first."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.alignment import similarity
from training.morphing import morph

FACE = np.array([[70, 80], [130, 80], [100, 115], [78, 145], [122, 145]], np.float32)
shares = st.floats(0, 1)
nudges = st.lists(st.floats(-8, 8), min_size=10, max_size=10).map(lambda values: np.array(values).reshape(5, 2))


def smooth(seed: int, side: int = 200) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Draw a picture whose colours change slowly."""
    coarse = np.random.default_rng(seed).integers(40, 216, (6, 6, 3)).astype(np.float32)
    return np.asarray(np.clip(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC), 0, 255), np.uint8)


def apart(one: np.ndarray[Any, Any], two: np.ndarray[Any, Any]) -> float:
    """Give the mean difference of two pictures, in levels."""
    return float(np.abs(one.astype(float) - two.astype(float)).mean())


@given(seed=st.integers(0, 100), moved=nudges)
@settings(max_examples=25, deadline=None)
def test_all_of_the_first_is_the_first(seed: int, moved: np.ndarray[Any, Any]) -> None:
    """Whatever the second is."""
    picture = smooth(seed)
    made, landmarks = morph(picture, smooth(seed + 1), FACE, (FACE + moved).astype(np.float32), shape=1, share=1)
    np.testing.assert_allclose(landmarks, FACE, atol=1e-3)
    assert apart(made, picture) < 0.5


@given(shape=shares, share=shares, turn=st.floats(-30, 30), scale=st.floats(0.7, 1.5), shift=st.floats(-20, 20))
@settings(max_examples=25, deadline=None)
def test_a_face_and_itself_elsewhere_give_that_face(
    shape: float, share: float, turn: float, scale: float, shift: float
) -> None:
    """Turned, larger and shifted: it is laid onto the first before anything is mixed."""
    picture = smooth(5)
    there = cv2.getRotationMatrix2D((100, 110), turn, scale) + np.array([[0, 0, shift], [0, 0, -shift]])
    large = cv2.warpAffine(picture, there, (200, 200), borderMode=cv2.BORDER_REPLICATE)
    two = cv2.transform(FACE[None].astype(np.float64), there)[0].astype(np.float32)
    made, landmarks = morph(picture, np.asarray(large, np.uint8), FACE, two, shape=shape, share=share)
    np.testing.assert_allclose(landmarks, FACE, atol=0.01)
    assert apart(made[75:150, 70:130], picture[75:150, 70:130]) < 3


@given(shape=shares, share=shares, moved=nudges)
@settings(max_examples=25, deadline=None)
def test_features_lie_between(shape: float, share: float, moved: np.ndarray[Any, Any]) -> None:
    """On the way from the second's, laid onto the first, to the first's; and what is painted there comes along."""
    two = (FACE + moved).astype(np.float32)

    def dotted(places: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
        picture = np.full((200, 200, 3), 60, np.uint8)
        for x, y in places:
            cv2.circle(picture, (round(float(x)), round(float(y))), 4, (220, 220, 220), -1)
        return picture

    made, landmarks = morph(dotted(FACE), dotted(two), FACE, two, shape=shape, share=share)
    laid = cv2.transform(two[None].astype(np.float64), similarity(two, FACE))[0]
    np.testing.assert_allclose(landmarks, shape * FACE + (1 - shape) * laid, atol=1e-2)
    for x, y in np.rint(landmarks).astype(int):
        near = made[y - 9 : y + 10, x - 9 : x + 10, 0].astype(float) - 60
        weight = np.maximum(near, 0)
        middle = (weight.sum(axis=0) @ np.arange(19), weight.sum(axis=1) @ np.arange(19)) / weight.sum()
        assert np.abs(middle - 9).max() < 2.5


@given(shape=shares, share=shares)
@settings(max_examples=25, deadline=None)
def test_skin_is_mixed_inside_alone(shape: float, share: float) -> None:
    """Between the two's colours inside; around the face the first's picture, in the colours of the mix."""
    first, second = (np.full((200, 200, 3), level, np.uint8) for level in (80, 160))
    first[:, :20] = 30
    made, _ = morph(first, second, FACE, FACE, shape=shape, share=share)
    wanted = share * 80 + (1 - share) * 160
    assert np.abs(made[90:140, 80:120].astype(float) - wanted).max() < 2
    assert apart(made[:, 190:], np.full((200, 10, 3), wanted)) < 2
    darker = made[:, 100].astype(float).mean() - made[:, 5].astype(float).mean()
    assert darker > 30  # an edge that the first has outside its face, and the second has not


def test_colours_meet() -> None:
    """A blue and a red picture give no patch of the one in the other."""
    blue, red = np.full((200, 200, 3), (180, 60, 60), np.uint8), np.full((200, 200, 3), (60, 60, 180), np.uint8)
    made, _ = morph(blue, red, FACE, FACE, shape=0.5, share=0.5)
    assert np.ptp(made.reshape(-1, 3).astype(int), axis=0).max() <= 2


def test_pictures_of_other_sizes_fit() -> None:
    """The result has the first's size; a small picture is laid onto a large face."""
    made, landmarks = morph(smooth(1), smooth(2, 50), FACE, (FACE / 4).astype(np.float32), shape=0.5, share=0.5)
    assert made.shape == (200, 200, 3)
    np.testing.assert_allclose(landmarks, FACE, atol=0.01)
    assert morph(smooth(2, 50), smooth(1), (FACE / 4).astype(np.float32), FACE, shape=0.5, share=0.5)[0].shape == (
        50,
        50,
        3,
    )


def test_what_is_no_face_is_refused() -> None:
    """Landmarks in one point fit no face."""
    with pytest.raises(ValueError, match="landmarks"):
        morph(smooth(1), smooth(2), FACE, np.full((5, 2), 50, np.float32), shape=0.5, share=0.5)


def test_a_face_from_the_side_is_no_trouble() -> None:
    """Two landmarks upon each other, as a hidden eye beside the nose."""
    side = FACE.copy()
    side[1] = side[2]
    made, landmarks = morph(smooth(1), smooth(2), side, FACE, shape=0.5, share=0.5)
    assert np.isfinite(landmarks).all()
    assert 20 < made.mean() < 235
