"""infer_agent against closed forms, brute force, maximum causal entropy IRL and its own calibration."""

import itertools
import json
import math
import warnings
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats
from scipy.stats import norm
from torch import Tensor

from benchmarks.inverse import LABELS, judged
from rl_as_inference import LinearGaussianMDP, TabularMDP, exact, hyperbolic_policy, infer_agent, models
from rl_as_inference.reasoning.demonstrations import read_demonstrations
from rl_as_inference.reasoning.unknowns import Unknowns

F64 = torch.float64


def chain(weights: Tensor, *, deterministic: bool = False, temperature: float = 0.7, horizon: int = 6) -> TabularMDP:
    """Six states, three actions, two features."""
    gen = torch.Generator().manual_seed(3)
    moves = torch.rand(6, 3, 6, dtype=F64, generator=gen) ** 3
    if deterministic:
        moves = torch.nn.functional.one_hot(moves.argmax(-1), 6).to(F64)
    features = torch.rand(6, 3, 2, dtype=F64, generator=gen)
    initial = torch.ones(6, dtype=F64) / 6
    return TabularMDP(
        moves / moves.sum(-1, keepdim=True), features @ weights, initial, horizon=horizon, temperature=temperature
    )


FEATURES = torch.stack([chain(torch.tensor(w, dtype=F64)).reward_table for w in ([1.0, 0.0], [0.0, 1.0])], -1)


def flat(deterministic: bool) -> object:
    def family() -> TabularMDP:
        support = dist.constraints.independent(dist.constraints.real, 1)
        weights = pyro.sample("weights", dist.ImproperUniform(support, (), (2,)))
        return chain(weights.double(), deterministic=deterministic)

    return family


def features_gap(mdp: TabularMDP, states: Tensor, actions: Tensor) -> Tensor:
    """Demonstrated minus expected features from the demonstrated initial states."""
    seen = FEATURES[states[:-1], actions].sum((0, 1))
    policy = exact.plan(mdp).policy
    belief = torch.bincount(states[0], minlength=6).to(F64)
    expected = torch.zeros(2, dtype=F64)
    for t in range(len(actions)):
        flow = belief[:, None] * policy[t]
        expected = expected + torch.einsum("sa,saf->f", flow, FEATURES)
        belief = torch.einsum("sa,sax->x", flow, mdp.kernel.probabilities)
    return seen - expected


def test_gradient_is_the_feature_expectation_gap() -> None:
    """With deterministic dynamics, at any weights: ∂ log likelihood = (demonstrated - expected features) / α."""
    truth = chain(torch.tensor([1.0, -0.5], dtype=F64), deterministic=True)
    pyro.set_rng_seed(0)
    shown = truth.rollout(exact.plan(truth), 40)
    unknowns = Unknowns(flat(True), read_demonstrations(shown), "causal")
    for weights in ([0.0, 0.0], [2.0, 1.0], [-1.0, 3.0]):
        at = torch.tensor(weights, dtype=F64)
        _, slope = unknowns.gradient(at)
        gap = features_gap(chain(at, deterministic=True), shown.states, shown.actions)
        assert torch.allclose(-slope, gap / 0.7, atol=1e-8, rtol=0)


def test_map_with_a_flat_prior_is_maximum_causal_entropy_irl() -> None:
    """The gap of features is nil at the estimate, to 1e-6."""
    truth = chain(torch.tensor([1.0, -0.5], dtype=F64), deterministic=True)
    pyro.set_rng_seed(0)
    shown = truth.rollout(exact.plan(truth), 40)
    found = infer_agent(flat(True), shown, method="map").posterior["weights"].values[0, 0]
    gap = features_gap(chain(torch.as_tensor(found), deterministic=True), shown.states, shown.actions)
    assert float(gap.abs().max()) < 1e-6


def test_posterior_of_a_bandit_against_quadrature() -> None:
    """One unknown, eight and two choices: moments of 300 draws by NUTS, 4,000 by SVI, seed 0, within 4 errors.

    A third of SVI's draws count as independent, and of NUTS's as many as ArviZ finds.
    """

    def family() -> TabularMDP:
        worth = pyro.sample("worth", dist.Normal(torch.zeros((), dtype=F64), 1.0))
        reward = torch.stack([torch.zeros((), dtype=F64), worth])[None]
        return TabularMDP(torch.ones(1, 2, 1, dtype=F64), reward, torch.ones(1, dtype=F64), horizon=1)

    shown = [([0], [1])] * 8 + [([0], [0])] * 2

    def density(x: float, power: int) -> float:
        return x**power * math.exp(-x * x / 2) * (1 / (1 + math.exp(-x))) ** 8 * (1 / (1 + math.exp(x))) ** 2

    moments = [integrate.quad(density, -8, 8, args=(power,), epsabs=1e-12)[0] for power in range(3)]
    mean = moments[1] / moments[0]
    spread = math.sqrt(moments[2] / moments[0] - mean**2)
    for method, draws in (("nuts", 300), ("svi", 4_000)):
        answer = infer_agent(family, shown, method=method, num_draws=draws, num_warmup=50).posterior
        size = float(az.ess(answer)["worth"]) if method == "nuts" else draws / 3
        assert size > 100
        found = answer["worth"].values
        assert abs(found.mean() - mean) < 4 * spread / math.sqrt(size) + (0.03 if method == "svi" else 0)
        assert abs(found.std() - spread) < 4 * spread / math.sqrt(size) + (0.03 if method == "svi" else 0)


