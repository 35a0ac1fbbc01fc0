"""Percentiles from histograms, as Prometheus works them out; of one registry, or of what a service's /metrics says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client.parser import text_string_to_metric_families

from pipeline.telemetry import Metric, Telemetry

Buckets = Mapping[float, float]
"""Upper bound to the number of observations up to there."""


def of_telemetry(telemetry: Telemetry, metric: Metric) -> dict[float, float]:
    """Read a histogram as it is now."""
    return _buckets(telemetry.samples(metric))


def of_texts(texts: Iterable[str], metric: Metric) -> dict[float, float]:
    """Read a histogram from the pages of several services, added up."""
    total: dict[float, float] = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            if family.name == metric.name:
                for bound, count in _buckets((one.name, one.labels, one.value) for one in family.samples).items():
                    total[bound] = total.get(bound, 0.0) + count
    return total


def _buckets(samples: Iterable[tuple[str, Mapping[str, str], float]]) -> dict[float, float]:
    return {float(labels["le"]): value for name, labels, value in samples if name.endswith("_bucket")}


def since(now: Buckets, before: Buckets) -> dict[float, float]:
    """Take what was observed before away."""
    return {bound: count - before.get(bound, 0.0) for bound, count in now.items()}


def quantile(share: float, buckets: Buckets) -> float:
    """Give the value that *share* of the observations do not exceed, interpolated within its bucket; 0 of none."""
    wanted = share * max(buckets.values(), default=0.0)
    if not wanted:
        return 0.0
    below, lower = 0.0, 0.0
    for bound, count in sorted(buckets.items()):
        if count >= wanted:
            if bound == float("inf"):
                return lower
            return min(bound, lower + (bound - lower) * (wanted - below) / (count - below))  # rounded, it may lie above
        below, lower = count, bound
    return lower
