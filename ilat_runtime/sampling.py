"""Noise that depends on (seed, token, vocabulary entry) alone, so that order, batching and language do not change it.

A counter-based generator: nothing is drawn "next". For a seed s, an image token m (raster index) and a vocabulary entry
k, all unsigned 64-bit and wrapping around,

    mix(z):  z += 0x9E3779B97F4A7C15
             z  = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
             z  = (z ^ (z >> 27)) * 0x94D049BB133111EB
             return z ^ (z >> 31)                          (splitmix64, Steele, Lea and Flood 2014)

    hash(s, m, k)    = mix(mix(mix(s) ^ m) ^ k)
    uniform(s, m, k) = ((hash(s, m, k) >> 41) + 0.5) * 2^-23

The 23 bits and the half make an odd multiple of 2^-24: every value is exact in float32 and lies strictly between 0 and
1 (with 24 bits and a half the largest would round to 1, where the Gumbel noise -log(-log u) is infinite).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .errors import InputError

UnsignedArray = npt.NDArray[np.uint64]


def _mix(z: UnsignedArray) -> UnsignedArray:
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniform(seed: int, tokens: npt.ArrayLike, vocabulary: int) -> npt.NDArray[np.float32]:
    """Noise for image ``tokens`` (any number of raster indices), float32 (len(tokens), vocabulary) in (0, 1).

    Raises:
        InputError: the seed is not a whole number from 0 to 2^64 - 1.
    """
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool) or not 0 <= seed < 2**64:
        raise InputError(f"seed: {seed!r}, expected a whole number from 0 to 2^64 - 1")
    # Arrays throughout: numpy warns of a scalar's wrap-around, never of an array's.
    rows = _mix(_mix(np.array([seed], np.uint64)) ^ np.asarray(tokens, np.uint64).reshape(-1, 1))
    bits = _mix(rows ^ np.arange(vocabulary, dtype=np.uint64)) >> np.uint64(41)
    return ((bits.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)).astype(np.float32)
