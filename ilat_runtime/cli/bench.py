"""``ilat-bench``: the time of each part of an edit, and the floor that memory sets for a step."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import __version__, peers
from ..backends import choose
from ..bench import RATIOS, Bench, Run, Spread, bandwidth, step_bytes, token_mask
from ..manifest import Manifest, load_manifest, verify_files
from ..pipeline import Pipeline
from .common import (
    DONE,
    Parser,
    UsageError,
    add_output_options,
    emit,
    human_size,
    new_parser,
    run_parser,
    shows_progress,
)

CONTEXT = 430
"""Tokens in the cache for the step, as in the figures that design and results quote."""
ROUNDS, STEPS = 5, 8
"""How often a step is measured: so many in a row, in so many rounds."""
STAGES = ("encode", "prefill", "decode", "decoder", "total")


def build_parser() -> Parser:
    """The command line's parser."""
    parser = new_parser(
        "ilat-bench",
        "Measure the parts of an edit with a bundle, warm, and compare a step with the time in which this machine's "
        "memory can be read. Example: ilat-bench bundles/me --mask-ratio 0.1 0.5",
    )
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", help="folder of a bundle")
    add("--backend", default="auto", help="what runs the model (default auto; ilat-doctor lists what there is)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: the physical cores)")
    add(
        "--mask-ratio",
        type=float,
        nargs="+",
        default=list(RATIOS),
        metavar="R",
        help="shares of the image's tokens to generate; default: 0.05 to 0.9",
    )
    add(
        "--peers",
        action="store_true",
        help="also measure a token of Hugging Face transformers and CTranslate2 with a model as large, where installed",
    )
    add("--repeats", type=int, default=3, metavar="N", help="edits measured for each share (%(default)s)")
    add_output_options(parser)
    parser.set_defaults(run=bench)
    return parser


