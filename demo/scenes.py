"""Scenes that are hard to count: people who cross, stand, hide, crowd, are far away, or stand in the dark.

Each is a film of the demo's cast with its truth (see truth.py), so that how well tracks follow people is a figure, not a
feeling: `python -m demo.tracking`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from demo.backdrops import VIEWS, Image
from demo.composer import SHIRTS, CastMember, FaceSpot, Figure, figure_of, load_cast, write_film
from demo.truth import Person, Truth
from pipeline.errors import ConfigError

FPS: Final = 25
_WALK: Final = 0.16  # picture widths a second
_AWAY: Final = 0.12  # picture widths outside the edge, where nobody is seen


@dataclass(frozen=True)
class Route:
    """A way along waypoints (second, x in picture widths, y and side of the face in picture heights), straight between them."""

    points: tuple[tuple[float, float, float, float], ...]
    bob: float = 0.025  # up and down, in face sides
    sway: float = 0.0  # to and fro, in face sides, as somebody who stands does

    @property
    def start_s(self) -> float:
        """When it begins."""
        return self.points[0][0]

    def _at(self, at_s: float) -> tuple[float, float, float]:
        times = [point[0] for point in self.points]
        x, y, side = (float(np.interp(at_s, times, [point[n] for point in self.points])) for n in (1, 2, 3))
        return x, y, side

    def depth(self, at_s: float) -> float:
        """Who is larger is nearer, and is drawn before the others."""
        return self._at(at_s)[2]

    def spot(self, at_s: float, size: tuple[int, int]) -> FaceSpot:
        """Where the face is."""
        x, y, side = self._at(at_s)
        side_px = side * size[1]
        phase = at_s - self.start_s
        return FaceSpot(
            x * size[0] + self.sway * side_px * float(np.sin(2.1 * phase)),
            y * size[1] + self.bob * side_px * float(np.sin(12 * phase)),
            side_px,
        )

    def walking(self, at_s: float) -> bool:
        """Whether the person is to be drawn."""
        return self.points[0][0] <= at_s < self.points[-1][0]


def _across(start_s: float, y: float, side: float, *, rightwards: bool, speed: float = _WALK) -> Route:
    """Walk straight through the view."""
    here, there = (-_AWAY, 1 + _AWAY) if rightwards else (1 + _AWAY, -_AWAY)
    return Route(((start_s, here, y, side), (start_s + (1 + 2 * _AWAY) / speed, there, y, side)))


def _nothing(_frame: Image, _at_s: float) -> None:
    """Draw nothing over the people."""


@dataclass(frozen=True)
class Scene:
    """A scene before it is drawn."""

    name: str
    says: str
    seconds: float
    routes: tuple[Route, ...]
    size: tuple[int, int] = (1280, 720)
    over: Callable[[Image, float], None] = _nothing
    faces: bool = True  # False: everybody shows the back of the head
    camera: Mapping[str, Any] = field(default_factory=dict)  # keys of the camera file that go with it


def _crossing() -> Scene:
    """Six pairs meet face to face, the nearer one hiding the other for a moment."""
    routes = []
    for n in range(6):
        start, y = 0.8 + 5.2 * n, 0.36
        routes += [
            _across(start, y, 0.15, rightwards=True),
            _across(start + 0.1 * n, y + 0.02, 0.17, rightwards=False),
        ]
    return Scene("crossing", "six pairs meet face to face, one hiding the other", 5.2 * 6 + 9.0, tuple(routes))


def _standing() -> Scene:
    """Three walk in one after the other, stand for 30 s beside each other, and walk on."""
    routes = []
    for n in range(3):
        x, y, side, come = 0.25 + 0.25 * n, 0.40, 0.16, 1.0 + 2.0 * (2 - n)
        stand_from = come + (x + _AWAY) / _WALK
        leave = stand_from + 30.0
        away = leave + (1 + _AWAY - x) / _WALK
        points = (
            (come, -_AWAY, y, side),
            (stand_from, x, y, side),
            (leave, x, y, side),
            (away, 1 + _AWAY, y, side),
        )
        routes.append(Route(points, bob=0.015, sway=0.05))
    return Scene("standing", "three stand for 30 s", 50.0, tuple(routes))


def _occlusion() -> Scene:
    """Eight walk by behind a pillar that hides each for a second."""
    routes = [
        _across(0.8 + 3.1 * n, 0.34 + 0.04 * (n % 3), 0.13 + 0.02 * (n % 3), rightwards=n % 2 == 0) for n in range(8)
    ]

    def pillar(frame: Image, _at_s: float) -> None:
        width = frame.shape[1]
        half = int(_WALK * width / 2 + 0.04 * width)  # a second's walk, and a face's half on each side
        frame[:, width // 2 - half : width // 2 + half] = (96, 104, 110)

    return Scene(
        "occlusion", "eight walk by behind a pillar, each hidden for a second", 33.0, tuple(routes), over=pillar
    )


def _twenty() -> Scene:
    """Twenty at once: four rows of five, walking slowly in turn to the right and to the left."""
    routes = []
    for row in range(4):
        y, side = 0.14 + 0.19 * row, 0.075 + 0.008 * row
        for place in range(5):
            rightwards = row % 2 == 0
            ahead = 1.9 + 1.9 * place
            here, there = (-_AWAY, 1 + _AWAY) if rightwards else (1 + _AWAY, -_AWAY)
            began = 0.8 + ahead + 0.3 * row
            routes.append(Route(((began, here, y, side), (began + 14.0, there, y, side))))
    return Scene("twenty", "twenty at once, in four rows", 28.0, tuple(routes), size=(1920, 1080))


def _tiny() -> Scene:
    """Eight far away: faces of 15 pixels at 720p."""
    side = 15 / 720
    routes = [_across(0.8 + 2.5 * n, 0.3 + 0.05 * (n % 4), side, rightwards=n % 2 == 0, speed=0.12) for n in range(8)]
    return Scene("tiny", "eight with faces of 15 px", 32.0, tuple(routes))


def _lights_out() -> Scene:
    """Six walk by; in the middle the light fails for four seconds, and it is all but black."""
    routes = [_across(0.8 + 3.6 * n, 0.36 + 0.03 * (n % 2), 0.16, rightwards=n % 2 == 0) for n in range(6)]

    def light(frame: Image, at_s: float) -> None:
        level = float(np.interp(at_s, (13.0, 13.4, 17.4, 17.8), (1.0, 0.02, 0.02, 1.0)))
        if level < 1.0:
            np.copyto(frame, (frame * level).astype(np.uint8))

    return Scene("lights-out", "six walk by, the light fails for four seconds", 30.0, tuple(routes), over=light)


def _backs() -> Scene:
    """Six walk by and show the backs of their heads."""
    routes = [_across(0.8 + 2.6 * n, 0.36 + 0.03 * (n % 3), 0.16, rightwards=n % 2 == 0) for n in range(6)]
    return Scene("backs", "six show the backs of their heads", 25.0, tuple(routes), faces=False)


def _poster(*, excluded: bool) -> Scene:
    """Two walk by a poster of a face, in a place that is excluded or is not."""
    routes = (_across(0.8, 0.42, 0.16, rightwards=True), _across(4.0, 0.44, 0.17, rightwards=False))
    face = load_cast()[3].face

    def hang(frame: Image, _at_s: float) -> None:
        side = round(0.15 * frame.shape[0])
        top, left = round(0.05 * frame.shape[0]), round(0.7 * frame.shape[1])
        frame[top - 6 : top + side + 6, left - 6 : left + side + 6] = (235, 235, 235)
        frame[top : top + side, left : left + side] = cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA)

    corner = ((0.65, 0.0), (0.85, 0.0), (0.85, 0.24), (0.65, 0.24))
    if excluded:
        says, camera = "two walk by a poster of a face, which is excluded", {"exclude": (corner,)}
        return Scene("poster-excluded", says, 15.0, routes, over=hang, camera=camera)
    return Scene("poster", "two walk by a poster of a face", 15.0, routes, over=hang)


def _nobody() -> Scene:
    """Show an empty hall."""
    return Scene("empty", "nobody", 20.0, ())


SCENES: Final = {
    scene.name: scene
    for scene in (
        _crossing(), _standing(), _occlusion(), _twenty(), _tiny(), _lights_out(), _backs(), _poster(excluded=False),
        _poster(excluded=True), _nobody(),
    )
}  # fmt: skip


def truth_of(scene: Scene) -> Truth:
    """Say where every face is, frame by frame, as far as it is not hidden behind somebody nearer."""
    people = []
    for n, route in enumerate(scene.routes if scene.faces else ()):
        boxes = []
        for frame in range(round(scene.seconds * FPS)):
            at_s = frame / FPS
            if not route.walking(at_s):
                continue
            spot = route.spot(at_s, scene.size)
            nearer = [
                other.spot(at_s, scene.size)
                for other in scene.routes
                if other is not route and other.walking(at_s) and other.depth(at_s) > route.depth(at_s)
            ]
            if spot.share_inside(scene.size) >= 0.5 and not any(_hides(other, spot) for other in nearer):
                boxes.append((frame, spot.x - spot.side / 2, spot.y - spot.side / 2, spot.side, spot.side))
        people.append(Person(n, tuple(boxes)))
    return Truth(FPS, scene.size, scene.seconds, tuple(people))


def _from_behind(member: CastMember) -> CastMember:
    """Show hair where the face was, in strands."""
    crown = member.face[:40].reshape(-1, 3)
    hair = crown[crown.sum(1) <= np.percentile(crown.sum(1), 12)].mean(0)
    strands = np.random.default_rng(len(member.file)).normal(0, 9, (1, 200, 1)) + np.linspace(8, -8, 200)[:, None, None]
    return replace(member, face=np.clip(hair + strands, 0, 255).astype(np.uint8))


def _hides(front: FaceSpot, behind: FaceSpot) -> bool:
    """Tell whether the middle of the face *behind* lies behind head, shoulders or body of *front*."""
    across, down = abs(behind.x - front.x) / front.side, (behind.y - front.y) / front.side
    return (across < 0.55 and abs(down) < 0.6) or (across < 1.1 and down > 0.6)


def draw_scene(name: str, path: Path, cast: Sequence[CastMember], *, seed: int = 1) -> Truth:
    """Write scene *name* to *path* (MP4, H.264), its truth beside it. Raises ConfigError for a name that there is not."""
    if name not in SCENES:
        raise ConfigError(f"no scene {name!r}; there are {', '.join(SCENES)}")
    scene = SCENES[name]
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(cast))
    members = [cast[int(order[n % len(cast)])] for n in range(len(scene.routes))]
    figures: list[Figure] = [
        figure_of(member if scene.faces else _from_behind(member), route, SHIRTS[n % len(SHIRTS)])
        for n, (member, route) in enumerate(zip(members, scene.routes, strict=True))
    ]
    ground: NDArray[np.uint8] = VIEWS["hall"](scene.size)
    part = path.with_name(path.name + ".part")
    try:
        write_film(
            part, figures=figures, ground=ground, caption=f"{name.upper()} - demo", frames=round(scene.seconds * FPS),
            fps=FPS, rng=rng, over=scene.over,
        )  # fmt: skip
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    truth = truth_of(scene)
    truth.save(path)
    return truth
