"""Cameras, streams and files by PyAV (FFmpeg): typed errors, real timestamps, time-outs that hold.

RTSP goes over TCP: over UDP a lost packet tears the picture. The stream's clock is anchored to UTC once per connection, at its
first frame; a clock that then leaves ours by half a minute is a fault, and the connection is made anew.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from functools import cache, partial
from typing import Final

import av
import av.error
import numpy as np
import structlog
from av.codec.hwaccel import HWAccel, hwdevices_available
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from ingest.cadence import CatchUp
from ingest.detector import Image
from ingest.reach import Reach
from ingest.source import Frame
from pipeline.cameras import Camera
from pipeline.errors import SourceLost, SourceNotFound, SourceRefused, SourceUnreachable, SourceUnreadable

log = structlog.get_logger()

CLOCK_TOLERANCE_S: Final = 30.0
# What FFmpeg may open for a scheme: a stream must not have it read a file, nor a film have it go out.
_PROTOCOLS: Final = {
    "rtsp": "rtsp,rtp,udp,tcp",
    "rtsps": "rtsps,rtsp,rtp,udp,tcp,tls",
    "http": "http,https,httpproxy,tcp,tls",
    "https": "http,https,httpproxy,tcp,tls",
    "file": "file",
}
_STANDS_AFTER: Final = 5  # pictures of one and the same time: then the arrival tells
_PLANAR: Final = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "nv12", "gray")


def _describe(error: Exception, camera: Camera, *, late: bool = False) -> SourceLost:
    """Turn FFmpeg's word for it into ours: which camera, what happened, what to do. FFmpeg's text has the password in it.

    Where our time-out has cut FFmpeg short (*late*), its word for it may be any: an answer that never came is invalid data.
    """
    where = f"camera {camera.id} at {camera.address}"
    if isinstance(error, (av.error.HTTPUnauthorizedError, av.error.HTTPForbiddenError)):
        return SourceRefused(f"{where} refuses the user name or password; correct them in the camera's url")
    if isinstance(error, (av.error.HTTPNotFoundError, FileNotFoundError)):
        return SourceNotFound(
            f"{where} is not there: the host answers, the path does not exist; correct the end of its url"
        )
    if late:
        return SourceUnreachable(f"{where} does not answer (timed out); check address, port, cable and firewall")
    if isinstance(error, (PermissionError, IsADirectoryError)):
        return SourceUnreadable(f"{where} cannot be read ({type(error).__name__}); check the file and its rights")
    if isinstance(error, (av.error.InvalidDataError, av.error.DecoderNotFoundError, av.error.DemuxerNotFoundError)):
        return SourceUnreadable(
            f"{where} sends nothing that can be decoded as video; check that it is a video stream or file"
        )
    if isinstance(error, (ConnectionRefusedError, TimeoutError, av.error.ExitError)):
        return SourceUnreachable(f"{where} does not answer ({_word(error)}); check address, port, cable and firewall")
    if isinstance(error, av.error.OSError):
        return SourceUnreachable(f"{where} cannot be reached ({_word(error)}); check the host's name and the network")
    return SourceLost(f"{where} broke off ({_word(error)}); it will be tried again")


@cache
def _has_hardware(name: str) -> bool:
    """Tell whether this FFmpeg and this machine can decode by hardware of that name; where not, it is said once."""
    try:
        HWAccel(device_type=name, allow_software_fallback=True).create(av.Codec("h264", "r"))
    except (av.error.FFmpegError, OSError, ValueError, RuntimeError) as error:
        log.warning(
            "hardware_decoder_missing", hwaccel=name, reason=f"{type(error).__name__}: {error}", instead="software",
            known=sorted(hwdevices_available()),
        )  # fmt: skip
        return False
    return True


def _hardware(name: str) -> HWAccel | None:
    """Give the hardware decoder of that name, or None for software, which goes on, too, where one stream is beyond it."""
    return HWAccel(device_type=name, allow_software_fallback=True) if name and _has_hardware(name) else None


def _word(error: Exception) -> str:
    if isinstance(error, av.error.ExitError):  # what FFmpeg calls our time-out
        return "timed out"
    text = getattr(error, "strerror", None)
    return str(text).lower() if text else type(error).__name__


def _open(
    camera: Camera, address: str, options: dict[str, str], timeout: tuple[float, float] | None, hwaccel: str
) -> InputContainer:
    started = time.monotonic()
    try:
        return av.open(address, options=options, timeout=timeout, hwaccel=_hardware(hwaccel))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        late = timeout is not None and time.monotonic() - started >= timeout[0]
        lost = _describe(error, camera, late=late)
    raise lost  # out here FFmpeg's error, whose text has the password, is not even its context


class AvSource:
    """One connection to a camera or one reading of a file."""

    def __init__(
        self,
        camera: Camera,
        *,
        open_timeout_s: float,
        read_timeout_s: float,
        hwaccel: str = "",
        reach: Reach | None = None,
    ) -> None:
        """Connect, where *reach* allows it. Raises SourceLost, or the kind of it that says why."""
        self.live = camera.live
        self._camera = camera
        self._paced = camera.live and camera.path is not None
        self._lock = threading.Lock()  # FFmpeg's own closing is not safe beside itself, nor beside reading
        self._closed = False  # nobody wants any more
        self._reading = False
        self._released = False
        self._catch_up = CatchUp()
        address = (reach or Reach()).address(camera)
        scheme = "file" if camera.path is not None else address.split("://", 1)[0].lower()
        options = {
            **camera.options,
            "protocol_whitelist": _PROTOCOLS[scheme],
        }
        if self.live and reach is not None and reach.networks:
            options["max_redirects"] = "0"  # they would lead where nobody has looked
        if address.startswith("rtsp"):
            options = {"rtsp_transport": "tcp", "fflags": "nobuffer", **options}
        elif camera.path is None:  # motion JPEG carries no clock of its own
            options = {"use_wallclock_as_timestamps": "1", **options}
        timeout = (open_timeout_s, read_timeout_s) if self.live else None
        wanted = camera.hwaccel or hwaccel
        self._container = _open(camera, address, options, timeout, wanted)
        self.hardware = wanted if _hardware(wanted) is not None else ""
        if not self._container.streams.video:
            self.close()
            raise SourceUnreadable(f"camera {camera.id} at {camera.address} has no video; name a stream that has")
        self.stream: VideoStream = self._container.streams.video[0]
        # Frame threads would hold back as many frames as there are threads: latency for a camera, speed for a file.
        self.stream.thread_type = "SLICE" if self.live else "AUTO"
        self._only_keys = camera.decode == "keyframes"
        if self._only_keys:
            self.stream.codec_context.skip_frame = "NONKEY"

    def duration_s(self) -> float:
        """Give the length of a file in seconds, 0 where it does not say."""
        if self._container.duration is not None:
            return max(0.0, self._container.duration / av.time_base)
        return 0.0

    def frames(self) -> Iterator[Frame]:
        """Give every frame in order; ends with a file. Raises SourceLost where the connection breaks."""
        if not self._begin():
            return
        first_at: float | None = None
        lost: SourceLost | None = None
        clock = _StreamClock()
        try:
            anchor = time.time() if self.live else time.time() - self.duration_s()
            for picture in self._container.decode(self.stream):
                now = time.time()
                if self._closed:
                    return
                at = clock.read(picture)
                if first_at is None and at is not None:
                    first_at, anchor = at, now if self.live else anchor
                captured_at = now if at is None or first_at is None else anchor + at - first_at
                if self.live and abs(captured_at - now) > CLOCK_TOLERANCE_S:
                    raise SourceLost(
                        f"camera {self._camera.id}: its clock left ours by {captured_at - now:+.0f} s within one connection; "
                        "reconnecting"
                    )
                if self._paced:
                    now = self._wait_until(captured_at)
                if self.live and not self._only_keys:
                    self._decode_what_time_allows(now - captured_at, now, at_key=bool(picture.key_frame))
                yield Frame(
                    captured_at,
                    _Pixels(picture),
                    partial(_luma, picture),
                    corrupt=picture.is_corrupt,
                    key=bool(picture.key_frame),
                    timed=at is not None,
                )
        except (av.error.FFmpegError, OSError, ValueError) as error:
            lost = None if self._closed else _describe(error, self._camera)
        finally:
            self._reading = False
            self._free()
        if lost is not None:
            raise lost  # out here FFmpeg's error, whose text has the password, is not even its context
        if self.live and not self._closed:
            raise SourceLost(
                f"camera {self._camera.id} at {self._camera.address} ended its stream; it will be tried again"
            )

    def _wait_until(self, at: float) -> float:
        """Wait until a file's picture is due, as a camera does with its own; gives the time then."""
        while (left := at - (now := time.time())) > 0 and not self._closed:
            time.sleep(min(left, 0.1))
        return now

    def _decode_what_time_allows(self, lag_s: float, now: float, *, at_key: bool) -> None:
        if not self._catch_up.feel(lag_s, now, at_key=at_key):
            return
        self.stream.codec_context.skip_frame = "NONKEY" if self._catch_up.keys_only else "DEFAULT"
        if self._catch_up.keys_only:
            behind_s = round(self._catch_up.late_s, 1)
            log.warning("camera_behind", camera=self._camera.id, behind_s=behind_s, decoding="key frames only")

    def close(self) -> None:
        """Let go of the connection; ends `frames`. Never raises.

        FFmpeg must not be freed under a thread that reads: where one does, it lets go itself, at its next frame or time-out.
        """
        self._closed = True
        self._free()

    def _begin(self) -> bool:
        """Begin to read, where nobody has let go; nothing is freed from here on."""
        with self._lock:
            self._reading = not self._closed
            return self._reading

    def _free(self) -> None:
        """Free what FFmpeg holds, once and in one thread only, where nobody reads."""
        with self._lock:
            if self._reading or self._released:
                return
            self._released = True
        with contextlib.suppress(Exception):
            self._container.close()


def _luma(picture: VideoFrame) -> NDArray[np.uint8] | None:
    """Give the brightness plane as it is, where the picture has one of eight bits: nothing is converted or copied."""
    if picture.format.name not in _PLANAR:
        return None
    plane = picture.planes[0]
    return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: picture.height, : picture.width]


class _StreamClock:
    """A stream's own times, for as long as they are any: some servers send one and the same for ever."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._stood = 0

    def read(self, picture: VideoFrame) -> float | None:
        """Give the time of *picture* in seconds, None where it has none that can be relied on."""
        if self._stood >= _STANDS_AFTER or picture.pts is None or picture.time_base is None:
            return None
        at = float(picture.pts * picture.time_base)
        self._stood = self._stood + 1 if at == self._last else 0
        self._last = at
        return at


class _Pixels:
    """A picture that is converted when asked for."""

    __slots__ = ("_picture",)

    def __init__(self, picture: VideoFrame) -> None:
        self._picture = picture

    def __call__(self) -> Image:
        """Give (height, width, 3) uint8, BGR."""
        return np.asarray(self._picture.to_ndarray(format="bgr24"), np.uint8)
