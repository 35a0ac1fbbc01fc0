"""Cameras as an operator handles them: the file is changed under a running system, and no password shows anywhere."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from demo.composer import compose, load_cast
from demo.rtsp_server import RtspServer
from tests.e2e.conftest import ROOT, clean_environment, until
from tests.e2e.traces import pictures, secrets

RIGHT = "corr3ct/horse@battery"
WRONG = "wr0ng-st4ple"
TOKEN = "t0ken-in-parameters"
PATHS = (
    "/",
    "/metrics",
    "/api/v1/cameras",
    "/api/v1/windows",
    "/api/v1/openapi.json",
    "/healthz",
    "/readyz",
    "/app.js",
)


def ask(url: str) -> str:
    """Get a page, whatever its status."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return error.read().decode()


@pytest.mark.slow
def test_the_file_is_followed_and_no_password_shows_in_anything(tmp_path: Path) -> None:
    """Wrong password, then right, another camera, one away: without a restart; and every word that was said is searched."""
    clip = compose(tmp_path / "walk.mp4", load_cast(), view="hall", people=3, seconds=9, seed=4, size=(640, 360))
    file, secret = tmp_path / "cameras.yaml", tmp_path / "secret"
    said: list[str] = []
    with RtspServer() as server:
        server.add("hall", clip.path, username="viewer", password=RIGHT)
        server.add("door", clip.path)
        host = f"127.0.0.1:{server.port}"

        def write(*entries: dict[str, Any]) -> None:
            file.write_text(json.dumps({"site": "museum", "cameras": list(entries)}))

        hall = {"id": "hall", "url": f"rtsp://viewer:${{HALL_PASSWORD}}@{host}/hall"}
        door = {"id": "door", "url": f"rtsp://{host}/door?token=${{DOOR_TOKEN}}"}
        gate = {"id": "gate", "url": "rtsp://viewer:${DOOR_TOKEN}@127.0.0.1:9/gate"}
        secret.write_text(WRONG)
        write(hall)
        log = (tmp_path / "log").open("wb")
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "run", str(file), "--json", "--port", "0"],
            env=clean_environment(
                HALL_PASSWORD_FILE=str(secret), DOOR_TOKEN=TOKEN, DEMOGRAPHICS_LOG_LEVEL="DEBUG", COLUMNS="300"
            ), cwd=ROOT, stdout=subprocess.PIPE, stderr=log,
        )  # fmt: skip
        try:

            def spoken() -> str:
                return (tmp_path / "log").read_text(errors="replace")

            until(lambda: "page http" in spoken(), 120, spoken)
            url = spoken().split("page http", 1)[1].split("/ ", 1)[0]
            url = "http" + url

            def states() -> dict[str, str]:
                text = ask(f"{url}/api/v1/cameras")
                said.append(text)
                return {camera["id"]: camera["state"] for camera in json.loads(text)}

            until(lambda: states().get("hall") == "refused", 60, spoken)
            secret.write_text(quote(RIGHT, safe=""))
            until(lambda: states().get("hall") == "running", 60, spoken)
            write(hall, door, gate)
            until(lambda: states().get("door") == "running", 60, spoken)
            until(lambda: states().get("gate") == "unreachable", 60, spoken)
            file.write_text("cameras: [")
            until(lambda: "camera_file_refused" in spoken(), 60, spoken)
            assert states()["door"] == "running"
            write({**door, "url": f"rtsp://{host}/window?token=${{DOOR_TOKEN}}"})
            until(lambda: states().get("door") == "not_found", 60, spoken)
            said.extend(ask(url + path) for path in PATHS)
            process.send_signal(2)
            out, _ = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
            log.close()
    said += [out.decode(), spoken()]
    check = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "cameras", "check", str(file), "--seconds", "0.5", "--json"],
        env=clean_environment(DOOR_TOKEN=TOKEN), cwd=ROOT, capture_output=True, check=False,
    )  # fmt: skip
    said += [check.stdout.decode(), check.stderr.decode()]
    assert sum(map(len, said)) > 10_000
    for text in said:
        assert not secrets(text.encode(), (RIGHT, quote(RIGHT, safe=""), WRONG, TOKEN))
        assert not pictures(text.encode())
    assert any("hall" in text and "***@" in text for text in said)
    assert set(json.loads(out.decode())["cameras"]) == {"door"}


