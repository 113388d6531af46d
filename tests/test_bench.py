"""``ilat-bench``: what it reports, and the floor. No time is judged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from exporting import graphs

from ilat_runtime import bench as bench_module
from ilat_runtime import peers
from ilat_runtime.bench import Bench, Spread, bandwidth, step_bytes, token_mask
from ilat_runtime.cli.bench import main
from ilat_runtime.errors import InputError
from ilat_runtime.manifest import Manifest, Precision
from ilat_runtime.peers import Peer


def sized(compute: str = "float32", weights: str = "float32") -> Manifest:
    """The size that the figures of other programs are for."""
    precision = Precision.model_validate({"compute": compute, "weights": weights})
    return Manifest.model_construct(layers=12, heads=12, head_size=64, codebook_size=16384, precision=precision)


def test_what_a_step_reads() -> None:
    """By hand: 12 × 768 with K = 16384 is 85 M weights in the layers, 0.6 M and 12.6 M after them."""
    weights = 12 * 12 * 768**2 + 768**2 + 16384 * 768
    assert step_bytes(sized(), 0) == 4 * weights
    assert step_bytes(sized(), 430) - step_bytes(sized(), 0) == 2 * 12 * 768 * 430 * 4
    assert step_bytes(sized("float16", "float16"), 430) == 2 * (weights + 2 * 12 * 768 * 430)
    assert step_bytes(sized(weights="float16"), 0, 4.0) == 4 * weights
    assert 0.25 < step_bytes(sized(weights="int8"), 0) / step_bytes(sized(), 0) < 0.35
    assert 0.125 < step_bytes(sized(weights="int4"), 0) / step_bytes(sized(), 0) < 0.18


def test_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "_READ", 2**20)
    assert bandwidth(2, 1) > 1e6


def test_spread() -> None:
    spread = Spread.of([0.001 * value for value in range(11)])
    assert (spread.low, spread.median, spread.high) == pytest.approx((1, 5, 9))


def test_token_masks() -> None:
    manifest = Manifest.model_construct(image_size=64, factor=8)
    assert [int(token_mask(manifest, ratio).sum()) for ratio in (0.001, 0.25, 1.0)] == [1, 16, 64]
    assert np.array_equal(token_mask(manifest, 0.25), token_mask(manifest, 0.25))
    for ratio in (0.0, 1.1, float("nan")):
        with pytest.raises(InputError, match="mask ratio"):
            token_mask(manifest, ratio)


def test_a_run_generates_what_is_masked(pose_bundle: Path) -> None:
    """The graphs are called as an edit calls them: the encoder twice, no more steps than masked tokens."""
    manifest, loaded = graphs(pose_bundle)
    calls: list[str] = []

    class Counted:
        def __init__(self, name: str, graph: object) -> None:
            self.name, self.graph = name, graph

        def run(self, inputs: object) -> object:
            calls.append(self.name)
            return self.graph.run(inputs)  # type: ignore[attr-defined]

        def with_cache(self, batch: int) -> Counted:
            return Counted(self.name, self.graph.with_cache(batch))  # type: ignore[attr-defined]

    work = Bench(manifest, *(Counted(name, loaded[name]) for name in ("encoder", "transformer", "decoder")))  # type: ignore[arg-type]
    run = work.run(0.5)
    assert run.masked_tokens == manifest.image_tokens // 2
    assert (calls.count("encoder"), calls.count("decoder")) == (2, 1)
    assert 3 <= calls.count("transformer") <= 2 + run.masked_tokens
    assert set(run.stages) == {"encode", "prefill", "decode", "decoder", "total"}
    assert run.stages["total"] >= run.stages["decode"] > 0
    calls.clear()
    assert len(work.steps(20, 4)) == 4
    assert len(calls) == 6


@pytest.mark.parametrize("kind", ["pose", "none"])
def test_json(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    bundle = request.getfixturevalue({"pose": "pose_bundle", "none": "mask_bundle"}[kind])
    command = [str(bundle), "--json", "--threads", "1", "--repeats", "1", "--mask-ratio", "0.5", "0.25"]
    assert main(command) == 0
    text, notes = capsys.readouterr()
    assert notes == ""
    data = json.loads(text)
    assert [(row["ratio"], row["masked_tokens"]) for row in data["mask_sweep"]] == [(0.25, 4), (0.5, 8)]
    for row in data["mask_sweep"]:
        assert row["ms_per_token"] == pytest.approx(row["decode_ms"] / row["masked_tokens"], abs=1e-3)
    assert set(data["stages_ms"]) == {"encode", "prefill", "decode", "decoder", "total"}
    step = data["step"]
    assert step["ratio_to_floor"] == pytest.approx(step["median_ms"] / step["floor_ms"], rel=0.05, abs=1e-2)
    assert step["bandwidth_gb_s"] > 0
    assert step["context"] < 430, "no more than the cache holds"
    assert data["backend"].startswith("onnxruntime ")
    assert (data["peers"], data["threads"]) == (None, 1)
    assert {"ilat", "python"} <= set(data["versions"])


def test_text(pose_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Peer("one", lambda count: [0.0015] * count), Peer("other (not installed)")]
    monkeypatch.setattr(peers, "peers", lambda *_: found)
    assert main([str(pose_bundle), "--threads", "1", "--repeats", "1", "--mask-ratio", "1", "--peers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{pose_bundle}: float32, weights float16"
    assert any(line.startswith("  100 %      16") for line in lines)
    assert any(line.startswith("a step with ") and "times its floor of" in line for line in lines)
    step = float(next(line for line in lines if line.startswith("a step with ")).split("cache: ")[1].split()[0])
    *words, ratio, _, _ = lines[-2].split()
    assert words == ["one", "1.50", "ms", "a", "token,"]
    assert float(ratio) == pytest.approx(1.5 / step, rel=0.02, abs=0.01)
    assert lines[-1].strip() == "other (not installed)"


def test_wrong_use(pose_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code, message in (
        ([pose_bundle, "--mask-ratio", "0"], 2, "--mask-ratio: 0, expected above 0 and up to 1"),
        ([pose_bundle, "--repeats", "0"], 2, "--repeats: 0, expected"),
        ([pose_bundle, "--backend", "onxruntime"], 1, "did you mean onnxruntime?"),
        ([tmp_path / "none"], 1, "no such bundle"),
    ):
        assert main([str(argument) for argument in arguments]) == code
        assert message in capsys.readouterr().err
