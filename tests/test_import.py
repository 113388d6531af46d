"""Import of released checkpoints: every parameter arrives, and whatever is wrong with a file is one line."""

from __future__ import annotations

import copy
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'train'")

from importing import released, small
from safetensors.torch import save_file
from torch import Tensor

import ilat_train
from ilat_runtime.errors import InputError
from ilat_train.cli import main
from ilat_train.importing.convert import convert, import_checkpoint
from ilat_train.importing.formats import FORMATS, recognise
from ilat_train.importing.names import parts
from ilat_train.models import TSVQGAN

EVERY = pytest.mark.parametrize("form", list(FORMATS))


@EVERY
def test_round_trip(form: str, tmp_path: Path) -> None:
    """Breaks when a parameter is lost, changed or put in another's place between the released file and the graph."""
    pytest.importorskip("onnxscript", reason="needs the extra 'export'")
    import onnx

    from ilat_export.parity import OnnxNetwork

    model = small(form)
    parameters = released(model)
    torch.save({"state_dict": parameters}, tmp_path / "released.ckpt")
    (tmp_path / "config.json").write_text(json.dumps({"n_head": 1} if "z_bias" in parameters else RESOLUTION))
    out = tmp_path / "ours"
    flags = ["--format", form, "--config", str(tmp_path / "config.json"), "--out", str(out), "--quiet"]
    assert main(["import", str(tmp_path / "released.ckpt"), *flags]) == 0
    loaded = ilat_train.load(out)
    assert loaded.config == model.config
    assert not loaded.training
    again = released(loaded)
    assert again.keys() == parameters.keys()
    for name, tensor in parameters.items():
        assert torch.equal(again[name], tensor), name

    network = OnnxNetwork(loaded, tmp_path, threads=1)
    if isinstance(loaded, TSVQGAN):
        image = torch.zeros(1, loaded.config.in_channels, 16, 16).numpy()
        latent, _ = network.encode(image, None)
        network.decode(latent)
    else:
        network._transformer()
    weights: dict[int, list[Tensor]] = {}
    for file in tmp_path.glob("*.onnx"):
        for weight in onnx.load(file).graph.initializer:
            weights.setdefault(len(weight.dims), []).append(torch.from_numpy(onnx.numpy_helper.to_array(weight).copy()))
    for name, parameter in loaded.state_dict().items():
        # The exporter renames some, and turns some matrices round; their values are what counts.
        turned = (parameter, parameter.T if parameter.dim() == 2 else parameter)
        found = (torch.equal(each, way) for each in weights[parameter.dim()] for way in turned)
        assert any(found), name


RESOLUTION = {"ddconfig": {"resolution": 16}}


@EVERY
def test_a_format_is_recognised_and_another_refused(form: str) -> None:
    parameters = released(small(form))
    assert recognise(parameters) == form
    for other in FORMATS:
        if other != form:
            message = f"not a checkpoint of format '{other}': its parameters are those of '{form}'"
            with pytest.raises(InputError, match=message):
                convert(parameters, other)


@EVERY
def test_wrong_parameters(form: str) -> None:
    """One that is missing, one too many, another shape, another type: each is named."""
    parameters = released(small(form))
    config = {"n_head": 1}
    gone = next(name for name in parameters if "conv_out" in name or "dec.dense" in name)
    for change, message in (
        ({gone: None}, f"parameter {gone} is missing"),
        ({"encoder.extra.weight": torch.zeros(2)}, "parameter encoder.extra.weight is not one of this model"),
        ({gone: parameters[gone].long()}, f"parameter {gone} is torch.int64, expected floating point"),
        ({gone: parameters[gone][..., None]}, rf"parameter {gone} has shape \(.*\), expected"),
    ):
        changed = {name: tensor for name, tensor in (parameters | change).items() if tensor is not None}
        with pytest.raises(InputError, match=message):
            convert(changed, form, config)


