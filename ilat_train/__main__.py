"""``ilat-train`` and ``python -m ilat_train``."""

from __future__ import annotations

from ilat_runtime.cli.extras import run_with_extra


def main() -> int:
    """Runs the command line; says what to install where the extra ``train`` is missing. Returns the exit status."""
    return run_with_extra("ilat_train.cli", "ilat-train", "train")


if __name__ == "__main__":
    raise SystemExit(main())
