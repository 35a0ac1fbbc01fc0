"""The buckets as a reader last saw them, so that it asks for those alone that changed since, and adds up in memory.

A day is 144 buckets, and nearly all of them lie in the past: a reader that asked for every one at every scrape would be the
more expensive the more visitors there were. Each bucket carries the mark of the step that changed it last, a word that is
never given twice; what has another mark than is known is read again: a late correction as well as a store that was lost and
filled again. What was changed without a mark, by an aggregator of an earlier version or by hand, is seen within ten minutes:
each bucket is read anew as often as that, one after the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aggregator.store import Bucket

TURN_S: Final = 600.0


class _Known(NamedTuple):
    """One bucket of one partition: eight bytes for each of its fields, since there may be millions."""

    mark: bytes
    turn: int  # of TURN_S, when it was read
    fields: NDArray[np.int32]  # numbers of fields
    amounts: NDArray[np.int32]


class KnownBuckets:
    """What is known of the buckets of every partition. Not safe to use from several threads at once."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._names: list[str] = []
        self._known: dict[tuple[int, Bucket], _Known] = {}

    def __len__(self) -> int:
        """Count the buckets that hold something."""
        return len(self._known)

    def marks(self, partition: int, buckets: Iterable[Bucket], now: float) -> list[bytes]:
        """Give the mark of each as it is known; empty where nothing is, or too long ago at *now*."""
        found = []
        for bucket in buckets:
            known = self._known.get((partition, bucket))
            found.append(known.mark if known and known.turn == _turn(bucket, now) else b"")
        return found

    def learn(self, partition: int, buckets: Sequence[Bucket], answer: Sequence[Any], now: float) -> None:
        """Take in what `changed.lua` answered about *buckets* at *now*."""
        for index, mark, flat in zip(answer[0::3], answer[1::3], answer[2::3], strict=True):
            where = (partition, buckets[int(index) - 1])
            counts = {field: int(amount) for field, amount in zip(flat[0::2], flat[1::2], strict=True)}
            if counts:
                numbers = (self._number(field) for field in counts)
                self._known[where] = _Known(
                    bytes(mark),
                    _turn(where[1], now),
                    np.fromiter(numbers, np.int32, len(counts)),
                    np.fromiter(counts.values(), np.int32, len(counts)),
                )
            else:
                self._known.pop(where, None)

    def forget(self, gone: Mapping[int, float]) -> None:
        """Drop the buckets that begin before *gone*, by their seconds."""
        for partition, bucket in [key for key in self._known if key[1].start < gone.get(key[1].bucket_s, 0.0)]:
            del self._known[partition, bucket]

    def total(self, partitions: Iterable[int], buckets: Sequence[Bucket]) -> Counter[str]:
        """Add up *buckets* over *partitions*, by field; what comes to zero is left out."""
        found = [
            known
            for partition in partitions
            for bucket in buckets
            if (known := self._known.get((partition, bucket))) is not None
        ]
        if not found:
            return Counter()
        amounts = np.concatenate([known.amounts for known in found])
        sums = np.bincount(np.concatenate([known.fields for known in found]), amounts)  # whole up to 2^53
        filled = np.flatnonzero(sums)
        return Counter({self._names[number]: int(sums[number]) for number in filled.tolist()})

    def _number(self, field: bytes) -> int:
        number = self._numbers.get(field)
        if number is None:
            number = self._numbers[field] = len(self._names)
            self._names.append(field.decode())
        return number


def _turn(bucket: Bucket, now: float) -> int:
    """Give the number of the ten minutes in which *bucket* is known; they end at another moment for each, evenly spread."""
    return int(now / TURN_S + bucket.start / bucket.bucket_s * 0.6180339887 % 1)
