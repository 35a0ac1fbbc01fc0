"""Cameras, detectors and buses that do as they are told, for the tests of ingest; and films small enough to be quick."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Final

import av
import cv2
import numpy as np
import pytest
from hypothesis import settings
from pydantic import SecretStr

from demo.clip import Clip
from demo.composer import CastMember, compose, load_cast
from demo.rtsp_server import RtspServer
from ingest.detector import FaceBox, Image
from ingest.source import Frame
from ingest.yunet_detector import YunetDetector
from pipeline.bus import FACE_CROPS, PREDICTIONS, Headers
from pipeline.cameras import Camera
from pipeline.errors import TransportError
from pipeline.manifest import DEFAULT_MODEL, CropRecipe, load_manifest
from pipeline.messages import CameraStatus, FaceCrop, Message, TrackEnded, decode
from pipeline.messages import headers as headers_of

settings.register_profile("unhurried", deadline=None)  # a busy machine is no failure
settings.load_profile("unhurried")

PATIENCE_S: Final = 20.0
PASSWORD: Final = "hush-hush/1"  # with a character that an address must escape
FILM_FPS: Final = 25
FILM_FRAMES: Final = 40
QUICK: Final = {"probesize": "32", "analyzeduration": "1", "fpsprobesize": "0"}  # the frame rate need not be guessed

# Right eye, left eye, nose, right and left corner of the mouth, in sides of the face's box.
FRONTAL: Final = np.array([(0.3, 0.3), (0.7, 0.3), (0.5, 0.52), (0.34, 0.72), (0.66, 0.72)], np.float32)
_NOISE: Final = np.random.default_rng(1).integers(40, 216, (360, 640, 3), dtype=np.uint8)


# ── faces, and pictures that tell their number ────────────────────────────────────────────────────────────────────────


def face_at(x: float, y: float = 180.0, *, side: float = 80.0, score: float = 0.9, plausible: bool = True) -> FaceBox:
    """Make a detection whose box has its middle at (x, y); where not *plausible*, its landmarks are upside down mixed."""
    landmarks = FRONTAL if plausible else FRONTAL[[0, 1, 3, 2, 4]] * (1, 0.2)
    corner = np.array((x - side / 2, y - side / 2))
    return FaceBox(
        xyxy=(x - side / 2, y - side / 2, x + side / 2, y + side / 2),
        landmarks=(landmarks * side + corner).astype(np.float32),
        score=score,
    )


def picture(number: int = 0) -> Image:
    """Make a sharp, well lit picture of 640x360 that carries its number."""
    image = _NOISE.copy()
    image[0, 0] = (number & 255, number >> 8 & 255, number >> 16)
    return image


class ScriptedDetector:
    """Finds what the script says of a picture's number."""

    def __init__(self, faces: Callable[[int], Sequence[FaceBox]]) -> None:
        self.looked: list[int] = []
        self._faces = faces

    def detect(self, image: Image) -> Sequence[FaceBox]:
        """Give the script's faces."""
        low, middle, high = (int(value) for value in image[0, 0])
        self.looked.append(low | middle << 8 | high << 16)
        return self._faces(self.looked[-1])


class ScriptedSource:
    """Gives numbered pictures, then ends or raises *then*. A live one goes on when its last picture was looked at."""

    def __init__(
        self, numbers: Iterable[int], *, live: bool, fps: float = 8.0, then: Exception | None = None, start: float = 1e9
    ) -> None:
        self.live = live
        self.closed = False
        self._numbers = numbers
        self._fps = fps
        self._start = start
        self._then = then

    def frames(self) -> Iterator[Frame]:
        """Give picture n at n / fps."""
        for number in self._numbers:
            taken = threading.Event()
            yield Frame(self._start + number / self._fps, partial(_take, number, taken))
            if self.live:
                assert taken.wait(PATIENCE_S), "nobody looked at the picture"
        if self._then is not None:
            raise self._then

    def close(self) -> None:
        """Remember it."""
        self.closed = True


def _take(number: int, taken: threading.Event) -> Image:
    taken.set()
    return picture(number)


# ── a bus that remembers, and says no when it is told to ──────────────────────────────────────────────────────────────


