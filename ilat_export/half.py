"""Half precision written into a graph: float16 where it costs no accuracy, float32 where it must stay.

TensorRT 11 and TensorRT-RTX take the precision from the graph, so it is decided here, node by node. The converters of
ONNX Runtime and onnxconverter-common are not used: between two neighbouring nodes that stay float32 they round to
float16 and back, which undoes the reason to keep them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16

PARTS: dict[str, frozenset[str]] = {
    "images": frozenset({"Round"}),
    "statistics": frozenset({"ReduceSum", "ReduceMean", "Pow", "Sqrt", "Reciprocal"}),
    "softmax": frozenset({"Softmax"}),
    "codebook": frozenset({"ArgMin"}),
    "logits": frozenset({"ArgMax", "TopK", "ReduceLogSumExp", "GatherElements", "Log"}),
}
"""Parts that may stay float32, and the operators that each is built around. ``images``: pixels, masks and resampling;
``statistics``: mean and variance of normalisations; ``softmax``: of the attention, with the scores; ``codebook``: the
distances and the choice of the nearest; ``logits``: the transformer's last product, and sampling.
"""

KEPT = ("images", "statistics", "softmax", "codebook", "logits")
"""What ``--fp16`` keeps in float32; docs/results.md has what each is worth."""

_WEIGHTED = frozenset(
    {"Conv", "ConvTranspose", "LayerNormalization", "GroupNormalization", "Attention", "TensorScatter"}
)
"""Operators that are float16 wherever they stand; their statistics and sums are float32 inside (``stash_type``)."""
_STAY_FLOAT = {"Resize": (1, 2)}
"""Inputs that are float32 whatever the others are."""


def to_half(model: onnx.ModelProto, kept: Iterable[str] = KEPT) -> onnx.ModelProto:
    """A float32 graph in half precision. Inputs and outputs keep their type but for the cache, which becomes float16.

    Args:
        model: float32 arithmetic; weights stored as float16 with a cast are taken as they are. Not changed.
        kept: of :data:`PARTS`, those that stay float32.
    """
    return _Rewrite(model, kept).real()


def rounded(model: onnx.ModelProto, kept: Iterable[str] = KEPT) -> onnx.ModelProto:
    """What :func:`to_half` computes, in float32 with every float16 result rounded to float16 explicitly.

    ONNX Runtime's CPU kernels compute a float16 graph in float32 and round at its end only, so the graph itself would
    look better there than it is. In this twin each operator's result is rounded, as where float16 is stored and sums
    are float32. The cache's inputs and outputs are float32 that float16 represents.
    """
    return _Rewrite(model, kept).twin()


def plain_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose weights that are stored as float16 and cast on loading are float32 weights again."""
    model = copy(model)
    stored = {weight.name: weight for weight in model.graph.initializer}
    kept, used = [], set()
    for node in model.graph.node:
        weight = stored.get(node.input[0]) if node.op_type == "Cast" else None
        if weight is None or weight.data_type != HALF or node.attribute[0].i != FLOAT:
            kept.append(node)
            used |= set(node.input)
            continue
        array = numpy_helper.to_array(weight).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
    weights = [w for w in model.graph.initializer if w.data_type != HALF or w.name in used]
    replace(model.graph.node, kept)
    replace(model.graph.initializer, weights)
    return model


