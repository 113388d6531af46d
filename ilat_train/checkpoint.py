"""Our checkpoint: a folder with ``config.json`` and ``model.safetensors``, and ``state.pt`` to go on from."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ilat_runtime.errors import InputError

from .config import Strict, TokenizerConfig, TransformerConfig, parse
from .json_file import read_json
from .models import TSVQGAN, LocalTransformer

FORMAT, VERSION = "ilat-checkpoint", 1
KINDS: dict[str, tuple[type[Strict], Callable[[Any], nn.Module]]] = {
    "tokenizer": (TokenizerConfig, TSVQGAN),
    "transformer": (TransformerConfig, LocalTransformer),
}


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Writes under a temporary name and moves the file into place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save(folder: Path, module: TSVQGAN | LocalTransformer, facts: dict[str, Any]) -> None:
    """Writes the model; ``facts`` (steps, data, seed) go to config.json, for people and the bundle's provenance."""
    kind = "tokenizer" if isinstance(module, TSVQGAN) else "transformer"
    content = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "config": module.config.model_dump(mode="json"),
        "facts": facts,
    }
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in module.state_dict().items()}
    _replace(folder / "model.safetensors", lambda path: save_file(tensors, path))
    _replace(
        folder / "config.json", lambda path: path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The content of config.json.

    Raises:
        InputError: the folder is no checkpoint of ours.
    """
    file = folder / "config.json"
    content = read_json(file, "a checkpoint folder")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{file}: format: expected {FORMAT!r}")
    if content.get("version") != VERSION:
        raise InputError(f"{file}: version: {content.get('version')!r}, this version reads {VERSION}")
    if content.get("kind") not in KINDS:
        raise InputError(f"{file}: kind: {content.get('kind')!r}, expected one of {', '.join(KINDS)}")
    return content


def load(folder: str | Path) -> TSVQGAN | LocalTransformer:
    """The model of a checkpoint folder, on the CPU, in evaluation mode.

    Raises:
        InputError: a file is missing or damaged, or the parameters do not fit the configuration.
    """
    folder = Path(folder)
    content = read_config(folder)
    config_type, model_type = KINDS[content["kind"]]
    module = model_type(parse(config_type, content.get("config", {}), f"{folder / 'config.json'}: config"))
    file = folder / "model.safetensors"
    try:
        tensors = load_file(file)
    except FileNotFoundError:
        raise InputError(f"{file}: no such file") from None
    except Exception as error:  # safetensors raises its own type for a damaged file
        raise InputError(f"{file}: not a safetensors file ({error})") from None
    expected = module.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors:
            raise InputError(f"{file}: parameter {name} is missing")
        if name not in expected:
            raise InputError(f"{file}: parameter {name} is not one of this model")
        if tensors[name].shape != expected[name].shape:
            shapes = tuple(tensors[name].shape), tuple(expected[name].shape)
            raise InputError(f"{file}: parameter {name} has shape {shapes[0]}, expected {shapes[1]}")
    module.load_state_dict(tensors)
    if not isinstance(module, TSVQGAN | LocalTransformer):
        raise InputError(f"{folder}: unknown model")
    return module.eval()


def load_tokenizer(folder: Path) -> TSVQGAN:
    """As :func:`load`; raises InputError for another kind of checkpoint."""
    module = load(folder)
    if not isinstance(module, TSVQGAN):
        raise InputError(f"{folder}: kind: a transformer, expected a tokenizer")
    return module


def load_transformer(folder: Path) -> LocalTransformer:
    """As :func:`load`; raises InputError for another kind of checkpoint."""
    module = load(folder)
    if not isinstance(module, LocalTransformer):
        raise InputError(f"{folder}: kind: a tokenizer, expected a transformer")
    return module


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Writes what a run needs to go on: step, parameters, optimizer states."""
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / "state.pt", lambda path: torch.save(state, path))


def load_state(folder: Path) -> dict[str, Any]:
    """Reads it back, without unpickling code.

    Raises:
        InputError: missing or damaged.
    """
    file = folder / "state.pt"
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; nothing to resume") from None
    except Exception as error:
        raise InputError(f"{file}: damaged or not a training state ({type(error).__name__})") from None
    if not isinstance(state, dict) or not isinstance(state.get("step"), int):
        raise InputError(f"{file}: damaged or not a training state (no step in it)")
    return state
