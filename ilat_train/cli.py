"""``ilat-train``: one subcommand, one module.

A subcommand's module has ``add_parser(subparsers)``, which adds its parser and sets ``run`` as a default: a function
from the parsed arguments to the exit code. It imports PyTorch only inside that function, so that ``--help`` is quick.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from ilat_runtime.cli.common import Parser, new_parser, run_parser

COMMANDS: tuple[str, ...] = (
    "ilat_train.commands.fetch",
    "ilat_train.commands.data",
    "ilat_train.commands.import_",
    "ilat_train.commands.parity",
    "ilat_train.commands.tokenizer",
    "ilat_train.commands.transformer",
    "ilat_train.commands.evaluate",
)
"""Modules of the subcommands, in the order of the help. A new subcommand is registered here."""


def build_parser() -> Parser:
    """The whole command line's parser."""
    parser = new_parser("ilat-train", "Make data sets, train, import and measure Local Autoregressive Transformers.")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for name in COMMANDS:
        import_module(name).add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``ilat-train``; returns the exit code."""
    return run_parser(build_parser(), arguments)
