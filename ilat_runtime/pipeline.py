"""Jobs to results: encode, decode the masked tokens, compose; what every edit runs, alone, in a batch or a session."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .backends import Backend
from .crop import Crop, FloatArray
from .decoding import Decoder, Generated, Progress, Sampling, Target
from .errors import InputError
from .image_file import BoolArray, ByteArray
from .jobs import Job, wanted
from .manifest import Manifest
from .segments import decode_plan

TokenArray = npt.NDArray[np.int64]

NOTHING_MASKED = "nothing is masked: the image is returned unchanged"


@dataclass(frozen=True)
class Result:
    """An edited image and how it came about.

    Attributes:
        image: uint8 HWC RGB, the size of the input; outside ``mask`` it is the input, pixel for pixel, unless it was
            blended.
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
        sketch: uint8 HW, the sketch that the edit followed, given or drawn from the image; None for other bundles.
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
    sketch: ByteArray | None = None
    notice: str | None = None


@dataclass(frozen=True)
class _Encoded:
    latent: FloatArray
    tokens: TokenArray
    token_mask: BoolArray
    edit_mask: ByteArray
    condition: TokenArray | None = None


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
        encoder, transformer, decoder: the graphs; ``sketcher`` that of kind ``sketch``, None for others.
    """

    def __init__(self, bundle: Path, manifest: Manifest, backend: Backend) -> None:
        self.manifest, self.backend = manifest, backend.description
        graphs = {name: backend.load(bundle / graph.file, graph) for name, graph in manifest.graphs.by_name.items()}
        self.encoder, self.transformer, self.decoder = (graphs[name] for name in ("encoder", "transformer", "decoder"))
        self.sketcher = graphs.get("sketch")

    def draw(self, image: ByteArray, crop: Crop) -> ByteArray:
        """The sketch of a checked image, uint8 HW, dark lines on white; white outside the crop.

        Raises:
            InputError: the bundle is of a kind without sketches.
        """
        if self.sketcher is None:
            raise InputError(f"sketch: {wanted(self.manifest)}, it draws no sketch")
        lines = self.sketcher.run({"image": crop.take(image)[None]})["sketch"][0]
        return crop.put(np.full((*image.shape[:2], 1), 255, np.uint8), lines[..., None])[..., 0]

    def sketched(self, job: Job) -> Job:
        """The job with a sketch, drawn from its image where the bundle takes one and the job has none."""
        if self.sketcher is None or job.sketch is not None:
            return job
        return replace(job, sketch=self.draw(job.image, job.crop))

    def edit(
        self,
        jobs: Sequence[Job],
        sampling: Sampling,
        blend: bool | None,
        progress: Progress | None,
        prepared: Decoder | None = None,
    ) -> list[Result]:
        """Edit the jobs together; ``prepared`` holds the condition of the only one.

        ``blend`` None blends the edits of kind ``sketch``, as the paper's A.3 does faces, and no others.
        """
        blend = self.manifest.kind == "sketch" if blend is None else blend
        clock = Clock()
        with clock("encode"):
            jobs = [self.sketched(job) for job in jobs]
            encoded = self._encode(jobs)
        # A thin skeleton in a tiny crop can mask a token and yet no pixel.
        active = [index for index, item in enumerate(encoded) if item.token_mask.any() and item.edit_mask.any()]
        patches: dict[int, ByteArray] = {}
        generated: dict[int, Generated] = {}
        if active:
            chosen = [jobs[index] for index in active]
            decoder = prepared or self.prefilled(chosen, clock, [encoded[index].condition for index in active])
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
            sketch=job.sketch,
            notice="; ".join(notices) or None,
        )

    def prefilled(
        self, jobs: Sequence[Job], clock: Clock, conditions: Sequence[TokenArray | None] | None = None
    ) -> Decoder:
        """A decoder that holds the conditions of the jobs.

        Args:
            conditions: the tokens of the jobs' sketches, where the jobs have been encoded.
        """
        decoder = Decoder(self.manifest, self.transformer, len(jobs))
        tokens = [np.zeros(self.manifest.image_tokens, np.int64)] * len(jobs)
        known = [condition for condition in conditions or () if condition is not None]
        if known:
            tokens = known
        elif "condition" in self.manifest.layout:
            with clock("encode"):
                # The reference is seen whole: nothing of it is masked.
                whole = self._encode([Job(job.image, job.crop, sketch=job.sketch) for job in jobs])
                tokens = [item.tokens if item.condition is None else item.condition for item in whole]
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
            if self.sketcher is not None:
                inputs["sketch"] = np.stack([job.crop.take(_given(job.sketch)) for job in group])
            outputs = self.encoder.run(inputs)
            for place, index in enumerate(members):
                result[index] = _Encoded(**{name: output[place] for name, output in outputs.items()})
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


def _given(sketch: ByteArray | None) -> ByteArray:
    if sketch is None:
        raise InputError("sketch: missing")
    return sketch


def _groups(jobs: Sequence[Job]) -> list[list[int]]:
    """Indices of jobs whose crops have the same size."""
    groups: dict[int, list[int]] = {}
    for index, job in enumerate(jobs):
        groups.setdefault(job.crop.side, []).append(index)
    return list(groups.values())
