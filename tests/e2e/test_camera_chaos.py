"""Cameras that die, hang, lie and come back, on real RTSP servers in processes of their own.

In every film one and the same person stands all the time, so that the truth is one visitor a camera, whatever happens to it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from pydantic import SecretStr

from demo.backdrops import VIEWS
from demo.composer import SHIRTS, figure_of, load_cast, write_film
from demo.scenes import FPS, Route
from ingest.av_source import AvSource
from ingest.camera import CameraLoop
from ingest.detector import Image
from ingest.fleet import Fleet
from ingest.source import Frame
from ingest.step import View
from pipeline.bus import FACE_CROPS
from pipeline.cameras import Camera
from pipeline.manifest import DEFAULT_MODEL, load_manifest
from pipeline.memory_bus import MemoryBus
from pipeline.messages import TrackEnded, decode
from pipeline.settings import IngestSettings, KafkaSettings
from pipeline.telemetry import Telemetry
from tests.e2e.cameras import Cameras, gstreamer_missing
from tests.servers import wait_until

pytestmark = pytest.mark.slow

RECOVERY_S = 5.0
QUICK = {"probesize": "32", "analyzeduration": "1", "fpsprobesize": "0"}
SETTINGS = IngestSettings(
    detect_fps=4, max_side_px=320, stall_timeout_s=2, read_timeout_s=2, open_timeout_s=3,
    reconnect_bridge_s=60,  # a busy machine takes its time to start a server
    picture_s=0,  # who is drawn here stands for minutes, stiller than anybody does
)  # fmt: skip


def draw(path: Path, size: tuple[int, int], seconds: float) -> Path:
    """Draw somebody who stands in the middle."""
    stands = Route(((-1.0, 0.5, 0.4, 0.3), (seconds + 1.0, 0.5, 0.4, 0.3)), bob=0.02, sway=0.02)
    write_film(
        path, figures=[figure_of(load_cast()[0], stands, SHIRTS[0])], ground=VIEWS["hall"](size), caption="", fps=FPS,
        frames=round(seconds * FPS), rng=np.random.default_rng(1),
    )  # fmt: skip
    return path


@dataclass(frozen=True)
class Films:
    """What the cameras show."""

    short: Path  # for a server that loops
    large: Path
    long: Path  # for one that does not
    changing: Path  # of one size, and then of another
    still_clock: Path  # without times
    keyed: Path  # with a key frame every 0.08 s, so that a new viewer need not wait


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Films:
    """Draw them once."""
    folder = tmp_path_factory.mktemp("films")
    small, large = draw(folder / "short.mp4", (640, 360), 4.0), draw(folder / "large.mp4", (1280, 720), 4.0)
    changing = folder / "changing.h264"
    changing.write_bytes(b"".join(annex_b(film) for film in (small, large)))
    keyed = folder / "keyed.h264"
    keyed.write_bytes(annex_b(small, keys="2"))
    still = folder / "still.h264"
    still.write_bytes(annex_b(small) * 8)
    return Films(small, large, draw(folder / "long.mp4", (640, 360), 90.0), changing, still, keyed)


def annex_b(film: Path, keys: str = "25") -> bytes:
    """Encode a film again as a bare stream, with its size in the stream itself."""
    out = film.with_suffix(".bare")
    with av.open(str(film)) as source, av.open(str(out), "w", format="h264") as bare:
        stream = bare.add_stream(
            "libx264",
            rate=FPS,
            options={"preset": "ultrafast", "g": keys, "keyint_min": keys, "sc_threshold": "0", "bf": "0"},
        )
        stream.width, stream.height = source.streams.video[0].width, source.streams.video[0].height
        stream.pix_fmt = "yuv420p"
        for frame in source.decode(video=0):
            frame.pts = None
            bare.mux(stream.encode(frame))
        bare.mux(stream.encode())
    return out.read_bytes()


class Watch:
    """A worker on some cameras, and whom it counted."""

    def __init__(self, *cameras: Camera, settings: IngestSettings = SETTINGS) -> None:
        self.bus = MemoryBus()
        self.bus.ensure_topics(KafkaSettings().topics())
        self.telemetry = Telemetry(("ingest",))
        self.fleet = Fleet(
            cameras, settings=settings, recipe=load_manifest(DEFAULT_MODEL).crop, bus=self.bus, telemetry=self.telemetry
        )
        self.fleet.start()

    def loop(self, name: str) -> CameraLoop:
        """Give a camera's loop."""
        return next(loop for loop in self.fleet.loops if loop.camera.id == name)

    def wait_running(self, *names: str, within_s: float = 30.0) -> float:
        """Wait until cameras give new pictures; gives how long it took."""
        began = time.monotonic()
        before = {name: self.loop(name).state.frames for name in names}
        wait_until(
            lambda: all(
                self.loop(name).state.state == "running" and self.loop(name).state.frames > before[name] + 2
                for name in names
            ),
            timeout_s=within_s,
            what=f"pictures of {', '.join(names)}",
        )
        return time.monotonic() - began

    def wait_state(self, name: str, *states: str) -> None:
        """Wait until a camera is in one of these states."""
        wait_until(lambda: self.loop(name).state.state in states, timeout_s=30, what=f"{name} {' or '.join(states)}")

    def wait_seen(self, name: str) -> None:
        """Wait until the person has been seen for long enough to be a visitor."""

        def seen() -> bool:
            view = self.loop(name)._view
            return view is not None and view.present == 1

        wait_until(seen, timeout_s=30, what=f"the visitor of {name}")

    def close(self) -> list[TrackEnded]:
        """End, and give who was counted."""
        self.fleet.close()
        consumer = self.bus.consumer(FACE_CROPS, group="test")
        said = []
        while records := consumer.poll(0.2, 1000):
            said += [decode(record.value, record.headers) for record in records]
        self.bus.close()
        return [message for message in said if isinstance(message, TrackEnded) and message.visitor]


