"""Messages on the wire: round trips, refusals, and the bytes that are already in somebody's topic."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InvalidMessage
from pipeline.messages import (
    READERS,
    SCHEMA_VERSION,
    CameraStatus,
    DeadLetter,
    FaceCrop,
    Message,
    Prediction,
    TrackEnded,
    decode,
    encode,
    headers,
)

GOLDEN = Path(__file__).parent.parent / "golden"

EXAMPLES: tuple[Message, ...] = (
    FaceCrop(
        camera_id="entrance", site="museum", track_id=(1_790_000_000 << 20) + 7, sequence=3, first_seen=1_790_000_000.25,
        captured_at=1_790_000_001.5, quality=0.75, jpeg=b"\xff\xd8 not a picture \xff\xd9",
    ),
    TrackEnded(
        camera_id="entrance", site="museum", track_id=(1_790_000_000 << 20) + 7, first_seen=1_790_000_000.25,
        last_seen=1_790_000_004.0, crops=4,
    ),
    Prediction(
        camera_id="entrance", site="museum", track_id=(1_790_000_000 << 20) + 7, sequence=3, first_seen=1_790_000_000.25,
        captured_at=1_790_000_001.5, quality=0.75, age=33.5, age_spread=6.25, p_female=0.875,
        p_ethnicity=(0.5, 0.125, 0.125, 0.125, 0.125), model="0123456789ab",
    ),
    CameraStatus(
        camera_id="entrance", site="museum", at=1_790_000_002.0, state="refused", reason="wrong password",
        address="rtsp://***@10.0.0.1/1", fps=24.5, frames=1000, reconnects=2,
    ),
    DeadLetter(
        reason="image", detail="truncated JPEG", topic="face-crops", partition=3, offset=99, schema="1", size_bytes=4000,
        failed_at=1_790_000_003.0, service="inference",
    ),
)  # fmt: skip

names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
ratios = st.floats(0, 1)
seconds = st.floats(0, 9e10)
predictions = st.builds(
    Prediction,
    camera_id=names,
    site=names,
    track_id=st.integers(0, 2**53),
    sequence=st.integers(0, 1023),
    first_seen=seconds,
    captured_at=seconds,
    quality=ratios,
    age=st.none() | st.floats(0, 150),
    age_spread=st.none() | st.floats(0, 150),
    p_female=st.none() | ratios,
    p_ethnicity=st.none() | st.tuples(ratios, ratios, ratios, ratios, ratios),
    model=st.text(max_size=12),
)


@given(predictions)
def test_what_is_encoded_decodes_to_the_same(message: Prediction) -> None:
    """Nothing is lost on the wire."""
    assert decode(encode(message), headers()) == message


def golden(version: bytes) -> list[bytes]:
    """Give the records of a version, as they lie in somebody's topic."""
    return msgspec.msgpack.decode((GOLDEN / f"messages-v{version.decode()}.bin").read_bytes(), type=list[bytes])


def test_every_version_has_its_golden_file() -> None:
    """One that was written once is read for ever; its file stays, and is never written again."""
    assert {path.name for path in GOLDEN.glob("messages-v*.bin")} == {f"messages-v{v.decode()}.bin" for v in READERS}
    assert SCHEMA_VERSION in READERS


@pytest.mark.parametrize("version", sorted(READERS))
def test_the_golden_bytes_decode_for_ever(version: bytes) -> None:
    """Records that are already in a topic keep their meaning."""
    assert [decode(value, (("schema", version),)) for value in golden(version)] == list(EXAMPLES)


def test_this_version_still_writes_the_golden_bytes() -> None:
    """A change of the wire format has to move the schema version."""
    assert [encode(message) for message in EXAMPLES] == golden(SCHEMA_VERSION)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_field_that_a_newer_writer_adds_is_passed_over(message: Message) -> None:
    """In a rolling upgrade, workers of both versions read what either writes."""
    body = msgspec.msgpack.decode(encode(message)) | {"added_later": [1, {"two": 3}]}
    assert decode(msgspec.msgpack.encode(body), headers()) == message


