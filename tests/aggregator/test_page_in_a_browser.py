"""The live page in a real browser: it shows what the API says, says what it cannot know, and is usable by everybody."""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any, Final

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from pydantic import SecretStr

from aggregator.api import mount_api
from aggregator.disclosure import Disclosure, PublishedCounts
from aggregator.exporter import VisitorsCollector
from aggregator.fusion import UNKNOWN_CELL, Cell
from aggregator.health import PipelineHealth
from aggregator.memory_store import MemoryStore
from aggregator.store import Changes, PlaceCell, Position, Snapshot
from aggregator.windows import retentions, rolling_windows
from pipeline import telemetry as metrics
from pipeline.errors import TransportError
from pipeline.http import HttpServer, make_app
from pipeline.messages import CameraStatus
from pipeline.telemetry import Telemetry
from tests.servers import listens, wait_until

pytestmark = pytest.mark.slow

WINDOWS: Final = rolling_windows({"1m": 60, "15m": 900, "1h": 3600})
SIZES: Final = {"small phone": (320, 568), "phone": (390, 844), "desk": (1280, 800), "wall": (1920, 1080)}
PATIENCE_MS: Final = 30_000
TOKEN: Final = "0123456789abcdef-token"


class Museum:
    """An aggregator over a store that we fill, which can go away, hang, and be restarted on its port."""

    def __init__(self, *, token: str = "", smallest_group: int = 1) -> None:
        self._disclosure = Disclosure(smallest_group)
        self.store = _Store(retentions(WINDOWS))
        self.telemetry = Telemetry(("aggregator",))
        self._token = token
        self._port = 0
        self._revision = 0
        self.start()

    def start(self) -> None:
        """Begin to serve, on the port of before."""
        telemetry = Telemetry(("aggregator",))
        counts = PublishedCounts(self.store, self._disclosure)
        telemetry.collect_with(VisitorsCollector(counts, WINDOWS, telemetry))
        app = make_app("museum", telemetry.registry, list, token=SecretStr(self._token))
        mount_api(app, counts, WINDOWS, PipelineHealth(telemetry))
        self.telemetry = telemetry
        self.server = HttpServer(app, host="127.0.0.1", port=self._port)
        self._port = self.server.port
        self.server.start()
        wait_until(lambda: listens(self._port), timeout_s=20, what="the server")

    def stop(self) -> None:
        """Answer no more."""
        self.server.close()

    def walk_by(self, *cells: Cell, camera: str = "hall") -> None:
        """Let visitors pass, and the camera say that it runs."""
        changes = Changes()
        for cell in cells:
            changes.counted[(time.time(), PlaceCell("museum", camera, cell))] += 1
            changes.totals[PlaceCell("museum", camera, cell)] += 1
            self.telemetry.observe(metrics.CAPTURE_TO_COUNT, 0.7)
        changes.cameras[camera] = CameraStatus(
            camera_id=camera, site="museum", at=time.time() + 3600, state="running", fps=25, frames=700
        )
        self._apply(changes)

    def lose(self, camera: str, reason: str, state: str = "unreachable") -> None:
        """Let a camera be lost, or be in another state."""
        changes = Changes()
        changes.cameras[camera] = CameraStatus(
            camera_id=camera, site="museum", at=time.time() + 3600, state=state, reason=reason
        )
        self._apply(changes)

    def _apply(self, changes: Changes) -> None:
        start = Position(self._revision, self._revision) if self._revision else None
        self._revision += 1
        assert self.store.apply(0, changes, start=start, end=Position(self._revision, self._revision))

    def get(self, path: str) -> Any:
        """Ask the API."""
        with urllib.request.urlopen(self.server.url + path, timeout=10) as answer:
            return json.load(answer)


class _Store(MemoryStore):
    away = False
    answers: threading.Event | None = None

    def snapshot(self, now: float, windows: Any) -> Snapshot:
        if self.answers:
            self.answers.wait(60)
        if self.away:
            raise TransportError("Redis at redis://h does not answer; check that it runs")
        return super().snapshot(now, windows)


