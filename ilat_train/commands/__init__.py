"""The subcommands of ``ilat-train`` that have no other home; see :mod:`ilat_train.cli`."""
