"""The language: what each word writes into a Pyro program, and what each reading makes of it."""

import gc
import itertools
import math

import gymnasium
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.poutine.runtime import _PYRO_STACK
from torch import nn

from rl_as_inference import TrajectoryELBO, act, follow, reward, simulate, steps, survival, terminate
from rl_as_inference.guides import CategoricalPolicy, TabularPolicy
from rl_as_inference.program.sites import is_action, is_reward, step_of

F64 = torch.float64
START = torch.tensor([0.6, 0.4], dtype=F64)
MOVE = torch.tensor([[[0.7, 0.3], [0.2, 0.8]], [[0.5, 0.5], [0.9, 0.1]]], dtype=F64)
PAYOFF = torch.tensor([[0.3, -0.2], [1.0, 0.4]], dtype=F64)
PRIOR = torch.tensor([[0.5, 0.5], [0.2, 0.8]], dtype=F64)
TABLE = torch.tensor([[[0.9, 0.1], [0.4, 0.6]], [[0.3, 0.7], [0.5, 0.5]], [[0.2, 0.8], [0.6, 0.4]]], dtype=F64)


def table_policy(state, t):
    return dist.Categorical(TABLE[t, state])


def corridor(horizon=2, discount=1.0, rendering="scaled", terminal=False):
    """Two states, two actions; state 1 is terminal if asked."""
    state = pyro.sample("state_0", dist.Categorical(START))
    for t in steps(horizon, discount=discount, rendering=rendering, like=START):
        if terminal:
            terminate(state == 1)
        action = act(f"action_{t}", state, prior=dist.Categorical(PRIOR[state]))
        reward(f"reward_{t}", PAYOFF[state, action], temperature=0.5)
        state = pyro.sample(f"state_{t + 1}", dist.Categorical(MOVE[state, action]))
    return state


def walk(horizon=4, batch=(), discount=1.0, rendering="scaled"):
    """Actions ±1 on a line, with no state drawn."""
    place = torch.zeros(batch)
    for t in steps(horizon, discount=discount, rendering=rendering):
        action = act(f"action_{t}", place, dist.Bernoulli(torch.full_like(place, 0.5)))
        place = place + 2 * action - 1
        reward(f"reward_{t}", place)
    return place


def trace_of(program, *args, **kwargs):
    trace = poutine.trace(program).get_trace(*args, **kwargs)
    trace.compute_log_prob()
    return trace


def draws(trace):
    return {name: trace.nodes[name]["value"] for name in trace.stochastic_nodes}


def every_run(program, binary):
    """Every joint assignment of the program's binary sites."""
    for values in itertools.product((0, 1), repeat=len(binary)):
        data = {
            name: torch.tensor(float(v), dtype=F64) if name.startswith("alive") else torch.tensor(v)
            for name, v in zip(binary, values, strict=True)
        }
        yield data, trace_of(poutine.condition(program, data=data))


def exact_elbo(program, policy):
    """``E_q[log p - log q]`` by writing out every run of guide and program."""
    guide = follow(program, policy)
    names = list(trace_of(guide).stochastic_nodes)
    total = 0.0
    for data, guide_run in every_run(guide, names):
        probability = math.exp(sum(float(guide_run.nodes[n]["unscaled_log_prob"]) for n in names))
        if probability == 0:
            continue
        model_run = trace_of(poutine.condition(program, data=data))
        log_q = sum(float(guide_run.nodes[n]["log_prob"]) for n in names)
        total += probability * (float(model_run.log_prob_sum()) - log_q)
    return total


def no_scope_left():
    return not any(type(handler).__name__ == "_StepScope" for handler in _PYRO_STACK)


# The words.


def test_a_program_runs_as_plain_python():
    torch.manual_seed(0)
    assert corridor() in (0, 1)
    assert list(steps(0)) == []
    assert not _PYRO_STACK


def test_the_sites_of_a_program_and_their_marks():
    trace = trace_of(corridor, 2)
    assert list(trace.stochastic_nodes) == ["state_0", "action_0", "state_1", "action_1", "state_2"]
    assert trace.observation_nodes == ["reward_0", "reward_1"]
    for t in range(2):
        action, factor = trace.nodes[f"action_{t}"], trace.nodes[f"reward_{t}"]
        assert is_action(action)
        assert not is_reward(action)
        assert is_reward(factor)
        assert not is_action(factor)
        assert step_of(action)["step"] == t
        assert torch.equal(action["infer"]["rlai_action"]["state"], trace.nodes[f"state_{t}"]["value"])
    assert step_of(trace.nodes["state_0"])["step"] is None


