"""Editing a face with a bundle against the authors' way of sampling, the same weights, side by side in one run.

The authors' code runs the transformer over the whole sequence for every masked token; a bundle's graph prefills a cache
once and feeds one token a call. The models are the released ones in size: the face model's image tokenizer, sketch
tokenizer and transformer, imported from the parity fixtures with stand-in weights (random numbers, so the picture is
noise; what is computed is the same).

    python samples/benchmarks/face_sampling.py --work out/face-benchmark

writes the run and its bundle to out/face-benchmark, where a second call finds them, and prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from skimage.data import astronaut
from torch import Tensor
from tqdm import tqdm

from ilat_export.bundle import Facts, export_bundle
from ilat_runtime import Editor
from ilat_train import checkpoint
from ilat_train.importing.fixture import imported, read_fixture
from ilat_train.models import TSVQGAN, LocalTransformer
from ilat_train.models.transformer import batch_segments

FIXTURES = Path(__file__).parents[2] / "tests" / "fixtures"
PARTS = {
    "tokenizer": "ilat_face_image_vqgan",
    "sketch-tokenizer": "ilat_face_sketch_vqgan",
    "transformer": "ilat_face_transformer",
}
SHARE = 0.32
"""Of the tokens, that are masked: the paper's Table 2, first row."""


def models(work: Path, fixtures: Path) -> tuple[TSVQGAN, TSVQGAN, LocalTransformer]:
    """The three models, imported into ``work`` by the first call."""
    for part, name in PARTS.items():
        if not (work / part / "model.safetensors").is_file():
            checkpoint.save(work / part, imported(read_fixture(fixtures / f"{name}.json")), {"imported": name})
    return (
        checkpoint.load_tokenizer(work / "tokenizer"),
        checkpoint.load_tokenizer(work / "sketch-tokenizer"),
        checkpoint.load_transformer(work / "transformer"),
    )


def bundle(work: Path, tokenizer: TSVQGAN, sketch_tokenizer: TSVQGAN, transformer: LocalTransformer) -> Path:
    """The models' bundle, exported into ``work`` by the first call; weights in float32, as PyTorch has them."""
    folder = work / "bundle"
    if not folder.is_dir():
        facts = Facts(name="face-stand-in", weights_licence="none, random numbers")
        found = export_bundle(
            tokenizer, transformer, folder, facts, sketch_tokenizer=sketch_tokenizer, weights="float32",
            progress=lambda stage, _: print(f"export: {stage}", file=sys.stderr, flush=True),
        )  # fmt: skip
        print(f"export: {json.dumps(found.record())}", file=sys.stderr, flush=True)
    return folder


def face_mask(editor: Editor, image: np.ndarray) -> np.ndarray:
    """Bool HW: an ellipse around the face that masks as near to the wanted share of tokens as it can."""
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    cell = image.shape[0] // editor.manifest.grid
    best = np.zeros(image.shape[:2], bool)
    for radius in range(60, 260):
        mask = ((rows - 190) / 1.15) ** 2 + (columns - 226) ** 2 < radius**2
        tokens = mask.reshape(editor.manifest.grid, cell, editor.manifest.grid, cell).any((1, 3)).mean()
        if tokens > SHARE + 0.5 / editor.manifest.image_tokens:
            break
        best = mask
    return best


def timed(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Median seconds of ``repeats`` calls after one that is not counted, and the last result."""
    result = work()
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds), result


def authors_way(
    model: LocalTransformer, condition: Tensor, tokens: Tensor, token_mask: Tensor, limit: int | None
) -> tuple[list[float], list[int]]:
    """Seconds of every masked token, each a pass over the whole sequence, and the tokens."""
    segments, tokens = batch_segments(model.config, token_mask), tokens.clone()
    seconds, chosen = [], []
    with torch.inference_mode():
        model.target_logits(condition, None, tokens, segments)
        for position in tqdm(torch.nonzero(token_mask[0]).flatten().tolist()[:limit], "whole passes", unit="token"):
            begun = time.perf_counter()
            tokens[0, position] = model.target_logits(condition, None, tokens, segments)[0, position].argmax()
            seconds.append(time.perf_counter() - begun)
            chosen.append(int(tokens[0, position]))
    return seconds, chosen


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Both ways, on the same photograph."""
    tokenizer, sketch_tokenizer, transformer = models(args.work, args.fixtures)
    folder = bundle(args.work, tokenizer, sketch_tokenizer, transformer)
    editor = Editor(folder, threads=args.threads)
    image = np.asarray(astronaut(), np.uint8)
    mask, lines = face_mask(editor, image), editor.sketch(image)
    total, result = timed(lambda: editor.edit(image, mask=mask, sketch=lines), args.repeats)
    drawing, _ = timed(lambda: editor.sketch(image), args.repeats)
    ours = result.timings["prefill"] + result.timings["decode"]

    from ilat_export.graphs import DecoderGraph, SketchEncoderGraph

    graph, painter = SketchEncoderGraph(tokenizer, sketch_tokenizer), DecoderGraph(tokenizer)
    inputs = [torch.from_numpy(part[None]) for part in (image, mask.astype(np.uint8), lines)]
    with torch.inference_mode():
        encode, (latent, tokens, token_mask, edit_mask, condition) = timed(lambda: graph(*inputs), args.repeats)
    seconds, chosen = authors_way(transformer, condition, tokens, token_mask, args.tokens)
    masked = int(token_mask.sum())
    sampling = sum(seconds) / len(seconds) * masked
    finished = tokens.clone()
    finished[token_mask] = torch.from_numpy(result.tokens)
    with torch.inference_mode():
        decode, _ = timed(
            lambda: painter(latent, finished, token_mask, inputs[0], edit_mask, torch.tensor([True])), args.repeats
        )
    equal = sum(a == b for a, b in zip(chosen, result.tokens.tolist(), strict=False))
    return {
        "photograph": "scikit-image's astronaut, 512x512",
        "masked_tokens": masked,
        "of_tokens": editor.manifest.image_tokens,
        "masked_pixels": round(float(mask.mean()), 4),
        "sequence": transformer.config.layout.length,
        "parameters": {
            name: sum(p.numel() for p in model.parameters())
            for name, model in zip(PARTS, (tokenizer, sketch_tokenizer, transformer), strict=True)
        },
        "whole_passes_timed": len(seconds),
        "equal_tokens": f"{equal} of {len(chosen)}",
        "authors_way": {
            "seconds_a_token": round(statistics.median(seconds), 4),
            "sampling": round(sampling, 3),
            "encode": round(encode, 3),
            "decode": round(decode, 3),
            "whole_edit": round(encode + sampling + decode, 3),
        },
        "bundle": {name: round(value, 4) for name, value in result.timings.items()}
        | {"sampling": round(ours, 3), "whole_edit": round(total, 3), "drawing_a_sketch": round(drawing, 3)},
        "ratio_of_sampling": round(sampling / ours, 1),
        "ratio_of_the_whole_edit": round((encode + sampling + decode) / total, 1),
        "threads": args.threads,
        "environment": {
            "backend": editor.backend,
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
            "machine": platform.machine(),
            "cores_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        },
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument(
        "--work", type=Path, required=True, metavar="DIR", help="where models and bundle are kept, 1 GB"
    )
    parser.add_argument("--fixtures", type=Path, default=FIXTURES, metavar="DIR", help="of the parity tests")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of both ways (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls, after one that is not (%(default)s)")
    parser.add_argument("--tokens", type=int, metavar="N", help="time this many whole passes only, and multiply")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(json.dumps(measure(args), indent=1))


if __name__ == "__main__":
    main()
