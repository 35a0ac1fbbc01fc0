"""The inference worker, put together: the same in a process of its own and in the all-in-one run."""

from __future__ import annotations

from typing import Final

from inference.handler import InferenceHandler
from inference.pixels import decode_crop
from inference.predictor import Predictor
from pipeline.bus import FACE_CROPS, Bus
from pipeline.manifest import Manifest
from pipeline.sealing import CropKeys, parse_keys
from pipeline.settings import Settings
from pipeline.telemetry import Telemetry
from pipeline.worker import DeadLetters, Worker

GROUP: Final = "inference"


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
        )
        self._consumer = bus.consumer(FACE_CROPS, group=GROUP, member=member)
        self.worker = Worker(
            self._consumer,
            self._handler,
            telemetry,
            max_records=settings.inference.max_batch,
            max_wait_s=settings.inference.max_wait_s,
        )

    def close(self) -> None:
        """Leave the group and let go."""
        self._consumer.close()
        self._producer.close()
        self._handler.close()
