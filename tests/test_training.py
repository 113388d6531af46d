"""Both training loops: resuming, several processes, what is written, and checkpoints that are not right."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'train'")
pytest.importorskip("lightning_fabric", reason="needs the extra 'train'")

import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training import SIZE, TINY, make_dataset, tiny, tiny_tokenizer

import ilat_train
from ilat_runtime.errors import IlatError, InputError
from ilat_runtime.image_file import read_image
from ilat_train import checkpoint
from ilat_train.config import DataConfig, Recipe
from ilat_train.data.dataset import Batch, PoseDataset
from ilat_train.models import TSVQGAN
from ilat_train.run import RunOptions
from ilat_train.train_tokenizer import train_tokenizer
from ilat_train.train_transformer import encode, train_transformer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def data(folder: Path) -> PoseDataset:
    return PoseDataset(folder, DataConfig(), SIZE)


def options(folder: Path, **changes: Any) -> RunOptions:
    return RunOptions(folder, **({"accelerator": "cpu", "threads": 1, "progress": False, "log_every": 2} | changes))


def differing(a: Any, b: Any, where: str = "state") -> list[str]:
    """Where two states differ by so much as a bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [line for key in {**a, **b} for line in differing(a.get(key), b.get(key), f"{where}.{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [line for i, (x, y) in enumerate(zip(a, b, strict=True)) for line in differing(x, y, f"{where}.{i}")]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b
    return [] if same else [where]


def scalars(folder: Path, name: str) -> list[float]:
    record = EventAccumulator(str(folder / "logs"))
    record.Reload()
    return [event.value for event in record.Scalars(name)]


# Resuming


@pytest.mark.parametrize(
    "assignments",
    [(), ("tokenizer_training.adversarial=fixed", "tokenizer_training.precision=bf16-mixed")],
    ids=["adaptive", "fixed-bf16"],
)
def test_a_resumed_tokenizer_is_the_unbroken_one(tmp_path: Path, data: PoseDataset, assignments: list[str]) -> None:
    """Stopped before and after each kind of step: plain, quantized, restarted, adversarial, masked."""
    recipe = tiny(*assignments)
    train_tokenizer(recipe, data, options(tmp_path / "whole"))
    for stop in (2, 3, 5, 6, None):
        train_tokenizer(recipe, data, options(tmp_path / "parts", stop_at=stop, resume=stop != 2))
    whole, parts = (checkpoint.load_state(tmp_path / name) for name in ("whole", "parts"))
    assert whole["step"] == 8
    assert len(whole["optimizers"]) == 2
    assert whole["optimizers"][0]["state"]
    assert whole["usage"].any()
    assert differing(whole, parts) == []
    written, again = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert differing(written, again) == []
    assert differing(written, whole["model"]) == []


@pytest.mark.parametrize("pool", [0, 6])
def test_a_resumed_transformer_is_the_unbroken_one(tmp_path: Path, data: PoseDataset, pool: int) -> None:
    recipe = tiny(f"transformer_training.token_pool={pool}", "transformer_training.precision=bf16-mixed")
    for folder, stops in (("whole", (None,)), ("parts", (1, 4, None))):
        for stop in stops:
            run = options(tmp_path / folder, stop_at=stop, resume=stop != stops[0], sample_every=4)
            train_transformer(recipe, tiny_tokenizer(), data, run)
    whole, parts = (checkpoint.load_state(tmp_path / name) for name in ("whole", "parts"))
    assert whole["step"] == 6
    assert differing(whole, parts) == []


def test_a_finished_run_stays_what_it_is(tmp_path: Path, data: PoseDataset) -> None:
    train_tokenizer(TINY, data, options(tmp_path, stop_at=3))
    before = checkpoint.load_state(tmp_path)
    for stop in (0, 2, 3):
        train_tokenizer(TINY, data, options(tmp_path, stop_at=stop, resume=True))
        assert differing(before, checkpoint.load_state(tmp_path)) == []


def test_what_cannot_be_resumed(tmp_path: Path, data: PoseDataset) -> None:
    with pytest.raises(InputError, match=r"state\.pt: no such file; nothing to resume"):
        train_tokenizer(TINY, data, options(tmp_path, resume=True))
    train_tokenizer(TINY, data, options(tmp_path, stop_at=1))
    state = (tmp_path / "state.pt").read_bytes()
    other = tiny("tokenizer_training.rate=0.5")
    with pytest.raises(InputError, match=r"config\.training\.rate: 0\.001, expected 0\.5; resume with the recipe"):
        train_tokenizer(other, data, options(tmp_path, resume=True))
    with pytest.raises(InputError, match="seed: 0, expected 1"):
        train_tokenizer(TINY, data, options(tmp_path, resume=True, seed=1))
    with pytest.raises(InputError, match=r"holds a run already; --resume goes on with it, --force starts anew"):
        train_tokenizer(TINY, data, options(tmp_path))
    assert (tmp_path / "state.pt").read_bytes() == state
    train_tokenizer(TINY, data, options(tmp_path, force=True, stop_at=2))
    assert checkpoint.load_state(tmp_path)["step"] == 2


def test_a_state_from_before_an_option_existed(tmp_path: Path, data: PoseDataset) -> None:
    """Breaks when a new key of the configuration, at its default, keeps runs that began earlier from going on."""
    train_tokenizer(TINY, data, options(tmp_path, stop_at=1))
    state = checkpoint.load_state(tmp_path)
    del state["config"]["tokenizer"]["decoder_layout"], state["config"]["training"]["restart_every"]
    checkpoint.save_state(tmp_path, state)
    with pytest.raises(InputError, match=r"config\.training\.restart_every: 0, expected 3"):
        train_tokenizer(TINY, data, options(tmp_path, stop_at=2, resume=True))
    state["config"]["training"]["restart_every"] = 3
    checkpoint.save_state(tmp_path, state)
    train_tokenizer(TINY, data, options(tmp_path, stop_at=2, resume=True))
    assert checkpoint.load_state(tmp_path)["step"] == 2
    state["config"]["tokenizer"]["of_the_future"] = 1
    checkpoint.save_state(tmp_path, state)
    with pytest.raises(InputError, match=r"config\.tokenizer: of_the_future"):
        train_tokenizer(TINY, data, options(tmp_path, stop_at=2, resume=True))


def test_the_state_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "owned"),))

    for content in (pickle.dumps(Evil(), protocol=2), b"", b"text"):
        (tmp_path / "state.pt").write_bytes(content)
        with pytest.raises(InputError, match=r"state\.pt: damaged or not a training state"):
            checkpoint.load_state(tmp_path)
    torch.save({"step": Evil()}, tmp_path / "state.pt")
    with pytest.raises(InputError, match="damaged"):
        checkpoint.load_state(tmp_path)
    assert not (tmp_path / "owned").exists()
    torch.save([1, 2], tmp_path / "state.pt")
    with pytest.raises(InputError, match="no step in it"):
        checkpoint.load_state(tmp_path)


