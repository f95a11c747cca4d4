"""The ``rlai`` command."""

from rl_as_inference.cli import commands, exporting, finding, inspecting, perturbing, sweeping, training  # noqa: F401 - they enter their commands into the application
from rl_as_inference.cli.common import app, main

__all__ = ["app", "main"]
