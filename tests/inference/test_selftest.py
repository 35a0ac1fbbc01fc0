"""The question whether a model answers here as where it was made."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from inference.predictor import Crops, Logits
from inference.selftest import COUNT, GOLDEN_NAME, Golden, drawn_crops, golden_of, selftest
from pipeline.errors import ConfigError
from pipeline.manifest import DEFAULT_MODEL, load_manifest
from tests.inference.conftest import MANIFEST, SIDE, ToyPredictor


def golden(predictor: ToyPredictor) -> Golden:
    """Write down what a predictor says."""
    said = predictor.predict(drawn_crops(COUNT, SIDE))
    return Golden(MANIFEST.sha256, *(tuple(tuple(map(float, row)) for row in head) for head in said))


class Other(ToyPredictor):
    """Says something else."""

    def predict(self, crops: Crops) -> Logits:
        """Do so."""
        age, gender, ethnicity = super().predict(crops)
        return Logits(age, -gender, ethnicity)


class Broken(ToyPredictor):
    """Says what is no number."""

    def predict(self, crops: Crops) -> Logits:
        """Do so."""
        age, gender, ethnicity = super().predict(crops)
        return Logits(age * np.float32("nan"), gender, ethnicity)


class Leaky(ToyPredictor):
    """What it says of a crop depends on how many there are."""

    def predict(self, crops: Crops) -> Logits:
        """Do so."""
        age, gender, ethnicity = super().predict(crops)
        return Logits(age + len(crops), gender, ethnicity)


def test_the_same_answers_pass() -> None:
    """No distance at all."""
    assert selftest(ToyPredictor(), MANIFEST, golden(ToyPredictor())) == 0
    assert selftest(ToyPredictor(), MANIFEST, None) is None


@pytest.mark.parametrize("predictor", [Other(), Broken(), Leaky()])
def test_other_answers_do_not(predictor: ToyPredictor) -> None:
    """Another network, a broken one, one whose batches mix."""
    with pytest.raises(ConfigError):
        selftest(predictor, MANIFEST, golden(ToyPredictor()))


def test_the_shipped_model_has_its_answers_beside_it() -> None:
    """A new model without new answers is noticed here: run tests/inference/golden_logits.py."""
    manifest = load_manifest(DEFAULT_MODEL)
    answers = golden_of(DEFAULT_MODEL, manifest)
    assert answers is not None
    assert golden_of(DEFAULT_MODEL, msgspec.structs.replace(manifest, sha256="0" * 64)) is None
    assert golden_of(DEFAULT_MODEL.parent, manifest) is None
    assert len(answers.gender) == COUNT
    assert (DEFAULT_MODEL / GOLDEN_NAME).stat().st_size < 10_000