def test_a_reward_is_a_factor_of_value_over_temperature():
    def program():
        reward("r", torch.tensor([3.0, -1.0]), temperature=torch.tensor(2.0))

    assert torch.equal(trace_of(program).nodes["r"]["log_prob"], torch.tensor([1.5, -0.5]))


@pytest.mark.parametrize("value", [3, 3.0, torch.tensor(3)])
def test_a_reward_may_be_a_number_or_integers(value):
    def program():
        reward("r", value, temperature=2)

    assert float(trace_of(program).log_prob_sum()) == 1.5


def test_a_reward_differentiates_in_value_and_temperature():
    value, temperature = torch.tensor(3.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)

    def program():
        reward("r", value, temperature)

    trace_of(program).log_prob_sum().backward()
    assert float(value.grad) == 0.5
    assert float(temperature.grad) == -0.75


# Plates.


def test_a_plate_batches_trajectories():
    def batch():
        with pyro.plate("trajectories", 5):
            return corridor(3, discount=0.5)

    trace = trace_of(batch)
    for t in range(3):
        for name in (f"action_{t}", f"reward_{t}", f"state_{t + 1}"):
            assert trace.nodes[name]["log_prob"].shape == (5,)
            assert torch.allclose(trace.nodes[name]["log_prob"], 0.5**t * trace.nodes[name]["unscaled_log_prob"])


def test_nested_plates_under_discount_survival_and_endings():
    """Three worlds of four agents: masks and scales broadcast over both plates."""

    def program(rendering):
        with pyro.plate("worlds", 3, dim=-2), pyro.plate("agents", 4, dim=-1):
            state = pyro.sample("state_0", dist.Categorical(START))
            for t in steps(3, 0.5, rendering, like=START):
                terminate(state == 1)
                action = act(f"action_{t}", state, dist.Categorical(PRIOR[state]))
                reward(f"reward_{t}", PAYOFF[state, action])
                state = pyro.sample(f"state_{t + 1}", dist.Categorical(MOVE[state, action]))

    for rendering in ("scaled", "survival"):
        trace = trace_of(program, rendering)
        ended = torch.zeros(3, 4, dtype=torch.bool)
        for t in range(3):
            ended = ended | (trace.nodes[f"state_{t}"]["value"] == 1)
            over = ended
            if rendering == "survival" and t > 0:
                assert trace.nodes[f"alive_{t}"]["value"].shape == (3, 4)
                over = ended | (trace.nodes[f"alive_{t}"]["value"] == 0)
            factor = trace.nodes[f"reward_{t}"]["log_prob"]
            value = PAYOFF[trace.nodes[f"state_{t}"]["value"], trace.nodes[f"action_{t}"]["value"]]
            expected = torch.where(over, 0.0, value * (0.5**t if rendering == "scaled" else 1.0))
            assert torch.equal(factor, expected)


def test_an_inner_plate_sums_over_what_a_trajectory_holds():
    """Two joints of one robot in an inner plate: TrajectoryELBO agrees with the sum over both."""

    def program():
        with pyro.plate("trajectories", 6, dim=-2):
            for t in steps(2):
                with pyro.plate(f"joints_{t}", 2, dim=-1):
                    action = act(f"action_{t}", torch.zeros(6, 2), dist.Normal(torch.zeros(6, 2), 1.0))
                reward(f"reward_{t}", -action.square().sum(-1, keepdim=True))

    policy = lambda state, t: dist.Normal(state + 0.5, 0.7)  # noqa: E731
    guide = follow(program, policy)
    pyro.set_rng_seed(1)
    expected = Trace_ELBO().loss(program, guide)
    pyro.set_rng_seed(1)
    assert TrajectoryELBO().loss(program, guide) == pytest.approx(expected, rel=1e-5)


# Discount.


def test_scaled_discount_multiplies_every_term_of_its_step():
    trace = trace_of(corridor, 3, 0.5)
    assert trace.nodes["state_0"]["scale"] == 1
    for t in range(3):
        for name in (f"action_{t}", f"reward_{t}", f"state_{t + 1}"):
            assert trace.nodes[name]["scale"] == 0.5**t
            assert float(trace.nodes[name]["log_prob"]) == pytest.approx(
                0.5**t * float(trace.nodes[name]["unscaled_log_prob"]), rel=1e-12
            )


def test_discount_zero_keeps_the_first_step_alone():
    trace = trace_of(walk, 3, (), 0.0)
    assert [trace.nodes[f"reward_{t}"]["scale"] for t in range(3)] == [1, 0, 0]


