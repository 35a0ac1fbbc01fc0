"""What inference/predictor.py promises, held against every engine: the same logits, however many crops come together.

The import and the load take seconds, so each engine is opened once for this file.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from inference.engines import open_engine
from inference.golden import judge
from inference.golden import read_golden as read_golden_batch
from inference.heads import Heads, read_heads
from inference.keras_model import BATCH_SIZES, padded_size
from inference.predictor import EXACT, ROUNDED, Crops, Logits, NamedEngine
from inference.tensorflow_predictor import TensorFlowPredictor
from pipeline.errors import ConfigError
from pipeline.manifest import DEFAULT_MODEL, MANIFEST_NAME, Manifest, load_manifest
from pipeline.manifest import ENGINES as MANIFEST_ENGINES
from tests.inference.conftest import drawn_crops
from tests.inference.golden_logits import DRAWN, GoldenLogits, read_golden
from tests.inference.remote import RemoteJax

ENGINES: dict[str, Callable[[Path], NamedEngine]] = {
    "tensorflow": partial(open_engine, "tensorflow"),
    "onnxruntime": partial(open_engine, "onnxruntime"),
    "litert": partial(open_engine, "litert"),
    "jax": RemoteJax,
}
EVERY = [pytest.param(name, marks=pytest.mark.slow if name == "jax" else ()) for name in ENGINES]  # JAX compiles

# Of the same pixels, largest: what the arithmetic of engines and processors may differ by, and the fourth decimal of the file;
# int8 differs by 0.1 (logits are 1 in size).
SAME_PIXELS = {EXACT: 2e-3, ROUNDED: 0.25}
# From picture to logits, on average: one grey level of noise and a crop moved by a tenth of a pixel, more than other builds of
# OpenCV differ by, make 0.06, int8 another 0.04; a crop cut eight pixels beside makes 0.22, swapped channels make 0.7.
SAME_PICTURES = 0.15


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    """Read how the shipped model is fed and read."""
    return load_manifest(DEFAULT_MODEL)


@pytest.fixture(scope="module", params=EVERY)
def predictor(request: pytest.FixtureRequest) -> Iterator[NamedEngine]:
    """Open each engine on the shipped model."""
    engine = ENGINES[str(request.param)](DEFAULT_MODEL)
    yield engine
    if isinstance(engine, RemoteJax):
        engine.close()


def test_an_engine_says_who_it_is_and_what_its_arithmetic_costs(predictor: NamedEngine, manifest: Manifest) -> None:
    """Only int8 rounds; and each is within its own tolerance on crops that nothing was calibrated with."""
    assert ENGINES.keys() == set(MANIFEST_ENGINES)
    assert predictor.manifest == manifest
    assert predictor.tolerance == (ROUNDED if predictor.name == "litert" else EXACT)
    batch = read_golden_batch(DEFAULT_MODEL, manifest)
    assert batch is not None
    found = judge(predictor, batch, manifest)
    assert found.n == 16
    assert found.within(predictor.tolerance), found


@pytest.fixture(scope="module")
def crops(manifest: Manifest) -> Crops:
    """Draw 65 crops of coloured clouds, each another."""
    rng = np.random.default_rng(7)
    coarse = rng.integers(0, 256, (65, 6, 6, 3), dtype=np.uint8)
    side = manifest.crop.size_px
    times = -(-side // 6)
    return coarse.repeat(times, axis=1).repeat(times, axis=2)[:, :side, :side]


@pytest.fixture(scope="module")
def alone(predictor: NamedEngine, crops: Crops) -> Logits:
    """Ask about every crop alone."""
    single = [predictor.predict(crops[n : n + 1]) for n in range(len(crops))]
    return Logits(*(np.concatenate(heads) for heads in zip(*single, strict=True)))


@pytest.mark.parametrize("count", [0, 1, 2, 4, 5, 17, 33, 64, 65])
def test_a_crop_gets_the_same_logits_alone_and_among_others(
    predictor: NamedEngine, manifest: Manifest, crops: Crops, alone: Logits, count: int
) -> None:
    """Any number of crops, none included, in order: neither padding nor cutting into parts changes an answer."""
    together = predictor.predict(crops[:count])
    first, last = manifest.ages
    assert [head.shape for head in together] == [(count, last - first + 1), (count, 2), (count, 5)]
    for head, single in zip(together, alone, strict=True):
        assert head.dtype == np.float32
        np.testing.assert_allclose(head, single[:count], atol=1e-4)


def test_the_order_of_crops_is_the_order_of_answers(predictor: NamedEngine, crops: Crops, alone: Logits) -> None:
    """Backwards in, backwards out."""
    for head, single in zip(predictor.predict(crops[::-1]), alone, strict=True):
        np.testing.assert_allclose(head, single[::-1], atol=1e-4)
    assert np.abs(alone.gender[0] - alone.gender[1]).max() > 1e-2  # they could be told apart


def test_the_same_crops_give_the_same_logits(predictor: NamedEngine, crops: Crops) -> None:
    """A replayed record is predicted as it was."""
    for one, other in zip(predictor.predict(crops[:8]), predictor.predict(crops[:8]), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def golden(manifest: Manifest) -> GoldenLogits:
    """Read what the shipped model said when it was exported."""
    read = read_golden()
    assert read.sha256 == manifest.sha256, "another model is shipped: run python -m tests.inference.golden_logits"
    return read


def test_the_same_pixels_get_the_logits_that_they_got_when_the_model_was_exported(
    predictor: NamedEngine, manifest: Manifest, golden: GoldenLogits
) -> None:
    """Every engine: weights, channel order, normalisation."""
    said = predictor.predict(drawn_crops(DRAWN, manifest.crop.size_px))
    for head, expected in zip(said, golden.drawn.logits(), strict=True):
        np.testing.assert_allclose(head, expected, atol=SAME_PIXELS[predictor.tolerance])


def away(said: Logits, golden: GoldenLogits) -> float:
    """Tell how far logits are from the golden ones of the demo's faces, on average over the head that is furthest."""
    heads = zip(said, golden.faces.logits(), strict=True)
    return float(max(np.abs(head - expected).mean() for head, expected in heads))


