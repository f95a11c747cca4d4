"""Exact messages on finite processes against every trajectory written out, in float64."""

import math
from collections import Counter

import brute_force
import gymnasium
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import TAXI, newest, random_mdp, small_mdps

from rl_as_inference import TabularMDP, exact
from rl_as_inference.exact.tabular import log_policy_table
from rl_as_inference.guides import TabularPolicy
from rl_as_inference.processes.kernels import SparseKernel

F64 = torch.float64
several = settings(max_examples=30, deadline=None, derandomize=True)


def close(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(
        torch.as_tensor(actual, dtype=F64), torch.as_tensor(expected, dtype=F64), rtol=tolerance, atol=tolerance
    )


def tables(mdp):
    return {
        "horizon": mdp.horizon,
        "discount": mdp.discount,
        "temperature": mdp.temperature,
        "action_prior": mdp.action_prior,
        "terminal": mdp.terminal,
    }


def as_sparse(mdp):
    """The same process with its tables as sparse tensors."""
    dense = mdp.kernel.probabilities
    reward = mdp.reward_table
    if reward.dim() == 3:
        where = dense.to_sparse().coalesce().indices()
        reward = torch.sparse_coo_tensor(where, reward[tuple(where)], dense.shape, check_invariants=True)
    sparse = TabularMDP(dense.to_sparse(), reward, mdp.initial_probabilities, **tables(mdp))
    assert isinstance(sparse.kernel, SparseKernel)
    return sparse


def starting_in(mdp, state, horizon):
    """The process from a known state, with another horizon."""
    start = torch.nn.functional.one_hot(torch.tensor(state), mdp.num_states).to(F64)
    return TabularMDP(mdp.kernel.probabilities, mdp.reward_table, start, **{**tables(mdp), "horizon": horizon})


def random_table(mdp, seed=0, stationary=False):
    g = torch.Generator().manual_seed(seed)
    shape = (mdp.num_states, mdp.num_actions) if stationary else (mdp.horizon, mdp.num_states, mdp.num_actions)
    table = torch.rand(shape, generator=g, dtype=F64) + 0.05
    return table / table.sum(-1, keepdim=True)


def trajectory_probabilities(mdp, policy=None):
    """Every trajectory with its survival, and its probability: under a table, or given optimality."""
    weights = {}
    for path in brute_force.paths(mdp):
        weight = path.dynamics
        if policy is None:
            weight *= path.prior * math.exp(path.return_ / mdp.temperature)
        else:
            for t, (s, a) in enumerate(zip(path.states, path.actions, strict=False)):
                weight *= float(policy[t, s, a])
        if weight > 0:
            key = (path.states, path.actions)
            weights[key] = weights.get(key, 0.0) + weight
    total = sum(weights.values())
    return {key: weight / total for key, weight in weights.items()}


def marginals(mdp, policy):
    """State marginals under a table, an ended trajectory staying in its last state, ``(T+1, S)``."""
    out = torch.zeros(mdp.horizon + 1, mdp.num_states, dtype=F64)
    for (states, _), probability in trajectory_probabilities(mdp, policy).items():
        for t, s in enumerate(states + (states[-1],) * (mdp.horizon + 1 - len(states))):
            out[t, s] += probability
    return out


both_kinds = pytest.mark.parametrize("kind", ["dense", "sparse"])


def of_kind(mdp, kind):
    return as_sparse(mdp) if kind == "sparse" else mdp


# Finite horizons against brute force.


@both_kinds
@several
@given(mdp=small_mdps)
def test_log_evidence_is_the_sum_over_trajectories(kind, mdp):
    close(exact.log_evidence(of_kind(mdp, kind)), brute_force.log_evidence(mdp))


@both_kinds
@several
@given(mdp=small_mdps)
def test_the_causal_plan_is_the_maximum_over_policies(kind, mdp):
    best, policy = brute_force.best_elbo(mdp)
    plan = exact.plan(of_kind(mdp, kind))
    close(plan.objective, best)
    close(exact.optimal_elbo(of_kind(mdp, kind)), best)
    close(plan.policy, policy)
    close(brute_force.elbo(mdp, plan.policy), best)
    assert plan.objective <= exact.log_evidence(mdp) + 1e-12


@both_kinds
@several
@given(mdp=small_mdps, seed=st.integers(0, 1000), stationary=st.booleans())
def test_the_elbo_of_any_table(kind, mdp, seed, stationary):
    table = random_table(mdp, seed, stationary)
    expected = brute_force.elbo(mdp, table.expand(mdp.horizon, -1, -1))
    process = of_kind(mdp, kind)
    close(exact.elbo(process, table), expected)
    rows = (lambda state, t: table[state]) if stationary else (lambda state, t: table[t, state])
    close(exact.elbo(process, lambda state, t: dist.Categorical(rows(state, t))), expected)
    assert exact.elbo(process, table) <= exact.optimal_elbo(process) + 1e-12


@both_kinds
@several
@given(mdp=small_mdps)
def test_the_elbo_of_the_prior_is_the_return_in_nats(kind, mdp):
    expected = brute_force.elbo(mdp, mdp.action_prior.expand(mdp.horizon, -1, -1))
    for policy in (None, mdp.action_prior):
        close(exact.elbo(of_kind(mdp, kind), policy), expected)


@both_kinds
@several
@given(mdp=small_mdps, seed=st.integers(0, 1000))
def test_occupancy_is_the_states_marginal(kind, mdp, seed):
    table = random_table(mdp, seed)
    close(exact.occupancy(of_kind(mdp, kind), table), marginals(mdp.replace(discount=1.0), table))


@both_kinds
@several
@given(mdp=small_mdps)
def test_posterior_occupancy_is_the_smoothed_marginal(kind, mdp):
    process = of_kind(mdp, kind)
    close(exact.posterior_occupancy(process), brute_force.posterior_marginals(mdp))
    _, best = brute_force.best_elbo(mdp)
    close(exact.posterior_occupancy(process, "causal"), marginals(mdp.replace(discount=1.0), best))


@several
@given(mdp=small_mdps, seed=st.integers(0, 1000))
def test_soft_values_are_the_objectives_of_what_is_left(mdp, seed):
    """``V_t(s)`` is α times the log evidence, best ELBO or ELBO from ``s`` with ``T - t`` steps."""
    table = random_table(mdp, seed)
    posterior, causal, own = exact.plan(mdp, "posterior"), exact.plan(mdp), exact.evaluate(mdp, table)
    alpha = mdp.temperature
    for plan in (posterior, causal, own):
        assert plan.soft_v.shape == (mdp.horizon + 1, mdp.num_states)
        assert plan.soft_q.shape == plan.policy.shape == (mdp.horizon, mdp.num_states, mdp.num_actions)
        assert (plan.soft_v[-1] == 0).all()
        assert (plan.soft_v[:, mdp.terminal] == 0).all()
        assert (plan.soft_q[:, mdp.terminal] == 0).all()
    for t in range(mdp.horizon):
        for s in range(mdp.num_states):
            rest = starting_in(mdp, s, mdp.horizon - t)
            close(posterior.soft_v[t, s], alpha * brute_force.log_evidence(rest))
            close(causal.soft_v[t, s], alpha * brute_force.best_elbo(rest)[0])
            close(own.soft_v[t, s], alpha * brute_force.elbo(rest, table[t:]))


@pytest.mark.parametrize("dynamics", ["causal", "posterior"])
@both_kinds
def test_backward_steps_add_up_to_the_plan(kind, dynamics):
    mdp = of_kind(random_mdp(3, terminal=True, reward_on_successor=True), kind)
    plan = exact.plan(mdp, dynamics)
    value = torch.zeros(3, dtype=F64)
    for t in reversed(range(3)):
        value, q = exact.backward_step(mdp, value, dynamics)
        close(value, plan.soft_v[t], 1e-12)
        close(q, plan.soft_q[t], 1e-12)


def test_the_best_policys_own_values_are_the_plans():
    mdp = random_mdp(5, discount=0.9, terminal=True)
    plan = exact.plan(mdp)
    own = exact.evaluate(mdp, plan)
    close(own.soft_v, plan.soft_v, 1e-12)
    close(own.soft_q, plan.soft_q, 1e-12)


def test_a_plan_is_a_policy_one_step_or_all_at_once():
    mdp = random_mdp(5, terminal=True)
    plan = exact.plan(mdp)
    states = torch.tensor([[0, 1, 2], [2, 1, 0], [1, 1, 1]])
    at_once = plan(states, torch.arange(3)[:, None].expand(3, 3))
    close(at_once.probs, torch.stack([plan(states[t], t).probs for t in range(3)]))
    close(plan(states[0], 1).probs, plan.policy[1, states[0]])
    close(log_policy_table(mdp, plan), plan.policy.log())
    close(plan.policy[:, -1], mdp.action_prior[-1].expand(3, -1))  # the last state is terminal


def test_forbidden_actions_stay_forbidden():
    """A probability of 0 in the action prior: no reading takes the action, and all stay finite."""
    base = random_mdp(6)
    prior = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]], dtype=F64)
    mdp = TabularMDP(
        base.kernel.probabilities, base.reward_table, base.initial_probabilities, horizon=3, action_prior=prior
    )
    close(exact.log_evidence(mdp), brute_force.log_evidence(mdp))
    close(exact.optimal_elbo(mdp), brute_force.best_elbo(mdp)[0])
    for dynamics in ("causal", "posterior"):
        assert (exact.plan(mdp, dynamics).policy[:, prior == 0] == 0).all()
        drawn = exact.sample_posterior(mdp, 200, dynamics)
        assert (prior[drawn.states[:-1], drawn.actions] > 0).all()
        assert drawn.log_weight().isfinite().all()
    assert exact.elbo(mdp, torch.full((3, 2), 0.5, dtype=F64)) == -math.inf
    close(exact.elbo(mdp, prior), brute_force.elbo(mdp, prior.expand(3, -1, -1)))


