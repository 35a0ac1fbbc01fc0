"""Which faces are for training, which for choosing, which for the one final test.

About one UTKFace picture in twelve has a near-duplicate in the set (the same photograph, scaled or saved again, or in
mirror image), and such twins carry ages that differ by four years on average. A twin on each side of a split would be
rewarded for remembering, so twins stay together. Twins are told by a difference hash of 16 x 16 bits: among 19,929
pictures of UTKFace there is a clear gap between 28 differing bits (985 pairs, ages 4.0 years apart, groups of five at
most) and 36 (1,455 pairs, strangers among them, one chain of 158).
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.attributes import age_band
from pipeline.errors import ConfigError

HASH_WORDS: Final = 4  # of 64 bits
TWIN_BITS: Final = 26  # differing bits, at most, of near-duplicates
GROUPED: Final = (0.85, 0.06, 0.09)
VALIDATION_ONLY: Final = (0.92, 0.08, 0.0)
SEED: Final = (0.60, 0.24, 0.16)
_FOLD: Final = re.compile(r"(fold|teacher)(\d+)/(\d+)")
_GOLDEN: Final = (5**0.5 - 1) / 2

Rows = NDArray[np.int64]


class Split(NamedTuple):
    """Rows of a data set, each in one part only, ascending."""

    train: Rows
    validation: Rows
    test: Rows


def difference_hash(image: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Hash a BGR picture by which pixels are brighter than their left neighbours, in 16 rows of 17.

    Gives (2, HASH_WORDS): of the picture, and of its mirror image.
    """
    small = cv2.resize(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), (17, 16), interpolation=cv2.INTER_AREA).astype(np.int16)
    both = np.stack([small, small[:, ::-1]])
    return np.packbits((both[..., 1:] > both[..., :-1]).reshape(2, -1), axis=1).view(np.uint64)


def near_duplicates(hashes: NDArray[np.uint64], bits: int = TWIN_BITS) -> Rows:
    """Group the pictures that are alike by their (n, 2, words) hashes: a group's number for each, (n,)."""
    count, rows, columns = len(hashes), [], []
    upright, mirrored = hashes[:, 0], hashes[:, 1]
    for start in range(0, count, 256):  # all pairs: 7 s for 20,000 pictures
        some = upright[start : start + 256]
        for others in (upright, mirrored):
            apart = sum(
                np.bitwise_count(some[:, None, word] ^ others[None, :, word]).astype(np.uint16)
                for word in range(hashes.shape[2])
            )
            near, other = np.nonzero(apart <= bits)
            rows.append(near + start)
            columns.append(other)
    row, column = (np.concatenate(each) if each else np.zeros(0, np.int64) for each in (rows, columns))
    return np.asarray(
        connected_components(
            coo_array((np.ones(len(row), np.uint8), (row, column)), shape=(count, count)), directed=False
        )[1],
        np.int64,
    )


def strata(age: NDArray[np.float32], gender: NDArray[np.int64], ethnicity: NDArray[np.int64]) -> NDArray[np.str_]:
    """Name the cell of each face: age band, gender, ethnicity."""
    return np.array(
        [f"{age_band(years)}/{sex}/{group}" for years, sex, group in zip(age, gender, ethnicity, strict=True)]
    )


def spread_evenly(groups: Rows, cells: NDArray[np.str_], seed: int) -> NDArray[np.float64]:
    """Give each row a place in [0, 1): the same for a whole group, and evenly spaced within every cell.

    Groups are put in order of their cell, at random within it, and the k-th takes frac(k * golden ratio + a random
    start): a run of k's, and so a cell, covers [0, 1) more evenly than chance would (a Kronecker sequence).
    """
    generator = np.random.default_rng(seed)
    start = generator.random()
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    order = np.lexsort((generator.random(len(first)), cells[first]))
    place = np.empty(len(first))
    place[order] = (np.arange(len(first)) * _GOLDEN + start) % 1.0
    return place[inverse]


def _parts(place: NDArray[np.float64], shares: tuple[float, float, float]) -> Split:
    part = np.searchsorted(np.cumsum(shares)[:2], place, side="right")
    return Split(*(np.flatnonzero(part == number) for number in range(3)))


def check_split(name: str) -> str | None:
    """Say what is wrong with a split's name, or nothing."""
    if name in {"grouped", "validation", "seed"}:
        return None
    fold = _FOLD.fullmatch(name)
    if fold and 3 <= int(fold[3]) <= 20 and 1 <= int(fold[2]) <= int(fold[3]):
        return None
    return f"split {name!r}: not one of grouped, validation, seed, fold1/5, teacher1/5 (any K of 3 to 20 folds)"


def split_faces(
    name: str,
    *,
    hashes: NDArray[np.uint64],
    age: NDArray[np.float32],
    gender: NDArray[np.int64],
    ethnicity: NDArray[np.int64],
    seed: int,
) -> Split:
    """Split n faces; the same faces, name and seed always give the same parts. Raises ConfigError for an unknown name.

    grouped     85 / 6 / 9 %, stratified, near-duplicates together
    validation  92 / 8 / 0 %, likewise, where the test faces lie elsewhere
    foldK/N     the K-th of N parts is for the test, the next one for validation, likewise stratified and grouped
    teacherK/N  grouped's parts for validation and of its training part the K-th of N for the test, the rest to learn:
                N teachers that label, each the faces that it has not seen, for a student of the grouped split
    seed        60 / 24 / 16 % at random, as the original project did: twins fall on both sides
    """
    if problem := check_split(name):
        raise ConfigError(problem)
    if name == "seed":
        order = np.random.default_rng(seed).permutation(len(age))
        first, second = (round(len(age) * share) for share in np.cumsum(SEED)[:2])
        return Split(*(np.sort(part) for part in np.split(order, (first, second))))
    place = spread_evenly(near_duplicates(hashes), strata(age, gender, ethnicity), seed)
    if fold := _FOLD.fullmatch(name):
        number, of = int(fold[2]) - 1, int(fold[3])
        if fold[1] == "teacher":
            parts = _parts(place, GROUPED)
            left_out = np.floor(place[parts.train] / GROUPED[0] * of).astype(np.int64) == number
            return Split(parts.train[~left_out], parts.validation, parts.train[left_out])
        part = np.floor(place * of).astype(np.int64)
        test, validation = part == number, part == (number + 1) % of
        return Split(np.flatnonzero(~test & ~validation), np.flatnonzero(validation), np.flatnonzero(test))
    return _parts(place, GROUPED if name == "grouped" else VALIDATION_ONLY)
