"""``ilat-export --verify``: a bundle's graphs and engines through Polygraphy.

Every graph is linted and inspected. Engines that run here make the calls of an edit beside ONNX Runtime, each call with
the same inputs for both. Of engines that do not run here, the files are checked, and the library parses the graphs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
from polygraphy.backend.base import BaseRunner
from polygraphy.backend.onnx.util import str_from_onnx
from polygraphy.common import TensorMetadata
from polygraphy.comparator import Comparator
from polygraphy.json import save_json
from polygraphy.logger import G_LOGGER

from ilat_runtime import engines, manifest
from ilat_runtime.backends import Graph, choose
from ilat_runtime.backends.tensorrt import TensorRt
from ilat_runtime.errors import BackendError, BundleError, IlatError
from ilat_runtime.manifest import Manifest
from ilat_runtime.segments import decode_plan
from ilat_runtime.tensorrt_library import library

from .engine import EngineError, parse
from .precision import FLOORS
from .sample import Array, Graphs, Sample, share

FLOOR = FLOORS["fp16"]
"""What an engine must keep of its own graphs on ONNX Runtime; those that compute in float32 too, for TensorRT may
multiply in TF32.
"""
ALONE = "in-place optimization not activated"
"""A warning of the linter's own making: it runs every node alone, without the binding that appends in place."""

Calls = list[dict[str, Array]]
Progress = Callable[[str, int], None]
"""Called with what is checked next and the number of checks that are done; at the end with ``"done"``."""


@dataclass(frozen=True)
class Linted:
    """Of one graph.

    Attributes:
        opset: of the standard's operators.
        nodes: how many there are; ``passed`` of them ran alone, on the inputs of an edit.
        errors, warnings: what the linter says, each with the node where it names one.
        inspection: Polygraphy's summary of inputs, outputs and weights.
    """

    opset: int
    nodes: int
    passed: int
    errors: list[str]
    warnings: list[str]
    inspection: str


@dataclass(frozen=True)
class Parsed:
    """The network that a library makes of a graph: layers, those that update the cache in place, fused attentions."""

    layers: int
    cache_layers: int
    attentions: int


@dataclass(frozen=True)
class Compared:
    """An engine beside ONNX Runtime.

    Attributes:
        calls: of the edit.
        equal_tokens: share, in all calls together; None where a graph gives no tokens.
        largest_error: of latents or log-probabilities; None where a graph gives neither.
        psnr: dB between decoded images; None where no pixel differs, or there are none.
    """

    calls: int
    equal_tokens: float | None
    largest_error: float | None
    psnr: float | None


@dataclass(frozen=True)
class CheckedEngines:
    """A folder of engines.

    Attributes:
        reason: why they were not run beside ONNX Runtime; None where they were.
        parsed: by graph, where the library is installed and the engines were not run.
        compared: by graph, where they were.
    """

    folder: str
    flavour: str
    version: str
    targets: tuple[str, ...]
    reason: str | None
    parsed: dict[str, Parsed]
    compared: dict[str, Compared]


@dataclass(frozen=True)
class Checked:
    """What was found.

    Attributes:
        problems: a line for each thing that is wrong; empty for a sound bundle.
    """

    polygraphy: str
    graphs: dict[str, Linted]
    engines: list[CheckedEngines]
    problems: list[str]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def check_bundle(bundle: Path, sample: Sample, progress: Progress | None = None) -> Checked:
    """Lints and inspects the graphs of a bundle and checks all engines in it.

    Args:
        sample: an edit, whose inputs and calls everything is checked with.

    Raises:
        BundleError: the manifest, a file that it lists, or a record of engines is not sound.
    """
    done = 0

    def report(stage: str) -> None:
        nonlocal done
        if progress is not None:
            progress(stage, done)
        done += 1

    known = manifest.load_manifest(bundle)
    manifest.verify_files(bundle, known)
    backend = choose("onnxruntime").backend
    graphs = {name: backend.load(bundle / record.file, record) for name, record in known.graphs.by_name.items()}
    report("an edit")
    calls = recorded(known, graphs, sample)
    problems, linted = [], {}
    for name, graph in known.graphs.by_name.items():
        report(f"{name}.onnx")
        linted[name] = lint(bundle / graph.file, _full_inputs(graph, calls[name][-1]))
        problems += [f"{graph.file}: {error}" for error in linted[name].errors]
    checked = []
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        for path in sorted((bundle / engines.FOLDER).glob(f"*/{engines.FILE_NAME}")):
            report(path.parent.name)
            found, wrong = _check_engines(bundle, known, path, graphs, calls)
            checked.append(found)
            problems += wrong
    report("done")
    return Checked(version("polygraphy"), linted, checked, problems)


