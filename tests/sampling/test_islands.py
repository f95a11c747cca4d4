"""Filters, proposals, annealed runs and chains on several ranks: the same answers as on one, and the right ones."""

import contextlib
import io
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from jobs import job
from problems import random_mdp

import rl_as_inference as rlai
from rl_as_inference import cli, exact, models
from rl_as_inference.arviz_data import groups_of
from rl_as_inference.distributed import Ranks
from rl_as_inference.sampling import importance_sampling, sequential_monte_carlo
from rl_as_inference.sampling.importance import mean_evidence, pointed_at
from rl_as_inference.sampling.islands import islands
from rl_as_inference.sampling.pool import Pool

LONG = os.environ.get("RLAI_SCALE") == "long"
"""As ``make test-scale`` does."""

RANKS = (1, 2, 3, 4) if LONG else (1, 3)
SPREAD = ("smc", "importance", "annealed")

MDP = random_mdp(7, horizon=4, temperature=0.3)
"""Hard enough for the prior's proposals that small islands differ in evidence."""


def wants() -> Any:
    """A family with a continuous and a discrete unknown."""
    worth = pyro.sample("worth", dist.Normal(0.0, 1.0))
    which = pyro.sample("which", dist.Categorical(torch.ones(2)))
    payoff = torch.stack([torch.stack([worth, torch.zeros(())]), torch.stack([torch.zeros(()), worth])])
    return rlai.TabularMDP(torch.ones(1, 2, 1), payoff[which.long()][None], torch.ones(1), horizon=1)


def branching() -> None:
    """A program that stops when it likes, so that rollouts have several lengths."""
    state = pyro.sample("state_0", dist.Normal(0.0, 1.0))
    for t in rlai.steps(4):
        action = rlai.act(f"action_{t}", state, dist.Categorical(torch.ones(2)))
        rlai.reward(f"reward_{t}", -state.abs())
        if int(action) == 1:
            break
        state = pyro.sample(f"state_{t + 1}", dist.Normal(state, 1.0))


SHOWN = [([0], [1])] * 5 + [([0], [0])] * 2

POSTERIORS: dict[str, tuple[Any, dict[str, Any]]] = {
    **{method: (MDP, {"method": method, "num_draws": 60}) for method in SPREAD},
    "smc, blind": (MDP, {"method": "smc", "num_draws": 300, "num_particles": 8, "critic": None}),
    "hidden state": (models.tiger(horizon=3), {"method": "smc", "num_draws": 40}),
    "a program": (models.corridor(3, 3, temperature=0.2), {"method": "smc", "num_draws": 40}),
    "a program of several lengths": (branching, {"method": "importance", "num_draws": 10}),
    "survival": (random_mdp(3, horizon=4, discount=0.8), {"method": "importance", "num_draws": 40}),
}


def everything() -> dict[str, Any]:
    """What a rank finds."""
    found: dict[str, Any] = {}
    estimate = rlai.estimate_log_evidence(MDP, num_particles=50, num_repeats=4, seed=1, distributed=True)
    found["evidence"] = np.array([estimate.mean, estimate.standard_error])
    for name, (process, options) in POSTERIORS.items():
        data = rlai.posterior(process, num_repeats=4, seed=2, distributed=True, **options)
        found.update({f"{name}: {key}": value for key, value in flat(data).items()})
    lake = rlai.GymnasiumProcess("FrozenLake-v1", num_envs=2, temperature=0.1)
    data = rlai.posterior(lake, method="importance", num_draws=4, num_repeats=4, seed=3, distributed=True)
    found.update({f"a simulator: {key}": value for key, value in flat(data).items()})
    pyro.set_rng_seed(10 + torch.distributed.get_rank() if torch.distributed.is_initialized() else 10)
    found["without a seed"] = np.array(rlai.estimate_log_evidence(MDP, num_particles=20, distributed=True).mean)
    return found


def chains(distributed: bool = True) -> dict[str, Any]:
    """What a rank finds of an agent by three chains."""
    return flat(
        rlai.infer_agent(wants, SHOWN, num_draws=18, num_chains=3, num_warmup=5, seed=4, distributed=distributed)
    )


def flat(data: Any) -> dict[str, Any]:
    """Returns all numbers of ArviZ data by name."""
    groups = {
        f"{group} {name}": value.values for group, held in groups_of(data).items() for name, value in held.items()
    }
    notes = {key: np.array(value) for key, value in data.posterior.attrs.items() if isinstance(value, float)}
    return {name: value for name, value in {**groups, **notes}.items() if np.asarray(value).dtype.kind in "fiub"}


