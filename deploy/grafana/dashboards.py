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

from grafana_foundation_sdk.builders import barchart, dashboard, table
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DynamicConfigValue,
    FieldColorModeId,
    ValueMap,
    ValueMappingResult,
    VariableModel,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from aggregator.views import SILENT
from deploy.grafana.panels import (
    BAD,
    GOOD,
    NOW,
    PLACE,
    SOURCE,
    WAIT,
    Graph,
    bars,
    coloured,
    distribution,
    legend,
    lines,
    matrix,
    number,
    ordered,
    quantiles,
    query,
    stacked,
    states,
    thresholds,
)
from pipeline.attributes import GENDERS, SUPPRESSED, UNKNOWN
from pipeline.messages import CAMERA_STATES

FOLDER: Final = Path(__file__).parent / "dashboards"
WINDOWS: Final = ("1m", "5m", "15m", "1h", "24h")  # the default of DEMOGRAPHICS_AGGREGATOR__WINDOWS
SHOWN_FIRST: Final = "15m"
DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

Rows = Iterable[tuple[str, list[Graph]]]


# --- visitors --------------------------------------------------------------------------------------------------------------


def who_came() -> list[Graph]:
    """Say how many there are, and who."""
    ever = f"demographics:visitors_total:by_camera{{{PLACE}}}"
    unknown = f'sum(demographics:visitors{{{NOW},gender="{UNKNOWN}"}}) or vector(0)'
    untold = f"{UNKNOWN}|{SUPPRESSED}"
    known = f'gender!~"{untold}",age_band!~"{untold}"'
    pyramid = (
        barchart.Panel()
        .title("Age and gender, last $window")
        .description("The population pyramid: visitors by age band, a bar for men and one for women.")
        .datasource(SOURCE)
        .with_target(
            query(
                f"sum by (age_band, gender) (demographics:visitors{{{NOW},{known}}})"
                # A band in which nobody was seen within this window stays on the axis if somebody was within another.
                f" or 0 * sum by (age_band, gender) (demographics:visitors{{{PLACE},{known}}})",
                instant=True,
                table=True,
            )
        )
        .with_transformation(ordered("age_band", descending=True))
        .with_transformation(matrix("age_band", "gender"))
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
    for name in (*GENDERS, UNKNOWN):
        pyramid = pyramid.override_by_name(*coloured(name))
    return [
        number(
            "Now, last $window",
            f"sum(demographics:visitors{{{NOW}}}) or vector(0)",
            "Visitors first seen within the chosen window.",
            width=5,
        ).color_mode(shapes.BigValueColorMode.BACKGROUND_SOLID),
        number(
            "Today",
            f"sum({ever} - min_over_time({ever}[$__range]))",
            "Visitors whose passage has ended since midnight. Whoever is still in view is counted in Now already, and here once "
            "the passage has ended: so it may be below Now for a while.",
            width=5,
        ).time_from("now/d"),
        number(
            "The same day last week, up to now",
            f"sum(({ever} offset 7d) - min_over_time({ever}[$__range] offset 7d))",
            "Visitors from midnight to this time of day, seven days ago. Empty in the first week.",
            width=5,
        ).time_from("now/d"),
        number("All time", f"sum({ever})", "Visitors whose passage has ended, ever.", width=4),
        number(
            "Share unknown",
            f"({unknown}) / clamp_min(sum(demographics:visitors{{{NOW}}}), 1)",
            "Of the visitors in the window, those of whom too little was seen. They are counted, not guessed.",
            unit="percentunit",
            width=5,
        ),
        pyramid,
        bars(
            "Ethnicity, last $window",
            f'sum by (ethnicity) (demographics:visitors_by_ethnicity{{{NOW},ethnicity!~"{untold}"}})'
            f' / ignoring (ethnicity) group_left sum(demographics:visitors_by_ethnicity{{{NOW},ethnicity!~"{untold}"}})',
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
    ]


def when_they_came() -> list[Graph]:
    """Say how it changes over hours and days."""
    ever = f"demographics:visitors_total:by_camera{{{PLACE}}}"
    over_time = stacked(
        lines(
            "Visitors over time, last $window at each moment",
            [query(f"sum by (gender) (demographics:visitors{{{NOW}}})", "{{gender}}")],
            "How many were first seen within the window, at every moment.",
            width=12,
        )
    )
    for name in (*GENDERS, UNKNOWN):
        over_time = over_time.override_by_name(*coloured(name))
    return [
        over_time,
        lines(
            "Visitors an hour, against last week",
            [
                query(f"sum(increase({ever}[1h]))", "this week", ref="A"),
                query(f"sum(increase({ever}[1h] offset 7d))", "a week earlier", ref="B"),
            ],
            "Visitors whose passage ended within the hour before, now and seven days earlier.",
            width=12,
        ).override_by_name(
            "a week earlier", [DynamicConfigValue(id_val="custom.lineStyle", value={"fill": "dash", "dash": [8, 6]})]
        ),
        *how_they_passed(),
        by_hour(ever),
    ]


def how_they_passed() -> list[Graph]:
    """Say who is there, who crossed the lines, and how long they stayed."""
    crossings = f"sum by (direction) (increase(demographics:crossings_total{{{PLACE}}}[1h]))"
    dwell = f"sum by (le) (increase(demographics:dwell_seconds_bucket{{{PLACE}}}[1h]))"
    return [
        lines(
            "People in view",
            [query(f"sum by (camera) (demographics:present{{{PLACE}}})", "{{camera}}")],
            "Confirmed people before each camera, in its zone where it has one.",
        ),
        lines(
            "In and out, an hour",
            [query(crossings, "{{direction}}")],
            "Crossings of the cameras' lines within the hour before. Empty where no camera has a line.",
        ),
        lines(
            "Dwell",
            [
                query(f"histogram_quantile(0.5, {dwell})", "half stay shorter", ref="A"),
                query(f"histogram_quantile(0.9, {dwell})", "nine in ten stay shorter", ref="B"),
            ],
            "How long the visitors of the hour before were in the zone, or in view.",
            unit="s",
        ),
    ]


def by_hour(ever: str) -> table.Panel:
    """Show the last seven days as a table of days and hours, darker where more came."""
    local = "vector(time() - 1 + 3600 * $utc_offset)"  # a value at full hour speaks of the hour before
    expression = (
        "sum by (day, hour) (label_replace(label_replace(sum_over_time(("
        f'count_values("hour", hour({local})) * on () group_left (day) count_values("day", day_of_week({local}))'
        f" * scalar(sum(increase({ever}[1h])))"
        ')[7d:1h]), "hour", "0$1", "hour", "(.)"), "day", "7", "day", "0")) >= 0'
    )
    names = {str(number): ValueMappingResult(text=name, index=number) for number, name in enumerate(DAYS, start=1)}
    return (
        table.Panel()
        .title("By hour of the day, last seven days")
        .description("Visitors of each full hour, in hours from UTC as chosen above; darker where more came.")
        .datasource(SOURCE)
        .with_target(query(expression, instant=True, table=True))
        .with_transformation(ordered("hour"))
        .with_transformation(matrix("day", "hour"))
        .with_transformation(ordered("day\\hour"))
        .unit("short")
        .decimals(0)
        .min(0)
        .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.CONTINUOUS_BLUES))
        .override_by_field_type(
            "number",
            [
                DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-background", "mode": "basic"}),
                DynamicConfigValue(id_val="custom.minWidth", value=38),
            ],
        )
        .override_by_name(
            "day\\hour",
            [
                DynamicConfigValue(id_val="mappings", value=[ValueMap(options=names)]),
                DynamicConfigValue(id_val="displayName", value="Day"),
            ],
        )
        .height(9)
        .span(24)
    )


