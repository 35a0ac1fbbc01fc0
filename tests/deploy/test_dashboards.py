"""The dashboards and the rules: fresh, parsed by Prometheus' own tools, and with data on every panel of a running system."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from aggregator.exporter import VisitorsCollector
from aggregator.fusion import UNKNOWN_CELL, Cell
from aggregator.memory_store import MemoryStore
from aggregator.store import Changes, PlaceCell, Position
from aggregator.windows import retentions, rolling_windows
from deploy.grafana.dashboards import DASHBOARDS, WINDOWS, stale
from deploy.grafana.panels import SOURCE
from deploy.grafana.render import render_all
from pipeline import telemetry
from pipeline.bus import FACE_CROPS
from pipeline.http import HttpServer, make_app
from pipeline.messages import CameraStatus
from pipeline.settings import Settings
from pipeline.telemetry import Telemetry
from tests.prometheus import (
    CONFIGURATION,
    DEPLOY,
    PrometheusServer,
    dashboards,
    expressions,
    has_data,
    panels,
    promtool,
    week_before,
)
from tests.servers import wait_until


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


def test_what_can_be_chosen_is_used_and_what_is_used_can_be_chosen() -> None:
    """And the windows are those that are counted where nobody says otherwise."""
    chosen = {}
    for name, document in dashboards():
        variables = {variable["name"]: variable for variable in document["templating"].get("list", [])}
        asked = " ".join(target["expr"] for panel in document["panels"] for target in panel.get("targets", []))
        used = set(re.findall(r"\$([a-z][a-z_]*)", asked))
        assert used == set(variables), name
        chosen[name] = used
    assert chosen["visitors"] >= {"window", "site", "camera"}
    assert chosen["cameras"] == {"site", "camera"}
    assert Settings().aggregator.windows == WINDOWS


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
    assert "SUCCESS" in promtool("check", "config", str(CONFIGURATION))


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
        store = self.store = MemoryStore(retentions(windows))
        changes = Changes()
        for cell in (Cell("female", "25-34", "asian"), Cell("male", "65+", "black"), UNKNOWN_CELL):
            place = PlaceCell("museum", "hall", cell)
            changes.counted[(time.time() - 5, place)] += 1
            changes.totals[place] += 1
        changes.cameras["hall"] = CameraStatus(
            camera_id="hall", site="museum", at=time.time() + 3600, state="running", fps=25
        )
        self.revision = 1
        assert store.apply(0, changes, start=None, end=Position(3, self.revision))
        self.telemetry = Telemetry(["ingest", "inference", "aggregator"])
        self.telemetry.collect_with(VisitorsCollector(store, windows, self.telemetry))
        app = make_app("test", self.telemetry.registry, list)
        self.servers = [HttpServer(app, host="127.0.0.1", port=0) for _ in range(2)]
        for server in self.servers:
            server.start()

    def tick(self) -> None:
        """Let something of everything happen; passages lie in the store."""
        passed = Changes()
        passed.passages["x", "museum", "hall", "in"] += 2
        passed.passages["x", "museum", "hall", "out"] += 1
        passed.passages["d", "museum", "hall", "20"] += 3
        passed.passages["t", "museum", "hall", "ms"] += 45_000
        start, self.revision = Position(3, self.revision), self.revision + 1
        assert self.store.apply(0, passed, start=start, end=Position(3, self.revision))
        self.telemetry.introduce_camera("museum", "hall")
        values = {"site": "museum", "camera": "hall", "topic": "predictions", "partition": "0"}
        for metric in telemetry.declared():
            for reason in metric.reasons or ("",) if not metric.collected else ():
                labels = {label: values.get(label, reason) for label in metric.labels}
                if metric is telemetry.TOPIC_RETENTION:  # what is promised of one topic only
                    labels["topic"] = FACE_CROPS
                if metric.kind == "counter":
                    self.telemetry.add(metric, **labels)
                elif metric.kind == "gauge":
                    self.telemetry.set(metric, 1, **labels)
                else:
                    self.telemetry.observe(metric, metric.buckets[1], **labels)

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
def prometheus(watched: Watched, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusServer]:
    """Run a real Prometheus with the product's own rules on it, every second instead of every ten."""
    targets = [server.url.removeprefix("http://") for server in watched.servers]
    history = week_before("museum", "hall")
    with PrometheusServer({"aggregator": targets}, tmp_path_factory.mktemp("prometheus"), history=history) as server:
        yield server


def test_every_panel_has_data_on_a_running_system(prometheus: PrometheusServer, watched: Watched) -> None:
    """A panel that stays empty is a mistake in its query, in a rule or in a metric."""
    waiting = dict(expressions())
    deadline = time.monotonic() + 60
    while waiting and time.monotonic() < deadline:
        watched.tick()
        time.sleep(1)
        waiting = {name: query for name, query in waiting.items() if not has_data(prometheus, query)}
    assert waiting == {}


def test_two_aggregators_count_nobody_twice(prometheus: PrometheusServer) -> None:
    """Both export the three visitors; the dashboards show three."""
    windows = ("15m", "1h")

    def shown() -> bool:
        figures = [prometheus.value(f'sum(demographics:visitors{{window="{window}"}})') for window in windows]
        return prometheus.value('count(demographics_visitors{window="1h"})') == 6 and all(figures)

    wait_until(shown, timeout_s=60, what="both aggregators scraped")
    assert [prometheus.value(f'sum(demographics:visitors{{window="{window}"}})') for window in windows] == [3, 3]
    assert prometheus.value("sum(demographics:visitors_total:by_camera)") == 3


def test_the_hours_of_the_week_are_a_full_table(prometheus: PrometheusServer) -> None:
    """Seven days of twenty-four hours, each with what was counted in it: nights empty, noons busy."""
    (heat,) = [expression for name, expression in expressions() if "By hour" in name]
    cells = {(s["metric"]["day"], s["metric"]["hour"]): float(s["value"][1]) for s in prometheus.query(heat)}
    days, hours = {day for day, _ in cells}, {hour for _, hour in cells}
    assert (days, hours) == ({str(day) for day in range(1, 8)}, {f"{hour:02}" for hour in range(24)})
    noons, nights = [cells[day, "13"] for day in days if (day, "13") in cells], [cells[day, "02"] for day in days]
    assert min(noons) > max(nights)
    assert max(noons) == pytest.approx(40, abs=5)


def test_the_dashboards_can_be_drawn_for_the_documentation(prometheus: PrometheusServer, tmp_path: Path) -> None:
    """Each kind of panel that there is, from what Prometheus answers."""
    render_all(prometheus.url, tmp_path, span_s=60)
    for name in DASHBOARDS:
        assert (tmp_path / f"dashboard-{name}.png").stat().st_size > 20_000
