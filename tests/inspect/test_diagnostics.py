"""The verdict on draws: every method, against numbers worked out another way."""

import math

import arviz as az
import numpy as np
import pyro
import pytest
import torch
import xarray
from problems import random_mdp

import rl_as_inference as rlai
from rl_as_inference import exact
from rl_as_inference.arviz_data import PosteriorData, datasets, groups_of, posterior_data
from rl_as_inference.inference.pareto import pareto_k, pareto_k_threshold
from rl_as_inference.inspect import diagnose, from_trajectories
from rl_as_inference.inspect.verdicts import verdict_on_weights
from rl_as_inference.models import double_integrator, gridworld, hidden_goal
from rl_as_inference.sampling import WeightedDraws, nuts, sequential_monte_carlo


def weighted(log_weight: object, method: str | None = None, **notes: object) -> PosteriorData:
    """Data with given weights, and nothing else that matters."""
    weights = torch.as_tensor(log_weight, dtype=torch.float64)
    draws = random_mdp(0, horizon=2).rollout(None, weights.numel())
    return from_trajectories(draws, log_weight=weights.reshape(1, -1), method=method, **notes)


def chains(*draws: object, **notes: object) -> PosteriorData:
    """Data whose first state is drawn as given, one row a chain, and whose others are constant."""
    table = np.asarray(draws, dtype=float)
    posterior = {"state": table, "still": np.zeros_like(table), "alive": np.ones_like(table, dtype=bool)}
    data = posterior_data(datasets({"posterior": posterior}, {}))
    data.posterior.attrs.update(method="nuts", **notes)
    return data


class TestParetoK:
    def test_threshold(self) -> None:
        assert pareto_k_threshold(100) == pytest.approx(0.5)
        assert pareto_k_threshold(1000) == pytest.approx(2 / 3)
        assert pareto_k_threshold(2000) < 0.7
        assert pareto_k_threshold(2200) == pareto_k_threshold(10**9) == 0.7
        assert pareto_k_threshold(1) < 0

    @pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
    def test_recovers_the_shape_of_pareto_weights(self, k: float) -> None:
        """20,000 weights, seed 0, whose tail is Pareto with shape k; the fit sees 425 of them, |z| < 4."""
        weights = np.random.default_rng(0).pareto(1 / k, 20_000) + 1
        error = (1 + k) / (3 * 20_000**0.5) ** 0.5
        assert abs(pareto_k(np.log(weights)) - k) < 4 * error

    def test_is_that_of_arviz(self) -> None:
        logs = np.random.default_rng(1).normal(size=(2, 500))
        if az.__version__.startswith("0."):
            wanted = float(az.psislw(logs.ravel())[1])
        else:
            wanted = float(xarray.DataArray(-logs, dims=("chain", "draw")).azstats.psislw()[1])
        assert pareto_k(logs) == pytest.approx(wanted, rel=1e-12)

    def test_nothing_to_fit(self) -> None:
        assert pareto_k(np.zeros(1000)) is None
        assert pareto_k(np.arange(29.0)) is None  # a fifth of them is less than six
        assert pareto_k(np.arange(30.0)) is not None
        assert pareto_k(np.repeat([0.0, 1.0], 500)) is None  # no tail but its end

    def test_does_not_change_its_argument(self) -> None:
        logs = np.linspace(0, 5, 100)
        pareto_k(logs)
        assert np.array_equal(logs, np.linspace(0, 5, 100))


