"""What every command line here shares: options, one-line errors, exit codes (0 done, 1 failed, 2 wrong use)."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from .. import __version__
from ..errors import IlatError

DONE, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130

Command = Callable[[argparse.Namespace], int]


class UsageError(IlatError):
    """Flags that do not go together; the command ends with exit code 2."""


class Parser(argparse.ArgumentParser):
    """An argument parser that takes no abbreviated flags and suggests the nearest one for a mistyped flag."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse's, but an unknown flag's message names the nearest known one."""
        known, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = sorted(_flags(self))
            near = difflib.get_close_matches(unknown[0].split("=")[0], flags, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return known


def _flags(parser: argparse.ArgumentParser) -> set[str]:
    found: set[str] = set()
    for action in parser._actions:
        found.update(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                found |= _flags(child)
    return found


def new_parser(prog: str, description: str, epilog: str | None = None) -> Parser:
    """The parser of a program, with ``--version``."""
    parser = Parser(prog=prog, description=description, epilog=epilog)
    parser.add_argument("--version", action="version", version=f"{prog} {__version__}")
    return parser


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """``--json`` and ``--quiet``, which every command takes."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no text, errors only")


def run(command: Command, args: argparse.Namespace, prog: str) -> int:
    """Run a command; a user's mistake becomes one line on stderr.

    Returns:
        The exit code: the command's own, 1 for a failure, 2 for wrong use, 130 for Ctrl-C.
    """
    try:
        return command(args)
    except UsageError as error:
        return _report(prog, error, WRONG_USE)
    except IlatError as error:
        return _report(prog, error, FAILED)
    except BrokenPipeError:
        # The reader of our output left (`| head`). Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _report(prog, f"{where}{error.strerror or error}", FAILED)
    except KeyboardInterrupt:
        return _report(prog, "interrupted", INTERRUPTED)


def run_parser(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> int:
    """Parse, then run the ``run`` function that the chosen command's parser set as a default."""
    args = parser.parse_args(arguments)
    return run(args.run, args, parser.prog)


def stop_on_terminate() -> None:
    """Let SIGTERM unwind the program (exit code 143), so that unfinished files are deleted as on Ctrl-C."""

    def stop(number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)


def fail(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    """End with the usage and ``message`` (exit code 2)."""
    parser.error(message)


def emit(args: argparse.Namespace, text: str, data: Mapping[str, Any]) -> None:
    """Print a command's result: ``data`` as one JSON object with ``--json``, else ``text`` unless ``--quiet``."""
    if args.json:
        print(json.dumps(data, allow_nan=False), flush=True)
    elif not args.quiet:
        print(text, flush=True)


def shows_progress(args: argparse.Namespace) -> bool:
    """Whether a progress bar is wanted: without ``--quiet``, and where stderr is a terminal (a log would fill up)."""
    return not args.quiet and sys.stderr.isatty()


def human_size(count: float) -> str:
    """Bytes as a person reads them: ``human_size(25_300_000)`` is ``'25.3 MB'``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"


def human_time(seconds: float) -> str:
    """Seconds as a person reads them: ``'85 ms'``, ``'2.4 s'``, ``'3 min 05 s'``, ``'1 h 02 min'``."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def _report(prog: str, error: object, code: int) -> int:
    line = " ".join(str(error).split())
    print(f"{prog}: error: {line}", file=sys.stderr)
    return code
