"""The trajectory ELBO: its value against Pyro's, and the gradient of every estimator against the exact one."""

import itertools
import math
import warnings

import gymnasium
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import random_mdp
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch import nn

from rl_as_inference import (
    LinearGaussianMDP,
    MarkovDecisionProcess,
    TrajectoryELBO,
    act,
    exact,
    follow,
    reward,
    steps,
    survival,
)
from rl_as_inference.critics import SoftQ, SoftV, TableCritic
from rl_as_inference.guides import LinearGaussianPolicy, TabularPolicy
from rl_as_inference.objectives.estimators import critic_loss, lambda_advantage, return_to_go

F64 = torch.float64


# One random problem, all its exact answers.


def problem(**options):
    return random_mdp(
        **{"seed": 3, "num_states": 4, "num_actions": 3, "horizon": 4, "discount": 0.9, "terminal": True, **options}
    )


def random_policy(mdp, seed=0):
    policy = TabularPolicy(mdp.num_states, mdp.num_actions, horizon=mdp.horizon).double()
    policy.logits.data = torch.randn(policy.logits.shape, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return policy


def exact_gradient(mdp, policy):
    return torch.autograd.grad(exact.elbo(mdp, policy), list(policy.parameters()))


def wrong_v(state, t):
    """Any function of state and time is a lawful baseline."""
    return 0.3 * state.to(F64) - 0.5 * (1 + t)


def critic_for(estimator, mdp, policy):
    own = exact.evaluate(mdp, policy)
    return {
        "baseline": wrong_v,
        "advantage": TableCritic(own.soft_v[:-1]),
        "exact_sum": TableCritic(own.soft_q),
    }.get(estimator)


def reading_of(reading, mdp, policy):
    """The pair of program and guide that the ELBO reads in one of its ways."""
    if reading == "fast":
        return mdp, follow(mdp, policy)
    if reading == "survival":
        program = survival(mdp)
        return program, follow(program, policy)

    def program(count):
        return mdp(count)

    if reading == "one run":
        return program, follow(program, policy)

    def by_hand(count):
        """A guide of its own, written without the words for action and reward."""
        with pyro.plate("trajectories", count, dim=-1):
            state = pyro.sample("state_0", mdp.initial())
            for t in steps(mdp.horizon, mdp.discount):
                logits = torch.where(mdp.terminal[state][..., None], mdp.prior(state).logits, policy(state, t).logits)
                action = pyro.sample(f"action_{t}", dist.Categorical(logits=logits))
                state = pyro.sample(f"state_{t + 1}", mdp.transition(state, action))

    return program, by_hand


def gradients(elbo, model, guide, parameters, batches, count):
    """Independent estimates of the ELBO's gradient per trajectory, ``(batches, size)``."""
    rows = []
    for _ in range(batches):
        loss = elbo.differentiable_loss(model, guide, count) / count
        found = torch.autograd.grad(-loss, parameters, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows).double()


def z_scores(rows, expected):
    expected = torch.cat([x.flatten() for x in expected]).double()
    error = rows.std(0) / math.sqrt(len(rows))
    still = error < 1e-12
    torch.testing.assert_close(rows.mean(0)[still], expected[still], rtol=1e-8, atol=1e-8)
    return ((rows.mean(0) - expected) / error)[~still]


UNBIASED = {
    "fast": [
        ("auto", 1.0),
        ("full_return", 1.0),
        ("score", 1.0),
        ("baseline", 1.0),
        ("advantage", 1.0),
        ("advantage", 0.6),
        ("advantage", 0.0),
        ("exact_sum", 1.0),
    ],
    "one run": [("auto", 1.0), ("full_return", 1.0), ("baseline", 1.0), ("advantage", 0.6), ("exact_sum", 1.0)],
    "two runs": [("auto", 1.0), ("full_return", 1.0), ("baseline", 1.0), ("advantage", 0.6), ("exact_sum", 1.0)],
    "survival": [("auto", 1.0), ("baseline", 1.0), ("advantage", 0.6), ("exact_sum", 1.0)],
}


@pytest.mark.parametrize(
    ("reading", "estimator", "lambda_"), [(reading, *case) for reading, cases in UNBIASED.items() for case in cases]
)
def test_every_estimators_gradient_is_the_exact_one(reading, estimator, lambda_):
    """24 batches of 200 trajectories, seed 0: every one of 36 living entries' z-scores below 5.5."""
    mdp = problem()
    policy = random_policy(mdp)
    elbo = TrajectoryELBO(estimator, critic_for(estimator, mdp, policy), lambda_)
    model, guide = reading_of(reading, mdp, policy)
    rows = gradients(elbo, model, guide, list(policy.parameters()), 24, 200)
    z = z_scores(rows, exact_gradient(mdp, policy))
    assert len(z) == 36
    assert z.abs().max() < 5.5
    assert 0.3 < float(z.square().mean()) < 2.5


@pytest.mark.parametrize("reading", ["fast", "one run", "two runs", "survival"])
def test_the_value_is_the_exact_elbo(reading):
    """16 batches of 200 trajectories, seed 0, |z| < 4."""
    mdp = problem()
    policy = random_policy(mdp)
    model, guide = reading_of(reading, mdp, policy)
    elbo = TrajectoryELBO()
    values = torch.tensor([-elbo.loss(model, guide, 200) / 200 for _ in range(16)])
    with torch.no_grad():
        z = (values.mean() - exact.elbo(mdp, policy)) / (values.std() / math.sqrt(16))
    assert abs(float(z)) < 4


def test_better_estimators_vary_less():
    """80 batches of 20 trajectories, seed 0: summed variances fall by a fifth or more at each better estimator."""
    mdp = problem(horizon=8, discount=1.0, temperature=0.4, terminal=False)
    policy = random_policy(mdp)
    own = exact.evaluate(mdp, policy)
    v, q = TableCritic(own.soft_v[:-1]), TableCritic(own.soft_q)
    model, guide = reading_of("fast", mdp, policy)
    order = [
        TrajectoryELBO("full_return"),
        TrajectoryELBO("score"),
        TrajectoryELBO("baseline", v),
        TrajectoryELBO("exact_sum", q),
    ]
    variances = [float(gradients(elbo, model, guide, [policy.logits], 80, 20).var(0).sum()) for elbo in order]
    for worse, better in itertools.pairwise(variances):
        assert better < 0.8 * worse


def test_lambda_below_one_carries_the_critics_error():
    """With a wrong critic the one-step advantage is biased (z > 10 somewhere) and λ = 1 is not."""
    mdp = problem()
    policy = random_policy(mdp)
    model, guide = reading_of("fast", mdp, policy)
    expected = exact_gradient(mdp, policy)
    scores = {
        lambda_: z_scores(
            gradients(TrajectoryELBO("advantage", wrong_v, lambda_), model, guide, [policy.logits], 30, 200), expected
        )
        for lambda_ in (0.0, 1.0)
    }
    assert scores[0.0].abs().max() > 10
    assert scores[1.0].abs().max() < 4.7


@pytest.mark.parametrize("estimator", ["score", "baseline", "exact_sum"])
def test_readings_agree_draw_by_draw(estimator):
    """The one-run and the two-run reading of the same draws give the same loss and gradient."""
    mdp = problem()
    policy = random_policy(mdp)
    elbo = TrajectoryELBO(estimator, critic_for(estimator, mdp, policy))
    model, guide = reading_of("one run", mdp, policy)
    hidden = lambda count: guide(count)  # noqa: E731 - no longer known to be the program's own guide
    found = []
    for pair in ((model, guide), (model, hidden)):
        pyro.set_rng_seed(5)
        loss = elbo.differentiable_loss(*pair, 50)
        found.append((loss.detach(), *torch.autograd.grad(loss, policy.logits)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


# Sign, scale and plates: those of Pyro's.


def batch_program(count=20):
    with pyro.plate("trajectories", count):
        state = torch.zeros(count, dtype=F64)
        for t in steps(3, 0.9):
            action = act(f"action_{t}", state, dist.Bernoulli(torch.full((count,), 0.4, dtype=F64)))
            state = pyro.sample(f"state_{t + 1}", dist.Normal(state + action, 0.5))
            reward(f"reward_{t}", -((state - 1) ** 2), temperature=2.0)


class Logistic(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.3, -0.7], dtype=F64))

    def forward(self, state, t):
        return dist.Bernoulli(logits=self.weight[0] + self.weight[1] * state)


def loss_on_seed(elbo, model, guide, *args, seed=1):
    pyro.set_rng_seed(seed)
    return elbo.loss(model, guide, *args)


def test_losses_are_those_of_trace_elbo_on_the_same_seed():
    policy = Logistic()
    guide = follow(batch_program, policy)
    hidden = lambda *args: guide(*args)  # noqa: E731
    for pair in ((batch_program, guide), (batch_program, hidden)):
        expected = loss_on_seed(Trace_ELBO(), *pair)
        assert loss_on_seed(TrajectoryELBO(), *pair) == pytest.approx(expected, rel=1e-9)
        pyro.set_rng_seed(1)
        assert TrajectoryELBO().loss_and_grads(*pair) == pytest.approx(expected, rel=1e-9)
        pyro.set_rng_seed(1)
        assert TrajectoryELBO().differentiable_loss(*pair).item() == pytest.approx(expected, rel=1e-9)


def test_loss_and_grads_accumulates_what_differentiable_loss_differentiates():
    mdp = problem()
    policy = random_policy(mdp)
    for reading in ("fast", "one run", "two runs"):
        model, guide = reading_of(reading, mdp, policy)
        policy.zero_grad()
        pyro.set_rng_seed(2)
        TrajectoryELBO(num_particles=3).loss_and_grads(model, guide, 10)
        pyro.set_rng_seed(2)
        (expected,) = torch.autograd.grad(
            TrajectoryELBO(num_particles=3).differentiable_loss(model, guide, 10), policy.logits
        )
        torch.testing.assert_close(policy.logits.grad, expected)


@pytest.mark.parametrize("reading", ["fast", "one run", "two runs"])
def test_training_warns_of_nothing(reading):
    """Torch says some things once a process; here it says everything always, and each word is an error."""
    mdp = problem()
    model, guide = reading_of(reading, mdp, random_policy(mdp))
    guide(2)  # registers the policy
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for elbo in (TrajectoryELBO(), TrajectoryELBO(num_particles=2, vectorize_particles=True)):
                elbo.loss_and_grads(model, guide, 5)
                elbo.differentiable_loss(model, guide, 5).backward()
                elbo.loss(model, guide, 5)
    finally:
        torch.set_warn_always(False)


def test_the_loss_is_summed_over_plates_and_averaged_over_particles():
    """16 losses each of 50 trajectories, of 10 particles of 5, of 50 particles at once: |z| < 4 to the exact ELBO."""
    mdp = problem()
    policy = random_policy(mdp)
    model, guide = reading_of("one run", mdp, policy)
    with torch.no_grad():
        expected = -exact.elbo(mdp, policy)
    for elbo, count, share in (
        (TrajectoryELBO(), 50, 50),
        (TrajectoryELBO(num_particles=10), 5, 5),
        (TrajectoryELBO(num_particles=50, vectorize_particles=True, max_plate_nesting=1), 1, 1),
    ):
        values = torch.tensor([elbo.loss(model, guide, count) / share for _ in range(16)])
        assert abs(float((values.mean() - expected) / (values.std() / math.sqrt(16)))) < 4


@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_an_outer_scale_scales_loss_and_gradient(scale):
    policy = Logistic()
    found = []
    for program in (batch_program, poutine.scale(batch_program, scale=scale)):
        pyro.set_rng_seed(3)
        loss = TrajectoryELBO().differentiable_loss(program, follow(program, policy))
        found.append((loss.detach(), *torch.autograd.grad(loss, policy.weight)))
    torch.testing.assert_close(found[1][0], scale * found[0][0])
    torch.testing.assert_close(found[1][1], scale * found[0][1])


@pytest.mark.parametrize("estimator", ["full_return", "score", "baseline"])
def test_members_of_plates_are_charged_with_their_own_terms(estimator):
    """The gradient on given draws, written out by hand for every member of two nested plates."""

    def program():
        with pyro.plate("worlds", 2, dim=-2), pyro.plate("agents", 3, dim=-1):
            state = torch.zeros(2, 3, dtype=F64)
            for t in steps(3, 0.8):
                action = act(f"action_{t}", state, dist.Bernoulli(torch.full((2, 3), 0.5, dtype=F64)))
                state = pyro.sample(f"state_{t + 1}", dist.Normal(state + action, 1.0))
                reward(f"reward_{t}", state, temperature=0.5)

    policy = Logistic()
    elbo = TrajectoryELBO(estimator, wrong_v if estimator == "baseline" else None)
    pyro.set_rng_seed(6)
    (gradient,) = torch.autograd.grad(-elbo.differentiable_loss(program, follow(program, policy)), policy.weight)

    pyro.set_rng_seed(6)
    nodes = poutine.trace(follow(program, policy)).get_trace().nodes
    states = [torch.zeros(2, 3, dtype=F64)] + [nodes[f"state_{t + 1}"]["value"] for t in range(3)]
    actions = [nodes[f"action_{t}"]["value"] for t in range(3)]
    scores = [policy(states[t], t).log_prob(actions[t]) for t in range(3)]
    terms = [0.8**t * (states[t + 1] / 0.5 + math.log(0.5) - scores[t].detach()) for t in range(3)]
    surrogate = 0.0
    for t in range(3):
        charge = sum(terms) if estimator == "full_return" else sum(terms[t:])
        if estimator == "baseline":
            charge = charge - 0.8**t * wrong_v(states[t], t) / 0.5
        surrogate = surrogate + (scores[t] * charge).sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(surrogate, policy.weight)[0])


