"""Whether a problem's dynamics are deterministic, which whole-trajectory consistency needs."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.poutine.util import site_is_subsample

from rl_as_inference.processes import MarkovDecisionProcess, PartiallyObservedMDP, TabularMDP
from rl_as_inference.processes.point_masses import is_point
from rl_as_inference.program.recording import record
from rl_as_inference.program.sites import ACTION, is_action, is_reward
from rl_as_inference.randomness import seeded

__all__ = ["luck_of_process", "luck_of_program"]

_TRIALS = 16
_CERTAIN = 1 - 1e-6


def luck_of_process(mdp: MarkovDecisionProcess) -> str:
    """Returns what is drawn besides actions and the first state, in words; empty if nothing is.

    The tables of a finite process tell; of another one the transitions of a few trajectories of the action prior.
    """
    if isinstance(mdp, PartiallyObservedMDP):
        return "its state is hidden"
    if isinstance(mdp, TabularMDP):
        _, probabilities = mdp.kernel.rows()
        sure = (probabilities.detach().amax(-1) > _CERTAIN) | (mdp.action_prior.detach() == 0)
        if bool((sure | mdp.terminal[:, None]).all()):
            return ""
        where, by = (int(i) for i in (~(sure | mdp.terminal[:, None])).nonzero()[0])
        return f"its transition from state {where} by action {by} is drawn"
    with torch.no_grad(), seeded(0):
        state = mdp.begin(_TRIALS)
        for t in range(mdp.horizon or 1):
            action = mdp.decide(None, mdp.view(state), t).action
            if not _is_certain(mdp.transition(mdp._own_state(state), mdp._own_action(action))):
                return f"its transition at step {t} is drawn"
            state = mdp.advance(state, action, t).next_state
    return ""


def luck_of_program(run: Callable[[], Any]) -> str:
    """Returns the same of a Pyro program, of which a few runs tell.

    What is drawn before the first action is no luck where it is what the policy sees.
    """
    with torch.no_grad(), seeded(0):
        for _ in range(_TRIALS):
            messages = [m for m in record(run, None) if not site_is_subsample(m)]
            first = next((i for i, m in enumerate(messages) if is_action(m)), len(messages))
            shown = messages[first]["infer"][ACTION]["state"] if first < len(messages) else None
            for index, msg in enumerate(messages):
                if is_action(msg) or is_reward(msg) or msg["is_observed"] or _is_certain(msg["fn"]):
                    continue
                if index > first or msg["value"] is not shown:
                    return f"its site {msg['name']!r} is drawn"
    return ""


def _is_certain(distribution: Any) -> bool:
    """Returns whether a distribution can only give one value."""
    while isinstance(distribution, torch.distributions.Independent):
        distribution = distribution.base_dist
    if isinstance(distribution, torch.distributions.Categorical | torch.distributions.Bernoulli):
        probabilities = distribution.probs
        if isinstance(distribution, torch.distributions.Bernoulli):
            probabilities = torch.stack([probabilities, 1 - probabilities], -1)
        return bool((probabilities.amax(-1) > _CERTAIN).all())
    return is_point(distribution) is True
