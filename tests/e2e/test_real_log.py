"""What only the log can tell, on the real Apache Kafka: letters sent in again after an upgrade, and cameras that fall silent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from pipeline.bus import DEAD_LETTERS, FACE_CROPS, PREDICTIONS, Record
from pipeline.kafka_bus import KafkaBus
from pipeline.messages import CHECKSUM_HEADER, CameraStatus, FaceCrop, Prediction, TrackEnded, decode, encode, headers
from pipeline.settings import KafkaSettings
from tests.chaos.script import picture
from tests.e2e.conftest import Command, Service, Services, until
from tests.servers import KafkaServer, ValkeyServer

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(300)]

Deploy = Callable[..., Services]
IDLE_S = 5.0  # the least that the setting takes


@pytest.fixture(scope="module")
def servers(kafka_server: KafkaServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Give a broker and a store of their own, as settings."""
    with (
        KafkaServer(tmp_path_factory.mktemp("kafka")) as kafka,
        ValkeyServer(tmp_path_factory.mktemp("valkey")) as valkey,
    ):
        yield {
            "DEMOGRAPHICS_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "DEMOGRAPHICS_REDIS__URL": valkey.url,
            "DEMOGRAPHICS_AGGREGATOR__IDLE_S": str(IDLE_S),
        }


@pytest.fixture
def bus(servers: dict[str, str]) -> Iterator[KafkaBus]:
    """Reach the broker beside the services."""
    bus = KafkaBus(servers["DEMOGRAPHICS_KAFKA__BOOTSTRAP_SERVERS"])
    bus.ensure_topics(KafkaSettings().topics())
    yield bus
    bus.close()


def everything(bus: KafkaBus, topic: str) -> list[Record]:
    """Read a topic to its end."""
    with closing(bus.reader(topic)) as reader:
        return [record for where, span in reader.spans().items() for record in reader.read(where, *span)]


def send(bus: KafkaBus, topic: str, *messages: FaceCrop | Prediction | TrackEnded | CameraStatus) -> None:
    """Say something, and see it arrive."""
    with closing(bus.producer()) as producer:
        for message in messages:
            value = encode(message)
            producer.send(topic, key=message.camera_id.encode(), value=value, headers=headers(value))
        producer.flush(30)


def visitors(aggregator: Service, camera: str) -> int:
    """Ask how many of a camera's passages have ended."""
    return int(aggregator.get("/api/v1/windows")["total"]["cameras"].get(camera, {"visitors": 0})["visitors"])


@contextmanager
def reader_of_crops(services: Services, *arguments: str) -> Iterator[Service]:
    """Run inference with the scripted engine, for as long as this lasts."""
    service = Service(
        "infer", ("0", *arguments), services.environment, services.folder / f"infer-{len(arguments)}.log",
        command=("tests.chaos.infer",),
    )  # fmt: skip
    try:
        services.wait_ready(service)
        yield service
    finally:
        service.stop()


