"""Compose CCTV-like clips of people who do not exist walking through a view, together with the ground truth.

A clip is planned first (pure geometry: who walks where and when, so that faces never touch), then drawn, then encoded
the way a camera does it: H.264, a key frame a second, no B-frames. The view is empty at the start and the end, so
that the clip loops cleanly. The same arguments give the same people on the same paths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Final, Protocol

import av
import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from demo.backdrops import VIEWS, Colour, Image
from demo.clip import Clip, Passage
from pipeline.errors import ConfigError

__all__ = [
    "CAST_FOLDER", "SHIRTS", "CastMember", "Clip", "FaceSpot", "Figure", "Passage", "Walk", "Way", "compose", "figure_of",
    "load_cast", "plan_walks", "write_film",
]  # fmt: skip

CAST_FOLDER: Final = Path(__file__).parent / "cast"

_QUIET_S: Final = 0.8  # nobody in the view at both ends of a clip
_LINGER_S: Final = 1.2  # nobody comes near where somebody just left, so that a tracker cannot take one for the other
_CROSSING_S: Final = (4.0, 6.5)  # from outside one edge to outside the other
_SIDE: Final = (0.118, 0.236)  # of a face, far and near, in picture heights: 85 to 170 px at 720p
_EYE_LEVEL: Final = (
    0.24,
    0.55,
)  # centre of a face, far and near, in picture heights: the camera hangs high
_SHOULDERS: Final = 1.25  # half the width of a person, in face sides
_STEPS_PER_S: Final = 1.9
_ATTEMPTS: Final = 60

SHIRTS: Final[tuple[Colour, ...]] = (
    (92, 70, 48), (70, 78, 120), (78, 92, 70), (160, 158, 150), (52, 50, 48), (128, 112, 84), (60, 84, 132),
    (110, 88, 112), (66, 104, 118), (136, 128, 132),
)  # fmt: skip


@dataclass(frozen=True)
class CastMember:
    """A face that belongs to nobody, and what it is labelled as."""

    file: str
    gender: str
    ethnicity: str
    age_from: int
    age_to: int
    face: Image  # square, BGR


def load_cast(folder: Path = CAST_FOLDER) -> tuple[CastMember, ...]:
    """Read cast.json and its pictures. Raises ConfigError when a file is missing or is not what it should be."""
    try:
        entries = msgspec.json.decode((folder / "cast.json").read_bytes(), type=list[dict[str, str | int]])
        return tuple(
            CastMember(
                file=str(entry["file"]),
                gender=str(entry["gender"]),
                ethnicity=str(entry["ethnicity"]),
                age_from=int(entry["age_from"]),
                age_to=int(entry["age_to"]),
                face=_read_face(folder / str(entry["file"])),
            )
            for entry in entries
        )
    except (OSError, KeyError, ValueError, msgspec.DecodeError) as error:
        raise ConfigError(f"{folder}: not a cast of faces ({error})") from error


def _read_face(path: Path) -> Image:
    face = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    if face is None:
        raise ValueError(f"{path.name} is not a picture")
    return face.astype(np.uint8, copy=False)


# ── where people walk: pure geometry ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class FaceSpot:
    """Where a face is in one frame: its centre and the side of its square, in pixels."""

    x: float
    y: float
    side: float

    def share_inside(self, size: tuple[int, int]) -> float:
        """How much of the square lies inside the picture, 0..1."""
        wide = min(self.x + self.side / 2, size[0]) - max(self.x - self.side / 2, 0)
        high = min(self.y + self.side / 2, size[1]) - max(self.y - self.side / 2, 0)
        return max(wide, 0) * max(high, 0) / self.side**2

    def touches(self, other: FaceSpot, room: float = 0.2) -> bool:
        """Whether two faces come nearer than a share of their size."""
        reach = (1 + room) / 2 * (self.side + other.side)
        return abs(self.x - other.x) < reach and abs(self.y - other.y) < reach


class Way(Protocol):
    """Where one person is at which time. Depth is 0 (far) to 1 (near): who is nearer hides who is behind."""

    @property
    def start_s(self) -> float:
        """When it begins."""

    def depth(self, at_s: float) -> float:
        """How near the person is at a time."""

    def spot(self, at_s: float, size: tuple[int, int]) -> FaceSpot:
        """Where the face is, in a picture of *size* (width, height)."""

    def walking(self, at_s: float) -> bool:
        """Whether the person is to be drawn."""


@dataclass(frozen=True)
class Walk:
    """One person's way through the view, in at one edge and out at the other. Depth is 0 (far) to 1 (near)."""

    start_s: float
    seconds: float
    rightwards: bool
    depth_from: float
    depth_to: float

    @property
    def end_s(self) -> float:
        """When the last of the shoulders has left."""
        return self.start_s + self.seconds

    def depth(self, at_s: float) -> float:
        """How near the person is at a time; before and after the walk, as near as at its ends."""
        share = min(1.0, max(0.0, (at_s - self.start_s) / self.seconds))
        return self.depth_from + (self.depth_to - self.depth_from) * share

    def spot(self, at_s: float, size: tuple[int, int]) -> FaceSpot:
        """Where the face is; before and after the walk it waits just outside the picture."""
        width, height = size
        share = min(1.0, max(0.0, (at_s - self.start_s) / self.seconds))
        depth = self.depth(at_s)
        side = height * (_SIDE[0] + (_SIDE[1] - _SIDE[0]) * depth)
        bob = 0.025 * side * np.sin(2 * np.pi * _STEPS_PER_S * (at_s - self.start_s))
        y = height * (_EYE_LEVEL[0] + (_EYE_LEVEL[1] - _EYE_LEVEL[0]) * depth) + bob
        along = -_SHOULDERS * side + (width + 2 * _SHOULDERS * side) * share
        return FaceSpot(along if self.rightwards else width - along, float(y), side)

    def walking(self, at_s: float) -> bool:
        """Whether the person is to be drawn."""
        return self.start_s <= at_s < self.end_s


