"""What each precision of a bundle costs and gains, and its engines: the tables of docs/results.md in one command.

    python samples/benchmarks/precisions.py samples/bundles/pose-demo --data data/demo --work out/precisions
    python samples/benchmarks/precisions.py --recipe pose --edits 2 --work out/precisions-large

The first measures a bundle, the second a model of a recipe's size with random weights, whose equal tokens say little of
a trained one's. Bundles and engines are written to --work, where a second call finds the models of a recipe. The tables
go to stdout in Markdown, or all that was found as JSON. Steps of all precisions take turns, and their times are seconds
of the processor (one thread), so that other programs on the machine count for little.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnxruntime
import torch
from tqdm import tqdm

from ilat_export.bundle import Facts, export_bundle
from ilat_export.engine import build_engines
from ilat_export.precision import Precision, convert_bundle
from ilat_export.real_inputs import held_out_samples, photograph
from ilat_export.sample import Sample
from ilat_runtime.backends import choose
from ilat_runtime.bench import Bench, bandwidth, step_bytes
from ilat_runtime.cli.bench import CONTEXT
from ilat_runtime.cli.common import human_size
from ilat_runtime.errors import BackendError
from ilat_runtime.manifest import load_manifest
from ilat_runtime.tensorrt_library import library
from ilat_train.models import TSVQGAN, LocalTransformer
from ilat_train.recipes import recipe

PRECISIONS: tuple[Precision, ...] = tuple(name for name in get_args(Precision) if name != "fp32")
ON_CPUS = ("float32", "int8", "int4")


def random_bundle(name: str, out: Path) -> Path:
    """The bundle of a recipe's models with random weights, exported into ``out`` by the first call."""
    if not out.is_dir():
        torch.manual_seed(0)
        wanted = recipe(name)
        models = TSVQGAN(wanted.tokenizer), LocalTransformer(wanted.transformer)
        export_bundle(*models, out, Facts(name=f"{name}-random", weights_licence="none, random numbers"))
    return out


def samples(bundle: Path, data: Path | None, count: int) -> list[Sample]:
    """Edits of held-out frames of a data set, or of a photograph."""
    manifest = load_manifest(bundle)
    rule = (manifest.crop.margin, manifest.crop.dilation) if manifest.crop is not None else (1.0, 0.0)
    if data is None:
        return photograph(*rule, manifest.image_size, manifest.kind == "pose", count)
    return held_out_samples(data, *rule, manifest.image_size, count)


