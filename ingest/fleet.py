"""The cameras of one worker: a thread for each, so that one that hangs holds up no other."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

import cv2
import structlog

from ingest.av_source import AvSource
from ingest.camera import CameraLoop
from ingest.outbox import SharedProducer
from ingest.yunet_detector import YunetDetector
from pipeline.bus import Bus
from pipeline.cameras import Camera
from pipeline.manifest import CropRecipe
from pipeline.settings import IngestSettings
from pipeline.telemetry import Telemetry

log = structlog.get_logger()

SEND_TIMEOUT_S: Final = 1.0  # a camera does not wait longer for the bus: its next frame is more worth


class Fleet:
    """Runs a camera loop for each camera until stopped."""

    def __init__(
        self,
        cameras: Sequence[Camera],
        *,
        settings: IngestSettings,
        recipe: CropRecipe,
        bus: Bus,
        telemetry: Telemetry,
        max_in_flight: int = 1000,
        until_end: bool = False,
    ) -> None:
        """Set up; nothing is opened yet. Raises ConfigError where the detector's model does not load."""
        YunetDetector(settings.detector_model)  # a model that does not load is found out here, not in a camera's thread
        cv2.setNumThreads(1)  # cameras are the parallelism; OpenCV's own threads would fight over the cores
        self._producer = SharedProducer(bus.producer(max_in_flight=max_in_flight, send_timeout_s=SEND_TIMEOUT_S))
        self.stop = threading.Event()
        self.loops = [
            CameraLoop(
                camera,
                settings=settings,
                recipe=recipe,
                detector=lambda camera: YunetDetector(
                    settings.detector_model, max_side_px=camera.max_side_px or settings.max_side_px
                ),
                connect=lambda camera: AvSource(
                    camera,
                    open_timeout_s=settings.open_timeout_s,
                    read_timeout_s=settings.read_timeout_s,
                    hwaccel=settings.hwaccel,
                ),
                producer=self._producer,
                telemetry=telemetry,
                until_end=until_end,
            )
            for camera in cameras
        ]
        self._threads = [
            threading.Thread(target=self._run, args=(loop,), name=f"camera-{loop.camera.id}", daemon=True)
            for loop in self.loops
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def ended(self) -> bool:
        """Tell whether every loop is over."""
        return all(loop.state.ended for loop in self.loops)

    def problems(self) -> list[str]:
        """Say which cameras give no pictures, and why."""
        return [
            f"camera {loop.camera.id}: {loop.state.reason or loop.state.state}"
            for loop in self.loops
            if loop.state.state not in {"running", "ended"}
        ]

    def close(self, timeout_s: float = 15.0) -> None:
        """End every loop, its open tracks included, and wait until what they said is on the bus."""
        self.stop.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout_s)
        self._producer.close()

    def _run(self, loop: CameraLoop) -> None:
        try:
            loop.run(self.stop)
        except Exception:
            log.exception("camera_loop_failed", camera=loop.camera.id)
            loop.state.state, loop.state.reason = "lost", "the camera's loop failed; see the log"
            raise
        finally:
            loop.state.ended = True
