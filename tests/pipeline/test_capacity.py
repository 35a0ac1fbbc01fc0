"""Capacity is arithmetic on measured costs: it grows with the cameras, and says what it stands on."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.capacity import HEADINGS, SIZES, UnitCosts, cameras_per_core, cells, document, markdown, plan

COSTS = UnitCosts(
    camera_with_people=0.1, camera_empty=0.02, network_us=1000, step_us=200, aggregator_us=50, redis_us=10, crop_bytes=4000,
    redis_bytes=500_000, partition_records_s=50_000,
)  # fmt: skip


@settings(deadline=None)
@given(st.integers(1, 100_000), st.floats(0.1, 100))
def test_twice_the_cameras_cost_twice_as_much(cameras: int, people_per_minute: float) -> None:
    """Nothing in it grows faster than the cameras; partitions are whole."""
    one, two = plan(COSTS, cameras, people_per_minute), plan(COSTS, 2 * cameras, people_per_minute)
    assert two.cores == pytest.approx(2 * one.cores)
    assert two.redis_mb == pytest.approx(2 * one.redis_mb)
    assert one.partitions <= two.partitions <= 2 * one.partitions


def test_a_busy_camera_costs_what_was_measured_with_people_and_an_idle_one_without() -> None:
    """In between by the share of the time that somebody is there."""
    assert plan(COSTS, 100, 0.001).ingest_cores == pytest.approx(2, rel=0.01)
    assert plan(COSTS, 100, 600).ingest_cores == pytest.approx(10, rel=0.01)
    assert 2 < plan(COSTS, 100, 10).ingest_cores < 10


def test_what_a_core_carries_and_what_cameras_need_are_the_same_figure() -> None:
    """Seen from both sides."""
    carries, thousand = cameras_per_core(COSTS, 10), plan(COSTS, 1000, 10)
    assert carries["ingest"] * thousand.ingest_cores == pytest.approx(1000)
    assert carries["redis"] * thousand.redis_cores == pytest.approx(1000)
    assert thousand.first == "ingest"


def test_the_page_has_a_row_for_each_number_of_cameras() -> None:
    """With as many cells as headings; the document the same."""
    page = markdown(COSTS, 10, "demographics capacity")
    for cameras in SIZES:
        row = next(line for line in page.splitlines() if line.startswith(f"| {cameras:,} |"))
        assert row.count("|") == len(HEADINGS) + 1
    assert len(cells(plan(COSTS, 10, 10))) == len(HEADINGS)
    assert [one["cameras"] for one in document(COSTS, 10)["plans"]] == list(SIZES)
