"""Gradients of the trajectory ELBO: time, bias and variance of every estimator, and Pyro's for comparison.

The reference problem has 25 states, 4 actions, 30 steps, γ = 0.95 and 256 trajectories: a dense random
process with standard normal rewards and temperature 0.5, and as the reference policy a stationary
table of standard normal logits. A small network is timed beside it. Times are of one gradient in
float32 on one thread (tensors are too small for a second one to help); bias and variance are in
float64 against the gradient of ``exact.elbo``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO, TraceGraph_ELBO
from torch import Tensor, nn

from benchmarks.hand_written import Tables, exact_sum_gradient, score_gradient, score_gradient_of_all_states
from benchmarks.measure import Advance, Claim, Row, Section, Timings, paired
from rl_as_inference import TabularMDP, TrajectoryELBO, exact, follow
from rl_as_inference.critics import TableCritic
from rl_as_inference.guides import CategoricalPolicy, TabularPolicy

__all__ = ["STAGES", "measure"]

NUM_STATES, NUM_ACTIONS, HORIZON, DISCOUNT, TEMPERATURE, NUM_TRAJECTORIES = 25, 4, 30, 0.95, 0.5, 256
STAGES = 3
PROGRAM, FAST, HAND = "Pyro program", "fast reading", "hand-written"
AT_ONCE = "hand-written, states at once"
TRACE, GRAPH = "Trace_ELBO", "TraceGraph_ELBO"


@dataclass(frozen=True)
class _Estimator:
    name: str
    estimator: Any
    critic: str | None = None
    lambda_: float = 1.0

    def elbo(self, plan: exact.Plan) -> TrajectoryELBO:
        critic = None if self.critic is None else TableCritic(getattr(plan, self.critic))
        return TrajectoryELBO(self.estimator, critic=critic, lambda_=self.lambda_)


_ESTIMATORS = (
    _Estimator("full return", "full_return"),
    _Estimator("score, return-to-go", "score"),
    _Estimator("baseline, exact soft V", "baseline", "soft_v"),
    _Estimator("advantage, λ = 0.95", "advantage", "soft_v", 0.95),
    _Estimator("advantage, λ = 0.5", "advantage", "soft_v", 0.5),
    _Estimator("exact sum, soft Q", "exact_sum", "soft_q"),
)
_SCORE, _EXACT_SUM = _ESTIMATORS[1], _ESTIMATORS[-1]
_FREE = tuple(estimator.name for estimator in _ESTIMATORS if estimator.critic is None)
_WITH_CRITIC = ", Q included"


def measure(quick: bool, advance: Advance) -> Section:
    """Returns the table of gradient estimators."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rounds = 1 if quick else 25
        replicates, size = (40, 32) if quick else (384, 64)
        times = _times(rounds)
        advance("gradients: times")
        network = _network_times(rounds)
        advance("gradients: times with a network")
        quality = _quality(replicates, size)
        advance("gradients: bias and variance")
    finally:
        torch.set_num_threads(threads)
        pyro.clear_param_store()
    settings = {
        "states": NUM_STATES,
        "actions": NUM_ACTIONS,
        "horizon": HORIZON,
        "discount": DISCOUNT,
        "temperature": TEMPERATURE,
        "trajectories": NUM_TRAJECTORIES,
        "policy": "stationary table of logits",
        "timing rounds": rounds,
        "replicates": replicates,
        "trajectories a replicate": size,
        "threads": 1,
    }
    return _section(times, network, quality, settings, judged=not quick)


def reference_problem(dtype: torch.dtype) -> tuple[TabularMDP, TabularPolicy]:
    """Returns the process and the policy of the reference problem."""
    g = torch.Generator().manual_seed(0)
    transition = torch.rand(NUM_STATES, NUM_ACTIONS, NUM_STATES, generator=g, dtype=torch.float64)
    reward = torch.randn(NUM_STATES, NUM_ACTIONS, generator=g, dtype=torch.float64)
    logits = torch.randn(NUM_STATES, NUM_ACTIONS, generator=g, dtype=torch.float64)
    mdp = TabularMDP(
        (transition / transition.sum(-1, keepdim=True)).to(dtype),
        reward.to(dtype),
        torch.full((NUM_STATES,), 1 / NUM_STATES, dtype=dtype),
        horizon=HORIZON,
        discount=DISCOUNT,
        temperature=TEMPERATURE,
    )
    policy = TabularPolicy(NUM_STATES, NUM_ACTIONS).to(dtype)
    policy.logits.data.copy_(logits)
    return mdp, policy


_Key = tuple[str, str]


