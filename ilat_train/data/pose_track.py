"""One steady motion out of several guesses at the pose in each frame of a video."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ilat_runtime.joints import FLIP

FloatArray = npt.NDArray[np.float32]

SWAP_COST = 0.005
"""Cost a frame of exchanging left and right, in body sizes: settles which of two mirrored tracks is meant."""
ODD_COST = 0.5
"""Weight of a guess's distance from the frame's median guess, against that of the motion between frames."""
WINDOW = 5
"""Frames over which a parabola is fitted to steady a landmark."""


def choose(guesses: Sequence[FloatArray], least_visible: float = 0.1) -> FloatArray:
    """The poses of a video: for every frame one of its guesses, so that the whole track moves least.

    A pose estimator now and then takes a person's front for the back; a guess with left and right exchanged is
    therefore considered too. Shortest path through the guesses (Viterbi), then light smoothing in time.

    Args:
        guesses: for each frame float32 (M, 13, 3): x, y in pixels, probability of being visible. M may be 0.
        least_visible: a landmark with at least this probability counts as visible.

    Returns:
        float32 (N, 13, 3): x, y in pixels, visibility 0 or 1; all 0 where a frame has no guess.
    """
    track = np.zeros((len(guesses), len(FLIP), 3), np.float32)
    found = [index for index, guess in enumerate(guesses) if len(guess)]
    if not found:
        return track
    size = float(np.median([_extent(guesses[index]) for index in found])) or 1.0
    options = [np.concatenate([guesses[index], guesses[index][:, list(FLIP)]]) for index in found]
    total = _odd(options[0], size)
    came_from: list[npt.NDArray[np.intp]] = []
    for before, now in pairwise(options):
        step = np.linalg.norm(now[:, None, :, :2] - before[None, :, :, :2], axis=-1).mean(-1) / size
        cost = total[None] + step
        came_from.append(cost.argmin(1))
        total = cost.min(1) + _odd(now, size)
    best = int(total.argmin())
    for position in range(len(found) - 1, -1, -1):
        track[found[position]] = options[position][best]
        if position:
            best = int(came_from[position - 1][best])
    for run in np.split(np.array(found), np.flatnonzero(np.diff(found) > 1) + 1):
        track[run] = _smooth(track[run])
    seen = track[..., 2] >= least_visible
    track[..., 2] = seen & np.isin(np.arange(len(guesses)), found)[:, None]
    return track


def _extent(guess: FloatArray) -> float:
    middle = np.median(guess[..., :2], axis=0)
    return float((middle.max(0) - middle.min(0)).max())


def _odd(options: FloatArray, size: float) -> npt.NDArray[np.float64]:
    """Cost of each option by itself: far from what most looks say (whichever way round), or exchanged."""
    half = len(options) // 2
    straight = options[:half, :, :2]
    away = np.linalg.norm(straight - np.median(straight, axis=0), axis=-1).mean(-1)
    turned = np.linalg.norm(straight[:, list(FLIP)] - np.median(straight, axis=0), axis=-1).mean(-1)
    odd = ODD_COST * np.minimum(away, turned) / size
    return np.concatenate([odd, odd + SWAP_COST])


def _smooth(track: FloatArray) -> FloatArray:
    """Fit a parabola around every frame (Savitzky-Golay); near the ends the window is not centred."""
    count = len(track)
    width = min(WINDOW, count)
    if width < 4:  # a parabola through three points changes nothing
        return track
    result = np.empty_like(track)
    for index in range(count):
        start = min(max(index - width // 2, 0), count - width)
        times = np.arange(start, start + width) - index
        result[index] = np.tensordot(np.linalg.pinv(np.vander(times, 3))[2], track[start : start + width], axes=1)
    return result
