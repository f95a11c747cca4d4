"""The same readings on the host and on a GPU, in one run.

    python -m benchmarks.devices

prints a table and writes ``benchmarks/results/gpu.json``. It needs a CUDA device and takes a few minutes. What a GPU
gains depends on the batch: at the sizes of the other benchmarks it has nothing to do but launch kernels.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.learners import update_rate
from rl_as_inference import SoftActorCritic, TabularMDP, TrajectoryELBO, exact, follow, models
from rl_as_inference.guides import TabularPolicy

__all__ = ["main", "measure"]

_RESULTS = Path(__file__).parent / "results" / "gpu.json"
_LONGEST = 1.5
"""Seconds that a contestant is timed for, or one run where that takes longer."""

Case = tuple[str, float, str]
"""What was measured, its rate, and the rate's unit."""


def measure(device: torch.device, large: bool, each: Callable[[Case], None]) -> None:
    """Measures every reading on a device; the largest batches only where ``large``."""
    for case in (_rollouts, _gradients, _plans, _updates, _loop):
        case(device, large, each)


def _rollouts(device: torch.device, large: bool, each: Callable[[Case], None]) -> None:
    lake = TabularMDP.from_gymnasium("FrozenLake-v1", map_name="8x8", horizon=100, temperature=0.005, device=device)
    plan = exact.plan(lake)
    for count in (4_096, 65_536, *([1_048_576] if large else [])):
        seconds = _seconds(device, torch.no_grad()(lambda count=count: lake.rollout(plan, count)))
        each((f"rollout, frozen lake 8 × 8, {count:,} trajectories", 100 * count / seconds, "steps/s"))


def _gradients(device: torch.device, large: bool, each: Callable[[Case], None]) -> None:
    mdp = models.random_mdp(25, 4, 30, 0.95, 0.5, device=device)
    policy = TabularPolicy(25, 4).to(device)
    for name, model in (("fast reading", mdp), ("Pyro program", _program(mdp))):
        guide = follow(model, policy)
        for count in (256, 16_384, *([262_144] if large else [])):

            def run(model: Any = model, guide: Any = guide, count: int = count) -> None:
                policy.logits.grad = None
                TrajectoryELBO().loss_and_grads(model, guide, count)

            rate = 30 * count / _seconds(device, run)
            each((f"ELBO gradient, 25 states, horizon 30, {name}, {count:,} trajectories", rate, "steps/s"))


def _plans(device: torch.device, large: bool, each: Callable[[Case], None]) -> None:
    del large
    for states in (100, 2_000):
        mdp = models.random_mdp(states, 8, 100, 0.99, 0.5, device=device)
        with torch.no_grad():
            seconds = _seconds(device, lambda mdp=mdp: exact.plan(mdp))
        each((f"exact plan, {states:,} states, 8 actions, horizon 100", 1 / seconds, "plans/s"))


def _updates(device: torch.device, large: bool, each: Callable[[Case], None]) -> None:
    small: dict[str, Any] = {"hidden_sizes": (64, 64), "batch_size": 100}
    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("64 × 64, batch 100", "Pendulum-v1", small),
        ("64 × 64, batch 100, 16 seeds", "Pendulum-v1", {**small, "seeds": 16}),
        ("256 × 256, batch 256", "HalfCheetah-v5", {}),
        ("256 × 256, batch 4,096", "HalfCheetah-v5", {"batch_size": 4_096}),
        ("256 × 256, batch 256, 16 seeds", "HalfCheetah-v5", {"seeds": 16}),
    ]
    for name, env_id, config in cases:
        agent = SoftActorCritic(env_id, learning_starts=100, device=device, compile=True, **config)
        agent.learn(120, progress=False)
        update_rate(agent, 5)
        count, seconds = 5, 0.0
        while seconds < 0.5:
            count *= 4
            _wait(device)
            start = time.perf_counter()
            update_rate(agent, count)
            _wait(device)
            seconds = time.perf_counter() - start
        each((f"update of soft actor-critic, compiled, {name}", agent.num_seeds * count / seconds, "updates/s"))
        agent.close()


def _loop(device: torch.device, large: bool, each: Callable[[Case], None]) -> None:
    del large
    system = models.point_mass(device=device)
    for count in (1, 1_024):
        agent = SoftActorCritic(
            system, num_envs=count, updates_per_step=1 / count, learning_starts=2 * count, device=device, compile=True
        )
        agent.learn(20 * count, progress=False)
        start = time.perf_counter()
        agent.learn(200 * count, progress=False)
        _wait(device)
        rate = 200 * count / (time.perf_counter() - start)
        each((f"soft actor-critic on the point mass, {count:,} at once, one update for all", rate, "steps/s"))
        agent.close()


def _program(mdp: TabularMDP) -> Callable[[int], Any]:
    return lambda count: mdp(count)


def _seconds(device: torch.device, run: Callable[[], Any]) -> float:
    """Returns the median time of a run, after one that is not counted."""
    run()
    times: list[float] = []
    while not times or (sum(times) < _LONGEST and len(times) < 50):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(arguments: list[str] | None = None) -> int:
    """Measures on both devices; returns 1 where there is no GPU, else 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.devices", description=__doc__)
    parser.add_argument("--out", type=Path, default=_RESULTS, help="file for the results (default: %(default)s)")
    options = parser.parse_args(arguments)
    console = Console(width=None if Console().is_terminal else 150)
    if not torch.cuda.is_available():
        console.print("there is no CUDA device on this machine")
        return 1
    rates: dict[str, dict[str, float]] = {}
    units: dict[str, str] = {}

    def note(device: str) -> Callable[[Case], None]:
        def each(case: Case) -> None:
            name, rate, units[name] = case
            rates.setdefault(name, {})[device] = rate
            console.print(f"{device}  {name}: {rate:,.0f} {units[name]}", highlight=False)

        return each

    # The host first: what it compiles does not depend on the GPU, and a slow host is not hidden by a busy one.
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        measure(torch.device(device), device == "cuda", note(device))
    table = Table(title="Readings on a GPU and on the host")
    for header in ("what", "host", "GPU", "ratio"):
        table.add_column(header, justify="left" if header == "what" else "right")
    for name, found in rates.items():
        host, gpu = found.get("cpu"), found["cuda"]
        ratio = "" if host is None else f"{gpu / host:.3g}"
        table.add_row(f"{name} ({units[name]})", "" if host is None else f"{host:,.0f}", f"{gpu:,.0f}", ratio)
    console.print(table)
    results = {
        "gpu": torch.cuda.get_device_name(),
        "host_threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("rl-as-inference", "torch", "pyro-ppl", "gymnasium")},
        "units": units,
        "rates": rates,
    }
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
