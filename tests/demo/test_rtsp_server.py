"""The cameras that need no hardware, seen by real players and, where those hide things, by a bare RTSP client."""

from __future__ import annotations

import base64
import errno
import hashlib
import re
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Self

import av
import av.error
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.rtsp_server import Auth, RtspServer, packetise, split_annex_b
from pipeline.errors import ConfigError
from tests.servers import wait_until

FPS, FRAMES, KEY_EVERY = 25, 20, 10
SECONDS = FRAMES / FPS
PATIENCE_S = 8.0
QUICK = {"rtsp_transport": "tcp", "probesize": "500", "analyzeduration": "1", "fpsprobesize": "0"}


# ── films whose every frame tells its number ──────────────────────────────────────────────────────────────────────────


def numbered(n: int, noise: int) -> av.VideoFrame:
    """Draw a picture of eight bars that spell *n* in black and white."""
    luma = np.repeat([[235 if n >> bit & 1 else 16 for bit in range(8)]], 96, axis=0).repeat(16, axis=1)
    if noise:
        luma[48:] = np.random.default_rng(n).integers(0, noise, (48, 128))
    planes = np.concatenate([luma, np.full((48, 128), 128)]).astype(np.uint8)
    return av.VideoFrame.from_ndarray(planes, format="yuv420p")


def number_of(frame: av.VideoFrame) -> int:
    """Read the number that a picture spells."""
    row = frame.to_ndarray(format="gray")[:40].mean(axis=0).reshape(8, 16).mean(axis=1)
    return int(sum(1 << bit for bit in range(8) if row[bit] > 128))


