"""The dashboards, as code: `python -m deploy.grafana.dashboards` writes dashboards/*.json, which Grafana is provisioned with.

Queries read the recording rules (deploy/prometheus/rules), which take each count once however many aggregators export it.
The data source is named by its fixed uid, so that nothing has to be chosen by hand. A test fails when the files are stale,
when an expression does not parse, and when a panel has no data on a running system.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.builders import (
    barchart,
    bargauge,
    common,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    timeseries,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
    VariableModel,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from pipeline.attributes import GENDERS, UNKNOWN

FOLDER: Final = Path(__file__).parent / "dashboards"
SOURCE: Final = DataSourceRef(type_val="prometheus", uid="demographics-prometheus")
WINDOWS: Final = ("1m", "5m", "15m", "1h", "24h")  # the default of DEMOGRAPHICS_AGGREGATOR__WINDOWS
SHOWN_FIRST: Final = "15m"

# Blue and orange can be told apart with every kind of colour vision; the live page uses the same.
COLOURS: Final = {"male": "#2a6fc9", "female": "#e08a1e", UNKNOWN: "#8591a1"}
ACCENT: Final = "#1f9e94"
BAD: Final = "#d64550"

PLACE: Final = 'site=~"$site",camera=~"$camera"'
NOW: Final = f'window="$window",{PLACE}'

Graph = timeseries.Panel | stat.Panel | bargauge.Panel | barchart.Panel | statetimeline.Panel


def query(
    expression: str, legend: str = "", *, instant: bool = False, table: bool = False, ref: str = "A"
) -> prometheus.Dataquery:
    """Ask Prometheus; at one moment, or over the dashboard's time."""
    made = prometheus.Dataquery().expr(expression).legend_format(legend or "__auto").ref_id(ref).datasource(SOURCE)
    if table:
        made = made.format(PromQueryFormat.TABLE)
    return made.instant() if instant else made.range()


def thresholds(*steps: tuple[float | None, str]) -> dashboard.ThresholdsConfig:
    """Colour from a value on; the first holds from below."""
    return (
        dashboard.ThresholdsConfig()
        .mode(ThresholdsMode.ABSOLUTE)
        .steps([Threshold(value=value, color=color) for value, color in steps])
    )


def fixed(colour: str) -> dashboard.FieldColor:
    """Use one colour."""
    return dashboard.FieldColor().mode(FieldColorModeId.FIXED).fixed_color(colour)


