"""What is observed inside steps, in every reading: an ended episode observes nothing."""

import itertools
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Importance, Trace_ELBO, TraceEnum_ELBO, config_enumerate, infer_discrete
from pyro.infer.mcmc.util import initialize_model

import rl_as_inference as rlai
from rl_as_inference import TrajectoryELBO, act, follow, reward, simulate, steps, survival, terminate
from rl_as_inference.sampling.nuts import _whiten

F64 = torch.float64
HALF = torch.tensor([0.5, 0.5], dtype=F64)
RARE = 0.1
ONE = torch.tensor(1.0, dtype=F64)


def see(name, probability, how):
    """An observed site, by one of the two ways of fixing it; ``"condition"`` leaves that to the handler around."""
    like = torch.as_tensor(probability, dtype=F64)
    return pyro.sample(name, dist.Bernoulli(like), obs=ONE.expand(like.shape) if how == "obs" else None)


def seen(program, how, names):
    return program if how == "obs" else pyro.condition(program, data=dict.fromkeys(names, ONE))


def four_rare_looks(how="obs", discount=0.5):
    """Four observations of probability 0.1 each."""

    def program():
        state = pyro.sample("state_0", dist.Categorical(HALF))
        for t in steps(4, discount, like=HALF):
            act(f"action_{t}", state, dist.Categorical(HALF.expand(*state.shape, 2)))
            see(f"look_{t}", torch.full(state.shape, RARE, dtype=F64), how)

    return seen(program, how, [f"look_{t}" for t in range(4)])


def prior_like(state, t):
    return dist.Categorical(HALF.expand(*state.shape, 2))


