"""The loop of one camera: connect, read, search, publish; and again after every loss, for ever.

Nothing queues: a live camera's older frames give way to the newest, and messages that the bus does not take are held in a
short outbox whose oldest crops give way too. Both are counted. A file is read to its end with nothing dropped.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final

import structlog
from numpy import float32
from numpy.typing import NDArray

from ingest.alignment import align, encode_jpeg
from ingest.detector import Detector, Image
from ingest.outbox import Outbox, SharedProducer
from ingest.selection import SelectionConfig
from ingest.source import Frame, NewestWins, Source
from ingest.step import Identity, Look, View, close_view, look, open_view
from ingest.tracker import TrackerConfig
from pipeline import telemetry as metrics
from pipeline.bus import FACE_CROPS, PREDICTIONS
from pipeline.cameras import Camera
from pipeline.errors import SourceLost, SourceUnreadable, TransportError
from pipeline.manifest import CropRecipe
from pipeline.messages import CameraStatus, FaceCrop
from pipeline.settings import IngestSettings
from pipeline.telemetry import Telemetry

log = structlog.get_logger()

LAST_WORDS_S: Final = 10.0


class RecipeCutter:
    """Cuts and compresses faces as the model's recipe says."""

    def __init__(self, recipe: CropRecipe) -> None:
        self._recipe = recipe

    def cut(self, image: Image, landmarks: NDArray[float32]) -> Image:
        """Cut the aligned face out of *image*. Raises ValueError where the landmarks are none."""
        return align(image, landmarks, self._recipe)

    def encode(self, crop: Image) -> bytes:
        """Compress a crop."""
        return encode_jpeg(crop, self._recipe)


@dataclass(slots=True)
class CameraState:
    """How the camera does; written by its loop, read by whoever asks."""

    state: str = "connecting"
    reason: str = ""
    fps: float = 0.0
    frames: int = 0
    drops: int = 0
    tracks: int = 0
    connections: int = 0
    ended: bool = False
    _ticks: deque[float] = field(default_factory=lambda: deque(maxlen=50))

    def tick(self, now: float) -> None:
        """Count a frame that arrived at *now*, by a monotonic clock."""
        self.frames += 1
        self._ticks.append(now)
        if len(self._ticks) > 1 and now > self._ticks[0]:
            self.fps = (len(self._ticks) - 1) / (now - self._ticks[0])