@pytest.mark.slow
@pytest.mark.kafka
def test_cameras_are_added_changed_and_removed_by_command_while_a_worker_runs(
    kafka_server: Any, deploy: Callable[..., Any], command: Callable[..., Any], tmp_path: Path
) -> None:
    """`demographics cameras ...` on a real Kafka: the worker follows, and the topic holds no secret."""
    clip = compose(tmp_path / "walk.mp4", load_cast(), view="hall", people=3, seconds=9, seed=4, size=(640, 360))
    kafka = {
        "DEMOGRAPHICS_KAFKA__BOOTSTRAP_SERVERS": kafka_server.bootstrap_servers,
        "HALL_PASSWORD": quote(RIGHT, safe=""),
    }
    with RtspServer() as server:
        server.add("hall", clip.path, username="viewer", password=RIGHT)
        server.add("door", clip.path)
        services = deploy(**kafka)
        ingest = services.start("ingest")
        services.wait_ready(ingest)

        def cameras(*arguments: str) -> Any:
            return command("cameras", *arguments, **kafka)

        def up() -> set[str]:
            lines = [
                line for line in ingest.text("/metrics").splitlines() if line.startswith("demographics_camera_up{")
            ]
            return {line.split('camera="')[1].split('"')[0] for line in lines if line.endswith(" 1.0")}

        refused = cameras("add", "hall", f"rtsp://viewer:{WRONG}@127.0.0.1:{server.port}/hall")
        assert refused.status == 2
        assert "${NAME}" in refused.err
        url = f"rtsp://viewer:${{HALL_PASSWORD}}@127.0.0.1:{server.port}/hall"
        assert cameras("add", "hall", url, "--set", "detect_fps=5").status == 0
        until(lambda: up() == {"hall"}, 60, services.logs)
        file = tmp_path / "cameras.yaml"
        file.write_text(f"cameras:\n  - {{id: door, url: 'rtsp://127.0.0.1:{server.port}/door'}}\n")
        assert cameras("apply", str(file)).status == 0
        until(lambda: up() == {"hall", "door"}, 60, services.logs)
        listed = cameras("list", "--json")
        assert {entry["id"]: entry["url"] for entry in listed.json()}["hall"] == url
        paused = cameras("pause", "hall", "--reason", "a visitor objected", "--by", "duty-manager")
        assert (paused.status, "paused by duty-manager" in paused.err) == (0, True), paused.err
        until(
            lambda: up() == {"door"} and all(s.stop_s is not None for s in server.sessions("hall")), 60, services.logs
        )
        assert cameras("pause", "nobody-runs-this", "--reason", " ").status == 2
        assert cameras("resume", "hall", "--reason", "settled").status == 0
        until(lambda: up() == {"hall", "door"}, 60, services.logs)
        audit = cameras("audit", "--json").json()
        first = next(one for one in audit if one["camera"] == "hall")
        assert (first["action"], first["by"], first["reason"]) == ("paused", "duty-manager", "a visitor objected")
        assert [event["action"] for event in ingest.events("camera_switched")] == ["paused", "resumed"]
        assert cameras("remove", "hall").status == 0
        until(lambda: up() == {"door"}, 60, services.logs)
        assert cameras("remove", "hall").status == 2
        said = [listed.out, listed.err, refused.err, refused.out, services.logs(), ingest.text("/metrics")]
    for text in said:
        assert not secrets(text.encode(), (RIGHT, quote(RIGHT, safe=""), WRONG))
        assert not pictures(text.encode())
