"""Planners: how near they come to the exact optimum, what luck costs them, how fast they are, and what a critic gains.

    python -m benchmarks.planning                       every part; writes results/planning.json
    python -m benchmarks.planning exactness pendulum    some of them; the others' results stay

Times want a machine with nothing else to do. TorchRL's planner is a part of ``pendulum`` where `make planning-peers`
has installed it; both run in turns in the same run.
"""

import argparse
import datetime
import json
import math
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Claim
from benchmarks.run import _cpu as cpu
from rl_as_inference import LinearGaussianMDP, MPPIPlanner, SMCPlanner, SoftActorCritic, TabularMDP, exact, fit, models
from rl_as_inference.critics import TableCritic
from rl_as_inference.guides import TabularPolicy
from rl_as_inference.guides.modes import mode_of
from rl_as_inference.nouns import Policy
from rl_as_inference.progress import progress_bar

_ROOT = Path(__file__).parents[1]
_PEER = _ROOT / ".peers" / "torchrl" / "bin" / "python"
RESULTS = _ROOT / "benchmarks" / "results" / "planning.json"
PARTICLES = (64, 128, 256, 512, 1024, 2048, 4096)


def exactness() -> dict[str, Any]:
    """Returns the gaps of full plans, and of single steps with the exact soft value ahead, in nats."""
    problems = {
        f"random, {s} states, {a} actions, {t} steps": models.random_mdp(s, a, horizon=t, seed=i, temperature=0.3)
        for i, (s, a, t) in enumerate([(9, 3, 7), (17, 2, 12), (26, 5, 10), (41, 4, 15), (60, 3, 20)])
    }
    problems["FrozenLake 4x4"] = models.frozen_lake("4x4", horizon=30, temperature=0.02)
    rows = []
    for name, problem in problems.items():
        assert problem.horizon is not None
        best, values = float(exact.optimal_elbo(problem)), exact.plan(problem).soft_v
        row: dict[str, Any] = {"problem": name, "optimum": best, "gaps": {}}
        for particles in (64, 512):
            torch.manual_seed(0)
            planner = SMCPlanner(problem, look_ahead=problem.horizon, num_particles=particles)
            row["gaps"][particles] = best - float(exact.elbo(problem, planner))
        near = SMCPlanner(problem, look_ahead=1, num_particles=512, critic=TableCritic(values))
        row["gap_of_one_step"] = best - float(exact.elbo(problem, near))
        rows.append(row)
    return {"rows": rows}


def error() -> dict[str, Any]:
    """Returns how the error of a causal plan falls with the number of particles."""
    one = torch.eye(1)
    line = LinearGaussianMDP(
        0.9 * one, one, 0.1 * one, one, 0.1 * one, one[0], 0.5 * one, one, horizon=2, temperature=0.5
    )
    start, repeats = torch.tensor([[1.5]]), {64: 200, 128: 200, 256: 100, 512: 50, 1024: 25, 2048: 12, 4096: 6}
    truth = exact.plan(line)(start, 0)
    many = models.random_mdp(6000, 3, horizon=3, temperature=0.3)
    table: Any = exact.plan(many).policy
    generator = torch.Generator().manual_seed(1)
    states = torch.randint(many.num_states, (24,), generator=generator)
    continuous, discrete = {}, {}
    for particles in PARTICLES:
        torch.manual_seed(particles)
        planner = SMCPlanner(line, look_ahead=2, num_particles=particles, num_actions=8)
        found = torch.cat([planner(start, 0).mean for _ in range(repeats[particles])])
        continuous[particles] = float((found - truth.mean).square().mean().sqrt() / truth.stddev)
        if particles <= 1024:
            planner = SMCPlanner(many, look_ahead=3, num_particles=particles)
            errors = planner(states, 0).logits.log_softmax(-1) - table[0, states].log()
            discrete[particles] = float(errors.square().mean().sqrt())
    return {"continuous": continuous, "discrete": discrete, "repeats": repeats, "states": many.num_states}


def slope(errors: dict[Any, float]) -> float:
    """Returns the exponent of a power law through errors by number of particles, by least squares."""
    x = torch.tensor([math.log(float(n)) for n in errors])
    y = torch.tensor([math.log(e) for e in errors.values()])
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def lake() -> dict[str, Any]:
    """Returns how often planners with a trained guide cross the frozen lake, and what they get on the cliff."""
    found = {}
    for name, problem, walks in (
        ("FrozenLake 8x8, α = 0.005", models.frozen_lake("8x8", horizon=100, temperature=0.005), 1000),
        ("cliff, wind 0.2, α = 1", models.cliff(horizon=50, slip=0.2), 1000),
    ):
        torch.manual_seed(0)
        guide = TabularPolicy(problem.num_states, problem.num_actions, horizon=problem.horizon)
        fit(problem, guide, steps=400, seed=0, progress=False)
        with torch.no_grad():
            rows = [
                _row("largest ELBO (exact)", problem, exact.plan(problem), None),
                _row("exact posterior's action rule", problem, exact.plan(problem, "posterior"), None),
                _row("guide", problem, guide, None),
            ]
        for dynamics in ("causal", "posterior"):
            planner = SMCPlanner(
                problem, look_ahead=problem.horizon or 1, num_particles=512, proposal=guide, dynamics=dynamics
            )
            rows.append(_row(f"{dynamics} planner", problem, planner, walks))
        found[name] = rows
    return found


