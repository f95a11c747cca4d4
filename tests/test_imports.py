"""Importing: names when they are used, in any order, and nothing else of the process is changed."""

import importlib
import os
import pickle
import random
import re
import subprocess
import sys
import threading
import tomllib
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import pytest
import torch

import rl_as_inference as rlai
from rl_as_inference.imports import Package

ROOT = Path(__file__).parent.parent
HEAVY = "{'torch', 'pyro', 'numpy', 'gymnasium', 'matplotlib'} & set(sys.modules)"


def python(code: str, *flags: str, **kwargs: Any) -> str:
    """Returns what a new interpreter prints."""
    words = [sys.executable, *flags, "-c", code]
    return subprocess.run(words, check=True, timeout=240, capture_output=True, text=True, **kwargs).stdout


def test_the_package_imports_no_library() -> None:
    python(
        "import sys, rl_as_inference as rlai\n"
        "assert set(rlai.__all__) | {'__version__'} <= set(dir(rlai))\n"
        "from importlib.metadata import version\n"
        "assert rlai.__version__ == version('rl-as-inference')\n"
        f"assert not {HEAVY}\n"
    )


@pytest.mark.parametrize(
    ("words", "environment", "told"),
    [
        (["--version"], {}, f"rlai {rlai.__version__}"),
        (["-h"], {}, "Play episodes with the policy of a run of train."),
        ([], {"COMP_WORDS": "rlai co", "COMP_CWORD": "1", "_RLAI_COMPLETE": "complete_bash"}, "compare"),
        ([], {"COMP_WORDS": "rlai fit cor", "COMP_CWORD": "2", "_RLAI_COMPLETE": "complete_bash"}, "corridor"),
    ],
)
def test_neither_does_the_command_before_it_has_work(words: list[str], environment: dict[str, str], told: str) -> None:
    code = (
        "import atexit, sys\n"
        f"sys.argv = ['rlai', *{words}]\n"
        f"atexit.register(lambda: print('imported', {HEAVY}))\n"
        "from rl_as_inference.cli import main\n"
        "main()\n"
    )
    said = python(code, env={**os.environ, "COLUMNS": "120", **environment})
    assert told in said
    assert "imported set()" in said


