"""The problems of ``models``: they build, every reading works, and what their docstrings say is so."""

import doctest
import importlib
import math
from itertools import product

import gymnasium
import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate

import rl_as_inference as rlai
from rl_as_inference import exact, models
from rl_as_inference.guides import CategoricalPolicy, TabularPolicy, amortized_policy
from rl_as_inference.models import families
from rl_as_inference.processes.programs import as_process

F64 = torch.float64
PROGRAMS = ("corridor", "hidden_goal", "uncertain_slip")
TABULAR = (
    *("bandit", "cliff", "deep_sea", "frozen_lake", "gridworld", "procrastination", "random_mdp", "restaurants"),
    "river_swim",
)
BELIEFS = ("crying_baby", "food_truck", "machine_wear", "t_maze", "tiger")
HIDDEN = (*BELIEFS, "light_dark", "light_dark_linear")
PROCESSES = (*TABULAR, *HIDDEN, "double_integrator", "pendulum", "point_mass", "short_strings")


def make(name, **arguments):
    return getattr(models, name)(**arguments)


def enumerated(program, guide=None):
    """ELBO of a guide, or without one the log evidence, summed out by Pyro."""
    guide = (lambda: None) if guide is None else config_enumerate(guide)
    return -TraceEnum_ELBO(max_plate_nesting=0).loss(config_enumerate(program), guide)


def conditioned(program, **values):
    return poutine.condition(program, {name: torch.as_tensor(value) for name, value in values.items()})


def policy_for(name, **options):
    """A network policy for what the program shows."""
    spaces = {
        "corridor": gymnasium.spaces.Discrete(5),
        "hidden_goal": gymnasium.spaces.Box(-1, 1, (2,)),
        "uncertain_slip": gymnasium.spaces.Box(0, 1, (1,)),
    }
    policy = CategoricalPolicy(spaces[name], 2, horizon=8, hidden_sizes=(16,), **options)
    torch.nn.init.normal_(policy.network.layers[-1].weight, std=0.3)
    return policy


# All of them.


def test_every_problem_is_named_and_explained():
    assert sorted((*PROGRAMS, *PROCESSES)) == models.__all__
    for name in models.__all__:
        factory = getattr(models, name)
        assert factory.__name__ == name
        for part in ("Returns", "Source:", "Args:", "Raises:", "Example:"):
            assert part in factory.__doc__, (name, part)


@pytest.mark.parametrize("name", models.__all__)
def test_the_docstrings_example_is_real(name):
    result = doctest.testmod(importlib.import_module(f"rl_as_inference.models.{name}"))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", models.__all__)
def test_the_defaults_make_a_problem_that_can_be_rolled_out(name):
    problem = make(name)
    draws = as_process(problem).rollout(None, 5)
    assert draws.num_trajectories == 5
    assert draws.horizon == {"cliff": 50, "frozen_lake": 100, "random_mdp": 30}.get(name, draws.horizon)
    assert draws.log_weight().isfinite().all()
    torch.testing.assert_close(draws.log_policy, draws.log_prior)


@pytest.mark.parametrize("name", models.__all__)
def test_problems_live_on_one_device_in_one_type(name, device):
    problem = make(name, device=device, dtype=F64)
    draws = as_process(problem).rollout(None, 3)
    for tensor in (draws.states, draws.actions, draws.rewards, draws.log_prior, draws.mask):
        assert tensor.device.type == device.type
    assert draws.log_prior.dtype == draws.log_factors.dtype == F64


@pytest.mark.parametrize("name", models.__all__)
def test_a_guide_trains_on_every_problem(name):
    """The ELBO reading has a gradient that reaches the policy."""
    problem = make(name) if name == "short_strings" else make(name, horizon=4)
    if name in PROGRAMS:
        policy = policy_for(name)

        def model():
            with pyro.plate("trajectories", 64):
                problem()

        loss = rlai.TrajectoryELBO().differentiable_loss(model, rlai.follow(model, policy))
    else:
        policy = amortized_policy(problem, hidden_sizes=(8,))
        with torch.no_grad():
            for parameter in policy.parameters():  # away from the action prior, where it starts
                parameter.add_(0.3 * torch.randn_like(parameter))
        loss = rlai.TrajectoryELBO().differentiable_loss(problem, rlai.follow(problem, policy), 64)
    loss.backward()
    gradients = [p.grad for p in policy.parameters() if p.grad is not None]
    assert math.isfinite(float(loss.detach()))
    assert gradients
    assert all(g.isfinite().all() for g in gradients)
    assert sum(float(g.abs().sum()) for g in gradients) > 0


