"""The ``rlai`` command."""

from rl_as_inference.cli.common import app, main

__all__ = ["app", "main"]
