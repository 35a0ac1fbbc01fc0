"""One person, one track: through crossings, occlusions and doubtful looks; and what is nobody never becomes a visitor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.detector import FaceBox
from ingest.tracker import Track, Tracker, TrackerConfig
from tests.ingest.conftest import face_at

PERIOD_S = 0.125  # eight looks a second
EPOCH = 1_700_000_000.0

Look = Callable[[int], Sequence[FaceBox]]


def watch(looks: int, faces: Look, config: TrackerConfig | None = None) -> tuple[list[Track], int]:
    """Give what each of a number of looks shows to a tracker, and close it: the ended tracks and the unconfirmed."""
    tracker = Tracker(config or TrackerConfig())
    ended: list[Track] = []
    unconfirmed = 0
    for n in range(looks):
        update = tracker.update(faces(n), EPOCH + n * PERIOD_S)
        ended += update.ended
        unconfirmed += update.unconfirmed
    last = tracker.close()
    assert not tracker.tracks
    return ended + last.ended, unconfirmed + last.unconfirmed


def during(looks: Iterable[int], *, x: float = 300, speed: float = 0.0, score: float = 0.9, y: float = 180) -> Look:
    """Show one person at the given looks, at *x* and moving on by *speed* pixels a second."""
    shown = set(looks)
    return lambda n: [face_at(x + speed * n * PERIOD_S, y, score=score)] if n in shown else []


def together(*people: Look) -> Look:
    """Show all of them."""
    return lambda n: [face for person in people for face in person(n)]


# ── one person ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_passage_is_one_track_from_first_to_last_sight() -> None:
    """Its times are those of the first and the last look that showed it, its hits their number."""
    # looks  0 1 2 [3 ── 18] 19 ... 39
    (track,), unconfirmed = watch(40, during(range(3, 19), x=100, speed=150))
    assert (track.first_seen, track.last_seen) == (EPOCH + 3 * PERIOD_S, EPOCH + 18 * PERIOD_S)
    assert track.hits == 16
    assert unconfirmed == 0


@pytest.mark.parametrize("speed", [-500, -150, 0, 150, 500])
def test_a_short_occlusion_is_bridged(speed: float) -> None:
    """Hidden for a second, standing or walking by: the same person comes out where that person should."""
    # looks  [0 ── 7] 8 ... 14 [15 ── 24]
    (track,), _ = watch(25, during([*range(8), *range(15, 25)], x=800, speed=speed))
    assert track.hits == 18


def test_a_long_occlusion_gives_two_tracks() -> None:
    """Longer than max_gap_s: who comes then is somebody else, even at the same place."""
    # looks  [0 ── 7] 8 ... 27 [28 ── 35]   20 looks without anybody: 2.6 s from sight to sight
    first, second = watch(36, during([*range(8), *range(28, 36)]))[0]
    assert first.last_seen < second.first_seen
    assert first.number < second.number


def test_a_track_ends_once_its_gap_is_longer_than_allowed() -> None:
    """Not at the first look without it, and not only when the next one comes."""
    tracker = Tracker(TrackerConfig(max_gap_s=1.0))
    for n in range(4):
        tracker.update([face_at(300)], n * PERIOD_S)
    # last seen at 0.375; 1.375 is a gap of exactly a second
    assert not tracker.update([], 1.375).ended
    assert [track.last_seen for track in tracker.update([], 1.5).ended] == [0.375]


def test_who_walks_out_of_the_picture_has_left_and_who_comes_in_there_is_somebody_else() -> None:
    """Known where the picture ends, a track does not wait at its edge for the next one."""
    # looks  [0 ── 9] leaves to the right     [14 ── 24] another comes in there
    tracker, numbers = Tracker(), set()
    for n in range(25):
        faces = [face_at(450 + 20 * n)] if n < 10 else [face_at(620 - 20 * (n - 14))] if n >= 14 else []
        numbers |= {track.number for track in tracker.update(faces, n * PERIOD_S, (640, 360)).seen}
    assert numbers == {0, 1}


def test_time_in_which_the_camera_was_blind_is_no_gap() -> None:
    """Eight seconds of darkness, and a look that misses: who stands there before and after is one; with no word of it, two."""
    for blind_s, tracks in ((8.0, 1), (0.0, 2)):
        tracker, numbers = Tracker(), set()
        for n in (*range(8), *range(72, 80)):
            if n == 72:
                tracker.blind(blind_s)
            faces = [face_at(300)] if n != 72 else []
            numbers |= {track.number for track in tracker.update(faces, n * PERIOD_S, (640, 360)).seen}
        assert len(numbers) == tracks


def test_a_change_of_the_pictures_size_loses_nobody() -> None:
    """From 640 to 1280 pixels in the middle of a walk: the same person, at the same place of the picture."""
    tracker, numbers = Tracker(), set()
    for n in range(20):
        scale = 2 if n >= 10 else 1
        face = face_at((100 + 15 * n) * scale, 180.0 * scale, side=60.0 * scale)
        numbers |= {track.number for track in tracker.update([face], n * PERIOD_S, (640 * scale, 360 * scale)).seen}
    assert numbers == {0}


def test_looks_that_are_far_apart_are_no_gap() -> None:
    """Where only key frames are decoded, one every four seconds: somebody who stands is one track."""
    tracker, numbers = Tracker(), set()
    for n in range(10):
        numbers |= {track.number for track in tracker.update([face_at(300 + n % 2)], 4.0 * n, (640, 360)).seen}
    assert numbers == {0}


def test_faces_of_a_few_pixels_jitter_and_are_still_one_track() -> None:
    """Eleven pixels wide, two pixels of jitter."""
    rng = np.random.default_rng(5)
    tracks, _ = watch(40, lambda n: [face_at(100 + 3 * n + rng.uniform(-2, 2), 180 + rng.uniform(-2, 2), side=11)])
    assert len(tracks) == 1


def test_somebody_far_away_is_somebody_else() -> None:
    """A face cannot have come from the other side of the picture within one look."""
    tracks, _ = watch(20, together(during(range(10), x=100), during(range(10, 20), x=500)))
    assert len(tracks) == 2


def test_a_face_of_another_size_is_somebody_else() -> None:
    """Nobody comes so much nearer between two looks: a child before a grown-up is not the same person."""
    near, far = (lambda n: [face_at(300, side=150)] if n >= 8 else []), during(range(8))
    assert len(watch(16, together(near, far))[0]) == 2


def test_somebody_who_comes_nearer_stays_the_same() -> None:
    """Growing from 40 to 170 pixels over four seconds."""
    tracks, _ = watch(32, lambda n: [face_at(300 + 3 * n, side=40 * 1.048**n)])
    assert len(tracks) == 1


# ── two people ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("speed", [120, 240, 480])
@pytest.mark.parametrize("height_between", [8, 30])
def test_two_people_who_cross_keep_their_identity(speed: float, height_between: float) -> None:
    """One from the left, one from the right, one before the other: each track goes on in its direction."""
    looks = round(400 / speed / PERIOD_S)
    tracker = Tracker()
    went: dict[int, list[float]] = {}
    for n in range(looks):
        way = speed * n * PERIOD_S
        faces = [face_at(120 + way, 180), face_at(515 - way, 180 + height_between)]
        for track in tracker.update(faces, n * PERIOD_S).seen:
            went.setdefault(track.number, []).append(float(track.centre()[0]))
    rightwards, leftwards = went.values()
    assert len(rightwards) == len(leftwards) == looks
    assert (np.diff(rightwards) > 0).all()
    assert (np.diff(leftwards) < 0).all()


def test_somebody_hidden_behind_another_comes_out_as_before() -> None:
    """The one behind is not found for half a second while the two are at one place; both keep their tracks."""
    hidden = range(12, 16)
    in_front = during(range(30), x=100, speed=120)
    behind = during([n for n in range(30) if n not in hidden], x=500, speed=-120)
    tracks, _ = watch(30, together(in_front, behind))
    assert sorted(track.hits for track in tracks) == [26, 30]


# ── who is nobody ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_blip_is_never_a_visitor() -> None:
    """Two looks are one too few; they are counted as what was given up."""
    tracks, unconfirmed = watch(40, together(during((3, 4)), during((20,), x=500)))
    assert not tracks
    assert unconfirmed == 2


def test_a_doubtful_print_is_never_a_visitor() -> None:
    """It fires at 0.72, look after look, and is never sure on average."""
    tracks, unconfirmed = watch(60, during(range(60), score=0.72))
    assert not tracks
    assert unconfirmed == 1


def test_the_back_of_a_head_is_never_a_visitor() -> None:
    """It fires at 0.85, but its landmarks are no face's."""
    tracks, _ = watch(40, lambda n: [face_at(300 + 10 * n, score=0.85, plausible=False)])
    assert not tracks


