"""Pictures to a run, a run to a model, a model to the services: on a small network, a few steps, drawn faces.

Steps run eagerly: tracing the training graph takes half a minute, and these tests take four steps.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from inference.engines import open_engine
from inference.golden import GOLDEN_FACES, judge, read_golden
from inference.heads import read_heads
from inference.predictor import ROUNDED
from inference.tensorflow_predictor import TensorFlowPredictor
from pipeline.errors import ConfigError
from pipeline.manifest import load_manifest
from training.commands import evaluate, export, train
from training.feeding import Feeder

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning"
    ),  # TensorFlow and Keras use what numpy and Python deprecate
    pytest.mark.filterwarnings("ignore:.*run_functions_eagerly.*:UserWarning"),  # it is what we ask for
]
SMALL = ["--init", "none", "--size", "32", "--batch", "16", "--limit", "44"]
RECIPE = {"alpha": 0.35, "head_units": 16, "frozen_blocks": 16, "split": "fold1/4", "patience": 0}


def invoke(arguments: list[str]) -> Any:
    """Run a command as the command line does; errors come through."""
    app = typer.Typer(pretty_exceptions_enable=False)
    for command in (train, evaluate, export):
        app.command()(command)
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def as_json(arguments: list[str]) -> Any:
    """Run a command with --json: nothing but JSON may be on standard output."""
    result = invoke([*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def training(data: Path, out: Path, **more: object) -> list[str]:
    """Say `train` on the small recipe."""
    settings = [f"--set={name}={value}" for name, value in {**RECIPE, **more}.items()]
    return ["train", "--data", str(data), "-o", str(out), *SMALL, *settings]


def parts(run: Path) -> dict[str, int]:
    """Say how many faces each part of a run's split has."""
    found: dict[str, int] = json.loads((run / "run.json").read_text())["parts"]
    return found


@contextmanager
def eager() -> Iterator[None]:
    """Run TensorFlow's functions step by step."""
    import tensorflow as tf  # noqa: PLC0415  seconds to import

    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train two epochs, to the end."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    with eager():
        found = as_json(training(pictures, out, epochs=2))
    assert found["epochs"] == 2
    assert found["figures"]["n"] == parts(out)["validation"]
    return out


def test_a_run_leaves_its_recipe_its_figures_and_a_model(run: Path) -> None:
    """Everything needed to say later what was done."""
    about = json.loads((run / "run.json").read_text())
    assert about["recipe"]["epochs"] == 2
    assert sum(about["parts"].values()) == about["data"]["faces"] == 44
    assert min(about["parts"].values()) >= 9
    rows = json.loads((run / "history.json").read_text())
    assert [row["epoch"] for row in rows] == [1, 2]
    assert {"loss", "age_mae", "val_age_mae", "val_gender_accuracy", "val_ethnicity_loss", "learning_rate"} <= set(
        rows[0]
    )
    manifest = load_manifest(run / "model")
    assert manifest.crop.size_px == 32
    assert set(manifest.temperatures) == {"age", "gender", "ethnicity"}
    assert (run / "history.png").stat().st_size > 1000


def test_the_service_s_engine_loads_and_reads_what_was_trained(run: Path) -> None:
    """Train, then serve: no step between."""
    predictor = TensorFlowPredictor(run / "model")
    heads = read_heads(predictor.predict(np.zeros((3, 32, 32, 3), np.uint8)), predictor.manifest)
    assert heads.age.shape == (3,)
    assert heads.p_ethnicity.sum(axis=1) == pytest.approx(1)


