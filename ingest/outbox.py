"""What one camera has to say, in order, until the bus has acknowledged it.

Sent is not arrived: what the bus has not acknowledged by the next flush is sent again. That repeats records at worst, and
repeats are told by their identity (camera, track, sequence). Where the bus takes nothing, the oldest face crops give way; the
ends of tracks are kept, so that nobody is lost.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from pipeline.bus import Producer
from pipeline.errors import TransportError
from pipeline.messages import CameraStatus, FaceCrop, TrackEnded, encode, headers

LONGEST: Final = 512  # messages of one live camera that wait
FLUSH_EVERY: Final = 32  # messages
FLUSH_INTERVAL_S: Final = 0.5
FLUSH_TIMEOUT_S: Final = 2.0

Item = tuple[str, FaceCrop | TrackEnded | CameraStatus]


class SharedProducer:
    """One producer for all cameras of a worker. A failed flush concerns all of them, whoever it was that flushed."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self._lock = threading.Lock()
        self.failures = 0  # flushes that failed, ever

    def send(self, topic: str, *, key: bytes, value: bytes) -> None:
        """Hand over one record. Raises TransportError when the bus takes no more."""
        self._producer.send(topic, key=key, value=value, headers=headers(value))

    def flush(self, timeout_s: float) -> None:
        """Return once everything sent has been acknowledged. Raises TransportError when something was not."""
        try:
            self._producer.flush(timeout_s)
        except TransportError:
            with self._lock:
                self.failures += 1
            raise

    def close(self) -> None:
        """Let go. Never raises."""
        self._producer.close()


class Outbox:
    """One camera's messages on their way. One thread owns it."""

    def __init__(self, producer: SharedProducer, *, patient: bool, on_drop: Callable[[], None]) -> None:
        """Set up; *patient* never drops, it waits (for files, which wait too)."""
        self._producer = producer
        self._patient = patient
        self._on_drop = on_drop
        self._waiting: deque[Item] = deque()
        self._sent: deque[Item] = deque()  # and not acknowledged
        self._failures = producer.failures
        self._flush_due = 0.0

    def __len__(self) -> int:
        """Count what is not acknowledged."""
        return len(self._waiting) + len(self._sent)

    def post(self, topic: str, message: FaceCrop | TrackEnded | CameraStatus) -> None:
        """Put a message at the end. A status replaces the one before, so that none piles up before the ends of tracks."""
        if isinstance(message, CameraStatus):
            self._waiting = deque(item for item in self._waiting if not isinstance(item[1], CameraStatus))
        self._waiting.append((topic, message))
        while len(self) > LONGEST and self._waiting and not self._patient:
            victim = next((item for item in self._waiting if isinstance(item[1], FaceCrop)), self._waiting[0])
            self._waiting.remove(victim)
            self._on_drop()

    def deliver(self, *, last: bool = False) -> None:
        """Hand over what waits, in order, and now and then, or for the *last* time, see that it has arrived.

        Raises TransportError when the bus takes no more, or has lost something; all that has not arrived is kept.
        """
        while self._waiting:
            topic, message = self._waiting[0]
            # Refused here, what was sent before stays sent: a bus that takes a little at a time would else never get past it.
            self._producer.send(topic, key=message.camera_id.encode(), value=encode(message))
            self._sent.append(self._waiting.popleft())
            if len(self._sent) >= FLUSH_EVERY:
                self._see_it_arrive()
        if self._sent and (last or time.monotonic() >= self._flush_due):
            self._see_it_arrive()

    def _see_it_arrive(self) -> None:
        self._flush_due = time.monotonic() + FLUSH_INTERVAL_S
        try:
            self._producer.flush(FLUSH_TIMEOUT_S)
            if self._producer.failures != self._failures:
                raise TransportError("the bus lost records of this worker's cameras; they are sent again")  # noqa: TRY301
        except TransportError:
            self._failures = self._producer.failures
            self._waiting.extendleft(reversed(self._sent))
            self._sent.clear()
            raise
        self._sent.clear()
