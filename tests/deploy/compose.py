"""docker-compose.yml as Compose itself reads it; no engine is needed for that."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from tests.deploy.tools import tool

ROOT: Final = Path(__file__).resolve().parents[2]
COMPOSE: Final = ROOT / "docker-compose.yml"


def compose_command() -> list[str]:
    """Find Docker Compose, which needs no engine for this."""
    if found := tool("docker-compose"):
        return [found]
    if shutil.which("docker"):
        asked = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
        if asked.returncode == 0:
            return ["docker", "compose"]
    return []


def configured(tmp_path: Path, *options: str, **settings: str) -> dict[str, Any]:
    """Let Compose read the file and say what it makes of it."""
    command = compose_command()
    if not command:
        if os.environ.get("CI") == "true":
            pytest.fail("CI has Compose read the file; `make deploy-tools` brings it")
        pytest.skip("there is no docker compose here; `make deploy-tools` brings it")
    environment = tmp_path / "env"
    lines = {"GRAFANA_ADMIN_PASSWORD": "test", **settings}
    environment.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
    done = subprocess.run(
        [*command, "--env-file", str(environment), *options, "-f", str(COMPOSE), "config", "--format", "json"],
        capture_output=True,
        check=False,
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        text=True,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document
