"""Faces cut, aligned and compressed; and opened again."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np

from demo.composer import load_cast
from inference.pixels import decode_crop
from ingest.alignment import align, encode_jpeg
from pipeline.bench.rows import Row, Workbench, best_rate
from pipeline.manifest import load_manifest

PART: Final = "cut"
TIMES: Final = 300


def measure(bench: Workbench) -> list[Row]:
    """Measure both ways, one thread, beside bare OpenCV."""
    cv2.setNumThreads(1)
    recipe = load_manifest(bench.settings.inference.model).crop
    side = recipe.size_px
    face = next(iter(load_cast())).face
    picture = np.asarray(cv2.copyMakeBorder(face, 260, 260, 540, 540, cv2.BORDER_REPLICATE), np.uint8)
    landmarks = np.asarray(recipe.landmarks, np.float32) * 200 + np.array((540, 260), np.float32)
    crop = align(picture, landmarks, recipe)
    jpeg = encode_jpeg(crop, recipe)
    quality = (cv2.IMWRITE_JPEG_QUALITY, recipe.jpeg_quality)
    matrix = np.array([[side / 200, 0, -540 * side / 200], [0, side / 200, -260 * side / 200]])

    def cutting() -> int:
        for _ in range(TIMES):
            encode_jpeg(align(picture, landmarks, recipe), recipe)
        return TIMES

    def bare_cutting() -> int:
        for _ in range(TIMES):
            warped = cv2.warpAffine(picture, matrix, (side, side))
            cv2.imencode(".jpg", warped, quality)
        return TIMES

    def cropped() -> int:
        for _ in range(TIMES):
            box = picture[260:460, 540:740]
            cv2.imencode(".jpg", box, quality)
        return TIMES

    def opening() -> int:
        for _ in range(TIMES):
            decode_crop(jpeg, side)
        return TIMES

    def bare_opening() -> int:
        data = np.frombuffer(jpeg, np.uint8)
        for _ in range(TIMES):
            cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
        return TIMES

    return [
        Row(
            PART, f"aligned to {side} px, JPEG ({len(jpeg):,} bytes)", best_rate(cutting), "faces/s",
            "the box of 200 px as JPEG, not aligned", best_rate(cropped),
            limit=best_rate(bare_cutting), limit_of="OpenCV's warpAffine and imencode alone",
        ),
        Row(
            PART, "JPEG checked and decoded", best_rate(opening), "faces/s",
            limit=best_rate(bare_opening), limit_of="OpenCV's imdecode alone",
        ),
    ]  # fmt: skip
