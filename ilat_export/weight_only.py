"""8 and 4 bit weights for the transformer's matrix products: ``MatMulNBits`` of ONNX Runtime, on CPUs."""

from __future__ import annotations

import logging

import onnx
from onnx import numpy_helper
from onnxruntime.quantization import matmul_nbits_quantizer as quantizer

from .half import plain_weights

LARGE_BLOCKS, BLOCK, GELU_BLOCK = (128, 64), 32, 16
"""Weights that share a scale and an offset. 8 bits take the first of the large blocks that divides a column: a step is
faster than with smaller ones and no tokens are lost by it. 4 bits take small ones, the smallest after a GELU, which
gives few large activations among many near 0. docs/results.md has what was measured.
"""
INT8_ACTIVATIONS = 4
"""``accuracy_level``: activations are rounded to 8 bits too, for the products of integers that CPUs have."""


def quantize(model: onnx.ModelProto, bits: int) -> onnx.ModelProto:
    """The graph with the constant factors of its matrix products rounded to ``bits``, 8 or 4, block by block.

    The logits' factor, a copy of a part of the table of embeddings, has 8 bits in any case. Left as they are: the
    embeddings, and the products before the first block (the PointMLP, whose coordinates 8 bits would blur).
    """
    model = _constant_factors(plain_weights(model))
    products = [node.name for node in model.graph.node if node.op_type == "MatMul"]
    kinds = [node.op_type for node in model.graph.node]
    first = kinds.index("LayerNormalization") if "LayerNormalization" in kinds else 0
    spared = [node.name for node in model.graph.node[:first] if node.op_type == "MatMul"]
    activated = {node.output[0] for node in model.graph.node if node.op_type == "Gelu"}
    after_gelu = [n.name for n in model.graph.node if n.op_type == "MatMul" and n.input[0] in activated]
    rows = {weight.name: weight.dims[0] for weight in model.graph.initializer if weight.dims}
    depth = {node.name: rows.get(node.input[1], 0) for node in model.graph.node if node.op_type == "MatMul"}
    groups: dict[tuple[int, int], list[str]] = {}
    for name in products:
        if name in spared:
            continue
        width = 8 if name == products[-1] else bits
        fitting = next((block for block in LARGE_BLOCKS if depth[name] % block == 0), BLOCK)
        block = fitting if width == 8 else GELU_BLOCK if name in after_gelu else BLOCK
        groups.setdefault((width, block), []).append(name)
    for (width, block), names in groups.items():
        config = quantizer.DefaultWeightOnlyQuantConfig(
            block_size=block, is_symmetric=False, accuracy_level=INT8_ACTIVATIONS, bits=width
        )
        others = [name for name in products if name not in names]
        work = quantizer.MatMulNBitsQuantizer(model, algo_config=config, nodes_to_exclude=others)
        # It reports every weight at the level of information.
        level, quantizer.logger.level = quantizer.logger.level, logging.WARNING
        try:
            work.process()
        finally:
            quantizer.logger.level = level
        model = work.model.model
    model.producer_name, model.producer_version = "ilat_export", ""
    onnx.checker.check_model(model)
    return model


def _constant_factors(model: onnx.ModelProto) -> onnx.ModelProto:
    """Computes slices and transposes of weights: the logits' factor is part of the table of embeddings."""
    known = {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.op_type == "Slice" and all(name in known for name in node.input):
            array, starts, ends, axes, steps = (known[name] for name in node.input)
            index = [slice(None)] * array.ndim
            for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
                index[int(axis)] = slice(int(start), int(end), int(step))
            known[node.output[0]] = array[tuple(index)]
        elif node.op_type == "Transpose" and node.input[0] in known:
            known[node.output[0]] = known[node.input[0]].transpose(list(node.attribute[0].ints))
        else:
            nodes.append(node)
            continue
    stored = {weight.name for weight in model.graph.initializer}
    used = {name for node in nodes for name in node.input}
    for name in sorted((used & known.keys()) - stored):
        model.graph.initializer.append(numpy_helper.from_array(known[name], name))
    kept = [weight for weight in model.graph.initializer if weight.name in used]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(kept)
    return model
