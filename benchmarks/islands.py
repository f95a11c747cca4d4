"""Islands on several ranks: whether the standard error of a log evidence is right, and the evidence unbiased.

    python -m benchmarks.islands [METHOD ...] [--repeats 100]    writes results/islands.json

Each job is started by ``torchrun`` with 1, 2 and 4 ranks. It estimates the log evidence of a random process (three
states, two actions, T = 3, rewards of unit scale at α = 0.5) ``repeats`` times, from seeds 0, 1, …, by each method with
eight islands, and holds it against exact messages:

- ``rms_z``: the root mean square of (estimate - truth) / standard error.
- ``z_of_mean_evidence``: of the mean of exp(estimate - truth), which is 1 where evidences are unbiased.
- ``largest_marginal_z``: the largest z-score of a state's share at a time among pooled draws, against its exact
  probability; over repeats, by their spread (smc and importance).
- ``cpu_seconds``: of one rank, which do not tell of waiting for others.

``smc`` is without look-ahead. The same seeds give the same islands on
any number of ranks, so that rows of a method differ in nothing but the seconds: ``identical`` says whether they do.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

OUT = Path(__file__).parent / "results" / "islands.json"
RANKS = (1, 2, 4)
METHODS: dict[str, dict[str, Any]] = {
    "smc": {"num_particles": 1000, "critic": None},
    "importance": {"num_proposals": 400},
    "annealed": {"num_particles": 30},
}


def measured(methods: Sequence[str], repeats: int) -> list[dict[str, Any]]:
    """Returns a row for each method, on this rank of a job."""
    import rl_as_inference as rlai
    from rl_as_inference import exact

    mdp = rlai.models.random_mdp(3, 2, horizon=3, temperature=0.5, seed=7)
    truth, marginals = float(exact.log_evidence(mdp)), exact.posterior_occupancy(mdp)
    rows = []
    for method in methods:
        options = METHODS[method]
        began = time.process_time()
        runs = [
            rlai.estimate_log_evidence(mdp, method=method, seed=seed, distributed=True, **options)
            for seed in range(repeats)
        ]
        errors = torch.tensor([run.mean - truth for run in runs], dtype=torch.float64)
        z = errors / torch.tensor([run.standard_error for run in runs])
        row: dict[str, Any] = {
            "method": method,
            "repeats": repeats,
            "rms_z": float(z.square().mean().sqrt()),
            "mean_z": float(z.mean()),
            "z_of_mean_evidence": z_of_mean(errors.exp(), 1.0),
            "estimates": [run.mean for run in runs],
        }
        if method != "annealed":
            shares = []
            for seed in range(repeats):
                draws = rlai.posterior(
                    mdp, method=method, num_draws=40, seed=seed, distributed=True, **options
                ).posterior
                states = torch.cat(
                    [
                        torch.as_tensor(draws["state"].values[0]),
                        torch.as_tensor(draws["final_state"].values[0])[:, None],
                    ],
                    1,
                )
                shares.append(torch.nn.functional.one_hot(states.long(), mdp.num_states).double().mean(0))
            share = torch.stack(shares)
            scores = [
                z_of_mean(share[:, t, s], float(marginals[t, s]))
                for t in range(share.shape[1])
                for s in range(share.shape[2])
                if float(share[:, t, s].std()) > 0
            ]
            row["largest_marginal_z"] = max(map(abs, scores))
        rows.append({**row, "cpu_seconds": time.process_time() - began})
    return rows


def z_of_mean(values: torch.Tensor, truth: float) -> float:
    """Returns how many standard errors the mean is from the truth."""
    return (float(values.mean()) - truth) / (float(values.std()) / len(values) ** 0.5)


def main() -> None:
    """Starts the jobs and notes what their first ranks found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--to", type=Path, help="of a rank: where it writes what it found")
    asked = parser.parse_args()
    methods = asked.methods or list(METHODS)
    if asked.to is not None:
        torch.set_num_threads(1)
        rows = measured(methods, asked.repeats)
        if int(os.environ["RANK"]) == 0:
            asked.to.write_text(json.dumps(rows))
        return
    found: list[dict[str, Any]] = []
    for ranks in RANKS:
        with tempfile.TemporaryDirectory() as folder:
            to = Path(folder) / "rows.json"
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
            own = ["-m", "benchmarks.islands", *methods, "--repeats", str(asked.repeats), "--to", str(to)]
            subprocess.run([*command, *own], check=True)
            found += [{"ranks": ranks, **row} for row in json.loads(to.read_text())]
        for row in found[-len(methods) :]:
            print({name: value for name, value in row.items() if name != "estimates"}, flush=True)
    first = {row["method"]: row["estimates"] for row in found if row["ranks"] == RANKS[0]}
    for row in found:
        row["identical"] = row.pop("estimates") == first[row["method"]]
    kept = [row for row in json.loads(OUT.read_text())["rows"] if row["method"] not in methods] if OUT.exists() else []
    rows = sorted(kept + found, key=lambda row: (list(METHODS).index(row["method"]), row["ranks"]))
    OUT.write_text(json.dumps({"islands": 8, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
