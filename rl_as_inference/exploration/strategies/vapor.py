"""VAPOR: the occupancy of what is best, inferred by a convex program."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from rl_as_inference.exploration.layers import Layers, TablePolicy
from rl_as_inference.exploration.table_beliefs import TableBeliefs
from rl_as_inference.turns import silenced

__all__ = ["Vapor"]

_SWITCH = (0.01, 0.001, 0.1)
"""Step lengths below which Clarabel changes its scaling: its own 0.1 stops early on large grids, so it comes last."""


class Vapor:
    """Each episode the occupancy ``λ_t(s,a)`` that solves

        max_λ  Σ_t Σ_{s,a} λ_t(s,a) ( E_φ[r(s,a)] + σ_φ[r(s,a)] sqrt(-2 log λ_t(s,a)) )
        where  Σ_a λ_0(s,a) = p(s_0 = s),   Σ_a λ_{t+1}(s',a) = Σ_{s,a} λ_t(s,a) E_φ[p(s'|s,a)]

    and the policy ``λ_t(s,a) / Σ_a λ_t(s,a)``. ``λ`` approximates the posterior probability that the best policy goes
    through ``(s,a)`` at ``t``, and the program's value bounds the expected best return from above where rewards are
    Gaussian, transitions known and states not met twice in an episode. As ``σ sqrt(-2 log λ) = min_τ (σ²/2τ - τ log
    λ)``, each pair has a temperature of its own, where K-learning has one for all; and entropy is of the occupancy,
    where K-learning's is of actions given states. Unknown transitions enter by their mean.

    The program is solved by Clarabel, an interior-point method, through CVXPY. ``u = λ sqrt(-log λ)`` is written by
    cones: ``u² ≤ λ h`` (second-order) and ``h ≤ -λ log λ`` (exponential).

    Source: Tarbouriech, Lattimore & O'Donoghue, "Probabilistic inference in reinforcement learning done right", NeurIPS
    2023 (arXiv:2311.13294).

    Raises:
        ImportError: if CVXPY or Clarabel is not installed.
    """

    def __init__(self) -> None:
        try:
            import clarabel  # noqa: F401
            import cvxpy  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f"strategy 'vapor' needs CVXPY and Clarabel ({error}): pip install 'rl-as-inference[vapor]'"
            ) from error
        self._program: _Program | None = None

    def policy(self, beliefs: TableBeliefs) -> TablePolicy:
        """Returns each run's policy for the next episode."""
        if self._program is None:
            self._program = _Program(beliefs.layers, beliefs.possible)
        program = self._program
        transition = beliefs.transition()
        mean, variance = beliefs.reward(transition)
        found: list[list[Tensor]] = []
        known: dict[bytes, list[Tensor]] = {}
        for run in range(beliefs.num_runs):
            own = transition[run], mean[run], variance[run].sqrt()
            # Runs that believe the same, as all do at first, share a program.
            key = b"".join(table.numpy().tobytes() for table in own)
            if key not in known:
                known[key] = program.solve(*own)
            found.append(known[key])
        # Solvers leave tiny negative numbers where there is nothing.
        tables = [torch.stack(step).clamp(min=1e-12).log() for step in zip(*found, strict=True)]
        forbidden = [beliefs.layers.log_prior[states] == -torch.inf for states in beliefs.layers.states]
        return TablePolicy(
            beliefs.layers,
            [logs.masked_fill(no, -torch.inf).log_softmax(-1) for logs, no in zip(tables, forbidden, strict=False)],
        )


