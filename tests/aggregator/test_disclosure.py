"""What may be published: no breakdown of few, whatever is subtracted from what; the number of visitors always."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping

from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from aggregator.api import mount_api
from aggregator.disclosure import (
    Disclosure,
    PublishedCounts,
    disclosed,
    disclosed_series,
    shown_of_disjoint,
    shown_of_nested,
)
from aggregator.exporter import VisitorsCollector
from aggregator.fusion import Cell
from aggregator.health import PipelineHealth
from aggregator.memory_store import MemoryStore
from aggregator.store import Changes, Place, PlaceCell, Position, Snapshot, Tally
from aggregator.windows import retentions, rolling_windows
from pipeline.attributes import AGE_BANDS, ETHNICITIES, GENDERS, SUPPRESSED
from pipeline.http import make_app
from pipeline.telemetry import Telemetry

WINDOWS = rolling_windows({"1m": 60, "5m": 300, "1h": 3600})
NOW = 1_790_000_000.0
K = 5

people = st.tuples(
    st.sampled_from(("hall", "gate", "shop")),
    st.integers(0, 3599),  # seconds ago
    st.builds(Cell, st.sampled_from(GENDERS), st.sampled_from(AGE_BANDS[:3]), st.sampled_from(ETHNICITIES[:2])),
)
crowds = st.lists(people, max_size=60)


def store_of(crowd: list[tuple[str, int, Cell]]) -> MemoryStore:
    """Count a crowd."""
    store = MemoryStore(retentions(WINDOWS))
    changes = Changes()
    for camera, ago, cell in crowd:
        changes.counted[(NOW - ago, PlaceCell("museum", camera, cell))] += 1
        if ago > 10:  # the others have not left yet
            changes.totals[PlaceCell("museum", camera, cell)] += 1
    store.apply(0, changes, start=None, end=Position(1, 1))
    return store


def differences(groups: list[Tally]) -> list[int]:
    """Subtract every published breakdown from every other, and give how many people each remainder is of."""
    told = [Counter(group.people) for group in groups if not group.people[(SUPPRESSED, SUPPRESSED)]]
    return [
        sum(abs(one[cell] - other[cell]) for cell in one | other) for n, one in enumerate(told) for other in told[:n]
    ]


@given(crowds)
def test_nobody_is_found_by_subtracting_windows_or_cameras(crowd: list[tuple[str, int, Cell]]) -> None:
    """Every breakdown, and what is left between any two of a camera, is of k visitors at least, or of nobody."""
    snapshot = store_of(crowd).snapshot(NOW, WINDOWS)
    shown = disclosed(snapshot, Disclosure(K))
    for place in snapshot.totals.keys() | {place for tallies in snapshot.windows.values() for place in tallies}:
        groups = [t[place] for t in (*shown.windows.values(), shown.totals) if place in t]
        for group in groups:
            assert group.people[(SUPPRESSED, SUPPRESSED)] in {0, group.people.total()}  # all of it or nothing
            assert group.people[(SUPPRESSED, SUPPRESSED)] or group.people.total() >= K
        # Between two groups that are told lie k visitors or nobody; the same number of others may have come as gone.
        windows = [t[place] for t in shown.windows.values() if place in t]
        assert all(left == 0 or left >= K for left in differences(windows))


@given(crowds)
def test_every_visitor_is_in_the_numbers(crowd: list[tuple[str, int, Cell]]) -> None:
    """What is suppressed is what they were, not that they were there; and for k = 1 nothing is."""
    store = store_of(crowd)
    snapshot, shown = store.snapshot(NOW, WINDOWS), disclosed(store.snapshot(NOW, WINDOWS), Disclosure(K))

    def sizes(of: Snapshot) -> Mapping[str, Mapping[Place, int]]:
        return {
            name: {p: t.people.total() for p, t in ts.items()} for name, ts in {**of.windows, "ever": of.totals}.items()
        }

    assert sizes(snapshot) == sizes(shown)
    assert disclosed(snapshot, Disclosure(1)) == snapshot


@given(crowds)
def test_buckets_that_are_not_told_do_not_follow_from_the_window(crowd: list[tuple[str, int, Cell]]) -> None:
    """A camera's buckets that are suppressed are k visitors at least, together, unless nothing of it is told."""
    hour = WINDOWS[-1]
    series = disclosed_series(store_of(crowd).series(NOW, hour), Disclosure(K))
    for camera in ("hall", "gate", "shop"):
        mine = [tallies[Place("museum", camera)] for _, tallies in series if Place("museum", camera) in tallies]
        hidden = sum(tally.people[(SUPPRESSED, SUPPRESSED)] for tally in mine)
        told = [tally for tally in mine if not tally.people[(SUPPRESSED, SUPPRESSED)]]
        assert all(tally.people.total() >= K for tally in told)
        assert hidden == 0 or hidden >= K or not told


