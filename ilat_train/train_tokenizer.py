"""Training of TS-VQGAN: without masks at first, then with masks (Sec. 3.1 and 4)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule
from scipy.cluster.vq import kmeans2
from torch import Tensor

from . import checkpoint
from .config import Recipe
from .data.dataset import Batch, TrainingData, random_masks, to_bytes
from .evaluation.sheet import sample_sheet
from .losses.adversarial import PatchDiscriminator, adaptive_weight, hinge_discriminator, hinge_generator
from .losses.perceptual import perceptual_loss
from .models import TSVQGAN
from .models.ts_vqgan import Reconstruction
from .run import Record, RunOptions, resumed, seed_step, set_rate, start, steps

SHEET_ROWS = 4


def train_tokenizer(recipe: Recipe, data: TrainingData, options: RunOptions, initial: TSVQGAN | None = None) -> TSVQGAN:
    """Runs the recipe's tokenizer stages and writes a checkpoint to ``options.folder``.

    Args:
        initial: weights to start from instead of random ones.

    Raises:
        InputError: see :func:`ilat_train.run.start` and :func:`ilat_train.run.resumed`.
    """
    training = recipe.tokenizer_training
    fabric = start(options, training.precision)
    config = {"tokenizer": recipe.tokenizer.model_dump(mode="json"), "training": training.model_dump(mode="json")}
    torch.manual_seed(options.seed)
    bare = initial if initial is not None else TSVQGAN(recipe.tokenizer)
    bare = bare.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    critic = PatchDiscriminator(training.discriminator_channels) if training.adversarial != "none" else None
    state = resumed(options, config)
    if state:
        bare.load_state_dict(state["model"])
        if critic:
            critic.load_state_dict(state["discriminator"])
    model, optimizer = fabric.setup(bare, torch.optim.Adam(bare.parameters(), training.rate, training.betas))
    model.mark_forward_method("encode")
    optimizers = [optimizer]
    if critic:
        critic, critic_optimizer = fabric.setup(
            critic, torch.optim.Adam(critic.parameters(), training.rate, training.betas)
        )
        optimizers.append(critic_optimizer)
    if state:
        for each, saved in zip(optimizers, state["optimizers"], strict=True):
            each.load_state_dict(saved)
    perceptual, reason = perceptual_loss(training.perceptual, fabric.device)
    fabric.print(f"perceptual loss: {reason}") if options.progress else None
    usage = state["usage"] if state else torch.zeros(recipe.tokenizer.codebook_size)

    def save(step: int) -> None:
        if fabric.is_global_zero:
            facts = {"recipe": recipe.name, "steps": step, "seed": options.seed, "perceptual": reason}
            checkpoint.save(options.folder, bare, facts)
            progress: dict[str, Any] = {
                "step": step,
                "config": config,
                "seed": options.seed,
                "model": bare.state_dict(),
                "optimizers": [each.state_dict() for each in optimizers],
                "usage": usage,
            }
            if critic:
                progress["discriminator"] = critic.module.state_dict()
            checkpoint.save_state(options.folder, progress)
        fabric.barrier()

    total = training.plain_steps + training.masked_steps
    first = state["step"] if state else 0
    record = Record(options, fabric, total, first, "tokenizer")
    step = first
    for step in steps(first, total, options.stop_at):
        random = seed_step(options.seed, step, fabric.global_rank)
        set_rate(optimizers, training.rate * 0.5 ** (step // training.halve_every))
        batch = data.batch(options.seed, step, fabric.global_rank, training.batch_size, pairs=False)
        image = fabric.to_device(batch.target.contiguous(memory_format=torch.channels_last))
        mask = None
        if step >= training.plain_steps:
            mask = fabric.to_device(random_masks(training.masks, batch, random))
        if step == training.codebook_start and training.codebook_start:
            _fill_codebook(fabric, bare, data, options.seed, training.batch_size)
        elif training.restart_every and step % training.restart_every == 0 and step > training.codebook_start:
            _restart_unused(fabric, bare, image, usage)
        result: Reconstruction = model(image, mask, quantize=step >= training.codebook_start)
        usage += torch.bincount(result.tokens.flatten().cpu(), minlength=len(usage))
        pixel = (result.image.float() - image).abs().mean()
        distance = perceptual(result.image, image).mean() if training.perceptual_weight else pixel.new_zeros(())
        reconstruction = pixel + training.perceptual_weight * distance
        loss = reconstruction + training.codebook_weight * (
            result.codebook_loss.mean() + training.commitment * result.commitment.mean()
        )
        scalars: dict[str, Tensor | float] = {"pixel": pixel.detach(), "perceptual": distance.detach()}
        scalars["commitment"] = result.commitment.mean().detach()
        attacked = critic is not None and step >= training.adversarial_start
        if critic and attacked:
            push = hinge_generator(critic(result.image))
            weight: Tensor | float = training.adversarial_weight
            if training.adversarial == "adaptive":
                last = bare.decoder.conv_out.weight
                weight = adaptive_weight(reconstruction, push, last, training.adversarial_weight)
            loss = loss + weight * push
            scalars |= {"adversarial": push.detach(), "adversarial_weight": float(weight)}
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
        if critic and attacked:
            judged = hinge_discriminator(critic(image), critic(result.image.detach()))
            critic_optimizer.zero_grad()
            fabric.backward(judged)
            critic_optimizer.step()
            scalars["discriminator"] = judged.detach()
        record.step(step, scalars)
        if (step + 1) % options.sample_every == 0:
            record.sheet(step + 1, _sheet(model, image, mask, result))
        if (step + 1) % options.save_every == 0:
            save(step + 1)
    save(min(step + 1, total))
    record.close()
    return bare.eval()


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
    centres, _ = kmeans2(points, size, iter=10, minit="points", seed=seed, missing="warn")
    codebook = fabric.broadcast(torch.from_numpy(centres.astype(np.float32)).to(fabric.device))
    with torch.no_grad():
        model.quantizer.codebook.copy_(codebook)


def _restart_unused(fabric: Fabric, model: TSVQGAN, image: Tensor, usage: Tensor) -> None:
    """Moves codebook vectors that no token used since the last time to random latents of this batch."""
    usage.copy_(fabric.all_reduce(usage, reduce_op="sum"))
    unused = torch.nonzero(usage == 0).flatten()
    with fabric.autocast():
        latents = _latents(model, image).float()
    chosen = latents[torch.randint(len(latents), (len(unused),), device=latents.device)]
    codebook = model.quantizer.codebook.detach().clone()
    codebook[unused.to(codebook.device)] = chosen
    with torch.no_grad():
        model.quantizer.codebook.copy_(fabric.broadcast(codebook))
    usage.zero_()


def _sheet(model: _FabricModule, image: Tensor, mask: Tensor | None, result: Reconstruction) -> Any:
    """Input, mask and reconstruction of the step's first images."""
    rows = []
    for row in range(min(SHEET_ROWS, len(image))):
        shown = np.zeros((*image.shape[2:], 3), np.uint8)
        if mask is not None:
            shown[mask[row, 0].cpu().numpy()] = 255
        rows.append([to_bytes(image[row]), shown, to_bytes(result.image[row])])
    return sample_sheet(rows, ["input", "mask", "reconstruction"])


__all__ = ["Batch", "train_tokenizer"]
