"""Blends are pictures of two faces that one network has not learned, and are taught by the networks' word alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.yunet_detector import YunetDetector
from pipeline.errors import ConfigError
from training.blending import NO_BLENDS, NO_PAIRS, Pairs, make_blends, pair_up, with_blends
from training.dataset import Faces, cut_face, decode_picture, find_face, load_faces
from training.face_network import draw_pairs, folds_of
from training.recipe import Recipe
from training.splits import difference_hash
from training.targets import Word, smoothed, targets_by
from training.train import split_of, train

CAST = Path(__file__).parents[2] / "demo" / "cast"
PAIRS = Pairs(
    np.array([1, 2, 7]),
    np.array([4, 7, 12]),
    np.array([0.5, 0.3, 0.7], np.float32),
    np.array([0.4, 0.6, 1.0], np.float32),
)

generator = np.random.default_rng(4)
COUNT = 150
FACES = Faces(
    names=tuple(f"face{number}.jpg" for number in range(COUNT)),
    jpegs=(b"",) * COUNT,
    age=generator.integers(0, 100, COUNT).astype(np.float32),
    gender=generator.integers(0, 2, COUNT),
    ethnicity=generator.integers(0, 5, COUNT),
    face_px=np.where(np.arange(COUNT) < 140, 100, 0).astype(np.float32),
    landmarks=np.full((COUNT, 5, 2), np.nan, np.float32),
    hashes=np.stack([difference_hash(generator.integers(0, 256, (20, 20, 3)).astype(np.uint8)) for _ in range(COUNT)]),
    crop=Recipe().crop,
    digest="0" * 64,
)


@given(each=st.floats(0.1, 3), seed=st.integers(0, 1000), folds=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_a_blend_is_of_two_faces_that_are_alike_and_lie_in_one_fold(each: float, seed: int, folds: int) -> None:
    """Of one gender, both found, among those to learn from; as many as asked for; the same for the same seed."""
    learning = np.sort(np.random.default_rng(seed).choice(COUNT, 120, replace=False))
    fold = np.random.default_rng(seed).integers(0, folds, len(learning))
    pairs = pair_up(FACES, learning, fold, each=each, seed=seed)
    place = {int(row): number for number, row in enumerate(learning)}
    ones, twos = ([place[int(row)] for row in rows] for rows in (pairs.one, pairs.two))
    assert np.array_equal(fold[ones], fold[twos])
    assert np.array_equal(FACES.gender[pairs.one], FACES.gender[pairs.two])
    assert (pairs.one != pairs.two).all()
    assert (FACES.face_px[np.concatenate([pairs.one, pairs.two])] > 0).all()
    # A face of few that are alike may find no other.
    there = FACES.face_px[learning] > 0
    _, few = np.unique(np.stack([fold[there], FACES.gender[learning][there]], axis=1), axis=0, return_counts=True)
    asked = each * there.sum()
    assert asked - few[few <= 5].sum() * np.ceil(each) - 0.51 <= len(pairs) <= asked + 0.51
    assert ((pairs.share >= 0.35) & (pairs.share <= 1)).all()
    assert ((pairs.shape >= 0.2) & (pairs.shape <= 0.8)).all()
    again = pair_up(FACES, learning, fold, each=each, seed=seed)
    for name in ("one", "two", "shape", "share"):
        np.testing.assert_array_equal(getattr(pairs, name), getattr(again, name))


def test_the_two_are_near_in_age() -> None:
    """Every two: the oldest are not paired with the youngest, with whom the order ends and begins."""
    learning = np.arange(COUNT)
    pairs = pair_up(FACES, learning, np.zeros(COUNT, np.int64), each=2, seed=0)
    apart = np.abs(FACES.age[pairs.one] - FACES.age[pairs.two])
    assert np.median(apart) < 12
    assert apart.max() < 50
    assert np.median(np.abs(FACES.age - generator.permutation(FACES.age))) > 20


def test_no_blend_spans_two_folds_or_leaves_the_training_part() -> None:
    """By the recipe; none where it asks for none."""
    split = split_of(FACES, Recipe())
    assert len(draw_pairs(FACES, split.train, Recipe())) == 0
    pairs = draw_pairs(FACES, split.train, Recipe(blends=2))
    fold = dict(zip(split.train.tolist(), folds_of(FACES, split.train, Recipe()).tolist(), strict=True))
    assert len(pairs) > len(split.train)
    assert all(fold[int(one)] == fold[int(two)] for one, two in zip(pairs.one, pairs.two, strict=True))


def test_a_blend_is_a_picture_with_a_face_where_it_says() -> None:
    """Of the first's size; a detector finds it there."""
    faces = load_faces(CAST, Recipe().crop)
    blends = make_blends(CAST, faces, PAIRS)
    assert len(blends) == 3
    detector = YunetDetector()
    for picture, landmarks in zip(blends.pictures, blends.landmarks, strict=True):
        image = decode_picture(picture)
        assert image.shape == (200, 200, 3)
        found = find_face(image, faces.crop, detector)
        assert found is not None
        assert np.abs(found.landmarks - landmarks).max() < 8


