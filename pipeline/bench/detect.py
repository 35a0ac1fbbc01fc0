"""What a picture costs in the face detector: ours beside OpenCV's FaceDetectorYN on the same pictures, one thread."""

from __future__ import annotations

import time
from typing import Final

import cv2
import numpy as np

from demo.composer import load_cast
from ingest.detection import open_detection
from ingest.detector import Detector, Image
from pipeline.bench.rows import Row, Workbench

PART: Final = "detect"
SIDES: Final = (320, 640, 1280)


def measure(bench: Workbench) -> list[Row]:
    """Measure the detector that cameras get, at three sizes."""
    bench.progress(PART)
    return measure_detection()


def measure_detection(rounds: int = 30) -> list[Row]:
    """Measure both in turn, picture by picture, so that what else the machine does slows both; each is the best of *rounds*."""
    cv2.setNumThreads(1)
    picture = _crowd()
    figures = []
    for side in SIDES:
        ours, theirs = open_detection("auto")(side), open_detection("opencv")(side)
        best = {id(each): float("inf") for each in (ours, theirs)}
        for _ in range(rounds):
            for each in (ours, theirs):
                best[id(each)] = min(best[id(each)], _seconds(each, picture))
        figures.append(
            Row(
                PART, f"YuNet at {side} px, ONNX Runtime, one thread", 1 / best[id(ours)], "frames/s", "cv2.FaceDetectorYN",
                1 / best[id(theirs)],
            )
        )  # fmt: skip
    return figures


def _seconds(detector: Detector, picture: Image) -> float:
    start = time.perf_counter()
    detector.detect(picture)
    return time.perf_counter() - start


def _crowd() -> Image:
    """Draw eight faces of 160 px into 720p of grain."""
    image = np.random.default_rng(0).integers(90, 160, (720, 1280, 3), dtype=np.uint8)
    for place, member in enumerate(load_cast()[:8]):
        x, y = 120 + 300 * (place % 4), 60 + 340 * (place // 4)
        image[y : y + 160, x : x + 160] = cv2.resize(member.face, (160, 160), interpolation=cv2.INTER_AREA)
    return image