def camera(name: str, url: str, **more: object) -> Camera:
    """Describe a camera."""
    return Camera.model_validate({"id": name, "url": SecretStr(url), "options": QUICK, **more})


@pytest.fixture
def watching() -> Iterator[Callable[..., Watch]]:
    """Make a worker; it is ended in any case."""
    made: list[Watch] = []

    def make(*cameras: Camera, settings: IngestSettings = SETTINGS) -> Watch:
        made.append(Watch(*cameras, settings=settings))
        return made[-1]

    yield make
    for watch in made:
        watch.fleet.close()


@pytest.fixture(params=["ours", "gstreamer"])
def server(request: pytest.FixtureRequest, films: Films) -> Iterator[Cameras]:
    """Run a server with one camera, `door`."""
    if request.param == "gstreamer" and (missing := gstreamer_missing()):
        pytest.skip(missing)
    film = films.long if request.param == "gstreamer" else films.short
    with Cameras(f"door={film}", gstreamer=request.param == "gstreamer") as started:
        yield started


def test_a_server_that_is_killed_and_one_that_is_frozen_are_back_within_5_s_and_nobody_is_counted_twice(
    server: Cameras, watching: Callable[..., Watch]
) -> None:
    """By kill -9, then by SIGSTOP for longer than anything waits; each time the same person is there again."""
    watch = watching(camera("door", server.url("door")))
    watch.wait_seen("door")
    server.kill()
    watch.wait_state("door", "lost", "unreachable")
    time.sleep(1.0)
    server.start()
    after_kill = watch.wait_running("door")
    watch.wait_seen("door")
    server.freeze()
    watch.wait_state("door", "stalled", "unreachable")
    server.thaw()
    after_freeze = watch.wait_running("door")
    watch.wait_seen("door")
    ended = watch.close()
    print(f"back after {after_kill:.1f} s and {after_freeze:.1f} s; {len(ended)} visitor")  # noqa: T201
    assert after_kill <= RECOVERY_S
    assert after_freeze <= RECOVERY_S
    assert len(ended) == 1


