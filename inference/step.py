"""A batch of messages to a batch of messages: one pass of the network over all its faces, everything else in its place."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from inference.heads import Heads, read_heads
from inference.predictor import Predictor
from pipeline.attributes import ATTRIBUTES, Attribute
from pipeline.manifest import Manifest
from pipeline.messages import FaceCrop, Prediction, TrackEnded


class Face(NamedTuple):
    """A face crop with its pixels: (size, size, 3) uint8, RGB."""

    crop: FaceCrop
    pixels: NDArray[np.uint8]


def predict(
    items: Sequence[Face | TrackEnded], predictor: Predictor, manifest: Manifest, attributes: Collection[Attribute]
) -> list[Prediction | TrackEnded]:
    """Label every face with one pass of the network; what is no face passes through, in order.

    What is not among *attributes*, or not among those that the crop's camera allows, is neither worked out nor said.
    """
    faces = [item for item in items if isinstance(item, Face)]
    if not faces:
        return [item for item in items if isinstance(item, TrackEnded)]
    wanted = [_allowed(face.crop, attributes) for face in faces]
    heads = read_heads(predictor.predict(np.stack([face.pixels for face in faces])), manifest, wanted)
    predictions = iter(
        _prediction(face.crop, heads, row, manifest.digest, wanted[row]) for row, face in enumerate(faces)
    )
    return [next(predictions) if isinstance(item, Face) else item for item in items]


def _allowed(crop: FaceCrop, attributes: Collection[Attribute]) -> frozenset[Attribute]:
    return frozenset(attributes).intersection(ATTRIBUTES if crop.attributes is UNSET else crop.attributes)


def _prediction(crop: FaceCrop, heads: Heads, row: int, model: str, attributes: Collection[Attribute]) -> Prediction:
    return Prediction(
        camera_id=crop.camera_id,
        site=crop.site,
        track_id=crop.track_id,
        sequence=crop.sequence,
        first_seen=crop.first_seen,
        captured_at=crop.captured_at,
        quality=crop.quality,
        age=max(0.0, round(float(heads.age[row]), 3)) if "age" in attributes else None,
        age_spread=round(float(heads.age_spread[row]), 3) if "age" in attributes else None,
        p_female=_ratio(heads.p_female[row]) if "gender" in attributes else None,
        p_ethnicity=_ratios(heads.p_ethnicity[row]) if "ethnicity" in attributes else None,
        model=model,
    )


def _ratio(p: float) -> float:
    return min(1.0, max(0.0, round(float(p), 6)))


def _ratios(row: NDArray[np.float64]) -> tuple[float, float, float, float, float]:
    white, black, asian, indian, other = (_ratio(p) for p in row)
    return white, black, asian, indian, other
