"""Training of the local autoregressive transformer on a frozen tokenizer (Sec. 3.2 and 4)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ilat_runtime.errors import InputError
from ilat_runtime.output_file import replacing

from . import checkpoint
from .config import Labels, Recipe, TransformerConfig
from .data.dataset import Batch, TrainingData, generator, random_masks, to_bytes
from .data.object_masks import ObjectMasks
from .evaluation.sheet import sample_sheet
from .models import TSVQGAN, LocalTransformer
from .models.transformer import batch_segments
from .run import Record, RunOptions, resumed, seed_step, set_rate, start, steps

SHEET_ROWS = 4


@dataclass
class TokenBatch:
    """Encoded pairs: tokens int64 (B, n) of condition and target, token mask bool (B, n), target pose (B, 13, 3)."""

    condition: Tensor
    target: Tensor
    token_mask: Tensor
    pose: Tensor

    def rows(self, index: Tensor) -> TokenBatch:
        """The chosen rows."""
        return TokenBatch(self.condition[index], self.target[index], self.token_mask[index], self.pose[index])

    def to(self, fabric: Fabric) -> TokenBatch:
        """On the training's device."""
        return TokenBatch(*(fabric.to_device(part) for part in vars(self).values()))


def encode(
    tokenizer: TSVQGAN,
    batch: Batch,
    mask: Tensor,
    sketch_tokenizer: TSVQGAN | None = None,
    labels: Labels = "two-stream",
) -> TokenBatch:
    """The condition without a mask, the target with the mask bool (B, 1, S, S) (Fig. 2).

    A condition that is a sketch has a tokenizer of its own. Tokens under the mask are the labels and come from the full
    stream or, by ``labels`` "plain", from the encoder without a mask; the others do not depend on masked pixels.
    """
    with torch.inference_mode():
        condition = (sketch_tokenizer or tokenizer).tokens(batch.condition)
        target = tokenizer.quantizer.nearest(tokenizer.encode(batch.target, mask))
        token_mask = tokenizer.token_mask(mask).flatten(1)
        if labels == "plain":
            target = torch.where(token_mask, tokenizer.tokens(batch.target), target)
    # Out of inference mode's tensors, which autograd refuses.
    return TokenBatch(condition.clone(), target.clone(), token_mask.clone(), batch.poses[:, 1].clone())