def test_one_of_eight_cameras_dead_disturbs_no_other(films: Films, watching: Callable[..., Watch]) -> None:
    """Seven run on without a loss while the eighth dies, is away, and comes back; eight visitors in all."""
    names = [f"camera-{n}" for n in range(8)]
    well = Cameras(*(f"{name}={films.short}" for name in names[1:]))
    with Cameras(f"{names[0]}={films.short}") as ill, well:
        watch = watching(*(camera(name, (well if n else ill).url(name)) for n, name in enumerate(names)))
        for name in names:
            watch.wait_seen(name)
        others = [watch.loop(name).state for name in names[1:]]
        before = [state.frames for state in others]
        ill.kill()
        watch.wait_state(names[0], "lost", "unreachable")
        began = time.monotonic()
        gaps = [0.0] * 7
        last = [(state.frames, began) for state in others]
        while (now := time.monotonic()) < began + 4:
            for n, state in enumerate(others):
                if state.frames != last[n][0]:
                    gaps[n], last[n] = max(gaps[n], now - last[n][1]), (state.frames, now)
            time.sleep(0.01)
        ill.start()
        back = watch.wait_running(names[0])
        watch.wait_seen(names[0])
        ended = watch.close()
    seen = [state.frames - first for state, first in zip(others, before, strict=True)]
    print(f"back after {back:.1f} s; the others: {min(seen)} frames, gaps {max(gaps):.2f} s; {len(ended)} visitors")  # noqa: T201
    assert back <= RECOVERY_S
    assert all(state.connections == 1 and state.state in {"running", "ended"} for state in others)
    assert min(seen) >= 0.8 * 4 * FPS
    assert sorted(end.camera_id for end in ended) == names


@pytest.fixture(params=["ours", "gstreamer"])
def serving(request: pytest.FixtureRequest) -> Callable[..., Cameras]:
    """Make one server or the other."""
    if request.param == "gstreamer" and (missing := gstreamer_missing()):
        pytest.skip(missing)
    return partial(Cameras, gstreamer=request.param == "gstreamer")


def gstreamer(serving: Callable[..., Cameras]) -> bool:
    """Tell which server it is."""
    return isinstance(serving, partial) and bool(serving.keywords["gstreamer"])


def test_a_wrong_password_is_said_and_the_right_one_helps_at_once(
    serving: Callable[..., Cameras], films: Films, watching: Callable[..., Watch]
) -> None:
    """`refused` with what to do; corrected in the camera file, it runs within 5 s."""
    with serving(f"door={films.long},viewer:right") as server:
        watch = watching(camera("door", server.url("door", "viewer:wrong@")))
        watch.wait_state("door", "refused")
        assert "password" in watch.loop("door").state.reason
        assert "wrong" not in watch.loop("door").state.reason
        began = time.monotonic()
        watch.fleet.apply([camera("door", server.url("door", "viewer:right@"))])
        watch.wait_running("door")
        assert time.monotonic() - began <= RECOVERY_S
        watch.wait_seen("door")
        assert len(watch.close()) == 1


def test_a_camera_that_is_not_there_says_so(films: Films, watching: Callable[..., Watch]) -> None:
    """The host answers, the path does not exist; and an address where nobody is."""
    with Cameras(f"door={films.short}") as server:
        watch = watching(camera("door", server.url("window")), camera("gate", "rtsp://127.0.0.1:9/gate"))
        watch.wait_state("door", "not_found")
        watch.wait_state("gate", "unreachable")


def test_a_burst_without_end_is_a_fault_and_harms_no_other(
    serving: Callable[..., Cameras], films: Films, watching: Callable[..., Watch]
) -> None:
    """A camera out of order sends thirty times too many frames: `too_fast`; the one beside it runs on."""
    with serving(f"burst={films.long},x30", f"door={films.long}") as server:
        watch = watching(camera("burst", server.url("burst")), camera("door", server.url("door")))
        watch.wait_state("burst", "too_fast", "lost")
        watch.wait_running("door")
        watch.wait_seen("door")
        assert watch.loop("door").state.connections == 1


