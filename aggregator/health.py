"""How the pipeline does, from what this process has seen of it: what the page shows beside the figures.

An aggregator sees the end of the pipeline: how old a prediction is when it is counted says how every part before it does.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import Any, Final, NamedTuple

from aggregator.store import Board
from pipeline import telemetry as metrics
from pipeline.errors import TransportError
from pipeline.telemetry import Telemetry

SPAN_S: Final = 60.0
LATE_S: Final = 20.0
MANY_WAIT: Final = 200
TELL_EVERY_S: Final = 5.0


class _Sample(NamedTuple):
    at: float  # by a monotonic clock
    applied: float
    counted: tuple[tuple[float, float], ...]  # (upper bound in seconds, predictions counted at or below)


class PipelineHealth:
    """Looks at the metrics of this process, and remembers a minute of them. Safe to use from several threads."""

    def __init__(
        self,
        telemetry: Telemetry,
        problems: Callable[[], list[str]] = list,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up; *problems* says in words what keeps the service from its work."""
        self._telemetry = telemetry
        self._problems = problems
        self._clock = clock
        self._lock = threading.Lock()
        self._samples: deque[_Sample] = deque()
        self._sample()  # so that whoever asks first, and once, is told of the time since the start

    def view(self) -> dict[str, Any]:
        """Show it: a state, what is wrong in words, and the figures of the last minute."""
        now = self._sample()
        with self._lock:
            before = self._samples[0]
        span_s = now.at - before.at
        counts = [(bound, n - m) for (bound, n), (_, m) in zip(now.counted, before.counted, strict=True)]
        half_s, most_s = quantile(0.5, counts), quantile(0.95, counts)
        waiting = self._sums(metrics.LAG, "topic")
        records = now.applied - before.applied
        problems = self._problems()
        if problems:
            state = "trouble"
        elif (most_s or 0) > LATE_S or sum(waiting.values()) > MANY_WAIT:
            state = "late"
        else:
            state = "good" if records or span_s < 5 else "quiet"
        return {
            "state": state,
            "problems": problems,
            "seconds": round(span_s, 1),
            "latency_s": None if half_s is None or most_s is None else {"half": half_s, "most": most_s},
            "records_per_s": round(records / span_s, 2) if span_s else 0.0,
            "waiting": {topic: int(n) for topic, n in waiting.items()},
            "open_tracks": int(sum(self._sums(metrics.OPEN_TRACKS, "").values())),
            "dead_letters": int(sum(self._sums(metrics.DEAD_LETTERS_TOTAL, "reason").values())),
        }

    def _sums(self, metric: metrics.Metric, label: str) -> dict[str, float]:
        sums: dict[str, float] = {}
        for _, labels, value in self._telemetry.samples(metric):
            sums[labels.get(label, "")] = sums.get(labels.get(label, ""), 0.0) + value
        return sums

    def _sample(self) -> _Sample:
        buckets = [
            (float(labels["le"]), value)
            for name, labels, value in self._telemetry.samples(metrics.CAPTURE_TO_COUNT)
            if name.endswith("_bucket")
        ]
        applied = sum(value for _, _, value in self._telemetry.samples(metrics.APPLIED))
        sample = _Sample(self._clock(), applied, tuple(buckets))
        with self._lock:
            if not self._samples or sample.at - self._samples[-1].at >= 1.0:
                self._samples.append(sample)
            while len(self._samples) > 1 and sample.at - self._samples[1].at >= SPAN_S:
                self._samples.popleft()
        return sample


class HealthTeller:
    """Tells the store now and then how this aggregator does: a terminal that reads the counts can say that as well."""

    def __init__(
        self, health: PipelineHealth, board: Board, who: str, *, clock: Callable[[], float] = time.time
    ) -> None:
        """Set up; *who* tells this aggregator from the others."""
        self._health = health
        self._board = board
        self._who = who
        self._clock = clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)

    def start(self) -> None:
        """Begin to tell."""
        self._thread.start()

    def tell(self) -> None:
        """Tell once; where the store does not answer, whoever reads it learns that from the store."""
        with suppress(TransportError):
            self._board.tell(self._who, self._health.view(), self._clock())

    def _run(self) -> None:
        while not self._stop.is_set():
            self.tell()
            self._stop.wait(TELL_EVERY_S)

    def close(self) -> None:
        """Tell no more."""
        self._stop.set()


def quantile(share: float, buckets: list[tuple[float, float]]) -> float | None:
    """Estimate the value that *share* of the samples do not exceed; None where there are none.

    *buckets* are (upper bound, samples at or below it), ascending; in between it is a straight line, as in Prometheus'
    histogram_quantile. What lies above the last finite bound is given as that bound.
    """
    total = buckets[-1][1] if buckets else 0
    if total <= 0:
        return None
    wanted = share * total
    low, below = 0.0, 0.0
    for bound, n in buckets:
        if n >= wanted:
            if bound == inf:
                return low
            return round(low + (bound - low) * (wanted - below) / max(n - below, 1e-9), 3)
        low, below = bound, n
    return low
