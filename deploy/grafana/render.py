"""Pictures of the dashboards for the documentation: `python -m deploy.grafana.render http://127.0.0.1:9090 FOLDER`.

These are renderings, not screenshots: no Grafana takes part. Each panel's own queries are asked of a real Prometheus, and the
answers drawn where the dashboard's layout places the panel, with its title, unit, colours and names of series. What only
Grafana has (hovering, links, its own look) is not there. To see the real thing: `docker compose up`, http://localhost:3000.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from deploy.grafana.dashboards import DAYS, FOLDER, SHOWN_FIRST

UNIT_PX: Final = (64, 34)  # of the grid: 24 columns make the width
PALETTE: Final = ("#2a6fc9", "#e08a1e", "#1f9e94", "#8a5bc7", "#c0467b", "#5c8a2d", "#8591a1", "#b0741c")
INK: Final = "#131a22"
MUTED: Final = "#566272"
STEPS: Final = 240
LEGEND_ROWS: Final = 2

Series = tuple[str, list[tuple[float, float]]]


class Source:
    """A Prometheus, asked for what a panel asks."""

    def __init__(self, url: str, span_s: float) -> None:
        self._url = url
        self.span_s = span_s
        self.now = time.time()

    def _get(self, path: str, **parameters: str) -> list[dict[str, Any]]:
        address = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(address, timeout=60) as answer:  # noqa: S310  the operator names it
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found

    def _filled(self, expression: str, range_s: float) -> str:
        step = max(self.span_s / STEPS, 1)
        values = {
            "$window": SHOWN_FIRST, "$site": ".*", "$camera": ".*", "$utc_offset": "0",
            "$__rate_interval": f"{max(30, math.ceil(4 * step))}s", "$__range": f"{math.ceil(range_s)}s",
        }  # fmt: skip
        for name, value in values.items():
            expression = expression.replace(name, value)
        return expression

    def series(self, target: dict[str, Any], *, range_s: float, over_time: bool) -> list[Series]:
        """Ask one query of a panel: at one moment, or over the shown time."""
        expression = self._filled(target["expr"], range_s)
        if over_time:
            step = max(self.span_s / STEPS, 1)
            found = self._get(
                "query_range", query=expression, start=str(self.now - self.span_s), end=str(self.now), step=str(step)
            )
            return [(_name(target, one["metric"]), [(float(t), float(v)) for t, v in one["values"]]) for one in found]
        found = self._get("query", query=expression, time=str(self.now))
        return [(_name(target, one["metric"]), [(float(one["value"][0]), float(one["value"][1]))]) for one in found]

    def table(self, target: dict[str, Any], *, range_s: float) -> list[tuple[dict[str, str], float]]:
        """Ask a query for its labels and values."""
        found = self._get("query", query=self._filled(target["expr"], range_s), time=str(self.now))
        return [(one["metric"], float(one["value"][1])) for one in found]


def _name(target: dict[str, Any], labels: dict[str, str]) -> str:
    form = target.get("legendFormat", "__auto")
    if form == "__auto":
        return ", ".join(value for key, value in labels.items() if key != "__name__") or target["expr"][:40]
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: labels.get(found[1], ""), form)


def _written(value: float, unit: str, decimals: int | None) -> str:
    if math.isnan(value):
        return "–"
    if unit == "percentunit":
        return f"{100 * value:.{decimals or 0}f}%"
    if unit == "s":
        for size, name in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
            if value >= 2 * size or size == 1:
                return (
                    f"{value / size:.{1 if value / size < 100 else 0}f} {name}"
                    if value >= 1
                    else f"{1000 * value:.0f} ms"
                )
    digits = decimals if decimals is not None else 0 if value == int(value) or value >= 100 else 2
    return f"{value:,.{digits}f}" + (" px" if unit == "pixel" else "")


def _unit(panel: dict[str, Any]) -> tuple[str, int | None]:
    defaults = panel["fieldConfig"]["defaults"]
    decimals = defaults.get("decimals")
    return defaults.get("unit", "short"), None if decimals is None else int(decimals)


def _colour(panel: dict[str, Any], name: str, number: int) -> str:
    for override in panel["fieldConfig"].get("overrides", []):
        for wanted in override["properties"]:
            if override["matcher"].get("options") == name and wanted["id"] == "color":
                return str(wanted["value"]["fixedColor"])
    return PALETTE[number % len(PALETTE)]


# --- the kinds of panel ------------------------------------------------------------------------------------------------------


def _stat(axes: Axes, panel: dict[str, Any], source: Source, range_s: float) -> None:
    axes.axis("off")
    (series, *_) = source.series(panel["targets"][0], range_s=range_s, over_time=False) or [("", [(0.0, math.nan)])]
    value = series[1][0][1]
    defaults = panel["fieldConfig"]["defaults"]
    steps = defaults.get("thresholds", {}).get("steps") or []
    colour = defaults.get("color", {}).get("fixedColor") or next(
        (s["color"] for s in reversed(steps) if s.get("value") is None or value >= s["value"]), INK
    )
    solid = panel["options"].get("colorMode") == "background_solid"
    if solid:
        axes.add_patch(Rectangle((0, 0), 1, 1, color=colour, transform=axes.transAxes))
    size = 30 if panel["gridPos"]["w"] > 3 else 26
    axes.text(0.5, 0.45, _written(value, *_unit(panel)), ha="center", va="center", transform=axes.transAxes,
              fontsize=size, fontweight="bold", color="white" if solid else colour)  # fmt: skip


def _timeseries(axes: Axes, panel: dict[str, Any], source: Source, range_s: float) -> None:
    series = [one for target in panel["targets"] for one in source.series(target, range_s=range_s, over_time=True)]
    custom = panel["fieldConfig"]["defaults"].get("custom", {})
    stacking = custom.get("stacking", {}).get("mode") == "normal"
    if stacking and series:
        times = sorted({at for _, points in series for at, _ in points})
        rows = [[dict(points).get(at, 0.0) for at in times] for _, points in series]
        colours = [_colour(panel, name, number) for number, (name, _) in enumerate(series)]
        axes.stackplot(
            [_when(at) for at in times], rows, labels=[name for name, _ in series], colors=colours, alpha=0.75
        )
    else:
        for number, (name, points) in enumerate(series):
            axes.plot([_when(at) for at, _ in points], [value for _, value in points], label=name, lw=1.6,
                      color=_colour(panel, name, number), ls="--" if "earlier" in name else "-")  # fmt: skip
    axes.set_xlim(mpl.dates.date2num(_when(source.now - source.span_s)), mpl.dates.date2num(_when(source.now)))
    _scales(axes, panel)
    if "max" in panel["fieldConfig"]["defaults"]:
        axes.set_ylim(0, panel["fieldConfig"]["defaults"]["max"] * 1.04)
    else:
        axes.set_ylim(bottom=0)
    if series:
        most = max(len(name) for name, _ in series)
        columns = min(len(series), max(1, int(panel["gridPos"]["w"] * 9 / (most + 7))))
        handles, names = axes.get_legend_handles_labels()
        shown = range(len(names))
        if len(names) > (
            fit := LEGEND_ROWS * columns
        ):  # Grafana would scroll: name those that are highest, count the rest
            peaks = [max((value for _, value in points), default=0.0) for _, points in series]
            shown = sorted(sorted(shown, key=lambda number: -peaks[number])[: fit - 1])
            handles, names = [*handles, Rectangle((0, 0), 0, 0, alpha=0)], [*names, f"and {len(names) - fit + 1} more"]
            shown = [*shown, len(names) - 1]
        axes.legend(
            [handles[number] for number in shown], [names[number] for number in shown], fontsize=7, loc="upper center",
            bbox_to_anchor=(0.5, -0.12), ncols=columns, frameon=False, labelcolor=MUTED, handlelength=1.2, columnspacing=1.2,
            labelspacing=0.2, borderpad=0,
        )  # fmt: skip


def _bargauge(axes: Axes, panel: dict[str, Any], source: Source, range_s: float) -> None:
    series = source.series(panel["targets"][0], range_s=range_s, over_time=False)
    values = [points[0][1] for _, points in series]
    places = range(len(series), 0, -1)
    most = panel["fieldConfig"]["defaults"].get("max") or max([*values, 1])
    axes.barh(places, [most] * len(series), color="#eef1f5", height=0.6)
    axes.barh(places, values, color="#1f9e94", height=0.6)
    for place, (name, points) in zip(places, series, strict=True):
        axes.text(0, place + 0.36, name, fontsize=8, color=MUTED, va="bottom")
        axes.text(
            most,
            place + 0.36,
            _written(points[0][1], *_unit(panel)),
            fontsize=9,
            fontweight="bold",
            ha="right",
            va="bottom",
        )
    axes.set_xlim(0, most)
    axes.set_ylim(0.4, len(series) + 1.0)
    axes.axis("off")


def _barchart(axes: Axes, panel: dict[str, Any], source: Source, range_s: float) -> None:
    rows = source.table(panel["targets"][0], range_s=range_s)
    bands = sorted({labels["age_band"] for labels, _ in rows})
    sides = sorted({labels["gender"] for labels, _ in rows}, reverse=True)
    counts = {(labels["age_band"], labels["gender"]): value for labels, value in rows}
    for number, side in enumerate(sides):
        values = [counts.get((band, side), 0.0) for band in bands]
        places = np.arange(len(bands)) + 0.4 * (0.5 - number)
        axes.barh(places, values, height=0.38, color=_colour(panel, side, number), label=side)
        for place, value in zip(places, values, strict=True):
            axes.text(value, place, f" {value:.0f}", va="center", fontsize=8)
    axes.set_yticks(range(len(bands)), bands)
    _scales(axes, panel, time_axis=False)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=2, frameon=False, labelcolor=MUTED)


def _states(axes: Axes, panel: dict[str, Any], source: Source, range_s: float) -> None:
    series = sorted(source.series(panel["targets"][0], range_s=range_s, over_time=True), reverse=True)
    options = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]
    seen: dict[str, str] = {}
    by_camera: dict[str, list[tuple[float, float]]] = {}
    for name, points in series:
        by_camera.setdefault(name, []).extend(points)
    step = max(source.span_s / STEPS, 1)
    for row, points in enumerate(by_camera.values()):
        for at, value in points:
            state = options[str(int(value))]
            seen[state["text"]] = state["color"]
            axes.barh(row, step / 86400 * 1.05, left=mpl.dates.date2num(_when(at)), height=0.7, color=state["color"])
    axes.set_yticks(range(len(by_camera)), list(by_camera))
    axes.set_xlim(mpl.dates.date2num(_when(source.now - source.span_s)), mpl.dates.date2num(_when(source.now)))
    _scales(axes, panel, grid=False)
    axes.legend([Rectangle((0, 0), 1, 1, color=colour) for colour in seen.values()], list(seen), fontsize=8, frameon=False,
                loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=len(seen) or 1, labelcolor=MUTED)  # fmt: skip


def _table(axes: Axes, panel: dict[str, Any], source: Source, range_s: float) -> None:
    rows = source.table(panel["targets"][0], range_s=range_s)
    cells = np.full((7, 24), np.nan)
    for labels, value in rows:
        cells[int(labels["day"]) - 1, int(labels["hour"])] = value
    axes.imshow(cells, aspect="auto", cmap="Blues")
    most = np.nanmax(cells) if rows else 1
    for (day, hour), value in np.ndenumerate(cells):
        if not math.isnan(value):
            axes.text(
                hour,
                day,
                f"{value:.0f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if value > 0.6 * most else INK,
            )
    axes.set_yticks(range(7), DAYS)
    axes.set_xticks(range(24), [f"{hour:02}" for hour in range(24)])
    axes.tick_params(length=0, labelsize=8, labelcolor=MUTED, top=True, labeltop=True, bottom=False, labelbottom=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _heatmap(axes: Axes, panel: dict[str, Any], source: Source, range_s: float) -> None:
    series = source.series(panel["targets"][0], range_s=range_s, over_time=True)
    bounds = sorted((float(name), dict(points)) for name, points in series)
    times = sorted({at for _, points in bounds for at in points})
    cumulative = np.array([[points.get(at, 0.0) for at in times] for _, points in bounds] or [[0.0]])
    cells = np.diff(cumulative, axis=0, prepend=0)
    if times:
        edges = [mpl.dates.date2num(_when(at)) for at in times]
        axes.pcolormesh(edges, range(len(bounds)), cells, cmap="Blues", shading="nearest")
        axes.set_xlim(mpl.dates.date2num(_when(source.now - source.span_s)), mpl.dates.date2num(_when(source.now)))
        axes.xaxis_date()
    axes.set_yticks(
        range(len(bounds)),
        [_written(bound, _unit_of_axis(panel), None) if bound < math.inf else "more" for bound, _ in bounds],
    )
    _scales(axes, panel, grid=False, values=False)


def _unit_of_axis(panel: dict[str, Any]) -> str:
    return str(panel["options"].get("yAxis", {}).get("unit", "short"))


KINDS: Final[dict[str, Callable[[Axes, dict[str, Any], Source, float], None]]] = {
    "stat": _stat, "timeseries": _timeseries, "bargauge": _bargauge, "barchart": _barchart, "state-timeline": _states,
    "table": _table, "heatmap": _heatmap,
}  # fmt: skip


def _when(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def _scales(
    axes: Axes, panel: dict[str, Any], *, time_axis: bool = True, grid: bool = True, values: bool = True
) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c9d1da")
    axes.tick_params(length=0, labelsize=8, labelcolor=MUTED)
    if grid:
        axes.grid(axis="y" if time_axis else "x", color="#e1e6ec", lw=0.8)
        axes.set_axisbelow(True)
    if time_axis:
        _clock(axes)
        if values and grid:
            axes.yaxis.set_major_formatter(lambda value, _: _written(value, *_unit(panel)))


def _clock(axes: Axes) -> None:
    """Write five times or so under the graph, at full minutes, hours or days."""
    first, last = (bound * 86400 for bound in axes.get_xlim())
    paces = (15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
    pace = next((pace for pace in paces if (last - first) / pace <= 6), paces[-1])
    ticks = range(math.ceil(first / pace) * pace, math.floor(last) + 1, pace)
    form = "%H:%M" if pace % 60 == 0 else "%H:%M:%S"
    axes.set_xticks([mpl.dates.date2num(_when(at)) for at in ticks], [f"{_when(at):{form}}" for at in ticks])


# --- a whole dashboard -------------------------------------------------------------------------------------------------------


def render(document: dict[str, Any], source: Source, path: Path) -> None:
    """Draw one dashboard (as Grafana is given it) into *path*."""
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in document["panels"])
    width, height = 24 * UNIT_PX[0], (rows + 2) * UNIT_PX[1]
    figure = plt.figure(figsize=(width / 100, height / 100), dpi=100, facecolor="#f4f6f8")
    figure.text(14 / width, 1 - 24 / height, document["title"], fontsize=15, fontweight="bold", va="center", color=INK)
    stamp = f"a rendering of Prometheus' answers, no screenshot; {_when(source.now):%Y-%m-%d %H:%M} UTC"
    figure.text(1 - 14 / width, 1 - 24 / height, stamp, fontsize=9, ha="right", va="center", color=MUTED)
    for panel in document["panels"]:
        place = panel["gridPos"]
        left, top = place["x"] * UNIT_PX[0], (place["y"] + 1.5) * UNIT_PX[1]
        wide, high = place["w"] * UNIT_PX[0], place["h"] * UNIT_PX[1]
        if panel["type"] == "row":
            figure.text(
                (left + 14) / width,
                1 - (top + high / 2) / height,
                f"▾ {panel['title']}",
                fontsize=11,
                color=INK,
                va="center",
            )
            continue
        box = (left + 5, top + 4, wide - 10, high - 8)
        figure.add_artist(
            Rectangle((box[0] / width, 1 - (box[1] + box[3]) / height), box[2] / width, box[3] / height, facecolor="white",
                      edgecolor="#e1e6ec", transform=figure.transFigure, zorder=-1)
        )  # fmt: skip
        title = panel["title"].replace("$window", SHOWN_FIRST)
        figure.text(
            (box[0] + 9) / width,
            1 - (box[1] + 14) / height,
            title,
            fontsize=9.5,
            fontweight="bold",
            va="center",
            color=INK,
        )
        kind = panel["type"]
        flat = kind in {"stat", "bargauge"}
        inner = (
            box[0] + (10 if flat else 84 if kind == "table" else 70), box[1] + (26 if flat else 48 if kind == "table" else 32),
            box[2] - (20 if flat else 98 if kind == "table" else 84), box[3] - (34 if flat else 60 if kind == "table" else 84),
        )  # fmt: skip
        axes = figure.add_axes(
            (inner[0] / width, 1 - (inner[1] + inner[3]) / height, inner[2] / width, inner[3] / height),
            facecolor="white",
        )
        today = panel.get("timeFrom") == "now/d"
        KINDS[kind](axes, panel, source, source.now % 86400 if today else source.span_s)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def render_all(url: str, folder: Path, *, span_s: float = 600) -> None:
    """Draw every dashboard into *folder* as dashboard-NAME.png."""
    source = Source(url, span_s)
    for path in sorted(FOLDER.glob("*.json")):
        render(json.loads(path.read_text(encoding="utf-8")), source, folder / f"dashboard-{path.stem}.png")


def main() -> int:
    """Draw every dashboard."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prometheus", help="its address")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--minutes", type=float, default=360, help="how much time is shown (360)")
    arguments = parser.parse_args()
    render_all(arguments.prometheus, arguments.folder, span_s=60 * arguments.minutes)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