def test_dead_letters_are_sent_in_again_after_an_upgrade_and_count_once(
    deploy: Deploy, servers: dict[str, str], bus: KafkaBus, command: Command
) -> None:
    """Inference had a model for larger crops than ingest has cut; once it has the right one, nobody is missing, nor twice."""
    services = deploy(**servers)
    aggregator = services.start("aggregate")
    services.wait_ready(aggregator)
    now = time.time()
    first = int(now) << 20
    said: list[FaceCrop | TrackEnded] = []
    for track in range(first, first + 3):
        common: dict[str, Any] = {"camera_id": "upgraded", "track_id": track, "first_seen": now}
        said += [
            FaceCrop(**common, sequence=n, captured_at=now + n, quality=0.9, jpeg=picture(30, 3, 0)) for n in (0, 1)
        ]

    def letters(*arguments: str) -> Any:
        return command("deadletters", *arguments, "--json", **servers).json()

    with reader_of_crops(services, "default") as wrong:
        send(bus, FACE_CROPS, *said)
        until(lambda: len(everything(bus, DEAD_LETTERS)) == len(said), 60, wrong.said)
    listed = letters("list", "--topic", FACE_CROPS)
    assert [letter["reason"] for letter in listed] == ["image"] * len(said)
    assert "32x32 px; this model takes" in listed[0]["detail"]
    with reader_of_crops(services) as right:
        assert letters("requeue", "--reason", "image") == {"sent": len(said), "gone": 0}
        ends = [
            TrackEnded(camera_id="upgraded", track_id=first + n, first_seen=now, last_seen=now + 2, crops=2)
            for n in range(3)
        ]
        until(lambda: right.text("/metrics").count("demographics_predictions_total 6.0") == 1, 60, right.said)
        send(bus, FACE_CROPS, *ends)
        until(lambda: visitors(aggregator, "upgraded") == len(ends), 60, aggregator.said)
        shown = aggregator.get("/api/v1/windows")["total"]["cameras"]["upgraded"]
        assert (shown["unknown"], shown["gender"]["female"], shown["age_band"]["25-34"]) == (0, 3, 3)

        # Once more, by an operator who is not sure: they are read, and told by their identity.
        before = len(everything(bus, PREDICTIONS))
        assert letters("requeue") == {"sent": len(said), "gone": 0}
        until(lambda: len(everything(bus, PREDICTIONS)) >= before + len(said), 60, right.said)
        until(lambda: "demographics_duplicates_total 6.0" in aggregator.text("/metrics"), 60, aggregator.said)
        assert visitors(aggregator, "upgraded") == len(ends)
        assert len(everything(bus, DEAD_LETTERS)) == len(said)  # nothing has become a letter anew


def test_the_visitors_of_a_camera_that_falls_silent_are_counted_all_the_same(
    deploy: Deploy, servers: dict[str, str], bus: KafkaBus
) -> None:
    """Its worker was killed: nobody will say the ends, no evidence will come. Processing time closes them, in the log, once."""
    services = deploy(**servers)
    aggregator = services.start("aggregate")
    services.wait_ready(aggregator)
    now = time.time()
    first = int(now) << 20

    def look(camera: str, track: int, sequence: int) -> Prediction:
        return Prediction(
            camera_id=camera, track_id=first + track, sequence=sequence, first_seen=now, captured_at=now + sequence, quality=0.9,
            age=30.0, age_spread=3.0, p_female=0.9, p_ethnicity=(0.6, 0.1, 0.1, 0.1, 0.1),
        )  # fmt: skip

    def ends(camera: str) -> list[TrackEnded]:
        found = []
        for record in everything(bus, PREDICTIONS):
            message = decode(record.value, record.headers)
            if isinstance(message, TrackEnded) and message.camera_id == camera:
                assert CHECKSUM_HEADER in dict(record.headers)
                found.append(message)
        return found

    send(bus, PREDICTIONS, *(look(camera, n, at) for camera in ("silent", "talking") for n in (0, 1) for at in (0, 1)))
    deadline = time.monotonic() + 60
    while visitors(aggregator, "silent") < 2:
        assert time.monotonic() < deadline, aggregator.said()
        send(bus, PREDICTIONS, CameraStatus(camera_id="talking", at=time.time(), state="running"))
        time.sleep(0.3)
    assert sorted(end.track_id for end in ends("silent")) == [first, first + 1]
    assert [(end.last_seen, end.crops) for end in ends("silent")] == [(now + 1, 2)] * 2
    assert visitors(aggregator, "talking") == 0  # its people may still be there: nothing has been said for them
    assert not ends("talking")

    # The worker comes back and says an end after all; another aggregator takes over and looks at its clock: nothing moves.
    send(
        bus,
        PREDICTIONS,
        TrackEnded(camera_id="silent", track_id=first, first_seen=now, last_seen=now + 3, crops=2),
        TrackEnded(camera_id="talking", track_id=first, first_seen=now, last_seen=now + 3, crops=2),
        TrackEnded(camera_id="talking", track_id=first + 1, first_seen=now, last_seen=now + 3, crops=2),
    )
    assert aggregator.stop() == 0
    successor = services.start("aggregate")
    services.wait_ready(successor)
    until(lambda: visitors(successor, "talking") == 2, 60, successor.said)
    time.sleep(IDLE_S * 2 + 1)  # long enough for its own look at the cameras
    assert (visitors(successor, "silent"), visitors(successor, "talking")) == (2, 2)
    assert len(ends("silent")) == 3  # the two that the first aggregator said, and the worker's own
