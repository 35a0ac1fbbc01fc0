"""The product run apart: real RTSP, real Kafka, several inference processes, real Redis protocol; and what a crash changes."""

from __future__ import annotations

import urllib.error
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.rtsp_server import RtspServer
from pipeline.bus import PREDICTIONS
from pipeline.kafka_bus import KafkaBus
from pipeline.messages import Prediction, TrackEnded, decode
from tests.e2e.conftest import Service, Services, until
from tests.servers import KafkaServer, ValkeyServer

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(600)]

PASSWORD = "hunter2-s3cr3t"
Deploy = Callable[..., Services]
Scene = Callable[[str], tuple[Path, dict[str, Any]]]
SCENES = ("lobby", "rush")


@pytest.fixture
def servers(kafka_server: KafkaServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Give a broker and a store of its own, as settings."""
    with (
        KafkaServer(tmp_path_factory.mktemp("kafka")) as kafka,
        ValkeyServer(tmp_path_factory.mktemp("valkey")) as valkey,
    ):
        yield {
            "DEMOGRAPHICS_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "DEMOGRAPHICS_REDIS__URL": valkey.url,
            "DEMOGRAPHICS_INFERENCE__THREADS": "1",
        }


def total(aggregator: Service) -> dict[str, Any]:
    """Ask for the visitors whose passage has ended."""
    return dict(aggregator.get("/api/v1/windows")["total"])


def cells(aggregator: Service) -> dict[str, float]:
    """Read every cell of the totals from /metrics."""
    lines = aggregator.text("/metrics").splitlines()
    return {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
        for line in lines
        if line.startswith("demographics_visitors_total{")
    }


def drained(aggregator: Service, inference: Service) -> bool:
    """Tell whether both have read everything."""
    texts = aggregator.text("/metrics") + inference.text("/metrics")
    lags = [
        float(line.rsplit(" ", 1)[1]) for line in texts.splitlines() if line.startswith("demographics_consumer_lag{")
    ]
    return bool(lags) and not any(lags)


def test_two_cameras_over_rtsp_two_inference_workers_count_the_same_visitors(
    deploy: Deploy, servers: dict[str, str], scene: Scene
) -> None:
    """What the film counts in one process, the services count apart; nobody's password is in any log."""
    films = {name: scene(name) for name in SCENES}
    services = deploy(**servers, CAMERA_PASSWORD=PASSWORD)
    aggregator = services.start("aggregate")
    workers = [services.start("infer"), services.start("infer")]
    services.wait_ready(aggregator, *workers)
    with RtspServer() as cameras:
        for name, (film, _) in films.items():
            cameras.add(name, film, username="viewer", password=PASSWORD, start="on_play", loop=False)
        with_password = {
            name: cameras.url(name).replace("rtsp://", "rtsp://viewer:${CAMERA_PASSWORD}@") for name in films
        }
        listed = "".join(f"  - {{id: {name}, url: '{url}'}}\n" for name, url in with_password.items())
        path = aggregator.log.parent / "cameras.yaml"
        path.write_text(f"site: museum\ncameras:\n{listed}")
        ingest = services.start("ingest", path)
        services.wait_ready(ingest)

        def left() -> bool:
            states = {camera["id"]: camera["state"] for camera in aggregator.get("/api/v1/cameras")}
            return set(states) == set(films) and all(
                state not in {"connecting", "running"} for state in states.values()
            )

        until(left, 150, services.logs)
    until(lambda: drained(aggregator, workers[0]) and drained(aggregator, workers[1]), 60, services.logs)
    shown = total(aggregator)["cameras"]
    print({name: (shown[name]["visitors"], len(truth["people"])) for name, (_, truth) in films.items()})  # noqa: T201
    for name, (_, truth) in films.items():
        people = len(truth["people"])
        assert abs(shown[name]["visitors"] - people) <= max(1, 0.1 * people), services.logs()
    shares = [worker.text("/metrics").count("demographics_consumer_lag{") for worker in workers]
    assert sum(shares) == 12
    assert min(shares) > 0  # the partitions are shared; which camera falls to whom is Kafka's business
    assert sum(_predicted(worker) for worker in workers) >= sum(shown[name]["visitors"] for name in films)
    statuses = [service.stop() for service in services.running]
    assert statuses == [0] * len(statuses)
    for service in services.running:
        assert PASSWORD not in service.said()
        assert "Traceback" not in service.said(), service.said()[-3000:]


def _predicted(worker: Service) -> float:
    lines = worker.text("/metrics").splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith("demographics_predictions_total "))


