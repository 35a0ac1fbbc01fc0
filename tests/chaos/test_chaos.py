"""Chaos, in short: the long run is `make chaos KILLS=50`, its figures are in docs/reliability.md."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT
from tests.servers import KafkaServer

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(900)]


def test_ten_kills_change_no_cell(kafka_server: KafkaServer, tmp_path: Path) -> None:
    """Of every kind one: killed, frozen, robbed of the last moments and of everything; topics poisoned all along."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--kills", "10", "--seconds", "60", "--keep", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["difference"] == 0, result
    assert done.returncode == 0, result
    assert result["kills_total"] == 10
    assert result["people"] > 300
    assert result["duplicates_suppressed"] > 0
    assert sum(result["dead_letters"].values()) >= 10
