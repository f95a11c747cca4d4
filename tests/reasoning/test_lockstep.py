"""Chains in lockstep: programs that run in turn, and gradients of several points in one evaluation."""

import math
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from benchmarks.inverse import family_on_grid
from rl_as_inference import LinearGaussianMDP, TabularMDP, exact, hyperbolic_policy, infer_agent, models
from rl_as_inference.checks import check_temperature, deferred
from rl_as_inference.exact import Dynamics
from rl_as_inference.reasoning import batching, posterior_draws
from rl_as_inference.reasoning.demonstrations import read_demonstrations
from rl_as_inference.reasoning.lockstep import lockstep
from rl_as_inference.reasoning.unknowns import Unknowns
from rl_as_inference.tracing import traced

F64 = torch.float64
ONE = torch.ones((), dtype=F64)


def log_normal(name: str, median: float = 1.0) -> Tensor:
    return pyro.sample(name, dist.LogNormal(ONE * math.log(median), 0.5 * ONE))


def town(horizon: int | None, **options: Any) -> TabularMDP:
    """A slippery row of five cells, sparse, with a terminal cell where each step costs, and the middle one more."""
    base = models.gridworld(1, 5, horizon=4, slip=0.2, dtype=F64)
    worth = options.pop("worth", ONE)
    reward = -0.2 - 0.3 * worth * (torch.arange(5) == 2)[:, None].expand(-1, 4)
    return TabularMDP.from_successors(
        base.kernel.indices,
        base.kernel.probabilities,
        reward,
        base.initial_probabilities,
        horizon=horizon,
        terminal=torch.arange(5) == 4,
        **options,
    )


_GENERATOR = torch.Generator().manual_seed(3)
MOVES = torch.rand(6, 3, 6, dtype=F64, generator=_GENERATOR) ** 3
REWARD = torch.rand(6, 3, dtype=F64, generator=_GENERATOR)


def chain(worth: Tensor, horizon: int | None, **options: Any) -> TabularMDP:
    """Six states, three actions, dense, nothing terminal."""
    initial = torch.ones(6, dtype=F64) / 6
    return TabularMDP(MOVES / MOVES.sum(-1, keepdim=True), REWARD * worth, initial, horizon=horizon, **options)


def goal_and_temperature() -> TabularMDP:
    goal = pyro.sample("goal", dist.Categorical(torch.tensor([0.5, 0.2, 0.3], dtype=F64)))
    base = models.gridworld(1, 4, horizon=3, slip=0.1, start=(0, 1), dtype=F64)
    reward = (torch.arange(4) == goal).to(F64)[:, None].expand(-1, 4)
    return TabularMDP.from_successors(
        base.kernel.indices,
        base.kernel.probabilities,
        reward,
        base.initial_probabilities,
        horizon=3,
        temperature=log_normal("temperature"),
    )


def wet_and_dry() -> TabularMDP:
    """The dynamics themselves unknown: how often the row of cells is slippery."""
    slip = pyro.sample("slip", dist.Beta(2 * ONE, 2 * ONE))
    sure, loose = (models.gridworld(1, 4, horizon=3, slip=s, start=(0, 1), dtype=F64) for s in (0.0, 0.5))
    moves = [
        torch.zeros(4, 4, 4, dtype=F64).scatter_add(-1, m.kernel.indices, m.kernel.probabilities) for m in (sure, loose)
    ]
    reward = torch.tensor([1.0, 0.0, 0.0, 0.6], dtype=F64)[:, None].expand(-1, 4)
    return TabularMDP(
        moves[0] * (1 - slip) + moves[1] * slip, reward, sure.initial_probabilities, horizon=3, temperature=0.3
    )


def procrastinator(sophisticated: bool) -> Callable[[], tuple[TabularMDP, Tensor]]:
    def family() -> tuple[TabularMDP, Tensor]:
        process = models.procrastination(days=5, temperature=0.1, reward=log_normal("reward", 2.0), dtype=F64)
        return process, hyperbolic_policy(process, log_normal("k"), sophisticated=sophisticated)

    return family


