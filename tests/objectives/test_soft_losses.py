"""Soft values, targets and losses: against Pyro's ELBOs of the one-step program, exact answers and hand work."""

import math
from types import SimpleNamespace

import gymnasium
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import random_mdp
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, config_enumerate
from pyro.ops.indexing import Vindex
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import rl_as_inference as rlai
from rl_as_inference import TrajectoryELBO, exact
from rl_as_inference.guides import CategoricalPolicy, TanhGaussianPolicy, TanhNormal
from rl_as_inference.guides.mixture import TanhNormalMixture
from rl_as_inference.objectives import soft_actors, soft_critics
from rl_as_inference.objectives.soft_actors import (
    deterministic_actor_loss,
    exact_sum_actor_loss,
    pathwise_actor_loss,
    score_actor_loss,
    temperature_loss,
    weighted_actor_loss,
)
from rl_as_inference.objectives.soft_critics import (
    exact_soft_value,
    importance_log_sum_exp_value,
    log_sum_exp_value,
    n_step_td_target,
    sampled_soft_value,
    soft_critic_loss,
    soft_double_q_value,
    soft_td_target,
    softmax_policy,
    td_error,
    wrong_td_target,
)

F64 = torch.float64
several = settings(max_examples=30, deadline=None, derandomize=True)


def close(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(
        torch.as_tensor(actual, dtype=F64), torch.as_tensor(expected, dtype=F64), rtol=tolerance, atol=tolerance
    )


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def gradients(loss, parameters):
    return torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)


# The actor's loss is Pyro's ELBO of the one-step program.

NUM_STATES, STATE_SIZE, ACTION_SIZE, NUM_ACTIONS, ALPHA = 7, 3, 2, 4, 0.3
STATES = normal(NUM_STATES, STATE_SIZE, seed=1)


def one_step(policy, prior, q, prior_parameters, language):
    """The program ``a ~ prior, factor Q/α`` over a plate of states, and the policy as its guide."""

    def plain_program():
        with pyro.plate("states", NUM_STATES):
            action = pyro.sample("action_0", prior())
            pyro.factor("optimality_0", q(action) / ALPHA)

    def plain_guide():
        pyro.module("policy", policy)
        with pyro.plate("states", NUM_STATES):
            pyro.sample("action_0", policy(STATES, 0))

    def own_program():
        with pyro.plate("states", NUM_STATES):
            for t in rlai.steps(1):
                action = rlai.act(f"action_{t}", STATES, prior())
                rlai.reward(f"reward_{t}", q(action), temperature=ALPHA)

    own = language == "rlai"
    return SimpleNamespace(
        policy=policy,
        prior=prior,
        q=q,
        program=own_program if own else plain_program,
        guide=rlai.follow(own_program, policy) if own else plain_guide,
        parameters=[*policy.parameters(), *prior_parameters],
    )


