"""``ilat-train tokenizer`` and ``ilat-train transformer``: what they write, what they say, and wrong use."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'train'")
pytest.importorskip("lightning_fabric", reason="needs the extra 'train'")

import torch
from importing import released, small
from training import TINY, make_dataset, tiny

from ilat_train import checkpoint, recipes
from ilat_train.cli import main
from ilat_train.config import Recipe, load_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(autouse=True)
def tiny_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(recipes.RECIPES, "tiny", TINY)


def command(name: str, folder: Path, out: Path, *flags: str) -> list[str]:
    common = ["--accelerator", "cpu", "--threads", "1"]
    return [name, "--data", str(folder), "--out", str(out), *common, *flags]


def test_from_a_data_set_to_both_models(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command that is printed as the next one leads on, to the export."""
    run = tmp_path / "my run"
    tokenizer = command("tokenizer", folder, run, "--recipe", "tiny", "--set", "tokenizer_training.rate=0.002")
    assert main([*tokenizer, "--stop-at", "3", "--sample-every", "2", "--seed", "7"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"{run / 'tokenizer'}: 3 of 8 steps, 0.1 million parameters, ")
    following = shlex.split(printed[-1].removeprefix("next: "))
    assert following[:2] == ["ilat-train", "tokenizer"]
    assert following[-3:] == ["--resume", "--seed", "7"]
    assert load_json(Recipe, run / "recipe.json") == tiny("tokenizer_training.rate=0.002")
    assert (run / "tokenizer" / "samples" / "0000002.png").is_file()
    assert list((run / "tokenizer" / "logs").iterdir())

    assert main([*following[1:], "--accelerator", "cpu", "--threads", "1", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    weights = run / "tokenizer" / "model.safetensors"
    assert answer.pop("seconds") > 0
    assert answer == {
        "out": str(run / "tokenizer"),
        "steps": 8,
        "total_steps": 8,
        "parameters": sum(p.numel() for p in checkpoint.load(run / "tokenizer").parameters()),
        "bytes": weights.stat().st_size,
        "next": f"ilat-train transformer --data {folder} --out '{run}'",
    }

    following = shlex.split(answer["next"])
    assert main([*following[1:], "--accelerator", "cpu", "--threads", "1", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    facts = checkpoint.read_config(run / "transformer")["facts"]
    assert (facts["recipe"], facts["steps"], facts["data"]["dilation"]) == ("tiny", 6, 0.09)
    checkpoint.load_transformer(run / "transformer")

    assert main([*following[1:], "--resume", "--accelerator", "cpu", "--threads", "1"]) == 0
    assert f"next: ilat-export '{run}' --out 'bundles/my run'" in capsys.readouterr().out


def test_a_variant_with_the_same_tokenizer(tmp_path: Path, folder: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(command("tokenizer", folder, first, "--recipe", "tiny", "--stop-at", "1", "--quiet")) == 0
    vanilla = ["--set", "transformer.numbering=vanilla", "--stop-at", "1", "--quiet"]
    assert main(command("transformer", folder, second, "--tokenizer", str(first / "tokenizer"), *vanilla)) == 0
    for name in ("config.json", "model.safetensors"):
        assert (first / "tokenizer" / name).read_bytes() == (second / "tokenizer" / name).read_bytes()
    assert checkpoint.load_transformer(second / "transformer").config.numbering == "vanilla"
    assert load_json(Recipe, second / "recipe.json").transformer.numbering == "vanilla"


def test_initial_weights(tmp_path: Path, folder: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(command("tokenizer", folder, first, "--recipe", "tiny", "--stop-at", "1", "--quiet")) == 0
    init = ["--init", str(first / "tokenizer"), "--stop-at", "0", "--quiet", "--seed", "5"]
    assert main(command("tokenizer", folder, second, "--recipe", "tiny", *init)) == 0
    name = "tokenizer/model.safetensors"
    assert (first / name).read_bytes() == (second / name).read_bytes()


def test_fine_tuning_from_an_import(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe says whether the model leaks from now on; the weights are the import's."""
    torch.save(released(small("taming-vqgan")), tmp_path / "last.ckpt")
    init, run = tmp_path / "imported", tmp_path / "run"
    assert main(["import", str(tmp_path / "last.ckpt"), "--format", "taming-vqgan", "--out", str(init), "--quiet"]) == 0
    assert checkpoint.load_tokenizer(init).config.leaky
    keys = {"channels": 32, "multipliers": [1, 2, 4], "norm_groups": 32, "latent_channels": 6, "codebook_size": 20}
    keys |= {"codebook_channels": 5}
    sizes = [f"tokenizer.{key}={value}" for key, value in keys.items()]
    sizes += ["transformer.image_tokens=64", "transformer.codebook_size=20"]
    flags = [word for size in sizes for word in ("--set", size)]
    start = command("tokenizer", folder, run, "--recipe", "tiny", "--init", str(init), *flags, "--quiet")
    assert main([*start, "--stop-at", "0"]) == 0
    config = checkpoint.load_tokenizer(run / "tokenizer").config
    assert (config.leaky, config.image_size) == (False, 32)
    name = "model.safetensors"
    assert (run / "tokenizer" / name).read_bytes() == (init / name).read_bytes()
    assert main([*start, "--force", "--stop-at", "8"]) == 0
    assert (run / "tokenizer" / name).read_bytes() != (init / name).read_bytes()
    assert main([*start, "--force", "--set", "tokenizer.norm=instance"]) == 1
    assert 'initial weights: tokenizer.norm: "group", expected "instance" by the recipe' in capsys.readouterr().err


def test_a_run_is_not_overwritten(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = command("tokenizer", folder, tmp_path, "--recipe", "tiny", "--stop-at", "1", "--quiet")
    assert main(again) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main([*again, "--set", "tokenizer_training.rate=0.5"]) == 1
    assert "holds a run already; --resume goes on with it, --force starts anew" in capsys.readouterr().err
    assert main([*again, "--set", "tokenizer_training.rate=0.5", "--resume"]) == 1
    assert "state.pt: config.training.rate: 0.001, expected 0.5" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert main([*again, "--force"]) == 0


def test_images(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cv2.imwrite(str(tmp_path / "one.png"), np.full((40, 40, 3), 90, np.uint8))
    flags = ["--recipe", "tiny", "--set", "task=images", "--set", 'tokenizer_training.masks=["box"]', "--quiet"]
    flags += ["--set", 'transformer_training.masks=["box"]']
    run = tmp_path / "run"
    assert main(command("tokenizer", tmp_path, run, *flags)) == 0
    assert main(command("transformer", tmp_path, run, "--quiet")) == 1
    assert "sketch-tokenizer: missing; train it with" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tokenizer", "transformer"])
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--recipe", "tinny"], "--recipe"),
        ([], "--recipe: missing"),
        (["--recipe", "tiny", "--set", "tokenizer.colour=1"], "--set tokenizer.colour: no such key"),
        (["--recipe", "tiny", "--set", "tokenizer.channels"], "expected KEY=VALUE"),
        (["--recipe", "tiny", "--set", "transformer.heads=5"], "width 16 must be a multiple of heads 5"),
        (["--recipe", "tiny", "--resume", "--force"], "--force"),
        (["--recipe", "tiny", "--seed", "-1"], "expected a whole number of at least 0"),
        (["--recipe", "tiny", "--devices", "0"], "expected a whole number of at least 1"),
        (["--recipe", "tiny", "--threads", "many"], "expected a whole number"),
        (["--recipe", "tiny", "--accelerator", "tpu"], "--accelerator"),
        (["--recipe", "tiny", "--stop-after", "3"], "did you mean --stop-at"),
    ],
)
def test_wrong_use_ends_with_2(
    name: str, flags: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main([name, "--data", str(tmp_path), "--out", str(tmp_path / "run"), *flags])
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_init_does_not_go_with_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenizer", "--data", "d", "--out", str(tmp_path), "--init", "x", "--resume"]) == 2
    assert "--init" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "flags", "says"),
    [
        ("tokenizer", [], "dataset.json: no such file; expected a folder made by `ilat-train data pose-video`"),
        ("tokenizer", ["--init", "none"], "none/config.json: no such file; expected a checkpoint folder"),
        ("transformer", [], "tokenizer: missing; train it with: ilat-train tokenizer --out"),
        ("transformer", ["--tokenizer", "none"], "none/config.json: no such file; expected a checkpoint folder"),
        ("tokenizer", ["--resume"], "dataset.json: no such file"),
    ],
)
def test_what_is_missing_is_one_line(
    name: str, flags: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(name, tmp_path, tmp_path / "run", "--recipe", "tiny", *flags)) == 1
    error = capsys.readouterr().err
    assert says in error
    assert error.startswith("ilat-train: error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_damaged_recipe_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.json").write_text('{"name": "x", "colour": 1}')
    assert main(command("tokenizer", tmp_path, tmp_path)) == 1
    assert "recipe.json: colour: Extra inputs" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tokenizer", "transformer", "eval"])
def test_help_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    example = text.partition(f"example: ilat-train {name} ")[2]
    assert example
    assert all(flag in text.partition("options:")[2] for flag in shlex.split(example) if flag.startswith("--"))