class _Program:
    """The convex program of given layers, compiled once."""

    def __init__(self, layers: Layers, possible: Tensor) -> None:
        import cvxpy as cp

        self.layers = layers
        allowed = layers.log_prior > -torch.inf
        # One variable for each step, state that acts, and action that is allowed.
        self.live = [allowed[states] & ~layers.terminal[states][:, None] for states in layers.states[:-1]]
        number, start = [], 0
        for live in self.live:
            place = torch.full(live.shape, -1, dtype=torch.long)
            place[live] = torch.arange(int(live.sum())) + start
            start += int(live.sum())
            number.append(place)
        self.number, self.size = number, start
        row = [0, *np.cumsum([len(states) for states in layers.states[:-1]]).tolist()]
        leaves, sources, targets, self.edges = [], [], [], []
        for t, live in enumerate(self.live):
            state, _ = live.nonzero(as_tuple=True)
            leaves.append(state + row[t])
            edge = live[..., None] & possible[layers.states[t]] & (t < layers.horizon - 1)
            pair = edge.nonzero(as_tuple=True)
            self.edges.append(pair)
            sources.append(number[t][pair[0], pair[1]])
            targets.append(layers.successors[t][pair] + row[t + 1])
        states, source, target = row[-1], torch.cat(sources).numpy(), torch.cat(targets).numpy()
        ones = np.ones(self.size)
        out = scipy.sparse.csr_matrix((ones, (torch.cat(leaves).numpy(), np.arange(self.size))), (states, self.size))
        into = scipy.sparse.csr_matrix((np.ones(len(source)), (target, np.arange(len(source)))), (states, len(source)))
        begin = np.zeros(states)
        begin[: row[1]] = layers.start.numpy()
        # States in which nobody acts have no balance.
        acting = np.asarray(out.sum(1)).ravel() > 0

        self.mean, self.spread = cp.Parameter(self.size), cp.Parameter(self.size, nonneg=True)
        self.chance = cp.Parameter(len(source), nonneg=True) if len(source) else None  # of a single decision
        flow, u, h = cp.Variable(self.size), cp.Variable(self.size), cp.Variable(self.size)
        arriving = begin if self.chance is None else begin + into @ cp.multiply(self.chance, flow[source])
        constraints: list[Any] = [
            out[acting] @ flow == arriving[acting],
            h <= cp.entr(flow),
            cp.SOC(flow + h, cp.vstack([2 * u, flow - h]), axis=0),
        ]
        objective = self.mean @ flow + self.spread @ u
        self.flow, self.problem = flow, cp.Problem(cp.Maximize(objective), constraints)

    def solve(self, transition: Tensor, mean: Tensor, deviation: Tensor) -> list[Tensor]:
        """Returns ``λ_t(s,a)`` of every step, ``(n_t, A)``, for one run's tables."""
        import cvxpy as cp

        layers = self.layers
        discounts = [float(layers.discount) ** t for t in range(layers.horizon)]
        self.mean.value = self._flat([mean[s] * g for s, g in zip(layers.states, discounts, strict=False)])
        spread = [deviation[s] * g * 2**0.5 for s, g in zip(layers.states, discounts, strict=False)]
        self.spread.value = self._flat(spread)
        if self.chance is not None:
            chance = [transition[s][e] for s, e in zip(layers.states, self.edges, strict=False)]
            self.chance.value = torch.cat(chance).numpy()
        nearly = None
        for step in _SWITCH:
            with contextlib.suppress(cp.SolverError), silenced("Solution may be inaccurate"):
                self.problem.solve(solver=cp.CLARABEL, max_iter=400, min_switch_step_length=step)
                nearly = self.flow.value if nearly is None else nearly
                if self.problem.status == cp.OPTIMAL:
                    break
        # Where every scaling stops short of Clarabel's tolerance of 1e-8, the first answer it calls nearly optimal.
        solution = self.flow.value if self.problem.status == cp.OPTIMAL else nearly
        if solution is None:
            raise RuntimeError(f"strategy 'vapor': Clarabel did not solve the program ({self.problem.status})")
        flow = torch.as_tensor(np.append(solution, 0.0))
        return [flow[number] for number in self.number]

    def _flat(self, tables: list[Tensor]) -> np.ndarray[Any, Any]:
        return torch.cat([table[live] for table, live in zip(tables, self.live, strict=True)]).numpy()