def _times(rounds: int) -> Timings:
    """Returns times by estimator and reading."""
    mdp, policy = reference_problem(torch.float32)
    plan = _evaluate(mdp, policy)

    def program(num_trajectories: int) -> Tensor:
        return mdp(num_trajectories)

    def gradient(elbo: Any, model: Any) -> Callable[[], float]:
        guide = follow(model, policy)

        def run() -> float:
            policy.logits.grad = None
            return elbo.loss_and_grads(model, guide, NUM_TRAJECTORIES)

        return run

    def with_critic(model: Any) -> Callable[[], float]:
        return lambda: gradient(_EXACT_SUM.elbo(_evaluate(mdp, policy)), model)()

    def autograd() -> None:
        policy.logits.grad = None
        exact.elbo(mdp, policy).backward()

    tables = Tables.of(mdp, lambda state, t: policy.logits[state], [policy.logits])
    soft_q = plan.soft_q / TEMPERATURE
    contestants: dict[_Key, Callable[[], Any]] = {
        (TRACE, PROGRAM): gradient(Trace_ELBO(), program),
        (GRAPH, PROGRAM): gradient(TraceGraph_ELBO(), program),
    }
    for estimator in _ESTIMATORS:
        contestants[estimator.name, PROGRAM] = gradient(estimator.elbo(plan), program)
        contestants[estimator.name, FAST] = gradient(estimator.elbo(plan), mdp)
    contestants |= {
        (_EXACT_SUM.name, PROGRAM + _WITH_CRITIC): with_critic(program),
        (_EXACT_SUM.name, FAST + _WITH_CRITIC): with_critic(mdp),
        (_SCORE.name, HAND): lambda: score_gradient(tables, NUM_TRAJECTORIES),
        (_SCORE.name, AT_ONCE): lambda: score_gradient_of_all_states(tables, NUM_TRAJECTORIES),
        (_EXACT_SUM.name, HAND): lambda: exact_sum_gradient(tables, soft_q, NUM_TRAJECTORIES),
        ("soft Q of the policy", "exact.evaluate"): lambda: _evaluate(mdp, policy),
        ("exact gradient", "autograd of exact.elbo"): autograd,
    }
    pyro.clear_param_store()
    return paired(contestants, rounds, every={(GRAPH, PROGRAM): 8})


def _network_times(rounds: int) -> Timings:
    mdp, _ = reference_problem(torch.float32)
    torch.manual_seed(0)
    policy = CategoricalPolicy(mdp.state_space, NUM_ACTIONS, horizon=HORIZON, hidden_sizes=(64, 64))
    tables = Tables.of(mdp, policy.network, list(policy.parameters()))

    def program(num_trajectories: int) -> Tensor:
        return mdp(num_trajectories)

    def gradient(elbo: Any, model: Any) -> Callable[[], float]:
        guide = follow(model, policy)

        def run() -> float:
            policy.zero_grad()
            return elbo.loss_and_grads(model, guide, NUM_TRAJECTORIES)

        return run

    contestants: dict[_Key, Callable[[], Any]] = {
        (TRACE, PROGRAM): gradient(Trace_ELBO(), program),
        (_SCORE.name, PROGRAM): gradient(TrajectoryELBO("score"), program),
        (_SCORE.name, FAST): gradient(TrajectoryELBO("score"), mdp),
        (_SCORE.name, HAND): lambda: score_gradient(tables, NUM_TRAJECTORIES),
        (_SCORE.name, AT_ONCE): lambda: score_gradient_of_all_states(tables, NUM_TRAJECTORIES),
    }
    pyro.clear_param_store()
    return paired(contestants, rounds, every={(GRAPH, PROGRAM): 8})


@dataclass(frozen=True)
class _Quality:
    largest_z: float
    mean_square_z: float
    variance: float

    @classmethod
    def of(cls, gradients: Tensor, truth: Tensor, size: int) -> "_Quality":
        """Judges independent gradients ``(R, *shape)``, each the mean over ``size`` trajectories."""
        error = gradients.std(0) / len(gradients) ** 0.5
        z = (gradients.mean(0) - truth) / error
        return cls(float(z.abs().max()), float(z.square().mean()), float(size * gradients.var(0).sum()))


class _Replicates(nn.Module):
    """Copies of a table of logits, one for each group of trajectories, so that one run gives many gradients."""

    def __init__(self, logits: Tensor, replicates: int, size: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.expand(replicates, -1, -1).clone())
        self.group = torch.arange(replicates).repeat_interleave(size)

    def forward(self, state: Tensor, t: int | Tensor) -> Any:
        return dist.Categorical(logits=self.of(state, t))

    def of(self, state: Tensor, t: int | Tensor) -> Tensor:
        return self.logits[self.group, state]


