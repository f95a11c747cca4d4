"""Linear-Gaussian processes against dense Gaussian algebra: all variables of a trajectory as one vector."""

import math
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size

from rl_as_inference.exact.linear_gaussian import (
    LinearGaussianPlan,
    evaluate,
    marginals,
    plan,
    posterior_marginals,
    sample_posterior,
)
from rl_as_inference.guides.linear_gaussian import LinearGaussianPolicy
from rl_as_inference.models.double_integrator import double_integrator
from rl_as_inference.processes.linear_gaussian import LinearGaussianMDP
from rl_as_inference.program import follow

F64 = torch.float64


def random_parts(seed, ds=2, da=1, dtype=F64):
    """Tensors of a random process; nothing symmetric beyond what is asked, nothing centred at 0."""
    g = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=g, dtype=F64)

    def covariance(n, scale):
        root = randn(n, n)
        return scale * (root @ root.mT / n + 0.2 * torch.eye(n, dtype=F64))

    root = randn(1, ds)
    parts = {
        "A": 0.8 * randn(ds, ds),
        "B": randn(ds, da),
        "noise_cov": covariance(ds, 0.3),
        "state_cost": root.mT @ root,  # rank one: only semidefinite
        "action_cost": covariance(da, 0.5),
        "initial_mean": randn(ds),
        "initial_cov": covariance(ds, 0.5),
        "action_prior_cov": covariance(da, 1.5),
        "drift": 0.5 * randn(ds),
    }
    return {name: tensor.to(dtype) for name, tensor in parts.items()}


def random_process(seed, ds=2, da=1, horizon=3, temperature=0.7, dtype=F64, **changes):
    return LinearGaussianMDP(
        **{**random_parts(seed, ds, da, dtype), **changes}, horizon=horizon, temperature=temperature
    )


def random_policy(mdp, seed):
    """A linear-Gaussian policy as a plain callable, and its tables."""
    g = torch.Generator().manual_seed(1000 + seed)
    T, da, ds = mdp.horizon, mdp.action_size, mdp.state_size
    gain = 0.5 * torch.randn(T, da, ds, generator=g, dtype=F64)
    offset = torch.randn(T, da, generator=g, dtype=F64)
    root = torch.randn(T, da, da, generator=g, dtype=F64)
    covariance = root @ root.mT + 0.3 * torch.eye(da, dtype=F64)

    def policy(state, t):
        return dist.MultivariateNormal(state @ gain[t].mT + offset[t], covariance[t])

    return policy, (gain, offset, covariance)


