"""The benchmarks of samples/ run, and compare like with like: here with tiny models, not for the times."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from exporting import models, sketch_tokenizer

from ilat_runtime.manifest import load_manifest

FOLDER = Path(__file__).parent.parent / "samples" / "benchmarks"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    result = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, result)
    spec.loader.exec_module(result)
    return result


@pytest.mark.parametrize("limit", [None, 2])
def test_face_sampling(sketch_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None) -> None:
    """Both ways give the same tokens; breaks when one of them works on other inputs or another mask."""
    module = load("face_sampling", monkeypatch)
    tokenizer, transformer = models("sketch")
    monkeypatch.setattr(module, "models", lambda *_: (tokenizer, sketch_tokenizer(), transformer))
    folder = Path(shutil.copytree(sketch_bundle, tmp_path / "bundle"))  # the one of 8 bits is written beside it
    monkeypatch.setattr(module, "bundle", lambda *_: folder)
    args = argparse.Namespace(work=Path(), fixtures=Path(), threads=1, repeats=1, tokens=limit)
    found = json.loads(json.dumps(module.measure(args)))
    masked = found["masked_tokens"]
    assert 3 <= masked <= 7
    timed = limit or masked
    assert found["equal_tokens"] == {"sampling": f"{timed} of {timed}", "editor": f"{masked} of {masked}"}
    assert found["authors_way"]["whole_passes_timed"] == timed
    assert list(found["bundles"]) == ["float32", "int8"]
    for timing in found["bundles"].values():
        assert timing["ratio_of_sampling"] > 0


def test_precisions(pose_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when a column is left out, or when what was converted is not what is measured."""
    module = load("precisions", monkeypatch)
    monkeypatch.setattr(module, "engines", lambda *_: None)  # tests/test_engines.py builds them
    args = argparse.Namespace(
        bundle=pose_bundle, recipe=None, work=tmp_path, data=None, edits=1, rounds=1, compute_capability=[86]
    )
    found = json.loads(json.dumps(module.measure(args)))
    rows = found["precisions"]
    assert list(rows) == ["float32", "fp16", "int8", "int4"]
    assert rows["float32"]["bytes"] == sum(file.stat().st_size for file in pose_bundle.iterdir())
    for name in ("fp16", "int8", "int4"):
        assert load_manifest(tmp_path / name).precision.weights == name.replace("fp", "float")
        assert 0 <= rows[name]["decoded_tokens"] <= 1
        assert rows[name]["masked_tokens"] > 0
    assert {name for name, row in rows.items() if row.get("step", {}).get("ms", 0) > 0} == {"float32", "int8", "int4"}
    lines = module.tables(found).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| float32", "| `--fp16`", "| `--int8`", "| `--int4`"]
    assert len({line.count("|") for line in lines}) == 1