def found_by(size: int, function: Any, *arguments: Any) -> list[dict[str, Any]]:
    """Returns what each rank of a job finds."""
    found = job(size, function, *arguments)
    for each in found:
        if isinstance(each, Exception):
            raise each
    return found


@pytest.fixture(scope="module")
def answers() -> dict[int, list[dict[str, Any]]]:
    """Of jobs of several sizes what each rank finds."""
    return {size: found_by(size, everything) for size in RANKS}


def test_any_number_of_ranks_gives_the_same_numbers(answers: dict[int, list[dict[str, Any]]]) -> None:
    """Bit for bit, on every rank, where four islands are spread over them."""
    (alone,) = answers[1]
    assert len(alone) > 100
    for size in RANKS:
        for rank, found in enumerate(answers[size]):
            assert found.keys() == alone.keys()
            for name, value in found.items():
                np.testing.assert_array_equal(value, alone[name], err_msg=f"{name}, rank {rank} of {size}")


def test_chains_are_those_of_one_process() -> None:
    """To rounding, as gradients are computed in batches of a rank's own chains, of which the first has two of three."""
    alone, (first, second) = chains(distributed=False), found_by(2, chains)
    assert alone["posterior worth"].shape == (3, 6)
    for name, value in alone.items():
        np.testing.assert_allclose(first[name], value, rtol=1e-6, atol=1e-9, err_msg=name)
        np.testing.assert_array_equal(second[name], first[name], err_msg=name)


def test_filters_are_those_of_one_process(answers: dict[int, list[dict[str, Any]]]) -> None:
    """Without ``distributed`` the same four filters run, from the same seeds."""
    for name in ("smc", "hidden state", "a program"):
        process, options = POSTERIORS[name]
        data = flat(rlai.posterior(process, num_repeats=4, seed=2, **options))
        for key, value in data.items():
            np.testing.assert_array_equal(value, answers[3][1][f"{name}: {key}"], err_msg=key)


def test_islands_differ_and_all_are_in_the_answer(answers: dict[int, list[dict[str, Any]]]) -> None:
    """Simulators' episodes too, whose seeds are not those of PyTorch's generator."""
    found = answers[3][0]
    assert found["evidence"][1] > 0
    assert len(found["importance: constant_data proposal_log_weight"]) == 600
    episodes = found["a simulator: constant_data proposal_log_weight"]
    assert len(episodes) == 40
    assert found["smc: effective_ancestors"] > 60  # no island of 60 particles has more


def repeated() -> dict[str, Any]:
    """What a rank finds in many runs: errors of the evidence, and states of pooled draws."""
    truth = float(exact.log_evidence(MDP))
    found: dict[str, Any] = {}
    methods = {"smc": {"critic": None, "num_particles": 60}, "importance": {"num_proposals": 800}}
    for method, options in methods.items():
        runs = [
            rlai.estimate_log_evidence(MDP, method=method, seed=seed, distributed=True, **options) for seed in range(40)
        ]
        found[method] = [(run.mean - truth, run.standard_error) for run in runs]
    draws = []
    for seed in range(40):
        options = {"num_particles": 6, "num_draws": 40, "num_repeats": 16, "seed": seed}
        data = rlai.posterior(MDP, method="smc", critic=None, distributed=True, **options).posterior
        draws.append(np.concatenate([data["state"].values[0], data["final_state"].values[0][:, None]], 1))
    found["states"] = np.stack(draws)
    return found


@pytest.fixture(scope="module")
def repeats() -> dict[str, Any]:
    first, second = found_by(2, repeated)
    np.testing.assert_array_equal(first["states"], second["states"])
    return first


@pytest.mark.parametrize("method", ["smc", "importance"])
def test_the_standard_error_tells_how_far_the_evidence_is(repeats: dict[str, Any], method: str) -> None:
    """40 seeds on two ranks: the mean squared z-score is within what χ² of so many has, |z| < 4."""
    z = np.array([error / own for error, own in repeats[method]])
    assert abs((z**2).sum() - len(z)) / math.sqrt(2 * len(z)) < 4
    ratios = np.exp([error for error, _ in repeats[method]])  # of evidences, which are unbiased
    assert abs((ratios.mean() - 1) / (ratios.std(ddof=1) / len(ratios) ** 0.5)) < 4


def test_pooled_draws_are_of_the_posterior(repeats: dict[str, Any]) -> None:
    """40 times 40 draws of 16 filters of six blind particles on two ranks, against exact marginals.

    |z| < 4.5 by the spread of the 40 shares. Islands that counted alike would be off: they are biased, each.
    """
    wanted = exact.posterior_occupancy(MDP).numpy()
    share = np.stack([(repeats["states"] == state).mean(1) for state in range(MDP.num_states)], -1)  # (40, T+1, S)
    error = share.std(0, ddof=1) / len(share) ** 0.5
    possible = wanted > 1e-6
    assert (np.abs(share.mean(0) - wanted)[possible] < 4.5 * error[possible] + 1e-3).all()


