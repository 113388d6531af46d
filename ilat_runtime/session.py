"""A reference image or its sketch, encoded and prefilled once, for any number of edits of the image."""

from __future__ import annotations

import threading
from types import TracebackType

from .checks import checked_image, checked_pose, checked_sketch
from .crop import Crop, FloatArray
from .decoding import Decoder, Progress, Sampling, check_sampling
from .errors import IlatError
from .image_file import BoolArray, ByteArray
from .jobs import Job, check_kind, checked_crop, checked_job, find_crop
from .pipeline import Clock, Pipeline, Result


class Session:
    """A reference image, encoded and prefilled once; made by :meth:`Editor.reference`. A context manager.

    What is prefilled is the condition: the image's tokens, or the sketch's for bundles of that kind. It serves all
    edits, of any mask and seed.

    Meant for one thread: edits from several are done one after the other. After a cancelled or failed edit it can be
    used again.

    Attributes:
        crop: the square in which all its edits happen.
        timings: seconds that preparing the reference took, as in :attr:`Result.timings`.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        image: ByteArray,
        pose: FloatArray | None,
        crop: Crop | None,
        sketch: ByteArray | None = None,
    ) -> None:
        manifest = pipeline.manifest
        image = checked_image(image)
        check_kind(manifest, {"pose": pose, "sketch": sketch})
        if sketch is not None:
            sketch = checked_sketch(sketch, image).copy()
        source = None if pose is None else checked_pose(pose, image)
        if crop is None:
            crop = find_crop(manifest, image, [] if source is None else [source], None, None)
        self.crop = checked_crop(crop, image, "crop")
        # A copy: what was encoded stays what is edited, whatever the caller does to the array.
        self._pipeline, self._image, self._pose = pipeline, image.copy(), source
        self._lock = threading.Lock()
        clock = Clock()
        job = Job(image, self.crop, reference_pose=source, sketch=sketch)
        with clock("encode"):
            job = pipeline.sketched(job)
        self._sketch = job.sketch
        self._decoder: Decoder | None = pipeline.prefilled([job], clock)
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
        blend: bool | None = None,
        progress: Progress | None = None,
    ) -> Result:
        """Edit the reference image; arguments, result and errors are those of :meth:`Editor.edit`."""
        pipeline, sampling = self._pipeline, Sampling(seed, temperature, top_k)
        check_sampling(sampling, pipeline.manifest.codebook_size)
        with self._lock:
            if self._decoder is None:
                raise IlatError("session: it is closed; make another with Editor.reference")
            job = checked_job(
                pipeline.manifest,
                self._image,
                pose,
                mask,
                self._pose,
                self.crop,
                None,
                dilation,
                session=True,
                sketch=self._sketch,
            )
            return pipeline.edit([job], sampling, blend, progress, self._decoder)[0]

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
