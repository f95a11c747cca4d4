"""Tables for people to read, as text."""

import io
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

__all__ = ["render"]


def render(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str] | None], *, right: Sequence[int] = ()
) -> str:
    """Returns a table as plain text; None among the rows draws a line, columns in ``right`` align right."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index in right else "left", no_wrap=True)
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*row)
    out = io.StringIO()
    Console(file=out, width=200, force_jupyter=False, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