def steps(folders: dict[str, Path], rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of the processor for a step of each bundle, in turns, and its floor."""
    work: dict[str, tuple[Any, Bench, int]] = {}
    for name, folder in folders.items():
        manifest, backend = load_manifest(folder), choose("onnxruntime", threads=1).backend
        graphs = [backend.load(folder / record.file, record) for record in manifest.graphs.by_name.values()][:3]
        work[name] = (manifest, Bench(manifest, *graphs), min(CONTEXT, manifest.cache_capacity - 1))
    taken: dict[str, list[float]] = {name: [] for name in work}
    speed = 0.0
    for _ in tqdm(range(rounds), "steps", unit="round"):
        speed = max(speed, bandwidth(1, 1, time.process_time))
        for name, (_, bench, context) in work.items():
            taken[name] += bench.steps(context, 8, time.process_time)
    result = {}
    for name, (manifest, _, context) in work.items():
        size = step_bytes(manifest, context, 4.0 if name == "float32" else None)
        result[name] = {
            "ms": round(float(np.median(taken[name])) * 1000, 3),
            "floor_ms": round(size / speed * 1000, 3),
            "context": context,
        }
    return result


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All of it."""
    source = args.bundle or random_bundle(args.recipe, args.work / "float32")
    edits = samples(source, args.data, args.edits)
    folders = {"float32": source}
    rows: dict[str, dict[str, Any]] = {"float32": {}}
    for name in tqdm(PRECISIONS, "precisions", unit="precision"):
        loss, missed = convert_bundle(source, args.work / name, name, edits, force=True)
        folders[name] = args.work / name
        rows[name] = {**asdict(loss), "below_floor": missed}
    for name, folder in folders.items():
        files = [file for file in folder.iterdir() if file.is_file()]
        rows[name]["bytes"] = sum(file.stat().st_size for file in files)
        rows[name]["transformer_bytes"] = (folder / "transformer.onnx").stat().st_size
    for name, step in steps({name: folders[name] for name in ON_CPUS}, args.rounds).items():
        rows[name]["step"] = step
    return {
        "bundle": str(source),
        "edits": len(edits),
        "data": None if args.data is None else str(args.data),
        "precisions": rows,
        "engines": engines(folders["fp16"], args.compute_capability),
        "onnxruntime": onnxruntime.__version__,
    }


def engines(bundle: Path, capabilities: list[int]) -> dict[str, Any] | None:
    """TensorRT-RTX engines of the bundle for those GPUs; None where the library is not installed."""
    try:
        version = library("tensorrt-rtx").__version__
    except BackendError:
        return None
    clock = [time.process_time()]
    _, record, built = build_engines(
        bundle, "tensorrt-rtx", capabilities, force=True, progress=lambda *_: clock.append(time.process_time())
    )
    spent = dict(zip(built, np.diff(clock[1:]).tolist(), strict=True))
    graphs = {name: {**asdict(part), "cpu_seconds": round(spent[name], 1)} for name, part in built.items()}
    return {"version": version, "targets": list(record.targets), "graphs": graphs}


def tables(found: dict[str, Any]) -> str:
    """As they stand in docs/results.md."""
    lines = [
        "| | bundle | transformer's file | equal tokens, encoder | equal tokens, transformer | PSNR | a step "
        "| times its floor |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in found["precisions"].items():
        cells = [human_size(row["bytes"]), human_size(row["transformer_bytes"]), "", "", "", "", ""]
        if "encoder_tokens" in row:
            cells[2:4] = [f"{row[key] * 100:.2f} %" for key in ("encoder_tokens", "decoded_tokens")]
            cells[4] = "identical" if row["psnr"] is None else f"{row['psnr']:.1f} dB"
        if "step" in row:
            cells[5:] = [f"{row['step']['ms']:.1f} ms", f"{row['step']['ms'] / row['step']['floor_ms']:.1f}"]
        lines.append(f"| {name if name == 'float32' else f'`--{name}`'} | {' | '.join(cells)} |")
    if found["engines"] is not None:
        lines += [
            "",
            f"TensorRT-RTX {found['engines']['version']}, {', '.join(found['engines']['targets'])}:",
            "",
            "| graph | layers | KV-cache updates | attentions | size | time |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for name, part in found["engines"]["graphs"].items():
            counts = [str(part[key] or "") for key in ("layers", "cache_layers", "attentions")]
            cells = [name, *counts, human_size(part["bytes"]), f"{part['cpu_seconds']:.1f} s"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    add = parser.add_argument
    add("bundle", type=Path, nargs="?", metavar="BUNDLE", help="a float32 bundle")
    add("--recipe", metavar="NAME", help="instead of a bundle: models of a recipe, with random weights")
    add("--work", type=Path, required=True, metavar="DIR", help="where bundles and engines are written")
    add("--data", type=Path, metavar="DIR", help="a pose data set, for held-out frames; default: a photograph")
    add("--edits", type=int, default=8, help="edits compared, up to 8 (%(default)s)")
    add("--rounds", type=int, default=8, help="rounds of steps (%(default)s)")
    add("--compute-capability", type=int, nargs="+", default=[86, 89, 120], metavar="N", help="of the engines")
    add("--json", action="store_true", help="print all that was found as JSON")
    args = parser.parse_args()
    if (args.bundle is None) == (args.recipe is None):
        parser.error("give a bundle or a --recipe")
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    found = measure(args)
    print(json.dumps(found, indent=1) if args.json else tables(found))


if __name__ == "__main__":
    main()
