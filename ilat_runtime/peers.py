"""Other programs on the same machine: the step of a GPT-2 as large as a bundle's transformer, with random weights.

For the development of ``ilat-bench`` only; what is not installed is left out. The runtime needs none of it.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .manifest import Manifest

Steps = Callable[[int], list[float]]
"""Seconds of so many single tokens, each after about as many tokens as the context has."""


@dataclass(frozen=True)
class Peer:
    """A program, and how to time it; ``steps`` is None where it is not installed."""

    name: str
    steps: Steps | None = None


def peers(manifest: Manifest, context: int, most: int, threads: int) -> list[Peer]:
    """Hugging Face transformers, and CTranslate2 in float32 and int8, loaded; each decodes greedily.

    Args:
        context: tokens in the cache before the first that is timed.
        most: tokens that a call of ``steps`` may ask for.
    """
    try:
        import torch
        import transformers
    except ImportError:
        return [Peer("transformers (not installed)"), Peer("ctranslate2 (needs transformers and torch)")]
    torch.set_num_threads(threads)
    config = transformers.GPT2Config(
        vocab_size=manifest.codebook_size,
        n_positions=context + most + 8,
        n_embd=manifest.heads * manifest.head_size,
        n_layer=manifest.layers,
        n_head=manifest.heads,
        bos_token_id=None,
        eos_token_id=None,
    )
    model: Any = transformers.GPT2LMHeadModel(config)
    model.eval()
    prompt = np.random.default_rng(0).integers(0, manifest.codebook_size, context)
    found = [Peer(f"transformers {transformers.__version__}, float32", _transformers(torch, model, prompt))]
    try:
        import ctranslate2
        from ctranslate2.converters.transformers import GPT2Loader
    except ImportError:
        return [*found, Peer("ctranslate2 (not installed)")]
    for precision in ("float32", "int8"):
        spec = GPT2Loader().get_model_spec(model)
        spec.register_vocabulary([f"t{token}" for token in range(manifest.codebook_size)])
        spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "t0"
        spec.validate()
        spec.optimize(quantization=None if precision == "float32" else precision)
        with tempfile.TemporaryDirectory() as folder:
            spec.save(folder)
            generator = ctranslate2.Generator(folder, compute_type=precision, intra_threads=threads)
        steps = _ctranslate2(generator, [f"t{token}" for token in prompt])
        found.append(Peer(f"ctranslate2 {ctranslate2.__version__}, {precision}", steps))
    return found


def _transformers(torch: Any, model: Any, prompt: Any) -> Steps:
    def steps(count: int) -> list[float]:
        taken = []
        with torch.inference_mode():
            found = model(torch.from_numpy(prompt[None]), use_cache=True)
            for _ in range(count + 1):
                token = found.logits[:, -1:].argmax(-1)
                started = time.perf_counter()
                found = model(token, past_key_values=found.past_key_values, use_cache=True)
                taken.append(time.perf_counter() - started)
        return taken[1:]

    return steps


def _ctranslate2(generator: Any, prompt: list[str]) -> Steps:
    def steps(count: int) -> list[float]:
        told: list[float] = []
        # The first comes after the prompt, so that the differences are those of single tokens.
        generator.generate_batch(
            [prompt],
            max_length=count + 2,
            min_length=count + 2,
            sampling_topk=1,
            include_prompt_in_result=False,
            callback=lambda _: told.append(time.perf_counter()),
        )
        return [after - before for before, after in itertools.pairwise(told)][1:]

    return steps
