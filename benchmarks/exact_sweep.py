"""Exact answers on random finite problems, against the same recursions in eighty decimal digits.

    python -m benchmarks.exact_sweep                  2,000 problems of each kind; writes results/exact_sweep.json
    python -m benchmarks.exact_sweep --problems 50

Problems are drawn to break things: discounts 0, 1 and up to 1 - 1e-5, temperatures from 1e-6 to 1e6, horizons of 1 to
1,000 steps and none, certain and impossible transitions, forbidden actions, terminal states, both precisions. The
reference works with lists of ``mpmath`` numbers, in the shapes of the formulas: nothing of it is shared with the
package.
Slopes and curvatures are those along one random direction in all tables, discount and temperature at once, by central
differences whose step is 1e-25. Whether an infinite sum is finite is decided by elimination without
subtraction.

Problems of many states have no such reference. Their values are held to their own Bellman equation, and slopes to the
equation of flows, in extended precision.
"""

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import torch
from mpmath import mpf
from scipy.sparse import csr_matrix, identity
from scipy.sparse.linalg import gmres

from rl_as_inference import TabularMDP, exact
from rl_as_inference.progress import progress_bar

RESULTS = Path(__file__).parent / "results" / "exact_sweep.json"
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
CURVATURE = 1e-6
DIGITS = 80
STEP = mpf(10) ** -25
DISTRIBUTIONS = ("transition", "initial", "prior", "policy")


@dataclass
class Problem:
    """Tables of a small process, and a direction ``d`` in them, in double precision."""

    tables: dict[str, np.ndarray]
    direction: dict[str, np.ndarray]
    terminal: np.ndarray
    horizon: int | None
    dtype: torch.dtype

    def at(self, step: Any) -> dict[str, Any]:
        """Returns tables of exact numbers at a distance along the direction."""
        return {
            name: _shifted(value, self.direction[name], step, name in DISTRIBUTIONS)
            for name, value in self.tables.items()
        }


def _shifted(value: np.ndarray, direction: np.ndarray, step: Any, of_rows: bool) -> Any:
    if value.ndim == 0:
        return mpf(float(value)) + step * mpf(float(direction))
    if value.ndim == 1 and of_rows:
        total = mpmath.fsum(map(float, value))
        return [mpf(float(v)) / total + step * mpf(float(d)) for v, d in zip(value, direction, strict=True)]
    return [_shifted(v, d, step, of_rows) for v, d in zip(value, direction, strict=True)]


def draw(seed: int, dtype: torch.dtype) -> Problem:
    """Returns a random small problem; its tables are numbers of ``dtype``."""
    g = np.random.default_rng(seed)
    states, actions = int(g.integers(1, 5)), int(g.integers(1, 4))
    certain = g.random() < 0.3

    def rows(*shape: int) -> np.ndarray:
        if certain and len(shape) == 3:
            return np.eye(shape[-1])[g.integers(0, shape[-1], shape[:-1])]
        weights = g.random(shape) * (g.random(shape) > 0.3)
        weights[..., 0] += 1e-5 * g.random(shape[:-1]) + (weights.sum(-1) == 0)
        return weights / weights.sum(-1, keepdims=True)

    horizon = [int(g.integers(1, 6)), int(g.choice([10, 30, 100])), 1000, None][g.choice(4, p=[0.35, 0.2, 0.05, 0.4])]
    discount = float(g.choice([0.0, 1.0, 0.5, 0.9, 0.99, 0.9999, 0.99999, g.random()]))
    terminal = g.random(states) < 0.3 if g.random() < 0.5 else np.zeros(states, dtype=bool)
    if horizon is None and discount == 1.0:
        terminal[-1] = True
    moves = rows(states, actions, states)
    if horizon is None and discount == 1.0:  # every state can end
        moves = 0.9 * moves + 0.1 * np.eye(states)[-1]
    reward = g.standard_normal((states, actions, states)[: int(g.integers(2, 4))]) * 10.0 ** g.integers(-2, 3)
    if g.random() < 0.5:
        reward = -abs(reward)
    prior = rows(states, actions)
    tables = {
        "transition": moves,
        "reward": np.where(terminal.reshape(-1, *[1] * (reward.ndim - 1)), 0.0, reward),
        "initial": rows(states),
        "prior": prior,
        "discount": np.array(discount),
        "temperature": np.array(10.0 ** g.uniform(-6, 6) if g.random() < 0.6 else 10.0 ** g.uniform(-1, 1)),
        "policy": prior * (g.random((states, actions)) + 0.1),
    }
    tables["policy"] /= tables["policy"].sum(-1, keepdims=True)
    if horizon is not None:
        tables["policy"] = tables["policy"][None]
    rounded = torch.finfo(dtype).eps > 1e-10
    for name, value in tables.items():
        value = value.astype(np.float32).astype(np.float64) if rounded else value
        # What a table of rounded rows means: the rows divided by their sums.
        if name in DISTRIBUTIONS:
            value = value / value.sum(-1, keepdims=True)
        tables[name] = value
    # What is impossible now may be worth e^(10⁶) times what is not, and then no step along it is small.
    mild = abs(tables["reward"]).max() / tables["temperature"] * (horizon or 1 / (1.01 - discount)) < 20
    direction = {}
    for name, value in tables.items():
        noise = g.standard_normal(value.shape)
        if name in ("transition", "initial"):
            weights = np.ones_like(value) if mild else value
            noise = weights * (noise - (weights * noise).sum(-1, keepdims=True) / weights.sum(-1, keepdims=True))
        elif name in ("prior", "policy"):
            noise = value * (noise - (noise * value).sum(-1, keepdims=True))
        elif name == "temperature":
            noise = noise * value
        elif name == "discount":
            noise = noise if mild and horizon is not None else noise * value * (1 - value)
        direction[name] = noise
    return Problem(tables, direction, terminal, horizon, dtype)


