"""Everything this package raises for a caller's mistake derives from :class:`IlatError`."""

from __future__ import annotations


class IlatError(Exception):
    """Base class. The message is one line that names the file, key or flag and what was expected."""


class InputError(IlatError):
    """An image, mask, pose or option is not what the call takes."""


class OutputError(IlatError):
    """A file cannot be written: it exists, the folder is not writable, the disk is full."""


class BundleError(IlatError):
    """A bundle's manifest or one of its files is missing, changed or not understood."""


class BackendError(IlatError):
    """A backend that was asked for cannot run here."""


class Cancelled(IlatError):
    """The caller's progress callback asked to stop."""