CROWD: Final = (
    *(Cell("female", "25-34", "asian"),) * 3, *(Cell("male", "65+", "black"),) * 2, Cell("male", "0-9", "white"), UNKNOWN_CELL,
)  # fmt: skip


@pytest.fixture
def museum() -> Iterator[Museum]:
    """Open one with a few visitors and a lost camera."""
    made = Museum()
    made.walk_by(*CROWD)
    made.lose("gate", "nobody answers at rtsp://10.0.0.1/x; check power, network and address")
    yield made
    made.stop()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Open a tab on a desk; whatever goes wrong in it fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    context.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    tab = context.new_page()
    faults: list[str] = []
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on("console", lambda said: faults.append(said.text) if "Content Security Policy" in said.text else None)
    yield tab
    context.close()
    assert faults == []


def shown(page: Page, window: str) -> int:
    """Read the large number of a window."""
    return int(page.locator(f'[data-window="{window}"]').inner_text().replace(",", ""))


def test_the_page_shows_what_the_api_and_the_metrics_say(museum: Museum, page: Page) -> None:
    """In numbers, in the pyramid, in the shares, by camera; and asks nobody but its own server."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(museum.server.url)
    expect(page.locator("#pill-text")).to_have_text("Live")
    document = museum.get("/api/v1/windows")
    for window in document["windows"]:
        assert shown(page, window["name"]) == window["visitors"] == 7
    with urllib.request.urlopen(museum.server.url + "/metrics") as answer:
        lines = answer.read().decode().splitlines()
    scraped = [line for line in lines if line.startswith("demographics_visitors{") and 'window="15m"' in line]
    assert sum(float(line.rsplit(" ", 1)[1]) for line in scraped) == shown(page, "15m")
    band = page.locator("#pyramid tr", has=page.get_by_role("rowheader", name="25–34"))
    assert band.locator("td .n").all_inner_texts() == ["0", "3"]
    asian = page.locator("#shares tr", has=page.get_by_role("rowheader", name="Asian"))
    expect(asian.locator(".share")).to_have_text("50%")
    hall = page.locator('[data-camera="hall"]')
    expect(hall.locator(".word")).to_have_text("Running")
    expect(hall.locator(".count")).to_have_text("7")
    expect(page.locator('[data-camera="gate"] .reason')).to_contain_text("nobody answers")
    expect(page.locator("#pipeline-state .word")).to_have_text("Counting")
    assert asked
    assert all(url.startswith(museum.server.url) for url in asked), asked


def test_few_are_a_number_without_a_breakdown_and_a_paused_camera_says_who_paused_it(page: Page) -> None:
    """Three at the gate are among the ten and in no bar; a pause is no trouble, and its reason is shown."""
    museum = Museum(smallest_group=5)
    museum.walk_by(*CROWD)
    museum.walk_by(*(Cell("female", "45-54", "indian"),) * 3, camera="gate")
    museum.lose("ward", "paused by me, 2026-11-25 20:00 UTC: a visitor objected", state="paused")
    try:
        page.goto(museum.server.url)
        expect(page.locator('[data-window="15m"]')).to_have_text("10")
        expect(page.locator("#shares .note").first).to_have_text(
            "3 visitors not broken down: too few before one camera."
        )
        band = page.locator("#pyramid tr", has=page.get_by_role("rowheader", name="45–54"))
        assert band.locator("td .n").all_inner_texts() == ["0", "0"]
        expect(page.locator('[data-camera="gate"] .count')).to_have_text("3")
        ward = page.locator('[data-camera="ward"]')
        expect(ward.locator(".word")).to_have_text("Paused")
        expect(ward.locator(".reason")).to_contain_text("paused by me")
        expect(page.locator("#camera-health")).not_to_have_class(re.compile("bad"))
    finally:
        museum.stop()


def test_the_figures_change_while_people_walk_by(museum: Museum, page: Page) -> None:
    """Within a second or two, without anybody touching the page."""
    page.goto(museum.server.url)
    expect(page.locator('[data-window="15m"]')).to_have_text("7")
    museum.walk_by(Cell("female", "18-24", "indian"), camera="hall")
    expect(page.locator('[data-window="15m"]')).to_have_text("8")
    expect(page.locator('[data-camera="hall"] .count')).to_have_text("8")
    expect(page.locator("#trend-table tr").first.locator("td").first).not_to_have_text("0")


def test_a_restart_of_the_aggregator_is_said_and_survived(museum: Museum, page: Page) -> None:
    """The figures stay, grey and with their age, until it is back; then they go on."""
    page.goto(museum.server.url)
    expect(page.locator("#pill-text")).to_have_text("Live")
    museum.stop()
    expect(page.locator("#banner-title")).to_have_text("Connection lost.")
    expect(page.locator("#pill-text")).to_have_text("Offline")
    assert shown(page, "15m") == 7
    museum.start()
    museum.walk_by(Cell("female", "18-24", "indian"))
    expect(page.locator("#banner")).to_be_hidden()
    expect(page.locator("#pill-text")).to_have_text("Live")
    expect(page.locator('[data-window="15m"]')).to_have_text("8")
    expect(page.locator("#announce")).to_have_text("Live again.")


def test_counts_that_cannot_be_read_are_said_and_not_shown_as_zero(museum: Museum, page: Page) -> None:
    """With what the aggregator says of it."""
    page.goto(museum.server.url)
    expect(page.locator("#pill-text")).to_have_text("Live")
    museum.store.away = True
    expect(page.locator("#banner-title")).to_have_text("The counts cannot be read.")
    expect(page.locator("#banner-text")).to_contain_text("check that it runs")
    assert shown(page, "15m") == 7
    museum.store.away = False
    expect(page.locator("#banner")).to_be_hidden()


def test_figures_that_grow_old_are_said_to_be_old(museum: Museum, page: Page) -> None:
    """An open connection that says nothing is no proof that nothing has happened."""
    page.goto(museum.server.url)
    expect(page.locator("#pill-text")).to_have_text("Live")
    museum.store.answers = threading.Event()
    expect(page.locator("#banner-title")).to_have_text("These figures are old.")
    museum.store.answers.set()
    expect(page.locator("#banner")).to_be_hidden()


def test_before_anybody_came_the_page_says_so(page: Page) -> None:
    """First nothing at all, then no camera, then nobody."""
    empty = Museum()
    try:
        empty.store.answers = threading.Event()
        page.goto(empty.server.url)
        expect(page.locator("#pill-text")).to_have_text("Connecting")
        expect(page.locator("body")).to_have_class("loading")
        empty.store.answers.set()
        expect(page.locator("#banner-title")).to_have_text("No camera has reported yet.")
        expect(page.locator("#cameras-empty")).to_be_visible()
        empty.walk_by()
        expect(page.locator("#banner-title")).to_have_text("No visitors yet.")
        expect(page.locator("#pyramid .hint")).to_contain_text("Nobody was seen")
    finally:
        empty.stop()


def test_what_to_change_about_a_running_camera_is_said_beside_it(museum: Museum, page: Page) -> None:
    """A poster that was found, with the line that keeps it out."""
    advice = "a face does not move: exclude: [[[0.1, 0.2]]]"
    changes = Changes()
    changes.cameras["hall"] = CameraStatus(
        camera_id="hall",
        site="museum",
        at=time.time() + 3600,
        state="running",
        advice=advice,
    )
    museum._apply(changes)
    page.goto(museum.server.url)
    expect(page.locator('[data-camera="hall"] .word')).to_have_text("Running")
    expect(page.locator('[data-camera="hall"] .reason')).to_have_text(advice)


def test_with_a_token_the_page_asks_for_it(page: Page) -> None:
    """A wrong one is refused, the right one is kept for the tab and is in no address."""
    locked = Museum(token=TOKEN)
    locked.walk_by(*CROWD)
    try:
        page.goto(locked.server.url)
        expect(page.locator("#unlock")).to_be_visible()
        expect(page.locator("main")).to_be_hidden()
        for token, said in (("wrong", "not the one"), (TOKEN, "")):
            page.get_by_label("asked for with a token").fill(token)
            page.get_by_role("button", name="Show").click()
            if said:
                expect(page.locator("#unlock-said")).to_contain_text(said)
        expect(page.locator('[data-window="15m"]')).to_have_text("7")
        expect(page.locator("#unlock")).to_be_hidden()
        expect(page.locator("#trend-table tr")).not_to_have_count(0)
        page.reload()
        expect(page.locator('[data-window="15m"]')).to_have_text("7")
        assert TOKEN not in page.url
    finally:
        locked.stop()


def test_with_a_token_the_links_in_the_foot_bring_what_they_lead_to(page: Page) -> None:
    """A link cannot send the token: what it leads to is fetched with it and saved. Before the token, it says what is missing."""
    locked = Museum(token=TOKEN)
    locked.walk_by(*CROWD)
    try:
        page.goto(locked.server.url)
        expect(page.locator("#unlock")).to_be_visible()
        page.get_by_role("link", name="CSV").click()
        expect(page.locator("#data-said")).to_contain_text("Give the token first")
        expect(page.locator("#token")).to_be_focused()
        page.locator("#token").fill(TOKEN)
        page.get_by_role("button", name="Show").click()
        expect(page.locator('[data-window="15m"]')).to_have_text("7")
        contents = {}
        for link in ("Metrics", "Windows", "CSV"):
            with page.expect_download() as saved:
                page.get_by_role("link", name=link).click()
            contents[saved.value.suggested_filename] = saved.value.path().read_text()
        assert set(contents) == {"metrics.txt", "windows.json", "visitors-1h.csv"}
        assert "demographics_visitors{" in contents["metrics.txt"]
        assert json.loads(contents["windows.json"])["total"]["visitors"] == len(CROWD)
        assert contents["visitors-1h.csv"].startswith("start,seconds,visitors")
        assert page.url.rstrip("/").startswith(locked.server.url)
        locked.stop()
        page.get_by_role("link", name="CSV").click()
        expect(page.locator("#data-said")).to_contain_text("CSV cannot be fetched")
    finally:
        locked.stop()


def test_without_a_token_the_links_in_the_foot_are_plain_links(museum: Museum, page: Page) -> None:
    """They open, and can be kept or sent to somebody."""
    page.goto(museum.server.url)
    expect(page.locator("#pill-text")).to_have_text("Live")
    page.get_by_role("link", name="Windows").click()
    page.wait_for_url("**/api/v1/windows")
    assert json.loads(page.locator("body").inner_text())["total"]["visitors"] == len(CROWD)


def test_everything_can_be_done_with_the_keyboard(museum: Museum, page: Page) -> None:
    """Skip to the figures, choose a window, read the trend bar by bar."""
    page.goto(museum.server.url)
    expect(page.locator("#pill-text")).to_have_text("Live")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the figures")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("radio", name="15 minutes")).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("radio", name="1 hour")).to_be_checked()
    assert page.url.endswith("#1h")
    expect(page.locator("#trend-table tr")).not_to_have_count(0)
    trend = page.get_by_role("slider")
    trend.focus()
    page.keyboard.press("End")
    text = trend.get_attribute("aria-valuetext") or ""
    if text.endswith(" 0 visitors, so far"):  # a minute has begun meanwhile
        page.keyboard.press("ArrowLeft")
        text = trend.get_attribute("aria-valuetext") or ""
    assert "7 visitors" in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_no_barrier_is_found_at_any_size_in_any_light(museum: Museum, browser: Browser, size: str, scheme: str) -> None:
    """As axe-core checks them: contrast, names, roles, order. And nothing is wider than the screen."""
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,  # type: ignore[arg-type]
        reduced_motion="reduce",
    )
    try:
        page = context.new_page()
        page.goto(museum.server.url)
        expect(page.locator("#pill-text")).to_have_text("Live")
        expect(page.locator("#trend-table tr")).not_to_have_count(0)
        found = Axe().run(page).response["violations"]
        assert [(one["id"], one["impact"], [n["html"] for n in one["nodes"]][:3]) for one in found] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    finally:
        context.close()
