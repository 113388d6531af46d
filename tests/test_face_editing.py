"""Bundles of kind ``sketch``: edits of faces that follow a line drawing (Sec. 3.3, A.3)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from editing import box_mask, changed_copy, photograph, standing
from exporting import graphs, models, reuse_graphs, sketch_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from ilat_export.bundle import Facts, export_bundle
from ilat_export.graphs import SketchEncoderGraph, SketchGraph
from ilat_runtime import Editor, read_image, read_sketch
from ilat_runtime.backends import Graph
from ilat_runtime.cli.edit import main
from ilat_runtime.crop import Crop
from ilat_runtime.errors import BundleError, InputError
from ilat_runtime.image_file import write_image
from ilat_runtime.manifest import Manifest, load_manifest
from ilat_train.models.transformer import batch_segments

Loaded = tuple[Manifest, dict[str, Graph]]
IMAGE = photograph(96, 96)
MASK = box_mask(30, 20, 40, 50, IMAGE)


@pytest.fixture(scope="module")
def editor(sketch_bundle: Path) -> Editor:
    return Editor(sketch_bundle, threads=1)


@pytest.fixture(scope="module")
def loaded(sketch_bundle: Path) -> Loaded:
    return graphs(sketch_bundle)


def drawing(seed: int = 0, height: int = 96, width: int = 96) -> np.ndarray:
    """uint8 HW: a few dark lines on white."""
    lines = np.full((height, width), 255, np.uint8)
    for start, end in np.random.default_rng(seed).integers(0, min(height, width), (8, 2, 2)).tolist():
        cv2.line(lines, start, end, 0, 3)
    return lines


# --- the graphs ---


def test_onnx_is_pytorch(loaded: Loaded) -> None:
    """Breaks when the exported encoder or XDoG differ from the modules, at a size that is not the model's."""
    manifest, graph = loaded
    tokenizer, _ = models("sketch")
    images = np.random.default_rng(0).integers(0, 256, (2, 45, 45, 3), np.uint8)
    images[0] = photograph(45, 45)
    masks = np.stack([box_mask(9, 12, 20, 15, images[0]), box_mask(0, 0, 45, 20, images[0])]).astype(np.uint8)
    lines = graph["sketch"].run({"image": images})["sketch"]
    with torch.inference_mode():
        drawn = SketchGraph(manifest.image_size)(torch.from_numpy(images)).numpy()
        encoder = SketchEncoderGraph(tokenizer, sketch_tokenizer())
        expected = encoder(*map(torch.from_numpy, (images, masks, lines)))
    assert lines.shape == (2, 45, 45)
    assert (np.abs(lines.astype(int) - drawn) <= 1).mean() > 0.999
    found = graph["encoder"].run({"image": images, "mask": masks, "sketch": lines})
    latent, tokens, token_mask, edit_mask, condition = (part.numpy() for part in expected)
    known = ~token_mask
    assert np.abs(found["latent"] - latent).reshape(2, -1, 16).transpose(0, 2, 1)[known].max() < 1e-4
    assert np.array_equal(found["tokens"][known], tokens[known])
    assert np.array_equal(found["token_mask"], token_mask)
    assert np.array_equal(found["edit_mask"], edit_mask)
    assert np.array_equal(found["condition"], condition)
    assert len(np.unique(condition)) > 1


def test_generated_tokens_are_those_of_one_whole_pass(editor: Editor) -> None:
    """Breaks when the sketch's tokens are not the condition that the transformer sees."""
    lines = drawing()
    result = editor.edit(IMAGE, mask=MASK, sketch=lines)
    tokenizer, transformer = models("sketch")
    with torch.inference_mode():
        encoder = SketchEncoderGraph(tokenizer, sketch_tokenizer())
        parts = encoder(*(torch.from_numpy(part[None]) for part in (IMAGE, MASK.astype(np.uint8), lines)))
        tokens, token_mask, condition = parts[1].clone(), parts[2], parts[4]
        tokens[token_mask] = torch.from_numpy(result.tokens)
        logits = transformer.target_logits(condition, None, tokens, batch_segments(transformer.config, token_mask))
    assert logits.argmax(-1)[token_mask].tolist() == result.tokens.tolist()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), box=st.tuples(*[st.integers(0, 60)] * 2, *[st.integers(1, 36)] * 2))
