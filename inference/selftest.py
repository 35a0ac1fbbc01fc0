"""Whether a model says here what it said where it was made: a few drawn crops, and the answers that lie beside the weights.

Another processor, another version of TensorFlow or a damaged installation may compute something else, silently. golden.json is
written by `python -m tests.inference.golden_logits`; a model without it is only seen to answer, with numbers, and the same for a
crop whatever batch it is in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from msgspec import Struct

from inference.predictor import Crops, Logits, Predictor
from pipeline.errors import ConfigError
from pipeline.manifest import Manifest

GOLDEN_NAME: Final = "golden.json"
COUNT: Final = 4
MOST_APART: Final = 0.15
"""Logits are in steps of thousandths; other processors' sums differ by hundredths, another network by whole numbers."""


class Golden(Struct, frozen=True, forbid_unknown_fields=True):
    """golden.json: what the model said of the drawn crops."""

    sha256: str  # of the weights
    age: tuple[tuple[float, ...], ...]
    gender: tuple[tuple[float, ...], ...]
    ethnicity: tuple[tuple[float, ...], ...]


def drawn_crops(count: int, side: int) -> Crops:
    """Draw crops of coloured blocks by integers alone, so that they are the same everywhere: (count, side, side, 3)."""
    n, y, x, channel = np.ogrid[:count, :side, :side, :3]
    return np.asarray((x // 8 * (37 + n) + y // 8 * (59 + 7 * n) + channel * 91 + n * 53) % 256, np.uint8)


def golden_of(folder: Path, manifest: Manifest) -> Golden | None:
    """Read *folder*/golden.json; None where there is none of these weights. Raises ConfigError where it is unreadable."""
    path = folder / GOLDEN_NAME
    try:
        golden = msgspec.json.decode(path.read_bytes(), type=Golden)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"model {path}: {error}; copy the folder again") from None
    return golden if golden.sha256 == manifest.sha256 else None


def selftest(predictor: Predictor, manifest: Manifest, golden: Golden | None) -> float | None:
    """Give how far the answers are from *golden* at most, in logits; None without one. Raises ConfigError if they are wrong."""
    crops = drawn_crops(COUNT, manifest.crop.size_px)
    said = predictor.predict(crops)
    alone = predictor.predict(crops[:1])
    if not all(np.isfinite(head).all() for head in said):
        raise ConfigError(
            "the model answers with numbers that are none; install the locked versions again (`make setup`)"
        )
    if (apart := _apart(alone, Logits(*(head[:1] for head in said)))) > MOST_APART:
        raise ConfigError(f"the model answers otherwise for a crop alone than in a batch, by {apart:.2f} logits")
    if golden is None:
        return None
    apart = _apart(
        said, Logits(*(np.array(head, np.float32) for head in (golden.age, golden.gender, golden.ethnicity)))
    )
    if apart > MOST_APART:
        raise ConfigError(
            f"the model answers otherwise than where it was made, by {apart:.2f} logits; install the locked versions again"
        )
    return apart


def _apart(a: Logits, b: Logits) -> float:
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))
