"""Who is where in a film, and how well tracks agree with it: the truth's boxes, and a score made of them.

The truth lies beside a film as JSON: {"fps", "size", "seconds", "people": [{"id", "boxes": [[frame, x, y, w, h], ...]}, ...]}.
Other keys of it (age, gender ...) are passed over here.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from pipeline.errors import ConfigError


class Person(msgspec.Struct, frozen=True):
    """One passage through the view."""

    id: int
    boxes: tuple[tuple[int, float, float, float, float], ...]
    """(frame, left, top, width, height) of the face, in pixels, for every frame that shows it."""


class Truth(msgspec.Struct, frozen=True):
    """What a film shows."""

    fps: float
    size: tuple[int, int]
    seconds: float
    people: tuple[Person, ...]

    def save(self, film: Path) -> None:
        """Write it beside *film*."""
        film.with_suffix(".json").write_bytes(msgspec.json.encode(self))

    @classmethod
    def load(cls, film: Path) -> Truth:
        """Read what lies beside *film*. Raises ConfigError where there is none."""
        beside = film.with_suffix(".json")
        try:
            return msgspec.json.decode(beside.read_bytes(), type=cls)
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(f"{beside}: no truth of a film ({error})") from None


class Sighting(NamedTuple):
    """One look at one track."""

    track: int
    film_s: float  # on the film's timeline, which goes on when the film begins anew
    xyxy: tuple[float, float, float, float]


class Score(NamedTuple):
    """How well tracks and people agree."""

    people: int  # passages that the film showed
    visitors: int  # tracks that were counted
    met: int  # passages that some counted track followed
    purity: float  # share of all looks that show the person whom their track mostly shows
    tracks_per_person: float  # counted tracks that mostly show a passage, per passage that was met
    merged: int  # counted tracks with three looks or more at somebody else
    nobody: int  # counted tracks that mostly show no face of the truth

    @property
    def count_error(self) -> float:
        """Give how far the count is off, as a share of the truth."""
        return abs(self.visitors - self.people) / self.people if self.people else float(self.visitors)


_MERGED_LOOKS = 3


def score(sightings: Iterable[Sighting], counted: Collection[int], truth: Truth, *, plays: int = 1) -> Score:
    """Compare the *counted* tracks' *sightings* with the *truth* of a film that was played *plays* times."""
    places = {(person.id, int(frame)): (x, y, w, h) for person in truth.people for frame, x, y, w, h in person.boxes}
    there: defaultdict[int, list[int]] = defaultdict(list)
    for person, frame in places:
        there[frame].append(person)
    shown: dict[int, Counter[tuple[int, int] | None]] = {track: Counter() for track in counted}
    for track, film_s, xyxy in sightings:
        if track not in shown:
            continue
        play, within = divmod(film_s, truth.seconds)
        frame = round(within * truth.fps)
        middle = (xyxy[0] + xyxy[2]) / 2, (xyxy[1] + xyxy[3]) / 2
        best: tuple[float, tuple[int, int] | None] = (0.6, None)
        for person in there[frame]:
            x, y, w, h = places[person, frame]
            away = max(abs(middle[0] - x - w / 2) / w, abs(middle[1] - y - h / 2) / h)
            best = min(best, (away, (int(play), person)), key=lambda option: option[0])
        shown[track][best[1]] += 1
    looks = pure = merged = nobody = 0
    followed: Counter[tuple[int, int]] = Counter()
    for seen in shown.values():
        if not seen:
            continue
        whom, most = seen.most_common(1)[0]
        looks, pure = looks + seen.total(), pure + most
        merged += any(n >= _MERGED_LOOKS for other, n in seen.items() if other not in {whom, None})
        if whom is None:
            nobody += 1
        else:
            followed[whom] += 1
    return Score(
        people=plays * len(truth.people),
        visitors=len(shown),
        met=len(followed),
        purity=pure / looks if looks else 1.0,
        tracks_per_person=followed.total() / len(followed) if followed else 0.0,
        merged=merged,
        nobody=nobody,
    )