def goals(goal: Tensor, slip: float = 0.1) -> TabularMDP:
    base = models.gridworld(1, 4, horizon=3, slip=slip, start=(0, 1), dtype=F64)
    indices, probabilities = base.kernel.indices, base.kernel.probabilities
    reward = (torch.arange(4) == goal).to(F64)[:, None].expand(-1, 4)
    return TabularMDP.from_successors(
        indices, probabilities, reward, base.initial_probabilities, horizon=3, temperature=0.4
    )


def goal_family() -> TabularMDP:
    return goals(pyro.sample("goal", dist.Categorical(torch.tensor([0.5, 0.2, 0.3], dtype=F64))))


def test_discrete_goals_are_summed_over_exactly() -> None:
    shown = [([1, 0, 0], [0, 0]), ([1, 1, 0], [0, 1])]
    weights = []
    for goal, prior in enumerate((0.5, 0.2, 0.3)):
        table = exact.plan(goals(torch.tensor(goal))).policy
        chance = prior
        for states, actions in shown:
            for t, action in enumerate(actions):
                chance *= float(table[t, states[t], action])
        weights.append(chance)
    expected = torch.tensor(weights, dtype=F64) / sum(weights)
    found = infer_agent(goal_family, shown, num_draws=4_000)
    shares = torch.as_tensor(found.sample_stats["probability_goal"].values[0, 0])
    assert torch.allclose(shares, expected, atol=1e-12)
    draws = torch.as_tensor(found.posterior["goal"].values).flatten()
    for goal in range(3):
        p = float(expected[goal])
        assert abs(float((draws == goal).double().mean()) - p) < 4 * math.sqrt(p * (1 - p) / 4_000) + 1e-9


def test_unseen_parts_are_summed_over() -> None:
    """Brute force over every completion, with states and actions missing anywhere."""
    mdp = goals(torch.tensor(0))
    moves = torch.zeros(4, 4, 4, dtype=F64).scatter_add(-1, mdp.kernel.indices, mdp.kernel.probabilities)
    policy = exact.plan(mdp).policy
    for states, actions in (
        ([1, -1, 0, 0], [0, 0, 1]),
        ([-1, 1, -1, 0], [-1, 0, -1]),
        ([1, -1, -1, -1], [0, -1, 2]),
    ):
        total = 0.0
        free = itertools.product(range(4), repeat=7)
        for guess in free:
            s, a = guess[:4], guess[4:]
            if any(x not in (-1, y) for x, y in zip([*states, *actions], guess, strict=True)):
                continue
            chance = 1.0 if states[0] != -1 else float(mdp.initial_probabilities[s[0]])
            for t in range(3):
                chance *= float(policy[t, s[t], a[t]] * moves[s[t], a[t], s[t + 1]])
            total += chance
        data = read_demonstrations([(states, actions)])
        assert float(data.log_probabilities(mdp, exact.plan(mdp))[-1]) == pytest.approx(math.log(total), abs=1e-10)


def ending_chain(worth: Tensor, horizon: int | None = 4) -> TabularMDP:
    """Three cells, the last of which ends; action 1 goes right, action 0 stays, either fails one time in five."""
    moves = torch.zeros(3, 2, 3, dtype=F64)
    moves[:2, 0] = 0.8 * torch.eye(3, dtype=F64)[:2] + 0.2 * torch.eye(3, dtype=F64)[1:]
    moves[:2, 1] = 0.2 * torch.eye(3, dtype=F64)[:2] + 0.8 * torch.eye(3, dtype=F64)[1:]
    moves[2] = torch.eye(3, dtype=F64)[2]
    reward = torch.stack([torch.zeros((), dtype=F64), worth, torch.zeros((), dtype=F64)])[:, None].expand(3, 2)
    prior = torch.tensor([0.3, 0.7], dtype=F64)
    terminal = torch.tensor([False, False, True])
    start = torch.tensor([1.0, 0.0, 0.0], dtype=F64)
    return TabularMDP(moves, reward, start, horizon=horizon, action_prior=prior, terminal=terminal)


