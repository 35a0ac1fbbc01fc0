"""How Redis or Valkey is: version, role, memory, persistence, clock. Only looks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from aggregator.redis_store import RedisStore
from aggregator.service import windows_of
from aggregator.windows import retentions
from pipeline.errors import PipelineError, TransportError
from pipeline.findings import FULL_RATIO, Away, Finding, State, clock_finding, in_bytes
from pipeline.redaction import redact
from pipeline.settings import Settings

OLDEST: Final = (6, 2)


class RedisFindings:
    """Looks at Redis or Valkey."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._opened: RedisStore | None = None
        self._away = False

    @property
    def _store(self) -> RedisStore:
        """A store that answers. Raises ConfigError or TransportError the first time, then Away."""
        if self._away:
            raise Away("Redis does not answer")
        if self._opened is None:
            try:
                url, kept = self._settings.redis.url.get_secret_value(), retentions(windows_of(self._settings))
                self._opened = RedisStore(url, kept, namespace=self._settings.redis.namespace)
                self._opened.ping()
            except PipelineError:
                self._away = True
                raise
        return self._opened

    def close(self) -> None:
        """Let go."""
        if self._opened is not None:
            self._opened.close()

    def look(self) -> Iterator[Finding]:
        """How the server is."""
        made = self._store
        try:
            info = made.ask(lambda client: _flat(client.info()))
        except TransportError as error:
            yield Finding(
                "redis",
                State.WARNING,
                f"answers, but does not tell how it is ({error})",
                "let this user run INFO and TIME (ACL SETUSER ... +info +time), or ask as another",
            )
            return
        yield from redis_findings(info, redact(self._settings.redis.url.get_secret_value()))

    def clock(self) -> Iterator[Finding]:
        """How far its clock is from ours."""
        store = self._store
        before = time.time()
        seconds, microseconds = store.ask(lambda client: client.time())
        yield clock_finding("Redis", seconds + microseconds / 1e6 - (before + time.time()) / 2, known_behind=True)


def _flat(info: Mapping[str, Any]) -> Mapping[str, Any]:
    """Take the first node's answer of a cluster's."""
    first = next(iter(info.values()), None)
    return first if isinstance(first, dict) and "redis_version" in first else info


def redis_findings(info: Mapping[str, Any], address: str) -> Iterator[Finding]:
    """Judge what INFO says."""
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version") or info["redis_version"])
    spoken = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
    yield Finding("redis", State.OK, f"{name} {version} answers at {address}")
    if spoken < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        yield Finding(
            "redis", State.FAILED, f"version {version} is older than {oldest}", f"upgrade it to {oldest} or newer"
        )
    if info.get("role", "master") != "master":
        yield Finding(
            "redis",
            State.FAILED,
            "this is a replica: it takes no counts",
            "name its master, or the sentinels, in DEMOGRAPHICS_REDIS__URL",
        )
    if info.get("loading"):
        yield Finding("redis", State.WARNING, "it is still loading its data", "wait, and ask again")
    yield from _redis_memory(info)
    yield from _redis_persistence(info)


def _redis_memory(info: Mapping[str, Any]) -> Iterator[Finding]:
    used, most, policy = (
        int(info.get("used_memory", 0)),
        int(info.get("maxmemory", 0)),
        str(info.get("maxmemory_policy", "")),
    )
    if policy and policy != "noeviction":
        yield Finding(
            "redis",
            State.FAILED if most else State.WARNING,
            f"maxmemory-policy is {policy}: when memory is short, it throws counts away",
            "CONFIG SET maxmemory-policy noeviction, in its configuration file, too",
        )
    if most and used > FULL_RATIO * most:
        yield Finding(
            "redis",
            State.WARNING,
            f"{in_bytes(used)} of {in_bytes(most)} used; when it is full, counting waits",
            "raise maxmemory (REDIS_MAXMEMORY in .env); docs/operations.md says how much is needed",
        )
    elif used:
        yield Finding(
            "redis", State.OK, f"{in_bytes(used)} used, of {in_bytes(most) if most else 'no limit'}; {policy}"
        )


def _redis_persistence(info: Mapping[str, Any]) -> Iterator[Finding]:
    for field, what in (("aof_last_write_status", "log"), ("rdb_last_bgsave_status", "snapshot")):
        if info.get(field, "ok") != "ok":
            yield Finding(
                "redis",
                State.FAILED,
                f"its last {what} could not be written",
                "see its log; most often the disk is full",
            )
    if info.get("aof_enabled"):
        yield Finding("redis", State.OK, "it writes a log (appendonly): a restart keeps the counts")
    else:
        yield Finding(
            "redis",
            State.WARNING,
            "it writes no log (appendonly no): after a restart, counts are those of its last snapshot, filled up from Kafka"
            " as far back as predictions are kept; older totals are lost",
            "CONFIG SET appendonly yes, in its configuration file, too",
        )
