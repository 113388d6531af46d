"""The documents say what the code does: the keys, tensors and commands that they name exist, and no other."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from ilat_runtime.joints import JOINTS
from ilat_runtime.manifest import Manifest, Precision, signatures

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BUNDLE = (ROOT / "docs/bundle.md").read_text(encoding="utf-8")


def first_cells(section: str) -> list[str]:
    """Names in backquotes in the first cells of the tables of docs/bundle.md under a heading, in order."""
    text = re.split(r"^#+ ", BUNDLE.partition(f"# {section}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    cells = re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def example(layers: int = 3, kind: str = "pose") -> Manifest:
    """A manifest good enough to ask for its graphs' signatures."""
    return Manifest.model_construct(
        kind=kind, image_size=64, factor=16, latent_channels=8, joints=JOINTS, layout=("condition", "pose", "target"),
        cache_capacity=64, layers=layers, heads=2, head_size=4,
        precision=Precision(compute="float32", weights="float32"),
    )  # fmt: skip


def test_every_key_of_the_manifest_is_documented() -> None:
    assert set(first_cells("manifest.json")) == set(Manifest.model_fields)


@pytest.mark.parametrize("graph", ["encoder", "transformer", "decoder", "sketch"])
def test_every_tensor_is_documented(graph: str) -> None:
    layers = 3
    tables: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    # One kind after the other: what only the later one has comes after what both have.
    for kind in ("pose", "sketch"):
        for table, tensors in zip(tables, signatures(example(layers, kind)).get(graph, ({}, {})), strict=True):
            table.update(tensors)
    inputs, outputs = tables
    # The cache is written as its first and last tensor.
    ends = {name.format(end) for name in ("past_key_{}", "present_key_{}") for end in (0,)} | {
        f"{time}_value_{layers - 1}" for time in ("past", "present")
    }
    known = [name for name in (*inputs, *outputs) if not name.startswith(("past_", "present_")) or name in ends]
    assert [name.replace("{L−1}", str(layers - 1)) for name in first_cells(graph)] == known


def shell_commands() -> list[list[str]]:
    """The commands of the documents' shell blocks that start one of our programs."""
    blocks = [
        block for path in DOCUMENTS for block in re.findall(r"```sh\n(.*?)```", path.read_text("utf-8"), re.DOTALL)
    ]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True)) and words[0].startswith("ilat-")]


PROGRAMS = {
    "ilat-edit": "ilat_runtime.cli.edit",
    "ilat-doctor": "ilat_runtime.cli.doctor",
    "ilat-train": "ilat_train.cli",
    "ilat-export": "ilat_export.cli",
    "ilat-bench": "ilat_runtime.cli.bench",
}


@pytest.mark.parametrize("words", shell_commands(), ids=" ".join)
def test_commands_are_understood(words: list[str]) -> None:
    """Each command names a program, a subcommand and flags that exist."""
    import_module(PROGRAMS[words[0]]).build_parser().parse_args(words[1:])


def test_readme_snippet_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(ROOT)
    scope: dict[str, Any] = {}
    exec(compile(snippet, "README.md", "exec"), scope)  # noqa: S102
    assert len(scope["frames"]) == len(scope["poses"].poses)
    assert all(frame.shape == scope["image"].shape for frame in scope["frames"])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text("utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
