"""The rows of a gradient comparison: estimators of the ELBO's gradient and losses of actors, as surrogates."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from rl_as_inference.compare.gradients.finite_problem import FiniteProblem
from rl_as_inference.compare.gradients.gaussian_problem import GaussianProblem
from rl_as_inference.compare.gradients.step_terms import Draws
from rl_as_inference.objectives import estimators
from rl_as_inference.objectives.path_consistency import squared_residuals

__all__ = ["Critics", "Estimator", "GradientProblem", "estimators_of"]

GradientProblem: TypeAlias = FiniteProblem | GaussianProblem

NO_DISCRETE_PATH = "discrete actions have no derivative"
NO_FINITE_SUM = "continuous actions cannot be summed over"
NO_SOFT_Q = "needs a soft Q; this critic is a soft V"


@dataclass(frozen=True)
class Critics:
    """The critics of the rows: values of the present policy, each by the Bellman equation of its own loss."""

    soft: Any
    """Soft values; the given critic where there is one."""
    bare: Any
    """Values of the return alone, without entropy."""
    stale: Any
    """Soft values of the action prior."""
    has_q: bool = True
    """Whether ``soft`` has a soft Q."""
    is_exact: bool = True
    """Whether ``soft`` is the policy's own."""


@dataclass(frozen=True)
class Estimator:
    """One row: a surrogate whose gradient is the estimate, summed over trajectories, in nats.

    Attributes:
        name: of the row.
        surrogate: from the draws; None where the row does not apply.
        unbiased: whether its expectation is the exact gradient; None where ``expected`` decides it.
        cause: of its bias, should it have one.
        expected: a function whose gradient is the estimate's exact expectation, for one trajectory.
        reason: why the row is empty.
        mixture: two surrogates of one expectation, the best convex combination of which is the row.
    """

    name: str
    surrogate: Callable[[Draws], Tensor] | None = None
    unbiased: bool | None = True
    cause: str = ""
    expected: Callable[[], Tensor] | None = None
    reason: str = ""
    mixture: tuple[Callable[[Draws], Tensor], Callable[[Draws], Tensor]] | None = None

    def mixed(self, share: float) -> "Estimator":
        """Returns the row with ``1 - share`` of the first part of its mixture and ``share`` of the second."""
        assert self.mixture is not None
        first, second = self.mixture
        if share == 0:
            return replace(self, surrogate=first)
        return replace(self, surrogate=lambda draws: (1 - share) * first(draws) + share * second(draws))


def estimators_of(problem: GradientProblem, critics: Critics) -> list[Estimator | None]:
    """Returns the rows, with None where a table draws a line."""
    return [
        *_scores(),
        *_advantages(problem, critics),
        None,
        *_expectations(problem, critics),
        None,
        *_n_steps(problem, critics),
        None,
        *_state_weights(problem, critics),
        None,
        *_other_losses(problem, critics),
        None,
        *_regressions(problem, critics),
        *_consistencies(problem, critics),
    ]


def _scores() -> list[Estimator]:
    def full_return(draws: Draws) -> Tensor:
        return estimators.score_surrogate(draws.log_policy, draws.terms.sum(0).expand_as(draws.terms))

    def to_go(draws: Draws) -> Tensor:
        return estimators.score_surrogate(draws.log_policy, estimators.return_to_go(draws.terms))

    return [Estimator("score, full return", full_return), Estimator("score, return-to-go", to_go)]


def _advantages(problem: GradientProblem, critics: Critics) -> list[Estimator]:
    """Returns the rows of the λ soft advantage, which is GAE (Schulman et al. 2016) with entropies in its terms."""

    def advantage(draws: Draws, lambda_: float) -> Tensor:
        values = draws.weights * problem.state_value(critics.soft, draws.states)
        return estimators.score_surrogate(draws.log_policy, estimators.lambda_advantage(draws.terms, values, lambda_))

    rows = [Estimator("score, soft value baseline", partial(advantage, lambda_=1.0))]
    for lambda_ in (1.0, 0.95, 0.5, 0.0):
        unbiased = lambda_ == 1.0 or critics.is_exact
        cause = "critic: its error enters the bootstrapped returns"
        rows.append(Estimator(f"advantage, λ = {lambda_:g}", partial(advantage, lambda_=lambda_), unbiased, cause))
    return rows


