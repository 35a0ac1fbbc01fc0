"""cameras.yaml: everything wrong with it is said at once, with what to do, without its passwords."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cameras import Camera, cameras_of_sources, check_files, load_cameras, parse_cameras
from pipeline.errors import ConfigError


def _load(tmp_path: Path, text: str, **environment: str) -> tuple[str, ...]:
    path = tmp_path / "cameras.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        load_cameras(path, environment)
    return refused.value.problems


def test_a_file_with_every_key_is_read(tmp_path: Path) -> None:
    """The file's site holds where a camera names none; passwords come from the environment."""
    path = tmp_path / "cameras.yaml"
    path.write_text(
        """
        site: museum
        cameras:
          - {id: entrance, url: "rtsp://viewer:${HALL_PASSWORD}@10.0.0.1:554/2", detect_fps: 5, max_side_px: 960,
             options: {buffer_size: "1024"}}
          - {id: shop, url: film.mp4, site: museum-shop}
          - {id: trial, url: film.mp4, realtime: true}
        """
    )
    entrance, shop, trial = load_cameras(path, {"HALL_PASSWORD": "p%40ss"})
    assert entrance.url.get_secret_value() == "rtsp://viewer:p%40ss@10.0.0.1:554/2"
    assert (entrance.site, entrance.detect_fps, entrance.max_side_px) == ("museum", 5, 960)
    assert (shop.site, shop.path, shop.live) == ("museum-shop", Path("film.mp4"), False)
    assert (trial.path, trial.live) == (Path("film.mp4"), True)
    assert "p%40ss" not in repr(entrance) + entrance.address


def test_every_problem_is_listed_at_once_with_camera_and_key(tmp_path: Path) -> None:
    """One round of mending is enough."""
    problems = _load(
        tmp_path,
        """
        sites: museum
        cameras:
          - {id: a, url: "rtps://10.0.0.1/1"}
          - {id: "b c", url: "rtsp://10.0.0.2/1", detect_fsp: 5}
          - {id: d, url: "rtsp://u:${NOT_SET}@10.0.0.3/1"}
          - {id: e, url: "rtsp://10.0.0.4/1", detect_fps: 0}
          - just words
          - {id: f, url: "x.mp4"}
          - {id: f, url: "y.mp4"}
        """,
    )
    text = "\n".join(problems)
    for said in (
        "'sites': there is no such key; did you mean 'site'?",
        "camera 1 (a): 'url': scheme 'rtps' is not one of",
        "camera 2 (b c): 'id': use 1 to 64 letters",
        "camera 2 (b c): 'detect_fsp': there is no such key; did you mean 'detect_fps'?",
        "camera 3 (d): ${NOT_SET} is not set",
        "camera 4 (e): 'detect_fps'",
        "camera 5: must be a mapping",
        "camera id 'f' is used more than once",
    ):
        assert said in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "needs a list 'cameras'"),
        ("cameras: []", "at least one camera"),
        ("cameras: {a: b}", "needs a list"),
        ("cameras:\n  - {id: a, url: [", "not YAML"),
        ("cameras:\n  - {id: a}", "'url': field required"),
        ("cameras:\n  - {id: a, url: 'rtsp:///1'}", "names no host"),
        ("cameras:\n  - {id: a, url: 'rtsp://u:a/b@h:554/1'}", "well-formed"),
        ("cameras:\n  - {id: a, url: ''}", "is empty"),
    ],
)
def test_a_file_that_is_none_says_what_it_should_be(tmp_path: Path, text: str, said: str) -> None:
    """Each message says what to write instead."""
    assert said in "\n".join(_load(tmp_path, text))


def test_no_problem_quotes_a_password(tmp_path: Path) -> None:
    """A refused address is named by its camera, not by its text."""
    problems = _load(
        tmp_path,
        "cameras:\n  - {id: a, url: 'rtps://u:${PW}@h/1'}\n  - {id: b, url: 'rtsp://u:${PW}@h:x/1', colour: red}",
        PW="hunter2",
    )
    assert problems
    assert "hunter2" not in "\n".join(problems)


def test_a_missing_camera_file_says_which_example_to_copy(tmp_path: Path) -> None:
    """The commonest mistake of all."""
    with pytest.raises(ConfigError, match=r"cameras\.example\.yaml"):
        load_cameras(tmp_path / "none.yaml", {})


@given(
    st.lists(
        st.sampled_from(["a/lobby.mp4", "b/lobby.mp4", "rtsp://h/lobby", "rtsp://h/ch 1/é", "http://h/", "-.mp4"]),
        min_size=1,
    )
)
def test_sources_on_the_command_line_get_names_that_differ(sources: list[str]) -> None:
    """Whatever is given, each gets a valid id of its own; a source given twice is two cameras."""
    cameras = cameras_of_sources(sources)
    assert len({camera.id for camera in cameras}) == len(sources)


def test_files_that_are_not_there_are_all_named(tmp_path: Path) -> None:
    """Waiting brings no file: the run does not start."""
    (tmp_path / "there.mp4").touch()
    cameras = cameras_of_sources([str(tmp_path / name) for name in ("there.mp4", "gone.mp4", "lost.mp4")])
    with pytest.raises(ConfigError) as refused:
        check_files(cameras)
    assert len(refused.value.problems) == 2


# ── who counts as a visitor ───────────────────────────────────────────────────────────────────────────────────────────


def ruled(**rule: object) -> Camera:
    """Read a camera with a rule from a camera file."""
    (camera,) = parse_cameras({"cameras": [{"id": "hall", "url": "rtsp://h/1", **rule}]}, "cameras.yaml", {})
    return camera


def test_a_rule_is_read_from_the_camera_file() -> None:
    """Zone, line, dwell, excluded places, in relative coordinates."""
    camera = ruled(
        zone=[[0.1, 0.1], [0.9, 0.1], [0.5, 0.9]],
        line={"from": [0, 0.6], "to": [1, 0.6], "inside": [0.5, 1], "counts": "both"},
        min_dwell_s=2,
        exclude=[[[0, 0], [0.2, 0], [0.2, 0.4]]],
    )
    assert camera.zone == ((0.1, 0.1), (0.9, 0.1), (0.5, 0.9))
    assert camera.line is not None
    assert (camera.line.start, camera.line.end, camera.line.counts) == ((0, 0.6), (1, 0.6), "both")
    assert len(camera.exclude) == 1


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"zone": [[0, 0], [1, 1]]}, "three corners"),
        ({"zone": [[0, 0], [0.5, 0.5], [1, 1]]}, "three corners"),
        ({"zone": [[0, 0], [640, 0], [640, 360]]}, "less than or equal to 1"),
        ({"line": {"from": [0, 0.5], "to": [0, 0.5], "inside": [1, 1]}}, "same place"),
        ({"line": {"from": [0, 0.5], "to": [1, 0.5], "inside": [0.3, 0.5]}}, "on the line"),
        ({"line": {"from": [0, 0.5], "to": [1, 0.5], "inside": [0, 1], "counts": "up"}}, "'in', 'out' or 'both'"),
        ({"decode": "sometimes"}, "'all' or 'keyframes'"),
        ({"zones": []}, "did you mean 'zone'"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_with_what_to_do(rule: dict[str, object], said: str) -> None:
    """Before any camera is opened."""
    with pytest.raises(ConfigError, match=said):
        ruled(**rule)
