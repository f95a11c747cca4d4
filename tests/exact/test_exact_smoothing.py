"""What trajectories do and earn given optimality, at temperatures where messages are of many thousand nats."""

import pytest
import torch
from problems import random_mdp
from test_exact_tabular import as_sparse, close

from rl_as_inference import TabularMDP, exact
from rl_as_inference.models import gridworld

F64 = torch.float64


def lake(dtype: torch.dtype, temperature: float = 1e-5) -> TabularMDP:
    return TabularMDP.from_gymnasium("FrozenLake-v1", map_name="8x8", horizon=100, temperature=temperature, dtype=dtype)


def sure_and_rich() -> TabularMDP:
    """State 1 pays 800 a step for ever, and only action 1 leads there: its messages overflow an exponential."""
    moves = torch.zeros(2, 2, 2, dtype=F64)
    moves[0, 0, 0] = moves[0, 1, 1] = 1.0
    moves[1, :, 1] = 1.0
    return TabularMDP(moves, [[0.0, 0.0], [800.0, 800.0]], [1.0, 0.0], horizon=3)


def in_logarithms(mdp: TabularMDP, log_policy: torch.Tensor) -> tuple[torch.Tensor, float, float]:
    """The smoothed marginals, ``E[R | O]`` and the forward divergence of a process in which γ = 1, by joint logs.

    Forward and backward messages alike are kept as logarithms of joint probabilities, never of conditional ones.
    """
    log_p = mdp.kernel.dense().log()
    paid = mdp.reward_table if mdp.reward_table.dim() == 3 else mdp.reward_table[..., None].expand_as(log_p)
    paid = torch.where(mdp.terminal[:, None, None], 0.0, paid)
    step = mdp.log_action_prior[..., None] + log_p + paid / mdp.temperature
    backward = [torch.zeros(mdp.num_states, dtype=F64)]
    for _ in range(mdp.horizon):
        backward.insert(0, torch.logsumexp(step + backward[0], (1, 2)))
    forward = mdp.initial_probabilities.log()
    evidence = torch.logsumexp(forward + backward[0], 0)
    marginals, earned, log_ratio = [(forward + backward[0] - evidence).exp()], 0.0, 0.0
    for t in range(mdp.horizon):
        joint = (forward[:, None, None] + step + backward[t + 1] - evidence).exp()
        acting = torch.where(mdp.terminal[:, None, None], 0.0, joint)
        earned += float((acting * paid).sum())
        difference = mdp.log_action_prior - log_policy[t]
        log_ratio += float(torch.where(acting > 0, acting * difference[..., None], 0.0).sum())
        forward = torch.logsumexp(forward[:, None, None] + step, (0, 1))
        marginals.append((forward + backward[t + 1] - evidence).exp())
    return torch.stack(marginals), earned, earned / mdp.temperature - float(evidence) + log_ratio


