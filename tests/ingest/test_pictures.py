"""Pictures of faces: nobody's in the end, however they flicker; people are people, however still they stand for a while."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random

import numpy as np
import pytest

from ingest.detector import FaceBox
from ingest.pictures import FORGOTTEN_S
from ingest.rules import Rule
from ingest.selection import SelectionConfig
from ingest.step import Look, View, ViewConfig, close_view, look, open_view
from pipeline.cameras import Camera
from pipeline.messages import TrackEnded
from tests.ingest.conftest import face_at, picture
from tests.ingest.test_step import EPOCH, IDENTITY, PlainCutter

PICTURE_S = 60.0
PERIOD_S = 0.25
Faces = Callable[[float], Sequence[FaceBox]]


def new_view(rule: Rule | None = None) -> View:
    """Open a view that takes a face for a picture after a minute."""
    config = ViewConfig(selection=SelectionConfig(), picture_s=PICTURE_S, rule=rule or Rule())
    return open_view(IDENTITY, PlainCutter(), config)


def watch(view: View, faces: Faces, seconds: float, since: float = 0.0) -> list[Look]:
    """Look four times a second at what *faces* says of the seconds since EPOCH."""
    image = picture()
    times = np.arange(since, since + seconds, PERIOD_S)
    return [look(view, image, faces(float(at)), EPOCH + float(at)) for at in times]


def ends(looks: Sequence[Look]) -> list[bool]:
    """List who has left: a visitor, or nobody."""
    return [m.visitor for result in looks for m in result.messages if isinstance(m, TrackEnded)]


def poster(at: float, *, jitter: float = 0.01, missed: float = 0.05, x: float = 300.0) -> list[FaceBox]:
    """Find a print as a detector does: a little off each time, now and then not at all."""
    random = Random(at)
    if random.random() < missed:
        return []
    dx, dy, growth = (random.gauss(0, jitter) for _ in range(3))
    return [face_at(x + 80 * dx, 120 + 80 * dy, side=80 * (1 + growth))]


def swaying(at: float, *, sway: float = 0.04) -> list[FaceBox]:
    """Stand as people do."""
    return [
        face_at(300 + 80 * sway * np.sin(1.7 * at) + 80 * sway * np.sin(0.31 * at), 120 + 80 * 0.01 * np.sin(3 * at))
    ]


def test_a_poster_is_taken_back_after_a_minute_and_not_counted_again() -> None:
    """Its end says that it was nobody; then its place is passed over, and the scene is as empty as it is."""
    view = new_view()
    before = watch(view, poster, PICTURE_S * 0.9)
    assert view.present == 1
    assert ends(before) == []
    after = watch(view, poster, 600, PICTURE_S * 0.9)
    assert ends(after) == [False]
    assert (view.present, view.tracker.tracks) == (0, [])
    assert sum(result.rejects["picture"] for result in after) > 2000
    assert ends([close_view(view)]) == []


@pytest.mark.parametrize("sway", [0.03, 0.05, 0.1])
def test_who_stands_for_ten_minutes_is_one_visitor(sway: float) -> None:
    """Whoever stands, sways."""
    view = new_view()
    looks = watch(view, lambda at: swaying(at, sway=sway), 600)
    assert ends([*looks, close_view(view)]) == [True]


def test_who_sits_like_a_statue_and_then_moves_is_one_visitor_in_the_end() -> None:
    """Taken for a picture, taken back; found to be somebody when it moves."""
    view = new_view()

    def statue(at: float) -> list[FaceBox]:
        return poster(at) if at < 200 else [face_at(min(300 + 30 * (at - 200), 639), 120)]

    looks = watch(view, statue, 215)
    assert ends([*looks, close_view(view)]) == [False, True]


def test_people_who_pass_by_a_poster_are_counted_and_bring_it_not_back() -> None:
    """Before it, one hides it for ten seconds; beside it, a face of its size comes close."""
    view = new_view()
    watch(view, poster, 90)

    def passing(at: float) -> list[FaceBox]:
        walker = [face_at(20 + 60 * (at - 100), 130, side=85)] if 100 <= at < 110 else []
        behind = [face_at(20 + 60 * (at - 130), 210, side=80)] if 130 <= at < 140 else []
        hidden = 103 <= at < 113
        return [*walker, *behind, *([] if hidden else poster(at))]

    looks = watch(view, passing, 200, 90)
    assert ends([*looks, close_view(view)]) == [True, True]


def test_a_picture_that_was_taken_down_is_forgotten() -> None:
    """Years later, somebody may stand there."""
    view = new_view()
    watch(view, poster, 90)
    assert len(view.gallery.advice()) == 1
    watch(view, lambda _: [], FORGOTTEN_S + 10, 90)
    assert view.gallery.advice() == []


def test_the_advice_is_the_line_that_keeps_it_out() -> None:
    """As the camera file has it; with it, there is nothing to take back."""
    view = new_view()
    watch(view, poster, 90)
    (advice,) = view.gallery.advice()
    assert "a face at 0.47, 0.33 does not move at all" in advice
    polygon = json.loads(advice.rpartition("exclude: ")[2])
    camera = Camera.model_validate({"id": "door", "url": "rtsp://h/1", "exclude": polygon})
    shut = new_view(Rule.of(camera))
    looks = watch(shut, poster, 90)
    assert ends([*looks, close_view(shut)]) == []
    assert all(not result.messages for result in looks)


def test_a_picture_stays_one_when_the_stream_changes_its_size() -> None:
    """It hangs at the same place of the picture."""
    view = new_view()
    watch(view, poster, 90)
    large = np.repeat(np.repeat(picture(), 2, 0), 2, 1)
    for at in np.arange(90, 120, PERIOD_S):
        faces = [
            face_at(left + right, top + bottom, side=2 * (right - left))
            for left, top, right, bottom in (face.xyxy for face in poster(float(at)))
        ]
        assert not look(view, large, faces, EPOCH + float(at)).messages
    assert not view.tracker.tracks


def test_without_a_time_nothing_is_ever_a_picture() -> None:
    """The setting 0: as before."""
    view = open_view(IDENTITY, PlainCutter(), ViewConfig())
    looks = watch(view, poster, 200)
    assert ends([*looks, close_view(view)]) == [True]
