"""Real processes: the command line as a user runs it, and the services as an operator does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from inference.engines import try_engines
from pipeline.manifest import DEFAULT_MODEL
from pipeline.settings import InferenceSettings

ROOT = Path(__file__).parent.parent.parent
SCENES = ROOT.parent / "shared" / "data" / "scenes"


def clean_environment(**more: str) -> dict[str, str]:
    """Give this process's environment without any setting of the product's, and *more*."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DEMOGRAPHICS_")}
    return {**kept, "DEMOGRAPHICS_HTTP__PORT": "0", **more}


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        """Read stdout, which must be one document."""
        assert self.status == 0, self.err
        return json.loads(self.out)


Command = Callable[..., Answer]


@pytest.fixture(scope="session", autouse=True)
def engines_tried() -> None:
    """Have the engines tried before anything is timed: the first start on a machine takes its time for that."""
    try_engines(DEFAULT_MODEL, threads=0, max_batch=InferenceSettings().max_batch)


@pytest.fixture(scope="session")
def command() -> Command:
    """Run `demographics ...` to its end."""

    def run(*arguments: str | Path, timeout_s: float = 120, **environment: str) -> Answer:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *map(str, arguments)],
            env=clean_environment(**environment), cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
        return Answer(done.returncode, done.stdout, done.stderr)

    return run


class Service:
    """One service process and its log."""

    def __init__(
        self,
        name: str,
        arguments: tuple[str, ...],
        environment: dict[str, str],
        log: Path,
        *,
        command: Sequence[str] = ("pipeline.cli",),
        folder: Path = ROOT,
    ) -> None:
        self.name = name
        self.log = log
        self._stream = log.open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command, *arguments],
            env=environment,
            cwd=folder,  # whose code it runs: another version's, laid there
            stderr=self._stream,
            stdout=self._stream,
        )

    def said(self) -> str:
        """Give the log so far."""
        return self.log.read_text(errors="replace")

    def events(self, event: str) -> list[dict[str, Any]]:
        """Give the log's lines of one kind."""
        found = []
        for line in self.said().splitlines():
            with suppress(ValueError):  # a killed one may have stopped within a line
                if f'"{event}"' in line and (said := json.loads(line)).get("event") == event:
                    found.append(said)
        return found

    def url(self) -> str:
        """Give where it answers."""
        return str(self.events("service_starting")[0]["address"])

    def get(self, path: str) -> Any:
        """Ask its API."""
        with urllib.request.urlopen(self.url() + path, timeout=10) as answer:
            return json.load(answer)

    def text(self, path: str) -> str:
        """Ask for text."""
        with urllib.request.urlopen(self.url() + path, timeout=10) as answer:
            return str(answer.read().decode())

    def pause(self) -> None:
        """Freeze it: its connections stay open, nothing answers."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen one go on."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill it as the kernel would: no farewell."""
        self.process.kill()
        self.process.wait(10)

    def stop(self, timeout_s: float = 30) -> int:
        """End it as an operator does, and give its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self._stream.close()
        return status


class Services:
    """The services of one deployment."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self.running: list[Service] = []

    def start(self, *arguments: str | Path, **environment: str) -> Service:
        """Start one; does not wait for it."""
        name = f"{len(self.running)}-{arguments[0]}"
        service = Service(
            name, tuple(map(str, arguments)), {**self.environment, **environment}, self.folder / f"{name}.log"
        )
        self.running.append(service)
        return service

    def wait_ready(self, *services: Service, seconds: float = 120) -> None:
        """Wait until they do their work."""
        until(lambda: all(service.events("service_ready") for service in services), seconds, self.logs)

    def logs(self) -> str:
        """Give the end of every log, for when something went wrong."""
        return "\n".join(f"--- {service.name}\n{service.said()[-1500:]}" for service in self.running)

    def stop(self) -> None:
        """End them all."""
        for service in self.running:
            service.stop()


def until(true: Callable[[], bool], seconds: float, explain: Callable[[], str] = str) -> None:
    """Wait until *true*, or fail and *explain*."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            pytest.fail(f"it did not happen within {seconds:g} s\n{explain()}")
        time.sleep(0.1)


@pytest.fixture
def deploy(tmp_path: Path) -> Iterator[Callable[..., Services]]:
    """Make a deployment with an environment; whatever it started is ended."""
    made: list[Services] = []

    def make(**environment: str) -> Services:
        folder = tmp_path / f"deployment-{len(made)}"
        folder.mkdir()
        made.append(Services(folder, clean_environment(**environment)))
        return made[-1]

    yield make
    for services in made:
        services.stop()


@pytest.fixture
def scene() -> Callable[[str], tuple[Path, dict[str, Any]]]:
    """Give a labelled scene: its film and its truth."""

    def find(name: str) -> tuple[Path, dict[str, Any]]:
        film = SCENES / f"{name}.mp4"
        if not film.is_file():
            pytest.skip(f"the labelled scene {name} is not beside the project")
        return film, json.loads(film.with_suffix(".json").read_text())

    return find
