"""How counts are written down: one text per counted thing, the same in every store.

    p|site|camera|gender|age_band     people
    e|site|camera|ethnicity           kept apart from gender and age, so that small groups cannot be read out of the store

Names hold no '|' (see messages.Name), nor do labels.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from aggregator.store import Bucket, Changes, Place, PlaceCell, Tally
from aggregator.windows import Retention


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
        for retention in kept:
            for field in fields_of(counted):
                deltas[Bucket(retention.bucket_s, retention.bucket(first_seen))][field] += amount
    return {bucket: Counter({f: n for f, n in counts.items() if n}) for bucket, counts in deltas.items()}


def total_deltas(changes: Changes) -> Counter[str]:
    """Give what the step adds to the totals, by field."""
    totals: Counter[str] = Counter()
    for counted, amount in changes.totals.items():
        for field in fields_of(counted):
            totals[field] += amount
    return totals


def tallies(counts: Mapping[str, int]) -> dict[Place, Tally]:
    """Read summed fields back; what has come to zero is left out."""
    found: dict[Place, Tally] = {}
    for field, amount in counts.items():
        if not amount:
            continue
        kind, site, camera, *labels = field.split("|")
        tally = found.setdefault(Place(site, camera), Tally(Counter(), Counter()))
        if kind == "p":
            tally.people[(labels[0], labels[1])] += amount
        else:
            tally.ethnicity[labels[0]] += amount
    return found
