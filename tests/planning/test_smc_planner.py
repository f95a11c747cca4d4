"""Planning by particles, held to exact messages, quadrature and linear-Gaussian control."""

import math

import gymnasium
import pyro.distributions as dist
import pytest
import torch
from problems import random_mdp
from test_contract import InParts

import rl_as_inference as rlai
from rl_as_inference import MarkovDecisionProcess, SMCPlanner, exact, models
from rl_as_inference.critics import TableCritic
from rl_as_inference.guides import TabularPolicy
from rl_as_inference.nouns import answers_by_drawing

F64 = torch.float64


def table_of(planner, num_states, horizon):
    """A planner's answers in every state at every step, (T, S, A)."""
    states = torch.arange(num_states)
    return torch.stack([planner(states, t).probs for t in range(horizon)])


PROBLEMS = [
    {"seed": 0},
    {"seed": 1, "discount": 0.8},
    {"seed": 2, "terminal": True, "num_states": 4},
    {"seed": 3, "terminal": True, "num_states": 5, "discount": 0.6, "reward_on_successor": True, "num_actions": 3},
    {"seed": 4, "temperature": 0.1, "horizon": 5},
    {"seed": 5, "discount": 0.0},
]


@pytest.mark.parametrize("dynamics", ["causal", "posterior"])
@pytest.mark.parametrize("options", PROBLEMS, ids=lambda options: f"seed {options['seed']}")
def test_where_particles_reach_all_states_the_answer_is_that_of_exact_messages(options, dynamics):
    mdp = random_mdp(**options)
    planner = SMCPlanner(mdp, look_ahead=mdp.horizon, num_particles=4000, dynamics=dynamics)
    torch.manual_seed(0)
    found = table_of(planner, mdp.num_states, mdp.horizon)
    lives = ~mdp.terminal
    torch.testing.assert_close(found[:, lives], exact.plan(mdp, dynamics).policy[:, lives], rtol=0, atol=1e-9)


@pytest.mark.parametrize("dynamics", ["causal", "posterior"])
def test_a_process_in_parts_is_planned_in_by_its_own_integers(dynamics):
    tables = random_mdp(6, num_states=4, terminal=True, reward_on_successor=True, discount=0.9)
    planner = SMCPlanner(InParts(tables, 5, -2), look_ahead=3, num_particles=4000, dynamics=dynamics)
    torch.manual_seed(0)
    found = table_of(planner, 4, 3)
    torch.testing.assert_close(found[:, :3], exact.plan(tables, dynamics).policy[:, :3], rtol=0, atol=1e-9)


def test_with_more_states_than_particles_the_error_falls_with_their_number():
    mdp = models.random_mdp(150, 3, horizon=3, temperature=0.3, dtype=F64)
    best, gaps = exact.optimal_elbo(mdp), []
    torch.manual_seed(0)
    for particles in (8, 32, 128):
        gaps.append(float(best - exact.elbo(mdp, SMCPlanner(mdp, look_ahead=3, num_particles=particles))))
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 0
    assert gaps[2] < 0.02


def test_a_sparse_world_larger_than_the_particles_is_planned_by_what_they_reach():
    mdp = models.gridworld(horizon=6, temperature=0.2)
    planner = SMCPlanner(mdp, look_ahead=6, num_particles=mdp.num_states - 1)
    torch.manual_seed(0)
    start = mdp.initial_probabilities.argmax()[None]
    torch.testing.assert_close(planner(start, 0).probs[0], exact.plan(mdp).policy[0, start[0]], rtol=0, atol=0.02)


def test_the_exact_soft_value_as_critic_makes_one_step_enough():
    mdp = random_mdp(7, num_states=8, num_actions=3, horizon=6, discount=0.9)
    plan = exact.plan(mdp)
    planner = SMCPlanner(mdp, look_ahead=1, num_particles=512, critic=TableCritic(plan.soft_v))
    torch.manual_seed(0)
    assert float(exact.optimal_elbo(mdp) - exact.elbo(mdp, planner)) < 1e-9


