"""Does this camera work, and is its picture good for counting? Opens each one, looks for a few seconds, says what to change."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ingest.av_source import AvSource
from ingest.detection import open_detection
from ingest.detector import FaceBox, Image
from ingest.frames import fault_of
from ingest.pictures import around, exclusion
from ingest.reach import Reach
from pipeline.cameras import Camera
from pipeline.errors import ConfigError, SourceLost
from pipeline.settings import IngestSettings

SURE: Final = 0.7
SMALL_FACE_PX: Final = 60
DARK: Final = 45.0
LONG_GOP_S: Final = 4.0
LOOK_EVERY_S: Final = 0.5


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
    smallest_face_px: float = 0.0
    brightness: float = 0.0  # 0..255
    key_frame_s: float = 0.0  # between two of them; 0 where fewer than two came
    timestamps: bool = True
    bad_frames: int = 0  # of those looked at
    hwaccel: str = ""  # hardware that decodes, where it was asked for and is there
    snapshot: str = ""  # where the picture was written, if that was asked for
    advice: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Give it as JSON's types."""
        return asdict(self)


@dataclass
class _Seen:
    """What the looks at one camera have shown."""

    faces: list[list[FaceBox]] = field(default_factory=list)  # per look
    brightness: list[float] = field(default_factory=list)
    keys: list[float] = field(default_factory=list)  # when key frames came
    size: tuple[int, int] = (0, 0)
    best: tuple[int, Image, list[FaceBox]] | None = None  # the picture that shows most faces


def check_cameras(
    cameras: Sequence[Camera], settings: IngestSettings, *, seconds: float, snapshots: Path | None = None
) -> list[Check]:
    """Look at every camera for *seconds*, several at a time, in their order; pictures go to *snapshots*, if given."""
    if snapshots is not None:
        try:
            snapshots.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--snapshot {snapshots}: cannot be made ({error.strerror})") from None
    with ThreadPoolExecutor(8) as pool:
        return list(
            pool.map(lambda camera: check_camera(camera, settings, seconds=seconds, snapshots=snapshots), cameras)
        )


def check_camera(camera: Camera, settings: IngestSettings, *, seconds: float, snapshots: Path | None = None) -> Check:
    """Look at one camera for *seconds*."""
    check, seen = Check(camera.id, camera.address), _Seen()
    started = time.monotonic()
    try:
        source = AvSource(
            camera,
            open_timeout_s=settings.open_timeout_s,
            read_timeout_s=settings.read_timeout_s,
            hwaccel=settings.hwaccel,
            reach=Reach(settings.schemes, settings.networks),
        )
        with closing(source):
            _look(check, seen, source, camera, settings, started, seconds)
    except SourceLost as error:
        if not check.frames:
            check.problem = str(error)
    if not check.frames and not check.problem:
        check.problem = (
            f"camera {camera.id} at {camera.address} opened but gave no frame; restart it, or name another stream"
        )
    if check.frames:
        _conclude(check, seen)
        _advise(check, seen, camera, settings)
        if snapshots is not None and seen.best is not None:
            check.snapshot = _write(snapshots / f"{camera.id}.jpg", camera, seen.best[1], seen.best[2], settings)
    return check


def _look(
    check: Check,
    seen: _Seen,
    source: AvSource,
    camera: Camera,
    settings: IngestSettings,
    started: float,
    seconds: float,
) -> None:
    context = source.stream.codec_context
    check.codec, check.hwaccel = context.name, source.hardware
    detector = open_detection(settings.detector, settings.detector_model)(camera.max_side_px or settings.max_side_px)
    first_at = last_at = due = 0.0
    for frame in source.frames():
        if not check.frames:
            check.first_frame_s = round(time.monotonic() - started, 2)
            first_at, began = frame.captured_at, time.monotonic()
        check.frames += 1
        check.timestamps = check.timestamps and frame.timed
        last_at = frame.captured_at
        if frame.key:
            seen.keys.append(frame.captured_at)
        if frame.captured_at >= due:
            due = frame.captured_at + LOOK_EVERY_S
            image = frame.image()
            seen.size = (int(image.shape[1]), int(image.shape[0]))
            seen.brightness.append(float(image[::8, ::8].mean()))
            check.bad_frames += bool(fault_of(image)) or frame.corrupt
            faces = [face for face in detector.detect(image) if face.score >= SURE]
            seen.faces.append(faces)
            if seen.best is None or len(faces) > seen.best[0]:
                seen.best = (len(faces), image, faces)
        if time.monotonic() - began >= seconds:
            break
    check.width, check.height = seen.size
    if check.frames > 1 and last_at > first_at:
        check.fps = round((check.frames - 1) / (last_at - first_at), 1)


def _conclude(check: Check, seen: _Seen) -> None:
    sizes = [face.side_px for faces in seen.faces for face in faces]
    check.faces = len(sizes)
    if sizes:
        check.face_px, check.smallest_face_px = round(median(sizes), 0), round(min(sizes), 0)
    check.brightness = round(median(seen.brightness), 0) if seen.brightness else 0.0
    if len(seen.keys) > 1:
        check.key_frame_s = round((seen.keys[-1] - seen.keys[0]) / (len(seen.keys) - 1), 2)