def _expectations(problem: GradientProblem, critics: Critics) -> list[Estimator]:
    """Returns the rows that look at more than the action taken; the exact sum is the all-action gradient."""
    rows = [_of_states(problem, critics, "exact sum over actions, soft Q", closed=True)]
    if isinstance(problem, GaussianProblem):
        rows = [Estimator(rows[0].name, reason=NO_FINITE_SUM)]
    if isinstance(problem, GaussianProblem):
        rows.append(
            Estimator("pathwise through the model, SVG(∞)", lambda draws: problem.pathwise(draws.weights.shape[1]))
        )
        rows.append(_of_states(problem, critics, "pathwise through soft Q"))
    else:
        names = ("pathwise through the model, SVG(∞)", "pathwise through soft Q")
        rows += [Estimator(name, reason=NO_DISCRETE_PATH) for name in names]
    return rows


def _n_steps(problem: GradientProblem, critics: Critics) -> list[Estimator]:
    def sampled(draws: Draws, n: int) -> Tensor:
        values = draws.weights * problem.state_value(critics.soft, draws.states)
        return estimators.score_surrogate(draws.log_policy, estimators.n_step_advantage(draws.terms, values, n))

    def naive(draws: Draws, n: int) -> Tensor:
        values = draws.weights * problem.state_value(critics.soft, draws.states)
        entropies = draws.weights * problem.entropy(draws.states)
        terms = draws.rewards + entropies.detach()
        advantage = estimators.n_step_advantage(terms, values, n)
        return entropies.sum() + estimators.score_surrogate(draws.log_policy, advantage)

    def analytic(draws: Draws, n: int) -> Tensor:
        own = problem.expected(critics.soft, draws.states)
        taken = problem.taken(critics.soft, draws.states, draws.actions).detach()
        return estimators.n_step_surrogate(draws.log_policy, draws.rewards, own, taken, draws.weights, n)

    def counterpart(draws: Draws, n: int) -> Tensor:
        # Sampled entropies around the same V as the analytic ones have: then the two differ by a mean of zero,
        # whatever the critic.
        values = draws.weights * problem.expected(critics.soft, draws.states).detach()
        return estimators.score_surrogate(draws.log_policy, estimators.n_step_advantage(draws.terms, values, n))

    rows = []
    kinds = (("sampled entropies", sampled), ("analytic entropies alone", naive), ("analytic entropies", analytic))
    for n in (1, 2, 5):
        unbiased = critics.is_exact or n >= problem.horizon
        cause = f"critic: γ^{n} of its error is left in the {n}-step return"
        for kind, surrogate in kinds:
            name = f"{n}-step, {kind}"
            if surrogate is analytic and not critics.has_q:
                rows.append(Estimator(name, reason=NO_SOFT_Q))
                continue
            row = Estimator(name, partial(surrogate, n=n), unbiased, cause)
            if surrogate is analytic:
                row = replace(row, mixture=(partial(analytic, n=n), partial(counterpart, n=n)))
            rows.append(row)
    return rows


def _state_weights(problem: GradientProblem, critics: Critics) -> list[Estimator]:
    weighting = "state weighting: "
    return [
        _of_states(problem, critics, "SAC, on-policy discounted states"),
        _of_states(
            problem,
            critics,
            "SAC, on-policy undiscounted states",
            discounted=False,
            cause=weighting + "late states count as much as early ones",
        ),
        _of_states(
            problem,
            critics,
            "SAC, replay states (of the prior)",
            discounted=False,
            of_prior=True,
            cause=weighting + "states are where another policy went",
        ),
    ]


def _other_losses(problem: GradientProblem, critics: Critics) -> list[Estimator]:
    stale = "stale critic: the prior's values"
    bare = {"critic": critics.bare}
    rows = [
        _of_states(problem, critics, "SAC, stale critic", critic=critics.stale, cause=stale),
        _of_states(
            problem, critics, "one-step entropy (Williams & Peng)", **bare, cause="missing entropy: later steps'"
        ),
        _of_states(
            problem,
            critics,
            "the wrong Bellman equation",
            entropy=False,
            wrong=True,
            cause="entropy in the critic alone",
        ),
        _of_states(
            problem,
            critics,
            "the wrong Bellman equation, stale critic",
            critic=critics.stale,
            entropy=False,
            wrong=True,
            cause="missing entropy: the critic's is another policy's",
        ),
        _of_states(problem, critics, "SVG(0), no entropy", **bare, entropy=False, cause="missing entropy: all of it"),
    ]
    name = "DDPG"
    if isinstance(problem, FiniteProblem):
        return [*rows, Estimator(name, reason="discrete actions have no derivative")]

    def ddpg(draws: Draws) -> Tensor:
        return (draws.weights * problem.deterministic(critics.bare, draws.states)).sum()

    def expected() -> Tensor:
        states, chances = problem.support()
        return (problem.scales * chances * problem.deterministic(critics.bare, states)).sum()

    return [*rows, Estimator(name, ddpg, None, "missing entropy; the spread has no gradient", expected)]