def test_nested_loops_multiply_their_discounts():
    def program():
        for i in steps(2, 0.5):
            for j in steps(2, 0.1):
                act(f"action_{i}_{j}", torch.tensor(0), dist.Bernoulli(0.5))
            reward(f"reward_{i}", 1.0)

    trace = trace_of(program)
    for i, j in itertools.product(range(2), repeat=2):
        site = trace.nodes[f"action_{i}_{j}"]
        assert site["scale"] == pytest.approx(0.5**i * 0.1**j)
        assert step_of(site)["step"] == j
    assert trace.nodes["reward_1"]["scale"] == 0.5


def test_a_discount_may_be_learned():
    gamma = torch.tensor(0.5, dtype=F64, requires_grad=True)

    def program():
        for t in steps(3, gamma):
            reward(f"reward_{t}", torch.tensor(2.0, dtype=F64))

    total = trace_of(program).log_prob_sum()
    total.backward()
    assert total.item() == pytest.approx(2 * (1 + 0.5 + 0.25))
    assert float(gamma.grad) == pytest.approx(2 * (1 + 2 * 0.5))


def test_survival_writes_its_coins_as_a_chain():
    """2,000 trajectories, seed 0: the coins fall at rate 1 - γ, |z| < 4, and stay down."""
    n, gamma = 2000, 0.6
    with pyro.plate("n", n):
        trace = trace_of(walk, 4, (n,), gamma, "survival")
    assert "alive_0" not in trace.nodes
    before = torch.ones(n)
    for t in (1, 2, 3):
        alive = trace.nodes[f"alive_{t}"]["value"]
        assert not (alive > before).any()
        share = float(alive[before == 1].mean())
        error = math.sqrt(gamma * (1 - gamma) / float(before.sum()))
        assert abs(share - gamma) / error < 4
        factor = trace.nodes[f"reward_{t}"]["log_prob"]
        assert (factor[alive == 0] == 0).all()
        assert trace.nodes[f"reward_{t}"]["scale"] == 1
        before = alive


def test_no_coins_without_a_discount():
    assert not [name for name in trace_of(walk, 3, (), 1.0, "survival").nodes if name.startswith("alive")]


def test_survival_switches_a_scaled_program():
    pyro.set_rng_seed(3)
    expected = trace_of(corridor, 3, 0.7, "survival")
    for switched in (survival(corridor), survival()(corridor)):
        pyro.set_rng_seed(3)
        trace = trace_of(switched, 3, 0.7, "scaled")
        assert draws(trace) == draws(expected)
        assert float(trace.log_prob_sum()) == float(expected.log_prob_sum())
    pyro.set_rng_seed(3)
    with survival():
        trace = trace_of(corridor, 3, 0.7)
    assert draws(trace) == draws(expected)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("discount", [1.0, 0.6, 0.0])
def test_both_renderings_have_the_same_elbo_by_enumeration(discount, terminal):
    scaled, coins = (
        exact_elbo(lambda rendering=rendering: corridor(2, discount, rendering, terminal), table_policy)
        for rendering in ("scaled", "survival")
    )
    assert scaled == pytest.approx(coins, abs=1e-12)


def test_the_enumerated_elbo_of_a_scaled_program_by_hand():
    """One state, two steps: Σ_t γ^t Σ_a π(a) (r/α + log p/π)."""

    def program():
        for t in steps(2, 0.6):
            action = act(f"action_{t}", torch.tensor(0), dist.Categorical(PRIOR[1]))
            reward(f"reward_{t}", PAYOFF[1, action], temperature=0.5)

    pi = TABLE[0, 0]
    term = (pi * (PAYOFF[1] / 0.5 + PRIOR[1].log() - pi.log())).sum()
    value = exact_elbo(program, lambda state, t: dist.Categorical(pi))
    assert value == pytest.approx(float(1.6 * term), abs=1e-12)


# Endings.


def test_an_ended_trajectory_adds_exactly_zero_and_acts_by_the_prior():
    """1,000 trajectories, seed 0: a policy that always takes action 1 leaves ended ones to the prior, |z| < 4."""
    always = torch.tensor([0.0, 1.0], dtype=F64)

    def program():
        with pyro.plate("trajectories", 1000):
            corridor(3, discount=0.9, terminal=True)

    guide_trace = trace_of(follow(program, lambda state, t: dist.Categorical(always.expand(*state.shape, 2))))
    model_trace = trace_of(poutine.replay(program, trace=guide_trace))
    ended = torch.zeros(1000, dtype=torch.bool)
    for t in range(3):
        ended = ended | (guide_trace.nodes[f"state_{t}"]["value"] == 1)
        assert 0 < ended.sum() < 1000
        name = f"action_{t}"
        step = model_trace.nodes[name]["log_prob"] - guide_trace.nodes[name]["log_prob"]
        assert (step[ended] == 0).all()
        assert (step[~ended] != 0).all()
        assert (model_trace.nodes[f"reward_{t}"]["log_prob"][ended] == 0).all()
        action, state = (guide_trace.nodes[n]["value"][ended].double() for n in (name, f"state_{t}"))
        expected = PRIOR[state.long(), 1]
        assert abs((action - expected).sum()) / (expected * (1 - expected)).sum().sqrt() < 4
        assert (guide_trace.nodes[name]["value"][~ended] == 1).all()