def _row(name: str, problem: TabularMDP, policy: Any, walks: int | None) -> dict[str, Any]:
    if walks is None:
        values = {"elbo": exact.elbo(problem, policy), "return": exact.expected_return(problem, policy)}
        return {"who": name, **{key: float(value) for key, value in values.items()}}
    torch.manual_seed(0)
    started = time.perf_counter()
    draws = problem.rollout(policy, walks)
    row: dict[str, Any] = {"who": name, "walks": walks, "seconds": time.perf_counter() - started}
    for key, values in (("elbo", draws.log_weight()), ("return", draws.returns())):
        row |= {key: float(values.mean()), f"{key}_standard_error": float(values.std() / math.sqrt(walks))}
    return row


def played(policy: Policy, *, starts: int = 20, seed: int = 1) -> list[float]:
    """Returns the returns of likeliest actions on the pendulum, over 200 steps from ``starts`` states."""
    process = models.pendulum()
    torch.manual_seed(seed)
    state, total = process.begin(starts), torch.zeros(starts)
    for t in range(200):
        with torch.no_grad():
            step = process.advance(state, mode_of(policy(state, t)), t)
        state, total = step.next_state, total + step.reward
    return total.tolist()


def pendulum() -> dict[str, Any]:
    """Returns what 512 samples of 30 steps get on the pendulum, and how long they take, beside TorchRL's."""
    process, look_ahead, samples = models.pendulum(), 30, 512
    found: dict[str, Any] = {"returns": played(MPPIPlanner(process, look_ahead=look_ahead, num_samples=samples))}
    for name, options in (("4 importance steps", {"iterations": 4}), ("64 elites", {"elites": 64})):
        planner = MPPIPlanner(process, look_ahead=look_ahead, num_samples=samples, **options)
        found[f"returns, {name}"] = played(planner)
    settings = {"samples": samples, "look_ahead": look_ahead, "inverse_temperature": 0.1, "top_k": 64}
    settings |= {"counts": [1, 64], "starts": 20, "threads": torch.get_num_threads()}
    ours: dict[int, list[float]] = {1: [], 64: []}
    theirs: dict[str, list[float]] = {"1": [], "64": []}
    for turn in range(3):
        for count, times in ours.items():
            planner, state = MPPIPlanner(process, look_ahead=look_ahead, num_samples=samples), process.begin(count)
            times.append(_median(lambda p=planner, s=state: p(s, 0), 10))
        if _PEER.exists():
            steps = [1, 4] if turn == 0 else []
            peer = _ask_peer({**settings, "repeats": 10, "optim_steps": steps})
            for key, times in theirs.items():
                times.append(peer["seconds"][key])
            if turn == 0:
                found["torchrl"] = {"versions": peer["versions"], "returns by importance steps": peer["returns"]}
    found["seconds"] = {count: min(times) for count, times in ours.items()}
    found["throughput of 64 over 1"] = 64 * found["seconds"][1] / found["seconds"][64]
    if _PEER.exists():
        found["torchrl"]["seconds"] = {count: min(times) for count, times in theirs.items()}
        ratios = {str(c): [a / b for a, b in zip(theirs[str(c)], ours[c], strict=True)] for c in ours}
        found["torchrl"]["our speed over theirs"] = {c: sorted(rs)[1] for c, rs in ratios.items()}
    return found


