"""What a camera does to a face."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.augmentation import (
    Crop,
    blurred,
    compressed,
    darkened,
    degrade,
    grey,
    motion_blurred,
    moved,
    noisy,
    occluded,
    relit,
    smaller,
    step_generator,
    tinted,
)


def crop(side: int = 48) -> Crop:
    """Make a crop of noise: every loss of detail shows."""
    return np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 10**6), st.floats(0, 2), st.integers(32, 80))
def test_the_same_seed_and_step_do_the_same_again(seed: int, step: int, strength: float, side: int) -> None:
    """A killed run sees the same faces when it goes on; the crop that came in stays as it was."""
    original = crop(side)
    kept = original.copy()
    first = degrade(original, step_generator(seed, step, 3), strength)
    second = degrade(original, step_generator(seed, step, 3), strength)
    assert (first == second).all()
    assert first.shape == original.shape
    assert first.dtype == np.uint8
    assert (original == kept).all()


def test_steps_and_places_differ() -> None:
    """No two crops of a run meet the same weather."""
    drawn = {step_generator(0, step, place).integers(2**60) for step in range(20) for place in range(20)}
    assert len(drawn) == 400


def test_strength_zero_only_mirrors() -> None:
    """What is left is the crop or its mirror image, and both occur."""
    original = crop()
    seen = {degrade(original, step_generator(0, step, 0), 0).tobytes() for step in range(20)}
    assert seen == {original.tobytes(), np.ascontiguousarray(original[:, ::-1]).tobytes()}


@pytest.mark.parametrize(
    "lose", [lambda c: smaller(c, 16), lambda c: blurred(c, 0.03), lambda c: motion_blurred(c, 0.1, 0.5)]
)
def test_small_and_blurred_faces_lose_detail(lose: object) -> None:
    """Neighbouring pixels come nearer to each other."""
    assert callable(lose)
    before = np.abs(np.diff(crop().astype(int), axis=1)).mean()
    assert np.abs(np.diff(lose(crop()).astype(int), axis=1)).mean() < before / 1.2


def test_nothing_asked_is_nothing_done() -> None:
    """A face that is large, sharp and lit stays as it is."""
    original = crop()
    for same in (
        smaller(original, 200),
        blurred(original, 0),
        motion_blurred(original, 0, 1),
        darkened(original, 1),
        moved(original),
        relit(original, gain=1, offset=0, gamma=1),
        tinted(original, np.ones(3)),
    ):
        assert (same == original).all()


def test_darkness_takes_the_light_and_a_lower_quality_takes_more() -> None:
    """Half the light is half the mean; quality 10 differs more than 80."""
    original = crop()
    assert darkened(original, 0.5).mean() == pytest.approx(original.mean() / 2, abs=1)
    losses = [np.abs(compressed(original, quality).astype(int) - original).mean() for quality in (80, 10)]
    assert losses[0] < losses[1]


def test_grey_has_no_colour_and_noise_keeps_the_mean() -> None:
    """Infra-red and a noisy sensor."""
    colourless = grey(crop())
    assert (colourless[..., 0] == colourless[..., 2]).all()
    flat = np.full((64, 64, 3), 128, np.uint8)
    assert noisy(flat, 8, step_generator(0, 0, 0)).mean() == pytest.approx(128, abs=0.5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_more_than_half_of_an_occluded_face_is_left(seed: int) -> None:
    """A mask hides at most 45 % of the rows, a patch at most a quarter of the area."""
    original = crop()
    hidden = (occluded(original, step_generator(seed, 0, 0)) != original).any(axis=2).mean()
    assert hidden < 0.5
