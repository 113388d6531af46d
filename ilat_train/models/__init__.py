"""The models: one file for each box of the paper's Figure 2."""

from .transformer import LocalTransformer
from .ts_vqgan import TSVQGAN

__all__ = ["TSVQGAN", "LocalTransformer"]
