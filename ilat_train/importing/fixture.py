"""Fixtures of parity: what the authors' released code computed, and the stand-in weights that it did it with.

A fixture is ``NAME.json`` (the released configuration; every parameter's name and shape) and ``NAME.npz`` (inputs and
outputs of the released code, float32 on a CPU). The weights are not stored: :func:`stand_in` makes them from a
parameter's name and shape.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ilat_runtime.errors import InputError

from ..json_file import read_json
from ..models import TSVQGAN, LocalTransformer
from .convert import convert
from .formats import TIED, recognise

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Fixture:
    """Attributes:
    name: the file's, without its suffix.
    config: the released configuration.
    shapes: of every parameter, by its released name.
    arrays: the released code's inputs and outputs.
    """

    name: str
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    arrays: dict[str, Array]

    def get(self, name: str, *shape: int | None) -> Array:
        """An input. Raises InputError where it is missing or of another shape (None: any extent)."""
        if name not in self.arrays:
            raise InputError(f"{self.name}.npz: {name}: missing")
        found = self.arrays[name]
        if found.ndim != len(shape) or any(
            want not in (None, have) for want, have in zip(shape, found.shape, strict=True)
        ):
            expected = ", ".join("any" if extent is None else str(extent) for extent in shape)
            raise InputError(f"{self.name}.npz: {name}: shape {found.shape}, expected ({expected})")
        return found

    def tokens(self, name: str, size: int, *shape: int | None) -> Array:
        """An input of tokens, int64. Raises InputError as :meth:`get`, or where one is not below ``size``."""
        found = self.get(name, *shape)
        if found.dtype.kind not in "iu" or found.size == 0 or found.min() < 0 or found.max() >= size:
            raise InputError(f"{self.name}.npz: {name}: expected whole numbers from 0 to {size - 1}")
        return found.astype(np.int64)


def read_fixture(file: Path) -> Fixture:
    """The fixture of ``NAME.json``, with ``NAME.npz`` beside it.

    Raises:
        InputError: one of the files is missing, damaged or not of this form; it is named.
    """
    content = read_json(file, "a fixture's JSON file")
    config = content.get("config") if isinstance(content, dict) else None
    parameters = content.get("parameters") if isinstance(content, dict) else None
    if not isinstance(config, dict) or not isinstance(parameters, dict) or not parameters:
        raise InputError(f"{file}: not a fixture, expected the objects 'config' and 'parameters'")
    for name, shape in parameters.items():
        if not isinstance(shape, list) or not all(isinstance(n, int) and 0 < n < 2**31 for n in shape):
            raise InputError(f"{file}: parameters.{name}: {shape!r}, expected a list of positive whole numbers")
    numbers = file.with_suffix(".npz")
    try:
        with np.load(numbers, allow_pickle=False) as opened:
            arrays = {name: opened[name] for name in opened.files}
    except FileNotFoundError:
        raise InputError(f"{numbers}: no such file; it belongs to {file.name}") from None
    except Exception as error:  # damage shows in many ways: a bad archive, a wrong header, an object array
        raise InputError(f"{numbers}: not an archive of arrays ({error})") from None
    return Fixture(file.stem, config, {name: tuple(shape) for name, shape in parameters.items()}, arrays)


def stand_in(name: str, shape: tuple[int, ...]) -> Tensor:
    """The parameter's value by the fixtures' rule: normal noise from a generator seeded with the name's CRC-32.

    Noise of two or more axes is divided by the root of what one output sums over, but halved where the name has "emb"
    in it; a gain is 1 plus a tenth of the noise, any other vector a tenth of it.
    """
    seed = np.random.PCG64(zlib.crc32(name.encode()))
    noise = np.random.Generator(seed).standard_normal(shape, dtype=np.float32)
    if noise.ndim > 1:
        fan_in = np.float32(math.sqrt(math.prod(shape[1:])))
        return torch.from_numpy(noise * np.float32(0.5) if "emb" in name else noise / fan_in)
    gain = np.float32(1 if name.endswith("weight") else 0)
    return torch.from_numpy(gain + np.float32(0.1) * noise)


def imported(fixture: Fixture) -> TSVQGAN | LocalTransformer:
    """The fixture's model, by way of a checkpoint's parameters and the same code that imports checkpoints.

    Raises:
        InputError: the parameters are those of no format, or as :func:`~ilat_train.importing.convert.convert`.
    """
    form = recognise(fixture.shapes)
    if form is None:
        raise InputError(f"{fixture.name}.json: parameters: of no format that can be imported")
    parameters: dict[str, Tensor] = {}
    for name, shape in fixture.shapes.items():
        first = TIED.get(name, name)
        shared = parameters.get(first) if fixture.shapes.get(first) == shape else None
        parameters[name] = stand_in(first, shape) if shared is None else shared
    known = {"pose_tokens": fixture.arrays["target_pose"].shape[1]} if "target_pose" in fixture.arrays else None
    where = f"{fixture.name}.json: config"
    return convert(parameters, form, fixture.config, where, known).model
