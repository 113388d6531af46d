"""Training of TS-VQGAN: without masks, then with masks (Sec. 3.1 and 4), and the decoder alone at last if asked."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from scipy.cluster.vq import kmeans2
from torch import Tensor
from torch.nn import Module

from ilat_runtime.errors import InputError
from ilat_runtime.image_file import ByteArray

from . import checkpoint
from .config import Recipe, difference
from .data.dataset import TrainingData, random_masks, to_bytes
from .data.object_masks import ObjectMasks
from .evaluation.sheet import sample_sheet
from .losses.adversarial import PatchDiscriminator, adaptive_weight, hinge_discriminator, hinge_generator
from .losses.perceptual import PerceptualKind, perceptual_loss
from .models import TSVQGAN
from .models.ts_vqgan import Reconstruction
from .run import Record, RunOptions, note, resumed, seed_step, set_rate, start, steps

SHEET_ROWS = 4


def train_tokenizer(
    recipe: Recipe,
    data: TrainingData,
    options: RunOptions,
    initial: TSVQGAN | None = None,
    objects: ObjectMasks | None = None,
) -> TSVQGAN:
    """Runs the recipe's tokenizer stages and writes a checkpoint to ``options.folder``.

    Args:
        initial: weights to start from instead of random ones; what a checkpoint's parameters do not depend on
            (:attr:`TokenizerConfig.free`) is the recipe's.
        objects: what masks of kind ``object`` are drawn from.

    Raises:
        InputError: ``initial`` has other parameters than the recipe's tokenizer; see also
            :func:`ilat_train.run.start` and :func:`ilat_train.run.resumed`.
        IlatError: a loss is not finite.
    """
    training = recipe.tokenizer_training
    config = {"tokenizer": recipe.tokenizer.model_dump(mode="json"), "training": training.model_dump(mode="json")}
    if initial is not None:
        free = recipe.tokenizer.free
        given, wanted = (values.model_dump(mode="json", exclude=free) for values in (initial.config, recipe.tokenizer))
        unlike = difference(given, wanted, "tokenizer")
        if unlike:
            raise InputError(f"initial weights: {unlike} by the recipe")
    # The codebook takes no part before quantization starts, nor do the masks' own parameters before the masked stage.
    fabric = start(options, training.precision, unused=True)
    torch.manual_seed(options.seed)
    bare = TSVQGAN(recipe.tokenizer)
    if initial is not None:
        bare.load_state_dict(initial.state_dict())
    bare = bare.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    critic = None
    if training.adversarial != "none":
        critic = PatchDiscriminator(training.discriminator_channels, in_channels=recipe.tokenizer.in_channels)
    state = resumed(options, config)
    if state:
        bare.load_state_dict(state["model"])
        if critic is not None:
            critic.load_state_dict(state["discriminator"])
    model, optimizer = fabric.setup(bare, torch.optim.Adam(bare.parameters(), training.rate, training.betas))
    optimizers = [optimizer]
    judge, judge_optimizer = None, None
    if critic is not None:
        judge, judge_optimizer = fabric.setup(
            critic, torch.optim.Adam(critic.parameters(), training.rate, training.betas)
        )
        optimizers.append(judge_optimizer)
    if state:
        for each, saved in zip(optimizers, state["optimizers"], strict=True):
            each.load_state_dict(saved)
    perceptual, reason = _perceptual(training.perceptual, training.perceptual_weight, fabric)
    note(options, fabric, f"perceptual loss: {reason}")
    if training.decoder_steps:
        last_perceptual, last_reason = _perceptual(training.decoder_perceptual, training.perceptual_weight, fabric)
        note(options, fabric, f"perceptual loss of the decoder's stage: {last_reason}")
        reason = f"{reason}; decoder's stage: {last_reason}"
    # How often each codebook vector was used by this process; a saved state has the sum over all processes.
    usage = torch.zeros(recipe.tokenizer.codebook_size)
    if state and fabric.is_global_zero:
        usage += state["usage"]

    def save(step: int) -> None:
        used = _sum(fabric, usage)
        if fabric.is_global_zero:
            facts = {"recipe": recipe.name, "steps": step, "seed": options.seed, "perceptual": reason}
            checkpoint.save(options.folder, bare, facts)
            progress: dict[str, Any] = {
                "step": step,
                "config": config,
                "seed": options.seed,
                "model": bare.state_dict(),
                "optimizers": [each.state_dict() for each in optimizers],
                "usage": used,
            }
            if critic is not None:
                progress["discriminator"] = critic.state_dict()
            checkpoint.save_state(options.folder, progress)
        fabric.barrier()

    first = state["step"] if state else 0
    record = Record(options, fabric, training.steps, first, "tokenizer")
    done = first
    for step in steps(first, training.steps, options.stop_at):
        random = seed_step(options.seed, step, fabric.global_rank)
        set_rate(optimizers, training.rate * 0.5 ** (step // training.halve_every))
        batch = data.batch(options.seed, step, fabric.global_rank, training.batch_size, pairs=False)
        image = fabric.to_device(batch.target.contiguous(memory_format=torch.channels_last))
        mask = None
        if step >= training.plain_steps:
            mask = fabric.to_device(random_masks(training.masks, batch, random, objects))
        decoder_only = step >= training.decoder_start
        if decoder_only:
            perceptual = last_perceptual
        elif step == training.codebook_start and training.codebook_start:
            _fill_codebook(fabric, bare, data, options.seed, training.batch_size)
        elif training.restart_every and step % training.restart_every == 0 and step > training.codebook_start:
            _restart_unused(fabric, bare, image, usage)
        result: Reconstruction = model(image, mask, step >= training.codebook_start, decoder_only)
        usage += torch.bincount(result.tokens.flatten().cpu(), minlength=len(usage))
        pixel = (result.image.float() - image).abs().mean()
        distance = perceptual(result.image, image).mean() if training.perceptual_weight else pixel.new_zeros(())
        reconstruction = pixel + training.perceptual_weight * distance
        loss = reconstruction + training.codebook_weight * (
            result.codebook_loss.mean() + training.commitment * result.commitment.mean()
        )
        scalars: dict[str, Tensor | float] = {"pixel": pixel.detach(), "perceptual": distance.detach()}
        scalars["commitment"] = result.commitment.mean().detach()
        if judge is not None and step >= training.adversarial_start:
            push = hinge_generator(judge(result.image))
            weight: Tensor | float = training.adversarial_weight
            if training.adversarial == "adaptive":
                last = bare.decoder.conv_out.weight
                weight = adaptive_weight(reconstruction, push, last, training.adversarial_weight)
            loss = loss + weight * push
            scalars |= {"adversarial": push.detach(), "adversarial_weight": weight}
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
        if judge is not None and judge_optimizer is not None and step >= training.adversarial_start:
            judged = hinge_discriminator(judge(image), judge(result.image.detach()))
            judge_optimizer.zero_grad()
            fabric.backward(judged)
            judge_optimizer.step()
            scalars["discriminator"] = judged.detach()
        done = step + 1
        record.step(step, scalars)
        if done % options.sample_every == 0:
            record.sheet(done, _sheet(image, mask, result))
        if done % options.save_every == 0:
            save(done)
    save(done)
    record.close()
    return bare.eval()


def _perceptual(kind: PerceptualKind, weight: float, fabric: Fabric) -> tuple[Module, str]:
    """The loss and what it is; one of weight 0 needs no network."""
    return perceptual_loss(kind, fabric.device) if weight else (torch.nn.Identity(), "none")


def _sum(fabric: Fabric, usage: Tensor) -> Tensor:
    """The sum over all processes, on the CPU."""
    return torch.as_tensor(fabric.all_reduce(usage.clone(), reduce_op="sum")).cpu()


def _latents(model: TSVQGAN, image: Tensor) -> Tensor:
    """Latent vectors (B*g*g, C) without gradient."""
    with torch.no_grad():
        latent = model.encode(image)
    return latent.permute(0, 2, 3, 1).reshape(-1, latent.shape[1])


def _fill_codebook(fabric: Fabric, model: TSVQGAN, data: TrainingData, seed: int, batch_size: int) -> None:
    """Sets the codebook to k-means centres of the latents of fresh batches; the same on every process."""
    size = len(model.quantizer.codebook)
    batches = -(-16 * size // (batch_size * model.config.grid**2))
    with fabric.autocast():
        latents = [
            _latents(model, fabric.to_device(data.batch(seed + 1, number, 0, batch_size, pairs=False).target))
            for number in range(max(batches, 1))
        ]
    points = torch.cat(latents).float().cpu().numpy()
    with warnings.catch_warnings():
        # An empty cluster keeps its centre; should no token use it, it is restarted later.
        warnings.simplefilter("ignore", UserWarning)
        centres, _ = kmeans2(points, size, iter=10, minit="points", seed=seed, missing="warn")
    _set_codebook(fabric, model, torch.from_numpy(centres.astype(np.float32)))


def _set_codebook(fabric: Fabric, model: TSVQGAN, codebook: Tensor) -> None:
    """The first process's codebook for all."""
    with torch.no_grad():
        model.quantizer.codebook.copy_(torch.as_tensor(fabric.broadcast(codebook)))


def _restart_unused(fabric: Fabric, model: TSVQGAN, image: Tensor, usage: Tensor) -> None:
    """Moves codebook vectors that no token used since the last time to random latents of this batch."""
    unused = torch.nonzero(_sum(fabric, usage) == 0).flatten()
    with fabric.autocast():
        latents = _latents(model, image).float()
    chosen = latents[torch.randint(len(latents), (len(unused),), device=latents.device)]
    codebook = model.quantizer.codebook.detach().clone()
    codebook[unused.to(codebook.device)] = chosen
    _set_codebook(fabric, model, codebook.cpu())
    usage.zero_()


def _sheet(image: Tensor, mask: Tensor | None, result: Reconstruction) -> ByteArray:
    """Input, mask and reconstruction of the step's first images."""
    rows = []
    for row in range(min(SHEET_ROWS, len(image))):
        shown = np.zeros((*image.shape[2:], 3), np.uint8)
        if mask is not None:
            shown[mask[row, 0].cpu().numpy()] = 255
        rows.append([to_bytes(image[row]), shown, to_bytes(result.image[row])])
    return sample_sheet(rows, ["input", "mask", "reconstruction"])
