"""Counting again: the log of predictions from any point on into a store that is fresh, and a comparison with the live counts.

The live counts move on meanwhile, so each partition is replayed up to the position that its live counts were read at: position
and counts are read at one moment, and counts are a function of the log (docs/decisions/0020).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, NamedTuple

from aggregator.handler import CountingHandler
from aggregator.store import Dump, Store
from aggregator.windows import Retention
from pipeline.bus import Reader, Record, Span, TopicPartition

BATCH: Final = 2000
GRACE_S: Final = 60.0  # clocks of cameras and brokers differ by seconds


class Difference(NamedTuple):
    """One cell that differs."""

    partition: int
    where: str  # totals, or the bucket's resolution and start
    cell: str  # see fields.py
    live: int
    replayed: int


@dataclass
class Outcome:
    """What came of a replay."""

    records: int = 0
    cells: int = 0  # compared
    totals_compared: bool = True  # the log reaches back to its first record
    compared_since: float | None = None  # seconds since the epoch: what was seen first before is not compared
    differences: list[Difference] = field(default_factory=list)

    @property
    def difference(self) -> int:
        """Sum over all cells by how much they differ."""
        return sum(abs(one.live - one.replayed) for one in self.differences)


def replay(
    handler: CountingHandler, reader: Reader, partition: TopicPartition, span: Span, taken: Callable[[int], None]
) -> None:
    """Count the records of *span* by a handler on a fresh store; *taken* hears how many. Raises TransportError."""
    at = handler.start_at(partition, span)
    while at < span.end:
        for batch in _batches(reader.read(partition, at, span.end)):
            again = handler.handle(batch)  # offsets are missing: asked for once more, they are not in the log
            at = handler.start_at(partition, span) if again else batch[-1].offset + 1
            taken(sum(record.offset < at for record in batch))
            if again:
                break
        else:
            return


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    while batch := list(islice(records, BATCH)):
        yield batch


def begin_of(starts: Mapping[TopicPartition, int], spans: Mapping[TopicPartition, Span]) -> dict[TopicPartition, int]:
    """Say where each log is read from: not before its earliest record, nor after its end."""
    return {tp: min(max(starts.get(tp, 0), span.begin), span.end) for tp, span in spans.items()}


def first_taken(
    reader: Reader, begins: Mapping[TopicPartition, int], spans: Mapping[TopicPartition, Span]
) -> float | None:
    """Say when the latest log begins, where some log is not read from its first record: before, counts cannot agree."""
    partial = [tp for tp, begin in begins.items() if begin > 0]
    times = [
        record.timestamp for tp in partial for record in reader.read(tp, begins[tp], min(begins[tp] + 1, spans[tp].end))
    ]
    return max(times, default=0.0) if partial else None


def compare(
    partition: int, live: Dump, replayed: Dump, retentions: Iterable[Retention], *, since: float | None, now: float
) -> Outcome:
    """Compare every cell that both must have: totals where nothing is missing, buckets from *since* on, none that expires."""
    outcome = Outcome(totals_compared=since is None, compared_since=since)
    kept = {retention.bucket_s: retention for retention in retentions}
    sheets: list[tuple[str, Mapping[str, int], Mapping[str, int]]] = []
    if since is None:
        sheets.append(("totals", live.totals, replayed.totals))
    for bucket in sorted(live.buckets.keys() | replayed.buckets.keys()):
        if kept[bucket.bucket_s].expires(bucket.start) > now and (since is None or bucket.start >= since + GRACE_S):
            where = f"{bucket.bucket_s} s from {bucket.start}"
            sheets.append((where, live.buckets.get(bucket, {}), replayed.buckets.get(bucket, {})))
    for where, mine, theirs in sheets:
        for cell in sorted(mine.keys() | theirs.keys()):
            outcome.cells += 1
            if mine.get(cell, 0) != theirs.get(cell, 0):
                outcome.differences.append(Difference(partition, where, cell, mine.get(cell, 0), theirs.get(cell, 0)))
    return outcome


def replay_and_compare(
    live: Store,
    fresh: Store,
    handler: CountingHandler,
    reader: Reader,
    starts: Mapping[TopicPartition, int],
    retentions: Iterable[Retention],
    *,
    verify: bool,
    clock: Callable[[], float],
    taken: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Replay every partition from *starts* on into *fresh*, whose *handler* it is, and compare where *verify*.

    Raises TransportError.
    """
    spans, kept, outcome = reader.spans(), tuple(retentions), Outcome()
    begins = begin_of(starts, spans)
    since = first_taken(reader, begins, spans)
    outcome.totals_compared, outcome.compared_since = since is None, since

    def count(records: int) -> None:
        outcome.records += records
        taken(records)

    for tp, span in spans.items():
        end, shown = span.end, None
        if verify:
            shown = live.dump(tp.partition, clock())
            end = shown.position.offset if shown.position else begins[tp]
        replay(handler, reader, tp, Span(begins[tp], max(end, begins[tp])), count)
        if shown is not None:
            now = clock()
            found = compare(tp.partition, shown, fresh.dump(tp.partition, now), kept, since=since, now=now)
            outcome.cells += found.cells
            outcome.differences += found.differences
    return outcome