@pytest.mark.parametrize("fill", [0, 1, -1])
@pytest.mark.parametrize("extra", [1, 2, 7])
def test_padding_in_a_terminal_state_says_nothing(extra: int, fill: int) -> None:
    """By hand: log π_0(1|0) + log π_1(0|1) + log π_2(1|1), also where the padding goes past the horizon of 4."""

    short = ([0, 1, 1, 2], [1, 0, 1])
    padded = (short[0] + [2] * extra, short[1] + [fill] * extra)
    data = read_demonstrations([padded, ([0, -1, 1, 2] + [2] * extra, [1, 0, 1] + [fill] * extra)])
    process = ending_chain(torch.tensor(0.5, dtype=F64))
    policy = exact.plan(process)
    table = policy.log_policy
    data.check(process)
    kept = data.within(process)
    assert len(kept.mask) == min(3 + extra, 4)
    logs = kept.weights @ kept.log_probabilities(process, policy)
    by_hand = table[0, 0, 1] + table[1, 1, 0] + table[2, 1, 1]
    moves = process.kernel.dense()
    # Where something was not seen, be it padding, the moves count too.
    moved = (moves[0, 1, 1] * moves[1, 0, 1] * moves[1, 1, 2]).log() if fill == -1 else torch.zeros(())
    by_hand = by_hand + moved
    assert float(logs[0]) == pytest.approx(float(by_hand), abs=1e-12)
    # The second was in cell 0 or 1 at step 1, and in cell 1 after it.
    paths = sum(table[1, cell, 0].exp() * moves[0, 1, cell] * moves[cell, 0, 1] for cell in (0, 1))
    unseen = table[0, 0, 1] + paths.log() + table[2, 1, 1] + moves[1, 1, 2].log()
    assert float(logs[1]) == pytest.approx(float(unseen), abs=1e-12)


def test_padding_changes_no_posterior() -> None:
    def family() -> TabularMDP:
        return ending_chain(pyro.sample("worth", dist.Normal(torch.zeros((), dtype=F64), 1.0)))

    short, padded = ([0, 1, 1, 2], [1, 0, 1]), ([0, 1, 1, 2, 2, 2, 2], [1, 0, 1, 0, 0, 0])
    one, other = (infer_agent(family, [shown], method="map") for shown in (short, padded))
    for group, name in (("posterior", "worth"), ("log_likelihood", "demonstration")):
        assert other[group][name].item() == pytest.approx(one[group][name].item(), abs=1e-9)


@pytest.mark.parametrize(
    ("states", "actions"),
    [
        ([0, 0, 0, 0, 0, 0], [0] * 5),  # goes on past the horizon
        ([0, 1, 2, 2, 2, 1], [1, 1, 0, 0, 0]),  # comes back from the end
    ],
)
def test_what_goes_on_past_the_horizon_is_no_padding(states: list[int], actions: list[int]) -> None:
    with pytest.raises(ValueError, match=r"have up to 5 steps, .* horizon of 4"):
        infer_agent(lambda: ending_chain(pyro.sample("worth", dist.Normal(0.0, 1.0))), [(states, actions)])


def test_a_family_of_several_horizons_cuts_nothing() -> None:
    def family() -> TabularMDP:
        longer = int(pyro.sample("longer", dist.Bernoulli(0.5)))
        return ending_chain(torch.tensor(0.5, dtype=F64), horizon=4 + longer)

    with pytest.raises(ValueError, match="another horizon in other runs"):
        infer_agent(family, [([0, 1, 2, 2, 2, 2], [1, 1, 0, 0, 0])])


def test_causal_and_posterior_agents_differ_where_luck_is_possible() -> None:
    """A lottery that seldom pays: who plays it is greedy to one reading, and lucky to the other."""

    def family(stochastic: bool) -> object:
        def program() -> TabularMDP:
            prize = pyro.sample("prize", dist.Normal(torch.zeros((), dtype=F64), 1e4))
            win = 0.1 if stochastic else 1.0
            moves = torch.zeros(3, 2, 3, dtype=F64)
            moves[0, 0, 1] = 1
            moves[0, 1, 2], moves[0, 1, 1] = win, 1 - win
            moves[1:, :, 1] = 1
            reward = torch.stack([0 * prize, 0 * prize, prize])[:, None].expand(-1, 2)
            return TabularMDP(moves, reward, torch.tensor([1.0, 0, 0], dtype=F64), horizon=2)

        return program

    shown = [([0, 1], [1])] * 9 + [([0, 1], [0])]
    found = {
        reading: infer_agent(family(True), shown, method="map", dynamics=reading).posterior["prize"].item()
        for reading in ("causal", "posterior")
    }
    # Log odds of 9 : 1 are 0.1 prize to the one, and log(0.1 e^prize + 0.9) to the other.
    assert found["causal"] == pytest.approx(10 * math.log(9), abs=1e-4)
    assert found["posterior"] == pytest.approx(math.log((9 - 0.9) / 0.1), abs=1e-4)
    sure = [([0, 2], [1])] * 9 + [([0, 1], [0])]
    alike = [
        infer_agent(family(False), sure, method="map", dynamics=reading).posterior["prize"].item()
        for reading in ("causal", "posterior")
    ]
    assert alike[0] == pytest.approx(alike[1], abs=1e-6)


def test_no_horizon_is_differentiated_at_the_fixed_point() -> None:
    """The gradient against differences, with weights and discount unknown."""

    def family() -> TabularMDP:
        weights = pyro.sample("weights", dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1))
        discount = pyro.sample("discount", dist.Beta(8 * torch.ones((), dtype=F64), 2.0))
        base = chain(weights)
        return TabularMDP(
            base.kernel.probabilities, base.reward_table, base.initial_probabilities, discount=discount, temperature=0.7
        )

    truth = chain(torch.tensor([1.0, -0.5], dtype=F64))
    pyro.set_rng_seed(0)
    unknowns = Unknowns(family, read_demonstrations(truth.rollout(exact.plan(truth), 10)), "causal")
    at = torch.tensor([0.3, -0.2, 1.0], dtype=F64)
    _, slope = unknowns.gradient(at)
    for i, row in enumerate(torch.eye(3, dtype=F64) * 1e-5):
        rise = (unknowns.gradient(at + row)[0] - unknowns.gradient(at - row)[0]) / 2e-5
        assert float(slope[i]) == pytest.approx(rise, rel=1e-6, abs=1e-6)


