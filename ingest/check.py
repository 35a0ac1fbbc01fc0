"""Does this camera work, and is its picture good for counting? Opens each one, looks for a few seconds, says what to change."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from ingest.av_source import AvSource
from ingest.yunet_detector import YunetDetector
from pipeline.cameras import Camera
from pipeline.errors import SourceLost
from pipeline.settings import IngestSettings

SMALL_FACE_PX: Final = 60
DARK: Final = 45.0


@dataclass
class Check:
    """What was found out about one camera."""

    camera: str
    address: str
    problem: str = ""  # why it gives no picture
    codec: str = ""
    width: int = 0
    height: int = 0
    fps: float = 0.0
    first_frame_s: float = 0.0
    frames: int = 0
    faces: int = 0
    face_px: float = 0.0  # median of the smaller side
    brightness: float = 0.0  # 0..255
    advice: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Give it as JSON's types."""
        return asdict(self)


def check_cameras(cameras: Sequence[Camera], settings: IngestSettings, *, seconds: float) -> list[Check]:
    """Look at every camera for *seconds*, several at a time, in their order."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda camera: check_camera(camera, settings, seconds=seconds), cameras))


def check_camera(camera: Camera, settings: IngestSettings, *, seconds: float) -> Check:
    """Look at one camera for *seconds*."""
    check = Check(camera.id, camera.address)
    started = time.monotonic()
    try:
        source = AvSource(camera, open_timeout_s=settings.open_timeout_s, read_timeout_s=settings.read_timeout_s)
        with closing(source):
            _look(check, source, camera, settings, started, seconds)
    except SourceLost as error:
        if not check.frames:
            check.problem = str(error)
    if not check.frames and not check.problem:
        check.problem = (
            f"camera {camera.id} at {camera.address} opened but gave no frame; restart it, or name another stream"
        )
    if check.frames:
        _advise(check, settings)
    return check


def _look(
    check: Check, source: AvSource, camera: Camera, settings: IngestSettings, started: float, seconds: float
) -> None:
    context = source.stream.codec_context
    check.codec, check.width, check.height = context.name, context.width, context.height
    detector = YunetDetector(settings.detector_model, max_side_px=camera.max_side_px or settings.max_side_px)
    sizes: list[float] = []
    brightness: list[float] = []
    first_at = last_at = due = 0.0
    for frame in source.frames():
        if not check.frames:
            check.first_frame_s = round(time.monotonic() - started, 2)
            first_at, began = frame.captured_at, time.monotonic()
        check.frames += 1
        last_at = frame.captured_at
        if frame.captured_at >= due:
            due = frame.captured_at + 0.5
            image = frame.image()
            brightness.append(float(image[::8, ::8].mean()))
            sizes += [face.side_px for face in detector.detect(image) if face.score >= 0.7]
        if time.monotonic() - began >= seconds:
            break
    if check.frames > 1 and last_at > first_at:
        check.fps = round((check.frames - 1) / (last_at - first_at), 1)
    check.faces = len(sizes)
    check.face_px = round(median(sizes), 0) if sizes else 0.0
    check.brightness = round(median(brightness), 0) if brightness else 0.0


def _advise(check: Check, settings: IngestSettings) -> None:
    if check.faces and check.face_px < SMALL_FACE_PX:
        check.advice.append(
            f"faces are {check.face_px:.0f} px wide; age and gender want {SMALL_FACE_PX} px: zoom in or move the camera closer"
        )
    if check.brightness < DARK:
        check.advice.append("the picture is dark: add light or lengthen the exposure")
    if check.fps and check.fps < settings.detect_fps:
        check.advice.append(
            f"{check.fps:g} fps is less than detect_fps {settings.detect_fps:g}: raise the camera's frame rate"
        )
    if check.codec == "hevc":
        check.advice.append("H.265 costs about twice as much to decode as H.264: choose H.264 if the camera has it")
    if check.width * check.height > 1920 * 1080:
        check.advice.append("more than 1080p costs decoding and finds no more faces: use the camera's second stream")


def show_checks(checks: Sequence[Check]) -> None:
    """Print a table, and below it what to change."""
    console = Console(highlight=False)
    table = Table("camera", "address", "codec", "size", "fps", "first frame", "faces", "their size", "state")
    for check in checks:
        if check.problem:
            table.add_row(check.camera, check.address, "", "", "", "", "", "", "[red]failed[/red]")
        else:
            table.add_row(
                check.camera, check.address, check.codec, f"{check.width}x{check.height}", f"{check.fps:g}",
                f"{check.first_frame_s:.1f} s", str(check.faces), f"{check.face_px:.0f} px" if check.faces else "",
                "[green]ok[/green]",
            )  # fmt: skip
    console.print(table)
    for check in checks:
        for line in (
            [check.problem] if check.problem else [f"camera {check.camera}: {advice}" for advice in check.advice]
        ):
            console.print(line, markup=False)
