"""Labelled pictures to labelled face crops: the same detection, alignment and JPEG as the live system's (law 4).

A data set is UTKFace (a folder, or the tar as it is published; nothing is unpacked) or any pictures named alike:

    AGE_GENDER_ETHNICITY_STAMP.jpg          UTKFace: 0 male, 1 female; 0 white, 1 black, 2 asian, 3 indian, 4 other
    GENDER_ETHNICITY_AGEFROM_AGETO.jpg      in words; the age is the middle of the two

UTKFace's pictures are cut tight around the face, and a detector wants to see its surroundings: each picture is
continued from its edge before it is searched. The crops are kept as the JPEGs that ingest would send, in one file under
the user's cache folder, so that the second run starts at once.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from ingest.alignment import align, centre_crop, encode_jpeg, similarity
from ingest.detector import Detector, FaceBox, Image
from ingest.yunet_detector import YUNET_SHA256, YunetDetector
from pipeline.attributes import ETHNICITIES, GENDERS
from pipeline.errors import ConfigError
from pipeline.manifest import CropRecipe
from training.splits import HASH_WORDS, difference_hash

OLDEST: Final = 116  # years, in UTKFace
PADDING_RATIO: Final = 0.3  # 60 px at UTKFace's 200: the detector then finds every face
LEAST_SIDE_PX: Final = 16
_SUFFIXES: Final = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
_CACHE_VERSION: Final = 2  # raise it where the same picture would give another crop, or more is kept of it
_UTKFACE: Final = re.compile(r"(\d{1,3})_(\d)_(\d)_\d")
_WORDS: Final = re.compile(rf"({'|'.join(GENDERS)})_({'|'.join(ETHNICITIES)})_(\d{{1,3}})_(\d{{1,3}})\b")

Progress = Callable[[int, int], None]
"""Called with (done, of)."""


class Label(NamedTuple):
    """What a picture's name says of its face."""

    age: float  # years
    gender: int  # index in GENDERS
    ethnicity: int  # index in ETHNICITIES


@dataclass(frozen=True, slots=True)
class Rejected:
    """A picture that was left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Faces:
    """n labelled crops of one size, and what was left out."""

    names: tuple[str, ...]
    jpegs: tuple[bytes, ...]
    age: NDArray[np.float32]  # (n,) years
    gender: NDArray[np.int64]  # (n,)
    ethnicity: NDArray[np.int64]  # (n,)
    face_px: NDArray[np.float32]  # (n,) smaller side of the detection, in pixels of the picture; 0 where none was found
    landmarks: NDArray[np.float32]  # (n, 5, 2), in pixels of the picture, as FaceBox has them; NaN where none was found
    hashes: NDArray[np.uint64]  # (n, 2, HASH_WORDS): of the picture and of its mirror image
    crop: CropRecipe
    digest: str  # of names and pictures: which data this is
    rejected: tuple[Rejected, ...] = ()

    def __len__(self) -> int:
        """Count the faces."""
        return len(self.names)

    @property
    def not_found(self) -> int:
        """How many faces the detector did not find; they are centre crops."""
        return int((self.face_px == 0).sum())

    def crops(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Decode the crops of *rows*: (len(rows), size_px, size_px, 3), RGB."""
        side = self.crop.size_px
        out = np.empty((len(rows), side, side, 3), np.uint8)
        for place, row in enumerate(rows):
            out[place] = decode_jpeg(self.jpegs[row])
        return out

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Faces:
        """Give the faces of *rows* only, in that order."""
        rows = np.asarray(rows, np.int64)
        return replace(
            self,
            names=tuple(self.names[row] for row in rows),
            jpegs=tuple(self.jpegs[row] for row in rows),
            age=self.age[rows],
            gender=self.gender[rows],
            ethnicity=self.ethnicity[rows],
            face_px=self.face_px[rows],
            landmarks=self.landmarks[rows],
            hashes=self.hashes[rows],
        )


def decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    """Decompress one crop: (side, side, 3), RGB."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None, "we compressed it ourselves"
    return np.asarray(image[..., ::-1], np.uint8)


def label_of(name: str) -> Label:
    """Read a picture's labels from its name. Raises ValueError saying what is wrong with it."""
    stem = PurePosixPath(name).name
    if words := _WORDS.match(stem):
        gender, ethnicity, youngest, oldest = words.groups()
        label = Label((int(youngest) + int(oldest)) / 2, GENDERS.index(gender), ETHNICITIES.index(ethnicity))
    elif numbers := _UTKFACE.match(stem):
        label = Label(*(int(number) for number in numbers.groups()))
    else:
        raise ValueError("not named AGE_GENDER_ETHNICITY_STAMP")
    if label.age > OLDEST or label.gender >= len(GENDERS) or label.ethnicity >= len(ETHNICITIES):
        raise ValueError(f"age above {OLDEST}, gender or ethnicity out of range")
    return label