def box_problem(language="pyro", learned_prior=False, family=TanhGaussianPolicy):
    """Continuous actions: a squashed Gaussian network, a nonlinear Q, a uniform or a learned prior."""
    policy = family(gymnasium.spaces.Box(-1, 1, (STATE_SIZE,)), ACTION_SIZE, hidden_sizes=(8,)).double()
    network = nn.Sequential(nn.Linear(STATE_SIZE + ACTION_SIZE, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    location = normal(ACTION_SIZE, seed=2).requires_grad_()
    box = torch.ones(NUM_STATES, ACTION_SIZE, dtype=F64)

    def prior():
        if learned_prior:
            return TanhNormal(location * box, box).to_event(1)
        return dist.Uniform(-box, box).to_event(1)

    def q(action):
        return 3 * network(torch.cat([STATES.expand(*action.shape[:-1], -1), action], -1)).squeeze(-1)

    return one_step(policy, prior, q, [location] if learned_prior else [], language)


def finite_problem(language="pyro", learned_prior=False):
    """Discrete actions: a categorical network, a nonlinear Q, a fixed or a learned prior."""
    policy = CategoricalPolicy(gymnasium.spaces.Box(-1, 1, (STATE_SIZE,)), NUM_ACTIONS, hidden_sizes=(8,)).double()
    with torch.no_grad():  # away from uniform, where a network starts
        for parameter in policy.parameters():
            parameter.add_(0.5 * normal(*parameter.shape, seed=3))
    network = nn.Sequential(nn.Linear(STATE_SIZE, 16), nn.Tanh(), nn.Linear(16, NUM_ACTIONS)).double()
    logits = normal(NUM_ACTIONS, seed=4).requires_grad_(learned_prior)
    table = 3 * network(STATES).detach()

    def prior():
        return dist.Categorical(logits=logits.expand(NUM_STATES, -1))

    def q(action):
        return Vindex(table)[torch.arange(NUM_STATES), action]

    problem = one_step(policy, prior, q, [logits] if learned_prior else [], language)
    problem.table = table
    return problem


def same_as(elbo, problem, loss, seed):
    """Checks value and gradient of ``NUM_STATES`` times a mean loss against both of the ways a Pyro ELBO gives them."""
    pyro.set_rng_seed(seed)
    theirs = elbo.differentiable_loss(problem.program, problem.guide)
    close(NUM_STATES * loss.detach(), theirs.detach())
    ours = gradients(NUM_STATES * loss, problem.parameters)
    for mine, expected in zip(ours, gradients(theirs, problem.parameters), strict=True):
        close(mine, expected)

    for parameter in problem.parameters:
        parameter.grad = None
    pyro.set_rng_seed(seed)
    close(NUM_STATES * loss.detach(), elbo.loss_and_grads(problem.program, problem.guide))
    for mine, parameter in zip(ours, problem.parameters, strict=True):
        close(mine, parameter.grad)
    assert max(float(gradient.abs().max()) for gradient in ours) > 0.1


both_languages = pytest.mark.parametrize("language", ["pyro", "rlai"])
both_priors = pytest.mark.parametrize("learned_prior", [False, True])


def pathwise_loss(problem, seed):
    pyro.set_rng_seed(seed)
    policy = problem.policy(STATES, 0)
    action = policy.rsample()
    return pathwise_actor_loss(
        problem.q(action), policy.log_prob(action), problem.prior().log_prob(action), torch.tensor(ALPHA, dtype=F64)
    )


def exact_sum_loss(problem):
    log_policy = problem.policy(STATES, 0).logits.log_softmax(-1)
    return exact_sum_actor_loss(problem.table, log_policy, problem.prior().logits, ALPHA)


def score_loss(problem, seed, baseline=0.0):
    pyro.set_rng_seed(seed)
    policy = problem.policy(STATES, 0)
    action = policy.sample()
    log_policy, log_prior = policy.log_prob(action), problem.prior().log_prob(action)
    return score_actor_loss(problem.q(action), log_policy, log_prior, ALPHA, baseline)


@both_languages
@both_priors
@pytest.mark.parametrize("seed", [0, 1])
def test_pathwise_loss_is_trace_elbo(language, learned_prior, seed):
    problem = box_problem(language, learned_prior)
    same_as(Trace_ELBO(), problem, pathwise_loss(problem, seed), seed)


def test_pathwise_loss_is_trace_elbo_of_many_particles():
    """With one draw a particle and state, ``(K, N)``, the loss is the mean over both."""
    problem = box_problem()
    pyro.set_rng_seed(5)
    policy = problem.policy(STATES, 0)
    action = policy.rsample((3,))
    loss = pathwise_actor_loss(
        problem.q(action), policy.log_prob(action), problem.prior().log_prob(action)[0, :1].expand(3, NUM_STATES), ALPHA
    )
    same_as(Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1), problem, loss, 5)


@both_languages
@both_priors
def test_exact_sum_loss_is_trace_enum_elbo(language, learned_prior):
    problem = finite_problem(language, learned_prior)
    problem.guide = config_enumerate(problem.guide, "parallel")
    same_as(TraceEnum_ELBO(max_plate_nesting=1), problem, exact_sum_loss(problem), 0)


def test_exact_sum_loss_is_every_action_written_out():
    problem = finite_problem()
    log_policy, log_prior = problem.policy(STATES, 0).logits.log_softmax(-1), problem.prior().logits
    total = 0.0
    for n in range(NUM_STATES):
        for a in range(NUM_ACTIONS):
            cost = log_policy[n, a] - log_prior[n, a] - problem.table[n, a] / ALPHA
            total = total + log_policy[n, a].exp() * cost / NUM_STATES
    loss = exact_sum_loss(problem)
    close(loss.detach(), total.detach(), 1e-12)
    for mine, expected in zip(gradients(loss, problem.parameters), gradients(total, problem.parameters), strict=True):
        close(mine, expected, 1e-12)


@both_languages
@both_priors
@pytest.mark.parametrize("seed", [0, 1])
def test_score_loss_is_trace_elbo(language, learned_prior, seed):
    problem = finite_problem(language, learned_prior)
    same_as(Trace_ELBO(), problem, score_loss(problem, seed), seed)


def test_score_loss_is_trace_elbo_of_a_squashed_gaussian_without_reparameterization():
    class Scored(TanhNormal):
        has_rsample = False

        def expand(self, batch_shape, _instance=None):
            return Scored(self.loc.expand(batch_shape), self.scale.expand(batch_shape), False)

    class Policy(TanhGaussianPolicy):
        def forward(self, state, t):
            return Scored(*self.location_and_scale(state, t)).to_event(1)

    problem = box_problem(family=Policy)
    same_as(Trace_ELBO(), problem, score_loss(problem, 2), 2)


def test_score_loss_with_a_baseline_is_trace_graph_elbo():
    """Pyro's baseline is of the ELBO, ours of the loss: minus each other."""
    problem = finite_problem()
    baseline = normal(NUM_STATES, seed=6)

    def guide():
        with pyro.plate("states", NUM_STATES):
            infer = {"baseline": {"baseline_value": -baseline}}
            pyro.sample("action_0", problem.policy(STATES, 0), infer=infer)

    pyro.set_rng_seed(3)
    expected = TraceGraph_ELBO().loss_and_grads(problem.program, guide)
    loss = score_loss(problem, 3, baseline)
    close(NUM_STATES * loss.detach(), expected)
    for mine, parameter in zip(gradients(NUM_STATES * loss, problem.parameters), problem.parameters, strict=True):
        close(mine, parameter.grad)


def test_score_gradient_is_the_exact_sums_in_expectation():
    """Weighted by their probabilities, the score estimates of all actions sum to the exact gradient, any baseline."""
    logits, prior, q = normal(4, seed=7).requires_grad_(), normal(4, seed=8).log_softmax(-1), normal(4, seed=9)
    log_policy = logits.log_softmax(-1)
    expected = gradients(exact_sum_actor_loss(q, log_policy, prior, 0.7), [logits])[0]
    for baseline in (0.0, 1.3):
        estimates = torch.stack(
            [gradients(score_actor_loss(q[a], log_policy[a], prior[a], 0.7, baseline), [logits])[0] for a in range(4)]
        )
        close(log_policy.exp().detach() @ estimates, expected, 1e-12)


@pytest.mark.parametrize("estimator", ["auto", "pathwise"])
def test_pathwise_loss_is_the_trajectory_elbo_of_one_step(estimator):
    problem = box_problem("rlai")
    same_as(TrajectoryELBO(estimator), problem, pathwise_loss(problem, 4), 4)


def test_score_loss_is_the_trajectory_elbo_of_one_step():
    problem = finite_problem("rlai")
    same_as(TrajectoryELBO("score"), problem, score_loss(problem, 4), 4)


def test_exact_sum_gradient_is_the_trajectory_elbos_of_one_step():
    """The value of that estimator is the draws' own; its gradient is the sum's."""
    problem = finite_problem("rlai")
    elbo = TrajectoryELBO("exact_sum", critic=lambda state, t: problem.table.expand(*state.shape[:-1], NUM_ACTIONS))
    theirs = elbo.differentiable_loss(problem.program, problem.guide)
    ours = gradients(NUM_STATES * exact_sum_loss(problem), problem.parameters)
    for mine, expected in zip(ours, gradients(theirs, problem.parameters), strict=True):
        close(mine, expected)


# The mixture policy, and the deterministic one.


def test_weighted_loss_is_the_exact_loss_of_a_mixture():
    """Integrated over each component's noise it is the mixture's own expectation, in value and gradient.

    The expectation is integrated on a grid before squashing, the noise by Gauss and Hermite's rule.
    """
    parameters = [normal(3, seed=10), normal(3, seed=11), 0.2 * normal(3, seed=12) - 0.5]
    logits, location, log_scale = (p.requires_grad_() for p in parameters)
    scale = log_scale.exp()
    mixture = TanhNormalMixture(logits, location[:, None], scale[:, None])

    def q(action):
        return 2 * torch.sin(3 * action) - action**2

    log_prior = torch.tensor(-math.log(2), dtype=F64)

    grid = torch.linspace(-8, 8, 20_001, dtype=F64)
    density = (logits.softmax(-1) * dist.Normal(location, scale).log_prob(grid[:, None]).exp()).sum(-1)
    action = grid.tanh()
    jacobian = 2 * (math.log(2) - grid - nn.functional.softplus(-2 * grid))
    cost = density.log() - jacobian - log_prior - q(action) / ALPHA
    expected = torch.trapezoid(density * cost, grid)

    def rule(num_nodes):
        """Golub and Welsch: nodes and weights of a normal expectation."""
        off = torch.arange(1, num_nodes, dtype=F64).sqrt()
        nodes, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
        return nodes, vectors[0] ** 2

    nodes, weights = rule(80)
    draws = (location + scale * nodes[:, None]).tanh()  # (node, component)
    log_policy = mixture.log_prob(draws[..., None])
    losses = torch.stack(
        [
            weighted_actor_loss(q(a)[None], lp[None], log_prior, mixture.log_weights[None], ALPHA)
            for a, lp in zip(draws, log_policy, strict=True)
        ]
    )
    loss = weights @ losses
    close(loss.detach(), expected.detach(), 1e-6)
    for mine, theirs in zip(gradients(loss, parameters), gradients(expected, parameters), strict=True):
        close(mine, theirs, 1e-6)


def test_weighted_loss_of_one_component_is_the_pathwise_loss():
    problem = box_problem()
    pyro.set_rng_seed(0)
    policy = problem.policy(STATES, 0)
    action = policy.rsample()
    parts = [problem.q(action), policy.log_prob(action), problem.prior().log_prob(action)]
    one = torch.zeros(NUM_STATES, 1, dtype=F64)
    weighted = weighted_actor_loss(*(part[:, None] for part in parts), one, ALPHA)
    close(weighted.detach(), pathwise_actor_loss(*parts, ALPHA).detach(), 1e-12)


def test_deterministic_loss_is_the_limit_of_the_pathwise_loss():
    """``α`` times the pathwise gradient goes to the deterministic one, as fast as ``α`` does."""
    mean = normal(5, seed=13).requires_grad_()

    def gradient(alpha):
        action = mean + 0.1 * normal(5, seed=14)
        q, log_policy = -((action - 1) ** 2), dist.Normal(mean, 0.3).log_prob(action)
        if alpha == 0:
            return gradients(deterministic_actor_loss(q), [mean])[0]
        log_prior = dist.Normal(0.0, 1.0).log_prob(action)
        return gradients(alpha * pathwise_actor_loss(q, log_policy, log_prior, alpha), [mean])[0]

    close(gradient(1e-9), gradient(0), 1e-8)
    close((gradient(1e-3) - gradient(0)) / 1e-3, (gradient(1e-6) - gradient(0)) / 1e-6, 1e-6)


# What the losses lead to.


def test_the_best_policy_is_the_softmax():
    """The actor's loss is the divergence to the softmax policy less the log-sum-exp value in nats."""
    q, prior = normal(6, 4, seed=15), normal(6, 4, seed=16).log_softmax(-1)
    best = softmax_policy(q, prior, ALPHA)
    logits = normal(6, 4, seed=17)
    log_policy = logits.log_softmax(-1)
    divergence = (log_policy.exp() * (log_policy - best)).sum(-1)
    value = log_sum_exp_value(q, prior, ALPHA)
    close(exact_sum_actor_loss(q, log_policy, prior, ALPHA), (divergence - value / ALPHA).mean())

    start = best.clone().requires_grad_()
    (slope,) = gradients(exact_sum_actor_loss(q, start.log_softmax(-1), prior, ALPHA), [start])
    close(slope, torch.zeros_like(slope), 1e-12)


def test_doubling_rewards_and_temperature_changes_no_loss():
    """Losses are in nats, so only the ratio of the two counts."""
    q, prior, log_policy = normal(6, 4, seed=1), normal(6, 4, seed=2).log_softmax(-1), normal(6, 4).log_softmax(-1)
    close(
        exact_sum_actor_loss(2 * q, log_policy, prior, 2 * ALPHA),
        exact_sum_actor_loss(q, log_policy, prior, ALPHA),
        1e-12,
    )
    close(softmax_policy(2 * q, prior, 2 * ALPHA), softmax_policy(q, prior, ALPHA), 1e-12)
    close(log_sum_exp_value(2 * q, prior, 2 * ALPHA), 2 * log_sum_exp_value(q, prior, ALPHA), 1e-12)


def test_temperature_loss_pushes_towards_the_target():
    log_temperature = torch.tensor(-1.0, dtype=F64, requires_grad=True)
    entropy = torch.tensor([0.2, 0.4], dtype=F64, requires_grad=True)

    def slope(target):
        return gradients(temperature_loss(log_temperature, entropy, target), [log_temperature])[0]

    assert slope(1.0) < 0  # too little entropy: descent raises α
    assert slope(-1.0) > 0
    close(slope(0.3), 0.0, 1e-15)
    close(slope(1.0), math.exp(-1) * (0.3 - 1.0), 1e-12)
    close(gradients(temperature_loss(log_temperature, entropy, 1.0), [entropy])[0], torch.zeros(2), 0.0)


@pytest.mark.parametrize("start", [-6.0, 4.0])
def test_temperature_dual_finds_the_temperature_of_a_given_entropy(start):
    q = normal(8, 4, seed=18)
    target = 0.6 * math.log(4)
    log_temperature = torch.tensor(start, dtype=F64, requires_grad=True)
    optimizer = torch.optim.Adam([log_temperature], lr=0.1, betas=(0.5, 0.9))
    for step in range(600):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 600)
        log_policy = softmax_policy(q, torch.zeros((), dtype=F64), log_temperature.exp().detach())
        entropy = exact_soft_value(torch.zeros_like(q), log_policy, torch.zeros((), dtype=F64), 1.0)
        optimizer.zero_grad()
        temperature_loss(log_temperature, entropy, target).backward()
        optimizer.step()
    close(entropy.mean(), target, 1e-5)


