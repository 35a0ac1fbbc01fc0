"""An end on a signal."""

from __future__ import annotations

import signal
import threading

import structlog

log = structlog.get_logger()


def stop_on_signals() -> threading.Event:
    """Give an event that SIGTERM and SIGINT set; a second signal ends the process at once."""
    stop = threading.Event()

    def on_signal(number: int, _frame: object) -> None:
        if stop.is_set():
            raise SystemExit(128 + number)
        log.info("stopping", signal=signal.Signals(number).name)
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    return stop