def _quality(replicates: int, size: int) -> dict[_Key, _Quality]:
    """Returns bias and variance by estimator and reading."""
    mdp, policy = reference_problem(torch.float64)
    plan = _evaluate(mdp, policy)
    (truth,) = torch.autograd.grad(exact.elbo(mdp, policy), policy.logits)
    total = replicates * size

    def program(num_trajectories: int) -> Tensor:
        return mdp(num_trajectories)

    def at_once(run: Callable[[_Replicates], Any]) -> _Quality:
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        copies = _Replicates(policy.logits.detach(), replicates, size)
        run(copies)
        assert copies.logits.grad is not None
        return _Quality.of(-copies.logits.grad / size, truth, size)

    def in_turn(run: Callable[[], Any]) -> _Quality:
        pyro.clear_param_store()
        pyro.set_rng_seed(2)
        gradients = []
        for _ in range(replicates):
            policy.logits.grad = None
            run()
            assert policy.logits.grad is not None
            gradients.append(-policy.logits.grad / size)
        return _Quality.of(torch.stack(gradients), truth, size)

    def pyro_quality(elbo: Any) -> _Quality:
        return at_once(lambda copies: elbo.loss_and_grads(program, follow(program, copies), total))

    found = {(TRACE, PROGRAM): pyro_quality(Trace_ELBO()), (GRAPH, PROGRAM): pyro_quality(TraceGraph_ELBO())}
    guide = follow(mdp, policy)
    for estimator in _ESTIMATORS:
        elbo = estimator.elbo(plan)
        found[estimator.name, PROGRAM] = pyro_quality(elbo)
        found[estimator.name, FAST] = in_turn(lambda elbo=elbo: elbo.loss_and_grads(mdp, guide, size))  # type: ignore[misc]
    soft_q = plan.soft_q / TEMPERATURE
    found[_SCORE.name, HAND] = at_once(lambda copies: score_gradient(Tables.of(mdp, copies.of, [copies.logits]), total))
    tables = Tables.of(mdp, lambda state, t: policy.logits[state], [policy.logits])
    found[_SCORE.name, AT_ONCE] = in_turn(lambda: score_gradient_of_all_states(tables, size))
    found[_EXACT_SUM.name, HAND] = at_once(
        lambda copies: exact_sum_gradient(Tables.of(mdp, copies.of, [copies.logits]), soft_q, total)
    )
    return found


@torch.no_grad()
def _evaluate(mdp: TabularMDP, policy: Any) -> exact.Plan:
    plan = exact.evaluate(mdp, policy)
    assert isinstance(plan, exact.Plan)
    return plan


def _section(
    times: Timings, network: Timings, quality: dict[_Key, _Quality], settings: dict[str, Any], judged: bool
) -> Section:
    trace, graph = (TRACE, PROGRAM), (GRAPH, PROGRAM)
    most = quality[graph].variance * times.seconds(graph)
    rows = []
    for name, reading in times.names:
        key = (name, reading)
        found = quality.get((name, reading.removesuffix(_WITH_CRITIC)))  # the critic's cost changes the time alone
        columns: dict[str, Any] = {}
        if found is not None:
            work = found.variance * times.seconds(key)
            columns = {**vars(found), "work": work, "gain": most / work}
        rows.append(_row(times, key, **columns))
    # A critic must be paid for; the estimators without one are as they stand.
    paid = [
        row
        for row in rows
        if row.reading.endswith(_WITH_CRITIC) or (row.what in _FREE and row.reading in (PROGRAM, FAST))
    ]
    best = max(paid, key=lambda row: row.gain or 0.0)
    rows += [_row(network, key, " (network)") for key in network.names]

    score, fast, hand = ((_SCORE.name, reading) for reading in (PROGRAM, FAST, HAND))
    claims = [
        Claim(f"TrajectoryELBO on the {PROGRAM}, time over {TRACE}'s", times.ratio(score, trace), 1.5, judged=judged),
        Claim("fast reading, time over hand-written tensors'", times.ratio(fast, hand), 1.2, judged=judged),
        Claim("the same with a network", network.ratio(fast, hand), 1.2, judged=judged),
        Claim(
            f"variance × seconds: {GRAPH}'s over that of {best.what} ({best.reading})",
            best.gain or 0.0,
            1000.0,
            at_most=False,
            judged=judged,
        ),
        Claim(
            "bias of every estimator: largest of a coordinate, in standard errors",
            max(found.largest_z for found in quality.values()),
            4.5,
        ),
    ]
    return Section("gradients, 25 states", TRACE, settings, rows, claims)


def _row(timings: Timings, key: _Key, suffix: str = "", **columns: Any) -> Row:
    name, reading = key
    note = ""
    if reading in (HAND, AT_ONCE):
        note = f"fast reading: {timings.ratio((name, FAST), key):.2f} × this"
    ratio = timings.ratio(key, (TRACE, PROGRAM))
    return Row(name + suffix, reading, 1e3 * timings.seconds(key), ratio, note=note, **columns)
