"""Blends of two faces: pictures that nobody has labelled, so that teachers' word is all there is to learn of them.

A network that is taught by others, not by labels, learns what they do, and more faces than there are labels for show it more
of that: L. Beyer et al., "Knowledge Distillation: A Good Teacher Is Patient and Consistent", CVPR 2022. The two are of
one gender and about one age, so that a blend looks like somebody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ingest.alignment import encode_jpeg
from training.dataset import Faces
from training.targets import Floats

_AGE_SPREAD: Final = 5.0  # years, of the noise by which neighbours in age are shuffled
_FARTHEST: Final = 5  # neighbours in that order, at most
_LEAST_SHARE: Final = 0.35


class Pairs(NamedTuple):
    """m blends: rows of the faces, and how much of the first there is."""

    one: NDArray[np.int64]  # (m,)
    two: NDArray[np.int64]  # (m,)
    share: Floats  # (m,), of *one*

    def __len__(self) -> int:
        """Count the blends."""
        return len(self.one)


NO_PAIRS: Final = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))


def pair_up(faces: Faces, learning: NDArray[np.int64], fold: NDArray[np.int64], *, each: float, seed: int) -> Pairs:
    """Draw *each* blends per face of the rows *learning*: of two different faces of one *fold* (len(learning),).

    A face with few others in its fold and of its gender may go without.
    """
    generator = np.random.default_rng(seed)
    cells = np.unique(np.stack([fold, faces.gender[learning]], axis=1), axis=0)
    rounds: list[NDArray[np.int64]] = [np.zeros((0, 2), np.int64)]
    left = each
    while left > 0:
        drawn = []
        for cell in cells:
            rows = learning[(fold == cell[0]) & (faces.gender[learning] == cell[1])]
            order = rows[np.argsort(faces.age[rows] + generator.normal(0, _AGE_SPREAD, len(rows)))]
            drawn.append(np.stack([order, np.roll(order, generator.integers(1, _FARTHEST + 1))], axis=1))
        pairs = np.concatenate(drawn)
        rounds.append(generator.permutation(pairs[pairs[:, 0] != pairs[:, 1]])[: round(left * len(learning))])
        left -= 1
    one, two = np.concatenate(rounds).T
    return Pairs(one, two, generator.uniform(_LEAST_SHARE, 1 - _LEAST_SHARE, len(one)).astype(np.float32))


def blend(first: NDArray[Any], second: NDArray[Any], share: Floats) -> NDArray[np.float32]:
    """Mix m pictures (m, side, side, 3) with m others, by the *share* (m,) of the first."""
    of_first = share.reshape(-1, 1, 1, 1)
    return np.asarray(of_first * first + (1 - of_first) * second, np.float32)


def with_blends(faces: Faces, pairs: Pairs, rows: Sequence[int] | NDArray[np.int64]) -> Faces:
    """Give the faces *rows*, and after them all blends, each under the labels of the one that there is more of."""
    jpegs = []
    for one, two, share in zip(*pairs, strict=True):
        mixed = blend(faces.crops([one]), faces.crops([two]), np.array([share], np.float32))[0]
        jpegs.append(encode_jpeg(np.rint(mixed[:, :, ::-1]).astype(np.uint8), faces.crop))
    own = faces.take(np.concatenate([np.asarray(rows, np.int64), np.where(pairs.share >= 0.5, pairs.one, pairs.two)]))
    count = len(rows)
    names = tuple(f"blend {number} of {name}" for number, name in enumerate(own.names[count:]))
    return replace(own, names=own.names[:count] + names, jpegs=own.jpegs[:count] + tuple(jpegs))