def lint(path: Path, inputs: Mapping[str, Array]) -> Linted:
    """Runs every node of a graph alone through Polygraphy's linter, beginning with these inputs.

    Raises:
        BundleError: the linter ends without a report.
    """
    with tempfile.TemporaryDirectory() as folder:
        feed, report = Path(folder) / "inputs.json", Path(folder) / "report.json"
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
            save_json([OrderedDict(inputs)], str(feed))
        # A process of its own: it redirects the output of the whole process while a node runs.
        start = "import sys; from polygraphy.tools import main; sys.exit(main())"
        command = [
            sys.executable,
            "-c",
            start,
            "check",
            "lint",
            str(path),
            "--load-inputs",
            str(feed),
            "-o",
            str(report),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not report.is_file():
            lines = (done.stdout + done.stderr).strip().splitlines() or ["no reason given"]
            raise BundleError(f"{path}: Polygraphy cannot lint it: {lines[-1]}")
        said = json.loads(report.read_text("utf-8"))
    entries: dict[str, list[str]] = {"exception": [], "warning": []}
    for entry in said["lint_entries"]:
        where = ", ".join(entry.get("nodes", ()))
        if entry["level"] in entries and ALONE not in entry["message"]:
            entries[entry["level"]].append(f"{where}: {entry['message']}" if where else entry["message"])
    model = onnx.load(path)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return Linted(
        opset,
        len(model.graph.node),
        len(said["summary"]["passing"]),
        entries["exception"],
        entries["warning"],
        str_from_onnx(model),
    )


class _Recorder:
    """A graph that keeps the inputs of its calls, those of its caches too."""

    def __init__(self, graph: Graph, calls: Calls | None = None) -> None:
        self._graph, self.calls = graph, [] if calls is None else calls

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        # Copies, as the decoding goes on writing to its own.
        self.calls.append({name: np.array(array) for name, array in inputs.items()})
        return self._graph.run(inputs)

    def with_cache(self, batch: int) -> _Recorder:
        return _Recorder(self._graph.with_cache(batch), self.calls)


def recorded(known: Manifest, graphs: Graphs, sample: Sample) -> dict[str, Calls]:
    """The inputs of every call that an edit makes, by graph; the transformer's without its cache."""
    recorders = {name: _Recorder(graph) for name, graph in graphs.items()}
    encoded = recorders["encoder"].run(sample.encoder_inputs(known, recorders))
    condition = sample.condition(known, recorders, encoded)
    mask = encoded["token_mask"][0]
    plan = decode_plan(known.sequence, mask, known.numbering)
    _, tokens = sample.generate(known, recorders["transformer"], plan, condition, encoded["tokens"][0])
    recorders["decoder"].run(sample.decoder_inputs(encoded, tokens, blend=True))
    return {name: recorder.calls for name, recorder in recorders.items()}


def _full_inputs(graph: manifest.Graph, call: Mapping[str, Array]) -> dict[str, Array]:
    """A call with an empty cache."""
    return {
        name: call[name] if name in call else np.zeros([1, *(int(extent) for extent in tensor.shape[1:])], tensor.dtype)
        for name, tensor in graph.inputs.items()
    }


def _check_engines(
    bundle: Path, known: Manifest, path: Path, graphs: Graphs, calls: Mapping[str, Calls]
) -> tuple[CheckedEngines, list[str]]:
    """Of the engines beside the record ``path``: what was found, and what is wrong."""
    record, folder = engines.read(path), path.parent
    problems: list[str] = []
    compared: dict[str, Compared] = {}
    parsed: dict[str, Parsed] = {}
    reason = None
    stale = engines.difference(record, known, _made_for(record))
    if stale is not None:
        problems.append(f"{folder}: {stale}")
    for engine in record.engines.values():
        try:
            engines.check_file(folder, engine, "build it again with --engine and --force")
        except BundleError as error:
            problems.append(str(error))
    if problems:
        reason = "they are not sound"
    else:
        try:
            backend = cast("TensorRt", choose(record.flavour).backend)
            reason = engines.difference(record, known, backend.wanted)
            used = engines.find(bundle, known, backend.wanted)[0] if reason is None else folder
            if used != folder:
                reason = f"here {used} is used"
            if reason is None:
                others = backend.for_bundle(bundle, known)
                for name, graph in known.graphs.by_name.items():
                    other = others.load(bundle / graph.file, graph)
                    compared[name], missed = compare(name, graph, graphs[name], other, calls[name])
                    problems += [f"{folder / record.engines[name].file}: {missed}"] if missed else []
        except IlatError as error:
            reason = str(error)
    if reason is not None:
        parsed, wrong = _parsed(bundle, known, record.flavour)
        problems += wrong
    return (
        CheckedEngines(str(folder), record.flavour, record.version, record.targets, reason, parsed, compared),
        problems,
    )


def _made_for(record: engines.Engines) -> engines.Wanted:
    """A machine that the engines were built for: what differs then is the bundle."""
    return engines.Wanted(record.flavour, record.version, record.targets[0] if record.targets else "sm80")


def _parsed(bundle: Path, known: Manifest, flavour: str) -> tuple[dict[str, Parsed], list[str]]:
    """What the library makes of the graphs, and what it does not take; nothing where it is not installed."""
    try:
        trt = library(flavour)
    except BackendError:
        return {}, []
    found, problems = {}, []
    for name, graph in known.graphs.by_name.items():
        try:
            _, network = parse(trt, bundle / graph.file, trt.Logger(trt.Logger.ERROR))
        except EngineError as error:
            problems.append(str(error))
            continue
        kinds = [str(network.get_layer(index).type) for index in range(network.num_layers)]
        found[name] = Parsed(
            len(kinds),
            sum("KV_CACHE_UPDATE" in kind for kind in kinds),
            sum("ATTENTION_INPUT" in kind for kind in kinds),
        )
    return found, problems


class _Runner(BaseRunner):
    """A backend's graph as Polygraphy runs it; the transformer's with a cache, from call to call."""

    def __init__(self, name: str, graph: Graph, record: manifest.Graph) -> None:
        super().__init__(name=name)
        self._graph, self._record = graph, record
        self._cached = any(key.startswith("past_") for key in record.inputs)

    def activate_impl(self) -> None:
        self._run = (self._graph.with_cache(1) if self._cached else self._graph).run

    def get_input_metadata_impl(self) -> Any:
        metadata = TensorMetadata()
        for name, tensor in self._record.inputs.items():
            if not name.startswith("past_"):
                shape = [None if isinstance(extent, str) else extent for extent in tensor.shape]
                metadata.add(name, np.dtype(tensor.dtype), shape)
        return metadata

    def infer_impl(self, feed_dict: Mapping[str, Array]) -> OrderedDict[str, Array]:
        started = time.perf_counter()
        result = self._run(feed_dict)
        self.inference_time = time.perf_counter() - started
        return OrderedDict((name, result[name]) for name in self._record.outputs if name in result)

    def deactivate_impl(self) -> None:
        del self._run


def compare(
    name: str, record: manifest.Graph, graph: Graph, other: Graph, calls: Sequence[dict[str, Array]]
) -> tuple[Compared, str | None]:
    """Runs the calls through two backends' graphs; returns what differs, and what of it is below the floor.

    Args:
        name: of the graph, which says what its outputs mean.
        graph, other: ONNX Runtime's, and the engine.
    """
    runners = [_Runner("onnxruntime", graph, record), _Runner("engine", other, record)]
    results = Comparator.run(runners, data_loader=[OrderedDict(call) for call in calls])
    equal: list[Array] = []
    errors: list[float] = []
    squared: list[float] = []

    def measure(first: Any, second: Any) -> OrderedDict[str, bool]:
        # The encoder's tokens and latents count at unmasked positions, log-probabilities where tokens are equal.
        known = ~np.asarray(first["token_mask"]) if "token_mask" in first else np.empty(0, bool)
        for output in first:
            one, two = np.asarray(first[output]), np.asarray(second[output])
            if output in ("token_mask", "edit_mask", "next_token", "condition"):
                equal.append((one == two).ravel())
            elif output == "tokens":
                equal.append((one == two)[known])
            elif output == "latent":
                errors.append(_largest(one, two, known))
            elif output == "log_probability":
                errors.append(_largest(one, two, first["next_token"] == second["next_token"]))
            elif output == "edited":
                squared.append(float(((one.astype(float) - two) ** 2).mean()))
        return OrderedDict((output, bool(np.isfinite(second[output]).all())) for output in first)

    finite = bool(Comparator.compare_accuracy(results, compare_func=measure))
    worst = max(squared, default=0.0)
    found = Compared(
        calls=len(calls),
        equal_tokens=share(equal) if equal else None,
        largest_error=max(errors) if errors else None,
        psnr=float(10 * np.log10(255**2 / worst)) if worst else None,
    )
    return found, _missed(name, found, finite)


def _largest(one: Array, two: Array, where: Array) -> float:
    """Absolute difference at the positions (B, n) ``where``, of arrays (B, n) or (B, C, g, g)."""
    difference = np.abs(one.astype(np.float64) - two).reshape(where.shape[0], -1, where.shape[1])
    return float(difference.swapaxes(1, 2)[where].max(initial=0.0))


def _missed(name: str, found: Compared, finite: bool) -> str | None:
    if not finite:
        return "gives numbers that are not finite"
    least = FLOOR.decoded_tokens if name == "transformer" else FLOOR.encoder_tokens
    if found.equal_tokens is not None and found.equal_tokens < least:
        return f"share of tokens equal to ONNX Runtime's is {found.equal_tokens:.4g}, the floor is {least:g}"
    if found.psnr is not None and found.psnr < FLOOR.psnr:
        return f"PSNR to ONNX Runtime's is {found.psnr:.4g} dB, the floor is {FLOOR.psnr:g} dB"
    return None
