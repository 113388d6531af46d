"""``ilat-export``: a training run to a verified bundle, and a bundle to another precision."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from ilat_runtime.cli.common import (
    DONE,
    FAILED,
    Parser,
    UsageError,
    add_output_options,
    emit,
    new_parser,
    run_parser,
    shows_progress,
    stop_on_terminate,
)
from ilat_runtime.errors import InputError
from ilat_runtime.manifest import FILE_NAME as MANIFEST
from ilat_runtime.manifest import load_manifest
from ilat_train.config import SKETCH_TOKENIZER

from .limits import Limits
from .report import Said, report_check, report_conversion, report_engines, report_export

if TYPE_CHECKING:
    from .sample import Sample
    from .verify import Verification

PARTS = ("tokenizer", "transformer")
HELD_OUT = 8
"""Held-out pairs that the graphs are verified on."""
LIMITS = Limits()
PRECISIONS = {
    "fp16": "half precision in the graphs, for TensorRT and CUDA; what needs float32 keeps it",
    "int8": "8-bit weights in the transformer, for CPUs",
    "int4": "4-bit weights in the transformer, for CPUs",
}


def build_parser() -> Parser:
    """The command line's parser."""
    parser = new_parser(
        "ilat-export",
        "Write a trained model as a bundle: ONNX graphs and a manifest. Every graph is compared with PyTorch on random "
        "and real inputs; a bundle that misses its tolerance is not written. With --fp16, --int8 or --int4, another "
        "precision of a model or of a bundle, compared with float32 on real inputs. With --engine, engines for NVIDIA "
        "GPUs in the bundle. With --verify, a check of the bundle by Polygraphy. Example: ilat-export runs/me --out "
        "bundles/me; ilat-export bundles/me --fp16 --engine tensorrt-rtx --compute-capability 86 89 120 --verify --out "
        "bundles/me-fp16",
    )
    add = parser.add_argument
    add(
        "source",
        type=Path,
        metavar="CHECKPOINT_OR_BUNDLE",
        help="a run's folder, with tokenizer/ and transformer/, and sketch-tokenizer/ where the condition is a sketch; "
        "or a float32 bundle to convert",
    )
    add(
        "--out",
        type=Path,
        metavar="BUNDLE",
        help="the bundle's folder; with --engine alone the source's is the default; --verify alone takes none",
    )
    add("--name", metavar="TEXT", help="the model's name; default: that of --out")
    precision = parser.add_mutually_exclusive_group()
    for name, meaning in PRECISIONS.items():
        precision.add_argument(f"--{name}", dest="precision", action="store_const", const=name, help=meaning)
    add(
        "--kv-cache",
        choices=("in-place", "concat"),
        help="concat: graphs in operators of opset 20, which write the cache anew in each call, for JetPack 6.2's "
        "TensorRT 10.3 and ONNX Runtime before 1.25",
    )
    add("--engine", choices=("tensorrt", "tensorrt-rtx"), help="also build engines, in the folder engines of --out")
    add(
        "--compute-capability",
        type=int,
        nargs="+",
        metavar="N",
        help="GPUs that the engines are for, as 86 89 120; tensorrt-rtx only. Default: any from Ampere on, compiled "
        "when loaded",
    )
    add("--max-batch", type=int, metavar="N", help=f"largest batch that the engines take ({LIMITS.batch})")
    add("--max-crop", type=int, metavar="N", help=f"largest side of a crop in pixels that they take ({LIMITS.crop})")
    add(
        "--verify",
        action="store_true",
        help="lint and inspect the bundle's graphs with Polygraphy; compare its engines with ONNX Runtime where there "
        "is a GPU for them",
    )
    add(
        "--weights",
        choices=("float16", "float32"),
        help="of a run without --fp16, --int8 or --int4: how weights are stored (float16); the arithmetic is float32 "
        "either way",
    )
    add(
        "--data",
        type=Path,
        metavar="DIR",
        help="data set on whose held-out frames the graphs are verified; default: the one trained on where it is "
        "found, else a photograph",
    )
    add("--weights-licence", default="not stated", metavar="TEXT", help="terms of the weights, for the manifest")
    add("--data-licence", default="not stated", metavar="TEXT", help="terms of the training data, for the manifest")
    add(
        "--force",
        action="store_true",
        help="replace a bundle that is there; write one that keeps too little of float32 all the same, and say so",
    )
    add_output_options(parser)
    parser.set_defaults(run=export)
    return parser


