"""cameras.yaml while it is in use: a good change is taken up, a bad one changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from pipeline.camera_file import CameraFile
from pipeline.errors import ConfigError

ONE = "cameras:\n  - {id: hall, url: 'rtsp://viewer:${HALL_PASSWORD}@10.0.0.1/1'}\n"
TWO = ONE + "  - {id: door, url: 'rtsp://10.0.0.2/1'}\n"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every look be due."""
    monkeypatch.setattr("pipeline.camera_file.CHECK_S", 0.0)
    monkeypatch.setattr("pipeline.camera_file._SECRETS_S", 0.0)


def names(file: CameraFile) -> list[str] | None:
    """Give the names of the cameras where they have changed."""
    changed = file.changed()
    return None if changed is None else [camera.id for camera in changed]


@pytest.mark.usefixtures("hasty")
def test_a_change_is_taken_up_once(tmp_path: Path) -> None:
    """Another camera, then another key of it; the same again is no change."""
    path = tmp_path / "cameras.yaml"
    path.write_text(ONE)
    file = CameraFile(path, {"HALL_PASSWORD": "x"})
    assert names(file) is None
    path.write_text(TWO)
    assert names(file) == ["hall", "door"]
    assert names(file) is None
    path.write_text(TWO + "# a remark\n")
    assert names(file) is None
    path.write_text(TWO.replace("/1'}", "/2'}"))
    assert names(file) == ["hall", "door"]


@pytest.mark.usefixtures("hasty")
def test_a_version_that_is_wrong_changes_nothing_and_is_said_once(tmp_path: Path) -> None:
    """Half a file, while an editor writes it; no file at all; a password that is not set."""
    path = tmp_path / "cameras.yaml"
    path.write_text(ONE)
    file = CameraFile(path, {"HALL_PASSWORD": "x"})
    for wrong in ("cameras:\n  - {id: hall", "cameras: []", ONE.replace("HALL", "DOOR"), None):
        path.unlink() if wrong is None else path.write_text(wrong)
        with capture_logs() as logs:
            assert names(file) is None
            assert names(file) is None
        assert [line["event"] for line in logs] == ["camera_file_refused"]
        assert file.problem
        assert [camera.id for camera in file.cameras] == ["hall"]
    path.write_text(TWO)
    assert names(file) == ["hall", "door"]
    assert not file.problem


@pytest.mark.usefixtures("hasty")
def test_a_secret_file_that_changes_is_a_change(tmp_path: Path) -> None:
    """The camera's password was renewed: the file that NAME_FILE names has it, the text of cameras.yaml is the same."""
    path, secret = tmp_path / "cameras.yaml", tmp_path / "hall"
    path.write_text(ONE)
    secret.write_text("old\n")
    file = CameraFile(path, {"HALL_PASSWORD_FILE": str(secret)})
    assert file.cameras[0].url.get_secret_value() == "rtsp://viewer:old@10.0.0.1/1"
    secret.write_text("new\n")
    assert names(file) == ["hall"]
    assert file.cameras[0].url.get_secret_value() == "rtsp://viewer:new@10.0.0.1/1"


def test_a_file_that_is_wrong_at_the_start_is_refused(tmp_path: Path) -> None:
    """With everything that is wrong."""
    path = tmp_path / "cameras.yaml"
    path.write_text(ONE)
    with pytest.raises(ConfigError, match="HALL_PASSWORD_FILE"):
        CameraFile(path, {})
