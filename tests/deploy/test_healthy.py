"""The question that a container is asked every few seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pipeline.http import HttpServer, make_app
from pipeline.telemetry import Telemetry
from tests.servers import free_port

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "docker" / "healthy.py"


def asked(port: int) -> int:
    """Run the script as Docker does."""
    return subprocess.run(
        [sys.executable, str(SCRIPT)], env={"DEMOGRAPHICS_HTTP__PORT": str(port)}, check=False
    ).returncode


def test_a_service_that_answers_is_healthy() -> None:
    """Waiting for Kafka is no illness: /healthz answers, whatever /readyz says."""
    server = HttpServer(
        make_app("test", Telemetry(["ingest"]).registry, lambda: ["waiting for Kafka"]), host="127.0.0.1", port=0
    )
    server.start()
    try:
        assert asked(server.port) == 0
    finally:
        server.close()


def test_a_service_that_does_not_answer_is_not() -> None:
    """Nobody listens there."""
    assert asked(free_port()) == 1
