"""Maximum a posteriori policy optimisation: the policy is regressed on an improvement of its own average."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor, nn

from rl_as_inference.agents.actors import made_actor
from rl_as_inference.agents.algorithm import Algorithm
from rl_as_inference.agents.arena import Arena
from rl_as_inference.agents.encoded import behind_encoder
from rl_as_inference.agents.functional import Multiplier, Networks, Temperature
from rl_as_inference.agents.learner import Learner
from rl_as_inference.agents.options import MPOOptions
from rl_as_inference.agents.reading_options import filled, takes_options
from rl_as_inference.agents.replay import Batch
from rl_as_inference.agents.task import Task
from rl_as_inference.agents.values import SoftValue
from rl_as_inference.nouns import EnvironmentLike, Policy
from rl_as_inference.objectives.mpo_losses import (
    dual_loss,
    gaussian_divergences,
    multiplier_loss,
    regression_loss,
)
from rl_as_inference.objectives.soft_critics import n_step_td_target, soft_critic_loss, softmax_policy, td_error
from rl_as_inference.randomness import drawn_from_logits
from rl_as_inference.spaces import log_tanh_slope

__all__ = ["DUAL_STEP", "MPO", "PolicyImprovement"]

DUAL_STEP = 0.03
"""The step of η's and the multipliers' logarithms, whatever the networks' is (Acme's MPO has 0.01 beside 1e-4)."""
_MULTIPLIERS = {"policy": 1.0, "mean": 10.0, "scale": 1000.0}
"""Where the multipliers of the M-step start, in nats of likelihood a nat of divergence."""
_LEAST, _MARGIN = 1e-2, 10.0
"""Where they stay: at least the first; at most the second times what holds the bound of the best M-step.

