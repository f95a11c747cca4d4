"""The site: it builds without a warning, fetches nothing, and leaves out no public name and no picture."""

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rl_as_inference as rlai

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
ROOMS = {"exact", "guides", "inspect", "models"}
"""Of ``rlai.__all__``, what is a module: its names have entries, and itself a page."""


def found(name: str) -> object:
    """Returns what an entry of the reference is about."""
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError:  # the member of a class, or a name that is a module's and a function's
        return getattr(found(module), attribute)


def test_the_reference_has_every_public_name_once():
    entries = [
        name
        for page in sorted((DOCS / "reference").glob("*.md"))
        for name in re.findall(r"^::: (\S+)$", page.read_text(), flags=re.M)
    ]
    assert len(entries) == len(set(entries))
    objects = [found(name) for name in entries]
    public = {name: getattr(rlai, name) for name in rlai.__all__ if name not in ROOMS}
    public |= {f"guides.{name}": getattr(rlai.guides, name) for name in rlai.guides.__all__}
    public |= {f"models.{name}": getattr(rlai.models, name) for name in rlai.models.__all__}
    for name, value in public.items():
        assert any(value is each for each in objects), f"{name} has no entry under docs/reference"


def test_the_gallery_has_every_picture():
    shown = set(re.findall(r"\]\(figures/(\S+?)\)", (DOCS / "gallery.md").read_text()))
    assert shown == {path.name for path in (DOCS / "figures").iterdir()}


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs mkdocs: pip install -e '.[docs]'")
def test_the_site_builds_strictly_and_fetches_nothing(tmp_path):
    """``--strict`` also ends on a page that the navigation does not name, and on a link that leads nowhere."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 60
    for page in pages:
        text = page.read_text()
        assert not re.findall(r'(?:<script[^>]*src|<img[^>]*src|<link[^>]*href)="?(?:https?:)?//[^"\s>]*', text), page
        assert "\\(" not in re.sub(r"<(pre|code|script).*?</\1>", "", text, flags=re.S), f"{page} has a bare formula"
        if page.parent.name == "notebooks":
            (solution,) = re.findall(r'<details class="solution">(.*?)</details>', text, flags=re.S)
            assert '<div class="language-python highlight">' in solution, f"{page}: its code is not shown as code"
    assert "<math" in (tmp_path / "site" / "mathematics.html").read_text()
