"""Posterior sampling in linear-Gaussian families."""

from __future__ import annotations

import torch

from rl_as_inference import exact
from rl_as_inference.exploration.conjugate import ConjugatePosterior
from rl_as_inference.exploration.exploration import Belief, Exploration
from rl_as_inference.nouns import Process
from rl_as_inference.processes import LinearGaussianMDP

__all__ = ["explore_linear"]

_COLD = 1e-8
"""The temperature that stands for 0: the action prior's pull on the gains is as small against the costs."""


def explore_linear(prior: ConjugatePosterior, truth: Process, num_episodes: int, runs: int) -> Exploration:
    """Returns the episodes of runs that each act by the linear rule that is best in a drawn world.

    Source: Abeille & Lazaric, "Improved regret bounds for Thompson sampling in linear quadratic control problems", ICML
    2018, without their rejection of unstable draws: episodes have an end.
    """
    best = base = None
    if isinstance(truth, LinearGaussianMDP):
        cold = truth.at_temperature(_COLD)
        best = float(exact.expected_return(truth, exact.plan(cold)))
        base = float(exact.expected_return(truth, None))
    posteriors = [prior] * runs
    returns, regret, held = [], [], [_belief(posteriors, 0)]
    for episode in range(1, num_episodes + 1):
        earned, lost = [], []
        for run, posterior in enumerate(posteriors):
            values = {name: value[0] for name, value in posterior.draw(1).items()}
            world = posterior.process_of(values)
            rule = exact.plan(world.at_temperature(_COLD))
            walk = truth.rollout(rule, 1)
            earned.append(walk.returns(discounted=True).double())
            if best is not None:
                lost.append(best - exact.expected_return(truth, rule).double()[None])
            state, action, after = (x.flatten(0, 1) for x in (walk.states[:-1], walk.actions, walk.states[1:]))
            posteriors[run] = posterior.updated(state, action, walk.rewards.flatten(), after)
        returns.append(torch.cat(earned))
        if lost:
            regret.append(torch.cat(lost))
        if episode == num_episodes or episode & (episode - 1) == 0:
            held.append(_belief(posteriors, episode))
    lost_at = torch.stack(regret, 1) if regret else None
    return Exploration(torch.stack(returns, 1), lost_at, best, base, held)


def _belief(posteriors: list[ConjugatePosterior], episode: int) -> Belief:
    sites = {}
    for name, mean in posteriors[0].mean().items():
        means = torch.stack([p.mean()[name] for p in posteriors])
        variances = torch.stack([p.covariance(name).diagonal().reshape(mean.shape) for p in posteriors])
        sites[name] = torch.stack([means, variances])
    return Belief(episode, sites=sites)
