"""The cameras of one worker: each on its own, none in another's way, all of them ended at the close."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.clip import Clip
from demo.rtsp_server import RtspServer
from ingest.fleet import NICE, Fleet, stand_back
from pipeline.bus import FACE_CROPS, PREDICTIONS, Consumer, TopicSpec
from pipeline.cameras import Camera
from pipeline.errors import ConfigError
from pipeline.manifest import CropRecipe
from pipeline.memory_bus import MemoryBus
from pipeline.messages import CameraStatus, Message, TrackEnded, decode
from pipeline.settings import IngestSettings
from pipeline.telemetry import SOFTWARE_INSTEAD, Telemetry
from tests.ingest.conftest import PATIENCE_S, camera
from tests.servers import wait_until


@pytest.fixture
def bus() -> Iterator[MemoryBus]:
    """Make a bus with the topics that ingest writes to."""
    made = MemoryBus()
    made.ensure_topics([TopicSpec(topic, 2, retention_s=600) for topic in (FACE_CROPS, PREDICTIONS)])
    yield made
    made.close()


def fleet_of(bus: MemoryBus, recipe: CropRecipe, *cameras: Camera, detector_model: Path | None = None) -> Fleet:
    """Make a fleet with quick time-outs."""
    return Fleet(
        cameras,
        settings=IngestSettings(
            max_backoff_s=0.2, open_timeout_s=3, read_timeout_s=1, detect_fps=5, detector_model=detector_model
        ),
        recipe=recipe,
        bus=bus,
        telemetry=Telemetry(("ingest",)),
    )


def said(consumer: Consumer) -> list[Message]:
    """Read all that there is."""
    messages: list[Message] = []
    while records := consumer.poll(0.1, 500):
        messages += [decode(record.value, record.headers) for record in records]
    return messages


def test_every_camera_is_read_and_a_broken_one_harms_no_other(
    bus: MemoryBus, recipe: CropRecipe, clip: Clip, tmp_path: Path
) -> None:
    """Two films and a text file: three visitors in each film, and the third camera's problem by name."""
    (tmp_path / "text.mp4").write_text("not a film")
    fleet = fleet_of(
        bus,
        recipe,
        camera(clip.path, name="east"),
        camera(tmp_path / "text.mp4", name="broken"),
        camera(clip.path, name="west"),
    )
    assert not fleet.ended()
    fleet.start()
    wait_until(fleet.ended, timeout_s=60, what="the end of all films")
    fleet.close()
    (problem,) = fleet.problems()
    assert problem.startswith("camera broken: ")
    assert "decoded as video" in problem
    ends = [m for m in said(bus.consumer(FACE_CROPS, group="test")) if isinstance(m, TrackEnded)]
    assert sorted(end.camera_id for end in ends) == ["east"] * 3 + ["west"] * 3
    last = {m.camera_id: m for m in said(bus.consumer(PREDICTIONS, group="test")) if isinstance(m, CameraStatus)}
    assert {name: told.state for name, told in last.items()} == {
        "east": "ended", "west": "ended", "broken": "unreadable",
    }  # fmt: skip
    assert last["east"].frames == round(clip.seconds * clip.fps)


def test_closing_ends_who_is_in_view_and_every_thread(
    bus: MemoryBus, recipe: CropRecipe, clip: Clip, rtsp_server: RtspServer
) -> None:
    """A worker that is shut down while somebody walks by has told of them."""
    rtsp_server.add("hall", clip.path, start="on_play")
    fleet = fleet_of(bus, recipe, camera(rtsp_server.url("hall"), name="hall"))
    fleet.start()
    crops = bus.consumer(FACE_CROPS, group="test")
    wait_until(lambda: bool(crops.poll(0.05, 1)), timeout_s=PATIENCE_S, what="the first crop")
    fleet.close()
    assert fleet.ended()
    assert any(isinstance(message, TrackEnded) for message in said(crops))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("camera-")]


@pytest.mark.parametrize("content", [None, b"no network"])
def test_a_detector_that_does_not_load_is_said_before_a_camera_is_opened(
    bus: MemoryBus, recipe: CropRecipe, numbered_film: Path, tmp_path: Path, content: bytes | None
) -> None:
    """At the start, not in a camera's thread for ever after."""
    model = tmp_path / "detector.onnx"
    if content is not None:
        model.write_bytes(content)
    with pytest.raises(ConfigError, match=r"detector\.onnx"):
        fleet_of(bus, recipe, camera(numbered_film), detector_model=model)