def test_small_calibration() -> None:
    """25 data sets of 10 choices each, seeds 0 …: the truth's rank among 9 draws is uniform (chi-square p > 1e-3)."""
    one = torch.ones((), dtype=F64)

    def family() -> TabularMDP:
        worth = pyro.sample("worth", dist.Normal(0 * one, one))
        return TabularMDP(one.expand(1, 2, 1), torch.stack([0 * one, worth])[None], one[None], horizon=1)

    ranks = []
    for seed in range(25):
        pyro.set_rng_seed(seed)
        trace = pyro.poutine.trace(family).get_trace()
        process = trace.nodes["_RETURN"]["value"]
        shown = process.rollout(exact.plan(process), 10)
        options = {"num_draws": 18, "num_chains": 1, "num_warmup": 10, "seed": seed}
        draws = infer_agent(family, shown, **options).posterior["worth"].values[0, 1::2]
        ranks.append(int((draws < float(trace.nodes["worth"]["value"])).sum()))
    assert stats.chisquare(np.bincount(np.array(ranks) // 2, minlength=5)).pvalue > 1e-3


def test_the_committed_calibration_covers() -> None:
    """100 data sets of 50 demonstrations of 20 steps (``python -m benchmarks.inverse``): table and ranks agree."""
    results = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "inverse.json").read_text())
    table = judged(np.array(results["ranks"]))
    assert results["sets"] == len(results["ranks"]) == 100
    for label in LABELS:  # SciPy's versions differ in the last digit
        assert results["table"][label] == pytest.approx(table[label], rel=1e-12)
    assert results["table"].keys() == table.keys()
    for label in LABELS:
        assert table[label]["chi_square_p_value"] > 1e-3
        assert table[label]["coverage_p_value"] > 1e-2


def scalar_system(weight: Tensor) -> LinearGaussianMDP:
    one = torch.ones(1, 1, dtype=F64)
    return LinearGaussianMDP(0.9 * one, one, 0.1 * one, weight * one, 0.1 * one, one[0], 0.5 * one, one, horizon=5)


def scalar_family() -> LinearGaussianMDP:
    return scalar_system(pyro.sample("weight", dist.LogNormal(torch.zeros((), dtype=F64), 1.0)))


def test_a_policy_given_as_a_callable_has_the_likelihood_of_the_plan_it_repeats() -> None:
    def acted() -> tuple[LinearGaussianMDP, object]:
        process = scalar_family()
        plan = exact.plan(process)
        return process, lambda state, t: plan(state, t)

    truth = scalar_system(torch.tensor(2.0, dtype=F64))
    pyro.set_rng_seed(0)
    shown = truth.rollout(exact.plan(truth), 200)
    first, second = (infer_agent(f, shown, method="map").posterior["weight"].item() for f in (scalar_family, acted))
    assert first == pytest.approx(second, abs=1e-6)
    assert abs(first - 2.0) < 0.5


def riccati_log_likelihood(weight: float, states: np.ndarray, actions: np.ndarray) -> float:
    """The scalar system's recursion by hand: V(s) = -c s²/2 + constant, and π(a|s) normal with precision h."""
    gain, precision, c = [], [], 0.0
    for _ in range(5):
        # Q(s,a) + log p(a) = -(w s² + 0.1 a² + c (0.9 s + a)² + a²)/2 + constant; and the reward is of s, not s'.
        h = 0.1 + 1.0 + c
        gain.append(-0.9 * c / h)
        precision.append(h)
        c = weight + 0.81 * c - (0.9 * c) ** 2 / h
    total = 0.0
    for t in range(5):
        k, h = gain[4 - t], precision[4 - t]
        total += norm.logpdf(actions[t], k * states[t], h**-0.5).sum()
    return total


def test_linear_gaussian_weight_by_quadrature() -> None:
    """NUTS, 400 draws, seed 0: mean and standard deviation against quadrature of a hand-written likelihood.

    |z| < 4 with the Monte Carlo errors of the effective sample size; 25 demonstrations of 5 steps, seed 1.
    """
    truth = scalar_system(torch.tensor(2.0, dtype=F64))
    pyro.set_rng_seed(1)
    shown = truth.rollout(exact.plan(truth), 25)
    states, actions = shown.states[:5, :, 0].numpy(), shown.actions[:, :, 0].numpy()
    grid = np.linspace(-4.0, 4.0, 801)  # of the log weight, whose prior is a standard normal
    logs = np.array([riccati_log_likelihood(np.exp(x), states, actions) + norm.logpdf(x) for x in grid])
    mass = np.exp(logs - logs.max())
    mass /= mass.sum()
    mean = (mass * grid).sum()
    deviation = np.sqrt((mass * (grid - mean) ** 2).sum())
    kurtosis = (mass * (grid - mean) ** 4).sum() / deviation**4

    answer = infer_agent(scalar_family, shown, num_draws=400, num_chains=1, num_warmup=50, seed=0)
    draws = np.log(answer.posterior)
    size = float(az.ess(draws, method="mean")["weight"])
    assert size > 80
    assert abs(float(draws["weight"].mean()) - mean) < 4 * deviation / size**0.5
    size = float(az.ess(draws, method="sd")["weight"])
    assert size > 80
    assert abs(float(draws["weight"].std()) - deviation) < 4 * deviation * ((kurtosis - 1) / (4 * size)) ** 0.5

    # The log likelihoods themselves, to rounding.
    weights = answer.posterior["weight"].values.ravel()[:5]
    own = answer.log_likelihood["demonstration"].values.reshape(400, -1).sum(-1)[:5]
    assert own == pytest.approx([riccati_log_likelihood(w, states, actions) for w in weights], abs=1e-9)