# --- cameras ---------------------------------------------------------------------------------------------------------------

_RESTING: Final = ("connecting", "ended", "paused")


def state_colour(state: str) -> str:
    """Green where it runs, yellow where it begins or has ended, red where somebody should look."""
    return GOOD if state == "running" else WAIT if state in _RESTING else BAD


def how_cameras_do() -> list[Graph]:
    """Say which run, and why the others do not."""
    kept = (*CAMERA_STATES, SILENT)
    numbered = " or ".join(
        f'max by (site, camera) (demographics:camera_state{{{PLACE},state="{state}"}}) * {number}'
        for number, state in enumerate(kept, start=1)
    )
    running = f'demographics:camera_state{{{PLACE},state="running"}}'
    every = f"demographics:camera_state{{{PLACE}}}"
    return [
        number("Running", f"count({running}) or vector(0)", "Cameras that deliver frames.", width=3).height(8),
        number(
            "Not running",
            f"count({every}) - (count({running}) or vector(0))",
            "Cameras that deliver none, for whatever reason.",
            width=3,
        )
        .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.THRESHOLDS))
        .thresholds(thresholds((None, GOOD), (1, BAD)))
        .height(8),
        states(
            "State",
            numbered,
            [(state, state_colour(state)) for state in kept],
            "Which state each camera was in; silent: its worker has said nothing for 15 seconds.",
            width=18,
        ),
        lines(
            "Frames per second",
            [query(f"demographics:camera_fps{{{PLACE}}}", "{{camera}}")],
            "What each camera delivers.",
        ),
        lines(
            "Share of frames dropped",
            [query(f"demographics:drop_share{{{PLACE}}}", "{{camera}}")],
            "Of the frames that should have been searched, those that are not, because the worker does not keep up.",
            unit="percentunit",
        ),
        lines(
            "Reconnects and failures, a minute",
            [
                query(
                    f"60 * sum(rate(demographics_camera_reconnects_total{{{PLACE}}}[$__rate_interval]))", "made again"
                ),
                query(
                    f"60 * sum by (reason) (rate(demographics_camera_failures_total{{{PLACE}}}[$__rate_interval]))",
                    "failed: {{reason}}",
                    ref="B",
                ),
            ],
            "Connections made again, and connections that failed or were lost, by reason. Choose a camera above to see its own.",
        ),
    ]