def test_a_stream_that_changes_its_size_in_the_middle_loses_nobody(
    serving: Callable[..., Cameras], films: Films, watching: Callable[..., Watch]
) -> None:
    """From 640x360 to 1280x720 and back, several times within one connection: one visitor."""
    # GStreamer gives a bare stream no times; it plays one film after the other.
    film = "+".join([str(films.short), str(films.large)] * 4) if gstreamer(serving) else films.changing
    with serving(f"door={film}") as server:
        watch = watching(camera("door", server.url("door")))
        watch.wait_seen("door")
        shapes: set[int] = set()

        def both() -> bool:
            view = watch.loop("door")._view
            if view is not None and view.tracker._size is not None:
                shapes.add(view.tracker._size[0])
            return shapes == {640, 1280}

        wait_until(both, timeout_s=30, what="both sizes")
        watch.wait_seen("door")
        assert watch.loop("door").state.connections == 1
        ended = watch.close()
        assert len(ended) == 1


def test_a_camera_whose_clock_stands_still_is_timed_by_arrival(films: Films, watching: Callable[..., Watch]) -> None:
    """Every picture claims the same time: else it would seem later and later, until only key frames were looked at."""
    if missing := gstreamer_missing():
        pytest.skip(missing)
    with Cameras(f"door={films.still_clock}", gstreamer=True) as server:
        watch = watching(camera("door", server.url("door")))
        watch.wait_seen("door")
        state = watch.loop("door").state
        seen, began = state.frames, time.time()
        wait_until(lambda: state.frames >= seen + 5 * FPS, timeout_s=30, what="five more seconds of pictures")
        assert state.connections == 1
        (end,) = watch.close()
        assert end.last_seen >= began


def test_a_camera_that_is_handed_over_counts_those_in_view_again_and_nobody_else(
    films: Films, watching: Callable[..., Watch]
) -> None:
    """One stands there, and another worker takes the camera over: counted by both, and the first has said how many that is."""
    with Cameras(f"door={films.short}") as server:
        door = camera("door", server.url("door"))
        old = watching(door)
        old.wait_seen("door")
        old.fleet.apply([])
        new = watching(door)
        new.wait_seen("door")
        ended = [*old.close(), *new.close()]
        in_view = old.telemetry.registry.get_sample_value(
            "demographics_ended_in_view_total", {"site": "default", "camera": "door"}
        )
    assert in_view == 1
    assert len(ended) == 1 + in_view


class Overload:
    """A worker that can be made slow, at searching and at reading, and what comes of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.search_s = self.read_s = 0.0
        self.newest = 0.0  # when the picture that was read last was taken
        self.ages: list[float] = []  # by how much older the searched pictures were, by the stream's clock
        self.source: AvSource | None = None
        overload = self

        class SlowSource(AvSource):
            def frames(self) -> Iterator[Frame]:
                overload.source = self
                for frame in super().frames():
                    overload.newest = frame.captured_at
                    time.sleep(overload.read_s)
                    yield frame

        search = CameraLoop._search

        def noted(loop: CameraLoop, eye: Any, view: View, image: Image, frame: Frame) -> Any:
            overload.ages.append(overload.newest - frame.captured_at)
            time.sleep(overload.search_s)
            return search(loop, eye, view, image, frame)

        monkeypatch.setattr("ingest.fleet.AvSource", SlowSource)
        monkeypatch.setattr(CameraLoop, "_search", noted)

    @property
    def key_frames_only(self) -> bool:
        """Whether the source is catching up."""
        return self.source is not None and self.source._catch_up.keys_only


def test_a_worker_that_cannot_search_as_often_as_wanted_searches_less_and_nothing_queues(
    films: Films, watching: Callable[..., Watch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look takes longer than a second: the cadence falls to the least; reading goes on; what is searched is the newest."""
    overload = Overload(monkeypatch)
    with Cameras(f"door={films.short}") as server:
        watch = watching(camera("door", server.url("door")))
        watch.wait_seen("door")
        loop = watch.loop("door")

        def cadence() -> float:
            place = {"site": "default", "camera": "door"}
            return watch.telemetry.registry.get_sample_value("demographics_detect_fps", place) or 0.0

        overload.search_s, overload.ages = 1.2, []
        frames, drops = loop.state.frames, loop.state.drops
        wait_until(lambda: cadence() == SETTINGS.least_detect_fps, timeout_s=90, what="the least cadence")
        read, dropped, looks = loop.state.frames - frames, loop.state.drops - drops, len(overload.ages)
        print(f"{read} pictures read, {dropped} dropped, {looks} searched, at most {max(overload.ages):.2f} s old")  # noqa: T201
        assert dropped > read / 2  # the rest were not due, or were searched
        assert max(overload.ages) < 2.0  # fifty pictures in a queue would be that old; it holds one
        assert len(loop._outbox) < 10
        overload.search_s = 0.0
        wait_until(lambda: cadence() == SETTINGS.detect_fps, timeout_s=90, what="the cadence of before")
        assert loop.state.connections == 1
        assert len(watch.close()) == 1


