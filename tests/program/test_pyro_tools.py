"""Pyro's own inference on programs of the language, unchanged, against exact answers."""

import math

import brute_force
import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import random_mdp
from pyro import poutine
from pyro.infer import (
    SVI,
    EmpiricalMarginal,
    Importance,
    Predictive,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    config_enumerate,
    infer_discrete,
)

from rl_as_inference import TabularMDP, act, exact, follow, reward, simulate, steps, survival, terminate
from rl_as_inference.guides import TabularPolicy

F64 = torch.float64
START = torch.tensor([0.7, 0.2, 0.1], dtype=F64)
MOVE = torch.tensor(
    [
        [[0.8, 0.2, 0.0], [0.3, 0.7, 0.0]],
        [[0.6, 0.3, 0.1], [0.1, 0.3, 0.6]],
        [[0.0, 0.5, 0.5], [0.0, 0.2, 0.8]],
    ],
    dtype=F64,
)
PAYOFF = torch.tensor([[0.0, -0.2], [0.1, -0.1], [1.0, 0.6]], dtype=F64)
ENDS = torch.tensor([False, False, True])


def corridor(horizon=3, discount=1.0, rendering="scaled", terminal=False):
    """The first program of the project's description, with an ending on demand."""
    state = pyro.sample("state_0", dist.Categorical(START))
    for t in steps(horizon, discount, rendering, like=START):
        if terminal:
            terminate(ENDS[state])
        action = act(f"action_{t}", state, prior=dist.Categorical(logits=torch.zeros(2, dtype=F64)))
        reward(f"reward_{t}", PAYOFF[state, action], temperature=0.5)
        state = pyro.sample(f"state_{t + 1}", dist.Categorical(MOVE[state, action]))


def corridor_mdp(horizon=3, discount=1.0, terminal=False):
    """The same problem in parts."""
    return TabularMDP(
        MOVE, PAYOFF, START, horizon=horizon, discount=discount, temperature=0.5, terminal=ENDS if terminal else None
    )


def as_sparse(mdp):
    dense = mdp.kernel.probabilities
    reward_table = mdp.reward_table
    if reward_table.dim() == 3:  # on the transition's own support
        where = dense.to_sparse().coalesce().indices()
        reward_table = torch.sparse_coo_tensor(where, reward_table[tuple(where)], dense.shape, check_invariants=True)
    return TabularMDP(
        dense.to_sparse(),
        reward_table,
        mdp.initial_probabilities,
        horizon=mdp.horizon,
        discount=mdp.discount,
        temperature=mdp.temperature,
        action_prior=mdp.action_prior,
        terminal=mdp.terminal,
    )


