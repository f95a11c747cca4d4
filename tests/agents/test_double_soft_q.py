"""Biases of soft Q targets under noisy values: what is proved, and what is measured."""

import importlib.util
from pathlib import Path

import pytest
import torch

from rl_as_inference import exact
from rl_as_inference.objectives.soft_critics import softmax_policy

spec = importlib.util.spec_from_file_location("double_soft_q", Path(__file__).parents[2] / "examples/double_soft_q.py")
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)


def z_score(samples: torch.Tensor, wanted: float = 0.0) -> float:
    return float((samples.mean() - wanted) / (samples.std() / len(samples) ** 0.5))


@pytest.mark.parametrize("alpha", [0.05, 0.5, 5.0])
def test_biases_are_divergences(alpha):
    """single = α KL(π* || π₁), double = -α KL(π₁ || π*), in the mean; 5,000 draws, noise 0.5, seed 0, |z| < 4."""
    torch.manual_seed(0)
    mdp = example.process(0, alpha)
    plan = exact.plan(mdp)
    q = plan.soft_q.expand(5000, -1, -1)
    q1, q2 = (q + 0.5 * torch.randn_like(q) for _ in range(2))
    log_prior = mdp.log_action_prior.expand_as(q)
    single, double, _, _ = example.values(q1, q2, log_prior, alpha) - plan.soft_v
    true, noisy = softmax_policy(q, log_prior, alpha), softmax_policy(q1, log_prior, alpha)
    up = alpha * (true.exp() * (true - noisy)).sum(-1)
    down = -alpha * (noisy.exp() * (noisy - true)).sum(-1)
    assert float(up.min()) >= -1e-12
    assert float(down.max()) <= 1e-12
    # Exactly, draw by draw, once the noise's own mean is taken off.
    assert torch.allclose(single - (true.exp() * (q1 - q)).sum(-1), up, atol=1e-9)
    assert torch.allclose(double - (noisy.exp() * (q2 - q)).sum(-1), down, atol=1e-9)
    assert abs(z_score((single - up).mean(-1))) < 4
    assert abs(z_score((double - down).mean(-1))) < 4
    assert z_score(single.mean(-1)) > 4
    assert z_score(double.mean(-1)) < -4


def test_the_hard_limit_is_double_q_learning():
    """At α → 0: max Q₁, Q₂(argmax Q₁) and max of the minimum."""
    torch.manual_seed(0)
    q1, q2 = torch.randn(2, 1000, 4, dtype=torch.float64)
    log_prior = torch.full_like(q1, 0.25).log()
    found = example.values(q1, q2, log_prior, example.HARD)
    best = q1.argmax(-1, keepdim=True)
    assert torch.allclose(found[0], q1.amax(-1), atol=1e-5)
    assert torch.allclose(found[1], q2.gather(-1, best)[:, 0], atol=1e-5)
    assert torch.allclose(found[2], torch.minimum(q1, q2).amax(-1), atol=1e-5)


def test_small_noise_only_turns_the_bias_around():
    """Noise 0.5, α = 5: ±σ²/2α (1 - Σ π*²) to leading order, so that the halves cancel; 20,000 draws, seed 0."""
    torch.manual_seed(0)
    mdp = example.process(0, 5.0)
    errors = example.backup_bias(mdp, 0.5, 20_000)
    theory = float(0.25 / (2 * 5.0) * (1 - exact.plan(mdp).policy.square().sum(-1)).mean())
    assert float(errors[0].mean()) == pytest.approx(theory, rel=0.1)
    assert float(errors[1].mean()) == pytest.approx(-theory, rel=0.1)
    assert abs(z_score(errors[3])) < 4
    assert float(errors[3].mean().abs()) < 0.05 * theory


@pytest.mark.parametrize("alpha", [example.HARD, 0.5])
def test_large_noise_is_where_it_pays(alpha):
    """Noise 2 on rewards of deviation 1: double's bias is less than half of single's; 20,000 draws, z > 4."""
    torch.manual_seed(0)
    errors = torch.stack([example.backup_bias(example.process(seed, alpha), 2.0, 20_000) for seed in range(3)]).mean(0)
    single, double = errors[0], errors[1]
    assert z_score(single) > 4
    assert z_score(double) < -4
    assert z_score(single / 2 + double) > 4, "|double| < single / 2"


def test_the_fixed_point_amplifies_the_bias():
    """Noisy backups repeated: signs stay, the size is about γ/(1-γ) = 9 times one backup's; z-scores of 6 runs."""
    torch.manual_seed(0)
    mdp = example.process(0, 1.0)
    one = example.backup_bias(mdp, 0.5, 5000).mean(-1)
    fixed = example.fixed_point_bias(mdp, 0.5, 6, rounds=90)
    assert z_score(fixed[0]) > 4
    assert z_score(fixed[1]) < -4
    assert z_score(fixed[2]) < -4
    assert torch.allclose(fixed.mean(-1)[:3] / one[:3], torch.tensor(9.0, dtype=torch.float64), rtol=0.25)


def test_no_noise_no_bias():
    errors = example.fixed_point_bias(example.process(1, 0.5), 0.0, 2, rounds=9)
    assert float(errors.abs().max()) < 1e-8
