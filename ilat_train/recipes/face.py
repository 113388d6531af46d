"""Face editing as in the paper: the smaller tokenizer of Table 3 (Sec. 3.3 and 4, A.1)."""

from ..config import DataConfig, Recipe, TokenizerConfig, TokenizerTraining, TransformerConfig

FACE = Recipe(
    name="face",
    task="images",
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
    transformer=TransformerConfig(
        codebook_size=2048, condition_vocabulary=2048, pose_tokens=0, blocks=("condition", "target")
    ),
    data=DataConfig(flip=0.5),
    tokenizer_training=TokenizerTraining(
        rate=2e-4, adversarial="fixed", adversarial_weight=0.1, masks=("free-form", "box")
    ),
)
