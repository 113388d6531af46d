"""Engines for NVIDIA GPUs: TensorRT-RTX ahead of time on any machine, TensorRT on the machine that will run them.

Both have the same API, so this is one builder. Networks are strongly typed: precision is what the graphs say.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilat_runtime import engines, manifest
from ilat_runtime.errors import IlatError, InputError, OutputError
from ilat_runtime.manifest import Graph, Manifest
from ilat_runtime.output_file import write_bytes
from ilat_runtime.tensorrt_library import library

from .destination import replacing_folder
from .limits import Limits

AHEAD_OF_TIME = "tensorrt-rtx"
"""The flavour that builds for GPUs that are not there."""
LARGEST_TOP_K = 3840
"""TensorRT's limit."""
TIMING_CACHE = "timing.cache"
"""In the folder of the engines of a bundle: measurements of the full TensorRT, which a second build reuses."""

Progress = Callable[[str, int], None]


class EngineError(IlatError):
    """A graph that the library does not take, or cannot build."""


@dataclass(frozen=True)
class Built:
    """Of one engine.

    Attributes:
        layers: of the network as parsed; ``cache_layers`` of them update the cache in place.
        attentions: fused attention operators.
        bytes, seconds: its size and how long the build took.
        device_bytes: memory that the engine needs besides its weights; None where no GPU can say.
    """

    layers: int
    cache_layers: int
    attentions: int
    bytes: int
    seconds: float
    device_bytes: int | None


def architecture() -> str:
    """Of the first GPU, as ``sm86``. Raises BackendError when there is none."""
    from ilat_runtime.backends.cuda import architecture as found

    return found()


def find_targets(flavour: engines.Flavour, capabilities: Sequence[int]) -> tuple[str, ...]:
    """The GPUs to build for, as ``sm86``; none for portable engines. For arguments and errors see build_engines."""
    trt = library(flavour)
    targets = tuple(f"sm{number}" for number in sorted(set(capabilities)))
    if flavour == AHEAD_OF_TIME:
        _check_capabilities(trt, targets)
    elif targets:
        raise InputError("--compute-capability: only for tensorrt-rtx; tensorrt builds for the GPU of this machine")
    else:
        targets = (architecture(),)
    return targets