class TestHyperbolic:
    @pytest.mark.parametrize("sophisticated", [False, True])
    def test_no_discount_is_the_soft_plan(self, sophisticated: bool) -> None:
        mdp = chain(torch.tensor([1.0, -0.5], dtype=F64))
        table = hyperbolic_policy(mdp, 0.0, sophisticated=sophisticated)
        assert torch.allclose(table, exact.plan(mdp).policy, atol=1e-12)

    @pytest.mark.parametrize("sophisticated", [False, True])
    def test_exponential_discount_is_consistent(self, sophisticated: bool) -> None:
        mdp = chain(torch.tensor([1.0, -0.5], dtype=F64))
        other = TabularMDP(
            mdp.kernel.probabilities,
            mdp.reward_table,
            mdp.initial_probabilities,
            horizon=6,
            temperature=0.7,
            discount=0.8,
        )
        table = hyperbolic_policy(mdp, sophisticated=sophisticated, discount=lambda d: 0.8**d)
        assert torch.allclose(table, exact.plan(other).policy, atol=1e-12)

    @pytest.mark.parametrize("sophisticated", [False, True])
    def test_brute_force_recursion(self, sophisticated: bool) -> None:
        mdp, k, alpha = chain(torch.tensor([1.0, -0.5], dtype=F64), horizon=4), 1.5, 0.7
        moves, reward = mdp.kernel.probabilities.tolist(), mdp.reward_table.tolist()

        def q(s: int, a: int, t: int, d: int) -> float:
            onward = sum(p * v(x, t + 1, d + 1) for x, p in enumerate(moves[s][a])) if t < 3 else 0.0
            return reward[s][a] / (1 + k * d) + onward

        def pi(s: int, t: int, d: int) -> list[float]:
            scale = alpha / (1 + k * d)
            weights = [math.exp(q(s, a, t, d) / scale) for a in range(3)]
            return [w / sum(weights) for w in weights]

        def v(s: int, t: int, d: int) -> float:
            chosen = pi(s, t, 0 if sophisticated else d)
            scale = alpha / (1 + k * d)
            return sum(p * (q(s, a, t, d) - scale * math.log(3 * p)) for a, p in enumerate(chosen))

        table = hyperbolic_policy(mdp, k, sophisticated=sophisticated)
        for s in range(6):
            assert table[2, s].tolist() == pytest.approx(pi(s, 2, 0), abs=1e-10)
            assert table[1, s].tolist() == pytest.approx(pi(s, 1, 0), abs=1e-10)

    def test_bias_and_preference_are_inferred_together(self) -> None:
        """40 runs of a naive procrastinator, seed 0: that it is naive is found, k and reward within 4 deviations.

        At this temperature the best sophisticated agent explains a run 0.5 nats worse; at 0.15 it would be 0.007.
        """

        def agent(k: Tensor, reward: Tensor, knows: bool) -> tuple[TabularMDP, Tensor]:
            process = models.procrastination(days=8, temperature=0.05, reward=reward, dtype=F64)
            return process, hyperbolic_policy(process, k, sophisticated=knows)

        def family() -> tuple[TabularMDP, Tensor]:
            k = pyro.sample("k", dist.LogNormal(torch.zeros((), dtype=F64), 0.7))
            reward = pyro.sample("reward", dist.LogNormal(torch.ones((), dtype=F64), 0.5))
            knows = pyro.sample("sophisticated", dist.Bernoulli(torch.tensor(0.5, dtype=F64)))
            return agent(k, reward, bool(knows))

        process, policy = agent(torch.tensor(2.0, dtype=F64), torch.tensor(3.0, dtype=F64), False)
        pyro.set_rng_seed(0)
        shown = process.rollout(lambda s, t: dist.Categorical(policy[t, s]), 40)
        found = infer_agent(family, shown, num_draws=40, num_warmup=20, num_chains=1)
        assert float(found.sample_stats["probability_sophisticated"].values[..., 1].mean()) < 0.2
        for name, true in (("k", 2.0), ("reward", 3.0)):
            draws = found.posterior[name].values
            assert abs(draws.mean() - true) < 4 * draws.std()


