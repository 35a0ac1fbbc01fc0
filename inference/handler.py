"""Inference's side of the worker loop: decode in parallel, predict in passes, publish, return once acknowledged.

A pass is what the network is given at once. Where more records are waiting than one pass takes, the pictures of the later passes
are decoded while the network runs the earlier ones, straight into the rows that it reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from inference.predictor import Crops, Predictor
from inference.step import predict
from pipeline import telemetry as metrics
from pipeline.attributes import Attribute
from pipeline.bus import PREDICTIONS, Producer, Record, TopicPartition
from pipeline.errors import InvalidMessage
from pipeline.manifest import Manifest
from pipeline.messages import FaceCrop, Prediction, TrackEnded, decode, encode, headers
from pipeline.telemetry import Telemetry

FLUSH_S: Final = 30.0


DECODED_TOGETHER: Final = 8  # pictures: handing one to another thread costs a third of its decoding

_Item = FaceCrop | TrackEnded | InvalidMessage


class _Pass(NamedTuple):
    """Records on their way through the network."""

    records: Sequence[Record]
    items: list[_Item]  # what they say
    faces: list[int]  # which of them are face crops
    crops: Crops  # their pixels, row by row
    decoding: list[Future[list[InvalidMessage | None]]]


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
        max_batch: int = 32,
    ) -> None:
        """Set up. A pass of the network takes *max_batch* records."""
        self._predictor = predictor
        self._manifest = manifest
        self._producer = producer
        self._telemetry = telemetry
        self._attributes = frozenset(attributes)
        self._decode_crop = decode_crop
        self._unseal = unseal
        self._dead_letter = dead_letter
        self._max_batch = max_batch
        self._pool = ThreadPoolExecutor(decoders, thread_name_prefix="jpeg")

    def handle(self, records: Sequence[Record]) -> tuple[TopicPartition, ...]:
        """Publish what the records say; returns once every prediction is acknowledged. Raises TransportError."""
        passes = [
            self._begin(records[start : start + self._max_batch]) for start in range(0, len(records), self._max_batch)
        ]
        said: list[Prediction | TrackEnded] = []
        for one in passes:
            said += self._finish(one)
        self._producer.flush(FLUSH_S)
        self._telemetry.add(metrics.PREDICTIONS_TOTAL, sum(isinstance(message, Prediction) for message in said))
        self._observe(records, said)
        return ()

    def _begin(self, records: Sequence[Record]) -> _Pass:
        """Read the messages and have their pictures decoded."""
        items = [_message(record) for record in records]
        faces = [place for place, item in enumerate(items) if isinstance(item, FaceCrop)]
        side = self._manifest.crop.size_px
        crops = np.empty((len(faces), side, side, 3), np.uint8)
        shares = [
            (
                crops[first : first + DECODED_TOGETHER],
                [items[place] for place in faces[first : first + DECODED_TOGETHER]],
            )
            for first in range(0, len(faces), DECODED_TOGETHER)
        ]
        return _Pass(records, items, faces, crops, [self._pool.submit(self._decode, *share) for share in shares])

    def _finish(self, one: _Pass) -> list[Prediction | TrackEnded]:
        """Predict one pass and send what comes of it; what would not decode is dead-lettered. Raises TransportError."""
        items, crops = one.items, one.crops
        with self._telemetry.timed(metrics.DECODE_WAIT):
            errors = [error for share in one.decoding for error in share.result()]
        for place, error in zip(one.faces, errors, strict=True):
            if error is not None:
                items[place] = error
        if any(errors):  # rare enough to copy for
            crops = crops[[error is None for error in errors]]
        good: list[FaceCrop | TrackEnded] = []
        for record, item in zip(one.records, items, strict=True):
            if isinstance(item, InvalidMessage):
                self._dead_letter(record, item)
                continue
            good.append(item)
            if isinstance(item, FaceCrop):
                self._telemetry.observe(metrics.CAPTURE_TO_BUS, max(0.0, record.timestamp - item.captured_at))
        if len(crops):
            with self._telemetry.timed(metrics.INFERENCE_SECONDS):
                said = predict(good, crops, self._predictor, self._manifest, self._attributes)
            self._telemetry.observe(metrics.BATCH_FILL, len(crops))
        else:
            said = predict(good, crops, self._predictor, self._manifest, self._attributes)
        for message in said:
            value = encode(message)
            self._producer.send(PREDICTIONS, key=message.camera_id.encode(), value=value, headers=headers(value))
        return said

    def _decode(self, rows: Crops, crops: Sequence[_Item]) -> list[InvalidMessage | None]:
        """Decode pictures into *rows*; an error is a value (law 3), so that the batch goes on."""
        errors: list[InvalidMessage | None] = []
        for row, crop in zip(rows, crops, strict=True):
            assert isinstance(crop, FaceCrop)
            try:
                row[:] = self._decode_crop(self._unseal(crop).jpeg, self._manifest.crop.size_px)
                errors.append(None)
            except InvalidMessage as error:
                errors.append(error)
        return errors

    def _observe(self, records: Sequence[Record], said: Sequence[Prediction | TrackEnded]) -> None:
        """Say how long it took, and what the model says: a drift is seen here before the counts go wrong."""
        now, tell = time.time(), self._telemetry.observe
        waited = (max(0.0, now - record.timestamp) for record in records)
        self._telemetry.observe_all(metrics.BUS_TO_PREDICTION, waited)
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


def _message(record: Record) -> _Item:
    """Read a record as far as its picture; what is wrong with it is a value."""
    try:
        message = decode(record.value, record.headers)
    except InvalidMessage as error:
        return error
    if isinstance(message, FaceCrop | TrackEnded):
        return message
    return InvalidMessage("malformed", f"a {type(message).__name__} is not for this topic")
