"""The labels: what can be said about a visitor, in the words and the order that every part uses."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection
from typing import Final, Literal

GENDERS: Final = ("male", "female")
ETHNICITIES: Final = ("white", "black", "asian", "indian", "other")  # UTKFace's own five, in its order
AGE_BANDS: Final = ("0-9", "10-17", "18-24", "25-34", "35-44", "45-54", "55-64", "65+")
UNKNOWN: Final = "unknown"
SUPPRESSED: Final = "suppressed"  # where what is known is not published: there were too few

_STARTS: Final = (10, 18, 25, 35, 45, 55, 65)

Attribute = Literal["age", "gender", "ethnicity"]
ATTRIBUTES: Final[tuple[Attribute, ...]] = ("age", "gender", "ethnicity")


def in_order(attributes: Collection[Attribute]) -> tuple[Attribute, ...]:
    """Give *attributes* in the order of ATTRIBUTES, each once."""
    return tuple(attribute for attribute in ATTRIBUTES if attribute in attributes)


def age_band(years: float) -> str:
    """Name the band of an age in years. Ages below zero fall into the first band.

    9.9 is a nine-year-old: bands are over completed years.
    """
    return AGE_BANDS[bisect_right(_STARTS, years)]
