"""Gradients of the ELBO against the exact one: by enumeration of every trajectory, by statistics, and bad input."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import rlai as run_rlai
from problems import random_mdp

import rl_as_inference as rlai
from rl_as_inference import exact
from rl_as_inference.compare.gradients import estimator_rows
from rl_as_inference.compare.gradients.block_statistics import best_share, summarize
from rl_as_inference.compare.gradients.estimator_rows import Critics, Estimator
from rl_as_inference.compare.gradients.finite_problem import FiniteProblem
from rl_as_inference.compare.gradients.step_terms import Draws
from rl_as_inference.critics import TableCritic
from rl_as_inference.guides import CategoricalPolicy, LinearGaussianPolicy, TabularPolicy
from rl_as_inference.models import corridor, double_integrator, gridworld
from rl_as_inference.objectives import estimators

LOSSES = {
    "SAC, on-policy undiscounted states": "state weighting",
    "SAC, replay states (of the prior)": "state weighting",
    "SAC, stale critic": "stale critic",
    "one-step entropy (Williams & Peng)": "missing entropy",
    "the wrong Bellman equation, stale critic": "missing entropy",
    "SVG(0), no entropy": "missing entropy",
    "EM, η = α": "forward KL",
    "EM, η = 10 α": "forward KL",
    "trajectory balance, log Z = V(s₀)": "state weighting",
}


def some_policy(mdp: rlai.TabularMDP, seed: int = 0, *, stationary: bool = False, spread: float = 1.0) -> TabularPolicy:
    policy = TabularPolicy(mdp.num_states, mdp.num_actions, horizon=None if stationary else mdp.horizon).double()
    torch.nn.init.normal_(policy.logits, std=spread, generator=torch.Generator().manual_seed(seed))
    return policy


def some_rule(system: rlai.LinearGaussianMDP, share: float = 0.5) -> LinearGaussianPolicy:
    plan: Any = exact.plan(system)
    rule = LinearGaussianPolicy(system.state_size, system.action_size, system.horizon, 0.8, dtype=torch.float64)
    with torch.no_grad():
        rule.gain.copy_(share * plan.gain)
        rule.offset.copy_(0.1 + share * plan.offset)
    return rule


def truth_of(process: Any, policy: torch.nn.Module) -> torch.Tensor:
    slopes = torch.autograd.grad(exact.elbo(process, policy), list(policy.parameters()))
    return torch.cat([slope.flatten() for slope in slopes])


class Enumerated:
    """Every trajectory of a small finite process, with its probability under the policy, as one-trajectory draws."""

    def __init__(self, mdp: rlai.TabularMDP, policy: TabularPolicy) -> None:
        self.mdp, self.policy = mdp, policy
        self.problem = FiniteProblem(mdp, policy)
        self.paths = list(self._walk())

    def _walk(self) -> Any:
        mdp, horizon = self.mdp, self.mdp.horizon
        table = self.problem.log_policy.detach().exp()
        move, reward = mdp.kernel.probabilities, mdp.reward_table
        spaces = [range(mdp.num_states), *[range(mdp.num_actions), range(mdp.num_states)] * horizon]
        for path in itertools.product(*spaces):
            states, actions = path[0::2], path[1::2]
            chance = float(mdp.initial_probabilities[states[0]])
            rewards, alive = [], []
            for t, (s, a, after) in enumerate(zip(states, actions, states[1:], strict=False)):
                chance *= float(table[t, s, a] * move[s, a, after])
                alive.append(not bool(mdp.terminal[s]))
                rewards.append(float(reward[s, a]) if alive[-1] else 0.0)
            if chance > 0:
                yield chance, states[:-1], actions, rewards, alive

    def draws(self, path: Any) -> Draws:
        _, states, actions, rewards, alive = path
        column = {"dtype": torch.float64}
        s, a = torch.tensor(states)[:, None], torch.tensor(actions)[:, None]
        living = torch.tensor(alive)[:, None]
        weights = self.problem.scales * living
        log_policy = self.problem.log_policy[self.problem.times, s, a]
        ratio = self.mdp.log_action_prior[s, a] - log_policy.detach()
        scaled = weights * torch.tensor(rewards, **column)[:, None] / self.mdp.temperature
        return Draws(s, a, weights, living, scaled, weights * ratio, torch.where(living, log_policy, 0.0))

    def moments(self, row: Estimator) -> tuple[torch.Tensor, float]:
        """Returns the exact mean, in the parameters, and the exact total variance of one trajectory's gradient."""
        mean, second = torch.zeros(self.policy.logits.numel(), dtype=torch.float64), 0.0
        for path in self.paths:
            leaf = self.problem.leaves
            cotangents = torch.autograd.grad(row.surrogate(self.draws(path)), leaf, allow_unused=True)
            (slope,) = torch.autograd.grad(
                self.problem.outputs, [self.policy.logits], cotangents, retain_graph=True, allow_unused=True
            )
            mean += path[0] * slope.flatten()
            second += path[0] * float(slope.square().sum())
        return mean, second - float(mean.square().sum())


