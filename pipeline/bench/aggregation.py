"""Predictions counted into a real Valkey, one Lua call per partition and batch."""

from __future__ import annotations

import gc
import time
from typing import Final

import redis

from aggregator.handler import CountingHandler
from aggregator.redis_store import RedisStore
from aggregator.step import CountingConfig
from aggregator.windows import retentions, rolling_windows
from pipeline.bench.rows import ROUNDS, Row, Workbench
from pipeline.bus import PREDICTIONS, Record, Span, TopicPartition
from pipeline.distributed import keep_for_good
from pipeline.embedded_valkey import EmbeddedValkey
from pipeline.messages import Message, Prediction, TrackEnded, encode, headers
from pipeline.settings import Settings
from pipeline.telemetry import Telemetry

PART: Final = "aggregation"
RECORDS: Final = 48_000
BATCH: Final = 2000
CROPS_OF_A_TRACK: Final = 4
CAMERAS: Final = 80
PEOPLE: Final = 3
PASSAGE_S: Final = 3.0


def predictions(count: int, now: float) -> list[Message]:
    """Give what about *count* records say that end at *now*: tracks of four crops and their ends, as a partition mixes them.

    Three people at a time are before each of eighty cameras, and stay for three seconds.
    """
    at_once = CAMERAS * PEOPLE
    passages = count // (at_once * (CROPS_OF_A_TRACK + 1))
    said: list[Message] = []
    for passage in range(passages):
        first_seen = now - (passages - passage) * PASSAGE_S
        for sequence in range(CROPS_OF_A_TRACK):
            at = first_seen + sequence * PASSAGE_S / CROPS_OF_A_TRACK
            said += [
                Prediction(
                    camera_id=f"camera-{number % CAMERAS}", track_id=passage * at_once + number, sequence=sequence,
                    first_seen=first_seen, captured_at=at, quality=0.8, age=number % 80 + sequence * 0.7, age_spread=5.0,
                    p_female=0.1 + number % 2 * 0.8 + sequence * 0.01, p_ethnicity=(0.6, 0.1, 0.1, 0.1, 0.1),
                )
                for number in range(at_once)
            ]  # fmt: skip
        said += [
            TrackEnded(
                camera_id=f"camera-{number % CAMERAS}", track_id=passage * at_once + number, first_seen=first_seen,
                last_seen=first_seen + PASSAGE_S, crops=CROPS_OF_A_TRACK, dwell_s=PASSAGE_S,
            )
            for number in range(at_once)
        ]  # fmt: skip
    return said


def measure(bench: Workbench) -> list[Row]:
    """Measure records a second, and what of it is this process's own core."""
    walls, peers, limits = [], [], []
    with EmbeddedValkey() as valkey:
        for number in range(ROUNDS):
            bench.progress(f"{PART}: round {number + 1} of {ROUNDS}")
            walls.append(_ours(bench.settings, valkey.url, f"bench{number}"))
            peers.append(_plainly(valkey.url, RECORDS // 10, at_once=1))
            limits.append(_plainly(valkey.url, RECORDS, at_once=BATCH))
    return [
        Row(
            PART, f"decoded, fused, counted once in Valkey, batches of {BATCH:,}, one partition", RECORDS / min(walls),
            "records/s", "one HINCRBY per crop: counts crops, not people, and a replay twice", RECORDS / 10 / min(peers),
            limit=RECORDS / min(limits), limit_of=f"the same HINCRBY, {BATCH:,} in a pipeline, nothing decoded",
        )
    ]  # fmt: skip


def rate(settings: Settings) -> float:
    """Give how many records a second one partition's reader counts."""
    with EmbeddedValkey() as valkey:
        return RECORDS / min(_ours(settings, valkey.url, f"rate{number}") for number in range(ROUNDS))


def _ours(settings: Settings, url: str, namespace: str) -> float:
    store = RedisStore(url, retentions(rolling_windows(settings.windows_s)), namespace=namespace)
    handler = CountingHandler(
        store,
        CountingConfig(),
        Telemetry(("aggregator",)),
        dead_letter=lambda _record, _error: None,
        publish=lambda _ends: None,
    )
    now = time.time()
    records = [
        Record(PREDICTIONS, 0, offset, b"k", value, headers(value), now)
        for offset, value in enumerate(map(encode, predictions(RECORDS, now)))
    ]
    handler.start_at(TopicPartition(PREDICTIONS, 0), Span(0, len(records)))
    keep_for_good()  # as a service does when it is ready
    start = time.perf_counter()
    for first in range(0, len(records), BATCH):
        handler.handle(records[first : first + BATCH])
    taken = time.perf_counter() - start
    gc.unfreeze()
    store.drop()
    store.close()
    return taken


def _plainly(url: str, records: int, *, at_once: int) -> float:
    """Count as a simple system does: one increment a record, *at_once* in a pipeline."""
    with redis.Redis.from_url(url) as client:
        start = time.perf_counter()
        for first in range(0, records, at_once):
            pipeline = client.pipeline(transaction=False)
            for number in range(first, first + at_once):
                pipeline.hincrby("plain", f"camera-{number % CAMERAS}|{number % 2}|{number % 8}", 1)
            pipeline.execute()
        taken = time.perf_counter() - start
        client.delete("plain")
    return taken
