"""The exported graphs against PyTorch, and the bundle that is written only when they agree (sections 2 and 3)."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from editing import standing
from exporting import GRAPHS, MODULES, disturb, graphs, models, reuse_graphs, transformer_call

from ilat_export import bundle as bundle_module
from ilat_export.bundle import Facts, describe, export_bundle, stages
from ilat_export.destination import check_destination, size
from ilat_export.graphs import DecoderGraph, EncoderGraph, TransformerGraph, sample
from ilat_export.to_onnx import round_to_half, save, store_half, to_onnx
from ilat_export.verify import Tolerance, VerificationError
from ilat_runtime import Editor
from ilat_runtime.backends import Graph
from ilat_runtime.decoding import Decoder, Sampling, Target
from ilat_runtime.errors import BundleError, InputError, OutputError
from ilat_runtime.manifest import Manifest, load_manifest, verify_files
from ilat_runtime.sampling import uniform
from ilat_runtime.segments import GLOBAL, UNFILLED, decode_plan
from ilat_train.models import TSVQGAN, LocalTransformer
from ilat_train.models.transformer import batch_segments
from ilat_train.train_transformer import TokenBatch, greedy

Loaded = tuple[Manifest, dict[str, Graph]]
SIDE = 45
"""Of the crops, not the model's 32."""


@pytest.fixture(scope="module")
def posed(pose_bundle: Path) -> Loaded:
    return graphs(pose_bundle)


@pytest.fixture(scope="module")
def masked(mask_bundle: Path) -> Loaded:
    return graphs(mask_bundle)


@pytest.fixture(scope="module")
def pair() -> tuple[TSVQGAN, LocalTransformer]:
    return models()


