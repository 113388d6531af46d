"""Editing images with a bundle: what is masked is generated, everything else stays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from .backends import choose
from .checks import checked_image, checked_mask, checked_pose, same_length
from .crop import Crop, FloatArray
from .decoding import Progress, Sampling, check_sampling
from .image_file import BoolArray, ByteArray
from .jobs import (
    DEFAULT_MARGIN,
    MAX_CROP,
    NO_REFERENCE_POSE,
    POSE_OUTSIDE,
    checked_crop,
    checked_job,
    find_crop,
)
from .manifest import load_manifest, verify_files
from .pipeline import NOTHING_MASKED, Pipeline, Result
from .session import Session

__all__ = [
    "DEFAULT_MARGIN",
    "MAX_CROP",
    "NOTHING_MASKED",
    "NO_REFERENCE_POSE",
    "POSE_OUTSIDE",
    "Editor",
    "Result",
    "Session",
]


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
        verify_files(bundle, self.manifest)
        choice = choose(backend, threads, (Path(bundle), self.manifest))
        self.backend, self.backend_reason = choice.backend.description, choice.reason
        self._pipeline = Pipeline(Path(bundle), self.manifest, choice.backend)

    def edit(
        self,
        image: ByteArray,
        pose: FloatArray | None = None,
        mask: BoolArray | None = None,
        *,
        reference_pose: FloatArray | None = None,
        sketch: ByteArray | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int = 1,
        dilation: float | None = None,
        margin: float | None = None,
        crop: Crop | None = None,
        blend: bool | None = None,
        progress: Progress | None = None,
    ) -> Result:
        """Edit one image.

        Args:
            image: uint8 HWC RGB, of any size up to 134 million pixels.
            pose: float32 (13, 3), the pose to give the person: x, y in pixels of the image (origin top left) and
                visibility 0 or 1, in the order of ``JOINTS``. Needed by bundles of kind ``pose``, taken by no other.
            mask: bool HW, exactly the pixels to edit. Without one, a bundle of kind ``pose`` masks both skeletons; the
                other kinds need one.
            reference_pose: float32 (13, 3), the pose of the person in the image; where it is to be erased.
            sketch: uint8 HW, what the result is to look like: dark lines (0) on white (255), inside the mask and
                around it. Taken by bundles of kind ``sketch``, which without one draw it from the image
                (:meth:`sketch` gives it, to be changed).
            seed: whole number from 0 to 2^64 - 1, for ``top_k`` above 1.
            temperature: above 0; larger is more varied. Without effect when ``top_k`` is 1.
            top_k: likeliest candidates for each token to choose from; 1 always takes the likeliest.
            dilation: radius of the skeletons' mask over the larger side of the poses' box; None: as in training.
            margin: side of the crop over the larger side of the box of poses and mask; None: as in training, which is
                the largest square of the image for kind ``sketch``.
            crop: the square in which to edit, instead of the one that ``margin`` gives.
            blend: blend the edit into the image across the mask's border (A.3), which changes pixels outside the mask;
                None: for kind ``sketch`` only.
            progress: called with (tokens done, tokens in all) after each token; returning False cancels.

        Raises:
            InputError: an argument is not as described.
            Cancelled: ``progress`` returned False.
        """
        check_sampling(Sampling(seed, temperature, top_k), self.manifest.codebook_size)
        job = checked_job(self.manifest, image, pose, mask, reference_pose, crop, margin, dilation, sketch=sketch)
        return self._pipeline.edit([job], Sampling(seed, temperature, top_k), blend, progress)[0]

    def edit_batch(
        self,
        images: Sequence[ByteArray],
        poses: Sequence[FloatArray | None] | None = None,
        masks: Sequence[BoolArray | None] | None = None,
        *,
        reference_poses: Sequence[FloatArray | None] | None = None,
        sketches: Sequence[ByteArray | None] | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int = 1,
        dilation: float | None = None,
        margin: float | None = None,
        crops: Sequence[Crop | None] | None = None,
        blend: bool | None = None,
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
                (sketches, "sketches"),
            )
        ]
        jobs = [
            checked_job(self.manifest, image, pose, mask, reference, crop, margin, dilation, index, sketch=sketch)
            for index, (image, pose, mask, reference, crop, sketch) in enumerate(zip(images, *columns, strict=True))
        ]
        return self._pipeline.edit(jobs, Sampling(seed, temperature, top_k), blend, progress) if jobs else []

    def reference(
        self,
        image: ByteArray,
        pose: FloatArray | None = None,
        crop: Crop | None = None,
        *,
        sketch: ByteArray | None = None,
    ) -> Session:
        """Encode and prefill a reference image once, for any number of edits of it.

        Args:
            image: uint8 HWC RGB.
            pose: float32 (13, 3) in pixels, the pose of the person in it.
            sketch: uint8 HW as in :meth:`edit`, which all edits follow; None: drawn from the image.
            crop: the square in which all edits happen; :meth:`crop_for` finds one for a sequence of poses. None: the
                one for ``pose`` alone, or the whole image when there is no pose.

        Raises:
            InputError: an argument is not as described.
        """
        return Session(self._pipeline, image, pose, crop, sketch)

    def sketch(
        self, image: ByteArray, mask: BoolArray | None = None, margin: float | None = None, crop: Crop | None = None
    ) -> ByteArray:
        """The sketch that an edit of the image follows when it is given none: to be changed and given.

        Args:
            image: uint8 HWC RGB.
            mask, margin, crop: as in :meth:`edit`, for they say in which square the lines are drawn; without them it
                holds the whole image.

        Returns:
            uint8 HW, the image's size: dark lines on white, white outside the square.

        Raises:
            InputError: an argument is not as described, or the bundle is not of kind ``sketch``.
        """
        checked_image(image)
        masked = None if mask is None else checked_mask(mask, image)
        square = (
            find_crop(self.manifest, image, [], masked, margin) if crop is None else checked_crop(crop, image, "crop")
        )
        return self._pipeline.draw(image, square)

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
        return find_crop(self.manifest, image, checked, None if mask is None else checked_mask(mask, image), margin)
