"""People before cameras who never were: who comes when, what is sent of them and when, and what the counts must then be.

Plain functions; simulate.py sends it.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from pipeline.attributes import AGE_BANDS, ETHNICITIES, GENDERS

SITE: Final = "simulated"
SHORTEST_S: Final = 2.0
LONGEST_S: Final = 6.0
YEARS: Final = (5, 14, 21, 30, 40, 50, 60, 72)  # one for each of AGE_BANDS
KINDS: Final = len(GENDERS) * len(AGE_BANDS)


class Kind(NamedTuple):
    """One of the sixteen kinds of people that there are here."""

    gender: str
    age_band: str
    ethnicity: str
    years: int


def kind_of(number: int) -> Kind:
    """Give kind *number*, 0 to 15."""
    gender, band = divmod(number, len(AGE_BANDS))
    return Kind(GENDERS[gender], AGE_BANDS[band], ETHNICITIES[number % len(ETHNICITIES)], YEARS[band])


@dataclass(frozen=True, slots=True)
class Crowd:
    """How many come where. Arrivals are independent of each other (Poisson), the same everywhere."""

    cameras: int
    people_per_minute: float  # before each camera
    seconds: float
    max_crops: int = 8
    crop_interval_s: float = 0.6
    seed: int = 1

    @property
    def people_per_s(self) -> float:
        """Arrivals before all cameras together."""
        return self.cameras * self.people_per_minute / 60

    @property
    def crops_of_a_person(self) -> float:
        """How many crops are sent of one person on average, of those who stay from SHORTEST_S to LONGEST_S."""
        steps = 1000
        stays = (SHORTEST_S + (LONGEST_S - SHORTEST_S) * (n + 0.5) / steps for n in range(steps))
        return sum(_crops(stay, self) for stay in stays) / steps


@dataclass(frozen=True, slots=True)
class Person:
    """One passage."""

    number: int
    camera: int
    kind: int
    arrives: float  # seconds since the beginning
    stays_s: float


class Due(NamedTuple):
    """What is to be sent at a time: a person's crop, or, with no sequence, that the person has left."""

    at: float  # seconds since the beginning
    number: int
    person: Person
    sequence: int | None


def _crops(stays_s: float, crowd: Crowd) -> int:
    return min(crowd.max_crops, int(stays_s / crowd.crop_interval_s) + 1)


def people(crowd: Crowd) -> Iterator[Person]:
    """Give who comes, in the order of arrival; the same for the same crowd."""
    draw = random.Random(crowd.seed)  # noqa: S311  a crowd, not a secret
    at, number = 0.0, 0
    while crowd.people_per_s > 0 and (at := at + draw.expovariate(crowd.people_per_s)) < crowd.seconds:
        yield Person(
            number, draw.randrange(crowd.cameras), draw.randrange(KINDS), at, draw.uniform(SHORTEST_S, LONGEST_S)
        )
        number += 1


def schedule(crowd: Crowd) -> Iterator[Due]:
    """Give what is due, in order. Who is there when the time is over leaves then."""
    waiting: list[Due] = []
    for person in people(crowd):
        while waiting and waiting[0].at <= person.arrives:
            yield heapq.heappop(waiting)
        for sequence in range(_crops(person.stays_s, crowd)):
            at = person.arrives + sequence * crowd.crop_interval_s
            if at < crowd.seconds:
                heapq.heappush(waiting, Due(at, person.number, person, sequence))
        leaves = min(person.arrives + person.stays_s, crowd.seconds)
        heapq.heappush(waiting, Due(leaves, person.number, person, None))
    while waiting:
        yield heapq.heappop(waiting)


Cells = Counter[tuple[str, str, str]]
"""Visitors by camera, gender and age band."""


def camera_name(number: int) -> str:
    """Name a camera."""
    return f"sim-{number:05d}"


def expected(came: Sequence[Person]) -> Cells:
    """Say what the totals must be once *came* have left."""
    cells: Cells = Counter()
    for person in came:
        kind = kind_of(person.kind)
        cells[camera_name(person.camera), kind.gender, kind.age_band] += 1
    return cells


def by_camera(cells: Cells) -> Counter[str]:
    """Add up the cells of each camera."""
    cameras: Counter[str] = Counter()
    for (camera, _, _), people_there in cells.items():
        cameras[camera] += people_there
    return cameras