@pytest.mark.parametrize("family", ["Bernoulli", "Normal"])
def test_the_prior_takes_over_in_ended_trajectories_of_any_family(family):
    prior, policy = {
        "Bernoulli": (dist.Bernoulli(torch.tensor(0.3)), dist.Bernoulli(torch.tensor(1.0))),
        "Normal": (dist.Normal(torch.zeros(2), 1.0).to_event(1), dist.Normal(torch.full((2,), 9.0), 0.1).to_event(1)),
    }[family]

    def program():
        with pyro.plate("trajectories", 50):
            for t in steps(2):
                terminate(torch.arange(50) < 20 * t)
                act(f"action_{t}", torch.zeros(50), prior)

    guide_trace = trace_of(follow(program, lambda state, t: policy))
    model_trace = trace_of(poutine.replay(program, trace=guide_trace))
    step = model_trace.nodes["action_1"]["log_prob"] - guide_trace.nodes["action_1"]["log_prob"]
    assert (step[:20] == 0).all()
    assert (step[20:] != 0).all()
    action = guide_trace.nodes["action_1"]["value"]
    assert not torch.allclose(action[:20].mean(0), policy.mean, atol=0.2)
    assert torch.allclose(action[20:].mean(0), policy.mean, atol=0.2)


def test_endings_last_unless_the_states_themselves_absorb():
    def program(absorbing):
        for t in steps(3):
            terminate(torch.tensor(t == 1), absorbing=absorbing)
            reward(f"reward_{t}", 1.0)

    lasting, current = (trace_of(program, absorbing) for absorbing in (False, True))
    assert [float(lasting.nodes[f"reward_{t}"]["log_prob"]) for t in range(3)] == [1, 0, 0]
    assert [float(current.nodes[f"reward_{t}"]["log_prob"]) for t in range(3)] == [1, 0, 1]


def test_terminate_takes_a_bool():
    def program():
        for t in steps(2):
            terminate(t == 1)
            reward(f"reward_{t}", 1.0)

    assert float(trace_of(program).log_prob_sum()) == 1.0


def test_words_outside_a_loop_and_outside_inference():
    terminate(True)
    reward("r", 1.0)
    action = act("a", None, dist.Delta(torch.tensor(2.0)))
    assert action == 2


# Free programs.


def hidden_goal(horizon=3):
    """The policy does not see the goal, and it stays the guide's own draw."""
    goal = pyro.sample("goal", dist.Categorical(torch.tensor([0.25, 0.75])))
    place = torch.zeros(goal.shape, dtype=torch.long)
    for t in steps(horizon):
        action = act(f"action_{t}", place, dist.Categorical(torch.ones(*goal.shape, 2)))
        place = (place + action) % 2
        reward(f"reward_{t}", (place == goal).float())


def test_a_hidden_goal_cancels_from_the_weight():
    policy = TabularPolicy(2, 2, horizon=3)
    policy.logits.data.normal_()
    guide_trace = trace_of(follow(hidden_goal, policy))
    model_trace = trace_of(poutine.replay(hidden_goal, trace=guide_trace))
    assert float(guide_trace.nodes["goal"]["log_prob"]) == float(model_trace.nodes["goal"]["log_prob"])
    weight = model_trace.log_prob_sum() - guide_trace.log_prob_sum()
    own = sum(
        model_trace.nodes[f"action_{t}"]["log_prob"]
        - guide_trace.nodes[f"action_{t}"]["log_prob"]
        + model_trace.nodes[f"reward_{t}"]["log_prob"]
        for t in range(3)
    )
    assert torch.allclose(weight, own)


def test_training_ignorant_of_the_goal_finds_the_likelier_one():
    """60 steps on batches of 32 trajectories, seed 0: the best blind rule goes to goal 1 and stays."""
    policy = TabularPolicy(2, 2, horizon=3)

    def program():
        with pyro.plate("trajectories", 32):
            hidden_goal()

    svi = SVI(program, follow(program, policy), pyro.optim.Adam({"lr": 0.1}), TrajectoryELBO())
    for _ in range(60):
        svi.step()
    probabilities = policy.logits.detach().softmax(-1)
    assert float(probabilities[0, 0, 1]) > 0.5  # from place 0 it moves
    assert float(probabilities[2, 1, 0]) > 0.5  # at place 1 it stays


