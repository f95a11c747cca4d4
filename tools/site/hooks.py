"""What MkDocs is told beyond mkdocs.yml.

Pages stay where a reader of the repository finds them, and their links lead to files beside docs/. The site
holds a page of each file so linked: its code, or what is in the folder. Notebooks become pages with the
outputs they were saved with, and formulas become MathML, which browsers show without scripts or fonts of ours.
"""

import ast
import base64
import contextlib
import html
import json
import posixpath
import re
import shutil
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PACKAGE = tempfile.TemporaryDirectory(prefix="site-")
LINK = re.compile(r"(\]\()([^)\s#]+)([^)]*\))")
FENCE = re.compile(r"^```.*?^```", flags=re.M | re.S)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', flags=re.S)


@event_priority(100)
def on_config(config: MkDocsConfig) -> None:
    """Lays out the package as a wheel has it, with models and guides inside, for mkdocstrings to read."""
    caches = shutil.ignore_patterns("__pycache__")
    for source, inside in (("rl_as_inference", ""), ("models", "models"), ("guides", "guides")):
        shutil.copytree(ROOT / source, Path(PACKAGE.name, "rl_as_inference", inside), ignore=caches, dirs_exist_ok=True)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [PACKAGE.name]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds pages of notebooks and of all that pages link to outside docs/."""
    for notebook in sorted(DOCS.glob("notebooks/*.ipynb")):
        uri = f"notebooks/{notebook.stem}.md"
        if (pair := files.get_file_from_path(uri)) is not None:
            files.remove(pair)
        markdown, pictures = _notebook(notebook)
        files.append(File.generated(config, uri, content=markdown))
        for name, picture in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=picture))
    waiting = [target for page in files.documentation_pages() for target in _linked(page)]
    while waiting:
        target = waiting.pop()
        uri = _uri(target)
        if not uri.startswith("source/") or files.get_file_from_path(uri) is not None:
            continue
        if uri.endswith(".md"):
            files.append(File.generated(config, uri, content=_source_page(target)))
            waiting += _linked(files.get_file_from_path(uri))
        else:
            files.append(File.generated(config, uri, abs_src_path=str(target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links out of docs/ into links to the pages above."""

    def moved(match: re.Match[str]) -> str:
        target = _target(page.file, match[2])
        if target is None:
            return match[0]
        return match[1] + posixpath.relpath(_uri(target), posixpath.dirname(page.file.src_uri) or ".") + match[3]

    return _outside_fences(markdown, lambda text: LINK.sub(moved, text))


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns formulas into MathML."""

    def rendered(match: re.Match[str]) -> str:
        formula, block = html.unescape(match[2]), match[1] == "div"
        try:
            mathml = convert(formula, display="block" if block else "inline")
        except Exception as error:
            raise PluginError(f"{page.file.src_uri}: {formula!r} is no formula that can be shown: {error}") from error
        mathml = _for_browsers(mathml)
        if block:
            return f'<div class="formula">{mathml}</div>'
        # No browser breaks lines in a formula; a long one scrolls on a narrow screen.
        return f'<span class="long-formula">{mathml}</span>' if len(formula) > 50 else mathml

    return FORMULA.sub(rendered, content)


def _for_browsers(mathml: str) -> str:
    """Returns MathML without what browsers no longer know: letters of other alphabets by attribute, words by letter."""

    def letter(match: re.Match[str]) -> str:
        alphabet = {"script": "SCRIPT", "double-struck": "DOUBLE-STRUCK"}[match[1]]
        for name in (f"MATHEMATICAL {alphabet} CAPITAL {match[2]}", f"{alphabet} CAPITAL {match[2]}"):
            with contextlib.suppress(KeyError):
                return f"<mi>{unicodedata.lookup(name)}</mi>"
        return match[0]

    mathml = re.sub(r'<mi mathvariant="(script|double-struck)">([A-Z])</mi>', letter, mathml)
    mathml = re.sub(
        r'(?:<mi mathvariant="normal">\w</mi>){2,}', lambda word: f"<mi>{re.sub('<.*?>', '', word[0])}</mi>", mathml
    )
    return re.sub(r"(<mi>(?:log|exp|max|min)</mi>)(?=<m)(?!<mo)", r'\1<mspace width="0.17em"/>', mathml)


def _outside_fences(markdown: str, change: Any) -> str:
    """Returns the text with all but its code blocks changed."""
    pieces, end = [], 0
    for fence in FENCE.finditer(markdown):
        pieces += [change(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*pieces, change(markdown[end:])])


def _place(file: File) -> Path:
    """Returns the folder of the repository from which the links of a page lead."""
    if file.src_uri.startswith("source/"):
        return (ROOT / file.src_uri.removeprefix("source/")).parent
    return (DOCS / file.src_uri).parent


def _target(file: File, link: str) -> Path | None:
    """Returns the file that a link leads to, None for links to other places and for pages' links among themselves."""
    if "://" in link or link.startswith(("mailto:", "/")):
        return None
    target = Path(posixpath.normpath((_place(file) / link).as_posix()))
    inside = target.is_relative_to(DOCS) and target.suffix != ".ipynb"
    if inside and not file.src_uri.startswith("source/"):
        return None
    if not target.exists():
        raise PluginError(f"{file.src_uri} links to {link}, which does not exist")
    return target