def test_a_plan_does_not_look_beyond_the_horizon():
    mdp = random_mdp(8, horizon=3)
    nothing = TableCritic(torch.full((4, 3), 100.0, dtype=F64))  # what it says of the end does not count
    near = SMCPlanner(mdp, look_ahead=3, num_particles=2000, critic=nothing)
    far = SMCPlanner(mdp, look_ahead=50, num_particles=2000)
    torch.manual_seed(0)
    expected = exact.plan(mdp).policy
    torch.testing.assert_close(table_of(near, 3, 3), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(table_of(far, 3, 3), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(far(torch.arange(3), 3).probs, mdp.log_action_prior.exp())


def test_without_a_horizon_a_critic_says_what_follows():
    mdp = random_mdp(9, horizon=None, discount=0.7)
    plan = exact.plan(mdp)
    planner = SMCPlanner(mdp, look_ahead=2, num_particles=2000, critic=TableCritic(plan.soft_v, stationary=True))
    torch.manual_seed(0)
    torch.testing.assert_close(planner(torch.arange(3), 17).probs, plan.policy, rtol=0, atol=1e-9)


def test_any_proposal_leads_to_the_same_answer():
    mdp = random_mdp(10, num_states=4, num_actions=3)
    narrow = TabularPolicy(4, 3, horizon=3).double()
    with torch.no_grad():
        narrow.logits.copy_(torch.tensor([0.0, 0.0, 30.0]).expand_as(narrow.logits))
    planner = SMCPlanner(mdp, look_ahead=3, num_particles=6000, proposal=narrow)
    torch.manual_seed(0)
    torch.testing.assert_close(table_of(planner, 4, 3), exact.plan(mdp).policy, rtol=0, atol=1e-9)


def test_a_proposal_says_where_particles_go_and_not_what_they_find():
    mdp = models.random_mdp(200, 3, horizon=4, temperature=0.3, dtype=F64)
    narrow = TabularPolicy(200, 3, horizon=4).double()
    with torch.no_grad():
        narrow.logits.copy_(torch.tensor([0.0, 0.0, 3.0]).expand_as(narrow.logits))
    torch.manual_seed(0)
    planner = SMCPlanner(mdp, look_ahead=4, num_particles=150, proposal=narrow)
    found = planner(torch.arange(20), 0).probs
    assert float((found.log() - exact.plan(mdp).policy[0, :20].log()).square().mean().sqrt()) < 0.15


def test_rare_disasters_are_not_overlooked_where_all_states_are_points():
    risk = 1e-4
    move = torch.zeros(3, 2, 3, dtype=F64)
    move[0, 0, 0], move[0, 1, 1], move[0, 1, 2] = 1, 1 - risk, risk
    move[1, :, 1] = move[2, :, 2] = 1
    reward = torch.tensor([[0.0, 1.0], [0.0, 0.0], [-3e4, -3e4]], dtype=F64)
    mdp = rlai.TabularMDP(move, reward, torch.tensor([1.0, 0.0, 0.0], dtype=F64), horizon=5)
    planner = SMCPlanner(mdp, look_ahead=5, num_particles=10)
    torch.testing.assert_close(planner(torch.tensor([0]), 0).probs[0], exact.plan(mdp).policy[0, 0], rtol=0, atol=1e-9)


class Steered(MarkovDecisionProcess):
    """Two states, of which 1 pays; the higher an action the likelier it leads there, and in 1 it pays to be at -0.5."""

    state_space = gymnasium.spaces.Discrete(2)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), dtype="float64")

    def initial(self):
        return dist.Categorical(torch.ones(2, dtype=F64))

    def transition(self, state, action):
        up = torch.sigmoid(3 * action[..., 0])
        return dist.Categorical(torch.stack([1 - up, up], -1))

    def reward(self, state, action, next_state):
        return 2.0 * next_state - 3 * state * (action[..., 0] + 0.5).square()


