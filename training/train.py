"""The training run: epochs of drawn, degraded crops; averaged weights judged on the validation part; the best kept.

A run's folder holds

    run.json       the recipe, the data's digest, the split's sizes: what the run is
    state.npz      everything needed to go on, written whole after an epoch
    best.npz       the averaged weights of the best epoch so far
    history.json   losses and figures per epoch
    model/         when it is done: model.keras and manifest.json, ready to serve

A killed run goes on after the last epoch that was written, on the same schedule: each step's faces and degradations
follow from the recipe's seed and the step's number alone. Every epoch is written unless that takes a tenth of the time.
"""

from __future__ import annotations

import io
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
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
from training.blending import NO_BLENDS, with_blends
from training.dataset import Faces, load_faces
from training.face_network import Seen, face_targets, probe
from training.feeding import Feeder, steps_per_epoch
from training.golden import make_golden
from training.metrics import fit_share, fit_temperatures, summary
from training.model import NO_INIT, build_model, compile_model, own_weights, predict_logits
from training.model_folder import load_keras, write_model
from training.recipe import Recipe, as_options, make_recipe
from training.splits import Split, split_faces
from training.targets import (
    Targets,
    Word,
    drawing_weights,
    head_losses,
    make_targets,
    oversampling_shift,
    targets_by,
)

RUN_NAME: Final = "run.json"
HISTORY_NAME: Final = "history.json"
STATE_NAME: Final = "state.npz"
BEST_NAME: Final = "best.npz"

# An epoch's score sums each head's error as a share of the first model's on its own validation faces; lower is better.
_FIRST_MODEL: Final = {"age_mse": 42.9, "gender_error": 0.062, "ethnicity_error": 0.157}

# Faces, at least, from which the normalisation of the averaged weights is worked out, after every epoch.
_SETTLING_FACES: Final = 1664

# Writing a run's state takes no more of its time than this: an epoch on a GPU is over in a second.
_SAVING_SHARE: Final = 0.1

Watch = Callable[[int, int, int, dict[str, float]], None]
"""Called after every step with (epoch, step, steps per epoch, running figures)."""
BatchStatistics = Callable[[NDArray[np.uint8]], list[NDArray[np.float32]]]
"""From a batch of crops to the mean and the variance that each live normalisation finds, by turns."""


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


def teacher_targets(
    teachers: Sequence[Path],
    data: Path,
    faces: Faces,
    recipe: Recipe,
    limit: int | None = None,
    others: Sequence[Word] = (),
) -> Word | None:
    """Ask the *teachers* (folders of models or of finished runs) about all *faces*: their mean probabilities.

    Each sees crops of its own recipe, and their mirror images. A run that learned from a face only repeats its label: a
    face is left to those that did not (cross-fitting: V. Chernozhukov et al., "Double/debiased machine learning for
    treatment and structural parameters", The Econometrics Journal 21(1), 2018), unless all did. What *others* say of
    all faces counts like one more teacher's word.
    """
    if not teachers and not others:
        return None
    learned = np.array([_learned_by(folder, faces) for folder in teachers], np.bool_).reshape(-1, len(faces))
    asked = ~learned | np.all(learned, axis=0)
    sums: list[Any] = [sum(said) for said in zip(*others, strict=True)] or [0.0, 0.0, 0.0]
    for folder, wanted in zip(teachers, asked, strict=True):
        rows = np.flatnonzero(wanted)
        if not len(rows):
            continue
        for total, said in enumerate(_said_by(folder, data, [faces.names[row] for row in rows], recipe, limit)):
            spread = np.zeros((len(faces), said.shape[1]))
            spread[rows] = said
            sums[total] = sums[total] + spread
    voices = asked.sum(axis=0)[:, None] + len(others)
    return Word(*((total / voices).astype(np.float32) for total in sums))


def _model_of(teacher: Path) -> Path:
    """Give the model's folder of a teacher, which may be a run's."""
    return teacher / "model" if (teacher / RUN_NAME).is_file() else teacher


