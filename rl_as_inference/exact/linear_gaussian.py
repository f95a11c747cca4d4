"""Exact messages on linear-Gaussian processes: soft planning, evaluation, marginals, posterior draws.

Every message is a quadratic ``V(s) = -s'Ps/2 + p's + c``, held in nats inside; what leaves in a
:class:`LinearGaussianPlan` is in reward units. Causal messages are the Riccati recursion of
linear-quadratic control, with an action prior and entropy. Posterior messages are the risk-seeking
one of Jacobson, "Optimal stochastic linear systems with exponential performance criteria", IEEE
Transactions on Automatic Control 18(2), 1973: they bend the noise as well.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rl_as_inference.checks import check_at_least
from rl_as_inference.exact.backups import Dynamics, check_dynamics
from rl_as_inference.nouns import ExactPolicy, takes_all_steps
from rl_as_inference.processes.linear_gaussian import LinearGaussianMDP, linear_gaussian_rule, step_index
from rl_as_inference.trajectories import Trajectories

__all__ = [
    "LinearGaussianPlan",
    "Quadratic",
    "Rule",
    "as_plan",
    "backed_up",
    "best_rule",
    "evaluate",
    "marginals",
    "plan",
    "posterior_marginals",
    "rules_of",
    "sample_posterior",
    "symmetric",
]


@dataclass(frozen=True, eq=False)
class LinearGaussianPlan:
    """A linear-Gaussian policy ``π_t(a|s) = N(K_t s + k_t, Σ_t)`` and its soft values.

    It can be called as a policy, ``plan(state, t) -> MultivariateNormal``. The soft value is
    ``V_t(s) = -s'P_t s/2 + p_t's + c_t``.

    Attributes:
        gain: ``K``, ``(T, da, ds)``.
        offset: ``k``, ``(T, da)``.
        scale_tril: lower Cholesky factors of ``Σ``, ``(T, da, da)``.
        objective: 0-dimensional, in nats: the ELBO, or for ``dynamics="posterior"`` the log evidence.
        value_matrix: ``P``, ``(T+1, ds, ds)``, in reward units.
        value_vector: ``p``, ``(T+1, ds)``, in reward units.
        value_constant: ``c``, ``(T+1,)``, in reward units.
        dynamics: which posterior the plan belongs to.
    """

    gain: Tensor
    offset: Tensor
    scale_tril: Tensor
    objective: Tensor
    value_matrix: Tensor
    value_vector: Tensor
    value_constant: Tensor
    dynamics: Dynamics

    batch_steps = True

    @property
    def covariance(self) -> Tensor:
        """``Σ``, the covariances of the actions given the state, ``(T, da, da)``."""
        return self.scale_tril @ self.scale_tril.mT

    def __call__(self, state: Tensor, t: int | Tensor) -> Any:
        """Returns the policy's distribution over actions, of the batch shape of ``state``."""
        return linear_gaussian_rule(state, t, self.gain, self.offset, self.scale_tril)

    def soft_v(self, state: Tensor, t: int | Tensor) -> Tensor:
        """Returns ``V_t(state)`` in reward units, of the batch shape of ``state``.

        Args:
            state: ``(*batch, ds)``.
            t: ``0 … T``, or integers broadcastable to ``batch``.

        Raises:
            ValueError: if ``t`` is an integer outside ``0 … T``.
        """
        index = step_index(t, len(self.value_constant))
        half = torch.einsum("...ij,...j->...i", self.value_matrix[index], state) / 2
        return ((self.value_vector[index] - half) * state).sum(-1) + self.value_constant[index]


