"""Editing images with a bundle: what is masked is generated, everything else stays."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from .backends import choose
from .checks import checked_image, checked_mask, checked_number, checked_pose, same_length
from .crop import Crop, crop_around, mask_box, visible_box
from .decoding import Decoder, Generated, Progress, Sampling, Target, check_sampling
from .errors import BundleError, IlatError, InputError
from .image_file import BoolArray, ByteArray
from .joints import JOINTS
from .manifest import load_manifest, verify_files
from .segments import decode_plan

FloatArray = npt.NDArray[np.float32]
TokenArray = npt.NDArray[np.int64]

MAX_CROP = 8192
"""The largest side of the square in which an edit happens, in pixels; the graphs take about 1 GB for it."""
DEFAULT_MARGIN = 1.3

NOTHING_MASKED = "nothing is masked: the image is returned unchanged"
NO_REFERENCE_POSE = "no reference pose was given: only the target's skeleton is masked"
POSE_OUTSIDE = "part of the target pose lies outside the session's crop and is not drawn"


@dataclass(frozen=True)
class Result:
    """An edited image and how it came about.

    Attributes:
        image: uint8 HWC RGB, the size of the input; outside ``mask`` it is the input, pixel for pixel, unless blending
            was asked for.
        tokens: int64, the generated image tokens in raster order.
        token_mask: bool (g, g), which tokens of the model's grid were generated.
        log_probability: float32, of each generated token under the model (temperature 1, all candidates).
        mask: bool HW, the pixels that were edited.
        timings: seconds spent in ``encode``, ``prefill``, ``decode``, ``decoder`` and in ``total``; for a batch, those
            of the whole batch.
        transformer_calls: calls after the prefill, never more than ``masked_tokens``.
        masked_tokens: number of generated tokens.
        backend: what ran the graphs, with its version and device.
        crop: the square of the image in which the edit happened.
        notice: what the caller should know about this edit, or None.
    """

    image: ByteArray
    tokens: TokenArray
    token_mask: BoolArray
    log_probability: FloatArray
    mask: BoolArray
    timings: dict[str, float]
    transformer_calls: int
    masked_tokens: int
    backend: str
    crop: Crop
    notice: str | None = None


@dataclass(frozen=True)
class _Job:
    """One checked edit."""

    image: ByteArray
    crop: Crop
    pose: FloatArray | None = None
    reference_pose: FloatArray | None = None
    mask: BoolArray | None = None
    radius: float = 0.0
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Encoded:
    latent: FloatArray
    tokens: TokenArray
    token_mask: BoolArray
    edit_mask: ByteArray


@dataclass
class _Clock:
    """Seconds by name."""

    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("encode", "prefill", "decode", "decoder"), 0.0)
    )
    started: float = field(default_factory=time.perf_counter)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start

    def timings(self) -> dict[str, float]:
        return {**self.seconds, "total": time.perf_counter() - self.started}


class Editor:
    """Edits images with the model of a bundle. May be used from several threads at once.

    Args:
        bundle: the bundle's folder.
        backend: ``auto``, which takes the first that works here and logs which one and why; or the name of one.
        threads: CPU threads of the backend; None leaves the number to it.

    Attributes:
        manifest: the bundle's :class:`ilat_runtime.manifest.Manifest`.
        backend: what runs the graphs, with its version and device.
        backend_reason: why this one.

    Raises:
        BundleError: the bundle is incomplete, changed, newer than this runtime, or contradicts itself.
        BackendError: the backend does not exist or does not work here.
    """

    def __init__(self, bundle: str | os.PathLike[str], backend: str = "auto", threads: int | None = None) -> None:
        self.manifest = load_manifest(bundle)
        if self.manifest.kind == "sketch":
            raise BundleError(f"{bundle}: kind: 'sketch' bundles cannot be edited with in this version of ilat")
        verify_files(bundle, self.manifest)
        choice = choose(backend, threads)
        self.backend, self.backend_reason = choice.backend.description, choice.reason
        graphs = self.manifest.graphs
        self._encoder, self._transformer, self._decoder = (
            choice.backend.load(Path(bundle) / graph.file, graph)
            for graph in (graphs.encoder, graphs.transformer, graphs.decoder)
        )

    def edit(
        self,
        image: ByteArray,
        pose: FloatArray | None = None,
        mask: BoolArray | None = None,
        *,
        reference_pose: FloatArray | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int = 1,
        dilation: float | None = None,
        margin: float | None = None,
        crop: Crop | None = None,
        blend: bool = False,
        progress: Progress | None = None,
    ) -> Result:
        """Edit one image.

        Args:
            image: uint8 HWC RGB, of any size up to 134 million pixels.
            pose: float32 (13, 3), the pose to give the person: x, y in pixels of the image (origin top left) and
                visibility 0 or 1, in the order of ``JOINTS``. Needed by bundles of kind ``pose``, taken by no other.
            mask: bool HW, exactly the pixels to edit. Without one, a bundle of kind ``pose`` masks both skeletons.
            reference_pose: float32 (13, 3), the pose of the person in the image; where it is to be erased.
            seed: whole number from 0 to 2^64 - 1, for ``top_k`` above 1.
            temperature: above 0; larger is more varied. Without effect when ``top_k`` is 1.
            top_k: likeliest candidates for each token to choose from; 1 always takes the likeliest.
            dilation: radius of the skeletons' mask over the larger side of the poses' box; None: as in training.
            margin: side of the crop over the larger side of the box of poses and mask; None: as in training.
            crop: the square in which to edit, instead of the one that ``margin`` gives.
            blend: blend the edit into the image across the mask's border (A.3), which changes pixels outside the mask.
            progress: called with (tokens done, tokens in all) after each token; returning False cancels.

        Raises:
            InputError: an argument is not as described.
            Cancelled: ``progress`` returned False.
        """
        check_sampling(Sampling(seed, temperature, top_k), self.manifest.codebook_size)
        job = self._job(image, pose, mask, reference_pose, crop, margin, dilation)
        return self._edit([job], Sampling(seed, temperature, top_k), blend, progress)[0]

    def edit_batch(
        self,
        images: Sequence[ByteArray],
        poses: Sequence[FloatArray | None] | None = None,
        masks: Sequence[BoolArray | None] | None = None,
        *,
        reference_poses: Sequence[FloatArray | None] | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int = 1,
        dilation: float | None = None,
        margin: float | None = None,
        crops: Sequence[Crop | None] | None = None,
        blend: bool = False,
        progress: Progress | None = None,
    ) -> list[Result]:
        """Edit several images together; each gets the tokens that it gets alone.

        The images may differ in size, and the masks in everything. The arguments are those of :meth:`edit`, one for
        each image where they are lists; ``progress`` counts the tokens of the whole batch.
        """
        check_sampling(Sampling(seed, temperature, top_k), self.manifest.codebook_size)
        images = list(images)
        columns = [
            same_length(items, len(images), name)
            for items, name in (
                (poses, "poses"),
                (masks, "masks"),
                (reference_poses, "reference_poses"),
                (crops, "crops"),
            )
        ]
        jobs = [
            self._job(image, pose, mask, reference, crop, margin, dilation, index)
            for index, (image, pose, mask, reference, crop) in enumerate(zip(images, *columns, strict=True))
        ]
        return self._edit(jobs, Sampling(seed, temperature, top_k), blend, progress) if jobs else []

    def reference(self, image: ByteArray, pose: FloatArray | None = None, crop: Crop | None = None) -> Session:
        """Encode and prefill a reference image once, for any number of edits of it.

        Args:
            image: uint8 HWC RGB.
            pose: float32 (13, 3) in pixels, the pose of the person in it.
            crop: the square in which all edits happen; :meth:`crop_for` finds one for a sequence of poses. None: the
                one for ``pose`` alone, or the whole image when there is no pose.

        Raises:
            InputError: an argument is not as described.
        """
        return Session(self, image, pose, crop)

    def crop_for(
        self,
        image: ByteArray,
        poses: Sequence[FloatArray] | None = None,
        mask: BoolArray | None = None,
        margin: float | None = None,
    ) -> Crop:
        """The square in which an edit with these poses and this mask happens, by the rule of the model's training.

        Args:
            image: uint8 HWC RGB.
            poses: float32 (13, 3) each, in pixels of the image.
            mask: bool HW.
            margin: as in :meth:`edit`.

        Raises:
            InputError: an argument is not as described.
        """
        checked_image(image)
        checked = [checked_pose(pose, image, f"poses[{index}]") for index, pose in enumerate(poses or ())]
        return self._crop_for(image, checked, None if mask is None else checked_mask(mask, image), margin)

    def _crop_for(
        self, image: ByteArray, poses: Sequence[FloatArray], mask: BoolArray | None, margin: float | None
    ) -> Crop:
        height, width = image.shape[:2]
        trained = self.manifest.crop.margin if self.manifest.crop else DEFAULT_MARGIN
        factor = trained if margin is None else checked_number(margin, "margin", 1, 100)
        corners: list[tuple[float, float, float, float]] = []
        if poses and (box := visible_box(np.stack(poses))):
            corners.append(box)
        if mask is not None and (box := mask_box(mask)):
            corners.append(box)
        if corners:
            boxes = np.array(corners)
            (x0, y0), (x1, y1) = boxes[:, :2].min(0), boxes[:, 2:].max(0)
            crop = crop_around(
                (float(x0), float(y0), float(x1), float(y1)), (width, height), factor, self.manifest.image_size
            )
        else:
            crop = crop_around((0, 0, width, height), (width, height), 1, 1)
        return _checked_crop(crop, image, "image")

    def _job(
        self,
        image: Any,
        pose: Any,
        mask: Any,
        reference_pose: Any,
        crop: Crop | None,
        margin: float | None,
        dilation: float | None,
        index: int | None = None,
        session: bool = False,
    ) -> _Job:
        """Check one edit; ``index`` is its place in a batch, for error messages."""

        def name(argument: str) -> str:
            return argument if index is None else f"{argument}s[{index}]"

        image = checked_image(image, name("image"))
        posed = self.manifest.kind == "pose"
        self._check_kind(pose, mask, reference_pose, name)
        target = checked_pose(pose, image, name("pose")) if posed else None
        source = None if reference_pose is None else checked_pose(reference_pose, image, name("reference_pose"))
        mask = None if mask is None else checked_mask(mask, image, name("mask"))
        poses = [pose for pose in (target, source) if pose is not None]
        square = (
            self._crop_for(image, poses, mask, margin) if crop is None else _checked_crop(crop, image, name("crop"))
        )
        if mask is not None:
            self._check_inside(mask, square, name("mask"))
        notices = []
        radius = 0.0
        if mask is None:
            radius = self._radius(poses, square, dilation)
            if source is None:
                notices.append(NO_REFERENCE_POSE)
        if target is not None and session:
            inside = square.relative(target[target[:, 2] > 0.5])[:, :2]
            if ((inside < 0) | (inside > 1)).any():
                notices.append(POSE_OUTSIDE)
        return _Job(image, square, target, source, mask, radius, tuple(notices))

    def _check_kind(self, pose: Any, mask: Any, reference_pose: Any, name: Callable[[str], str]) -> None:
        """What this kind of bundle takes."""
        bundle = f"the bundle {self.manifest.name!r} (kind {self.manifest.kind!r})"
        if self.manifest.kind == "pose":
            if pose is None:
                raise InputError(f"{name('pose')}: missing, {bundle} needs a target pose: float32 ({len(JOINTS)}, 3)")
            if reference_pose is None and "source_pose" in self.manifest.layout:
                raise InputError(
                    f"{name('reference_pose')}: missing, {bundle} needs the pose of the person in the image"
                )
            return
        for key, value in (("pose", pose), ("reference_pose", reference_pose)):
            if value is not None:
                raise InputError(f"{name(key)}: {bundle} takes no pose, only a mask")
        if mask is None:
            raise InputError(f"{name('mask')}: missing, {bundle} needs a mask: bool HW of what to edit")

    def _radius(self, poses: Sequence[FloatArray], crop: Crop, dilation: float | None) -> float:
        """The skeleton mask's radius in units of the crop's side; of this edit's own poses, as in training."""
        trained = self.manifest.crop.dilation if self.manifest.crop else 0.0
        factor = trained if dilation is None else checked_number(dilation, "dilation", 0, 1)
        x0, y0, x1, y1 = visible_box(np.stack(poses)) or (0, 0, 0, 0)
        return factor * max(x1 - x0, y1 - y0) / crop.side

    @staticmethod
    def _check_inside(mask: BoolArray, crop: Crop, name: str) -> None:
        inside = mask[max(crop.y, 0) : crop.y + crop.side, max(crop.x, 0) : crop.x + crop.side]
        outside = int(mask.sum()) - int(inside.sum())
        if outside:
            raise InputError(f"{name}: {outside} masked pixels lie outside the crop {crop}")

    def _edit(
        self,
        jobs: Sequence[_Job],
        sampling: Sampling,
        blend: bool,
        progress: Progress | None,
        prepared: Decoder | None = None,
    ) -> list[Result]:
        """Edit the jobs together; ``prepared`` holds the reference of the only one."""
        clock = _Clock()
        with clock("encode"):
            encoded = self._encode(jobs)
        # A thin skeleton in a tiny crop can mask a token and yet no pixel.
        active = [index for index, item in enumerate(encoded) if item.token_mask.any() and item.edit_mask.any()]
        patches: dict[int, ByteArray] = {}
        generated: dict[int, Generated] = {}
        if active:
            chosen = [jobs[index] for index in active]
            decoder = prepared or self._prefilled(chosen, clock)
            layout, numbering = self.manifest.sequence, self.manifest.numbering
            targets = [
                Target(
                    decode_plan(layout, encoded[index].token_mask, numbering),
                    encoded[index].tokens,
                    None if job.pose is None else job.crop.relative(job.pose),
                )
                for index, job in zip(active, chosen, strict=True)
            ]
            with clock("decode"):
                answers = decoder.generate(targets, sampling, progress)
            clock.seconds["decode"] -= decoder.prefill_seconds
            clock.seconds["prefill"] += decoder.prefill_seconds
            generated = dict(zip(active, answers, strict=True))
            with clock("decoder"):
                images = self._decode(chosen, [encoded[index] for index in active], answers, blend)
            patches = dict(zip(active, images, strict=True))
        timings = clock.timings()
        nothing = Generated(np.zeros(0, np.int64), np.zeros(0, np.float32), 0)
        return [
            self._result(job, encoded[index], generated.get(index, nothing), patches.get(index), timings)
            for index, job in enumerate(jobs)
        ]

    def _result(
        self, job: _Job, encoded: _Encoded, generated: Generated, patch: ByteArray | None, timings: dict[str, float]
    ) -> Result:
        mask = np.zeros((*job.image.shape[:2], 1), np.uint8)
        token_mask = encoded.token_mask
        image = job.image.copy()
        notices = list(job.notices)
        if patch is None:
            token_mask = np.zeros_like(token_mask)
            notices.append(NOTHING_MASKED)
        else:
            mask = job.crop.put(mask, encoded.edit_mask[..., None])
            image = job.crop.put(job.image, patch)
        return Result(
            image=image,
            tokens=generated.tokens,
            token_mask=token_mask.reshape(self.manifest.grid, self.manifest.grid),
            log_probability=generated.log_probability,
            mask=mask[..., 0] > 0,
            timings=dict(timings),
            transformer_calls=generated.calls,
            masked_tokens=len(generated.tokens),
            backend=self.backend,
            crop=job.crop,
            notice="; ".join(notices) or None,
        )

    def _prefilled(self, jobs: Sequence[_Job], clock: _Clock) -> Decoder:
        """A decoder that holds the references of the jobs."""
        decoder = Decoder(self.manifest, self._transformer, len(jobs))
        tokens = [np.zeros(self.manifest.image_tokens, np.int64)] * len(jobs)
        if "condition" in self.manifest.layout:
            with clock("encode"):
                # The reference is seen whole: nothing of it is masked.
                whole = [_Job(job.image, job.crop) for job in jobs]
                tokens = [item.tokens for item in self._encode(whole)]
        poses = [None if job.reference_pose is None else job.crop.relative(job.reference_pose) for job in jobs]
        with clock("prefill"):
            decoder.condition(tokens, poses)
        return decoder

    def _encode(self, jobs: Sequence[_Job]) -> list[_Encoded]:
        """Latents, tokens and masks; crops of one size go through the graph together."""
        result: dict[int, _Encoded] = {}
        for members in _groups(jobs):
            group = [jobs[index] for index in members]
            inputs: dict[str, npt.NDArray[Any]] = {
                "image": np.stack([job.crop.take(job.image) for job in group]),
                "mask": np.stack([_crop_mask(job) for job in group]),
            }
            if "poses" in self.manifest.graphs.encoder.inputs:
                inputs["poses"] = np.stack([_drawn(job) for job in group])
                inputs["radius"] = np.array([job.radius for job in group], np.float32)
            outputs = self._encoder.run(inputs)
            for place, index in enumerate(members):
                result[index] = _Encoded(
                    *(outputs[key][place] for key in ("latent", "tokens", "token_mask", "edit_mask"))
                )
        return [result[index] for index in range(len(jobs))]

    def _decode(
        self, jobs: Sequence[_Job], encoded: Sequence[_Encoded], generated: Sequence[Generated], blend: bool
    ) -> list[ByteArray]:
        """The edited crops."""
        result: dict[int, ByteArray] = {}
        for members in _groups(jobs):
            tokens = np.stack([encoded[index].tokens for index in members])
            token_mask = np.stack([encoded[index].token_mask for index in members])
            for place, index in enumerate(members):
                tokens[place, token_mask[place]] = generated[index].tokens
            outputs = self._decoder.run(
                {
                    "latent": np.stack([encoded[index].latent for index in members]),
                    "tokens": tokens,
                    "token_mask": token_mask,
                    "image": np.stack([jobs[index].crop.take(jobs[index].image) for index in members]),
                    "edit_mask": np.stack([encoded[index].edit_mask for index in members]),
                    "blend": np.array([bool(blend)]),
                }
            )
            result.update(zip(members, outputs["edited"], strict=True))
        return [result[index] for index in range(len(jobs))]


