"""How good the answers are: pure functions of predictions and truth, in numpy.

Accuracies, precisions and the like are fractions 0..1; ages are in years.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from inference.heads import Heads, softmax
from inference.predictor import Logits
from pipeline.attributes import AGE_BANDS, ETHNICITIES, GENDERS, age_band
from training.dataset import Faces

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FACE_SIZES: Final = (
    (0.0, "not found"),
    (32.0, "under 32 px"),
    (64.0, "32-63 px"),
    (96.0, "64-95 px"),
    (128.0, "96-127 px"),
)
LARGEST_FACES: Final = "128 px and more"
CS_YEARS: Final = 5


def age_figures(predicted: Floats, true: NDArray[np.floating]) -> dict[str, float]:
    """MAE, MSE, bias (too old is positive) and CS@5, the share within five years. Raises ValueError for no faces."""
    if len(true) == 0:
        raise ValueError("no faces, no figures")
    error = np.asarray(predicted, np.float64) - true
    return {
        "age_mae": float(np.abs(error).mean()),
        "age_mse": float((error**2).mean()),
        "age_bias": float(error.mean()),
        "age_cs5": float((np.abs(error) <= CS_YEARS).mean()),
    }


def confusion(predicted: Ints, true: Ints, classes: int) -> Ints:
    """Count (classes, classes): rows are the truth, columns what was said."""
    counts = np.bincount(true * classes + predicted, minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.int64, copy=False)


def accuracy(matrix: Ints) -> float:
    """Share on the diagonal of a confusion matrix."""
    return float(np.trace(matrix) / matrix.sum())


def balanced_accuracy(matrix: Ints) -> float:
    """Mean recall of the classes that occur."""
    occurs = matrix.sum(axis=1) > 0
    return float((np.diag(matrix)[occurs] / matrix.sum(axis=1)[occurs]).mean())


def per_class(matrix: Ints, labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and count of each class; 0 where a class was never said or never occurs."""
    right, said, occurs = np.diag(matrix), matrix.sum(axis=0), matrix.sum(axis=1)
    return {
        label: {
            "n": int(occurs[row]),
            "precision": float(right[row] / max(1, said[row])),
            "recall": float(right[row] / max(1, occurs[row])),
            "f1": float(2 * right[row] / max(1, said[row] + occurs[row])),
        }
        for row, label in enumerate(labels)
    }


def summary(heads: Heads, faces: Faces) -> dict[str, float]:
    """Give the figures of some faces: n, age_mae, age_mse, age_bias, age_cs5, both accuracies, plain and balanced."""
    gender = confusion(gender_of(heads), faces.gender, len(GENDERS))
    ethnicity = confusion(ethnicity_of(heads), faces.ethnicity, len(ETHNICITIES))
    return {
        "n": len(faces),
        **age_figures(heads.age, faces.age),
        "gender_accuracy": accuracy(gender),
        "gender_balanced_accuracy": balanced_accuracy(gender),
        "ethnicity_accuracy": accuracy(ethnicity),
        "ethnicity_balanced_accuracy": balanced_accuracy(ethnicity),
    }


def gender_of(heads: Heads) -> Ints:
    """Say the likelier gender of each face, as an index in GENDERS."""
    return np.asarray(heads.p_female > 0.5, np.int64)


def ethnicity_of(heads: Heads) -> Ints:
    """Say the likeliest ethnicity of each face, as an index in ETHNICITIES."""
    return np.asarray(heads.p_ethnicity.argmax(axis=1), np.int64)


def bands_of(ages: NDArray[np.floating]) -> Ints:
    """Give the age band of each age, as an index in AGE_BANDS."""
    return np.array([AGE_BANDS.index(age_band(float(years))) for years in ages], np.int64)


def face_size(side_px: float) -> str:
    """Name the size of a face in its picture; 0 is one that the detector did not find."""
    if side_px <= 0:
        return FACE_SIZES[0][1]
    return next((name for below, name in FACE_SIZES if side_px < below), LARGEST_FACES)


def groups_of(faces: Faces) -> dict[str, dict[str, Ints]]:
    """Give the rows of every group that occurs: by age band, gender, ethnicity and face size."""
    bands = bands_of(faces.age)
    sizes = np.array([face_size(side) for side in faces.face_px.tolist()])
    names = (*(name for _, name in FACE_SIZES), LARGEST_FACES)
    groups = {
        "age_band": {band: np.flatnonzero(bands == row) for row, band in enumerate(AGE_BANDS)},
        "gender": {label: np.flatnonzero(faces.gender == row) for row, label in enumerate(GENDERS)},
        "ethnicity": {label: np.flatnonzero(faces.ethnicity == row) for row, label in enumerate(ETHNICITIES)},
        "face_size": {name: np.flatnonzero(sizes == name) for name in names},
    }
    return {kind: {name: rows for name, rows in each.items() if len(rows)} for kind, each in groups.items()}


