"""Where a bundle is written: complete, in one step, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ilat_runtime import manifest
from ilat_runtime.errors import OutputError


def check_destination(out: Path, force: bool) -> None:
    """Checks, before the work is done, that the bundle folder ``out`` can be written.

    Raises:
        OutputError: it exists and ``force`` is false, it is no bundle, or the folder around it is not writable.
    """
    if out.exists() and not (force and (out / manifest.FILE_NAME).is_file()):
        hint = "it is no bundle, so --force does not replace it" if force else "replace it with --force"
        raise OutputError(f"{out}: exists already; {hint}")
    existing = next(folder for folder in out.absolute().parents if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"{out}: cannot be written: {existing} is not a writable folder")


@contextmanager
def replacing_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside ``out`` that takes its place at the end; on an error ``out`` stays what it was.

    Raises:
        OutputError: the operating system refuses to write.
    """
    folder = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        yield folder
        folder.chmod(0o755)
        _put_in_place(folder, out)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror or error}") from None
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(folder: Path, out: Path) -> None:
    """Renames ``folder`` to ``out``; what is there is replaced, and stays where that fails."""
    if not out.exists():
        folder.rename(out)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
    old = aside / out.name
    out.rename(old)
    try:
        folder.rename(out)
    finally:
        if not out.exists():
            old.rename(out)
        shutil.rmtree(aside, ignore_errors=True)


def size(folder: Path) -> int:
    """Bytes of all files of a folder, those of its folders too."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
