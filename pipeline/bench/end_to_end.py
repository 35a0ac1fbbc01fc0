"""From a file to counters, everything in one process; and where the time goes.

The first figure is `demographics run` itself: CPU of this process and of its Valkey. For the second, the same film goes through
the same parts one after the other, each alone in the process, so that CPU time can be told apart to the microsecond: decoding,
detection and the network are other people's compiled code, and all the rest is ours.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import redis

from aggregator.redis_store import RedisStore
from aggregator.service import GROUP as AGGREGATOR_GROUP
from aggregator.service import AggregatorService, windows_of
from aggregator.windows import retentions
from inference.pixels import decode_crop
from inference.predictor import Crops, Engine, Logits
from inference.service import GROUP as INFERENCE_GROUP
from inference.service import InferenceService, engine_of
from ingest.av_source import AvSource
from ingest.camera import CameraLoop
from ingest.detection import open_detection
from ingest.detector import Detector, FaceBox, Image
from ingest.outbox import SharedProducer
from ingest.source import Frame
from ingest.yunet_detector import YunetDetector
from pipeline.bench import films
from pipeline.bench.rows import Row, Workbench
from pipeline.bus import FACE_CROPS, PREDICTIONS
from pipeline.cameras import Camera
from pipeline.embedded_valkey import EmbeddedValkey
from pipeline.local import LocalRun
from pipeline.manifest import CropRecipe
from pipeline.memory_bus import MemoryBus
from pipeline.messages import FaceCrop, decode
from pipeline.settings import Settings
from pipeline.telemetry import Telemetry

PART: Final = "end-to-end"
SECONDS: Final = 30.0
WALKERS: Final = 14
LOOKS_A_SECOND: Final = 5.0
ROUNDS: Final = 2
THEIRS: Final = ("decode", "detect", "network")


def measure(bench: Workbench) -> list[Row]:
    """Measure 1080p at 25 fps with people all the time, searched five times a second."""
    film = films.people(bench.folder, size=(1920, 1080), seconds=SECONDS, walkers=WALKERS)
    camera = Camera.model_validate({"id": "bench", "url": str(film), "detect_fps": LOOKS_A_SECOND})
    bench.progress(f"{PART}: loading the model")
    engine = engine_of(bench.settings.inference, say=bench.progress)
    stages = [_in_turn(bench, camera, engine) for _ in range(ROUNDS)]
    spent = min(stages, key=lambda each: sum(each.values()))
    theirs = sum(spent[stage] for stage in THEIRS)
    ours = sum(spent.values()) - theirs
    bench.progress(f"{PART}: the plain way")
    plain = _plainly(film, engine)
    runs = []
    for number in range(ROUNDS):
        bench.progress(f"{PART}: demographics run, {number + 1} of {ROUNDS}")
        runs.append(_as_a_whole(bench.settings, camera))
    cpu_s, visitors = min(runs)
    film_is = f"1080p25, people all the time, {LOOKS_A_SECOND:g} looks/s"
    rows = [
        Row(
            PART, f"demographics run, {film_is}: {visitors} of {WALKERS} counted", SECONDS / cpu_s, "x real time",
            "OpenCV reads, YuNet and this network see every frame; nobody is followed or counted", SECONDS / plain,
            limit=SECONDS / theirs, limit_of="decoding, detection and the network of this run, nothing else",
        ),
        Row(PART, "share of the CPU that is ours, of all stages", 100 * ours / (ours + theirs), "% of the CPU"),
    ]  # fmt: skip
    total = ours + theirs
    rows += [
        Row(
            PART,
            f"CPU of a second of film: {stage}",
            1000 * cpu / SECONDS,
            "ms",
            limit_of=f"{100 * cpu / total:.0f} % of all",
        )
        for stage, cpu in spent.items()
    ]
    return rows


class _Clock:
    """CPU seconds of the whole process, by stage."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.spent[stage] = self.spent.get(stage, 0.0) + time.process_time() - start

    def around(self, stage: str, work: Callable[[], Any]) -> Any:
        with self.of(stage):
            return work()


class _TimedSource(AvSource):
    """Decodes on the thread that asks, so that its time is known."""

    def __init__(self, camera: Camera, clock: _Clock) -> None:
        super().__init__(camera, open_timeout_s=5, read_timeout_s=5)
        self.stream.thread_type = "SLICE"
        self._clock = clock

    def frames(self) -> Iterator[Frame]:
        """Give every frame."""
        frames, held = (
            super().frames(),
            deque[Frame](),
        )  # held, so that libav's memory is given back on the decoder's clock

        def following() -> Frame | None:
            if len(held) > 2:
                held.popleft()
            frame = next(frames, None)
            if frame is not None:
                held.append(frame)
            return frame

        while (frame := self._clock.around("decode", following)) is not None:
            yield replace(frame, image=lambda frame=frame: self._clock.around("decode", frame.image))


class _TimedDetector:
    def __init__(self, detector: Detector, clock: _Clock) -> None:
        self._detector = detector
        self._clock = clock

    def detect(self, image: Image) -> Sequence[FaceBox]:
        """Find the faces of one picture."""
        with self._clock.of("detect"):
            return self._detector.detect(image)