class Infinite(Exception):
    """The reference has no finite answer."""


def _expected(row: Any, values: Any) -> Any:
    return mpmath.fsum(p * v for p, v in zip(row, values, strict=True))


def _rewards(tables: Any, s: int, a: int) -> list[Any]:
    given = tables["reward"][s][a]
    return given if isinstance(given, list) else [given] * len(tables["initial"])


def reference(problem: Problem, reading: str, tables: Any) -> Any:
    """Returns an objective in nats.

    Raises:
        Infinite: if it is.
    """
    backups = {"log_evidence": _evidence, "optimal_elbo": _causal, "elbo": _policy_value}
    return backups[reading](problem, tables)


def _evidence(problem: Problem, tables: Any) -> Any:
    states, gamma, alpha = range(len(tables["initial"])), tables["discount"], tables["temperature"]
    actions = range(len(tables["prior"][0]))
    # x = own + M x for x = e^V in states that go on; a terminal successor is worth 1.
    weight = [
        [
            mpmath.fsum(
                tables["prior"][s][a] * tables["transition"][s][a][n] * mpmath.exp(_rewards(tables, s, a)[n] / alpha)
                for a in actions
            )
            for n in states
        ]
        for s in states
    ]
    ended = problem.terminal
    if problem.horizon is not None:
        x = [mpf(1)] * len(ended)
        for t in reversed(range(problem.horizon)):
            last = t == problem.horizon - 1
            onward = [mpf(1) if last else (1 - gamma) + gamma * v for v in x]
            x = [mpf(1) if ended[s] else _expected(weight[s], onward) for s in states]
        return mpmath.log(_expected(tables["initial"], x))
    going = [s for s in _reached(tables, ended) if not ended[s]]
    if not going:
        return mpmath.log(mpmath.fsum(tables["initial"]))
    moves = [[gamma * weight[s][n] for n in going] for s in going]
    own = [mpmath.fsum(weight[s][n] * (1 if ended[n] else 1 - gamma) for n in states) for s in going]
    found = dict(zip(going, _chain_sums(moves, own), strict=True))
    return mpmath.log(_expected(tables["initial"], [found.get(s, mpf(1)) for s in states]))


def _reached(tables: Any, ended: np.ndarray) -> list[int]:
    """Returns the states that are ever visited: what the others are worth plays no part."""
    found = {s for s, p in enumerate(tables["initial"]) if p != 0}
    while True:
        onward = {
            n
            for s in found
            if not ended[s]
            for a, row in enumerate(tables["transition"][s])
            for n, p in enumerate(row)
            if p != 0 and tables["prior"][s][a] != 0
        }
        if onward <= found:
            return sorted(found)
        found |= onward


