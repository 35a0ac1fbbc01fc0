"""What lies in a model's folder: the weights, and manifest.json, which says how they are to be fed and read.

Ingest reads the manifest too, without the weights: the crop is cut once, to the size and the landmarks that the model was
trained on (law 4: the crop is cut and normalised by one piece of code, in training, in evaluation and in the live system).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from pipeline.attributes import ETHNICITIES, GENDERS
from pipeline.errors import ConfigError

MANIFEST_NAME: Final = "manifest.json"
DEFAULT_MODEL: Final = Path(__file__).resolve().parent.parent / "models" / "default"

EngineName = Literal["tensorflow", "onnxruntime", "litert", "jax"]
ENGINES: Final[tuple[EngineName, ...]] = get_args(EngineName)
"""What a model may be run by."""

Point = tuple[float, float]


class CropRecipe(Struct, frozen=True, forbid_unknown_fields=True):
    """How a face is cut: where its five landmarks go in a square of `size_px`."""

    size_px: Annotated[int, Meta(ge=32, le=512)]
    landmarks: tuple[Point, Point, Point, Point, Point]
    """Right eye, left eye, nose, right and left corner of the mouth, as fractions of the side (x, y); the right eye is
    the person's own, so it lies left in the picture."""
    jpeg_quality: Annotated[int, Meta(ge=50, le=100)] = 92


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """manifest.json beside the weights."""

    name: str
    weights: str  # file beside the manifest
    sha256: str  # of the weights
    crop: CropRecipe
    ages: tuple[int, int]  # first and last year of the age head
    temperatures: dict[str, float] = {}  # per head: logits are divided by this; 1 where absent
    genders: tuple[str, ...] = GENDERS
    ethnicities: tuple[str, ...] = ETHNICITIES
    trained_on: str = ""
    figures: dict[str, float] = {}  # as measured, for the model card

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that tell these weights from any others."""
        return self.sha256[:12]


def load_manifest(folder: Path) -> Manifest:
    """Read *folder*/manifest.json. Raises ConfigError where it is missing, unreadable or in other labels than ours."""
    path = folder / MANIFEST_NAME
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except OSError:
        raise ConfigError(
            f"model {folder}: no readable {MANIFEST_NAME} there; name a folder made by `demographics export`"
        ) from None
    except msgspec.MsgspecError as error:
        raise ConfigError(f"model {path}: {error}; export the model again") from None
    if manifest.genders != GENDERS or manifest.ethnicities != ETHNICITIES:
        raise ConfigError(f"model {path}: its labels are not {GENDERS} and {ETHNICITIES}; train it with this version")
    return manifest


def verified_weights(folder: Path, manifest: Manifest) -> Path:
    """Give the path of the weights once their digest is the manifest's. Raises ConfigError where they differ."""
    path = folder / manifest.weights
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        raise ConfigError(
            f"model {path}: not readable; the manifest beside it names it, so copy the folder as a whole"
        ) from None
    if found != manifest.sha256:
        raise ConfigError(
            f"model {path}: sha256 {found[:12]}... is not the manifest's {manifest.digest}...; "
            "the file is damaged or swapped: export or copy the folder again"
        )
    return path