# Learning


def test_the_tokenizer_learns(tmp_path: Path, data: PoseDataset) -> None:
    recipe = tiny(
        "tokenizer_training.plain_steps=60", "tokenizer_training.masked_steps=20", "tokenizer_training.rate=0.003",
        "tokenizer_training.adversarial=none", "tokenizer_training.halve_every=100",
        "tokenizer_training.codebook_start=20", "tokenizer_training.restart_every=20",
    )  # fmt: skip
    model = train_tokenizer(recipe, data, options(tmp_path, sample_every=40, log_every=5))
    assert not model.training
    pixel = scalars(tmp_path, "pixel")
    assert len(pixel) == 16
    assert np.mean(pixel[-4:]) < 0.6 * pixel[0]
    assert np.isfinite(scalars(tmp_path, "steps_per_second")).all()
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["0000040.png", "0000080.png"]
    assert read_image(tmp_path / "samples" / "0000080.png").shape[1] > 3 * SIZE


def test_the_transformer_learns(tmp_path: Path, data: PoseDataset) -> None:
    recipe = tiny("transformer_training.steps=40", "transformer_training.rate=0.01", "transformer.dropout=0")
    train_transformer(recipe, tiny_tokenizer(), data, options(tmp_path, sample_every=40, log_every=5), {"margin": 1.3})
    nll = scalars(tmp_path, "nll")
    assert nll[0] == pytest.approx(np.log(24), rel=0.15)
    assert nll[-1] < 0.8 * nll[0]
    assert len(scalars(tmp_path, "accuracy")) == 8
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["0000040.png"]
    facts = checkpoint.read_config(tmp_path)["facts"]
    assert facts == {"recipe": "tiny", "steps": 40, "seed": 0, "data": {"margin": 1.3}}


