"""The local autoregressive transformer: the mask is used, the loss is Eq. 6, the table is tied (Sec. 3.2)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from ilat_runtime.errors import InputError
from ilat_runtime.segments import FIRST_CAUSAL, GLOBAL
from ilat_train.config import Recipe, TransformerConfig
from ilat_train.models import LocalTransformer
from ilat_train.models.point_mlp import PointMLP
from ilat_train.models.transformer import batch_segments
from ilat_train.recipes import RECIPES
from ilat_train.train_transformer import TokenBatch, loss

SIDE = 4
N = SIDE * SIDE
CONFIG = TransformerConfig(
    width=32, heads=4, layers=3, image_tokens=N, codebook_size=20, condition_vocabulary=20, dropout=0.0
)
NUMBERINGS = ["local", "released", "vanilla"]


def test_the_source_pose_is_not_trained() -> None:
    """Breaks when a recipe with that block trains on landmarks that are all zero."""
    blocks = ("source_pose", "condition", "pose", "target")
    with pytest.raises(ValidationError, match="'source_pose' is of imported models"):
        Recipe(name="x", transformer=TransformerConfig(blocks=blocks))


def wide(config: TransformerConfig, seed: int = 0) -> LocalTransformer:
    """Random weights wider than training starts from, so that every dependence shows."""
    torch.manual_seed(seed)
    model = LocalTransformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    return model


@pytest.fixture(scope="module")
def model() -> LocalTransformer:
    return wide(CONFIG)


def inputs(seed: int = 0, batch: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Condition, pose, target and token mask."""
    torch.manual_seed(seed)
    mask = torch.rand(batch, N) < 0.4
    mask[:, 3:6] = True
    return (
        torch.randint(20, (batch, N)),
        torch.rand(batch, 13, 3).round(decimals=2),
        torch.randint(20, (batch, N)),
        mask,
    )