@pytest.mark.parametrize("name", TABULAR)
def test_the_exact_elbo_of_the_prior_is_that_of_its_rollouts(name):
    mdp = make(name, dtype=F64)
    estimate = rlai.estimate_elbo(mdp, None, 4000)
    assert abs(estimate.mean - float(exact.elbo(mdp, None))) < 4 * estimate.standard_error
    assert exact.elbo(mdp, None) < exact.optimal_elbo(mdp)
    gap = float(exact.log_evidence(mdp) - exact.optimal_elbo(mdp))
    if name in ("deep_sea", "procrastination", "restaurants"):  # nothing is luck there
        assert abs(gap) < 1e-9
    else:
        assert gap > 0


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("corridor", {"length": 1}, "length must be an integer >= 2"),
        ("corridor", {"slip": 1.5}, "slip must be a probability"),
        ("corridor", {"horizon": None}, "horizon must be an integer"),
        ("corridor", {"discount": 1.2}, "discount must be in"),
        ("corridor", {"temperature": 0.0}, "temperature must be"),
        ("hidden_goal", {"length": True}, "length must be an integer"),
        ("hidden_goal", {"start": 7}, "start must be a cell in 0 … 6"),
        ("hidden_goal", {"start": -1}, "start must be an integer >= 0"),
        ("hidden_goal", {"note_accuracy": math.nan}, "note_accuracy must be a finite number"),
        ("hidden_goal", {"horizon": 0}, "horizon must be"),
        ("uncertain_slip", {"length": 0}, "length must be"),
        ("uncertain_slip", {"slip_prior": (1.0, 0.0)}, "slip_prior must be"),
        ("uncertain_slip", {"slip_prior": (1.0,)}, "slip_prior must be"),
        ("uncertain_slip", {"fall_cost": -1.0}, "fall_cost must be >= 0"),
        ("random_mdp", {"num_states": 0}, "num_states must be"),
        ("random_mdp", {"num_actions": 2.0}, "num_actions must be"),
        ("random_mdp", {"temperature": -1}, "temperature must be"),
        ("gridworld", {"rows": 0}, "rows must be"),
        ("gridworld", {"rows": 1, "columns": 1}, "at least two cells"),
        ("gridworld", {"slip": -0.1}, "slip must be"),
        ("gridworld", {"goal": (5, 0)}, "goal: the cell \\(5, 0\\) is outside"),
        ("gridworld", {"walls": [(0, 0)]}, "walls: the cell \\(0, 0\\) is taken by 'S'"),
        ("gridworld", {"holes": [(1, 1)], "walls": [(1, 1)]}, "holes: the cell \\(1, 1\\) is taken by '#'"),
        ("gridworld", {"start": 3}, "start must be a pair of integers"),
        ("gridworld", {"walls": (1, 2)}, "walls must be a sequence of pairs of integers, got"),
        ("gridworld", {"layout": ["SG"], "walls": [(0, 1)]}, "layout says where everything is: leave out"),
        ("gridworld", {"layout": "SG"}, "layout must be a sequence of"),
        ("gridworld", {"layout": ["SF", "G"]}, "layout must be strings of one length, one a row, got lengths"),
        ("gridworld", {"layout": []}, "layout must be strings of one length"),
        ("gridworld", {"layout": ["SW", "FG"]}, "layout: 'W' is no cell; there are S start"),
        ("gridworld", {"layout": ["FF", "FG"]}, "layout needs a start, 'S'"),
        ("gridworld", {"layout": ["SF", "FF"]}, "layout needs a goal, 'G'"),
        ("point_mass", {"num_goals": 0}, "num_goals must be"),
        ("point_mass", {"noise": 0.0}, "noise must be a finite number > 0"),
        ("point_mass", {"width": math.inf}, "width must be a finite number"),
        ("point_mass", {"horizon": None}, "horizon must be"),
        ("cliff", {"slip": 2}, "slip must be"),
        ("cliff", {"fall_cost": -1.0}, "fall_cost must be"),
        ("frozen_lake", {"map_name": "9x9"}, "map_name must be '4x4' or '8x8'"),
        ("frozen_lake", {"horizon": -1}, "horizon must be"),
        ("deep_sea", {"size": 1}, "size must be an integer >= 2"),
        ("river_swim", {"length": 1}, "length must be an integer >= 2"),
        ("bandit", {"probabilities": ()}, "at least one arm"),
        ("bandit", {"probabilities": (0.5, 1.5)}, "probabilities must be a probability"),
    ],
)
def test_bad_arguments_are_named(name, arguments, words):
    with pytest.raises(ValueError, match=words):
        make(name, **arguments)


