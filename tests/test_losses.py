"""LPIPS, its stand-in, the reading of its weights, and the adversarial losses."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimage import data
from skimage.filters import gaussian

torch = pytest.importorskip("torch", reason="needs the extra 'train'")

from ilat_runtime.errors import IlatError, InputError
from ilat_train.losses import lpips as lpips_module
from ilat_train.losses.adversarial import (
    PatchDiscriminator,
    adaptive_weight,
    hinge_discriminator,
    hinge_generator,
)
from ilat_train.losses.lpips import Lpips, WeightsError, load_lpips, read_arrays
from ilat_train.losses.perceptual import GradientLoss, perceptual_loss

KINDS: tuple[lpips_module.Kind, ...] = ("alex", "vgg")


def photograph(size: int = 128) -> torch.Tensor:
    """A real photograph, (1, 3, size, size) in [-1, 1]."""
    pixels = data.astronaut()[:size, 160 : 160 + size]
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1


def blurred(image: torch.Tensor, sigma: float) -> torch.Tensor:
    return torch.from_numpy(gaussian(image[0].numpy(), (0, sigma, sigma))).float()[None]


def published(kind: lpips_module.Kind) -> Lpips:
    try:
        return load_lpips(kind)
    except IlatError as error:
        pytest.skip(f"LPIPS weights are not fetched: {error}")


@pytest.mark.parametrize("kind", KINDS)
def test_lpips_orders_distortions(kind: lpips_module.Kind) -> None:
    distance, image = published(kind), photograph()
    assert distance(image, image).item() == 0
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    for distorted in ([blurred(image, s) for s in (1, 2, 4)], [image + s * noise for s in (0.05, 0.1, 0.3)]):
        values = [distance(image, x.clamp(-1, 1)).item() for x in distorted]
        assert 0 < values[0] < values[1] < values[2]


@pytest.mark.parametrize(("kind", "expected"), [("alex", 0.680412), ("vgg", 0.527785)])
def test_lpips_is_the_published_number(kind: lpips_module.Kind, expected: float) -> None:
    """Expected: the authors' package, lpips 0.1.4, on this pair."""
    image = photograph()
    assert published(kind)(image, blurred(image, 4)).item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_lpips_map(kind: lpips_module.Kind) -> None:
    """A change in one place shows in the map there; each image of a batch gets its own distance."""
    torch.manual_seed(0)
    distance = Lpips(kind)
    for head in distance.heads:
        head.weight.data.abs_()  # distances are sums of weighted squares: published heads have no negative weight
    image = photograph(96)
    changed = image.clone()
    changed[..., 8:24, 8:24] = -changed[..., 8:24, 8:24]
    local = distance.forward_map(image, changed)
    assert local.shape == (1, 1, 96, 96)
    assert local[..., 8:24, 8:24].mean() > 4 * local[..., 64:, 64:].mean()
    both = distance(torch.cat([image, image]), torch.cat([image, changed]))
    assert both.shape == (2,)
    assert both[0] == 0
    assert both[1] == pytest.approx(distance(image, changed).item(), rel=1e-4)


def test_lpips_is_frozen_and_gradients_are_finite() -> None:
    distance = Lpips("alex").train()
    assert not distance.training
    assert not any(p.requires_grad for p in distance.parameters())
    image = torch.full((1, 3, 64, 64), -1.0, requires_grad=True)  # many features are 0 for a flat image
    distance(image, photograph(64)).sum().backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()
    assert image.grad.abs().sum() > 0


def test_lpips_under_bfloat16() -> None:
    torch.manual_seed(0)
    distance, image = Lpips("alex"), photograph(64)
    other = blurred(image, 2)
    exact = distance(image, other)
    with torch.autocast("cpu", torch.bfloat16):
        rough = distance(image, other)
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.1)


def arrays_of(module: Lpips) -> dict[str, Any]:
    """The weights of ``module`` laid out as in the published files."""
    hwio = lambda weight: weight.detach().numpy().transpose(2, 3, 1, 0)
    backbone = {
        f"Conv_{i}": {"kernel": hwio(layer.weight), "bias": layer.bias.detach().numpy()}
        for i, layer in enumerate(module.convolutions)
    }
    heads = {f"NetLinLayer_{i}": {"Conv_0": {"kernel": hwio(head.weight)}} for i, head in enumerate(module.heads)}
    return {"AlexNet_0" if module.kind == "alex" else "VGG16_0": backbone, **heads}


