"""What a precision costs: a bundle's graphs against those of float32, on the same inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ilat_runtime.manifest import Manifest
from ilat_runtime.segments import decode_plan

from .sample import Array, Graphs, Sample, share


@dataclass(frozen=True)
class Loss:
    """Differences from float32, the worst of all samples but for the shares, which count all tokens together.

    Attributes:
        samples: edits compared.
        latent_error: largest absolute difference of known latents.
        encoder_tokens: share of equal image tokens at unmasked positions.
        decoded_tokens: share of equal likeliest tokens, each given the tokens that float32 generated before it
            (teacher forcing).
        masked_tokens: how many those were.
        log_probability_error: largest difference of the log-probabilities of those that are equal.
        psnr: dB between the images decoded from the same tokens and each graph's own latents, inside the edit mask;
            None when no pixel differs.
    """

    samples: int
    latent_error: float
    encoder_tokens: float
    decoded_tokens: float
    masked_tokens: int
    log_probability_error: float
    psnr: float | None

    def record(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        return {
            key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in asdict(self).items()
        }

    def worst(self, other: Loss) -> Loss:
        """The larger loss in each number."""
        levels = [value for value in (self.psnr, other.psnr) if value is not None]
        return Loss(
            self.samples,
            max(self.latent_error, other.latent_error),
            min(self.encoder_tokens, other.encoder_tokens),
            min(self.decoded_tokens, other.decoded_tokens),
            self.masked_tokens,
            max(self.log_probability_error, other.log_probability_error),
            min(levels) if levels else None,
        )


def compare(manifest: Manifest, graphs: Graphs, others: Graphs, samples: Sequence[Sample]) -> Loss:
    """Runs every sample through the float32 graphs and through the others.

    Args:
        manifest: of the float32 bundle.
        graphs: its graphs, by name.
        others: those of the other precision.
    """
    latents, logs, levels = [0.0], [0.0], []
    encoded_equal, decoded_equal = [], []
    for sample in samples:
        inputs = sample.encoder_inputs(manifest, graphs)
        found, other = graphs["encoder"].run(inputs), others["encoder"].run(inputs)
        known = ~found["token_mask"][0]
        difference = np.abs(found["latent"] - other["latent"]).reshape(-1, known.size)[:, known]
        latents.append(float(difference.max(initial=0.0)))
        encoded_equal.append((found["tokens"] == other["tokens"])[0, known])
        if not known.all():
            plan = decode_plan(manifest.sequence, ~known, manifest.numbering)
            condition = sample.condition(manifest, graphs, found)
            _, tokens = sample.generate(manifest, graphs["transformer"], plan, condition, found["tokens"][0])
            target = sample.target(manifest, plan, tokens)
            expected, predicted = (
                sample.decoder(manifest, part["transformer"], condition).predict([target])[0]
                for part in (graphs, others)
            )
            equal = expected.tokens == predicted.tokens
            decoded_equal.append(equal)
            error = np.abs(expected.log_probability - predicted.log_probability)
            logs.append(float(error[equal].max(initial=0.0)))
            levels.append(_squared_error(sample, tokens, (graphs, found), (others, other)))
    worst = max(levels, default=0.0)
    return Loss(
        samples=len(samples),
        latent_error=max(latents),
        encoder_tokens=share(encoded_equal),
        decoded_tokens=share(decoded_equal),
        masked_tokens=sum(map(len, decoded_equal)),
        log_probability_error=max(logs),
        psnr=None if worst == 0 else float(10 * np.log10(255**2 / worst)),
    )


def _squared_error(sample: Sample, tokens: Array, *both: tuple[Graphs, Mapping[str, Array]]) -> float:
    """Mean squared difference of the two images inside the edit mask, in levels of 255; each from its own latents."""
    images = []
    for graphs, encoded in both:
        edit = sample.decoder_inputs(encoded, tokens, blend=False)
        images.append(graphs["decoder"].run(edit)["edited"][0].astype(float))
    edited = both[0][1]["edit_mask"][0] > 0
    return float(((images[0] - images[1])[edited] ** 2).mean()) if edited.any() else 0.0