def crops(count: int, side: int = SIDE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def encoder_inputs(images: np.ndarray, masks: np.ndarray, poses: np.ndarray | None = None) -> dict[str, np.ndarray]:
    count = len(images)
    if poses is None:
        poses = np.zeros((count, 1, 13, 3), np.float32)
    return {"image": images, "mask": masks, "poses": poses, "radius": np.full(count, 0.04, np.float32)}


def some_masks(count: int, side: int = SIDE, seed: int = 0) -> np.ndarray:
    """Boxes and single pixels, a different share of each image."""
    random = np.random.default_rng(seed)
    masks = np.zeros((count, side, side), np.uint8)
    for index, mask in enumerate(masks):
        extent = 3 + (7 * index) % (side - 5)
        top, left = random.integers(0, side - extent, 2)
        mask[top : top + extent, left : left + extent] = 1
        mask[tuple(random.integers(0, side, 2))] = 1
    return masks


def relative_poses(count: int) -> np.ndarray:
    """Crop-relative float32 (count, 2, 13, 3)."""
    pairs = [[standing(0.4 + 0.05 * index, 0.5, 0.7), standing(0.5, 0.5, 0.7, lean=0.3)] for index in range(count)]
    return np.array(pairs, np.float32)


# --- the transformer: cached decoding is the full pass ---


@pytest.mark.parametrize("numbering", ["local", "released", "vanilla"])
@pytest.mark.parametrize("kind", ["pose", "none"])
def test_cached_is_full(request: pytest.FixtureRequest, kind: Any, numbering: str) -> None:
    """Breaks when anything of plan, cache, mask, positions or sampling differs from one masked pass of PyTorch:
    every generated token must equal the one that a full pass for each token gives, and so must its likelihood."""
    manifest, loaded = request.getfixturevalue({"pose": "posed", "none": "masked"}[kind])
    _, transformer = models(kind, numbering)
    tokens_of_image, random = manifest.image_tokens, np.random.default_rng(3)
    for share in (0.05, 0.3, 0.6, 1.0):
        token_mask = random.random(tokens_of_image) < share
        token_mask[random.integers(tokens_of_image)] = True
        condition, target = random.integers(0, manifest.codebook_size, (2, tokens_of_image))
        pose = relative_poses(1)[0, 1] if kind == "pose" else None
        decoder = Decoder(manifest, loaded["transformer"], 1)
        decoder.condition([condition], [None])
        plan = decode_plan(manifest.sequence, token_mask, numbering)
        (found,) = decoder.generate([Target(plan, target, pose)], Sampling())
        batch = TokenBatch(
            torch.from_numpy(condition)[None],
            torch.from_numpy(target)[None],
            torch.from_numpy(token_mask)[None],
            torch.from_numpy(pose)[None] if pose is not None else torch.zeros(1, 13, 3),
        )
        expected = greedy(transformer, batch)
        assert found.tokens.tolist() == expected[0, torch.from_numpy(token_mask)].tolist()
        with torch.inference_mode():
            logits = transformer.target_logits(
                batch.condition if kind == "pose" else None,
                batch.pose if kind == "pose" else None,
                expected,
                batch_segments(transformer.config, batch.token_mask),
            )[0, batch.token_mask[0]]
        log = torch.log_softmax(logits, -1).gather(1, torch.from_numpy(found.tokens)[:, None])[:, 0]
        np.testing.assert_allclose(found.log_probability, log.numpy(), atol=1e-4)
        assert found.calls <= token_mask.sum()
    assert len(set(found.tokens.tolist())) > 3, "a model that always says the same would pass"


def call(manifest: Manifest, segment: np.ndarray, rows: list[int], ids: np.ndarray, filled: int) -> dict[str, Any]:
    """Inputs that append rows of the sequence, whose ids are given, after ``filled`` slots."""
    slots = np.full((1, manifest.cache_capacity), UNFILLED, np.int32)
    slots[0, :filled] = GLOBAL
    slots[0, filled : filled + len(rows)] = segment[rows]
    return {
        "tokens": ids[None, rows], "positions": np.array([rows]), "query_segment": segment[None, rows],
        "slot_segment": slots, "write_index": np.array([filled]), "top_k": np.array([1]),
        "temperature": np.ones(1, np.float32), "uniform": np.full((1, 1, 1), 0.5, np.float32),
        "landmarks": np.zeros((1, len(rows), 3), np.float32),
    }  # fmt: skip


@pytest.mark.parametrize("top_k", [1, 6])
def test_guesses_can_be_verified_in_one_call(posed: Loaded, top_k: int) -> None:
    """Breaks when a row of a call sees a later row of the same call, or takes the noise of another: then several
    guessed tokens could not be checked at once."""
    manifest, loaded = posed
    layout, random = manifest.sequence, np.random.default_rng(0)
    token_mask = np.zeros(layout.image_tokens, bool)
    token_mask[4:13] = True
    plan = decode_plan(layout, token_mask)
    start = layout.slice("target").start
    known = [row for row in range(layout.length) if plan.segment[row] <= GLOBAL]
    causal = [row for row in range(layout.length) if plan.segment[row] > GLOBAL]
    ids = np.full(layout.length, manifest.vocabulary.pose)
    ids[layout.slice("condition")] = random.integers(0, manifest.condition_vocabulary, layout.size("condition"))
    ids[start:] = manifest.vocabulary.target_offset + random.integers(0, manifest.codebook_size, layout.size("target"))
    noise = uniform(5, [row - start for row in causal], manifest.codebook_size)
    options = {"top_k": np.array([top_k]), "temperature": np.array([1.3], np.float32)}

    def fed(sizes: list[int]) -> tuple[list[int], np.ndarray]:
        graph = loaded["transformer"].with_cache(1)
        graph.run(call(manifest, plan.segment, known, ids, 0))
        tokens: list[int] = []
        likelihoods: list[float] = []
        for count in sizes:
            now = len(tokens)
            inputs = call(manifest, plan.segment, causal[now : now + count], ids, len(known) + now)
            inputs["slot_segment"][0, len(known) : len(known) + now] = plan.segment[causal[:now]]
            inputs |= options | {"uniform": noise[None, now : now + count]}
            outputs = graph.run(inputs)
            tokens += outputs["next_token"][0].tolist()
            likelihoods += outputs["log_probability"][0].tolist()
        return tokens, np.array(likelihoods)

    one_by_one, likelihoods = fed([1] * len(causal))
    assert len(set(one_by_one)) > 3
    for sizes in ([len(causal)], [3, 1, len(causal) - 4]):
        tokens, others = fed(sizes)
        assert tokens == one_by_one
        np.testing.assert_allclose(others, likelihoods, atol=1e-4)


def test_a_batch_of_different_masks(posed: Loaded) -> None:
    """Breaks when one image's mask, cache or padding reaches another's tokens."""
    manifest, loaded = posed
    random, n = np.random.default_rng(1), manifest.image_tokens
    masks = [random.random(n) < share for share in (0.1, 0.5, 1.0, 0.0)]
    conditions, targets = random.integers(0, manifest.codebook_size, (2, 4, n))
    poses = relative_poses(4)[:, 0]
    together = Decoder(manifest, loaded["transformer"], 4)
    together.condition(list(conditions), [None] * 4)
    jobs = [
        Target(decode_plan(manifest.sequence, mask), target, pose)
        for mask, target, pose in zip(masks, targets, poses, strict=True)
    ]
    for sampling in (Sampling(), Sampling(seed=4, temperature=1.2, top_k=8)):
        found = together.generate(jobs, sampling)
        for index, job in enumerate(jobs):
            alone = Decoder(manifest, loaded["transformer"], 1)
            alone.condition([conditions[index]], [None])
            (expected,) = alone.generate([job], sampling)
            assert found[index].tokens.tolist() == expected.tokens.tolist()
            np.testing.assert_allclose(found[index].log_probability, expected.log_probability, atol=1e-4)


def test_a_call_is_what_pytorch_computes(posed: Loaded, pair: tuple[TSVQGAN, LocalTransformer]) -> None:
    """Breaks when the graph differs from its module in any output: cache, sampled tokens, likelihoods, other noise."""
    manifest, loaded = posed
    random, record = np.random.default_rng(2), manifest.graphs.transformer
    batch, rows, slots = 3, 4, manifest.cache_capacity
    slot_segment = np.full((batch, slots), UNFILLED, np.int32)
    slot_segment[:, : 10 + rows] = 0
    inputs = transformer_call(manifest, random, slot_segment, np.array([0, 10, 3]), rows)
    found = loaded["transformer"].run(inputs)
    with torch.inference_mode():
        expected = TransformerGraph(pair[1])(*(torch.from_numpy(inputs[name]) for name in record.inputs))
    for (name, array), tensor in zip(found.items(), expected, strict=True):
        if name == "next_token":
            assert array.tolist() == tensor.tolist()
        else:
            np.testing.assert_allclose(array, tensor.numpy(), atol=1e-4, err_msg=name)


def test_sampling_by_hand() -> None:
    """Breaks when noise or temperature enter the likelihood, or a candidate beyond the k likeliest is taken."""
    torch.manual_seed(0)
    logits, noise = torch.randn(2, 3, 11) * 2, torch.rand(2, 3, 11) * 0.98 + 0.01
    temperature = torch.tensor([0.5, 2.0])
    tokens, log_probability = sample(logits, torch.tensor([4]), temperature, noise)
    for image in range(2):
        for row in range(3):
            values = logits[image, row].double().numpy()
            best = np.argsort(-values)[:4]
            gumbel = -np.log(-np.log(noise[image, row].double().numpy()))
            expected = best[np.argmax((values / temperature[image].item() + gumbel)[best])]
            assert tokens[image, row] == expected
            softmax = np.exp(values) / np.exp(values).sum()
            assert log_probability[image, row].item() == pytest.approx(np.log(softmax[expected]), abs=1e-4)
    greedy_tokens, _ = sample(logits, torch.tensor([1]), temperature, noise)
    assert torch.equal(greedy_tokens, logits.argmax(-1))


def test_sampling_follows_the_distribution() -> None:
    """Breaks when the noise is not Gumbel's: frequencies of many draws against the softmax of the top k."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 1.5])
    draws = 4000
    noise = torch.from_numpy(uniform(1, range(draws), 5))[None]
    tokens, _ = sample(logits.expand(1, draws, 5), torch.tensor([4]), torch.tensor([2.0]), noise)
    expected = torch.softmax(torch.where(logits > -1, logits, -torch.inf) / 2, 0)
    frequency = torch.bincount(tokens.flatten(), minlength=5) / draws
    torch.testing.assert_close(frequency, expected, rtol=0, atol=0.03)


# --- the encoder ---


@pytest.mark.parametrize("side", [32, SIDE, 20, 100])
def test_the_exported_encoder_does_not_leak(posed: Loaded, side: int) -> None:
    """Breaks when any pixel of a user's mask reaches a known latent by one bit, whatever the crop's size."""
    _, loaded = posed
    images, masks = crops(6, side), some_masks(6, side)
    wild = np.where(masks[..., None] > 0, 255 - images, images)
    before, after = (loaded["encoder"].run(encoder_inputs(pixels, masks)) for pixels in (images, wild))
    known = ~before["token_mask"]
    assert known.any()
    assert (~known).any()
    assert np.array_equal(before["token_mask"], after["token_mask"])
    assert np.array_equal(before["edit_mask"], masks)
    latents = [result["latent"].reshape(6, -1, known.shape[1]).transpose(0, 2, 1) for result in (before, after)]
    assert latents[0][known].tobytes() == latents[1][known].tobytes()
    assert np.array_equal(before["tokens"][known], after["tokens"][known])
    assert not np.array_equal(images, wild)


@pytest.mark.parametrize("side", [32, SIDE, 20, 100])
def test_the_skeletons_mask_does_not_leak(posed: Loaded, side: int) -> None:
    """Breaks when a pixel that will be edited, skeletons brought to the crop's size, is read by a known latent."""
    _, loaded = posed
    images, poses = crops(4, side), relative_poses(4)
    nothing = np.zeros(images.shape[:3], np.uint8)
    before = loaded["encoder"].run(encoder_inputs(images, nothing, poses))
    edited = before["edit_mask"]
    assert edited.any()
    wild = np.where(edited[..., None] > 0, 255 - images, images)
    after = loaded["encoder"].run(encoder_inputs(wild, nothing, poses))
    known = ~before["token_mask"]
    assert known.any()
    latents = [result["latent"].reshape(4, -1, known.shape[1]).transpose(0, 2, 1) for result in (before, after)]
    assert latents[0][known].tobytes() == latents[1][known].tobytes()


def test_the_encoder_shows_a_leak() -> None:
    """The ablation's graph fails the leak test: without this the test above could be blind."""
    tokenizer, _ = models()
    leaky = TSVQGAN(tokenizer.config.model_copy(update={"two_stream": False})).eval()
    leaky.load_state_dict(tokenizer.state_dict())
    images, masks = crops(6), some_masks(6)
    wild = np.where(masks[..., None] > 0, 255 - images, images)
    with torch.inference_mode():
        before, after = (
            EncoderGraph(leaky)(torch.from_numpy(pixels), torch.from_numpy(masks)) for pixels in (images, wild)
        )
    known = ~before[2]
    assert not torch.equal(before[0].flatten(2).transpose(1, 2)[known], after[0].flatten(2).transpose(1, 2)[known])


def test_encoder_is_pytorchs(posed: Loaded, pair: tuple[TSVQGAN, LocalTransformer]) -> None:
    """Breaks when resampling, masks, latents or tokens of the graph differ from PyTorch's, with one pose or several."""
    _, loaded = posed
    for side, count in ((32, 1), (SIDE, 3), (100, 2)):
        for poses in (relative_poses(count), relative_poses(count)[:, :1]):
            inputs = encoder_inputs(crops(count, side), some_masks(count, side), poses)
            found = loaded["encoder"].run(inputs)
            with torch.inference_mode():
                results = EncoderGraph(pair[0])(*(torch.from_numpy(array) for array in inputs.values()))
            expected = dict(zip(found, (result.numpy() for result in results), strict=True))
            known = ~expected["token_mask"]
            assert np.array_equal(found["token_mask"], expected["token_mask"])
            assert (found["edit_mask"] != expected["edit_mask"]).mean() < 1e-3
            assert np.array_equal(found["tokens"][known], expected["tokens"][known])
            latents = [result["latent"].reshape(count, -1, known.shape[1]) for result in (found, expected)]
            columns = np.broadcast_to(known[:, None], latents[0].shape)
            np.testing.assert_allclose(latents[0][columns], latents[1][columns], atol=1e-4)
            for name, dtype in (("latent", "float32"), ("tokens", "int64"), ("token_mask", "bool")):
                assert found[name].dtype == dtype
            assert found["edit_mask"].dtype == np.uint8


def test_a_user_mask_of_any_value_counts(posed: Loaded) -> None:
    """Breaks when a mask of 255 is not the mask of 1."""
    _, loaded = posed
    images, masks = crops(2), some_masks(2)
    one, many = (loaded["encoder"].run(encoder_inputs(images, masks * value)) for value in (1, 255))
    for name in one:
        assert np.array_equal(one[name], many[name]), name


def test_encoding_a_batch_is_encoding_each(posed: Loaded) -> None:
    """Breaks when statistics mix the images of a batch."""
    _, loaded = posed
    inputs = encoder_inputs(crops(4), some_masks(4), relative_poses(4))
    together = loaded["encoder"].run(inputs)
    for row in range(4):
        alone = loaded["encoder"].run({name: array[row : row + 1] for name, array in inputs.items()})
        known = ~alone["token_mask"][0]
        assert np.array_equal(together["token_mask"][row], alone["token_mask"][0])
        assert np.array_equal(together["edit_mask"][row], alone["edit_mask"][0])
        assert np.array_equal(together["tokens"][row][known], alone["tokens"][0][known])


# --- the decoder ---


def decoder_inputs(manifest: Manifest, count: int, side: int, blend: bool) -> dict[str, np.ndarray]:
    random, grid = np.random.default_rng(4), manifest.grid
    return {
        "latent": random.normal(size=(count, manifest.latent_channels, grid, grid)).astype(np.float32),
        "tokens": random.integers(0, manifest.codebook_size, (count, grid * grid)),
        "token_mask": random.random((count, grid * grid)) < 0.5,
        "image": crops(count, side),
        "edit_mask": some_masks(count, side),
        "blend": np.array([blend]),
    }


@pytest.mark.parametrize("blend", [False, True])
def test_decoder_is_pytorchs(posed: Loaded, pair: tuple[TSVQGAN, LocalTransformer], blend: bool) -> None:
    """Breaks when the graph's image differs by more than a rounding; uint8 comes in and goes out."""
    manifest, loaded = posed
    for side, count in ((32, 1), (SIDE, 3)):
        inputs = decoder_inputs(manifest, count, side, blend)
        found = loaded["decoder"].run(inputs)["edited"]
        assert found.dtype == np.uint8
        assert found.shape == inputs["image"].shape
        with torch.inference_mode():
            expected = DecoderGraph(pair[0])(*(torch.from_numpy(array) for array in inputs.values())).numpy()
        assert np.abs(found.astype(int) - expected).max() <= 1
        together = found
        for row in range(count):
            alone = {name: array if name == "blend" else array[row : row + 1] for name, array in inputs.items()}
            difference = together[row].astype(int) - loaded["decoder"].run(alone)["edited"][0]
            assert np.abs(difference).max() <= 1


def test_only_the_edit_mask_changes(posed: Loaded) -> None:
    """Breaks when a pixel outside the mask is not the input's, to the last bit; blending changes near it only."""
    manifest, loaded = posed
    inputs = decoder_inputs(manifest, 3, 90, False)
    edited = loaded["decoder"].run(inputs)["edited"]
    inside = inputs["edit_mask"] > 0
    assert np.array_equal(edited[~inside], inputs["image"][~inside])
    assert (edited[inside] != inputs["image"][inside]).any()
    blended = loaded["decoder"].run(inputs | {"blend": np.array([True])})["edited"]
    changed = (blended != inputs["image"]).any(-1)
    assert (changed & ~inside).any(), "A.3: the border is smooth"
    far = ~(torch.nn.functional.max_pool2d(torch.from_numpy(inside).float(), 33, 1, 16) > 0).numpy()
    assert far.any()
    assert not changed[far].any()


def test_what_the_decoder_does_not_read(posed: Loaded) -> None:
    """Eq. 4: the latents at masked positions and the tokens at unmasked ones are "anything" in docs/bundle.md."""
    manifest, loaded = posed
    inputs = decoder_inputs(manifest, 2, 32, False)
    masked = inputs["token_mask"]
    other = inputs | {
        "latent": np.where(masked.reshape(2, 1, 4, 4), np.float32(1e9), inputs["latent"]),
        "tokens": np.where(masked, inputs["tokens"], 0),
    }
    assert np.array_equal(loaded["decoder"].run(inputs)["edited"], loaded["decoder"].run(other)["edited"])


# --- how weights are stored ---


def test_half_storage_changes_no_value(tmp_path: Path) -> None:
    """Breaks when a weight that was not rounded is stored as float16, when arithmetic is no longer float32, or when
    nothing is saved."""
    torch.manual_seed(0)
    exact, huge = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)
    round_to_half(exact)
    with torch.no_grad():
        huge.weight[0, 0] = 1e6
        before = huge.weight.clone()
    round_to_half(huge)
    assert torch.equal(huge.weight, before), "beyond float16's range nothing is rounded"
    weights = {"exact": exact.weight, "huge": huge.weight, "inexact": torch.rand(64, 64), "small": torch.ones(8)}
    names = [f"y{index}" for index in range(len(weights))]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", [a], [b]) for a, b in zip(weights, names, strict=True)],
            "g", [], [
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, tuple(array.shape))
                for name, array in zip(names, weights.values(), strict=True)
            ],
            [onnx.numpy_helper.from_array(array.detach().numpy(), name) for name, array in weights.items()],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 24)], ir_version=10,
    )  # fmt: skip
    plain = len(model.SerializeToString())
    stored = store_half(model)
    assert [weight.name for weight in stored.graph.initializer] == ["exact_half", "huge", "inexact", "small"]
    assert len(stored.SerializeToString()) < plain - 2 * exact.weight.numel() + 500
    save(stored, tmp_path / "g.onnx")
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "g.onnx", providers=["CPUExecutionProvider"])
    for array, expected in zip(session.run(None, {}), weights.values(), strict=True):
        assert array.dtype == np.float32
        assert np.array_equal(array, expected.detach().numpy())


