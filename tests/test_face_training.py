"""Training of face models: folders of images, their sketches, masks of objects (Sec. 3.3 and 4)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from editing import photograph
from exporting import models, reuse_graphs, sketch_tokenizer
from training import SIZE, TINY, tiny

import ilat_train
from ilat_export.cli import main as export
from ilat_runtime import read_sketch
from ilat_runtime.errors import InputError
from ilat_runtime.manifest import load_manifest
from ilat_train import checkpoint
from ilat_train.cli import main
from ilat_train.config import DataConfig, override
from ilat_train.data import object_masks
from ilat_train.data.dataset import random_masks, to_bytes
from ilat_train.data.image_folder import ImageFolder, SketchFolder, image_files
from ilat_train.data.masks import blob_mask
from ilat_train.data.object_masks import ObjectMasks
from ilat_train.models import TSVQGAN
from ilat_train.recipes import RECIPES, recipe
from ilat_train.train_transformer import encode

IMAGES = ("transformer.blocks=[\"condition\",\"target\"]", "transformer.pose_tokens=0", "task=images",
          'tokenizer_training.masks=["free-form","blob"]', 'transformer_training.masks=["free-form","blob"]',
          "transformer.condition_vocabulary=20")  # fmt: skip
SKETCHES = (*IMAGES, "task=sketches", "tokenizer.in_channels=1", "tokenizer.codebook_size=20",
            "transformer.codebook_size=20", "tokenizer_training.masked_steps=0",
            "tokenizer_training.perceptual_weight=0")  # fmt: skip


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """FFHQ's layout, with a picture that is not square and one beside the photographs."""
    root = tmp_path / "ffhq"
    for number, shape in enumerate([(48, 48), (48, 48), (60, 48)]):
        file = root / "images1024x1024" / "00000" / f"{number:05d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), photograph(*shape, seed=number))
    (root / "thumbnails128x128").mkdir()
    cv2.imwrite(str(root / "thumbnails128x128" / "00000.png"), photograph(8, 8))
    return root


# --- folders ---


def test_layouts(faces: Path, tmp_path: Path) -> None:
    """Breaks when thumbnails are taken for photographs or 10.jpg comes before 2.jpg: the split depends on the order."""
    assert [file.name for file in image_files(faces)] == ["00000.png", "00001.png", "00002.png"]
    celeba = tmp_path / "celeba"
    for name in ("CelebA-HQ-img/2.jpg", "CelebA-HQ-img/10.jpg", "CelebAMask-HQ-mask-anno/0/00002_hair.png"):
        (celeba / name).parent.mkdir(parents=True, exist_ok=True)
        (celeba / name).write_bytes(b"")
    assert [file.name for file in image_files(celeba)] == ["2.jpg", "10.jpg"]


def test_only_the_first_images_are_for_training(faces: Path) -> None:
    data = ImageFolder(faces, DataConfig(train_images=1), SIZE)
    assert data.facts()["images"] == data.training == 1
    first = data.image(0)
    assert all(torch.equal(image, first) for step in range(5) for image in data.batch(0, step, 0, 3).target)
    assert ImageFolder(faces, DataConfig(train_images=68_000), SIZE).training == 3


def test_conditions_are_the_targets_sketches(faces: Path) -> None:
    """Breaks when image and sketch are of different pictures or mirrored apart."""
    data = ImageFolder(faces, DataConfig(flip=0.5), SIZE, sketched=True)
    batch = data.batch(0, 3, 0, 8)
    assert batch.condition.shape == (8, 1, SIZE, SIZE)
    mirrored = 0
    for lines, image in zip(batch.condition, batch.target, strict=True):
        pairs = [(data.sketch(index), data.image(index)) for index in range(3)]
        plain = [torch.equal(lines, a) and torch.equal(image, b) for a, b in pairs]
        flipped = [torch.equal(lines, a.flip(-1)) and torch.equal(image, b.flip(-1)) for a, b in pairs]
        assert any(plain) or any(flipped)
        mirrored += not any(plain)
    assert 0 < mirrored < 8
    alone = SketchFolder(faces, DataConfig(), SIZE).batch(0, 0, 0, 2)
    assert alone.target.shape == (2, 1, SIZE, SIZE)
    assert to_bytes(alone.target[0]).shape == (SIZE, SIZE, 3)
    assert -1 <= float(alone.target.min()) < float(alone.target.max()) <= 1


