"""Write tests/golden/logits.json anew, when the shipped model is another one: python -m tests.inference.golden_logits."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from msgspec import Struct

from inference.predictor import Crops, Logits
from inference.tensorflow_predictor import TensorFlowPredictor
from pipeline.manifest import DEFAULT_MODEL
from tests.inference.conftest import cast_crops, drawn_crops

GOLDEN: Final = Path(__file__).parent.parent / "golden" / "logits.json"
DRAWN: Final = 4


class GoldenHeads(Struct, frozen=True):
    """The logits of some crops."""

    age: tuple[tuple[float, ...], ...]
    gender: tuple[tuple[float, ...], ...]
    ethnicity: tuple[tuple[float, ...], ...]

    def logits(self) -> Logits:
        """Give them as a predictor does."""
        return Logits(*(np.array(head, np.float32) for head in (self.age, self.gender, self.ethnicity)))


class GoldenLogits(Struct, frozen=True):
    """What the shipped model said, on the machine that wrote this."""

    sha256: str  # of the model's weights
    drawn: GoldenHeads  # of crops that are the same everywhere
    faces: GoldenHeads  # of the demo's faces, through detector, alignment and JPEG


def read_golden() -> GoldenLogits:
    """Read the file."""
    return msgspec.json.decode(GOLDEN.read_bytes(), type=GoldenLogits)


def write_golden() -> None:
    """Ask the shipped model, on TensorFlow."""
    predictor = TensorFlowPredictor(DEFAULT_MODEL)

    def heads(crops: Crops) -> GoldenHeads:
        said = predictor.predict(crops)
        return GoldenHeads(*(tuple(tuple(round(float(logit), 4) for logit in row) for row in head) for head in said))

    golden = GoldenLogits(
        predictor.manifest.sha256,
        drawn=heads(drawn_crops(DRAWN, predictor.manifest.crop.size_px)),
        faces=heads(np.stack(list(cast_crops().values()))),
    )
    encoded = msgspec.json.encode(golden)
    GOLDEN.write_bytes(encoded.replace(b"],[", b"],\n[").replace(b',"', b',\n"') + b"\n")


if __name__ == "__main__":
    write_golden()
