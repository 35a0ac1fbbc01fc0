"""What `demographics predict` draws and says, on the demo's own faces."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from ingest.detector import FaceBox
from pipeline.annotate import annotate, draw
from pipeline.errors import ConfigError
from pipeline.manifest import DEFAULT_MODEL
from pipeline.settings import Settings

CAST = sorted((Path(__file__).resolve().parents[2] / "demo" / "cast").glob("*.jpg"))


def test_a_small_picture_is_drawn_large_enough_to_be_read(tmp_path: Path) -> None:
    """Boxes are told in the picture's own pixels, the drawing is enlarged."""
    image = cv2.imread(str(CAST[0]))
    assert image is not None
    small = tmp_path / "small.png"
    cv2.imwrite(str(small), cv2.resize(image, (120, 120)))
    found = annotate(small, tmp_path / "drawn.png", Settings(), DEFAULT_MODEL)
    [face] = found["faces"]
    assert all(-20 <= value <= 140 for value in face["box"])
    assert {"age", "gender", "ethnicity"} <= set(face)
    drawn = cv2.imread(str(tmp_path / "drawn.png"))
    assert drawn is not None
    assert min(drawn.shape[:2]) == 480


def test_a_folder_is_labelled_file_by_file_and_a_damaged_one_loses_nothing(tmp_path: Path) -> None:
    """Pictures and films alike; what is not a picture is not looked at."""
    folder = tmp_path / "in"
    folder.mkdir()
    for picture in CAST[:2]:
        (folder / picture.name).write_bytes(picture.read_bytes())
    (folder / "damaged.jpg").write_bytes(CAST[0].read_bytes()[:200])
    (folder / "notes.txt").write_text("not a picture")
    out = tmp_path / "out"
    found = annotate(folder, out, Settings(), DEFAULT_MODEL)["files"]
    assert set(found) == {CAST[0].name, CAST[1].name, "damaged.jpg"}
    assert "damaged.jpg" in found["damaged.jpg"]["problem"]
    assert all(len(found[picture.name]["faces"]) == 1 for picture in CAST[:2])
    assert sorted(each.name for each in out.iterdir()) == sorted(picture.name for picture in CAST[:2])


def test_without_a_place_to_draw_only_the_answer_is_given(tmp_path: Path) -> None:
    """For a script that wants the JSON alone."""
    assert annotate(CAST[0], None, Settings(), DEFAULT_MODEL)["faces"]
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_refused_all_at_once(tmp_path: Path) -> None:
    """Before a model is loaded; a picture is never written over itself."""
    picture = tmp_path / "face.jpg"
    picture.write_bytes(CAST[0].read_bytes())
    with pytest.raises(ConfigError, match="write over"):
        annotate(picture, picture, Settings(), DEFAULT_MODEL)
    with pytest.raises(ConfigError, match="no such folder") as error:
        annotate(picture, tmp_path / "nowhere" / "x.mp4", Settings(), DEFAULT_MODEL)
    assert "a picture is written to one of" in str(error.value)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match="no picture or film in it"):
        annotate(empty, tmp_path / "out", Settings(), DEFAULT_MODEL)
    with pytest.raises(ConfigError, match="another folder"):
        annotate(tmp_path, tmp_path, Settings(), DEFAULT_MODEL)


@pytest.mark.parametrize("side", [60, 200, 1000, 4000])
def test_a_caption_stays_within_its_picture(side: int) -> None:
    """On a thumbnail and on a wall; on a face in the corner."""
    image = np.zeros((side, side, 3), np.uint8)
    face = FaceBox((side * 0.7, side * 0.8, side * 0.95, side * 0.99), np.zeros((5, 2), np.float32), 0.9)
    draw(image, face, "female 34 indian")
    columns = np.flatnonzero((image.min(axis=2) > 200).any(axis=0))
    assert len(columns) > 0, "the words are white"
    assert columns[0] > 0
    assert columns[-1] < side - 1
