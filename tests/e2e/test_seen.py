"""What is looked at, on the real thing: services, Kafka, Valkey, Prometheus and a browser, with people walking by.

With PICTURES=FOLDER in the environment it leaves there what the documentation shows: the page at three sizes in light and dark,
and renderings of the dashboards (see deploy/grafana/render.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest
from playwright.sync_api import Browser, Page, expect

from demo.clip import Clip
from demo.composer import compose, load_cast
from demo.rtsp_server import RtspServer
from deploy.grafana.render import render_all
from tests.e2e.conftest import Service, Services, until
from tests.prometheus import PrometheusServer, expressions, has_data, week_before
from tests.servers import KafkaServer, ValkeyServer, free_port

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(600)]

Deploy = Callable[..., Services]
PICTURED_S: Final = 240.0
SIZES: Final = {390: 844, 1280: 800, 1920: 1080}


@pytest.fixture
def films(tmp_path: Path) -> dict[str, Clip]:
    """Compose what the cameras see; for the pictures as many people as the demo has."""
    people, seconds = (8, 30) if os.environ.get("PICTURES") else (5, 15)
    return {
        view: compose(tmp_path / f"{view}.mp4", load_cast(), view=view, people=people, seconds=seconds, seed=seed)
        for view, seed in (("entrance", 3), ("hall", 11))
    }


def visitors_of(aggregator: Service, window: str) -> int:
    """Ask the API."""
    windows = aggregator.get("/api/v1/windows")["windows"]
    return int(next(one["visitors"] for one in windows if one["name"] == window))


def shown(page: Page, window: str) -> int:
    """Read the large number of a window."""
    return int(page.locator(f'[data-window="{window}"]').inner_text().replace(",", ""))


def active(prometheus: PrometheusServer) -> set[str]:
    """Name the alerts that fire or are about to, but for those that tell the truth of a slow machine."""
    names = {sample["metric"]["alertname"] for sample in prometheus.query("ALERTS")}
    return names - {"DropShareHigh", "CountsLate", "LagGrowing"}


def take_pictures(folder: Path, browser: Browser, aggregator: Service, prometheus: PrometheusServer) -> None:
    """Leave what the documentation shows."""
    folder.mkdir(parents=True, exist_ok=True)
    for width, height in SIZES.items():
        for scheme in ("light", "dark"):
            context = browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme=scheme,
                reduced_motion="reduce",
            )
            page = context.new_page()
            page.goto(aggregator.url())
            expect(page.locator("#trend-table tr")).not_to_have_count(0)
            page.screenshot(path=folder / f"page-{width}-{scheme}.png", full_page=width < 1500)
            context.close()
    render_all(prometheus.url, folder, span_s=PICTURED_S)


def test_what_is_looked_at_shows_what_is_there(
    deploy: Deploy,
    tmp_path_factory: pytest.TempPathFactory,
    kafka_server: KafkaServer,
    films: dict[str, Clip],
    browser: Browser,
) -> None:
    """Every panel and rule has data and every alert its expected state; page, API and metrics agree, across a restart."""
    port = free_port()
    with (
        KafkaServer(tmp_path_factory.mktemp("kafka")) as kafka,
        ValkeyServer(tmp_path_factory.mktemp("valkey")) as valkey,
        RtspServer() as cameras,
    ):
        services = deploy(
            DEMOGRAPHICS_KAFKA__BOOTSTRAP_SERVERS=kafka.bootstrap_servers,
            DEMOGRAPHICS_REDIS__URL=valkey.url,
            DEMOGRAPHICS_INFERENCE__THREADS="1",
        )
        on_port = {"DEMOGRAPHICS_HTTP__PORT": str(port)}
        aggregator, inference = services.start("aggregate", **on_port), services.start("infer")
        services.wait_ready(aggregator, inference)
        for name, film in films.items():
            cameras.add(name, film.path, start="on_play")
        line = "{from: [0.5, 0], to: [0.5, 1], inside: [0.9, 0.5], counts: both}"
        listed = "".join(f"  - {{id: {name}, url: '{cameras.url(name)}', line: {line}}}\n" for name in films)
        listed += f"  - {{id: gate, url: 'rtsp://127.0.0.1:{free_port()}/nobody'}}\n"
        path = aggregator.log.parent / "cameras.yaml"
        path.write_text(f"site: museum\ncameras:\n{listed}")
        ingest_on = {"DEMOGRAPHICS_HTTP__PORT": str(free_port())}
        ingest = services.start("ingest", path, **ingest_on)
        services.wait_ready(ingest)
        scraped = {"ingest": ingest, "inference": inference, "aggregator": aggregator}
        targets = {job: [service.url().removeprefix("http://")] for job, service in scraped.items()}
        history = week_before("museum", "entrance")
        folder = tmp_path_factory.mktemp("prometheus")
        with PrometheusServer(targets, folder, history=history) as prometheus:
            _look_at_prometheus(prometheus, services)
            page = browser.new_page()
            expect.set_options(timeout=40_000)
            page.goto(aggregator.url())
            expect(page.locator("#pill-text")).to_have_text("Live")
            expect(page.locator('[data-camera="gate"] .word')).to_have_text("Unreachable")
            before = shown(page, "24h")
            until(lambda: shown(page, "24h") > before, 60, services.logs)  # people walk by
            if os.environ.get("PICTURES"):
                page.wait_for_timeout(PICTURED_S * 1000)  # until there is something to draw
                take_pictures(Path(os.environ["PICTURES"]), browser, aggregator, prometheus)

            ingest.stop()  # nobody walks by any more: the figures stand
            until(lambda: _settled(prometheus, aggregator), 90, services.logs)
            counted = visitors_of(aggregator, "24h")
            until(lambda: shown(page, "24h") == counted, 20, services.logs)
            assert (
                counted == _scraped(aggregator, "24h") == prometheus.value('sum(demographics:visitors{window="24h"})')
            )

            aggregator.kill()
            expect(page.locator("#banner-title")).to_have_text("Connection lost.")
            assert shown(page, "24h") == counted
            again = services.start("aggregate", **on_port)
            services.wait_ready(again)
            expect(page.locator("#pill-text")).to_have_text("Live")
            assert shown(page, "24h") == counted == visitors_of(again, "24h")
            page.close()

            # What goes wrong is told by its own alert, and by no other's.
            valkey.kill()
            until(lambda: "RedisUnreachable" in active(prometheus), 40, services.logs)
            assert active(prometheus) <= {"CameraDown", "RedisUnreachable", "ServiceDown", "ServiceMissing"}
            valkey.start()
            services.wait_ready(services.start("ingest", path, **ingest_on))
            until(lambda: not active(prometheus) & {"RedisUnreachable", "ServiceDown"}, 60, services.logs)
            kafka.kill()
            until(lambda: "KafkaUnreachable" in active(prometheus), 60, services.logs)
            assert "RedisUnreachable" not in active(prometheus)


def _look_at_prometheus(prometheus: PrometheusServer, services: Services) -> None:
    """Run every expression of every panel and every rule, until each has data."""
    waiting = dict(expressions())

    def all_have_data() -> bool:
        for name in [name for name, expression in waiting.items() if has_data(prometheus, expression)]:
            del waiting[name]
        return not waiting

    until(all_have_data, 120, lambda: f"no data: {waiting}\n{services.logs()}")
    groups = httpx2.get(f"{prometheus.url}/api/v1/rules", timeout=10).json()["data"]["groups"]
    rules: list[dict[str, Any]] = [rule for group in groups for rule in group["rules"]]
    assert [rule["name"] for rule in rules if rule["health"] != "ok" or rule.get("lastError")] == []
    recorded = {rule["name"] for rule in rules if rule["type"] == "recording"}
    assert [name for name in recorded if not has_data(prometheus, name)] == []
    # The one camera that nobody answers for, and nothing else.
    until(lambda: active(prometheus) == {"CameraDown"}, 60, lambda: f"{prometheus.query('ALERTS')}\n{services.logs()}")
    (down,) = prometheus.query('ALERTS{alertname="CameraDown"}')
    assert down["metric"]["camera"] == "gate"


def _settled(prometheus: PrometheusServer, aggregator: Service) -> bool:
    pipeline = aggregator.get("/api/v1/pipeline")
    same = prometheus.value('sum(demographics:visitors{window="24h"})') == visitors_of(aggregator, "24h")
    return same and not sum(pipeline["waiting"].values()) and not pipeline["open_tracks"]


def _scraped(aggregator: Service, window: str) -> float:
    lines = aggregator.text("/metrics").splitlines()
    found = [line for line in lines if line.startswith("demographics_visitors{") and f'window="{window}"' in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in found)