def export(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code, 1 where ``--verify`` finds something wrong."""
    stop_on_terminate()
    begun = time.perf_counter()
    bundled = (args.source / MANIFEST).is_file()
    _check_usage(args, bundled)
    if args.verify:
        _check_polygraphy()
    if args.engine:
        _check_engine(args)
    said = _write(args, bundled, begun)
    if args.engine:
        said = _build(args, said, begun)
    problems: list[str] = []
    if args.verify:
        said, problems = _verify(args, said)
    if said is not None:
        emit(args, *said)
    for problem in problems:
        print(f"ilat-export: error: {problem}", file=sys.stderr, flush=True)
    return FAILED if problems else DONE


def _write(args: argparse.Namespace, bundled: bool, begun: float) -> Said | None:
    """Writes the bundle ``--out``; None where the source is one already and nothing is converted."""
    from .destination import check_destination

    converts = args.precision or args.kv_cache == "concat"
    if bundled and not converts:
        return None
    check_destination(args.out, args.force)
    if bundled:
        return _convert(args, args.source, None, begun)
    if converts:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{args.out.name}.", dir=args.out.parent) as folder:
            exported = _export_run(args, Path(folder) / "float32")
            return _convert(args, exported.folder, exported, begun)
    exported = _export_run(args, args.out)
    return report_export(args, exported.found, exported.source, exported.kind, time.perf_counter() - begun)


def _check_usage(args: argparse.Namespace, bundled: bool) -> None:
    """Raises UsageError for flags that do not go together."""
    converts = args.precision or args.kv_cache == "concat"
    if bundled and not converts and not args.engine and not args.verify:
        raise UsageError(
            f"{args.source}: is a bundle already; say what to make of it: --fp16, --int8, --int4, --kv-cache concat or "
            "--engine, or --verify it"
        )
    writes = not bundled or converts or args.engine
    if bundled and args.engine and not converts and args.out is None:
        args.out = args.source
    if writes and args.out is None:
        raise UsageError("--out: missing, the folder of the bundle to write")
    if not writes and args.out is not None:
        raise UsageError("--out: --verify alone writes nothing; leave it out, or say what to make")
    if (bundled or converts) and args.weights:
        raise UsageError("--weights: only for a run, without --fp16, --int8, --int4 and --kv-cache concat")
    for flag in ("compute_capability", "max_batch", "max_crop"):
        if getattr(args, flag) is not None and not args.engine:
            raise UsageError(f"--{flag.replace('_', '-')}: only with --engine")
    for flag in ("max_batch", "max_crop"):
        if getattr(args, flag) is not None and not 1 <= getattr(args, flag) <= 16384:
            raise UsageError(f"--{flag.replace('_', '-')}: {getattr(args, flag)}, expected a number from 1 to 16384")
    if args.engine and args.precision in ("int8", "int4"):
        raise UsageError(f"--{args.precision}: for ONNX Runtime on CPUs; --engine goes with --fp16 or float32")


def _check_engine(args: argparse.Namespace) -> None:
    """Raises, before anything is written, what would keep engines from being built here."""
    from .engine import find_targets

    find_targets(args.engine, args.compute_capability or ())


def _check_polygraphy() -> None:
    """Raises InputError where Polygraphy, or what it lints with, is missing."""
    for package in ("polygraphy", "onnx_graphsurgeon"):
        try:
            import_module(package)
        except ImportError as error:
            raise InputError(f"--verify: {package} cannot be imported ({error}); pip install 'ilat[export]'") from None


def _verify(args: argparse.Namespace, said: Said | None) -> tuple[Said, list[str]]:
    """Checks the bundle with Polygraphy; its report after what was ``said``, and what is wrong."""
    from ilat_runtime.engines import FILE_NAME, FOLDER

    from .polygraphy_check import check_bundle

    bundle = args.source if args.out is None else args.out
    begun = time.perf_counter()
    manifest = load_manifest(bundle)
    rule = manifest.crop
    margins = (rule.margin, rule.dilation) if rule is not None else (1.0, 0.0)
    samples, source = _real_inputs(args.data, margins, manifest.image_size, manifest.kind == "pose", 1)
    _say(args, f"checked with an edit of {source}")
    steps = 1 + len(manifest.graphs.by_name) + len(list((bundle / FOLDER).glob(f"*/{FILE_NAME}")))
    with _progress(args, steps) as progress:
        found = check_bundle(bundle, samples[0], progress)
    return report_check(bundle, said, found, time.perf_counter() - begun), found.problems


def _build(args: argparse.Namespace, said: Said | None, begun: float) -> Said:
    """Builds the engines of the bundle ``--out``, which becomes a copy of the source where nothing was converted."""
    from .destination import check_destination, replacing_folder
    from .engine import build_engines, copy_bundle

    copies = said is None and args.out.resolve() != args.source.resolve()
    bundle = args.source if copies else args.out
    if copies:
        check_destination(args.out, args.force)
    limits = Limits(batch=args.max_batch or LIMITS.batch, crop=args.max_crop or LIMITS.crop)
    manifest = load_manifest(bundle)
    if manifest.precision.compute == "float32" and manifest.precision.weights.startswith("float"):
        _say(args, "the bundle computes in float32; --fp16 halves the engines' size and the time of a token")
    with replacing_folder(args.out) if copies else nullcontext(args.out) as target:
        with _progress(args, len(manifest.graphs.by_name)) as progress:
            folder, record, built = build_engines(
                bundle,
                args.engine,
                args.compute_capability or (),
                limits,
                into=target,
                force=args.force,
                progress=progress,
            )
        if copies:
            copy_bundle(bundle, target)
    folder = args.out / folder.relative_to(target)
    return report_engines(args, said, folder, record, built, time.perf_counter() - begun)


@dataclass(frozen=True)
class _Exported:
    """A run as a float32 bundle.

    Attributes:
        samples, source: the real inputs that it was verified on, and what they are.
    """

    folder: Path
    found: Verification
    samples: list[Sample]
    source: str
    kind: str


def _export_run(args: argparse.Namespace, out: Path) -> _Exported:
    """Writes the float32 bundle ``out`` of the run."""
    _check_run(args.source)
    from ilat_train.checkpoint import load_tokenizer, load_transformer

    from .bundle import Facts, export_bundle, kind_of, stages
    from .facts import read_facts

    run = args.source
    facts = read_facts(run / PARTS[0], run / PARTS[1])
    tokenizer = load_tokenizer(run / PARTS[0])
    transformer = load_transformer(run / PARTS[1])
    kind = kind_of(transformer.config)
    sketch_tokenizer = None
    if kind == "sketch":
        if not (run / SKETCH_TOKENIZER / "config.json").is_file():
            raise InputError(
                f"{run / SKETCH_TOKENIZER}: missing, the transformer's condition is a sketch; "
                "`ilat-train transformer --sketch-tokenizer` puts it there"
            )
        sketch_tokenizer = load_tokenizer(run / SKETCH_TOKENIZER)
    posed = kind == "pose"
    if posed:
        for key in facts.assumed:
            _say(args, f"{run / PARTS[1]}: facts.data.{key} is missing, {getattr(facts, key):g} is assumed")
    data = args.data or (facts.source if facts.source is not None and facts.source.is_dir() else None)
    samples, source = _real_inputs(data, (facts.margin, facts.dilation), tokenizer.config.image_size, posed, 1)
    _say(args, f"verified on {source}, besides random inputs")
    described = Facts(
        name=args.name or args.out.resolve().name,
        weights_licence=args.weights_licence,
        data_licence=args.data_licence,
        margin=facts.margin,
        dilation=facts.dilation,
        provenance=facts.provenance,
    )
    with _progress(args, len(stages(kind == "sketch"))) as progress:
        found = export_bundle(
            tokenizer,
            transformer,
            out,
            described,
            sketch_tokenizer=sketch_tokenizer,
            weights=args.weights or "float16",
            samples=samples,
            force=args.force,
            progress=progress,
        )
    return _Exported(out, found, samples, source, kind)


def _convert(args: argparse.Namespace, bundle: Path, exported: _Exported | None, begun: float) -> Said:
    """Writes the bundle ``--out`` in another precision or in older operators."""
    from .precision import FLOORS, STAGES, Precision, convert_bundle

    manifest = load_manifest(bundle)
    posed, rule = manifest.kind == "pose", manifest.crop
    margins = (rule.margin, rule.dilation) if rule is not None else (1.0, 0.0)
    if args.data is None and (exported is None or len(exported.samples) < HELD_OUT):
        samples, source = _real_inputs(None, margins, manifest.image_size, posed, HELD_OUT)
    elif exported is not None:
        samples, source = exported.samples, exported.source
    else:
        samples, source = _real_inputs(args.data, margins, manifest.image_size, posed, HELD_OUT)
    _say(args, f"compared with float32 on {source}")
    name = args.name or args.out.resolve().name
    precision: Precision = args.precision or "fp32"
    with _progress(args, len(STAGES)) as progress:
        loss, missed = convert_bundle(
            bundle,
            args.out,
            precision,
            samples,
            older=args.kv_cache == "concat",
            name=name,
            force=args.force,
            progress=progress,
        )
    if missed:
        _say(args, f"below the floor: {missed}; written all the same because of --force")
    return report_conversion(
        args, precision, loss, FLOORS[precision], source, manifest.kind, time.perf_counter() - begun
    )


@contextmanager
def _progress(args: argparse.Namespace, total: int) -> Iterator[Callable[[str, int], None]]:
    """A bar, and what moves it: called with the stage that begins and the number of stages that are done."""
    with tqdm(total=total, unit="stage", disable=None if shows_progress(args) else True, leave=False) as bar:

        def progress(stage: str, done: int) -> None:
            bar.set_description(stage)
            bar.update(done - bar.n)

        yield progress


def _check_run(folder: Path) -> None:
    """Raises InputError when ``folder`` is no run with both checkpoints."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, expected a run of `ilat-train` or a bundle")
    if (folder / "config.json").is_file() and folder.name in PARTS:
        raise InputError(f"{folder}: a part of a run, expected the folder around it: {folder.parent}")
    for part in PARTS:
        if not (folder / part / "config.json").is_file():
            raise InputError(f"{folder / part}: missing; train it with `ilat-train {part}`")


def _real_inputs(
    folder: Path | None, rule: tuple[float, float], size: int, posed: bool, edits: int
) -> tuple[list[Sample], str]:
    """Real inputs and a description of them.

    Args:
        folder: a data set or a folder of images; None: a photograph, in so many edits.
        rule: margin and dilation of the crop.
        size: side of the model's images.
    """
    from .real_inputs import held_out_samples, masked_samples, photograph

    if folder is None:
        samples = photograph(*rule, size, posed, edits)
        described = "a photograph (scikit-image's astronaut)"
        return samples, described if len(samples) == 1 else f"{len(samples)} edits of {described}"
    if posed:
        samples = held_out_samples(folder, *rule, size, HELD_OUT)
        return samples, f"{len(samples)} pairs of held-out frames of {folder}"
    samples = masked_samples(folder, size, HELD_OUT)
    return samples, f"{len(samples)} images of {folder}"


def _say(args: argparse.Namespace, line: str) -> None:
    if not args.quiet:
        print(f"ilat-export: {line}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``ilat-export``; returns the exit code."""
    return run_parser(build_parser(), arguments)


if __name__ == "__main__":
    raise SystemExit(main())
