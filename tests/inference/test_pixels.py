"""JPEG to pixels: a crop, or InvalidMessage; nothing else, whatever is in the record, and no memory for what it claims."""

from __future__ import annotations

import tracemalloc

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inference.pixels import decode_crop, jpeg_size
from pipeline.errors import InvalidMessage

SIDE = 96


def encoded(width: int = SIDE, height: int = SIDE, *options: int, suffix: str = ".jpg", grey: bool = False) -> bytes:
    """Encode a picture whose left half is red."""
    image = np.zeros((height, width) if grey else (height, width, 3), np.uint8)
    image[:, : width // 2] = 200 if grey else (0, 0, 255)
    done, data = cv2.imencode(suffix, image, options)
    assert done
    return data.tobytes()


GOOD = encoded()
FRAME_AT = GOOD.index(b"\xff\xc0")


def claiming(width: int, height: int, jpeg: bytes = GOOD) -> bytes:
    """Change the size that a JPEG's header claims."""
    size = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return jpeg[: FRAME_AT + 5] + size + jpeg[FRAME_AT + 9 :]


def refused(jpeg: bytes) -> InvalidMessage:
    """Say why a crop is refused."""
    with pytest.raises(InvalidMessage) as caught:
        decode_crop(jpeg, SIDE)
    assert caught.value.reason == "image"
    return caught.value


def test_a_crop_is_decoded_to_red_green_blue() -> None:
    """The left half is red, in the first channel."""
    pixels = decode_crop(GOOD, SIDE)
    assert pixels.shape == (SIDE, SIDE, 3)
    assert pixels.dtype == np.uint8
    assert pixels[48, 16].tolist() == pytest.approx([255, 0, 0], abs=6)
    assert pixels[48, 80].tolist() == pytest.approx([0, 0, 0], abs=6)


@pytest.mark.parametrize(
    "jpeg",
    [
        encoded(SIDE, SIDE, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        encoded(SIDE, SIDE, cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
        encoded(SIDE, SIDE, cv2.IMWRITE_JPEG_OPTIMIZE, 1, cv2.IMWRITE_JPEG_QUALITY, 60),
        encoded(grey=True),
    ],
    ids=["progressive", "restart markers", "optimised", "grey"],
)
def test_any_kind_of_jpeg_is_taken(jpeg: bytes) -> None:
    """Whoever else writes crops may write them so."""
    assert decode_crop(jpeg, SIDE).shape == (SIDE, SIDE, 3)


@given(st.integers(0, len(GOOD) - 1))
def test_a_truncated_crop_is_refused_wherever_it_was_cut(length: int) -> None:
    """A decoder may fill it up with grey and call it a face: it is not asked."""
    assert ("truncated" if length >= 2 else "not a JPEG") in refused(GOOD[:length]).detail


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".tiff"])
def test_another_format_is_refused(suffix: str) -> None:
    """Even where the decoder would read it: only JPEG's header has been looked at."""
    assert "not a JPEG" in refused(encoded(suffix=suffix)).detail


@pytest.mark.parametrize(("width", "height"), [(95, 96), (96, 95), (192, 192), (1, 1), (32, 288)])
def test_a_crop_of_another_size_is_refused_with_both_sizes(width: int, height: int) -> None:
    """Ingest cuts for another model: the message says which sizes."""
    detail = refused(encoded(width, height)).detail
    assert f"{width}x{height}" in detail
    assert f"{SIDE}x{SIDE}" in detail


def test_a_claim_of_a_huge_picture_costs_no_memory() -> None:
    """A few bytes that claim four gigapixels are refused before anything is allocated."""
    liar = claiming(65535, 65535)
    assert jpeg_size(liar) == (65535, 65535)
    tracemalloc.start()
    refused(liar)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_picture_of_very_many_scans_is_refused() -> None:
    """Each costs a decoding of the whole picture: a small record would keep a worker busy for long."""
    start = GOOD.index(b"\xff\xda")
    assert decode_crop(GOOD[:start] + GOOD[start:-2] * 16 + GOOD[-2:], SIDE).shape == (SIDE, SIDE, 3)
    assert "scans" in refused(GOOD[:start] + GOOD[start:-2] * 17 + GOOD[-2:]).detail


@pytest.mark.parametrize("before", [b"\xff", b"\xff\x01", b"\xff\xd0"], ids=["fill byte", "TEM", "RST"])
def test_a_claim_hidden_from_a_walk_by_lengths_is_refused(before: bytes) -> None:
    """A decoder steps over what has no length; a walk that takes the next bytes for one finds a decoy instead."""
    #  ... before │ header: 65535x65535 ... │ zeros ... │ header: 96x96 │ end
    #             └── "length" ─────────────────────────▲
    jpeg = GOOD[:FRAME_AT] + before + claiming(65535, 65535)[FRAME_AT:]
    decoy_at = FRAME_AT + 2 + int.from_bytes(jpeg[FRAME_AT + 2 : FRAME_AT + 4], "big")
    assert decoy_at > len(jpeg)
    error = refused(jpeg.ljust(decoy_at, b"\0") + GOOD[FRAME_AT : FRAME_AT + 19] + b"\xff\xd9")
    assert "frame header" in error.detail  # it did not get as far as a decoder


def test_a_picture_without_data_is_refused() -> None:
    """Header and end are there, and nothing between that could be decoded."""
    refused(GOOD[: FRAME_AT + 19] + b"\xff\xd9")
    refused(b"\xff\xd8\xff\xd9")


@given(st.binary(max_size=400))
@example(b"")
@example(b"\xff\xd8")
@example(b"\xff\xd8\xff\xc0\xff\xd9")
def test_random_bytes_are_refused_and_never_more(junk: bytes) -> None:
    """Bare, and dressed as a JPEG from its first marker to its last."""
    refused(junk)
    refused(b"\xff\xd8\xff" + junk + b"\xff\xd9")


@given(st.lists(st.tuples(st.integers(2, len(GOOD) - 3), st.integers(0, 255)), min_size=1, max_size=12))
def test_a_damaged_crop_is_refused_or_still_of_the_right_size(damage: list[tuple[int, int]]) -> None:
    """Some damage is only seen as a blemish; what is given out has the model's size all the same."""
    broken = bytearray(GOOD)
    for place, value in damage:
        broken[place] = value
    try:
        pixels = decode_crop(bytes(broken), SIDE)
    except InvalidMessage as error:
        assert error.reason == "image"  # noqa: PT017  either is right
    else:
        assert pixels.shape == (SIDE, SIDE, 3)


@given(st.integers(1, 65535), st.integers(1, 65535))
def test_the_size_is_read_as_it_is_written(width: int, height: int) -> None:
    """Width and height, not the other way round."""
    assert jpeg_size(claiming(width, height)) == (width, height)