# Soft values.

tables = st.integers(0, 10_000).map(lambda seed: (normal(3, 5, seed=seed), normal(3, 5, seed=seed + 1).log_softmax(-1)))
temperatures = st.sampled_from([0.01, 0.3, 1.0, 20.0])


@several
@given(tables, temperatures)
def test_log_sum_exp_is_the_value_of_the_softmax_policy_and_the_largest(table, alpha):
    q, prior = table
    best = softmax_policy(q, prior, alpha)
    close(best.exp().sum(-1), torch.ones(3))
    value = log_sum_exp_value(q, prior, alpha)
    close(value, exact_soft_value(q, best, prior, alpha))
    other = (best + normal(3, 5)).log_softmax(-1)
    assert (exact_soft_value(q, other, prior, alpha) <= value + 1e-12).all()


@several
@given(tables, temperatures)
def test_soft_double_q(table, alpha):
    q, prior = table
    close(soft_double_q_value(q, q, prior, alpha), log_sum_exp_value(q, prior, alpha))
    # The log-sum-exp value corrected: α log Z₁ + E_{π₁}[Q₂ - Q₁].
    target = q + normal(3, 5, seed=19)
    correction = (softmax_policy(q, prior, alpha).exp() * (target - q)).sum(-1)
    close(soft_double_q_value(q, target, prior, alpha), log_sum_exp_value(q, prior, alpha) + correction)