def hidden_states(model: LocalTransformer, condition: Tensor, pose: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Of every row of the sequence, (B, L, width)."""
    tokens, landmarks = model.sequence(condition, pose, target)
    numbers = batch_segments(model.config, mask)
    allowed = (numbers[:, :, None] >= numbers[:, None, :])[:, None]
    return model(tokens, landmarks, torch.arange(tokens.shape[1]), allowed)


@pytest.mark.parametrize("numbering", NUMBERINGS)
def test_no_row_reads_a_later_segment(numbering: str) -> None:
    """Breaks when the mask is not used, is transposed or is off by one: each token in turn is given every other value,
    and only rows of its own or a later segment may change."""
    model = wide(CONFIG.model_copy(update={"numbering": numbering}))
    condition, pose, target, mask = inputs(1)
    numbers = batch_segments(model.config, mask)[0]
    layout = model.config.layout
    with torch.inference_mode():
        before = hidden_states(model, condition, pose, target, mask)[0]
        for block, values in (("condition", condition), ("target", target)):
            for token in range(N):
                changed = values.clone()
                changed[0, token] = (values[0, token] + 7) % 20
                arguments = (changed, pose, target) if block == "condition" else (condition, pose, changed)
                after = hidden_states(model, *arguments, mask)[0]
                own = layout.slice(block).start + 1 + token
                moved = (after != before).any(-1)
                assert not moved[numbers < numbers[own]].any(), (block, token)
                assert moved[numbers >= numbers[own]].all(), (block, token)


def test_what_a_masked_token_reaches(model: LocalTransformer) -> None:
    """The promises by name: logits of earlier masked tokens and of global rows never depend on a masked token, the
    condition's states on no target token at all."""
    condition, pose, target, mask = inputs(2)
    numbers = batch_segments(CONFIG, mask)
    rows = numbers[0, CONFIG.layout.slice("target")]
    masked = torch.nonzero(mask[0]).flatten().tolist()
    with torch.inference_mode():
        before = model.target_logits(condition, pose, target, numbers)[0]
        for token in masked:
            changed = target.clone()
            changed[0, token] = (target[0, token] + 3) % 20
            after = model.target_logits(condition, pose, changed, numbers)[0]
            earlier = [other for other in masked if other <= token]
            known = torch.nonzero(rows[:-1] == GLOBAL).flatten()
            assert torch.equal(after[earlier], before[earlier])
            assert torch.equal(after[known], before[known])
        states = hidden_states(model, condition, pose, target, mask)
        others = hidden_states(model, condition, pose, (target + 1) % 20, mask)
        at = CONFIG.layout.slice("condition")
        assert torch.equal(states[:, at], others[:, at])
        elsewhere = hidden_states(model, condition, pose + 0.1, target, mask)
        assert torch.equal(states[:, at], elsewhere[:, at]), "the condition is prefilled before the pose is known"


def test_every_mask_has_its_own_attention(model: LocalTransformer) -> None:
    """Breaks when one mask serves a whole batch."""
    condition, pose, target, mask = inputs(3, batch=3)
    assert len({tuple(row) for row in mask.tolist()}) == 3
    with torch.inference_mode():
        together = model.target_logits(condition, pose, target, batch_segments(CONFIG, mask))
        for row in range(3):
            one = slice(row, row + 1)
            alone = model.target_logits(condition[one], pose[one], target[one], batch_segments(CONFIG, mask[one]))
            torch.testing.assert_close(together[one], alone, rtol=1e-4, atol=1e-4)


def test_attention_by_hand() -> None:
    """Breaks when heads are mixed up, the scale is wrong or the mask is: Eq. 8 in numpy for one layer."""
    config = CONFIG.model_copy(update={"layers": 1})
    attention = wide(config).blocks[0].attention
    x, allowed = torch.randn(1, 6, 32), torch.rand(6, 6) < 0.6
    allowed.fill_diagonal_(True)
    with torch.inference_mode():
        found = attention(x, allowed[None, None])[0].numpy()
        query, key, value = (part.numpy() for part in attention.qkv(x)[0].split(32, 1))
    together = []
    for head in range(4):
        at = slice(8 * head, 8 * head + 8)
        scores = np.where(allowed.numpy(), query[:, at] @ key[:, at].T / np.sqrt(8), -np.inf)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        together.append(weights / weights.sum(1, keepdims=True) @ value[:, at])
    with torch.inference_mode():
        expected = attention.project(torch.from_numpy(np.concatenate(together, 1)).float()).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


# --- the loss ---


def test_equation_6(model: LocalTransformer) -> None:
    """Breaks when tokens other than the masked are counted, or the labels are shifted by one."""
    condition, pose, target, mask = inputs(4, batch=2)
    numbers = batch_segments(CONFIG, mask)

    def teacher(condition: Tensor | None, pose: Tensor | None, target: Tensor, numbers: Tensor) -> Tensor:
        return model.target_logits(condition, pose, target, numbers)

    with torch.inference_mode():
        nats, _ = loss(teacher, CONFIG, TokenBatch(condition, target, mask, pose[:, :13]), numbers)
        tokens, landmarks = model.sequence(condition, pose, target)
        allowed = (numbers[:, :, None] >= numbers[:, None, :])[:, None]
        hidden = model(tokens, landmarks, torch.arange(tokens.shape[1]), allowed)
        expected = []
        for image in range(2):
            for token in torch.nonzero(mask[image]).flatten().tolist():
                # Row 0 of the target is t[s]; the row of token m - 1 predicts token m.
                row = CONFIG.layout.slice("target").start + token
                log = F.log_softmax(model.logits(hidden[image, row]), -1)
                expected.append(-log[target[image, token]])
    torch.testing.assert_close(nats, torch.stack(expected).mean())


def test_only_masked_labels_count(model: LocalTransformer) -> None:
    """Breaks when an unmasked token's label counts: here those are all wrong, and the masked ones right."""
    _, _, target, mask = inputs(5)

    def perfect(condition: Tensor | None, pose: Tensor | None, target: Tensor, numbers: Tensor) -> Tensor:
        sure = F.one_hot(target, 20).float() * 100
        return torch.where(mask[..., None], sure, -sure)

    batch = TokenBatch(target, target, mask, torch.zeros(1, 13, 3))
    nats, accuracy = loss(perfect, CONFIG, batch, batch_segments(CONFIG, mask))
    assert nats < 1e-6
    assert accuracy == 1


# --- embeddings ---


def test_sequence_is_the_layout(model: LocalTransformer) -> None:
    condition, pose, target, _ = inputs(6)
    tokens, landmarks = model.sequence(condition, pose, target)
    expected = [40, *condition[0].tolist(), *[42] * 13, 41, *(20 + target[0]).tolist()]
    assert tokens[0].tolist() == expected
    assert torch.equal(landmarks[0, N + 1 : N + 14], pose[0])
    assert landmarks[0, : N + 1].eq(0).all()
    assert landmarks[0, N + 14 :].eq(0).all()


def test_the_table_is_tied(model: LocalTransformer) -> None:
    """Breaks when logits come from a table of their own, or from the wrong rows of the shared one."""
    state = torch.randn(5, 32)
    with torch.inference_mode():
        hidden = model.norm2(F.gelu(model.dense(model.norm1(state))))
        expected = hidden @ model.embedding[20:40].T + model.bias
        torch.testing.assert_close(model.logits(state), expected)
    assert [name for name, p in model.named_parameters() if 20 in p.shape or 40 in p.shape] == ["bias"]


@pytest.mark.parametrize("place", [(0.3, 0.7), (1e6, -1e6), (0.0, 0.0)])
def test_invisible_landmarks(place: tuple[float, float]) -> None:
    """Breaks when the place of a landmark that is not visible reaches the model (A.2)."""
    torch.manual_seed(0)
    mlp = PointMLP(16)
    hidden, absent = torch.tensor([*place, 0.0]), torch.tensor([-1.0, -1.0, 0.0])
    with torch.inference_mode():
        assert torch.equal(mlp(hidden), mlp.layers(absent))
        seen = torch.tensor([0.3, 0.7, 1.0])
        assert torch.equal(mlp(seen), mlp.layers(seen))


def test_point_mlp_is_three_layers_with_relu() -> None:
    """Sec. 3.3: "3 fully connected layers with ReLU"."""
    kinds = [type(layer).__name__ for layer in PointMLP(16).layers]
    assert kinds == ["Linear", "ReLU"] * 3


def test_models_without_pose_or_condition() -> None:
    """Face editing has no pose, inpainting no condition: the blocks are absent, not empty."""
    face = wide(CONFIG.model_copy(update={"pose_tokens": 0, "blocks": ("condition", "target")}))
    alone = wide(CONFIG.model_copy(update={"pose_tokens": 0, "blocks": ("target",), "condition_vocabulary": 0}))
    condition, _, target, mask = inputs(7)
    for model, given in ((face, condition), (alone, None)):
        assert model.point_mlp is None
        found = model.target_logits(given, None, target, batch_segments(model.config, mask))
        assert found.shape == (1, N, 20)
    assert len(alone.position) == N + 1


def test_base_size() -> None:
    """A.1: width 768, 12 heads, 12 layers, dropout 0.1; 527 tokens with a pose. About 86 million without tables."""
    config = RECIPES["pose"].transformer
    assert (config.width, config.heads, config.layers, config.dropout) == (768, 12, 12, 0.1)
    assert config.layout.length == 257 + 13 + 257
    with torch.device("meta"):
        model = LocalTransformer(config)
    assert 85e6 < sum(p.numel() for p in model.blocks.parameters()) < 86e6
    assert model.embedding.shape == (2 * 16384 + 3, 768)
    assert Recipe.model_validate(RECIPES["face"].model_dump()).transformer.blocks == ("condition", "target")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 30}, "width 30 must be a multiple of heads 12"),
        ({"numbering": "lokal"}, "numbering 'lokal' must be one of"),
        ({"pose_tokens": 0}, "pose_tokens 0 must be 0 just where"),
        ({"blocks": ("condition", "target")}, "pose_tokens 13 must be 0 just where"),
    ],
)
def test_impossible_configurations(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TransformerConfig.model_validate(values)


def test_causal_rows_are_masked_ones_and_those_before(model: LocalTransformer) -> None:
    """The numbering that the tests above rely on: causal are masked tokens and the rows that predict them."""
    mask = torch.zeros(1, N, dtype=torch.bool)
    mask[0, [1, 2, 5]] = True
    rows = batch_segments(CONFIG, mask)[0, CONFIG.layout.slice("target")]
    # Row 0 is t[s], row j + 1 is token j.
    assert torch.nonzero(rows >= FIRST_CAUSAL).flatten().tolist() == [1, 2, 3, 5, 6]


COPYING = {
    "width": 320,
    "heads": 4,
    "layers": 2,
    "image_tokens": 64,
    "codebook_size": 128,
    "condition_vocabulary": 128,
    "shared_vocabulary": True,
    "start": "copy",
}


@pytest.mark.parametrize("numbering", ["local", "vanilla"])
def test_a_start_that_copies(numbering: str) -> None:
    """Breaks when a row looks at another place than the one it predicts, or at the target instead of the condition."""
    torch.manual_seed(0)
    model = LocalTransformer(TransformerConfig(**COPYING, numbering=numbering)).eval()
    condition, target = torch.randint(0, 128, (2, 4, 64))
    token_mask = torch.rand(4, 64) < 0.4
    with torch.inference_mode():
        logits = model.target_logits(condition, torch.rand(4, 13, 3), target, batch_segments(model.config, token_mask))
    predicted = logits.argmax(-1)
    assert (predicted == condition)[token_mask].float().mean() > 0.95
    assert (predicted == target)[token_mask].float().mean() < 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shared_vocabulary": False}, "start 'copy' needs"),
        ({"blocks": ("pose", "target")}, "start 'copy' needs"),
        ({"heads": 40}, "heads of 8 channels"),
        ({"image_tokens": 60}, "expected a square"),
    ],
)
def test_a_start_that_cannot_copy(change: dict[str, object], message: str) -> None:
    with pytest.raises((ValidationError, InputError), match=message):
        LocalTransformer(TransformerConfig.model_validate(COPYING | change))


def test_noise_concerns_masked_inputs_only(model: LocalTransformer) -> None:
    """Breaks when a known token is shown wrong, or when a label is."""
    shown: list[Tensor] = []

    def spy(condition: Tensor, pose: Tensor, target: Tensor, numbers: Tensor) -> Tensor:
        shown.append(target)
        return F.one_hot(batch.target, model.config.codebook_size).float() * 100

    config = model.config
    tokens = torch.randint(0, config.codebook_size, (2, 8, config.image_tokens))
    batch = TokenBatch(tokens[0], tokens[1], torch.rand(8, config.image_tokens) < 0.5, torch.rand(8, 13, 3))
    nats, accuracy = loss(spy, config, batch, batch_segments(config, batch.token_mask), noise=0.5)
    changed = shown[0] != batch.target
    assert not changed[~batch.token_mask].any()
    assert 0.2 < changed[batch.token_mask].float().mean() < 0.6
    assert accuracy == 1
    assert nats < 1e-3
