"""Inference's side of the worker loop: a bad record is dead-lettered and passed, a bus that says no is told upwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
import pytest

from inference.handler import InferenceHandler
from inference.pixels import decode_crop
from pipeline import telemetry as metrics
from pipeline.attributes import ATTRIBUTES, Attribute
from pipeline.bus import DEAD_LETTERS, FACE_CROPS, PREDICTIONS, Headers, Record
from pipeline.errors import TransportError
from pipeline.messages import CameraStatus, DeadLetter, FaceCrop, Message, Prediction, TrackEnded, encode, headers
from pipeline.telemetry import Telemetry
from pipeline.worker import DeadLetters
from tests.inference.conftest import MANIFEST, SIDE, FakeProducer, ToyPredictor, face_crop, plain, track_ended


def jpeg(value: int, side: int = SIDE) -> bytes:
    """Compress a crop of one grey."""
    done, data = cv2.imencode(".jpg", plain(value, side), (cv2.IMWRITE_JPEG_QUALITY, 100))
    assert done
    return data.tobytes()


def record(offset: int, value: Message | bytes, record_headers: Headers = headers()) -> Record:  # noqa: B008  a constant
    """Put a message, or bytes that are none, into the log."""
    body = value if isinstance(value, bytes) else encode(value)
    return Record(FACE_CROPS, 3, offset, b"door", body, record_headers, 1e9)


class Rig:
    """A handler on a toy network and a fake bus."""

    def __init__(self, attributes: Sequence[Attribute] = ATTRIBUTES) -> None:
        self.producer = FakeProducer()
        self.predictor = ToyPredictor()
        self.telemetry = Telemetry(("inference",))
        self.handler = InferenceHandler(
            self.predictor,
            MANIFEST,
            self.producer,
            self.telemetry,
            attributes=attributes,
            decode_crop=decode_crop,
            dead_letter=DeadLetters(self.producer, "inference", self.telemetry),
        )

    def said(self) -> list[Message]:
        """Give what went out as predictions."""
        return [message for _, message in self.producer.sent.get(PREDICTIONS, [])]

    def letters(self) -> list[DeadLetter]:
        """Give what was dead-lettered."""
        letters = [message for _, message in self.producer.sent.get(DEAD_LETTERS, [])]
        return [letter for letter in letters if isinstance(letter, DeadLetter)]


@pytest.fixture
def rig() -> Iterator[Rig]:
    """Make one, and let go of its threads."""
    made = Rig()
    yield made
    made.handler.close()


def test_crops_become_predictions_under_their_own_identity_and_key(rig: Rig) -> None:
    """In order, ends in between, all acknowledged when it returns."""
    crops = [face_crop(n, jpeg(20 + n), camera_id=f"cam-{n % 2}") for n in range(6)]
    end = track_ended(9, camera_id="cam-1")
    rig.handler.handle([*(record(n, crop) for n, crop in enumerate(crops)), record(6, end)])
    *predictions, last = rig.said()
    assert last == end
    for n, (crop, said) in enumerate(zip(crops, predictions, strict=True)):
        assert isinstance(said, Prediction)
        assert said.age == pytest.approx(20 + n, abs=1)
        for field in ("camera_id", "site", "track_id", "sequence", "first_seen", "captured_at", "quality"):
            assert getattr(said, field) == getattr(crop, field), field
    keys = [key for key, _ in rig.producer.sent[PREDICTIONS]]
    assert keys == [b"cam-0", b"cam-1"] * 3 + [b"cam-1"]
    assert rig.producer.flushed
    assert rig.predictor.batches == [6]


BAD: list[tuple[str, str, Callable[[], Record]]] = [
    ("no message", "malformed", lambda: record(77, b"not MessagePack")),
    ("empty", "malformed", lambda: record(77, b"")),
    ("another version", "schema", lambda: record(77, face_crop(1, jpeg(1)), (("schema", b"99"),))),
    ("no version", "schema", lambda: record(77, face_crop(1, jpeg(1)), ())),
    ("no picture", "image", lambda: record(77, face_crop(1, b"no picture"))),
    ("truncated", "image", lambda: record(77, face_crop(1, jpeg(1)[:-40]))),
    ("another size", "image", lambda: record(77, face_crop(1, jpeg(1, SIDE * 2)))),
    ("another kind", "malformed", lambda: record(77, CameraStatus(camera_id="door", at=1.0, state="running"))),
]


@pytest.mark.parametrize(("reason", "make"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
def test_a_bad_record_is_dead_lettered_and_the_batch_goes_on(rig: Rig, reason: str, make: Callable[[], Record]) -> None:
    """With its reason and its coordinates, under its own key, and never with what it held."""
    bad = make()
    rig.handler.handle([record(76, face_crop(1, jpeg(31))), bad, record(78, face_crop(2, jpeg(32)))])
    ages = [said.age for said in rig.said() if isinstance(said, Prediction)]
    assert ages == [pytest.approx(31, abs=1), pytest.approx(32, abs=1)]
    (letter,) = rig.letters()
    assert (letter.reason, letter.topic, letter.partition, letter.offset) == (reason, FACE_CROPS, 3, 77)
    assert (letter.size_bytes, letter.service) == (len(bad.value), "inference")
    assert letter.detail
    assert rig.producer.sent[DEAD_LETTERS][0][0] == b"door"
    assert rig.telemetry.registry.get_sample_value(metrics.DEAD_LETTERS_TOTAL.name, {"reason": reason}) == 1
    assert rig.producer.flushed


def test_a_batch_of_nothing_good_is_passed(rig: Rig) -> None:
    """The network is left alone, and the letters are safe before the offsets move."""
    rig.handler.handle([record(n, b"junk") for n in range(5)])
    assert [letter.offset for letter in rig.letters()] == [0, 1, 2, 3, 4]
    assert rig.said() == []
    assert rig.predictor.batches == []
    assert rig.producer.flushed


@pytest.mark.parametrize("content", [face_crop(1, jpeg(1)), track_ended(1), b"junk"], ids=["crop", "end", "junk"])
def test_a_bus_that_says_no_is_told_upwards(rig: Rig, content: Message | bytes) -> None:
    """The same batch comes again; nothing is passed over, neither a prediction nor a dead letter."""
    batch = [record(0, content)]
    rig.producer.refuse = lambda: True
    with pytest.raises(TransportError):
        rig.handler.handle(batch)
    rig.producer.refuse = lambda: False
    rig.handler.handle(batch)
    assert len(rig.said()) + len(rig.letters()) == 1


def test_what_was_not_acknowledged_is_told_upwards(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sent is not durable: the handler returns only once the flush did."""

    def flush(_timeout_s: float) -> None:
        raise TransportError("nobody acknowledged")

    monkeypatch.setattr(rig.producer, "flush", flush)
    with pytest.raises(TransportError):
        rig.handler.handle([record(0, face_crop(1, jpeg(1)))])
    assert rig.telemetry.registry.get_sample_value(metrics.PREDICTIONS_TOTAL.name) == 0


