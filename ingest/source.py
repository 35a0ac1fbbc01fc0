"""The source port: where frames come from, and the rule that the newest one wins."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from ingest.detector import Image


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded picture. Its pixels are converted when asked for: most frames are only passed by."""

    captured_at: float  # seconds since the epoch, UTC
    image: Callable[[], Image]


class Source(Protocol):
    """One connection to a camera, or one reading of a file."""

    live: bool
    """True where frames come at their own pace and waiting loses them; False where they wait for the reader."""

    def frames(self) -> Iterator[Frame]:
        """Give every frame in order; ends with a file. Raises SourceLost where the connection breaks."""

    def close(self) -> None:
        """Let go of the connection; ends `frames`. Never raises."""


class NewestWins:
    """Reads a live source on a thread of its own and hands over the newest frame; older ones are dropped and counted.

    A slow consumer thus sees the present, however slow it is, and memory holds one frame.
    """

    def __init__(self, source: Source, *, on_frame: Callable[[], None], on_drop: Callable[[], None]) -> None:
        self._source = source
        self._on_frame = on_frame
        self._on_drop = on_drop
        self._changed = threading.Condition()
        self._newest: Frame | None = None
        self._ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._read, name="source", daemon=True)

    def _read(self) -> None:
        try:
            for frame in self._source.frames():
                self._on_frame()
                with self._changed:
                    if self._newest is not None:
                        self._on_drop()
                    self._newest = frame
                    self._changed.notify()
                    if self._ended:
                        return
        except BaseException as error:  # noqa: BLE001  handed to the consumer's thread, which raises it
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()

    def frames(self) -> Iterator[Frame]:
        """Give the newest frame, again and again, until the source ends. Raises what the source raised."""
        self._thread.start()
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._newest is not None or self._ended)
                    frame, self._newest = self._newest, None
                if frame is None:
                    break
                yield frame
        finally:
            with self._changed:
                self._ended = True
        if self._error is not None:
            raise self._error
