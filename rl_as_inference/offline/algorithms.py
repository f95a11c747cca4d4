"""Policies from data alone: implicit Q-learning, advantage-weighted regression, MPO and behaviour cloning."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Independent

from rl_as_inference.agents.actors import check_actor, check_draws, made_actor, users_actor
from rl_as_inference.agents.algorithm import Algorithm
from rl_as_inference.agents.functional import Multiplier, Networks, Temperature
from rl_as_inference.agents.mpo import DUAL_STEP, PolicyImprovement
from rl_as_inference.agents.options import MPOOptions
from rl_as_inference.agents.replay import Batch
from rl_as_inference.agents.task import Task
from rl_as_inference.agents.values import SoftValue
from rl_as_inference.critics import SoftV
from rl_as_inference.guides import TanhNormal
from rl_as_inference.nouns import Policy
from rl_as_inference.objectives.advantage_weights import (
    advantage_weights,
    expectile_loss,
    lambda_return,
    weighted_likelihood_loss,
)
from rl_as_inference.objectives.mpo_losses import dual_loss
from rl_as_inference.objectives.soft_critics import soft_critic_loss, soft_td_target

__all__ = [
    "AdvantageWeightedRegression",
    "BehaviourCloning",
    "DataOptions",
    "ImplicitQ",
    "OfflineImprovement",
    "StateValue",
]

_INSIDE = 0.999
"""Where actions at the ends of the box count as, at which a squashed density has no finite mode."""


@dataclass(frozen=True)
class DataOptions:
    """What the algorithms below are told beside the task; the words are those of :func:`~..learn_offline`."""

    policy: nn.Module | None
    hidden_sizes: tuple[int, ...]
    kl_improvement: float
    largest_weight: float
    expectile: float
    lambda_: float
    num_critics: int
    learning_rate: float


class BehaviourCloning(Algorithm):
    """Maximum likelihood of the actions in the data, which are all alike; what is weighted extends it.

    Args:
        task: the problem.
        options: what else.
    """

    metrics: tuple[str, ...] = ("actor_loss",)
    targeted: tuple[str, ...] = ("policy",)

    def __init__(self, task: Task, options: DataOptions) -> None:
        super().__init__(task)
        self.options = options

    def loss(self, networks: Networks, targets: Networks, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        log_policy = self.log_policy(networks, batch)
        loss = weighted_likelihood_loss(log_policy, torch.ones_like(log_policy))
        return loss, {"actor_loss": loss}

    def log_policy(self, networks: Networks, batch: Batch, name: str = "policy") -> Tensor:
        """Returns ``log π(a|s)`` of the actions in the data, ``(B,)`` in nats."""
        action = batch.action if self.task.is_discrete else batch.action.clamp(-_INSIDE, _INSIDE)
        log_policy: Tensor = networks(name, batch.state, batch.time).log_prob(action)
        return log_policy

    def regression(self, networks: Networks, batch: Batch, advantage: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss of policy and temperature where actions of the data count ``exp(A/η)``, and numbers."""
        eta = networks("temperature")
        weight = advantage_weights(advantage, eta, self.options.largest_weight)
        actor_loss = weighted_likelihood_loss(self.log_policy(networks, batch), weight)
        total = actor_loss
        if self.task.learns_temperature:  # one program for all of the data, whose prior is the data
            everything = advantage[None]
            log_share = torch.full_like(everything, -math.log(everything.shape[-1]))
            total = total + dual_loss(everything, log_share, eta, self.options.kl_improvement)
        return total, {"actor_loss": actor_loss, "temperature": eta, "largest_weight": weight.amax()}

    def draw(self, networks: Networks, state: Tensor, time: Tensor | int) -> Tensor:
        return networks("policy", state, time).sample()

    def make_modules(self, *, anew: bool) -> dict[str, nn.Module]:
        if self.options.policy is None:
            return {"policy": made_actor(self.task, hidden_sizes=self.options.hidden_sizes, components=1)}
        return {"policy": copy.deepcopy(users_actor(self.options.policy))}

    def temperature(self) -> nn.Module:
        """Returns η as a module: learned from where the task begins it, or fixed there."""
        if self.task.learns_temperature:
            return Multiplier(self.task.temperature, pace=DUAL_STEP / self.options.learning_rate)
        return Temperature(self.task.temperature, learned=False)

    def check(self, modules: dict[str, nn.Module], state: Tensor, time: Tensor | int, *, several: bool) -> None:
        check_actor(self.task, modules["policy"], state, time)
        if self.options.policy is not None:
            check_draws(self.task, modules["policy"], state, time, several=several)

    def policy_of(self, modules: dict[str, nn.Module]) -> Policy:
        return modules["policy"]

    def critic_of(self, modules: dict[str, nn.Module]) -> SoftValue:
        raise ValueError("behaviour cloning has no critic")


