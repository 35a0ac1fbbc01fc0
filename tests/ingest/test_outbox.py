"""What a camera has to say, until the bus has it: bounded, in order, and nobody's end is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.outbox import LONGEST, Outbox, SharedProducer
from pipeline.bus import FACE_CROPS
from pipeline.errors import TransportError
from pipeline.messages import CameraStatus, FaceCrop, Message, TrackEnded
from tests.ingest.conftest import FakeProducer

Said = FaceCrop | TrackEnded | CameraStatus


def crop(n: int) -> FaceCrop:
    """Make the crop of track *n*."""
    return FaceCrop(
        camera_id="door", track_id=n, sequence=0, first_seen=1.0, captured_at=1.0 + n, quality=0.5, jpeg=b"%d" % n
    )


def end(n: int) -> TrackEnded:
    """Make the end of track *n*."""
    return TrackEnded(camera_id="door", track_id=n, first_seen=1.0, last_seen=2.0 + n, crops=1)


def status(n: int) -> CameraStatus:
    """Make the camera's *n*th status."""
    return CameraStatus(camera_id="door", at=float(n), state="running", frames=n)


def many(*kinds: Callable[[int], Said]) -> st.SearchStrategy[list[Callable[[int], Said]]]:
    """Draw up to a hundred kinds, long lists as often as short ones."""
    return st.integers(0, 100).flatmap(lambda n: st.lists(st.sampled_from(kinds), min_size=n, max_size=n))


class Rig:
    """An outbox on a fake bus, with its drops counted."""

    def __init__(self, producer: FakeProducer, *, patient: bool = False, shared: SharedProducer | None = None) -> None:
        self.producer = producer
        self.drops = 0
        self.outbox = Outbox(shared or SharedProducer(producer), patient=patient, on_drop=self._drop)

    def _drop(self) -> None:
        self.drops += 1

    def say(self, *messages: Said) -> None:
        """Post, and deliver as far as the bus takes it."""
        for message in messages:
            self.outbox.post(FACE_CROPS, message)
            with suppress(TransportError):
                self.outbox.deliver()

    def arrived(self) -> list[Message]:
        """Let the bus recover, deliver the rest; gives all that arrived, in order, the first time that it did."""
        self.producer.refuse = self.producer.lose = lambda: False
        with suppress(TransportError):  # it may learn only now of what was lost before
            self.outbox.deliver(last=True)
        self.outbox.deliver(last=True)
        assert len(self.outbox) == 0
        return once(message for _, _, message in self.producer.taken)


def once(messages: object) -> list[Message]:
    """Leave out repeats."""
    told: list[Message] = []
    for message in messages:  # type: ignore[attr-defined]
        if message not in told:
            told.append(message)
    return told


def held_back(messages: Sequence[Said], *, patient: bool = False) -> tuple[list[Message], int]:
    """Post messages while the bus says no, then let it take them: what arrives, and how many were dropped."""
    rig = Rig(FakeProducer(lambda: True), patient=patient)
    rig.say(*messages)
    return rig.arrived(), rig.drops


