"""A version that stands in two files is the same in both."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.M))


def test_commits_are_linted_by_the_version_that_tests_are():
    hooks = re.findall(r"ruff==([\d.]+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert hooks
    assert set(hooks) == {PINS["ruff"]}


def test_hosted_checks_run_what_everybody_runs():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert re.findall(r"- run: (.+)", workflow) == [".ci/run", "make docs"]
    assert re.findall(r'python-version: "([\d.]+)"', workflow) == ["3.11"]
