"""What an installation promises: a runtime without PyTorch, and one line where an extra is missing."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import ilat_runtime
from ilat_runtime.cli.extras import run_with_extra

ROOT = Path(__file__).parent.parent
TRAINING_ONLY = ("torch", "lightning_fabric", "skimage", "onnx", "safetensors", "ilat_train", "ilat_export")


def run_without(packages: tuple[str, ...], code: str) -> subprocess.CompletedProcess[str]:
    """Runs ``code`` in a fresh interpreter where ``packages`` cannot be imported."""
    block = f"import sys\nfor name in {packages!r}: sys.modules[name] = None\n"
    return subprocess.run([sys.executable, "-c", block + code], cwd=ROOT, capture_output=True, text=True, check=False)


def test_runtime_needs_no_training_package() -> None:
    names = [module.name for module in pkgutil.walk_packages(ilat_runtime.__path__, "ilat_runtime.")]
    assert "ilat_runtime.segments" in names
    done = run_without(TRAINING_ONLY, "".join(f"import {name}\n" for name in names))
    assert done.returncode == 0, done.stderr


def test_missing_extra_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needy_command.py").write_text("def main():\n    import not_there_at_all.part\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert run_with_extra("needy_command", "ilat-train", "train") == 1
    assert capsys.readouterr().err == "ilat-train: not_there_at_all is not installed: pip install 'ilat[train]'\n"


def test_own_missing_module_is_not_blamed_on_an_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match="ilat_train"):
        run_with_extra("ilat_train.no_such_module", "ilat-train", "train")


def test_training_command_without_its_extra() -> None:
    """The help works without the extra; what needs it says so."""
    pytest.importorskip("torch", reason="needs the extra 'train'")
    start = "import sys; from ilat_train.__main__ import main; sys.argv = ['ilat-train', *{!r}]; sys.exit(main())"
    without = ("torch", "ai_edge_litert", "skimage", "lightning_fabric", "safetensors")
    done = run_without(without, start.format(["--help"]))
    assert done.returncode == 0, done.stderr
    assert "usage: ilat-train" in done.stdout
