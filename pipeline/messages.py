"""What travels: face crops and track ends to inference, predictions to the aggregator, dead letters to whoever looks.

A message is a frozen struct, MessagePack on the wire, with its type in the body, and the schema version and a checksum of the
body in the record's headers. Fields may be added with a default without a new version; anything else moves SCHEMA_VERSION.
The golden files in tests/golden hold bytes that are already in somebody's topic: they must decode for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final
from zlib import crc32

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from pipeline.attributes import Attribute
from pipeline.errors import InvalidMessage

SCHEMA_VERSION: Final = b"1"
SCHEMA_HEADER: Final = "schema"
CHECKSUM_HEADER: Final = "crc32"

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Ratio = Annotated[float, Meta(ge=0, le=1)]
Seconds = Annotated[float, Meta(ge=0, lt=1e11)]  # since the epoch, UTC; rejects milliseconds
Count = Annotated[int, Meta(ge=0)]
Sequence = Annotated[
    int, Meta(ge=0, lt=1024)
]  # a track sends a few crops; this bounds what the aggregator holds for one


# gc=False: messages hold no cycles, and the garbage collector walking them took half of an aggregator's time.
class _Tracked(Struct, frozen=True, kw_only=True, gc=False):
    """Whose: the identity under which evidence is counted once."""

    camera_id: Name
    track_id: Count  # unique for camera and connection: (connection's start << 20) + n
    site: Name = "default"
    attributes: tuple[Attribute, ...] | UnsetType = UNSET  # what may be said of this visitor; unset: all of them


def connection_of(track_id: int) -> int:
    """Give the connection in which a camera's track was seen; a later connection has a larger one."""
    return track_id >> 20


class FaceCrop(_Tracked, frozen=True, kw_only=True, tag="face_crop"):
    """One face cut from one frame, aligned and JPEG-compressed."""

    sequence: Sequence  # 0, 1, 2 ... within the track
    first_seen: Seconds  # of the track
    captured_at: Seconds  # of this frame, anchored once per connection
    quality: Ratio
    jpeg: bytes  # sealed where the next field says so: nonce, ciphertext and tag of AES-GCM
    sealed_with: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,32}$")] | UnsetType = UNSET  # name of a key


class TrackEnded(_Tracked, frozen=True, kw_only=True, omit_defaults=True, tag="track_ended"):
    """A confirmed track has left the view; everything that will be said about it has been sent."""

    first_seen: Seconds
    last_seen: Seconds
    crops: Count  # how many were sent
    visitor: bool = (
        True  # False: not counted by the camera's rule, or a picture of a face; what was counted early is taken back
    )
    entries: Count = 0  # crossings of the camera's line, inwards
    exits: Count = 0  # and outwards
    dwell_s: Annotated[float, Meta(ge=0, lt=1e7)] | None = None  # in the camera's zone, or in view; None: not measured


class Prediction(_Tracked, frozen=True, kw_only=True, tag="prediction"):
    """What the model says of one face crop. A head that is switched off is None."""

    sequence: Sequence
    first_seen: Seconds
    captured_at: Seconds
    quality: Ratio
    age: Annotated[float, Meta(ge=0, le=150)] | None = None  # expectation, years
    age_spread: Annotated[float, Meta(ge=0, le=150)] | None = None  # standard deviation, years
    p_female: Ratio | None = None
    p_ethnicity: tuple[Ratio, Ratio, Ratio, Ratio, Ratio] | None = None  # in the order of ETHNICITIES
    model: str = ""  # digest of the weights, shortened


class CameraStatus(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="camera_status", gc=False):
    """How a camera does, every few seconds and on every change; replaces the one before."""

    camera_id: Name
    site: Name = "default"
    at: Seconds  # processing time
    state: str  # one of CAMERA_STATES
    reason: str = ""  # why it is not running, in words, without credentials
    address: str = ""  # redacted
    fps: Annotated[float, Meta(ge=0)] = 0.0
    frames: Count = 0
    reconnects: Count = 0
    present: Count = 0  # confirmed people in its zone, or in view, now
    advice: str = ""  # what to change, in words: faces that never move


CAMERA_STATES: Final = (
    "connecting", "running", "stalled", "lost", "refused", "not_found", "unreadable", "unreachable", "too_fast", "ended",
    "paused", "forbidden",
)  # fmt: skip


class DeadLetter(Struct, frozen=True, kw_only=True, tag="dead_letter", gc=False):
    """Where an undecodable record lies and why it is one; never its contents."""

    reason: str  # one of InvalidMessage.REASONS
    detail: str
    topic: str
    partition: Count
    offset: Count
    schema: str
    size_bytes: Count
    failed_at: Seconds
    service: str


Message = FaceCrop | TrackEnded | Prediction | CameraStatus | DeadLetter

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final[msgspec.msgpack.Decoder[Message]] = msgspec.msgpack.Decoder(Message)

# Every version that was ever written, and what makes today's message of it. None is ever removed: a topic holds records of the
# version before for as long as its retention, and a rolling upgrade has writers of both.
READERS: Final[dict[bytes, Callable[[bytes], Message]]] = {b"1": _decoder.decode}


def encode(message: Message) -> bytes:
    """Encode a message as the value of a record; pair it with its `headers`."""
    return _encoder.encode(message)


def headers(value: bytes | None = None) -> tuple[tuple[str, bytes], ...]:
    """Give the headers of a record: the schema version, and the checksum of its *value*, where it has one."""
    version = (SCHEMA_HEADER, SCHEMA_VERSION)
    return (version,) if value is None else (version, (CHECKSUM_HEADER, crc32(value).to_bytes(4, "big")))


def verify(value: bytes, said: bytes | None) -> None:
    """See that a record is as it was written. Raises InvalidMessage where its checksum *said* otherwise.

    What a version before this has written carries none, and is taken as it is.
    """
    if said is not None and said != crc32(value).to_bytes(4, "big"):
        raise InvalidMessage("checksum", "not what was written: its checksum is another")


def decode(value: bytes, record_headers: tuple[tuple[str, bytes], ...]) -> Message:
    """Decode a record's value. Raises InvalidMessage with what is wrong; the value itself is never quoted."""
    said = dict(record_headers)
    version = said.get(SCHEMA_HEADER, b"")
    read = READERS.get(version)
    if read is None:
        word, known = version.decode("ascii", "replace")[:16] or "none", b", ".join(READERS).decode()
        raise InvalidMessage("schema", f"schema version {word}; this service reads {known}")
    verify(value, said.get(CHECKSUM_HEADER))
    try:
        return read(value)
    except msgspec.MsgspecError as error:
        raise InvalidMessage("malformed", str(error)) from None
    except UnicodeDecodeError:
        raise InvalidMessage("malformed", "a text that is not UTF-8") from None
    except RecursionError:
        raise InvalidMessage("malformed", "nested too deeply") from None
