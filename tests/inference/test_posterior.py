"""Trajectory posteriors as ArviZ data, against exact marginals, and their pictures."""

import re
from pathlib import Path

import arviz as az
import numpy as np
import pytest
import torch
from problems import random_mdp

import rl_as_inference as rlai
from rl_as_inference import exact
from rl_as_inference.arviz_data import groups_of
from rl_as_inference.inference import posteriors
from rl_as_inference.inspect import plots
from rl_as_inference.models import double_integrator, hidden_goal
from rl_as_inference.sampling import importance_sampling, sequential_monte_carlo, survive
from rl_as_inference.sampling.importance import effective_sample_size, resample


def marginal_z(data, mdp: rlai.TabularMDP, wanted: torch.Tensor, size: float) -> float:
    """The largest z-score of a state's share against its exact probability, for ``size`` independent draws."""
    states = data.posterior["state"].stack(sample=("chain", "draw")).transpose("time", "sample").values
    states = np.concatenate([states, data.posterior["final_state"].values.reshape(1, -1)])
    share = np.stack([np.bincount(row, minlength=mdp.num_states) / len(row) for row in states])
    p = wanted.numpy()
    error = np.sqrt(p * (1 - p) / size)
    possible = error > 1e-9
    assert np.all(share[p < 1e-12] == 0)
    return float(np.abs((share - p)[possible] / error[possible]).max())


@pytest.mark.parametrize("discount", [1.0, 0.8])
def test_exact_draws(discount: float) -> None:
    """N = 20,000 draws, seed 0; about twenty comparisons."""
    mdp = random_mdp(11, num_states=4, horizon=4, discount=discount, terminal=True)
    torch.manual_seed(0)
    for dynamics in ("posterior", "causal"):
        data = rlai.posterior(mdp, method="exact", num_draws=20_000, dynamics=dynamics)
        assert data.posterior.attrs["dynamics"] == dynamics
        if dynamics == "posterior" or discount == 1.0:
            wanted = exact.posterior_occupancy(mdp, dynamics)
            assert marginal_z(data, mdp, wanted, 20_000) < 4.2


@pytest.mark.parametrize("method", ["importance", "smc"])
@pytest.mark.parametrize("discount", [1.0, 0.8])
@pytest.mark.parametrize("guided", [False, True])
def test_sampling_methods(method: str, discount: float, guided: bool) -> None:
    """20,000 draws, seed 0. Resampled draws are worth fewer independent ones: at most the proposals' ESS."""
    mdp = random_mdp(11, num_states=4, horizon=4, discount=discount, terminal=True, temperature=1.5)
    policy = exact.plan(mdp) if guided else None
    torch.manual_seed(0)
    data = rlai.posterior(mdp, policy, method=method, num_draws=20_000)
    notes = data.posterior.attrs
    error = notes["log_evidence"] - float(exact.log_evidence(mdp))
    assert abs(error) < 4 * notes["log_evidence_standard_error"]
    assert notes["log_evidence_standard_error"] < 0.05
    wanted = exact.posterior_occupancy(mdp)
    # Early states of a particle filter share ancestors; a third of the draws is a safe size here.
    assert marginal_z(data, mdp, wanted, min(notes["effective_sample_size"], 20_000) / 3) < 4.2
    if method == "importance" and guided:
        assert notes["pareto_k"] < 0.7


def test_evidence_of_smc_is_unbiased() -> None:
    """The mean of exp(log evidence) over 400 filters of 20 particles, seed 0, by its z-score."""
    mdp = random_mdp(13, horizon=5, temperature=1.0)
    torch.manual_seed(0)
    found = torch.tensor([sequential_monte_carlo(mdp, None, 20).log_evidence for _ in range(400)]).exp()
    z = (found.mean() - exact.log_evidence(mdp).exp()) / (found.std() / 20)
    assert abs(float(z)) < 3.5


def test_evidence_of_importance_sampling_is_unbiased() -> None:
    mdp = random_mdp(13, horizon=5, temperature=1.0, discount=0.7)
    torch.manual_seed(0)
    found = importance_sampling(mdp, exact.plan(mdp), 50_000)
    assert abs(found.log_evidence - float(exact.log_evidence(mdp))) < 4 * found.standard_error


def test_pareto_k_warns() -> None:
    lake = rlai.TabularMDP.from_gymnasium("FrozenLake-v1", map_name="8x8", horizon=100, temperature=0.005)
    torch.manual_seed(0)
    notes = rlai.posterior(lake, exact.plan(lake), method="importance", num_draws=200).posterior.attrs
    assert notes["pareto_k"] > 0.7
    assert notes["effective_sample_size"] < 50


def test_survival_coins() -> None:
    """Lengths are geometric: 20,000 trajectories, seed 0, z-scores; nothing counts after a fall."""
    mdp = random_mdp(0, horizon=6, discount=0.7)
    torch.manual_seed(0)
    draws = survive(mdp.rollout(None, 20_000))
    assert draws.discount == 1.0
    for t in range(6):
        p = 0.7**t
        z = (float(draws.mask[t].double().mean()) - p) / max((p * (1 - p) / 20_000) ** 0.5, 1e-9)
        assert abs(z) < 4
    assert bool((draws.rewards[~draws.mask] == 0).all())
    ended = ~draws.mask[1:]
    assert bool((draws.states[2:][ended] == draws.states[1:-1][ended]).all())


