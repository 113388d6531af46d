"""What a model and a training run are made of. Strict: an unknown key is an error that names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ilat_runtime.errors import InputError
from ilat_runtime.segments import NUMBERINGS, Layout

from .json_file import read_json

SKETCH_TOKENIZER = "sketch-tokenizer"
"""The folder of a run that holds the tokenizer of sketches, beside ``tokenizer`` and ``transformer``."""


class Strict(BaseModel):
    """A frozen configuration that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TokenizerConfig(Strict):
    """TS-VQGAN (Sec. 3.1; the presets of A.1 are the recipes ``pose`` and ``face``)."""

    image_size: int = Field(256, ge=1)
    in_channels: int = Field(3, ge=1)
    channels: int = Field(128, ge=1)
    multipliers: tuple[int, ...] = Field((1, 1, 2, 2, 4), min_length=1)
    res_blocks: int = Field(2, ge=1)
    attention: bool = True
    """Self-attention at the latent's resolution and in the middle, as VQGAN f16 has it."""
    norm: Literal["group", "instance", "position"] = "group"
    """``position`` is not the paper's: over one position's channels, so that a token depends only on what is near."""
    norm_groups: int = Field(32, ge=1)
    leaky: bool = False
    """Normalisation and attention take in masked positions too, so that known tokens depend a little on what is under
    the mask. The authors' models were trained so, and imported ones stay so."""
    first_kernel: int = Field(3, ge=1)
    """Side of the first convolution, odd; one larger than 3 is padded by reflection (the authors' sketch tokenizer)."""
    last_kernel: Literal[1, 3] = 3
    """Side of the encoder's convolutions at the latent's resolution. 1 is not the paper's: a token then depends on
    little more than its own pixels, and stays the same when something moves nearby."""
    widening: Literal["blocks", "resampling"] = "blocks"
    """What changes the width between resolutions: the next residual block, or the convolution that resamples; then the
    full resolution has no residual blocks (the authors' sketch tokenizer)."""
    downsample_kernel: Literal[3, 4] = 3
    decoder_layout: Literal["vqgan", "table-3"] = "vqgan"
    """Residual blocks of the decoder: VQGAN has one more at each resolution than the encoder, after the upsampling;
    Table 3 has as many as the encoder, before it."""
    dropout: float = Field(0.0, ge=0, lt=1)
    latent_channels: int = Field(256, ge=1)
    codebook_size: int = Field(16384, ge=2)
    codebook_channels: int = Field(256, ge=1)
    tanh: bool = False
    two_stream: bool = True
    """False: plain convolutions, normalisation and attention, the paper's ablation iLAT*."""

    free: ClassVar[set[str]] = {"image_size", "leaky", "dropout", "two_stream"}
    """Keys that the parameters do not depend on: weights can be trained further with other values."""

    def blocks(self, level: int) -> bool:
        """Whether a resolution (0 is the image's) has residual blocks."""
        return level > 0 or self.widening == "blocks"

    @property
    def factor(self) -> int:
        """Pixels of a token's side."""
        return int(2 ** (len(self.multipliers) - 1))

    @property
    def grid(self) -> int:
        """Tokens along a side of the image."""
        return self.image_size // self.factor

    @model_validator(mode="after")
    def _divides(self) -> TokenizerConfig:
        if self.image_size % self.factor:
            raise ValueError(f"image_size {self.image_size} must be a multiple of the factor {self.factor}")
        if min(self.multipliers) < 1:
            raise ValueError(f"multipliers {self.multipliers} must be 1 or more")
        if self.first_kernel % 2 == 0:
            raise ValueError(f"first_kernel {self.first_kernel} must be odd")
        if self.widening == "resampling" and self.decoder_layout != "vqgan":
            raise ValueError("widening 'resampling' needs decoder_layout 'vqgan'")
        if self.norm == "group" and any(self.channels * m % self.norm_groups for m in self.multipliers):
            raise ValueError(
                f"norm_groups {self.norm_groups} must divide channels {self.channels} times each multiplier"
            )
        return self


