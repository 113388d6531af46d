"""The checkpoints that can be imported: what tells a format from the others, and what it fixes of a configuration."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ilat_runtime.joints import JOINTS


@dataclass(frozen=True)
class Format:
    """A kind of checkpoint.

    Attributes:
        about: one line for the help.
        kind: ``tokenizer`` or ``transformer``.
        part: the folder of a run that it belongs in.
        values: of the configuration, fixed by the code that the checkpoint comes from.
        marks: parameters that checkpoints of this format have, and ``absent`` ones that they do not have: together
            they tell it from the others.
    """

    about: str
    kind: str
    part: str
    values: Mapping[str, Any]
    marks: tuple[str, ...]
    absent: tuple[str, ...] = ()

    def fits(self, names: Collection[str]) -> bool:
        """Whether parameters of these names look like this format."""
        return all(name in names for name in self.marks) and not any(name in names for name in self.absent)


_FACE = {"attention": False, "norm": "instance", "downsample_kernel": 4, "tanh": True, "leaky": True}
_TRANSFORMER = {"numbering": "released", "hide_absent": False}
CODEBOOK, _NORM, _POINT = "quantize.embedding.weight", "encoder.norm_out.weight", "pose_mlp.block1.0.weight"

FORMATS: dict[str, Format] = {
    "taming-vqgan": Format(
        "CompVis's VQGAN f16",
        "tokenizer",
        "tokenizer",
        {"attention": True, "norm": "group", "downsample_kernel": 3, "tanh": False, "leaky": True},
        ("encoder.conv_in.weight", _NORM, CODEBOOK),
    ),
    "ilat-face": Format(
        "the authors' two-stream VQGAN of face images",
        "tokenizer",
        "tokenizer",
        _FACE,
        ("encoder.conv_in.weight", CODEBOOK),
        (_NORM,),
    ),
    "ilat-sketch": Format(
        # Of sketches in [-1, 1], as the released data loader has them.
        "the authors' VQGAN of sketches",
        "tokenizer",
        "sketch-tokenizer",
        _FACE | {"in_channels": 1, "widening": "resampling", "two_stream": False},
        ("encoder.conv_in.1.weight", CODEBOOK),
    ),
    "ilat-transformer": Format(
        "the authors' transformer for faces",
        "transformer",
        "transformer",
        _TRANSFORMER | {"blocks": ("condition", "target"), "pose_tokens": 0},
        ("pos_emb.weight", "z_bias"),
        (_POINT,),
    ),
    "ilat-pose": Format(
        "the authors' transformer for poses",
        "transformer",
        "transformer",
        _TRANSFORMER | {"blocks": ("source_pose", "condition", "pose", "target"), "pose_tokens": len(JOINTS)},
        ("pos_emb.weight", "z_bias", _POINT),
    ),
}


def recognise(names: Collection[str]) -> str | None:
    """The format that parameters of these names look like."""
    return next((name for name, form in FORMATS.items() if form.fits(names)), None)


TIED = {"z_emb.weight": "z_dec.weight", "c_emb.weight": "c_dec.weight"}
"""Tables that are one tensor in the authors' transformers: a checkpoint has both, or either."""
UNUSED = ("c_bias",)
"""Parameters without a counterpart here: the authors' transformers can also predict the condition's tokens."""
BUFFERS = ("mask",)
"""Last words of the names of buffers, which our models compute."""
