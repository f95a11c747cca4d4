"""The losses of learning from data, against their definitions, in float64."""

import math

import pytest
import torch
from scipy.optimize import brentq

from rl_as_inference.objectives.advantage_weights import (
    advantage_weights,
    expectile_loss,
    lambda_return,
    weighted_likelihood_loss,
)
from rl_as_inference.objectives.mpo_losses import dual_loss

F64 = torch.float64


@pytest.mark.parametrize("expectile", [0.1, 0.5, 0.7, 0.99])
def test_the_expectile_losss_minimiser_is_the_expectile(expectile):
    """Newey & Powell's definition: τ E[(X - e)₊] = (1 - τ) E[(e - X)₊]."""
    draws = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=F64)

    def balance(value):
        above, below = (draws - value).clamp(min=0), (value - draws).clamp(min=0)
        return float(expectile * above.mean() - (1 - expectile) * below.mean())

    found = torch.tensor(brentq(balance, -5, 5, xtol=1e-13), dtype=F64, requires_grad=True)
    loss = expectile_loss(found.expand(200), draws, expectile)
    assert abs(float(torch.autograd.grad(loss, found)[0])) < 1e-10
    by_hand = sum((expectile if x > found.item() else 1 - expectile) * (x - found.item()) ** 2 for x in draws.tolist())
    assert loss.item() == pytest.approx(by_hand / 200, rel=1e-12)


def test_half_is_the_mean_and_near_one_is_the_largest():
    target = torch.tensor([0.0, 1.0, 5.0], dtype=F64)
    for expectile, expected, within in ((0.5, 2.0, 1e-6), (1 - 1e-7, 5.0, 1e-5)):
        value = torch.tensor(2.5, dtype=F64, requires_grad=True)
        optimiser = torch.optim.LBFGS([value], max_iter=200, tolerance_grad=1e-16, tolerance_change=1e-16)

        def closure(value=value, optimiser=optimiser, expectile=expectile):
            optimiser.zero_grad()
            loss = 1e3 * expectile_loss(value.expand(3), target, expectile)
            loss.backward()
            return loss

        for _ in range(50):
            optimiser.step(closure)
        assert value.item() == pytest.approx(expected, abs=within)


def test_weights_are_exponentials_over_their_mean_and_clipped():
    advantage = torch.tensor([0.5, -1.0, 3.0, 0.0], dtype=F64)
    raw = [math.exp(a / 0.7) for a in advantage.tolist()]
    mean = sum(raw) / 4
    weights = advantage_weights(advantage, 0.7, math.inf)
    torch.testing.assert_close(weights, torch.tensor([w / mean for w in raw], dtype=F64))
    assert weights.mean().item() == pytest.approx(1.0)
    assert advantage_weights(advantage, 0.7, 1.5).tolist() == pytest.approx([min(w / mean, 1.5) for w in raw])
    huge = advantage_weights(1e6 * advantage, 0.7, math.inf)
    assert huge.tolist() == [0.0, 0.0, 4.0, 0.0]


def test_the_temperature_of_the_dual_holds_the_divergence_from_the_data():
    advantage = torch.randn(64, generator=torch.Generator().manual_seed(1), dtype=F64)
    share = torch.full((1, 64), -math.log(64), dtype=F64)

    def slope(log_eta):
        eta = torch.tensor(log_eta, dtype=F64, requires_grad=True)
        loss = dual_loss(advantage[None], share, eta.exp(), 0.5)
        return float(torch.autograd.grad(loss, eta)[0])

    eta = math.exp(brentq(slope, -4, 4, xtol=1e-13))
    weights = advantage_weights(advantage, eta, math.inf) / 64
    assert float((weights * (64 * weights).log()).sum()) == pytest.approx(0.5, abs=1e-9)


def naive_lambda_return(rewards, values, alive, terminated, discount, lambda_):
    """The mixture of n-step returns, (1 - λ) Σ λ^(n-1) G_n with all that is left on the longest."""
    steps = int(sum(alive))
    total, left = 0.0, 1.0
    for n in range(1, steps + 1):
        earned = sum(discount**k * rewards[k] for k in range(n))
        earned += discount**n * (1 - terminated[n - 1]) * values[n - 1]
        share = left if n == steps else left * (1 - lambda_)
        total += share * earned
        left *= lambda_
    return total


@pytest.mark.parametrize("lambda_", [0.0, 0.4, 0.95, 1.0])
def test_lambda_returns_are_mixtures_of_n_step_returns(lambda_):
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 5, 4, generator=generator, dtype=F64)
    alive = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]], dtype=F64)
    terminated = torch.zeros(5, 4, dtype=F64)
    terminated[2, 1] = terminated[1, 2] = 1.0
    rewards[alive == 0], values[alive == 0] = 1e9, -1e9  # what nobody may look at
    found = lambda_return(rewards, values, alive, terminated, 0.9, lambda_)
    for b in range(4):
        columns = [each[:, b].tolist() for each in (rewards, values, alive, terminated)]
        assert found[b].item() == pytest.approx(naive_lambda_return(*columns, 0.9, lambda_), rel=1e-12)


def test_a_weight_of_one_is_maximum_likelihood():
    logits = torch.randn(3, 4, dtype=F64, requires_grad=True)
    action = torch.tensor([0, 3, 1])
    log_policy = logits.log_softmax(-1).gather(-1, action[:, None])[:, 0]
    loss = weighted_likelihood_loss(log_policy, torch.ones(3, dtype=F64))
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, action))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: expectile_loss(torch.zeros(2), torch.zeros(3), 0.5), "value must have the shape of target"),
        (lambda: expectile_loss(torch.zeros(2), torch.zeros(2), 1.0), "expectile must be between 0 and 1"),
        (lambda: advantage_weights(torch.zeros(2), torch.ones(2), 20.0), "temperature must be a number"),
        (lambda: weighted_likelihood_loss(torch.zeros(2), torch.ones(3)), "weight must have the shape of log_policy"),
        (lambda: lambda_return(*[torch.zeros(2, 1)] * 3, torch.zeros(2), 0.9, 0.9), "terminated_k must have the shape"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