class TestMisuse:
    def test_impossible_transition_is_named(self) -> None:
        with pytest.raises(ValueError, match="step 1 of demonstration 1, action 0 in state 0 cannot lead to state 3"):
            infer_agent(goal_family, [([1, 0, 0], [0, 0]), ([1, 0, 3], [0, 0])])

    def test_forbidden_action_is_named(self) -> None:
        def family() -> TabularMDP:
            worth = pyro.sample("worth", dist.Normal(0.0, 1.0))
            reward = torch.stack([worth, 0 * worth])[None]
            prior = torch.tensor([1.0, 0.0])
            return TabularMDP(torch.ones(1, 2, 1), reward, torch.ones(1), horizon=2, action_prior=prior)

        with pytest.raises(ValueError, match="step 1 of demonstration 0 has no probability"):
            infer_agent(family, [([0, 0], [0, 1])])

    @pytest.mark.parametrize(
        ("shown", "message"),
        [
            ([([9, 0], [0])], "state 9 at step 0 of demonstration 0 is outside"),
            ([([1, 0], [7])], "action 7 at step 0 of demonstration 0 is outside"),
            ([([1.0, 0.0], [0])], "must be one integer a step"),
            ([([1], [0, 0])], "1 states and 2 actions"),
            ([([1] * 8, [0] * 7)], "horizon of 3"),
            ([], "there are none"),
            (3, "must be Trajectories"),
            ([([-1, -1], [-1])], "no state and no action was seen"),
        ],
    )
    def test_demonstrations(self, shown: object, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            infer_agent(goal_family, shown)

    def test_families_and_methods(self) -> None:
        shown = [([1, 0], [0])]
        with pytest.raises(ValueError, match="method must be"):
            infer_agent(goal_family, shown, method="hmc")
        with pytest.raises(ValueError, match="family must return a TabularMDP"):
            infer_agent(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)), shown)
        with pytest.raises(ValueError, match="family has no unknowns"):
            infer_agent(lambda: goals(torch.tensor(0)), shown)
        for family in (goals(torch.tensor(0)), "walks"):  # a process can be called, and is no family
            with pytest.raises(ValueError, match=f"family must be a Pyro program.* got {type(family).__name__}"):
                infer_agent(family, shown)

    def test_scale_shared_by_reward_and_temperature_is_warned_of(self) -> None:
        def family() -> TabularMDP:
            worth = pyro.sample("worth", dist.LogNormal(torch.zeros((), dtype=F64), 1.0))
            temperature = pyro.sample("temperature", dist.LogNormal(torch.zeros((), dtype=F64), 1.0))
            reward = torch.stack([torch.zeros((), dtype=F64), worth])[None]
            one = torch.ones(1, 2, 1, dtype=F64)
            return TabularMDP(one, reward, one[0, 0], horizon=1, temperature=temperature)

        with pytest.warns(UserWarning, match=r"say nothing about the direction.*common factor"):
            infer_agent(family, [([0], [1])] * 8 + [([0], [0])] * 2, method="map")

    def test_a_goal_that_changes_nothing_is_warned_of(self) -> None:
        def family() -> TabularMDP:
            pyro.sample("idle", dist.Categorical(torch.ones(2)))
            return goal_family()

        with pytest.warns(UserWarning, match="say nothing about idle"):
            infer_agent(family, [([1, 0], [0])], num_draws=10)


def choice(worth: Tensor) -> TabularMDP:
    """One choice between nothing and what is worth something."""
    reward = torch.stack([torch.zeros((), dtype=worth.dtype), worth])[None]
    one = torch.ones(1, 2, 1, dtype=worth.dtype)
    return TabularMDP(one, reward, one[0, 0], horizon=1)


def chose(often: int, seldom: int) -> list[Any]:
    return [([0], [1])] * often + [([0], [0])] * seldom


def normal(name: str, mean: float = 0.0, sd: float = 1.0) -> Tensor:
    return pyro.sample(name, dist.Normal(torch.tensor(mean, dtype=F64), sd))