def test_imported_tokenizers_say_that_they_leak() -> None:
    """Here a pixel under the mask changes known latents: the normalisation is over all positions, as it was trained."""
    from ilat_export.bundle import Facts, describe

    tokenizer = convert(released(small("ilat-face")), "ilat-face", RESOLUTION).model
    assert isinstance(tokenizer, TSVQGAN)
    assert tokenizer.config.leaky
    image, mask = torch.rand(1, 3, 16, 16), torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    mask[..., :8, :8] = True
    with torch.inference_mode():
        before, known = tokenizer.encode(image, mask), ~tokenizer.token_mask(mask)
        one_stream = tokenizer.encode(image, mask, both_streams=False)
        after = tokenizer.encode(torch.where(mask, 1 - image, image), mask)
    assert torch.equal(before, one_stream)
    assert not torch.equal(before[known.expand_as(before)], after[known.expand_as(after)])
    transformer = small("ilat-transformer", condition_vocabulary=20)
    sketches = small("ilat-sketch")
    described = describe(tokenizer, transformer, Facts(name="face"), "float32", sketches)
    assert not described.leak_free


# --- files ---


def wrapped(parameters: dict[str, Tensor]) -> list[dict[str, Any]]:
    """The same model as trainers keep it."""
    extra = {"loss.discriminator.main.0.weight": torch.ones(2), "loss.logvar": torch.zeros(())}
    return [
        parameters,
        {"state_dict": parameters | extra, "epoch": 3, "optimizer_states": [{"state": {0: {"step": torch.ones(())}}}]},
        {"g_model": parameters, "d_model": {"conv.weight": torch.ones(1)}, "iteration": 7},
        {"model": {"state_dict": {f"module.{name}": tensor for name, tensor in parameters.items()}}},
        {f"g_model.{name}": tensor for name, tensor in parameters.items()} | {"d_model.conv.weight": torch.ones(1)},
    ]


PASSED_OVER = [{}, {"epoch": 0, "optimizer_states": 1, "loss": 2}, {"d_model": 1, "iteration": 0}, {}, {"d_model": 1}]


@pytest.mark.parametrize("kind", ["archive", "legacy"])
@pytest.mark.parametrize("number", range(5))
def test_wrapping(number: int, kind: str, tmp_path: Path) -> None:
    model = small("taming-vqgan")
    file = tmp_path / "last.ckpt"
    torch.save(wrapped(released(model))[number], file, _use_new_zipfile_serialization=kind == "archive")
    found = import_checkpoint(file, "taming-vqgan")
    assert found.passed_over == PASSED_OVER[number]
    assert found.assumed == {"image_size": 256}
    for name, parameter in model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], parameter)


def test_safetensors_and_half_precision(tmp_path: Path) -> None:
    parameters = {name: tensor.half() for name, tensor in released(small("ilat-sketch")).items()}
    save_file(parameters, tmp_path / "sketch.safetensors")
    found = released(import_checkpoint(tmp_path / "sketch.safetensors", "ilat-sketch").model)
    for name, tensor in parameters.items():
        assert torch.equal(found[name], tensor.float())


