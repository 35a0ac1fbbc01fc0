"""What the API answers, described for OpenAPI; the documents themselves are made in views.py."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from aggregator.views import SILENT
from pipeline.messages import CAMERA_STATES

_STATES = ", ".join((*CAMERA_STATES, SILENT))


class _Document(BaseModel):
    """Whatever is answered is described: a field that is not is a fault, which the test of the description finds."""

    model_config = ConfigDict(extra="forbid")


class Tally(_Document):
    """Visitors, by what was told of them. Labels that the deployment does not compute are zero."""

    visitors: int = Field(description="everybody")
    unknown: int = Field(description="of these, those of whom too little was seen")
    suppressed: int = Field(
        description="of these, those who are too few to be broken down (DEMOGRAPHICS_AGGREGATOR__SMALLEST_GROUP)"
    )
    gender: dict[str, int]
    age_band: dict[str, int]
    ethnicity: dict[str, int]
    pyramid: dict[str, dict[str, int]] = Field(description="by age band, then gender")


class CameraTally(Tally):
    """Visitors before one camera."""

    site: str


class Total(Tally):
    """Visitors whose passage has ended, ever."""

    cameras: dict[str, CameraTally]


class Window(Total):
    """Visitors first seen within a rolling window."""

    name: str = Field(description="as the setting DEMOGRAPHICS_AGGREGATOR__WINDOWS has it, such as 15m")
    seconds: int


class Passages(_Document):
    """Crossings of one camera's line, and how long its visitors stayed, ever."""

    site: str
    entries: int = Field(description="crossings inwards")
    exits: int = Field(description="and outwards")
    dwell_s: float | None = Field(description="on average; null where nobody's was measured")


class Windows(_Document):
    """Every rolling window, and everybody ever counted."""

    now: float = Field(description="seconds since the epoch")
    windows: list[Window]
    total: Total
    passages: dict[str, Passages] = Field(description="by camera")


class Camera(_Document):
    """One camera, as its worker has said last."""

    id: str
    site: str
    state: str = Field(description=f"one of {_STATES}; {SILENT}: nobody has spoken of it for 15 seconds")
    reason: str = Field(description="why it is not running, in words")
    address: str = Field(description="without credentials")
    fps: float = Field(description="frames a second that it delivers")
    frames: int
    reconnects: int
    present: int = Field(description="confirmed people in its zone, or in view, now")
    advice: str = Field(description="what to change, in words; empty where nothing is known")
    reported_at: float = Field(description="seconds since the epoch")


class Bucket(Tally):
    """Visitors first seen within one slice of time."""

    start: int = Field(description="seconds since the epoch")
    cameras: dict[str, int] = Field(description="visitors by camera")


class Series(_Document):
    """One rolling window, bucket by bucket."""

    window: str
    bucket_s: int = Field(description="length of a bucket")
    buckets: list[Bucket] = Field(description="oldest first, empty ones included; the newest is still filling")


class Latency(_Document):
    """From the frame to the count."""

    half: float = Field(description="half of the predictions were counted sooner than this after their frame")
    most: float = Field(description="ninety-five in a hundred were")


class Pipeline(_Document):
    """How the pipeline does, as this aggregator sees it."""

    state: Literal["good", "quiet", "late", "trouble"] = Field(
        description="quiet: nothing came within a minute; late: counts are old or many records wait; trouble: see problems"
    )
    problems: list[str]
    seconds: float = Field(description="what latency and records a second are measured over")
    latency_s: Latency | None = Field(description="null where nobody was predicted")
    records_per_s: float
    waiting: dict[str, int] = Field(
        description="records published and not yet read, by topic, of this process's partitions"
    )
    open_tracks: int
    dead_letters: int = Field(description="since this process has started")
