"""Pictures that look a little like faces, so that training can be tested without a data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.manifest import CropRecipe
from training.dataset import Faces
from training.recipe import Recipe
from training.splits import difference_hash


def draw_face(number: int, side: int = 100) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Draw a face-like picture, another for every number."""
    generator = np.random.default_rng(number)
    image = np.full((side, side, 3), generator.integers(0, 255, 3), np.uint8)
    skin = generator.integers(60, 230, 3).tolist()
    middle = (side // 2 + int(generator.integers(-8, 8)), side // 2 + int(generator.integers(-8, 8)))
    cv2.ellipse(image, middle, (int(generator.integers(24, 40)), int(generator.integers(34, 46))), 0, 0, 360, skin, -1)
    for shift in (-14, 14):
        cv2.circle(image, (middle[0] + shift, middle[1] - 10), int(generator.integers(3, 7)), (20, 20, 20), -1)
    cv2.ellipse(image, (middle[0], middle[1] + 18), (12, int(generator.integers(2, 8))), 0, 0, 180, (40, 40, 160), 2)
    noise = generator.normal(0, 10, image.shape)
    return np.asarray(np.clip(image + noise, 0, 255), np.uint8)


def write_faces(folder: Path, count: int) -> Path:
    """Write *count* well-named pictures into *folder*."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        name = f"{(number * 7) % 90}_{number % 2}_{number % 5}_2017{number:013d}.jpg.chip.jpg"
        cv2.imwrite(str(folder / name), draw_face(number))
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep crops apart from the user's own."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEMOGRAPHICS_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder of sixty drawn faces."""
    return write_faces(tmp_path_factory.mktemp("faces"), 60)


@pytest.fixture
def crop() -> CropRecipe:
    """Give a small crop."""
    return Recipe(size_px=48).crop


@pytest.fixture
def faces(crop: CropRecipe) -> Faces:
    """Give two hundred faces by their labels alone."""
    generator = np.random.default_rng(5)
    count = 200
    face_px = generator.choice([0, 20, 50, 80, 110, 140], count).astype(np.float32)
    hashes = np.stack([difference_hash(generator.integers(0, 256, (20, 20, 3)).astype(np.uint8)) for _ in range(count)])
    return Faces(
        names=tuple(f"face{number}.jpg" for number in range(count)),
        jpegs=(b"",) * count,
        age=generator.integers(0, 100, count).astype(np.float32),
        gender=generator.integers(0, 2, count),
        ethnicity=generator.integers(0, 5, count),
        face_px=face_px,
        landmarks=np.where(face_px[:, None, None] > 0, 200 * np.array(crop.landmarks, np.float32), np.float32(np.nan)),
        hashes=hashes,
        crop=crop,
        digest="0" * 64,
    )