def coloured(name: str) -> tuple[str, list[DynamicConfigValue]]:
    """Give a series by name its colour."""
    return name, [DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": COLOURS[name]})]


def last() -> common.ReduceDataOptions:
    """Show the newest value."""
    return common.ReduceDataOptions().calcs(["lastNotNull"]).values(values=False)


def legend() -> common.VizLegendOptions:
    """Name the series below the graph."""
    return (
        common.VizLegendOptions()
        .display_mode(shapes.LegendDisplayMode.LIST)
        .placement(shapes.LegendPlacement.BOTTOM)
        .show_legend(show_legend=True)
    )


def number(
    title: str, expression: str, about: str, *, unit: str = "short", decimals: float = 0, width: int = 4
) -> stat.Panel:
    """Show one large number and its course."""
    return (
        stat.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .with_target(query(expression, title))
        .unit(unit)
        .decimals(decimals)
        .color_scheme(fixed(ACCENT))
        .color_mode(shapes.BigValueColorMode.VALUE)
        .graph_mode(shapes.BigValueGraphMode.AREA)
        .reduce_options(last())
        .height(4)
        .span(width)
    )


def lines(
    title: str, targets: Iterable[prometheus.Dataquery], about: str, *, unit: str = "short", width: int = 8
) -> timeseries.Panel:
    """Draw series over time."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .line_width(2)
        .fill_opacity(8)
        .show_points(shapes.VisibilityMode.NEVER)
        .legend(legend())
        .tooltip(common.VizTooltipOptions().mode(shapes.TooltipDisplayMode.MULTI).sort(shapes.SortOrder.DESCENDING))
        .height(8)
        .span(width)
    )
    for target in targets:
        panel = panel.with_target(target)
    return panel


def stacked(panel: timeseries.Panel) -> timeseries.Panel:
    """Stack the series: together they are everybody."""
    return panel.stacking(common.StackingConfig().mode(shapes.StackingMode.NORMAL)).fill_opacity(35)


def bars(title: str, expression: str, by: str, about: str, *, unit: str = "short", width: int = 6) -> bargauge.Panel:
    """Show one bar for each value of a label, as it is now."""
    return (
        bargauge.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .with_target(query(expression, "{{" + by + "}}", instant=True))
        .unit(unit)
        .min(0)
        .color_scheme(fixed(ACCENT))
        .orientation(shapes.VizOrientation.HORIZONTAL)
        .display_mode(shapes.BarGaugeDisplayMode.BASIC)
        .value_mode(shapes.BarGaugeValueMode.TEXT)
        .show_unfilled(show_unfilled=True)
        .reduce_options(last())
        .height(9)
        .span(width)
    )


def quantiles(rates: str) -> list[prometheus.Dataquery]:
    """Ask for the median and the slow end of a histogram's recorded rates."""
    return [
        query(f"histogram_quantile({q}, {rates})", name, ref=ref)
        for ref, name, q in (
            ("A", "half are faster", 0.5),
            ("B", "95 in 100 are faster", 0.95),
            ("C", "99 in 100 are faster", 0.99),
        )
    ]


# --- the rows --------------------------------------------------------------------------------------------------------------


def visitor_panels() -> list[Graph]:
    """Say who came."""
    ever = f"demographics:visitors_total:by_camera{{{PLACE}}}"
    today = f"{ever} - min_over_time({ever}[$__range])"
    unknown = f'sum(demographics:visitors{{{NOW},gender="{UNKNOWN}"}}) or vector(0)'
    pyramid = (
        barchart.Panel()
        .title("Age and gender, last $window")
        .description("Visitors by age band. Men left in the pair, women right.")
        .datasource(SOURCE)
        .with_target(
            query(
                f'sum by (age_band, gender) (demographics:visitors{{{NOW},gender!="{UNKNOWN}",age_band!="{UNKNOWN}"}})',
                instant=True,
                table=True,
            )
        )
        .with_transformation(
            DataTransformerConfig(
                id_val="groupingToMatrix",
                options={"rowField": "age_band", "columnField": "gender", "valueField": "Value", "emptyValue": "zero"},
            )
        )
        .x_field("age_band\\gender")
        .orientation(shapes.VizOrientation.HORIZONTAL)
        .show_value(shapes.VisibilityMode.ALWAYS)
        .fill_opacity(100)
        .line_width(0)
        .group_width(0.8)
        .bar_width(0.95)
        .legend(legend())
        .unit("short")
        .decimals(0)
        .height(9)
        .span(9)
    )
    over_time = stacked(
        lines(
            "Visitors over time, last $window at each moment",
            [query(f"sum by (gender) (demographics:visitors{{{NOW}}})", "{{gender}}")],
            "How many were first seen within the window, at every moment.",
            width=24,
        )
    )
    for name in (*GENDERS, UNKNOWN):
        pyramid = pyramid.override_by_name(*coloured(name))
        over_time = over_time.override_by_name(*coloured(name))
    return [
        number(
            "Now, last $window",
            f"sum(demographics:visitors{{{NOW}}}) or vector(0)",
            "Visitors first seen within the chosen window.",
            width=6,
        ).color_mode(shapes.BigValueColorMode.BACKGROUND_SOLID),
        number("Today", f"sum({today})", "Visitors whose passage has ended since midnight.", width=6).time_from(
            "now/d"
        ),
        number(
            "All time",
            f"sum({ever})",
            "Visitors whose passage has ended, ever.",
            width=6,
        ),
        number(
            "Share unknown",
            f"({unknown}) / clamp_min(sum(demographics:visitors{{{NOW}}}), 1)",
            "Of the visitors in the window, those of whom too little was seen. They are counted, not guessed.",
            unit="percentunit",
            width=6,
        ),
        pyramid,
        bars(
            "Ethnicity, last $window",
            f'sum by (ethnicity) (demographics:visitors_by_ethnicity{{{NOW},ethnicity!="{UNKNOWN}"}})'
            f' / ignoring (ethnicity) group_left sum(demographics:visitors_by_ethnicity{{{NOW},ethnicity!="{UNKNOWN}"}})',
            "ethnicity",
            "Shares as a model estimates them. Empty where the deployment does not compute ethnicity.",
            unit="percentunit",
            width=7,
        ).max(1),
        bars(
            "By camera, last $window",
            f"sort_desc(sum by (camera) (demographics:visitors{{{NOW}}}))",
            "camera",
            "Visitors before each camera.",
            width=8,
        ),
        over_time,
    ]


def camera_panels() -> list[Graph]:
    """Say how the cameras do."""
    up = f"demographics:camera_up{{{PLACE}}}"
    states = (
        statetimeline.Panel()
        .title("Up and down")
        .description("When each camera delivered frames.")
        .datasource(SOURCE)
        .with_target(query(up, "{{camera}}"))
        .mappings(
            [
                ValueMap(
                    options={
                        "1": ValueMappingResult(text="up", color=ACCENT, index=0),
                        "0": ValueMappingResult(text="down", color=BAD, index=1),
                    }
                ),
            ]
        )
        .merge_values(merge_values=True)
        .show_value(shapes.VisibilityMode.NEVER)
        .legend(legend())
        .height(8)
        .span(16)
    )
    return [
        number("Cameras up", f"sum({up})", "Cameras that deliver frames.", width=4).height(8),
        number("Cameras down", f"count({up}) - sum({up})", "Cameras that deliver none.", width=4)
        .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.THRESHOLDS))
        .thresholds(thresholds((None, ACCENT), (1, BAD)))
        .height(8),
        states,
        lines(
            "Frames per second",
            [query(f"demographics:camera_fps{{{PLACE}}}", "{{camera}}")],
            "What each camera delivers.",
        ),
        lines(
            "Reconnects and failures, a minute",
            [
                query(
                    f"60 * sum by (camera) (rate(demographics_camera_reconnects_total{{{PLACE}}}[$__rate_interval]))",
                    "{{camera}} again",
                ),
                query(
                    f"60 * sum by (camera, reason) (rate(demographics_camera_failures_total{{{PLACE}}}[$__rate_interval]))",
                    "{{camera}} {{reason}}",
                    ref="B",
                ),
            ],
            "Connections made again, and connections that failed or were lost, by reason.",
        ),
        lines(
            "Drops and rejects by reason, a second",
            [
                query(
                    f"sum by (reason) (rate(demographics_drops_total{{{PLACE}}}[$__rate_interval]))",
                    "dropped: {{reason}}",
                ),
                query(
                    f"sum by (reason) (rate(demographics_rejects_total{{{PLACE}}}[$__rate_interval]))",
                    "rejected: {{reason}}",
                    ref="B",
                ),
            ],
            "Dropped: lost on purpose, such as a frame that a newer one replaced. Rejected: not good enough to be used.",
        ),
    ]


