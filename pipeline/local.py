"""Everything in one process: cameras, the in-process bus, inference, aggregation into an embedded Valkey, page and metrics.

The parts are those of the distributed services; only the bus and the store's server are others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Final, Self

import structlog

from aggregator.api import mount_api
from aggregator.disclosure import PublishedCounts
from aggregator.exporter import VisitorsCollector
from aggregator.health import PipelineHealth
from aggregator.redis_store import open_store
from aggregator.service import GROUP as AGGREGATOR_GROUP
from aggregator.service import AggregatorService, disclosure_of, windows_of
from aggregator.store import Snapshot
from inference.service import GROUP as INFERENCE_GROUP
from inference.service import InferenceService, engine_of
from ingest.av_source import AvSource
from ingest.fleet import Fleet
from ingest.reach import Reach
from pipeline.bus import FACE_CROPS, PREDICTIONS
from pipeline.camera_file import CameraFile
from pipeline.cameras import Camera, check_files
from pipeline.console import Screen
from pipeline.embedded_valkey import EmbeddedValkey
from pipeline.errors import ConfigError, SourceLost, TransportError
from pipeline.http import HttpServer, make_app
from pipeline.memory_bus import MemoryBus
from pipeline.report import RunReport, tally_table
from pipeline.sealing import CropKeys, parse_keys
from pipeline.settings import Settings
from pipeline.telemetry import Telemetry

log = structlog.get_logger()

DRAIN_S: Final = 60.0
DEFAULT_PORT: Final = 8080

Progress = Callable[[str], None]


class LocalRun:
    """The pipeline in one process. Enter it to have everything ready, call `start`, wait as long as you like, call `finish`."""

    def __init__(
        self,
        settings: Settings,
        cameras: Sequence[Camera],
        *,
        until_end: bool = False,
        port: int | None = None,
        progress: Progress = lambda _: None,
    ) -> None:
        """Set up; raises ConfigError for what cannot work, before anything is started."""
        check_files(tuple(cameras))
        _check_films(cameras, settings)
        self._settings = settings
        self._cameras = tuple(cameras)
        self._until_end = until_end
        self._port = port
        self._progress = progress
        self._stack = ExitStack()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._failures: list[str] = []
        self.telemetry = Telemetry(("ingest", "inference", "aggregator"))
        self.report = RunReport()
        self.windows = windows_of(settings)

    def __enter__(self) -> Self:
        """Bring up store, model, workers and page. Raises ConfigError."""
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _open(self) -> None:
        settings = self._settings
        self._progress("starting the embedded store")
        valkey = self._stack.enter_context(EmbeddedValkey())
        self.valkey_url = valkey.url
        self.store = open_store(settings, self.windows, url=valkey.url)
        self._stack.callback(self.store.close)
        self.counts = PublishedCounts(self.store, disclosure_of(settings))
        self.telemetry.collect_with(VisitorsCollector(self.counts, self.windows, self.telemetry))

        app = make_app(
            "demographics",
            self.telemetry.registry,
            self.problems,
            token=settings.http.token,
            requests_per_s=settings.http.requests_per_s,
        )
        health = PipelineHealth(self.telemetry, lambda: list(self._failures))
        mount_api(app, self.counts, self.windows, health)
        port = self._port if self._port is not None else settings.http.port
        self.http = HttpServer(app, host=settings.http.host, port=DEFAULT_PORT if port is None else port)
        self._stack.callback(self.http.close)
        self.http.start()

        self._progress("loading the model")
        predictor = engine_of(settings.inference, self.telemetry, self._progress)

        self.bus = MemoryBus()
        self._stack.callback(self.bus.close)
        self.bus.ensure_topics(settings.kafka.topics())
        inference = InferenceService(settings, self.bus, predictor, predictor.manifest, self.telemetry)
        self._stack.callback(inference.close)
        aggregator = AggregatorService(settings, self.bus, self.store, self.telemetry, on_closed=self.report.add)
        self._stack.callback(aggregator.close)
        self._spawn("inference", inference.worker.run)
        self._spawn("aggregator", aggregator.worker.run)
        self.fleet = Fleet(
            self._cameras,
            settings=settings.ingest,
            recipe=predictor.manifest.crop,
            bus=self.bus,
            telemetry=self.telemetry,
            until_end=self._until_end,
            attributes=settings.attributes,
            seal=CropKeys(parse_keys(settings.kafka.crop_keys.get_secret_value())).seal,
            polite=True,
        )

    def _spawn(self, name: str, run: Callable[[threading.Event], None]) -> None:
        def guarded() -> None:
            try:
                run(self._stop)
            except Exception:
                log.exception("service_failed", service=name)
                self._failures.append(f"{name} has failed; see the log")

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def start(self) -> None:
        """Open the cameras."""
        self.fleet.start()

    def problems(self) -> list[str]:
        """Say what keeps the run from being ready."""
        if not hasattr(self, "fleet"):
            return ["starting"]
        return [*self._failures, *self.fleet.problems()]

    def wait(self, seconds: float) -> bool:
        """Wait for *seconds* at most; True once every camera has ended or a service has failed."""
        deadline = time.monotonic() + seconds
        while not (over := self.fleet.ended() or bool(self._failures)) and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))
        return over

    def snapshot(self) -> Snapshot:
        """Read every count as it is now, as far as it may be published. Raises TransportError."""
        return self.counts.snapshot(time.time(), self.windows)

    def finish(self) -> dict[str, Any]:
        """Close the cameras, let everything that they said be counted, and give the report."""
        self.fleet.close()
        deadline = time.monotonic() + DRAIN_S
        while not self._drained() and not self._failures and time.monotonic() < deadline:
            time.sleep(0.05)
        if not self._drained():
            log.error("run_not_drained", problems=self._failures or ["the workers did not finish in time"])
        return self.report.document(
            {
                loop.camera.id: {
                    "frames": loop.state.frames,
                    "dropped": loop.state.drops,
                    "reconnects": max(0, loop.state.connections - 1),
                    "state": loop.state.state,
                    "reason": loop.state.reason,
                }
                for loop in self.fleet.loops
            }
        )

    def _drained(self) -> bool:
        return self.bus.drained(FACE_CROPS, INFERENCE_GROUP) and self.bus.drained(PREDICTIONS, AGGREGATOR_GROUP)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop everything, in the order in which it depends on each other."""
        if hasattr(self, "fleet"):
            self.fleet.close()
        self._stop.set()
        for thread in self._threads:
            thread.join(10.0)
        self._stack.close()