def test_tables_with_two_names() -> None:
    """Both are there and equal, or either; buffers and the condition's own bias are passed over."""
    parameters = released(small("ilat-transformer"))
    config = {"n_head": 1}
    masks = {"blocks.0.attn.mask": torch.ones(1, 1, 34, 34)}
    expected = convert(parameters, "ilat-transformer", config).model.state_dict()
    for change in (masks, {"z_emb.weight": None}, {"z_dec.weight": None}, {"c_bias": None}):
        given = {name: tensor for name, tensor in (parameters | change).items() if tensor is not None}
        found = convert(given, "ilat-transformer", config)
        assert all(torch.equal(found.model.state_dict()[name], expected[name]) for name in expected)
    assert convert(parameters | masks, "ilat-transformer", config).passed_over == {
        "z_emb.weight": 1, "c_emb.weight": 1, "c_bias": 1, "blocks.0.attn.mask": 1,
    }  # fmt: skip
    with pytest.raises(InputError, match=r"parameter z_emb\.weight differs from z_dec\.weight"):
        convert(parameters | {"z_emb.weight": parameters["z_emb.weight"] + 1}, "ilat-transformer", config)


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("kind", ["archive", "legacy", "pickle"])
def test_code_is_refused_and_not_run(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when a checkpoint is unpickled, be it only to look at it."""
    file, trap = tmp_path / "evil.ckpt", tmp_path / "trap"
    content = {"state_dict": released(small("ilat-face")), "callbacks": Evil(trap)}
    if kind == "pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=kind == "archive")
    assert main(["import", str(file), "--format", "ilat-face", "--out", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ilat-train: error: {file}: refused: it ")
    assert "never run" in line
    assert not trap.exists()
    assert not (tmp_path / "out").exists()
    # The trap works.
    pickle.loads(pickle.dumps(Evil(trap)))  # noqa: S301
    assert trap.exists()


def test_a_trainers_bookkeeping_is_read_without_its_package(tmp_path: Path) -> None:
    """CompVis's checkpoints name Lightning's classes; nothing of that name is imported or made."""
    import sys
    import types

    package = types.ModuleType("pytorch_lightning")
    package.Checkpoint = type("Checkpoint", (), {"__module__": "pytorch_lightning"})  # type: ignore[attr-defined]
    sys.modules["pytorch_lightning"], before = package, sys.modules.get("pytorch_lightning")
    model = small("taming-vqgan")
    try:
        callbacks = {package.Checkpoint: {"best": torch.ones(())}, "object": package.Checkpoint()}
        torch.save({"state_dict": released(model), "callbacks": callbacks}, tmp_path / "last.ckpt")
    finally:
        del sys.modules["pytorch_lightning"]
        if before is not None:
            sys.modules["pytorch_lightning"] = before
    found = import_checkpoint(tmp_path / "last.ckpt", "taming-vqgan")
    assert found.passed_over == {"callbacks": 1}


@pytest.mark.parametrize("length", [0, 5, 300, 20_000, -200])
def test_a_truncated_file(length: int, tmp_path: Path) -> None:
    file = tmp_path / "released.ckpt"
    for write in (torch.save, lambda content, path: save_file(content, path)):
        write({name: tensor.clone() for name, tensor in released(small("ilat-sketch")).items()}, file)
        file.write_bytes(file.read_bytes()[:length])
        with pytest.raises(InputError, match=r"released\.ckpt: (damaged|refused)"):
            import_checkpoint(file, "ilat-sketch")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "holds a list, expected a dictionary of parameters"),
        ({"state_dict": {}}, "holds no parameters"),
        ({"state_dict": {"a": torch.ones(1)}, "model": {"b": torch.ones(1)}}, "holds both 'state_dict' and 'model'"),
        ({"a": torch.ones(1)}, r"parameter encoder\.conv_in\.weight is missing"),
    ],
)
def test_files_of_something_else(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(InputError, match=f"other.pt: {message}"):
        import_checkpoint(tmp_path / "other.pt", "taming-vqgan")


# --- configurations ---


@pytest.mark.parametrize(
    ("form", "config", "message"),
    [
        ("taming-vqgan", {"ddconfig": {"ch": 64}}, r"ddconfig\.ch: 64, but the checkpoint's parameters show 32"),
        ("taming-vqgan", {"ddconfig": {"ch_mult": [1, 2]}}, r"ddconfig\.ch_mult: \[1, 2\], .* show \[1, 2, 4\]"),
        ("taming-vqgan", {"n_embed": 1024}, "n_embed: 1024, but the checkpoint's parameters show 20"),
        ("taming-vqgan", {"ddconfig": {"double_z": True}}, r"ddconfig\.double_z: True"),
        ("taming-vqgan", {"ddconfig": {"attn_resolutions": [32]}}, r"attn_resolutions: \[32\], .* attention at 64"),
        ("taming-vqgan", {"ddconfig": {"resolution": 250}}, "image_size 250 must be a multiple of the factor 4"),
        ("ilat-face", {"ddconfig": {"norm": "BN"}}, r"ddconfig\.norm: 'BN', .* show 'IN'"),
        ("ilat-transformer", {"n_layer": 24}, "n_layer: 24, but the checkpoint's parameters show 2"),
        ("ilat-transformer", {"n_head": 5}, "width 64 must be a multiple of heads 5"),
        ("ilat-pose", {"sequence_length": 514}, "sequence_length: 514, but the checkpoint's parameters show 60"),
    ],
)
def test_a_configuration_that_contradicts(form: str, config: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Also in YAML, and inside taming's ``model.params``; the file and the key are named."""
    torch.save(released(small(form)), tmp_path / "released.ckpt")
    for file, content in (
        (tmp_path / "config.json", config),
        (tmp_path / "project.yaml", {"model": {"base_learning_rate": 4.5e-6, "params": config}}),
    ):
        file.write_text(json.dumps(content))
        with pytest.raises(InputError, match=message) as raised:
            import_checkpoint(tmp_path / "released.ckpt", form, file)
        assert file.name in str(raised.value) or "must be" in message


def test_heads_are_assumed_only_where_they_can_be() -> None:
    model = small("ilat-transformer", width=128, heads=2)
    assert convert(released(model), "ilat-transformer").assumed == {"heads": 2}
    narrow = small("ilat-transformer", width=48, heads=4)
    with pytest.raises(InputError, match="n_head: missing, and a width of 48 is no multiple of 64"):
        convert(released(narrow), "ilat-transformer")
    assert convert(released(narrow), "ilat-transformer", {"n_head": 4}).model.config == narrow.config


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("missing.json", None, "no such file"),
        ("bad.json", "{", "not a JSON file"),
        ("bad.yaml", "a: [", "not a YAML file"),
        ("code.yaml", "!!python/object/apply:os.mkdir [trap]", "not a YAML file"),
        ("list.json", "[1]", "expected an object"),
    ],
)
def test_files_of_no_configuration(name: str, text: str | None, message: str, tmp_path: Path) -> None:
    torch.save(released(small("ilat-sketch")), tmp_path / "released.ckpt")
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"{name}: {message}"):
        import_checkpoint(tmp_path / "released.ckpt", "ilat-sketch", tmp_path / name)


