"""The adversarial side of the tokenizer's training: PatchGAN, hinge losses, VQGAN's balance of the two losses."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_ADAPTIVE_WEIGHT = 1e4


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al., 2017, as VQGAN uses it): float (N, C, H, W) in [-1, 1] -> one logit for each patch.

    With ``layers=3`` a logit sees 70×70 pixels and the output is (N, 1, H/8 - 2, W/8 - 2). Positive means real.
    ``norm="none"`` is for small batches, where BatchNorm's statistics say little.
    """

    def __init__(
        self, channels: int = 64, layers: int = 3, norm: Literal["batch", "none"] = "batch", in_channels: int = 3
    ) -> None:
        super().__init__()
        widths = [channels * min(2**level, 8) for level in range(layers + 1)]
        modules: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for level, (before, after) in enumerate(pairwise(widths), start=1):
            stride = 2 if level < layers else 1
            # BatchNorm's own shift makes the bias superfluous.
            modules.append(nn.Conv2d(before, after, 4, stride, 1, bias=norm == "none"))
            if norm == "batch":
                modules.append(nn.BatchNorm2d(after))
            modules.append(nn.LeakyReLU(0.2))
        modules.append(nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.body = nn.Sequential(*modules)
        self.apply(_initialise)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of the patches, (N, 1, h, w)."""
        logits: Tensor = self.body(image)
        return logits


def _initialise(module: nn.Module) -> None:
    """DCGAN's initial weights, which PatchGAN was published with."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def hinge_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """What the discriminator minimises: real above 1, generated below -1. Scalar, float32."""
    return 0.5 * (F.relu(1 - real_logits.float()).mean() + F.relu(1 + fake_logits.float()).mean())


def hinge_generator(fake_logits: Tensor) -> Tensor:
    """What the generator minimises: the negative mean logit of its images. Scalar, float32."""
    return -fake_logits.float().mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor, factor: float = 1.0) -> Tensor:
    """VQGAN's λ (Esser et al., 2021, Eq. 7): how strongly to weigh the adversarial loss so that both pull alike.

    The ratio of the gradients' norms at ``last_layer`` (the decoder's last weight), within [0, 1e4], times ``factor``.
    For a fixed λ (the paper's 0.1) don't call this; use the number.

    Args:
        reconstruction, adversarial: scalar losses whose graphs reach ``last_layer``; both graphs are kept.

    Returns:
        Scalar without gradient.
    """
    (pull,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (push,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    ratio = pull.float().norm() / (push.float().norm() + 1e-4)
    return factor * ratio.clamp(0.0, MAX_ADAPTIVE_WEIGHT).detach()
