"""The predictor port: what the network says of a batch of crops.

An engine gives logits; what they mean is worked out in heads.py, once for all engines. Every implementation gives the same
logits within the tolerance of tests/inference/test_predictor.py.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.manifest import EngineName, Manifest

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


class Tolerance(NamedTuple):
    """How far an engine's answers may lie from the original's, on average over the judged crops."""

    age_years: float
    probability: float  # of being female, and of the ethnicity that differs most


EXACT: Final = Tolerance(age_years=0.05, probability=0.005)
"""For arithmetic in float32: engines add in another order, and no more."""
ROUNDED: Final = Tolerance(age_years=1.0, probability=0.04)
"""For int8 and 16-bit floats: a year is a fifth of the model's own mean error."""


class NamedEngine(Engine, Protocol):
    """An engine that can be chosen, and says how far it may differ from the original."""

    @property
    def name(self) -> EngineName:
        """Tell it from the others."""

    @property
    def tolerance(self) -> Tolerance:
        """Say what its arithmetic costs, at most."""


def core_count(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Count the cores that this process may use: those that it may run on, or what its container is allowed of them.

    A container that is given two cores of sixty-four sees them all; a thread for each would fight over the two. The allowance is
    read as the kernel writes it: Documentation/admin-guide/cgroup-v2.rst, cpu.max; scheduler/sched-bwc.rst for version 1.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((cgroup / name).read_text() for name in names).split()
            if int(quota) > 0:
                cores = min(cores, max(1, math.ceil(int(quota) / int(period))))
        except (OSError, ValueError, ZeroDivisionError):  # no such allowance: "max"
            continue
    return cores
