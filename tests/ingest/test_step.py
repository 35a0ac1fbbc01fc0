"""From faces in pictures to messages: what is said of a person, in which order, and that the end adds up."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ingest.camera import RecipeCutter
from ingest.detector import FaceBox, Image
from ingest.selection import SelectionConfig
from ingest.step import Identity, Look, View, ViewConfig, close_view, look, open_view
from pipeline.errors import InvalidMessage
from pipeline.manifest import CropRecipe
from pipeline.messages import FaceCrop, TrackEnded, decode, encode, headers
from tests.ingest.conftest import face_at, picture

EPOCH = 1_700_000_000.0
PERIOD_S = 0.125
IDENTITY = Identity("door", "museum", 1_700_000_123)


class PlainCutter:
    """Cuts the landmarks' surroundings, or says that these are none; its JPEG tells how often it was asked."""

    def __init__(self) -> None:
        self.encoded = 0

    def cut(self, image: Image, landmarks: NDArray[np.float32]) -> Image:
        """Cut a piece of fixed size."""
        if np.ptp(landmarks) < 1:
            raise ValueError("landmarks coincide")
        return image[:64, :64]

    def encode(self, crop: Image) -> bytes:
        """Compress nothing."""
        self.encoded += 1
        return b"jpeg %d" % self.encoded


def new_view(**selection: float) -> View:
    """Open a view whose selection differs from the default by *selection*."""
    config = SelectionConfig(**{"max_crops": 4, "interval_s": 0.3, **selection})  # type: ignore[arg-type]
    return open_view(IDENTITY, PlainCutter(), ViewConfig(selection=config))


def run(view: View, looks: Sequence[Sequence[FaceBox]]) -> list[Look]:
    """Look eight times a second, then close."""
    image = picture()
    results = [look(view, image, faces, EPOCH + n * PERIOD_S) for n, faces in enumerate(looks)]
    return [*results, close_view(view)]


def messages(results: Sequence[Look]) -> list[FaceCrop | TrackEnded]:
    """Say it all in one go."""
    return [message for result in results for message in result.messages]


def test_a_passage_is_told_from_the_first_crop_to_its_end() -> None:
    """Crops in sequence under one id, then the end that says how many there were and from when to when."""
    # looks  [0 ── 15] 16 ... 29
    said = messages(run(new_view(), [[face_at(100 + 20 * n)] if n < 16 else [] for n in range(30)]))
    *crops, end = said
    assert isinstance(end, TrackEnded)
    assert len(crops) == end.crops == 4
    assert [crop.sequence for crop in crops if isinstance(crop, FaceCrop)] == [0, 1, 2, 3]
    assert {(m.camera_id, m.site, m.track_id, m.first_seen) for m in said} == {
        ("door", "museum", 1_700_000_123 << 20, EPOCH)
    }
    assert (end.first_seen, end.last_seen) == (EPOCH, EPOCH + 15 * PERIOD_S)


def test_the_first_crop_goes_out_with_the_look_that_confirms() -> None:
    """Three looks make a visitor: early enough for a live page."""
    results = run(new_view(), [[face_at(100 + 20 * n)] for n in range(6)])
    assert [len(result.messages) for result in results[:3]] == [0, 0, 1]


def test_nobody_is_told_of_before_being_a_visitor() -> None:
    """A blip is counted as unconfirmed, and nothing of it leaves the camera."""
    view = new_view()
    results = run(view, [[face_at(300)], [face_at(302)], *[[]] * 15])
    assert messages(results) == []
    assert sum(result.rejects["unconfirmed"] for result in results) == 1
    assert sum(result.tracks_ended for result in results) == 0
    assert isinstance(view.cutter, PlainCutter)
    assert view.cutter.encoded == 0


def test_closing_the_view_ends_everybody() -> None:
    """Whoever is in view when the connection is lost has been there until then."""
    view = new_view()
    results = run(view, [[face_at(100 + 9 * n), face_at(500 - 9 * n, 80)] for n in range(10)])
    assert [result.tracks_ended for result in results] == [0] * 10 + [2]
    ends = [message for message in results[-1].messages if isinstance(message, TrackEnded)]
    assert [end.last_seen for end in ends] == [EPOCH + 9 * PERIOD_S] * 2
    assert close_view(view).messages == []
    assert not view.passages


