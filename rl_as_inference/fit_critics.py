"""The critics that :func:`rl_as_inference.fit` makes where an estimator needs one and none is given."""

from typing import Any

import gymnasium
import torch
from torch import nn

from rl_as_inference.critics import LearnedTable, QEnsemble, SoftQ, SoftV
from rl_as_inference.guides import BeliefPolicy, RecurrentPolicy
from rl_as_inference.guides.belief import belief_space
from rl_as_inference.nouns import Process
from rl_as_inference.processes import PartiallyObservedMDP, TabularMDP, TabularPOMDP
from rl_as_inference.processes.programs import ProgramProcess
from rl_as_inference.randomness import seeded

__all__ = ["new_critic", "spread_of_returns"]

_MEMORY = 32
"""Numbers that a critic of histories remembers."""


def new_critic(process: Process, estimator: str) -> nn.Module:
    """Returns a critic for an estimator that needs one, to be trained beside the policy.

    Raises:
        ValueError: if none can be learned there.
    """
    hidden = isinstance(process, PartiallyObservedMDP) or (isinstance(process, ProgramProcess) and process.sees_history)
    if estimator == "em" and hidden:
        raise ValueError(
            "critic: estimator='em' learns no soft Q where the state is hidden, as it would be trusted where it was "
            "never learned; pass critic=, such as that of a fit by 'exact_sum' or a soft V, or a teacher; or use 'auto'"
        )
    # A network's outputs are of order one, and so are soft values in nats where rewards matter little.
    scale = float(torch.as_tensor(process.temperature))
    if estimator in ("em", "path_consistency"):  # whose critics are more than baselines: they must become right
        scale = max(scale, spread_of_returns(process, 1000))
    if isinstance(process, PartiallyObservedMDP):
        return _critic_of_hidden(process, estimator, scale)
    if estimator == "path_consistency" and isinstance(process, TabularMDP):
        return LearnedTable(process.num_states, horizon=process.horizon, scale=scale)
    if isinstance(process, ProgramProcess) and process.sees_history:
        head = _head(gymnasium.spaces.Box(-1.0, 1.0, (_MEMORY,)), process, estimator, scale)
        return RecurrentPolicy(process.observation_space, process.action_space, head=head, memory_size=_MEMORY)
    return _head(process.state_space, process, estimator, scale)


def _critic_of_hidden(process: PartiallyObservedMDP, estimator: str, scale: float) -> nn.Module:
    """Returns a critic on the belief where that is exact, else on the history."""
    exact_belief = isinstance(process, TabularPOMDP)
    space = belief_space(process) if exact_belief else gymnasium.spaces.Box(-1.0, 1.0, (_MEMORY,))
    head = _head(space, process, estimator, scale)
    return BeliefPolicy(process, head) if exact_belief else RecurrentPolicy.of(process, head=head, memory_size=_MEMORY)


def _head(space: gymnasium.Space[Any], process: Process, estimator: str, scale: float) -> nn.Module:
    discrete = isinstance(process.action_space, gymnasium.spaces.Discrete)
    if estimator == "em" and not discrete:
        options: dict[str, Any] = {"horizon": process.horizon, "hidden_sizes": (64, 64), "scale": scale}
        return QEnsemble(space, process.action_space, num_critics=1, **options)
    if estimator not in ("exact_sum", "n_step", "em"):
        return SoftV(space, horizon=process.horizon, scale=scale)
    if not isinstance(process.action_space, gymnasium.spaces.Discrete):
        raise ValueError(f"estimator={estimator!r} needs discrete actions, got {process.action_space}; use 'auto'")
    return SoftQ(space, int(process.action_space.n), horizon=process.horizon, scale=scale)


def spread_of_returns(process: Process, num_trajectories: int) -> float:
    """Returns the standard deviation of the action prior's returns, in reward units."""
    with torch.no_grad(), seeded(0):
        return float(process.rollout(None, num_trajectories).returns(discounted=True).std())
