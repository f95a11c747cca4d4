"""Fitting an ensemble of dynamics to transitions: likelihood and prior, held-out data, an early end."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from rl_as_inference.checks import check_count, check_positive
from rl_as_inference.learned.anchored import AnchoredEnsemble, bounded_log_scale
from rl_as_inference.learned.networks import DynamicsNetworks
from rl_as_inference.learned.successors import gaussian_log_density
from rl_as_inference.learned.transitions import Transitions

__all__ = ["DynamicsFit", "fit_dynamics", "least_transitions"]

_TRY_EVERY = 100
"""Updates between trials on what is held out."""
_FARTHEST = 5.0
"""Errors on what is held out count for this many standard deviations at most: else a few surprises would be all."""
_NOISE_BOUNDS = (0.3, 30.0)
"""Between which noise is scaled at last."""
_FEWEST_TO_SCALE = 20
"""Held-out transitions below which it is not."""


@dataclass(frozen=True)
class DynamicsFit:
    """What :meth:`LearnedDynamics.fit` returns.

    Attributes:
        num_transitions: how many there were.
        num_held_out: how many of them were held out.
        num_updates: gradient steps taken.
        log_likelihood: of what was trained on, nats a transition, mean of the members at the last trial.
        held_out_log_likelihood: of what was not, with each member at its best; NaN if nothing was held out. Errors
            beyond five standard deviations count as five here.
        history: of every trial: updates so far, and both numbers then.
    """

    num_transitions: int
    num_held_out: int
    num_updates: int
    log_likelihood: float
    held_out_log_likelihood: float
    history: list[tuple[int, float, float]]


def least_transitions(networks: DynamicsNetworks) -> int:
    """Returns how many transitions are needed: two for each input, and twenty."""
    return max(20, 2 * networks.num_inputs)


def fit_dynamics(
    networks: DynamicsNetworks,
    seen: Transitions,
    *,
    num_updates: int,
    batch_size: int,
    learning_rate: float,
    held_out: float,
    patience: int,
    recalibrate: bool,
) -> DynamicsFit:
    """Fits networks to transitions in place, and returns how that went; arguments as of :meth:`LearnedDynamics.fit`.

    Raises:
        ValueError: for too few transitions, or numbers out of range.
    """
    for name, value in (("num_updates", num_updates), ("batch_size", batch_size), ("patience", patience)):
        check_count(name, value)
    check_positive("learning_rate", learning_rate)
    if not 0 <= held_out <= 0.5:
        raise ValueError(f"held_out must be a share from 0 to 0.5, got {held_out}")
    count, needed = len(seen), least_transitions(networks)
    if count < needed:
        raise ValueError(f"data has {count} transitions, and {needed} are needed to fit {networks.num_inputs} inputs")
    with torch.no_grad():
        _normalise(networks, seen)
        inputs = networks.inputs(seen.state, seen.action)
        targets = (_outputs(networks, seen) - networks.output_mean) / networks.output_scale
    # In the order of the data, so that what was held out stays so when more is added.
    every = round(1 / held_out) if held_out else count + 1
    is_held = torch.arange(count, device=inputs.device) % every == every - 1
    train, held = (~is_held).nonzero()[:, 0], is_held.nonzero()[:, 0]
    networks.num_seen.fill_(count)
    networks.num_endings.fill_(int(seen.terminated.sum()))
    with torch.enable_grad():
        found = _climbed(networks, inputs, targets, train, held, num_updates, batch_size, learning_rate, patience)
        if networks.has_endings():
            _fit_endings(networks, seen, train, found.num_updates, batch_size, learning_rate)
    with torch.no_grad():
        networks.noise.fill_(1.0)
        if recalibrate and len(held) >= _FEWEST_TO_SCALE:
            mean, raw = networks.transition(inputs[held].expand(networks.ensemble, -1, -1)).chunk(2, -1)
            networks.noise.copy_(_calibrating_factor(targets[held], mean, bounded_log_scale(raw).exp()))
    return found


def _calibrating_factor(target: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Returns what noise is to be multiplied by for the mixture's 90 % intervals to hold 90 % of targets, ``(o,)``.

    By bisection of its logarithm. The members' differences stay as they are.

    Args:
        target: ``(n, o)``.
        mean, scale: of every member, ``(E, n, o)``.
    """
    low, high = (torch.full_like(target[0], math.log(bound)) for bound in _NOISE_BOUNDS)
    for _ in range(20):
        middle = (low + high) / 2
        below = torch.special.ndtr((target - mean) / (scale * middle.exp())).mean(0)
        few = ((below - 0.5).abs() < 0.45).to(target.dtype).mean(0) < 0.9
        low, high = torch.where(few, middle, low), torch.where(few, high, middle)
    return ((low + high) / 2).exp()


