"""What the HTTP server is hardened with: headers on every answer, no other origin, no flood, no write, no fault told."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from aggregator.windows import retentions
from pipeline.http import MOST_CLIENTS, SECURITY_HEADERS, RateLimit, make_app
from pipeline.settings import load_settings
from pipeline.telemetry import Telemetry
from tests.aggregator.test_api import WINDOWS, AwayStore, app_of

TOKEN = "t" * 32
ANSWERS = [
    ("GET", "/", 200),
    ("GET", "/app.js", 200),
    ("GET", "/style.css", 200),
    ("GET", "/healthz", 200),
    ("GET", "/readyz", 200),
    ("GET", "/api/v1/openapi.json", 200),
    ("GET", "/metrics", 401),
    ("GET", "/api/v1/windows", 401),
    ("GET", "/nothing", 404),
    ("GET", "/../../etc/passwd", 404),
    ("GET", "/api/v1/fault", 500),
    ("POST", "/api/v1/windows", 405),
    ("DELETE", "/", 405),
    ("OPTIONS", "/api/v1/windows", 405),
    ("TRACE", "/metrics", 405),
]


@pytest.fixture
def app() -> FastAPI:
    """Make the aggregator's app, with a token and a path that fails."""
    made = app_of(AwayStore(retentions(WINDOWS)), TOKEN)

    @made.get("/api/v1/fault")
    def fault() -> None:
        raise ZeroDivisionError("secret of the inside")

    made.router.routes.insert(0, made.router.routes.pop())
    return made


@pytest.mark.parametrize(("method", "path", "status"), ANSWERS)
def test_every_answer_has_the_headers_and_lets_no_other_origin_read_it(
    app: FastAPI, method: str, path: str, status: int
) -> None:
    """Pages, figures, refusals and faults alike, whatever origin asks; a fault tells nothing of the inside."""
    with TestClient(app, raise_server_exceptions=False) as client:
        answer = client.request(method, path, headers={"Origin": "https://elsewhere.example"})
    assert answer.status_code == status
    assert {name: answer.headers.get(name) for name in SECURITY_HEADERS} == SECURITY_HEADERS
    assert not [name for name in answer.headers if name.lower().startswith("access-control-")]
    assert "server" not in answer.headers
    assert "secret of the inside" not in answer.text


def test_the_page_needs_nothing_that_its_policy_forbids(app: FastAPI) -> None:
    """No script but our own, nothing inline, no frame, no base: what the policy says is what browsers are told."""
    policy = SECURITY_HEADERS["Content-Security-Policy"]
    assert "unsafe" not in policy
    for rule in ("default-src 'self'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"):
        assert rule in policy


def test_a_client_that_asks_too_often_is_told_to_wait_and_health_is_always_told() -> None:
    """429 as a problem with Retry-After; probes are never turned away."""
    app = make_app("t", Telemetry(()).registry, list, requests_per_s=1)
    assert "429" in app.openapi()["paths"]["/metrics"]["get"]["responses"]
    with TestClient(app) as client:
        statuses = [client.get("/metrics").status_code for _ in range(30)]
        refused = client.get("/metrics")
        assert statuses[0] == 200
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.headers["content-type"] == "application/problem+json"
        assert {name: refused.headers.get(name) for name in SECURITY_HEADERS} == SECURITY_HEADERS
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200


@given(st.lists(st.floats(0, 5), min_size=1, max_size=200), st.floats(0.5, 50))
def test_no_client_gets_more_than_its_rate_and_its_burst(pauses: list[float], per_s: float) -> None:
    """Whatever its rhythm; and who waits as long as they are told is let in."""
    now = [0.0]
    limit = RateLimit(per_s, burst_s=2.0, clock=lambda: now[0])
    admitted = 0
    for pause in pauses:
        now[0] += pause
        wait_s = limit.admit("a")
        admitted += wait_s == 0
        assert admitted <= max(1.0, 2 * per_s) + now[0] * per_s + 1e-6
    if wait_s:
        now[0] += wait_s + 1e-6
        assert limit.admit("a") == 0


def test_clients_are_counted_apart_and_forgotten() -> None:
    """One that floods slows no other; what is remembered is bounded."""
    limit = RateLimit(1, burst_s=1, clock=lambda: 0.0)
    assert limit.admit("flood") == 0
    assert limit.admit("flood") > 0
    assert all(limit.admit(f"client-{n}") == 0 for n in range(2 * MOST_CLIENTS))
    assert len(limit._left) == MOST_CLIENTS


def test_the_limit_is_on_by_default() -> None:
    """The page asks less than once a second, Prometheus four times a minute."""
    assert load_settings({}).http.requests_per_s == 50
