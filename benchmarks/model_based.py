"""Learned dynamics and the agents that plan in them: do intervals cover, how soon is it learned, what does a plan cost.

    python -m benchmarks.model_based                      every part but half_cheetah; writes results/model_based.json
    python -m benchmarks.model_based pendulum --seeds 3   one part, of some of its seeds; the others' results stay
    python -m benchmarks.model_based half_cheetah --seeds 0 --keep FOLDER      goes on there from the last evaluation
    python -m benchmarks.model_based --picture docs/figures/model_based.png

Curves are files ``results/curves/<environment>_model_based_seed<seed>.csv``, as those of benchmarks.learning.
"""

import argparse
import csv
import datetime
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import pyro.distributions as dist
import torch
from torch import Tensor

from benchmarks.learning import CURVES, write
from benchmarks.measure import Claim
from benchmarks.run import _cpu as cpu
from rl_as_inference import LearnedDynamics, MarkovDecisionProcess, ModelBasedAgent, MPPIPlanner, models
from rl_as_inference.progress import progress_bar

RESULTS = Path(__file__).parent / "results" / "model_based.json"
SEEDS = (0, 1, 2, 3, 4)
STEPS = 2_000

PENDULUM: dict[str, Any] = {
    "planner": "mppi",
    "hidden_sizes": (64, 64),
    "model_hidden_sizes": (64, 64),
    "learning_starts": 200,
    "learning_rate": 3e-4,
    "look_ahead": 25,
    "num_samples": 100,
    "plan_iterations": 1,
    "guided": False,
    "model_every": 100,
    "model_updates": 200,
    "updates_per_step": 0.05,
    "compile": False,
}
CHEETAH: dict[str, Any] = {
    "planner": "policy",
    "hidden_sizes": (128, 128),
    "model_hidden_sizes": (128, 128),
    "learning_starts": 2_000,
    "learning_rate": 1e-3,
    "model_every": 500,
    "model_updates": 500,
    "imagined_steps": 1,
    "imagined_transitions": 20_000,
    "updates_per_step": 10,
    "compile": True,
}


class Wave(MarkovDecisionProcess):
    """A number that is pushed along a wavy slope, with more luck on the right."""

    state_space, action_space = gymnasium.spaces.Box(-10, 10, (1,)), gymnasium.spaces.Box(-1, 1, (1,))

    def initial(self) -> Any:
        return dist.Normal(torch.zeros(1), 0.7).to_event(1)

    def transition(self, state: Tensor, action: Tensor) -> Any:
        mean = 0.8 * state + 0.5 * (3 * state).sin() + 0.3 * action
        return dist.Normal(mean, 0.05 + 0.05 * torch.sigmoid(3 * state)).to_event(1)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return -state[..., 0].square()


def coverage(seeds: tuple[int, ...] = SEEDS) -> dict[str, Any]:
    """Returns how many of 20,000 held-out transitions lie in 90 % intervals, and how wide these are elsewhere."""
    truth, rows, picture = Wave(horizon=10), [], {}
    states, still = torch.linspace(-5, 5, 201)[:, None], torch.zeros(201, 1)
    for seed in seeds:
        torch.manual_seed(seed)
        seen, test = truth.rollout(None, 500), truth.rollout(None, 2000)
        dynamics = LearnedDynamics(truth.state_space, truth.action_space, hidden_sizes=(64, 64), horizon=10)
        fit = dynamics.fit(seen, 2000)
        low, high = (each[..., :1] for each in dynamics.predict(test.states[:-1], test.actions).interval(0.9))
        held = (test.states[1:] > low) & (test.states[1:] < high)
        near = test.states[:-1].abs() <= seen.states.abs().quantile(0.99)
        found = dynamics.predict(states, still)
        outside, inside = (states[:, 0].abs() > 4), (states[:, 0].abs() < 1)
        rows.append(
            {
                "seed": seed,
                "updates": fit.num_updates,
                "coverage": float(held.double().mean()),
                "coverage in the region of 99 % of the data": float(held[near].double().mean()),
                "ignorance beyond 4 over that within 1": float(
                    found.ignorance[outside, 0].mean() / found.ignorance[inside, 0].mean()
                ),
            }
        )
        if seed == seeds[0]:
            low, high = found.interval(0.9)
            picture = {
                "state": states[:, 0].tolist(),
                "low": low[:, 0].tolist(),
                "high": high[:, 0].tolist(),
                "members": found.mean[..., 0].tolist(),
                "truth": truth.transition(states, still).base_dist.loc[:, 0].tolist(),
                "seen": [seen.states[:-1].flatten()[:400].tolist(), seen.states[1:].flatten()[:400].tolist()],
            }
    return {"transitions": 5000, "held out": 20_000, "rows": rows, "picture": picture}