@pytest.mark.parametrize("reward_on_successor", [False, True])
@pytest.mark.parametrize("discount", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_the_posterior_return_is_the_mean_over_trajectories(kind, discount, reward_on_successor):
    mdp = random_mdp(
        31, horizon=3, discount=discount, temperature=0.4, terminal=True, reward_on_successor=reward_on_successor
    )
    written = exact.enumerate_trajectories(mdp)
    own = as_sparse(mdp) if kind == "sparse" else mdp
    close(exact.posterior_return(own), (written.log_target.exp() * written.returns).sum())


def test_single_precision_smooths_as_double_does():
    """The rewards are 100,000 nats, of which single precision holds no more than hundredths."""
    single, double = (exact.posterior_occupancy(lake(dtype)) for dtype in (torch.float32, F64))
    assert single.dtype == torch.float32
    assert float((single.sum(1) - 1).abs().max()) < 1e-5
    assert float((single - double).abs().max()) < 1e-4


@pytest.mark.parametrize("temperature", [1e-5, 1e-10])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_nobody_expects_to_earn_more_than_there_is(dtype, temperature):
    """The lake pays 1 at its end, once, and at a low temperature the posterior gets there."""
    earned = float(exact.posterior_return(lake(dtype, temperature)))
    assert earned <= 1 + torch.finfo(F64).eps * 100
    assert earned == pytest.approx(1.0, abs=1e-6)


def test_draws_in_single_precision_are_spread_as_the_marginals():
    """12,000 draws, seed 0: the shares of all states at nine times, |z| < 4.5."""
    torch.manual_seed(0)
    count = 12_000
    drawn = exact.sample_posterior(as_sparse(lake(torch.float32)), count)
    assert drawn.rewards.dtype == drawn.log_prior.dtype == drawn.log_policy.dtype == torch.float32
    wanted = exact.posterior_occupancy(lake(F64))
    for t in range(10, 100, 10):
        shares = torch.bincount(drawn.states[t], minlength=64).double() / count
        usual = wanted[t] * count >= 5
        spread = (wanted[t] * (1 - wanted[t]) / count).sqrt()
        assert float(((shares - wanted[t]) / spread)[usual].abs().max()) < 4.5


def test_messages_that_overflow_an_exponential():
    """A trajectory written out has log(p*/π) = log(1/.1), and those of p* take action 1 at once."""
    mdp, policy = sure_and_rich(), torch.tensor([[0.9, 0.1], [0.9, 0.1]], dtype=F64)
    written = exact.enumerate_trajectories(mdp, policy)
    # 1600 nats are had by action 1 at once, 800 a step later.
    expected = (written.log_target.exp() * (written.log_target - written.log_guide)).sum()
    close(exact.trajectory_kl(mdp, policy, "forward"), expected)
    close(exact.posterior_occupancy(mdp), [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    assert float(exact.posterior_return(mdp)) == 1600.0


@pytest.mark.parametrize(
    ("temperature", "dtype", "expected"), [(0.05, torch.float32, 12.99), (0.05, F64, 12.99), (0.005, F64, 127.5)]
)
def test_the_forward_divergence_of_a_plan_that_luck_outdoes(temperature, dtype, expected):
    grid = gridworld(5, 5, horizon=20, slip=0.1, temperature=temperature)
    plan = exact.plan(grid.to(F64))
    occupancy, earned, divergence = in_logarithms(grid.to(F64), plan.log_policy)
    assert divergence == pytest.approx(expected, rel=1e-3)
    grid = grid.to(dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-9
    close(exact.trajectory_kl(grid, exact.plan(grid), "forward"), divergence, tolerance)
    close(exact.posterior_return(grid), earned, tolerance)
    close(exact.posterior_occupancy(grid), occupancy, tolerance)


def test_small_divergences_of_large_objectives_keep_their_digits():
    """The causal plan's own policy is 0 from it and, where nothing is left to luck, from the posterior."""
    sure = gridworld(4, 4, horizon=20, slip=0.0, temperature=1e-5, dtype=torch.float32)
    exactly = exact.plan(sure.to(F64))
    for direction in ("reverse", "forward"):
        for dynamics in ("causal", "posterior"):
            found = exact.trajectory_kl(sure, exactly, direction, dynamics)
            assert found.dtype == torch.float32
            assert float(found) == pytest.approx(0.0, abs=1e-6)
    # In single precision a policy's rows miss one by rounding, and its ELBO would miss as much of 10⁵ nats a step.
    rounded = exact.plan(sure).policy
    kept = rounded.double() / rounded.double().sum(-1, keepdim=True)
    expected = float(exact.optimal_elbo(sure.to(F64)) - exact.elbo(sure.to(F64), kept))
    assert float(exact.trajectory_kl(sure, rounded, dynamics="causal")) == pytest.approx(expected, rel=1e-4)


def test_unknown_dynamics_are_named():
    for reading in (exact.plan, exact.posterior_occupancy):
        with pytest.raises(ValueError, match="dynamics must be one of causal, posterior; got 'optimistic'"):
            reading(sure_and_rich(), "optimistic")