def test_random_dynamics_parameters_stand_beside_the_trajectory():
    def program():
        slip = pyro.sample("slip", dist.Beta(2.0, 3.0))
        state = torch.tensor(0.0)
        for t in steps(3, 0.9):
            action = act(f"action_{t}", state, dist.Normal(0.0, 1.0))
            state = pyro.sample(f"state_{t + 1}", dist.Normal(state + (1 - slip) * action, 0.1))
            reward(f"reward_{t}", -((state - 1) ** 2))

    guide = follow(program, lambda state, t: dist.Normal(1 - state, 0.5))
    for seed in range(3):
        pyro.set_rng_seed(seed)
        expected = Trace_ELBO().loss(program, guide)
        pyro.set_rng_seed(seed)
        assert TrajectoryELBO().loss(program, guide) == pytest.approx(expected, rel=1e-4)


def branching():
    """Python decides: which distribution is drawn from, and when the walk is over."""
    place, t = 0, 0
    for t in steps(10):
        if place == 3:
            break
        if place >= 0:
            move = int(act(f"move_{t}", torch.tensor(place), dist.Categorical(torch.ones(3)))) - 1
        else:
            move = int(act(f"jump_{t}", torch.tensor(place), dist.Bernoulli(0.5)))
        place += move
        reward(f"reward_{t}", -1.0)
    pyro.sample("after", dist.Normal(0.0, 1.0))
    return t


def test_free_branching_on_python_values():
    def policy(state, t):
        return dist.Categorical(torch.tensor([0.1, 0.2, 0.7])) if state >= 0 else dist.Bernoulli(0.9)

    lengths = set()
    for seed in range(20):
        pyro.set_rng_seed(seed)
        guide_trace = trace_of(follow(branching, policy))
        model_trace = trace_of(poutine.replay(branching, trace=guide_trace))
        factors = [name for name in model_trace.nodes if name.startswith("reward")]
        lengths.add(len(factors))
        pyro.set_rng_seed(seed)
        expected = float(guide_trace.log_prob_sum() - model_trace.log_prob_sum())
        assert TrajectoryELBO().loss(branching, follow(branching, policy)) == pytest.approx(expected, rel=1e-5)
    assert len(lengths) > 2


def test_while_loops_without_steps():
    def program():
        count = 0
        while act(f"go_{count}", torch.tensor(count), dist.Bernoulli(0.5)) == 1:
            reward(f"reward_{count}", 1.0)
            count += 1
        return count

    seen = []
    for seed in range(10):
        pyro.set_rng_seed(seed)
        trace = trace_of(follow(program, lambda state, t: dist.Bernoulli(0.8)))
        assert all(step_of(site)["step"] is None for site in trace.nodes.values() if is_action(site))
        seen.append(trace.nodes["_RETURN"]["value"])
    assert max(seen) > 2


# The handler stack.


def test_break_and_return_leave_the_scope():
    def breaks():
        for t in steps(5, 0.5):
            if t == 2:
                break
        pyro.sample("after", dist.Normal(0.0, 1.0))

    def inner():
        for t in steps(5, 0.5):
            if t == 3:
                return t
        return None

    def returns():
        inner()
        pyro.sample("after", dist.Normal(0.0, 1.0))

    for program in (breaks, returns):
        trace = trace_of(program)
        assert trace.nodes["after"]["scale"] == 1
        assert step_of(trace.nodes["after"])["step"] is None
        assert not _PYRO_STACK


def test_nested_loops_and_comprehensions_leave_the_scope():
    def program():
        for i in steps(3, 0.5):
            for j in steps(3, 0.5):
                if j == 1:
                    break
            pyro.sample(f"inner_{i}", dist.Normal(0.0, 1.0))
        values = [act(f"listed_{t}", torch.tensor(0), dist.Bernoulli(0.5)) for t in steps(2, 0.5)]
        for t, _ in zip(steps(4, 0.5), values, strict=False):
            pyro.sample(f"zipped_{t}", dist.Normal(0.0, 1.0))
        pyro.sample("after", dist.Normal(0.0, 1.0))

    trace = trace_of(program)
    assert [trace.nodes[f"inner_{i}"]["scale"] for i in range(3)] == [1, 0.5, 0.25]
    assert [trace.nodes[f"{name}_1"]["scale"] for name in ("listed", "zipped")] == [0.5, 0.5]
    assert trace.nodes["after"]["scale"] == 1
    assert not _PYRO_STACK


class Oops(Exception):
    pass


def raising(where=2, discount=0.5, rendering="scaled"):
    with pyro.plate("inside", 3):
        for t in steps(5, discount, rendering):
            act(f"action_{t}", torch.zeros(3), dist.Bernoulli(torch.full((3,), 0.5)))
            if t == where:
                raise Oops


