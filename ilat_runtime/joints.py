"""The 13 body landmarks of Penn Action and the limbs drawn between them.

A pose is float32 (13, 3): x, y in pixels (origin top left) and visibility (1 visible, 0 not), in the order of
:data:`JOINTS`. "Left" and "right" are the person's own.
"""

from __future__ import annotations

JOINTS: tuple[str, ...] = (
    "head",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
)

_NAMED_LIMBS = (
    ("head", "left_shoulder"),
    ("head", "right_shoulder"),
    ("left_shoulder", "right_shoulder"),
    ("left_shoulder", "left_elbow"),
    ("left_elbow", "left_wrist"),
    ("right_shoulder", "right_elbow"),
    ("right_elbow", "right_wrist"),
    ("left_shoulder", "left_hip"),
    ("right_shoulder", "right_hip"),
    # The diagonals fill the torso, which is wider than any dilation of its outline needs to be.
    ("left_shoulder", "right_hip"),
    ("right_shoulder", "left_hip"),
    ("left_hip", "right_hip"),
    ("left_hip", "left_knee"),
    ("left_knee", "left_ankle"),
    ("right_hip", "right_knee"),
    ("right_knee", "right_ankle"),
)

LIMBS: tuple[tuple[int, int], ...] = tuple((JOINTS.index(a), JOINTS.index(b)) for a, b in _NAMED_LIMBS)
"""Index pairs into :data:`JOINTS`."""


def _mirrored(name: str) -> str:
    side, _, rest = name.partition("_")
    return {"left": f"right_{rest}", "right": f"left_{rest}"}.get(side, name)


FLIP: tuple[int, ...] = tuple(JOINTS.index(_mirrored(name)) for name in JOINTS)
"""``pose[list(FLIP)]`` swaps left and right, as a mirrored image needs."""
