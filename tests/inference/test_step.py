"""A batch in, a batch out: each face with its own prediction, in its place."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.step import predict
from pipeline.attributes import ATTRIBUTES, Attribute
from pipeline.errors import InvalidMessage
from pipeline.messages import FaceCrop, Prediction, TrackEnded, decode, encode, headers
from tests.inference.conftest import MANIFEST, SIDE, ToyPredictor, face_crop, plain, track_ended

SUBSETS = list(chain.from_iterable(combinations(ATTRIBUTES, n) for n in range(4)))


def predicted(
    items: Sequence[FaceCrop | TrackEnded], predictor: ToyPredictor, attributes: Sequence[Attribute] = ATTRIBUTES
) -> list[Prediction | TrackEnded]:
    """Predict *items*, each face of a brightness that tells it."""
    pixels = [plain(item.track_id - 1000) for item in items if isinstance(item, FaceCrop)]
    crops = np.stack(pixels) if pixels else np.zeros((0, SIDE, SIDE, 3), np.uint8)
    return predict(items, crops, predictor, MANIFEST, attributes)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 100)), max_size=40))
def test_everything_keeps_its_place_and_every_face_gets_its_own_prediction(batch: list[tuple[bool, int]]) -> None:
    """Track ends pass through as they are, wherever they stand between faces."""
    items = [face_crop(n) if is_face else track_ended(n) for is_face, n in batch]
    predictor = ToyPredictor()
    said = predicted(items, predictor)
    assert len(said) == len(items)
    for (is_face, n), item, message in zip(batch, items, said, strict=True):
        if is_face:
            assert isinstance(message, Prediction)
            assert message.age == pytest.approx(n, abs=1e-3)
            assert message.track_id == 1000 + n
        else:
            assert message is item
    faces = sum(is_face for is_face, _ in batch)
    assert predictor.batches == ([faces] if faces else [])  # one pass, none for nothing


def test_a_prediction_says_whose_it_is_and_by_which_model() -> None:
    """The identity under which evidence is counted once is the crop's."""
    (said,) = predicted([face_crop(37)], ToyPredictor())
    crop = face_crop(37)
    assert isinstance(said, Prediction)
    for field in ("camera_id", "site", "track_id", "sequence", "first_seen", "captured_at", "quality"):
        assert getattr(said, field) == getattr(crop, field), field
    assert said.model == MANIFEST.digest == "0123456789ab"


@pytest.mark.parametrize("attributes", SUBSETS, ids=lambda attributes: "+".join(attributes) or "none")
def test_what_is_switched_off_is_not_said(attributes: tuple[Attribute, ...]) -> None:
    """Not a probability of it leaves inference; what is on is there."""
    (said,) = predicted([face_crop(33)], ToyPredictor(), attributes)
    assert isinstance(said, Prediction)
    assert (said.age is not None) == (said.age_spread is not None) == ("age" in attributes)
    assert (said.p_female is not None) == ("gender" in attributes)
    assert (said.p_ethnicity is not None) == ("ethnicity" in attributes)


def test_each_head_says_what_the_network_says() -> None:
    """An odd brightness is a woman of the third group to the toy."""
    (said,) = predicted([face_crop(33)], ToyPredictor())
    assert isinstance(said, Prediction)
    assert said.age == pytest.approx(33, abs=1e-3)
    assert said.p_female is not None
    assert said.p_female > 0.9
    assert said.p_ethnicity is not None
    assert said.p_ethnicity.index(max(said.p_ethnicity)) == 33 % 5
    assert sum(said.p_ethnicity) == pytest.approx(1, abs=1e-5)


@given(st.lists(st.integers(0, 100), min_size=1, max_size=10), st.sampled_from(SUBSETS))
def test_every_prediction_travels(brightness: list[int], attributes: tuple[Attribute, ...]) -> None:
    """Rounding keeps it within the bounds that its reader checks."""
    for said in predicted([face_crop(n) for n in brightness], ToyPredictor(), attributes):
        try:
            assert decode(encode(said), headers()) == said
        except InvalidMessage as error:
            pytest.fail(f"{said} does not travel: {error}")


def test_nothing_in_is_nothing_out() -> None:
    """And the network is left alone, as it is by a batch of track ends."""
    predictor = ToyPredictor()
    ends = [track_ended(n) for n in range(3)]
    assert predicted([], predictor) == []
    assert predicted(ends, predictor) == ends
    assert all(isinstance(end, TrackEnded) for end in ends)
    assert predictor.batches == []