@pytest.mark.parametrize("rendering", ["scaled", "survival"])
def test_exceptions_leave_the_stack_clean(rendering):
    for reading in (raising, simulate(raising), follow(raising, lambda s, t: dist.Bernoulli(0.5)), survival(raising)):
        with pytest.raises(Oops):
            poutine.trace(reading).get_trace(rendering=rendering)
        assert not _PYRO_STACK
        with pytest.raises(Oops):
            reading(rendering=rendering)
        assert not _PYRO_STACK


def test_exceptions_caught_inside_an_outer_handler():
    """While the exception is being handled, and afterwards, the outer handlers alone are there."""
    with poutine.trace() as outer, poutine.scale(scale=3.0):
        before = list(_PYRO_STACK)
        try:
            raising()
        except Oops:
            assert no_scope_left()
            assert before == _PYRO_STACK
            pyro.sample("handling", dist.Normal(0.0, 1.0))
        pyro.sample("afterwards", dist.Normal(0.0, 1.0))
        with poutine.block(), pytest.raises(Oops):  # its sites have been in the trace before
            follow(raising, lambda s, t: dist.Bernoulli(0.5))()
        assert before == _PYRO_STACK
    assert not _PYRO_STACK
    for name in ("handling", "afterwards"):
        assert outer.trace.nodes[name]["scale"] == 3
        assert not outer.trace.nodes[name]["cond_indep_stack"]


def test_exceptions_caught_in_the_program_itself():
    def program():
        try:
            for t in steps(5, 0.5):
                if t == 2:
                    raise Oops
        except Oops:
            pass
        pyro.sample("after", dist.Normal(0.0, 1.0))

    assert trace_of(program).nodes["after"]["scale"] == 1


def test_an_exception_without_any_handler_leaves_nothing_for_the_next_program():
    kept = None
    try:
        raising()
    except Oops as error:
        kept = error  # its traceback keeps the frames alive
    assert not _PYRO_STACK
    assert trace_of(walk).nodes["action_1"]["scale"] == 1
    assert kept is not None
    del kept
    gc.collect()
    assert not _PYRO_STACK


# Readings.


def test_simulate_silences_factors_and_nothing_else():
    def program():
        pyro.sample("seen", dist.Normal(0.0, 1.0), obs=torch.tensor(0.3))
        return corridor()

    trace = trace_of(simulate(program))
    assert trace.observation_nodes == ["seen"]
    assert list(trace.stochastic_nodes) == ["state_0", "action_0", "state_1", "action_1", "state_2"]
    pyro.set_rng_seed(5)
    expected = draws(trace_of(program))
    pyro.set_rng_seed(5)
    with poutine.trace() as with_block, simulate():
        program()
    assert draws(with_block.trace) == expected
    assert with_block.trace.observation_nodes == ["seen"]


def test_simulate_acts_by_the_prior():
    """4,000 draws, seed 0, |z| < 4."""

    def program():
        with pyro.plate("n", 4000):
            return act("a", torch.zeros(4000), dist.Bernoulli(torch.full((4000,), 0.3)))

    share = float(simulate(program)().mean())
    assert abs(share - 0.3) / math.sqrt(0.3 * 0.7 / 4000) < 4


def test_follow_silences_factors_and_observations():
    def program():
        pyro.sample("seen", dist.Normal(0.0, 1.0), obs=torch.tensor(0.3))
        return corridor()

    policy = lambda state, t: dist.Categorical(torch.tensor([0.0, 1.0]))  # noqa: E731
    trace = trace_of(follow(program, policy))
    assert not trace.observation_nodes
    assert "seen" not in trace.nodes
    assert [int(trace.nodes[f"action_{t}"]["value"]) for t in range(2)] == [1, 1]
    pyro.set_rng_seed(5)
    expected = draws(trace_of(follow(program, policy)))
    pyro.set_rng_seed(5)
    with poutine.trace() as with_block, follow(policy=policy):
        program()
    assert draws(with_block.trace) == expected
    assert not with_block.trace.observation_nodes


def test_follow_leaves_dynamics_alone_and_passes_state_and_time():
    asked = []

    def policy(state, t):
        asked.append((int(state), t))
        return table_policy(state, t)

    trace = trace_of(follow(corridor, policy), 3)
    assert asked == [(int(trace.nodes[f"state_{t}"]["value"]), t) for t in range(3)]
    for t in range(3):
        state, action = (trace.nodes[f"{name}_{t}"]["value"] for name in ("state", "action"))
        assert torch.allclose(trace.nodes[f"action_{t}"]["fn"].probs, TABLE[t, state])
        assert torch.equal(trace.nodes[f"state_{t + 1}"]["fn"].probs, MOVE[state, action])