def test_continuous_actions_between_discrete_states_are_drawn_anew_at_every_step():
    grid = (torch.arange(4000, dtype=F64) + 0.5) / 2000 - 1
    up, value = torch.sigmoid(3 * grid), torch.zeros(2, dtype=F64)
    for _ in range(3):
        here = 2 * up + (1 - up) * value[0] + up * value[1]
        q = torch.stack([here, here - 3 * (grid + 0.5).square()])
        value = torch.logsumexp(q, 1) - math.log(4000)
    truth = (q.softmax(1) * grid).sum(1)

    def proposal(state, t):
        loc = torch.where(state == 0, 1.0, -1.0).double()[..., None]
        return rlai.guides.TanhNormal(loc, torch.tensor(0.7, dtype=F64)).to_event(1)

    torch.manual_seed(0)
    for given in (None, proposal):
        planner = SMCPlanner(Steered(horizon=3), look_ahead=3, num_particles=500, proposal=given, num_actions=200)
        drawn = torch.stack([planner(torch.tensor([0, 1]), 0).sample((1000,))[..., 0] for _ in range(10)]).mean(1)
        # Ten plans of 500 first actions, 1,000 draws each.
        error = drawn.std(0) / math.sqrt(10)
        assert bool(((drawn.mean(0) - truth).abs() < 4 * error + 0.02).all())


def test_luck_in_the_weights_costs_what_exact_conditioning_costs():
    lake = models.frozen_lake("4x4", horizon=20, temperature=0.05, dtype=F64)
    torch.manual_seed(0)
    for dynamics in ("causal", "posterior"):
        planner = SMCPlanner(lake, look_ahead=20, num_particles=512, dynamics=dynamics)
        assert float(exact.elbo(lake, planner)) == pytest.approx(
            float(exact.elbo(lake, exact.plan(lake, dynamics))), abs=0.02
        )


# Continuous states.


def linear_gaussian(**changes):
    one = torch.eye(1, dtype=F64)
    parts = {
        "A": 0.9 * one,
        "B": one,
        "noise_cov": 0.1 * one,
        "state_cost": one,
        "action_cost": 0.1 * one,
        "initial_mean": one[0],
        "initial_cov": 0.5 * one,
        "action_prior_cov": one,
        "horizon": 3,
        "temperature": 0.5,
    }
    return rlai.LinearGaussianMDP(**{**parts, **changes})


@pytest.mark.parametrize("dynamics", ["causal", "posterior"])
def test_linear_gaussian_answers_have_the_exact_mean_and_variance(dynamics):
    mdp, repeats = linear_gaussian(), 200
    state = torch.tensor([[1.5]], dtype=F64)
    truth = exact.plan(mdp, dynamics)(state, 0)
    torch.manual_seed(0)
    planner = SMCPlanner(mdp, look_ahead=3, num_particles=100, dynamics=dynamics, num_actions=8)
    answer = planner(state.expand(repeats, 1), 0)
    # 200 plans of 100 particles each, seed 0; ratios of means are biased by about 1/100 of a standard deviation.
    spread = float(truth.stddev)
    error = answer.mean - truth.mean
    assert abs(float(error.mean())) < 4 * float(error.std()) / math.sqrt(repeats) + 0.03 * spread
    assert float(answer.variance.mean()) == pytest.approx(spread**2, rel=0.1)


def test_the_error_of_a_mean_falls_with_the_root_of_the_number_of_particles():
    mdp, repeats = linear_gaussian(horizon=2), 200
    state = torch.tensor([[1.5]], dtype=F64)
    truth = exact.plan(mdp)(state, 0).mean
    torch.manual_seed(0)
    errors = []
    for particles in (32, 128):
        planner = SMCPlanner(mdp, look_ahead=2, num_particles=particles, num_actions=8)
        errors.append(float((planner(state.expand(repeats, 1), 0).mean - truth).square().mean().sqrt()))
    # A root mean square of 200 is known to 5 %, so that their ratio, 2, is to 7 %.
    assert errors[0] / errors[1] == pytest.approx(2, abs=4 * 0.07 * 2)


