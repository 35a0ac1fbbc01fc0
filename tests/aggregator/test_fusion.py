"""What several looks at one person say together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aggregator.fusion import UNKNOWN_CELL, Evidence, fuse
from pipeline.attributes import AGE_BANDS, ETHNICITIES, GENDERS, age_band

ratios = st.floats(0, 1)
looks = st.lists(
    st.tuples(st.floats(0.01, 1), st.floats(0, 110), ratios, st.tuples(ratios, ratios, ratios, ratios, ratios)),
    min_size=1,
    max_size=8,
).map(lambda rows: [Evidence(n, *row) for n, row in enumerate(rows)])


@given(looks, st.randoms())
def test_the_order_in_which_crops_arrive_changes_nothing(evidence: list[Evidence], random: object) -> None:
    """Exactly, to the last bit: a replay in another order counts the same cell."""
    shuffled = list(evidence)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert fuse(shuffled, 0.0) == fuse(evidence, 0.0)


@given(looks)
def test_the_fused_age_lies_between_the_ages_seen(evidence: list[Evidence]) -> None:
    """And its band is the band of that age, so that the report agrees with itself."""
    visitor = fuse(evidence, 0.0)
    assert visitor.age is not None
    ages = [item.age or 0.0 for item in evidence]
    assert min(ages) - 1e-6 <= visitor.age <= max(ages) + 1e-6
    assert visitor.cell.age_band == age_band(visitor.age)
    assert visitor.cell.gender in GENDERS
    assert visitor.cell.ethnicity in ETHNICITIES


@given(looks)
def test_too_little_evidence_is_unknown_never_guessed(evidence: list[Evidence]) -> None:
    """Qualities that do not add up to enough say nothing at all."""
    enough = sum(item.quality for item in evidence)
    assert fuse(evidence, enough * 1.01).cell == UNKNOWN_CELL
    assert fuse(evidence, enough * 1.01).unknown
    assert not fuse(evidence, enough * 0.99).unknown


def test_no_evidence_is_unknown() -> None:
    """A visitor all of whose crops were lost is counted all the same."""
    assert fuse([], 0.0).unknown


def test_good_crops_outvote_a_bad_one_however_sure_it_is() -> None:
    """One blurred crop that is certain of the contrary does not decide."""
    clear = [Evidence(n, 0.8, 30.0, 0.9, (0.7, 0.1, 0.1, 0.05, 0.05)) for n in range(3)]
    blurred = Evidence(3, 0.2, 70.0, 0.0, (0.0, 1.0, 0.0, 0.0, 0.0))
    visitor = fuse([*clear, blurred], 0.1)
    assert (visitor.cell.gender, visitor.cell.ethnicity) == ("female", "white")


def test_an_attribute_that_is_off_is_left_empty_not_guessed() -> None:
    """Empty is not unknown: nobody asked."""
    visitor = fuse([Evidence(0, 1.0, None, 0.9, None)], 0.1)
    assert visitor.cell.gender == "female"
    assert (visitor.cell.age_band, visitor.cell.ethnicity) == ("", "")
    assert not visitor.unknown


@given(st.floats(-5, 150))
def test_every_age_has_a_band_and_bands_grow_with_age(years: float) -> None:
    """9.99 is nine; 10 is ten."""
    band = age_band(years)
    assert AGE_BANDS.index(band) <= AGE_BANDS.index(age_band(years + 1))
    if years >= 0 and band != "65+":
        low, high = band.split("-")
        assert int(low) <= int(years) <= int(high)
