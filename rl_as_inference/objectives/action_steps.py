"""Action draws as time-major tensors: the form in which the estimators take them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from rl_as_inference.histories import Histories
from rl_as_inference.nouns import Policy, takes_all_steps, what_is_seen
from rl_as_inference.objectives.program_terms import Term
from rl_as_inference.processes.mdp import MarkovDecisionProcess
from rl_as_inference.trajectories import Trajectories

__all__ = ["ActionSteps", "over_time", "steps_of_rollout", "steps_of_terms"]


@dataclass
class ActionSteps:
    """Action draws that stand in the same plates, time first, ``(T, *batch)``."""

    terms: Tensor
    """All ELBO terms from one action to before the next, scaled, without gradient."""
    own_terms: Callable[[], Tensor]
    """Of these, the action's own: ``log p - log π``, scaled; like what follows, asked for when needed."""
    log_policy: Tensor
    weights: Callable[[], Tensor]
    """γ^t where the trajectory is alive, 0 elsewhere; without gradient, as a discount's own comes with the terms."""
    states: Tensor
    views: Any
    """What the policy saw: the states, or histories where they are hidden."""
    actions: Tensor
    times: Sequence[int]
    temperature: Any
    distributions: Callable[[], tuple[Any, Any]]
    """Policy and action prior of all the draws at once, which are categorical."""
    answers: Callable[[], list[tuple[Any, Any]]]
    """The same step by step, of any kind."""


def steps_of_terms(acts: list[Term], costs: list[Any], temperature: Any) -> ActionSteps:
    scores = torch.broadcast_tensors(*[term.score for term in acts])
    shape = scores[0].shape
    # Costs of segments in between, whose action stands in other plates, belong to the act before.
    bounds = [term.segment for term in acts] + [len(costs)]
    terms = [torch.as_tensor(sum(costs[i:j])).to(scores[0]).expand(shape) for i, j in pairwise(bounds)]

    def aligned(value: Any) -> Tensor:
        return torch.as_tensor(value).to(scores[0]).expand(shape)

    def distributions() -> tuple[Any, Any]:
        pairs = [(term.action["policy"], term.action["prior"]) for term in acts]
        for pair in pairs:
            for fn in pair:
                if not isinstance(fn, torch.distributions.Categorical):
                    raise _no_sum(fn)
        policy, prior = (torch.stack([fn.logits.expand(*shape, -1) for fn in fns]) for fns in zip(*pairs, strict=True))
        return _Logits(policy), _Logits(prior)

    def weights() -> Tensor:
        living = [1.0 if (alive := term.action["alive"]) is None else alive for term in acts]
        scales = [aligned(term.action["scale"]) for term in acts]
        return torch.stack([scale * alive for scale, alive in zip(scales, living, strict=True)]).detach()

    return ActionSteps(
        terms=torch.stack(terms),
        own_terms=lambda: torch.stack([aligned(term.cost) for term in acts]),
        log_policy=torch.stack(scores),
        weights=weights,
        states=(states := _stack_states([term.action["state"] for term in acts])),
        views=states,
        actions=torch.stack([term.action["value"].detach() for term in acts]),
        times=[term.action["step"] or 0 for term in acts],
        temperature=temperature,
        distributions=distributions,
        answers=lambda: [(term.action["policy"], term.action["prior"]) for term in acts],
    )


def _no_sum(fn: Any) -> ValueError:
    return ValueError(
        f"estimator='exact_sum' needs categorical actions, as 'em' with a soft Q of every action does, got "
        f"{type(fn).__name__}; use 'auto'"
    )


def _stack_states(states: list[Any]) -> Any:
    if not all(isinstance(state, Tensor) for state in states):
        return states
    return torch.stack(torch.broadcast_tensors(*[state.detach() for state in states]))


def steps_of_rollout(
    mdp: MarkovDecisionProcess, policy: Policy, trajectories: Trajectories, terms: Tensor
) -> ActionSteps:
    states, seen = trajectories.states[: trajectories.horizon], trajectories.views()

    def distributions() -> tuple[Any, Any]:
        if takes_all_steps(policy):
            return policy(seen, _time_tensor(range(len(states)), states, terms.dim())), mdp.prior_at(seen)
        return _Logits(torch.stack([policy(s, t).logits for t, s in enumerate(seen)])), mdp.prior_at(seen)

    def categorical() -> tuple[Any, Any]:
        pair = distributions()
        for fn in pair:
            if not hasattr(fn, "logits"):
                raise _no_sum(fn)
        return pair

    return ActionSteps(
        terms=terms,
        own_terms=lambda: (trajectories.scales * (trajectories.log_prior - trajectories.log_policy)).detach(),
        log_policy=trajectories.log_policy,
        weights=lambda: (trajectories.scales * trajectories.mask).detach(),
        states=states,
        views=seen,
        actions=trajectories.actions,
        times=range(trajectories.horizon),
        temperature=trajectories.temperature,
        distributions=categorical,
        answers=lambda: [(policy(s, t), mdp.prior_at(s)) for t, s in enumerate(seen)],
    )


def over_time(critic: Callable[[Any, Any], Tensor], states: Any, times: Sequence[int], views: Any = None) -> Tensor:
    """Returns the critic at every step, asked once where it takes all steps at once.

    A critic that says what it sees (:func:`rl_as_inference.nouns.what_is_seen`) is asked with the views that the
    policy had, others with the states: a baseline may see what is hidden from the policy.
    """
    if views is not None and what_is_seen(critic) is not None:
        if takes_all_steps(critic) and isinstance(views, Histories):
            like = views.history.actions
            return critic(views, torch.arange(len(views), device=like.device)[:, None].expand(like.shape[:2]))
        states = list(views)
    if takes_all_steps(critic) and isinstance(states, Tensor):
        return critic(states, _time_tensor(times, states, 2))
    rows = [critic(state, t) for t, state in zip(times, states, strict=True)]
    return torch.stack(torch.broadcast_tensors(*rows))  # before anything was seen, one for all


def _time_tensor(times: Sequence[int], states: Tensor, dims: int) -> Tensor:
    """Returns times ``(T, N)`` that go with states ``(T, N, ...)``."""
    return torch.as_tensor(list(times), device=states.device)[:, None].expand(states.shape[:dims])


class _Logits:
    """Just enough of a categorical distribution for the exact sum."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