def mistaken() -> dict[str, str]:
    """What a rank of two is told of what cannot be."""
    rank = int(os.environ["RANK"])
    other = random_mdp(8, horizon=4, temperature=0.3)

    calls = {
        "exact evidence": lambda: rlai.estimate_log_evidence(MDP, method="exact", distributed=True),
        "exact posterior": lambda: rlai.posterior(MDP, method="exact", distributed=True),
        "few islands": lambda: rlai.posterior(MDP, method="smc", num_repeats=1, distributed=True),
        "one island": lambda: rlai.estimate_log_evidence(MDP, method="smc", num_repeats=1, distributed=True),
        "map": lambda: rlai.infer_agent(wants, SHOWN, method="map", distributed=True),
        "one chain": lambda: rlai.infer_agent(wants, SHOWN, num_chains=1, distributed=True),
        "few proposals": lambda: rlai.posterior(
            MDP, method="importance", num_draws=1, num_proposals=7, distributed=True
        ),
        "problems": lambda: rlai.posterior(MDP if rank else other, method="smc", num_draws=5, distributed=True),
        "options": lambda: rlai.estimate_log_evidence(MDP, method="smc", num_particles=5 + rank, distributed=True),
        "seeds": lambda: rlai.posterior(MDP, method="smc", num_draws=5, seed=rank, distributed=True),
        "chains' seeds": lambda: rlai.infer_agent(wants, SHOWN, num_draws=4, seed=rank, distributed=True),
        "demonstrations": lambda: rlai.infer_agent(wants, SHOWN[rank:], num_draws=4, distributed=True),
        "an island": lambda: rlai.posterior(MDP, method="smc", num_draws=5, critic=hopeless, distributed=True),
        "no weight": lambda: rlai.posterior(impossible, method="importance", num_draws=5, distributed=True),
        "nothing": lambda: rlai.posterior(MDP, method="smc", num_draws=5, distributed=True) and None,
    }
    return {name: _message(call) for name, call in calls.items()}


def hopeless(state: torch.Tensor, t: int) -> torch.Tensor:
    if os.environ["RANK"] == "1":
        raise ValueError("critic: nothing comes to mind")
    return torch.zeros(len(state), dtype=torch.float64)


def impossible() -> None:
    """A program whose condition is never met."""
    state = pyro.sample("state_0", dist.Categorical(torch.tensor([1.0, 0.0])))
    for t in rlai.steps(2):
        action = rlai.act(f"action_{t}", state, dist.Categorical(torch.ones(2)))
        pyro.sample(f"seen_{t}", dist.Categorical(torch.tensor([1.0, 0.0])), obs=torch.tensor(1))
        rlai.reward(f"reward_{t}", 1.0 * action)


def _message(call: Any) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return "went well"


def test_mistakes_are_named_on_every_rank() -> None:
    """Where only one rank can see it the other raises it too, and the job goes on to the next call."""
    told = job(2, mistaken)
    for rank, found in enumerate(told):
        if isinstance(found, Exception):
            raise found
        for name, message in {
            "exact evidence": "distributed=True spreads the methods 'importance', 'smc', 'annealed' over ranks, and "
            "method is 'exact'",
            "exact posterior": "method is 'exact'; take one of these, or leave distributed out",
            "few islands": "num_repeats must be >= 2",
            "one island": "num_repeats must be >= 2",
            "map": "distributed=True spreads the chains of 'nuts', and method is 'map'",
            "one chain": "num_chains must be >= 2, one for each rank, got 1",
            "few proposals": "num_proposals must be >= 8, one for each of num_repeats parts, got 7",
            "problems": "process: ranks must agree, and kernel is",
            "options": "options: ranks must agree, and num_particles is 5 on rank 0 and 6 on rank 1",
            "seeds": "options: ranks must agree, and seed is 0 on rank 0 and 1 on rank 1",
            "chains' seeds": "options: ranks must agree, and seed is 0 on rank 0 and 1 on rank 1",
            "demonstrations": "demonstrations: ranks must agree",
            "an island": "critic: nothing comes to mind" + ("" if rank else " (on rank 1)"),
            "no weight": "importance weights are zero",
            "nothing": "went well",
        }.items():
            assert message in found[name], (rank, name)


def typed(*words: str) -> tuple[Any, str]:
    """What a rank ends with, and says, when ``rlai`` is typed."""
    said, sys.argv = io.StringIO(), ["rlai", *words]
    with contextlib.redirect_stdout(said):
        try:
            cli.main()
        except SystemExit as end:
            return end.code, said.getvalue()
    return 0, said.getvalue()


