"""What of the counts may be published: attributes that are on, and no breakdown of fewer than k visitors.

Whatever shows counts (metrics, API, CSV, page, terminal) reads them through here, so that they agree. A camera's window, bucket
or total with fewer than k visitors keeps its number; what they were is said as `suppressed`, all of it: one missing cell
among others would follow from the sum. Sums are made of what is published, so that no camera follows from the others; and
windows and buckets that lie within each other are shown so that what lies between two of them is k visitors at least, or nobody:

    24h ├──────────────────── 31 ──────────────────┤   shown
     1h                  ├──────── 29 ─────────────┤   suppressed: the two who are not in it would follow, for k = 5
    15m                          ├────── 12 ───────┤   shown
     1m                                       ├─ 3 ┤   suppressed: fewer than 5

This protects each answer by itself. Whoever writes down one answer after the other sees each visitor come; see decision 0050.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from aggregator.store import Place, Snapshot, Tally
from aggregator.windows import RollingWindow
from pipeline.attributes import ATTRIBUTES, SUPPRESSED, UNKNOWN, Attribute

Series = list[tuple[int, Mapping[Place, Tally]]]

_SUPPRESSED_CELL: Final = (SUPPRESSED, SUPPRESSED)


class Counts(Protocol):
    """What is read of the counts by whoever shows them; a store has it. Both raise TransportError."""

    def snapshot(self, now: float, windows: Iterable[RollingWindow]) -> Snapshot:
        """Read every count at *now* (seconds since the epoch)."""

    def series(self, now: float, window: RollingWindow) -> Series:
        """Read one window bucket by bucket, oldest first, empty buckets included."""


@dataclass(frozen=True, slots=True)
class Disclosure:
    """What may be published."""

    smallest_group: int = 1  # k: smaller groups are not broken down; 1 breaks down everybody
    attributes: frozenset[Attribute] = frozenset(ATTRIBUTES)


class PublishedCounts:
    """The counts of a store as far as they may be published."""

    def __init__(self, counts: Counts, disclosure: Disclosure) -> None:
        self._counts = counts
        self._disclosure = disclosure

    def snapshot(self, now: float, windows: Iterable[RollingWindow]) -> Snapshot:
        """Read every count at *now*."""
        return disclosed(self._counts.snapshot(now, windows), self._disclosure)

    def series(self, now: float, window: RollingWindow) -> Series:
        """Read one window bucket by bucket."""
        return disclosed_series(self._counts.series(now, window), self._disclosure)


def disclosed(snapshot: Snapshot, disclosure: Disclosure) -> Snapshot:
    """Give what may be published of a snapshot, whose windows lie within each other."""
    windows = {
        name: {place: narrowed(tally, disclosure.attributes) for place, tally in tallies.items()}
        for name, tallies in snapshot.windows.items()
    }
    totals = {place: narrowed(tally, disclosure.attributes) for place, tally in snapshot.totals.items()}
    if (least := disclosure.smallest_group) > 1:
        for place in {*totals, *(place for tallies in windows.values() for place in tallies)}:
            mine = sorted(
                (tallies for tallies in windows.values() if place in tallies), key=lambda one: -_size(one[place])
            )
            sizes = [_size(tallies[place]) for tallies in mine]
            shown = shown_of_nested(sizes, least)
            _suppress(mine, place, shown)
            if place in totals:
                size, beside = _size(totals[place]), [n for n, is_shown in zip(sizes, shown, strict=True) if is_shown]
                # The total lies across the windows: it lacks who has not left yet. So equal numbers are not the same people.
                _suppress([totals], place, [size >= least and all(abs(size - other) >= least for other in beside)])
    return snapshot._replace(windows=windows, totals=totals)


def disclosed_series(series: Series, disclosure: Disclosure) -> Series:
    """Give what may be published of a series: what a camera's buckets do not break down is k visitors at least, together."""
    kept = [
        (start, {place: narrowed(tally, disclosure.attributes) for place, tally in tallies.items()})
        for start, tallies in series
    ]
    for place in {place for _, tallies in kept for place in tallies}:
        mine = [tallies for _, tallies in kept if place in tallies]
        _suppress(mine, place, shown_of_disjoint([_size(one[place]) for one in mine], disclosure.smallest_group))
    return [(start, tallies) for start, tallies in kept]


def shown_of_nested(sizes: Sequence[int], least: int) -> list[bool]:
    """Say which of groups that lie within each other may be broken down, the largest first.

    What is in one that is shown and not in the next is nobody, or *least* visitors at least.
    """
    shown: list[bool] = []
    outer: int | None = None
    for size in sizes:
        fits = size >= least and (outer is None or outer == size or outer - size >= least)
        shown.append(fits)
        outer = size if fits else outer
    return shown


def shown_of_disjoint(sizes: Sequence[int], least: int) -> list[bool]:
    """Say which of groups that lie beside each other may be broken down, though their sum may be.

    What is not shown is nobody, or *least* visitors at least: where too few remain, the smallest that could be shown joins them.
    """
    shown = [size >= least for size in sizes]
    hidden = sum(size for size, is_shown in zip(sizes, shown, strict=True) if not is_shown)
    if 0 < hidden < least and any(shown):
        smallest = min(
            (size, index) for index, (size, is_shown) in enumerate(zip(sizes, shown, strict=True)) if is_shown
        )
        shown[smallest[1]] = False
    return shown


def narrowed(tally: Tally, attributes: Collection[Attribute]) -> Tally:
    """Leave out what was kept of attributes that are off now."""
    if set(ATTRIBUTES) <= set(attributes):
        return tally
    people: Counter[tuple[str, str]] = Counter()
    for (gender, band), amount in tally.people.items():
        known = UNKNOWN not in {gender, band}
        people[
            (gender if not known or "gender" in attributes else "", band if not known or "age" in attributes else "")
        ] += amount
    return Tally(people, tally.ethnicity if "ethnicity" in attributes else Counter())


def suppressed(tally: Tally) -> Tally:
    """Keep the number, and say nothing of what they were."""
    ethnicity = Counter({SUPPRESSED: tally.ethnicity.total()}) if tally.ethnicity else Counter[str]()
    return Tally(Counter({_SUPPRESSED_CELL: tally.people.total()}), ethnicity)


def _suppress(groups: Sequence[dict[Place, Tally]], place: Place, shown: Sequence[bool]) -> None:
    for tallies, is_shown in zip(groups, shown, strict=True):
        if not is_shown:
            tallies[place] = suppressed(tallies[place])


def _size(tally: Tally) -> int:
    return tally.people.total()
