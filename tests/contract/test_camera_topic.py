"""The cameras of the distributed system, on every bus: added, changed, removed, shared, failed over; never a secret in clear."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from pipeline import camera_topic
from pipeline.bus import Bus, TopicSpec
from pipeline.camera_topic import TopicCameras, checked_entries, publish, read_all
from pipeline.errors import ConfigError
from pipeline.messages import headers
from tests.contract.conftest import BusMaker
from tests.servers import wait_until

PATIENCE_S = 30.0
ENVIRONMENT = {"HALL_PASSWORD": "hush"}


def entry(name: str, **more: Any) -> dict[str, Any]:
    """Describe a camera."""
    return {"id": name, "url": f"rtsp://10.0.0.1/{name}", **more}


@pytest.fixture(autouse=True)
def own_topic(bus: Bus, topic_prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a topic and a group of its own."""
    name = f"{topic_prefix}cameras"
    monkeypatch.setattr(camera_topic, "CAMERAS", name)
    monkeypatch.setattr(camera_topic, "GROUP", f"{topic_prefix}ingest")
    bus.ensure_topics([TopicSpec(name, 4, 0, compact=True)])


@pytest.fixture
def worker(bus_maker: BusMaker) -> Iterator[Callable[[], TopicCameras]]:
    """Make workers that share the cameras."""
    made: list[TopicCameras] = []

    def make() -> TopicCameras:
        made.append(TopicCameras(bus_maker.bus(), environment=ENVIRONMENT))
        return made[-1]

    yield make
    for one in made:
        one.close()


class Share:
    """What one worker runs at the moment."""

    def __init__(self, shared: TopicCameras) -> None:
        self.shared = shared
        self.urls: dict[str, str] = {}

    def look(self) -> dict[str, str]:
        """Take up what is new."""
        if (changed := self.shared.changed(0.1)) is not None:
            self.urls = {camera.id: camera.url.get_secret_value() for camera in changed}
        return self.urls


def wait_for(what: str, happened: Callable[[], bool]) -> None:
    """Wait until it has happened."""
    wait_until(happened, timeout_s=PATIENCE_S, what=what)


def test_what_was_written_is_read(bus: Bus) -> None:
    """The last word on every camera; a removed one is gone; keys and secrets as they were written."""
    publish(bus, [entry("hall"), entry("door"), entry("gate")])
    publish(bus, [entry("hall", url="rtsp://viewer:${HALL_PASSWORD}@10.0.0.1/1", detect_fps=5)], remove=["door"])
    assert read_all(bus) == {
        "gate": entry("gate"),
        "hall": entry("hall", url="rtsp://viewer:${HALL_PASSWORD}@10.0.0.1/1", detect_fps=5),
    }


def test_a_damaged_record_leaves_its_camera_as_it_was(bus: Bus, topic_prefix: str) -> None:
    """A bit that is turned over in an address would be another camera's."""
    publish(bus, [entry("hall")])
    producer = bus.producer()
    damaged = msgspec.json.encode(entry("yard"))
    producer.send(
        f"{topic_prefix}cameras", key=b"hall", value=damaged, headers=headers(msgspec.json.encode(entry("hall")))
    )
    producer.flush(PATIENCE_S)
    assert read_all(bus) == {"hall": entry("hall")}
    producer.send(f"{topic_prefix}cameras", key=b"hall", value=damaged, headers=headers())  # of the release before
    producer.flush(PATIENCE_S)
    assert read_all(bus) == {"hall": {**entry("yard"), "id": "hall"}}


def test_a_worker_runs_what_is_added_and_ends_what_is_removed(bus: Bus, worker: Callable[[], TopicCameras]) -> None:
    """Without a restart; with the secret filled in here and nowhere else."""
    publish(bus, [entry("old")])
    publish(bus, [entry("hall", url="rtsp://viewer:${HALL_PASSWORD}@10.0.0.1/1")], remove=["old"])
    share = Share(worker())
    begun: set[str] = set()
    wait_for("the first camera", lambda: begun.update(share.look()) or bool(begun))  # type: ignore[func-returns-value]
    assert share.urls == {"hall": "rtsp://viewer:hush@10.0.0.1/1"}
    assert begun == {"hall"}, "what had been removed was never begun"
    publish(bus, [entry("door")])
    wait_for("the second", lambda: set(share.look()) == {"hall", "door"})
    publish(bus, [entry("door", url="rtsp://10.0.0.9/2")])
    wait_for("the change", lambda: share.look().get("door") == "rtsp://10.0.0.9/2")
    publish(bus, [], remove=["hall"])
    wait_for("the removal", lambda: set(share.look()) == {"door"})


def test_workers_share_the_cameras_and_take_over_from_each_other(bus: Bus, worker: Callable[[], TopicCameras]) -> None:
    """Each camera is run by one; when a worker goes, the other runs all of them."""
    everything = {f"camera-{n}" for n in range(16)}
    publish(bus, [entry(name) for name in sorted(everything)])
    first = Share(worker())
    wait_for("all on one", lambda: set(first.look()) == everything)
    second = Share(worker())

    def shared() -> bool:
        mine, others = set(first.look()), set(second.look())
        return bool(mine and others) and mine | others == everything and not mine & others

    wait_for("a share for each", shared)
    second.shared.close()
    wait_for("all on one again", lambda: set(first.look()) == everything)


def test_a_camera_that_cannot_be_run_here_harms_no_other(bus: Bus, worker: Callable[[], TopicCameras]) -> None:
    """Its secret is not set on this worker, or its record is none; both are said."""
    publish(
        bus, [entry("hall"), entry("door", url="rtsp://viewer:${DOOR_PASSWORD}@10.0.0.1/1"), entry("gate", speed=3)]
    )
    share = Share(worker())
    wait_for("the good one", lambda: set(share.look()) == {"hall"})
    said = "\n".join(share.shared.problems())
    assert "DOOR_PASSWORD" in said
    assert "'speed'" in said


@pytest.mark.parametrize(
    "wrong",
    [
        entry("hall", url="rtsp://viewer:hush@10.0.0.1/1"),
        entry("hall", url="rtsp://viewer:${HALL_PASSWORD}hush@10.0.0.1/1"),
        entry("hall", url="http://10.0.0.1/mjpg?token=hush"),
        entry("hall", options={"headers": "Authorization: Basic hush"}),
    ],
)
def test_a_secret_in_clear_is_refused_and_not_repeated(bus: Bus, wrong: dict[str, Any]) -> None:
    """A topic is kept for ever, and read by many."""
    with pytest.raises(ConfigError) as refused:
        checked_entries([wrong], "cameras.yaml")
    assert "${NAME}" in str(refused.value)
    assert "hush" not in str(refused.value)
    assert read_all(bus) == {}


def test_everything_wrong_with_the_entries_is_said_at_once() -> None:
    """As of a camera file."""
    with pytest.raises(ConfigError) as refused:
        checked_entries([entry("hall", speed=1), entry("door", url="gopher://x"), entry("door")], "cameras.yaml")
    assert len(refused.value.problems) == 3


def test_a_group_that_only_lists_takes_no_cameras_away(bus: Bus, worker: Callable[[], TopicCameras]) -> None:
    """`cameras list` is nobody's worker."""
    publish(bus, [entry("hall")])
    share = Share(worker())
    wait_for("the camera", lambda: set(share.look()) == {"hall"})
    assert set(read_all(bus)) == {"hall"}
    assert set(share.look()) == {"hall"}