def test_one_version() -> None:
    said = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    cited = (ROOT / "CITATION.cff").read_text()
    released = re.findall(r"^## \[(\d.*)\] - (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert released[0] == (said, released[0][1])
    assert f'version: {said}\ndate-released: "{released[0][1]}"' in cited


def test_python_m_is_the_command() -> None:
    words = [sys.executable, "-m", "rl_as_inference", "--version"]
    assert subprocess.run(words, check=True, capture_output=True, text=True).stdout == f"rlai {rlai.__version__}\n"


# Names, on a package of the same kind that is small.

STATEMENTS = (
    "import toy.fit",
    "from toy.fit import fit",
    "from toy import fit",
    "import toy.room.gradients",
    "from toy import room",
    "from toy import *",
    "import toy.uses",
)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with a submodule, a function that is named as its module, and one whose module is a package."""
    package = tmp_path / "toy"
    files = {
        "__init__.py": "import sys\nfrom rl_as_inference.imports import Package\n"
        "sys.modules[__name__].__class__ = Package\n",
        "__init__.pyi": "from toy import bare\nfrom toy.fit import FitResult, fit\nfrom toy.room import room\n",
        "bare.py": "",
        "fit.py": "class FitResult: ...\ndef fit(): return FitResult()\n",
        "room/__init__.py": "from toy.room.gradients import gradient\ndef room(): return gradient\n",
        "room/gradients.py": "gradient = 1\n",
        "uses.py": "from toy.fit import fit\nimport toy.room\nassert callable(fit)\n",
    }
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield package
    forget("toy")


def forget(package: str) -> None:
    for name in [each for each in sys.modules if each.partition(".")[0] == package]:
        del sys.modules[name]


def test_functions_that_are_named_as_their_modules_in_every_order_of_imports(toy: Path) -> None:
    for statements in permutations(STATEMENTS, 3):
        found: dict[str, Any] = {}
        for statement in statements:
            exec(statement, found)
        module = importlib.import_module("toy")
        assert callable(module.fit), statements
        assert callable(module.room), statements
        assert isinstance(module.bare, ModuleType), statements
        assert isinstance(sys.modules["toy.fit"], ModuleType), statements
        assert module.fit is sys.modules["toy.fit"].fit
        forget("toy")


def test_names_of_the_package(toy: Path) -> None:
    module: Any = importlib.import_module("toy")
    assert module.__all__ == ["FitResult", "bare", "fit", "room"]
    assert {*module.__all__, "__version__"} <= set(dir(module))
    assert module.uses is sys.modules["toy.uses"]  # which is no public name, but a module
    for name in ("nothing", "_private", "__wrapped__"):
        with pytest.raises(AttributeError, match=f"module 'toy' has no attribute '{name}'"):
            getattr(module, name)
    (toy / "broken.py").write_text("import not_there_at_all\n")
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
        _ = module.broken
    module.fit = 3  # as a test's monkeypatch does
    assert module.fit == 3


def test_the_stub_and_the_package_have_the_same_names() -> None:
    names: dict[str, Any] = {}
    text = (ROOT / "rl_as_inference" / "__init__.pyi").read_text()
    exec(text[text.index("__all__") : text.index("__version__")], names)
    assert sorted(names["__all__"]) == rlai.__all__
    assert all(getattr(rlai, name) is not None for name in rlai.__all__)
    assert isinstance(rlai, Package)


def test_pickles_name_the_package() -> None:
    assert pickle.loads(pickle.dumps(rlai)) is rlai
    assert pickle.loads(cloudpickle.dumps(lambda: rlai.fit))() is rlai.fit


def test_a_first_use_inside_what_is_compiled(toy: Path) -> None:
    module: Any = importlib.import_module("toy")

    def shifted(x: torch.Tensor) -> torch.Tensor:
        module.fit()
        return x + module.room()

    assert torch.compile(shifted, backend="eager")(torch.ones(2)).tolist() == [2.0, 2.0]


def test_threads_that_use_names_for_the_first_time(toy: Path) -> None:
    """Of a library that one of them enters by its root and the other by a module, which Python lets fail."""
    (toy.parent / "knotted").mkdir()
    (toy.parent / "knotted" / "__init__.py").write_text("import time\ntime.sleep(0.3)\nfrom knotted.inner import x\n")
    (toy.parent / "knotted" / "inner.py").write_text("import knotted\nx = 1\n")
    (toy / "left.py").write_text("import knotted\n")
    (toy / "right.py").write_text("import knotted.inner\n")
    module: Any = importlib.import_module("toy")
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda name: getattr(module, name).__name__, ["left", "right"])
        assert list(found) == ["toy.left", "toy.right"]
    forget("knotted")


def test_one_thread_imports_gymnasium_and_another_its_environments() -> None:
    python(
        "import rl_as_inference as rlai, time\n"
        "from concurrent.futures import ThreadPoolExecutor as Pool\n"
        "def first(): import gymnasium\n"
        "def second(): time.sleep(0.02); rlai.environments\n"
        "with Pool(2) as pool: [each.result() for each in (pool.submit(first), pool.submit(second))]\n"
        "import gymnasium; assert 'rlai/Tiger-v0' in gymnasium.registry"
    )


# What imports change of the process.


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of further modules of this package."""
    monkeypatch.setattr(rlai, "__path__", [*rlai.__path__, str(tmp_path)])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("rl_as_inference."):
            del sys.modules[name]


NOISY = "import random, warnings\nrandom.random()\nwarnings.simplefilter('ignore', EncodingWarning)\n"


@pytest.mark.parametrize("raises", [False, True])
def test_random_numbers_and_filters_after_an_import(room: Path, raises: bool) -> None:
    (room / "inner.py").write_text(NOISY + ("1 / 0\n" if raises else ""))
    (room / "noisy.py").write_text("import rl_as_inference.inner\n")
    before = random.getstate(), list(warnings.filters)
    if raises:
        with pytest.raises(ZeroDivisionError):
            importlib.import_module("rl_as_inference.noisy")
    else:
        importlib.import_module("rl_as_inference.noisy")
    assert warnings.filters == before[1]
    if threading.active_count() == 1:
        assert random.getstate() == before[0]


def test_another_thread_during_an_import(room: Path) -> None:
    """What it draws is not drawn again, and a filter that it has taken back does not return."""
    (room / "slow.py").write_text(NOISY + "import sys\nsys.modules['__main__'].wait_here()\n")
    drawn: list[float] = []
    entered, importing, left = threading.Event(), threading.Event(), threading.Event()

    def other() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BytesWarning)
            entered.set()
            importing.wait(60)
            drawn.append(random.random())
        left.set()

    def wait_here() -> None:
        importing.set()
        left.wait(60)

    before = list(warnings.filters)
    random.seed(3)
    thread = threading.Thread(target=other)
    thread.start()
    entered.wait(60)
    sys.modules["__main__"].wait_here = wait_here  # type: ignore[attr-defined]
    try:
        importlib.import_module("rl_as_inference.slow")
    finally:
        del sys.modules["__main__"].wait_here  # type: ignore[attr-defined]
        thread.join()
    assert warnings.filters == before
    expected = random.Random(3)
    assert [expected.random() for _ in range(3)][1:] == [*drawn, random.random()]  # the module has drawn the first


