"""An imported model's graphs on ONNX Runtime, for the comparison with the authors' code in :mod:`ilat_train.parity`.

A bundle's encoder and decoder take and give uint8 images at one size; fixtures hold floats, at any size. So the same
modules are exported with float images at the fixture's size. The transformer's graph is a bundle's, with the logits as
one more output.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ilat_runtime import manifest
from ilat_runtime.backends import Graph, choose
from ilat_runtime.decoding import Decoder, Sampling, Target
from ilat_runtime.errors import InputError
from ilat_runtime.manifest import Tensor as TensorRecord
from ilat_runtime.segments import decode_plan
from ilat_train.models import TSVQGAN, LocalTransformer
from ilat_train.parity import Comparison, Sequences, TorchNetwork, ties

from .bundle import EXAMPLE, SPARE_SLOTS
from .graphs import TransformerGraph
from .to_onnx import OPSET, save, to_onnx

Array = npt.NDArray[Any]


class FloatEncoderGraph(nn.Module):
    """Both streams, so that latents under the mask are comparable too."""

    def __init__(self, tokenizer: TSVQGAN) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, image: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Float32 (B, C, H, W) and bool (B, 1, H, W) to the latent (B, c, h, w) and its tokens (B, h*w)."""
        latent = self.tokenizer.encode(image, mask)
        return latent, self.tokenizer.quantizer.nearest(latent)


