"""The films that the bench plays: composed by the demo, so that nothing is needed but this package."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from demo.backdrops import VIEWS
from demo.composer import compose, load_cast, write_film
from ingest.detector import Image


def people(folder: Path, *, size: tuple[int, int], seconds: float, walkers: int = 4, seed: int = 5) -> Path:
    """Give a film at 25 fps in which people walk by all the time."""
    path = folder / f"people-{size[0]}-{seconds:g}-{walkers}-{seed}.mp4"
    if not path.exists():
        compose(path, load_cast(), view="hall", people=walkers, seconds=seconds, seed=seed, size=size)
    return path


def empty(folder: Path, *, size: tuple[int, int], seconds: float) -> Path:
    """Give a film at 25 fps in which nobody comes."""
    path = folder / f"empty-{size[0]}-{seconds:g}.mp4"
    if not path.exists():
        write_film(
            path, figures=(), ground=VIEWS["hall"](size), caption="", frames=round(25 * seconds), fps=25,
            rng=np.random.default_rng(0),
        )  # fmt: skip
    return path


def picture(film: Path, number: int = 100) -> Image:
    """Give one frame of a film, (height, width, 3), BGR."""
    with av.open(str(film)) as container:
        frame = next(frame for n, frame in enumerate(container.decode(video=0)) if n == number)
    return np.asarray(frame.to_ndarray(format="bgr24"), np.uint8)
