"""The loop of one camera: it comes back after every loss, says how it does, and loses nobody whom it can keep."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from demo.clip import Clip
from demo.rtsp_server import RtspServer
from ingest.av_source import AvSource
from ingest.camera import MOST_LEFT_BEHIND, CameraLoop
from ingest.detector import Detector, FaceBox, Image
from ingest.outbox import SharedProducer
from ingest.source import Frame, Source
from ingest.yunet_detector import YunetDetector
from pipeline import telemetry as metrics
from pipeline.bus import FACE_CROPS, PREDICTIONS
from pipeline.cameras import Camera
from pipeline.errors import (
    SourceLost,
    SourceNotFound,
    SourceRefused,
    SourceUnreachable,
    SourceUnreadable,
)
from pipeline.manifest import CropRecipe
from pipeline.messages import FaceCrop, TrackEnded
from pipeline.sealing import CropKeys
from pipeline.settings import IngestSettings
from pipeline.telemetry import Metric, Telemetry
from tests.ingest.conftest import (
    PASSWORD,
    PATIENCE_S,
    FakeProducer,
    ScriptedDetector,
    ScriptedSource,
    camera,
    face_at,
)
from tests.servers import wait_until

LIVE = f"rtsp://viewer:{quote(PASSWORD, safe='')}@10.0.0.9/entrance"
AT_ONCE = IngestSettings(max_backoff_s=0.001)
WALK = 16  # looks that a passage takes: two seconds


class ImpatientEvent(threading.Event):
    """A stop signal on which nobody waits."""

    def wait(self, timeout: float | None = None) -> bool:
        """Say at once whether it is set."""
        return self.is_set()


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let the loop's clock run on where it would sleep; gives how long it would have slept, each time."""
    slept: list[float] = []
    monkeypatch.setattr(
        "ingest.camera.time",
        SimpleNamespace(time=time.time, sleep=slept.append, monotonic=lambda: time.monotonic() + sum(slept)),
    )
    return slept


def somebody(n: int) -> Sequence[FaceBox]:
    """Find one person walking by, again and again: there for WALK looks, away for as many."""
    return [face_at(100 + 20 * (n % (2 * WALK)))] if n % (2 * WALK) < WALK else []


class Rig:
    """A camera loop on scripted connections; when there are no more, it is stopped."""

    def __init__(
        self,
        recipe: CropRecipe,
        *connections: ScriptedSource | Exception,
        url: str | Path = LIVE,
        faces: Callable[[int], Sequence[FaceBox]] = somebody,
        settings: IngestSettings = AT_ONCE,
        producer: FakeProducer | None = None,
        until_end: bool = False,
        detect_fps: float = 8,
        **more: Any,
    ) -> None:
        self.producer = producer or FakeProducer()
        self.telemetry = Telemetry(("ingest",))
        self.detector = ScriptedDetector(faces)
        self.stop: threading.Event = ImpatientEvent()
        self.tried = 0
        self._connections: Iterator[ScriptedSource | Exception] = iter(connections)
        self.loop = CameraLoop(
            camera(url, detect_fps=detect_fps),
            settings=settings,
            recipe=recipe,
            detector=lambda _: self.detector,
            connect=self._connect,
            producer=SharedProducer(self.producer),
            telemetry=self.telemetry,
            until_end=until_end,
            **more,
        )

    def _connect(self, _: Camera) -> Source:
        self.tried += 1
        made = next(self._connections, None)
        if made is None:
            self.stop.set()
            raise SourceLost("the test is over")
        if isinstance(made, Exception):
            raise made
        return made

    def run(self) -> FakeProducer:
        """Run it through; gives what it said."""
        self.loop.run(self.stop)
        assert self.loop.state.ended
        return self.producer

    def metric(self, metric: Metric, **labels: str) -> float:
        """Read a metric of this camera."""
        return (
            self.telemetry.registry.get_sample_value(metric.name, {"site": "museum", "camera": "door", **labels}) or 0.0
        )


def live(*numbers: int, then: Exception | None = None, start: float = 1e9) -> ScriptedSource:
    """Give live pictures, then lose the camera."""
    return ScriptedSource(numbers, live=True, then=then or SourceLost("broke off"), start=start)


def film(looks: int, *, fps: float = 8.0) -> ScriptedSource:
    """Give a file's pictures to its end."""
    return ScriptedSource(range(looks), live=False, fps=fps)


