"""The face crop: whatever the pose, the landmarks come to lie where the model's recipe wants them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from inference.pixels import decode_crop
from ingest.alignment import align, centre_crop, encode_jpeg, similarity
from ingest.detector import Image
from pipeline.manifest import CropRecipe

RECIPE = CropRecipe(96, ((0.3, 0.28), (0.68, 0.28), (0.48, 0.51), (0.32, 0.67), (0.65, 0.67)))
WANTED = np.asarray(RECIPE.landmarks, np.float64) * RECIPE.size_px

turns = st.floats(-np.pi, np.pi)
scales = st.floats(0.05, 20.0)
shifts = st.tuples(st.floats(-1000, 1000), st.floats(-1000, 1000))
coordinates = st.floats(-2000, 2000, width=32)
five_points = st.lists(st.tuples(coordinates, coordinates), min_size=5, max_size=5).map(
    lambda points: np.array(points, np.float32)
)


def turn_and_scale(angle: float, scale: float) -> NDArray[np.float64]:
    """Give the (2, 2) matrix of a rotation and one scale."""
    return scale * np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])


def placed(angle: float, scale: float, middle: tuple[float, float]) -> NDArray[np.float32]:
    """Put the recipe's face into a picture: its landmarks, turned and scaled about *middle*."""
    points = (WANTED - RECIPE.size_px / 2) @ turn_and_scale(angle, scale).T + middle
    return points.astype(np.float32)


def ramps(height: int, width: int) -> Image:
    """Draw a picture whose blue tells x, whose green tells y: every pixel says where it is from."""
    across = np.linspace(0, 250, width)[None, :].repeat(height, 0)
    down = np.linspace(0, 250, height)[:, None].repeat(width, 1)
    return np.stack([across, down, np.full((height, width), 99.0)], axis=2).round().astype(np.uint8)


@given(turns, scales, shifts)
def test_a_similarity_is_recovered_exactly(angle: float, scale: float, shift: tuple[float, float]) -> None:
    """Points moved by a turn, a scale and a shift give back that turn, scale and shift."""
    moved = WANTED @ turn_and_scale(angle, scale).T + shift
    matrix = similarity(WANTED.astype(np.float32), moved.astype(np.float64))
    np.testing.assert_allclose(matrix[:, :2], turn_and_scale(angle, scale), atol=1e-5 * scale)
    np.testing.assert_allclose(matrix[:, 2], shift, atol=1e-3 * max(1.0, scale))


@given(five_points)
@example(WANTED.astype(np.float32) * (-1, 1))
def test_no_face_is_ever_mirrored(points: NDArray[np.float32]) -> None:
    """A mirrored crop would swap the eyes: the transform turns and scales, whatever the landmarks."""
    try:
        matrix = similarity(points, WANTED.astype(np.float32))
    except ValueError:
        return  # no face at all
    (a, b), (c, d) = matrix[:, :2]
    assert (a, b) == pytest.approx((d, -c), abs=1e-9)
    assert a * d - b * c > 0


@given(five_points, turns, scales)
def test_no_other_similarity_comes_nearer(points: NDArray[np.float32], angle: float, scale: float) -> None:
    """The fit is the one of least squares: nudging its turn and its scale only makes it worse."""
    try:
        matrix = similarity(points, WANTED.astype(np.float32))
    except ValueError:
        assume(False)

    def misses(linear: NDArray[np.float64]) -> float:
        moved = (points - points.mean(0)).astype(np.float64) @ linear.T
        return float(((moved - (WANTED - WANTED.mean(0))) ** 2).sum())

    nudge = turn_and_scale(angle / 100, 1 + (scale - 10) / 1000)
    assert misses(matrix[:, :2]) <= misses(matrix[:, :2] @ nudge) * (1 + 1e-6) + 1e-6


@given(st.tuples(coordinates, coordinates))
def test_landmarks_that_coincide_are_no_face(point: tuple[float, float]) -> None:
    """They fix no scale."""
    with pytest.raises(ValueError, match="coincide"):
        align(ramps(60, 80), np.array([point] * 5, np.float32), RECIPE)


def test_landmarks_that_fit_no_size_are_no_face() -> None:
    """A mirror image can be such that the best fit is a single point; that is an answer, not a division by zero."""
    aim = WANTED - WANTED.mean(0)
    # The inverse of its spread, mirrored: the two directions then cancel out.
    mirrored = aim @ np.linalg.inv(aim.T @ aim) @ np.diag((1.0, -1.0)) * 10_000
    with pytest.raises(ValueError, match="no size"):
        align(ramps(60, 80), mirrored.astype(np.float32), RECIPE)


@given(five_points)
def test_a_crop_has_the_recipes_size_wherever_the_landmarks_are(points: NDArray[np.float32]) -> None:
    """Out of the picture, huge, tiny, mixed up: a crop of the right shape, or ValueError for no face."""
    try:
        crop = align(ramps(90, 120), points, RECIPE)
    except ValueError:
        return
    assert crop.shape == (96, 96, 3)
    assert crop.dtype == np.uint8