def pipeline_panels() -> list[Graph]:
    """Say how the pipeline does."""
    return [
        lines(
            "From capture to count",
            quantiles("demographics:capture_to_count_seconds_bucket:rate5m"),
            "Seconds from the frame to the count, of predictions applied in the last five minutes.",
            unit="s",
        ),
        lines(
            "Lag by topic",
            [query("demographics:consumer_lag:by_topic", "{{topic}}")],
            "Records that have not been read yet.",
        ),
        lines(
            "Dead letters, a minute",
            [query("60 * sum by (reason) (rate(demographics_dead_letters_total[$__rate_interval]))", "{{reason}}")],
            "Records that will never decode. Each lies in the topic dead-letters with its reason and where it came from.",
        ),
        lines(
            "One pass of the network",
            quantiles("demographics:inference_seconds_bucket:rate5m"),
            "Seconds for one batch of face crops.",
            unit="s",
        ),
        lines(
            "Batch fill",
            [
                query(
                    "sum(rate(demographics_batch_crops_sum[$__rate_interval]))"
                    " / sum(rate(demographics_batch_crops_count[$__rate_interval]))",
                    "face crops in one pass",
                )
            ],
            "Face crops that share one pass of the network, on average.",
        ),
        lines(
            "Throughput, a second",
            [
                query("sum(rate(demographics_crops_total[$__rate_interval]))", "face crops published", ref="A"),
                query("sum(rate(demographics_predictions_total[$__rate_interval]))", "face crops predicted", ref="B"),
                query("sum(rate(demographics_applied_total[$__rate_interval]))", "records applied", ref="C"),
            ],
            "What goes through each part.",
        ),
        lines(
            "Trouble with Kafka and Redis, a minute",
            [
                query(
                    "60 * sum(rate(demographics_bus_failures_total[$__rate_interval]))",
                    "calls that Kafka did not answer",
                    ref="A",
                ),
                query(
                    "60 * sum(rate(demographics_store_failures_total[$__rate_interval]))",
                    "calls that Redis did not answer",
                    ref="B",
                ),
            ],
            "Each is repeated until it is answered.",
        ),
        lines(
            "Tracks that have not ended",
            [query("sum(demographics_open_tracks)", "open tracks")],
            "People who are before a camera now, and those of whom nothing was heard for less than a minute.",
        ),
        lines(
            "Repeated and late, a minute",
            [
                query("60 * sum(rate(demographics_duplicates_total[$__rate_interval]))", "known already", ref="A"),
                query(
                    "60 * sum(rate(demographics_late_total[$__rate_interval]))", "before the longest window", ref="B"
                ),
            ],
            "Predictions that were known already, after a restart for instance, and visitors too old for every window.",
        ),
    ]