def test_deterministic_tables_have_no_entropy():
    """0 log 0 = 0, in the value and in its gradient."""
    mdp = random_mdp(7, terminal=True)
    table = torch.nn.functional.one_hot(torch.tensor([[0, 1, 0], [1, 1, 0], [0, 0, 1]]), 2).to(F64)
    close(exact.elbo(mdp, table), brute_force.elbo(mdp, table))
    reward = mdp.reward_table.clone().requires_grad_()
    exact.elbo(mdp.replace(reward=reward), table).backward()
    assert reward.grad.isfinite().all()


@both_kinds
def test_a_discount_of_zero_looks_one_step_ahead(kind):
    mdp = of_kind(random_mdp(8, discount=0.0), kind)
    one = of_kind(random_mdp(8, discount=0.0, horizon=1), kind)
    close(exact.log_evidence(mdp), exact.log_evidence(one))
    close(exact.optimal_elbo(mdp), exact.optimal_elbo(one))


# Draws of the posterior.


@pytest.mark.parametrize("dynamics", ["posterior", "causal"])
@pytest.mark.parametrize("discount", [1.0, 0.6, 0.0])
@both_kinds
def test_posterior_draws_have_the_exact_probabilities(kind, discount, dynamics):
    """20,000 draws, seed 0: chi-squared over whole trajectories within 4 standard deviations of its mean."""
    mdp = random_mdp(
        12, horizon=2, discount=discount, temperature=0.6, terminal=True, reward_on_successor=discount == 1.0
    )
    plan = exact.plan(mdp, dynamics)
    expected = trajectory_probabilities(mdp, None if dynamics == "posterior" else plan.policy)
    n = 20_000
    drawn = exact.sample_posterior(of_kind(mdp, kind), n, dynamics)
    lengths = drawn.lengths().tolist()
    seen = Counter(
        (tuple(states[: k + 1]), tuple(actions[:k]))
        for states, actions, k in zip(drawn.states.T.tolist(), drawn.actions.T.tolist(), lengths, strict=True)
    )
    assert set(seen) <= set(expected)
    common = [key for key, p in expected.items() if n * p >= 5]
    rest = n - sum(seen[key] for key in common)
    pairs = [(seen[key], n * expected[key]) for key in common]
    expected_rest = n - sum(e for _, e in pairs)
    if expected_rest > 1:
        pairs.append((rest, expected_rest))
    chi2, degrees = sum((o - e) ** 2 / e for o, e in pairs), len(pairs) - 1
    assert degrees >= 5
    assert abs(chi2 - degrees) < 4 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("dynamics", ["posterior", "causal"])
def test_what_posterior_draws_carry(dynamics):
    mdp = random_mdp(13, discount=0.7, temperature=0.6, terminal=True)
    drawn = exact.sample_posterior(mdp, 500, dynamics)
    plan = exact.plan(mdp, dynamics)
    assert drawn.states.shape == (4, 500)
    assert drawn.discount == 1.0
    states, mask = drawn.states[:-1], drawn.mask
    assert (mask[1:] <= mask[:-1]).all()
    assert not mask[mdp.terminal[states]].any()
    assert 0 < int((~mask).sum()) < mask.numel()
    over = torch.where(mask, drawn.states[1:], states)
    assert torch.equal(drawn.states[1:], over)  # what has ended stays where it is
    time = torch.arange(3)[:, None].expand_as(states)
    for values, table in (
        (drawn.rewards, mdp.reward_table[states, drawn.actions]),
        (drawn.log_prior, mdp.action_prior.log()[states, drawn.actions]),
        (drawn.log_policy, plan.policy.log()[time, states, drawn.actions]),
    ):
        close(values, torch.where(mask, table, 0.0), 1e-12)
    close(drawn.log_factors, drawn.rewards / 0.6, 1e-12)


