"""Graphs in operators of opset 20, for libraries without the in-place cache and fused attention.

JetPack 6.2's TensorRT 10.3 is one, ONNX Runtime before 1.25 another. What the graphs compute stays; every call writes
the cache anew, so a runtime swaps two of them instead of binding one as input and output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .half import copy, plain_weights, replace

OPSET, IR_VERSION = 20, 9
HIDDEN = -3e38
"""Score of a slot that a query may not see: the exponential of it is 0."""


def older_ops(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with ``TensorScatter``, ``Attention`` and ``GroupNormalization`` in operators of opset 20.

    Args:
        model: float32 arithmetic, opset 24. Not changed.
    """
    model = copy(model)
    work = _Rewrite(plain_weights(model))
    del model.opset_import[:]
    replacements: dict[str, Callable[[onnx.NodeProto], None]] = {
        "TensorScatter": work.scatter,
        "Attention": work.attention,
        "GroupNormalization": work.group_normalization,
    }
    for node in work.source.graph.node:
        replacements.get(node.op_type, work.nodes.append)(node)
    result = work.source
    replace(result.graph.node, work.nodes)
    result.graph.initializer.extend(work.constants)
    del result.graph.value_info[:]
    del result.opset_import[:]
    result.opset_import.append(helper.make_opsetid("", OPSET))
    result.ir_version = IR_VERSION
    onnx.checker.check_model(result, full_check=True)
    return result


class _Rewrite:
    """The nodes of the new graph, in order."""

    def __init__(self, source: onnx.ModelProto) -> None:
        self.source = source
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.known: set[str] = set()
        self.capacity = {
            value.name: value.type.tensor_type.shape.dim[2].dim_value
            for value in source.graph.input
            if value.name.startswith("past_")
        }

    def constant(self, name: str, array: np.ndarray) -> str:
        if name not in self.known:
            self.known.add(name)
            self.constants.append(numpy_helper.from_array(array, name))
        return name

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Appends a node; one of that output is appended once."""
        if output not in self.known:
            self.known.add(output)
            self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def integers(self, *values: int) -> str:
        return self.constant("older.integers_" + "_".join(map(str, values)), np.array(values, np.int64))

    def scatter(self, node: onnx.NodeProto) -> None:
        """Slot t takes the new row t - write_index where there is one: a product with zeros and ones, so exact."""
        past, update, index = node.input
        capacity = self.capacity[past]
        slots = self.constant("older.slots", np.arange(capacity, dtype=np.int64)[None, None, :, None])
        shape = self.add("Shape", [update], "older.rows", start=2, end=3)
        count = self.add("Squeeze", [shape, self.integers(0)], "older.count")
        zero, one = (self.constant(f"older.{value}", np.array(value, np.int64)) for value in (0, 1))
        rows = self.add("Range", [zero, count, one], "older.range")
        first = self.add("Unsqueeze", [index, self.integers(1, 2, 3)], "older.first")
        place = self.add("Sub", [slots, first], "older.place")
        hit = self.add("Equal", [place, rows], "older.hit")
        factor = self.add("Cast", [hit], "older.factor", to=TensorProto.FLOAT)
        before = self.add("GreaterOrEqual", [place, zero], "older.from")
        after = self.add("Less", [place, count], "older.to")
        written = self.add("And", [before, after], "older.written")
        moved = self.add("MatMul", [factor, update], f"{node.output[0]}.moved")
        self.add("Where", [written, moved, past], node.output[0])

    def attention(self, node: onnx.NodeProto) -> None:
        """Eq. 8 with what it is made of."""
        query, key, value, allowed = node.input
        name = node.output[0]
        size = next(
            value.type.tensor_type.shape.dim[3].dim_value
            for value in self.source.graph.input
            if value.name == "past_key_0"
        )
        factor = next((attribute.f for attribute in node.attribute if attribute.name == "scale"), size**-0.5)
        scaled = query
        if factor != 1:
            scale = self.constant("older.scale", np.array(factor, np.float32))
            scaled = self.add("Mul", [query, scale], f"{name}.scaled")
        turned = self.add("Transpose", [key], f"{name}.turned", perm=[0, 1, 3, 2])
        scores = self.add("MatMul", [scaled, turned], f"{name}.scores")
        hidden = self.constant("older.hidden", np.array(HIDDEN, np.float32))
        seen = self.add("Where", [allowed, scores, hidden], f"{name}.seen")
        weights = self.add("Softmax", [seen], f"{name}.weights", axis=-1)
        self.add("MatMul", [weights, value], name)

    def group_normalization(self, node: onnx.NodeProto) -> None:
        """Mean and variance of each group of channels, by hand: in opset 18 gain and bias are the groups'."""
        features, gain, bias = node.input
        name = node.output[0]
        options = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        groups = self.integers(0, int(options["num_groups"]), -1)
        shape = self.add("Shape", [features], f"{name}.shape")
        flat = self.add("Reshape", [features, groups], f"{name}.flat")
        mean = self.add("ReduceMean", [flat, self.integers(2)], f"{name}.mean", keepdims=1)
        centred = self.add("Sub", [flat, mean], f"{name}.centred")
        square = self.add("Mul", [centred, centred], f"{name}.square")
        variance = self.add("ReduceMean", [square, self.integers(2)], f"{name}.variance", keepdims=1)
        epsilon = np.array(options["epsilon"], np.float32)
        least = self.constant(f"older.epsilon_{float(epsilon):.0e}", epsilon)
        deviation = self.add("Sqrt", [self.add("Add", [variance, least], f"{name}.sum")], f"{name}.deviation")
        normal = self.add("Div", [centred, deviation], f"{name}.normal")
        back = self.add("Reshape", [normal, shape], f"{name}.back")
        axes = self.integers(1, 2)
        factor = self.add("Unsqueeze", [gain, axes], f"{name}.gain")
        offset = self.add("Unsqueeze", [bias, axes], f"{name}.bias")
        self.add("Add", [self.add("Mul", [back, factor], f"{name}.scaled"), offset], name)