def _learned_by(teacher: Path, faces: Faces) -> NDArray[np.bool_]:
    """Tell which of *faces* a teacher's run learned from, as far as its folder says; of a bare model, all."""
    if not (teacher / RUN_NAME).is_file():
        return np.ones(len(faces), np.bool_)
    about = read_run(teacher)
    if about["data"]["digest"] != faces.digest:
        return np.ones(len(faces), np.bool_)
    taught = split_of(faces, make_recipe(about["recipe"])).train
    learned = np.zeros(len(faces), np.bool_)
    learned[taught] = True
    return learned


def _said_by(
    teacher: Path, data: Path, names: Sequence[str], recipe: Recipe, limit: int | None
) -> list[NDArray[np.float32]]:
    """Give a teacher's probabilities, by head, of the faces *names*: the mean of each crop's and its mirror image's."""
    folder = _model_of(teacher)
    manifest = load_manifest(folder)
    if manifest.ages != recipe.ages:
        raise ConfigError(f"teacher {teacher}: its ages are {manifest.ages}, ours {recipe.ages}; take another")
    model = load_keras(verified_weights(folder, manifest))
    seen = load_faces(data, manifest.crop, limit=limit)
    place = {name: row for row, name in enumerate(seen.names)}
    seen = seen.take([place[name] for name in names])
    heat = manifest.temperatures
    both = [
        predict_logits(model, crops, len(seen))._asdict()
        for crops in (seen.crops, lambda rows: seen.crops(rows)[:, :, ::-1])
    ]
    return [
        np.mean([softmax(logits[name], heat.get(name, 1.0)) for logits in both], axis=0, dtype=np.float32)
        for name in both[0]
    ]


def _targets(
    data: Path,
    faces: Faces,
    recipe: Recipe,
    split: Split,
    teachers: Sequence[Path],
    seen: Seen | None,
    limit: int | None,
) -> Targets:
    """Make what all faces are taught, by their labels, the teachers and what face networks have seen; blends after them."""
    if seen is None:
        return make_targets(faces, recipe, teacher_targets(teachers, data, faces, recipe, limit))
    count, face, word = len(faces), face_targets(seen, split.train), probe(seen, faces, split.train, recipe)
    # What small networks make of several networks' features is said by each of those.
    probed = [Word(*(values[:count] for values in word))] * len(seen.networks)
    targets = make_targets(faces, recipe, teacher_targets(teachers, data, faces, recipe, limit, probed), face[:count])
    blends = targets_by(Word(*(values[count:] for values in word)), recipe, face[count:])
    return Targets(*(np.concatenate(each) for each in zip(targets, blends, strict=True)))