def _linked(file: File | None) -> list[Path]:
    """Returns the files outside of docs/, and notebooks, that a page links to."""
    if file is None:
        return []
    links = LINK.findall(FENCE.sub("", file.content_string))
    return [target for _, link, _ in links if (target := _target(file, link)) is not None]


def _uri(target: Path) -> str:
    """Returns where the site has a file of the repository."""
    if target.is_relative_to(DOCS):
        return target.relative_to(DOCS).as_posix().removesuffix(".ipynb") + (".md" if target.suffix == ".ipynb" else "")
    path = f"source/{target.relative_to(ROOT).as_posix()}"
    if target.is_dir():
        return f"{path}/index.md"
    return f"{path}.md" if target.suffix == ".py" else path


def _source_page(target: Path) -> str:
    name = target.relative_to(ROOT).as_posix()
    if target.suffix == ".md":
        return target.read_text()
    if target.suffix == ".py":
        # Its folder's page is what a search should find, which has its first line.
        return (
            f"---\nsearch:\n  exclude: true\n---\n\n# {target.name}\n\n`{name}`\n\n```python\n{target.read_text()}```\n"
        )
    rows = [f"# {name}/\n\n| file | |\n|---|---|\n"]
    for file in sorted(target.iterdir()):
        if file.is_file() and not file.name.startswith((".", "_")):
            first = (
                (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n")[0] if file.suffix == ".py" else ""
            )
            rows.append(f"| [{file.name}]({file.name}) | {first.replace('|', '&#124;')} |\n")
    return "".join(rows)


def _notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """Returns a notebook as Markdown, with the outputs it was saved with, and its pictures by name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    folds = False
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        if "solution" in cell["metadata"].get("tags", ()) and not folds:  # it is the end of the notebook
            folds = True
            parts.append('<details class="solution" markdown="1">\n<summary>Solution</summary>')
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code" and source.strip():
            parts.append(f"```python\n{source}\n```")
            for output in cell["outputs"]:
                if "text" in output:
                    text = "".join(output["text"]).rstrip()
                    parts.append(f"```text\n{text}\n```")
                    continue
                number = len(pictures) + 1
                name = f"{path.stem}-{number}.png"
                pictures[name] = base64.b64decode("".join(output["data"]["image/png"]))
                # On a phone it is small: a tap shows it alone.
                parts.append(f"[![Picture {number} of this page]({name})]({name})")
    if folds:
        parts.append("</details>")
    parts.append(f'<a href="{path.name}" download>This page as a notebook</a>\n')
    return "\n\n".join(parts), pictures
