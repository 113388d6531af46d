"""LPIPS, the learned perceptual distance (Zhang et al., 2018, arXiv:1801.03924), in plain PyTorch.

The weights come from files that hold nothing but numpy arrays in a pickle. They are read by :func:`read_arrays`, which
understands arrays and containers and refuses anything else, so that opening a file can never run code.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ilat_runtime.errors import IlatError

from ..assets import asset

Kind = Literal["alex", "vgg"]

WEIGHT_FILES: dict[Kind, str] = {"alex": "alexnet.ckpt", "vgg": "vgg16.ckpt"}


class WeightsError(IlatError):
    """A file of LPIPS weights is missing, damaged, or holds something else than arrays."""


class _Layer(NamedTuple):
    """A convolution followed by ReLU. ``pool``: size of the max pooling before it (stride 2), 0 for none."""

    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    pool: int = 0
    tap: bool = False  # is the ReLU's output one of the compared features?


BACKBONES: dict[Kind, tuple[_Layer, ...]] = {
    "alex": (
        _Layer(64, 11, 4, 2, tap=True),
        _Layer(192, 5, 1, 2, pool=3, tap=True),
        _Layer(384, pool=3, tap=True),
        _Layer(256, tap=True),
        _Layer(256, tap=True),
    ),
    "vgg": (
        _Layer(64),
        _Layer(64, tap=True),
        _Layer(128, pool=2),
        _Layer(128, tap=True),
        _Layer(256, pool=2),
        _Layer(256),
        _Layer(256, tap=True),
        _Layer(512, pool=2),
        _Layer(512),
        _Layer(512, tap=True),
        _Layer(512, pool=2),
        _Layer(512),
        _Layer(512, tap=True),
    ),
}

# What brings [-1, 1] to the statistics the backbones were trained with: ImageNet's mean and deviation, doubled.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


class Lpips(nn.Module):
    """LPIPS over AlexNet ("alex", the usual metric) or VGG16 ("vgg", the usual loss). Frozen, always in eval mode.

    Images are float (N, 3, H, W) in [-1, 1]. H and W are at least 32. Under autocast the features are computed in
    the lower precision, the differences in float32.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, kind: Kind = "alex") -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))
        convolutions: list[nn.Conv2d] = []
        heads: list[nn.Conv2d] = []
        channels = 3
        for layer in BACKBONES[kind]:
            convolutions.append(nn.Conv2d(channels, layer.channels, layer.kernel, layer.stride, layer.padding))
            channels = layer.channels
            if layer.tap:
                heads.append(nn.Conv2d(channels, 1, 1, bias=False))
        self.convolutions: Sequence[nn.Conv2d] = nn.ModuleList(convolutions)  # type: ignore[assignment]
        self.heads: Sequence[nn.Conv2d] = nn.ModuleList(heads)  # type: ignore[assignment]
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Lpips:
        """Stays in eval mode: the distance is a fixed function."""
        return super().train(False)

    def features(self, image: Tensor) -> list[Tensor]:
        """The compared activations of float (N, 3, H, W) images in [-1, 1], ever coarser, not yet normalised."""
        x = (image - self.shift) / self.scale
        taps = []
        for layer, convolution in zip(BACKBONES[self.kind], self.convolutions, strict=True):
            if layer.pool:
                x = F.max_pool2d(x, layer.pool, 2)
            x = F.relu(convolution(x))
            if layer.tap:
                taps.append(x)
        return taps

    def _distances(self, a: Tensor, b: Tensor) -> list[Tensor]:
        """One float32 (N, 1, h, w) map for each compared layer; ``b`` may be one image for all of ``a``."""
        # Two passes, not one of a doubled batch: the images without gradient then keep no activations.
        pairs = zip(self.features(a), self.features(b), self.heads, strict=True)
        maps = []
        with torch.autocast(a.device.type, enabled=False):
            for feature_a, feature_b, head in pairs:
                difference = _unit(feature_a.float()) - _unit(feature_b.float())
                maps.append(head(difference.square()))
        return maps

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance of each pair of images: float32 (N,), 0 for equal images."""
        return _overall(self._distances(a, b))

    def forward_map(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance at each pixel: float32 (N, 1, H, W), the layers' maps brought to the image's size bilinearly."""
        return _spread(self._distances(a, b), a)

    def forward_both(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Both at the cost of one. ``b`` may be a single image, which every one of ``a`` is compared with."""
        maps = self._distances(a, b)
        return _overall(maps), _spread(maps, a)

    def load_arrays(self, arrays: dict[str, Any], source: str) -> None:
        """Copies weights read by :func:`read_arrays` (kernels HWIO) into the module.

        Raises:
            WeightsError: a layer is missing or of another shape; ``source`` names the file in the message.
        """
        backbone = _table(arrays, "AlexNet_0" if self.kind == "alex" else "VGG16_0", source)
        for index, convolution in enumerate(self.convolutions):
            layer = _table(backbone, f"Conv_{index}", source)
            _copy(convolution.weight, layer, "kernel", f"Conv_{index}", source)
            assert convolution.bias is not None  # noqa: S101 (for the type checker)
            _copy(convolution.bias, layer, "bias", f"Conv_{index}", source)
        for index, head in enumerate(self.heads):
            layer = _table(_table(arrays, f"NetLinLayer_{index}", source), "Conv_0", source)
            _copy(head.weight, layer, "kernel", f"NetLinLayer_{index}", source)


def load_lpips(kind: Kind, device: torch.device | str = "cpu") -> Lpips:
    """LPIPS with its published weights, found where ``ilat-train fetch lpips`` put them.

    Raises:
        IlatError: the weights were not fetched (the message says how) or are damaged.
    """
    path = asset("lpips")[WEIGHT_FILES[kind]]
    module = Lpips(kind)
    module.load_arrays(read_arrays(path), str(path))
    return module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _overall(maps: list[Tensor]) -> Tensor:
    return torch.stack([each.mean((1, 2, 3)) for each in maps]).sum(0)


def _spread(maps: list[Tensor], image: Tensor) -> Tensor:
    size = image.shape[-2:]
    return torch.stack([F.interpolate(each, size, mode="bilinear", align_corners=False) for each in maps]).sum(0)


def _unit(feature: Tensor) -> Tensor:
    """Scaled to length 1 over the channels."""
    # The clamp changes no value; it keeps the root's gradient finite where every channel is 0.
    length = feature.square().sum(1, keepdim=True).clamp_min(1e-20).sqrt()
    return feature / (length + 1e-10)


def _table(table: dict[str, Any], key: str, source: str) -> dict[str, Any]:
    value = table.get(key)
    if not isinstance(value, dict):
        raise WeightsError(f"{source}: no table {key!r}")
    return value


def _copy(target: Tensor, layer: dict[str, Any], key: str, name: str, source: str) -> None:
    array = layer.get(key)
    if not isinstance(array, np.ndarray):
        raise WeightsError(f"{source}: {name} has no array {key!r}")
    if array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)  # HWIO -> OIHW
    if array.shape != tuple(target.shape):
        raise WeightsError(f"{source}: {name} {key} has shape {array.shape}, expected {tuple(target.shape)}")
    with torch.no_grad():
        target.copy_(torch.from_numpy(np.array(array, np.float32, order="C")))


class _PickledType:
    """Stands for numpy.dtype: simple numbers only."""

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or code not in ("f2", "f4", "f8", "i4", "i8"):
            raise pickle.UnpicklingError(f"array of type {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        if order not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError(f"byte order {order!r}")
        self.dtype = self.dtype.newbyteorder(order)


class _PickledArray:
    """Stands for numpy.ndarray while reading; :func:`_as_arrays` turns it into one."""

    array: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        if not isinstance(kind, _PickledType) or not isinstance(data, bytes):
            raise pickle.UnpicklingError("array without plain data")
        if len(data) != math.prod(shape) * kind.dtype.itemsize:
            raise pickle.UnpicklingError(f"array of shape {shape} with {len(data)} bytes")
        self.array = np.frombuffer(data, kind.dtype).reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_: object) -> _PickledArray:
    return _PickledArray()


class _ArrayUnpickler(pickle.Unpickler):
    """Knows three names, all of them harmless stand-ins; any other name is an error."""

    allowed: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy", "ndarray"): _PickledArray,
        ("numpy", "dtype"): _PickledType,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def _as_arrays(value: object) -> Any:
    if isinstance(value, dict):
        return {str(key): _as_arrays(item) for key, item in value.items()}
    if isinstance(value, _PickledArray) and value.array is not None:
        return value.array
    raise pickle.UnpicklingError(f"it holds a {type(value).__name__}")


def read_arrays(path: str | Path) -> dict[str, Any]:
    """Nested dict of arrays from a pickle that holds only dicts and numpy arrays. Never runs what the file contains.

    Raises:
        WeightsError: the file cannot be read, is cut short, or holds anything but dicts and arrays.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror or error}") from error
    try:
        arrays = _as_arrays(_ArrayUnpickler(io.BytesIO(data)).load())
    # A damaged pickle fails in nearly any way, from IndexError to MemoryError.
    except Exception as error:
        raise WeightsError(f"{path}: not a file of arrays ({error})") from error
    if not isinstance(arrays, dict):
        raise WeightsError(f"{path}: expected a dict of arrays")
    return arrays
