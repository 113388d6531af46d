"""Editing a face with a bundle against the authors' way of sampling, the same weights, side by side in one run.

The authors' code runs the transformer over the whole sequence for every masked token; a bundle's graph prefills a cache
once and feeds one token a call. The models are the released ones in size: the face model's image tokenizer, sketch
tokenizer and transformer, imported from the parity fixtures with stand-in weights (random numbers, so the picture is
noise; what is computed is the same).

    python samples/benchmarks/face_sampling.py --work out/face-benchmark

writes the run and its bundles to out/face-benchmark, where a second call finds them, and prints one JSON object. Two
bundles are timed: as exported, in float32, and with the transformer's weights in 8 bits. Ratios are of seconds of the
CPU (user and system, of all threads), so that other programs on the machine count for little; seconds of the clock are
beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from skimage.data import astronaut
from torch import Tensor
from tqdm import tqdm

from ilat_export.bundle import Facts, export_bundle
from ilat_export.graphs import DecoderGraph, SketchEncoderGraph
from ilat_export.precision import convert_bundle
from ilat_export.sample import random_sample
from ilat_runtime import Editor, Result
from ilat_runtime.backends import choose
from ilat_runtime.decoding import Decoder, Sampling, Target
from ilat_runtime.manifest import load_manifest
from ilat_runtime.segments import decode_plan
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


def in_int8(source: Path) -> Path:
    """The bundle with the transformer's weights in 8 bits, beside it; what its random weights lose says nothing."""
    folder = source.with_name(source.name + "-int8")
    if not folder.is_dir():
        sample = random_sample(load_manifest(source), np.random.default_rng(0))
        convert_bundle(source, folder, "int8", [sample], force=True)
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