def build_engines(
    bundle: Path,
    flavour: engines.Flavour,
    capabilities: Sequence[int] = (),
    limits: Limits | None = None,
    *,
    into: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> tuple[Path, engines.Engines, dict[str, Built]]:
    """Builds the engines of every graph of a bundle into its folder ``engines``.

    Args:
        bundle: the bundle's folder.
        capabilities: compute capabilities to build for, as 86, 89, 120; only TensorRT-RTX takes any. None: portable
            engines (TensorRT-RTX), or this machine's GPU.
        limits: the largest shapes.
        into: the folder whose ``engines`` they are written to; default: the bundle's.
        force: replace engines that are there.
        progress: called as each graph begins, and with ``"done"``.

    Returns:
        The folder, the record, and what was built by graph.

    Raises:
        BackendError: the library is missing, or the GPU that it builds for.
        BundleError: the bundle is not sound.
        EngineError: a graph is not understood or not built.
        InputError: a capability that the library does not know.
        OutputError: engines are there and ``force`` is false, or they cannot be written.
    """

    def report(stage: str, done: int) -> None:
        if progress is not None:
            progress(stage, done)

    known = manifest.load_manifest(bundle)
    manifest.verify_files(bundle, known)
    if known.precision.weights in ("int8", "int4"):
        raise InputError(
            f"{bundle}: precision.weights: {known.precision.weights} is for ONNX Runtime on CPUs; engines are "
            "built from a float32 bundle, or better one that `ilat-export --fp16` wrote"
        )
    trt = library(flavour)
    targets = find_targets(flavour, capabilities)
    out = (into or bundle) / engines.FOLDER / engines.folder_name(flavour, trt.__version__, targets)
    check_engines(out, force)
    graphs = known.graphs.by_name
    built: dict[str, Built] = {}
    records = {}
    with replacing_folder(out) as folder:
        for done, (name, graph) in enumerate(graphs.items()):
            report(name, done)
            profiles = shapes(known, name, limits or Limits())
            path = folder / f"{name}.engine"
            cache = out.parent / TIMING_CACHE if flavour != AHEAD_OF_TIME else None
            built[name] = _build(trt, bundle / graph.file, path, graph, profiles, targets, cache)
            file = manifest.file_record(path)
            records[name] = engines.Engine(
                file=path.name,
                sha256=file.sha256,
                bytes=file.bytes,
                graph_sha256=known.files[graph.file].sha256,
                profiles=profiles,
            )
        record = engines.Engines(
            flavour=flavour,
            version=trt.__version__,
            targets=targets,
            precision=known.precision.compute,
            engines=records,
        )
        engines.write(folder, record)
    report("done", len(graphs))
    return out, record, built


def check_engines(out: Path, force: bool) -> None:
    """Raises OutputError when engines are there and ``force`` is false."""
    if out.exists() and not force:
        raise OutputError(f"{out}: exists already; replace these engines with --force")


def shapes(known: Manifest, name: str, limits: Limits) -> tuple[engines.Profile, ...]:
    """The optimization profiles of a graph: for the transformer one each for prefill, step and verification."""
    capacity, vocabulary = known.cache_capacity, known.codebook_size
    side = known.image_size
    image = {"B": (1, 1, limits.batch), "P": (1, 2, 2)} | dict.fromkeys("hw", (1, side, max(side, limits.crop)))
    uses = {"": image}
    if name == "transformer":
        rows = {
            # The first that takes a call is used, so the narrowest comes first.
            "step": (1, 1, 2),
            "verification": (1, min(8, limits.rows), min(limits.rows, capacity)),
            "prefill": (1, min(capacity, known.sequence.length), capacity),
        }
        uses = {
            use: {"B": image["B"], "q": count, "u": (1, 1, count[2]), "v": (1, 1, vocabulary)}
            for use, count in rows.items()
        }
    graph = known.graphs.by_name[name]
    top_k = engines.Range(min=(1,), opt=(1,), max=(min(vocabulary, LARGEST_TOP_K),))
    return tuple(
        engines.Profile(
            name=use or name,
            inputs={
                key: top_k if key == "top_k" else _range(tensor.shape, sizes) for key, tensor in graph.inputs.items()
            },
        )
        for use, sizes in uses.items()
    )


def _range(shape: Sequence[int | str], sizes: Mapping[str, tuple[int, int, int]]) -> engines.Range:
    least, best, most = (
        tuple(sizes[extent][place] if isinstance(extent, str) else extent for extent in shape) for place in range(3)
    )
    return engines.Range(min=least, opt=best, max=most)


def _check_capabilities(trt: Any, targets: Sequence[str]) -> None:
    known = [name for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    for target in targets:
        if target.upper() not in known:
            numbers = ", ".join(sorted((name.removeprefix("SM") for name in known), key=int))
            raise InputError(
                f"--compute-capability {target.removeprefix('sm')}: TensorRT-RTX {trt.__version__} builds for {numbers}"
            )


def parse(trt: Any, path: Path, logger: Any) -> tuple[Any, Any]:
    """A builder and the strongly typed network of a graph. Raises EngineError naming the first node not understood."""
    builder = trt.Builder(logger)
    # From version 11 on, every network is strongly typed.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        error = parser.get_error(0)
        hint = "; --kv-cache concat makes graphs of older operators" if "TensorScatter" in error.desc() else ""
        raise EngineError(f"{path}: {trt.__name__} {trt.__version__} does not take it: {error.desc()}{hint}")
    return builder, network


def _build(
    trt: Any,
    graph_file: Path,
    path: Path,
    graph: Graph,
    profiles: Sequence[engines.Profile],
    targets: Sequence[str],
    timing: Path | None,
) -> Built:
    """Builds one engine; the library's messages go into the error."""
    logger = _Logger(trt)
    began = time.perf_counter()
    builder, network = parse(trt, graph_file, logger.sink)
    kinds = [network.get_layer(index).type for index in range(network.num_layers)]
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if "ATTENTION_INPUT" in str(layer.type):
            # Without a fused kernel for these sizes and this type it is built from smaller layers. The network gives
            # every layer as the base class.
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True
    config = builder.create_builder_config()
    for profile in profiles:
        shaped = builder.create_optimization_profile()
        for name, extents in profile.inputs.items():
            if name == "top_k":
                shaped.set_shape_input(name, list(extents.min), list(extents.opt), list(extents.max))
            else:
                shaped.set_shape(name, extents.min, extents.opt, extents.max)
        config.add_optimization_profile(shaped)
    if timing is None:
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), index)
    else:
        config.set_timing_cache(
            config.create_timing_cache(timing.read_bytes() if timing.is_file() else b""), ignore_mismatch=False
        )
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise EngineError(f"{graph_file}: {trt.__name__} {trt.__version__} cannot build it: {logger.last}")
    if timing is not None:
        write_bytes(timing, bytes(config.get_timing_cache().serialize()))
    with path.open("xb") as file:
        file.write(engine)
    return Built(
        layers=network.num_layers,
        cache_layers=sum("KV_CACHE_UPDATE" in str(kind) for kind in kinds),
        attentions=sum("ATTENTION_INPUT" in str(kind) for kind in kinds),
        bytes=engine.nbytes,
        seconds=time.perf_counter() - began,
        device_bytes=None if timing is None else _device_bytes(trt, logger, path),
    )


def _device_bytes(trt: Any, logger: _Logger, path: Path) -> int | None:
    engine = trt.Runtime(logger.sink).deserialize_cuda_engine(path.read_bytes())
    return None if engine is None else int(engine.device_memory_size_v2)


class _Logger:
    """Keeps the library's last error instead of printing it."""

    def __init__(self, trt: Any) -> None:
        owner = self
        self.last = "no reason given"

        class Sink(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity <= trt.ILogger.Severity.ERROR:
                    owner.last = " ".join(message.split())[:400]

        self.sink = Sink()


def copy_bundle(source: Path, out: Path) -> None:
    """The files of a bundle, without its engines, in another folder."""
    known = manifest.load_manifest(source)
    for name in (manifest.FILE_NAME, *known.files):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, out / name)
