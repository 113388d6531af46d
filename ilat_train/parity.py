"""Whether an imported model computes what the authors' code does: every array of a fixture, compared.

Which arrays a fixture has says what is run; see :mod:`ilat_train.importing.fixture`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ilat_runtime.errors import InputError

from .importing.fixture import Fixture
from .models import TSVQGAN, LocalTransformer
from .models.transformer import batch_segments

Array = npt.NDArray[Any]
TOLERANCE = 1e-3
"""Absolute, on latents, images and logits; also how near two candidates are whose order counts as a tie."""


@dataclass
class Comparison:
    """Of one array with the authors': the largest absolute error, or the share of equal values; ties count as equal for
    ``passed`` only.
    """

    passed: bool
    error: float | None = None
    equal: float | None = None
    ties: int = 0

    def record(self) -> dict[str, Any]:
        """For JSON."""
        if self.equal is not None:
            return {"equal": self.equal, "ties": self.ties, "pass": self.passed}
        error = self.error if self.error is not None and math.isfinite(self.error) else None
        return {"max_abs_error": error, "pass": self.passed}


@dataclass
class Parity:
    """What was compared, by array, and the arrays that nothing was compared with."""

    arrays: dict[str, Comparison] = field(default_factory=dict)
    unchecked: list[str] = field(default_factory=list)
    progress: Callable[[str], object] | None = None

    def add(self, name: str, comparison: Comparison) -> None:
        """Notes a comparison."""
        self.arrays[name] = comparison
        if self.progress is not None:
            self.progress(name)

    @property
    def passed(self) -> bool:
        """Whether anything was compared and everything is a match."""
        return bool(self.arrays) and all(each.passed for each in self.arrays.values())

    def record(self) -> dict[str, Any]:
        """For JSON."""
        arrays = {name: each.record() for name, each in self.arrays.items()}
        return {"pass": self.passed, "arrays": arrays, "unchecked": self.unchecked}


@dataclass(frozen=True)
class Sequences:
    """A transformer's inputs.

    Attributes:
        condition, target: int64 (B, n).
        token_mask: bool (B, n).
        segment: int32 (B, L).
        source_pose, target_pose: float32 (B, landmarks, 3), or None.
    """

    condition: Array
    target: Array
    token_mask: Array
    segment: Array
    source_pose: Array | None = None
    target_pose: Array | None = None


class Network(Protocol):
    """A model on PyTorch or on ONNX Runtime."""

    def encode(self, image: Array, mask: Array | None) -> tuple[Array, Array]:
        """Float32 (B, C, H, W) and bool (B, 1, H, W) to the latent (B, c, h, w) and its indices (B, h*w)."""
        ...

    def decode(self, latent: Array) -> Array:
        """Float32 (B, c, h, w) to an image (B, C, H, W)."""
        ...

    def lookup(self, indices: Array, rows: int) -> Array:
        """Int64 (B, h*w) to codebook vectors (B, c, h, w)."""
        ...

    def target_logits(self, inputs: Sequences, rows: Array) -> Array:
        """Logits (B, rows, K) at rows of t[s], t_0, …, by one pass over the whole sequence."""
        ...

    def decoded(self, inputs: Sequences) -> Comparison | None:
        """The tokens generated one by one from a cache against one pass over the finished sequence, if it has one."""
        ...


class TorchNetwork:
    """The model itself."""

    def __init__(self, model: TSVQGAN | LocalTransformer) -> None:
        self.model: Any = model

    @torch.inference_mode()
    def encode(self, image: Array, mask: Array | None) -> tuple[Array, Array]:
        """See :class:`Network`."""
        latent = self.model.encode(torch.from_numpy(image), None if mask is None else torch.from_numpy(mask))
        return latent.numpy(), self.model.quantizer.nearest(latent).numpy()

    @torch.inference_mode()
    def decode(self, latent: Array) -> Array:
        """See :class:`Network`."""
        return self.model.decode(torch.from_numpy(latent)).numpy()

    @torch.inference_mode()
    def lookup(self, indices: Array, rows: int) -> Array:
        """See :class:`Network`."""
        return self.model.quantizer.lookup(torch.from_numpy(indices), rows).numpy()

    @torch.inference_mode()
    def target_logits(self, inputs: Sequences, rows: Array) -> Array:
        """See :class:`Network`."""
        model: LocalTransformer = self.model
        poses = (None if pose is None else torch.from_numpy(pose) for pose in (inputs.target_pose, inputs.source_pose))
        pose, source_pose = poses
        segment = torch.from_numpy(inputs.segment)
        tokens, landmarks = model.sequence(
            torch.from_numpy(inputs.condition), pose, torch.from_numpy(inputs.target), source_pose
        )
        allowed = (segment[:, :, None] >= segment[:, None, :])[:, None]
        hidden = model(tokens, landmarks, torch.arange(tokens.shape[1]), allowed)
        start = model.config.layout.slice("target").start
        return model.logits(hidden[:, start + torch.from_numpy(rows)]).numpy()

    def decoded(self, inputs: Sequences) -> None:
        """See :class:`Network`; the cache is the exported graph's."""


