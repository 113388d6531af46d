"""One rule for attention: a token attends to every token whose segment is not later than its own (Eq. 7 and 8).

Each token of the sequence has a *segment number*; attention is allowed exactly where
``segment[query] >= segment[key]``. From the numbers follow the training mask, the order in which a key-value cache is
filled, and the decode plan. Variants of the model are other numberings, not other code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .errors import InputError

IntArray = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]

CONDITION, POSE, GLOBAL, FIRST_CAUSAL = 0, 1, 2, 3
"""Segments: the condition; the target pose (its own segment, so that a reference is prefilled once); the target tokens
that are known; then one segment for each causal target token."""

UNFILLED = np.int32(np.iinfo(np.int32).max)
"""The segment of a cache slot that nothing was written to: later than any token, so never attended to."""

BLOCKS = ("source_pose", "condition", "pose", "target")


@dataclass(frozen=True)
class Layout:
    """The blocks of the sequence in the order of their position embeddings.

    ``condition`` is c[s], c_0 … c_{n-1}; ``target`` is t[s], t_0 … t_{n-1}, with n image tokens each; ``pose`` is the
    landmarks of the target pose, ``source_pose`` those of the condition image (the authors' released pose model).
    """

    image_tokens: int
    pose_tokens: int = 0
    blocks: tuple[str, ...] = ("condition", "pose", "target")

    def __post_init__(self) -> None:
        if self.image_tokens < 1 or self.pose_tokens < 0:
            raise InputError(
                f"layout: image_tokens={self.image_tokens}, pose_tokens={self.pose_tokens} must be positive"
            )
        if (
            len(set(self.blocks)) != len(self.blocks)
            or not set(self.blocks) <= set(BLOCKS)
            or "target" not in self.blocks
        ):
            raise InputError(f"layout: blocks {self.blocks} must be distinct ones of {BLOCKS} and include 'target'")

    def size(self, block: str) -> int:
        """Number of tokens of ``block``; 0 when the layout lacks it."""
        if block not in self.blocks:
            return 0
        return self.image_tokens + 1 if block in ("condition", "target") else self.pose_tokens

    def slice(self, block: str) -> slice:
        """Where ``block`` lies in the sequence; an empty slice when the layout lacks it."""
        start = 0
        for name in self.blocks:
            if name == block:
                return slice(start, start + self.size(name))
            start += self.size(name)
        return slice(0, 0)

    @property
    def length(self) -> int:
        """Number of tokens of the whole sequence."""
        return sum(self.size(block) for block in self.blocks)


def _numbered(causal: BoolArray) -> IntArray:
    """GLOBAL where not causal, else consecutive segments in raster order."""
    return np.where(causal, FIRST_CAUSAL - 1 + np.cumsum(causal), GLOBAL).astype(np.int32)


def _local(masked: BoolArray) -> IntArray:
    """The paper: causal are the masked tokens and those just before a masked one. ``masked`` starts with t[s]."""
    predicts = np.append(masked[1:], False)
    return _numbered(masked | predicts)


def _released(masked: BoolArray) -> IntArray:
    """The authors' code: the token just before a run of masked ones stays global."""
    return _numbered(masked)


def _vanilla(masked: BoolArray) -> IntArray:
    """Taming: every target token is causal, masked or not."""
    return _numbered(np.ones_like(masked))


def _bidirectional(masked: BoolArray) -> IntArray:
    """An autoencoder: every target token sees every other."""
    return np.full(masked.shape, GLOBAL, np.int32)


NUMBERINGS: dict[str, Callable[[BoolArray], IntArray]] = {
    "local": _local,
    "released": _released,
    "vanilla": _vanilla,
    "bidirectional": _bidirectional,
}


def segments(layout: Layout, token_mask: npt.ArrayLike, numbering: str = "local") -> IntArray:
    """Segment number of every token of the sequence, int32 (layout.length,).

    Args:
        token_mask: bool (image_tokens,), raster order, True where a target token is to be generated.
        numbering: one of :data:`NUMBERINGS`.

    Raises:
        InputError: the mask's shape or the numbering's name is wrong.
    """
    masked = np.asarray(token_mask, bool)
    if masked.shape != (layout.image_tokens,):
        raise InputError(f"token_mask: shape {masked.shape}, expected ({layout.image_tokens},)")
    if numbering not in NUMBERINGS:
        raise InputError(f"numbering: {numbering!r}, expected one of {sorted(NUMBERINGS)}")
    result = np.full(layout.length, CONDITION, np.int32)
    result[layout.slice("pose")] = POSE
    result[layout.slice("target")] = NUMBERINGS[numbering](np.append(False, masked))
    return result


def attention_mask(segment: npt.ArrayLike) -> BoolArray:
    """Bool (L, L), query by key: the local attention mask of Eq. 7, True where attention is allowed."""
    segment = np.asarray(segment)
    return segment[:, None] >= segment[None, :]


@dataclass(frozen=True)
class Step:
    """One call of the transformer: feed target rows (0 is t[s], j + 1 is token j), then read image token ``read``."""

    feed: tuple[int, ...]
    read: int


@dataclass(frozen=True)
class DecodePlan:
    """How to generate the masked tokens of one image.

    Attributes:
        token_mask: bool (n,), the tokens that are generated.
        segment: int32 (layout.length,), as :func:`segments` gives it.
        prefill_target: target rows known before decoding starts (global ones), in raster order.
        prefill_read: (row in ``prefill_target``'s order, image token) pairs whose logits come from the prefill.
        steps: the transformer calls after the prefill, in order. Row j of the target predicts image token j.
    """

    layout: Layout
    token_mask: BoolArray
    segment: IntArray
    prefill_target: tuple[int, ...]
    prefill_read: tuple[tuple[int, int], ...]
    steps: tuple[Step, ...] = field(repr=False)


def decode_plan(layout: Layout, token_mask: npt.ArrayLike, numbering: str = "local") -> DecodePlan:
    """The order in which masked tokens are generated: each masked token m is read at target row m (that of t_{m-1}).

    After the prefill there is at most one step for each masked token, whatever the image.

    Raises:
        InputError: as :func:`segments`; or the numbering is not autoregressive.
    """
    if numbering == "bidirectional":
        raise InputError("numbering: 'bidirectional' has no decode plan, it is not autoregressive")
    segment = segments(layout, token_mask, numbering)
    masked = np.asarray(token_mask, bool)
    target = segment[layout.slice("target")]
    known = tuple(int(row) for row in np.flatnonzero(target == GLOBAL))
    rank = {row: order for order, row in enumerate(known)}
    waiting = [int(row) for row in np.flatnonzero(target != GLOBAL)]
    prefill_read: list[tuple[int, int]] = []
    steps: list[Step] = []
    for token in np.flatnonzero(masked):
        read = int(token)
        if read in rank:
            prefill_read.append((rank[read], read))
            continue
        feed = tuple(row for row in waiting if row <= read)
        waiting = waiting[len(feed) :]
        steps.append(Step(feed, read))
    return DecodePlan(layout, masked, segment, known, tuple(prefill_read), tuple(steps))
