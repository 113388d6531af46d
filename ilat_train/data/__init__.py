"""Data sets: made from videos, read for training; masks for the tokenizer."""
