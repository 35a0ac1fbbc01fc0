"""The law of exact counts: whatever happens to aggregators and store, the cells are those of one reading of the log.

A log of predictions grows; three aggregators read it as a group in disorder would: behind, ahead, two at a time, cut off in the
middle of a call. The store loses answers, falls back in time, comes back empty. At every moment its cells have to be those that
the plainest sequential program gives for the log up to the store's own position.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from typing import Any, ClassVar
from uuid import uuid4

import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from aggregator.fusion import Cell, evidence_of, fuse
from aggregator.handler import CountingHandler
from aggregator.memory_store import MemoryStore
from aggregator.redis_store import RedisStore
from aggregator.step import CountingConfig
from aggregator.store import Changes, Dump, PartitionState, Place, Position, Snapshot, Store, Tally
from aggregator.windows import retentions, rolling_windows
from pipeline.bus import PREDICTIONS, Record, Span, TopicPartition
from pipeline.errors import InvalidMessage, TransportError
from pipeline.messages import CameraStatus, Message, Prediction, TrackEnded, decode, encode, headers
from pipeline.telemetry import Telemetry
from tests.servers import ValkeyServer

CONFIG = CountingConfig(enough_crops=2, least_evidence=0.3, idle_s=60, remember_s=600)
WINDOWS = rolling_windows({"1h": 3600, "24h": 86400})
P0 = TopicPartition(PREDICTIONS, 0)
CAMERAS = ("hall", "door")

Cells = Counter[tuple[str, str, str, str]]  # camera, gender, age band, ethnicity


class Sequential:
    """Reads a log from its beginning, one message after another, and remembers everything: the plainest counting there is."""

    def __init__(self) -> None:
        self.tracks: dict[tuple[str, int], dict[str, Any]] = {}
        self.clocks: dict[str, list[float]] = {}  # camera -> connection, began, now, before

    def read(self, message: Message) -> None:
        """Take in one message."""
        if not isinstance(message, (Prediction, TrackEnded)):
            return
        camera, connection = message.camera_id, message.track_id >> 20
        if isinstance(message, Prediction):
            at, first_word = message.captured_at, message.sequence == 0
        else:
            at, first_word = message.last_seen, message.crops == 0
        clock = self.clocks.setdefault(camera, [connection, at, at, 0.0])
        if connection > clock[0]:
            clock[:] = [connection, at, at, max(clock[2:])]
        elif connection == clock[0]:
            clock[2] = max(clock[2], at)
        key = (camera, message.track_id)
        now = clock[2] if connection == clock[0] else max(clock[2:])
        if key in self.tracks or now - (at if first_word else message.first_seen) <= CONFIG.remember_s:
            track = self.tracks.setdefault(
                key, {"first": message.first_seen, "last": at, "said": {}, "cell": None, "open": True}
            )
            if track["open"] and isinstance(message, TrackEnded):
                track["last"] = max(track["last"], at)
                self._close(track, visitor=message.visitor)
            elif track["open"] and isinstance(message, Prediction) and message.sequence not in track["said"]:
                track["last"] = max(track["last"], at)
                track["said"][message.sequence] = evidence_of(message)
                if len(track["said"]) >= CONFIG.enough_crops:
                    track["cell"] = fuse(list(track["said"].values()), CONFIG.least_evidence).cell
        for (whose, number), track in self.tracks.items():
            heard = track["last"] if number >> 20 >= clock[0] else max(track["last"], clock[1])
            if whose == camera and track["open"] and clock[2] - heard > CONFIG.idle_s:
                self._close(track)

    @staticmethod
    def _close(track: dict[str, Any], *, visitor: bool = True) -> None:
        said = list(track["said"].values())
        track["cell"], track["open"] = fuse(said, CONFIG.least_evidence).cell if visitor else None, False

    def cells(self, since: float | None = None) -> Cells:
        """Count who has left, or, *since* a time, who has been seen first."""
        cells: Cells = Counter()
        for (camera, _), track in self.tracks.items():
            if track["cell"] and (not track["open"] if since is None else track["first"] >= since):
                cell: Cell = track["cell"]
                cells[(camera, cell.gender, cell.age_band, cell.ethnicity)] += 1
        return cells


def people(cells: Cells) -> Counter[tuple[str, str, str]]:
    """Leave out ethnicity, which the store keeps apart."""
    found: Counter[tuple[str, str, str]] = Counter()
    for (camera, gender, band, _), count in cells.items():
        found[(camera, gender, band)] += count
    return found


def ethnicities(cells: Cells) -> Counter[tuple[str, str]]:
    """Leave out gender and age."""
    found: Counter[tuple[str, str]] = Counter()
    for (camera, _, _, ethnicity), count in cells.items():
        found[(camera, ethnicity)] += count
    return found


def stored(tallies: dict[Place, Tally]) -> tuple[Counter[tuple[str, str, str]], Counter[tuple[str, str]]]:
    """Give what a store shows, in the same words."""
    return (
        Counter(
            {(place.camera_id, *labels): n for place, tally in tallies.items() for labels, n in tally.people.items()}
        ),
        Counter(
            {(place.camera_id, label): n for place, tally in tallies.items() for label, n in tally.ethnicity.items()}
        ),
    )


class Shaky:
    """A store whose next answer is lost on its way, or whose next call never arrives."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.lose: str = ""

    def load(self, partition: int) -> PartitionState:
        """Ask the store."""
        return self._store.load(partition)

    def apply(self, partition: int, changes: Changes, *, start: Position | None, end: Position) -> bool:
        """Ask the store, or do not; say so, or do not."""
        lose, self.lose = self.lose, ""
        if lose == "call":
            raise TransportError("connection refused")
        done = self._store.apply(partition, changes, start=start, end=end)
        if lose == "answer":
            raise TransportError("connection reset")
        return done

    def positions(self, partitions: Any) -> Any:
        """Ask the store."""
        return self._store.positions(partitions)

    def snapshot(self, now: float, windows: Any) -> Snapshot:
        """Ask the store."""
        return self._store.snapshot(now, windows)

    def series(self, now: float, window: Any) -> Any:
        """Ask the store."""
        return self._store.series(now, window)

    def dump(self, partition: int, now: float) -> Dump:
        """Ask the store."""
        return self._store.dump(partition, now)

    def ping(self) -> None:
        """Ask the store."""
        self._store.ping()


