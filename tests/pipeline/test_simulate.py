"""A simulated crowd is counted to the last person, and the simulation would say so if it were not."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.pixels import decode_crop
from pipeline import crowd
from pipeline.crowd import Crowd, Due
from pipeline.manifest import load_manifest
from pipeline.settings import load_settings
from pipeline.simulate import StubPredictor, _difference, crops_of_kinds, percentile, report, simulate

crowds = st.builds(
    Crowd,
    cameras=st.integers(1, 50),
    people_per_minute=st.floats(0.1, 100),
    seconds=st.floats(1, 30),
    seed=st.integers(0, 99),
)


@settings(deadline=None)
@given(crowds)
def test_everybody_comes_is_seen_and_leaves(script: Crowd) -> None:
    """In order of time; a person's crops are numbered, the first one at once, the end is the last."""
    due = list(crowd.schedule(script))
    assert [item.at for item in due] == sorted(item.at for item in due)
    of: defaultdict[int, list[Due]] = defaultdict(list)
    for item in due:
        of[item.number].append(item)
    assert len(of) == len(list(crowd.people(script)))
    for mine in of.values():
        *crops, end = mine
        assert [item.sequence for item in crops] == list(range(len(crops)))
        assert crops[0].at == mine[0].person.arrives
        assert end.sequence is None
        assert len(crops) <= script.max_crops


@settings(deadline=None)
@given(crowds)
def test_a_person_sends_as_many_crops_as_is_said(script: Crowd) -> None:
    """The mean that the capacity is worked out with, against the script; those cut short by the end left out."""
    stays = [person.stays_s for person in crowd.people(script) if person.arrives + person.stays_s < script.seconds]
    if len(stays) > 500:
        mean = sum(min(script.max_crops, int(stay / script.crop_interval_s) + 1) for stay in stays) / len(stays)
        assert abs(mean - script.crops_of_a_person) < 0.5


def test_the_stub_reads_every_kind_from_a_jpeg() -> None:
    """Else a cell would differ that was counted well."""
    manifest = load_manifest(load_settings().inference.model)
    pixels = [decode_crop(jpeg, manifest.crop.size_px) for jpeg in crops_of_kinds(manifest.crop, coded=True)]
    stub = StubPredictor(manifest)
    logits = stub.predict(np.stack(pixels))
    for number in range(crowd.KINDS):
        kind = crowd.kind_of(number)
        assert manifest.genders[int(logits.gender[number].argmax())] == kind.gender
        assert manifest.ages[0] + int(logits.age[number].argmax()) == kind.years


def test_a_small_crowd_is_counted_in_every_cell() -> None:
    """Through inference, aggregator and a real Valkey."""
    script = Crowd(cameras=40, people_per_minute=60, seconds=2)
    document = simulate(load_settings(), script)
    assert document["people"] == document["counted"] == len(list(crowd.people(script)))
    assert document["difference"] == 0
    assert document["cameras_per_core"]["together"] > 0
    assert report(document).row_count > 5


def test_a_difference_is_seen() -> None:
    """One person too many, too few, in another cell, before another camera."""
    sent = Counter({("a", "male", "0-9"): 2, ("b", "female", "65+"): 1})
    assert _difference(sent, sent, cells=True) == 0
    assert _difference(sent + Counter({("a", "male", "0-9"): 1}), sent, cells=True) == 1
    moved = Counter({("a", "female", "0-9"): 2, ("b", "female", "65+"): 1})
    assert _difference(moved, sent, cells=True) == 4
    assert _difference(moved, sent, cells=False) == 0
    assert _difference(Counter(), sent, cells=False) == 3


def test_a_percentile_is_a_value_that_was_there() -> None:
    """The least that the share does not exceed."""
    assert percentile([3.0, 1.0, 2.0, 4.0], 0.5) == 2.0
    assert percentile([3.0, 1.0, 2.0, 4.0], 0.99) == 4.0
    assert percentile([], 0.5) == 0.0
