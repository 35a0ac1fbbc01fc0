"""The number that the demo holds the pipeline to."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from demo.clip import Clip, Passage
from demo.expectation import expected_visitors


def clip_of(*times: tuple[float, float], seconds: float = 30) -> Clip:
    """Make a clip in which somebody passes at each of the given times."""
    passages = tuple(Passage("nobody.jpg", "female", "other", 20, 30, enter, leave) for enter, leave in times)
    return Clip(Path("nowhere.mp4"), seconds, 25, (1280, 720), passages)


@st.composite
def clips(draw: st.DrawFn) -> Clip:
    """Clips whose passages all last at least a second and a half."""
    seconds = draw(st.floats(8, 120))
    starts = draw(st.lists(st.floats(0, 1), max_size=12))
    lasting = [draw(st.floats(1.5, 6)) for _ in starts]
    return clip_of(
        *((s * (seconds - span), s * (seconds - span) + span) for s, span in zip(starts, lasting, strict=True)),
        seconds=seconds,
    )


TIMES = st.floats(0, 500)


def test_only_passages_shown_for_long_enough_are_expected() -> None:
    """A glimpse of a face is no visitor, in any loop."""
    #     ├─A──┤     ├─B──┤          ├─A──┤
    #  0  2    6    10    14   |30  32    36
    clip = clip_of((2, 6), (10, 14))
    assert expected_visitors(clip, 0, 30) == 2
    assert expected_visitors(clip, 5.5, 30) == 1  # half a second of A is no passage
    assert expected_visitors(clip, 5, 11) == 2  # the last second of A, the first of B
    assert expected_visitors(clip, 5, 34) == 3  # A again, in the second loop
    assert expected_visitors(clip, 5, 34, least_s=2.5) == 1


@given(clips(), TIMES, TIMES)
def test_an_interval_that_is_empty_or_backwards_expects_nobody(clip: Clip, one: float, other: float) -> None:
    """Nothing shown, nobody expected."""
    assert expected_visitors(clip, max(one, other), min(one, other)) == 0


@given(clips(), st.integers(0, 20), st.integers(0, 20))
def test_whole_loops_expect_everybody_once_a_loop(clip: Clip, first: int, loops: int) -> None:
    """Loops add up."""
    expected = expected_visitors(clip, first * clip.seconds, (first + loops) * clip.seconds)
    assert expected == loops * len(clip.passages)


@given(clips(), TIMES, TIMES, st.floats(0, 20), st.floats(0, 20))
def test_a_longer_look_never_expects_fewer(clip: Clip, one: float, other: float, before: float, after: float) -> None:
    """The expectation is monotone in the interval."""
    start, stop = sorted((one, other))
    assert expected_visitors(clip, start, stop) <= expected_visitors(clip, max(0, start - before), stop + after)


@given(clips(), TIMES, TIMES, TIMES)
def test_a_look_cut_in_two_differs_by_at_most_those_who_were_passing(
    clip: Clip, one: float, two: float, three: float
) -> None:
    """The expectation is additive, but for those whom the cut goes through."""
    start, cut, stop = sorted((one, two, three))
    whole = expected_visitors(clip, start, stop)
    parts = expected_visitors(clip, start, cut) + expected_visitors(clip, cut, stop)
    passing = sum(passage.enter_s <= cut % clip.seconds <= passage.leave_s for passage in clip.passages)
    assert abs(whole - parts) <= passing
