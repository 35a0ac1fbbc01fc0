"""The face crop: one function for the live system, for training and for evaluation (law 4).

A similarity transform (rotation, one scale, shift) takes the five landmarks as near as it can to where the model's
recipe wants them: S. Umeyama, "Least-squares estimation of transformation parameters between two point patterns",
IEEE TPAMI 13(4), 1991, eq. 40-42.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ingest.detector import Image
from pipeline.manifest import CropRecipe


def similarity(points: NDArray[np.float32], target: NDArray[np.float32]) -> NDArray[np.float64]:
    """Fit the similarity that takes *points* (n, 2) to *target* (n, 2); a (2, 3) matrix for `cv2.warpAffine`.

    Raises ValueError where all points coincide or stand so wrong that no scale fits them.
    """
    source, wanted = np.asarray(points, np.float64), np.asarray(target, np.float64)
    source_mean, wanted_mean = source.mean(0), wanted.mean(0)
    centred, aim = source - source_mean, wanted - wanted_mean
    spread = float((centred**2).sum() / len(source))
    if spread < 1e-9:
        raise ValueError("landmarks coincide")
    # In the plane the paper's singular values have a closed form: of points as complex numbers, sum(aim * conj(centred)).
    along = float((aim * centred).sum()) / len(source)
    across = float((aim[:, 1] * centred[:, 0] - aim[:, 0] * centred[:, 1]).sum()) / len(source)
    scale = float(np.hypot(along, across)) / spread
    if not scale > 1e-6:
        raise ValueError(
            "landmarks fit a face at no size"
        )  # a mirror image may: it is best met by shrinking to a point
    matrix = np.empty((2, 3))
    matrix[:, :2] = np.array(((along, -across), (across, along))) / spread
    matrix[:, 2] = wanted_mean - matrix[:, :2] @ source_mean
    return matrix


def align(image: Image, landmarks: NDArray[np.float32], recipe: CropRecipe) -> Image:
    """Cut the face at *landmarks* (5, 2) out of *image*: (size_px, size_px, 3), BGR. Raises ValueError for no face at all.

    What lies outside the picture is continued from its edge, as in a face that leaves the view.
    """
    side = recipe.size_px
    matrix = similarity(landmarks, np.asarray(recipe.landmarks, np.float32) * side)
    shrink = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if shrink < 0.5:  # bilinear sampling would skip pixels: average first, over the face's surroundings only
        factor = int(1 / shrink)
        height, width = image.shape[:2]
        corners = cv2.transform(
            np.array([[[0, 0], [side, 0], [0, side], [side, side]]], np.float64), cv2.invertAffineTransform(matrix)
        )[0]
        left, top = np.clip(np.floor(corners.min(0)) - factor, 0, (width - 1, height - 1)).astype(int)
        right, bottom = np.clip(np.ceil(corners.max(0)) + factor, 1, (width, height)).astype(int)
        if right - left >= factor and bottom - top >= factor:
            size = (int(right - left) // factor, int(bottom - top) // factor)
            step = np.array(((right - left) / size[0], (bottom - top) / size[1]))
            image = np.asarray(cv2.resize(image[top:bottom, left:right], size, interpolation=cv2.INTER_AREA), np.uint8)
            # A pixel of the small picture at p lies at (p + 0.5) * step - 0.5 + (left, top) of the large one.
            shift = 0.5 * step - 0.5 + (left, top)
            matrix = np.hstack([matrix[:, :2] * step, (matrix[:, :2] @ shift + matrix[:, 2])[:, None]])
    return np.asarray(
        cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8
    )


def centre_crop(image: Image, recipe: CropRecipe) -> Image:
    """Cut the largest centred square, for a data-set picture in which no face is found: (size_px, size_px, 3), BGR."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    return np.asarray(cv2.resize(square, (recipe.size_px, recipe.size_px), interpolation=cv2.INTER_AREA), np.uint8)


def encode_jpeg(crop: Image, recipe: CropRecipe) -> bytes:
    """Compress a crop as the recipe says."""
    done, data = cv2.imencode(".jpg", crop, (cv2.IMWRITE_JPEG_QUALITY, recipe.jpeg_quality))
    assert done, "OpenCV always encodes a BGR picture"
    return data.tobytes()