The improvement is within ``kl_improvement`` of the old policy, so that the best M-step at a multiplier ``λ`` is about
``kl_improvement/(1 + λ)²`` away from it, and ``λ = √(kl_improvement/bound)`` holds the bound. What is above it then is
the noise of Adam's steps, against which a larger ``λ`` does nothing but stop the learning.
"""
_LOG_SCALE_BOUNDS = (-5.0, 2.0)
"""Of the Gaussian before squashing: divergences are in units of its scale, which must not vanish."""


class Improvement(NamedTuple):
    """The E-step in a batch of states: actions of what is improved upon, and what each counts in the improved one."""

    q: Tensor
    """``(*batch, A)``, of all discrete actions or of draws, reward units."""
    log_old: Tensor
    """Log probabilities of discrete actions in what is improved upon; ``-log A`` of draws from it."""
    weight: Tensor
    """``q(a)``, ``(*batch, A)``."""
    before: Tensor | None
    """Draws before squashing, ``(*batch, A, d)``; None for discrete actions."""


class PolicyImprovement(Algorithm):
    """Maximum a posteriori policy optimisation (Abdolmaleki et al. 2018), as an algorithm.

    Args:
        task: the problem.
        options: of :class:`MPO`.
    """

    metrics: tuple[str, ...] = ("critic_loss", "actor_loss", "entropy", "q", "kl_improvement")
    targeted = ("critics", "policy")

    def __init__(self, task: Task, options: MPOOptions) -> None:
        super().__init__(task)
        self.options = options

    def loss(self, networks: Networks, targets: Networks, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        options, state, time = self.options, batch.state, batch.time

        # Critics:      ½ (Q_i(s, a) - y)², the return of the old policy, without entropy
        q = self.values(networks, state, time, batch.action)
        y = self.target(targets, batch)
        critic_loss = soft_critic_loss(q, y, batch.weight)

        # E-step:       q(a|s) ∝ π̄(a|s) exp(min_i Q̄_i(s, a)/η), and η by its dual
        eta, old = networks("temperature"), targets("policy", state, time)
        improved = self.improvement(targets, self.reference(networks, old, batch), state, time, eta.detach())
        total = critic_loss
        if self.task.learns_temperature:
            total = total + dual_loss(improved.q, improved.log_old, eta, options["kl_improvement"])

        # M-step:       -E_q[log π] + λ (KL(π̄‖π) - ε)
        actor_loss, entropy = self.projected(networks, old, improved, state, time)
        weight = improved.weight
        gain = torch.where(weight > 0, weight * (weight.log() - improved.log_old), 0.0)
        metrics = {
            "critic_loss": critic_loss,
            "actor_loss": actor_loss,
            "entropy": entropy,
            "q": q.mean(),
            "kl_improvement": gain.sum(-1).mean(),
            "td_error": td_error(q, y),
        }
        for name, module in networks.modules.items():
            if isinstance(module, Multiplier):
                actor_loss = actor_loss + module.excess(networks.tree[name]["slow_log"])
        return total + actor_loss, metrics

    def reference(self, networks: Networks, old: Any, batch: Batch) -> Any:
        """Returns the policies that are improved upon in the batch's states: the old ones."""
        return old

    def target(self, targets: Networks, batch: Batch) -> Tensor:
        """Returns ``y = r + γ E_π̄[min_i Q̄_i(s', a')]``, ``(B,)``: the critics learn the return of the old policy."""
        state, time = batch.next_states, batch.next_times
        old = targets("policy", state, time)
        if self.task.is_discrete:
            policy = self.task.log_policies(old).exp()
            value = (policy * targets("critics", state, None, time).amin(0)).sum(-1)
        else:
            value = targets("critics", state, old.sample(), time).amin(0)
        nothing = torch.zeros_like(value)
        return n_step_td_target(batch.rewards, nothing, value, batch.alive, batch.terminated, self.task.discount)

    def improvement(
        self, targets: Networks, old: Any, state: Tensor, time: Tensor | int, temperature: Tensor
    ) -> Improvement:
        """Returns the E-step: exact over discrete actions, by draws from the old policy over others."""
        task = self.task
        if task.is_discrete:
            before, q = None, targets("critics", state, None, time).amin(0)
            log_old = task.log_policies(old)
        else:
            count = self.options["num_action_draws"]
            loc, scale = old.base_dist.loc[..., None, :], old.base_dist.scale[..., None, :]
            noise = torch.randn(*loc.shape[:-2], count, loc.shape[-1], dtype=loc.dtype, device=loc.device)
            before = loc + scale * noise
            states, times = task.beside(state, count), task.times_beside(time)
            q = targets("critics", states, before.tanh(), times).amin(0)
            log_old = torch.full_like(q, -math.log(count))
        return Improvement(q, log_old, softmax_policy(q, log_old, temperature).exp(), before)

    def projected(
        self, networks: Networks, old: Any, improved: Improvement, state: Tensor, time: Tensor | int
    ) -> tuple[Tensor, Tensor]:
        """Returns the M-step's loss with its constraints, and the policy's mean entropy, nats."""
        new, options = networks("policy", state, time), self.options
        if improved.before is None:
            log_policy, log_old = (self.task.log_policies(each) for each in (new, old))
            possible, before = log_old > -torch.inf, log_old.exp()
            divergence = (before * torch.where(possible, log_old - log_policy, 0.0)).sum(-1)
            loss = regression_loss(log_policy, improved.weight)
            loss = loss + multiplier_loss(networks("multiplier_policy"), divergence, options["kl_policy"])
            entropy = -(before * torch.where(possible, log_old, 0.0)).sum(-1)
            return loss, entropy.mean()
        loc, scale = new.base_dist.loc, new.base_dist.scale
        old_loc, old_scale = old.base_dist.loc, old.base_dist.scale
        loss = loc.new_zeros(())
        for each_loc, each_scale in ((loc, old_scale), (old_loc, scale)):
            # Before squashing, whose slope at a draw is the same for every policy.
            error = (improved.before - each_loc[..., None, :]) / each_scale[..., None, :]
            log_policy = (-0.5 * error.square() - each_scale[..., None, :].log()).sum(-1)
            loss = loss + regression_loss(log_policy, improved.weight)
        divergences = gaussian_divergences(loc, scale, old_loc, old_scale)
        bounds = {"mean": options["kl_mean"], "scale": options["kl_scale"]}
        for (name, bound), divergence in zip(bounds.items(), divergences, strict=True):
            loss = loss + multiplier_loss(networks(f"multiplier_{name}"), divergence, bound)
        gaussian = (old_scale.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)
        return loss, (gaussian + log_tanh_slope(improved.before).sum(-1).mean(-1)).mean()

    def draw(self, networks: Networks, state: Tensor, time: Tensor | int) -> Tensor:
        chosen = networks("policy", state, time)
        if self.task.is_discrete:
            return self.task.action_at(drawn_from_logits(self.task.log_policies(chosen)))
        action: Tensor = chosen.sample()
        return action

    def make_modules(self, *, anew: bool) -> dict[str, nn.Module]:
        task, options, sizes = self.task, self.options, self.options["hidden_sizes"]
        pace = DUAL_STEP / options["learning_rate"]
        modules: dict[str, nn.Module] = {
            "policy": made_actor(task, hidden_sizes=sizes, components=1, log_scale_bounds=_LOG_SCALE_BOUNDS),
            "critics": self.make_critics(options["num_critics"], sizes),
            "temperature": Multiplier(task.temperature, pace=pace)
            if task.learns_temperature
            else Temperature(task.temperature, learned=False),
        }
        shapes = {"policy": ()} if task.is_discrete else {"mean": task.action_shape, "scale": task.action_shape}
        for name, shape in shapes.items():
            bound = {"policy": options["kl_policy"], "mean": options["kl_mean"], "scale": options["kl_scale"]}[name]
            most = _MARGIN * max(math.sqrt(options["kl_improvement"] / bound), 1.0)
            start = min(_MULTIPLIERS[name], most)
            modules[f"multiplier_{name}"] = Multiplier(start, shape, pace=pace, bounds=(_LEAST, most))
        return modules

    def check(self, modules: dict[str, nn.Module], state: Tensor, time: Tensor | int, *, several: bool) -> None:
        pass  # the policy is made here

    def policy_of(self, modules: dict[str, nn.Module]) -> Policy:
        return modules["policy"]

    def critic_of(self, modules: dict[str, nn.Module]) -> SoftValue:
        temperature = float(modules["temperature"]().detach())
        return SoftValue(self.task, modules["critics"], modules["policy"], temperature=temperature, objective="return")


