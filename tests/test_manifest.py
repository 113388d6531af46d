from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ilat_runtime.errors import BundleError
from ilat_runtime.joints import JOINTS
from ilat_runtime.manifest import (
    FORMAT_VERSION,
    Manifest,
    Precision,
    file_record,
    load_manifest,
    parse_manifest,
    signatures,
    verify_files,
    write_manifest,
)

GRAPHS = ("encoder", "transformer", "decoder")


def plain(kind: str = "pose") -> dict[str, Any]:
    """A manifest that is in order, as JSON holds it."""
    posed = kind == "pose"
    layout = {"pose": ["condition", "pose", "target"], "sketch": ["condition", "target"], "none": ["target"]}[kind]
    values: dict[str, Any] = {
        "format": "ilat-bundle",
        "format_version": 1,
        "name": "tiny",
        "kind": kind,
        "created_with": "ilat 0.1.0",
        "image_size": 64,
        "factor": 16,
        "codebook_size": 32,
        "condition_vocabulary": 0 if kind == "none" else 32,
        "latent_channels": 8,
        "joints": list(JOINTS) if posed else None,
        "numbering": "local",
        "layout": layout,
        "cache_capacity": 64,
        "layers": 2,
        "heads": 2,
        "head_size": 4,
        "vocabulary": {
            "target_offset": 0 if kind == "none" else 32,
            "start_condition": 64,
            "start_target": 65,
            "pose": 66,
        },
        "crop": {"margin": 1.3, "dilation": 0.09} if posed else None,
        "precision": {"compute": "float32", "weights": "float16"},
        "leak_free": True,
        "graphs": {},
        "files": {},
        "verification": {"latent": {"largest_error": 1e-6}},
        "licence": {"weights": "Apache-2.0", "data": "BSD-3-Clause"},
        "provenance": {"recipe": "tiny"},
    }
    parsed = {
        "layout": tuple(layout),
        "joints": JOINTS if posed else None,
        "precision": Precision(**values["precision"]),
    }
    example = Manifest.model_construct(**{**values, **parsed})
    for name, (inputs, outputs) in signatures(example).items():
        values["graphs"][name] = {
            "file": f"{name}.onnx",
            "opset": 24,
            "inputs": {key: tensor.model_dump(mode="json") for key, tensor in inputs.items()},
            "outputs": {key: tensor.model_dump(mode="json") for key, tensor in outputs.items()},
        }
        values["files"][f"{name}.onnx"] = {"sha256": "0" * 64, "bytes": 4}
    return values


def parse(values: dict[str, Any]) -> Manifest:
    return parse_manifest(json.dumps(values))


