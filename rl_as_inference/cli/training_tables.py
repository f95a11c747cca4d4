"""What a run of a learner came to, and what its policy returns, as tables."""

import math
import statistics

import torch

from rl_as_inference.agents import MPO, Learner, Training
from rl_as_inference.tables import Table, counted, render

__all__ = ["evaluation_table", "training_table"]


def training_table(agent: Learner, training: Training) -> Table:
    """Returns what a run came to."""
    returns, last = training.evaluation.returns, training.curve[-agent.num_seeds :]
    several, count = agent.num_seeds > 1, returns.shape[1]
    interval = training.interval
    played = counted(count, "episodes")
    over = f"{agent.num_seeds} seeds, {played} each" if several else played
    note = over if interval is None else f"{interval[0]:.4g} … {interval[1]:.4g} (95 %, bootstrap over {over})"
    rows: list[list[str]] = [
        ["environment steps", f"{agent.num_steps:,}", "steps", "of each seed" if several else ""],
        ["gradient steps", f"{agent.num_updates:,}", "steps", "of each seed" if several else ""],
        ["evaluation return", f"{float(returns.mean()):.4g}", "reward", note],
    ]
    if several:
        rows += [
            [
                f"  seed {row.seed}",
                f"{row.mean_return:.4g}",
                "reward",
                f"its episodes {row.least_return:.4g} … {row.largest_return:.4g}",
            ]
            for row in last
        ]
    goal, symbol = "fixed", "α"
    if isinstance(agent, MPO):
        symbol = "η"  # of the E-step
        if agent.task.learns_temperature:
            goal = f"tuned to improvements of {agent.kl_improvement:.4g} nats"
    if agent.target_entropy is not None:
        goal = f"tuned to an entropy of {agent.target_entropy:.4g} nats"
    elif agent.constraint is not None:
        recent = statistics.fmean(agent.constraint.recent)
        latest = (
            "no episode of the policy has ended" if math.isnan(recent) else f"latest exploring episodes {recent:.4g}"
        )
        goal = f"tuned to a return of {agent.constraint.target:.4g}; {latest}"
    speed = training.steps_per_second
    rows += [
        [f"temperature {symbol}", f"{agent.temperature:.4g}", "reward/nat", goal],
        [
            "policy entropy",
            f"{statistics.fmean(row.entropy for row in last):.4g}",
            "nats",
            "mean over the latest batches",
        ],
    ]
    if not math.isnan(speed):  # as it is where a finished run was resumed
        note = _speed_note(agent, speed, training.seconds)
        rows.append(["speed", f"{speed * agent.num_seeds:,.0f}", "steps/s", note])
    title = f"{type(agent).__name__} on {agent.envs.name}"
    return Table(title, ("quantity", "value", "unit", ""), tuple(map(tuple, rows)), right=(1,))


def _speed_note(agent: Learner, speed: float, seconds: float) -> str:
    each = f"{speed:,.0f} for each seed; " if agent.num_seeds > 1 else ""
    compiling = f", {agent.compile_seconds:.1f} s of it compiling" if agent.settle_compile(0) else ""
    return f"{each}{seconds:.1f} s of learning{compiling}"


def evaluation_table(agent: Learner, returns: torch.Tensor, lengths: torch.Tensor, stochastic: bool) -> str:
    """Returns the episodes' returns in figures, of every seed and of all."""

    def row(name: str, returns: torch.Tensor, lengths: torch.Tensor) -> list[str]:
        spread = f"{float(returns.std()):.4g}" if returns.numel() > 1 else "-"
        least, most = int(lengths.min()), int(lengths.max())
        length = str(least) if least == most else f"{float(lengths.double().mean()):.1f} ({least} … {most})"
        numbers = (f"{float(value):.4g}" for value in (returns.min(), returns.max()))
        return [name, str(returns.numel()), f"{float(returns.mean()):.4g}", spread, *numbers, length]

    rows: list[list[str] | None] = [
        row(f"seed {index}", *pair) for index, pair in enumerate(zip(returns, lengths, strict=True))
    ]
    if len(returns) > 1:
        rows += [None, row("all seeds", returns, lengths)]
    acts = ", actions drawn" if stochastic else ""
    title = f"{type(agent).__name__} on {agent.envs.name}, {counted(agent.num_steps, 'steps')}{acts}"
    header = ["return (reward)", "episodes", "mean", "std", "min", "max", "length (steps)"]
    return render(title, header, rows, right=range(1, 7))
