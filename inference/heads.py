"""What the logits mean: calibrated probabilities, the expected age and its spread."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inference.predictor import Logits
from pipeline.manifest import Manifest


class Heads(NamedTuple):
    """What is said of n crops."""

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


def read_heads(logits: Logits, manifest: Manifest) -> Heads:
    """Work out what *logits* say, with the manifest's temperatures and years.

    The age is the expectation over years: R. Rothe, R. Timofte, L. Van Gool, "Deep expectation of real and apparent age from
    a single image without facial landmarks", IJCV 126, 2018, eq. 1.
    """
    first, last = manifest.ages
    years = np.arange(first, last + 1, dtype=np.float64)
    p_age = softmax(logits.age, manifest.temperatures.get("age", 1.0))
    age = p_age @ years
    spread = np.sqrt(np.maximum(p_age @ years**2 - age**2, 0.0))
    p_gender = softmax(logits.gender, manifest.temperatures.get("gender", 1.0))
    p_ethnicity = softmax(logits.ethnicity, manifest.temperatures.get("ethnicity", 1.0))
    return Heads(age, spread, p_gender[:, 1], p_ethnicity)
