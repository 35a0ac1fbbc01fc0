"""Predictors and buses that do as they are told, and the faces of the demo as inference gets them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import pytest
from numpy.typing import NDArray

from demo.composer import load_cast
from inference.pixels import decode_crop
from inference.predictor import Crops, Logits
from ingest.alignment import align, encode_jpeg
from ingest.yunet_detector import YunetDetector
from pipeline.bus import Headers
from pipeline.errors import TransportError
from pipeline.manifest import DEFAULT_MODEL, CropRecipe, Manifest, load_manifest
from pipeline.messages import FaceCrop, Message, TrackEnded, decode

SIDE: Final = 32
MANIFEST: Final = Manifest(
    name="toy",
    weights="model.keras",
    sha256="0123456789abcdef" * 4,
    crop=CropRecipe(SIDE, ((0.3, 0.28), (0.68, 0.28), (0.48, 0.51), (0.32, 0.67), (0.65, 0.67))),
    ages=(0, 100),
)


class ToyPredictor:
    """Says what the brightness of a crop's first pixel says: its age, in years; and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def predict(self, crops: Crops) -> Logits:
        """Be quite sure."""
        self.batches.append(len(crops))
        years = crops[:, 0, 0, 0].astype(int)
        age = np.full((len(crops), 101), -50, np.float32)
        age[np.arange(len(crops)), np.minimum(years, 100)] = 50
        gender = np.stack([-(years % 2), years % 2], axis=1).astype(np.float32) * 3
        ethnicity = np.zeros((len(crops), 5), np.float32)
        ethnicity[np.arange(len(crops)), years % 5] = 2
        return Logits(age, gender, ethnicity)


class FakeProducer:
    """Keeps what it is sent, decoded, by topic; *refuse*, asked before each record, makes it say no."""

    def __init__(self, refuse: Callable[[], bool] = lambda: False) -> None:
        self.sent: dict[str, list[tuple[bytes, Message]]] = {}
        self.flushed = True
        self.refuse = refuse

    def send(self, topic: str, *, key: bytes, value: bytes, headers: Headers) -> None:
        """Keep it."""
        if self.refuse():
            raise TransportError("the log is full; send later")
        self.flushed = False
        self.sent.setdefault(topic, []).append((key, decode(value, headers)))

    def flush(self, timeout_s: float) -> None:
        """Remember it."""
        self.flushed = True

    def close(self) -> None:
        """Let go."""


def face_crop(n: int, jpeg: bytes = b"", *, camera_id: str = "door") -> FaceCrop:
    """Make the *n*th crop, unlike any other in every field."""
    return FaceCrop(
        camera_id=camera_id,
        site="museum",
        track_id=1000 + n,
        sequence=n % 8,
        first_seen=1e9 + n,
        captured_at=1e9 + n + 0.5,
        quality=(n % 10) / 10,
        jpeg=jpeg,
    )


def track_ended(n: int, *, camera_id: str = "door") -> TrackEnded:
    """Make the end of the *n*th track."""
    return TrackEnded(
        camera_id=camera_id, site="museum", track_id=1000 + n, first_seen=1e9 + n, last_seen=1e9 + n + 1, crops=1
    )


def plain(value: int, side: int = SIDE) -> NDArray[np.uint8]:
    """Make a crop of one grey."""
    return np.full((side, side, 3), value, np.uint8)


def drawn_crops(count: int, side: int) -> NDArray[np.uint8]:
    """Draw crops of coloured blocks by integers alone, so that they are the same everywhere: (count, side, side, 3)."""
    n, y, x, channel = np.ogrid[:count, :side, :side, :3]
    return np.asarray((x // 8 * (37 + n) + y // 8 * (59 + 7 * n) + channel * 91 + n * 53) % 256, np.uint8)


def cast_crops() -> dict[str, NDArray[np.uint8]]:
    """Cut the sixteen faces of the demo as the live system does, JPEG included: (size, size, 3), RGB, by file name."""
    recipe, detector = load_manifest(DEFAULT_MODEL).crop, YunetDetector()
    crops = {}
    for member in load_cast():
        landmarks = detector.detect(member.face)[0].landmarks
        crops[member.file] = decode_crop(encode_jpeg(align(member.face, landmarks, recipe), recipe), recipe.size_px)
    return crops


@pytest.fixture(scope="session")
def cast_faces() -> dict[str, NDArray[np.uint8]]:
    """Give the demo's faces as inference gets them."""
    return cast_crops()
