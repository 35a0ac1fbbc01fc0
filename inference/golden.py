"""The golden batch of a model: faces that belong to nobody, with the logits that every engine must give for them.

It lies beside the weights as golden.npz and is bound to them by their digest. Two in three of its crops calibrate what is
quantised; every third is kept for the comparison, so that an engine is judged by crops that it has not seen. The pixels are
kept as PNG: a JPEG may decode to other grey levels elsewhere.
"""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path
from typing import Final, NamedTuple
from zipfile import BadZipFile

import cv2
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from inference.heads import Heads, read_heads
from inference.predictor import Crops, Logits, Predictor, Tolerance
from pipeline.errors import ConfigError
from pipeline.manifest import Manifest

GOLDEN_NAME: Final = "golden.npz"
GOLDEN_FACES: Final = 48
_JUDGED: Final = 3  # every third crop


class Golden(NamedTuple):
    """The batch and what the original said of it."""

    crops: Crops
    logits: Logits

    @property
    def calibration(self) -> Crops:
        """The crops that quantisation takes its ranges from."""
        return np.asarray(self.crops[np.arange(len(self.crops)) % _JUDGED != 0])

    @property
    def judged(self) -> Golden:
        """The crops that engines are compared on, with their logits."""
        return Golden(self.crops[::_JUDGED], Logits(*(head[::_JUDGED] for head in self.logits)))


class Agreement(Struct, frozen=True):
    """How far another engine's answers lie from the original's: years, probabilities, share of labels that stay the same."""

    n: int
    age_mean_difference: float
    age_largest_difference: float
    probability_mean_difference: float
    probability_largest_difference: float
    gender_agreement: float
    ethnicity_agreement: float

    def within(self, tolerance: Tolerance) -> bool:
        """Tell whether that is near enough; what is no number is not."""
        return (
            self.age_mean_difference <= tolerance.age_years
            and self.probability_mean_difference <= tolerance.probability
        )


def agreement(original: Logits, other: Logits, manifest: Manifest) -> Agreement:
    """Compare what two engines say of the same crops, one at least."""
    first, second = read_heads(original, manifest), read_heads(other, manifest)
    years = np.abs(first.age - second.age)
    female = np.abs(first.p_female - second.p_female)
    ethnicity = np.abs(first.p_ethnicity - second.p_ethnicity).max(axis=1)
    return Agreement(
        n=len(years),
        age_mean_difference=float(years.mean()),
        age_largest_difference=float(years.max()),
        probability_mean_difference=float(max(female.mean(), ethnicity.mean())),
        probability_largest_difference=float(max(female.max(), ethnicity.max())),
        gender_agreement=float((_genders(first) == _genders(second)).mean()),
        ethnicity_agreement=float((first.p_ethnicity.argmax(1) == second.p_ethnicity.argmax(1)).mean()),
    )


def _genders(heads: Heads) -> NDArray[np.bool_]:
    return np.asarray(heads.p_female > 0.5)


def judge(predictor: Predictor, golden: Golden, manifest: Manifest) -> Agreement:
    """Compare *predictor* with the golden batch, on the crops that nothing was calibrated with."""
    judged = golden.judged
    return agreement(judged.logits, predictor.predict(judged.crops), manifest)


def write_golden(folder: Path, golden: Golden, manifest: Manifest) -> None:
    """Write the batch into a model's folder, bound to the weights that *manifest* names."""
    n, side = golden.crops.shape[:2]
    done, png = cv2.imencode(
        ".png", golden.crops.reshape(n * side, side, 3)[..., ::-1], (cv2.IMWRITE_PNG_COMPRESSION, 9)
    )
    assert done, "memory is what PNG needs"
    np.savez_compressed(
        folder / GOLDEN_NAME,
        png=np.frombuffer(png.tobytes(), np.uint8),
        weights=np.frombuffer(bytes.fromhex(manifest.sha256), np.uint8),
        **golden.logits._asdict(),
    )


def read_golden(folder: Path, manifest: Manifest) -> Golden | None:
    """Read the batch; None where the folder has none. Raises ConfigError where it is damaged or of other weights."""
    path = folder / GOLDEN_NAME
    if not path.is_file():
        return None
    again = f"write the folder anew: demographics export --model {folder} -o NEW_FOLDER --formats none"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            weights = kept["weights"].tobytes().hex()
            picture = cv2.imdecode(kept["png"], cv2.IMREAD_COLOR_RGB)
            logits = Logits(*(np.asarray(kept[name], np.float32) for name in Logits._fields))
        side = manifest.crop.size_px
        if picture is None:
            raise ValueError("no picture")  # noqa: TRY301  one answer to all that can be wrong
        crops = np.asarray(picture, np.uint8).reshape(-1, side, side, 3)
        if not len(crops) or {len(head) for head in logits} != {len(crops)}:
            raise ValueError("crops without logits")  # noqa: TRY301
    except (OSError, KeyError, ValueError, EOFError, BadZipFile, zlib.error, cv2.error) as error:
        raise ConfigError(f"golden batch {path}: damaged ({type(error).__name__}); {again}") from None
    if weights != manifest.sha256:
        raise ConfigError(
            f"golden batch {path}: of other weights ({weights[:12]}... is not {manifest.digest}...); {again}"
        )
    return Golden(crops, logits)


def golden_digest(folder: Path) -> str:
    """Give eight hexadecimal digits that tell this batch from any other."""
    return hashlib.sha256((folder / GOLDEN_NAME).read_bytes()).hexdigest()[:8]
