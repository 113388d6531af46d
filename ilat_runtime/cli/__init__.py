"""The runtime's command lines."""
