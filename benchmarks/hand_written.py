"""Gradients of the reference problem in plain tensors: what somebody would write who had no library.

Both draw by inverting cumulative probabilities, the fastest way found, and look every table up once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rl_as_inference import TabularMDP
from rl_as_inference.processes.kernels import DenseKernel

__all__ = ["Tables", "exact_sum_gradient", "score_gradient", "score_gradient_of_all_states"]

Logits = Callable[[Tensor, Tensor | int], Tensor]


@dataclass(frozen=True)
class Tables:
    """A process's tables by the number of the state-action pair, and the policy's parameters."""

    horizon: int
    num_actions: int
    initial: Tensor
    successor: Tensor
    term: Tensor
    """``r/α + log p(a|s)``, in nats."""
    log_prior: Tensor
    scale: Tensor
    logits: Logits
    parameters: Sequence[Tensor]

    @classmethod
    def of(cls, mdp: TabularMDP, logits: Logits, parameters: Sequence[Tensor]) -> "Tables":
        assert isinstance(mdp.kernel, DenseKernel)
        horizon = mdp.finite_horizon("benchmark")
        time = torch.arange(horizon, dtype=mdp.initial_probabilities.dtype)[:, None]
        return cls(
            horizon=horizon,
            num_actions=mdp.num_actions,
            initial=_cumulative(mdp.initial_probabilities),
            successor=_cumulative(mdp.kernel.probabilities.flatten(0, 1)),
            term=(mdp.reward_table / mdp.temperature + mdp.log_action_prior).flatten(),
            log_prior=mdp.log_action_prior,
            scale=torch.as_tensor(mdp.discount) ** time,
            logits=logits,
            parameters=parameters,
        )


def score_gradient(tables: Tables, num_trajectories: int) -> float:
    """Leaves the score-function gradient with return-to-go in the parameters and returns the loss."""
    for parameter in tables.parameters:
        parameter.grad = None
    states, pairs = _rollout(tables, num_trajectories)
    actions = pairs % tables.num_actions
    times = torch.arange(tables.horizon)[:, None].expand_as(states)
    log_policy = tables.logits(states, times).log_softmax(-1).gather(-1, actions[..., None]).squeeze(-1)
    return _score_backward(tables, pairs, log_policy)


def score_gradient_of_all_states(tables: Tables, num_trajectories: int) -> float:
    """The same, asking the policy once about every state at every step, which takes fewer states than trajectories."""
    for parameter in tables.parameters:
        parameter.grad = None
    shape = (tables.horizon, len(tables.initial))
    everywhere = torch.arange(shape[1]).expand(shape)
    log_rule = tables.logits(everywhere, torch.arange(shape[0])[:, None].expand(shape)).log_softmax(-1)
    with torch.no_grad():
        passed = _cumulative(log_rule.exp())[..., :-1].mT.contiguous()  # of few actions, comparing beats a search
        uniforms = torch.rand(2 * tables.horizon + 1, num_trajectories, 1, dtype=passed.dtype).unbind()
        state = torch.searchsorted(tables.initial, uniforms[-1].squeeze(-1), right=True)
        drawn = []
        for rule, first, second in zip(passed, uniforms[:-1:2], uniforms[1::2], strict=True):
            action = (rule.index_select(1, state) <= first.squeeze(-1)).sum(0)
            drawn.append(state * tables.num_actions + action)
            state = torch.searchsorted(tables.successor.index_select(0, drawn[-1]), second, right=True).squeeze(-1)
        pairs = torch.stack(drawn)
    return _score_backward(tables, pairs, log_rule.flatten(1).gather(1, pairs))


def exact_sum_gradient(tables: Tables, soft_q: Tensor, num_trajectories: int) -> float:
    """Leaves the gradient of the exact sum over actions; ``soft_q`` in nats, ``(T, S, A)``."""
    for parameter in tables.parameters:
        parameter.grad = None
    states, pairs = _rollout(tables, num_trajectories)
    times = torch.arange(tables.horizon)[:, None].expand_as(states)
    log_policy = tables.logits(states, times).log_softmax(-1)
    gain = soft_q[times, states] + tables.log_prior[states] - log_policy
    (-(tables.scale * (log_policy.exp() * gain).sum(-1)).sum()).backward()
    taken = log_policy.detach().gather(-1, (pairs % tables.num_actions)[..., None]).squeeze(-1)
    return -float((tables.scale * (tables.term[pairs] - taken)).sum())


@torch.no_grad()
def _rollout(tables: Tables, num_trajectories: int) -> tuple[Tensor, Tensor]:
    """Returns states and numbers of state-action pairs, both ``(T, N)``."""
    uniforms = torch.rand(2 * tables.horizon + 1, num_trajectories, 1, dtype=tables.initial.dtype).unbind()
    state = torch.searchsorted(tables.initial, uniforms[-1].squeeze(-1), right=True)
    states, pairs = [], []
    for t in range(tables.horizon):
        rule = tables.logits(state, t).softmax(-1).cumsum(-1)
        # Scaled by the last sum, which may be less than one, a draw is never beyond it.
        action = torch.searchsorted(rule, uniforms[2 * t] * rule[:, -1:], right=True).squeeze(-1)
        states.append(state)
        pairs.append(state * tables.num_actions + action)
        after = tables.successor.index_select(0, pairs[-1])
        state = torch.searchsorted(after, uniforms[2 * t + 1], right=True).squeeze(-1)
    return torch.stack(states), torch.stack(pairs)


def _score_backward(tables: Tables, pairs: Tensor, log_policy: Tensor) -> float:
    terms = tables.scale * (tables.term[pairs] - log_policy.detach())
    to_go = terms.flip(0).cumsum(0).flip(0)
    (-(log_policy * to_go).sum()).backward()
    return -float(terms.sum())


def _cumulative(probabilities: Tensor) -> Tensor:
    sums = probabilities.cumsum(-1)
    return sums / sums[..., -1:]
