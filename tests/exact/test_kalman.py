"""Linear-Gaussian problems of a hidden state, against dense Gaussian algebra."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import rl_as_inference as rlai
from rl_as_inference import LinearGaussianPOMDP, exact
from rl_as_inference.exact.linear_gaussian import posterior_marginals

F = torch.float64


def random_problem(seed: int, horizon: int | None = None) -> LinearGaussianPOMDP:
    g = torch.Generator().manual_seed(seed)
    ds, da, do = (int(torch.randint(1, 4, (), generator=g)) for _ in range(3))

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=F)

    def cov(size: int, least: float = 0.1) -> Tensor:
        root = draw(size, size)
        return root @ root.mT + least * torch.eye(size, dtype=F)

    return LinearGaussianPOMDP(
        0.6 * draw(ds, ds),
        draw(ds, da),
        cov(ds),
        cov(ds, 0.0),
        cov(da, 0.0),
        draw(ds),
        cov(ds),
        cov(da),
        draw(do, ds),
        cov(do),
        horizon=horizon or 1 + seed % 4,
        temperature=0.5 + seed % 3,
        drift=draw(ds),
    )


class Dense:
    """All variables of an episode as one Gaussian: states, observations, and actions that are linear in what was seen.

    A rule ``a_t = K_t m(y_0 … y_t, a_0 … a_{t-1}) + k_t + noise`` of the conditional mean, found by conditioning the
    joint Gaussian and not by a filter.
    """

    def __init__(self, pomdp: LinearGaussianPOMDP, rules: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        mdp, C = pomdp.fully_observed, pomdp.observation_matrix
        ds, da, do = pomdp.state_size, pomdp.action_size, pomdp.observation_size
        self.pomdp, self.rules = pomdp, rules
        mean, cov = mdp.initial_mean, mdp.initial_cov
        self.states, self.seen, self.actions, self.means = [slice(0, ds)], [], [], []

        def grow(mean: Tensor, cov: Tensor, map_: Tensor, shift: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
            across = map_ @ cov
            top = torch.cat([cov, across.mT], 1)
            return torch.cat([mean, map_ @ mean + shift]), torch.cat(
                [top, torch.cat([across, across @ map_.mT + noise], 1)]
            )

        for t, (K, k, S) in enumerate(rules):
            size = len(mean)
            map_ = torch.zeros(do, size, dtype=F)
            map_[:, self.states[t]] = C
            mean, cov = grow(mean, cov, map_, torch.zeros(do, dtype=F), pomdp.observation_cov)
            self.seen.append(slice(size, size + do))
            known = [i for s in (*self.seen, *self.actions) for i in range(s.start, s.stop)]
            # E[s_t | what was seen and done] is a linear map of that.
            gain = torch.linalg.solve(cov[known][:, known], cov[known][:, self.states[t]]).mT
            size = len(mean)
            map_ = torch.zeros(da, size, dtype=F)
            map_[:, known] = K @ gain
            shift = K @ (mean[self.states[t]] - gain @ mean[known]) + k
            self.means.append((known, gain))
            mean, cov = grow(mean, cov, map_, shift, S)
            self.actions.append(slice(size, size + da))
            size = len(mean)
            map_ = torch.zeros(ds, size, dtype=F)
            map_[:, self.states[t]], map_[:, self.actions[t]] = mdp.A, mdp.B
            mean, cov = grow(mean, cov, map_, mdp.drift, mdp.noise_cov)
            self.states.append(slice(size, size + ds))
        self.mean, self.cov = mean, cov

    def second(self, where: slice) -> Tensor:
        return self.cov[where, where] + self.mean[where, None] * self.mean[None, where]

    def elbo(self) -> float:
        mdp, total = self.pomdp.fully_observed, 0.0
        prior = mdp.action_prior_cov
        for t, (_, _, S) in enumerate(self.rules):
            earned = (mdp.state_cost * self.second(self.states[t])).sum()
            earned = earned + (mdp.action_cost * self.second(self.actions[t])).sum()
            # E log p - E log π, of normal densities whose constants cancel.
            log_p = -(torch.linalg.inv(prior) * self.second(self.actions[t])).sum() / 2 - torch.logdet(prior) / 2
            log_q = -len(S) / 2 - torch.logdet(S) / 2
            total += float(-earned / (2 * mdp.temperature) + log_p - log_q)
        return total


def rules_of(plan: Any) -> list[tuple[Tensor, Tensor, Tensor]]:
    return list(zip(plan.rule.gain, plan.rule.offset, plan.rule.covariance, strict=True))


@pytest.mark.parametrize("seed", range(40))
def test_certainty_equivalence_is_the_best_rule(seed: int) -> None:
    pomdp = random_problem(seed)
    plan = exact.plan(pomdp)
    right = Dense(pomdp, rules_of(plan)).elbo()
    scale = 1 + abs(right)
    assert abs(float(plan.objective) - right) < 1e-8 * scale
    assert abs(float(exact.elbo(pomdp, plan)) - right) < 1e-8 * scale
    # Its gains are those of the seen state, and no rule nearby does better.
    assert torch.allclose(plan.rule.gain, exact.plan(pomdp.fully_observed).gain, atol=1e-10)
    g = torch.Generator().manual_seed(seed)
    for _ in range(3):
        near = [
            (
                K + 0.02 * torch.randn(K.shape, generator=g, dtype=F),
                k + 0.02 * torch.randn(k.shape, generator=g, dtype=F),
                S * 1.02,
            )
            for K, k, S in rules_of(plan)
        ]
        assert Dense(pomdp, near).elbo() < right
    assert float(plan.objective) <= float(exact.optimal_elbo(pomdp.fully_observed)) + 1e-9 * scale
    assert abs(float(exact.elbo(pomdp, None)) - float(exact.elbo(pomdp.fully_observed, None))) < 1e-8 * scale


@pytest.mark.parametrize("seed", [0, 5, 7])
def test_the_filter_is_conditioning(seed: int) -> None:
    pomdp = random_problem(seed, horizon=4)
    plan = exact.plan(pomdp)
    dense = Dense(pomdp, rules_of(plan))
    torch.manual_seed(seed)
    draws = pomdp.rollout(plan, 5)
    assert draws.observations is not None
    found = exact.belief(pomdp, draws.observations[:4], draws.actions)
    for t in range(4):
        known, gain = dense.means[t]
        values = torch.cat([*draws.observations[: t + 1], *draws.actions[:t]], -1)
        mean = dense.mean[dense.states[t]] + (values - dense.mean[known]) @ gain.mT
        here = dense.states[t]
        cov = dense.cov[here, here] - gain @ dense.cov[known][:, known] @ gain.mT
        assert torch.allclose(found.mean[t], mean, atol=1e-9)
        assert torch.allclose(found.covariance[t], cov, atol=1e-9)


@pytest.mark.parametrize("seed", [1, 6])
def test_rollouts_and_compare(seed: int) -> None:
    """20,000 rollouts, seed 0: every identity that compare asserts."""
    torch.manual_seed(0)
    pomdp = random_problem(seed)
    found = rlai.compare(pomdp, exact.plan(pomdp), num_trajectories=20_000)
    assert not found.broken
    assert found.information_gap is not None
    assert found.information_gap > 0
    names = [identity.name for identity in found.identities]
    assert "log p(O) = ELBO + dynamics gap + information gap + policy gap" in names
    assert "return by rollouts = exact" in names


def test_slopes_in_every_tensor() -> None:
    pomdp = random_problem(2)
    mdp = pomdp.fully_observed
    given = [
        mdp.A, mdp.B, mdp.noise_cov, mdp.state_cost, mdp.action_cost, mdp.initial_mean, mdp.initial_cov,
        mdp.action_prior_cov, pomdp.observation_matrix, pomdp.observation_cov,
    ]  # fmt: skip
    g = torch.Generator().manual_seed(0)
    ways = [torch.randn(x.shape, generator=g, dtype=F) for x in given]
    ways = [w + w.mT if i in (2, 3, 4, 6, 7, 9) else w for i, w in enumerate(ways)]

    def value(step: Any) -> Tensor:
        moved = [x + step * w for x, w in zip(given, ways, strict=True)]
        return exact.optimal_elbo(LinearGaussianPOMDP(*moved, horizon=3, temperature=1.3))

    step = torch.zeros((), dtype=F, requires_grad=True)
    (slope,) = torch.autograd.grad(value(step), step)
    near = [float(value(x)) for x in (-2e-4, -1e-4, 1e-4, 2e-4)]
    right = (8 * (near[2] - near[1]) - (near[3] - near[0])) / 12e-4
    assert abs(float(slope) - right) < 1e-6 * (1 + abs(right))


def test_a_belief_policy_learns_certainty_equivalence() -> None:
    pomdp = random_problem(4, horizon=4)
    policy = rlai.guides.BeliefPolicy(pomdp)
    rlai.fit(pomdp, policy, steps=300, estimator="exact", learning_rate=0.05, progress=False)
    assert float((exact.optimal_elbo(pomdp) - exact.elbo(pomdp, policy)).detach()) < 0.05


def test_posterior_draws_have_the_smoothed_states() -> None:
    """20,000 draws, seed 0: each mean within 4.5 standard errors of the smoothed one of the seen problem."""
    torch.manual_seed(0)
    pomdp = random_problem(9)
    draws = exact.sample_posterior(pomdp, 20_000)
    mean, cov = posterior_marginals(pomdp.fully_observed)
    error = (cov.diagonal(dim1=-2, dim2=-1) / 20_000).sqrt()
    assert bool(((draws.states.mean(1) - mean).abs() < 4.5 * error).all())
    assert draws.observations is not None
    assert draws.observations.shape[0] == pomdp.horizon + 1  # type: ignore[operator]


class TestBadInput:
    def test_shapes(self) -> None:
        one = torch.ones(1, 1, dtype=F)
        with pytest.raises(ValueError, match=r"observation_matrix must have shape \(do, 1\)"):
            LinearGaussianPOMDP(one, one, one, one, one, one[0], one, one, torch.ones(1, 2), one, horizon=2)
        with pytest.raises(ValueError, match="observation_cov must be positive definite"):
            LinearGaussianPOMDP(one, one, one, one, one, one[0], one, one, one, -one, horizon=2)
        with pytest.raises(ValueError, match="observations must have shape"):
            exact.belief(random_problem(0), torch.zeros(2, 7), torch.zeros(1, 1))

    def test_policies(self) -> None:
        pomdp = random_problem(0)
        with pytest.raises(ValueError, match="policies on the mean of the belief alone"):
            exact.elbo(pomdp, lambda history, t: dist.Normal(history.latest, 1.0), sees="history")


def test_conditions_on_what_was_seen_smooth_as_dense_algebra_does() -> None:
    """20,000 weighted runs, seed 0: the states given all observations, within 5 standard errors.

    That is the smoother of Rauch, Tung & Striebel.
    """
    one = torch.ones(1, 1, dtype=F)
    zero = 0 * one
    pomdp = LinearGaussianPOMDP(
        0.9 * one, one, 0.5 * one, zero, zero, one[0], one, one, one, one, horizon=3
    )  # nothing is earned
    plan = exact.evaluate(pomdp, None)
    dense = Dense(pomdp, rules_of(plan))
    seen = torch.tensor([0.5, -0.3, 1.2], dtype=F)
    known = [s.start for s in dense.seen]
    gain = torch.linalg.solve(dense.cov[known][:, known], dense.cov[known]).mT
    mean = dense.mean + gain @ (seen - dense.mean[known])
    cov = dense.cov - gain @ dense.cov[known]
    torch.manual_seed(0)
    pyro.set_rng_seed(0)
    data = {f"observation_{t}": seen[t].reshape(1, 1) for t in range(3)}
    found = rlai.posterior(
        pyro.poutine.condition(lambda: pomdp(1), data=data), method="importance", num_draws=4000, num_proposals=20_000
    )
    size = min(4000.0, float(found.posterior.attrs["effective_sample_size"]))
    for t in range(4):
        draws = torch.tensor(found.posterior[f"state_{t}"].values).flatten()
        where = dense.states[t].start
        assert abs(float(draws.mean() - mean[where])) < 5 * float((cov[where, where] / size).sqrt())
        assert abs(float(draws.var() / cov[where, where]) - 1) < 0.2