# Mixed programs.


class Mixed(nn.Module):
    """Parameters of a policy with discrete and continuous actions."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([0.4, -0.3, 0.2], dtype=F64))

    def forward(self, state, t):
        if t % 2 == 0:
            return dist.Bernoulli(logits=self.theta[0] + 0.5 * state)
        return dist.Normal(self.theta[1] * state + self.theta[2], 0.8)


def mixed(count=1):
    """Discrete and continuous actions, continuous and discrete dynamics, a latent beside the trajectory."""
    with pyro.plate("trajectories", count):
        goal = pyro.sample("goal", dist.Categorical(torch.tensor([0.3, 0.7], dtype=F64).expand(count, 2)))
        state = torch.zeros(count, dtype=F64)
        for t in steps(3, 0.9):
            if t % 2 == 0:
                action = act(f"action_{t}", state, dist.Bernoulli(torch.full((count,), 0.5, dtype=F64)))
            else:
                action = act(f"action_{t}", state, dist.Normal(torch.zeros(count, dtype=F64), 1.0))
            state = pyro.sample(f"state_{t + 1}", dist.Normal(state + action - 0.3, 0.4))
            luck = pyro.sample(f"luck_{t}", dist.Bernoulli(logits=state))
            reward(f"reward_{t}", luck - 0.3 * (state - goal) ** 2, temperature=0.8)


@pytest.mark.parametrize("reading", ["one run", "two runs"])
def test_auto_is_unbiased_on_mixed_programs(reading):
    """30 batches of 250 trajectories each way, seed 0: difference to the mean of Trace_ELBO's, |z| < 4.5."""
    policy = Mixed()
    guide = follow(mixed, policy)
    own = guide if reading == "one run" else (lambda count: guide(count))
    rows = gradients(TrajectoryELBO(), mixed, own, [policy.theta], 30, 250)
    theirs = gradients(Trace_ELBO(), mixed, guide, [policy.theta], 30, 250)
    error = ((rows.var(0) + theirs.var(0)) / 30).sqrt()
    assert ((rows.mean(0) - theirs.mean(0)) / error).abs().max() < 4.5
    assert (rows.mean(0) / rows.std(0)).abs().max() > 4  # there is a gradient to get wrong
    assert rows.var(0).sum() < theirs.var(0).sum()