def test_posterior_draws_weigh_by_the_dynamics_they_bent():
    """Under the exact posterior, ``log p(O)`` is every draw's weight against its own full density."""
    mdp = random_mdp(14, temperature=0.5)
    log_evidence, plan = exact.log_evidence(mdp), exact.plan(mdp, "posterior")
    drawn = exact.sample_posterior(mdp, 50)
    states, actions = drawn.states[:-1], drawn.actions
    values, q = plan.soft_v / 0.5, plan.soft_q / 0.5
    time = torch.arange(3)[:, None].expand_as(states)
    # The bent dynamics' log ratio to the true ones, summed over the trajectory.
    bent = values[0][drawn.states[0]] - log_evidence
    steps = drawn.log_factors + values[time + 1, drawn.states[1:]] - q[time, states, actions]
    close(drawn.log_weight(), log_evidence + bent + steps.sum(0))


@pytest.mark.parametrize("dynamics", ["posterior", "causal"])
def test_draws_without_a_horizon_go_on_until_all_have_ended(dynamics):
    """4,000 draws, seed 0: the mean return within 4 standard errors of the exact occupancy's (causal)."""
    mdp = random_mdp(15, horizon=None, discount=0.8, temperature=20.0, terminal=True)
    drawn = exact.sample_posterior(mdp, 4000, dynamics)
    assert drawn.mask[0].any()
    assert drawn.mask[-1].any()
    ended = ~drawn.mask[-1] | mdp.terminal[drawn.states[-1]]
    assert ended.any()
    if dynamics == "causal":
        plan = exact.plan(mdp)
        visits = exact.occupancy(mdp, plan)
        visits = torch.where(mdp.terminal, 0.0, visits)
        expected = (visits[:, None] * plan.policy * mdp.expected_reward()).sum()
        returns = drawn.returns()
        assert abs(returns.mean() - expected) / (returns.std() / math.sqrt(4000)) < 4


def test_posterior_draws_repeat_with_the_seed():
    mdp = random_mdp(16, discount=0.9)
    drawn = []
    for _ in range(2):
        pyro.set_rng_seed(4)
        drawn.append(exact.sample_posterior(mdp, 20))
    assert torch.equal(drawn[0].states, drawn[1].states)
    assert torch.equal(drawn[0].mask, drawn[1].mask)


# No horizon.


@pytest.mark.parametrize("reward_on_successor", [False, True])
@pytest.mark.parametrize("terminal", [False, True])
@both_kinds
def test_the_fixed_point_is_the_limit_of_long_horizons(kind, terminal, reward_on_successor):
    options = {
        "discount": 0.75,
        "temperature": 20.0,
        "terminal": terminal,
        "reward_on_successor": reward_on_successor,
    }
    mdp = of_kind(random_mdp(20, horizon=None, **options), kind)
    long = of_kind(random_mdp(20, horizon=120, **options), kind)
    table = random_table(mdp, stationary=True)
    for dynamics in ("causal", "posterior"):
        plan, limit = exact.plan(mdp, dynamics), exact.plan(long, dynamics)
        assert plan.soft_v.shape == (3,)
        assert plan.soft_q.shape == plan.policy.shape == (3, 2)
        close(plan.objective, limit.objective)
        close(plan.soft_v, limit.soft_v[0])
        close(plan.soft_q, limit.soft_q[0])
        close(plan.policy, limit.policy[0])
    close(exact.elbo(mdp, table), exact.elbo(long, table))
    close(exact.evaluate(mdp, table).soft_q, exact.evaluate(long, table).soft_q[0])
    assert exact.elbo(mdp, table) < exact.optimal_elbo(mdp) < exact.log_evidence(mdp)


@both_kinds
def test_discounted_visits_are_the_sum_of_occupancies(kind):
    mdp = of_kind(random_mdp(21, horizon=None, discount=0.75), kind)
    long = of_kind(random_mdp(21, horizon=150, discount=0.75), kind)
    table = random_table(mdp, stationary=True)
    weights = 0.75 ** torch.arange(151, dtype=F64)
    close(exact.occupancy(mdp, table), weights @ exact.occupancy(long, table))
    close(exact.occupancy(mdp, table).sum(), 4.0)


def test_visits_of_a_terminal_state_count_on_arrival():
    step = torch.tensor([[[0.5, 0.5]], [[0.0, 1.0]]], dtype=F64)
    mdp = TabularMDP(step, torch.zeros(2, 1), torch.tensor([1.0, 0.0]), terminal=torch.tensor([False, True]))
    close(exact.occupancy(mdp, None), [2.0, 1.0])


@both_kinds
def test_an_undiscounted_process_that_ends_has_a_fixed_point(kind):
    mdp = random_mdp(22, horizon=None, terminal=True)
    mdp = mdp.replace(reward=mdp.reward_table - 4.0)
    long = mdp.replace(horizon=100)
    mdp, long = of_kind(mdp, kind), of_kind(long, kind)
    for dynamics in ("causal", "posterior"):
        close(exact.plan(mdp, dynamics).objective, exact.plan(long, dynamics).objective)


def test_a_chain_with_a_known_fixed_point():
    """From one state, each step costs 1 nat and ends with probability 1/2: E = Σ e^-k 2^-k."""
    step = torch.tensor([[[0.5, 0.5]], [[0.0, 1.0]]], dtype=F64)
    mdp = TabularMDP(
        step, torch.tensor([[-1.0], [0.0]]), torch.tensor([1.0, 0.0]), terminal=torch.tensor([False, True])
    )
    ratio = math.exp(-1) / 2
    close(exact.log_evidence(mdp), math.log(ratio / (1 - ratio)))
    close(exact.optimal_elbo(mdp), -2.0)


def test_the_fixed_point_of_a_discounted_bandit():
    """One state, γ = 1/2: V = log mean e^r + V/2 causally; with survival e^V = m (1/2 + e^V/2)."""
    reward = torch.tensor([[0.1, -0.2, 0.3]], dtype=F64)
    mdp = TabularMDP(torch.ones(1, 3, 1, dtype=F64), reward, torch.ones(1), discount=0.5)
    mean = float(reward.exp().mean())
    close(exact.optimal_elbo(mdp), 2 * math.log(mean))
    close(exact.log_evidence(mdp), math.log(mean / 2 / (1 - mean / 2)))


