"""Labelled pictures to labelled crops."""

from __future__ import annotations

import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.alignment import encode_jpeg
from ingest.yunet_detector import YunetDetector
from pipeline.attributes import ETHNICITIES, GENDERS
from pipeline.errors import ConfigError
from pipeline.manifest import CropRecipe
from training import dataset
from training.dataset import OLDEST, cut_face, decode_jpeg, decode_picture, find_face, label_of, load_faces

ROOT = Path(__file__).resolve().parents[2]
CAST = ROOT / "demo" / "cast"
SHARED_DATA = ROOT.parent / "shared" / "data" / "utkface_dev.tar"


@given(st.integers(0, OLDEST), st.integers(0, 1), st.integers(0, 4), st.integers(0, 10**16))
def test_a_utkface_name_gives_its_labels(age: int, gender: int, ethnicity: int, stamp: int) -> None:
    """Whatever the labels are, they are read back."""
    assert label_of(f"part/{age}_{gender}_{ethnicity}_{stamp}.jpg.chip.jpg") == (age, gender, ethnicity)


def test_a_name_in_words_gives_the_middle_of_its_ages() -> None:
    """The demo's cast is named in words."""
    label = label_of("female_indian_34_44.jpg")
    assert label == (39, GENDERS.index("female"), ETHNICITIES.index("indian"))


@pytest.mark.parametrize(
    "name", ["39_1_20170116174525125.jpg", "117_0_0_1.jpg", "20_2_0_1.jpg", "20_0_5_1.jpg", "cat.jpg"]
)
def test_a_bad_name_is_refused(name: str) -> None:
    """UTKFace has three such names."""
    with pytest.raises(ValueError, match=r"not named|out of range"):
        label_of(name)


def test_bad_names_and_unreadable_pictures_are_listed_and_left_out(
    pictures: Path, tmp_path: Path, crop: CropRecipe
) -> None:
    """One bad file costs one file."""
    for picture in sorted(pictures.iterdir())[:5]:
        (tmp_path / picture.name).write_bytes(picture.read_bytes())
    whole = next(iter(sorted(pictures.iterdir()))).read_bytes()
    (tmp_path / "39_1_20170116174525125.jpg.chip.jpg").write_bytes(whole)
    (tmp_path / "20_0_0_1.jpg").write_bytes(b"not a picture")
    (tmp_path / "20_0_0_2.jpg").write_bytes(b"")
    (tmp_path / "20_0_0_3.jpg").write_bytes(whole[: len(whole) // 2])
    cv2.imwrite(str(tmp_path / "20_0_0_4.png"), np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "notes.txt").write_text("not a picture, and not meant to be one")
    faces = load_faces(tmp_path, crop)
    assert len(faces) == 5
    assert {each.name: each.reason for each in faces.rejected} == {
        "20_0_0_1.jpg": "not a picture",
        "20_0_0_2.jpg": "not a picture",
        "20_0_0_3.jpg": "the JPEG is cut short",
        "20_0_0_4.png": "smaller than 16 px",
        "39_1_20170116174525125.jpg.chip.jpg": "not named AGE_GENDER_ETHNICITY_STAMP",
    }


def test_a_tar_gives_the_same_faces_as_its_folder(pictures: Path, tmp_path: Path, crop: CropRecipe) -> None:
    """Nothing is unpacked."""
    with tarfile.open(tmp_path / "faces.tar", "w") as archive:
        for picture in sorted(pictures.iterdir(), reverse=True):
            archive.add(picture, picture.name)
    packed, loose = load_faces(tmp_path / "faces.tar", crop), load_faces(pictures, crop)
    assert packed.names == loose.names
    assert packed.jpegs == loose.jpegs
    assert packed.digest == loose.digest


def test_the_second_time_crops_come_from_the_cache(
    pictures: Path, crop: CropRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Detection is done once per data and recipe."""
    first = load_faces(pictures, crop)
    monkeypatch.setattr(dataset, "YunetDetector", None)
    second = load_faces(pictures, crop)
    assert second.jpegs == first.jpegs
    assert (second.face_px == first.face_px).all()
    with pytest.raises(TypeError):  # another crop is another cache
        load_faces(pictures, CropRecipe(size_px=40, landmarks=crop.landmarks))


def test_a_damaged_cache_is_made_anew(
    pictures: Path, crop: CropRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk at the last run does not spoil this one."""
    monkeypatch.setenv("DEMOGRAPHICS_CACHE", str(tmp_path))
    first = load_faces(pictures, crop, limit=4)
    [kept] = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:1000])
    assert load_faces(pictures, crop, limit=4).jpegs == first.jpegs


def test_a_cache_that_cannot_be_written_does_no_harm(
    pictures: Path, crop: CropRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container may have no writable home."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEMOGRAPHICS_CACHE", str(tmp_path / "file" / "below"))
    assert len(load_faces(pictures, crop, limit=3)) == 3


def test_a_limit_draws_the_same_faces_for_the_same_seed(pictures: Path, crop: CropRecipe) -> None:
    """And others for another."""
    one, again, other = (load_faces(pictures, crop, limit=8, seed=seed).names for seed in (1, 1, 2))
    assert one == again
    assert len(set(one)) == 8
    assert one != other


def test_every_face_of_the_cast_is_found_and_cut_by_its_landmarks(crop: CropRecipe) -> None:
    """The padding lets the detector see tight pictures: the eyes land where the recipe wants them."""
    faces = load_faces(CAST, crop)
    assert len(faces) == 16
    assert faces.not_found == 0
    detector = YunetDetector()
    large = CropRecipe(size_px=200, landmarks=crop.landmarks)
    for name in faces.names[:4]:
        picture = decode_picture((CAST / name).read_bytes())
        known = find_face(picture, large, detector)
        assert known is not None
        assert ((known.landmarks > 0) & (known.landmarks < 200)).all()  # in the picture's own pixels
        np.testing.assert_allclose(faces.landmarks[faces.names.index(name)], known.landmarks, atol=1e-3)
        image = cut_face(picture, known.landmarks, large)
        pad = 60
        [face, *_] = detector.detect(np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="edge"))
        assert np.abs((face.landmarks - pad) / 200 - np.array(crop.landmarks)).max() < 0.06