class _TimedEngine:
    def __init__(self, engine: Engine, clock: _Clock) -> None:
        self._engine = engine
        self._clock = clock

    def predict(self, crops: Crops) -> Logits:
        with self._clock.of("network"):
            return self._engine.predict(crops)


def _in_turn(bench: Workbench, camera: Camera, engine: Engine) -> dict[str, float]:
    """Run ingest, inference and aggregation one after the other; gives the CPU seconds of each stage."""
    settings, recipe = bench.settings, engine.manifest.crop
    cv2.setNumThreads(1)
    bus = MemoryBus(max_topic_bytes=1 << 30)
    bus.ensure_topics(settings.kafka.topics())
    clock = _Clock()
    bench.progress(f"{PART}: ingest alone")
    searching = open_detection(settings.ingest.detector, settings.ingest.detector_model)
    began = time.process_time()
    CameraLoop(
        camera, settings=settings.ingest, recipe=recipe, producer=SharedProducer(bus.producer()),
        detector=lambda _: _TimedDetector(searching(settings.ingest.max_side_px), clock),
        connect=lambda one: _TimedSource(one, clock),
        telemetry=Telemetry(("ingest",)),
    ).run(threading.Event())  # fmt: skip
    ingest = time.process_time() - began - clock.spent["decode"] - clock.spent["detect"]
    bench.progress(f"{PART}: inference alone")
    jpeg = _jpegs(bus, recipe)
    before = clock.spent.get("network", 0.0)
    service = InferenceService(settings, bus, _TimedEngine(engine, clock), engine.manifest, Telemetry(("inference",)))
    inference = _drained(bus, FACE_CROPS, INFERENCE_GROUP, service.worker.run) - (clock.spent["network"] - before)
    service.close()
    bench.progress(f"{PART}: aggregation alone")
    with EmbeddedValkey() as valkey, redis.Redis.from_url(valkey.url) as client:
        store = RedisStore(valkey.url, retentions(windows_of(settings)))
        counting = AggregatorService(settings, bus, store, Telemetry(("aggregator",)))
        aggregator = _drained(bus, PREDICTIONS, AGGREGATOR_GROUP, counting.worker.run)
        cpu = client.info("cpu")
        counting.close()
        store.close()
    bus.close()
    return {
        **clock.spent,
        "ours, ingest: gates, tracking, cutting, JPEG": ingest,
        f"ours, inference: messages, heads, JPEG ({1000 * jpeg / SECONDS:.1f} ms of it)": inference,
        "ours, aggregation": aggregator,
        "ours, Valkey": float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"]),
    }


def _jpegs(bus: MemoryBus, recipe: CropRecipe) -> float:
    """Measure what decoding the JPEGs alone takes."""
    reader = bus.reader(FACE_CROPS)
    records = [record for tp, span in reader.spans().items() for record in reader.read(tp, span.begin, span.end)]
    crops = [message for record in records if isinstance(message := decode(record.value, record.headers), FaceCrop)]
    start = time.process_time()
    for crop in crops:
        decode_crop(crop.jpeg, recipe.size_px)
    return time.process_time() - start


def _drained(bus: MemoryBus, topic: str, group: str, run: Callable[[threading.Event], None]) -> float:
    """Run a service until it has read everything; gives its CPU seconds."""
    stop, start = threading.Event(), time.process_time()
    thread = threading.Thread(target=run, args=(stop,), daemon=True)
    thread.start()
    while not bus.drained(topic, group):
        time.sleep(0.1)
    spent = time.process_time() - start
    stop.set()
    thread.join(30)
    return spent


def _as_a_whole(settings: Settings, camera: Camera) -> tuple[float, int]:
    """Give the CPU seconds of the whole run, from the first frame to the last count, and how many were counted."""
    with (
        LocalRun(settings, [camera], until_end=True, port=0) as local,
        redis.Redis.from_url(local.valkey_url) as client,
    ):
        start = time.process_time()
        local.start()
        while not local.wait(1.0):
            pass
        document = local.finish()
        spent = time.process_time() - start
        cpu = client.info("cpu")
    return spent + float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"]), int(document["visitors"])


def _plainly(film: Path, engine: Engine) -> float:
    """Do what a first version does: every frame is converted and searched, every face goes through the network at once."""
    detector = YunetDetector(None, max_side_px=640)
    side = engine.manifest.crop.size_px
    start, reader = time.process_time(), cv2.VideoCapture(str(film))
    frames = 0
    while frames < 250:  # ten seconds tell
        there, picture = reader.read()
        if not there:
            break
        frames += 1
        faces = detector.detect(np.asarray(picture, np.uint8))
        crops = [crop for face in faces if (crop := _box(np.asarray(picture, np.uint8), face, side)) is not None]
        if crops:
            engine.predict(np.stack(crops))
    reader.release()
    return (time.process_time() - start) * SECONDS * 25 / frames


def _box(picture: Image, face: FaceBox, side: int) -> Image | None:
    left, top, right, bottom = (max(0, round(edge)) for edge in face.xyxy)
    part = picture[top:bottom, left:right]
    return np.asarray(cv2.resize(part, (side, side)), np.uint8)[:, :, ::-1] if part.size else None