def train(
    data: Path,
    faces: Faces,
    recipe: Recipe,
    out: Path,
    *,
    init: str,
    teachers: Sequence[Path] = (),
    seen: Seen | None = None,
    limit: int | None = None,
    workers: int = 2,
    name: str = "",
    finish: bool = False,
    watch: Watch | None = None,
    tell: Callable[[dict[str, float]], None] = lambda _: None,
) -> Path:
    """Train on *faces* of *data* into the run folder *out*, going on where it stopped; gives the model's folder.

    *seen* is what face networks see in *faces*: it is learned beside, and teaches. *limit* says that *faces* were drawn,
    that many, so that `evaluate` can draw them again. *finish* trains no more and makes the model of the best epoch that
    there is. *tell* gets each epoch's figures, as history.json has them.
    Raises ConfigError where *out* holds another run, or one that is done, or has nothing to finish.
    """
    split = split_of(faces, recipe)
    _check(out, recipe, seen, finish=finish)
    _open_run(out, recipe, faces, split, init=init, teachers=teachers, seen=seen, limit=limit)
    blends = NO_BLENDS if seen is None else seen.blends
    learning, choosing = with_blends(faces, blends, split.train), faces.take(split.validation)
    steps = steps_per_epoch(len(learning), recipe)
    fresh = not (out / STATE_NAME).is_file()
    targets = _targets(data, faces, recipe, split, teachers, seen, limit)
    model = build_model(recipe, init if fresh else NO_INIT, for_training=True, face_width=targets.face.shape[1])
    compile_model(model, recipe, steps * recipe.epochs)
    model.optimizer.build(model.trainable_variables)
    state = _told_by(read_history(out)) if finish else RunState() if fresh else _load_state(out / STATE_NAME, model)
    taught = np.concatenate([split.train, len(faces) + np.arange(len(blends))])
    learned, chosen = (Targets(*(values[rows] for values in targets)) for rows in (taught, split.validation))
    judge = Manifest(name="", weights="", sha256="", crop=recipe.crop, ages=recipe.ages)
    statistics = batch_statistics(model)
    saver = _Saver(out / STATE_NAME)
    with ExitStack() as stack:
        log = _tensorboard(out, stack)
        feeder = stack.enter_context(Feeder(learning, learned, recipe, workers))
        while not finish and state.epoch < recipe.epochs and not _stopped(state, recipe):
            began = time.monotonic()
            figures: dict[str, float] = {}
            sums: dict[str, float] = defaultdict(float)
            for step, (crops, wanted) in enumerate(feeder.batches(state.epoch), start=1):
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
            settling = (crops for crops, _ in feeder.batches(state.epoch, steps_per_epoch(_SETTLING_FACES, recipe)))
            with averaged_weights(model, settling, statistics):
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
                    _write_whole(out / BEST_NAME, _packed(own_weights(model)))
            state.epoch += 1
            state.history.append(row)
            saver.save(model, state, last=state.epoch == recipe.epochs or _stopped(state, recipe))
            _write_whole(out / HISTORY_NAME, msgspec.json.format(msgspec.json.encode(state.history), indent=1))
            log(row)
            tell(row)
    shift = oversampling_shift(learned.age[:, :-1], drawing_weights(learning, recipe))
    return _finish(out, recipe, faces, split, state=state, name=name, shift=shift)


def _check(out: Path, recipe: Recipe, seen: Seen | None, *, finish: bool) -> None:
    """Raise ConfigError where this run cannot be."""
    if recipe.blends > 0 and seen is None:
        raise ConfigError("recipe blends: only face networks can say what a blend is; give --face-network, or blends=0")
    if finish and not (out / BEST_NAME).is_file():
        raise ConfigError(
            f"out {out}: no whole epoch was trained there, so nothing can be finished; leave --finish out"
        )


def _told_by(history: list[dict[str, float]]) -> RunState:
    """Say how far a run has come by its figures: like its best weights they are of the last epoch, its state may be older."""
    if not history:
        return RunState()
    best = min(history, key=lambda row: row["score"])
    return RunState(len(history), best["score"], int(best["epoch"]), history)


def _stopped(state: RunState, recipe: Recipe) -> bool:
    return recipe.patience > 0 and state.epoch - state.best_epoch >= recipe.patience


class averaged_weights(AbstractContextManager[None]):  # noqa: N801  reads as what happens inside `with`
    """Put the averaged weights into the model, normalised by averages of their own; the model's own back afterwards.

    The normalisation's moving averages are those of weights that were never averaged; what they are for the averaged
    ones is worked out from *crops*, batches of training faces, as the mean over all of them (P. Izmailov et al.,
    "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018, section 3.2).
    """

    def __init__(self, model: Any, crops: Iterable[NDArray[np.uint8]], statistics: BatchStatistics) -> None:
        self._model = model
        self._crops = crops
        self._statistics = statistics
        self._own: list[tuple[Any, NDArray[np.float32]]] = []

    def __enter__(self) -> None:
        """Swap in."""
        averages = [each for each in self._model.optimizer.variables if each.path.endswith("_average")]
        self._own = [(each, np.array(each)) for each in self._model.weights]
        for variable, average in zip(self._model.trainable_variables, averages, strict=True):
            assert variable.shape == average.shape, "Keras keeps averages in the order of the weights"
            variable.assign(np.array(average))  # a copy: JAX gives arrays away, and one shared would be gone
        renew_normalisation(self._model, self._crops, self._statistics)

    def __exit__(self, *_: object) -> None:
        """Swap back."""
        for variable, own in self._own:
            variable.assign(own)


