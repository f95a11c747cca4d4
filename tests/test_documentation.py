"""Every example in a docstring or a page of documentation runs, and prints what it says."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pyro
import pytest

import rl_as_inference
import rl_as_inference.guides
import rl_as_inference.models
from rl_as_inference import models

ROOT = Path(__file__).parent.parent
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
# An editable install maps models and guides into the package without its __path__ knowing.
PACKAGES = (rl_as_inference, rl_as_inference.guides, rl_as_inference.models)
MODULES = sorted(
    {m.name for package in PACKAGES for m in pkgutil.walk_packages(package.__path__, package.__name__ + ".")}
)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    pyro.clear_param_store()
    result = doctest.testmod(importlib.import_module(name), optionflags=OPTIONS)
    assert result.failed == 0


def test_there_are_docstring_examples() -> None:
    """The test above cannot pass for want of examples."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    count = sum(len(t.examples) > 0 for name in MODULES for t in finder.find(importlib.import_module(name)))
    assert count >= 25


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_pages(page: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python blocks of a page run in order, in one namespace; text blocks after them are their output."""
    monkeypatch.chdir(tmp_path)
    pyro.clear_param_store()
    namespace: dict[str, object] = {"__name__": "page"}
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), flags=re.M | re.S)
    for index, (language, text) in enumerate(blocks):
        if language != "python":
            continue
        exec(compile(text, f"{page.name}, block {index}", "exec"), namespace)
        printed = capsys.readouterr().out
        following = blocks[index + 1] if index + 1 < len(blocks) else ("", "")
        if following[0] == "text":
            assert printed.split() == following[1].split()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links(page: Path) -> None:
    """Pictures and relative links of a page lead somewhere."""
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_command_line_page_names_every_model() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text()
    assert [name for name in models.__all__ if f"`{name}`" not in page] == []