class TransformerConfig(Strict):
    """The local autoregressive transformer (Sec. 3.2; base size of A.1)."""

    width: int = Field(768, ge=1)
    heads: int = Field(12, ge=1)
    layers: int = Field(12, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    image_tokens: int = 256
    pose_tokens: int = Field(13, ge=0)
    blocks: tuple[str, ...] = ("condition", "pose", "target")
    codebook_size: int = Field(16384, ge=2)
    condition_vocabulary: int = Field(16384, ge=0)
    numbering: str = "local"

    hide_absent: bool = True
    """Landmarks that are not visible enter the PointMLP as (-1, -1, 0), wherever they are (A.2, Fig. 8). The authors'
    released model takes them as they are given."""
    shared_vocabulary: bool = False
    """One table of embeddings for condition and target, of one codebook: copying a token from the condition is then
    learned once, not for each value. The paper's and the authors' models have two tables.
    """
    start: Literal["random", "copy"] = "random"
    """What training starts from: noise, or weights by which the first layer copies the condition (copy_start.py)."""

    @property
    def layout(self) -> Layout:
        """The blocks of the sequence."""
        return Layout(self.image_tokens, self.pose_tokens, self.blocks)

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads

    @model_validator(mode="after")
    def _consistent(self) -> TransformerConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        if self.shared_vocabulary and self.condition_vocabulary != self.codebook_size:
            raise ValueError("shared_vocabulary needs condition_vocabulary to equal codebook_size")
        if self.start == "copy" and not (self.shared_vocabulary and "condition" in self.blocks):
            raise ValueError("start 'copy' needs a condition and shared_vocabulary")
        if self.numbering not in NUMBERINGS:
            raise ValueError(f"numbering {self.numbering!r} must be one of {sorted(NUMBERINGS)}")
        _ = self.layout
        if {"pose", "source_pose"}.isdisjoint(self.blocks) != (self.pose_tokens == 0):
            raise ValueError(f"pose_tokens {self.pose_tokens} must be 0 just where blocks {self.blocks} have no pose")
        return self


class DataConfig(Strict):
    """How training pairs are cut from a data set (Sec. 4, Penn Action protocol)."""

    margin: float = Field(1.3, ge=1)
    """Side of the crop over the larger side of the box of both poses."""
    dilation: float | None = Field(None, gt=0)
    """Radius of the skeleton mask over the same side; None takes each clip's own."""
    shift: float = Field(0.05, ge=0)
    """Random shift of the crop, up to this part of its side."""
    scale: tuple[float, float] = (0.95, 1.2)
    """Range of the random factor on the crop's side."""
    flip: float = Field(0.0, ge=0, le=1)
    """Probability of mirroring a pair."""
    train_images: int | None = Field(None, ge=1)
    """Of a folder of images, the first so many are for training and the others held out; None takes all."""

    @model_validator(mode="after")
    def _in_order(self) -> DataConfig:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale {self.scale} must be two positive factors, the smaller first")
        return self


Beta = Annotated[float, Field(ge=0, lt=1)]

MaskKind = Literal["skeleton", "free-form", "box", "blob", "object"]
"""``object`` masks come from the user's COCO annotations or pictures; ``blob`` stands in for them."""

Precision = Literal["32-true", "bf16-mixed"]
"""As Lightning Fabric names them. Half precision is left out: its loss scaler is a state that resuming would need."""


class TokenizerTraining(Strict):
    """Steps, rates and losses of the tokenizer (Sec. 4, Implementation Details)."""

    plain_steps: int = Field(150_000, ge=0)
    masked_steps: int = Field(150_000, ge=0)
    decoder_steps: int = Field(0, ge=0)
    """A last stage, with masks, that trains the decoder alone: tokens stay what they are, so the transformer can be
    trained at the same time. Not in the paper.
    """
    batch_size: int = Field(16, ge=1)
    rate: float = Field(8e-5, gt=0)
    betas: tuple[Beta, Beta] = (0.5, 0.9)
    halve_every: int = Field(50_000, ge=1)
    precision: Precision = "32-true"
    perceptual: Literal["auto", "vgg", "alex", "gradient"] = "auto"
    decoder_perceptual: Literal["auto", "vgg", "alex", "gradient"] = "auto"
    """The perceptual loss of the decoder's stage."""
    perceptual_weight: float = Field(1.0, ge=0)
    commitment: float = Field(0.25, ge=0)
    codebook_weight: float = Field(1.0, ge=0)
    codebook_start: int = Field(0, ge=0)
    """Steps of plain autoencoding before quantization; the codebook is then filled with k-means of the latents."""
    restart_every: int = Field(0, ge=0)
    """Every so many steps unused codebook vectors are set to latents of the batch; 0 never."""
    adversarial: Literal["adaptive", "fixed", "none"] = "adaptive"
    adversarial_weight: float = Field(0.8, ge=0)
    adversarial_start: int = Field(0, ge=0)
    discriminator_channels: int = Field(64, ge=1)
    masks: tuple[MaskKind, ...] = Field(("skeleton", "free-form", "box"), min_length=1)
    """Kinds of mask of the masked stage, drawn evenly."""

    @property
    def decoder_start(self) -> int:
        """The first step of the decoder's stage."""
        return self.plain_steps + self.masked_steps

    @property
    def steps(self) -> int:
        """Steps of all stages."""
        return self.decoder_start + self.decoder_steps


Labels = Literal["two-stream", "plain"]


class TransformerTraining(Strict):
    """Steps and rates of the transformer (Sec. 4, Implementation Details)."""

    steps: int = Field(300_000, ge=1)
    batch_size: int = Field(16, ge=1)
    rate: float = Field(5e-5, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    weight_decay: float = Field(0.01, ge=0)
    warmup: int = Field(10_000, ge=0)
    precision: Precision = "32-true"
    masks: tuple[MaskKind, ...] = Field(("skeleton",), min_length=1)
    """Kinds of mask of the target, drawn evenly."""
    labels: Labels = "two-stream"
    """Where the tokens under the mask, which are the labels, come from: the full stream of the two (the paper), or the
    image encoded without a mask. Then a wall has the same tokens in the reference and under the mask, up to its edge.
    """
    token_noise: float = Field(0.0, ge=0, lt=1)
    """Share of the masked target tokens that are shown as others, drawn evenly from the codebook: when decoding, the
    transformer reads its own tokens, and they are not always the true ones. Not in the paper.
    """
    token_pool: int = Field(0, ge=0)
    """Pairs encoded once before training and drawn from; 0 encodes each batch anew."""


class Recipe(Strict):
    """All that ``ilat-train`` needs to know for one task."""

    name: str
    task: Literal["pose", "images", "sketches"] = "pose"
    """Training data: pairs of frames with landmarks, single images with their sketches, or the sketches alone."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    transformer: TransformerConfig = TransformerConfig()
    data: DataConfig = DataConfig()
    tokenizer_training: TokenizerTraining = TokenizerTraining()
    transformer_training: TransformerTraining = TransformerTraining()

    @model_validator(mode="after")
    def _agree(self) -> Recipe:
        if self.transformer.image_tokens != self.tokenizer.grid**2:
            found, grid = self.transformer.image_tokens, self.tokenizer.grid
            raise ValueError(f"transformer.image_tokens {found} must be the tokenizer's {grid}² = {grid**2}")
        if self.transformer.codebook_size != self.tokenizer.codebook_size:
            raise ValueError("transformer.codebook_size must equal tokenizer.codebook_size")
        if "source_pose" in self.transformer.blocks:
            raise ValueError("transformer.blocks: 'source_pose' is of imported models; training has no such landmarks")
        for part in ("tokenizer_training", "transformer_training"):
            if self.task != "pose" and "skeleton" in getattr(self, part).masks:
                raise ValueError(f"{part}.masks: 'skeleton' needs landmarks, which task {self.task!r} has not")
        if (self.task == "sketches") != (self.tokenizer.in_channels == 1):
            raise ValueError(f"tokenizer.in_channels: {self.tokenizer.in_channels} for task {self.task!r}")
        shared = self.task == "pose" and "condition" in self.transformer.blocks
        if shared and self.transformer.condition_vocabulary < self.tokenizer.codebook_size:
            raise ValueError("transformer.condition_vocabulary must hold tokenizer.codebook_size tokens")
        return self


StrictType = TypeVar("StrictType", bound=Strict)


def parse(kind: type[StrictType], values: dict[str, Any], where: str) -> StrictType:
    """``kind(**values)``; raises InputError that names ``where`` and the key at fault."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or kind.__name__
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{where}: {key}: {message}") from None


def load_json(kind: type[StrictType], path: Path) -> StrictType:
    """Reads a configuration from a JSON file; raises InputError that names the file and the key at fault."""
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a JSON object")
    return parse(kind, values, str(path))


def override(recipe: Recipe, assignments: list[str]) -> Recipe:
    """``recipe`` with dotted assignments such as ``tokenizer_training.batch_size=8`` (values in JSON) applied.

    Raises:
        InputError: an assignment that is not KEY=VALUE, an unknown key or a value of the wrong type.
    """
    values = recipe.model_dump(mode="json")
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise InputError(f"--set {assignment}: expected KEY=VALUE")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        *path, last = key.split(".")
        place = values
        for part in path:
            if not isinstance(place.get(part), dict):
                raise InputError(f"--set {key}: no such key")
            place = place[part]
        if last not in place:
            raise InputError(f"--set {key}: no such key; expected one of {', '.join(place)}")
        place[last] = value
    return parse(Recipe, values, "--set")


def difference(found: Any, expected: Any, key: str = "") -> str | None:
    """The first key, dotted, at which two configurations as JSON differ, with both values; None where they agree."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for name in [*expected, *(name for name in found if name not in expected)]:
            inner = f"{key}.{name}" if key else str(name)
            if result := difference(found.get(name), expected.get(name), inner):
                return result
        return None
    return None if found == expected else f"{key}: {json.dumps(found)}, expected {json.dumps(expected)}"
