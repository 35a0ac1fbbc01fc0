"""Percentiles out of histograms are where the observations were."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import telemetry as metrics
from pipeline.bench import histograms
from pipeline.exposition import exposition
from pipeline.telemetry import Telemetry

BOUNDS = (*metrics.CAPTURE_TO_COUNT.buckets, float("inf"))


@settings(deadline=None)
@given(st.lists(st.floats(0, 400), min_size=1, max_size=50), st.sampled_from((0.5, 0.99)))
def test_a_quantile_lies_in_the_bucket_of_the_value(values: list[float], share: float) -> None:
    """As near as a histogram can know."""
    telemetry = Telemetry(("aggregator",))
    telemetry.observe_all(metrics.CAPTURE_TO_COUNT, values)
    found = histograms.quantile(share, histograms.of_telemetry(telemetry, metrics.CAPTURE_TO_COUNT))
    wanted = next(value for n, value in enumerate(sorted(values), 1) if n >= share * len(values))
    upper = next(bound for bound in BOUNDS if wanted <= bound)
    lower = max((bound for bound in BOUNDS if bound < wanted), default=0.0)
    assert lower <= found <= upper


def test_what_was_before_is_taken_away_and_services_are_added_up() -> None:
    """From their pages, as Prometheus reads them."""
    first, second = Telemetry(("aggregator",)), Telemetry(("aggregator",))
    first.observe_all(metrics.CAPTURE_TO_COUNT, [10.0] * 5)
    before = histograms.of_texts([exposition(first.registry).decode()], metrics.CAPTURE_TO_COUNT)
    first.observe_all(metrics.CAPTURE_TO_COUNT, [0.2] * 3)
    second.observe_all(metrics.CAPTURE_TO_COUNT, [0.2])
    pages = [exposition(one.registry).decode() for one in (first, second)]
    seen = histograms.since(histograms.of_texts(pages, metrics.CAPTURE_TO_COUNT), before)
    assert seen[float("inf")] == 4
    assert 0.1 <= histograms.quantile(0.99, seen) <= 0.25


def test_nothing_observed_has_no_percentile() -> None:
    """Zero, and no division by it."""
    assert histograms.quantile(0.99, {}) == pytest.approx(0.0)
