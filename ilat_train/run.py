"""What both training loops share: devices, resuming, the record of a run."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy, Strategy
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from ilat_runtime.errors import IlatError, InputError
from ilat_runtime.image_file import write_image

from . import checkpoint
from .config import (
    Strict,
    TokenizerConfig,
    TokenizerTraining,
    TransformerConfig,
    TransformerTraining,
    difference,
    parse,
)


@dataclass(frozen=True)
class RunOptions:
    """How a training runs, apart from the recipe.

    Attributes:
        folder: where checkpoints, samples and the TensorBoard record go.
        stop_at: stop after this many steps in all (the schedule stays that of the recipe); None runs to the end.
        save_every, sample_every: steps between checkpoints and sample sheets.
    """

    folder: Path
    seed: int = 0
    resume: bool = False
    force: bool = False
    devices: int = 1
    accelerator: str = "auto"
    threads: int | None = None
    stop_at: int | None = None
    save_every: int = 500
    sample_every: int = 500
    log_every: int = 10
    progress: bool = True


def check_folder(options: RunOptions) -> None:
    """Raises InputError when the folder holds a run already and neither resume nor force was asked for."""
    begun = (options.folder / "state.pt").exists() or (options.folder / "model.safetensors").exists()
    if begun and not options.resume and not options.force:
        raise InputError(f"{options.folder}: holds a run already; --resume goes on with it, --force starts anew")


def start(options: RunOptions, precision: str, unused: bool = False) -> Fabric:
    """Checks the folder and launches Fabric on the devices asked for.

    Args:
        precision: as Fabric names it.
        unused: some parameters take no part in some steps.

    Raises:
        InputError: see :func:`check_folder`; or the accelerator or that many of its devices are not here.
    """
    check_folder(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    if not options.progress:
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    ddp = DDPStrategy(find_unused_parameters=unused)
    strategy: str | Strategy = ddp if options.devices > 1 else "auto"
    where: dict[str, Any] = {"accelerator": options.accelerator, "devices": options.devices, "strategy": strategy}
    try:
        fabric = Fabric(**where, precision=precision)  # type: ignore[arg-type]
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        raise InputError(f"{options.devices} x {options.accelerator!r}: {error}") from None
    fabric.launch()
    return fabric


def seed_step(seed: int, step: int, rank: int) -> np.random.Generator:
    """Seeds PyTorch (dropout) for one step and returns numpy's generator: a resumed run draws what another would."""
    sequence = np.random.SeedSequence([seed, step, rank, 1])
    torch.manual_seed(int(sequence.generate_state(1)[0]))
    return np.random.default_rng(sequence)


def note(options: RunOptions, fabric: Fabric, text: str) -> None:
    """A line for the person who watches, on stderr."""
    if options.progress and fabric.is_global_zero:
        tqdm.write(text, file=sys.stderr)


class Record:
    """Progress bar, TensorBoard scalars and sample sheets of the first process."""

    def __init__(self, options: RunOptions, fabric: Fabric, steps: int, first: int, name: str) -> None:
        self.options, self.active = options, fabric.is_global_zero
        self.writer = SummaryWriter(str(options.folder / "logs"), purge_step=first) if self.active else None
        self.bar: tqdm[int] = tqdm(
            total=steps,
            initial=first,
            desc=name,
            unit="step",
            disable=None if options.progress and self.active else True,
        )
        self.values: dict[str, list[torch.Tensor | float]] = {}
        self.count, self.began = 0, time.monotonic()

    def step(self, step: int, scalars: dict[str, torch.Tensor | float]) -> None:
        """Adds one step's scalars; writes their means every ``log_every`` steps.

        Raises:
            IlatError: a mean is not finite.
        """
        # They are read when they are written only: reading a number waits for the GPU.
        for name, value in scalars.items():
            self.values.setdefault(name, []).append(value)
        self.count += 1
        self.bar.update()
        if self.count == self.options.log_every:
            self._write(step)

    def _write(self, step: int) -> None:
        means = {name: sum(float(value) for value in values) / len(values) for name, values in self.values.items()}
        means["steps_per_second"] = self.count / max(time.monotonic() - self.began, 1e-9)
        for name, value in means.items():
            if self.writer is not None:
                self.writer.add_scalar(name, value, step)
            if not math.isfinite(value):
                raise IlatError(f"step {step}: {name} is {value}; start again with a lower rate")
        self.bar.set_postfix({name: f"{value:.4g}" for name, value in means.items()})
        self.values, self.count, self.began = {}, 0, time.monotonic()

    def sheet(self, step: int, image: npt.NDArray[np.uint8]) -> None:
        """Writes a sample sheet, uint8 HWC RGB, as samples/STEP.png."""
        if self.active:
            folder = self.options.folder / "samples"
            folder.mkdir(exist_ok=True)
            write_image(folder / f"{step:07d}.png", image, force=True)

    def close(self) -> None:
        """Ends the bar and the record."""
        self.bar.close()
        if self.writer is not None:
            self.writer.close()


def steps(first: int, total: int, stop_at: int | None) -> Iterator[int]:
    """Step numbers from ``first`` to the end or the stop."""
    return iter(range(first, total if stop_at is None else min(total, stop_at)))


def resumed(options: RunOptions, config: dict[str, Any]) -> dict[str, Any] | None:
    """The state to go on from, or None.

    Raises:
        InputError: the state was made with another configuration or seed.
    """
    if not options.resume:
        return None
    file, state = options.folder / "state.pt", checkpoint.load_state(options.folder)
    begun = {"config": _completed(state.get("config"), str(file)), "seed": state.get("seed")}
    unlike = difference(begun, {"config": config, "seed": options.seed})
    if unlike:
        raise InputError(f"{file}: {unlike}; resume with the recipe and the seed of the run")
    return state


def _completed(config: Any, where: str) -> Any:
    """A state's configuration with defaults for the keys that came after it was written."""
    kinds: dict[str, type[Strict]] = {"tokenizer": TokenizerConfig, "transformer": TransformerConfig}
    if not isinstance(config, dict) or not config.keys() <= {*kinds, "training"}:
        return config
    kinds["training"] = TokenizerTraining if "tokenizer" in config else TransformerTraining
    return {
        key: parse(kinds[key], part, f"{where}: config.{key}").model_dump(mode="json") for key, part in config.items()
    }


def set_rate(optimizers: Iterable[torch.optim.Optimizer], rate: float) -> None:
    """Sets the learning rate of all parameter groups."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
