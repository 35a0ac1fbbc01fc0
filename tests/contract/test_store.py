"""One promise of the store, every implementation: counts and position move together, once."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aggregator.fusion import Cell, Evidence
from aggregator.memory_store import MemoryStore
from aggregator.redis_store import RedisStore
from aggregator.store import TOLD_S, Changes, Place, PlaceCell, Position, Store, TrackState
from aggregator.windows import retentions, rolling_windows
from pipeline.errors import ConfigError, TransportError
from pipeline.messages import CameraStatus
from tests.servers import ValkeyCluster, ValkeySentinel, ValkeyServer, wait_until

WINDOWS = rolling_windows({"1m": 60, "1h": 3600, "24h": 86400})
NOW = float(int(time.time()))  # buckets expire by the server's clock
MAN = PlaceCell("museum", "hall", Cell("male", "25-34", "white"))
WOMAN = PlaceCell("museum", "hall", Cell("female", "65+", "asian"))
GUEST = PlaceCell("museum", "entrance", Cell("unknown", "unknown", "unknown"))
QUIET = PlaceCell("shop", "till", Cell("female", "18-24", ""))

MakeStore = Callable[[], Store]


@pytest.fixture(scope="module")
def valkey_cluster() -> Iterator[ValkeyCluster]:
    """Run a cluster."""
    with ValkeyCluster() as cluster:
        yield cluster


@pytest.fixture(params=["memory", "redis", "cluster"])
def make_store(request: pytest.FixtureRequest, topic_prefix: str) -> Iterator[MakeStore]:
    """Make stores that share their counts, as two aggregators do."""
    if request.param == "memory":
        store = MemoryStore(retentions(WINDOWS))
        yield lambda: store
        return
    server: ValkeyServer | ValkeyCluster = request.getfixturevalue(
        "valkey_server" if request.param == "redis" else "valkey_cluster"
    )
    opened: list[RedisStore] = []

    def make() -> Store:
        opened.append(RedisStore(server.url, retentions(WINDOWS), namespace=topic_prefix))
        return opened[-1]

    yield make
    for made in opened:
        made.close()


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    """Make one."""
    return make_store()


def counted(*visitors: tuple[float, PlaceCell], amount: int = 1) -> Changes:
    """Count visitors first seen at a time."""
    changes = Changes()
    for seen in visitors:
        changes.counted[seen] += amount
    return changes


def test_an_empty_store_knows_nothing(store: Store) -> None:
    """No position, no tracks, no counts."""
    assert store.load(0) == (None, {}, {})
    shown = store.snapshot(NOW, WINDOWS)
    assert not shown.totals
    assert not any(shown.windows.values())


def test_counts_and_position_move_together(store: Store) -> None:
    """What was applied is there, and so is where it came from."""
    changes = counted((NOW, MAN), (NOW, WOMAN), (NOW, GUEST))
    changes.totals[MAN] += 1
    assert store.apply(3, changes, start=None, end=Position(10, 1))
    assert store.load(3).position == Position(10, 1)
    shown = store.snapshot(NOW, WINDOWS)
    for name in ("1m", "1h", "24h"):
        hall = shown.windows[name][Place("museum", "hall")]
        assert hall.people == {("male", "25-34"): 1, ("female", "65+"): 1}
        assert hall.ethnicity == {"white": 1, "asian": 1}
        assert shown.windows[name][Place("museum", "entrance")].people == {("unknown", "unknown"): 1}
    assert shown.totals[Place("museum", "hall")].people == {("male", "25-34"): 1}


def test_a_step_from_another_position_changes_nothing(store: Store) -> None:
    """A repeat, or a second owner in the middle of a rebalance, is turned away as a whole."""
    changes = counted((NOW, MAN))
    changes.totals[MAN] += 1
    assert store.apply(0, changes, start=None, end=Position(5, 1))
    for wrong in (None, Position(4, 1), Position(5, 2)):
        assert not store.apply(0, changes, start=wrong, end=Position(9, 2))
    assert store.load(0).position == Position(5, 1)
    assert store.snapshot(NOW, WINDOWS).totals[Place("museum", "hall")].people.total() == 1


def test_two_owners_at_once_count_once(make_store: MakeStore) -> None:
    """Eight at the same moment: one of them wins."""
    stores = [make_store() for _ in range(8)]
    barrier, won = threading.Barrier(len(stores)), list[bool]()

    def race(store: Store) -> None:
        barrier.wait()
        won.append(store.apply(1, counted((NOW, MAN)), start=None, end=Position(1, 1)))

    threads = [threading.Thread(target=race, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 7 + [True]
    assert stores[0].snapshot(NOW, WINDOWS).windows["1m"][Place("museum", "hall")].people.total() == 1


def test_a_correction_moves_a_visitor_to_another_cell(store: Store) -> None:
    """The window's sum stays."""
    store.apply(0, counted((NOW, MAN)), start=None, end=Position(1, 1))
    correction = counted((NOW, WOMAN))
    correction.counted[(NOW, MAN)] -= 1
    store.apply(0, correction, start=Position(1, 1), end=Position(2, 2))
    assert store.snapshot(NOW, WINDOWS).windows["1m"][Place("museum", "hall")].people == {("female", "65+"): 1}