def test_the_rules_by_example() -> None:
    """As the module draws them."""
    assert shown_of_nested([31, 29, 12, 3], K) == [True, False, True, False]
    assert shown_of_nested([31, 31, 26], K) == [True, True, True]  # the same people
    assert shown_of_disjoint([9, 7, 2], K) == [True, False, False]  # the seven hide the two
    assert shown_of_disjoint([9, 7, 5], K) == [True, True, True]
    assert shown_of_disjoint([2, 1], K) == [False, False]


def test_metrics_api_csv_and_series_suppress_alike() -> None:
    """Six in the hall are told, three at the gate are a number; the sum over cameras tells the six and no more."""
    woman, man = Cell("female", "25-34", "asian"), Cell("male", "65+", "white")
    crowd = [("hall", 30, woman)] * 6 + [("gate", 30, man)] * 3
    counts = PublishedCounts(store_of(crowd), Disclosure(K))
    telemetry = Telemetry(("aggregator",))
    telemetry.collect_with(VisitorsCollector(counts, WINDOWS, telemetry, clock=lambda: NOW))
    app = make_app("t", telemetry.registry, list)
    mount_api(app, counts, WINDOWS, PipelineHealth(telemetry), clock=lambda: NOW)
    with TestClient(app) as client:
        hour = client.get("/api/v1/windows").json()["windows"][-1]
        assert (hour["visitors"], hour["suppressed"], hour["unknown"]) == (9, 3, 0)
        assert (hour["gender"], hour["ethnicity"]["white"]) == ({"male": 0, "female": 6}, 0)
        assert hour["cameras"]["gate"]["visitors"] == hour["cameras"]["gate"]["suppressed"] == 3
        lines = client.get("/metrics").text.splitlines()
        gate = [line for line in lines if 'camera="gate"' in line and line.startswith("demographics_visitors")]
        assert gate
        assert all(f'"{SUPPRESSED}"' in line and line.endswith(" 3.0") for line in gate)
        rows = list(csv.DictReader(io.StringIO(client.get("/api/v1/visitors?window=1h&format=csv").text)))
        assert [(row["visitors"], row["suppressed"], row["gender_male"]) for row in rows if row["visitors"] != "0"] == [
            ("9", "3", "0")
        ]


def test_what_is_switched_off_is_not_published_though_it_was_kept() -> None:
    """Counts from before the switch lie in the store for as long as the longest window: nobody sees them."""
    store = store_of(
        [("hall", 30, Cell("female", "25-34", "asian")), ("hall", 30, Cell("unknown", "unknown", "unknown"))]
    )
    counts = PublishedCounts(store, Disclosure(attributes=frozenset({"age"})))
    tally = counts.snapshot(NOW, WINDOWS).windows["1h"][Place("museum", "hall")]
    assert tally == Tally(Counter({("", "25-34"): 1, ("unknown", "unknown"): 1}), Counter())
