"""A teacher labels the faces that it has not learned."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from training import train as module
from training.dataset import Faces
from training.recipe import Recipe
from training.train import split_of, teacher_targets

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorFlow uses what numpy and Python deprecate


def run(folder: Path, split: str, digest: str) -> Path:
    """Leave what a run of that split says of itself."""
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"recipe": {"split": split}, "data": {"digest": digest}}))
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Let each teacher say its own number, and note which faces it was asked about."""
    found: dict[str, list[str]] = {}

    def said(teacher: Path, _data: Path, names: Sequence[str], *_: Any) -> list[np.ndarray[Any, Any]]:
        found[teacher.name] = list(names)
        return [np.full((len(names), width), float(teacher.name), np.float32) for width in (117, 2, 5)]

    monkeypatch.setattr(module, "_said_by", said)
    return found


def test_each_face_is_labelled_by_those_that_did_not_learn_it(
    faces: Faces, tmp_path: Path, asked: dict[str, list[str]]
) -> None:
    """In the training part by the one that left it out; elsewhere by all, in equal parts."""
    teachers = [run(tmp_path / str(number), f"teacher{number}/3", faces.digest) for number in (1, 2, 3)]
    targets = teacher_targets(teachers, tmp_path, faces, Recipe())
    assert targets is not None
    parts = split_of(faces, Recipe())
    for number in (1, 2, 3):
        left_out = split_of(faces, Recipe(split=f"teacher{number}/3")).test
        assert (targets.age[left_out] == number).all()
        assert set(asked[str(number)]) == {faces.names[row] for row in (*left_out, *parts.validation, *parts.test)}
    for head in targets:
        assert (head[parts.validation] == 2).all()
    assert [head.shape[1] for head in targets] == [117, 2, 5]


def test_where_all_have_learned_a_face_all_are_asked(faces: Faces, tmp_path: Path, asked: dict[str, list[str]]) -> None:
    """Bare models, runs of other data, and runs that shared a face."""
    bare = tmp_path / "4"
    bare.mkdir()
    teachers = [bare, run(tmp_path / "6", "grouped", faces.digest), run(tmp_path / "8", "teacher1/3", "f" * 64)]
    targets = teacher_targets(teachers, tmp_path, faces, Recipe())
    assert targets is not None
    parts = split_of(faces, Recipe())
    assert (targets.gender[parts.train] == 6).all()
    assert (targets.gender[parts.validation] == 6).all()
    assert set(asked["4"]) == {faces.names[row] for row in parts.train}
    assert set(asked["6"]) == set(faces.names)
    assert teacher_targets([], tmp_path, faces, Recipe()) is None