class TestWeights:
    def test_verdicts(self) -> None:
        assert verdict_on_weights(0.91, 300, 10_000) == (
            "k̂ = 0.91 (above 0.7): do not trust these weights; use method='smc' or a better guide.",
            False,
        )
        assert verdict_on_weights(0.6, 300, 100)[0].startswith("k̂ = 0.60 (above 0.5)")
        assert verdict_on_weights(0.5, 99.4, 10_000) == (
            "Effective sample size 99 (below 100): do not trust these weights; use method='smc' or a better guide.",
            False,
        )
        assert verdict_on_weights(None, 100, 10_000)[1]

    def test_weights_of_the_draws(self) -> None:
        """Half of 1,000 weights are zero and the others alike: worth 500 draws exactly."""
        logs = torch.zeros(1000).index_fill(0, torch.arange(500), -torch.inf)
        for method in (None, "importance", "my own"):
            found = diagnose(weighted(logs, method))
            assert found.effective_sample_size == pytest.approx(500, abs=1e-9)
            assert (found.trusted, found.pareto_k, found.num_draws, found.r_hat) == (True, None, 1000, None)

    def test_resampled_draws_are_judged_by_what_they_were_drawn_from(self) -> None:
        noted = weighted(torch.zeros(500), "importance", effective_sample_size=12.0, pareto_k=0.3)
        assert "Effective sample size 12 (below 100)" in diagnose(noted).text
        noted = weighted(torch.zeros(500), "importance", effective_sample_size=300.0, pareto_k=0.68)
        assert not diagnose(noted).trusted  # 500 draws bear less than 0.7
        noted.posterior.attrs["num_proposals"] = 5000
        assert diagnose(noted).trusted
        noted.posterior.attrs["pareto_k"] = np.inf  # no tail to fit
        assert diagnose(noted).pareto_k is None

    def test_proposals_in_the_data(self) -> None:
        logs = torch.as_tensor(np.log(np.random.default_rng(0).pareto(1 / 0.9, 20_000) + 1))
        data = from_trajectories(random_mdp(0).rollout(None, 10), proposal_log_weight=logs, method="importance")
        found = diagnose(data)
        assert found.pareto_k == pareto_k(logs.numpy()) > 0.7
        assert found.effective_sample_size == pytest.approx(float(logs.exp().sum() ** 2 / logs.exp().square().sum()))
        assert not found.trusted
        assert found.num_draws == 10


class TestGuide:
    def test_the_posterior_itself(self) -> None:
        """Without luck in the dynamics the posterior's rule is the posterior, and its weights are all alike."""
        process = gridworld(3, 3, horizon=6, slip=0.0)
        data = rlai.posterior(process, exact.plan(process, "posterior"), num_draws=500)
        found = diagnose(data)
        assert found.trusted
        assert found.pareto_k is None
        assert found.effective_sample_size == pytest.approx(500, rel=1e-4)
        assert "the guide is 0 nats from the posterior (exact)" in found.text

    def test_how_far_away(self) -> None:
        """2,000 draws, seed 0: the distance told is log evidence less ELBO, within 4 of its standard errors."""
        mdp = random_mdp(3, horizon=4, temperature=2.0)
        torch.manual_seed(0)
        data = rlai.posterior(mdp, exact.plan(mdp), num_draws=2000)
        known = data.posterior.attrs.pop("kl_to_posterior")
        logs = data.sample_stats["log_weight"].values.ravel()
        told = float(diagnose(data).text.split("at least about ")[1].split()[0])
        wanted = float(exact.log_evidence(mdp) - exact.optimal_elbo(mdp))
        share = np.exp(logs - logs.max())
        error = (share.std() / share.mean() + logs.std()) / 2000**0.5
        assert abs(told - wanted) < 4 * error + 0.05 * wanted  # two digits are told
        data.posterior.attrs["kl_to_posterior"] = known
        assert f"the guide is {wanted:.2g} nats from the posterior (exact)" in diagnose(data).text

    def test_far_from_it(self) -> None:
        lake = rlai.TabularMDP.from_gymnasium("FrozenLake-v1", map_name="8x8", horizon=100, temperature=0.005)
        torch.manual_seed(0)
        found = diagnose(rlai.posterior(lake, exact.plan(lake), num_draws=300))
        assert not found.trusted
        assert "do not take the guide's draws" in found.text

    def test_weights_that_are_alike_because_all_stay_away(self) -> None:
        """Never to pay for the way out is worth -6.92 nats, by hand; a guide that pays half of the time misses it.

        Paying costs 20 nats and then each step left earns one, so that of all trajectories only those that never pay
        count, as 2⁻¹⁰ each, and late payments add e⁻²⁰. 1,000 draws, seed 0: weights with a short tail, none of which
        never paid.
        """
        moves = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]], dtype=torch.float64)
        pays = torch.tensor([[0.0, -1.0], [0.05, 0.05]], dtype=torch.float64)
        start = torch.tensor([1.0, 0.0], dtype=torch.float64)
        mdp = rlai.TabularMDP(moves, pays, start, horizon=10, temperature=0.05)
        truth = math.log(2**-10 + sum(2.0 ** -(t + 1) * math.exp(-20 + 9 - t) for t in range(10)))
        rule = torch.tensor([[0.2, 0.8], [0.5, 0.5]], dtype=torch.float64)

        def hasty(state: torch.Tensor, t: int) -> torch.distributions.Distribution:
            return pyro.distributions.Categorical(rule[state])

        torch.manual_seed(0)
        data = rlai.posterior(mdp, hasty, num_draws=1000)
        assert data.posterior.attrs["exact_log_evidence"] == pytest.approx(truth, abs=1e-6)
        found = diagnose(data)
        assert found.pareto_k is None or found.pareto_k < 0.5
        assert found.effective_sample_size > 100
        assert not found.trusted
        assert f"nats, and it is {truth:.2f} (exact): do not take the guide's draws" in found.text
        assert found.text.endswith("weighted or not; use method='exact'.")
        weighed = diagnose(rlai.posterior(mdp, hasty, method="importance", num_draws=100))
        assert not weighed.trusted
        assert f"and it is {truth:.2f} (exact): do not trust these weights" in weighed.text
        # The same weights where nothing is known to refute them.
        del data.posterior.attrs["exact_log_evidence"]
        assert diagnose(data).trusted

    def test_draws_of_the_guide_are_not_the_posteriors(self) -> None:
        """The action prior of two steps that pay 2 nats for action 1: KL by hand, log((1 + e²)/2) - 1 a step."""
        mdp = rlai.TabularMDP(torch.ones(1, 2, 1), torch.tensor([[0.0, 2.0]]), torch.ones(1), horizon=2)
        kl = 2 * (math.log((1 + math.exp(2)) / 2) - 1)
        torch.manual_seed(0)
        found = diagnose(rlai.posterior(mdp, None, num_draws=1000))
        assert found.trusted
        assert f"the guide is {kl:.2g} nats from the posterior (exact), and its draws are its own" in found.text

    @pytest.mark.parametrize("method", ["importance", "smc", "annealed"])
    def test_an_exact_evidence_refutes_every_estimate(self, method: str) -> None:
        for off, error, trusted in ((0.09, 0.0, True), (0.2, 0.01, False), (0.2, 0.1, True), (-1.2, 0.3, False)):
            notes = {"log_evidence": 5.0 + off, "log_evidence_standard_error": error, "exact_log_evidence": 5.0}
            found = diagnose(weighted(torch.zeros(300), method, **notes))
            assert found.trusted == trusted, (off, error, found.text)
            assert trusted or f"put the log evidence at {5 + off:.2f} ± {error:.2g} nats, and it is 5.00" in found.text

    def test_where_the_posterior_is_not(self) -> None:
        logs = torch.zeros(1000).index_fill(0, torch.arange(10), -torch.inf)
        assert "partly where the posterior is not" in diagnose(weighted(logs, "guide")).text


