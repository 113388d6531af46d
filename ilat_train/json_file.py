"""Reading a JSON file, with errors of one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ilat_runtime.errors import InputError


def read_json(file: Path, expected: str = "") -> Any:
    """The content of a JSON file in UTF-8.

    Args:
        expected: what the user should have named, for the error when there is no such file.

    Raises:
        InputError: the file is missing, cannot be read or is not JSON; it names the file.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file}: no such file{expected and f'; expected {expected}'}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: not a JSON file ({error})") from None
