"""Every graph against PyTorch, on random and real inputs, before a bundle is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ilat_runtime.backends import Graph, choose
from ilat_runtime.errors import IlatError
from ilat_runtime.manifest import Manifest
from ilat_runtime.segments import decode_plan
from ilat_train.models import LocalTransformer
from ilat_train.models.transformer import batch_segments

from .graphs import TransformerGraph
from .sample import Sample, share

Array = npt.NDArray[Any]


class VerificationError(IlatError):
    """A graph does not compute what PyTorch does."""


@dataclass(frozen=True)
class Tolerance:
    """What a bundle must meet: absolute errors, shares of equal tokens and pixels, and levels of 255 in the image."""

    latent: float = 1e-3
    log_probability: float = 1e-3
    tokens: float = 0.999
    image: int = 1
    pixels: float = 0.999


@dataclass(frozen=True)
class Verification:
    """The largest errors against PyTorch and the shares of equal tokens.

    ``encoder_tokens`` are the tokens at unmasked positions; ``decoded_tokens`` those generated step by step from the
    cache by ONNX Runtime, against the argmax of PyTorch's one masked forward pass over the finished sequence. Of kind
    ``sketch`` only: ``condition_tokens`` are the sketches', ``sketch_pixels`` the share of a sketch's pixels that
    differ by one level of 255 at most (one that meets XDoG's steep threshold may differ by more).
    """

    random_inputs: int
    real_inputs: int
    latent_error: float
    log_probability_error: float
    image_error: int
    encoder_tokens: float
    decoded_tokens: float
    condition_tokens: float | None = None
    sketch_pixels: float | None = None

    def record(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def check(self, tolerance: Tolerance) -> None:
        """Raises VerificationError naming the first number that misses its tolerance."""
        condition = 1.0 if self.condition_tokens is None else self.condition_tokens
        pixels = 1.0 if self.sketch_pixels is None else self.sketch_pixels
        for name, value, bound, holds in (
            ("encoder: latent error", self.latent_error, tolerance.latent, self.latent_error <= tolerance.latent),
            (
                "encoder: share of equal tokens",
                self.encoder_tokens,
                tolerance.tokens,
                self.encoder_tokens >= tolerance.tokens,
            ),
            (
                "transformer: log-probability error",
                self.log_probability_error,
                tolerance.log_probability,
                self.log_probability_error <= tolerance.log_probability,
            ),
            (
                "transformer: share of equal tokens",
                self.decoded_tokens,
                tolerance.tokens,
                self.decoded_tokens >= tolerance.tokens,
            ),
            ("decoder: image error in levels", self.image_error, tolerance.image, self.image_error <= tolerance.image),
            ("encoder: share of equal condition tokens", condition, tolerance.tokens, condition >= tolerance.tokens),
            ("sketch: share of equal pixels", pixels, tolerance.pixels, pixels >= tolerance.pixels),
        ):
            if not holds:
                raise VerificationError(f"{name} is {value:.3g}, the tolerance is {bound:.3g}; no bundle was written")


def verify(
    folder: Path,
    manifest: Manifest,
    modules: Mapping[str, nn.Module],
    random: Sequence[Sample],
    real: Sequence[Sample],
    tolerance: Tolerance,
) -> Verification:
    """Runs every sample through the graphs on ONNX Runtime and through PyTorch.

    Raises:
        VerificationError: the tolerance is missed.
    """
    backend = choose("onnxruntime").backend
    graphs = {name: backend.load(folder / record.file, record) for name, record in manifest.graphs.by_name.items()}
    latent_errors, log_errors, image_errors = [0.0], [0.0], [0]
    encoder_equal, decoded_equal, condition_equal, sketch_equal = [], [], [], []
    for sample in (*random, *real):
        inputs = sample.encoder_inputs(manifest, graphs)
        if "sketch" in graphs:
            drawn = _torch(modules["sketch"], {"image": inputs["image"]}, ["sketch"])["sketch"]
            sketch_equal.append((np.abs(inputs["sketch"].astype(int) - drawn) <= 1).ravel())
        found = graphs["encoder"].run(inputs)
        expected = _torch(modules["encoder"], inputs, list(found))
        known = ~expected["token_mask"][0]
        side = manifest.grid
        latent = np.abs(found["latent"] - expected["latent"])[0].reshape(-1, side * side)[:, known]
        latent_errors.append(float(latent.max(initial=0.0)))
        encoder_equal.append(found["tokens"][0][known] == expected["tokens"][0][known])
        if not (np.array_equal(found["token_mask"], expected["token_mask"]) and _near(found, expected, "edit_mask")):
            raise VerificationError("encoder: the masks differ from PyTorch's; no bundle was written")
        if "condition" in found:
            condition_equal.append(found["condition"][0] == expected["condition"][0])

        equal, error, finished = _decoded(manifest, graphs, modules["transformer"], sample, found)
        decoded_equal.append(equal)
        log_errors.append(error)

        for blend in (False, True):
            edit = sample.decoder_inputs(found, finished, blend)
            image = graphs["decoder"].run(edit)["edited"].astype(int)
            reference = _torch(modules["decoder"], edit, ["edited"])["edited"].astype(int)
            image_errors.append(int(np.abs(image - reference).max()))
    result = Verification(
        random_inputs=len(random),
        real_inputs=len(real),
        latent_error=max(latent_errors),
        log_probability_error=max(log_errors),
        image_error=max(image_errors),
        encoder_tokens=share(encoder_equal),
        decoded_tokens=share(decoded_equal),
        condition_tokens=share(condition_equal) if condition_equal else None,
        sketch_pixels=share(sketch_equal) if sketch_equal else None,
    )
    result.check(tolerance)
    return result


def _torch(module: nn.Module, inputs: Mapping[str, Array], names: list[str]) -> dict[str, Array]:
    with torch.inference_mode():
        results = module(*(torch.from_numpy(np.ascontiguousarray(array)) for array in inputs.values()))
    results = results if isinstance(results, tuple) else (results,)
    return {name: result.numpy() for name, result in zip(names, results, strict=True)}


def _decoded(
    manifest: Manifest, graphs: Mapping[str, Graph], module: nn.Module, sample: Sample, encoded: Mapping[str, Array]
) -> tuple[Array, float, Array]:
    """Greedy decoding from the cache against one full forward pass of PyTorch over the finished sequence.

    Returns which generated tokens are equal, the largest error of their log-probabilities, and all tokens (n,).
    """
    if not isinstance(module, TransformerGraph):
        raise TypeError("expected the transformer's graph")
    transformer: LocalTransformer = module.transformer
    condition = sample.condition(manifest, graphs, encoded)
    plan = decode_plan(manifest.sequence, encoded["token_mask"][0], manifest.numbering)
    pose = sample.poses[1] if manifest.kind == "pose" else None
    generated, tokens = sample.generate(manifest, graphs["transformer"], plan, condition, encoded["tokens"][0])
    with torch.inference_mode():
        logits = transformer.target_logits(
            torch.from_numpy(condition[None]) if condition is not None else None,
            torch.from_numpy(pose[None]) if pose is not None else None,
            torch.from_numpy(tokens[None]),
            batch_segments(transformer.config, torch.from_numpy(plan.token_mask[None])),
            torch.from_numpy(sample.poses[:1]) if "source_pose" in manifest.layout else None,
        )[0, torch.from_numpy(plan.token_mask)]
    if not len(logits):
        return np.ones(0, bool), 0.0, tokens
    wanted = logits.argmax(-1).numpy()
    chosen = torch.log_softmax(logits, -1).gather(1, torch.from_numpy(generated.tokens)[:, None])[:, 0].numpy()
    return wanted == generated.tokens, float(np.abs(chosen - generated.log_probability).max()), tokens


def _near(found: Mapping[str, Array], expected: Mapping[str, Array], name: str) -> bool:
    """Equal but for one pixel in a thousand: a pixel's centre may lie on the edge of a skeleton's disc."""
    return bool((found[name] != expected[name]).mean() < 1e-3)
