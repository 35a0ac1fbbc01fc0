"""A trained network to a model's folder, and to the formats that other engines read, each compared with the original.

model.keras           logits; what the services load
manifest.json         digest, crop recipe, ages, temperatures, figures
golden.npz            crops of faces that belong to nobody, with their logits: what every engine must give (inference/golden.py)
saved_model/          TensorFlow, one signature `serving_default`: uint8 crops in, probabilities out
model.onnx            ONNX: float RGB 0..255 in, any number of crops, logits out by the heads' names
model.tflite          LiteRT, float32: float RGB 0..255 in, logits out
model_int8.tflite     LiteRT, quantised: uint8 RGB in, logits out; softmax and expectation stay outside, in float
formats.json          digest, size and agreement of each format
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import keras
import msgspec
import numpy as np

from inference.conversion import freeze, spanning, to_litert, to_onnx
from inference.golden import Agreement, agreement
from inference.litert_predictor import LitertPredictor
from inference.onnxruntime_predictor import OnnxruntimePredictor
from inference.predictor import Crops, Logits
from pipeline.attributes import ATTRIBUTES
from pipeline.errors import ConfigError
from pipeline.manifest import MANIFEST_NAME, Manifest, load_manifest, verified_weights
from training.golden import CAST, make_golden, sample_crops
from training.model import predict_logits
from training.model_folder import check_shapes, load_keras, write_json, write_model
from training.recipe import Recipe, make_recipe
from training.train import BEST_NAME, RUN_NAME, load_best, read_run

FORMATS: Final = ("saved_model", "onnx", "litert", "litert_int8")
FORMATS_NAME: Final = "formats.json"
CALIBRATION_FACES: Final = 256

Say = Callable[[str], None]


def open_model(source: Path, manifest: Path | None = None) -> tuple[Any, Manifest, Path | None]:
    """Load what is to be exported: a run's folder, a model's folder, or a .keras file with *manifest* beside or named.

    Gives the network, its manifest and its file, if it has one yet. Raises ConfigError where it is none of these.
    """
    if (source / RUN_NAME).is_file() and not (source / "model").is_dir():
        if not (source / BEST_NAME).is_file():
            raise ConfigError(f"run {source}: not one epoch is done yet; let `demographics train` go on first")
        recipe: Recipe = make_recipe(read_run(source)["recipe"])
        about = "a run that is not finished"
        unfinished = Manifest(
            name=source.name, weights="", sha256="", crop=recipe.crop, ages=recipe.ages, trained_on=about
        )
        return load_best(source, recipe), unfinished, None
    folder = source / "model" if (source / RUN_NAME).is_file() else source
    if folder.is_dir():
        found = load_manifest(folder)
        weights = verified_weights(folder, found)
        return load_keras(weights), found, weights
    if not source.is_file():
        raise ConfigError(f"model {source}: no such run, model folder or .keras file")
    beside = manifest or source.parent / MANIFEST_NAME
    try:
        found = msgspec.json.decode(beside.read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(
            f"model {source}: no readable manifest {beside} ({error}); name one with --manifest"
        ) from error
    return load_keras(source), found, source


def check_export(folder: Path, formats: Sequence[str]) -> None:
    """Raise ConfigError where *formats* are not ours or *folder* is taken, before anything is loaded."""
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise ConfigError(f"formats {', '.join(unknown)}: not one of {', '.join(FORMATS)}")
    if formats and keras.backend.backend() != "tensorflow":
        raise ConfigError(
            f"Keras runs on {keras.backend.backend()} here; unset KERAS_BACKEND to export for other engines"
        )
    if "onnx" in formats and find_spec("tf2onnx") is None:
        raise ConfigError(
            "formats onnx: tf2onnx must be installed: pip install demographics[training]; or name the other --formats"
        )
    if folder.exists():
        raise ConfigError(f"out {folder}: exists already; name another folder with -o, or remove it")


def export_model(
    model: Any,
    manifest: Manifest,
    folder: Path,
    *,
    formats: Sequence[str] = FORMATS,
    weights: Path | None = None,
    data: Path | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Write the whole folder and measure every format; gives what formats.json says. Raises ConfigError."""
    check_export(folder, formats)
    check_shapes(model, manifest)
    crops = sample_crops(manifest, data or CAST, CALIBRATION_FACES)
    original = predict_logits(model, lambda rows: crops[rows], len(crops))
    say("model.keras, manifest.json, golden.npz")
    write_model(model, manifest, folder, weights=weights, golden=make_golden(model, manifest))
    found: dict[str, Any] = {}
    frozen = freeze(model, manifest.crop.size_px) if {"litert", "litert_int8"} & set(formats) else None
    if "saved_model" in formats:
        say("saved_model")
        path = write_saved_model(model, manifest, folder / "saved_model")
        found["saved_model"] = _entry(path) | _said(_saved_model_agreement(path, crops, original, manifest))
    if "onnx" in formats:
        say("model.onnx")
        path = to_onnx(model, manifest.crop.size_px, folder / "model.onnx")
        engine = OnnxruntimePredictor(path.read_bytes(), manifest)
        found["onnx"] = _entry(path) | _said(agreement(original, engine.predict(crops), manifest))
    for name, file, quantised in (("litert", "model.tflite", False), ("litert_int8", "model_int8.tflite", True)):
        if name in formats:
            say(file)
            (folder / file).write_bytes(to_litert(frozen, spanning(crops) if quantised else None))
            other = LitertPredictor((folder / file).read_bytes(), manifest).predict(crops)
            found[name] = _entry(folder / file) | _said(agreement(original, other, manifest))
    write_json(folder / FORMATS_NAME, found)
    return found