@settings(max_examples=30)
@given(angle=turns, scale=st.floats(0.4, 9.0), middle=st.tuples(st.floats(600, 700), st.floats(500, 600)))
@example(angle=0.0, scale=8.9, middle=(640.0, 540.0))
@example(angle=0.5, scale=2.01, middle=(640.0, 540.0))
def test_every_pixel_of_the_crop_comes_from_where_the_transform_says(
    angle: float, scale: float, middle: tuple[float, float]
) -> None:
    """On a picture whose colours tell the place, strong shrinking included, to a pixel of the crop."""
    height, width = 1080, 1280
    crop = align(ramps(height, width), placed(angle, scale, middle), RECIPE).astype(np.float64)
    ys, xs = np.mgrid[8:88:8, 8:88:8]
    there = (np.stack([xs.ravel(), ys.ravel()], 1) - 48.0) @ turn_and_scale(angle, scale).T + middle
    inside = ((there > 20) & (there < (width - 20, height - 20))).all(1)
    told = crop[ys.ravel(), xs.ravel(), :2] * ((width - 1) / 250, (height - 1) / 250)
    # Colours tell the place to half a level, 2.6 px of the picture; a pixel of the crop is `scale` pixels of the picture.
    assert np.abs(told - there)[inside].max() < 0.5 * scale + 4


@settings(max_examples=30)
@given(
    angle=st.floats(-0.8, 0.8), scale=st.floats(0.6, 12.0), nudge=st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5))
)
@example(angle=0.0, scale=2.5, nudge=(0.0, 0.0))
@example(angle=0.3, scale=11.0, nudge=(0.25, 0.25))
def test_landmarks_come_to_lie_where_the_recipe_says(angle: float, scale: float, nudge: tuple[float, float]) -> None:
    """A dot drawn at each landmark is found within a quarter of a pixel of its place, for near and far faces."""
    landmarks = placed(angle, scale, (800 + nudge[0], 760 + nudge[1]))
    for landmark, wanted in zip(landmarks, WANTED, strict=True):
        image = np.zeros((1500, 1600, 3), np.uint8)
        centre = tuple(int(v) for v in (landmark * 16).round())
        cv2.circle(image, centre, round(2.5 * max(1.0, scale) * 16), (255, 255, 255), -1, cv2.LINE_AA, 4)
        weight = align(image, landmarks, RECIPE)[..., 0].astype(np.float64)
        ys, xs = np.mgrid[:96, :96]
        found = np.array(((xs * weight).sum(), (ys * weight).sum())) / weight.sum()
        assert np.hypot(*(found - wanted)) < 0.25


def test_a_strongly_shrunk_face_is_averaged_not_sampled() -> None:
    """Stripes of one pixel, ten to a pixel of the crop, are grey there; sampling would show some of them."""
    image = np.zeros((1200, 1200, 3), np.uint8)
    image[:, ::2] = 255
    crop = align(image, placed(0.0, 10.0, (600, 600)), RECIPE)
    assert np.abs(crop.astype(int) - 127).max() < 20


def test_a_face_that_leaves_the_view_is_continued_from_the_edge() -> None:
    """What lies outside has the colour of the nearest pixel inside, not black."""
    image = np.full((400, 400, 3), (20, 40, 60), np.uint8)
    image[:, 0] = (200, 180, 160)
    crop = align(image, placed(0.0, 1.0, (0, 200)), RECIPE)
    assert (crop[:, :40] == (200, 180, 160)).all()
    assert (crop[:, 60:] == (20, 40, 60)).all()


@pytest.mark.parametrize(("height", "width"), [(200, 200), (120, 300), (300, 120), (96, 96), (31, 47)])
def test_the_centre_crop_is_the_largest_square_in_the_middle(height: int, width: int) -> None:
    """Its middle is the picture's middle, and its shape is the recipe's, for wide and tall pictures."""
    image = ramps(height, width)
    crop = centre_crop(image, RECIPE)
    assert crop.shape == (96, 96, 3)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side].astype(float)
    assert crop[..., 0].mean() == pytest.approx(square[..., 0].mean(), abs=1.5)
    assert crop[..., 1].mean() == pytest.approx(square[..., 1].mean(), abs=1.5)
    assert crop[0, 0, 0] == pytest.approx(square[0, 0, 0], abs=7)
    assert crop[-1, -1, 1] == pytest.approx(square[-1, -1, 1], abs=7)


def test_a_crop_comes_back_from_its_jpeg_as_inference_wants_it() -> None:
    """Of the model's size, in RGB, and nearly unchanged."""
    crop = ramps(96, 96)
    pixels = decode_crop(encode_jpeg(crop, RECIPE), RECIPE.size_px)
    assert pixels.shape == (96, 96, 3)
    assert np.abs(pixels[..., ::-1].astype(int) - crop).mean() < 3


def test_better_jpeg_quality_costs_bytes() -> None:
    """The recipe's quality is the encoder's."""
    crop = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    sizes = [len(encode_jpeg(crop, CropRecipe(96, RECIPE.landmarks, quality))) for quality in (50, 80, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