class Dense:
    """All of ``x = (s_0, …, s_T, a_0, …, a_{T-1})`` as one Gaussian, under given action rules.

    ``x`` is a linear map of independent causes: initial state, action noises, process noises.
    """

    def __init__(self, mdp, rules=None, initial=None):
        T, ds, da = mdp.horizon, mdp.state_size, mdp.action_size
        self.mdp, self.size = mdp, (T + 1) * ds + T * da
        causes = ds + T * (da + ds)
        if rules is None:
            zero = torch.zeros(T, da, ds, dtype=F64)
            rules = (zero, zero[..., 0], mdp.action_prior_cov.expand(T, da, da))
        gain, offset, action_cov = rules
        initial_cov = torch.zeros_like(mdp.initial_cov) if initial is not None else mdp.initial_cov
        cause_cov = torch.block_diag(initial_cov, *(x for c in action_cov for x in (c, mdp.noise_cov)))
        cause = torch.eye(causes, dtype=F64)
        s_map, s_mean = cause[:ds], mdp.initial_mean if initial is None else initial
        maps, means, a_maps, a_means = [s_map], [s_mean], [], []
        for t in range(T):
            start = ds + t * (da + ds)
            a_map = gain[t] @ s_map + cause[start : start + da]
            a_mean = gain[t] @ s_mean + offset[t]
            s_map = mdp.A @ s_map + mdp.B @ a_map + cause[start + da : start + da + ds]
            s_mean = mdp.A @ s_mean + mdp.B @ a_mean + mdp.drift
            maps.append(s_map)
            means.append(s_mean)
            a_maps.append(a_map)
            a_means.append(a_mean)
        M = torch.cat(maps + a_maps)
        self.mean, self.cov = torch.cat(means + a_means), M @ cause_cov @ M.mT
        costs = [mdp.state_cost] * T + [torch.zeros_like(mdp.state_cost)] + [mdp.action_cost] * T
        self.W = torch.block_diag(*costs) / mdp.temperature
        self.action_cov = action_cov

    def state(self, t):
        return slice(t * self.mdp.state_size, (t + 1) * self.mdp.state_size)

    def action(self, t):
        start = (self.mdp.horizon + 1) * self.mdp.state_size + t * self.mdp.action_size
        return slice(start, start + self.mdp.action_size)

    def log_evidence(self):
        """``log E exp(-x'Wx/2)`` of a Gaussian."""
        system = torch.eye(self.size, dtype=F64) + self.cov @ self.W
        energy = self.mean @ self.W @ torch.linalg.solve(system, self.mean)
        return -(torch.linalg.slogdet(system)[1] + energy) / 2

    def posterior(self):
        """Mean and covariance of ``x`` given optimality."""
        system = torch.eye(self.size, dtype=F64) + self.cov @ self.W
        return torch.linalg.solve(system, self.mean), torch.linalg.solve(system, self.cov)

    def elbo(self):
        """``E[Σ r/α + log p(a) - log π(a|s)]`` from second moments and entropies."""
        second = self.cov + torch.outer(self.mean, self.mean)
        prior, da = self.mdp.action_prior_cov, self.mdp.action_size
        total = -(self.W * second).sum() / 2
        for t, cov in enumerate(self.action_cov):
            aa = second[self.action(t), self.action(t)]
            total = total - (torch.linalg.solve(prior, aa).trace() + torch.logdet(2 * math.pi * prior)) / 2
            total = total + (da * math.log(2 * math.pi * math.e) + torch.logdet(cov)) / 2
        return total

    def action_rule(self, t):
        """Gain, offset and covariance of ``a_t`` given ``s_t`` and optimality."""
        mean, cov = self.posterior()
        s, a = self.state(t), self.action(t)
        gain = torch.linalg.solve(cov[s, s], cov[s, a]).mT
        return gain, mean[a] - gain @ mean[s], cov[a, a] - gain @ cov[s, a]


def stacked(trajectories):
    """Each trajectory as one vector in the order of :class:`Dense`, ``(N, size)``."""
    states, actions = (x.transpose(0, 1).flatten(1) for x in (trajectories.states, trajectories.actions))
    return torch.cat((states, actions), 1)


def tables(messages):
    return messages.gain, messages.offset, messages.covariance


