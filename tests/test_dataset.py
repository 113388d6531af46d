"""Training pairs: where they come from, how they are cut, and that they can be drawn again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'train'")

import torch
from training import SIZE, make_dataset, tiny_tokenizer

from ilat_runtime import Crop, Editor
from ilat_runtime.errors import InputError
from ilat_runtime.joints import FLIP
from ilat_train.config import DataConfig
from ilat_train.data import dataset as module
from ilat_train.data.dataset import Batch, PoseDataset, random_masks, to_bytes, to_model
from ilat_train.data.image_folder import ImageFolder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture
def data(folder: Path) -> PoseDataset:
    return PoseDataset(folder, DataConfig(), SIZE)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def equal(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


# Which frames


def test_training_pairs_are_of_one_clip_and_never_held_out(data: PoseDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(data, "load", lambda pairs, *_: drawn.extend(pairs))
    for step in range(200):
        data.batch(0, step, 0, 4)
    assert {pair.clip for pair in drawn} == {"person", "person_2"}
    frames = {frame for pair in drawn for frame in (pair.condition, pair.target)}
    assert frames == set(range(16))


def test_held_out_pairs_are_only_held_out_ones(data: PoseDataset) -> None:
    pairs = data.held_out_pairs(8)
    assert all({pair.condition, pair.target} <= set(range(16, 20)) for pair in pairs)
    assert all(pair.condition != pair.target for pair in pairs)
    # Spread evenly: every held-out frame of both clips is a target once.
    assert {(pair.clip, pair.target) for pair in pairs} == {(clip, i) for clip in data.clips for i in range(16, 20)}
    assert [(p.condition, p.target) for p in pairs] == [(p.condition, p.target) for p in data.held_out_pairs(8)]


def test_references_may_come_from_all_of_the_clip(data: PoseDataset) -> None:
    pairs = data.held_out_pairs(64, references="any")
    assert all(pair.target in range(16, 20) and pair.condition != pair.target for pair in pairs)
    assert {pair.condition for pair in pairs} > set(range(4, 12))


@pytest.mark.parametrize("pairs", [True, False])
def test_a_batch_is_a_function_of_seed_step_and_rank(folder: Path, data: PoseDataset, pairs: bool) -> None:
    first = data.batch(3, 7, 1, 4, pairs)
    data.batch(3, 8, 1, 4, pairs)
    again = PoseDataset(folder, DataConfig(), SIZE).batch(3, 7, 1, 4, pairs)
    assert equal(first, again)
    for other in ((4, 7, 1), (3, 8, 1), (3, 7, 0)):
        assert not equal(first, data.batch(*other, 4, pairs))
    assert torch.equal(first.condition, first.target) is not pairs


def test_frames_without_a_person(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "set", empty=(0, 1, 2, 16, 18))
    data = PoseDataset(folder, DataConfig(), SIZE)
    for step in range(20):
        assert data.batch(0, step, 0, 4).skeleton_mask().flatten(1).any(1).all()
    assert {pair.target for pair in data.held_out_pairs(8)} == {17, 19}
    assert {pair.condition for pair in data.held_out_pairs(8)} == {17, 19}
    with pytest.raises(InputError, match="no landmark in frames 0 and 1 of person"):
        data.pair("person", 0, 1)


def test_nobody_to_train_on(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "set", empty=tuple(range(16)))
    data = PoseDataset(folder, DataConfig(), SIZE)
    with pytest.raises(InputError, match="no training frame shows a landmark"):
        data.batch(0, 0, 0, 4)


def test_no_held_out_frames(tmp_path: Path) -> None:
    data = PoseDataset(make_dataset(tmp_path / "set", test_share=0.05), DataConfig(), SIZE)
    with pytest.raises(InputError, match="clip person has fewer than two held-out frames"):
        data.held_out_pairs(2)


# How they are cut


def test_the_crop_is_the_editors(data: PoseDataset, pose_bundle: Path) -> None:
    """What training sees is what editing will: the same square, and the same tokens masked in it."""
    editor, tokenizer = Editor(pose_bundle, threads=1), tiny_tokenizer()
    rule = editor.manifest.crop
    assert rule is not None
    assert (rule.margin, rule.dilation, editor.manifest.image_size) == (data.config.margin, 0.09, data.size)
    for pair in data.held_out_pairs(4):
        frame = data.frame(pair.clip, pair.condition)
        assert editor.crop_for(frame, list(pair.poses)) == pair.crop
        result = editor.edit(frame, pose=pair.poses[1], reference_pose=pair.poses[0])
        assert result.crop == pair.crop
        batch = data.load([pair])
        masked = tokenizer.token_mask(batch.skeleton_mask())[0, 0].numpy()
        # In a crop of another size the mask's edge is a pixel of the crop, so a token more may be touched, never less.
        assert (result.token_mask >= masked).all()
        poses = batch.poses[0].numpy() * np.array([SIZE, SIZE, 1], np.float32)
        whole = Crop(0, 0, SIZE)
        result = editor.edit(to_bytes(batch.condition[0]), pose=poses[1], reference_pose=poses[0], crop=whole)
        np.testing.assert_array_equal(result.token_mask, masked)


def test_jitter_moves_and_scales_the_crop_only(data: PoseDataset) -> None:
    still = data.pair("person", 0, 15)
    sides = set()
    for seed in range(50):
        moved = data.pair("person", 0, 15, np.random.default_rng(seed))
        assert moved.radius == still.radius
        np.testing.assert_array_equal(moved.poses, still.poses)
        assert 0.95 * still.crop.side - 1 <= moved.crop.side <= 1.2 * still.crop.side + 1
        sides.add(moved.crop.side)
        inside = moved.crop.relative(moved.poses)[..., :2]
        assert inside.min() >= 0
        assert inside.max() <= 1
    assert len(sides) > 5


def test_values_and_shapes(data: PoseDataset) -> None:
    batch = data.batch(0, 0, 0, 3)
    assert batch.condition.shape == batch.target.shape == (3, 3, SIZE, SIZE)
    assert batch.poses.shape == (3, 2, 13, 3)
    assert batch.radius.shape == (3,)
    assert batch.target.abs().max() <= 1
    assert 0.02 < batch.skeleton_mask().float().mean() < 0.9


def test_the_dilation_of_the_clip_or_of_the_configuration(folder: Path) -> None:
    own = PoseDataset(folder, DataConfig(), SIZE).pair("person", 0, 5)
    twice = PoseDataset(folder, DataConfig(dilation=0.18), SIZE).pair("person", 0, 5)
    assert twice.radius == pytest.approx(2 * own.radius)
    assert PoseDataset(folder, DataConfig(dilation=0.18), SIZE).facts()["dilation"] == 0.18


def test_facts_are_the_crop_rule_and_the_clips(data: PoseDataset) -> None:
    facts = data.facts()
    assert (facts["margin"], facts["dilation"]) == (1.3, 0.09)
    assert [clip["name"] for clip in facts["clips"]] == ["person", "person_2"]
    assert json.loads(json.dumps(facts)) == facts


def test_mirroring_swaps_left_and_right(folder: Path) -> None:
    plain = PoseDataset(folder, DataConfig(flip=0), SIZE).batch(0, 0, 0, 4)
    mirrored = PoseDataset(folder, DataConfig(flip=1), SIZE).batch(0, 0, 0, 4)
    assert torch.equal(mirrored.target, plain.target.flip(-1))
    assert torch.equal(mirrored.condition, plain.condition.flip(-1))
    expected = plain.poses[:, :, list(FLIP)]
    torch.testing.assert_close(mirrored.poses[..., 0], 1 - expected[..., 0])
    assert torch.equal(mirrored.poses[..., 1:], expected[..., 1:])


def test_bytes_survive_at_the_same_size() -> None:
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    np.testing.assert_array_equal(to_bytes(to_model(image, SIZE)), image)


def test_memory_is_bounded(folder: Path, data: PoseDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    size = data.frame("person", 0).nbytes
    monkeypatch.setattr(module, "MAX_KEPT", 3 * size)
    bounded = PoseDataset(folder, DataConfig(), SIZE)
    for index in range(10):
        np.testing.assert_array_equal(bounded.frame("person", index), data.frame("person", index))
    assert len(bounded._frames) == 3


# Masks


def test_kinds_of_masks(data: PoseDataset) -> None:
    batch = data.batch(0, 0, 0, 4)
    skeleton = random_masks(("skeleton",), batch, np.random.default_rng(0))
    assert torch.equal(skeleton, batch.skeleton_mask())
    for kind in ("free-form", "box"):
        first, again = (random_masks((kind,), batch, np.random.default_rng(0)) for _ in range(2))
        assert torch.equal(first, again)
        assert first.flatten(1).any(1).all()
        assert not torch.equal(first, skeleton)
    with pytest.raises(InputError, match="'stripes'"):
        random_masks(("stripes",), batch, np.random.default_rng(0))


# What is not a data set


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": "other"}, "format, version"),
        ({"version": 2}, "format, version"),
        ({"joints": ["head"]}, "joints: expected head, left_shoulder"),
        ({"clips": []}, "clips: expected at least one"),
        ({"clips": 3}, "clips"),
        ({"clips": [{"name": "x"}]}, r"clips\.0"),
    ],
)
def test_a_wrong_index_is_named(copy: Path, change: dict[str, object], says: str) -> None:
    file = copy / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=rf"dataset\.json: {says}"):
        PoseDataset(copy, DataConfig(), SIZE)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [("name", "../x", "is not the name of a folder"), ("test_from", 99, "test_from 99"), ("frames", 19, "20 poses")],
)
def test_a_wrong_clip_is_named(copy: Path, key: str, value: object, says: str) -> None:
    file = copy / "dataset.json"
    index = json.loads(file.read_text())
    index["clips"][1][key] = value
    file.write_text(json.dumps(index))
    with pytest.raises(InputError, match=says):
        PoseDataset(copy, DataConfig(), SIZE)


def test_missing_and_damaged_files_are_named(copy: Path) -> None:
    (copy / "person" / "000003.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"000003\.jpg: missing or not an image"):
        PoseDataset(copy, DataConfig(), SIZE).frame("person", 3)
    (copy / "person" / "poses.json").unlink()
    with pytest.raises(InputError, match=r"poses\.json"):
        PoseDataset(copy, DataConfig(), SIZE)
    (copy / "dataset.json").write_text("{")
    with pytest.raises(InputError, match="not a JSON file"):
        PoseDataset(copy, DataConfig(), SIZE)
    with pytest.raises(InputError, match="made by `ilat-train data pose-video`"):
        PoseDataset(copy / "none", DataConfig(), SIZE)


# Single images


def test_image_folder(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, 20:60] = 200  # the middle square
    cv2.imwrite(str(tmp_path / "wide.png"), wide)
    cv2.imwrite(str(tmp_path / "deep" / "small.jpg"), np.full((8, 8, 3), 50, np.uint8))
    (tmp_path / "notes.txt").write_text("x")
    data = ImageFolder(tmp_path, DataConfig(flip=0.5), SIZE)
    assert [file.name for file in data.files] == ["small.jpg", "wide.png"]
    assert data.facts() == {"source": str(tmp_path), "images": 2}
    assert (to_bytes(data.image(1)) == 200).all()
    batch = data.batch(0, 0, 0, 6)
    assert batch.target.shape == (6, 3, SIZE, SIZE)
    assert not batch.skeleton_mask().any()
    assert equal(batch, ImageFolder(tmp_path, DataConfig(flip=0.5), SIZE).batch(0, 0, 0, 6))


def test_no_images(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="no image in this folder"):
            ImageFolder(folder, DataConfig(), SIZE)
    (tmp_path / "x.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"x\.png: "):
        ImageFolder(tmp_path, DataConfig(), SIZE).batch(0, 0, 0, 1)
