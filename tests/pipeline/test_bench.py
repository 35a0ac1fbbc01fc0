"""What the bench says is said alike: ratios the right way round, limits, one page, one JSON document, one plot."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.bench import page
from pipeline.bench.rows import Row, Workbench
from pipeline.bench.run import LONG, PARTS, run_bench
from pipeline.errors import ConfigError
from pipeline.settings import load_settings

RATE = Row("bus", "crops | sent", 200.0, "crops/s", "another", 50.0, limit=400.0, limit_of="a bare loop")
TIME = Row("scrape", "a scrape", 50.0, "ms", "another", 200.0, limit=25.0, limit_of="only read")


def test_a_ratio_above_one_is_better_whichever_way_the_figure_goes() -> None:
    """Rates are better when larger, times when smaller; so is the share of the limit."""
    assert (RATE.ratio, TIME.ratio) == (4.0, 4.0)
    assert (RATE.of_limit, TIME.of_limit) == (0.5, 0.5)
    assert Row("bus", "alone", 1.0, "crops/s").ratio is None


def test_the_document_has_what_scripts_read() -> None:
    """Part, figure, unit, peer, ratio and limit are an interface."""
    assert {
        "part",
        "figure",
        "value",
        "unit",
        "peer",
        "peer_value",
        "ratio",
        "limit",
        "of_limit",
    } <= RATE.document().keys()


def test_a_page_keeps_its_prose_and_gets_new_figures(tmp_path: Path) -> None:
    """Written twice, the page has the figures once."""
    path = tmp_path / "benchmarks.md"
    path.write_text(f"# Figures\n{page.BEGIN}\nold\n{page.END}\nWhy.\n")
    for _ in range(2):
        page.put_between_marks(path, page.markdown([RATE, TIME], "demographics bench"))
    text = path.read_text()
    assert text.startswith("# Figures\n")
    assert text.endswith("\nWhy.\n")
    assert "old" not in text
    rows = [line for line in text.splitlines() if line.startswith(("| bus", "| scrape"))]
    assert len(rows) == 2
    assert all(line.replace("\\|", "").count("|") == len(page.HEADINGS) + 1 for line in rows)


def test_a_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    """Figures are not put just anywhere."""
    path = tmp_path / "page.md"
    path.write_text("# Prose\n")
    with pytest.raises(ConfigError, match="where the figures are to stand"):
        page.put_between_marks(path, "figures")
    assert path.read_text() == "# Prose\n"


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    """With rows that have no peer and no limit among them."""
    grown = [
        Row("growth", f"{n} cameras of 1080p25: {what}", 5.0, "looks/s")
        for n in (1, 2)
        for what in ("cost of each", "searched")
    ]
    page.plot([RATE, TIME, Row("bus", "alone", 1.0, "crops/s"), *grown], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_part_that_is_none_is_said_before_anything_is_measured() -> None:
    """With the name that was meant."""
    with pytest.raises(ConfigError, match="did you mean 'decode'"):
        run_bench(load_settings(), ["decod"])


def test_every_part_says_its_own_name() -> None:
    """Else --only could not name it."""
    assert not PARTS.keys() & LONG.keys()


@pytest.mark.parametrize("part", ["cut"])
def test_a_part_measures(part: str, tmp_path: Path) -> None:
    """The quickest of them, once: every figure is a positive number with a unit."""
    rows = PARTS[part](Workbench(tmp_path, load_settings()))
    assert rows
    assert all(row.part == part and row.value > 0 and row.unit for row in rows)