def test_nuts_on_a_linear_gaussian_process(capsys: pytest.CaptureFixture[str]) -> None:
    """Two chains of 60 draws, seed 0; z-scores with the effective sample sizes that ArviZ finds."""
    system = double_integrator(horizon=2)
    torch.manual_seed(0)
    data = rlai.posterior(system, method="nuts", num_draws=120, progress=True)
    assert re.search(r"nuts .* (\d+)/\1\b", capsys.readouterr().err.splitlines()[-2])
    assert dict(data.posterior["state"].sizes) == {"chain": 2, "draw": 60, "time": 2, "state_dim_0": 2}
    found = data.posterior["state"].mean(("chain", "draw")).values
    size = az.ess(data, var_names=["state"])["state"].values
    assert size.min() > 100
    means, covariances = (marginal[:-1] for marginal in exact.linear_gaussian.posterior_marginals(system))
    spread = covariances.diagonal(dim1=-2, dim2=-1).sqrt().numpy()
    assert float(np.abs((found - means.numpy()) / (spread / np.sqrt(size))).max()) < 4


def test_draws_are_what_is_returned_and_the_rest_has_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each method returns ``num_draws``, whatever the particles or proposals that they are drawn from."""
    mdp = random_mdp(3, horizon=3)
    torch.manual_seed(0)
    for options in (
        {"method": "guide"},
        {"method": "exact"},
        {"method": "importance"},
        {"method": "importance", "num_proposals": 90},
        {"method": "importance", "num_proposals": 5},
        {"method": "smc"},
        {"method": "smc", "num_particles": 30},
        {"method": "annealed", "num_particles": 30},
    ):
        data = rlai.posterior(mdp, num_draws=12, **options)
        assert data.posterior.sizes["draw"] == data.prior.sizes["draw"] == 12, options
        if options["method"] == "importance":
            weighed = options.get("num_proposals", 120)
            assert data.constant_data["proposal_log_weight"].shape == (weighed,)
    seen = []
    real = posteriors.repeated_filters
    monkeypatch.setattr(
        posteriors, "repeated_filters", lambda *args, **options: seen.append(args[2]) or real(*args, **options)
    )
    rlai.posterior(mdp, method="smc", num_draws=12)
    rlai.posterior(mdp, method="smc", num_draws=12, num_particles=30)
    assert seen == [12, 30]
    for options, message in (
        ({"method": "exact", "num_particles": 9}, "num_particles is of method 'smc' and 'annealed', and method is"),
        ({"method": "smc", "num_proposals": 9}, "num_proposals is of method 'importance', and method is 'smc'"),
        ({"method": "smc", "num_particles": 0}, "num_particles must be >= 1, got 0"),
        ({"method": "importance", "num_proposals": 0}, "num_proposals must be >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            rlai.posterior(mdp, **options)


@pytest.mark.parametrize("method", ["guide", "exact", "importance", "smc", "annealed"])
def test_the_exact_log_evidence_is_told_where_there_is_one(method: str) -> None:
    mdp = random_mdp(3, horizon=3, discount=0.8)
    data = rlai.posterior(mdp, method=method, num_draws=20)
    assert data.posterior.attrs["exact_log_evidence"] == pytest.approx(float(exact.log_evidence(mdp)))
    assert "exact_log_evidence" not in rlai.posterior(hidden_goal(), num_draws=5).posterior.attrs


def test_latents_beside_the_trajectory() -> None:
    """The hidden goal is a variable of the posterior, and given success it is where the agent went."""
    torch.manual_seed(0)
    data = rlai.posterior(hidden_goal(temperature=0.5), method="importance", num_draws=2000)
    assert data.posterior["goal"].shape == (1, 2000)
    assert set(np.unique(data.posterior["goal"])) == {0, 1}


def test_inference_data(tmp_path: Path) -> None:
    mdp = random_mdp(1, horizon=4)
    data = rlai.posterior(mdp, exact.plan(mdp), method="guide", num_draws=30)
    assert set(groups_of(data)) >= {"posterior", "prior", "sample_stats", "log_likelihood", "constant_data"}
    assert data.posterior["state"].dims == ("chain", "draw", "time")
    assert data.posterior["final_state"].dims == ("chain", "draw")
    assert data.posterior["action"].dims == ("chain", "draw", "time")
    earned = data.posterior["reward"].sum("time").values
    assert np.allclose(earned, data.sample_stats["return"].values)
    likelihood = data.log_likelihood["optimality"].values
    assert np.allclose(likelihood, data.posterior["reward"].values / 0.7)
    path = tmp_path / "posterior.nc"
    data.to_netcdf(str(path), engine="h5netcdf")
    again = az.from_netcdf(str(path))
    assert np.array_equal(again.posterior["state"].values, data.posterior["state"].values)
    assert again.posterior.attrs["method"] == "guide"
    assert float(again.constant_data["temperature"]) == pytest.approx(0.7)
    assert len(az.summary(data, var_names=["reward"])) == 4


def test_resampling_is_proportional() -> None:
    weights = torch.tensor([0.1, 0.0, 0.6, 0.3], dtype=torch.float64)
    counts = torch.bincount(resample(weights.log(), 1000), minlength=4)
    assert bool(((counts - 1000 * weights).abs() <= 1).all())
    assert effective_sample_size(weights.log()) == pytest.approx(1 / (0.01 + 0.36 + 0.09))


def test_refusals() -> None:
    mdp = random_mdp(0)
    with pytest.raises(ValueError, match="method must be one of guide, exact"):
        rlai.posterior(mdp, method="magic")
    with pytest.raises(ValueError, match="num_draws must be >= 1"):
        rlai.posterior(mdp, num_draws=0)
    with pytest.raises(ValueError, match="'state_0' is discrete; use 'exact'"):
        rlai.posterior(mdp, method="nuts")
    with pytest.raises(ValueError, match="no exact answers for ProgramProcess"):
        rlai.posterior(hidden_goal(), method="exact")
    with pytest.raises(ValueError, match="needs a MarkovDecisionProcess"):
        rlai.posterior(rlai.GymnasiumProcess("FrozenLake-v1", num_envs=2), method="smc")


class TestPlots:
    def test_every_picture_says_what_it_shows(self) -> None:
        lake = rlai.TabularMDP.from_gymnasium("FrozenLake-v1", map_name="4x4", horizon=10, temperature=0.1)
        comparison = rlai.compare(lake, None, num_trajectories=10)
        ax = plots.plot_gaps(comparison)
        assert ax.get_xlabel() == "nats"
        widths = {
            label.get_text(): bar.get_width() for label, bar in zip(ax.get_yticklabels(), ax.patches, strict=True)
        }
        assert widths["dynamics gap"] == pytest.approx(comparison.dynamics_gap)
        assert widths["policy gap"] == pytest.approx(comparison.policy_gap)
        assert plots.plot_elbo_history([1.0, 2.0], optimal_elbo=3.0).get_ylabel() == "ELBO (nats)"
        assert plots.plot_returns({"a": [0.0, 1.0], "b": [1.0, 1.0]}).get_xlabel() == "return (reward units)"
        panels = plots.plot_dynamics_gap(lake, exact.plan(lake))
        assert len(panels) == 4
        assert "expected return" in panels[0].get_xlabel()

    def test_states_of_both_kinds(self) -> None:
        for process in (double_integrator(horizon=4), random_mdp(0)):
            data = rlai.posterior(process, method="exact", num_draws=50)
            assert plots.plot_states(data).get_xlabel() == "time (steps)"

    def test_without_exact_values(self) -> None:
        with pytest.raises(ValueError, match="plot_gaps needs a comparison with exact values"):
            plots.plot_gaps(rlai.compare(hidden_goal(), None, num_trajectories=10))


def test_standard_error_of_smc_is_its_spread() -> None:
    """50 runs of eight filters of 100 particles, seed 0: the mean squared z-score of the evidence is near 1.

    With eight filters a z-score is Student's with seven degrees of freedom, whose variance is 1.4; its mean
    over 50 lies within 0.6 … 2.6 but for one run in a thousand (checked by simulation).
    """
    from rl_as_inference.sampling import repeated_filters

    mdp = random_mdp(13, horizon=5, temperature=1.0)
    wanted = float(exact.log_evidence(mdp))
    torch.manual_seed(0)
    found = [repeated_filters(mdp, None, 100) for _ in range(50)]
    z = torch.tensor([(one.log_evidence - wanted) / one.standard_error for one in found])
    assert 0.6 < float(z.square().mean()) < 2.6


def test_draws_of_different_lengths() -> None:
    """A program that stops when it likes: prior and guide are filled up to one length."""
    import pyro
    import pyro.distributions as dist

    def walk() -> None:
        state = pyro.sample("state_0", dist.Normal(0.0, 1.0))
        for t in rlai.steps(6):
            action = rlai.act(f"action_{t}", state, dist.Categorical(torch.ones(2)))
            rlai.reward(f"reward_{t}", -state.abs())
            if int(action) == 1:
                break
            state = pyro.sample(f"state_{t + 1}", dist.Normal(state, 1.0))

    torch.manual_seed(0)
    stops = lambda state, t: dist.Categorical(torch.tensor([0.01, 0.99]))  # noqa: E731
    data = rlai.posterior(walk, stops, method="guide", num_draws=10)
    assert data.posterior["action"].sizes["time"] == data.prior["action"].sizes["time"]
    assert int(data.sample_stats["length"].max()) <= data.posterior["action"].sizes["time"]


def test_the_discount_is_noted() -> None:
    data = rlai.posterior(random_mdp(1, horizon=4, discount=0.8), method="exact", num_draws=5)
    assert float(data.constant_data["discount"]) == pytest.approx(0.8)
