"""Running ``rlai`` inside a test."""

from pathlib import Path

from typer.testing import CliRunner

from rl_as_inference.cli import app


def rlai(*words: str | Path | float) -> tuple[int, str, str]:
    """Returns the exit code, standard output and standard error of a command."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def refused(*words: str | Path | float) -> str:
    """Runs a command that must fail, and returns its one line."""
    code, out, err = rlai(*words)
    assert code == 2, err
    assert out == ""
    assert err.startswith("rlai: error: ")
    assert err.count("\n") == 1, err
    return err
