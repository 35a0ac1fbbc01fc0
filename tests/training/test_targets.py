"""What the heads are taught."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.heads import softmax
from inference.predictor import Logits
from training.dataset import Faces
from training.recipe import Recipe
from training.targets import (
    Targets,
    Word,
    age_distribution,
    draw_epoch,
    drawing_weights,
    head_losses,
    huber,
    make_targets,
    mixed_up,
    oversampling_shift,
    smoothed,
)

YEARS = np.arange(117)


@given(st.lists(st.integers(0, 116), min_size=1, max_size=20))
def test_an_age_label_is_a_distribution_with_its_top_at_the_age(ages: list[int]) -> None:
    """Rows sum to one; away from the ends the expectation is the age."""
    spread = age_distribution(np.array(ages, np.float32), Recipe())
    assert spread.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert spread.argmax(axis=1).tolist() == ages
    for age, row in zip(ages, spread, strict=True):
        if 12 <= age <= 104:
            assert row @ YEARS == pytest.approx(age, abs=0.01)


def test_a_baby_s_age_is_known_better() -> None:
    """One year of spread at birth, two and a half when grown."""
    baby, adult = age_distribution(np.array([0, 50], np.float32), Recipe())
    assert baby.max() > 2 * adult.max()


def test_smoothing_spreads_a_label_over_all_classes() -> None:
    """0.1 over five classes leaves 0.92."""
    assert smoothed(np.array([2]), 5, 0.1)[0].tolist() == pytest.approx([0.02, 0.02, 0.92, 0.02, 0.02])


def test_a_teacher_s_word_is_mixed_in_by_its_share(faces: Faces) -> None:
    """Half own, half said, the age for the Huber loss, too."""
    teacher = Word(
        np.full((200, 117), 1 / 117, np.float32), np.full((200, 2), 0.5, np.float32), np.full((200, 5), 0.2, np.float32)
    )
    recipe = Recipe(distillation=0.5, gender_smoothing=0, ethnicity_smoothing=0)
    mixed = make_targets(faces, recipe, teacher)
    assert mixed.gender.max() == pytest.approx(0.75)
    assert mixed.ethnicity.max() == pytest.approx(0.6)
    assert mixed.age[:, :-1].sum(axis=1) == pytest.approx(1, abs=1e-5)
    said = teacher.age @ np.arange(teacher.age.shape[1])
    assert mixed.age[:, -1] == pytest.approx((faces.age + said) / 2)
    # Wholly the teacher's, nothing of a face's own label is left to be learned by heart.
    other = replace(faces, age=faces.age[::-1], gender=1 - faces.gender, ethnicity=(faces.ethnicity + 1) % 5)
    by_the_teacher, by_the_same = (make_targets(each, Recipe(distillation=1), teacher) for each in (faces, other))
    for one, same in zip(by_the_teacher, by_the_same, strict=True):
        assert one == pytest.approx(same)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.1, 5), min_size=1, max_size=60), st.integers(0, 100), st.integers(0, 100))
def test_an_epoch_draws_each_face_as_often_as_it_weighs(weights: list[float], seed: int, epoch: int) -> None:
    """Give or take one; the same again for the same seed and epoch."""
    share = np.array(weights) / np.mean(weights)
    rows = draw_epoch(share, seed=seed, epoch=epoch)
    assert len(rows) == len(weights)
    assert (np.abs(np.bincount(rows, minlength=len(weights)) - share) < 1 + 1e-6).all()
    assert (draw_epoch(share, seed=seed, epoch=epoch) == rows).all()


def test_without_balance_an_epoch_is_every_face_once(faces: Faces) -> None:
    """A plain shuffle."""
    rows = draw_epoch(drawing_weights(faces, Recipe(age_balance=0, ethnicity_balance=0)), seed=1, epoch=1)
    assert sorted(rows) == list(range(len(faces)))


def test_rare_groups_are_drawn_more_often_but_not_without_end(faces: Faces) -> None:
    """One child of "other" among a thousand white adults; each balance looks at its own label."""
    ages = np.array([5] + [30] * 1000, np.float32)
    common = replace(faces, names=("",) * 1001, age=ages, ethnicity=np.array([4] + [0] * 1000))
    for recipe in (Recipe(age_balance=0.5, ethnicity_balance=0), Recipe(age_balance=0, ethnicity_balance=0.5)):
        weights = drawing_weights(common, recipe)
        assert weights.mean() == pytest.approx(1, abs=0.01)
        assert weights[0] == pytest.approx(5, abs=0.1)
    of_one_age = drawing_weights(replace(common, age=np.full(1001, 30, np.float32)), Recipe(ethnicity_balance=0))
    assert of_one_age == pytest.approx(1)


def test_a_sure_and_right_answer_costs_least(faces: Faces) -> None:
    """Losses fall as the logits come nearer to the labels, down to the labels' own entropy."""
    recipe = Recipe(age_huber=0.05)
    targets = make_targets(faces, recipe)
    exact = Logits(
        *(np.log(np.maximum(head, 1e-9)) for head in (targets.age[:, :-1], targets.gender, targets.ethnicity))
    )
    flat = Logits(*(np.zeros_like(head) for head in exact))
    best, worst = head_losses(exact, targets, recipe), head_losses(flat, targets, recipe)
    assert all(best[name] < worst[name] for name in best)
    assert worst["gender"] == pytest.approx(np.log(2))
    entropy = -(targets.gender * np.log(targets.gender)).sum(axis=1).mean()
    assert best["gender"] == pytest.approx(entropy, rel=1e-3)
    assert softmax(exact.age).shape == (200, 117)


