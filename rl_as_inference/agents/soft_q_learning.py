"""Soft Q-learning: the policy is the softmax of the critic, and nothing else is learned (or its sampler is)."""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import Tensor, nn

from rl_as_inference.agents.algorithm import Algorithm
from rl_as_inference.agents.arena import Arena
from rl_as_inference.agents.encoded import behind_encoder
from rl_as_inference.agents.functional import Networks, Temperature
from rl_as_inference.agents.learner import Learner
from rl_as_inference.agents.options import SoftQLearningOptions
from rl_as_inference.agents.reading_options import filled, takes_options
from rl_as_inference.agents.replay import Batch
from rl_as_inference.agents.task import Task
from rl_as_inference.agents.values import SoftValue
from rl_as_inference.guides import EnergyBasedPolicy, SoftmaxPolicy, SteinSampler
from rl_as_inference.guides.energy_based import resampled
from rl_as_inference.nouns import EnvironmentLike, Policy
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
    td_error,
)
from rl_as_inference.randomness import drawn_from_logits
from rl_as_inference.spaces import log_tanh_slope, uniform_log_density

__all__ = ["EnergyBasedQ", "SoftQ", "SoftQLearning"]


class SoftQ(Algorithm):
    """Soft Q-learning of discrete actions, as an algorithm: sums over actions are exact.

    Args:
        task: the problem.
        options: of :class:`SoftQLearning`.
    """

    metrics = ("critic_loss", "entropy", "q")

    def __init__(self, task: Task, options: SoftQLearningOptions) -> None:
        super().__init__(task)
        self.options, self.double = options, options["double"]

    def loss(self, networks: Networks, targets: Networks, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        frozen = networks.frozen()
        alpha = frozen("temperature")
        q_a = networks("critics", batch.state, None, batch.time)
        q = self.task.taken(q_a, batch.action)
        y = self.target(frozen, targets, batch)
        critic_loss = soft_critic_loss(q, y, batch.weight)
        log_prior = self.task.log_prior(batch.state)
        least = q_a.detach().amin(0)
        log_policy = softmax_policy(least, log_prior, alpha)
        entropy = exact_soft_value(torch.zeros_like(least), log_policy, least.new_zeros(()), 1.0)
        total = critic_loss
        if (target := self.task.target_entropy) is not None:
            log_alpha = networks.tree["temperature"]["log_temperature"]
            # Of the prior and not of the policy, whose probabilities vanish where α does.
            less = 0.0 if not self.task.has_prior else target.shortfall(log_prior.expand_as(least))
            total = total + temperature_loss(log_alpha, entropy - less, target.nats)
        metrics = {"critic_loss": critic_loss, "entropy": entropy.mean(), "q": q.mean()}
        return total, metrics | {"td_error": td_error(q, y)}

    def target(self, networks: Networks, targets: Networks, batch: Batch) -> Tensor:
        """Returns ``r + γ α log Σ_a p(a) exp(Q̄(s', a)/α)``, ``(B,)``; or the online softmax's value, double."""
        alpha, discount, prior = networks("temperature"), self.task.discount, self.task.log_prior(batch.next_states)
        q_target = targets("critics", batch.next_states, None, batch.next_times).amin(0)
        q_online = q_target
        if self.double:
            q_online = networks("critics", batch.next_states, None, batch.next_times).amin(0)
            value = soft_double_q_value(q_online, q_target, prior.expand_as(q_target), alpha)
        else:
            value = log_sum_exp_value(q_target, prior, alpha)
        if self.task.n_step == 1:
            return soft_td_target(batch.rewards[0], value[0], batch.terminated[0], discount)
        log_policy = softmax_policy(q_online, prior, alpha)
        bonus = exact_soft_value(torch.zeros_like(q_target), log_policy, prior, alpha)
        return n_step_td_target(batch.rewards, bonus, value, batch.alive, batch.terminated, discount)

    def draw(self, networks: Networks, state: Tensor, time: Tensor | int) -> Tensor:
        q = networks("critics", state, None, time).amin(0)
        return self.task.action_at(drawn_from_logits(q / networks("temperature") + self.task.log_prior(state)))

    def make_modules(self, *, anew: bool) -> dict[str, nn.Module]:
        task, options = self.task, self.options
        critics = self.make_critics(options["num_critics"], options["hidden_sizes"])
        return {"critics": critics, "temperature": Temperature(task.temperature, learned=task.learns_temperature)}

    def check(self, modules: dict[str, nn.Module], state: Tensor, time: Tensor | int, *, several: bool) -> None:
        pass  # the policy is made here

    def policy_of(self, modules: dict[str, nn.Module]) -> Policy:
        timed = self.task.horizon is not None
        sizes = None if self.task.factors is None else self.task.factors.sizes
        policy = SoftmaxPolicy(
            modules["critics"], modules["temperature"], self.task.log_prior, takes_time=timed, sizes=sizes
        )
        return policy.to(self.task.device)

    def critic_of(self, modules: dict[str, nn.Module]) -> SoftValue:
        temperature = float(modules["temperature"]().detach())
        return SoftValue(self.task, modules["critics"], self.policy_of(modules), temperature=temperature)


class EnergyBasedQ(SoftQ):
    """Soft Q-learning of continuous actions, as an algorithm: values by importance sampling, draws by a sampler.

    Its arguments are those of :class:`SoftQ`.

    Raises:
        ValueError: for what only discrete actions have, and under an action prior that is not uniform.
    """

    def __init__(self, task: Task, options: SoftQLearningOptions) -> None:
        super().__init__(task, options)
        if task.prior_of is not None:
            raise ValueError(
                "env is a process with an action prior of its own, and the sampler of continuous actions is for the "
                "uniform one; use SoftActorCritic"
            )
        if self.double:
            raise ValueError("double=True needs discrete actions; leave it out")
        if task.n_step > 1:
            raise ValueError("n_step > 1 needs discrete actions, whose entropy is exact; leave it out")
        self.has_sampler = options["sampler"] == "stein"
        self.num_particles, self.num_value_draws = options["num_particles"], options["num_value_draws"]
        self.size = (task.action_shape or (1,))[0]

    def loss(self, networks: Networks, targets: Networks, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        frozen = networks.frozen()
        alpha = frozen("temperature")
        q = networks("critics", batch.state, batch.action, batch.time)
        y = self.target(frozen, targets, batch)
        critic_loss = soft_critic_loss(q, y, batch.weight)
        total = critic_loss
        if self.has_sampler:
            sampler_loss, entropy = self.sampler_loss(networks, frozen, batch.state, batch.time, alpha)
            total = total + sampler_loss
        else:
            _, energies = self.candidates(frozen, batch.state, batch.time, alpha)
            log_weights = energies.log_softmax(-1)  # of the policy to the uniform density, times the count
            gain = (log_weights.exp() * log_weights).sum(-1) + math.log(self.num_value_draws)
            entropy = -gain - uniform_log_density(self.task.action_space)
        if (target := self.task.target_entropy) is not None:
            total = total + temperature_loss(networks.tree["temperature"]["log_temperature"], entropy, target.nats)
        metrics = {"critic_loss": critic_loss, "entropy": entropy.mean(), "q": q.mean()}
        return total, metrics | {"td_error": td_error(q, y)}

    def target(self, networks: Networks, targets: Networks, batch: Batch) -> Tensor:
        """Returns ``r + γ V(s')`` with an importance estimate of ``V``, ``(B,)``."""
        time = batch.next_times if isinstance(batch.next_times, int) else batch.next_times[0]
        value = self.value(targets, batch.next_states[0], time, networks("temperature"))
        return soft_td_target(batch.rewards[0], value, batch.terminated[0], self.task.discount)

    def value(self, networks: Networks, state: Tensor, time: Tensor | int, alpha: Tensor) -> Tensor:
        """Returns the importance estimate of a continuous soft value, ``(B,)``."""
        action, energies = self.candidates(networks, state, time, alpha)
        log_proposal = torch.full_like(energies, uniform_log_density(self.task.action_space))
        return importance_log_sum_exp_value(energies * alpha, log_proposal, self.task.log_prior(state, action), alpha)

    def candidates(self, networks: Networks, state: Tensor, time: Tensor | int, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Returns uniform actions ``(*batch, J, d)`` and their ``Q/α``."""
        task, count = self.task, self.num_value_draws
        batch = task.batch_shape(state)
        action = 2 * torch.rand(*batch, count, self.size, dtype=task.dtype, device=task.device) - 1
        q = networks("critics", task.beside(state, count), action, task.times_beside(time)).amin(0)
        return action, q / alpha

    def sampler_loss(
        self, networks: Networks, frozen: Networks, state: Tensor, time: Tensor | int, alpha: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns a surrogate whose gradient moves the sampler along Stein directions, and the entropy per state.

        Directions are taken before squashing, where the density vanishes at the ends, as it must.
        """
        task, count = self.task, self.num_particles
        noise = torch.randn(len(state), count, self.size, dtype=task.dtype, device=task.device)
        states, times = task.beside(state, count), task.times_beside(time)
        before = networks("sampler", states, noise, times)

        def log_density(u: Tensor) -> tuple[Tensor, Tensor]:
            q = frozen("critics", states, u.tanh(), times).amin(0)
            return (q / alpha + log_tanh_slope(u).sum(-1)).sum(), q

        scores, q = torch.func.grad(log_density, has_aux=True)(before.detach())
        direction = SteinSampler.direction(before.detach(), scores, before.detach())
        surrogate = -(direction.detach() * before).sum(-1).mean()
        value = self.value(frozen, state, time, alpha)
        entropy = (value - q.mean(-1)) / alpha - task.log_prior(state, before.tanh()).mean()
        return surrogate, entropy.detach()

    def draw(self, networks: Networks, state: Tensor, time: Tensor | int) -> Tensor:
        if not self.has_sampler:
            return resampled(*self.candidates(networks, state, time, networks("temperature")))
        task = self.task
        noise = torch.randn(*task.batch_shape(state), self.size, dtype=task.dtype, device=task.device)
        action: Tensor = networks("sampler", state, noise, time).tanh()
        return action

    def make_modules(self, *, anew: bool) -> dict[str, nn.Module]:
        modules, task = super().make_modules(anew=anew), self.task
        if self.has_sampler:
            modules["sampler"] = SteinSampler(
                task.state_space, self.size, horizon=task.horizon, hidden_sizes=self.options["hidden_sizes"]
            )
        return modules

    def policy_of(self, modules: dict[str, nn.Module]) -> Policy:
        sampler = modules.get("sampler")
        assert sampler is None or isinstance(sampler, SteinSampler)
        return EnergyBasedPolicy(
            modules["critics"],
            sampler,
            modules["temperature"],
            state_dims=len(self.task.state_shape),
            action_size=self.size,
            takes_time=self.task.horizon is not None,
        )


@takes_options(SoftQLearningOptions)
class SoftQLearning(Learner):
    """Soft Q-learning (Haarnoja et al. 2017, arXiv:1702.08165) on an environment or a process.

    The critic learns ``y = r + γ V(s')`` with ``V = α log Σ_a p(a) exp(Q̄(s',a)/α)``, and the policy is
    ``p(a|s) exp((Q - V)/α)``. Over discrete actions both are exact, and ``double=True`` lets the
    online network choose and the target network value (soft double Q-learning). Over continuous
    actions, of few dimensions, ``V`` is an importance estimate from uniform draws, and the policy's
    draws are those of an amortized Stein sampler, as in the paper, or are uniform draws resampled by
    their energies. The sampler scales further; it moves by gradients alone, so that what share of its
    draws goes to which of several far modes is left to how it got there. Resampling gets the shares right.
    :class:`SoftQ` and :class:`EnergyBasedQ` are the updates.

    Args:
        env: as for :class:`SoftActorCritic`.
        OPTIONS

    Raises:
        TypeError, ValueError: as :class:`SoftActorCritic` does.

    Example:
        >>> agent = SoftQLearning("CartPole-v1", hidden_sizes=(16,), batch_size=8, learning_starts=20)
        >>> agent.learn(30)
        >>> agent.policy(torch.zeros(4), 0).probs.shape, int(agent.act([0.0, 0.0, 0.0, 0.0])) in (0, 1)
        (torch.Size([2]), True)
    """

    def __init__(self, env: EnvironmentLike, **config: Unpack[SoftQLearningOptions]) -> None:
        options: SoftQLearningOptions = filled(SoftQLearningOptions, config, by="SoftQLearning")
        arena = Arena(env, options)
        arena.task.check_few_actions("SoftQLearning")
        kind = SoftQ if arena.task.is_discrete else EnergyBasedQ
        super().__init__(arena, behind_encoder(lambda task: kind(task, options), arena, options), options)
        self.double, self.sampler, self.num_critics = options["double"], options["sampler"], options["num_critics"]
        self.num_particles, self.num_value_draws = options["num_particles"], options["num_value_draws"]
