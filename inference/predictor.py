"""The predictor port: what the network says of a batch of crops.

An engine gives logits; what they mean is worked out in heads.py, once for all engines. Every implementation gives the same
logits within the tolerance of tests/inference/test_predictor.py.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.manifest import Manifest

Crops = NDArray[np.uint8]
"""(n, size_px, size_px, 3), RGB, 0..255."""


class Logits(NamedTuple):
    """The three heads before softmax, for n crops."""

    age: NDArray[np.float32]  # (n, years)
    gender: NDArray[np.float32]  # (n, 2), in the order of GENDERS
    ethnicity: NDArray[np.float32]  # (n, 5), in the order of ETHNICITIES


class Predictor(Protocol):
    """Runs the network. Safe to call from one thread at a time."""

    def predict(self, crops: Crops) -> Logits:
        """Give the logits of every crop, in order; any number of crops, none included."""


class Engine(Predictor, Protocol):
    """A predictor that knows what its outputs mean."""

    @property
    def manifest(self) -> Manifest:
        """Say what crops it takes and what its logits stand for."""
