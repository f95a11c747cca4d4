"""Random small programs, each read in every way and each reading held against plain Python that writes out every run.

    python -m benchmarks.random_programs [--programs 500] [--seed 0]    writes results/random_programs.json

A program has one to three steps, two states and two actions, and by chance: a discount (a number or a tensor, scaled or
with its coins), `terminate`, `break`, looks that are observed before or after the action (by ``obs=`` or by
``pyro.condition``, alone or two in a plate), ``poutine.mask`` and ``poutine.scale`` around its factors, an action or a
state that is conditioned on, and two temperatures. Everything is discrete and in float64.

Enumerated readings must agree to 1e-9. Those by draws are told by z-scores whose spread is the exact one: with
1,000 trajectories at once (150 where the program breaks and runs one by one), |z| < 5.5.
"""

import argparse
import itertools
import json
import math
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate

import rl_as_inference as rlai
from rl_as_inference import TrajectoryELBO, act, follow, reward, steps, survival, terminate
from rl_as_inference.progress import progress_bar

__all__ = ["Reading", "Recipe", "brute_force", "draw", "main", "program_of", "readings"]

F64 = torch.float64
LARGEST_Z, PRECISION = 5.5, 1e-9
_RESULTS = Path(__file__).parent / "results" / "random_programs.json"


@dataclass(frozen=True)
class Recipe:
    """What a random program is made of; tables are nested tuples, so that nothing here is a tensor."""

    seed: int
    horizon: int
    gamma: float
    gamma_is_tensor: bool
    rendering: str
    ends: bool
    breaks: bool
    looks: tuple[str, ...]
    look_by: str
    in_plate: bool
    masked: bool
    scale: float
    given: tuple[tuple[str, int], ...]
    temperatures: tuple[float, float]
    start: tuple[float, ...] = field(repr=False)
    move: Any = field(repr=False)
    prior: Any = field(repr=False)
    policy: Any = field(repr=False)
    payoff: Any = field(repr=False)
    seen: Any = field(repr=False)


def draw(seed: int) -> Recipe:
    """Returns the random program of a seed."""
    chance = random.Random(seed)

    def row() -> tuple[float, float]:
        p = chance.uniform(0.1, 0.9)
        return p, 1 - p

    def table(*sizes: int, leaf: Callable[[], Any] = row) -> Any:
        return leaf() if not sizes else tuple(table(*sizes[1:], leaf=leaf) for _ in range(sizes[0]))

    horizon = chance.randint(1, 3)
    breaks = chance.random() < 0.2
    gamma = chance.choice([1.0, 0.5, 0.8, 0.0])
    given = []
    if not breaks and chance.random() < 0.3:
        t = chance.randrange(horizon)
        given.append((chance.choice([f"action_{t}", f"state_{t + 1}"]), chance.randrange(2)))
    return Recipe(
        seed=seed,
        horizon=horizon,
        gamma=gamma,
        gamma_is_tensor=chance.random() < 0.4,
        rendering=chance.choice(["scaled", "scaled", "survival"]),
        ends=chance.random() < 0.5,
        breaks=breaks,
        looks=tuple(kind for kind in ("before", "after") if chance.random() < 0.5),
        look_by=chance.choice(["obs", "condition"]),
        in_plate=chance.random() < 0.3,
        masked=chance.random() < 0.3,
        scale=chance.choice([1.0, 1.0, 0.7, 2.0]),
        given=tuple(given),
        temperatures=(chance.uniform(0.5, 2.0), chance.uniform(0.5, 2.0)),
        start=row(),
        move=table(2, 2),
        prior=table(2),
        policy=table(horizon, 2),
        payoff=table(2, 2, leaf=lambda: chance.uniform(-1, 1)),
        seen=table(2, 2, 2, leaf=lambda: chance.uniform(0.1, 0.9)),
    )


# The program, and a policy for it.


