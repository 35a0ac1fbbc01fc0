"""`demographics predict`: what the product sees, drawn on pictures and films. The only place where pictures are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av
import cv2
import numpy as np
from pydantic import SecretStr
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress import track as with_progress

from aggregator.fusion import Evidence, Visitor, fuse
from inference.heads import Heads, read_heads
from inference.predictor import Engine
from inference.service import engine_of
from ingest.alignment import align
from ingest.av_source import AvSource
from ingest.detection import open_detection
from ingest.detector import Detector, FaceBox, Image
from ingest.quality import quality
from ingest.tracker import Track, Tracker
from pipeline.attributes import Attribute
from pipeline.cameras import Camera
from pipeline.errors import ConfigError, SourceLost
from pipeline.settings import Settings

PICTURES: Final = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
FILMS: Final = frozenset({".mp4", ".mkv", ".mov", ".avi"})
LABEL_EVERY_S: Final = 0.3
SEARCH_PX: Final = 1280
LEAST_DRAWN_PX: Final = 400
_COLOUR: Final = (180, 119, 31)  # BGR
_FONT: Final = cv2.FONT_HERSHEY_SIMPLEX
_FILM_COLUMNS: Final = (
    TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("frames"), TimeRemainingColumn()
)  # fmt: skip


def annotate(path: Path, out: Path | None, settings: Settings, model: Path) -> dict[str, Any]:
    """Label every face of *path*, a picture, a film or a folder of them, and draw it into *out*; gives what was found.

    A folder's drawings go into the folder *out* under the names that they have; a file of it that cannot be read is left
    out, and its entry says the problem. Raises ConfigError where nothing can be done.
    """
    files = _files(path)
    folder = path.is_dir()
    problems = [] if out is None else _unwritable(path, out)
    if not files:
        kinds = ", ".join(sorted(PICTURES | FILMS))
        problems.append(f"{path}: {'no picture or film in it' if folder else 'no such file'}; name one of {kinds}")
    if problems:
        raise ConfigError(problems)
    predictor = engine_of(settings.inference, model=model)
    detection = open_detection(settings.ingest.detector, settings.ingest.detector_model)
    detector = detection(max(SEARCH_PX, settings.ingest.max_side_px))
    labeller = _Labeller(predictor, detector, settings.attributes)
    if not folder:
        return labeller.label(path, out)
    if out is not None:
        out.mkdir(exist_ok=True)
    found: dict[str, Any] = {}
    for file in with_progress(files, f"labelling {path.name}", console=Console(stderr=True)):
        try:
            found[file.name] = labeller.label(file, None if out is None else out / file.name)
        except ConfigError as error:
            found[file.name] = {"problem": str(error)}
    return {"files": found}


def _files(path: Path) -> list[Path]:
    """List what is to be labelled: the file itself, or the pictures and films that lie in the folder, by name."""
    if path.is_dir():
        return sorted(each for each in path.iterdir() if each.is_file() and each.suffix.lower() in PICTURES | FILMS)
    return [path] if path.is_file() else []


def _unwritable(path: Path, out: Path) -> list[str]:
    """Say what is wrong with *out* for *path*."""
    problems = []
    if not out.parent.is_dir():
        problems.append(f"{out.parent}: no such folder; make it first")
    if path.is_dir():
        if out.exists() and (not out.is_dir() or out.resolve() == path.resolve()):
            problems.append(f"{out}: a folder's drawings go into another folder; name one with -o")
        return problems
    kinds, word = (PICTURES, "picture") if path.suffix.lower() in PICTURES else (FILMS, "film")
    if out.suffix.lower() not in kinds:
        problems.append(f"{out}: a {word} is written to one of {', '.join(sorted(kinds))}")
    if out.resolve() == path.resolve():
        problems.append(f"{out}: it would write over what it reads; name another file with -o")
    return problems


class _Labeller:
    def __init__(self, predictor: Engine, detector: Detector, attributes: Sequence[Attribute]) -> None:
        self._predictor = predictor
        self._detector = detector
        self._attributes = attributes

    def heads(self, image: Image, faces: Sequence[FaceBox]) -> Heads:
        crops = [align(image, face.landmarks, self._predictor.manifest.crop)[..., ::-1] for face in faces]
        side = self._predictor.manifest.crop.size_px
        batch = np.stack(crops) if crops else np.zeros((0, side, side, 3), np.uint8)
        logits = self._predictor.predict(np.ascontiguousarray(batch))
        return read_heads(logits, self._predictor.manifest, [self._attributes] * len(batch))

    def evidence(self, heads: Heads, row: int, sequence: int, weight: float) -> Evidence:
        return Evidence(
            sequence,
            max(weight, 1e-3),
            float(heads.age[row]) if "age" in self._attributes else None,
            float(heads.p_female[row]) if "gender" in self._attributes else None,
            tuple(float(p) for p in heads.p_ethnicity[row]) if "ethnicity" in self._attributes else None,
        )

    def label(self, path: Path, out: Path | None) -> dict[str, Any]:
        """Label a picture or a film, and write the drawing where *out* says."""
        return self.picture(path, out) if path.suffix.lower() in PICTURES else self.film(path, out)

    def picture(self, path: Path, out: Path | None) -> dict[str, Any]:
        read = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if read is None:
            raise ConfigError(f"{path}: not a picture that can be decoded; name a JPEG or PNG")
        image: Image = np.asarray(read, np.uint8)
        faces = [face for face in self._detector.detect(image) if face.score >= 0.6]
        if not faces:  # a face that fills the picture: give the detector some border to see it in
            faces = _found_with_border(self._detector, image)
        heads = self.heads(image, faces)
        visitors = [fuse([self.evidence(heads, row, 0, 1.0)], 0.0) for row in range(len(faces))]
        if out is not None:
            times = max(1, -(-LEAST_DRAWN_PX // min(image.shape[:2])))  # or the captions would not fit
            drawn = np.asarray(cv2.resize(image, None, fx=times, fy=times, interpolation=cv2.INTER_CUBIC), np.uint8)
            for face, visitor in zip(faces, visitors, strict=True):
                draw(drawn, enlarged(face, times), caption(visitor))
            if not cv2.imwrite(str(out), drawn):
                raise ConfigError(f"{out}: cannot be written; check the folder's rights")
        return {"faces": [_document(face, visitor) for face, visitor in zip(faces, visitors, strict=True)]}

    def film(self, path: Path, out: Path | None) -> dict[str, Any]:
        tracker, evidence, labelled = Tracker(), dict[int, list[Evidence]](), dict[int, float]()
        camera = Camera(id="film", url=SecretStr(str(path.resolve())))
        frames = 0
        try:
            source = AvSource(camera, open_timeout_s=10, read_timeout_s=10)
            with ExitStack() as stack:
                progress = stack.enter_context(Progress(*_FILM_COLUMNS, console=Console(stderr=True)))
                task = progress.add_task(f"labelling {path.name}", total=source.stream.frames or None)
                write = None if out is None else _film_writer(out, source.stream.average_rate or Fraction(25), stack)
                for frame in source.frames():
                    image = np.ascontiguousarray(frame.image())
                    self._label(tracker, image, frame.captured_at, evidence, labelled)
                    if write is not None:
                        write(image)
                    frames += 1
                    progress.advance(task)
        except SourceLost as error:
            raise ConfigError(str(error)) from None
        visitors = [fuse(kept, 0.0) for kept in evidence.values()]
        return {"frames": frames, "visitors": [_said(visitor) for visitor in visitors]}

    def _label(
        self, tracker: Tracker, image: Image, at: float, evidence: dict[int, list[Evidence]], labelled: dict[int, float]
    ) -> None:
        seen = [track for track in tracker.update(self._detector.detect(image), at).seen if track.confirmed]
        due: list[Track] = [track for track in seen if at - labelled.get(track.number, 0.0) >= LABEL_EVERY_S]
        heads = self.heads(image, [track.face for track in due])
        for row, track in enumerate(due):
            labelled[track.number] = at
            crop = align(image, track.face.landmarks, self._predictor.manifest.crop)
            kept = evidence.setdefault(track.number, [])
            kept.append(self.evidence(heads, row, len(kept), quality(track.face, crop, image.shape)))
        for track in seen:
            draw(image, track.face, caption(fuse(evidence[track.number], 0.0)))


def _film_writer(out: Path, rate: Fraction, stack: ExitStack) -> Callable[[Image], None]:
    """Open *out* for H.264 at *rate* frames a second until *stack* closes; gives the function that adds a frame."""
    container = stack.enter_context(av.open(str(out), "w"))
    stream = container.add_stream("libx264", rate=rate)
    stream.pix_fmt = "yuv420p"
    stream.options = {"crf": "20", "preset": "veryfast"}

    def end() -> None:
        if stream.width:  # a film without frames has no encoder
            container.mux(stream.encode())

    stack.callback(end)

    def write(image: Image) -> None:
        if not stream.width:
            stream.height, stream.width = (side // 2 * 2 for side in image.shape[:2])
        whole = image[: stream.height, : stream.width]
        container.mux(stream.encode(av.VideoFrame.from_ndarray(whole, format="bgr24")))

    return write


def _found_with_border(detector: Detector, image: Image) -> list[FaceBox]:
    border = max(image.shape[:2]) // 3
    padded = cv2.copyMakeBorder(image, border, border, border, border, cv2.BORDER_REPLICATE)
    moved = np.float32(border)
    found = []
    for face in detector.detect(np.asarray(padded, np.uint8)):
        left, top, right, bottom = (value - border for value in face.xyxy)
        found.append(FaceBox((left, top, right, bottom), face.landmarks - moved, face.score))
    return [face for face in found if face.score >= 0.6]


def caption(visitor: Visitor) -> str:
    """Say in a few words what is thought of a visitor."""
    cell = visitor.cell
    words = [cell.gender, "" if visitor.age is None else f"{visitor.age:.0f}", cell.ethnicity]
    return " ".join(word for word in words if word)


def enlarged(face: FaceBox, times: float) -> FaceBox:
    """Give the face as it lies in a picture *times* as large."""
    left, top, right, bottom = (value * times for value in face.xyxy)
    return FaceBox((left, top, right, bottom), face.landmarks * np.float32(times), face.score)


def draw(image: Image, face: FaceBox, text: str) -> None:
    """Draw a box and its caption into *image*: large enough to read, small enough to fit the picture."""
    left, top, right, bottom = (round(value) for value in face.xyxy)
    height_px, width_px = image.shape[:2]
    thickness = max(1, round(max(face.side_px / 60, min(height_px, width_px) / 700)))
    cv2.rectangle(image, (left, top), (right, bottom), _COLOUR, thickness, cv2.LINE_AA)
    if not text:
        return
    scale = max(0.45, min(height_px, width_px) / 1500, min(face.side_px / 170, width_px / 800))
    (width, _), _ = cv2.getTextSize(text, _FONT, scale, 1)
    scale *= min(1.0, (width_px - 8) / width)
    stroke = max(1, round(scale * 1.2))
    (width, height), base = cv2.getTextSize(text, _FONT, scale, stroke)
    needed = height + base + 4
    text_bottom = top if top > needed else min(bottom + needed, height_px)
    x = int(np.clip(left, 0, max(0, width_px - width - 6)))
    cv2.rectangle(image, (x, text_bottom - needed), (x + width + 6, text_bottom), _COLOUR, cv2.FILLED)
    cv2.putText(image, text, (x + 3, text_bottom - base - 1), _FONT, scale, (255, 255, 255), stroke, cv2.LINE_AA)


def _said(visitor: Visitor) -> dict[str, Any]:
    cell = visitor.cell
    return {
        "age": None if visitor.age is None else round(visitor.age, 1),
        "gender": cell.gender or None,
        "p_female": None if visitor.p_female is None else round(visitor.p_female, 4),
        "ethnicity": cell.ethnicity or None,
    }


def _document(face: FaceBox, visitor: Visitor) -> dict[str, Any]:
    return {"box": [round(value, 1) for value in face.xyxy], "score": round(face.score, 3), **_said(visitor)}
