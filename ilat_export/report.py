"""What ``ilat-export`` says at its end: what was written, how good it is, and the next command."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ilat_runtime.cli.common import human_size, human_time
from ilat_runtime.manifest import load_manifest

from .destination import size

if TYPE_CHECKING:
    from ilat_runtime.engines import Engines

    from .compare import Loss
    from .engine import Built
    from .polygraphy_check import Checked
    from .precision import Floor
    from .verify import Verification


Said = tuple[str, dict[str, Any]]
"""A report as text for people and as JSON."""


def report_export(args: argparse.Namespace, found: Verification, source: str, kind: str, seconds: float) -> Said:
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
    return "\n".join(text), data


def report_conversion(
    args: argparse.Namespace, precision: str, loss: Loss, floor: Floor, source: str, kind: str, seconds: float
) -> Said:
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
        f"{args.out}: {precision}, {human_size(total)}, in {human_time(seconds)}",
        f"next: {edit}",
    ]
    data = {
        "out": str(args.out),
        "precision": precision,
        "bytes": total,
        "seconds": round(seconds, 3),
        "against_float32": loss.record(),
        "floor": asdict(floor),
        "below_floor": floor.missed(loss) is not None,
        "compared_on": source,
        "next": edit,
    }
    return "\n".join(text), data


def report_engines(
    args: argparse.Namespace,
    said: Said | None,
    folder: Path,
    record: Engines,
    built: Mapping[str, Built],
    seconds: float,
) -> Said:
    """What was built, after what was ``said`` of the bundle."""
    manifest = load_manifest(args.out)
    cache = 2 * manifest.layers * manifest.heads * manifest.cache_capacity * manifest.head_size
    cache *= 2 if manifest.precision.compute == "float16" else 4
    rows = [("engine", "size", "layers", "cache updates", "attentions", "memory", "time")]
    for name, part in built.items():
        memory = "asked on the GPU" if part.device_bytes is None else human_size(part.device_bytes)
        counts = (str(part.layers), str(part.cache_layers), str(part.attentions))
        rows.append((name, human_size(part.bytes), *counts, memory, human_time(part.seconds)))
    total = sum(part.bytes for part in built.values())
    targets = ", ".join(record.targets) or "GPUs from Ampere on, compiled when loaded"
    next_command = f"{_edit(args.out, manifest.kind)} --backend {record.flavour}"
    text = [
        *_table(rows),
        f"{folder}: {record.flavour} {record.version}, {record.precision}, for {targets}",
        f"{human_size(total)} in {human_time(seconds)}; a cache takes {human_size(cache)} of the GPU's memory",
        f"next: {next_command}",
    ]
    data = {
        "out": str(args.out),
        "engines": str(folder),
        "flavour": record.flavour,
        "version": record.version,
        "targets": list(record.targets),
        "precision": record.precision,
        "bytes": total,
        "cache_bytes": cache,
        "seconds": round(seconds, 3),
        "graphs": {name: asdict(part) for name, part in built.items()},
        "next": next_command,
    }
    if said is not None:
        # Without its last line, the next command.
        return "\n".join([*said[0].splitlines()[:-1], *text]), {**said[1], **data, "bundle_bytes": said[1]["bytes"]}
    return "\n".join(text), data


def report_check(bundle: Path, said: Said | None, found: Checked, seconds: float) -> Said:
    """What Polygraphy found, after what was ``said`` of the bundle."""
    rows: list[tuple[str, ...]] = [("graph", "opset", "nodes", "ran alone", "errors", "warnings")]
    for name, graph in found.graphs.items():
        numbers: tuple[int, ...] = (graph.opset, graph.nodes, graph.passed, len(graph.errors), len(graph.warnings))
        rows.append((name, *map(str, numbers)))
    text = _table(rows)
    for engines in found.engines:
        if engines.reason is None:
            rows = [("engine against ONNX Runtime", "calls", "equal tokens", "largest error", "PSNR")]
            for name, part in engines.compared.items():
                equal = "" if part.equal_tokens is None else _percent(part.equal_tokens)
                error = "" if part.largest_error is None else f"{part.largest_error:.2g}"
                image = ("identical" if part.psnr is None else f"{part.psnr:.1f} dB") if name == "decoder" else ""
                rows.append((name, str(part.calls), equal, error, image))
            text += [f"{engines.folder}:", *_table(rows)]
            continue
        text.append(f"{engines.folder}: not run beside ONNX Runtime: {engines.reason}")
        if engines.parsed:
            rows = [("graph as parsed", "layers", "cache updates", "attentions")]
            for name, network in engines.parsed.items():
                numbers = (network.layers, network.cache_layers, network.attentions)
                rows.append((name, *map(str, numbers)))
            text += _table(rows)
    if not found.engines:
        text.append(f"{bundle}: holds no engines, so its graphs only were checked; --engine builds some")
    verdict = f"{len(found.problems)} problems" if found.problems else "nothing wrong"
    text.append(f"{bundle}: {verdict}, Polygraphy {found.polygraphy}, in {human_time(seconds)}")
    data = {"bundle": str(bundle), "seconds": round(seconds, 3), **found.record()}
    if said is None:
        return "\n".join(text), data
    *before, following = said[0].splitlines()
    return "\n".join([*before, *text, following]), {**said[1], "verify": data}


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