def plan(mdp: LinearGaussianMDP, dynamics: Dynamics = "causal") -> LinearGaussianPlan:
    """Returns the exact soft plan of a linear-Gaussian process.

    ``dynamics="causal"`` leaves the dynamics alone and gives the maximum-entropy optimum, whose
    objective is the largest ELBO; ``"posterior"`` conditions on optimality outright, luck included,
    and its objective is the log evidence. The posterior's action rule is that of
    ``p(a_t | s_t, O)``. Source: Levine (2018, arXiv:1805.00909), section 3.

    Raises:
        ValueError: for unknown ``dynamics``.
    """
    check_dynamics(dynamics)
    value = Quadratic.zero(mdp)
    values, rules = [value], []
    for _ in range(mdp.finite_horizon("plan")):
        noise = mdp.noise_scale_tril
        arrived = value.after_noise(noise) if dynamics == "causal" else value.bend(noise)[0]
        rule = best_rule(mdp, arrived)
        value = backed_up(mdp, arrived, rule)
        rules.append(rule)
        values.append(value)
    if dynamics == "causal":
        objective = value.mean(mdp.initial_mean, mdp.initial_scale_tril)
    else:
        objective = value.bend(mdp.initial_scale_tril)[0].at(mdp.initial_mean)
    return as_plan(mdp, rules[::-1], values[::-1], objective, dynamics)


def evaluate(mdp: LinearGaussianMDP, policy: ExactPolicy) -> LinearGaussianPlan:
    """Returns ``policy`` with its own soft values; the objective is its ELBO in nats.

    Soft policy evaluation (Haarnoja et al. 2018, arXiv:1801.01290, lemma 1), with the action prior:
    ``V = E_a[Q + α (log p - log π)]``. Differentiable in the policy's parameters too.

    Args:
        policy: a plan, a callable ``(state, t) -> Distribution`` whose answer is normal with a mean
            linear in the state and a covariance that ignores it, or None for the action prior.

    Raises:
        ValueError: if the policy is not linear-Gaussian (it is asked at a few states to find out).
    """
    rules = rules_of(mdp, policy)
    value = Quadratic.zero(mdp)
    values = [value]
    for rule in reversed(rules):
        value = backed_up(mdp, value.after_noise(mdp.noise_scale_tril), rule)
        values.append(value)
    objective = value.mean(mdp.initial_mean, mdp.initial_scale_tril)
    return as_plan(mdp, rules, values[::-1], objective, "causal")


def marginals(mdp: LinearGaussianMDP, policy: ExactPolicy) -> tuple[Tensor, Tensor]:
    """Returns means ``(T+1, ds)`` and covariances ``(T+1, ds, ds)`` of the states under ``policy``.

    Args:
        policy: as for :func:`evaluate`.

    Raises:
        ValueError: if the policy is not linear-Gaussian.
    """
    rules = rules_of(mdp, policy)
    return _propagate(mdp, rules, _causal_arrivals(mdp, len(rules)))


def posterior_marginals(mdp: LinearGaussianMDP, dynamics: Dynamics = "posterior") -> tuple[Tensor, Tensor]:
    """Returns means ``(T+1, ds)`` and covariances ``(T+1, ds, ds)`` of the states given optimality.

    For ``"posterior"`` the smoothed marginals ``p(s_t | O)``, luck included; for ``"causal"`` the
    marginals of the causal plan.

    Raises:
        ValueError: for unknown ``dynamics``.
    """
    messages = plan(mdp, dynamics)
    return _propagate(mdp, rules_of(mdp, messages), _arrivals(mdp, messages))


@torch.no_grad()
def sample_posterior(mdp: LinearGaussianMDP, num_draws: int, dynamics: Dynamics = "posterior") -> Trajectories:
    """Returns exact independent draws of trajectories given optimality.

    Backward messages, then forward draws. For ``"posterior"`` the initial state is bent by
    ``e^{V_0}`` and each transition by ``e^{V_{t+1}}``; for ``"causal"`` only the actions are
    inferred. ``log_policy`` is the density of the plan's policy, which drew the actions.

    Raises:
        ValueError: if ``num_draws`` < 1, or for unknown ``dynamics``.
    """
    check_at_least("num_draws", num_draws)
    messages = plan(mdp, dynamics)
    start, *transitions = _arrivals(mdp, messages)
    mean = mdp.initial_mean.expand(num_draws, -1)
    state = start.draw(mean)
    states, actions = [state], []
    for t, transition in enumerate(transitions):
        action = messages(state, t).sample()
        state = transition.draw(mdp.next_mean(state, action))
        states.append(state)
        actions.append(action)
    all_states, all_actions = torch.stack(states), torch.stack(actions)
    before = all_states[:-1]
    times = torch.arange(len(actions), device=before.device)[:, None].expand(before.shape[:-1])
    rewards = mdp.reward(before, all_actions)
    return Trajectories(
        states=all_states,
        actions=all_actions,
        rewards=rewards,
        mask=torch.ones_like(rewards, dtype=torch.bool),
        log_prior=mdp.prior(before).log_prob(all_actions),
        log_policy=messages(before, times).log_prob(all_actions),
        log_factors=rewards / mdp.temperature,
        temperature=mdp.temperature,
    )