def test_a_face_that_mostly_looks_like_one_is_a_visitor() -> None:
    """One look in four with mixed-up landmarks does not unmake it; three in four do."""
    assert watch(16, lambda n: [face_at(300, plausible=n % 4 != 3)])[0]
    assert not watch(16, lambda n: [face_at(300, plausible=n % 4 == 3)])[0]


def test_who_is_confirmed_stays_so() -> None:
    """A visitor who then turns away from the camera is still the visitor who came."""
    (track,), _ = watch(40, lambda n: [face_at(300 + 8 * n, plausible=n < 4)])
    assert track.hits == 40


# ── sure and doubtful detections ──────────────────────────────────────────────────────────────────────────────────────


def test_doubtful_detections_keep_a_visitors_track() -> None:
    """Two seconds at 0.55, in the shade, are no gap."""
    # looks  [0 ── 7 sure] [8 ── 23 doubtful] [24 ── 31 sure]
    (track,), _ = watch(32, lambda n: [face_at(100 + 12 * n, score=0.55 if 8 <= n < 24 else 0.9)])
    assert track.hits == 32


def test_doubtful_detections_alone_are_nothing() -> None:
    """They start no track, and keep none that is not confirmed."""
    assert watch(40, during(range(40), score=0.55)) == ([], 0)
    # seen surely twice, then doubtfully for long: two hits are all it has
    assert watch(40, lambda n: [face_at(300, score=0.9 if n < 2 else 0.55)]) == ([], 1)


