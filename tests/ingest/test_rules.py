"""Who counts as a visitor: zones, lines with a direction, dwell, and places that are not looked at."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.rules import Progress, Rule, inside
from ingest.step import ViewConfig, close_view, look, open_view
from pipeline.cameras import Line
from pipeline.messages import TrackEnded
from tests.ingest.conftest import face_at, picture
from tests.ingest.test_step import EPOCH, IDENTITY, PERIOD_S, PlainCutter

SIZE = (640, 360)
LEFT_HALF = ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0))
MIDDLE = Line.model_validate({"from": (0.5, 0.0), "to": (0.5, 1.0), "inside": (0.9, 0.5)})


def counting(counts: str) -> Line:
    """Draw the line in the middle, its inner side on the right."""
    return MIDDLE.model_copy(update={"counts": counts})


def walk(rule: Rule, places: list[tuple[float, float]], *, side: float = 60.0) -> Progress:
    """Walk from place to place, in pixels, eight a second."""
    progress = Progress()
    for n, (x, y) in enumerate(places):
        progress.see(rule, face_at(x, y, side=side), EPOCH + n * PERIOD_S, SIZE)
    return progress


def straight(x1: float, x2: float, *, y: float = 180, looks: int = 17) -> list[tuple[float, float]]:
    """Walk level."""
    return [(x1 + (x2 - x1) * n / (looks - 1), y) for n in range(looks)]


# ── polygons and lines ────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_point_is_inside_a_triangle_as_geometry_says(x: float, y: float) -> None:
    """Below the diagonal."""
    if abs(x - y) > 1e-6 and 0 < x < 1 and 0 < y < 1:
        assert inside((x, y), ((0.0, 0.0), (1.0, 1.0), (0.0, 1.0))) == (y > x)


def test_a_zone_may_have_a_bay() -> None:
    """An L: the corner that is cut out is not in it."""
    shape = ((0.0, 0.0), (1.0, 0.0), (1.0, 0.5), (0.5, 0.5), (0.5, 1.0), (0.0, 1.0))
    assert inside((0.25, 0.75), shape)
    assert inside((0.75, 0.25), shape)
    assert not inside((0.75, 0.75), shape)


@pytest.mark.parametrize(("way", "entries", "exits"), [((100, 540), 1, 0), ((540, 100), 0, 1), ((100, 300), 0, 0)])
def test_a_line_is_crossed_in_and_out(way: tuple[float, float], entries: int, exits: int) -> None:
    """To its inner side, to its outer side, or not at all."""
    progress = walk(Rule(line=MIDDLE), straight(*way))
    assert (progress.entries, progress.exits) == (entries, exits)


def test_who_turns_round_has_come_in_and_gone_out() -> None:
    """Both are said."""
    progress = walk(Rule(line=MIDDLE), straight(100, 540) + straight(540, 100))
    assert (progress.entries, progress.exits) == (1, 1)


def test_who_stands_on_the_line_does_not_cross_it_again_and_again() -> None:
    """Boxes jitter by pixels; a face must be clearly on the other side."""
    jitter = [(320 + (-1) ** n * 8, 180.0) for n in range(60)]
    progress = walk(Rule(line=MIDDLE), straight(100, 316) + jitter + straight(324, 540))
    assert (progress.entries, progress.exits) == (1, 0)


def test_who_walks_round_the_end_of_a_line_has_not_crossed_it() -> None:
    """A short line: only who passes between its ends."""
    short = Line.model_validate({"from": (0.5, 0.0), "to": (0.5, 0.4), "inside": (0.9, 0.2)})
    assert walk(Rule(line=short), straight(100, 540, y=100)).entries == 1
    assert walk(Rule(line=short), straight(100, 540, y=300)).entries == 0


def test_a_side_does_not_depend_on_the_order_of_the_ends() -> None:
    """Inside is where the camera file says."""
    turned = MIDDLE.model_copy(update={"start": MIDDLE.end, "end": MIDDLE.start})
    assert walk(Rule(line=turned), straight(100, 540)).entries == 1


def test_dwell_is_the_time_in_the_zone() -> None:
    """Seventeen looks over 440 px: those in the left half, two seconds in all."""
    assert walk(Rule(), straight(100, 540)).dwell_s == pytest.approx(16 * PERIOD_S)
    assert walk(Rule(zone=LEFT_HALF), straight(100, 540)).dwell_s == pytest.approx(7 * PERIOD_S)


# ── who is a visitor ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("rule", "way", "counted"),
    [
        (Rule(), (100, 540), True),
        (Rule(zone=LEFT_HALF), (100, 540), True),
        (Rule(zone=LEFT_HALF), (400, 600), False),
        (Rule(min_dwell_s=1.5), (100, 540), True),
        (Rule(min_dwell_s=5), (100, 540), False),
        (Rule(zone=LEFT_HALF, min_dwell_s=1.5), (100, 540), False),
        (Rule(line=counting("in")), (100, 540), True),
        (Rule(line=counting("in")), (540, 100), False),
        (Rule(line=counting("out")), (540, 100), True),
        (Rule(line=counting("both")), (540, 100), True),
        (Rule(line=counting("both")), (100, 300), False),
        (Rule(exclude=(LEFT_HALF,)), (100, 300), False),
        (Rule(exclude=(LEFT_HALF,)), (400, 600), True),
    ],
)
def test_a_visitor_is_who_the_rule_counts(rule: Rule, way: tuple[float, float], counted: bool) -> None:
    """One passage by each rule: crops are sent of a visitor, and of nobody else."""
    view = open_view(IDENTITY, PlainCutter(), ViewConfig(rule=rule))
    said = []
    rejected = 0
    for n, (x, y) in enumerate(straight(*way)):
        result = look(view, picture(), [face_at(x, y, side=60)], EPOCH + n * PERIOD_S)
        said += result.messages
    last = close_view(view)
    said += last.messages
    rejected = last.rejects["not_counted"]
    ends = [message for message in said if isinstance(message, TrackEnded)]
    assert [end.visitor for end in ends if end.visitor] == [True] * counted
    assert bool(len(said) - len(ends)) == counted
    masked = bool(rule.exclude) and not counted
    assert rejected == (0 if counted or masked else 1)


def test_who_goes_out_is_told_of_though_only_who_comes_in_counts() -> None:
    """Without a crop: entries and exits are published, visitors are those who came in."""
    view = open_view(IDENTITY, PlainCutter(), ViewConfig(rule=Rule(line=MIDDLE)))
    for n, (x, y) in enumerate(straight(540, 100)):
        assert not look(view, picture(), [face_at(x, y, side=60)], EPOCH + n * PERIOD_S).messages
    (end,) = close_view(view).messages
    assert isinstance(end, TrackEnded)
    assert (end.visitor, end.entries, end.exits, end.crops) == (False, 0, 1, 0)


def test_who_is_present_is_who_is_in_the_zone() -> None:
    """Confirmed, and there at the last look."""
    view = open_view(IDENTITY, PlainCutter(), ViewConfig(rule=Rule(zone=LEFT_HALF)))
    present = []
    for n, (x, y) in enumerate(straight(100, 540)):
        look(view, picture(), [face_at(x, y, side=60)], EPOCH + n * PERIOD_S)
        present.append(view.present)
    assert present == [0, 0] + [1] * 6 + [0] * 9