@pytest.mark.parametrize("reading", [exact.optimal_elbo, exact.log_evidence, lambda mdp: exact.elbo(mdp, None)])
def test_no_fixed_point_without_an_end(reading):
    mdp = random_mdp(23, horizon=None)
    with pytest.raises(ValueError, match=r"no fixed point: the process is undiscounted and has neither horizon nor"):
        reading(mdp)


@pytest.mark.parametrize("reading", [exact.optimal_elbo, exact.log_evidence, lambda mdp: exact.occupancy(mdp, None)])
def test_no_fixed_point_where_the_end_cannot_be_reached(reading):
    move = torch.zeros(3, 1, 3, dtype=F64)
    move[0, 0, 2], move[1, 0, 1], move[2, 0, 2] = 1.0, 1.0, 1.0
    mdp = TabularMDP(
        move, -torch.ones(3, 1), torch.tensor([0.5, 0.5, 0.0]), terminal=torch.tensor([False, False, True])
    )
    with pytest.raises(ValueError, match=r"no fixed point: .* state 1 cannot reach a terminal state"):
        reading(mdp)


@pytest.mark.parametrize("reading", [exact.elbo, exact.evaluate, exact.occupancy])
def test_no_fixed_point_of_a_policy_that_never_ends(reading):
    move = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]], dtype=F64)
    mdp = TabularMDP(move, -torch.ones(2, 2), torch.tensor([1.0, 0.0]), terminal=torch.tensor([False, True]))
    assert exact.optimal_elbo(mdp).isfinite()
    with pytest.raises(ValueError, match="no fixed point"):
        reading(mdp, torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=F64))


@both_kinds
def test_no_fixed_point_where_the_evidence_is_infinite(kind):
    """A loop that earns more than it loses: the causal optimum is finite, the evidence is not."""
    move = torch.tensor([[[0.5, 0.5]], [[0.0, 1.0]]], dtype=F64)
    mdp = TabularMDP(move, torch.tensor([[1.0], [0.0]]), torch.tensor([1.0, 0.0]), terminal=torch.tensor([False, True]))
    close(exact.optimal_elbo(mdp), 2.0)
    with pytest.raises(ValueError, match=r"no fixed point: with no horizon the log evidence .* is infinite"):
        exact.log_evidence(of_kind(mdp, kind))


def test_no_fixed_point_where_the_best_elbo_is_infinite():
    """Undiscounted, a loop pays: staying forever is best."""
    move = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]], dtype=F64)
    mdp = TabularMDP(
        move, torch.tensor([[3.0, 0.0], [0.0, 0.0]]), torch.tensor([1.0, 0.0]), terminal=torch.tensor([False, True])
    )
    with pytest.raises(ValueError, match=r"no fixed point: with no horizon the largest ELBO .* is infinite"):
        exact.optimal_elbo(mdp)


def test_readings_that_need_a_horizon_say_so():
    mdp = random_mdp(24, horizon=None, discount=0.9)
    with pytest.raises(ValueError, match="horizon is None, and posterior_occupancy needs one"):
        exact.posterior_occupancy(mdp)


# Gradients.


def build(logits, reward, initial_logits, prior_logits, *, kind, horizon, discount, temperature, terminal):
    """A process whose tables are functions of free parameters."""
    num_states, num_actions = logits.shape[:2]
    ends = torch.zeros(num_states, dtype=torch.bool)
    ends[-1] = terminal
    options = {
        "horizon": horizon,
        "discount": discount,
        "temperature": temperature,
        "terminal": ends,
        "action_prior": prior_logits.softmax(-1),
    }
    if kind == "dense":
        return TabularMDP(logits.softmax(-1), reward, initial_logits.softmax(-1), **options)
    indices = torch.arange(num_states).expand(num_states, num_actions, num_states)
    return TabularMDP.from_successors(indices, logits.softmax(-1), reward, initial_logits.softmax(-1), **options)


@pytest.mark.parametrize("reading", ["log_evidence", "optimal_elbo", "elbo"])
@pytest.mark.parametrize("reward_on_successor", [False, True])
@pytest.mark.parametrize("horizon", [3, None])
@both_kinds
def test_objectives_are_differentiable_in_the_processs_tensors(kind, horizon, reward_on_successor, reading):
    g = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=g, dtype=F64).requires_grad_()

    shape = (3, 2, 3) if reward_on_successor else (3, 2)
    inputs = [randn(3, 2, 3), randn(*shape), randn(3), randn(3, 2), randn(3, 2)]
    numbers = [torch.tensor(v, dtype=F64, requires_grad=True) for v in (0.7, 8.0)]

    def run(logits, reward, initial, prior, policy, discount, temperature):
        mdp = build(
            logits, reward, initial, prior,
            kind=kind, horizon=horizon, discount=discount, temperature=temperature, terminal=True,
        )  # fmt: skip
        if reading == "elbo":
            return exact.elbo(mdp, policy.softmax(-1))
        return getattr(exact, reading)(mdp)

    assert torch.autograd.gradcheck(run, [*inputs, *numbers], fast_mode=True)


@pytest.mark.parametrize("dynamics", ["causal", "posterior"])
@pytest.mark.parametrize("horizon", [2, None])
@both_kinds
def test_the_slope_in_the_reward_is_the_occupancy(kind, horizon, dynamics):
    """∂ objective / ∂ (r/α) is how often the state and action are visited."""
    mdp = of_kind(random_mdp(30, horizon=horizon, discount=0.8, temperature=5.0), kind)
    reward = mdp.reward_table.clone().requires_grad_()
    plan = exact.plan(mdp.replace(reward=reward), dynamics)
    (slope,) = torch.autograd.grad(plan.objective, reward)
    if dynamics == "causal":
        visits = exact.occupancy(mdp, plan)
        if horizon is not None:
            policy = plan.policy
            expected = sum(0.8**t * visits[t][:, None] * policy[t] for t in range(horizon))
        else:
            expected = visits[:, None] * plan.policy
        close(slope * 5.0, expected)
    elif horizon is not None:
        expected = torch.zeros(3, 2, dtype=F64)
        dense = random_mdp(30, horizon=2, discount=0.8, temperature=5.0)
        for (states, actions), p in trajectory_probabilities(dense).items():
            for s, a in zip(states, actions, strict=False):
                expected[s, a] += p
        close(slope * 5.0, expected)
    else:
        drawn = exact.sample_posterior(mdp, 4000)
        visits = torch.zeros(4000, 6, dtype=F64)
        for t in range(drawn.horizon):
            visits.scatter_add_(1, (2 * drawn.states[t] + drawn.actions[t])[:, None], drawn.mask[t].to(F64)[:, None])
        z = (visits.mean(0) - 5.0 * slope.flatten()) / (visits.std(0) / math.sqrt(4000))
        assert z.abs().max() < 4.5