def system() -> LinearGaussianMDP:
    weight, noise = log_normal("weight"), log_normal("noise")
    eye = torch.eye(2, dtype=F64)
    A = torch.tensor([[1.0, 0.3], [0.0, 0.8]], dtype=F64)
    B = torch.tensor([[0.0], [1.0]], dtype=F64)
    one = torch.ones(1, 1, dtype=F64)
    return LinearGaussianMDP(
        A, B, 0.1 * noise * eye, weight * eye, 0.1 * one, torch.ones(2, dtype=F64), eye, one, horizon=4
    )


def system_by_callable() -> tuple[LinearGaussianMDP, Any]:
    process = system()
    plan = exact.plan(process, "posterior")
    return process, lambda state, t: plan(state, t)


FAMILIES: dict[str, tuple[Callable[[], Any], Dynamics]] = {
    "grid": (family_on_grid(), "causal"),
    "grid, posterior": (family_on_grid(3, 4), "posterior"),
    "goal and temperature": (goal_and_temperature, "causal"),
    "goal and temperature, posterior": (goal_and_temperature, "posterior"),
    "dynamics unknown": (wet_and_dry, "causal"),
    "naive": (procrastinator(False), "causal"),
    "sophisticated": (procrastinator(True), "causal"),
    "linear-Gaussian": (system, "causal"),
    "linear-Gaussian, posterior": (system, "posterior"),
    "linear-Gaussian, by a callable": (system_by_callable, "causal"),
    "sparse": (lambda: town(4, worth=log_normal("worth"), temperature=0.5), "causal"),
    "sparse, posterior": (lambda: town(4, worth=log_normal("worth"), temperature=0.5, discount=0.9), "posterior"),
    "no horizon, terminal": (lambda: town(None, worth=log_normal("worth"), temperature=0.2), "causal"),
    "no horizon, terminal, posterior": (lambda: town(None, worth=log_normal("worth"), discount=0.8), "posterior"),
    "no horizon, discount unknown": (
        lambda: chain(log_normal("worth"), None, discount=pyro.sample("discount", dist.Beta(8 * ONE, 2.0))),
        "causal",
    ),
    "no horizon, nearly undiscounted": (lambda: chain(log_normal("worth"), None, discount=0.9999), "causal"),
    "discount unknown, posterior": (
        lambda: chain(-log_normal("worth"), 5, discount=pyro.sample("discount", dist.Beta(8 * ONE, 2.0))),
        "posterior",
    ),
}


