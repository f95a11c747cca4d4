"""The action prior as a parameter of the model: rate-distortion, and its multi-step form."""

import importlib.util
import itertools
import math
from pathlib import Path

import pytest
import torch

import rl_as_inference as rlai
from rl_as_inference import exact

spec = importlib.util.spec_from_file_location("learned_prior", Path(__file__).parents[2] / "examples/learned_prior.py")
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)

F64 = torch.float64


def problem(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    chance = torch.rand(5, generator=g, dtype=F64) + 0.1
    return chance / chance.sum(), torch.randn(5, 4, generator=g, dtype=F64)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_same_elbo_reaches_blahut_arimoto(seed, alpha):
    """Objective within 1e-8 nats, rate and reward within 1e-6, of the independent algorithm."""
    chance, reward = problem(seed)
    rate, mean = example.blahut_arimoto(chance, reward, alpha)
    best, prior = example.train_prior(chance, reward, alpha)
    assert best == pytest.approx(mean / alpha - rate, abs=1e-8)
    mdp = example.contextual(chance, reward, alpha, prior)
    plan = exact.plan(mdp)
    assert example.information(mdp, plan) == pytest.approx(rate, abs=1e-6)
    assert float(exact.expected_return(mdp, plan)) == pytest.approx(mean, abs=1e-6)
    # The cost is a mutual information: the prior is the policy's own average.
    joint = chance[:, None] * plan.policy[0]
    assert torch.allclose(joint.sum(0), prior, atol=1e-5)
    independent = chance[:, None] * joint.sum(0)
    mutual = torch.where(joint > 0, joint * (joint / independent).log(), 0.0).sum()
    assert float(mutual) == pytest.approx(rate, abs=1e-6)


def test_blahut_arimoto_on_a_binary_source():
    """A fair coin with Hamming distortion: R(D) = log 2 - h(D) nats with D = 1/(1 + e^{1/α}), in closed form."""
    for alpha in (0.2, 0.7, 2.0):
        wrong = 1 / (1 + math.exp(1 / alpha))
        entropy = -wrong * math.log(wrong) - (1 - wrong) * math.log(1 - wrong)
        rate, mean = example.blahut_arimoto(torch.full((2,), 0.5, dtype=F64), torch.eye(2, dtype=F64), alpha)
        assert rate == pytest.approx(math.log(2) - entropy, abs=1e-9)
        assert mean == pytest.approx(1 - wrong, abs=1e-9)


def test_the_curve_is_concave_and_rises():
    chance, reward = example.task()
    found = [example.blahut_arimoto(chance, reward, alpha) for alpha in (2.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02)]
    rates, means = (torch.tensor(x, dtype=F64) for x in zip(*found, strict=True))
    assert bool((rates.diff() > 0).all())
    slopes = means.diff() / rates.diff()
    assert bool((slopes > 0).all())
    assert bool((slopes.diff() < 0).all())
    # The slope between two points lies between their temperatures.
    assert 0.02 < float(slopes[-1]) < 0.05


@pytest.mark.parametrize("seed", range(2))
def test_many_steps(seed):
    """Alternation never lowers the ELBO, and ends where the gradient in the prior vanishes on the simplex."""
    mdp = rlai.models.random_mdp(6, 3, horizon=None, discount=0.8, temperature=0.8, seed=seed, dtype=F64)
    values = []
    for _ in range(300):
        values.append(float(exact.optimal_elbo(mdp)))
        _, prior = example.alternate(mdp, 1)
        mdp = mdp.replace(action_prior=prior)
    assert min(b - a for a, b in itertools.pairwise(values)) > -1e-12
    assert values[-1] > values[0] + 1e-3
    free = mdp.action_prior[0].clone().requires_grad_()
    best = exact.optimal_elbo(mdp.replace(action_prior=free / free.sum()))
    (gradient,) = torch.autograd.grad(best, free)
    used = prior > 1e-6
    assert float(gradient[used].abs().max()) < 1e-6
    assert bool((gradient[~used] < 1e-6).all()), "what is not used would not help"
    # The ELBO as a whole, by gradient ascent from elsewhere, is no larger.
    logits = torch.tensor([0.5, -0.5, 0.2], dtype=F64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = -exact.optimal_elbo(mdp.replace(action_prior=logits.softmax(0)))
        loss.backward()
        return loss

    optimizer.step(closure)
    assert -float(closure().detach()) == pytest.approx(values[-1], abs=1e-6)


def test_the_prior_trains_in_a_pyro_program():
    """SVI on prior and policy together, 300 steps of 512 draws, seed 0: within 0.05 nats of the largest ELBO."""
    import pyro

    pyro.set_rng_seed(0)
    chance, reward = example.task()
    prior, policy = example.train_by_svi(chance, reward, 0.2, 300)
    best, _ = example.train_prior(chance, reward, 0.2)
    mdp = example.contextual(chance, reward, 0.2, prior)
    reached = float(exact.elbo(mdp, policy))
    fixed = float(exact.optimal_elbo(example.contextual(chance, reward, 0.2)))
    assert best - 0.05 < reached <= best + 1e-9
    assert reached > fixed + 0.1, "no policy reaches that with the uniform prior"


def test_replace_takes_an_action_prior():
    mdp = rlai.models.random_mdp(3, 2, horizon=2, dtype=F64)
    other = mdp.replace(action_prior=torch.tensor([0.9, 0.1], dtype=F64))
    assert not other.has_uniform_prior
    assert float(other.action_prior[1, 0]) == pytest.approx(0.9)
    assert other.replace(action_prior=None).has_uniform_prior
    assert other.replace(horizon=3).action_prior.equal(other.action_prior)
    with pytest.raises(ValueError, match="action_prior"):
        mdp.replace(action_prior=torch.tensor([0.5, 0.6], dtype=F64))
