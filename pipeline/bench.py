"""`demographics bench`: what this machine does, part by part, in one run.

Each figure is the best of several rounds, since machines are noisy and nothing runs faster than it can; the limit beside it says
what it is made of. Compare figures of one run, never of two machines.
"""

from __future__ import annotations

import itertools
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from aggregator.exporter import VisitorsCollector
from aggregator.fusion import Cell
from aggregator.handler import CountingHandler
from aggregator.redis_store import RedisStore
from aggregator.step import CountingConfig
from aggregator.store import Changes, PlaceCell, Position
from aggregator.windows import retentions, rolling_windows
from demo.backdrops import VIEWS
from demo.composer import compose, load_cast, write_film
from inference.pixels import decode_crop
from inference.tensorflow_predictor import TensorFlowPredictor
from ingest.alignment import align, encode_jpeg
from ingest.av_source import AvSource
from ingest.camera import CameraLoop
from ingest.outbox import SharedProducer
from ingest.yunet_detector import YunetDetector
from pipeline.attributes import AGE_BANDS, ETHNICITIES, GENDERS
from pipeline.bus import FACE_CROPS, PREDICTIONS, Headers, Record, Span, TopicPartition, TopicSpec
from pipeline.cameras import Camera
from pipeline.embedded_valkey import EmbeddedValkey
from pipeline.errors import ConfigError
from pipeline.exposition import exposition
from pipeline.manifest import load_manifest
from pipeline.memory_bus import MemoryBus
from pipeline.messages import Message, Prediction, TrackEnded, encode, headers
from pipeline.settings import Settings, known_names
from pipeline.telemetry import Telemetry

ROUNDS: Final = 3


class Figure(NamedTuple):
    """One line of the page."""

    part: str
    figure: float
    unit: str
    of: str  # what was measured, in words


def best_rate(work: Callable[[], int], rounds: int = ROUNDS) -> float:
    """Give the most units a second that *work* (returning how many it did) reached in several rounds."""
    rates = []
    for _ in range(rounds):
        start = time.perf_counter()
        done = work()
        rates.append(done / (time.perf_counter() - start))
    return max(rates)


def _film(folder: Path) -> Path:
    return compose(folder / "bench.mp4", load_cast(), view="hall", people=4, seconds=12, seed=2).path


def decode(folder: Path, _settings: Settings) -> Iterator[Figure]:
    """Frames of 720p H.264, decoded and converted to BGR."""
    film = _film(folder)

    def work() -> int:
        with av.open(str(film)) as container:
            container.streams.video[0].thread_type = "SLICE"
            return sum(1 for frame in container.decode(video=0) if frame.to_ndarray(format="bgr24") is not None)

    yield Figure("decode", best_rate(work), "frames/s", "720p H.264 to BGR, one thread")


def detect(folder: Path, settings: Settings) -> Iterator[Figure]:
    """Pictures searched by YuNet."""
    cv2.setNumThreads(1)
    with av.open(str(_film(folder))) as container:
        frame = next(frame for n, frame in enumerate(container.decode(video=0)) if n == 100)
    picture = np.asarray(frame.to_ndarray(format="bgr24"), np.uint8)
    for side in (320, 640, 1280):
        detector = YunetDetector(settings.ingest.detector_model, max_side_px=side)

        def work(detector: YunetDetector = detector) -> int:
            for _ in range(20):
                detector.detect(picture)
            return 20

        yield Figure("detect", best_rate(work), "frames/s", f"YuNet at {side} px, one thread")


def _cpu_share(seconds: float, work: Callable[[], object]) -> float:
    """Give the share of one core that *work* needs for *seconds* of a camera, the least of several rounds."""
    shares = []
    for _ in range(2):
        start = time.process_time()
        work()
        shares.append((time.process_time() - start) / seconds)
    return min(shares)


