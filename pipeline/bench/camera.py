"""One camera of 1080p at 25 fps, from packets to face crops, with people and without, beside the plain way of doing it."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Final

import av
import cv2
import numpy as np

from ingest.av_source import AvSource
from ingest.camera import CameraLoop
from ingest.detection import open_detection
from ingest.outbox import SharedProducer
from ingest.yunet_detector import YunetDetector
from pipeline.bench import films
from pipeline.bench.rows import Row, Workbench, least_cpu_s
from pipeline.bus import Headers
from pipeline.cameras import Camera
from pipeline.manifest import load_manifest
from pipeline.telemetry import Telemetry

PART: Final = "camera"
SECONDS: Final = 10.0
PEER: Final = "OpenCV VideoCapture and FaceDetectorYN at 640 px on every frame"


def measure(bench: Workbench) -> list[Row]:
    """Measure the share of a core that a camera takes."""
    cv2.setNumThreads(1)
    full_hd = (1920, 1080)
    people = films.people(bench.folder, size=full_hd, seconds=SECONDS)
    empty = films.empty(bench.folder, size=full_hd, seconds=SECONDS)
    bare = _share(partial(_only_decoded, people))
    peers = {film: _share(partial(_plain, film)) for film in (people, empty)}
    rows = []
    for what, film, decode in (
        ("people, 5 looks/s, tracked, crops cut", people, "all"),
        ("empty scene, 5 looks/s", empty, "all"),
        ("people, key frames only", people, "keyframes"),
    ):
        bench.progress(f"{PART}: {what}")
        rows.append(
            Row(
                PART,
                f"1080p25, {what}",
                _share(partial(_ours, bench, film, decode)),
                "% of a core",
                PEER,
                peers[film],
                limit=bare,
                limit_of="every frame is decoded, nothing else",
            )
        )
    return rows


def shares(bench: Workbench) -> tuple[float, float]:
    """Give the share of a core that a camera with people takes, and one without."""
    cv2.setNumThreads(1)
    people = films.people(bench.folder, size=(1920, 1080), seconds=SECONDS)
    empty = films.empty(bench.folder, size=(1920, 1080), seconds=SECONDS)
    with_people, without = (_share(partial(_ours, bench, film, "all")) / 100 for film in (people, empty))
    return with_people, without


def _share(work: partial[None]) -> float:
    return 100 * least_cpu_s(work) / SECONDS


def _ours(bench: Workbench, film: Path, decode: str) -> None:
    settings = bench.settings.ingest
    searching = open_detection(settings.detector, settings.detector_model)
    CameraLoop(
        Camera.model_validate({"id": "bench", "url": str(film), "detect_fps": 5, "decode": decode}),
        settings=settings,
        recipe=load_manifest(bench.settings.inference.model).crop,
        producer=SharedProducer(_Nowhere()),
        detector=lambda _: searching(settings.max_side_px),
        connect=lambda one: AvSource(one, open_timeout_s=5, read_timeout_s=5),
        telemetry=Telemetry(("ingest",)),
    ).run(threading.Event())


def _plain(film: Path) -> None:
    reader = cv2.VideoCapture(str(film))
    detector = YunetDetector(None, max_side_px=640)
    while True:
        there, picture = reader.read()
        if not there:
            return
        detector.detect(np.asarray(picture, np.uint8))


def _only_decoded(film: Path) -> None:
    with av.open(str(film)) as container:
        container.streams.video[0].thread_type = "SLICE"
        for _ in container.decode(video=0):
            pass


class _Nowhere:
    """A bus that takes everything and keeps nothing."""

    def send(self, topic: str, *, key: bytes, value: bytes, headers: Headers) -> None:
        """Take a record."""

    def flush(self, timeout_s: float) -> None:
        """Return at once."""

    def close(self) -> None:
        """Let go of nothing."""