def read_pictures(data: Path) -> dict[str, bytes]:
    """Read every picture of a folder or tar, by its path inside, sorted. Raises ConfigError where there is none."""
    try:
        found = dict(_folder(data) if data.is_dir() else _tar(data))
    except FileNotFoundError:
        raise ConfigError(
            f"data {data}: no such folder or file; name a folder of UTKFace pictures, or its tar"
        ) from None
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ConfigError(
            f"data {data}: not readable as a folder or a whole tar ({error}); download it again"
        ) from error
    if not found:
        raise ConfigError(f"data {data}: no pictures there; it should hold files named AGE_GENDER_ETHNICITY_STAMP.jpg")
    return dict(sorted(found.items()))


def _is_picture(path: PurePosixPath) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")


def _folder(data: Path) -> Iterator[tuple[str, bytes]]:
    for path in data.rglob("*"):
        if _is_picture(PurePosixPath(path.name)) and path.is_file():
            yield path.relative_to(data).as_posix(), path.read_bytes()


def _tar(data: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(data) as archive:
        for member in archive:
            if member.isfile() and _is_picture(PurePosixPath(member.name)):
                content = archive.extractfile(member)
                assert content is not None, "a regular member has content"
                yield member.name, content.read()


def decode_picture(data: bytes) -> Image:
    """Decompress a picture of the data set: BGR. Raises ValueError where it is damaged, cut short or tiny."""
    if data[:2] == b"\xff\xd8" and data.rfind(b"\xff\xd9") < 0:
        raise ValueError("the JPEG is cut short")  # OpenCV would fill the rest with grey and say nothing
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    except cv2.error:
        image = None
    if image is None:
        raise ValueError("not a picture")
    if min(image.shape[:2]) < LEAST_SIDE_PX:
        raise ValueError(f"smaller than {LEAST_SIDE_PX} px")
    return np.asarray(image, np.uint8)


def find_face(image: Image, crop: CropRecipe, detector: Detector) -> FaceBox | None:
    """Find the face that a data-set picture is about, in the picture's pixels: the largest that lies near the middle.

    One that *crop* cannot cut, since its landmarks lie in one point, is none.
    """
    pad = _pad(image)
    middle = np.array(image.shape[1::-1]) / 2 + pad

    def meant(face: FaceBox) -> float:
        left, top, right, bottom = face.xyxy
        return face.side_px - float(np.hypot((left + right) / 2 - middle[0], (top + bottom) / 2 - middle[1]))

    for face in sorted(detector.detect(_padded(image)), key=meant, reverse=True):
        with suppress(ValueError):
            similarity(face.landmarks, np.asarray(crop.landmarks, np.float32))
            left, top, right, bottom = face.xyxy
            return FaceBox((left - pad, top - pad, right - pad, bottom - pad), face.landmarks - pad, face.score)
    return None


def cut_face(image: Image, landmarks: NDArray[np.float32], crop: CropRecipe) -> Image:
    """Cut the face with these *landmarks* (5, 2) out of a data-set picture: BGR; where they are NaN, the picture's middle."""
    if not np.isfinite(landmarks).all():
        return centre_crop(image, crop)
    return align(_padded(image), landmarks + _pad(image), crop)


def _pad(image: Image) -> int:
    pad: int = round(PADDING_RATIO * max(image.shape[:2]))
    return pad


def _padded(image: Image) -> Image:
    pad = _pad(image)
    return np.asarray(cv2.copyMakeBorder(image, pad, pad, pad, pad, cv2.BORDER_REPLICATE), np.uint8)


def cache_folder() -> Path:
    """Where crops are kept: DEMOGRAPHICS_CACHE, else the user's own cache folder."""
    if chosen := os.environ.get("DEMOGRAPHICS_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "demographics"


def load_faces(
    data: Path, crop: CropRecipe, *, limit: int | None = None, seed: int = 0, progress: Progress | None = None
) -> Faces:
    """Cut every labelled face of *data* as *crop* says, or take them from the cache.

    *limit* takes that many pictures, drawn by *seed*. Raises ConfigError where nothing usable is there.
    """
    pictures = read_pictures(data)
    labels: dict[str, Label] = {}
    rejected: list[Rejected] = []
    for name in pictures:
        try:
            labels[name] = label_of(name)
        except ValueError as error:
            rejected.append(Rejected(name, str(error)))
    chosen = sorted(labels)
    if limit is not None and limit < len(chosen):
        drawn = np.random.default_rng(seed).permutation(len(chosen))[:limit]
        chosen = [chosen[row] for row in sorted(drawn)]
    digest = _digest(pictures, chosen)
    path = cache_folder() / f"faces-{_key(digest, crop)}.npz"
    cut = kept_arrays(path)
    if cut is None:
        cut = _cut(pictures, chosen, crop, progress)
        keep_arrays(path, cut)
    rejected += [Rejected(name, str(reason)) for name, reason in zip(cut["bad"], cut["reasons"], strict=True)]
    names = tuple(str(name) for name in cut["names"])
    if not names:
        reasons = sorted({f"{each.name}: {each.reason}" for each in rejected})[:5]
        raise ConfigError(
            [f"data {data}: none of {len(pictures)} pictures is usable; UTKFace's names are expected", *reasons]
        )
    return Faces(
        names=names,
        jpegs=unpacked(cut["jpegs"], cut["lengths"]),
        age=np.array([labels[name].age for name in names], np.float32),
        gender=np.array([labels[name].gender for name in names], np.int64),
        ethnicity=np.array([labels[name].ethnicity for name in names], np.int64),
        face_px=cut["face_px"],
        landmarks=cut["landmarks"],
        hashes=cut["hashes"],
        crop=crop,
        digest=digest,
        rejected=tuple(sorted(rejected, key=lambda each: each.name)),
    )


def _digest(pictures: dict[str, bytes], chosen: Sequence[str]) -> str:
    total = hashlib.sha256()
    for name in chosen:
        total.update(name.encode() + b"\0" + hashlib.sha256(pictures[name]).digest())
    return total.hexdigest()


def _key(digest: str, crop: CropRecipe) -> str:
    parts = (digest, msgspec.json.encode(crop).decode(), YUNET_SHA256, str(PADDING_RATIO), str(_CACHE_VERSION))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def _cut(
    pictures: dict[str, bytes], chosen: Sequence[str], crop: CropRecipe, progress: Progress | None
) -> dict[str, Any]:
    detector = YunetDetector()
    names, jpegs, sides, places, hashes, bad, reasons = [], [], [], [], [], [], []
    for done, name in enumerate(chosen, start=1):
        try:
            image = decode_picture(pictures[name])
        except ValueError as error:
            bad.append(name)
            reasons.append(str(error))
        else:
            face = find_face(image, crop, detector)
            names.append(name)
            sides.append(face.side_px if face else 0.0)
            places.append(face.landmarks if face else np.full((5, 2), np.nan, np.float32))
            jpegs.append(encode_jpeg(cut_face(image, places[-1], crop), crop))
            hashes.append(difference_hash(image))
        if progress:
            progress(done, len(chosen))
    return {
        "names": np.array(names, np.str_),
        **dict(zip(("jpegs", "lengths"), packed(jpegs), strict=True)),
        "face_px": np.array(sides, np.float32),
        "landmarks": np.array(places, np.float32).reshape(-1, 5, 2),
        "hashes": np.array(hashes, np.uint64).reshape(-1, 2, HASH_WORDS),
        "bad": np.array(bad, np.str_),
        "reasons": np.array(reasons, np.str_),
    }


def packed(jpegs: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Lay compressed pictures one after another, as an array of the cache, and give their lengths."""
    return np.frombuffer(b"".join(jpegs), np.uint8), np.array([len(jpeg) for jpeg in jpegs], np.int64)


def unpacked(whole: NDArray[np.uint8], lengths: NDArray[np.int64]) -> tuple[bytes, ...]:
    """Give back what `packed` laid together."""
    content = whole.tobytes()
    return tuple(content[end - length : end] for end, length in zip(np.cumsum(lengths), lengths, strict=True))


def kept_arrays(path: Path) -> dict[str, Any] | None:
    """Read what `keep_arrays` wrote; nothing where there is none yet, or it is damaged: it is made anew then."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            return {key: kept[key] for key in kept.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def keep_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write a file of the cache whole or not at all. A folder that cannot be written only costs time at the next run."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(buffer.getbuffer())
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)
