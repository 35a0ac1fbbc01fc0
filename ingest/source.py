"""The source port: where frames come from, and the rule that the newest one wins."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from ingest.detector import Image
from pipeline.errors import PipelineError, SourceStalled, SourceTooFast

_TICK_S: Final = 0.2
_FLOOD_S: Final = 2.0  # a flood is one when it lasts
_GRACE_S: Final = 3.0  # a recorder sends what it has kept, at first
OPEN_GRACE_S: Final = 2.0  # FFmpeg's own time-out is to come first: it knows what for


@dataclass(frozen=True)
class Frame:
    """One decoded picture. Its pixels are converted when asked for: most frames are only passed by."""

    captured_at: float  # seconds since the epoch, UTC
    image: Callable[[], Image]
    luma: Callable[[], NDArray[np.uint8] | None] = lambda: None
    """Brightness (height, width) without any conversion, where the picture has it so; None where not."""
    corrupt: bool = False
    """True where the decoder says itself that it could not make sense of everything."""
    key: bool = False
    """True where the picture stands by itself, and a stream can be joined."""
    timed: bool = True
    """False where the stream has no clock, and `captured_at` is when it arrived."""


class Source(Protocol):
    """One connection to a camera, or one reading of a file."""

    live: bool
    """True where frames come at their own pace and waiting loses them; False where they wait for the reader."""

    def frames(self) -> Iterator[Frame]:
        """Give every frame in order; ends with a file. Raises SourceLost where the connection breaks."""

    def close(self) -> None:
        """Let go of the connection; ends `frames`. Never raises."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a live camera may take, and how much it may send."""

    open_s: float = 10.0
    stall_s: float = 5.0
    max_fps: float = 120.0


class NewestWins:
    """Opens and reads a live source on a thread of its own, watches it from outside, and hands over the newest frame.

    A slow consumer thus sees the present, however slow it is, and memory holds one frame; older ones are dropped and counted.
    What a library does in that thread may hang for ever, whatever its time-outs say (opencv#22677): then the consumer is told,
    and the thread is left behind; it lets go of its connection whenever it comes back.
    """

    def __init__(
        self,
        connect: Callable[[], Source],
        *,
        on_frame: Callable[[], None],
        on_drop: Callable[[], None],
        patience: Patience | None = None,
        stopped: Callable[[], bool] = lambda: False,
        name: str = "source",
    ) -> None:
        """Set up; nothing is opened yet. *stopped* is asked now and then, and ends everything."""
        self._connect = connect
        self._on_frame = on_frame
        self._on_drop = on_drop
        self._patience = patience or Patience()
        self._stopped = stopped
        self._changed = threading.Condition()
        self._source: Source | None = None
        self._newest: Frame | None = None
        self._over = False  # for the reader: nobody wants any more
        self._ended = False  # for the consumer: nothing more comes
        self._error: BaseException | None = None
        self._arrived = 0.0  # when the last picture did, or the connection was made; monotonic
        self.thread = threading.Thread(target=self._read, name=name, daemon=True)

    def open(self) -> None:
        """Connect. Raises what the source raises, and SourceStalled where not even its time-out comes."""
        self.thread.start()
        deadline = time.monotonic() + self._patience.open_s + OPEN_GRACE_S
        with self._changed:
            while self._source is None and not self._ended and not self._stopped():
                if time.monotonic() > deadline:
                    self._over = True
                    raise SourceStalled(
                        f"connecting hangs, for {self._patience.open_s + OPEN_GRACE_S:.0f} s now; it will be tried again"
                    )
                self._changed.wait(_TICK_S)
        if self._source is None:
            self._raise()

    def frames(self) -> Iterator[Frame]:
        """Give the newest frame, again and again, until the source ends. Raises what it raised, SourceStalled, SourceTooFast."""
        if self.thread.ident is None:
            self.open()
        stall_s = self._patience.stall_s
        try:
            while True:
                with self._changed:
                    while self._newest is None and not self._ended:
                        if self._stopped():
                            return
                        if time.monotonic() - self._arrived > stall_s:
                            raise SourceStalled(
                                f"no picture for {stall_s:g} s though the connection is open; connecting anew"
                            )
                        self._changed.wait(_TICK_S)
                    frame, self._newest = self._newest, None
                if frame is None:
                    break
                yield frame
        finally:
            self.close()
            self._newest = None
        self._raise()

    def close(self) -> None:
        """Tell the reader that it is over, and let go of the connection as soon as it can. Never raises, never waits."""
        with self._changed:
            self._over = True
            source = self._source
        if source is not None:
            source.close()

    def _raise(self) -> None:
        """Raise what the reader met, once, and keep nothing of it.

        An error holds the frames of the stack, and those hold this reader: a circle around decoded pictures and the decoder,
        which would stay in memory until the garbage collector comes by.
        """
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error.with_traceback(None) if isinstance(error, PipelineError) else error
        finally:
            del error

    def _read(self) -> None:
        try:
            source = self._connect()
            with self._changed:
                self._source, self._arrived = source, time.monotonic()
                over = self._over
                self._changed.notify()
            try:
                if not over:
                    self._take_all(source)
            finally:
                source.close()
                del source
        except BaseException as error:  # noqa: BLE001  handed to the consumer's thread, which raises it
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()

    def _take_all(self, source: Source) -> None:
        most = max(2, int(self._patience.max_fps * _FLOOD_S))
        times: deque[float] = deque(maxlen=most)
        began = time.monotonic()
        for frame in source.frames():
            self._on_frame()
            now = time.monotonic()
            times.append(now)
            if len(times) == most and now - times[0] < _FLOOD_S and now - began > _GRACE_S:
                raise SourceTooFast(
                    f"more than {self._patience.max_fps:g} frames a second; a camera that counts on that is out of order: "
                    "connecting anew"
                )
            with self._changed:
                if self._over:
                    return
                if self._newest is not None:
                    self._on_drop()
                self._newest, self._arrived = frame, now
                self._changed.notify()
