"""PyTorch graphs to ONNX, opset 24: names, dynamic dimensions, and the operators that PyTorch has no word for."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxscript.values import Opset
from torch import Tensor, nn

from ilat_runtime.manifest import Tensor as TensorRecord

from . import graphs as _graphs  # noqa: F401  defines the custom operators
from .half import replace

OPSET = 24
_op: Any = Opset("", OPSET)


def _append(cache: Any, update: Any, write_index: Any) -> Any:
    return _op.TensorScatter(cache, update, write_index, axis=-2, mode="linear")


def _kth_largest(values: Any, k: Any) -> Any:
    largest, _ = _op.TopK(values, k, axis=-1, largest=1, sorted=1)
    return _op.Slice(largest, _op.Sub(k, _op.Constant(value_ints=[1])), k, _op.Constant(value_ints=[-1]))


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.ilat.append.default: _append,
    torch.ops.ilat.kth_largest.default: _kth_largest,
}


def to_onnx(
    module: nn.Module,
    inputs: Mapping[str, TensorRecord],
    outputs: Mapping[str, TensorRecord],
    sizes: Mapping[str, int],
) -> onnx.ModelProto:
    """Exports ``module`` with the names, dtypes and shapes of its record.

    Args:
        inputs, outputs: what the graph takes and gives, in the order of the module's arguments; dimensions that have a
            name are dynamic.
        sizes: an example size of each named dimension, distinct from the others'.
    """
    example = tuple(_example(record, sizes) for record in inputs.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module.eval(),
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=_dynamic_shapes(module, inputs),
            custom_translation_table=TRANSLATIONS,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    model = program.model_proto
    for record, values in ((inputs, model.graph.input), (outputs, model.graph.output)):
        for value in values:
            _set_shape(value, record[value.name])
    # Sizes inferred from the example's coincidences would contradict the names.
    del model.graph.value_info[:]
    model.producer_name, model.producer_version = "ilat_export", ""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.checker.check_model(model)
    return model


def store_half(model: onnx.ModelProto, least: int = 1024) -> onnx.ModelProto:
    """Stores float32 weights of at least ``least`` elements as float16 and casts them back as the graph is loaded.

    The arithmetic stays float32, and no value changes: only weights that float16 represents exactly are stored so,
    which is all that :func:`round_to_half` has rounded. One that the graph holds in float16 already, as half precision
    has the table of embeddings beside the logits' factor, is stored once.
    """
    casts, kept = [], []
    halves = [weight for weight in model.graph.initializer if weight.data_type == onnx.TensorProto.FLOAT16]
    for weight in model.graph.initializer:
        kept.append(weight)
        array = onnx.numpy_helper.to_array(weight)
        if array.dtype != np.float32 or array.size < least:
            continue
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), array):
            continue
        name, alike = weight.name, (w for w in halves if tuple(w.dims) == half.shape)
        stored = next((w.name for w in alike if np.array_equal(onnx.numpy_helper.to_array(w), half)), None)
        if stored is not None:
            kept.pop()
        else:
            stored = f"{name}_half"
            weight.CopyFrom(onnx.numpy_helper.from_array(half, stored))
        casts.append(onnx.helper.make_node("Cast", [stored], [name], name=f"{name}_cast", to=onnx.TensorProto.FLOAT))
    replace(model.graph.initializer, kept)
    replace(model.graph.node, [*casts, *model.graph.node])
    onnx.checker.check_model(model)
    return model


def round_to_half(module: nn.Module, least: int = 1024) -> None:
    """Rounds the parameters that :func:`store_half` stores as float16: PyTorch then computes with the same weights."""
    with torch.no_grad():
        for parameter in module.parameters():
            rounded = parameter.half().float()
            # Weights beyond float16's range stay as they are.
            if parameter.numel() >= least and bool(rounded.isfinite().all()):
                parameter.copy_(rounded)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Writes one self-contained file."""
    onnx.save_model(model, path)


def _example(record: TensorRecord, sizes: Mapping[str, int]) -> Tensor:
    shape = [sizes[extent] if isinstance(extent, str) else extent for extent in record.shape]
    dtype = getattr(torch, record.dtype)
    if dtype.is_floating_point:
        return torch.full(shape, 0.5, dtype=dtype)
    # Ones, so that an example top_k is a valid one.
    return torch.ones(shape, dtype=dtype)


def _dynamic_shapes(module: nn.Module, inputs: Mapping[str, TensorRecord]) -> Any:
    """PyTorch's description of the named dimensions, in the nesting of ``forward``'s arguments."""
    named: dict[str, Any] = {}

    def dims(record: TensorRecord) -> dict[int, Any]:
        result = {}
        for axis, extent in enumerate(record.shape):
            if isinstance(extent, str):
                # u and v are broadcast, so they may be 1 as well as what the example says.
                named.setdefault(extent, torch.export.Dim.AUTO if extent in "uv" else torch.export.Dim(extent, min=1))
                result[axis] = named[extent]
        return result

    shapes = [dims(record) for record in inputs.values()]
    parameters = inspect.signature(module.forward).parameters.values()
    fixed = sum(parameter.kind is not parameter.VAR_POSITIONAL for parameter in parameters)
    return (*shapes[:fixed], tuple(shapes[fixed:])) if fixed < len(shapes) else tuple(shapes)


def _set_shape(value: onnx.ValueInfoProto, record: TensorRecord) -> None:
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    for extent in record.shape:
        dimension = shape.dim.add()
        if isinstance(extent, str):
            dimension.dim_param = extent
        else:
            dimension.dim_value = extent
