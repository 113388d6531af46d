"""``ilat-train eval``: the measures are of what the runtime makes, on the crops that training would cut."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'train'")

import torch
from editing import changed_copy
from training import SIZE, make_dataset, tiny_tokenizer

from ilat_runtime import Editor
from ilat_runtime.crop import Crop
from ilat_runtime.errors import InputError
from ilat_runtime.image_file import encoded, read_image
from ilat_train import assets, checkpoint
from ilat_train.cli import main
from ilat_train.config import DataConfig
from ilat_train.data.dataset import PoseDataset, to_bytes
from ilat_train.evaluation import evaluate as work
from ilat_train.evaluation.evaluate import Evaluation, Example, evaluate
from ilat_train.evaluation.metrics import measure, measure_all
from ilat_train.losses.lpips import Lpips

PAIRS = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def data(folder: Path) -> PoseDataset:
    return PoseDataset(folder, DataConfig(), SIZE)


@pytest.fixture(scope="module")
def some(data: PoseDataset) -> list[Example]:
    return work.examples(data, data.held_out_pairs(PAIRS))


@pytest.fixture(scope="module")
def perceptual() -> Lpips:
    torch.manual_seed(0)
    return Lpips("alex")


def truth(some: Sequence[Example]) -> list[np.ndarray]:
    return [example.target for example in some]


def test_examples_are_what_training_sees(data: PoseDataset, some: list[Example]) -> None:
    for example, pair in zip(some, data.held_out_pairs(PAIRS), strict=True):
        assert (example.pair.clip, example.pair.crop) == (pair.clip, pair.crop)
        batch = data.load([pair])
        np.testing.assert_array_equal(example.reference, to_bytes(batch.condition[0]))
        np.testing.assert_array_equal(example.target, to_bytes(batch.target[0]))
        np.testing.assert_array_equal(example.mask, batch.skeleton_mask()[0, 0].numpy())
        np.testing.assert_allclose(example.poses[..., :2] / SIZE, batch.poses[0, ..., :2].numpy(), atol=1e-6)


def test_the_rows_that_need_no_model(some: list[Example]) -> None:
    copied, inpainted = work.copy_reference(some), work.inpaint(some)
    for example, copy, filled in zip(some, copied, inpainted, strict=True):
        np.testing.assert_array_equal(copy, example.reference)
        np.testing.assert_array_equal(filled[~example.mask], example.reference[~example.mask])
        assert (filled[example.mask] != example.reference[example.mask]).any()


def test_a_bundle_is_measured_through_the_runtime(some: list[Example], pose_bundle: Path) -> None:
    editor = Editor(pose_bundle, threads=1)
    images = work.bundle_method(editor)(some)
    for example, image in zip(some[:3], images, strict=False):
        alone = editor.edit(
            example.reference, pose=example.poses[1], mask=example.mask, reference_pose=example.poses[0],
            crop=Crop(0, 0, SIZE),
        )  # fmt: skip
        np.testing.assert_array_equal(image, alone.image)
        np.testing.assert_array_equal(image[~example.mask], example.reference[~example.mask])
        assert (image[example.mask] != example.reference[example.mask]).any()


def test_a_bundle_that_takes_a_mask_only(some: list[Example], mask_bundle: Path) -> None:
    for example, image in zip(some[:2], work.bundle_method(Editor(mask_bundle, threads=1))(some[:2]), strict=True):
        np.testing.assert_array_equal(image[~example.mask], example.reference[~example.mask])


def test_true_tokens_are_the_targets_in_the_references_surroundings(some: list[Example]) -> None:
    tokenizer = tiny_tokenizer()
    images = work.true_tokens_method(tokenizer)(some)
    for example, image in zip(some, images, strict=True):
        np.testing.assert_array_equal(image[~example.mask], example.reference[~example.mask])
    # The target decides what is under the mask, and nothing else of it counts.
    first = some[0]
    other = Example(first.pair, first.reference, 255 - first.target, first.mask, first.poses)
    outside = np.where(first.mask[..., None], first.target, first.reference)
    same = Example(first.pair, first.reference, outside, first.mask, first.poses)
    decoded = work.true_tokens_method(tokenizer)([first, other, same])
    np.testing.assert_array_equal(decoded[0], images[0])
    assert (decoded[1] != decoded[0]).any()


def test_numbers_are_the_measures_of_the_images(some: list[Example], perceptual: Lpips) -> None:
    found = evaluate(some, {work.COPY: work.copy_reference, "truth": truth}, perceptual)
    for example, row in zip(some, found.scores[work.COPY], strict=True):
        assert row == pytest.approx(measure(example.reference, example.target, example.mask, perceptual), rel=1e-4)
    means = found.means(work.COPY)
    assert means["mae_mask"] == pytest.approx(np.mean([row["mae_mask"] for row in found.scores[work.COPY]]))
    assert means["mae"] < means["mae_mask"]
    best = found.means("truth")
    assert (best["psnr"], best["psnr_mask"], best["mae"], best["mae_mask"]) == (math.inf, math.inf, 0, 0)
    assert (best["lpips"], best["lpips_mask"]) == (pytest.approx(0, abs=1e-9), pytest.approx(0, abs=1e-9))
    assert best["ssim_mask"] == pytest.approx(1)
    record = found.record()
    assert record["methods"]["truth"]["mean"]["psnr"] is None
    json.dumps(record, allow_nan=False)


def test_many_images_against_one(some: list[Example], perceptual: Lpips) -> None:
    example = some[0]
    images = [example.reference, example.target, 255 - example.target]
    together = measure_all(images, example.target, example.mask, perceptual)
    for image, row in zip(images, together, strict=True):
        assert row == pytest.approx(measure(image, example.target, example.mask, perceptual), rel=1e-4, abs=1e-7)


def test_the_table(some: list[Example], perceptual: Lpips) -> None:
    found = evaluate(some, {work.COPY: work.copy_reference, "truth": truth}, perceptual)
    lines = found.table().splitlines()
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|") == 10
    assert lines[2].startswith(f"| {work.COPY} | {found.means(work.COPY)['psnr_mask']:.2f} | ")
    assert "LPIPS ↓ (mask)" in lines[0]
    assert f"{PAIRS} held-out pairs, crops of {SIZE}×{SIZE} pixels" in lines[-1]
    assert "LPIPS: AlexNet" in lines[-1]
    without = evaluate(some, {work.COPY: work.copy_reference})
    assert "LPIPS" not in without.table()


def test_the_sheet_stays_small(some: list[Example]) -> None:
    noise = [np.random.default_rng(i).integers(0, 256, (256, 256, 3), np.uint8) for i in range(PAIRS)]
    mask = np.kron(some[0].mask, np.ones((8, 8), bool))
    large = [Example(some[0].pair, image, image, mask, some[0].poses) for image in noise]
    images = dict.fromkeys(("a", "b", "c"), noise)
    sheet = Evaluation(256, None, large, {}, images).sheet()
    assert len(encoded(sheet, ".jpg")) <= work.SHEET_BYTES
    small = evaluate(some[:2], {work.COPY: work.copy_reference, "truth": truth}).sheet()
    assert small.shape[1] > small.shape[0]


def test_bundles_of_different_rules_are_not_compared(tmp_path: Path, pose_bundle: Path, mask_bundle: Path) -> None:
    editors = {"one": Editor(pose_bundle, threads=1), "two": Editor(mask_bundle, threads=1)}
    assert work.common_rule(editors) == (32, 1.3, 0.09)
    other = changed_copy(pose_bundle, tmp_path / "other", lambda manifest: manifest["crop"].update(margin=1.5))
    editors["three"] = Editor(other, threads=1)
    with pytest.raises(InputError, match=r"crop margin differs \(one: 1\.3, three: 1\.5\)"):
        work.common_rule(editors)


def test_no_pairs() -> None:
    with pytest.raises(InputError, match="at least one pair"):
        evaluate([], {work.COPY: work.copy_reference})


# The command line


def test_eval_writes_table_numbers_and_sheet(
    tmp_path: Path, folder: Path, pose_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    checkpoint.save(run / "tokenizer", tiny_tokenizer(), {})
    command = ["eval", "--data", str(folder), "--bundle", f"ours={pose_bundle}", "--pairs", "4", "--lpips", "none"]
    command += ["--threads", "1", "--checkpoint", str(run)]
    assert main([*command, "--out", str(out), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert list(answer["methods"]) == [work.COPY, work.TELEA, "ours", work.TRUE_TOKENS]
    assert len(answer["pairs"]) == len(answer["methods"]["ours"]["each"]) == 4
    assert sorted(path.name for path in out.iterdir()) == ["results-sheet.jpg", "results-table.md", "results.json"]
    numbers = json.loads((out / "results.json").read_text())
    assert {key: answer[key] for key in numbers} == numbers
    assert read_image(answer["files"]["results-sheet.jpg"]).ndim == 3
    first = {path.name: path.read_bytes() for path in out.iterdir()}

    assert main([*command, "--out", str(out)]) == 1
    assert "--force" in capsys.readouterr().err
    assert main([*command, "--out", str(out), "--force"]) == 0
    assert "| ours |" in capsys.readouterr().out
    # The same bytes: nothing in it depends on chance or the time.
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        ([], 2, "--bundle"),
        (["--bundle", "x"], 2, "--bundle x: expected NAME=DIR"),
        (["--bundle", "a=x", "--bundle", "a=y"], 2, "'a' is given twice"),
        (["--bundle", "a=none"], 1, "none"),
        (["--bundle", "a=none", "--pairs", "0"], 2, "--pairs"),
    ],
)
def test_wrong_use(flags: list[str], code: int, says: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        result = main(["eval", "--data", str(folder), *flags])
    except SystemExit as end:
        result = end.code
    assert result == code
    assert says in capsys.readouterr().err


def test_without_lpips_weights_the_command_says_what_to_do(
    tmp_path: Path, folder: Path, pose_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(assets.CACHE_VARIABLE, str(tmp_path))
    assert main(["eval", "--data", str(folder), "--bundle", f"ours={pose_bundle}"]) == 1
    assert "ilat-train fetch lpips" in capsys.readouterr().err


def test_names_of_other_rows_are_taken(folder: Path, pose_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--data", str(folder), "--bundle", f"{work.COPY}={pose_bundle}", "--lpips", "none"]) == 2
    assert "names of other rows" in capsys.readouterr().err


def test_a_checkpoint_of_another_size(
    tmp_path: Path, folder: Path, pose_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ilat_train.models import TSVQGAN

    checkpoint.save(tmp_path, TSVQGAN(tiny_tokenizer().config.model_copy(update={"image_size": 64})), {})
    command = ["eval", "--data", str(folder), "--bundle", f"ours={pose_bundle}", "--lpips", "none"]
    assert main([*command, "--checkpoint", str(tmp_path)]) == 1
    assert "images of 64 pixels, but the bundles' are of 32" in capsys.readouterr().err
    shutil.rmtree(tmp_path)
