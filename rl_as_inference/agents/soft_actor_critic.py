"""Soft actor-critic, and the methods that differ from it in a term."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor, nn

from rl_as_inference.agents.actors import Within, check_actor, check_draws, chosen_gradient, made_actor, users_actor
from rl_as_inference.agents.algorithm import Algorithm
from rl_as_inference.agents.arena import Arena
from rl_as_inference.agents.distributional import categorical_step
from rl_as_inference.agents.encoded import Encoded, behind_encoder
from rl_as_inference.agents.evaluation import mode_of
from rl_as_inference.agents.expectation import Expectation, How, expectation
from rl_as_inference.agents.functional import Networks, Temperature
from rl_as_inference.agents.learner import Learner
from rl_as_inference.agents.options import ActorGradient, Objective, SoftActorCriticOptions
from rl_as_inference.agents.parameters import Tree
from rl_as_inference.agents.reading_options import filled, takes_options
from rl_as_inference.agents.recurrent import Recurrent
from rl_as_inference.agents.replay import Batch
from rl_as_inference.agents.task import Task
from rl_as_inference.agents.users_critic import check_critic, users_critic
from rl_as_inference.agents.values import SoftValue
from rl_as_inference.critics import SoftV
from rl_as_inference.guides.gaussian import TanhNormal
from rl_as_inference.nouns import EnvironmentLike, Policy
from rl_as_inference.objectives.soft_actors import temperature_loss
from rl_as_inference.objectives.soft_critics import (
    n_step_td_target,
    soft_critic_loss,
    soft_td_target,
    td_error,
    wrong_td_target,
)
from rl_as_inference.randomness import drawn_from_logits
from rl_as_inference.residual_network import check_residual_widths, on_spheres

__all__ = ["ActorCritic", "ActorGradient", "Objective", "SoftActorCritic"]


class Entropy(NamedTuple):
    """Where an objective counts entropy, and whether it needs a stochastic policy at all."""

    acting: bool
    """In the actor's loss: the entropy of the present action, which is the actor's to add."""
    following: bool
    """In the value of what follows."""
    present: bool
    """In an action's own value, where it does not belong."""
    mean_acts: bool = False
    """The policy's mean acts, with noise added."""


OBJECTIVES: dict[Objective, Entropy] = {
    "maxent": Entropy(acting=True, following=True, present=False),
    # Williams & Peng 1991
    "one_step_entropy": Entropy(acting=True, following=False, present=False),
    # right as an identity, wrong to learn from: see wrong_td_target
    "wrong_bellman": Entropy(acting=False, following=False, present=True),
    # Heess et al. 2015, arXiv:1510.09142
    "svg0": Entropy(acting=False, following=False, present=False),
    # Lillicrap et al. 2016, arXiv:1509.02971
    "ddpg": Entropy(acting=False, following=False, present=False, mean_acts=True),
}
"""The rungs of the ladder from a deterministic actor to soft actor-critic."""


