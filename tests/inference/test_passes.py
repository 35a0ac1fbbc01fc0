"""A batch in passes of the network: each record answered once and in order, and the next pictures decoded meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from inference.handler import InferenceHandler
from inference.pixels import decode_crop
from inference.predictor import Crops, Logits, Predictor
from pipeline import telemetry as metrics
from pipeline.attributes import ATTRIBUTES
from pipeline.bus import DEAD_LETTERS, PREDICTIONS
from pipeline.messages import DeadLetter, Message, Prediction, TrackEnded
from pipeline.telemetry import Telemetry
from pipeline.worker import DeadLetters
from tests.inference.conftest import MANIFEST, FakeProducer, ToyPredictor, face_crop, track_ended
from tests.inference.test_handler import jpeg, record


class Rig:
    """A handler whose passes take *max_batch* records, on a fake bus."""

    def __init__(
        self, predictor: Predictor, max_batch: int, decode: Callable[[bytes, int], NDArray[np.uint8]] = decode_crop
    ) -> None:
        self.producer = FakeProducer()
        self.telemetry = Telemetry(("inference",))
        self.handler = InferenceHandler(
            predictor, MANIFEST, self.producer, self.telemetry, attributes=ATTRIBUTES, decode_crop=decode,
            max_batch=max_batch, dead_letter=DeadLetters(self.producer, "inference", self.telemetry),
        )  # fmt: skip

    def handle(self, *contents: Message | bytes) -> None:
        """Take records that hold *contents*, and let go of the threads."""
        try:
            self.handler.handle([record(n, content) for n, content in enumerate(contents)])
        finally:
            self.handler.close()


@given(st.lists(st.sampled_from(["crop", "end", "junk", "no picture"]), max_size=40), st.integers(1, 9))
def test_however_records_are_cut_into_passes_each_is_answered_once_and_in_order(kinds: list[str], size: int) -> None:
    """A crop by its own prediction, an end as it is, a bad one by a dead letter; no pass is larger than allowed."""
    predictor = ToyPredictor()
    rig = Rig(predictor, size)
    made: dict[str, Callable[[int], Message | bytes]] = {
        "crop": lambda n: face_crop(n, jpeg(n)), "end": track_ended, "junk": lambda _: b"junk",
        "no picture": lambda n: face_crop(n, b"no picture"),
    }  # fmt: skip
    rig.handle(*(made[kind](n) for n, kind in enumerate(kinds)))
    said = [message for _, message in rig.producer.sent.get(PREDICTIONS, [])]
    found = [(type(each), each.track_id - 1000) for each in said if isinstance(each, Prediction | TrackEnded)]
    expected = {"crop": Prediction, "end": TrackEnded}
    assert found == [(expected[kind], n) for n, kind in enumerate(kinds) if kind in expected]
    for each in said:
        if isinstance(each, Prediction):
            assert each.age == pytest.approx(each.track_id - 1000, abs=1)
    letters = [letter.offset for _, letter in rig.producer.sent.get(DEAD_LETTERS, []) if isinstance(letter, DeadLetter)]
    assert letters == [n for n, kind in enumerate(kinds) if kind not in expected]
    assert all(0 < batch <= size for batch in predictor.batches)


def test_pictures_of_the_next_pass_are_decoded_while_the_network_runs_this_one() -> None:
    """The first pass of the network waits until a picture of the second has been decoded: it would wait for ever, if not."""
    second = threading.Event()
    late = jpeg(77)

    def decoded(data: bytes, side: int) -> NDArray[np.uint8]:
        if data == late:
            second.set()
        return decode_crop(data, side)

    class Patient(ToyPredictor):
        def predict(self, crops: Crops) -> Logits:
            assert second.wait(20), "the second pass was not begun"
            return super().predict(crops)

    predictor = Patient()
    rig = Rig(predictor, 2, decoded)
    rig.handle(*(face_crop(n, late if n == 3 else jpeg(n)) for n in range(4)))
    assert predictor.batches == [2, 2]
    assert rig.telemetry.registry.get_sample_value(f"{metrics.DECODE_WAIT.name}_count") == 2
