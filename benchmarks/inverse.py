"""Inverse planning measured: calibration of infer_agent, and the time of a posterior.

    python -m benchmarks.inverse        some six minutes on one core; prints the table, writes results/inverse.json

The problem is a 5×5 grid of slippery cells (slip 0.1), 20 steps, three features scattered over the cells; reward
weights are uniform on the simplex and the temperature log-normal (median 0.3, log-scale 0.5). Weights that
sum to one fix the scale that rewards and temperature share. Truths are drawn from that prior, 50 demonstrations
of length 20 from the truth's soft-optimal policy, and the posterior by NUTS. By Talts et al. (2018,
arXiv:1804.06788, theorem 1) the rank of the truth among 19 independent posterior draws is uniform on 0 … 19: a
chi-square test of ten bins for each unknown, and ranks 1 … 18 are the truths that the 90% interval covers.
"""

import argparse
import json
import platform
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import stats

from rl_as_inference import TabularMDP, exact, infer_agent
from rl_as_inference.models import gridworld

__all__ = ["LABELS", "calibrate", "family_on_grid", "main"]

F64 = torch.float64
LABELS = ("weight 0", "weight 1", "weight 2", "temperature")
_NUM_RANKED, _THIN, _WARMUP = 19, 5, 30
_RESULTS = Path(__file__).parent / "results" / "inverse.json"


def family_on_grid(size: int = 5, horizon: int = 20, slip: float = 0.1) -> Callable[[], TabularMDP]:
    """Returns a family of agents on a grid, with ``weights`` of three features and ``temperature`` unknown."""
    base = gridworld(size, size, horizon=horizon, slip=slip, dtype=F64)
    moves = base.kernel.dense().clone()
    # The grid's own goal keeps who arrives; here it is a cell like any other.
    back = size * size - 1
    neighbours = (back - 1, back, back, back - size)
    chances = slip / 5 + (1 - slip) * torch.eye(4, dtype=F64)
    moves[back] = slip / 5 * torch.nn.functional.one_hot(torch.tensor(back), size * size)
    for action in range(4):
        for pointed, cell in enumerate(neighbours):
            moves[back, action, cell] += chances[action, pointed]
    cells = torch.arange(size * size)
    features = torch.stack([cells % 4 == 1, cells % 5 == 3, cells % 7 == 2], -1).to(F64)
    initial = torch.full((size * size,), 1 / size**2, dtype=F64)
    one = torch.ones((), dtype=F64)

    def family() -> TabularMDP:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3, dtype=F64)))
        temperature = pyro.sample("temperature", dist.LogNormal(np.log(0.3) * one, 0.5 * one))
        reward = (features @ weights)[:, None].expand(-1, 4)
        return TabularMDP(moves, reward, initial, horizon=horizon, temperature=temperature)

    return family


def calibrate(
    family: Callable[[], TabularMDP],
    num_sets: int,
    num_demonstrations: int,
    *,
    seed: int = 0,
    each: Callable[[np.ndarray[Any, Any]], None] = lambda _: None,
) -> np.ndarray[Any, Any]:
    """Returns ranks 0 … 19 of the truth among posterior draws, ``(num_sets, 4)``; ``each`` is told every row."""
    ranks = []
    for index in range(num_sets):
        pyro.set_rng_seed(seed + index)
        trace = pyro.poutine.trace(family).get_trace()
        truth = np.append(trace.nodes["weights"]["value"].numpy(), float(trace.nodes["temperature"]["value"]))
        process = trace.nodes["_RETURN"]["value"]
        demonstrations = process.rollout(exact.plan(process), num_demonstrations)
        found = infer_agent(
            family,
            demonstrations,
            num_draws=_NUM_RANKED * _THIN,
            num_chains=1,
            num_warmup=_WARMUP,
            seed=seed + index,
        ).posterior
        draws = np.concatenate([found["weights"].values[0], found["temperature"].values[0][:, None]], 1)
        ranks.append((draws[_THIN - 1 :: _THIN] < truth).sum(0))
        each(ranks[-1])
    return np.stack(ranks)


def judged(ranks: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Returns the table of a calibration: coverage of 90% intervals and p-values of uniform ranks."""
    table = {}
    for label, column in zip(LABELS, ranks.T, strict=True):
        covered = (column >= 1) & (column <= 18)
        table[label] = {
            "coverage_of_90_percent_interval": float(covered.mean()),
            "coverage_p_value": float(stats.binomtest(int(covered.sum()), len(covered), 0.9).pvalue),
            "chi_square_p_value": float(stats.chisquare(np.bincount(column // 2, minlength=10)).pvalue),
        }
    return table


def timed(family: Callable[[], TabularMDP]) -> dict[str, float]:
    """Returns the seconds that 500 NUTS draws take with the defaults, and their smallest effective sample size."""
    import arviz

    pyro.set_rng_seed(0)
    process = family()
    demonstrations = process.rollout(exact.plan(process), 50)
    clock, processor = time.perf_counter(), time.process_time()
    found = infer_agent(family, demonstrations, num_draws=500)
    seconds, busy = time.perf_counter() - clock, time.process_time() - processor
    return {
        "seconds": round(seconds, 2),
        "processor_seconds": round(busy, 2),
        "least_ess_bulk": min(float(size.min()) for size in arviz.ess(found).values()),
        "largest_r_hat": max(float(r_hat.max()) for r_hat in arviz.rhat(found).values()),
    }


def main(arguments: list[str] | None = None) -> int:
    """Runs the measurement; returns 1 if a calibration fails (p < 0.001), else 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inverse", description=__doc__)
    parser.add_argument("--sets", type=int, default=100, help="simulated data sets (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=_RESULTS, help="file for the results (default: %(default)s)")
    options = parser.parse_args(arguments)
    family = family_on_grid()
    start, rows = time.perf_counter(), []

    def each(row: np.ndarray[Any, Any]) -> None:
        rows.append(row.tolist())
        print(f"{len(rows):4d} {rows[-1]} {time.perf_counter() - start:.0f} s", flush=True)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the demonstrations say nothing")
        calibrate(family, options.sets, 50, each=each)
    ranks = np.array(rows)
    results = {
        "sets": len(rows),
        "demonstrations": 50,
        "horizon": 20,
        "seconds": round(time.perf_counter() - start, 1),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("rl-as-inference", "torch", "pyro-ppl")},
        "table": judged(ranks),
        "time_of_500_draws": timed(family),
        "ranks": rows,
    }
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    for label, row in results["table"].items():
        print(label, row)
    print(results["time_of_500_draws"])
    p_values = [row["chi_square_p_value"] for row in results["table"].values()]
    return int(min(p_values) < 1e-3)


if __name__ == "__main__":
    raise SystemExit(main())
