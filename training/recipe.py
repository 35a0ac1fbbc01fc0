"""Every choice of a training run, in one frozen value that is written beside the weights.

A recipe comes from defaults, a JSON file and options by name; whatever is unknown or out of range is listed at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import msgspec

from pipeline.errors import ConfigError
from pipeline.manifest import CropRecipe, Point
from training.dataset import OLDEST
from training.splits import check_split

# Where YuNet's landmarks lie, on average, in UTKFace's pictures; made symmetrical, since training mirrors half of them.
TEMPLATE: Final[tuple[Point, Point, Point, Point, Point]] = (
    (0.31, 0.28),
    (0.69, 0.28),
    (0.5, 0.51),
    (0.335, 0.67),
    (0.665, 0.67),
)
PRECISIONS: Final = ("float32", "mixed_bfloat16")


def _number(default: float, low: float, high: float, says: str) -> Any:
    return field(default=default, metadata={"low": low, "high": high, "says": says})


def _word(default: str, says: str, words: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"words": words, "says": says})


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How a model is made. Ranges and meanings are with the fields; `recipe_table` prints them."""

    # the faces
    size_px: int = _number(112, 32, 512, "side of the crop")
    margin_ratio: float = _number(
        0.0, -0.2, 1.0, "more (or less) around the face than in UTKFace's own pictures, as a share of the side"
    )
    jpeg_quality: int = _number(92, 50, 100, "of the crops, as ingest sends them")
    split: str = _word(
        "grouped", "which faces train, choose and test: grouped, validation, seed, foldK/N or teacherK/N"
    )
    split_seed: int = _number(2026, 0, 2**31 - 1, "draws the split; leave it alone to compare runs")
    # the network
    alpha: float = _number(1.0, 0.35, 1.0, "MobileNetV2's width: 0.35, 0.5, 0.75 or 1.0")
    head_units: int = _number(192, 8, 1024, "units of each head's fully connected layer")
    dropout: float = _number(0.3, 0.0, 0.9, "before and after each head's fully connected layer")
    head_l2: float = _number(1e-4, 0.0, 0.1, "L2 on the heads' kernels")
    frozen_blocks: int = _number(0, 0, 16, "blocks of MobileNetV2, from the stem on, that keep their start")
    precision: str = _word("float32", "of the arithmetic: mixed_bfloat16 is for GPUs", PRECISIONS)
    # the losses
    age_sigma: float = _number(2.5, 0.3, 10.0, "years; spread of the soft age label from 20 years on")
    age_sigma_at_birth: float = _number(1.0, 0.3, 10.0, "years; spread at age 0, growing evenly to 20")
    age_huber: float = _number(0.05, 0.0, 10.0, "weight of the Huber loss on the expected age")
    gender_smoothing: float = _number(0.05, 0.0, 0.5, "label smoothing")
    ethnicity_smoothing: float = _number(0.1, 0.0, 0.5, "label smoothing")
    age_weight: float = _number(1.0, 0.0, 100.0, "of the head's loss in the sum")
    gender_weight: float = _number(1.0, 0.0, 100.0, "of the head's loss in the sum")
    ethnicity_weight: float = _number(1.0, 0.0, 100.0, "of the head's loss in the sum")
    distillation: float = _number(0.5, 0.0, 1.0, "share of the teachers' word in the labels, where --teacher names any")
    face_weight: float = _number(
        3.0, 0.0, 100.0, "of the error in foretelling what --face-network sees, in the sum, where that is given"
    )
    blends: float = _number(
        0.0, 0.0, 4.0, "of two faces, per face, for which the word of --face-network's networks is all there is"
    )
    # the faces' order
    age_balance: float = _number(0.0, 0.0, 1.0, "oversampling of rare decades: 0 none, 1 all alike")
    ethnicity_balance: float = _number(0.3, 0.0, 1.0, "oversampling of rare ethnicities: 0 none, 1 all alike")
    augmentation: float = _number(1.0, 0.0, 2.0, "strength of the camera's degradations; 0 only mirrors")
    mixup: float = _number(
        0.0, 0.0, 2.0, "blends each face and its labels with another's by a Beta(mixup, mixup) share; 0 does not"
    )
    # the descent
    epochs: int = _number(30, 1, 1000, "passes over as many faces as the training part has")
    batch: int = _number(64, 2, 4096, "faces per step")
    learning_rate: float = _number(7e-4, 1e-7, 1.0, "AdamW's peak")
    warm_up: float = _number(0.04, 0.0, 0.5, "share of all steps in which the rate climbs; then it falls by a cosine")
    final_rate: float = _number(0.0, 0.0, 1.0, "where the rate ends, as a share of its peak; 1 holds it there")
    weight_decay: float = _number(0.05, 0.0, 1.0, "AdamW's, not on biases and normalisation")
    beta_2: float = _number(0.99, 0.8, 0.9999, "AdamW's")
    clip: float = _number(5.0, 0.01, 1000.0, "longest gradient, all weights together")
    ema: float = _number(
        0.998, 0.0, 0.99999, "momentum of the averaged weights, which are the ones kept; less in short runs"
    )
    patience: int = _number(10, 0, 1000, "epochs without improvement before it stops; 0 never does")
    seed: int = _number(0, 0, 2**31 - 1, "of weights, order and degradations")

    @property
    def crop(self) -> CropRecipe:
        """How faces are cut for this model."""
        zoom = 1 / (1 + self.margin_ratio)
        points = [(0.5 + (x - 0.5) * zoom, 0.5 + (y - 0.5) * zoom) for x, y in TEMPLATE]
        return CropRecipe(
            size_px=self.size_px,
            landmarks=(points[0], points[1], points[2], points[3], points[4]),
            jpeg_quality=self.jpeg_quality,
        )

    @property
    def ages(self) -> tuple[int, int]:
        """First and last year of the age head."""
        return (0, OLDEST)


