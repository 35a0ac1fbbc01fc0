"""The training run: epochs of drawn, degraded crops; averaged weights judged on the validation part; the best kept.

A run's folder holds

    run.json       the recipe, the data's digest, the split's sizes: what the run is
    state.npz      everything needed to go on, written whole after each epoch
    best.npz       the averaged weights of the best epoch so far
    history.json   losses and figures per epoch
    model/         when it is done: model.keras and manifest.json, ready to serve

A killed run goes on after its last whole epoch, on the same schedule: each step's faces and degradations follow from
the recipe's seed and the step's number alone.
"""

from __future__ import annotations

import io
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile

import keras
import msgspec
import numpy as np
from numpy.typing import NDArray

from inference.heads import read_heads, softmax
from pipeline.errors import ConfigError
from pipeline.manifest import Manifest, load_manifest, verified_weights
from training.augmentation import degrade, step_generator
from training.dataset import Faces, load_faces
from training.golden import make_golden
from training.metrics import fit_share, fit_temperatures, summary
from training.model import build_model, compile_model, predict_logits
from training.model_folder import load_keras, write_model
from training.recipe import Recipe, as_options
from training.splits import Split, split_faces
from training.targets import (
    Targets,
    draw_epoch,
    drawing_weights,
    head_losses,
    make_targets,
    mixed_up,
    oversampling_shift,
)

RUN_NAME: Final = "run.json"
HISTORY_NAME: Final = "history.json"
STATE_NAME: Final = "state.npz"
BEST_NAME: Final = "best.npz"

# An epoch's score sums each head's error as a share of the first model's on its own validation faces; lower is better.
_FIRST_MODEL: Final = {"age_mse": 42.9, "gender_error": 0.062, "ethnicity_error": 0.157}

# Batches from which the normalisation of the averaged weights is worked out, after every epoch.
_SETTLING_BATCHES: Final = 26

Batch = tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]
Watch = Callable[[int, int, int, dict[str, float]], None]
"""Called after every step with (epoch, step, steps per epoch, running figures)."""


@dataclass(slots=True)
class RunState:
    """How far a run has come."""

    epoch: int = 0  # whole epochs done
    best_score: float = float("inf")
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def split_of(faces: Faces, recipe: Recipe) -> Split:
    """Split the faces as the recipe says. Raises ConfigError where a part that is needed is empty."""
    split = split_faces(
        recipe.split,
        hashes=faces.hashes,
        age=faces.age,
        gender=faces.gender,
        ethnicity=faces.ethnicity,
        seed=recipe.split_seed,
    )
    if not len(split.train) or not len(split.validation):
        raise ConfigError(f"data: {len(faces)} faces are too few to train on some and choose on others; add pictures")
    return split


def score(figures: dict[str, float]) -> float:
    """Weigh an epoch's validation figures into one number, lower is better."""
    return (
        figures["age_mse"] / _FIRST_MODEL["age_mse"]
        + (1 - figures["gender_accuracy"]) / _FIRST_MODEL["gender_error"]
        + (1 - figures["ethnicity_accuracy"]) / _FIRST_MODEL["ethnicity_error"]
    )


def batches(faces: Faces, targets: Targets, recipe: Recipe, epoch: int, workers: int) -> Iterator[Batch]:
    """Make the batches of one epoch (from 0), in order, a few ahead on *workers* threads."""
    rows = draw_epoch(drawing_weights(faces, recipe), seed=recipe.seed, epoch=epoch)
    steps = steps_per_epoch(len(faces), recipe)

    def make(step: int) -> Batch:
        some = np.take(rows, np.arange(step * recipe.batch, (step + 1) * recipe.batch), mode="wrap")
        crops = faces.crops(some)
        for place, crop in enumerate(crops):
            crops[place] = degrade(crop, step_generator(recipe.seed, epoch * steps + step, place), recipe.augmentation)
        wanted = Targets(*(values[some] for values in targets))
        blender = step_generator(recipe.seed, epoch * steps + step, recipe.batch)  # a place that no crop has
        blended, wanted = mixed_up(crops.astype(np.float32), wanted, blender, recipe.mixup)
        return blended, wanted._asdict()

    with ThreadPoolExecutor(workers, thread_name_prefix="batch") as pool:
        waiting: list[Future[Batch]] = [pool.submit(make, step) for step in range(min(2 * workers, steps))]
        for step in range(steps):
            following = step + len(waiting)
            ready = waiting.pop(0).result()
            if following < steps:
                waiting.append(pool.submit(make, following))
            yield ready