def test_sketches_drawn_before_are_those_drawn_as_needed(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sketches"
    words = ["data", "sketch", str(faces), "--out", str(out), "--square", "--size", str(SIZE), "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["sketches"] == 3
    kept, drawn = (ImageFolder(faces, DataConfig(), SIZE, True, folder) for folder in (out, None))
    for index in range(3):
        assert kept.sketch(index).shape == (1, SIZE, SIZE)
        assert (kept.sketch(index) - drawn.sketch(index)).abs().max() < 0.02
    assert main(words) == 1
    assert "00000.png: exists already; replace it with --force" in capsys.readouterr().err
    assert main([*words, "--force"]) == 0
    (out / "images1024x1024/00000/00001.png").unlink()
    with pytest.raises(InputError, match=r"00001\.png: no such sketch; draw them with: ilat-train data sketch"):
        ImageFolder(faces, DataConfig(), SIZE, True, out)


def test_a_sketch_to_draw_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the picture's size, the same as the library's; breaks when the command crops or scales."""
    image = photograph(50, 70)
    cv2.imwrite(str(tmp_path / "me.png"), image[..., ::-1])
    assert main(["data", "sketch", str(tmp_path / "me.png"), "--out", str(tmp_path / "s"), "--size", "32"]) == 0
    assert np.array_equal(read_sketch(tmp_path / "s/me.png"), ilat_train.draw_sketch(image, 32))
    assert "1 sketches" in capsys.readouterr().out
    (tmp_path / "other").mkdir()
    cv2.imwrite(str(tmp_path / "other/me.png"), image)
    words = ["data", "sketch", str(tmp_path / "me.png"), str(tmp_path / "other/me.png"), "--out", str(tmp_path / "t")]
    assert main(words) == 2
    assert "would also be that of" in capsys.readouterr().err
    assert main(["data", "sketch", str(tmp_path / "no.png"), "--out", str(tmp_path / "t")]) == 1
    assert "no.png: no such file" in capsys.readouterr().err


# --- masks ---


def coco(tmp_path: Path, *segmentations: Any, **changes: Any) -> Path:
    """An annotation file of one image of 20 × 10 pixels."""
    annotations = [{"image_id": 7, "iscrowd": 0, "segmentation": part, **changes} for part in segmentations]
    file = tmp_path / "instances.json"
    file.write_text(json.dumps({"images": [{"id": 7, "width": 20, "height": 10}], "annotations": annotations}))
    return file


BOX = [2.0, 2.0, 12.0, 2.0, 12.0, 8.0, 2.0, 8.0]
COUNTS = [25, 5, 5, 5, 160]
"""Column by column: rows 5 to 9 of the columns 2 and 3."""


@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [
        ([BOX], (slice(2, 8), slice(2, 12))),
        ([BOX[:6], [*BOX[:2], *BOX[4:]]], (slice(2, 8), slice(2, 12))),
        ({"counts": COUNTS, "size": [10, 20]}, (slice(5, 10), slice(2, 4))),
        ({"counts": "i0550000P5", "size": [10, 20]}, None),
    ],
    ids=["polygon", "two polygons", "counts", "compressed"],
)
def test_coco_masks(tmp_path: Path, segmentation: Any, expected: tuple[slice, slice] | None) -> None:
    """Breaks when polygons, run lengths or their order (by columns) are misread."""
    if expected is None:
        from pycocotools import mask

        segmentation["counts"] = mask.frPyObjects({"counts": COUNTS, "size": [10, 20]}, 10, 20)["counts"].decode()
        expected = (slice(5, 10), slice(2, 4))
    masks = ObjectMasks(coco(tmp_path, segmentation))
    wanted = np.zeros((10, 20), bool)
    wanted[expected] = True
    assert len(masks) == 1
    assert np.array_equal(masks._mask(0), wanted)
    drawn = {masks.draw(40, np.random.default_rng(seed)).tobytes() for seed in range(20)}
    stretched = cv2.resize(wanted.astype(np.uint8), (40, 40), interpolation=cv2.INTER_NEAREST) > 0
    assert drawn == {stretched.tobytes(), stretched[:, ::-1].tobytes()}


def test_crowds_are_left_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"instances\.json: annotations: no object in it"):
        ObjectMasks(coco(tmp_path, [BOX], iscrowd=1))


BAD: list[tuple[Any, str]] = [
    ([[1, 2, 3]], "not a polygon in the image"),
    ([[0, 0, 1e9, 0, 5, 5]], "not a polygon in the image"),
    ([["a", 0, 1, 0, 5, 5]], "could not convert"),
    ({"counts": [10, 10**9]}, "expected polygons or a run-length encoding"),
    ({"counts": 28 * "z"}, "expected polygons or a run-length encoding"),
    ({}, "expected polygons or a run-length encoding"),
    ("x", "expected polygons or a run-length encoding"),
]


@pytest.mark.parametrize(("segmentation", "message"), BAD)
def test_damaged_annotations(tmp_path: Path, segmentation: Any, message: str) -> None:
    masks = ObjectMasks(coco(tmp_path, segmentation))
    with pytest.raises(InputError, match=r"instances\.json: annotations\[0\]\.segmentation: ") as caught:
        masks.draw(16, np.random.default_rng(0))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1", "not a JSON file"),
        ("[]", "expected a COCO annotation file with the lists"),
        ('{"images": [], "annotations": [{"image_id": 1, "segmentation": []}]}', "not as COCO has them"),
        ('{"images": [{"id": 1, "width": 99999, "height": 99999}], "annotations": []}', "99999x99999 pixels are too"),
    ],
)
def test_damaged_annotation_files(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(InputError, match=r"x\.json: ") as caught:
        ObjectMasks(file)
    assert message in str(caught.value)
    with pytest.raises(InputError, match=r"y\.json: no such file; expected a folder of masks or a COCO annotation"):
        ObjectMasks(tmp_path / "y.json")


def test_a_folder_of_masks(tmp_path: Path) -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[5:15, 2:9] = 255
    cv2.imwrite(str(tmp_path / "a.png"), mask)
    masks = ObjectMasks(tmp_path)
    found = masks.draw(20, np.random.default_rng(0))
    assert np.array_equal(found, mask > 0) or np.array_equal(found, mask[:, ::-1] > 0)
    batch = ImageFolder(tmp_path, DataConfig(), 20).batch(0, 0, 0, 3)
    drawn = random_masks(("object",), batch, np.random.default_rng(0), masks)
    assert (drawn.flatten(1).sum(1) == 70).all()
    with pytest.raises(InputError, match="'object' needs masks of objects"):
        random_masks(("object",), batch, np.random.default_rng(0))
    cv2.imwrite(str(tmp_path / "a.png"), np.full((20, 20), 255, np.uint8))
    with pytest.raises(InputError, match="of 100 masks none covers 1% to 80% of its image"):
        masks.draw(20, np.random.default_rng(0))
    assert (object_masks.LEAST, object_masks.MOST) == (0.01, 0.8)


def test_blobs() -> None:
    """Closed shapes of one piece, of many sizes; the same for the same seed."""
    masks = [blob_mask(60, 60, np.random.default_rng(seed)) for seed in range(40)]
    assert np.array_equal(masks[3], blob_mask(60, 60, np.random.default_rng(3)))
    shares = [mask.mean() for mask in masks]
    assert 0 < min(shares) < 0.06
    assert 0.15 < max(shares) < 0.6
    assert all(cv2.connectedComponents(mask.astype(np.uint8))[0] == 2 for mask in masks)


# --- recipes and training ---


def test_the_recipes_are_the_papers() -> None:
    """Sec. 3.3 and 4, A.1, Table 3."""
    face, sketch = recipe("face"), recipe("face-sketch")
    training = face.tokenizer_training
    assert (training.plain_steps, training.masked_steps, training.batch_size) == (150_000, 150_000, 16)
    assert (training.rate, training.betas, training.halve_every) == (2e-4, (0.5, 0.9), 50_000)
    assert (training.adversarial, training.adversarial_weight) == ("fixed", 0.1)
    assert set(training.masks) == set(face.transformer_training.masks) == {"free-form", "object"}
    assert (face.tokenizer.codebook_size, face.tokenizer.codebook_channels) == (2048, 256)
    assert (face.tokenizer.norm, face.tokenizer.attention) == ("instance", False)
    assert not face.tokenizer.leaky
    large = face.transformer
    assert (large.width, large.heads, large.layers, large.dropout) == (768, 12, 12, 0.1)
    assert large.layout.length == 514
    steps = face.transformer_training
    assert (steps.steps, steps.batch_size, steps.rate, steps.betas) == (300_000, 16, 5e-5, (0.9, 0.95))
    assert (steps.weight_decay, steps.warmup) == (0.01, 10_000)
    assert face.data.train_images == 68_000
    assert large.condition_vocabulary == sketch.tokenizer.codebook_size
    assert sketch.tokenizer.grid == face.tokenizer.grid == 16


def test_a_sketch_tokenizer_has_one_channel() -> None:
    with pytest.raises(InputError, match=r"tokenizer.in_channels: 3 for task 'sketches'"):
        override(TINY, [*IMAGES, "task=sketches"])
    with pytest.raises(InputError, match=r"transformer_training.masks: 'skeleton' needs landmarks"):
        tiny(*IMAGES[:4])


def test_the_sketch_is_the_condition(faces: Path) -> None:
    """Breaks when the condition is encoded by the tokenizer of images, or the target's mask reaches the sketch."""
    torch.manual_seed(0)
    tokenizer, lines = TSVQGAN(tiny(*IMAGES).tokenizer).eval(), TSVQGAN(tiny(*SKETCHES).tokenizer).eval()
    batch = ImageFolder(faces, DataConfig(), SIZE, sketched=True).batch(0, 0, 0, 2)
    mask = random_masks(("box",), batch, np.random.default_rng(0))
    found = encode(tokenizer, batch, mask, lines)
    assert torch.equal(found.condition, lines.tokens(batch.condition))
    assert int(found.condition.max()) < 20
    assert torch.equal(found.token_mask, tokenizer.token_mask(mask).flatten(1))


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "tiny-face", tiny(*IMAGES).model_copy(update={"name": "tiny-face"}))
    monkeypatch.setitem(RECIPES, "tiny-lines", tiny(*SKETCHES).model_copy(update={"name": "tiny-lines"}))


def command(part: str, data: Path, run: Path, *words: str) -> list[str]:
    return [part, "--data", str(data), "--out", str(run), "--threads", "1", "--accelerator", "cpu", "--quiet", *words]


@pytest.mark.usefixtures("named")
def test_a_face_model_is_trained(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The three trainings of a face model, from photographs to a run that ilat-export takes."""
    masks = tmp_path / "masks"
    masks.mkdir()
    cv2.imwrite(str(masks / "a.png"), np.pad(np.full((20, 20), 255, np.uint8), 10))
    lines, run = tmp_path / "lines", tmp_path / "run"
    assert main(command("tokenizer", faces, lines, "--recipe", "tiny-lines", "--sample-every", "2")) == 0
    assert checkpoint.load_tokenizer(lines / "tokenizer").config.in_channels == 1
    assert checkpoint.read_config(lines / "tokenizer")["facts"]["perceptual"] == "none"
    assert main(command("transformer", faces, lines)) == 1
    assert "it has a tokenizer only" in capsys.readouterr().err

    objects = ["--set", 'tokenizer_training.masks=["object"]', "--set", 'transformer_training.masks=["object"]']
    assert main(command("tokenizer", faces, run, "--recipe", "tiny-face", *objects)) == 2
    message = capsys.readouterr().err
    assert "--masks: missing, the recipe masks objects" in message
    assert "--set 'tokenizer_training.masks=[\"blob\"]'" in message
    assert main(command("tokenizer", faces, run, "--recipe", "tiny-face", *objects, "--masks", str(masks))) == 0

    assert main(command("transformer", faces, run, "--masks", str(masks))) == 1
    assert "sketch-tokenizer: missing; train it with" in capsys.readouterr().err
    words = ["--masks", str(masks), "--sketch-tokenizer", str(lines / "tokenizer"), "--sample-every", "3"]
    assert main(command("transformer", faces, run, *words)) == 0
    transformer = checkpoint.load_transformer(run / "transformer")
    assert transformer.config.blocks == ("condition", "target")
    assert checkpoint.load_tokenizer(run / "sketch-tokenizer").config.codebook_size == 20
    facts = checkpoint.read_config(run / "transformer")["facts"]
    assert facts["data"] == {"source": str(faces), "images": 3}
    assert (run / "transformer/samples/0000003.png").is_file()


@pytest.mark.usefixtures("named")
def test_flags_that_do_not_fit(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["--recipe", "tiny-face", "--masks", str(faces)], "--masks: the recipe draws no masks of objects"),
        (["--recipe", "pose-demo", "--sketches", str(faces)], "--sketches: recipe 'pose-demo' trains on poses"),
    ):
        assert main(command("tokenizer", faces, tmp_path / "run", *words)) == 2
        assert message in capsys.readouterr().err
    words = ["--recipe", "pose-demo", "--sketch-tokenizer", str(tmp_path)]
    assert main(command("transformer", faces, tmp_path / "run", *words)) == 2
    assert "--sketch-tokenizer: the condition of recipe 'pose-demo' is no sketch" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("named")
def test_another_sketch_tokenizer(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.save(tmp_path / "run/tokenizer", TSVQGAN(tiny(*IMAGES).tokenizer), {})
    other = tiny(*SKETCHES[:-4], "tokenizer.codebook_size=21", "transformer.codebook_size=21").tokenizer
    checkpoint.save(tmp_path / "lines", TSVQGAN(other), {})
    words = ["--recipe", "tiny-face", "--sketch-tokenizer", str(tmp_path / "lines")]
    assert main(command("transformer", faces, tmp_path / "run", *words)) == 1
    assert (
        "1 channels, 16 tokens of 21 values, but the recipe's transformer takes 1, 16 of 20" in capsys.readouterr().err
    )


# --- export ---


def test_export_of_a_face_run(
    sketch_bundle: Path,
    faces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Three checkpoints to a bundle of kind sketch, verified on the folder's images."""
    reuse_graphs(monkeypatch, sketch_bundle)
    tokenizer, transformer = models("sketch")
    run = tmp_path / "run"
    checkpoint.save(run / "tokenizer", tokenizer, {"recipe": "tiny-face"})
    checkpoint.save(run / "transformer", transformer, {"data": {"source": str(faces), "images": 3}})
    words = [str(run), "--out", str(tmp_path / "b"), "--json", "--quiet"]
    assert export(words) == 1
    assert "sketch-tokenizer: missing, the transformer's condition is a sketch" in capsys.readouterr().err
    checkpoint.save(run / "sketch-tokenizer", sketch_tokenizer(), {})
    assert export(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["verified_on"] == f"3 images of {faces}"
    assert "sketch" in result["graphs"]
    assert "--mask mask.png --sketch" in result["next"]
    manifest = load_manifest(tmp_path / "b")
    assert manifest.kind == "sketch"
    assert manifest.verification["real_inputs"] == 3
    assert manifest.provenance["data"] == {"folder": "ffhq"}