class ActorCritic(Algorithm):
    """Soft actor-critic (Haarnoja et al. 2018, arXiv:1812.05905) and its ancestors, as an algorithm.

    Args:
        task: the problem.
        options: of :class:`SoftActorCritic`.

    Attributes:
        actor_gradient: how the actor's expectation is taken; settled by :meth:`check`.
        num_critics: how many there are; of the user's own, settled by :meth:`check`.
    """

    metrics = ("critic_loss", "actor_loss", "entropy", "q")

    def __init__(self, task: Task, options: SoftActorCriticOptions) -> None:
        super().__init__(task)
        _check_options(task, options)
        self.options, self.entropy = options, OBJECTIVES[options["objective"]]
        self.has_value, self.exploration_noise = options["value_network"], options["exploration_noise"]
        self.actor_gradient, self.num_critics = options["actor_gradient"], options["num_critics"]
        self.architecture, self.period = options["architecture"], options["actor_every"]
        self.targeted = ("value",) if self.has_value else () if self.architecture == "batch_norm" else ("critics",)
        # α is learned in units of the reward scale where entropy tunes it: all of what critics say then scales alike.
        self.scales = self.architecture == "residual" and options["reward_scaling"] and task.target_entropy is not None
        self.projects = self.architecture == "residual"
        self.delayed, self.delayed_metrics = ("policy", "temperature"), ("actor_loss", "entropy")

    # The update, as in the paper's algorithm 1: one step on the sum of all losses, at the parameters before it.

    def loss(self, networks: Networks, targets: Networks, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        frozen = networks.frozen()  # through which no gradient reaches any parameter
        state, time, alpha = batch.state, batch.time, frozen("temperature")

        critic_loss, q, error = self.critics_step(networks, frozen, targets, batch)

        # Policy:       E_π[log π - log p - min_i Q_i/α], or -E_π[min_i Q_i] without its entropy
        chosen = networks.learning("policy", state, time)
        pi = expectation(self.task, chosen, state, time, self.acting)
        least = self.least(frozen, pi)
        actor_loss = pi.mean(pi.relative - least / alpha if self.entropy.acting else -least).mean()

        # Temperature:  α (H[π] - target)
        total = critic_loss + actor_loss
        if (target := self.task.target_entropy) is not None:
            log_alpha = networks.tree["temperature"]["log_temperature"]
            total = total + temperature_loss(log_alpha, pi.entropy - self.shortfall(chosen), target.nats)

        # Value:        ½ (V(s) - E_π[min_i Q_i - α (log π - log p)])², in the first version alone
        if self.has_value:
            value = pi.mean(least - alpha * pi.relative).detach()
            total = total + 0.5 * (networks("value", state, time) - value).square().mean()
        metrics = {"critic_loss": critic_loss, "actor_loss": actor_loss, "entropy": pi.entropy.mean(), "q": q.mean()}
        return total, metrics | {"td_error": error}

    def critic_loss(self, networks: Networks, targets: Networks, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, q, error = self.critics_step(networks, networks.frozen(), targets, batch)
        return loss, {"critic_loss": loss, "q": q.mean(), "td_error": error}

    def critics_step(
        self, networks: Networks, frozen: Networks, targets: Networks, batch: Batch
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the critics' loss ``½ (Q_i(s, a) - y)²``, their values ``(num_critics, B)`` and errors ``(B,)``.

        Of residual critics it is a cross entropy: :func:`~rl_as_inference.agents.distributional.categorical_step`.
        """
        if self.architecture == "residual":
            following = self.followed(frozen, batch)
            alpha = frozen("temperature") if self.entropy.following else None
            asked = self.together(batch, following)
            loss, q, y = categorical_step(self.task, networks, targets, batch, asked, following, alpha)
            return loss, q, td_error(q, y)
        if self.architecture == "batch_norm":
            # One pass over both, by whose joint statistics both are normalised; no average of the critics is needed.
            following = self.followed(frozen, batch)
            q, after = self.values_together(networks, batch, following)
            target = self.target(frozen, targets, batch, following, after.detach().amin(0))
        else:
            q = self.values(networks, batch.state, batch.time, batch.action)
            target = self.target(frozen, targets, batch)
        return soft_critic_loss(q, target, batch.weight), q, td_error(q, target)

    def values_together(self, networks: Networks, batch: Batch, after: Expectation) -> tuple[Tensor, Tensor]:
        """Returns the critics' values of what was done, and of what follows, asked and normalised as one batch."""
        task, count, lead = self.task, len(batch.state), self.task.batch_shape(after.state)
        values = networks.learning("critics", *self.together(batch, after))
        q, following = values[:, :count], values[:, count:].unflatten(1, lead)
        return (task.taken(q, batch.action) if task.is_discrete else q), following

    def together(self, batch: Batch, after: Expectation) -> tuple[Tensor, Tensor | None, Tensor | int]:
        """Returns states, actions and times to ask critics with: of what was done, and then of what follows."""
        task, lead = self.task, self.task.batch_shape(after.state)
        state = torch.cat([batch.state, after.state.reshape(-1, *task.state_shape)])
        time: Tensor | int = 0
        if isinstance(batch.time, Tensor):
            time = torch.cat([batch.time, torch.as_tensor(after.time).expand(lead).reshape(-1)])
        action = None
        if after.action is not None:
            action = torch.cat([batch.action, after.action.reshape(-1, *task.action_shape)])
        return state, action, time

    def project(self, modules: Mapping[str, nn.Module], tree: Tree) -> Tree:
        return {name: on_spheres(modules[name], parameters) for name, parameters in tree.items()}

    def followed(self, networks: Networks, batch: Batch) -> Expectation:
        """Returns the expectation over what the policy does next, through which no gradient passes."""
        state, time = batch.next_states, batch.next_times
        with torch.no_grad():
            return expectation(self.task, networks("policy", state, time), state, time, self.following)

    def target(
        self,
        networks: Networks,
        targets: Networks,
        batch: Batch,
        pi: Expectation | None = None,
        least: Tensor | None = None,
    ) -> Tensor:
        """Returns ``y = r + γ E_π[min_i Q̄_i(s', a') - α (log π - log p)]``, ``(B,)``: what the critics should say.

        Args:
            networks, targets: the present ones and their averages.
            batch: of transitions.
            pi, least: over what follows, and the least critic's values there, where these are known already.
        """
        discount = self.task.discount
        if self.has_value:
            value = targets("value", batch.next_states, batch.next_times)
            return soft_td_target(batch.rewards[0], value[0], batch.terminated[0], discount)
        pi = self.followed(networks, batch) if pi is None else pi
        with torch.no_grad():
            alpha, least = networks("temperature"), self.least(targets, pi) if least is None else least
            value = pi.mean(least - alpha * pi.relative if self.entropy.following else least)
            if self.entropy.present:
                taken = self.log_policy(networks, batch), self.task.log_prior(batch.state, batch.action)
                return wrong_td_target(batch.rewards[0], *taken, value[0], batch.terminated[0], discount, alpha)
            if self.task.n_step == 1:
                return soft_td_target(batch.rewards[0], value[0], batch.terminated[0], discount)
            bonus = pi.mean(-alpha * pi.relative) if self.entropy.following else torch.zeros_like(value)
            return n_step_td_target(batch.rewards, bonus, value, batch.alive, batch.terminated, discount)

    def draw(self, networks: Networks, state: Tensor, time: Tensor | int) -> Tensor:
        chosen = networks("policy", state, time)
        if self.task.is_discrete:
            return self.task.action_at(drawn_from_logits(self.task.log_policies(chosen)))
        noise = networks("noise") if "noise" in networks.modules else None
        if not self.entropy.mean_acts:
            return chosen.sample() if noise is None else chosen.base_dist.at_noise(noise)
        action = mode_of(chosen)
        noise = torch.randn_like(action) if noise is None else noise
        return (action + self.exploration_noise * noise).clamp(-1, 1)

    # What the update is made of.

    @property
    def acting(self) -> How:
        """How the expectation in the actor's loss is taken."""
        assert self.actor_gradient is not None
        return "mean" if self.entropy.mean_acts else self.actor_gradient

    @property
    def following(self) -> How:
        """How that in the value of what follows is: no gradient passes through it."""
        return "exact_sum" if self.task.is_discrete else "mean" if self.entropy.mean_acts else "draw"

    def least(self, networks: Networks, pi: Expectation) -> Tensor:
        """Returns the least critic's value at the points of an expectation."""
        return self.values(networks, pi.state, pi.time, pi.action).amin(0)

    def log_policy(self, networks: Networks, batch: Batch) -> Tensor:
        """Returns ``log π`` of the actions taken, ``(B,)``."""
        return networks("policy", batch.state, batch.time).log_prob(batch.action)

    def shortfall(self, chosen: Any) -> Tensor | float:
        """Returns by how much less entropy is asked of states in which a mask forbids actions, ``(B,)``, ≤ 0."""
        may_mask = self.task.has_prior or self.options["policy"] is not None
        if self.task.target_entropy is None or not may_mask:
            return 0.0
        if self.task.factors is not None and not self.task.is_discrete:
            return self.task.target_entropy.factor_shortfall(chosen)
        if not self.task.is_discrete:
            return 0.0
        return self.task.target_entropy.shortfall(self.task.log_policies(chosen).detach())

    # Its parts.

    def make_modules(self, *, anew: bool) -> dict[str, nn.Module]:
        task, options, sizes = self.task, self.options, self.options["hidden_sizes"]
        if options["policy"] is None:
            policy = made_actor(
                task,
                hidden_sizes=sizes,
                components=options["policy_components"],
                architecture=options["architecture"],
            )
        else:
            policy = users_actor(options["policy"])
            policy = copy.deepcopy(policy) if anew else policy
            policy = policy if task.masks is None else Within(policy, task)
        if options["critic"] is None:
            critics: nn.Module = self.make_critics(
                options["num_critics"],
                options["critic_hidden_sizes"] or sizes,
                options["architecture"],
                num_atoms=options["num_atoms"],
                value_bound=options["value_bound"],
            )
        else:
            critics = users_critic(task, options["critic"])
            critics = copy.deepcopy(critics) if anew else critics
        modules: dict[str, nn.Module] = {
            "policy": policy,
            "critics": critics,
            "temperature": Temperature(task.temperature, learned=task.learns_temperature, scaled=self.scales),
        }
        if self.has_value:
            modules["value"] = SoftV(task.state_space, horizon=task.horizon, hidden_sizes=sizes)
        return modules

    def check(self, modules: dict[str, nn.Module], state: Tensor, time: Tensor | int, *, several: bool) -> None:
        chosen = check_actor(self.task, modules["policy"], state, time)
        if self.options["policy"] is not None:
            check_draws(self.task, modules["policy"], state, time, several=several)
        if self.options["critic"] is not None:
            self.num_critics = check_critic(self.task, modules["critics"], state, time, several=several)
        self.actor_gradient = chosen_gradient(self.task, chosen, self.options["actor_gradient"])
        base = getattr(chosen, "base_dist", None)
        if "noise" in modules and not self.entropy.mean_acts and not isinstance(base, TanhNormal):
            raise ValueError(
                f"noise_repeats holds the noise of a tanh-Gaussian policy, and this one gives {type(chosen).__name__}; "
                f"say noise_repeats=1"
            )
        if self.entropy.mean_acts:
            if self.task.is_discrete:
                raise ValueError("objective='ddpg' needs continuous actions; use 'maxent' or 'svg0'")
            mode_of(chosen)
            self.actor_gradient = "pathwise"

    def identity(self) -> dict[str, Any]:
        scaling = {name: self.options[name] for name in ("value_bound", "reward_scaling")} if self.projects else {}
        return {"objective": self.options["objective"], **scaling}

    def policy_of(self, modules: dict[str, nn.Module]) -> Policy:
        return modules["policy"]

    def critic_of(self, modules: dict[str, nn.Module]) -> SoftValue:
        return SoftValue(
            self.task,
            modules["critics"],
            modules["policy"],
            temperature=float(modules["temperature"]().detach()),
            objective=self.options["objective"],
        )


_OF_RESIDUAL: dict[str, Any] = {"num_atoms": 101, "value_bound": 5.0, "reward_scaling": True}


def _check_options(task: Task, options: SoftActorCriticOptions) -> None:
    """Raises ValueError for options that do not go together."""
    objective, entropy = options["objective"], OBJECTIVES[options["objective"]]
    if options["policy"] is not None and options["policy_components"] > 1:
        raise ValueError("policy_components is for the policy made here; leave it out, or leave out policy")
    if options["memory"] is not None:
        for name, usual in {"architecture": "plain", "actor_every": 1}.items():
            if options[name] != usual:  # type: ignore[literal-required]
                raise ValueError(f"memory goes with {name}={usual!r}; leave one of the two out")
    if options["value_network"] and options["architecture"] != "plain":
        raise ValueError("value_network goes with architecture='plain'; drop one of them")
    others = {"plain": _OF_RESIDUAL, "batch_norm": {**_OF_RESIDUAL, "target_average": 0.005}, "residual": {}}
    for name, usual in others[options["architecture"]].items():
        if options[name] != usual:  # type: ignore[literal-required]
            raise ValueError(f"{name} means nothing with architecture={options['architecture']!r}; leave it out")
    if options["architecture"] == "residual":
        check_residual_widths("hidden_sizes", options["hidden_sizes"])
        if options["critic_hidden_sizes"] is not None:
            check_residual_widths("critic_hidden_sizes", options["critic_hidden_sizes"])
        if entropy.present:
            raise ValueError(
                "objective='wrong_bellman' goes with architecture='plain' or 'batch_norm'; drop one of them"
            )
    if options["value_network"] and options["actor_every"] > 1:
        raise ValueError("value_network goes with actor_every=1; drop one of them")
    if options["critic"] is not None and options["num_critics"] != 2:
        raise ValueError("num_critics is for the critics made here; leave it out, or leave out critic")
    if options["critic"] is not None and options["architecture"] == "residual":
        raise ValueError(
            "critic is your own, and architecture='residual' needs critics of distributions, which are made here; "
            "leave one of them out"
        )
    if options["value_network"] and (objective != "maxent" or task.n_step > 1):
        raise ValueError("value_network goes with objective='maxent' and n_step=1; drop one of them")
    if entropy.present and task.n_step > 1:
        raise ValueError(f"objective={objective!r} goes with n_step=1")


def _without_entropy(options: SoftActorCriticOptions) -> SoftActorCriticOptions:
    """Returns the options with a temperature, at which nobody looks, where the objective has no entropy to tune."""
    if any(OBJECTIVES[options["objective"]][:3]):
        return options
    tuned = {
        "temperature='auto'": options["temperature"] == "auto",
        "target_return": options["target_return"] is not None,
    }
    for name, given in tuned.items():
        if given:
            raise ValueError(f"{name} tunes an entropy that objective={options['objective']!r} has not; leave it out")
    return {**options, "temperature": 1.0} if options["temperature"] is None else options


@takes_options(SoftActorCriticOptions)
class SoftActorCritic(Learner):
    """Soft actor-critic (Haarnoja et al. 2018, arXiv:1812.05905) on an environment or a process.

    The policy is a guide: its loss is minus the ELBO of the one-step program whose factor is the
    exponentiated soft Q. One update draws a batch from replay and takes one Adam step on

    - the critics, ``½ (Q_i(s,a) - y)²`` with ``y = r + γ E_π[min_i Q̄_i(s',a') - α (log π - log p)]``,
    - the policy, ``E_π[log π - log p - min_i Q_i/α]``,
    - the temperature, ``α (H[π] - target)``,

    all at the parameters before it, and moves the target critics by ``target_average``. Discrete
    actions are summed over exactly. :class:`ActorCritic` is that update.

    Where one observation does not tell the state, ``history=k`` makes the state of the last ``k`` observations and the
    actions between them, and ``memory="gru"`` puts a recurrent encoder before policy and critics, learned from
    sequences as in R2D2 (:class:`~rl_as_inference.agents.recurrent.Recurrent`): its update is compiled as others are,
    which takes minutes, and runs traced with ``compile=False``. ``policy`` is in both cases a guide on windows of
    observations, and :meth:`begin_episode` says to :meth:`act` where another episode begins.

    Args:
        env: a Gymnasium id, an environment, a factory of environments, a vector environment, or a
            process in parts (of which the learner is given what the agent sees). The horizon of a process is part
            of the model: reaching it is an ending, and policy and critics see the time. The time limit of any other
            environment only cuts episodes off.
        OPTIONS

    Raises:
        TypeError: for an option that there is not.
        ValueError: if an argument is out of range, the spaces are not supported, the policy does not
            fit the actions, or no policy can reach the target entropy.

    Example:
        >>> agent = SoftActorCritic("Pendulum-v1", hidden_sizes=(16,), batch_size=8, learning_starts=20)
        >>> agent.learn(30)
        >>> len(agent.replay), agent.num_updates, agent.act([1.0, 0.0, 0.0], deterministic=True).shape
        (30, 11, (1,))
    """

    def __init__(self, env: EnvironmentLike, **config: Unpack[SoftActorCriticOptions]) -> None:
        options = _without_entropy(filled(SoftActorCriticOptions, config, by="SoftActorCritic"))
        for name, kind in (("policy", "a guide"), ("critic", "a critic")):
            if options["memory"] is not None and options[name] is not None:  # type: ignore[literal-required]
                raise ValueError(
                    f"{name} is {kind} on states, and with memory these are made here; leave one of them out"
                )
        arena = Arena(env, options)
        algorithm = behind_encoder(lambda task: ActorCritic(task, options), arena, options)
        super().__init__(arena, algorithm, options)
        self.objective, self.value_network = options["objective"], options["value_network"]
        self.policy_components, self.exploration_noise = options["policy_components"], options["exploration_noise"]

    @property
    def actor_gradient(self) -> ActorGradient:
        """How the actor's expectation is taken."""
        gradient = self._actor_critic.actor_gradient
        assert gradient is not None
        return gradient

    @property
    def num_critics(self) -> int:
        """How many critics there are, the least of which counts."""
        return self._actor_critic.num_critics

    @property
    def _actor_critic(self) -> ActorCritic:
        algorithm = self.algorithm.inner if isinstance(self.algorithm, Recurrent | Encoded) else self.algorithm
        assert isinstance(algorithm, ActorCritic)
        return algorithm