def speed() -> dict[str, Any]:
    """Returns what an action of a plan on the pendulum costs, in milliseconds of one core."""
    truth = models.pendulum(horizon=40)
    torch.manual_seed(0)
    seen = truth.rollout(None, 10)
    found = {}
    for label, sizes, samples, futures in (
        ("100 sequences, each in 5 members, 64 units", (64, 64), 100, 5),
        ("300 sequences, each in one of 5 members, 64 units", (64, 64), 300, 1),
        ("100 sequences, each in 5 members, 128 units", (128, 128), 100, 5),
    ):
        dynamics = LearnedDynamics(truth.state_space, truth.action_space, hidden_sizes=sizes)
        dynamics.fit(seen, 20)
        planner = MPPIPlanner(dynamics, look_ahead=20, num_samples=samples, num_futures=futures)
        planner(seen.states[0, :1], 0)
        started = time.process_time()
        for t in range(1, 31):
            planner(seen.states[0, :1], t)
        found[label] = 1e3 * (time.process_time() - started) / 30
    return {"look_ahead": 20, "milliseconds": found}


def pendulum(seeds: tuple[int, ...] = SEEDS) -> dict[str, Any]:
    """Returns what agents get on Pendulum-v1 within 2,000 steps, and what soft actor-critic had by then."""
    before = _read().get("pendulum", {})
    rows = {row["seed"]: row for row in before.get("rows", []) if before["config"] == json.loads(json.dumps(PENDULUM))}
    for seed in seeds:  # each by itself, with how long it took
        agent = ModelBasedAgent("Pendulum-v1", seed=seed, **PENDULUM)
        started, spent, curve = time.perf_counter(), time.process_time(), []
        agent.learn(STEPS, progress=False)
        seconds, core = time.perf_counter() - started, time.process_time() - spent
        returns = agent.evaluate(10, seed=10_000 + seed).returns
        episodes = [[step, round(earned, 2)] for step, _, earned, _ in agent.episodes]
        curve = [{"step": STEPS, "mean_return": round(float(returns.mean()), 3)}]
        curve[0] |= {"least_return": round(float(returns.min()), 3), "seconds": round(seconds, 2)}
        write("pendulum_model_based", seed, curve)
        rows[seed] = {
            "seed": seed,
            "steps": STEPS,
            "mean return": float(returns.mean()),
            "returns": returns.tolist(),
            "episodes": episodes,
            "seconds": seconds,
            "core seconds": core,
        }
        print(
            "pendulum", {key: rows[seed][key] for key in ("seed", "mean return", "seconds", "core seconds")}, flush=True
        )
    found = [rows[seed] for seed in sorted(rows)]
    return {"config": PENDULUM, "rows": found, "soft actor-critic": _sac("pendulum", STEPS, len(SEEDS))}


def half_cheetah(seeds: tuple[int, ...] = (0, 1, 2), keep: Path | None = None) -> dict[str, Any]:
    """Returns what MBPO gets on HalfCheetah-v5 within 20,000 steps, and what soft actor-critic had by then."""
    found = {}
    for seed in seeds:
        agent = ModelBasedAgent("HalfCheetah-v5", seed=seed, **CHEETAH)
        curve: list[dict[str, float]] = []
        seconds, path = 0.0, None if keep is None else keep / f"half_cheetah_model_based_seed{seed}"
        if path is not None and path.exists():
            notes = agent.restore(path)
            seconds, curve = notes["seconds"], notes["curve"]
        while agent.num_steps < 20_000:
            started = time.perf_counter()
            agent.learn(2_000, progress=False)
            seconds += time.perf_counter() - started
            returns = agent.evaluate(5, seed=10_000 + seed).returns
            curve.append(
                {
                    "step": agent.num_steps,
                    "mean_return": round(float(returns.mean()), 3),
                    "least_return": round(float(returns.min()), 3),
                    "temperature": round(agent.temperature, 6),
                    "seconds": round(seconds, 2),
                }
            )
            print("half_cheetah", seed, curve[-1], flush=True)
            write("half_cheetah_model_based", seed, curve)
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                agent.save(path, seconds=seconds, curve=curve)
        found[str(seed)] = curve
    return {"config": CHEETAH, "curves": found, "soft actor-critic": _sac("half_cheetah", 20_000, 3)}


def _read() -> dict[str, Any]:
    """Returns what was found so far."""
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found


def _sac(name: str, step: int, count: int) -> list[float]:
    """Returns the mean returns of soft actor-critic's seeds at a step."""
    returns = []
    for seed in range(count):
        with (CURVES / f"{name}_sac_seed{seed}.csv").open() as file:
            returns += [float(row["mean_return"]) for row in csv.DictReader(file) if int(row["step"]) == step]
    return returns


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "coverage": coverage,
    "speed": speed,
    "pendulum": pendulum,
    "half_cheetah": half_cheetah,
}


