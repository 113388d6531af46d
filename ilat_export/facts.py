"""What a run's checkpoints say of themselves: the crop rule and where the weights come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilat_runtime.errors import InputError
from ilat_train.checkpoint import read_config
from ilat_train.config import DataConfig

DEFAULT_MARGIN, DEFAULT_DILATION = DataConfig().margin, 0.09
"""Of the recipes, where a checkpoint does not say what it was trained with."""


@dataclass(frozen=True)
class RunFacts:
    """Of a training run's folder.

    Attributes:
        margin, dilation: the crop rule, as in the manifest.
        provenance: for the manifest: recipe, steps, seed and clips, without the trainer's own paths.
        source: the data set's folder, where the checkpoint names one.
        assumed: keys that are missing, whose defaults were taken.
    """

    margin: float
    dilation: float
    provenance: dict[str, Any]
    source: Path | None
    assumed: tuple[str, ...]


def read_facts(tokenizer: Path, transformer: Path) -> RunFacts:
    """The facts of two checkpoint folders.

    Raises:
        InputError: a key has the wrong type; it is named. Missing keys get defaults.
    """
    image, sequence = _facts(tokenizer), _facts(transformer)
    parts = (("tokenizer", image), ("transformer", sequence))
    where = f"{transformer / 'config.json'}: facts"
    data = sequence.get("data", {})
    if not isinstance(data, dict):
        raise InputError(f"{where}.data: {data!r}, expected an object")
    assumed: list[str] = []

    def number(key: str, default: float, least: float) -> float:
        if data.get(key) is None:
            assumed.append(key)
            return default
        value = data[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= least:
            raise InputError(f"{where}.data.{key}: {value!r}, expected a number of at least {least:g}")
        return float(value)

    margin, dilation = number("margin", DEFAULT_MARGIN, 1), number("dilation", DEFAULT_DILATION, 1e-6)
    provenance: dict[str, Any] = {
        "recipe": sequence.get("recipe", image.get("recipe")),
        "tokenizer_steps": image.get("steps"),
        "transformer_steps": sequence.get("steps"),
        "seed": sequence.get("seed"),
    }
    imported = {part: facts["imported"] for part, facts in parts if "imported" in facts}
    if imported:
        provenance["imported"] = imported
    source = data.get("source")
    if source is not None and not isinstance(source, str):
        raise InputError(f"{where}.data.source: {source!r}, expected the path of a data set")
    if source or data.get("clips"):
        # The folder's name alone: where it lay on the trainer's machine is nobody's business.
        folder = {"folder": Path(source).name} if source else {}
        provenance["data"] = folder | ({"clips": data["clips"]} if data.get("clips") else {})
    known = {key: value for key, value in provenance.items() if value is not None}
    return RunFacts(margin, dilation, known, Path(source) if source else None, tuple(assumed))


def _facts(folder: Path) -> dict[str, Any]:
    facts = read_config(folder).get("facts", {})
    if not isinstance(facts, dict):
        raise InputError(f"{folder / 'config.json'}: facts: {facts!r}, expected an object")
    return facts
