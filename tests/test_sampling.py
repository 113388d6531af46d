from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ilat_runtime.errors import InputError
from ilat_runtime.sampling import uniform

MASK = 2**64 - 1


def mix(z: int) -> int:
    z = (z + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


@given(st.integers(0, MASK), st.integers(0, 4095), st.integers(0, 500))
def test_is_what_the_documentation_says(seed: int, token: int, entry: int) -> None:
    bits = mix(mix(mix(seed) ^ token) ^ entry) >> 41
    value = uniform(seed, [token], entry + 1)[0, entry]
    assert value.dtype == np.float32
    assert float(value) == (bits + 0.5) * 2.0**-23  # exact: the double holds every such number
    assert 0 < value < 1


def test_known_values() -> None:
    """For other implementations: the first output of splitmix64 with state 0 is 0xE220A8397B1DCDAF."""
    assert mix(0) == 0xE220A8397B1DCDAF
    assert [[float(value).hex() for value in row] for row in uniform(1, [0, 7], 3)] == [
        ["0x1.6314060000000p-1", "0x1.b15e540000000p-2", "0x1.cf38b00000000p-4"],
        ["0x1.ef52de0000000p-1", "0x1.e468320000000p-1", "0x1.a694540000000p-2"],
    ]


def test_does_not_depend_on_what_else_is_asked_for() -> None:
    alone = uniform(5, [9], 64)
    assert (uniform(5, [3, 9, 200], 128)[1, :64] == alone[0]).all()


def test_is_uniform() -> None:
    values = uniform(0, np.arange(256), 1024)
    assert abs(values.mean() - 0.5) < 0.002
    assert abs(np.histogram(values, 16, (0, 1))[0] / values.size - 1 / 16).max() < 0.001
    assert abs(np.corrcoef(values[:-1].ravel(), values[1:].ravel())[0, 1]) < 0.01
    assert np.isfinite(-np.log(-np.log(values))).all()


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5, True, "1"])
def test_wrong_seeds(seed: object) -> None:
    with pytest.raises(InputError, match="seed"):
        uniform(seed, [0], 1)  # type: ignore[arg-type]
