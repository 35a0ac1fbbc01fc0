"""The API and /metrics show the same counts, and say so when they cannot."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from pydantic import SecretStr

from aggregator.api import SharedEvent, mount_api
from aggregator.exporter import VisitorsCollector
from aggregator.fusion import UNKNOWN_CELL, Cell
from aggregator.health import PipelineHealth
from aggregator.memory_store import MemoryStore
from aggregator.store import Changes, PlaceCell, Position, Snapshot
from aggregator.windows import retentions, rolling_windows
from pipeline.errors import ConfigError, TransportError
from pipeline.http import make_app
from pipeline.messages import CameraStatus
from pipeline.settings import load_settings
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


def app_of(store: AwayStore, token: str = "") -> FastAPI:
    """Make the aggregator's app."""
    telemetry = Telemetry(("aggregator",))
    telemetry.collect_with(VisitorsCollector(store, WINDOWS, telemetry, clock=lambda: NOW))
    app = make_app("t", telemetry.registry, list, token=SecretStr(token))
    mount_api(app, store, WINDOWS, PipelineHealth(telemetry), clock=lambda: NOW)
    return app


@pytest.fixture
def client(store: AwayStore) -> Iterator[TestClient]:
    """Serve the aggregator's app."""
    with TestClient(app_of(store)) as client:
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


def test_the_stream_tells_the_state_or_the_trouble_and_makes_each_event_once_for_all() -> None:
    """The page lives on it; ten pages cost the store no more than one."""
    now, made, away = [0.0], [0], [False]

    def state() -> dict[str, Any]:
        made[0] += 1
        if away[0]:
            raise TransportError("Redis is away")
        return {"windows": []}

    shared = SharedEvent(state, keep_s=0.9, clock=lambda: now[0])
    assert [shared.read() for _ in range(10)] == [f"data: {json.dumps({'windows': []})}\n\n"] * 10
    assert made == [1]
    now[0], away[0] = 1.0, True
    assert shared.read() == 'event: trouble\ndata: "Redis is away"\n\n'
    assert made == [2]


def test_a_series_can_be_had_as_csv(client: TestClient) -> None:
    """For spreadsheets: by the header or by the address, a line for each bucket, the same counts as in JSON."""
    answers = [
        client.get("/api/v1/visitors", params={"window": "1h", "format": "csv"}),
        client.get("/api/v1/visitors", params={"window": "1h"}, headers={"Accept": "text/csv"}),
    ]
    assert answers[0].text == answers[1].text
    assert answers[0].headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answers[0].text)))
    buckets = client.get("/api/v1/visitors", params={"window": "1h"}).json()["buckets"]
    assert [int(row["visitors"]) for row in rows] == [bucket["visitors"] for bucket in buckets]
    assert [datetime.fromisoformat(row["start"]).timestamp() for row in rows] == [b["start"] for b in buckets]
    assert sum(int(row["age_band_65+"]) for row in rows) == 1
    assert sum(int(row["ethnicity_asian"]) + int(row["gender_male"]) + int(row["unknown"]) for row in rows) == 3


def test_a_series_can_be_had_of_one_camera_or_site(client: TestClient) -> None:
    """And one that nobody has heard of is said, with those that are known."""

    def visitors(**only: str) -> int:
        answer = client.get("/api/v1/visitors", params={"window": "1h", **only})
        assert answer.status_code == 200, answer.text
        return sum(bucket["visitors"] for bucket in answer.json()["buckets"])

    assert [visitors(camera="hall"), visitors(camera="entrance"), visitors(site="museum")] == [2, 1, 3]
    answer = client.get("/api/v1/visitors", params={"camera": "attic"})
    assert answer.status_code == 404
    assert "museum/hall" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/v1/nothing", 404),
        ("GET", "/api/v1/visitors?window=3y", 404),
        ("GET", "/api/v1/visitors?format=xml", 422),
        ("GET", "/api/v1/visitors?camera=%00", 422),
        ("POST", "/api/v1/windows", 405),
        ("DELETE", "/metrics", 405),
        ("PUT", "/", 405),
    ],
)
def test_whatever_is_refused_is_a_problem_with_what_to_do(
    client: TestClient, method: str, path: str, status: int
) -> None:
    """As RFC 9457 has it; and nothing can be changed."""
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    said = answer.json()
    assert said["status"] == status
    assert said["title"]
    assert len(said["detail"]) > 20
    assert (status == 405) == ("allow" in answer.headers)