class Quadratic(NamedTuple):
    """A message ``V(s) = -s'Ps/2 + p's + c`` in nats, with ``P`` positive semidefinite."""

    P: Tensor
    p: Tensor
    c: Tensor

    @classmethod
    def zero(cls, mdp: LinearGaussianMDP) -> "Quadratic":
        return cls(torch.zeros_like(mdp.A), torch.zeros_like(mdp.drift), mdp.drift.new_zeros(()))

    def at(self, s: Tensor) -> Tensor:
        return (self.p - self.P @ s / 2) @ s + self.c

    def mean(self, mean: Tensor, factor: Tensor) -> Tensor:
        """Returns ``E V(s)`` for ``s ~ N(mean, F F')``."""
        return self.at(mean) - ((self.P @ factor) * factor).sum() / 2

    def after_noise(self, factor: Tensor) -> "Quadratic":
        """Returns ``m ↦ E V(m + F x)``, ``x ~ N(0, I)``."""
        return self._replace(c=self.c - ((self.P @ factor) * factor).sum() / 2)

    def bend(self, factor: Tensor) -> tuple["Quadratic", "_Arrival"]:
        """Returns ``m ↦ log E e^{V(m + F x)}``, ``x ~ N(0, I)``, and where ``m + F x`` lands given ``e^V``.

        Given ``e^V`` the noise ``x`` is normal with precision ``G = I + F'PF``, never less than 1, so
        that the solves are well conditioned however small the noise is.
        """
        PF = self.P @ factor
        G = torch.linalg.cholesky(_identity(factor) + symmetric(factor.mT @ PF))
        pull = torch.cholesky_solve(PF.mT, G)  # given e^V the mean of x is  - pull m + push
        push = torch.cholesky_solve((factor.mT @ self.p)[:, None], G)[:, 0]
        J = _identity(factor) - factor @ pull
        bent = Quadratic(
            # P - PF G⁻¹ F'P as a sum of squares, which rounding cannot make indefinite.
            symmetric(J.mT @ self.P @ J + pull.mT @ pull),
            J.mT @ self.p,
            self.c + (self.p @ factor) @ push / 2 - G.diagonal().log().sum(),
        )
        spread = torch.linalg.solve_triangular(G, factor.mT, upper=False).mT
        return bent, _Arrival(J, factor @ push, spread)


class _Arrival(NamedTuple):
    """Where a variable of prior mean ``m`` lands: ``N(J m + shift, S S')``."""

    J: Tensor
    shift: Tensor
    spread: Tensor

    def draw(self, mean: Tensor) -> Tensor:
        return mean @ self.J.mT + self.shift + torch.randn_like(mean) @ self.spread.mT


class Rule(NamedTuple):
    """One step of a linear-Gaussian policy, ``a ~ N(K s + k, L L')``."""

    K: Tensor
    k: Tensor
    L: Tensor


def best_rule(mdp: LinearGaussianMDP, arrived: Quadratic) -> Rule:
    """Returns ``π(a|s) ∝ p(a) exp(r(s,a)/α + V(As + Ba + drift))``.

    In the action prior's own units, ``a = U u`` with ``u ~ N(0, I)``, the policy's precision ``H`` is
    never less than 1.
    """
    U = mdp.action_prior_scale_tril
    BU = mdp.B @ U
    H = _identity(U) + symmetric(U.mT @ mdp.action_cost @ U) / mdp.temperature
    H = H + symmetric(BU.mT @ arrived.P @ BU)
    # Cholesky from the last row up: H = R R' with R upper triangular, so that H⁻¹ = R⁻ᵀ R⁻¹ has
    # the lower triangular factor R⁻ᵀ.
    R = torch.linalg.cholesky(H.flip(-2, -1)).flip(-2, -1)
    spread = torch.linalg.solve_triangular(R.mT, _identity(U), upper=False)
    push = torch.cat((-arrived.P @ mdp.A, (arrived.p - arrived.P @ mdp.drift)[:, None]), -1)
    both = U @ spread @ (spread.mT @ (BU.mT @ push))
    return Rule(both[:, :-1], both[:, -1], U @ spread)