def put(values: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with the value at a dotted path replaced."""
    result = copy.deepcopy(values)
    *parents, last = path.split("/")
    place = result
    for part in parents:
        place = place[part]
    place[last] = value
    return result


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose graphs are four bytes each."""
    values = plain()
    for name in GRAPHS:
        (tmp_path / f"{name}.onnx").write_bytes(b"onnx")
        values["files"][f"{name}.onnx"] = file_record(tmp_path / f"{name}.onnx").model_dump()
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    return tmp_path


@pytest.mark.parametrize("kind", ["pose", "sketch", "none"])
def test_round_trip(kind: str) -> None:
    manifest = parse(plain(kind))
    assert manifest.model_dump(mode="json") == plain(kind)
    assert parse_manifest(manifest.model_dump_json()) == manifest
    assert (manifest.grid, manifest.image_tokens) == (4, 16)
    assert manifest.sequence.length == {"pose": 47, "sketch": 34, "none": 17}[kind]


def test_load_verify_and_write(bundle: Path) -> None:
    manifest = load_manifest(bundle)
    verify_files(bundle, manifest)
    (bundle / "manifest.json").unlink()
    assert write_manifest(bundle, manifest) == bundle / "manifest.json"
    assert load_manifest(bundle) == manifest
    assert sorted(os.listdir(bundle)) == ["decoder.onnx", "encoder.onnx", "manifest.json", "transformer.onnx"]


# --- keys, types, values ---


def places(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of the manifest, except inside what is free."""
    if isinstance(value, dict) and (not path or path[0] not in ("verification", "provenance")):
        for key in value:
            yield (*path, key)
            yield from places(value[key], (*path, key))


PLACES = list(places(plain()))
# Dictionaries whose keys are names; a missing name is found by its meaning, tested below.
NAMED = {("files",), *((("graphs", graph, part)) for graph in GRAPHS for part in ("inputs", "outputs"))}


def at(values: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        values = values[part]
    return values


@given(st.sampled_from([path for path in PLACES if path[:-1] not in NAMED and path != ("format",)]))
@settings(deadline=None)
def test_a_missing_key_is_named(path: tuple[str, ...]) -> None:
    values = plain()
    del at(values, path[:-1])[path[-1]]
    with pytest.raises(BundleError, match=r"manifest\.json: ") as caught:
        parse(values)
    assert ".".join(path) in str(caught.value)


@given(st.sampled_from([(), *PLACES]), st.text(min_size=1, max_size=12))
@settings(deadline=None)
def test_an_unknown_key_is_named(path: tuple[str, ...], key: str) -> None:
    values = plain()
    place = at(values, path)
    if not isinstance(place, dict) or key in place or path in {("verification",), ("provenance",)}:
        return
    place[key] = 1
    with pytest.raises(BundleError) as caught:
        parse(values)
    assert ".".join([*path, key]).split("\n")[0] in str(caught.value) or path in NAMED


WRONG = [None, True, -1, 0.5, 10**30, "", "text", "../x", [], [1], {}, {"a": 1}, float("nan")]


@given(st.sampled_from(PLACES), st.sampled_from(WRONG))
@settings(deadline=None, max_examples=400)
def test_any_other_value_is_an_error_that_names_a_key_or_still_makes_sense(path: tuple[str, ...], value: Any) -> None:
    values = put(plain(), "/".join(path), value) if "/" not in "".join(path) else plain()
    try:
        manifest = parse(values)
    except BundleError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert str(error).startswith("manifest.json: ")  # noqa: PT017
    else:
        assert manifest.model_dump(mode="json") == values


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
@settings(deadline=None)
def test_any_json_is_refused_politely(value: Any) -> None:
    with pytest.raises(BundleError, match="format: not a bundle's manifest"):
        parse_manifest(json.dumps(value))


@given(st.binary(max_size=60))
def test_any_bytes_are_refused_politely(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json: "):
        parse_manifest(data)


def test_suggestion_for_an_unknown_key() -> None:
    with pytest.raises(BundleError, match=r"manifest\.json: numbring: unknown key, did you mean 'numbering'"):
        parse(put(plain(), "numbring", "local"))
    with pytest.raises(BundleError, match=r"graphs\.encoder\.fil: unknown key, did you mean 'file'"):
        parse(put(plain(), "graphs/encoder/fil", "x"))
    with pytest.raises(BundleError, match=r"crop\.margins: unknown key, did you mean 'margin'"):
        parse(put(plain(), "crop/margins", 1))


def test_duplicate_keys_and_other_json() -> None:
    text = json.dumps(plain())
    with pytest.raises(BundleError, match="'name' occurs twice"):
        parse_manifest(text[:-1] + ', "name": "other"}')
    with pytest.raises(BundleError, match="NaN is not a JSON number"):
        parse_manifest(text.replace("0.09", "NaN"))
    with pytest.raises(BundleError, match="nested too deeply"):
        parse_manifest("[" * 200_000)
    with pytest.raises(BundleError, match="not valid JSON"):
        parse_manifest(text[:-10])


def test_newer_version() -> None:
    newer = put(plain(), "format_version", FORMAT_VERSION + 1)
    newer["something_new"] = {}
    with pytest.raises(BundleError, match=r"format_version: .* has version 2, .* reads version 1; update"):
        parse(newer)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("layers", 10**12, "layers: "),
        ("image_size", 2**31, "image_size: "),
        ("crop/margin", 1e9, "crop.margin: "),
        ("factor", 48, "factor: 48 does not divide image_size 64"),
        ("kind", "none", "layout: "),
        ("layout", ["condition", "target"], "layout: "),
        ("layout", ["condition", "pose", "target", "target"], "layout"),
        ("joints", list(JOINTS)[::-1], "joints: expected"),
        ("joints", None, "joints: expected"),
        ("crop", None, "crop: kind 'pose' needs"),
        ("numbering", "locale", "numbering: 'locale', expected one of"),
        ("numbering", "bidirectional", "numbering: "),
        ("cache_capacity", 46, "cache_capacity: 46 is too small for the layout's 47 tokens"),
        ("vocabulary/target_offset", 31, "vocabulary.target_offset: 31"),
        ("vocabulary/pose", 63, "vocabulary.pose: 63 is the id of an image token"),
        ("vocabulary/pose", 65, "vocabulary.start_target: 65 is used twice"),
        ("crop/margin", 0.5, "crop.margin: "),
        ("crop/dilation", 0, "crop.dilation: "),
        ("precision/compute", "float64", "precision.compute: "),
        ("latent_channels", 9, "graphs.encoder.outputs.latent: "),
        ("heads", 3, "graphs.transformer.inputs.past_key_0: "),
        ("layers", 3, "graphs.transformer.inputs.past_key_2: is missing"),
        ("layers", 1, "graphs.transformer.inputs.past_key_1: is not"),
        ("graphs/encoder/file", "other.onnx", "graphs.encoder.file: 'other.onnx' is not listed under 'files'"),
        ("graphs/decoder/inputs/blend/dtype", "uint8", "graphs.decoder.inputs.blend: is uint8 [1], expected bool [1]"),
        ("graphs/decoder/inputs/blend/shape", ["B"], "graphs.decoder.inputs.blend: is bool ['B'], expected bool [1]"),
        ("graphs/transformer/inputs/tokens/shape", ["B"], "graphs.transformer.inputs.tokens: "),
        ("graphs/transformer/inputs/tokens/shape", [1, "q"], "graphs.transformer.inputs.tokens: "),
        ("files/encoder.onnx/sha256", "abc", "files.encoder.onnx.sha256: "),
        ("format_version", 0, "format_version: "),
        ("format_version", "1", "format_version: "),
        ("format", "other", "format: not a bundle's manifest"),
    ],
)
def test_contradictions(path: str, value: Any, message: str) -> None:
    with pytest.raises(BundleError) as caught:
        parse(put(plain(), path, value))
    assert f"manifest.json: {message}" in str(caught.value)


def test_a_sketch_bundle_has_a_graph_more() -> None:
    """Breaks when the fourth graph or its tensors are optional for kind sketch, or allowed for another."""
    values = plain("sketch")
    encoder = parse(values).graphs.encoder
    assert encoder.inputs["sketch"].shape == ("B", "h", "w")
    assert encoder.outputs["condition"].shape == ("B", 16)
    for kind, message in (
        ("sketch", "graphs.sketch: is missing for kind 'sketch'"),
        ("none", "graphs.sketch: is not a"),
    ):
        wrong = plain(kind)
        if kind == "sketch":
            del wrong["graphs"]["sketch"]
        else:
            wrong["graphs"]["sketch"] = values["graphs"]["sketch"]
        with pytest.raises(BundleError, match=message):
            parse(wrong)
    del values["graphs"]["encoder"]["inputs"]["sketch"]
    with pytest.raises(BundleError, match=r"graphs\.encoder\.inputs\.sketch: is missing"):
        parse(values)


# --- paths ---

BAD_PATHS = [
    "../encoder.onnx", "a/../../b", "a/..", "/etc/passwd", "C:\\x", "C:/x", "a\\b", "", ".", "..", "./a", "a//b", "a/",
    "a\0b", "a\nb", "//x/y",
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD_PATHS)
def test_paths_that_leave_the_folder(bad: str) -> None:
    with pytest.raises(BundleError, match=r"graphs\.encoder\.file: .*expected a path below the bundle's folder"):
        parse(put(plain(), "graphs/encoder/file", bad))
    values = plain()
    values["files"][bad] = values["files"]["encoder.onnx"]
    with pytest.raises(BundleError, match="expected a path below the bundle's folder") as caught:
        parse(values)
    assert "manifest.json: files." in str(caught.value)


@given(st.lists(st.sampled_from(["..", ".", "", "a", "b c", "\\", "/", "C:", "~", "é"]), max_size=6).map("/".join))
def test_an_accepted_path_stays_below_the_folder(path: str) -> None:
    values = plain()
    values["files"][path] = values["files"]["encoder.onnx"]
    try:
        parse(values)
    except BundleError:
        return
    root = os.path.abspath("/bundle")
    assert os.path.normpath(os.path.join(root, path)).startswith(root + os.sep)


def test_link_out_of_the_bundle(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "encoder.onnx"
    outside.write_bytes(b"onnx")
    (bundle / "encoder.onnx").unlink()
    (bundle / "encoder.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match=r"encoder\.onnx: a link that leaves the bundle's folder"):
        verify_files(bundle, load_manifest(bundle))


def test_link_inside_the_bundle_and_to_the_bundle(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (bundle / "encoder.onnx").rename(bundle / "stored")
    (bundle / "encoder.onnx").symlink_to("stored")
    link = tmp_path_factory.mktemp("link") / "bundle"
    link.symlink_to(bundle)
    verify_files(link, load_manifest(link))


# --- files ---


def test_missing_file(bundle: Path) -> None:
    (bundle / "decoder.onnx").unlink()
    with pytest.raises(BundleError, match=r'decoder\.onnx: missing \(manifest\.json: files\["decoder\.onnx"\]\)'):
        verify_files(bundle, load_manifest(bundle))


def test_changed_byte(bundle: Path) -> None:
    (bundle / "decoder.onnx").write_bytes(b"onnX")
    with pytest.raises(BundleError, match=r"decoder\.onnx: its contents have changed.*sha256"):
        verify_files(bundle, load_manifest(bundle))


def test_other_length(bundle: Path) -> None:
    (bundle / "decoder.onnx").write_bytes(b"onn")
    with pytest.raises(BundleError, match=r"decoder\.onnx: has 3 bytes, expected 4.*\.bytes"):
        verify_files(bundle, load_manifest(bundle))


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle"):
        load_manifest(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"manifest\.json: missing"):
        load_manifest(tmp_path)


def test_a_manifest_that_contradicts_its_files_is_not_written(bundle: Path) -> None:
    manifest = load_manifest(bundle)
    before = (bundle / "manifest.json").read_bytes()
    (bundle / "encoder.onnx").write_bytes(b"more bytes")
    with pytest.raises(BundleError, match=r"encoder\.onnx"):
        write_manifest(bundle, manifest)
    with pytest.raises(BundleError, match="cache_capacity"):
        write_manifest(bundle, manifest.model_copy(update={"cache_capacity": 3}))
    assert (bundle / "manifest.json").read_bytes() == before
