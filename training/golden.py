"""The golden batch of a model (inference/golden.py), made from the demo's faces, which belong to nobody."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from inference.golden import GOLDEN_FACES, Golden
from inference.predictor import Crops
from pipeline.manifest import Manifest
from training.augmentation import degrade, step_generator
from training.dataset import load_faces
from training.model import predict_logits

CAST: Final = Path(__file__).resolve().parent.parent / "demo" / "cast"


def sample_crops(manifest: Manifest, data: Path, count: int) -> Crops:
    """Take *count* crops of *data*, degraded to fill up: as cameras see them."""
    faces = load_faces(data, manifest.crop, limit=count)
    rows = np.arange(count) % len(faces)
    crops = faces.crops(rows)
    for place in range(len(faces), count):
        crops[place] = degrade(crops[place], step_generator(0, 0, place))
    return crops


def make_golden(model: Any, manifest: Manifest) -> Golden | None:
    """Ask *model* about the cast, whole and degraded; None where the product is installed without the demo."""
    if not any(CAST.glob("*.jpg")):
        return None
    crops = sample_crops(manifest, CAST, GOLDEN_FACES)
    return Golden(crops, predict_logits(model, lambda rows: crops[rows], len(crops)))