def test_the_outermost_of_two_followers_acts():
    """Handlers speak from the inside out; the outer one sees the site after, and replaces the rule again."""
    outer_rule = lambda state, t: dist.Delta(torch.tensor(7.0))  # noqa: E731
    inner_rule = lambda state, t: dist.Delta(torch.tensor(5.0))  # noqa: E731

    def program():
        return act("a", torch.tensor(0), dist.Normal(0.0, 1.0))

    assert float(follow(follow(program, inner_rule), outer_rule)()) == 7


def test_actions_may_be_conditioned():
    trace = trace_of(poutine.condition(corridor, data={"action_0": torch.tensor(1)}))
    assert "action_0" in trace.observation_nodes
    assert int(trace.nodes["action_0"]["value"]) == 1


# Policies that learn.


def two_step(name="action"):
    for t in steps(2):
        action = act(f"{name}_{t}", torch.tensor(0), dist.Categorical(torch.ones(2)))
        reward(f"reward_{name}_{t}", action.float())


def test_follow_registers_the_policys_parameters():
    policy = TabularPolicy(1, 2, horizon=2)
    guide = follow(two_step, policy)
    trace = poutine.trace(guide).get_trace()
    assert [name for name, site in trace.nodes.items() if site["type"] == "param"] == ["policy$$$logits"]
    for _ in range(3):
        guide()
    assert list(pyro.get_param_store()) == ["policy$$$logits"]
    assert pyro.get_param_store()["policy$$$logits"] is policy.logits


@pytest.mark.parametrize("loss", [Trace_ELBO, TrajectoryELBO])
def test_svi_trains_the_policy_in_place(loss):
    """100 steps, seed 0: action 1 pays, so both steps come to prefer it."""
    policy = TabularPolicy(1, 2, horizon=2)
    svi = SVI(two_step, follow(two_step, policy), pyro.optim.Adam({"lr": 0.1}), loss())
    for _ in range(100):
        svi.step()
    assert (policy.logits.softmax(-1)[:, 0, 1] > 0.55).all()


def test_two_policies_in_one_process_keep_their_own_parameters():
    first, second = TabularPolicy(1, 2, horizon=2), TabularPolicy(1, 2, horizon=2)
    second.logits.data.fill_(3.0)
    follow(two_step, first)()
    follow(two_step, second)()
    follow(two_step, first)()
    store = pyro.get_param_store()
    assert set(store) == {"policy$$$logits", "policy_2$$$logits"}
    assert store["policy$$$logits"] is first.logits
    assert store["policy_2$$$logits"] is second.logits
    before = first.logits.detach().clone()
    svi = SVI(two_step, follow(two_step, second), pyro.optim.SGD({"lr": 0.1}), TrajectoryELBO("full_return"))
    for _ in range(5):
        svi.step()
    assert torch.equal(first.logits, before)
    assert not torch.equal(second.logits, torch.full_like(second.logits, 3.0))


def test_every_parameter_of_several_policies_is_held_once():
    policies = [
        TabularPolicy(1, 2, horizon=2),
        TabularPolicy(5, 2),
        CategoricalPolicy(gymnasium.spaces.Discrete(1), 2, horizon=2),
        CategoricalPolicy(gymnasium.spaces.Discrete(1), 2),
    ]
    for policy in policies * 2:
        follow(two_step, policy)()
    store = pyro.get_param_store()
    held = sorted(id(store[name]) for name in store)
    assert held == sorted(id(parameter) for policy in policies for parameter in policy.parameters())