def test_cameras_come_and_go_while_the_others_run_on(
    bus: MemoryBus, recipe: CropRecipe, clip: Clip, rtsp_server: RtspServer
) -> None:
    """One added, one changed, one removed: its visitor has been told of; the one that is the same keeps its connection."""
    for name in ("hall", "door", "gate"):
        rtsp_server.add(name, clip.path)
    same, old = camera(rtsp_server.url("hall"), name="hall"), camera(rtsp_server.url("door"), name="door")
    fleet = fleet_of(bus, recipe, same, old)
    fleet.start()

    def running(*names: str) -> bool:
        loops = {loop.camera.id: loop for loop in fleet.loops}
        return set(loops) == set(names) and all(loops[name].state.state == "running" for name in names)

    wait_until(lambda: running("hall", "door"), timeout_s=PATIENCE_S, what="two cameras")
    kept = next(loop for loop in fleet.loops if loop.camera.id == "hall")
    changed = camera(rtsp_server.url("door"), name="door", detect_fps=3)
    fleet.apply([same, changed, camera(rtsp_server.url("gate"), name="gate")])
    wait_until(lambda: running("hall", "door", "gate"), timeout_s=PATIENCE_S, what="three cameras")
    assert kept in fleet.loops
    assert kept.state.connections == 1
    assert next(loop for loop in fleet.loops if loop.camera.id == "door").camera.detect_fps == 3
    fleet.apply([same])
    assert running("hall")
    assert {thread.name for thread in threading.enumerate() if thread.name.startswith("camera-")} == {"camera-hall"}
    fleet.close()


def test_a_loop_that_fails_by_a_fault_of_ours_is_begun_anew(
    bus: MemoryBus, recipe: CropRecipe, clip: Clip, rtsp_server: RtspServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake costs seconds, not a camera; the state says what happened meanwhile."""
    monkeypatch.setattr("ingest.fleet.RESTART_S", 0.05)
    rtsp_server.add("hall", clip.path)
    fleet = fleet_of(bus, recipe, camera(rtsp_server.url("hall"), name="hall"))
    (first,) = fleet.loops
    monkeypatch.setattr(first, "run", lambda _stop: 1 / 0)
    fleet.start()

    def anew() -> bool:
        (loop,) = fleet.loops
        return loop is not first and loop.state.state == "running"

    wait_until(anew, timeout_s=PATIENCE_S, what="a new loop")
    assert "ZeroDivisionError" in first.state.reason
    fleet.close()


def test_a_camera_whose_hardware_is_missing_is_counted_all_the_same_and_that_is_said(
    bus: MemoryBus, recipe: CropRecipe, clip: Clip
) -> None:
    """Software decodes it; the metric says of which cameras, so that nobody wonders where the cores went."""
    telemetry = Telemetry(("ingest",))
    fleet = Fleet(
        (camera(clip.path, name="asked", hwaccel="none-of-that-name"), camera(clip.path, name="plain")),
        settings=IngestSettings(detect_fps=5),
        recipe=recipe,
        bus=bus,
        telemetry=telemetry,
    )
    fleet.start()
    wait_until(fleet.ended, timeout_s=60, what="the end of both films")
    fleet.close()
    ends = [m for m in said(bus.consumer(FACE_CROPS, group="test")) if isinstance(m, TrackEnded)]
    assert sorted(end.camera_id for end in ends) == ["asked"] * 3 + ["plain"] * 3
    fallbacks = {
        labels["camera"]: value for name, labels, value in telemetry.samples(SOFTWARE_INSTEAD) if "created" not in name
    }
    assert fallbacks == {"asked": 1, "plain": 0}


def test_a_paused_camera_is_let_go_of_at_once_and_looked_at_again_when_it_is_resumed(
    bus: MemoryBus, recipe: CropRecipe, clip: Clip, rtsp_server: RtspServer
) -> None:
    """Nobody plays its stream, its state says who and why, nothing is sent of whoever walks by; the other camera runs on."""
    for name in ("hall", "door"):
        rtsp_server.add(name, clip.path)
    hall, door = camera(rtsp_server.url("hall"), name="hall"), camera(rtsp_server.url("door"), name="door")
    fleet = fleet_of(bus, recipe, hall, door)
    fleet.start()

    def watched(path: str) -> bool:
        return any(session.stop_s is None for session in rtsp_server.sessions(path))

    def states() -> dict[str, str]:
        return {loop.camera.id: loop.state.state for loop in fleet.loops}

    wait_until(lambda: set(states().values()) == {"running"}, timeout_s=PATIENCE_S, what="both cameras")
    assert watched("hall")
    fleet.apply([hall.model_copy(update={"paused": "paused by me: repair"}), door])
    wait_until(lambda: not watched("hall"), timeout_s=PATIENCE_S, what="the end of the stream")
    wait_until(lambda: states() == {"hall": "paused", "door": "running"}, timeout_s=PATIENCE_S, what="the pause")
    assert not fleet.problems()  # it is as it should be
    statuses = [m for m in said(bus.consumer(PREDICTIONS, group="test")) if isinstance(m, CameraStatus)]
    last = [m for m in statuses if m.camera_id == "hall"][-1]
    assert (last.state, last.reason, last.fps, last.present) == ("paused", "paused by me: repair", 0, 0)
    fleet.apply([hall, door])
    wait_until(lambda: set(states().values()) == {"running"}, timeout_s=PATIENCE_S, what="both cameras again")
    fleet.close()


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own elsewhere")
def test_a_cameras_threads_let_the_others_go_first() -> None:
    """Those that it starts, too; never this one."""
    mine, theirs = os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), list[int]()

    def note() -> None:
        theirs.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    def run() -> None:
        stand_back()
        note()
        reader = threading.Thread(target=note)
        reader.start()
        reader.join()

    camera_thread = threading.Thread(target=run)
    camera_thread.start()
    camera_thread.join()
    assert theirs == [min(19, mine + NICE)] * 2
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == mine