def test_a_killed_run_goes_on_to_the_same_weights(
    run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in its second epoch, then started again by the same words."""

    def killed(feeder: Feeder, epoch: int, most: int | None = None) -> Any:
        if epoch == 1:
            raise KeyboardInterrupt
        return whole(feeder, epoch, most)

    whole = Feeder.batches
    monkeypatch.setattr(Feeder, "batches", killed)
    out = tmp_path / "killed"
    with eager():
        invoke(training(pictures, out, epochs=2))
    assert not (out / "model").exists()
    assert len(json.loads((out / "history.json").read_text())) == 1
    monkeypatch.setattr(Feeder, "batches", whole)
    ended = Path(shutil.copytree(out, tmp_path / "ended"))
    with eager():
        assert as_json([*training(pictures, ended, epochs=2), "--finish"])["epochs"] == 1
    assert "best epoch 1 of 1" in load_manifest(ended / "model").trained_on
    with eager():
        as_json(training(pictures, out, epochs=2))
    with np.load(out / "state.npz") as again, np.load(run / "state.npz") as straight:
        assert set(again.files) == set(straight.files)
        for name in set(again.files) - {"meta"}:
            np.testing.assert_allclose(again[name], straight[name], rtol=1e-3, atol=1e-5)


def test_a_student_learns_from_a_run_and_from_a_bare_model(run: Path, pictures: Path, tmp_path: Path) -> None:
    """Both are asked on crops of their own recipes; which models they were is written down."""
    out = tmp_path / "student"
    with eager():
        found = as_json([*training(pictures, out, epochs=1), "--teacher", str(run), "--teacher", str(run / "model")])
    about = json.loads((out / "run.json").read_text())
    assert about["teachers"] == [load_manifest(run / "model").digest] * 2
    assert found["figures"]["n"] == parts(out)["validation"]
    alone = json.loads((run / "history.json").read_text())[0]
    taught = json.loads((out / "history.json").read_text())[0]
    assert taught["ethnicity_loss"] != alone["ethnicity_loss"]


def test_another_run_in_the_same_folder_is_refused(run: Path, pictures: Path, tmp_path: Path) -> None:
    """A finished run is never overwritten, another's state never taken up; the options that differ are named."""
    with pytest.raises(ConfigError, match="finished run"):
        invoke(training(pictures, run, epochs=2))
    half = tmp_path / "half"
    half.mkdir()
    shutil.copy(run / "run.json", half)
    with pytest.raises(ConfigError, match=r"dropout: 0\.3 there, 0\.1 now"):
        invoke(training(pictures, half, epochs=2, dropout=0.1))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("")
    with pytest.raises(ConfigError, match="nothing can be finished"):
        invoke([*training(pictures, half, epochs=2), "--finish"])
    with pytest.raises(ConfigError, match="no run of ours"):
        invoke(training(pictures, tmp_path / "other"))


def test_a_run_is_measured_on_the_test_part_of_its_own_split(run: Path, pictures: Path, tmp_path: Path) -> None:
    """The report has everything; its figures agree with its own confusion matrices."""
    out = tmp_path / "report"
    arguments = [
        "evaluate",
        "--data",
        str(pictures),
        "--model",
        str(run),
        "--part",
        "test",
        "--robustness",
        "4",
        "-o",
        str(out),
    ]
    found = as_json(arguments)
    count = parts(run)["test"]
    assert found["n"] == count
    assert {
        "age_mae",
        "age_mse",
        "age_bias",
        "age_cs5",
        "gender_accuracy",
        "ethnicity_accuracy",
        "by",
        "intervals",
    } <= set(found)
    assert sum(group["n"] for group in found["by"]["age_band"].values()) == count
    assert np.trace(found["confusion"]["gender"]) / count == pytest.approx(found["gender_accuracy"])
    assert 0 <= found["calibration"]["ethnicity"]["after"]["ece"] <= 1
    assert [row["value"] for row in found["robustness"]["face_px"]] == [64, 48, 32, 24, 16]
    assert json.loads((out / "report.json").read_text())["n"] == count
    assert len((out / "faces.csv").read_text().splitlines()) == count + 1
    report = (out / "report.md").read_text()
    for plot in out.glob("*.png"):
        assert f"({plot.name})" in report
    assert len(list(out.glob("*.png"))) == 8


def test_what_cannot_be_measured_is_refused(run: Path, pictures: Path, tmp_path: Path) -> None:
    """Another's split, an unknown part, no model, and weights that are not the manifest's."""
    (tmp_path / "faces").mkdir()
    for picture in sorted(pictures.iterdir())[:12]:
        shutil.copy(picture, tmp_path / "faces")
    with pytest.raises(ConfigError, match="its split means nothing here"):
        invoke(["evaluate", "--data", str(tmp_path / "faces"), "--model", str(run), "--part", "test"])
    with pytest.raises(ConfigError, match="part 'exam'"):
        invoke(["evaluate", "--data", str(pictures), "--part", "exam"])
    with pytest.raises(ConfigError, match=r"manifest\.json"):
        invoke(["evaluate", "--data", str(pictures), "--model", str(tmp_path)])
    shutil.copytree(run / "model", tmp_path / "damaged")
    with (tmp_path / "damaged" / "model.keras").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ConfigError, match="damaged or swapped"):
        invoke(["evaluate", "--data", str(pictures), "--model", str(tmp_path / "damaged")])


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Export for LiteRT; the SavedModel has a test of its own, which takes longer."""
    import tensorflow as tf  # noqa: PLC0415  seconds to import

    tf.config.run_functions_eagerly(False)
    out = tmp_path_factory.mktemp("models") / "small"
    return out, as_json(["export", "--model", str(run), "-o", str(out), "--formats", "litert,litert_int8"])


def test_both_litert_files_say_what_the_original_says(exported: tuple[Path, dict[str, Any]]) -> None:
    """To rounding in float; the int8 one within a year on average."""
    out, found = exported
    assert set(found["formats"]) == {"litert", "litert_int8"}
    for name, each in found["formats"].items():
        same = each["agreement"]
        assert same["n"] == 256
        assert (out / each["path"]).exists()
        if name == "litert_int8":
            assert same["age_mean_difference"] < 1
        else:
            assert same["age_largest_difference"] < 0.01
            assert same["probability_largest_difference"] < 1e-3
    sizes = {name: each["bytes"] for name, each in found["formats"].items()}
    assert sizes["litert_int8"] < sizes["litert"] / 2


@pytest.mark.slow
def test_the_onnx_file_says_what_the_original_says(run: Path, tmp_path: Path) -> None:
    """To rounding, by the names of the heads, for any number of crops, the golden ones too."""
    out = tmp_path / "model"
    found = as_json(["export", "--model", str(run), "-o", str(out), "--formats", "onnx"])
    same = found["formats"]["onnx"]["agreement"]
    assert same["age_largest_difference"] < 0.01
    assert same["probability_largest_difference"] < 1e-3
    engine = open_engine("onnxruntime", out)
    golden = read_golden(out, engine.manifest)
    assert golden is not None
    for values, expected in zip(engine.predict(golden.crops), golden.logits, strict=True):
        np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-4)
    assert engine.predict(golden.crops[:1]).age.shape == (1, 117)


def test_onnx_without_its_packages_is_refused_before_any_work(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the command that installs them."""
    from training import export as module  # noqa: PLC0415  imports Keras

    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"tf2onnx must .* pip install demographics\[training\]"):
        invoke(["export", "--model", str(run), "-o", str(tmp_path / "x"), "--formats", "onnx"])
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_the_saved_model_takes_bytes_and_gives_probabilities(run: Path, tmp_path: Path) -> None:
    """One signature, for whoever has TensorFlow and nothing of ours; it says what the original says."""
    import tensorflow as tf  # noqa: PLC0415  seconds to import

    found = as_json(["export", "--model", str(run), "-o", str(tmp_path / "model"), "--formats", "saved_model"])
    same = found["formats"]["saved_model"]["agreement"]
    assert same["age_largest_difference"] < 0.01
    assert same["probability_largest_difference"] < 1e-3
    assert found["digest"] == load_manifest(run / "model").digest
    loaded = tf.saved_model.load(str(tmp_path / "model" / "saved_model"))
    assert list(loaded.signatures) == ["serving_default"]
    out = loaded.signatures["serving_default"](crops=tf.zeros((2, 32, 32, 3), tf.uint8))
    assert set(out) == {"age", "gender", "ethnicity", "age_years", "age_spread"}
    for name in ("age", "gender", "ethnicity"):
        assert np.asarray(out[name]).sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_the_golden_batch_is_what_the_served_model_gives(exported: tuple[Path, dict[str, Any]]) -> None:
    """What every engine must reproduce; the LiteRT file that was exported is taken as it is, nothing is converted."""
    predictor = TensorFlowPredictor(exported[0])
    golden = read_golden(exported[0], predictor.manifest)
    assert golden is not None
    assert len(golden.crops) == GOLDEN_FACES
    for values, expected in zip(predictor.predict(golden.crops), golden.logits, strict=True):
        np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-4)
    said: list[str] = []
    engine = open_engine("litert", exported[0], say=said.append)
    assert judge(engine, golden, engine.manifest).within(ROUNDED)
    assert not [what for what in said if "converting" in what]


