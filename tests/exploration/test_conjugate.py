"""Conjugate posteriors against counts, dense Gaussian algebra, quadrature and enumeration, in float64."""

import math
from typing import Any

import mpmath
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from scipy import integrate
from torch import Tensor

from rl_as_inference import ConjugatePosterior, LinearGaussianMDP, MarkovDecisionProcess, TabularMDP
from rl_as_inference.exploration import affine
from rl_as_inference.exploration.conjugacy import NotConjugateError

F64 = torch.float64
EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-9}


def normal(*shape: int, scale: float = 1.0, mean: float = 0.0, dtype: torch.dtype = F64) -> Any:
    return dist.Normal(torch.full(shape, mean, dtype=dtype), scale).to_event(len(shape))


def random_steps(count: int, states: int, actions: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    gen = torch.Generator().manual_seed(seed)
    return (
        torch.randint(states, (count,), generator=gen),
        torch.randint(actions, (count,), generator=gen),
        torch.randint(states, (count,), generator=gen),
    )


class TestRows:
    """States 0, 1, 2 share one draw, moved by the state; 3 has a Beta row; action 1 is known; 4 is terminal."""

    PRIOR = torch.tensor([0.5, 2.0, 1.5], dtype=F64)

    def family(self) -> TabularMDP:
        shared = pyro.sample("shared", dist.Dirichlet(self.PRIOR))
        slip = pyro.sample("slip", dist.Beta(torch.tensor(2.0, dtype=F64), torch.tensor(3.0, dtype=F64)))
        table = torch.zeros(5, 2, 5, dtype=F64)
        for state in range(3):
            table[state, 0, :3] = shared.roll(state)
        table[3, 0, 0], table[3, 0, 4] = 1 - slip, slip
        table[:4, 1, 3] = 0.25
        table[:4, 1, 1] = 0.75
        table[4, :, 4] = 1.0
        terminal = torch.arange(5) == 4
        reward = torch.arange(10, dtype=F64).reshape(5, 2) * ~terminal[:, None]
        return TabularMDP(table, reward, torch.ones(5, dtype=F64) / 5, horizon=4, terminal=terminal)

    STATE = torch.tensor([0, 0, 1, 2, 3, 3, 3, 0, 4])
    ACTION = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1, 0])
    NEXT = torch.tensor([0, 2, 1, 1, 4, 4, 0, 3, 4])

    def test_counts_of_tied_permuted_and_beta_rows(self) -> None:
        belief = ConjugatePosterior.exactly(self.family).updated(self.STATE, self.ACTION, None, self.NEXT)
        # Entry e of the shared row leads from state s to e + s mod 3: what was seen are the entries 0, 2, 0, 2.
        shared = self.PRIOR + torch.tensor([2.0, 0.0, 2.0], dtype=F64)
        share = shared / shared.sum()
        assert torch.allclose(belief.mean()["shared"], share, **EXACT)
        assert torch.allclose(belief.mean()["slip"], torch.tensor(4 / 8, dtype=F64), **EXACT)
        covariance = (share.diag() - torch.outer(share, share)) / (shared.sum() + 1)
        assert torch.allclose(belief.covariance("shared"), covariance, **EXACT)
        assert torch.allclose(belief.variance()["shared"], covariance.diag(), **EXACT)
        slip = dist.Beta(torch.tensor(4.0, dtype=F64), 4.0)
        assert torch.allclose(belief.covariance("slip"), slip.variance, **EXACT)
        assert torch.allclose(belief.variance()["slip"], slip.variance, **EXACT)
        concentration = belief.concentration
        assert concentration is not None
        for state in range(3):
            assert torch.allclose(concentration[state, 0, :3], shared.roll(state), **EXACT)
        assert concentration[3, 0].tolist() == [4.0, 0.0, 0.0, 0.0, 4.0]
        assert not concentration[:, 1].any()
        assert not concentration[4].any()
        known = self.run().kernel.dense()
        assert torch.allclose(belief.transition_mean[:, 1], known[:, 1], **EXACT)
        assert torch.allclose(belief.transition_mean[0, 0, :3], share, **EXACT)
        assert belief.num_seen == 8  # what is written down of the terminal state counts for nothing

    def run(self) -> TabularMDP:
        pyro.set_rng_seed(0)
        return self.family()

    def test_a_beta_posterior_by_quadrature(self) -> None:
        belief = ConjugatePosterior.exactly(self.family).updated(self.STATE, self.ACTION, None, self.NEXT)

        def moment(power: int) -> float:
            prior = dist.Beta(torch.tensor(2.0, dtype=F64), 3.0)

            def density(x: float) -> float:
                return x**power * math.exp(float(prior.log_prob(torch.tensor(x, dtype=F64)))) * x**2 * (1 - x)

            return float(integrate.quad(density, 0, 1, epsabs=1e-13)[0])

        mean = moment(1) / moment(0)
        assert abs(float(belief.mean()["slip"]) - mean) < 1e-9
        assert abs(float(belief.variance()["slip"]) - (moment(2) / moment(0) - mean**2)) < 1e-9

    def test_steps_add_up_and_nothing_changes(self) -> None:
        prior = ConjugatePosterior.exactly(self.family)
        before = prior.counts.clone()
        whole = prior.updated(self.STATE, self.ACTION, None, self.NEXT)
        parts = prior
        for i in range(len(self.STATE)):
            one = slice(i, i + 1)
            parts = parts.updated(self.STATE[one], self.ACTION[one], None, self.NEXT[one])
        assert torch.equal(parts.counts, whole.counts)
        assert torch.equal(prior.counts, before)
        assert torch.equal(whole.before().counts, before)

    def test_draws_are_the_posterior(self) -> None:
        """20,000 draws, seed 0: means and variances within 4.5 standard errors."""
        belief = ConjugatePosterior.exactly(self.family).updated(self.STATE, self.ACTION, None, self.NEXT)
        pyro.set_rng_seed(0)
        draws = belief.draw(20_000)
        for name, mean in belief.mean().items():
            error = (belief.variance()[name] / 20_000).sqrt()
            assert float(((draws[name].mean(0) - mean) / error).abs().max()) < 4.5
            assert torch.allclose(draws[name].var(0), belief.variance()[name], rtol=0.06, atol=0)
        process = belief.process_of({name: value[0] for name, value in draws.items()})
        assert isinstance(process, TabularMDP)
        assert torch.allclose(process.kernel.dense()[1, 0, :3], draws["shared"][0].roll(1), **EXACT)

    def test_what_no_value_allows_is_named(self) -> None:
        prior = ConjugatePosterior.exactly(self.family)
        step = torch.tensor([0, 3]), torch.tensor([0, 0]), None, torch.tensor([1, 2])
        with pytest.raises(ValueError, match=r"transition 1: action 0 in state 3 leads to state 2, which the family"):
            prior.updated(*step)
        with pytest.raises(ValueError, match="transition 0: next_state 5 is outside"):
            prior.updated(torch.tensor([0]), torch.tensor([0]), None, torch.tensor([5]))
        with pytest.raises(ValueError, match="transition 0: its reward is nan"):
            prior.updated(torch.tensor([0]), torch.tensor([0]), torch.tensor([math.nan]), torch.tensor([1]))
        with pytest.raises(ValueError, match="transition 0: its reward 7, in state 3 by action 0, is not 6"):
            prior.updated(torch.tensor([3]), torch.tensor([0]), torch.tensor([7.0]), torch.tensor([4]))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_small_parameters_are_drawn_as_they_are(dtype: torch.dtype) -> None:
    """With parameters of 0.001 each of three draws is nearly 1 or 0; 3,000 rows, seed 0: shares within 4 errors."""

    def family() -> TabularMDP:
        rows = pyro.sample("rows", dist.Dirichlet(torch.tensor([0.001, 0.001, 0.002], dtype=dtype).expand(3, 1, 3)))
        return TabularMDP(rows, torch.zeros(3, 1), torch.eye(3)[0], horizon=1)

    pyro.set_rng_seed(0)
    rows = ConjugatePosterior.exactly(family).draw(1000)["rows"].reshape(-1, 3)
    assert torch.allclose(rows.sum(-1), torch.ones(3000, dtype=F64))
    errors = (rows.mean(0) - torch.tensor([0.25, 0.25, 0.5], dtype=F64)) / (0.25 / 3000) ** 0.5
    assert float(errors.abs().max()) < 4
    assert float((rows.amax(-1) > 0.99).double().mean()) > 0.97


