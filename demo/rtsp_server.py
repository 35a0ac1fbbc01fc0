"""Cameras without hardware: a small RTSP 1.0 server that plays H.264 films in an endless loop, in real time.

Every path is one camera with one timeline that runs on whether anybody watches or not: whoever joins gets the stream
from the next key frame on, everybody sees the same packets, and time stamps go on across loops. It is RTP over the RTSP
connection (interleaved TCP); a client that wants UDP is told 461.

Standards: RTSP RFC 2326, RTP and RTCP RFC 3550, H.264 payload RFC 6184 (single NAL units and FU-A), SDP RFC 4566,
Digest and Basic authentication RFC 2617. Left out on purpose: UDP, several tracks, recording, TLS.

The server runs an event loop in a thread of its own, so that synchronous code can use it:

    with RtspServer() as server:
        server.add("entrance", Path("entrance.mp4"), username="viewer", password="secret")
        av.open(server.url("entrance", with_credentials=True), options={"rtsp_transport": "tcp"})
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import re
import secrets
import socket
import struct
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self, TypeVar
from urllib.parse import quote, unquote, urlsplit

import av
import av.error
import structlog
from av.bitstream import BitStreamFilterContext

from pipeline.errors import ConfigError

Auth = Literal["digest", "digest-without-qop", "basic", "any"]
Start = Literal["now", "on_play"]

_CLOCK_HZ: Final = 90_000  # RTP's clock for video
_PAYLOAD_TYPE: Final = 96
_PAYLOAD_BYTES: Final = 1400  # as if it had to fit into a network's frame, like a camera
_NTP_EPOCH_S: Final = 2_208_988_800  # 1900 to 1970
_REPORT_EVERY_S: Final = 5.0
_BEHIND_S: Final = 2.0  # a machine that slept goes on with now, and does not send what it missed
_HEADER_BYTES: Final = 8192
_BODY_BYTES: Final = 65_536
_REALM: Final = "demo cameras"
_METHODS: Final = ("OPTIONS", "DESCRIBE", "SETUP", "PLAY", "PAUSE", "GET_PARAMETER", "TEARDOWN")
_OTHER_METHODS: Final = ("ANNOUNCE", "RECORD", "REDIRECT", "SET_PARAMETER")
_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    454: "Session Not Found",
    455: "Method Not Valid in This State",
    461: "Unsupported Transport",
    501: "Not Implemented",
    505: "RTSP Version not supported",
    551: "Option not supported",
}

_log = structlog.get_logger("demo.rtsp_server")

T = TypeVar("T")


@dataclass(frozen=True)
class Session:
    """A part of the film that was sent to one client without a gap.

    Seconds on the path's continuous timeline, which does not start again with the loop; `stop_s` is None as yet.
    """

    start_s: float
    stop_s: float | None


# ── the film as packets ───────────────────────────────────────────────────────────────────────────────────────────────


class _Frame(NamedTuple):
    """One picture, ready to be sent."""

    start_s: float  # from the film's start
    payloads: tuple[bytes, ...]  # of its RTP packets
    key: bool


@dataclass(frozen=True)
class _Film:
    frames: tuple[_Frame, ...]
    seconds: float
    sps: bytes
    pps: bytes
    keys: tuple[int, ...]  # numbers of the key frames
    packets_before: tuple[int, ...]  # per frame, and at last of the whole film
    bytes_before: tuple[int, ...]

    def starts_at(self, n: int) -> float:
        """When frame *n* starts on the continuous timeline, in seconds; n counts on across loops."""
        loop, frame = divmod(n, len(self.frames))
        return loop * self.seconds + self.frames[frame].start_s

    def key_frame_from(self, n: int) -> int:
        """Find the first key frame that is not before frame *n*."""
        loop, frame = divmod(n, len(self.frames))
        place = bisect_left(self.keys, frame)
        if place == len(self.keys):
            loop, place = loop + 1, 0
        return loop * len(self.frames) + self.keys[place]

    def sent_before(self, n: int) -> tuple[int, int]:
        """How many packets and payload bytes there are on the timeline before frame *n*."""
        loop, frame = divmod(n, len(self.frames))
        return (
            loop * self.packets_before[-1] + self.packets_before[frame],
            loop * self.bytes_before[-1] + self.bytes_before[frame],
        )


def split_annex_b(stream: bytes) -> list[bytes]:
    """Split an H.264 byte stream at its start codes into NAL units (ITU-T H.264, annex B)."""
    return [unit.rstrip(b"\0") for unit in stream.split(b"\0\0\1")[1:]]


def packetise(unit: bytes, most_bytes: int = _PAYLOAD_BYTES) -> list[bytes]:
    """Put one NAL unit into RTP payloads: as it is where it fits, else in FU-A fragments (RFC 6184, 5.6 and 5.8)."""
    if len(unit) <= most_bytes:
        return [unit]
    indicator, kind, room = (unit[0] & 0xE0) | 28, unit[0] & 0x1F, most_bytes - 2
    parts = [unit[at : at + room] for at in range(1, len(unit), room)]
    last = len(parts) - 1
    return [bytes((indicator, (n == 0) << 7 | (n == last) << 6 | kind)) + part for n, part in enumerate(parts)]


def _load(path: Path) -> _Film:
    """Read an H.264 film. Raises ConfigError where it is none, or has B-frames, which a camera does not send."""
    frames: list[_Frame] = []
    sps = pps = b""
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            if stream.codec_context.name != "h264":
                raise ConfigError(f"{path}: {stream.codec_context.name}; only H.264 can be served")
            base, first = stream.time_base, None
            length = 1 / float(stream.average_rate or 25)
            to_annex_b = BitStreamFilterContext("h264_mp4toannexb", stream)
            for packet in container.demux(stream):
                for part in to_annex_b.filter(packet):
                    if not part.size:
                        continue
                    units = [unit for unit in split_annex_b(bytes(part)) if unit]
                    sps = next((unit for unit in units if unit[0] & 0x1F == 7), sps)
                    pps = next((unit for unit in units if unit[0] & 0x1F == 8), pps)
                    if part.pts is not None and part.dts is not None and part.pts != part.dts:
                        raise ConfigError(f"{path}: has B-frames; encode it without (bf=0)")
                    stamp = float((part.pts or 0) * base) if base and part.pts is not None else len(frames) * length
                    first = stamp if first is None else first
                    payloads = tuple(
                        piece for unit in units if unit[0] & 0x1F not in {9, 12} for piece in packetise(unit)
                    )
                    frames.append(_Frame(stamp - first, payloads, bool(part.is_keyframe)))
    except (av.error.FFmpegError, OSError, IndexError) as error:
        raise ConfigError(f"{path}: not a film that can be read ({error})") from error
    if not frames or not frames[0].key or not sps or not pps:
        raise ConfigError(f"{path}: holds no H.264 pictures that start with a key frame")
    packets, volume = [0], [0]
    for frame in frames:
        packets.append(packets[-1] + len(frame.payloads))
        volume.append(volume[-1] + sum(map(len, frame.payloads)))
    return _Film(
        frames=tuple(frames),
        seconds=frames[-1].start_s + length,
        sps=sps,
        pps=pps,
        keys=tuple(n for n, frame in enumerate(frames) if frame.key),
        packets_before=tuple(packets),
        bytes_before=tuple(volume),
    )


# ── a camera ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Viewer:
    """A client that plays: where it joined, and what it was sent."""

    connection: _Connection
    channel: int
    joins_at: int  # number of the frame, a key frame
    next_report_at: float = 0.0
    start_s: float | None = None
    stop_s: float | None = None

    @property
    def session(self) -> Session | None:
        return None if self.start_s is None else Session(self.start_s, None)


@dataclass
class _Camera:
    """One path: a film, its timeline and who watches. Lives in the event loop's thread only."""

    name: str
    film: _Film
    username: str
    password: str = field(repr=False)
    auth: Auth
    loop: bool
    speed: float = 1.0
    origin: float | None = None  # time.monotonic() at the timeline's zero; None until it starts
    next_frame: int = 0
    frozen: bool = False
    ended: bool = False
    viewers: list[_Viewer] = field(default_factory=list)
    past: list[Session] = field(default_factory=list)
    player: asyncio.Task[None] | None = None
    ssrc: int = field(default_factory=lambda: secrets.randbits(32))
    first_sequence: int = field(default_factory=lambda: secrets.randbits(16))
    first_stamp: int = field(default_factory=lambda: secrets.randbits(32))

    def position_s(self) -> float:
        return 0.0 if self.origin is None else (time.monotonic() - self.origin) * self.speed

    def stamp(self, n: int) -> int:
        """RTP time stamp of frame *n*."""
        return (self.first_stamp + round(self.film.starts_at(n) * _CLOCK_HZ)) & 0xFFFFFFFF

    def sequence(self, n: int) -> int:
        """RTP sequence number of the first packet of frame *n*."""
        return (self.first_sequence + self.film.sent_before(n)[0]) & 0xFFFF

    def rtp(self, n: int, channel: int) -> bytes:
        """Frame *n* as interleaved RTP packets; the marker bit ends the picture."""
        frame, sequence, stamp = self.film.frames[n % len(self.film.frames)], self.sequence(n), self.stamp(n)
        last = len(frame.payloads) - 1
        return b"".join(
            struct.pack(">cBH", b"$", channel, 12 + len(payload))
            + struct.pack(">BBHII", 0x80, (k == last) << 7 | _PAYLOAD_TYPE, (sequence + k) & 0xFFFF, stamp, self.ssrc)
            + payload
            for k, payload in enumerate(frame.payloads)
        )

    def report(self, viewer: _Viewer, n: int, *, bye: bool = False) -> bytes:
        """RTCP: the UTC time of frame *n*, who sends, and with *bye* that this was all (RFC 3550, 6.4 and 6.6)."""
        assert self.origin is not None
        utc = time.time() - time.monotonic() + self.origin + self.film.starts_at(n) + _NTP_EPOCH_S
        packets, volume = (b - a for a, b in zip(*map(self.film.sent_before, (viewer.joins_at, n)), strict=True))
        sender = struct.pack(
            ">BBHIIIIII", 0x80, 200, 6, self.ssrc, int(utc) & 0xFFFFFFFF, int(utc % 1 * 2**32), self.stamp(n),
            packets & 0xFFFFFFFF, volume & 0xFFFFFFFF,
        )  # fmt: skip
        items = b"\x01" + bytes((len(self.name.encode()[:255]),)) + self.name.encode()[:255]
        items += b"\0" * (4 - len(items) % 4)
        compound = sender + struct.pack(">BBHI", 0x81, 202, 1 + len(items) // 4, self.ssrc) + items
        if bye:
            compound += struct.pack(">BBHI", 0x81, 203, 1, self.ssrc)
        return struct.pack(">cBH", b"$", viewer.channel + 1, len(compound)) + compound

    def sdp(self, host: str) -> str:
        """Describe the stream (RFC 4566; the H.264 parameters RFC 6184, 8.2)."""
        sets = ",".join(base64.b64encode(unit).decode() for unit in (self.film.sps, self.film.pps))
        profile = self.film.sps[1:4].hex().upper()
        lines = (
            "v=0",
            f"o=- {self.ssrc} 1 IN IP4 {host}",
            f"s={self.name}",
            "c=IN IP4 0.0.0.0",
            "t=0 0",
            "a=control:*",
            "a=range:npt=now-",
            f"m=video 0 RTP/AVP {_PAYLOAD_TYPE}",
            f"a=rtpmap:{_PAYLOAD_TYPE} H264/{_CLOCK_HZ}",
            f"a=fmtp:{_PAYLOAD_TYPE} packetization-mode=1;profile-level-id={profile};sprop-parameter-sets={sets}",
            "a=control:trackID=0",
        )
        return "".join(f"{line}\r\n" for line in lines)

    # ── playing ──

    def start(self) -> None:
        """Let the timeline begin, or go on with it after the server was stopped."""
        if self.origin is None:
            self.origin = time.monotonic()
        if self.player is None and not self.ended:
            self.player = asyncio.create_task(self._play(), name=f"camera {self.name}")

    async def _play(self) -> None:
        while self.loop or self.next_frame < len(self.film.frames):
            late = self.position_s() - self.film.starts_at(self.next_frame)
            if late < 0:
                await asyncio.sleep(-late / self.speed)
            elif late > _BEHIND_S:
                self._skip_to_now()
            else:
                self._send(self.next_frame)
                self.next_frame += 1
        await asyncio.sleep(max(0.0, self.film.seconds - self.position_s()))  # the last picture stays its time
        self.ended = True
        for viewer in tuple(self.viewers):
            viewer.connection.write(self.report(viewer, len(self.film.frames), bye=True))
            viewer.connection.hang_up()

    def _skip_to_now(self) -> None:
        _log.warning("camera fell behind", camera=self.name, behind_s=round(self.position_s(), 1))
        loop, rest = divmod(self.position_s(), self.film.seconds)
        frame = bisect_left(self.film.frames, rest, key=lambda frame: frame.start_s)
        self.next_frame = int(loop) * len(self.film.frames) + frame
        self._interrupt()

    def _send(self, n: int) -> None:
        if self.frozen:
            return
        ready: dict[int, bytes] = {}
        for viewer in tuple(self.viewers):
            if n < viewer.joins_at:
                continue
            if viewer.connection.is_slow():
                _log.warning("slow client dropped", camera=self.name, client=viewer.connection.client)
                viewer.connection.drop()
                continue
            if viewer.channel not in ready:
                ready[viewer.channel] = self.rtp(n, viewer.channel)
            if time.monotonic() >= viewer.next_report_at:
                viewer.next_report_at = time.monotonic() + _REPORT_EVERY_S
                viewer.connection.write(self.report(viewer, n))
            viewer.connection.write(ready[viewer.channel])
            if viewer.start_s is None:
                viewer.start_s = self.film.starts_at(n)
            viewer.stop_s = self.film.starts_at(n + 1)

    def join(self, connection: _Connection, channel: int) -> _Viewer:
        """Let a client in at the next key frame; the first one starts a timeline that waits for it."""
        self.start()
        viewer = _Viewer(connection, channel, self.film.key_frame_from(self.next_frame))
        self.viewers.append(viewer)
        return viewer

    def leave(self, viewer: _Viewer) -> None:
        """Send nothing more to a client."""
        if viewer in self.viewers:
            self.viewers.remove(viewer)
            self._close(viewer)

    def _close(self, viewer: _Viewer) -> None:
        if viewer.start_s is not None:
            self.past.append(Session(viewer.start_s, viewer.stop_s))
        viewer.start_s = viewer.stop_s = None

    def _interrupt(self) -> None:
        """End what every client has seen so far, and let it go on with the next key frame."""
        for viewer in self.viewers:
            self._close(viewer)
            viewer.joins_at = max(viewer.joins_at, self.film.key_frame_from(self.next_frame))

    def freeze(self) -> None:
        self.frozen = True
        for viewer in self.viewers:
            self._close(viewer)

    def thaw(self) -> None:
        if self.frozen:
            self.frozen = False
            self._interrupt()

    def sessions(self) -> tuple[Session, ...]:
        current = [viewer.session for viewer in self.viewers]
        return (*self.past, *(session for session in current if session))


# ── a client ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Request(NamedTuple):
    method: str
    target: str
    version: str
    headers: dict[str, str]  # names in lower case
    body_bytes: int

    @property
    def camera(self) -> str:
        """The path that is asked for, without the track."""
        path = unquote(urlsplit(self.target).path).strip("/")
        return re.sub(r"(^|/)trackID=\d+$", "", path)


class _Refused(Exception):  # noqa: N818  an answer, not a fault
    """The answer is *status*."""

    def __init__(self, status: int, **headers: str | Sequence[str]) -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers


class _Connection:
    """One RTSP connection. It holds at most one session, because a camera has one track."""

    def __init__(self, cameras: dict[str, _Camera], writer: asyncio.StreamWriter, backlog_bytes: int) -> None:
        self._cameras = cameras
        self._writer = writer
        self._backlog_bytes = backlog_bytes
        self._nonce = secrets.token_hex(16)  # good for this connection, so that it cannot be replayed on another
        self._session = ""
        self._channel = 0
        self._viewer: _Viewer | None = None
        self.camera: _Camera | None = None
        peer = writer.get_extra_info("peername") or ("?", 0)
        self.client = f"{peer[0]}:{peer[1]}"

    def write(self, data: bytes) -> None:
        if not self._writer.is_closing():
            self._writer.write(data)

    def is_slow(self) -> bool:
        """Whether more waits to be sent than may: such a client is dropped, not buffered for."""
        return self._writer.transport.get_write_buffer_size() > self._backlog_bytes

    def drop(self) -> None:
        """Cut the line at once."""
        self.leave()
        self._writer.transport.abort()

    def hang_up(self) -> None:
        """Close the line when everything is sent."""
        self.leave()
        self._writer.close()

    def leave(self) -> None:
        if self.camera and self._viewer:
            self.camera.leave(self._viewer)
        self._viewer = None

    async def serve(self, reader: asyncio.StreamReader) -> None:
        """Answer requests until the client goes. What it sends in between (RTCP) is read and not needed."""
        while first := await reader.read(1):
            if first == b"$":
                _, length = struct.unpack(">BH", await reader.readexactly(3))
                await reader.readexactly(length)
                continue
            if first in b"\r\n":  # between requests, some clients send empty lines to keep a connection open
                continue
            try:
                head = first + await reader.readuntil(b"\r\n\r\n")
                request = _parse(head)
                await reader.readexactly(request.body_bytes)
            except (ValueError, asyncio.LimitOverrunError):
                self._answer(400, "", {})
                return
            self._handle(request)
            await self._writer.drain()

    def _handle(self, request: _Request) -> None:
        sequence = request.headers.get("cseq", "")
        try:
            headers, body = self._method(request)(request)
            self._answer(200, sequence, headers, body)
        except _Refused as refused:
            self._answer(refused.status, sequence, refused.headers)

    def _method(self, request: _Request) -> Callable[[_Request], tuple[dict[str, str], str]]:
        answers: dict[str, Callable[[_Request], tuple[dict[str, str], str]]] = {
            "OPTIONS": lambda _: ({"Public": ", ".join(_METHODS)}, ""),
            "DESCRIBE": self._describe,
            "SETUP": self._setup,
            "PLAY": self._play,
            "PAUSE": self._pause,
            "GET_PARAMETER": self._get_parameter,
            "TEARDOWN": self._teardown,
        }
        if request.version != "RTSP/1.0":
            raise _Refused(505)
        if "require" in request.headers:
            raise _Refused(551, Unsupported=request.headers["require"])
        if request.method in _OTHER_METHODS:
            raise _Refused(405, Allow=", ".join(_METHODS))
        if request.method not in answers:
            raise _Refused(501, Public=", ".join(_METHODS))
        return answers[request.method]

    def _answer(
        self, status: int, sequence: str, headers: dict[str, str] | dict[str, str | Sequence[str]], body: str = ""
    ) -> None:
        lines = [f"RTSP/1.0 {status} {_REASONS[status]}", f"CSeq: {sequence}", "Server: demographics-demo"]
        for name, value in headers.items():
            name_on_wire = name.replace("_", "-")
            lines += [f"{name_on_wire}: {one}" for one in ((value,) if isinstance(value, str) else value)]
        if body:
            lines += ["Content-Type: application/sdp", f"Content-Length: {len(body.encode())}"]
        self.write(("\r\n".join(lines) + "\r\n\r\n" + body).encode())

    def _authorised_camera(self, request: _Request) -> _Camera:
        camera = self._cameras.get(request.camera)
        if camera is None or camera.ended:
            raise _Refused(404)
        if camera.username and not _authorised(request, camera, self._nonce):
            stale = _parameters(request.headers.get("authorization", "")).get("nonce", self._nonce) != self._nonce
            raise _Refused(401, WWW_Authenticate=_challenges(camera.auth, self._nonce, stale=stale))
        return camera

    def _describe(self, request: _Request) -> tuple[dict[str, str], str]:
        camera = self._authorised_camera(request)
        host = self._writer.get_extra_info("sockname")[0]
        parts = urlsplit(request.target)
        base = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/{quote(camera.name)}/"
        return {"Content-Base": base}, camera.sdp(host)

    def _setup(self, request: _Request) -> tuple[dict[str, str], str]:
        camera = self._authorised_camera(request)
        if self._viewer:
            raise _Refused(455)
        offers = [offer.strip() for offer in request.headers.get("transport", "").split(",")]
        wanted = next((offer for offer in offers if offer.upper().startswith("RTP/AVP/TCP")), None)
        if wanted is None:
            raise _Refused(461)
        channels = re.search(r"interleaved=(\d+)", wanted)
        self._channel = int(channels[1]) if channels else 0
        if self._channel > 254:
            raise _Refused(461)
        self.camera, self._session = camera, self._session or secrets.token_hex(8)
        transport = f"RTP/AVP/TCP;unicast;interleaved={self._channel}-{self._channel + 1};ssrc={camera.ssrc:08X}"
        return {"Transport": transport, "Session": f"{self._session};timeout=60"}, ""

    def _in_session(self, request: _Request) -> _Camera:
        named = request.headers.get("session", "").partition(";")[0].strip()
        if not self._session or self.camera is None or named != self._session:
            raise _Refused(454)
        return self.camera

    def _play(self, request: _Request) -> tuple[dict[str, str], str]:
        camera = self._in_session(request)
        if self._cameras.get(camera.name) is not camera or camera.ended:
            raise _Refused(404)
        if self._viewer is None:
            self._viewer = camera.join(self, self._channel)
            _log.info("client plays", camera=camera.name, client=self.client)
        n = self._viewer.joins_at
        parts = urlsplit(request.target)
        track = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/{quote(camera.name)}/trackID=0"
        info = f"url={track};seq={camera.sequence(n)};rtptime={camera.stamp(n)}"
        return {"Session": self._session, "Range": "npt=now-", "RTP-Info": info}, ""

    def _pause(self, request: _Request) -> tuple[dict[str, str], str]:
        self._in_session(request)
        if self._viewer is None:
            raise _Refused(455)
        self.leave()
        return {"Session": self._session}, ""

    def _get_parameter(self, request: _Request) -> tuple[dict[str, str], str]:
        if "session" not in request.headers:
            return {}, ""  # "are you there", before a session
        self._in_session(request)
        return {"Session": self._session}, ""

    def _teardown(self, request: _Request) -> tuple[dict[str, str], str]:
        self._in_session(request)
        self.leave()
        self._session = ""
        return {}, ""


def _parse(head: bytes) -> _Request:
    """Read a request's head. Raises ValueError where it is none, or announces a body too long to be meant."""
    start, *lines = head.decode("utf-8").split("\r\n")
    method, target, version = start.split(" ")
    if not version.startswith("RTSP/"):
        raise ValueError(f"{version} is not RTSP")
    headers = {}
    for line in filter(None, lines):
        name, colon, value = line.partition(":")
        if not colon:
            raise ValueError("a header without a colon")
        headers[name.strip().lower()] = value.strip()
    body_bytes = int(headers.get("content-length", "0"))
    if not 0 <= body_bytes <= _BODY_BYTES:
        raise ValueError("a body that long is not meant")
    return _Request(method, target, version, headers, body_bytes)


# ── who may watch ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _challenges(auth: Auth, nonce: str, *, stale: bool) -> list[str]:
    digest = f'Digest realm="{_REALM}", nonce="{nonce}", algorithm=MD5' + (", stale=true" if stale else "")
    with_qop = digest + ', qop="auth"'
    basic = f'Basic realm="{_REALM}"'
    return {"digest": [with_qop], "digest-without-qop": [digest], "basic": [basic], "any": [with_qop, basic]}[auth]


def _parameters(header: str) -> dict[str, str]:
    return {
        name.lower(): quoted or plain for name, quoted, plain in re.findall(r'(\w+)=(?:"([^"]*)"|([^\s,"]+))', header)
    }


def _authorised(request: _Request, camera: _Camera, nonce: str) -> bool:
    header = request.headers.get("authorization", "")
    scheme, _, rest = header.partition(" ")
    if scheme.lower() == "basic" and camera.auth in {"basic", "any"}:
        expected = base64.b64encode(f"{camera.username}:{camera.password}".encode()).decode()
        return hmac.compare_digest(rest.strip().encode(), expected.encode())
    if scheme.lower() != "digest" or camera.auth == "basic":
        return False
    given = _parameters(rest)
    if given.get("username") != camera.username or given.get("nonce") != nonce or given.get("realm") != _REALM:
        return False
    if _path_of(given.get("uri", "")) != _path_of(request.target):  # else one request's answer would open another
        return False
    expected = _digest(camera, request.method, given)
    return hmac.compare_digest(given.get("response", "").lower().encode(), expected.encode())


def _path_of(uri: str) -> str:
    return urlsplit(uri).path.rstrip("/")


def _digest(camera: _Camera, method: str, given: dict[str, str]) -> str:
    """Compute the answer that the right password gives (RFC 2617, 3.2.2.1), with or without qop."""

    def md5(text: str) -> str:
        return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()

    secret = md5(f"{camera.username}:{_REALM}:{camera.password}")
    asked = md5(f"{method}:{given.get('uri', '')}")
    if "qop" not in given:
        return md5(f"{secret}:{given['nonce']}:{asked}")
    return md5(f"{secret}:{given['nonce']}:{given.get('nc', '')}:{given.get('cnonce', '')}:{given['qop']}:{asked}")


# ── the server ────────────────────────────────────────────────────────────────────────────────────────────────────────


class RtspServer:
    """Serve films as cameras. Methods may be called from any thread; all but `url` only while it is started."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, backlog_bytes: int = 1 << 20) -> None:
        """Listen on *host* and *port* once started; port 0 takes a free one, and keeps it over stop and start.

        A client for whom more than *backlog_bytes* wait is dropped.
        """
        self.host = host
        self.port = port
        self._backlog_bytes = backlog_bytes
        self._cameras: dict[str, _Camera] = {}
        self._connections: set[_Connection] = set()
        self._serving: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._listener: asyncio.Server | None = None
        self._closing = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"RtspServer({self.host}:{self.port}, paths={sorted(self._cameras)})"

    def start(self) -> None:
        """Open the port. Raises ConfigError when it cannot be had. Timelines go on as if there had been no stop."""
        if self._loop:
            return
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="rtsp-server", daemon=True)
        thread.start()
        self._loop, self._thread = loop, thread
        try:
            asyncio.run_coroutine_threadsafe(self._open(), loop).result()
        except OSError as error:
            self.stop()
            raise ConfigError(f"{self.host}:{self.port}: cannot listen there ({error.strerror})") from error

    def stop(self) -> None:
        """Close the port and every connection. The paths stay, for the next start."""
        if self._loop is None or self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = self._thread = None

    def add(
        self,
        path: str,
        film: Path,
        *,
        username: str = "",
        password: str = "",
        auth: Auth = "digest",
        loop: bool = True,
        start: Start = "now",
        speed: float = 1.0,
    ) -> None:
        """Serve the H.264 file *film* as *path*; for a *username*, clients must say the *password*.

        *auth* is what clients are asked for; "digest" takes answers with and without qop. With *start* "on_play" the
        timeline starts with the first client's PLAY, so that it gets every frame. With *loop* off the film plays once,
        says good-bye and closes, and the path is gone (404). With a *speed* above 1 it is a camera out of order, which sends
        as many times more frames a second. Raises ConfigError for a film that cannot be served, or a
        path that there is already.
        """
        path = path.strip("/")
        if path in self._cameras:
            raise ConfigError(f"{path}: there is such a path already")
        camera = _Camera(
            name=path, film=_load(film), username=username, password=password, auth=auth, loop=loop, speed=speed
        )
        self._in_loop(lambda: self._admit(camera, start))

    def _admit(self, camera: _Camera, start: Start) -> None:
        self._cameras[camera.name] = camera
        if start == "now":
            camera.start()

    def remove(self, path: str) -> None:
        """Drop the path's clients and answer 404 from now on. Raises KeyError for an unknown path."""

        def remove() -> None:
            self._drop(path)
            player = self._cameras.pop(path).player
            if player:
                player.cancel()

        self._in_loop(remove)

    def freeze(self, path: str) -> None:
        """Send nothing more, but leave connections open and time running. Raises KeyError for an unknown path."""
        self._in_loop(self._cameras[path].freeze)

    def thaw(self, path: str) -> None:
        """Go on with the next key frame after a freeze. Raises KeyError for an unknown path."""
        self._in_loop(self._cameras[path].thaw)

    def drop_clients(self, path: str) -> None:
        """Cut every connection to the path; they may come back. Raises KeyError for an unknown path."""
        self._in_loop(lambda: self._drop(path))

    def _drop(self, path: str) -> None:
        camera = self._cameras[path]
        for connection in [c for c in self._connections if c.camera is camera]:
            connection.drop()

    def url(self, path: str, *, with_credentials: bool = False) -> str:
        """Return the path's address. Raises KeyError for an unknown path."""
        camera = self._cameras[path]
        login = f"{quote(camera.username, safe='')}:{quote(camera.password, safe='')}@"
        return f"rtsp://{login if with_credentials and camera.username else ''}{self.host}:{self.port}/{quote(path)}"

    def sessions(self, path: str) -> tuple[Session, ...]:
        """Return which parts of the path's timeline were sent to clients, ended ones first.

        A freeze, a pause and a lost connection each end one. Raises KeyError for an unknown path.
        """
        return self._in_loop(self._cameras[path].sessions)

    def position_s(self, path: str) -> float:
        """Return where the path's continuous timeline is now, in seconds; 0 until it starts. KeyError as above."""
        return self._in_loop(self._cameras[path].position_s)

    def _in_loop(self, work: Callable[[], T]) -> T:
        if self._loop is None:
            raise RuntimeError("the RTSP server is not started")

        async def call() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result()

    async def _open(self) -> None:
        self._closing = False
        self._listener = await asyncio.start_server(self._accept, self.host, self.port, limit=_HEADER_BYTES)
        self.port = self._listener.sockets[0].getsockname()[1]
        for camera in self._cameras.values():
            if camera.origin is not None:
                camera.start()

    async def _shut(self) -> None:
        self._closing = True
        if self._listener:
            self._listener.close()
        for connection in tuple(self._connections):
            connection.drop()
        players = [camera.player for camera in self._cameras.values() if camera.player]
        for camera in self._cameras.values():
            camera.player = None
        for player in players:
            player.cancel()
        # Connections are not cancelled: cut off, they end by themselves (and 3.11's streams trip over a cancelled one).
        await asyncio.gather(*players, *self._serving, return_exceptions=True)
        if self._listener:
            await self._listener.wait_closed()
            self._listener = None
        await asyncio.get_running_loop().shutdown_default_executor()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._closing:  # it came in while the port was being closed
            writer.transport.abort()
            return
        self._serving.add(task)
        taken = writer.get_extra_info("socket")
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)  # so that the backlog is here, where it is seen
        connection = _Connection(self._cameras, writer, self._backlog_bytes)
        self._connections.add(connection)
        try:
            with suppress(ConnectionError, TimeoutError, asyncio.IncompleteReadError):
                await connection.serve(reader)
        finally:
            connection.leave()
            self._connections.discard(connection)
            self._serving.discard(task)
            writer.close()
            with suppress(ConnectionError, TimeoutError):
                await writer.wait_closed()
