"""JPEG to pixels: the last thing that can be wrong with a face crop is found out here."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InvalidMessage

_FRAME_HEADERS: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Fill bytes and markers that no length follows: a decoder steps over them, a walk by lengths would lose its way.
_WITHOUT_LENGTH: Final = frozenset((0x00, 0x01, 0xFF, *range(0xD0, 0xDA)))

_START_OF_SCAN: Final = b"\xff\xda"
_MOST_SCANS: Final = 16  # progressive pictures, as encoders write them, have ten


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Read (width, height) from a JPEG's own header. Raises InvalidMessage where there is none or the end is missing.

    Decoders fill up truncated pictures with grey and call it success, and believe any size: ISO/IEC 10918-1, annex B. What
    decoding costs grows with every scan, so they are bounded.
    """
    if data[:2] != b"\xff\xd8":
        raise InvalidMessage("image", "not a JPEG")
    if data[-2:] != b"\xff\xd9":
        raise InvalidMessage("image", "truncated JPEG")
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _WITHOUT_LENGTH:
            break
        if marker in _FRAME_HEADERS:
            if data.count(_START_OF_SCAN, at) > _MOST_SCANS:  # within a scan, 0xFF stands before a zero only
                raise InvalidMessage("image", f"JPEG of more than {_MOST_SCANS} scans")
            return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        at += 2 + length
    raise InvalidMessage("image", "JPEG without a frame header")


def decode_crop(jpeg: bytes, size_px: int) -> NDArray[np.uint8]:
    """Decode one crop to (size_px, size_px, 3), RGB. Raises InvalidMessage where it is not such a picture."""
    width, height = jpeg_size(jpeg)
    if (width, height) != (size_px, size_px):
        raise InvalidMessage(
            "image", f"crop of {width}x{height} px; this model takes {size_px}x{size_px}: ingest uses another model"
        )
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
    if pixels is None or pixels.shape != (size_px, size_px, 3):
        raise InvalidMessage("image", "JPEG that does not decode")
    return np.asarray(pixels, np.uint8)
