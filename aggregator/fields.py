"""How counts are written down: one text per counted thing, the same in every store.

    p|site|camera|gender|age_band     people
    e|site|camera|ethnicity           kept apart from gender and age, so that small groups cannot be read out of the store
    x|site|camera|in or out           crossings of the camera's line; in the totals only, as are the next two
    d|site|camera|seconds or inf      visitors by dwell, under the bucket's upper bound
    t|site|camera|ms                  their dwell added up, in milliseconds

Names hold no '|' (see messages.Name), nor do labels.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

from aggregator.store import DWELL_BUCKETS_S, Bucket, Changes, Passages, Place, PlaceCell, Tally
from aggregator.windows import Retention

_DWELL_LABELS: Final = (*map(str, DWELL_BUCKETS_S), "inf")


@lru_cache(maxsize=16384)  # a camera has some eighty cells; they come again and again
def fields_of(counted: PlaceCell) -> tuple[str, ...]:
    """Give the fields that one visitor adds to."""
    cell = counted.cell
    people = f"p|{counted.site}|{counted.camera_id}|{cell.gender}|{cell.age_band}"
    return (people, f"e|{counted.site}|{counted.camera_id}|{cell.ethnicity}") if cell.ethnicity else (people,)


def bucket_deltas(changes: Changes, retentions: Iterable[Retention]) -> dict[Bucket, Counter[str]]:
    """Spread the counted visitors over the buckets of every resolution."""
    kept = tuple(retentions)
    deltas: defaultdict[Bucket, Counter[str]] = defaultdict(Counter)
    for (first_seen, counted), amount in changes.counted.items():
        if not amount:  # counted and taken back again
            continue
        fields = fields_of(counted)
        for retention in kept:
            counts = deltas[Bucket(retention.bucket_s, retention.bucket(first_seen))]
            for field in fields:
                counts[field] += amount
    return {bucket: Counter({f: n for f, n in counts.items() if n}) for bucket, counts in deltas.items()}


def total_deltas(changes: Changes) -> Counter[str]:
    """Give what the step adds to the totals, by field."""
    totals: Counter[str] = Counter()
    for counted, amount in changes.totals.items():
        for field in fields_of(counted):
            totals[field] += amount
    for parts, amount in changes.passages.items():
        totals["|".join(parts)] += amount
    return totals


def dwell_bucket(seconds: float) -> str:
    """Name the bucket that a dwell falls into, by its upper bound."""
    return _DWELL_LABELS[bisect_left(DWELL_BUCKETS_S, seconds)]


@lru_cache(maxsize=65536)  # the same fields at every scrape
def _parts(field: str) -> tuple[str, Place, tuple[str, ...]]:
    kind, site, camera, *labels = field.split("|")
    return kind, Place(site, camera), tuple(labels)


def passages(counts: Mapping[str, int]) -> dict[Place, Passages]:
    """Read what passages add up to back from the totals."""
    found: dict[Place, Passages] = {}
    for field, amount in counts.items():
        kind, place, labels = _parts(field)
        if kind not in {"x", "d", "t"} or not amount:
            continue
        said = found.setdefault(place, Passages())
        if kind == "d":
            said.dwell[labels[0]] += amount
        elif kind == "t":
            said.dwell_s += amount / 1000
        elif labels[0] == "in":
            said.entries += amount
        else:
            said.exits += amount
    return found


def tallies(counts: Mapping[str, int]) -> dict[Place, Tally]:
    """Read summed fields back; what has come to zero is left out."""
    found: dict[Place, Tally] = {}
    for field, amount in counts.items():
        kind, place, labels = _parts(field)
        if not amount or kind not in {"p", "e"}:
            continue
        tally = found.get(place)
        if tally is None:
            tally = found[place] = Tally(Counter(), Counter())
        if kind == "p":
            gender, age_band = labels
            tally.people[gender, age_band] += amount
        else:
            tally.ethnicity[labels[0]] += amount
    return found
