"""How long the parts of an edit take on this machine, and how near a step is to what its memory allows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .backends import Graph
from .decoding import Decoder, Sampling, Target
from .errors import InputError
from .manifest import Manifest
from .segments import UNFILLED, decode_plan

RATIOS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9)
"""Shares of the image's tokens that the sweep masks."""

WEIGHT_BYTES = {"float32": 4.0, "float16": 2.0, "int8": 1 + 5 / 128, "int4": (4 + 32 + 4) / 8 / 8}
"""Of a weight in memory; with 8 and 4 bits also its part of the scale (float32) and offset of its block: of 128 weights
with 8 bits; with 4 bits as much as an average over a layer's blocks of 32 and 16 gives.
"""
_READ = 256 * 2**20

Progress = Callable[[int], None]
"""Called with the number of runs that are done."""


@dataclass(frozen=True)
class Spread:
    """Of repeated measurements, in milliseconds: the median, and the values below which 10 % and 90 % lie."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(seconds: Sequence[float]) -> Spread:
        """Of seconds."""
        low, median, high = np.percentile(np.asarray(seconds) * 1000, [10, 50, 90])
        return Spread(float(median), float(low), float(high))


@dataclass(frozen=True)
class Run:
    """One edit's decoding.

    Attributes:
        ratio: share of the tokens that is masked.
        masked_tokens: how many those are.
        stages: seconds of ``encode``, ``prefill``, ``decode``, ``decoder`` and ``total``.
    """

    ratio: float
    masked_tokens: int
    stages: dict[str, float]


def bandwidth(threads: int, repeats: int = 5, clock: Callable[[], float] = time.perf_counter) -> float:
    """Bytes a second that ``threads`` threads read from memory together: the best of some passes over 256 MB.

    Args:
        clock: what tells the seconds; of one thread :func:`time.process_time` counts the processor's.
    """
    parts = np.array_split(np.ones(_READ // 4, np.float32), threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):
            started = clock()
            list(pool.map(lambda part: part.max(), parts))
            best = max(best, _READ / (clock() - started))
    return best


def step_bytes(manifest: Manifest, context: float, weight_bytes: float | None = None) -> float:
    """Bytes of weights and cache that the step of one token must read with ``context`` filled slots.

    Of the tables of embeddings it reads a row each, which does not count.

    Args:
        weight_bytes: of a weight in memory, where a backend holds them in another form than the bundle.
    """
    width, precision = manifest.heads * manifest.head_size, manifest.precision
    size = WEIGHT_BYTES[precision.weights] if weight_bytes is None else weight_bytes
    weights = 12 * width**2 * manifest.layers + width**2 + manifest.codebook_size * width
    cache = 2 * manifest.layers * width * context * (2 if precision.compute == "float16" else 4)
    return weights * size + cache


def token_mask(manifest: Manifest, ratio: float) -> npt.NDArray[np.bool_]:
    """A share of the tokens (n,), the same each time: at least one, scattered.

    Raises:
        InputError: the share is not above 0 and up to 1.
    """
    if not 0 < ratio <= 1:
        raise InputError(f"mask ratio: {ratio:g}, expected above 0 and up to 1")
    count = max(1, round(ratio * manifest.image_tokens))
    mask = np.zeros(manifest.image_tokens, bool)
    mask[np.random.default_rng(0).permutation(manifest.image_tokens)[:count]] = True
    return mask


class Bench:
    """The graphs of a bundle, and edits of noise through them."""

    def __init__(self, manifest: Manifest, encoder: Graph, transformer: Graph, decoder: Graph) -> None:
        self.manifest = manifest
        self._encoder, self._transformer, self._decoder = encoder, transformer, decoder
        side = manifest.image_size
        self._image = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)

    def run(self, ratio: float) -> Run:
        """One edit with that share of its tokens masked."""
        manifest, mask = self.manifest, token_mask(self.manifest, ratio)
        pixels = np.kron(mask.reshape(manifest.grid, -1), np.ones((manifest.factor,) * 2)).astype(np.uint8)[None]
        started = time.perf_counter()
        condition = self._encoder.run(self._inputs(np.zeros_like(pixels)))
        encoded = self._encoder.run(self._inputs(pixels))
        encode = time.perf_counter() - started
        plan = decode_plan(manifest.sequence, mask, manifest.numbering)
        pose = np.zeros((13, 3), np.float32) if manifest.kind == "pose" else None
        decoder = Decoder(manifest, self._transformer, 1)
        begun = time.perf_counter()
        tokens = condition["condition" if manifest.kind == "sketch" else "tokens"][0]
        decoder.condition([tokens], [pose])
        filled = time.perf_counter() - begun
        begun = time.perf_counter()
        (found,) = decoder.generate([Target(plan, encoded["tokens"][0], pose)], Sampling())
        decode = time.perf_counter() - begun - decoder.prefill_seconds
        generated = encoded["tokens"].copy()
        generated[0, mask] = found.tokens
        begun = time.perf_counter()
        self._decoder.run(
            {
                "latent": encoded["latent"],
                "tokens": generated,
                "token_mask": mask[None],
                "image": self._image,
                "edit_mask": pixels,
                "blend": np.array([False]),
            }
        )
        stages = {
            "encode": encode,
            "prefill": filled + decoder.prefill_seconds,
            "decode": decode,
            "decoder": time.perf_counter() - begun,
            "total": time.perf_counter() - started,
        }
        return Run(ratio, int(mask.sum()), stages)

    def steps(self, context: int, repeats: int, clock: Callable[[], float] = time.perf_counter) -> list[float]:
        """Seconds of single steps, each with ``context`` slots filled before it; the first is not counted.

        Args:
            clock: what tells the seconds; :func:`time.process_time` counts the processor's.
        """
        manifest = self.manifest
        slots = np.full((1, manifest.cache_capacity), UNFILLED, np.int32)
        slots[0, : context + 1] = 0
        graph = self._transformer.with_cache(1)

        def feed(first: int, rows: int) -> float:
            inputs: dict[str, npt.NDArray[Any]] = {
                "tokens": np.zeros((1, rows), np.int64),
                "positions": np.zeros((1, rows), np.int64),
                "query_segment": np.zeros((1, rows), np.int32),
                "slot_segment": slots,
                "write_index": np.array([first], np.int64),
                "top_k": np.ones(1, np.int64),
                "temperature": np.ones(1, np.float32),
                "uniform": np.full((1, 1, 1), 0.5, np.float32),
            }
            if "landmarks" in manifest.graphs.transformer.inputs:
                inputs["landmarks"] = np.zeros((1, rows, 3), np.float32)
            started = clock()
            graph.run(inputs)
            return clock() - started

        feed(0, context)
        return [feed(context, 1) for _ in range(repeats + 1)][1:]

    def _inputs(self, mask: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        inputs: dict[str, npt.NDArray[Any]] = {"image": self._image, "mask": mask}
        if self.manifest.kind == "pose":
            inputs |= {"poses": np.zeros((1, 2, 13, 3), np.float32), "radius": np.zeros(1, np.float32)}
        if self.manifest.kind == "sketch":
            inputs["sketch"] = np.full(mask.shape, 255, np.uint8)
        return inputs
