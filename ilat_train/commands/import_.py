"""``ilat-train import``: a checkpoint of the authors or of CompVis → ours."""

from __future__ import annotations

import argparse
import json
import shlex
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ilat_runtime.cli.common import DONE, add_output_options, emit, human_size, human_time, shows_progress
from ilat_runtime.errors import OutputError

from ..importing.formats import FORMATS


def add_parser(subparsers: Any) -> None:
    """Register ``import``."""
    listed = "\n".join(f"  {name:17} {form.about}" for name, form in FORMATS.items())
    parser = subparsers.add_parser(
        "import",
        help="bring a checkpoint of the authors",
        description="Write a released checkpoint as ours, a folder with config.json and safetensors. No code in it is "
        "run, and every parameter must fit. Formats:\n" + listed,
        epilog="example: ilat-train import last.ckpt --format ilat-face --out runs/face/tokenizer",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a PyTorch or safetensors file")
    parser.add_argument("--format", required=True, choices=list(FORMATS), help="what it is a checkpoint of")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="its JSON or YAML configuration, for what shapes do not show"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder of our checkpoint")
    parser.add_argument("--force", action="store_true", help="replace a checkpoint that is there")
    add_output_options(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    begun = time.perf_counter()
    _check_destination(args.out, args.force)

    from ..checkpoint import save
    from ..importing.convert import import_checkpoint

    with tqdm(total=2, unit="stage", disable=None if shows_progress(args) else True, leave=False) as bar:
        bar.set_description("reading")
        found = import_checkpoint(args.checkpoint, args.format, args.config)
        bar.update()
        bar.set_description("writing")
        save(args.out, found.model, found.facts)
    seconds = time.perf_counter() - begun
    size = (args.out / "model.safetensors").stat().st_size
    parameters = sum(parameter.numel() for parameter in found.model.parameters())
    following = shlex.join(str(word) for word in _next(args.format, args.out))
    lines = [
        f"{args.out}: {FORMATS[args.format].about}, {parameters / 1e6:.1f} million parameters, {human_size(size)}, "
        f"in {human_time(seconds)}"
    ]
    if found.passed_over:
        names = ", ".join(f"{name} ({count})" if count else name for name, count in found.passed_over.items())
        lines.append(f"passed over (tensors): {names}")
    if found.assumed:
        values = ", ".join(f"{key} {json.dumps(value)}" for key, value in found.assumed.items())
        lines.append(f"assumed, as shapes do not show it: {values}; --config says otherwise")
    lines.append(f"next: {following}")
    data = {
        "out": str(args.out),
        "format": args.format,
        "config": found.model.config.model_dump(mode="json"),
        "assumed": found.assumed,
        "passed_over": found.passed_over,
        "parameters": parameters,
        "bytes": size,
        "seconds": round(seconds, 3),
        "next": following,
    }
    emit(args, "\n".join(lines), data)
    return DONE


def _check_destination(out: Path, force: bool) -> None:
    """Raises OutputError where there is something that a checkpoint would replace."""
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(f"{out}: is a file, expected a folder")
    if (out / "state.pt").exists():
        raise OutputError(f"{out}: holds a training's state; choose another folder")
    if any(out.iterdir()):
        if not (out / "config.json").is_file():
            raise OutputError(f"{out}: is no checkpoint, so it is not replaced; choose another folder")
        if not force:
            raise OutputError(f"{out}: exists already; replace it with --force")


def _next(form: str, out: Path) -> list[object]:
    if form == "taming-vqgan":
        return ["ilat-train", "tokenizer", "--recipe", "pose", "--init", out, "--data", "DATA", "--out", "RUN"]
    return ["ilat-export", out.parent, "--out", Path("bundles") / out.absolute().parent.name]
