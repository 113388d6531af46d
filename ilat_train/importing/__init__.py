"""Checkpoints of the authors and of CompVis as models of ours: the same parameters under our names.

>>> found = import_checkpoint(Path("last.ckpt"), "taming-vqgan")
>>> checkpoint.save(Path("runs/pose/tokenizer"), found.model, found.facts)
"""