def test_a_window_rolls_on(store: Store) -> None:
    """Who came two minutes ago is of the hour, not of the minute."""
    store.apply(0, counted((NOW - 120, MAN), (NOW, WOMAN)), start=None, end=Position(1, 1))
    shown = store.snapshot(NOW, WINDOWS).windows
    assert shown["1m"][Place("museum", "hall")].people == {("female", "65+"): 1}
    assert shown["1h"][Place("museum", "hall")].people.total() == 2


def test_partitions_add_up(make_store: MakeStore) -> None:
    """Whoever reads sees all of them, its own or not."""
    for partition in range(5):
        make_store().load(partition)
        assert make_store().apply(partition, counted((NOW, MAN)), start=None, end=Position(1, 1))
    assert make_store().snapshot(NOW, WINDOWS).windows["24h"][Place("museum", "hall")].people.total() == 5


def test_tracks_come_back_as_they_were_and_can_be_forgotten(store: Store) -> None:
    """A successor goes on where the owner stopped."""
    state = TrackState(
        "museum",
        "hall",
        7 << 40,
        NOW,
        NOW + 2.5,
        (Evidence(0, 0.5, 31.5, 0.25, (0.5, 0.2, 0.1, 0.1, 0.1)),),
        MAN.cell,
        closed=False,
    )
    store.apply(0, Changes(tracks={("hall", 7 << 40): state}), start=None, end=Position(1, 1))
    assert store.load(0).tracks == {("hall", 7 << 40): state}
    assert store.load(1).tracks == {}
    store.apply(0, Changes(tracks={("hall", 7 << 40): None}), start=Position(1, 1), end=Position(2, 2))
    assert store.load(0).tracks == {}


def test_the_last_word_of_a_camera_is_kept(store: Store) -> None:
    """For the page."""
    for at, state in ((NOW, "running"), (NOW + 1, "refused")):
        position = store.load(0).position
        status = CameraStatus(camera_id="hall", at=at, state=state, reason="wrong password")
        end = Position(1, position.revision + 1 if position else 1)
        store.apply(0, Changes(cameras={"hall": status}), start=position, end=end)
    assert store.snapshot(NOW, WINDOWS).cameras["hall"].state == "refused"


def test_an_attribute_that_is_off_is_stored_nowhere(store: Store) -> None:
    """No ethnicity, not even an empty one."""
    store.apply(0, counted((NOW, QUIET)), start=None, end=Position(1, 1))
    till = store.snapshot(NOW, WINDOWS).windows["1m"][Place("shop", "till")]
    assert till.people == {("female", "18-24"): 1}
    assert not till.ethnicity


