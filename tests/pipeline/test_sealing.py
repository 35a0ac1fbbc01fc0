"""Face crops that are encrypted in the log: what comes out is what went in, and nothing else comes out."""

from __future__ import annotations

import base64
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pipeline.errors import ConfigError, InvalidMessage
from pipeline.messages import FaceCrop, decode, encode, headers
from pipeline.sealing import CropKeys, parse_keys
from pipeline.settings import load_settings

OLD, NEW = os.urandom(32), os.urandom(32)
JPEG = b"\xff\xd8\xff\xe0 a face \xff\xd9"


def crop(jpeg: bytes = JPEG, *, track: int = 7) -> FaceCrop:
    """Make a crop."""
    return FaceCrop(
        camera_id="door", track_id=track, sequence=1, first_seen=1e9, captured_at=1e9 + 1, quality=0.5, jpeg=jpeg
    )


@given(st.binary(max_size=4000))
def test_what_is_sealed_opens_to_the_same_and_shows_nothing(jpeg: bytes) -> None:
    """On the wire there is no piece of it; two seals of one picture differ."""
    keys = CropKeys({"a": OLD})
    sealed = keys.seal(crop(jpeg))
    travelled = decode(encode(sealed), headers())
    assert isinstance(travelled, FaceCrop)
    assert keys.open(travelled) == crop(jpeg)
    assert len(jpeg) < 8 or jpeg not in encode(sealed)
    assert keys.seal(crop(jpeg)).jpeg != sealed.jpeg


def test_a_key_is_changed_without_losing_a_crop() -> None:
    """First the readers learn the new key, then it seals, then the old one goes."""
    before, between, after = CropKeys({"a": OLD}), CropKeys({"b": NEW, "a": OLD}), CropKeys({"b": NEW})
    assert between.open(before.seal(crop())) == crop()
    assert between.seal(crop()).sealed_with == "b"
    assert after.open(between.seal(crop())) == crop()


def test_without_keys_nothing_is_sealed_and_what_is_not_sealed_opens() -> None:
    """Encryption is switched on at the readers first."""
    assert CropKeys({}).seal(crop()) == crop()
    assert CropKeys({"a": OLD}).open(crop()) == crop()


@pytest.mark.parametrize(
    ("keys", "said"),
    [({}, "'a', which is not here"), ({"b": NEW}, "'a', which is not here"), ({"a": NEW}, "does not open")],
)
def test_a_missing_or_wrong_key_is_a_reason_without_the_picture(keys: dict[str, bytes], said: str) -> None:
    """It names the key and the setting."""
    with pytest.raises(InvalidMessage, match=said) as raised:
        CropKeys(keys).open(CropKeys({"a": OLD}).seal(crop()))
    assert raised.value.reason == "key"
    assert "DEMOGRAPHICS_KAFKA__CROP_KEYS" in raised.value.detail


@given(st.integers(0, 60), st.integers(0, 255))
def test_a_changed_or_moved_picture_does_not_open(at: int, to: int) -> None:
    """Not one byte may differ, nor may it be another visitor's."""
    keys = CropKeys({"a": OLD})
    sealed = keys.seal(crop())
    at %= len(sealed.jpeg)
    changed = sealed.jpeg[:at] + bytes([to]) + sealed.jpeg[at + 1 :]
    if changed != sealed.jpeg:
        with pytest.raises(InvalidMessage):
            keys.open(replace(sealed, jpeg=changed))
    with pytest.raises(InvalidMessage):
        keys.open(replace(sealed, track_id=8))
    with pytest.raises(InvalidMessage, match="too short"):
        keys.open(replace(sealed, jpeg=sealed.jpeg[:20]))


GOOD = base64.b64encode(OLD).decode()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD, "no name"),
        (f":{GOOD}", "no name"),
        (f"a b:{GOOD}", "no name"),
        ("a:hunter2!", "not base64"),
        ("a:aHVudGVyMg==", "7 bytes and must have 32"),
        (f"a:{GOOD},a:{GOOD}", "used twice"),
        (f"a:{GOOD},", "no name"),
    ],
)
def test_a_malformed_key_keeps_the_service_from_starting(text: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The problem names the setting and how a key is made, and shows no key."""
    monkeypatch.setenv("DEMOGRAPHICS_KAFKA__CROP_KEYS", text)
    with pytest.raises(ConfigError, match=said) as raised:
        load_settings()
    assert str(raised.value).startswith("DEMOGRAPHICS_KAFKA__CROP_KEYS: ")
    assert not any(secret in str(raised.value) for secret in (GOOD, "hunter2", "aHVudGVyMg"))


def test_keys_are_read_in_order_and_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one seals."""
    text = f"2026b:{base64.b64encode(NEW).decode()}, 2026a:{GOOD}"
    assert list(parse_keys(text).items()) == [("2026b", NEW), ("2026a", OLD)]
    assert parse_keys("") == {}
    monkeypatch.setenv("DEMOGRAPHICS_KAFKA__CROP_KEYS", text)
    assert GOOD not in repr(load_settings())
