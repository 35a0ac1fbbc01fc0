"""Face crops, encrypted on their way through Kafka: whoever reads the broker's disk, a replica or a backup sees no face.

AES-256-GCM (NIST SP 800-38D) with a fresh random nonce for each crop. The crop's identity is authenticated with it: a sealed
picture put into another record does not open. Keys have names, and a crop says which one it is sealed with: the first key seals,
all of them open, so that a key is changed without losing a crop (docs/security.md, "Changing the key").
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Mapping
from typing import Final

from msgspec import UNSET
from msgspec.structs import replace

from pipeline.errors import InvalidMessage
from pipeline.messages import FaceCrop

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
SETTING: Final = "DEMOGRAPHICS_KAFKA__CROP_KEYS"
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,32}")
_HOW: Final = "write NAME:KEY, keys as `openssl rand -base64 32` gives them, several separated by commas"


def parse_keys(text: str) -> dict[str, bytes]:
    """Read NAME:KEY,NAME:KEY. Raises ValueError that says what is wrong, and never the key."""
    keys: dict[str, bytes] = {}
    for number, each in enumerate(text.split(",") if text.strip() else (), start=1):
        name, colon, encoded = each.strip().partition(":")
        if not colon or not _NAME.fullmatch(name):
            raise ValueError(f"key {number} has no name of 1 to 32 letters, digits, '.', '_' or '-'; {_HOW}")
        if name in keys:
            raise ValueError(f"key name '{name}' is used twice; give each key its own")
        try:
            key = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            raise ValueError(f"key '{name}' is not base64; {_HOW}") from None
        if len(key) != KEY_BYTES:
            raise ValueError(f"key '{name}' has {len(key)} bytes and must have {KEY_BYTES}; {_HOW}")
        keys[name] = key
    return keys


class CropKeys:
    """Seals and opens face crops. Without keys it seals nothing. Safe to use from several threads."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415  not for those who read settings only

        self._ciphers = {name: AESGCM(key) for name, key in keys.items()}
        self._sealing = next(iter(keys), None)

    def seal(self, crop: FaceCrop) -> FaceCrop:
        """Encrypt the picture of *crop* with the first key; as it is where there is none."""
        if self._sealing is None:
            return crop
        nonce = os.urandom(NONCE_BYTES)
        sealed = self._ciphers[self._sealing].encrypt(nonce, crop.jpeg, _identity(crop))
        return replace(crop, jpeg=nonce + sealed, sealed_with=self._sealing)

    def open(self, crop: FaceCrop) -> FaceCrop:
        """Decrypt the picture of *crop*; one that is not sealed comes back as it is.

        Raises InvalidMessage where the key is not there, or another one.
        """
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415

        if crop.sealed_with is UNSET:
            return crop
        cipher = self._ciphers.get(crop.sealed_with)
        if cipher is None:
            raise InvalidMessage("key", f"sealed with key '{crop.sealed_with}', which is not here; add it to {SETTING}")
        if len(crop.jpeg) < NONCE_BYTES + TAG_BYTES:
            raise InvalidMessage("key", f"sealed with key '{crop.sealed_with}', and too short to be so")
        nonce, sealed = crop.jpeg[:NONCE_BYTES], crop.jpeg[NONCE_BYTES:]
        try:
            return replace(crop, jpeg=cipher.decrypt(nonce, sealed, _identity(crop)), sealed_with=UNSET)
        except InvalidTag:
            raise InvalidMessage(
                "key",
                f"does not open with key '{crop.sealed_with}': another key has that name in {SETTING} of ingest, "
                "or the record was changed",
            ) from None


def _identity(crop: FaceCrop) -> bytes:
    return f"{crop.site}|{crop.camera_id}|{crop.track_id}|{crop.sequence}".encode()