def test_blends_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are kept for those pairs alone; progress is told for what is made."""
    faces = load_faces(CAST, Recipe().crop)
    told: list[tuple[int, int]] = []
    pairs = replace(PAIRS, shape=PAIRS.shape + np.float32(0.01))
    first = make_blends(CAST, faces, pairs, lambda *at: told.append(at))
    assert told == [(1, 3), (2, 3), (3, 3)]
    monkeypatch.setattr("training.blending.read_pictures", lambda _: {})
    again = make_blends(CAST, faces, pairs)
    assert again.pictures == first.pictures
    np.testing.assert_array_equal(again.landmarks, first.landmarks)
    with pytest.raises(KeyError):
        make_blends(CAST, faces, replace(pairs, share=np.asarray(pairs.share / 2, np.float32)))
    assert make_blends(CAST, faces, NO_PAIRS) is NO_BLENDS


def test_two_that_do_not_fit_are_left_out() -> None:
    """A face whose landmarks lie in one point; the others keep their places."""
    faces = load_faces(CAST, Recipe().crop)
    landmarks = faces.landmarks.copy()
    landmarks[7] = 50
    blends = make_blends(CAST, replace(faces, landmarks=landmarks), PAIRS)
    assert blends.pairs.one.tolist() == [1]
    assert blends.pairs.two.tolist() == [4]


def test_blends_come_after_the_faces() -> None:
    """Cut like those; under the labels of the one there is more of."""
    faces = load_faces(CAST, Recipe(size_px=48).crop)
    rows, blends = np.array([5, 3, 8]), make_blends(CAST, faces, PAIRS)
    more = with_blends(faces, blends, rows)
    assert more.names == (
        *(faces.names[row] for row in rows),
        *(f"blend {number} of {faces.names[row]}" for number, row in enumerate((4, 2, 7))),
    )
    assert more.age.tolist() == faces.age[[5, 3, 8, 4, 2, 7]].tolist()
    np.testing.assert_array_equal(more.crops([0, 1, 2]), faces.crops(rows))
    np.testing.assert_array_equal(more.landmarks[3:], blends.landmarks)
    for crop, picture, landmarks in zip(more.crops([3, 4, 5]), blends.pictures, blends.landmarks, strict=True):
        wanted = cut_face(decode_picture(picture), landmarks, faces.crop)[..., ::-1]
        assert np.abs(crop.astype(int) - wanted).mean() < 6  # what JPEG costs
        assert np.abs(crop.astype(int) - wanted).mean() < np.abs(crop[..., ::-1].astype(int) - wanted).mean()
    np.testing.assert_array_equal(with_blends(faces, NO_BLENDS, rows).age, faces.age[rows])


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