@dataclass
class Clock:
    """Calls timed one by one: seconds of the CPU, and of the clock."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def __call__(self, work: Callable[[], Any]) -> Any:
        """Times ``work()`` and gives what it gives."""
        cpu, wall = time.process_time(), time.perf_counter()
        result = work()
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)
        return result

    def record(self, calls: int = 1) -> dict[str, float]:
        """Medians, times ``calls``."""
        return {name: round(statistics.median(getattr(self, name)) * calls, 3) for name in ("cpu", "wall")}


def timed(work: Callable[[], Any], repeats: int) -> tuple[Clock, Any]:
    """``repeats`` calls after one that is not counted, and the last result."""
    result, clock = work(), Clock()
    for _ in range(repeats):
        result = clock(work)
    return clock, result


def authors_way(
    model: LocalTransformer, condition: Tensor, tokens: Tensor, token_mask: Tensor, limit: int | None
) -> tuple[Clock, list[int]]:
    """A pass over the whole sequence for every masked token (the first ``limit``), greedily, and the tokens."""
    segments, tokens, clock, chosen = batch_segments(model.config, token_mask), tokens.clone(), Clock(), []
    with torch.inference_mode():
        model.target_logits(condition, None, tokens, segments)
        for position in tqdm(torch.nonzero(token_mask[0]).flatten().tolist()[:limit], "whole passes", unit="token"):
            logits = clock(lambda: model.target_logits(condition, None, tokens, segments))
            tokens[0, position] = logits[0, position].argmax()
            chosen.append(int(tokens[0, position]))
    return clock, chosen


class Cached:
    """The runtime's way: everything that is known is prefilled, then one call for each masked token."""

    def __init__(self, folder: Path, threads: int, repeats: int) -> None:
        self.editor, self.manifest, self.repeats = Editor(folder, threads=threads), load_manifest(folder), repeats
        record = self.manifest.graphs.transformer
        self._graph = choose("onnxruntime", threads=threads).backend.load(folder / record.file, record)
        self.sampling = Clock()

    def edit(self, image: np.ndarray, mask: np.ndarray, sketch: np.ndarray) -> tuple[Clock, Result]:
        """A whole edit, as a user makes it."""
        return timed(lambda: self.editor.edit(image, mask=mask, sketch=sketch), self.repeats)

    def sample(self, condition: Tensor, tokens: Tensor, token_mask: Tensor) -> list[int]:
        """The masked tokens, timed."""

        def generate() -> list[int]:
            decoder = Decoder(self.manifest, self._graph, 1)
            decoder.condition([condition[0].numpy()], [None])
            plan = decode_plan(self.manifest.sequence, token_mask[0].numpy(), self.manifest.numbering)
            return decoder.generate([Target(plan, tokens[0].numpy(), None)], Sampling())[0].tokens.tolist()

        clock, found = timed(generate, self.repeats)
        self.sampling = Clock(self.sampling.cpu + clock.cpu, self.sampling.wall + clock.wall)
        return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Both ways, on the same photograph."""
    tokenizer, sketch_tokenizer, transformer = models(args.work, args.fixtures)
    folder = bundle(args.work, tokenizer, sketch_tokenizer, transformer)
    folders = {"float32": folder, "int8": in_int8(folder)}
    ways = {name: Cached(path, args.threads, args.repeats) for name, path in folders.items()}
    editor = ways["float32"].editor
    image = np.asarray(astronaut(), np.uint8)
    mask, lines = face_mask(editor, image), editor.sketch(image)
    graph, painter = SketchEncoderGraph(tokenizer, sketch_tokenizer), DecoderGraph(tokenizer)
    inputs = [torch.from_numpy(part[None]) for part in (image, mask.astype(np.uint8), lines)]
    with torch.inference_mode():
        encode, (latent, tokens, token_mask, edit_mask, condition) = timed(lambda: graph(*inputs), args.repeats)
    found = {name: way.sample(condition, tokens, token_mask) for name, way in ways.items()}
    theirs, chosen = authors_way(transformer, condition, tokens, token_mask, args.tokens)
    # Once more: what else the machine does may have changed meanwhile.
    for way in ways.values():
        way.sample(condition, tokens, token_mask)
    edits = {name: way.edit(image, mask, lines) for name, way in ways.items()}
    result = edits["float32"][1]
    finished, masked = tokens.clone(), int(token_mask.sum())
    finished[token_mask] = torch.from_numpy(result.tokens)
    with torch.inference_mode():
        decode, _ = timed(
            lambda: painter(latent, finished, token_mask, inputs[0], edit_mask, torch.tensor([True])), args.repeats
        )
    sampling, tokenizers = theirs.record(masked), (encode.record(), decode.record())
    whole = {name: round(sampling[name] + sum(part[name] for part in tokenizers), 3) for name in sampling}
    # The yardstick of decoding: a token cannot be had in less than the time in which the weights are read once.
    weights = torch.ones(sum(map(Tensor.numel, transformer.blocks.parameters())) // 768, 768)
    reading, _ = timed(lambda: weights @ torch.ones(768), args.repeats)
    counted = [model.parameters() for model in (tokenizer, sketch_tokenizer, transformer)]
    return {
        "photograph": "scikit-image's astronaut, 512x512",
        "masked_tokens": masked,
        "of_tokens": editor.manifest.image_tokens,
        "masked_pixels": round(float(mask.mean()), 4),
        "sequence": transformer.config.layout.length,
        "parameters": {name: sum(map(Tensor.numel, part)) for name, part in zip(PARTS, counted, strict=True)},
        "equal_tokens": {
            "sampling": f"{sum(map(int.__eq__, chosen, found['float32']))} of {len(chosen)}",
            "editor": f"{sum(map(int.__eq__, found['float32'], result.tokens.tolist()))} of {masked}",
        },
        "authors_way": {
            "whole_passes_timed": len(chosen),
            "a_token": theirs.record(),
            "sampling": sampling,
            "encode": tokenizers[0],
            "decode": tokenizers[1],
            "whole_edit": whole,
        },
        "reading_the_weights_once": reading.record(),
        "bundles": {
            name: {
                "sampling": way.sampling.record(),
                "whole_edit": edits[name][0].record(),
                "wall_of_its_parts": {part: round(value, 3) for part, value in edits[name][1].timings.items()},
                "ratio_of_sampling": round(sampling["cpu"] / way.sampling.record()["cpu"], 1),
                "ratio_of_the_whole_edit": round(whole["cpu"] / edits[name][0].record()["cpu"], 1),
            }
            for name, way in ways.items()
        },
        "threads": args.threads,
        "environment": {
            "backend": editor.backend,
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
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