def test_initial_weights(tmp_path: Path, data: PoseDataset) -> None:
    initial = tiny_tokenizer(1)
    before = {name: tensor.clone() for name, tensor in initial.state_dict().items()}
    train_tokenizer(TINY, data, options(tmp_path / "a", stop_at=0), initial)
    assert differing(before, load_file(tmp_path / "a" / "model.safetensors")) == []
    with pytest.raises(InputError, match=r"initial weights: tokenizer\.channels: 8, expected 16 by the recipe"):
        train_tokenizer(tiny("tokenizer.channels=16"), data, options(tmp_path / "b"), initial)
    with pytest.raises(InputError, match="configuration is not the recipe's"):
        train_transformer(tiny("tokenizer.channels=16"), initial, data, options(tmp_path / "b"))
    assert not (tmp_path / "b").exists()


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path, data: PoseDataset) -> None:
    recipe = tiny("tokenizer_training.rate=1e30", "tokenizer_training.adversarial=none")
    with pytest.raises(IlatError, match=r"step \d: \w+ is (nan|inf); start again with a lower rate"):
        train_tokenizer(recipe, data, options(tmp_path))


def test_a_device_that_is_not_here(tmp_path: Path, data: PoseDataset) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(InputError, match="1 x 'cuda'"):
        train_tokenizer(TINY, data, options(tmp_path, accelerator="cuda"))


# Two processes

SCRIPT = """
import os, sys
import torch
import training
from ilat_train import recipes, train_tokenizer, train_transformer
from ilat_train.cli import main

recipes.RECIPES["tiny"] = training.TINY
folder = sys.argv[1]

def kept(module, name):
    train = getattr(module, name)
    def wrapped(*args):
        model = train(*args)
        torch.save(model.state_dict(), f"{folder}/{name}-{os.environ['LOCAL_RANK']}.pt")
        return model
    setattr(module, name, wrapped)

kept(train_tokenizer, "train_tokenizer")
kept(train_transformer, "train_transformer")
common = ["--data", sys.argv[2], "--out", f"{folder}/run", "--devices", "2", "--accelerator", "cpu", "--threads", "1"]
code = main(["tokenizer", "--recipe", "tiny", *common, "--stop-at", "5", "--json", "--quiet"])
code = code or main(["tokenizer", "--resume", *common, "--json", "--quiet"])
code = code or main(["transformer", *common, "--json", "--quiet"])
sys.exit(code)
"""


