"""What the agent of each trajectory believed of the hidden state, before each of its actions."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl_as_inference.arviz_data import PosteriorData
from rl_as_inference.exact import kalman
from rl_as_inference.exact.beliefs import first_beliefs, next_belief, tables_of
from rl_as_inference.nouns import Process
from rl_as_inference.processes import LinearGaussianPOMDP, PartiallyObservedMDP, TabularPOMDP
from rl_as_inference.randomness import seeded
from rl_as_inference.sampling.particle_filter import ParticleBelief, ParticleFilter

__all__ = ["QUANTILES", "belief_kind", "belief_size", "beliefs_of"]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""What a fan shows of a belief over real numbers."""

_NUM_PARTICLES = 500
_MOST_STATES = 100


def belief_kind(process: Process) -> str | None:
    """Returns ``"shares"`` for beliefs over up to 100 states, ``"fan"`` for real ones; None if no belief is drawn."""
    if isinstance(process, TabularPOMDP):
        return "shares" if process.num_states <= _MOST_STATES else None
    real = isinstance(process, PartiallyObservedMDP) and len(process.state_space.shape or ()) == 1
    return "fan" if real else None


def belief_size(process: Process, dimensions: int) -> int:
    """Returns how many numbers a belief of ``dimensions`` real ones, or of a finite state, is drawn with."""
    return process.num_states if isinstance(process, TabularPOMDP) else dimensions * len(QUANTILES)


def beliefs_of(process: Process, data: PosteriorData, index: Any) -> np.ndarray[Any, Any] | None:
    """Returns beliefs before each action of draws: ``(n, S, T)`` probabilities, or ``(n, d, 5, T)`` of a fan.

    None where the draws do not have what was observed.

    The fan is at :data:`QUANTILES`: exact for linear-Gaussian processes, else of 500 particles. NaN where the episode
    has ended, or the filter has no particle left.

    Args:
        process: whose state is hidden, see :func:`belief_kind`.
        data: draws with what was observed.
        index: which draws, ``(n,)``.
    """
    if not isinstance(process, PartiallyObservedMDP) or not {"observation", "observation_after"} & set(data.posterior):
        return None
    first = "observation" in data.posterior
    seen = _of_draws(data.posterior["observation" if first else "observation_after"].values, index)
    taken = _of_draws(data.posterior["action"].values, index)
    horizon = len(taken)
    alive = torch.arange(horizon)[:, None] < torch.as_tensor(data.sample_stats["length"].values).reshape(-1)[index]
    before, after = (seen[0], seen[1:]) if first else (None, seen)
    if isinstance(process, TabularPOMDP):
        found = _shares(process, before, after, taken)
    elif isinstance(process, LinearGaussianPOMDP):
        belief = kalman.belief(process, seen, taken[: horizon - 1])
        deviation = belief.covariance.diagonal(dim1=-2, dim2=-1).sqrt()[:, None]
        at = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(QUANTILES)).to(deviation)
        found = belief.mean[..., None] + deviation[..., None] * at
    else:
        found = _quantiles(process, before, after, taken, alive)
    found = found.cpu()
    found = torch.where(alive.reshape(alive.shape + (1,) * (found.dim() - 2)), found.double(), torch.nan)
    return found.movedim(0, -1).numpy()


def _of_draws(values: Any, index: Any) -> Tensor:
    """Returns ``(time, n, …)`` of ``(chain, draw, time, …)``."""
    return torch.as_tensor(np.asarray(values)).flatten(0, 1)[index].movedim(1, 0)


@torch.no_grad()
def _shares(process: TabularPOMDP, first: Tensor | None, after: Tensor, taken: Tensor) -> Tensor:
    """Returns ``(T, n, S)``; unlike :func:`exact.belief` it goes on where one of the episodes has ended."""
    tables = tables_of(process).detached()
    device = tables.initial.device
    joint, sums = first_beliefs(tables)
    at = torch.zeros(taken.shape[1], dtype=torch.long) if first is None else first
    rows = [joint[at] / sums[at][:, None]]
    for action, observation in zip(taken[:-1], after, strict=False):
        rows.append(next_belief(tables, rows[-1], action.to(device), observation.to(device))[0])
    return torch.stack(rows)


@torch.no_grad()
def _quantiles(
    process: PartiallyObservedMDP, first: Tensor | None, after: Tensor, taken: Tensor, alive: Tensor
) -> Tensor:
    """Returns ``(T, n, d, 5)`` of a filter of those that go on."""
    count = taken.shape[1]
    size = (process.state_space.shape or ())[0]
    found = torch.full((len(taken), count, size, len(QUANTILES)), torch.nan, dtype=torch.float64)
    particles = ParticleFilter(process, _NUM_PARTICLES)
    going = torch.arange(count)
    with seeded(0):  # the same run gives the same page
        device = process.begin(1).device
        belief = particles.start(None if first is None else first.to(device), count)
        found[0] = _weighted_quantiles(belief)
        for t in range(1, len(taken)):
            kept = alive[t, going]
            going, belief = going[kept], ParticleBelief(*(x[kept] for x in belief))
            if not len(going):
                break
            try:
                belief = particles.move(belief, *(x[t - 1, going].to(device) for x in (taken, after)))
            except ValueError:  # luck that no particle had
                break
            found[t, going] = _weighted_quantiles(belief)
    return found


def _weighted_quantiles(belief: ParticleBelief) -> Tensor:
    """Returns ``(n, d, 5)``."""
    values, order = belief.states.double().movedim(1, -1).sort(-1)
    weight = belief.log_weight.double().exp()[:, None].expand(values.shape).gather(-1, order)
    wanted = (
        torch.tensor(QUANTILES, dtype=torch.float64, device=values.device).expand(*values.shape[:-1], -1).contiguous()
    )
    place = torch.searchsorted(weight.cumsum(-1).contiguous(), wanted).clamp(max=values.shape[-1] - 1)
    return values.gather(-1, place).cpu()
