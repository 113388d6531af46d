"""Other programs on the same machine: the step of a GPT-2 as large as a bundle's transformer, with random weights.

For the development of ``ilat-bench`` only; what is not installed is left out. The runtime needs none of it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from .manifest import Manifest

STEPS = 24
"""Tokens that each is measured on."""


def measure(manifest: Manifest, context: int, threads: int) -> Iterator[tuple[str, float | None]]:
    """Name and milliseconds of one token with ``context`` tokens in the cache, greedily; None where not installed."""
    try:
        import torch
        import transformers
    except ImportError:
        yield "transformers (not installed)", None
        yield "ctranslate2 (needs transformers and torch)", None
        return
    torch.set_num_threads(threads)
    width = manifest.heads * manifest.head_size
    config = transformers.GPT2Config(
        vocab_size=manifest.codebook_size,
        n_positions=context + STEPS + 8,
        n_embd=width,
        n_layer=manifest.layers,
        n_head=manifest.heads,
        bos_token_id=None,
        eos_token_id=None,
    )
    model: Any = transformers.GPT2LMHeadModel(config)
    model.eval()
    prompt = np.random.default_rng(0).integers(0, manifest.codebook_size, context)
    yield f"transformers {transformers.__version__}, float32", _transformers(torch, model, prompt)
    try:
        import ctranslate2
        from ctranslate2.converters.transformers import GPT2Loader
    except ImportError:
        yield "ctranslate2 (not installed)", None
        return
    for precision in ("float32", "int8"):
        spec = GPT2Loader().get_model_spec(model)
        spec.register_vocabulary([f"t{token}" for token in range(manifest.codebook_size)])
        spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "t0"
        spec.validate()
        spec.optimize(quantization=None if precision == "float32" else precision)
        with tempfile.TemporaryDirectory() as folder:
            spec.save(folder)
            generator = ctranslate2.Generator(folder, compute_type=precision, intra_threads=threads)
            found = _ctranslate2(generator, [f"t{token}" for token in prompt])
        yield f"ctranslate2 {ctranslate2.__version__}, {precision}", found


def _transformers(torch: Any, model: Any, prompt: Any) -> float:
    taken = []
    with torch.inference_mode():
        found = model(torch.from_numpy(prompt[None]), use_cache=True)
        for _ in range(STEPS):
            token = found.logits[:, -1:].argmax(-1)
            started = time.perf_counter()
            found = model(token, past_key_values=found.past_key_values, use_cache=True)
            taken.append(time.perf_counter() - started)
    return float(np.median(taken)) * 1000


def _ctranslate2(generator: Any, prompt: list[str]) -> float:
    """The time of many tokens after the prompt less that of one, the best of three."""

    def run(count: int) -> float:
        started = time.perf_counter()
        generator.generate_batch(
            [prompt], max_length=count, min_length=count, sampling_topk=1, include_prompt_in_result=False
        )
        return time.perf_counter() - started

    run(2)
    return min(run(STEPS + 1) - run(1) for _ in range(3)) / STEPS * 1000