def test_float32_and_float16_bundles(tmp_path: Path, pair: tuple[TSVQGAN, LocalTransformer]) -> None:
    """One graph exported once and stored both ways computes the same; float16 takes about half the room."""
    description = describe(*pair, Facts("x"), "float32")
    record = description.graphs.transformer
    model = to_onnx(TransformerGraph(pair[1]), record.inputs, record.outputs, bundle_module.EXAMPLE | {"v": 24})
    save(model, tmp_path / "float32.onnx")
    save(store_half(model), tmp_path / "float16.onnx")
    assert (tmp_path / "float16.onnx").stat().st_size < 0.65 * (tmp_path / "float32.onnx").stat().st_size
    from ilat_runtime.backends import choose

    backend, results = choose("onnxruntime", threads=1).backend, []
    for file in ("float32.onnx", "float16.onnx"):
        graph = backend.load(tmp_path / file, record).with_cache(1)
        rows = list(range(20))
        segment = np.zeros(description.sequence.length, np.int32)
        results.append(graph.run(call(description, segment, rows, np.arange(len(segment)) % 40, 0)))
    for name, array in results[0].items():
        assert np.array_equal(array, results[1][name]), name


# --- the bundle ---


@pytest.fixture
def reused(monkeypatch: pytest.MonkeyPatch, pose_bundle: Path) -> Path:
    reuse_graphs(monkeypatch, pose_bundle)
    return pose_bundle


