"""The end of a service: in good order, or at its deadline."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from pipeline.signals import CUT_OFF

PROGRAM = """
import sys, time
from pipeline.signals import stop_on_signals
stop = stop_on_signals(drain_s=float(sys.argv[1]))
print("ready", flush=True)
stop.wait()
time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize(("drain_s", "takes_s", "status"), [(60, 0, 0), (0.3, 60, CUT_OFF)], ids=["drained", "cut off"])
def test_a_service_ends_by_itself_or_at_its_deadline(drain_s: float, takes_s: float, status: int) -> None:
    """However long what it does would take: nothing is lost by it."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(drain_s), str(takes_s)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == status
