"""The inference worker, put together: the same in a process of its own and in the all-in-one run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from inference.engines import load_engine
from inference.handler import InferenceHandler
from inference.pixels import decode_crop
from inference.predictor import Engine, Predictor
from pipeline.bus import FACE_CROPS, Bus
from pipeline.manifest import Manifest
from pipeline.sealing import CropKeys, parse_keys
from pipeline.settings import InferenceSettings, Settings
from pipeline.telemetry import Telemetry
from pipeline.worker import DeadLetters, Worker

GROUP: Final = "inference"


def engine_of(
    settings: InferenceSettings,
    telemetry: Telemetry | None = None,
    say: Callable[[str], None] = lambda _: None,
    *,
    model: Path | None = None,
) -> Engine:
    """Open the engine of the settings, for their model or for *model*; *say* is told what takes long. Raises ConfigError."""
    return load_engine(
        settings.engine,
        model or settings.model,
        threads=settings.threads,
        max_batch=settings.max_batch,
        telemetry=telemetry,
        say=say,
    )


class InferenceService:
    """A worker on the topic of face crops."""

    def __init__(
        self,
        settings: Settings,
        bus: Bus,
        predictor: Predictor,
        manifest: Manifest,
        telemetry: Telemetry,
        *,
        member: str | None = None,
    ) -> None:
        """Join the group. Raises TransportError."""
        self._producer = bus.producer(max_in_flight=settings.kafka.max_in_flight)
        self._handler = InferenceHandler(
            predictor,
            manifest,
            self._producer,
            telemetry,
            attributes=settings.attributes,
            decode_crop=decode_crop,
            unseal=CropKeys(parse_keys(settings.kafka.crop_keys.get_secret_value())).open,
            dead_letter=DeadLetters(self._producer, "inference", telemetry),
            decoders=settings.inference.decoders,
            max_batch=settings.inference.max_batch,
        )
        self._consumer = bus.consumer(FACE_CROPS, group=GROUP, member=member)
        self.worker = Worker(
            self._consumer,
            self._handler,
            telemetry,
            max_records=settings.inference.max_batch * settings.inference.ahead,
            enough=settings.inference.max_batch,
            max_wait_s=settings.inference.max_wait_s,
        )

    def close(self) -> None:
        """Leave the group and let go."""
        self._consumer.close()
        self._producer.close()
        self._handler.close()
