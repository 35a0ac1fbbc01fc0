"""The kill switch of a camera: paused, its worker lets go of the stream at once, until somebody lets it go on.

The compacted topic `camera-switches` holds the last word on every camera that was ever switched, and every ingest worker follows
it, whether its cameras come from a file or from the topic `cameras`. Who switched what, when and why is written down in the topic
`audit` besides, for as long as its retention says, and in the log of whoever runs the camera.

A broker that is away changes nothing: what was paused stays so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Annotated, Final, Literal

import msgspec
import structlog
from msgspec import Meta, Struct

from pipeline.bus import AUDIT, PREDICTIONS, SWITCHES, Bus, Record, TopicPartition
from pipeline.cameras import Camera
from pipeline.errors import InvalidMessage, TransportError
from pipeline.messages import CameraStatus, Name, Seconds, decode, headers

log = structlog.get_logger()

LOOK_S: Final = 1.0
FLUSH_S: Final = 20.0

Text = Annotated[str, Meta(min_length=1, max_length=200)]


class Switch(Struct, frozen=True, kw_only=True):
    """One word on one camera, as it lies in both topics, in JSON."""

    camera: Name
    action: Literal["paused", "resumed"]
    at: Seconds
    by: Text
    reason: Text

    @property
    def said(self) -> str:
        """Say it, for the page."""
        when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.at))
        return f"{self.action} by {self.by}, {when}: {self.reason}"


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Switch).decode


def publish(bus: Bus, switch: Switch) -> None:
    """Write a word down, in the topic that workers follow and in that of the audit; durable on return. Raises TransportError."""
    with closing(bus.producer()) as producer:
        for topic in (AUDIT, SWITCHES):  # nothing is switched that is not written down
            producer.send(topic, key=switch.camera.encode(), value=_encode(switch), headers=headers())
            producer.flush(FLUSH_S)


def history(bus: Bus) -> list[Switch]:
    """Give all that was ever switched, as far as the audit still has it, oldest first. Raises TransportError."""
    with closing(bus.reader(AUDIT)) as reader:
        records = [r for owned, span in reader.spans().items() for r in reader.read(owned, span.begin, span.end)]
    found = []
    for record in records:
        try:
            found.append(_decode(record.value))
        except msgspec.MsgspecError:
            log.error("audit_record_unreadable", partition=record.partition, offset=record.offset)  # noqa: TRY400
    return sorted(found, key=lambda switch: switch.at)


def let_go(bus: Bus, switch: Switch, timeout_s: float) -> float | None:
    """Wait until a worker says what it has made of *switch*; gives how long that took, None where nobody says so in time.

    Raises TransportError.
    """
    began = time.monotonic()
    with closing(bus.reader(PREDICTIONS)) as reader:
        at = dict(reader.since(switch.at))
        while time.monotonic() - began < timeout_s:
            for owned, span in reader.spans().items():
                begin = at.get(owned, span.begin)
                if begin >= span.end:
                    continue
                for record in reader.read(owned, begin, span.end):
                    if record.key == switch.camera.encode() and _answers(record.value, record.headers, switch):
                        return time.monotonic() - began
                at[owned] = span.end
            time.sleep(0.1)
    return None


def _answers(value: bytes, record_headers: tuple[tuple[str, bytes], ...], switch: Switch) -> bool:
    try:
        message = decode(value, record_headers)
    except InvalidMessage:
        return False
    if not isinstance(message, CameraStatus) or message.at < switch.at:
        return False
    return (message.state == "paused") == (switch.action == "paused")


class Switches:
    """The last word on every camera, followed. One thread owns it."""

    def __init__(self, bus: Bus) -> None:
        """Read what there is: no camera is begun before it is known whether it is paused. Raises TransportError."""
        self._reader = bus.reader(SWITCHES)
        self._next: dict[TopicPartition, int] = {}
        self._last: dict[str, Switch] = {}
        self._lies: dict[str, tuple[int, float]] = {}  # where it lies, and when the log took it
        self._looked_at = 0.0
        try:
            self._look()
        except BaseException:
            self._reader.close()
            raise

    def changed(self) -> bool:
        """Tell whether there is news; looks once a second at most. A broker that is away has none."""
        if time.monotonic() - self._looked_at < LOOK_S:
            return False
        try:
            return self._look()
        except TransportError as error:
            log.warning("switches_not_read", detail=str(error))
            return False

    def applied(self, cameras: Iterable[Camera]) -> tuple[Camera, ...]:
        """Give *cameras* with those paused that are; what a camera file says of itself stays."""
        return tuple(
            camera.model_copy(update={"paused": last.said})
            if (last := self._last.get(camera.id)) is not None and last.action == "paused"
            else camera
            for camera in cameras
        )

    def _look(self) -> bool:
        self._looked_at = time.monotonic()
        news = False
        for owned, span in self._reader.spans().items():
            begin = self._next.get(owned, span.begin)
            if begin >= span.end:
                continue
            for record in self._reader.read(owned, begin, span.end):
                news |= self._take(record)
            self._next[owned] = span.end
        return news

    def _take(self, record: Record) -> bool:
        try:
            switch = _decode(record.value)
        except msgspec.MsgspecError:
            log.error("switch_unreadable", partition=record.partition, offset=record.offset)  # noqa: TRY400
            return False
        # After partitions were added, older words on a camera lie in another one than newer ones. Within one the order tells:
        # a broker's clock may go back.
        partition, at = self._lies.get(switch.camera, (record.partition, -math.inf))
        if partition != record.partition and record.timestamp < at:
            return False
        self._last[switch.camera], self._lies[switch.camera] = switch, (record.partition, record.timestamp)
        log.warning(
            "camera_switched",
            camera=switch.camera,
            action=switch.action,
            by=switch.by,
            at=switch.at,
            reason=switch.reason,
        )
        return True

    def close(self) -> None:
        """Let go. Never raises."""
        self._reader.close()


def document(switches: Sequence[Switch]) -> list[dict[str, object]]:
    """Give words as documents."""
    return [msgspec.to_builtins(switch) for switch in switches]