def _chain_sums(moves: Any, own: Any) -> Any:
    """Returns ``x`` of ``x = own + M x`` by elimination, which for ``M >= 0`` subtracts nowhere but in ``1 - M_kk``.

    All of these are positive if and only if the spectral radius is below 1. Entries may differ by e^(10⁵).
    """
    moves, own = [list(row) for row in moves], list(own)
    for k in range(len(own)):
        onward = 1 - moves[k][k]
        if onward <= 0:
            raise Infinite
        own[k] /= onward
        moves[k] = [mpf(0) if j == k else x / onward for j, x in enumerate(moves[k])]
        for i in range(len(own)):
            if i != k:
                share = moves[i][k]
                own[i] += share * own[k]
                moves[i] = [
                    mpf(0) if j == k else x + share * y for j, (x, y) in enumerate(zip(moves[i], moves[k], strict=True))
                ]
    return own


def _q(problem: Problem, tables: Any, value: Any, last: bool) -> Any:
    states, alpha, gamma = range(len(tables["initial"])), tables["temperature"], tables["discount"]
    onward = [mpf(0) if last else gamma * v for v in value]
    return [
        [
            mpmath.fsum(
                p * (r / alpha + v)
                for p, r, v in zip(tables["transition"][s][a], _rewards(tables, s, a), onward, strict=True)
            )
            for a in range(len(tables["prior"][0]))
        ]
        for s in states
    ]


def _soft_maximum(problem: Problem, tables: Any, q: Any) -> tuple[Any, Any]:
    values, policy = [], []
    for s, row in enumerate(q):
        prior = tables["prior"][s]
        top = max(x for x, p in zip(row, prior, strict=True) if p != 0)
        weights = [p * mpmath.exp(x - top) if p != 0 else mpf(0) for x, p in zip(row, prior, strict=True)]
        total = mpmath.fsum(weights)
        values.append(mpf(0) if problem.terminal[s] else top + mpmath.log(total))
        policy.append([w / total for w in weights])
    return values, policy


def _causal(problem: Problem, tables: Any) -> Any:
    value = [mpf(0)] * len(tables["initial"])
    if problem.horizon is not None:
        for t in reversed(range(problem.horizon)):
            q = _q(problem, tables, value, t == problem.horizon - 1)
            value, _ = _soft_maximum(problem, tables, q)
        return _expected(tables["initial"], value)
    policy = tables["prior"]
    before = None
    for _ in range(500):
        value = _evaluated(problem, tables, policy)
        after, policy = _soft_maximum(problem, tables, _q(problem, tables, value, False))
        change = max(abs(a - v) for a, v in zip(after, value, strict=True))
        if change <= mpf(10) ** (10 - DIGITS) * (1 + max(map(abs, after))):
            return _expected(tables["initial"], after)
        before = change
    raise RuntimeError(f"the reference did not settle: {before}")


def _evaluated(problem: Problem, tables: Any, policy: Any) -> Any:
    """Returns the values of a stationary policy, costs of its own included."""
    states, gamma = range(len(tables["initial"])), tables["discount"]
    q = _q(problem, tables, [mpf(0)] * len(tables["initial"]), True)
    going = [s for s in states if not problem.terminal[s]]
    if not going:
        return [mpf(0)] * len(problem.terminal)
    own = [
        mpmath.fsum(
            w * (x - mpmath.log(w / p)) for w, x, p in zip(policy[s], q[s], tables["prior"][s], strict=True) if w != 0
        )
        for s in going
    ]
    moves = [
        [
            gamma * mpmath.fsum(w * row[n] for w, row in zip(policy[s], tables["transition"][s], strict=True))
            for n in going
        ]
        for s in going
    ]
    found = dict(zip(going, _chain_sums(moves, own), strict=True))
    return [found.get(s, mpf(0)) for s in states]


