"""The returns of a page's draws in figures."""

from collections.abc import Sequence

import numpy as np

from rl_as_inference.estimate import plus_minus
from rl_as_inference.report.sources import Source
from rl_as_inference.tables import Table

__all__ = ["returns_table"]


def returns_table(sources: Sequence[tuple[str, Source]], named: bool) -> Table:
    """Returns mean ± standard error, standard deviation and range of the returns of each source, unweighted.

    Args:
        sources: each with the name of its run.
        named: whether that name is shown.
    """
    rows = []
    for run, source in sources:
        values = source.returns
        spreads = len(values) > 1 and bool(np.isfinite(values).all())  # a return of -inf has no deviation from its mean
        of_mean = values.std(ddof=1) / np.sqrt(len(values)) if spreads else None
        error = plus_minus(of_mean, values.mean(), draws=len(values))
        spread = f"{values.std(ddof=1):.4g}" if spreads else ""
        label = f"{run}, {source.label}" if named else source.label
        rows.append(
            (label, f"{values.mean():.4g} {error}".rstrip(), spread, f"{values.min():.4g} … {values.max():.4g}")
        )
    return Table("Returns of the draws", ("draws of", "mean", "std", "range"), tuple(rows), right=(1, 2, 3))