def _climbed(
    networks: DynamicsNetworks,
    inputs: Tensor,
    targets: Tensor,
    train: Tensor,
    held: Tensor,
    num_updates: int,
    batch_size: int,
    learning_rate: float,
    patience: int,
) -> DynamicsFit:
    """Climbs the log likelihood and prior of every member, leaves each at its best, and returns how that went."""
    ensemble, number = networks.transition, networks.ensemble
    per_unit = -networks.output_scale.log().sum()  # from normalised numbers to those of the data

    def likelihood(values: Tensor, wanted: Tensor, farthest: float = math.inf) -> Tensor:
        """Returns the mean log likelihood of each member, ``(E,)`` in nats of normalised numbers."""
        mean, raw = values.chunk(2, -1)
        scale = bounded_log_scale(raw).exp()
        error = (wanted - mean).clamp(-farthest * scale, farthest * scale) if math.isfinite(farthest) else wanted - mean
        return gaussian_log_density(error, torch.zeros_like(error), scale).mean(-1)

    best = torch.full((number,), -torch.inf, dtype=inputs.dtype, device=inputs.device)
    kept = {name: value.detach().clone() for name, value in ensemble.named_parameters()}
    history: list[tuple[int, float, float]] = []
    since, update, running = 0, 0, torch.zeros((), dtype=inputs.dtype, device=inputs.device)
    with _trained(ensemble, learning_rate) as (parameters, optimiser):
        for update in range(1, num_updates + 1):
            _slow_down(optimiser, learning_rate, update / num_updates)
            rows = train[torch.randint(len(train), (number, batch_size), device=train.device)]
            own = likelihood(ensemble(inputs[rows], parameters), targets[rows])
            loss = -own.sum() + ensemble.anchor_penalty(parameters).sum() / len(train)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            running = running + own.detach().mean()
            if update % _TRY_EVERY and update != num_updates:
                continue
            steps = update % _TRY_EVERY or _TRY_EVERY
            told = float(running / steps + per_unit)
            running = torch.zeros_like(running)
            if not len(held):
                history.append((update, told, float("nan")))
                continue
            with torch.no_grad():
                others = inputs[held].expand(number, -1, -1)
                now = likelihood(ensemble(others, parameters), targets[held], _FARTHEST)
                better = now > best
                best = torch.where(better, now, best)
                for name, value in parameters.items():
                    kept[name][better] = value[better]
            history.append((update, told, float(now.mean() + per_unit)))
            since = 0 if bool(better.any()) else since + 1
            if since >= patience:
                break
        if not len(held):
            kept = {name: value.detach().clone() for name, value in parameters.items()}
    with torch.no_grad():
        for name, value in ensemble.named_parameters():
            value.copy_(kept[name])
    told_held = float(best.mean() + per_unit) if len(held) else float("nan")
    return DynamicsFit(len(inputs), len(held), update, history[-1][1], told_held, history)


def _fit_endings(
    networks: DynamicsNetworks,
    seen: Transitions,
    train: Tensor,
    num_updates: int,
    batch_size: int,
    learning_rate: float,
) -> None:
    """Fits which states are terminal: none of those acted in was, those that ended were; others are not known."""
    ensemble = networks.ending
    assert ensemble is not None
    with torch.no_grad():
        lived = networks.ending_inputs(seen.state[train])
        ended = networks.ending_inputs(seen.next_state[seen.terminated])
    half = max(1, batch_size // 2)
    with _trained(ensemble, learning_rate) as (parameters, optimiser):
        for update in range(1, num_updates + 1):
            _slow_down(optimiser, learning_rate, update / num_updates)
            parts = [
                each[torch.randint(len(each), (networks.ensemble, half), device=each.device)] for each in (lived, ended)
            ]
            logits = ensemble(torch.cat(parts, 1), parameters)[..., 0]
            # Each kind has half of the say: terminal states are few.
            losses = softplus(torch.cat([logits[:, :half], -logits[:, half:]], 1)).mean(1)
            penalty = ensemble.anchor_penalty(parameters)
            loss = losses.sum() + penalty.sum() / len(train)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        for name, value in ensemble.named_parameters():
            value.copy_(parameters[name])


@contextmanager
def _trained(
    ensemble: AnchoredEnsemble, learning_rate: float
) -> Iterator[tuple[dict[str, Tensor], torch.optim.Optimizer]]:
    """Yields copies of the parameters that ask for gradients, and their Adam."""
    parameters = {name: value.detach().clone().requires_grad_() for name, value in ensemble.named_parameters()}
    yield parameters, torch.optim.Adam(list(parameters.values()), lr=learning_rate)


def _slow_down(optimiser: torch.optim.Optimizer, learning_rate: float, share: float) -> None:
    """Sets the step size of a fit that has done a share of its updates: it falls by a cosine to a hundredth."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate * (0.01 + 0.495 * (1 + math.cos(math.pi * share)))


def _outputs(networks: DynamicsNetworks, seen: Transitions) -> Tensor:
    """Returns what is to be predicted, ``(n, o)``: the change of state, and the reward if that is learned."""
    change = seen.next_state - seen.state
    return torch.cat([change, seen.reward[:, None]], -1)[:, : networks.num_outputs]


def _normalise(networks: DynamicsNetworks, seen: Transitions) -> None:
    """Sets the units of inputs and outputs: mean and standard deviation of the data, 1 for what never varies."""
    inputs, outputs = networks.raw_inputs(seen.state, seen.action), _outputs(networks, seen)
    for values, mean, scale in (
        (inputs, networks.input_mean, networks.input_scale),
        (outputs, networks.output_mean, networks.output_scale),
    ):
        mean.copy_(values.mean(0))
        spread = values.std(0, correction=0)
        # What varies by rounding alone does not vary.
        varies = spread > 1e-6 * values.abs().amax(0).clamp(min=torch.finfo(values.dtype).tiny)
        scale.copy_(torch.where(varies, spread, 1.0))
    # Of a number of the state that never moves the unit is free, and small: so is then what is wrong.
    size = networks.num_states
    largest = seen.state.abs().amax(0)
    still = outputs[:, :size].abs().amax(0) <= 1e-6 * largest
    small = 1e-3 * torch.where(largest > 0, largest, 1.0)
    networks.output_scale[:size] = torch.where(still, small, networks.output_scale[:size])