def camera(folder: Path, settings: Settings) -> Iterator[Figure]:
    """One camera of 1080p at 25 fps, from packets to face crops, with people and without, beside the plain way of doing it."""
    seconds = 10.0
    people = compose(
        folder / "people.mp4", load_cast(), view="hall", people=4, seconds=seconds, seed=5, size=(1920, 1080)
    ).path
    empty = folder / "empty.mp4"
    write_film(
        empty, figures=(), ground=VIEWS["hall"]((1920, 1080)), caption="", frames=round(25 * seconds), fps=25,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    recipe = load_manifest(settings.inference.model).crop

    def ours(film: Path, decode: str = "all") -> Callable[[], object]:
        described = Camera.model_validate({"id": "bench", "url": str(film), "detect_fps": 5, "decode": decode})
        return lambda: CameraLoop(
            described, settings=settings.ingest, recipe=recipe, producer=SharedProducer(_Nowhere()),
            detector=lambda _: YunetDetector(settings.ingest.detector_model, max_side_px=settings.ingest.max_side_px),
            connect=lambda one: AvSource(one, open_timeout_s=5, read_timeout_s=5), telemetry=Telemetry(("ingest",)),
        ).run(threading.Event())  # fmt: skip

    def plain(film: Path, side: int) -> Callable[[], object]:
        def loop() -> None:
            reader = cv2.VideoCapture(str(film))
            detector = YunetDetector(settings.ingest.detector_model, max_side_px=side)
            while True:
                there, picture = reader.read()
                if not there:
                    return
                detector.detect(np.asarray(picture, np.uint8))

        return loop

    def only_decoded() -> None:
        with av.open(str(people)) as container:
            container.streams.video[0].thread_type = "SLICE"
            for _ in container.decode(video=0):
                pass

    cv2.setNumThreads(1)
    measured = (
        ("1080p25 decoded and nothing else", only_decoded),
        ("1080p25, people, 5 looks/s, tracked, crops cut", ours(people)),
        ("1080p25, empty scene, 5 looks/s", ours(empty)),
        ("1080p25, people, key frames only", ours(people, "keyframes")),
        ("OpenCV VideoCapture + FaceDetectorYN at 640 px on every frame, people", plain(people, 640)),
        ("the same, empty scene", plain(empty, 640)),
    )
    for what, work in measured:
        share = _cpu_share(seconds, work)
        yield Figure("camera", 100 * share, "% of a core", f"{what} ({1 / share:.1f} cameras per core)")


class _Nowhere:
    """A bus that takes everything and keeps nothing."""

    def send(self, topic: str, *, key: bytes, value: bytes, headers: Headers) -> None:
        """Take a record."""

    def flush(self, timeout_s: float) -> None:
        """Return at once."""

    def close(self) -> None:
        """Let go of nothing."""


def cut(_folder: Path, settings: Settings) -> Iterator[Figure]:
    """Faces cut, aligned and compressed; and opened again."""
    recipe = load_manifest(settings.inference.model).crop
    face = next(iter(load_cast())).face
    picture = cv2.copyMakeBorder(face, 260, 260, 540, 540, cv2.BORDER_REPLICATE)
    landmarks = np.asarray(recipe.landmarks, np.float32) * 200 + (540, 260)
    crop = align(np.asarray(picture, np.uint8), landmarks, recipe)
    jpeg = encode_jpeg(crop, recipe)

    def cutting() -> int:
        for _ in range(300):
            encode_jpeg(align(np.asarray(picture, np.uint8), landmarks, recipe), recipe)
        return 300

    def opening() -> int:
        for _ in range(300):
            decode_crop(jpeg, recipe.size_px)
        return 300

    yield Figure("cut", best_rate(cutting), "faces/s", f"aligned to {recipe.size_px} px and JPEG, one thread")
    yield Figure("cut", best_rate(opening), "faces/s", "JPEG to pixels, one thread")


def bus(_folder: Path, _settings: Settings) -> Iterator[Figure]:
    """Send, read and commit records on the in-process bus."""
    memory = MemoryBus()
    memory.ensure_topics([TopicSpec(FACE_CROPS, 4, 600)])
    producer, consumer = memory.producer(), memory.consumer(FACE_CROPS, group="bench")
    value, head = bytes(5000), headers()

    def work() -> int:
        for n in range(5000):
            producer.send(FACE_CROPS, key=b"%d" % (n % 7), value=value, headers=head)
        done = 0
        while done < 5000:
            records = consumer.poll(1.0, 500)
            done += len(records)
            consumer.commit({record.topic_partition: record.offset + 1 for record in records})
        return done

    yield Figure("bus", best_rate(work), "records/s", "5 kB records, in process, sent, read and committed")
    consumer.close()
    memory.close()


def inference(_folder: Path, settings: Settings) -> Iterator[Figure]:
    """Faces through the network."""
    predictor = TensorFlowPredictor(settings.inference.model, threads=settings.inference.threads)
    predictor.warm_up()
    side = predictor.manifest.crop.size_px
    noise = np.random.default_rng(0)
    for size in (1, 4, 16, 32, 64):
        crops = noise.integers(0, 256, (size, side, side, 3), dtype=np.uint8)

        def work(crops: NDArray[np.uint8] = crops) -> int:
            for _ in range(max(1, 64 // len(crops))):
                predictor.predict(crops)
            return len(crops) * max(1, 64 // len(crops))

        yield Figure("inference", best_rate(work), "faces/s", f"TensorFlow, batch {size}, three heads")


def _predictions(count: int, tracks_of: int = 4) -> list[Message]:
    now = time.time()
    said: list[Message] = []
    for number in range(count // (tracks_of + 1)):
        said += [
            Prediction(
                camera_id=f"camera-{number % 20}", track_id=number, sequence=sequence, first_seen=now, captured_at=now,
                quality=0.8, age=float(number % 80), age_spread=5.0, p_female=0.1 + number % 2 * 0.8,
                p_ethnicity=(0.6, 0.1, 0.1, 0.1, 0.1),
            )
            for sequence in range(tracks_of)
        ]  # fmt: skip
        said.append(
            TrackEnded(camera_id=f"camera-{number % 20}", track_id=number, first_seen=now, last_seen=now, crops=4)
        )
    return said


def aggregation(_folder: Path, settings: Settings) -> Iterator[Figure]:
    """Predictions counted into Valkey, one Lua call per batch."""
    windows = rolling_windows(settings.windows_s)
    with EmbeddedValkey() as valkey:
        rates = []
        for round_number in range(ROUNDS):
            store = RedisStore(valkey.url, retentions(windows), namespace=f"bench{round_number}")
            handler = CountingHandler(
                store,
                CountingConfig(),
                Telemetry(("aggregator",)),
                dead_letter=lambda _record, _error: None,
                publish=lambda _ends: None,
            )
            messages = _predictions(20_000)
            records = [
                Record(PREDICTIONS, 0, offset, b"k", encode(message), headers(), time.time())
                for offset, message in enumerate(messages)
            ]
            handler.start_at(TopicPartition(PREDICTIONS, 0), Span(0, len(records)))
            start = time.perf_counter()
            for first in range(0, len(records), 2000):
                handler.handle(records[first : first + 2000])
            rates.append(len(records) / (time.perf_counter() - start))
        yield Figure(
            "aggregation", max(rates), "records/s", "decoded, fused, counted in Valkey, batches of 2,000, one partition"
        )
        store.close()


SCRAPED_CAMERAS: Final = 200
VISITORS_AN_HOUR: Final = 30  # before each of them, all day long


def scrape(_folder: Path, settings: Settings) -> Iterator[Figure]:
    """Everything that Prometheus reads from an aggregator, from the store to the last byte, with 200 cameras after a full day."""
    windows = rolling_windows(settings.windows_s)
    draw = random.Random(1)  # noqa: S311  for a measurement
    cells = [Cell(*labels) for labels in itertools.product(GENDERS, AGE_BANDS, ETHNICITIES)]
    partitions = settings.kafka.partitions
    telemetry = Telemetry(("aggregator",))
    with EmbeddedValkey() as valkey:
        store = RedisStore(valkey.url, retentions(windows))
        now = time.time()
        for partition in range(partitions):
            changes = Changes()
            for camera in range(partition, SCRAPED_CAMERAS, partitions):
                for _ in range(24 * VISITORS_AN_HOUR):
                    counted = PlaceCell("site", f"camera-{camera}", draw.choice(cells))
                    changes.counted[now - draw.random() * 86400, counted] += 1
                    changes.totals[counted] += 1
            store.apply(partition, changes, start=None, end=Position(1, 1))
        used = store.ask(lambda client: client.info("memory"))["used_memory"]
        people = f"{SCRAPED_CAMERAS} cameras, {24 * VISITORS_AN_HOUR * SCRAPED_CAMERAS:,} visitors in a day"
        yield Figure("store", int(used) / (1 << 20), "MiB", people)
        telemetry.collect_with(VisitorsCollector(store, windows, telemetry))
        lines = len(exposition(telemetry.registry).splitlines())

        def work() -> int:
            exposition(telemetry.registry)
            return 1

        yield Figure(
            "scrape", 1000 / best_rate(work), "ms", f"{SCRAPED_CAMERAS} cameras, {lines:,} lines, Valkey included"
        )
        store.close()


PARTS: Final[dict[str, Callable[[Path, Settings], Iterator[Figure]]]] = {
    "decode": decode, "detect": detect, "camera": camera, "cut": cut, "bus": bus, "inference": inference,
    "aggregation": aggregation, "scrape": scrape,
}  # fmt: skip


def run_bench(settings: Settings, only: list[str]) -> list[Figure]:
    """Measure the parts named, or all; shows each figure on stderr as it comes. Raises ConfigError for a part that is none."""
    unknown = [part for part in only if part not in PARTS]
    if unknown:
        raise ConfigError(f"--only {part}: no such part; {known_names(PARTS, part)}" for part in unknown)
    console = Console(stderr=True, highlight=False)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="demographics-bench-") as folder:
        for part in only or PARTS:
            with console.status(f"measuring {part}"):
                figures += PARTS[part](Path(folder), settings)
    table = Table(
        "part", "figure", "unit", "of what", title="this machine, this run: best of three rounds", title_justify="left"
    )
    for figure in figures:
        shown = f"{figure.figure:,.1f}" if figure.figure < 100 else f"{figure.figure:,.0f}"
        table.add_row(figure.part, shown, figure.unit, figure.of)
    console.print(table)
    return figures
