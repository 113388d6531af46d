"""Reading a checkpoint without running code from it, and taking the model's parameters out of their wrapping."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from ilat_runtime.errors import InputError

from ..json_file import read_json

WRAPPERS = ("state_dict", "g_model", "model", "module")
"""What a model's parameters are kept under, beside optimizers, or put before their names."""
PASSED_OVER = ("loss", "optimizer", "optimizers", "optimizer_states", "lr_schedulers", "discriminator", "d_model")
"""First words of names beside the model's own that training needs and a model does not."""
BOOKKEEPING = re.compile(
    r"(pytorch_lightning|lightning|lightning_fabric|omegaconf)\.[\w.]+|argparse\.Namespace"
    r"|numpy\.(_core|core)\.multiarray\.scalar|numpy\.dtype|numpy\.dtypes\.\w+"
)
"""Names that trainers leave in their checkpoints. An inert object stands in for each; nothing of theirs is imported."""


@dataclass
class Contents:
    """Parameters by name, and what was passed over: first words of names, and how many tensors each stands for."""

    parameters: dict[str, Tensor]
    passed_over: dict[str, int] = field(default_factory=dict)


class _Inert:
    """Takes whatever it is made from or set to, and does nothing with it."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...

    def __setitem__(self, *_: Any) -> None: ...


def read_checkpoint(file: Path) -> Contents:
    """The parameters in a PyTorch checkpoint or a safetensors file.

    Raises:
        InputError: missing, truncated, of another kind, holding code (which is not run) or no parameters; it names the
            file.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(9)
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or error}; expected a checkpoint file") from None
    # A safetensors file begins with the length of its header, which is JSON.
    content = _safetensors(file) if start[8:9] == b"{" else _torch(file)
    contents = Contents({})
    _unwrap(content, contents, file)
    _strip(contents)
    if not contents.parameters:
        raise InputError(f"{file}: holds no parameters; expected a model's, as they are or under {', '.join(WRAPPERS)}")
    return contents


def _safetensors(file: Path) -> Mapping[str, Any]:
    try:
        return load_file(file)
    except Exception as error:  # safetensors raises its own type for a damaged file
        raise InputError(f"{file}: damaged, or not a safetensors file ({_line(error)})") from None


def _torch(file: Path) -> Any:
    try:
        return _load(file)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it holds code ({found[1]})" if found else "it is a pickle of something else than tensors"
        raise InputError(
            f"{file}: refused: {what}; a checkpoint's code is never run, and only tensors are read"
        ) from None
    except Exception as error:  # damage shows in many ways: a bad archive, an early end, a wrong number
        raise InputError(f"{file}: damaged, or not a checkpoint ({_line(error)})") from None


def _load(file: Path) -> Any:
    """Tensors and plain values only; :data:`BOOKKEEPING` gets stand-ins, and any other name is refused by PyTorch."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # not the archive that PyTorch writes today: torch.load judges it
        names = []
    stand_ins: list[Any] = [(_Inert, name) for name in names if BOOKKEEPING.fullmatch(name)]
    with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(file, map_location="cpu", weights_only=True)


def _unwrap(content: Any, contents: Contents, file: Path) -> None:
    """Descends into a wrapper; what lies beside it, or is no tensor, is passed over."""
    if not isinstance(content, Mapping):
        raise InputError(f"{file}: holds a {type(content).__name__}, expected a dictionary of parameters")
    inner = [name for name in WRAPPERS if isinstance(content.get(name), Mapping)]
    if len(inner) > 1:
        raise InputError(f"{file}: holds both {inner[0]!r} and {inner[1]!r}, expected one model")
    for name, value in content.items():
        if inner and name == inner[0]:
            continue
        if not inner and isinstance(name, str) and isinstance(value, Tensor):
            contents.parameters[name] = value
        else:
            _pass_over(contents, str(name), _tensors(value))
    if inner:
        _unwrap(content[inner[0]], contents, file)


def _strip(contents: Contents) -> None:
    """Takes wrappers' names off the parameters' own, and those that only training needs out."""
    while True:
        words = [name.partition(".")[0] for name in contents.parameters]
        prefix = next((f"{word}." for word in WRAPPERS if word in words), None)
        if prefix is None:
            break
        inside = {name[len(prefix) :]: value for name, value in contents.parameters.items() if name.startswith(prefix)}
        for name in contents.parameters:
            if not name.startswith(prefix):
                _pass_over(contents, name.partition(".")[0], 1)
        contents.parameters = inside
    for name in list(contents.parameters):
        if name.partition(".")[0] in PASSED_OVER:
            del contents.parameters[name]
            _pass_over(contents, name.partition(".")[0], 1)


def _pass_over(contents: Contents, name: str, tensors: int) -> None:
    contents.passed_over[name] = contents.passed_over.get(name, 0) + tensors


def _tensors(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(_tensors(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return sum(_tensors(item) for item in value)
    return int(isinstance(value, Tensor))


def read_config(file: Path) -> dict[str, Any]:
    """The authors' configuration of a model from their JSON or YAML file; a ``model.params`` around it is taken off.

    Raises:
        InputError: missing, neither JSON nor YAML, or no object.
    """
    if file.suffix.lower() in (".yaml", ".yml"):
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{file}: {error.strerror or error}; expected a JSON or YAML file") from None
        except (yaml.YAMLError, ValueError) as error:
            raise InputError(f"{file}: not a YAML file ({_line(error)})") from None
    else:
        content = read_json(file, "the authors' configuration, JSON or .yaml")
    for key in ("model", "params"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected an object with the authors' keys")
    return content


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
