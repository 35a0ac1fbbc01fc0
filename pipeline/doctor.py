"""`demographics doctor`: is everything that the services need there, and as it should be? And what to do where it is not.

Looks and changes nothing: no topic is made, no record written, no group joined but a passing one that reads the cameras. It goes
to Kafka, Redis, the model and the cameras by the ways of the services themselves, so that what it can do, they can.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from pipeline.bus import CAMERAS
from pipeline.cameras import Camera, camera_of, load_cameras
from pipeline.errors import ConfigError, PipelineError
from pipeline.findings import PARTS, Away, Finding, State, in_bytes, span
from pipeline.kafka_findings import KafkaFindings
from pipeline.manifest import ENGINES, load_manifest, verified_weights
from pipeline.redaction import redact
from pipeline.redis_findings import RedisFindings
from pipeline.settings import Settings, documented, load_settings

LEAST_FREE_BYTES: Final = 256 << 20
LOOK_S: Final = 3.0

Look = Callable[[], Iterable[Finding]]


class Wanted(NamedTuple):
    """What is to be looked at besides Kafka and Redis."""

    cameras: Path | None = None  # a camera file; without one, the cameras of the topic
    open_cameras: bool = False
    model: bool = True  # run the network, too: that takes some seconds
    parts: tuple[str, ...] = PARTS


def examine(wanted: Wanted) -> Iterator[Finding]:
    """Look at everything, one after the other. What cannot be looked at is a finding, too: nothing is raised."""
    try:
        settings = load_settings()
    except ConfigError as error:
        for problem in error.problems:
            yield Finding("settings", State.FAILED, problem, "correct it; docs/configuration.md has every setting")
        yield Finding(
            "kafka", State.SKIPPED, "the rest: without settings nobody knows where to look", "correct the settings"
        )
        return
    kafka, store = KafkaFindings(settings), RedisFindings(settings)
    looks: dict[str, tuple[Look, ...]] = {
        "settings": (lambda: _settings(settings),),
        "kafka": (kafka.brokers,),
        "topics": (kafka.topics,),
        "groups": (kafka.groups,),
        "redis": (store.look,),
        "clock": (store.clock, kafka.clock),
        "model": (lambda: _model(settings, run=wanted.model),),
        "gpu": (lambda: _gpu(look=wanted.model),),
        "cameras": (lambda: _cameras(settings, kafka, wanted),),
        "disk": (_disk, kafka.disks),
    }
    try:
        for part in wanted.parts:
            for look in looks[part]:
                yield from _guarded(part, look)
    finally:
        kafka.close()
        store.close()


def _guarded(part: str, look: Look) -> Iterator[Finding]:
    """Make findings of what goes wrong while looking; each error of ours says what to do."""
    try:
        for finding in look():
            yield finding._replace(what=redact(finding.what), do=redact(finding.do))
    except Away as error:
        yield Finding(part, State.SKIPPED, str(error), "mend that first")
    except ConfigError as error:
        for problem in error.problems:
            yield _failed(part, problem)
    except PipelineError as error:
        yield _failed(part, str(error))
    except Exception as error:  # noqa: BLE001  one part that fails as nobody foresaw keeps nobody from the others
        yield Finding(
            part,
            State.FAILED,
            f"looking failed ({type(error).__name__})",
            "this is a fault of doctor itself: report it",
        )


def _failed(part: str, text: str) -> Finding:
    """Take an error's words apart: what is wrong stands before the last semicolon, what to do behind it."""
    what, _, do = redact(text).rpartition("; ")
    return Finding(part, State.FAILED, what or do, do if what else "see docs/operations.md")


# --- settings ---------------------------------------------------------------------------------------------------------


def _settings(settings: Settings) -> Iterator[Finding]:
    known = {row.variable for row in documented()}
    given = sorted(name for name in os.environ if name.upper() in known)
    yield Finding("settings", State.OK, f"all are valid; {len(given)} given: {', '.join(given) or 'none'}")
    longest = max(settings.windows_s.values())
    if settings.kafka.predictions_retention_s < longest:
        yield Finding(
            "settings",
            State.WARNING,
            f"predictions are kept for {span(settings.kafka.predictions_retention_s)}, the longest window is {span(longest)}:"
            " a store that is lost cannot be filled up again",
            f"set DEMOGRAPHICS_KAFKA__PREDICTIONS_RETENTION_S to {longest} or more",
        )
    if settings.http.host not in {"127.0.0.1", "::1", "localhost"} and not settings.http.token.get_secret_value():
        yield Finding(
            "settings",
            State.WARNING,
            f"page, API and metrics answer on {settings.http.host} without a token",
            "set DEMOGRAPHICS_HTTP__TOKEN, or let only those reach the port who may look",
        )


# --- model and GPU ----------------------------------------------------------------------------------------------------