def test_guides_with_another_order_and_draws_of_their_own():
    """30 batches of 250, seed 0: a guide that draws in another order than the program, |z| < 4.5 to the exact sum."""
    theta = torch.tensor([0.4, -0.6], dtype=F64, requires_grad=True)

    def program(count):
        with pyro.plate("n", count):
            wind = pyro.sample("wind", dist.Bernoulli(torch.full((count,), 0.5, dtype=F64)))
            action = act("action_0", wind, dist.Bernoulli(torch.full((count,), 0.5, dtype=F64)))
            reward("reward_0", 2.0 * action * wind + action)

    def guide(count):
        with pyro.plate("n", count):
            action = pyro.sample("action_0", dist.Bernoulli(logits=theta[0].expand(count)))
            pyro.sample("wind", dist.Bernoulli(logits=theta[1] + action))

    rows = gradients(TrajectoryELBO(), program, guide, [theta], 30, 250)
    leaf = theta.detach().clone().requires_grad_()
    a, w = torch.meshgrid(torch.arange(2.0, dtype=F64), torch.arange(2.0, dtype=F64), indexing="ij")
    log_q = dist.Bernoulli(logits=leaf[0]).log_prob(a) + dist.Bernoulli(logits=leaf[1] + a).log_prob(w)
    value = (log_q.exp() * (2 * math.log(0.5) + 2 * a * w + a - log_q)).sum()
    z = z_scores(rows, torch.autograd.grad(value, leaf))
    assert z.abs().max() < 4.5


