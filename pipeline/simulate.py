"""`demographics simulate`: as many cameras as you like, without one: what inference, aggregator and Redis make of them.

The crowd is scripted, its crops are real JPEGs of the demo's faces; what handles them is what handles real ones: the inference
step, the aggregator, a real Redis. In the end every cell must hold the people that were sent.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final, Literal, NamedTuple

import cv2
import numpy as np
import redis
from redis.cluster import RedisCluster
from rich.console import Console
from rich.table import Table

from aggregator.redis_client import connect
from aggregator.redis_store import RedisStore
from aggregator.service import GROUP as AGGREGATOR_GROUP
from aggregator.service import AggregatorService, windows_of
from aggregator.windows import retentions
from demo.composer import load_cast
from inference.predictor import Crops, Logits, Predictor
from inference.service import GROUP as INFERENCE_GROUP
from inference.service import InferenceService, engine_of
from ingest.alignment import centre_crop, encode_jpeg
from pipeline import crowd
from pipeline import telemetry as metrics
from pipeline.bus import FACE_CROPS, PREDICTIONS, Producer
from pipeline.crowd import Cells, Crowd, Due, Person
from pipeline.embedded_valkey import EmbeddedValkey
from pipeline.errors import TransportError
from pipeline.manifest import CropRecipe, Manifest, load_manifest
from pipeline.memory_bus import MemoryBus
from pipeline.messages import CameraStatus, FaceCrop, TrackEnded, encode, headers
from pipeline.settings import Settings
from pipeline.telemetry import Metric, Telemetry

Kind = Literal["stub", "model"]

DRAIN_S: Final = 120.0
CODE_PX: Final = 16  # the corner of a crop that says its kind to the stub: one block of the JPEG, whatever its sampling
CODE_STEP: Final = 14
GROWING: Final = (
    3.0  # seconds to catch up in the end (offsets are committed every second): more is a backlog that grows
)
STAGES: Final = {
    "capture to bus": metrics.CAPTURE_TO_BUS,
    "bus to prediction": metrics.BUS_TO_PREDICTION,
    "bus to count": metrics.BUS_TO_COUNT,
    "capture to count": metrics.CAPTURE_TO_COUNT,
}


class StubPredictor:
    """Reads from a crop's corner what kind it is, and says just that: the step without the network."""

    def __init__(self, manifest: Manifest) -> None:
        first, last = manifest.ages
        kinds = [crowd.kind_of(number) for number in range(crowd.KINDS)]
        self._age = np.full((crowd.KINDS, last - first + 1), -30, np.float32)
        self._gender = np.full((crowd.KINDS, len(manifest.genders)), -3, np.float32)
        self._ethnicity = np.full((crowd.KINDS, len(manifest.ethnicities)), -3, np.float32)
        for number, kind in enumerate(kinds):
            self._age[number, kind.years - first] = 30
            self._gender[number, manifest.genders.index(kind.gender)] = 3
            self._ethnicity[number, manifest.ethnicities.index(kind.ethnicity)] = 3

    def predict(self, crops: Crops) -> Logits:
        """Give the logits of each crop's kind."""
        corner = crops[:, 4 : CODE_PX - 4, 4 : CODE_PX - 4].mean(axis=(1, 2, 3))
        kinds = np.clip(np.round(corner / CODE_STEP) - 1, 0, crowd.KINDS - 1).astype(int)
        return Logits(self._age[kinds], self._gender[kinds], self._ethnicity[kinds])


def crops_of_kinds(recipe: CropRecipe, *, coded: bool) -> list[bytes]:
    """Give a JPEG for each kind of people, faces of the demo; where *coded*, with the kind in a corner."""
    cast = load_cast()
    pictures = []
    for kind in range(crowd.KINDS):
        picture = centre_crop(cast[kind % len(cast)].face, recipe).copy()
        if coded:
            picture[:CODE_PX, :CODE_PX] = CODE_STEP * (kind + 1)
        pictures.append(encode_jpeg(picture, recipe))
    return pictures


class Stopwatch(Telemetry):
    """Metrics that also keep each value of some: percentiles are then exact."""

    def __init__(self) -> None:
        super().__init__(("inference", "aggregator"))
        self.kept: dict[str, list[float]] = {metric.name: [] for metric in STAGES.values()}

    def observe(self, metric: Metric, value: float, /, **labels: str) -> None:
        """Add to a histogram, and keep it."""
        super().observe(metric, value, **labels)
        if metric.name in self.kept:
            self.kept[metric.name].append(value)

    def observe_all(self, metric: Metric, values: Iterable[float], /, **labels: str) -> None:
        """Add many to a histogram, and keep them."""
        values = list(values)
        super().observe_all(metric, values, **labels)
        if metric.name in self.kept:
            self.kept[metric.name] += values

    def percentiles(self) -> dict[str, dict[str, float]]:
        """Give p50 and p99 of each stage, in seconds."""
        return {
            stage: {
                "p50": round(percentile(self.kept[metric.name], 0.5), 4),
                "p99": round(percentile(self.kept[metric.name], 0.99), 4),
            }
            for stage, metric in STAGES.items()
        }


