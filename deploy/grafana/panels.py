"""The kinds of panel that the dashboards are made of, with the looks that they share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from grafana_foundation_sdk.builders import (
    barchart,
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models import heatmap as heat
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from pipeline.attributes import UNKNOWN

SOURCE: Final = DataSourceRef(type_val="prometheus", uid="demographics-prometheus")

# Blue and orange can be told apart with every kind of colour vision; the live page uses the same.
COLOURS: Final = {"male": "#2a6fc9", "female": "#e08a1e", UNKNOWN: "#8591a1"}
ACCENT: Final = "#1f9e94"
BAD: Final = "#d64550"
WAIT: Final = "#d9a514"
GOOD: Final = ACCENT

PLACE: Final = 'site=~"$site",camera=~"$camera"'
NOW: Final = f'window="$window",{PLACE}'

Graph = (
    timeseries.Panel | stat.Panel | bargauge.Panel | barchart.Panel | statetimeline.Panel | table.Panel | heatmap.Panel
)


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


def states(
    title: str, expression: str, names: Iterable[tuple[str, str]], about: str, *, width: int
) -> statetimeline.Panel:
    """Show which of *names* (each with its colour) every series was in; the first is 1, the next 2, and so on."""
    options = {
        str(number): ValueMappingResult(text=name.replace("_", " "), color=colour, index=number)
        for number, (name, colour) in enumerate(names, start=1)
    }
    return (
        statetimeline.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .with_target(query(expression, "{{camera}}"))
        .mappings([ValueMap(options=options)])
        .merge_values(merge_values=True)
        .show_value(shapes.VisibilityMode.NEVER)
        .legend(legend())
        .height(8)
        .span(width)
    )


def distribution(title: str, buckets: str, about: str, *, unit: str = "short", width: int = 12) -> heatmap.Panel:
    """Draw how a histogram's samples spread over its bounds, and how that changes."""
    return (
        heatmap.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .with_target(
            query(f"sum by (le) (increase({buckets}[$__rate_interval]))", "{{le}}").format(PromQueryFormat.HEATMAP)
        )
        .calculate(calculate=False)
        .color(heatmap.HeatmapColorOptions().mode(heat.HeatmapColorMode.SCHEME).scheme("Blues").steps(32))
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .height(8)
        .span(width)
    )


def matrix(row: str, column: str) -> DataTransformerConfig:
    """Turn one line a pair of labels into a table with a column for each value of *column*."""
    options = {"rowField": row, "columnField": column, "valueField": "Value", "emptyValue": "zero"}
    return DataTransformerConfig(id_val="groupingToMatrix", options=options)


def ordered(field: str, *, descending: bool = False) -> DataTransformerConfig:
    """Sort by a field: Prometheus gives an instant's series in no order."""
    return DataTransformerConfig(
        id_val="sortBy", options={"fields": {}, "sort": [{"field": field, "desc": descending}]}
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
