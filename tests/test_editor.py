from __future__ import annotations

import dataclasses
import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from editing import HEIGHT, WIDTH, box_mask, changed_copy, photograph, standing, with_graph

import ilat_runtime
from ilat_runtime import backends
from ilat_runtime.backends import choose
from ilat_runtime.crop import Crop
from ilat_runtime.decoding import Decoder, Sampling, Target
from ilat_runtime.editor import MAX_CROP, NO_REFERENCE_POSE, NOTHING_MASKED, POSE_OUTSIDE, Editor, Result
from ilat_runtime.errors import BackendError, BundleError, Cancelled, IlatError, InputError
from ilat_runtime.segments import UNFILLED, decode_plan

IMAGE, POSE, OTHER = photograph(), standing(), standing(lean=0.4)
SAMPLED = {"top_k": 8, "temperature": 1.5, "seed": 3}


@pytest.fixture(scope="module")
def editor(pose_bundle: Path) -> Editor:
    return Editor(pose_bundle, threads=1)


@pytest.fixture(scope="module")
def painter(mask_bundle: Path) -> Editor:
    return Editor(mask_bundle, threads=1)


def same(a: Result, b: Result) -> bool:
    return (
        (a.image == b.image).all()
        and a.tokens.tolist() == b.tokens.tolist()
        and (a.mask == b.mask).all()
        and np.allclose(a.log_probability, b.log_probability, atol=1e-4)
    )


# --- what an edit gives ---


def test_result(editor: Editor) -> None:
    before = IMAGE.copy()
    result = editor.edit(IMAGE, POSE, reference_pose=OTHER)
    grid = editor.manifest.grid
    assert (before == IMAGE).all()
    assert result.image.shape == IMAGE.shape
    assert result.image.dtype == np.uint8
    assert result.mask.dtype == bool
    assert result.mask.shape == (HEIGHT, WIDTH)
    assert (result.image[~result.mask] == IMAGE[~result.mask]).all(), "outside the mask nothing changes"
    assert (result.image[result.mask] != IMAGE[result.mask]).any()
    assert result.token_mask.shape == (grid, grid)
    assert result.token_mask.dtype == bool
    assert result.masked_tokens == result.token_mask.sum() == len(result.tokens) == len(result.log_probability) > 0
    assert result.tokens.dtype == np.int64
    assert ((result.tokens >= 0) & (result.tokens < editor.manifest.codebook_size)).all()
    assert result.log_probability.dtype == np.float32
    assert (result.log_probability < 0).all()
    assert 0 < result.transformer_calls <= result.masked_tokens
    assert set(result.timings) == {"encode", "prefill", "decode", "decoder", "total"}
    assert all(seconds > 0 for seconds in result.timings.values())
    assert sum(result.timings.values()) <= 2 * result.timings["total"] + 1e-3
    assert result.backend == editor.backend
    assert "onnxruntime" in result.backend
    assert result.notice is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.notice = ""  # type: ignore[misc]


def test_both_skeletons_are_masked(editor: Editor) -> None:
    alone = editor.edit(IMAGE, POSE)
    assert alone.notice == NO_REFERENCE_POSE
    both = editor.edit(IMAGE, POSE, reference_pose=standing(35))
    for pose, result in ((POSE, alone), (POSE, both), (standing(35), both)):
        assert all(result.mask[int(y), int(x)] for x, y, _ in pose)
    assert editor.edit(IMAGE, POSE, dilation=0.2).mask.sum() > alone.mask.sum()


def test_a_mask_says_exactly_what_is_edited(editor: Editor) -> None:
    mask = box_mask(60, 40, 30, 25, IMAGE)
    result = editor.edit(IMAGE, POSE, mask, reference_pose=OTHER)
    assert (result.mask == mask).all()
    assert (result.image[~mask] == IMAGE[~mask]).all()


def test_nothing_masked(editor: Editor, painter: Editor) -> None:
    nothing = np.zeros((HEIGHT, WIDTH), bool)
    for result in (editor.edit(IMAGE, POSE, nothing), painter.edit(IMAGE, mask=nothing)):
        assert (result.image == IMAGE).all()
        assert result.notice is not None
        assert NOTHING_MASKED in result.notice
        assert result.tokens.tolist() == [] == result.log_probability.tolist()
        assert result.transformer_calls == result.masked_tokens == 0
        assert not result.mask.any()
        assert not result.token_mask.any()