class TestFamiliesThatCannotBeInferred:
    """What would be silently wrong is an error that says which site it is."""

    def test_a_support_that_depends_on_another_unknown(self) -> None:
        def family() -> TabularMDP:
            width = pyro.sample("width", dist.Uniform(torch.tensor(1.0, dtype=F64), 3.0))
            return choice(pyro.sample("x", dist.Uniform(torch.tensor(0.0, dtype=F64), width)))

        with pytest.raises(ValueError, match=r"the values that 'x' may take differ from run to run.*width \* pyro"):
            infer_agent(family, chose(8, 2))

    def test_its_mend_is_right(self) -> None:
        """The same unknown from a fixed support, against quadrature: 500 draws, seed 0, z < 4 by ArviZ's ESS."""

        def family() -> TabularMDP:
            width = pyro.sample("width", dist.Uniform(torch.tensor(1.0, dtype=F64), 3.0))
            share = pyro.sample("share", dist.Uniform(torch.tensor(0.0, dtype=F64), 1.0))
            return choice(width * share)

        draws = infer_agent(family, chose(30, 0), num_draws=500, num_warmup=60).posterior
        sizes = az.ess(draws)
        width, share = np.meshgrid(np.linspace(1, 3, 801), np.linspace(0, 1, 801), indexing="ij")
        weight = (1 / (1 + np.exp(-width * share))) ** 30
        for name, values in (("width", width), ("share", share)):
            mean = (weight * values).sum() / weight.sum()
            spread = math.sqrt((weight * (values - mean) ** 2).sum() / weight.sum())
            assert float(sizes[name]) > 150
            assert abs(float(draws[name].mean()) - mean) < 4 * spread / math.sqrt(float(sizes[name]))

    @pytest.mark.parametrize("discrete", [True, False])
    def test_a_site_on_a_branch(self, discrete: bool) -> None:
        def family() -> TabularMDP:
            coin = dist.Bernoulli(torch.tensor(0.5, dtype=F64))
            first = pyro.sample("first", coin) if discrete else normal("first")
            return choice(normal("second", sd=3.0) if first > 0.5 else torch.zeros((), dtype=F64))

        for seed in range(4):
            with pytest.raises(ValueError, match="'second' is drawn in some runs and not in others"):
                infer_agent(family, chose(8, 2), method="map", seed=seed)

    @pytest.mark.parametrize(
        "lose",
        [
            lambda w: torch.tensor(w.item(), dtype=F64),
            lambda w: w.detach(),
            lambda w: torch.as_tensor(w.detach().numpy()),
            lambda w: w + 0 * torch.no_grad()(lambda: w)() - w + w.data,
        ],
    )
    @pytest.mark.parametrize("method", ["map", "svi", "nuts"])
    def test_a_value_that_leaves_autograd(self, lose: Any, method: str) -> None:
        with pytest.raises(ValueError, match=r"the gradient for 'w' is not the density's slope.*leaves autograd"):
            infer_agent(lambda: choice(lose(normal("w"))), chose(80, 20), method=method)

    def test_it_is_told_without_a_prior_too(self) -> None:
        def family() -> TabularMDP:
            w = pyro.sample("w", dist.ImproperUniform(dist.constraints.real, (), ()))
            return choice(w.detach().double() - 0.3)

        with pytest.raises(ValueError, match="the gradient for 'w' is not the density's slope"):
            infer_agent(family, chose(8, 2), method="map")

    def test_one_of_several(self) -> None:
        def family() -> TabularMDP:
            a, w = normal("a"), normal("w")
            return choice(w * math.exp(float(a.detach())))

        with pytest.raises(ValueError, match="the gradient for 'a' is not"):
            infer_agent(family, chose(80, 20), method="map")

    def test_a_kink_is_no_mistake(self) -> None:
        answer = infer_agent(lambda: choice(normal("w").abs()), chose(80, 20), method="map")
        assert abs(abs(answer.posterior["w"].item()) - 1.307) < 2e-3

    def test_a_gradient_that_is_no_number(self) -> None:
        features = torch.tensor([0.0, 1.0], dtype=F64)

        def family() -> TabularMDP:
            w = normal("w")
            reward = torch.where(features > 0, torch.log(features * torch.exp(w)), 0.0)[None]
            one = torch.ones(1, 2, 1, dtype=F64)
            return TabularMDP(one, reward, one[0, 0], horizon=1)

        with pytest.raises(ValueError, match=r"the gradient for 'w' is no number.*torch.where with log"):
            infer_agent(family, chose(80, 20), method="map")

    def test_random_numbers_beside_the_sites(self) -> None:
        with pytest.raises(ValueError, match="density differs from one run to the next at the same values"):
            infer_agent(lambda: choice(normal("w") + torch.randn((), dtype=F64)), chose(8, 2))

    def test_arguments(self) -> None:
        with pytest.raises(ValueError, match=r"family must be a program without arguments .*'worth'"):
            infer_agent(choice, chose(8, 2))
        for seed in (None, "a", 1.5, -1, 2**40, True):
            with pytest.raises(ValueError, match="seed must be an integer from 0 to"):
                infer_agent(lambda: choice(normal("w")), chose(8, 2), seed=seed)


def test_what_one_hypothesis_forbids_refutes_it_alone() -> None:
    """A wall that was walked through is not there; the rest is as if there had been no such unknown."""

    def town(walled: Any, w: Tensor) -> TabularMDP:
        moves = torch.zeros(2, 2, 2, dtype=F64)
        moves[0, 0, 0] = moves[1, :, 1] = 1
        moves[0, 1, 0 if bool(walled) else 1] = 1
        reward = torch.stack([torch.zeros(2, dtype=F64), torch.stack([w, 0 * w])], 1)
        return TabularMDP(moves, reward, torch.tensor([1.0, 0.0], dtype=F64), horizon=2)

    def family() -> TabularMDP:
        return town(pyro.sample("wall", dist.Bernoulli(torch.tensor(0.5, dtype=F64))), normal("w"))

    seen = [([0, 1, 1], [1, 1]), ([0, 0, 1], [0, 1])]
    found = infer_agent(family, seen, method="map")
    assert found.sample_stats["probability_wall"][..., 1].item() == 0
    alone = infer_agent(lambda: town(False, normal("w")), seen, method="map")
    assert found.posterior["w"].item() == pytest.approx(alone.posterior["w"].item(), abs=1e-7)
    assert bool(np.isfinite(found.log_likelihood["demonstration"].values).all())
    draws = infer_agent(family, seen, num_draws=100).posterior["wall"]
    assert float(draws.max()) == 0
    with pytest.raises(ValueError, match="at step 0 of demonstration 0, action 0 in state 0 cannot lead to state 1"):
        infer_agent(family, [([0, 1, 1], [0, 1])])


