"""What the page says of the pipeline: from this process's own metrics, over the last minute."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.health import PipelineHealth, quantile
from pipeline import telemetry as metrics
from pipeline.telemetry import Telemetry


class Rig:
    """A process whose clock is ours."""

    def __init__(self) -> None:
        self.telemetry = Telemetry(("aggregator",))
        self.now = 100.0
        self.problems: list[str] = []
        self.health = PipelineHealth(self.telemetry, lambda: self.problems, lambda: self.now)

    def counted(self, n: int, seconds: float) -> None:
        """Count *n* predictions that are so old."""
        self.telemetry.add(metrics.APPLIED, n)
        for _ in range(n):
            self.telemetry.observe(metrics.CAPTURE_TO_COUNT, seconds)


@pytest.fixture
def rig() -> Rig:
    """Make one that has looked once."""
    made = Rig()
    made.health.view()
    return made


def test_a_pipeline_that_counts_is_good_and_says_how_fast(rig: Rig) -> None:
    """Sixty records in half a minute; half of the predictions within a second."""
    rig.counted(30, 0.7)
    rig.counted(30, 1.5)
    rig.now += 30
    view = rig.health.view()
    assert (view["state"], view["records_per_s"]) == ("good", 2.0)
    assert 0.5 < view["latency_s"]["half"] <= 1 < view["latency_s"]["most"] <= 2


def test_who_asks_once_is_told_of_the_time_since_the_start() -> None:
    """A script sees as much as the page."""
    rig = Rig()
    rig.counted(60, 0.7)
    rig.now += 120
    view = rig.health.view()
    assert (view["seconds"], view["records_per_s"]) == (120, 0.5)
    assert view["latency_s"]["half"] < 1


def test_what_is_older_than_a_minute_is_not_spoken_of(rig: Rig) -> None:
    """Else a slow morning would be said all day."""
    rig.counted(10, 50)
    for _ in range(70):
        rig.now += 1
        rig.health.view()
    rig.counted(10, 0.2)
    view = rig.health.view()
    assert view["latency_s"]["most"] < 1
    assert (view["state"], view["seconds"]) == ("good", 60)


def test_nothing_for_a_minute_is_quiet_and_no_latency_is_made_up(rig: Rig) -> None:
    """Nobody walks by at night."""
    rig.now += 60
    view = rig.health.view()
    assert (view["state"], view["latency_s"], view["records_per_s"]) == ("quiet", None, 0)


def test_old_counts_and_many_waiting_records_are_late(rig: Rig) -> None:
    """Either says that the figures are behind the cameras."""
    rig.counted(10, 50)
    assert rig.health.view()["state"] == "late"
    waiting = Rig()
    waiting.telemetry.set(metrics.LAG, 150, topic="predictions", partition="0")
    waiting.telemetry.set(metrics.LAG, 151, topic="predictions", partition="1")
    view = waiting.health.view()
    assert (view["state"], view["waiting"]) == ("late", {"predictions": 301})


def test_problems_come_first(rig: Rig) -> None:
    """In the words of whoever has them."""
    rig.counted(1, 0.1)
    rig.problems = ["Redis at h does not answer"]
    view = rig.health.view()
    assert (view["state"], view["problems"]) == ("trouble", ["Redis at h does not answer"])


@given(st.lists(st.floats(0, 50), min_size=1, max_size=200), st.floats(0.01, 1))
def test_a_quantile_lies_in_the_bucket_that_holds_it(values: list[float], share: float) -> None:
    """Between the bounds that the true one lies between."""
    bounds = [1.0, 2.0, 5.0, 10.0, 60.0, float("inf")]
    buckets = [(bound, float(sum(value <= bound for value in values))) for bound in bounds]
    found = quantile(share, buckets)
    assert found is not None
    wanted = share * len(values)
    upper = next(bound for bound, n in buckets if n >= wanted)
    lower = max((bound for bound in [0.0, *bounds] if bound < upper), default=0.0)
    assert lower <= found <= upper


def test_of_nothing_there_is_no_quantile() -> None:
    """Not zero."""
    assert quantile(0.5, []) is quantile(0.5, [(1.0, 0.0), (float("inf"), 0.0)]) is None