@pytest.fixture(scope="module", params=["a rule a step", "stationary, with an end"])
def enumerated(request: pytest.FixtureRequest) -> Enumerated:
    stationary = request.param != "a rule a step"
    mdp = random_mdp(3, num_states=2, num_actions=2, horizon=3, discount=0.8, terminal=stationary)
    return Enumerated(mdp, some_policy(mdp, 1, stationary=stationary))


def rows_of(problem: FiniteProblem, policy: Any) -> dict[str, Estimator]:
    critics = Critics(problem.values(policy), problem.values(policy, entropy=False), problem.values(None))
    return {row.name: row for row in estimator_rows.estimators_of(problem, critics) if row is not None}


def test_every_expectation_by_enumeration(enumerated: Enumerated) -> None:
    """Σ over all trajectories of probability × gradient: exact for unbiased rows, the stated bias for the others."""
    assert sum(path[0] for path in enumerated.paths) == pytest.approx(1, abs=1e-12)
    truth = truth_of(enumerated.mdp, enumerated.policy)
    torch.manual_seed(0)
    found = rlai.compare_gradients(enumerated.mdp, enumerated.policy, num_trajectories=20_000, num_blocks=400)
    seen = 0
    for name, row in rows_of(enumerated.problem, enumerated.policy).items():
        # States of another policy, and a variance among trajectories, are not of one trajectory of this one.
        if row.surrogate is None or "replay" in name or name.endswith("variance"):
            continue
        mean, variance = enumerated.moments(row)
        bias = float((mean - truth).norm() / truth.norm())
        measured = found[name]
        if measured.unbiased:
            assert bias < 1e-12, name
        else:
            assert bias == pytest.approx(measured.relative_bias_exact, abs=1e-12), name
            assert bias > 1e-9, name
            assert measured.cause.startswith(LOSSES[name]), name
        if row.mixture is None:  # N = 20,000, seed 0; 400 blocks give a standard error of at most 7 %
            assert measured.variance == pytest.approx(variance, rel=0.28), name
        else:  # a mixture's expectation does not depend on the share
            second, _ = enumerated.moments(row.mixed(1.0))
            assert float((second - truth).norm() / truth.norm()) < 1e-12, name
        seen += 1
    assert seen == 28


def test_replay_states_by_hand() -> None:
    """The same loss written out: states of the prior, a soft Q held fixed, slopes by central differences."""
    mdp = random_mdp(5, num_states=3, num_actions=2, horizon=3, discount=0.8)
    policy = some_policy(mdp, 2)
    q = exact.evaluate(mdp, policy).soft_q.detach() / mdp.temperature
    own, other = exact.occupancy(mdp, policy).detach()[:-1], exact.occupancy(mdp, None)[:-1]
    scales = 0.8 ** torch.arange(3.0, dtype=torch.float64)[:, None]
    weights = other * (scales * own).sum() / other.sum()

    def loss(logits: torch.Tensor) -> float:
        log_pi = logits.log_softmax(-1)
        return float((weights * (log_pi.exp() * (q + mdp.log_action_prior - log_pi)).sum(-1)).sum())

    slope = torch.zeros_like(policy.logits)
    for index in itertools.product(*map(range, slope.shape)):
        nudge = torch.zeros_like(slope)
        nudge[index] = 1e-5
        slope[index] = (loss(policy.logits.detach() + nudge) - loss(policy.logits.detach() - nudge)) / 2e-5
    truth = truth_of(mdp, policy)
    torch.manual_seed(0)
    found = rlai.compare_gradients(mdp, policy, num_trajectories=1_000)["SAC, replay states (of the prior)"]
    bias = float((slope.detach().flatten() - truth).norm() / truth.norm())
    assert found.relative_bias_exact == pytest.approx(bias, rel=1e-6)