def what_cameras_see() -> list[Graph]:
    """Say whether faces are found, and whether they are large enough."""
    return [
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
        lines(
            "Faces found, a second",
            [query(f"sum by (camera) (rate(demographics_faces_total{{{PLACE}}}[$__rate_interval]))", "{{camera}}")],
            "Faces in the frames that were searched; one person in view is several of them a second.",
        ),
        lines(
            "Size of faces",
            [
                query(
                    f"histogram_quantile(0.5, sum by (camera, le) (rate(demographics_face_size_px_bucket{{{PLACE}}}[1h])))",
                    "{{camera}}",
                )
            ],
            "Smaller side of the published faces, the median of the last hour. Below 40 pixels hardly anything can be told.",
            unit="pixel",
        ),
        lines(
            "Pictures not searched, by reason, a second",
            [
                query(
                    f"sum by (reason) (rate(demographics_bad_frames_total{{{PLACE}}}[$__rate_interval]))", "{{reason}}"
                ),
                query(
                    f"sum(rate(demographics_still_frames_total{{{PLACE}}}[$__rate_interval]))", "nothing moved", ref="B"
                ),
            ],
            "Bad pictures, and those of an empty scene in which nothing moved.",
            width=12,
        ),
        lines(
            "Searches a second, wanted and possible",
            [
                query(f"max by (camera) (demographics_detect_fps{{{PLACE}}})", "{{camera}}", ref="A"),
                query(f"max by (camera) (demographics_camera_wanted_fps{{{PLACE}}})", "{{camera}} wanted", ref="B"),
            ],
            "A worker that does not keep up searches less often.",
            width=12,
        ),
        distribution(
            "Sizes of faces",
            f"demographics_face_size_px_bucket{{{PLACE}}}",
            "How many were published of each size.",
            unit="pixel",
            width=24,
        ),
    ]


# --- pipeline --------------------------------------------------------------------------------------------------------------


def is_all_well() -> list[Graph]:
    """Say in four numbers whether somebody has to look further."""

    def alarming(panel_title: str, expression: str, about: str, *, bad_from: float) -> Graph:
        return (
            number(panel_title, expression, about, width=6)
            .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.THRESHOLDS))
            .thresholds(thresholds((None, GOOD), (bad_from, BAD)))
        )

    return [
        alarming(
            "Alerts firing",
            'count(ALERTS{alertstate="firing"}) or vector(0)',
            "What they mean and what to do: docs/runbooks.md.",
            bad_from=1,
        ),
        number(
            "Workers", 'count(up{job=~"ingest|inference|aggregator"} == 1)', "Services that answer Prometheus.", width=6
        ),
        number(
            "From capture to count",
            "histogram_quantile(0.95, demographics:capture_to_count_seconds_bucket:rate5m)",
            "Ninety-five in a hundred predictions are counted sooner than this after their frame.",
            unit="s",
            decimals=1,
            width=6,
        ),
        alarming(
            "Records waiting", "sum(demographics:consumer_lag:by_topic)", "Published and not yet read.", bad_from=200
        ),
    ]