class TestOtherMethods:
    def test_exact(self) -> None:
        mdp = random_mdp(0, horizon=3)
        for dynamics, word in (("posterior", "exact"), ("causal", "causal")):
            found = diagnose(rlai.posterior(mdp, method="exact", num_draws=50, dynamics=dynamics))
            assert found.text == f"50 independent draws from the {word} posterior: nothing to doubt."
            assert (found.trusted, found.effective_sample_size, found.num_draws) == (True, 50.0, 50)

    @pytest.mark.parametrize("method", ["smc", "annealed"])
    def test_by_effective_sample_size(self, method: str) -> None:
        for size, trusted in ((99.0, False), (100.0, True)):
            found = diagnose(weighted(torch.zeros(300), method, effective_sample_size=size))
            assert (found.trusted, found.effective_sample_size, found.pareto_k) == (trusted, size, None)
            assert f"{size:.0f} ({'at least' if trusted else 'below'} 100)" in found.text
        assert diagnose(weighted(torch.zeros(300), method)).effective_sample_size == pytest.approx(300)

    def test_particles_with_few_ancestors(self) -> None:
        draws = double_integrator(horizon=3).rollout(None, 400)
        draws.actions[0] = draws.actions[0, torch.arange(400) % 7]
        found = diagnose(from_trajectories(draws, method="smc", effective_sample_size=400.0))
        assert not found.trusted
        assert "The 400 draws descend from 7 first actions (below 100)" in found.text

    @pytest.mark.parametrize(
        ("lake", "num_draws"), [(("4x4", 20, 0.02), 1000), (("8x8", 100, 0.005), 1000), (("8x8", 100, 0.005), 300)]
    )
    def test_filters_that_lost_their_beginnings(self, lake: tuple[str, int, float], num_draws: int) -> None:
        """Discrete actions, seeds 0-1: plain filters end as copies of a few lucky particles, 0.3 to 3 nats off."""
        name, horizon, temperature = lake
        options = {"map_name": name, "horizon": horizon, "temperature": temperature, "dtype": torch.float64}
        mdp = rlai.TabularMDP.from_gymnasium("FrozenLake-v1", **options)
        for seed in (0, 1):
            torch.manual_seed(seed)
            blind = rlai.posterior(mdp, method="smc", num_draws=num_draws, critic=None)
            found = diagnose(blind)
            assert found.effective_sample_size > 400
            assert blind.posterior.attrs["effective_ancestors"] < 50
            assert not found.trusted
            assert "effective ancestors at the first step (below 100): do not trust" in found.text
            looking = rlai.posterior(mdp, method="smc", num_draws=num_draws)
            found = diagnose(looking)
            assert found.trusted, found.text
            error = looking.posterior.attrs["log_evidence"] - float(exact.log_evidence(mdp))
            assert abs(error) < 4 * looking.posterior.attrs["log_evidence_standard_error"]

    def test_the_count_of_ancestors(self) -> None:
        """A filter resampled at every step, by following each particle's own number."""
        torch.manual_seed(0)
        mdp = random_mdp(0, horizon=6, temperature=0.3)
        run = sequential_monte_carlo(mdp, None, 200, threshold=1.1)
        share = torch.zeros(200, dtype=torch.float64)
        for ancestor, weight in zip(run.ancestors, torch.softmax(run.log_weight.double(), 0), strict=True):
            share[ancestor] += weight
        assert run.effective_ancestors == pytest.approx(1 / float(share.square().sum()))
        assert run.effective_ancestors <= len(run.ancestors.unique()) < 200
        pool = WeightedDraws.pooled([run, run])
        assert pool.effective_ancestors == pytest.approx(2 * run.effective_ancestors)

    @pytest.mark.parametrize("method", ["importance", "smc", "annealed"])
    def test_standard_errors_that_tell_nothing(self, method: str) -> None:
        alike, different = torch.zeros(300), torch.linspace(0, 1, 300)
        for weights, error, trusted in (
            (alike, 0.0, True),
            (different, 0.0, False),
            (different, 0.4, True),
            (different, 0.6, False),
            (alike, float("nan"), False),
        ):
            found = diagnose(weighted(weights, method, log_evidence_standard_error=error))
            assert found.trusted == trusted, (error, found.text)
            assert trusted or ("unknown" in found.text and "do not trust" in found.text)

    def test_annealing(self) -> None:
        """A goal that one path of the prior in a hundred finds, seeds 0-1: right, or not trusted.

        200 draws; and on the frozen lake, of which 200 do not see enough.
        """
        grid = gridworld(4, 4, horizon=8, temperature=0.5, dtype=torch.float64)
        for seed in range(2):
            torch.manual_seed(seed)
            data = rlai.posterior(grid, method="annealed", num_draws=200)
            notes = data.posterior.attrs
            assert diagnose(data).trusted
            assert abs(notes["log_evidence"] - float(exact.log_evidence(grid))) < 0.1
            assert notes["log_evidence_standard_error"] < 0.05
        options = {"horizon": 20, "temperature": 0.02, "dtype": torch.float64}
        lake = rlai.TabularMDP.from_gymnasium("FrozenLake-v1", map_name="4x4", **options)
        found = diagnose(rlai.posterior(lake, method="annealed", num_draws=200))
        assert not found.trusted
        assert "effective ancestors" in found.text
        stuck = diagnose(weighted(torch.zeros(300), "annealed", least_acceptance=0.002))
        assert "only 0.2 % of the moves were accepted: do not trust" in stuck.text

    def test_chains_that_agree(self) -> None:
        """Two chains of 2,000 independent numbers, seed 0."""
        data = chains(*np.random.default_rng(0).normal(size=(2, 2000)))
        found = diagnose(data)
        assert found.trusted
        assert found.r_hat == pytest.approx(float(az.rhat(data)["state"]))
        assert found.effective_sample_size == pytest.approx(float(az.ess(data)["state"]))
        assert (found.pareto_k, found.num_draws) == (None, 4000)

    def test_chains_that_do_not(self) -> None:
        draws = np.random.default_rng(0).normal(size=(2, 500)) + np.array([[0.0], [1.0]])
        found = diagnose(chains(*draws))
        assert not found.trusted
        assert found.r_hat == pytest.approx(float(az.rhat(draws)))
        assert found.r_hat > 1.1
        assert "(above 1.01)" in found.text

    def test_chains_that_stick(self) -> None:
        """Every number 20 times over: 2,000 draws that are worth a hundred or so, not the 200 of two chains."""
        draws = np.repeat(np.random.default_rng(2).normal(size=(2, 50)), 20, axis=1)
        found = diagnose(chains(*draws))
        assert not found.trusted
        assert found.effective_sample_size == pytest.approx(100, rel=0.5)

    def test_one_chain_and_short_chains(self) -> None:
        found = diagnose(chains(np.random.default_rng(0).normal(size=500)))
        assert found.r_hat is None
        assert found.trusted
        assert "single chain" in found.text
        assert "too few" in diagnose(chains([0.0, 1.0, 2.0], [0.0, 1.0, 2.0])).text

    def test_real_chains(self) -> None:
        torch.manual_seed(0)
        drawn = nuts(double_integrator(horizon=1), 20, num_warmup=5)
        found = diagnose(from_trajectories(drawn, method="nuts"))
        assert found.num_draws == 20
        assert not found.trusted
        assert found.r_hat is not None


