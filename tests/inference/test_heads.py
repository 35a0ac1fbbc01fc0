"""What the logits mean: probabilities that are ones, the expected age, and the temperature that calibrates them."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from inference.heads import read_heads, softmax
from inference.predictor import Logits
from tests.inference.conftest import MANIFEST

YEARS = np.arange(0, 101)
rows = st.lists(st.lists(st.floats(-80, 80, width=32), min_size=5, max_size=5), min_size=1, max_size=6).map(
    lambda values: np.array(values, np.float32)
)
temperatures = st.floats(0.2, 5)
seeds = st.integers(0, 2**32)


def moved(logits: NDArray[np.float32], *, by: float = 0.0, divided_by: float = 1.0) -> Any:
    """Reckon with logits in double precision."""
    return logits.astype(np.float64) / divided_by + by


def logits_of(seed: int, count: int = 4, scale: float = 3.0) -> Logits:
    """Draw logits of the toy model."""
    rng = np.random.default_rng(seed)
    return Logits(*(rng.normal(0, scale, (count, classes)).astype(np.float32) for classes in (101, 2, 5)))


@given(rows, temperatures)
def test_probabilities_are_positive_and_add_up_to_one(logits: NDArray[np.float32], temperature: float) -> None:
    """However large the logits are."""
    p = softmax(logits, temperature)
    assert (p >= 0).all()
    assert p.sum(axis=1) == pytest.approx(np.ones(len(logits)))


@given(rows, st.floats(-1000, 1000), temperatures)
def test_adding_a_constant_changes_nothing(logits: NDArray[np.float32], shift: float, temperature: float) -> None:
    """Only differences between logits mean anything."""
    np.testing.assert_allclose(softmax(moved(logits, by=shift), temperature), softmax(logits, temperature), atol=1e-9)


@given(rows, temperatures)
def test_the_order_of_the_labels_is_kept_at_any_temperature(logits: NDArray[np.float32], temperature: float) -> None:
    """Calibration changes how sure it is, never what it says."""
    p = softmax(logits, temperature)
    by_logit = np.take_along_axis(p, np.argsort(logits, axis=1), axis=1)
    assert (np.diff(by_logit, axis=1) >= 0).all()


@given(rows, temperatures)
def test_the_temperature_divides_the_logits(logits: NDArray[np.float32], temperature: float) -> None:
    """As in Guo et al., section 4.2; a higher one is never surer."""
    np.testing.assert_allclose(softmax(logits, temperature), softmax(moved(logits, divided_by=temperature)))
    assert (softmax(logits, 2 * temperature).max(axis=1) <= softmax(logits, temperature).max(axis=1) + 1e-12).all()


def test_two_labels_are_told_by_the_logistic_function() -> None:
    """1 / (1 + exp(-(b - a)))."""
    p = softmax(np.array([[0.5, 2.0]], np.float32))
    assert p[0, 1] == pytest.approx(1 / (1 + np.exp(-1.5)))


def test_logits_that_would_overflow_do_not() -> None:
    """A network that is very sure gives no NaN, which no message could carry."""
    p = softmax(np.array([[1e4, -1e4, 0.0], [-3e38, -3e38, -3e38]], np.float32), 0.05)
    np.testing.assert_allclose(p, np.array([(1, 0, 0), (1 / 3, 1 / 3, 1 / 3)]))


def test_no_crops_give_no_heads() -> None:
    """Nothing in, nothing out, in the right shapes."""
    heads = read_heads(logits_of(0, count=0), MANIFEST)
    assert [part.shape for part in heads] == [(0,), (0,), (0,), (0, 5)]


@given(seeds, st.integers(0, 3), st.floats(0.3, 3))
def test_the_age_is_the_expectation_over_the_years(seed: int, first: int, temperature: float) -> None:
    """With its standard deviation, by NumPy's own weighted mean; from the manifest's first year on."""
    manifest = msgspec.structs.replace(MANIFEST, ages=(first, first + 100), temperatures={"age": temperature})
    logits = logits_of(seed)
    heads = read_heads(logits, manifest)
    weights = np.exp(logits.age.astype(np.float64) / temperature)
    for row in range(4):
        mean = np.average(YEARS + first, weights=weights[row])
        assert heads.age[row] == pytest.approx(mean, abs=1e-6)
        variance = np.average((YEARS + first - mean) ** 2, weights=weights[row])
        assert heads.age_spread[row] == pytest.approx(np.sqrt(variance), abs=1e-4)


@given(st.integers(0, 100), st.floats(40, 1000))
@example(years=50, margin=41.0)
def test_an_age_that_is_certain_has_no_spread(years: int, margin: float) -> None:
    """Where rounding would make the variance negative, it is none."""
    age = np.full((1, 101), 10 - margin, np.float32)
    age[0, years] = 10
    heads = read_heads(Logits(age, np.zeros((1, 2), np.float32), np.zeros((1, 5), np.float32)), MANIFEST)
    assert heads.age[0] == pytest.approx(years)
    assert heads.age_spread[0] == pytest.approx(0, abs=1e-3)


@given(seeds, temperatures, temperatures)
def test_each_head_has_a_temperature_of_its_own(seed: int, gender: float, ethnicity: float) -> None:
    """And 1 where the manifest says none."""
    logits = logits_of(seed)
    warm = read_heads(
        logits, msgspec.structs.replace(MANIFEST, temperatures={"gender": gender, "ethnicity": ethnicity})
    )
    plain = read_heads(logits, MANIFEST)
    np.testing.assert_allclose(warm.age, plain.age)
    np.testing.assert_allclose(warm.p_female, softmax(logits.gender, gender)[:, 1])
    np.testing.assert_allclose(warm.p_ethnicity, softmax(logits.ethnicity, ethnicity))
    np.testing.assert_allclose(plain.p_female, softmax(logits.gender)[:, 1])
