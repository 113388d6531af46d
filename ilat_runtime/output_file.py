"""Writing files so that a reader sees the whole new file or the old one, never half of one."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import OutputError


def check_output(path: str | os.PathLike[str], suffixes: Sequence[str], force: bool = False) -> Path:
    """``path`` as a Path, after what can be checked before the work is done: suffix, folder, no overwriting.

    Raises:
        OutputError: the suffix is none of ``suffixes``; the folder is missing or not writable; the path is a folder; or
            it exists and ``force`` is false.
    """
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise OutputError(
            f"{path}: cannot write {path.suffix or 'a file without a suffix'}, expected {', '.join(suffixes)}"
        )
    try:
        is_folder = stat.S_ISDIR(os.stat(path.parent).st_mode)
    except PermissionError:
        raise OutputError(f"{path}: the folder {path.parent}: permission denied") from None
    except OSError:
        is_folder = False
    if not is_folder:
        raise OutputError(f"{path}: the folder {path.parent} does not exist")
    # Not Path.is_dir, for which a name in a folder that may not be entered is an error.
    if os.path.isdir(path):
        raise OutputError(f"{path}: is a folder, expected the name of a file")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: the folder {path.parent} is not writable")
    if path.exists() and not force:
        raise OutputError(f"{path}: exists already; overwrite it with --force (force=True in Python)")
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` with the same suffix; it takes the place of ``path`` at the end.

    On an error, and on Ctrl-C, the temporary file is deleted and ``path`` stays what it was.

    Raises:
        OutputError: the operating system refuses to write, for example on a full disk.
    """
    temporary = path.with_name(f".{path.stem[:64]}.{secrets.token_hex(4)}.part{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        # Where the folder itself has gone there is nothing to delete.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, atomically. Raises OutputError."""
    with replacing(path) as temporary, temporary.open("xb") as file:
        file.write(data)
        # A full disk or quota may only show when the data is flushed.
        file.flush()
        os.fsync(file.fileno())
