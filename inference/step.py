"""A batch of messages to a batch of messages: one pass of the network over all its faces, everything else in its place."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from inference.heads import Heads, read_heads
from inference.predictor import Crops, Predictor
from pipeline.attributes import ATTRIBUTES, Attribute
from pipeline.manifest import Manifest
from pipeline.messages import FaceCrop, Prediction, TrackEnded


def predict(
    items: Sequence[FaceCrop | TrackEnded],
    crops: Crops,
    predictor: Predictor,
    manifest: Manifest,
    attributes: Collection[Attribute],
) -> list[Prediction | TrackEnded]:
    """Label every face with one pass of the network; what is no face passes through, in order.

    The k-th face crop among *items* has its pixels in the k-th row of *crops*. What is not among *attributes*, or not among those
    that the crop's camera allows, is neither worked out nor said.
    """
    if not len(crops):
        return [item for item in items if isinstance(item, TrackEnded)]
    wanted = [_allowed(item, attributes) for item in items if isinstance(item, FaceCrop)]
    heads = read_heads(predictor.predict(crops), manifest, wanted)
    rows = iter(enumerate(wanted))
    return [
        _prediction(item, heads, *next(rows), model=manifest.digest) if isinstance(item, FaceCrop) else item
        for item in items
    ]


def _allowed(crop: FaceCrop, attributes: Collection[Attribute]) -> frozenset[Attribute]:
    return frozenset(attributes).intersection(ATTRIBUTES if crop.attributes is UNSET else crop.attributes)


def _prediction(crop: FaceCrop, heads: Heads, row: int, attributes: Collection[Attribute], *, model: str) -> Prediction:
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
