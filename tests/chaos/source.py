"""An ingest worker whose cameras are scripted: it says what the script says, by ingest's own outbox, and survives kill -9.

    python -m tests.chaos.source SEED STARTED PEOPLE INTERVAL_S FOLDER CAMERA ...

What has been acknowledged is noted in FOLDER; a successor goes on from there, and says some things once more.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Final

import structlog

from ingest.outbox import Outbox, SharedProducer
from pipeline.bus import FACE_CROPS, PREDICTIONS
from pipeline.distributed import Startup, open_bus
from pipeline.errors import TransportError
from pipeline.messages import CameraStatus
from pipeline.settings import load_settings
from pipeline.telemetry import Telemetry, configure_logging
from tests.chaos.script import events, people

log = structlog.get_logger()

STATUS_S: Final = 2.0
AT_ONCE: Final = 32


class ScriptedCamera:
    """Says its part of the script in time, each thing until it is acknowledged."""

    def __init__(self, name: str, script: list[tuple[float, object]], progress: Path, producer: SharedProducer) -> None:
        self.name = name
        self._script = script
        self._progress = progress
        self._at = self._said = json.loads(progress.read_text()) if progress.exists() else 0
        self._outbox = Outbox(producer, patient=True, on_drop=lambda: None)
        self._status_due = 0.0

    @property
    def over(self) -> bool:
        """Tell whether everything has been said and acknowledged."""
        return self._at >= len(self._script)

    def speak(self, now: float) -> None:
        """Say what is due. Raises TransportError: it is said again."""
        while self._said < len(self._script) and self._script[self._said][0] <= now and len(self._outbox) < AT_ONCE:
            message = self._script[self._said][1]
            self._outbox.post(FACE_CROPS, message)  # type: ignore[arg-type]
            self._said += 1
        if now > self._status_due:
            self._status_due = now + STATUS_S
            self._outbox.post(PREDICTIONS, CameraStatus(camera_id=self.name, site="chaos", at=now, state="running"))
        self._outbox.deliver(last=True)
        if self._said > self._at:
            self._at = self._said
            fresh = self._progress.with_suffix(".new")
            fresh.write_text(json.dumps(self._at))
            fresh.replace(self._progress)


def main(arguments: list[str]) -> None:
    """Run until everything has been said, or a signal."""
    seed, started, count, interval_s, folder, *cameras = arguments
    settings = load_settings()
    configure_logging(level=settings.log_level, json=True)
    startup = Startup("ingest", settings, Telemetry(("ingest",)), port=0)
    startup.serve()
    bus = open_bus(settings.kafka, "chaos-source")
    startup.wait_for("Kafka", lambda: bus.ensure_topics(settings.kafka.topics()))
    made = startup.wait_for("Kafka", lambda: bus.producer(send_timeout_s=1.0))
    if made is None:
        return
    producer = SharedProducer(made)
    spoken = [
        ScriptedCamera(
            camera,
            [*events(people(int(seed), camera, int(count), float(interval_s)), camera, float(started))],
            Path(folder) / f"{camera}.json",
            producer,
        )
        for camera in cameras
    ]
    startup.ready()
    while not startup.stop.is_set() and not all(camera.over for camera in spoken):
        for camera in spoken:
            try:
                camera.speak(time.time())
            except TransportError as error:
                log.warning("bus_refused", camera=camera.name, detail=str(error))
                startup.stop.wait(0.5)
        startup.stop.wait(0.1)
    log.info("said_everything" if all(camera.over for camera in spoken) else "stopped")
    producer.close()
    bus.close()
    startup.close()


if __name__ == "__main__":
    main(sys.argv[1:])