def test_a_bundle_is_complete(reused: Path, pair: tuple[TSVQGAN, LocalTransformer], tmp_path: Path) -> None:
    reported: list[tuple[str, int]] = []
    facts = Facts("mine", "CC0", "its own", margin=1.5, dilation=0.2, provenance={"steps": 3})
    found = export_bundle(
        *pair, tmp_path / "deep/er/b", facts, progress=lambda stage, done: reported.append((stage, done))
    )
    out = tmp_path / "deep/er/b"
    assert reported == [*((stage, index) for index, stage in enumerate(stages(False))), ("done", 4)]
    assert sorted(file.name for file in out.iterdir()) == [
        "decoder.onnx",
        "encoder.onnx",
        "manifest.json",
        "transformer.onnx",
    ]
    assert [entry.name for entry in out.parent.iterdir()] == ["b"]
    manifest = load_manifest(out)
    verify_files(out, manifest)
    assert (manifest.name, manifest.licence.weights, manifest.licence.data) == ("mine", "CC0", "its own")
    assert manifest.crop is not None
    assert (manifest.crop.margin, manifest.crop.dilation) == (1.5, 0.2)
    assert manifest.provenance == {"steps": 3}
    assert manifest.leak_free
    assert manifest.verification == found.record()
    assert found.encoder_tokens == found.decoded_tokens == 1
    assert found.random_inputs == 2
    assert found.latent_error < 1e-4
    assert size(out) == sum(file.stat().st_size for file in out.iterdir())
    Editor(out, threads=1)