def test_two_processes(tmp_path: Path, folder: Path, data: PoseDataset) -> None:
    """The command line on two CPU processes: equal weights on both, other ones than one process makes."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    here = Path(__file__).parent
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "WORLD_SIZE", "NODE_RANK")}
    environment["PYTHONPATH"] = os.pathsep.join([str(here.parent), str(here), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(folder)],
        capture_output=True, text=True, timeout=240, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # The second process is silent.
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(item["steps"], item["total_steps"]) for item in printed] == [(5, 8), (8, 8), (6, 6)]
    for name in ("tokenizer", "transformer"):
        first, second = (torch.load(tmp_path / f"train_{name}-{rank}.pt", weights_only=True) for rank in (0, 1))
        assert differing(first, second) == []
        assert differing(first, load_file(tmp_path / "run" / name / "model.safetensors")) == []
    train_tokenizer(TINY, data, options(tmp_path / "alone"))
    alone, together = (load_file(tmp_path / run / "model.safetensors") for run in ("alone", "run/tokenizer"))
    assert alone.keys() == together.keys()
    assert differing(alone, together) != []


# Checkpoints


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "saved", tiny_tokenizer(), {"steps": 1})
    return tmp_path / "saved"


def rewrite(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_load(saved: Path, tmp_path: Path) -> None:
    model = ilat_train.load(saved)
    assert not model.training
    assert differing(model.state_dict(), tiny_tokenizer().state_dict()) == []
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]
    with pytest.raises(InputError, match="kind: a tokenizer, expected a transformer"):
        checkpoint.load_transformer(saved)
    with pytest.raises(AttributeError):
        _ = ilat_train.other  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("to_codebook.weight"), r"parameter to_codebook\.weight is missing"),
        (lambda t: t.update(surplus=torch.zeros(1)), "parameter surplus is not one of this model"),
        (
            lambda t: t.update({"quantizer.codebook": torch.zeros(3, 8)}),
            r"parameter quantizer\.codebook has shape \(3, 8\), expected \(24, 8\)",
        ),
    ],
    ids=["missing", "surplus", "shape"],
)
def test_a_wrong_parameter_is_named(saved: Path, change: Any, says: str) -> None:
    rewrite(saved, change)
    with pytest.raises(InputError, match=r"model\.safetensors: " + says):
        ilat_train.load(saved)


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04N.", pickle.dumps({"a": 1}), None], ids=["empty", "pickle", "dict", "cut"]
)
def test_damaged_weights(saved: Path, content: bytes | None) -> None:
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100] if content is None else content)
    with pytest.raises(InputError, match=r"model\.safetensors: not a safetensors file"):
        ilat_train.load(saved)
    file.unlink()
    with pytest.raises(InputError, match=r"model\.safetensors: no such file"):
        ilat_train.load(saved)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": "x"}, "format: expected 'ilat-checkpoint'"),
        ({"version": 9}, "version: 9, this version reads 1"),
        ({"kind": "vae"}, "kind: 'vae'"),
        ({"config": {"image_sise": 3}}, "config: image_sise: Extra inputs"),
        ({"config": {"image_size": "big"}}, "config: image_size"),
        ({"config": {"image_size": 100}}, "multiple of the factor 16"),
        ({"config": 3}, "config"),
    ],
)
def test_a_wrong_configuration_is_named(saved: Path, change: dict[str, Any], says: str) -> None:
    file = saved / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=rf"config\.json: {says}|config\.json: .*{says}"):
        ilat_train.load(saved)


def test_not_a_checkpoint(saved: Path) -> None:
    (saved / "config.json").write_text("[]")
    with pytest.raises(InputError, match="format: expected"):
        ilat_train.load(saved)
    for damaged in ("{", "[" * 200_000):
        (saved / "config.json").write_text(damaged)
        with pytest.raises(InputError, match="not a JSON file"):
            ilat_train.load(saved)
    shutil.rmtree(saved)
    with pytest.raises(InputError, match="expected a checkpoint folder"):
        ilat_train.load(saved)


# Recipes


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("tokenizer_training.rates=1", "--set tokenizer_training.rates: no such key; expected one of plain_steps"),
        ("trainer.rate=1", "--set trainer.rate: no such key"),
        ("tokenizer_training.rate", "expected KEY=VALUE"),
        ("tokenizer_training.rate=fast", "tokenizer_training.rate: Input should be a valid number"),
        ("tokenizer_training.rate=NaN", "tokenizer_training.rate: Input should be a finite number"),
        ("tokenizer_training.halve_every=0", "halve_every"),
        ("tokenizer_training.precision=64", "precision"),
        ("tokenizer_training.betas=[0.5,1.0]", "betas"),
        ('tokenizer_training.masks=["stripes"]', "masks"),
        ("data.scale=[2,1]", "scale .* the smaller first"),
        ("tokenizer.codebook_size=64", "transformer.codebook_size must equal tokenizer.codebook_size"),
        ("tokenizer.image_size=64", "transformer.image_tokens 16 must be the tokenizer's 8² = 64"),
        ("tokenizer.multipliers=[1,0,2,2]", "multipliers"),
        ("transformer.condition_vocabulary=3", "transformer.condition_vocabulary must hold"),
        ("task=images", "'skeleton' needs landmarks"),
    ],
)
def test_a_wrong_assignment_is_named(assignment: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        tiny(assignment)


def test_assignments_take_json_and_words() -> None:
    recipe = tiny('tokenizer_training.masks=["box"]', "transformer.numbering=vanilla", "data.dilation=0.2")
    assert recipe.tokenizer_training.masks == ("box",)
    assert (recipe.transformer.numbering, recipe.data.dilation) == ("vanilla", 0.2)
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


def test_labels_without_a_mask() -> None:
    """Breaks when the plain labels see the mask, or when the known tokens see what is under it."""
    torch.manual_seed(0)
    tokenizer = TSVQGAN(tiny().tokenizer).eval()
    with torch.no_grad():
        tokenizer.quantizer.codebook.normal_()
    images = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    batch = Batch(images, images, torch.zeros(2, 2, 13, 3), torch.zeros(2))
    mask = torch.zeros(2, 1, SIZE, SIZE, dtype=torch.bool)
    mask[..., 8:24, 8:24] = True
    plain, full = (encode(tokenizer, batch, mask, labels=labels) for labels in ("plain", "two-stream"))
    hidden = plain.token_mask
    assert torch.equal(plain.target[hidden], tokenizer.tokens(images)[hidden])
    assert torch.equal(plain.target[~hidden], full.target[~hidden])
    assert not torch.equal(full.target, plain.target)