def test_gradients_stay_finite_where_transitions_are_impossible():
    mdp = random_mdp(31, terminal=True)
    probabilities = mdp.kernel.probabilities.clone().requires_grad_()
    assert (probabilities == 0).any()
    for reading in (exact.log_evidence, exact.optimal_elbo, lambda process: exact.elbo(process, None)):
        process = TabularMDP(probabilities, mdp.reward_table, mdp.initial_probabilities, **tables(mdp))
        (gradient,) = torch.autograd.grad(reading(process), probabilities)
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


# Environments.


def test_the_frozen_lake_of_the_main_job():
    lake = TabularMDP.from_gymnasium("FrozenLake-v1", map_name="8x8", horizon=100, temperature=0.005, dtype=F64)
    goal = 63
    causal, posterior = exact.plan(lake), exact.plan(lake, "posterior")
    assert float(causal.objective) == pytest.approx(51.75, abs=0.005)
    assert float(posterior.objective) == pytest.approx(193.65, abs=0.005)
    assert float(exact.occupancy(lake, causal)[-1, goal]) == pytest.approx(0.54, abs=0.005)
    assert float(exact.occupancy(lake, posterior)[-1, goal]) == pytest.approx(0.006, abs=0.0005)
    assert float(exact.posterior_occupancy(lake)[-1, goal]) == pytest.approx(1.0, abs=1e-6)
    single = TabularMDP.from_gymnasium("FrozenLake-v1", map_name="8x8", horizon=100, temperature=0.005)
    assert single.initial_probabilities.dtype == torch.float32
    close(exact.optimal_elbo(single), causal.objective, 1e-4)
    close(exact.log_evidence(single), posterior.objective, 1e-4)


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("FrozenLake-v1", {"map_name": "4x4"}),
        ("FrozenLake-v1", {"map_name": "8x8", "is_slippery": False}),
        (newest("CliffWalking"), {}),
        (TAXI, {}),
    ],
)
def test_tables_of_environments_are_read_entry_by_entry(env_id, options):
    mdp = TabularMDP.from_gymnasium(env_id, horizon=5, dtype=F64, **options)
    env = gymnasium.make(env_id, **options).unwrapped
    start = np.asarray(env.initial_state_distrib)
    close(mdp.initial_probabilities, start)
    assert mdp.num_states == env.observation_space.n
    assert mdp.num_actions == env.action_space.n
    assert mdp.name == env_id

    # What an episode can visit, found by walking the table.
    visited, frontier = set(), set(np.flatnonzero(start > 0).tolist())
    while frontier:
        visited |= frontier
        frontier = {
            int(s2) for s in frontier for row in env.P[s].values() for p, s2, _, done in row if p > 0 and not done
        } - visited
    arrivals = {int(s2): done for s in visited for row in env.P[s].values() for p, s2, _, done in row if p > 0}
    for state, done in arrivals.items():
        assert bool(mdp.terminal[state]) == done

    everywhere = torch.arange(mdp.num_states)
    for s in visited:
        assert not mdp.terminal[s]
        for a, row in env.P[s].items():
            expected_p, earned = torch.zeros(mdp.num_states, dtype=F64), {}
            for p, s2, r, _ in row:
                expected_p[s2] += p
                if p > 0:
                    earned[s2] = r
            state, action = torch.tensor(s), torch.tensor(a)
            close(mdp.transition(state, action).log_prob(everywhere).exp(), expected_p, 1e-12)
            for s2, r in earned.items():
                assert float(mdp.reward(state, action, torch.tensor(s2))) == r
    for s in np.flatnonzero(mdp.terminal.numpy()):
        state = torch.tensor(int(s))
        for a in range(mdp.num_actions):
            assert float(mdp.transition(state, torch.tensor(a)).log_prob(state)) == pytest.approx(0.0, abs=1e-12)


def test_large_tables_are_held_sparsely_and_say_the_same(monkeypatch):
    dense = TabularMDP.from_gymnasium("FrozenLake-v1", map_name="4x4", horizon=20, temperature=0.1, dtype=F64)
    monkeypatch.setattr("rl_as_inference.processes.tabular._DENSE_LIMIT", 100)
    sparse = TabularMDP.from_gymnasium("FrozenLake-v1", map_name="4x4", horizon=20, temperature=0.1, dtype=F64)
    assert isinstance(sparse.kernel, SparseKernel)
    assert not isinstance(dense.kernel, SparseKernel)
    for dynamics in ("causal", "posterior"):
        close(exact.plan(sparse, dynamics).soft_q, exact.plan(dense, dynamics).soft_q)


def test_grids_know_their_layout():
    lake = TabularMDP.from_gymnasium("FrozenLake-v1", map_name="4x4", horizon=20)
    assert lake.layout.shape == (4, 4)
    assert (lake.layout[0, 0], lake.layout[3, 3]) == ("S", "G")
    assert (lake.layout == "H").sum() == 4
    cliff = TabularMDP.from_gymnasium(newest("CliffWalking"), horizon=20)
    assert cliff.layout.shape == (4, 12)
    assert (cliff.layout[3, 0], cliff.layout[3, 11]) == ("S", "G")


def test_the_best_way_around_the_cliff():
    """13 steps of -1; nothing beats it where nothing is random and the temperature is nearly 0."""
    cliff = TabularMDP.from_gymnasium(newest("CliffWalking"), horizon=30, temperature=1e-3, dtype=F64)
    assert float(1e-3 * exact.optimal_elbo(cliff)) == pytest.approx(-13.0, abs=0.05)


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("NoSuchLake-v1", r"env_id: gymnasium.make\('NoSuchLake-v1'\) failed"),
        ("CartPole-v1", r"env_id: 'CartPole-v1' has no transition table"),
    ],
)
def test_environments_without_a_table(env_id, message):
    with pytest.raises(ValueError, match=message):
        TabularMDP.from_gymnasium(env_id, horizon=5)


# Sparse and dense.


