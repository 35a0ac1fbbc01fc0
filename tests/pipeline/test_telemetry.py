"""Metrics are declared once, with all that is to be said of them, and written as Prometheus' own library writes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from ingest.frames import FRAME_REJECTS
from ingest.step import REJECTS
from pipeline import telemetry as metrics
from pipeline.errors import TransportError
from pipeline.exposition import exposition
from pipeline.retention import RetentionWatch
from pipeline.telemetry import Metric, Telemetry, declared

OWNERS = ("ingest", "inference", "aggregator")


@pytest.mark.parametrize("metric", declared(), ids=lambda metric: metric.name)
def test_every_metric_says_its_unit_its_owner_and_what_it_is(metric: Metric) -> None:
    """A gauge whose name does not end in its unit has to say it: Metric(..., unit="records")."""
    assert metric.name.startswith("demographics_")
    assert metric.measured_in
    assert metric.help.endswith(".")
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert bool(metric.buckets) == (metric.kind == "histogram")


def test_names_are_declared_once() -> None:
    """Two declarations of one name would be two metrics in one."""
    assert [name for name, n in Counter(metric.name for metric in declared()).items() if n > 1] == []


def test_what_can_be_counted_stands_at_zero_from_the_start() -> None:
    """Else the first event is no increase, and an alert on it never fires."""
    telemetry = Telemetry(OWNERS)  # type: ignore[arg-type]
    telemetry.introduce_camera("museum", "hall")
    dead = {labels["reason"]: value for _, labels, value in telemetry.samples(metrics.DEAD_LETTERS_TOTAL)}
    assert dead == dict.fromkeys(metrics.DEAD_LETTERS_TOTAL.reasons, 0.0)
    drops = {tuple(labels.values()): value for _, labels, value in telemetry.samples(metrics.DROPS)}
    assert drops == {("museum", "hall", reason): 0.0 for reason in metrics.DROPS.reasons}


def test_a_camera_has_no_more_series_than_is_said() -> None:
    """What docs/metrics.md states for the ingest worker, counted on the scrape of one that has seen everything."""
    telemetry = Telemetry(("ingest",))
    telemetry.introduce_camera("museum", "hall")
    for metric in declared():
        if metric.owner == "ingest" and metric.kind == "gauge":
            telemetry.set(metric, 1, site="museum", camera="hall")
    lines = [line for line in exposition(telemetry.registry).decode().splitlines() if 'camera="hall"' in line]
    said = sum(metric.series() for metric in declared() if metric.owner == "ingest" and "camera" in metric.labels)
    assert len(lines) == said


class _Odd(Collector):
    def collect(self) -> Iterator[Family]:
        gauge = GaugeMetricFamily("odd", 'with "quotes",\na line and a \\', labels=["name"])
        for name in ("plain", 'a "quoted" one', "two\nlines", "back\\slash", "", "ümlaut"):
            gauge.add_metric([name], 1.5e300)
        counter = CounterMetricFamily("many", "Many.", labels=[])
        counter.add_metric([], 12_345_678)
        yield from (gauge, counter)


def test_the_exposition_is_what_prometheus_own_library_writes() -> None:
    """Only quicker; every kind, every odd label and number."""
    telemetry = Telemetry(OWNERS)  # type: ignore[arg-type]
    telemetry.introduce_camera("museum", "hall")
    telemetry.observe(metrics.FACE_SIZE, 61.7, site="museum", camera="hall")
    telemetry.set(metrics.TOPIC_RETENTION, float("inf"), topic="face-crops")
    telemetry.set(metrics.LAG, float("nan"), topic="face-crops", partition="0")
    telemetry.collect_with(_Odd())

    def parsed(text: bytes) -> list[str]:
        families = text_string_to_metric_families(text.decode())
        return [
            f"{family.name} {family.type} {family.documentation} {sample.name} {sorted(sample.labels.items())} {sample.value}"
            for family in families
            for sample in family.samples
        ]

    assert parsed(exposition(telemetry.registry)) == parsed(generate_latest(telemetry.registry))
    assert exposition(CollectorRegistry()) == b""


def test_a_broker_that_does_not_say_its_retention_is_missed() -> None:
    """Where nothing flows, nobody else may notice that Kafka is away."""

    def ask(_topics: object) -> dict[str, float]:
        raise TransportError("Kafka is away")

    telemetry = Telemetry(("aggregator",))
    RetentionWatch(ask, ["face-crops"], telemetry).look()
    assert telemetry.samples(metrics.BUS_FAILURES) == [(metrics.BUS_FAILURES.name, {}, 1.0)]


def test_a_retention_that_is_not_known_is_not_shown() -> None:
    """An old answer would hide that somebody has changed it meanwhile."""
    telemetry = Telemetry(("aggregator",))
    answers: list[dict[str, float]] = [{"face-crops": 750.0}]

    def ask(_topics: object) -> dict[str, float]:
        if not answers:
            raise TransportError("Kafka is away")
        return answers.pop()

    watch = RetentionWatch(ask, ["face-crops"], telemetry)
    watch.look()
    assert telemetry.samples(metrics.TOPIC_RETENTION) == [
        (metrics.TOPIC_RETENTION.name, {"topic": "face-crops"}, 750.0)
    ]
    watch.look()
    assert telemetry.samples(metrics.TOPIC_RETENTION) == []


def test_the_reasons_that_ingest_gives_are_those_that_are_declared() -> None:
    """Each stands at zero from the start; one that is not declared would come out of nowhere."""
    assert set(metrics.REJECTS.reasons) == set(REJECTS)
    assert set(metrics.BAD_FRAMES.reasons) == set(FRAME_REJECTS)


def test_observing_all_at_once_is_observing_each() -> None:
    """Sum, count and every bucket are the same, those beyond the last bound included."""
    values = [0.0, 0.1, 0.1000001, 0.25, 7.0, 1e9, -1.0]
    one, all_at_once = Telemetry(("aggregator",)), Telemetry(("aggregator",))
    for value in values:
        one.observe(metrics.CAPTURE_TO_COUNT, value)
    all_at_once.observe_all(metrics.CAPTURE_TO_COUNT, values)
    all_at_once.observe_all(metrics.CAPTURE_TO_COUNT, [])
    assert all_at_once.samples(metrics.CAPTURE_TO_COUNT) == one.samples(metrics.CAPTURE_TO_COUNT)