def plan_walks(people: int, *, seconds: float, seed: int, size: tuple[int, int]) -> tuple[Walk, ...]:
    """Spread *people* over the clip so that no two faces ever touch; in order of appearance.

    Raises ConfigError when that many do not fit into that time.
    """
    if people < 1:
        raise ConfigError(f"{people} people: a clip needs at least one")
    latest = seconds - 2 * _QUIET_S - _CROSSING_S[0]
    if latest < 0:
        raise ConfigError(f"{seconds:g} s: a clip needs at least {2 * _QUIET_S + _CROSSING_S[0]:g} s for one to cross")
    rng = np.random.default_rng(seed)
    for _ in range(_ATTEMPTS // 3):
        walks = _one_plan(people, latest, rng, size)
        if walks:
            return tuple(sorted(walks, key=lambda walk: walk.start_s))
    raise ConfigError(f"{people} people do not fit into {seconds:g} s; ask for fewer, or for a longer clip")


def _one_plan(people: int, latest: float, rng: np.random.Generator, size: tuple[int, int]) -> list[Walk]:
    """Place one person after the other at random; empty when somebody found no way through."""
    walks: list[Walk] = []
    for slot in range(people):
        for attempt in range(_ATTEMPTS):
            loose = 0.4 + 2 * attempt / _ATTEMPTS  # stay near the even spread; roam when that is taken
            even = latest * slot / (people - 1) if people > 1 else latest / 2
            start = float(np.clip(even + rng.uniform(-loose, loose), 0, latest))
            most = min(_CROSSING_S[1], latest - start + _CROSSING_S[0])
            near = float(rng.uniform(0, 1))
            walk = Walk(
                start_s=_QUIET_S + start,
                seconds=float(
                    rng.triangular(_CROSSING_S[0], _CROSSING_S[0] + 0.3 * (most - _CROSSING_S[0]), most + 1e-9)
                ),
                rightwards=bool(rng.random() < 0.5),
                depth_from=near,
                depth_to=float(np.clip(near + rng.uniform(-0.12, 0.28), 0, 1)),  # most come a little nearer
            )
            if not any(_meet(walk, other, size) for other in walks):
                walks.append(walk)
                break
        else:
            return []
    return walks


def _meet(one: Walk, other: Walk, size: tuple[int, int]) -> bool:
    first, last = max(one.start_s, other.start_s) - _LINGER_S, min(one.end_s, other.end_s) + _LINGER_S
    times = np.arange(
        first, last, 0.04
    ).tolist()  # with more room than asked for, nobody slips through between two looks
    return any(one.spot(t, size).touches(other.spot(t, size), room=0.3) for t in times)


def _passage(member: CastMember, walk: Walk, *, size: tuple[int, int], fps: int) -> Passage:
    frames = range(int(walk.start_s * fps), int(walk.end_s * fps) + 2)
    inside = [n for n in frames if walk.walking(n / fps) and walk.spot(n / fps, size).share_inside(size) >= 0.6]
    return Passage(
        file=member.file,
        gender=member.gender,
        ethnicity=member.ethnicity,
        age_from=member.age_from,
        age_to=member.age_to,
        enter_s=round(inside[0] / fps, 3),
        leave_s=round((inside[-1] + 1) / fps, 3),
    )


# ── how they look ─────────────────────────────────────────────────────────────────────────────────────────────────────

_HEAD: Final = 320  # side of a head's picture; the face in its middle is 200, so hair and neck have room
_HEAD_RATIO: Final = _HEAD / 200


@dataclass(frozen=True)
class Figure:
    """A person ready to be drawn: the head with its mask (0..1), and the colours of the rest."""

    head: Image
    mask: NDArray[np.float32]
    shirt: Colour
    walk: Way
    _scaled: dict[int, tuple[Image, NDArray[np.float32]]] = field(default_factory=dict)

    def scaled(self, side: int) -> tuple[Image, NDArray[np.float32]]:
        """Return head and mask *side* pixels large; neighbouring frames mostly ask for the same."""
        if side not in self._scaled:
            self._scaled.clear()
            self._scaled[side] = (
                cv2.resize(self.head, (side, side), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False),
                cv2.resize(self.mask, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32, copy=False),
            )
        return self._scaled[side]


def figure_of(member: CastMember, walk: Way, shirt: Colour) -> Figure:
    """Dress a member of the cast for a walk."""
    face = cv2.resize(member.face, (200, 200), interpolation=cv2.INTER_AREA)
    skin = np.median(face[105:150, 60:140].reshape(-1, 3), axis=0)
    crown = face[:40].reshape(-1, 3)
    hair = crown[crown.sum(1) <= np.percentile(crown.sum(1), 12)].mean(0)  # the darkest there is above the eyes
    middle = _HEAD // 2
    head = np.zeros((_HEAD, _HEAD, 3), np.float32)
    mask = np.zeros((_HEAD, _HEAD), np.float32)

    def lay(over: NDArray[np.float32] | NDArray[np.float64], shape: NDArray[np.float32], soft: float) -> None:
        weight = cv2.GaussianBlur(shape, (0, 0), soft).astype(np.float32)
        head[:] = np.where((mask > 0)[..., None], head + (over - head) * weight[..., None], over)
        np.maximum(mask, weight, out=mask)

    def ellipse(y: int, radii: tuple[int, int]) -> NDArray[np.float32]:
        shape = np.zeros((_HEAD, _HEAD), np.float32)
        cv2.ellipse(shape, (middle, middle + y), radii, 0, 0, 360, 1.0, -1, cv2.LINE_AA)
        return shape

    neck = np.zeros((_HEAD, _HEAD), np.float32)
    cv2.fillPoly(neck, [np.array([(120, 200), (200, 200), (210, 268), (160, 318), (110, 268)], np.int32)], 1.0)
    if member.gender == "female":
        lay(np.broadcast_to(hair, head.shape), ellipse(18, (101, 118)), 4)
    lay(np.broadcast_to(0.72 * skin, head.shape), neck, 3)
    lay(np.broadcast_to(hair, head.shape), ellipse(-10, (93, 104)), 3)
    placed = cv2.copyMakeBorder(face, 60, 60, 60, 60, cv2.BORDER_REPLICATE).astype(np.float32)
    lay(placed, ellipse(2, (85, 98)), 5)
    return Figure(np.clip(head, 0, 255).astype(np.uint8), mask, shirt, walk)


def _rounded(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cut the corners of a closed outline twice (Chaikin, 1974)."""
    for _ in range(2):
        following = np.roll(points, -1, axis=0)
        points = np.stack([0.75 * points + 0.25 * following, 0.25 * points + 0.75 * following], axis=1).reshape(-1, 2)
    return points


# Outlines in face sides from the centre of the face, the right half; the left mirrors it.
_BODY_RIGHT: Final = (
    (0.20, 0.55), (0.44, 0.68), (0.88, 0.80), (1.10, 1.06), (1.18, 1.9), (1.20, 3.0), (1.02, 3.4), (0.98, 9.0),
)  # fmt: skip
_COLLAR_RIGHT: Final = ((0.24, 0.52), (0.33, 0.64), (0.0, 0.92))


def _mirrored(right: Sequence[tuple[float, float]]) -> NDArray[np.float64]:
    half = np.array(right)
    return np.concatenate([half, half[::-1] * (-1, 1)])


_BODY: Final = _rounded(_mirrored(_BODY_RIGHT))
_COLLAR: Final = _mirrored(_COLLAR_RIGHT)
_ARM: Final = _rounded(np.array([(0.77, 1.25), (0.79, 1.3), (0.82, 3.2), (0.75, 3.2)]))
_TROUSERS: Final = np.array([(-1.13, 3.4), (1.13, 3.4), (1.05, 9.0), (-1.05, 9.0)])
_SHADE: Final = _rounded(  # the light comes from the left
    np.array([(0.47, 0.70), (0.88, 0.80), (1.10, 1.06), (1.18, 1.9), (1.18, 3.0), (1.05, 3.5), (0.5, 3.5)])
)


def _soft_shadow() -> NDArray[np.float32]:
    """Draw the shadow of head and shoulders, 40 px a face side, the face at (1.5, 0.9) of 3 by 2.4 sides."""
    shadow = np.zeros((96, 120), np.float32)
    cv2.ellipse(shadow, (60, 36), (22, 24), 0, 0, 360, 1.0, -1)
    cv2.fillPoly(shadow, [(np.clip(_BODY, -2, 2.6) * 40 * 0.9 + (60, 36)).astype(np.int32)], 1.0)
    across, down = np.arange(120), np.arange(96)[:, None]
    fade = np.clip(np.minimum(across, 119 - across) / 14, 0, 1) * np.clip(np.minimum(down / 10, (95 - down) / 40), 0, 1)
    soft: NDArray[np.float32] = (cv2.GaussianBlur(shadow, (0, 0), 7) * fade * 0.32).astype(np.float32)
    return soft


_SHADOW: Final = _soft_shadow()


def _blend(frame: Image, over: Image | None, mask: NDArray[np.float32], x: int, y: int) -> None:
    """Lay *over* (or black) onto the frame with its top left at (x, y), as far as it is inside."""
    height, width = mask.shape
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + width, frame.shape[1]), min(y + height, frame.shape[0])
    if x0 >= x1 or y0 >= y1:
        return
    under = frame[y0:y1, x0:x1]
    weight = np.ascontiguousarray(mask[y0 - y : y1 - y, x0 - x : x1 - x])
    upper = np.zeros_like(under) if over is None else np.ascontiguousarray(over[y0 - y : y1 - y, x0 - x : x1 - x])
    frame[y0:y1, x0:x1] = cv2.blendLinear(np.ascontiguousarray(under), upper, 1 - weight, weight)


def _draw(frame: Image, figure: Figure, at_s: float) -> None:
    height, width = frame.shape[:2]
    spot = figure.walk.spot(at_s, (width, height))

    def polygon(outline: NDArray[np.float64], colour: NDArray[np.float64]) -> None:
        points = (outline * spot.side + (spot.x, spot.y)) * 16  # four fractional bits, so that nothing judders
        cv2.fillPoly(frame, [points.round().astype(np.int32)], colour.tolist(), cv2.LINE_AA, 4)

    wide, tall = round(3 * spot.side), round(2.4 * spot.side)
    shadow = cv2.resize(_SHADOW, (wide, tall), interpolation=cv2.INTER_LINEAR).astype(np.float32, copy=False)
    _blend(frame, None, shadow, round(spot.x - 1.28 * spot.side), round(spot.y - 0.82 * spot.side))
    shirt = np.array(figure.shirt, np.float64)
    polygon(_BODY, shirt)
    polygon(_SHADE, shirt * 0.86)
    polygon(_TROUSERS, np.array((62.0, 58.0, 56.0)))
    swing = np.array([0.05 * np.sin(np.pi * _STEPS_PER_S * (at_s - figure.walk.start_s)), 0])
    polygon(_ARM + swing, shirt * 0.72)
    polygon(_ARM * (-1, 1) + swing, shirt * 0.82)
    polygon(_COLLAR, np.clip(shirt * 1.22 + 12, 0, 255))
    side = round(spot.side * _HEAD_RATIO)
    _blend(frame, *figure.scaled(side), round(spot.x - side / 2), round(spot.y - side / 2))


def _caption(frame: Image, text: str) -> None:
    scale = frame.shape[0] / 720
    at = (round(18 * scale), round(30 * scale))
    for colour, thick in (((30, 30, 30), 3), ((225, 228, 230), 1)):
        cv2.putText(frame, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.6 * scale, colour, thick, cv2.LINE_AA)


# ── the film ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _noise(size: tuple[int, int], rng: np.random.Generator) -> list[NDArray[np.int8]]:
    """Make a few frames of sensor noise; drawn in turn they are cheap, and no two neighbouring frames are alike."""
    return [rng.normal(0, 2.2, (size[1], size[0])).round().astype(np.int8) for _ in range(5)]


def compose(
    path: Path,
    cast: Sequence[CastMember],
    *,
    view: str,
    people: int,
    seconds: float,
    seed: int,
    size: tuple[int, int] = (1280, 720),
    fps: int = 25,
    progress: Callable[[float], None] | None = None,
) -> Clip:
    """Write a film to *path* (MP4, H.264) and its ground truth beside it; returns both as a Clip.

    *view* is a name from VIEWS, *size* is width and height in even pixels, *progress* is told the share done, 0..1. The
    film appears under its name only when it is whole. Raises ConfigError when what is asked for cannot be drawn.
    """
    problems = [
        problem
        for wrong, problem in (
            (view not in VIEWS, f"no view {view!r}; there are {', '.join(VIEWS)}"),
            (not cast, "nobody in the cast"),
            (size[0] % 2 or size[1] % 2, f"size {size[0]}x{size[1]}: both must be even"),
            (fps < 1, f"{fps} frames a second"),
        )
        if wrong
    ]
    if problems:
        raise ConfigError(problems)
    walks = plan_walks(people, seconds=seconds, seed=seed, size=size)
    rng = np.random.default_rng(seed)
    order, shirts = rng.permutation(len(cast)), rng.permutation(len(SHIRTS))
    members = [cast[int(order[n % len(cast)])] for n in range(people)]
    figures = [
        figure_of(member, walk, SHIRTS[int(shirts[n % len(SHIRTS)])])
        for n, (member, walk) in enumerate(zip(members, walks, strict=True))
    ]
    part = path.with_name(path.name + ".part")
    frames = round(seconds * fps)
    try:
        write_film(
            part,
            figures=figures,
            ground=VIEWS[view](size),
            caption=f"{view.upper()} - demo",
            frames=frames,
            fps=fps,
            rng=rng,
            progress=progress,
        )
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    passages = tuple(_passage(m, w, size=size, fps=fps) for m, w in zip(members, walks, strict=True))
    clip = Clip(path, frames / fps, fps, size, passages)
    clip.save()
    return clip


def write_film(
    path: Path,
    *,
    figures: Sequence[Figure],
    ground: Image,
    caption: str,
    frames: int,
    fps: int,
    rng: np.random.Generator,
    progress: Callable[[float], None] | None = None,
    over: Callable[[Image, float], None] = lambda _frame, _at_s: None,
) -> None:
    """Draw *figures* before *ground*, frame by frame, and encode it as a camera does; *over* may draw on each frame in place."""
    height, width = ground.shape[:2]
    noise = _noise((width, height), rng)
    options = {
        "preset": "ultrafast",
        "crf": "25",
        "g": str(fps),
        "keyint_min": str(fps),
        "sc_threshold": "0",
        "bf": "0",
    }
    with av.open(str(path), "w", format="mp4") as film:
        stream = film.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, fps)
        stream.codec_context.thread_count = 2
        for n in range(frames):
            at_s, frame = n / fps, ground.copy()
            for figure in sorted((f for f in figures if f.walk.walking(at_s)), key=lambda f: f.walk.depth(at_s)):
                _draw(frame, figure, at_s)
            over(frame, at_s)
            _caption(frame, caption)
            planes = cv2.cvtColor(frame, cv2.COLOR_BGR2YUV_I420).astype(np.uint8, copy=False)
            luma = planes[:height]
            cv2.add(luma, noise[n % len(noise)], dst=luma, dtype=cv2.CV_8U)  # cameras are grainy in brightness most
            picture = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            picture.pts = n
            film.mux(stream.encode(picture))
            if progress and (n % fps == 0 or n == frames - 1):
                progress((n + 1) / frames)
        film.mux(stream.encode())
