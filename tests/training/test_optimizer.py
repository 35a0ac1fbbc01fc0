"""The descent: how the rate goes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.model import optimizer
from training.recipe import make_recipe

STEPS = 100


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 0.5), st.floats(0, 1), st.floats(1e-5, 0.1))
def test_the_rate_climbs_to_its_peak_and_falls_to_where_it_ends(warm_up: float, final: float, peak: float) -> None:
    """At every share of warm-up, end and peak."""
    recipe = make_recipe({"warm_up": warm_up, "final_rate": final, "learning_rate": peak})
    schedule = optimizer(recipe, STEPS)._learning_rate
    rates = np.array([float(schedule(step)) for step in range(STEPS + 1)])
    top = round(warm_up * STEPS)
    assert rates[top] == pytest.approx(peak, rel=1e-4)
    assert np.all(np.diff(rates[: top + 1]) > 0)
    assert np.all(np.diff(rates[top:]) <= peak * 1e-5)
    assert rates[-1] == pytest.approx(final * peak, rel=1e-3, abs=peak * 1e-5)