class FloatDecoderGraph(nn.Module):
    """Eq. 4, and what it decodes."""

    def __init__(self, tokenizer: TSVQGAN) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, latent: Tensor, tokens: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Float32 (B, c, h, w), int64 (B, h*w) and bool (B, 1, h, w) to the image (B, C, H, W) and the codebook's
        vectors (B, c, h, w) of all tokens.
        """
        vectors = self.tokenizer.quantizer.lookup(tokens, latent.shape[-2])
        return self.tokenizer.decode_mixed(latent, tokens, token_mask), vectors


class OnnxNetwork:
    """Graphs, exported to a folder when they are first needed; see :class:`ilat_train.parity.Network`."""

    def __init__(self, model: TSVQGAN | LocalTransformer, folder: Path, threads: int | None = None) -> None:
        self.model: Any = model
        self.folder, self.backend = folder, choose("onnxruntime", threads=threads).backend
        self._graphs: dict[tuple[Any, ...], Graph] = {}

    def encode(self, image: Array, mask: Array | None) -> tuple[Array, Array]:
        """One graph serves with and without a mask where the model has masks: an empty one changes nothing."""
        batch, _, height, width = image.shape
        factor, channels = self.model.config.factor, self.model.config.codebook_channels
        grid = height // factor, width // factor
        inputs = {"image": image}
        if self.model.config.two_stream:
            inputs["mask"] = np.zeros((batch, 1, height, width), bool) if mask is None else mask
        outputs = {
            "latent": TensorRecord(dtype="float32", shape=(batch, channels, *grid)),
            "tokens": TensorRecord(dtype="int64", shape=(batch, grid[0] * grid[1])),
        }
        found = self._run(FloatEncoderGraph(self.model), inputs, outputs)
        return found["latent"], found["tokens"]

    def decode(self, latent: Array) -> Array:
        """No position is quantized."""
        batch, _, rows, columns = latent.shape
        return self._decoded(latent, np.zeros((batch, rows * columns), np.int64), False)["decoded"]

    def lookup(self, indices: Array, rows: int) -> Array:
        """The decoder's graph gives the vectors too."""
        shape = (len(indices), self.model.config.codebook_channels, rows, indices.shape[1] // rows)
        return self._decoded(np.zeros(shape, np.float32), indices, True)["vectors"]

    def _decoded(self, latent: Array, tokens: Array, quantized: bool) -> dict[str, Array]:
        config, (batch, _, rows, columns) = self.model.config, latent.shape
        inputs = {"latent": latent, "tokens": tokens, "token_mask": np.full((batch, 1, rows, columns), quantized)}
        size = rows * config.factor, columns * config.factor
        outputs = {
            "decoded": TensorRecord(dtype="float32", shape=(batch, config.in_channels, *size)),
            "vectors": TensorRecord(dtype="float32", shape=latent.shape),
        }
        return self._run(FloatDecoderGraph(self.model), inputs, outputs)

    def _run(
        self, module: nn.Module, inputs: dict[str, Array], outputs: Mapping[str, TensorRecord]
    ) -> dict[str, Array]:
        key = (type(module).__name__, *(array.shape for array in inputs.values()))
        if key not in self._graphs:
            records = {
                name: TensorRecord.model_validate({"dtype": str(array.dtype), "shape": array.shape})
                for name, array in inputs.items()
            }
            self._graphs[key] = self._export(module, records, dict(outputs))
        return self._graphs[key].run(inputs)

    def _export(self, module: nn.Module, inputs: dict[str, Any], outputs: dict[str, Any], **sizes: int) -> Graph:
        file = self.folder / f"{len(self._graphs)}.onnx"
        save(to_onnx(module, inputs, outputs, EXAMPLE | sizes), file)
        return self.backend.load(file, manifest.Graph(file=file.name, opset=OPSET, inputs=inputs, outputs=outputs))

    def _transformer(self) -> tuple[manifest.Manifest, Graph]:
        """The graph, and of a bundle's manifest what the decoding loop reads: a token stands for a pixel."""
        model: LocalTransformer = self.model
        config = model.config
        side = round(config.image_tokens**0.5)
        if side * side != config.image_tokens:
            raise InputError(f"{config.image_tokens} tokens of an image: graphs are made for square images only")
        facts: dict[str, Any] = {
            "kind": "pose" if config.pose_tokens else "sketch",
            "image_size": side,
            "factor": 1,
            "codebook_size": config.codebook_size,
            "latent_channels": 1,
            "joints": tuple(str(number) for number in range(config.pose_tokens)) or None,
            "layout": config.blocks,
            "numbering": config.numbering,
            "cache_capacity": config.layout.length + SPARE_SLOTS,
            "layers": config.layers,
            "heads": config.heads,
            "head_size": config.head_size,
            "vocabulary": manifest.Vocabulary(
                target_offset=model.target_offset,
                start_condition=model.start_condition,
                start_target=model.start_target,
                pose=model.pose,
            ),
            "precision": manifest.Precision(compute="float32", weights="float32"),
        }
        description = manifest.Manifest.model_construct(**facts)
        inputs, outputs = manifest.signatures(description)["transformer"]
        outputs["logits"] = TensorRecord(dtype="float32", shape=("B", "q", config.codebook_size))
        key = ("transformer",)
        if key not in self._graphs:
            module = TransformerGraph(model, with_logits=True)
            self._graphs[key] = self._export(module, inputs, outputs, v=config.codebook_size)
        record = manifest.Graph(file="-", opset=OPSET, inputs=inputs, outputs=outputs)
        unused = manifest.Graph(file="-", opset=OPSET, inputs={}, outputs={})
        graphs = manifest.Graphs(encoder=unused, transformer=record, decoder=unused)
        return description.model_copy(update={"graphs": graphs}), self._graphs[key]

    def target_logits(self, inputs: Sequences, rows: Array) -> Array:
        """One call with the whole sequence, into an empty cache."""
        description, graph = self._transformer()
        model: LocalTransformer = self.model
        poses = [None if pose is None else torch.from_numpy(pose) for pose in (inputs.target_pose, inputs.source_pose)]
        tokens, landmarks = model.sequence(
            torch.from_numpy(inputs.condition), poses[0], torch.from_numpy(inputs.target), poses[1]
        )
        batch, length = tokens.shape
        slots = np.full((batch, description.cache_capacity), np.iinfo(np.int32).max, np.int32)
        slots[:, :length] = inputs.segment
        feed = {
            "tokens": tokens.numpy(),
            "positions": np.tile(np.arange(length), (batch, 1)),
            "query_segment": inputs.segment,
            "slot_segment": slots,
            "write_index": np.zeros(batch, np.int64),
            "top_k": np.ones(1, np.int64),
            "temperature": np.ones(batch, np.float32),
            "uniform": np.full((batch, 1, 1), 0.5, np.float32),
        }
        if model.point_mlp is not None:
            feed["landmarks"] = landmarks.numpy()
        logits = graph.with_cache(batch).run(feed)["logits"]
        return logits[:, model.config.layout.slice("target").start + rows]

    def decoded(self, inputs: Sequences) -> Comparison:
        """Every masked token generated greedily from the cache, by the runtime's own loop; then PyTorch's one masked
        forward pass over the finished sequence, whose argmax is to be the same at each of them.
        """
        description, graph = self._transformer()
        config, batch = self.model.config, len(inputs.target)
        none = [None] * batch
        decoder = Decoder(description, graph, batch)
        decoder.condition(list(inputs.condition), none if inputs.source_pose is None else list(inputs.source_pose))
        poses = none if inputs.target_pose is None else list(inputs.target_pose)
        plans = [decode_plan(config.layout, mask, config.numbering) for mask in inputs.token_mask]
        targets = [Target(*each) for each in zip(plans, inputs.target, poses, strict=True)]
        finished = inputs.target.copy()
        for row, generated in zip(range(batch), decoder.generate(targets, Sampling()), strict=True):
            finished[row, inputs.token_mask[row]] = generated.tokens
        whole = Sequences(
            inputs.condition, finished, inputs.token_mask, inputs.segment, inputs.source_pose, inputs.target_pose
        )
        logits = TorchNetwork(self.model).target_logits(whole, np.arange(config.image_tokens))[inputs.token_mask]
        chosen = finished[inputs.token_mask]
        gap = logits.max(-1) - np.take_along_axis(logits, chosen[:, None], 1)[:, 0]
        return ties(logits.argmax(-1) == chosen, gap)


__all__ = ["FloatDecoderGraph", "FloatEncoderGraph", "OnnxNetwork"]
