"""Where a worker lets itself be sent: schemes and networks, names resolved when it goes, nothing followed to elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from ingest.av_source import AvSource
from ingest.reach import Reach
from pipeline.cameras import Camera
from pipeline.errors import ConfigError, SourceForbidden, SourceLost, SourceUnreachable
from pipeline.settings import load_settings

LAN = Reach(networks=(ip_network("10.20.0.0/16"), ip_network("fd00::/8")))


def camera(url: str, **more: Any) -> Camera:
    """Describe a camera."""
    return Camera(id="door", url=SecretStr(url), **more)


def names(**hosts: list[str]) -> Callable[..., list[Any]]:
    """Resolve like a name server that knows these."""

    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        try:
            found = hosts[host] if host in hosts else [str(ip_address(host))]
        except ValueError:
            raise OSError from None
        return [(0, 0, 0, "", (number, port)) for number in found]

    return resolve


@pytest.mark.parametrize(
    ("url", "opened"),
    [
        ("rtsp://10.20.1.5:554/1", "rtsp://10.20.1.5:554/1"),
        ("rtsp://u:p%40w@hall/1?x=1", "rtsp://u:p%40w@10.20.0.7/1?x=1"),
        ("http://hall:8080/mjpg", "http://10.20.0.7:8080/mjpg"),
        ("https://hall/mjpg", "https://hall/mjpg"),
        ("rtsp://six/1", "rtsp://[fd00::7]/1"),
    ],
)
def test_what_was_looked_at_is_what_is_connected_to(url: str, opened: str) -> None:
    """The name is resolved once; with TLS the certificate holds the host to its name."""
    assert LAN.address(camera(url), names(hall=["10.20.0.7"], six=["fd00::7"])) == opened


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",  # the cloud's metadata
        "127.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "localhost",
        "10.21.0.1",
        "0.0.0.0",
        "mixed",  # one of its addresses is elsewhere
        "2130706433",  # 127.0.0.1, as resolvers read it
    ],
)
def test_an_address_outside_is_refused_and_named_without_its_password(host: str) -> None:
    """Whatever it is written as; the error names the setting."""
    resolve = names(localhost=["127.0.0.1", "::1"], mixed=["10.20.0.1", "192.168.0.1"], **{"2130706433": ["127.0.0.1"]})
    with pytest.raises(SourceForbidden, match="DEMOGRAPHICS_INGEST__NETWORKS") as refused:
        LAN.address(camera(f"rtsp://u:hunter2@{host}/1"), resolve)
    assert "hunter2" not in str(refused.value)
    assert refused.value.reason == "forbidden"


@given(st.ip_addresses())
def test_exactly_the_named_networks_are_let_through(number: Any) -> None:
    """Over all addresses that there are."""
    url = f"rtsp://[{number}]/1" if number.version == 6 else f"rtsp://{number}/1"
    plain = number.ipv4_mapped or number if number.version == 6 else number
    inside = any(plain in network for network in LAN.networks if network.version == plain.version)
    try:
        LAN.address(camera(url), names())
    except SourceForbidden:
        assert not inside
    else:
        assert inside


def test_a_name_that_nobody_knows_is_unreachable() -> None:
    """Not forbidden: it may come to be."""
    with pytest.raises(SourceUnreachable, match="name server"):
        LAN.address(camera("rtsp://no-such-host/1"), names())


def test_schemes_are_a_setting(tmp_path: Path) -> None:
    """A film on the worker's disk is a scheme, too."""
    only = Reach(schemes=("rtsp", "rtsps"))
    assert only.address(camera("rtsp://10.0.0.1/1")) == "rtsp://10.0.0.1/1"
    for url in ("http://10.0.0.1/mjpg", str(tmp_path / "film.mp4"), "file:///etc/passwd"):
        with pytest.raises(SourceForbidden, match="DEMOGRAPHICS_INGEST__SCHEMES"):
            only.address(camera(url))


def test_the_settings_are_read_and_wrong_ones_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """As networks, with what is wrong."""
    monkeypatch.setenv("DEMOGRAPHICS_INGEST__NETWORKS", '["10.20.0.0/16", "fd00::/8"]')
    assert load_settings().ingest.networks == LAN.networks
    monkeypatch.setenv("DEMOGRAPHICS_INGEST__NETWORKS", '["10.20.0.1/16"]')
    with pytest.raises(ConfigError, match="DEMOGRAPHICS_INGEST__NETWORKS"):
        load_settings()


@pytest.mark.parametrize("option", ["protocol_whitelist", "http_proxy", "max_redirects"])
def test_options_that_lead_elsewhere_are_refused(option: str) -> None:
    """Whoever adds a camera cannot open FFmpeg's doors."""
    with pytest.raises(ValidationError, match=option):
        camera("rtsp://10.0.0.1/1", options={option: "x"})


class Asked:
    """A server that notes who asks it, and leads elsewhere."""

    def __init__(self, answer: bytes, *headers: tuple[str, str], status: int = 200) -> None:
        asked = self.asked = list[str]()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Be quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def inner() -> Iterator[Asked]:
    """Run what only the worker can reach."""
    made = Asked(b"secret of the inside")
    yield made
    made.close()


def opens(url: str, reach: Reach) -> None:
    """Try to open it; it is no film in any case."""
    with pytest.raises(SourceLost):
        AvSource(camera(url), open_timeout_s=5, read_timeout_s=5, reach=reach).close()


def test_a_redirect_is_not_followed_where_networks_are_named(inner: Asked) -> None:
    """A camera that is allowed must not lead to one that is not; without networks, redirects work as ever."""
    outer = Asked(b"", ("Location", f"{inner.url}/metadata"), status=302)
    loopback = Reach(networks=(ip_network("127.0.0.0/8"),))
    opens(f"{outer.url}/mjpg", loopback)
    assert outer.asked == ["/mjpg"]
    assert inner.asked == []
    opens(f"{outer.url}/mjpg", Reach())
    assert inner.asked == ["/metadata"]
    outer.close()


def test_a_stream_cannot_have_a_file_opened_nor_a_film_an_address(inner: Asked, tmp_path: Path) -> None:
    """A playlist is data of whoever sends it: FFmpeg would open what it names."""
    playlist = tmp_path / "film.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{inner.url}/from-a-film.ts\n#EXT-X-ENDLIST\n")
    opens(str(playlist), Reach())
    assert inner.asked == []
