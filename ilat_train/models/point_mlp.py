"""The PointMLP: landmarks of the target pose as tokens (Sec. 3.3, Fig. 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PointMLP(nn.Module):
    """Three fully connected layers with ReLU: (..., 3) x, y in [0, 1] of the crop and visibility, to (..., width)."""

    def __init__(self, width: int, hide_absent: bool = True) -> None:
        super().__init__()
        self.hide_absent = hide_absent
        self.layers = nn.Sequential(
            nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, width), nn.ReLU()
        )

    def forward(self, landmarks: Tensor) -> Tensor:
        """With ``hide_absent``, landmarks that are not visible count as (-1, -1, 0) wherever they are (A.2, Fig. 8)."""
        if not self.hide_absent:
            return self.layers(landmarks)
        visible = landmarks[..., 2:] > 0.5
        absent = landmarks.new_tensor([-1.0, -1.0, 0.0])
        return self.layers(torch.where(visible, landmarks, absent))
