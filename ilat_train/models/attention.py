"""Attention under a mask (Eq. 8): the library's fused kernel, and a plain one whose gradient is faster on CPUs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def attention(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, dropout: float, training: bool) -> Tensor:
    """Softmax of the scaled scores of the allowed keys, times the values.

    Args:
        query: (B, heads, q, d).
        key, value: (B, heads, T, d).
        allowed: bool (B or 1, 1, q, T); every query is allowed a key.
        dropout: probability of leaving out a weight, while training.

    Returns:
        (B, heads, q, d).
    """
    if training and query.device.type == "cpu" and not dropout:
        result: Tensor = _PlainAttention.apply(query, key, value, allowed)  # type: ignore[no-untyped-call]
        return result
    # Scaled here and not inside: ONNX Runtime's kernel multiplies one query by the keys faster when it need not scale.
    return F.scaled_dot_product_attention(
        query * query.shape[-1] ** -0.5, key, value, attn_mask=allowed, dropout_p=dropout if training else 0.0, scale=1
    )


class _PlainAttention(torch.autograd.Function):
    """Keeps the weights for the gradient.

    On a CPU, with the few hundred tokens of an image, a training step takes about three quarters of the time that it
    takes with the fused kernel, which computes them again.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
        ctx.scale = query.shape[-1] ** -0.5
        scores = (query * ctx.scale) @ key.transpose(2, 3)
        weights = torch.softmax(scores.masked_fill_(~allowed, -torch.inf), 3)
        ctx.save_for_backward(query, key, value, weights)
        return weights @ value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights = ctx.saved_tensors
        (gradient,) = gradients
        to_weights = gradient @ value.transpose(2, 3)
        to_scores = torch._softmax_backward_data(to_weights, weights, 3, weights.dtype) * ctx.scale
        return (
            to_scores @ key,
            to_scores.transpose(2, 3) @ query,
            weights.transpose(2, 3) @ gradient,
            None,
        )
