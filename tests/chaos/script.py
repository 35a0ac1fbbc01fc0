"""The people that pass by in a chaos run, and what they must be counted as: functions of a seed, so that nobody has to remember.

Every face crop is three grey bands that say age, gender and ethnicity; `ScriptedEngine` reads them. A crop may say something
wrong with little weight, so that early counts are corrected. A fusion of its own, written from the documentation, says the cells.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from random import Random
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from inference.predictor import Crops, Logits
from ingest.alignment import encode_jpeg
from pipeline.attributes import AGE_BANDS, ETHNICITIES, GENDERS, UNKNOWN
from pipeline.manifest import CropRecipe, Manifest
from pipeline.messages import FaceCrop, TrackEnded

SIDE: Final = 32
YEARS: Final = (5, 14, 21, 30, 40, 50, 60, 75)
SURE_FEMALE: Final = (0.05, 0.2, 0.8, 0.95)
MANIFEST: Final = Manifest(
    name="scripted",
    weights="none",
    sha256="5c" * 32,
    crop=CropRecipe(SIDE, ((0.3, 0.28), (0.68, 0.28), (0.48, 0.51), (0.32, 0.67), (0.65, 0.67))),
    ages=(0, 100),
)
LEAST_EVIDENCE: Final = 0.15  # the setting's default

Cell = tuple[str, str, str, str]  # camera, gender, age band, ethnicity


class Look(NamedTuple):
    """What one crop says."""

    years: float
    p_female: float
    ethnicity: int
    quality: float


@lru_cache(maxsize=2048)
def picture(years: int, female: int, ethnicity: int) -> bytes:
    """Write a look down as a JPEG of three bands; *female* is an index into SURE_FEMALE."""
    crop = np.empty((SIDE, SIDE, 3), np.uint8)
    crop[:16], crop[16:24], crop[24:] = years * 2.5, female * 80, ethnicity * 60
    return encode_jpeg(crop, MANIFEST.crop)


class ScriptedEngine:
    """Reads the bands, after a fixed delay: what a network does with a batch, without its cost."""

    def __init__(self, delay_s: float, manifest: Manifest = MANIFEST) -> None:
        self._delay_s = delay_s
        self.manifest = manifest

    def predict(self, crops: Crops) -> Logits:
        """Be quite sure of everything that is written there."""
        time.sleep(self._delay_s)
        bands = crops.astype(np.float64).mean(axis=(2, 3))
        years = np.minimum(np.rint(bands[:, 2:14].mean(axis=1) / 2.5).astype(int), 100)  # damaged crops are any colour
        female = np.array(SURE_FEMALE)[np.rint(bands[:, 18:22].mean(axis=1) / 80).astype(int)]
        ethnicity = np.rint(bands[:, 26:30].mean(axis=1) / 60).astype(int)
        n = np.arange(len(crops))
        age, gender, origin = (np.zeros((len(crops), size), np.float32) for size in (101, 2, 5))
        age[n, years] = 60
        gender[n, 1] = np.log(female / (1 - female))
        origin[n, ethnicity] = 3
        return Logits(age, gender, origin)


def p_ethnicity(ethnicity: int) -> NDArray[np.float64]:
    """Give the probabilities that the engine's logits stand for."""
    raw = np.exp([3.0 if label == ethnicity else 0.0 for label in range(len(ETHNICITIES))])
    return np.asarray(raw / raw.sum())


class Person(NamedTuple):
    """One passage: when it begins and ends, in seconds since the run's start, and its crops with the time of each."""

    number: int
    begins: float
    ends: float
    looks: tuple[tuple[float, int, int, int, float], ...]  # at, years, female, ethnicity, quality

    def cell(self, camera: str) -> Cell:
        """Say what this person must be counted as."""
        return (
            camera,
            *label([Look(years, SURE_FEMALE[f], e, quality) for _, years, f, e, quality in self.looks]),
        )


