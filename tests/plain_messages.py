"""A second reader of the records in the topics, written from the specifications and from pipeline/messages.py's text alone.

It shares no code with the product: MessagePack by https://github.com/msgpack/msgpack/blob/master/spec.md, the fields by a table,
JPEG by Pillow. What both take is a message; what both refuse is a dead letter; where they differ, one of them is wrong.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from PIL import Image

from pipeline.bus import FACE_CROPS, Record

MOST_AHEAD_S: Final = 300.0
DEEPEST: Final = 1000


class Text(NamedTuple):
    """A text as it lies there; whether it is UTF-8 matters only where somebody reads it."""

    raw: bytes


class Map(NamedTuple):
    """A map with its repetitions."""

    items: tuple[tuple[Any, Any], ...]


class Extension(NamedTuple):
    """Something that is none of ours."""

    code: int


class UnreadableError(ValueError):
    """It is not MessagePack."""


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def all(self) -> Any:
        value = self.value(0)
        if self._at != len(self._data):
            raise UnreadableError("something follows")
        return value

    def take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise UnreadableError("it ends too early")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, form: str) -> Any:
        return struct.unpack(f">{form}", self.take(struct.calcsize(form)))[0]

    def value(self, depth: int) -> Any:  # noqa: PLR0912  as many branches as the format has forms
        if depth > DEEPEST:
            raise UnreadableError("nested too deeply")
        first = self.take(1)[0]
        if first < 0x80:
            return first
        if first < 0x90:
            return self.map(first & 0x0F, depth)
        if first < 0xA0:
            return self.array(first & 0x0F, depth)
        if first < 0xC0:
            return Text(self.take(first & 0x1F))
        if first >= 0xE0:
            return first - 256
        if first in _CONSTANTS:
            return _CONSTANTS[first]
        if first in _NUMBERS:
            return self.number(_NUMBERS[first])
        if 0xC4 <= first <= 0xC6:
            return self.take(self.number("BHI"[first - 0xC4]))
        if 0xC7 <= first <= 0xC9:
            size = self.number("BHI"[first - 0xC7])
            return self.extension(size)
        if 0xD4 <= first <= 0xD8:
            return self.extension(1 << first - 0xD4)
        if 0xD9 <= first <= 0xDB:
            return Text(self.take(self.number("BHI"[first - 0xD9])))
        if first in {0xDC, 0xDD}:
            return self.array(self.number("HI"[first - 0xDC]), depth)
        if first in {0xDE, 0xDF}:
            return self.map(self.number("HI"[first - 0xDE]), depth)
        raise UnreadableError("0xc1 is never used")

    def array(self, size: int, depth: int) -> tuple[Any, ...]:
        return tuple(self.value(depth + 1) for _ in range(size))

    def map(self, size: int, depth: int) -> Map:
        return Map(tuple((self.value(depth + 1), self.value(depth + 1)) for _ in range(size)))

    def extension(self, size: int) -> Extension:
        code = self.number("b")
        self.take(size)
        return Extension(code)


_CONSTANTS: Final = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS: Final = {
    0xCA: "f", 0xCB: "d", 0xCC: "B", 0xCD: "H", 0xCE: "I", 0xCF: "Q", 0xD0: "b", 0xD1: "h", 0xD2: "i", 0xD3: "q",
}  # fmt: skip

Check = Callable[[Any], bool]


def _text(value: Any) -> bool:
    try:
        return isinstance(value, Text) and value.raw.decode() is not None
    except UnicodeDecodeError:
        return False


def _name(value: Any) -> bool:
    return _text(value) and re.fullmatch(rb"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", value.raw) is not None


def _integer(below: float) -> Check:
    return lambda value: type(value) is int and 0 <= value < below


def _number(most: float, below: float = float("inf")) -> Check:
    return lambda value: type(value) in {int, float} and 0 <= value <= most and value < below


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


_COUNT: Final = _integer(float("inf"))
_RATIO: Final = _number(1)
_SECONDS: Final = _number(1e11, below=1e11)
_WHOSE: Final[dict[bytes, Check]] = {b"camera_id": _name, b"track_id": _COUNT}
_SITE: Final[dict[bytes, Check]] = {b"site": _name}

# By the tag: the fields that must be there, and those that may.
_FIELDS: Final[dict[bytes, tuple[dict[bytes, Check], dict[bytes, Check]]]] = {
    b"face_crop": (
        {
            **_WHOSE, b"sequence": _integer(1024), b"first_seen": _SECONDS, b"captured_at": _SECONDS, b"quality": _RATIO,
            b"jpeg": lambda value: type(value) is bytes,
        },
        {**_SITE, b"sealed_with": lambda value: _text(value) and re.fullmatch(rb"[A-Za-z0-9_.-]{1,32}", value.raw) is not None},
    ),
    b"track_ended": (
        {**_WHOSE, b"first_seen": _SECONDS, b"last_seen": _SECONDS, b"crops": _COUNT},
        {
            **_SITE, b"visitor": lambda value: type(value) is bool, b"entries": _COUNT, b"exits": _COUNT,
            b"dwell_s": _or_none(_number(1e7, below=1e7)),
        },
    ),
    b"prediction": (
        {**_WHOSE, b"sequence": _integer(1024), b"first_seen": _SECONDS, b"captured_at": _SECONDS, b"quality": _RATIO},
        {
            **_SITE, b"age": _or_none(_number(150)), b"age_spread": _or_none(_number(150)), b"p_female": _or_none(_RATIO),
            b"p_ethnicity": _or_none(
                lambda value: type(value) is tuple and len(value) == 5 and all(_RATIO(ratio) for ratio in value)
            ),
            b"model": _text,
        },
    ),
    b"camera_status": (
        {b"camera_id": _name, b"at": _SECONDS, b"state": _text},
        {
            **_SITE, b"reason": _text, b"address": _text, b"fps": _number(float("inf")), b"frames": _COUNT,
            b"reconnects": _COUNT, b"present": _COUNT, b"advice": _text,
        },
    ),
}  # fmt: skip
_OF_CROPS: Final = frozenset((b"face_crop", b"track_ended"))
_OF_PREDICTIONS: Final = frozenset((b"prediction", b"track_ended", b"camera_status"))


def reason_to_refuse(record: Record, side_px: int) -> str | None:
    """Say for which reason a record of face crops or predictions is a dead letter; None for a message like any other."""
    said = dict(record.headers)
    if said.get("schema") != b"1":
        return "schema"
    if "crc32" in said and said["crc32"] != struct.pack(">I", zlib.crc32(record.value)):
        return "checksum"
    try:
        body = _Reader(record.value).all()
    except (UnreadableError, RecursionError):
        return "malformed"
    if not isinstance(body, Map) or not all(isinstance(key, Text) for key, _ in body.items):
        return "malformed"
    tags = [value.raw if isinstance(value, Text) else b"" for key, value in body.items if key.raw == b"type"]
    wanted = _OF_CROPS if record.topic == FACE_CROPS else _OF_PREDICTIONS
    if not tags or set(tags) - wanted or len(set(tags)) > 1:
        return "malformed"
    needed, allowed = _FIELDS[tags[0]]
    there = {key.raw for key, _ in body.items}
    if needed.keys() - there or not all(_fits({**needed, **allowed}, key.raw, value) for key, value in body.items):
        return "malformed"
    fields = {key.raw: value for key, value in body.items}
    if b"sealed_with" in fields and tags[0] == b"face_crop":
        return "key"  # those who read here have none
    if tags[0] == b"face_crop" and not _is_crop(fields[b"jpeg"], side_px):
        return "image"
    if (
        record.topic != FACE_CROPS
        and tags[0] != b"camera_status"
        and max(_times(fields)) > record.timestamp + MOST_AHEAD_S
    ):
        return "future"
    return None


def _fits(checks: dict[bytes, Check], key: bytes, value: Any) -> bool:
    return key not in checks or checks[key](value)  # a field that a newer writer adds is passed over


def _times(fields: dict[bytes, Any]) -> Iterator[float]:
    yield fields[b"track_id"] >> 20  # the second in which its connection began
    yield from (fields[name] for name in (b"first_seen", b"captured_at", b"last_seen") if name in fields)


def _is_crop(jpeg: bytes, side_px: int) -> bool:
    if not (jpeg.startswith(b"\xff\xd8") and jpeg.endswith(b"\xff\xd9")):
        return False
    try:
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as picture:
            if picture.size != (side_px, side_px):
                return False
            picture.load()
            return True
    except (OSError, SyntaxError, ValueError, struct.error, IndexError, Image.DecompressionBombError):
        return False
