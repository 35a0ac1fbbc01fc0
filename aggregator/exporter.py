"""The counts as Prometheus metrics: built from the store at every scrape, so that no label set outlives its visitors.

Every aggregator shows every count, read from the one store: a lost or added aggregator neither hides nor doubles anybody,
as long as queries take `max without (instance)` before they sum (the recording rules and dashboards do).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from aggregator.disclosure import Counts
from aggregator.store import DWELL_BUCKETS_S, Snapshot
from aggregator.views import SILENT, cameras_view
from aggregator.windows import RollingWindow
from pipeline import telemetry as metrics
from pipeline.errors import TransportError
from pipeline.telemetry import Telemetry

log = structlog.get_logger()

FORGOTTEN_S: Final = 86400.0  # a camera that was silent for so long is none of ours any more


class VisitorsCollector(Collector):
    """Builds the visitor metrics from the store."""

    def __init__(
        self,
        store: Counts,
        windows: Iterable[RollingWindow],
        telemetry: Telemetry,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._windows = tuple(windows)
        self._telemetry = telemetry
        self._clock = clock

    def describe(self) -> Iterable[Family]:
        """Describe nothing: else the store would be read at registration."""
        return ()

    def collect(self) -> Iterator[Family]:
        """Read the store once and give every sample; none where it does not answer, which is counted."""
        now = self._clock()
        up = GaugeMetricFamily(metrics.STORE_UP.name, metrics.STORE_UP.help)
        try:
            with self._telemetry.timed(metrics.STORE_READ_SECONDS):
                snapshot = self._store.snapshot(now, self._windows)
        except TransportError as error:
            self._telemetry.add(metrics.STORE_RETRIES)
            log.warning("scrape_without_store", detail=str(error))
            up.add_metric((), 0)
            yield up
            return
        up.add_metric((), 1)
        visitors = GaugeMetricFamily(metrics.VISITORS.name, metrics.VISITORS.help, labels=metrics.VISITORS.labels)
        by_ethnicity = GaugeMetricFamily(
            metrics.VISITORS_BY_ETHNICITY.name,
            metrics.VISITORS_BY_ETHNICITY.help,
            labels=metrics.VISITORS_BY_ETHNICITY.labels,
        )
        for window, tallies in snapshot.windows.items():
            for place, tally in sorted(tallies.items()):
                for (gender, band), count in sorted(tally.people.items()):
                    visitors.add_metric((place.site, place.camera_id, window, gender, band), count)
                for ethnicity, count in sorted(tally.ethnicity.items()):
                    by_ethnicity.add_metric((place.site, place.camera_id, window, ethnicity), count)
        total = CounterMetricFamily(
            metrics.VISITORS_TOTAL.name, metrics.VISITORS_TOTAL.help, labels=metrics.VISITORS_TOTAL.labels
        )
        for place, tally in sorted(snapshot.totals.items()):
            for (gender, band), count in sorted(tally.people.items()):
                total.add_metric((place.site, place.camera_id, gender, band), count)
        state = GaugeMetricFamily(
            metrics.CAMERA_STATE.name, metrics.CAMERA_STATE.help, labels=metrics.CAMERA_STATE.labels
        )
        for camera in cameras_view(snapshot.cameras, now):
            if camera["state"] == SILENT and now - camera["reported_at"] > FORGOTTEN_S:
                continue  # it was taken away; the store remembers it
            state.add_metric((camera["site"], camera["id"], camera["state"]), 1)
        yield from (visitors, by_ethnicity, total, state, up, *_passages(snapshot))


def _passages(snapshot: Snapshot) -> Iterator[Family]:
    crossings = CounterMetricFamily(metrics.CROSSINGS.name, metrics.CROSSINGS.help, labels=metrics.CROSSINGS.labels)
    dwell = HistogramMetricFamily(metrics.DWELL.name, metrics.DWELL.help, labels=metrics.DWELL.labels)
    for place, said in sorted(snapshot.passages.items()):
        if said.entries or said.exits:
            crossings.add_metric((*place, "in"), said.entries)
            crossings.add_metric((*place, "out"), said.exits)
        if said.dwell:
            below = 0
            buckets = []
            for bound in (*map(str, DWELL_BUCKETS_S), "inf"):
                below += said.dwell[bound]
                buckets.append(("+Inf" if bound == "inf" else f"{float(bound)}", float(below)))
            dwell.add_metric(place, buckets, said.dwell_s)
    yield from (crossings, dwell)
