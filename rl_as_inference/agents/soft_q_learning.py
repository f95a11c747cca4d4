"""Soft Q-learning: the policy is the softmax of the critic, and nothing else is learned (or its sampler is)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import gymnasium
import torch
from torch import Tensor, nn

from rl_as_inference.agents.functional import Networks, Temperature
from rl_as_inference.agents.learner import Learner
from rl_as_inference.agents.replay import Batch
from rl_as_inference.agents.settings import ActionPrior
from rl_as_inference.agents.values import SoftValue
from rl_as_inference.checks import check_count
from rl_as_inference.critics import QEnsemble
from rl_as_inference.guides import EnergyBasedPolicy, SoftmaxPolicy, SteinSampler
from rl_as_inference.guides.energy_based import resampled
from rl_as_inference.objectives.soft_actors import temperature_loss
from rl_as_inference.objectives.soft_critics import (
    exact_soft_value,
    importance_log_sum_exp_value,
    log_sum_exp_value,
    n_step_td_target,
    soft_critic_loss,
    soft_double_q_value,
    soft_td_target,
    softmax_policy,
)
from rl_as_inference.randomness import drawn_from_logits
from rl_as_inference.spaces import log_tanh_slope, uniform_log_density
from rl_as_inference.state_time_network import check_hidden_sizes

__all__ = ["SoftQLearning"]


class SoftQLearning(Learner):
    """Soft Q-learning (Haarnoja et al. 2017, arXiv:1702.08165) on an environment or a process.

    The critic learns ``y = r + γ V(s')`` with ``V = α log Σ_a p(a) exp(Q̄(s',a)/α)``, and the policy is
    ``p(a|s) exp((Q - V)/α)``. Over discrete actions both are exact, and ``double=True`` lets the
    online network choose and the target network value (soft double Q-learning). Over continuous
    actions, of few dimensions, ``V`` is an importance estimate from uniform draws, and the policy's
    draws are those of an amortized Stein sampler, as in the paper, or are uniform draws resampled by
    their energies. The sampler scales further; it moves by gradients alone, so that what share of its
    draws goes to which of several far modes is left to how it got there. Resampling gets the shares right.

    Args:
        double: soft double Q-learning's correction; discrete actions only.
        num_critics: critics, the least of which counts.
        sampler: ``"stein"`` or ``"resampling"``: how actions are drawn; continuous actions only.
        num_particles: draws of the Stein sampler for each state.
        num_value_draws: uniform draws for a continuous ``V``, and for each resampled action.
        batch_size, ..., env_kwargs: as for :class:`SoftActorCritic`.

    Raises:
        ValueError: as :class:`SoftActorCritic` does.

    Example:
        >>> agent = SoftQLearning("CartPole-v1", hidden_sizes=(16,), batch_size=8, learning_starts=20)
        >>> agent.learn(30)
        >>> agent.policy(torch.zeros(4), 0).probs.shape, int(agent.act([0.0, 0.0, 0.0, 0.0])) in (0, 1)
        (torch.Size([2]), True)
    """

    def __init__(
        self,
        env: Any,
        *,
        seed: int = 0,
        seeds: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        double: bool = False,
        hidden_sizes: Sequence[int] = (256, 256),
        num_critics: int = 1,
        sampler: Literal["stein", "resampling"] = "stein",
        num_particles: int = 16,
        num_value_draws: int = 64,
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
        check_count("num_particles", num_particles, 2)
        check_count("num_value_draws", num_value_draws, 2)
        check_count("num_critics", num_critics)
        check_hidden_sizes(hidden_sizes)
        if sampler not in ("stein", "resampling"):
            raise ValueError(f"sampler must be 'stein' or 'resampling', got {sampler!r}")
        self.sampler = sampler
        self.hidden_sizes, self.num_critics, self.double = tuple(hidden_sizes), num_critics, double
        self.num_particles, self.num_value_draws = num_particles, num_value_draws
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

    metrics = ("critic_loss", "entropy", "q")

    # ---- the algorithm --------------------------------------------------------------------------

    def _loss(self, networks: Networks, targets: Networks, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        frozen = networks.frozen()
        temperature = frozen("temperature")
        if self.is_discrete:
            q_a = networks("critics", batch.state)
            index = batch.action.expand(q_a.shape[:-1])[..., None]
            q = q_a.gather(-1, index).squeeze(-1)
            total = soft_critic_loss(q, self._target(frozen, targets, batch, temperature))
            critic_loss = total
            entropy = self._entropy(q_a.detach().amin(0), batch.state, temperature)
        else:
            q = networks("critics", batch.state, batch.action)
            critic_loss = soft_critic_loss(q, self._continuous_target(targets, batch, temperature))
            total = critic_loss
            if self.sampler == "stein":
                sampler_loss, entropy = self._sampler_loss(networks, frozen, batch.state, temperature)
                total = total + sampler_loss
            else:
                _, energies = self._candidates(frozen, batch.state, temperature)
                log_weights = energies.log_softmax(-1)  # of the policy to the uniform density, times the count
                gain = (log_weights.exp() * log_weights).sum(-1) + math.log(self.num_value_draws)
                entropy = -gain - uniform_log_density(self.action_space)
        if self.target_entropy is not None:
            log_temperature = networks.tree["temperature"]["log_temperature"]
            total = total + temperature_loss(log_temperature, entropy, self.target_entropy)
        return total, {"critic_loss": critic_loss, "entropy": entropy.mean(), "q": q.mean()}

    def _target(self, networks: Networks, targets: Networks, batch: Batch, temperature: Tensor) -> Tensor:
        prior = self._log_prior(batch.next_states, None)
        q_target = targets("critics", batch.next_states).amin(0)
        q_online = networks("critics", batch.next_states).amin(0) if self.double else q_target
        if self.double:
            value = soft_double_q_value(q_online, q_target, prior.expand_as(q_target), temperature)
        else:
            value = log_sum_exp_value(q_target, prior, temperature)
        if self.n_step == 1:
            return soft_td_target(batch.rewards[0], value[0], batch.terminated[0], self.discount)
        log_policy = softmax_policy(q_online, prior, temperature)
        bonus = exact_soft_value(torch.zeros_like(q_target), log_policy, prior, temperature)
        return n_step_td_target(batch.rewards, bonus, value, batch.alive, batch.terminated, self.discount)

    def _continuous_target(self, targets: Networks, batch: Batch, temperature: Tensor) -> Tensor:
        value = self._value(targets, batch.next_states[0], temperature)
        return soft_td_target(batch.rewards[0], value, batch.terminated[0], self.discount)

    def _value(self, networks: Networks, state: Tensor, temperature: Tensor) -> Tensor:
        """Returns the importance estimate of a continuous soft value, ``(B,)``."""
        action, energies = self._candidates(networks, state, temperature)
        log_proposal = torch.full_like(energies, uniform_log_density(self.action_space))
        return importance_log_sum_exp_value(
            energies * temperature, log_proposal, self._log_prior(state, action), temperature
        )

    def _candidates(self, networks: Networks, state: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
        """Returns uniform actions ``(*batch, J, d)`` and their ``Q/α``."""
        size = (self.action_space.shape or (1,))[0]
        batch = state.shape[: state.dim() - len(self.state_space.shape or ())]
        action = 2 * torch.rand(*batch, self.num_value_draws, size, dtype=self.dtype, device=self.device) - 1
        q = networks("critics", self._beside(state, self.num_value_draws), action).amin(0)
        return action, q / temperature

    def _sampler_loss(
        self, networks: Networks, frozen: Networks, state: Tensor, temperature: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns a surrogate whose gradient moves the sampler along Stein directions, and the entropy per state.

        Directions are taken before squashing, where the density vanishes at the ends, as it must.
        """
        size = (self.action_space.shape or (1,))[0]
        noise = torch.randn(len(state), self.num_particles, size, dtype=self.dtype, device=self.device)
        states = self._beside(state, self.num_particles)
        before = networks("sampler", states, noise)

        def log_density(u: Tensor) -> tuple[Tensor, Tensor]:
            q = frozen("critics", states, u.tanh()).amin(0)
            return (q / temperature + log_tanh_slope(u).sum(-1)).sum(), q

        scores, q = torch.func.grad(log_density, has_aux=True)(before.detach())
        direction = SteinSampler.direction(before.detach(), scores, before.detach())
        surrogate = -(direction.detach() * before).sum(-1).mean()
        value = self._value(frozen, state, temperature)
        entropy = (value - q.mean(-1)) / temperature - self._log_prior(state, before.tanh()).mean()
        return surrogate, entropy.detach()

    def _entropy(self, q_a: Tensor, state: Tensor, temperature: Tensor) -> Tensor:
        log_policy = softmax_policy(q_a, self._log_prior(state, None), temperature)
        return exact_soft_value(torch.zeros_like(q_a), log_policy, q_a.new_zeros(()), 1.0)

    def _draw(self, networks: Networks, state: Tensor) -> Tensor:
        if self.is_discrete:
            temperature = networks("temperature")
            logits = networks("critics", state).amin(0) / temperature + self._log_prior(state, None)
            return drawn_from_logits(logits)
        if self.sampler == "resampling":
            return resampled(*self._candidates(networks, state, networks("temperature")))
        size = (self.action_space.shape or (1,))[0]
        batch = state.shape[: state.dim() - len(self.state_space.shape or ())]
        noise = torch.randn(*batch, size, dtype=self.dtype, device=self.device)
        action: Tensor = networks("sampler", state, noise).tanh()
        return action

    # ---- its parts ------------------------------------------------------------------------------

    def _make_modules(self) -> dict[str, nn.Module]:
        critics = QEnsemble(
            self.state_space, self.action_space, num_critics=self.num_critics, hidden_sizes=self.hidden_sizes
        )
        temperature = Temperature(self._initial_temperature, learned=self.learns_temperature)
        modules: dict[str, nn.Module] = {"critics": critics, "temperature": temperature}
        if self.sampler == "stein" and isinstance(self.action_space, gymnasium.spaces.Box):
            size = self.action_space.shape[0]
            modules["sampler"] = SteinSampler(self.state_space, size, hidden_sizes=self.hidden_sizes)
        return modules

    def _check_policy(self) -> None:
        if self.is_discrete:
            return
        if self._own_prior:
            raise ValueError(
                "env is a process with an action prior of its own, and the sampler of continuous actions is for the "
                "uniform one; use SoftActorCritic"
            )
        if self.double:
            raise ValueError("double=True needs discrete actions; leave it out")
        if self.n_step > 1:
            raise ValueError("n_step > 1 needs discrete actions, whose entropy is exact; leave it out")

    def _policy_of(self, modules: dict[str, nn.Module]) -> Any:
        if self.is_discrete:
            return SoftmaxPolicy(modules["critics"], modules["temperature"], lambda state: self._log_prior(state, None))
        sampler = modules.get("sampler")
        assert sampler is None or isinstance(sampler, SteinSampler)
        return EnergyBasedPolicy(
            modules["critics"],
            sampler,
            modules["temperature"],
            state_dims=len(self.state_space.shape or ()),
            action_size=(self.action_space.shape or (1,))[0],
        )

    def _critic_of(self, modules: dict[str, nn.Module]) -> Any:
        return SoftValue(
            modules["critics"],
            self._policy_of(modules),
            temperature=float(modules["temperature"]().detach()),
            discount=self.discount,
            action_prior=self.action_prior,
            log_prior=self._log_prior,
        )