def shown_by(family: Callable[[], Any], dynamics: Dynamics = "causal", hidden: bool = True) -> Any:
    """Demonstrations of a draw from the prior; of finite ones some states and actions are not seen."""
    pyro.set_rng_seed(0)
    with pyro.poutine.block():
        returned = family()
    process, policy = returned if isinstance(returned, tuple) else (returned, exact.plan(returned, dynamics))
    if process.horizon is None:
        process = process.replace(horizon=6)
        policy = exact.plan(process)
    if isinstance(policy, Tensor):
        table = policy
        policy = lambda state, t: dist.Categorical(table[t, state])  # noqa: E731
    drawn = process.rollout(policy, 6)
    states, actions = drawn.states.clone(), drawn.actions.clone()
    actions[~drawn.mask] = actions[~drawn.mask] * 0
    if hidden and not states.is_floating_point():
        actions[0, 0], states[1, 1], states[0, 2] = -1, -1, -1
    return [
        (states[: int(drawn.mask[:, n].sum()) + 1, n], actions[: int(drawn.mask[:, n].sum()), n])
        for n in range(6)
        if bool(drawn.mask[0, n])
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_batched_gradients_are_those_of_each_row(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64 to 1e-10, relative to the largest; as are the likelihoods of the draws."""
    monkeypatch.setattr(batching, "_as_it_is", None)  # none of these need go through Python each time
    family, dynamics = FAMILIES[name]
    unknowns = Unknowns(family, read_demonstrations(shown_by(family, dynamics)), dynamics)
    points = unknowns.prior_u()[:9].reshape(3, 3, -1)
    for make, alone in (
        (batching.batched_gradient, batching.gradient_by_row),
        (batching.batched_parts, batching.parts_by_row),
    ):
        batched = make(unknowns, points[:2])
        assert batched is not None
        for rows in (points[2], points[2, :2]):  # a chain may have ended
            for ours, theirs in zip(batched(rows), alone(unknowns)(rows), strict=True):
                assert ours.shape == theirs.shape
                assert torch.allclose(ours, theirs, rtol=0, atol=1e-10 * (1 + float(theirs.abs().max())))


def a_coin_in_python() -> TabularMDP:
    worth = log_normal("worth")
    return chain(worth if float(worth.detach()) > 1 else worth.square(), 5)


def numbers_drawn_within() -> TabularMDP:
    generator = torch.Generator().manual_seed(1)
    return chain(log_normal("worth") * torch.rand((), dtype=F64, generator=generator), 5)


def test_a_family_that_branches_on_values_is_asked_row_by_row() -> None:
    unknowns = Unknowns(a_coin_in_python, read_demonstrations(shown_by(a_coin_in_python)), "causal")
    points = unknowns.prior_u()[:6].reshape(2, 3, -1)
    assert batching.batched_gradient(unknowns, points) is None
    found = infer_agent(a_coin_in_python, shown_by(a_coin_in_python), num_draws=6, num_warmup=5)
    assert found.posterior["worth"].shape == (2, 3)


def test_what_cannot_be_recorded_is_batched_all_the_same() -> None:
    unknowns = Unknowns(numbers_drawn_within, read_demonstrations(shown_by(numbers_drawn_within)), "causal")
    points = unknowns.prior_u()[:9].reshape(3, 3, -1)
    batched = batching.batched_gradient(unknowns, points[:2])
    assert batched is not None
    for ours, theirs in zip(batched(points[2]), batching.gradient_by_row(unknowns)(points[2]), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-10 * (1 + float(theirs.abs().max())))


def test_rows_that_the_family_refuses_have_no_density_and_the_others_have_theirs() -> None:
    """A negative temperature, with which numbers come out all the same."""

    def family() -> TabularMDP:
        return chain(ONE, 5, temperature=pyro.sample("temperature", dist.Normal(5 * ONE, 0.5 * ONE)))

    shown = read_demonstrations(shown_by(lambda: chain(ONE, 5)))
    unknowns = Unknowns(family, shown, "causal")
    examples = torch.tensor([[[1.0], [0.5], [2.0]], [[0.9], [0.4], [-1.0]]], dtype=F64)
    batched = batching.batched_gradient(unknowns, examples)
    assert batched is not None
    points = torch.tensor([[-1.0], [1.5], [torch.nan]], dtype=F64)
    values, slopes = batched(points)
    expected = batching.gradient_by_row(unknowns)(points)
    assert values.isinf().tolist() == [True, False, True]
    assert torch.allclose(values, expected[0], rtol=1e-12)
    assert torch.allclose(slopes, expected[1], rtol=1e-12)


def test_joint_values_of_discrete_unknowns_are_planned_for_together() -> None:
    """In float64 to 1e-12 as one after the other; and where the family looks at the value, one after the other."""

    def two() -> TabularMDP:
        pyro.sample("idle", dist.Bernoulli(0.3 * ONE))
        return goal_and_temperature()

    def looks() -> TabularMDP:
        goal = pyro.sample("goal", dist.Categorical(torch.ones(3, dtype=F64)))
        return chain(log_normal("worth") * (1 + int(goal)), 4)

    data = read_demonstrations(shown_by(goal_and_temperature))
    unknowns = Unknowns(two, data, "causal")
    assert unknowns._together
    assert unknowns.num_backups == 3
    u = unknowns.prior_u()[5]
    together, slope = unknowns.parts(u), unknowns.gradient(u)[1]
    unknowns._together = False
    for ours, theirs in zip(together, unknowns.parts(u), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
    assert torch.allclose(slope, unknowns.gradient(u)[1], rtol=1e-12)
    assert not Unknowns(looks, read_demonstrations(shown_by(looks)), "causal")._together


def test_a_joint_value_that_the_family_refuses_raises_as_it_does_alone() -> None:
    def family() -> TabularMDP:
        kind = pyro.sample("kind", dist.Categorical(torch.ones(3, dtype=F64)))
        return chain(ONE, 5, temperature=log_normal("temperature") + 0.15 - 0.1 * kind)

    unknowns = Unknowns(family, read_demonstrations(shown_by(lambda: chain(ONE, 5))), "causal")
    assert unknowns._together
    with pytest.raises(ValueError, match="temperature"):
        unknowns.parts(torch.tensor([-1000.0], dtype=F64))  # of kinds 0, 1, 2 only the last is below 0


def test_single_precision_is_batched_too() -> None:
    def family() -> TabularMDP:
        worth = pyro.sample("worth", dist.Normal(0.0, 1.0))
        return TabularMDP(torch.ones(1, 2, 1), torch.stack([0 * worth, worth])[None], torch.ones(1), horizon=2)

    unknowns = Unknowns(family, read_demonstrations([([0, 0], [1, 0])] * 30 + [([0, 0], [1, 1])] * 31), "causal")
    assert batching.batched_gradient(unknowns, unknowns.prior_u()[:8].reshape(2, 4, -1)) is not None


class TestLockstep:
    def test_questions_are_answered_together(self) -> None:
        asked: list[list[int]] = []

        def answer(numbers: list[int]) -> list[int]:
            asked.append(list(numbers))
            return [number + 1 for number in numbers]

        def count(steps: int) -> Callable[[Any], int]:
            def program(ask: Callable[[int], int]) -> int:
                number = 10 * steps
                for _ in range(steps):
                    number = ask(number)
                return number

            return program

        assert lockstep([count(1), count(3), count(0), count(2)], answer, range(4)) == [11, 33, 0, 22]
        assert asked == [[10, 30, 20], [31, 21], [32]]

    def test_a_program_has_its_own_random_numbers(self) -> None:
        """They depend on its seed, not on how much the others draw; the caller's are left alone."""

        def draws(count: int) -> Callable[[Any], list[float]]:
            return lambda ask: [ask(float(torch.rand(()))) for _ in range(count)]

        torch.manual_seed(5)
        expected = torch.rand(())
        torch.manual_seed(5)
        first = lockstep([draws(3), draws(1)], list, [1, 2])
        assert torch.rand(()) == expected
        second = lockstep([draws(1), draws(3)], list, [2, 1])
        assert first == second[::-1]
        assert first[0] != first[1]

    def test_programs_are_run_one_at_a_time(self) -> None:
        running = 0

        def program(ask: Callable[[int], int]) -> None:
            nonlocal running
            for _ in range(20):
                running += 1
                sum(range(1000))
                assert running == 1
                running -= 1
                ask(0)

        lockstep([program] * 3, list, range(3))

    @pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
    @pytest.mark.parametrize("where", ["program", "answer"])
    def test_failures_reach_the_caller_and_leave_no_thread(self, failure: type[BaseException], where: str) -> None:
        closed = []

        def program(ask: Callable[[int], int], fails: bool = False) -> None:
            try:
                for index in range(5):
                    if fails and index == 2 and where == "program":
                        raise failure("here")
                    try:
                        ask(index)
                    except Exception:  # as a sampler may do with whatever a density raises
                        continue
            finally:
                closed.append(threading.current_thread())

        def answer(numbers: list[int]) -> list[int]:
            if where == "answer" and numbers[0] == 2:
                raise failure("here")
            return numbers

        before = threading.active_count()
        with pytest.raises(failure, match="here"):
            lockstep([program, lambda ask: program(ask, True), program], answer, range(3))
        assert len(closed) == 3
        assert threading.active_count() == before

    def test_an_interruption_while_a_program_runs_ends_it_where_it_next_asks(self) -> None:
        """A real signal, which Python raises in the main thread while that waits for a program."""
        if threading.current_thread() is not threading.main_thread():
            pytest.skip("signals reach the main thread only")
        steps = 0

        def program(ask: Callable[[int], int]) -> None:
            nonlocal steps
            for _ in range(1000):
                steps += 1
                if steps == 7:
                    signal.raise_signal(signal.SIGINT)
                time.sleep(0.001)
                ask(0)

        before = threading.active_count()
        with pytest.raises(KeyboardInterrupt):
            lockstep([program] * 2, list, range(2))
        assert threading.active_count() == before
        assert steps < 12


class TestReplay:
    def test_writes_are_replayed(self) -> None:
        def function(x: Tensor) -> tuple[Tensor, Tensor]:
            table = torch.zeros(3, dtype=x.dtype)
            before = table + 1
            table[1:] = x
            table.mul_(2)
            return table, before * 0.5

        replay = traced(function, [torch.ones(2, dtype=F64)])
        for _ in range(3):
            written, constant = replay(torch.tensor([3.0, 4.0], dtype=F64))
            assert written.tolist() == [0.0, 6.0, 8.0]
            assert constant.tolist() == [0.5, 0.5, 0.5]

    def test_constants_keep_their_precision(self) -> None:
        """A number of Python's own is taken for single precision by some compilers."""

        def function(x: Tensor) -> Tensor:
            for _ in range(3):
                x = torch.logaddexp(torch.as_tensor(0.8, dtype=F64).log(), x)
            return x

        def rows(x: Tensor) -> Tensor:
            return torch.func.vmap(function)(x)

        x = torch.linspace(-1, 1, 4, dtype=F64)
        replay = traced(rows, [x])
        for _ in range(3):
            assert torch.equal(replay(x), rows(x))

    def test_gradients_are_recorded(self) -> None:
        def slope(x: Tensor) -> Tensor:
            with torch.enable_grad():
                at = x.detach().requires_grad_()
                (found,) = torch.autograd.grad((at**3).sum(), at)
            return found

        assert traced(slope, [torch.ones(2)])(torch.tensor([1.0, 2.0])).tolist() == [3.0, 12.0]


class TestChains:
    def test_a_seed_gives_the_same_draws_whatever_runs_beside(self) -> None:
        family = family_on_grid(3, 5)
        shown = shown_by(family, hidden=False)
        first, second, other = (
            infer_agent(family, shown, num_draws=12, num_warmup=5, num_chains=4, seed=seed) for seed in (0, 0, 1)
        )
        assert first.posterior.equals(second.posterior)
        assert not first.posterior.equals(other.posterior)
        assert len({float(x) for x in first.posterior["temperature"].values[:, -1]}) == 4

    def test_draws_are_those_of_gradients_of_single_points(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As far as rounding, which each step magnifies, does not part them: 6 draws a chain, to 1e-6."""
        family = family_on_grid(3, 5)
        shown = shown_by(family, hidden=False)
        options = {"num_draws": 18, "num_warmup": 6, "num_chains": 3}
        batched = infer_agent(family, shown, **options).posterior
        monkeypatch.setattr(posterior_draws, "batched_gradient", lambda *_: None)
        alone = infer_agent(family, shown, **options).posterior
        for name in batched:
            assert abs(batched[name] - alone[name]).max() < 1e-6

    def test_a_family_that_fails_on_its_way_raises_in_the_caller(self) -> None:
        """Its branch keeps it from being batched; its error is no ValueError, which would be a point of no density."""
        calls = 0

        def family() -> TabularMDP:
            nonlocal calls
            worth = log_normal("worth")
            calls += 1
            if calls > 700 and float(worth.detach()) > 0:
                raise KeyError("lost")
            return chain(worth if float(worth.detach()) > 0 else -worth, 5)

        shown = shown_by(family)
        before = threading.active_count()
        with pytest.raises(KeyError, match="lost"):
            infer_agent(family, shown, num_draws=400)
        assert threading.active_count() == before

    def test_handlers_around_the_call_see_nothing_and_validation_is_left_as_it_was(self) -> None:
        family = family_on_grid(3, 5)
        shown = shown_by(family, hidden=False)
        validated = torch.distributions.Distribution._validate_args
        with pyro.poutine.trace() as seen:
            infer_agent(family, shown, num_draws=4, num_warmup=5)
        assert [name for name in seen.trace.nodes if not name.startswith("_")] == []
        assert torch.distributions.Distribution._validate_args == validated


def test_conditions_are_noted_while_checks_are_put_off() -> None:
    with deferred() as conditions:
        check_temperature(torch.tensor(0.0))
        check_temperature(torch.tensor(1.0))
    assert [bool(condition) for condition in conditions] == [False, True]
    with pytest.raises(ValueError, match="temperature"):
        check_temperature(torch.tensor(0.0))
