"""The problems of ``models`` whose state is hidden: their tables, and what is known of their best plans."""

import math
from functools import cache

import pyro.distributions as dist
import pytest
import torch

import rl_as_inference as rlai
from rl_as_inference import History, exact, models
from rl_as_inference.models.crying_baby import FEED, IGNORE, SING
from rl_as_inference.models.machine_wear import EXAMINE, INSPECT, MANUFACTURE, REPLACE
from rl_as_inference.models.t_maze import CUE, LEFT, RIGHT, START
from rl_as_inference.models.tiger import LISTEN, OPEN_LEFT, OPEN_RIGHT
from rl_as_inference.sampling.particle_filter import ParticleFilter

F64 = torch.float64
BELIEFS = ("crying_baby", "machine_wear", "t_maze", "tiger")
COLD = 0.005


def best_of(pomdp, horizon):
    """The unsoftened belief recursion, in plain numbers: returns V(belief, steps left) and what is best there."""
    mdp = pomdp.fully_observed
    transition, reward = mdp.kernel.dense().tolist(), mdp.expected_reward().tolist()
    seen, discount = pomdp.observation_by_action.tolist(), float(pomdp.discount)
    states, actions = range(pomdp.num_states), range(pomdp.num_actions)

    @cache
    def values(belief, left):
        answer = []
        for a in actions:
            value = sum(belief[s] * reward[s][a] for s in states)
            after = [sum(belief[s] * transition[s][a][z] for s in states) for z in states]
            for y in range(pomdp.num_observations if left > 1 else 0):
                joint = [after[z] * seen[a][z][y] for z in states]
                if (mass := sum(joint)) > 0:
                    value += discount * mass * max(values(tuple(round(x / mass, 12) for x in joint), left - 1))
            answer.append(value)
        return answer

    return values


def test_the_tiger_has_its_published_plan():
    """Kaelbling et al. 1998: with one step left a door is opened beyond 0.9; with two, listening comes first."""
    one, two = (exact.plan(models.tiger(horizon=t, temperature=0.01, dtype=F64)) for t in (1, 2))

    def probabilities(plan, left):
        return plan(torch.tensor([left, 1 - left], dtype=F64), 0).probs

    rules = [int(probabilities(one, b).argmax()) for b in (0.0, 0.09, 0.11, 0.89, 0.91)]
    assert rules == [OPEN_LEFT, OPEN_LEFT, LISTEN, LISTEN, OPEN_RIGHT]
    assert all(float(probabilities(two, b)[LISTEN]) > 0.99 for b in (0.025, 0.3, 0.5, 0.975))


def test_the_tiger_listens_until_one_side_is_two_growls_ahead():
    values = best_of(models.tiger(dtype=F64), 8)
    after = {net: 1 / (1 + (0.85 / 0.15) ** net) for net in range(-2, 3)}  # p(tiger left) after growls right - left
    for net, left in after.items():
        q = values((left, 1 - left), 1)
        wanted = LISTEN if abs(net) < 2 else OPEN_LEFT if net > 0 else OPEN_RIGHT
        assert q.index(max(q)) == wanted
    plan = exact.plan(models.tiger(horizon=3, temperature=COLD, dtype=F64))
    for growls, wanted in (([0, 0], OPEN_RIGHT), ([0, 1], LISTEN), ([1, 1], OPEN_LEFT)):
        seen = History(batch_shape=(1,))
        for growl in growls:
            seen = seen.then(torch.tensor([LISTEN]), torch.tensor([growl]))
        assert int(plan(seen, 2).probs.argmax()) == wanted


@pytest.mark.parametrize(("name", "horizon"), [("tiger", 5), ("crying_baby", 5), ("machine_wear", 5), ("t_maze", 3)])
def test_a_cold_plan_is_the_best_one(name, horizon):
    """At a small temperature the soft values are those of the recursion without one, and so is every sure choice."""
    pomdp = getattr(models, name)(horizon=horizon, temperature=COLD, dtype=F64)
    plan, values = exact.plan(pomdp), best_of(pomdp, horizon)
    slack = horizon * COLD * math.log(pomdp.num_actions)
    for t, (beliefs, soft) in enumerate(zip(plan.beliefs, plan.soft_v, strict=True)):
        for belief, value, policy in zip(beliefs.tolist(), soft.tolist(), plan.log_policy[t].exp(), strict=True):
            q = values(tuple(round(x, 12) for x in belief), horizon - t)
            assert max(q) - slack - 1e-9 <= value <= max(q) + 1e-9
            assert q[int(policy.argmax())] >= max(q) - slack - 1e-9


@pytest.mark.parametrize("name", BELIEFS)
def test_the_exact_elbo_is_that_of_rollouts_and_bounded_by_the_seen_state(name):
    pomdp = getattr(models, name)(horizon=4, dtype=F64)
    plan = exact.plan(pomdp)
    estimate = rlai.estimate_elbo(pomdp, plan, 4000)
    assert abs(estimate.mean - float(plan.objective)) < 4 * estimate.standard_error + 1e-9
    seen = exact.optimal_elbo(pomdp.fully_observed)
    assert exact.elbo(pomdp, None) < plan.objective < seen <= exact.log_evidence(pomdp) + 1e-9


