"""How often a camera is searched: as wanted, less when the worker cannot keep up, and as wanted again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ingest.cadence import Cadence, CatchUp


def test_a_worker_that_falls_behind_searches_less_before_anything_queues_and_recovers() -> None:
    """Late by two seconds, it slows down to the least in steps; punctual again, it comes back to what is wanted."""
    cadence, now = Cadence(8.0, 1.0), 0.0
    cadence.feel(0.1, now)
    fps = []
    for _ in range(20):
        now += 2.5
        cadence.feel(2.0, now)
        fps.append(cadence.fps)
    assert fps == sorted(fps, reverse=True)
    assert fps[-1] == 1.0
    for _ in range(20):
        now += 2.5
        cadence.feel(0.1, now)
    assert cadence.fps == 8.0


def test_an_offset_of_the_clock_is_not_lateness() -> None:
    """A stream whose first frame took three seconds is three seconds old for ever, and not late."""
    cadence = Cadence(8.0, 1.0)
    for n in range(100):
        cadence.feel(3.0, 0.5 * n)
    assert cadence.fps == 8.0


def test_one_late_picture_changes_a_little() -> None:
    """Between two changes there is time to see what the first has done."""
    cadence = Cadence(8.0, 1.0)
    cadence.feel(0.1, 10.0)
    for n in range(10):
        cadence.feel(2.0, 13.0 + 0.1 * n)
    assert cadence.fps == 8.0 * 0.7


def test_a_burst_that_passes_changes_nothing() -> None:
    """Late again and again, but never for a whole second: the age does not stand."""
    cadence = Cadence(8.0, 1.0)
    for n in range(200):
        cadence.feel(3.0 if n % 4 else 0.1, 0.1 * n)
    assert cadence.fps == 8.0


def test_a_stream_that_stays_behind_is_decoded_at_its_key_frames_until_it_has_caught_up() -> None:
    """Not for a stall whose pictures come in a burst, and not back before the next key frame."""
    catch_up = CatchUp()
    assert not any(catch_up.feel(0.1, 0.04 * n, at_key=n % 50 == 0) for n in range(50))
    for n in range(30):  # two seconds of pictures at once, after a stall
        assert not catch_up.feel(2.0 - n / 20, 4.0 + n / 100, at_key=False)
    changes = [catch_up.feel(1.5, 5.0 + 0.04 * n, at_key=False) for n in range(20)]
    assert changes.index(True) == 13  # after half a second
    assert sum(changes) == 1
    assert catch_up.keys_only
    assert not catch_up.feel(0.1, 6.0, at_key=False)
    assert not catch_up.feel(0.5, 6.1, at_key=True)
    assert catch_up.feel(0.1, 6.2, at_key=True)
    assert not catch_up.keys_only


@given(st.floats(0.1, 60), st.floats(0.1, 60), st.lists(st.floats(0, 60), max_size=60))
def test_the_cadence_stays_within_its_bounds(wanted: float, least: float, lags: list[float]) -> None:
    """Never more than wanted, never less than the least, whatever happens."""
    cadence = Cadence(wanted, least)
    for n, lag_s in enumerate(lags):
        cadence.feel(lag_s, 3.0 * n)
        assert min(least, wanted) <= cadence.fps <= wanted