# ── what leaves ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_with_keys_no_picture_leaves_unsealed(recipe: CropRecipe) -> None:
    """Nor does one wait in the outbox: it is sealed before it is posted."""
    keys = CropKeys({"a": b"k" * 32})
    crops = [m for m in Rig(recipe, live(*range(WALK)), seal=keys.seal).run().passages if isinstance(m, FaceCrop)]
    assert crops
    assert {crop.sealed_with for crop in crops} == {"a"}
    assert not any(crop.jpeg.startswith(b"\xff\xd8") for crop in crops)
    assert all(keys.open(crop).jpeg.startswith(b"\xff\xd8") for crop in crops)


def test_a_camera_says_what_may_be_said_of_its_visitors(recipe: CropRecipe) -> None:
    """The deployment's attributes are the most; where there are none, somebody passed, and no face was cut."""
    narrow = Rig(recipe, live(*range(WALK)), attributes=("gender", "age")).run().passages
    assert {message.attributes for message in narrow} == {("age", "gender")}
    silent = Rig(recipe, live(*range(WALK)), attributes=()).run().passages
    assert [(type(message), message.attributes) for message in silent] == [(TrackEnded, ())]
    assert isinstance(silent[0], TrackEnded)
    assert silent[0].crops == 0
    assert {message.attributes for message in Rig(recipe, live(*range(WALK))).run().passages} == {UNSET}


# ── coming back ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_lost_camera_is_connected_to_again_and_whoever_was_in_view_has_left(recipe: CropRecipe) -> None:
    """The passage that the loss cut off is ended; what comes after is another connection's."""
    # looks  [0 ── 9] lost [0 ── 9] lost
    first, second = live(*range(10)), live(*range(10), start=1e9 + 60)
    said = Rig(recipe, first, second).run()
    before, after = said.ends
    assert (before.first_seen, before.last_seen) == (1e9, 1e9 + 9 / 8)
    assert (after.first_seen, after.last_seen) == (1e9 + 60, 1e9 + 60 + 9 / 8)
    assert before.track_id >> 20 < after.track_id >> 20
    assert all(isinstance(message, FaceCrop | TrackEnded) for message in said.passages)
    assert [end.crops for end in said.ends] == [
        sum(isinstance(m, FaceCrop) and m.track_id == end.track_id for m in said.passages) for end in said.ends
    ]
    assert first.closed
    assert second.closed


def test_who_is_there_before_and_after_a_short_loss_is_one_visitor(recipe: CropRecipe) -> None:
    """A camera that reconnects counts nobody twice: the track goes on, and its crops count on."""
    # looks  [0 ── 9] lost for 4 s [0 ── 9] lost
    stands = lambda n: [face_at(300 + n % 2)]  # noqa: E731
    said = Rig(recipe, live(*range(10)), live(*range(10), start=1e9 + 5), faces=stands).run()
    (end,) = said.ends
    assert (end.first_seen, end.last_seen) == (1e9, 1e9 + 5 + 9 / 8)
    assert [m.sequence for m in said.passages if isinstance(m, FaceCrop)] == list(range(end.crops))


def test_who_comes_after_a_loss_at_another_place_is_somebody_else(recipe: CropRecipe) -> None:
    """One left while nobody looked, another came: two visitors, with ids of their own."""
    before, after = live(*range(10)), live(*range(100, 110), start=1e9 + 3 - 100 / 8)
    said = Rig(recipe, before, after, faces=lambda n: [face_at(300 if n < 50 else 80)]).run()
    first, second = said.ends
    assert first.last_seen < second.first_seen
    assert first.track_id != second.track_id


def test_who_is_waited_for_in_vain_is_told_of_while_the_camera_is_away(recipe: CropRecipe) -> None:
    """The end of a passage does not wait until the camera is back."""
    away = [SourceUnreachable("no answer")] * 30
    settings = IngestSettings(max_backoff_s=0.001, reconnect_bridge_s=0.0)
    rig = Rig(recipe, live(*range(10)), *away, faces=lambda _: [face_at(300)], settings=settings)
    ended: list[int] = []
    connect = rig._connect

    def counting(described: Camera) -> Source:
        ended.append(rig.loop.state.tracks)
        return connect(described)

    rig.loop._connect = counting
    rig.stop = threading.Event()
    rig.run()
    assert ended[0] == 0
    assert ended[-1] == 1


