"""The score of tracks against the truth: it finds what it is there to find."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo.scenes import SCENES, truth_of
from demo.truth import Person, Sighting, Truth, score
from pipeline.errors import ConfigError

# Two people for a second: one on the left, one on the right.
TWO = Truth(
    10.0,
    (200, 100),
    2.0,
    (
        Person(0, tuple((frame, 10.0, 10.0, 20.0, 20.0) for frame in range(10))),
        Person(1, tuple((frame, 110.0, 10.0, 20.0, 20.0) for frame in range(10))),
    ),
)


def at(track: int, frame: int, x: float, play: int = 0) -> Sighting:
    """See a track at a frame, with the middle of its face at (x, 20)."""
    return Sighting(track, frame / 10 + 2.0 * play, (x - 10, 10, x + 10, 30))


def test_one_track_a_person_is_perfect() -> None:
    """Every figure says so."""
    looks = [at(0, n, 20) for n in range(10)] + [at(1, n, 120) for n in range(10)]
    assert score(looks, {0, 1}, TWO) == (2, 2, 2, 1.0, 1.0, 0, 0)


def test_a_person_in_two_tracks_is_seen() -> None:
    """More tracks than people: the purity does not suffer."""
    looks = [at(n // 5, n, 20) for n in range(10)] + [at(2, n, 120) for n in range(10)]
    figures = score(looks, {0, 1, 2}, TWO)
    assert (figures.visitors, figures.purity, figures.tracks_per_person, figures.merged) == (3, 1.0, 1.5, 0)
    assert figures.count_error == 0.5


def test_two_people_in_one_track_are_seen() -> None:
    """One person's look in four is somebody else's."""
    figures = score([at(0, n, 20 if n < 6 else 120) for n in range(8)], {0}, TWO)
    assert (figures.visitors, figures.met, figures.merged) == (1, 1, 0)
    assert figures.purity == 0.75
    assert score([at(0, n, 20 if n < 6 else 120) for n in range(9)], {0}, TWO).merged == 1


def test_the_same_person_in_two_plays_is_two_passages() -> None:
    """A track that goes on from one play into the next has merged two."""
    looks = [at(0, n, 20, play) for play in (0, 1) for n in range(10)]
    figures = score(looks, {0}, TWO, plays=2)
    assert (figures.people, figures.visitors, figures.merged, figures.purity) == (4, 1, 1, 0.5)


def test_a_track_of_nobody_is_seen_and_one_that_was_not_counted_is_not() -> None:
    """A poster that was counted is worse than one that was followed."""
    looks = [at(0, n, 70) for n in range(10)]
    assert score(looks, {0}, TWO).nobody == 1
    assert score(looks, set(), TWO) == (2, 0, 0, 1.0, 0.0, 0, 0)


@pytest.mark.parametrize("name", SCENES)
def test_a_scene_shows_everybody_and_is_empty_at_both_ends(name: str) -> None:
    """So that it can be played again and again without a cut through somebody."""
    scene = SCENES[name]
    truth = truth_of(scene)
    assert len(truth.people) == (len(scene.routes) if scene.faces else 0)
    for person in truth.people:
        assert len(person.boxes) > 2 * truth.fps
        assert person.boxes[0][0] > 0.5 * truth.fps
        assert person.boxes[-1][0] < (truth.seconds - 0.5) * truth.fps


def test_twenty_are_there_at_once() -> None:
    """At some moment, every one of them."""
    truth = truth_of(SCENES["twenty"])
    at_frame = [{frame for frame, *_ in person.boxes} for person in truth.people]
    assert max(sum(n in frames for frames in at_frame) for n in range(int(truth.seconds * truth.fps))) >= 19


def test_a_film_without_truth_says_so(tmp_path: Path) -> None:
    """By name."""
    with pytest.raises(ConfigError, match=r"film\.json"):
        Truth.load(tmp_path / "film.mp4")