def test_no_leak(loaded: Loaded, editor: Editor, seed: int, box: tuple[int, int, int, int]) -> None:
    """Pixels under the mask change no known latent, bit for bit, and with a sketch of the user's no generated token."""
    mask = box_mask(*box, IMAGE)
    changed = IMAGE.copy()
    changed[mask] = np.random.default_rng(seed).integers(0, 256, (int(mask.sum()), 3), np.uint8)
    inputs = {"mask": mask.astype(np.uint8)[None], "sketch": drawing(seed)[None]}
    first, second = (loaded[1]["encoder"].run({"image": image[None], **inputs}) for image in (IMAGE, changed))
    known = ~first["token_mask"][0]
    latents = [found["latent"][0].reshape(-1, known.size)[:, known] for found in (first, second)]
    assert np.array_equal(*latents)
    assert np.array_equal(first["condition"], second["condition"])
    edits = [editor.edit(image, mask=mask, sketch=drawing(seed)) for image in (IMAGE, changed)]
    assert edits[0].tokens.tolist() == edits[1].tokens.tolist()
    assert edits[0].log_probability.tolist() == edits[1].log_probability.tolist()


# --- the editor ---


def test_without_a_sketch_it_is_drawn_from_the_image(editor: Editor) -> None:
    result = editor.edit(IMAGE, mask=MASK)
    lines = editor.sketch(IMAGE, MASK)
    assert result.sketch is not None
    assert np.array_equal(result.sketch, lines)
    again = editor.edit(IMAGE, mask=MASK, sketch=lines)
    assert np.array_equal(again.image, result.image)
    assert again.tokens.tolist() == result.tokens.tolist()


def test_the_sketch_matters(editor: Editor) -> None:
    found = {tuple(editor.edit(IMAGE, mask=MASK, sketch=drawing(seed)).log_probability) for seed in range(3)}
    assert len(found) == 3


def test_a_batch_is_what_each_gives_alone(editor: Editor) -> None:
    """Different sizes, masks and sketches, one drawn from its image and one with nothing masked."""
    images = [IMAGE, photograph(70, 120, 1), photograph(64, 64, 2), IMAGE]
    masks = [MASK, box_mask(5, 60, 30, 40, images[1]), box_mask(10, 10, 9, 40, images[2]), np.zeros_like(MASK)]
    sketches = [drawing(1), None, drawing(2, 64, 64), drawing(3)]
    together = editor.edit_batch(images, masks=masks, sketches=sketches)
    for image, mask, lines, result in zip(images, masks, sketches, together, strict=True):
        alone = editor.edit(image, mask=mask, sketch=lines)
        assert np.array_equal(alone.image, result.image)
        assert alone.tokens.tolist() == result.tokens.tolist()
        assert np.array_equal(alone.sketch, result.sketch)
    assert np.array_equal(together[3].image, IMAGE)


@pytest.mark.parametrize("lines", [None, drawing(4)], ids=["drawn", "given"])
def test_a_session_serves_several_masks(editor: Editor, lines: np.ndarray | None) -> None:
    """The sketch is encoded and prefilled once; breaks when an edit leaves something in the cache."""
    masks = [MASK, box_mask(0, 0, 96, 30, IMAGE), MASK]
    with editor.reference(IMAGE, sketch=lines) as session:
        for mask in masks:
            found = session.edit(mask=mask, top_k=5, seed=3)
            alone = editor.edit(IMAGE, mask=mask, sketch=lines, top_k=5, seed=3)
            assert found.tokens.tolist() == alone.tokens.tolist()
            assert np.array_equal(found.image, alone.image)


def test_the_sketch_of_a_session_is_a_copy(editor: Editor) -> None:
    lines = drawing(5)
    expected = editor.edit(IMAGE, mask=MASK, sketch=lines)
    with editor.reference(IMAGE, sketch=lines) as session:
        lines[:] = 0
        assert session.edit(mask=MASK).log_probability.tolist() == expected.log_probability.tolist()


def test_a_square_image_is_edited_as_a_whole(editor: Editor) -> None:
    """Portraits are what the models see. Breaks when the crop closes in on the mask, as for other kinds."""
    assert editor.crop_for(IMAGE, mask=box_mask(40, 40, 5, 5, IMAGE)) == Crop(0, 0, 96)
    wide = photograph(96, 200)
    assert editor.crop_for(wide, mask=box_mask(40, 150, 5, 5, wide)) == Crop(104, 0, 96)
    assert editor.crop_for(wide, mask=box_mask(40, 20, 5, 150, wide)).side == 150
    assert editor.crop_for(wide) == Crop(0, -52, 200)
    assert editor.crop_for(wide, mask=box_mask(40, 100, 40, 20, wide), margin=1.5).side == 60