# Programs.


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_run_alone_in_plates_and_under_readings(name):
    program = make(name, discount=0.9)
    assert program() is None
    assert as_process(program).name == name
    for reading in (program, rlai.survival(program), rlai.simulate(program), rlai.follow(program, policy_for(name))):
        alone = poutine.trace(reading).get_trace()
        with pyro.plate("outer", 3, dim=-2), pyro.plate("inner", 4, dim=-1):
            batch = poutine.trace(reading).get_trace()
        for site in ("action_0", "action_7"):
            assert alone.nodes[site]["value"].shape == ()
            assert batch.nodes[site]["value"].shape == (3, 4)
        assert ("alive_3" in alone.nodes) == (reading is not program and "alive_3" in batch.nodes)
        batch.compute_log_prob()
        assert batch.log_prob_sum().isfinite()


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_have_the_sizes_asked_for(name):
    program = make(name, length=4, horizon=3)
    trace = poutine.trace(program).get_trace()
    assert [site for site in trace.nodes if site.startswith("action")] == ["action_0", "action_1", "action_2"]
    draws = as_process(program).rollout(lambda state, t: pyro.distributions.Categorical(torch.eye(2)[1]), 50)
    assert draws.horizon == 3
    assert draws.states.dtype == (torch.long if name == "corridor" else torch.float32)


def corridor_tables(length, slip, **options):
    """The corridor in parts, written independently."""
    transition = torch.zeros(length, 2, length, dtype=F64)
    for s in range(length):
        left, right = max(s - 1, 0), min(s + 1, length - 1)
        for a, (meant, other) in enumerate(((left, right), (right, left))):
            transition[s, a, meant] += 1 - slip
            transition[s, a, other] += slip
    reward = torch.zeros(length, 2, dtype=F64)
    reward[-1] = 1.0
    start = torch.eye(length, dtype=F64)[0]
    return rlai.TabularMDP(transition, reward, start, **options)


@pytest.mark.parametrize(("slip", "discount"), [(0.1, 0.95), (0.3, 1.0), (0.0, 0.8), (1.0, 0.5)])
def test_the_corridor_is_its_tables(slip, discount):
    options = {"horizon": 4, "discount": discount, "temperature": 0.5}
    program = models.corridor(length=3, slip=slip, dtype=F64, **options)
    mdp = corridor_tables(3, slip, **options)
    assert enumerated(rlai.survival(program)) == pytest.approx(float(exact.log_evidence(mdp)), abs=1e-9)
    policy = TabularPolicy(3, 2, horizon=4).double()
    torch.nn.init.normal_(policy.logits)
    elbo = enumerated(program, rlai.follow(program, policy))
    assert elbo == pytest.approx(float(exact.elbo(mdp, policy).detach()), abs=1e-9)


def hidden_goal_joint(length, start, horizon, accuracy, temperature):
    """Returns ``p(goal, note, a_0, O)`` of every case, by walking every walk."""
    joint = np.zeros((2, 2, 2))
    for goal, note in product(range(2), range(2)):
        for actions in product((0, 1), repeat=horizon):
            position, earned = start, 0
            for action in actions:
                position = min(max(position + 2 * action - 1, 0), length - 1)
                earned += position == (length - 1) * goal
            weight = math.exp(earned / temperature) / 2**horizon
            joint[goal, note, actions[0]] += 0.5 * (accuracy if note == goal else 1 - accuracy) * weight
    return joint


