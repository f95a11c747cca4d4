"""What the rows of a gradient comparison are made of, on linear-Gaussian processes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rl_as_inference import exact
from rl_as_inference.compare.critic_values import check_plan
from rl_as_inference.compare.gradients.step_terms import Draws
from rl_as_inference.exact.gaussian_projection import expected_log_density, improved_rule, sigma_points
from rl_as_inference.nouns import ExactPolicy, SoftValue
from rl_as_inference.objectives.action_steps import over_time
from rl_as_inference.processes import LinearGaussianMDP
from rl_as_inference.processes.linear_gaussian import linear_gaussian_rule
from rl_as_inference.processes.mdp import unvalidated

__all__ = ["GaussianProblem", "QuadraticValues"]


@dataclass(frozen=True)
class QuadraticValues:
    """A critic in nats: ``V_t(s) = -s'P_t s/2 + p_t's + c_t``, and the rule whose entropy it charges.

    Where only ``call`` is given it is any function of state and time, a soft V without a soft Q.
    """

    P: Tensor | None = None
    p: Tensor | None = None
    c: Tensor | None = None
    rule: tuple[Tensor, Tensor, Tensor] | None = None
    call: SoftValue | None = None


class GaussianProblem:
    """A linear-Gaussian process and policy, as the rule ``(K, k, L)``, which the rows differentiate."""

    def __init__(self, mdp: LinearGaussianMDP, policy: ExactPolicy) -> None:
        self.mdp, self.horizon = mdp, mdp.finite_horizon("compare_gradients")
        self.alpha = float(mdp.temperature)
        plan: Any = exact.evaluate(mdp, policy)
        self.outputs: tuple[Tensor, ...] = (plan.gain, plan.offset, plan.scale_tril)
        self.leaves: tuple[Tensor, ...] = tuple(x.detach().requires_grad_() for x in self.outputs)
        self.times = torch.arange(self.horizon, device=mdp.A.device)[:, None]
        self.scales = torch.ones(self.horizon, 1, dtype=mdp.A.dtype, device=mdp.A.device)

    def draw(self, count: int) -> Draws:
        """Returns ``count`` trajectories of the policy."""
        with torch.no_grad():
            found = self.mdp.rollout(_Rule(*(x.detach() for x in self.leaves)), count)
        with unvalidated():
            taken = linear_gaussian_rule(found.states[:-1], self.times, *self.leaves).log_prob(found.actions)
        return Draws.of(found, taken)

    def pathwise(self, count: int) -> Tensor:
        """Returns the ELBO's terms of ``count`` trajectories, summed, differentiable through the dynamics."""
        return self.mdp.rollout(_Rule(*self.leaves), count, pathwise=True).terms().sum()

    def states_of_prior(self, count: int) -> tuple[Tensor, Tensor]:
        """Returns where the action prior leads, ``(T, N, ds)``, and that all of it is alive."""
        with torch.no_grad():
            found = self.mdp.rollout(None, count)
        return found.states[:-1], found.mask

    def support(self, of_prior: bool = False) -> tuple[Tensor, Tensor]:
        """Returns ``2 ds`` states for each time and their weights, whose mean of any quadratic is the exact one."""
        with torch.no_grad():
            return sigma_points(self.mdp, None if of_prior else self._plan())

    def values(self, policy: ExactPolicy, *, entropy: bool = True) -> QuadraticValues:
        """Returns the exact soft values of ``policy`` (the plan of it), or without any entropy."""
        with torch.no_grad():
            one: Any = exact.evaluate(self.mdp, policy)
            pieces = [x / self.alpha for x in (one.value_matrix, one.value_vector, one.value_constant)]
            if not entropy:  # in reward units a soft value is linear in α, with the value of the return at α = 0
                two: Any = exact.evaluate(self.mdp.at_temperature(2 * self.alpha), policy)
                twice = (two.value_matrix, two.value_vector, two.value_constant)
                pieces = [2 * x - y / self.alpha for x, y in zip(pieces, twice, strict=True)]
        P, p, c = pieces
        return QuadraticValues(P, p, c, (one.gain.detach(), one.offset.detach(), one.scale_tril.detach()))

    def values_of(self, critic: SoftValue | exact.Plan | exact.LinearGaussianPlan) -> QuadraticValues:
        """Returns a given critic's values: those of a plan, or any soft V.

        Raises:
            ValueError: if it belongs to another process, or does not give one value a state.
        """
        rule = tuple(x.detach() for x in self.leaves)
        if isinstance(critic, exact.LinearGaussianPlan):
            if critic.gain.shape != rule[0].shape:
                raise ValueError(
                    f"critic is of another process: its gain has shape {tuple(critic.gain.shape)}, and this process "
                    f"and policy have {tuple(rule[0].shape)}"
                )
            own: Any = exact.evaluate(self.mdp, critic)
            check_plan(self.mdp, own.value_matrix.detach(), critic.value_matrix.detach())
            pieces = (critic.value_matrix, critic.value_vector, critic.value_constant)
            P, p, c = (x.detach() / self.alpha for x in pieces)
            return QuadraticValues(P, p, c, (rule[0], rule[1], rule[2]))
        probe, _ = self.support()
        try:
            found = over_time(critic, probe, range(self.horizon))
        except (IndexError, RuntimeError) as error:
            raise ValueError(f"critic is of another process: {str(error).splitlines()[0]}") from error
        if found.shape != probe.shape[:2]:
            raise ValueError(
                f"critic must give one value a state, of shape {tuple(probe.shape[:2])} for states of shape "
                f"{tuple(probe.shape)}; it gave {tuple(found.shape)}"
            )
        return QuadraticValues(call=critic)

    def state_value(self, values: QuadraticValues, states: Tensor) -> Tensor:
        """Returns the critic's ``V(s_t)``, ``(T, N)`` in nats."""
        if values.call is not None:
            with torch.no_grad():
                return over_time(values.call, states, range(self.horizon)) / self.alpha
        return self._quadratic(values, states, 0)

    def taken(self, values: QuadraticValues, states: Tensor, actions: Tensor) -> Tensor:
        """Returns ``Q(s_t, a_t) = r/α + E V(s_{t+1})``, ``(T, N)`` in nats, differentiable in the action."""
        assert values.P is not None
        noise = self.mdp.noise_scale_tril
        lost = ((values.P[1:] @ noise) * noise).sum((-1, -2))[:, None] / 2
        onward = self._quadratic(values, self.mdp.next_mean(states, actions), 1) - lost
        return self.mdp.reward(states, actions) / self.alpha + onward

    def _quadratic(self, values: QuadraticValues, states: Tensor, shift: int) -> Tensor:
        assert values.P is not None
        assert values.p is not None
        assert values.c is not None
        P, p, c = (x[shift : shift + self.horizon] for x in (values.P, values.p, values.c))
        return ((p[:, None] - states @ P / 2) * states).sum(-1) + c[:, None]

    def entropy(self, states: Tensor) -> Tensor:
        """Returns ``h(s_t) = -KL(π || p)``, ``(T, N)`` in nats, differentiable."""
        zero = torch.zeros_like(self.leaves[0])
        prior = self.mdp.action_prior_scale_tril.expand(self.horizon, -1, -1)
        own = expected_log_density(states, self.leaves, self.leaves)
        return expected_log_density(states, self.leaves, (zero, zero[..., 0], prior)) - own

    def expected(self, values: QuadraticValues, states: Tensor, *, entropy: bool = True, wrong: bool = False) -> Tensor:
        """Returns ``E_π[Q]`` with what the loss adds to it, ``(T, N)`` in nats, differentiable in the policy alone.

        Args:
            entropy: add the present entropy relative to the prior.
            wrong: the critic holds that entropy itself, as its policy's fixed ``log p - log π``.
        """
        assert values.P is not None
        gain, offset, factor = self.leaves
        spread = self.mdp.B @ factor
        curved = ((values.P[1:] @ spread) * spread).sum((-1, -2))
        curved = curved + ((self.mdp.action_cost @ factor) * factor).sum((-1, -2)) / self.alpha
        value = self.taken(values, states, states @ gain.mT + offset[:, None]) - curved[:, None] / 2
        if entropy:
            value = value + self.entropy(states)
        if wrong:
            assert values.rule is not None
            zero = torch.zeros_like(gain)
            prior = self.mdp.action_prior_scale_tril.expand(self.horizon, -1, -1)
            value = value + expected_log_density(states, self.leaves, (zero, zero[..., 0], prior))
            value = value - expected_log_density(states, self.leaves, values.rule)
        return value

    def projected(self, values: QuadraticValues, states: Tensor, ratio: float) -> Tensor:
        """Returns ``η/α E_{q*} log π(a|s)`` at ``η = ratio · α``, ``(T, N)`` in nats, ``q*`` held fixed."""
        assert values.P is not None
        assert values.p is not None
        assert values.c is not None
        gain, offset, factor = (x.detach() for x in self.leaves)
        P, p, c = (self.alpha * x for x in (values.P, values.p, values.c))
        plan = exact.LinearGaussianPlan(gain, offset, factor, c[0], P, p, c, "causal")
        target = improved_rule(self.mdp, plan, ratio * self.alpha)
        return ratio * expected_log_density(states, target, self.leaves)

    def actor(self, values: QuadraticValues, states: Tensor, *, entropy: bool = True, wrong: bool = False) -> Tensor:
        """Returns the same at one reparameterized action for each state: SAC's own estimate (``(T, N)``, nats)."""
        with unvalidated():
            policy = linear_gaussian_rule(states, self.times, *self.leaves)
            action = policy.rsample()
            value = self.taken(values, states, action)
            if entropy:
                value = value + self.mdp.prior(states).log_prob(action) - policy.log_prob(action)
            if wrong:
                assert values.rule is not None
                fixed = linear_gaussian_rule(states, self.times, *values.rule)
                value = value + self.mdp.prior(states).log_prob(action) - fixed.log_prob(action)
        return value

    def deterministic(self, values: QuadraticValues, states: Tensor) -> Tensor:
        """Returns ``Q(s, μ(s))`` for the policy's mean ``μ``, ``(T, N)`` in nats."""
        gain, offset, _ = self.leaves
        return self.taken(values, states, states @ gain.mT + offset[:, None])

    def _plan(self) -> Any:
        return _Rule(*(x.detach() for x in self.leaves))


class _Rule:
    batch_steps = True

    def __init__(self, gain: Tensor, offset: Tensor, scale_tril: Tensor) -> None:
        self.rule = (gain, offset, scale_tril)

    def __call__(self, state: Tensor, t: int | Tensor) -> Any:
        return linear_gaussian_rule(state, t, *self.rule)
