"""What must not be found in anything that the product says, writes or leaves: secrets, pictures, what faces are known by."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import cv2
import numpy as np

JPEG: Final = b"\xff\xd8\xff"
PNG: Final = b"\x89PNG\r\n"
_AS_TEXT: Final = (
    repr(JPEG)[2:-1].encode(),  # as Python shows bytes
    JPEG.hex().encode(),
    re.compile(rb"/9j/[A-Za-z0-9+/]{40}"),  # in base64
)
# A field with its values; the word alone is a reason of a metric.
_FIELDS: Final = re.compile(rb"(?:landmarks?|embeddings?|feature_vector|jpeg)[\"']?\s*[:=]\s*[\[({b]", re.IGNORECASE)
_SOURCES: Final = {
    ".py",
    ".md",
    ".js",
    ".toml",
    ".lock",
    ".yml",
    ".yaml",
    ".json",
    ".sh",
    ".pyc",
}  # somebody may be at work
_SKIPPED: Final = {
    ".git",
    ".venv",
    ".cache",
    "__pycache__",
    ".hypothesis",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
    "shared",
}


def pictures(data: bytes, *, weights: bool = False) -> list[str]:
    """Say which forms of a picture, or of what would be needed to find somebody again, are in *data*.

    Among the *weights* of a network a few bytes may look like the start of a picture: there it must open, too.
    """
    found = [
        name for name, magic in (("JPEG", JPEG), ("PNG", PNG)) if magic in data and (not weights or _opens(data, magic))
    ]
    if any(form in data if isinstance(form, bytes) else form.search(data) for form in _AS_TEXT):
        found.append("a JPEG as text")
    return [*found, *(match[0].decode() for match in _FIELDS.finditer(data))]


def _opens(data: bytes, magic: bytes) -> bool:
    starts = (match.start() for match in re.finditer(re.escape(magic), data))
    return any(cv2.imdecode(np.frombuffer(data[at:], np.uint8), cv2.IMREAD_COLOR) is not None for at in starts)


def secrets(data: bytes, words: Iterable[str]) -> list[str]:
    """Say which of *words* are in *data*, also in base64."""
    return [word for word in words if word.encode() in data or base64.b64encode(word.encode()).rstrip(b"=") in data]


def written_since(start: float, *folders: Path) -> Iterator[Path]:
    """Find the files below *folders* that were written since *start* (seconds since the epoch)."""
    for folder in folders:
        for path in folder.rglob("*"):
            if (
                not _SKIPPED.intersection(path.relative_to(folder).parts)
                and path.is_file()
                and path.stat().st_mtime >= start
            ):
                yield path
