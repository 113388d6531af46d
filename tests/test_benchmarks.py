"""The benchmarks of samples/ run, and compare like with like: here with tiny models, not for the times."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from exporting import models, sketch_tokenizer

FOLDER = Path(__file__).parent.parent / "samples" / "benchmarks"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("face_sampling", FOLDER / "face_sampling.py")
    assert spec is not None
    assert spec.loader is not None
    result = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "face_sampling", result)
    spec.loader.exec_module(result)
    return result


@pytest.mark.parametrize("limit", [None, 2])
def test_face_sampling(module: Any, sketch_bundle: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None) -> None:
    """Both ways give the same tokens; breaks when one of them works on other inputs or another mask."""
    tokenizer, transformer = models("sketch")
    monkeypatch.setattr(module, "models", lambda *_: (tokenizer, sketch_tokenizer(), transformer))
    monkeypatch.setattr(module, "bundle", lambda *_: sketch_bundle)
    args = argparse.Namespace(work=Path(), fixtures=Path(), threads=1, repeats=1, tokens=limit)
    found = json.loads(json.dumps(module.measure(args)))
    masked = found["masked_tokens"]
    assert 3 <= masked <= 7
    timed = limit or masked
    assert found["equal_tokens"] == {"sampling": f"{timed} of {timed}", "editor": f"{masked} of {masked}"}
    assert found["authors_way"]["whole_passes_timed"] == timed
    assert found["ratio_of_sampling"] > 0
