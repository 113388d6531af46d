"""``ilat-train parity``: does an imported model compute what the authors' code does?"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ilat_runtime.cli.common import DONE, FAILED, add_output_options, shows_progress

from .training import whole


def add_parser(subparsers: Any) -> None:
    """Register ``parity``."""
    parser = subparsers.add_parser(
        "parity",
        help="compare an imported model with the authors' code",
        description="Build the model of a fixture, by way of `import`, and compare what it computes with the arrays of "
        "the authors' code. Prints one JSON line; exit code 1 if a latent, image or logit is off by more than 1e-3, or "
        "an index differs that is not a tie.",
        epilog="example: ilat-train parity fixtures/ilat_face_transformer.json --onnx",
    )
    parser.add_argument("fixture", type=Path, metavar="FIXTURE.json", help="with FIXTURE.npz beside it")
    parser.add_argument("--onnx", action="store_true", help="run exported graphs on ONNX Runtime instead of PyTorch")
    parser.add_argument("--threads", type=whole, metavar="N", help="CPU threads")
    add_output_options(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    begun = time.perf_counter()
    import torch

    from .. import parity
    from ..importing.fixture import imported, read_fixture
    from ..importing.formats import recognise

    if args.threads:
        torch.set_num_threads(args.threads)
    fixture = read_fixture(args.fixture)
    model = imported(fixture)
    with tempfile.TemporaryDirectory(prefix="ilat-parity-") as folder:
        network: parity.Network = parity.TorchNetwork(model)
        if args.onnx:
            # Export depends on training, not the other way: only this command asks for both.
            from ilat_export.parity import OnnxNetwork

            network = OnnxNetwork(model, Path(folder), args.threads)
        with tqdm(unit="array", disable=None if shows_progress(args) else True, leave=False) as bar:
            found = parity.compare(fixture, model, network, lambda _: bar.update())
    record = {
        "fixture": fixture.name,
        "format": recognise(fixture.shapes),
        "runtime": "onnxruntime" if args.onnx else "pytorch",
        **found.record(),
        "seconds": round(time.perf_counter() - begun, 3),
    }
    print(json.dumps(record, allow_nan=False), flush=True)
    return DONE if found.passed else FAILED
