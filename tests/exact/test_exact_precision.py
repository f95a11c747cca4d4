"""Exact answers at every horizon, temperature and precision: values of independent computations, and a random sweep."""

import math
import warnings

import mpmath
import pytest
import torch

import rl_as_inference as rlai
from benchmarks import exact_sweep
from rl_as_inference import TabularMDP, exact
from rl_as_inference.exact import linear_systems
from rl_as_inference.models import gridworld

F64 = torch.float64


def table(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


ONE = torch.ones(1, 1, dtype=F64)


def lonely(reward: float | torch.Tensor, **options: object) -> TabularMDP:
    """One state, one action."""
    return TabularMDP(ONE[None], torch.as_tensor(reward, dtype=F64).reshape(1, 1), ONE[0], **options)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_a_random_sweep(dtype: torch.dtype) -> None:
    """10 problems and 5 of many states against 80 digits, 7 not the other precision's; exact_sweep.py has 2,000."""
    errors = exact_sweep.Errors()
    first = 5000 if dtype == F64 else 5015
    with mpmath.workdps(exact_sweep.DIGITS), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The first three: states that are never reached and worth infinitely much, and γ = 0 where e^V overflows.
        for seed in (218, 504, 456, *range(first, first + 7)):
            exact_sweep.check(seed, dtype, errors)
        assert errors.finite > 20
        assert errors.problems == 10
        for seed in range(5000, 5005):
            exact_sweep.check_large(seed, dtype, errors)
    assert exact_sweep.failures(str(dtype), errors) == []


def test_the_sweep_sees_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is off by 1e-8 of itself is beyond the tolerance."""
    right = exact.log_evidence
    monkeypatch.setattr(exact, "log_evidence", lambda mdp: right(mdp) * (1 + 1e-8))
    errors = exact_sweep.Errors()
    with mpmath.workdps(exact_sweep.DIGITS):
        exact_sweep.check(5001, F64, errors)
    assert any(line.startswith("log_evidence, value") for line in exact_sweep.failures("float64", errors))


def test_a_plan_whose_steps_shrink_before_its_rule_changes() -> None:
    """Exit pays 1, the last of five states 1.001 a step: values of a policy that news reaches state by state.

    The value iteration of 30 digits that the figure comes from is in ``_by_value_iteration``.
    """
    size, gamma, alpha = 5, 0.9999, 1e-5
    moves, reward = torch.zeros(size + 1, 2, size + 1, dtype=F64), torch.zeros(size + 1, 2, dtype=F64)
    for s in range(size):
        moves[s, 0, size] = moves[s, 1, min(s + 1, size - 1)] = 1.0
        reward[s, 0] = 1.0
    reward[size - 1, 1] = 1.001
    moves[size, :, size] = 1.0
    start, ends = torch.eye(size + 1, dtype=F64)[0], torch.arange(size + 1) == size
    mdp = TabularMDP(moves, reward, start, discount=gamma, temperature=alpha, terminal=ends)
    plan = exact.plan(mdp)
    # To walk to the last state and stay: 10^4 times 1.001, less log 2 of a nat a step for the action prior.
    stay = (1.001 / alpha - math.log(2)) / (1 - gamma)
    walk = sum(gamma**k for k in range(size - 1)) * -math.log(2) + gamma ** (size - 1) * stay
    assert float(plan.objective) == pytest.approx(walk, rel=1e-9)
    assert plan.residual is not None
    assert float(plan.residual) < 1e-5


@pytest.mark.parametrize("reward", [0.690, 0.693, 0.6931, 0.6932, 0.694, 0.709, 5.0])
def test_whether_an_evidence_is_infinite(reward: float) -> None:
    """γ = 1/2: finite if and only if e^r < 2, r < 0.693147…"""
    mdp = lonely(reward, discount=0.5)
    for process in (mdp, mdp.to(torch.float32)):
        if reward < math.log(2):
            x = 0.5 * math.exp(float(process.reward_table)) / (1 - 0.5 * math.exp(float(process.reward_table)))
            assert float(exact.log_evidence(process)) == pytest.approx(math.log(x), rel=1e-6)
        else:
            with pytest.raises(ValueError, match="the log evidence of this process is infinite"):
                exact.log_evidence(process)


def test_what_cannot_happen_does_not_make_an_evidence_infinite() -> None:
    cliff = TabularMDP.from_gymnasium("CliffWalking-v1", horizon=None, temperature=1.0, dtype=F64)
    long = TabularMDP.from_gymnasium("CliffWalking-v1", horizon=3_000, temperature=1.0, dtype=F64)
    found = float(exact.log_evidence(cliff))
    assert found == pytest.approx(-29.8087, abs=1e-4)
    # With a horizon, all that end within it, and e^(-1) for each step of the others.
    assert found == pytest.approx(float(exact.log_evidence(long)), abs=1e-9)


def test_slopes_of_fixed_points_to_any_order() -> None:
    """log x of x = e^r ((1-γ) + γ x), whose derivatives autograd has of the closed form."""
    reward = table(-0.7).requires_grad_()
    closed = (0.5 * reward.exp() / (1 - 0.5 * reward.exp())).log()
    found = exact.log_evidence(lonely(reward, discount=0.5))
    for _ in range(5):
        (found,) = torch.autograd.grad(found, reward, create_graph=True)
        (closed,) = torch.autograd.grad(closed, reward, create_graph=True)
        assert float(found.detach()) == pytest.approx(float(closed.detach()), rel=1e-12)
    mdp = lonely(reward, discount=0.5, temperature=2.0)
    (slope,) = torch.autograd.grad(exact.posterior_return(mdp), reward, create_graph=True)
    (expected,) = torch.autograd.grad(_return(reward), reward)
    assert float(slope.detach()) == pytest.approx(float(expected), rel=1e-12)


def _return(reward: torch.Tensor) -> torch.Tensor:
    """E[R | O] of one state at γ = 1/2, α = 2: r times the expected number of steps, each weighed by e^(r/2)/2."""
    weight = 0.5 * (reward / 2).exp()
    return reward / (1 - weight)


@pytest.mark.parametrize("limit", [3000, 0])
def test_curvatures_of_a_plan_are_those_of_differences(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hessians in the reward, dense and sparse, against central differences of slopes."""
    monkeypatch.setattr(linear_systems, "_DENSE_LIMIT", limit)
    g = torch.Generator().manual_seed(0)
    moves = torch.rand(4, 2, 4, generator=g, dtype=F64)
    moves, start = moves / moves.sum(-1, keepdim=True), torch.full((4,), 0.25, dtype=F64)

    def slope(reward: torch.Tensor) -> torch.Tensor:
        plan = exact.optimal_elbo(TabularMDP(moves, reward, start, discount=0.9))
        return torch.autograd.grad(plan, reward, create_graph=True)[0]

    reward = torch.randn(4, 2, generator=g, dtype=F64)
    direction = torch.randn(4, 2, generator=g, dtype=F64)
    leaf = reward.clone().requires_grad_()
    (found,) = torch.autograd.grad((slope(leaf) * direction).sum(), leaf)
    ahead, behind = (slope((reward + h * direction).requires_grad_()).detach() for h in (1e-5, -1e-5))
    assert torch.allclose(found, (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_the_slope_of_an_evidence_in_the_discount(gamma: float) -> None:
    moves = table([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])

    def evidence(discount: torch.Tensor) -> torch.Tensor:
        return exact.log_evidence(
            TabularMDP(moves, table([[0.0, 0.0], [1.0, 2.0]]), table([0.5, 0.5]), horizon=3, discount=discount)
        )

    at = table(gamma).requires_grad_()
    (found,) = torch.autograd.grad(evidence(at), at)
    # One-sided at the ends, of third order.
    h = 1e-4 if gamma == 0 else -1e-4
    with torch.no_grad():
        if gamma == 0.3:
            expected = (evidence(table(0.3 + h)) - evidence(table(0.3 - h))) / (2 * h)
        else:
            values = [evidence(table(gamma + k * h)) for k in range(4)]
            expected = sum(c * v for c, v in zip((-11 / 6, 3, -3 / 2, 1 / 3), values, strict=True)) / h
    assert float(found) == pytest.approx(float(expected), rel=1e-7)


def test_the_slope_of_an_evidence_in_what_is_impossible() -> None:
    """Z = Σ_s' P(s') e^(V(s')): its logarithm has the slope e^(V(s')) / Z in each probability, 0 or not."""
    reward = table([[0.0], [1.0], [3.0]])
    moves = table([[[0.4, 0.6, 0.0]], [[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]]).requires_grad_()
    (found,) = torch.autograd.grad(
        exact.log_evidence(TabularMDP(moves, reward, table([1.0, 0.0, 0.0]), horizon=2)), moves
    )
    worth = table([1.0, math.e, math.e**3])
    assert torch.allclose(found[0, 0], worth / (0.4 + 0.6 * math.e), rtol=1e-12)


def test_single_precision_over_long_horizons() -> None:
    """1,000 steps at α = 0.005: what used to be half of the return, and a divergence below 0."""
    grid = gridworld(5, 5, horizon=1000, slip=0.1, temperature=0.005)
    assert grid.initial_probabilities.dtype == torch.float32
    assert float(exact.posterior_return(grid)) == pytest.approx(992.0, abs=0.01)
    reward = grid.reward_table.clone().requires_grad_()
    (slope,) = torch.autograd.grad(exact.optimal_elbo(grid.replace(reward=reward)), reward)
    assert float(slope.sum()) * grid.temperature == pytest.approx(1000.0, rel=1e-5)
    plan = exact.plan(grid)
    double = grid.to(F64)
    expected = float(exact.trajectory_kl(double, exact.plan(double), "forward"))
    assert float(exact.trajectory_kl(grid, plan, "forward")) == pytest.approx(expected, rel=1e-4)
    endless = gridworld(5, 5, horizon=None, discount=0.999, slip=0.1, temperature=0.005)
    best = exact.plan(endless)
    assert float(exact.elbo(endless, best)) == pytest.approx(float(best.objective), rel=1e-7)


def test_a_successor_has_one_reward() -> None:
    """Rewards 0 and 4 of one successor: a refusal, as r(s, a, s') is one; the same reward twice is one successor."""
    twice = torch.zeros(1, 1, 2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"next state 0 stands twice, with rewards 0 and 4; give their mean"):
        TabularMDP.from_successors(twice, table([[[0.5, 0.5]]]), table([[[0.0, 4.0]]]), table([1.0]), horizon=1)
    unreached = TabularMDP.from_successors(twice, table([[[1.0, 0.0]]]), table([[[2.0, 4.0]]]), table([1.0]), horizon=1)
    same = TabularMDP.from_successors(twice, table([[[0.5, 0.5]]]), table([[[2.0, 2.0]]]), table([1.0]), horizon=1)
    for mdp in (unreached, same):
        assert float(exact.log_evidence(mdp)) == pytest.approx(2.0)
        assert float(exact.enumerate_trajectories(mdp).log_evidence) == pytest.approx(2.0)


def test_rows_that_miss_one_by_their_digits_are_divided_by_their_sums() -> None:
    mdp = TabularMDP(torch.full((1, 1, 1), 0.99995), torch.ones(1, 1), torch.ones(1), horizon=100)
    assert float(exact.expected_return(mdp, None)) == pytest.approx(100.0, rel=1e-6)
    assert float(mdp.rollout(None, 4).rewards.sum(0)[0]) == 100.0
    two = TabularMDP(torch.ones(1, 2, 1), torch.ones(1, 2), torch.ones(1), horizon=1000)
    rough = torch.tensor([[0.49998, 0.49998]])
    assert float(exact.expected_return(two, rough)) == pytest.approx(1000.0, rel=1e-6)
    assert float(exact.elbo(two, rough)) == pytest.approx(1000.0, rel=1e-6)
    assert torch.allclose(exact.occupancy(two, rough).sum(-1), torch.ones(1001))


@pytest.mark.parametrize(("gamma", "seed"), [(0.95, 0), (0.95, 1), (0.95, 2), (0.999, 0), (0.99999, 1)])
def test_a_ring_of_many_states(gamma: float, seed: int) -> None:
    """3,100 states with normal rewards: the equation that values solve, and visits that sum to 1/(1-γ)."""
    size, g = 3_100, torch.Generator().manual_seed(seed)
    places = torch.arange(size)
    indices = torch.stack([(places + 1) % size, (places - 1) % size], -1)[:, :, None]
    reward = torch.randn(size, 2, generator=g, dtype=F64)
    mdp = TabularMDP.from_successors(
        indices, torch.ones(size, 2, 1, dtype=F64), reward, torch.full((size,), 1 / size, dtype=F64), discount=gamma
    )
    plan = exact.plan(mdp)
    backed = torch.logsumexp(reward + gamma * plan.soft_v[indices[..., 0]], -1) - math.log(2)
    assert float((backed - plan.soft_v).abs().max()) / (1 - gamma) < 1e-9 * float(plan.soft_v.abs().max())
    assert float(exact.occupancy(mdp, plan).sum()) * (1 - gamma) == pytest.approx(1.0, abs=1e-9)


def test_a_forbidden_action_where_nothing_is_done() -> None:
    """In a terminal state soft Q is 0 whatever a policy says of it, and what it says costs nothing."""
    moves = table([[[0.0, 1.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a terminal state's reward is silent
        for horizon in (3, None):
            mdp = TabularMDP(
                moves, table([[1.0, 2.0], [5.0, 7.0]]), table([1.0, 0.0]), horizon=horizon, discount=0.9,
                action_prior=table([[0.5, 0.5], [1.0, 0.0]]), terminal=torch.tensor([False, True]),
            )  # fmt: skip
            plan = exact.evaluate(mdp, table([[0.5, 0.5], [0.0, 1.0]]))
            assert bool(plan.soft_q.isfinite().all())
            assert bool((plan.soft_q[..., 1, :] == 0).all())
            allowed = exact.evaluate(mdp, table([[0.5, 0.5], [1.0, 0.0]]))
            assert float(plan.objective) == pytest.approx(float(allowed.objective), abs=1e-12)


def test_a_divergence_that_is_no_difference_of_large_numbers() -> None:
    """A policy that is 1e-6 off the causal plan: its divergence is of the size 1e-12, beside objectives of 10⁵ nats."""
    grid = gridworld(4, 4, horizon=50, slip=0.2, temperature=1e-3, dtype=F64)
    plan = exact.plan(grid)
    other = torch.softmax(plan.log_policy + 1e-6 * torch.sin(torch.arange(4.0, dtype=F64)), -1)
    found = float(exact.trajectory_kl(grid, other, dynamics="causal"))
    # To second order half the variance of the change, where the policy goes.
    change = 1e-6 * torch.sin(torch.arange(4.0, dtype=F64))
    spread = (plan.policy * change**2).sum(-1) - (plan.policy * change).sum(-1) ** 2
    expected = float((rlai.exact.occupancy(grid, plan)[:-1] * torch.where(grid.terminal, 0.0, spread / 2)).sum())
    assert found == pytest.approx(expected, rel=1e-4)
    assert 0 < found < 1e-10


@pytest.mark.parametrize("horizon", [1, 4, None])
def test_a_policy_that_leaves_out_what_hardly_happens(horizon: int | None) -> None:
    """At α = 1e-3 the target takes the worse action with e^-1000, which is 0 in double precision: still infinite."""
    moves = table([[[0.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    ends = torch.tensor([False, horizon is None])
    mdp = TabularMDP(
        moves, table([[1.0, 0.0], [0.0, 0.0]]), table([1.0, 0.0]), horizon=horizon, temperature=1e-3, terminal=ends
    )
    never, seldom = table([[1.0, 0.0], [0.5, 0.5]]), table([[1 - 1e-9, 1e-9], [0.5, 0.5]])
    unreached = table([[0.5, 0.5], [1.0, 0.0]])
    assert float(exact.trajectory_kl(mdp, never, "forward", "causal")) == math.inf
    assert float(exact.trajectory_kl(mdp, seldom, "forward", "causal")) < 1e-8
    # In a terminal state, or after the last step, nothing is left out.
    finite = horizon in (1, None)
    assert math.isfinite(float(exact.trajectory_kl(mdp, unreached, "forward", "causal"))) == finite
    if horizon is not None:
        assert float(exact.trajectory_kl(mdp, never, "forward")) == math.inf
        assert float(exact.trajectory_kl(mdp, seldom, "forward")) < 1e-8


def test_a_plan_belongs_to_the_process_as_it_was() -> None:
    """Its policy is asked for after the temperature has changed, by name and in place, and first without gradient."""
    g = torch.Generator().manual_seed(0)
    moves, reward = torch.rand(3, 2, 3, generator=g, dtype=F64), torch.randn(3, 2, generator=g, dtype=F64)
    moves, alpha, start = moves / moves.sum(-1, keepdim=True), table(1.0), table([1.0, 0.0, 0.0])
    mdp = TabularMDP(moves, reward.clone().requires_grad_(), start, horizon=3)
    right, later = exact.plan(mdp).policy.detach(), exact.plan(mdp)
    mdp.temperature = 0.1
    with torch.no_grad():
        assert torch.equal(later.policy, right)
    assert torch.autograd.grad(later.policy[0, 0, 0], mdp.reward_table)[0].abs().max() > 1e-3
    in_place = exact.plan(TabularMDP(moves, reward, start, horizon=3, temperature=alpha))
    alpha.fill_(0.1)
    assert torch.equal(in_place.policy, right)
    other = TabularMDP(moves, reward.detach(), table([1.0, 0.0, 0.0]), horizon=5)
    with pytest.raises(ValueError, match=r"policy is the plan of another process, of shape \(3, 3, 2\); this one has"):
        exact.elbo(other, later)


def test_states_that_are_never_reached_do_not_make_an_evidence_infinite() -> None:
    apart = torch.eye(2, dtype=F64)[:, None]
    mdp = TabularMDP(apart, table([[0.1], [5.0]]), table([1.0, 0.0]), discount=0.5)
    x = 0.5 * math.exp(0.1) / (1 - 0.5 * math.exp(0.1))
    assert float(exact.log_evidence(mdp)) == pytest.approx(math.log(x), rel=1e-12)
    with pytest.raises(ValueError, match="log evidence of this process is infinite"):
        exact.log_evidence(TabularMDP(apart, table([[0.1], [5.0]]), table([0.9, 0.1]), discount=0.5))


@pytest.mark.parametrize("reward", [0.499, 0.501])
def test_slopes_in_single_probabilities_do_not_depend_on_how_sums_are_taken(reward: float) -> None:
    """log Σ p e^r of two states of one reward: its slope in each p is 1, where exponentials are small and where not."""
    start, moves = table([0.5, 0.5]).requires_grad_(), table([[[0.3, 0.7]], [[0.6, 0.4]]]).requires_grad_()
    mdp = TabularMDP(moves, table([[reward], [reward]]), start, horizon=2)
    in_start, in_moves = torch.autograd.grad(exact.log_evidence(mdp), (start, moves))
    assert torch.allclose(in_start, torch.ones(2, dtype=F64), rtol=1e-12)
    assert torch.allclose(in_moves, torch.full((2, 1, 2), 0.5, dtype=F64), rtol=1e-12)


def test_a_grid_of_many_states_is_soon_solved() -> None:
    """19,600 states at γ = 0.999, by elimination, whose factors are sparse: residual and visits, in two seconds."""
    side, g = 140, torch.Generator().manual_seed(0)
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    moves = ((-1, 0), (0, 1), (1, 0), (0, -1))
    indices = torch.stack(
        [(row + a).clamp(0, side - 1) * side + (column + b).clamp(0, side - 1) for a, b in moves], -1
    ).view(-1, 1, 4)
    chances = torch.full((4, 4), 0.1 / 3, dtype=F64).fill_diagonal_(0.9)
    size = side * side
    mdp = TabularMDP.from_successors(
        indices.expand(size, 4, 4), chances.expand(size, 4, 4), 0.3 * torch.randn(size, 4, generator=g, dtype=F64),
        torch.full((size,), 1 / size, dtype=F64), discount=0.999,
    )  # fmt: skip
    plan = exact.plan(mdp)
    assert plan.residual is not None
    assert float(plan.residual) / 0.001 < 1e-9 * float(plan.soft_v.abs().max())
    assert float(exact.occupancy(mdp, plan).sum()) * 0.001 == pytest.approx(1.0, abs=1e-9)


def test_single_precision_tables_that_change_in_place() -> None:
    """As an optimiser changes them: answers without gradient are those of the tables as they are."""
    reward = torch.tensor([[0.0, 1.0]], requires_grad=True)
    mdp = TabularMDP(torch.ones(1, 2, 1), reward, torch.ones(1), horizon=1)
    with torch.no_grad():
        assert float(exact.log_evidence(mdp)) == pytest.approx(math.log((1 + math.e) / 2), rel=1e-6)
        reward.mul_(3.0)
        assert float(exact.log_evidence(mdp)) == pytest.approx(math.log((1 + math.e**3) / 2), rel=1e-6)
        mdp.reward_table = torch.zeros(1, 2)
        assert float(exact.log_evidence(mdp)) == pytest.approx(0.0, abs=1e-7)
