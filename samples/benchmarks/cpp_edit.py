"""One edit of the demo bundle in C++ and in Python, in turn and in one run: time and peak memory.

    make cpp
    python samples/benchmarks/cpp_edit.py

Two comparisons, both on the same library of ONNX Runtime with as many threads: the programs cpp-edit and ilat-edit as
whole processes, loading, files and all; and, in this process, edits by the C library (through ilat/ilat.h) and by
ilat_runtime.Editor, after one that is not counted. Seconds of the CPU (user and system) count little of what other
programs on the machine do; seconds of the clock are beside them. Medians, and the least and the largest.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# What measures processes stays small: a child's peak memory is at least what its parent had when it was started.
ROOT = Path(__file__).parents[2]
SAMPLE, BUNDLE = ROOT / "samples/pose-demo", ROOT / "samples/bundles/pose-demo"
PREFIX = ROOT / "build/prefix"

Rows = dict[str, list[dict[str, float]]]


class Pixels(ctypes.Structure):
    """ilat_pixels."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("width", ctypes.c_int),
        ("height", ctypes.c_int),
        ("stride", ctypes.c_ssize_t),
    )

    @classmethod
    def of(cls, array: Any) -> Pixels:
        """A view of a uint8 array, HWC or HW, which has to be kept."""
        return cls(array.ctypes.data, array.shape[1], array.shape[0], array.strides[0])


class Options(ctypes.Structure):
    """ilat_options."""

    _fields_ = (("backend", ctypes.c_char_p), ("threads", ctypes.c_int), ("library", ctypes.c_char_p))


class Edit(ctypes.Structure):
    """ilat_edit_options."""

    _fields_ = (
        ("pose", ctypes.c_void_p),
        ("reference_pose", ctypes.c_void_p),
        ("mask", Pixels),
        ("sketch", Pixels),
        ("seed", ctypes.c_uint64),
        ("temperature", ctypes.c_double),
        ("top_k", ctypes.c_int64),
        ("dilation", ctypes.c_void_p),
        ("margin", ctypes.c_void_p),
        ("crop", ctypes.c_void_p),
        ("blend", ctypes.c_void_p),
        ("progress", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)),
        ("user", ctypes.c_void_p),
    )


class View(ctypes.Structure):
    """ilat_view_of_result."""

    _fields_ = (
        ("image", Pixels),
        ("mask", Pixels),
        ("sketch", Pixels),
        ("tokens", ctypes.POINTER(ctypes.c_int64)),
        ("log_probability", ctypes.POINTER(ctypes.c_float)),
        ("token_count", ctypes.c_size_t),
        ("token_mask", ctypes.c_void_p),
        ("grid", ctypes.c_int),
        ("transformer_calls", ctypes.c_int64),
        ("crop", ctypes.c_int * 3),
        ("seconds", ctypes.c_double),
        ("backend", ctypes.c_char_p),
        ("notice", ctypes.c_char_p),
    )


def library(prefix: Path) -> Any:
    """libilat.so."""
    ilat = ctypes.CDLL(str(prefix / "lib/libilat.so"))
    ilat.ilat_view.restype = View
    return ilat