def _model(settings: Settings, *, run: bool) -> Iterator[Finding]:
    folder = settings.inference.model
    manifest = load_manifest(folder)
    verified_weights(folder, manifest)
    yield Finding(
        "model",
        State.OK,
        f"{manifest.name}, {manifest.crop.size_px} px: the weights are the manifest's ({manifest.digest})",
    )
    if not run:
        return
    elsewhere = Finding(
        "model",
        State.SKIPPED,
        "it was not run: no engine that could run it is installed here",
        "run doctor where inference runs, such as its image",
    )
    if importlib.util.find_spec("cv2") is None:  # the aggregator's image: it sees no picture
        yield elsewhere
        return
    from inference.engines import load_engine, runnable  # noqa: PLC0415  for those who run it only
    from inference.golden import judge, read_golden  # noqa: PLC0415

    options = settings.inference
    if options.engine == "auto" and not any(runnable(name, folder) for name in ENGINES):
        yield elsewhere
        return
    engine = load_engine(options.engine, folder, threads=options.threads, max_batch=options.max_batch)
    golden = read_golden(folder, manifest)
    if golden is None:
        yield Finding(
            "model",
            State.WARNING,
            f"it runs on {engine.name}; whether it answers as where it was made cannot be told: it has no golden batch",
            f"write the folder anew: demographics export --model {folder} -o NEW_FOLDER --formats none",
        )
        return
    found = judge(engine, golden, manifest)
    began = time.perf_counter()
    engine.predict(golden.judged.crops)
    took_ms = (time.perf_counter() - began) * 1000
    yield Finding(
        "model",
        State.OK,
        f"it answers as where it was made, on {engine.name} ({found.age_mean_difference:.2f} years and "
        f"{found.probability_mean_difference:.3f} in probability apart); {found.n} faces in {took_ms:.0f} ms",
    )


def _tensorflow() -> bool:
    return importlib.util.find_spec("tensorflow") is not None


def _gpu(*, look: bool) -> Iterator[Finding]:
    card = Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None
    if look and _tensorflow():
        from inference.tensorflow_predictor import graphics_cards  # noqa: PLC0415  seconds, for those who want it only

        if found := graphics_cards():
            yield Finding("gpu", State.OK, f"TensorFlow uses {', '.join(found)}")
            return
        if card:
            yield Finding(
                "gpu",
                State.WARNING,
                "there is an NVIDIA driver, but TensorFlow finds no GPU: inference runs on the CPU",
                "install the extra gpu (`uv sync --extra gpu`, or the image inference-gpu); see that the driver is new enough",
            )
            return
    yield Finding("gpu", State.OK, "a driver is there" if card else "none; inference runs on the CPU")


# --- cameras ----------------------------------------------------------------------------------------------------------


def _cameras(settings: Settings, kafka: KafkaFindings, wanted: Wanted) -> Iterator[Finding]:
    if wanted.cameras is not None:
        source, cameras = str(wanted.cameras), list(load_cameras(wanted.cameras))
    else:
        source, cameras = f"topic {CAMERAS}", []
        if not kafka.has(CAMERAS):
            yield Finding(
                "cameras",
                State.SKIPPED,
                "no file was named, and there is no topic of cameras",
                "name it: demographics doctor cameras.yaml",
            )
            return
        from pipeline.camera_topic import read_all  # noqa: PLC0415  for those without a file only

        for name, entry in read_all(kafka.bus).items():
            try:
                cameras.append(camera_of(entry, f"{source}: camera {name}", os.environ))
            except ConfigError as error:
                for problem in error.problems:
                    yield Finding("cameras", State.FAILED, problem, "correct it with `demographics cameras add`")
        if not cameras:
            yield Finding(
                "cameras",
                State.SKIPPED,
                f"{source}: there are none",
                "where ingest is given a file, name it: demographics doctor cameras.yaml; else `demographics cameras apply`",
            )
            return
    yield Finding(
        "cameras", State.OK, f"{source}: {len(cameras)} cameras, {', '.join(camera.id for camera in cameras)}"
    )
    if wanted.open_cameras:
        yield from _opened(cameras, settings)


def _opened(cameras: Sequence[Camera], settings: Settings) -> Iterator[Finding]:
    if importlib.util.find_spec("cv2") is None:
        do = "run doctor where ingest runs, such as its image"
        yield Finding("cameras", State.SKIPPED, "none was opened: there is no OpenCV here", do)
        return
    from ingest.check import check_cameras  # noqa: PLC0415  OpenCV and FFmpeg, for those who want it only

    for check in check_cameras(cameras, settings.ingest, seconds=LOOK_S):
        if check.problem:
            yield _failed("cameras", check.problem)
        else:
            yield Finding(
                "cameras",
                State.WARNING if check.advice else State.OK,
                f"{check.camera}: {check.codec}, {check.width}x{check.height}, {check.fps:g} frames/s,"
                f" first after {check.first_frame_s:.1f} s",
                "; ".join(check.advice),
            )


# --- disk -------------------------------------------------------------------------------------------------------------


def _disk() -> Iterator[Finding]:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    small = free < LEAST_FREE_BYTES and not _in_container()
    yield Finding(
        "disk",
        State.WARNING if small else State.OK,
        f"{in_bytes(free)} free in {folder}",
        "make room: the demo composes its films there, and training keeps its copies there" if small else "",
    )


def _in_container() -> bool:
    """Whether /tmp is small on purpose: the images' is 64 MB of memory, and the services write nothing there."""
    return Path("/.dockerenv").exists() or "KUBERNETES_SERVICE_HOST" in os.environ
