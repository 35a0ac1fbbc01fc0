"""`demographics ingest CAMERAS.yaml`: cameras to face crops on Kafka."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

import structlog

from ingest.fleet import Fleet
from pipeline.cameras import Camera, check_files
from pipeline.distributed import Startup, open_bus
from pipeline.manifest import load_manifest
from pipeline.settings import Settings
from pipeline.telemetry import Telemetry

log = structlog.get_logger()

PORT: Final = 9101


def serve(settings: Settings, cameras: Sequence[Camera]) -> None:
    """Run until a signal, or until every file among the cameras has ended. Raises ConfigError."""
    check_files(tuple(cameras))
    recipe = load_manifest(settings.inference.model).crop
    telemetry = Telemetry(("ingest",))
    with ExitStack() as stack:
        startup = Startup("ingest", settings, telemetry, port=PORT)
        stack.callback(startup.close)
        startup.serve()
        bus = open_bus(settings.kafka, "demographics-ingest", telemetry)
        stack.callback(bus.close)
        startup.wait_for("Kafka", lambda: bus.ensure_topics(settings.kafka.topics()))
        if startup.stop.is_set():
            return
        fleet = Fleet(
            cameras,
            settings=settings.ingest,
            recipe=recipe,
            bus=bus,
            telemetry=telemetry,
            max_in_flight=settings.kafka.max_in_flight,
        )
        stack.callback(fleet.close)
        fleet.start()
        startup.ready(fleet.problems)
        while not fleet.ended() and not startup.stop.wait(0.2):
            pass
        fleet.close()
        log.info(
            "cameras_ended",
            frames={loop.camera.id: loop.state.frames for loop in fleet.loops},
            tracks={loop.camera.id: loop.state.tracks for loop in fleet.loops},
        )
