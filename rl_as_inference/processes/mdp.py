"""Markov decision processes in parts: a Pyro program when called, fast tensors when rolled out."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

import pyro
import torch
from torch import Tensor

from rl_as_inference.checks import (
    check_at_least,
    check_discount,
    check_horizon,
    check_temperature,
    has_no_nan,
    holds,
    unvalidated,
)
from rl_as_inference.histories import Histories, History
from rl_as_inference.host import in_turn
from rl_as_inference.nouns import Policy, takes_all_steps
from rl_as_inference.processes.first_look import FirstLook
from rl_as_inference.processes.kernels import check_distribution, drawn, unclamped
from rl_as_inference.processes.membership import uniform_prior
from rl_as_inference.processes.point_masses import log_density
from rl_as_inference.processes.reparameterized import check_reparameterized, reparameterized
from rl_as_inference.processes.reward_shapes import check_weighable, checked_reward
from rl_as_inference.program import act, reward, steps, terminate
from rl_as_inference.program.readings import check_answer
from rl_as_inference.program.sites import FIRST
from rl_as_inference.trajectories import Decision, Rows, Trajectories, Transition

__all__ = ["MarkovDecisionProcess", "unvalidated"]

_UNSET: Any = object()
_NAN = "policy gives NaN as a log probability at step {}; check its parameters"


class MarkovDecisionProcess(FirstLook):
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
        >>> import gymnasium
        >>> import pyro.distributions as dist
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

    horizon: int | None = None
    discount: float | Tensor = 1.0
    temperature: float | Tensor = 1.0
    absorbing = False
    """Whether the transition itself keeps terminal states where they are."""
    has_exact_answers = False
    """Whether :mod:`rl_as_inference.exact` answers for it."""
    has_uniform_prior = True
    """Whether the action prior is uniform over the action space; false where a subclass overrides :meth:`prior`."""
    state_names: Sequence[str] | None = None
    """What pictures call the entries of a state vector: ``("position (m)", "speed (m/s)")``."""
    action_names: Sequence[str] | None = None
    """Likewise of an action vector; of discrete actions the names of the actions."""

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
            ValueError: for an action space other than Discrete, MultiDiscrete, MultiBinary and the box ``[-1, 1]^d``.
        """
        dtype = state.dtype if state.is_floating_point() else torch.get_default_dtype()
        return uniform_prior(self.action_space, self.batch_shape(state), dtype, state.device)

    def terminated(self, state: Tensor) -> Tensor | None:
        """Returns which states are terminal, bool of the batch shape of ``state``; None if none ever is."""
        return None

    def __call__(self, num_trajectories: int = 1, *, markov: bool = False) -> Tensor:
        """Runs the Pyro program of ``num_trajectories`` trajectories and returns their last state.

        ``markov=True`` is for enumerating it over a long horizon; see :func:`steps`.
        """
        horizon = self.finite_horizon("running the program")
        check_at_least("num_trajectories", num_trajectories)
        with pyro.plate("trajectories", num_trajectories, dim=-1):
            return self.with_unknowns_drawn()._run(horizon, markov)

    def _run(self, horizon: int, markov: bool) -> Tensor:
        """Runs the program of the trajectories of a plate, and returns their last state."""
        first = {FIRST: self._first("state_space")}
        initial = self.initial()
        state: Tensor = self._held(pyro.sample("state_0", initial, infer=dict(first)), -1)
        like = state if state.is_floating_point() else initial.log_prob(state)
        action: Tensor | None = None
        for t in steps(horizon, self.discount, markov=markov, like=like):
            done = self.terminated(state)
            if done is not None:
                terminate(torch.as_tensor(done, device=state.device).bool(), absorbing=self.absorbing)
            seen, prior = self._seen_by_program(state, action, t)
            action = self._own_action(act(f"action_{t}", seen, self._ask_of_prior(prior)))
            transition = self.transition(state, action)
            next_state = self._held(pyro.sample(f"state_{t + 1}", transition, infer=dict(first)), t)
            # Enumerated sites stand to the left of the plate, and an action may have dimensions of its own.
            acted = tuple(action.shape)[: action.dim() - len(self.action_space.shape or ())]
            batch = torch.broadcast_shapes(self.batch_shape(state), acted, self.batch_shape(next_state))
            earned = checked_reward(self.reward(state, action, next_state), state, batch, t, type(self).__name__)
            reward(f"reward_{t}", earned, self.temperature)
            state = next_state
            if t == horizon - 1:
                self._seen_by_program(state, action, horizon)
        return self._counted(state)

    def _seen_by_program(self, state: Tensor, action: Tensor | None, t: int) -> tuple[Any, Any]:
        """Returns what the policy may look at in a run of the program, and the action prior; after it nothing."""
        return (self._counted(state), self.prior(state)) if t != self.horizon else (None, None)

    # One step, for all who walk. What follows counts integers from 0, as policies and critics do; the methods that a
    # process overrides speak the values of its own spaces.

    def begin(self, num_trajectories: int, *, pathwise: bool = False) -> Tensor:
        """Returns the first states of so many trajectories, ``(N, *state)``.

        Raises:
            ValueError: if :meth:`initial` returns no distribution, or one without ``rsample`` where ``pathwise``.
        """
        initial = check_distribution(self.initial(), f"initial() of {self.name}").expand([num_trajectories])
        state = reparameterized(initial, "the initial state") if pathwise else initial.sample()
        return self._counted(self._held(state, -1))

    def view(
        self,
        state: Tensor,
        action: Tensor | None = None,
        before: Any = None,
        kept: tuple[Tensor, Tensor] | None = None,
        *,
        pathwise: bool = False,
    ) -> Any:
        """Returns what a policy may look at: the state; where it is hidden, what has been seen and done.

        All that walk trajectories forward ask the policy with this.

        Args:
            state: ``(N, *state)``.
            action: what led to it, ``(N, *action)``; None for first states.
            before: the view before that; None for first states.
            kept: which trajectories, bool ``(N,)``, see given observations, ``(N, *observation)``, and no new ones.
            pathwise: draw what is seen by ``rsample``.
        """
        return state

    def has_ended(self, state: Tensor) -> Tensor | None:
        """Returns which states are terminal, bool ``(*batch,)``; None if none ever is."""
        done, batch = self.terminated(self._own_state(state)), self.batch_shape(state)
        if done is None or (isinstance(done, Tensor) and done.shape == batch and done.dtype == torch.bool):
            return done
        return torch.as_tensor(done, device=state.device).bool().expand(batch)

    def prior_at(self, state: Any) -> Any:
        """Returns the action prior ``p(a|s)``, of the batch shape of ``state``.

        Raises:
            ValueError: if :meth:`prior` answers with something else than one distribution a state, or over other
                actions than those of the action space.
        """
        prior, batch = self.prior(self._own_state(state)), self.batch_shape(state)
        if not isinstance(prior, torch.distributions.Distribution):
            raise ValueError(f"prior(state) of {self.name} must return a distribution, got {type(prior).__name__}")
        self._ask_of_prior(prior)
        prior = unclamped(prior)
        if prior.batch_shape == batch:
            return prior
        try:
            return prior.expand(batch)
        except (RuntimeError, ValueError):
            raise ValueError(
                f"prior(state) of {self.name} has batch shape {tuple(prior.batch_shape)} for states of batch shape "
                f"{tuple(batch)}; answer with one distribution a state, and declare one action with .to_event(n)"
            ) from None

    def choose(self, policy: Policy | None, state: Tensor, t: int) -> tuple[Any, Any]:
        """Returns a policy's distribution over actions at ``(state, t)`` and the action prior, of one batch shape.

        Raises:
            ValueError: if the policy answers with no distribution, with one over other actions than the prior's, or
                not with one a state.
        """
        prior = self.prior_at(state)
        if policy is None:
            return prior, prior
        chosen = unclamped(check_answer(self._ask(policy, state, t), prior, f"at step {t}", prior.batch_shape))
        if isinstance(chosen, torch.distributions.Categorical) and not holds(~chosen.logits.detach().isnan()):
            raise ValueError(_NAN.format(t))
        return chosen, prior

    def _ask(self, policy: Policy, state: Any, t: Any) -> Any:
        return policy(state, t)

    def decide(
        self, policy: Policy | None, state: Tensor, t: int, *, draw: Callable[[Any], Tensor] = drawn
    ) -> Decision:
        """Returns an action drawn from ``policy`` (None for the action prior), with its log probabilities.

        Policy, state and t are as in :meth:`choose`.

        Raises:
            ValueError: as :meth:`choose` does, or if the policy gives NaN.
        """
        chosen, prior = self.choose(policy, state, t)
        action = draw(chosen)
        log_prior = prior.log_prob(action)
        log_policy = log_prior if policy is None else log_density(chosen, prior, action)
        if not holds(~(bad := log_policy.detach().isnan())):
            done = self.has_ended(state)  # where nobody acts
            if done is None or bool((bad & ~done).any()):
                raise ValueError(_NAN.format(t))
        return Decision(action, log_prior, log_policy)

    def advance(
        self, state: Tensor, action: Tensor, t: int, alive: Tensor | None = None, *, pathwise: bool = False
    ) -> Transition:
        """Returns what one step of every trajectory gave. All that walk trajectories forward call it.

        A trajectory that has ended, or whose state is terminal, stays where it is and earns nothing.

        Args:
            state: ``(N, *state)``.
            action: ``(N, *action)``.
            t: the step, for messages.
            alive: which trajectories had not ended before, bool ``(N,)``; None for all.
            pathwise: draw the next state by ``rsample``, differentiable in state and action.

        Raises:
            ValueError: if the next states have another shape than the states, are NaN, or, on the first walk, not in
                the state space; if there is not one reward a trajectory, or one that counts is NaN; if ``pathwise`` is
                asked of a transition that is not reparameterized.
        """
        done = self.has_ended(state)
        moves = self.absorbing and alive is None  # then the transition itself keeps what has ended where it is
        if done is not None:
            alive = ~done if alive is None else alive & ~done
        own, taken = self._own_state(state), self._own_action(action)
        with torch.set_grad_enabled(torch.is_grad_enabled() and pathwise):
            after = self.next_state(own, taken, pathwise=pathwise)
        if after.shape != own.shape:
            raise ValueError(
                f"transition(state, action) must give states of shape {tuple(own.shape)}, got "
                f"{tuple(after.shape)} at step {t}; keep the batch, and declare one state with .to_event(n)"
            )
        batch = self.batch_shape(own)
        earned = checked_reward(self.reward(own, taken, after), own, batch, t, type(self).__name__)
        if earned.shape != batch:
            earned = earned.expand(batch)
        if alive is not None:
            earned = torch.where(alive, earned, 0.0)
            if not moves:
                after = torch.where(alive.reshape(alive.shape + (1,) * (own.dim() - alive.dim())), after, own)
        check_weighable(earned.detach(), t, type(self).__name__)
        if after.is_floating_point() and not has_no_nan(after.detach()):
            raise ValueError(f"transition is NaN at step {t}; check transition() of {type(self).__name__}")
        return Transition(self._counted(self._held(after, t)), earned, alive)

    @in_turn
    def rollout(
        self,
        policy: Policy | None,
        num_trajectories: int,
        *,
        pathwise: bool = False,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Trajectories:
        """Returns ``num_trajectories`` trajectories of ``policy``, drawn without effect handlers.

        ``log_policy`` is differentiable in the policy's parameters. A policy with a true
        ``batch_steps`` attribute, as those of ``guides`` have, is asked for the log probabilities of
        all steps at once, if its actions are discrete.

        Args:
            policy: a callable ``(state, t) -> Distribution``; None for the action prior.
            num_trajectories: ``N``.
            pathwise: draw actions and states by ``rsample``, so that rewards and log probabilities
                are differentiable through the dynamics.
            seed: of what is drawn; None follows PyTorch's generator, from where it is.
            generator: instead of a seed, where random numbers come from, :func:`rl_as_inference.randomness.drawing`.

        Raises:
            ValueError: if the horizon is None, as :meth:`decide` and :meth:`advance` do (the step is named), or if
                ``pathwise`` is asked of a distribution that is not reparameterized.
        """
        horizon = self.finite_horizon("rollout")
        check_at_least("num_trajectories", num_trajectories)
        if not isinstance(pathwise, bool):
            raise ValueError(f"pathwise must be True or False, got {pathwise!r}")
        if policy is not None and not callable(policy):
            raise ValueError(f"policy must be a callable (state, t) -> Distribution, or None; got {policy!r}")
        with unvalidated():
            return self._rollout(policy, num_trajectories, horizon, pathwise)

    def _rollout(self, policy: Policy | None, num_trajectories: int, horizon: int, pathwise: bool) -> Trajectories:
        state = self.begin(num_trajectories, pathwise=pathwise)
        seen = self.view(state, pathwise=pathwise)
        # Whether log π of all steps may be had afterwards, from the actions. A squashed one cannot be unsquashed
        # near its bounds, so such a policy is asked while it remembers the draw.
        batched = False
        with torch.no_grad():
            if pathwise and policy is not None:
                check_reparameterized(self._ask(policy, seen, 0), "the policy")
            elif policy is not None and takes_all_steps(policy):
                batched = not self.choose(policy, seen, 0)[0].has_rsample
        draw = partial(reparameterized, what="the policy") if pathwise else lambda chosen: chosen.sample()
        rows = Rows()
        alive: Tensor | None = None
        for t in range(horizon):
            if batched:
                with torch.no_grad():
                    action = draw(self.choose(policy, seen, t)[0])
                logs: tuple[Tensor, ...] = ()
            else:
                action, *logs_ = self.decide(policy, seen, t, draw=draw)
                logs = tuple(logs_)
            step = self.advance(state, action, t, alive, pathwise=pathwise)
            rows.add(state, action, step.reward, step.alive, *logs)
            state, alive = step.next_state, step.alive
            seen = self.view(state, action, seen, pathwise=pathwise)
        self._ask_of_silence(rows, self.reward)
        if batched and policy is not None:
            every: Any = Histories(seen) if isinstance(seen, History) else torch.stack(rows.states)
            actions = torch.stack(rows.actions)
            times = torch.arange(horizon, device=state.device)[:, None].expand(horizon, num_trajectories)
            rows.log_prior = list(self.prior_at(every).log_prob(actions))
            rows.log_policy = list(unclamped(self._ask(policy, every, times)).log_prob(actions))
        return self.told(rows.trajectories(state, self.temperature, self.discount, seen=seen))

    def next_state(self, state: Tensor, action: Tensor, *, pathwise: bool = False) -> Tensor:
        """Returns a draw from the transition; a process with a faster way than its distribution has it here.

        Args:
            state, action: of one batch shape.
            pathwise: draw by ``rsample``, differentiable in state and action.

        Raises:
            ValueError: if :meth:`transition` returns no distribution, or one without ``rsample`` where ``pathwise``.
        """
        transition = check_distribution(self.transition(state, action), f"transition(state, action) of {self.name}")
        return reparameterized(transition, "the transition") if pathwise else drawn(transition)

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
        transition = self.transition(state, self._own_action(self.prior(state).sample()))
        logs = (initial.log_prob(state), transition.log_prob(transition.sample()))
        return any(log.requires_grad for log in logs)

    def finite_horizon(self, wanted: str) -> int:
        """Returns the horizon; ValueError says that ``wanted`` needs one."""
        if self.horizon is None:
            raise ValueError(f"horizon is None, and {wanted} needs one: set horizon to a number of steps")
        return self.horizon
