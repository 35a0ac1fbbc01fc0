"""The cameras of the distributed system: the compacted topic `cameras`, one record for each, keyed by its id.

The workers are a consumer group on it, so that Kafka shares the cameras among them: the partition's owner runs its cameras. A
record is the camera's entry as in cameras.yaml, in JSON, with its secrets as ${NAME}: they are filled in where the camera
is run, and are never in the topic. An empty record removes the camera.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from time import monotonic
from typing import Any, Final
from uuid import uuid4

import msgspec
import structlog

from pipeline.bus import CAMERAS, Bus, Record, TopicPartition
from pipeline.cameras import Camera, camera_of, clear_secrets, references, repeated_ids
from pipeline.errors import ConfigError, InvalidMessage, TransportError
from pipeline.messages import CHECKSUM_HEADER, headers, verify
from pipeline.redaction import redact

log = structlog.get_logger()

GROUP: Final = "ingest"
PATIENCE_S: Final = 20.0
_QUIET_S: Final = 1.0

Entry = dict[str, Any]
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode


def checked_entries(entries: Iterable[Mapping[str, Any]], source: str) -> list[Entry]:
    """See that *entries* are cameras and hold no secret in clear. Raises ConfigError that lists every problem."""
    problems: list[str] = []
    good: list[Entry] = []
    for number, entry in enumerate(entries, start=1):
        where = f"{source}: camera {number} ({entry.get('id', 'no id')})"
        problems += [f"{where}: {problem}" for problem in clear_secrets(entry)]
        try:
            # Secrets are set where the camera is run, not here: any word does to see whether the rest is right.
            camera_of(entry, where, dict.fromkeys(references(entry), "x"))
        except ConfigError as error:
            problems += error.problems
        good.append({str(key): value for key, value in entry.items()})
    problems += repeated_ids((str(entry.get("id")) for entry in good), source)
    if problems:
        raise ConfigError(problems)
    return good


def shown(entry: Entry) -> Entry:
    """Give an entry as it may be shown: references are, a secret that somebody wrote out all the same is not."""
    return {**entry, "url": redact(str(entry.get("url"))), "options": {}} if clear_secrets(entry) else entry


def publish(bus: Bus, entries: Sequence[Entry], *, remove: Iterable[str] = ()) -> None:
    """Write cameras, and remove others by id; returns once all of it is acknowledged. Raises TransportError."""
    with closing(bus.producer()) as producer:
        for entry in entries:
            value = _encode(entry)
            producer.send(CAMERAS, key=str(entry["id"]).encode(), value=value, headers=headers(value))
        for name in remove:
            producer.send(CAMERAS, key=name.encode(), value=b"", headers=headers())
        producer.flush(PATIENCE_S)


def read_all(bus: Bus) -> dict[str, Entry]:
    """Read every camera that is in the topic, by id. Raises TransportError."""
    found: dict[str, Entry] = {}
    with closing(bus.consumer(CAMERAS, group=f"cameras-{uuid4().hex[:12]}", start_at=lambda _: 0)) as consumer:
        deadline, heard = monotonic() + PATIENCE_S, monotonic()
        while True:
            records = consumer.poll(0.2, 1000)
            for record in records:
                _take(found, record)
            now = monotonic()
            owned, lag = consumer.assignment(), consumer.lag()
            if records or not owned or any(lag.get(one, 1) for one in owned):
                heard = now
            if now - heard > _QUIET_S:
                return dict(sorted(found.items()))
            if now > deadline:
                raise TransportError(f"the topic {CAMERAS} could not be read to its end within {PATIENCE_S:g} s")


def _take(entries: dict[str, Entry], record: Record) -> None:
    name = record.key.decode("utf-8", "replace")
    if not record.value:
        entries.pop(name, None)
        return
    try:
        verify(record.value, dict(record.headers).get(CHECKSUM_HEADER))
        entries[name] = {**_decode(record.value), "id": name}
    except (InvalidMessage, msgspec.DecodeError):
        log.error("camera_record_unreadable", camera=redact(name), partition=record.partition, offset=record.offset)  # noqa: TRY400


class TopicCameras:
    """This worker's share of the cameras. One thread owns it."""

    def __init__(self, bus: Bus, *, member: str | None = None, environment: Mapping[str, str] | None = None) -> None:
        """Join the workers. Raises TransportError."""
        self._environment = os.environ if environment is None else environment
        self._entries: dict[int, dict[str, Entry]] = {}  # by partition
        self._reading: set[int] = set()  # partitions whose records have not all been read yet
        self._cameras: tuple[Camera, ...] = ()
        self._problems: tuple[str, ...] = ()
        self._consumer = bus.consumer(CAMERAS, group=GROUP, member=member, start_at=self._begin)

    def _begin(self, partition: TopicPartition) -> int:
        self._entries[partition.partition] = {}
        self._reading.add(partition.partition)
        return 0

    def changed(self, timeout_s: float = 0.5) -> tuple[Camera, ...] | None:
        """Wait for news, *timeout_s* at most; gives this worker's cameras where they are others than before, else None.

        Partitions whose records are still being read have no say yet: what is removed further on must not be started.
        Raises TransportError.
        """
        records = self._consumer.poll(timeout_s, 1000)
        for record in records:
            _take(self._entries.setdefault(record.partition, {}), record)
        owned = {one.partition for one in self._consumer.assignment()}
        for gone in self._entries.keys() - owned:
            del self._entries[gone]
        lag = self._consumer.lag()
        busy = {record.partition for record in records}
        self._reading = {
            number for number in self._reading & owned if number in busy or lag.get(TopicPartition(CAMERAS, number), 1)
        }
        return self._compare(owned - self._reading)

    def problems(self) -> list[str]:
        """Say which cameras cannot be run here, and why."""
        return list(self._problems)

    def close(self) -> None:
        """Leave the others to it. Never raises."""
        self._consumer.close()

    def _compare(self, settled: set[int]) -> tuple[Camera, ...] | None:
        entries = sorted(
            (item for number in settled for item in self._entries.get(number, {}).items()), key=lambda item: item[0]
        )
        cameras: list[Camera] = []
        problems: list[str] = []
        for name, entry in entries:
            try:
                cameras.append(camera_of(entry, f"topic {CAMERAS}: camera {name}", self._environment))
            except ConfigError as error:
                problems += error.problems
        if tuple(problems) != self._problems:
            self._problems = tuple(problems)
            if problems:
                log.error("cameras_refused", problems=problems)
        if tuple(cameras) == self._cameras:
            return None
        self._cameras = tuple(cameras)
        return self._cameras
