"""What the services say of themselves: every metric in one place, and structured logs.

A metric is declared here once: name, help, unit, labels, who owns it. Labels come from closed sets (sites, cameras, reasons,
partitions), never a track, a person or an address, so that a camera has a number of series that can be said beforehand.
docs/metrics.md is generated from this module (`make docs`).
"""

from __future__ import annotations

import logging
import sys
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Final, Literal, NamedTuple, TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.registry import Collector

from pipeline.attributes import AGE_BANDS, ETHNICITIES, GENDERS
from pipeline.errors import InvalidMessage, source_reasons
from pipeline.manifest import ENGINES
from pipeline.redaction import redact_event

Kind = Literal["counter", "gauge", "histogram"]
Owner = Literal["ingest", "inference", "aggregator", "every service"]

disable_created_metrics()  # type: ignore[no-untyped-call]  # the second at which a series was made: read by nobody, and it would double the counters

# What the name of a metric ends in, and what that says of its unit. A counter without one counts what its name says.
_SUFFIXES: Final = {
    "_seconds": "seconds",
    "_px": "pixels",
    "_fps": "frames a second",
    "_years": "years",
    "_ratio": "0 to 1",
    "_bytes": "bytes",
    "_up": "0 or 1",
}


class Metric(NamedTuple):
    """One declaration. `collected` metrics are built per scrape from the store, not kept in the process.

    `reasons` are the values of the last label where they are known beforehand: their series stand at zero from the start, so
    that the first event is an increase. `unit` is needed where neither the name ends in it nor a counter's name says it.
    """

    name: str
    kind: Kind
    help: str
    owner: Owner
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    collected: bool = False
    reasons: tuple[str, ...] = ()
    unit: str = ""

    @property
    def measured_in(self) -> str:
        """The unit; empty where nothing says it, which a test refuses."""
        if self.unit:
            return self.unit
        said = next((unit for suffix, unit in _SUFFIXES.items() if self.name.endswith(suffix)), "")
        if said or self.kind != "counter":
            return said
        return self.name.removeprefix("demographics_").removesuffix("_total").replace("_", " ")

    def series(self, *, windows: int = 5, partitions: int = 12) -> int:
        """Count the series that it has at most: for each camera where it has that label, else in each process."""
        # A place is suppressed as a whole: then this is its one series. Gender and age band are unknown together, or both known.
        sizes = {"window": windows, "partition": partitions, "gender": 1, "ethnicity": len(ETHNICITIES) + 1}
        sizes["age_band"] = len(GENDERS) * len(AGE_BANDS) + 1
        if self.reasons:
            sizes[self.labels[-1]] = len(self.reasons)
        count = len(self.buckets) + 3 if self.buckets else 1
        for label in self.labels:
            count *= sizes.get(label, 1)
        return count


_FAST: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SLOW: Final = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 60.0, 300.0)
_CAMERA: Final = ("site", "camera")

# --- what it is all for: read from the store at every scrape, the same on every aggregator -------------------------------
VISITORS = Metric(
    "demographics_visitors",
    "gauge",
    "Visitors first seen within the rolling window; labelled `suppressed` where they are too few to be broken down.",
    "aggregator",
    (*_CAMERA, "window", "gender", "age_band"),
    collected=True,
    unit="visitors",
)
VISITORS_BY_ETHNICITY = Metric(
    "demographics_visitors_by_ethnicity",
    "gauge",
    "Visitors first seen within the rolling window; labelled `suppressed` where they are too few to be broken down.",
    "aggregator",
    (*_CAMERA, "window", "ethnicity"),
    collected=True,
    unit="visitors",
)
VISITORS_TOTAL = Metric(
    "demographics_visitors_total",
    "counter",
    "Visitors whose passage has ended, ever; kept in the store.",
    "aggregator",
    (*_CAMERA, "gender", "age_band"),
    collected=True,
)
CAMERA_STATE = Metric(
    "demographics_camera_state",
    "gauge",
    "1 for the state that the camera is in, as the page shows it; `silent`: its worker has said nothing for 15 seconds.",
    "aggregator",
    (*_CAMERA, "state"),
    collected=True,
    unit="0 or 1",
)
STORE_UP = Metric(
    "demographics_store_up",
    "gauge",
    "1 where this scrape could read the counts; 0: Redis does not answer, and the visitor metrics are missing.",
    "aggregator",
    collected=True,
)

CROSSINGS = Metric(
    "demographics_crossings_total",
    "counter",
    "Crossings of a camera's line by confirmed people, in and out, ever; kept in the store.",
    "aggregator",
    (*_CAMERA, "direction"),
    collected=True,
    reasons=("in", "out"),
)
DWELL = Metric(
    "demographics_dwell_seconds",
    "histogram",
    "How long visitors were in the camera's zone, or in view; kept in the store.",
    "aggregator",
    _CAMERA,
    (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800),
    collected=True,
)

