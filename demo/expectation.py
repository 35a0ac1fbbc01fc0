"""What the pipeline should count, given which part of a looping clip a camera has sent it."""

from __future__ import annotations

import math

from demo.clip import Clip

_GRACE_S = 1e-6  # sums of floats: a passage shown exactly `least_s` counts


def expected_visitors(clip: Clip, from_s: float, to_s: float, *, least_s: float = 1.0) -> int:
    """Count the passages of which at least *least_s* seconds were shown in [from_s, to_s], over all loops.

    *from_s* and *to_s* are seconds on a camera's continuous timeline, which starts with the clip and repeats it every
    `clip.seconds`; an interval that ends before it starts shows nothing. A passage never runs across the loop's seam,
    because the view is empty there.
    """
    if to_s <= from_s:
        return 0
    loops = range(math.floor(from_s / clip.seconds), math.floor(to_s / clip.seconds) + 1)
    return sum(
        min(to_s, loop * clip.seconds + passage.leave_s) - max(from_s, loop * clip.seconds + passage.enter_s)
        >= least_s - _GRACE_S
        for loop in loops
        for passage in clip.passages
    )