@several
@given(tables, temperatures)
def test_sampled_value_is_the_exact_value_in_expectation(table, alpha):
    q, prior = table
    log_policy = normal(3, 5, seed=20).log_softmax(-1)
    sampled = sampled_soft_value(q, log_policy, prior, alpha)
    close((log_policy.exp() * sampled).sum(-1), exact_soft_value(q, log_policy, prior, alpha))


def test_limits_of_the_temperature():
    q, prior = normal(6, 5, seed=21), normal(6, 5, seed=22).log_softmax(-1)
    close(log_sum_exp_value(q, prior, 1e-12), q.amax(-1))
    close(log_sum_exp_value(q, prior, 1e7), (prior.exp() * q).sum(-1), 1e-6)
    close(softmax_policy(q, prior, 1e-12).exp().amax(-1), torch.ones(6))
    close(softmax_policy(q, prior, 1e12), prior)
    # Double Q-learning: the one network chooses, the other values.
    other = normal(6, 5, seed=23)
    close(soft_double_q_value(q, other, prior, 1e-12), other.gather(-1, q.argmax(-1, keepdim=True)).squeeze(-1))
    # An action that the prior forbids is never the best.
    forbidden = prior.scatter(-1, q.argmax(-1, keepdim=True), -torch.inf)
    close(log_sum_exp_value(q, forbidden, 1e-12), q.topk(2, -1).values[:, 1])


def test_tiny_temperatures_do_not_overflow_in_single_precision():
    q, prior = torch.tensor([1e4, 9e3, -1e4]), torch.full((3,), -math.log(3))
    for alpha in (1e-6, 1e-30):
        assert log_sum_exp_value(q, prior, alpha).item() == pytest.approx(1e4)
        assert soft_double_q_value(q, q, prior, alpha).item() == pytest.approx(1e4)
        assert importance_log_sum_exp_value(q, prior, prior, alpha).item() == pytest.approx(1e4)
        assert softmax_policy(q, prior, torch.tensor(alpha)).exp().tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("num_draws", [4, 64])