def grid(size, *, on_successor=False, dtype=F64, **options):
    """A slippery grid with walls, as successor lists whose rows repeat states at the walls."""
    rows = torch.arange(size * size) // size
    columns = torch.arange(size * size) % size
    moves = [(0, 1), (1, 0), (0, -1), (-1, 0)]
    neighbours = torch.stack(
        [(rows + i).clamp(0, size - 1) * size + (columns + j).clamp(0, size - 1) for i, j in moves], -1
    )
    stay = torch.arange(size * size)[:, None]
    indices = torch.cat([neighbours, stay], -1)[:, None].expand(-1, 4, -1)
    slip = torch.full((4, 5), 0.05, dtype=dtype)
    slip[torch.arange(4), torch.arange(4)] = 0.7
    slip[:, 4] = 0.15
    probabilities = slip.expand(size * size, 4, 5)
    g = torch.Generator().manual_seed(0)
    worth = torch.randn(size * size, generator=g, dtype=dtype)
    reward = worth[indices] if on_successor else worth[:, None] + torch.tensor([0.0, 0.1, 0.2, 0.3], dtype=dtype)
    terminal = torch.zeros(size * size, dtype=torch.bool)
    terminal[-1] = True
    start = torch.zeros(size * size, dtype=dtype)
    start[: size + 1] = 1 / (size + 1)
    sparse = TabularMDP.from_successors(indices, probabilities, reward, start, terminal=terminal, **options)
    dense_p = torch.zeros(size * size, 4, size * size, dtype=dtype).scatter_add(2, indices, probabilities)
    dense_r = worth.expand(size * size, 4, -1) if on_successor else reward
    return sparse, TabularMDP(dense_p, dense_r, start, terminal=terminal, **options)


@pytest.mark.parametrize("on_successor", [False, True])
@pytest.mark.parametrize(("horizon", "discount"), [(12, 1.0), (12, 0.9), (None, 0.9)])
def test_sparse_and_dense_grids_agree(horizon, discount, on_successor):
    sparse, dense = grid(6, on_successor=on_successor, horizon=horizon, discount=discount, temperature=20.0)
    assert sparse.terminal.any()
    for dynamics in ("causal", "posterior"):
        one, other = exact.plan(sparse, dynamics), exact.plan(dense, dynamics)
        close(one.objective, other.objective)
        close(one.soft_v, other.soft_v)
        close(one.soft_q, other.soft_q)
        close(one.policy, other.policy)
    table = random_table(sparse, stationary=True)
    close(exact.elbo(sparse, table), exact.elbo(dense, table))
    close(exact.occupancy(sparse, table), exact.occupancy(dense, table))
    if horizon is not None:
        for dynamics in ("causal", "posterior"):
            close(exact.posterior_occupancy(sparse, dynamics), exact.posterior_occupancy(dense, dynamics))


def test_sparse_kernels_answer_as_dense_ones():
    sparse, dense = grid(4, on_successor=True, horizon=3)
    values = torch.randn(16, dtype=F64)
    flow = torch.rand(16, 4, dtype=F64)
    close(sparse.kernel.expect(values), dense.kernel.expect(values), 1e-12)
    close(sparse.kernel.log_expect(values), dense.kernel.log_expect(values), 1e-12)
    close(sparse.kernel.push(flow), dense.kernel.push(flow), 1e-12)
    close(sparse.expected_reward(), dense.expected_reward(), 1e-12)
    states, actions = torch.arange(16)[:, None].expand(16, 4), torch.arange(4).expand(16, 4)
    where = torch.arange(16).reshape(16, 1, 1)
    one, other = (mdp.transition(states, actions).log_prob(where) for mdp in (sparse, dense))
    close(one, other, 1e-12)
    drawn = dense.transition(states, actions).sample()
    close(sparse.reward(states, actions, drawn), dense.reward(states, actions, drawn), 1e-12)
    close(sparse.kernel.dense(), dense.kernel.dense(), 1e-12)
    close(sparse.kernel.under(flow), dense.kernel.under(flow), 1e-12)
    for kernel in (sparse.kernel, dense.kernel):
        for rows, asked in zip(kernel.rows(), kernel.successors(states, actions), strict=True):
            assert torch.equal(rows, asked)


def test_a_successor_in_several_slots_counts_once():
    """State 1 stands in two slots of a row, and state 2 in one that carries nothing."""
    probabilities = torch.tensor([0.25, 0.25, 0.5, 0.0], dtype=F64)
    kernel = SparseKernel(torch.tensor([1, 0, 1, 2]).expand(3, 1, 4), probabilities.expand(3, 1, 4))
    close(kernel.dense()[0, 0], [0.25, 0.75, 0.0])
    close(kernel.dense_table(torch.tensor([7.0, 3.0, 7.0, 9.0], dtype=F64).expand(3, 1, 4))[0, 0], [3.0, 7.0, 0.0])
    close(kernel.under(torch.tensor([[2.0], [1.0], [0.0]])), [[0.5, 1.5, 0.0], [0.25, 0.75, 0.0], [0.0, 0.0, 0.0]])


@both_kinds
def test_draws_of_the_next_state_have_the_tables_shares(kind):
    """20,000 draws of each row by both samplers, seed 0, |z| < 4.5; what is impossible is never drawn."""
    mdp = random_mdp(40, terminal=True)
    process = of_kind(mdp, kind)
    n = 20_000
    for s in range(3):
        for a in range(2):
            state, action = torch.full((n,), s), torch.full((n,), a)
            expected = mdp.kernel.probabilities[s, a]
            for drawn in (
                process.kernel.sampler(state * process.num_actions + action, torch.rand(len(state))),
                process.transition(state, action).sample(),
            ):
                shares = torch.bincount(drawn, minlength=3) / n
                assert (shares[expected == 0] == 0).all()
                error = (expected * (1 - expected) / n).sqrt().clamp(min=1e-9)
                assert ((shares - expected) / error).abs().max() < 4.5


@both_kinds
@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 3)])
def test_next_states_have_the_shape_of_states(kind, shape):
    process = of_kind(random_mdp(40, terminal=True), kind)
    state, action = torch.randint(3, shape), torch.randint(2, shape)
    after = process.next_state(state, action)
    assert after.shape == shape
    assert (process.kernel.dense()[state, action].gather(-1, after[..., None]) > 0).all()


@pytest.mark.parametrize("width", [0.0, 1.0, 30.0, 75.0, 85.0, 100.0, 500.0, 1e4])
def test_float32_log_expectations_keep_their_digits_at_any_width(width):
    """The fast path scales by one constant; where that would underflow the slow path must take over."""
    sparse, _ = grid(8, horizon=1, dtype=torch.float32)
    kernel = sparse.kernel
    g = torch.Generator().manual_seed(1)
    values = width * torch.rand(64, generator=g) - 3.0
    values[0], values[1] = -3.0, width - 3.0
    exact_weights = torch.zeros(64, 4, 64, dtype=F64)
    exact_weights.scatter_add_(2, kernel.indices, kernel.probabilities.double())
    expected = torch.logsumexp(exact_weights.log() + values.double(), -1)
    with torch.no_grad():
        fast = kernel.log_expect(values)
    slow = kernel.log_expect(values.clone().requires_grad_())
    for answer in (fast, slow.detach()):
        assert answer.isfinite().all()
        torch.testing.assert_close(answer.double(), expected, rtol=2e-6, atol=2e-5)


