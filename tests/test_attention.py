"""The two ways of computing attention agree, in value and in gradient."""

from __future__ import annotations

import pytest
import torch

from ilat_train.models.attention import attention


def _inputs(allowed_rows: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    random = torch.Generator().manual_seed(3)
    inputs = [torch.randn(2, 3, length, 4, generator=random, dtype=torch.float64) for length in (5, 7, 7)]
    allowed = torch.rand(allowed_rows, 1, 5, 7, generator=random) > 0.5
    allowed[..., 0] = True
    return [tensor.requires_grad_() for tensor in inputs], allowed


@pytest.mark.parametrize("rows", [1, 2])
def test_plain_attention_is_the_fused_one(rows: int) -> None:
    """Would break if the mask, the scale or a gradient of the plain one were wrong."""
    inputs, allowed = _inputs(rows)
    found = attention(*inputs, allowed, 0.0, training=True)
    wanted = attention(*inputs, allowed, 0.0, training=False)
    torch.testing.assert_close(found, wanted)
    weight = torch.randn(found.shape, dtype=torch.float64)
    for mine, theirs in zip(
        torch.autograd.grad((found * weight).sum(), inputs),
        torch.autograd.grad((wanted * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_dropout_is_not_lost() -> None:
    """The plain one knows no dropout, so it must not be taken where there is some."""
    inputs, allowed = _inputs(1)
    assert not torch.equal(
        attention(*inputs, allowed, 0.5, training=True), attention(*inputs, allowed, 0.0, training=True)
    )
    assert torch.equal(attention(*inputs, allowed, 0.5, training=False), attention(*inputs, allowed, 0.0, False))
