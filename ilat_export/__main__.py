"""``ilat-export`` and ``python -m ilat_export``."""

from __future__ import annotations

from ilat_runtime.cli.extras import run_with_extra


def main() -> int:
    """Runs the command line; says what to install where the extra ``export`` is missing. Returns the exit status."""
    return run_with_extra("ilat_export.cli", "ilat-export", "export")


if __name__ == "__main__":
    raise SystemExit(main())
