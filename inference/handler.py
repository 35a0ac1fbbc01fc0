"""Inference's side of the worker loop: decode in parallel, predict in one pass, publish, return once acknowledged."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
from numpy.typing import NDArray

from inference.predictor import Predictor
from inference.step import Face, predict
from pipeline import telemetry as metrics
from pipeline.attributes import Attribute
from pipeline.bus import PREDICTIONS, Producer, Record, TopicPartition
from pipeline.errors import InvalidMessage
from pipeline.manifest import Manifest
from pipeline.messages import FaceCrop, Prediction, TrackEnded, decode, encode, headers
from pipeline.telemetry import Telemetry

FLUSH_S: Final = 30.0


class InferenceHandler:
    """Turns face crops into predictions. One thread owns it."""

    def __init__(
        self,
        predictor: Predictor,
        manifest: Manifest,
        producer: Producer,
        telemetry: Telemetry,
        *,
        attributes: Collection[Attribute],
        decode_crop: Callable[[bytes, int], NDArray[np.uint8]],
        unseal: Callable[[FaceCrop], FaceCrop] = lambda crop: crop,
        dead_letter: Callable[[Record, InvalidMessage], None],
        decoders: int = 2,
    ) -> None:
        self._predictor = predictor
        self._manifest = manifest
        self._producer = producer
        self._telemetry = telemetry
        self._attributes = frozenset(attributes)
        self._decode_crop = decode_crop
        self._unseal = unseal
        self._dead_letter = dead_letter
        self._pool = ThreadPoolExecutor(decoders, thread_name_prefix="jpeg")

    def handle(self, records: Sequence[Record]) -> tuple[TopicPartition, ...]:
        """Publish what the records say; returns once every prediction is acknowledged. Raises TransportError."""
        items: list[Face | TrackEnded] = []
        for record, item in zip(records, self._pool.map(self._decode, records), strict=True):
            if isinstance(item, InvalidMessage):
                self._dead_letter(record, item)
            else:
                items.append(item)
            if isinstance(item, Face):
                self._telemetry.observe(metrics.CAPTURE_TO_BUS, max(0.0, record.timestamp - item.crop.captured_at))
        faces = sum(isinstance(item, Face) for item in items)
        if faces:
            with self._telemetry.timed(metrics.INFERENCE_SECONDS):
                said = predict(items, self._predictor, self._manifest, self._attributes)
            self._telemetry.observe(metrics.BATCH_FILL, faces)
        else:
            said = predict(items, self._predictor, self._manifest, self._attributes)
        for message in said:
            value = encode(message)
            self._producer.send(PREDICTIONS, key=message.camera_id.encode(), value=value, headers=headers(value))
        self._producer.flush(FLUSH_S)
        self._telemetry.add(metrics.PREDICTIONS_TOTAL, faces)
        self._observe(records, said)
        return ()

    def _observe(self, records: Sequence[Record], said: Sequence[Prediction | TrackEnded]) -> None:
        """Say how long it took, and what the model says: a drift is seen here before the counts go wrong."""
        now, tell = time.time(), self._telemetry.observe
        for record in records:
            tell(metrics.BUS_TO_PREDICTION, max(0.0, now - record.timestamp))
        for message in said:
            if not isinstance(message, Prediction):
                continue
            tell(metrics.CROP_QUALITY, message.quality)
            if message.p_female is not None:
                tell(metrics.CONFIDENCE, max(message.p_female, 1 - message.p_female), head="gender")
            if message.p_ethnicity is not None:
                tell(metrics.CONFIDENCE, max(message.p_ethnicity), head="ethnicity")
            if message.age is not None:
                tell(metrics.PREDICTED_AGE, message.age)
            if message.age_spread is not None:
                tell(metrics.AGE_SPREAD, message.age_spread)

    def idle(self) -> tuple[TopicPartition, ...]:
        """Do nothing: time asks nothing of inference."""
        return ()

    def close(self) -> None:
        """Let go of the decoders."""
        self._pool.shutdown(cancel_futures=True)

    def _decode(self, record: Record) -> Face | TrackEnded | InvalidMessage:
        """Decide all that can be wrong with a record (law 3): the error is a value, so that the batch goes on."""
        try:
            message = decode(record.value, record.headers)
            if isinstance(message, FaceCrop):
                crop = self._unseal(message)
                return Face(crop, self._decode_crop(crop.jpeg, self._manifest.crop.size_px))
            if isinstance(message, TrackEnded):
                return message
            return InvalidMessage("malformed", f"a {type(message).__name__} is not for this topic")
        except InvalidMessage as error:
            return error
