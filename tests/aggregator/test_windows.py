"""Rolling windows are arithmetic."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aggregator.windows import RollingWindow, retentions, rolling

THIRTY_SECONDS = RollingWindow("30s", 30, 10)


def test_a_window_is_the_buckets_that_it_touches() -> None:
    """The current bucket is part of it; the oldest is the last that still counts."""
    # [10──20) [20──30) [30──40) [40──50)   now=47
    assert list(THIRTY_SECONDS.buckets(47)) == [20, 30, 40]
    assert list(THIRTY_SECONDS.buckets(49.999)) == [20, 30, 40]
    assert list(THIRTY_SECONDS.buckets(50)) == [30, 40, 50]


@given(st.integers(1, 7 * 86400), st.floats(1e9, 2e9))
def test_a_window_covers_its_length_within_one_bucket(seconds: int, now: float) -> None:
    """Never shorter than promised by more than the current bucket, never longer than promised by more than one."""
    window = rolling("w", seconds)
    buckets = window.buckets(now)
    assert buckets[0] <= now - seconds + window.bucket_s
    assert now - buckets[0] < seconds + window.bucket_s
    assert buckets[-1] <= now < buckets[-1] + window.bucket_s


@given(st.integers(60, 7 * 86400))
def test_a_window_is_read_from_a_bounded_number_of_buckets(seconds: int) -> None:
    """At least twelve, so that its edge is sharp."""
    window = rolling("w", seconds)
    assert len(window.buckets(0)) >= 12


@given(st.lists(st.integers(5, 86400), min_size=1, unique=True), st.floats(1e9, 2e9), st.integers(0, 86400))
def test_a_bucket_lives_as_long_as_a_window_reads_it(lengths: list[int], now: float, age: int) -> None:
    """And not for ever."""
    windows = [rolling(str(length), length) for length in lengths]
    kept = {retention.bucket_s: retention for retention in retentions(windows)}
    for window in windows:
        retention = kept[window.bucket_s]
        for start in window.buckets(now):
            assert retention.expires(start) > now
        assert retention.expires(retention.bucket(now - age)) < now + 2 * 86400