def test_the_crying_baby_is_fed_when_it_is_probably_hungry():
    """One step of feeding at -5 saves the -10 of the next: worth it from some belief on, and singing tells where."""
    baby = models.crying_baby(temperature=COLD, dtype=F64)
    mdp = baby.fully_observed
    torch.testing.assert_close(mdp.kernel.dense()[:, FEED, 0], torch.ones(2, dtype=F64))
    torch.testing.assert_close(mdp.kernel.dense()[0, SING], torch.tensor([0.9, 0.1], dtype=F64))
    torch.testing.assert_close(
        mdp.expected_reward(), torch.tensor([[-5.0, 0.0, -0.5], [-15.0, -10.0, -10.5]], dtype=F64)
    )
    assert baby.observation_table[:, :, 1].tolist() == [[0.1, 0.8], [0.1, 0.8], [0.0, 0.9]]
    plan = exact.plan(baby)
    rules = [int(plan(torch.tensor([1 - b, b], dtype=F64), 0).probs.argmax()) for b in (0.0, 0.2, 1.0)]
    assert rules[0] == IGNORE
    assert rules[-1] == FEED
    once = models.crying_baby(horizon=1, dtype=F64)
    for heard, hungry in ((0, 0.055 / 0.505), (1, 1.0)):  # who cries to a song is hungry for sure
        after = exact.belief(once, torch.tensor([heard]), torch.tensor([SING]))[-1]
        assert after.tolist() == pytest.approx([1 - hungry, hungry])


def test_the_machine_is_that_of_smallwood_and_sondik():
    machine = models.machine_wear(dtype=F64)
    mdp = machine.fully_observed
    worn = torch.tensor([[0.81, 0.18, 0.01], [0.0, 0.9, 0.1], [0.0, 0.0, 1.0]], dtype=F64)
    torch.testing.assert_close(mdp.kernel.dense()[:, MANUFACTURE], worn)
    torch.testing.assert_close(mdp.kernel.dense()[:, EXAMINE], worn)
    assert mdp.kernel.dense()[:, (INSPECT, REPLACE), 0].eq(1).all()
    wanted = [[0.9025, 0.6525, -0.5, -2.0], [0.475, 0.225, -1.5, -2.0], [0.25, 0.0, -2.5, -2.0]]
    torch.testing.assert_close(mdp.expected_reward(), torch.tensor(wanted, dtype=F64))
    assert machine.observation_table[EXAMINE, :, 0].tolist() == [1.0, 0.5, 0.25]
    three = models.machine_wear(parts=3, horizon=3, dtype=F64)
    torch.testing.assert_close(three.fully_observed.kernel.dense().sum(-1), torch.ones(4, 4, dtype=F64))


def test_a_new_machine_manufactures_and_a_worn_one_is_opened():
    plan = exact.plan(models.machine_wear(horizon=8, temperature=COLD, dtype=F64))

    def rule(*belief):
        return int(plan(torch.tensor(belief, dtype=F64), 0).probs.argmax())

    assert rule(1.0, 0.0, 0.0) == MANUFACTURE
    assert rule(0.0, 1.0, 0.0) == INSPECT
    assert rule(0.0, 0.0, 1.0) == REPLACE, "opening it costs more than what it would save"


def test_the_t_maze_keeps_who_is_in_an_arm():
    maze = models.t_maze(reward_probability=0.9, cue_validity=0.8, win=2.0, loss=-3.0, dtype=F64)
    table = maze.fully_observed.kernel.dense().reshape(4, 2, 4, 4, 2)
    for place, context, action in ((p, c, a) for p in range(4) for c in range(2) for a in range(4)):
        there = place if place in (LEFT, RIGHT) else action
        assert table[place, context, action, there, context] == 1
    seen = maze.observation_table.reshape(4, 2, 7)
    assert seen[CUE, 1].tolist() == pytest.approx([0, 0, 0, 0, 0, 0.2, 0.8])
    assert seen[LEFT, 0].tolist() == pytest.approx([0, 0.9, 0.1, 0, 0, 0, 0])
    assert seen[RIGHT, 0].tolist() == pytest.approx([0, 0, 0, 0.1, 0.9, 0, 0])
    here = torch.tensor([2 * START])
    earned = [float(maze.reward(here, here, torch.tensor([2 * arm]))) for arm in (LEFT, RIGHT)]
    assert earned == pytest.approx([0.9 * 2 - 0.1 * 3, 0.1 * 2 - 0.9 * 3])


