"""ilat_runtime: edit images with a bundle, generating only the masked tokens.

>>> from ilat_runtime import Editor, read_poses
>>> editor = Editor("samples/bundles/pose-demo")
>>> result = editor.edit(image, pose=read_poses("target.json").poses[0])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .crop import Crop as Crop
    from .editor import Editor as Editor
    from .editor import Result as Result
    from .editor import Session as Session
    from .errors import BackendError as BackendError
    from .errors import BundleError as BundleError
    from .errors import Cancelled as Cancelled
    from .errors import IlatError as IlatError
    from .errors import InputError as InputError
    from .errors import OutputError as OutputError
    from .image_file import read_image as read_image
    from .image_file import read_mask as read_mask
    from .image_file import read_sketch as read_sketch
    from .image_file import write_image as write_image
    from .joints import JOINTS as JOINTS
    from .pose_file import read_poses as read_poses
    from .video_file import VideoWriter as VideoWriter

# Loaded when first used: ilat_train needs the segments without OpenCV, and --help needs nothing.
_HOME = {
    "Crop": "crop",
    "Editor": "editor",
    "Result": "editor",
    "Session": "editor",
    "BackendError": "errors",
    "BundleError": "errors",
    "Cancelled": "errors",
    "IlatError": "errors",
    "InputError": "errors",
    "OutputError": "errors",
    "read_image": "image_file",
    "read_mask": "image_file",
    "read_sketch": "image_file",
    "write_image": "image_file",
    "JOINTS": "joints",
    "read_poses": "pose_file",
    "VideoWriter": "video_file",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
