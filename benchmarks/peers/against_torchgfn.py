"""Path consistency beside torchgfn's trajectory balance, log partition variance and Trust-PCL, on its HyperGrid.

``make torchgfn`` installs torchgfn in an environment of its own under ``.peers/`` and runs
``python -m benchmarks.peers.against_torchgfn``. torchgfn draws trajectories of a random policy and says what its losses
and their gradients are (:mod:`benchmarks.peers.torchgfn_hypergrid`); ours are of the same trajectories and logits, with
the grid as a :class:`rl_as_inference.TabularMDP`. Its answers are kept, so that a test can ask ours again without it.
"""

import argparse
import datetime
import json
import subprocess
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from benchmarks.run import _cpu as cpu
from rl_as_inference import TabularMDP, Trajectories
from rl_as_inference.objectives import path_consistency_loss
from rl_as_inference.objectives.path_consistency import log_partition_variance, log_policy_of, trajectory_balance

__all__ = ["ask", "main", "ours"]

_ROOT = Path(__file__).parents[2]
_PEER = _ROOT / ".peers" / "torchgfn" / "bin" / "python"
_RESULTS = _ROOT / "benchmarks" / "results" / "torchgfn.json"
_GRIDS = (
    {"ndim": 2, "height": 4, "num_trajectories": 16, "alpha": 0.7, "seed": 0},
    {"ndim": 3, "height": 3, "num_trajectories": 16, "alpha": 2.0, "seed": 1},
)


