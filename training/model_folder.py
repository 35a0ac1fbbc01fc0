"""Writing a model's folder, whole or not at all: model.keras, manifest.json and golden.npz."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import keras
import msgspec

from inference.golden import Golden, write_golden
from pipeline.attributes import ETHNICITIES, GENDERS
from pipeline.errors import ConfigError
from pipeline.manifest import MANIFEST_NAME, Manifest


def write_model(
    model: Any, manifest: Manifest, folder: Path, *, weights: Path | None = None, golden: Golden | None = None
) -> Path:
    """Write model.keras, *golden* and manifest.json, whose weights and digest are filled in here; gives *folder*.

    *weights* is the model's file where it has one already. Raises ConfigError where the model's shapes are not what the
    manifest says.
    """
    check_shapes(model, manifest)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    if weights is None:
        model.save(part / "model.keras")
    else:  # the very file, so that its digest stays
        shutil.copyfile(weights, part / "model.keras")
    data = (part / "model.keras").read_bytes()
    manifest = msgspec.structs.replace(manifest, weights="model.keras", sha256=hashlib.sha256(data).hexdigest())
    write_json(part / MANIFEST_NAME, manifest)
    if golden is not None:
        write_golden(part, golden, manifest)
    part.rename(folder)  # a folder is whole, or not there
    return folder


def write_json(path: Path, value: object) -> None:
    """Write *value* as JSON that a person can read."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")


def check_shapes(model: Any, manifest: Manifest) -> None:
    """Raise ConfigError listing where the model is not one of ours: float crops in, a dict of three logits out."""
    side, years = manifest.crop.size_px, manifest.ages[1] - manifest.ages[0] + 1
    wanted = {"age": years, "gender": len(GENDERS), "ethnicity": len(ETHNICITIES)}
    problems = []
    if tuple(model.input_shape) != (None, side, side, 3):
        problems.append(f"its input is {model.input_shape}, (None, {side}, {side}, 3) is wanted")
    shapes = {name: tuple(each.shape) for name, each in model.output.items()} if isinstance(model.output, dict) else {}
    problems += [
        f"its output {name} is {shapes.get(name, 'missing')}, (None, {size}) is wanted"
        for name, size in wanted.items()
        if tuple(shapes.get(name, ())) != (None, size)
    ]
    if problems:
        raise ConfigError([f"model: {problem}; train it with `demographics train`" for problem in problems])


def load_keras(path: Path) -> Any:
    """Load a Keras file on whatever back end this is. Raises ConfigError."""
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"model {path}: Keras cannot load it ({str(error).splitlines()[0][:200]})") from error
