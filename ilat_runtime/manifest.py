"""The bundle's manifest: everything a runtime needs to know about a model, strict and verified.

A bundle is a folder with ``manifest.json`` and the files it lists. An unknown key, a wrong type, numbers that
contradict each other, a missing or changed file and a path that leaves the folder are errors that name the file and the
key.
The format is described in docs/bundle.md.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NoReturn, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_serializer

from . import __version__
from .errors import BundleError, InputError
from .joints import JOINTS
from .output_file import write_bytes
from .segments import NUMBERINGS, Layout

FORMAT = "ilat-bundle"
FORMAT_VERSION = 1
FILE_NAME = "manifest.json"
IN_PLACE_OPSET = 24
_MAX_BYTES = 16 * 2**20


def _relative(path: str) -> str:
    """A path below the bundle's folder, with forward slashes on every system."""
    parts = PurePosixPath(path).parts
    plain = "/".join(parts) == path and all(
        character.isprintable() and character not in '\\:*?"<>|' for character in path
    )
    if not plain or not parts or path.startswith("/") or ".." in parts:
        raise ValueError("expected a path below the bundle's folder, with forward slashes and no '..'")
    return path


RelativePath = Annotated[str, AfterValidator(_relative)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
Identifier = Annotated[int, Field(ge=0, lt=2**31)]
Text = Annotated[str, Field(min_length=1)]
Dimension = Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
DataType = Literal["uint8", "bool", "int32", "int64", "float16", "float32"]
Block = Literal["source_pose", "condition", "pose", "target"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Tensor(_Strict):
    """A graph's input or output; a dimension is a number, or a name where it differs from call to call."""

    dtype: DataType
    shape: Annotated[tuple[Dimension, ...], Field(strict=False)]


class Graph(_Strict):
    """An ONNX graph of the bundle."""

    file: RelativePath
    opset: Count
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    @property
    def in_place(self) -> bool:
        """Whether ``past_*`` and ``present_*`` are to be the same memory; older graphs write the cache anew."""
        return self.opset >= IN_PLACE_OPSET


class Graphs(_Strict):
    """The three graphs of every bundle, and ``sketch``, which draws one from an image, for kind ``sketch`` only."""

    encoder: Graph
    transformer: Graph
    decoder: Graph
    sketch: Graph | None = None

    @property
    def by_name(self) -> dict[str, Graph]:
        """The graphs that there are."""
        graphs = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: graph for name, graph in graphs.items() if graph is not None}

    @model_serializer
    def _present(self) -> dict[str, Graph]:
        return self.by_name


class FileRecord(_Strict):
    """What a file of the bundle is to be."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


class Vocabulary(_Strict):
    """The joint vocabulary: condition token c has id c, target token t has id target_offset + t."""

    target_offset: Identifier
    start_condition: Identifier
    start_target: Identifier
    pose: Identifier


class CropRule(_Strict):
    """Facts of the crop and skeleton mask that the model was trained with, as multiples of the poses' bounding box."""

    margin: Annotated[float, Field(ge=1, le=100)]
    dilation: Annotated[float, Field(gt=0, le=1)]


class Precision(_Strict):
    """Of the arithmetic, and of the weights as they are stored (int8 and int4: those of the transformer's products)."""

    compute: Literal["float32", "float16"]
    weights: Literal["float32", "float16", "int8", "int4"]


class Licence(_Strict):
    """Of the weights, and of the data that they were trained on."""

    weights: Text
    data: Text


class Manifest(_Strict):
    """``manifest.json``. The grid is ``image_size / factor`` tokens wide and high."""

    format: Literal["ilat-bundle"] = "ilat-bundle"
    format_version: Literal[1] = 1
    name: Text
    kind: Literal["pose", "sketch", "none"]
    created_with: Text
    image_size: Count
    factor: Count
    codebook_size: Count
    condition_vocabulary: Identifier
    latent_channels: Count
    joints: Annotated[tuple[Text, ...], Field(strict=False)] | None
    numbering: Text
    layout: Annotated[tuple[Block, ...], Field(strict=False)]
    cache_capacity: Count
    layers: Annotated[int, Field(ge=1, le=1000)]
    heads: Count
    head_size: Count
    vocabulary: Vocabulary
    crop: CropRule | None
    precision: Precision
    leak_free: bool
    graphs: Graphs
    files: dict[RelativePath, FileRecord]
    verification: dict[str, JsonValue]
    licence: Licence
    provenance: dict[str, JsonValue]

    @property
    def grid(self) -> int:
        """Tokens along each side of the image."""
        return self.image_size // self.factor

    @property
    def image_tokens(self) -> int:
        """Tokens of an image."""
        return self.grid * self.grid

    @property
    def sequence(self) -> Layout:
        """The blocks of the transformer's sequence."""
        return Layout(self.image_tokens, len(self.joints or ()), self.layout)


def signatures(manifest: Manifest) -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """What a bundle's graphs take and give: (inputs, outputs) by graph. Dimensions that have a name may have any."""
    side, tokens, slots = manifest.grid, manifest.image_tokens, manifest.cache_capacity

    def tensor(dtype: DataType, *shape: int | str) -> Tensor:
        return Tensor(dtype=dtype, shape=shape)

    image, latent = tensor("uint8", "B", "h", "w", 3), tensor("float32", "B", manifest.latent_channels, side, side)
    image_tokens, token_mask = tensor("int64", "B", tokens), tensor("bool", "B", tokens)
    edit_mask = tensor("uint8", "B", "h", "w")
    encoder_inputs = {"image": image, "mask": edit_mask}
    if manifest.kind == "pose":
        encoder_inputs |= {"poses": tensor("float32", "B", "P", len(JOINTS), 3), "radius": tensor("float32", "B")}
    encoder_outputs = {"latent": latent, "tokens": image_tokens, "token_mask": token_mask, "edit_mask": edit_mask}
    sketch = tensor("uint8", "B", "h", "w")
    if manifest.kind == "sketch":
        encoder_inputs["sketch"] = sketch
        encoder_outputs["condition"] = image_tokens

    row = tensor("int64", "B", "q")
    transformer_inputs = {
        "tokens": row,
        "positions": row,
        "query_segment": tensor("int32", "B", "q"),
        "slot_segment": tensor("int32", "B", slots),
        "write_index": tensor("int64", "B"),
        "top_k": tensor("int64", 1),
        "temperature": tensor("float32", "B"),
        "uniform": tensor("float32", "B", "u", "v"),
    }
    if "pose" in manifest.layout or "source_pose" in manifest.layout:
        transformer_inputs["landmarks"] = tensor("float32", "B", "q", 3)
    transformer_outputs = {"next_token": row, "log_probability": tensor("float32", "B", "q")}
    cache = tensor(manifest.precision.compute, "B", manifest.heads, slots, manifest.head_size)
    for layer in range(manifest.layers):
        for part in ("key", "value"):
            transformer_inputs[f"past_{part}_{layer}"] = cache
            transformer_outputs[f"present_{part}_{layer}"] = cache

    decoder_inputs = {
        "latent": latent,
        "tokens": image_tokens,
        "token_mask": token_mask,
        "image": image,
        "edit_mask": edit_mask,
        "blend": tensor("bool", 1),
    }
    result = {
        "encoder": (encoder_inputs, encoder_outputs),
        "transformer": (transformer_inputs, transformer_outputs),
        # Not "image": a graph's output cannot have the name of an input.
        "decoder": (decoder_inputs, {"edited": image}),
    }
    return result | ({"sketch": ({"image": image}, {"sketch": sketch})} if manifest.kind == "sketch" else {})


def difference(expected: dict[str, Tensor], found: dict[str, Tensor]) -> tuple[str, str] | None:
    """The first tensor that differs, as (its name, what is wrong); None when there is none."""
    for name in expected:
        if name not in found:
            return name, "is missing"
    for name, tensor in found.items():
        if name not in expected:
            return name, "is not an input or output that this runtime knows"
        wanted = expected[name]
        same = len(tensor.shape) == len(wanted.shape) and all(
            a == b or (isinstance(a, str) and isinstance(b, str))
            for a, b in zip(tensor.shape, wanted.shape, strict=True)
        )
        if tensor.dtype != wanted.dtype or not same:
            return name, f"is {tensor.dtype} {list(tensor.shape)}, expected {wanted.dtype} {list(wanted.shape)}"
    return None


def check(manifest: Manifest, where: str = FILE_NAME) -> None:
    """Raise a BundleError that names the first key whose value contradicts the others."""

    def require(holds: bool, key: str, expectation: str) -> None:
        if not holds:
            raise BundleError(f"{where}: {key}: {expectation}")

    require(
        manifest.image_size % manifest.factor == 0,
        "factor",
        f"{manifest.factor} does not divide image_size {manifest.image_size}",
    )
    posed = manifest.kind == "pose"
    # What a model is conditioned on: a photograph and a pose, a sketch, or nothing but what is not masked.
    needed = {"pose": {"condition", "pose", "target"}, "sketch": {"condition", "target"}, "none": {"target"}}[
        manifest.kind
    ]
    require(
        set(manifest.layout) - ({"source_pose"} if posed else set()) == needed,
        "layout",
        f"{list(manifest.layout)}, expected the blocks {sorted(needed)} for kind {manifest.kind!r}",
    )
    if posed:
        require(manifest.joints == JOINTS, "joints", f"expected {list(JOINTS)} for kind 'pose'")
        require(manifest.crop is not None, "crop", "kind 'pose' needs margin and dilation")
    else:
        require(manifest.joints is None, "joints", f"expected null for kind {manifest.kind!r}")
    known = sorted(name for name in NUMBERINGS if name != "bidirectional")
    require(manifest.numbering in known, "numbering", f"{manifest.numbering!r}, expected one of {known}")
    try:
        length = manifest.sequence.length
    except InputError as error:
        raise BundleError(f"{where}: {error}") from None
    require(
        manifest.cache_capacity >= length,
        "cache_capacity",
        f"{manifest.cache_capacity} is too small for the layout's {length} tokens",
    )
    _check_vocabulary(manifest, require)
    sketched = manifest.kind == "sketch"
    require(
        (manifest.graphs.sketch is not None) == sketched,
        "graphs.sketch",
        f"is {'missing' if sketched else 'not a graph'} for kind {manifest.kind!r}",
    )
    for name, (inputs, outputs) in signatures(manifest).items():
        graph: Graph = getattr(manifest.graphs, name)
        require(graph.file in manifest.files, f"graphs.{name}.file", f"{graph.file!r} is not listed under 'files'")
        for part, expected, found in (("inputs", inputs, graph.inputs), ("outputs", outputs, graph.outputs)):
            problem = difference(expected, found)
            if problem:
                raise BundleError(f"{where}: graphs.{name}.{part}.{problem[0]}: {problem[1]}")
    require(FILE_NAME not in manifest.files, "files", f"{FILE_NAME!r} cannot list itself")


def _check_vocabulary(manifest: Manifest, require: Any) -> None:
    words = manifest.vocabulary
    end = max(words.target_offset + manifest.codebook_size, manifest.condition_vocabulary)
    # An offset of 0 is a vocabulary that condition and target share.
    require(
        words.target_offset in (0, manifest.condition_vocabulary),
        "vocabulary.target_offset",
        f"{words.target_offset}, expected condition_vocabulary {manifest.condition_vocabulary}, or 0 if it is shared",
    )
    special = {"start_condition": words.start_condition, "start_target": words.start_target, "pose": words.pose}
    for key, value in special.items():
        require(value >= end, f"vocabulary.{key}", f"{value} is the id of an image token, expected at least {end}")
        require(list(special.values()).count(value) == 1, f"vocabulary.{key}", f"{value} is used twice")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _explain(error: ValidationError) -> str:
    """The first problem as 'dotted.key: what was expected'."""
    problems = error.errors(include_url=False)
    first = problems[0]
    # Pydantic appends the branch of a union, or "[key]" for a dictionary's key: of no use to a reader.
    place = [str(part) for part in first["loc"] if str(part) != "[key]" and not str(part).startswith("constrained-")]
    key = ".".join(place) or "(top level)"
    if first["type"] == "extra_forbidden":
        message = "unknown key"
        near = difflib.get_close_matches(place[-1], _known_keys(place[:-1]), 1)
        message += f", did you mean {near[0]!r}?" if near else ""
    elif first["type"] == "missing":
        message = "this key is missing"
    else:
        shown = repr(first["input"])
        message = f"{first['msg']}, found {shown if len(shown) <= 60 else shown[:57] + '...'}"
    return f"{key}: {message}" + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")


def _known_keys(place: list[str]) -> list[str]:
    model: Any = Manifest
    for part in place:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            continue  # a name in a dictionary of models
        kind = field.annotation
        # Of an optional part, the part.
        model = next((part for part in (kind, *get_args(kind)) if hasattr(part, "model_fields")), None)
    return list(getattr(model, "model_fields", {}))


def parse_manifest(text: bytes | str, where: str = FILE_NAME) -> Manifest:
    """The manifest in ``text``, checked in itself; ``where`` names the file in errors.

    Raises:
        BundleError: it is not JSON, not a bundle's manifest, of a newer version, or a key is wrong.
    """
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        plain = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise BundleError(f"{where}: not valid JSON: not UTF-8 text") from None
    except RecursionError:
        raise BundleError(f"{where}: not a manifest: nested too deeply") from None
    except ValueError as error:
        raise BundleError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise BundleError(f'{where}: format: not a bundle\'s manifest, expected "format": "{FORMAT}"')
    if "format_version" not in plain:
        raise BundleError(f"{where}: format_version: this key is missing")
    version = plain["format_version"]
    if isinstance(version, int) and not isinstance(version, bool) and version > FORMAT_VERSION:
        raise BundleError(
            f"{where}: format_version: the bundle has version {version}, this runtime (ilat {__version__}) reads "
            f"version {FORMAT_VERSION}; update ilat"
        )
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        raise BundleError(f"{where}: {_explain(error)}") from None
    check(manifest, where)
    return manifest


def load_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Read and check ``manifest.json`` of a bundle; :func:`verify_files` checks the files it lists.

    Raises:
        BundleError: the folder or the file is missing, or as :func:`parse_manifest`.
    """
    folder = Path(folder)
    path = folder / FILE_NAME
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such bundle, expected a folder with {FILE_NAME}")
    if not path.is_file():
        raise BundleError(f"{path}: missing, a bundle is a folder with {FILE_NAME}")
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from None
    if len(text) > _MAX_BYTES:
        raise BundleError(f"{path}: larger than {_MAX_BYTES >> 20} MB, not a manifest")
    return parse_manifest(text, str(path))


def file_record(path: str | os.PathLike[str]) -> FileRecord:
    """Size and sha256 of a file. Raises OSError when it cannot be read."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return FileRecord(sha256=digest.hexdigest(), bytes=size)


def verify_files(folder: str | os.PathLike[str], manifest: Manifest) -> None:
    """Check that every file of the manifest is there, inside the folder, and unchanged.

    Raises:
        BundleError: naming the file and the key of the manifest that it contradicts.
    """
    root = Path(folder).resolve()
    for name, record in manifest.files.items():
        path = Path(folder) / name
        key = f'{FILE_NAME}: files["{name}"]'
        if not path.resolve().is_relative_to(root):
            raise BundleError(f"{path}: a link that leaves the bundle's folder ({key})")
        if not path.is_file():
            raise BundleError(f"{path}: missing ({key})")
        try:
            size = path.stat().st_size
            if size != record.bytes:
                raise BundleError(f"{path}: has {size} bytes, expected {record.bytes} ({key}.bytes)")
            found = file_record(path)
        except OSError as error:
            raise BundleError(f"{path}: cannot be read: {error.strerror} ({key})") from None
        if found.sha256 != record.sha256:
            raise BundleError(f"{path}: its contents have changed, the sha256 is another ({key}.sha256)")


def write_manifest(folder: str | os.PathLike[str], manifest: Manifest) -> Path:
    """Write ``manifest.json`` into a bundle whose files are in place, atomically; returns its path.

    Raises:
        BundleError: the manifest contradicts itself or the files.
        OutputError: it cannot be written.
    """
    path = Path(folder) / FILE_NAME
    check(manifest, str(path))
    verify_files(folder, manifest)
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(path, text.encode())
    return path