def assert_close(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


systems = {
    "seed": st.integers(0, 10_000),
    "ds": st.integers(1, 3),
    "da": st.integers(1, 2),
    "horizon": st.integers(1, 5),
    "temperature": st.sampled_from([0.2, 1.0, 5.0]),
}
several = settings(max_examples=15, deadline=None, derandomize=True)


@several
@given(**systems)
def test_log_evidence_is_the_dense_determinant(**system):
    mdp = random_process(**system)
    assert_close(plan(mdp, "posterior").objective, Dense(mdp).log_evidence())


@several
@given(**systems)
def test_the_posterior_plan_is_the_dense_conditional(**system):
    mdp = random_process(**system)
    messages, dense = plan(mdp, "posterior"), Dense(mdp)
    for t in range(mdp.horizon):
        gain, offset, covariance = dense.action_rule(t)
        assert_close(messages.gain[t], gain, 1e-7)
        assert_close(messages.offset[t], offset, 1e-7)
        assert_close(messages.covariance[t], covariance, 1e-7)
    means, covs = posterior_marginals(mdp)
    mean, cov = dense.posterior()
    for t in range(mdp.horizon + 1):
        assert_close(means[t], mean[dense.state(t)])
        assert_close(covs[t], cov[dense.state(t), dense.state(t)])


@several
@given(**systems)
def test_evaluate_is_the_dense_elbo_of_any_linear_policy(**system):
    mdp = random_process(**system)
    policy, rules = random_policy(mdp, system["seed"])
    dense, messages = Dense(mdp, rules), evaluate(mdp, policy)
    assert_close(messages.objective, dense.elbo())
    for actual, expected in zip(tables(messages), rules, strict=True):
        assert_close(actual, expected, 1e-12)
    means, covs = marginals(mdp, policy)
    for t in range(mdp.horizon + 1):
        assert_close(means[t], dense.mean[dense.state(t)])
        assert_close(covs[t], dense.cov[dense.state(t), dense.state(t)])


@several
@given(**systems)
def test_the_causal_plan_is_the_best_linear_policy(**system):
    mdp = random_process(**system)
    best = plan(mdp)
    rules = tables(best)
    optimum = Dense(mdp, rules).elbo()
    assert_close(best.objective, optimum)
    assert_close(evaluate(mdp, best).objective, optimum)
    assert best.objective <= plan(mdp, "posterior").objective + 1e-12

    leaves = [x.detach().clone().requires_grad_() for x in (best.gain, best.offset, best.scale_tril)]
    same = replace(best, gain=leaves[0], offset=leaves[1], scale_tril=leaves[2].tril())
    evaluate(mdp, same).objective.backward()
    for leaf in leaves:
        assert leaf.grad.abs().max() <= 1e-8 * (1 + abs(float(optimum)))

    g = torch.Generator().manual_seed(system["seed"])
    for which in range(3):
        for size in (1e-3, 1e-1):
            changed = list(rules)
            push = size * torch.randn(rules[which].shape, generator=g, dtype=F64)
            if which == 2:  # a covariance stays one: scaled by a matrix near the identity
                change = torch.eye(mdp.action_size, dtype=F64) + push
                changed[2] = change @ rules[2] @ change.mT
            else:
                changed[which] = rules[which] + push
            assert Dense(mdp, changed).elbo() < optimum


@pytest.mark.parametrize("dynamics", ["causal", "posterior"])
def test_soft_values_are_those_of_a_start_in_the_state(dynamics):
    mdp = random_process(3, ds=2, da=2, horizon=4)
    messages = plan(mdp, dynamics)
    states = torch.tensor([[0.0, 0.0], [1.0, -2.0], [0.3, 5.0]], dtype=F64)
    values = messages.soft_v(states, 0)
    for state, value in zip(states, values, strict=True):
        if dynamics == "causal":
            expected = Dense(mdp, tables(messages), initial=state).elbo()
        else:
            expected = Dense(mdp, initial=state).log_evidence()
        assert_close(value, mdp.temperature * expected)
    assert (messages.soft_v(states, mdp.horizon) == 0).all()
    later = random_process(3, ds=2, da=2, horizon=1)
    assert_close(messages.soft_v(states, 3), plan(later, dynamics).soft_v(states, 0))


def test_the_dynamics_gap_closes_as_the_noise_vanishes():
    gaps = []
    parts = random_parts(5)
    for size in (1.0, 1e-2, 1e-4, 1e-6):
        small = {**parts, "noise_cov": size * parts["noise_cov"], "initial_cov": size * parts["initial_cov"]}
        mdp = LinearGaussianMDP(**small, horizon=4, temperature=0.5)
        gaps.append(float(plan(mdp, "posterior").objective - plan(mdp).objective))
    assert all(gap > 0 for gap in gaps[:3])
    assert gaps[0] > gaps[1] > gaps[2]
    assert abs(gaps[3]) < 1e-4 * gaps[0]


@pytest.mark.parametrize("dynamics", ["causal", "posterior"])
def test_posterior_draws_have_the_dense_moments(dynamics):
    """20,000 draws, seed 0: every mean and covariance of states and actions within 4.5 standard errors."""
    mdp = random_process(7, ds=2, da=1, horizon=3)
    pyro.set_rng_seed(0)
    n = 20_000
    draws = sample_posterior(mdp, n, dynamics)
    messages = plan(mdp, dynamics)
    if dynamics == "posterior":
        mean, cov = Dense(mdp).posterior()
    else:
        dense = Dense(mdp, tables(messages))
        mean, cov = dense.mean, dense.cov
    x = stacked(draws) - mean
    variance = cov.diagonal()
    assert (x.mean(0) / (variance / n).sqrt()).abs().max() < 4.5
    errors = (torch.outer(variance, variance) + cov**2) / n
    assert ((x.mT @ x / n - cov) / errors.sqrt()).abs().max() < 4.5

    assert draws.mask.all()
    assert_close(draws.log_factors, draws.rewards / mdp.temperature)
    for t in range(mdp.horizon):
        state, action = draws.states[t], draws.actions[t]
        prior = torch.distributions.MultivariateNormal(torch.zeros(1, dtype=F64), mdp.action_prior_cov)
        loc = state @ messages.gain[t].mT + messages.offset[t]
        own = torch.distributions.MultivariateNormal(loc, messages.covariance[t])
        assert_close(draws.log_prior[t], prior.log_prob(action))
        assert_close(draws.log_policy[t], own.log_prob(action))
        cost = torch.einsum("ni,ij,nj->n", state, mdp.state_cost, state)
        cost = cost + torch.einsum("ni,ij,nj->n", action, mdp.action_cost, action)
        assert_close(draws.rewards[t], -cost / 2)


def test_posterior_draws_repeat_with_the_seed():
    mdp = random_process(1)
    first, second = [], []
    for kept in (first, second):
        pyro.set_rng_seed(3)
        kept.append(sample_posterior(mdp, 5).states)
    assert torch.equal(first[0], second[0])


@pytest.mark.parametrize("which", ["optimal", "random", "prior"])
def test_rollouts_estimate_the_exact_elbo(which):
    """4,096 trajectories, seed 1: within 4 standard errors."""
    mdp = random_process(11, ds=3, da=2, horizon=6, temperature=2.0)
    policy = {"optimal": plan(mdp), "random": random_policy(mdp, 11)[0], "prior": None}[which]
    pyro.set_rng_seed(1)
    weight = mdp.rollout(policy, 4096).log_weight()
    error = weight.std() / math.sqrt(len(weight))
    assert abs(weight.mean() - evaluate(mdp, policy).objective) < 4 * error


@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-10), (torch.float32, 1e-5)])
def test_rollout_log_weights_are_the_programs_log_densities(dtype, tolerance):
    mdp = random_process(2, ds=2, da=2, horizon=4, dtype=dtype)
    policy = plan(mdp)
    pyro.set_rng_seed(0)
    draws = mdp.rollout(policy, 16)
    assert draws.states.dtype == draws.log_policy.dtype == dtype

    def log_density(program):
        trace = poutine.trace(poutine.condition(program, data=draws.sites())).get_trace(16)
        trace.compute_log_prob()
        return sum(site["log_prob"] for site in trace.nodes.values() if "log_prob" in site)

    weight = log_density(mdp) - log_density(follow(mdp, policy))
    scale = log_density(mdp).abs().max()
    assert (weight - draws.log_weight()).abs().max() < tolerance * scale