def test_edits_are_blended_unless_asked_otherwise(editor: Editor) -> None:
    """A.3 is the rule for faces; breaks when the default is another or cannot be declined."""
    default, blended, exact = (editor.edit(IMAGE, mask=MASK, blend=blend).image for blend in (None, True, False))
    assert np.array_equal(default, blended)
    assert np.array_equal(exact[~MASK], IMAGE[~MASK])
    assert not np.array_equal(default[~MASK], IMAGE[~MASK])
    far = cv2.dilate(MASK.astype(np.uint8), np.ones((25, 25))) == 0
    assert np.array_equal(default[far], IMAGE[far])


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, r"mask: missing, the bundle .* needs a mask"),
    ({"mask": MASK, "pose": standing()}, r"pose: .*kind 'sketch'\) wants a mask and takes a sketch, it takes no pose"),
    ({"mask": MASK, "reference_pose": standing()}, r"reference_pose: .* it takes no reference pose"),
    (
        {"mask": MASK, "sketch": drawing()[:-1]},
        r"sketch: height and width \(95, 96\), expected \(96, 96\) as the image",
    ),
    ({"mask": MASK, "sketch": drawing() > 0}, r"sketch: bool \(96, 96\), expected uint8 HW"),
    ({"mask": MASK, "sketch": IMAGE}, r"sketch: uint8 \(96, 96, 3\), expected uint8 HW"),
    ({"mask": MASK, "sketch": "s.png"}, r"sketch: str, expected uint8 HW"),
    ({"mask": MASK[:-1]}, r"mask: height and width"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_arguments(editor: Editor, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        editor.edit(IMAGE, **arguments)


def test_wrong_arguments_of_batches_and_sessions(editor: Editor) -> None:
    with pytest.raises(InputError, match=r"sketches\[1\]: bool"):
        editor.edit_batch([IMAGE, IMAGE], masks=[MASK, MASK], sketches=[None, MASK])
    with pytest.raises(InputError, match=r"sketches: 1 given, expected 2"):
        editor.edit_batch([IMAGE, IMAGE], masks=[MASK, MASK], sketches=[drawing()])
    with pytest.raises(InputError, match=r"pose: .* it takes no pose"):
        editor.reference(IMAGE, standing())
    with pytest.raises(InputError, match=r"sketch: height and width"):
        editor.reference(IMAGE, sketch=drawing()[1:])
    with pytest.raises(InputError, match=r"mask: missing"), editor.reference(IMAGE) as session:
        session.edit()


@pytest.mark.parametrize("kind", ["pose", "none"])
def test_other_bundles_take_no_sketch(request: pytest.FixtureRequest, kind: str) -> None:
    """Breaks when a sketch is passed over in silence."""
    other = Editor(request.getfixturevalue({"pose": "pose_bundle", "none": "mask_bundle"}[kind]), threads=1)
    wanted = {"pose": "wants a target pose", "none": "wants only a mask"}[kind]
    pose = standing() if kind == "pose" else None
    with pytest.raises(InputError, match=rf"sketch: .*\(kind '{kind}'\) {wanted}, it takes no sketch"):
        other.edit(IMAGE, pose, MASK, sketch=drawing())
    with pytest.raises(InputError, match=rf"sketch: .* {wanted}, it takes no sketch"):
        other.reference(IMAGE, sketch=drawing())
    with pytest.raises(InputError, match=rf"sketch: .* {wanted}, it draws no sketch"):
        other.sketch(IMAGE)


# --- ilat-edit ---


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_image("face.png", IMAGE)
    write_image("mask.png", np.repeat(MASK[..., None] * np.uint8(255), 3, 2))
    write_image("lines.png", np.repeat(drawing()[..., None], 3, 2))
    write_image("small.png", photograph(10, 10))
    Path("pose.json").write_text(json.dumps({"format": "ilat-poses", "version": 1}))
    return tmp_path


@pytest.fixture
def edit(folder: Path, sketch_bundle: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*words: str, bundle: Path = sketch_bundle) -> tuple[int, str, str]:
        try:
            code = main(["face.png", "--bundle", str(bundle), "--threads", "1", *words])
        except SystemExit as error:
            code = int(error.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return run


def test_a_saved_sketch_gives_the_same_edit(edit: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = edit("--mask", "mask.png", "--out", "a.png", "--save-sketch", "s.png", "--compare", "sheet.png")
    assert code == 0
    assert "s.png: the sketch; draw on it and pass it as --sketch" in out
    assert "sheet.png: reference, sketch, mask and result" in out
    assert read_image("sheet.png").shape[1] > 3 * read_image("sheet.png").shape[0]
    assert edit("--mask", "mask.png", "--sketch", "s.png", "--out", "b.png")[0] == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    assert edit("--mask", "mask.png", "--sketch", "lines.png", "--out", "c.png", "--no-blend", "--json")[0] == 0
    assert np.array_equal(read_image("c.png")[~MASK], IMAGE[~MASK])
    assert read_sketch("s.png").shape == (96, 96)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--mask", "mask.png", "--pose", "no.json", "--out", "a.png"], 2, "a sketch, it takes no pose"),
        (["--mask", "mask.png", "--poses", "no.json", "--out", "a.mp4"], 2, "--poses: the bundle 'tiny-sketch'"),
        (["--out", "a.png"], 2, "--mask is missing: the bundle 'tiny-sketch' (kind 'sketch') wants a mask"),
        (["--mask", "mask.png", "--sketch", "small.png", "--out", "a.png"], 1, "small.png: the sketch is 10x10 pixels"),
        (["--mask", "mask.png", "--sketch", "no.png", "--out", "a.png"], 1, "no.png: no such file"),
        (["--mask", "mask.png", "--sketch", "pose.json", "--out", "a.png"], 1, "pose.json: "),
        (["--mask", "mask.png", "--out", "a.png", "--save-sketch", "a.png"], 2, "--save-sketch: a.png is also --out"),
        (["--mask", "mask.png", "--out", "a.png", "--save-sketch", "lines.png"], 1, "lines.png: exists already"),
    ],
)
def test_wrong_flags(edit: Callable[..., tuple[int, str, str]], words: list[str], code: int, message: str) -> None:
    found, out, err = edit(*words)
    assert (found, out) == (code, "")
    assert message in err.splitlines()[-1]
    assert not Path("a.png").exists()


def test_flags_of_another_kind(edit: Callable[..., tuple[int, str, str]], mask_bundle: Path) -> None:
    for flag in ("--sketch", "--save-sketch"):
        code, _, err = edit("--mask", "mask.png", flag, "new.png" if "save" in flag else "lines.png", "--out", "a.png",
                            bundle=mask_bundle)  # fmt: skip
        assert code == 2
        assert f"{flag}: the bundle 'tiny-none' (kind 'none') wants only a mask, it takes no sketch" in err
    assert not Path("a.png").exists()


# --- export ---


def test_export_wants_a_sketch_tokenizer_that_fits(tmp_path: Path) -> None:
    pair, facts, out = models("sketch"), Facts("mine"), tmp_path / "b"
    with pytest.raises(InputError, match="sketch tokenizer: missing, the transformer's condition is a sketch"):
        export_bundle(*pair, out, facts)
    with pytest.raises(InputError, match=r"sketch tokenizer: in_channels 3, expected 1"):
        export_bundle(*pair, out, facts, sketch_tokenizer=pair[0])
    other = sketch_tokenizer()
    other.config = other.config.model_copy(update={"codebook_size": 21})
    with pytest.raises(InputError, match=r"16 tokens of 21 values, but the transformer takes 16 of 20"):
        export_bundle(*pair, out, facts, sketch_tokenizer=other)
    with pytest.raises(InputError, match=r"a transformer of kind 'none' takes no sketch"):
        export_bundle(*models("none"), out, facts, sketch_tokenizer=other)
    assert not out.exists()


def test_an_export_is_verified_on_sketches(
    sketch_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when the new graph or the condition's tokens are left out of the comparison with PyTorch."""
    from ilat_export.verify import VerificationError

    reuse_graphs(monkeypatch, sketch_bundle)
    found = export_bundle(*models("sketch"), tmp_path / "a", Facts("mine"), sketch_tokenizer=sketch_tokenizer())
    assert found.condition_tokens == found.sketch_pixels == 1
    record = load_manifest(tmp_path / "a").verification
    assert record["condition_tokens"] == 1
    assert record["sketch_pixels"] == 1
    wrong = sketch_tokenizer()
    with torch.no_grad():
        wrong.quantizer.codebook.copy_(wrong.quantizer.codebook.flip(0))
    with pytest.raises(VerificationError, match="share of equal condition tokens"):
        export_bundle(*models("sketch"), tmp_path / "b", Facts("mine"), sketch_tokenizer=wrong)
    monkeypatch.setattr("ilat_train.models.xdog.THRESHOLD", 3.0)
    with pytest.raises(VerificationError, match="sketch: share of equal pixels"):
        export_bundle(*models("sketch"), tmp_path / "c", Facts("mine"), sketch_tokenizer=sketch_tokenizer())


def test_a_changed_sketch_graph_is_noticed(sketch_bundle: Path, tmp_path: Path) -> None:
    copy = changed_copy(sketch_bundle, tmp_path / "copy", lambda manifest: None)
    (copy / "sketch.onnx").unlink()
    with pytest.raises(BundleError, match=r"sketch\.onnx: missing"):
        Editor(copy)