def _advise(check: Check, seen: _Seen, camera: Camera, settings: IngestSettings) -> None:
    side = camera.max_side_px or settings.max_side_px
    detect_fps = camera.detect_fps or settings.detect_fps
    rules = (
        (
            check.faces and check.face_px < SMALL_FACE_PX,
            f"faces are {check.face_px:.0f} px wide; age and gender want {SMALL_FACE_PX} px: zoom in or move the camera closer",
        ),
        (
            not check.faces and max(seen.size) > side,
            f"nobody's face was seen; if there was somebody, search more of the picture: max_side_px: {max(seen.size)}",
        ),
        (check.brightness < DARK, "the picture is dark: add light or lengthen the exposure"),
        (
            check.fps and check.fps < detect_fps,
            f"{check.fps:g} fps is less than detect_fps {detect_fps:g}: raise the camera's frame rate",
        ),
        (
            check.codec == "hevc" and not check.hwaccel,
            "H.265 without hardware costs about twice as much to decode as H.264: choose H.264 where there is, or set hwaccel",
        ),
        (
            check.width * check.height > 1920 * 1080,
            "more than 1080p costs decoding and finds no more faces: use the camera's second stream",
        ),
        (
            not check.timestamps,
            "the stream has no timestamps: times are those of arrival, and a slow network shifts them; prefer RTSP",
        ),
        (
            check.key_frame_s > LONG_GOP_S,
            f"a key frame every {check.key_frame_s:g} s: that long a new connection may stay without a picture; 1 to 2 s is good",
        ),
        (
            check.bad_frames * 5 > len(seen.faces),
            f"{check.bad_frames} of {len(seen.faces)} pictures show nothing (dark, flat, torn): check lens, light and network",
        ),
    )
    check.advice += [text for holds, text in rules if holds]
    for x, y, w, h in still_faces(seen.faces, seen.size):
        shown = exclusion((x, y, x + w, y + h))
        check.advice.append(
            f"a face at {x + w / 2:.2f}, {y + h / 2:.2f} does not move at all: if it is a poster or a screen, exclude: [{shown}]"
        )


def still_faces(looks: Sequence[Sequence[FaceBox]], size: tuple[int, int]) -> list[tuple[float, float, float, float]]:
    """Find the faces that are in nearly every look at the same place to a twentieth of their size: pictures of faces.

    Gives (left, top, width, height) in relative coordinates, with a margin.
    """
    if len(looks) < 6:
        return []
    found = []
    for face in looks[0]:
        x, y = (face.xyxy[0] + face.xyxy[2]) / 2, (face.xyxy[1] + face.xyxy[3]) / 2
        reach = face.side_px / 20
        same = sum(
            any(
                abs((f.xyxy[0] + f.xyxy[2]) / 2 - x) <= reach and abs((f.xyxy[1] + f.xyxy[3]) / 2 - y) <= reach
                for f in faces
            )
            for faces in looks
        )
        if same >= 0.9 * len(looks):
            left, top, right, bottom = around(face, size)
            found.append((left, top, right - left, bottom - top))
    return found


def _write(path: Path, camera: Camera, image: Image, faces: Sequence[FaceBox], settings: IngestSettings) -> str:
    """Write the picture with the faces and the camera's rule drawn on it."""
    drawn = image.copy()
    height, width = drawn.shape[:2]
    thick = max(1, width // 640)

    def corners(polygon: Sequence[tuple[float, float]]) -> NDArray[np.int32]:
        return (np.array(polygon) * (width, height)).round().astype(np.int32)

    for polygon in camera.exclude:
        cv2.polylines(drawn, [corners(polygon)], isClosed=True, color=(60, 60, 220), thickness=2 * thick)
    if camera.zone is not None:
        cv2.polylines(drawn, [corners(camera.zone)], isClosed=True, color=(220, 160, 40), thickness=2 * thick)
    if camera.line is not None:
        start, end, inside = (
            tuple(point.tolist()) for point in corners((camera.line.start, camera.line.end, camera.line.inside))
        )
        cv2.line(drawn, start, end, (220, 160, 40), 2 * thick)
        cv2.arrowedLine(drawn, ((start[0] + end[0]) // 2, (start[1] + end[1]) // 2), inside, (220, 160, 40), thick)
    for face in faces:
        good = face.side_px >= settings.least_face_px
        left, top, right, bottom = (round(value) for value in face.xyxy)
        colour = (80, 200, 80) if good else (40, 140, 240)
        cv2.rectangle(drawn, (left, top), (right, bottom), colour, thick)
        cv2.putText(
            drawn,
            f"{face.side_px:.0f} px",
            (left, max(12, top - 4)),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.45 * thick,
            colour,
            thick,
        )
    if not cv2.imwrite(str(path), drawn):
        raise ConfigError(f"--snapshot {path.parent}: {path.name} cannot be written there")
    return str(path)


def show_checks(checks: Sequence[Check]) -> None:
    """Print a table, and below it what to change."""
    console = Console(highlight=False)
    table = Table(
        "camera", "address", "codec", "size", "fps", "first frame", "key frames", "faces", "their size", "state"
    )
    for check in checks:
        if check.problem:
            table.add_row(check.camera, check.address, *[""] * 7, "[red]failed[/red]")
        else:
            table.add_row(
                check.camera, check.address, check.codec, f"{check.width}x{check.height}", f"{check.fps:g}",
                f"{check.first_frame_s:.1f} s", f"every {check.key_frame_s:g} s" if check.key_frame_s else "",
                str(check.faces), f"{check.smallest_face_px:.0f}, median {check.face_px:.0f} px" if check.faces else "",
                "[green]ok[/green]",
            )  # fmt: skip
    console.print(table)
    for check in checks:
        for line in (
            [check.problem] if check.problem else [f"camera {check.camera}: {advice}" for advice in check.advice]
        ):
            console.print(line, markup=False)
        if check.snapshot:
            console.print(f"camera {check.camera}: picture written to {check.snapshot}", markup=False)