# --- ingest ---------------------------------------------------------------------------------------------------------------
CAMERA_UP = Metric("demographics_camera_up", "gauge", "1 while the camera delivers frames.", "ingest", _CAMERA)
CAMERA_FPS = Metric(
    "demographics_camera_fps", "gauge", "Frames per second that the camera delivers.", "ingest", _CAMERA
)
CAMERA_WANTED_FPS = Metric(
    "demographics_camera_wanted_fps", "gauge", "Frames per second that are to be searched for faces.", "ingest", _CAMERA
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
    reasons=("newest_wins", "bus"),
)
REJECTS = Metric(
    "demographics_rejects_total",
    "counter",
    "Not used: tracks that were no face (unconfirmed), faces in an excluded place (masked) or that never move (picture), people "
    "whom the camera's rule does not count (not_counted), crops below a bar (small, blurred, turned, dark, quality, landmarks).",
    "ingest",
    (*_CAMERA, "reason"),
    reasons=(
        "unconfirmed",
        "masked",
        "picture",
        "not_counted",
        "landmarks",
        "small",
        "blurred",
        "turned",
        "dark",
        "quality",
    ),
)
BAD_FRAMES = Metric(
    "demographics_bad_frames_total",
    "counter",
    "Pictures not searched: corrupt by the decoder's word, dark, flat, green, torn, or a repetition of the one before.",
    "ingest",
    (*_CAMERA, "reason"),
    reasons=("corrupt", "dark", "flat", "green", "torn", "repeated"),
)
STILL = Metric(
    "demographics_still_frames_total",
    "counter",
    "Pictures of an empty scene in which nothing moved.",
    "ingest",
    _CAMERA,
)
DETECT_FPS = Metric(
    "demographics_detect_fps",
    "gauge",
    "Pictures a second that are searched at most: less than wanted where the worker cannot keep up.",
    "ingest",
    _CAMERA,
)
PRESENT = Metric(
    "demographics_present",
    "gauge",
    "Confirmed people in the camera's zone, or in view, now.",
    "ingest",
    _CAMERA,
    unit="people",
)
READERS_LEFT = Metric(
    "demographics_readers_left_behind",
    "gauge",
    "Threads of connections that hang within a library and were given up.",
    "ingest",
    _CAMERA,
    unit="threads",
)
CONNECTS_FAILED = Metric(
    "demographics_camera_failures_total",
    "counter",
    "Connections that failed or were lost, by reason.",
    "ingest",
    (*_CAMERA, "reason"),
    reasons=source_reasons(),
)
ENDED_IN_VIEW = Metric(
    "demographics_ended_in_view_total",
    "counter",
    "People in view when their camera was ended or given to another worker, which counts them anew.",
    "ingest",
    _CAMERA,
    unit="people",
)
SOFTWARE_INSTEAD = Metric(
    "demographics_hardware_fallbacks_total",
    "counter",
    "Connections that are decoded in software, because the hardware that was asked for is not to be had.",
    "ingest",
    _CAMERA,
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
PICTURE_AGE = Metric(
    "demographics_picture_age_seconds",
    "histogram",
    "How old a live picture is once its faces are known: more than a moment is overload.",
    "ingest",
    (),
    _SLOW,
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
    unit="face crops",
)
DECODE_WAIT = Metric(
    "demographics_decode_wait_seconds",
    "histogram",
    "Time that a pass of the network waited for its pictures to be decoded.",
    "inference",
    (),
    _FAST,
)
ENGINE = Metric(
    "demographics_engine", "gauge", "1 for the engine that runs the network.", "inference", ("engine",),
    reasons=ENGINES, unit="0 or 1",
)  # fmt: skip
ENGINE_RATE = Metric(
    "demographics_engine_rate",
    "gauge",
    "Face crops a second that an engine reached in full batches when it was tried; nothing where it was not tried.",
    "inference",
    ("engine",),
    unit="face crops a second",
)
ENGINE_DIFFERENCE = Metric(
    "demographics_engine_difference_years",
    "gauge",
    "How far an engine's ages lie from those of the model's golden batch, on average, when it was tried.",
    "inference",
    ("engine",),
)
PREDICTIONS_TOTAL = Metric("demographics_predictions_total", "counter", "Face crops predicted.", "inference")
CAPTURE_TO_BUS = Metric(
    "demographics_capture_to_bus_seconds",
    "histogram",
    "From the frame to the topic of face crops, of each crop as it is predicted.",
    "inference",
    (),
    _SLOW,
)
BUS_TO_PREDICTION = Metric(
    "demographics_bus_to_prediction_seconds",
    "histogram",
    "From the topic of face crops to the published prediction: waiting, decoding, the network.",
    "inference",
    (),
    _SLOW,
)
# What the model says, so that a change of its inputs or of itself shows before the counts go wrong.
CONFIDENCE = Metric(
    "demographics_confidence_ratio",
    "histogram",
    "Probability of the label that the model thought likeliest, of each face crop, by head.",
    "inference",
    ("head",),
    (0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.9, 0.95, 0.99),
    reasons=("gender", "ethnicity"),
)
PREDICTED_AGE = Metric(
    "demographics_predicted_age_years",
    "histogram",
    "Age that the model estimates, of each face crop.",
    "inference",
    (),
    (10, 18, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 80),
)
AGE_SPREAD = Metric(
    "demographics_age_spread_years",
    "histogram",
    "How unsure the model is of the age: the standard deviation over years, of each face crop.",
    "inference",
    (),
    (2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20),
)
CROP_QUALITY = Metric(
    "demographics_crop_quality_ratio",
    "histogram",
    "How usable the predicted face crops were: size, sharpness, frontality, detector's score.",
    "inference",
    (),
    (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
)

# --- aggregator -----------------------------------------------------------------------------------------------------------
CAPTURE_TO_COUNT = Metric(
    "demographics_capture_to_count_seconds",
    "histogram",
    "From the frame to the store, of each prediction as it is applied.",
    "aggregator",
    (),
    _SLOW,
)
BUS_TO_COUNT = Metric(
    "demographics_bus_to_count_seconds",
    "histogram",
    "From the topic of predictions to the store, of each record as it is applied.",
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
OPEN_TRACKS = Metric("demographics_open_tracks", "gauge", "Tracks that have not ended.", "aggregator", unit="tracks")
STORE_RETRIES = Metric(
    "demographics_store_failures_total", "counter", "Calls that the store did not answer.", "aggregator"
)
STORE_READ_SECONDS = Metric(
    "demographics_store_read_seconds",
    "histogram",
    "Time to read every count from the store, for a scrape.",
    "aggregator",
    (),
    _FAST,
)
TOPIC_RETENTION = Metric(
    "demographics_topic_retention_seconds",
    "gauge",
    "How long the topic's records may stay on the broker's disk, as the broker has it; +Inf: for ever.",
    "aggregator",
    ("topic",),
)

# --- every service --------------------------------------------------------------------------------------------------------
LAG = Metric(
    "demographics_consumer_lag",
    "gauge",
    "Records of the partition that have not been read.",
    "every service",
    ("topic", "partition"),
    unit="records",
)
STALLS = Metric(
    "demographics_partition_stalls_total",
    "counter",
    "Times that a partition was found to stand still although it has more, and was fetched anew.",
    "every service",
    ("topic", "partition"),
)
DEAD_LETTERS_TOTAL = Metric(
    "demographics_dead_letters_total",
    "counter",
    "Records that will never decode.",
    "every service",
    ("reason",),
    reasons=InvalidMessage.REASONS,
)
BUS_FAILURES = Metric(
    "demographics_bus_failures_total",
    "counter",
    "Calls that the bus did not answer; they are repeated.",
    "every service",
)
BATCH_WAIT = Metric(
    "demographics_batch_wait_seconds",
    "histogram",
    "Time that the first record of a batch waited for others to share its pass.",
    "every service",
    (),
    _FAST,
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
        self._by_camera = [
            metric
            for metric in declared()
            if metric.name in self._kept and metric.labels[:2] == _CAMERA and metric.kind != "gauge"
        ]
        for metric in declared():
            if metric.name in self._kept and len(metric.labels) == 1:
                for reason in metric.reasons:
                    self._child(metric, {metric.labels[0]: reason})

    def introduce_camera(self, site: str, camera: str) -> None:
        """Stand every counter of a camera at zero, so that the first event is an increase."""
        for metric in self._by_camera:
            for reason in metric.reasons or ("",):
                self._child(metric, dict(zip(metric.labels, (site, camera, reason), strict=False)))

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

    def observe_all(self, metric: Metric, values: Iterable[float], /, **labels: str) -> None:
        """Add many to a histogram at once: a batch costs as much as a few of them.

        What prometheus_client keeps for a bucket is moved by their number; a test holds it to what `observe` does.
        """
        child = self._child(metric, labels)
        assert isinstance(child, Histogram)
        bounds, total = child._upper_bounds, 0.0  # noqa: SLF001
        counts = [0] * len(bounds)
        for value in values:
            total += value
            counts[bisect_left(bounds, value)] += 1
        child._sum.inc(total)  # noqa: SLF001
        for bucket, count in zip(child._buckets, counts, strict=True):  # noqa: SLF001
            if count:
                bucket.inc(count)

    def forget(self, metric: Metric) -> None:
        """Drop every labelled series, before those that still hold are set again."""
        self._kept[metric.name].clear()

    def samples(self, metric: Metric) -> list[tuple[str, dict[str, str], float]]:
        """Read what is kept of *metric*: name, labels and value of every sample; nothing where it is not kept here."""
        kept = self._kept.get(metric.name)
        families = kept.collect() if kept else ()
        return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]

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
