"""An end on a signal."""

from __future__ import annotations

import os
import signal
import threading
from typing import Final

import structlog

log = structlog.get_logger()

CUT_OFF: Final = 3  # exit status of a service that had not drained in time


def stop_on_signals(*, drain_s: float | None = None) -> threading.Event:
    """Give an event that SIGTERM and SIGINT set; a second signal ends the process at once, and so does the end of *drain_s*.

    To be cut off costs nothing but a repetition: whatever was not committed is read again, and counted once.
    """
    stop = threading.Event()

    def on_signal(number: int, _frame: object) -> None:
        if stop.is_set():
            raise SystemExit(128 + number)
        log.info("stopping", signal=signal.Signals(number).name)
        stop.set()
        if drain_s is not None:
            deadline = threading.Timer(drain_s, _cut_off, (drain_s,))
            deadline.daemon = True
            deadline.start()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    return stop


def _cut_off(drain_s: float) -> None:
    log.warning("not_drained", seconds=drain_s)
    os._exit(CUT_OFF)
