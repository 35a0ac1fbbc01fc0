"""Which crops of a passage are sent: few, good, spread, the first one early."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.selection import Candidate, Selection, SelectionConfig

LOOKS_PER_S = 10
CROP = np.zeros((1, 1, 3), np.uint8)

qualities = st.integers(0, 150).flatmap(lambda n: st.lists(st.floats(0, 1), min_size=n, max_size=n))
configs = st.builds(
    SelectionConfig,
    max_crops=st.integers(1, 12),
    interval_s=st.floats(0.05, 3),
    least_quality=st.floats(0, 1),
    hold_s=st.floats(0, 5),
)


def passage(
    values: list[float], config: SelectionConfig, *, confirmed_from: int = 0
) -> tuple[list[tuple[int, Candidate]], Candidate | None, Selection]:
    """Offer a crop of each quality, ten a second: what was sent at which look, what at the end, and the state."""
    selection = Selection(config)
    sent: list[tuple[int, Candidate]] = []
    for n, value in enumerate(values):
        at = 1000 + n / LOOKS_PER_S
        selection.offer(Candidate(value, at, 80.0, CROP))
        if n >= confirmed_from and (candidate := selection.due(at)):
            sent.append((n, candidate))
    return sent, selection.last(), selection


def look_of(candidate: Candidate) -> int:
    """Tell at which look a crop was taken."""
    return round((candidate.captured_at - 1000) * LOOKS_PER_S)


def test_the_first_crop_is_sent_as_soon_as_the_track_is_a_visitor() -> None:
    """The best so far, not the one at hand."""
    # looks      0    1    2 │confirmed
    sent, _, _ = passage([0.3, 0.9, 0.5, 0.4], SelectionConfig(), confirmed_from=2)
    assert [(n, look_of(candidate)) for n, candidate in sent] == [(2, 1)]


def test_of_each_slot_the_best_is_sent_and_of_the_rest_the_last() -> None:
    """Slots of 0.5 s, 0.5 s, 1 s, 2 s, 4 s ... from one sending to the next."""
    values = [0.5] * 100
    for best in (3, 8, 17, 22, 44, 90):
        values[best] = 0.8
    # sent at    0│       5│      10│          20│              40│                    80│          the end│
    # best of    0│    3   │  8     │     17     │   22           │     44               │     90         │
    sent, last, _ = passage(values, SelectionConfig(interval_s=0.5, max_crops=9, hold_s=100))
    assert [n for n, _ in sent] == [0, 5, 10, 20, 40, 80]
    assert [look_of(candidate) for _, candidate in sent] == [0, 3, 8, 17, 22, 44]
    assert last is not None
    assert look_of(last) == 90


def test_the_last_place_is_kept_for_the_end() -> None:
    """Of at most three, two are sent on the way and one as the track ends, however long it was."""
    sent, last, selection = passage([0.5] * 5000 + [0.7] + [0.5] * 10, SelectionConfig(max_crops=3, interval_s=0.1))
    assert len(sent) == 2
    assert last is not None
    assert look_of(last) == 5000
    assert selection.sent == 3


def test_of_at_most_one_the_best_of_all_is_sent_at_the_end() -> None:
    """There is nothing to spread."""
    sent, last, _ = passage([0.4, 0.6, 0.5], SelectionConfig(max_crops=1))
    assert not sent
    assert last is not None
    assert look_of(last) == 1


def test_who_stays_for_an_hour_costs_as_little_as_who_walks_by() -> None:
    """Slots double, so the crops are still spread over the hour, and there are no more of them."""
    hour = 3600 * LOOKS_PER_S
    sent, last, selection = passage([0.5] * hour, SelectionConfig(max_crops=14, interval_s=0.6))
    assert selection.sent <= 14
    assert len(sent) >= 12
    assert sent[-1][0] > hour // 4
    assert last is not None


def test_nothing_good_enough_is_nothing_sent() -> None:
    """The looks below the bar are counted."""
    sent, last, selection = passage([0.1, 0.14, 0.0], SelectionConfig(least_quality=0.15))
    assert (sent, last, selection.sent, selection.below_bar) == ([], None, 0, 3)


def test_an_early_crop_waits_for_one_above_the_bar() -> None:
    """A visitor is confirmed in the dark and steps into the light: the first crop is the first good one."""
    sent, _, _ = passage([0.05] * 10 + [0.6] + [0.5] * 3, SelectionConfig())
    assert [(n, look_of(candidate)) for n, candidate in sent] == [(10, 10)]


@given(qualities, configs, st.integers(0, 20))
def test_what_is_sent_is_little_good_and_in_order(
    values: list[float], config: SelectionConfig, confirmed_from: int
) -> None:
    """At most max_crops; none below the bar; each taken after the one before; sendings at least interval_s apart."""
    sent, last, selection = passage(values, config, confirmed_from=confirmed_from)
    crops = [candidate for _, candidate in sent] + ([last] if last else [])
    assert len(crops) == selection.sent <= config.max_crops
    assert all(candidate.quality >= config.least_quality for candidate in crops)
    assert all(a.captured_at < b.captured_at for a, b in pairwise(crops))
    assert all((b - a) / LOOKS_PER_S >= config.interval_s - 1e-6 for (a, _), (b, _) in pairwise(sent))
    assert selection.below_bar == sum(value < config.least_quality for value in values)


@given(qualities, configs, st.integers(0, 20))
def test_what_is_sent_is_the_best_since_the_sending_before(
    values: list[float], config: SelectionConfig, confirmed_from: int
) -> None:
    """Nothing better was passed over within its slot, but what had been held for too long when it came."""
    sent, last, _ = passage(values, config, confirmed_from=confirmed_from)
    begin = 0
    for end, candidate in [*((n + 1, candidate) for n, candidate in sent), *([(len(values), last)] if last else [])]:
        taken = look_of(candidate)
        assert candidate.quality == max(values[taken:end])
        for look in range(begin, taken):
            assert values[look] <= candidate.quality or (end - 1 - look) / LOOKS_PER_S > config.hold_s - 1e-6
        begin = end


def test_a_crop_is_sent_while_it_is_news() -> None:
    """Of a slot of many seconds the best of its last second, though there was a better one before."""
    values = [0.5] * 60
    values[25] = 0.9
    # sent at    0│   5│   10│    20│        40│ ...   hold_s = 10 looks
    sent, _, _ = passage(values, SelectionConfig(interval_s=0.5, max_crops=9))
    assert [n for n, _ in sent] == [0, 5, 10, 20, 40]
    assert all(n - look_of(candidate) <= 10 for n, candidate in sent)


def test_who_is_not_seen_any_more_has_what_is_held_sent() -> None:
    """Once, when it has been held for a second; the end then has nothing left to say."""
    selection = Selection(SelectionConfig(interval_s=0.6))
    selection.offer(Candidate(0.5, 1000.0, 80.0, CROP))
    assert selection.due(1000.0) is not None
    selection.offer(Candidate(0.6, 1000.2, 80.0, CROP))
    assert [selection.unseen(1000.0 + n / 5) is not None for n in range(2, 10)] == [n == 6 for n in range(2, 10)]
    assert selection.last() is None


@given(qualities, configs)
def test_whoever_had_one_good_look_is_sent_at_least_once(values: list[float], config: SelectionConfig) -> None:
    """A visitor without a crop is counted as unknown; that is for those without a good look."""
    sent, last, _ = passage(values, config)
    assert bool(sent or last) == any(value >= config.least_quality for value in values)


def test_the_end_says_its_crop_once() -> None:
    """Asked again, nothing is left."""
    selection = Selection(SelectionConfig())
    selection.offer(Candidate(0.5, 1000.0, 80.0, CROP))
    assert selection.last() is not None
    assert selection.last() is None
    assert selection.sent == pytest.approx(1)
