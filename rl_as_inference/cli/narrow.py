"""Output in encodings that lack our signs: what cannot be written is written in ASCII, and stops nothing."""

import codecs
import sys
import unicodedata

__all__ = ["in_ascii", "write_narrowly"]

_SIGNS = {"…": "...", "≤": "<=", "≥": ">=", "≠": "!=", "≈": "~", "±": "+-", "×": "x", "·": "*", "→": "->", "∞": "inf"}
_BORDERS = "│┃"


def write_narrowly() -> None:
    """Has standard output and error write what their encodings lack as :func:`in_ascii` says."""
    codecs.register_error("rlai", _replaced)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="rlai")


def in_ascii(text: str) -> str:
    """Returns text in ASCII: letters by their names or without their accents, lines as ``+-|``, the rest as ``?``.

    Example:
        >>> in_ascii("│ temperature α ┃ ≤ 1 … é ┐")
        '| temperature alpha | <= 1 ... e +'
    """
    return "".join(sign if sign.isascii() else _in_ascii(sign) for sign in text)


def _in_ascii(sign: str) -> str:
    if sign in _SIGNS:
        return _SIGNS[sign]
    name = unicodedata.name(sign, "")
    if name.startswith("GREEK SMALL LETTER "):
        return name.split()[3].lower()
    if name.startswith("GREEK CAPITAL LETTER "):
        return name.split()[3].capitalize()
    if name.startswith("BOX DRAWINGS"):
        return "|" if sign in _BORDERS else "-" if sign in "─━═" else "+"
    if "DASH" in name or "MINUS" in name or "HYPHEN" in name:
        return "-"
    return unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode() or "?"


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """Returns what stands for the rest of a table's cell, or of a line, and where it ends."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text, start = error.object, error.start
    end = next((at for at in range(start, len(text)) if text[at] in _BORDERS + "\n"), len(text))
    if end == start:
        return in_ascii(text[start]), start + 1
    cell = in_ascii(text[start:end])
    if end < len(text) and text[end] in _BORDERS:  # as wide as it was, where there is room
        cell = cell.rstrip().ljust(end - start - 1) + " "
    return cell, end
