"""Inputs of an edit, and the way of one through a bundle's graphs up to its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ilat_runtime.backends import Graph
from ilat_runtime.decoding import Decoder, Generated, Sampling, Target
from ilat_runtime.joints import JOINTS
from ilat_runtime.manifest import Manifest
from ilat_runtime.segments import DecodePlan

Array = npt.NDArray[Any]
Graphs = Mapping[str, Graph]


@dataclass(frozen=True)
class Sample:
    """Inputs of one edit. The sketch of an edit that takes one is drawn from the image.

    Attributes:
        image: uint8 (h, w, 3) RGB, a square crop.
        mask: uint8 (h, w).
        poses: float32 (2, 13, 3) crop-relative: of the reference and the target.
        radius: crop-relative radius of the skeleton mask.
    """

    image: Array
    mask: Array
    poses: Array
    radius: float

    def encoder_inputs(self, manifest: Manifest, graphs: Graphs) -> dict[str, Array]:
        """What the encoder takes."""
        inputs: dict[str, Array] = {"image": self.image[None], "mask": self.mask[None]}
        if manifest.kind == "pose":
            inputs |= {"poses": self.poses[None], "radius": np.array([self.radius], np.float32)}
        if "sketch" in graphs:
            inputs |= graphs["sketch"].run({"image": self.image[None]})
        return inputs

    def condition(self, manifest: Manifest, graphs: Graphs, encoded: Mapping[str, Array]) -> Array | None:
        """Tokens int64 (n,) of the condition, given what the encoder made of the edit; None where there is none."""
        if manifest.kind == "sketch":
            return encoded["condition"][0]
        if "condition" not in manifest.layout:
            return None
        whole = Sample(self.image, np.zeros_like(self.mask), np.zeros_like(self.poses), 0.0)
        return graphs["encoder"].run(whole.encoder_inputs(manifest, graphs))["tokens"][0]

    def decoder_inputs(self, encoded: Mapping[str, Array], tokens: Array, blend: bool) -> dict[str, Array]:
        """What the decoder takes, given what the encoder made of the edit and all tokens int64 (n,) of the image."""
        return {
            "latent": encoded["latent"],
            "tokens": tokens[None],
            "token_mask": encoded["token_mask"],
            "image": self.image[None],
            "edit_mask": encoded["edit_mask"],
            "blend": np.array([blend]),
        }

    def decoder(self, manifest: Manifest, graph: Graph, condition: Array | None) -> Decoder:
        """A decoder that holds the condition."""
        decoder = Decoder(manifest, graph, 1)
        unused = np.zeros(manifest.image_tokens, np.int64)
        pose = self.poses[0] if manifest.kind == "pose" else None
        decoder.condition([condition if condition is not None else unused], [pose])
        return decoder

    def target(self, manifest: Manifest, plan: DecodePlan, tokens: Array) -> Target:
        """The masked tokens of ``tokens`` int64 (n,)."""
        return Target(plan, tokens, self.poses[1] if manifest.kind == "pose" else None)

    def generate(
        self, manifest: Manifest, graph: Graph, plan: DecodePlan, condition: Array | None, tokens: Array
    ) -> tuple[Generated, Array]:
        """What is generated, greedily, and all tokens int64 (n,) of the image with it."""
        decoder = self.decoder(manifest, graph, condition)
        (generated,) = decoder.generate([self.target(manifest, plan, tokens)], Sampling())
        finished = tokens.copy()
        finished[plan.token_mask] = generated.tokens
        return generated, finished


def random_sample(manifest: Manifest, random: np.random.Generator) -> Sample:
    """Noise, a random box of it masked, and two random poses; the crop is not of the model's size."""
    side = manifest.image_size + 17
    image = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
    mask = np.zeros((side, side), np.uint8)
    (top, left), (height, width) = random.integers(0, side // 2, 2), random.integers(1, side // 2, 2)
    mask[top : top + height, left : left + width] = 1
    poses = random.random((2, len(JOINTS), 3), dtype=np.float32)
    poses[..., 2] = poses[..., 2] > 0.3
    return Sample(image, mask, poses, 0.02)


def share(equal: list[Array]) -> float:
    """Of true values in all arrays together; 1 where there are none."""
    together = np.concatenate(equal) if equal else np.ones(0, bool)
    return float(together.mean()) if len(together) else 1.0
