"""The precision that exact answers are computed in."""

import copy

import torch

from rl_as_inference.checks import is_deferred
from rl_as_inference.processes.tabular import TabularMDP

__all__ = ["in_double"]

_ENTRY_LIMIT = 4_000_000
"""Tables in single precision of up to this many entries are taken to double; twice as many bytes an entry take twice as
long to read, and reading is all that a backward step of a larger one does."""


def in_double(mdp: TabularMDP) -> TabularMDP:
    """Returns the process in double precision, in which its rows sum to one: in single the slopes of long horizons,
    and the differences of large values, have no digits left.

    A larger table without gradient is returned as it is.
    """
    own = mdp.initial_probabilities
    if own.dtype == torch.float64:
        return mdp
    tables = (mdp.kernel.probabilities, mdp.reward_table, mdp.action_prior, own)
    if is_deferred() or (torch.is_grad_enabled() and any(table.requires_grad for table in tables)):
        return mdp.to(torch.float64)
    if tables[0].numel() > _ENTRY_LIMIT:
        return mdp
    if any(table.is_inference() for table in tables):  # they keep no count of their changes
        return mdp.to(torch.float64)
    # Made once for tables as they are: to read and write them all takes longer than a backward step.
    given = (mdp._given[1], mdp.reward_table, mdp.action_prior, own)
    state = [(id(table), table._version) for table in given]
    made, found = vars(mdp).get("_in_double", (None, mdp))
    if made != state:
        found = mdp.to(torch.float64)
        vars(mdp)["_in_double"] = state, found
    double = copy.copy(found)
    double.horizon, double.discount, double.temperature = mdp.horizon, mdp.discount, mdp.temperature
    return double