class MemoryServer:
    """A store in this process that can fall back in time."""

    def __init__(self) -> None:
        self.store = MemoryStore(retentions(WINDOWS))

    def dump(self) -> Any:
        """Write everything down."""
        return deepcopy({name: value for name, value in vars(self.store).items() if name != "_lock"})

    def restore(self, dump: Any) -> None:
        """Be as it was then."""
        vars(self.store).update(deepcopy(dump))

    def close(self) -> None:
        """Do nothing."""


class RedisServer:
    """A namespace of a real server that can fall back in time."""

    def __init__(self, url: str) -> None:
        self._namespace = f"x{uuid4().hex[:12]}"
        self._client = redis.Redis.from_url(url)
        self.store = RedisStore(url, retentions(WINDOWS), namespace=self._namespace)

    def _keys(self) -> list[bytes]:
        return list(self._client.scan_iter(f"{self._namespace}:*", count=1000))

    def dump(self) -> Any:
        """Write everything down."""
        return [(key, max(self._client.pttl(key), 0), self._client.dump(key)) for key in self._keys()]

    def restore(self, dump: Any) -> None:
        """Be as it was then."""
        self.clear()
        for key, ttl, value in dump:
            if value is not None:
                self._client.restore(key, ttl, value)

    def clear(self) -> None:
        """Lose everything."""
        if keys := self._keys():
            self._client.delete(*keys)

    def close(self) -> None:
        """Leave nothing."""
        self.clear()
        self.store.close()
        self._client.close()


class Aggregator:
    """One member: a handler, and where it reads."""

    def __init__(self, machine: ExactCounts) -> None:
        self.machine = machine
        self.at: int | None = None  # until the group gives it the partition
        self.handler = CountingHandler(
            machine.shaky, CONFIG, Telemetry(("aggregator",)), dead_letter=machine.letter, publish=machine.append_all,
            clock=lambda: machine.now,
        )  # fmt: skip

    def begin(self) -> None:
        """Be given the partition, or read it again."""
        self.at = self.handler.start_at(P0, Span(0, len(self.machine.log)))

    def read(self, count: int) -> None:
        """Handle the next records, as the worker's loop would."""
        if self.at is None:
            self.begin()
        assert self.at is not None
        batch = self.machine.log[self.at : self.at + count]
        self.at += len(batch)
        for _ in range(3):
            with suppress(TransportError):
                if self.handler.handle(batch):
                    self.begin()
                return


