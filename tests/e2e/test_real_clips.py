"""Real people on film: counted where they show their faces, and nobody where only the rest of them, or an empty room, is seen."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import SecretStr

from demo.tracking import Listener
from ingest.av_source import AvSource
from ingest.camera import CameraLoop
from ingest.detection import open_detection
from ingest.outbox import SharedProducer
from ingest.yunet_detector import YunetDetector
from pipeline.cameras import Camera
from pipeline.manifest import load_manifest
from pipeline.messages import TrackEnded
from pipeline.settings import Settings
from pipeline.telemetry import Telemetry
from tests.e2e.conftest import SCENES

pytestmark = [pytest.mark.slow, pytest.mark.shared]

CLIPS = SCENES.parent / "clips"
PEOPLE = {"face-demographics-walking": 2, "head-pose-face-detection-female": 1, "head-pose-face-detection-male": 1}
BELOW_THE_CHIN = 0.575  # of the picture's height: in none of the three does a face reach lower
PLAYS = 4  # to and fro: 8 to 21 seconds

Pictures = list[NDArray[np.uint8]]


@pytest.fixture(params=PEOPLE)
def clip(request: pytest.FixtureRequest) -> tuple[str, Pictures]:
    """Give a clip's name and pictures."""
    path = CLIPS / f"{request.param}.mp4"
    if not path.is_file():
        pytest.skip(f"the real clip {request.param} is not beside the project")
    with av.open(str(path)) as film:
        return request.param, [np.asarray(frame.to_ndarray(format="bgr24"), np.uint8) for frame in film.decode(video=0)]


def counted(
    pictures: Pictures, path: Path, change: Callable[[NDArray[np.uint8], int], NDArray[np.uint8]], *, plays: int = PLAYS
) -> list[TrackEnded]:
    """Count who is seen on these pictures after a *change*, played to and fro at twice their size, 12 a second."""
    row = [*pictures, *reversed(pictures)] * -(-plays // 2)
    height, width = (2 * (n // 2) for n in change(pictures[0], 0).shape[:2])
    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=12, options={"preset": "ultrafast", "crf": "20"})
        stream.width, stream.height, stream.pix_fmt = 2 * width, 2 * height, "yuv420p"
        for n, picture in enumerate(row[: plays * len(pictures)]):
            shown = cv2.resize(change(picture, n)[:height, :width], (2 * width, 2 * height))
            film.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(shown, np.uint8), format="bgr24")))
        film.mux(stream.encode())
    listener, settings = Listener(), Settings()
    searching = open_detection(settings.ingest.detector)
    CameraLoop(
        Camera(id="film", url=SecretStr(str(path))),
        settings=settings.ingest,
        recipe=load_manifest(settings.inference.model).crop,
        detector=lambda _: searching(settings.ingest.max_side_px),
        connect=lambda camera: AvSource(camera, open_timeout_s=10, read_timeout_s=10),
        producer=SharedProducer(listener),
        telemetry=Telemetry(("ingest",)),
        until_end=True,
    ).run(threading.Event())
    return listener.counted


def test_real_people_are_counted_once_each(clip: tuple[str, Pictures], tmp_path: Path) -> None:
    """They walk up, turn their heads, or hold still: each is one."""
    name, pictures = clip
    assert len(counted(pictures, tmp_path / "whole.mp4", lambda picture, _: picture, plays=1)) == PEOPLE[name]


def test_nobody_is_counted_where_only_bodies_are_seen(clip: tuple[str, Pictures], tmp_path: Path) -> None:
    """Printed shirts, hands and legs that come and go in a real corridor."""
    _, pictures = clip
    below = round(BELOW_THE_CHIN * pictures[0].shape[0])
    assert counted(pictures, tmp_path / "bodies.mp4", lambda picture, _: picture[below:]) == []


def test_nobody_is_counted_where_heads_are_turned_away(clip: tuple[str, Pictures], tmp_path: Path) -> None:
    """Where the face was there is hair: what the crown of the same head looks like, stretched down over it."""
    _, pictures = clip
    detector = YunetDetector(None, max_side_px=960)
    boxes = [detector.detect(picture) for picture in pictures]

    def from_behind(picture: NDArray[np.uint8], n: int) -> NDArray[np.uint8]:
        turned = picture.copy()
        row = [*boxes, *reversed(boxes)] * (PLAYS // 2)
        for face in row[n]:
            left, top, right, bottom = (max(0, round(value)) for value in face.xyxy)
            crown = picture[max(0, top - 4) : top + max(2, (bottom - top) // 6), left:right]
            turned[top:bottom, left:right] = cv2.resize(crown, (right - left, bottom - top))
        return turned

    assert counted(pictures, tmp_path / "backs.mp4", from_behind) == []


def test_nobody_is_counted_in_an_empty_room(clip: tuple[str, Pictures], tmp_path: Path) -> None:
    """The left quarter of each picture, where nobody comes: a wall, its light, and the noise of a real camera."""
    _, pictures = clip
    assert counted(pictures, tmp_path / "empty.mp4", lambda picture, _: picture[:, : picture.shape[1] // 4]) == []
