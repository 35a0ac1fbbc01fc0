"""After a run there is no picture of anybody: not in a log, a page, a dead letter, a file, the store, nor, once due, in Kafka."""

from __future__ import annotations

import base64
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import pytest
import redis

from demo.composer import compose, load_cast
from pipeline.bus import AUDIT, CAMERAS, DEAD_LETTERS, FACE_CROPS, PREDICTIONS, SWITCHES, Record, TopicSpec
from pipeline.kafka_bus import KafkaBus
from pipeline.messages import FaceCrop, encode, headers
from pipeline.settings import KafkaSettings
from tests.e2e.conftest import ROOT, Services, until
from tests.e2e.traces import JPEG, pictures, secrets, written_since
from tests.servers import KafkaServer, ValkeyServer

RETENTION_S: Final = 12.0
PASSWORD: Final = "hunter2-s3cr3t"
PAGES: Final = (
    "/", "/app.js", "/metrics", "/api/v1/windows", "/api/v1/cameras", "/api/v1/visitors?format=csv", "/api/v1/pipeline",
    "/api/v1/openapi.json", "/readyz", "/nothing",
)  # fmt: skip


def test_the_search_finds_what_it_is_for() -> None:
    """In whatever form it would be left; and nothing in what the product says by right."""
    picture = JPEG + b"\xe0" + bytes(range(60))
    for left in (
        picture,
        repr({"jpeg": picture}).encode(),
        base64.b64encode(picture),
        picture.hex().encode(),
        b'{"landmarks": []}',
    ):
        assert pictures(left), left
    whole = cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))[1].tobytes()
    assert pictures(bytes(99) + whole + bytes(99), weights=True) == ["JPEG"]
    assert not pictures(bytes(99) + picture + bytes(99), weights=True)
    assert pictures(base64.b64encode(picture), weights=True)
    assert not pictures(b'{"event": "dead_letter", "reason": "image", "detail": "truncated JPEG"}')
    assert (
        secrets(b"rtsp://u:hunter2-s3cr3t@h", [PASSWORD])
        == secrets(base64.b64encode(PASSWORD.encode()), [PASSWORD])
        == [PASSWORD]
    )


def records(bus: KafkaBus, topic: str) -> list[Record]:
    """Read all that a topic holds."""
    reader = bus.reader(topic)
    found = [record for owned, span in reader.spans().items() for record in reader.read(owned, span.begin, span.end)]
    reader.close()
    return found


def page(url: str) -> bytes:
    """Get a page, whatever its status."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        return error.read()


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.timeout(400)
def test_no_picture_is_left_anywhere(
    kafka_server: KafkaServer, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, deploy: Callable[..., Services]
) -> None:
    """People walk by, records are poisoned with pictures, all at the highest log level; then everything is searched."""
    film = compose(tmp_path / "walk.mp4", load_cast(), view="hall", people=3, seconds=9, seed=4, size=(640, 360)).path
    own = {name: tmp_path / name for name in ("home", "tmp", "cache")}
    for folder in own.values():
        folder.mkdir()
    began = time.time()
    with (
        KafkaServer(tmp_path_factory.mktemp("kafka")) as kafka,
        ValkeyServer(tmp_path_factory.mktemp("valkey")) as valkey,
    ):
        bus = KafkaBus(kafka.bootstrap_servers)
        quick = (TopicSpec(FACE_CROPS, 2, RETENTION_S),)
        bus.ensure_topics([*quick, *(spec for spec in KafkaSettings(partitions=2).topics() if spec.name != FACE_CROPS)])
        services = deploy(
            DEMOGRAPHICS_KAFKA__BOOTSTRAP_SERVERS=kafka.bootstrap_servers,
            DEMOGRAPHICS_REDIS__URL=valkey.url,
            DEMOGRAPHICS_INFERENCE__THREADS="1",
            DEMOGRAPHICS_LOG_LEVEL="DEBUG",
            HOME=str(own["home"]), TMPDIR=str(own["tmp"]), XDG_CACHE_HOME=str(own["cache"]), HALL_PASSWORD=PASSWORD,
        )  # fmt: skip
        aggregator, inference = services.start("aggregate"), services.start("infer")
        services.wait_ready(aggregator, inference)
        listed = tmp_path / "cameras.yaml"
        listed.write_text(
            f"cameras:\n  - {{id: hall, url: '{film}'}}\n"
            "  - {id: gate, url: 'rtsp://viewer:${HALL_PASSWORD}@127.0.0.1:9/gate'}\n"
        )
        ingest = services.start("ingest", listed)
        producer = bus.producer()
        whose: dict[str, Any] = {
            "camera_id": "hall",
            "track_id": int(began) << 20,
            "sequence": 0,
            "first_seen": began,
            "captured_at": began,
        }
        poison = encode(FaceCrop(**whose, quality=0.5, jpeg=JPEG + b"\xe0" + bytes(500)))
        for value in (poison, poison[:-20], JPEG + bytes(300)):
            producer.send(FACE_CROPS, key=JPEG + b"key", value=value, headers=headers())
        producer.flush(20)
        until(lambda: len(records(bus, DEAD_LETTERS)) >= 3, 90, services.logs)
        until(lambda: aggregator.get("/api/v1/windows")["total"]["visitors"] >= 2, 90, services.logs)
        data = kafka.directory / "data"
        assert [
            path for path in written_since(began, data) if JPEG in path.read_bytes()
        ]  # now there are pictures, and only here

        url = aggregator.url()
        shown = {path: page(url + path) for path in PAGES}
        shown |= {
            f"{each.name} {path}": page(each.url() + path)
            for each in (ingest, inference)
            for path in ("/metrics", "/readyz")
        }
        stream = urllib.request.urlopen(f"{url}/api/v1/stream", timeout=10)
        shown["stream"] = stream.readline()
        stream.close()
        kept = {
            f"{topic} {record.partition}/{record.offset}": record.key + record.value + repr(record.headers).encode()
            for topic in (PREDICTIONS, DEAD_LETTERS, CAMERAS, SWITCHES, AUDIT)
            for record in records(bus, topic)
        }
        store = redis.Redis(port=valkey.port)
        stored = {str(key): store.dump(key) or b"" for key in store.scan_iter("*")}
        store.close()
        statuses = [service.stop() for service in services.running]
        said = {service.name: service.log.read_bytes() for service in services.running}

        def gone() -> bool:
            return not [path for path in written_since(began, data) if JPEG in path.read_bytes()]

        until(gone, 8 * RETENTION_S, lambda: str(list(data.rglob("face-crops*/*"))))
        assert not records(bus, FACE_CROPS)
        bus.close()
    written = {str(path): path.read_bytes() for path in written_since(began, ROOT, *own.values())}
    everything = shown | kept | stored | said | written
    assert min(map(len, (shown, kept, stored, said))) >= 3  # there was something to search
    assert {
        name: found
        for name, left in everything.items()
        if (found := pictures(left, weights=name.endswith((".tflite", ".onnx"))) or secrets(left, [PASSWORD]))
    } == {}
    assert statuses == [0, 0, 0]