@pytest.mark.parametrize(("start", "accuracy"), [(1, 0.8), (2, 0.5), (0, 1.0)])
def test_the_posterior_over_the_hidden_goal_is_that_of_every_walk(start, accuracy):
    program = models.hidden_goal(length=5, start=start, horizon=6, note_accuracy=accuracy, dtype=F64)
    joint = hidden_goal_joint(5, start, 6, accuracy, 1.0)
    assert enumerated(program) == pytest.approx(math.log(joint.sum()), abs=1e-9)
    for goal, note, action in product(range(2), range(2), range(2)):
        if joint[goal, note, action] > 0:
            found = enumerated(conditioned(program, goal=goal, note=note, action_0=action))
            assert found == pytest.approx(math.log(joint[goal, note, action]), abs=1e-9)


def right_given(program, **known):
    """``p(goal = right | O, known)``."""
    right, left = (enumerated(conditioned(program, goal=goal, **known)) for goal in (1, 0))
    return 1 / (1 + math.exp(left - right))


def test_hidden_goal_wishful_thinking_and_inverse_planning():
    program = models.hidden_goal(dtype=F64)
    wished = right_given(program)
    assert wished < 0.2
    told = right_given(program, note=1)
    assert wished < told < 0.8, "optimality pulls what a note of accuracy 0.8 says towards the nearer door"
    shown = [right_given(program, **{f"action_{t}": 1 for t in range(n)}) for n in range(4)]
    assert shown == sorted(shown)
    assert shown[3] > 0.9
    assert right_given(models.hidden_goal(start=3, dtype=F64)) == pytest.approx(0.5)
    worthless = models.hidden_goal(note_accuracy=0.5, dtype=F64)
    assert right_given(worthless, note=1) == pytest.approx(right_given(worthless), abs=1e-9)


def test_a_guide_leaves_the_hidden_goal_alone():
    draws = as_process(models.hidden_goal()).rollout(policy_for("hidden_goal"), 4000)
    assert abs(float(draws.latents["goal"].float().mean()) - 0.5) < 4 * 0.5 / 4000**0.5
    agrees = (draws.latents["note"] == draws.latents["goal"]).float().mean()
    assert abs(float(agrees) - 0.8) < 4 * 0.4 / 4000**0.5
    assert draws.states.shape == (8, 4000, 2)
    assert draws.states.abs().max() <= 1


def test_the_slip_given_its_tosses_is_a_beta():
    """``Beta(a + Σ slick, b + Σ (1 - slick))``, optimality or not; 200,000 draws of the prior, weighted."""
    tosses = [1, 0, 0, 1, 0, 0, 0, 0]
    count = 200_000
    program = models.uncertain_slip(dtype=F64)

    def batch():
        with pyro.plate("draws", count):
            program()

    data = {f"slick_{t}": torch.full((count,), float(toss), dtype=F64) for t, toss in enumerate(tosses)}
    trace = poutine.trace(poutine.condition(batch, data)).get_trace()
    trace.compute_log_prob()
    observed = [site for site in trace.nodes.values() if site["type"] == "sample" and site["is_observed"]]
    assert len(observed) == 16, "eight tosses and eight rewards"
    weight = torch.softmax(sum(site["log_prob"] for site in observed), 0)
    slip = trace.nodes["slip"]["value"]
    a, b = 2.0 + sum(tosses), 4.0 + len(tosses) - sum(tosses)
    for value, expected in ((slip, a / (a + b)), (slip.square(), a * (a + 1) / ((a + b) * (a + b + 1)))):
        mean = (weight * value).sum()
        error = (weight.square() * (value - mean).square()).sum().sqrt()
        assert abs(float(mean) - expected) < 4 * float(error)


def crossing_tables(slip, temperature, horizon, length):
    """The crossing in parts, for a known slip; rewards on arrival."""
    transition = torch.zeros(length + 1, 2, length + 1, dtype=F64)
    reward = torch.zeros_like(transition)
    for s in range(length + 1):
        outcomes = [(0, 1.0, min(s + 1, length)), (1, 1 - slip, min(s + 2, length))]
        outcomes.append((1, slip, s if s < length else length))
        for action, probability, after in outcomes:
            transition[s, action, after] += probability
            reward[s, action, after] = 1.0 if after == length else 0.0
        if s < length:
            reward[s, 1, s] = -0.5
    start = torch.eye(length + 1, dtype=F64)[0]
    return rlai.TabularMDP(transition, reward, start, horizon=horizon, temperature=temperature)