def _policy_value(problem: Problem, tables: Any) -> Any:
    if problem.horizon is None:
        return _expected(tables["initial"], _evaluated(problem, tables, tables["policy"]))
    value, policy = [mpf(0)] * len(tables["initial"]), tables["policy"][0]
    for t in reversed(range(problem.horizon)):
        q = _q(problem, tables, value, t == problem.horizon - 1)
        value = [
            mpf(0)
            if problem.terminal[s]
            else mpmath.fsum(
                w * (x - mpmath.log(w / p))
                for w, x, p in zip(policy[s], q[s], tables["prior"][s], strict=True)
                if w != 0
            )
            for s in range(len(value))
        ]
    return _expected(tables["initial"], value)


@dataclass
class Errors:
    """The largest errors of a kind of problem, relative to the answer, and what was decided wrongly."""

    problems: int = 0
    finite: int = 0
    infinite: int = 0
    largest: dict[str, float] = field(default_factory=dict)
    where: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def note(self, what: str, error: float, seed: int) -> None:
        error = float("inf") if error != error else error
        if error >= self.largest.get(what, -1.0):
            self.largest[what], self.where[what] = error, seed


READINGS = ("log_evidence", "optimal_elbo", "elbo")


def check(seed: int, dtype: torch.dtype, errors: Errors) -> None:
    """Holds the answers for one small problem to the reference."""
    problem = draw(seed, dtype)
    errors.problems += 1
    tensors = {n: torch.tensor(v, dtype=dtype if v.ndim else torch.float64) for n, v in problem.tables.items()}
    for reading in READINGS:
        leaves = {name: value.clone().requires_grad_() for name, value in tensors.items()}
        process = TabularMDP(
            *(leaves[name] for name in ("transition", "reward", "initial")),
            horizon=problem.horizon,
            discount=leaves["discount"],
            temperature=leaves["temperature"],
            action_prior=leaves["prior"],
            terminal=torch.tensor(problem.terminal),
        )
        here = ahead = behind = None
        try:
            here = reference(problem, reading, problem.at(mpf(0)))
            # What is worth infinitely much once it is possible has no slope.
            ahead, behind = (reference(problem, reading, problem.at(step)) for step in (STEP, -STEP))
        except Infinite:
            pass
        try:
            policy = leaves["policy"] if problem.horizon is None else leaves["policy"].expand(problem.horizon, -1, -1)
            found = exact.elbo(process, policy) if reading == "elbo" else getattr(exact, reading)(process)
        except ValueError as error:
            if here is not None:
                errors.wrong.append(f"{seed} {dtype} {reading}: {float(here):.6g} refused: {str(error)[:60]}")
            else:
                errors.infinite += 1
            continue
        if here is None:
            errors.wrong.append(f"{seed} {dtype} {reading}: infinite, and {float(found.detach()):.6g} was said")
            continue
        errors.finite += 1
        size = _size(problem, tensors)
        errors.note(f"{reading}, value", abs(float(found.detach()) - float(here)) / max(abs(float(here)), size), seed)
        if behind is None:
            continue
        along = {name: torch.as_tensor(d).to(leaves[name]) for name, d in problem.direction.items()}
        slopes = torch.autograd.grad(found, leaves.values(), create_graph=True, allow_unused=True)
        parts = [(slope * along[name]).sum() for name, slope in zip(leaves, slopes, strict=True) if slope is not None]
        slope = sum(parts)
        scale = sum(
            float((s.detach() * along[n]).abs().sum()) for n, s in zip(leaves, slopes, strict=True) if s is not None
        )
        right = float((ahead - behind) / (2 * STEP))
        errors.note(f"{reading}, slope", abs(float(slope.detach()) - right) / max(scale, abs(right), 1e-6), seed)
        if dtype == torch.float64 and slope.requires_grad and (problem.horizon or 0) <= 30:
            bends = torch.autograd.grad(slope, leaves.values(), allow_unused=True)
            pieces = [float((b * along[n]).sum()) for n, b in zip(leaves, bends, strict=True) if b is not None]
            right = float((ahead - 2 * here + behind) / STEP**2)
            scale = max(sum(map(abs, pieces)), abs(right), 1e-6)
            errors.note(f"{reading}, curvature", abs(sum(pieces) - right) / scale, seed)