class Session:
    """A reference image, encoded and prefilled once; made by :meth:`Editor.reference`. A context manager.

    Meant for one thread: edits from several are done one after the other. After a cancelled or failed edit it can be
    used again.

    Attributes:
        crop: the square in which all its edits happen.
        timings: seconds that preparing the reference took, as in :attr:`Result.timings`.
    """

    def __init__(self, editor: Editor, image: ByteArray, pose: FloatArray | None, crop: Crop | None) -> None:
        image = checked_image(image)
        if pose is not None and editor.manifest.kind != "pose":
            raise InputError(f"pose: the bundle {editor.manifest.name!r} (kind {editor.manifest.kind!r}) takes no pose")
        source = None if pose is None else checked_pose(pose, image)
        if crop is None:
            crop = editor._crop_for(image, [] if source is None else [source], None, None)
        self.crop = _checked_crop(crop, image, "crop")
        # A copy: what was encoded stays what is edited, whatever the caller does to the array.
        self._editor, self._image, self._pose = editor, image.copy(), source
        self._lock = threading.Lock()
        clock = _Clock()
        self._decoder: Decoder | None = editor._prefilled([_Job(image, self.crop, reference_pose=source)], clock)
        self.timings = clock.timings()

    def edit(
        self,
        pose: FloatArray | None = None,
        mask: BoolArray | None = None,
        *,
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int = 1,
        dilation: float | None = None,
        blend: bool = False,
        progress: Progress | None = None,
    ) -> Result:
        """Edit the reference image; arguments, result and errors are those of :meth:`Editor.edit`."""
        editor, sampling = self._editor, Sampling(seed, temperature, top_k)
        check_sampling(sampling, editor.manifest.codebook_size)
        with self._lock:
            if self._decoder is None:
                raise IlatError("session: it is closed; make another with Editor.reference")
            job = editor._job(self._image, pose, mask, self._pose, self.crop, None, dilation, session=True)
            return editor._edit([job], sampling, blend, progress, self._decoder)[0]

    def close(self) -> None:
        """Free the memory of the reference; the session cannot be used any more."""
        with self._lock:
            self._decoder = None

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _groups(jobs: Sequence[_Job]) -> list[list[int]]:
    """Indices of jobs whose crops have the same size."""
    groups: dict[int, list[int]] = {}
    for index, job in enumerate(jobs):
        groups.setdefault(job.crop.side, []).append(index)
    return list(groups.values())


