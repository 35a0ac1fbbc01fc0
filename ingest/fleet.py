"""The cameras of one worker: a thread for each, so that one that hangs holds up no other; they come and go while it runs."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

import cv2
import structlog

from ingest.av_source import AvSource
from ingest.camera import CameraLoop
from ingest.detection import open_detection
from ingest.outbox import SharedProducer
from ingest.reach import Reach
from pipeline import telemetry as metrics
from pipeline.attributes import ATTRIBUTES, Attribute
from pipeline.bus import Bus
from pipeline.cameras import Camera
from pipeline.manifest import CropRecipe
from pipeline.messages import FaceCrop
from pipeline.settings import IngestSettings
from pipeline.telemetry import Telemetry

log = structlog.get_logger()

SEND_TIMEOUT_S: Final = 1.0  # a camera does not wait longer for the bus: its next frame is more worth
STOP_S: Final = 15.0
NICE: Final = 5  # steps of priority below the rest of the process: a third of its share
RESTART_S: Final = 5.0  # a loop that failed by a fault of ours is begun anew after that


@dataclass
class _Running:
    """One camera's loop and its thread."""

    loop: CameraLoop
    stop: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None


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
        attributes: Collection[Attribute] = ATTRIBUTES,
        seal: Callable[[FaceCrop], FaceCrop] = lambda crop: crop,
        polite: bool = False,
    ) -> None:
        """Set up; nothing is opened yet. Raises ConfigError where the detector's model does not load.

        *polite* lets the rest of the process go first, see `stand_back`.
        """
        self._detection = open_detection(settings.detector, settings.detector_model)
        cv2.setNumThreads(1)  # cameras are the parallelism; OpenCV's own threads would fight over the cores
        self._settings = settings
        self._recipe = recipe
        self._telemetry = telemetry
        self._until_end = until_end
        self._attributes = attributes
        self._seal = seal
        self._polite = polite
        self._producer = SharedProducer(bus.producer(max_in_flight=max_in_flight, send_timeout_s=SEND_TIMEOUT_S))
        self._lock = threading.Lock()
        self._started = False
        self.stop = threading.Event()
        self._running: dict[str, _Running] = {camera.id: _Running(self._loop(camera)) for camera in cameras}

    @property
    def loops(self) -> list[CameraLoop]:
        """The loops of the cameras that there are now."""
        with self._lock:
            return [running.loop for running in self._running.values()]

    def _loop(self, camera: Camera) -> CameraLoop:
        settings = self._settings
        return CameraLoop(
            camera,
            settings=settings,
            recipe=self._recipe,
            detector=lambda camera: self._detection(camera.max_side_px or settings.max_side_px),
            connect=self._connect,
            producer=self._producer,
            telemetry=self._telemetry,
            until_end=self._until_end,
            attributes=self._attributes,
            seal=self._seal,
        )

    def _connect(self, camera: Camera) -> AvSource:
        settings = self._settings
        source = AvSource(
            camera,
            open_timeout_s=settings.open_timeout_s,
            read_timeout_s=settings.read_timeout_s,
            hwaccel=settings.hwaccel,
            reach=Reach(settings.schemes, settings.networks),
        )
        if (camera.hwaccel or settings.hwaccel) and not source.hardware:
            self._telemetry.add(metrics.SOFTWARE_INSTEAD, site=camera.site, camera=camera.id)
        return source

    def start(self) -> None:
        """Begin."""
        with self._lock:
            self._started = True
            for running in self._running.values():
                self._begin(running)

    def apply(self, cameras: Sequence[Camera]) -> None:
        """Run these cameras from now on: others are ended, new ones begun, changed ones begun anew; the rest goes on undisturbed.

        Waits until the ended ones have told of whoever was in view.
        """
        wanted = {camera.id: camera for camera in cameras}
        with self._lock:
            gone = {name: run for name, run in self._running.items() if wanted.get(name) != run.loop.camera}
        if gone or wanted.keys() - self._running.keys():
            log.info(
                "cameras_changed",
                ended=sorted(gone.keys() - wanted.keys()),
                changed=sorted(gone.keys() & wanted.keys()),
                begun=sorted(wanted.keys() - self._running.keys()),
            )
        for running in gone.values():
            running.stop.set()
        deadline = time.monotonic() + STOP_S
        for name, running in gone.items():
            if running.thread is not None:
                running.thread.join(max(0.1, deadline - time.monotonic()))
            running.loop.forget(gone=name not in wanted)
        with self._lock:
            for name in gone:
                del self._running[name]
            for name, camera in wanted.items():
                if name not in self._running and not self.stop.is_set():
                    self._running[name] = _Running(self._loop(camera))
                    if self._started:
                        self._begin(self._running[name])

    def ended(self) -> bool:
        """Tell whether every loop is over."""
        return all(loop.state.ended for loop in self.loops)

    def problems(self) -> list[str]:
        """Say which cameras give no pictures, and why."""
        return [
            f"camera {loop.camera.id}: {loop.state.reason or loop.state.state}"
            for loop in self.loops
            if loop.state.state not in {"running", "ended", "paused"}
        ]

    def close(self, timeout_s: float = STOP_S) -> None:
        """End every loop, its open tracks included, and wait until what they said is on the bus."""
        self.stop.set()
        with self._lock:
            running = list(self._running.values())
        for one in running:
            one.stop.set()
        for one in running:
            if one.thread is not None and one.thread.is_alive():
                one.thread.join(timeout_s)
        self._producer.close()

    def _begin(self, running: _Running) -> None:
        name = f"camera-{running.loop.camera.id}"
        running.thread = threading.Thread(target=self._run, args=(running,), name=name, daemon=True)
        running.thread.start()

    def _run(self, running: _Running) -> None:
        """Run one camera's loop; one that fails by a fault of ours is begun anew: a mistake costs seconds, not a camera."""
        if self._polite:
            stand_back()
        while True:
            try:
                running.loop.run(running.stop)
            except Exception as error:
                log.exception("camera_loop_failed", camera=running.loop.camera.id)
                running.loop.state.state = "lost"
                running.loop.state.reason = f"the camera's loop failed ({type(error).__name__}); it is begun anew"
                if self._until_end or not running.loop.camera.live or running.stop.wait(RESTART_S):
                    running.loop.state.ended = True
                    raise
                running.loop = self._loop(running.loop.camera)
            else:
                return
            finally:
                if running.stop.is_set():
                    running.loop.state.ended = True


def stand_back() -> None:
    """Let the rest of the process go first, from this thread and the threads that it starts, where there is a choice (Linux).

    In the all-in-one run dozens of camera threads would else leave inference and aggregation a share like any of theirs when the
    machine is full: what has been seen would be counted later and later, while more and more is looked at.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + NICE))