def how_it_flows() -> list[Graph]:
    """Say how long everything takes, and how much goes through."""
    stages = (
        ("A", "capture_to_bus", "camera to Kafka"),
        ("B", "bus_to_prediction", "Kafka to prediction"),
        ("C", "bus_to_count", "prediction to count"),
        ("D", "capture_to_count", "all of it"),
        ("E", "picture_age", "picture to its faces"),
    )
    return [
        lines(
            "From capture to count, by stage",
            [
                query(f"histogram_quantile(0.95, demographics:{name}_seconds_bucket:rate5m)", label, ref=ref)
                for ref, name, label in stages
            ],
            "Ninety-five in a hundred take less than this, of what was handled in the last five minutes.",
            unit="s",
        ),
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
            "Throughput, a second",
            [
                query("sum(rate(demographics_crops_total[$__rate_interval]))", "face crops published", ref="A"),
                query("sum(rate(demographics_predictions_total[$__rate_interval]))", "face crops predicted", ref="B"),
                query("sum(rate(demographics_applied_total[$__rate_interval]))", "records applied", ref="C"),
            ],
            "What goes through each part.",
        ),
        lines(
            "Throughput of each worker, a second",
            [
                query(
                    "sum by (job, instance) (rate(demographics_records_total[$__rate_interval]))",
                    "{{job}} {{instance}}",
                    ref="A",
                ),
                query(
                    "sum by (job, instance) (rate(demographics_frames_detected_total[$__rate_interval]))",
                    "{{job}} {{instance}} frames",
                    ref="B",
                ),
            ],
            "Records handled by inference workers and aggregators, frames searched by ingest workers.",
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
            "One pass of the network",
            quantiles("demographics:inference_seconds_bucket:rate5m"),
            "Seconds for one batch of face crops.",
            unit="s",
        ),
        lines(
            "One search for faces",
            quantiles("sum by (le) (rate(demographics_detection_seconds_bucket[5m]))"),
            "Seconds to find the faces of one frame.",
            unit="s",
        ),
        lines(
            "Tracks that have not ended",
            [query("sum(demographics_open_tracks)", "open tracks")],
            "People who are before a camera now, and those of whom nothing was heard for less than a minute.",
        ),
    ]


