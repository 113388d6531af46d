"""The names of our models' parameters in the checkpoints that can be imported: one table for the tokenizers, which are
all built like CompVis's taming-transformers, and one for the transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from ..models import TSVQGAN, LocalTransformer
from ..models.blocks import AttentionBlock, ResidualBlock
from ..models.decoder import Upsample
from ..models.two_stream import Downsample
from .formats import CODEBOOK


@dataclass(frozen=True)
class Part:
    """Rows of a parameter of ours: those of the checkpoint's ``name``, or zeros where that is None."""

    name: str | None
    rows: int


def parts(model: TSVQGAN | LocalTransformer) -> dict[str, tuple[Part, ...]]:
    """For each parameter of ours, what it consists of in the checkpoint, joined along the first axis."""
    rows = {name: tensor.shape[0] for name, tensor in model.state_dict().items()}
    if isinstance(model, LocalTransformer):
        return _transformer(model, rows)
    result: dict[str, tuple[Part, ...]] = {}
    for ours, theirs in _modules(model):
        # A codebook is a parameter itself; elsewhere the pair names modules, with a weight and a bias.
        for name in (name for name in rows if name == ours or name.startswith(f"{ours}.")):
            result[name] = (Part(theirs + name[len(ours) :], rows[name]),)
    return result


_BLOCK = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "shortcut": "nin_shortcut"}
_ATTENTION = {"norm": "norm", "query": "q", "key": "k", "value": "v", "project": "proj_out"}


def _modules(model: TSVQGAN) -> Iterator[tuple[str, str]]:
    """Pairs of a module's name here and in a checkpoint of taming-transformers, on whose code the authors' is built."""
    yield "quantizer.codebook", CODEBOOK
    yield "to_codebook", "quant_conv"
    yield "from_codebook", "post_quant_conv"
    config = model.config
    yield "encoder.conv_in", "encoder.conv_in" if config.first_kernel == 3 else "encoder.conv_in.1"
    yield "decoder.conv_in", "decoder.conv_in"
    for side in ("encoder", "decoder"):
        for name in ("norm_out", "conv_out"):
            yield f"{side}.{name}", f"{side}.{name}"
    middle = 3 if config.attention else 2
    # Where resampling widens, the checkpoint does not count the full resolution, which has no blocks.
    lowest = 0 if config.widening == "blocks" else -1

    down, level, block = list(model.encoder.layers), lowest, 0
    for index, layer in enumerate(down[:-middle]):
        where = f"encoder.layers.{index}"
        if isinstance(layer, Downsample):
            step = level if config.widening == "blocks" else level + 1
            yield f"{where}.conv", f"encoder.down.{step}.downsample.conv"
            level, block = level + 1, 0
        else:
            yield from _layer(layer, where, f"encoder.down.{level}", block)
            block += isinstance(layer, ResidualBlock)
    yield from _middle("encoder", down[-middle:], len(down) - middle)

    up, level, block = list(model.decoder.layers), lowest + len(config.multipliers) - 1, 0
    yield from _middle("decoder", up[:middle], 0)
    for index, layer in enumerate(up[middle:], middle):
        where = f"decoder.layers.{index}"
        if isinstance(layer, Upsample):
            yield f"{where}.conv", f"decoder.up.{level}.upsample.conv"
            level, block = level - 1, 0
        else:
            yield from _layer(layer, where, f"decoder.up.{level}", block)
            block += isinstance(layer, ResidualBlock)


def _layer(layer: nn.Module, ours: str, theirs: str, block: int) -> Iterator[tuple[str, str]]:
    """A residual block, or the attention after it, which has the number of the block before it."""
    attention = isinstance(layer, AttentionBlock)
    where = f"{theirs}.attn.{block - 1}" if attention else f"{theirs}.block.{block}"
    for here, there in (_ATTENTION if attention else _BLOCK).items():
        yield f"{ours}.{here}", f"{where}.{there}"


def _middle(side: str, layers: list[nn.Module], first: int) -> Iterator[tuple[str, str]]:
    block = 0
    for index, layer in enumerate(layers, first):
        attention = isinstance(layer, AttentionBlock)
        block += not attention
        where = f"{side}.mid.{'attn_1' if attention else f'block_{block}'}"
        for here, there in (_ATTENTION if attention else _BLOCK).items():
            yield f"{side}.layers.{index}.{here}", f"{where}.{there}"


_OUTSIDE = {
    "position": "pos_emb.weight",
    "bias": "z_bias",
    "norm1": "dec.ln1",
    "dense": "dec.dense",
    "norm2": "dec.ln2",
    "point_mlp.layers.0": "pose_mlp.block1.0",
    "point_mlp.layers.2": "pose_mlp.block2.0",
    "point_mlp.layers.4": "pose_mlp.block3.0",
}
_INSIDE = {
    "norm1": "ln1",
    "norm2": "ln2",
    "attention.project": "attn.proj",
    "feed_forward.0": "mlp.0",
    "feed_forward.2": "mlp.2",
}


def _transformer(model: LocalTransformer, rows: Mapping[str, int]) -> dict[str, tuple[Part, ...]]:
    config = model.config
    names = dict(_OUTSIDE)
    result: dict[str, tuple[Part, ...]] = {}
    for layer in range(config.layers):
        names |= {f"blocks.{layer}.{ours}": f"blocks.{layer}.{theirs}" for ours, theirs in _INSIDE.items()}
        for kind in ("weight", "bias"):
            result[f"blocks.{layer}.attention.qkv.{kind}"] = tuple(
                Part(f"blocks.{layer}.attn.{part}.{kind}", config.width) for part in ("query", "key", "value")
            )
    for ours, theirs in names.items():
        for name in (name for name in rows if name == ours or name.startswith(f"{ours}.")):
            result[name] = (Part(theirs + name[len(ours) :], rows[name]),)
    # One joint vocabulary; the row of the landmarks' id is never read.
    result["embedding"] = (
        Part("c_dec.weight", config.condition_vocabulary),
        Part("z_dec.weight", config.codebook_size),
        Part("c_sp", 1),
        Part("z_sp", 1),
        Part(None, 1),
    )
    return result