@pytest.mark.parametrize("slip", [0.1, 0.6])
def test_the_crossing_of_known_ice_is_its_tables(slip):
    program = models.uncertain_slip(length=3, horizon=4, temperature=0.4, dtype=F64)
    prior = torch.distributions.Beta(torch.tensor(2.0, dtype=F64), torch.tensor(4.0, dtype=F64))
    expected = prior.log_prob(torch.tensor(slip, dtype=F64)) + exact.log_evidence(crossing_tables(slip, 0.4, 4, 3))
    found = enumerated(conditioned(program, slip=torch.tensor(slip, dtype=F64)))
    assert found == pytest.approx(float(expected), abs=1e-9)


def test_the_crossing_is_believed_safer_given_success():
    """Evidence and posterior mean of the slip against quadrature over exact tables; 100,000 draws."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    slips = torch.as_tensor((nodes + 1) / 2)
    density = torch.distributions.Beta(torch.tensor(2.0, dtype=F64), torch.tensor(4.0, dtype=F64)).log_prob(slips)
    given = torch.stack([exact.log_evidence(crossing_tables(s, 0.5, 8, 8)) for s in slips])
    joint = torch.as_tensor(weights / 2) * (density + given).exp()
    evidence, believed = joint.sum().log(), (joint * slips).sum() / joint.sum()

    draws = as_process(models.uncertain_slip(dtype=F64)).rollout(None, 100_000)
    log_weight = draws.log_weight()
    weight = log_weight.softmax(0)
    error = (weight.square().sum() - 1 / len(weight)).sqrt()
    assert abs(float(torch.logsumexp(log_weight, 0) - math.log(len(weight)) - evidence)) < 4 * float(error)
    slip = draws.latents["slip"]
    mean = (weight * slip).sum()
    error = (weight.square() * (slip - mean).square()).sum().sqrt()
    assert abs(float(mean - believed)) < 4 * float(error)
    assert believed < 0.25 < 1 / 3, "the prior mean is 1/3"


# Processes.


def test_a_random_mdp_is_the_same_in_every_type():
    double, single = models.random_mdp(dtype=F64), models.random_mdp()
    torch.testing.assert_close(double.kernel.probabilities.float(), single.kernel.probabilities)
    torch.testing.assert_close(double.reward_table.float(), single.reward_table)
    assert not torch.equal(models.random_mdp(seed=1).reward_table, single.reward_table)
    assert (double.num_states, double.num_actions, double.horizon) == (25, 4, 30)
    assert single.kernel.probabilities.dtype == torch.float32


def test_a_gridworld_moves_as_it_says():
    rows, columns, slip = 3, 4, 0.2
    grid = models.gridworld(rows, columns, slip=slip, walls=[(1, 1)], holes=[(0, 3)], goal=(2, 2), dtype=F64)
    assert ["".join(row) for row in grid.layout] == ["SFFH", "F#FF", "FFGF"]
    expected = torch.zeros(12, 4, 12, dtype=F64)
    for row, column, action in product(range(rows), range(columns), range(4)):
        here = row * columns + column
        letter = grid.layout[row, column]
        for meant, (down, right) in enumerate(((0, -1), (1, 0), (0, 1), (-1, 0))):
            to = (min(max(row + down, 0), rows - 1), min(max(column + right, 0), columns - 1))
            stuck = letter in "#GH" or grid.layout[to] == "#"
            there = here if stuck else to[0] * columns + to[1]
            expected[here, action, there] += slip / 5 + (1 - slip) * (meant == action)
        expected[here, action, here] += slip / 5
    everywhere = torch.arange(12)[:, None].expand(12, 4)
    indices, probabilities = grid.kernel.successors(everywhere, torch.arange(4).expand(12, 4))
    assert indices.shape == (12, 4, 5)
    torch.testing.assert_close(torch.zeros(12, 4, 12, dtype=F64).scatter_add(2, indices, probabilities), expected)
    goal = grid.layout.ravel() == "G"
    torch.testing.assert_close(grid.reward_table, torch.as_tensor(goal, dtype=F64)[:, None].expand(12, 4))
    assert grid.terminal.tolist() == (grid.layout.ravel() == "H").tolist()


def test_a_gridworld_is_read_from_a_map():
    options = {"slip": 0.2, "horizon": 6, "dtype": F64}
    by_cells = models.gridworld(2, 4, walls=[(0, 2)], holes=[(1, 1)], goal=(0, 3), **options)
    by_map = models.gridworld(layout=["S.#G", "FH.F"], **options)
    assert (by_map.layout == by_cells.layout).all()
    torch.testing.assert_close(exact.plan(by_map).soft_q, exact.plan(by_cells).soft_q)
    # One step from each of two starts, each beside a goal of its own.
    two = models.gridworld(layout=["SG#GS"], slip=0.0, horizon=2, temperature=1e-3, dtype=F64)
    assert two.initial().probs.tolist() == [0.5, 0.0, 0.0, 0.0, 0.5]
    torch.testing.assert_close(exact.occupancy(two, exact.plan(two))[1, [1, 3]], torch.full((2,), 0.5, dtype=F64))


def test_a_gridworld_earns_by_early_arrival_and_never_enters_a_wall():
    grid = models.gridworld(4, 4, horizon=9, slip=0.0, walls=[(0, 2), (1, 2)], temperature=0.01, dtype=F64)
    plan = exact.plan(grid)
    # Six steps lead to the goal, which then pays for three.
    assert float(exact.expected_return(grid, plan)) == pytest.approx(3.0, abs=1e-6)
    occupancy = exact.occupancy(models.gridworld(4, 4, slip=0.5, walls=[(0, 2), (1, 2)], dtype=F64), None)
    assert float(occupancy[:, [2, 6]].sum()) == 0.0
    # Without luck the two posteriors are one.
    torch.testing.assert_close(plan.objective, exact.log_evidence(grid))
    forever = models.gridworld(horizon=None, discount=0.9, dtype=F64)
    assert exact.plan(forever).soft_v[-1] == pytest.approx(10.0)


def test_a_million_cells():
    """One backward step on 1,000 by 1,000 cells against the formula, by gathering."""
    grid = models.gridworld(1000, 1000, slip=0.1, walls=[(row, 500) for row in range(0, 900)])
    assert grid.num_states == 1_000_000
    soft_v = torch.rand(grid.num_states)
    causal_v, causal_q = exact.backward_step(grid, soft_v)
    posterior_v, posterior_q = exact.backward_step(grid, soft_v, "posterior")

    some = torch.randint(grid.num_states, (2000,))
    some[:4] = torch.tensor([0, 999, 999_000, 999_999])
    indices, probabilities = grid.kernel.successors(some[:, None], torch.arange(4))
    reward = grid.reward_table[some]
    q = reward + (probabilities * soft_v[indices]).sum(-1)
    torch.testing.assert_close(causal_q[some], q)
    torch.testing.assert_close(causal_v[some], 0.5 * (q / 0.5).exp().mean(-1).log(), rtol=1e-5, atol=1e-6)
    q = reward + 0.5 * (probabilities * (soft_v[indices] / 0.5).exp()).sum(-1).log()
    torch.testing.assert_close(posterior_q[some], q, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(posterior_v[some], 0.5 * (q / 0.5).exp().mean(-1).log(), rtol=1e-5, atol=1e-6)


def test_the_cliff_without_slip_is_gymnasiums():
    mine = models.cliff(slip=0.0, dtype=F64)
    theirs = rlai.TabularMDP.from_gymnasium("CliffWalking-v1", horizon=50, dtype=F64)
    assert mine.layout[-1, 0] == theirs.layout[-1, 0] == "S"
    assert mine.terminal.tolist() == theirs.terminal.tolist()
    everywhere, actions = torch.arange(48)[:, None], torch.arange(4)
    walked = torch.as_tensor(mine.layout.ravel() == "F")
    walked[36] = True
    arrivals = mine.kernel.probabilities.argmax(-1)
    dry = walked[:, None] & ~torch.as_tensor(mine.layout.ravel() == "C")[arrivals]
    torch.testing.assert_close(theirs.kernel.probabilities.argmax(-1)[dry], arrivals[dry])
    earned = [mdp.reward(everywhere.expand(48, 4), actions.expand(48, 4), arrivals)[dry] for mdp in (mine, theirs)]
    torch.testing.assert_close(earned[0], earned[1])
    torch.testing.assert_close(exact.optimal_elbo(mine), exact.optimal_elbo(theirs))
    assert float(mine.reward(torch.tensor(36), torch.tensor(1), torch.tensor(37))) == -100


def test_on_the_cliff_the_exact_posterior_walks_the_edge():
    mdp = models.cliff(dtype=F64)
    causal, posterior = exact.plan(mdp), exact.plan(mdp, "posterior")
    edge = slice(25, 35)
    kept, walked = exact.occupancy(mdp, causal), exact.posterior_occupancy(mdp)
    assert float(walked[:20, edge].sum(1).mean()) > 0.3 > 0.1 > float(kept[:20, edge].sum(1).mean())
    assert float(exact.expected_return(mdp, causal)) > -30
    assert float(exact.expected_return(mdp, posterior)) < -100
    assert float(exact.posterior_return(mdp)) > -20


def test_the_log_evidence_of_the_cliff_ignores_the_slip():
    values = [float(exact.log_evidence(models.cliff(slip=slip, dtype=F64))) for slip in (0.0, 0.3, 1.0)]
    assert values == pytest.approx([values[0]] * 3, abs=1e-9)


def test_the_frozen_lake_has_the_known_answers():
    lake = models.frozen_lake(dtype=F64)
    causal, posterior = exact.plan(lake), exact.plan(lake, "posterior")
    assert float(causal.objective) == pytest.approx(51.75, abs=0.005)
    assert float(posterior.objective) == pytest.approx(193.65, abs=0.005)
    assert float(exact.expected_return(lake, causal)) == pytest.approx(0.54, abs=0.005)
    assert float(exact.expected_return(lake, posterior)) == pytest.approx(0.006, abs=0.0005)


def test_a_point_mass_has_goals_on_a_circle():
    process = models.point_mass(num_goals=3, dtype=F64)
    torch.testing.assert_close(process.goals.norm(dim=-1), torch.ones(3, dtype=F64))
    state = torch.tensor([[0.0, 0.0], [0.3, -0.2]], dtype=F64)
    action = torch.tensor([[1.0, -1.0], [0.0, 0.5]], dtype=F64)
    step = process.transition(state, action)
    torch.testing.assert_close(step.mean, state + 0.25 * action)
    rewards = process.reward(state, action, process.goals[:2])
    crosstalk = sum(math.exp(-3 / (2 * 0.3**2)) for _ in range(2))
    torch.testing.assert_close(rewards, torch.full((2,), 1 + crosstalk, dtype=F64))


def test_a_point_mass_is_differentiable_through_its_dynamics():
    process = models.point_mass(horizon=3, dtype=F64)
    push = torch.zeros(2, dtype=F64, requires_grad=True)

    def earned(push):
        torch.manual_seed(0)

        def policy(state, t):
            return pyro.distributions.Normal((push + state).tanh(), 1e-3).to_event(1)

        return process.rollout(policy, 4, pathwise=True).rewards.sum()

    (gradient,) = torch.autograd.grad(earned(push), push)
    for axis in range(2):
        bump = torch.eye(2, dtype=F64)[axis] * 1e-5
        numeric = (earned(bump) - earned(-bump)) / 2e-5
        assert float(gradient[axis]) == pytest.approx(float(numeric.detach()), rel=1e-5)


def test_a_trained_guide_shares_itself_out_among_the_goals_or_settles_for_one():
    """At the default temperature every goal keeps walks of its own; at half of it one takes nearly all."""
    shares = {}
    for temperature in (0.5, 0.25):
        process = models.point_mass(temperature=temperature)
        policy = amortized_policy(process, hidden_sizes=(32, 32))
        rlai.fit(process, policy, steps=80, num_trajectories=128, learning_rate=0.03, seed=0)
        last = process.rollout(policy, 2000).states[-1]
        distance, nearest = (last[:, None] - process.goals).norm(dim=-1).min(-1)
        shares[temperature] = torch.bincount(nearest[distance < 0.5], minlength=4) / 2000
    assert shares[0.5].min() > 0.03
    assert shares[0.25].max() > 0.9


# Problems with families.


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_one_way_of_all_leads_to_the_treasure_of_a_deep_sea(seed):
    sea, cell = models.deep_sea(4, mapping_seed=seed, dtype=F64), torch.zeros(1, dtype=torch.long)
    found = []
    for actions in product((0, 1), repeat=4):
        state, total, columns = cell, 0.0, []
        for t, action in enumerate(actions):
            step = sea.advance(state, torch.tensor([action]), t)
            state, total = step.next_state, total + float(step.reward)
            columns.append(int(state) % 4)
        found.append(total)
        right = sum(after > before or after == 3 for before, after in zip([0, *columns], columns, strict=False))
        assert total == pytest.approx((total > 0.5) - 0.0025 * right)
    assert sorted(found)[-2:] == pytest.approx([0.0, 0.99])
    assert bool((sea.reward_table[:, 0] < 0).any()) == (seed is not None)


def test_the_river_has_its_known_answers():
    river = models.river_swim(dtype=F64)
    torch.testing.assert_close(river.kernel.dense()[0, 1, :2], torch.tensor([0.4, 0.6], dtype=F64))
    torch.testing.assert_close(river.kernel.dense()[5, 1, 4:], torch.tensor([0.4, 0.6], dtype=F64))
    forever = models.river_swim(horizon=None, discount=0.999, dtype=F64).at_temperature(1e-6)
    # Whoever always swims right is in the last pool that often, in the long run.
    often = torch.linalg.matrix_power(river.kernel.dense()[:, 1], 10_000)[0, 5]
    best = float(exact.expected_return(forever, exact.plan(forever)))
    assert best * 0.001 == pytest.approx(float(often), abs=0.01)


@pytest.mark.parametrize("name", families.__all__)
def test_a_family_draws_processes_with_the_spaces_of_its_problem(name):
    family, problem = getattr(families, name)(dtype=F64), make(name, dtype=F64)
    pyro.set_rng_seed(0)
    drawn = family()
    assert (drawn.state_space, drawn.action_space) == (problem.state_space, problem.action_space)
    assert drawn.horizon == problem.horizon
    supported = drawn.kernel.dense() > 0
    assert bool(supported[problem.kernel.dense() > 0].all())
    assert torch.equal(drawn.initial_probabilities, problem.initial_probabilities)


def test_bad_families_are_refused():
    for name, arguments, words in [
        ("deep_sea", {"size": 1}, "size must be"),
        ("deep_sea", {"concentration": 0.0}, "concentration must be > 0"),
        ("deep_sea", {"reach": 0}, "reach must be an integer >= 1"),
        ("river_swim", {"scale": -1.0}, "scale must be > 0"),
        ("bandit", {"num_arms": 0}, "num_arms must be"),
        ("bandit", {"prior": (1.0, 0.0)}, "prior must be the two parameters"),
    ]:
        with pytest.raises(ValueError, match=words):
            getattr(families, name)(**arguments)


# pendulum


def test_pendulum_is_gymnasiums_own():
    process = models.pendulum(dtype=F64)
    env = gymnasium.make("Pendulum-v1").unwrapped
    env.reset(seed=0)
    random = np.random.default_rng(0)
    angle, speed = env.state
    state = torch.tensor([[math.cos(angle), math.sin(angle), speed]], dtype=F64)
    for t in range(300):  # through the bottom and at full speed
        action = random.uniform(-1, 1, 1)
        step = process.advance(state, torch.as_tensor(action)[None], t)
        _, reward, *_ = env.step(2 * action)
        angle, speed = env.state
        torch.testing.assert_close(step.reward[0], torch.tensor(reward, dtype=F64), rtol=0, atol=1e-9)
        seen = torch.tensor([math.cos(angle), math.sin(angle), speed], dtype=F64)
        torch.testing.assert_close(step.next_state[0], seen, rtol=0, atol=1e-9)
        state = step.next_state


def test_pendulum_starts_anywhere_on_the_circle_with_the_density_of_angle_and_speed():
    start = models.pendulum(dtype=F64).initial()
    torch.manual_seed(0)
    draws = start.sample((40_000,))
    angles = torch.atan2(draws[:, 1], draws[:, 0])
    # Uniform angles and speeds, 40,000 draws: means and second moments, in standard errors.
    for values, half in ((angles, math.pi), (draws[:, 2], 1.0)):
        assert abs(float(values.mean())) * 200 / (half / math.sqrt(3)) < 4
        assert abs(float(values.square().mean()) - half**2 / 3) * 200 / (half**2 * math.sqrt(4 / 45)) < 4
    inside, outside = torch.tensor([1.0, 0.0, 0.5], dtype=F64), torch.tensor([1.0, 0.0, 1.5], dtype=F64)
    assert float(start.log_prob(inside)) == pytest.approx(-math.log(4 * math.pi))
    assert float(start.log_prob(outside)) == -math.inf
