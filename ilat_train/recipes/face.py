"""Face editing as in the paper: the smaller tokenizers and the base transformer (Sec. 3.3 and 4, A.1)."""

from ..config import DataConfig, Recipe, TokenizerConfig, TokenizerTraining, TransformerConfig, TransformerTraining

_TRANSFORMER = TransformerConfig(
    codebook_size=2048, condition_vocabulary=2048, pose_tokens=0, blocks=("condition", "target")
)
# FFHQ's first 68,000 of 70,000 images; COCO's and free-form masks (the paper does not say in which shares).
_DATA = DataConfig(flip=0.5, train_images=68_000)
_TRANSFORMER_TRAINING = TransformerTraining(masks=("free-form", "object"))

FACE = Recipe(
    name="face",
    task="images",
    # Table 3.
    tokenizer=TokenizerConfig(
        channels=64,
        multipliers=(1, 2, 4, 6, 8),
        attention=False,
        norm="instance",
        downsample_kernel=4,
        decoder_layout="table-3",
        codebook_size=2048,
        tanh=True,
    ),
    transformer=_TRANSFORMER,
    data=_DATA,
    tokenizer_training=TokenizerTraining(
        rate=2e-4, adversarial="fixed", adversarial_weight=0.1, masks=("free-form", "object")
    ),
    transformer_training=_TRANSFORMER_TRAINING,
)

FACE_SKETCH = Recipe(
    name="face-sketch",
    task="sketches",
    # The paper does not describe it; this is the released one: a large first kernel, and no blocks at full resolution.
    tokenizer=TokenizerConfig(
        in_channels=1,
        channels=64,
        multipliers=(1, 2, 4, 6, 8),
        attention=False,
        norm="instance",
        first_kernel=13,
        widening="resampling",
        downsample_kernel=4,
        codebook_size=2048,
        tanh=True,
    ),
    transformer=_TRANSFORMER,
    data=_DATA,
    # The released code's: no masks and no perceptual loss.
    tokenizer_training=TokenizerTraining(
        masked_steps=0,
        rate=1e-4,
        perceptual_weight=0,
        adversarial="fixed",
        adversarial_weight=0.1,
        masks=("free-form",),
    ),
    transformer_training=_TRANSFORMER_TRAINING,
)