CASES: dict[str, Any] = {
    "discounted": lambda: (random_mdp(11, num_states=6, num_actions=3, horizon=8, discount=0.9), False),
    "with an end, stationary": lambda: (random_mdp(12, num_states=5, horizon=6, terminal=True), True),
    "rewards on successors": lambda: (
        random_mdp(13, num_states=4, horizon=5, discount=0.7, reward_on_successor=True),
        False,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_statistics_on_random_processes(name: str) -> None:
    """N = 20,000, seed 0: z within 4 for all unbiased rows, exact and estimated bias alike for the others."""
    mdp, stationary = CASES[name]()
    torch.manual_seed(0)
    found = rlai.compare_gradients(mdp, some_policy(mdp, 3, stationary=stationary), num_trajectories=20_000)
    check_statistics(found)
    assert found["the wrong Bellman equation"].unbiased, "its critic is of this very policy"
    assert found["SAC, on-policy undiscounted states"].unbiased == (float(mdp.discount) == 1)


def check_statistics(found: rlai.GradientComparison) -> None:
    biased = 0
    for row in found.rows:
        if row.reason:
            assert row.variance is None
            continue
        assert (row.cause == "") == row.unbiased, row.name
        if row.unbiased:
            assert abs(row.z_along) < 4, row.name
            assert row.z_global < 4, row.name
        else:
            biased += 1
            assert row.relative_bias_exact > 1e-6, row.name
            # What noise is left of ‖bias‖ after the trajectories.
            noise = 4 * math.sqrt(row.variance / found.num_trajectories) / found.gradient_norm
            assert row.relative_bias == pytest.approx(row.relative_bias_exact, abs=noise), row.name
    assert biased >= 4


def test_statistics_on_the_double_integrator() -> None:
    """N = 8,000, seed 0."""
    system = double_integrator(horizon=8, dtype=torch.float64)
    torch.manual_seed(0)
    found = rlai.compare_gradients(system, some_rule(system), num_trajectories=8_000, num_blocks=50)
    check_statistics(found)
    assert found["exact sum over actions, soft Q"].reason
    assert found["pathwise through the model, SVG(∞)"].unbiased
    assert not found["DDPG"].unbiased
    # The spread has no gradient in DDPG: what is missing of g* is at least that.
    rule = some_rule(system)
    truth = torch.autograd.grad(exact.elbo(system, rule), [rule.gain, rule.offset, rule.log_diagonal])
    missing = float(truth[2].norm() / sum(x.square().sum() for x in truth).sqrt())
    assert found["DDPG"].relative_bias_exact >= missing > 0.05


def test_gaussian_expectations_by_quadrature() -> None:
    """Closed forms over Gaussian actions and states against a grid of Gauss-Hermite points in both."""
    from numpy.polynomial.hermite_e import hermegauss

    from rl_as_inference.compare.gradients.gaussian_problem import GaussianProblem

    one = torch.ones(1, 1, dtype=torch.float64)
    system = rlai.LinearGaussianMDP(
        0.9 * one, 0.5 * one, 0.2 * one, one, 0.3 * one, one[0], one, 1.5 * one, horizon=3, temperature=0.7
    )
    problem = GaussianProblem(system, some_rule(system))
    points, weights = (torch.as_tensor(x) for x in hermegauss(20))
    weights = weights / weights.sum()
    values = problem.values(some_rule(system))
    gain, offset, factor = (x.detach() for x in problem.leaves)
    states = points.expand(3, -1)[..., None]
    means = states @ gain.mT + offset[:, None]
    actions = means[:, :, None] + factor[:, None] * points[:, None]
    wide = states[:, :, None].expand(-1, -1, 20, -1)
    q = problem.taken(values, wide.reshape(3, -1, 1), actions.reshape(3, -1, 1)).reshape(3, 20, 20)
    log_pi = torch.distributions.Normal(means[:, :, None], factor[:, None]).log_prob(actions).squeeze(-1)
    log_p = torch.distributions.Normal(0.0, 1.5**0.5).log_prob(actions).squeeze(-1)
    for options, inside in (
        ({"entropy": True}, q + log_p - log_pi),
        ({"entropy": False}, q),
        ({"entropy": False, "wrong": True}, q + log_p - log_pi),
    ):
        assert torch.allclose(problem.expected(values, states, **options), inside @ weights, atol=1e-10)
    assert torch.allclose(problem.entropy(states), (log_p - log_pi) @ weights, atol=1e-10)


def test_never_noisier_than_sampled_entropies() -> None:
    """From the action prior to the optimum and beyond, N = 5,000, seed 0: the n-step row against the sampled one.

    At the optimum they are the same; analytic entropies alone are far noisier there.
    """
    mdp = random_mdp(21, num_states=4, num_actions=3, horizon=6, discount=0.95)
    plan: Any = exact.plan(mdp)
    ratios = {}
    for share in (0.0, 0.5, 1.0, 1.5):
        policy = TabularPolicy(4, 3, horizon=6).double()
        with torch.no_grad():
            policy.logits.copy_((1 - share) * mdp.log_action_prior + share * plan.log_policy)
        torch.manual_seed(0)
        found = rlai.compare_gradients(mdp, policy, num_trajectories=5_000, num_blocks=50)
        for n in (1, 2, 5):
            sampled = found[f"{n}-step, sampled entropies"].variance
            ratios[share, n] = found[f"{n}-step, analytic entropies"].variance / sampled
            assert ratios[share, n] < 1.01, (share, n)
            if share == 1.0:
                assert ratios[share, n] == pytest.approx(1, abs=1e-6)
                assert found[f"{n}-step, analytic entropies alone"].variance > 1.05 * sampled
    assert ratios[0.0, 5] < 0.7


def test_sampled_entropies_let_in_where_that_helps() -> None:
    """Shared parameters, deterministic dynamics: the analytic form alone is noisier by a third; N = 20,000, seed 0."""
    g = torch.Generator().manual_seed(12)
    base = rlai.models.random_mdp(2, 2, horizon=4, seed=12, temperature=0.3, discount=1.0, dtype=torch.float64)
    move = torch.nn.functional.one_hot(torch.randint(2, (2, 2), generator=g), 2).double()
    mdp = rlai.TabularMDP(move, base.reward_table, base.initial_probabilities, horizon=4, temperature=0.3)
    worst = 0.0
    for seed in range(3):
        policy = some_policy(mdp, seed, stationary=True, spread=0.3)
        torch.manual_seed(0)
        found = rlai.compare_gradients(mdp, policy, num_trajectories=5_000)
        row, sampled = found["1-step, analytic entropies"], found["1-step, sampled entropies"]
        assert row.variance < 1.01 * sampled.variance
        worst = max(worst, row.sampled_share)
    assert worst > 0.3


@pytest.mark.parametrize("n", [1, 2, 9])
def test_n_step_of_trajectory_elbo(n: int) -> None:
    """The same trajectories give the same gradient, as a process in parts and as a plain Pyro program."""
    mdp = random_mdp(4, num_states=4, num_actions=3, horizon=5, discount=0.9, terminal=True)
    policy = some_policy(mdp)
    soft_q = exact.evaluate(mdp, policy).soft_q.detach()
    objective = rlai.TrajectoryELBO("n_step", TableCritic(soft_q), n=n, max_plate_nesting=1)
    torch.manual_seed(0)
    loss = objective.differentiable_loss(mdp, rlai.follow(mdp, policy), 300)
    (mine,) = torch.autograd.grad(-loss, policy.logits)
    problem = FiniteProblem(mdp, policy)
    row = rows_of(problem, policy)["1-step, analytic entropies"]
    torch.manual_seed(0)
    draws = problem.draw(300)
    assert row.mixture is not None
    surrogate = row.mixture[0].func(draws, n=n)
    (slope,) = torch.autograd.grad(surrogate, problem.leaves)
    (theirs,) = torch.autograd.grad(problem.outputs, [policy.logits], [slope])
    assert torch.allclose(mine, theirs, atol=1e-10)

    def program() -> None:
        mdp(20_000)

    torch.manual_seed(1)
    loss = objective.differentiable_loss(program, rlai.follow(program, policy)) / 20_000
    (slow,) = torch.autograd.grad(-loss, policy.logits)
    assert float((slow.flatten() - truth_of(mdp, policy)).norm()) < 0.06  # N = 20,000, seed 1


def test_n_step_trains_its_critic() -> None:
    mdp = random_mdp(1, num_states=4, horizon=5, discount=0.9, dtype=torch.float32)
    policy = TabularPolicy(4, 2, horizon=5)
    result = rlai.fit(mdp, policy, steps=200, estimator="n_step", learning_rate=0.05, num_trajectories=128, seed=0)
    assert result.critic is not None
    gap = float(exact.optimal_elbo(mdp) - exact.elbo(mdp, policy).detach())
    assert 0 <= gap < 0.3 * float(exact.optimal_elbo(mdp) - exact.elbo(mdp, TabularPolicy(4, 2, horizon=5)).detach())


def test_n_step_advantage_ends() -> None:
    """n beyond the end is λ = 1, n = 1 is λ = 0."""
    terms, values = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for n, lambda_ in ((1, 0.0), (5, 1.0), (50, 1.0)):
        expected = estimators.lambda_advantage(terms, values, lambda_)
        assert torch.allclose(estimators.n_step_advantage(terms, values, n), expected, atol=1e-12)


class TestGivenCritics:
    def test_stale_plan(self) -> None:
        """A critic of another policy: what bootstraps from it is biased, what only subtracts it is not; seed 0."""
        mdp = random_mdp(7, num_states=4, horizon=4, discount=0.9)
        critic = exact.evaluate(mdp, some_policy(mdp, 9, spread=2.0))
        torch.manual_seed(0)
        found = rlai.compare_gradients(mdp, some_policy(mdp), critic=critic, num_trajectories=50_000)
        for name in ("score, soft value baseline", "advantage, λ = 1", "5-step, analytic entropies"):
            assert found[name].unbiased
            assert abs(found[name].z_along) < 4
            assert found[name].z_global < 4
        for name in ("advantage, λ = 0", "1-step, analytic entropies", "exact sum over actions, soft Q"):
            assert not found[name].unbiased
            assert "critic" in found[name].cause
            assert found[name].z_global > 4
        assert not found["2-step, analytic entropies"].unbiased

    def test_own_values_are_recognised(self) -> None:
        mdp = random_mdp(7, num_states=4, horizon=4, discount=0.9)
        policy = some_policy(mdp)
        plan = exact.evaluate(mdp, policy)
        for critic in (plan, TableCritic(plan.soft_q), TableCritic(plan.soft_v)):
            found = rlai.compare_gradients(mdp, policy, critic=critic, num_trajectories=500, num_blocks=10)
            assert found["advantage, λ = 0"].unbiased
            assert found["exact sum over actions, soft Q"].unbiased
        system = double_integrator(horizon=4, dtype=torch.float64)
        rule = some_rule(system)
        given: Any = exact.evaluate(system, rule)
        assert rlai.compare_gradients(system, rule, critic=given, num_trajectories=500, num_blocks=10)[
            "advantage, λ = 0"
        ].unbiased

    def test_soft_v_alone(self) -> None:
        system = double_integrator(horizon=4, dtype=torch.float64)
        found = rlai.compare_gradients(
            system, some_rule(system), critic=lambda state, t: -state.square().sum(-1), num_trajectories=500
        )
        assert "soft Q" in found["pathwise through soft Q"].reason
        assert "soft Q" in found["2-step, analytic entropies"].reason
        assert found["score, soft value baseline"].variance > 0

    @pytest.mark.parametrize("what", ["states", "actions", "horizon", "temperature", "prior"])
    def test_of_another_process(self, what: str) -> None:
        mdp = random_mdp(7, num_states=4, num_actions=2, horizon=4)
        other = {
            "states": random_mdp(7, num_states=3, num_actions=2, horizon=4),
            "actions": random_mdp(7, num_states=4, num_actions=3, horizon=4),
            "horizon": random_mdp(7, num_states=4, num_actions=2, horizon=3),
            "temperature": mdp.at_temperature(2.0),
            "prior": random_mdp(7, num_states=4, num_actions=2, horizon=4, uniform_prior=True),
        }[what]
        critics: list[Any] = [exact.plan(other)]
        if what in ("states", "actions", "horizon"):
            critics.append(TableCritic(critics[0].soft_q))
        for critic in critics:
            with pytest.raises(ValueError, match="critic is of another process"):
                rlai.compare_gradients(mdp, some_policy(mdp), critic=critic, num_trajectories=500, num_blocks=10)

    def test_of_another_linear_gaussian_process(self) -> None:
        system = double_integrator(horizon=4, dtype=torch.float64)
        for other in (double_integrator(horizon=5, dtype=torch.float64), system.at_temperature(3.0)):
            with pytest.raises(ValueError, match="critic is of another process"):
                rlai.compare_gradients(
                    system, some_rule(system), critic=exact.plan(other), num_trajectories=500, num_blocks=10
                )
        with pytest.raises(ValueError, match="critic must give one value a state"):
            rlai.compare_gradients(
                system, some_rule(system), critic=lambda s, t: s, num_trajectories=500, num_blocks=10
            )


class TestBadInput:
    @pytest.mark.parametrize(
        ("process", "policy", "words"),
        [
            (corridor, lambda: TabularPolicy(5, 2), "measures against the exact gradient, which ProgramProcess"),
            (lambda: random_mdp(0), lambda: None, "policy must be a module with parameters.*the action prior"),
            (lambda: random_mdp(0), lambda: torch.ones(3, 2) / 2, "policy must be a module with parameters.*Tensor"),
            (
                lambda: random_mdp(0, horizon=None, discount=0.9),
                lambda: TabularPolicy(3, 2).double(),
                "horizon is None, and compare_gradients needs one",
            ),
            (
                lambda: random_mdp(0),
                lambda: TabularPolicy(3, 2).requires_grad_(False),
                "policy has no parameters with requires_grad=True",
            ),
        ],
    )
    def test_refused(self, process: Any, policy: Any, words: str) -> None:
        made = process() if process is not corridor else corridor()
        with pytest.raises(ValueError, match=words):
            rlai.compare_gradients(made, policy(), num_trajectories=200)

    def test_forbidden_actions(self) -> None:
        """A policy that takes what the prior forbids has no gradient; one that keeps to the prior's support has."""
        base = random_mdp(1, num_states=3, num_actions=3, horizon=3)
        mdp = rlai.TabularMDP(
            base.kernel.probabilities,
            base.reward_table,
            base.initial_probabilities,
            horizon=3,
            action_prior=[0.5, 0.5, 0],
        )
        with pytest.raises(ValueError, match="takes an action that the action prior forbids"):
            rlai.compare_gradients(mdp, some_policy(mdp), num_trajectories=200)
        policy = CategoricalPolicy(mdp.state_space, 3, horizon=3, prior=mdp.prior).double()
        torch.manual_seed(0)
        torch.nn.init.normal_(policy.network.layers[-1].weight)
        found = rlai.compare_gradients(mdp, policy, num_trajectories=5_000)
        for row in found.rows:
            if row.unbiased:
                assert abs(row.z_along) < 4, row.name

    def test_support_that_misses_actions(self) -> None:
        """The ELBO and its gradient are as finite as ever: an action never taken has none."""
        mdp = random_mdp(1, num_states=3, num_actions=3, horizon=3)
        policy = some_policy(mdp)
        with torch.no_grad():
            policy.logits[..., 0] = -torch.inf
        torch.manual_seed(0)
        found = rlai.compare_gradients(mdp, policy, num_trajectories=5_000)
        for row in found.rows:
            if row.unbiased:
                assert abs(row.z_along) < 4, row.name

    def test_numbers(self) -> None:
        mdp = random_mdp(0)
        with pytest.raises(ValueError, match="num_blocks must be >= 10"):
            rlai.compare_gradients(mdp, some_policy(mdp), num_blocks=2)
        with pytest.raises(ValueError, match="num_trajectories must be >= num_blocks"):
            rlai.compare_gradients(mdp, some_policy(mdp), num_trajectories=50)
        with pytest.raises(ValueError, match="n must be an integer >= 1"):
            rlai.TrajectoryELBO("n_step", lambda s, t: s, n=0)
        with pytest.raises(ValueError, match="values_t must have the shape"):
            estimators.n_step_advantage(torch.zeros(3, 2), torch.zeros(3), 1)

    def test_policies_outside_the_family(self) -> None:
        system = double_integrator(horizon=3)
        policy = rlai.guides.GaussianPolicy(system.state_space, 1, horizon=3)
        torch.nn.init.normal_(policy.network.layers[-1].weight)
        with pytest.raises(ValueError, match="policy is not linear-Gaussian"):
            rlai.compare_gradients(system, policy, num_trajectories=200)


class TestSummary:
    @pytest.mark.parametrize("spectrum", ["flat", "one direction", "decaying"])
    def test_calibration(self, spectrum: str) -> None:
        """2,000 draws of 40 unbiased blocks, seed 0: both deviates exceed 3 about as often as they should."""
        g = torch.Generator().manual_seed(0)
        scale = {
            "flat": torch.ones(30),
            "one direction": torch.eye(30)[0] + 1e-6,
            "decaying": 0.7 ** torch.arange(30.0),
        }[spectrum].double()
        exact_gradient = torch.ones(30, dtype=torch.float64)
        beyond = [0, 0]
        for _ in range(2000):
            blocks = exact_gradient + scale * torch.randn(40, 30, generator=g, dtype=torch.float64)
            found = summarize(blocks, exact_gradient, 10)
            beyond[0] += abs(found.z_along) > 3
            beyond[1] += found.z_global > 3
        assert beyond[0] <= 22, "expected 9 (t with 39 degrees of freedom)"
        assert beyond[1] <= 12, "expected 3"

    def test_power_and_size(self) -> None:
        """A bias of a tenth, orthogonal to the gradient, is seen by the global deviate alone and given its size."""
        g = torch.Generator().manual_seed(0)
        truth = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
        blocks = truth + torch.tensor([0.0, 0.1, 0.0]) + 0.05 * torch.randn(100, 3, generator=g, dtype=torch.float64)
        found = summarize(blocks, truth, 7)
        assert abs(found.z_along) < 4 < found.z_global
        assert found.relative_bias == pytest.approx(0.1, abs=0.02)
        assert found.variance == pytest.approx(7 * 3 * 0.05**2, rel=0.2)
        assert summarize(blocks + 1e6, truth, 7).z_global > 30

    def test_no_gradient(self) -> None:
        found = summarize(torch.zeros(20, 3), torch.zeros(3), 5)
        assert found.z_along is None
        assert found.relative_bias is None
        assert found.variance == 0

    def test_best_share(self) -> None:
        g = torch.Generator().manual_seed(0)
        quiet, noise = torch.randn(2, 500, 2, generator=g)
        assert best_share(quiet, quiet + noise) < 0.1
        assert best_share(quiet + noise, quiet) == pytest.approx(1, abs=0.1)
        assert best_share(quiet + noise, quiet - noise) == pytest.approx(0.5, abs=0.1)
        assert best_share(quiet, quiet) == 0


def test_at_the_optimum() -> None:
    """There the gradient is 0: nothing is along it, and nothing divides by it."""
    mdp = random_mdp(3, horizon=3)
    policy = TabularPolicy(3, 2, horizon=3).double()
    with torch.no_grad():
        policy.logits.copy_(exact.plan(mdp).log_policy)
    text = rlai.compare_gradients(mdp, policy, num_trajectories=500, num_blocks=10).table()
    assert "nan" not in text.lower()


def test_same_seed_same_numbers() -> None:
    mdp = random_mdp(3, horizon=3, dtype=torch.float32)
    policy = TabularPolicy(3, 2, horizon=3)
    rows = []
    for _ in range(2):
        torch.manual_seed(4)
        found = rlai.compare_gradients(mdp, policy, num_trajectories=500, num_blocks=10)
        rows.append([(row.name, row.variance, row.z_global) for row in found.rows])
    assert rows[0] == rows[1]
    with pytest.raises(KeyError, match="there are 'score, full return'"):
        found["score"]


def test_command_line(tmp_path: Path) -> None:
    words = ["--rows", "3", "--columns", "3", "--horizon", "5", "--steps", "3", "--num-trajectories", "50"]
    words += ["--num-draws", "20", "--gradients-num-trajectories", "500", "--no-progress", "--out", tmp_path / "run"]
    code, text, _ = run_rlai("compare", "gridworld", *words, "--gradients")
    assert code == 0
    assert "gradients of the ELBO, 500 trajectories a row" in text
    record = json.loads((tmp_path / "run" / "gradients.json").read_text())
    assert {row["name"] for row in record["rows"]} >= set(LOSSES)
    assert "gradients.json" in json.loads((tmp_path / "run" / "run.json").read_text())["files"]
    assert gridworld(3, 3, horizon=5).num_states == 9
