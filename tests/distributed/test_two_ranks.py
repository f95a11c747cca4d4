"""Two ranks of a job give what one process gives: gradients, estimates, learning."""

from pathlib import Path
from typing import Any

import pytest
from two_processes import results, start

CHECKS = ["gradients"]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks found."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    return results(start("rank_checks", CHECKS, folder), folder)


def test_gradients_are_those_of_one_process(both: list[dict[str, Any]]) -> None:
    for rank in both:
        assert "error" not in rank["gradients"], rank["gradients"]["traceback"]
        far = {name: pair for name, pair in rank["gradients"].items() if max(pair) > 1e-12}
        assert not far