class Slope(MarkovDecisionProcess):
    """A step of length a on a line, without luck; it pays to be far to the right, and at 0.3."""

    state_space = gymnasium.spaces.Box(-10, 10, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def initial(self):
        return dist.Normal(torch.zeros(1, dtype=F64), 1.0).to_event(1)

    def transition(self, state, action):
        return dist.Delta(state + action, event_dim=1)

    def reward(self, state, action, next_state):
        return -4 * (next_state[..., 0] - 0.3).square()


def test_without_luck_weights_alone_give_the_posterior_of_the_first_action():
    # By quadrature over both actions; the start is 1 from where it pays to be.
    grid = torch.linspace(-1, 1, 2001, dtype=F64)
    first, second = torch.meshgrid(grid, grid, indexing="ij")
    start = -0.7
    log = -4 * (start + first - 0.3).square() - 4 * (start + first + second - 0.3).square()
    weight = log.flatten().softmax(0).view_as(log)
    mean = float((weight * first).sum())
    spread = math.sqrt(float((weight * first.square()).sum()) - mean**2)
    torch.manual_seed(0)
    for dynamics in ("causal", "posterior"):
        planner = SMCPlanner(Slope(horizon=2), look_ahead=2, num_particles=4000, dynamics=dynamics)
        answer = planner(torch.full((20, 1), start, dtype=F64), 0)
        drawn = answer.sample((500,))[..., 0]  # 10,000 draws of 20 plans
        error = drawn.mean(0) - mean
        assert abs(float(error.mean())) < 4 * float(error.std()) / math.sqrt(20) + 0.01 * spread
        assert float(drawn.std()) == pytest.approx(spread, rel=0.05)


def test_a_certain_proposal_weighs_nothing_among_densities():
    process = Slope(horizon=1)
    grid = torch.linspace(-1, 1, 4001, dtype=F64)
    truth = float(((-4 * (-0.7 + grid - 0.3).square()).softmax(0) * grid).sum())
    torch.manual_seed(0)

    def certain(state, t):
        return dist.Delta(torch.full((*state.shape[:-1], 1), -0.5, dtype=F64), event_dim=1)

    planner = SMCPlanner(process, look_ahead=1, num_particles=4000, proposal=certain)
    drawn = planner(torch.full((10, 1), -0.7, dtype=F64), 0).sample((1000,)).mean(0)
    assert abs(float(drawn.mean()) - truth) < 4 * float(drawn.std()) / math.sqrt(10) + 0.01


class Mixed(Slope):
    """Certain to the left of 0, and drawn to the right of it."""

    def transition(self, state, action):
        to = state + action
        noisy, sure = dist.Normal(to, 0.5).to_event(1), dist.Delta(to, event_dim=1)
        return dist.MaskedMixture(state[..., 0] < 0, noisy, sure)


def test_luck_here_and_certainty_there_is_refused_of_a_causal_plan():
    with pytest.raises(ValueError, match="certain in some states and drawn in others"):
        SMCPlanner(Mixed(horizon=2), look_ahead=2, num_particles=50)(torch.tensor([[1.0], [-1.0]]), 0)


def test_an_unlikely_action_that_pays_is_found_by_weights_too():
    class Rare(Slope):
        action_space = gymnasium.spaces.Discrete(2)

        def prior(self, state):
            return dist.Categorical(torch.tensor([0.9999, 0.0001], dtype=F64).expand(*state.shape[:-1], 2))

        def transition(self, state, action):
            return dist.Delta(state + action[..., None], event_dim=1)

        def reward(self, state, action, next_state):
            return 30.0 * action

    truth = 0.0001 * math.exp(30) / (0.9999 + 0.0001 * math.exp(30))
    planner = SMCPlanner(Rare(horizon=1), look_ahead=1, num_particles=20)
    assert float(planner(torch.zeros(1, 1, dtype=F64), 0).probs[0, 1]) == pytest.approx(truth, abs=1e-9)


class Debt(Slope):
    """A right turn pays 2 now and costs 20 in the next step; 0 is where one starts and 1 is in debt."""

    def transition(self, state, action):
        return dist.Delta(torch.where(state > 0.5, state, (action > 0).to(state)), event_dim=1)

    def reward(self, state, action, next_state):
        return torch.where(state[..., 0] > 0.5, -20.0, 2.0 * (action[..., 0] > 0))


@pytest.mark.parametrize("discount", [1.0, 0.5, 0.0])
def test_a_causal_plan_does_not_hope_to_be_over_before_it_pays(discount):
    state = torch.zeros(1, 1, dtype=F64)
    # Two kinds of action, each half of the prior; conditioning hopes to die before it pays.
    free = math.log((1 + math.exp(2)) / 2)  # the soft value of a last step without debt

    def ahead(value):
        return math.log(1 - discount + discount * math.exp(value))

    causal = torch.tensor(2 - discount * (20 + free)).sigmoid()
    lucky = torch.tensor(2 + ahead(-20) - ahead(free)).sigmoid()
    torch.manual_seed(0)
    for dynamics, truth in (("causal", causal), ("posterior", lucky)):
        planner = SMCPlanner(Debt(horizon=2, discount=discount), look_ahead=2, num_particles=2000, dynamics=dynamics)
        share = torch.stack([(planner(state, 0).sample((500,)) > 0).double().mean() for _ in range(10)])
        assert float(share.mean()) == pytest.approx(float(truth), abs=0.06)  # a kernel spills over the edge


def test_kernel_answers_are_densities_on_the_box():
    planner = SMCPlanner(Slope(horizon=2), look_ahead=2, num_particles=200)
    torch.manual_seed(0)
    answer = planner(torch.zeros(1, 1, dtype=F64), 0)
    grid = torch.linspace(-1, 1, 20_001, dtype=F64)[1:-1, None, None]
    assert float(torch.trapezoid(answer.log_prob(grid).exp()[:, 0], grid[:, 0, 0])) == pytest.approx(1, abs=1e-3)
    best = answer.deterministic
    near = torch.linspace(-0.99, 0.99, 100, dtype=F64)[:, None, None]
    before = answer.log_prob(near) + torch.log1p(-near[..., 0].square())  # as density before squashing
    assert float(answer.log_prob(best) + torch.log1p(-best[..., 0].square())) >= float(before.max()) - 0.1


# As policies.


def test_planners_say_that_they_answer_by_drawing_and_compare_heeds_it():
    mdp = random_mdp(11, num_states=12, num_actions=3)
    planner = SMCPlanner(mdp, look_ahead=3, num_particles=8)
    assert answers_by_drawing(planner)
    assert not answers_by_drawing(exact.plan(mdp))
    torch.manual_seed(0)
    exactly = torch.stack([exact.elbo(mdp, planner) for _ in range(60)])
    found = rlai.compare(mdp, planner, num_trajectories=4000)
    names = [identity.name for identity in found.identities]
    assert all(identity.holds for identity in found.identities)
    assert not any("by rollouts = exact" in name for name in names)
    assert any("(exact)" in name for name in names)
    # 4,000 rollouts against 60 sets of answers: states share theirs, which the standard error does not see.
    error = math.hypot(found.elbo_standard_error, float(exactly.std()))
    assert abs(found.elbo - float(exactly.mean())) < 4 * error


def test_answers_keep_the_batch_shape_and_repeat_with_the_seed():
    mdp = random_mdp(12)
    planner = SMCPlanner(mdp, look_ahead=3, num_particles=50)
    torch.manual_seed(0)
    first = planner(torch.tensor([[0, 1, 2], [2, 1, 0]]), 0)
    assert first.batch_shape == (2, 3)
    torch.testing.assert_close(first.probs[0], first.probs[1].flip(0))  # one question, one answer
    torch.manual_seed(0)
    assert torch.equal(planner(torch.tensor([[0, 1, 2], [2, 1, 0]]), torch.tensor(0)).probs, first.probs)
    assert planner(torch.tensor(1), 0).batch_shape == ()
    moved = SMCPlanner(Slope(horizon=2), look_ahead=2, num_particles=20)(torch.zeros(2, 3, 1, dtype=F64), 0)
    assert (moved.batch_shape, moved.event_shape) == ((2, 3), (1,))


def test_an_action_that_the_prior_forbids_is_never_planned():
    prior = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [1.0, 0.0, 0.0]], dtype=F64)
    mdp = random_mdp(13, num_actions=3).replace(action_prior=prior)
    torch.manual_seed(0)
    for dynamics in ("causal", "posterior"):
        planner = SMCPlanner(mdp, look_ahead=3, num_particles=3000, dynamics=dynamics)
        torch.testing.assert_close(table_of(planner, 3, 3), exact.plan(mdp, dynamics).policy, rtol=0, atol=1e-9)