def test_a_series_adds_up_to_its_window(store: Store) -> None:
    """Bucket by bucket, empty ones included, oldest first."""
    store.apply(0, counted((NOW - 1800, MAN), (NOW - 60, MAN), (NOW, WOMAN)), start=None, end=Position(1, 1))
    hour = WINDOWS[1]
    series = store.series(NOW, hour)
    assert [start for start, _ in series] == list(hour.buckets(NOW))
    summed = sum(tally.people.total() for _, tallies in series for tally in tallies.values())
    assert summed == store.snapshot(NOW, WINDOWS).windows["1h"][Place("museum", "hall")].people.total() == 3


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([MAN, WOMAN, GUEST, QUIET]), st.integers(0, 7200), st.booleans()),
        max_size=20,
    )
)
def test_any_history_gives_the_sums_of_what_was_applied(
    make_store: MakeStore, history: list[tuple[int, PlaceCell, int, bool]]
) -> None:
    """Steps that are turned away leave no trace, the others add up, in every window and ever."""
    store = make_store()
    base = store.snapshot(NOW, WINDOWS)
    expected: dict[str, Counter[tuple[str, str]]] = {window.name: Counter() for window in WINDOWS}
    totals: Counter[tuple[str, str]] = Counter()
    for partition, visitor, ago, fenced in history:
        position = store.load(partition).position
        end = Position(position.offset + 1 if position else 1, position.revision + 1 if position else 1)
        changes = counted((NOW - ago, visitor))
        changes.totals[visitor] += 1
        stale = Position(10**6, 1) if fenced else position
        assert store.apply(partition, changes, start=stale, end=end) == (not fenced)
        if fenced:
            continue
        cell = (visitor.cell.gender, visitor.cell.age_band)
        totals[cell] += 1
        for window in WINDOWS:
            if window.buckets(NOW)[0] <= NOW - ago:
                expected[window.name][cell] += 1
    shown = store.snapshot(NOW, WINDOWS)
    for name, people in expected.items():
        assert _people(shown.windows[name].values()) == _people(base.windows[name].values()) + people
    assert _people(shown.totals.values()) == _people(base.totals.values()) + totals


def _people(tallies: object) -> Counter[tuple[str, str]]:
    total: Counter[tuple[str, str]] = Counter()
    for tally in tallies:  # type: ignore[attr-defined]
        total.update(tally.people)
    return total


def test_buckets_expire_after_the_longest_window_that_reads_them(
    valkey_server: ValkeyServer, topic_prefix: str
) -> None:
    """Nothing is kept for ever but the totals."""
    store = RedisStore(valkey_server.url, retentions(WINDOWS), namespace=topic_prefix)
    store.apply(0, counted((NOW, MAN), (NOW - 3 * 86400, MAN)), start=None, end=Position(1, 1))
    client = store._redis
    buckets = sorted(key.decode() for key in client.scan_iter(f"{topic_prefix}:{{0}}:b:*"))
    assert len(buckets) == 3  # those of three days ago are gone at once
    for key in buckets:
        bucket_s = int(key.split(":")[-2])
        longest = max(window.seconds for window in WINDOWS if window.bucket_s == bucket_s)
        assert longest < client.ttl(key) < max(longest, 60 * bucket_s) + 2 * bucket_s + 600
    store.close()


def test_a_server_that_is_away_is_a_transport_error_that_says_what_to_do_without_the_password() -> None:
    """Wrong host, wrong port, stopped: the same kind of answer."""
    store = RedisStore("redis://u:hunter2@127.0.0.1:1/0", retentions(WINDOWS), timeout_s=0.5)
    with pytest.raises(TransportError) as away:
        store.ping()
    assert "DEMOGRAPHICS_REDIS__URL" in str(away.value)
    assert "hunter2" not in str(away.value)
    store.close()


def test_an_address_that_is_none_is_refused_at_once() -> None:
    """Waiting would not help."""
    with pytest.raises(ConfigError, match="redis://"):
        RedisStore("http://u:hunter2@h/0", retentions(WINDOWS))


