"""ilat_runtime: edit images with a bundle, generating only the masked tokens."""

__version__ = "0.1.0"
