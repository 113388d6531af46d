"""What ``ilat-export`` says at its end: what was written, how good it is, and the next command."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ilat_runtime.cli.common import emit, human_size, human_time

from .destination import size

if TYPE_CHECKING:
    from .compare import Loss
    from .precision import Floor
    from .verify import Verification


def report_export(args: argparse.Namespace, found: Verification, source: str, kind: str, seconds: float) -> None:
    """What an export found, as a table or JSON."""
    graphs: dict[str, dict[str, Any]] = {
        "encoder": {"largest_error": found.latent_error, "of": "latents", "equal_tokens": found.encoder_tokens},
        "transformer": {
            "largest_error": found.log_probability_error,
            "of": "log-probabilities",
            "equal_tokens": found.decoded_tokens,
        },
        "decoder": {"largest_error": found.image_error, "of": "levels of 255", "equal_tokens": None},
    }
    if found.sketch_pixels is not None:
        graphs["sketch"] = {"largest_error": 1 - found.sketch_pixels, "of": "pixels", "equal_tokens": None}
    if found.sketch_pixels is not None:
        graphs["sketch"] = {"largest_error": 1 - found.sketch_pixels, "of": "pixels", "equal_tokens": None}
    for name, row in graphs.items():
        row["bytes"] = (args.out / f"{name}.onnx").stat().st_size
    total = size(args.out)
    edit = _edit(args.out, kind)
    rows = [("graph", "size", "largest error", "equal tokens")]
    for name, row in graphs.items():
        equal = "" if row["equal_tokens"] is None else _percent(row["equal_tokens"])
        rows.append((name, human_size(row["bytes"]), f"{row['largest_error']:.2g} ({row['of']})", equal))
    text = [*_table(rows), f"{args.out}: {human_size(total)}, in {human_time(seconds)}", f"next: {edit}"]
    data = {
        "out": str(args.out),
        "bytes": total,
        "seconds": round(seconds, 3),
        "graphs": graphs,
        "verification": found.record(),
        "verified_on": source,
        "next": edit,
    }
    emit(args, "\n".join(text), data)


def report_conversion(
    args: argparse.Namespace, loss: Loss, floor: Floor, source: str, kind: str, seconds: float
) -> None:
    """What another precision lost, as a table or JSON."""
    total, edit = size(args.out), _edit(args.out, kind)
    psnr = "identical" if loss.psnr is None else f"{loss.psnr:.1f} dB"
    rows = [
        ("against float32", "found", "floor"),
        ("equal tokens, encoder", _percent(loss.encoder_tokens), _percent(floor.encoder_tokens)),
        ("equal tokens, transformer", _percent(loss.decoded_tokens), _percent(floor.decoded_tokens)),
        ("decoded images", psnr, f"{floor.psnr:g} dB"),
        ("error of latents", f"{loss.latent_error:.2g}", ""),
        ("error of log-probabilities", f"{loss.log_probability_error:.2g}", ""),
    ]
    text = [
        *_table(rows),
        f"{args.out}: {args.precision}, {human_size(total)}, in {human_time(seconds)}",
        f"next: {edit}",
    ]
    data = {
        "out": str(args.out),
        "precision": args.precision,
        "bytes": total,
        "seconds": round(seconds, 3),
        "against_float32": loss.record(),
        "floor": asdict(floor),
        "below_floor": floor.missed(loss) is not None,
        "compared_on": source,
        "next": edit,
    }
    emit(args, "\n".join(text), data)


def _edit(bundle: Path, kind: str) -> str:
    words = {"pose": "--pose pose.json", "sketch": "--mask mask.png --sketch sketch.png", "none": "--mask mask.png"}[
        kind
    ]
    return f"ilat-edit photo.jpg --bundle {shlex.quote(str(bundle))} {words} --out edited.png"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _percent(share: float) -> str:
    """All equal and nearly all equal must not look the same."""
    return "100 %" if share == 1 else f"{min(share * 100, 99.99):.2f} %"
