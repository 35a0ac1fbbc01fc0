"""Faces through the network."""

from __future__ import annotations

from typing import Final

import numpy as np

from inference.predictor import Crops
from inference.tensorflow_predictor import TensorFlowPredictor
from pipeline.bench.rows import Row, Workbench, best_rate

PART: Final = "inference"


def measure(bench: Workbench) -> list[Row]:
    """Measure every batch size."""
    settings = bench.settings.inference
    predictor = TensorFlowPredictor(settings.model, threads=settings.threads)
    predictor.warm_up()
    side = predictor.manifest.crop.size_px
    noise = np.random.default_rng(0)
    rows = []
    for size in (1, 4, 16, 32, 64):
        crops = noise.integers(0, 256, (size, side, side, 3), dtype=np.uint8)

        def work(crops: Crops = crops) -> int:
            for _ in range(max(1, 64 // len(crops))):
                predictor.predict(crops)
            return len(crops) * max(1, 64 // len(crops))

        rows.append(Row(PART, f"TensorFlow, batch {size}, three heads", best_rate(work), "faces/s"))
    return rows