def test_where_no_face_is_found_the_centre_is_taken_and_counted(tmp_path: Path, crop: CropRecipe) -> None:
    """A plain picture has no face."""
    cv2.imwrite(str(tmp_path / "20_0_0_1.png"), np.full((90, 120, 3), 128, np.uint8))
    faces = load_faces(tmp_path, crop)
    assert faces.not_found == 1
    assert faces.crops([0]).shape == (1, 48, 48, 3)


def test_a_crop_comes_back_in_red_green_blue(crop: CropRecipe) -> None:
    """Ingest encodes BGR; the model eats RGB."""
    blue = np.zeros((48, 48, 3), np.uint8)
    blue[..., 0] = 255
    assert decode_jpeg(encode_jpeg(blue, crop))[24, 24, 2] > 200


def test_unusable_data_is_refused_with_what_to_do(tmp_path: Path, crop: CropRecipe) -> None:
    """Nothing there, an empty folder, a wrong tar, and pictures of something else."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong.tar").write_bytes(b"PK\x03\x04 not a tar" * 100)
    (tmp_path / "cats").mkdir()
    cv2.imwrite(str(tmp_path / "cats" / "cat.png"), np.zeros((50, 50, 3), np.uint8))
    for name, says in (
        ("missing", "no such folder"),
        ("empty", "no pictures"),
        ("wrong.tar", "not readable"),
        ("cats", "none of 1 pictures"),
    ):
        with pytest.raises(ConfigError, match=says):
            load_faces(tmp_path / name, crop)


@pytest.mark.shared
def test_the_detector_finds_nearly_every_face_of_utkface(crop: CropRecipe) -> None:
    """99 % of a hundred drawn at random."""
    if not SHARED_DATA.is_file():
        pytest.skip(f"no labelled pictures at {SHARED_DATA}")
    faces = load_faces(SHARED_DATA, crop, limit=100)
    assert len(faces) == 100
    assert faces.not_found <= 1
    assert not faces.rejected