def test_one_question_for_all_steps_is_each_step_s_answer():
    mdp = random_process(4, ds=2, da=2, horizon=3)
    states = torch.randn(3, 5, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    module = LinearGaussianPolicy(2, 2, 3, dtype=F64)
    for policy in (plan(mdp), module):
        steps = torch.arange(3)[:, None]
        for times in (steps.expand(3, 5), steps.expand(3, 5).contiguous(), steps):
            asked_once = policy(states, times)
            assert asked_once.batch_shape == (3, 5)
            for t in range(3):
                assert_close(asked_once.mean[t], policy(states[t], t).mean, 1e-12)
                assert_close(asked_once.scale_tril[t], policy(states[t], t).scale_tril, 1e-12)
    values = plan(mdp).soft_v(states, torch.arange(3)[:, None].expand(3, 5))
    assert_close(values[2], plan(mdp).soft_v(states[2], 2), 1e-12)


NAMES = (
    "A",
    "B",
    "noise_cov",
    "state_cost",
    "action_cost",
    "initial_mean",
    "initial_cov",
    "action_prior_cov",
)


@pytest.mark.parametrize("reading", ["causal", "posterior", "evaluate", "marginals"])
def test_readings_are_differentiable_in_the_processs_tensors(reading):
    parts = random_parts(6)
    policy, _ = random_policy(random_process(6), 6)

    def run(temperature, drift, *tensors):
        values = dict(zip(NAMES, tensors, strict=True))
        for name in ("noise_cov", "state_cost", "action_cost", "initial_cov", "action_prior_cov"):
            values[name] = (values[name] + values[name].mT) / 2
        mdp = LinearGaussianMDP(**values, drift=drift, horizon=2, temperature=temperature)
        if reading == "marginals":
            return marginals(mdp, plan(mdp))
        if reading == "evaluate":
            return evaluate(mdp, policy).objective
        messages = plan(mdp, reading)
        return messages.objective, messages.gain, messages.covariance, messages.value_constant

    parts["state_cost"] = parts["state_cost"] + 0.1 * torch.eye(2, dtype=F64)
    temperature = torch.tensor(0.8, dtype=F64)
    inputs = [x.clone().requires_grad_() for x in (temperature, parts["drift"], *(parts[n] for n in NAMES))]
    assert torch.autograd.gradcheck(run, inputs)


def test_a_process_of_tensors_being_learned_follows_their_updates():
    """The factors of a covariance that requires gradients are neither stale nor used up."""
    parts = random_parts(8)
    noise_cov = parts["noise_cov"].clone().requires_grad_()
    mdp = LinearGaussianMDP(**{**parts, "noise_cov": noise_cov}, horizon=2)
    optimizer = torch.optim.SGD([noise_cov], lr=1e-2)
    values = []
    for _ in range(3):
        optimizer.zero_grad()
        pyro.set_rng_seed(0)
        loss = -plan(mdp, "posterior").objective - mdp.rollout(None, 8, pathwise=True).log_weight().mean()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[0] > values[1] > values[2]


def test_evaluate_is_differentiable_in_the_policys_parameters():
    mdp = random_process(9, ds=2, da=2, horizon=3)
    best = plan(mdp)
    policy = LinearGaussianPolicy(2, 2, 3, initial_scale=0.7, dtype=F64)
    with torch.no_grad():
        policy.gain.copy_(best.gain)
        policy.offset.copy_(best.offset)
        policy.log_diagonal.copy_(best.scale_tril.diagonal(dim1=-2, dim2=-1).log())
        policy.below_diagonal.copy_(best.scale_tril)
    objective = evaluate(mdp, policy).objective
    assert_close(objective.detach(), best.objective)
    objective.backward()
    for parameter in policy.parameters():
        assert parameter.grad.abs().max() < 1e-8


def test_training_the_family_by_its_exact_elbo_reaches_the_optimum():
    mdp = random_process(10, ds=1, da=1, horizon=3)
    policy = LinearGaussianPolicy(1, 1, 3, dtype=F64)
    assert_close(policy(torch.zeros(2, 1, dtype=F64), 0).covariance_matrix, torch.ones(2, 1, 1, dtype=F64))
    optimizer = torch.optim.LBFGS(policy.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = -evaluate(mdp, policy).objective
        loss.backward()
        return loss

    optimizer.step(closure)
    gap = plan(mdp).objective - evaluate(mdp, policy).objective
    assert 0 <= gap < 1e-6


def test_policies_of_every_linear_kind_are_understood():
    mdp = random_process(12, ds=2, da=2, horizon=3)
    gain = torch.tensor([[0.5, -0.2], [0.1, 0.3]], dtype=F64)
    scale = torch.tensor([0.5, 2.0], dtype=F64)

    def normal(state, t):
        return dist.Normal(state @ gain.mT + t, scale)

    def independent(state, t):
        return normal(state, t).to_event(1)

    def multivariate(state, t):
        return dist.MultivariateNormal(state @ gain.mT + t, scale.square().diag())

    def constant(state, t):
        return dist.Normal(torch.ones(2, dtype=F64), scale).to_event(1)

    rules = (gain.expand(3, 2, 2), torch.arange(3.0, dtype=F64)[:, None].expand(3, 2))
    expected = Dense(mdp, (*rules, scale.square().diag().expand(3, 2, 2))).elbo()
    for policy in (normal, independent, multivariate):
        assert_close(evaluate(mdp, policy).objective, expected)
    assert (evaluate(mdp, constant).gain == 0).all()
    assert_close(evaluate(mdp, None).objective, Dense(mdp).elbo())
    stationary = LinearGaussianPolicy(2, 2, dtype=F64)
    assert_close(stationary(torch.ones(2, dtype=F64), 0).mean, stationary(torch.ones(2, dtype=F64), 99).mean)
    assert torch.isfinite(evaluate(mdp, stationary).objective)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (lambda s, t: dist.Normal(s[..., :1].tanh(), 1.0).to_event(1), "at step 0 its mean is .* off a line"),
        (
            lambda s, t: dist.Normal(s[..., :1], s[..., 1:].exp()).to_event(1),
            "its covariance depends on the state",
        ),
        (lambda s, t: dist.Categorical(logits=s), "answers with a Categorical"),
        (lambda s, t: dist.Normal(s, 1.0).to_event(1), r"should have shape \(5, 1\), and has \(5, 2\)"),
        (3, "must be a LinearGaussianPlan, a callable"),
    ],
)
def test_other_policies_are_refused(policy, message):
    with pytest.raises(ValueError, match=message):
        evaluate(random_process(0), policy)