class ExactCounts(RuleBasedStateMachine):
    """What may happen."""

    server_of: ClassVar[Callable[[], MemoryServer | RedisServer]]

    def __init__(self) -> None:
        super().__init__()
        self.server = type(self).server_of()
        self.empty = self.server.dump()
        self.shaky = Shaky(self.server.store)
        self.log: list[Record] = []
        self.letters = 0
        self.began = time.time() - 12 * 3600  # well within the longest window, and far from its edges
        self.now = time.time()
        self.event_time = dict.fromkeys(CAMERAS, self.began)
        self.connections = dict.fromkeys(CAMERAS, int(self.began))
        self.first_seen: dict[tuple[str, int], float] = {}
        self.said: dict[tuple[str, int, int], Message] = {}
        self.dumps: list[Any] = []
        self.members = [Aggregator(self) for _ in range(3)]

    def append(self, message: Message | bytes) -> None:
        """Put a record at the end of the log."""
        value = message if isinstance(message, bytes) else encode(message)
        self.log.append(Record(PREDICTIONS, 0, len(self.log), b"k", value, headers(), self.now))

    def append_all(self, messages: Any) -> None:
        """Put several."""
        for message in messages:
            self.append(message)

    def letter(self, record: Record, error: Exception) -> None:
        """Count a dead letter."""
        self.letters += 1

    def _track(self, camera: str, number: int) -> tuple[int, float]:
        track = (self.connections[camera] << 20) + number
        return track, self.first_seen.setdefault((camera, track), self.event_time[camera])

    @rule(
        camera=st.sampled_from(CAMERAS), number=st.integers(0, 3), sequence=st.integers(0, 4), back_s=st.integers(0, 90),
        quality=st.sampled_from([0.1, 0.4, 0.9]), age=st.sampled_from([9.5, 30.0, 70.0]), p_female=st.sampled_from([0.1, 0.9]),
    )  # fmt: skip
    def predict(
        self, camera: str, number: int, sequence: int, back_s: int, quality: float, age: float, p_female: float
    ) -> None:
        """Say something of a track, now or somewhat late, in any order."""
        track, first = self._track(camera, number)
        end = self.said.get((camera, track, -1))
        latest = end.last_seen if isinstance(end, TrackEnded) else self.event_time[camera]
        if (camera, track, 0) not in self.said:
            sequence = 0  # a track's first crop is sent first; what comes later, late or again, may come in any order
        said = Prediction(
            camera_id=camera, track_id=track, sequence=sequence, first_seen=first, quality=quality, age=age, p_female=p_female,
            captured_at=max(first, latest - back_s), p_ethnicity=(0.2, 0.2, 0.2, p_female / 2, 0.1),
        )  # fmt: skip
        self._say(camera, track, sequence, said)

    @rule(
        camera=st.sampled_from(CAMERAS), number=st.integers(0, 3), crops=st.integers(0, 5),
        visitor=st.sampled_from([True, True, True, False]),
    )  # fmt: skip
    def end(self, camera: str, number: int, crops: int, *, visitor: bool = True) -> None:
        """Say that a track has ended, heard of before or not; now and then that it was nobody."""
        track, first = self._track(camera, number)
        crops = crops or any(whose[:2] == (camera, track) for whose in self.said)
        at = self.event_time[camera]
        ended = TrackEnded(
            camera_id=camera, track_id=track, first_seen=first, last_seen=at, crops=int(crops), visitor=visitor
        )
        self._say(camera, track, -1, ended)

    def _say(self, camera: str, track: int, what: int, message: Prediction | TrackEnded) -> None:
        """Append what is said of a track; the same in the same words, and nothing more of one that ended without a crop."""
        end = self.said.get((camera, track, -1))
        if what < 0 or not (isinstance(end, TrackEnded) and end.crops == 0):
            self.append(self.said.setdefault((camera, track, what), message))

    @rule(
        camera=st.sampled_from(CAMERAS), number=st.integers(4, 9), crops=st.integers(0, 4), p_female=st.sampled_from([0.1, 0.9]),
        seconds=st.sampled_from([1, 20, 61, 601]), end=st.booleans(),
    )  # fmt: skip
    def pass_by(self, camera: str, number: int, crops: int, p_female: float, seconds: int, end: bool) -> None:
        """Let a whole person pass by, and the camera's time go on."""
        for sequence in range(crops):
            self.predict(camera, number, sequence, 0, 0.4, 30.0, p_female)
            self.event_time[camera] += 1
        if end:
            self.end(camera, number, crops)
        self.event_time[camera] += seconds

    @rule(camera=st.sampled_from(CAMERAS), back_s=st.sampled_from([0, 30, 1000]))
    def reconnect(self, camera: str, back_s: int) -> None:
        """Begin a new connection, whose clock may be behind: a film that is read again."""
        self.connections[camera] += 1
        self.event_time[camera] = max(self.began, self.event_time[camera] - back_s)

    @rule(where=st.floats(0, 1), count=st.integers(1, 8))
    def repeat(self, where: float, count: int) -> None:
        """Bring some of the log once more: an inference worker died, or was frozen for hours."""
        first = int(where * len(self.log))
        for record in self.log[first : first + count]:
            self.append(record.value)

    @rule(junk=st.sampled_from([b"junk", b"", encode(CameraStatus(camera_id="hall", at=1.0, state="running"))]))
    def something_else(self, junk: bytes) -> None:
        """Not everything in the topic counts."""
        self.append(junk)

    @rule(member=st.integers(0, 2), count=st.integers(1, 12), lose=st.sampled_from(["", "", "", "answer", "call"]))
    def read(self, member: int, count: int, lose: str) -> None:
        """One of them handles the next batch, of any size; it may be a zombie."""
        self.shaky.lose = lose
        self.members[member].read(count)
        self.shaky.lose = ""

    @rule(member=st.integers(0, 2), crashed=st.booleans())
    def take_over(self, member: int, crashed: bool) -> None:
        """Rebalance; whoever had the partition does not know yet. One that has crashed is another process now."""
        if crashed:
            self.members[member] = Aggregator(self)
        self.members[member].begin()

    @rule(member=st.integers(0, 2), seconds=st.sampled_from([6.0, 70.0]))
    def idle(self, member: int, seconds: float) -> None:
        """Time passes with nothing to read; cameras may have gone silent, the store may be elsewhere."""
        self.now += seconds
        aggregator = self.members[member]
        if aggregator.handler.idle(frozenset({P0}), lambda _: 0):
            aggregator.begin()

    @rule(which=st.integers(0, 4))
    def fall_back(self, which: int) -> None:
        """Let the store come back as it was some time ago, or empty; what it was now may come back later."""
        now = self.server.dump()
        self.server.restore(self.dumps[-which] if 0 < which <= len(self.dumps) else self.empty)
        self.dumps.append(now)

    @rule()
    def remember(self) -> None:
        """Note how the store is, to fall back to."""
        self.dumps.append(self.server.dump())

    @invariant()
    def the_cells_are_those_of_the_log(self) -> None:
        """Up to where the store says that it is."""
        position = self.server.store.load(0).position
        truth = Sequential()
        for record in self.log[: position.offset if position else 0]:
            with suppress(InvalidMessage):
                truth.read(decode(record.value, record.headers))
        now = time.time()
        shown = self.server.store.snapshot(now, WINDOWS)
        totals = truth.cells()
        assert stored(dict(shown.totals)) == (people(totals), ethnicities(totals))
        visible = truth.cells(since=now - 86400)
        assert stored(dict(shown.windows["24h"])) == (people(visible), ethnicities(visible))

    def teardown(self) -> None:
        """Let whoever is left read everything: nothing is lost for good."""
        aggregator = Aggregator(self)
        aggregator.read(len(self.log) + 1)
        position = self.server.store.load(0).position
        assert (position.offset if position else 0) == len(self.log)
        self.the_cells_are_those_of_the_log()
        self.server.close()


def test_any_history_equals_the_sequential_model_in_memory() -> None:
    """On the plainest store, many histories."""

    class InMemory(ExactCounts):
        server_of = MemoryServer

    run_state_machine_as_test(
        InMemory,
        settings=settings(
            max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_any_history_equals_the_sequential_model_on_the_real_server(valkey_server: ValkeyServer) -> None:
    """On Valkey, with its scripts and its expiry."""

    class OnValkey(ExactCounts):
        server_of = staticmethod(lambda: RedisServer(valkey_server.url))

    run_state_machine_as_test(
        OnValkey,
        settings=settings(
            max_examples=30, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