def program_of(recipe: Recipe, gamma: Any = None) -> Callable[[], Any]:
    """Returns the Pyro program; a discount may be put in the place of its own."""
    start, move, prior, payoff, seen = (
        torch.tensor(x, dtype=F64) for x in (recipe.start, recipe.move, recipe.prior, recipe.payoff, recipe.seen)
    )
    if gamma is None:
        gamma = torch.tensor(recipe.gamma, dtype=F64) if recipe.gamma_is_tensor else recipe.gamma

    def look(kind: str, t: int, state: Any, other: Any) -> None:
        if kind not in recipe.looks:
            return
        likelihood = seen[("before", "after").index(kind), state, other]
        names = [f"{kind}_{t}"]
        if recipe.in_plate:
            with pyro.plate(f"{kind}_plate_{t}", 2, dim=-1):
                _see(names[0], likelihood.expand(torch.broadcast_shapes(likelihood.shape, (2,))), recipe)
        else:
            _see(names[0], likelihood, recipe)

    def program() -> None:
        state = pyro.sample("state_0", dist.Categorical(start))
        for t in steps(recipe.horizon, gamma, recipe.rendering, like=start):  # type: ignore[arg-type]
            look("before", t, state, torch.zeros_like(state))
            if recipe.ends:
                terminate(state == 1)
            action = act(f"action_{t}", state, dist.Categorical(prior[state]))
            with poutine.scale(scale=recipe.scale):
                value, alpha = payoff[state, action], recipe.temperatures[t % 2]
                if recipe.masked:
                    with poutine.mask(mask=action == 0):
                        reward(f"reward_{t}", value, alpha)
                else:
                    reward(f"reward_{t}", value, alpha)
                look("after", t, state, action)
            if recipe.breaks and action == 1:
                break
            state = pyro.sample(f"state_{t + 1}", dist.Categorical(move[state, action]))

    data = {name: torch.tensor(value) for name, value in recipe.given}
    if recipe.look_by == "condition":
        shape = (2,) if recipe.in_plate else ()
        for kind, t in itertools.product(recipe.looks, range(recipe.horizon)):
            data[f"{kind}_{t}"] = torch.ones(shape, dtype=F64)
    return pyro.condition(program, data=data) if data else program  # type: ignore[no-any-return]


def _see(name: str, likelihood: torch.Tensor, recipe: Recipe) -> None:
    value = torch.ones(likelihood.shape, dtype=F64) if recipe.look_by == "obs" else None
    pyro.sample(name, dist.Bernoulli(likelihood), obs=value)


def policy_of(recipe: Recipe) -> Callable[[Any, Any], Any]:
    """Returns the policy, a table of probabilities."""
    table = torch.tensor(recipe.policy, dtype=F64)
    return lambda state, t: dist.Categorical(table[t, state])


# The same in plain Python.


@dataclass(frozen=True)
class Answers:
    """What is right, in nats, with the variances of one draw where draws estimate it."""

    elbo: float
    log_evidence: float
    scaled_variance: float
    survival_variance: float
    weight_variance: float
    """Of the weight of a draw of the policy, over the evidence squared."""


def brute_force(recipe: Recipe, gamma: float | None = None) -> Answers:
    """Returns the answers by writing out every run: state by state, with coins and with γ^t."""
    gamma = recipe.gamma if gamma is None else gamma
    coins = list(_runs(recipe, gamma, toss=True))
    scaled = list(_runs(recipe, gamma, toss=False))
    elbo = sum(q * w for q, w in coins)
    evidence = sum(q * math.exp(w) for q, w in coins)
    also = sum(q * w for q, w in scaled)
    assert abs(also - elbo) < 1e-9, (also, elbo)  # the two renderings have one meaning, here already
    return Answers(
        elbo,
        math.log(evidence),
        sum(q * (w - elbo) ** 2 for q, w in scaled),
        sum(q * (w - elbo) ** 2 for q, w in coins),
        sum(q * (math.exp(w) / evidence - 1) ** 2 for q, w in coins),
    )