def test_a_fault_of_ours_is_a_problem_that_gives_nothing_away(store: AwayStore) -> None:
    """What failed is in the log, not in the answer."""
    app = app_of(store)
    app.router.routes.insert(0, APIRoute("/api/v1/broken", lambda: 1 / 0))
    with TestClient(app, raise_server_exceptions=False) as client:
        answer = client.get("/api/v1/broken")
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert "ZeroDivision" not in answer.text


TOKEN = "0123456789abcdef-token"


@pytest.mark.parametrize(
    "path", ["/api/v1/windows", "/api/v1/cameras", "/api/v1/visitors", "/api/v1/pipeline", "/metrics"]
)
def test_with_a_token_figures_are_only_given_to_who_has_it(store: AwayStore, path: str) -> None:
    """Health is still said without, and the page's own files, which hold no figure."""
    with TestClient(app_of(store, TOKEN)) as client:
        for wrong in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": f"Basic {TOKEN}"},
            {"Authorization": "Bearer"},
        ):
            answer = client.get(path, headers=wrong)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert answer.headers["content-type"] == "application/problem+json"
            assert TOKEN not in answer.text
        assert client.get(path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert (
            client.get("/healthz").status_code
            == client.get("/readyz").status_code
            == client.get("/").status_code
            == 200
        )


def test_a_weak_token_is_refused_at_start_and_no_token_is_ever_shown() -> None:
    """With what to do instead."""
    with pytest.raises(ConfigError, match="openssl rand"):
        load_settings({}, http={"token": "short"})
    assert TOKEN not in repr(load_settings({}, http={"token": TOKEN}))


def test_the_api_describes_itself(client: TestClient) -> None:
    """For those who build on it."""
    paths = client.get("/api/v1/openapi.json").json()["paths"]
    assert {"/api/v1/windows", "/api/v1/cameras", "/api/v1/visitors", "/metrics", "/healthz"} <= paths.keys()


def test_crossings_dwell_and_presence_are_shown(client: TestClient, store: AwayStore) -> None:
    """As counters, as a histogram that Prometheus understands, and in the API."""
    changes = Changes()
    changes.passages.update(
        {
            ("x", "museum", "hall", "in"): 3, ("x", "museum", "hall", "out"): 1,
            ("d", "museum", "hall", "5"): 2, ("d", "museum", "hall", "inf"): 1, ("t", "museum", "hall", "ms"): 2_007_000,
        }
    )  # fmt: skip
    changes.cameras["hall"] = CameraStatus(camera_id="hall", site="museum", at=NOW - 1, state="running", present=4)
    store.apply(0, changes, start=Position(1, 1), end=Position(2, 2))
    shown = client.get("/metrics").text
    place = 'site="museum",camera="hall"'
    for line in (
        'demographics_crossings_total{site="museum",camera="hall",direction="in"} 3.0',
        'demographics_crossings_total{site="museum",camera="hall",direction="out"} 1.0',
        'demographics_dwell_seconds_bucket{site="museum",camera="hall",le="2.0"} 0.0',
        'demographics_dwell_seconds_bucket{site="museum",camera="hall",le="5.0"} 2.0',
        'demographics_dwell_seconds_bucket{site="museum",camera="hall",le="+Inf"} 3.0',
        f"demographics_dwell_seconds_count{{{place}}} 3.0",
        f"demographics_dwell_seconds_sum{{{place}}} 2007.0",
    ):
        assert line in shown
    assert client.get("/api/v1/windows").json()["passages"]["hall"] == {
        "site": "museum", "entries": 3, "exits": 1, "dwell_s": 669.0,
    }  # fmt: skip
    cameras = {camera["id"]: camera for camera in client.get("/api/v1/cameras").json()}
    assert cameras["hall"]["present"] == 4
    assert cameras["entrance"]["present"] == 0, "it has been silent"
