"""How the package is imported: its names when they are first used, and nothing else of the process is changed by it."""

from __future__ import annotations

import ast
import copy
import importlib
import pkgutil
import random
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["Finder", "Package", "enter_environments", "put_back_filters", "unchanged"]

_PROJECT, _PACKAGE = "rl-as-inference", __name__.partition(".")[0]
_REGISTRY = "gymnasium.envs.registration"


class Package(ModuleType):
    """The module of a package whose names are imported when they are first used.

    Its stub, ``__init__.pyi``, says of each where it is from, to this class as to type checkers. The package's other
    modules are found by their names as well, as if all had been imported.
    """

    def __getattr__(self, name: str) -> Any:
        if name == "__all__":
            value: Any = sorted(_homes(self.__name__))
        elif name == "__version__":
            value = _version(self.__name__)
        elif name.startswith("_"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        else:
            home = _homes(self.__name__).get(name, self.__name__)
            with _one_thread():
                value = self._submodule(name) if home == self.__name__ else getattr(importlib.import_module(home), name)
        setattr(self, name, value)
        return value

    def _submodule(self, name: str) -> ModuleType:
        wanted = f"{self.__name__}.{name}"
        try:
            return importlib.import_module(wanted)
        except ModuleNotFoundError as error:
            if error.name != wanted:
                raise
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        # Python binds a submodule in its package once it is imported, whenever that is. One that is the home of a
        # public function of its own name (``fit``, ``compare``) leaves the name to that.
        if isinstance(value, ModuleType) and _homes(self.__name__).get(name) == value.__name__:
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.__all__, "__all__", "__version__"})

    def __reduce__(self) -> Any:  # what pickles modules by name knows those of ModuleType alone
        return importlib.import_module, (self.__name__,)


class _Within(threading.local):
    imports = 0
    """How many modules of the package this thread is executing, one imported by the other."""


_WITHIN, _LOCK = _Within(), threading.RLock()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Has threads that use names for the first time import one after the other.

    Libraries whose modules import each other fail where two threads begin with different ones. A thread that is
    executing a module of the package does not wait: whoever has the lock may wait for that module.
    """
    with nullcontext() if _WITHIN.imports else _LOCK:
        yield


@cache
def _homes(package: str) -> dict[str, str]:
    """Returns the module that each public name is from, as the package's stub says; the package, of its submodules."""
    stub = ast.parse(pkgutil.get_data(package, "__init__.pyi") or b"")
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {each.asname or each.name: str(node.module) for node in imports for each in node.names}


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version  # slower than all else here

    try:
        return version(_PROJECT)
    except PackageNotFoundError:
        raise AttributeError(f"{package} has no __version__, since it is not installed: pip install .") from None


class Finder:
    """Finds the package's modules as all others do, and has their imports leave the process as :func:`unchanged` says.

    It also finds rooms of a clone of the repository where they lie: beside the package. And Gymnasium's registry, which
    from then on has the package's environments.
    """

    @classmethod
    def find_spec(cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        if name != _REGISTRY and not name.startswith(f"{_PACKAGE}."):
            return None
        others = sys.meta_path[sys.meta_path.index(cls) + 1 :]
        found = (each.find_spec(name, path, target) for each in others if hasattr(each, "find_spec"))
        spec = next((each for each in found if each is not None), None) or _beside(name)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = (_with_environments if name == _REGISTRY else _leaving_unchanged)(spec.loader)
        return spec


def enter_environments() -> None:
    """Enters the package's environments in Gymnasium's registry, if that is loaded; else once it is."""
    entering = f"{_PACKAGE}.environments"
    if _REGISTRY in sys.modules and entering not in sys.modules:  # another thread that imports it may wait for this one
        importlib.import_module(entering)


def _with_environments(loader: Any) -> Any:
    """Returns the loader of Gymnasium's registry, but that the package's environments are entered in it."""
    entering, execute = copy.copy(loader), loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        enter_environments()

    entering.exec_module = exec_module
    return entering


def _leaving_unchanged(loader: Any) -> Any:
    """Returns the loader, but that what it executes leaves the process unchanged."""
    quiet, execute = copy.copy(loader), loader.exec_module  # a zip file's loader is that of all its modules

    def exec_module(module: ModuleType) -> None:
        _import_rich()
        _WITHIN.imports += 1
        try:
            with unchanged():
                execute(module)
        finally:
            _WITHIN.imports -= 1

    quiet.exec_module = exec_module
    return quiet


def _beside(name: str) -> ModuleSpec | None:
    """Returns where a room lies that a wheel has in the package, but a clone beside it.

    The clone's own pyproject.toml says so; a folder of the same name beside a copy of the package is somebody else's.
    """
    root = Path(__file__).parent.parent
    folder = _rooms_beside(root).get(name)
    file = None if folder is None else root / folder / "__init__.py"
    if file is None or not file.is_file():
        return None
    return spec_from_file_location(name, file, submodule_search_locations=[str(file.parent)])


@cache
def _rooms_beside(root: Path) -> dict[str, str]:
    import tomllib

    try:
        declared = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if declared.get("project", {}).get("name") != _PROJECT:
        return {}
    return dict(declared["tool"]["setuptools"]["package-dir"])


@contextmanager
def unchanged() -> Iterator[None]:
    """Puts back what importing libraries changes of the process: the filters of warnings, Python's random numbers.

    PyTorch, Gymnasium and SciPy add filters. (Theirs stay where they were imported before this package.) The
    environment variable that Gymnasium sets, so that pygame does not greet, is left.

    It waits for no other thread, since one may wait for a module that this one imports. So a filter that another
    thread sets meanwhile may be lost; none that it has taken back returns. While there are other threads, random
    numbers are put back for the one library that is known to draw them, and not for all: draws may be theirs.
    """
    filters, state, alone = list(warnings.filters), random.getstate(), threading.active_count() == 1
    try:
        yield
    finally:
        if alone and threading.active_count() == 1:
            random.setstate(state)
        put_back_filters([each for each in filters if each in warnings.filters])


def _import_rich() -> None:
    """Imports Rich, whose styles draw from Python's random numbers when they are defined, and puts these back."""
    if "rich.console" not in sys.modules:
        state = random.getstate()
        importlib.import_module("rich.console")
        random.setstate(state)


def put_back_filters(filters: Sequence[Any]) -> None:
    """Has the filters of warnings be these again."""
    if warnings.filters != filters:
        warnings.filters[:] = filters  # type: ignore[index]
        warnings._filters_mutated()  # type: ignore[attr-defined]
