"""The pixel mask at every resolution the encoder works at."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


class MaskPyramid:
    """M' of Eq. 2: a pixel mask brought to a feature's size by max-pooling.

    Args:
        mask: bool (B, 1, H, W), True where masked.
        both_streams: also compute the features under the mask, the labels of training. At inference the tokens there
            are generated, so one stream is enough: features at unmasked positions are the same, those at masked ones
            are meaningless.
    """

    def __init__(self, mask: Tensor, both_streams: bool = True) -> None:
        self.both_streams = both_streams
        self._known = {mask.shape[-1]: (~mask).float()}
        self._mask = {mask.shape[-1]: mask}
        self._size = int(mask.shape[-1])

    def masked(self, size: int) -> Tensor:
        """Bool (B, 1, size, size): a cell is masked when any pixel in it is."""
        if size not in self._mask:
            pooled = F.max_pool2d(self._mask[self._size].float(), self._size // size)
            self._mask[size] = pooled > 0.5
        return self._mask[size]

    def known(self, size: int) -> Tensor:
        """Float (B, 1, size, size): 1 - M'."""
        if size not in self._known:
            self._known[size] = (~self.masked(size)).float()
        return self._known[size]
