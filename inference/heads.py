"""What the logits mean: calibrated probabilities, the expected age and its spread."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from inference.predictor import Logits
from pipeline.attributes import ATTRIBUTES, ETHNICITIES, Attribute
from pipeline.manifest import Manifest

_OFF: Final = np.nan


class Heads(NamedTuple):
    """What is said of n crops. What is not wanted of a crop is not worked out: NaN."""

    age: NDArray[np.float64]  # (n,) expectation, years
    age_spread: NDArray[np.float64]  # (n,) standard deviation, years
    p_female: NDArray[np.float64]  # (n,)
    p_ethnicity: NDArray[np.float64]  # (n, 5), rows sum to 1


def softmax(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float64]:
    """Turn (n, classes) logits into probabilities, calibrated by one temperature.

    C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2.
    """
    scaled = np.asarray(logits, np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True, initial=-np.inf))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def read_heads(logits: Logits, manifest: Manifest, wanted: Sequence[Collection[Attribute]] | None = None) -> Heads:
    """Work out what *logits* say of each of n crops, with the manifest's temperatures and years.

    Of each crop only what is *wanted* of it is worked out; everything unless given.

    The age is the expectation over years: R. Rothe, R. Timofte, L. Van Gool, "Deep expectation of real and apparent age from
    a single image without facial landmarks", IJCV 126, 2018, eq. 1.
    """
    first, last = manifest.ages
    years = np.arange(first, last + 1, dtype=np.float64)
    wanted = [ATTRIBUTES] * len(logits.age) if wanted is None else wanted
    n = len(wanted)
    heads = Heads(np.full(n, _OFF), np.full(n, _OFF), np.full(n, _OFF), np.full((n, len(ETHNICITIES)), _OFF))
    if rows := _rows("age", wanted):
        p_age = softmax(logits.age[rows], manifest.temperatures.get("age", 1.0))
        heads.age[rows] = age = p_age @ years
        heads.age_spread[rows] = np.sqrt(np.maximum(p_age @ years**2 - age**2, 0.0))
    if rows := _rows("gender", wanted):
        heads.p_female[rows] = softmax(logits.gender[rows], manifest.temperatures.get("gender", 1.0))[:, 1]
    if rows := _rows("ethnicity", wanted):
        heads.p_ethnicity[rows] = softmax(logits.ethnicity[rows], manifest.temperatures.get("ethnicity", 1.0))
    return heads


def _rows(attribute: Attribute, wanted: Sequence[Collection[Attribute]]) -> list[int]:
    return [row for row, attributes in enumerate(wanted) if attribute in attributes]
