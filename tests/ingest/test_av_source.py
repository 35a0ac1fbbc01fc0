"""Cameras and files by PyAV: every frame with its time, and every way to fail under its own name, without the password."""

from __future__ import annotations

import socket
import threading
import time
import traceback
import wave
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count, islice, pairwise
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import av
import numpy as np
import pytest
import structlog

from demo.rtsp_server import RtspServer
from ingest import av_source
from ingest.av_source import AvSource
from ingest.source import Frame
from pipeline.cameras import Camera
from pipeline.errors import SourceLost, SourceNotFound, SourceRefused, SourceUnreachable, SourceUnreadable
from tests.ingest.conftest import (
    FILM_FPS,
    FILM_FRAMES,
    PASSWORD,
    PATIENCE_S,
    camera,
    number_of,
    write_numbered_film,
)
from tests.servers import free_port, wait_until

PASSWORD_PLAIN = "".join(("hidden", "-", "word"))  # not to be found in a traceback's lines of this file


def opened(described: Camera, *, read_timeout_s: float = 5.0) -> AvSource:
    """Connect."""
    return AvSource(described, open_timeout_s=5.0, read_timeout_s=read_timeout_s)


def all_that_is_said(error: BaseException) -> str:
    """Everything that an error carries, causes and contexts included, shown or not."""
    said, seen, waiting = [], set[int](), [error]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        said += [repr(one), str(one), repr(one.args), repr(vars(one)), *traceback.format_exception(one)]
        waiting += [other for other in (one.__cause__, one.__context__) if other is not None]
    return "\n".join(said)


def lost(work: Callable[[], object]) -> SourceLost:
    """Do it, and give how it was lost; within a deadline, whatever hangs."""
    caught: list[BaseException] = []

    def attempt() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  looked at below
            caught.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "it hangs"
    (error,) = caught
    assert isinstance(error, SourceLost)
    return error


def read_all(frames: Iterator[Frame]) -> None:
    """Read as long as there is anything."""
    for _ in frames:
        pass


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_is_read_to_its_end_with_no_frame_missed(numbered_film: Path) -> None:
    """Every picture, in order."""
    source = opened(camera(numbered_film))
    assert not source.live
    assert [number_of(frame.image()) for frame in source.frames()] == list(range(FILM_FRAMES))


def test_the_times_of_a_files_frames_are_the_films(numbered_film: Path) -> None:
    """As far apart as the film says, and so that the film ends now."""
    earliest = time.time()
    source = opened(camera(numbered_film))
    seconds = FILM_FRAMES / FILM_FPS
    assert source.duration_s() == pytest.approx(seconds, abs=1e-3)
    times = [frame.captured_at for frame in source.frames()]
    latest = time.time()
    assert earliest - seconds - 1e-3 <= times[0] <= latest - seconds + 1e-3
    assert np.diff(times) == pytest.approx(1 / FILM_FPS, abs=1e-3)


def test_uneven_times_are_kept(tmp_path: Path) -> None:
    """A film of a camera that stuttered: gaps of a tenth, of a second."""
    gaps = [0.04, 0.1, 0.04, 1.0] * (FILM_FRAMES // 4)
    times = list(np.cumsum([0.0, *gaps[:-1]]))
    film = write_numbered_film(tmp_path / "uneven.mp4", times_s=times)
    told = [frame.captured_at for frame in opened(camera(film)).frames()]
    assert np.diff(told) == pytest.approx(np.diff(times), abs=1e-3)


def test_a_file_played_in_real_time_is_as_a_camera(numbered_film: Path) -> None:
    """No picture comes before its time, which is now and not the film's; the end is a loss, so that it is played again."""
    source = opened(camera(numbered_film).model_copy(update={"realtime": True}))
    assert source.live
    began, came, stamped = time.time(), list[float](), list[float]()

    def watch() -> None:
        for frame in source.frames():
            came.append(time.time())
            stamped.append(frame.captured_at)

    assert "ended its stream" in str(lost(watch))
    assert all(now >= at for now, at in zip(came, stamped, strict=True))
    assert [at - stamped[0] for at in stamped] == pytest.approx([n / FILM_FPS for n in range(FILM_FRAMES)], abs=2e-3)
    assert stamped[0] >= began


def test_a_film_whose_clock_starts_late_starts_at_its_first_frame(tmp_path: Path) -> None:
    """A recording cut out of a longer one: its first time stamp is no gap."""
    film = write_numbered_film(tmp_path / "late.ts", first_s=500.0)
    before = time.time()
    first = next(opened(camera(film)).frames())
    assert abs(first.captured_at - before) < 60


def test_a_file_may_be_given_as_an_address(numbered_film: Path) -> None:
    """As cameras.yaml allows."""
    assert sum(1 for _ in opened(camera(f"file://{numbered_film}")).frames()) == FILM_FRAMES


def test_pixels_are_blue_green_red(tmp_path: Path) -> None:
    """Of the film's size; a red film is red in the last channel."""
    path = tmp_path / "red.mp4"
    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=FILM_FPS)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        red = np.full((96, 128, 3), (255, 0, 0), np.uint8)
        film.mux(stream.encode(av.VideoFrame.from_ndarray(red, format="rgb24")))
        film.mux(stream.encode())
    image = next(opened(camera(path)).frames()).image()
    assert image.shape == (96, 128, 3)
    assert image.dtype == np.uint8
    assert image[48, 64].tolist() == pytest.approx([0, 0, 255], abs=12)