def test_what_cannot_be_exported_is_refused(run: Path, exported: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """An unknown format, a folder that is there, no model, and a model of another shape than its manifest."""
    with pytest.raises(ConfigError, match="exists already"):
        invoke(["export", "--model", str(run), "-o", str(exported[0])])
    with pytest.raises(ConfigError, match="tensorrt"):
        invoke(["export", "--model", str(run), "-o", str(tmp_path / "x"), "--formats", "tensorrt"])
    with pytest.raises(ConfigError, match="no such run"):
        invoke(["export", "--model", str(tmp_path / "none"), "-o", str(tmp_path / "x")])
    manifest = json.loads((run / "model" / "manifest.json").read_text())
    manifest["crop"]["size_px"] = 64
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    arguments = ["export", "--model", str(run / "model" / "model.keras"), "--manifest", str(tmp_path / "manifest.json")]
    with pytest.raises(ConfigError, match=r"\(None, 64, 64, 3\) is wanted"):
        invoke([*arguments, "-o", str(tmp_path / "x"), "--formats", "none"])


def test_a_start_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """No file, no weights, weights of another width."""
    import keras  # noqa: PLC0415  seconds to import

    from training.model import build_model  # noqa: PLC0415
    from training.recipe import Recipe  # noqa: PLC0415

    recipe = Recipe(size_px=32, alpha=0.35, head_units=8)
    (tmp_path / "text.weights.h5").write_text("not weights")
    other = keras.applications.MobileNetV2(input_shape=(32, 32, 3), alpha=0.5, include_top=False, weights=None)
    other.save_weights(tmp_path / "other.weights.h5")
    for name, says in (
        ("missing.weights.h5", "no such file"),
        ("text.weights.h5", "not the weights"),
        ("other.weights.h5", "not the weights"),
    ):
        with pytest.raises(ConfigError, match=says):
            build_model(recipe, str(tmp_path / name))


def test_training_goes_on_from_a_finished_run_or_model(run: Path, tmp_path: Path) -> None:
    """All weights, heads included; a folder that holds no model, or one of another width, is refused."""
    from training.model import build_model  # noqa: PLC0415  imports Keras
    from training.model_folder import load_keras  # noqa: PLC0415
    from training.recipe import Recipe  # noqa: PLC0415

    recipe = Recipe(size_px=32, alpha=0.35, head_units=16)
    own = load_keras(run / "model" / "model.keras").get_weights()
    for folder in (run, run / "model"):
        model = build_model(recipe, str(folder), for_training=True)
        assert all(np.array_equal(one, other) for one, other in zip(own, model.get_weights(), strict=True))
    with pytest.raises(ConfigError, match="weights of another shape"):
        build_model(Recipe(size_px=32, alpha=0.35, head_units=8), str(run))
    with pytest.raises(ConfigError, match=r"manifest\.json"):
        build_model(recipe, str(tmp_path))


def test_the_whole_network_has_at_most_its_parameters() -> None:
    """The recipe's own width fits in 3.6 million; wider heads are refused."""
    from training.model import MOST_PARAMETERS, build_model  # noqa: PLC0415  imports Keras
    from training.recipe import Recipe  # noqa: PLC0415

    assert build_model(Recipe()).count_params() <= MOST_PARAMETERS
    with pytest.raises(ConfigError, match="take fewer"):
        build_model(Recipe(head_units=512, size_px=32))


def test_plots_without_matplotlib_are_refused_before_any_work(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install demographics\[training\]"):
        invoke(["evaluate", "--data", str(pictures), "-o", str(tmp_path / "report")])


@pytest.mark.slow
@pytest.mark.skipif(find_spec("jax") is None, reason="JAX is not installed")
def test_jax_trains_it_too(pictures: Path, tmp_path: Path) -> None:
    """The same command on the other back end; TensorFlow serves what came out."""
    out = tmp_path / "run"
    code = "import typer; from training.commands import train; app = typer.Typer(); app.command()(train); app()"
    command = [sys.executable, "-W", "ignore", "-c", code, *training(pictures, out, epochs=1)[1:]]
    subprocess.run(command, check=True, timeout=170, env={**os.environ, "KERAS_BACKEND": "jax"})
    assert TensorFlowPredictor(out / "model").predict(np.zeros((1, 32, 32, 3), np.uint8)).age.shape == (1, 117)