# Continuous actions.


def linear_gaussian():
    g = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=g, dtype=F64)

    eye = torch.eye(2, dtype=F64)
    return LinearGaussianMDP(
        A=eye + 0.2 * randn(2, 2),
        B=randn(2, 1),
        noise_cov=0.1 * eye,
        state_cost=0.5 * eye,
        action_cost=0.2 * torch.ones(1, 1, dtype=F64),
        initial_mean=randn(2),
        initial_cov=0.2 * eye,
        action_prior_cov=torch.ones(1, 1, dtype=F64),
        horizon=3,
        temperature=0.7,
        drift=0.1 * randn(2),
    )


def gaussian_policy():
    policy = LinearGaussianPolicy(2, 1, horizon=3, dtype=F64)
    g = torch.Generator().manual_seed(1)
    policy.gain.data = 0.3 * torch.randn(policy.gain.shape, generator=g, dtype=F64)
    policy.offset.data = 0.3 * torch.randn(policy.offset.shape, generator=g, dtype=F64)
    return policy


@pytest.mark.parametrize(
    ("reading", "estimator"),
    [
        ("fast", "auto"),
        ("fast", "pathwise"),
        ("fast", "score"),
        ("fast", "baseline"),
        ("one run", "auto"),
        ("one run", "score"),
        ("two runs", "auto"),
        ("two runs", "score"),
    ],
)
def test_gradients_on_a_linear_gaussian_process_are_exact(reading, estimator):
    """20 batches of 300 trajectories, seed 0: every entry's z-score below 5.5."""
    mdp, policy = linear_gaussian(), gaussian_policy()
    parameters = [policy.gain, policy.offset, policy.log_diagonal]
    expected = torch.autograd.grad(exact.elbo(mdp, policy), parameters)
    program = mdp if reading == "fast" else (lambda count: mdp(count))
    own = follow(program, policy)
    guide = (lambda count: own(count)) if reading == "two runs" else own
    critic = (lambda state, t: -state.square().sum(-1)) if estimator == "baseline" else None
    rows = gradients(TrajectoryELBO(estimator, critic), program, guide, parameters, 20, 300)
    assert z_scores(rows, expected).abs().max() < 5.5


@pytest.mark.parametrize("reading", ["fast", "one run", "two runs"])
def test_auto_is_pathwise_where_everything_is_smooth(reading):
    """10 batches of 50 trajectories, seed 7: the variance is that of pathwise gradients, well below the score's."""
    mdp, policy = linear_gaussian(), gaussian_policy()
    program = mdp if reading == "fast" else (lambda count: mdp(count))
    own = follow(program, policy)
    guide = (lambda count: own(count)) if reading == "two runs" else own
    found = {}
    for estimator in ("auto", "pathwise", "score"):
        pyro.set_rng_seed(7)
        found[estimator] = gradients(TrajectoryELBO(estimator), program, guide, [policy.offset], 10, 50).var(0).sum()
    assert found["auto"] < 0.5 * found["score"]
    assert found["pathwise"] < 0.5 * found["score"]


class Cliff(MarkovDecisionProcess):
    """One push from N(0, 1) prior; whoever stands right of 0 has fallen and misses the second step's reward."""

    state_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))

    def __init__(self):
        super().__init__(horizon=2)

    def initial(self):
        return dist.Normal(torch.full((1,), -1.0, dtype=F64), 1e-6).to_event(1)

    def prior(self, state):
        return dist.Normal(torch.zeros_like(state), 1.0).to_event(1)

    def transition(self, state, action):
        return dist.Normal(action, 1e-6 + 0 * action).to_event(1)

    def reward(self, state, action, next_state):
        return 1.0 + 0 * action.squeeze(-1)

    def terminated(self, state):
        return state.squeeze(-1) > 0


