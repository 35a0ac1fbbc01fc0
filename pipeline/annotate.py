"""`demographics predict`: what the product sees, drawn on a picture or a film. The only place where pictures are written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import av
import cv2
import numpy as np
from pydantic import SecretStr
from rich.progress import Progress

from aggregator.fusion import Evidence, Visitor, fuse
from inference.heads import Heads, read_heads
from inference.tensorflow_predictor import TensorFlowPredictor
from ingest.alignment import align
from ingest.av_source import AvSource
from ingest.detector import FaceBox, Image
from ingest.quality import quality
from ingest.tracker import Track, Tracker
from ingest.yunet_detector import YunetDetector
from pipeline.attributes import Attribute
from pipeline.cameras import Camera
from pipeline.errors import ConfigError, SourceLost
from pipeline.settings import Settings

PICTURES: Final = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
FILMS: Final = frozenset({".mp4", ".mkv", ".mov", ".avi"})
LABEL_EVERY_S: Final = 0.3
SEARCH_PX: Final = 1280
_COLOUR: Final = (180, 119, 31)  # BGR


def annotate(path: Path, out: Path, settings: Settings, model: Path) -> dict[str, Any]:
    """Label every face of *path* and write the drawing to *out*; gives what was found. Raises ConfigError."""
    problems = []
    if not path.is_file():
        problems.append(f"{path}: no such file; name a picture or a film")
    picture = path.suffix.lower() in PICTURES
    if picture and out.suffix.lower() not in PICTURES:
        problems.append(f"{out}: a picture is written to one of {', '.join(sorted(PICTURES))}")
    if not picture and out.suffix.lower() not in FILMS:
        problems.append(f"{out}: a film is written to one of {', '.join(sorted(FILMS))}")
    if not out.parent.is_dir():
        problems.append(f"{out.parent}: no such folder; make it first")
    if problems:
        raise ConfigError(problems)
    predictor = TensorFlowPredictor(model, threads=settings.inference.threads)
    detector = YunetDetector(settings.ingest.detector_model, max_side_px=max(SEARCH_PX, settings.ingest.max_side_px))
    labeller = _Labeller(predictor, detector, settings.attributes)
    return labeller.picture(path, out) if picture else labeller.film(path, out)


class _Labeller:
    def __init__(
        self, predictor: TensorFlowPredictor, detector: YunetDetector, attributes: Sequence[Attribute]
    ) -> None:
        self._predictor = predictor
        self._detector = detector
        self._attributes = attributes

    def heads(self, image: Image, faces: Sequence[FaceBox]) -> Heads:
        crops = [align(image, face.landmarks, self._predictor.manifest.crop)[..., ::-1] for face in faces]
        side = self._predictor.manifest.crop.size_px
        batch = np.stack(crops) if crops else np.zeros((0, side, side, 3), np.uint8)
        return read_heads(self._predictor.predict(np.ascontiguousarray(batch)), self._predictor.manifest)

    def evidence(self, heads: Heads, row: int, sequence: int, weight: float) -> Evidence:
        return Evidence(
            sequence,
            max(weight, 1e-3),
            float(heads.age[row]) if "age" in self._attributes else None,
            float(heads.p_female[row]) if "gender" in self._attributes else None,
            tuple(float(p) for p in heads.p_ethnicity[row]) if "ethnicity" in self._attributes else None,
        )

    def picture(self, path: Path, out: Path) -> dict[str, Any]:
        read = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if read is None:
            raise ConfigError(f"{path}: not a picture that can be decoded; name a JPEG or PNG")
        image: Image = np.asarray(read, np.uint8)
        faces = [face for face in self._detector.detect(image) if face.score >= 0.6]
        if not faces:  # a face that fills the picture: give the detector some border to see it in
            faces = _found_with_border(self._detector, image)
        heads = self.heads(image, faces)
        visitors = [fuse([self.evidence(heads, row, 0, 1.0)], 0.0) for row in range(len(faces))]
        for face, visitor in zip(faces, visitors, strict=True):
            draw(image, face, caption(visitor))
        if not cv2.imwrite(str(out), image):
            raise ConfigError(f"{out}: cannot be written; check the folder's rights")
        return {"faces": [_document(face, visitor) for face, visitor in zip(faces, visitors, strict=True)]}

    def film(self, path: Path, out: Path) -> dict[str, Any]:
        tracker, evidence, labelled = Tracker(), dict[int, list[Evidence]](), dict[int, float]()
        camera = Camera(id="film", url=SecretStr(str(path.resolve())))
        frames = 0
        try:
            source = AvSource(camera, open_timeout_s=10, read_timeout_s=10)
            rate = source.stream.average_rate or 25
            total = source.stream.frames or None
            with av.open(str(out), "w") as container, Progress() as progress:
                task = progress.add_task(f"labelling {path.name}", total=total)
                stream = container.add_stream("libx264", rate=rate)
                stream.pix_fmt = "yuv420p"
                stream.options = {"crf": "20", "preset": "veryfast"}
                for frame in source.frames():
                    image = np.ascontiguousarray(frame.image())
                    if not frames:
                        stream.height, stream.width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
                    self._label(tracker, image, frame.captured_at, evidence, labelled)
                    picture = av.VideoFrame.from_ndarray(image[: stream.height, : stream.width], format="bgr24")
                    container.mux(stream.encode(picture))
                    frames += 1
                    progress.advance(task)
                container.mux(stream.encode())
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


def _found_with_border(detector: YunetDetector, image: Image) -> list[FaceBox]:
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


def draw(image: Image, face: FaceBox, text: str) -> None:
    """Draw a box and its caption into *image*, at a size that suits the face."""
    left, top, right, bottom = (round(value) for value in face.xyxy)
    thickness = max(1, round(face.side_px / 60))
    cv2.rectangle(image, (left, top), (right, bottom), _COLOUR, thickness, cv2.LINE_AA)
    scale = float(np.clip(face.side_px / 170, 0.4, 1.2))
    (width, height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    bottom_of_text = top if top > height + base + 4 else bottom + height + base + 4
    x = int(np.clip(left, 0, max(0, image.shape[1] - width - 6)))
    cv2.rectangle(image, (x, bottom_of_text - height - base - 4), (x + width + 6, bottom_of_text), _COLOUR, cv2.FILLED)
    where = (x + 3, bottom_of_text - base - 1)
    cv2.putText(image, text, where, cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), thickness, cv2.LINE_AA)


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