class CameraLoop:
    """One camera, for as long as it is wanted."""

    def __init__(
        self,
        camera: Camera,
        *,
        settings: IngestSettings,
        recipe: CropRecipe,
        detector: Callable[[Camera], Detector],
        connect: Callable[[Camera], Source],
        producer: SharedProducer,
        telemetry: Telemetry,
        until_end: bool = False,
    ) -> None:
        """Set up; nothing is opened yet. *until_end* stops where the stream ends, which a file does by itself."""
        self.camera = camera
        self.state = CameraState()
        self._settings = settings
        self._cutter = RecipeCutter(recipe)
        self._make_detector = detector
        self._connect = connect
        self._telemetry = telemetry
        self._until_end = until_end or not camera.live
        self._labels = {"site": camera.site, "camera": camera.id}
        self._outbox = Outbox(
            producer,
            patient=not camera.live,
            on_drop=lambda: telemetry.add(metrics.DROPS, reason="bus", **self._labels),
        )
        self._connection = 0
        self._status_due = 0.0

    def run(self, stop: threading.Event) -> None:
        """Run until *stop* is set, or a file has ended. Never raises for what a camera or the bus does."""
        self._telemetry.introduce_camera(**self._labels)
        self._telemetry.set(
            metrics.CAMERA_WANTED_FPS, self.camera.detect_fps or self._settings.detect_fps, **self._labels
        )
        self._telemetry.set(metrics.CAMERA_UP, 0, **self._labels)
        self._report()
        detector = self._make_detector(self.camera)
        attempt = 0
        while not stop.is_set():
            before = self.state.frames
            try:
                self._one_connection(detector, stop)
                if self._until_end:
                    self._change("ended")
                    break
            except SourceLost as error:
                self._telemetry.add(metrics.CONNECTS_FAILED, reason=error.reason, **self._labels)
                self._telemetry.set(metrics.CAMERA_UP, 0, **self._labels)
                if self.state.frames > before:
                    attempt = 0
                wait_s = random.uniform(0.5, 1.0) * min(self._settings.max_backoff_s, 2.0 ** min(attempt, 16))  # noqa: S311
                attempt += 1
                self._change(error.reason, str(error))
                if self._until_end and (self.state.frames or isinstance(error, SourceUnreadable)):
                    break  # a stream that ended, or a file that never was one: waiting changes nothing
                log.warning(
                    "camera_lost",
                    camera=self.camera.id,
                    reason=error.reason,
                    detail=str(error),
                    retry_in_s=round(wait_s, 1),
                )
                self._wait(wait_s, stop)
        self.state.ended = True
        self._telemetry.set(metrics.CAMERA_UP, 0, **self._labels)
        self._flush(stop, last=True)

    def _wait(self, seconds: float, stop: threading.Event) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not stop.wait(min(left, self._settings.status_interval_s)):
            self._report_if_due()
            self._flush(stop)

    def _one_connection(self, detector: Detector, stop: threading.Event) -> None:
        if self.state.state not in {"connecting", "running"}:
            self._report()
        with closing(self._connect(self.camera)) as source:
            self.state.connections += 1
            if self.state.connections > 1:
                self._telemetry.add(metrics.RECONNECTS, **self._labels)
            # Two connections within one second still differ, and a restarted worker's come after.
            self._connection = max(self._connection + 1, int(time.time()))
            view = open_view(
                Identity(self.camera.id, self.camera.site, self._connection),
                self._cutter,
                TrackerConfig(least_hits=self._settings.least_hits, max_gap_s=self._settings.max_gap_s),
                SelectionConfig(
                    max_crops=self._settings.max_crops,
                    interval_s=self._settings.crop_interval_s,
                    least_quality=self._settings.least_quality,
                ),
            )
            try:
                self._watch(view, detector, self._frames(source), stop)
            finally:
                self._take(close_view(view))
                self._flush(stop)

    def _frames(self, source: Source) -> Iterator[Frame]:
        if source.live:
            return NewestWins(source, on_frame=self._on_frame, on_drop=self._on_drop).frames()
        return self._counted(source.frames())

    def _counted(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        for frame in frames:
            self._on_frame()
            yield frame

    def _on_frame(self) -> None:
        if not self.state.frames:
            log.info("camera_running", camera=self.camera.id, address=self.camera.address)
        self.state.tick(time.monotonic())
        self._telemetry.add(metrics.FRAMES, **self._labels)

    def _on_drop(self) -> None:
        self.state.drops += 1
        self._telemetry.add(metrics.DROPS, reason="newest_wins", **self._labels)

    def _watch(self, view: View, detector: Detector, frames: Iterator[Frame], stop: threading.Event) -> None:
        period = 1.0 / (self.camera.detect_fps or self._settings.detect_fps)
        due = 0.0
        for frame in frames:
            if stop.is_set():
                return
            if self.state.state != "running":
                self._telemetry.set(metrics.CAMERA_UP, 1, **self._labels)
                self._change("running")
            self._report_if_due()
            # Half a frame's tolerance: at 25 fps and 8 looks a second, 0.12 s is one look, not a miss.
            if frame.captured_at < due - 0.02:
                continue
            due = max(due + period, frame.captured_at + period / 2) if due else frame.captured_at + period
            image = frame.image()
            with self._telemetry.timed(metrics.DETECTION_SECONDS):
                faces = detector.detect(image)
            self._telemetry.add(metrics.FRAMES_DETECTED, **self._labels)
            self._telemetry.add(metrics.FACES, len(faces), **self._labels)
            self._take(look(view, image, faces, frame.captured_at))
            self._flush(stop)

    def _take(self, result: Look) -> None:
        for message in result.messages:
            self._outbox.post(FACE_CROPS, message)
            if isinstance(message, FaceCrop):
                self._telemetry.add(metrics.CROPS, **self._labels)
        for side_px in result.face_sizes_px:
            self._telemetry.observe(metrics.FACE_SIZE, side_px, **self._labels)
        if result.tracks_ended:
            self.state.tracks += result.tracks_ended
            self._telemetry.add(metrics.TRACKS, result.tracks_ended, **self._labels)
        if result.unconfirmed:
            self._telemetry.add(metrics.REJECTS, result.unconfirmed, reason="unconfirmed", **self._labels)
        if result.below_bar:
            self._telemetry.add(metrics.REJECTS, result.below_bar, reason="quality", **self._labels)

    def _flush(self, stop: threading.Event, *, last: bool = False) -> None:
        """Deliver what waits. A camera goes on meanwhile, and tries again with its next frame; a file waits for the bus.

        For the *last* time, or once stopped, both try for some seconds more: the ends of tracks are worth it.
        """
        give_up = time.monotonic() + LAST_WORDS_S
        while True:
            try:
                self._outbox.deliver(last=last)
            except TransportError as error:
                self._telemetry.add(metrics.BUS_FAILURES)
                log.warning("bus_refused", camera=self.camera.id, detail=str(error), waiting=len(self._outbox))
                if self.camera.live and not last:
                    return
                if (self.camera.live or stop.is_set()) and time.monotonic() > give_up:
                    log.error("undelivered", camera=self.camera.id, messages=len(self._outbox))  # noqa: TRY400  no trace: it says all
                    return
                time.sleep(0.5)
            else:
                return

    def _change(self, state: str, reason: str = "") -> None:
        self.state.state, self.state.reason = state, reason
        self._report()

    def _report_if_due(self) -> None:
        if time.monotonic() >= self._status_due:
            self._report()

    def _report(self) -> None:
        self._status_due = time.monotonic() + self._settings.status_interval_s
        state = self.state
        fps = state.fps if state.state == "running" else 0.0
        self._telemetry.set(metrics.CAMERA_FPS, fps, **self._labels)
        status = CameraStatus(
            camera_id=self.camera.id,
            site=self.camera.site,
            at=time.time(),
            state=state.state,
            reason=state.reason,
            address=self.camera.address,
            fps=round(fps, 2),
            frames=state.frames,
            reconnects=max(0, state.connections - 1),
        )
        self._outbox.post(PREDICTIONS, status)
