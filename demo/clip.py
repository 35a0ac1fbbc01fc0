"""A clip and its ground truth: who passes, and when. No pixels here, so that it can be read anywhere."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pipeline.errors import ConfigError


@dataclass(frozen=True)
class Passage:
    """One person crossing the view once. Times are seconds from the clip's start."""

    file: str  # the cast member's picture; it is the only name that anybody here has
    gender: str
    ethnicity: str
    age_from: int
    age_to: int
    enter_s: float  # from here ...
    leave_s: float  # ... to here the face is at least mostly inside the picture


@dataclass(frozen=True)
class _Truth:
    """What lies beside the film as JSON: a clip without its place, so that the two files can be moved together."""

    seconds: float
    fps: int
    size: tuple[int, int]
    passages: tuple[Passage, ...]


@dataclass(frozen=True)
class Clip:
    """An H.264 film and what is seen in it. `size` is width and height in pixels."""

    path: Path
    seconds: float
    fps: int
    size: tuple[int, int]
    passages: tuple[Passage, ...]

    def save(self) -> Path:
        """Write the ground truth beside the film, with the suffix .json; returns where."""
        truth = _Truth(self.seconds, self.fps, self.size, self.passages)
        target = self.path.with_suffix(".json")
        target.write_bytes(msgspec.json.format(msgspec.json.encode(dataclasses.asdict(truth))))
        return target

    @classmethod
    def load(cls, path: Path) -> Clip:
        """Read the ground truth that lies beside the film at *path*.

        Raises ConfigError when film or ground truth are missing, or the ground truth is not one.
        """
        beside = path.with_suffix(".json")
        if not path.is_file():
            raise ConfigError(f"{path}: no such film; compose it again")
        try:
            truth = msgspec.json.decode(beside.read_bytes(), type=_Truth)
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(f"{beside}: not a clip's ground truth ({error}); compose the clip again") from error
        return cls(path, truth.seconds, truth.fps, truth.size, truth.passages)
