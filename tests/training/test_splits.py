"""Which faces train, choose and test."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from training.dataset import Faces
from training.splits import GROUPED, Split, difference_hash, near_duplicates, split_faces, spread_evenly, strata


def split(faces: Faces, name: str = "grouped", seed: int = 0) -> Split:
    """Split by labels and hashes."""
    return split_faces(
        name, hashes=faces.hashes, age=faces.age, gender=faces.gender, ethnicity=faces.ethnicity, seed=seed
    )


@pytest.mark.parametrize("name", ["grouped", "validation", "seed", "fold2/5"])
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000))
def test_every_face_is_in_one_part_and_stays_there(name: str, seed: int) -> None:
    """The same faces, name and seed give the same parts."""
    generator = np.random.default_rng(1)
    hashes = generator.integers(0, 2**63, (120, 2, 4)).astype(np.uint64)
    age = generator.integers(0, 90, 120).astype(np.float32)
    gender, ethnicity = generator.integers(0, 2, 120), generator.integers(0, 5, 120)
    parts, again = (
        split_faces(name, hashes=hashes, age=age, gender=gender, ethnicity=ethnicity, seed=seed) for _ in range(2)
    )
    assert sorted(np.concatenate(parts)) == list(range(120))
    for first, second in zip(parts, again, strict=True):
        assert (first == second).all()


def test_the_original_split_has_its_shares(faces: Faces) -> None:
    """60 / 24 / 16 %."""
    assert [len(part) for part in split(faces, "seed")] == [120, 48, 32]


def test_the_grouped_split_has_its_shares_in_every_large_cell(faces: Faces) -> None:
    """Stratified: within a gender, the test part has its share, give or take little."""
    parts = split(faces)
    for gender in (0, 1):
        share = (faces.gender[parts.test] == gender).sum() / (faces.gender == gender).sum()
        assert abs(share - GROUPED[2]) < 0.05


def test_folds_share_no_test_face_and_cover_all(faces: Faces) -> None:
    """Cross-validation tests every face once."""
    tests = np.concatenate([split(faces, f"fold{number}/5").test for number in range(1, 6)])
    assert sorted(tests) == list(range(len(faces)))


def test_teachers_leave_out_every_face_that_a_student_learns_once_and_see_no_test_face(faces: Faces) -> None:
    """Each learns the rest of the student's training part, and chooses on the student's validation part."""
    student = split(faces)
    teachers = [split(faces, f"teacher{number}/3") for number in (1, 2, 3)]
    assert sorted(np.concatenate([each.test for each in teachers])) == sorted(student.train)
    for each in teachers:
        assert sorted(np.concatenate([each.train, each.test])) == sorted(student.train)
        assert (each.validation == student.validation).all()


@pytest.mark.parametrize("name", ["random", "teacher4/3", "fold0/5", "fold6/5", "fold1/2", "fold1/99"])
def test_an_unknown_split_is_refused(name: str, faces: Faces) -> None:
    """With the names that are known."""
    with pytest.raises(ConfigError, match="grouped, validation, seed"):
        split(faces, name)


def smooth_picture(number: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Make a picture with large shapes, as photographs have."""
    noise = np.random.default_rng(number).integers(0, 256, (12, 12, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(noise, (200, 200), interpolation=cv2.INTER_CUBIC), np.uint8)


def test_a_picture_saved_again_scaled_or_mirrored_is_a_twin_and_others_are_not() -> None:
    """Twins, and a stranger at each end."""
    picture = smooth_picture(0)
    _, data = cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, 40))
    again = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    scaled = np.asarray(cv2.resize(picture, (90, 90), interpolation=cv2.INTER_AREA), np.uint8)
    mirrored = np.ascontiguousarray(picture[:, ::-1])
    brighter = np.asarray(cv2.convertScaleAbs(picture, alpha=0.9, beta=12), np.uint8)
    pictures = [smooth_picture(1), picture, again, scaled, mirrored, brighter, smooth_picture(2)]
    groups = near_duplicates(np.stack([difference_hash(each) for each in pictures]))
    assert len(set(groups[1:6].tolist())) == 1
    assert len(set(groups.tolist())) == 3


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=80), st.integers(0, 100))
def test_a_group_is_never_torn(groups: list[int], seed: int) -> None:
    """Whatever the groups are, each has one place."""
    cells = np.array(["a" if group % 2 else "b" for group in groups])
    place = spread_evenly(np.array(groups), cells, seed)
    assert ((place >= 0) & (place < 1)).all()
    for group in set(groups):
        assert len(set(place[np.array(groups) == group].tolist())) == 1


def test_a_stratum_is_age_band_gender_and_ethnicity() -> None:
    """Three labels make a cell."""
    assert strata(np.array([30], np.float32), np.array([1]), np.array([2])).tolist() == ["25-34/1/2"]


def test_no_faces_make_no_groups() -> None:
    """The empty set is no special case."""
    assert near_duplicates(np.zeros((0, 2, 4), np.uint64)).tolist() == []
