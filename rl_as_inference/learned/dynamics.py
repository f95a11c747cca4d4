"""Dynamics that are learned: a process whose transitions are an ensemble of networks with a prior."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import gymnasium
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from rl_as_inference.arguments import checked, checked_but
from rl_as_inference.host import in_turn
from rl_as_inference.learned.files import load_dynamics, save_dynamics
from rl_as_inference.learned.fitting import DynamicsFit, fit_dynamics
from rl_as_inference.learned.members import MemberDynamics
from rl_as_inference.learned.networks import DynamicsNetworks
from rl_as_inference.learned.prediction import Prediction
from rl_as_inference.learned.successors import CarriedStates, gaussian_log_density
from rl_as_inference.learned.transitions import TransitionsLike, read_transitions, size_of
from rl_as_inference.nouns import Policy
from rl_as_inference.processes import MarkovDecisionProcess
from rl_as_inference.processes.kernels import drawn
from rl_as_inference.processes.reparameterized import reparameterized
from rl_as_inference.trajectories import Trajectories, Transition

__all__ = ["LearnedDynamics"]

_MOST_STARTS = 1000
"""First states that are kept to begin from."""


class LearnedDynamics(MarkovDecisionProcess):
    """A process whose dynamics are unknown: networks with a prior, learned from transitions that were seen.

    The program draws which networks are the world, once for each trajectory, and walks in them:

        k ~ Uniform{0 … E-1},    (s' - s, r) ~ N(μ_k(s, a), diag σ_k(s, a)²)

    with the members ``θ_k`` of an :class:`~rl_as_inference.learned.AnchoredEnsemble` as draws of the posterior over
    weights. So what is not known stays the same along a trajectory, and luck is drawn at every step. The site is
    ``member``; ``rollout`` has it among the latents, ``posterior`` among its variables, and policies never see it.
    :meth:`member` is the process of one draw alone.

    Being a process, it is fitted in, planned in, compared and conditioned as any other. Rewards are what the networks
    expect (the noise of the reward's Gaussian counts in the likelihood alone), or a function that is known. Endings
    are a third part, learned if there were any: a state is terminal where its member says so with more than even odds.
    A planner that asks for one step of a state that carries no member yet gives the rows of its walks members in turn.

    Args:
        state_space: ``Box`` of shape ``(d,)``.
        action_space: ``Box(-1, 1, (d,))``, ``Box(-inf, inf, (d,))`` or ``Discrete`` from 0.
        ensemble: ``E``, how many draws of the posterior over weights.
        hidden_sizes: widths of the networks' hidden layers.
        prior_scale: of the prior over weights, in units of the usual one: how much the members differ where nothing
            was seen.
        reward: the reward where it is known, ``(state, action, next_state) -> (*batch,)``; None learns it.
        terminated: which states are terminal where that is known, ``state -> bool (*batch,)``; None learns it.
        initial: the distribution of first states; None takes those that trajectories began in (a kernel estimate), or
            all states seen where the data do not tell.
        horizon, discount, temperature: as of every process.
        dtype, device: of everything.

    Raises:
        ValueError: for other spaces (images among them), or numbers out of range.

    Example:
        >>> from rl_as_inference import models
        >>> truth, _ = models.pendulum(horizon=25), torch.manual_seed(0)
        >>> dynamics = LearnedDynamics(truth.state_space, truth.action_space, hidden_sizes=(16,), horizon=25)
        >>> found = dynamics.fit(truth.rollout(None, 8), num_updates=50)
        >>> found.num_transitions, dynamics.rollout(None, 3).latents["member"].shape
        (200, torch.Size([3]))
    """

    state_space: gymnasium.spaces.Box

    @checked_but("reward", "terminated")
    def __init__(
        self,
        state_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        *,
        ensemble: int = 5,
        hidden_sizes: Sequence[int] = (128, 128),
        prior_scale: float = 1.0,
        reward: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
        terminated: Callable[[Tensor], Tensor] | None = None,
        initial: Any = None,
        horizon: int | None = None,
        discount: float | Tensor = 1.0,
        temperature: float | Tensor = 1.0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(horizon=horizon, discount=discount, temperature=temperature)
        self.name = "learned dynamics"
        self.size, num_actions = size_of(state_space, "state_space"), size_of(action_space, "action_space")
        if isinstance(action_space, gymnasium.spaces.Discrete) and action_space.start != 0:
            raise ValueError(f"action_space must count from 0, got {action_space}")
        for what, function in (("reward", reward), ("terminated", terminated)):
            if function is not None and not callable(function):
                raise ValueError(f"{what} must be a function, or None to learn it; got {function!r}")
        if initial is not None and not isinstance(initial, torch.distributions.Distribution):
            raise ValueError(f"initial must be a distribution of first states, or None; got {initial!r:.80}")
        self.state_space, self.action_space = state_space, action_space  # type: ignore[assignment]
        self.ensemble, self.hidden_sizes, self.prior_scale = ensemble, tuple(hidden_sizes), prior_scale
        self.given_reward, self.given_terminated, self.given_initial = reward, terminated, initial
        self.networks = DynamicsNetworks(
            self.size,
            num_actions,
            ensemble=ensemble,
            hidden_sizes=hidden_sizes,
            prior_scale=prior_scale,
            learns_reward=reward is None,
            learns_endings=terminated is None,
        ).to(device=device, dtype=dtype or torch.get_default_dtype())
        self.noisy = True
        self._starts: Tensor | None = None
        self._latest: tuple[Tensor, Tensor, tuple[bool, int, int], Tensor] | None = None
        self._stepping = False

    @property
    def num_transitions(self) -> int:
        """How many transitions it was fitted to last; 0 if it never was."""
        return int(self.networks.num_seen)

    @property
    def like(self) -> Tensor:
        """A tensor of the precision and on the device of everything."""
        return self.networks.input_mean

    # Learning.

    @checked
    @in_turn
    def fit(
        self,
        data: TransitionsLike,
        num_updates: int = 2000,
        *,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        held_out: float = 0.1,
        patience: int = 5,
        recalibrate: bool = True,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> DynamicsFit:
        """Fits the networks to all of ``data``, from where they are, and returns how well they predict what was kept.

        Each member climbs ``E[log p(s', r | s, a, θ)] + log N(θ; θ₀, scale²) / n``: the ELBO of its posterior draw as a
        point guide (Pyro's ``AutoDelta``), a transition. Every so many-th transition is held out; every 100 updates the
        networks are tried on those, each member keeps its best, and after ``patience`` trials in which none got better
        it ends. Inputs and outputs are normalised by the data. Learned noise is at last scaled, one factor for each
        number, so that the 90 % intervals of the mixture hold 90 % of what was held out.

        Again with more data it goes on from the weights that there are.

        Args:
            data: trajectories, a learner's ``replay``, or :class:`~rl_as_inference.learned.Transitions`: all that was
                seen, not only what is new.
            num_updates: gradient steps at most.
            batch_size: transitions of a step, drawn for each member by itself.
            learning_rate: Adam's.
            held_out: the share that is held out; 0 for none, and then no early end.
            patience: see above.
            recalibrate: scale the noise.
            seed: of what is drawn; None follows PyTorch's generator, from where it is.
            generator: instead of a seed, where random numbers come from, :func:`rl_as_inference.randomness.drawing`.

        Raises:
            TypeError: for another kind of data.
            ValueError: for too few transitions (it says how many are needed), shapes that do not fit, NaN in a
                transition (the first one is named), or numbers out of range.
        """
        seen, first = read_transitions(data, self.state_space, self.action_space, self.like)
        found = fit_dynamics(
            self.networks,
            seen,
            num_updates=num_updates,
            batch_size=batch_size,
            learning_rate=learning_rate,
            held_out=held_out,
            patience=patience,
            recalibrate=recalibrate,
        )
        starts = seen.state if first is None else first
        self._starts = starts[torch.linspace(0, len(starts) - 1, min(len(starts), _MOST_STARTS)).long()].clone()
        self._latest = None
        return found

    def log_likelihood(self, data: TransitionsLike) -> float:
        """Returns the mean log likelihood of transitions under the mixture of members, in nats a transition.

        It is ``log 1/E Σ_k p(s', r | s, a, θ_k)``; of the next state alone, where the reward is known.

        Raises:
            ValueError: as :meth:`fit` does, or if it was never fitted.
        """
        seen, _ = read_transitions(data, self.state_space, self.action_space, self.like)
        prediction = self.predict(seen.state, seen.action)
        target = seen.next_state
        if self.given_reward is None:
            target = torch.cat([target, seen.reward[:, None]], -1)
        logs = gaussian_log_density(target, prediction.mean, prediction.scale)
        return float((logs.logsumexp(0) - np.log(self.ensemble)).mean())

    # The process.

    def predict(self, state: Tensor, action: Tensor) -> Prediction:
        """Returns every member's Gaussian over the next state and the reward, ``(E, *batch, d + 1)``.

        Args:
            state: ``(*batch, d)``.
            action: ``(*batch, *action)``.

        Raises:
            ValueError: if it was never fitted.
        """
        self._check_fitted("predict")
        batch = state.shape[:-1]
        inputs = self.networks.inputs(state.reshape(-1, self.size), action.reshape(-1, *action.shape[len(batch) :]))
        return Prediction(*(self._shaped(each, batch) for each in self._gaussian(inputs, state)))

    def _gaussian(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and scale of next state and reward of all members, ``(E, n, outputs)``."""
        mean, scale = self.networks.gaussian(inputs.expand(self.ensemble, *inputs.shape))
        mean[..., : self.size] += state.reshape(-1, self.size)
        return mean, scale

    @staticmethod
    def _shaped(values: Tensor, batch: torch.Size) -> Tensor:
        return values.reshape(*values.shape[:-2], *batch, values.shape[-1])

    def member(self, index: int | Tensor) -> MemberDynamics:
        """Returns the process of one draw of the posterior: the dynamics of one member, which every trajectory has.

        Args:
            index: which one, 0 to ``E - 1``; or one for each trajectory, ``(N,)``.

        Raises:
            ValueError: for a member that there is not.
        """
        return MemberDynamics(self, index)

    def initial(self) -> Any:
        if self.given_initial is not None:
            return self.given_initial
        self._check_fitted("begin a trajectory without initial=")
        assert self._starts is not None
        starts = self._starts
        count, size = starts.shape
        # Silverman's width, a tenth of it: enough for a density, too little to leave where states lie.
        width = 0.1 * starts.std(0, correction=0) * count ** (-1 / (size + 4))
        width = torch.where(width > 0, width, 1e-6).expand(count, size)
        weights = dist.Categorical(logits=torch.zeros(count, dtype=starts.dtype, device=starts.device))
        return dist.MixtureSameFamily(weights, dist.Normal(starts, width).to_event(1))

    def begin(self, num_trajectories: int, *, pathwise: bool = False) -> Tensor:
        state = super().begin(num_trajectories, pathwise=pathwise)
        member = torch.randint(self.ensemble, (num_trajectories, 1), device=state.device)
        return torch.cat([state, member.to(state)], -1)

    def transition(self, state: Tensor, action: Tensor) -> Any:
        """Returns ``p(s', k | s, a)`` over states that carry their member; of one that carries none, any member's."""
        self._check_fitted("a transition")
        if not self._carries(state):
            prediction = self.predict(state, action)
            return CarriedStates(prediction.mean[..., : self.size], prediction.scale[..., : self.size], None)
        mean, scale = self._outputs(state, action)
        member = state[..., -1]
        if not self.noisy:
            return dist.Delta(torch.cat([mean[..., : self.size], member[..., None]], -1), event_dim=1)
        return CarriedStates(mean[..., : self.size], scale[..., : self.size], member.long())

    def next_state(self, state: Tensor, action: Tensor, *, pathwise: bool = False) -> Tensor:
        if self._carries(state) and self.noisy and self.num_transitions:  # as its distribution draws, without it
            mean, scale = (each[..., : self.size] for each in self._outputs(state, action))
            return torch.cat([torch.addcmul(mean, scale, torch.randn_like(mean)), state[..., -1:]], -1)
        chances = self.transition(state, action)
        return reparameterized(chances, "the transition") if pathwise else drawn(chances)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """Returns what the next state's member expects to be earned, ``(*batch,)``; the mean, if it carries none."""
        if self.given_reward is not None:
            return self.given_reward(self.as_seen(state), action, self.as_seen(next_state))
        self._check_fitted("a reward")
        if not self._carries(state) and self._carries(next_state):
            state = torch.cat([state, next_state[..., -1:]], -1)
        if not self._carries(state):
            return self.predict(state, action).mean[..., self.size].mean(0)
        return self._outputs(state, action)[0][..., self.size]

    def terminated(self, state: Tensor) -> Tensor | None:
        if self.given_terminated is not None:
            return self.given_terminated(self.as_seen(state))
        if not self.networks.has_endings():
            return None
        seen, batch = self.as_seen(state), state.shape[:-1]
        inputs = self.networks.ending_inputs(seen.reshape(-1, self.size))
        if not self._carries(state):
            return self.networks.ending_logits(inputs.expand(self.ensemble, *inputs.shape)).mean(0).reshape(batch) > 0
        member = state[..., -1].reshape(-1).long()
        return self.networks.by_member(self.networks.ending_logits, inputs, member).reshape(batch) > 0

    def _outputs(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and scale of the members that states carry, ``(*batch, d + 1)``; of one question once."""
        # A graph is for one backward pass, and tensors of inference mode do not tell whether they were changed.
        graph = torch.is_grad_enabled() and (state.requires_grad or action.requires_grad)
        untold = state.is_inference() or action.is_inference()
        shared = self._stepping or not (graph or untold)
        now = (graph, 0, 0) if untold else (graph, state._version, action._version)
        kept = self._latest
        if shared and kept is not None and kept[0] is state and kept[1] is action and kept[2] == now:
            outputs = kept[3]
        else:
            batch = state.shape[:-1]
            seen, member = state[..., : self.size].reshape(-1, self.size), state[..., -1].reshape(-1).long()
            inputs = self.networks.inputs(seen, action.reshape(-1, *action.shape[len(batch) :]))
            found = self.networks.by_member(self.networks.gaussian_stacked, inputs, member)
            found[:, : self.size] += seen
            outputs = self._shaped(found, batch)
            self._latest = (state, action, now, outputs) if shared else None
        mean, scale = outputs.chunk(2, -1)
        return mean, scale

    # Walks carry their member behind the state.

    def _carries(self, state: Tensor) -> bool:
        return state.shape[-1] == self.size + 1

    def as_seen(self, state: Tensor) -> Tensor:
        return state[..., : self.size]

    def view(
        self,
        state: Tensor,
        action: Tensor | None = None,
        before: Any = None,
        kept: tuple[Tensor, Tensor] | None = None,
        *,
        pathwise: bool = False,
    ) -> Tensor:
        return self.as_seen(state)

    def lifted(self, state: Tensor) -> Tensor:
        """Returns states ``(N, d)`` with members in turn, ``(N, d + 1)``; others as they are.

        Of rows that do not share out evenly to the members the first one is drawn.
        """
        if self._carries(state):
            return state
        first: Any = 0 if len(state) % self.ensemble == 0 else torch.randint(self.ensemble, (), device=state.device)
        member = (torch.arange(len(state), device=state.device) + first) % self.ensemble
        return torch.cat([state, member.to(state)[:, None]], -1)

    def advance(
        self, state: Tensor, action: Tensor, t: int, alive: Tensor | None = None, *, pathwise: bool = False
    ) -> Transition:
        with self.one_step():
            return super().advance(self.lifted(state), action, t, alive, pathwise=pathwise)

    @contextmanager
    def one_step(self) -> Iterator[None]:
        """Within it a state and action ask the networks once, also where there are gradients."""
        self._stepping = True
        try:
            yield
        finally:
            self._stepping, self._latest = False, None

    def told(self, draws: Trajectories) -> Trajectories:
        member = draws.states[0, :, -1].long()
        return draws.with_latent("member", member, self.as_seen(draws.states))

    def _ask(self, policy: Policy, state: Any, t: Any) -> Any:
        return policy(self.as_seen(state), t)

    def with_unknowns_drawn(self) -> MarkovDecisionProcess:
        member = pyro.sample("member", dist.Categorical(logits=torch.zeros(self.ensemble, device=self.like.device)))
        return self.member(member)

    def _check_fitted(self, wanted: str) -> None:
        if not self.num_transitions:
            raise ValueError(f"dynamics were never fitted, and {wanted} needs that; fit(transitions) first")

    def certain(self) -> Self:
        """Returns the same dynamics without luck: every member does what it expects."""
        other = copy.copy(self)
        other.noisy, other._latest = False, None
        return other

    # Files.

    def state_dict(self) -> dict[str, Tensor]:
        """Returns everything that was learned, by name."""
        tensors = {f"networks.{name}": value for name, value in self.networks.state_dict().items()}
        return tensors if self._starts is None else {**tensors, "starts": self._starts}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts what :meth:`state_dict` returned in place.

        Raises:
            ValueError: if it does not fit.
        """
        own = {name.removeprefix("networks."): value for name, value in tensors.items() if name != "starts"}
        expected = {name: tuple(value.shape) for name, value in self.networks.state_dict().items()}
        if expected != {name: tuple(value.shape) for name, value in own.items()}:
            raise ValueError(
                "the dynamics that were saved have other spaces, hidden_sizes, ensemble or known functions"
            )
        self.networks.load_state_dict(own)
        self._starts = tensors["starts"].to(self.like) if "starts" in tensors else None
        self._latest = None

    def save(self, path: str | Path) -> None:
        """Writes networks, spaces and numbers to ``path``, whole or not at all; functions that were given are left out.

        Raises:
            ValueError: if the file cannot be written.
        """
        save_dynamics(self, path)

    @classmethod
    def load(cls, path: str | Path, **given: Any) -> LearnedDynamics:
        """Returns what :meth:`save` wrote to ``path``; loading it never runs code.

        Args:
            path: the file.
            **given: arguments in place of those in the file: ``reward``, ``terminated`` and ``initial``, which a file
                cannot hold, ``horizon``, ``device`` and the like.

        Raises:
            ValueError: if there is no such file, it is damaged or of something else, or a function is missing that the
                dynamics were made with.
        """
        return load_dynamics(cls, path, given)
