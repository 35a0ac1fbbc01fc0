"""How usable a face crop is, from 0 to 1: large, frontal, sharp, lit, and sure to be a face."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ingest.detector import FaceBox, Image


def looks_like_a_face(landmarks: NDArray[np.float32]) -> bool:
    """Tell whether five landmarks stand as a face's do: eyes apart and level or tilted, nose between, mouth below.

    Backs of heads and printed shirts fire the detector at 0.70-0.85, but their landmarks collapse or mix up. Measured in
    the face's own frame, so that a tilted head passes.
    """
    right_eye, left_eye, nose, right_mouth, left_mouth = landmarks
    across = left_eye - right_eye
    distance = float(np.hypot(*across))
    if distance < 2.0:
        return False
    across = across / distance
    down = np.array((-across[1], across[0]), np.float32)
    eyes, mouth = (right_eye + left_eye) / 2, (right_mouth + left_mouth) / 2
    nose_down, mouth_down = float((nose - eyes) @ down), float((mouth - eyes) @ down)
    mouth_across = float((left_mouth - right_mouth) @ across)
    return (
        0.05 * distance < nose_down < mouth_down
        and 0.5 * distance < mouth_down < 2.2 * distance
        and mouth_across > 0.2 * distance
    )


def frontality(landmarks: NDArray[np.float32]) -> float:
    """Give 1 for a face that looks into the camera, 0 for a profile: how far the nose stands between the eyes."""
    right_eye, left_eye, nose = landmarks[:3]
    across = left_eye - right_eye
    squared = float(across @ across)
    if squared < 1.0:
        return 0.0
    along = float((nose - right_eye) @ across) / squared
    return max(0.0, 1.0 - 2.0 * abs(along - 0.5))


def sharpness(crop: Image) -> float:
    """Give 0 for a featureless blur, towards 1 for crisp edges: variance of the Laplacian, halfway at 60.

    J. L. Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000.
    """
    blue, green, red = (crop[..., channel] for channel in range(3))  # a mean over the last axis takes ten times as long
    grey = (blue.astype(np.float32) + green + red) / 3
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    variance = float(laplacian.var())
    return variance / (variance + 60.0)


def exposure(crop: Image) -> float:
    """Give 1 for a face of ordinary brightness, towards 0 for black or burnt out."""
    mean = float(crop.mean())
    return float(np.clip(min(mean / 50.0, (255.0 - mean) / 35.0), 0.0, 1.0))


def inside(face: FaceBox, width: int, height: int) -> float:
    """Give the share of the face's box that lies in a picture of *width* x *height* pixels."""
    left, top, right, bottom = face.xyxy
    area = max(1e-6, (right - left) * (bottom - top))
    seen = max(0.0, min(right, width) - max(left, 0.0)) * max(0.0, min(bottom, height) - max(top, 0.0))
    return min(1.0, seen / area)


QUALITY_FAULTS: Final = ("small", "blurred", "turned", "dark")


@dataclass(frozen=True, slots=True)
class QualityBar:
    """What a crop must have to be predicted at all; a visitor without one such crop is `unknown`."""

    least_face_px: float = 20.0
    least_sharpness: float = 0.02
    least_frontality: float = 0.2
    least_exposure: float = 0.4


class Usable(NamedTuple):
    """How usable a crop is, and why it is not: one of QUALITY_FAULTS, or empty."""

    quality: float
    fault: str


def assess(face: FaceBox, crop: Image, frame_shape: tuple[int, ...], bar: QualityBar) -> Usable:
    """Score one crop: the geometric mean of what it must all have, times the detector's score and the share in view.

    *frame_shape* is (height, width, ...) of the picture that the face was found in. Each part has its own bar: a mean would
    let a bright, sharp profile pass, of which the model can only guess.
    """
    turned, sharp, lit = frontality(face.landmarks), sharpness(crop), exposure(crop)
    parts = (min(1.0, face.side_px / 90.0), turned, sharp, lit)
    mean = float(np.prod(parts)) ** (1 / len(parts))
    score = float(np.clip(mean * face.score * inside(face, frame_shape[1], frame_shape[0]) ** 2, 0.0, 1.0))
    below = (
        ("small", face.side_px < bar.least_face_px),
        ("dark", lit < bar.least_exposure),
        ("turned", turned < bar.least_frontality),
        ("blurred", sharp < bar.least_sharpness),
    )
    return Usable(score, next((fault for fault, is_so in below if is_so), ""))


def quality(face: FaceBox, crop: Image, frame_shape: tuple[int, ...]) -> float:
    """Score one crop, whatever the bars."""
    return assess(face, crop, frame_shape, QualityBar()).quality