def test_importance_estimate_is_unbiased_before_the_logarithm(num_draws):
    """20,000 estimates: the mean of ``exp(V/α)`` is within 4 standard errors of the integral."""
    alpha = 0.5
    prior = TanhNormal(torch.tensor(0.2, dtype=F64), torch.tensor(0.8, dtype=F64))

    def q(action):
        return torch.sin(4 * action) - action

    grid = torch.linspace(-1, 1, 20_003, dtype=F64)[1:-1]
    evidence = torch.trapezoid((prior.log_prob(grid) + q(grid) / alpha).exp(), grid)

    edge = torch.ones(20_000, num_draws, dtype=F64)
    proposal = dist.Uniform(-edge, edge)
    action = proposal.sample()
    estimate = importance_log_sum_exp_value(q(action), proposal.log_prob(action), prior.log_prob(action), alpha)
    weight = (estimate / alpha).exp()
    assert abs(weight.mean() - evidence) < 4 * weight.std() / len(weight) ** 0.5
    # The logarithm is low; for many draws, by about half the relative variance of their mean.
    nats = estimate / alpha
    bias = nats.mean() - evidence.log()
    assert bias < -4 * nats.std() / len(nats) ** 0.5
    if num_draws == 64:
        assert float(bias) == pytest.approx(-float(weight.var() / evidence**2) / 2, rel=0.2)


def test_importance_estimate_is_exact_when_the_proposal_is_the_posterior():
    """For ``p = N(0, 1)`` and ``Q = b a``: the posterior is ``N(b/α, 1)``, the value ``b²/(2α)``."""
    alpha, slope = 0.7, 1.3
    action = slope / alpha + normal(9, 3, seed=24)
    log_proposal = -0.5 * (action - slope / alpha) ** 2
    value = importance_log_sum_exp_value(slope * action, log_proposal, -0.5 * action**2, alpha)
    close(value, 9 * [slope**2 / (2 * alpha)])


def test_impossible_actions_count_nothing_and_have_finite_gradients():
    logits = torch.tensor([[0.5, -torch.inf, 1.0]], dtype=F64, requires_grad=True)
    q = torch.tensor([[1.0, 5.0, 2.0]], dtype=F64, requires_grad=True)
    # Actions that the prior forbids too, or whose value is -inf, are no trouble where they are never taken.
    prior = torch.tensor([[0.5, 0.0, 0.5]], dtype=F64).log().requires_grad_()
    alpha = torch.tensor(0.3, dtype=F64, requires_grad=True)
    possible = [0, 2]

    def both(function):
        log_policy = logits.log_softmax(-1)
        part = [x[:, possible] for x in (q, log_policy, prior)]
        return function(q, log_policy, prior, alpha), function(*part, alpha)

    for function in (lambda *a: exact_soft_value(*a).sum(), exact_sum_actor_loss):
        whole, part = both(function)
        close(whole.detach(), part.detach(), 1e-12)
        inputs = [logits, q, prior, alpha]
        for mine, expected in zip(gradients(whole, inputs), gradients(part, inputs), strict=True):
            assert mine.isfinite().all()
            close(mine, expected, 1e-12)

    hopeless = torch.tensor([[1.0, -torch.inf, 2.0]], dtype=F64, requires_grad=True)
    value = exact_soft_value(hopeless, softmax_policy(hopeless, prior.detach(), alpha), prior.detach(), alpha)
    close(value.detach(), log_sum_exp_value(hopeless[:, possible], prior.detach()[:, possible], alpha).detach())
    assert all(gradient.isfinite().all() for gradient in gradients(value, [hopeless]))


def test_taking_what_the_prior_forbids_costs_everything():
    half, prior = torch.tensor([0.5, 0.5]).log(), torch.tensor([1.0, 0.0]).log()
    assert exact_soft_value(torch.zeros(2), half, prior, 1.0).item() == -math.inf


# Temporal-difference targets.


def endless(seed=5, **options):
    return random_mdp(seed, **{"num_states": 4, "num_actions": 3, "horizon": None, "discount": 0.9, **options})


def random_table(mdp, seed=0):
    return normal(mdp.num_states, mdp.num_actions, seed=seed).softmax(-1)


def expected_target(mdp, values):
    """``E_{s'}`` of the one-step target at every state and action, ``(S, A)``."""
    shape = mdp.kernel.probabilities.shape
    targets = soft_td_target(
        mdp.reward_table[..., None].expand(shape), values.expand(shape), mdp.terminal.expand(shape), mdp.discount
    )
    return (mdp.kernel.probabilities * targets).sum(-1)


def living(mdp, table):
    """Rows of the states in which there is something to do."""
    return table[~mdp.terminal]


@pytest.mark.parametrize("terminal", [False, True])
def test_td_target_has_the_policys_soft_q_as_fixed_point(terminal):
    mdp = endless(terminal=terminal)
    policy = random_table(mdp)
    plan = exact.evaluate(mdp, policy)
    values = exact_soft_value(plan.soft_q, policy.log(), mdp.log_action_prior, mdp.temperature)
    close(living(mdp, values), living(mdp, plan.soft_v))
    close(living(mdp, expected_target(mdp, values)), living(mdp, plan.soft_q))


@pytest.mark.parametrize("terminal", [False, True])
def test_log_sum_exp_targets_iterate_to_the_plan(terminal):
    """Soft Q-iteration (Haarnoja et al. 2017, arXiv:1702.08165); soft double Q with one network is the same."""
    mdp = endless(terminal=terminal)
    plan = exact.plan(mdp)
    q = double = torch.zeros_like(plan.soft_q)
    for _ in range(300):
        q = expected_target(mdp, log_sum_exp_value(q, mdp.log_action_prior, mdp.temperature))
        double = expected_target(mdp, soft_double_q_value(double, double, mdp.log_action_prior, mdp.temperature))
    close(living(mdp, q), living(mdp, plan.soft_q))
    close(living(mdp, double), living(mdp, plan.soft_q))