def percentile(values: Sequence[float], share: float) -> float:
    """Give the least value that *share* of the values do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


class Cameras:
    """Sends what the crowd does, when it is due, as ingest would; late where the bus does not take it."""

    def __init__(self, script: Crowd, producer: Producer, jpegs: Sequence[bytes], status_interval_s: float) -> None:
        self._script = script
        self._producer = producer
        self._jpegs = jpegs
        self._status_every_s = status_interval_s / max(1, script.cameras)
        self.came: list[Person] = []
        self.crops = 0
        self.latest_s = 0.0  # how far it has been behind
        self.stopped_at: float | None = None

    def run(self, stop: threading.Event) -> None:
        """Send until the time is over, or *stop* is set; then whoever is there leaves."""
        start = time.time()
        connection = int(start)
        there: dict[int, tuple[Person, int]] = {}
        said = 0
        for due in crowd.schedule(self._script):
            while (now := time.time() - start) < due.at and not stop.is_set():
                said = self._say_states(said, now, start)
                stop.wait(min(due.at - now, 0.02))
            if stop.is_set():
                break
            self.latest_s = max(self.latest_s, now - due.at)
            said = self._say_states(said, now, start)
            self._send(due, there, start, connection)
        for person, crops in there.values():
            self._end(person, crops, start, connection, time.time())
        self.stopped_at = time.time()

    def _send(self, due: Due, there: dict[int, tuple[Person, int]], start: float, connection: int) -> None:
        person = due.person
        if due.sequence is None:
            _, crops = there.pop(person.number)
            self._end(person, crops, start, connection, start + due.at)
            return
        if due.sequence == 0:
            self.came.append(person)
        there[person.number] = (person, due.sequence + 1)
        self.crops += 1
        crop = FaceCrop(
            camera_id=crowd.camera_name(person.camera),
            site=crowd.SITE,
            track_id=(connection << 20) + person.number,
            sequence=due.sequence,
            first_seen=start + person.arrives,
            captured_at=start + due.at,
            quality=0.8,
            jpeg=self._jpegs[person.kind],
        )
        self._put(FACE_CROPS, crop)

    def _end(self, person: Person, crops: int, start: float, connection: int, at: float) -> None:
        ended = TrackEnded(
            camera_id=crowd.camera_name(person.camera),
            site=crowd.SITE,
            track_id=(connection << 20) + person.number,
            first_seen=start + person.arrives,
            last_seen=at,
            crops=crops,
            dwell_s=round(at - start - person.arrives, 3),
        )
        self._put(FACE_CROPS, ended)

    def _say_states(self, said: int, now: float, start: float) -> int:
        """Say how each camera does, one after the other, so often as ingest does."""
        due = int(now / self._status_every_s)
        for number in range(said, due):
            camera = crowd.camera_name(number % self._script.cameras)
            status = CameraStatus(camera_id=camera, site=crowd.SITE, at=start + now, state="running", fps=25.0)
            self._put(PREDICTIONS, status)
        return due

    def _put(self, topic: str, message: FaceCrop | TrackEnded | CameraStatus) -> None:
        value = encode(message)
        while True:
            try:
                self._producer.send(topic, key=message.camera_id.encode(), value=value, headers=headers(value))
            except TransportError:  # full: the crowd waits, and it is said how long
                continue
            return


class Spent(NamedTuple):
    """CPU seconds."""

    sending: float
    inference: float
    aggregator: float
    redis: float


class _Threads:
    """The services' threads, and the CPU time of each."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.cpu_s: dict[str, float] = {}
        self.failed: list[BaseException] = []
        self._threads: dict[str, threading.Thread] = {}

    def start(self, name: str, run: Callable[[threading.Event], None]) -> threading.Thread:
        def timed() -> None:
            try:
                run(self.stop)
            except Exception as error:  # noqa: BLE001  told to who waits
                self.failed.append(error)
            finally:
                self.cpu_s[name] = time.thread_time()

        thread = self._threads[name] = threading.Thread(target=timed, name=name, daemon=True)
        thread.start()
        return thread

    def end(self) -> None:
        self.stop.set()
        for thread in self._threads.values():
            thread.join(30.0)


