"""Every notebook is its script with outputs, runs, prints what it shows, and says what it prints."""

import re

import nbformat
import pytest

from tools.notebooks import FOLDER, executed, paired

SCRIPTS = sorted(FOLDER.glob("*.py"))
NUMBER = re.compile(r"(?<![\w.])[-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
each = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


def stored(script):
    return nbformat.read(script.with_suffix(".ipynb"), as_version=4)


def printed(cell):
    """What a cell printed, warnings and all; pictures are only counted."""
    outputs = cell.get("outputs", ())
    texts = [output.text for output in outputs if output.output_type == "stream"]
    return "".join(texts), sum("image/png" in output.get("data", ()) for output in outputs)


def value(number):
    return float(number.replace(",", "").replace("−", "-"))


def decimals(number):
    return len(number.partition("e")[0].partition(".")[2])


def differences(before, after):
    """Numbers that differ by more than two hundredths and the last digit: other machines round otherwise."""
    pairs = zip(NUMBER.findall(before), NUMBER.findall(after), strict=True)
    return [
        (one, other)
        for one, other in pairs
        if abs(value(one) - value(other)) > 0.02 * abs(value(one)) + 1.5 * 10.0 ** -decimals(one)
    ]


def words(text):
    return re.sub(r"\s+", " ", NUMBER.sub("#", text))


def test_there_are_six():
    assert [path.stem[0] for path in SCRIPTS] == list("123456")
    assert sorted(FOLDER.glob("*.ipynb")) == [path.with_suffix(".ipynb") for path in SCRIPTS]


@each
def test_the_pair_is_in_step(script):
    """What to do if it is not: python tools/notebooks.py."""

    def cells(notebook):
        return [(cell.cell_type, cell.source, cell.metadata.get("tags")) for cell in notebook.cells]

    assert cells(paired(script)) == cells(stored(script))


@each
def test_decimals_in_the_text_are_printed_by_a_cell(script):
    """A number with a decimal point in the text stands in the code, or is what a cell prints, rounded."""
    cells = stored(script).cells
    said = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    shown = "\n".join(cell.source + "\n" + printed(cell)[0] for cell in cells if cell.cell_type == "code")
    known = [value(number) for number in NUMBER.findall(shown)]
    for number in NUMBER.findall(said):
        if "." in number:
            half = 0.5001 * 10.0 ** -decimals(number)
            assert any(abs(abs(value(number)) - abs(other)) <= half for other in known), number


@each
def test_links_lead_somewhere(script):
    said = "\n".join(cell.source for cell in stored(script).cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\(([^)#]+)", said):
        assert "://" in target or (FOLDER / target).exists(), target


@each
def test_the_solution_is_folded_away(script):
    """It is the end of a notebook, from one cell on, and nobody sees it by scrolling down."""
    tagged = ["solution" in cell.metadata.get("tags", ()) for cell in stored(script).cells]
    first = tagged.index(True)
    assert all(tagged[first:])
    assert "solution is folded away" in "".join(cell.source for cell in stored(script).cells[:first])
    for cell in stored(script).cells[first:]:
        hidden = cell.metadata["jupyter"]
        assert hidden["source_hidden"]
        assert hidden.get("outputs_hidden") == (True if cell.cell_type == "code" else None)


@each
def test_nothing_but_what_is_meant_is_shown(script):
    """No warnings, no escape codes of a terminal, and pictures as pictures."""
    for cell in stored(script).cells:
        for output in cell.get("outputs", ()):
            assert output.get("name") != "stderr", output.text
            assert "\x1b" not in output.get("text", "")
            assert output.output_type == "stream" or "image/png" in output.data


@pytest.mark.slow
@each
def test_it_runs_and_prints_what_it_shows(script):
    before = stored(script)
    after = executed(before)
    for old, new in zip(before.cells, after.cells, strict=True):
        (text, pictures), (again, as_many) = printed(old), printed(new)
        assert pictures == as_many, old.source
        assert words(text) == words(again), old.source
        if "varies" not in old.metadata.get("tags", ()):  # many steps blow up a rounding error
            assert not differences(text, again), old.source