def _size(problem: Problem, tensors: dict[str, torch.Tensor]) -> float:
    """Returns the size of one step's reward in nats: values that cancel are no less exact than it."""
    return float(tensors["reward"].abs().max() / tensors["temperature"]) or 1e-300


def check_large(seed: int, dtype: torch.dtype, errors: Errors) -> None:
    """Holds the answers for a sparse problem of up to 10,000 states to their own equations."""
    g = np.random.default_rng(seed)
    states, actions, successors = int(10 ** g.uniform(1, 4)), int(g.integers(1, 4)), int(g.integers(1, 4))
    here = np.arange(states)[:, None, None]
    if g.random() < 0.5:  # a ring, on which news travels slowly
        indices = (here + g.integers(-2, 3, (states, actions, successors))) % states
    else:
        indices = g.integers(0, states, (states, actions, successors))
    weights = g.random(indices.shape) + 0.05
    terminal = g.random(states) < 0.02 if g.random() < 0.5 else np.zeros(states, dtype=bool)
    horizon = int(g.choice([10, 50])) if g.random() < 0.3 else None
    discount = float(g.choice([0.9, 0.99, 0.999, 0.9999, 0.99999]))
    temperature = 10.0 ** g.uniform(-3, 3)
    reward = np.where(terminal[:, None], 0.0, g.standard_normal((states, actions)))
    initial = np.full(states, 1 / states)
    numbers = [weights / weights.sum(-1, keepdims=True), reward, initial]
    leaf = torch.tensor(reward, dtype=dtype).requires_grad_()
    process = TabularMDP.from_successors(
        torch.tensor(indices),
        torch.tensor(numbers[0], dtype=dtype),
        leaf,
        torch.tensor(initial, dtype=dtype),
        horizon=horizon,
        discount=discount,
        temperature=temperature,
        terminal=torch.tensor(terminal),
    )
    if (
        dtype == torch.float32
    ):  # what the rounded tables mean is answered in double, and that answer held to its equations
        with torch.no_grad():
            wide = process.to(torch.float64)
        leaf32, leaf = leaf, wide.reward_table.clone().requires_grad_()
        wide.reward_table = leaf
        own, certain = exact.plan(process), exact.plan(wide)
        scale = certain.soft_v.detach().abs().max()
        errors.note("plan, value", float((own.soft_v.detach() - certain.soft_v.detach()).abs().max() / scale), seed)
        (slope,) = torch.autograd.grad(own.objective, leaf32)
        (expected,) = torch.autograd.grad(certain.objective, leaf)
        errors.note("plan, slope", float((slope - expected).abs().sum() / expected.abs().sum()), seed)
        process = wide
    chances = process.kernel.rows()[1].detach().numpy().astype(np.longdouble)
    indices = process.kernel.rows()[0].numpy()
    nats = process.reward_table.detach().numpy().astype(np.longdouble) / np.longdouble(temperature)
    errors.problems += 1
    plan = exact.plan(process)
    kind = "" if dtype == torch.float64 else "in double: "
    found = plan.soft_v.detach().numpy().astype(np.longdouble) / np.longdouble(temperature)
    level, steps = np.longdouble(discount), horizon or 1
    value = np.zeros(states, dtype=np.longdouble) if horizon else found
    for _ in range(steps):
        q = nats + level * (chances * value[indices]).sum(-1)
        top = q.max(-1)
        value = top + np.log(np.exp(q - top[:, None]).mean(-1))
        value[terminal] = 0.0
    scale = np.abs(value).max()
    if horizon is None:  # a contraction: no value is further off than this
        off = np.abs(value - found).max() / (1 - level)
        assert plan.residual is not None
        errors.note(f"{kind}plan, residual / (nats of V · ε)", float(plan.residual) / (float(scale) * 2.2e-16), seed)
    else:
        off = np.abs(value - found[0]).max()
    errors.note(f"{kind}plan, value", float(off / scale), seed)
    (slope,) = torch.autograd.grad(plan.objective, leaf)
    visits = slope.double().numpy() * temperature
    if horizon is None:
        flow, rows = visits.sum(-1), np.broadcast_to(np.arange(states)[:, None, None], indices.shape)
        # Terminal successors are left out, as no action is taken there; what the policy does is as the slopes say.
        going = ~terminal[rows] & ~terminal[indices]
        policy = visits / np.where(flow > 0, flow, 1.0)[:, None]
        moved = discount * np.where(going, policy[..., None] * chances, 0.0)
        arrived = np.zeros(states, dtype=np.longdouble)
        np.add.at(arrived, indices, flow[:, None, None] * moved)
        left = (np.where(terminal, 0.0, initial) + arrived - flow).astype(float)
        moves = csr_matrix((moved.astype(float).ravel(), (indices.ravel(), rows.ravel())), (states, states))
        off, _ = gmres(identity(states) - moves, left, rtol=1e-3, restart=100, maxiter=20)
        errors.note(f"{kind}plan, slope", float(abs(off).sum() / flow.sum()), seed)
    else:
        occupied = exact.occupancy(process, plan).detach().double().numpy()[:-1]
        expected = (discount ** np.arange(horizon)[:, None] * occupied * ~terminal).sum(0)
        errors.note(f"{kind}plan, slope", float(np.abs(visits.sum(-1) - expected).sum() / expected.sum()), seed)
    if horizon is None:
        # The spectral radius lies between the least and the largest sum of a row.
        factor = (discount * np.exp(np.clip(nats, None, 700)).mean(-1))[~terminal]
        certain = factor.max() < 1 if factor.max() < 1 or (factor.min() > 1 and not terminal.any()) else None
        try:
            with torch.no_grad():
                evidence = exact.plan(process, "posterior")
            errors.finite += 1
            if certain is False:
                errors.wrong.append(f"{seed}: infinite, and {float(evidence.objective):.6g} was said")
        except ValueError as error:
            errors.infinite += 1
            if certain is True:
                errors.wrong.append(f"{seed}: a finite log evidence refused: {str(error)[:60]}")
    total = float(exact.occupancy(process, plan).detach().double().sum())
    if not terminal.any():
        expected_total = 1 / (1 - discount) if horizon is None else horizon + 1.0
        errors.note(f"{kind}occupancy, sum", abs(total / expected_total - 1), seed)