def _median(call: Callable[[], Any], repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return sorted(times)[repeats // 2]


def _ask_peer(options: dict[str, Any]) -> dict[str, Any]:
    script = _ROOT / "benchmarks" / "peers" / "torchrl_pendulum.py"
    done = subprocess.run(
        [str(_PEER), "-W", "ignore", str(script), json.dumps(options)],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"torchrl ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


SAC = {"learning_rate": 1e-3, "hidden_sizes": (64, 64), "learning_starts": 500, "batch_size": 128}
PLAN = {"look_ahead": 5, "num_samples": 64}


def together(seeds: int = 5, steps: int = 3000) -> dict[str, Any]:
    """Returns what soft actor-critic gets after a little learning, a planner without it, and a planner with it."""
    process, rows = models.pendulum(discount=0.99), []
    alone = played(MPPIPlanner(process, **PLAN))  # type: ignore[arg-type]
    for seed in range(seeds):
        agent = SoftActorCritic(process, seed=seed, **SAC)  # type: ignore[arg-type]
        agent.learn(steps, progress=False)
        critic = agent.critic
        critic.num_draws = 4  # of the policy's actions; 64 plans average over what noise that leaves
        planner = MPPIPlanner(process, critic=critic, proposal=agent.policy, **PLAN)  # type: ignore[arg-type]
        rows.append({"seed": seed, "policy": played(agent.policy), "together": played(planner)})
    return {"steps": steps, "soft actor-critic": SAC, "planner": PLAN, "planner alone": alone, "rows": rows}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "exactness": exactness,
    "error": error,
    "lake": lake,
    "pendulum": pendulum,
    "together": together,
}


def claims(found: dict[str, Any]) -> list[Claim]:
    """Returns what the parts that are there are held to."""
    held = []
    if part := found.get("exactness"):
        gap = max(row["gaps"]["512"] for row in part["rows"])
        held.append(Claim("full plans of 512 particles: largest gap, nats", gap, 0.25))
        gap = max(row["gap_of_one_step"] for row in part["rows"])
        held.append(Claim("one step with the exact soft value ahead: largest gap, nats", gap, 0.02))
    if part := found.get("error"):
        held.append(Claim("exponent of the error in particles, continuous states", slope(part["continuous"]), -0.4))
        held.append(Claim("exponent of the error in particles, discrete states", slope(part["discrete"]), -0.4))
    if part := found.get("lake"):
        causal = part["FrozenLake 8x8, α = 0.005"][3]
        held.append(Claim("causal planner crosses the frozen lake", causal["return"], 0.5, at_most=False))
    if part := found.get("pendulum"):
        mean = sum(part["returns"]) / len(part["returns"])
        held.append(Claim("pendulum, 20 starts: mean return", mean, -250, at_most=False))
        held.append(Claim("an action of one state, milliseconds", 1e3 * part["seconds"]["1"], 30))
        held.append(Claim("throughput of 64 states over one", part["throughput of 64 over 1"], 10, at_most=False))
        if peer := part.get("torchrl"):
            for count, ratio in peer["our speed over theirs"].items():
                held.append(Claim(f"our speed over TorchRL's, {count} states", ratio, 1, at_most=False))
    if part := found.get("together"):
        both, policy = (torch.tensor([row[key] for row in part["rows"]]).mean(1) for key in ("together", "policy"))
        gain = both - policy
        low = float(gain.mean() - 2.776 * gain.std() / math.sqrt(len(gain)))  # Student's t of five seeds
        held.append(Claim("planner with soft actor-critic over its policy: 95 % lower bound", low, 0, at_most=False))
        gain = both - torch.tensor(part["planner alone"]).mean()
        low = float(gain.mean() - 2.776 * gain.std() / math.sqrt(len(gain)))
        held.append(Claim("planner with soft actor-critic over the planner: 95 % lower bound", low, 0, at_most=False))
    return held


def drawn(found: dict[str, Any]) -> Any:
    """Returns the picture of how the error falls."""
    from rl_as_inference.style import BLUE, GREY, ORANGE, new_axes, tidy

    ax = new_axes(None, 6.0, 3.8)
    part = found["error"]
    for key, label, color in (
        ("continuous", "continuous states: of the mean action, standard deviations", BLUE),
        ("discrete", f"{part['states']:,} discrete states: of log probabilities, nats", ORANGE),
    ):
        sizes, errors = [int(n) for n in part[key]], list(part[key].values())
        ax.loglog(sizes, errors, "o-", color=color, markersize=4, label=f"{label} (exponent {slope(part[key]):.2f})")
        ax.loglog(sizes, [errors[0] * (n / sizes[0]) ** -0.5 for n in sizes], ":", color=GREY)
    ax.set_ylim(bottom=6e-3)  # room for the legend
    ax.legend(frameon=False, fontsize=8, loc="lower left")
    tidy(ax, "particles", "root mean square error", "Causal plans; dotted: one over the root")
    return ax.figure


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints and writes; returns 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planning", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--picture", type=Path, help="where to draw how the error falls")
    given = parser.parse_args(arguments)
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"parts must be of {', '.join(PARTS)}; got {', '.join(sorted(unknown))}")
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    names = given.parts or list(PARTS)
    with progress_bar("planning", len(names)) as bar:
        for name in names:
            result = PARTS[name]()
            where = {"date": datetime.date.today().isoformat(), "cpu": cpu(), "threads": torch.get_num_threads()}
            found[name] = json.loads(json.dumps({**result, "measured": where} if name != "lake" else result))
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")
            bar.advance(name)
    if given.picture is not None:
        drawn(found).savefig(given.picture, dpi=110)
    held = claims(found)
    for claim in held:
        print(claim)
    return int(any(not claim.holds for claim in held))


if __name__ == "__main__":
    raise SystemExit(main())