# Mistakes.


def test_mistakes_are_named():
    mdp = random_mdp(14)
    for changes, message in (
        ({"num_particles": 0}, "num_particles must be >= 2, got 0"),
        ({"num_particles": 1}, "num_particles must be >= 2"),
        ({"look_ahead": 0}, "look_ahead must be >= 1"),
        ({"look_ahead": 1.5}, "look_ahead must be an integer"),
        ({"dynamics": "lucky"}, "dynamics must be 'causal' or 'posterior', got 'lucky'"),
        ({"critic": 3.0}, "critic must be a callable"),
        ({"proposal": "uniform"}, "proposal must be a callable"),
    ):
        with pytest.raises(ValueError, match=message):
            SMCPlanner(mdp, **{"look_ahead": 2, "num_particles": 10, **changes})
    options = {"look_ahead": 2, "num_particles": 10}
    with pytest.raises(ValueError, match=r"cannot be set to a state.*models\.pendulum"):
        SMCPlanner(rlai.GymnasiumProcess("CartPole-v1"), **options)
    wide = Slope(horizon=2)
    wide.action_space = gymnasium.spaces.Box(-2, 2, (1,))
    with pytest.raises(ValueError, match=r"Box\(-1, 1, \(d,\)\).*rescale inside transition"):
        SMCPlanner(wide, **options)
    agent = rlai.SoftActorCritic(models.pendulum(), hidden_sizes=(8,), discount=0.9)
    with pytest.raises(ValueError, match=r"critic was learned with discount 0\.9, and the process has 1"):
        SMCPlanner(models.pendulum(), **options, critic=agent.critic)
    for step in (1.5, -1):
        with pytest.raises(ValueError, match="t must be a step that counts from 0"):
            SMCPlanner(mdp, **options)(torch.arange(3), step)
    with pytest.raises(ValueError, match="fully_observed"):
        SMCPlanner(models.tiger(), **options)
    with pytest.raises(ValueError, match="conditioning it on what happened"):
        SMCPlanner(models.corridor(), **options)
    with pytest.raises(ValueError, match="t must be one step for all"):
        SMCPlanner(mdp, **options)(torch.arange(3), torch.arange(3))
    with pytest.raises(ValueError, match=r"critic must give one soft value a state, of shape \(3,\)"):
        SMCPlanner(mdp, **options, critic=lambda state, t: torch.zeros(5))(torch.tensor([0]), 0)
    with pytest.raises(ValueError, match="critic is NaN"):
        SMCPlanner(mdp, **options, critic=lambda state, t: torch.full(state.shape, math.nan))(torch.tensor([0]), 0)


def test_plans_without_any_weight_are_an_error_and_lost_ends_are_not():
    class Forbidden(Slope):
        def reward(self, state, action, next_state):
            return torch.full(state.shape[:-1], -math.inf, dtype=F64)

    tables = random_mdp(15, terminal=True)
    hopeless = InParts(tables)
    hopeless.reward = lambda state, action, next_state: torch.full(state.shape, -math.inf, dtype=F64)
    for dynamics in ("causal", "posterior"):
        planner = SMCPlanner(hopeless, look_ahead=2, num_particles=10, dynamics=dynamics)
        with pytest.raises(ValueError, match="every plan from state 0 at step 0 has weight zero"):
            planner(torch.tensor([2, 0]), 0)
        torch.testing.assert_close(planner(torch.tensor([2]), 0).probs, tables.prior(torch.tensor([2])).probs)
    with pytest.raises(ValueError, match=r"every plan from state \[0\.5\] at step 1 has weight zero"):
        SMCPlanner(Forbidden(horizon=2), look_ahead=2, num_particles=10)(torch.full((1, 1), 0.5, dtype=F64), 1)
