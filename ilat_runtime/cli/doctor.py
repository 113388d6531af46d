"""``ilat-doctor``: what is installed, which backend would be used and why, and whether a bundle is sound."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .. import __version__
from ..backends import BACKENDS, choose
from ..errors import BackendError, IlatError
from ..manifest import load_manifest, verify_files
from .common import DONE, FAILED, Parser, add_output_options, emit, human_size, new_parser, run_parser

PACKAGES = {"numpy": "numpy", "onnxruntime": "onnxruntime", "opencv": "cv2", "pydantic": "pydantic", "tqdm": "tqdm"}
"""Packages that editing needs, and their modules: several distributions hold OpenCV."""
OPTIONAL_PACKAGES = ("torch", "onnx", "pycuda", "cuda-bindings", "tensorrt", "tensorrt-rtx-cu13-bindings")


def build_parser() -> Parser:
    """The command line's parser."""
    parser = new_parser("ilat-doctor", "Show what is installed and which backend would be used; check a bundle.")
    parser.add_argument("bundle", nargs="?", metavar="BUNDLE", help="folder of a bundle to check")
    add_output_options(parser)
    parser.set_defaults(run=doctor)
    return parser


def doctor(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code, 1 when something is wrong."""
    problems: list[str] = []
    data: dict[str, Any] = {
        "ilat": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "packages": {name: _module_version(module) for name, module in PACKAGES.items()}
        | {name: _version(name) for name in OPTIONAL_PACKAGES},
        "backends": {name: _backend(name) for name in BACKENDS},
        "auto": None,
        "bundle": None,
    }
    problems += [f"{name} cannot be imported" for name in PACKAGES if data["packages"][name] is None]
    try:
        choice = choose("auto")
        data["auto"] = {"backend": choice.backend.description, "reason": choice.reason}
    except BackendError as error:
        problems.append(str(error))
    if args.bundle is not None:
        try:
            data["bundle"] = _bundle(Path(args.bundle))
        except IlatError as error:
            problems.append(str(error))
    data["problems"] = problems
    emit(args, _text(data), data)
    return FAILED if problems else DONE


def _module_version(module: str) -> str | None:
    """None when the module cannot be imported."""
    try:
        return str(import_module(module).__version__)
    except ImportError:
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _backend(name: str) -> str:
    """What there is to say about a backend, in a few words."""
    try:
        return f"works: {choose(name).backend.description}"
    except BackendError as error:
        return str(error)


def _bundle(folder: Path) -> dict[str, Any]:
    """Check the manifest, the files and that the graphs load. Raises IlatError at the first problem."""
    manifest = load_manifest(folder)
    verify_files(folder, manifest)
    backend = choose("auto", bundle=(folder, manifest)).backend
    for graph in manifest.graphs.by_name.values():
        backend.load(folder / graph.file, graph)
    return {
        "path": str(folder),
        "name": manifest.name,
        "kind": manifest.kind,
        "created_with": manifest.created_with,
        "image_size": manifest.image_size,
        "tokens": manifest.image_tokens,
        "codebook_size": manifest.codebook_size,
        "bytes": sum(record.bytes for record in manifest.files.values()),
        "licence": manifest.licence.model_dump(),
        "loads_on": backend.description,
    }


def _text(data: dict[str, Any]) -> str:
    lines = [
        f"ilat {data['ilat']}, Python {data['python']}, {data['platform']}, {data['cpus']} CPUs",
        "",
        "packages",
        *(f"  {name:28}{found or 'not installed'}" for name, found in data["packages"].items()),
        "",
        "backends",
        *(f"  {name:28}{state}" for name, state in data["backends"].items()),
    ]
    if data["auto"]:
        lines.append(f"  used: {data['auto']['backend']} ({data['auto']['reason']})")
    if data["bundle"]:
        bundle = data["bundle"]
        size = f"{bundle['image_size']}x{bundle['image_size']} pixels"
        lines += [
            "",
            f"bundle {bundle['path']}: complete and unchanged, its graphs load on {bundle['loads_on']}",
            f"  {bundle['name']}, kind {bundle['kind']}, {human_size(bundle['bytes'])}, by {bundle['created_with']}",
            f"  {size}, {bundle['tokens']} tokens, {bundle['codebook_size']} codebook entries",
            f"  licence of the weights: {bundle['licence']['weights']}; of the data: {bundle['licence']['data']}",
        ]
    lines += ["", *(f"problem: {problem}" for problem in data["problems"])] if data["problems"] else []
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``ilat-doctor``; returns the exit code."""
    return run_parser(build_parser(), arguments)


if __name__ == "__main__":
    raise SystemExit(main())
