"""Parameters of a checkpoint to a model of ours. Nothing is computed: they are renamed, and some are joined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ilat_runtime.errors import InputError
from ilat_runtime.manifest import file_record

from ..config import TokenizerConfig, TransformerConfig
from ..models import TSVQGAN, LocalTransformer
from .files import read_checkpoint, read_config
from .formats import BUFFERS, FORMATS, TIED, UNUSED, recognise
from .names import Part, parts
from .shapes import configuration


@dataclass
class Imported:
    """A model of ours with a checkpoint's parameters.

    Attributes:
        model: in evaluation mode, on the CPU.
        assumed: values of its configuration that neither the shapes nor a given configuration say.
        passed_over: what else the checkpoint holds: first words of names, and how many tensors each stands for.
        facts: for our checkpoint's ``config.json``.
    """

    model: TSVQGAN | LocalTransformer
    assumed: dict[str, Any]
    passed_over: dict[str, int]
    facts: dict[str, Any]


def import_checkpoint(file: Path, form: str, config: Path | None = None) -> Imported:
    """The model in a checkpoint file.

    Args:
        form: one of :data:`~ilat_train.importing.formats.FORMATS`.
        config: the authors' configuration, for what shapes do not show.

    Raises:
        InputError: one of the files cannot be read, holds code, or is not what it is said to be; it is named, and so is
            the first parameter or key that is wrong.
    """
    given = {} if config is None else read_config(config)
    contents = read_checkpoint(file)
    try:
        result = convert(contents.parameters, form, given, "--config" if config is None else str(config))
    except InputError as error:
        raise InputError(
            f"{file}: {error}" if config is None or str(config) not in str(error) else str(error)
        ) from None
    result.passed_over = contents.passed_over | result.passed_over
    result.facts["imported"] |= {"file": file.name, "sha256": file_record(file).sha256}
    return result


def convert(
    parameters: Mapping[str, Tensor],
    form: str,
    config: Mapping[str, Any] | None = None,
    where: str = "--config",
    known: Mapping[str, Any] | None = None,
) -> Imported:
    """The model that parameters of a checkpoint make.

    Args:
        parameters: by the checkpoint's names, floating point; they may become the model's own, uncopied.
        config, where: the authors' configuration and its name in errors.
        known: values of our configuration that take precedence over what the format fixes.

    Raises:
        InputError: a parameter is missing, not of this model, of another shape or type; or the configuration
            contradicts the shapes.
    """
    if form not in FORMATS:
        raise InputError(f"format {form!r}, expected one of {', '.join(FORMATS)}")
    found, passed_over = _untied(parameters)
    _check_format(found, form)
    for name in list(found):
        if name in UNUSED or name.rpartition(".")[2] in BUFFERS:
            passed_over[name] = 1
            del found[name]
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    values, assumed = configuration(form, shapes, config or {}, where, known or {})
    # Without memory or random numbers: every parameter comes from the checkpoint.
    with torch.device("meta"):
        model = (
            TSVQGAN(values)
            if isinstance(values, TokenizerConfig)
            else LocalTransformer(cast(TransformerConfig, values))
        )
    model.load_state_dict(_renamed(found, model), assign=True)
    return Imported(model.eval(), assumed, passed_over, {"imported": {"format": form}})


def _untied(parameters: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Without the second names of tables that have two."""
    found, passed_over = dict(parameters), dict[str, int]()
    for second, first in TIED.items():
        if second not in found:
            continue
        table = found.pop(second)
        if first not in found:
            found[first] = table
            continue
        if not torch.equal(table, found[first]):
            raise InputError(f"parameter {second} differs from {first}, expected one table under two names")
        passed_over[second] = 1
    return found, passed_over


def _check_format(found: Mapping[str, Tensor], form: str) -> None:
    if FORMATS[form].fits(found):
        return
    other = recognise(found)
    if other is not None:
        raise InputError(f"not a checkpoint of format {form!r}: its parameters are those of {other!r}")
    for name in FORMATS[form].marks:
        if name not in found:
            raise InputError(f"parameter {name} is missing (format {form!r})")
    extra = next(name for name in FORMATS[form].absent if name in found)
    raise InputError(f"parameter {extra} is not one of this model (format {form!r})")


def _renamed(found: Mapping[str, Tensor], model: TSVQGAN | LocalTransformer) -> dict[str, Tensor]:
    expected, table = model.state_dict(), parts(model)
    wanted = {part.name for each in table.values() for part in each}
    for name in (part.name for each in table.values() for part in each):
        if name is not None and name not in found:
            raise InputError(f"parameter {name} is missing")
    for name in found:
        if name not in wanted:
            raise InputError(f"parameter {name} is not one of this model")
    return {
        ours: torch.cat([_rows(found, part, expected[ours].shape[1:]) for part in each])
        if len(each) > 1
        else _rows(found, each[0], expected[ours].shape[1:])
        for ours, each in table.items()
    }


def _rows(found: Mapping[str, Tensor], part: Part, rest: torch.Size) -> Tensor:
    shape = (part.rows, *rest)
    if part.name is None:
        return torch.zeros(shape)
    tensor = found[part.name]
    if tuple(tensor.shape) != shape:
        raise InputError(f"parameter {part.name} has shape {tuple(tensor.shape)}, expected {shape}")
    if not tensor.is_floating_point():
        raise InputError(f"parameter {part.name} is {tensor.dtype}, expected floating point")
    return tensor.detach().float().contiguous()