def _check_films(cameras: Sequence[Camera], settings: Settings) -> None:
    """Open every file once: one that is no film is said before the seconds that the rest of the start takes."""
    problems = []
    for camera in cameras:
        if camera.path is not None:
            try:
                AvSource(
                    camera,
                    open_timeout_s=settings.ingest.open_timeout_s,
                    read_timeout_s=settings.ingest.read_timeout_s,
                    reach=Reach(settings.ingest.schemes, settings.ingest.networks),
                ).close()
            except SourceLost as error:
                problems.append(str(error))
    if problems:
        raise ConfigError(problems)


def run_cameras(
    settings: Settings,
    cameras: Sequence[Camera],
    stop: threading.Event,
    *,
    until_end: bool = False,
    port: int | None = None,
    table: bool = True,
    file: CameraFile | None = None,
) -> dict[str, Any]:
    """Run until *stop*, or until every camera has ended; shows the counts meanwhile and gives the report. Raises ConfigError.

    The cameras follow *file* when it changes.
    """
    screen = Screen(
        f"demographics: {len(cameras)} camera{'s' if len(cameras) != 1 else ''}, everything in this process"
    )
    with LocalRun(settings, cameras, until_end=until_end, port=port, progress=screen.step) as local:
        local.start()
        screen.step(f"page {local.http.url}/   metrics {local.http.url}/metrics   (Ctrl-C ends)")
        watch(local, screen, stop, until=float("inf"), file=file)
        screen.step("ending: counting what is under way")
        document = local.finish()
    failed = [
        f"{camera}: {known['reason']}"
        for camera, known in document["cameras"].items()
        if known["state"] != "ended" and until_end and not known["frames"]
    ]
    if failed:
        raise ConfigError(failed)
    if table:
        screen.console.print(tally_table("counted", {"visitors": document}))
    return document


def watch(
    local: LocalRun, screen: Screen, stop: threading.Event, *, until: float, file: CameraFile | None = None
) -> None:
    """Show the counts until *stop*, *until* (a monotonic time), or the end of all cameras."""
    footer = f"page [link]{local.http.url}/[/link]   metrics [link]{local.http.url}/metrics[/link]   Ctrl-C ends"
    with screen:
        while not stop.is_set() and time.monotonic() < until:
            try:
                screen.show(local.snapshot, footer)
            except TransportError as error:
                log.warning("store_failed", detail=str(error))
            if file is not None and (cameras := file.changed()) is not None:
                local.fleet.apply(cameras)
            if local.wait(min(0.5, max(0.01, until - time.monotonic()))):
                return
