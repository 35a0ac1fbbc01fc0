"""What a track says about its visitor: several uncertain looks at one person made into one answer.

Evidence is kept per crop and fused afresh in the order of the sequence, so that the answer depends on which crops were seen
and never on when, how often or in which order they came.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import exp, log
from operator import attrgetter
from typing import Final, NamedTuple

from msgspec import Struct

from pipeline.attributes import ATTRIBUTES, ETHNICITIES, GENDERS, UNKNOWN, Attribute, age_band
from pipeline.messages import Prediction

_SURE: Final = 0.995  # no single crop outvotes the rest by being absolutely certain
_UNSURE: Final = 1 - _SURE
_sequence: Final = attrgetter("sequence")


class Evidence(Struct, frozen=True, array_like=True, gc=False):
    """What one crop said."""

    sequence: int
    quality: float
    age: float | None
    p_female: float | None
    p_ethnicity: tuple[float, ...] | None


class Cell(Struct, frozen=True, array_like=True, gc=False):
    """What is counted: a label per attribute, `unknown` for too little evidence, empty where the attribute is off.

    Gender and age band say `unknown` even where they are off: that is what tells who could not be told from who could.
    """

    gender: str
    age_band: str
    ethnicity: str


class Visitor(NamedTuple):
    """What is said of one visitor."""

    cell: Cell
    age: float | None = None  # years
    p_female: float | None = None

    @property
    def unknown(self) -> bool:
        """True where there was too little evidence."""
        return self.cell.gender == self.cell.age_band == UNKNOWN


UNKNOWN_CELL: Final = Cell(UNKNOWN, UNKNOWN, UNKNOWN)


def evidence_of(prediction: Prediction, attributes: Collection[Attribute] = ATTRIBUTES) -> Evidence:
    """Keep what fusion needs of a prediction, and nothing of what is not among *attributes*."""
    return Evidence(
        prediction.sequence,
        prediction.quality,
        prediction.age if "age" in attributes else None,
        prediction.p_female if "gender" in attributes else None,
        prediction.p_ethnicity if "ethnicity" in attributes else None,
    )


def fuse(
    evidence: Sequence[Evidence], least_evidence: float, attributes: Collection[Attribute] = ATTRIBUTES
) -> Visitor:
    """Fuse what was said of one track, of which *attributes* may be said.

    Ages are averaged; probabilities are pooled by their logarithms (M. Stone, "The opinion pool", Annals of Mathematical
    Statistics 32, 1961), each crop weighted by its quality. Qualities that sum to less than *least_evidence* say nothing.
    """
    ordered = sorted(evidence, key=_sequence)
    weight = years = odds = 0.0
    pooled = [0.0] * len(ETHNICITIES)
    has_age = has_gender = has_ethnicity = True
    for item in ordered:  # one plain loop: this is where an aggregator's time goes
        quality = item.quality
        weight += quality
        if item.age is None:
            has_age = False
        else:
            years += quality * item.age
        if item.p_female is None:
            has_gender = False
        else:
            p = item.p_female
            p = _UNSURE if p < _UNSURE else min(p, _SURE)
            odds += quality * log(p / (1 - p))
        if item.p_ethnicity is None:
            has_ethnicity = False
        else:
            for label, p in enumerate(item.p_ethnicity):
                pooled[label] += quality * log(p if p > _UNSURE else _UNSURE)  # noqa: FURB136  a call takes longer than the logarithm
    if not ordered or weight < least_evidence or weight <= 0:
        asked = "ethnicity" in attributes and (not ordered or any(item.p_ethnicity is not None for item in ordered))
        return Visitor(UNKNOWN_CELL if asked else Cell(UNKNOWN, UNKNOWN, ""))
    age = years / weight if has_age else None
    p_female = 1 / (1 + exp(-odds / weight)) if has_gender else None
    return Visitor(
        Cell(
            gender="" if p_female is None else GENDERS[int(p_female >= 0.5)],
            age_band="" if age is None else age_band(age),
            ethnicity=ETHNICITIES[pooled.index(max(pooled))] if has_ethnicity else "",
        ),
        age,
        p_female,
    )