def run_films(services: Services, films: list[Path], *, kill: bool) -> dict[str, float]:
    """Count films through the services, and give every cell; with *kill*, an inference worker dies in mid-run."""
    aggregator, first, second = services.start("aggregate"), services.start("infer"), services.start("infer")
    services.wait_ready(aggregator, first, second)
    path = aggregator.log.parent / "cameras.yaml"
    path.write_text("cameras:\n" + "".join(f"  - {{id: {film.stem}, url: '{film}'}}\n" for film in films))
    ingest = services.start("ingest", path)
    survivor = second
    if kill:
        until(lambda: _predicted(first) >= 5 or _predicted(second) >= 5, 60, services.logs)
        busy, survivor = (first, second) if _predicted(first) >= 5 else (second, first)
        busy.kill()
        services.wait_ready(services.start("infer"))
    until(lambda: ingest.process.poll() is not None, 120, services.logs)
    until(lambda: drained(aggregator, survivor), 60, services.logs)
    expected = sum(int(n) for event in ingest.events("cameras_ended") for n in event["tracks"].values())
    until(lambda: sum(cells(aggregator).values()) >= expected, 60, services.logs)
    counts = cells(aggregator)
    assert sum(counts.values()) == expected
    return counts


def recount(bootstrap_servers: str) -> Counter[str]:
    """Count the visitors in the topic of predictions by hand: tracks by camera, however often they were said to end."""
    bus = KafkaBus(bootstrap_servers)
    consumer = bus.consumer(PREDICTIONS, group="recount")
    tracks: set[tuple[str, int]] = set()
    repeats: Counter[tuple[str, int, int]] = Counter()
    quiet = 0
    while quiet < 20:
        records = consumer.poll(0.5, 1000)
        quiet = 0 if records else quiet + 1
        for record in records:
            message = decode(record.value, record.headers)
            if isinstance(message, (Prediction, TrackEnded)):
                tracks.add((message.camera_id, message.track_id))
            if isinstance(message, Prediction):
                repeats[(message.camera_id, message.track_id, message.sequence)] += 1
    consumer.close()
    bus.close()
    print(f"{len(tracks)} tracks, {sum(repeats.values()) - len(repeats)} predictions said twice")  # noqa: T201
    return Counter(camera for camera, _ in tracks)


def test_an_inference_worker_killed_in_mid_run_changes_no_count(
    deploy: Deploy, tmp_path_factory: pytest.TempPathFactory, kafka_server: KafkaServer, scene: Scene
) -> None:
    """After a kill -9 another takes over: every cell of the totals equals that of the run without, and a recount of the topic."""
    films = [scene(name)[0] for name in SCENES]
    counts = []
    for kill in (False, True):
        with (
            KafkaServer(tmp_path_factory.mktemp("kafka")) as kafka,
            ValkeyServer(tmp_path_factory.mktemp("valkey")) as valkey,
        ):
            services = deploy(
                DEMOGRAPHICS_KAFKA__BOOTSTRAP_SERVERS=kafka.bootstrap_servers,
                DEMOGRAPHICS_KAFKA__SESSION_TIMEOUT_S="6",
                DEMOGRAPHICS_REDIS__URL=valkey.url,
                DEMOGRAPHICS_INFERENCE__THREADS="1",
            )
            counts.append(run_films(services, films, kill=kill))
            by_camera = recount(kafka.bootstrap_servers)
            for film in films:
                counted = sum(count for cell, count in counts[-1].items() if f'camera="{film.stem}"' in cell)
                assert counted == by_camera[film.stem]
            services.stop()
    assert counts[0] == counts[1]


def test_a_broker_and_a_store_killed_in_mid_run_change_no_count(
    deploy: Deploy, tmp_path_factory: pytest.TempPathFactory, kafka_server: KafkaServer, scene: Scene
) -> None:
    """Both come back with their data, as production keeps it; every service waits, resumes by itself, and counts exactly."""
    films = [scene(name)[0] for name in SCENES]
    with (
        KafkaServer(tmp_path_factory.mktemp("kafka")) as kafka,
        ValkeyServer(tmp_path_factory.mktemp("valkey"), append_only=True) as valkey,
    ):
        services = deploy(
            DEMOGRAPHICS_KAFKA__BOOTSTRAP_SERVERS=kafka.bootstrap_servers,
            DEMOGRAPHICS_REDIS__URL=valkey.url,
            DEMOGRAPHICS_INFERENCE__THREADS="1",
        )
        aggregator, inference = services.start("aggregate"), services.start("infer")
        services.wait_ready(aggregator, inference)
        path = aggregator.log.parent / "cameras.yaml"
        path.write_text("cameras:\n" + "".join(f"  - {{id: {film.stem}, url: '{film}'}}\n" for film in films))
        ingest = services.start("ingest", path)
        until(lambda: _predicted(inference) >= 5, 60, services.logs)
        kafka.kill()
        valkey.kill()
        until(lambda: "503" in _status(aggregator, "/api/v1/windows"), 30, services.logs)  # and it says so
        valkey.start()
        kafka.start()
        until(lambda: ingest.process.poll() is not None, 150, services.logs)
        expected = sum(int(n) for event in ingest.events("cameras_ended") for n in event["tracks"].values())
        until(lambda: sum(cells(aggregator).values()) >= expected, 90, services.logs)
        until(lambda: drained(aggregator, inference), 60, services.logs)
        assert sum(cells(aggregator).values()) == expected
        by_camera = recount(kafka.bootstrap_servers)
        assert sum(by_camera.values()) == expected
        assert not any("Traceback" in service.said() for service in services.running), services.logs()


def _status(service: Service, path: str) -> str:
    try:
        service.get(path)
    except urllib.error.HTTPError as error:
        return str(error.code)
    return "200"