def simulate(
    settings: Settings,
    script: Crowd,
    *,
    predictor: Kind = "stub",
    redis_url: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Send *script* through inference, aggregator and Redis, and say what it took. Raises ConfigError, TransportError.

    Without *redis_url*, into a Valkey of its own; with it, into a namespace that is deleted in the end.
    """
    cv2.setNumThreads(1)
    manifest = load_manifest(settings.inference.model)
    with ExitStack() as stack:
        url = redis_url or stack.enter_context(EmbeddedValkey()).url
        store = RedisStore(url, retentions(windows_of(settings)), namespace=f"simulated-{time.time_ns():x}")
        stack.callback(store.close)
        stack.callback(store.drop)
        progress("loading the model" if predictor == "model" else "starting")
        engine: Predictor = (
            engine_of(settings.inference, say=progress) if predictor == "model" else StubPredictor(manifest)
        )
        bus = MemoryBus()
        stack.callback(bus.close)
        bus.ensure_topics(settings.kafka.topics())
        watch, threads = Stopwatch(), _Threads()
        inference = InferenceService(settings, bus, engine, manifest, watch)
        stack.callback(inference.close)
        aggregator = AggregatorService(settings, bus, store, watch)
        stack.callback(aggregator.close)
        cameras = Cameras(
            script,
            bus.producer(),
            crops_of_kinds(manifest.crop, coded=predictor == "stub"),
            settings.ingest.status_interval_s,
        )
        server = _RedisUse(url)
        stack.callback(server.close)
        own_cpu, began = time.process_time(), time.perf_counter()
        stack.callback(threads.end)
        threads.start("inference", inference.worker.run)
        threads.start("aggregator", aggregator.worker.run)
        sending = threads.start("sending", cameras.run)
        lags = _Lags(watch)
        while sending.is_alive() and not threads.failed:
            sending.join(0.5)
            lags.look()
            progress(f"{len(cameras.came):,} people before {script.cameras:,} cameras, {lags.last:,} records wait")
        sent_s = time.perf_counter() - began
        backlog = _unread(bus)
        drained = _drain(bus, progress, threads)
        taken_s = time.perf_counter() - began
        redis_cpu_s, redis_bytes = server.used()
        totals = _totals(store, settings)
        threads.end()
        if threads.failed:
            raise threads.failed[0]
        total_cpu = time.process_time() - own_cpu
        rest = total_cpu - threads.cpu_s["sending"] - threads.cpu_s["aggregator"]
        spent = Spent(threads.cpu_s["sending"], rest, threads.cpu_s["aggregator"], redis_cpu_s)
        return {
            "cameras": script.cameras,
            "people_per_minute": script.people_per_minute,
            "seconds": round(sent_s, 1),
            "predictor": predictor,
            "people": len(cameras.came),
            "crops": cameras.crops,
            "crops_per_s": round(cameras.crops / sent_s, 1),
            "counted": totals.total(),
            "difference": _difference(totals, crowd.expected(cameras.came), cells=predictor == "stub"),
            "latency_s": watch.percentiles(),
            "lag": {"most": lags.most, "when_sending_ended": backlog, "caught_up_after_s": round(taken_s - sent_s, 2)},
            "senders_late_s": round(cameras.latest_s, 3),
            "redis_bytes_per_camera": round(redis_bytes / max(1, script.cameras)),
            **_verdict(spent, script, cameras.crops, sent_s, taken_s, kept_up=drained and taken_s - sent_s < GROWING),
        }


class _Lags:
    """What waits, as the workers say it, looked at now and then."""

    def __init__(self, watch: Telemetry) -> None:
        self._watch = watch
        self.most = self.last = 0

    def look(self) -> None:
        self.last = round(sum(value for _, _, value in self._watch.samples(metrics.LAG)))
        self.most = max(self.most, self.last)


class _RedisUse:
    """What a server has used since it was first asked."""

    def __init__(self, url: str) -> None:
        self._client: Any = connect(url, 5.0)
        self._cpu_s, self._bytes = self._asked()

    def _asked(self) -> tuple[float, int]:
        cpu, memory = self._info("cpu"), self._info("memory")
        used_s = sum(float(of["used_cpu_user"]) + float(of["used_cpu_sys"]) for of in cpu)
        return used_s, sum(int(of["used_memory"]) for of in memory)

    def _info(self, section: str) -> list[dict[str, Any]]:
        said = self._client.info(section)
        return list(said.values()) if isinstance(self._client, RedisCluster) else [said]  # a cluster's by node

    def used(self) -> tuple[float, int]:
        """Give CPU seconds and bytes."""
        cpu_s, held = self._asked()
        return cpu_s - self._cpu_s, held - self._bytes

    def close(self) -> None:
        with contextlib.suppress(redis.exceptions.RedisError):
            self._client.close()


def _unread(bus: MemoryBus) -> int:
    return sum(
        bus.unread(topic, group) for topic, group in ((FACE_CROPS, INFERENCE_GROUP), (PREDICTIONS, AGGREGATOR_GROUP))
    )


def _drain(bus: MemoryBus, progress: Callable[[str], None], threads: _Threads) -> bool:
    deadline = time.monotonic() + DRAIN_S
    while time.monotonic() < deadline and not threads.failed:
        if bus.drained(FACE_CROPS, INFERENCE_GROUP) and bus.drained(PREDICTIONS, AGGREGATOR_GROUP):
            return True
        progress(f"{_unread(bus):,} records are still to be counted")
        time.sleep(0.05)
    return False


def _totals(store: RedisStore, settings: Settings) -> Cells:
    cells: Cells = Counter()
    for place, tally in store.snapshot(time.time(), windows_of(settings)).totals.items():
        for (gender, band), amount in tally.people.items():
            cells[place.camera_id, gender, band] += amount
    return cells


def _difference(counted: Cells, sent: Cells, *, cells: bool) -> int:
    """Add up by how much they differ: cell by cell, or where the labels are the model's, camera by camera."""
    mine: Mapping[Any, int] = counted if cells else crowd.by_camera(counted)
    theirs: Mapping[Any, int] = sent if cells else crowd.by_camera(sent)
    return sum(abs(mine.get(key, 0) - theirs.get(key, 0)) for key in mine.keys() | theirs.keys())


def _verdict(
    spent: Spent, script: Crowd, crops: int, sent_s: float, taken_s: float, *, kept_up: bool
) -> dict[str, Any]:
    """Say what a core carries: CPU per crop, cameras per core at this crowd, and who is the first that has no more."""
    shares = {"inference": spent.inference, "aggregator": spent.aggregator, "redis": spent.redis}
    per_camera = {stage: cpu_s / sent_s / script.cameras for stage, cpu_s in shares.items()}
    return {
        "kept_up": kept_up,
        "cpu_us_per_crop": {stage: round(1e6 * cpu_s / max(1, crops), 1) for stage, cpu_s in shares.items()},
        "cores_busy": {stage: round(cpu_s / taken_s, 3) for stage, cpu_s in shares.items()},
        "cameras_per_core": {
            **{stage: round(1 / share) if share else None for stage, share in per_camera.items()},
            "together": round(1 / sum(per_camera.values())) if sum(per_camera.values()) else None,
        },
        "saturates_first": max(shares, key=lambda stage: shares[stage]),
    }


def report(document: dict[str, Any]) -> Table:
    """Lay the document of `simulate` out for people."""
    lag, latency = document["lag"], document["latency_s"]
    table = Table(title="simulated", title_justify="left", show_header=False, pad_edge=False)
    rows: list[tuple[str, str]] = [
        ("cameras", f"{document['cameras']:,} with {document['people_per_minute']:g} people a minute each"),
        ("sent", f"{document['people']:,} people, {document['crops']:,} crops in {document['seconds']:g} s"),
        ("counted", f"{document['counted']:,}; cells differ by {document['difference']}"),
        (
            "kept up",
            "yes" if document["kept_up"] else f"no: {lag['when_sending_ended']:,} records were left at the end",
        ),
        *((f"latency, {stage}", f"p50 {of['p50']:.3f} s, p99 {of['p99']:.3f} s") for stage, of in latency.items()),
        ("lag", f"{lag['most']:,} records at most; all was counted {lag['caught_up_after_s']:g} s after the last"),
        ("Redis", f"{document['redis_bytes_per_camera']:,} bytes per camera so far"),
        ("CPU of a crop", ", ".join(f"{stage} {us:g} us" for stage, us in document["cpu_us_per_crop"].items())),
        ("a core carries", ", ".join(f"{stage} {n:,}" for stage, n in document["cameras_per_core"].items() if n)),
        ("saturates first", document["saturates_first"]),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def run_simulate(settings: Settings, script: Crowd, predictor: Kind, redis_url: str | None) -> dict[str, Any]:
    """Simulate, showing progress and the outcome on stderr."""
    console = Console(stderr=True, highlight=False)
    with console.status("starting") as status:
        document = simulate(settings, script, predictor=predictor, redis_url=redis_url, progress=status.update)
    console.print(report(document))
    return document