def _crop_mask(job: _Job) -> ByteArray:
    """The user's mask in the crop, uint8 (side, side); beyond the image's edge nothing is masked."""
    result = np.zeros((job.crop.side, job.crop.side), np.uint8)
    if job.mask is not None:
        crop, (height, width) = job.crop, job.mask.shape
        y0, y1, x0, x1 = max(crop.y, 0), min(crop.y + crop.side, height), max(crop.x, 0), min(crop.x + crop.side, width)
        result[y0 - crop.y : y1 - crop.y, x0 - crop.x : x1 - crop.x] = job.mask[y0:y1, x0:x1]
    return result


def _drawn(job: _Job) -> FloatArray:
    """The poses whose skeletons are masked, float32 (2, 13, 3), crop-relative; invisible where none is to be drawn.

    A mask from the user says exactly what to edit, so no skeleton is added to it.
    """
    result = np.zeros((2, len(JOINTS), 3), np.float32)
    if job.mask is None:
        for index, pose in enumerate((job.pose, job.reference_pose)):
            if pose is not None:
                result[index] = job.crop.relative(pose)
    return result


def _checked_crop(crop: Any, image: ByteArray, name: str) -> Crop:
    height, width = image.shape[:2]
    if not isinstance(crop, Crop) or not all(isinstance(v, (int, np.integer)) for v in (crop.x, crop.y, crop.side)):
        raise InputError(f"{name}: {crop!r}, expected a Crop of whole numbers")
    if not 1 <= crop.side <= MAX_CROP:
        raise InputError(
            f"{name}: the edit needs a square of {crop.side} pixels, expected 1 to {MAX_CROP}; reduce the image"
        )
    if crop.x >= width or crop.y >= height or crop.x + crop.side <= 0 or crop.y + crop.side <= 0:
        raise InputError(f"{name}: {crop} lies outside the image of {width}x{height} pixels")
    return crop