def test_huber_is_smooth_at_one_year() -> None:
    """Half the square below, linear above."""
    assert huber(np.array([0, 1, -3.0])).tolist() == [0, 0.5, 2.5]


def test_the_oversampling_of_ages_is_taken_back_exactly() -> None:
    """What believes in the drawn shares, less the shift, believes in the natural ones: Bayes' rule."""
    generator = np.random.default_rng(0)
    labels = np.eye(6, dtype=np.float32)[[0] * 60 + [1] * 30 + [2] * 10]  # years 3 to 5 have no face
    weights = np.repeat([0.5, 1.0, 4.0], [60, 30, 10])
    evidence = generator.dirichlet(np.ones(6), 7)
    natural = labels.mean(axis=0)
    drawn = (labels * weights[:, None]).mean(axis=0)
    drawn /= drawn.sum()
    said = np.log(np.maximum(evidence * drawn, 1e-30)).astype(np.float32)
    wanted = evidence * natural
    wanted /= wanted.sum(axis=1, keepdims=True)
    shift = oversampling_shift(labels, weights)
    np.testing.assert_allclose(softmax(said - shift), wanted, atol=1e-5)
    assert shift[3:] == pytest.approx(0, abs=1e-6)


@given(st.integers(2, 12), st.floats(0.05, 2), st.integers(0, 2**32 - 1))
def test_a_blend_is_one_share_of_crop_and_labels_alike(count: int, alpha: float, seed: int) -> None:
    """Crops that say who they are come back with labels of the very same blend, mostly of the face itself."""
    labels = np.eye(count, dtype=np.float32)
    crops = (255 * np.broadcast_to(labels[:, None, None, :], (count, 2, 2, count))).astype(np.uint8)
    blended, targets = mixed_up(crops, Targets(labels, labels, labels, labels), np.random.default_rng(seed), alpha)
    for said in targets:
        assert said.sum(axis=1) == pytest.approx(1, abs=1e-5)
        assert np.diagonal(said).min() >= 0.5 - 1e-6
        assert blended / 255 == pytest.approx(
            np.broadcast_to(said[:, None, None, :], crops.shape), abs=0.5 / 255 + 1e-6
        )


def test_no_blending_leaves_the_batch_alone() -> None:
    """Mix-up of 0 gives the very arrays that came."""
    crops, labels = np.zeros((2, 1, 1, 3), np.uint8), np.eye(2, dtype=np.float32)
    targets = Targets(labels, labels, labels, labels)
    assert mixed_up(crops, targets, np.random.default_rng(0), 0.0) == (crops, targets)