def _runs(recipe: Recipe, gamma: float, toss: bool) -> Iterator[tuple[float, float]]:
    """Yields the probability of every run under the policy and its log weight ``log p - log q``."""
    given = dict(recipe.given)

    def walk(t: int, state: int, on: bool, stands: bool, weight: float, q: float, w: float) -> Any:
        # on: not ended by `terminate`; stands: the coin has not fallen; weight: γ^t, where no coin is tossed.
        if t == recipe.horizon:
            yield q, w
            return
        if "before" in recipe.looks and on and stands:
            w += weight * (2 if recipe.in_plate else 1) * math.log(recipe.seen[0][state][0])
        on = on and not (recipe.ends and state == 1)
        alive = on and stands
        for action in (0, 1):
            q1, w1 = q, w
            p, pi = recipe.prior[state][action], recipe.policy[t][state][action]
            if f"action_{t}" in given:
                if action != given[f"action_{t}"]:
                    continue
                w1 += weight * math.log(p) if alive else 0.0
            elif alive:
                q1, w1 = q1 * pi, w1 + weight * math.log(p / pi)
            else:
                q1 *= p
            if alive:
                if not (recipe.masked and action == 1):
                    w1 += weight * recipe.scale * recipe.payoff[state][action] / recipe.temperatures[t % 2]
                if "after" in recipe.looks:
                    both = 2 if recipe.in_plate else 1
                    w1 += weight * recipe.scale * both * math.log(recipe.seen[1][state][action])
            if recipe.breaks and action == 1:
                yield q1, w1
                continue
            for after in (0, 1):
                q2, w2, p = q1, w1, recipe.move[state][action][after]
                if f"state_{t + 1}" in given:
                    if after != given[f"state_{t + 1}"]:
                        continue
                    w2 += weight * math.log(p) if alive else 0.0
                else:
                    q2 *= p
                if t + 1 == recipe.horizon or not toss:
                    yield from walk(t + 1, after, on, stands, weight * gamma, q2, w2)
                    continue
                for stays in (True, False) if stands else (False,):
                    q3 = q2 * ((gamma if stays else 1 - gamma) if stands else 1.0)
                    if q3 > 0:
                        yield from walk(t + 1, after, on, stays, 1.0, q3, w2)

    for state in (0, 1):
        yield from walk(0, state, True, True, 1.0, recipe.start[state], 0.0)


# Readings.


@dataclass(frozen=True)
class Reading:
    """What one reading says, beside what is right; its error is 0 where it is exact."""

    name: str
    value: float
    right: float
    error: float = 0.0

    @property
    def z(self) -> float:
        """How many errors the value is off; where there is no error, in units that make 5.5 of 1e-9."""
        off = self.value - self.right
        if self.error < PRECISION:
            return LARGEST_Z * off / (PRECISION * max(1.0, abs(self.right)))
        return off / self.error

    @property
    def holds(self) -> bool:
        """Whether the value is right."""
        return abs(self.z) < LARGEST_Z


def readings(recipe: Recipe, draws: int = 1000, single_draws: int = 150, thorough: bool = True) -> list[Reading]:
    """Returns what the readings of a program say; the seed is the program's."""
    pyro.clear_param_store()
    pyro.set_rng_seed(recipe.seed)
    right, policy, program = brute_force(recipe), policy_of(recipe), program_of(recipe)
    found = [Reading("ELBO is at most the evidence", max(right.elbo, right.log_evidence), right.log_evidence)]
    coins = recipe.rendering == "survival" and recipe.gamma < 1
    programs = [(program, right.survival_variance if coins else right.scaled_variance, "as written")]
    if not coins and recipe.gamma < 1:
        programs.append((survival(program), right.survival_variance, "with coins"))
    nesting = int(recipe.in_plate and bool(recipe.looks))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pyro's on guides without sites, and on names that only one of two has
        for fn, variance, how in programs:
            found += _elbos(recipe, fn, policy, right.elbo, variance, how, draws, single_draws, nesting)
        if not recipe.breaks:
            if recipe.scale == 1:  # Pyro refuses to enumerate a model in which scales differ
                survived = config_enumerate(survival(program))
                evidence = -TraceEnum_ELBO(max_plate_nesting=nesting).loss(survived, lambda: None)
                found.append(Reading("TraceEnum_ELBO, evidence", float(evidence), right.log_evidence))
            found += _slopes(recipe, policy, nesting)
        count = single_draws if recipe.breaks else draws
        methods = ["importance"] if recipe.breaks or not thorough else ["importance", "smc"]
        for method in methods:
            options: dict[str, Any] = {"num_proposals": count} if method == "importance" else {"num_particles": 500}
            estimate = rlai.estimate_log_evidence(program, policy, method=method, **options)  # type: ignore[arg-type]
            exactly = math.sqrt(right.weight_variance / count) if method == "importance" else estimate.standard_error
            found.append(Reading(f"estimate_log_evidence, {method}", estimate.mean, right.log_evidence, exactly))
    return found