def test_one_low_neighbourhood_far_below_the_rest_does_not_underflow():
    """All successors of some rows lie 90 nats below the top: e^-90 is nothing in float32."""
    indices = torch.tensor([[[0, 1]], [[1, 0]], [[2, 2]]])
    probabilities = torch.tensor([[[0.5, 0.5]], [[0.25, 0.75]], [[1.0, 0.0]]])
    mdp = TabularMDP.from_successors(indices, probabilities, torch.zeros(3, 1), torch.ones(3) / 3, horizon=1)
    for drop in (60.0, 78.0, 79.0, 90.0, 110.0):
        with torch.no_grad():
            values = mdp.kernel.log_expect(torch.tensor([-drop, -drop + 1, 0.0]))
        expected = math.log(0.5 + 0.5 * math.e) - drop
        assert float(values[0, 0]) == pytest.approx(expected, rel=1e-6)
        assert float(values[2, 0]) == pytest.approx(0.0, abs=1e-6)


# Bad input.


def good():
    return {
        "transition": torch.tensor([[[0.5, 0.5], [0.0, 1.0]], [[1.0, 0.0], [0.2, 0.8]]], dtype=F64),
        "reward": torch.zeros(2, 2, dtype=F64),
        "initial": torch.tensor([0.5, 0.5], dtype=F64),
        "horizon": 3,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transition": torch.ones(2, 2)}, r"transition must have shape \(S, A, S\) with S, A >= 1, got \(2, 2\)"),
        ({"transition": torch.ones(2, 2, 3) / 3}, r"transition must have shape \(S, A, S\).*got \(2, 2, 3\)"),
        (
            {"transition": torch.tensor([[[0.5, 0.5], [0.0, 1.0]], [[1.0, 0.0], [0.2, 0.7]]])},
            r"transition must have rows that sum to one; row \(1, 1\) sums to 0.9",
        ),
        (
            {"transition": torch.tensor([[[1.5, -0.5], [0.0, 1.0]], [[1.0, 0.0], [0.2, 0.8]]])},
            r"transition must hold probabilities >= 0; it is -0.5 at index \(0, 0, 1\)",
        ),
        (
            {"transition": torch.tensor([[[0.5, math.nan], [0.0, 1.0]], [[1.0, 0.0], [0.2, 0.8]]])},
            r"transition must hold probabilities >= 0; it is nan at index \(0, 0, 1\)",
        ),
        ({"reward": torch.zeros(3, 2)}, r"reward must have shape \(2, 2\) or \(2, 2, 2\), got \(3, 2\)"),
        ({"reward": torch.tensor([[0.0, math.nan], [0.0, 0.0]])}, r"reward must be finite; it is nan at .* \(0, 1\)"),
        ({"reward": torch.tensor([[0.0, 0.0], [-math.inf, 0.0]])}, r"reward must be finite; it is -inf at .* \(1, 0\)"),
        ({"initial": torch.ones(3) / 3}, r"initial must have shape \(2,\), got \(3,\)"),
        ({"initial": torch.tensor([0.5, 0.4])}, r"initial must have rows that sum to one; it sums to 0.9"),
        ({"action_prior": torch.ones(3) / 3}, r"action_prior must have shape \(2,\) or \(2, 2\), got \(3,\)"),
        ({"action_prior": torch.tensor([0.5, 0.6])}, r"action_prior must have rows that sum to one; row \(0,\) sums"),
        ({"terminal": torch.tensor([0, 1])}, r"terminal must be a bool tensor of shape \(2,\), got torch.int64"),
        ({"terminal": [1]}, r"torch.int64 of shape \(1,\); of numbers of states it is torch.isin\(torch.arange\(2\),"),
        ({"transition": torch.full((3, 2, 2), 0.5)}, r"got \(3, 2, 2\); a table \(A, S, S\) becomes one by .*"),
        ({"transition": torch.full((2, 3), 0.5)}, r"must have shape \(S, A, S\) with S, A >= 1, got \(2, 3\)$"),
        ({"terminal": torch.tensor([True])}, r"terminal must be a bool tensor of shape \(2,\)"),
        ({"horizon": 0}, r"horizon must be an integer >= 1, or None for no horizon, got 0"),
        ({"horizon": 2.5}, r"horizon must be an integer >= 1, or None for no horizon, got 2.5"),
        ({"horizon": True}, r"horizon must be an integer >= 1"),
        ({"discount": 1.5}, r"discount must be in \[0, 1\], got 1.5"),
        ({"discount": -0.1}, r"discount must be in \[0, 1\], got -0.1"),
        ({"discount": math.nan}, r"discount must be in \[0, 1\], got nan"),
        ({"temperature": 0.0}, r"temperature must be a finite number > 0 \(reward units per nat\), got 0.0"),
        ({"temperature": -1}, r"temperature must be a finite number > 0"),
        ({"temperature": math.inf}, r"temperature must be a finite number > 0"),
        ({"temperature": math.nan}, r"temperature must be a finite number > 0"),
    ],
)  # fmt: skip
def test_bad_tables_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        TabularMDP(**{**good(), **change})