def what_it_stands_on() -> list[Graph]:
    """Say how Kafka and Redis do, and what went wrong."""
    return [
        lines(
            "Dead letters, a minute",
            [query("60 * sum by (reason) (rate(demographics_dead_letters_total[$__rate_interval]))", "{{reason}}")],
            "Records that will never decode. Each lies in the topic dead-letters with its reason and where it came from.",
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
            "Reading every count from Redis",
            quantiles("sum by (le) (rate(demographics_store_read_seconds_bucket[5m]))"),
            "Seconds that a scrape waits for Redis.",
            unit="s",
        ),
        lines(
            "Redis answers",
            [query("min by (instance) (demographics_store_up)", "{{instance}}")],
            "1 where the aggregator can read its counts.",
        ).max(1),
        lines(
            "How long face crops are kept",
            [query('max(demographics_topic_retention_seconds{topic="face-crops"})', "face crops")],
            "As Kafka has it now; an hour and a quarter is the most that is promised. The other topics: demographics doctor.",
            unit="s",
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


# --- model quality -----------------------------------------------------------------------------------------------------------


def is_it_the_same_model() -> list[Graph]:
    """Say whether what the model says has changed."""
    return [
        lines(
            "Drift",
            [
                query("demographics:predicted_age:drift", "ages", ref="A"),
                query("demographics:confidence:drift", "confidence in {{head}}", ref="B"),
                query("demographics:crop_quality:drift", "quality of face crops", ref="C"),
            ],
            "How far the last hour's distribution is from the week's: the greatest distance between the two curves, 0 to 1.",
            width=12,
        ).max(1),
        lines(
            "Share unknown, last hour",
            [query('demographics:unknown_share:1h{site=~"$site"}', "{{site}}")],
            "Of the visitors of the last hour, those of whom too little was seen.",
            unit="percentunit",
            width=12,
        ),
    ]


def how_sure_it_is() -> list[Graph]:
    """Say how sure the model is, and of what."""
    confidence = "sum by (head, le) (rate(demographics_confidence_ratio_bucket[1h]))"
    spread = "sum by (le) (rate(demographics_age_spread_years_bucket[1h]))"
    quality = "sum by (le) (rate(demographics_crop_quality_ratio_bucket[1h]))"
    return [
        lines(
            "Confidence",
            [
                query(f"histogram_quantile(0.5, {confidence})", "{{head}}, median", ref="A"),
                query(f"histogram_quantile(0.1, {confidence})", "{{head}}, lowest tenth below", ref="B"),
            ],
            "Probability of the label that the model thought likeliest, of the face crops of the last hour.",
            unit="percentunit",
        ).max(1),
        lines(
            "Spread of the age",
            [
                query(f"histogram_quantile(0.5, {spread})", "median", ref="A"),
                query(f"histogram_quantile(0.9, {spread})", "highest tenth above", ref="B"),
            ],
            "How unsure the model is of the age: the standard deviation, in years, of the face crops of the last hour.",
        ),
        lines(
            "Quality of face crops",
            [
                query(f"histogram_quantile(0.5, {quality})", "median", ref="A"),
                query(f"histogram_quantile(0.1, {quality})", "lowest tenth below", ref="B"),
            ],
            "Size, sharpness, frontality and detector's score in one, 0 to 1.",
        ).max(1),
        distribution("Ages", "demographics_predicted_age_years_bucket", "Estimated ages of face crops, in years."),
        distribution(
            "Confidence in gender",
            'demographics_confidence_ratio_bucket{head="gender"}',
            "Probability of the gender that the model thought likelier.",
            unit="percentunit",
        ),
    ]


# --- the dashboards ----------------------------------------------------------------------------------------------------------


def labels(name: str, label: str, ask: str) -> dashboard.QueryVariable:
    """Let the viewer choose some or all values of a label."""
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


def chosen_from(name: str, label: str, values: Iterable[str], first: str) -> dashboard.CustomVariable:
    """Let the viewer choose one of *values*."""
    kept = tuple(values)
    return (
        dashboard.CustomVariable(name)
        .label(label)
        .values(",".join(kept))
        .options([VariableOption(text=value, value=value, selected=value == first) for value in kept])
        .current(VariableOption(text=first, value=first, selected=True))
        .multi(multi=False)
        .include_all(include_all=False)
    )


def site() -> dashboard.QueryVariable:
    """Choose sites."""
    return labels("site", "Site", "label_values(demographics:visitors_total:by_camera, site)")


def camera() -> dashboard.QueryVariable:
    """Choose cameras of these sites."""
    return labels("camera", "Camera", 'label_values(demographics:visitors_total:by_camera{site=~"$site"}, camera)')


def board(
    name: str, title: str, about: str, variables: list[Builder[VariableModel]], rows: Rows
) -> dashboard.Dashboard:
    """Lay rows of panels out under each other."""
    made = (
        dashboard.Dashboard(title)
        .uid(f"demographics-{name}")
        .description(about)
        .tags(["demographics"])
        .readonly()
        .timezone("browser")
        .time("now-6h", "now")
        .refresh("10s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("Other dashboards")
            .type(DashboardLinkType.DASHBOARDS)
            .tags(["demographics"])
            .keep_time(keep_time=True)
            .include_vars(include_vars=True)
        )
        .variables(variables)
    )
    number_of = count(1)
    for heading, panels in rows:
        made = made.with_row(dashboard.Row(heading).id(next(number_of)))
        for panel in panels:
            made = made.with_panel(panel.id(next(number_of)))
    return made


def visitors() -> dashboard.Dashboard:
    """Make the dashboard that the operator looks at first."""
    window = chosen_from("window", "Window", WINDOWS, SHOWN_FIRST)
    offset = chosen_from("utc_offset", "Hours from UTC", [str(hours) for hours in range(-11, 15)], "0")
    return board(
        "visitors",
        "Visitors",
        "Who comes in, and when. No pictures are kept.",
        [window, site(), camera(), offset],
        [("Who", who_came()), ("When", when_they_came())],
    )


def cameras() -> dashboard.Dashboard:
    """Make the dashboard that says how the cameras do."""
    return board(
        "cameras",
        "Cameras",
        "Which cameras run, what they deliver and what is found in it.",
        [site(), camera()],
        [("State", how_cameras_do()), ("What they see", what_cameras_see())],
    )


def pipeline() -> dashboard.Dashboard:
    """Make the dashboard that says how the services do."""
    return board(
        "pipeline",
        "Pipeline",
        "How long it takes from a frame to a count, where it waits, and what went wrong.",
        [],
        [("All well?", is_all_well()), ("Flow", how_it_flows()), ("Kafka and Redis", what_it_stands_on())],
    )


def model_quality() -> dashboard.Dashboard:
    """Make the dashboard that says whether the model still does what it did."""
    return board(
        "model-quality",
        "Model quality",
        "Whether what the model says has changed, and how sure it is. The truth is not known here: this shows change, not error.",
        [site()],
        [("Change", is_it_the_same_model()), ("Confidence", how_sure_it_is())],
    )


DASHBOARDS: Final[Mapping[str, Callable[[], dashboard.Dashboard]]] = {
    "visitors": visitors, "cameras": cameras, "pipeline": pipeline, "model-quality": model_quality,
}  # fmt: skip


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