def enumerated(program, policy):
    """ELBO and log evidence by Pyro's enumeration."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        guide = config_enumerate(follow(program, policy))
        elbo = -TraceEnum_ELBO(max_plate_nesting=0).loss(program, guide)
        survived = config_enumerate(survival(program))
        return elbo, -TraceEnum_ELBO(max_plate_nesting=0).loss(survived, lambda: None)


def evidence_of_rare_looks(gamma):
    """``x_3 = 0.1, x_t = 0.1 ((1-γ) + γ x_{t+1})``."""
    x = RARE
    for _ in range(3):
        x = RARE * (1 - gamma + gamma * x)
    return math.log(x)


RIGHT_ELBO = math.log(RARE) * (1 + 0.5 + 0.25 + 0.125)


@pytest.mark.parametrize("how", ["obs", "condition"])
def test_four_rare_looks_by_enumeration(how):
    """-4.317 and -2.944, where the evidence was -9.210 before."""
    program = four_rare_looks(how)
    elbo, evidence = enumerated(program, prior_like)
    assert elbo == pytest.approx(RIGHT_ELBO, abs=1e-9) == pytest.approx(-4.317, abs=1e-3)
    assert evidence == pytest.approx(evidence_of_rare_looks(0.5), abs=1e-9) == pytest.approx(-2.944, abs=1e-3)
    assert enumerated(survival(program), prior_like)[0] == pytest.approx(RIGHT_ELBO, abs=1e-9)


@pytest.mark.parametrize("how", ["obs", "condition"])
def test_four_rare_looks_by_every_reading_of_ours(how):
    """Scaled weights are constant here, so the ELBO is exact; evidences of 40,000 draws, seed 0, |z| < 4."""
    program, right = four_rare_looks(how), evidence_of_rare_looks(0.5)
    assert rlai.estimate_elbo(program, prior_like, 50).mean == pytest.approx(RIGHT_ELBO, abs=1e-9)
    assert rlai.compare(program, prior_like, num_trajectories=50).elbo == pytest.approx(RIGHT_ELBO, abs=1e-9)
    for estimator in ("auto", "full_return", "score"):
        for fn in (program, survival(program)):
            own = follow(fn, prior_like)
            for guide in (own, lambda own=own: own()):
                elbo = -TrajectoryELBO(estimator, num_particles=1000, vectorize_particles=True).loss(fn, guide)
                error = 0.0 if fn is program else 0.09  # the coins' spread is below 2.9 nats
                assert abs(elbo - RIGHT_ELBO) <= 1e-9 + 4 * error
    for method in ("importance", "smc"):
        found = rlai.estimate_log_evidence(program, method=method, num_particles=5000)
        assert abs(found.mean - right) < 4 * found.standard_error < 0.2
    for method in ("importance", "smc"):
        notes = rlai.posterior(program, method=method, num_draws=2000).posterior.attrs
        assert abs(notes["log_evidence"] - right) < 4 * notes["log_evidence_standard_error"] < 0.4
    weights = torch.as_tensor(rlai.posterior(program, num_draws=20_000).sample_stats["log_weight"].values).exp()
    assert abs(weights.mean().log() - right) < 4 * float(weights.std() / weights.mean()) / 20_000**0.5


@pytest.mark.parametrize("how", ["obs", "condition"])
def test_four_rare_looks_by_pyros_own(how):
    """Trace_ELBO is exact on the scaled program; Importance of 300 and infer_discrete of 4,000 draws, |z| < 4."""
    program, right = four_rare_looks(how), evidence_of_rare_looks(0.5)
    assert -Trace_ELBO().loss(program, follow(program, prior_like)) == pytest.approx(RIGHT_ELBO, abs=1e-9)
    survived = survival(program)
    logs = torch.stack(Importance(survived, follow(survived, prior_like), num_samples=300).run().log_weights).exp()
    assert abs(logs.mean() - math.exp(right)) < 4 * logs.std() / 300**0.5

    def batch():
        with pyro.plate("draws", 4000):
            program()

    drawn = poutine.trace(infer_discrete(config_enumerate(survival(batch)), first_available_dim=-2)).get_trace()
    alive = float(drawn.nodes["alive_1"]["value"].mean())
    x = math.exp(right) / RARE  # 1-γ + γ x_1
    share = (x - 0.5) / x
    assert abs(alive - share) < 4 * math.sqrt(share * (1 - share) / 4000)
    assert not [name for name in poutine.trace(follow(program, prior_like)).get_trace().nodes if "look" in name]
    looks = [n for n in poutine.trace(simulate(program)).get_trace().nodes if "look" in n]
    assert len(looks) == 4  # the prior's draws know what was seen


def ends(how="obs", discount=1.0, rendering="scaled"):
    """A coin-like action; after 1 the episode is over. Each step is looked at before and after its action."""

    def program():
        state = pyro.sample("state_0", dist.Categorical(HALF))
        over = state == 1
        for t in steps(2, discount, rendering, like=HALF):
            see(f"before_{t}", 0.3 + 0.2 * state.to(F64), how)
            terminate(over)
            action = act(f"action_{t}", state, dist.Categorical(HALF.expand(*state.shape, 2)))
            see(f"look_{t}", 0.2 + 0.5 * action.to(F64), how)
            reward(f"reward_{t}", action.to(F64))
            over = action == 1

    return seen(program, how, [f"{kind}_{t}" for kind in ("before", "look") for t in range(2)])


PI = torch.tensor([0.3, 0.7], dtype=F64)


def by_hand(gamma):
    """ELBO of ``PI`` and log evidence, by every course of the episode: state, actions, how long the coins stand."""
    elbo, evidence = 0.0, 0.0
    for state, first, second in itertools.product((0, 1), repeat=3):
        for stands in (1, 2):
            chance = 0.5 * (1 - gamma if stands == 1 else gamma)
            before = [math.log(0.3 + 0.2 * state)] * 2
            look = [math.log(0.2 + 0.5 * a) + a for a in (first, second)]
            ratio = [math.log(0.5) - math.log(float(PI[a])) for a in (first, second)]
            total, cost = before[0], 0.0  # the look before an ending counts
            if state == 0:
                total, cost = total + look[0], ratio[0]
                if stands == 2:
                    # An ending at the second step is told after its first look.
                    total += before[1]
                    if first == 0:
                        total, cost = total + look[1], cost + ratio[1]
            q = [float(PI[a]) for a in (first, second)]
            if state == 1:
                q = [0.5, 0.5]
            elif stands == 1 or first == 1:
                q[1] = 0.5
            elbo += chance * q[0] * q[1] * (total + cost)
            evidence += chance * 0.25 * math.exp(total)
    return elbo, math.log(evidence)


def policy(state, t):
    return dist.Categorical(PI.expand(*state.shape, 2))


@pytest.mark.parametrize("how", ["obs", "condition"])
@pytest.mark.parametrize("gamma", [1.0, 0.6])
def test_an_ending_silences_what_is_observed(gamma, how):
    """By enumeration and by 20,000 rollouts, seed 0, |z| < 4."""
    elbo, evidence = by_hand(gamma)
    for rendering in ("scaled", "survival"):
        program = ends(how, gamma, rendering)
        found = enumerated(program, policy)
        assert found[0] == pytest.approx(elbo, abs=1e-9)
        assert found[1] == pytest.approx(evidence, abs=1e-9)
        estimate = rlai.estimate_elbo(program, policy, 20_000)
        assert abs(estimate.mean - elbo) < 4 * estimate.standard_error < 0.1
    found = rlai.estimate_log_evidence(program, policy, method="importance", num_particles=2500)
    assert abs(found.mean - evidence) < 4 * found.standard_error < 0.1
    found = rlai.estimate_log_evidence(program, method="smc", num_particles=2000)
    assert abs(found.mean - evidence) < 4 * found.standard_error < 0.1


@pytest.mark.parametrize("how", ["obs", "condition"])
def test_nuts_keeps_the_density_of_what_is_drawn_after_an_ending(how):
    """The first push ends the episode where it is over 0.5; elsewhere the second is looked at.

    The sampler's potential, in plain and in whitened coordinates, against densities by hand.
    """

    def program():
        place = torch.zeros((), dtype=F64)
        for t in steps(2):
            terminate(place > 0.5)
            place = place + act(f"action_{t}", place, dist.Normal(torch.zeros_like(place), 1.0))
            if t == 1:
                pyro.sample("look", dist.Normal(place, 0.5), obs=2 * ONE if how == "obs" else None)

    model = program if how == "obs" else pyro.condition(program, data={"look": 2 * ONE})
    normal = dist.Normal(0 * ONE, 1.0)
    for suffix, ours in (("", model), ("_decentered", pyro.poutine.reparam(config=_whiten)(model))):
        potential = initialize_model(ours)[1]
        for first, second in ((1.0, 3.0), (-0.5, 0.7), (0.4, -2.0)):
            point = {f"action_0{suffix}": first * ONE, f"action_1{suffix}": second * ONE}
            looked = 0.0 if first > 0.5 else dist.Normal(first + second, 0.5).log_prob(2 * ONE)
            expected = normal.log_prob(first * ONE) + normal.log_prob(second * ONE) + looked
            assert -float(potential(point)) == pytest.approx(float(expected), abs=1e-6)


def test_a_full_assignment_keeps_every_factor():
    """Conditions that leave nothing to be drawn ask for the density of a run: they sum to the evidence."""
    program = survival(ends("obs", 0.6))
    names = {"state_0": (0, 1), "action_0": (0, 1), "action_1": (0, 1), "alive_1": (0, 1)}
    total = 0.0
    for values in itertools.product(*names.values()):
        data = {
            n: torch.tensor(v, dtype=F64 if n == "alive_1" else torch.long) for n, v in zip(names, values, strict=True)
        }
        total += math.exp(float(poutine.trace(poutine.condition(program, data=data)).get_trace().log_prob_sum()))
    assert math.log(total) == pytest.approx(by_hand(0.6)[1], abs=1e-9)


def test_an_action_that_is_observed_was_chosen_by_nobody():
    """It weighs as much as its prior gives it: by every reading of ELBO the same, of constant weights."""

    def program():
        state = pyro.sample("state_0", dist.Categorical(HALF))
        for t in steps(2, 0.5, like=HALF):
            act(f"action_{t}", state, dist.Categorical(torch.tensor([0.2, 0.8], dtype=F64).expand(*state.shape, 2)))

    given = pyro.condition(program, data={"action_0": torch.tensor(1), "action_1": torch.tensor(0)})
    right = math.log(0.8) + 0.5 * math.log(0.2)
    guide = follow(given, policy)
    assert enumerated(given, policy)[0] == pytest.approx(right, abs=1e-9)
    assert -Trace_ELBO().loss(given, guide) == pytest.approx(right, abs=1e-9)
    assert -TrajectoryELBO().loss(given, guide) == pytest.approx(right, abs=1e-9)
    assert -TrajectoryELBO().loss(given, lambda: guide()) == pytest.approx(right, abs=1e-9)
    assert rlai.estimate_elbo(given, policy, 10).mean == pytest.approx(right, abs=1e-9)


def test_a_condition_on_a_state_holds_after_the_end_of_a_process_that_stays_there():
    """Two ways to end, goal and hole; the state at the last step is where the episode ended."""
    move = torch.zeros(3, 2, 3, dtype=F64)
    move[0] = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.1, 0.3]], dtype=F64)
    move[1, :, 1] = move[2, :, 2] = 1
    start = torch.tensor([1.0, 0, 0], dtype=F64)
    ends_there = torch.tensor([False, True, True])
    mdp = rlai.TabularMDP(move, torch.zeros(3, 2, dtype=F64), start, horizon=3, terminal=ends_there)
    step = move[0].mean(0)
    goal = float(step[1] * (1 + step[0] + step[0] ** 2))
    given = pyro.condition(mdp, data={"state_3": torch.tensor(1)})
    found = rlai.estimate_log_evidence(given, method="importance", num_particles=2500)
    assert abs(found.mean - math.log(goal)) < 4 * found.standard_error < 0.1