def test_a_repeated_batch_says_the_same(rig: Rig) -> None:
    """A replay after a crash: the same identities with the same values, so that nothing is counted twice."""
    batch = [record(n, face_crop(n, jpeg(40 + n))) for n in range(4)]
    rig.handler.handle(batch)
    first = rig.said()
    rig.handler.handle(batch)
    assert rig.said() == first * 2


def test_crops_are_counted_and_the_filling_of_batches(rig: Rig) -> None:
    """For the dashboard: predictions, and how many crops share a pass."""
    rig.handler.handle([record(n, face_crop(n, jpeg(9))) for n in range(5)])
    rig.handler.handle([record(9, track_ended(1))])
    value = rig.telemetry.registry.get_sample_value
    assert value(metrics.PREDICTIONS_TOTAL.name) == 5
    assert value(f"{metrics.BATCH_FILL.name}_sum") == 5
    assert value(f"{metrics.BATCH_FILL.name}_count") == value(f"{metrics.INFERENCE_SECONDS.name}_count") == 1


def test_attributes_that_are_off_are_not_published() -> None:
    """The switch reaches the bus."""
    rig = Rig(("age",))
    try:
        rig.handler.handle([record(0, face_crop(1, jpeg(50)))])
    finally:
        rig.handler.close()
    (said,) = rig.said()
    assert isinstance(said, Prediction)
    assert said.age == pytest.approx(50, abs=1)
    assert (said.p_female, said.p_ethnicity) == (None, None)


def test_pictures_are_decoded_in_parallel_and_kept_apart(rig: Rig) -> None:
    """Two hundred crops by two threads: each prediction is of its own picture."""
    order = np.random.default_rng(5).permutation(200) % 100
    rig.handler.handle([record(n, face_crop(n, jpeg(int(value)))) for n, value in enumerate(order)])
    ages = [said.age for said in rig.said() if isinstance(said, Prediction)]
    assert ages == [pytest.approx(value, abs=1) for value in order]
    assert [said.track_id for said in rig.said() if isinstance(said, FaceCrop | Prediction | TrackEnded)] == list(
        range(1000, 1200)
    )


def test_what_the_model_says_is_told_so_that_a_drift_can_be_seen(rig: Rig) -> None:
    """One sample of age, spread, quality and confidence a crop, none for an end; the wait before it, as well."""
    rig.handler.handle([*(record(n, face_crop(n, jpeg(30 + n))) for n in range(3)), record(3, track_ended(9))])

    def counted(metric: metrics.Metric, **labels: str) -> float:
        samples = rig.telemetry.samples(metric)
        return sum(value for name, said, value in samples if name.endswith("_count") and labels.items() <= said.items())

    for metric in (metrics.PREDICTED_AGE, metrics.AGE_SPREAD, metrics.CROP_QUALITY, metrics.CAPTURE_TO_BUS):
        assert counted(metric) == 3, metric.name
    assert [counted(metrics.CONFIDENCE, head=head) for head in ("gender", "ethnicity")] == [3, 3]
    assert counted(metrics.BUS_TO_PREDICTION) == 4