@pytest.mark.parametrize("hangs", ["opening", "reading"])
def test_a_connection_that_hangs_is_given_up_from_outside(recipe: CropRecipe, hangs: str) -> None:
    """Whatever the library does in its thread: the camera is `stalled`, and connected to anew; the thread is let go later."""
    release = threading.Event()

    class Hanging:
        live = True
        closed = False

        def __init__(self) -> None:
            if hangs == "opening":
                release.wait(PATIENCE_S)

        def frames(self) -> Iterator[Frame]:
            release.wait(PATIENCE_S)
            yield from ()

        def close(self) -> None:
            self.closed = True

    settings = IngestSettings(max_backoff_s=0.001, open_timeout_s=0.01, stall_timeout_s=0.1)
    rig = Rig(recipe, settings=settings)
    tries = iter([True, False])
    connect = rig._connect
    rig.loop._connect = lambda camera: Hanging() if next(tries, False) else connect(camera)
    said = rig.run()
    told = next(status for status in said.states if status.state != "connecting")
    assert told.state == "stalled"
    assert "door" in told.reason
    release.set()
    for thread in rig.loop._left_behind:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_a_camera_whose_connections_all_hang_does_not_fill_the_machine_with_them(recipe: CropRecipe) -> None:
    """A few threads, and then none more; the state says what to do."""
    release = threading.Event()
    opened = []

    def hang(_: Camera) -> Source:
        opened.append(1)
        release.wait(PATIENCE_S)
        raise SourceLost("at last")

    settings = IngestSettings(max_backoff_s=0.001, open_timeout_s=0.01)
    rig = Rig(recipe, settings=settings)
    rig.loop._connect = hang
    pauses: list[float] = []

    def wait(seconds: float, stop: threading.Event) -> None:
        pauses.append(seconds)
        if len(pauses) > 8:
            stop.set()

    rig.loop._wait = wait  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ingest.source.OPEN_GRACE_S", 0.01)
        said = rig.run()
    release.set()
    assert len(opened) == MOST_LEFT_BEHIND
    assert "restart this worker" in said.states[-1].reason


