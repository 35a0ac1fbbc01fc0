"""What the services say of themselves: every metric in one place, and structured logs.

A metric is declared here once: name, help, labels, who owns it. Labels come from closed sets (sites, cameras, reasons,
partitions), never a track, a person or an address. docs/metrics.md is generated from this module (`make docs`).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Final, Literal, NamedTuple, TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.registry import Collector

from pipeline.redaction import redact_event

Kind = Literal["counter", "gauge", "histogram"]
Owner = Literal["ingest", "inference", "aggregator", "every service"]


class Metric(NamedTuple):
    """One declaration. `collected` metrics are built per scrape from the store, not kept in the process."""

    name: str
    kind: Kind
    help: str
    owner: Owner
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    collected: bool = False


_FAST: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SLOW: Final = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 60.0, 300.0)
_CAMERA: Final = ("site", "camera")

# --- what it is all for: read from the store at every scrape, the same on every aggregator -------------------------------
VISITORS = Metric(
    "demographics_visitors",
    "gauge",
    "Visitors first seen within the rolling window.",
    "aggregator",
    (*_CAMERA, "window", "gender", "age_band"),
    collected=True,
)
VISITORS_BY_ETHNICITY = Metric(
    "demographics_visitors_by_ethnicity",
    "gauge",
    "Visitors first seen within the rolling window.",
    "aggregator",
    (*_CAMERA, "window", "ethnicity"),
    collected=True,
)
VISITORS_TOTAL = Metric(
    "demographics_visitors_total",
    "counter",
    "Visitors whose passage has ended, ever; kept in the store.",
    "aggregator",
    (*_CAMERA, "gender", "age_band"),
    collected=True,
)

# --- ingest ---------------------------------------------------------------------------------------------------------------
CAMERA_UP = Metric("demographics_camera_up", "gauge", "1 while the camera delivers frames.", "ingest", _CAMERA)
CAMERA_FPS = Metric(
    "demographics_camera_fps", "gauge", "Frames per second that the camera delivers.", "ingest", _CAMERA
)
FRAMES = Metric("demographics_frames_total", "counter", "Frames decoded.", "ingest", _CAMERA)
FRAMES_DETECTED = Metric(
    "demographics_frames_detected_total", "counter", "Frames searched for faces.", "ingest", _CAMERA
)
DROPS = Metric(
    "demographics_drops_total",
    "counter",
    "Lost on purpose: frames that a newer one replaced (newest_wins), messages that the bus did not take (bus).",
    "ingest",
    (*_CAMERA, "reason"),
)
REJECTS = Metric(
    "demographics_rejects_total",
    "counter",
    "Not used: tracks that were no visitor (unconfirmed), crops below the quality bar (quality).",
    "ingest",
    (*_CAMERA, "reason"),
)
CONNECTS_FAILED = Metric(
    "demographics_camera_failures_total",
    "counter",
    "Connections that failed or were lost, by reason.",
    "ingest",
    (*_CAMERA, "reason"),
)
RECONNECTS = Metric(
    "demographics_camera_reconnects_total", "counter", "Connections made after the first.", "ingest", _CAMERA
)
FACES = Metric("demographics_faces_total", "counter", "Faces found in searched frames.", "ingest", _CAMERA)
TRACKS = Metric("demographics_tracks_total", "counter", "Confirmed tracks that have ended.", "ingest", _CAMERA)
CROPS = Metric("demographics_crops_total", "counter", "Face crops published.", "ingest", _CAMERA)
FACE_SIZE = Metric(
    "demographics_face_size_px",
    "histogram",
    "Smaller side of published faces in the camera's picture.",
    "ingest",
    _CAMERA,
    (24, 32, 48, 64, 96, 128, 192, 256, 384),
)
DETECTION_SECONDS = Metric(
    "demographics_detection_seconds", "histogram", "Time to find the faces of one frame.", "ingest", (), _FAST
)

# --- inference ------------------------------------------------------------------------------------------------------------
INFERENCE_SECONDS = Metric(
    "demographics_inference_seconds", "histogram", "Time of one pass of the network.", "inference", (), _FAST
)
BATCH_FILL = Metric(
    "demographics_batch_crops",
    "histogram",
    "Face crops in one pass of the network.",
    "inference",
    (),
    (1, 2, 4, 8, 16, 32, 64, 128),
)
PREDICTIONS_TOTAL = Metric("demographics_predictions_total", "counter", "Face crops predicted.", "inference")

# --- aggregator -----------------------------------------------------------------------------------------------------------
CAPTURE_TO_COUNT = Metric(
    "demographics_capture_to_count_seconds",
    "histogram",
    "From the frame to the store, of each prediction as it is applied.",
    "aggregator",
    (),
    _SLOW,
)
APPLIED = Metric("demographics_applied_total", "counter", "Records applied to the counts.", "aggregator")
DUPLICATES = Metric("demographics_duplicates_total", "counter", "Predictions that were known already.", "aggregator")
LATE = Metric("demographics_late_total", "counter", "Visitors first seen before the longest window.", "aggregator")
TOO_LATE = Metric(
    "demographics_too_late_total",
    "counter",
    "Messages not counted: of tracks so old that they may have been counted and forgotten.",
    "aggregator",
)
MISSING = Metric(
    "demographics_missing_records_total",
    "counter",
    "Predictions that the log no longer had when they were to be counted; the counts lack them.",
    "aggregator",
)
OPEN_TRACKS = Metric("demographics_open_tracks", "gauge", "Tracks that have not ended.", "aggregator")
STORE_RETRIES = Metric(
    "demographics_store_failures_total", "counter", "Calls that the store did not answer.", "aggregator"
)

# --- every service --------------------------------------------------------------------------------------------------------
LAG = Metric(
    "demographics_consumer_lag",
    "gauge",
    "Records of the partition that have not been read.",
    "every service",
    ("topic", "partition"),
)
DEAD_LETTERS_TOTAL = Metric(
    "demographics_dead_letters_total", "counter", "Records that will never decode.", "every service", ("reason",)
)
BUS_FAILURES = Metric(
    "demographics_bus_failures_total",
    "counter",
    "Calls that the bus did not answer; they are repeated.",
    "every service",
)
STALLS = Metric(
    "demographics_partition_stalls_total",
    "counter",
    "Times that a partition stood still before its end, and was fetched anew.",
    "every service",
    ("topic",),
)
RECORDS = Metric("demographics_records_total", "counter", "Records handled.", "every service", ("topic",))


def declared() -> tuple[Metric, ...]:
    """List every metric of this module, in order."""
    return tuple(value for value in globals().values() if isinstance(value, Metric))


class Telemetry:
    """The metrics of one process, in a registry of its own."""

    def __init__(self, owners: Iterable[Owner]) -> None:
        self.registry = CollectorRegistry()
        wanted = {*owners, "every service"}
        self._kept: dict[str, Counter | Gauge | Histogram] = {
            metric.name: self._make(metric) for metric in declared() if metric.owner in wanted and not metric.collected
        }

    def _make(self, metric: Metric) -> Counter | Gauge | Histogram:
        if metric.kind == "counter":
            return Counter(metric.name, metric.help, metric.labels, registry=self.registry)
        if metric.kind == "gauge":
            return Gauge(metric.name, metric.help, metric.labels, registry=self.registry)
        return Histogram(metric.name, metric.help, metric.labels, registry=self.registry, buckets=metric.buckets)

    def _child(self, metric: Metric, labels: dict[str, str]) -> Counter | Gauge | Histogram:
        kept = self._kept[metric.name]
        return kept.labels(**labels) if metric.labels else kept

    def add(self, metric: Metric, amount: float = 1, /, **labels: str) -> None:
        """Count up."""
        child = self._child(metric, labels)
        assert isinstance(child, Counter)
        child.inc(amount)

    def set(self, metric: Metric, value: float, /, **labels: str) -> None:
        """Set a gauge."""
        child = self._child(metric, labels)
        assert isinstance(child, Gauge)
        child.set(value)

    def observe(self, metric: Metric, value: float, /, **labels: str) -> None:
        """Add to a histogram."""
        child = self._child(metric, labels)
        assert isinstance(child, Histogram)
        child.observe(value)

    def forget(self, metric: Metric) -> None:
        """Drop every labelled series, before those that still hold are set again."""
        self._kept[metric.name].clear()

    @contextmanager
    def timed(self, metric: Metric, **labels: str) -> Iterator[None]:
        """Add the seconds that the block takes to a histogram."""
        start = perf_counter()
        yield
        self.observe(metric, perf_counter() - start, **labels)

    def collect_with(self, collector: Collector) -> None:
        """Add a collector that builds its samples per scrape."""
        self.registry.register(collector)


def configure_logging(*, level: str = "INFO", json: bool = True, stream: TextIO | None = None) -> None:
    """Send every log line to *stream* (stderr): JSON for machines, columns for people; never a credential."""
    stream = stream or sys.stderr
    number = logging.getLevelNamesMapping()[level.upper()]
    renderer: structlog.types.Processor = (
        structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(colors=stream.isatty())
    )
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact_event,
    ]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    # Libraries log by the standard library: the same lines, from warnings up.
    handler = logging.StreamHandler(stream)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared))
    handler.addFilter(_without_trace)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)


def _without_trace(record: logging.LogRecord) -> bool:
    """Say in a word what the Kafka client met, not in a traceback: a broker that goes away is no fault of the program's."""
    if record.name.startswith("kafka.") and record.exc_info and record.exc_info[0]:
        record.msg, record.args = f"{record.getMessage()} ({record.exc_info[0].__name__})", ()
        record.exc_info = record.exc_text = None
    return True