def test_the_demos_faces_get_the_logits_that_they_got_when_the_model_was_exported(
    predictor: NamedEngine, golden: GoldenLogits, cast_faces: dict[str, NDArray[np.uint8]]
) -> None:
    """From the picture on: detector, alignment, JPEG, and the network; and the tolerance notices what is wrong there."""
    right = np.stack(list(cast_faces.values()))
    assert away(predictor.predict(right), golden) < SAME_PICTURES
    swapped, beside = np.ascontiguousarray(right[..., ::-1]), np.roll(right, 8, axis=2)
    assert away(predictor.predict(swapped), golden) > SAME_PICTURES
    assert away(predictor.predict(beside), golden) > SAME_PICTURES


def test_what_is_said_of_the_demos_faces_is_mostly_what_they_were_drawn_as(
    predictor: NamedEngine, manifest: Manifest, cast_faces: dict[str, NDArray[np.uint8]]
) -> None:
    """Labels in the right order: women are more often taken for women, and the older half is older."""
    heads: Heads = read_heads(predictor.predict(np.stack(list(cast_faces.values()))), manifest)
    female = np.array([name.startswith("female") for name in cast_faces])
    assert ((heads.p_female > 0.5) == female).mean() > 0.8
    drawn = np.array([sum(map(int, name.removesuffix(".jpg").split("_")[-2:])) / 2 for name in cast_faces])
    assert np.corrcoef(heads.age, drawn)[0, 1] > 0.7
    groups = ("white", "black", "asian", "indian", "other")
    named = np.array([groups.index(name.split("_")[1]) for name in cast_faces])
    assert (heads.p_ethnicity.argmax(axis=1) == named).mean() > 0.6


# ── models that cannot be served ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Copy the shipped model."""
    return Path(shutil.copytree(DEFAULT_MODEL, tmp_path / "model"))


def trust(folder: Path) -> None:
    """Let the manifest agree with whatever the weights' file holds."""
    path = folder / MANIFEST_NAME
    said = json.loads(path.read_bytes())
    said["sha256"] = hashlib.sha256((folder / said["weights"]).read_bytes()).hexdigest()
    path.write_text(json.dumps(said))


@pytest.mark.parametrize("engine", EVERY)
def test_damaged_weights_are_named(folder: Path, engine: str) -> None:
    """One byte differs: the digest says so, before anything is loaded."""
    weights = folder / "model.keras"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ConfigError, match="damaged or swapped") as caught:
        ENGINES[engine](folder)
    assert str(weights) in str(caught.value)


@pytest.mark.parametrize("engine", EVERY)
def test_missing_weights_are_named(folder: Path, engine: str) -> None:
    """The manifest was copied without them."""
    (folder / "model.keras").unlink()
    with pytest.raises(ConfigError, match=r"model\.keras"):
        ENGINES[engine](folder)


@pytest.mark.parametrize("engine", EVERY)
def test_a_folder_without_a_manifest_is_no_model(tmp_path: Path, engine: str) -> None:
    """The message names what is missing."""
    with pytest.raises(ConfigError, match=MANIFEST_NAME):
        ENGINES[engine](tmp_path)


def empty_archive(weights: Path) -> None:
    """Write an archive of nothing."""
    with zipfile.ZipFile(weights, "w"):
        pass


def without(name: str) -> Callable[[Path], None]:
    """Take one file out of the archive."""

    def take_out(weights: Path) -> None:
        with zipfile.ZipFile(weights) as archive:
            kept = {member: archive.read(member) for member in archive.namelist() if member != name}
        with zipfile.ZipFile(weights, "w") as archive:
            for member, data in kept.items():
                archive.writestr(member, data)

    return take_out


def cut(weights: Path) -> None:
    """Keep the first half."""
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda weights: weights.write_bytes(b"no model"), id="text"),
        pytest.param(cut, id="half of it"),
        pytest.param(empty_archive, id="an empty archive"),
        pytest.param(without("config.json"), id="no configuration"),
        pytest.param(without("model.weights.h5"), id="no weights"),
    ],
)
def test_weights_that_keras_cannot_load_are_named(folder: Path, spoil: Callable[[Path], None]) -> None:
    """The manifest agrees with them, so they were exported so: the message says to export again."""
    weights = folder / "model.keras"
    spoil(weights)
    trust(folder)
    with pytest.raises(ConfigError, match="export it again") as caught:
        TensorFlowPredictor(folder)
    assert str(weights) in str(caught.value)


# ── TensorFlow's own ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_batches_are_padded_to_the_next_size() -> None:
    """A few shapes only, so that nothing is compiled while crops wait."""
    assert [padded_size(count) for count in (1, 2, 4, 5, 16, 17, 33, 64, 65)] == [1, 4, 4, 16, 16, 32, 64, 64, 64]


def test_warming_up_runs_every_size_once_and_says_how_far_it_is() -> None:
    """For the progress bar."""
    predictor = TensorFlowPredictor(DEFAULT_MODEL, batch_sizes=(1, 2))
    told: list[tuple[int, int]] = []
    predictor.warm_up(lambda done, of: told.append((done, of)))
    assert told == [(1, 2), (2, 2)]
    assert BATCH_SIZES[0] == 1
