"""`demographics ingest [CAMERAS.yaml]`: cameras to face crops on Kafka.

With a camera file, this worker runs all of its cameras, and follows the file when it changes. Without one, the workers share the
cameras of the topic `cameras`.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Final

import structlog

from ingest.fleet import Fleet
from pipeline import telemetry as metrics
from pipeline.camera_file import CameraFile
from pipeline.camera_topic import TopicCameras
from pipeline.cameras import Camera, check_files
from pipeline.distributed import Startup, open_bus
from pipeline.errors import TransportError
from pipeline.manifest import load_manifest
from pipeline.sealing import CropKeys, parse_keys
from pipeline.settings import Settings
from pipeline.switches import Switches
from pipeline.telemetry import Telemetry

log = structlog.get_logger()

PORT: Final = 9101


def serve(settings: Settings, file: CameraFile | None) -> None:
    """Run until a signal, or until every file among the cameras of *file* has ended. Raises ConfigError."""
    if file is not None:
        check_files(file.cameras)
    recipe = load_manifest(settings.inference.model).crop
    telemetry = Telemetry(("ingest",))
    with ExitStack() as stack:
        startup = Startup("ingest", settings, telemetry, port=PORT)
        stack.callback(startup.close)
        startup.serve()
        bus = open_bus(settings.kafka, "demographics-ingest", telemetry)
        stack.callback(bus.close)

        def join() -> tuple[TopicCameras | None, Switches]:
            bus.ensure_topics(settings.kafka.topics())
            switches = Switches(bus)
            return None if file is not None else TopicCameras(bus), switches

        joined = startup.wait_for("Kafka", join)
        if startup.stop.is_set() or joined is None:
            return
        shared, switches = joined
        wanted: tuple[Camera, ...] = file.cameras if file is not None else ()
        fleet = Fleet(
            switches.applied(wanted),
            settings=settings.ingest,
            recipe=recipe,
            bus=bus,
            telemetry=telemetry,
            max_in_flight=settings.kafka.max_in_flight,
            attributes=settings.attributes,
            seal=CropKeys(parse_keys(settings.kafka.crop_keys.get_secret_value())).seal,
        )
        stack.callback(fleet.close)
        fleet.start()

        def problems() -> list[str]:
            of_cameras = shared.problems() if shared is not None else [file.problem] if file and file.problem else []
            return [*of_cameras, *fleet.problems()]

        startup.ready(problems)
        while not startup.stop.is_set() and not (file is not None and fleet.ended()):
            cameras = file.changed() if file is not None else _share(shared, telemetry)
            wanted = wanted if cameras is None else cameras
            if switches.changed() or cameras is not None:
                fleet.apply(switches.applied(wanted))
            startup.stop.wait(0.2)
        fleet.close()
        if shared is not None:
            shared.close()  # after the last words: whoever takes over begins when this worker has ended
        log.info(
            "cameras_ended",
            frames={loop.camera.id: loop.state.frames for loop in fleet.loops},
            tracks={loop.camera.id: loop.state.tracks for loop in fleet.loops},
        )


def _share(shared: TopicCameras | None, telemetry: Telemetry) -> tuple[Camera, ...] | None:
    """Give this worker's share of the cameras where it has changed. A broker that is away changes nothing."""
    assert shared is not None
    try:
        return shared.changed()
    except TransportError as error:
        telemetry.add(metrics.BUS_FAILURES)
        log.warning("cameras_not_read", detail=str(error))
        return None
