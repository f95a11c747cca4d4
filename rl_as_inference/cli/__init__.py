"""The ``rlai`` command."""

from rl_as_inference.cli.commands import app, main

__all__ = ["app", "main"]