@takes_options(MPOOptions)
class MPO(Learner):
    """Maximum a posteriori policy optimisation (MPO) on an environment or a process.

    Expectation maximisation (Abdolmaleki et al. 2018, arXiv:1806.06920 and arXiv:1812.02256): where soft actor-critic
    climbs ``-KL(π‖q)``, MPO regresses on ``q``, ``-KL(q‖π)``. With ``π̄`` and ``Q̄`` the average policy and critics, one
    update draws a batch from replay and takes one Adam step on

    - the critics, ``½ (Q_i(s,a) - y)²`` with ``y = r + γ E_π̄[min_i Q̄_i(s',a')]``,
    - the temperature of the E-step, η, by the dual of ``KL(q‖π̄) ≤ kl_improvement``, where
      ``q(a|s) ∝ π̄(a|s) exp(min_i Q̄_i(s,a)/η)`` over draws from ``π̄``, or over all discrete actions,
    - the policy, ``-E_q[log π]``, with multipliers that hold it near ``π̄``: the mean and the scale of a Gaussian each
      by itself (``kl_mean``, ``kl_scale``; before squashing, which changes no divergence), a discrete policy whole
      (``kl_policy``),

    and moves both averages by ``target_average``. :class:`PolicyImprovement` is that update.

    **In the words of the model.** Each E-step is the exact posterior of a one-step program whose action prior is the
    old policy and whose temperature is η. The entropy that soft actor-critic counts for good is here only on the way:
    critics learn the plain return, and at rest ``π = q`` wherever ``Q`` is flat. So ``temperature`` is η, not the
    model's α, which together with its action prior is not looked at (but for actions of probability 0, which
    stay so), and a critic's ``objective`` is ``"return"``: ``compare`` refuses it where an ELBO is wanted.

    Args:
        env: as for :class:`SoftActorCritic`.
        OPTIONS

    Raises:
        TypeError: for an option that there is not.
        ValueError: if an argument is out of range, the spaces are not supported, or an entropy or return is to be held.

    Example:
        >>> agent = MPO("Pendulum-v1", hidden_sizes=(16,), batch_size=8, learning_starts=20)
        >>> agent.learn(30)
        >>> agent.act([1.0, 0.0, 0.0], deterministic=True).shape, agent.critic.objective
        ((1,), 'return')
    """

    def __init__(self, env: EnvironmentLike, **config: Unpack[MPOOptions]) -> None:
        options: MPOOptions = filled(MPOOptions, config, by="MPO")
        for name in ("target_entropy", "action_scale", "target_return"):
            if options[name] is not None:
                raise ValueError(
                    f"{name} tunes the temperature of an entropy that MPO does not count: its own is tuned to "
                    f"kl_improvement; leave it out, or use SoftActorCritic"
                )
        if options["temperature"] is None:  # a process's α is of its ELBO, and not η
            options = {**options, "temperature": "auto"}
        arena = Arena(env, options)
        arena.task.check_few_actions("MPO")
        arena.task = replace(arena.task, target_entropy=None)
        super().__init__(arena, behind_encoder(lambda task: PolicyImprovement(task, options), arena, options), options)
        self.num_critics, self.num_action_draws = options["num_critics"], options["num_action_draws"]
        self.kl_improvement, self.kl_policy = options["kl_improvement"], options["kl_policy"]
        self.kl_mean, self.kl_scale = options["kl_mean"], options["kl_scale"]
