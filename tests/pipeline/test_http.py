"""What every service answers."""

from __future__ import annotations

import socket

import httpx2
import pytest

from pipeline.errors import ConfigError
from pipeline.http import HttpServer, make_app
from pipeline.telemetry import RECORDS, Telemetry, declared


def test_health_readiness_and_metrics_over_a_real_socket() -> None:
    """Alive at once; ready when nothing is in the way; metrics in Prometheus' format; security headers on all."""
    problems = ["waiting for Kafka"]
    telemetry = Telemetry(("ingest",))
    telemetry.add(RECORDS, 3, topic="face-crops")
    server = HttpServer(make_app("t", telemetry.registry, lambda: problems), host="127.0.0.1", port=0)
    server.start()
    try:
        with httpx2.Client(base_url=server.url, timeout=10) as client:
            assert client.get("/healthz").json() == {"status": "ok"}
            waiting = client.get("/readyz")
            assert (waiting.status_code, waiting.json()["problems"]) == (503, problems)
            problems.clear()
            assert client.get("/readyz").status_code == 200
            scraped = client.get("/metrics")
            assert 'demographics_records_total{topic="face-crops"} 3.0' in scraped.text
            assert scraped.headers["content-security-policy"].startswith("default-src 'self'")
            assert client.get("/nothing").status_code == 404
    finally:
        server.close()


def test_a_port_that_is_taken_says_which_setting_to_change() -> None:
    """The process does not start half."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="DEMOGRAPHICS_HTTP__PORT"):
        HttpServer(make_app("t", Telemetry(()).registry, list), host="127.0.0.1", port=taken.getsockname()[1])


def test_metric_names_and_labels_keep_to_the_interface() -> None:
    """Names say the product and the unit; no label could name a person, a track or an address."""
    for metric in declared():
        assert metric.name.startswith("demographics_"), metric
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric
        assert set(metric.labels) <= {
            "site", "camera", "window", "gender", "age_band", "ethnicity", "reason", "topic", "partition", "direction",
            "state", "head", "engine",
        }, metric  # fmt: skip
        assert metric.help.endswith("."), metric
        assert (metric.kind == "histogram") == bool(metric.buckets), metric
