"""`demographics cameras check`: what is found out about a camera, and what it says to do."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

import cv2
import pytest

from demo.clip import Clip
from demo.rtsp_server import RtspServer
from ingest.check import Check, check_camera, check_cameras, show_checks, still_faces
from pipeline.errors import ConfigError
from pipeline.settings import IngestSettings
from tests.ingest.conftest import PASSWORD, camera, face_at
from tests.servers import free_port

QUICK_SETTINGS = IngestSettings(open_timeout_s=3, read_timeout_s=1)


def test_a_good_camera_is_described(rtsp_server: RtspServer, clip: Clip) -> None:
    """Codec, size, rate, time to the first frame, faces and their size; nothing is wrong."""
    rtsp_server.add("hall", clip.path, username="viewer", password=PASSWORD)
    described = camera(rtsp_server.url("hall", with_credentials=True), name="hall")
    check = check_camera(described, QUICK_SETTINGS, seconds=1.5)
    assert check.problem == ""
    assert (check.codec, check.width, check.height) == ("h264", 640, 360)
    assert check.fps == pytest.approx(25, abs=2)
    assert check.frames > 25
    assert check.first_frame_s > 0
    assert check.brightness > 45


def test_faces_are_counted_and_small_ones_advised_about(clip: Clip) -> None:
    """The film of a far camera: its faces are half as wide as age and gender want."""
    check = check_camera(camera(clip.path), QUICK_SETTINGS, seconds=60)
    assert check.faces > 5
    assert 20 < check.face_px < 60
    (advice,) = check.advice
    assert f"{check.face_px:.0f} px" in advice
    assert check.frames == round(clip.seconds * clip.fps)


def test_every_camera_is_looked_at_in_order_whatever_is_wrong_with_the_others(
    rtsp_server: RtspServer, guarded: str, tmp_path: Path
) -> None:
    """A wrong password, an unknown path, nobody there, a missing file, and a good one."""
    wrong = guarded.replace("viewer:", "viewer:not-")
    cameras = [
        camera(wrong, name="locked"),
        camera(guarded, name="good"),
        camera(guarded + "/elsewhere", name="moved"),
        camera(f"rtsp://viewer:{quote(PASSWORD, safe='')}@127.0.0.1:{free_port()}/x", name="off"),
        camera(tmp_path / "none.mp4", name="gone"),
    ]
    checks = check_cameras(cameras, QUICK_SETTINGS, seconds=0.2)
    assert [check.camera for check in checks] == ["locked", "good", "moved", "off", "gone"]
    assert [bool(check.problem) for check in checks] == [True, False, True, True, True]
    for check, word in zip(checks, ("password", "", "not there", "does not answer", "not there"), strict=True):
        assert word in check.problem
    document = json.dumps([check.document() for check in checks])
    assert quote(PASSWORD, safe="") not in document
    assert PASSWORD not in document
    assert "rtsp://***@127.0.0.1" in document


def test_what_is_printed_has_a_line_for_every_camera_and_no_password(
    guarded: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table, and below it what to change."""
    monkeypatch.setenv("COLUMNS", "200")
    wrong = camera(guarded.replace("viewer:", "viewer:not-"), name="locked")
    show_checks([*check_cameras([wrong], QUICK_SETTINGS, seconds=0.2), Check("hall", "hall.mp4", advice=["zoom in"])])
    said = capsys.readouterr().out
    assert "locked" in said
    assert "failed" in said
    assert "correct them in the camera's url" in said
    assert "camera hall: zoom in" in said
    assert PASSWORD not in said
    assert quote(PASSWORD, safe="") not in said


def test_key_frames_are_counted(clip: Clip) -> None:
    """The film has one a second."""
    check = check_camera(camera(clip.path), QUICK_SETTINGS, seconds=60)
    assert check.key_frame_s == pytest.approx(1.0)
    assert check.timestamps
    assert check.bad_frames == 0
    assert 0 < check.smallest_face_px <= check.face_px


def test_a_picture_is_written_only_when_it_is_asked_for(clip: Clip, tmp_path: Path) -> None:
    """With the faces and the camera's rule drawn on it, and nowhere else."""
    ruled = camera(
        clip.path, name="hall", zone=[[0.1, 0.1], [0.9, 0.1], [0.9, 0.9]], exclude=[[[0, 0], [0.1, 0], [0.1, 0.1]]],
        line={"from": [0, 0.5], "to": [1, 0.5], "inside": [0.5, 0.9]},
    )  # fmt: skip
    folder = tmp_path / "pictures"
    (plain,) = check_cameras([ruled], QUICK_SETTINGS, seconds=60)
    assert plain.snapshot == ""
    assert list(tmp_path.iterdir()) == []
    (check,) = check_cameras([ruled], QUICK_SETTINGS, seconds=60, snapshots=folder)
    assert [path.name for path in folder.iterdir()] == ["hall.jpg"]
    drawn = cv2.imread(check.snapshot)
    assert drawn is not None
    assert drawn.shape == (360, 640, 3)
    assert ((drawn[..., 0] > 180) & (drawn[..., 2] < 90)).sum() > 300, "the zone and the line"
    assert ((drawn[..., 1] > 160) & (drawn[..., 0] < 130) & (drawn[..., 2] < 130)).sum() > 100, "a face's box"


def test_a_folder_that_cannot_be_made_is_said(clip: Clip, tmp_path: Path) -> None:
    """Before any camera is opened."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="--snapshot"):
        check_cameras([camera(clip.path)], QUICK_SETTINGS, seconds=1, snapshots=tmp_path / "file" / "x")


def test_a_face_that_never_moves_is_told_with_the_line_that_excludes_it() -> None:
    """A poster, among people who do move; ready for the camera file."""
    looks = [[face_at(500, 60, side=80), face_at(100 + 20 * n, 200, side=80)] for n in range(12)]
    ((x, y, w, h),) = still_faces(looks, (640, 360))
    assert x * 640 < 460
    assert (x + w) * 640 > 540
    assert y * 360 < 20
    assert (y + h) * 360 > 100
    assert still_faces(looks[:4], (640, 360)) == [], "that is too short a time to tell"
    assert still_faces([[face_at(300 + 10 * (n % 3), 200, side=80)] for n in range(12)], (640, 360)) == []
