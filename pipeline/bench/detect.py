"""Pictures searched by YuNet."""

from __future__ import annotations

from typing import Final

import cv2

from ingest.yunet_detector import YunetDetector
from pipeline.bench import films
from pipeline.bench.rows import Row, Workbench, best_rate

PART: Final = "detect"


def measure(bench: Workbench) -> list[Row]:
    """Measure one thread at three sizes."""
    cv2.setNumThreads(1)
    picture = films.picture(films.people(bench.folder, size=(1280, 720), seconds=10))
    rows = []
    for side in (320, 640, 1280):
        detector = YunetDetector(bench.settings.ingest.detector_model, max_side_px=side)

        def work(detector: YunetDetector = detector) -> int:
            for _ in range(20):
                detector.detect(picture)
            return 20

        rows.append(Row(PART, f"YuNet at {side} px, one thread", best_rate(work), "frames/s"))
    return rows