def test_a_camera_that_floods_is_a_fault(recipe: CropRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst without end is no camera: connected to anew, with its reason."""
    monkeypatch.setattr("ingest.source._GRACE_S", 0.0)

    class Flood:
        live = True

        def frames(self) -> Iterator[Frame]:
            for n in range(100_000):
                yield Frame(1e9 + n / 1000, lambda: np.zeros((96, 128, 3), np.uint8))

        def close(self) -> None:
            """Nothing."""

    rig = Rig(recipe, settings=IngestSettings(max_backoff_s=0.001, max_fps=50), faces=lambda _: ())
    floods = iter([Flood()])
    connect = rig._connect
    rig.loop._connect = lambda camera: next(floods, None) or connect(camera)
    said = rig.run()
    assert "too_fast" in [status.state for status in said.states]
    assert rig.metric(metrics.CONNECTS_FAILED, reason="too_fast") == 1


def test_a_camera_that_refuses_is_asked_less_and_less_often(
    recipe: CropRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many cameras lock an account after some attempts; one that is merely away is tried often."""
    pauses: list[float] = []
    monkeypatch.setattr(CameraLoop, "_wait", lambda _self, seconds, _stop: pauses.append(seconds))
    settings = IngestSettings(max_backoff_s=4, refused_backoff_s=60)
    Rig(recipe, *[SourceRefused("no")] * 9, settings=settings).run()
    assert pauses[8] >= 30
    pauses.clear()
    Rig(recipe, *[SourceUnreachable("away")] * 9, settings=settings).run()
    assert max(pauses) <= 4


def test_connections_are_counted(recipe: CropRecipe) -> None:
    """The first is no reconnection; a failed attempt is none either."""
    rig = Rig(recipe, live(0, 1), SourceUnreachable("no answer"), live(0, 1), live(0, 1))
    rig.run()
    assert rig.loop.state.connections == 3
    assert rig.metric(metrics.RECONNECTS) == 2
    assert rig.metric(metrics.CONNECTS_FAILED, reason="unreachable") == 1
    assert rig.metric(metrics.CONNECTS_FAILED, reason="lost") == 4  # three that broke off, and the test's end


def test_a_camera_that_is_away_for_days_is_still_tried(recipe: CropRecipe) -> None:
    """The pause doubles up to the longest and no further, however often it was."""
    away = [SourceUnreachable("no answer")] * 1100
    rig = Rig(recipe, *away, live(*range(10)), settings=IngestSettings(max_backoff_s=1e-6))
    assert len(rig.run().ends) == 1


def test_the_pause_grows_while_a_camera_is_away_and_is_short_after_a_good_connection(
    recipe: CropRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With jitter, so that a building full of cameras does not come back at once."""
    pauses: list[float] = []
    monkeypatch.setattr(CameraLoop, "_wait", lambda _self, seconds, _stop: pauses.append(seconds))
    down = [SourceUnreachable("no answer")] * 8
    Rig(recipe, *down, live(0, 1), *down[:1], settings=IngestSettings(max_backoff_s=30)).run()
    for n, pause in enumerate(pauses[:8]):
        assert 0.5 * min(30, 2**n) <= pause <= min(30, 2**n)
    assert pauses[8] <= 1  # it ran, and was lost
    assert len({round(pause / 15, 3) for pause in pauses[5:8]}) > 1


def test_a_stop_ends_the_loop_and_whoever_is_in_view(recipe: CropRecipe) -> None:
    """A worker that is shut down has seen them until then."""
    rig = Rig(recipe, live(*range(500)), faces=lambda n: [face_at(100 + 2 * n)])
    look = rig.detector.detect

    def detect(image: object) -> Sequence[FaceBox]:
        if len(rig.detector.looked) == 9:
            rig.stop.set()
        return look(image)  # type: ignore[arg-type]

    rig.detector.detect = detect  # type: ignore[method-assign]
    said = rig.run()
    assert rig.tried == 1
    assert [end.last_seen for end in said.ends] == [1e9 + 9 / 8]
    assert rig.metric(metrics.ENDED_IN_VIEW) == 1  # the next worker counts them anew


# ── how it does ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [SourceLost, SourceRefused, SourceNotFound, SourceUnreadable, SourceUnreachable])
def test_every_kind_of_loss_is_told_by_its_name_with_what_to_do(recipe: CropRecipe, kind: type[SourceLost]) -> None:
    """State and reason for the page, the reason's name for the metric."""
    rig = Rig(recipe, kind("what happened, what to do"))
    said = rig.run()
    assert (said.states[0].state, said.states[0].reason) == (kind.reason, "what happened, what to do")
    assert rig.metric(metrics.CONNECTS_FAILED, reason=kind.reason) >= 1


def test_a_camera_says_when_it_runs_and_when_it_does_not(recipe: CropRecipe) -> None:
    """With its frames and reconnections so far, and its address without the password."""
    said = Rig(recipe, live(0, 1, 2), SourceRefused("refuses"), live(0, 1)).run()
    states = [status.state for status in said.states]
    assert [state for state, after in pairwise([*states, ""]) if state != after] == [
        "running", "lost", "refused", "running", "lost",
    ]  # fmt: skip
    assert said.states[-1].frames == 5
    assert said.states[-1].reconnects == 1
    assert {status.address for status in said.states} == {"rtsp://***@10.0.0.9/entrance"}
    assert all(status.reason for status in said.states if status.state != "running")
    assert not any(PASSWORD in repr(message) for message in said.taken)


def test_a_poster_is_no_visitor_and_the_camera_says_how_to_keep_it_out(recipe: CropRecipe) -> None:
    """What never moves for a minute: advised with the camera's state for as long as it hangs there, over a loss, too."""
    minutes = [ScriptedSource(range(8 * 70), live=True, start=1e9 + 300 * n) for n in range(2)]
    settings = IngestSettings(max_backoff_s=0.001, status_interval_s=0.001, max_fps=1000)
    rig = Rig(recipe, *minutes, faces=lambda _: [face_at(320, 100)], settings=settings)
    said = rig.run()
    assert [end.visitor for end in said.ends] == [False]
    assert rig.metric(metrics.REJECTS, reason="picture") > 8 * 70
    advice = [state.advice for state in said.states]
    assert advice[0] == ""
    assert "exclude: [[[0.4" in advice[-1]
    assert len(set(advice)) == 2


def test_everything_goes_out_under_the_cameras_key(recipe: CropRecipe) -> None:
    """One partition for a camera, so that its messages keep their order."""
    said = Rig(recipe, live(*range(10))).run()
    assert {key for _, key, _ in said.taken} == {b"door"}
    assert {topic for topic, _, _ in said.taken} == {FACE_CROPS, PREDICTIONS}


def test_a_camera_is_up_while_it_runs(recipe: CropRecipe) -> None:
    """For an alert: 1 from the first frame, 0 from the loss."""
    up: list[float] = []
    rig = Rig(recipe, live(0, 1), faces=lambda _: up.append(rig.metric(metrics.CAMERA_UP)) or [])  # type: ignore[func-returns-value]
    assert rig.metric(metrics.CAMERA_UP) == 0
    rig.run()
    assert up == [1, 1]
    assert rig.metric(metrics.CAMERA_UP) == 0
    assert rig.metric(metrics.FRAMES) == rig.metric(metrics.FRAMES_DETECTED) == 2


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_is_read_once_to_its_end(recipe: CropRecipe, tmp_path: Path) -> None:
    """Then the loop is over, everybody in it has left, and the camera has ended."""
    rig = Rig(recipe, film(WALK + 4), film(10), url=tmp_path / "film.mp4")
    said = rig.run()
    assert rig.tried == 1
    assert len(said.ends) == 1
    assert said.states[-1].state == rig.loop.state.state == "ended"
    assert rig.loop.state.tracks == 1


def test_a_file_that_is_no_video_is_not_tried_again(recipe: CropRecipe, tmp_path: Path) -> None:
    """Waiting changes nothing; the state says why."""
    rig = Rig(recipe, SourceUnreadable("no video"), film(10), url=tmp_path / "film.mp4")
    rig.run()
    assert rig.tried == 1
    assert (rig.loop.state.state, rig.loop.state.reason) == ("unreadable", "no video")


def test_a_stream_is_left_where_it_ends_if_that_is_wanted(recipe: CropRecipe) -> None:
    """For --until-end; one that was never there is waited for."""
    rig = Rig(recipe, SourceUnreachable("not yet"), live(*range(10)), live(*range(10)), until_end=True)
    said = rig.run()
    assert rig.tried == 2
    assert len(said.ends) == 1


@given(film_fps=st.sampled_from([5, 8, 12, 15, 25, 30, 50, 60]), detect_fps=st.floats(1, 30))
def test_pictures_are_searched_as_often_as_the_setting_says(
    recipe: CropRecipe, film_fps: float, detect_fps: float
) -> None:
    """Evenly over the film, every picture where there are no more of them; and every frame is counted."""
    seconds = 10
    rig = Rig(
        recipe, film(round(seconds * film_fps), fps=film_fps), url="film.mp4", faces=lambda _: (), detect_fps=detect_fps
    )
    rig.run()
    looked = rig.detector.looked
    assert rig.loop.state.frames == seconds * film_fps
    assert len(looked) <= seconds * detect_fps + 2
    if film_fps <= detect_fps:
        assert looked == list(range(round(seconds * film_fps)))
    else:
        assert len(looked) >= 0.9 * seconds * detect_fps - 1
        widest = max(b - a for a, b in pairwise(looked)) / film_fps
        assert widest <= 1 / detect_fps + 1 / film_fps + 0.021


def test_a_picture_that_is_a_little_early_is_not_missed(recipe: CropRecipe) -> None:
    """At the rate of the setting, a camera whose frames come up to nine milliseconds early or late has all searched."""
    jitter = np.random.default_rng(3).integers(-9, 10, 100)
    times_ms = [int(100 * n + late) for n, late in enumerate(jitter, start=1)]
    source = ScriptedSource(times_ms, live=False, fps=1000)
    rig = Rig(recipe, source, url="film.mp4", faces=lambda _: (), detect_fps=10)
    rig.run()
    assert rig.detector.looked == times_ms


def test_a_gap_in_the_film_is_no_debt_of_looks(recipe: CropRecipe) -> None:
    """After ten seconds without a frame the cadence goes on; it does not catch up."""
    # frames at 25 fps: [0 s ── 4 s]   [14 s ── 18 s]
    numbers = [*range(100), *range(350, 450)]
    rig = Rig(recipe, ScriptedSource(numbers, live=False, fps=25), url="film.mp4", faces=lambda _: (), detect_fps=5)
    rig.run()
    assert len([n for n in rig.detector.looked if n >= 350]) <= 4 * 5 + 2


# ── a bus that says no ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_live_camera_goes_on_without_the_bus_and_delivers_when_it_is_back(recipe: CropRecipe) -> None:
    """Nobody who ended meanwhile is lost, and everything comes in order."""
    looks = 6 * 2 * WALK
    producer = FakeProducer()
    rig = Rig(recipe, live(*range(looks)), producer=producer)
    producer.refuse = lambda: len(rig.detector.looked) < looks - 10
    undisturbed = Rig(recipe, live(*range(looks))).run()
    said = rig.run()
    assert producer.refusals > 50
    assert rig.metric(metrics.DROPS, reason="bus") == 0
    assert without_connection(said.passages) == without_connection(undisturbed.passages)
    assert rig.telemetry.registry.get_sample_value(metrics.BUS_FAILURES.name) == producer.refusals


def test_a_live_camera_drops_its_oldest_crops_when_too_much_waits(
    recipe: CropRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted; the ends of all tracks come through, and the newest crops."""
    monkeypatch.setattr("ingest.outbox.LONGEST", 20)
    passages = 12
    looks = passages * 2 * WALK
    producer = FakeProducer()
    rig = Rig(recipe, live(*range(looks)), producer=producer)
    producer.refuse = lambda: len(rig.detector.looked) < looks - 1
    said = rig.run()
    assert len(said.ends) == passages
    crops = [message for message in said.passages if isinstance(message, FaceCrop)]
    dropped = rig.metric(metrics.DROPS, reason="bus")
    assert dropped > 0
    assert len(crops) + dropped == sum(end.crops for end in said.ends)
    assert {crop.track_id for crop in crops} <= {end.track_id for end in said.ends[-3:]}


def test_a_file_waits_for_the_bus_and_loses_nothing(recipe: CropRecipe, naps: list[float]) -> None:
    """What it says is the same as if the bus had always listened, and nothing of it is dropped."""
    looks = 4 * 2 * WALK
    undisturbed = Rig(recipe, film(looks), url="film.mp4").run()
    mood = iter([True] * 7 + [False] * 2 + [True] * 500 + [False, True] * 10)
    rig = Rig(recipe, film(looks), url="film.mp4", producer=FakeProducer(lambda: next(mood, False)))
    said = rig.run()
    assert said.refusals == len(naps) == 517
    assert without_connection(said.passages) == without_connection(undisturbed.passages)
    assert [status.state for status in said.states][-1] == "ended"
    assert rig.metric(metrics.DROPS, reason="bus") == 0


def test_a_file_whose_records_are_lost_on_their_way_sends_them_again(recipe: CropRecipe, naps: list[float]) -> None:
    """Sent is not arrived: what the bus did not acknowledge is repeated, under the same identity."""
    looks = 16 * 2 * WALK
    undisturbed = Rig(recipe, film(looks), url="film.mp4").run()
    losses = iter([False, True, True])
    rig = Rig(recipe, film(looks), url="film.mp4", producer=FakeProducer(lose=lambda: next(losses, False)))
    said = rig.run()
    assert next(losses, None) is None, "all of them happened"
    assert set(without_connection(said.passages)) == set(without_connection(undisturbed.passages))


@pytest.mark.parametrize("url", ["film.mp4", LIVE])
def test_a_loop_whose_bus_never_comes_back_can_still_be_stopped(
    recipe: CropRecipe, naps: list[float], url: str
) -> None:
    """It tries for some seconds more, for the sake of who is in view, and gives up."""
    rig = Rig(recipe, ScriptedSource(range(100), live=url == LIVE), url=url)

    def refuse() -> bool:
        if rig.producer.refusals > 20:
            rig.stop.set()
        return True

    rig.producer.refuse = refuse
    assert rig.run().taken == []
    assert 1 <= sum(naps) < 60


def test_who_is_in_view_at_the_stop_is_told_of_once_the_bus_takes_it(recipe: CropRecipe, naps: list[float]) -> None:
    """A bus that is busy for a second while the worker is shut down costs nobody."""
    rig = Rig(recipe, live(*range(10)), faces=lambda n: [face_at(100 + 5 * n)])
    rig.producer.refuse = lambda: len(naps) < 3
    assert len(rig.run().ends) == 1


def without_connection(said: Sequence[FaceCrop | TrackEnded]) -> list[tuple[object, ...]]:
    """Tell what was said, but for the part of the ids that is the connection's time."""
    return [
        (type(m), m.track_id & 0xFFFFF, m.first_seen, m.sequence if isinstance(m, FaceCrop) else m.crops) for m in said
    ]


# ── real films, real connections ──────────────────────────────────────────────────────────────────────────────────────


def real_loop(
    described: Camera,
    recipe: CropRecipe,
    producer: FakeProducer,
    telemetry: Telemetry,
    detector: Detector,
    full_look_every: int = 1,
) -> CameraLoop:
    """Make a loop as the fleet makes it, with quick time-outs."""
    return CameraLoop(
        described,
        settings=IngestSettings(max_backoff_s=0.2, full_look_every=full_look_every),
        recipe=recipe,
        detector=lambda _: detector,
        connect=lambda camera: AvSource(camera, open_timeout_s=5, read_timeout_s=1),
        producer=SharedProducer(producer),
        telemetry=telemetry,
    )


class Measured:
    """The real detector, with what it was given."""

    def __init__(self) -> None:
        self._detector = YunetDetector()
        self.looks: list[float] = []  # millions of pixels

    def detect(self, image: Image) -> Sequence[FaceBox]:
        """Find the faces of a picture."""
        self.looks.append(image.shape[0] * image.shape[1] / 1e6)
        return self._detector.detect(image)


@pytest.mark.parametrize("full_look_every", [1, 3])
def test_three_people_in_a_film_are_three_visitors(clip: Clip, recipe: CropRecipe, full_look_every: int) -> None:
    """With the real detector: each once, while the film shows them, with crops good enough to be counted.

    So, too, where two of three looks search only around the people who are followed.
    """
    producer, detector = FakeProducer(), Measured()
    loop = real_loop(camera(clip.path), recipe, producer, Telemetry(("ingest",)), detector, full_look_every)
    loop.run(threading.Event())
    partial = sum(pixels < max(detector.looks) / 2 for pixels in detector.looks)
    assert (partial > len(detector.looks) / 4) == (full_look_every > 1)
    assert loop.state.frames == round(clip.seconds * clip.fps)
    assert len(producer.ends) == len(clip.passages)
    film_began = producer.ends[0].first_seen - min(passage.enter_s for passage in clip.passages)
    seen = sorted((e.first_seen - film_began, e.last_seen - film_began) for e in producer.ends)
    told = sorted((passage.enter_s, passage.leave_s) for passage in clip.passages)
    for (first_s, last_s), (enter_s, leave_s) in zip(seen, told, strict=True):
        assert first_s == pytest.approx(enter_s, abs=1.0)
        assert last_s == pytest.approx(leave_s, abs=1.0)
    assert all(e.crops >= 2 for e in producer.ends)


def test_a_camera_that_hangs_up_and_one_that_freezes_are_found_again(
    rtsp_server: RtspServer, guarded: str, recipe: CropRecipe
) -> None:
    """Over real RTSP: cut off, it reconnects and goes on; frozen, it is lost in time and comes back with the thaw."""
    producer, telemetry, stop = FakeProducer(), Telemetry(("ingest",)), threading.Event()
    loop = real_loop(camera(guarded), recipe, producer, telemetry, ScriptedDetector(lambda _: ()))
    state = loop.state
    thread = threading.Thread(target=loop.run, args=(stop,), daemon=True)
    thread.start()

    def frames_again(what: str) -> None:
        before = state.frames
        wait_until(lambda: state.frames > before + 5, timeout_s=PATIENCE_S, what=what)

    try:
        frames_again("the first frames")
        rtsp_server.drop_clients("cam")
        wait_until(lambda: state.connections == 2, timeout_s=PATIENCE_S, what="the second connection")
        frames_again("frames after the loss")
        rtsp_server.freeze("cam")
        wait_until(lambda: state.state == "unreachable", timeout_s=PATIENCE_S, what="the loss of a frozen camera")
        rtsp_server.thaw("cam")
        frames_again("frames after the thaw")
    finally:
        stop.set()
        thread.join(PATIENCE_S)
    assert not thread.is_alive()
    states = [told.state for told in producer.states]
    assert [a for a, b in pairwise([*states, ""]) if a != b][:4] == ["running", "lost", "running", "unreachable"]
    assert not any(PASSWORD in repr(message) for message in producer.taken)
