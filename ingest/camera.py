"""The loop of one camera: connect, read, search, publish; and again after every loss, for ever.

Nothing queues: a live camera's older frames give way to the newest, and messages that the bus does not take are held in a
short outbox whose oldest crops give way too. Both are counted. A file is read to its end with nothing dropped.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final

import structlog
from numpy import float32
from numpy.typing import NDArray

from ingest.alignment import align, encode_jpeg
from ingest.cadence import Cadence
from ingest.detector import Detector, FaceBox, Image
from ingest.frames import FrameGate, MotionGate, reduced
from ingest.outbox import Outbox, SharedProducer
from ingest.pictures import Gallery
from ingest.quality import QualityBar
from ingest.regions import Region, regions, search
from ingest.rules import Rule
from ingest.selection import SelectionConfig
from ingest.source import Frame, NewestWins, Patience, Source
from ingest.step import Identity, Look, View, ViewConfig, blind, close_view, look, open_view
from ingest.tracker import TrackerConfig
from pipeline import telemetry as metrics
from pipeline.attributes import ATTRIBUTES, Attribute, in_order
from pipeline.bus import FACE_CROPS, PREDICTIONS
from pipeline.cameras import Camera
from pipeline.errors import (
    SourceLost,
    SourceRefused,
    SourceStalled,
    SourceTooFast,
    SourceUnreadable,
    TransportError,
)
from pipeline.manifest import CropRecipe
from pipeline.messages import CameraStatus, FaceCrop
from pipeline.settings import IngestSettings
from pipeline.telemetry import Telemetry

log = structlog.get_logger()

LAST_WORDS_S: Final = 10.0
REPEATED_S: Final = 3.0  # a picture that repeats for longer is a camera that hangs, not a person who stands still
FORESEEN_S: Final = 0.5  # for no longer is it known where somebody who walks should be
MOST_LEFT_BEHIND: Final = 4  # threads that hang within a library; more of them would be a leak


def view_config(camera: Camera, settings: IngestSettings) -> ViewConfig:
    """Say how *camera* is watched."""
    return ViewConfig(
        tracker=TrackerConfig(least_hits=settings.least_hits, max_gap_s=settings.max_gap_s),
        selection=SelectionConfig(
            max_crops=settings.max_crops,
            interval_s=settings.crop_interval_s,
            least_quality=settings.least_quality,
        ),
        rule=Rule.of(camera),
        picture_s=settings.picture_s,
        bar=QualityBar(
            least_face_px=settings.least_face_px,
            least_sharpness=settings.least_sharpness,
            least_frontality=settings.least_frontality,
            least_exposure=settings.least_exposure,
        ),
    )


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


@dataclass(slots=True)
class _Eye:
    """What one connection's pictures are searched with."""

    detector: Detector
    cadence: Cadence
    gate: FrameGate = field(default_factory=FrameGate)
    motion: MotionGate = field(default_factory=MotionGate)
    known: Sequence[FaceBox] = ()  # the faces of the last picture
    partial: int = 0  # looks since the whole picture was searched
    searched_at: float | None = None
    blind: bool = True  # since the last look nothing was to be seen: at first, for as long as the connection was lost


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
        attributes: Collection[Attribute] = ATTRIBUTES,
        seal: Callable[[FaceCrop], FaceCrop] = lambda crop: crop,
        on_look: Callable[[float, Look], None] | None = None,
    ) -> None:
        """Set up; nothing is opened yet. *until_end* stops where the stream ends, which a file does by itself.

        *attributes* are the deployment's; the camera may have fewer, never more.
        *on_look* is told what came of every look, and when its picture was taken: for who measures.
        """
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
        self._attributes = in_order(set(attributes).intersection(camera.attributes))
        self._seal = seal
        self._on_look = on_look
        self._view: View | None = None
        self._gallery = Gallery()  # pictures hang there for longer than any connection lasts
        self._advice: list[str] = []
        self._left_behind: list[threading.Thread] = []
        self._connection = 0
        self._looked_at = 0.0  # monotonic
        self._status_due = 0.0

    def run(self, stop: threading.Event) -> None:
        """Run until *stop* is set, or a file has ended. Never raises for what a camera or the bus does."""
        self._telemetry.introduce_camera(**self._labels)
        self._telemetry.set(
            metrics.CAMERA_WANTED_FPS, self.camera.detect_fps or self._settings.detect_fps, **self._labels
        )
        self._telemetry.set(metrics.CAMERA_UP, 0, **self._labels)
        if self.camera.paused:
            self._stay_paused(stop)
            return
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
                wait_s = self._pause(error, attempt)
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
        if self._view is not None and self.camera.live:
            self._telemetry.add(metrics.ENDED_IN_VIEW, self._view.present, **self._labels)
        self._close_view()
        self.state.ended = True
        self._telemetry.set(metrics.CAMERA_UP, 0, **self._labels)
        self._flush(stop, last=True)

    def _stay_paused(self, stop: threading.Event) -> None:
        """Look at nothing, and say so, for as long as the camera is paused; whoever ends the pause begins the loop anew."""
        log.warning("camera_paused", camera=self.camera.id, reason=self.camera.paused)
        self._change("paused", self.camera.paused)
        self._flush(stop)
        while not self._until_end and not stop.wait(self._settings.status_interval_s):
            self._report()
            self._flush(stop)
        self.state.ended = True
        self._flush(stop, last=True)

    def forget(self, *, gone: bool) -> None:
        """Say for the last time how the camera does, once its loop is over: *gone* where it is no longer wanted."""
        for metric in (metrics.CAMERA_UP, metrics.CAMERA_FPS, metrics.PRESENT, metrics.DETECT_FPS):
            self._telemetry.set(metric, 0, **self._labels)
        if gone:
            log.info("camera_removed", camera=self.camera.id)

    def _pause(self, error: SourceLost, attempt: int) -> float:
        """Give how long to wait: twice as long each time, with jitter, so that a building's cameras do not come back at once."""
        longest = self._settings.max_backoff_s
        if isinstance(error, SourceRefused):
            longest = max(longest, self._settings.refused_backoff_s)  # many cameras lock an account after some attempts
        return random.uniform(0.5, 1.0) * min(longest, 2.0 ** min(attempt, 16))  # noqa: S311

    def _wait(self, seconds: float, stop: threading.Event) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not stop.wait(min(left, self._settings.status_interval_s)):
            self._end_of_patience()
            self._report_if_due()
            self._flush(stop)

    def _end_of_patience(self) -> None:
        """End the tracks of a camera that has been away for so long that whoever comes then is somebody else."""
        if self._view is not None and time.monotonic() - self._looked_at > self._settings.reconnect_bridge_s:
            self._close_view()

    def _close_view(self) -> None:
        if self._view is not None:
            self._take(close_view(self._view))
            self._view = None

    def _one_connection(self, detector: Detector, stop: threading.Event) -> None:
        if self.state.state not in {"connecting", "running"}:
            self._report()
        if self.camera.live:
            self._watch_live(detector, stop)
            return
        with closing(self._connect(self.camera)) as source:
            self._connected()
            try:
                self._watch(detector, self._counted(source.frames()), stop)
                self._close_view()
            finally:
                self._flush(stop)

    def _watch_live(self, detector: Detector, stop: threading.Event) -> None:
        settings = self._settings
        self._left_behind = [thread for thread in self._left_behind if thread.is_alive()]
        self._telemetry.set(metrics.READERS_LEFT, len(self._left_behind), **self._labels)
        if len(self._left_behind) >= MOST_LEFT_BEHIND:
            raise SourceStalled(
                f"camera {self.camera.id}: {len(self._left_behind)} connections hang and do not come back; "
                "restart this worker, and the camera"
            )
        reader = NewestWins(
            lambda: self._connect(self.camera),
            on_frame=self._on_frame,
            on_drop=self._on_drop,
            patience=Patience(
                settings.open_timeout_s, self.camera.stall_timeout_s or settings.stall_timeout_s, settings.max_fps
            ),
            stopped=stop.is_set,
            name=f"source-{self.camera.id}",
        )
        try:
            reader.open()
            if stop.is_set():
                return
            self._connected()
            try:
                self._watch(detector, reader.frames(), stop)
            finally:
                self._flush(stop)
        except (SourceStalled, SourceTooFast) as error:
            raise type(error)(f"camera {self.camera.id} at {self.camera.address}: {error}") from None
        finally:
            reader.close()
            if reader.thread.is_alive():
                self._left_behind.append(reader.thread)

    def _connected(self) -> None:
        self.state.connections += 1
        if self.state.connections > 1:
            self._telemetry.add(metrics.RECONNECTS, **self._labels)

    def _view_at(self, at: float, *, blind_until_now: bool) -> View:
        """Give the view to go on with at *at*: the one before a short loss, so that nobody who is still there counts twice."""
        view, settings = self._view, self._settings
        away_s = 0.0 if view is None or view.last_at is None else abs(at - view.last_at)
        if blind_until_now and away_s > settings.reconnect_bridge_s:
            self._close_view()
            view = None
        if view is None:
            # Two within one second still differ, and a restarted worker's come after.
            self._connection = max(self._connection + 1, int(time.time()))
            identity = Identity(self.camera.id, self.camera.site, self._connection, self._attributes)
            view = self._view = open_view(identity, self._cutter, view_config(self.camera, settings), self._gallery)
        return view

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

    def _watch(self, detector: Detector, frames: Iterator[Frame], stop: threading.Event) -> None:
        settings = self._settings
        eye = _Eye(detector, Cadence(self.camera.detect_fps or settings.detect_fps, settings.least_detect_fps))
        for frame in frames:
            if stop.is_set():
                return
            if self.state.state != "running":
                self._telemetry.set(metrics.CAMERA_UP, 1, **self._labels)
                self._change("running")
            self._report_if_due()
            if not eye.cadence.due(frame.captured_at):
                continue
            view = self._view_at(frame.captured_at, blind_until_now=eye.blind)
            if self._still(eye, view, frame):
                view.last_at = frame.captured_at
                self._telemetry.add(metrics.STILL, **self._labels)
                continue
            image = frame.image()
            faces = self._search(eye, view, image, frame)
            if faces is None:
                eye.blind = True
                continue
            at = frame.captured_at
            if view.last_at is not None:
                at = max(at, view.last_at)  # anchored anew, a clock may have gone back a little
                if eye.blind:
                    blind(view, at - view.last_at)
            eye.blind, eye.searched_at = False, frame.captured_at
            self._looked_at = time.monotonic()
            result = look(view, image, faces, at)
            if self._on_look is not None:
                self._on_look(at, result)
            self._take(result)
            self._flush(stop)
            if self.camera.live:
                age_s = time.time() - frame.captured_at
                eye.cadence.feel(age_s, time.monotonic())
                self._telemetry.observe(metrics.PICTURE_AGE, max(0.0, age_s))
                self._telemetry.set(metrics.DETECT_FPS, eye.cadence.fps, **self._labels)

    def _still(self, eye: _Eye, view: View, frame: Frame) -> bool:
        """Tell whether a picture can be passed by: nobody is there, nothing has moved, and it was searched lately."""
        luma = frame.luma() if self._settings.motion_gate else None
        if luma is None or eye.motion.moved(reduced(luma)) or view.tracker.tracks or eye.searched_at is None:
            return False
        return 0 <= frame.captured_at - eye.searched_at < self._settings.still_s

    def _search(self, eye: _Eye, view: View, image: Image, frame: Frame) -> Sequence[FaceBox] | None:
        """Find the faces of a picture, or None where it shows nothing that can be relied on."""
        fault = eye.gate.judge(image, frame.captured_at, corrupt=frame.corrupt)
        if fault:
            self._telemetry.add(metrics.BAD_FRAMES, reason=fault, **self._labels)
        if fault == "repeated":
            since = eye.gate.repeated_since or frame.captured_at
            # The same picture shows the same faces; but nobody stands that still for long: then it is the camera.
            return eye.known if frame.captured_at - since < REPEATED_S else ()
        if fault:
            return None
        with self._telemetry.timed(metrics.DETECTION_SECONDS):
            eye.known = self._found(self._detect(eye, view, image, frame.captured_at))
        return eye.known

    def _detect(self, eye: _Eye, view: View, image: Image, at: float) -> Sequence[FaceBox]:
        """Search the whole picture, or, in between, only where the people who are followed should be."""
        around: list[Region] = []
        max_side_px = self.camera.max_side_px or self._settings.max_side_px
        foreseen = not eye.blind and view.last_at is not None and at - view.last_at < FORESEEN_S
        if foreseen and eye.partial + 1 < self._settings.full_look_every:
            around = regions(view.tracker.tracks, at, (image.shape[1], image.shape[0]), max_side_px)
        if not around:
            eye.partial = 0
            return eye.detector.detect(image)
        eye.partial += 1
        return search(eye.detector, image, around, max_side_px)

    def _found(self, faces: Sequence[FaceBox]) -> Sequence[FaceBox]:
        self._telemetry.add(metrics.FRAMES_DETECTED, **self._labels)
        self._telemetry.add(metrics.FACES, len(faces), **self._labels)
        return faces

    def _take(self, result: Look) -> None:
        for message in result.messages:
            self._outbox.post(FACE_CROPS, self._seal(message) if isinstance(message, FaceCrop) else message)
            if isinstance(message, FaceCrop):
                self._telemetry.add(metrics.CROPS, **self._labels)
        for side_px in result.face_sizes_px:
            self._telemetry.observe(metrics.FACE_SIZE, side_px, **self._labels)
        if result.tracks_ended:
            self.state.tracks += result.tracks_ended
            self._telemetry.add(metrics.TRACKS, result.tracks_ended, **self._labels)
        for reason, amount in result.rejects.items():
            if amount:
                self._telemetry.add(metrics.REJECTS, amount, reason=reason, **self._labels)

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
        present = self._view.present if self._view is not None and state.state == "running" else 0
        self._telemetry.set(metrics.CAMERA_FPS, fps, **self._labels)
        self._telemetry.set(metrics.PRESENT, present, **self._labels)
        advice = self._gallery.advice()
        for text in advice:
            if text not in self._advice:
                log.warning("face_does_not_move", camera=self.camera.id, advice=text)
        self._advice = advice
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
            present=present,
            advice="; ".join(advice),
        )
        self._outbox.post(PREDICTIONS, status)