def test_a_server_that_comes_back_is_used_again(topic_prefix: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """With its data, where it keeps it."""
    with ValkeyServer(tmp_path_factory.mktemp("own-valkey"), append_only=True) as server:
        store = RedisStore(server.url, retentions(WINDOWS), namespace=topic_prefix, timeout_s=1)
        store.apply(0, counted((NOW, MAN)), start=None, end=Position(1, 1))
        server.kill()
        with pytest.raises(TransportError):
            store.apply(0, counted((NOW, MAN)), start=Position(1, 1), end=Position(2, 2))
        server.start()
        assert store.load(0).position == Position(1, 1)
        assert store.apply(0, counted((NOW, MAN)), start=Position(1, 1), end=Position(2, 2))
        store.close()


def test_what_passages_add_up_to_is_kept_by_camera(make_store: MakeStore) -> None:
    """Crossings and dwell, over all partitions, beside the visitors and not among them."""
    store = make_store()
    for partition, camera in enumerate(("hall", "door", "hall")):
        changes = counted((NOW, MAN))
        changes.totals[MAN] += 1
        changes.passages.update(
            {
                ("x", "museum", camera, "in"): 2, ("x", "museum", camera, "out"): 1,
                ("d", "museum", camera, "5"): 1, ("d", "museum", camera, "inf"): 1, ("t", "museum", camera, "ms"): 2_003_500,
            }
        )  # fmt: skip
        assert store.apply(partition, changes, start=None, end=Position(1, 1))
    shown = make_store().snapshot(NOW, WINDOWS)
    hall, door = (shown.passages[Place("museum", camera)] for camera in ("hall", "door"))
    assert (hall.entries, hall.exits, round(hall.dwell_s, 3)) == (4, 2, 4007.0)
    assert hall.dwell == {"5": 2, "inf": 2}
    assert (door.entries, door.exits) == (2, 1)
    assert set(shown.totals) == {Place("museum", "hall")}
    assert sum(shown.totals[Place("museum", "hall")].people.values()) == 3


def test_the_master_that_sentinels_name_is_used_and_its_successor(topic_prefix: str) -> None:
    """Nobody tells the aggregators that the master has died; what its replica lacks is for them to find out."""
    with (
        ValkeyServer() as master,
        ValkeyServer(settings={"replicaof": f"127.0.0.1 {master.port}"}) as replica,
        ValkeySentinel(master) as sentinel,
    ):
        store = RedisStore(sentinel.url, retentions(WINDOWS), namespace=topic_prefix, timeout_s=1)
        wait_until(lambda: _answers(store), timeout_s=20, what="the master")
        assert store.apply(0, counted((NOW, MAN)), start=None, end=Position(1, 1))
        direct = RedisStore(replica.url, retentions(WINDOWS), namespace=topic_prefix)
        wait_until(lambda: direct.positions([0])[0] == Position(1, 1), timeout_s=20, what="the replica")
        wait_until(lambda: _knows_a_replica(sentinel), timeout_s=30, what="the sentinel to have found the replica")
        master.kill()
        wait_until(lambda: _applies(store), timeout_s=60, what="the replica's promotion")
        assert direct.load(0).position == Position(2, 2)
        store.close()
        direct.close()


def _answers(store: RedisStore) -> bool:
    try:
        store.ping()
    except TransportError:
        return False
    return True


def _applies(store: RedisStore) -> bool:
    try:
        return store.apply(0, counted((NOW, MAN)), start=Position(1, 1), end=Position(2, 2))
    except TransportError:
        return False


def _knows_a_replica(sentinel: ValkeySentinel) -> bool:
    with redis.Redis(port=sentinel.port) as client:
        return bool(client.sentinel_slaves("counts"))


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://u:hunter2@h:1",
        "redis+sentinel://u:hunter2@h:1/name/x",
        "redis+cluster://u:hunter2@,h:1",
        "http://u:hunter2@h",
    ],
)
def test_an_address_that_lacks_something_is_refused_with_what_to_write(url: str) -> None:
    """No name of a master, no host, no such scheme; and no password in what is said."""
    with pytest.raises(ConfigError, match="DEMOGRAPHICS_REDIS__URL") as refused:
        RedisStore(url, retentions(WINDOWS)).ping()
    assert "hunter2" not in str(refused.value)


def test_a_cluster_that_is_away_is_a_transport_error() -> None:
    """It is asked for at the first call, and again at the next."""
    store = RedisStore("redis+cluster://u:hunter2@127.0.0.1:1", retentions(WINDOWS), timeout_s=0.5)
    for _ in range(2):
        with pytest.raises(TransportError) as away:
            store.ping()
        assert "hunter2" not in str(away.value)
    store.close()


def test_what_aggregators_say_of_themselves_is_read_by_others_for_a_while(
    make_store: Callable[[], MemoryStore | RedisStore],
) -> None:
    """Two that run, and one that ran: its name does not come back, and is dropped in the end."""
    one, other = make_store(), make_store()
    one.tell("gone:1", {"state": "good"}, NOW - TOLD_S - 1)
    one.tell("a:1", {"state": "good", "waiting": {"predictions": 3}, "latency_s": None}, NOW - 5)
    other.tell("b:1", {"state": "late"}, NOW)
    other.tell("b:1", {"state": "trouble", "problems": ["no Redis"]}, NOW)
    assert make_store().told(NOW) == {
        "a:1": {"state": "good", "waiting": {"predictions": 3}, "latency_s": None},
        "b:1": {"state": "trouble", "problems": ["no Redis"]},
    }
    one.tell("a:1", {"state": "good"}, NOW + 700)
    assert set(make_store().told(NOW + 700)) == {"a:1"}
    if isinstance(one, RedisStore):
        assert set(one._all_told()) == {"a:1"}
