"""Energy-based policies, ``π(a|s) ∝ p(a|s) exp(Q(s, a)/α)``: the policies of soft Q-learning."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import gymnasium
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from rl_as_inference.arguments import checked
from rl_as_inference.checks import check_count, check_horizon
from rl_as_inference.factored import Factors, JointCategorical
from rl_as_inference.randomness import drawn_from_logits
from rl_as_inference.state_layout import layout_of
from rl_as_inference.state_time_network import NUM_TIME_FEATURES, check_hidden_sizes, time_features

__all__ = ["EnergyBased", "EnergyBasedPolicy", "SoftmaxPolicy", "SteinSampler", "resampled"]


class SoftmaxPolicy(nn.Module):
    """The softmax of a soft Q over discrete actions.

    Haarnoja et al. (2017, arXiv:1702.08165), theorem 1.

    Args:
        q: ``state -> (num_critics, *batch, A)`` in reward units; the least counts.
        temperature: a module without arguments that returns α.
        log_prior: ``state -> log p(a|s)`` of all actions, nats; uniform by default.
        takes_time: ``q`` is asked for ``q(state, t=t)``; else the policy is stationary.
        sizes: of the factors of an action, whose joint actions these are; None where an action is one integer.

    Example:
        >>> from rl_as_inference.critics import QEnsemble
        >>> box, actions = gymnasium.spaces.Box(-1, 1, (3,)), gymnasium.spaces.Discrete(4)
        >>> policy = SoftmaxPolicy(QEnsemble(box, actions), lambda: torch.tensor(1e6))
        >>> policy(torch.zeros(3), 0).probs
        tensor([0.2500, 0.2500, 0.2500, 0.2500], grad_fn=<SoftmaxBackward0>)
    """

    batch_steps = True

    @checked
    def __init__(
        self,
        q: nn.Module,
        temperature: Callable[[], Tensor],
        log_prior: Callable[[Tensor], Tensor] | None = None,
        *,
        takes_time: bool = False,
        sizes: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.q, self.temperature, self.log_prior, self.takes_time = q, temperature, log_prior, takes_time
        self.factors = None if sizes is None else Factors(sizes)

    def forward(self, state: Tensor, t: int | Tensor) -> Any:
        values = self.q(state, t=t) if self.takes_time else self.q(state)
        logits = values.amin(0) / self.temperature().detach()
        logits = logits if self.log_prior is None else logits + self.log_prior(state)
        return dist.Categorical(logits=logits) if self.factors is None else JointCategorical(logits, self.factors)


class SteinSampler(nn.Module):
    """A network from a state and noise to an action: draws of an energy-based policy, amortized.

    ``forward(state, noise, t)`` is the action before squashing, ``(*batch, d)``; noise has its shape.
    Trained by :meth:`direction` (Wang & Liu 2016, arXiv:1611.01722; Haarnoja et al. 2017,
    arXiv:1702.08165, section 3.3).

    Args:
        state_space: ``Box``.
        action_size: ``d``.
        horizon: the number of steps; None for draws that do not look at ``t``.
        hidden_sizes: widths of the hidden layers.
    """

    @checked
    def __init__(
        self,
        state_space: gymnasium.Space[Any],
        action_size: int,
        *,
        horizon: int | None = None,
        hidden_sizes: Sequence[int] = (256, 256),
    ) -> None:
        super().__init__()
        check_hidden_sizes(hidden_sizes)
        check_count("action_size", action_size)
        check_horizon(horizon)
        if not isinstance(state_space, gymnasium.spaces.Box):
            raise ValueError(f"state_space must be a Box for a sampler of continuous actions, got {state_space}")
        self.state_dims, self.action_size, self.horizon = len(state_space.shape), action_size, horizon
        self.layout = layout_of(state_space)
        seen = math.prod(state_space.shape) if self.layout is None else self.layout.num_inputs
        inputs = seen + action_size + (0 if horizon is None else NUM_TIME_FEATURES)
        sizes = [inputs, *hidden_sizes]
        layers: list[nn.Module] = []
        for size, after in pairwise(sizes):
            layers += [nn.Linear(size, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], action_size))

    def forward(self, state: Tensor, noise: Tensor, t: int | Tensor = 0) -> Tensor:
        seen = state.flatten(-self.state_dims) if self.state_dims else state[..., None]
        inputs = [seen if self.layout is None else self.layout.inputs(seen.to(noise.dtype)), noise]
        if self.horizon is not None:
            features = time_features(t, self.horizon, noise)
            inputs.append(features.expand(*noise.shape[:-1], NUM_TIME_FEATURES))
        out: Tensor = noise + self.layers(torch.cat(inputs, -1))
        return out

    @staticmethod
    def direction(fixed: Tensor, scores: Tensor, moved: Tensor) -> Tensor:
        """Returns Stein variational directions for particles: towards the density and apart.

        ``φ(u) = mean_j [κ(u_j, u) ∇ log p(u_j) + ∇_{u_j} κ(u_j, u)]`` (Liu & Wang 2016, arXiv:1608.04471,
        equation 8), with a Gaussian kernel whose width is the median distance.

        Args:
            fixed: ``u_j``, ``(*batch, J, d)``.
            scores: ``∇ log p(u_j)`` in nats per unit, likewise.
            moved: ``u``, ``(*batch, I, d)``.

        Returns:
            ``(*batch, I, d)``.

        Example:
            >>> alone = torch.zeros(1, 1, 1)
            >>> SteinSampler.direction(alone, 3.0 + alone, alone)
            tensor([[[3.]]])
        """
        difference = fixed[..., :, None, :] - moved[..., None, :, :]
        distance = difference.square().sum(-1)
        flat = distance.flatten(-2).sort(-1).values
        count = fixed.shape[-2]
        width = (flat[..., flat.shape[-1] // 2] / math.log(count + 1)).clamp(min=1e-6)[..., None, None]
        kernel = (-distance / width).exp()
        apart = -2 / width[..., None] * difference * kernel[..., None]
        return (kernel[..., None] * scores[..., :, None, :] + apart).mean(-3)


class EnergyBased(TorchDistribution):
    """The density ``p(a) exp((Q(a) - V)/α)`` on the unit box, under the uniform prior ``p``.

    ``V`` is estimated by importance sampling from the uniform density. Draws are approximate, and log
    probabilities are those of the energy, not of the draws.

    Args:
        draw: ``shape -> actions``, ``(*shape, *batch, d)``.
        q: ``action -> Q`` in reward units, ``(*shape, *batch)``.
        value: ``V``, ``(*batch,)`` in reward units.
        temperature: α.
        size: ``d``.
        num_candidates: draws of which the best is :attr:`deterministic`.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.independent(constraints.interval(-1.0, 1.0), 1)
    has_rsample = False

    def __init__(
        self,
        draw: Callable[[tuple[int, ...]], Tensor],
        q: Callable[[Tensor], Tensor],
        value: Tensor,
        temperature: Tensor,
        size: int,
        num_candidates: int = 32,
    ) -> None:
        self.draw, self.q, self.value, self.temperature = draw, q, value, temperature
        self.log_prior, self.num_candidates = -size * math.log(2), num_candidates
        super().__init__(value.shape, torch.Size([size]), validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            return self.draw(tuple(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.log_prior + (self.q(value) - self.value) / self.temperature

    @property
    def deterministic(self) -> Tensor:
        """The best of some draws."""
        draws = self.sample((self.num_candidates,))
        best = self.q(draws).argmax(0)
        return draws.gather(0, best[None, ..., None].expand(1, *draws.shape[1:])).squeeze(0)


class EnergyBasedPolicy(nn.Module):
    """A soft Q over continuous actions as a policy.

    Its draws are those of a :class:`SteinSampler`, or without one the draws of :func:`resampled`.

    Args:
        q: ``(state, action) -> (num_critics, *batch)`` in reward units; the least counts.
        sampler: the sampler, or None.
        temperature: a module without arguments that returns α.
        state_dims: how many dimensions a state has.
        action_size: ``d``.
        num_draws: uniform draws for the normaliser in each state, and for each resampled action.
        takes_time: ``q`` and ``sampler`` are asked with ``t`` as a last argument; else the policy is stationary.
    """

    batch_steps = False

    @checked
    def __init__(
        self,
        q: nn.Module,
        sampler: SteinSampler | None,
        temperature: Callable[[], Tensor],
        *,
        state_dims: int,
        action_size: int,
        num_draws: int = 256,
        takes_time: bool = False,
    ) -> None:
        super().__init__()
        for name, given in (("q", q), ("temperature", temperature)):
            if not callable(given):
                raise ValueError(f"{name} must be a module, got {given!r}")
        for name, size in (("action_size", action_size), ("num_draws", num_draws)):
            check_count(name, size)
        self.q, self.sampler, self.temperature, self.num_draws = q, sampler, temperature, num_draws
        self.takes_time = takes_time
        check_count("state_dims", state_dims, least=0)
        self.state_dims, self.action_size = state_dims, action_size

    def least(self, state: Tensor, action: Tensor, t: int | Tensor = 0) -> Tensor:
        """Returns the least ``Q`` of the ensemble for actions ``(*shape, *batch, d)``."""
        lead = action.dim() - 1 - (state.dim() - self.state_dims)
        states = state.expand((*action.shape[:lead], *state.shape))
        value: Tensor = self.q(states, action, *self._time(t)).amin(0)
        return value

    def _time(self, t: int | Tensor) -> tuple[int | Tensor, ...]:
        return (t,) if self.takes_time else ()

    def forward(self, state: Tensor, t: int | Tensor) -> Any:
        size, alpha = self.action_size, self.temperature().detach()
        batch = state.shape[: state.dim() - self.state_dims]
        options: dict[str, Any] = {"dtype": state.dtype, "device": state.device}
        uniform = 2 * torch.rand(self.num_draws, *batch, size, **options) - 1
        # Uniform proposals under a uniform prior: their ratio is one.
        value = alpha * ((self.least(state, uniform, t) / alpha).logsumexp(0) - math.log(self.num_draws))

        def draw(shape: tuple[int, ...]) -> Tensor:
            if self.sampler is None:
                candidates = 2 * torch.rand(*shape, *batch, self.num_draws, size, **options) - 1
                energies = self.least(state, candidates.movedim(-2, 0), t).movedim(0, -1) / alpha
                return resampled(candidates, energies)
            states = state.expand((*shape, *state.shape))
            limit = 1 - torch.finfo(state.dtype).eps
            noise = torch.randn(*shape, *batch, size, **options)
            action: Tensor = self.sampler(states, noise, *self._time(t)).tanh().clamp(-limit, limit)
            return action

        return EnergyBased(draw, lambda action: self.least(state, action, t), value, alpha, size)


def resampled(candidates: Tensor, log_weights: Tensor) -> Tensor:
    """Returns one of each row of candidates, drawn in proportion to its weight, ``(*batch, d)``.

    Sampling-importance resampling (Rubin 1988): of ``J`` uniform candidates weighted by ``exp(Q/α)``
    the one drawn tends to the energy-based policy as ``J`` grows. It keeps every mode that some
    candidates fall on, so it is for actions of few dimensions.

    Args:
        candidates: ``(*batch, J, d)``.
        log_weights: ``(*batch, J)``.

    Example:
        >>> resampled(torch.tensor([[1.0], [2.0]]), torch.tensor([-100.0, 0.0]))
        tensor([2.])
    """
    index = drawn_from_logits(log_weights)[..., None, None]
    return candidates.gather(-2, index.expand(*index.shape[:-1], candidates.shape[-1])).squeeze(-2)