def test_wrong_questions_are_refused():
    mdp = random_process(0)
    with pytest.raises(ValueError, match="belongs to another process"):
        evaluate(mdp, plan(random_process(0, horizon=5)))
    for ask in (plan, posterior_marginals):
        with pytest.raises(ValueError, match="dynamics must be 'causal' or 'posterior', got 'best'"):
            ask(mdp, "best")
    with pytest.raises(ValueError, match="num_draws must be >= 1, got 0"):
        sample_posterior(mdp, 0)
    for policy in (plan(mdp), LinearGaussianPolicy(2, 1, 3, dtype=F64)):
        for t in (-1, 3):
            with pytest.raises(ValueError, match=rf"t must be in 0 … 2, got {t}"):
                policy(torch.zeros(2, dtype=F64), t)


def not_symmetric():
    return torch.tensor([[1.0, 0.5], [0.2, 1.0]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"A": torch.ones(2, 3)}, r"A must be square, \(ds, ds\) with ds >= 1, got shape \(2, 3\)"),
        ({"A": torch.ones(0, 0)}, "A must be square"),
        ({"B": torch.ones(3, 1)}, r"B must have shape \(ds, da\) with ds = 2.* got \(3, 1\)"),
        ({"B": torch.ones(2)}, "B must have shape"),
        ({"noise_cov": torch.ones(2)}, r"noise_cov must have shape \(2, 2\), since A .* got \(2,\)"),
        ({"action_cost": torch.eye(2)}, r"action_cost must have shape \(1, 1\)"),
        ({"initial_mean": torch.ones(3)}, r"initial_mean must have shape \(2,\)"),
        ({"drift": torch.ones(1)}, r"drift must have shape \(2,\)"),
        (
            {"A": torch.tensor([[1.0, math.nan], [0.0, 1.0]])},
            r"A must be finite; it is nan at index \(0, 1\)",
        ),
        ({"state_cost": torch.full((2, 2), math.inf)}, "state_cost must be finite"),
        (
            {"noise_cov": not_symmetric()},
            r"noise_cov must be symmetric; .* use \(noise_cov \+ noise_cov.mT\) / 2",
        ),
        (
            {"state_cost": not_symmetric()},
            r"state_cost must be symmetric; entries \(0, 1\) and \(1, 0\) differ by 0.3",
        ),
        ({"noise_cov": torch.zeros(2, 2)}, r"noise_cov must be positive definite.* add a small jitter"),
        ({"initial_cov": -torch.eye(2)}, r"initial_cov must be positive definite.*eigenvalue is -1;"),
        ({"action_prior_cov": torch.zeros(1, 1)}, "action_prior_cov must be positive definite"),
        ({"state_cost": -torch.eye(2)}, "state_cost must be positive semidefinite.* check its sign"),
        ({"action_cost": -torch.eye(1)}, "action_cost must be positive semidefinite"),
        ({"horizon": None}, "horizon must be an integer >= 1, got None; give the number of steps"),
        ({"horizon": 0}, "horizon must be an integer >= 1, got 0"),
        ({"horizon": 2.0}, "horizon must be an integer >= 1, got 2.0"),
        ({"temperature": 0.0}, "temperature must be a finite number > 0"),
        ({"temperature": torch.ones(2)}, "temperature must be a finite number > 0"),
    ],
)
def test_bad_parts_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        LinearGaussianMDP(**{**random_parts(0, dtype=torch.float32), "horizon": 3, **changes})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1), "state_size must be an integer >= 1, got 0"),
        ((1, 2.0), "action_size must be an integer, got 2.0"),
        ((1, 1, 0), "horizon must be an integer >= 1, or None for no horizon, got 0"),
        ((1, 1, 3, -1.0), "initial_scale must be a finite number > 0, got -1.0"),
    ],
)
def test_bad_sizes_of_a_policy_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        LinearGaussianPolicy(*arguments)


