"""The detector port: where faces are in a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
"""(height, width, 3), BGR, 0..255."""


@dataclass(frozen=True, slots=True)
class FaceBox:
    """One detection, in pixels of the picture it was found in."""

    xyxy: tuple[float, float, float, float]
    landmarks: NDArray[np.float32]
    """(5, 2): right eye, left eye, nose, right and left corner of the mouth; right is the person's own."""
    score: float  # 0..1

    @property
    def side_px(self) -> float:
        """The smaller side of the box."""
        left, top, right, bottom = self.xyxy
        return min(right - left, bottom - top)


class Detector(Protocol):
    """Finds faces. Not safe to share between threads: every camera loop has its own."""

    def detect(self, image: Image) -> Sequence[FaceBox]:
        """Find the faces in one picture, best first, in its own pixels."""