def compare(
    fixture: Fixture,
    model: TSVQGAN | LocalTransformer,
    network: Network,
    progress: Callable[[str], object] | None = None,
) -> Parity:
    """Runs the network on the fixture's inputs and compares every output that there is.

    Args:
        progress: called with the name of each array that was compared.

    Raises:
        InputError: an array is missing or does not fit the model; it is named.
    """
    result = Parity(progress=progress)
    if isinstance(model, TSVQGAN):
        used = _compare_tokenizer(fixture, model, network, result)
    else:
        used = _compare_transformer(fixture, model, network, result)
    result.unchecked = sorted(fixture.arrays.keys() - used - result.arrays.keys())
    return result


VARIANTS = ("", "_masked", "_unmasked")
"""Of an encoder's outputs: without a mask, with it, and without it where there is one."""
QUANTIZED = ("reconstruction", "decoded", "decoded_quantized")
"""Images decoded from the codebook's vectors."""


def _compare_tokenizer(fixture: Fixture, model: TSVQGAN, network: Network, result: Parity) -> set[str]:
    config, arrays = model.config, fixture.arrays
    name = "sketch" if "sketch" in arrays else "image"
    image = fixture.get(name, None, config.in_channels, None, None).astype(np.float32)
    height, width = image.shape[2:]
    if height % config.factor or width % config.factor:
        raise InputError(f"{fixture.name}.npz: {name}: {height}×{width}, expected multiples of {config.factor}")
    rows, tokens = height // config.factor, (height // config.factor) * (width // config.factor)
    latents, indices = {}, {}
    for variant in VARIANTS:
        if not {f"{kind}{variant}" for kind in ("latent", "indices", "quantized")} & arrays.keys():
            continue
        mask = fixture.get("mask", len(image), 1, height, width) > 0.5 if variant == "_masked" else None
        latent, found = network.encode(image, mask)
        latents[variant], indices[variant] = latent, found
        if f"latent{variant}" in arrays:
            result.add(f"latent{variant}", near(latent, arrays[f"latent{variant}"]))
        same = np.ones_like(found, bool)
        if f"indices{variant}" in arrays:
            wanted = fixture.tokens(f"indices{variant}", config.codebook_size, len(image), tokens)
            result.add(f"indices{variant}", _same_indices(found, wanted, latent, model))
            same = found == wanted
        if f"quantized{variant}" in arrays:
            # Where a tie went the other way, the vectors differ too; the indices' comparison judges that.
            looked_up, expected = network.lookup(found, rows), arrays[f"quantized{variant}"]
            if expected.shape == looked_up.shape:
                expected = np.where(same.reshape(len(image), 1, rows, -1), expected, looked_up)
            result.add(f"quantized{variant}", near(looked_up, expected))
    given = next((variant for variant in VARIANTS if f"indices{variant}" in arrays), None)
    chosen = arrays[f"indices{given}"].astype(np.int64) if given is not None else next(iter(indices.values()), None)
    for name in QUANTIZED:
        if name in arrays and chosen is not None:
            result.add(name, near(network.decode(network.lookup(chosen, rows)), arrays[name]))
    if "decoded_latent" in arrays:
        given = next((variant for variant in VARIANTS if f"latent{variant}" in arrays), None)
        if given is None:
            raise InputError(f"{fixture.name}.npz: latent: missing, decoded_latent is decoded from it")
        shape = (len(image), config.codebook_channels, rows, width // config.factor)
        latent = fixture.get(f"latent{given}", *shape).astype(np.float32)
        result.add("decoded_latent", near(network.decode(latent), arrays["decoded_latent"]))
    return {"image", "sketch", "mask"}


def _compare_transformer(fixture: Fixture, model: LocalTransformer, network: Network, result: Parity) -> set[str]:
    config, arrays = model.config, fixture.arrays
    count = config.image_tokens
    target = fixture.tokens("target_tokens", config.codebook_size, None, count)
    batch = len(target)
    condition = fixture.tokens("condition_tokens", config.condition_vocabulary, batch, count)
    mask = arrays.get("token_mask", np.zeros(0))
    if mask.size != batch * count or len(mask) != batch:
        raise InputError(
            f"{fixture.name}.npz: token_mask: shape {mask.shape}, expected ({batch}, 1, …) of {count} tokens"
        )
    token_mask = mask.reshape(batch, count) > 0.5
    segment = batch_segments(config, torch.from_numpy(token_mask)).numpy()
    poses = {}
    for name in ("source_pose", "target_pose") if config.pose_tokens else ():
        poses[name] = fixture.get(name, batch, config.pose_tokens, 3).astype(np.float32)
    inputs = Sequences(condition, target, token_mask, segment, **poses)
    if "attention_mask" in arrays:
        expected = arrays["attention_mask"] > 0.5
        # One mask is that of the first sample.
        allowed = segment[:, :, None] >= segment[:, None, :]
        result.add("attention_mask", _same(allowed if expected.ndim > 2 else allowed[0], expected.squeeze()))
    if "target_logits" in arrays:
        rows = np.arange(arrays["target_logits"].shape[1])
        if "logit_rows" in arrays:
            rows = fixture.tokens("logit_rows", count + 1, None)
        result.add("target_logits", near(network.target_logits(inputs, rows), arrays["target_logits"]))
    decoded = network.decoded(inputs)
    if decoded is not None:
        result.add("decoded_tokens", decoded)
    return {"target_tokens", "condition_tokens", "token_mask", "logit_rows", *poses}


def near(found: Array, expected: Array) -> Comparison:
    """By the largest absolute error; not a number, or another shape, is no match."""
    if found.shape != expected.shape:
        return Comparison(False, math.inf)
    error = float(np.abs(found.astype(np.float64) - expected).max(initial=0.0))
    return Comparison(error <= TOLERANCE, error)


def _same(found: Array, expected: Array) -> Comparison:
    if found.squeeze().shape != expected.shape:
        return Comparison(False, equal=0.0)
    share = float((found.squeeze() == expected).mean())
    return Comparison(share == 1, equal=share)


def _same_indices(found: Array, expected: Array, latent: Array, model: TSVQGAN) -> Comparison:
    """A tie: the latent is equally far from both codebook vectors, to within the tolerance."""
    vectors = latent.reshape(*latent.shape[:2], -1).transpose(0, 2, 1).astype(np.float64)
    codebook = model.quantizer.codebook.detach().numpy().astype(np.float64)
    distances = (((vectors - codebook[each]) ** 2).sum(2) for each in (found, expected))
    nearer, other = distances
    return ties(found == expected, np.abs(nearer - other))


def ties(same: Array, gap: Array) -> Comparison:
    """By equality; where values differ, ``gap`` is how far apart the two candidates' scores are."""
    tied = ~same & (gap <= TOLERANCE)
    return Comparison(bool((same | tied).all()), equal=float(same.mean()) if same.size else 1.0, ties=int(tied.sum()))
