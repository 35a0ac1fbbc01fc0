"""The aggregator on its store: exact through repeats, fenced owners and junk."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aggregator.handler import CountingHandler
from aggregator.memory_store import MemoryStore
from aggregator.step import CountingConfig
from aggregator.store import Changes, Position
from aggregator.windows import retentions, rolling_windows
from pipeline.bus import PREDICTIONS, Record, Span, TopicPartition
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
        self.published: list[TrackEnded] = []
        self.unsettled = False
        self.telemetry = Telemetry(("aggregator",))

    def aggregator(self) -> CountingHandler:
        """Make one that owns the partition."""
        made = CountingHandler(
            self.store,
            CountingConfig(idle_s=60),
            self.telemetry,
            dead_letter=lambda record, error: self.letters.append((record.offset, error.reason)),
            publish=self.published.extend,
            settle=self.settle,
            clock=self.clock,
        )
        made.start_at(P0, Span(0, 100))
        return made

    def settle(self) -> None:
        """Have no broker, if so wanted."""
        if self.unsettled:
            raise TransportError("no broker")

    def forget(self) -> None:
        """Lose everything that the store holds, behind the backs of those who use it."""
        MemoryStore.__init__(self.store, retentions(WINDOWS))

    def missing(self) -> float:
        """Count the records that were said to be missing."""
        return self.telemetry.registry.get_sample_value("demographics_missing_records_total") or 0

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
    assert second.start_at(P0, Span(0, 3)) == 3
    second.handle(LOG)
    assert (bench.total(), bench.shown()) == (1, 1)


def test_the_same_prediction_at_another_offset_counts_nobody_twice(bench: Bench) -> None:
    """An inference worker died after it had published: its successor published again."""
    bench.aggregator().handle([*LOG, *(record(offset + 3, message) for offset, message in enumerate(PASSAGE))])
    assert (bench.total(), bench.shown()) == (1, 1)


def test_two_owners_of_one_partition_count_once(bench: Bench) -> None:
    """In the middle of a rebalance both hold it; whoever is behind reads again from where the store is."""
    old = bench.aggregator()
    assert not old.handle(LOG[:1])
    new = bench.aggregator()
    assert not new.handle(LOG[1:2])
    assert old.handle(LOG[1:]) == {P0}  # the second it has not applied, the third nobody has
    assert old.start_at(P0, Span(0, 3)) == 2
    assert not old.handle(LOG[2:])
    assert new.handle(LOG) == {P0}
    assert new.start_at(P0, Span(0, 3)) == 3
    assert (bench.total(), bench.shown()) == (1, 1)
    position = bench.store.load(0).position
    assert position is not None
    assert position.offset == 3


def test_junk_is_dead_lettered_and_passed(bench: Bench) -> None:
    """A bad record harms nobody else; a message of another topic is bad, too."""
    crop = FaceCrop(camera_id="hall", track_id=9, sequence=0, first_seen=NOW, captured_at=NOW, quality=1.0, jpeg=b"")
    bench.aggregator().handle([record(0, b"junk"), *(record(r.offset + 1, r.value) for r in LOG), record(4, crop)])
    assert bench.total() == 1
    assert bench.letters == [(0, "malformed"), (4, "malformed")]
    position = bench.store.load(0).position
    assert position is not None
    assert position.offset == 5


def test_a_camera_that_has_died_has_its_tracks_closed_when_all_is_read(bench: Bench) -> None:
    """Not while there is more to read: the end may be in it."""
    aggregator = bench.aggregator()
    aggregator.handle(LOG[:2])
    lags = {P0: 1}
    look: Callable[[], object] = lambda: aggregator.idle(frozenset({P0}), lags.__getitem__)  # noqa: E731
    bench.clock.now += 61
    look()
    assert not bench.published
    lags[P0] = 0
    bench.clock.now += 10
    look()
    (end,) = bench.published
    assert (end.camera_id, end.track_id, end.crops) == ("hall", 1, 2)
    aggregator.handle([record(2, end), record(3, end), record(4, ended(1))])  # said in the log, where all can read it
    assert bench.total() == 1
    bench.clock.now += 100
    look()
    assert len(bench.published) == 1


def test_a_camera_that_still_reports_keeps_its_tracks_open(bench: Bench) -> None:
    """Inference may be behind: what it says later still counts."""
    aggregator = bench.aggregator()
    aggregator.handle(LOG[:2])
    for offset in range(2, 8):
        bench.clock.now += 30
        aggregator.handle([record(offset, CameraStatus(camera_id="hall", at=bench.clock.now, state="running"))])
        aggregator.idle(frozenset({P0}), lambda _: 0)
    assert not bench.published
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
    assert aggregator.handle(LOG) == {P0}
    assert aggregator.start_at(P0, Span(0, 3)) == 3
    assert (bench.total(), bench.shown()) == (1, 1)


def test_a_store_that_lost_its_counts_is_filled_again_from_the_log(bench: Bench) -> None:
    """It restarted without its data: the next step is turned away, and everything that the log has is read again."""
    aggregator = bench.aggregator()
    aggregator.handle(LOG)
    bench.forget()
    later = [record(3, said(2, 0)), record(4, ended(2))]
    assert aggregator.handle(later) == {P0}
    assert aggregator.start_at(P0, Span(0, 5)) == 0
    assert not aggregator.handle([*LOG, *later])
    assert (bench.total(), bench.shown()) == (2, 2)


def test_a_store_that_lost_its_last_second_is_filled_up(bench: Bench) -> None:
    """It wrote to disk every second, or a replica that was behind took over: position and counts went back together."""
    aggregator = bench.aggregator()
    aggregator.handle(LOG[:1])
    earlier = bench.store.load(0)
    aggregator.handle(LOG[1:])
    bench.forget()
    assert earlier.position is not None
    bench.store.apply(0, Changes(tracks=dict(earlier.tracks)), start=None, end=earlier.position)
    bench.clock.now += 10
    assert aggregator.idle(frozenset({P0}), lambda _: 0) == {P0}  # found without a record that comes
    assert aggregator.start_at(P0, Span(0, 3)) == 1
    assert not aggregator.handle(LOG[1:])
    assert (bench.total(), bench.shown()) == (1, 1)


def test_a_partition_that_was_dropped_in_a_failed_call_is_read_again_all_the_same(bench: Bench) -> None:
    """The broker is away just then: nobody has named the partition, and no record may come for hours."""
    aggregator = bench.aggregator()
    aggregator.handle(LOG)
    bench.forget()
    bench.unsettled = True
    with pytest.raises(TransportError):
        aggregator.handle([record(3, b"junk")])
    bench.clock.now += 10
    assert aggregator.idle(frozenset({P0}), lambda _: 0) == {P0}


def test_records_that_are_missing_are_asked_for_once_more(bench: Bench) -> None:
    """The reader may have been put elsewhere in the middle of a batch; a hole that stays is the log's own."""
    aggregator = bench.aggregator()
    aggregator.handle(LOG[:1])
    assert aggregator.handle(LOG[2:]) == {P0}
    assert bench.total() == 0
    aggregator.start_at(P0, Span(0, 3))
    aggregator.handle(LOG[1:])
    assert aggregator.handle([record(7, said(2, 0)), record(8, ended(2))]) == {P0}
    aggregator.start_at(P0, Span(0, 9))
    assert not aggregator.handle([record(7, said(2, 0)), record(8, ended(2))])
    assert bench.total() == 2