def all_segments(mdp, policy, n, stops):
    """Every segment of at most ``n`` steps from each state and action, with its probability given these.

    A segment ends early in a terminal state, or cut off, as by a time limit, where ``stops`` says so.
    """
    kernel = mdp.kernel.probabilities
    for state in (~mdp.terminal).nonzero().flatten().tolist():
        for action in range(mdp.num_actions):
            stack = [(1.0, [(state, action)], [])]
            while stack:
                probability, taken, reached = stack.pop()
                for successor in range(mdp.num_states):
                    p = probability * float(kernel[taken[-1]][successor])
                    if p == 0:
                        continue
                    path = [*reached, successor]
                    if len(path) == n or mdp.terminal[successor] or stops[successor]:
                        yield p, taken, path
                    else:
                        stack += [
                            (p * float(policy[successor, a]), [*taken, (successor, a)], path)
                            for a in range(mdp.num_actions)
                        ]


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("cut", [False, True])
def test_n_step_target_is_unbiased_for_the_policys_soft_q(n, cut):
    """Over every segment, the mean target is Q: with endings, time limits and the entropies on the way."""
    mdp = endless(num_states=4, num_actions=2, terminal=True)
    policy = random_table(mdp)
    plan = exact.evaluate(mdp, policy)
    bonus = exact_soft_value(torch.zeros_like(policy), policy.log(), mdp.log_action_prior, mdp.temperature)
    # What is not to be used is poison.
    poison = torch.nan
    values = torch.where(mdp.terminal, 1e3, plan.soft_v)
    stops = torch.tensor([cut, False, False, False])

    probabilities, starts, columns = [], [], []
    for probability, taken, reached in all_segments(mdp, policy, n, stops):
        last, padding = len(reached) - 1, [poison] * (n - len(reached))
        probabilities.append(probability)
        starts.append(taken[0])
        columns.append(
            (
                [float(mdp.reward_table[sa]) for sa in taken] + padding,
                [float(bonus[s]) if k < last else poison for k, s in enumerate(reached)] + padding,
                [float(values[s]) if k == last else poison for k, s in enumerate(reached)] + padding,
                [1.0] * len(reached) + [0.0] * len(padding),
                [float(mdp.terminal[s]) for s in reached] + [0.0] * len(padding),
            )
        )
    rewards, bonuses, ahead, alive, terminated = (torch.tensor(c, dtype=F64).T for c in zip(*columns, strict=True))
    targets = n_step_td_target(rewards, bonuses, ahead, alive, terminated, mdp.discount)
    discount = torch.tensor(mdp.discount, dtype=F64)
    boolean = n_step_td_target(rewards, bonuses, ahead, alive > 0, terminated > 0, discount)
    close(targets, boolean, 0.0)

    mean = torch.zeros(mdp.num_states, mdp.num_actions, dtype=F64)
    index = tuple(torch.tensor(starts).T)
    mean.index_put_(index, torch.tensor(probabilities, dtype=F64) * targets, accumulate=True)
    close(living(mdp, mean), living(mdp, plan.soft_q))


def test_n_step_target_of_one_step_is_the_td_target():
    r, v, ended = normal(1, 6), normal(1, 6, seed=1), torch.tensor([[True, False, True, False, False, True]])
    n_step = n_step_td_target(r, torch.full_like(r, torch.nan), v, torch.ones_like(r), ended, 0.9)
    close(n_step, soft_td_target(r[0], v[0], ended[0], 0.9), 1e-15)


def test_n_step_target_by_hand():
    """Three steps from one start: whole, cut off after two, ended after two, ended after one."""
    rewards = torch.tensor([[1.0, 1, 1, 1], [2, 2, 2, 9], [4, 9, 9, 9]], dtype=F64)
    bonuses = torch.tensor([[0.5, 0.5, 0.5, 9], [0.25, 9, 9, 9], [9, 9, 9, 9]], dtype=F64)
    values = torch.tensor([[9, 9, 9, 9], [9, 8, 9, 9], [16, 9, 9, 9]], dtype=F64)
    alive = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]])
    terminated = torch.tensor([[0, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]])
    expected = [
        1 + 0.5 * (0.5 + 2) + 0.25 * (0.25 + 4) + 0.125 * 16,
        1 + 0.5 * (0.5 + 2) + 0.25 * 8,
        1 + 0.5 * (0.5 + 2),
        1,
    ]
    close(n_step_td_target(rewards, bonuses, values, alive, terminated, 0.5), expected, 1e-15)


def test_targets_pass_no_gradient():
    x = torch.ones(2, 3, dtype=F64, requires_grad=True)
    zeros = torch.zeros(2, 3)
    for target in (
        soft_td_target(x, x, zeros, 0.9),
        n_step_td_target(x, x, x, 1 - zeros, zeros, 0.9),
        wrong_td_target(x, x, x, x, zeros, 0.9, x.sum()),
    ):
        assert not target.requires_grad
    (slope,) = gradients(soft_critic_loss(x, 2 * x[0]), [x])
    close(slope, torch.full((2, 3), -1 / 3, dtype=F64), 1e-15)