def broken(graph: str, change: Callable[[onnx.ModelProto], onnx.ModelProto], monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes what the export gives for one graph."""
    original = bundle_module.to_onnx

    def changed(module: Any, *rest: Any) -> onnx.ModelProto:
        model = original(module, *rest)
        return change(model) if MODULES[type(module).__name__] == graph else model

    monkeypatch.setattr(bundle_module, "to_onnx", changed)


BIASES = {
    "encoder": "tokenizer.encoder.conv_out.bias",
    "transformer": "transformer.bias",
    "decoder": "tokenizer.decoder.conv_out.bias",
}


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_wrong_graph_leaves_nothing(
    reused: Path,
    pair: tuple[TSVQGAN, LocalTransformer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    graph: str,
) -> None:
    """One weight of one graph is off: the export names the graph and writes nothing, not even a folder."""
    broken(graph, lambda model: disturb(model, BIASES[graph], 0.5), monkeypatch)
    with pytest.raises(VerificationError, match=rf"^{graph}: .* tolerance is .*; no bundle was written"):
        export_bundle(*pair, tmp_path / "b", Facts("x"))
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_does_not_load_leaves_nothing(
    reused: Path, pair: tuple[TSVQGAN, LocalTransformer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nonsense(model: onnx.ModelProto) -> onnx.ModelProto:
        model.graph.node[-1].op_type = "NoSuchOperator"
        return model

    broken("decoder", nonsense, monkeypatch)
    monkeypatch.setattr(bundle_module, "store_half", lambda model: model)
    with pytest.raises(BundleError, match=r"decoder\.onnx"):
        export_bundle(*pair, tmp_path / "b", Facts("x"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tolerance", "message"),
    [
        (Tolerance(latent=0), "encoder: latent error"),
        (Tolerance(log_probability=0), "transformer: log-probability error"),
        (Tolerance(image=-1), "decoder: image error"),
        (Tolerance(tokens=1.1), "share of equal tokens"),
    ],
)
def test_a_tolerance_that_is_missed(
    reused: Path, pair: tuple[TSVQGAN, LocalTransformer], tmp_path: Path, tolerance: Tolerance, message: str
) -> None:
    with pytest.raises(VerificationError, match=message):
        export_bundle(*pair, tmp_path / "b", Facts("x"), tolerance=tolerance)
    assert list(tmp_path.iterdir()) == []


def test_existing_destinations(reused: Path, pair: tuple[TSVQGAN, LocalTransformer], tmp_path: Path) -> None:
    """Breaks when an export overwrites what it should not, or replaces a bundle before the new one is good."""
    out = tmp_path / "b"
    export_bundle(*pair, out, Facts("first"))
    with pytest.raises(OutputError, match="exists already; replace it with --force"):
        export_bundle(*pair, out, Facts("second"))
    with pytest.raises(VerificationError):
        export_bundle(*pair, out, Facts("second"), force=True, tolerance=Tolerance(latent=0))
    assert load_manifest(out).name == "first"
    export_bundle(*pair, out, Facts("third"), force=True)
    assert load_manifest(out).name == "third"
    assert [entry.name for entry in tmp_path.iterdir()] == ["b"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/me.jpg").write_bytes(b"precious")
    with pytest.raises(OutputError, match="is no bundle"):
        export_bundle(*pair, tmp_path / "photos", Facts("x"), force=True)
    assert (tmp_path / "photos/me.jpg").read_bytes() == b"precious"
    with pytest.raises(OutputError, match=r"b/manifest\.json is not a writable folder"):
        check_destination(out / "manifest.json" / "inside", False)


def test_an_interrupt_leaves_nothing(reused: Path, pair: tuple[TSVQGAN, LocalTransformer], tmp_path: Path) -> None:
    def stop(stage: str, done: int) -> None:
        if stage == "decoder":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_bundle(*pair, tmp_path / "b", Facts("x"), progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(
    reused: Path, pair: tuple[TSVQGAN, LocalTransformer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(model: onnx.ModelProto, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(bundle_module, "save", full)
    with pytest.raises(OutputError, match=r"b: cannot be written: No space left on device"):
        export_bundle(*pair, tmp_path / "b", Facts("x"))
    assert list(tmp_path.iterdir()) == []


def test_models_that_make_no_bundle(pair: tuple[TSVQGAN, LocalTransformer], tmp_path: Path) -> None:
    """Breaks when models that cannot work together, or that no runtime decodes, are found out after the long part."""
    tokenizer, transformer = pair
    other = TSVQGAN(tokenizer.config.model_copy(update={"codebook_size": 30}))
    with pytest.raises(InputError, match="16 tokens of 24 values, but the tokenizer makes 16 of 30"):
        export_bundle(other, transformer, tmp_path / "b", Facts("x"))
    bidirectional = LocalTransformer(transformer.config.model_copy(update={"numbering": "bidirectional"}))
    with pytest.raises(BundleError, match="numbering: 'bidirectional'"):
        export_bundle(tokenizer, bidirectional, tmp_path / "b", Facts("x"))
    unconditional = LocalTransformer(transformer.config.model_copy(update={"blocks": ("pose", "target")}))
    with pytest.raises(BundleError, match="layout"):
        export_bundle(tokenizer, unconditional, tmp_path / "b", Facts("x"))
    for facts, key in ((Facts(""), "name"), (Facts("x", dilation=3), "crop.dilation"), (Facts("x", ""), "licence")):
        with pytest.raises(BundleError, match=f"the bundle's manifest: {key}"):
            export_bundle(tokenizer, transformer, tmp_path / "b", facts)
    assert list(tmp_path.iterdir()) == []


def test_a_sample_of_ones_own_is_verified(reused: Path, pair: tuple[TSVQGAN, LocalTransformer], tmp_path: Path) -> None:
    """Real inputs count: breaks when they are ignored."""
    from ilat_export.real_inputs import photograph

    samples = photograph(1.3, 0.09, 32, posed=True)
    assert samples[0].image.shape[0] == samples[0].image.shape[1] > 300
    found = export_bundle(*pair, tmp_path / "b", Facts("x"), samples=[*samples, replace(samples[0], radius=0.01)])
    assert found.real_inputs == 2
    assert json.loads((tmp_path / "b/manifest.json").read_text())["verification"]["real_inputs"] == 2
