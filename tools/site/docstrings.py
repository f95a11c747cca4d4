"""Reads this package's docstrings for the site: roles become links, and drawings keep their lines."""

import importlib
import inspect
import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`(~?)([\w.]+)`")
DRAWN = re.compile(r"[─-╿▀-◿]|\S {3,}\S")


class HouseStyle(griffe.Extension):
    """Makes Markdown of docstrings that are written for ``help`` and for readers of the code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is None:
            return
        if obj.is_class and "\n    OPTIONS\n" in obj.docstring.value:
            # A decorator writes them there, from their declarations.
            learner = getattr(importlib.import_module(obj.module.path), obj.name)
            obj.docstring.value = inspect.getdoc(learner) or ""

        def link(match: re.Match[str]) -> str:
            shown = match[2].rpartition(".")[2] if match[1] else match[2].removeprefix("rl_as_inference.")
            return f'<autoref optional identifier="{_resolved(obj, match[2])}"><code>{shown}</code></autoref>'

        text = obj.docstring.value
        if obj.is_function and (module := obj.module).path == f"rl_as_inference.models.{obj.name}" and module.docstring:
            text = f"{_with_picture(module.docstring.value)}\n\n{text}"
        text = re.sub(r"^Example:$", "Examples:", text, flags=re.M)
        obj.docstring.value = ROLE.sub(link, text)


def _with_picture(text: str) -> str:
    """Returns the docstring of a model's file with its drawings as blocks."""
    return "\n\n".join(f"```text\n{part}\n```" if DRAWN.search(part) else part for part in text.split("\n\n"))


def _resolved(obj: griffe.Object, name: str) -> str:
    """Returns the full name of what a docstring calls ``name``."""
    scope: griffe.Object | griffe.Alias | None = obj
    while scope is not None:
        if name.partition(".")[0] in scope.members:
            return f"{scope.path}.{name}"
        try:
            return scope.resolve(name)
        except griffe.NameResolutionError:
            scope = scope.parent
    return name
