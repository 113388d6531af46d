"""Jobs to results: encode, decode the masked tokens, compose; what every edit runs, alone, in a batch or a session."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .backends import Backend
from .crop import Crop, FloatArray
from .decoding import Decoder, Generated, Progress, Sampling, Target
from .image_file import BoolArray, ByteArray
from .jobs import Job
from .manifest import Manifest
from .segments import decode_plan

TokenArray = npt.NDArray[np.int64]

NOTHING_MASKED = "nothing is masked: the image is returned unchanged"


@dataclass(frozen=True)
class Result:
    """An edited image and how it came about.

    Attributes:
        image: uint8 HWC RGB, the size of the input; outside ``mask`` it is the input, pixel for pixel, unless blending
            was asked for.
        tokens: int64, the generated image tokens in raster order.
        token_mask: bool (g, g), which tokens of the model's grid were generated.
        log_probability: float32, of each generated token under the model (temperature 1, all candidates).
        mask: bool HW, the pixels that were edited.
        timings: seconds spent in ``encode``, ``prefill``, ``decode``, ``decoder`` and in ``total``; for a batch, those
            of the whole batch.
        transformer_calls: calls after the prefill, never more than ``masked_tokens``.
        masked_tokens: number of generated tokens.
        backend: what ran the graphs, with its version and device.
        crop: the square of the image in which the edit happened.
        notice: what the caller should know about this edit, or None.
    """

    image: ByteArray
    tokens: TokenArray
    token_mask: BoolArray
    log_probability: FloatArray
    mask: BoolArray
    timings: dict[str, float]
    transformer_calls: int
    masked_tokens: int
    backend: str
    crop: Crop
    notice: str | None = None


@dataclass(frozen=True)
class _Encoded:
    latent: FloatArray
    tokens: TokenArray
    token_mask: BoolArray
    edit_mask: ByteArray


@dataclass
class Clock:
    """Seconds by name."""

    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("encode", "prefill", "decode", "decoder"), 0.0)
    )
    started: float = field(default_factory=time.perf_counter)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Adds the time that the block takes to ``name``."""
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start

    def timings(self) -> dict[str, float]:
        """The seconds so far, with those since the start as ``total``."""
        return {**self.seconds, "total": time.perf_counter() - self.started}


