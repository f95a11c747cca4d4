"""Soft actor-critic, and the methods that differ from it in a term."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import gymnasium
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from rl_as_inference.agents.evaluation import mode_of
from rl_as_inference.agents.functional import Networks, Temperature, log_probabilities
from rl_as_inference.agents.learner import Learner
from rl_as_inference.agents.replay import Batch
from rl_as_inference.agents.settings import ActionPrior
from rl_as_inference.agents.values import SoftValue
from rl_as_inference.checks import check_count, check_positive
from rl_as_inference.critics import QEnsemble, SoftV
from rl_as_inference.guides import CategoricalPolicy, TanhGaussianMixturePolicy, TanhGaussianPolicy
from rl_as_inference.objectives.soft_actors import (
    deterministic_actor_loss,
    exact_sum_actor_loss,
    pathwise_actor_loss,
    score_actor_loss,
    temperature_loss,
    weighted_actor_loss,
)
from rl_as_inference.objectives.soft_critics import (
    exact_soft_value,
    n_step_td_target,
    sampled_soft_value,
    soft_critic_loss,
    soft_td_target,
    wrong_td_target,
)
from rl_as_inference.randomness import drawn_from_logits
from rl_as_inference.state_time_network import check_hidden_sizes

__all__ = ["ActorGradient", "Objective", "SoftActorCritic"]

Objective = Literal["maxent", "one_step_entropy", "wrong_bellman", "svg0", "ddpg"]
ActorGradient = Literal["pathwise", "exact_sum", "components", "score"]

_LOG_SCALE_BOUNDS = (-20.0, 2.0)
"""Of the Gaussian before squashing, as in soft actor-critic's own code: e² already fills the box's ends."""


class SoftActorCritic(Learner):
    """Soft actor-critic (Haarnoja et al. 2018, arXiv:1812.05905) on an environment or a process.

    The policy is a guide: its loss is minus the ELBO of the one-step program whose factor is the
    exponentiated soft Q. One update draws a batch from replay and takes one Adam step on

    - the critics, ``½ (Q_i(s,a) - y)²`` with ``y = r + γ E_π[min_i Q̄_i(s',a') - α (log π - log p)]``,
    - the policy, ``E_π[log π - log p - min_i Q_i/α]``,
    - the temperature, ``α (H[π] - target)``,

    all at the parameters before it, and moves the target critics by ``target_average``. Discrete
    actions are summed over exactly.

    Args:
        env: a Gymnasium id, an environment, a factory of environments, a vector environment, or a
            process in parts.
        seed: of everything random.
        seeds: learn this many seeds at once, in one process and one batched update; ``policies``,
            ``critics`` and ``temperatures`` are then lists, and ``replay`` has a leading dimension.
        device: where everything lives; a GPU if there is one.
        dtype: of everything learned.
        policy: a guide ``(state, t) -> Distribution`` of your own, a module, on normalised actions;
            by default a tanh-Gaussian, a mixture of them, or a categorical.
        policy_components: Gaussians in the mixture policy; 1 for none.
        hidden_sizes: widths of the hidden layers of policy and critics.
        num_critics: critics, the least of which counts.
        value_network: learn a state value too, with the target average on it: the first version of
            soft actor-critic (arXiv:1801.01290v1).
        objective: ``"maxent"``, or a rung below it: ``"one_step_entropy"`` (Williams & Peng 1991:
            entropy in the actor only), ``"wrong_bellman"`` (present entropy in the critic, none in the
            actor), ``"svg0"`` (a stochastic policy, no entropy), ``"ddpg"`` (its mean acts, with noise).
        actor_gradient: how the actor's expectation is taken; by default exactly over discrete actions
            and mixture components, pathwise where the policy can, else by the score function.
        exploration_noise: standard deviation of DDPG's noise, on normalised actions.
        temperature: α in reward units per nat, or ``"auto"``: tuned to the target entropy. A process
            brings its own; elsewhere ``"auto"``.
        initial_temperature: where a tuned α starts.
        target_entropy: nats, of the density on ``[-1, 1]^d`` or of the discrete actions; by default
            ``-d`` and ``½ log|A|``.
        target_return: reward units; instead of an entropy, hold the exploring policy's mean return at this, as
            :func:`rl_as_inference.satisfice` does exactly: α is then the dual variable of that constraint, learned
            from the episodes played (:class:`ReturnConstraint`). Undiscounted, as :meth:`evaluate` counts it; with
            a process, discounted by the process's own γ. What no policy earns drives α towards 0.
        action_prior: ``"uniform"``, the model's; ``"flat"`` takes log p for 0, as the papers do. They
            differ by a constant per step, so only where episodes end by themselves.
        learning_starts: steps by the action prior before learning.
        batch_size, buffer_size, learning_rate: as usual; ``buffer_size`` is for each seed.
        discount: γ; by default a process's own, elsewhere 0.99.
        target_average: how far targets move in an update.
        updates_per_step: gradient steps per environment step, of one environment; may be below 1.
        num_envs: environments stepped together, for each seed.
        n_step: steps of reward (with the policy's entropies on the way) before a critic bootstraps.
        compile: compile the update with TorchInductor (some ten to thirty seconds, once; kept for
            later runs); ``"auto"`` does once 10,000 updates have been asked for.
        env_kwargs: options for :func:`gymnasium.make`.

    Raises:
        ValueError: if an argument is out of range, the spaces are not supported, the policy does not
            fit the actions, or no policy can reach the target entropy.

    Example:
        >>> agent = SoftActorCritic("Pendulum-v1", hidden_sizes=(16,), batch_size=8, learning_starts=20)
        >>> agent.learn(30)
        >>> len(agent.replay), agent.num_updates, agent.act([1.0, 0.0, 0.0], deterministic=True).shape
        (30, 11, (1,))
    """

    def __init__(
        self,
        env: Any,
        *,
        seed: int = 0,
        seeds: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        policy: nn.Module | None = None,
        policy_components: int = 1,
        hidden_sizes: Sequence[int] = (256, 256),
        num_critics: int = 2,
        value_network: bool = False,
        objective: Objective = "maxent",
        actor_gradient: ActorGradient | None = None,
        exploration_noise: float = 0.1,
        temperature: float | Literal["auto"] | None = None,
        initial_temperature: float = 1.0,
        target_entropy: float | None = None,
        target_return: float | None = None,
        action_prior: ActionPrior = "uniform",
        learning_starts: int = 1000,
        batch_size: int = 256,
        buffer_size: int = 1_000_000,
        learning_rate: float = 3e-4,
        discount: float | None = None,
        target_average: float = 0.005,
        updates_per_step: float = 1.0,
        num_envs: int = 1,
        n_step: int = 1,
        compile: bool | Literal["auto"] = "auto",
        env_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if objective not in get_args(Objective):
            raise ValueError(f"objective must be one of {', '.join(get_args(Objective))}; got {objective!r}")
        if actor_gradient not in (None, *get_args(ActorGradient)):
            raise ValueError(
                f"actor_gradient must be one of {', '.join(get_args(ActorGradient))}; got {actor_gradient!r}"
            )
        check_count("policy_components", policy_components)
        check_count("num_critics", num_critics)
        check_hidden_sizes(hidden_sizes)
        if policy is not None and policy_components > 1:
            raise ValueError("policy_components is for the policy made here; leave it out, or leave out policy")
        if exploration_noise != 0:
            check_positive("exploration_noise", exploration_noise)
        if objective in ("svg0", "ddpg"):
            for name, given in (
                ("temperature='auto'", temperature == "auto"),
                ("target_return", target_return is not None),
            ):
                if given:
                    raise ValueError(f"{name} tunes an entropy that objective={objective!r} has not; leave it out")
            temperature = 1.0 if temperature is None else temperature  # not looked at
        if value_network and (objective != "maxent" or n_step > 1):
            raise ValueError("value_network goes with objective='maxent' and n_step=1; drop one of them")
        if objective == "wrong_bellman" and n_step > 1:
            raise ValueError("objective='wrong_bellman' goes with n_step=1")
        self.objective, self.value_network = objective, value_network
        self.hidden_sizes, self.num_critics = tuple(hidden_sizes), num_critics
        self.exploration_noise = exploration_noise
        self._given_policy, self.policy_components = policy, policy_components
        self._wanted_gradient = actor_gradient
        if value_network:
            self.targeted = ("value",)
        super().__init__(
            env,
            seed=seed,
            seeds=seeds,
            device=device,
            dtype=dtype,
            num_envs=num_envs,
            learning_starts=learning_starts,
            batch_size=batch_size,
            buffer_size=buffer_size,
            learning_rate=learning_rate,
            discount=discount,
            temperature=temperature,
            initial_temperature=initial_temperature,
            target_entropy=target_entropy,
            target_return=target_return,
            target_average=target_average,
            updates_per_step=updates_per_step,
            n_step=n_step,
            action_prior=action_prior,
            compile=compile,
            env_kwargs=env_kwargs,
        )

    metrics = ("critic_loss", "actor_loss", "entropy", "q")

    # ---- the algorithm --------------------------------------------------------------------------

    def _loss(self, networks: Networks, targets: Networks, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """One update of the paper: critics, policy, temperature (Haarnoja et al. 2018, algorithm 1)."""
        frozen = networks.frozen()
        temperature = frozen("temperature")
        q = self._taken(networks("critics", *self._critic_inputs(batch.state, batch.action)), batch.action)
        critic_loss = soft_critic_loss(q, self._target(frozen, targets, batch, temperature))
        actor_loss, entropy, value = self._actor_loss(networks("policy", batch.state, 0), frozen, batch.state)
        total = critic_loss + actor_loss
        if self.target_entropy is not None:
            log_temperature = networks.tree["temperature"]["log_temperature"]
            total = total + temperature_loss(log_temperature, entropy, self.target_entropy)
        if self.value_network:
            total = total + 0.5 * (networks("value", batch.state, 0) - value.detach()).square().mean()
        metrics = {
            "critic_loss": critic_loss,
            "actor_loss": actor_loss,
            "entropy": entropy.mean(),
            "q": q.mean(),
        }
        return total, metrics

    def _target(self, networks: Networks, targets: Networks, batch: Batch, temperature: Tensor) -> Tensor:
        """Returns what the critics should say of the transitions, ``(B,)``."""
        with torch.no_grad():
            if self.value_network:
                value = targets("value", batch.next_states[0], 0)
                return soft_td_target(batch.rewards[0], value, batch.terminated[0], self.discount)
            chosen = networks("policy", batch.next_states, 0)
            # Entropy in the value of what follows: only the MaxEnt objective has it there.
            weight = temperature if self.objective == "maxent" else torch.zeros_like(temperature)
            if self.is_discrete:
                log_policy = self._log_probabilities(chosen)
                q = targets("critics", batch.next_states).amin(0)
                prior = self._log_prior(batch.next_states, None)
                value = exact_soft_value(q, log_policy, prior, weight)
                bonus = exact_soft_value(torch.zeros_like(q), log_policy, prior, weight)
            else:
                action = mode_of(chosen) if self.objective == "ddpg" else chosen.sample()
                q = targets("critics", batch.next_states, action).amin(0)
                log_policy = torch.zeros_like(q) if self.objective == "ddpg" else chosen.log_prob(action)
                prior = self._log_prior(batch.next_states, action)
                value = sampled_soft_value(q, log_policy, prior, weight)
                bonus = sampled_soft_value(torch.zeros_like(q), log_policy, prior, weight)
            if self.objective == "wrong_bellman":
                log_taken = networks("policy", batch.state, 0).log_prob(batch.action)
                prior = self._log_prior(batch.state, None if self.is_discrete else batch.action)
                prior = self._taken(prior, batch.action)
                return wrong_td_target(
                    batch.rewards[0], log_taken, prior, value[0], batch.terminated[0], self.discount, temperature
                )
            if self.n_step == 1:
                return soft_td_target(batch.rewards[0], value[0], batch.terminated[0], self.discount)
            return n_step_td_target(batch.rewards, bonus, value, batch.alive, batch.terminated, self.discount)

    def _actor_loss(self, chosen: Any, networks: Networks, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the actor's loss, the policy's entropy per state and its soft value per state."""
        temperature = networks("temperature")
        entropic = self.objective in ("maxent", "one_step_entropy")
        if self.actor_gradient == "exact_sum":
            q = networks("critics", state).amin(0)
            log_policy, prior = self._log_probabilities(chosen), self._log_prior(state, None)
            entropy = exact_soft_value(torch.zeros_like(q), log_policy, q.new_zeros(()), 1.0)
            value = exact_soft_value(q, log_policy, prior, temperature)
            if entropic:
                return exact_sum_actor_loss(q, log_policy, prior, temperature), entropy, value
            return deterministic_actor_loss((log_policy.exp() * q).sum(-1)), entropy, value
        if self.actor_gradient == "components":
            action, log_weight = chosen.rsample_components(), chosen.log_weights
            log_policy = torch.stack([chosen.log_prob(a) for a in action.unbind(-2)], -1)
            states = self._beside(state, action.shape[-2])
            q, prior = networks("critics", states, action).amin(0), self._log_prior(states, action)
            weight = log_weight.exp()
            entropy = -(weight * log_policy).sum(-1)
            value = (weight * sampled_soft_value(q, log_policy, prior, temperature)).sum(-1)
            if entropic:
                return weighted_actor_loss(q, log_policy, prior, log_weight, temperature), entropy, value
            return deterministic_actor_loss((weight * q).sum(-1)), entropy, value
        pathwise = self.actor_gradient == "pathwise"
        if self.objective == "ddpg":
            q = networks("critics", state, mode_of(chosen)).amin(0)
            return deterministic_actor_loss(q), torch.zeros_like(q), q
        action = chosen.rsample() if pathwise else chosen.sample()
        log_policy = chosen.log_prob(action)
        q = self._taken(networks("critics", *self._critic_inputs(state, action)).amin(0), action)
        prior = self._taken(self._log_prior(state, None if self.is_discrete else action), action)
        value = sampled_soft_value(q, log_policy, prior, temperature)
        if pathwise:
            loss = pathwise_actor_loss(q, log_policy, prior, temperature) if entropic else deterministic_actor_loss(q)
        elif entropic:
            loss = score_actor_loss(q, log_policy, prior, temperature)
        else:
            # The score of the reward alone, in reward units: log π - log p counts nothing.
            loss = score_actor_loss(q, log_policy, log_policy.detach(), 1.0)
        return loss, -log_policy, value

    def _draw(self, networks: Networks, state: Tensor) -> Tensor:
        chosen = networks("policy", state, 0)
        if self.is_discrete:
            return drawn_from_logits(self._log_probabilities(chosen))
        if self.objective != "ddpg":
            return chosen.sample()
        action = mode_of(chosen)
        return (action + self.exploration_noise * torch.randn_like(action)).clamp(-1, 1)

    # ---- its parts ------------------------------------------------------------------------------

    def _make_modules(self) -> dict[str, nn.Module]:
        spaces = self.state_space, self.action_space
        modules: dict[str, nn.Module] = {
            "policy": self._make_policy(),
            "critics": QEnsemble(*spaces, num_critics=self.num_critics, hidden_sizes=self.hidden_sizes),
            "temperature": Temperature(self._initial_temperature, learned=self.learns_temperature),
        }
        if self.value_network:
            modules["value"] = SoftV(self.state_space, hidden_sizes=self.hidden_sizes)
        return modules

    def _make_policy(self) -> nn.Module:
        if self._given_policy is not None:
            if not isinstance(self._given_policy, nn.Module) or not any(
                parameter.requires_grad for parameter in self._given_policy.parameters()
            ):
                raise ValueError(
                    "policy has no parameters to train; pass a module such as those of rl_as_inference.guides"
                )
            return copy.deepcopy(self._given_policy) if self.num_seeds > 1 else self._given_policy
        if isinstance(self.action_space, gymnasium.spaces.Discrete):
            if self.policy_components > 1:
                raise ValueError("policy_components > 1 needs continuous actions; leave it out")
            return CategoricalPolicy(
                self.state_space,
                int(self.action_space.n),
                hidden_sizes=self.hidden_sizes,
                activation="relu",
                prior=self._process_prior if self._own_prior else None,
            )
        family: Callable[..., nn.Module] = TanhGaussianPolicy
        options: dict[str, Any] = {
            "hidden_sizes": self.hidden_sizes,
            "activation": "relu",
            "log_scale_bounds": _LOG_SCALE_BOUNDS,
        }
        if self.policy_components > 1:
            family = TanhGaussianMixturePolicy
            options["num_components"] = self.policy_components
        return family(self.state_space, (self.action_space.shape or (1,))[0], **options)

    def _process_prior(self, state: Tensor) -> Any:
        return dist.Categorical(logits=self.process.prior(state).logits.to(self.dtype))  # type: ignore[union-attr]

    def _check_policy(self) -> None:
        """Asks the policy once, so that one that does not fit fails here, and chooses the actor's gradient."""
        shape = self.state_space.shape or ()
        state = torch.zeros(2, *shape, dtype=self.state_dtype, device=self.device)
        try:
            chosen = self.modules[0]["policy"](state, 0)
        except Exception as error:  # a module of the user's raises anything
            kind = f"{tuple(state.shape)} {str(state.dtype).removeprefix('torch.')}"
            raise ValueError(f"policy fails for two states, {kind}, at t = 0: {error}") from error
        if not isinstance(chosen, torch.distributions.Distribution):
            raise ValueError(f"policy must return a Distribution for (state, t), and returned {type(chosen).__name__}")
        event = tuple(self.action_space.shape or ())
        if tuple(chosen.batch_shape) != (2,) or tuple(chosen.event_shape) != event:
            raise ValueError(
                f"policy gives batch shape {tuple(chosen.batch_shape)} and event shape {tuple(chosen.event_shape)} for "
                f"two states, and the actions {self.action_space} want (2,) and {event}; use .to_event(1) for boxes"
            )
        self._check_draws(chosen, state)
        by_components = hasattr(chosen, "rsample_components")
        natural = (
            "exact_sum"
            if self.is_discrete
            else "components"
            if by_components
            else "pathwise"
            if chosen.has_rsample
            else "score"
        )
        self.actor_gradient = self._wanted_gradient or natural
        possible = {
            "exact_sum": self.is_discrete,
            "components": by_components,
            "pathwise": bool(chosen.has_rsample) and not self.is_discrete,
            "score": True,
        }
        if not possible[self.actor_gradient]:
            raise ValueError(
                f"actor_gradient={self.actor_gradient!r} does not go with {type(chosen).__name__}; use {natural!r}"
            )
        if self.objective == "ddpg":
            if self.is_discrete:
                raise ValueError("objective='ddpg' needs continuous actions; use 'maxent' or 'svg0'")
            mode_of(chosen)
            self.actor_gradient = "pathwise"

    def _check_draws(self, chosen: Any, state: Tensor) -> None:
        """Raises ValueError if a policy of the user's is not over these actions, or cannot be batched over seeds."""
        if self._given_policy is None:
            return
        kind = type(chosen).__name__
        if self.is_discrete:
            total = self._log_probabilities(chosen).detach().exp().sum(-1)
            if not bool(((total - 1).abs() < 1e-3).all()):
                raise ValueError(
                    f"policy gives {kind} probabilities of {self.action_space} that sum to {float(total[0]):.4g}; it "
                    f"must be over these actions, counted from 0"
                )
            return
        with self._random.unmoved(), torch.no_grad():
            if bool((chosen.sample((64,)).abs() > 1).any()):
                raise ValueError(
                    f"policy gives {kind} draws outside the unit box of normalised actions; squash it, as "
                    f"rl_as_inference.guides.TanhGaussianPolicy is"
                )
            if self.num_seeds > 1:
                policy = self.modules[0]["policy"]
                try:
                    torch.func.vmap(lambda state: policy(state, 0).sample(), randomness="different")(state[None])
                except RuntimeError as error:
                    raise ValueError(
                        f"policy: draws of {kind} cannot be batched over seeds; make one agent a seed ({error})"
                    ) from error

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "objective": self.objective}

    def _policy_of(self, modules: dict[str, nn.Module]) -> Any:
        return modules["policy"]

    def _critic_of(self, modules: dict[str, nn.Module]) -> Any:
        return SoftValue(
            modules["critics"],
            modules["policy"],
            temperature=float(modules["temperature"]().detach()),
            discount=self.discount,
            action_prior=self.action_prior,
            log_prior=self._log_prior,
            objective=self.objective,
        )

    def _log_probabilities(self, chosen: Any) -> Tensor:
        """Returns ``log π`` of all discrete actions, ``(*batch, A)``."""
        return log_probabilities(chosen, int(self.action_space.n), self.device)  # type: ignore[attr-defined]

    def _critic_inputs(self, state: Tensor, action: Tensor) -> tuple[Tensor, ...]:
        return (state,) if self.is_discrete else (state, action)

    def _taken(self, values: Tensor, action: Tensor) -> Tensor:
        """Returns the values of the actions taken, of all discrete ones'; others are of one action already."""
        if not self.is_discrete or values.dim() == 0:
            return values
        index = action.expand(values.shape[:-1])[..., None]
        return values.gather(-1, index).squeeze(-1)
