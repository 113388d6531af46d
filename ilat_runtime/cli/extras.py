"""Commands that need more than the runtime: run them, or say in one line what to install."""

from __future__ import annotations

import importlib
import sys

OWN = ("ilat_runtime", "ilat_train", "ilat_export")


def run_with_extra(module: str, command: str, extra: str) -> int:
    """Runs ``main()`` of ``module``; where a package of ``extra`` is missing, prints how to install it.

    Returns:
        What ``main()`` returns, as an exit status; 1 when a package is missing.
    """
    try:
        result = importlib.import_module(module).main()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in OWN:
            raise
        print(f"{command}: {missing} is not installed: pip install 'ilat[{extra}]'", file=sys.stderr)
        return 1
    return int(result or 0)
