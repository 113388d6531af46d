"""What the tokenizer is trained against: LPIPS or its stand-in, and the adversarial losses."""
