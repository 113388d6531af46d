"""Engines built from a bundle: where they lie, their record, and whether one may be loaded.

``BUNDLE/engines/<flavour>-<version>-<targets>/`` holds an engine for each graph and ``engines.json``, which says what
they were built from and for. An engine that differs in any of it from what is wanted is never loaded.
The format is described in docs/bundle.md.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from .errors import BackendError, BundleError
from .manifest import Count, FileRecord, Manifest, RelativePath, Text, _explain, _Strict, file_record
from .output_file import write_bytes

FOLDER = "engines"
FILE_NAME = "engines.json"

Flavour = Literal["tensorrt", "tensorrt-rtx"]
Target = Annotated[str, Field(pattern=r"^sm[0-9]{2,3}$")]
Extents = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)]


class Range(_Strict):
    """Shapes of an input that a profile takes, and the one that it is tuned for. For a shape tensor: values."""

    min: Extents
    opt: Extents
    max: Extents


class Profile(_Strict):
    """An optimization profile: a use of a graph."""

    name: Text
    inputs: dict[str, Range]


class Engine(_Strict):
    """An engine's file, the graph that it was built from, and its optimization profiles in their order."""

    file: RelativePath
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Count
    graph_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    profiles: Annotated[tuple[Profile, ...], Field(strict=False)]


class Engines(_Strict):
    """``engines.json``.

    Attributes:
        targets: architectures that the engines hold code for, as ``sm86``; empty: portable, for GPUs from Ampere (8.0)
            on (TensorRT-RTX only).
        precision: the bundle's ``precision.compute``.
    """

    format: Literal["ilat-engines"] = "ilat-engines"
    format_version: Literal[1] = 1
    flavour: Flavour
    version: Text
    targets: Annotated[tuple[Target, ...], Field(strict=False)]
    precision: Literal["float32", "float16"]
    engines: dict[str, Engine]


@dataclass(frozen=True)
class Wanted:
    """What an engine must have been built for to be loaded here: library, its version, and the GPU (``sm86``)."""

    flavour: Flavour
    version: str
    architecture: str


def folder_name(flavour: str, version: str, targets: tuple[str, ...]) -> str:
    """Of the engines in ``engines/``; for people, the record inside is what counts."""
    return "-".join((flavour, version, *(targets or ("portable",))))


def read(path: Path) -> Engines:
    """The record ``engines.json``. Raises BundleError naming file and key."""
    try:
        text = path.read_text("utf-8")
        plain = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path}: cannot be read: {error}") from None
    if not isinstance(plain, dict) or plain.get("format") != "ilat-engines":
        raise BundleError(f'{path}: format: not a record of engines, expected "format": "ilat-engines"')
    try:
        return Engines.model_validate_json(text)
    except ValidationError as error:
        raise BundleError(f"{path}: {_explain(error)}") from None


def write(folder: Path, engines: Engines) -> Path:
    """Writes the record into the folder of its engines. Raises OutputError."""
    path = folder / FILE_NAME
    write_bytes(path, (json.dumps(engines.model_dump(mode="json"), indent=1) + "\n").encode())
    return path


def rebuild_command(bundle: Path, wanted: Wanted) -> str:
    """What builds engines that are wanted."""
    target = f" --compute-capability {wanted.architecture.removeprefix('sm')}" if wanted.flavour != "tensorrt" else ""
    name = shlex.quote(str(bundle))
    return f"ilat-export {name} --engine {wanted.flavour}{target} --out {name} --force"


def difference(engines: Engines, manifest: Manifest, wanted: Wanted) -> str | None:
    """Which part of the engines' key differs from what is wanted, for people; None when none does."""
    if engines.flavour != wanted.flavour:
        return f"built with {engines.flavour}, wanted is {wanted.flavour}"
    if engines.version != wanted.version:
        return f"built with {engines.flavour} {engines.version}, installed is {wanted.version}"
    number = int(wanted.architecture.removeprefix("sm"))
    if engines.targets and wanted.architecture not in engines.targets:
        return f"built for {', '.join(engines.targets)}, this GPU is {wanted.architecture}"
    if not engines.targets and (engines.flavour != "tensorrt-rtx" or number < 80):
        return f"built for GPUs from sm80 on, this GPU is {wanted.architecture}"
    if engines.precision != manifest.precision.compute:
        return f"built in {engines.precision}, the bundle computes in {manifest.precision.compute}"
    graphs = manifest.graphs.by_name
    for name, graph in graphs.items():
        engine = engines.engines.get(name)
        if engine is None:
            return f"there is no engine of the graph {name}"
        if engine.graph_sha256 != manifest.files[graph.file].sha256:
            return f"the engine of {name} was built from another {graph.file}"
        for profile in engine.profiles:
            if set(profile.inputs) != set(graph.inputs):
                return f"the shapes of {name}'s engine are those of other inputs"
    return None


def find(bundle: Path, manifest: Manifest, wanted: Wanted) -> tuple[Path, Engines]:
    """The folder and record of engines of this bundle that may be loaded here; their files are checked.

    Raises:
        BackendError: there are none, or all differ in a part of their key: it names the part and the command that
            builds what is wanted; or the bundle is of a precision that no engine is built from.
        BundleError: a record or an engine is damaged.
    """
    if manifest.precision.weights in ("int8", "int4"):
        raise BackendError(
            f"backend: {wanted.flavour}: {bundle}: precision.weights: {manifest.precision.weights} is for ONNX Runtime "
            "on CPUs (--backend onnxruntime); engines are built from float32 or from what `ilat-export --fp16` wrote"
        )
    build = f"build them with `{rebuild_command(bundle, wanted)}`"
    found = sorted((bundle / FOLDER).glob(f"*/{FILE_NAME}"))
    differences = []
    for path in found:
        engines = read(path)
        if engines.flavour != wanted.flavour:
            continue
        reason = difference(engines, manifest, wanted)
        if reason is None:
            for engine in engines.engines.values():
                check_file(path.parent, engine, build)
            return path.parent, engines
        differences.append(f"{path.parent}: {reason}")
    if differences:
        raise BackendError(f"backend: {wanted.flavour}: {'; '.join(differences)}; {build}")
    raise BackendError(f"backend: {wanted.flavour}: {bundle} holds no engines of it; {build}")


def check_file(folder: Path, engine: Engine, hint: str) -> None:
    """Raises BundleError when an engine is missing, truncated or changed."""
    path = folder / engine.file
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"{path}: a link that leaves the folder of its engines")
    try:
        found = file_record(path)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}; {hint}") from None
    if found.bytes != engine.bytes:
        raise BundleError(f"{path}: has {found.bytes} bytes, expected {engine.bytes}; {hint}")
    if found != FileRecord(sha256=engine.sha256, bytes=engine.bytes):
        raise BundleError(f"{path}: its contents have changed, the sha256 is another; {hint}")


def choose_profile(engine: Engine, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The first profile that takes inputs of these shapes; None when none does. Shape tensors are not looked at."""
    for index, profile in enumerate(engine.profiles):
        ranges = {name: profile.inputs[name] for name in shapes}
        if all(
            len(shape) == len(ranges[name].min)
            and all(
                low <= extent <= high
                for low, extent, high in zip(ranges[name].min, shape, ranges[name].max, strict=True)
            )
            for name, shape in shapes.items()
        ):
            return index
    return None
