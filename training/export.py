"""A trained network to a model's folder, and to the formats that other engines read, each compared with the original.

model.keras           logits; what the services load
manifest.json         digest, crop recipe, ages, temperatures, figures
golden.npz            a few crops of faces that belong to nobody, with their logits: what every engine must give
saved_model/          TensorFlow, one signature `serving_default`: uint8 crops in, probabilities out
model.onnx            ONNX: float RGB 0..255 in, any number of crops, logits out by the heads' names
model.tflite          LiteRT, float32: float RGB 0..255 in, logits out
model_int8.tflite     LiteRT, quantised: uint8 RGB in, logits out; softmax and expectation stay outside, in float
formats.json          digest, size and agreement of each format
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import keras
import msgspec
import numpy as np
from numpy.typing import NDArray

from inference.heads import read_heads
from inference.predictor import Logits
from pipeline.attributes import ATTRIBUTES, ETHNICITIES, GENDERS
from pipeline.errors import ConfigError
from pipeline.manifest import MANIFEST_NAME, Manifest, load_manifest, verified_weights
from training.augmentation import degrade, step_generator
from training.dataset import load_faces
from training.metrics import ethnicity_of, gender_of
from training.model import predict_logits
from training.model_folder import check_shapes, load_keras, write_json, write_model
from training.recipe import Recipe, make_recipe
from training.train import BEST_NAME, RUN_NAME, load_best, read_run

FORMATS: Final = ("saved_model", "onnx", "litert", "litert_int8")
FORMATS_NAME: Final = "formats.json"
GOLDEN_NAME: Final = "golden.npz"
GOLDEN_FACES: Final = 8
CALIBRATION_FACES: Final = 256
CAST: Final = Path(__file__).resolve().parent.parent / "demo" / "cast"

Crops = NDArray[np.uint8]
Engine = Callable[[Crops], Logits]
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


def sample_crops(manifest: Manifest, data: Path | None, count: int = CALIBRATION_FACES) -> Crops:
    """Take *count* crops to calibrate and compare with: of *data*, else of the demo's cast, degraded to fill up."""
    source = data or CAST
    faces = load_faces(source, manifest.crop, limit=count)
    rows = np.arange(count) % len(faces)
    crops = faces.crops(rows)
    for place in range(len(faces), count):
        crops[place] = degrade(crops[place], step_generator(0, 0, place))
    crops[-1, 0, 0], crops[-1, 0, 1] = 0, 255  # so that the quantised input is exactly the byte
    return crops


def agreement(original: Logits, other: Logits, manifest: Manifest) -> dict[str, float]:
    """Say how far another engine's answers lie from the original's: years, probabilities, labels that stay the same."""
    first, second = read_heads(original, manifest), read_heads(other, manifest)
    years = np.abs(first.age - second.age)
    return {
        "n": len(years),
        "age_mean_difference": float(years.mean()),
        "age_largest_difference": float(years.max()),
        "probability_largest_difference": float(
            max(np.abs(first.p_female - second.p_female).max(), np.abs(first.p_ethnicity - second.p_ethnicity).max())
        ),
        "gender_agreement": float((gender_of(first) == gender_of(second)).mean()),
        "ethnicity_agreement": float((ethnicity_of(first) == ethnicity_of(second)).mean()),
    }