class Push(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.4, dtype=F64))

    def forward(self, state, t):
        return dist.Normal((self.loc if t == 0 else 0.0) + 0 * state, 1.0).to_event(1)


@pytest.mark.parametrize("reading", ["fast", "one run", "two runs"])
def test_an_ending_that_actions_decide_is_not_differentiated_through(reading):
    """ELBO(μ) = -μ²/2 + 1 + Φ(-μ), so its slope is -μ - φ(μ). 20 batches of 500, seed 0, |z| < 4."""
    mdp, policy = Cliff(), Push()
    program = mdp if reading == "fast" else (lambda count: mdp(count))
    own = follow(program, policy)
    guide = (lambda count: own(count)) if reading == "two runs" else own
    mu = 0.4
    slope = -mu - math.exp(-(mu**2) / 2) / math.sqrt(2 * math.pi)
    rows = gradients(TrajectoryELBO(), program, guide, [policy.loc], 20, 500)
    assert z_scores(rows, [torch.tensor(slope)]).abs().max() < 4
    pathwise = gradients(TrajectoryELBO("pathwise"), program, guide, [policy.loc], 20, 500)
    assert z_scores(pathwise, [torch.tensor(slope)]).abs().max() > 10  # what falling back has avoided


class Target(Cliff):
    """One push; reward 3 for landing right of 1, which has no slope anywhere."""

    def __init__(self):
        MarkovDecisionProcess.__init__(self, horizon=1)

    def reward(self, state, action, next_state):
        return 3.0 * (next_state.squeeze(-1) > 1)

    def terminated(self, state):
        return None


@pytest.mark.parametrize("reading", ["fast", "one run", "two runs"])
def test_a_reward_without_slope_is_not_differentiated_through(reading):
    """ELBO(μ) = -μ²/2 + 3 Φ(μ - 1), so its slope is -μ + 3 φ(μ - 1). 20 batches of 500, seed 0, |z| < 4."""
    mdp, policy = Target(), Push()
    program = mdp if reading == "fast" else (lambda count: mdp(count))
    own = follow(program, policy)
    guide = (lambda count: own(count)) if reading == "two runs" else own
    mu = 0.4
    slope = -mu + 3 * math.exp(-((mu - 1) ** 2) / 2) / math.sqrt(2 * math.pi)
    rows = gradients(TrajectoryELBO(), program, guide, [policy.loc], 20, 500)
    assert z_scores(rows, [torch.tensor(slope)]).abs().max() < 4


class Drift(Cliff):
    """Two pushes with a survival coin in between, and no ending."""

    def __init__(self):
        MarkovDecisionProcess.__init__(self, horizon=2, discount=0.5)

    def reward(self, state, action, next_state):
        return -action.squeeze(-1).square() / 2

    def terminated(self, state):
        return None


@pytest.mark.parametrize("reading", ["fast", "one run", "two runs"])
def test_coins_and_continuous_actions_fall_back_too(reading):
    """Under survival coins the reading with a score stays exact: 24 batches of 200, seed 0, |z| < 5."""
    mdp, policy = Drift(), Push()
    program = mdp if reading == "fast" else survival(mdp)
    own = follow(program, policy)
    guide = (lambda count: own(count)) if reading == "two runs" else own
    # Two steps, r = -a²/2: the first has mean μ, the second 0, so ELBO(μ) = -μ² + constant.
    rows = gradients(TrajectoryELBO(), program, guide, [policy.loc], 24, 200)
    assert z_scores(rows, [torch.tensor(-0.8)]).abs().max() < 5


# What the process's own tensors receive.


def test_rewards_temperature_and_prior_receive_their_gradient():
    """20 batches of 200, seed 0: ∂ELBO/∂reward and ∂/∂α by every reading, |z| < 5.5."""
    base = problem()
    policy = random_policy(base).requires_grad_(False)
    payoff = base.reward_table.clone().requires_grad_()
    alpha = torch.tensor(0.7, dtype=F64, requires_grad=True)
    mdp = base.replace(reward=payoff, temperature=alpha)
    expected = torch.autograd.grad(exact.elbo(mdp, policy), [payoff, alpha])
    for reading in ("fast", "one run"):
        model, guide = reading_of(reading, mdp, policy)
        rows = gradients(TrajectoryELBO(), model, guide, [payoff, alpha], 20, 200)
        assert z_scores(rows, expected).abs().max() < 5.5


LEARNED_DISCOUNT = [
    (reading, estimator)
    for reading in ("fast", "one run", "two runs", "survival")
    for estimator in ("auto", "full_return", "score", "baseline", "advantage", "exact_sum")
]


@pytest.mark.parametrize(("reading", "estimator"), LEARNED_DISCOUNT)
def test_a_discount_receives_its_gradient(reading, estimator):
    """16 batches of 200, seed 0: ∂ELBO/∂γ and ∂/∂α by every reading and estimator, |z| < 4.5."""
    base = problem()
    policy = random_policy(base)
    critic = critic_for(estimator, base.replace(discount=0.8), policy)
    gamma, alpha = (torch.tensor(x, dtype=F64, requires_grad=True) for x in (0.8, 0.7))
    mdp = base.replace(discount=gamma, temperature=alpha)
    expected = torch.autograd.grad(exact.elbo(mdp, policy), [gamma, alpha])
    model, guide = reading_of(reading, mdp, policy)
    rows = gradients(TrajectoryELBO(estimator, critic, 0.6), model, guide, [gamma, alpha], 16, 200)
    assert z_scores(rows, expected).abs().max() < 4.5
    assert abs(float(expected[0])) > 8 * float(rows[:, 0].std()) / 4  # what was left out before is far above the noise


