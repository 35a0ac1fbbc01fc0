"""The ways to a Redis or Valkey: one server, a Unix socket, a master that sentinels name, or a cluster; all by one address.

    redis://user:password@host:6379/0                               rediss:// with TLS
    unix:///run/valkey/valkey.sock
    redis+sentinel://user:password@host1:26379,host2:26379/mymaster/0     rediss+sentinel:// with TLS to the master
    redis+cluster://user:password@host1:6379,host2:6379             rediss+cluster:// with TLS

User and password are the counting servers'; sentinels that want one get `?sentinel_password=...`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.retry import Retry
from redis.sentinel import Sentinel

SENTINEL_PORT: Final = 26379
REDIS_PORT: Final = 6379
SCHEMES: Final = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")


def connect(url: str, timeout_s: float, ca_file: Path | None = None) -> Any:
    """Make a client; nothing is asked of a server yet, except of a cluster, which has to be there to be known.

    With TLS, the server's certificate must be of an authority in *ca_file*, else of one that the system knows.
    Raises ValueError for an address that is none, with what to write; redis' own errors where a cluster does not answer.
    """
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES:
        raise ValueError(
            f"no address begins with {scheme[:20]}://; write redis://HOST:PORT/DB or {SCHEMES[3]}:// or {SCHEMES[5]}://"
        )
    common: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(ExponentialBackoff(cap=0.5, base=0.05), 2),
    }
    if ca_file is not None and scheme.startswith("rediss"):
        common["ssl_ca_certs"] = str(ca_file)
    kind = scheme.partition("+")[2]
    if not kind:
        return redis.Redis.from_url(url, health_check_interval=30, **common)
    parts = urlsplit(url)
    if scheme.startswith("rediss"):
        common["ssl"] = True
    if parts.username:
        common["username"] = unquote(parts.username)
    if parts.password:
        common["password"] = unquote(parts.password)
    hosts = _hosts(parts.netloc, SENTINEL_PORT if kind == "sentinel" else REDIS_PORT)
    if kind == "cluster":
        return RedisCluster(startup_nodes=[ClusterNode(host, port) for host, port in hosts], **common)  # type: ignore[no-untyped-call]  # redis-py is typed in part
    service, _, database = parts.path.strip("/").partition("/")
    if not service or not (database or "0").isdecimal():
        raise ValueError("name the master after the sentinels: redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB")
    own = {name.removeprefix("sentinel_"): values[-1] for name, values in parse_qs(parts.query).items()}
    sentinel = Sentinel(  # type: ignore[no-untyped-call]  # redis-py is typed in part
        hosts, sentinel_kwargs={"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, **own}
    )
    return sentinel.master_for(service, db=int(database or 0), health_check_interval=30, **common)  # type: ignore[no-untyped-call]  # redis-py is typed in part


def _hosts(netloc: str, port: int) -> list[tuple[str, int]]:
    """Read host:port,host:port; IPv6 hosts are in brackets."""
    found = []
    for each in netloc.rpartition("@")[2].split(","):
        parts = urlsplit(f"//{each}")
        if not parts.hostname:
            raise ValueError("a host is missing; write HOST:PORT,HOST:PORT")
        found.append((parts.hostname, parts.port or port))
    return found