def test_several_modes_are_warned_of_and_chains_start_at_each() -> None:
    """Worth x² - 1 with x ~ N(0.5, 1.5²): P(x > 0) is 0.63, and no chain crosses 0."""

    def family() -> TabularMDP:
        x = normal("x", 0.5, 1.5)
        return choice((x**2 - 1) / 0.2)

    with pytest.warns(UserWarning, match="more than one mode, and chains of NUTS start at different ones"):
        draws = infer_agent(family, chose(18, 2), num_draws=40, num_warmup=30).posterior["x"].values
    assert sorted(np.sign(draws.mean(1)).tolist()) == [-1, 1]
    with pytest.warns(UserWarning, match="more than one mode, and the Gaussian is fitted at the highest alone"):
        infer_agent(family, chose(18, 2), method="svi", num_draws=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        infer_agent(lambda: choice(normal("x")), chose(18, 2), method="svi", num_draws=10)


def test_gradients_are_had_where_the_caller_has_none() -> None:
    wanted = infer_agent(lambda: choice(normal("w")), chose(8, 2), method="map").posterior["w"].item()
    for off in (torch.no_grad(), torch.inference_mode()):
        with off:
            found = infer_agent(lambda: choice(normal("w")), chose(8, 2), method="map")
            assert found.posterior["w"].item() == wanted
            assert infer_agent(lambda: choice(normal("w")), chose(8, 2), num_draws=10).posterior["w"].shape == (2, 5)
            assert not torch.is_grad_enabled()


def test_a_family_reads_the_callers_parameters_by_every_method() -> None:
    """Worth 3 w: posterior mean and sd of w by quadrature, for 800 draws by SVI and 300 by NUTS."""
    pyro.param("factor", torch.tensor(1.0, dtype=F64)).data.fill_(3.0)
    pyro.param("AutoMultivariateNormal.loc", torch.ones(5))

    def family() -> TabularMDP:
        return choice(normal("w") * pyro.param("factor").detach())

    w = np.linspace(-4, 4, 4001)
    weight = norm.pdf(w) / (1 + np.exp(-3 * w)) ** 8 / (1 + np.exp(3 * w)) ** 2
    mean = (w * weight).sum() / weight.sum()
    spread = math.sqrt(((w - mean) ** 2 * weight).sum() / weight.sum())
    for method, draws in (("nuts", 300), ("svi", 800)):
        found = infer_agent(family, chose(8, 2), method=method, num_draws=draws, num_warmup=50).posterior["w"].values
        assert abs(found.mean() - mean) < 0.25 * spread
        assert abs(found.std() / spread - 1) < 0.2
    assert set(pyro.get_param_store().keys()) == {"factor", "AutoMultivariateNormal.loc"}
    assert torch.equal(pyro.param("AutoMultivariateNormal.loc"), torch.ones(5))
    assert float(pyro.param("factor")) == 3


def test_yes_and_no_are_actions() -> None:
    yes = [(torch.tensor([0]), torch.tensor([True]))] * 8 + [(torch.tensor([0]), torch.tensor([False]))] * 2
    found = infer_agent(lambda: choice(normal("w")), yes, method="map")
    wanted = infer_agent(lambda: choice(normal("w")), chose(8, 2), method="map")
    assert found.posterior["w"].item() == wanted.posterior["w"].item()


@pytest.mark.parametrize("sophisticated", [False, True])
def test_what_lies_far_away_may_be_worth_nothing(sophisticated: bool) -> None:
    """δ = 1, 1, 0, 0, … is the limit of δ = 1, 1, x, x, … as x goes to 0: to 1e-6, at x = 1e-9."""
    mdp = models.procrastination(temperature=0.5, dtype=F64)

    def table(rest: float) -> Tensor:
        def weights(delays: Tensor) -> Tensor:
            return torch.where(delays < 2, 1.0, rest).to(delays)

        return hyperbolic_policy(mdp, sophisticated=sophisticated, discount=weights)

    assert bool(table(0.0).isfinite().all())
    torch.testing.assert_close(table(0.0), table(1e-9), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"k": bad}, "k must be a finite number >= 0") for bad in (-1.0, math.nan, math.inf, "a", None, True)),
        ({"k": torch.ones(2)}, "k must be a finite number >= 0"),
        ({"discount": 0.9}, "discount must be a function of a tensor of delays, got 0.9"),
        ({"discount": lambda d: 0.5}, "discount must return a weight for each of"),
        ({"discount": lambda d: d[:2]}, "discount must return a weight for each of"),
        ({"discount": lambda d: 1 - d}, "discount must be 1 at delay 0, and finite and >= 0"),
        ({"discount": lambda d: 2 / (1 + d)}, "discount must be 1 at delay 0"),
    ],
)
def test_discounting_that_is_none_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hyperbolic_policy(models.procrastination(temperature=0.05), **options)
