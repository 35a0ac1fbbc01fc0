"""What lies in the store keeps its meaning over an upgrade: fields are added at the end, with a default."""

from __future__ import annotations

from typing import Final

import msgspec

from aggregator.fusion import Cell, Evidence
from aggregator.store import CameraClock, TrackState

# As a store of November 2026 holds them; never written again.
TRACK: Final = bytes.fromhex(
    "98a66d757365756da468616c6ccf0006ab13b8000007cb41daac4ee0100000cb41daac4ee0a00000929500cb3fe0000000000000cb403f8000000000"
    "00cb3fd000000000000095cb3fe0000000000000cb3fc999999999999acb3fb999999999999acb3fb999999999999acb3fb999999999999a9501cb3f"
    "e8000000000000c0c0c093a46d616c65a532352d3334a57768697465c2"
)
CLOCK: Final = bytes.fromhex("94ce6ab13b80cb41daac4ee0100000cb41daac4ee0a00000cb41daa87e50000000")
OLDER_CLOCK: Final = b"\x93" + CLOCK[1:-9]  # before the last field was added

HELD: Final = TrackState(
    "museum",
    "hall",
    (1_790_000_000 << 20) + 7,
    1_790_000_000.25,
    1_790_000_002.5,
    (Evidence(0, 0.5, 31.5, 0.25, (0.5, 0.2, 0.1, 0.1, 0.1)), Evidence(1, 0.75, None, None, None)),
    Cell("male", "25-34", "white"),
    closed=False,
)
TOLD: Final = CameraClock(1_790_000_000, 1_790_000_000.25, 1_790_000_002.5, 1_789_000_000.0)


def test_what_was_stored_is_read_for_ever() -> None:
    """An aggregator that is upgraded goes on with the tracks that it finds."""
    assert msgspec.msgpack.decode(TRACK, type=TrackState) == HELD
    assert msgspec.msgpack.decode(CLOCK, type=CameraClock) == TOLD


def test_what_is_stored_now_is_what_was_stored() -> None:
    """In a rolling upgrade aggregators of both versions read what either writes."""
    assert msgspec.msgpack.encode(HELD) == TRACK
    assert msgspec.msgpack.encode(TOLD) == CLOCK


def test_a_field_that_was_added_later_has_its_default() -> None:
    """What was stored before the field was there."""
    assert msgspec.msgpack.decode(OLDER_CLOCK, type=CameraClock) == CameraClock(TOLD.connection, TOLD.began, TOLD.now)
