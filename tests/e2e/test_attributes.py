"""What is switched off is nowhere: not on the bus, not in the store, not in metrics, API or page; by deployment and by camera."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cv2
import msgspec
import pytest
from fastapi.testclient import TestClient

from aggregator.api import mount_api
from aggregator.disclosure import PublishedCounts
from aggregator.exporter import VisitorsCollector
from aggregator.health import PipelineHealth
from aggregator.redis_store import RedisStore
from aggregator.service import AggregatorService, disclosure_of, windows_of
from aggregator.windows import retentions
from inference.service import InferenceService
from pipeline.attributes import ETHNICITIES
from pipeline.bus import FACE_CROPS, PREDICTIONS, Consumer
from pipeline.http import make_app
from pipeline.memory_bus import MemoryBus
from pipeline.messages import FaceCrop, TrackEnded, encode, headers
from pipeline.settings import load_settings
from pipeline.telemetry import Telemetry
from tests.inference.conftest import MANIFEST, ToyPredictor, plain
from tests.servers import ValkeyServer, wait_until

NOW = time.time()


def passage(camera: str, number: int, attributes: Any, *, crops: int = 2) -> list[FaceCrop | TrackEnded]:
    """Say what ingest says of one person: a woman of 33 to the toy, of the group 'indian'; with no crop nothing is known."""
    whose: dict[str, Any] = {"camera_id": camera, "track_id": (int(NOW) << 20) + number, "attributes": attributes}
    jpeg = cv2.imencode(".jpg", plain(33))[1].tobytes()
    looks = [
        FaceCrop(**whose, sequence=n, first_seen=NOW - 5, captured_at=NOW - 5 + n, quality=0.9, jpeg=jpeg)
        for n in range(crops)
    ]
    return [*looks, TrackEnded(**whose, first_seen=NOW - 5, last_seen=NOW, crops=crops)]


@contextmanager
def pipeline(
    server: ValkeyServer, namespace: str, said: Sequence[Any], **settings: Any
) -> Iterator[tuple[Consumer, TestClient]]:
    """Run inference and aggregation over what ingest *said*, until all of it is counted."""
    loaded = load_settings({}, **settings)
    windows, telemetry = windows_of(loaded), Telemetry(("inference", "aggregator"))
    store = RedisStore(server.url, retentions(windows), namespace=namespace)
    bus = MemoryBus()
    bus.ensure_topics(loaded.kafka.topics())
    listener = bus.consumer(
        PREDICTIONS, group="listener"
    )  # as long as it has not committed, the log keeps what was said
    listener.poll(0, 1)
    services: list[InferenceService | AggregatorService] = [
        InferenceService(loaded, bus, ToyPredictor(), MANIFEST, telemetry),
        AggregatorService(loaded, bus, store, telemetry),
    ]
    stop = threading.Event()
    threads = [threading.Thread(target=service.worker.run, args=(stop,)) for service in services]
    counts = PublishedCounts(store, disclosure_of(loaded))
    telemetry.collect_with(VisitorsCollector(counts, windows, telemetry))
    app = make_app("t", telemetry.registry, list)
    mount_api(app, counts, windows, PipelineHealth(telemetry))
    try:
        for thread in threads:
            thread.start()
        producer = bus.producer()
        for message in said:
            producer.send(FACE_CROPS, key=message.camera_id.encode(), value=encode(message), headers=headers())
        producer.flush(10)
        ends = sum(isinstance(message, TrackEnded) for message in said)
        with TestClient(app) as client:
            wait_until(
                lambda: client.get("/api/v1/windows").json()["total"]["visitors"] == ends, timeout_s=30, what="counting"
            )
            yield listener, client
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        for service in services:
            service.close()
        store.close()
        bus.close()


def everywhere(listener: Consumer, client: TestClient, server: ValkeyServer, namespace: str) -> str:
    """Give everything that inference and aggregation have written and shown, as one text, but for zeros."""
    import redis  # noqa: PLC0415

    texts = [repr(msgspec.msgpack.decode(record.value)) for record in listener.poll(1.0, 1000)]
    assert texts
    store = redis.Redis(port=server.port)
    for key in store.scan_iter(f"{namespace}:*"):
        kept: Any = store.hgetall(key) if store.type(key) == b"hash" else ""
        texts += [f"{key!r} {field!r} {value!r}" for field, value in dict(kept).items()] if kept else []
    store.close()
    texts += [
        line for line in client.get("/metrics").text.splitlines() if line[:1] != "#" and not line.endswith(" 0.0")
    ]
    texts += _nonzero("api", client.get("/api/v1/windows").json())
    texts += _nonzero("series", client.get("/api/v1/visitors").json())
    return "\n".join(texts)


def _nonzero(path: str, value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for key, inner in value.items() for text in _nonzero(f"{path}.{key}", inner)]
    if isinstance(value, list):
        return [text for inner in value for text in _nonzero(path, inner)]
    return [f"{path}={value}"] if value else []


FORBIDDEN = ("p_ethnicity': (", "p_ethnicity': [", '"ethnicity"', "ethnicity=", "|e|", ".ethnicity.", *ETHNICITIES)


def traces(text: str) -> list[str]:
    """Name what of ethnicity is in *text*, but for the series of the model's confidence, whose head is named at zero."""
    lines = [line for line in text.splitlines() if "confidence_ratio" not in line or 'head="ethnicity"' in line]
    return [f"{word} in {line[:200]}" for line in lines for word in FORBIDDEN if word in line]