def test_a_batch_with_many_holes_gets_past_them_all(bench: Bench) -> None:
    """One after another, each asked for once more: transactions of somebody else leave markers between the records."""
    aggregator = bench.aggregator()
    batch = [record(3 * n, message) for n in range(1, 9) for message in (ended(n),)]
    calls = 0
    while aggregator.handle([r for r in batch if r.offset >= aggregator.start_at(P0, Span(0, 100))]):
        calls += 1
        assert calls < 20
    assert bench.total() == 8


@pytest.mark.parametrize(
    ("span", "start", "missing"),
    [(Span(0, 9), 3, 0), (Span(5, 9), 5, 2), (Span(0, 2), 0, 0), (Span(3, 3), 3, 0)],
    ids=["in the log", "expired uncounted", "another log", "at the end"],
)
def test_where_reading_begins_and_what_is_missing_is_said(bench: Bench, span: Span, start: int, missing: int) -> None:
    """After what was applied, as far as the log has it."""
    bench.aggregator().handle(LOG)
    successor = bench.aggregator()
    before = bench.missing()
    assert successor.start_at(P0, span) == start
    assert bench.missing() - before == missing


def test_a_log_that_was_made_again_is_counted_from_its_beginning(bench: Bench) -> None:
    """Its offsets are smaller than those applied; they are other records all the same."""
    aggregator = bench.aggregator()
    aggregator.handle(LOG)
    assert aggregator.start_at(P0, Span(0, 2)) == 0
    assert not aggregator.handle([record(0, said(2, 0)), record(1, ended(2))])
    assert bench.total() == 2
    assert bench.aggregator().start_at(P0, Span(0, 2)) == 2


def test_a_new_store_beside_an_old_log_says_what_it_lacks(bench: Bench) -> None:
    """Counts are rebuilt as far as the log reaches back."""
    aggregator = bench.aggregator()
    assert aggregator.start_at(P0, Span(40, 60)) == 40
    assert bench.missing() == 40


@pytest.mark.parametrize(
    "message",
    [
        Prediction(camera_id="hall", track_id=1, sequence=0, first_seen=NOW, captured_at=NOW + 4000, quality=0.9),
        TrackEnded(camera_id="hall", track_id=1, first_seen=NOW, last_seen=NOW + 4000, crops=1),
        ended((int(NOW) + 4000) << 20),
    ],
    ids=["capture", "end", "connection"],
)
def test_a_clock_that_is_far_ahead_is_a_dead_letter(bench: Bench, message: Message) -> None:
    """Counted, it would leave every other track of the camera behind."""
    aggregator = bench.aggregator()
    aggregator.handle([*LOG[:2], record(2, message), record(3, ended(1))])
    assert bench.letters == [(2, "future")]
    assert (bench.total(), bench.shown()) == (1, 1)


def test_dead_letters_are_durable_before_the_position_moves_past_them(bench: Bench) -> None:
    """A crash in between writes one twice; none is lost."""
    aggregator = bench.aggregator()
    bench.unsettled = True
    with pytest.raises(TransportError):
        aggregator.handle([record(0, b"junk")])
    assert bench.store.load(0).position is None


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