def ask(options: dict[str, float]) -> dict[str, Any]:
    """Returns torchgfn's trajectories, logits, losses and gradients.

    Raises:
        RuntimeError: if torchgfn is not installed, or fails.
    """
    if not _PEER.exists():
        raise RuntimeError(f"there is no {_PEER.relative_to(_ROOT)}; `make torchgfn` installs it")
    script = _ROOT / "benchmarks" / "peers" / "torchgfn_hypergrid.py"
    done = subprocess.run([str(_PEER), str(script), json.dumps(options)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"torchgfn ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def ours(options: dict[str, Any], peer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns our losses of torchgfn's trajectories, with their gradients in the logits and in log Z, by its names."""
    alpha, count = options["alpha"], options["num_trajectories"]
    grid, legal = hypergrid(options, peer)
    tables = {name: torch.tensor(values, dtype=torch.float64) for name, values in peer["logits"].items()}
    found = {}
    for name in peer["losses"]:
        logits = tables["policy"].clone().requires_grad_()
        log_z = torch.tensor(peer["log_z"], dtype=torch.float64, requires_grad=True)

        def policy(state: Tensor, t: Any, logits: Tensor = logits) -> Any:
            # In the state behind the end nobody acts.
            return dist.Categorical(logits=logits.masked_fill(~legal, -torch.inf)[state.clamp(max=len(legal) - 1)])

        def critic(state: Tensor, t: Any, log_z: Tensor = log_z) -> Tensor:
            return alpha * log_z.expand(state.shape)

        draws = trajectories(grid, peer)
        if name in ("trajectory balance", "log partition variance"):
            rewards = torch.where(draws.mask, flow_rewards(tables["backward"], options, draws, peer), 0.0)
            terms = rewards - log_policy_of(policy, draws)
            balance = name == "trajectory balance"
            loss = trajectory_balance(log_z, terms) if balance else log_partition_variance(terms, correction=0)
        elif name == "Trust-PCL":
            loss = alpha**2 * path_consistency_loss(policy, draws, critic, n=draws.horizon)
        else:
            loss = (count - 1) / count * path_consistency_loss(policy, draws)
        slopes = torch.autograd.grad(loss, [logits, log_z], allow_unused=True)
        found[name] = {
            "loss": float(loss.detach()),
            "gradient": slopes[0].tolist(),
            "log_z_gradient": None if slopes[1] is None else float(slopes[1]),
        }
    return found


def hypergrid(options: dict[str, Any], peer: dict[str, Any]) -> tuple[TabularMDP, Tensor]:
    """Returns the grid as a finite process with torchgfn's reference as action prior, and which actions it allows.

    States are the cells in torchgfn's order, and one behind the end; the last action is to leave. Leaving a cell that
    no trajectory left has a reward of 0 here.
    """
    ndim, height = options["ndim"], options["height"]
    num_cells = height**ndim
    places = height ** torch.arange(ndim).flip(0)
    cells = (torch.arange(num_cells)[:, None] // places) % height
    move = torch.zeros(num_cells + 1, ndim + 1, num_cells + 1, dtype=torch.float64)
    legal = torch.ones(num_cells, ndim + 1, dtype=torch.bool)
    legal[:, :ndim] = cells < height - 1
    for axis in range(ndim):
        after = torch.where(legal[:, axis], torch.arange(num_cells) + places[axis], torch.arange(num_cells))
        move[torch.arange(num_cells), axis, after] = 1
    move[:, ndim, num_cells] = 1
    move[num_cells, :, num_cells] = 1
    reference = torch.tensor(peer["logits"]["reference"], dtype=torch.float64).masked_fill(~legal, -torch.inf)
    prior = torch.cat([reference.softmax(-1), torch.full((1, ndim + 1), 1 / (ndim + 1), dtype=torch.float64)])
    reward = torch.zeros(num_cells + 1, ndim + 1, dtype=torch.float64)
    actions, indices = torch.tensor(peer["actions"]), _indices(peer)[:-1]
    leaving = actions == ndim
    reward[indices[leaving], ndim] = torch.tensor(peer["log_rewards"], dtype=torch.float64).expand_as(actions)[leaving]
    start = torch.zeros(num_cells + 1, dtype=torch.float64)
    start[0] = 1
    ends = torch.arange(num_cells + 1) == num_cells
    grid = TabularMDP(
        move,
        reward,
        start,
        horizon=ndim * (height - 1) + 1,
        temperature=options["alpha"],
        action_prior=prior,
        terminal=ends,
    )
    return grid, legal


def trajectories(grid: TabularMDP, peer: dict[str, Any]) -> Trajectories:
    """Returns torchgfn's trajectories as ours."""
    actions = torch.tensor(peer["actions"])
    mask = actions >= 0
    states = torch.where(
        torch.cat([mask, torch.zeros_like(mask[:1])]) | (torch.tensor(peer["states"]) >= 0).all(-1),
        _indices(peer),
        grid.num_states - 1,
    )
    actions = actions.clamp(min=0)
    rewards = torch.where(mask, grid.reward_table[states[:-1], actions], 0.0)
    log_prior = torch.where(mask, grid.log_action_prior[states[:-1], actions], 0.0)
    return Trajectories(
        states=states,
        actions=actions,
        rewards=rewards,
        mask=mask,
        log_prior=log_prior,
        log_policy=torch.zeros_like(rewards),
        log_factors=rewards / grid.temperature,
        temperature=grid.temperature,
    )


def flow_rewards(backward: Tensor, options: dict[str, Any], draws: Trajectories, peer: dict[str, Any]) -> Tensor:
    """Returns ``log P_B`` of every step, and of the last the log reward, ``(T, N)``: a flow's terms less its policy."""
    ndim, height = options["ndim"], options["height"]
    after = draws.states[1:].clamp(max=height**ndim - 1)
    places = height ** torch.arange(ndim).flip(0)
    possible = (after[..., None] // places) % height > 0
    chances = backward[after].masked_fill(~possible, -torch.inf).log_softmax(-1)
    steps = chances.gather(-1, draws.actions.clamp(max=ndim - 1)[..., None]).squeeze(-1)
    last = torch.tensor(peer["log_rewards"], dtype=torch.float64).expand_as(steps)
    return torch.where(draws.actions == ndim, last, steps)


def _double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _indices(peer: dict[str, Any]) -> Tensor:
    states = torch.tensor(peer["states"])
    return torch.tensor(peer["indices"]).reshape(states.shape[:2])


def _apart(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Returns the largest absolute differences of loss and gradients."""
    gradient = _double(mine["gradient"]) - _double(theirs["gradient"])
    slope = 0.0 if mine["log_z_gradient"] is None else mine["log_z_gradient"] - (theirs["log_z_gradient"] or 0.0)
    return {
        "loss": abs(mine["loss"] - theirs["loss"]),
        "gradient": float(gradient.abs().max()),
        "log_z_gradient": abs(slope),
    }


def main(arguments: list[str] | None = None) -> int:
    """Writes torchgfn's answers and how far ours are from them; returns 2 if torchgfn does not run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.against_torchgfn", description=__doc__)
    parser.add_argument("--out", type=Path, default=_RESULTS, help="file for the results (default: %(default)s)")
    out = parser.parse_args(arguments).out
    grids = []
    for options in _GRIDS:
        try:
            peer = ask(options)
        except RuntimeError as error:
            print(error)
            return 2
        mine = ours(options, peer)
        apart = {name: _apart(mine[name], theirs) for name, theirs in peer["losses"].items()}
        print(f"HyperGrid of {options['ndim']} dimensions, height {options['height']}: largest differences")
        for name, one in apart.items():
            shown = "  ".join(f"{what} {value:.1e}" for what, value in one.items())
            print(f"  {name:<34} loss {peer['losses'][name]['loss']:<10.6g} {shown}")
        grids.append({"options": options, "peer": peer, "differences": apart})
    data = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu(),
        "versions": grids[0]["peer"]["versions"],
        "grids": grids,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(data) + "\n")
    print(f"Written to {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