def test_a_sure_detection_comes_before_a_doubtful_one_that_is_nearer() -> None:
    """The doubtful one beside may be the same face's echo."""
    tracker = Tracker()
    for n in range(4):
        tracker.update([face_at(300)], n * PERIOD_S)
    sure, echo = face_at(330), face_at(302, score=0.6)
    (track,) = tracker.update([echo, sure], 4 * PERIOD_S).seen
    assert track.face is sure


# ── laws ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@st.composite
def straight_walkers(draw: st.DrawFn) -> list[tuple[range, float]]:
    """Draw up to eight people, each in a lane of their own: at which looks they are there, and how fast they walk."""
    people = draw(st.integers(0, 8))
    return [
        (range(start := draw(st.integers(0, 60)), start + draw(st.integers(3, 40))), draw(st.floats(-500, 500)))
        for _ in range(people)
    ]


@given(straight_walkers(), st.integers(0, 2**32))
def test_as_many_tracks_end_as_people_walked_by(walkers: list[tuple[range, float]], seed: int) -> None:
    """Far enough apart, each is one track with the right times, in whatever order the detector names them."""
    rng = np.random.default_rng(seed)
    lanes = [during(looks, x=1000, speed=speed, y=200.0 * lane) for lane, (looks, speed) in enumerate(walkers, start=1)]

    def shuffled(n: int) -> Sequence[FaceBox]:
        faces = list(together(*lanes)(n))
        return [faces[place] for place in rng.permutation(len(faces))]

    tracks, unconfirmed = watch(110, shuffled)
    assert unconfirmed == 0
    expected = sorted((EPOCH + looks[0] * PERIOD_S, EPOCH + looks[-1] * PERIOD_S) for looks, _ in walkers)
    assert sorted((track.first_seen, track.last_seen) for track in tracks) == expected
    assert len({track.number for track in tracks}) == len(walkers)


@given(st.integers(0, 2**32), st.integers(1, 7))
def test_the_order_of_the_faces_within_a_look_does_not_matter(seed: int, crowd: int) -> None:
    """In any chaos of faces, sure and doubtful, the same tracks come out with the same faces."""
    rng = np.random.default_rng(seed)
    looks = [
        [
            face_at(*rng.uniform(0, 500, 2), side=rng.uniform(50, 110), score=rng.uniform(0.5, 1.0))
            for _ in range(rng.integers(0, crowd + 1))
        ]
        for _ in range(25)
    ]

    def run(order: Callable[[list[FaceBox]], list[FaceBox]]) -> set[tuple[object, ...]]:
        tracker = Tracker()
        seen: dict[int, list[tuple[int, int, bool]]] = {}
        for n, faces in enumerate(looks):
            for track in tracker.update(order(faces), n * PERIOD_S).seen:
                seen.setdefault(track.number, []).append((n, id(track.face), track.confirmed))
        return {tuple(history) for history in seen.values()}

    assert run(lambda faces: faces) == run(lambda faces: faces[::-1]) == run(lambda faces: sorted(faces, key=id))


@given(st.integers(0, 2**32), st.integers(1, 7))
def test_numbers_are_never_given_twice_and_a_face_is_never_two_peoples(seed: int, crowd: int) -> None:
    """New tracks count on; each look matches a face to one track and a track to one face; ended ones stay ended."""
    rng = np.random.default_rng(seed)
    tracker, known, over = Tracker(), -1, set[int]()
    for n in range(40):
        faces = [
            face_at(*rng.uniform(0, 400, 2), score=rng.uniform(0.5, 1.0)) for _ in range(rng.integers(0, crowd + 1))
        ]
        update = tracker.update(faces, n * 0.4)
        numbers = [track.number for track in update.seen]
        assert len(set(numbers)) == len(numbers)
        assert len({id(track.face) for track in update.seen}) == len(update.seen)
        new = sorted(number for number in numbers if number > known)
        assert new == list(range(known + 1, known + 1 + len(new)))
        known += len(new)
        assert not over & set(numbers)
        over |= {track.number for track in update.ended}
        assert all(track.confirmed for track in update.ended)
        assert {track.number for track in tracker.tracks}.isdisjoint(over)
