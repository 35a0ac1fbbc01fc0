"""What a reader knows of the buckets is what is there, whoever changed it and whenever."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aggregator.fusion import Cell
from aggregator.known_buckets import TURN_S, KnownBuckets
from aggregator.redis_store import RedisStore
from aggregator.store import Bucket, Changes, Place, PlaceCell, Position
from aggregator.windows import retentions, rolling_windows
from pipeline.embedded_valkey import EmbeddedValkey

WINDOWS = rolling_windows({"1m": 60, "1h": 3600, "24h": 86400})
NOW = float(int(time.time()))
CELLS = [PlaceCell("museum", "hall", Cell(gender, "25-34", "white")) for gender in ("male", "female")]
HALL = Place("museum", "hall")


@pytest.fixture(scope="module")
def valkey() -> Iterator[EmbeddedValkey]:
    """Run a server."""
    with EmbeddedValkey() as server:
        yield server


def opened(valkey: EmbeddedValkey, namespace: str) -> RedisStore:
    """Open a store that knows nothing yet."""
    return RedisStore(valkey.url, retentions(WINDOWS), namespace=namespace)


def count(store: RedisStore, at: float, cell: PlaceCell, amount: int = 1, partition: int = 0) -> None:
    """Count so many at a time."""
    held = store.positions([partition])[partition]
    end = Position(held.offset + 1 if held else 1, held.revision + 1 if held else 1)
    changes = Changes()
    changes.counted[at, cell] += amount
    store.load(partition)
    assert store.apply(partition, changes, start=held, end=end)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.integers(0, 1), st.integers(0, 1), st.integers(-100, 90000), st.integers(1, 3), st.integers(0, 900)
        ),
        max_size=12,
    ),
    st.integers(0, 2**32 - 1),
)
def test_a_reader_that_stayed_sees_what_a_new_one_sees(
    valkey: EmbeddedValkey, history: list[tuple[int, int, int, int, int]], number: int
) -> None:
    """Whatever comes between its readings, late corrections and buckets that roll out of the windows included."""
    namespace = f"stayed-{number}"
    writer, stayed = opened(valkey, namespace), opened(valkey, namespace)
    writer.drop()
    now = NOW
    for partition, cell, ago, amount, later in history:
        count(writer, now - ago, CELLS[cell], amount, partition)
        fresh = opened(valkey, namespace)
        assert stayed.snapshot(now, WINDOWS) == fresh.snapshot(now, WINDOWS)
        for window in WINDOWS:
            assert stayed.series(now, window) == fresh.series(now, window)
        fresh.close()
        now += later
    writer.drop()
    writer.close()
    stayed.close()


def test_only_what_changed_travels(valkey: EmbeddedValkey) -> None:
    """A day of full buckets is read once; after that the one that was counted into, of each resolution."""
    store = opened(valkey, "travels")
    for minutes in range(0, 1430, 10):
        for cell in CELLS:
            count(store, NOW - 60 * minutes, cell)
    day = store.snapshot(NOW, WINDOWS).windows["24h"][HALL].people.total()
    assert day == 2 * 143
    with redis.Redis.from_url(valkey.url) as client:

        def travelled() -> tuple[int, int]:
            client.config_resetstat()
            shown = store.snapshot(NOW, WINDOWS).windows["24h"][HALL].people.total()
            stats = client.info("commandstats")
            return shown, stats["cmdstat_hgetall"]["calls"] - 2 - _empty(client, store)

        assert travelled() == (day, 0)
        count(store, NOW - 7200, CELLS[0])
        assert travelled() == (day + 1, 1)
        count(store, NOW, CELLS[0])
        assert travelled() == (day + 2, 3)
    store.close()


def _empty(client: redis.Redis, store: RedisStore) -> int:
    """Count the buckets of the windows that are not there; those are asked for twice."""
    every = {(window.bucket_s, start) for window in WINDOWS for start in window.buckets(NOW)}
    return sum(not client.exists(store._bucket(0, Bucket(*each))) for each in every)


def test_buckets_of_an_earlier_version_are_read_anew(valkey: EmbeddedValkey) -> None:
    """They have no mark, until something is counted into them."""
    store = opened(valkey, "earlier")
    count(store, NOW, CELLS[0])
    with redis.Redis.from_url(valkey.url) as client:
        keys = list(client.scan_iter("earlier:{0}:b:*"))
        assert len(keys) == 3
        for amount in (5, 6):
            for key in keys:
                client.delete(key.replace(b":b:", b":m:"))
                client.hset(key, "p|museum|hall|male|25-34", amount)
            shown = store.snapshot(NOW, WINDOWS).windows
            assert {shown[window.name][HALL].people["male", "25-34"] for window in WINDOWS} == {amount}
    store.close()


def test_what_was_changed_without_a_mark_is_seen_within_ten_minutes(valkey: EmbeddedValkey) -> None:
    """As by an aggregator of an earlier version, beside this one while it is upgraded; not all at the same moment."""
    store = opened(valkey, "unmarked")
    for minutes in range(60, 1430, 10):
        count(store, NOW - 60 * minutes, CELLS[0])
    assert store.snapshot(NOW, WINDOWS).windows["24h"][HALL].people.total() == 137
    with redis.Redis.from_url(valkey.url) as client:
        for key in client.scan_iter("unmarked:{0}:b:600:*"):
            client.hincrby(key, "p|museum|hall|male|25-34", 1)
    shown = [store.snapshot(NOW + later, WINDOWS).windows["24h"][HALL].people.total() for later in range(0, 601, 60)]
    assert shown[-1] >= 2 * 137 - 2  # one rolled out
    assert max(after - before for before, after in itertools.pairwise(shown)) < 30
    store.close()


def test_what_is_gone_is_known_no_more(valkey: EmbeddedValkey) -> None:
    """A store that was emptied is empty, and what rolled out of every window is let go."""
    store = opened(valkey, "gone")
    count(store, NOW, CELLS[0])
    assert store.snapshot(NOW, WINDOWS).windows["24h"]
    assert len(store._known) == 3
    assert not store.snapshot(NOW + 4000, WINDOWS).windows["1h"]
    assert len(store._known) == 1
    store.snapshot(NOW + 90000, WINDOWS)
    assert not len(store._known)
    assert store.snapshot(NOW, WINDOWS).windows["24h"]
    store.drop()
    store.load(0)
    assert not store.snapshot(NOW, WINDOWS).windows["24h"]
    store.close()


def test_a_store_that_was_lost_and_filled_again_is_seen_as_it_is(valkey: EmbeddedValkey) -> None:
    """At the very same position, with other counts: a step's mark is never given twice."""
    writer, stayed = opened(valkey, "lost"), opened(valkey, "lost")
    count(writer, NOW, CELLS[0])
    assert stayed.snapshot(NOW, WINDOWS).windows["24h"][HALL].people == {("male", "25-34"): 1}
    writer.drop()
    count(writer, NOW, CELLS[1], amount=2)
    assert writer.positions([0])[0] == Position(1, 1)
    assert stayed.snapshot(NOW, WINDOWS).windows["24h"][HALL].people == {("female", "25-34"): 2}
    writer.close()
    stayed.close()


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(-3, 3)),
    st.dictionaries(st.sampled_from("abcdef"), st.integers(-3, 3)),
)
def test_sums_are_those_of_the_parts(one: dict[str, int], two: dict[str, int]) -> None:
    """Over partitions and buckets; zeros are left out."""
    known, buckets = KnownBuckets(), [Bucket(5, 0), Bucket(5, 5)]

    def answer(*counts: dict[str, int]) -> list[object]:
        found: list[object] = []
        for index, each in enumerate(counts, start=1):
            flat = [part for field, amount in each.items() for part in (field.encode(), str(amount).encode())]
            found += [index, b"9:9", flat]
        return found

    known.learn(0, buckets, answer(one, two), NOW)
    known.learn(1, buckets, answer(two), NOW)
    expected = Counter[str]()
    for each in (one, two, two):
        for field, amount in each.items():
            expected[field] += amount
    assert known.total([0, 1], buckets) == {field: amount for field, amount in expected.items() if amount}
    assert known.marks(1, buckets, NOW) == [b"9:9" if two else b"", b""]
    assert known.marks(1, buckets, NOW + TURN_S) == [b"", b""]