def loss(
    model: Any, config: TransformerConfig, batch: TokenBatch, numbers: Tensor, noise: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Eq. 6: mean negative log likelihood of the masked target tokens, in nats, and the share predicted right.

    Args:
        numbers: int32 (B, L), the segments.
        noise: share of the masked tokens that the model reads wrong.
    """
    shown = batch.target
    if noise:
        wrong = batch.token_mask & (torch.rand(shown.shape, device=shown.device) < noise)
        shown = torch.where(wrong, torch.randint_like(shown, config.codebook_size), shown)
    logits = model(
        batch.condition if "condition" in config.blocks else None,
        batch.pose if config.pose_tokens else None,
        shown,
        numbers,
    )[batch.token_mask].float()
    wanted = batch.target[batch.token_mask]
    return F.cross_entropy(logits, wanted), (logits.argmax(-1) == wanted).float().mean()


def rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then linear decay to 0 at the last step (Sec. 4)."""
    training = recipe.transformer_training
    if step < training.warmup:
        return training.rate * (step + 1) / training.warmup
    return training.rate * (training.steps - step) / max(training.steps - training.warmup, 1)


def optimizer_for(model: LocalTransformer, recipe: Recipe) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay on the matrices of linear layers, not on tables, gains and biases."""
    training = recipe.transformer_training
    decayed = {module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)}
    groups = [
        {"params": [p for p in model.parameters() if p in decayed], "weight_decay": training.weight_decay},
        {"params": [p for p in model.parameters() if p not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, training.rate, training.betas)


class _Teacher(torch.nn.Module):
    """The forward pass of training, as data parallelism wants it: one module, one call."""

    def __init__(self, transformer: LocalTransformer) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, condition: Tensor | None, pose: Tensor | None, target: Tensor, numbers: Tensor) -> Tensor:
        return self.transformer.target_logits(condition, pose, target, numbers)


def train_transformer(
    recipe: Recipe,
    tokenizer: TSVQGAN,
    data: TrainingData,
    options: RunOptions,
    facts: dict[str, Any] | None = None,
    sketch_tokenizer: TSVQGAN | None = None,
    objects: ObjectMasks | None = None,
) -> LocalTransformer:
    """Runs the recipe's transformer training and writes a checkpoint to ``options.folder``.

    Args:
        tokenizer: frozen.
        facts: of the data, kept in config.json beside the recipe's name, steps and seed.
        sketch_tokenizer: frozen, of the condition of task ``images``.
        objects: what masks of kind ``object`` are drawn from.

    Raises:
        InputError: the tokenizers are not the recipe's; see also :func:`ilat_train.run.start`.
    """
    training, config = recipe.transformer_training, recipe.transformer
    if tokenizer.config != recipe.tokenizer:
        raise InputError("tokenizer: its configuration is not the recipe's; use the recipe it was trained with")
    if recipe.task == "images" and "condition" in config.blocks:
        _check_sketches(config, sketch_tokenizer)
    fabric = start(options, training.precision)
    identity = {"transformer": config.model_dump(mode="json"), "training": training.model_dump(mode="json")}
    torch.manual_seed(options.seed)
    bare = LocalTransformer(config)
    state = resumed(options, identity)
    if state:
        bare.load_state_dict(state["model"])
    model, optimizer = fabric.setup(_Teacher(bare), optimizer_for(bare, recipe))
    if state:
        optimizer.load_state_dict(state["optimizer"])
    tokenizer = tokenizer.to(fabric.device).eval()
    if sketch_tokenizer is not None:
        sketch_tokenizer = sketch_tokenizer.to(fabric.device).eval()

    def encoded(images: Batch, random: np.random.Generator) -> TokenBatch:
        mask = fabric.to_device(random_masks(training.masks, images, random, objects))
        return encode(tokenizer, _on_device(images, fabric), mask, sketch_tokenizer, training.labels)

    frozen = [tokenizer, *([sketch_tokenizer] if sketch_tokenizer is not None else [])]
    pool = _pool(recipe, frozen, data, options, fabric, encoded) if training.token_pool else None
    first = state["step"] if state else 0

    def save(step: int) -> None:
        if fabric.is_global_zero:
            known = {"recipe": recipe.name, "steps": step, "seed": options.seed}
            checkpoint.save(options.folder, bare, known | ({"data": facts} if facts else {}))
            progress = {"step": step, "config": identity, "seed": options.seed}
            progress |= {"model": bare.state_dict(), "optimizer": optimizer.state_dict()}
            checkpoint.save_state(options.folder, progress)
        fabric.barrier()

    record = Record(options, fabric, training.steps, first, "transformer")
    done = first
    model.train()
    for step in steps(first, training.steps, options.stop_at):
        random = seed_step(options.seed, step, fabric.global_rank)
        set_rate([optimizer], rate(recipe, step))
        if pool is not None:
            batch = pool.rows(torch.from_numpy(random.integers(len(pool.target), size=training.batch_size)))
        else:
            batch = encoded(data.batch(options.seed, step, fabric.global_rank, training.batch_size), random)
        numbers = batch_segments(config, batch.token_mask)
        batch = batch.to(fabric)
        nats, accuracy = loss(model, config, batch, fabric.to_device(numbers), training.token_noise)
        optimizer.zero_grad()
        fabric.backward(nats)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        done = step + 1
        record.step(step, {"nll": nats.detach(), "accuracy": accuracy})
        if done % options.sample_every == 0:
            images = data.batch(options.seed + 2_000_003, 0, 0, SHEET_ROWS)
            mask = random_masks(training.masks, images, generator(options.seed, 2_000_003), objects)
            record.sheet(done, _sheet(tokenizer, bare, images, mask, sketch_tokenizer, training.labels))
            model.train()
        if done % options.save_every == 0:
            save(done)
    save(done)
    record.close()
    return bare.eval()


def _on_device(batch: Batch, fabric: Fabric) -> Batch:
    return Batch(*(fabric.to_device(part) for part in vars(batch).values()))


def _check_sketches(config: TransformerConfig, tokenizer: TSVQGAN | None) -> None:
    if tokenizer is None:
        raise InputError("sketch tokenizer: missing, the condition of task 'images' is a sketch")
    found = (tokenizer.config.in_channels, tokenizer.config.grid**2, tokenizer.config.codebook_size)
    wanted = (1, config.image_tokens, config.condition_vocabulary)
    if found != wanted:
        raise InputError(
            "sketch tokenizer: {} channels, {} tokens of {} values, ".format(*found)
            + "but the recipe's transformer takes {}, {} of {}".format(*wanted)
        )


def _pool(
    recipe: Recipe,
    tokenizers: Sequence[TSVQGAN],
    data: TrainingData,
    options: RunOptions,
    fabric: Fabric,
    encoded: Callable[[Batch, np.random.Generator], TokenBatch],
) -> TokenBatch:
    """``token_pool`` training pairs, encoded once and kept in the run's folder; drawn by the seed alone."""
    count, size, file = recipe.transformer_training.token_pool, 8, options.folder / "pool.safetensors"
    training = recipe.transformer_training
    drawn = (count, options.seed, recipe.data, training.masks, training.labels)
    identity = hashlib.sha256(repr(drawn).encode())
    for tensor in (tensor for tokenizer in tokenizers for tensor in tokenizer.state_dict().values()):
        identity.update(tensor.cpu().numpy().tobytes())
    key = identity.hexdigest()
    if file.is_file():
        with safe_open(file, "pt") as stored:
            if (stored.metadata() or {}).get("key") == key:
                return TokenBatch(*(stored.get_tensor(field.name) for field in fields(TokenBatch)))
    parts = []
    for number in tqdm(range(0, count, size), "encoding", unit="batch", disable=None if options.progress else True):
        # A stream of its own, apart from the training steps'.
        batch = data.batch(options.seed + 1_000_003, number, 0, min(size, count - number))
        parts.append(encoded(batch, generator(options.seed, 1_000_003, number)))
    pool = TokenBatch(*(torch.cat([getattr(part, name) for part in parts]).cpu() for name in vars(parts[0])))
    if fabric.is_global_zero:
        options.folder.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            save_file(vars(pool), temporary, {"key": key})
    fabric.barrier()
    return pool


def greedy(model: LocalTransformer, batch: TokenBatch) -> Tensor:
    """Target tokens (B, n) with the masked ones generated by the likeliest choice, all images of the batch in step.

    Each token takes a pass over the whole sequence: for the sample sheets of training. The runtime's loop with its
    cache gives the same tokens and is what editing uses.
    """
    config, result = model.config, batch.target.clone()
    numbers = batch_segments(config, batch.token_mask).to(result.device)
    result[batch.token_mask] = 0
    condition = batch.condition if "condition" in config.blocks else None
    pose = batch.pose if config.pose_tokens else None
    with torch.inference_mode():
        for token in range(config.image_tokens):
            rows = torch.nonzero(batch.token_mask[:, token]).flatten()
            if len(rows):
                logits = model.target_logits(
                    None if condition is None else condition[rows],
                    None if pose is None else pose[rows],
                    result[rows],
                    numbers[rows],
                )
                result[rows, token] = logits[:, token].argmax(-1)
    return result


def _sheet(
    tokenizer: TSVQGAN,
    model: LocalTransformer,
    images: Batch,
    mask: Tensor,
    sketch_tokenizer: TSVQGAN | None,
    labels: Labels,
) -> Any:
    """Reference or sketch, mask, target, the target's own tokens decoded, and the generated tokens decoded."""
    device = next(model.parameters()).device
    images = Batch(*(part.to(device) for part in vars(images).values()))
    model.eval()
    mask = mask.to(device)
    batch = encode(tokenizer, images, mask, sketch_tokenizer, labels)
    with torch.inference_mode():
        latent = tokenizer.encode(images.target, mask)
        grid = tokenizer.token_mask(mask)
        decoded = [tokenizer.decode_mixed(latent, tokens, grid) for tokens in (batch.target, greedy(model, batch))]
    rows = []
    for row in range(SHEET_ROWS):
        shown = np.zeros((*mask.shape[2:], 3), np.uint8)
        shown[mask[row, 0].cpu().numpy()] = 255
        pictures = [images.condition[row], images.target[row], decoded[0][row], decoded[1][row]]
        reference, target, own, generated = (to_bytes(picture) for picture in pictures)
        rows.append([reference, shown, target, own, generated])
    first = "reference" if sketch_tokenizer is None else "sketch"
    return sample_sheet(rows, [first, "mask", "target", "reconstruction", "generated"])
