"""Where a camera may be: schemes and networks, so that whoever adds a camera cannot have a worker ask whatever it can reach.

Names are resolved when the camera is connected to, every address that a name has is looked at, and what was looked at is what is
connected to: a name that says something else a moment later changes nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from pipeline.cameras import Camera
from pipeline.errors import SourceForbidden, SourceUnreachable
from pipeline.settings import SCHEMES

Network = IPv4Network | IPv6Network
Resolve = Callable[..., Sequence[Any]]

_PORTS: Final = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
# TLS wants the name: its certificate is of the name.
_BY_NAME: Final = ("rtsps", "https")


@dataclass(frozen=True, slots=True)
class Reach:
    """Which addresses may be connected to; every one without networks."""

    schemes: tuple[str, ...] = SCHEMES
    networks: tuple[Network, ...] = ()

    def address(self, camera: Camera, resolve: Resolve = socket.getaddrinfo) -> str:
        """Give the address to open, the host as a number where networks are named and TLS does not want its name.

        Raises SourceForbidden, and SourceUnreachable for a name that nobody knows.
        """
        url = str(camera.path) if camera.path else camera.url.get_secret_value()
        scheme = "file" if camera.path else url.split("://", 1)[0].lower()
        where = f"camera {camera.id} at {camera.address}"
        if scheme not in self.schemes:
            raise SourceForbidden(f"{where}: '{scheme}' is not among DEMOGRAPHICS_INGEST__SCHEMES of this worker")
        if camera.path is not None or not self.networks:
            return url
        parts = urlsplit(url)
        host = parts.hostname or ""
        try:
            found = resolve(host, parts.port or _PORTS[scheme], type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise SourceUnreachable(f"{where}: nobody knows the host's name; check it, and the name server") from None
        numbers = [_number(entry[4][0]) for entry in found]
        if not numbers or (outside := self._outside(numbers)):
            said = str(outside) if numbers else "no address"
            raise SourceForbidden(f"{where}: {said} is not in DEMOGRAPHICS_INGEST__NETWORKS of this worker")
        return url if scheme in _BY_NAME else _at(url, numbers[0])

    def _outside(self, numbers: Iterable[IPv4Address | IPv6Address]) -> IPv4Address | IPv6Address | None:
        return next((number for number in numbers if not any(number in network for network in self.networks)), None)


def _number(text: str) -> IPv4Address | IPv6Address:
    """Read an address; an IPv4 address that is dressed up as IPv6 is what it is."""
    number = ip_address(text.partition("%")[0])
    return (number.ipv4_mapped or number) if isinstance(number, IPv6Address) else number


def _at(url: str, number: IPv4Address | IPv6Address) -> str:
    parts = urlsplit(url)
    login, at, _ = parts.netloc.rpartition("@")
    host = f"[{number}]" if number.version == 6 else str(number)
    port = f":{parts.port}" if parts.port is not None else ""
    return urlunsplit(parts._replace(netloc=f"{login}{at}{host}{port}"))
