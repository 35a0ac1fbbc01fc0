"""The dashboards and the rules: fresh, parsed by Prometheus' own tools, and with data on every panel of a running system."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest
import yaml

from aggregator.exporter import VisitorsCollector
from aggregator.fusion import UNKNOWN_CELL, Cell
from aggregator.memory_store import MemoryStore
from aggregator.store import Changes, PlaceCell, Position
from aggregator.windows import retentions, rolling_windows
from deploy.grafana.dashboards import DASHBOARDS, FOLDER, SOURCE, stale
from pipeline import telemetry
from pipeline.http import HttpServer, make_app
from pipeline.settings import Settings
from pipeline.telemetry import Telemetry
from tests.servers import free_port

DEPLOY: Final = Path(__file__).resolve().parents[2] / "deploy"
PROMETHEUS: Final = DEPLOY / "prometheus" / "prometheus.yml"
FILLED: Final = {"$window": "15m", "$site": ".*", "$camera": ".*", "$__range": "1h", "$__rate_interval": "30s"}


def dashboards() -> Iterator[tuple[str, dict[str, Any]]]:
    """Read the dashboards as Grafana does."""
    for path in sorted(FOLDER.glob("*.json")):
        yield path.stem, json.loads(path.read_text())


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    """List every panel that asks something, by a name that a failure can show."""
    for name, document in dashboards():
        for panel in document["panels"]:
            if panel["type"] != "row":
                yield f"{name}: {panel['title']}", panel


def expressions() -> list[tuple[str, str]]:
    """List every query, with the variables filled in."""
    found = []
    for name, panel in panels():
        for target in panel["targets"]:
            expression = target["expr"]
            for variable, value in FILLED.items():
                expression = expression.replace(variable, value)
            assert "$" not in expression, expression
            found.append((f"{name} ({target['refId']})", expression))
    return found


def promtool(*arguments: str) -> str:
    """Run Prometheus' tool; gives what it says."""
    found = shutil.which("promtool")
    if not found:
        pytest.skip("no promtool on the PATH; Debian's package prometheus brings it")
    done = subprocess.run([found, *arguments], capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_dashboards_are_what_the_code_makes() -> None:
    """`python -m deploy.grafana.dashboards` writes them."""
    assert stale() == []
    assert {name for name, _ in dashboards()} == set(DASHBOARDS)


def test_nothing_has_to_be_clicked_before_they_show() -> None:
    """Fixed names for the data source and the dashboards, and no questions at import."""
    provisioned = yaml.safe_load((DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text())
    assert provisioned["datasources"][0]["uid"] == SOURCE.uid
    for name, document in dashboards():
        assert document["uid"] == f"demographics-{name}"
        assert "__inputs" not in document
        for _, panel in panels():
            assert panel["datasource"] == {"type": "prometheus", "uid": SOURCE.uid}


def test_every_panel_says_what_it_shows() -> None:
    """A title, a sentence, a number of its own, and a place that no other panel has."""
    for _, document in dashboards():
        numbers = [panel["id"] for panel in document["panels"]]
        assert len(numbers) == len(set(numbers))
        taken: set[tuple[int, int]] = set()
        for panel in document["panels"]:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken, panel["title"]
            taken |= cells
            assert panel["title"]
            assert panel["type"] == "row" or panel["description"]


def test_the_window_site_and_camera_can_be_chosen() -> None:
    """And the windows are those that are counted where nobody says otherwise."""
    for _, document in dashboards():
        variables = {variable["name"]: variable for variable in document["templating"]["list"]}
        assert set(variables) == {"window", "site", "camera"}
        assert tuple(variables["window"]["query"].split(",")) == Settings().aggregator.windows


def test_queries_ask_for_metrics_that_there_are() -> None:
    """A renamed metric would leave a panel empty."""
    declared = {metric.name for metric in telemetry.declared()}
    declared |= {f"{metric.name}_{part}" for metric in telemetry.declared() for part in ("bucket", "sum", "count")}
    recorded: dict[str, str] = {}
    for path in sorted((DEPLOY / "prometheus" / "rules").glob("*.yml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            recorded |= {rule["record"]: rule["expr"] for rule in group["rules"] if "record" in rule}
    for where, expression in [*expressions(), *recorded.items()]:
        for word in _names(expression):
            assert word in declared or word in recorded, f"{where}: {word}"


def test_visitors_are_never_summed_over_aggregators() -> None:
    """Only the recording rules read the raw counts, and they take each once."""
    for where, expression in expressions():
        for raw in ("demographics_visitors", "demographics_visitors_total", "demographics_visitors_by_ethnicity"):
            assert raw not in _names(expression), where


def _names(expression: str) -> set[str]:
    return set(re.findall(r"\bdemographics[_:][a-z0-9_:]+", expression))


def test_prometheus_accepts_its_configuration_and_the_rules() -> None:
    """As promtool reads them."""
    assert "SUCCESS" in promtool("check", "config", str(PROMETHEUS))


def test_every_expression_parses(tmp_path: Path) -> None:
    """Each is made a rule, which promtool parses."""
    rules = [
        {"record": f"panel:query:{number}", "expr": expression} for number, (_, expression) in enumerate(expressions())
    ]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", str(path))


# --- a real Prometheus ----------------------------------------------------------------------------------------------------


class Watched:
    """A system as Prometheus sees it: two aggregators on one store, and the other services' metrics beside them."""

    def __init__(self) -> None:
        windows = rolling_windows({"1m": 60, "15m": 900, "1h": 3600})
        store = MemoryStore(retentions(windows))
        changes = Changes()
        for cell in (Cell("female", "25-34", "asian"), Cell("male", "65+", "black"), UNKNOWN_CELL):
            place = PlaceCell("museum", "hall", cell)
            changes.counted[(time.time() - 5, place)] += 1
            changes.totals[place] += 1
        assert store.apply(0, changes, start=None, end=Position(3, 1))
        self.telemetry = Telemetry(["ingest", "inference", "aggregator"])
        self.telemetry.collect_with(VisitorsCollector(store, windows, self.telemetry))
        app = make_app("test", self.telemetry.registry, list)
        self.servers = [HttpServer(app, host="127.0.0.1", port=0) for _ in range(2)]
        for server in self.servers:
            server.start()

    def tick(self) -> None:
        """Let something of everything happen."""
        place = {"site": "museum", "camera": "hall"}
        values = {"reason": "quality", "topic": "predictions", "partition": "0"}
        for metric in telemetry.declared():
            if metric.collected:
                continue
            labels = {label: {**place, **values}[label] for label in metric.labels}
            if metric.kind == "counter":
                self.telemetry.add(metric, **labels)
            elif metric.kind == "gauge":
                self.telemetry.set(metric, 1, **labels)
            else:
                self.telemetry.observe(metric, 0.1, **labels)

    def close(self) -> None:
        """Stop answering."""
        for server in self.servers:
            server.close()


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    """Serve the metrics of a made-up system."""
    system = Watched()
    system.tick()
    yield system
    system.close()


@pytest.fixture(scope="module")
def prometheus(watched: Watched, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """Run a real Prometheus with the product's own rules on it, every second instead of every ten."""
    binary = shutil.which("prometheus")
    if not binary:
        pytest.skip("no prometheus on the PATH; Debian's package prometheus brings it")
    folder = tmp_path_factory.mktemp("prometheus")
    configuration = yaml.safe_load(PROMETHEUS.read_text())
    configuration["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    configuration["rule_files"] = [str(PROMETHEUS.parent / pattern) for pattern in configuration["rule_files"]]
    targets = [server.url.removeprefix("http://") for server in watched.servers]
    configuration["scrape_configs"] = [{"job_name": "aggregator", "static_configs": [{"targets": targets}]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    address = f"127.0.0.1:{free_port()}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                binary,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        with httpx2.Client(base_url=f"http://{address}/api/v1", timeout=10) as client:
            yield client
    finally:
        process.terminate()
        process.wait(20)


def answer(client: httpx2.Client, expression: str) -> list[dict[str, Any]]:
    """Ask Prometheus; nothing where it is not up yet."""
    try:
        document = client.get("/query", params={"query": expression}).json()
    except httpx2.TransportError:
        return []
    assert document.get("status") == "success", document
    result = document["data"]["result"]
    assert isinstance(result, list)
    return result


def test_every_panel_has_data_on_a_running_system(prometheus: httpx2.Client, watched: Watched) -> None:
    """A panel that stays empty is a mistake in its query, in a rule or in a metric."""
    waiting = dict(expressions())
    deadline = time.monotonic() + 60
    while waiting and time.monotonic() < deadline:
        watched.tick()
        time.sleep(1)
        waiting = {
            name: query
            for name, query in waiting.items()
            if not any(sample["value"][1] != "NaN" for sample in answer(prometheus, query))
        }
    assert waiting == {}


def test_two_aggregators_count_nobody_twice(prometheus: httpx2.Client) -> None:
    """Both export the three visitors; the dashboards show three."""
    deadline = time.monotonic() + 60
    figures: dict[str, float] = {}
    while time.monotonic() < deadline:
        figures = {
            window: sum(
                float(sample["value"][1])
                for sample in answer(prometheus, f'sum(demographics:visitors{{window="{window}"}})')
            )
            for window in ("15m", "1h")
        }
        copies = answer(prometheus, 'count(demographics_visitors{window="1h"})')
        if copies and float(copies[0]["value"][1]) == 6 and all(figures.values()):
            break
        time.sleep(0.5)
    assert figures == {"15m": 3, "1h": 3}
    assert float(answer(prometheus, "sum(demographics:visitors_total:by_camera)")[0]["value"][1]) == 3
