"""Counting again from the log: the same cells, and every difference found."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from aggregator.fusion import Cell
from aggregator.handler import CountingHandler
from aggregator.memory_store import MemoryStore
from aggregator.replay import Outcome, replay_and_compare
from aggregator.step import CountingConfig
from aggregator.store import Changes, PlaceCell, Position
from aggregator.windows import retentions, rolling_windows
from pipeline.bus import PREDICTIONS, Record, TopicPartition, TopicSpec
from pipeline.memory_bus import MemoryBus
from pipeline.messages import Prediction, TrackEnded, encode, headers
from pipeline.telemetry import Telemetry

KEPT = retentions(rolling_windows({"1m": 60, "24h": 86400}))
NOW = time.time()


def handler_on(store: MemoryStore) -> CountingHandler:
    """Make a handler."""
    return CountingHandler(
        store,
        CountingConfig(),
        Telemetry(("aggregator",)),
        dead_letter=lambda *_: None,
        publish=lambda _: None,
    )


class Live(NamedTuple):
    """A log, and the counts that were made of it as it came."""

    bus: MemoryBus
    store: MemoryStore
    handler: CountingHandler

    def people(self, first: int, count: int, *, seen: float = NOW) -> None:
        """Let people pass, each before a camera of its own."""
        producer = self.bus.producer()
        for number in range(first, first + count):
            camera = f"camera-{number % 5}"
            for sequence in range(2):
                said = Prediction(
                    camera_id=camera, track_id=number, sequence=sequence, first_seen=seen, captured_at=seen, quality=0.9,
                    age=float(number % 80), p_female=0.2 + 0.6 * (number % 2), p_ethnicity=(0.6, 0.1, 0.1, 0.1, 0.1),
                )  # fmt: skip
                producer.send(PREDICTIONS, key=camera.encode(), value=encode(said), headers=headers())
            ended = TrackEnded(camera_id=camera, track_id=number, first_seen=seen, last_seen=seen, crops=2)
            producer.send(PREDICTIONS, key=camera.encode(), value=encode(ended), headers=headers())
            producer.send(PREDICTIONS, key=camera.encode(), value=b"junk", headers=headers())

    def count_all(self) -> None:
        """Count what is in the log, in batches."""
        reader = self.bus.reader(PREDICTIONS)
        for tp, span in reader.spans().items():
            start = self.handler.start_at(tp, span)
            records: list[Record] = list(reader.read(tp, start, span.end))
            for first in range(0, len(records), 7):
                assert not self.handler.handle(records[first : first + 7])

    def replayed(self, starts: dict[TopicPartition, int] | None = None) -> tuple[Outcome, MemoryStore]:
        """Replay and compare."""
        fresh = MemoryStore(KEPT)
        outcome = replay_and_compare(
            self.store, fresh, handler_on(fresh), self.bus.reader(PREDICTIONS), starts or {}, KEPT,
            verify=True, clock=time.time,
        )  # fmt: skip
        return outcome, fresh


@pytest.fixture
def live() -> Iterator[Live]:
    """Count forty people."""
    bus = MemoryBus()
    bus.ensure_topics([TopicSpec(PREDICTIONS, 4, 3600)])
    store = MemoryStore(KEPT)
    made = Live(bus, store, handler_on(store))
    made.people(0, 40)
    made.count_all()
    yield made
    bus.close()


def test_a_replay_gives_the_same_cells(live: Live) -> None:
    """All of them were compared, and there were some."""
    outcome, fresh = live.replayed()
    assert outcome.records == 160
    assert outcome.difference == 0
    assert outcome.cells > 40
    assert outcome.totals_compared
    assert fresh.snapshot(NOW, rolling_windows({"24h": 86400})) == live.store.snapshot(
        NOW, rolling_windows({"24h": 86400})
    )


def test_what_has_not_been_counted_yet_is_no_difference(live: Live) -> None:
    """The live counts are compared at their own position, whatever has come since."""
    live.people(100, 10)
    outcome, _ = live.replayed()
    assert (outcome.records, outcome.difference) == (160, 0)
    live.count_all()
    outcome, _ = live.replayed()
    assert (outcome.records, outcome.difference) == (200, 0)


def test_every_cell_that_differs_is_named(live: Live) -> None:
    """Somebody has tampered with the counts."""
    position = live.store.load(2).position
    assert position is not None
    cell = PlaceCell("default", "camera-0", Cell("female", "65+", "other"))
    changes = Changes()
    changes.totals[cell] += 2
    live.store.apply(2, changes, start=position, end=Position(position.offset, position.revision + 1))
    outcome, _ = live.replayed()
    assert outcome.difference == 4
    assert {(one.partition, one.where, one.cell, one.live, one.replayed) for one in outcome.differences} == {
        (2, "totals", "p|default|camera-0|female|65+", 2, 0),
        (2, "totals", "e|default|camera-0|other", 2, 0),
    }


def test_from_a_later_point_only_what_was_seen_since_is_compared(live: Live) -> None:
    """Totals cannot agree with half a log; buckets since then do."""
    starts = {tp: span.end for tp, span in live.bus.reader(PREDICTIONS).spans().items()}
    live.people(200, 20, seen=time.time() + 200)  # however long ago this module was read
    live.count_all()
    outcome, _ = live.replayed(starts)
    assert not outcome.totals_compared
    assert outcome.compared_since is not None
    assert outcome.records == 80
    assert outcome.cells > 0
    assert outcome.difference == 0


def test_a_log_with_a_hole_is_replayed_past_it(live: Live) -> None:
    """Not every offset is a record: the reader jumps, the replay asks once more, and goes on."""

    class Holey:
        def __init__(self) -> None:
            self.reader = live.bus.reader(PREDICTIONS)

        def read(self, partition: TopicPartition, begin: int, end: int) -> Iterator[Record]:
            return (record for record in self.reader.read(partition, begin, end) if record.offset % 40 != 3)

        def __getattr__(self, name: str) -> object:
            return getattr(self.reader, name)

    store = MemoryStore(KEPT)
    outcome = replay_and_compare(
        live.store, store, handler_on(store), Holey(), {}, KEPT, verify=False, clock=time.time  # type: ignore[arg-type]
    )  # fmt: skip
    spans = live.bus.reader(PREDICTIONS).spans()
    assert outcome.records == sum(sum(n % 40 != 3 for n in range(span.end)) for span in spans.values())
    for tp, span in spans.items():
        position = store.load(tp.partition).position
        assert (position.offset if position else 0) == span.end
