"""`demographics cameras check`: what is found out about a camera, and what it says to do."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

import pytest

from demo.clip import Clip
from demo.rtsp_server import RtspServer
from ingest.check import Check, check_camera, check_cameras, show_checks
from pipeline.settings import IngestSettings
from tests.ingest.conftest import PASSWORD, camera
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