class ImplicitQ(BehaviourCloning):
    """Implicit Q-learning (Kostrikov, Nair & Levine 2021, arXiv:2110.06169): only what was done is ever valued."""

    metrics = ("critic_loss", "value_loss", "actor_loss", "q", "temperature", "largest_weight")
    targeted = ("critics",)

    def loss(self, networks: Networks, targets: Networks, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        frozen, task = networks.frozen(), self.task

        # Value:    the τ-expectile of min_i Q̄_i(s, a) over the actions of the data
        seen = self.values(targets, batch.state, batch.time, batch.action).amin(0)
        value = networks("value", batch.state, batch.time)
        value_loss = expectile_loss(value, seen, self.options.expectile)

        # Critics:  ½ (Q_i(s, a) - r - γ V(s'))²
        after = frozen("value", batch.next_states, batch.next_times)[0]
        target = soft_td_target(batch.rewards[0], after, batch.terminated[0], task.discount)
        q = self.values(networks, batch.state, batch.time, batch.action)
        critic_loss = soft_critic_loss(q, target)

        # Policy:   -exp((min_i Q̄_i - V)/η) log π(a|s)
        policy_loss, metrics = self.regression(networks, batch, seen - value.detach())
        return policy_loss + value_loss + critic_loss, {
            **metrics,
            "critic_loss": critic_loss,
            "value_loss": value_loss,
            "q": q.mean(),
        }

    def make_modules(self, *, anew: bool) -> dict[str, nn.Module]:
        task, sizes = self.task, self.options.hidden_sizes
        return {
            **super().make_modules(anew=anew),
            "critics": self.make_critics(self.options.num_critics, sizes),
            "value": SoftV(task.state_space, horizon=task.horizon, hidden_sizes=sizes),
            "temperature": self.temperature(),
        }

    def critic_of(self, modules: dict[str, nn.Module]) -> SoftValue:
        return SoftValue(
            self.task,
            modules["critics"],
            modules["policy"],
            temperature=float(modules["temperature"]().detach()),
            objective="return",
        )


class AdvantageWeightedRegression(BehaviourCloning):
    """Advantage-weighted regression (Peng, Kumar, Zhang & Levine 2019, arXiv:1910.00177), by λ-returns of segments.

    The value is of whoever acted in the data, and an advantage is what an episode earned beyond it: there is no Q.
    """

    metrics = ("value_loss", "actor_loss", "temperature", "largest_weight")
    targeted = ("value",)

    def loss(self, networks: Networks, targets: Networks, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        after = targets("value", batch.next_states, batch.next_times)
        earned = lambda_return(
            batch.rewards, after, batch.alive, batch.terminated, self.task.discount, self.options.lambda_
        )
        value = networks("value", batch.state, batch.time)
        value_loss = 0.5 * (value - earned).square().mean()
        policy_loss, metrics = self.regression(networks, batch, earned - value.detach())
        return policy_loss + value_loss, {**metrics, "value_loss": value_loss}

    def make_modules(self, *, anew: bool) -> dict[str, nn.Module]:
        value = SoftV(self.task.state_space, horizon=self.task.horizon, hidden_sizes=self.options.hidden_sizes)
        return {**super().make_modules(anew=anew), "value": value, "temperature": self.temperature()}

    def critic_of(self, modules: dict[str, nn.Module]) -> SoftValue:
        return StateValue(self.task, modules["value"], modules["policy"], float(modules["temperature"]().detach()))


class StateValue(SoftValue):
    """A learned state value by itself, of the return of whoever acted in the data; of actions it knows nothing."""

    def __init__(self, task: Task, value: nn.Module, policy: Policy, temperature: float) -> None:
        super().__init__(task, value, policy, temperature=temperature, objective="return")

    def action_values(self, state: Tensor, action: Tensor | None = None, t: int | Tensor = 0) -> Tensor:
        raise ValueError("the critic of method='awr' values states alone; method='iql' learns values of actions")

    @torch.no_grad()
    def forward(self, state: Tensor, t: int | Tensor = 0) -> Tensor:
        value: Tensor = self.q(state, t)
        return value


class OfflineImprovement(PolicyImprovement):
    """MPO on data: what is improved upon is not the old policy but a clone of who acted (Siegel et al. 2020).

    Without new data the old policy would wander to actions whose values nobody ever corrects. With the clone for action
    prior, an improvement is within ``kl_improvement`` of the behaviour, where critics know what they say
    (arXiv:2002.08396, a learned prior for MPO).

    Args:
        task: the problem.
        options: of :class:`~rl_as_inference.MPO`.
        data: what the cloning is told.
    """

    metrics = (*PolicyImprovement.metrics, "temperature", "clone_loss")

    def __init__(self, task: Task, options: MPOOptions, data: DataOptions) -> None:
        super().__init__(task, options)
        self.cloning = BehaviourCloning(task, data)

    def loss(self, networks: Networks, targets: Networks, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        log_policy = self.cloning.log_policy(networks, batch, "clone")
        clone_loss = weighted_likelihood_loss(log_policy, torch.ones_like(log_policy))
        total, metrics = super().loss(networks, targets, batch)
        return total + clone_loss, {**metrics, "temperature": networks("temperature"), "clone_loss": clone_loss}

    def reference(self, networks: Networks, old: Any, batch: Batch) -> Any:
        return networks.frozen()("clone", batch.state, batch.time)

    def make_modules(self, *, anew: bool) -> dict[str, nn.Module]:
        policies = {name: self.cloning.make_modules(anew=anew)["policy"] for name in ("policy", "clone")}
        return {**super().make_modules(anew=anew), **policies}

    def check(self, modules: dict[str, nn.Module], state: Tensor, time: Tensor | int, *, several: bool) -> None:
        self.cloning.check(modules, state, time, several=several)
        chosen = modules["policy"](state, time)
        squashed = isinstance(chosen, Independent) and isinstance(chosen.base_dist, TanhNormal)
        if not self.task.is_discrete and not squashed:
            raise ValueError(
                f"policy gives {type(chosen).__name__}, and method='mpo' bounds mean and scale of a squashed Gaussian; "
                f"give a rl_as_inference.guides.TanhGaussianPolicy, or choose method='iql'"
            )