def test_wrong_target_has_the_right_objective_and_holds_the_actor_nowhere():
    """Its fixed point is ``Q - α (log π - log p)``: mean V, flat at the optimum, greedy and deterministic elsewhere."""
    mdp = endless()

    def fixed_point(policy):
        log_policy = policy.clamp(min=1e-300).log()
        shape = mdp.kernel.probabilities.shape
        q = torch.zeros_like(policy)
        for _ in range(400):
            targets = wrong_td_target(
                mdp.reward_table[..., None].expand(shape),
                log_policy[..., None].expand(shape),
                mdp.log_action_prior[..., None],
                (policy * q).sum(-1).expand(shape),
                torch.zeros(shape),
                mdp.discount,
                mdp.temperature,
            )
            q = (mdp.kernel.probabilities * targets).sum(-1)
        return q

    policy = random_table(mdp)
    wrong, right = fixed_point(policy), exact.evaluate(mdp, policy)
    close(wrong, sampled_soft_value(right.soft_q, policy.log(), mdp.log_action_prior, mdp.temperature))
    close((policy * wrong).sum(-1), right.soft_v)

    best = exact.plan(mdp)
    close(fixed_point(best.policy), best.soft_v[:, None].expand(-1, mdp.num_actions))

    # Each side answers the other in full: the greedy policy, then its values, and so on. Nothing settles, and
    # what the actor holds is never as good as the optimum.
    for _ in range(10):
        previous = policy
        policy = nn.functional.one_hot(fixed_point(policy).argmax(-1), mdp.num_actions).to(F64)
        assert not torch.equal(policy, previous)
        assert exact.elbo(mdp, policy) < best.objective - 0.1


def test_numbers_by_hand():
    log2 = math.log(2)
    half = torch.tensor([0.5, 0.5], dtype=F64).log()
    q = torch.tensor([0.0, log2], dtype=F64)
    # p = (1/2, 1/2) and exp(Q) = (1, 2): π = (1/3, 2/3), V = log 3/2.
    close(softmax_policy(q, half, 1.0).exp(), [1 / 3, 2 / 3])
    close(log_sum_exp_value(q, half, 1.0), math.log(1.5))
    # A flat measure, as soft actor-critic has it: the mean of Q and the entropy.
    close(exact_soft_value(q, half, torch.zeros(2, dtype=F64), 0.5), log2 / 2 + 0.5 * log2)
    close(sampled_soft_value(q[1], half[1], torch.zeros((), dtype=F64), 0.5), log2 + 0.5 * log2)
    close(importance_log_sum_exp_value(q, half, half, 1.0), math.log(1.5))
    # π₁ = (1/3, 2/3): 2/3·3 - (1/3 log 2/3 + 2/3 log 4/3).
    other = torch.tensor([0.0, 3.0], dtype=F64)
    close(soft_double_q_value(q, other, half, 1.0), 2 - math.log(2 / 3) / 3 - 2 * math.log(4 / 3) / 3)

    close(soft_td_target(*(torch.tensor(x, dtype=F64) for x in (1.0, 10.0, 0.0)), 0.9), 10.0)
    close(soft_td_target(*(torch.tensor(x, dtype=F64) for x in (1.0, 10.0, 1.0)), 0.9), 1.0)
    # r - α log π + γ Q with α = 0.5, π = 1/2.
    one, nought = torch.ones((), dtype=F64), torch.zeros((), dtype=F64)
    close(wrong_td_target(one, half[0], nought, 10 * one, nought, 0.9, 0.5), 1 + 0.5 * log2 + 9)

    # ½ (1² + 3²)/2 + ½ (0² + 2²)/2.
    critics = torch.tensor([[2.0, 1.0], [1.0, 6.0]], dtype=F64)
    close(soft_critic_loss(critics, torch.tensor([1.0, 4.0], dtype=F64)), 2.5 + 1.0)
    close(soft_critic_loss(critics[:, 0], torch.tensor(1.0, dtype=F64)), 0.5)

    close(pathwise_actor_loss(q, half, torch.zeros(2, dtype=F64), 0.5), -log2 - log2)
    close(score_actor_loss(q, half, torch.zeros(2, dtype=F64), 0.5, 7.0), -log2 - log2)
    close(exact_sum_actor_loss(q, half, half, 0.5), -log2)
    weight = torch.tensor([0.25, 0.75], dtype=F64).log()
    close(weighted_actor_loss(q, half, half, weight, 0.5), -1.5 * log2)
    close(deterministic_actor_loss(q), -log2 / 2)
    close(temperature_loss(torch.tensor(log2, dtype=F64), torch.tensor([1.0, 2.0], dtype=F64), 1.0), 1.0)


# Traced, vmapped, compiled; and refused.


def cases():
    """Every function with arguments that fit, of batch shape ``(3, 4)`` and, where there are actions, five of them."""
    x, y, z, w = (normal(3, 4, seed=s) for s in range(4))
    a, b, c, d = (normal(3, 4, 5, seed=s).log_softmax(-1) for s in range(4))
    ended, alive = x > 0, torch.ones(3, 4, dtype=torch.bool)
    alpha, gamma = torch.full((3,), 0.3, dtype=F64), torch.full((3,), 0.9, dtype=F64)
    log_alpha = alpha.log()
    return [
        (sampled_soft_value, (x, y, z, alpha)),
        (exact_soft_value, (a, b, c, alpha)),
        (softmax_policy, (a, b, alpha)),
        (log_sum_exp_value, (a, b, alpha)),
        (importance_log_sum_exp_value, (a, b, c, alpha)),
        (soft_double_q_value, (a, b, c, alpha)),
        (soft_td_target, (x, y, ended, gamma)),
        (n_step_td_target, (x, y, z, alive, ended, gamma)),
        (wrong_td_target, (x, y, z, w, ended, gamma, alpha)),
        (soft_critic_loss, (a, b[:, 0])),
        (td_error, (a, b[:, 0])),
        (pathwise_actor_loss, (x, y, z, alpha)),
        (exact_sum_actor_loss, (a, b, c, alpha)),
        (weighted_actor_loss, (a, b, c, d, alpha)),
        (score_actor_loss, (x, y, z, alpha, w)),
        (deterministic_actor_loss, (x,)),
        (temperature_loss, (log_alpha, x, gamma)),
    ]


