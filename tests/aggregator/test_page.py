"""The live page as it is served: own files only, nothing inline, and a stream that it can read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser

import httpx2
import pytest

from aggregator.api import PAGE, mount_api
from aggregator.fusion import UNKNOWN_CELL, Cell
from aggregator.health import PipelineHealth
from aggregator.memory_store import MemoryStore
from aggregator.store import Changes, PlaceCell, Position
from aggregator.windows import retentions, rolling_windows
from pipeline.http import HttpServer, make_app
from pipeline.messages import CAMERA_STATES, CameraStatus
from pipeline.telemetry import Telemetry

NOW = 1_764_000_000.0
FILES = sorted(path.name for path in PAGE.iterdir())
CONTENT_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx2.Client]:
    """Serve three visitors before one camera, one of them unknown, and ask."""
    windows = rolling_windows({"1m": 60, "1h": 3600})
    store = MemoryStore(retentions(windows))
    changes = Changes()
    for cell in (Cell("female", "25-34", "asian"), Cell("male", "65+", "black"), UNKNOWN_CELL):
        changes.counted[(NOW - 5, PlaceCell("museum", "hall", cell))] += 1
    changes.cameras["hall"] = CameraStatus(camera_id="hall", site="museum", at=NOW, state="running", fps=25)
    assert store.apply(0, changes, start=None, end=Position(3, 1))
    telemetry = Telemetry(["aggregator"])
    app = make_app("test", telemetry.registry, list)
    mount_api(app, store, windows, PipelineHealth(telemetry), clock=lambda: NOW)
    server = HttpServer(app, host="127.0.0.1", port=0)
    server.start()
    with httpx2.Client(base_url=server.url, timeout=10) as client:
        yield client
    server.close()


class _Page(HTMLParser):
    """What a page refers to, and what it holds inline."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.inline: list[str] = []
        self.ids: list[str] = []
        self.language = ""
        self._within = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self._within = tag
        self.references += [attributes[name] for name in ("src", "href") if name in attributes]
        self.inline += [name for name in attributes if name == "style" or name.startswith("on")]
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag == "style":
            self.inline.append(tag)
        if tag == "html":
            self.language = attributes.get("lang", "")

    def handle_data(self, data: str) -> None:
        if self._within == "script" and data.strip():
            self.inline.append("script")

    def handle_endtag(self, tag: str) -> None:
        self._within = ""


def parsed_index() -> _Page:
    """Read the page as a browser would, roughly."""
    page = _Page()
    page.feed((PAGE / "index.html").read_text())
    return page


def scripts() -> str:
    """Give the text of every script."""
    return "\n".join(path.read_text() for path in sorted(PAGE.glob("*.js")))


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_served_as_what_it_is_and_under_the_policy(client: httpx2.Client, name: str) -> None:
    """A browser refuses modules of another type, and the policy keeps foreign code out."""
    answer = client.get("/" + name)
    assert answer.status_code == 200
    assert answer.headers["content-type"].split(";")[0] == CONTENT_TYPES["." + name.rsplit(".", 1)[1]]
    assert answer.headers["content-security-policy"].startswith("default-src 'self';")
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_page_is_at_the_root(client: httpx2.Client) -> None:
    """The address that the logs print is the one to open."""
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.content == (PAGE / "index.html").read_bytes()


def test_the_page_refers_to_nothing_but_what_is_served_here(client: httpx2.Client) -> None:
    """It works where nothing outside can be reached."""
    references = [reference for reference in parsed_index().references if not reference.startswith("#")]
    assert references
    for reference in references:
        assert "//" not in reference
        assert client.get("/" + reference.lstrip("/")).status_code == 200, reference


def test_nothing_is_inline() -> None:
    """The strict policy would refuse inline scripts, handlers and styles."""
    assert parsed_index().inline == []


def test_the_page_says_its_language_and_uses_each_id_once() -> None:
    """Screen readers choose a voice by the one and find labels by the other."""
    page = parsed_index()
    assert page.language == "en"
    assert len(page.ids) == len(set(page.ids))


def test_the_scripts_import_only_files_beside_them() -> None:
    """No third-party code, no build step."""
    imported = re.findall(r'from "([^"]+)"', scripts())
    assert imported
    for name in imported:
        assert name.removeprefix("./") in FILES, name


def test_the_scripts_find_the_elements_that_they_ask_for() -> None:
    """An id is written in two files; they agree."""
    asked = set(re.findall(r'byId\("([^"]+)"\)', scripts()))
    assert asked
    assert asked <= set(parsed_index().ids)


def test_text_from_the_api_is_never_markup() -> None:
    """A camera's name or reason cannot become part of the page."""
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "DOMParser"):
        assert way not in scripts(), way


def test_the_page_has_words_for_every_state_of_a_camera() -> None:
    """A new state would be shown by its bare name."""
    written = set(re.findall(r"^  (\w+): \[\"", scripts(), flags=re.MULTILINE))
    assert {*CAMERA_STATES, "silent"} <= written


def test_style_sheets_fetch_nothing() -> None:
    """Fonts and pictures come with the system."""
    for path in PAGE.glob("*.css"):
        assert not re.search(r"url\(|@import", path.read_text()), path.name


def test_the_first_event_of_the_stream_is_what_the_page_shows(client: httpx2.Client) -> None:
    """Windows, totals and cameras, in one document."""
    with client.stream("GET", "/api/v1/stream") as answer:
        assert answer.headers["content-type"].split(";")[0] == "text/event-stream"
        line = next(line for line in answer.iter_lines() if line.startswith("data: "))
    document = json.loads(line.removeprefix("data: "))
    assert [(window["name"], window["visitors"], window["unknown"]) for window in document["windows"]] == [
        ("1m", 3, 1),
        ("1h", 3, 1),
    ]
    assert document["windows"][0]["pyramid"]["25-34"] == {"male": 0, "female": 1}
    assert document["windows"][0]["cameras"]["hall"]["visitors"] == 3
    assert document["total"]["visitors"] == 0
    assert [(camera["id"], camera["state"]) for camera in document["status"]] == [("hall", "running")]


def test_the_trend_is_one_bar_a_minute(client: httpx2.Client) -> None:
    """An hour in sixty bars, the newest last."""
    document = client.get("/api/v1/visitors", params={"window": "1h"}).json()
    assert document["bucket_s"] == 60
    assert len(document["buckets"]) == 60
    assert sum(bucket["visitors"] for bucket in document["buckets"]) == 3