def own_peak() -> int:
    """This program's peak memory in kB; its ru_maxrss may be that of the process that started it."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])


def processes(args: argparse.Namespace, onnxruntime: Path) -> Rows:
    """Each program's runs: seconds, peak memory in MB, and the edit's own time within it."""
    programs = {
        "C++": [str(args.prefix / "bin/cpp-edit")],
        "Python": [sys.executable, "-m", "ilat_runtime.cli.edit"],
    }
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ILAT_ONNXRUNTIME": str(onnxruntime)}
    rows: Rows = {name: [] for name in programs}
    tokens = []
    with tempfile.TemporaryDirectory() as folder:
        arguments = [str(SAMPLE / "reference.jpg"), "--bundle", str(args.bundle), "--threads", str(args.threads)]
        arguments += ["--pose", str(SAMPLE / "target.json"), "--out", f"{folder}/out.png", "--force", "--json"]
        for _ in range(args.repeats):
            for name, program in programs.items():
                with open(f"{folder}/json", "w+b") as told:
                    started = time.perf_counter()
                    child = os.posix_spawn(
                        program[0], [*program, *arguments], environment,
                        file_actions=[(os.POSIX_SPAWN_DUP2, told.fileno(), 1)],
                    )  # fmt: skip
                    _, status, usage = os.wait4(child, 0)
                    wall = time.perf_counter() - started
                    if status:
                        raise SystemExit(f"{' '.join(program)}: failed")
                    data = json.loads(Path(told.name).read_text())
                own = own_peak()
                if own >= usage.ru_maxrss:
                    raise SystemExit(f"this process has {own} kB, so that {name}'s {usage.ru_maxrss} kB say nothing")
                tokens.append(data["tokens"])
                rows[name].append(
                    {
                        "cpu_s": usage.ru_utime + usage.ru_stime,
                        "wall_s": wall,
                        "peak_memory_mb": usage.ru_maxrss / 1000,
                        "edit_wall_s": data["timings_ms"]["total"] / 1000,
                    }
                )
    if any(found != tokens[0] for found in tokens):
        raise SystemExit("the two programs generate different tokens")
    return rows


def edits(args: argparse.Namespace, onnxruntime: Path) -> Rows:
    """Edits within this process, by both libraries in turn."""
    from ilat_runtime import Editor, read_image, read_poses

    image, poses = read_image(SAMPLE / "reference.jpg"), read_poses(SAMPLE / "target.json")
    editor = Editor(args.bundle, threads=args.threads)
    ilat, handle = library(args.prefix), ctypes.c_void_p()
    options = Options(threads=args.threads, library=str(onnxruntime).encode())
    if ilat.ilat_open(str(args.bundle).encode(), ctypes.byref(options), ctypes.byref(handle), None):
        raise SystemExit(f"{args.bundle}: the C++ library does not open it")
    pixels, result = Pixels.of(image), ctypes.c_void_p()
    edit = Edit(pose=poses.poses[0].ctypes.data)
    if poses.reference is not None:
        edit.reference_pose = poses.reference.ctypes.data

    def ours() -> list[int]:
        if ilat.ilat_edit(handle, ctypes.byref(pixels), ctypes.byref(edit), ctypes.byref(result), None):
            raise SystemExit("the edit by the C++ library failed")
        view = ilat.ilat_view(result)
        tokens = list(view.tokens[: view.token_count])
        ilat.ilat_free_result(result)
        return tokens

    def theirs() -> list[int]:
        return editor.edit(image, pose=poses.poses[0], reference_pose=poses.reference).tokens.tolist()

    ways: dict[str, Callable[[], list[int]]] = {"C++": ours, "Python": theirs}
    rows: Rows = {name: [] for name in ways}
    if ours() != theirs():
        raise SystemExit("the two libraries generate different tokens")
    for _ in range(args.repeats):
        for name, way in ways.items():
            cpu, wall = time.process_time(), time.perf_counter()
            way()
            rows[name].append({"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall})
    ilat.ilat_close(handle)
    return rows


def summary(rows: Rows) -> dict[str, Any]:
    """Of each measure: median, least and largest of both, and the ratio of the medians, C++ over Python."""
    found: dict[str, Any] = {}
    for key in rows["C++"][0]:
        values = {name: [row[key] for row in measured] for name, measured in rows.items()}
        medians = {name: statistics.median(measured) for name, measured in values.items()}
        found[key] = {
            name: {"median": round(medians[name], 4), "least": round(min(measured), 4), "most": round(max(measured), 4)}
            for name, measured in values.items()
        } | {"ratio": round(medians["C++"] / medians["Python"], 3)}
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Both comparisons."""
    package = find_spec("onnxruntime")
    if package is None or package.origin is None:
        raise SystemExit("onnxruntime is not installed")
    onnxruntime = next(Path(package.origin).parent.glob("capi/libonnxruntime.so.*"))
    return {
        "bundle": str(args.bundle),
        "threads": args.threads,
        "repeats": args.repeats,
        "process": summary(processes(args, onnxruntime)),
        "edit": summary(edits(args, onnxruntime)),
    }


def table(found: dict[str, Any]) -> str:
    """In Markdown."""
    lines = ["| | C++ | Python | C++ / Python |", "| --- | ---: | ---: | ---: |"]
    titles = {"process": "the program", "edit": "an edit, warm"}
    units = {"cpu_s": "CPU, s", "wall_s": "clock, s", "peak_memory_mb": "peak memory, MB", "edit_wall_s": "its edit, s"}
    for part, title in titles.items():
        for key, values in found[part].items():
            cells = []
            for name in ("C++", "Python"):
                median, least, most = (f"{values[name][which]:.3g}" for which in ("median", "least", "most"))
                cells.append(f"{median} ({least} to {most})")
            lines.append(f"| {title}: {units[key]} | {' | '.join(cells)} | {values['ratio']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--bundle", type=Path, default=BUNDLE, metavar="DIR", help="of kind pose (the demo's)")
    parser.add_argument("--prefix", type=Path, default=PREFIX, metavar="DIR", help="what make cpp installed")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of both (%(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each (%(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    args = parser.parse_args()
    if not (args.prefix / "bin/cpp-edit").is_file():
        parser.error(f"--prefix {args.prefix}: no bin/cpp-edit there; make cpp builds it")
    found = measure(args)
    print(json.dumps(found, indent=1) if args.json else table(found))


if __name__ == "__main__":
    main()