def claims(found: dict[str, Any]) -> list[Claim]:
    """Returns what the parts that are there are held to."""
    held = []
    if part := found.get("coverage"):
        share = [row["coverage in the region of 99 % of the data"] for row in part["rows"]]
        held.append(Claim("90 % intervals: largest error of coverage", max(abs(each - 0.9) for each in share), 0.03))
        wider = min(row["ignorance beyond 4 over that within 1"] for row in part["rows"])
        held.append(Claim("ignorance outside of the data over that inside", wider, 3, at_most=False))
    if part := found.get("speed"):
        held.append(Claim("an action, milliseconds of one core", next(iter(part["milliseconds"].values())), 30))
    if part := found.get("pendulum"):
        returns = [row["mean return"] for row in part["rows"]]
        name = f"pendulum at 2,000 steps: mean return of the worst of {len(returns)} seeds"
        held.append(Claim(name, min(returns), -250, at_most=False))
        # The machine was shared: what a seed takes of one core, and not what it waited for that.
        held.append(Claim("minutes of one core a seed", max(row["core seconds"] for row in part["rows"]) / 60, 10))
    if part := found.get("half_cheetah"):
        last = [curve[-1]["mean_return"] for curve in part["curves"].values() if curve[-1]["step"] == 20_000]
        if last:
            sac = part["soft actor-critic"]
            name = f"half cheetah at 20,000 steps, {len(last)} seeds: mean return less soft actor-critic's"
            held.append(Claim(name, sum(last) / len(last) - sum(sac) / len(sac), 0, at_most=False))
    return held


def _once(index: int, label: str) -> str:
    return "" if index else label


def drawn(found: dict[str, Any]) -> Any:
    """Returns the picture: what is predicted where data were and where they were not, and returns by step."""
    from matplotlib import pyplot as plt

    from rl_as_inference.style import BLUE, GREY, ORANGE, new_axes, tidy

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15.0, 4.0), layout="constrained")
    part = found["coverage"]["picture"]
    left = new_axes(left)
    left.fill_between(
        part["state"], part["low"], part["high"], color=BLUE, alpha=0.2, linewidth=0, label="90 % interval"
    )
    for index, member in enumerate(part["members"]):
        left.plot(part["state"], member, color=BLUE, linewidth=0.9, label="" if index else "members")
    left.plot(part["state"], part["truth"], color=ORANGE, linewidth=1.6, linestyle="--", label="truth")
    left.plot(*part["seen"], ".", color=GREY, markersize=2, label="seen")
    left.set_ylim(-7, 7)
    left.legend(frameon=False, fontsize=8, loc="upper left")
    share = [100 * row["coverage in the region of 99 % of the data"] for row in found["coverage"]["rows"]]
    title = f"Where data were, {min(share):.1f} to {max(share):.1f} % covered ({len(share)} seeds)"
    tidy(left, "state", "next state, without a push", title)
    pendulums = [row["episodes"] for row in found["pendulum"]["rows"]]
    cheetahs = [
        [(row["step"], row["mean_return"]) for row in curve] for curve in found["half_cheetah"]["curves"].values()
    ]
    for panel, name, own, sac, least, title in (
        (middle, "pendulum", pendulums, len(SEEDS), -250, "Pendulum-v1, every episode of every seed"),
        (right, "half_cheetah", cheetahs, 3, None, "HalfCheetah-v5, every seed"),
    ):
        ax, last = new_axes(panel), own[0][-1][0]
        for seed, curve in enumerate(own):
            ax.plot(
                *zip(*curve, strict=True),
                "o-",
                color=BLUE,
                markersize=3,
                linewidth=0.9,
                label=_once(seed, "model-based"),
            )
        for seed in range(sac):
            with (CURVES / f"{name}_sac_seed{seed}.csv").open() as file:
                curve = [(int(row["step"]), float(row["mean_return"])) for row in csv.DictReader(file)]
            curve = [each for each in curve if each[0] <= last]
            ax.plot(*zip(*curve, strict=True), color=ORANGE, linewidth=0.9, label=_once(seed, "soft actor-critic"))
        if least is not None:
            ax.axhline(least, color=GREY, linestyle=":", linewidth=1)
        ax.legend(frameon=False, fontsize=8, loc="upper left")
        tidy(ax, "environment steps", "return (reward units)", title)
    return figure


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints and writes; returns 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model_based", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all but half_cheetah by default")
    parser.add_argument("--seeds", type=int, nargs="+", help="these seeds alone")
    parser.add_argument("--keep", type=Path, help="folder to keep agents in, from which a stopped run goes on")
    parser.add_argument("--picture", type=Path, help="where to draw what was found, without measuring anything")
    given = parser.parse_args(arguments)
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"parts must be of {', '.join(PARTS)}; got {', '.join(sorted(unknown))}")
    found = _read()
    names = given.parts or ([] if given.picture else [name for name in PARTS if name != "half_cheetah"])
    with progress_bar("model_based", max(len(names), 1)) as bar:
        for name in names:
            options: dict[str, Any] = {} if given.seeds is None or name == "speed" else {"seeds": tuple(given.seeds)}
            options |= {"keep": given.keep} if name == "half_cheetah" else {}
            where = {"date": datetime.date.today().isoformat(), "cpu": cpu(), "threads": torch.get_num_threads()}
            result = PARTS[name](**options)
            found = _read()  # another part may have come in the meantime
            found[name] = json.loads(json.dumps({**result, "measured": where}))
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