class _Rewrite:
    """One graph, and which of its nodes are float16."""

    def __init__(self, model: onnx.ModelProto, kept: Iterable[str]) -> None:
        self.model = plain_weights(model)
        graph = self.model.graph
        self.weights = {weight.name: weight for weight in graph.initializer}
        self.cache = {value.name for value in graph.input if value.name.startswith("past_")}
        self.inputs = {value.name for value in graph.input} - self.cache
        self.outputs = {value.name for value in graph.output}
        inferred = onnx.shape_inference.infer_shapes(self.model).graph
        types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
        types |= {value.name: value.type.tensor_type.elem_type for value in graph.input}
        types |= {weight.name: weight.data_type for weight in graph.initializer}
        for node in graph.node:
            for name in node.output:
                # Functions such as GroupNormalization are not inferred; they give what they take.
                types.setdefault(name, types[node.input[0]])
        self.floats = {name for name, kind in types.items() if kind == FLOAT}
        self.single = self._single(set(kept))
        self.half = {
            name
            for index, node in enumerate(graph.node)
            if index not in self.single
            for name in node.output
            if name in self.floats
        } | self.cache

    def _single(self, kept: set[str]) -> set[int]:
        """Indices of the nodes that stay float32: the operators of the kept parts, what only they read, and what is
        computed from float32 alone.
        """
        nodes = self.model.graph.node
        seeds = frozenset().union(*(PARTS[part] for part in kept))
        readers: dict[str, list[int]] = defaultdict(list)
        for index, node in enumerate(nodes):
            for name in node.input:
                readers[name].append(index)
        single = {index for index, node in enumerate(nodes) if node.op_type in seeds}
        sources = self.inputs if "images" in kept else set()
        while True:
            known = {name for index in single for name in nodes[index].output} | sources
            found = set()
            for index, node in enumerate(nodes):
                cached = any(name in self.cache for name in node.input) or any(
                    name.startswith("present_") for name in node.output
                )
                if index in single or cached or node.op_type in _WEIGHTED:
                    continue
                read = [name for name in node.input if name in self.floats and name not in self.weights]
                weighted = node.op_type == "MatMul" and node.input[1] in self.weights
                # A cast from integers or bool, and whatever follows from the inputs, is no rounding of a feature.
                forward = not weighted and all(name in known for name in read) and (bool(read) or "images" in kept)
                forward = forward and not (not read and any(name in self.weights for name in node.input))
                follow = [reader for name in node.output for reader in readers[name]]
                backward = bool(follow) and all(reader in single for reader in follow)
                if forward or backward:
                    found.add(index)
            if not found:
                return single
            single |= found

    def real(self) -> onnx.ModelProto:
        """See :func:`to_half`."""
        graph = self.model.graph
        for value in (*graph.input, *graph.output):
            if value.name.startswith(("past_", "present_")):
                value.type.tensor_type.elem_type = HALF
        wide_outputs = {value.name for value in graph.output if value.type.tensor_type.elem_type == FLOAT} & self.half

        def narrow(name: str) -> list[onnx.NodeProto]:
            return [helper.make_node("Cast", [name], [f"{name}.half"], name=f"{name}.half", to=HALF)]

        def widen(name: str) -> list[onnx.NodeProto]:
            return [helper.make_node("Cast", [name], [f"{name}.float"], name=f"{name}.float", to=FLOAT)]

        def finish(node: onnx.NodeProto) -> list[onnx.NodeProto]:
            after = []
            for place, name in enumerate(node.output):
                if name in wide_outputs:
                    node.output[place] = f"{name}.narrow"
                    after.append(helper.make_node("Cast", [f"{name}.narrow"], [name], name=f"{name}.wide", to=FLOAT))
            for attribute in node.attribute:
                if node.op_type == "Cast" and attribute.name == "to" and attribute.i == FLOAT:
                    attribute.i = HALF
            return after

        renamed = {name: f"{name}.narrow" for name in wide_outputs}
        return self._rewritten(narrow, widen, finish, renamed, np.dtype(np.float16))

    def twin(self) -> onnx.ModelProto:
        """See :func:`rounded`."""

        def both(source: str, result: str) -> list[onnx.NodeProto]:
            return [
                helper.make_node("Cast", [source], [f"{result}.half"], name=f"{result}.half", to=HALF),
                helper.make_node("Cast", [f"{result}.half"], [result], name=f"{result}.rounded", to=FLOAT),
            ]

        def narrow(name: str) -> list[onnx.NodeProto]:
            return both(name, f"{name}.half")

        def finish(node: onnx.NodeProto) -> list[onnx.NodeProto]:
            after = []
            for place, name in enumerate(node.output):
                # The cache is written in place, and what is written has been rounded.
                if name in self.half and node.op_type != "TensorScatter":
                    node.output[place] = f"{name}.exact"
                    after += both(f"{name}.exact", name)
            return after

        return self._rewritten(narrow, None, finish, {}, np.dtype(np.float32))

    def _rewritten(
        self,
        narrow: Callable[[str], list[onnx.NodeProto]],
        widen: Callable[[str], list[onnx.NodeProto]] | None,
        finish: Callable[[onnx.NodeProto], list[onnx.NodeProto]],
        renamed: dict[str, str],
        dtype: np.dtype[np.float16] | np.dtype[np.float32],
    ) -> onnx.ModelProto:
        graph, nodes, made = self.model.graph, [], set()
        weights = dict(self.weights)
        used: set[str] = set()

        def once(name: str, cast: list[onnx.NodeProto]) -> str:
            if name not in made:
                made.add(name)
                nodes.extend(cast)
            return name

        for index, node in enumerate(graph.node):
            half = index not in self.single
            for place, name in enumerate(node.input):
                if name not in self.floats:
                    continue
                wanted = half and place not in _STAY_FLOAT.get(node.op_type, ())
                if name in self.weights and wanted:
                    array = numpy_helper.to_array(self.weights[name]).astype(np.float16).astype(dtype)
                    node.input[place] = f"{name}.half"
                    weights.setdefault(f"{name}.half", numpy_helper.from_array(array, f"{name}.half"))
                elif name not in self.weights and wanted != (name in self.half):
                    name = renamed.get(name, name)
                    if wanted:
                        node.input[place] = once(f"{name}.half", narrow(name))
                    elif widen is not None:
                        node.input[place] = once(f"{name}.float", widen(name))
                elif name in renamed:
                    node.input[place] = renamed[name]
            used |= set(node.input)
            # After the inputs' casts: results of this node may be cast too.
            after = finish(node) if half else []
            nodes += [node, *after]
        replace(graph.node, nodes)
        replace(graph.initializer, [weight for name, weight in weights.items() if name in used])
        del graph.value_info[:]
        onnx.checker.check_model(self.model, full_check=True)
        return self.model


def copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Another model with the same contents."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    return result


def replace(field: Any, items: Sequence[Any]) -> None:
    """Lets a repeated field of a model hold these items."""
    kept = list(items)
    del field[:]
    field.extend(kept)
