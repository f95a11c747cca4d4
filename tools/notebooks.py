"""Writes the notebooks anew from the scripts beside them, with their outputs.

Each notebook is a pair: a script in cells (``N-name.py``), which people edit and review, and ``N-name.ipynb``, which is
the same with the outputs. ``python tools/notebooks.py [N-name.py …]`` runs the scripts and writes the other.
"""

import os
import sys
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

__all__ = ["FOLDER", "executed", "paired"]

FOLDER = Path(__file__).parent.parent / "docs" / "notebooks"


def paired(script: Path) -> NotebookNode:
    """Returns the cells of a script as a notebook, with numbered cells and no outputs."""
    notebook = jupytext.read(script)
    for index, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{index}"  # else random, and new each time
    return notebook


def executed(notebook: NotebookNode) -> NotebookNode:
    """Returns a copy of a notebook with the outputs that it has when this Python runs it in an empty folder.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell raises, with the cell and its traceback.
    """
    copy = deepcopy(notebook)
    environment = os.environ | {"TQDM_DISABLE": "1"}  # bars move by the clock
    with TemporaryDirectory() as folder:
        client = NotebookClient(
            copy,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            extra_arguments=["--log-level=ERROR"],  # it warns of every socket
            startup_timeout=300,  # seconds, on a busy machine
            timeout=600,  # for each cell
            record_timing=False,
            coalesce_streams=True,  # what was printed together stays together
        )
        client.execute(env=environment)
    return copy


def main(names: list[str]) -> None:
    """Writes the notebooks of the scripts of these names; of all, if none is given."""
    for script in [FOLDER / Path(name).name for name in names] or sorted(FOLDER.glob("*.py")):
        notebook = executed(paired(script))
        nbformat.write(notebook, script.with_suffix(".ipynb"))
        print(script.with_suffix(".ipynb").name)


if __name__ == "__main__":
    main(sys.argv[1:])
