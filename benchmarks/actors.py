"""Actors: steps a second of a slow simulator, what a killed one costs, and what is learned with them and without.

``python -m benchmarks.actors speed deaths learning`` writes ``results/actors.json``, one part at a time.
"""

import argparse
import datetime
import json
import os
import signal
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from rl_as_inference import SoftActorCritic

RESULTS = Path(__file__).parent / "results" / "actors.json"
PAUSE = 0.005
"""Seconds that a step of the slow simulator takes."""
NICE = int(os.environ.get("ACTORS_NICE", "0"))
SMALL: dict[str, Any] = {"hidden_sizes": (64, 64), "batch_size": 64, "compile": False}


class Slow(gymnasium.Env[Any, Any]):
    """A walk of 100 steps on a line, 5 ms a step."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place, self.time = self.np_random.normal(size=2).astype(np.float32), 0
        return np.float32([*self.place, 0]), {}

    def step(self, action: Any) -> Any:
        time.sleep(PAUSE)
        self.time += 1
        self.place = self.place + np.float32([0.1 * float(action[0]), 0.0])
        return np.float32([*self.place, 0.01 * self.time]), -abs(float(self.place[0])), False, self.time == 100, {}


def speed(rounds: int = 3, seconds: float = 4.0) -> list[dict[str, Any]]:
    """Returns steps a second: of one environment, of actors, and of environments in processes.

    With ``ACTORS_NICE=-10`` in the environment (it takes root) what is timed goes before other programs meanwhile.
    """
    cases: dict[str, dict[str, Any]] = {
        "one environment": {},
        "one actor": {"num_actors": 1},
        "eight actors": {"num_actors": 8},
        "eight environments in processes (asynchronous)": {"num_envs": 8, "asynchronous": True},
    }
    rows = []
    for what, learning in {
        "collecting alone": {"learning_starts": 10**9},
        "an update every 8 steps": {"learning_starts": 50, "updates_per_step": 0.125},
    }.items():
        rates: dict[str, list[float]] = {case: [] for case in cases}
        busy: dict[str, list[float]] = {case: [] for case in cases}
        for _ in range(rounds):
            for case, options in cases.items():
                agent = SoftActorCritic(Slow, **SMALL, **learning, **options)
                agent.learn(150, progress=False)
                _give_priority(agent, NICE)
                start, first = time.perf_counter(), agent.num_steps
                while time.perf_counter() - start < seconds:
                    agent.learn(16, progress=False)
                rates[case].append((agent.num_steps - first) / (time.perf_counter() - start))
                _give_priority(agent, 0)
                busy[case].append(os.getloadavg()[0])
                agent.close()
        for case, found in rates.items():
            row = {"case": case, "learning": what, "steps_per_second": [round(rate, 1) for rate in found]}
            row |= {"median": round(statistics.median(found), 1), "load_average": max(busy[case]), "nice": NICE}
            row["times_one_environment"] = round(row["median"] / statistics.median(rates["one environment"]), 2)
            row["times_one_actor"] = round(row["median"] / statistics.median(rates["one actor"]), 2)
            rows.append(row)
            print(row, flush=True)
    return rows


def _give_priority(agent: SoftActorCritic, nice: int) -> None:
    actors, vector = agent._loop.actors, getattr(agent.envs.outermost, "processes", [])
    pids = [] if actors is None else [int(where.split()[1]) for where in actors.pool.where]
    for pid in (0, *pids, *(process.pid for process in vector)) if NICE else ():
        os.setpriority(os.PRIO_PROCESS, pid, nice)


def deaths(count: int = 5) -> dict[str, Any]:
    """Returns the seconds from the SIGKILL of one of four actors until another acts in its place, and what went on."""
    agent = SoftActorCritic(Slow, **SMALL, learning_starts=50, updates_per_step=0.25, num_actors=4)
    agent.learn(100, progress=False)
    pool, seconds, meanwhile = agent._loop.actors.pool, [], []  # type: ignore[union-attr]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for index in range(count):
            os.kill(int(pool.where[index % 4].split()[1]), signal.SIGKILL)
            start, first, died = time.perf_counter(), agent.num_steps, False
            while not died or not all(block is not None for block in pool._blocks):
                agent.learn(1, progress=False)
                died = len(said) > index
            seconds.append(round(time.perf_counter() - start, 2))
            meanwhile.append(agent.num_steps - first)
    agent.close()
    row = {"killed": count, "said": len(said), "seconds": seconds, "steps_meanwhile": meanwhile}
    row |= {"steps": agent.num_steps, "transitions": len(agent.replay), "load_average": os.getloadavg()[0]}
    print(row, flush=True)
    return row


def learning(seeds: int = 3, steps: int = 8_000) -> list[dict[str, Any]]:
    """Returns what soft actor-critic reaches on the pendulum, with four actors and without; runs in the file stay."""
    rows = read().get("learning", [])
    there = [(row["case"], row["seed"]) for row in rows]
    for seed in range(seeds):
        for case, options in {"four actors": {"num_actors": 4}, "without": {}}.items():
            if (case, seed) in there:
                continue
            start = time.perf_counter()
            agent = SoftActorCritic("Pendulum-v1", seed=seed, **SMALL, learning_starts=500, **options)
            agent.learn(steps, progress=False)
            played, last = agent.evaluate(20), agent.history[-1]
            row = {"env": "Pendulum-v1", "case": case, "seed": seed, "steps": agent.num_steps}
            row |= {"updates": agent.num_updates, "return": round(played.mean, 1), "episodes": 20}
            row |= {name: last[name] for name in ("policy_lag", "largest_policy_lag") if name in last}
            rows.append({**row, "seconds": round(time.perf_counter() - start, 1)})
            agent.close()
            print(rows[-1], flush=True)
            write("learning", rows)
    return rows


def read() -> dict[str, Any]:
    """Returns what was measured so far."""
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found


def write(part: str, rows: Any) -> None:
    """Writes down a part."""
    about = {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "cores": os.cpu_count()}
    RESULTS.write_text(json.dumps({**read(), part: rows, **about}, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Measures from the command line."""
    parts = {"speed": speed, "deaths": deaths, "learning": learning}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.actors", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(parts)}; by default all")
    torch.set_num_threads(1)
    for name in parser.parse_args(arguments).parts or list(parts):
        write(name, parts[name]())  # type: ignore[operator]


if __name__ == "__main__":
    main()