def _moving_averages(model: Any) -> tuple[list[Any], list[Any]]:
    """Find the normalisations of *model* that learn, and their moving averages, mean and variance by turns."""
    every = (layer for part in model.layers for layer in getattr(part, "layers", [part]))
    found = [layer for layer in every if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable]
    return found, [average for layer in found for average in (layer.moving_mean, layer.moving_variance)]


def batch_statistics(model: Any) -> BatchStatistics:
    """Make the function that gives each normalisation's mean and variance over a batch, in the order of its averages.

    A moving average of momentum 0 is the batch's own.
    """
    layers, averages = _moving_averages(model)

    @contextmanager
    def forgetting() -> Iterator[None]:
        before = [layer.momentum for layer in layers]
        for layer in layers:
            layer.momentum = 0.0
        try:
            yield
        finally:
            for layer, momentum in zip(layers, before, strict=True):
                layer.momentum = momentum

    def by_call(crops: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        with forgetting():
            model(crops, training=True)
        return [np.array(average) for average in averages]

    if keras.backend.backend() != "jax":
        return by_call
    import jax  # noqa: PLC0415  where Keras runs on it only

    others = model.non_trainable_variables
    places = [next(place for place, other in enumerate(others) if other is average) for average in averages]

    def forward(trainable: Any, fixed: Any, crops: Any) -> list[Any]:  # one by one, JAX would compile every operation
        with forgetting():
            _, changed = model.stateless_call(trainable, fixed, crops, training=True)
        return [changed[place] for place in places]

    compiled = jax.jit(forward)
    return lambda crops: [
        np.asarray(each)
        for each in compiled([each.value for each in model.trainable_variables], [each.value for each in others], crops)
    ]


def renew_normalisation(model: Any, crops: Iterable[NDArray[np.uint8]], statistics: BatchStatistics) -> None:
    """Set the moving averages of *model*'s normalisation to the plain mean over the batches *crops*; frozen ones stay."""
    _, averages = _moving_averages(model)
    seen = [statistics(batch) for batch in crops]
    for average, values in zip(averages, zip(*seen, strict=True), strict=True):
        average.assign(np.mean(values, axis=0, dtype=np.float64).astype(np.float32))


def _open_run(
    out: Path,
    recipe: Recipe,
    faces: Faces,
    split: Split,
    *,
    init: str,
    teachers: Sequence[Path],
    seen: Seen | None,
    limit: int | None,
) -> None:
    """Write run.json, or see that the one there is this very run."""
    about = {
        "recipe": as_options(recipe),
        "init": Path(init).name,
        "teachers": [load_manifest(_model_of(folder)).digest for folder in teachers],
        "face_networks": [] if seen is None else list(seen.networks),
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
    # What an earlier version did not know yet, its runs did without.
    before = {"face_networks": []} | before | {"recipe": as_options(make_recipe(before["recipe"]))}
    differ = [key for key in about if before.get(key) != about[key]]
    if differ:
        options = [
            f"{key}: {before['recipe'][key]} there, {value} now"
            for key, value in as_options(recipe).items()
            if before["recipe"][key] != value
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


class _Saver:
    """Writes a run's state after an epoch, unless that would take more than its share of the time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._taken_s = 0.0
        self._done_at = time.monotonic()

    def save(self, model: Any, state: RunState, *, last: bool) -> None:
        """Write the state if it is time, or the *last*."""
        began = time.monotonic()
        if last or began - self._done_at >= self._taken_s / _SAVING_SHARE:
            _save_state(self._path, model, state)
            self._done_at = time.monotonic()
            self._taken_s = self._done_at - began


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