def random_table(mdp, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(mdp.horizon, mdp.num_states, mdp.num_actions, generator=g, dtype=F64)
    return logits.softmax(-1)


def as_policy(table):
    return lambda state, t: dist.Categorical(logits=table[t, state].log())


def enumerated_elbo(program, guide, nesting=0):
    return -TraceEnum_ELBO(max_plate_nesting=nesting).loss(program, config_enumerate(guide))


def enumerated_log_evidence(program, nesting=0):
    return -TraceEnum_ELBO(max_plate_nesting=nesting).loss(config_enumerate(program), lambda *args, **kwargs: None)


over_discounts_and_endings = pytest.mark.parametrize(
    ("discount", "terminal"), [(1.0, False), (1.0, True), (0.9, False), (0.9, True)]
)


# SVI.


def test_svi_with_trace_elbo_reaches_the_exact_optimum():
    """80 steps of Adam on 200 trajectories, seed 0: from more than 0.3 nats below to within 0.02."""
    mdp = corridor_mdp(2)
    policy = TabularPolicy(3, 2, horizon=2).double()
    policy.logits.data[..., 0] = 2.0  # a bad habit to begin with
    best = exact.optimal_elbo(mdp)
    assert best - exact.elbo(mdp, policy) > 0.3

    def program():
        with pyro.plate("trajectories", 200):
            corridor(2)

    svi = SVI(program, follow(program, policy), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(80):
        svi.step()
    assert 0 <= best - exact.elbo(mdp, policy) < 0.02


@pytest.mark.parametrize("loss", [Trace_ELBO, TraceGraph_ELBO])
def test_pyros_elbos_estimate_the_exact_one(loss):
    """4,000 trajectories, seed 0, |z| < 4 by the spread of 20 batches."""
    mdp = random_mdp(4, discount=0.9, terminal=True)
    table = random_table(mdp)
    guide = follow(mdp, as_policy(table))
    values = torch.tensor([-loss().loss(mdp, guide, 200) / 200 for _ in range(20)])
    z = (values.mean() - exact.elbo(mdp, table)) / (values.std() / math.sqrt(20))
    assert abs(float(z)) < 4


# Enumeration of the guide.


@over_discounts_and_endings
@pytest.mark.parametrize("rendering", ["scaled", "survival"])
def test_trace_enum_is_the_exact_elbo_of_the_corridor(rendering, discount, terminal):
    mdp = corridor_mdp(3, discount, terminal)
    table = random_table(mdp)

    def program():
        corridor(3, discount, rendering, terminal)

    value = enumerated_elbo(program, follow(program, as_policy(table)))
    assert value == pytest.approx(float(exact.elbo(mdp, table)), abs=1e-9)
    assert value == pytest.approx(brute_force.elbo(mdp, table), abs=1e-9)


@over_discounts_and_endings
@pytest.mark.parametrize("rendering", ["scaled", "survival"])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_trace_enum_is_the_exact_elbo_of_a_process(kind, rendering, discount, terminal):
    mdp = random_mdp(1, discount=discount, terminal=terminal, reward_on_successor=True)
    if kind == "sparse":
        mdp = as_sparse(mdp)
    table = random_table(mdp, 1)
    program = survival(mdp) if rendering == "survival" else mdp
    value = enumerated_elbo(program, follow(program, as_policy(table)), nesting=1)
    assert value == pytest.approx(float(exact.elbo(mdp, table)), abs=1e-9)


def test_trace_enum_differentiates_the_exact_elbo():
    mdp = random_mdp(2, discount=0.9, terminal=True)
    logits = torch.randn(3, 3, 2, dtype=F64, requires_grad=True)
    policy = lambda state, t: dist.Categorical(logits=logits[t, state])  # noqa: E731
    guide = config_enumerate(follow(mdp, policy))
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(mdp, guide)
    (gradient,) = torch.autograd.grad(-loss, logits)
    (expected,) = torch.autograd.grad(exact.elbo(mdp, logits.softmax(-1)), logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)


def test_trace_enum_sums_over_actions_of_a_plate_of_trajectories():
    """Actions enumerated, states sampled: 40 batches of 50 trajectories, seed 0, |z| < 4 to the exact ELBO."""
    mdp = corridor_mdp(2)
    table = random_table(mdp)
    guide = follow(mdp, as_policy(table))
    guide = poutine.infer_config(
        guide, lambda site: {"enumerate": "parallel"} if site["name"].startswith("action") else {}
    )
    loss = TraceEnum_ELBO(max_plate_nesting=1)
    values = torch.tensor([-loss.loss(mdp, guide, 50) / 50 for _ in range(40)])
    z = (values.mean() - exact.elbo(mdp, table)) / (values.std() / math.sqrt(40))
    assert abs(float(z)) < 4


def test_trace_enum_of_yes_no_actions_under_an_ending():
    """Actions of another discrete family than Categorical are enumerated too, endings or not."""

    def program(ends):
        total = torch.tensor(0.0, dtype=F64)
        for t in steps(3):
            if ends:
                terminate(total >= 1)
            action = act(f"action_{t}", total, dist.Bernoulli(torch.tensor(0.5, dtype=F64)))
            total = total + action
            reward(f"reward_{t}", action)

    q = 0.3
    policy = lambda state, t: dist.Bernoulli(torch.full_like(state, q))  # noqa: E731
    step = q + q * math.log(0.5 / q) + (1 - q) * math.log(0.5 / (1 - q))
    for ends, reached in ((False, 3.0), (True, 1 + (1 - q) + (1 - q) ** 2)):
        bound = lambda ends=ends: program(ends)  # noqa: E731
        assert enumerated_elbo(bound, follow(bound, policy)) == pytest.approx(reached * step, abs=1e-9)


# Enumeration of the program: evidence and posterior.


@over_discounts_and_endings
def test_enumerating_the_corridor_gives_its_log_evidence(discount, terminal):
    mdp = corridor_mdp(3, discount, terminal)
    value = enumerated_log_evidence(lambda: corridor(3, discount, "survival", terminal))
    assert value == pytest.approx(float(exact.log_evidence(mdp)), abs=1e-9)
    assert value == pytest.approx(brute_force.log_evidence(mdp), abs=1e-9)


@over_discounts_and_endings
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_enumerating_a_process_gives_its_log_evidence(kind, discount, terminal):
    mdp = random_mdp(5, discount=discount, terminal=terminal, reward_on_successor=True)
    if kind == "sparse":
        mdp = as_sparse(mdp)
    assert enumerated_log_evidence(survival(mdp), 1) == pytest.approx(float(exact.log_evidence(mdp)), abs=1e-9)


@over_discounts_and_endings
def test_a_long_markov_program_gives_its_log_evidence(discount, terminal):
    mdp = random_mdp(6, horizon=20, discount=discount, terminal=terminal)
    value = enumerated_log_evidence(lambda: survival(mdp)(1, markov=True), 1)
    assert value == pytest.approx(float(exact.log_evidence(mdp)), abs=1e-9)


def test_a_long_markov_corridor_gives_its_log_evidence():
    def program():
        state = pyro.sample("state_0", dist.Categorical(START))
        for t in steps(20, 0.9, "survival", markov=True, like=START):
            terminate(ENDS[state], absorbing=True)
            action = act(f"action_{t}", state, prior=dist.Categorical(logits=torch.zeros(2, dtype=F64)))
            reward(f"reward_{t}", PAYOFF[state, action], temperature=0.5)
            stay = torch.nn.functional.one_hot(state, 3).to(F64)
            move = torch.where(ENDS[state][..., None], stay, MOVE[state, action])
            state = pyro.sample(f"state_{t + 1}", dist.Categorical(move))

    expected = exact.log_evidence(corridor_mdp(20, 0.9, terminal=True))
    assert enumerated_log_evidence(program) == pytest.approx(float(expected), abs=1e-9)


def test_the_enumerated_log_evidence_is_differentiable():
    payoff = PAYOFF.clone().requires_grad_()
    mdp = TabularMDP(MOVE, payoff, START, horizon=3, discount=0.9, temperature=0.5, terminal=ENDS)
    loss = TraceEnum_ELBO(max_plate_nesting=1)
    value = -loss.differentiable_loss(config_enumerate(survival(mdp)), lambda: None)
    (gradient,) = torch.autograd.grad(value, payoff)
    (expected,) = torch.autograd.grad(exact.log_evidence(mdp), payoff)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)


def z_of_shares(values, expected):
    """z-scores of the shares of ``0 … K-1`` in ``values`` ``(..., N)`` against ``(..., K)``."""
    n = values.shape[-1]
    shares = torch.stack([(values == k).double().mean(-1) for k in range(expected.shape[-1])], -1)
    assert (shares[expected < 1e-12] == 0).all()
    error = (expected * (1 - expected) / n).sqrt().clamp(min=1e-9)
    return torch.where((expected > 1e-12) & (expected < 1 - 1e-12), (shares - expected) / error, 0.0)


def posterior_draws(program, count, nesting=1, **kwargs):
    drawn = infer_discrete(config_enumerate(program), first_available_dim=-1 - nesting, temperature=1)
    trace = poutine.trace(drawn).get_trace(count, **kwargs)
    return {name: trace.nodes[name]["value"] for name in trace.stochastic_nodes if name != "trajectories"}


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_infer_discrete_draws_from_the_exact_posterior(kind, terminal):
    """5,000 draws, seed 0: the marginals of every state and action within 4.5 standard errors."""
    mdp = random_mdp(8, terminal=terminal, temperature=0.4)
    mdp = as_sparse(mdp) if kind == "sparse" else mdp
    drawn = posterior_draws(mdp, 5000)
    states = torch.stack([drawn[f"state_{t}"] for t in range(4)])
    expected = brute_force.posterior_marginals(random_mdp(8, terminal=terminal, temperature=0.4))
    torch.testing.assert_close(exact.posterior_occupancy(mdp), expected, rtol=1e-9, atol=1e-12)
    assert z_of_shares(states, expected).abs().max() < 4.5
    plan = exact.plan(mdp, "posterior")
    for t in range(3):
        for s in range(3):
            chosen = drawn[f"action_{t}"][states[t] == s]
            if len(chosen):
                assert z_of_shares(chosen, plan.policy[t, s]).abs().max() < 4.5


def test_infer_discrete_draws_the_coins_of_survival_too():
    """5,000 draws, seed 0: joint shares of (alive_t, state_t) within 4.5 standard errors of every path written out."""
    mdp = random_mdp(9, discount=0.7, terminal=True, temperature=0.5)
    drawn = posterior_draws(survival(mdp), 5000)
    expected = torch.zeros(3, 3, dtype=F64)  # P(s_t, alive after step t-1 | O)
    for path in brute_force.paths(mdp):
        weight = path.dynamics * path.prior * math.exp(path.return_ / mdp.temperature)
        ended = bool(mdp.terminal[path.states[-1]])
        for t in range(3):
            if t < path.length or (ended and t == path.length):
                expected[t, path.states[t]] += weight
    expected /= math.exp(brute_force.log_evidence(mdp))
    going = torch.ones(5000, dtype=torch.bool)
    for t in range(3):
        if t:
            going = going & (drawn[f"alive_{t}"] == 1) & ~mdp.terminal[drawn[f"state_{t - 1}"]]
        shares = torch.stack([(going & (drawn[f"state_{t}"] == s)).double().mean() for s in range(3)])
        error = (expected[t] * (1 - expected[t]) / 5000).sqrt().clamp(min=1e-9)
        assert ((shares - expected[t]) / error).abs().max() < 4.5


def test_infer_discrete_of_a_long_markov_program():
    """2,000 draws, seed 0, horizon 12: state marginals within 4.5 standard errors."""
    mdp = random_mdp(10, horizon=12, temperature=1.0, terminal=True)
    drawn = posterior_draws(mdp, 2000, markov=True)
    states = torch.stack([drawn[f"state_{t}"] for t in range(13)])
    assert z_of_shares(states, exact.posterior_occupancy(mdp)).abs().max() < 4.5


def test_infer_discrete_at_temperature_zero_finds_the_likeliest_trajectory():
    mdp = random_mdp(11, temperature=0.5)
    program = infer_discrete(config_enumerate(mdp), first_available_dim=-2, temperature=0)
    trace = poutine.trace(program).get_trace(1)
    found = [int(trace.nodes[f"{name}_{t}"]["value"]) for name, n in (("state", 4), ("action", 3)) for t in range(n)]
    best = max(
        brute_force.paths(mdp), key=lambda path: path.dynamics * path.prior * math.exp(path.return_ / mdp.temperature)
    )
    assert found == [*best.states, *best.actions]


# Importance sampling and conditioning.


def z_of_evidence(log_weights, expected):
    weights = torch.stack([torch.as_tensor(w) for w in log_weights]).exp()
    return float((weights.mean() - math.exp(expected)) / (weights.std() / math.sqrt(len(weights))))


@pytest.mark.parametrize(("proposal", "discount"), [("prior", 1.0), ("guide", 0.8)])
def test_importance_sampling_estimates_the_evidence(proposal, discount):
    """250 runs, seed 0: the mean weight within 4 standard errors of the exact evidence."""
    mdp = corridor_mdp(2, discount, terminal=True)

    def program():
        corridor(2, discount, "survival", terminal=True)

    guide = None if proposal == "prior" else follow(program, exact.plan(mdp))
    found = Importance(program, guide, num_samples=250).run()
    expected = float(exact.log_evidence(mdp))
    assert abs(z_of_evidence(found.log_weights, expected)) < 4
    weights = torch.stack(found.log_weights).exp()
    error = float(weights.std() / weights.mean()) / math.sqrt(250)
    assert abs(float(found.get_log_normalizer()) - expected) < 4 * error
    assert 0 < float(found.get_ESS()) <= 250


def test_importance_samples_have_the_posteriors_marginals():
    """250 runs, seed 0: P(state_0 | O) within 4 standard errors of the self-normalised estimate."""
    found = Importance(lambda: corridor(2), num_samples=250).run()
    probabilities = torch.tensor(
        [float(EmpiricalMarginal(found, sites="state_0").log_prob(torch.tensor(s)).exp()) for s in range(3)]
    )
    expected = exact.posterior_occupancy(corridor_mdp(2))[0]
    weights = torch.stack(found.log_weights).softmax(0)
    drawn = torch.stack([trace.nodes["state_0"]["value"] for trace in found.exec_traces])
    hits = torch.nn.functional.one_hot(drawn, 3).to(F64)
    errors = (weights[:, None] * (hits - expected)).square().sum(0).sqrt()
    assert ((probabilities - expected) / errors).abs().max() < 4


@pytest.mark.parametrize("site", ["state_2", "action_1"])
def test_conditioning_a_site_gives_the_joint_evidence(site):
    mdp = corridor_mdp(3, terminal=False)
    program = poutine.condition(lambda: corridor(3), data={site: torch.tensor(1)})
    kind, t = site.split("_")
    joint = sum(
        path.dynamics * path.prior * math.exp(path.return_ / 0.5)
        for path in brute_force.paths(mdp)
        if (path.states if kind == "state" else path.actions)[int(t)] == 1
    )
    assert enumerated_log_evidence(program) == pytest.approx(math.log(joint), abs=1e-9)


def test_an_observation_tilts_the_guides_target():
    """A noisy look at the state is an observation: silent in the guide, counted in the ELBO."""

    def program():
        state = pyro.sample("state_0", dist.Categorical(START))
        for t in steps(2):
            action = act(f"action_{t}", state, dist.Categorical(logits=torch.zeros(2, dtype=F64)))
            state = pyro.sample(f"state_{t + 1}", dist.Categorical(MOVE[state, action]))
            pyro.sample(f"look_{t}", dist.Normal(state.to(F64), 0.5), obs=torch.tensor(1.0 + t, dtype=F64))

    look = torch.stack(
        [dist.Normal(torch.arange(3, dtype=F64), 0.5).log_prob(torch.tensor(1.0 + t, dtype=F64)) for t in range(2)]
    )
    # As rewards per step r(s, a, s') = log p(look | s'), which differ by step: put the step into the state.
    moves, payoff = torch.zeros(9, 2, 9, dtype=F64), torch.zeros(9, 2, 9, dtype=F64)
    for t in range(2):
        moves[3 * t : 3 * t + 3, :, 3 * t + 3 : 3 * t + 6] = MOVE
        payoff[3 * t : 3 * t + 3, :, 3 * t + 3 : 3 * t + 6] = look[t]
    moves[6:, :, 6:] = torch.eye(3, dtype=F64)[:, None]
    start = torch.cat([START, torch.zeros(6, dtype=F64)])
    mdp = TabularMDP(moves, payoff, start, horizon=2)
    assert enumerated_log_evidence(program) == pytest.approx(float(exact.log_evidence(mdp)), abs=1e-9)
    table = random_table(corridor_mdp(2))
    wide = torch.full((2, 9, 2), 0.5, dtype=F64)
    for t in range(2):
        wide[t, 3 * t : 3 * t + 3] = table[t]
    value = enumerated_elbo(program, follow(program, as_policy(table)))
    assert value == pytest.approx(float(exact.elbo(mdp, wide)), abs=1e-9)


def test_predictive_runs_the_prior_and_the_guide():
    """1,000 runs in parallel, seed 0: the share of action 1 at the first step, |z| < 4."""
    mdp = corridor_mdp(2)
    table = random_table(mdp)

    for program, share in ((simulate(mdp), 0.5), (follow(mdp, as_policy(table)), float(START @ table[0, :, 1]))):
        drawn = Predictive(program, {}, num_samples=1000, return_sites=["action_0", "state_2"], parallel=True)(1)
        assert drawn["state_2"].shape == (1000, 1)
        assert abs(float(drawn["action_0"].double().mean()) - share) / math.sqrt(share * (1 - share) / 1000) < 4


def test_programs_survive_replay_and_scale():
    guide_trace = poutine.trace(follow(corridor, as_policy(random_table(corridor_mdp())))).get_trace()
    replayed = poutine.trace(poutine.replay(corridor, trace=guide_trace)).get_trace()
    for name in guide_trace.stochastic_nodes:
        assert torch.equal(replayed.nodes[name]["value"], guide_trace.nodes[name]["value"])
    doubled = poutine.trace(poutine.replay(poutine.scale(corridor, scale=2.0), trace=guide_trace)).get_trace()
    assert float(doubled.log_prob_sum()) == pytest.approx(2 * float(replayed.log_prob_sum()), rel=1e-12)
