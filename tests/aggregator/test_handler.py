"""The aggregator on its store: exact through repeats, fenced owners and junk."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aggregator.handler import CountingHandler
from aggregator.memory_store import MemoryStore
from aggregator.step import CountingConfig
from aggregator.store import Changes, Position
from aggregator.windows import retentions, rolling_windows
from pipeline.bus import PREDICTIONS, Record, TopicPartition
from pipeline.errors import InvalidMessage, TransportError
from pipeline.messages import CameraStatus, FaceCrop, Message, Prediction, TrackEnded, encode, headers
from pipeline.telemetry import Telemetry

WINDOWS = rolling_windows({"1m": 60, "24h": 86400})
NOW = 1_790_000_000.0
P0 = TopicPartition(PREDICTIONS, 0)


def record(offset: int, message: Message | bytes, partition: int = 0) -> Record:
    """Lay a message at an offset."""
    value = message if isinstance(message, bytes) else encode(message)
    return Record(PREDICTIONS, partition, offset, b"hall", value, headers(), NOW)


def said(track: int, sequence: int) -> Prediction:
    """Make one prediction."""
    return Prediction(
        camera_id="hall", track_id=track, sequence=sequence, first_seen=NOW, captured_at=NOW + sequence, quality=0.9,
        age=30.0, age_spread=5.0, p_female=0.9, p_ethnicity=(0.6, 0.1, 0.1, 0.1, 0.1),
    )  # fmt: skip


def ended(track: int) -> TrackEnded:
    """Make the end of a track."""
    return TrackEnded(camera_id="hall", track_id=track, first_seen=NOW, last_seen=NOW + 5, crops=2)


class Clock:
    """A clock that is set by hand."""

    now = NOW

    def __call__(self) -> float:
        """Tell the time."""
        return self.now


class Bench:
    """A store, a clock, and as many aggregators as wanted."""

    def __init__(self) -> None:
        self.store = MemoryStore(retentions(WINDOWS))
        self.clock = Clock()
        self.letters: list[tuple[int, str]] = []

    def aggregator(self) -> CountingHandler:
        """Make one."""
        return CountingHandler(
            self.store,
            CountingConfig(idle_s=60),
            Telemetry(("aggregator",)),
            dead_letter=lambda record, error: self.letters.append((record.offset, error.reason)),
            clock=self.clock,
        )

    def total(self) -> int:
        """Count the visitors whose passage has ended."""
        return sum(tally.people.total() for tally in self.store.snapshot(NOW, WINDOWS).totals.values())

    def shown(self) -> int:
        """Count the visitors of the day."""
        return sum(tally.people.total() for tally in self.store.snapshot(NOW, WINDOWS).windows["24h"].values())


@pytest.fixture
def bench() -> Bench:
    """Set up."""
    return Bench()


PASSAGE: list[Message] = [said(1, 0), said(1, 1), ended(1)]
LOG = [record(offset, message) for offset, message in enumerate(PASSAGE)]


def test_a_batch_that_comes_again_counts_nobody_twice(bench: Bench) -> None:
    """Redelivered in whole or in part, to the same aggregator or to its successor."""
    first = bench.aggregator()
    first.handle(LOG)
    first.handle(LOG)
    first.handle(LOG[1:])
    second = bench.aggregator()
    assert second.start_at(P0) == 3
    second.handle(LOG)
    assert (bench.total(), bench.shown()) == (1, 1)


def test_the_same_prediction_at_another_offset_counts_nobody_twice(bench: Bench) -> None:
    """An inference worker died after it had published: its successor published again."""
    bench.aggregator().handle([*LOG, *(record(offset + 3, message) for offset, message in enumerate(PASSAGE))])
    assert (bench.total(), bench.shown()) == (1, 1)


def test_two_owners_of_one_partition_count_once(bench: Bench) -> None:
    """In the middle of a rebalance both hold it; whoever is behind loads again."""
    old, new = bench.aggregator(), bench.aggregator()
    old.handle(LOG[:1])
    new.start_at(P0)
    new.handle(LOG[1:2])
    old.handle(LOG[1:])  # the second it has not applied, the third nobody has
    new.handle(LOG)
    assert (bench.total(), bench.shown()) == (1, 1)
    assert bench.store.load(0).position == Position(3, 3)


def test_junk_is_dead_lettered_and_passed(bench: Bench) -> None:
    """A bad record harms nobody else; a message of another topic is bad, too."""
    crop = FaceCrop(camera_id="hall", track_id=9, sequence=0, first_seen=NOW, captured_at=NOW, quality=1.0, jpeg=b"")
    bench.aggregator().handle([record(0, b"junk"), *(record(r.offset + 1, r.value) for r in LOG), record(4, crop)])
    assert bench.total() == 1
    assert bench.letters == [(0, "malformed"), (4, "malformed")]
    assert bench.store.load(0).position == Position(5, 1)


def test_a_camera_that_has_died_has_its_tracks_closed_when_all_is_read(bench: Bench) -> None:
    """Not while there is more to read: the end may be in it."""
    aggregator = bench.aggregator()
    aggregator.start_at(P0)
    aggregator.handle(LOG[:2])
    lags = {P0: 1}
    look: Callable[[], None] = lambda: aggregator.idle(frozenset({P0}), lags.__getitem__)  # noqa: E731
    bench.clock.now += 61
    look()
    assert bench.total() == 0
    lags[P0] = 0
    bench.clock.now += 10
    look()
    assert bench.total() == 1


def test_a_camera_that_still_reports_keeps_its_tracks_open(bench: Bench) -> None:
    """Inference may be behind: what it says later still counts."""
    aggregator = bench.aggregator()
    aggregator.start_at(P0)
    aggregator.handle(LOG[:2])
    for offset in range(2, 8):
        bench.clock.now += 30
        aggregator.handle([record(offset, CameraStatus(camera_id="hall", at=bench.clock.now, state="running"))])
        aggregator.idle(frozenset({P0}), lambda _: 0)
    assert bench.total() == 0
    aggregator.handle([record(8, ended(1))])
    assert bench.total() == 1


class FailingStore(MemoryStore):
    """Loses its answer on the way: what was asked is done, and nobody hears of it."""

    lose = False

    def apply(self, partition: int, changes: Changes, *, start: Position | None, end: Position) -> bool:
        """Apply, then say nothing."""
        done = super().apply(partition, changes, start=start, end=end)
        if self.lose:
            self.lose = False
            raise TransportError("connection reset")
        return done


def test_an_answer_that_was_lost_counts_nobody_twice(bench: Bench) -> None:
    """The batch is repeated, and the store knows it already."""
    bench.store = store = FailingStore(retentions(WINDOWS))
    aggregator = bench.aggregator()
    store.lose = True
    with pytest.raises(TransportError):
        aggregator.handle(LOG)
    aggregator.handle(LOG)
    assert (bench.total(), bench.shown()) == (1, 1)


def test_no_dead_letter_for_what_is_applied_already() -> None:
    """A repeated batch does not fill the dead letters."""
    bench = Bench()
    aggregator = bench.aggregator()
    aggregator.handle([record(0, b"junk")])
    aggregator.handle([record(0, b"junk")])
    assert len(bench.letters) == 1


def test_invalid_messages_have_reasons_from_a_closed_set() -> None:
    """They are a metric's label."""
    with pytest.raises(AssertionError):
        InvalidMessage("whatever", "")
