"""Pose guiding as in the paper: VQGAN f16 with K = 16384, fine-tuned, and the base transformer (Sec. 4, A.1)."""

from ..config import Recipe

POSE = Recipe(name="pose")
"""Every number is a default of the configuration: 150k steps plain and 150k masked at 8e-5 halved every 50k, batch 16,
adaptive adversarial weight; transformer 300k steps at 5e-5 with 10k of warm-up, weight decay 0.01."""
