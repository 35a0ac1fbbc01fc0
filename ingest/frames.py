"""Which pictures are worth a look: bad ones are rejected by reason, and an empty scene in which nothing moves is passed by.

A decoder gives torn pictures as good ones (opencv#28638), a camera sends one picture for ever, somebody switches the light
off. A face that is searched there is a face that was never there, or one that is lost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ingest.detector import Image

FRAME_REJECTS: Final = ("corrupt", "dark", "flat", "green", "torn", "repeated")

_STRIDE: Final = 8
_DARK: Final = 30  # the brightest hundredth of the picture is darker: nobody can be made out
_FLAT: Final = 2.0  # standard deviation of the brightness
_GREEN_SHARE: Final = 0.15  # of the picture; what was never decoded is (Y, U, V) = 0, a pure green
_GREY_SHARE: Final = 0.3  # what a decoder that misses a reference paints: grey to the last bit
_SMEARED_SHARE: Final = 0.2  # of the rows, all alike: a lost slice is filled downwards from its edge


def fault_of(image: Image) -> str:
    """Name what is wrong with a picture (height, width, 3), one of FRAME_REJECTS, or empty where nothing is."""
    return _fault_of(_planes(image), image)


def _planes(image: Image) -> NDArray[np.uint8]:
    """Take a sample of a picture apart into blue, green and red, each in one piece: (3, rows, columns)."""
    return np.ascontiguousarray(image[::_STRIDE, ::_STRIDE].transpose(2, 0, 1))


def _fault_of(planes: NDArray[np.uint8], image: Image) -> str:
    blue, green, red = planes
    grey = (blue.astype(np.float32) + green + red) / 3
    if np.count_nonzero(grey >= _DARK) < 0.01 * grey.size:
        return "dark"
    if float(grey.std()) < _FLAT:
        return "flat"
    if np.count_nonzero((green > 90) & (red < 40) & (blue < 40)) > _GREEN_SHARE * grey.size:
        return "green"
    near_grey = (planes - np.uint8(126)) <= 4  # what is below 126 comes round to far above 4
    undecoded = near_grey[0] & near_grey[1] & near_grey[2]
    if np.count_nonzero(undecoded) > _GREY_SHARE * grey.size and float(grey[undecoded].std()) < 1:
        return "torn"
    return "torn" if _smeared(image) else ""


def _smeared(image: Image) -> bool:
    """Tell whether a run of rows, a fifth of the picture, repeats one row that is not plain."""
    few = image[:, :: max(1, image.shape[1] // 8)]  # where the whole rows are alike these are: most pictures end here
    if _longest_run(few)[0] <= _SMEARED_SHARE * len(image):
        return False
    columns = image[:, ::_STRIDE]
    longest, end = _longest_run(columns)
    return longest > _SMEARED_SHARE * len(columns) and float(columns[end].std(0).max()) > 8


def _longest_run(columns: Image) -> tuple[int, int]:
    """Give the length of the longest run of rows that are like the one above, and the last of them."""
    differ = np.flatnonzero((columns[1:] != columns[:-1]).any((1, 2)))
    bounds = np.concatenate([[-1], differ, [len(columns) - 1]])
    runs = np.diff(bounds) - 1
    longest = int(runs.argmax())
    return int(runs[longest]), int(bounds[longest + 1])


def reduced(grey: NDArray[np.uint8], width: int = 160) -> NDArray[np.float32]:
    """Shrink a brightness picture (height, width) to about *width* columns by averaging blocks of a few samples."""
    factor = max(1, grey.shape[1] // width)
    step = max(1, factor // 3)
    sampled = grey[::step, ::step]
    block = max(1, factor // step)
    high, wide = sampled.shape[0] // block * block, sampled.shape[1] // block * block
    total = np.zeros((high // block, wide // block), np.float32)
    for down in range(block):  # a mean over two axes of blocks takes three times as long
        for right in range(block):
            total += sampled[down:high:block, right:wide:block]
    total /= block * block
    return total


@dataclass(slots=True)
class MotionGate:
    """Tells whether anything in an empty scene has changed. One connection's."""

    least_change: float = 12.0  # of brightness, 0..255
    least_cells: int = 6  # of 160 x 90: a face of 20 px in a picture of 640
    learning: float = 0.1
    _usual: NDArray[np.float32] | None = field(default=None)

    def moved(self, picture: NDArray[np.float32]) -> bool:
        """Compare a reduced picture with what the scene usually looks like, and learn from it."""
        if self._usual is None or self._usual.shape != picture.shape:
            self._usual = picture.copy()
            return True
        changed = int((np.abs(picture - self._usual) > self.least_change).sum())
        if changed > picture.size // 2:  # the light went on: all of it is new
            self._usual = picture.copy()
            return True
        self._usual += self.learning * (picture - self._usual)
        return changed >= self.least_cells


@dataclass(slots=True)
class FrameGate:
    """The faults of one connection's pictures, repetition included."""

    _last: NDArray[np.uint8] | None = field(default=None)  # see _planes
    repeated_since: float | None = None

    def judge(self, image: Image, at: float, *, corrupt: bool = False) -> str:
        """Name the fault of the picture taken at *at* (seconds since the epoch), or give an empty text."""
        planes = _planes(image)
        if self._last is not None and np.array_equal(self._last, planes):
            self.repeated_since = at if self.repeated_since is None else self.repeated_since
            return "repeated"
        self._last, self.repeated_since = planes, None
        return "corrupt" if corrupt else _fault_of(planes, image)
