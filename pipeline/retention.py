"""Watches the promise that no picture outlives its use: how long each topic keeps its records, as the broker has it now.

Topics are created with the retention of the settings, but an existing topic keeps its own, and anybody with rights on the broker
may change it. So the broker is asked, every minute; an alert compares.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import structlog

from pipeline import telemetry as metrics
from pipeline.errors import TransportError
from pipeline.telemetry import Telemetry

log = structlog.get_logger()

INTERVAL_S: Final = 60.0


class RetentionWatch:
    """Asks for the topics' retention on a thread of its own, and says it as a metric."""

    def __init__(
        self,
        ask: Callable[[Sequence[str]], Mapping[str, float]],
        topics: Sequence[str],
        telemetry: Telemetry,
        *,
        interval_s: float = INTERVAL_S,
    ) -> None:
        """Set up; *ask* gives seconds by topic, and raises TransportError."""
        self._ask = ask
        self._topics = tuple(topics)
        self._telemetry = telemetry
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="retention", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.look()
            self._stop.wait(self._interval_s)

    def look(self) -> None:
        """Ask once. What the broker does not say is not shown: an old answer would be no answer."""
        try:
            answers = self._ask(self._topics)
        except TransportError as error:
            answers = {}
            self._telemetry.add(metrics.BUS_FAILURES)  # where nothing flows, nobody else may notice
            log.warning("retention_unknown", detail=str(error))
        self._telemetry.forget(metrics.TOPIC_RETENTION)
        for topic, seconds in answers.items():
            self._telemetry.set(metrics.TOPIC_RETENTION, seconds, topic=topic)

    def close(self) -> None:
        """Stop asking; an answer under way is not waited for."""
        self._stop.set()