def check_export(folder: Path, formats: Sequence[str]) -> None:
    """Raise ConfigError where *formats* are not ours or *folder* is taken, before anything is loaded."""
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise ConfigError(f"formats {', '.join(unknown)}: not one of {', '.join(FORMATS)}")
    if formats and keras.backend.backend() != "tensorflow":
        raise ConfigError(
            f"Keras runs on {keras.backend.backend()} here; unset KERAS_BACKEND to export for other engines"
        )
    if "onnx" in formats and (missing := [name for name in ("tf2onnx", "onnxruntime") if find_spec(name) is None]):
        raise ConfigError(
            f"formats onnx: {' and '.join(missing)} must be installed: pip install demographics[training]; "
            "or name the other --formats"
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
    crops = sample_crops(manifest, data)
    original = predict_logits(model, lambda rows: crops[rows], len(crops))
    say("model.keras, manifest.json")
    write_model(model, manifest, folder, weights=weights)
    write_golden(folder / GOLDEN_NAME, model, manifest)
    found: dict[str, Any] = {}
    frozen = _frozen(model, manifest) if {"litert", "litert_int8"} & set(formats) else None
    if "saved_model" in formats:
        say("saved_model")
        path = write_saved_model(model, manifest, folder / "saved_model")
        found["saved_model"] = _entry(path) | {"agreement": _saved_model_agreement(path, crops, original, manifest)}
    if "onnx" in formats:
        say("model.onnx")
        path = write_onnx(model, manifest, folder / "model.onnx")
        found["onnx"] = _entry(path) | {"agreement": agreement(original, onnx_engine(path)(crops), manifest)}
    for name, file, quantised in (("litert", "model.tflite", False), ("litert_int8", "model_int8.tflite", True)):
        if name in formats:
            say(file)
            (folder / file).write_bytes(convert_litert(frozen, crops if quantised else None))
            other = litert_engine(folder / file, manifest)(crops)
            found[name] = _entry(folder / file) | {"agreement": agreement(original, other, manifest)}
    write_json(folder / FORMATS_NAME, found)
    return found


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


def write_golden(path: Path, model: Any, manifest: Manifest) -> None:
    """Write a few crops of the demo's cast, whole and degraded, with the original's logits."""
    pictures = sorted(CAST.glob("*.jpg"))
    if not pictures:  # installed without the demo
        return
    crops = sample_crops(manifest, CAST, 2 * len(pictures))[:: 2 * len(pictures) // GOLDEN_FACES][:GOLDEN_FACES]
    logits = predict_logits(model, lambda rows: crops[rows], len(crops))
    np.savez_compressed(path, crops=crops, **logits._asdict())


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


def _saved_model_agreement(path: Path, crops: Crops, original: Logits, manifest: Manifest) -> dict[str, float]:
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


def write_onnx(model: Any, manifest: Manifest, path: Path) -> Path:
    """Write the network as ONNX; gives *path*."""
    side = manifest.crop.size_px
    crops = keras.InputSpec(shape=(None, side, side, 3), dtype="float32", name="image")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"In the future `np\.object`", FutureWarning)  # Keras asks numpy for it
        model.export(path, format="onnx", verbose=False, input_signature=[crops])
    return path


def onnx_engine(path: Path) -> Engine:
    """Open an ONNX file with ONNX Runtime, on the CPU."""
    import onnxruntime  # noqa: PLC0415  only this format needs it

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [taken] = session.get_inputs()

    def run(crops: Crops) -> Logits:
        parts = [
            session.run(list(ATTRIBUTES), {taken.name: crops[start : start + 64].astype(np.float32)})
            for start in range(0, len(crops), 64)
        ]
        return Logits(*(np.concatenate(heads) for heads in zip(*parts, strict=True)))

    return run


def _frozen(model: Any, manifest: Manifest) -> Any:
    """Freeze the network into a graph without variables: from a live one the converter makes a file that gives NaN."""
    import tensorflow as tf  # noqa: PLC0415  only the formats need it
    from tensorflow.python.framework.convert_to_constants import (  # noqa: PLC0415
        convert_variables_to_constants_v2,
    )

    side = manifest.crop.size_px

    @tf.function(input_signature=[tf.TensorSpec((1, side, side, 3), tf.float32, name="image")])  # type: ignore[untyped-decorator]  # likewise
    def forward(image: Any) -> tuple[Any, ...]:
        out = model(image, training=False)
        return tuple(out[name] for name in ATTRIBUTES)

    return convert_variables_to_constants_v2(forward.get_concrete_function())


def convert_litert(frozen: Any, calibration: Crops | None) -> bytes:
    """Convert to LiteRT: float32, or int8 with the ranges seen on the *calibration* crops."""
    import tensorflow as tf  # noqa: PLC0415  only the formats need it

    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
    if calibration is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([crop[None].astype(np.float32)] for crop in calibration)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
        converter.inference_output_type = tf.float32
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Statistics for quantized inputs", UserWarning)  # bytes in is what we ask for
        return bytes(converter.convert())


def litert_engine(path: Path, manifest: Manifest) -> Engine:
    """Open a LiteRT file; its outputs are told apart by their sizes."""
    import tensorflow as tf  # noqa: PLC0415  only the formats need it

    with warnings.catch_warnings():
        # tf.lite announces its successor, a package of its own that we do not need for one comparison.
        warnings.filterwarnings("ignore", r"\s*Warning: tf\.lite\.Interpreter is deprecated", UserWarning)
        interpreter = tf.lite.Interpreter(model_path=str(path))
    [taken] = interpreter.get_input_details()
    interpreter.allocate_tensors()
    sizes = (manifest.ages[1] - manifest.ages[0] + 1, len(GENDERS), len(ETHNICITIES))
    given = {int(each["shape"][-1]): each["index"] for each in interpreter.get_output_details()}

    def run(crops: Crops) -> Logits:
        parts = []
        for crop in crops:  # one by one: some quantised graphs cannot be given another batch size
            interpreter.set_tensor(taken["index"], crop[None].astype(taken["dtype"]))
            interpreter.invoke()
            parts.append([interpreter.get_tensor(given[size]).copy() for size in sizes])
        return Logits(*(np.concatenate(heads) for heads in zip(*parts, strict=True)))

    return run