def _regressions(problem: GradientProblem, critics: Critics) -> list[Estimator]:
    """Returns the M-steps of expectation maximization, ``η/α`` times the forward KL's gradient; uphill as η → ∞."""
    rows = []
    for ratio in (1.0, 10.0):
        name = "EM, η = α" if ratio == 1 else f"EM, η = {ratio:g} α"
        if not critics.has_q:
            rows.append(Estimator(name, reason=NO_SOFT_Q))
            continue

        def surrogate(draws: Draws, ratio: float = ratio) -> Tensor:
            return (draws.weights * problem.projected(critics.soft, draws.states, ratio)).sum()

        def expected(ratio: float = ratio) -> Tensor:
            states, chances = problem.support()
            return (problem.scales * chances * problem.projected(critics.soft, states, ratio)).sum()

        rows.append(Estimator(name, surrogate, None, "forward KL: straight to q*, not uphill", expected))
    return rows


def _consistencies(problem: GradientProblem, critics: Critics) -> list[Estimator]:
    """Returns minus half the squares of path consistency; on-policy luck averages out of their gradients."""

    def terms(draws: Draws) -> Tensor:
        return draws.terms - draws.weights * (draws.log_policy - draws.log_policy.detach())

    def values(draws: Draws) -> Tensor:
        return draws.weights * problem.state_value(critics.soft, draws.states).detach()

    def balance(draws: Draws) -> Tensor:
        return -squared_residuals(terms(draws), draws.weights, values(draws), problem.horizon)

    def variance(draws: Draws) -> Tensor:
        return -squared_residuals(terms(draws), draws.weights)

    def steps(draws: Draws) -> Tensor:
        return -squared_residuals(terms(draws), draws.weights, values(draws))

    def expected() -> Tensor:
        states, chances = problem.support()
        return (problem.scales**2 * chances * problem.expected(critics.soft, states)).sum()

    undiscounted = bool((problem.scales == 1).all())
    known = expected if critics.is_exact and critics.has_q else None
    cause = "state weighting: γ^2t, as the square has γ^t twice"
    return [
        Estimator("trajectory balance, log Z = V(s₀)", balance, undiscounted, cause, known),
        Estimator("trajectory balance, variance", variance, undiscounted, cause, known),
        Estimator("path consistency, one step", steps, critics.is_exact, "critic: its error is in every residual"),
    ]


def _of_states(
    problem: GradientProblem,
    critics: Critics,
    name: str,
    *,
    critic: Any = None,
    entropy: bool = True,
    wrong: bool = False,
    discounted: bool = True,
    of_prior: bool = False,
    closed: bool = False,
    cause: str = "",
) -> Estimator:
    """Returns a loss that is a weighted sum over states of what the actor wants there, its critic held fixed.

    Weights that are not discounted are scaled so that their total is that of the discounted ones, since the
    size of a gradient is a matter of the learning rate.
    """
    if critic is None:
        critic, exact_values, has_q = critics.soft, critics.is_exact, critics.has_q
        cause = "; ".join(x for x in (cause, "" if exact_values else "critic: its error enters the actor") if x)
    else:
        has_q = True
    if not has_q:
        return Estimator(name, reason=NO_SOFT_Q)
    value = partial(problem.expected if closed else problem.actor, critic, entropy=entropy, wrong=wrong)
    expectation = partial(problem.expected, critic, entropy=entropy, wrong=wrong)
    with torch.no_grad():
        (_, own), (_, other) = problem.support(), problem.support(of_prior)
        factor = 1.0 if discounted else float((problem.scales * own).sum() / other.sum())

    def surrogate(draws: Draws) -> Tensor:
        if of_prior:
            states, alive = problem.states_of_prior(draws.weights.shape[1])
            return factor * (alive * value(states)).sum()
        weights = draws.weights if discounted else factor * draws.alive.to(draws.weights)
        return (weights * value(draws.states)).sum()

    def expected() -> Tensor:
        states, chances = problem.support(of_prior)
        weights = (problem.scales if discounted else factor) * chances
        return (weights * expectation(states)).sum()

    return Estimator(name, surrogate, None, cause, expected)