@given(many(crop, end, status))
def test_an_outbox_keeps_the_ends_of_tracks_the_newest_crops_and_the_last_status(
    kinds: list[Callable[[int], Said]],
) -> None:
    """In order, no more than it may hold; only where ends alone are too many do the oldest of them give way."""
    limit = 20
    posted = [kind(n) for n, kind in enumerate(kinds, start=1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ingest.outbox.LONGEST", limit)
        arrived, drops = held_back(posted)
    assert len(arrived) <= limit
    assert arrived == [message for message in posted if message in arrived]
    ends, crops, told = ([m for m in posted if isinstance(m, kind)] for kind in (TrackEnded, FaceCrop, CameraStatus))
    kept_ends, kept_crops, kept_told = (
        [m for m in arrived if isinstance(m, kind)] for kind in (TrackEnded, FaceCrop, CameraStatus)
    )
    assert len(kept_ends) == len(ends) or len(ends) >= limit
    assert kept_ends == ends[len(ends) - len(kept_ends) :]
    assert kept_crops == crops[len(crops) - len(kept_crops) :]
    assert kept_told == told[-1:] or len(ends) >= limit
    if len(ends) < limit:
        assert drops == len(crops) - len(kept_crops)


def test_a_long_time_without_the_bus_keeps_every_end() -> None:
    """A status every two seconds for an hour does not push the visitors of that hour out."""
    posted: list[Said] = []
    for n in range(1, 301):
        posted += [end(n), *(status(6 * n + k) for k in range(6))]
    arrived, drops = held_back(posted)
    assert [message for message in arrived if isinstance(message, TrackEnded)] == [end(n) for n in range(1, 301)]
    assert drops == 0


def test_an_outbox_of_a_file_holds_everything() -> None:
    """It is never dropped from; the file waits instead."""
    posted: list[Said] = [*(crop(n) for n in range(LONGEST + 50)), end(LONGEST + 50)]
    assert held_back(posted, patient=True) == (posted, 0)


@given(many(crop, end), st.lists(st.booleans(), max_size=60), st.lists(st.booleans()))
def test_whatever_the_bus_refuses_or_loses_everything_arrives_in_order(
    kinds: list[Callable[[int], Said]], refusals: list[bool], losses: list[bool]
) -> None:
    """Some twice, none never; the first arrivals of one kind of message are not out of turn."""
    no, lost = iter(refusals), iter(losses)
    rig = Rig(FakeProducer(lambda: next(no, False), lambda: next(lost, False)), patient=True)
    posted = [kind(n) for n, kind in enumerate(kinds)]
    rig.say(*posted)
    arrived = rig.arrived()
    assert sorted(m.track_id for m in arrived if not isinstance(m, CameraStatus)) == list(range(len(posted)))  # type: ignore[union-attr]
    if not any(losses):
        assert arrived == posted


def test_a_bus_that_takes_a_little_at_a_time_gets_everything_in_the_end() -> None:
    """What it has taken is not sent again and again before the rest has had its turn."""
    posted = [crop(n) for n in range(100)]
    producer = FakeProducer(lambda: True)
    rig = Rig(producer)
    rig.say(*posted)
    for _ in range(40):  # each time there is room for three
        room = iter((False, False, False))
        producer.refuse = lambda room=room: next(room, True)  # type: ignore[misc]
        with suppress(TransportError):
            rig.outbox.deliver()
    assert len(rig.outbox) < 32  # what is only not acknowledged yet
    assert rig.arrived() == posted
    assert len(producer.taken) == len(posted)


def test_what_was_sent_and_not_acknowledged_is_sent_again() -> None:
    """Sent is not arrived: the bus lost every other record, and says so when it is flushed."""
    rig = Rig(FakeProducer(lose=iter([False, True]).__next__))
    rig.say(end(0))  # the first delivery flushes
    rig.outbox.post(FACE_CROPS, end(1))
    rig.outbox.post(FACE_CROPS, end(2))
    with pytest.raises(TransportError):
        rig.outbox.deliver(last=True)
    assert len(rig.outbox) == 2
    assert rig.arrived() == [end(0), end(1), end(2)]
    assert [message for _, _, message in rig.producer.taken][2:] == [end(1), end(2)]  # again, and in order


def test_a_loss_that_another_camera_was_told_of_is_everybodys() -> None:
    """One producer for all cameras: the failed flush of one may have been the other's records."""
    producer = FakeProducer()
    shared = SharedProducer(producer)
    mine, other = Rig(producer, shared=shared), Rig(producer, shared=shared)
    for rig in (mine, other):
        rig.say(status(1))  # the first delivery flushes
    mine.say(end(10), end(11), end(12))  # on their way
    producer.lose = lambda: True
    other.outbox.post(FACE_CROPS, end(20))
    with pytest.raises(TransportError):
        other.outbox.deliver(last=True)
    producer.lose = lambda: False
    with pytest.raises(TransportError):
        mine.outbox.deliver(last=True)
    assert len(mine.outbox) == 3
    mine.outbox.deliver(last=True)
    other.outbox.deliver(last=True)
    told = {message.track_id for _, _, message in producer.taken if isinstance(message, TrackEnded)}
    assert told == {10, 11, 12, 20}


def test_memory_is_bounded_while_nothing_is_acknowledged() -> None:
    """What is on its way counts too: a bus that takes everything and acknowledges nothing fills no memory."""
    rig = Rig(FakeProducer(lose=lambda: True))
    for n in range(3 * LONGEST):
        rig.say(crop(n))
        assert len(rig.outbox) <= LONGEST
    assert rig.drops == 2 * LONGEST


def test_what_is_on_its_way_counts_towards_the_bound() -> None:
    """A bus that took some, acknowledged none of it and now takes nothing more."""
    refusals = iter([False] * 20)
    rig = Rig(FakeProducer(lambda: next(refusals, True)))
    posted = [crop(n) for n in range(2 * LONGEST)]
    rig.say(*posted)
    assert len(posted) - rig.drops == LONGEST + 1  # the first one has been acknowledged
    assert len(rig.arrived()) == LONGEST + 1


def test_it_is_flushed_now_and_then_not_for_every_message() -> None:
    """A flush waits for the network."""
    flushes = 0

    def count() -> bool:
        nonlocal flushes
        flushes += 1
        return False

    rig = Rig(FakeProducer(lose=count))
    rig.say(*(crop(n) for n in islice(range(1000), 320)))
    assert 10 <= flushes <= 60
