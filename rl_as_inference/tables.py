"""Tables for people to read, as text."""

import dataclasses
import io
from collections.abc import Sequence

from rich import table as rich_table
from rich.console import Console
from rich.text import Text

__all__ = ["Table", "counted", "render"]


def counted(number: int, what: str) -> str:
    """Returns a number of things, named in the plural, for people.

    Example:
        >>> counted(4096, "episodes"), counted(1, "episodes"), counted(1, "trajectories")
        ('4,096 episodes', '1 episode', '1 trajectory')
    """
    one = f"{what[:-3]}y" if what.endswith("ies") else what[:-1]
    return f"{number:,} {one if number == 1 else what}"


@dataclasses.dataclass(frozen=True)
class Table:
    """What a terminal prints and a page shows alike; ``str(table)`` is the terminal's."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...] | None, ...]
    """Cells of each row; None draws a line."""
    right: tuple[int, ...] = ()
    """Columns that align right."""

    def __str__(self) -> str:
        return render(self.title, self.header, self.rows, right=self.right)


def render(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str] | None], *, right: Sequence[int] = ()
) -> str:
    """Returns a table as plain text; None among the rows draws a line, columns in ``right`` align right.

    Names are shown as they are: ``[b]`` is no markup, ``:cat:`` no picture, and no cell is cut short.
    """
    table = rich_table.Table(title=Text(title), title_justify="left", title_style="bold")
    for index, name in enumerate(header):
        table.add_column(Text(name), justify="right" if index in right else "left", no_wrap=True)
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*map(Text, row))
    out = io.StringIO()
    Console(file=out, width=10_000, force_jupyter=False, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