def label(looks: Sequence[Look], ethnicity: Sequence[Sequence[float]] | None = None) -> tuple[str, str, str]:
    """Fuse looks as docs/architecture.md and the API's documentation say: gender, age band, ethnicity."""
    weight = sum(look.quality for look in looks)
    if not looks or weight < LEAST_EVIDENCE:
        return UNKNOWN, UNKNOWN, UNKNOWN
    age = sum(look.quality * look.years for look in looks) / weight
    odds = sum(look.quality * math.log(look.p_female / (1 - look.p_female)) for look in looks)
    said = ethnicity or [list(p_ethnicity(look.ethnicity)) for look in looks]
    pooled = [
        sum(look.quality * math.log(max(p[i], 0.005)) for look, p in zip(looks, said, strict=True))
        for i in range(len(ETHNICITIES))
    ]
    band = next(band for band, below in zip(AGE_BANDS, (10, 18, 25, 35, 45, 55, 65, 1000), strict=True) if age < below)
    return GENDERS[int(odds >= 0)], band, ETHNICITIES[pooled.index(max(pooled))]


def person(seed: int, camera: str, number: int, interval_s: float) -> Person:
    """Make the *number*th person of a camera."""
    random = Random(f"{seed}/{camera}/{number}")
    begins = (number + random.random() * 1.5) * interval_s
    years, female, ethnicity = random.choice(YEARS), random.choice((0, 1, 2, 3)), random.randrange(5)
    fate = random.random()
    looks: list[tuple[float, int, int, int, float]] = []
    if fate < 0.05:
        looks.append((begins, years, female, ethnicity, 0.1))  # too little to say anything
    elif fate > 0.1:
        at = begins
        for n in range(random.randint(2, 6)):
            quality = round(random.uniform(0.6, 0.95), 3)
            if n == 0 and random.random() < 0.4:  # a first impression that is wrong
                wrong = round(random.uniform(0.16, 0.3), 3)
                looks.append((at, random.choice(YEARS), 3 - female, random.randrange(5), wrong))
            else:
                looks.append((at, years, female, ethnicity, quality))
            at += random.uniform(0.2, 0.6)
    ends = (looks[-1][0] if looks else begins) + random.uniform(0.1, 1.0)
    return Person(number, begins, ends, tuple(looks))


def people(seed: int, camera: str, count: int, interval_s: float) -> list[Person]:
    """Make everybody who passes a camera."""
    return [person(seed, camera, number, interval_s) for number in range(count)]


def events(everybody: Iterable[Person], camera: str, started: float) -> list[tuple[float, FaceCrop | TrackEnded]]:
    """List what ingest says of everybody, in the order of time; times are seconds since the epoch."""
    said: list[tuple[float, FaceCrop | TrackEnded]] = []
    for one in everybody:
        track, first = (int(started) << 20) + one.number, started + one.begins
        for sequence, (at, years, female, ethnicity, quality) in enumerate(one.looks):
            crop = FaceCrop(
                camera_id=camera, site="chaos", track_id=track, sequence=sequence, first_seen=first, captured_at=started + at,
                quality=quality, jpeg=picture(years, female, ethnicity),
            )  # fmt: skip
            said.append((started + at, crop))
        end = TrackEnded(
            camera_id=camera, site="chaos", track_id=track, first_seen=first, last_seen=started + one.ends, crops=len(one.looks)
        )  # fmt: skip
        said.append((started + one.ends, end))
    return sorted(said, key=lambda item: item[0])


def cells(cameras: Iterable[str], seed: int, count: int, interval_s: float) -> Counter[Cell]:
    """Say what everybody must be counted as."""
    return Counter(one.cell(camera) for camera in cameras for one in people(seed, camera, count, interval_s))


def batches(items: Sequence[FaceCrop], size: int) -> Iterator[Sequence[FaceCrop]]:
    """Cut into pieces."""
    for first in range(0, len(items), size):
        yield items[first : first + size]