def sweep(problems: int, large: int, first_seed: int = 0, progress: Any = None) -> dict[str, Errors]:
    """Returns errors by kind of problem and precision."""
    found = {}
    with mpmath.workdps(DIGITS):
        for dtype in (torch.float64, torch.float32):
            for kind, one, count in (("small", check, problems), ("large", check_large, large)):
                errors = found[f"{kind}, {str(dtype).removeprefix('torch.')}"] = Errors()
                for seed in range(first_seed, first_seed + count):
                    one(seed, dtype, errors)
                    if progress is not None:
                        progress.advance(f"{kind} problems")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Sweeps, prints and writes the largest errors; returns 1 if one is beyond its tolerance."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exact_sweep", description=__doc__)
    parser.add_argument("--problems", type=int, default=2_000, help="small ones in each precision")
    parser.add_argument("--large", type=int, default=100, help="large ones in each precision")
    parser.add_argument("--first-seed", type=int, default=0)
    given = parser.parse_args(arguments)
    with progress_bar("problems", 2 * (given.problems + given.large)) as bar:
        found = sweep(given.problems, given.large, given.first_seed, bar)
    record = {kind: vars(errors) for kind, errors in found.items()}
    print(json.dumps(record, indent=1))
    if given.problems >= 2_000:
        RESULTS.write_text(json.dumps({"first_seed": given.first_seed, **record}, indent=1) + "\n")
    return int(any(failures(kind, errors) for kind, errors in found.items()))


def failures(kind: str, errors: Errors) -> list[str]:
    """Returns what is beyond its tolerance."""
    limits = {"curvature": CURVATURE, "(nats of V · ε)": 1e4}
    beyond = []
    for what, error in errors.largest.items():
        single = kind.endswith("32") and not what.startswith("in double")
        tolerance = TOLERANCE[torch.float32 if single else torch.float64]
        if not error <= next((x for end, x in limits.items() if what.endswith(end)), tolerance):
            beyond.append(f"{what}: {error:.3g}, seed {errors.where[what]}")
    return beyond + errors.wrong


if __name__ == "__main__":
    sys.exit(main())