@pytest.mark.parametrize(
    ("arguments", "cue_first"),
    [
        ({}, True),
        ({"loss": 0.0}, False),  # two blind payments of 1/2 are more than one of 0.98
        ({"loss": 0.0, "horizon": 3}, True),
        ({"cue_validity": 0.5, "loss": 0.0, "horizon": 3}, False),  # it says nothing
    ],
)
def test_the_cue_is_read_first_where_it_is_worth_it(arguments, cue_first):
    maze = models.t_maze(temperature=COLD, dtype=F64, **arguments)
    plan = exact.plan(maze)
    first = plan(maze.fully_observed.initial_probabilities, 0).probs
    assert (float(first[CUE]) > 0.99) == cue_first
    assert (float(first[CUE]) < 0.5) == (not cue_first)
    if cue_first:
        for cue, arm in ((5, LEFT), (6, RIGHT)):
            told = History(torch.tensor([[0]])).then(torch.tensor([CUE]), torch.tensor([cue]))
            assert float(plan(told, 1).probs[0, arm]) > 0.99


def test_it_is_light_at_the_light():
    plane = models.light_dark(dtype=F64)
    places = torch.tensor([[5.0, 0.0], [2.0, 2.0], [0.0, 0.0]], dtype=F64)
    assert plane.observation(places, None).base_dist.variance[:, 1].tolist() == pytest.approx([0.01, 4.51, 12.51])
    torch.manual_seed(0)
    filters = ParticleFilter(plane, 4000)
    state = torch.tensor([[1.0, 1.0]], dtype=F64)
    belief = filters.start(plane.observation(state, None).sample())
    spread = [float(belief.variance[0, 0])]
    for _ in range(2):
        action = torch.tensor([[1.0, 0.0]], dtype=F64)
        state = state + 2 * action
        belief = filters.move(belief, action, plane.observation(state, action).sample())
        spread.append(float(belief.variance[0, 0]))
    assert spread[0] > spread[1] > spread[2]
    assert spread[2] < 0.3
    assert float((belief.mean - state).abs().max()) < 1.0


def by_way_of(x, steps):
    """Walks to ``x`` for some steps and home from there, from the mean of what was seen, sharpest looks foremost."""

    def policy(seen, t):
        where = torch.full(seen.latest.shape, 2.0, dtype=F64)
        precision = torch.full(seen.latest.shape[:-1], 1 / 5, dtype=F64)[..., None]
        for prefix in seen.prefixes():
            where = where if prefix.action is None else where + 2 * prefix.action
            sharp = 1 / (0.01 + ((where[..., :1] - 5).square() + 1 / precision) / 2)
            where = (precision * where + sharp * prefix.observation) / (precision + sharp)
            precision = precision + sharp
        goal = torch.tensor([x, 0.0], dtype=F64) if t < steps else torch.zeros(2, dtype=F64)
        mean = ((goal - where) / 2).clamp(-0.99, 0.99)
        return dist.Uniform(mean - 0.01, mean + 0.01).to_event(1)

    return policy


def test_the_way_home_leads_by_the_light():
    plane = models.light_dark(dtype=F64)
    torch.manual_seed(0)
    straight, round_about = (plane.rollout(by_way_of(x, steps), 400) for x, steps in ((0.0, 0), (5.0, 4)))
    missed = [float(draws.states[-1].norm(dim=-1).mean()) for draws in (straight, round_about)]
    assert missed[1] < 0.5 * missed[0]
    returns = [float(draws.rewards.sum(0).mean()) for draws in (straight, round_about)]
    assert returns[1] > 3 * returns[0] > 0


def test_in_twilight_everything_is_known():
    pomdp = models.light_dark_linear(dtype=F64)
    plan = exact.plan(pomdp)
    variance, noise = 5.0, 0.05**2
    for covariance in plan.covariances:
        variance = 1 / (1 / variance + 1 / 4.5)
        torch.testing.assert_close(covariance, variance * torch.eye(2, dtype=F64))
        variance += noise
    torch.testing.assert_close(plan.rule.gain, exact.plan(pomdp.fully_observed).gain)
    assert plan.objective < exact.optimal_elbo(pomdp.fully_observed)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("tiger", {"accuracy": 1.5}, "accuracy must be a probability"),
        ("tiger", {"horizon": 0}, "horizon must be an integer >= 1"),
        ("crying_baby", {"cries_sated": -0.1}, "cries_sated must be a probability"),
        ("crying_baby", {"horizon": None}, "horizon must be"),
        ("machine_wear", {"parts": 0}, "parts must be an integer >= 1"),
        ("machine_wear", {"spoils": 2}, "spoils must be a probability"),
        ("t_maze", {"reward_probability": 98}, "reward_probability must be a probability"),
        ("t_maze", {"temperature": 0.0}, "temperature must be"),
        ("light_dark", {"blur": 0.0}, "blur must be a finite number > 0"),
        ("light_dark", {"action_cost": -1.0}, "action_cost must be a finite number >= 0"),
        ("light_dark_linear", {"noise": math.inf}, "noise must be a finite number"),
    ],
)
def test_bad_arguments_are_named(name, arguments, words):
    with pytest.raises(ValueError, match=words):
        getattr(models, name)(**arguments)
