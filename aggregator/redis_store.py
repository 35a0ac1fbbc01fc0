"""The counts in Redis or Valkey: one Lua call per partition and batch moves counts and position together.

Keys, with one hash tag per partition, so that a call touches one slot of a cluster:

    NS:{P}:position          offset:revision
    NS:{P}:tracks            camera|track -> MessagePack of TrackState
    NS:{P}:totals            field (see fields.py) -> visitors, ever
    NS:{P}:clocks            camera -> MessagePack of CameraClock
    NS:{P}:cameras           camera -> MessagePack of CameraStatus
    NS:{P}:b:SECONDS:START   field -> visitors; expires
    NS:{P}:m:SECONDS:START   its mark: a word that the step which changed it last made up; expires with it
    NS:partitions            set of every P that was ever loaded: numbers, which stay
    NS:told                  aggregator -> MessagePack of when it said how it does, and what

Buckets expire with the longest window that reads them; the other keys of a partition when nothing was applied to it for as
long as `Keep` says. The position goes with the totals, at the same moment: without it, they would be counted again from the log.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar
from uuid import uuid4

import msgspec
import redis
import structlog
from redis.cluster import RedisCluster

from aggregator.fields import bucket_deltas, passages, tallies, total_deltas
from aggregator.known_buckets import KnownBuckets
from aggregator.redis_client import connect
from aggregator.store import (
    TOLD_S,
    Bucket,
    CameraClock,
    Changes,
    Dump,
    PartitionState,
    Place,
    Position,
    Snapshot,
    Tally,
    TrackKey,
    TrackState,
)
from aggregator.windows import Retention, RollingWindow, retentions
from pipeline.attributes import ATTRIBUTES, Attribute
from pipeline.errors import ConfigError, TransportError
from pipeline.messages import CameraStatus
from pipeline.redaction import redact
from pipeline.settings import Settings
from pipeline.tls import certificate_fault

log = structlog.get_logger()

T = TypeVar("T")

_encode: Final = msgspec.msgpack.Encoder().encode
_decode_track: Final = msgspec.msgpack.Decoder(TrackState).decode
_decode_clock: Final = msgspec.msgpack.Decoder(CameraClock).decode
_decode_camera: Final = msgspec.msgpack.Decoder(CameraStatus).decode
_decode_told: Final = msgspec.msgpack.Decoder(tuple[float, dict[str, Any]]).decode

_FORGOTTEN_S: Final = 600.0


class _Client(NamedTuple):
    """A connection and the scripts on it."""

    redis: Any
    apply: Any
    changed: Any

    @property
    def in_cluster(self) -> bool:
        """Tell whether keys are spread over servers."""
        return isinstance(self.redis, RedisCluster)


class Keep(NamedTuple):
    """How many seconds the keys of a partition stay to which nothing is applied any more."""

    tracks_s: int = 8 * 86400  # tracks, clocks, the cameras' last words
    totals_s: int = 400 * 86400  # totals, and the position that they are of


class RedisStore:
    """Counts in a Redis or Valkey server. Safe to use from several threads."""

    def __init__(
        self,
        url: str,
        retentions: Iterable[Retention],
        *,
        namespace: str = "demographics",
        timeout_s: float = 5.0,
        ca_file: Path | None = None,
        keep: Keep | None = None,
        attributes: Collection[Attribute] = ATTRIBUTES,
    ) -> None:
        """Set up; nothing is asked of the server yet. Raises ConfigError for an address that is none.

        What was kept of ethnicity is deleted where it is not among *attributes*.
        """
        self._gone_after = keep or Keep()
        self._attributes = frozenset(attributes)
        self._retentions = tuple(retentions)
        self._keep = {retention.bucket_s: retention for retention in self._retentions}
        self._namespace = namespace
        self._listed: set[int] = set()
        self._address = redact(url)
        self._url = url
        self._ca_file = ca_file
        self._timeout_s = timeout_s
        self._connected: _Client | None = None
        self._connecting = threading.Lock()
        self._known = KnownBuckets()
        self._reading = threading.Lock()  # one reader at a time brings it up to date
        if not url.partition("://")[0].endswith("+cluster"):  # a cluster has to be there to be known
            with self._talking():
                self._client()

    def _client(self) -> _Client:
        with self._connecting:
            if self._connected is None:
                try:
                    made = connect(self._url, self._timeout_s, self._ca_file)
                except ValueError as error:
                    raise ConfigError(
                        f"DEMOGRAPHICS_REDIS__URL: {redact(str(error))}; write redis://HOST:PORT/DB"
                    ) from None
                scripts = files("aggregator")
                apply, changed = (
                    made.register_script(scripts.joinpath(f"{name}.lua").read_text()) for name in ("apply", "changed")
                )
                self._connected = _Client(made, apply, changed)
            return self._connected

    @property
    def _redis(self) -> Any:
        return self._client().redis

    def ping(self) -> None:
        """Return where the server answers. Raises TransportError."""
        with self._talking():
            self._redis.ping()

    def ask(self, question: Callable[[Any], T]) -> T:
        """Put a *question* to the server's client: how the server is, not what it holds. Raises TransportError."""
        with self._talking():
            return question(self._redis)

    def close(self) -> None:
        """Let go of the connections."""
        if self._connected is not None:
            self._connected.redis.close()

    def load(self, partition: int) -> PartitionState:
        """Give what is held of *partition*, at one moment."""
        with self._talking():
            self._redis.sadd(f"{self._namespace}:partitions", partition)
            self._listed.add(partition)
            if "ethnicity" not in self._attributes:
                self._forget_ethnicity(self._key(partition, "totals"))
            reading = self._redis.pipeline(transaction=True)
            reading.get(self._key(partition, "position"))
            reading.hgetall(self._key(partition, "tracks"))
            reading.hgetall(self._key(partition, "clocks"))
            position, tracks, clocks = reading.execute()
        states = (_decode_track(value) for value in tracks.values())
        return PartitionState(
            _parse(position),
            {(state.camera_id, state.track_id): state for state in states},
            {camera.decode(): _decode_clock(value) for camera, value in clocks.items()},
        )

    def positions(self, partitions: Iterable[int]) -> Mapping[int, Position | None]:
        """Say how far each of *partitions* has been applied."""
        wanted = tuple(partitions)
        with self._talking():
            reading = self._redis.pipeline(transaction=False)
            for partition in wanted:
                reading.get(self._key(partition, "position"))
            return dict(zip(wanted, map(_parse, reading.execute()), strict=True))

    def apply(self, partition: int, changes: Changes, *, start: Position | None, end: Position) -> bool:
        """Apply *changes* and move the position from *start* to *end*, both or neither."""
        buckets = bucket_deltas(changes, self._retentions)
        keys = [self._key(partition, name) for name in ("position", "tracks", "totals", "cameras", "clocks")]
        keys += self._marked(partition, buckets)
        kept = {_field(key): state for key, state in changes.tracks.items() if state is not None}
        forgotten = [_field(key) for key, state in changes.tracks.items() if state is None]
        arguments: list[Any] = [_text(start), _text(end), *self._gone_after, uuid4().hex, len(kept)]
        for field, state in kept.items():
            arguments += (field, _encode(state))
        arguments += (len(forgotten), *forgotten)
        arguments += _counts(total_deltas(changes))
        for said in (changes.cameras, changes.clocks):
            arguments.append(len(said))
            for camera, value in said.items():
                arguments += (camera, _encode(value))
        for bucket, counts in buckets.items():
            arguments += (self._keep[bucket.bucket_s].expires(bucket.start), *_counts(counts))
        with self._talking():
            if partition not in self._listed:  # in another slot than the counts, so not part of the step
                self._redis.sadd(f"{self._namespace}:partitions", partition)
                self._listed.add(partition)
            return bool(self._client().apply(keys=keys, args=arguments))

    def snapshot(self, now: float, windows: Iterable[RollingWindow]) -> Snapshot:
        """Read every count at *now*, in one round trip; of the buckets those that changed since the last time."""
        windows = tuple(windows)
        with self._reading:
            partitions, (kept, statuses) = self._refresh(now, windows, "totals", "cameras")
            sums = {window.name: self._known.total(partitions, [*_buckets(window, now)]) for window in windows}
        totals: Counter[str] = Counter()
        for counts in kept:
            totals.update({field.decode(): int(amount) for field, amount in counts.items()})
        cameras: dict[str, CameraStatus] = {}
        for value in (value for said in statuses for value in said.values()):
            status = _decode_camera(value)
            if status.camera_id not in cameras or cameras[status.camera_id].at < status.at:
                cameras[status.camera_id] = status
        return Snapshot(
            {name: tallies(total) for name, total in sums.items()}, tallies(totals), cameras, passages(totals)
        )

    def series(self, now: float, window: RollingWindow) -> list[tuple[int, Mapping[Place, Tally]]]:
        """Read one window bucket by bucket, oldest first."""
        with self._reading:
            partitions, _ = self._refresh(now, (window,))
            sums = [(bucket.start, self._known.total(partitions, [bucket])) for bucket in _buckets(window, now)]
        return [(start, tallies(total)) for start, total in sums]

    def _refresh(
        self, now: float, windows: tuple[RollingWindow, ...], *names: str
    ) -> tuple[list[int], list[list[Mapping[bytes, bytes]]]]:
        """Bring what is known of the buckets of *windows* up to date; gives the partitions, and each one's hashes *names*."""
        buckets = sorted({bucket for window in windows for bucket in _buckets(window, now)})
        with self._talking():
            partitions = sorted(int(number) for number in self._redis.smembers(f"{self._namespace}:partitions"))
            client, answers = self._client(), list[Any]()
            # A script cannot be part of a cluster's pipeline: there, each partition is a round trip to its own node.
            reading = client.redis if client.in_cluster else client.redis.pipeline(transaction=False)
            for partition in partitions:
                answers += [reading.hgetall(self._key(partition, name)) for name in names]
                keys = self._marked(partition, buckets)
                marks = self._known.marks(partition, buckets, now)
                answers.append(client.changed(keys=keys, args=marks, client=reading))
            if not client.in_cluster:
                answers = reading.execute()
        each = len(names) + 1
        for partition, answer in zip(partitions, answers[len(names) :: each], strict=True):
            self._known.learn(partition, buckets, answer, now)
        self._known.forget({kept.bucket_s: now - kept.keep_s for kept in self._retentions})
        return partitions, [answers[place::each] for place in range(len(names))]

    def dump(self, partition: int, now: float) -> Dump:
        """Read every count of *partition*, at one moment."""
        buckets = [Bucket(kept.bucket_s, start) for kept in self._retentions for start in kept.starts(now)]
        with self._talking():
            reading = self._redis.pipeline(transaction=True)
            reading.get(self._key(partition, "position"))
            reading.hgetall(self._key(partition, "totals"))
            for bucket in buckets:
                reading.hgetall(self._bucket(partition, bucket))
            position, totals, *kept = reading.execute()
        read = {bucket: _nonzero(counts) for bucket, counts in zip(buckets, kept, strict=True)}
        return Dump(_parse(position), _nonzero(totals), {bucket: counts for bucket, counts in read.items() if counts})

    def _forget_ethnicity(self, totals: str) -> None:
        """Delete what the totals hold of it from before it was switched off; the buckets expire by themselves."""
        if fields := [field for field, _ in self._redis.hscan_iter(totals, match="e|*", count=1000)]:
            self._redis.hdel(totals, *fields)
            log.info("ethnicity_forgotten", totals=totals, fields=len(fields))

    def tell(self, who: str, said: Mapping[str, Any], now: float) -> None:
        """Keep what an aggregator says of itself; what others said long ago is dropped, since their names do not come back."""
        with self._talking():
            old = [name for name, (at, _) in self._all_told().items() if name != who and now - at > _FORGOTTEN_S]
            writing = self._redis.pipeline(transaction=False)
            writing.hset(self._told_key, who, _encode((now, said)))
            if old:
                writing.hdel(self._told_key, *old)
            writing.expire(self._told_key, round(_FORGOTTEN_S))
            writing.execute()

    def told(self, now: float) -> Mapping[str, Mapping[str, Any]]:
        """Give what was told lately."""
        with self._talking():
            return {who: said for who, (at, said) in sorted(self._all_told().items()) if now - at <= TOLD_S}

    def _all_told(self) -> dict[str, tuple[float, dict[str, Any]]]:
        return {who.decode(): _decode_told(said) for who, said in self._redis.hgetall(self._told_key).items()}

    @property
    def _told_key(self) -> str:
        return f"{self._namespace}:told"

    def drop(self) -> None:
        """Delete everything in this namespace."""
        with self._talking():
            for key in self._redis.scan_iter(f"{self._namespace}:*", count=1000):
                self._redis.delete(key)

    def _key(self, partition: int, name: str) -> str:
        return f"{self._namespace}:{{{partition}}}:{name}"

    def _bucket(self, partition: int, bucket: Bucket, kind: str = "b") -> str:
        return self._key(partition, f"{kind}:{bucket.bucket_s}:{bucket.start}")

    def _marked(self, partition: int, buckets: Iterable[Bucket]) -> list[str]:
        """Give the keys of *buckets*, each followed by that of its mark."""
        return [self._bucket(partition, bucket, kind) for bucket in buckets for kind in "bm"]

    @contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except redis.exceptions.AuthenticationError:
            raise TransportError(
                f"Redis at {self._address} refuses the user name or password; correct DEMOGRAPHICS_REDIS__URL"
            ) from None
        except redis.exceptions.NoPermissionError as error:
            raise TransportError(
                f"Redis at {self._address} does not let this user do that ({redact(str(error))[:200]}); "
                "give it the rights of deploy/security/redis-users.acl"
            ) from None
        except (redis.exceptions.RedisError, redis.exceptions.RedisClusterException, OSError) as error:
            if untrusted := certificate_fault(error):
                raise TransportError(
                    f"Redis at {self._address} shows a certificate that is not trusted ({untrusted}); "
                    "name its authority in DEMOGRAPHICS_REDIS__CA_FILE, and the host as the certificate does"
                ) from None
            raise TransportError(
                f"Redis at {self._address} does not answer ({type(error).__name__}: {redact(str(error))[:200]}); "
                "check that it runs and that DEMOGRAPHICS_REDIS__URL is right, rediss:// where it speaks TLS"
            ) from None


