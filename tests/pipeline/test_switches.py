"""What is followed when the log's clock is not what it was."""

from __future__ import annotations

from contextlib import closing
from typing import Literal

from pydantic import SecretStr

from pipeline.bus import AUDIT, SWITCHES, TopicSpec
from pipeline.cameras import Camera
from pipeline.memory_bus import MemoryBus
from pipeline.switches import Switch, Switches, publish


def test_a_clock_that_goes_back_silences_no_word() -> None:
    """Another broker leads, and its clock is behind: who says stop is heard all the same."""
    clock = [1_000_100.0]
    words: tuple[tuple[float, Literal["paused", "resumed"]], ...] = ((1_000_100.0, "resumed"), (1_000_000.0, "paused"))
    with closing(MemoryBus(clock=lambda: clock[0])) as bus:
        bus.ensure_topics([TopicSpec(AUDIT, 1, 3600), TopicSpec(SWITCHES, 1, 0, compact=True)])
        for clock[0], action in words:
            publish(bus, Switch(camera="hall", action=action, at=clock[0], by="me", reason="fire"))
        with closing(Switches(bus)) as followed:
            (camera,) = followed.applied([Camera(id="hall", url=SecretStr("rtsp://10.0.0.1/hall"))])
    assert camera.paused.endswith("fire")
