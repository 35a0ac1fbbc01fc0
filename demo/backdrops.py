"""The rooms that the demo's cameras look into: drawn once per clip, smooth enough that no detector sees a face in them.

A view is a function of the picture's size alone, in unit coordinates (0, 0) top left to (1, 1) bottom right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]  # (height, width, 3), BGR
Colour = tuple[float, float, float]  # BGR, 0..255
Point = tuple[float, float]  # unit coordinates


class _Canvas:
    """Polygons with straight and soft edges, by unit coordinates."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.width, self.height = size
        self.pixels: NDArray[np.float32] = np.zeros((self.height, self.width, 3), np.float32)

    def fill(
        self, points: Sequence[Point], top: Colour, bottom: Colour | None = None, *, alpha: float = 1, soft: float = 0
    ) -> None:
        """Fill a polygon, *top* fading into *bottom* down its height; *soft* blurs its edge, in picture heights."""
        corners = np.array(points) * (self.width, self.height)
        margin = 2 + 3 * soft * self.height
        x0, y0 = np.maximum(corners.min(0) - margin, 0).astype(int)
        x1, y1 = np.minimum(corners.max(0) + margin, (self.width, self.height)).astype(int)
        if x0 >= x1 or y0 >= y1:
            return
        mask = np.zeros((y1 - y0, x1 - x0), np.float32)  # only where it falls: a view is dozens of small polygons
        shift = 4  # OpenCV takes sub-pixel positions as fixed-point numbers
        cv2.fillPoly(mask, [((corners - (x0, y0)) * (1 << shift)).round().astype(np.int32)], 1.0, cv2.LINE_AA, shift)
        if soft:
            mask = cv2.GaussianBlur(mask, (0, 0), soft * self.height).astype(np.float32)
        low, high = corners[:, 1].min(), corners[:, 1].max()
        down = np.clip((np.arange(y0, y1) - low) / max(1.0, high - low), 0, 1)
        ramp = np.array(top) + (np.array(bottom or top) - np.array(top)) * down[:, None]
        part = self.pixels[y0:y1, x0:x1]
        part += (ramp[:, None, :].astype(np.float32) - part) * (mask * alpha)[..., None]

    def line(self, start: Point, end: Point, colour: Colour, *, thick: float, alpha: float = 1) -> None:
        """Draw a straight line, *thick* in picture heights."""
        (x0, y0), (x1, y1) = start, end
        along = np.array([(x1 - x0) * self.width, (y1 - y0) * self.height])
        across = np.array([-along[1], along[0]]) / max(1e-6, float(np.hypot(*along))) * thick * self.height / 2
        dx, dy = across[0] / self.width, across[1] / self.height
        self.fill([(x0 + dx, y0 + dy), (x1 + dx, y1 + dy), (x1 - dx, y1 - dy), (x0 - dx, y0 - dy)], colour, alpha=alpha)

    def ellipse(self, centre: Point, radii: Point, colour: Colour, *, alpha: float, soft: float = 0) -> None:
        """Draw an ellipse; light pools and leaves."""
        around = np.linspace(0, 2 * np.pi, 48)
        points = [(centre[0] + radii[0] * float(np.cos(a)), centre[1] + radii[1] * float(np.sin(a))) for a in around]
        self.fill(points, colour, alpha=alpha, soft=soft)

    def finished(self, seed: int) -> Image:
        """Return the picture as a cheap lens sees it: mottled, darker in the corners, a little soft."""
        rng = np.random.default_rng(seed)
        mottle = rng.normal(0, 1.6, (max(2, self.height // 48), max(2, self.width // 48))).astype(np.float32)
        mottled = self.pixels + cv2.resize(mottle, (self.width, self.height), interpolation=cv2.INTER_CUBIC)[..., None]
        ys, xs = np.mgrid[-1 : 1 : self.height * 1j, -1 : 1 : self.width * 1j]
        vignette = 1 - 0.16 * np.clip(xs**2 + ys**2 - 0.35, 0, None)
        soft = cv2.GaussianBlur((mottled * vignette[..., None]).astype(np.float32), (0, 0), self.height / 720)
        seen: Image = np.clip(soft, 0, 255).astype(np.uint8)
        return seen


def _between(start: Point, end: Point, share: float) -> Point:
    return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> list[Point]:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _plant(canvas: _Canvas, x: float, floor: float) -> None:
    canvas.ellipse((x, floor), (0.06, 0.022), (40, 44, 48), alpha=0.5, soft=0.012)
    canvas.fill(
        [(x - 0.028, floor - 0.13), (x + 0.028, floor - 0.13), (x + 0.021, floor), (x - 0.021, floor)],
        (150, 155, 160),
        (105, 110, 116),
    )
    rng = np.random.default_rng(3)
    for angle in np.linspace(-1.25, 1.25, 13):
        reach = rng.uniform(0.17, 0.27)
        tip = (x + 0.5 * reach * float(np.sin(angle)), floor - 0.13 - reach * float(np.cos(angle)))
        root, middle = (x, floor - 0.13), (x + 0.2 * reach * float(np.sin(angle)), floor - 0.13 - 0.62 * reach)
        green = (52 + rng.uniform(0, 18), 92 + rng.uniform(0, 30), 62 + rng.uniform(0, 14))
        canvas.fill([root, (middle[0] - 0.010, middle[1]), tip, (middle[0] + 0.012, middle[1] + 0.02)], green)


def entrance(size: tuple[int, int]) -> Image:
    """Draw a lobby wall with a glass door in it, tiles running towards the camera."""
    canvas, floor = _Canvas(size), 0.60
    canvas.fill(_rectangle(0, 0, 1, floor), (176, 190, 197), (150, 166, 174))
    canvas.fill(_rectangle(0, 0, 1, 0.07), (205, 210, 212), (192, 198, 200))
    canvas.line((0, 0.07), (1, 0.07), (135, 145, 150), thick=0.004)
    for x in (0.16, 0.84):  # two downlights wash the wall
        canvas.ellipse((x, 0.12), (0.10, 0.26), (214, 228, 236), alpha=0.42, soft=0.07)
    canvas.fill(_rectangle(0, floor, 1, 1), (122, 128, 131), (92, 97, 100))
    vanishing = (0.5, 0.18)
    for x in np.linspace(-2.4, 3.4, 30):  # joints between the tiles meet behind the door ...
        start = _between(vanishing, (float(x), 1), (floor - vanishing[1]) / (1 - vanishing[1]))
        canvas.line(start, (float(x), 1), (82, 87, 90), thick=0.0028, alpha=0.55)
    for depth in np.geomspace(1, 1.95, 8):  # ... and crowd towards the wall
        y = vanishing[1] + (1 - vanishing[1]) / float(depth)
        canvas.line((0, y), (1, y), (82, 87, 90), thick=0.0028, alpha=0.55)
    canvas.fill(_rectangle(0, floor - 0.022, 1, floor), (108, 116, 121), (92, 99, 104))
    canvas.fill([(0, floor), (1, floor), (1, floor + 0.05), (0, floor + 0.05)], (60, 63, 66), alpha=0.35, soft=0.02)

    left, right, top, middle = 0.35, 0.63, 0.13, 0.49
    canvas.fill(_rectangle(left - 0.016, top - 0.028, right + 0.016, floor), (74, 70, 66), (60, 57, 54))
    for x0, x1 in ((left, middle - 0.006), (middle + 0.006, right)):
        canvas.fill(_rectangle(x0, top, x1, floor - 0.012), (238, 232, 222), (206, 205, 200))
        canvas.fill(_rectangle(x0, 0.43, x1, 0.50), (140, 168, 150), (122, 150, 132), alpha=0.65)  # a hedge outside
        canvas.fill(_rectangle(x0, 0.50, x1, floor - 0.012), (188, 190, 190), (172, 175, 176), alpha=0.9)
        shine = x0 + 0.45 * (x1 - x0)
        canvas.fill(
            [(shine, top), (shine + 0.04, top), (shine - 0.01, 0.5), (shine - 0.05, 0.5)], (250, 248, 244), alpha=0.3
        )
    canvas.line((middle - 0.017, 0.33), (middle - 0.017, 0.47), (96, 96, 98), thick=0.008)  # one handle: two are eyes
    canvas.fill([(left, floor), (right, floor), (0.78, 1), (0.2, 1)], (214, 214, 208), alpha=0.22, soft=0.03)
    canvas.fill([(0.375, 0.635), (0.605, 0.635), (0.645, 0.76), (0.335, 0.76)], (62, 60, 58), (54, 52, 50), alpha=0.92)

    canvas.fill(_rectangle(0.74, 0.20, 0.93, 0.40), (128, 134, 138), (118, 124, 128))  # a notice board
    canvas.fill(_rectangle(0.745, 0.208, 0.925, 0.392), (138, 156, 166), (130, 148, 158))
    canvas.fill(_rectangle(0.76, 0.232, 0.83, 0.35), (214, 218, 220))
    canvas.fill(_rectangle(0.845, 0.245, 0.905, 0.33), (206, 196, 176))
    _plant(canvas, 0.25, 0.68)
    return canvas.finished(seed=1)


def hall(size: tuple[int, int]) -> Image:
    """Draw a corridor seen along its length: windows on one side, doors on the other, light panels above."""
    canvas, vanishing = _Canvas(size), (0.55, 0.30)
    far, corners = 0.22, ((0.0, -0.12), (1.0, -0.12), (1.0, 1.0), (0.0, 1.0))
    a, b, c, d = (_between(vanishing, corner, far) for corner in corners)  # the far wall
    canvas.fill([corners[0], corners[1], b, a], (196, 196, 192), (172, 172, 168))
    canvas.fill([corners[1], corners[2], c, b], (158, 150, 140), (128, 121, 112))
    canvas.fill([corners[0], a, d, (0, 1)], (184, 178, 168), (148, 142, 132))
    canvas.fill([d, c, (1, 1), (0, 1)], (104, 118, 132), (84, 97, 110))
    canvas.fill([a, b, c, d], (176, 172, 166), (152, 148, 142))

    def across(u: float, v: float, share: float) -> Point:
        """Place the point (u, v) of the corridor's cross-section, *share* of the way from the far end to the camera."""
        edge = (u, -0.12 + 1.12 * v)
        return _between(vanishing, edge, share)

    for share in np.geomspace(far, 1, 11):  # tiles again, this time along the corridor
        canvas.line(across(0, 1, float(share)), across(1, 1, float(share)), (70, 82, 94), thick=0.002, alpha=0.5)
    for u in np.linspace(0, 1, 15)[1:-1]:
        canvas.line(across(float(u), 1, far), across(float(u), 1, 1), (70, 82, 94), thick=0.0022, alpha=0.6)
    for near, end in ((0.27, 0.33), (0.40, 0.52), (0.66, 0.90)):
        panel = [across(0.38, 0, near), across(0.62, 0, near), across(0.62, 0, end), across(0.38, 0, end)]
        canvas.fill(panel, (240, 240, 234), soft=0.004)
        glow = [across(0.25, 1, near), across(0.75, 1, near), across(0.75, 1, end), across(0.25, 1, end)]
        canvas.fill(glow, (190, 200, 206), alpha=0.22, soft=0.03)
    for near, end in ((0.28, 0.37), (0.45, 0.62), (0.76, 1.02)):  # windows to the left
        frame = [across(0, 0.22, near), across(0, 0.22, end), across(0, 0.66, end), across(0, 0.66, near)]
        canvas.fill(frame, (120, 116, 110))
        inset = (end - near) * 0.05
        near, end = near + inset, end - inset  # noqa: PLW2901  the glass sits inside the frame
        glass = [across(0, 0.24, near), across(0, 0.24, end), across(0, 0.64, end), across(0, 0.64, near)]
        canvas.fill(glass, (244, 238, 226), (214, 216, 206))
        light = [across(0.02, 1, near), across(0.02, 1, end), across(0.34, 1, end * 0.97), across(0.34, 1, near * 0.97)]
        canvas.fill(light, (206, 212, 214), alpha=0.30, soft=0.012)
    for near, end in ((0.30, 0.40), (0.56, 0.78)):  # doors to the right
        leaf = [across(1, 0.30, near), across(1, 0.30, end), across(1, 1, end), across(1, 1, near)]
        canvas.fill(leaf, (88, 104, 122), (74, 89, 106))
        canvas.line(leaf[0], leaf[1], (66, 74, 84), thick=0.004)
        canvas.line(leaf[0], leaf[3], (66, 74, 84), thick=0.004)
        canvas.line(leaf[1], leaf[2], (66, 74, 84), thick=0.004)
    for u in (0.0, 1.0):  # skirting, and the shade where wall meets floor
        board = [across(u, 1, far), across(u, 1, 1), across(u, 0.96, 1), across(u, 0.96, far)]
        canvas.fill(board, (120, 122, 122), (104, 106, 106))
        inner = 0.05 if u == 0 else 0.95
        shade = [across(u, 1, far), across(u, 1, 1), across(inner, 1, 1), across(inner, 1, far)]
        canvas.fill(shade, (50, 56, 62), alpha=0.35, soft=0.012)
    canvas.line(d, c, (110, 112, 112), thick=0.008)
    door = [_between(d, c, 0.36), _between(d, c, 0.64)]
    canvas.fill([(door[0][0], 0.285), (door[1][0], 0.285), door[1], door[0]], (96, 108, 118), (84, 96, 106))
    return canvas.finished(seed=2)


VIEWS: Final[Mapping[str, Callable[[tuple[int, int]], Image]]] = {"entrance": entrance, "hall": hall}