def open_store(settings: Settings, windows: Iterable[RollingWindow], *, url: str | None = None) -> RedisStore:
    """Make the store of the settings, or the same on another server. Raises ConfigError."""
    own = settings.redis
    return RedisStore(
        url or own.url.get_secret_value(),
        retentions(windows),
        namespace=own.namespace,
        ca_file=own.ca_file,
        keep=Keep(int(own.tracks_retention_s), int(own.totals_retention_s)),
        attributes=settings.attributes,
    )


def _buckets(window: RollingWindow, now: float) -> Iterator[Bucket]:
    """List a window's buckets at *now*, oldest first."""
    return (Bucket(window.bucket_s, start) for start in window.buckets(now))


def _counts(counts: Mapping[str, int]) -> list[Any]:
    arguments: list[Any] = [len(counts)]
    for field, amount in counts.items():
        arguments += (field, amount)
    return arguments


def _nonzero(counts: Mapping[bytes, bytes]) -> dict[str, int]:
    return {field.decode(): int(amount) for field, amount in counts.items() if int(amount)}


def _field(key: TrackKey) -> str:
    return f"{key[0]}|{key[1]}"


def _text(position: Position | None) -> str:
    return "" if position is None else f"{position.offset}:{position.revision}"


def _parse(position: bytes | None) -> Position | None:
    if not position:
        return None
    offset, revision = position.split(b":")
    return Position(int(offset), int(revision))
