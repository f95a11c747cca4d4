"""How pages are filled in: what is not this package's own is escaped."""

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rl_as_inference.tables import counted

__all__ = ["page_environment", "trusted_parts"]


def page_environment() -> Environment:
    """Returns what renders the templates of this package."""
    environment = Environment(
        loader=PackageLoader("rl_as_inference.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "ensure_ascii": False, "separators": (",", ":")}
    environment.globals["counted"] = counted
    return environment


def trusted_parts(environment: Environment, **files: str) -> dict[str, Markup]:
    """Returns what a page holds unescaped: this package's own files, among the templates, and Plotly."""
    from plotly.offline import get_plotlyjs  # imported when first needed: it is slow

    loader = environment.loader
    assert loader is not None
    parts = {name: Markup(loader.get_source(environment, file)[0]) for name, file in files.items()}
    return {**parts, "plotly": Markup(get_plotlyjs())}
