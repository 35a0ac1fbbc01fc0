"""docs/security.md and docs/privacy.md say what there is: every test, setting, file and command that they name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.settings import documented

ROOT = Path(__file__).parents[2]
PAGES = ("docs/security.md", "docs/privacy.md")


@pytest.mark.parametrize("page", PAGES)
def test_what_is_named_is_there(page: str) -> None:
    """A test that was renamed shows nothing any more."""
    text = (ROOT / page).read_text()
    folder = ""
    for name in re.findall(r"`([\w/.-]+\.(?:py|sh|acl|md))`", text):
        path = ROOT / name if "/" in name else ROOT / folder / name
        folder = str(path.parent.relative_to(ROOT))
        assert path.is_file() or (ROOT / "deploy" / "security" / name).is_file(), name
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert (ROOT / "docs" / link).exists(), link
    known = {row.variable for row in documented()}
    for setting in re.findall(r"DEMOGRAPHICS_[A-Z_]+", text):
        assert setting in known, setting


def test_every_threat_names_what_shows_that_it_is_met() -> None:
    """A row without a test is a hope."""
    rows = re.search(r"## Threats\n\n(.*?)\n\n", (ROOT / "docs" / "security.md").read_text(), re.DOTALL)
    assert rows
    for row in rows[1].splitlines()[2:]:
        assert re.search(r"tests/|make (?:chaos|audit)", row.split("|")[3]) or "the same" in row.split("|")[3], row