class TestAdvice:
    """Nothing is recommended that the process at hand cannot run."""

    def test_verdicts(self) -> None:
        torch.manual_seed(0)
        lake = rlai.TabularMDP.from_gymnasium("FrozenLake-v1", horizon=20, temperature=0.02)
        walk = pyro.condition(gridworld(), data={"state_12": torch.tensor(15)})  # which runs in a plate
        simulator = rlai.GymnasiumProcess("FrozenLake-v1", num_envs=5, temperature=0.02)

        def branching() -> None:
            state = torch.tensor(0.0)
            for t in rlai.steps(2):
                action = rlai.act(f"action_{t}", state, pyro.distributions.Categorical(torch.ones(2)))
                state = torch.tensor(1.0 if int(action) else 0.0)
                rlai.reward(f"reward_{t}", state, 0.1)

        for process in (lake, walk, branching):
            for method in ("guide", "importance"):
                found = diagnose(rlai.posterior(process, method=method, num_draws=9))
                assert not found.trusted
                assert ("method='smc'" in found.text) == (process is not branching)
        for method in ("guide", "importance"):
            found = diagnose(rlai.posterior(simulator, method=method, num_draws=5))
            assert "smc" not in found.text
        assert rlai.posterior(lake, method="guide", num_draws=2).posterior.attrs["methods"] == [
            "exact",
            "smc",
            "annealed",
            "importance",
        ]

    def test_refusals(self) -> None:
        simulator = rlai.GymnasiumProcess("FrozenLake-v1", num_envs=2)
        for process, advice in (
            (gridworld(), "use 'exact', 'smc' or 'importance'$"),
            (hidden_goal(), "use 'importance' or 'smc'$"),
            (simulator, "is a black-box simulator; use 'importance'$"),
        ):
            with pytest.raises(ValueError, match=advice):
                rlai.posterior(process, method="nuts", num_draws=2)


