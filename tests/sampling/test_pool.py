"""Draws of several filters in the memory of one: who descends from whom, and what is kept."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import random_mdp

import rl_as_inference as rlai
from rl_as_inference import exact, models
from rl_as_inference.randomness import forked
from rl_as_inference.sampling import repeated_filters, sequential_monte_carlo
from rl_as_inference.sampling.pool import Pool
from rl_as_inference.trajectories import Block, Genealogy


def test_lines_follow_the_ancestors_that_were_drawn() -> None:
    rows = Block(3)
    for row in ([10, 11, 12, 13], [20, 21, 22, 23], [30, 31, 32, 33]):
        rows.append(torch.tensor(row))
    # After step 0 particle 0 descends from 3, 1 and 2 from 1, 3 from 0; nobody was resampled after step 1.
    ancestors = [torch.tensor([3, 1, 1, 0], dtype=torch.int32), None, torch.tensor([2, 2, 0, 1])]
    found = Genealogy(torch.tensor([0, 3]), ancestors).gathered(rows)
    # The wanted 0 was 2 before the last resampling, and 1 before the first; the wanted 3 was 1, and 1.
    assert found.tolist() == [[11, 11], [22, 21], [32, 31]]


def test_what_a_filter_keeps_is_what_it_would_have_had() -> None:
    """The particles that are asked for have the trajectories that they have among all, and the weights are of all."""
    mdp = random_mdp(4, horizon=6, temperature=0.1)
    wanted = torch.tensor([7, 3, 3, 40])
    pyro.set_rng_seed(1)
    everyone = sequential_monte_carlo(mdp, None, 50)
    pyro.set_rng_seed(1)
    some = sequential_monte_carlo(mdp, None, 50, keep=lambda log_weight, log_evidence: wanted)
    for name in ("states", "actions", "rewards", "mask", "log_prior", "log_policy"):
        assert torch.equal(getattr(some.trajectories, name), getattr(everyone.trajectories, name)[:, wanted]), name
    assert torch.equal(some.log_weight, everyone.log_weight)
    assert torch.equal(some.ancestors, everyone.ancestors)
    assert len(everyone.ancestors.unique()) < 50  # it was resampled


def test_a_pool_keeps_no_more_than_can_be_asked_for_and_evidence_stays() -> None:
    mdp = random_mdp(4, horizon=6, temperature=0.1)
    pyro.set_rng_seed(2)
    whole = repeated_filters(mdp, None, 60)
    pyro.set_rng_seed(2)
    pool = repeated_filters(mdp, None, 60, num_draws=20)
    assert pool.trajectories.num_trajectories <= 20 + 2 * 8  # rounded up, and one more, of each filter
    assert (pool.log_evidence, pool.standard_error) == (whole.log_evidence, whole.standard_error)
    assert pool.effective_sample_size == whole.effective_sample_size
    assert pool.effective_ancestors == whole.effective_ancestors
    assert float(torch.logsumexp(pool.log_chance, 0)) == pytest.approx(whole.log_evidence + math.log(8), abs=1e-6)


def test_thinning_leaves_every_draw_its_expected_number_of_copies() -> None:
    """Three filters of unequal evidence, thinned 300 times; z-scores of each draw's share of the pool below 4.5."""
    mdp = random_mdp(4, horizon=2, temperature=0.1)
    runs = [sequential_monte_carlo(mdp, None, 6) for _ in range(3)]
    wanted = torch.cat([r.log_weight - torch.logsumexp(r.log_weight, 0) + r.log_evidence for r in runs]).softmax(0)
    total, square, count = torch.zeros(18).double(), torch.zeros(18).double(), 300
    for number, run in enumerate(runs):  # the rewards tell which draw it is
        run.trajectories.rewards[0] = 10.0 * number + torch.arange(6)
    for seed in range(count):
        torch.manual_seed(seed)
        pool = Pool(4)
        for run in runs:
            pool.add(run)
        drawn = pool.draws()
        which = (drawn.trajectories.rewards[0] % 10 + 6 * (drawn.trajectories.rewards[0] // 10)).long()
        share = torch.bincount(which, drawn.log_chance.softmax(0), 18)
        total, square = total + share, square + share**2
    mean = total / count
    spread = (square / count - mean**2).clamp(min=1e-12).sqrt() / count**0.5
    assert ((mean - wanted).abs() / spread < 4.5).all()


def test_draws_of_the_pool_are_of_the_posterior() -> None:
    """1,000 draws of eight filters that do not look ahead, against the exact posterior return; |z| < 4."""
    mdp = random_mdp(7, horizon=4, temperature=0.5)
    returns = torch.as_tensor(
        rlai.posterior(mdp, method="smc", num_draws=1000, critic=None).sample_stats["return"].values
    )
    # Draws of a filter share ancestors: a quarter of them count.
    error = float(returns.std()) / (len(returns.flatten()) / 4) ** 0.5
    assert abs(float(returns.mean()) - float(exact.posterior_return(mdp))) < 4 * error


def test_a_generator_of_its_own_follows_the_seed_and_moves_nothing() -> None:
    torch.manual_seed(5)
    first = torch.rand(3, generator=forked())
    after = torch.rand(3)
    torch.manual_seed(5)
    again = torch.rand(3, generator=forked())
    torch.manual_seed(5)
    assert torch.equal(first, again)
    assert torch.equal(after, torch.rand(3))
    assert not torch.equal(first, after)


def _unseen() -> None:
    """A program whose hidden state shows itself, with the history as what policies see."""
    state = pyro.sample("state_0", dist.Bernoulli(0.5))
    for t in rlai.steps(3, discount=0.9):
        rlai.observe(f"observation_{t}", dist.Bernoulli(0.2 + 0.6 * state))
        action = rlai.act(f"action_{t}", rlai.history(), dist.Categorical(logits=torch.zeros(2)))
        rlai.reward(f"reward_{t}", -(state - action).abs(), 0.3)


UNIFORM = {
    "tables": (lambda: random_mdp(3, horizon=4, temperature=0.2, uniform_prior=True), 2),
    "tables with endings": (lambda: random_mdp(3, horizon=4, temperature=0.2, terminal=True, uniform_prior=True), 2),
    "hidden tables": (lambda: models.tiger(horizon=3), 3),
    "a program": (lambda: models.corridor(3, 3, temperature=0.2), 2),
    "a program of histories": (lambda: _unseen, 2),
}


@pytest.mark.parametrize("name", UNIFORM)
@pytest.mark.parametrize(("shape", "critic"), [((), "auto"), ((1,), None)])
def test_filters_take_policies_of_no_batch_shape(name: str, shape: tuple[int, ...], critic: str | None) -> None:
    """As ``guide`` and ``importance`` do: the answer counts for every particle, and the evidence is the prior's own."""
    make, num_actions = UNIFORM[name]
    process = make()
    dtype = torch.float64 if name.startswith("tables") else torch.float32
    alike = dist.Categorical(logits=torch.zeros(num_actions, dtype=dtype)).expand(shape)
    data = rlai.posterior(process, lambda state, t: alike, method="smc", num_draws=100, critic=critic)
    wanted = rlai.estimate_log_evidence(process, method="importance", num_proposals=2000)
    found, error = data.posterior.attrs["log_evidence"], data.posterior.attrs["log_evidence_standard_error"]
    assert abs(found - wanted.mean) < 5 * math.hypot(error, wanted.standard_error)
    for method in ("guide", "importance"):
        assert (
            rlai.posterior(process, lambda state, t: alike, method=method, num_draws=20).posterior.sizes["draw"] == 20
        )


def test_continuous_policies_of_no_batch_shape() -> None:
    double = models.double_integrator(horizon=3)
    wide = dist.MultivariateNormal(torch.zeros(1), torch.eye(1))
    found = rlai.estimate_log_evidence(double, lambda state, t: wide, method="smc", num_particles=500)
    assert abs(found.mean - float(exact.log_evidence(double))) < 5 * found.standard_error
    unit = dist.Uniform(-torch.ones(1), torch.ones(1)).to_event(1)
    assert rlai.posterior(models.pendulum(horizon=3), lambda state, t: unit, method="smc", num_draws=20) is not None