def _elbos(
    recipe: Recipe,
    fn: Any,
    policy: Any,
    right: float,
    variance: float,
    how: str,
    draws: int,
    single_draws: int,
    nesting: int,
) -> list[Reading]:
    guide = follow(fn, policy)
    count = single_draws if recipe.breaks else draws
    particles: dict[str, Any] = {"num_particles": count, "max_plate_nesting": nesting}
    if not recipe.breaks:
        particles["vectorize_particles"] = True
    error = math.sqrt(variance / count)
    objectives = {
        "estimate_elbo": lambda: rlai.estimate_elbo(fn, policy, count).mean,
        "TrajectoryELBO, one run": lambda: -TrajectoryELBO(**particles).loss(fn, guide),
        "TrajectoryELBO, two runs": lambda: -TrajectoryELBO("score", **particles).loss(fn, lambda: guide()),
        "Trace_ELBO": lambda: -Trace_ELBO(**particles).loss(fn, guide),
    }
    found = [Reading(f"{name}, {how}", float(reading()), right, error) for name, reading in objectives.items()]
    if not recipe.breaks:
        exactly = -TraceEnum_ELBO(max_plate_nesting=nesting).loss(fn, config_enumerate(guide))
        found.append(Reading(f"TraceEnum_ELBO, {how}", float(exactly), right))
    return found


def _slopes(recipe: Recipe, policy: Any, nesting: int) -> list[Reading]:
    """Returns the derivative of the ELBO in γ by enumeration, against a central difference of plain Python."""
    if not 0 < recipe.gamma < 1 or recipe.horizon == 1:
        return []
    gamma, step = torch.tensor(recipe.gamma, dtype=F64, requires_grad=True), 1e-4
    # The ELBO is a polynomial of degree two in γ at most, so that the difference is exact but for rounding.
    right = (brute_force(recipe, recipe.gamma + step).elbo - brute_force(recipe, recipe.gamma - step).elbo) / (2 * step)
    scaled = Recipe(**{**recipe.__dict__, "rendering": "scaled"})
    program = program_of(scaled, gamma)
    guide = follow(program, policy)
    loss = TraceEnum_ELBO(max_plate_nesting=nesting).differentiable_loss(program, config_enumerate(guide))
    (exact,) = torch.autograd.grad(-loss, gamma)
    rows = []
    elbo = TrajectoryELBO(num_particles=50, vectorize_particles=True, max_plate_nesting=nesting)
    for _ in range(20):
        (row,) = torch.autograd.grad(-elbo.differentiable_loss(program, guide), gamma)
        rows.append(row)
    each = torch.stack(rows)
    error = float(each.std()) / 20**0.5
    return [
        Reading("TraceEnum_ELBO, slope in γ", float(exact), right, 1e-7),
        Reading("TrajectoryELBO, slope in γ", float(each.mean()), right, max(error, 1e-7)),
    ]


def main(arguments: list[str] | None = None) -> int:
    """Reads the programs and writes what was off; returns 1 if anything was."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.random_programs", description=__doc__)
    parser.add_argument("--programs", type=int, default=500, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first; each has the next (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=_RESULTS, help="file for the results (default: %(default)s)")
    options = parser.parse_args(arguments)
    table: dict[str, list[float]] = {}
    wrong: list[dict[str, Any]] = []
    with progress_bar("random programs", options.programs) as bar:
        for seed in range(options.seed, options.seed + options.programs):
            recipe = draw(seed)
            for reading in readings(recipe):
                table.setdefault(reading.name, []).append(reading.z)
                if not reading.holds:
                    wrong.append({"program": str(recipe), **asdict(reading), "z": reading.z})
            bar.advance(f"{len(wrong)} wrong")
    summary = {
        name: {
            "programs": len(values),
            "largest_z": round(max(map(abs, values)), 3),
            "mean_square_z": round(sum(z * z for z in values) / len(values), 3),
        }
        for name, values in table.items()
    }
    result = {"programs": options.programs, "first_seed": options.seed, "readings": summary, "wrong": wrong}
    options.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    for name, row in summary.items():
        print(f"{name:<45} {row['programs']:>4} programs   largest |z| {row['largest_z']:.2f}")
    print(f"{len(wrong)} readings of {sum(map(len, table.values()))} are wrong; written to {options.out}")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
