"""The losses of MPO, against scipy's minimisers, PyTorch's own divergences and quadrature, in float64."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, minimize_scalar
from torch.distributions import Normal, kl_divergence

from rl_as_inference.guides.gaussian import TanhNormal
from rl_as_inference.objectives.mpo_losses import (
    dual_loss,
    gaussian_divergences,
    multiplier_loss,
    regression_loss,
)
from rl_as_inference.objectives.soft_critics import softmax_policy

F64 = torch.float64


def problem(states=5, actions=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = 3 * torch.randn(states, actions, generator=generator, dtype=F64)
    return q, torch.randn(states, actions, generator=generator, dtype=F64).log_softmax(-1)


def divergence_of(q, log_policy, eta):
    improved = softmax_policy(q, log_policy, eta)
    return (improved.exp() * (improved - log_policy)).sum(-1).mean()


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 0.5])
def test_the_duals_minimiser_is_the_temperature_at_which_the_divergence_is_what_is_allowed(epsilon):
    q, log_policy = problem()

    def dual(log_eta):
        return float(dual_loss(q, log_policy, math.exp(log_eta), epsilon))

    found = minimize_scalar(dual, bounds=(-6, 8), method="bounded", options={"xatol": 1e-10})
    assert float(divergence_of(q, log_policy, math.exp(found.x))) == pytest.approx(epsilon, rel=1e-5)
    log_eta = torch.tensor(found.x, dtype=F64, requires_grad=True)
    slope = torch.autograd.grad(dual_loss(q, log_policy, log_eta.exp(), epsilon), log_eta)[0]
    assert abs(float(slope)) < 1e-6


def test_the_duals_least_value_is_the_largest_mean_that_the_divergence_allows():
    """The primal problem, by a solver that knows nothing of duals: max E_q[Q] over tables q with mean KL ≤ ε."""
    q, log_policy = problem(states=2, actions=3)
    worth, prior, epsilon = q.numpy(), log_policy.exp().numpy(), 0.2

    def table(x):
        logits = x.reshape(worth.shape)
        p = np.exp(logits - logits.max(-1, keepdims=True))
        return p / p.sum(-1, keepdims=True)

    def kl(x):
        p = table(x)
        return (p * np.log(p / prior)).sum(-1).mean()

    bound = {"type": "ineq", "fun": lambda x: epsilon - kl(x)}
    primal = minimize(
        lambda x: -(table(x) * worth).sum(-1).mean(), np.log(prior).ravel(), constraints=bound, method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )  # fmt: skip
    dual = minimize_scalar(
        lambda log_eta: float(dual_loss(q, log_policy, math.exp(log_eta), epsilon)),
        bounds=(-6, 6),
        method="bounded",
    )
    assert -primal.fun == pytest.approx(dual.fun, abs=1e-6)


def test_no_gradient_of_the_dual_reaches_values_or_the_old_policy():
    q, log_policy = (each.requires_grad_() for each in problem())
    eta = torch.tensor(0.7, dtype=F64, requires_grad=True)
    loss = dual_loss(q, log_policy, eta, 0.1)
    assert torch.autograd.grad(loss, (eta, q, log_policy), allow_unused=True)[1:] == (None, None)


def test_the_dual_passes_over_actions_that_the_old_policy_never_takes():
    q, log_policy = problem()
    masked = torch.cat([log_policy, torch.full((5, 1), -torch.inf, dtype=F64)], -1)
    padded = torch.cat([q, torch.full((5, 1), 1e3, dtype=F64)], -1)
    eta = torch.tensor(0.7, dtype=F64, requires_grad=True)
    losses = dual_loss(q, log_policy, eta, 0.1), dual_loss(padded, masked, eta, 0.1)
    torch.testing.assert_close(*losses)
    gradients = [torch.autograd.grad(loss, eta)[0] for loss in losses]
    torch.testing.assert_close(*gradients)


def test_projection_is_a_weighted_log_likelihood():
    q, log_policy = problem()
    logits = torch.randn(5, 4, dtype=F64, requires_grad=True)
    weight = softmax_policy(q, log_policy, 1.0).exp()
    loss = regression_loss(logits.log_softmax(-1), weight)
    policy = logits.softmax(-1).detach()
    naive = -sum(float(weight[s, a]) * math.log(float(policy[s, a])) for s in range(5) for a in range(4)) / 5
    assert loss.item() == pytest.approx(naive, rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], (policy - weight) / 5)


def test_projection_onto_impossible_actions_of_no_weight_is_finite():
    logits = torch.tensor([[0.0, 1.0, -torch.inf]], dtype=F64, requires_grad=True)
    loss = regression_loss(logits.log_softmax(-1), torch.tensor([[0.5, 0.5, 0.0]], dtype=F64))
    gradient = torch.autograd.grad(loss, logits)[0]
    assert bool(loss.isfinite())
    assert bool(gradient.isfinite().all())


def gaussians(seed=0, shape=(6, 3)):
    generator = torch.Generator().manual_seed(seed)
    locs = torch.randn(2, *shape, generator=generator, dtype=F64)
    scales = torch.randn(2, *shape, generator=generator, dtype=F64).exp()
    return locs[0], scales[0], locs[1], scales[1]


def test_divergences_are_those_of_torch():
    loc, scale, old_loc, old_scale = gaussians()
    of_mean, of_scale = gaussian_divergences(loc, scale, old_loc, old_scale)
    old = Normal(old_loc, old_scale)
    torch.testing.assert_close(of_mean, kl_divergence(old, Normal(loc, old_scale)))
    torch.testing.assert_close(of_scale, kl_divergence(old, Normal(old_loc, scale)))


def test_divergences_are_those_of_the_squashed_policies():
    """By quadrature on the unit box, of the densities there."""
    loc, scale, old_loc, old_scale = torch.tensor([[0.3], [0.4], [-0.2], [0.5]], dtype=F64)
    action = torch.linspace(-1, 1, 2_000_001, dtype=F64)[1:-1]
    old = TanhNormal(old_loc, old_scale).log_prob(action)
    expected = gaussian_divergences(loc, scale, old_loc, old_scale)
    for new, divergence in zip((TanhNormal(loc, old_scale), TanhNormal(old_loc, scale)), expected, strict=True):
        integrand = old.exp() * (old - new.log_prob(action))
        assert float(torch.trapezoid(integrand, action)) == pytest.approx(float(divergence), rel=1e-4)


def test_a_multiplier_grows_above_the_bound_and_the_policy_pays_it():
    multiplier = torch.tensor([2.0, 3.0], dtype=F64, requires_grad=True)
    divergence = torch.tensor([[0.3, 0.0], [0.1, 0.0]], dtype=F64, requires_grad=True)
    loss = multiplier_loss(multiplier, divergence, 0.1)
    of_multiplier, of_divergence = torch.autograd.grad(loss, (multiplier, divergence))
    assert loss.item() == pytest.approx(0.5)
    torch.testing.assert_close(of_multiplier, torch.tensor([-0.1, 0.1], dtype=F64))
    torch.testing.assert_close(of_divergence, torch.tensor([[1.0, 1.5], [1.0, 1.5]], dtype=F64))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dual_loss(torch.zeros(()), torch.zeros(()), 1.0, 0.1), "q_a must have its actions in a last"),
        (lambda: dual_loss(torch.zeros(2), torch.zeros(3), 1.0, 0.1), "log_prior_a must broadcast"),
        (lambda: dual_loss(torch.zeros(2), torch.zeros(2), torch.ones(2), 0.1), "temperature must be a number"),
        (lambda: regression_loss(torch.zeros(2, 3), torch.zeros(2, 2)), "weight_a must have the shape of log_policy_a"),
        (lambda: gaussian_divergences(*[torch.ones(2)] * 3, torch.ones(3)), "old_scale must have the shape of loc"),
        (lambda: multiplier_loss(torch.ones(2), torch.ones(4, 3), 0.1), "divergence must be"),
    ],
)
def test_shapes_that_do_not_fit_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
