"""Divergences between a policy's trajectories and the exponentiated-return distribution."""

import math

import brute_force
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import random_mdp, small_mdps

import rl_as_inference as rlai
from rl_as_inference import TabularMDP, exact


def random_policy(mdp: TabularMDP, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    table = torch.rand(mdp.horizon, mdp.num_states, mdp.num_actions, generator=g, dtype=torch.float64) + 0.05
    return table / table.sum(-1, keepdim=True)


def by_hand(mdp, policy, direction):
    """The divergence from the test suite's own enumeration of trajectories, in plain Python."""
    found, alpha = list(brute_force.paths(mdp)), float(mdp.temperature)
    target, guide = [], []
    for path in found:
        target.append(path.dynamics * path.prior * math.exp(path.return_ / alpha))
        taken = zip(range(path.length), path.states, path.actions, strict=False)
        guide.append(path.dynamics * math.prod(float(policy[t, s, a]) for t, s, a in taken))
    target = [weight / math.fsum(target) for weight in target]
    p, q = (target, guide) if direction == "forward" else (guide, target)
    return math.fsum(x * math.log(x / y) for x, y in zip(p, q, strict=True) if x > 0)


@settings(max_examples=40, deadline=None)
@given(small_mdps, st.integers(0, 1000))
def test_messages_and_enumeration_agree_with_brute_force(mdp, seed):
    policy = random_policy(mdp, seed)
    for direction in ("reverse", "forward"):
        wanted = by_hand(mdp, policy, direction)
        assert float(exact.trajectory_kl(mdp, policy, direction)) == pytest.approx(wanted, abs=1e-9)
        found = rlai.trajectory_kl(mdp, policy, direction=direction, method="enumeration")
        assert found.mean == pytest.approx(wanted, abs=1e-9)
        assert found.standard_error == 0


@settings(max_examples=30, deadline=None)
@given(small_mdps, st.integers(0, 1000))
def test_enumeration_is_complete(mdp, seed):
    found = exact.enumerate_trajectories(mdp, random_policy(mdp, seed))
    for log_probability in (found.log_prior, found.log_guide, found.log_target):
        assert float(log_probability.exp().sum()) == pytest.approx(1, abs=1e-12)
    assert float(found.log_evidence) == pytest.approx(brute_force.log_evidence(mdp), abs=1e-9)
    assert len(found.returns) == exact.enumeration.count_trajectories(mdp)
    rows = torch.cat([found.states, found.actions]).T
    if mdp.discount == 1:  # with coins, two trajectories may differ in whether they survived alone
        assert len(rows.unique(dim=0)) == len(rows)


def test_equation_34():
    """KL(π || p*) is minus the MaxEnt objective over α and a constant that no policy changes."""
    mdp = random_mdp(0, uniform_prior=True, temperature=0.7, horizon=3)
    constants = []
    for seed in range(5):
        policy = random_policy(mdp, seed)
        found = exact.enumerate_trajectories(mdp, policy)
        taken = policy[torch.arange(3)[:, None], found.states[:-1], found.actions]
        maxent = found.log_guide.exp() @ (found.returns - mdp.temperature * taken.log().sum(0))
        divergence = float(exact.trajectory_kl(mdp, policy))
        # Z of equation 30 has no action prior in it; that of the model has, (1/A)^T here.
        log_z = brute_force.log_evidence(mdp) + 3 * math.log(2)
        assert divergence == pytest.approx(log_z - float(maxent) / mdp.temperature, abs=1e-9)
        constants.append(divergence + float(maxent) / mdp.temperature)
    assert max(constants) - min(constants) < 1e-9


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("discount", [0.6, 0.9])
@pytest.mark.parametrize("horizon", [4, None])
def test_discount_is_termination(seed, discount, horizon):
    """Footnote 2: a terminal state reached with probability 1-γ after each step stands for the discount."""
    # Warm, so that with no horizon the log evidence is finite.
    mdp = random_mdp(seed, horizon=horizon, discount=discount, temperature=4.0, terminal=seed == 2)
    size = mdp.num_states
    transition = torch.zeros(size + 1, mdp.num_actions, size + 1, dtype=torch.float64)
    transition[:size, :, :size] = discount * mdp.kernel.probabilities
    transition[:size, :, size] = 1 - discount
    transition[size, :, size] = 1
    grown = torch.nn.functional.pad
    ending = TabularMDP(
        transition,
        grown(mdp.reward_table, (0, 0, 0, 1)),
        grown(mdp.initial_probabilities, (0, 1)),
        horizon=horizon,
        temperature=mdp.temperature,
        action_prior=torch.cat([mdp.action_prior, torch.full((1, mdp.num_actions), 0.5, dtype=torch.float64)]),
        terminal=torch.cat([mdp.terminal, torch.tensor([True])]),
    )
    g = torch.Generator().manual_seed(seed)
    policy = torch.rand(size + 1, mdp.num_actions, generator=g, dtype=torch.float64) + 0.05
    policy /= policy.sum(-1, keepdim=True)
    for quantity in (exact.elbo, exact.trajectory_kl):
        discounted, terminated = quantity(mdp, policy[:size]), quantity(ending, policy)
        assert float(discounted) == pytest.approx(float(terminated), abs=1e-9)
    assert float(exact.log_evidence(mdp)) == pytest.approx(float(exact.log_evidence(ending)), abs=1e-9)
    assert float(exact.optimal_elbo(mdp)) == pytest.approx(float(exact.optimal_elbo(ending)), abs=1e-9)
    if horizon is not None:
        forward = (exact.trajectory_kl(mdp, policy[:size], "forward"), exact.trajectory_kl(ending, policy, "forward"))
        assert float(forward[0]) == pytest.approx(float(forward[1]), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_who_is_nearest(seed, direction):
    """Gradients vanish at the causal plan (reverse) and at the posterior's policy (forward), and elsewhere not."""
    mdp = random_mdp(seed, discount=0.9, reward_on_successor=True)
    best = exact.plan(mdp, "causal" if direction == "reverse" else "posterior")
    other = exact.plan(mdp, "posterior" if direction == "reverse" else "causal")

    def slope(table):
        logits = table.log().clone().requires_grad_()
        value = exact.trajectory_kl(mdp, logits.softmax(-1), direction)
        return value, torch.autograd.grad(value, logits)[0].abs().max()

    least, flat = slope(best.policy)
    more, steep = slope(other.policy)
    assert float(flat) < 1e-12
    assert float(steep) > 1e-3
    assert float(least) < float(more)
    if direction == "reverse":
        gap = exact.log_evidence(mdp) - exact.optimal_elbo(mdp)
        assert float(least) == pytest.approx(float(gap), abs=1e-12)


@pytest.mark.parametrize("horizon", [3, None])
def test_causal_target(horizon):
    """Against what the causal plan does the reverse divergence is the policy gap, and both can be 0."""
    mdp = random_mdp(1, discount=0.8, horizon=horizon, temperature=4.0)
    best = exact.plan(mdp)
    policy = random_mdp(2, horizon=horizon).action_prior
    gap = exact.optimal_elbo(mdp) - exact.elbo(mdp, policy)
    assert float(exact.trajectory_kl(mdp, policy, "reverse", "causal")) == pytest.approx(float(gap), abs=1e-12)
    for direction in ("reverse", "forward"):
        assert float(exact.trajectory_kl(mdp, best, direction, "causal")) == pytest.approx(0, abs=1e-12)
    # By hand: each visited state's own divergence, discounted.
    state = mdp.initial_probabilities
    local = torch.zeros((), dtype=torch.float64)
    for t in range(3 if horizon else 400):
        chosen = best.policy[t] if horizon else best.policy
        local = local + 0.8**t * (state[:, None] * chosen * (chosen / policy).log()).sum()
        state = torch.einsum("s,sa,san->n", state, chosen, mdp.kernel.probabilities)
    assert float(exact.trajectory_kl(mdp, policy, "forward", "causal")) == pytest.approx(float(local), abs=1e-9)


def joint_gaussian(mdp, plan, bent):
    """Mean and covariance of (s_0, a_0, …, s_T) under a linear-Gaussian policy, by dense algebra."""
    ds, da, horizon = mdp.state_size, mdp.action_size, mdp.horizon
    size = ds + horizon * (ds + da)
    mean, factor = torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    mean[:ds], factor[:ds, :ds] = mdp.initial_mean, mdp.initial_scale_tril
    for t in range(horizon):
        s, a, n = t * (ds + da), t * (ds + da) + ds, (t + 1) * (ds + da)
        mean[a:n] = plan.gain[t] @ mean[s:a] + plan.offset[t]
        factor[a:n] = plan.gain[t] @ factor[s:a]
        factor[a:n, a:n] += plan.scale_tril[t]
        mean[n : n + ds] = mdp.A @ mean[s:a] + mdp.B @ mean[a:n] + mdp.drift
        factor[n : n + ds] = mdp.A @ factor[s:a] + mdp.B @ factor[a:n]
        factor[n : n + ds, n : n + ds] += mdp.noise_scale_tril
    covariance = factor @ factor.T
    if bent:  # by e^{R/α}, a Gaussian factor on states and actions
        precision = torch.linalg.inv(covariance)
        tilt = torch.zeros_like(precision)
        for t in range(horizon):
            s, a, n = t * (ds + da), t * (ds + da) + ds, (t + 1) * (ds + da)
            tilt[s:a, s:a], tilt[a:n, a:n] = mdp.state_cost / mdp.temperature, mdp.action_cost / mdp.temperature
        covariance = torch.linalg.inv(precision + tilt)
        mean = covariance @ precision @ mean
    return torch.distributions.MultivariateNormal(mean, covariance)


def test_linear_gaussian_against_dense_algebra():
    mdp = rlai.models.double_integrator(horizon=4, noise=0.5, dtype=torch.float64)
    prior = exact.evaluate(mdp, None)
    target = joint_gaussian(mdp, prior, bent=True)
    for policy in (exact.plan(mdp), exact.plan(mdp, "posterior"), prior):
        guide = joint_gaussian(mdp, policy, bent=False)
        for direction, wanted in (
            ("reverse", torch.distributions.kl_divergence(guide, target)),
            ("forward", torch.distributions.kl_divergence(target, guide)),
        ):
            assert float(exact.trajectory_kl(mdp, policy, direction)) == pytest.approx(float(wanted), rel=1e-8)
    causal = joint_gaussian(mdp, exact.plan(mdp), bent=False)
    wanted = torch.distributions.kl_divergence(causal, joint_gaussian(mdp, prior, bent=False))
    assert float(exact.trajectory_kl(mdp, None, "forward", "causal")) == pytest.approx(float(wanted), rel=1e-8)


@pytest.mark.parametrize("method", ["posterior", "sample"])
@pytest.mark.parametrize("direction", ["reverse", "forward"])
@pytest.mark.parametrize("kind", ["tabular", "table", "linear-Gaussian"])
def test_estimates(kind, direction, method):
    """40,000 draws; |z| < 4, seed 0. The policies are near enough for the weights to have short tails."""
    torch.manual_seed(0)
    if kind == "linear-Gaussian":
        mdp = rlai.models.double_integrator(horizon=3, noise=0.3, temperature=4.0, dtype=torch.float64)
        policy = exact.plan(mdp)
    else:
        mdp = random_mdp(3, horizon=5, discount=0.9, terminal=True)
        policy = exact.plan(mdp.at_temperature(1.5)) if kind == "tabular" else mdp.action_prior
    wanted = float(exact.trajectory_kl(mdp, policy, direction))
    found = rlai.trajectory_kl(mdp, policy, direction=direction, method=method, num_trajectories=40_000)
    assert wanted > 0.01
    assert 0 < found.standard_error < 0.1 * max(wanted, 0.1)
    assert abs(found.mean - wanted) < 4 * found.standard_error


def test_standard_errors_are_right():
    """The spread of 300 estimates of 1,000 draws is the error they state, within 4 of its own errors; seed 1."""
    torch.manual_seed(1)
    mdp = random_mdp(3, horizon=4, discount=0.9, temperature=8.0)
    for direction in ("reverse", "forward"):
        wanted = float(exact.trajectory_kl(mdp, None, direction))
        found = [
            rlai.trajectory_kl(mdp, None, direction=direction, method="sample", num_trajectories=1000)
            for _ in range(300)
        ]
        means, errors = (torch.tensor(x) for x in zip(*((f.mean, f.standard_error) for f in found), strict=True))
        assert abs(float(means.std() / errors.square().mean().sqrt()) - 1) < 4 / math.sqrt(2 * 300)
        # The bias of order 1/n is far below the error of the mean of 300.
        assert abs(float(means.mean()) - wanted) < 4 * float(means.std()) / math.sqrt(300)


def test_missing_support_is_infinite():
    mdp = random_mdp(0)
    stubborn = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(3, 2)
    assert exact.trajectory_kl(mdp, stubborn, "forward") == math.inf
    assert rlai.trajectory_kl(mdp, stubborn, direction="forward", method="enumeration").mean == math.inf
    assert math.isfinite(float(exact.trajectory_kl(mdp, stubborn)))
    forbidding = TabularMDP(
        mdp.kernel.probabilities,
        mdp.reward_table,
        mdp.initial_probabilities,
        horizon=3,
        action_prior=torch.tensor([1.0, 0.0]),
    )
    free = torch.full((3, 2), 0.5, dtype=torch.float64)
    for method in ("exact", "enumeration"):
        assert rlai.trajectory_kl(forbidding, free, method=method).mean == math.inf
        assert math.isfinite(rlai.trajectory_kl(forbidding, free, direction="forward", method=method).mean)


@pytest.mark.parametrize("method", ["sample", "posterior"])
@pytest.mark.parametrize("kind", ["table", "callable", "program"])
def test_draws_notice_what_the_policy_never_does(kind, method):
    """Forward inf; reverse with the evidence of what it leaves out too: 20,000 draws, seed 0, |z| < 4."""
    if kind == "program" and method == "posterior":
        pytest.skip("exact draws need a process in parts")
    torch.manual_seed(0)
    mdp = random_mdp(0, discount=0.8, terminal=True)
    stubborn = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(3, 2)

    def policy(state, t):
        return dist.Categorical(stubborn[state])

    def program():
        mdp(1)

    process = program if kind == "program" else mdp
    options = {"method": method, "num_trajectories": 20_000}
    given = stubborn if kind == "table" else policy
    assert rlai.trajectory_kl(process, given, direction="forward", **options).mean == math.inf
    found = rlai.trajectory_kl(process, given, **options)
    wanted = float(exact.trajectory_kl(mdp, stubborn))
    assert abs(found.mean - wanted) < 4 * found.standard_error < 0.2
    assert wanted > 0.3  # 0 by the policy's own weights, were they alone asked


def test_a_policy_of_narrower_support_is_noticed():
    """One push, uniform on [-1, 1] by the prior and on [-½, ½] by the policy; r = 0, so KL(π || p) = log 2 is right."""

    def push():
        action = rlai.act("action_0", torch.zeros(1), dist.Uniform(-torch.ones(1), 1.0).to_event(1))
        rlai.reward("reward_0", 0 * action.sum(-1))

    def narrow(state, t):
        return dist.Uniform(torch.full((*state.shape[:-1], 1), -0.5), 0.5).to_event(1)

    torch.manual_seed(0)
    assert rlai.trajectory_kl(push, narrow, direction="forward", num_trajectories=2000).mean == math.inf
    found = rlai.trajectory_kl(push, narrow, num_trajectories=20_000)
    assert abs(found.mean - math.log(2)) < 4 * found.standard_error < 0.1


def test_what_is_too_rare_for_a_float_is_still_reached():
    """p* takes the worse action with probability e^-1000; the policy never does, which is infinite and not NaN."""
    one = torch.ones(1, 2, 1, dtype=torch.float64)
    pay = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    mdp = TabularMDP(one, pay, torch.ones(1, dtype=torch.float64), horizon=1, temperature=1e-3)
    always = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    for method in ("enumeration", "sample"):
        assert rlai.trajectory_kl(mdp, always, direction="forward", method=method).mean == math.inf
    assert rlai.trajectory_kl(mdp, None, method="enumeration").mean == pytest.approx(500 - math.log(2), rel=1e-12)


def test_rare_priors_weigh_as_they_are_given():
    """A prior probability of 1e-9, which torch clamps to 1.2e-7 in float32: log w is -20 + log 2 for half the draws."""

    def rare():
        prior = dist.Categorical(torch.tensor([1 - 1e-9, 1e-9]))
        rlai.act("action_0", torch.zeros(1), prior)

    torch.manual_seed(0)
    found = rlai.trajectory_kl(rare, lambda state, t: dist.Categorical(torch.tensor([0.5, 0.5])))
    wanted = -math.log(2) - math.log(1e-9) / 2
    assert abs(found.mean - wanted) < 4 * found.standard_error


def test_bad_input():
    mdp = random_mdp(0)
    with pytest.raises(ValueError, match="direction must be one of reverse, forward; got 'backward'"):
        rlai.trajectory_kl(mdp, None, direction="backward")
    with pytest.raises(ValueError, match="direction must be one of reverse"):
        exact.trajectory_kl(mdp, None, "sideways")
    with pytest.raises(ValueError, match="dynamics must be"):
        exact.trajectory_kl(mdp, None, dynamics="bent")
    with pytest.raises(ValueError, match="method must be one of exact, enumeration"):
        rlai.trajectory_kl(mdp, None, method="brute")
    with pytest.raises(ValueError, match="num_trajectories must be >= 2"):
        rlai.trajectory_kl(mdp, None, method="sample", num_trajectories=1)
    large = rlai.models.random_mdp(dtype=torch.float64)
    with pytest.raises(ValueError, match=r"has \d.*e\+\d+ trajectories.*method='exact'.*method='sample'"):
        rlai.trajectory_kl(large, None, method="enumeration")
    with pytest.raises(ValueError, match="only finite processes can be enumerated"):
        rlai.trajectory_kl(rlai.models.double_integrator(), None, method="enumeration")
    with pytest.raises(ValueError, match="no exact divergence for PointMass"):
        rlai.trajectory_kl(rlai.models.point_mass(), None, method="exact")
    with pytest.raises(ValueError, match="method='posterior' needs exact posterior draws"):
        rlai.trajectory_kl(rlai.models.point_mass(), None, method="posterior")
    with pytest.raises(ValueError, match="horizon is None"):
        exact.trajectory_kl(random_mdp(0, horizon=None, discount=0.9), None, "forward")


def test_thin_overlap_is_warned_of():
    """A policy far from the target: its own weights cannot tell the forward divergence, and it is said."""
    torch.manual_seed(0)
    mdp = random_mdp(0, horizon=20, temperature=0.1)
    with pytest.warns(UserWarning, match="Pareto"):
        rlai.trajectory_kl(mdp, None, direction="forward", method="sample", num_trajectories=2000)


def test_a_process_without_exact_answers_is_sampled():
    """On the point mass the reverse divergence of the prior is log p(O) - ELBO by two other estimators; |z| < 4."""
    torch.manual_seed(0)
    mdp = rlai.models.point_mass(horizon=4, temperature=2.0, dtype=torch.float64)
    found = rlai.trajectory_kl(mdp, None, num_trajectories=20_000)
    evidence = rlai.estimate_log_evidence(mdp, method="smc", num_draws=4000)
    elbo = rlai.estimate_elbo(mdp, None, 20_000)
    error = math.hypot(found.standard_error, evidence.standard_error, elbo.standard_error)
    assert abs(found.mean - (evidence.mean - elbo.mean)) < 4 * error