def test_parts_may_be_lists_and_arrays_and_take_the_widest_type():
    parts = random_parts(0)
    mixed = {**parts, "A": parts["A"].float(), "B": parts["B"].numpy(), "drift": [0, 1]}
    mixed["initial_mean"] = np.array([1, 2])
    mdp = LinearGaussianMDP(**mixed, horizon=2)
    assert {x.dtype for x in (mdp.A, mdp.B, mdp.drift, mdp.initial_mean)} == {F64}
    assert mdp.rollout(None, 3).rewards.dtype == F64
    assert mdp.state_space.shape == (2,)
    assert mdp.action_space.shape == (1,)
    assert mdp.uniform_log_density is None
    assert LinearGaussianMDP(*[[[1]]] * 5, [0], [[1]], [[1]], horizon=1).A.dtype == torch.float32


def test_float32_answers_are_those_of_float64():
    for seed in range(5):
        answers = []
        for dtype in (torch.float32, F64):
            mdp = random_process(seed, ds=3, da=2, horizon=10, dtype=dtype)
            messages = [plan(mdp), plan(mdp, "posterior"), evaluate(mdp, plan(mdp))]
            assert all(x.gain.dtype == x.objective.dtype == dtype for x in messages)
            answers.append(torch.stack([x.objective for x in messages]).double())
        torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-4)