def _said(found: Agreement) -> dict[str, Any]:
    return {"agreement": msgspec.to_builtins(found)}


def _entry(path: Path) -> dict[str, Any]:
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    total = (
        hashlib.sha256(b"".join(hashlib.sha256(each.read_bytes()).digest() for each in files))
        if path.is_dir()
        else None
    )
    return {
        "path": path.name,
        "sha256": total.hexdigest() if total else hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": sum(each.stat().st_size for each in files),
    }


def _serving(model: Any, manifest: Manifest) -> Any:
    """Wrap the network in one signature: uint8 crops (n, side, side, 3) in; probabilities, age and spread out."""
    import tensorflow as tf  # noqa: PLC0415  only the formats need it

    side, heat = manifest.crop.size_px, manifest.temperatures
    first, last = manifest.ages
    years = np.arange(first, last + 1, dtype=np.float32)

    class Serving(tf.Module):  # type: ignore[misc]  # TensorFlow ships no types
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        @tf.function(input_signature=[tf.TensorSpec((None, side, side, 3), tf.uint8, name="crops")])  # type: ignore[untyped-decorator]  # likewise
        def serve(self, crops: Any) -> dict[str, Any]:
            logits = self.model(tf.cast(crops, tf.float32), training=False)
            out: dict[str, Any] = {name: tf.nn.softmax(logits[name] / heat.get(name, 1.0)) for name in ATTRIBUTES}
            expected = tf.linalg.matvec(out["age"], years)
            variance = tf.linalg.matvec(out["age"], years**2) - expected**2
            return {**out, "age_years": expected, "age_spread": tf.sqrt(tf.maximum(variance, 0.0))}

    return Serving()


def write_saved_model(model: Any, manifest: Manifest, path: Path) -> Path:
    """Write the SavedModel; gives *path*."""
    import tensorflow as tf  # noqa: PLC0415  only the formats need it

    serving = _serving(model, manifest)
    tf.saved_model.save(serving, str(path), signatures={"serving_default": serving.serve})
    return path


def _saved_model_agreement(path: Path, crops: Crops, original: Logits, manifest: Manifest) -> Agreement:
    import tensorflow as tf  # noqa: PLC0415  only the formats need it

    serve = tf.saved_model.load(str(path)).signatures["serving_default"]
    parts = [serve(crops=tf.constant(crops[start : start + 64])) for start in range(0, len(crops), 64)]
    # Its probabilities are calibrated already: as logits, log p * temperature gives the same again.
    other = Logits(
        *(
            np.log(np.maximum(np.concatenate([np.asarray(part[name]) for part in parts]), 1e-30))
            * manifest.temperatures.get(name, 1.0)
            for name in ATTRIBUTES
        )
    )
    return agreement(original, other, manifest)