def steps_per_epoch(count: int, recipe: Recipe) -> int:
    """Count the steps that show as many faces as there are; the last batch is filled from the first."""
    return -(-count // recipe.batch)


def teacher_targets(
    teachers: Sequence[Path], data: Path, faces: Faces, recipe: Recipe, limit: int | None = None
) -> Targets | None:
    """Ask the *teachers* (model folders) about all *faces*, on crops of their own recipes: their mean probabilities."""
    if not teachers:
        return None
    said = []
    for folder in teachers:
        manifest = load_manifest(folder)
        if manifest.ages != recipe.ages:
            raise ConfigError(f"teacher {folder}: its ages are {manifest.ages}, ours {recipe.ages}; take another")
        model = load_keras(verified_weights(folder, manifest))
        seen = load_faces(data, manifest.crop, limit=limit)
        place = {name: row for row, name in enumerate(seen.names)}
        seen = seen.take([place[name] for name in faces.names])
        logits = predict_logits(model, seen.crops, len(seen))
        heat = manifest.temperatures
        said.append([softmax(values, heat.get(name, 1.0)) for name, values in logits._asdict().items()])
    return Targets(*(np.mean(head, axis=0).astype(np.float32) for head in zip(*said, strict=True)))


def train(
    data: Path,
    faces: Faces,
    recipe: Recipe,
    out: Path,
    *,
    init: str,
    teachers: Sequence[Path] = (),
    limit: int | None = None,
    workers: int = 2,
    name: str = "",
    finish: bool = False,
    watch: Watch | None = None,
    tell: Callable[[dict[str, float]], None] = lambda _: None,
) -> Path:
    """Train on *faces* of *data* into the run folder *out*, going on where it stopped; gives the model's folder.

    *limit* says that *faces* were drawn, that many, so that `evaluate` can draw them again. *finish* trains no more and
    makes the model of the best epoch that there is. *tell* gets each epoch's figures, as history.json has them.
    Raises ConfigError where *out* holds another run, or one that is done, or has nothing to finish.
    """
    split = split_of(faces, recipe)
    if finish and not (out / BEST_NAME).is_file():
        raise ConfigError(
            f"out {out}: no whole epoch was trained there, so nothing can be finished; leave --finish out"
        )
    _open_run(out, recipe, faces, split, init=init, teachers=teachers, limit=limit)
    steps = steps_per_epoch(len(split.train), recipe)
    fresh = not (out / STATE_NAME).is_file()
    model = build_model(recipe, init if fresh else "none", for_training=True)
    compile_model(model, recipe, steps * recipe.epochs)
    model.optimizer.build(model.trainable_variables)
    state = RunState() if fresh else _load_state(out / STATE_NAME, model)
    teacher = teacher_targets(teachers, data, faces, recipe, limit)
    targets = make_targets(faces, recipe, teacher)
    learning, choosing = faces.take(split.train), faces.take(split.validation)
    learned, chosen = (Targets(*(values[rows] for values in targets)) for rows in (split.train, split.validation))
    judge = Manifest(name="", weights="", sha256="", crop=recipe.crop, ages=recipe.ages)
    with ExitStack() as stack:
        log = _tensorboard(out, stack)
        while not finish and state.epoch < recipe.epochs and not _stopped(state, recipe):
            began = time.monotonic()
            figures: dict[str, float] = {}
            sums: dict[str, float] = defaultdict(float)
            for step, (crops, wanted) in enumerate(batches(learning, learned, recipe, state.epoch, workers), start=1):
                model.reset_metrics()  # each step's own figures; the epoch's are their mean
                for key, value in model.train_on_batch(crops, wanted, return_dict=True).items():
                    sums[key] += float(value)
                figures = {key: total / step for key, total in sums.items()}
                if not np.isfinite(figures["loss"]):
                    raise ConfigError(
                        "the loss is no longer a number; take a smaller --set learning_rate=... and start anew"
                    )
                if watch:
                    watch(state.epoch + 1, step, steps, figures)
            trained_s = time.monotonic() - began
            settling = (crops for crops, _ in batches(learning, learned, recipe, state.epoch, workers))
            with averaged_weights(model, islice(settling, _SETTLING_BATCHES)):
                logits = predict_logits(model, choosing.crops, len(choosing))
                found = summary(read_heads(logits, judge), choosing)
                row = figures | {f"val_{key}": value for key, value in found.items() if key != "n"}
                row |= {f"val_{key}_loss": value for key, value in head_losses(logits, chosen, recipe).items()}
                row |= {
                    "epoch": state.epoch + 1,
                    "score": score(found),
                    "learning_rate": float(model.optimizer.learning_rate),
                    "faces_per_s": steps * recipe.batch / trained_s,
                    "seconds": time.monotonic() - began,
                }
                if row["score"] < state.best_score:
                    state.best_score, state.best_epoch = row["score"], state.epoch + 1
                    _write_whole(out / BEST_NAME, _packed(model.weights))
            state.epoch += 1
            state.history.append(row)
            _save_state(out / STATE_NAME, model, state)
            _write_whole(out / HISTORY_NAME, msgspec.json.format(msgspec.json.encode(state.history), indent=1))
            log(row)
            tell(row)
    shift = oversampling_shift(learned.age[:, :-1], drawing_weights(learning, recipe))
    return _finish(out, recipe, faces, split, state=state, name=name, shift=shift)


def _stopped(state: RunState, recipe: Recipe) -> bool:
    return recipe.patience > 0 and state.epoch - state.best_epoch >= recipe.patience


class averaged_weights(AbstractContextManager[None]):  # noqa: N801  reads as what happens inside `with`
    """Put the averaged weights into the model, normalised by averages of their own; the model's own back afterwards.

    The normalisation's moving averages are those of weights that were never averaged; what they are for the averaged
    ones is worked out from *crops*, batches of training faces, as the mean over all of them (P. Izmailov et al.,
    "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018, section 3.2).
    """

    def __init__(self, model: Any, crops: Iterable[NDArray[np.float32]]) -> None:
        self._model = model
        self._crops = crops
        self._own: list[tuple[Any, NDArray[np.float32]]] = []

    def __enter__(self) -> None:
        """Swap in."""
        averages = [each for each in self._model.optimizer.variables if each.path.endswith("_average")]
        self._own = [(each, np.array(each)) for each in self._model.weights]
        for variable, average in zip(self._model.trainable_variables, averages, strict=True):
            assert variable.shape == average.shape, "Keras keeps averages in the order of the weights"
            variable.assign(np.array(average))  # a copy: JAX gives arrays away, and one shared would be gone
        renew_normalisation(self._model, self._crops)

    def __exit__(self, *_: object) -> None:
        """Swap back."""
        for variable, own in self._own:
            variable.assign(own)


def renew_normalisation(model: Any, crops: Iterable[NDArray[np.float32]]) -> None:
    """Set the moving averages of *model*'s normalisation to the plain mean over the batches *crops*; frozen ones stay.

    A running mean is a moving average whose momentum is k / (k + 1) at batch k, from 0.
    """
    every = (layer for part in model.layers for layer in getattr(part, "layers", [part]))
    found = [layer for layer in every if isinstance(layer, keras.layers.BatchNormalization)]
    before = [each.momentum for each in found]
    for number, batch in enumerate(crops):
        for layer in found:
            layer.momentum = number / (number + 1)
        model(batch, training=True)
    for layer, momentum in zip(found, before, strict=True):
        layer.momentum = momentum


def _open_run(
    out: Path, recipe: Recipe, faces: Faces, split: Split, *, init: str, teachers: Sequence[Path], limit: int | None
) -> None:
    """Write run.json, or see that the one there is this very run."""
    about = {
        "recipe": as_options(recipe),
        "init": Path(init).name,
        "teachers": [load_manifest(folder).digest for folder in teachers],
        "data": {
            "digest": faces.digest,
            "faces": len(faces),
            "drawn": limit,
            "rejected": len(faces.rejected),
            "not_found": faces.not_found,
        },
        "parts": {part: len(rows) for part, rows in split._asdict().items()},
    }
    path = out / RUN_NAME
    if (out / "model").exists():
        raise ConfigError(f"out {out}: a finished run lies there; name another folder with -o")
    if not path.is_file():
        if out.exists() and any(out.iterdir()):
            raise ConfigError(f"out {out}: not empty and no run of ours; name another folder with -o")
        out.mkdir(parents=True, exist_ok=True)
        _write_whole(path, msgspec.json.format(msgspec.json.encode(about), indent=1))
        return
    before = read_run(out)
    differ = [key for key in about if before.get(key) != about[key]]
    if differ:
        options = [
            f"{key}: {before['recipe'].get(key)} there, {value} now"
            for key, value in as_options(recipe).items()
            if before.get("recipe", {}).get(key) != value
        ]
        raise ConfigError(
            [
                f"out {out}: another run lies there ({', '.join(differ)} differ); repeat its options or use another -o",
                *options,
            ]
        )


def read_run(out: Path) -> dict[str, Any]:
    """Read a run's run.json. Raises ConfigError where there is none."""
    try:
        found = msgspec.json.decode((out / RUN_NAME).read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"run {out}: no readable {RUN_NAME} there; name a folder made by `demographics train`"
        ) from error
    if not isinstance(found, dict) or not isinstance(found.get("recipe"), dict):
        raise ConfigError(f"run {out}: {RUN_NAME} holds no recipe; name a folder made by `demographics train`")
    return found


def read_history(out: Path) -> list[dict[str, float]]:
    """Read a run's figures per epoch; none where it has not got that far."""
    try:
        return msgspec.json.decode((out / HISTORY_NAME).read_bytes(), type=list[dict[str, float]])
    except (OSError, msgspec.DecodeError):
        return []


def _packed(variables: Sequence[Any], meta: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {f"v{number}": np.asarray(variable) for number, variable in enumerate(variables)}
    np.savez(buffer, meta=np.frombuffer(meta, np.uint8), **arrays)
    return buffer.getvalue()


def _unpack(path: Path, variables: Sequence[Any]) -> bytes:
    """Put what `_packed` wrote back into *variables*; gives the meta. Raises ConfigError where it does not fit."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            values = [kept[f"v{number}"] for number in range(len(variables))]
            meta = kept["meta"].tobytes()
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise ConfigError(
            f"{path}: damaged or of another version ({error}); start the run anew in another folder"
        ) from error
    if any(tuple(variable.shape) != value.shape for variable, value in zip(variables, values, strict=True)):
        raise ConfigError(f"{path}: weights of another shape than the recipe's; start the run anew in another folder")
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    return bytes(meta)


def _write_whole(path: Path, content: bytes) -> None:
    """Replace *path* in one step, so that a kill leaves the old or the new."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _save_state(path: Path, model: Any, state: RunState) -> None:
    meta = msgspec.json.encode(
        {"epoch": state.epoch, "score": state.best_score, "best": state.best_epoch, "history": state.history}
    )
    _write_whole(path, _packed([*model.variables, *model.optimizer.variables], meta))


def _load_state(path: Path, model: Any) -> RunState:
    meta = msgspec.json.decode(_unpack(path, [*model.variables, *model.optimizer.variables]))
    return RunState(meta["epoch"], meta["score"], meta["best"], meta["history"])


def _finish(
    out: Path, recipe: Recipe, faces: Faces, split: Split, *, state: RunState, name: str, shift: NDArray[np.float32]
) -> Path:
    """Put the best averaged weights into a float32 model, calibrate it on the validation part, and write model/.

    The oversampling's *shift* of the ages is taken back from the age head's bias, as far as the validation faces say.
    """
    plain = load_best(out, recipe)
    choosing = faces.take(split.validation)
    logits = predict_logits(plain, choosing.crops, len(choosing))
    first, last = recipe.ages
    years = np.clip(np.rint(choosing.age).astype(np.int64), first, last) - first
    share = np.float32(fit_share(logits.age, shift, years))
    bias = plain.get_layer("age").bias
    bias.assign(np.array(bias) - share * shift)
    logits = logits._replace(age=logits.age - share * shift)
    temperatures = fit_temperatures(logits, choosing, recipe.ages)
    manifest = Manifest(
        name=name or out.name, weights="", sha256="", crop=recipe.crop, ages=recipe.ages, temperatures=temperatures,
        trained_on=f"{len(split.train):,} faces of data {faces.digest[:12]}, split {recipe.split}, "
        f"best epoch {state.best_epoch} of {state.epoch}; figures on {len(choosing):,} validation faces",
    )  # fmt: skip
    figures = summary(read_heads(logits, manifest), choosing)
    manifest = msgspec.structs.replace(manifest, figures={key: round(value, 4) for key, value in figures.items()})
    return write_model(plain, manifest, out / "model", golden=make_golden(plain, manifest))


def load_best(out: Path, recipe: Recipe) -> Any:
    """Build the network in float32 with the best averaged weights of a run."""
    model = build_model(replace(recipe, precision="float32"))  # kept and served so, however it was trained
    _unpack(out / BEST_NAME, model.weights)
    return model


def _tensorboard(out: Path, stack: ExitStack) -> Callable[[dict[str, float]], None]:
    """Log to TensorBoard where that is installed; we do not ask for it."""
    if find_spec("tensorboard") is None:
        return lambda _: None
    writer = import_module("tensorboard.summary").Writer(str(out / "tensorboard"))
    stack.callback(writer.close)

    def log(row: dict[str, float]) -> None:
        for key, value in row.items():
            writer.add_scalar(key, value, int(row["epoch"]))
        writer.flush()

    return log
