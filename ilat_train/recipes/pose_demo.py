"""The shipped demo: 128x128; one core trains it in about two hours. Under 25 MB as a bundle."""

from ..config import DataConfig, Recipe, TokenizerConfig, TokenizerTraining, TransformerConfig, TransformerTraining

POSE_DEMO = Recipe(
    name="pose-demo",
    tokenizer=TokenizerConfig(
        # Tokens of 8x8 pixels: at this size a person's hand is one token, not a quarter of one.
        image_size=128,
        channels=24,
        multipliers=(1, 2, 4, 4),
        res_blocks=1,
        # What a token is must not depend on what is far away: a wall behind a moving person keeps its tokens, and the
        # transformer can copy them. With group statistics, attention and kernels of 3, 42 % of them stayed the same.
        norm="position",
        attention=False,
        last_kernel=1,
        latent_channels=96,
        # As many as one person in one room needs; with 1024 nearly every choice was a toss-up between neighbours.
        codebook_size=256,
        codebook_channels=64,
    ),
    transformer=TransformerConfig(
        width=320,
        heads=4,
        layers=6,
        dropout=0.0,
        codebook_size=256,
        condition_vocabulary=256,
        # With this few steps, what can be given is not left to be learned.
        shared_vocabulary=True,
        start="copy",
    ),
    data=DataConfig(
        # Wide enough for hands and feet, which reach beyond the wrist's and the ankle's landmarks.
        dilation=0.105,
        # Clips of a second and a half are soon known by heart, unless they are never seen twice alike.
        flip=0.5,
        shift=0.12,
        scale=(0.85, 1.35),
    ),
    tokenizer_training=TokenizerTraining(
        plain_steps=1200,
        masked_steps=400,
        decoder_steps=300,
        batch_size=4,
        rate=1e-3,
        betas=(0.5, 0.9),
        halve_every=700,
        precision="bf16-mixed",
        # AlexNet's LPIPS costs little beside the tokenizer; VGG's would cost more than it.
        perceptual="alex",
        decoder_perceptual="vgg",
        codebook_start=200,
        restart_every=50,
        adversarial="none",
        masks=("skeleton", "skeleton", "free-form", "box"),
    ),
    transformer_training=TransformerTraining(
        # Encoding a pair costs as much as a training step, and the clips are few: 6,000 pairs are encoded once.
        steps=3400,
        batch_size=8,
        rate=6e-4,
        warmup=100,
        precision="bf16-mixed",
        # A wall under the mask then has 66 % of the reference's tokens; with labels of the full stream 50 %.
        labels="plain",
        # On frames that are new to it the transformer is mostly wrong: it must not lean on what it wrote before.
        token_noise=0.7,
        token_pool=6000,
    ),
)
