"""What a surveillance camera does to a face: small, blurred, compressed, noisy, dark, tilted, hidden, colourless.

The degradations are functions on one RGB crop, used at random in training and one at a time in the robustness curves of
evaluation. Everything random comes from the generator that is passed in, so that a step can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Crop = NDArray[np.uint8]
"""(side, side, 3), RGB."""

_WHITE: Final = 255


def _bytes(values: NDArray[np.floating]) -> Crop:
    return np.asarray(np.clip(np.rint(values), 0, _WHITE), np.uint8)


def smaller(crop: Crop, side_px: float) -> Crop:
    """Show the face as it looks when it was only *side_px* large: scaled down, then up again."""
    side = crop.shape[0]
    small = max(4, round(side_px))
    if small >= side:
        return crop
    down = cv2.resize(crop, (small, small), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(down, (side, side), interpolation=cv2.INTER_LINEAR), np.uint8)


def blurred(crop: Crop, sigma_ratio: float) -> Crop:
    """Put the face out of focus: a Gaussian whose sigma is *sigma_ratio* of the side."""
    sigma = sigma_ratio * crop.shape[0]
    return crop if sigma < 0.1 else np.asarray(cv2.GaussianBlur(crop, (0, 0), sigma), np.uint8)


def motion_blurred(crop: Crop, length_ratio: float, angle_rad: float) -> Crop:
    """Smear the face along a line of *length_ratio* of the side."""
    length = max(1, round(length_ratio * crop.shape[0])) | 1
    if length == 1:
        return crop
    kernel = np.zeros((length, length), np.float32)
    half = length // 2
    reach = np.array([np.cos(angle_rad), np.sin(angle_rad)]) * half
    begin, end = (np.rint(half + sign * reach).astype(int).tolist() for sign in (-1, 1))
    cv2.line(kernel, begin, end, 1.0)
    return np.asarray(cv2.filter2D(crop, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE), np.uint8)


def compressed(crop: Crop, quality: int) -> Crop:
    """Pass the face through JPEG at *quality* 1..100."""
    done, data = cv2.imencode(".jpg", crop, (cv2.IMWRITE_JPEG_QUALITY, quality))
    assert done, "OpenCV always encodes a three-channel picture"
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


def darkened(crop: Crop, light: float, generator: Generator | None = None) -> Crop:
    """Leave *light* 0..1 of the light; with a generator, with the noise of a sensor that has little of it."""
    values = crop.astype(np.float32) * light
    if generator is not None:
        values += generator.normal(0, 4 * (1 - light), crop.shape).astype(np.float32)
    return _bytes(values)


def noisy(crop: Crop, sigma: float, generator: Generator) -> Crop:
    """Add sensor noise of *sigma* grey levels."""
    return _bytes(crop + generator.normal(0, sigma, crop.shape))


def moved(crop: Crop, *, angle_deg: float = 0, scale: float = 1, shift: tuple[float, float] = (0, 0)) -> Crop:
    """Rotate and scale about the middle and shift by fractions of the side; the edge is continued, as in alignment."""
    side = crop.shape[0]
    middle = (side - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), angle_deg, scale)
    matrix[:, 2] += np.asarray(shift) * side
    return np.asarray(
        cv2.warpAffine(crop, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8
    )


def occluded(crop: Crop, generator: Generator) -> Crop:
    """Hide part of the face: a mask or scarf from below, a hat from above, or a patch anywhere; up to a third of it."""
    out, side = crop.copy(), crop.shape[0]
    colour = generator.integers(0, 256, 3)
    kind = generator.integers(3)
    if kind == 0:
        out[round(side * generator.uniform(0.55, 0.9)) :] = colour
    elif kind == 1:
        out[: round(side * generator.uniform(0.05, 0.22))] = colour
    else:
        height, width = (side * generator.uniform(0.15, 0.5, 2)).astype(int)
        top, left = generator.integers(0, side - height + 1), generator.integers(0, side - width + 1)
        out[top : top + height, left : left + width] = (
            colour if generator.random() < 0.5 else generator.integers(0, 256, (height, width, 3))
        )
    return out


def tinted(crop: Crop, gains: NDArray[np.floating]) -> Crop:
    """Multiply red, green and blue by *gains*: another lamp, another white balance."""
    return _bytes(crop * gains)


def grey(crop: Crop) -> Crop:
    """Take the colour away, as infra-red light does at night."""
    return np.asarray(cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8)


def relit(crop: Crop, *, gain: float, offset: float, gamma: float) -> Crop:
    """Change contrast, brightness (fraction of full) and gamma."""
    levels = np.arange(256, dtype=np.float32) / _WHITE
    table = _bytes(_WHITE * np.clip((levels - 0.5) * gain + 0.5 + offset, 0, 1) ** gamma)
    return np.asarray(cv2.LUT(crop, table), np.uint8)


def degrade(  # noqa: C901  a list of chances: each stands alone
    crop: Crop, generator: Generator, strength: float = 1.0
) -> Crop:
    """Do to one crop what a camera might: flip, move, light, lens, sensor and wire, in the order of nature.

    *strength* 0 only flips, 1 is the recipe's, 2 twice as often and as far.
    """
    often: Callable[[float], bool] = lambda chance: generator.random() < min(0.9, chance * strength)  # noqa: E731  reads as a word below
    if generator.random() < 0.5:
        crop = np.ascontiguousarray(crop[:, ::-1])
    if strength <= 0:
        return crop
    crop = moved(
        crop,
        angle_deg=generator.normal(0, 7 * strength),
        scale=float(np.exp(generator.normal(0, 0.08 * strength))),
        shift=tuple(generator.normal(0, 0.04 * strength, 2)),
    )
    if often(0.15):
        crop = occluded(crop, generator)
    if often(0.8):
        crop = relit(
            crop,
            gain=float(np.exp(generator.normal(0, 0.2 * strength))),
            offset=generator.normal(0, 0.08 * strength),
            gamma=float(np.exp(generator.normal(0, 0.2 * strength))),
        )
    if often(0.15):
        crop = darkened(crop, generator.uniform(0.25, 0.8), generator)
    if often(0.3):
        crop = tinted(crop, np.exp(generator.normal(0, 0.08 * strength, 3)))
    if often(0.12):
        crop = grey(crop)
    if often(0.2):
        crop = blurred(crop, generator.uniform(0.004, 0.02))
    if often(0.1):
        crop = motion_blurred(crop, generator.uniform(0.02, 0.09), generator.uniform(0, np.pi))
    if often(0.35):
        crop = smaller(crop, crop.shape[0] * generator.uniform(0.22, 0.8))
    if often(0.2):
        crop = noisy(crop, generator.uniform(2, 12), generator)
    if often(0.5):
        crop = compressed(crop, int(generator.integers(20, 80)))
    return crop


def step_generator(seed: int, step: int, place: int) -> Generator:
    """Give the generator for one crop of one step: the same wherever and whenever that step is made."""
    return np.random.default_rng((seed, step, place))
