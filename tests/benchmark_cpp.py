"""benchmark_cpp.py [--runs N]: one edit of the demo bundle by cpp-edit and by ilat-edit, in turn: time and peak memory.

Both are whole processes with one thread on the same library of ONNX Runtime. The least of the runs counts: on a shared
machine the others measure the neighbours. Needs ``make cpp``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import cv2
import onnxruntime

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "samples/pose-demo"


def measure(command: list[str], environment: dict[str, str], out: Path) -> tuple[float, float, float, dict[str, float]]:
    """Seconds on the clock, seconds of the processor, peak memory in MB, and the edit's own timings in ms."""
    started = time.perf_counter()
    output = os.open(out, os.O_CREAT | os.O_RDWR | os.O_TRUNC)
    actions = [(os.POSIX_SPAWN_DUP2, output, 1)]
    process = os.posix_spawn(command[0], command, environment, file_actions=actions)
    _, status, usage = os.wait4(process, 0)
    os.close(output)
    if status:
        raise SystemExit(f"{' '.join(command)}: failed")
    seconds = time.perf_counter() - started
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000, json.loads(out.read_text())["timings_ms"]


def main() -> None:
    """Prints a table and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    library = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ILAT_ONNXRUNTIME": str(library)}
    programs = {
        "C++": [str(ROOT / "build/prefix/bin/cpp-edit")],
        "Python": [sys.executable, "-m", "ilat_runtime.cli.edit"],
    }
    rows: dict[str, list[tuple[float, float, float, dict[str, float]]]] = {name: [] for name in programs}
    with tempfile.TemporaryDirectory() as folder:
        photograph = Path(folder) / "reference.png"
        cv2.imwrite(str(photograph), cv2.imread(str(SAMPLE / "reference.jpg")))
        arguments = [str(photograph), "--bundle", str(ROOT / "samples/bundles/pose-demo"), "--threads", "1"]
        arguments += ["--pose", str(SAMPLE / "target.json"), "--out", f"{folder}/out.png", "--force", "--json"]
        for _ in range(runs):
            for name, program in programs.items():
                rows[name].append(measure([*program, *arguments], environment, Path(folder) / "json"))
    best = {}
    print(f"least of {runs} runs, one thread\n")
    print("| | process, s | of the processor, s | peak memory, MB | edit, ms | decode, ms |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, measured in rows.items():
        values = [min(row[i] for row in measured) for i in range(3)]
        values += [min(row[3][key] for row in measured) for key in ("total", "decode")]
        best[name] = values
        print(f"| {name} | " + " | ".join(f"{v:.2f}" if v < 100 else f"{v:.0f}" for v in values) + " |")
    ratios = [ours / theirs for ours, theirs in zip(best["C++"], best["Python"], strict=True)]
    print("| C++ / Python | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")


if __name__ == "__main__":
    main()
