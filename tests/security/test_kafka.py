"""Kafka with TLS, SCRAM and the rights of deploy/security: each service works with them, and is refused one thing more."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import cv2
import pytest

from aggregator.memory_store import MemoryStore
from aggregator.service import AggregatorService, windows_of
from aggregator.windows import retentions
from inference.service import InferenceService
from pipeline import switches as switch
from pipeline.bus import AUDIT, CAMERAS, DEAD_LETTERS, FACE_CROPS, PREDICTIONS, SWITCHES, TopicSpec
from pipeline.camera_topic import TopicCameras, publish, read_all
from pipeline.distributed import open_bus
from pipeline.errors import TransportError
from pipeline.findings import State
from pipeline.kafka_bus import KafkaBus
from pipeline.kafka_findings import KafkaFindings
from pipeline.messages import FaceCrop, TrackEnded, encode, headers
from pipeline.settings import KafkaSettings, Settings, load_settings
from pipeline.switches import Switches
from pipeline.telemetry import Telemetry
from tests.certificates import Certificates, make_certificates
from tests.inference.conftest import MANIFEST, ToyPredictor, plain
from tests.servers import KafkaServer, Secured, wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]

SCRIPT: Final = Path(__file__).parents[2] / "deploy" / "security" / "kafka-acls.sh"
PASSWORDS: Final = {user: f"{user}-s3cret" for user in ("admin", "ingest", "infer", "aggregate", "operator")}
PATIENCE_S: Final = 40.0


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Make an authority and a certificate."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def server(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """Run a broker that lets nobody do anything, and give the rights as they are shipped."""
    if missing := KafkaServer.missing():
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI tests against the real Kafka, but there is {missing}")
        pytest.skip(f"there is {missing}")
    folder = tmp_path_factory.mktemp("secured")
    with KafkaServer(folder, secured=Secured(certificates, PASSWORDS)) as running:
        tool = folder / "kafka-acls"
        command = " ".join(f"'{word}'" for word in running.tool("org.apache.kafka.tools.AclCommand"))
        tool.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        tool.chmod(0o755)
        admin = folder / "admin.properties"
        admin.write_text(
            "security.protocol=SASL_SSL\nsasl.mechanism=SCRAM-SHA-512\nssl.truststore.type=PEM\n"
            f"ssl.truststore.location={certificates.authority}\n"
            "sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required "
            f'username="admin" password="{PASSWORDS["admin"]}";\n'
        )
        done = subprocess.run(
            ["sh", SCRIPT],
            env={**os.environ, "BOOTSTRAP": running.bootstrap_servers, "ADMIN": str(admin), "KAFKA_ACLS": str(tool)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        yield running


Connect = Callable[..., KafkaBus]


def settings_of(server: KafkaServer, certificates: Certificates, user: str, **changes: Any) -> KafkaSettings:
    """Give the settings that a service of that user has."""
    return load_settings(
        {},
        kafka={
            "bootstrap_servers": server.bootstrap_servers,
            "security_protocol": "SASL_SSL",
            "ca_file": certificates.authority,
            "username": user,
            "password": PASSWORDS[user],
            "partitions": 2,
            "session_timeout_s": 6,
            **changes,
        },
    ).kafka


@pytest.fixture
def connect(server: KafkaServer, certificates: Certificates) -> Iterator[Connect]:
    """Open a bus as a service does, as one of the users."""
    opened: list[KafkaBus] = []

    def make(user: str, **changes: Any) -> KafkaBus:
        opened.append(open_bus(settings_of(server, certificates, user, **changes), f"test-{user}"))
        return opened[-1]

    yield make
    for bus in opened:
        bus.close()


@pytest.fixture
def topics(server: KafkaServer, certificates: Certificates, connect: Connect) -> tuple[TopicSpec, ...]:
    """Have the operator create the topics, as `demographics cameras list` does."""
    specs = settings_of(server, certificates, "operator").topics()
    connect("operator").ensure_topics(specs)
    return specs


def ends(connect: Connect) -> dict[str, int]:
    """Count the records of each topic, as the operator sees them."""
    counted = {}
    for topic in (FACE_CROPS, PREDICTIONS, DEAD_LETTERS, CAMERAS):
        reader = connect("operator").reader(topic)
        counted[topic] = sum(span.end for span in reader.spans().values())
        reader.close()
    return counted


def test_the_three_services_and_the_operator_do_their_work(
    server: KafkaServer, certificates: Certificates, connect: Connect, topics: tuple[TopicSpec, ...]
) -> None:
    """From the topic of cameras to a count, and a bad record to the dead letters, each part as its own user."""
    publish(connect("operator"), [{"id": "door", "url": "rtsp://10.0.0.1/1"}])
    assert set(read_all(connect("operator"))) == {"door"}

    ingest, now = connect("ingest"), time.time()
    ingest.ensure_topics(topics)
    switches, cameras = Switches(ingest), TopicCameras(ingest)
    seen: list[str] = []

    def told() -> bool:
        seen.extend(camera.id for camera in cameras.changed() or ())
        return seen == ["door"]

    wait_until(told, timeout_s=PATIENCE_S, what="the camera of the topic")
    switch.publish(connect("operator"), switch.Switch(camera="door", action="paused", at=now, by="me", reason="test"))
    wait_until(switches.changed, timeout_s=PATIENCE_S, what="the pause")
    switches.close()
    assert [entry.by for entry in switch.history(connect("operator"))] == ["me"]
    cameras.close()
    producer = ingest.producer()
    whose: dict[str, Any] = {"camera_id": "door", "track_id": int(now) << 20}
    jpeg = cv2.imencode(".jpg", plain(33))[1].tobytes()
    said: list[FaceCrop | TrackEnded] = [
        *(FaceCrop(**whose, sequence=n, first_seen=now, captured_at=now, quality=0.9, jpeg=jpeg) for n in range(2)),
        TrackEnded(**whose, first_seen=now, last_seen=now, crops=2),
    ]
    for message in said:
        producer.send(FACE_CROPS, key=b"door", value=encode(message), headers=headers())
    producer.send(FACE_CROPS, key=b"door", value=b"no message", headers=headers())
    producer.flush(PATIENCE_S)

    settings, stop = load_settings({}), threading.Event()
    inferring, aggregating = connect("infer"), connect("aggregate")
    for bus in (inferring, aggregating):
        bus.ensure_topics(topics)
    store = MemoryStore(retentions(windows_of(settings)))
    services: list[InferenceService | AggregatorService] = [
        InferenceService(settings, inferring, ToyPredictor(), MANIFEST, Telemetry(("inference",))),
        AggregatorService(settings, aggregating, store, Telemetry(("aggregator",))),
    ]
    threads = [threading.Thread(target=service.worker.run, args=(stop,)) for service in services]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: bool(store.snapshot(time.time(), ()).totals), timeout_s=PATIENCE_S, what="the count")
        wait_until(lambda: ends(connect)[DEAD_LETTERS] == 1, timeout_s=PATIENCE_S, what="the dead letter")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        for service in services:
            service.close()
    (tally,) = store.snapshot(time.time(), ()).totals.values()
    assert tally.people == {("female", "25-34"): 1}
    assert aggregating.retentions([FACE_CROPS])[FACE_CROPS] == pytest.approx(750)


def test_the_operator_is_told_how_kafka_is(
    server: KafkaServer, certificates: Certificates, connect: Connect, topics: tuple[TopicSpec, ...]
) -> None:
    """`demographics doctor` as the operator has a finding on every part, and is refused none."""
    with closing(connect("aggregate").consumer(PREDICTIONS, group="aggregator")) as consumer:
        consumer.poll(1.0, 10)
    settings = Settings(kafka=settings_of(server, certificates, "operator"))
    findings = KafkaFindings(settings)
    try:
        parts = (findings.brokers, findings.topics, findings.groups, findings.clock, findings.disks)
        found = {part.__name__: list(part()) for part in parts}
    finally:
        findings.close()
    assert all(found.values())
    assert all(one.state in {State.OK, State.WARNING} for each in found.values() for one in each), found


def sends(topic: str) -> Callable[[KafkaBus], None]:
    """Write a record."""

    def act(bus: KafkaBus) -> None:
        producer = bus.producer()
        producer.send(topic, key=b"k", value=b"v", headers=())
        producer.flush(20)

    return act


def reads(topic: str, group: str) -> Callable[[KafkaBus], None]:
    """Read a topic as a member of a group."""

    def act(bus: KafkaBus) -> None:
        consumer = bus.consumer(topic, group=group)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            assert not consumer.poll(0.5, 10)

    return act


def looks_into(topic: str) -> Callable[[KafkaBus], None]:
    """Read a topic beside its groups."""

    def act(bus: KafkaBus) -> None:
        reader = bus.reader(topic)
        for partition, span in reader.spans().items():
            assert not list(reader.read(partition, span.begin, span.end))

    return act


def creates(bus: KafkaBus) -> None:
    """Create a topic."""
    bus.ensure_topics([TopicSpec("another", 1, 600)])


REFUSED = [
    ("ingest", "read face crops", looks_into(FACE_CROPS)),
    ("ingest", "write cameras", sends(CAMERAS)),
    ("ingest", "resume a camera", sends(SWITCHES)),
    ("ingest", "read the audit", looks_into(AUDIT)),
    ("ingest", "write dead letters", sends(DEAD_LETTERS)),
    ("ingest", "join inference", reads(CAMERAS, "inference")),
    ("ingest", "create a topic", creates),
    ("infer", "read predictions", looks_into(PREDICTIONS)),
    ("infer", "write face crops", sends(FACE_CROPS)),
    ("infer", "join another group", reads(FACE_CROPS, "mine")),
    ("infer", "create a topic", creates),
    ("aggregate", "read face crops", looks_into(FACE_CROPS)),
    ("aggregate", "write face crops", sends(FACE_CROPS)),
    ("aggregate", "read cameras", reads(CAMERAS, "aggregator")),
    ("aggregate", "create a topic", creates),
    ("operator", "write dead letters", sends(DEAD_LETTERS)),
    ("operator", "join inference", reads(FACE_CROPS, "inference")),
]


@pytest.mark.parametrize(
    ("user", "act"), [(user, act) for user, _, act in REFUSED], ids=[f"{u}: {w}" for u, w, _ in REFUSED]
)
def test_one_thing_more_is_refused(
    connect: Connect, topics: tuple[TopicSpec, ...], user: str, act: Callable[[KafkaBus], None]
) -> None:
    """The error names the file that gives the right, and nothing has moved."""
    before = ends(connect)
    with pytest.raises(TransportError, match=r"deploy/security/kafka-acls\.sh"):
        act(connect(user))
    assert ends(connect) == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"password": "hunter2-wrong"}, "refuses the user name or password.*DEMOGRAPHICS_KAFKA__PASSWORD"),
        ({"ca_file": "stranger"}, "unable to get local issuer certificate.*DEMOGRAPHICS_KAFKA__CA_FILE"),
        ({"bootstrap_servers": "localhost"}, r"Hostname mismatch.*DEMOGRAPHICS_KAFKA__CA_FILE"),
        ({"security_protocol": "PLAINTEXT"}, "speaks TLS; set DEMOGRAPHICS_KAFKA__SECURITY_PROTOCOL"),
        ({"security_protocol": "SASL_PLAINTEXT"}, "speaks TLS; set DEMOGRAPHICS_KAFKA__SECURITY_PROTOCOL"),
    ],
    ids=["wrong password", "another authority", "another host", "no TLS", "password without TLS"],
)
def test_who_is_not_let_in_is_told_why(
    server: KafkaServer,
    certificates: Certificates,
    connect: Connect,
    topics: tuple[TopicSpec, ...],
    changes: dict[str, Any],
    said: str,
) -> None:
    """Each way of being refused has its own words, which name the setting and no password; nothing has moved."""
    before = ends(connect)
    if "ca_file" in changes:
        changes = {"ca_file": certificates.stranger}
    if "bootstrap_servers" in changes:
        changes = {"bootstrap_servers": f"localhost:{server.port}"}
    bus = KafkaBus(
        changes.get("bootstrap_servers", server.bootstrap_servers),
        security={
            "security_protocol": changes.get("security_protocol", "SASL_SSL"),
            "ssl_cafile": str(changes.get("ca_file", certificates.authority)),
            "sasl_mechanism": "SCRAM-SHA-512",
            "sasl_plain_username": "ingest",
            "sasl_plain_password": changes.get("password", PASSWORDS["ingest"]),
        },
        timeout_s=2.0,
    )
    with pytest.raises(TransportError, match=said) as raised:
        sends(FACE_CROPS)(bus)
    assert not any(word in str(raised.value) for word in (*PASSWORDS.values(), "hunter2"))
    bus.close()
    assert ends(connect) == before
