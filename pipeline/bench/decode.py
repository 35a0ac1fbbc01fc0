"""Decoding, as ingest does it: every frame is decoded, and converted only when somebody looks at it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import av
import cv2

from ingest.av_source import AvSource
from pipeline.bench import films
from pipeline.bench.rows import Row, Workbench, least_cpu_s
from pipeline.cameras import Camera

PART: Final = "decode"
SECONDS: Final = 10.0
FRAMES: Final = round(25 * SECONDS)


def measure(bench: Workbench) -> list[Row]:
    """Measure the CPU of a frame, in every thread, at two sizes."""
    rows = []
    for name, size in (("720p", (1280, 720)), ("1080p", (1920, 1080))):
        film = films.people(bench.folder, size=size, seconds=SECONDS)
        bench.progress(f"{PART}: {name}")
        bare = _frames_per_core_s(partial(_bare, film))
        plain = _frames_per_core_s(partial(_opencv, film))
        ours = _frames_per_core_s(partial(_ours, film, every=5))
        rows.append(
            Row(
                PART,
                f"{name} H.264 by PyAV, one frame in five converted to BGR",
                ours,
                "frames/s",
                "OpenCV VideoCapture.read",
                plain,
                limit=bare,
                limit_of="libav decodes, nothing is converted",
            )
        )
    return rows


def _frames_per_core_s(work: Callable[[], object]) -> float:
    return FRAMES / least_cpu_s(work)


def _ours(film: Path, every: int) -> None:
    camera = Camera.model_validate({"id": "bench", "url": str(film)})
    source = AvSource(camera, open_timeout_s=5, read_timeout_s=5)
    for number, frame in enumerate(source.frames()):
        if number % every == 0:
            frame.image()


def _opencv(film: Path) -> None:
    reader = cv2.VideoCapture(str(film))
    while reader.read()[0]:
        pass
    reader.release()


def _bare(film: Path) -> None:
    with av.open(str(film)) as container:
        container.streams.video[0].thread_type = "SLICE"
        for _ in container.decode(video=0):
            pass