def test_commands_draw_their_posteriors_together(tmp_path: Path) -> None:
    """``compare`` and ``inspect`` of a program without exact answers; the first rank writes and speaks."""
    words = ["compare", "hidden_goal", "--steps", "2", "--num-trajectories", "40", "--fit-num-trajectories", "8"]
    words += ["--num-draws", "12", "--hidden-sizes", "8", "--distributed", "--out", str(tmp_path / "run")]
    first, second = job(2, typed, *words)
    assert first[0] in (0, None), first
    assert second[0] in (0, None), second
    assert "posterior draws (importance)" in first[1]
    assert not second[1]
    data = rlai.inspect.load_posterior(tmp_path / "run/posterior.nc")
    assert data.posterior.sizes["draw"] == 12
    assert data.constant_data["proposal_log_weight"].shape == (120,)
    if LONG:
        first, second = job(
            2, typed, "inspect", str(tmp_path / "run"), "--method=smc", "--num-draws=12", "--distributed"
        )
        assert "posterior (smc)" in first[1]
        assert not second[1]
        assert (tmp_path / "run/report.html").exists()


def test_more_ranks_than_islands() -> None:
    with pytest.raises(ValueError, match=r"num_repeats must be >= 16, one for each rank, got 8; ask for more"):
        islands(lambda pool, island: None, 8, 10, Ranks(3, 16))


def test_outside_a_job() -> None:
    for call in (
        lambda: rlai.estimate_log_evidence(MDP, distributed=True),
        lambda: rlai.posterior(MDP, method="smc", distributed=True),
        lambda: rlai.infer_agent(wants, SHOWN, distributed=True),
    ):
        with pytest.raises(ValueError, match="torchrun --nproc-per-node"):
            call()


def test_any_beginning_of_the_pointers_is_a_resampling() -> None:
    """500 starts: expected copies are the weights, |z| < 4.5; and 300 pointers are never two off what they should."""
    weight = torch.tensor([0.05, 0.3, 0.0, 0.25, 0.4], dtype=torch.float64)
    torch.manual_seed(0)
    starts = torch.rand(500, dtype=torch.float64).tolist()
    for count in (1, 3, 7):
        copies = torch.stack([torch.bincount(pointed_at(weight.log(), count, u), minlength=5) for u in starts]).double()
        error = copies.std(0) / len(starts) ** 0.5
        assert bool(((copies.mean(0) - count * weight).abs() <= 4.5 * error + 1e-12).all()), count
    long = torch.bincount(pointed_at(weight.log(), 300, 0.2), minlength=5)
    assert bool(((long - 300 * weight).abs() < 2).all())


def test_a_pool_does_not_depend_on_who_came_first() -> None:
    runs = [sequential_monte_carlo(MDP, None, 30) for _ in range(4)]

    def kept(order: list[int]) -> set[tuple[float, ...]]:
        pool = Pool(20)
        for index in order:
            pool._start = 0.1 * index  # each run brings its own
            pool.add(runs[index])
        found = pool.draws()
        return {tuple(row) for row in torch.cat([found.trajectories.rewards, found.log_chance[None]]).T.tolist()}

    assert kept([0, 1, 2, 3]) == kept([3, 1, 0, 2])


def test_runs_of_no_weight_count_in_the_mean() -> None:
    """Of two parts one never succeeds: the evidence is half of the other's, and its draws are all of it."""
    good = importance_sampling(MDP, None, 40)
    lost = importance_sampling(MDP, None, 40)
    lost = type(lost)(lost.trajectories, torch.full_like(lost.log_weight, -math.inf), -math.inf, math.nan)
    pool = Pool(10)
    for run in (lost, good):
        pool.add(run, math.log(40))
    found = pool.draws()
    assert found.log_evidence == pytest.approx(good.log_evidence - math.log(2))
    assert bool(found.log_chance.isfinite().all())
    assert mean_evidence([-math.inf, 0.0]).mean == pytest.approx(-math.log(2))


def test_measured_errors_are_within_their_bounds() -> None:
    """``python -m benchmarks.islands`` wrote them: 100 repeats by each method on 1, 2 and 4 ranks."""
    found = json.loads((Path(__file__).parents[2] / "benchmarks/results/islands.json").read_text())
    assert {(row["method"], row["ranks"]) for row in found["rows"]} == {(m, r) for m in SPREAD for r in (1, 2, 4)}
    for row in found["rows"]:
        assert row["repeats"] == 100
        assert 0.8 < row["rms_z"] < 1.2, row
        assert abs(row["z_of_mean_evidence"]) < 3.5, row