def test_answers_stay_finite_where_noise_or_temperature_is_tiny():
    for tiny in ({"temperature": 1e-6}, {"noise_cov": 1e-12 * torch.eye(2, dtype=F64)}, {"horizon": 500}):
        mdp = random_process(13, **{"A": 0.9 * torch.eye(2, dtype=F64), **tiny})
        for dynamics in ("causal", "posterior"):
            messages = plan(mdp, dynamics)
            assert messages.objective.isfinite()
            assert (torch.linalg.eigvalsh(messages.value_matrix) >= -1e-9 * messages.value_matrix.abs().max()).all()
            assert (messages.scale_tril.diagonal(dim1=-2, dim2=-1) > 0).all()


@pytest.mark.slow
def test_nuts_on_the_program_finds_the_dense_posterior():
    """200 draws after 100 of warmup, seed 0: means within 4 standard errors of the effective sample size."""
    mdp = random_process(14, ds=1, da=1, horizon=2)
    pyro.set_rng_seed(0)
    with pyro.validation_enabled(False):
        chain = MCMC(
            NUTS(mdp, full_mass=True, jit_compile=True, ignore_jit_warnings=True),
            num_samples=200,
            warmup_steps=100,
            disable_progbar=True,
        )
        chain.run()
    samples = chain.get_samples()
    mean, cov = Dense(mdp).posterior()
    names = [f"state_{t}" for t in range(3)] + [f"action_{t}" for t in range(2)]
    for name, expected, variance in zip(names, mean, cov.diagonal(), strict=True):
        draws = samples[name][:, 0, 0]
        size = effective_sample_size(draws[None], chain_dim=0, sample_dim=1)
        assert abs(draws.mean() - expected) < 4 * (variance / size).sqrt()


def test_the_double_integrator():
    mdp = double_integrator(horizon=6, dtype=F64)
    assert isinstance(mdp, LinearGaussianMDP)
    assert mdp.rollout(None, 4).states.shape == (7, 4, 2)
    assert mdp(4).shape == (4, 2)
    best, evidence = plan(mdp), plan(mdp, "posterior")
    assert isinstance(best, LinearGaussianPlan)
    assert best.objective < evidence.objective
    assert (best.gain[0] < 0).all()  # pushes against position and velocity
    means, _ = marginals(mdp, best)
    assert means[-1, 0] < means[0, 0]
    # Two half steps of the plant without force are one whole step: it is an exact discretisation.
    half = double_integrator(dt=0.125, dtype=F64)
    assert_close(half.A @ half.A, mdp.A)
    assert_close(half.A @ half.noise_cov @ half.A.mT + half.noise_cov, mdp.noise_cov)
    assert_close(half.A @ half.B + half.B, mdp.B)
    for name in ("dt", "noise", "prior_scale"):
        with pytest.raises(ValueError, match=f"{name} must be > 0, got 0"):
            double_integrator(**{name: 0.0})