def test_everything_masked(editor: Editor, painter: Editor) -> None:
    everything = np.ones((HEIGHT, WIDTH), bool)
    for result in (editor.edit(IMAGE, POSE, everything), painter.edit(IMAGE, mask=everything)):
        assert result.mask.all()
        assert result.token_mask.any()
        assert result.transformer_calls <= result.masked_tokens


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 2), (64, 64), (701, 350), (97, 1001)])
def test_images_of_any_size(painter: Editor, size: tuple[int, int]) -> None:
    image = photograph(*size)
    mask = box_mask(size[0] // 3, size[1] // 3, size[0] // 3 + 1, size[1] // 3 + 1, image)
    result = painter.edit(image, mask=mask)
    assert result.image.shape == image.shape
    assert (result.mask == mask).all()
    assert (result.image[~mask] == image[~mask]).all()
    assert result.masked_tokens > 0


def test_one_pixel_with_a_pose(editor: Editor) -> None:
    image, pose = np.full((1, 1, 3), 200, np.uint8), np.full((13, 3), (0.5, 0.5, 1), np.float32)
    result = editor.edit(image, pose, np.ones((1, 1), bool))
    assert result.image.shape == (1, 1, 3)
    assert result.mask.all()


def test_a_skeleton_that_masks_no_pixel(editor: Editor) -> None:
    """All landmarks in one point: the radius is zero."""
    image, pose = np.full((9, 9, 3), 200, np.uint8), np.full((13, 3), (4.2, 4.2, 1), np.float32)
    result = editor.edit(image, pose, reference_pose=pose)
    assert (result.image == image).all()
    assert result.notice == NOTHING_MASKED
    assert not result.token_mask.any()
    assert not result.mask.any()


def test_other_layouts_of_memory(editor: Editor) -> None:
    expected = editor.edit(IMAGE, POSE)
    flipped = IMAGE[:, ::-1].copy()[:, ::-1]
    assert not flipped.flags.c_contiguous
    read_only = IMAGE.copy()
    read_only.flags.writeable = False
    for image, pose in ((flipped, POSE), (read_only, POSE.astype(np.float64)), (np.asfortranarray(IMAGE), POSE)):
        assert same(editor.edit(image, pose), expected)


def test_blend_keeps_what_is_far_from_the_mask(editor: Editor) -> None:
    mask = box_mask(60, 40, 30, 25, IMAGE)
    result = editor.edit(IMAGE, POSE, mask, blend=True)
    crop = result.crop
    assert result.image.shape == IMAGE.shape
    assert (result.image[: max(crop.y, 0)] == IMAGE[: max(crop.y, 0)]).all()


def test_crop(editor: Editor) -> None:
    found = editor.crop_for(IMAGE, [POSE, OTHER])
    assert editor.edit(IMAGE, POSE, reference_pose=OTHER).crop == found
    assert editor.edit(IMAGE, POSE, margin=1.5).crop.side > editor.crop_for(IMAGE, [POSE]).side
    crop = Crop(-4, 3, 120)
    assert editor.edit(IMAGE, POSE, crop=crop).crop == crop


# --- the same tokens however they are asked for ---


def test_repeatable(editor: Editor) -> None:
    assert same(editor.edit(IMAGE, POSE), editor.edit(IMAGE, POSE))
    assert same(editor.edit(IMAGE, POSE, **SAMPLED), editor.edit(IMAGE, POSE, **SAMPLED))
    other = editor.edit(IMAGE, POSE, **{**SAMPLED, "seed": 4})
    assert other.tokens.tolist() != editor.edit(IMAGE, POSE, **SAMPLED).tokens.tolist()


def test_seed_does_not_matter_when_greedy(editor: Editor) -> None:
    assert same(editor.edit(IMAGE, POSE, seed=7, temperature=3.0), editor.edit(IMAGE, POSE))


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_batch_equals_single(editor: Editor, options: dict[str, Any]) -> None:
    images = [IMAGE, photograph(90, 200, 1), IMAGE, photograph(64, 64, 2), IMAGE]
    poses = [POSE, standing(100, 45, 60), OTHER, standing(30, 30, 40), POSE]
    nothing = np.zeros(IMAGE.shape[:2], bool)
    masks = [None, None, box_mask(20, 20, 5, 90, IMAGE), np.ones((64, 64), bool), nothing]
    references = [OTHER, None, None, standing(32, 30, 40), None]
    together = editor.edit_batch(images, poses, masks, reference_poses=references, **options)
    assert len({result.masked_tokens for result in together}) >= 4, "different masks make the test"
    for result, image, pose, mask, reference in zip(together, images, poses, masks, references, strict=True):
        alone = editor.edit(image, pose, mask, reference_pose=reference, **options)
        assert same(result, alone)
        assert result.transformer_calls == alone.transformer_calls
        assert result.notice == alone.notice


def test_empty_batch(editor: Editor) -> None:
    assert editor.edit_batch([], []) == []


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_session_equals_edit(editor: Editor, options: dict[str, Any]) -> None:
    crop = editor.crop_for(IMAGE, [POSE, OTHER])
    mask = box_mask(60, 40, 30, 25, IMAGE)
    with editor.reference(IMAGE, POSE, crop) as session:
        for pose, drawn in ((OTHER, None), (POSE, None), (OTHER, mask), (OTHER, None)):
            alone = editor.edit(IMAGE, pose, drawn, reference_pose=POSE, crop=crop, **options)
            assert same(session.edit(pose, drawn, **options), alone)


def test_session_keeps_its_reference(editor: Editor) -> None:
    image = IMAGE.copy()
    with editor.reference(image, POSE) as session:
        first = session.edit(OTHER)
        image[:] = 0
        assert same(session.edit(OTHER), first)
    with pytest.raises(IlatError, match="closed"):
        session.edit(OTHER)


def test_session_without_pose_uses_the_whole_image(editor: Editor) -> None:
    with editor.reference(IMAGE) as session:
        assert session.crop == Crop(-20, 0, 150)
        assert session.edit(POSE).notice == NO_REFERENCE_POSE


def test_session_says_when_the_pose_leaves_its_crop(editor: Editor) -> None:
    with editor.reference(IMAGE, POSE, Crop(30, 30, 70)) as session:
        assert session.edit(OTHER).notice == POSE_OUTSIDE


def whole_pass(editor: Editor, target: Target, condition: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Next tokens of every target row from one call with the whole sequence: nothing is cached."""
    manifest, layout = editor.manifest, editor.manifest.sequence
    words, length = manifest.vocabulary, layout.length
    ids, landmarks = np.full((1, length), words.pose, np.int64), np.zeros((1, length, 3), np.float32)
    at = layout.slice("condition")
    if at.stop > at.start:
        ids[0, at] = [words.start_condition, *condition]
    if target.pose is not None:
        landmarks[0, layout.slice("pose")] = target.pose
    ids[0, layout.slice("target")] = [words.start_target, *(words.target_offset + tokens)]
    slots = np.full((1, manifest.cache_capacity), UNFILLED, np.int32)
    slots[0, :length] = target.plan.segment
    inputs = {
        "tokens": ids, "positions": np.arange(length)[None], "query_segment": target.plan.segment[None],
        "slot_segment": slots, "write_index": np.zeros(1, np.int64), "top_k": np.ones(1, np.int64),
        "temperature": np.ones(1, np.float32), "uniform": np.full((1, 1, 1), 0.5, np.float32), "landmarks": landmarks,
    }  # fmt: skip
    known = manifest.graphs.transformer.inputs
    outputs = editor._pipeline.transformer.with_cache(1).run(
        {key: value for key, value in inputs.items() if key in known}
    )
    return outputs["next_token"][0, layout.slice("target")][:-1]


@pytest.mark.parametrize("numbering", ["local", "released", "vanilla"])
@pytest.mark.parametrize("kind", ["pose", "none"])
def test_cached_decoding_equals_one_whole_pass(request: pytest.FixtureRequest, kind: str, numbering: str) -> None:
    editor: Editor = request.getfixturevalue({"pose": "editor", "none": "painter"}[kind])
    size = editor.manifest.image_tokens
    rng = np.random.default_rng(1)
    for share in (0.1, 0.5, 1.0):
        token_mask = rng.random(size) < share
        token_mask[rng.integers(size)] = True
        condition, tokens = rng.integers(0, editor.manifest.codebook_size, (2, size))
        pose = rng.random((13, 3), np.float32) if kind == "pose" else None
        target = Target(decode_plan(editor.manifest.sequence, token_mask, numbering), tokens, pose)
        decoder = Decoder(editor.manifest, editor._pipeline.transformer, 1)
        decoder.condition([condition], [None])
        (generated,) = decoder.generate([target], Sampling())
        complete = tokens.copy()
        complete[token_mask] = generated.tokens
        assert (whole_pass(editor, target, condition, complete)[token_mask] == generated.tokens).all()
        assert generated.calls <= token_mask.sum()


@pytest.mark.parametrize("numbering", ["released", "vanilla"])
def test_other_numberings_are_values_of_the_manifest(pose_bundle: Path, tmp_path: Path, numbering: str) -> None:
    bundle = changed_copy(pose_bundle, tmp_path / "b", lambda manifest: manifest.update(numbering=numbering))
    editor = Editor(bundle, threads=1)
    results = editor.edit_batch([IMAGE] * 3, [POSE, OTHER, POSE], [None, None, box_mask(0, 0, 9, 99, IMAGE)], **SAMPLED)
    for result in results:
        assert 0 < result.transformer_calls <= result.masked_tokens
    assert same(results[1], editor.edit(IMAGE, OTHER, **SAMPLED))


def test_a_full_cache_bounds_the_rows_of_a_call(pose_bundle: Path, tmp_path: Path, editor: Editor) -> None:
    """With vanilla numbering one image has many rows to feed while another is at its last."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["numbering"] = "vanilla"

    vanilla = Editor(changed_copy(pose_bundle, tmp_path / "b", change), threads=1)
    size = vanilla.manifest.image_tokens
    rng = np.random.default_rng(0)
    condition, tokens = rng.integers(0, vanilla.manifest.codebook_size, (2, size))
    pose = rng.random((13, 3), np.float32)
    masks = np.zeros((2, size), bool)
    masks[0, -1] = True
    masks[1, [0, *range(size - 3, size)]] = True
    targets = [Target(decode_plan(vanilla.manifest.sequence, mask, "vanilla"), tokens, pose) for mask in masks]
    both = Decoder(vanilla.manifest, vanilla._pipeline.transformer, 2)
    both.condition([condition] * 2, [None] * 2)
    together = both.generate(targets, Sampling())
    for target, found in zip(targets, together, strict=True):
        one = Decoder(vanilla.manifest, vanilla._pipeline.transformer, 1)
        one.condition([condition], [None])
        assert one.generate([target], Sampling())[0].tokens.tolist() == found.tokens.tolist()


def test_an_editor_serves_many_threads(editor: Editor) -> None:
    expected = {lean: editor.edit(IMAGE, standing(lean=lean)) for lean in (0.0, 0.2, 0.4)}
    wrong: list[object] = []

    def work(lean: float) -> None:
        try:
            results = [editor.edit(IMAGE, standing(lean=lean)) for _ in range(2)]
            wrong.extend(lean for result in results if not same(result, expected[lean]))
        except Exception as error:  # reported in the main thread
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(lean,)) for lean in (0.0, 0.2, 0.4, 0.2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- progress and cancelling ---


def test_progress(editor: Editor) -> None:
    calls: list[tuple[int, int]] = []
    result = editor.edit(IMAGE, POSE, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, result.masked_tokens) for done in range(1, result.masked_tokens + 1)]


def test_cancelling(editor: Editor) -> None:
    with editor.reference(IMAGE, POSE) as session:
        expected = session.edit(OTHER)
        with pytest.raises(Cancelled, match="after 2 of"):
            session.edit(OTHER, progress=lambda done, _: done < 2)
        assert same(session.edit(OTHER), expected)

        def interrupt(done: int, _: int) -> None:
            if done == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            session.edit(POSE, progress=interrupt)
        assert same(session.edit(OTHER), expected)


# --- bad input ---

LARGE = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (20000, 20000, 3))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (IMAGE[..., 0], r"image: uint8 \(150, 110\), expected uint8 HWC RGB"),
        (np.dstack([IMAGE, IMAGE[..., :1]]), r"image: uint8 \(150, 110, 4\), expected uint8 HWC RGB"),
        (IMAGE.astype(np.uint16), r"image: uint16 \(150, 110, 3\), expected uint8 HWC RGB"),
        (IMAGE / np.float32(255), "image: float32 .*, expected uint8 HWC RGB"),
        (IMAGE.transpose(2, 0, 1), r"image: uint8 \(3, 150, 110\), expected uint8 HWC RGB"),
        (IMAGE.tolist(), "image: list, expected uint8 HWC RGB"),
        (None, "image: NoneType, expected uint8 HWC RGB"),
        ("photo.jpg", "image: str, expected uint8 HWC RGB"),
        (IMAGE[:0], r"image: shape \(0, 110, 3\) has no pixels"),
        (LARGE, "image: 20000x20000 pixels are too many"),
    ],
)
def test_wrong_images(editor: Editor, image: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        editor.edit(image, POSE)
    with pytest.raises(InputError, match=message):
        editor.reference(image, POSE)
    with pytest.raises(InputError, match=message.replace("image:", r"images\[1\]:")):
        editor.edit_batch([IMAGE, image], [POSE, POSE])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            np.zeros((HEIGHT, WIDTH - 1), bool),
            r"mask: height and width \(150, 109\), expected \(150, 110\) as the image",
        ),
        (np.zeros((WIDTH, HEIGHT), bool), "mask: height and width"),
        (np.zeros((HEIGHT, WIDTH), np.uint8), r"mask: uint8 \(150, 110\), expected bool HW.*mask > 127"),
        (np.zeros((HEIGHT, WIDTH, 1), bool), "mask: bool .* expected bool HW"),
        (np.zeros((HEIGHT, WIDTH), np.float32), "mask: float32 .* expected bool HW"),
        ([[True]], "mask: list, expected bool HW"),
        ("m.png", "mask: str, expected bool HW"),
    ],
)
def test_wrong_masks(editor: Editor, painter: Editor, mask: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        editor.edit(IMAGE, POSE, mask)
    with pytest.raises(InputError, match=message):
        painter.edit(IMAGE, mask=mask)


def with_point(index: int, *values: float) -> np.ndarray:
    pose = POSE.copy()
    pose[index] = values
    return pose


@pytest.mark.parametrize(
    ("pose", "message"),
    [
        (with_point(3, np.nan, 5, 1), "pose: left_elbow is not finite"),
        (with_point(0, 5, np.inf, 1), "pose: head is not finite"),
        (with_point(0, 5, 5, np.nan), "pose: head is not finite"),
        (with_point(2, 5, 5, 0.5), "pose: the visibility of right_shoulder is 0.5, expected 0 or 1"),
        (POSE[:12], r"pose: shape \(12, 3\), expected float32 \(13, 3\)"),
        (POSE[:, :2], r"pose: shape \(13, 2\), expected float32 \(13, 3\)"),
        (np.zeros((17, 3), np.float32), r"pose: shape \(17, 3\)"),
        (POSE * np.float32([1, 1, 0]), "pose: no visible landmark lies inside the image of 110x150 pixels"),
        (POSE + np.float32([115, 0, 0]), "pose: no visible landmark lies inside"),
        (with_point(12, 1e6, 0, 1), r"pose: right_ankle at \(1e\+06, 0\) is too far outside"),
        (POSE.astype(str), r"pose: <U\d+ \(13, 3\), expected float32"),
        (POSE.tolist(), "pose: list, expected float32"),
        (None, r"pose: missing, the bundle .* \(kind 'pose'\) needs a target pose"),
    ],
)
def test_wrong_poses(editor: Editor, pose: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        editor.edit(IMAGE, pose)
    if pose is not None:
        with pytest.raises(InputError, match=message.replace("pose:", "reference_pose:", 1)):
            editor.edit(IMAGE, POSE, reference_pose=pose)
        with pytest.raises(InputError, match=message):
            editor.reference(IMAGE, pose)


def test_landmarks_may_lie_outside(editor: Editor) -> None:
    pose = standing(100, 140, 120)
    assert ((pose[:, :2] > (WIDTH, HEIGHT)).any(1)).any()
    result = editor.edit(IMAGE, pose, reference_pose=with_point(5, -900, 4, 0))
    assert result.masked_tokens > 0
    assert (result.image[~result.mask] == IMAGE[~result.mask]).all()


def test_what_a_bundle_takes(painter: Editor) -> None:
    mask = np.ones((HEIGHT, WIDTH), bool)
    with pytest.raises(InputError, match=r"pose: the bundle .* \(kind 'none'\) wants only a mask, it takes no pose"):
        painter.edit(IMAGE, POSE, mask)
    with pytest.raises(InputError, match=r"reference_pose: the bundle .* takes no reference pose"):
        painter.edit(IMAGE, mask=mask, reference_pose=POSE)
    with pytest.raises(InputError, match=r"mask: missing, the bundle .* needs a mask"):
        painter.edit(IMAGE)
    with pytest.raises(InputError, match="takes no pose"):
        painter.reference(IMAGE, POSE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed: -1, expected a whole number"),
        ({"seed": 2**64}, "seed: "),
        ({"seed": 0.5}, "seed: "),
        ({"top_k": 0}, "top_k: 0, expected a whole number from 1 to"),
        ({"top_k": 10**6}, "top_k: 1000000"),
        ({"top_k": True}, "top_k: True"),
        ({"temperature": 0}, "temperature: 0, expected a number"),
        ({"temperature": float("nan")}, "temperature: nan"),
        ({"temperature": "1"}, "temperature: '1'"),
        ({"dilation": -0.1}, "dilation: -0.1, expected a number from 0 to 1"),
        ({"dilation": float("nan")}, "dilation: nan"),
        ({"margin": 0.9}, "margin: 0.9, expected a number from 1 to 100"),
        ({"crop": (0, 0, 9)}, r"crop: \(0, 0, 9\), expected a Crop"),
        ({"crop": Crop(0, 0, 0)}, "crop: the edit needs a square of 0 pixels"),
        ({"crop": Crop(0, 0, MAX_CROP + 1)}, "crop: the edit needs a square of 8193 pixels, expected 1 to 8192"),
        ({"crop": Crop(110, 0, 50)}, "crop: .* lies outside the image of 110x150"),
        (
            {"crop": Crop(0, 0, 20), "mask": np.ones((HEIGHT, WIDTH), bool)},
            "mask: 16100 masked pixels lie outside the crop",
        ),
    ],
)
def test_wrong_options(editor: Editor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        editor.edit(IMAGE, POSE, **options)


def test_wrong_batches(editor: Editor) -> None:
    with pytest.raises(InputError, match="poses: 1 given, expected 2"):
        editor.edit_batch([IMAGE, IMAGE], [POSE])
    with pytest.raises(InputError, match=r"poses\[1\]: head is not finite"):
        editor.edit_batch([IMAGE, IMAGE], [POSE, with_point(0, np.nan, 0, 1)])
    with pytest.raises(InputError, match=r"reference_poses\[0\]: head is not finite"):
        editor.edit_batch([IMAGE], [POSE], reference_poses=[with_point(0, np.nan, 0, 1)])
    with pytest.raises(InputError, match=r"masks\[1\]: height and width"):
        editor.edit_batch([IMAGE, IMAGE], [POSE, POSE], [None, np.zeros((1, 1), bool)])


# --- bad bundles ---


def editing(bundle: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Callable[[], Editor]:
    changed_copy(bundle, folder, change)
    return lambda: Editor(folder)


def test_missing_file(pose_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(pose_bundle, tmp_path / "b")
    (tmp_path / "b/transformer.onnx").unlink()
    with pytest.raises(BundleError, match=r"transformer\.onnx: missing \(manifest\.json: files"):
        Editor(tmp_path / "b")


def test_changed_byte(pose_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(pose_bundle, tmp_path / "b")
    data = bytearray((tmp_path / "b/encoder.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "b/encoder.onnx").write_bytes(data)
    with pytest.raises(BundleError, match=r"encoder\.onnx: its contents have changed"):
        Editor(tmp_path / "b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(colour="red"), r"manifest\.json: colour: unknown key"),
        (lambda m: m["graphs"]["encoder"].update(file="../encoder.onnx"), r"graphs\.encoder\.file: .*no '\.\.'"),
        (lambda m: m.update(format_version=2), "has version 2, this runtime .* reads version 1"),
        (lambda m: m.update(kind="sketch"), "layout"),
        (lambda m: m.update(name=3), r"manifest\.json: name: "),
    ],
)
def test_wrong_manifests(
    pose_bundle: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    folder = changed_copy(pose_bundle, tmp_path / "b", change)
    with pytest.raises(BundleError, match=message):
        Editor(folder)


@pytest.mark.parametrize("name", ["encoder", "transformer", "decoder"])
@pytest.mark.parametrize("keep", [0, 0.3, 0.999])
def test_truncated_graph(pose_bundle: Path, tmp_path: Path, name: str, keep: float) -> None:
    data = (pose_bundle / f"{name}.onnx").read_bytes()
    folder = with_graph(pose_bundle, tmp_path / "b", name, data[: int(keep * len(data))])
    with pytest.raises(BundleError, match=rf"{name}\.onnx: onnxruntime .* cannot load the graph"):
        Editor(folder)


def test_exchanged_graph(pose_bundle: Path, tmp_path: Path) -> None:
    folder = with_graph(pose_bundle, tmp_path / "b", "encoder", (pose_bundle / "decoder.onnx").read_bytes())
    with pytest.raises(BundleError, match=r"encoder\.onnx: input .* is in the (graph|manifest) only"):
        Editor(folder)


def test_graph_and_manifest_disagree(pose_bundle: Path, tmp_path: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["cache_capacity"] += 1
        graph = manifest["graphs"]["transformer"]
        for name, tensor in (graph["inputs"] | graph["outputs"]).items():
            if name.startswith(("past_", "present_")):
                tensor["shape"][2] += 1
        graph["inputs"]["slot_segment"]["shape"][1] += 1

    folder = changed_copy(pose_bundle, tmp_path / "b", change)
    with pytest.raises(BundleError, match=r"transformer\.onnx: input .* in the graph, .* in the manifest"):
        Editor(folder)


# --- backends ---


def test_backends(pose_bundle: Path) -> None:
    assert Editor(pose_bundle, "onnxruntime").backend_reason == "onnxruntime was asked for"
    with pytest.raises(BackendError, match="'onnxrunime' does not exist, did you mean onnxruntime"):
        choose("onnxrunime")
    for threads in (0, -1, 1.5, True):
        with pytest.raises(BackendError, match="threads"):
            choose("auto", threads)  # type: ignore[arg-type]


def test_auto_says_once_what_it_took(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_told", set())
    with caplog.at_level(logging.INFO, "ilat_runtime"):
        choose("auto")
        choose("auto")
        choose("onnxruntime")
    assert len(caplog.records) == 1
    assert "onnxruntime" in caplog.text
    assert "auto takes the first that works" in caplog.text


def test_auto_goes_on_to_the_next_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(threads: int | None) -> backends.Backend:
        raise BackendError("backend: broken needs a GPU")

    monkeypatch.setattr(backends, "BACKENDS", {"broken": broken, **backends.BACKENDS})
    choice = choose("auto")
    assert choice.backend.name == "onnxruntime"
    assert "broken needs a GPU" in choice.reason
    with pytest.raises(BackendError, match="broken needs a GPU"):
        choose("broken")
    monkeypatch.setattr(backends, "BACKENDS", {"broken": broken})
    with pytest.raises(BackendError, match=r"none works here: .*broken needs a GPU"):
        choose("auto")


def test_public_names() -> None:
    for name in ilat_runtime.__all__:
        assert getattr(ilat_runtime, name) is not None
    assert ilat_runtime.Editor is Editor
    assert set(ilat_runtime.__all__) <= set(dir(ilat_runtime))
    with pytest.raises(AttributeError, match="no attribute 'Edit'"):
        _ = ilat_runtime.Edit
