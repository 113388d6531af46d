"""The shipped demo: small enough to train on two cores in about two hours, under 25 MB as a bundle."""

from ..config import Recipe, TokenizerConfig, TokenizerTraining, TransformerConfig, TransformerTraining

POSE_DEMO = Recipe(
    name="pose-demo",
    tokenizer=TokenizerConfig(
        # Most of the time goes where the pixels are, most of the parameters where they are few.
        channels=16,
        multipliers=(1, 2, 4, 6, 8),
        res_blocks=1,
        norm_groups=4,
        latent_channels=128,
        codebook_size=1024,
        codebook_channels=64,
    ),
    transformer=TransformerConfig(
        width=256, heads=8, layers=8, dropout=0.1, codebook_size=1024, condition_vocabulary=1024
    ),
    tokenizer_training=TokenizerTraining(
        plain_steps=1500,
        masked_steps=400,
        batch_size=4,
        rate=1e-3,
        betas=(0.5, 0.9),
        halve_every=500,
        precision="bf16-mixed",
        # AlexNet's LPIPS costs little beside the tokenizer; VGG's would cost more than it.
        perceptual="alex",
        codebook_start=200,
        restart_every=50,
        adversarial="none",
        masks=("skeleton", "skeleton", "free-form", "box"),
    ),
    transformer_training=TransformerTraining(
        steps=3000, batch_size=8, rate=6e-4, warmup=200, precision="bf16-mixed", token_pool=3000
    ),
)