def test_a_worker_that_cannot_read_as_fast_as_pictures_come_decodes_key_frames_until_it_has_caught_up(
    films: Films, watching: Callable[..., Watch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten a second of 25: what waits in the kernel grows, until only key frames are decoded; then it is at the present again."""
    overload = Overload(monkeypatch)
    with Cameras(f"door={films.still_clock}") as server:
        watch = watching(camera("door", server.url("door")))
        watch.wait_seen("door")
        loop = watch.loop("door")
        overload.read_s = 0.1
        for _ in range(2):  # it is as slow as before, so it falls behind again: and catches up again
            wait_until(lambda: overload.key_frames_only, timeout_s=60, what="key frames only")
            wait_until(lambda: not overload.key_frames_only, timeout_s=60, what="every frame")
        overload.read_s = 0.0
        watch.wait_seen("door")
        frames = loop.state.frames
        wait_until(lambda: loop.state.frames > frames + 2 * FPS, timeout_s=30, what="pictures")
        wait_until(lambda: not overload.key_frames_only, timeout_s=30, what="every frame, for good")
        assert loop.state.connections == 1
        assert len(watch.close()) == 1


@pytest.mark.timeout(400)
def test_two_hundred_connections_leave_nothing_behind(films: Films, watching: Callable[..., Watch]) -> None:
    """Cut off again and again: no thread, no descriptor, and a memory that does not grow."""
    from demo.rtsp_server import RtspServer  # noqa: PLC0415  in this process, so that it can be told to cut

    with RtspServer() as server:
        server.add("door", films.keyed)
        watch = watching(
            camera("door", server.url("door")), settings=SETTINGS.model_copy(update={"max_backoff_s": 0.01})
        )
        watch.wait_running("door")
        resident: list[float] = []
        handles: list[int] = []
        threads: list[int] = []
        for n in range(200):
            connections = watch.loop("door").state.connections
            server.drop_clients("door")
            wait_until(lambda: watch.loop("door").state.connections > connections, timeout_s=30, what="a connection")  # noqa: B023
            frames = watch.loop("door").state.frames
            wait_until(lambda: watch.loop("door").state.frames > frames, timeout_s=30, what="a picture")  # noqa: B023
            if n >= 40:  # after the caches are full
                resident.append(_resident_mib())
                handles.append(len(list(Path("/proc/self/fd").iterdir())))
                threads.append(threading.active_count())
        ended = watch.close()
    slope = float(np.polyfit(np.arange(len(resident)), resident, 1)[0])
    print(  # noqa: T201
        f"RSS {resident[0]:.0f} to {resident[-1]:.0f} MiB, {1024 * slope:+.1f} KiB a connection; "
        f"descriptors {min(handles)}-{max(handles)}, threads {min(threads)}-{max(threads)}; {len(ended)} visitor"
    )
    assert abs(slope) * len(resident) < 16, "MiB in all"
    assert max(handles) - min(handles) <= 6
    assert max(threads) - min(threads) <= 3
    assert len(ended) == 1


def _resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