def test_a_frame_may_be_looked_at_later(numbered_film: Path) -> None:
    """Pixels are converted when asked for: nothing has overwritten them by then, nor when the source is closed."""
    source = opened(camera(numbered_film))
    frames = list(source.frames())
    source.close()
    assert [number_of(frame.image()) for frame in reversed(frames)] == list(reversed(range(FILM_FRAMES)))


def test_text_is_not_video(tmp_path: Path) -> None:
    """Whatever its name says."""
    path = tmp_path / "film.mp4"
    path.write_text("not a film\n" * 100)
    error = lost(lambda: opened(camera(path)))
    assert type(error) is SourceUnreadable
    assert str(path) in str(error)


def test_a_file_with_sound_only_is_not_video(tmp_path: Path) -> None:
    """It can be decoded, and shows nothing."""
    path = tmp_path / "sound.wav"
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    assert type(lost(lambda: opened(camera(path)))) is SourceUnreadable


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    """Nothing there, and something that is no file."""
    assert type(lost(lambda: opened(camera(tmp_path / "none.mp4")))) is SourceNotFound
    assert type(lost(lambda: opened(camera(tmp_path)))) is SourceUnreadable


def test_a_film_cut_short_gives_what_there_is(tmp_path: Path) -> None:
    """A recording that lost its end is read as far as it goes, then ends or is called unreadable."""
    whole = write_numbered_film(tmp_path / "whole.ts").read_bytes()
    (tmp_path / "cut.ts").write_bytes(whole[: len(whole) * 6 // 10])
    seen: list[int] = []
    with suppress(SourceUnreadable):
        seen.extend(number_of(frame.image()) for frame in opened(camera(tmp_path / "cut.ts")).frames())
    assert seen[:10] == list(range(10))


# ── cameras ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_camera_gives_its_frames_as_they_come(guarded: str) -> None:
    """In order, a twenty-fifth of a second apart by the camera's clock, and stamped with the present."""
    source = opened(camera(guarded))
    assert source.live
    frames, ages = [], []
    for frame in islice(source.frames(), 30):
        frames.append(frame)
        ages.append(time.time() - frame.captured_at)
    source.close()
    times = [frame.captured_at for frame in frames]
    assert all(a < b for a, b in pairwise(times))
    assert np.median(np.diff(times)) == pytest.approx(1 / FILM_FPS, abs=5e-3)
    assert abs(np.median(ages)) < 5  # a machine that is busy sees them late, not by a minute
    numbers = [number_of(frame.image()) for frame in frames]
    assert all((b - a) % FILM_FRAMES == 1 for a, b in pairwise(numbers))


def test_a_camera_that_hangs_is_lost_in_time(rtsp_server: RtspServer, guarded: str) -> None:
    """The connection stays open and nothing comes: the read time-out holds."""
    frames = opened(camera(guarded), read_timeout_s=0.5).frames()
    next(frames)
    rtsp_server.freeze("cam")
    error = lost(lambda: read_all(frames))
    assert "timed out" in str(error)
    assert PASSWORD not in all_that_is_said(error)


def test_a_camera_that_hangs_up_is_lost(rtsp_server: RtspServer, guarded: str) -> None:
    """No end of a film, but a loss, whatever FFmpeg calls it."""
    frames = opened(camera(guarded)).frames()
    next(frames)
    rtsp_server.drop_clients("cam")
    error = lost(lambda: read_all(frames))
    assert "camera door" in str(error)


def test_a_camera_whose_clock_runs_away_is_connected_to_anew(guarded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By more than half a minute within one connection: its times would be no times."""
    ours = count(1_700_000_000, 20)  # twenty seconds of ours pass between two frames
    source = opened(camera(guarded))
    monkeypatch.setattr("ingest.av_source.time", SimpleNamespace(time=lambda: float(next(ours))))
    error = lost(lambda: list(islice(source.frames(), 10)))
    source.close()
    assert "clock" in str(error)


def test_closing_ends_a_reading_thread(guarded: str) -> None:
    """From another thread, without an error there; twice is once."""
    source = opened(camera(guarded), read_timeout_s=0.5)
    arrived, ended = threading.Event(), threading.Event()

    def read() -> None:
        for _ in source.frames():
            arrived.set()
        ended.set()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    assert arrived.wait(PATIENCE_S)
    source.close()
    source.close()
    thread.join(PATIENCE_S)
    assert ended.is_set()


class SlowToClose:
    """A container whose closing takes until it may; all else is the real one's."""

    def __init__(self, container: object) -> None:
        self._container = container
        self.begun, self.may = threading.Event(), threading.Event()
        self.closings = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._container, name)

    def close(self) -> None:
        """Note that it has begun, and wait."""
        self.closings += 1
        self.begun.set()
        assert self.may.wait(PATIENCE_S)
        self._container.close()  # type: ignore[attr-defined]


def test_a_connection_is_freed_once_whoever_else_lets_go_of_it_meanwhile(numbered_film: Path) -> None:
    """Saying good-bye to a camera takes its time; FFmpeg crashes where two threads do it, or one while another reads."""
    source = opened(Camera.model_validate({"id": "a", "url": str(numbered_film)}))
    slow = source._container = SlowToClose(source._container)  # type: ignore[assignment]
    reader = threading.Thread(target=read_all, args=(source.frames(),), daemon=True)
    reader.start()
    assert slow.begun.wait(PATIENCE_S)
    source.close()  # neither waits nor frees it again
    slow.may.set()
    reader.join(PATIENCE_S)
    source.close()
    assert not reader.is_alive()
    assert slow.closings == 1


def test_what_was_closed_before_it_was_read_is_never_read(numbered_film: Path) -> None:
    """Who reads may come to it only after somebody else has let go."""
    source = opened(Camera.model_validate({"id": "a", "url": str(numbered_film)}))
    frames = source.frames()
    source.close()
    assert list(frames) == []


# ── how it fails, and what is not said ────────────────────────────────────────────────────────────────────────────────


def test_wrong_credentials_are_refused(rtsp_server: RtspServer, guarded: str) -> None:
    """A wrong password, and none."""
    wrong = guarded.replace(quote(PASSWORD, safe=""), PASSWORD_PLAIN)
    error = lost(lambda: opened(camera(wrong)))
    assert type(error) is SourceRefused
    assert PASSWORD_PLAIN not in all_that_is_said(error)
    assert type(lost(lambda: opened(camera(rtsp_server.url("cam"))))) is SourceRefused


def test_an_unknown_path_is_not_found(guarded: str) -> None:
    """The host answers, the stream is not there."""
    error = lost(lambda: opened(camera(guarded + "/other")))
    assert type(error) is SourceNotFound


def test_a_port_where_nobody_listens_is_unreachable() -> None:
    """The host says no."""
    error = lost(lambda: opened(camera(f"rtsp://viewer:{PASSWORD_PLAIN}@127.0.0.1:{free_port()}/cam")))
    assert type(error) is SourceUnreachable
    assert PASSWORD_PLAIN not in all_that_is_said(error)


def test_a_host_that_there_is_not_is_unreachable() -> None:
    """Its name means nothing (RFC 2606 keeps it so)."""
    error = lost(lambda: opened(camera(f"rtsp://viewer:{PASSWORD_PLAIN}@camera.invalid/cam")))
    assert type(error) is SourceUnreachable
    assert PASSWORD_PLAIN not in all_that_is_said(error)


def test_a_server_that_accepts_and_says_nothing_is_unreachable_in_time() -> None:
    """The open time-out holds."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"rtsp://viewer:{PASSWORD_PLAIN}@127.0.0.1:{silent.getsockname()[1]}/cam"
        error = lost(lambda: AvSource(camera(address), open_timeout_s=0.5, read_timeout_s=0.5))
    assert type(error) is SourceUnreachable
    assert PASSWORD_PLAIN not in all_that_is_said(error)


@pytest.mark.parametrize("trouble", ["wrong password", "unknown path", "frozen", "dropped"])
def test_no_error_has_the_password_in_it(rtsp_server: RtspServer, guarded: str, trouble: str) -> None:
    """Not in its text, its repr, its arguments, nor in any error behind it: FFmpeg's own carry the whole address."""

    def run() -> None:
        if trouble == "wrong password":
            opened(camera(guarded.replace("viewer:", "viewer:x")))
        elif trouble == "unknown path":
            opened(camera(guarded + "/other"))
        else:
            frames = opened(camera(guarded), read_timeout_s=0.5).frames()
            next(frames)
            (rtsp_server.freeze if trouble == "frozen" else rtsp_server.drop_clients)("cam")
            read_all(frames)

    said = all_that_is_said(lost(run))
    assert "camera door at rtsp://***@127.0.0.1" in said
    assert PASSWORD not in said
    assert quote(PASSWORD, safe="") not in said


def test_no_descriptor_is_left_open(guarded: str) -> None:
    """A camera that is lost and found for months keeps no sockets of the past."""

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    for _ in range(4):
        source = opened(camera(guarded))
        next(source.frames())
        source.close()
        lost(lambda: opened(camera(guarded + "/other")))
    # The camera lives in this process too, and closes its own end of a connection a moment later.
    wait_until(lambda: descriptors() <= before, timeout_s=PATIENCE_S, what="as few descriptors as before")


# ── how it is decoded ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("hwaccel", ["cuda", "qsv", "none-of-that-name"])
def test_hardware_that_is_not_there_is_no_reason_not_to_decode(numbered_film: Path, hwaccel: str) -> None:
    """Software does it, with the same pictures."""
    av_source._has_hardware.cache_clear()
    with structlog.testing.capture_logs() as logs:
        source = AvSource(camera(numbered_film, hwaccel=hwaccel), open_timeout_s=3, read_timeout_s=3)
        again = AvSource(camera(numbered_film, hwaccel=hwaccel), open_timeout_s=3, read_timeout_s=3)
    assert [number_of(frame.image()) for frame in source.frames()] == list(range(FILM_FRAMES))
    again.close()
    assert source.hardware == ""
    (said,) = logs  # once, not at every connection
    assert (said["event"], said["hwaccel"], said["instead"]) == ("hardware_decoder_missing", hwaccel, "software")
    assert said["reason"]


def test_key_frames_alone_are_decoded_where_that_is_wanted(numbered_film: Path) -> None:
    """One in five of this film, each as good as ever, with its own time."""
    source = AvSource(camera(numbered_film, decode="keyframes"), open_timeout_s=3, read_timeout_s=3)
    frames = list(source.frames())
    assert [number_of(frame.image()) for frame in frames] == list(range(0, FILM_FRAMES, 5))
    assert all(frame.key for frame in frames)
    assert frames[1].captured_at - frames[0].captured_at == pytest.approx(0.2, abs=0.001)


def test_brightness_is_to_be_had_without_a_conversion(numbered_film: Path) -> None:
    """The plane itself, of the picture's size, saying the same as the picture."""
    source = AvSource(camera(numbered_film), open_timeout_s=3, read_timeout_s=3)
    for frame in source.frames():
        luma = frame.luma()
        assert luma is not None
        assert luma.shape == (96, 128)
        assert abs(float(luma.mean()) - 16 - float(frame.image().mean()) * 219 / 255) < 3
        assert not frame.corrupt
        assert frame.timed