def backed_up(mdp: LinearGaussianMDP, arrived: Quadratic, rule: Rule) -> Quadratic:
    """Returns ``V(s) = E_a[r(s,a)/α + V(As + Ba + drift)] - KL(π(·|s) || p)``, as sums of squares."""
    (P, p, c), (K, k, L) = arrived, rule
    Q, R = symmetric(mdp.state_cost) / mdp.temperature, symmetric(mdp.action_cost) / mdp.temperature
    U = mdp.action_prior_scale_tril
    closed, e = mdp.A + mdp.B @ K, mdp.B @ k + mdp.drift
    # The rule in the action prior's units, where the prior is N(0, I).
    K_u, k_u, L_u = (torch.linalg.solve_triangular(U, x, upper=False) for x in (K, k[:, None], L))
    k_u = k_u[:, 0]
    BL = mdp.B @ L
    log_volume = L.diagonal().log().sum() - U.diagonal().log().sum()
    spread = ((P @ BL) * BL).sum() + ((R @ L) * L).sum() + (L_u * L_u).sum() - len(k)
    return Quadratic(
        symmetric(Q + closed.mT @ P @ closed + K.mT @ R @ K + K_u.mT @ K_u),
        closed.mT @ (p - P @ e) - K.mT @ R @ k - K_u.mT @ k_u,
        c + (p - P @ e / 2) @ e - (k @ R @ k + k_u @ k_u + spread) / 2 + log_volume,
    )


def _arrivals(mdp: LinearGaussianMDP, messages: LinearGaussianPlan) -> list[_Arrival]:
    """Returns where the initial state and each next state land given optimality, ``T + 1`` of them."""
    if messages.dynamics == "causal":
        return _causal_arrivals(mdp, len(messages.gain))
    pieces = (messages.value_matrix, messages.value_vector, messages.value_constant)
    factors = [mdp.initial_scale_tril] + [mdp.noise_scale_tril] * len(messages.gain)
    values = zip(*(x / mdp.temperature for x in pieces), strict=True)
    return [Quadratic(*value).bend(factor)[1] for value, factor in zip(values, factors, strict=True)]


def _causal_arrivals(mdp: LinearGaussianMDP, horizon: int) -> list[_Arrival]:
    identity, zero = _identity(mdp.A), torch.zeros_like(mdp.drift)
    arrival = _Arrival(identity, zero, mdp.noise_scale_tril)
    return [arrival._replace(spread=mdp.initial_scale_tril)] + [arrival] * horizon


def _propagate(mdp: LinearGaussianMDP, rules: list[Rule], arrivals: list[_Arrival]) -> tuple[Tensor, Tensor]:
    (J, shift, S), *transitions = arrivals
    mean, cov = J @ mdp.initial_mean + shift, S @ S.mT
    means, covs = [mean], [cov]
    for (K, k, L), (J, shift, S) in zip(rules, transitions, strict=True):
        closed, BL = mdp.A + mdp.B @ K, mdp.B @ L
        mean = J @ (closed @ mean + mdp.B @ k + mdp.drift) + shift
        cov = symmetric(J @ (closed @ cov @ closed.mT + BL @ BL.mT) @ J.mT + S @ S.mT)
        means.append(mean)
        covs.append(cov)
    return torch.stack(means), torch.stack(covs)


def as_plan(
    mdp: LinearGaussianMDP,
    rules: list[Rule],
    values: list[Quadratic],
    objective: Tensor,
    dynamics: Dynamics,
) -> LinearGaussianPlan:
    gain, offset, scale_tril = (torch.stack(x) for x in zip(*rules, strict=True))
    matrix, vector, constant = (mdp.temperature * torch.stack(x) for x in zip(*values, strict=True))
    return LinearGaussianPlan(gain, offset, scale_tril, objective, matrix, vector, constant, dynamics)


