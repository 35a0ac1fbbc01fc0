"""Bad input: one paragraph that says which and what to do, exit status 2, or a retry that shows. No traceback, no password."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.composer import compose, load_cast
from demo.rtsp_server import RtspServer
from tests.servers import free_port

PASSWORD = "hunter2-s3cr3t"
Command = Callable[..., Any]


def refused(answer: Any, *said: str) -> None:
    """Check that a command was refused as it should be."""
    assert answer.status == 2, answer
    assert answer.out == ""
    assert "Traceback" not in answer.err
    assert PASSWORD not in answer.err
    for text in said:
        assert text in answer.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "--source", f"rtps://u:{PASSWORD}@h/1"), ("scheme 'rtps'", "did you mean 'rtsps'?")),
        (("run", "--source", f"rtsp://u:{PASSWORD}@:x/1"), ("rtsp://***@:x/1", "well-formed")),
        (("run", "--source", "nowhere.mp4"), ("nowhere.mp4", "no such file")),
        (
            ("run", "--source", "README.md", "--source", "pyproject.toml"),
            ("README.md", "pyproject.toml", "decoded as video"),
        ),
        (("run", "--source", "tests"), ("tests", "is a folder")),
        (("run",), ("camera file", "--source")),
        (("run", "no-cameras.yaml"), ("no-cameras.yaml", "cameras.example.yaml")),
        (("cameras", "check", "pyproject.toml"), ("pyproject.toml", "not YAML")),
        (("predict", "nothing.jpg", "-o", "out.jpg"), ("nothing.jpg", "no such file")),
        (("report", "--window", "3y"), ("3y", "known are")),
        (("replay", "--from", "soon"), ("--from soon", "beginning", "2026-11-25T09:00:00+01:00")),
        (("replay", "--into", "demographics"), ("--into demographics", "another namespace")),
        (("deadletters", "list", "--reason", "imgae", "--topic", "crops"), ("did you mean 'image'?", "face-crops")),
        (("deadletters", "requeue", "--since", "3y"), ("--since", "15m")),
    ],
)
def test_what_cannot_work_is_refused_in_words(
    command: Command, arguments: tuple[str, ...], said: tuple[str, ...]
) -> None:
    """Each names what is wrong."""
    refused(command(*arguments), *said)


def test_an_unknown_key_in_the_camera_file_is_named(command: Command, tmp_path: Path) -> None:
    """With the key that was meant."""
    path = tmp_path / "cameras.yaml"
    path.write_text(f"cameras:\n  - {{id: a, url: 'rtsp://u:{PASSWORD}@h/1', detect_fsp: 5}}\n")
    refused(command("run", path), "camera 1 (a)", "'detect_fsp'", "did you mean 'detect_fps'?")
    refused(command("ingest", path), "'detect_fsp'")


def test_a_wrong_setting_is_named(command: Command) -> None:
    """Before anything is started."""
    refused(command("infer", DEMOGRAPHICS_INFERENCE__MAX_BATCH="many"), "DEMOGRAPHICS_INFERENCE__MAX_BATCH")


def test_a_model_that_is_none_is_named(command: Command, tmp_path: Path) -> None:
    """A folder without a manifest."""
    refused(command("infer", DEMOGRAPHICS_INFERENCE__MODEL=str(tmp_path)), str(tmp_path), "manifest.json")


def test_a_redis_that_is_down_is_named_by_report(command: Command) -> None:
    """A question that cannot be answered is an error."""
    url = f"redis://u:{PASSWORD}@127.0.0.1:{free_port()}/0"
    refused(command("report", DEMOGRAPHICS_REDIS__URL=url), "Redis at redis://***@127.0.0.1", "DEMOGRAPHICS_REDIS__URL")


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RtspServer]:
    """Serve one camera that asks for a password."""
    clip = compose(tmp_path_factory.mktemp("clip") / "c.mp4", load_cast(), view="hall", people=1, seconds=8, seed=1)
    with RtspServer() as server:
        server.add("hall", clip.path, username="viewer", password=PASSWORD)
        yield server


def test_cameras_check_says_of_each_camera_what_is_wrong(command: Command, camera: RtspServer, tmp_path: Path) -> None:
    """A wrong password, a path that is not there, a host that does not answer, beside one that is well."""
    good = camera.url("hall").replace("rtsp://", "rtsp://viewer:${PW}@")
    path = tmp_path / "cameras.yaml"
    path.write_text(
        f"""
        cameras:
          - {{id: good, url: "{good}"}}
          - {{id: wrong, url: "{good.replace("${PW}", "${OTHER}")}"}}
          - {{id: nothing, url: "{good}-9"}}
          - {{id: nobody, url: "rtsp://u:${{PW}}@127.0.0.1:{free_port()}/1"}}
        """
    )
    answer = command("cameras", "check", path, "--seconds", "1", "--json", PW=PASSWORD, OTHER=f"{PASSWORD}-wrong")
    assert answer.status == 2
    import json  # noqa: PLC0415

    checks = {check["camera"]: check for check in json.loads(answer.out)}
    assert checks["good"]["problem"] == ""
    assert (checks["good"]["codec"], checks["good"]["width"], checks["good"]["height"]) == ("h264", 1280, 720)
    assert "refuses the user name or password" in checks["wrong"]["problem"]
    assert "is not there" in checks["nothing"]["problem"]
    assert "does not answer" in checks["nobody"]["problem"]
    assert PASSWORD not in answer.out + answer.err
    table = command("cameras", "check", path, "--seconds", "1", PW=PASSWORD, OTHER=f"{PASSWORD}-wrong")
    assert table.status == 2
    assert PASSWORD not in table.out + table.err
    assert "Traceback" not in table.err


@pytest.mark.parametrize(
    ("service", "waits_for"),
    [("ingest", "Kafka"), ("aggregate", "Redis"), pytest.param("infer", "Kafka", marks=pytest.mark.slow)],
)
def test_a_service_waits_visibly_for_what_is_down_at_start(
    deploy: Callable[..., Any], camera: RtspServer, tmp_path: Path, service: str, waits_for: str
) -> None:
    """In the log, in the metrics and at /readyz, without a password; SIGTERM still ends it cleanly."""
    from tests.e2e.conftest import until  # noqa: PLC0415

    path = tmp_path / "cameras.yaml"
    path.write_text(f"cameras:\n  - {{id: a, url: 'rtsp://u:{PASSWORD}@127.0.0.1:9/1'}}\n")
    services = deploy(
        DEMOGRAPHICS_KAFKA__BOOTSTRAP_SERVERS=f"127.0.0.1:{free_port()}",
        DEMOGRAPHICS_REDIS__URL=f"redis://u:{PASSWORD}@127.0.0.1:{free_port()}/0",
    )
    started = services.start(*((service, path) if service == "ingest" else (service,)))
    until(lambda: bool(started.events("waiting")), 90, services.logs)
    line = started.events("waiting")[0]
    assert line["waiting_for"] == waits_for
    assert waits_for in line["detail"]
    assert "demographics_bus_failures_total 0.0" not in started.text("/metrics")
    assert started.stop() == 0
    assert PASSWORD not in started.said()
    assert "Traceback" not in started.said()


@pytest.mark.slow
def test_a_run_goes_on_while_its_camera_refuses_it(camera: RtspServer) -> None:
    """Somebody may be changing the password right now: waiting is right, and it shows; Ctrl-C ends it cleanly."""
    from tests.e2e.conftest import ROOT, clean_environment  # noqa: PLC0415

    address = camera.url("hall").replace("rtsp://", f"rtsp://viewer:{PASSWORD}-wrong@")
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "run", "--source", address],
        env=clean_environment(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    said, deadline = "", time.monotonic() + 90
    while "camera_lost" not in said and time.monotonic() < deadline:
        said += process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    said += rest
    assert process.returncode == 0, said
    assert '"reason": "refused"' in said
    assert "refuses the user name or password" in said
    assert PASSWORD not in said
    assert "Traceback" not in said
