"""What a model is worth on labelled pictures, measured as it is used: the product's crops, engine and heads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from inference.heads import Heads, read_heads, softmax
from inference.predictor import Logits, Predictor
from pipeline.attributes import AGE_BANDS, ETHNICITIES, GENDERS
from pipeline.manifest import Manifest
from training.augmentation import blurred, compressed, darkened, smaller
from training.dataset import Faces, Progress
from training.metrics import (
    accuracy,
    age_coverage,
    balanced_accuracy,
    bands_of,
    confusion,
    ethnicity_of,
    gender_of,
    groups_of,
    intervals,
    per_class,
    reliability,
    summary,
    take_heads,
)

Degradation = Callable[[NDArray[np.uint8], float, int], NDArray[np.uint8]]
BATCH: Final = 64

# name: (what happens to a crop at a value with a face's number as seed, the values from good to bad)
ROBUSTNESS: Final[dict[str, tuple[Degradation, tuple[float, ...]]]] = {
    "face_px": (lambda crop, side, _: smaller(crop, side), (64, 48, 32, 24, 16)),
    "blur_ratio": (lambda crop, sigma, _: blurred(crop, sigma), (0.01, 0.02, 0.03, 0.05)),
    "jpeg_quality": (lambda crop, quality, _: compressed(crop, int(quality)), (60, 40, 20, 10)),
    "light": (lambda crop, light, face: darkened(crop, light, np.random.default_rng(face)), (0.6, 0.4, 0.3, 0.2)),
}


def predict_faces(
    predictor: Predictor, faces: Faces, change: Callable[[NDArray[np.uint8], int], NDArray[np.uint8]] | None = None,
    progress: Progress | None = None,
) -> Logits:  # fmt: skip
    """Run the model over all faces in batches; *change* is done to each crop first, given the face's row."""
    parts = []
    for start in range(0, len(faces), BATCH):
        rows = np.arange(start, min(start + BATCH, len(faces)))
        crops = faces.crops(rows)
        if change is not None:
            crops = np.stack([change(crop, int(row)) for crop, row in zip(crops, rows, strict=True)])
        parts.append(predictor.predict(crops))
        if progress:
            progress(int(rows[-1]) + 1, len(faces))
    return Logits(*(np.concatenate(heads) for heads in zip(*parts, strict=True)))


def evaluate_faces(
    predictor: Predictor,
    manifest: Manifest,
    faces: Faces,
    *,
    robustness: int = 0,
    times: int = 1000,
    seed: int = 0,
    progress: Callable[[str], Progress | None] = lambda _: None,
) -> tuple[dict[str, Any], Heads]:
    """Measure *predictor* on *faces*: the report as plain values for JSON, and what was said of each face.

    *robustness* is how many faces the degradation curves are drawn with, 0 for none; *seed* is the
    bootstrap's; *progress* gives a progress function for a piece of work by its name.
    """
    logits = predict_faces(predictor, faces, progress=progress("faces"))
    heads = read_heads(logits, manifest)
    gender = confusion(gender_of(heads), faces.gender, len(GENDERS))
    ethnicity = confusion(ethnicity_of(heads), faces.ethnicity, len(ETHNICITIES))
    bands = confusion(bands_of(heads.age), bands_of(faces.age), len(AGE_BANDS))
    found: dict[str, Any] = {
        "model": manifest.name,
        "digest": manifest.digest,
        **summary(heads, faces),
        "intervals": intervals(heads, faces, times=times, seed=seed),
        "by": {
            kind: {name: summary(take_heads(heads, rows), faces.take(rows)) for name, rows in groups.items()}
            for kind, groups in groups_of(faces).items()
        },
        "gender": per_class(gender, GENDERS),
        "ethnicity": per_class(ethnicity, ETHNICITIES),
        "age_bands": {"accuracy": accuracy(bands), "balanced_accuracy": balanced_accuracy(bands)},
        "confusion": {"gender": gender.tolist(), "ethnicity": ethnicity.tolist(), "age_band": bands.tolist()},
        "calibration": _calibration(logits, manifest, faces),
        "faces": {
            "not_found": faces.not_found,
            "rejected": len(faces.rejected),
            "data_digest": faces.digest[:12],
        },
    }
    if robustness:
        found["robustness"] = _robustness(predictor, manifest, faces, robustness, progress)
    return found, heads


def _calibration(logits: Logits, manifest: Manifest, faces: Faces) -> dict[str, Any]:
    """ECE and reliability of gender and ethnicity, and the coverage of the age's spread: raw, and as served."""
    out: dict[str, Any] = {}
    for name, values, true in (
        ("gender", logits.gender, faces.gender),
        ("ethnicity", logits.ethnicity, faces.ethnicity),
    ):
        heat = manifest.temperatures.get(name, 1.0)
        out[name] = {
            "temperature": heat,
            "before": reliability(softmax(values), true),
            "after": reliability(softmax(values, heat), true),
        }
    heat, first = manifest.temperatures.get("age", 1.0), manifest.ages[0]
    out["age"] = {
        "temperature": heat,
        "before": {"coverage": age_coverage(softmax(logits.age), faces.age, first)},
        "after": {"coverage": age_coverage(softmax(logits.age, heat), faces.age, first)},
    }
    return out


def _at(change: Degradation, value: float) -> Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]:
    return lambda crop, face: change(crop, value, face)


def _robustness(
    predictor: Predictor, manifest: Manifest, faces: Faces, count: int, progress: Callable[[str], Progress | None]
) -> dict[str, Any]:
    """Draw the curves: the same faces, whole first, then each degradation at each value."""
    rows = np.sort(np.random.default_rng(0).permutation(len(faces))[:count])
    some = faces.take(rows)
    whole = summary(read_heads(predict_faces(predictor, some), manifest), some)
    curves: dict[str, Any] = {"n": len(some), "as_it_is": whole}
    for name, (change, values) in ROBUSTNESS.items():
        curves[name] = []
        tell = progress(name)
        for done, value in enumerate(values, start=1):
            logits = predict_faces(predictor, some, _at(change, value))
            curves[name].append({"value": value, **summary(read_heads(logits, manifest), some)})
            if tell:
                tell(done, len(values))
    return curves


def write_faces(path: Path, faces: Faces, heads: Heads) -> None:
    """Write what was said of each face as CSV: name, truth, prediction."""
    gender, ethnicity = gender_of(heads), ethnicity_of(heads)
    with path.open("w", encoding="utf-8") as file:
        file.write("name,age,gender,ethnicity,face_px,said_age,age_spread,p_female,said_gender,said_ethnicity\n")
        for row, name in enumerate(faces.names):
            file.write(
                f'"{name}",{faces.age[row]:g},{GENDERS[faces.gender[row]]},{ETHNICITIES[faces.ethnicity[row]]},{faces.face_px[row]:.0f},'
                f"{heads.age[row]:.2f},{heads.age_spread[row]:.2f},{heads.p_female[row]:.4f},{GENDERS[gender[row]]},"
                f"{ETHNICITIES[ethnicity[row]]}\n"
            )
