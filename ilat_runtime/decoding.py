"""The decoding loop: feed what a plan says to a transformer graph with a cache, read one token a step.

The cache is filled in the order of the segments, so nothing in it ever changes: the condition once for each reference,
then the pose and the known target tokens, then the causal ones. For another target of the same reference only the slots
after the condition are written anew; ``slot_segment`` says which slots count, so nothing is copied or cleared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .backends import Graph
from .errors import Cancelled, InputError
from .manifest import Manifest
from .sampling import uniform
from .segments import CONDITION, POSE, UNFILLED, DecodePlan, Step

Progress = Callable[[int, int], bool | None]
"""Called with (tokens generated, tokens to generate) after each token; returning False cancels."""


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen from its distribution.

    Attributes:
        seed: whole number from 0 to 2^64 - 1; the same seed gives the same tokens, alone or in a batch.
        temperature: above 0; larger is more varied. Without effect when ``top_k`` is 1.
        top_k: number of likeliest candidates to choose from; 1 takes the likeliest (the paper).
    """

    seed: int = 0
    temperature: float = 1.0
    top_k: int = 1


@dataclass(frozen=True)
class Target:
    """One image to generate tokens for.

    Attributes:
        plan: which tokens, and in which order.
        tokens: int64 (n,), the image's own tokens; those under the mask are not read.
        pose: float32 (13, 3) crop-relative landmarks; None when the model takes none.
    """

    plan: DecodePlan
    tokens: npt.NDArray[np.int64]
    pose: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Generated:
    """What was generated for one target.

    Attributes:
        tokens: int64 (masked tokens,), raster order.
        log_probability: float32, of each under the model's softmax (temperature 1, all candidates).
        calls: transformer calls after the prefill in which this target took part.
    """

    tokens: npt.NDArray[np.int64]
    log_probability: npt.NDArray[np.float32]
    calls: int


@dataclass(frozen=True)
class _Row:
    """One token to feed; ``read`` is the image token that its output predicts, where that is wanted."""

    token: int
    position: int
    segment: int
    landmark: npt.NDArray[np.float32] | None = None
    read: int | None = None