class TestBadInput:
    @pytest.mark.parametrize("method", ["guide", "importance", "smc", "annealed"])
    @pytest.mark.parametrize(
        ("logs", "cause"),
        [
            ([0.0, torch.nan, 0.0], "log_weight is NaN for 1 of 3 draws, first for draw 1"),
            ([-torch.inf] * 4, "log_weight is -inf for all 4 draws"),
            ([torch.inf, 0.0], "log_weight is infinite for 1 of 2 draws, first for draw 0"),
        ],
    )
    def test_weights(self, method: str, logs: list[float], cause: str) -> None:
        with pytest.raises(ValueError, match=cause):
            diagnose(weighted(logs, method))

    def test_no_weights(self) -> None:
        with pytest.raises(ValueError, match="log_weight is empty"):
            pareto_k([])
        data = weighted(torch.zeros(3), "guide")
        with pytest.raises(ValueError, match="the group 'posterior' holds no draws"):
            diagnose(data.isel(draw=slice(0, 0)))

    def test_missing_groups(self) -> None:
        data = weighted(torch.zeros(3), "guide")
        groups = groups_of(data)
        with pytest.raises(ValueError, match="there is no group 'posterior'"):
            diagnose(posterior_data({"sample_stats": groups["sample_stats"]}))
        with pytest.raises(ValueError, match="there is no group 'sample_stats'"):
            diagnose(posterior_data({"posterior": groups["posterior"]}))
        del data.sample_stats["log_weight"]
        with pytest.raises(ValueError, match="'sample_stats' has no 'log_weight'"):
            diagnose(data)
        with pytest.raises(ValueError, match="has no dimension 'draw'"):
            diagnose(posterior_data({"posterior": groups["posterior"].isel(draw=0)}))

    def test_notes_that_are_no_numbers(self) -> None:
        with pytest.raises(ValueError, match="'effective_sample_size' is nan"):
            diagnose(weighted(torch.zeros(3), "smc", effective_sample_size=float("nan")))
        groups = groups_of(weighted(torch.zeros(9), "nuts"))
        with pytest.raises(ValueError, match="no continuous variable"):
            diagnose(posterior_data({**groups, "posterior": groups["posterior"].astype(int)}))
