"""A backward step on a sparse grid against reading its table once from memory.

The grid has 1,000 × 1,000 states, 4 actions and 5 successors each (the four neighbours, stopping at
the edge, and staying), rewards by state and action, γ = 0.99 and temperature 0.5, float32. Three
tables hold the same transitions, and what is read is every byte of them, once, by a sum:

- *as given* to ``TabularMDP.from_successors``: int64 successors and float32 probabilities, 240 MB;
- *compact*: int32 successors and float32 probabilities, 160 MB, the least that could be read;
- *COO* as given to ``TabularMDP``: three int64 indices and a float32 value an entry, 560 MB.

``exact.plan`` over ``n + 1`` steps reads the table ``n`` times (the last step needs no successor); its
time, outputs included, is divided by ``n``.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Advance, Claim, Row, Section, paired
from rl_as_inference import TabularMDP, exact

__all__ = ["STAGES", "grid_tables", "measure"]

NUM_ACTIONS, NUM_SUCCESSORS = 4, 5
STAGES = 2
AS_GIVEN, COMPACT, COO = "as given, int64 + float32", "compact, int32 + float32", "torch.sparse_coo"


def measure(quick: bool, advance: Advance) -> Section:
    """Returns the table of backward steps."""
    side, steps, rounds = (60, 2, 3) if quick else (1000, 10, 7)
    generator = torch.Generator().manual_seed(0)
    indices, probabilities = grid_tables(side, generator)
    num_states = side * side
    reward = 0.1 * torch.randn(num_states, NUM_ACTIONS, generator=generator)
    initial = torch.zeros(num_states).index_fill(0, torch.tensor(0), 1.0)
    options: dict[str, Any] = {"horizon": steps + 1, "discount": 0.99, "temperature": 0.5}
    coo = _as_coo(indices, probabilities)
    processes = {
        "from_successors": TabularMDP.from_successors(indices, probabilities, reward, initial, **options),
        "sparse_coo": TabularMDP(coo, reward, initial, **options),
    }
    advance("sparse grid: tables")

    compact = indices.to(torch.int32)
    value = torch.randn(num_states, generator=generator)
    contestants: dict[str, Callable[[], Any]] = {
        AS_GIVEN: lambda: (_read(indices), _read(probabilities)),
        COMPACT: lambda: (_read(compact), _read(probabilities)),
        COO: lambda: (_read(coo.indices()), _read(coo.values())),
    }
    for source, mdp in processes.items():
        for dynamics in ("causal", "posterior"):
            contestants[f"plan, {dynamics} / {source}"] = lambda m=mdp, d=dynamics: exact.plan(m, d)  # type: ignore[misc]
    for dynamics in ("causal", "posterior"):
        contestants[f"backward_step, {dynamics} / from_successors"] = lambda d=dynamics: exact.backward_step(  # type: ignore[misc]
            processes["from_successors"], value, d
        )
    timings = paired(contestants, rounds)
    advance("sparse grid: times")

    rows = [
        Row("reading the table", name, 1e3 * timings.seconds(name), timings.ratio(name, AS_GIVEN))
        for name in (AS_GIVEN, COMPACT, COO)
    ]
    claims = []
    for name in list(contestants)[3:]:
        what, source = name.split(" / ")
        per = steps if what.startswith("plan") else 1
        to_given, to_compact = timings.ratio(name, AS_GIVEN) / per, timings.ratio(name, COMPACT) / per
        label = f"{what.replace('plan', 'a step of plan')}"
        rows.append(Row(label, source, 1e3 * timings.seconds(name) / per, to_given, note=f"{to_compact:.2f} × compact"))
        if source == "from_successors":
            claims.append(Claim(f"{label}, time over reading the table as given", to_given, 3.0, judged=not quick))
        else:
            to_coo = timings.ratio(name, COO) / per
            claims.append(Claim(f"{label}, time over reading the COO table", to_coo, 3.0, judged=not quick))
    settings = {
        "states": num_states,
        "actions": NUM_ACTIONS,
        "successors": NUM_SUCCESSORS,
        "backups a plan": steps,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
    }
    return Section(f"backward step, {side} × {side} grid", "reading the table as given", settings, rows, claims)


def grid_tables(side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns successors and random probabilities of a square grid, ``(S, A, K)``."""
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    moves = ((-1, 0), (0, 1), (1, 0), (0, -1), (0, 0))
    neighbours = torch.stack(
        [(row + dr).clamp(0, side - 1) * side + (column + dc).clamp(0, side - 1) for dr, dc in moves], -1
    )
    indices = neighbours.view(-1, 1, NUM_SUCCESSORS).expand(-1, NUM_ACTIONS, -1).contiguous()
    weights = torch.rand(indices.shape, generator=generator)
    return indices, weights / weights.sum(-1, keepdim=True)


def _as_coo(indices: Tensor, probabilities: Tensor) -> Tensor:
    num_states = len(indices)
    state = torch.arange(num_states).view(-1, 1, 1).expand_as(indices)
    action = torch.arange(NUM_ACTIONS).view(1, -1, 1).expand_as(indices)
    where = torch.stack([state.flatten(), action.flatten(), indices.flatten()])
    size = (num_states, NUM_ACTIONS, num_states)
    return torch.sparse_coo_tensor(where, probabilities.flatten(), size, check_invariants=False).coalesce()


def _read(table: Tensor) -> Tensor:
    """Reads every byte once; integers as floating-point numbers, whose sum is the faster one."""
    if table.dtype == torch.int64:
        table = table.view(torch.float64)
    elif table.dtype == torch.int32:
        table = table.view(torch.float32)
    return table.sum()