def take_heads(heads: Heads, rows: Ints) -> Heads:
    """Give what was said of *rows* only."""
    return Heads(*(values[rows] for values in heads))


def bootstrap(
    values: Mapping[str, Floats], *, times: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, list[float]]:
    """Give the interval of each mean over faces by the percentile bootstrap.

    B. Efron, R. Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    generator = np.random.default_rng(seed)
    names = list(values)
    table = np.stack([np.asarray(values[name], np.float64) for name in names])
    count = table.shape[1]
    means = np.stack([table[:, generator.integers(0, count, count)].mean(axis=1) for _ in range(times)])
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2), axis=0)
    return {name: [float(low[row]), float(high[row])] for row, name in enumerate(names)}


def intervals(heads: Heads, faces: Faces, *, times: int = 1000, seed: int = 0) -> dict[str, list[float]]:
    """Give 95 % bootstrap intervals of the main figures."""
    error = heads.age - faces.age
    values = {
        "age_mae": np.abs(error),
        "age_mse": error**2,
        "age_bias": error,
        "age_cs5": (np.abs(error) <= CS_YEARS).astype(np.float64),
        "gender_accuracy": (gender_of(heads) == faces.gender).astype(np.float64),
        "ethnicity_accuracy": (ethnicity_of(heads) == faces.ethnicity).astype(np.float64),
    }
    return bootstrap(values, times=times, seed=seed)


def reliability(probability: Floats, true: Ints, bins: int = 15) -> dict[str, Any]:
    """Give ECE and the reliability diagram of (n, classes) probabilities.

    C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, eq. 3: confidence of the label that was said
    against how often it was right, over equal bins (low, high].
    """
    confidence = probability.max(axis=1)
    right = probability.argmax(axis=1) == true
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    rows, ece = [], 0.0
    for number in range(bins):
        inside = place == number
        if inside.any():
            trust, share = float(confidence[inside].mean()), float(right[inside].mean())
            rows.append({"n": int(inside.sum()), "confidence": trust, "accuracy": share})
            ece += float(inside.mean()) * abs(trust - share)
    return {"ece": ece, "bins": rows}


def age_coverage(
    probability: Floats, age: NDArray[np.floating], first: int, levels: Sequence[float] = (0.5, 0.8, 0.9)
) -> dict[str, float]:
    """Say how often the age lies in the middle *level* of its distribution (n, years from *first*); level is ideal."""
    below = np.cumsum(probability, axis=1)
    place = np.clip(np.rint(age).astype(np.int64) - first, 0, probability.shape[1] - 1)
    rows = np.arange(len(age))
    middle = below[rows, place] - probability[rows, place] / 2  # where in the distribution the year's middle lies
    return {f"{level:g}": float((np.abs(middle - 0.5) <= level / 2).mean()) for level in levels}


def negative_log_likelihood(logits: NDArray[np.float32], true: Ints, temperature: float) -> float:
    """Mean surprise at the truth, in nats."""
    chosen = softmax(logits, temperature)[np.arange(len(true)), true]
    return float(-np.log(np.maximum(chosen, 1e-12)).mean())


def fit_temperature(logits: NDArray[np.float32], true: Ints) -> float:
    """Give the temperature 0.05..20 that surprises least: Guo et al., section 4.2."""
    objective: Callable[[float], float] = lambda log: negative_log_likelihood(logits, true, float(np.exp(log)))  # noqa: E731  one line, used once
    found = minimize_scalar(objective, bounds=(np.log(0.05), np.log(20)), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def fit_temperatures(logits: Logits, faces: Faces, ages: tuple[int, int]) -> dict[str, float]:
    """Fit one temperature per head on faces that were not trained on, to four digits."""
    years = np.clip(np.rint(faces.age).astype(np.int64), *ages) - ages[0]
    pairs = {
        "age": (logits.age, years),
        "gender": (logits.gender, faces.gender),
        "ethnicity": (logits.ethnicity, faces.ethnicity),
    }
    found = {name: round(fit_temperature(values, true), 4) for name, (values, true) in pairs.items()}
    # A temperature leaves a class's rank alone, but it moves an expectation: not for the price of a worse age.
    span = np.arange(ages[0], ages[1] + 1)
    before, after = (((softmax(logits.age, heat) @ span - faces.age) ** 2).mean() for heat in (1.0, found["age"]))
    return found if after <= before * 1.01 else {**found, "age": 1.0}


def fit_share(logits: NDArray[np.float32], shift: NDArray[np.float32], true: Ints) -> float:
    """Fit how much of *shift* (classes,) to take from *logits* (n, classes), 0 to 1.5, by the likelihood of *true* (n,)."""

    def loss(share: float) -> float:
        return negative_log_likelihood(logits - np.float32(share) * shift, true, 1.0)

    return float(minimize_scalar(loss, bounds=(0.0, 1.5), method="bounded", options={"xatol": 1e-3}).x)
