"""Blends of two faces: pictures that nobody has labelled, so that teachers' word is all there is to learn of them.

A network that is taught by others, not by labels, learns what they do, and more faces than there are labels for show it more
of that: L. Beyer et al., "Knowledge Distillation: A Good Teacher Is Patient and Consistent", CVPR 2022. The two are of
one gender and about one age, and are morphed, so that a blend looks like somebody. It is a picture like the data set's own:
whoever is shown it sees it as he sees those.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from ingest.alignment import encode_jpeg
from training.dataset import (
    Faces,
    Progress,
    cache_folder,
    cut_face,
    decode_picture,
    keep_arrays,
    kept_arrays,
    packed,
    read_pictures,
    unpacked,
)
from training.morphing import morph
from training.targets import Floats

_AGE_SPREAD: Final = 5.0  # years, of the noise by which neighbours in age are shuffled
_FARTHEST: Final = 5  # neighbours in that order, at most
_SHARES: Final = (0.35, 1.0)  # of the first's skin: at 1 the first has other features alone
_SHAPES: Final = (0.2, 0.8)
_JPEG_QUALITY: Final = 95  # of a blend's picture, whose crop is compressed once more, as any
_CACHE_VERSION: Final = 1  # raise it where the same two would give another blend


@dataclass(frozen=True, slots=True)
class Pairs:
    """m blends to make: rows of the faces, and how much of the first there is to be."""

    one: NDArray[np.int64]  # (m,)
    two: NDArray[np.int64]  # (m,)
    shape: Floats  # (m,), how far features lie where *one* has them
    share: Floats  # (m,), of the skin, of *one*

    def __len__(self) -> int:
        """Count the blends."""
        return len(self.one)

    def take(self, rows: NDArray[np.int64]) -> Pairs:
        """Give those of *rows* only, in that order."""
        return Pairs(self.one[rows], self.two[rows], self.shape[rows], self.share[rows])


NO_PAIRS: Final = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.float32))


@dataclass(frozen=True, slots=True)
class Blends:
    """m blends as pictures."""

    pairs: Pairs
    pictures: tuple[bytes, ...]  # JPEG, of the size of the first's
    landmarks: NDArray[np.float32]  # (m, 5, 2), in pixels of the picture

    def __len__(self) -> int:
        """Count the blends."""
        return len(self.pictures)


NO_BLENDS: Final = Blends(NO_PAIRS, (), np.zeros((0, 5, 2), np.float32))


def pair_up(faces: Faces, learning: NDArray[np.int64], fold: NDArray[np.int64], *, each: float, seed: int) -> Pairs:
    """Draw *each* blends per face of the rows *learning*: of two different faces of one *fold* (len(learning),).

    A face that was not found goes without, and one with few others in its fold and of its gender may.
    """
    generator = np.random.default_rng(seed)
    there = faces.face_px[learning] > 0
    learning, fold = learning[there], fold[there]
    cells = np.unique(np.stack([fold, faces.gender[learning]], axis=1), axis=0)
    rounds: list[NDArray[np.int64]] = [np.zeros((0, 2), np.int64)]
    left = each
    while left > 0:
        drawn = []
        for cell in cells:
            rows = learning[(fold == cell[0]) & (faces.gender[learning] == cell[1])]
            order = rows[np.argsort(faces.age[rows] + generator.normal(0, _AGE_SPREAD, len(rows)))]
            place, far = np.arange(len(order)), generator.integers(1, _FARTHEST + 1)
            # The oldest are paired with those before them: after them come none, and the youngest are no match.
            other = np.where(place + far < len(order), place + far, np.maximum(place - far, 0))
            drawn.append(np.stack([order, order[other]], axis=1))
        pairs = np.concatenate(drawn)
        rounds.append(generator.permutation(pairs[pairs[:, 0] != pairs[:, 1]])[: round(left * len(learning))])
        left -= 1
    one, two = np.concatenate(rounds).T
    shape, share = (generator.uniform(*span, len(one)).astype(np.float32) for span in (_SHAPES, _SHARES))
    return Pairs(one, two, shape, share)


def make_blends(data: Path, faces: Faces, pairs: Pairs, progress: Progress | None = None) -> Blends:
    """Morph the pictures of *data*, or take the blends from the cache. Two faces that do not fit are left out."""
    if not len(pairs):
        return NO_BLENDS
    key = hashlib.sha256("\n".join((str(_CACHE_VERSION), faces.digest)).encode())
    for values in (pairs.one, pairs.two, pairs.shape, pairs.share, faces.landmarks):
        key.update(values.tobytes())
    file = cache_folder() / f"blends-{key.hexdigest()[:24]}.npz"
    if (made := kept_arrays(file)) is None:
        made = _made(data, faces, pairs, progress)
        keep_arrays(file, made)
    return Blends(pairs.take(made["rows"]), unpacked(made["pictures"], made["lengths"]), made["landmarks"])


def _made(data: Path, faces: Faces, pairs: Pairs, progress: Progress | None) -> dict[str, NDArray[Any]]:
    known = read_pictures(data)
    rows, pictures, landmarks = [], [], []
    for row, (one, two, shape, share) in enumerate(zip(pairs.one, pairs.two, pairs.shape, pairs.share, strict=True)):
        with suppress(ValueError):
            picture, places = morph(
                decode_picture(known[faces.names[one]]), decode_picture(known[faces.names[two]]),
                faces.landmarks[one], faces.landmarks[two], shape=float(shape), share=float(share),
            )  # fmt: skip
            done, jpeg = cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY))
            assert done, "OpenCV always encodes a BGR picture"
            rows.append(row)
            pictures.append(jpeg.tobytes())
            landmarks.append(places)
        if progress:
            progress(row + 1, len(pairs))
    return {
        "rows": np.array(rows, np.int64),
        **dict(zip(("pictures", "lengths"), packed(pictures), strict=True)),
        "landmarks": np.array(landmarks, np.float32).reshape(-1, 5, 2),
    }


def with_blends(faces: Faces, blends: Blends, rows: Sequence[int] | NDArray[np.int64]) -> Faces:
    """Give the faces *rows*, and after them all blends, each under the labels of the one that there is more of."""
    jpegs = tuple(
        encode_jpeg(cut_face(decode_picture(picture), places, faces.crop), faces.crop)
        for picture, places in zip(blends.pictures, blends.landmarks, strict=True)
    )
    pairs, count = blends.pairs, len(rows)
    own = faces.take(np.concatenate([np.asarray(rows, np.int64), np.where(pairs.share >= 0.5, pairs.one, pairs.two)]))
    names = tuple(f"blend {number} of {name}" for number, name in enumerate(own.names[count:]))
    return replace(
        own,
        names=own.names[:count] + names,
        jpegs=own.jpegs[:count] + jpegs,
        landmarks=np.concatenate([own.landmarks[:count], blends.landmarks]),
    )
