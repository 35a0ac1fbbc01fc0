"""The API and /metrics show the same counts, and say so when they cannot."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from aggregator.api import _events, mount_api
from aggregator.exporter import VisitorsCollector
from aggregator.fusion import UNKNOWN_CELL, Cell
from aggregator.memory_store import MemoryStore
from aggregator.store import Changes, PlaceCell, Position, Snapshot
from aggregator.windows import retentions, rolling_windows
from pipeline.errors import TransportError
from pipeline.http import make_app
from pipeline.messages import CameraStatus
from pipeline.telemetry import Telemetry

WINDOWS = rolling_windows({"1m": 60, "1h": 3600})
NOW = 1_790_000_000.0


class AwayStore(MemoryStore):
    """A store that can go away."""

    away = False

    def snapshot(self, now: float, windows: Any) -> Snapshot:
        """Read, or fail."""
        if self.away:
            raise TransportError("Redis at redis://h does not answer; check that it runs")
        return super().snapshot(now, windows)


@pytest.fixture
def store() -> AwayStore:
    """Three visitors: two in the hall now, one at the entrance half an hour ago."""
    store = AwayStore(retentions(WINDOWS))
    changes = Changes()
    for ago, camera, cell in (
        (5, "hall", Cell("female", "25-34", "asian")),
        (9, "hall", UNKNOWN_CELL),
        (1800, "entrance", Cell("male", "65+", "white")),
    ):
        changes.counted[(NOW - ago, PlaceCell("museum", camera, cell))] += 1
        changes.totals[PlaceCell("museum", camera, cell)] += 1
    changes.cameras["hall"] = CameraStatus(camera_id="hall", site="museum", at=NOW - 1, state="running", fps=25)
    changes.cameras["entrance"] = CameraStatus(
        camera_id="entrance", site="museum", at=NOW - 100, state="running", fps=25
    )
    store.apply(0, changes, start=None, end=Position(1, 1))
    return store


@pytest.fixture
def client(store: AwayStore) -> Iterator[TestClient]:
    """Serve the aggregator's app."""
    telemetry = Telemetry(("aggregator",))
    telemetry.collect_with(VisitorsCollector(store, WINDOWS, telemetry, clock=lambda: NOW))
    app = make_app("t", telemetry.registry, list)
    mount_api(app, store, WINDOWS, clock=lambda: NOW)
    with TestClient(app) as client:
        yield client


def test_windows_show_each_visitor_once_in_every_breakdown(client: TestClient) -> None:
    """By gender, age band and ethnicity, with the unknown apart, over all and by camera."""
    document = client.get("/api/v1/windows").json()
    minute, hour = document["windows"]
    assert (minute["name"], minute["visitors"], minute["unknown"]) == ("1m", 2, 1)
    assert (hour["visitors"], document["total"]["visitors"]) == (3, 3)
    assert hour["gender"] == {"male": 1, "female": 1}
    assert hour["age_band"]["65+"] == 1
    assert hour["ethnicity"]["asian"] == 1
    assert hour["pyramid"]["25-34"] == {"male": 0, "female": 1}
    assert hour["cameras"]["entrance"]["visitors"] == 1
    for shown in (minute, hour):
        assert sum(shown["gender"].values()) + shown["unknown"] == shown["visitors"]
        assert sum(shown["age_band"].values()) + shown["unknown"] == shown["visitors"]


def test_a_camera_that_nobody_has_heard_of_for_long_is_silent(client: TestClient) -> None:
    """Its worker has died: the last state would be a lie."""
    entrance, hall = client.get("/api/v1/cameras").json()
    assert (hall["id"], hall["state"]) == ("hall", "running")
    assert (entrance["id"], entrance["state"], entrance["fps"]) == ("entrance", "silent", 0)


def test_visitors_come_bucket_by_bucket(client: TestClient) -> None:
    """And add up to the window."""
    document = client.get("/api/v1/visitors", params={"window": "1h"}).json()
    assert sum(bucket["visitors"] for bucket in document["buckets"]) == 3
    assert len(document["buckets"]) * document["bucket_s"] == 3600


def test_a_window_that_does_not_exist_is_a_problem_that_names_those_that_do(client: TestClient) -> None:
    """As RFC 9457 has it."""
    answer = client.get("/api/v1/visitors", params={"window": "3y"})
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert "1m, 1h" in answer.json()["detail"]


def test_metrics_show_what_the_api_shows(client: TestClient) -> None:
    """Same store, same moment, same counts."""
    lines = client.get("/metrics").text.splitlines()
    labels = 'camera="hall",gender="female",site="museum",window="1m"'
    assert f'demographics_visitors{{age_band="25-34",{labels}}} 1.0' in {_sorted(line) for line in lines}
    hour = sum(
        float(line.split()[-1]) for line in lines if line.startswith("demographics_visitors{") and 'window="1h"' in line
    )
    ever = sum(float(line.split()[-1]) for line in lines if line.startswith("demographics_visitors_total{"))
    assert (hour, ever) == (3, 3)


def test_metrics_show_the_state_of_each_camera(client: TestClient, store: AwayStore) -> None:
    """As the page does; one that was taken away a day ago is forgotten."""
    gone = Changes()
    gone.cameras["attic"] = CameraStatus(camera_id="attic", site="museum", at=NOW - 90_000, state="running")
    store.apply(0, gone, start=Position(1, 1), end=Position(1, 2))
    lines = client.get("/metrics").text.splitlines()
    states = {_sorted(line) for line in lines if line.startswith("demographics_camera_state{")}
    assert states == {
        'demographics_camera_state{camera="entrance",site="museum",state="silent"} 1.0',
        'demographics_camera_state{camera="hall",site="museum",state="running"} 1.0',
    }
    assert "demographics_store_up 1.0" in lines


def _sorted(line: str) -> str:
    if "{" not in line:
        return line
    name, rest = line.split("{", 1)
    labels, value = rest.rsplit("} ", 1)
    return f"{name}{{{','.join(sorted(labels.split(',')))}}} {value}"


def test_a_store_that_is_away_is_a_problem_and_a_scrape_without_visitors(client: TestClient, store: AwayStore) -> None:
    """Never a wrong zero: the visitor metrics are missing, the failure is counted, the API says what to do."""
    store.away = True
    answer = client.get("/api/v1/windows")
    assert answer.status_code == 503
    assert "check that it runs" in answer.json()["detail"]
    text = client.get("/metrics").text
    assert "demographics_visitors{" not in text
    assert "demographics_store_up 0.0" in text
    assert "demographics_store_failures_total 1.0" in client.get("/metrics").text
    store.away = False
    assert client.get("/api/v1/windows").status_code == 200


@pytest.mark.parametrize("away", [False, True])
def test_the_stream_tells_the_state_or_the_trouble(store: AwayStore, away: bool) -> None:
    """The page lives on it."""
    import asyncio  # noqa: PLC0415

    def state() -> dict[str, Any]:
        if away:
            raise TransportError("Redis is away")
        return {"windows": []}

    async def first() -> str:
        events = _events(state)
        try:
            return await anext(events)
        finally:
            await events.aclose()  # type: ignore[attr-defined]

    event = asyncio.run(first())
    if away:
        assert event.startswith("event: trouble\ndata: ")
    else:
        assert json.loads(event.removeprefix("data: ")) == {"windows": []}


def test_the_api_describes_itself(client: TestClient) -> None:
    """For those who build on it."""
    paths = client.get("/api/v1/openapi.json").json()["paths"]
    assert {"/api/v1/windows", "/api/v1/cameras", "/api/v1/visitors", "/metrics", "/healthz"} <= paths.keys()