def bench(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    if not 1 <= args.repeats <= 1000:
        raise UsageError(f"--repeats: {args.repeats}, expected a number from 1 to 1000")
    for ratio in args.mask_ratio:
        if not 0 < ratio <= 1:
            raise UsageError(f"--mask-ratio: {ratio:g}, expected above 0 and up to 1")
    manifest = load_manifest(args.bundle)
    verify_files(args.bundle, manifest)
    backend = choose(args.backend, args.threads, (Path(args.bundle), manifest)).backend
    pipeline = Pipeline(Path(args.bundle), manifest, backend)
    work = Bench(manifest, pipeline.encoder, pipeline.transformer, pipeline.decoder)
    ratios = sorted(set(args.mask_ratio))
    runs: list[Run] = []
    with tqdm(
        total=1 + len(ratios) * args.repeats,
        unit="edit",
        disable=None if shows_progress(args) else True,
        leave=False,
    ) as bar:
        work.run(ratios[0])
        bar.update()
        for _ in range(args.repeats):
            for ratio in ratios:
                runs.append(work.run(ratio))
                bar.update()
    threads = args.threads or _processors()
    data = _measured(manifest, runs, ratios)
    context = min(CONTEXT, manifest.cache_capacity - 1)
    steps, others = [], peers.peers(manifest, context, STEPS, threads) if args.peers else []
    taken: dict[str, list[float]] = {peer.name: [] for peer in others}
    speed = 0.0
    # In turns, so that what else the machine does burdens all alike.
    for _ in range(ROUNDS):
        speed = max(speed, bandwidth(threads, 1))
        steps += work.steps(context, STEPS)
        for peer in others:
            if peer.steps is not None:
                taken[peer.name] += peer.steps(STEPS)
    data |= {
        "bundle": str(args.bundle),
        "backend": backend.description,
        "threads": threads,
        "step": _step(manifest, backend.name, context, steps, speed),
        "peers": [_peer(name, seconds, steps) for name, seconds in taken.items()] if args.peers else None,
    }
    emit(args, _text(data, Path(args.bundle)), data)
    return DONE


def _measured(manifest: Manifest, runs: Sequence[Run], ratios: Sequence[float]) -> dict[str, Any]:
    sweep = []
    for ratio in ratios:
        mine = [run for run in runs if run.ratio == ratio]
        decode = Spread.of([run.stages["decode"] for run in mine])
        count = int(token_mask(manifest, ratio).sum())
        sweep.append(
            {
                "ratio": ratio,
                "masked_tokens": count,
                "decode_ms": round(decode.median, 3),
                "ms_per_token": round(decode.median / count, 4),
            }
        )
    # The share nearest to a half stands for an edit.
    usual = min(ratios, key=lambda ratio: abs(ratio - 0.5))
    mine = [run for run in runs if run.ratio == usual]
    stages = {name: Spread.of([run.stages[name] for run in mine]) for name in STAGES}
    return {
        "precision": manifest.precision.model_dump(),
        "mask_sweep": sweep,
        "stages_ms": {name: round(spread.median, 3) for name, spread in stages.items()},
        "stages_spread_ms": {name: [round(spread.low, 3), round(spread.high, 3)] for name, spread in stages.items()},
        "stages_mask_ratio": usual,
        "tokens_per_second": round(mine[0].masked_tokens / stages["decode"].median * 1000, 2),
        "versions": {"ilat": __version__, "python": platform.python_version(), "numpy": np.__version__},
        "cpu": _cpu(),
    }


def _step(manifest: Manifest, backend: str, context: int, steps: Sequence[float], speed: float) -> dict[str, float]:
    """Of single steps in seconds, on a memory that gives ``speed`` bytes a second."""
    spread = Spread.of(steps)
    # On CPUs ONNX Runtime holds float16 weights as float32.
    widened = backend == "onnxruntime" and manifest.precision.weights == "float16"
    size = step_bytes(manifest, context, 4.0 if widened else None)
    floor = size / speed * 1000
    return {
        "median_ms": round(spread.median, 4),
        "low_ms": round(spread.low, 4),
        "high_ms": round(spread.high, 4),
        "floor_ms": round(floor, 4),
        "ratio_to_floor": round(spread.median / floor, 3),
        "bytes": round(size),
        "context": context,
        "bandwidth_gb_s": round(speed / 1e9, 3),
    }


def _peer(name: str, seconds: Sequence[float], ours: Sequence[float]) -> dict[str, Any]:
    """Of a peer's tokens; None where it is not installed."""
    if not seconds:
        return {"name": name, "ms_per_token": None, "times_ours": None}
    median = Spread.of(seconds).median
    return {
        "name": name,
        "ms_per_token": round(median, 3),
        "times_ours": round(median / Spread.of(ours).median, 3),
    }


def _text(data: dict[str, Any], bundle: Path) -> str:
    precision, step = data["precision"], data["step"]
    lines = [
        f"{bundle}: {precision['compute']}, weights {precision['weights']}",
        f"{data['backend']}, {data['threads']} threads, {data['cpu']}",
        "",
        "masked   tokens   decode        per token",
    ]
    for row in data["mask_sweep"]:
        took, each = f"{row['decode_ms']:8.1f} ms", f"{row['ms_per_token']:9.2f} ms"
        lines.append(f"{row['ratio'] * 100:5.0f} %  {row['masked_tokens']:6d}  {took}  {each}")
    lines += ["", f"stage     median      10 % to 90 %      ({data['stages_mask_ratio'] * 100:.0f} % masked)"]
    for name, median in data["stages_ms"].items():
        low, high = data["stages_spread_ms"][name]
        lines.append(f"{name:8}  {median:7.1f} ms  {low:.1f} to {high:.1f} ms")
    lines += [
        f"{data['tokens_per_second']:g} tokens a second",
        "",
        f"a step with {step['context']} tokens in the cache: {step['median_ms']:.2f} ms "
        f"({step['low_ms']:.2f} to {step['high_ms']:.2f}), {step['ratio_to_floor']:.2f} times its floor of "
        f"{step['floor_ms']:.2f} ms:",
        f"{human_size(step['bytes'])} of weights and cache at {step['bandwidth_gb_s']:.1f} GB/s",
    ]
    for peer in data["peers"] or ():
        known = peer["ms_per_token"] is not None
        took = f"{peer['ms_per_token']:.2f} ms a token, {peer['times_ours']:.2f} times ours" if known else ""
        lines.append(f"{peer['name']:34}{took}")
    return "\n".join(lines)


def _processors() -> int:
    """Those that this process may use, where the system tells; else all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu() -> str:
    """The processor's name, where the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``ilat-bench``; returns the exit code."""
    return run_parser(build_parser(), arguments)


if __name__ == "__main__":
    raise SystemExit(main())