def test_a_discount_receives_its_gradient_by_enumeration():
    """Pyro's TraceEnum_ELBO on an enumerated guide: exact, and so is its gradient in γ."""
    base = problem(num_states=2, num_actions=2, horizon=3, terminal=False)
    # All moves are possible: Pyro's derivative of γ log 0 is no number, however unlikely the move.
    base = type(base)(
        (base.kernel.probabilities + 0.5) / 2, base.reward_table, base.initial_probabilities, horizon=3, temperature=0.7
    )
    policy = random_policy(base).requires_grad_(False)
    gamma = torch.tensor(0.8, dtype=F64, requires_grad=True)
    mdp = base.replace(discount=gamma)
    (expected,) = torch.autograd.grad(exact.elbo(mdp, policy), gamma)
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(mdp, config_enumerate(follow(mdp, policy)))
    (found,) = torch.autograd.grad(-loss, gamma)
    assert float(found) == pytest.approx(float(expected), abs=1e-9)


def test_a_pathwise_discount_receives_its_gradient():
    """Two pushes with r = -a²/2: ∂/∂γ of Σ γ^t c_t is the second step's term, -1/2 (KL to the prior is 0)."""
    gamma = torch.tensor(0.5, dtype=F64, requires_grad=True)
    mdp, policy = Drift(), Push()
    mdp.discount = gamma
    for program in (mdp, lambda count: mdp(count)):
        rows = gradients(TrajectoryELBO("pathwise"), program, follow(program, policy), [gamma], 16, 200)
        assert z_scores(rows, [torch.tensor(-0.5)]).abs().max() < 4.5


def test_a_learned_temperature_is_not_moved_by_the_critics_own_loss():
    """A critic that learns: ∂ELBO/∂α all the same. 16 batches of 200, seed 0, |z| < 4.5."""
    base = problem()
    policy = random_policy(base).requires_grad_(False)
    alpha = torch.tensor(0.7, dtype=F64, requires_grad=True)
    mdp = base.replace(temperature=alpha)
    expected = torch.autograd.grad(exact.elbo(mdp, policy), alpha)
    critic = SoftV(mdp.state_space, horizon=4, hidden_sizes=(8,)).double()
    for reading in ("fast", "one run"):
        model, guide = reading_of(reading, mdp, policy)
        rows = gradients(TrajectoryELBO("baseline", critic), model, guide, [alpha], 16, 200)
        assert z_scores(rows, expected).abs().max() < 4.5


@pytest.mark.parametrize("reading", ["fast", "one run", "two runs"])
def test_a_learned_transition_receives_its_gradient(reading):
    """20 batches of 200, seed 0: ∂ELBO/∂(transition logits), |z| < 5.5; every reading is of the same ELBO."""
    base = problem(terminal=False)
    logits = torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(2), dtype=F64).requires_grad_()
    mdp = type(base)(
        logits.softmax(-1), base.reward_table, base.initial_probabilities, horizon=3, discount=0.9, temperature=0.7
    )
    policy = random_policy(mdp).requires_grad_(False)
    expected = torch.autograd.grad(exact.elbo(mdp, policy), logits, retain_graph=True)
    model, guide = reading_of(reading, mdp, policy)
    rows = []
    for _ in range(20):
        loss = TrajectoryELBO().differentiable_loss(model, guide, 200) / 200
        assert loss.requires_grad
        rows.append(torch.autograd.grad(-loss, logits, retain_graph=True)[0].flatten())
    assert z_scores(torch.stack(rows), expected).abs().max() < 5.5


# Critics that learn.


@pytest.mark.parametrize(
    ("reading", "estimator"),
    [
        ("fast", "baseline"),
        ("fast", "advantage"),
        ("fast", "exact_sum"),
        ("one run", "baseline"),
        ("one run", "exact_sum"),
    ],
)
def test_a_critic_is_trained_alongside(estimator, reading):
    """80 steps of SVI on 50 trajectories, seed 0: a fixed policy's critic loses two thirds of its squared error."""
    mdp = problem(discount=1.0, horizon=3)
    policy = random_policy(mdp).requires_grad_(False)
    options = {"horizon": 3, "hidden_sizes": (32,)}
    learns_q = estimator == "exact_sum"
    critic = SoftQ(mdp.state_space, 3, **options) if learns_q else SoftV(mdp.state_space, **options)
    critic = critic.double()
    own = exact.evaluate(mdp, policy)
    exact_values = own.soft_q if learns_q else own.soft_v[:-1]
    weight = exact.occupancy(mdp, policy)[:-1] * ~mdp.terminal
    weight = weight[..., None] * policy.logits.softmax(-1) if learns_q else weight
    states = torch.arange(4).expand(3, 4)
    times = torch.arange(3)[:, None].expand(3, 4)

    def error():
        with torch.no_grad():
            return float((weight * (critic(states, times) - exact_values) ** 2).sum() / weight.sum())

    before = error()
    model, guide = reading_of(reading, mdp, policy)
    elbo = TrajectoryELBO(estimator, critic, 0.9 if estimator == "advantage" else 1.0)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), elbo)
    for _ in range(80):
        svi.step(50)
    assert error() < before / 3
    assert all(name.startswith("critic$$$") for name in pyro.get_param_store())


