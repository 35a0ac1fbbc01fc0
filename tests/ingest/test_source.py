"""The newest frame wins: a slow reader sees the present, and what it missed is counted."""

from __future__ import annotations

import contextlib
import gc
import queue
import threading
import weakref
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.source import Frame, NewestWins
from pipeline.errors import SourceLost
from tests.ingest.conftest import PATIENCE_S, picture
from tests.servers import wait_until


class Feed:
    """A live camera that gives a frame when it is told to; None ends it, an error breaks it."""

    live = True

    def __init__(self) -> None:
        self.told: queue.Queue[int | Exception | None] = queue.Queue()
        self.released = threading.Event()

    def tell(self, *what: int | Exception | None) -> None:
        """Give the frames with these numbers, end or break."""
        for item in what:
            self.told.put(item)

    def frames(self) -> Iterator[Frame]:
        """Give what is told."""
        try:
            while (item := self.told.get(timeout=PATIENCE_S)) is not None:
                if isinstance(item, Exception):
                    raise item
                yield Frame(float(item), picture)
        finally:
            self.released.set()

    def close(self) -> None:
        """End."""
        self.told.put(None)


class Tally:
    """A feed read by NewestWins, with its counts."""

    def __init__(self) -> None:
        self.feed = Feed()
        self.arrived = self.dropped = 0
        self.newest = NewestWins(lambda: self.feed, on_frame=self._arrive, on_drop=self._drop)
        self.frames = self.newest.frames()

    def _arrive(self) -> None:
        self.arrived += 1

    def _drop(self) -> None:
        self.dropped += 1

    def next_number(self) -> int:
        """Take a frame."""
        return int(next(self.frames).captured_at)

    def wait_for_drops(self, count: int) -> None:
        """Wait until so many frames gave way."""
        wait_until(lambda: self.dropped == count, timeout_s=PATIENCE_S, what=f"{count} drops")


def test_a_slow_reader_sees_the_newest_frame_and_the_others_are_counted() -> None:
    """While it was busy with the first, five came: it sees the last of them next."""
    tally = Tally()
    tally.feed.tell(1)
    assert tally.next_number() == 1
    # arrives   2  3  4  5  6 │ the reader comes back
    # dropped   2  3  4  5    │
    tally.feed.tell(2, 3, 4, 5, 6)
    tally.wait_for_drops(4)
    assert tally.next_number() == 6
    tally.feed.tell(7)
    assert tally.next_number() == 7
    assert (tally.arrived, tally.dropped) == (7, 4)
    tally.frames.close()  # type: ignore[attr-defined]  # it is a generator
    tally.feed.close()


def test_a_loss_is_raised_where_frames_are_read_after_the_last_frame() -> None:
    """In the reader's thread, and not before it has seen what there was."""
    tally = Tally()
    tally.feed.tell(1, SourceLost("gone"))
    assert tally.next_number() == 1
    with pytest.raises(SourceLost, match="gone"):
        tally.next_number()


def test_an_error_of_any_kind_reaches_the_reader() -> None:
    """A mistake in the source is no silence."""
    tally = Tally()
    tally.feed.tell(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        tally.next_number()


def test_frames_end_where_the_source_ends() -> None:
    """Without an error, after the last frame."""
    tally = Tally()
    tally.feed.tell(1, None)
    assert [frame.captured_at for frame in tally.frames] == [1.0]


def test_a_source_without_a_frame_just_ends() -> None:
    """Nothing to wait for."""
    tally = Tally()
    tally.feed.tell(None)
    assert list(tally.frames) == []


def test_its_thread_ends_with_the_reader() -> None:
    """Who stops reading leaves no thread behind: it lets the source go at the next frame."""
    tally = Tally()
    tally.feed.tell(1)
    assert tally.next_number() == 1
    tally.frames.close()  # type: ignore[attr-defined]  # it is a generator
    tally.feed.tell(2)
    assert tally.feed.released.wait(PATIENCE_S)
    thread = tally.newest.thread
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_its_thread_ends_with_the_source() -> None:
    """However it ends."""
    for last in (None, SourceLost("gone")):
        tally = Tally()
        tally.feed.tell(1, last)
        try:
            list(tally.frames)
        except SourceLost:
            assert last is not None
        tally.newest.thread.join(PATIENCE_S)
        assert not tally.newest.thread.is_alive()


@given(st.integers(0, 300), st.integers(1, 7))
def test_every_frame_is_seen_or_counted_as_dropped(count: int, pause_every: int) -> None:
    """At full speed: in order, none twice, none lost without a count, and the last is always seen."""
    tally = Tally()
    tally.feed.tell(*range(count), None)
    seen = []
    for frame in tally.frames:
        seen.append(int(frame.captured_at))
        if len(seen) % pause_every == 0:
            frame.image()  # takes a moment
    assert tally.arrived == count
    assert len(seen) + tally.dropped == count
    assert all(a < b for a, b in pairwise(seen))
    assert seen[-1:] == list(range(count))[-1:]


def test_a_lost_connection_is_freed_at_once() -> None:
    """Without the garbage collector: a decoder and its pictures in a circle of references would stay for minutes."""
    gc.collect()
    gc.disable()
    try:
        feed = Feed()
        reader = NewestWins(lambda: feed, on_frame=lambda: None, on_drop=lambda: None)
        kept = weakref.ref(reader)
        feed.tell(1, SourceLost("gone"))
        with contextlib.suppress(SourceLost):
            list(reader.frames())
        reader.thread.join(PATIENCE_S)
        del reader
        assert kept() is None
    finally:
        gc.enable()