class Transposed(nn.Module):
    """A policy whose parameter lies in memory in another order than its indices."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 3).t())

    def forward(self, state, t):
        return dist.Categorical(logits=self.weight[:, 1])


def test_a_parameter_in_any_memory_order_is_trained():
    def program():
        action = act("action_0", torch.tensor(0), dist.Categorical(torch.ones(3)))
        reward("reward_0", (action == 2).float())

    policy = Transposed()
    svi = SVI(program, follow(program, policy), pyro.optim.SGD({"lr": 0.1}), TrajectoryELBO())
    for _ in range(5):
        svi.step()
    assert list(pyro.get_param_store()) == ["policy$$$weight"]
    assert not torch.equal(policy.weight, torch.zeros(3, 2))


def test_frozen_parameters_are_left_alone():
    policy = TabularPolicy(1, 2, horizon=2).requires_grad_(False)
    follow(two_step, policy)()
    assert not list(pyro.get_param_store())


def test_plain_functions_register_nothing():
    follow(two_step, lambda state, t: dist.Categorical(torch.ones(2)))()
    assert not list(pyro.get_param_store())


@pytest.mark.parametrize("loss", [Trace_ELBO, TrajectoryELBO])
def test_torch_optimizers_see_the_policys_parameters(loss):
    policy = TabularPolicy(1, 2, horizon=2)
    module = loss()(two_step, follow(two_step, policy))
    assert [p for p in module.parameters() if p is policy.logits]
    assert len(list(module.parameters())) == 1
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    before = policy.logits.detach().clone()
    for _ in range(5):
        optimizer.zero_grad()
        module().backward()
        optimizer.step()
    assert not torch.equal(policy.logits, before)


def test_differentiable_loss_trains_by_torch_optim():
    """100 steps, seed 0."""
    policy = TabularPolicy(1, 2, horizon=2)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.1)
    elbo, guide = TrajectoryELBO(), follow(two_step, policy)
    for _ in range(100):
        optimizer.zero_grad()
        elbo.differentiable_loss(two_step, guide).backward()
        optimizer.step()
    assert (policy.logits.softmax(-1)[:, 0, 1] > 0.55).all()


# Bad input.


@pytest.mark.parametrize("prior", [0.5, None, torch.zeros(3), "uniform"])
def test_a_prior_that_is_no_distribution(prior):
    with pytest.raises(ValueError, match=r"act\('action_0'\): prior must be a Pyro distribution.*not \w+$"):
        act("action_0", torch.tensor(0), prior)


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, torch.tensor(0.0), torch.tensor([1.0, -2.0])])
def test_a_temperature_that_is_not_positive(temperature):
    with pytest.raises(ValueError, match=r"reward\('reward_3'\): temperature must be a number > 0"):
        reward("reward_3", 1.0, temperature)


@pytest.mark.parametrize("value", [math.nan, torch.tensor([0.0, math.nan])])
def test_a_reward_that_is_nan(value):
    with pytest.raises(ValueError, match=r"reward\('reward_3'\): the reward is NaN"):
        reward("reward_3", value)


@pytest.mark.parametrize("horizon", [-1, 2.0, True, None, "3"])
def test_a_horizon_that_is_no_number_of_steps(horizon):
    with pytest.raises(ValueError, match=r"steps: horizon must be an integer >= 0, got "):
        steps(horizon)


@pytest.mark.parametrize("discount", [-0.1, 1.1, math.nan, torch.tensor(2.0), torch.tensor([0.5, -0.5])])
def test_a_discount_outside_the_unit_interval(discount):
    with pytest.raises(ValueError, match=r"steps: discount must be in \[0, 1\], got"):
        steps(3, discount)


def test_an_unknown_rendering():
    with pytest.raises(ValueError, match=r"steps: rendering must be 'scaled' or 'survival', got 'both'"):
        steps(3, 0.9, "both")


def test_follow_without_a_policy():
    with pytest.raises(ValueError, match=r"follow: policy is missing; call follow\(program, policy\)"):
        follow(corridor)
    with pytest.raises(ValueError, match=r"follow: policy is missing"):
        follow()


def test_follow_with_what_cannot_be_called():
    with pytest.raises(ValueError, match=r"follow: policy must be a callable \(state, t\) -> Distribution, not 3"):
        follow(corridor, 3)
    with pytest.raises(ValueError, match=r"follow: policy must take \(state, t\), .*the program comes first"):
        follow(lambda state, t: dist.Bernoulli(0.5), lambda: None)
    with pytest.raises(ValueError, match=r"follow: program must be a callable, not int"):
        follow(3, table_policy)


class AroundANetwork(torch.nn.Linear):
    """Called with state and time, where its forward has one argument."""

    def __call__(self, state, t):
        return dist.Bernoulli(logits=super().__call__(state.reshape(-1, 1).float()).squeeze(-1))


def test_follow_takes_modules_that_are_called_in_their_own_way():
    follow(corridor, AroundANetwork(1, 1))
    hooked = torch.nn.Identity()
    hooked.register_forward_pre_hook(lambda module, given: given[:1])
    follow(corridor, hooked)


def test_a_policy_that_answers_with_no_distribution():
    with pytest.raises(ValueError, match=r"policy must return a distribution; at site 'action_0' it returned Tensor"):
        follow(corridor, lambda state, t: torch.ones(2))()
    assert not _PYRO_STACK


def test_a_policy_whose_actions_have_another_shape():
    def program():
        act("action_0", torch.zeros(3), dist.Normal(torch.zeros(2), 1.0).to_event(1))

    with pytest.raises(
        ValueError,
        match=r"policy's event_shape \(\) differs from the action prior's \(2,\) at site 'action_0'.*to_event",
    ):
        follow(program, lambda state, t: dist.Normal(torch.zeros(2), 1.0))()