def test_an_older_version_is_read_by_its_own_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """The day the version moves, what was written before still becomes today's message; both are read side by side."""

    def from_version_0(value: bytes) -> Message:
        body = msgspec.msgpack.decode(value)
        message: Message = msgspec.convert(body | {"camera_id": body.pop("camera")}, Message)
        return message

    monkeypatch.setitem(READERS, b"0", from_version_0)
    body = msgspec.msgpack.decode(encode(EXAMPLES[2]))
    old = msgspec.msgpack.encode({**body, "camera": body.pop("camera_id")})
    assert decode(old, (("schema", b"0"),)) == decode(encode(EXAMPLES[2]), headers()) == EXAMPLES[2]
    with pytest.raises(InvalidMessage, match="malformed"):
        decode(msgspec.msgpack.encode({"camera": "../etc", "type": "prediction"}), (("schema", b"0"),))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_invalid(value: bytes) -> None:
    """Junk raises the one error that leads to the dead letters, never another."""
    reasons = []
    try:
        decode(value, headers())
    except InvalidMessage as error:
        reasons.append(error.reason)
    assert reasons in ([], ["malformed"])


@pytest.mark.parametrize(
    "value",
    [
        encode(EXAMPLES[1]).replace(b"entrance", b"entr\xff\xfece"),
        b"\x91" * 100_000,
        b"\x81\xa4type\xa4\xff\xff\xff\xff",
    ],
)
def test_what_the_codec_does_not_call_a_codec_error_is_invalid_too(value: bytes) -> None:
    """Text that is none, and nesting without end: each would have ended every worker that reads it, one after another."""
    with pytest.raises(InvalidMessage) as refused:
        decode(value, headers())
    assert refused.value.reason == "malformed"


@given(st.sampled_from(EXAMPLES), st.data())
def test_a_bit_that_was_turned_over_is_found(message: Message, data: st.DataObject) -> None:
    """Wherever it is, and also where what it makes would decode: another age, another time, another face."""
    value = encode(message)
    at = data.draw(st.integers(0, 8 * len(value) - 1))
    damaged = bytearray(value)
    damaged[at // 8] ^= 1 << at % 8
    assert decode(value, headers(value)) == message
    with pytest.raises(InvalidMessage) as refused:
        decode(bytes(damaged), headers(value))
    assert refused.value.reason == "checksum"


def test_a_record_without_a_checksum_is_taken_as_it_is() -> None:
    """Writers of the release before do not seal what they write; in a rolling upgrade both are read."""
    assert [name for name, _ in headers()] == ["schema"]
    assert decode(encode(EXAMPLES[0]), headers()) == EXAMPLES[0]


@pytest.mark.parametrize("version", [b"", b"0", b"2", b"\xff\xfe"])
def test_another_schema_version_is_refused_by_name(version: bytes) -> None:
    """An old or newer record is told apart from a broken one."""
    with pytest.raises(InvalidMessage) as refused:
        decode(encode(EXAMPLES[0]), (("schema", version),))
    assert refused.value.reason == "schema"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("camera_id", "../etc"), ("camera_id", "a|b"), ("sequence", -1), ("sequence", 5000), ("quality", 1.5),
        ("captured_at", 1_790_000_001_500.0), ("p_female", -0.1), ("p_ethnicity", [1.0]),
    ],
)  # fmt: skip
def test_a_value_out_of_its_range_is_invalid_and_not_quoted(field: str, value: object) -> None:
    """What cannot be counted is refused at the door: names that would break keys, milliseconds for seconds."""
    body = msgspec.to_builtins(EXAMPLES[2]) | {field: value}
    with pytest.raises(InvalidMessage) as refused:
        decode(msgspec.msgpack.encode(body), headers())
    assert field in refused.value.detail
    assert str(value) not in refused.value.detail