LEAVES = """
import random, warnings, threading, logging, os, sys
before = random.getstate(), list(warnings.filters), dict(os.environ)
{statement}
assert random.getstate() == before[0]
assert warnings.filters == before[1]
new = {{n for n in os.environ if os.environ[n] != before[2].get(n)}}
assert new <= {{'PYGAME_HIDE_SUPPORT_PROMPT'}}, new  # Gymnasium's
assert threading.active_count() == 1 and not logging.getLogger().handlers
import torch
assert torch.distributions.Distribution._validate_args
"""


@pytest.mark.parametrize(
    "statement",
    [
        "import rl_as_inference.agents",
        pytest.param("from rl_as_inference import *", marks=pytest.mark.slow),
        pytest.param(
            "import rl_as_inference; rl_as_inference.posterior; rl_as_inference.inspect.plots", marks=pytest.mark.slow
        ),
    ],
)
def test_importing_leaves_random_numbers_and_filters_alone(statement: str) -> None:
    python(LEAVES.format(statement=statement))


ALONE = """
import os, random, sys, warnings
import cloudpickle, gymnasium, h5py, pyro.infer.mcmc, rich.progress, safetensors.torch, scipy.stats, torch, typer
import rl_as_inference as rlai
from rl_as_inference.imports import _homes
names = {*_homes("rl_as_inference").values(), "rl_as_inference.cli.training"}
names |= {f"rl_as_inference.{each}" for each in ("exact", "guides", "inspect", "models")}
for name in sorted(names):
    if (child := os.fork()) == 0:
        before = random.getstate(), list(warnings.filters), dict(os.environ)
        __import__(name)
        assert (random.getstate(), warnings.filters, dict(os.environ)) == before
        assert not isinstance(rlai.fit, type(sys)) and not isinstance(rlai.compare, type(sys))
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(name)
"""


@pytest.mark.slow
def test_every_home_of_a_public_name_can_be_imported_first() -> None:
    """In forks of a process that has the libraries, and nothing of this package."""
    assert python(ALONE) == ""


# A clone.


def copied(root: Path, project: str) -> None:
    """A copy of the package, without its rooms, beside folders of the same names, of some project."""
    (root / "rl_as_inference").mkdir(parents=True)
    for name in ("__init__.py", "__init__.pyi", "imports.py"):
        (root / "rl_as_inference" / name).write_text((ROOT / "rl_as_inference" / name).read_text())
    for name in ("models", "guides", "rich"):
        (root / name).mkdir()
        (root / name / "__init__.py").write_text("where = 'beside'\n")
    (root / "rich" / "console.py").touch()
    declared = (ROOT / "pyproject.toml").read_text().replace('name = "rl-as-inference"', f'name = "{project}"')
    (root / "pyproject.toml").write_text(declared)


def test_a_clone_finds_its_rooms_and_nobody_elses(tmp_path: Path) -> None:
    copied(tmp_path / "clone", "rl-as-inference")
    copied(tmp_path / "stranger", "stranger")
    copied(tmp_path / "bare", "rl-as-inference")
    (tmp_path / "bare" / "pyproject.toml").unlink()
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "import rl_as_inference as rlai\n"
        "print(rlai.models.where, rlai.guides.where, rlai.models.__name__)\n"
        "print(hasattr(rlai, 'rich'), 'models' in sys.modules)\n"
        "import importlib; importlib.reload(rlai); importlib.reload(rlai.models)\n"
        "for name in [each for each in sys.modules if each.startswith('rl_as_inference')]: del sys.modules[name]\n"
        "import rl_as_inference; print(rl_as_inference.models.where)"  # loaded again, too
    )
    said = python(code, "-I", "-S", cwd=tmp_path / "clone")
    assert said.split() == ["beside", "beside", "rl_as_inference.models", "False", "False", "beside"]
    for elsewhere in ("stranger", "bare"):
        code = "import sys; sys.path.insert(0, '.')\nimport rl_as_inference as rlai\nprint(hasattr(rlai, 'models'))"
        assert python(code, "-I", "-S", cwd=tmp_path / elsewhere) == "False\n"
