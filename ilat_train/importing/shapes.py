"""A model's configuration, read off its parameters' shapes and checked against the authors' own where it is given."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ilat_runtime.errors import InputError

from ..config import Strict, TokenizerConfig, TransformerConfig, parse
from .formats import CODEBOOK, FORMATS

Shapes = Mapping[str, tuple[int, ...]]
HEAD_SIZE = 64
"""Channels of one attention head in the authors' models: shapes do not show it."""


class _Given:
    """The authors' configuration: dotted keys, each of which may be missing.

    Attributes:
        assumed: our keys and values that neither the shapes nor the configuration say.
    """

    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        self.content, self.where, self.assumed = content, where, dict[str, Any]()

    def get(self, key: str) -> Any:
        """Its value; None where it is missing."""
        place: Any = self.content
        for word in key.split("."):
            place = place.get(word) if isinstance(place, Mapping) else None
        return place

    def check(self, key: str, shown: Any) -> None:
        """Raises InputError where the configuration says something else than the checkpoint shows."""
        value = self.get(key)
        value = list(value) if isinstance(value, (list, tuple)) else value
        if value is not None and value != shown:
            raise InputError(f"{self.where}: {key}: {value!r}, but the checkpoint's parameters show {shown!r}")

    def take(self, key: str, ours: str, default: Any) -> Any:
        """What shapes do not show: the key's value, else the default, which is noted."""
        value = self.get(key)
        if value is None:
            self.assumed[ours] = value = default
        return value


def configuration(
    name: str, shapes: Shapes, content: Mapping[str, Any], where: str, known: Mapping[str, Any]
) -> tuple[Strict, dict[str, Any]]:
    """The configuration of a checkpoint of format ``name``, and those of its values that are assumptions.

    Args:
        content, where: the authors' configuration, possibly empty, and its name in errors.
        known: values of ours that take precedence.

    Raises:
        InputError: a parameter is missing, shapes make no model of this format, or the configuration contradicts them.
    """
    given = _Given(content, where)
    read, kind = (
        (_tokenizer, TokenizerConfig) if FORMATS[name].kind == "tokenizer" else (_transformer, TransformerConfig)
    )
    values = {**FORMATS[name].values, **known}
    values |= read(shapes, given, values)
    return parse(kind, values, f"{name} checkpoint"), given.assumed


def _shape(shapes: Shapes, name: str, axes: int) -> tuple[int, ...]:
    if name not in shapes:
        raise InputError(f"parameter {name} is missing")
    if len(shapes[name]) != axes:
        raise InputError(f"parameter {name} has shape {shapes[name]}, expected {axes} axes")
    return shapes[name]


def _count(shapes: Shapes, pattern: str) -> int:
    """One more than the largest number that the pattern's group matches in a name."""
    return max((int(found[1]) + 1 for found in map(re.compile(pattern).match, shapes) if found), default=0)


def _tokenizer(shapes: Shapes, given: _Given, values: Mapping[str, Any]) -> dict[str, Any]:
    wide = values.get("widening") == "resampling"
    channels, in_channels, first_kernel, _ = _shape(shapes, f"encoder.conv_in{'.1' if wide else ''}.weight", 4)
    levels = _count(shapes, r"encoder\.down\.(\d+)\.")
    blocks = [f"encoder.down.{level}.block.0.conv1.weight" for level in range(levels)]
    widths = [channels] * wide + [_shape(shapes, block, 4)[0] for block in blocks]
    uneven = next((width for width in widths if width % channels), None)
    if uneven is not None:
        raise InputError(f"encoder: a width of {uneven} channels, expected multiples of the first, {channels}")
    multipliers = [width // channels for width in widths]
    if not multipliers:
        raise InputError(f"parameter {'encoder.down.0.block.0.conv1.weight'} is missing")
    codebook_size, codebook_channels = _shape(shapes, CODEBOOK, 2)
    latent_channels = _shape(shapes, "encoder.conv_out.weight", 4)[0]
    res_blocks = _count(shapes, r"encoder\.down\.0\.block\.(\d+)\.")

    for key, shown in {
        "n_embed": codebook_size,
        "embed_dim": codebook_channels,
        "ddconfig.ch": channels,
        "ddconfig.ch_mult": multipliers,
        "ddconfig.num_res_blocks": res_blocks,
        "ddconfig.in_channels": in_channels,
        "ddconfig.out_ch": in_channels,
        "ddconfig.z_channels": latent_channels,
        "ddconfig.double_z": False,
        "ddconfig.act": "SWISH",
        "ddconfig.norm": "IN" if values["norm"] == "instance" else "GN",
    }.items():
        given.check(key, shown)
    size = given.take("ddconfig.resolution", "image_size", 256)
    at = given.get("ddconfig.attn_resolutions")
    if isinstance(at, list) and isinstance(size, int):
        coarsest = size // 2 ** (len(multipliers) - 1)
        used = coarsest in at and given.get("ddconfig.use_attention") is not False
        if used != values["attention"]:
            shown = f"attention at {coarsest}" if values["attention"] else "no attention"
            raise InputError(
                f"{given.where}: ddconfig.attn_resolutions: {at}, but the checkpoint's parameters show {shown}"
            )
    dropout = given.get("ddconfig.dropout")
    return {
        "image_size": size,
        "in_channels": in_channels,
        "channels": channels,
        "multipliers": multipliers,
        "res_blocks": res_blocks,
        "first_kernel": first_kernel,
        "dropout": 0.0 if dropout is None else dropout,
        "latent_channels": latent_channels,
        "codebook_size": codebook_size,
        "codebook_channels": codebook_channels,
    }


def _transformer(shapes: Shapes, given: _Given, values: Mapping[str, Any]) -> dict[str, Any]:
    length, width = _shape(shapes, "pos_emb.weight", 2)
    codebook_size, condition_vocabulary = (_shape(shapes, f"{side}_dec.weight", 2)[0] for side in "zc")
    layers = _count(shapes, r"blocks\.(\d+)\.")
    poses = values["pose_tokens"] * sum("pose" in block for block in values["blocks"])
    # Both images begin with a token of their own.
    image_tokens, odd = divmod(length - poses - 2, 2)
    if odd or image_tokens < 1:
        raise InputError(
            f"parameter pos_emb.weight has {length} rows, expected two images of as many tokens, two starts and "
            f"{poses} landmarks"
        )
    for key, shown in {
        "n_embd": width,
        "n_layer": layers,
        "vocab_size": codebook_size,
        "sequence_length": length,
        "pose_dim": 3,
    }.items():
        given.check(key, shown)
    heads = given.take("n_head", "heads", width // HEAD_SIZE)
    if "heads" in given.assumed and width % HEAD_SIZE:
        raise InputError(f"{given.where}: n_head: missing, and a width of {width} is no multiple of {HEAD_SIZE}")
    return {
        "width": width,
        "heads": heads,
        "layers": layers,
        "image_tokens": image_tokens,
        "codebook_size": codebook_size,
        "condition_vocabulary": condition_vocabulary,
    }
