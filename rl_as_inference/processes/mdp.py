"""Markov decision processes in parts: a Pyro program when called, fast tensors when rolled out."""

import contextlib
import copy
import math
from collections.abc import Iterator
from typing import Any, Self

import gymnasium
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from rl_as_inference.checks import check_discount, check_horizon, check_temperature
from rl_as_inference.nouns import Policy, takes_all_steps
from rl_as_inference.processes.kernels import drawn
from rl_as_inference.program import act, reward, steps, terminate
from rl_as_inference.program.readings import check_answer
from rl_as_inference.trajectories import Trajectories

__all__ = ["MarkovDecisionProcess", "unvalidated"]


_UNSET: Any = object()


class MarkovDecisionProcess:
    """A reinforcement-learning problem given by its parts.

    Override :meth:`initial`, :meth:`transition` and :meth:`reward`, and optionally :meth:`prior`
    and :meth:`terminated`; set ``state_space`` and ``action_space``. Calling the process runs its
    Pyro program, with sites ``state_t``, ``action_t`` and ``reward_t`` in the plate
    ``trajectories``; :meth:`rollout` is the fast reading of the same process.

    Args:
        horizon: the number of steps, or None.
        discount: γ in [0, 1].
        temperature: α > 0, in reward units per nat.

    Raises:
        ValueError: if one of them is out of range.

    Example:
        >>> class Bandit(MarkovDecisionProcess):
        ...     state_space, action_space = gymnasium.spaces.Discrete(1), gymnasium.spaces.Discrete(3)
        ...     def initial(self):
        ...         return dist.Categorical(torch.ones(1))
        ...     def transition(self, state, action):
        ...         return dist.Categorical(torch.ones(*state.shape, 1))
        ...     def reward(self, state, action, next_state):
        ...         return action.float()
        >>> _ = pyro.set_rng_seed(0)
        >>> Bandit(horizon=1).rollout(None, 4).rewards
        tensor([[2., 2., 1., 2.]])
    """

    state_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    horizon: int | None = None
    discount: float | Tensor = 1.0
    temperature: float | Tensor = 1.0
    absorbing = False
    """Whether the transition itself keeps terminal states where they are."""
    has_exact_answers = False
    """Whether :mod:`rl_as_inference.exact` answers for this kind of process."""
    has_uniform_prior = True
    """Whether the action prior is uniform over the action space; false where a subclass overrides :meth:`prior`."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "prior" in vars(cls) and "has_uniform_prior" not in vars(cls):
            cls.has_uniform_prior = False

    def __init__(
        self,
        *,
        horizon: int | None = _UNSET,
        discount: float | Tensor = _UNSET,
        temperature: float | Tensor = _UNSET,
    ) -> None:
        # What is not given is the class's own, so that a subclass may simply set attributes.
        self.horizon = check_horizon(self.horizon if horizon is _UNSET else horizon)
        self.discount = self.discount if discount is _UNSET else discount
        self.temperature = self.temperature if temperature is _UNSET else temperature
        check_discount(self.discount)
        check_temperature(self.temperature)

    @property
    def name(self) -> str:
        """What tables and pictures call the process: its class's name, unless set."""
        return getattr(self, "_name", type(self).__name__)

    @name.setter
    def name(self, name: str) -> None:
        self._name = name

    def initial(self) -> Any:
        """Returns the distribution of ``s_0``, of batch shape ``()``."""
        raise NotImplementedError(f"{type(self).__name__} must override initial() -> Distribution")

    def transition(self, state: Tensor, action: Tensor) -> Any:
        """Returns the distribution of ``s_{t+1}``, of the batch shape of ``state``."""
        raise NotImplementedError(f"{type(self).__name__} must override transition(state, action) -> Distribution")

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """Returns the reward in reward units, of the batch shape of ``state``."""
        raise NotImplementedError(f"{type(self).__name__} must override reward(state, action, next_state) -> Tensor")

    def prior(self, state: Tensor) -> Any:
        """Returns the action prior ``p(a|s)``: uniform over the action space unless overridden.

        Raises:
            ValueError: if the action space is neither Discrete nor the unit box ``[-1, 1]^d``.
        """
        batch = self.batch_shape(state)
        space = self.action_space
        dtype = state.dtype if state.is_floating_point() else torch.get_default_dtype()
        if isinstance(space, gymnasium.spaces.Discrete):
            return dist.Categorical(logits=torch.zeros(*batch, int(space.n), dtype=dtype, device=state.device))
        if isinstance(space, gymnasium.spaces.Box) and (space.low == -1).all() and (space.high == 1).all():
            low = -torch.ones(*batch, *space.shape, dtype=dtype, device=state.device)
            # A draw of exactly ±1 is in the box.
            high = torch.nextafter(-low, torch.full_like(low, 2.0))  # torch leaves the upper bound out
            return dist.Uniform(low, high, validate_args=False).to_event(len(space.shape))
        raise ValueError(
            f"action_space {space} has no uniform prior here: use Discrete(n) or Box(-1, 1, shape) and "
            f"rescale inside transition(), or override prior(state)"
        )

    def terminated(self, state: Tensor) -> Tensor | None:
        """Returns which states are terminal, bool of the batch shape of ``state``; None if none ever is."""
        return None

    def __call__(self, num_trajectories: int = 1, *, markov: bool = False) -> Tensor:
        """Runs the Pyro program of ``num_trajectories`` trajectories and returns their last state.

        ``markov=True`` is for enumerating the program over a long horizon; see :func:`steps`.
        """
        horizon = self.finite_horizon("running the program")
        if num_trajectories < 1:
            raise ValueError(f"num_trajectories must be >= 1, got {num_trajectories}")
        with pyro.plate("trajectories", num_trajectories, dim=-1):
            state: Tensor = pyro.sample("state_0", self.initial())
            for t in steps(horizon, self.discount, markov=markov, like=self._like(state)):
                done = self.terminated(state)
                if done is not None:
                    terminate(torch.as_tensor(done, device=state.device), absorbing=self.absorbing)
                action = act(f"action_{t}", state, self.prior(state))
                next_state = pyro.sample(f"state_{t + 1}", self.transition(state, action))
                reward(f"reward_{t}", self.reward(state, action, next_state), self.temperature)
                state = next_state
        return state

    def rollout(self, policy: Policy | None, num_trajectories: int, *, pathwise: bool = False) -> Trajectories:
        """Returns ``num_trajectories`` trajectories of ``policy``, drawn without effect handlers.

        ``log_policy`` is differentiable in the policy's parameters. A policy with a true
        ``batch_steps`` attribute, as those of ``guides`` have, is asked for the log probabilities of
        all steps at once, if its actions are discrete.

        Args:
            policy: a callable ``(state, t) -> Distribution``; None for the action prior.
            num_trajectories: ``N``.
            pathwise: draw actions and states by ``rsample``, so that rewards and log probabilities
                are differentiable through the dynamics.

        Raises:
            ValueError: if the horizon is None, a reward is NaN (the step is named), or ``pathwise``
                is asked of a distribution that is not reparameterized.
        """
        horizon = self.finite_horizon("rollout")
        if num_trajectories < 1:
            raise ValueError(f"num_trajectories must be >= 1, got {num_trajectories}")
        with unvalidated():
            return self._rollout(policy, num_trajectories, horizon, pathwise)

    def _rollout(self, policy: Policy | None, num_trajectories: int, horizon: int, pathwise: bool) -> Trajectories:
        draw = _rsample if pathwise else _sample
        state = draw(self.initial().expand([num_trajectories]), "the initial state")
        # Whether log π of all steps may be had afterwards, from the values of the actions. A squashed
        # action cannot be unsquashed near its bounds, so such a policy is asked while it remembers the draw.
        batched = False
        if policy is not None and not callable(policy):
            raise ValueError(f"policy must be a callable (state, t) -> Distribution, or None; got {policy!r}")
        if not pathwise and policy is not None and takes_all_steps(policy):
            with torch.no_grad():
                batched = not check_answer(policy(state, 0), self.prior(state), "at step 0").has_rsample
        grad = torch.is_grad_enabled() and not batched
        states, actions, rewards, masks, log_prior, log_policy = [state], [], [], [], [], []
        alive: Tensor | None = None
        for t in range(horizon):
            done = self.terminated(state)
            if done is not None:
                living = ~torch.as_tensor(done, device=state.device).expand(num_trajectories)
                alive = living if alive is None else alive & living
            with torch.set_grad_enabled(grad):
                prior = self.prior(state)
                chosen = prior if policy is None else check_answer(policy(state, t), prior, f"at step {t}")
                action = draw(chosen, "the policy")
                if not batched:
                    log_prior.append(prior.log_prob(action))
                    log_policy.append(log_prior[-1] if policy is None else chosen.log_prob(action))
            with torch.set_grad_enabled(torch.is_grad_enabled() and pathwise):
                proposed = self.next_state(state, action, pathwise=pathwise)
            if proposed.shape != state.shape:
                raise ValueError(
                    f"transition(state, action) must give states of shape {tuple(state.shape)}, got "
                    f"{tuple(proposed.shape)} at step {t}; keep the batch, and declare one state with .to_event(n)"
                )
            rewards.append(self._checked_reward(self.reward(state, action, proposed), num_trajectories, state, t))
            if alive is not None:
                masks.append(alive)
                if not self.absorbing:
                    still = alive.reshape(alive.shape + (1,) * (state.dim() - 1))
                    proposed = torch.where(still, proposed, state)
            state = proposed
            states.append(state)
            actions.append(action)
        all_states, all_actions, all_rewards = torch.stack(states), torch.stack(actions), torch.stack(rewards)
        mask = torch.stack(masks) if masks else torch.ones_like(all_rewards, dtype=torch.bool)
        if batched and policy is not None:
            prior = self.prior(all_states[:-1])
            times = torch.arange(horizon, device=all_rewards.device)[:, None].expand(horizon, num_trajectories)
            log_p = prior.log_prob(all_actions)
            log_q = policy(all_states[:-1], times).log_prob(all_actions)
        else:
            log_p, log_q = torch.stack(log_prior), torch.stack(log_policy)
        if masks:
            zero = all_rewards.new_zeros(())
            all_rewards = torch.where(mask, all_rewards, zero)
            log_p, log_q = torch.where(mask, log_p, zero), torch.where(mask, log_q, zero)
        if bool(log_q.detach().isnan().any()):
            step = int(log_q.detach().isnan().any(1).int().argmax())
            raise ValueError(f"policy gives NaN as a log probability at step {step}; check its parameters")
        nan = all_rewards.detach().isnan()
        if bool(nan.any()):
            step = int(nan.any(1).int().argmax())
            raise ValueError(f"reward is NaN at step {step}; check reward() of {type(self).__name__}")
        return Trajectories(
            states=all_states,
            actions=all_actions,
            rewards=all_rewards,
            mask=mask,
            log_prior=log_p.expand_as(all_rewards),
            log_policy=log_q,
            log_factors=all_rewards / self.temperature,
            temperature=self.temperature,
            discount=self.discount,
        )

    def _checked_reward(self, value: Any, count: int, state: Tensor, step: int) -> Tensor:
        """Returns a reward as floating-point numbers, one a trajectory."""
        reward = torch.as_tensor(value, device=state.device)
        if reward.shape not in ((), (count,)):
            raise ValueError(
                f"reward(state, action, next_state) must give one number a trajectory, of shape ({count},), got "
                f"{tuple(reward.shape)} at step {step}"
            )
        if not reward.is_floating_point():
            reward = reward.to(state.dtype if state.is_floating_point() else torch.get_default_dtype())
        return reward.expand(count)

    def next_state(self, state: Tensor, action: Tensor, *, pathwise: bool = False) -> Tensor:
        """Returns a draw from the transition; a process with a faster way than its distribution has it here.

        Args:
            state, action: of one batch shape.
            pathwise: draw by ``rsample``, differentiable in state and action.

        Raises:
            ValueError: if ``pathwise`` is asked of a transition that is not reparameterized.
        """
        transition = self.transition(state, action)
        return _rsample(transition, "the transition") if pathwise else drawn(transition)

    def at_temperature(self, temperature: float | Tensor) -> Self:
        """Returns a copy of the process with another temperature."""
        check_temperature(temperature)
        other = copy.copy(self)
        other.temperature = temperature
        return other

    def learns_dynamics(self) -> bool:
        """Returns whether a gradient is wanted of the dynamics' own parameters."""
        if not torch.is_grad_enabled():
            return False
        initial = self.initial().expand([1])
        state = initial.sample()
        action = self.prior(state).sample()
        transition = self.transition(state, action)
        logs = (initial.log_prob(state), transition.log_prob(transition.sample()))
        return any(log.requires_grad for log in logs)

    def _like(self, state: Tensor) -> Tensor:
        """Returns a tensor of the dtype and device that the process's probabilities have."""
        return state if state.is_floating_point() else torch.empty(0, device=state.device)

    def batch_shape(self, state: Tensor) -> torch.Size:
        """Returns ``state``'s shape without that of a single state."""
        for name in ("state_space", "action_space"):
            if getattr(self, name, None) is None:
                raise ValueError(f"{name} of {type(self).__name__} is not set; give it a gymnasium.spaces space")
        event = len(self.state_space.shape or ())
        return state.shape[: state.dim() - event]

    def finite_horizon(self, wanted: str) -> int:
        """Returns the horizon, or raises ValueError saying that ``wanted`` needs one."""
        if self.horizon is None:
            raise ValueError(f"horizon is None, and {wanted} needs one: set horizon to a number of steps")
        return self.horizon

    @property
    def uniform_log_density(self) -> float | None:
        """The uniform action prior's log density in nats (``-log|A|`` or ``-d log 2``); None for other spaces."""
        if isinstance(self.action_space, gymnasium.spaces.Discrete):
            return -math.log(int(self.action_space.n))
        if isinstance(self.action_space, gymnasium.spaces.Box):
            return -math.prod(self.action_space.shape) * math.log(2.0)
        return None


def _sample(distribution: Any, what: str) -> Tensor:
    drawn: Tensor = distribution.sample()
    return drawn


def _rsample(distribution: Any, what: str) -> Tensor:
    if not distribution.has_rsample:
        raise ValueError(
            f"pathwise gradients need reparameterized draws, but {what} is a "
            f"{type(distribution).__name__}; use the score estimator"
        )
    drawn: Tensor = distribution.rsample()
    return drawn


@contextlib.contextmanager
def unvalidated() -> Iterator[None]:
    """Skips argument checks of distributions: in an inner loop they cost more than the draws."""
    default = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(default)
