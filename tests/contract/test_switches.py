"""The kill switch of a camera, on every bus: followed by whoever runs cameras, kept over restarts, and written down."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial

import msgspec
import pytest
from pydantic import SecretStr

from pipeline import switches
from pipeline.bus import Bus, TopicSpec
from pipeline.cameras import Camera
from pipeline.messages import CameraStatus, encode, headers
from pipeline.switches import Switch, Switches, history, let_go, publish
from tests.contract.conftest import BusMaker
from tests.servers import wait_until

PATIENCE_S = 30.0


@pytest.fixture(autouse=True)
def own_topics(bus: Bus, topic_prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test topics of its own, and no wait between two looks."""
    monkeypatch.setattr(switches, "LOOK_S", 0.0)
    for name in ("SWITCHES", "AUDIT", "PREDICTIONS"):
        monkeypatch.setattr(switches, name, f"{topic_prefix}{name.lower()}")
        bus.ensure_topics([TopicSpec(f"{topic_prefix}{name.lower()}", 2, 3600, compact=name == "SWITCHES")])


@pytest.fixture
def follower(bus: Bus) -> Iterator[Switches]:
    """Follow the switches as a worker does."""
    with closing(Switches(bus)) as made:
        yield made


def word(camera: str, action: str, reason: str = "repair") -> Switch:
    """Say something of a camera."""
    return Switch(camera=camera, action=action, at=time.time(), by="me", reason=reason)  # type: ignore[arg-type]


CAMERAS = tuple(Camera(id=name, url=SecretStr(f"rtsp://10.0.0.1/{name}")) for name in ("hall", "door"))


def paused(follower: Switches) -> dict[str, str]:
    """Give the cameras that are paused, with why."""
    return {camera.id: camera.paused for camera in follower.applied(CAMERAS) if camera.paused}


def test_a_running_worker_follows_and_a_restarted_one_knows(bus: Bus, bus_maker: BusMaker, follower: Switches) -> None:
    """Paused before a worker starts, a camera is never begun; resumed, it is as the file has it."""
    assert paused(follower) == {}
    publish(bus, word("hall", "paused"))
    wait_until(follower.changed, timeout_s=PATIENCE_S, what="the pause")
    assert paused(follower)["hall"].startswith("paused by me, 20")
    assert paused(follower)["hall"].endswith(" UTC: repair")
    assert not follower.changed()
    with closing(Switches(bus_maker.bus())) as restarted:
        assert paused(restarted).keys() == {"hall"}
    publish(bus, word("hall", "resumed"))
    wait_until(follower.changed, timeout_s=PATIENCE_S, what="the end of the pause")
    assert follower.applied(CAMERAS) == CAMERAS


def test_who_switched_what_when_and_why_is_kept(bus: Bus) -> None:
    """Every word, in order, though only the last one counts."""
    words = [word("hall", "paused", "a"), word("door", "paused", "b"), word("hall", "resumed", "c")]
    for one in words:
        publish(bus, one)
    assert history(bus) == words


def test_a_record_that_is_none_pauses_nothing_and_stops_nobody(bus: Bus, follower: Switches, topic_prefix: str) -> None:
    """Somebody else's bytes in the topic."""
    with closing(bus.producer()) as producer:
        producer.send(f"{topic_prefix}switches", key=b"hall", value=b"no JSON", headers=())
        producer.flush(PATIENCE_S)
    publish(bus, word("door", "paused"))
    wait_until(follower.changed, timeout_s=PATIENCE_S, what="the pause")
    assert paused(follower).keys() == {"door"}


def test_whoever_switches_is_told_when_it_has_happened(bus: Bus, topic_prefix: str) -> None:
    """By the camera's own word after the switch, not by one from before it, nor by another camera's."""
    switch = word("hall", "paused")

    def says(camera: str, state: str, at: float) -> None:
        with closing(bus.producer()) as producer:
            status = CameraStatus(camera_id=camera, at=at, state=state)
            producer.send(f"{topic_prefix}predictions", key=camera.encode(), value=encode(status), headers=headers())
            producer.flush(PATIENCE_S)

    says("hall", "running", switch.at + 1)
    says("door", "paused", switch.at + 1)
    says("hall", "paused", switch.at - 1)
    assert let_go(bus, switch, 1.0) is None
    says("hall", "paused", switch.at + 2)
    assert let_go(bus, switch, PATIENCE_S) is not None


@pytest.mark.parametrize("keys", [(b"hall", b"door"), (b"door", b"hall")])
def test_the_last_word_is_the_last_wherever_it_lies(
    bus: Bus, bus_maker: BusMaker, topic_prefix: str, keys: tuple[bytes, bytes]
) -> None:
    """After partitions were added, a camera's words lie in two of them, and either may be read first."""
    for key, action in zip(keys, ("paused", "resumed"), strict=True):
        with closing(bus.producer()) as producer:
            value = msgspec.json.encode(word("hall", action))
            producer.send(f"{topic_prefix}switches", key=key, value=value, headers=headers())
            producer.flush(PATIENCE_S)
        wait_until(partial(is_past, time.time() + 0.005), timeout_s=PATIENCE_S, what="the log's next millisecond")
    with closing(Switches(bus_maker.bus())) as started:
        assert paused(started) == {}


def is_past(moment: float) -> bool:
    """Tell whether it is later than that."""
    return time.time() > moment