def test_policy_and_critic_train_together():
    """80 steps of SVI on 100 trajectories, seed 0: from 0.3 nats or more below the optimum to within 0.1."""
    mdp = problem(horizon=3)
    policy = random_policy(mdp)
    best = exact.optimal_elbo(mdp)
    with torch.no_grad():
        assert best - exact.elbo(mdp, policy) > 0.3
    critic = SoftV(mdp.state_space, horizon=3, hidden_sizes=(32,)).double()
    svi = SVI(mdp, follow(mdp, policy), pyro.optim.Adam({"lr": 0.1}), TrajectoryELBO(critic=critic))
    for _ in range(80):
        svi.step(100)
    with torch.no_grad():
        assert best - exact.elbo(mdp, policy) < 0.1


def test_a_critic_takes_states_that_are_no_tensors():
    def program():
        place = {"x": 0.0}
        for t in steps(2):
            action = act(f"action_{t}", dict(place), dist.Bernoulli(torch.tensor(0.5)))
            place["x"] += float(action)
            reward(f"reward_{t}", action)

    policy = Logistic()
    asked = []

    def critic(state, t):
        asked.append((state["x"], t))
        return torch.tensor(state["x"])

    rule = lambda state, t: policy(torch.tensor(state["x"], dtype=F64), t)  # noqa: E731
    elbo = TrajectoryELBO("baseline", critic)
    elbo.differentiable_loss(program, follow(program, rule)).backward()
    assert policy.weight.grad.isfinite().all()
    assert [t for _, t in asked] == [0, 1]


# Particles.


@pytest.mark.parametrize("nesting", [1, math.inf])
@pytest.mark.parametrize("reading", ["fast", "one run", "two runs"])
def test_vectorized_particles_have_the_same_gradient(reading, nesting):
    """20 batches of 20 particles of 10 trajectories, seed 0, against the exact gradient: |z| < 5.5."""
    mdp = problem(terminal=False)
    policy = random_policy(mdp)
    model, guide = reading_of("one run" if reading == "two runs" else reading, mdp, policy)
    if reading == "two runs":
        own = guide
        guide = lambda count: own(count)  # noqa: E731
    elbo = TrajectoryELBO(num_particles=20, vectorize_particles=True, max_plate_nesting=nesting)
    rows = gradients(elbo, model, guide, [policy.logits], 20, 10)
    assert z_scores(rows, exact_gradient(mdp, policy)).abs().max() < 5.5


def test_vectorized_particles_train_by_svi():
    mdp = problem(horizon=2)
    policy = random_policy(mdp)
    with torch.no_grad():
        before = exact.elbo(mdp, policy)
    elbo = TrajectoryELBO(num_particles=100, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(mdp, follow(mdp, policy), pyro.optim.Adam({"lr": 0.1}), elbo)
    for _ in range(40):
        svi.step(1)
    with torch.no_grad():
        assert exact.elbo(mdp, policy) > before + 0.2


# The pure functions.


@pytest.mark.parametrize("number", [3, 5000])
@pytest.mark.parametrize("learns", [False, True])
def test_return_to_go_is_the_sum_of_what_is_left(number, learns):
    terms = torch.randn(5, number, dtype=F64, requires_grad=learns)
    to_go = return_to_go(terms)
    torch.testing.assert_close(to_go, torch.stack([terms[t:].sum(0) for t in range(5)]))
    if learns:
        (slope,) = torch.autograd.grad(to_go.sum(), terms)
        torch.testing.assert_close(slope, torch.arange(1.0, 6.0, dtype=F64)[:, None].expand(5, number))
    else:
        _, slope = torch.func.jvp(return_to_go, (terms,), (torch.ones_like(terms),))
        torch.testing.assert_close(slope, torch.arange(5.0, 0.0, -1.0, dtype=F64)[:, None].expand(5, number))
    # In single precision sums are of double precision, and rounded once.
    rough = torch.randn(5, number)
    assert torch.equal(return_to_go(rough), return_to_go(rough.double()).float())


@pytest.mark.parametrize("lambda_", [0.0, 0.3, 0.9, 1.0])
def test_lambda_advantages_by_their_definition(lambda_):
    terms, values = torch.randn(5, 3, dtype=F64), torch.randn(5, 3, dtype=F64)
    after = torch.cat([values[1:], torch.zeros(1, 3, dtype=F64)])
    errors = terms + after - values
    expected = torch.stack([sum(lambda_ ** (k - t) * errors[k] for k in range(t, 5)) for t in range(5)])
    torch.testing.assert_close(lambda_advantage(terms, values, lambda_), expected)


def test_advantages_of_values_that_do_not_fit():
    with pytest.raises(ValueError, match=r"values_t must have the shape of terms_t, \(5, 3\), got \(5,\)"):
        lambda_advantage(torch.zeros(5, 3), torch.zeros(5), 0.5)


def test_the_critics_loss_counts_living_steps():
    alive = torch.tensor([[True, True], [True, False]])
    loss = critic_loss(torch.tensor([[1.0, 2.0], [0.0, 9.0]]), torch.tensor([[0.0, 0.0], [0.0, 0.0]]), alive)
    assert float(loss) == pytest.approx((1 + 4) / 3)
    assert float(critic_loss(torch.ones(2), torch.zeros(2), torch.zeros(2, dtype=torch.bool))) == 0


# Bad input.


def test_unknown_options_are_named():
    with pytest.raises(ValueError, match=r"estimator must be one of auto, pathwise, .*; got 'reinforce'"):
        TrajectoryELBO("reinforce")
    for lambda_ in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=rf"lambda_ must be a number in \[0, 1\], got {lambda_}"):
            TrajectoryELBO(lambda_=lambda_)
    for estimator in ("baseline", "advantage", "exact_sum"):
        with pytest.raises(ValueError, match=rf"estimator='{estimator}' needs a critic: pass critic="):
            TrajectoryELBO(estimator)