# --- the dashboards ----------------------------------------------------------------------------------------------------------


def variables() -> list[Builder[VariableModel]]:
    """Let the viewer choose the window, the sites and the cameras."""

    def labels(name: str, label: str, ask: str) -> dashboard.QueryVariable:
        return (
            dashboard.QueryVariable(name)
            .label(label)
            .datasource(SOURCE)
            .query({"query": ask, "refId": name})
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.ALPHABETICAL_ASC)
            .multi(multi=True)
            .include_all(include_all=True)
            .all_value(".*")
            .current(VariableOption(text="All", value="$__all", selected=True))
        )

    window = (
        dashboard.CustomVariable("window")
        .label("Window")
        .values(",".join(WINDOWS))
        .options([VariableOption(text=name, value=name, selected=name == SHOWN_FIRST) for name in WINDOWS])
        .current(VariableOption(text=SHOWN_FIRST, value=SHOWN_FIRST, selected=True))
        .multi(multi=False)
        .include_all(include_all=False)
    )
    return [
        window,
        labels("site", "Site", "label_values(demographics:camera_up, site)"),
        labels("camera", "Camera", 'label_values(demographics:camera_up{site=~"$site"}, camera)'),
    ]


def visitors() -> dashboard.Dashboard:
    """Make the dashboard that the operator looks at first."""
    made = (
        dashboard.Dashboard("Visitors")
        .uid("demographics-visitors")
        .description("Who comes in, how the cameras do, and how the pipeline does. No pictures are kept.")
        .tags(["demographics"])
        .readonly()
        .timezone("browser")
        .time("now-6h", "now")
        .refresh("10s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .variables(variables())
    )
    number_of = count(1)
    for title, panels in (
        ("Visitors", visitor_panels()),
        ("Cameras", camera_panels()),
        ("Pipeline", pipeline_panels()),
    ):
        made = made.with_row(dashboard.Row(title).id(next(number_of)))
        for panel in panels:
            made = made.with_panel(panel.id(next(number_of)))
    return made


DASHBOARDS: Final[Mapping[str, Callable[[], dashboard.Dashboard]]] = {"visitors": visitors}


def rendered() -> dict[Path, str]:
    """Give every file as it should be, by its path."""
    return {
        FOLDER / f"{name}.json": json.dumps(make().build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"
        for name, make in DASHBOARDS.items()
    }


def stale() -> list[Path]:
    """List the files that are not as they should be."""
    files = rendered()
    kept = {path: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    return sorted(path for path in files.keys() | kept.keys() if files.get(path) != kept.get(path))


def main() -> int:
    """Write the dashboards, or say which are stale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; say which files are stale")
    if parser.parse_args().check:
        wrong = stale()
        for path in wrong:
            sys.stderr.write(f"{path}: stale; run `python -m deploy.grafana.dashboards`\n")
        return 1 if wrong else 0
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.glob("*.json"):
        path.unlink()
    for path, text in rendered().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