class Decoder:
    """A transformer graph with a cache for a batch of one or more sequences. For one thread at a time."""

    def __init__(self, manifest: Manifest, graph: Graph, batch: int) -> None:
        self._manifest, self._layout, self._batch = manifest, manifest.sequence, batch
        self._graph = graph.with_cache(batch)
        self._takes_landmarks = "landmarks" in manifest.graphs.transformer.inputs
        self._slots = np.full((batch, manifest.cache_capacity), UNFILLED, np.int32)
        self._filled = np.zeros(batch, np.int64)
        self._condition = 0
        self.prefill_seconds = 0.0

    def condition(
        self, tokens: Sequence[npt.NDArray[np.int64]], poses: Sequence[npt.NDArray[np.float32] | None]
    ) -> None:
        """Prefill the condition of every sequence of the batch, replacing what the cache held.

        Args:
            tokens: int64 (n,) each, the reference's tokens; unused when the model has no condition.
            poses: float32 (13, 3) each, the reference's crop-relative pose, for models with a ``source_pose``.
        """
        words = self._manifest.vocabulary
        rows: list[list[_Row]] = []
        for image, pose in zip(tokens, poses, strict=True):
            sequence: list[_Row] = []
            source = self._layout.slice("source_pose")
            if source.stop > source.start:
                if pose is None:
                    raise InputError("reference_pose: this bundle needs the pose of the reference image")
                sequence += self._landmarks(source.start, pose, CONDITION)
            if "condition" in self._layout.blocks:
                start = self._layout.slice("condition").start
                ids = [words.start_condition, *image.tolist()]
                sequence += [_Row(token, start + index, CONDITION) for index, token in enumerate(ids)]
            rows.append(sequence)
        self._rewind(0)
        self._feed(rows, Sampling())
        self._condition = len(rows[0])

    def generate(
        self, targets: Sequence[Target], sampling: Sampling, progress: Progress | None = None
    ) -> list[Generated]:
        """Generate the masked tokens of every target of the batch.

        Afterwards, and also when it is cancelled or interrupted, the decoder is ready for another call.

        Raises:
            InputError: an option is out of range.
            Cancelled: ``progress`` returned False.
        """
        check_sampling(sampling, self._manifest.codebook_size)
        started = time.perf_counter()
        self._rewind(self._condition)
        known = [_Known(target) for target in targets]
        total, done = sum(item.total for item in known), 0

        def store(answers: Sequence[Sequence[tuple[int, int, float]]]) -> None:
            nonlocal done
            for item, answer in zip(known, answers, strict=True):
                for token, value, log_probability in answer:
                    item.tokens[token], item.log_probability[token] = value, log_probability
                    done += 1
                    if progress is not None and progress(done, total) is False:
                        raise Cancelled(f"cancelled after {done} of {total} tokens")

        store(self._feed([self._prefill(target) for target in targets], sampling))
        self.prefill_seconds = time.perf_counter() - started
        waiting: list[list[_Row]] = [[] for _ in targets]
        upcoming = [iter(target.plan.steps) for target in targets]
        calls = [0] * len(targets)
        while True:
            for index, item in enumerate(known):
                if not waiting[index]:
                    step = next(upcoming[index], None)
                    waiting[index] = self._step(item.target, item.tokens, step) if step is not None else []
            if not any(waiting):
                break
            room = self._room(waiting)
            now = [rows[:room] for rows in waiting]
            waiting = [rows[room:] for rows in waiting]
            calls = [count + bool(rows) for count, rows in zip(calls, now, strict=True)]
            store(self._feed(now, sampling))
        return [item.result(count) for item, count in zip(known, calls, strict=True)]

    def predict(self, targets: Sequence[Target]) -> list[Generated]:
        """The likeliest token at every masked place given the target's own tokens before it (teacher forcing).

        All rows after the prefill go in one call, or few where the batch's masks differ. Arguments, result and errors
        are those of :meth:`generate`, but the targets' tokens under the mask are read.
        """
        self._rewind(self._condition)
        found = [_Known(target) for target in targets]
        calls = 0
        waiting = [self._prefill(target) for target in targets]
        causal = [
            [row for step in target.plan.steps for row in self._step(target, target.tokens, step)] for target in targets
        ]
        while any(waiting):
            room = self._room(waiting)
            for item, answer in zip(found, self._feed([rows[:room] for rows in waiting], Sampling()), strict=True):
                for token, value, log_probability in answer:
                    item.tokens[token], item.log_probability[token] = value, log_probability
            waiting, calls = [rows[room:] for rows in waiting], calls + 1
            if not any(waiting):
                waiting, causal = causal, [[] for _ in targets]
        return [item.result(calls - 1) for item in found]

    def _room(self, waiting: Sequence[Sequence[_Row]]) -> int:
        """Rows that a call may have: a row of padding needs a slot too, so the sequence with the least room decides."""
        return min(self._slots.shape[1] - int(self._filled[i]) for i, rows in enumerate(waiting) if rows)

    def _landmarks(self, start: int, pose: npt.NDArray[np.float32], segment: int) -> list[_Row]:
        word = self._manifest.vocabulary.pose
        return [_Row(word, start + index, segment, point) for index, point in enumerate(pose)]

    def _target_row(self, target: Target, row: int, token: int, read: int | None) -> _Row:
        """Target row ``row`` (0 is t[s], j + 1 is image token j of value ``token``)."""
        words = self._manifest.vocabulary
        position = self._layout.slice("target").start + row
        word = words.start_target if row == 0 else words.target_offset + token
        return _Row(word, position, int(target.plan.segment[position]), read=read)

    def _prefill(self, target: Target) -> list[_Row]:
        rows: list[_Row] = []
        pose = self._layout.slice("pose")
        if pose.stop > pose.start:
            if target.pose is None:
                raise InputError("pose: this bundle needs a target pose")
            rows += self._landmarks(pose.start, target.pose, POSE)
        read = dict(target.plan.prefill_read)
        for order, row in enumerate(target.plan.prefill_target):
            rows.append(self._target_row(target, row, int(target.tokens[row - 1]), read.get(order)))
        return rows

    def _step(self, target: Target, tokens: npt.NDArray[np.int64], step: Step) -> list[_Row]:
        """The rows of a step, with the tokens as they are by now; the last one is read."""
        return [
            self._target_row(target, row, int(tokens[row - 1]), step.read if row == step.feed[-1] else None)
            for row in step.feed
        ]

    def _rewind(self, length: int) -> None:
        """Forget what was written after the first ``length`` slots."""
        self._slots[:, length:] = UNFILLED
        self._filled[:] = length

    def _feed(self, rows: Sequence[Sequence[_Row]], sampling: Sampling) -> list[list[tuple[int, int, float]]]:
        """Append rows to each sequence in one call; for each, (image token, value, log-probability) of what is read.

        Shorter lists are padded. A padding row sees every slot, so that its softmax is never empty, and its own slot
        stays unfilled: no token sees it, and the next call overwrites it.
        """
        batch, length = self._batch, max(len(sequence) for sequence in rows)
        if not length:
            return [[] for _ in rows]
        capacity = self._slots.shape[1]
        tokens = np.zeros((batch, length), np.int64)
        positions = np.zeros((batch, length), np.int64)
        landmarks = np.zeros((batch, length, 3), np.float32)
        query = np.full((batch, length), UNFILLED, np.int32)
        write = self._filled.copy()
        for index, sequence in enumerate(rows):
            if not sequence:
                # It may be full, having finished; what it holds is not needed any more.
                write[index] = min(write[index], capacity - length)
            for column, row in enumerate(sequence):
                tokens[index, column], positions[index, column] = row.token, row.position
                query[index, column] = row.segment
                if row.landmark is not None:
                    landmarks[index, column] = row.landmark
            start = int(self._filled[index])
            self._slots[index, start : start + len(sequence)] = query[index, : len(sequence)]
            self._filled[index] += len(sequence)
        inputs = {
            "tokens": tokens,
            "positions": positions,
            "query_segment": query,
            "slot_segment": self._slots,
            "write_index": write,
            "top_k": np.array([sampling.top_k], np.int64),
            "temperature": np.full(batch, sampling.temperature, np.float32),
            "uniform": self._noise(rows, length, sampling),
        }
        if self._takes_landmarks:
            inputs["landmarks"] = landmarks
        outputs = self._graph.run(inputs)
        chosen, log_probability = outputs["next_token"], outputs["log_probability"]
        return [
            [
                (row.read, int(chosen[index, column]), float(log_probability[index, column]))
                for column, row in enumerate(sequence)
                if row.read is not None
            ]
            for index, sequence in enumerate(rows)
        ]

    def _noise(self, rows: Sequence[Sequence[_Row]], length: int, sampling: Sampling) -> npt.NDArray[np.float32]:
        """The noise of the rows that are read; 0.5, which has no effect, elsewhere."""
        read = [
            (i, j, row.read)
            for i, sequence in enumerate(rows)
            for j, row in enumerate(sequence)
            if row.read is not None
        ]
        if sampling.top_k == 1 or not read:
            return np.full((self._batch, 1, 1), 0.5, np.float32)
        size = self._manifest.codebook_size
        noise = np.full((self._batch, length, size), 0.5, np.float32)
        for index, column, token in read:
            noise[index, column] = uniform(sampling.seed, token, size)[0]
        return noise


class _Known:
    """The tokens of a target while they are being generated."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.tokens = target.tokens.copy()
        self.log_probability = np.zeros(len(self.tokens), np.float32)
        self.total = int(target.plan.token_mask.sum())

    def result(self, calls: int) -> Generated:
        mask = self.target.plan.token_mask
        return Generated(self.tokens[mask], self.log_probability[mask], calls)


def check_sampling(sampling: Sampling, codebook_size: int) -> None:
    """Raise an InputError that names the option that is out of range."""
    seed, temperature, top_k = sampling.seed, sampling.temperature, sampling.top_k
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**64:
        raise InputError(f"seed: {seed!r}, expected a whole number from 0 to 2^64 - 1")
    number = isinstance(temperature, (int, float, np.integer, np.floating)) and not isinstance(temperature, bool)
    if not number or not 1e-3 <= temperature <= 1e3:
        raise InputError(f"temperature: {temperature!r}, expected a number from 0.001 to 1000 (top_k=1 is greedy)")
    if isinstance(top_k, bool) or not isinstance(top_k, (int, np.integer)) or not 1 <= top_k <= codebook_size:
        raise InputError(f"top_k: {top_k!r}, expected a whole number from 1 to {codebook_size}")