def test_two_connections_never_share_an_id() -> None:
    """The connection is in the id: track 0 before a loss is not track 0 after it, and ids grow."""
    before, after = Identity("door", "museum", 7), Identity("door", "museum", 8)
    assert before.track_id(0) < before.track_id((1 << 20) - 1) < after.track_id(0)


def test_landmarks_that_are_none_are_passed_over() -> None:
    """A face that cannot be cut counts as below the bar; the track goes on."""
    broken = FaceBox(xyxy=(60, 140, 140, 220), landmarks=np.full((5, 2), 100, np.float32), score=0.95)
    results = run(new_view(), [[face_at(100)] if n != 4 else [broken] for n in range(10)])
    assert sum(result.rejects["landmarks"] for result in results) == 1
    assert sum(result.tracks_ended for result in results) == 1


def test_a_visitor_without_a_good_look_ends_without_a_crop() -> None:
    """It is counted, as unknown: the end says that there is no evidence."""
    results = run(new_view(least_quality=1.0), [[face_at(100 + 9 * n)] for n in range(10)])
    (end,) = messages(results)
    assert isinstance(end, TrackEnded)
    assert end.crops == 0
    assert sum(result.rejects["quality"] for result in results) == 10


def test_nothing_is_kept_of_who_has_gone() -> None:
    """A day of visitors and blips leaves no crop in memory."""
    view = new_view()
    for n in range(400):
        present = n % 40 < 12 or n % 40 == 30
        look(view, picture(), [face_at(100 + 20 * (n % 40))] if present else [], EPOCH + n * PERIOD_S)
        assert len(view.passages) == len(view.tracker.tracks) <= 2


def test_the_crop_sent_is_the_one_that_was_best(recipe: CropRecipe) -> None:
    """Its time and its quality are those of the picture it was cut from, and its size is the face's there."""
    view = open_view(IDENTITY, RecipeCutter(recipe), ViewConfig(selection=SelectionConfig(max_crops=1)))
    sides = [50, 60, 90, 70, 55]
    results = run(view, [[face_at(300, side=side)] for side in sides])
    crop, end = messages(results)
    assert isinstance(crop, FaceCrop)
    assert isinstance(end, TrackEnded)
    assert crop.captured_at == EPOCH + 2 * PERIOD_S
    assert results[-1].face_sizes_px == [pytest.approx(90)]
    assert crop.quality > 0.5


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40), st.floats(-200, 200)), max_size=5),
    st.integers(1, 8),
    st.floats(0.1, 2),
)
def test_what_is_said_adds_up(people: list[tuple[int, int, float]], max_crops: int, interval_s: float) -> None:
    """Whoever walks by: each visitor's crops count from 0, in order of time, before one end that says their number."""
    view = new_view(max_crops=max_crops, interval_s=interval_s)
    results = run(
        view,
        [
            [
                face_at(300 + speed * n * PERIOD_S, 150 * lane)
                for lane, (a, b, speed) in enumerate(people)
                if a <= n < a + b
            ]
            for n in range(90)
        ],
    )
    said = messages(results)
    tracks = {message.track_id for message in said}
    assert len(tracks) == sum(looks >= 3 for _, looks, _ in people) == sum(result.tracks_ended for result in results)
    assert sum(result.rejects["unconfirmed"] for result in results) == sum(looks < 3 for _, looks, _ in people)
    for track in tracks:
        *crops, end = (message for message in said if message.track_id == track)
        assert isinstance(end, TrackEnded)
        assert end.crops == len(crops) <= max_crops
        faces = [crop for crop in crops if isinstance(crop, FaceCrop)]
        assert [face.sequence for face in faces] == list(range(end.crops))
        assert all(a.captured_at < b.captured_at for a, b in pairwise(faces))
        assert all(end.first_seen <= face.captured_at <= end.last_seen for face in faces)
        assert {face.first_seen for face in faces} <= {end.first_seen}
    for message in said:  # a reader refuses what is out of bounds
        try:
            assert decode(encode(message), headers()) == message
        except (InvalidMessage, msgspec.MsgspecError) as error:
            pytest.fail(f"{message} does not travel: {error}")