@pytest.mark.parametrize("where", ["deployment", "camera"])
def test_ethnicity_left_out_is_nowhere(valkey_server: ValkeyServer, topic_prefix: str, where: str) -> None:
    """Of somebody who was seen well, and of somebody of whom no crop came: not even that it is unknown."""
    narrow = ("age", "gender")
    whose = msgspec.UNSET if where == "deployment" else narrow
    settings = {"attributes": narrow} if where == "deployment" else {}
    said = [*passage("door", 1, whose), *passage("door", 2, whose, crops=0)]
    with pipeline(valkey_server, topic_prefix, said, **settings) as (listener, client):
        text = everywhere(listener, client, valkey_server, topic_prefix)
        total = client.get("/api/v1/windows").json()["total"]
    assert not traces(text)
    assert (total["visitors"], total["unknown"], total["gender"]["female"], total["age_band"]["25-34"]) == (2, 1, 1, 1)


def test_the_search_finds_what_is_on(valkey_server: ValkeyServer, topic_prefix: str) -> None:
    """The same search over a deployment that computes ethnicity finds it in the log, the store, the metrics and the API."""
    with pipeline(valkey_server, topic_prefix, passage("door", 1, msgspec.UNSET)) as (listener, client):
        found = "\n".join(traces(everywhere(listener, client, valkey_server, topic_prefix)))
    for place in (
        "p_ethnicity",
        "e|default|door|indian",
        'ethnicity="indian"',
        "api.total.ethnicity.indian",
        "series.",
    ):
        assert place in found, place


def test_one_camera_may_have_less_than_the_others_and_never_more(
    valkey_server: ValkeyServer, topic_prefix: str
) -> None:
    """Two cameras in one batch: what one's visitors are is said, the other's are counted."""
    said = [*passage("door", 1, msgspec.UNSET), *passage("ward", 2, ("age",))]
    with pipeline(valkey_server, topic_prefix, said, attributes=("age", "gender")) as (_, client):
        cameras = client.get("/api/v1/windows").json()["total"]["cameras"]
    assert cameras["door"]["gender"] == {"male": 0, "female": 1}
    assert cameras["ward"]["gender"] == {"male": 0, "female": 0}
    assert cameras["ward"]["age_band"]["25-34"] == cameras["door"]["age_band"]["25-34"] == 1
    assert not any(camera["ethnicity"]["indian"] for camera in cameras.values())