def test_weights_survive_the_file(tmp_path: Path) -> None:
    """Numpy's own pickles, with the array orders and names of this numpy, come back as they were."""
    original, path = Lpips("alex"), tmp_path / "alexnet.ckpt"
    path.write_bytes(pickle.dumps(arrays_of(original), protocol=3))
    loaded = Lpips("alex")
    loaded.load_arrays(read_arrays(path), str(path))
    for name, value in original.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_missing_layer_is_named() -> None:
    arrays = arrays_of(Lpips("alex"))
    del arrays["AlexNet_0"]["Conv_3"]
    with pytest.raises(WeightsError, match=r"weights\.ckpt.*Conv_3"):
        Lpips("alex").load_arrays(arrays, "weights.ckpt")
    arrays = arrays_of(Lpips("alex"))
    arrays["NetLinLayer_2"]["Conv_0"]["kernel"] = np.zeros((1, 1, 7, 1), np.float32)
    with pytest.raises(WeightsError, match="NetLinLayer_2"):
        Lpips("alex").load_arrays(arrays, "weights.ckpt")


class Harmful:
    """What a hostile file would hold: a call made while reading."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def test_a_file_cannot_run_code(tmp_path: Path) -> None:
    path, target = tmp_path / "weights.ckpt", tmp_path / "it-ran"
    path.write_bytes(pickle.dumps({"AlexNet_0": Harmful(target)}))
    with pytest.raises(WeightsError, match="not a file of arrays"):
        read_arrays(path)
    assert not target.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        pickle.dumps([1, 2]),
        pickle.dumps({"a": 1}),
        pickle.dumps({"a": np.array([object()])}, protocol=3),
        pickle.dumps({"a": np.zeros(9, np.float32)}, protocol=3)[:-30],
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.ckpt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"weights\.ckpt"):
        read_arrays(path)


def test_missing_weights_name_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ILAT_CACHE", str(tmp_path))
    with pytest.raises(IlatError, match="ilat-train fetch lpips"):
        load_lpips("vgg")
    with pytest.raises(IlatError, match="ilat-train fetch lpips"):
        perceptual_loss("vgg")
    module, reason = perceptual_loss("auto")
    assert isinstance(module, GradientLoss)
    assert "instead of LPIPS" in reason


def test_perceptual_kinds() -> None:
    module, reason = perceptual_loss("gradient")
    assert isinstance(module, GradientLoss)
    assert "gradient" in reason
    with pytest.raises(InputError, match="none of"):
        perceptual_loss("squeeze")  # type: ignore[arg-type]


def test_gradient_loss() -> None:
    loss, image = GradientLoss(), photograph(64)
    assert loss(image, image).tolist() == [0]
    assert loss(image, image + 0.5).item() == pytest.approx(0, abs=1e-6)  # brightness has no gradient
    assert 0 < loss(image, blurred(image, 1)) < loss(image, blurred(image, 4))
    assert loss(torch.zeros(2, 3, 1, 1), torch.ones(2, 3, 1, 1)).tolist() == [0, 0]


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_discriminator_learns_to_tell(norm: Any) -> None:
    torch.manual_seed(0)
    model = PatchDiscriminator(8, norm=norm)
    assert model(torch.zeros(2, 3, 256, 256)).shape == (2, 1, 30, 30)
    real, fake = photograph(64).repeat(2, 1, 1, 1), blurred(photograph(64), 4).repeat(2, 1, 1, 1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(30):
        loss = hinge_discriminator(model(real), model(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_hinge_losses() -> None:
    sure, unsure = torch.tensor([2.0, 3.0]), torch.tensor([0.0, 0.0])
    assert hinge_discriminator(sure, -sure) == 0
    assert hinge_discriminator(unsure, unsure) == 1
    assert hinge_discriminator(-sure, sure) == 3.5
    assert hinge_generator(sure) == -2.5


def test_adaptive_weight_is_the_ratio_of_gradients() -> None:
    layer = torch.nn.Conv2d(1, 1, 1, bias=False)
    output = layer(torch.ones(1, 1, 1, 1)).sum()
    weight = adaptive_weight(6 * output, 2 * output, layer.weight)
    assert weight.item() == pytest.approx(3, rel=1e-3)
    assert not weight.requires_grad
    assert adaptive_weight(6 * output, 2 * output, layer.weight, 0.5).item() == pytest.approx(1.5, rel=1e-3)
    assert adaptive_weight(6 * output, 0 * output, layer.weight).item() == 1e4
    (output + weight).backward()  # the graph is still there
