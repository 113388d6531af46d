"""The local autoregressive transformer (Sec. 3.2): a decoder-only transformer with the mask of Eq. 7 and 8."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ilat_runtime.segments import segments

from ..config import TransformerConfig
from .attention import attention
from .copy_start import start_by_copying
from .point_mlp import PointMLP


class Cache(Protocol):
    """Keys and values of earlier tokens."""

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Takes keys and values (B, heads, q, d) of new tokens; returns all there are, (B, heads, T, d)."""
        ...


TABLE_STD = 0.02
"""Standard deviation of the tables at the start."""


class SelfAttention(nn.Module):
    """Eq. 8."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.layer, self.dropout = config.heads, layer, config.dropout
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.project = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, allowed: Tensor, cache: Cache | None = None) -> Tensor:
        """Of x (B, q, width), the same; allowed is bool (B or 1, 1, q, T), True where a query may attend to a key."""
        batch, length, width = x.shape
        shape = (batch, length, self.heads, width // self.heads)
        query, key, value = (part.reshape(shape).transpose(1, 2) for part in self.qkv(x).split(width, 2))
        if cache is not None:
            key, value = cache.append(self.layer, key, value)
        attended = attention(query, key, value, allowed, self.dropout, self.training)
        return self.project(attended.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """Attention and a feed-forward layer, each normalised before and added to the residual stream."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attention = SelfAttention(config, layer)
        self.norm2 = nn.LayerNorm(config.width)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.width, 4 * config.width), nn.GELU(), nn.Linear(4 * config.width, config.width)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, allowed: Tensor, cache: Cache | None = None) -> Tensor:
        """(B, q, width) to the same."""
        x = x + self.dropout(self.attention(self.norm1(x), allowed, cache))
        return x + self.dropout(self.feed_forward(self.norm2(x)))


class LocalTransformer(nn.Module):
    """Tokens in one joint vocabulary: condition tokens, then target tokens (or one table for both), c[s], t[s], and one
    id for landmarks.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.target_offset = 0 if config.shared_vocabulary else config.condition_vocabulary
        self.start_condition = self.target_offset + config.codebook_size
        self.start_target = self.start_condition + 1
        self.pose = self.start_condition + 2
        self.embedding = nn.Parameter(torch.empty(self.pose + 1, config.width))
        self.position = nn.Parameter(torch.empty(config.layout.length, config.width))
        self.point_mlp = PointMLP(config.width, config.hide_absent) if config.pose_tokens else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm1 = nn.LayerNorm(config.width)
        self.dense = nn.Linear(config.width, config.width)
        self.norm2 = nn.LayerNorm(config.width)
        self.bias = nn.Parameter(torch.zeros(config.codebook_size))
        self.apply(_initialise)
        for table in (self.embedding, self.position):
            nn.init.normal_(table, std=TABLE_STD)
        if config.start == "copy":
            start_by_copying(self, TABLE_STD)

    def forward(
        self,
        tokens: Tensor,
        landmarks: Tensor | None,
        positions: Tensor,
        allowed: Tensor,
        cache: Cache | None = None,
    ) -> Tensor:
        """Hidden states (B, q, width) of tokens int64 (B, q) of the joint vocabulary.

        Args:
            landmarks: float (B, q, 3), read where the token is the landmarks' id; None for models without.
            positions: int64 (B, q) or (q,), index into the whole sequence's layout.
            allowed: bool (B or 1, 1, q, T), Eq. 7.
        """
        x = self.embedding[tokens]
        if self.point_mlp is not None and landmarks is not None:
            x = torch.where((tokens == self.pose)[..., None], self.point_mlp(landmarks), x)
        x = self.dropout(x + self.position[positions])
        for block in self.blocks:
            x = block(x, allowed, cache)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., width) to logits (..., K) of the next target token; the table of embeddings is tied."""
        hidden = self.norm2(F.gelu(self.dense(self.norm1(hidden))))
        table = self.embedding[self.target_offset : self.target_offset + self.config.codebook_size]
        return F.linear(hidden, table, self.bias)

    def sequence(
        self, condition: Tensor | None, pose: Tensor | None, target: Tensor, source_pose: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The whole sequence for training: tokens int64 (B, L) and landmarks (B, L, 3).

        Args:
            condition: int64 (B, n) tokens of the condition image; None when the model has none.
            pose: float (B, 13, 3) crop-relative landmarks of the target; None when the model has none.
            target: int64 (B, n) tokens of the target image.
            source_pose: as ``pose``, of the condition image, for models with that block.
        """
        layout, batch = self.config.layout, target.shape[0]
        tokens = target.new_full((batch, layout.length), self.pose)
        landmarks = torch.zeros(batch, layout.length, 3, device=target.device)
        if condition is not None:
            at = layout.slice("condition")
            tokens[:, at.start] = self.start_condition
            tokens[:, at.start + 1 : at.stop] = condition
        for block, given in (("pose", pose), ("source_pose", source_pose)):
            if given is not None:
                landmarks[:, layout.slice(block)] = given
        at = layout.slice("target")
        tokens[:, at.start] = self.start_target
        tokens[:, at.start + 1 : at.stop] = target + self.target_offset
        return tokens, landmarks

    def target_logits(
        self,
        condition: Tensor | None,
        pose: Tensor | None,
        target: Tensor,
        segment: Tensor,
        source_pose: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, n, K): entry m predicts target token m, by one pass over the whole sequence (teacher forcing).

        Args:
            segment: int32 (B, L), the segment number of every token.
        """
        tokens, landmarks = self.sequence(condition, pose, target, source_pose)
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        allowed = (segment[:, :, None] >= segment[:, None, :])[:, None]
        hidden = self(tokens, landmarks, positions, allowed)
        return self.logits(hidden[:, self.config.layout.slice("target")][:, :-1])


def batch_segments(config: TransformerConfig, token_mask: Tensor) -> Tensor:
    """Segment numbers int32 (B, L) for token masks bool (B, n), by the configured numbering."""
    rows = [segments(config.layout, row, config.numbering) for row in token_mask.cpu().numpy()]
    return torch.from_numpy(np.stack(rows)).to(token_mask.device)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


__all__ = ["Block", "Cache", "LocalTransformer", "SelfAttention", "batch_segments"]