def test_rewards_of_states_or_actions_are_told_how_they_become_tables():
    """The mend that the message names is taken, and means what it says."""
    transition = torch.tensor([[[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]] * 3)  # to the second state, or to the third
    reward, initial = torch.tensor([1.0, 2.0, 3.0]), torch.ones(3) / 3
    acted, arrived = reward[:, None].expand(3, 2), reward.expand(3, 2, 3)
    for table in (transition, transition.to_sparse()):
        with pytest.raises(
            ValueError,
            match=r"got \(3,\); if a state earns it, give reward\[:, None\].expand\(3, 2\), "
            r"and if arriving there does, reward.expand\(3, 2, 3\)$",
        ):
            TabularMDP(table, reward, initial, horizon=1)
        with pytest.raises(ValueError, match=r"got \(2,\); .* in every state, give reward.expand\(3, 2\)$"):
            TabularMDP(table, reward[:2], initial, horizon=1)
        assert float(exact.expected_return(TabularMDP(table, acted, initial, horizon=1), None)) == pytest.approx(2.0)
        assert float(exact.expected_return(TabularMDP(table, arrived, initial, horizon=1), None)) == pytest.approx(2.5)
    with pytest.raises(ValueError, match=r"if a state earns it, .*; if an action earns it in every state, give"):
        TabularMDP(torch.full((2, 2, 2), 0.5), reward[:2], torch.ones(2) / 2, horizon=1)  # it may be either
    indices, certain = torch.tensor([[[1], [2]]] * 3), torch.ones(3, 2, 1)
    with pytest.raises(ValueError, match=r"and if arriving there does, reward\[indices\]$"):
        TabularMDP.from_successors(indices, certain, reward, initial, horizon=1)
    mdp = TabularMDP.from_successors(indices, certain, reward[indices], initial, horizon=1)
    assert float(exact.expected_return(mdp, None)) == pytest.approx(2.5)


def test_bad_sparse_tables_are_named():
    parts = good()
    empty = parts["transition"].clone()
    empty[1, 0] = 0.0
    with pytest.raises(ValueError, match=r"row \(1, 0\) has no entries"):
        TabularMDP(**{**parts, "transition": empty.to_sparse()})
    sparse = parts["transition"].to_sparse()
    with pytest.raises(ValueError, match=r"reward must have shape \(2, 2\) or \(2, 2, 2\), got \(2, 2, 3\)$"):
        TabularMDP(**{**parts, "transition": sparse, "reward": torch.zeros(2, 2, 3)})
    with pytest.raises(ValueError, match=r"reward must have the shape of transition, \(2, 2, 2\)"):
        TabularMDP(**{**parts, "transition": sparse, "reward": torch.ones(2, 2, 3).to_sparse()})
    indices, probabilities = torch.zeros(2, 1, 1, dtype=torch.long), torch.ones(2, 1, 1)
    rest = (torch.zeros(2, 1), torch.ones(2) / 2)
    with pytest.raises(ValueError, match=r"indices must be states 0 … 1"):
        TabularMDP.from_successors(indices + 2, probabilities, *rest)
    with pytest.raises(ValueError, match=r"indices must be integers of the shape of probabilities, \(2, 1, 1\)"):
        TabularMDP.from_successors(indices.float(), probabilities, *rest)
    with pytest.raises(ValueError, match=r"probabilities must have shape \(S, A, K\), got \(2, 1\)"):
        TabularMDP.from_successors(indices, probabilities[..., 0], *rest)


def test_bad_policies_are_named():
    mdp = random_mdp(50)
    with pytest.raises(ValueError, match=r"a table must have shape \(3, 2\) or \(3, 3, 2\), got \(2, 2\)"):
        exact.elbo(mdp, torch.ones(2, 2))
    with pytest.raises(ValueError, match="a table must hold probabilities >= 0 whose rows sum to one"):
        exact.elbo(mdp, torch.ones(3, 2))
    with pytest.raises(
        ValueError, match=r"policy must be a callable \(state, t\) -> Distribution, a tensor .* or None, got 'greedy'"
    ):
        exact.elbo(mdp, "greedy")
    with pytest.raises(
        ValueError, match="policy gives probabilities to 5 actions for all steps, but the action prior to 2"
    ):
        exact.elbo(mdp, TabularPolicy(3, 5))


def test_bad_questions_are_named():
    mdp = random_mdp(51)
    with pytest.raises(ValueError, match="dynamics must be one of causal, posterior; got 'lucky'"):
        exact.plan(mdp, "lucky")
    with pytest.raises(ValueError, match="num_draws must be >= 1, got 0"):
        exact.sample_posterior(mdp, 0)
    with pytest.raises(ValueError, match=r"got <function .*; if that is a Pyro program: estimate_elbo, fit"):
        exact.optimal_elbo(lambda: None)
    with pytest.raises(ValueError, match="mdp must be a process, got 3"):
        exact.log_evidence(3)
    with pytest.raises(ValueError, match="mdp must be a TabularMDP, got 'lake'"):
        exact.occupancy("lake", None)
    with pytest.raises(ValueError, match=r"cannot replace \['initial'\]"):
        mdp.replace(initial=None)
    with pytest.raises(ValueError, match="temperature must be a finite number > 0"):
        mdp.replace(temperature=0.0)


# Devices.


@both_kinds
def test_exact_answers_live_on_the_processs_device(device, kind):
    mdp = of_kind(random_mdp(60, discount=0.9, terminal=True), kind)
    moved = TabularMDP(
        (mdp.kernel.probabilities if kind == "dense" else as_dense(mdp)).to(device),
        mdp.reward_table.to(device),
        mdp.initial_probabilities.to(device),
        **{**tables(mdp), "action_prior": mdp.action_prior.to(device), "terminal": mdp.terminal.to(device)},
    )
    if kind == "sparse":
        moved = as_sparse(moved)
    table = random_table(mdp)
    for reading in (exact.log_evidence, exact.optimal_elbo, exact.posterior_occupancy):
        answer = reading(moved)
        assert answer.device.type == device.type
        close(answer.cpu(), reading(mdp))
    for reading in (exact.elbo, exact.occupancy):
        answer = reading(moved, table.to(device))
        assert answer.device.type == device.type
        close(answer.cpu(), reading(mdp, table))
    drawn = exact.sample_posterior(moved, 10)
    for tensor in (drawn.states, drawn.actions, drawn.rewards, drawn.mask, drawn.log_prior, drawn.log_policy):
        assert tensor.device.type == device.type
    endless = moved.replace(horizon=None, temperature=20.0)
    assert exact.log_evidence(endless).device.type == device.type


def as_dense(mdp):
    dense = torch.zeros(mdp.num_states, mdp.num_actions, mdp.num_states, dtype=F64)
    return dense.scatter_add(2, mdp.kernel.indices, mdp.kernel.probabilities)


@pytest.mark.parametrize("horizon", [4, None])
def test_the_return_of_a_policy_that_the_prior_forbids(horizon):
    """Its ELBO is -inf, and what it earns does not depend on the prior: to 1e-12."""
    mdp = random_mdp(3, num_actions=3, horizon=horizon, discount=0.9, terminal=True, uniform_prior=True)
    policy = torch.full((3, 3), 1 / 3, dtype=torch.float64)
    forbidden = mdp.replace(action_prior=torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64))
    earned = float(exact.expected_return(mdp, policy))
    assert abs(earned) > 0.1
    assert abs(float(exact.expected_return(forbidden, policy)) - earned) < 1e-12
    mdp.temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(exact.elbo(mdp, policy), mdp.temperature)
    assert abs(float(-(0.7**2) * slope) - earned) < 1e-9