class Pipeline:
    """The loaded graphs of a bundle, and the way of an edit through them.

    Attributes:
        manifest: the bundle's.
        backend: what runs the graphs, with its version and device.
        encoder, transformer, decoder: the graphs.
    """

    def __init__(self, bundle: Path, manifest: Manifest, backend: Backend) -> None:
        self.manifest, self.backend = manifest, backend.description
        graphs = manifest.graphs
        self.encoder, self.transformer, self.decoder = (
            backend.load(bundle / graph.file, graph) for graph in (graphs.encoder, graphs.transformer, graphs.decoder)
        )

    def edit(
        self,
        jobs: Sequence[Job],
        sampling: Sampling,
        blend: bool,
        progress: Progress | None,
        prepared: Decoder | None = None,
    ) -> list[Result]:
        """Edit the jobs together; ``prepared`` holds the reference of the only one."""
        clock = Clock()
        with clock("encode"):
            encoded = self._encode(jobs)
        # A thin skeleton in a tiny crop can mask a token and yet no pixel.
        active = [index for index, item in enumerate(encoded) if item.token_mask.any() and item.edit_mask.any()]
        patches: dict[int, ByteArray] = {}
        generated: dict[int, Generated] = {}
        if active:
            chosen = [jobs[index] for index in active]
            decoder = prepared or self.prefilled(chosen, clock)
            layout, numbering = self.manifest.sequence, self.manifest.numbering
            targets = [
                Target(
                    decode_plan(layout, encoded[index].token_mask, numbering),
                    encoded[index].tokens,
                    None if job.pose is None else job.crop.relative(job.pose),
                )
                for index, job in zip(active, chosen, strict=True)
            ]
            with clock("decode"):
                answers = decoder.generate(targets, sampling, progress)
            clock.seconds["decode"] -= decoder.prefill_seconds
            clock.seconds["prefill"] += decoder.prefill_seconds
            generated = dict(zip(active, answers, strict=True))
            with clock("decoder"):
                images = self._decode(chosen, [encoded[index] for index in active], answers, blend)
            patches = dict(zip(active, images, strict=True))
        timings = clock.timings()
        nothing = Generated(np.zeros(0, np.int64), np.zeros(0, np.float32), 0)
        return [
            self._result(job, encoded[index], generated.get(index, nothing), patches.get(index), timings)
            for index, job in enumerate(jobs)
        ]

    def _result(
        self, job: Job, encoded: _Encoded, generated: Generated, patch: ByteArray | None, timings: dict[str, float]
    ) -> Result:
        mask = np.zeros((*job.image.shape[:2], 1), np.uint8)
        token_mask = encoded.token_mask
        image = job.image.copy()
        notices = list(job.notices)
        if patch is None:
            token_mask = np.zeros_like(token_mask)
            notices.append(NOTHING_MASKED)
        else:
            mask = job.crop.put(mask, encoded.edit_mask[..., None])
            image = job.crop.put(job.image, patch)
        return Result(
            image=image,
            tokens=generated.tokens,
            token_mask=token_mask.reshape(self.manifest.grid, self.manifest.grid),
            log_probability=generated.log_probability,
            mask=mask[..., 0] > 0,
            timings=dict(timings),
            transformer_calls=generated.calls,
            masked_tokens=len(generated.tokens),
            backend=self.backend,
            crop=job.crop,
            notice="; ".join(notices) or None,
        )

    def prefilled(self, jobs: Sequence[Job], clock: Clock) -> Decoder:
        """A decoder that holds the references of the jobs."""
        decoder = Decoder(self.manifest, self.transformer, len(jobs))
        tokens = [np.zeros(self.manifest.image_tokens, np.int64)] * len(jobs)
        if "condition" in self.manifest.layout:
            with clock("encode"):
                # The reference is seen whole: nothing of it is masked.
                whole = [Job(job.image, job.crop) for job in jobs]
                tokens = [item.tokens for item in self._encode(whole)]
        poses = [None if job.reference_pose is None else job.crop.relative(job.reference_pose) for job in jobs]
        with clock("prefill"):
            decoder.condition(tokens, poses)
        return decoder

    def _encode(self, jobs: Sequence[Job]) -> list[_Encoded]:
        """Latents, tokens and masks; crops of one size go through the graph together."""
        result: dict[int, _Encoded] = {}
        for members in _groups(jobs):
            group = [jobs[index] for index in members]
            inputs: dict[str, npt.NDArray[Any]] = {
                "image": np.stack([job.crop.take(job.image) for job in group]),
                "mask": np.stack([job.crop_mask() for job in group]),
            }
            if "poses" in self.manifest.graphs.encoder.inputs:
                inputs["poses"] = np.stack([job.drawn_poses() for job in group])
                inputs["radius"] = np.array([job.radius for job in group], np.float32)
            outputs = self.encoder.run(inputs)
            for place, index in enumerate(members):
                result[index] = _Encoded(
                    *(outputs[key][place] for key in ("latent", "tokens", "token_mask", "edit_mask"))
                )
        return [result[index] for index in range(len(jobs))]

    def _decode(
        self, jobs: Sequence[Job], encoded: Sequence[_Encoded], generated: Sequence[Generated], blend: bool
    ) -> list[ByteArray]:
        """The edited crops."""
        result: dict[int, ByteArray] = {}
        for members in _groups(jobs):
            tokens = np.stack([encoded[index].tokens for index in members])
            token_mask = np.stack([encoded[index].token_mask for index in members])
            for place, index in enumerate(members):
                tokens[place, token_mask[place]] = generated[index].tokens
            outputs = self.decoder.run(
                {
                    "latent": np.stack([encoded[index].latent for index in members]),
                    "tokens": tokens,
                    "token_mask": token_mask,
                    "image": np.stack([jobs[index].crop.take(jobs[index].image) for index in members]),
                    "edit_mask": np.stack([encoded[index].edit_mask for index in members]),
                    "blend": np.array([bool(blend)]),
                }
            )
            result.update(zip(members, outputs["edited"], strict=True))
        return [result[index] for index in range(len(jobs))]


def _groups(jobs: Sequence[Job]) -> list[list[int]]:
    """Indices of jobs whose crops have the same size."""
    groups: dict[int, list[int]] = {}
    for index, job in enumerate(jobs):
        groups.setdefault(job.crop.side, []).append(index)
    return list(groups.values())
