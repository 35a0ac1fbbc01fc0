"""Pictures that show nothing are told by what is wrong with them, and good ones pass, whatever they show."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.backdrops import VIEWS
from ingest.detector import Image
from ingest.frames import FRAME_REJECTS, FrameGate, MotionGate, fault_of, reduced
from tests.ingest.conftest import picture

SIZE = (640, 360)


def scene(name: str = "hall") -> Image:
    """Give a room as a camera sees it, with its noise."""
    ground = VIEWS[name](SIZE)
    noise = np.random.default_rng(0).normal(0, 2, ground.shape)
    return np.clip(ground + noise, 0, 255).astype(np.uint8)


def plain(*colour: int) -> Image:
    """Give a picture of one colour."""
    return np.full((360, 640, 3), colour, np.uint8)


def smeared(share: float) -> Image:
    """Fill the lower share with its first row, as a decoder does that has lost a slice."""
    image = scene()
    row = round(360 * (1 - share))
    image[row:] = image[row]
    return image


def half(colour: tuple[int, int, int], share: float) -> Image:
    """Paint the lower share in one colour."""
    image = scene()
    image[round(360 * (1 - share)) :] = colour
    return image


@pytest.mark.parametrize(
    ("image", "fault"),
    [
        (plain(0, 0, 0), "dark"),
        ((scene() * 0.05).astype(np.uint8), "dark"),
        (plain(90, 90, 90), "flat"),
        (plain(255, 255, 255), "flat"),
        (half((0, 135, 0), 0.3), "green"),
        (half((128, 128, 128), 0.5), "torn"),
        (smeared(0.4), "torn"),
    ],
)
def test_a_bad_picture_is_told_by_its_fault(image: Image, fault: str) -> None:
    """Of a closed set, for the metric."""
    assert fault_of(image) == fault
    assert fault in FRAME_REJECTS


@pytest.mark.parametrize("name", VIEWS)
def test_ordinary_rooms_pass(name: str) -> None:
    """By day, at dusk, without any noise, blurred, and as a tight encoder leaves them."""
    for light in (1.0, 0.5, 0.25):
        dimmed = (scene(name) * light).astype(np.uint8)
        assert fault_of(dimmed) == ""
        assert fault_of(np.asarray(cv2.GaussianBlur(dimmed, (0, 0), 3), np.uint8)) == ""
        _, jpeg = cv2.imencode(".jpg", dimmed, (cv2.IMWRITE_JPEG_QUALITY, 30))
        assert fault_of(np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), np.uint8)) == ""
    assert fault_of(VIEWS[name](SIZE)) == ""


def test_what_looks_like_a_fault_a_little_is_none() -> None:
    """A lawn, a grey floor, a band below the picture."""
    lawn = scene()
    lawn[250:] = np.random.default_rng(1).integers((20, 90, 30), (60, 150, 80), (110, 640, 3))
    barred = scene()
    barred[300:] = 0
    assert fault_of(lawn) == fault_of(barred) == fault_of(half((128, 128, 128), 0.2)) == ""


def test_the_decoders_own_word_is_taken() -> None:
    """It knows best where it had to guess."""
    assert FrameGate().judge(picture(1), 0.0, corrupt=True) == "corrupt"


def test_a_picture_that_repeats_is_told_since_when() -> None:
    """And one that differs ends it."""
    gate = FrameGate()
    assert [gate.judge(picture(n), float(at)) for at, n in enumerate((1, 1, 1))] == ["", "repeated", "repeated"]
    assert gate.repeated_since == 1.0
    assert gate.judge(scene(), 3.0) == ""
    assert gate.repeated_since is None


# ── motion ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def grey(image: Image) -> np.ndarray:
    """Give the brightness of a picture, reduced."""
    return reduced(np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8))


def noisy(image: Image, seed: int) -> Image:
    """Give the picture as the sensor sees it next time."""
    return np.clip(image + np.random.default_rng(seed).normal(0, 3, image.shape), 0, 255).astype(np.uint8)


def test_noise_is_no_motion_and_a_person_is() -> None:
    """A face of 24 px in a picture of 640, and its shirt."""
    gate, room = MotionGate(), VIEWS["hall"](SIZE)
    assert gate.moved(grey(room)), "the first picture is news"
    assert not any(gate.moved(grey(noisy(room, n))) for n in range(50))
    person = room.copy()
    person[100:124, 300:324] = (60, 70, 110)
    assert gate.moved(grey(noisy(person, 99)))


def test_light_that_changes_slowly_is_no_motion_and_a_switch_is() -> None:
    """The sun in a minute; a lamp at once, and then no more."""
    gate, room = MotionGate(), VIEWS["hall"](SIZE)
    gate.moved(grey(room))
    assert not any(gate.moved(grey((room * (1 - n / 600)).astype(np.uint8))) for n in range(150))
    dark = (room * 0.4).astype(np.uint8)
    assert gate.moved(grey(dark))
    assert not gate.moved(grey(dark))


@given(st.integers(32, 3000), st.integers(32, 2000))
def test_a_picture_of_any_size_is_reduced_to_a_few_cells(width: int, height: int) -> None:
    """To about 160 columns, of the mean brightness."""
    cells = reduced(np.full((height, width), 77, np.uint8))
    assert cells.shape[1] <= 330
    assert cells.size
    assert (cells == 77).all()