@pytest.mark.parametrize("estimator", ["auto", "score"])
def test_a_policy_in_place_of_a_guide_is_named(estimator):
    mdp = problem()
    policy = random_policy(mdp)
    optim = pyro.optim.Adam({"lr": 0.1})
    for args in ((), (5,)):
        for guide in (policy, lambda state, t: policy(state, t)):
            with pytest.raises(
                ValueError, match=r"guide wants (state and )?t, .* the guide is follow\(program, policy\)"
            ):
                SVI(mdp, guide, optim, loss=TrajectoryELBO(estimator)).step(*args)
    with pytest.raises(ValueError, match=r"model wants state and t, .* follow"):
        SVI(policy, mdp, optim, loss=TrajectoryELBO(estimator)).step()


@pytest.mark.parametrize("reading", ["one run", "two runs"])
def test_pathwise_names_the_site_without_a_path(reading):
    mdp = problem()
    policy = random_policy(mdp)
    model, guide = reading_of(reading, mdp, policy)
    with pytest.raises(ValueError, match="needs reparameterized draws, but site 'action_0' has none; use 'auto'"):
        TrajectoryELBO("pathwise").loss_and_grads(model, guide, 5)


def test_pathwise_on_a_table_says_what_has_no_path():
    mdp = problem()
    with pytest.raises(ValueError, match="pathwise gradients need reparameterized draws, but the initial state is a"):
        TrajectoryELBO("pathwise").loss_and_grads(mdp, follow(mdp, random_policy(mdp)), 5)


@pytest.mark.parametrize("reading", ["fast", "one run"])
def test_critics_of_the_wrong_kind_are_named(reading):
    mdp = problem()
    policy = random_policy(mdp)
    own = exact.evaluate(mdp, policy)
    model, guide = reading_of(reading, mdp, policy)
    with pytest.raises(ValueError, match=r"estimator='baseline' needs a soft V, one value a state, of shape \(4, 5\)"):
        TrajectoryELBO("baseline", TableCritic(own.soft_q)).loss_and_grads(model, guide, 5)
    with pytest.raises(ValueError, match=r"the exact sum needs a soft Q of every action, of shape \(4, 5, 3\)"):
        TrajectoryELBO("exact_sum", TableCritic(own.soft_v)).loss_and_grads(model, guide, 5)


@pytest.mark.parametrize("reading", ["fast", "one run"])
def test_the_exact_sum_needs_categorical_actions(reading):
    mdp, policy = linear_gaussian(), gaussian_policy()
    program = mdp if reading == "fast" else (lambda count: mdp(count))
    elbo = TrajectoryELBO("exact_sum", lambda state, t: state)
    with pytest.raises(ValueError, match="estimator='exact_sum' needs categorical actions"):
        elbo.loss_and_grads(program, follow(program, policy), 5)


@pytest.mark.parametrize("temperatures", [(1.0, 2.0), ()])
def test_a_critic_needs_one_temperature(temperatures):
    """A critic in reward units cannot be compared to terms in nats without one α."""

    def program():
        for t in steps(2):
            act(f"action_{t}", torch.zeros((), dtype=F64), dist.Bernoulli(torch.tensor(0.5, dtype=F64)))
            if temperatures:
                reward(f"reward_{t}", 1.0, temperatures[t])

    elbo = TrajectoryELBO("baseline", wrong_v)
    with pytest.raises(ValueError, match="temperature"):
        elbo.loss_and_grads(program, follow(program, Logistic()))


# Devices.


@pytest.mark.parametrize("estimator", ["auto", "baseline", "exact_sum"])
def test_losses_and_gradients_live_on_the_processs_device(device, estimator):
    base = problem()
    mdp = type(base)(
        base.kernel.probabilities.to(device),
        base.reward_table.to(device),
        base.initial_probabilities.to(device),
        horizon=4,
        discount=0.9,
        terminal=base.terminal.to(device),
    )
    policy = random_policy(mdp).to(device)
    critic = critic_for(estimator, mdp, policy)
    for reading in ("fast", "one run", "two runs", "survival"):
        model, guide = reading_of(reading, mdp, policy)
        loss = TrajectoryELBO(estimator, critic).differentiable_loss(model, guide, 5)
        assert loss.device.type == device.type
        (gradient,) = torch.autograd.grad(loss, policy.logits)
        assert gradient.device.type == device.type