def _exactly(*factors: Any) -> Tensor:
    """Returns a product of matrices, worked out in mpmath's precision."""
    product = mpmath.matrix(factors[0].tolist())
    for factor in factors[1:]:
        product *= factor if isinstance(factor, mpmath.matrix) else mpmath.matrix(factor.tolist())
    return torch.tensor([[float(x) for x in row] for row in product.tolist()], dtype=F64)


def dense_posterior(mean: Tensor, cov: Tensor, slopes: Tensor, noise: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Conditions the joint Gaussian of unknowns and of what is seen, ``slopes @ x + noise``, on the latter."""
    joint = slopes @ cov @ slopes.T + noise
    if 0 < float(noise.diagonal().min()) < 1e-3:  # so ill-conditioned that dense algebra needs more digits
        with mpmath.workdps(40):
            inverse = mpmath.matrix(joint.tolist()) ** -1
            return (
                mean + _exactly(cov, slopes.T, inverse, (seen - slopes @ mean)[:, None])[:, 0],
                cov - _exactly(cov, slopes.T, inverse, slopes, cov),
            )
    gain = torch.linalg.pinv(joint, hermitian=True, rtol=1e-11)
    return mean + cov @ slopes.T @ gain @ (seen - slopes @ mean), cov - cov @ slopes.T @ gain @ slopes @ cov


class TestRewards:
    """Six rewards affine in a correlated vector of three and in one number; the others are independent draws."""

    FEATURES = torch.randn(6, 4, dtype=F64, generator=torch.Generator().manual_seed(5))
    ROOT = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.5, 0.0], [-0.3, 0.2, 0.7]], dtype=F64)
    STATE, ACTION, NEXT = random_steps(60, 5, 2)

    def family(self) -> TabularMDP:
        weights = pyro.sample("weights", dist.MultivariateNormal(torch.ones(3, dtype=F64), scale_tril=self.ROOT))
        bias = pyro.sample("bias", dist.Normal(torch.tensor(-1.0, dtype=F64), 2.0))
        with pyro.plate("others", 4):
            own = pyro.sample(
                "own", dist.Normal(torch.zeros(4, dtype=F64), torch.tensor([0.5, 1.0, 2.0, 3.0]).double())
            )
        reward = torch.cat([self.FEATURES @ torch.cat([weights, bias[None]]) + 0.5, 1.0 - 2 * own])
        return TabularMDP(
            torch.full((5, 2, 5), 0.2, dtype=F64), reward.reshape(5, 2), torch.ones(5, dtype=F64) / 5, horizon=3
        )

    def closed(self, noise: float, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        mean = torch.tensor([1.0, 1.0, 1.0, -1.0, 0.0, 0.0, 0.0, 0.0], dtype=F64)
        scales = torch.tensor([4.0, 0.25, 1.0, 4.0, 9.0], dtype=F64)
        cov = torch.block_diag(self.ROOT @ self.ROOT.T, scales.diag())
        slopes = torch.block_diag(self.FEATURES, -2 * torch.eye(4, dtype=F64))
        offset = torch.tensor([0.5] * 6 + [1.0] * 4, dtype=F64)
        cell = (self.STATE * 2 + self.ACTION)[:steps]
        gen = torch.Generator().manual_seed(2)
        truth = mean + torch.linalg.cholesky(cov) @ torch.randn(8, dtype=F64, generator=gen)
        rewards = (offset + slopes @ truth)[cell] + noise * torch.randn(steps, dtype=F64, generator=gen)
        found = dense_posterior(mean, cov, slopes[cell], noise**2 * torch.eye(steps, dtype=F64), rewards - offset[cell])
        return rewards, *found

    @pytest.mark.parametrize("small", [8, 0])  # blocks up to this size are worked on together
    @pytest.mark.parametrize(("noise", "steps"), [(0.3, 60), (0.0, 5), (0.0, 60), (1e-3, 12)])
    def test_against_dense_algebra(self, noise: float, steps: int, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(affine, "_SMALL", small)
        rewards, mean, cov = self.closed(noise, steps)
        belief = ConjugatePosterior.exactly(self.family, reward_noise=noise)
        half = steps // 2
        for part in (slice(0, half), slice(half, steps)):
            belief = belief.updated(self.STATE[part], self.ACTION[part], rewards[part], self.NEXT[part])
        means = belief.mean()
        assert torch.allclose(torch.cat([means["weights"], means["bias"][None], means["own"]]), mean, **EXACT)
        assert torch.allclose(belief.covariance("weights"), cov[:3, :3], **EXACT)
        assert torch.allclose(belief.covariance("bias", "weights"), cov[3:4, :3], **EXACT)
        assert torch.allclose(belief.covariance("own"), cov[4:, 4:], **EXACT)
        assert torch.allclose(belief.covariance("own", "weights"), cov[4:, :3], **EXACT)
        slopes = torch.block_diag(self.FEATURES, -2 * torch.eye(4, dtype=F64))
        expected = torch.tensor([0.5] * 6 + [1.0] * 4, dtype=F64) + slopes @ mean
        variance = (slopes @ cov @ slopes.T).diagonal()
        assert torch.allclose(belief.reward_mean.flatten(), expected, **EXACT)
        assert torch.allclose(belief.reward_variance.flatten(), variance, **EXACT)
        assert float(belief.reward_variance.min()) >= 0

    def test_the_cumulant_by_quadrature(self) -> None:
        rewards, _, _ = self.closed(0.3, 60)
        belief = ConjugatePosterior.exactly(self.family, reward_noise=0.3)
        belief = belief.updated(self.STATE[:4], self.ACTION[:4], rewards[:4], self.NEXT[:4])
        law = dist.Normal(belief.reward_mean[4, 1], belief.reward_variance[4, 1].sqrt())

        def density(x: float) -> float:
            return math.exp(float(law.log_prob(torch.tensor(x, dtype=F64))) + x / 2.5)

        total = integrate.quad(density, -40, 60, epsabs=1e-13, limit=200)[0]
        assert abs(float(belief.reward_cumulant(2.5)[4, 1]) - 2.5 * math.log(total)) < 1e-8

    def test_exact_rewards_that_contradict_are_named(self) -> None:
        rewards, _, _ = self.closed(0.0, 60)
        rewards[41] += 0.1
        with pytest.raises(ValueError, match=r"transition 41: its reward .* is not .*reward_noise > 0"):
            ConjugatePosterior.exactly(self.family).updated(self.STATE, self.ACTION, rewards, self.NEXT)
        # What several others imply is known too: the seventh reward of six features in four unknowns.
        first = ConjugatePosterior.exactly(self.family)
        cells = torch.arange(5)
        paid = torch.as_tensor(self.FEATURES[:5] @ torch.ones(4, dtype=F64) + 0.5)
        first = first.updated(cells[:4] // 2, cells[:4] % 2, paid[:4], cells[:4])
        assert torch.allclose(first.mean()["weights"], torch.ones(3, dtype=F64), **EXACT)
        with pytest.raises(ValueError, match="transition 0: its reward"):
            first.updated(cells[4:] // 2, cells[4:] % 2, paid[4:] + 1, cells[4:])


def test_rewards_that_hang_on_the_next_state() -> None:
    """The moments of Σ p(s') r(s') where both are unknown: from those of products, E p_i p_j E r_i r_j."""
    prior = torch.tensor([1.0, 2.0, 0.5], dtype=F64)
    scale = torch.tensor([1.0, 2.0, 0.5], dtype=F64)

    def family() -> TabularMDP:
        row = pyro.sample("row", dist.Dirichlet(prior))
        paid = pyro.sample("paid", dist.Normal(torch.arange(3, dtype=F64), scale).to_event(1))
        known = torch.tensor([0.0, 0.4, 0.6], dtype=F64)
        table = torch.stack([row, known]).expand(3, 2, 3)
        return TabularMDP(table, paid.expand(3, 2, 3), torch.ones(3, dtype=F64) / 3, horizon=2)

    belief = ConjugatePosterior.exactly(family, reward_noise=0.5)
    state, action, after = torch.tensor([0, 1, 2, 0]), torch.tensor([0, 0, 0, 1]), torch.tensor([1, 1, 0, 2])
    belief = belief.updated(state, action, torch.tensor([2.0, 3.0, 1.0, 0.0], dtype=F64), after)
    counts = prior + torch.tensor([1.0, 2.0, 0.0], dtype=F64)
    precision = scale**-2 + torch.tensor([1.0, 2.0, 1.0], dtype=F64) / 0.25
    means = (torch.arange(3, dtype=F64) * scale**-2 + torch.tensor([1.0, 5.0, 0.0], dtype=F64) / 0.25) / precision
    products = torch.outer(means, means) + (1 / precision).diag()
    total = counts.sum()
    pairs = (torch.outer(counts, counts) + counts.diag()) / (total * (total + 1))
    expected = counts @ means / total
    assert torch.allclose(belief.reward_mean[:, 0], expected.expand(3), **EXACT)
    assert torch.allclose(belief.reward_variance[:, 0], ((pairs * products).sum() - expected**2).expand(3), **EXACT)
    known = torch.tensor([0.0, 0.4, 0.6], dtype=F64)
    assert torch.allclose(belief.reward_mean[:, 1], (known @ means).expand(3), **EXACT)
    assert torch.allclose(belief.reward_variance[:, 1], (known**2 / precision).sum().expand(3), **EXACT)


@pytest.mark.parametrize("together", [True, False])
def test_linear_dynamics_against_dense_algebra(together: bool) -> None:
    """A, B and drift, drawn at once or apart, seen through correlated noise."""
    noise = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=F64)
    eye = torch.eye(2, dtype=F64)

    def family() -> LinearGaussianMDP:
        if together:
            table = pyro.sample("table", normal(2, 4, scale=0.7))
            a, b, drift = table[:, :2], table[:, 2:3], table[:, 3]
        else:
            a = pyro.sample("a", normal(2, 2, scale=0.7))
            b = pyro.sample("b", dist.MultivariateNormal(torch.zeros(2, dtype=F64), 0.49 * eye))[:, None]
            drift = pyro.sample("drift", normal(2, scale=0.7))
        return LinearGaussianMDP(a, b, noise, eye, eye[:1, :1], eye[0], eye, eye[:1, :1], horizon=5, drift=drift)

    gen = torch.Generator().manual_seed(1)
    state, action = torch.randn(25, 2, dtype=F64, generator=gen), torch.randn(25, 1, dtype=F64, generator=gen)
    after = torch.randn(25, 2, dtype=F64, generator=gen)
    belief = ConjugatePosterior.exactly(family).updated(state[:9], action[:9], None, after[:9])
    belief = belief.updated(state[9:], action[9:], None, after[9:])
    features = torch.cat([state, action, torch.ones(25, 1, dtype=F64)], 1)
    slopes = torch.stack([torch.block_diag(row[None], row[None]) for row in features]).flatten(0, 1)  # (25 * 2, 8)
    mean, cov = dense_posterior(
        torch.zeros(8, dtype=F64),
        0.49 * torch.eye(8, dtype=F64),
        slopes,
        torch.block_diag(*[noise] * 25),
        after.flatten(),
    )
    process = belief.process
    assert isinstance(process, LinearGaussianMDP)
    found = torch.cat([process.A, process.B, process.drift[:, None]], 1)
    assert torch.allclose(found.flatten(), mean, **EXACT)
    if together:
        assert torch.allclose(belief.covariance("table"), cov, **EXACT)
    else:
        here = [0, 1, 4, 5]
        assert torch.allclose(belief.covariance("a"), cov[here][:, here], **EXACT)
        assert torch.allclose(belief.covariance("a", "b"), cov[here][:, [2, 6]], **EXACT)
        assert torch.allclose(belief.covariance("drift"), cov[[3, 7]][:, [3, 7]], **EXACT)
    with pytest.raises(ValueError, match="linear-Gaussian: it has no tables"):
        _ = belief.transition_mean
    with pytest.raises(ValueError, match="transition 1: its state is not finite"):
        belief.updated(torch.tensor([[0.0, 0.0], [0.0, math.nan]]), action[:2], None, after[:2])


UNIFORM = torch.ones(2, dtype=F64) / 2


def two(rows: Tensor, reward: Tensor | None = None, **options: Any) -> TabularMDP:
    """Two states and one action."""
    reward = torch.zeros(2, 1, dtype=F64) if reward is None else reward
    return TabularMDP(rows.reshape(2, 1, 2), reward, UNIFORM, horizon=2, **options)


def bare() -> TabularMDP:
    return two(torch.eye(2, dtype=F64))


def a_gamma() -> TabularMDP:
    return two(torch.eye(2, dtype=F64), pyro.sample("g", dist.Gamma(1.0, 1.0)).expand(2, 1))


def a_square() -> TabularMDP:
    return two(torch.eye(2, dtype=F64), pyro.sample("w", normal(2, 1)) ** 2)


def a_far_limit() -> TabularMDP:
    return two(torch.eye(2, dtype=F64), pyro.sample("w", normal(2, 1)).clamp(-6, 6))


def a_low_limit() -> TabularMDP:
    row = pyro.sample("row", dist.Dirichlet(torch.ones(2, dtype=F64))).clamp(min=0.1)
    return two((row / row.sum()).expand(2, 2))


def a_ripple() -> TabularMDP:
    worth = pyro.sample("w", normal(2, 1))
    return two(torch.eye(2, dtype=F64), worth + 1e-9 * worth.sin())


def no_gradient() -> TabularMDP:
    worth = pyro.sample("w", dist.Normal(torch.zeros((), dtype=F64), 1.0)).item()
    return two(torch.eye(2, dtype=F64), torch.full((2, 1), worth, dtype=F64))


def hierarchy() -> TabularMDP:
    level = pyro.sample("level", dist.Normal(torch.zeros((), dtype=F64), 1.0))
    return two(torch.eye(2, dtype=F64), pyro.sample("w", dist.Normal(level.expand(2, 1), 1.0).to_event(2)))


def mixed_rows() -> TabularMDP:
    rows = pyro.sample("rows", dist.Dirichlet(torch.ones(2, 2, dtype=F64)).to_event(1))
    return two(rows.mean(0).expand(2, 2))


def one_entry_twice() -> TabularMDP:
    row = pyro.sample("row", dist.Dirichlet(torch.ones(3, dtype=F64)))
    return two(torch.stack([row[0], row[1] + row[2]]).expand(2, 2))


def by_logits() -> TabularMDP:
    return two(pyro.sample("logits", normal(2, 2)).softmax(-1))


def observes() -> TabularMDP:
    worth = pyro.sample("w", dist.Normal(torch.zeros((), dtype=F64), 1.0))
    pyro.sample("seen", dist.Normal(worth, 1.0), obs=torch.tensor(1.0, dtype=F64))
    return two(torch.eye(2, dtype=F64), worth.expand(2, 1))


def scaled() -> TabularMDP:
    with pyro.poutine.scale(scale=0.5):
        return two(pyro.sample("rows", dist.Dirichlet(torch.ones(2, 2, dtype=F64)).to_event(1)))


def ends_by_chance() -> TabularMDP:
    row = pyro.sample("row", dist.Dirichlet(torch.ones(2, dtype=F64)))
    return two(row.expand(2, 2), terminal=torch.stack([row[0] > 0.5, torch.tensor(False)]))


def rewards_by_rows() -> TabularMDP:
    row = pyro.sample("row", dist.Dirichlet(torch.ones(2, dtype=F64)))
    return two(row.expand(2, 2), row[:, None])


def unknown_noise() -> LinearGaussianMDP:
    size = pyro.sample("size", dist.Beta(torch.ones((), dtype=F64), 1.0))
    one = torch.ones(1, 1, dtype=F64)
    return LinearGaussianMDP(one, one, one * size, one, one, one[0], one, one, horizon=2)


def in_parts() -> MarkovDecisionProcess:
    pyro.sample("w", dist.Normal(0.0, 1.0))
    return MarkovDecisionProcess(horizon=1)


@pytest.mark.parametrize("side", [-1.0, 1.0])
@pytest.mark.parametrize("limit", [0.5, 1.0, 2.0, 3.0, 10.0])
@pytest.mark.parametrize("number", [0, 1])
def test_limits_on_either_side_are_met(number: int, side: float, limit: float) -> None:
    """A reward, a prior and a row that are cut off: what a clamp or an indicator makes of a number."""

    def worth() -> Tensor:
        values: Tensor = pyro.sample("w", dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1))
        return side * values[number]

    def cut() -> TabularMDP:
        return two(torch.eye(2, dtype=F64), worth().clamp(max=limit).expand(2, 1))

    def truncated() -> TabularMDP:
        value = worth()
        pyro.factor("inside", torch.where(value < limit, 0.0, -torch.inf))
        return two(torch.eye(2, dtype=F64), value.expand(2, 1))

    def bounded() -> TabularMDP:
        chance = pyro.sample("p", dist.Beta(torch.tensor([2.0, 2.0], dtype=F64), 3.0).to_event(1))[number]
        chance = chance.clamp(max=1 - limit / 20) if side > 0 else chance.clamp(min=limit / 20)
        return two(torch.stack([chance, 1 - chance]).expand(2, 2))

    for family in (cut, truncated, bounded):
        assert ConjugatePosterior.of(family) is None


class HalfNormal(dist.Normal):  # type: ignore[misc]
    """Has a density of its own."""

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.where(value > 0, super().log_prob(value) + math.log(2), -torch.inf)


class Squared(TabularMDP):
    """Does not pay by its table."""

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return super().reward(state, action, next_state) ** 2


def own_density() -> TabularMDP:
    return two(torch.eye(2, dtype=F64), pyro.sample("w", HalfNormal(torch.zeros((), dtype=F64), 1.0)).expand(2, 1))


def own_process() -> TabularMDP:
    worth = pyro.sample("w", dist.Normal(torch.zeros((), dtype=F64), 1.0))
    return Squared(torch.eye(2, dtype=F64).reshape(2, 1, 2), worth.expand(2, 1), UNIFORM, horizon=2)


def masked_observation() -> TabularMDP:
    worth = pyro.sample("w", dist.Normal(torch.zeros((), dtype=F64), 1.0))
    with pyro.poutine.mask(mask=worth > 0):
        pyro.sample("seen", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))
    return two(torch.eye(2, dtype=F64), worth.expand(2, 1))


def improper() -> TabularMDP:
    worth = pyro.sample("w", dist.ImproperUniform(constraints.real, (), ()))
    return two(torch.eye(2, dtype=F64), worth.double().expand(2, 1))


@pytest.mark.parametrize(
    ("family", "why"),
    [
        (bare, "no unknowns"),
        (a_gamma, "'g' is drawn from Gamma"),
        (a_square, "reward is not affine"),
        (a_far_limit, "reward is not affine"),
        (a_ripple, "reward is not affine"),
        (a_low_limit, "what follows state 0 and action 0"),
        (no_gradient, "reward is not affine"),
        (hierarchy, "the prior of 'w' depends on other unknowns"),
        (mixed_rows, "what follows state 0 and action 0 are neither known nor those of one Dirichlet"),
        (one_entry_twice, "what follows state 0 and action 0"),
        (by_logits, "what follows state 0 and action 0"),
        (observes, "the family observes something"),
        (scaled, "masked or scaled"),
        (ends_by_chance, "terminal, depends on the unknowns"),
        (rewards_by_rows, "reward depends on unknowns that are not Normal"),
        (unknown_noise, "noise_cov depends on the unknowns"),
        (in_parts, "returns a MarkovDecisionProcess"),
        (own_density, "'w' is drawn from HalfNormal"),
        (own_process, "returns a Squared"),
        (masked_observation, "the family observes something"),
        (improper, "the family cannot be drawn from \\(ImproperUniform"),
    ],
)
def test_what_is_not_conjugate_is_told_why(family: Any, why: str) -> None:
    assert ConjugatePosterior.of(family) is None
    with pytest.raises(NotConjugateError, match=why):
        ConjugatePosterior.exactly(family)


def test_coarse_numbers_on_the_way_are_conjugate_still() -> None:
    """A family that draws in single precision and gives doubles, within the caller's inference mode."""

    def family() -> TabularMDP:
        p = pyro.sample("p", dist.Beta(torch.ones(2), torch.ones(2)).to_event(1)).double()
        worth = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        table = torch.stack([1 - p, p], -1)[:, None]
        return TabularMDP(table, (worth * 0.1 + 0.3).double()[:, None], UNIFORM, horizon=2)

    with torch.inference_mode():
        belief = ConjugatePosterior.exactly(family, reward_noise=0.1)
    state = torch.tensor([0, 0, 1])
    belief = belief.updated(state, 0 * state, torch.tensor([0.4, 0.5, 0.3]), torch.tensor([1, 1, 0]))
    assert torch.allclose(belief.mean()["p"], torch.tensor([0.75, 1 / 3], dtype=F64), **EXACT)
    assert torch.allclose(belief.mean()["w"], torch.tensor([1.0, 0.0], dtype=F64), rtol=0, atol=1e-6)


def test_analysis_leaves_random_numbers_and_the_store_as_they_were() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert ConjugatePosterior.of(TestRows().family) is not None
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("sparse", [True, False])
def test_kinds_of_tables(dtype: torch.dtype, sparse: bool) -> None:
    """Rows and rewards of a hundred pairs in a plate, sparse and dense, single and double: counts and means."""
    count, width = 50, 3
    indices = (torch.arange(count)[:, None, None] + torch.arange(width) * 7 + torch.arange(2)[:, None]) % count

    def family() -> TabularMDP:
        with pyro.plate("states", count, dim=-2), pyro.plate("actions", 2, dim=-1):
            rows = pyro.sample("rows", dist.Dirichlet(torch.full((width,), 0.7, dtype=dtype)))
            worth = pyro.sample("worth", dist.Normal(torch.zeros((), dtype=dtype), 2.0))
        first = torch.ones(count, dtype=dtype) / count
        if sparse:
            return TabularMDP.from_successors(indices, rows, worth, first, horizon=3)
        return TabularMDP(torch.zeros(count, 2, count, dtype=dtype).scatter(-1, indices, rows), worth, first, horizon=3)

    state, action, _ = random_steps(400, count, 2)
    slot = torch.randint(width, (400,), generator=torch.Generator().manual_seed(3))
    after = indices[state, action, slot]
    reward = torch.randn(400, generator=torch.Generator().manual_seed(4), dtype=dtype)
    belief = ConjugatePosterior.exactly(family, reward_noise=0.5).updated(state, action, reward, after)
    counts = torch.full((count, 2, width), 0.7, dtype=F64)
    counts = counts.index_put((state, action, slot), torch.ones(400, dtype=F64), accumulate=True)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-9
    assert torch.allclose(belief.mean()["rows"], counts / counts.sum(-1, keepdim=True), rtol=0, atol=tolerance)
    assert belief.concentration is not None
    assert torch.allclose(belief.concentration.gather(-1, indices), counts, rtol=0, atol=tolerance)
    number = torch.zeros(count, 2, dtype=F64).index_put((state, action), torch.ones(400).double(), accumulate=True)
    total = torch.zeros(count, 2, dtype=F64).index_put((state, action), reward.double(), accumulate=True)
    precision = 0.25 + number / 0.25
    assert torch.allclose(belief.reward_mean, total / 0.25 / precision, rtol=0, atol=tolerance)
    assert torch.allclose(belief.reward_variance, 1 / precision, rtol=0, atol=tolerance)