def rules_of(mdp: LinearGaussianMDP, policy: ExactPolicy) -> list[Rule]:
    """Returns the policy's steps, ``T`` of them, found by asking it at a few states."""
    horizon, ds, da = mdp.finite_horizon("evaluate"), mdp.state_size, mdp.action_size
    if isinstance(policy, LinearGaussianPlan):
        if policy.gain.shape != (horizon, da, ds):
            raise ValueError(
                f"policy: this plan's gain has shape {tuple(policy.gain.shape)}, the process needs "
                f"{(horizon, da, ds)}; it belongs to another process"
            )
        return [Rule(*x) for x in zip(policy.gain, policy.offset, policy.scale_tril, strict=True)]
    if policy is None:
        zero = mdp.B.new_zeros(da)
        return [Rule(torch.zeros_like(mdp.B.mT), zero, mdp.action_prior_scale_tril)] * horizon
    if not callable(policy):
        raise ValueError(
            f"policy must be a LinearGaussianPlan, a callable (state, t) or None, got {type(policy).__name__}"
        )
    # Zero and the unit vectors find the rule; two states in general position check that it is linear.
    identity = _identity(mdp.A)
    general = 3 * torch.arange(1, 2 * ds + 1, dtype=identity.dtype, device=identity.device).cos()
    probes = torch.cat((torch.zeros_like(identity[:1]), identity, general.view(2, ds)))
    if takes_all_steps(policy):
        times = torch.arange(horizon, device=probes.device)[:, None].expand(horizon, len(probes))
        mean, scale_tril = _moments(policy(probes.expand(horizon, -1, -1), times), (*times.shape, da), mdp)
    else:
        answers = (_moments(policy(probes, t), (len(probes), da), mdp) for t in range(horizon))
        mean, scale_tril = (torch.stack(x) for x in zip(*answers, strict=True))
    offset = mean[:, 0]
    gain = (mean[:, 1 : ds + 1] - offset[:, None]).mT
    _check_linear(probes, mean.detach(), gain.detach(), scale_tril.detach())
    return [Rule(*x) for x in zip(gain, offset, scale_tril[:, 0], strict=True)]


def _moments(answer: Any, shape: tuple[int, ...], mdp: LinearGaussianMDP) -> tuple[Tensor, Tensor]:
    """Returns the mean and the Cholesky factor of a policy's answer, of the full batch shape."""
    while isinstance(answer, torch.distributions.Independent):
        answer = answer.base_dist
    if isinstance(answer, torch.distributions.MultivariateNormal):
        mean, scale_tril = answer.loc, answer.scale_tril
    elif isinstance(answer, torch.distributions.Normal):
        mean, scale_tril = answer.loc, torch.diag_embed(answer.scale)
    else:
        raise ValueError(
            f"policy is not linear-Gaussian: it answers with a {type(answer).__name__}; exact answers need a "
            f"Normal, an independent Normal or a MultivariateNormal; estimate_elbo takes any policy"
        )
    try:
        mean, scale_tril = mean.to(mdp.B).expand(shape), scale_tril.to(mdp.B).expand(*shape, shape[-1])
    except RuntimeError:
        raise ValueError(
            f"policy must answer with {shape[-1]} action(s) for each state: asked at states of shape "
            f"{(*shape[:-1], mdp.state_size)} its mean should have shape {shape}, and has {tuple(mean.shape)}"
        ) from None
    return mean, scale_tril


def _check_linear(probes: Tensor, mean: Tensor, gain: Tensor, scale_tril: Tensor) -> None:
    tolerance = 1e-4 if mean.dtype == torch.float32 else 1e-8
    off = (mean[:, :1] + probes @ gain.mT - mean).abs()
    if not bool((off <= tolerance * mean.abs().max()).all()):
        step = int(off.amax((1, 2)).argmax())
        raise ValueError(
            f"policy is not linear-Gaussian: at step {step} its mean is {float(off.max()):.3g} off a line; "
            f"exact answers need N(K s + k, Σ); estimate_elbo takes any policy"
        )
    off = (scale_tril - scale_tril[:, :1]).abs()
    if not bool((off <= tolerance * scale_tril.abs().max()).all()):
        step = int(off.amax((1, 2, 3)).argmax())
        raise ValueError(
            f"policy is not linear-Gaussian: at step {step} its covariance depends on the state; "
            f"exact answers need N(K s + k, Σ); estimate_elbo takes any policy"
        )


def _identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2