def _parsed(option: Field[Any], value: object) -> Any:
    """Give *value* as the option's type. Raises ValueError saying what is wrong."""
    kind = type(option.default)
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"{value!r} is not a {kind.__name__}")  # noqa: TRY004  one kind of error for all that is wrong
    if kind is str:
        words = option.metadata["words"]
        if words and value not in words:
            raise ValueError(f"{value!r} is not one of {', '.join(words)}")
        return str(value)
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"{value!r} is not a number") from None
    if kind is int and number != int(number if abs(number) < 1e18 else 0):
        raise ValueError(f"{value!r} is not a whole number")
    low, high = option.metadata["low"], option.metadata["high"]
    if not low <= number <= high:  # NaN fails here too
        raise ValueError(f"{value!r} is not within {low:g}..{high:g}")
    return int(number) if kind is int else number


def make_recipe(options: Mapping[str, object]) -> Recipe:
    """Make a recipe from defaults and *options*. Raises ConfigError listing all that is unknown or out of range."""
    known = {option.name: option for option in fields(Recipe)}
    values: dict[str, Any] = {}
    problems = []
    for name, value in options.items():
        if name not in known:
            problems.append(f"recipe: no option {name!r}; known: {', '.join(known)}")
            continue
        try:
            values[name] = _parsed(known[name], value)
        except ValueError as error:
            problems.append(f"recipe {name}: {error} ({known[name].metadata['says']})")
    if (problem := check_split(values.get("split", "grouped"))) is not None:
        problems.append(f"recipe {problem}")
    if values.get("alpha", 1.0) not in {0.35, 0.5, 0.75, 1.0}:
        problems.append(f"recipe alpha: {values['alpha']!r} is not 0.35, 0.5, 0.75 or 1.0")
    if problems:
        raise ConfigError(problems)
    return Recipe(**values)


def read_recipe(path: Path) -> dict[str, object]:
    """Read options from a JSON file: an object of options, or a run.json, whose recipe is taken. Raises ConfigError."""
    try:
        found = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"recipe {path}: not a readable JSON file ({error})") from error
    if isinstance(found, dict) and isinstance(found.get("recipe"), dict):
        found = found["recipe"]
    if not isinstance(found, dict):
        raise ConfigError(f"recipe {path}: not a JSON object of options")
    return found


def parse_settings(settings: list[str]) -> dict[str, object]:
    """Read NAME=VALUE settings. Raises ConfigError listing those that are not."""
    wrong = [each for each in settings if "=" not in each]
    if wrong:
        raise ConfigError([f"--set {each}: write NAME=VALUE" for each in wrong])
    return {name.strip(): value.strip() for name, _, value in (each.partition("=") for each in settings)}


def recipe_table() -> str:
    """Give every option with default, range and meaning, as a Markdown table."""
    lines = ["| option | default | range | meaning |", "|---|---|---|---|"]
    for option in fields(Recipe):
        assert option.default is not MISSING, "every option has a default"
        about = option.metadata
        limits = (
            f"{about['low']:.10g} to {about['high']:.10g}"
            if "low" in about
            else " or ".join(about["words"]) or "see meaning"
        )
        lines.append(f"| `{option.name}` | {option.default} | {limits} | {about['says']} |")
    return "\n".join(lines) + "\n"


def as_options(recipe: Recipe) -> dict[str, object]:
    """Give a recipe as what `make_recipe` takes."""
    return asdict(recipe)
