"""How good bundles are on held-out frames, beside what needs no model, all on the same crops and the same masks.

Everything is measured at the model's size S: reference and target are the crop that training would cut, resampled as
training does. A bundle is run by the runtime that ships it, :class:`ilat_runtime.Editor`, on its graphs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from ilat_runtime import Editor
from ilat_runtime.crop import Crop
from ilat_runtime.errors import InputError
from ilat_runtime.image_file import BoolArray, ByteArray, encoded
from ilat_runtime.sheet import with_mask

from ..data.dataset import Pair, PoseDataset, to_bytes
from ..losses.lpips import Lpips
from ..models import TSVQGAN
from .metrics import measure_all
from .sheet import sample_sheet

COPY, TELEA, TRUE_TOKENS = "copy the reference", "OpenCV inpainting (Telea)", "tokenizer, true tokens"
TELEA_RADIUS = 3
BATCH = 8
SHEET_ROWS = 6
SHEET_BYTES = 600_000
SHEET_CELLS = (256, 224, 192, 160, 128, 96, 64)
SHEET_LEAST = 128
"""Smaller images are shown enlarged, up to this side."""
MEASURES = {
    "psnr": ("PSNR, dB ↑", ".2f"),
    "ssim": ("SSIM ↑", ".4f"),
    "mae": ("MAE ↓", ".4f"),
    "lpips": ("LPIPS ↓", ".4f"),
}


@dataclass(frozen=True)
class Example:
    """One held-out pair at the model's size S.

    Attributes:
        reference, target: uint8 (S, S, 3) RGB, the photograph and what its edit should look like.
        mask: bool (S, S), the union of both dilated skeletons.
        poses: float32 (2, 13, 3), of reference and target, in pixels of these images.
    """

    pair: Pair
    reference: ByteArray
    target: ByteArray
    mask: BoolArray
    poses: npt.NDArray[np.float32]


Method = Callable[[Sequence[Example]], list[ByteArray]]
"""From a few examples to their edited references; the targets are not looked at, but by the upper bound."""


def examples(data: PoseDataset, pairs: Sequence[Pair]) -> list[Example]:
    """The pairs as the model sees them."""
    result = []
    for pair in pairs:
        batch = data.load([pair])
        poses = batch.poses[0].numpy() * np.array([data.size, data.size, 1], np.float32)
        mask = np.asarray(batch.skeleton_mask()[0, 0].numpy(), np.bool_)
        result.append(Example(pair, to_bytes(batch.condition[0]), to_bytes(batch.target[0]), mask, poses))
    return result


def copy_reference(some: Sequence[Example]) -> list[ByteArray]:
    """The reference as it is."""
    return [example.reference for example in some]


def inpaint(some: Sequence[Example]) -> list[ByteArray]:
    """The reference with the mask filled in from its border (Telea, 2004)."""
    return [
        np.asarray(cv2.inpaint(each.reference, each.mask.astype(np.uint8), TELEA_RADIUS, cv2.INPAINT_TELEA), np.uint8)
        for each in some
    ]


def bundle_method(editor: Editor) -> Method:
    """Greedy edits by a bundle; the mask is given, so that every method gets the same one."""
    posed = editor.manifest.kind == "pose"

    def edit(some: Sequence[Example]) -> list[ByteArray]:
        results = editor.edit_batch(
            [example.reference for example in some],
            [example.poses[1] for example in some] if posed else None,
            [example.mask for example in some],
            reference_poses=[example.poses[0] for example in some] if posed else None,
            crops=[Crop(0, 0, len(example.mask)) for example in some],
        )
        return [result.image for result in results]

    return edit


def true_tokens_method(tokenizer: TSVQGAN) -> Method:
    """The upper bound: the target's own tokens under the mask, decoded with the reference's latents (Eq. 4)."""

    def decode(some: Sequence[Example]) -> list[ByteArray]:
        reference, target = (
            torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
            for images in ([example.reference for example in some], [example.target for example in some])
        )
        mask = torch.from_numpy(np.stack([example.mask for example in some]))[:, None]
        with torch.inference_mode():
            tokens = tokenizer.quantizer.nearest(tokenizer.encode(target, mask))
            latent = tokenizer.encode(reference, mask, both_streams=False)
            image = tokenizer.decode_mixed(latent, tokens, tokenizer.token_mask(mask))
        return [
            np.where(example.mask[..., None], to_bytes(row), example.reference)
            for example, row in zip(some, image, strict=True)
        ]

    return decode


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        size: of the images, pixels.
        perceptual: backbone of LPIPS, or None.
        scores: for each method and pair what :func:`ilat_train.evaluation.metrics.measure` gives.
        images: for each method, the edited references of the examples.
    """

    size: int
    perceptual: str | None
    examples: list[Example]
    scores: dict[str, list[dict[str, float]]]
    images: dict[str, list[ByteArray]]

    def means(self, method: str) -> dict[str, float]:
        """Each measure's mean over all pairs."""
        rows = self.scores[method]
        return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}

    @property
    def masked_share(self) -> float:
        """Mean share of the crop that is masked."""
        return float(np.mean([example.mask.mean() for example in self.examples]))

    def table(self) -> str:
        """Markdown: a row for each method; inside the mask, then over the whole crop."""
        shown = {key: value for key, value in MEASURES.items() if key != "lpips" or self.perceptual}
        heads = [f"{label}{where}" for where in (" (mask)", " (crop)") for label, _ in shown.values()]
        lines = ["| | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(heads)]
        for method in self.scores:
            means = self.means(method)
            cells = [format(means[key + end], form) for end in ("_mask", "") for key, (_, form) in shown.items()]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        lpips = f"; LPIPS: {self.perceptual}" if self.perceptual else ""
        note = (
            f"Means over {len(self.examples)} held-out pairs, crops of {self.size}×{self.size} pixels, of which "
            f"{100 * self.masked_share:.1f} % are masked{lpips}."
        )
        return "\n".join([*lines, "", note, ""])

    def record(self) -> dict[str, Any]:
        """The same as JSON, and every pair's numbers; an infinite PSNR (equal images) is null."""
        return {
            "size": self.size,
            "lpips": self.perceptual,
            "masked_share": self.masked_share,
            "pairs": [
                {"clip": pair.clip, "reference": pair.condition, "target": pair.target}
                for pair in (example.pair for example in self.examples)
            ],
            "methods": {
                method: {"mean": _finite(self.means(method)), "each": [_finite(row) for row in rows]}
                for method, rows in self.scores.items()
            },
        }

    def sheet(self) -> ByteArray:
        """Rows of examples spread over all: reference, target, mask and each method's image; at most 600 kB as JPEG."""
        shown = [method for method in self.images if method != COPY]
        rows = []
        for place in np.unique(np.linspace(0, len(self.examples) - 1, SHEET_ROWS).round().astype(int)):
            example = self.examples[place]
            tinted = with_mask(example.reference, example.mask)
            edited = [self.images[method][place] for method in shown]
            rows.append([example.reference, example.target, tinted, *edited])
        labels = ["reference (copy)", "target", "mask", *shown]
        for cell in SHEET_CELLS:
            sheet = sample_sheet(rows, labels, min(cell, max(self.size, SHEET_LEAST)))
            if len(encoded(sheet, ".jpg")) <= SHEET_BYTES:
                break
        return sheet


def evaluate(
    chosen: Sequence[Example], methods: Mapping[str, Method], perceptual: Lpips | None = None, progress: bool = False
) -> Evaluation:
    """Run every method on every example and measure the results against the targets.

    Raises:
        InputError: no example, or a bundle does not take what the examples hold.
    """
    if not chosen:
        raise InputError("evaluation: expected at least one pair")
    images: dict[str, list[ByteArray]] = {}
    for name, method in methods.items():
        images[name] = []
        with tqdm(total=len(chosen), desc=name, unit="image", disable=None if progress else True) as bar:
            for first in range(0, len(chosen), BATCH):
                images[name] += method(chosen[first : first + BATCH])
                bar.update(len(images[name]) - bar.n)
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    for place, example in enumerate(tqdm(chosen, "measuring", unit="pair", disable=None if progress else True)):
        results = measure_all([images[name][place] for name in methods], example.target, example.mask, perceptual)
        for name, result in zip(methods, results, strict=True):
            scores[name].append(result)
    kind = None if perceptual is None else {"vgg": "VGG16", "alex": "AlexNet"}[perceptual.kind]
    return Evaluation(len(chosen[0].mask), kind, list(chosen), scores, images)


def common_rule(editors: Mapping[str, Editor]) -> tuple[int, float | None, float | None]:
    """Image size, crop margin and mask dilation that all bundles share; None where no bundle says.

    Raises:
        InputError: two bundles differ, so that they cannot be compared on the same crops.
    """
    rule: dict[str, dict[str, Any]] = {"image size": {}, "crop margin": {}, "dilation": {}}
    for name, editor in editors.items():
        rule["image size"][name] = editor.manifest.image_size
        if editor.manifest.crop is not None:
            rule["crop margin"][name] = editor.manifest.crop.margin
            rule["dilation"][name] = editor.manifest.crop.dilation
    for label, values in rule.items():
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{name}: {value}" for name, value in values.items())
            raise InputError(f"--bundle: {label} differs ({listed}); compare bundles of one rule")
    size, margin, dilation = (next(iter(values.values()), None) for values in rule.values())
    if size is None:
        raise InputError("--bundle: expected at least one")
    return size, margin, dilation


def _finite(row: Mapping[str, float]) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in row.items()}
