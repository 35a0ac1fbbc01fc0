"""Blends are of two faces that one network has not learned, look like both, and are taught by the networks' word alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from training.blending import NO_PAIRS, Pairs, blend, pair_up, with_blends
from training.dataset import Faces, load_faces
from training.face_network import draw_pairs, folds_of
from training.recipe import Recipe
from training.splits import difference_hash
from training.targets import Word, smoothed, targets_by
from training.train import split_of, train

generator = np.random.default_rng(4)
COUNT = 150
FACES = Faces(
    names=tuple(f"face{number}.jpg" for number in range(COUNT)),
    jpegs=(b"",) * COUNT,
    age=generator.integers(0, 100, COUNT).astype(np.float32),
    gender=generator.integers(0, 2, COUNT),
    ethnicity=generator.integers(0, 5, COUNT),
    face_px=np.zeros(COUNT, np.float32),
    hashes=np.stack([difference_hash(generator.integers(0, 256, (20, 20, 3)).astype(np.uint8)) for _ in range(COUNT)]),
    crop=Recipe().crop,
    digest="0" * 64,
)


@given(each=st.floats(0.1, 3), seed=st.integers(0, 1000), folds=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_a_blend_is_of_two_faces_that_are_alike_and_lie_in_one_fold(each: float, seed: int, folds: int) -> None:
    """Of one gender, both among those to learn from; as many as asked for; the same for the same seed."""
    learning = np.sort(np.random.default_rng(seed).choice(COUNT, 120, replace=False))
    fold = np.random.default_rng(seed).integers(0, folds, len(learning))
    pairs = pair_up(FACES, learning, fold, each=each, seed=seed)
    place = {int(row): number for number, row in enumerate(learning)}
    ones, twos = ([place[int(row)] for row in rows] for rows in (pairs.one, pairs.two))
    assert np.array_equal(fold[ones], fold[twos])
    assert np.array_equal(FACES.gender[pairs.one], FACES.gender[pairs.two])
    assert (pairs.one != pairs.two).all()
    # A face of few that are alike may find no other.
    _, few = np.unique(np.stack([fold, FACES.gender[learning]], axis=1), axis=0, return_counts=True)
    asked = each * len(learning)
    assert asked - few[few <= 5].sum() * np.ceil(each) - 0.51 <= len(pairs) <= asked + 0.51
    assert ((pairs.share >= 0.35) & (pairs.share <= 0.65)).all()
    for values, again in zip(pairs, pair_up(FACES, learning, fold, each=each, seed=seed), strict=True):
        np.testing.assert_array_equal(values, again)


def test_the_two_are_near_in_age() -> None:
    """Nearer than two faces drawn at random, by far."""
    learning = np.arange(COUNT)
    pairs = pair_up(FACES, learning, np.zeros(COUNT, np.int64), each=2, seed=0)
    assert np.median(np.abs(FACES.age[pairs.one] - FACES.age[pairs.two])) < 12
    assert np.median(np.abs(FACES.age - generator.permutation(FACES.age))) > 20


def test_no_blend_spans_two_folds_or_leaves_the_training_part() -> None:
    """By the recipe; none where it asks for none."""
    split = split_of(FACES, Recipe())
    assert len(draw_pairs(FACES, split.train, Recipe())) == 0
    pairs = draw_pairs(FACES, split.train, Recipe(blends=2))
    fold = dict(zip(split.train.tolist(), folds_of(FACES, split.train, Recipe()).tolist(), strict=True))
    assert len(pairs) > len(split.train)
    assert all(fold[int(one)] == fold[int(two)] for one, two in zip(pairs.one, pairs.two, strict=True))


def test_a_blend_is_so_much_of_each() -> None:
    """Pixel by pixel."""
    black, white = np.zeros((2, 4, 4, 3), np.uint8), np.full((2, 4, 4, 3), 200, np.uint8)
    mixed = blend(black, white, np.array([0.25, 0.5], np.float32))
    np.testing.assert_allclose(mixed[:, 0, 0], [[150] * 3, [100] * 3])


def test_blends_come_after_the_faces(pictures: Path) -> None:
    """Their crops are the mean of the two, give or take what JPEG costs, colours in order."""
    faces = load_faces(pictures, Recipe(size_px=32).crop)
    rows, pairs = np.array([5, 3, 8]), Pairs(np.array([1, 2]), np.array([4, 7]), np.array([0.4, 0.6], np.float32))
    more = with_blends(faces, pairs, rows)
    assert more.names == (
        *(faces.names[row] for row in rows),
        "blend 0 of " + faces.names[4],
        "blend 1 of " + faces.names[2],
    )
    np.testing.assert_array_equal(more.crops([0, 1, 2]), faces.crops(rows))
    wanted = blend(faces.crops(pairs.one), faces.crops(pairs.two), pairs.share)
    assert np.abs(more.crops([3, 4]) - wanted).mean() < 6
    assert np.abs(more.crops([3, 4])[..., ::-1] - wanted).mean() > np.abs(more.crops([3, 4]) - wanted).mean()
    np.testing.assert_array_equal(with_blends(faces, NO_PAIRS, rows).age, faces.age[rows])


def test_what_has_no_label_is_taught_by_the_word_alone() -> None:
    """The age for the Huber loss, too."""
    word = Word(*(smoothed(generator.integers(0, width, 3), width, 0.5) for width in (117, 2, 5)))
    targets = targets_by(word, Recipe(), np.zeros((3, 0), np.float32))
    np.testing.assert_array_equal(targets.age[:, :-1], word.age)
    np.testing.assert_allclose(targets.age[:, -1], word.age @ np.arange(117), rtol=1e-5)
    np.testing.assert_array_equal(targets.gender, word.gender)


def test_blends_ask_for_networks_that_say_what_they_are(tmp_path: Path) -> None:
    """Nothing is written before that is known."""
    with pytest.raises(ConfigError, match="recipe blends: only face networks"):
        train(tmp_path, FACES, replace(Recipe(), blends=1.0), tmp_path / "run", init="none")
    assert not (tmp_path / "run").exists()
