"""Tables as text: names as they are, and every number whole."""

from rl_as_inference.tables import Table


def test_names_are_text_and_nothing_is_cut() -> None:
    name, long = "maze[b] [/b] :cat: [red]x", "x" * 230
    said = str(Table(f"{name}, a title", ("q [b]", "v"), ((name, "1.0"), (long, "12345.678")), right=(1,)))
    assert said.startswith(f"{name}, a title\n")
    for each in (f"│ {name} ", long, "q [b]", "12345.678", "  1.0 │"):
        assert each in said
    assert "…" not in said