# --- the command ---


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it says, and that nothing is overwritten."""
    torch.save(wrapped(released(small("taming-vqgan")))[1], tmp_path / "last.ckpt")
    out = tmp_path / "my run" / "tokenizer"
    command = ["import", str(tmp_path / "last.ckpt"), "--format", "taming-vqgan", "--out", str(out)]
    assert main([*command, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["passed_over"] == PASSED_OVER[1]
    assert answer["assumed"] == {"image_size": 256}
    assert answer["config"]["leaky"] is True
    assert answer["next"].startswith("ilat-train tokenizer --recipe pose --init ")
    before = (out / "model.safetensors").read_bytes()
    imported = json.loads((out / "config.json").read_text())["facts"]["imported"]
    assert (imported["format"], imported["file"]) == ("taming-vqgan", "last.ckpt")

    torch.save(released(small("taming-vqgan", seed=1)), tmp_path / "last.ckpt")
    assert main(command) == 1
    assert "exists already; replace it with --force" in capsys.readouterr().err
    assert (out / "model.safetensors").read_bytes() == before
    assert main([*command, "--force"]) == 0
    assert "assumed, as shapes do not show it: image_size 256" in capsys.readouterr().out
    assert (out / "model.safetensors").read_bytes() != before
    (out / "state.pt").touch()
    assert main([*command, "--force"]) == 1
    assert "holds a training's state" in capsys.readouterr().err
    assert main([*command[:-1], str(tmp_path), "--force"]) == 1
    assert "is no checkpoint, so it is not replaced" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["import", str(tmp_path / "last.ckpt"), "--format", "taming", "--out", str(out)])
    assert ended.value.code == 2
    assert "invalid choice: 'taming'" in capsys.readouterr().err


def test_every_parameter_has_a_name() -> None:
    """Breaks when a new part of a model is left out of the tables of names."""
    for form in FORMATS:
        model = small(form)
        assert parts(model).keys() == model.state_dict().keys()
        assert parts(copy.deepcopy(model)) == parts(model)