every_function = pytest.mark.parametrize(
    ("function", "arguments"), cases(), ids=lambda value: getattr(value, "__name__", "")
)


def test_every_public_function_is_among_the_cases():
    public = {*soft_critics.__all__, *soft_actors.__all__}
    assert public == {function.__name__ for function, _ in cases()}


@every_function
def test_vmap_is_one_call_after_another(function, arguments):
    expected = torch.stack([function(*one) for one in zip(*arguments, strict=True)])
    close(torch.func.vmap(function)(*arguments), expected, 1e-12)


@every_function
def test_vmapped_gradients_are_each_ones_own(function, arguments):
    def total(first, *rest):
        return function(first, *rest).sum()

    expected = torch.stack([torch.func.grad(total)(*one) for one in zip(*arguments, strict=True)])
    close(torch.func.vmap(torch.func.grad(total))(*arguments), expected, 1e-12)


@every_function
@pytest.mark.parametrize("tracing_mode", ["real", "fake"])
def test_traced_value_and_gradient_hold_for_other_inputs(function, arguments, tracing_mode):
    def value_and_gradient(first, *rest):
        return torch.func.grad_and_value(lambda x: function(x, *rest).sum())(first)

    one = tuple(argument[0] for argument in arguments)
    other = tuple(argument[1] for argument in arguments)
    graph = make_fx(value_and_gradient, tracing_mode=tracing_mode)(*one)
    for traced, expected in zip(graph(*other), value_and_gradient(*other), strict=True):
        close(traced, expected, 1e-12)


def test_all_of_them_compile_into_one_graph():
    def everything(groups):
        return [function(*group) for (function, _), group in zip(cases_, groups, strict=True)]

    cases_ = cases()
    groups = [tuple(argument[0] for argument in arguments) for _, arguments in cases_]
    compiled = torch.compile(everything, fullgraph=True, backend="eager")
    for traced, expected in zip(compiled(groups), everything(groups), strict=True):
        close(traced, expected, 1e-12)


B, A = torch.zeros(3), torch.zeros(3, 2)
COLUMN = torch.zeros(3, 1)  # against a batch (3,), the broadcast that nobody wants
WRONG = {
    "log_policy": lambda: sampled_soft_value(B, COLUMN, B, 1.0),
    "log_prior": lambda: sampled_soft_value(B, B, COLUMN, 1.0),
    "temperature": lambda: sampled_soft_value(B, B, B, B),
    "q_a": lambda: log_sum_exp_value(B[0], B[0], 1.0),
    "log_policy_a": lambda: exact_soft_value(A, A[:2], A, 1.0),
    "log_prior_a": lambda: log_sum_exp_value(A, B, 1.0),
    "log_prior_a ": lambda: softmax_policy(A, torch.zeros(2, 3, 2), 1.0),
    "log_prior_a  ": lambda: exact_soft_value(A, A, torch.zeros(3), 1.0),
    "log_proposal_k": lambda: importance_log_sum_exp_value(A, COLUMN, A, 1.0),
    "log_prior_k": lambda: importance_log_sum_exp_value(A, A, B, 1.0),
    "q_target_a": lambda: soft_double_q_value(A, COLUMN, A, 1.0),
    "next_value": lambda: soft_td_target(B, COLUMN, B, 0.9),
    "terminated": lambda: soft_td_target(B, B, COLUMN, 0.9),
    "discount": lambda: soft_td_target(B, B, B, B),
    "rewards_k": lambda: n_step_td_target(*(torch.zeros(0, 3),) * 5, 0.9),
    "bonuses_k": lambda: n_step_td_target(A, A[:2], A, A, A, 0.9),
    "values_k": lambda: n_step_td_target(A, A, COLUMN, A, A, 0.9),
    "alive_k": lambda: n_step_td_target(A, A, A, B, A, 0.9),
    "terminated_k": lambda: n_step_td_target(A, A, A, A, B, 0.9),
    "next_q": lambda: wrong_td_target(B, B, B, COLUMN, B, 0.9, 1.0),
    "q": lambda: soft_critic_loss(B, B),
    "q ": lambda: soft_critic_loss(torch.zeros(2, 3, 1), B),
    "log_policy ": lambda: pathwise_actor_loss(B, COLUMN, B, 1.0),
    "log_prior ": lambda: pathwise_actor_loss(B, B, COLUMN, 1.0),
    "temperature ": lambda: exact_sum_actor_loss(A, A, A, COLUMN),
    "log_policy_a ": lambda: exact_sum_actor_loss(A, COLUMN, A, 1.0),
    "log_policy_k": lambda: weighted_actor_loss(A, COLUMN, A, A, 1.0),
    "log_weight_k": lambda: weighted_actor_loss(A, A, A, COLUMN, 1.0),
    "log_policy  ": lambda: score_actor_loss(B, COLUMN, B, 1.0),
    "baseline": lambda: score_actor_loss(B, B, B, 1.0, COLUMN),
    "log_temperature": lambda: temperature_loss(B, B, 0.0),
}


@pytest.mark.parametrize("name", WRONG)
def test_shapes_that_do_not_fit_are_refused_by_name(name):
    with pytest.raises(ValueError, match=rf"^{name.strip()} must "):
        WRONG[name]()


def test_a_prior_may_broadcast():
    q, log_policy, prior = normal(3, 2), normal(3, 2, seed=1).log_softmax(-1), normal(2, seed=2).log_softmax(-1)
    close(exact_soft_value(q, log_policy, prior, 0.3), exact_soft_value(q, log_policy, prior.expand(3, 2), 0.3), 0.0)
    flat = torch.zeros((), dtype=F64)
    close(log_sum_exp_value(q, flat, 0.3), log_sum_exp_value(q, torch.zeros_like(q), 0.3), 0.0)