class FakeProducer:
    """Keeps what it is sent. Asked before each record, *refuse* makes it say no; asked at each flush, *lose* a loss."""

    def __init__(self, refuse: Callable[[], bool] = lambda: False, lose: Callable[[], bool] = lambda: False) -> None:
        self.taken: list[tuple[str, bytes, Message]] = []  # what has arrived
        self.refusals = 0
        self.refuse = refuse
        self.lose = lose
        self._in_flight: list[tuple[str, bytes, Message]] = []

    def send(self, topic: str, *, key: bytes, value: bytes, headers: Headers) -> None:
        """Take it on its way, decoded; it has its checksum."""
        assert headers == headers_of(value)
        if self.refuse():
            self.refusals += 1
            raise TransportError("the log is full; send later")
        self._in_flight.append((topic, key, decode(value, headers)))

    def flush(self, timeout_s: float) -> None:
        """See it arrive, or only every other one."""
        arriving, self._in_flight = self._in_flight, []
        if self.lose():
            self.taken += arriving[::2]
            raise TransportError("records were lost; send them again")
        self.taken += arriving

    def close(self) -> None:
        """Let go."""

    @property
    def passages(self) -> list[FaceCrop | TrackEnded]:
        """What was said of people, in order."""
        return [
            said for topic, _, said in self.taken if topic == FACE_CROPS and isinstance(said, FaceCrop | TrackEnded)
        ]

    @property
    def ends(self) -> list[TrackEnded]:
        """Which tracks have ended, in order."""
        return [said for said in self.passages if isinstance(said, TrackEnded)]

    @property
    def states(self) -> list[CameraStatus]:
        """What was said of the camera, in order."""
        return [said for topic, _, said in self.taken if topic == PREDICTIONS and isinstance(said, CameraStatus)]


# ── cameras and films ─────────────────────────────────────────────────────────────────────────────────────────────────


def camera(url: str | Path, *, name: str = "door", **more: object) -> Camera:
    """Describe a camera or file, opened without long probing."""
    return Camera.model_validate({"id": name, "url": SecretStr(str(url)), "site": "museum", "options": QUICK, **more})


def write_numbered_film(path: Path, *, times_s: Sequence[float] = (), first_s: float = 0.0) -> Path:
    """Encode FILM_FRAMES pictures of 128x96 that spell their number in eight bars, a key frame every 0.2 s.

    They are shown 1/FILM_FPS apart from *first_s* on, or at *times_s*.
    """
    options = {"preset": "ultrafast", "crf": "20", "g": "5", "keyint_min": "5", "sc_threshold": "0", "bf": "0"}
    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=FILM_FPS, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for n in range(FILM_FRAMES):
            luma = np.repeat([[235 if n >> bit & 1 else 16 for bit in range(8)]], 96, axis=0).repeat(16, axis=1)
            planes = np.concatenate([luma, np.full((48, 128), 128)]).astype(np.uint8)
            shown = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            shown.pts = round(1000 * (times_s[n] if times_s else first_s + n / FILM_FPS))
            shown.time_base = Fraction(1, 1000)
            film.mux(stream.encode(shown))
        film.mux(stream.encode())
    return path


def number_of(image: Image) -> int:
    """Read the number that a picture of a numbered film spells."""
    row = image[:40].mean(axis=(0, 2)).reshape(8, 16).mean(axis=1)
    return int(sum(1 << bit for bit in range(8) if row[bit] > 128))


@pytest.fixture(scope="session")
def numbered_film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encode a numbered film of 1.6 s."""
    return write_numbered_film(tmp_path_factory.mktemp("films") / "numbers.mp4")


@pytest.fixture(scope="session")
def cast() -> tuple[CastMember, ...]:
    """Load the sixteen faces that come with the demo."""
    return load_cast()


def crowd(members: Sequence[CastMember], places: Sequence[tuple[int, int]], side_px: int) -> Image:
    """Draw faces into a grey picture of 1280x720, their upper left corners at *places*."""
    image = np.full((720, 1280, 3), 128, np.uint8)
    for member, (x, y) in zip(members, places, strict=True):
        image[y : y + side_px, x : x + side_px] = cv2.resize(
            member.face, (side_px, side_px), interpolation=cv2.INTER_AREA
        )
    return image


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory, cast: tuple[CastMember, ...]) -> Clip:
    """Compose a film in which three people cross the hall."""
    path = tmp_path_factory.mktemp("films") / "hall.mp4"
    return compose(path, cast, view="hall", people=3, seconds=9.0, seed=4, size=(640, 360))


@pytest.fixture(scope="session")
def yunet() -> YunetDetector:
    """Load the detector that cameras are watched with."""
    return YunetDetector()


@pytest.fixture(scope="session")
def recipe() -> CropRecipe:
    """Read how the shipped model wants its faces cut."""
    return load_manifest(DEFAULT_MODEL).crop


@pytest.fixture
def rtsp_server() -> Iterator[RtspServer]:
    """Start an RTSP server on a free port."""
    with RtspServer() as started:
        yield started


@pytest.fixture
def guarded(rtsp_server: RtspServer, numbered_film: Path) -> str:
    """Serve the numbered film as `cam`, for those who know the password; gives its address with it."""
    rtsp_server.add("cam", numbered_film, username="viewer", password=PASSWORD)
    return rtsp_server.url("cam", with_credentials=True)
