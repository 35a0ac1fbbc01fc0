"""Settings: every problem at once, by the variable's name, never with its value."""

from __future__ import annotations

import pytest

from pipeline.docs import main as docs_main
from pipeline.errors import ConfigError
from pipeline.settings import documented, load_settings, parse_window


def _problems(monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as refused:
        load_settings()
    return "\n".join(refused.value.problems)


def test_the_defaults_stand_without_an_environment() -> None:
    """Nothing has to be set to try it."""
    settings = load_settings({})
    assert settings.attributes == ("age", "gender", "ethnicity")
    assert settings.windows_s == {"1m": 60, "5m": 300, "15m": 900, "1h": 3600, "24h": 86400}


def test_all_wrong_variables_are_listed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown ones with the nearest that is known; wrong ones by name."""
    text = _problems(
        monkeypatch,
        DEMOGRAPHICS_KAFKA__BOOTSTRAP_SERVER="x:1",
        DEMOGRAPHICS_INGEST__DETECT_FPS="often",
        DEMOGRAPHICS_KAFKA__FACE_CROPS_RETENTION_S="999999",
        DEMOGRAPHICS_AGGREGATOR__WINDOWS='["15m", "1m"]',
    )
    assert (
        "DEMOGRAPHICS_KAFKA__BOOTSTRAP_SERVER: there is no such setting; did you mean DEMOGRAPHICS_KAFKA__BOOTSTRAP_SERVERS?"
        in text
    )
    assert "DEMOGRAPHICS_INGEST__DETECT_FPS: input should be a valid number" in text
    assert "DEMOGRAPHICS_KAFKA__FACE_CROPS_RETENTION_S: input should be less than or equal to 3600" in text
    assert "DEMOGRAPHICS_AGGREGATOR__WINDOWS: name at least one window, shortest first" in text


def test_a_list_that_is_no_json_says_how_to_write_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists are the one thing that is not obvious in an environment."""
    assert "JSON" in _problems(monkeypatch, DEMOGRAPHICS_ATTRIBUTES="age,gender")


def test_no_problem_and_no_repr_shows_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis' address is a secret, for it holds one."""
    text = _problems(
        monkeypatch,
        DEMOGRAPHICS_REDIS__URL="redis://u:hunter2@h/0",
        DEMOGRAPHICS_KAFKA__PASSWORD="hunter2",
        DEMOGRAPHICS_INGEST__DETECT_FPS="hunter2",
    )
    assert "hunter2" not in text
    monkeypatch.delenv("DEMOGRAPHICS_INGEST__DETECT_FPS")
    assert "hunter2" not in repr(load_settings())


@pytest.mark.parametrize("text", ["", "m", "0m", "1.5h", "15", "5 m", "-1m"])
def test_a_window_that_is_none_is_refused(text: str) -> None:
    """A window is a number and a unit."""
    with pytest.raises(ValueError, match="no window"):
        parse_window(text)


def test_every_setting_says_what_it_is_for() -> None:
    """The generated page has no empty cell."""
    assert all(row.description for row in documented())


def test_the_generated_pages_are_fresh() -> None:
    """docs/configuration.md and docs/metrics.md say what the code says."""
    assert docs_main(["--check"]) == 0