def write_film(path: Path, *, codec: str = "libx264", b_frames: int = 0, noise: int = 0) -> Path:
    """Encode FRAMES numbered pictures of 128x96; *noise* makes them big."""
    options = {"g": str(KEY_EVERY), "keyint_min": str(KEY_EVERY), "sc_threshold": "0", "bf": str(b_frames)}
    if codec == "libx264":
        options |= {"preset": "ultrafast" if not b_frames else "medium", "crf": "20" if not noise else "1"}
    with av.open(str(path), "w") as film:
        stream = film.add_stream(codec, rate=FPS, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        stream.time_base = Fraction(1, FPS)
        for n in range(FRAMES):
            picture = numbered(n, noise)
            picture.pts = n
            film.mux(stream.encode(picture))
        film.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encode a film of 0.8 s with a key frame every 0.4 s."""
    return write_film(tmp_path_factory.mktemp("films") / "numbers.mp4")


@pytest.fixture(scope="module")
def big_film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encode the same film with half a megabyte a second of noise in it, so that pictures need fragments."""
    return write_film(tmp_path_factory.mktemp("films") / "noise.mp4", noise=255)


@pytest.fixture
def server() -> Iterator[RtspServer]:
    """Start a server on a free port."""
    with RtspServer() as started:
        yield started


@contextmanager
def playing(url: str) -> Iterator[Iterator[av.VideoFrame]]:
    """Open an address as the ingest does, and decode."""
    with av.open(url, options=QUICK, timeout=(PATIENCE_S, PATIENCE_S)) as container:
        yield container.decode(video=0)


# ── a bare client ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Answer(NamedTuple):
    """What a server says to a request."""

    status: int
    headers: dict[str, list[str]]
    body: str


class Packet(NamedTuple):
    """One RTP packet's header, and whether its picture can be decoded without another."""

    sequence: int
    stamp: int
    marker: bool
    ssrc: int
    raw: bytes

    @property
    def starts_key_frame(self) -> bool:
        """A key frame comes with its parameter sets and the like before it."""
        return self.raw[12] & 0x1F in {6, 7, 8}


class Client:
    """RTSP by hand over one socket."""

    def __init__(self, server: RtspServer, *, receive_bytes: int = 0) -> None:
        self._socket = socket.socket()
        if receive_bytes:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self._socket.settimeout(PATIENCE_S)
        try:
            self._socket.connect((server.host, server.port))
        except OSError:
            self._socket.close()
            raise
        self._buffer = b""
        self._sequence = 0
        self._server = server
        self.session = ""
        self.packets: list[Packet] = []
        self.reports: list[bytes] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            more = self._socket.recv(65536)
            if not more:
                raise EOFError
            self._buffer += more
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def _one(self) -> Answer | None:
        """Read one thing: an answer, or (None) an interleaved packet, which is kept."""
        first = self._take(1)
        if first == b"$":
            channel, length = struct.unpack(">BH", self._take(3))
            data = self._take(length)
            if channel % 2:
                self.reports.append(data)
            else:
                marker, sequence, stamp, ssrc = struct.unpack(">xBHII", data[:12])
                self.packets.append(Packet(sequence, stamp, bool(marker & 0x80), ssrc, data))
            return None
        head = first
        while not head.endswith(b"\r\n\r\n"):
            head += self._take(1)
        start, *lines = head.decode().strip().split("\r\n")
        headers: dict[str, list[str]] = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers.setdefault(name.lower(), []).append(value.strip())
        body = self._take(int(headers.get("content-length", ["0"])[0]))
        return Answer(int(start.split()[1]), headers, body.decode())

    def raw(self, data: bytes) -> Answer:
        """Send bytes; returns the answer."""
        self._socket.sendall(data)
        while (answer := self._one()) is None:
            pass
        return answer

    def ask(self, method: str, path: str = "cam", **headers: str) -> Answer:
        """Send a request; returns the answer to it."""
        self._sequence += 1
        url = f"rtsp://{self._server.host}:{self._server.port}/{path}"
        session = {"Session": self.session} if self.session else {}
        lines = [f"{name}: {value}" for name, value in ({"CSeq": str(self._sequence)} | session | headers).items()]
        answer = self.raw("\r\n".join([f"{method} {url} RTSP/1.0", *lines, "", ""]).encode())
        assert answer.headers["cseq"] == [str(self._sequence)]
        return answer

    def play(self, path: str = "cam") -> Answer:
        """Set up and play; returns the answer to PLAY."""
        answer = self.ask("SETUP", f"{path}/trackID=0", Transport="RTP/AVP/TCP;unicast;interleaved=0-1")
        assert answer.status == 200
        self.session = answer.headers["session"][0].partition(";")[0]
        return self.ask("PLAY", path)

    def receive(self, packets: int) -> list[Packet]:
        """Read until so many more RTP packets came."""
        before = len(self.packets)
        while len(self.packets) < before + packets:
            assert self._one() is None
        return self.packets[before:]

    def read_to_end(self) -> None:
        """Read until the server closes. Raises TimeoutError where it does not."""
        try:
            while True:
                self._one()
        except (EOFError, ConnectionResetError):
            pass

    def silent_for(self, seconds: float) -> bool:
        """Whether nothing arrives for a while."""
        self._socket.settimeout(seconds)
        try:
            self._one()
        except TimeoutError:
            return True
        finally:
            self._socket.settimeout(PATIENCE_S)
        return False


# ── what players see ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_player_joins_at_a_key_frame_and_goes_on_evenly_across_the_loop(server: RtspServer, film: Path) -> None:
    """No frame is missing, repeated or torn, and the clock does not jump where the film starts again."""
    server.add("cam", film)
    with playing(server.url("cam")) as frames:
        seen = [frame for _, frame in zip(range(2 * FRAMES), frames, strict=False)]
    numbers = [number_of(frame) for frame in seen]
    assert numbers[0] % KEY_EVERY == 0
    assert seen[0].key_frame
    assert numbers == [(numbers[0] + n) % FRAMES for n in range(len(numbers))]
    assert not any(frame.is_corrupt for frame in seen)
    stamps = [frame.pts for frame in seen[1:]]  # FFmpeg leaves an RTSP stream's very first picture without one
    assert stamps == list(range(90_000 // FPS, len(seen) * 90_000 // FPS, 90_000 // FPS))


def test_a_film_played_once_from_the_first_play_gives_every_frame_and_then_ends(server: RtspServer, film: Path) -> None:
    """A test that counts can rely on the first and the last frame; afterwards the path is gone."""
    server.add("cam", film, loop=False, start="on_play")
    with playing(server.url("cam")) as frames:
        assert [number_of(frame) for frame in frames] == list(range(FRAMES))
    with pytest.raises(av.error.HTTPNotFoundError), playing(server.url("cam")):
        pass
    (session,) = server.sessions("cam")
    assert (session.start_s, session.stop_s) == pytest.approx((0, SECONDS))


def test_large_pictures_arrive_whole(server: RtspServer, big_film: Path) -> None:
    """Pictures that need many fragments decode without a fault."""
    server.add("cam", big_film, start="on_play")
    with playing(server.url("cam")) as frames:
        seen = [frame for _, frame in zip(range(FRAMES), frames, strict=False)]
    assert [number_of(frame) for frame in seen] == list(range(FRAMES))
    assert not any(frame.is_corrupt for frame in seen)


def test_opencv_plays_it_too(server: RtspServer, film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other reader in use, with the transport that it needs to be told."""
    monkeypatch.setenv(
        "OPENCV_FFMPEG_CAPTURE_OPTIONS", "rtsp_transport;tcp|probesize;500|analyzeduration;1|fpsprobesize;0"
    )
    server.add("cam", film, start="on_play")
    capture = cv2.VideoCapture(server.url("cam"), cv2.CAP_FFMPEG)
    try:
        assert capture.isOpened()
        assert all(capture.read()[0] for _ in range(5))
    finally:
        capture.release()


@pytest.mark.parametrize("auth", ["digest", "digest-without-qop", "basic", "any"])
def test_a_player_with_the_password_gets_in_and_others_are_told_so(server: RtspServer, film: Path, auth: Auth) -> None:
    """Every way of asking for a password works with FFmpeg, awkward characters included."""
    server.add("cam", film, username="gate keeper", password="p@ss:/w?rd%", auth=auth, start="on_play")
    for wrong in (server.url("cam"), server.url("cam").replace("//", "//gate%20keeper:guess@")):
        with pytest.raises(av.error.HTTPUnauthorizedError), playing(wrong):
            pass
    with playing(server.url("cam", with_credentials=True)) as frames:
        assert number_of(next(frames)) == 0


def test_an_unknown_path_is_not_found_and_udp_is_not_spoken(server: RtspServer, film: Path) -> None:
    """A player understands 404 and 461."""
    server.add("cam", film)
    with pytest.raises(av.error.HTTPNotFoundError), playing(server.url("cam") + "era"):
        pass
    with pytest.raises(av.error.OSError) as refused:
        av.open(server.url("cam"), options={"rtsp_transport": "udp"}, timeout=PATIENCE_S)
    assert refused.value.errno == errno.EPROTONOSUPPORT


# ── what is on the wire ───────────────────────────────────────────────────────────────────────────────────────────────


def test_all_clients_of_a_path_see_the_same_packets_without_a_gap(server: RtspServer, big_film: Path) -> None:
    """One camera, one stream: sequence numbers follow each other and PLAY announced the first of them."""
    server.add("cam", big_film)
    with Client(server) as one, Client(server) as other:
        announced = one.play().headers["rtp-info"][0]
        other.play()
        first, second = one.receive(60), other.receive(60)
        match = re.search(r"seq=(\d+);rtptime=(\d+)", announced)
        assert match
        assert (first[0].sequence, first[0].stamp) == tuple(map(int, match.groups()))
        assert first[0].starts_key_frame
        assert all((b.sequence - a.sequence) & 0xFFFF == 1 for a, b in pairwise(first))
        assert all((a.stamp != b.stamp) == a.marker for a, b in pairwise(first))
        common = {p.sequence: p.raw for p in first}
        assert [p.raw for p in second if p.sequence in common] == [
            common[p.sequence] for p in second if p.sequence in common
        ]


def test_sender_reports_say_when_a_picture_was_taken(server: RtspServer, film: Path) -> None:
    """The report before the first picture carries UTC now, that picture's time stamp and the sender's name."""
    server.add("cam", film, start="on_play")
    with Client(server) as client:
        client.play()
        first = client.receive(1)[0]
        _, kind, ssrc, seconds, fraction, stamp, packets, _ = struct.unpack(">BBxxIIIIII", client.reports[0][:28])
        assert (kind, ssrc, stamp, packets) == (200, first.ssrc, first.stamp, 0)
        assert seconds - 2_208_988_800 + fraction / 2**32 == pytest.approx(time.time(), abs=1)
        assert b"\x01\x03cam" in client.reports[0]


def test_the_end_of_a_film_is_said_with_a_goodbye(server: RtspServer, film: Path) -> None:
    """The last report before the connection closes is a BYE that counts every packet."""
    server.add("cam", film, start="on_play", loop=False)
    with Client(server) as client:
        client.play()
        client.read_to_end()
        assert client.reports[-1][-8:-4] == b"\x81\xcb\x00\x01"
        assert struct.unpack(">I", client.reports[-1][20:24])[0] == len(client.packets)
        assert sum(packet.marker for packet in client.packets) == FRAMES


def test_the_description_carries_what_a_decoder_needs(server: RtspServer, film: Path) -> None:
    """The parameter sets are in the SDP, and its base is the address that was asked for."""
    server.add("a b/cam", film)
    with Client(server) as client:
        answer = client.ask("DESCRIBE", "a%20b/cam", Accept="application/sdp")
    assert answer.headers["content-base"] == [server.url("a b/cam") + "/"]
    sets = re.search(r"sprop-parameter-sets=(\S+)", answer.body)
    assert sets
    assert [base64.b64decode(one)[0] & 0x1F for one in sets[1].split(",")] == [7, 8]
    assert "a=rtpmap:96 H264/90000" in answer.body


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("OPTIONS", "*", {}, 200),
        ("GET_PARAMETER", "cam", {}, 200),
        ("DESCRIBE", "cellar", {}, 404),
        ("SETUP", "cellar/trackID=0", {"Transport": "RTP/AVP/TCP;interleaved=0-1"}, 404),
        ("SETUP", "cam/trackID=0", {"Transport": "RTP/AVP;unicast;client_port=5000-5001"}, 461),
        ("SETUP", "cam/trackID=0", {"Transport": "RTP/AVP/TCP;interleaved=255-256"}, 461),
        ("PLAY", "cam", {}, 454),
        ("PAUSE", "cam", {"Session": "made-up"}, 454),
        ("TEARDOWN", "cam", {"Session": "made-up"}, 454),
        ("RECORD", "cam", {}, 405),
        ("FLY", "cam", {}, 501),
        ("DESCRIBE", "cam", {"Require": "funky-feature"}, 551),
    ],
)
def test_a_request_out_of_place_is_answered_as_the_standard_says(
    server: RtspServer, film: Path, *, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    """The connection survives it."""
    server.add("cam", film)
    with Client(server) as client:
        assert client.ask(method, path, **headers).status == status
        assert client.ask("DESCRIBE").status == 200


def test_what_fits_no_state_is_refused_with_455_and_a_pause_can_be_ended(server: RtspServer, film: Path) -> None:
    """SETUP while playing and PAUSE while not are 455; PLAY after PAUSE starts at a key frame again."""
    server.add("cam", film)
    with Client(server) as client:
        client.play()
        client.receive(1)
        assert client.ask("SETUP", "cam/trackID=0", Transport="RTP/AVP/TCP;interleaved=0-1").status == 455
        assert client.ask("PAUSE").status == 200
        assert client.ask("PAUSE").status == 455
        client.packets.clear()
        assert client.ask("PLAY").status == 200
        assert client.receive(1)[0].starts_key_frame
        assert client.ask("TEARDOWN").status == 200
        assert client.ask("PLAY").status == 454


@pytest.mark.parametrize(
    ("bytes_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"OPTIONS * RTSP/1.0\r\nno colon\r\n\r\n", 400),
        (b"OPTIONS * RTSP/1.0\r\nContent-Length: 99999999\r\n\r\n", 400),
        (b"OPTIONS * RTSP/1.0\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", 400),
        (b"\xff\xfe \xff RTSP/1.0\r\n\r\n", 400),
        (b"OPTIONS * RTSP/2.0\r\nCSeq: 1\r\n\r\n", 505),
    ],
)
def test_bytes_that_are_no_request_harm_nobody(server: RtspServer, film: Path, bytes_: bytes, status: int) -> None:
    """They are answered, and the next client is served."""
    server.add("cam", film)
    with Client(server) as client:
        assert client.raw(bytes_).status == status
    with Client(server) as client:
        assert client.ask("OPTIONS").status == 200


def test_what_a_client_sends_between_requests_is_read_over(server: RtspServer, film: Path) -> None:
    """Receiver reports and empty lines come in the same stream as requests."""
    server.add("cam", film)
    with Client(server) as client:
        client.play()
        report = struct.pack(">cBH", b"$", 1, 8) + b"\x80\xc9\x00\x01abcd"
        assert client.raw(report + b"\r\n" + b"OPTIONS * RTSP/1.0\r\nCSeq: 77\r\n\r\n").headers["cseq"] == ["77"]


def md5(text: str) -> str:
    """Hash as Digest does."""
    return hashlib.md5(text.encode()).hexdigest()


@pytest.mark.parametrize("qop", [True, False])
def test_a_digest_opens_only_what_it_was_computed_for(server: RtspServer, film: Path, qop: bool) -> None:
    """With and without qop; a stale nonce is named so, that the player tries again without asking anybody."""
    server.add("cam", film, username="u", password="secret")
    server.add("vault", film, username="u", password="secret")

    def digest(nonce: str, realm: str, password: str = "secret") -> str:
        uri = f"{server.url('cam')}"
        first, second = md5(f"u:{realm}:{password}"), md5(f"DESCRIBE:{uri}")
        middle = f"{nonce}:00000001:abc:auth" if qop else nonce
        extra = ', qop=auth, nc=00000001, cnonce="abc"' if qop else ""
        response = md5(f"{first}:{middle}:{second}")
        return f'Digest username="u", realm="{realm}", nonce="{nonce}", uri="{uri}", response="{response}"{extra}'

    with Client(server) as client:
        refused = client.ask("DESCRIBE")
        assert refused.status == 401
        challenge = refused.headers["www-authenticate"][0]
        nonce, realm = (re.findall(rf'{name}="([^"]+)"', challenge)[0] for name in ("nonce", "realm"))
        assert client.ask("DESCRIBE", Authorization=digest(nonce, realm)).status == 200
        wrong = client.ask("DESCRIBE", Authorization=digest(nonce, realm, "guess"))
        assert wrong.status == 401
        assert "stale" not in wrong.headers["www-authenticate"][0]
        assert client.ask("DESCRIBE", "vault", Authorization=digest(nonce, realm)).status == 401
        old = client.ask("DESCRIBE", Authorization=digest("0" * 32, realm))
        assert old.status == 401
        assert "stale=true" in old.headers["www-authenticate"][0]
        assert client.ask("DESCRIBE", Authorization="Basic " + base64.b64encode(b"u:secret").decode()).status == 401
        assert client.ask("SETUP", "cam/trackID=0", Transport="RTP/AVP/TCP;interleaved=0-1").status == 401


# ── what can happen to a camera ───────────────────────────────────────────────────────────────────────────────────────


def test_a_frozen_camera_keeps_its_connections_and_comes_back_at_a_key_frame(server: RtspServer, film: Path) -> None:
    """Nothing is sent, requests are answered; time runs on, and the film's missing part shows in the sessions."""
    server.add("cam", film, start="on_play")
    with Client(server) as client:
        client.play()
        client.receive(5)
        server.freeze("cam")
        assert client.ask("OPTIONS").status == 200
        assert client.silent_for(0.3)
        frozen = server.sessions("cam")
        client.packets.clear()
        server.thaw("cam")
        assert client.receive(1)[0].starts_key_frame
        before, after = server.sessions("cam")
        assert frozen == (before,)
        assert before.start_s == 0
        assert before.stop_s is not None
        assert before.stop_s + 0.25 < after.start_s
        assert after.start_s % (KEY_EVERY / FPS) == pytest.approx(0, abs=1e-6)
        assert after.stop_s is None


def test_dropped_clients_may_come_back_and_those_of_other_paths_stay(server: RtspServer, film: Path) -> None:
    """drop_clients cuts lines, remove also takes the path away."""
    server.add("cam", film)
    server.add("other", film)
    with Client(server) as client, Client(server) as stays:
        client.play()
        stays.play("other")
        server.drop_clients("cam")
        client.read_to_end()
        stays.receive(1)
    with Client(server) as client:
        client.play()
        client.receive(1)
        server.remove("cam")
        client.read_to_end()
    with Client(server) as client:
        assert client.ask("DESCRIBE").status == 404
    with pytest.raises(KeyError):
        server.url("cam")


def test_a_server_that_was_stopped_starts_again_on_the_same_port_and_its_time_ran_on(film: Path) -> None:
    """A camera that was off for a while, at the address that clients know."""
    with RtspServer() as server:
        server.add("cam", film)
        address = server.url("cam")
        with Client(server) as client:
            client.play()
            client.receive(1)
            server.stop()
            client.read_to_end()
        with pytest.raises(ConnectionRefusedError):
            Client(server)
        server.start()
        assert server.url("cam") == address
        with Client(server) as client:
            client.play()
            client.receive(1)
            before, after = server.sessions("cam")
        assert before.stop_s is not None
        assert before.stop_s < after.start_s <= server.position_s("cam")


def test_a_port_that_is_taken_is_a_mistake_in_the_settings(server: RtspServer) -> None:
    """The message names the address."""
    with pytest.raises(ConfigError, match=str(server.port)):
        RtspServer(port=server.port).start()


def test_a_client_that_does_not_read_is_dropped_and_others_see_no_gap(big_film: Path) -> None:
    """What waits for one client is bounded."""
    with RtspServer(backlog_bytes=20_000) as server:
        server.add("cam", big_film)
        with Client(server, receive_bytes=4096) as slow, Client(server) as quick:
            slow.play()
            quick.play()
            sessions = server.sessions
            while not any(session.stop_s is not None for session in sessions("cam")):
                quick.receive(20)
            assert all((b.sequence - a.sequence) & 0xFFFF == 1 for a, b in pairwise(quick.packets))
            slow.read_to_end()


def test_sessions_tell_which_part_of_the_film_each_client_was_sent(server: RtspServer, film: Path) -> None:
    """Starts are key frames, stops are ends of frames, and time goes on past the film's length."""
    server.add("cam", film)
    assert server.sessions("cam") == ()
    with Client(server) as early:
        early.play()
        early.receive(1)
        (current,) = server.sessions("cam")
        assert current.stop_s is None
        wait_until(lambda: server.position_s("cam") > SECONDS, timeout_s=PATIENCE_S, what="the second loop")
        early.ask("TEARDOWN")
    with Client(server) as late:
        late.play()
        late.receive(3)
    wait_until(
        lambda: all(session.stop_s is not None for session in server.sessions("cam")),
        timeout_s=PATIENCE_S,
        what="the end of every session",
    )
    first, second = server.sessions("cam")
    assert first.start_s == current.start_s
    assert first.stop_s == pytest.approx(first.start_s + sum(p.marker for p in early.packets) / FPS)
    assert second.start_s >= SECONDS


def test_no_password_shows_in_what_is_printed(server: RtspServer, film: Path) -> None:
    """Neither the server nor what it keeps tells it."""
    server.add("cam", film, username="u", password="hush-hush")
    assert "hush" not in repr(server)
    assert "hush" not in repr(server._cameras)
    assert "hush" not in server.url("cam")
    assert "u:hush-hush@" in server.url("cam", with_credentials=True)


def test_films_that_no_camera_would_send_are_refused(server: RtspServer, film: Path, tmp_path: Path) -> None:
    """B-frames, other codecs, no film, no file, and a path that is taken."""
    (tmp_path / "text.mp4").write_text("not a film")
    server.add("cam", film)
    for path, why in (
        (write_film(tmp_path / "b.mp4", b_frames=2), "B-frames"),
        (write_film(tmp_path / "m.mp4", codec="mpeg4"), "H.264"),
        (tmp_path / "text.mp4", "film"),
        (tmp_path / "nothing.mp4", "film"),
    ):
        with pytest.raises(ConfigError, match=why):
            server.add("new", path)
    with pytest.raises(ConfigError, match="already"):
        server.add("/cam", film)


@given(st.binary(min_size=1, max_size=5000), st.integers(3, 1400))
def test_a_nal_unit_comes_out_of_its_packets_as_it_went_in(unit: bytes, most_bytes: int) -> None:
    """Fragments fit, and only the first and the last are marked as such (RFC 6184, 5.8)."""
    payloads = packetise(unit, most_bytes)
    assert all(len(payload) <= most_bytes for payload in payloads)
    if len(payloads) == 1:
        assert payloads == [unit]
        return
    assert {payload[0] & 0x1F for payload in payloads} == {28}
    assert [payload[1] >> 6 for payload in payloads] == [2, *[0] * (len(payloads) - 2), 1]
    header = bytes((payloads[0][0] & 0xE0 | payloads[0][1] & 0x1F,))
    assert header + b"".join(payload[2:] for payload in payloads) == unit


@given(st.lists(st.binary(min_size=1, max_size=40).map(lambda body: body.replace(b"\0", b"\1")), max_size=6))
def test_a_byte_stream_is_split_at_its_start_codes(units: list[bytes]) -> None:
    """Long and short start codes, as encoders mix them."""
    stream = b"".join((b"\0\0\0\1", b"\0\0\1")[n % 2] + unit for n, unit in enumerate(units))
    assert split_annex_b(stream) == units
