"""Write tests/golden/logits.json anew, when the shipped model is another one: python -m tests.inference.golden_logits."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from msgspec import Struct

from inference.predictor import Logits
from inference.tensorflow_predictor import TensorFlowPredictor
from pipeline.manifest import DEFAULT_MODEL
from tests.inference.conftest import cast_crops

GOLDEN: Final = Path(__file__).parent.parent / "golden" / "logits.json"


class GoldenLogits(Struct, frozen=True):
    """What the shipped model said of the demo's faces, on the machine that wrote it."""

    sha256: str  # of the model's weights
    faces: tuple[str, ...]
    age: tuple[tuple[float, ...], ...]
    gender: tuple[tuple[float, ...], ...]
    ethnicity: tuple[tuple[float, ...], ...]

    def logits(self) -> Logits:
        """Give them as a predictor does."""
        return Logits(*(np.array(head, np.float32) for head in (self.age, self.gender, self.ethnicity)))


def read_golden() -> GoldenLogits:
    """Read the file."""
    return msgspec.json.decode(GOLDEN.read_bytes(), type=GoldenLogits)


def write_golden() -> None:
    """Ask the shipped model, on TensorFlow."""
    crops = cast_crops()
    predictor = TensorFlowPredictor(DEFAULT_MODEL)
    said = predictor.predict(np.stack(list(crops.values())))
    heads = (tuple(tuple(round(float(logit), 4) for logit in row) for row in head) for head in said)
    encoded = msgspec.json.encode(GoldenLogits(predictor.manifest.sha256, tuple(crops), *heads))
    GOLDEN.write_bytes(encoded.replace(b"],[", b"],\n[").replace(b',"', b',\n"') + b"\n")


if __name__ == "__main__":
    write_golden()
