"""Programs that cannot be what was meant: conditions that are never met or on no site, sites that change."""

import math
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate

import rl_as_inference as rlai
from rl_as_inference.models import double_integrator, gridworld
from rl_as_inference.processes.programs import ProgramProcess
from rl_as_inference.program.recording import log_prob_of


def walk() -> None:
    """Two steps of a walk over two states that starts in state 0 for certain."""
    state = pyro.sample("state_0", dist.Categorical(torch.tensor([1.0, 0.0])))
    for t in rlai.steps(2):
        action = rlai.act(f"action_{t}", state, dist.Categorical(torch.tensor([0.5, 0.5, 0.0])))
        state = pyro.sample(f"state_{t + 1}", dist.Bernoulli(torch.where(action == 1, 1.0, 0.25))).long()
        rlai.reward(f"reward_{t}", state.float())


def test_arguments_in_the_wrong_order_are_named() -> None:
    """A policy is callable, and so is a program; what asks for a state is no program."""
    policy = rlai.guides.TabularPolicy(2, 3, horizon=2)
    told = (
        r"process must be a process or a Pyro program without arguments, and \w+ wants state and t; a policy .* second"
    )
    for first in (policy, lambda state, t: policy(state, t)):
        for read in (rlai.compare, rlai.estimate_elbo, rlai.posterior, lambda *pair: rlai.fit(*pair, steps=2)):
            for process in (walk, gridworld()):
                with pytest.raises(ValueError, match=told):
                    read(first, process)
    with pytest.raises(ValueError, match=r"_argument wants scale; .* bound by functools.partial"):
        rlai.compare(_with_an_argument, None)

    @wraps(_with_an_argument)
    def given() -> None:  # as a decorator of the user's gives what is known, and calls itself what it wraps
        _with_an_argument(2.0)

    for program in (partial(_with_an_argument, 2.0), given):
        assert rlai.estimate_elbo(program, None, 10).mean == 2.0


def _with_an_argument(scale: float) -> None:
    rlai.act("action_0", torch.tensor(0), dist.Bernoulli(0.5))
    rlai.reward("reward_0", torch.tensor(scale))


METHODS = (
    lambda program: rlai.posterior(program, method="guide", num_draws=50),
    lambda program: rlai.posterior(program, method="importance", num_draws=50),
    lambda program: rlai.estimate_log_evidence(program, num_draws=50),
)


@pytest.mark.parametrize("run", METHODS)
@pytest.mark.parametrize(("site", "value"), [("state_0", torch.tensor(1)), ("action_1", torch.tensor(2))])
def test_what_is_impossible_is_told_by_its_site(run: Callable[[Any], Any], site: str, value: torch.Tensor) -> None:
    impossible = pyro.condition(walk, data={site: value})
    with pytest.raises(ValueError, match=f"the program never meets the condition on site '{site}'"):
        run(impossible)
    with pytest.raises(ValueError, match="never meets the condition on site 'return_at_least'"):
        run(rlai.given_return(walk, 2.5))


def test_zero_probabilities_stay_zero() -> None:
    coin = dist.Bernoulli(torch.tensor([0.0, 1.0, 0.5]))
    assert log_prob_of(coin, torch.ones(3)).tolist() == pytest.approx([-math.inf, 0.0, math.log(0.5)], abs=1e-6)
    assert log_prob_of(coin, torch.zeros(3))[1] == -math.inf
    both = dist.Categorical(torch.tensor([[1.0, 0.0], [0.5, 0.5]])).to_event(1)
    assert log_prob_of(both, torch.tensor([1, 1])) == -math.inf
    assert log_prob_of(both, torch.tensor([0, 1])) == pytest.approx(math.log(0.5), abs=1e-6)
    far = dist.Categorical(logits=torch.tensor([0.0, -200.0]))
    assert far.probs[1] == 0  # rounded, and remembered by the distribution
    assert log_prob_of(far, torch.tensor(1)) == -200


def test_a_possible_condition_costs_what_it_should() -> None:
    """P(state_1 = 1) = 0.5 + 0.5 / 4; the rewards are given with it. 200,000 draws, seed 0, |z| < 4."""
    torch.manual_seed(0)
    found = rlai.estimate_log_evidence(pyro.condition(walk, data={"state_1": torch.tensor(1.0)}), num_draws=25_000)
    truth = math.log(0.625) + 1 + math.log(0.625 * math.e + 0.375)
    assert abs(found.mean - truth) < 4 * found.standard_error


@pytest.mark.parametrize("run", METHODS)
@pytest.mark.parametrize("make", [lambda p: p, lambda p: rlai.given_return(p, 0.0), pyro.poutine.scale(scale=1.0)])
def test_a_condition_on_no_site_is_told_by_its_name(run: Callable[[Any], Any], make: Callable[[Any], Any]) -> None:
    for program in (walk, lambda: walk(), gridworld(horizon=2)):
        for handler in (pyro.condition, pyro.poutine.do):
            mistaken = make(handler(program, data={"stat_0": torch.tensor(0)}))
            with pytest.raises(
                ValueError, match="conditioned on site 'stat_0', which does not occur in it; its sites are"
            ):
                run(mistaken)


def test_nuts_looks_too() -> None:
    def pushed() -> None:
        start = pyro.sample("start", dist.Categorical(torch.tensor([1.0, 0.0])))
        push = rlai.act("action_0", start[..., None].float(), dist.Normal(torch.zeros(1), 1.0).to_event(1))
        rlai.reward("reward_0", -push[..., 0].square())

    with pytest.raises(ValueError, match="never meets the condition on site 'start'"):
        rlai.posterior(pyro.condition(pushed, data={"start": torch.tensor(1)}), method="nuts", num_draws=4)
    mistaken = pyro.condition(double_integrator(horizon=2), data={"stat_0": torch.zeros(2)})
    with pytest.raises(ValueError, match="conditioned on site 'stat_0'"):
        rlai.posterior(mistaken, method="nuts", num_draws=4)


class Renamed:
    """A program with one site that has another name in each run."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self) -> None:
        self.runs += 1
        start = pyro.sample(f"start_{self.runs}", dist.Normal(0.0, 1.0))
        for t in rlai.steps(2):
            action = rlai.act(f"action_{t}", start, dist.Normal(torch.zeros(1), 1.0).to_event(1))
            rlai.reward(f"reward_{t}", -action[..., 0].square())


def forked() -> None:
    """A program whose sites depend on its first draw."""
    start = pyro.sample("start", dist.Normal(0.0, 1.0))
    name = "above" if float(start) > 0 else "below"
    drift = pyro.sample(name, dist.Normal(0.0, 1.0))
    for t in rlai.steps(2):
        action = rlai.act(f"action_{t}", start, dist.Normal(torch.zeros(1), 1.0).to_event(1))
        rlai.reward(f"reward_{t}", -(action[..., 0] + drift).square())


@pytest.mark.parametrize("run", [*METHODS, lambda program: rlai.posterior(program, method="nuts", num_draws=8)])
def test_sites_that_change_are_told(run: Callable[[Any], Any]) -> None:
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"sites change between runs: 'above', 'below' occurred in one run"):
        run(forked)
    with pytest.raises(ValueError, match=r"sites change between runs: 'start_\d+'"):
        run(Renamed())


def test_a_program_may_end_when_it_likes() -> None:
    def ends() -> None:
        state = pyro.sample("state_0", dist.Normal(0.0, 1.0))
        for t in rlai.steps(5):
            action = rlai.act(f"action_{t}", state, dist.Categorical(torch.ones(2)))
            rlai.reward(f"reward_{t}", -state.abs())
            if int(action) == 1:
                break
            state = pyro.sample(f"state_{t + 1}", dist.Normal(state, 1.0))

    torch.manual_seed(0)
    process = ProgramProcess(ends)
    lengths = process.rollout(None, 60).lengths()
    assert len(lengths.unique()) == 5
    data = rlai.posterior(pyro.condition(ends, data={"state_4": torch.tensor(0.0)}), method="importance", num_draws=20)
    assert data.posterior.sizes["time"] == 5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("tenths", range(1, 11))
def test_a_return_that_is_short_by_rounding_is_reached(tenths: int, dtype: torch.dtype) -> None:
    """Ten payoffs of 0.1 or 0: eight make 0.7999999999999999, and that is 0.8. Against the binomial law."""

    def payoffs() -> None:
        for t in rlai.steps(10):
            action = rlai.act(
                f"action_{t}", torch.zeros((), dtype=dtype), dist.Bernoulli(torch.tensor(0.5, dtype=dtype))
            )
            rlai.reward(f"reward_{t}", 0.1 * action)

    def log_evidence(at_least: float) -> float:
        program = config_enumerate(rlai.given_return(payoffs, at_least))
        return -float(TraceEnum_ELBO(max_plate_nesting=0).loss(program, lambda: None))

    def right(least: int) -> float:
        return math.log(sum(math.comb(10, k) * math.exp(0.1 * k) for k in range(least, 11)) / 1024)

    assert log_evidence(tenths / 10) == pytest.approx(right(tenths), abs=1e-6)
    if tenths < 10:  # what is short by more than rounding stays short
        assert log_evidence(tenths / 10 + 1e-5) == pytest.approx(right(tenths + 1), abs=1e-6)


def test_rounding_does_not_grow_with_a_long_sum_of_whole_numbers() -> None:
    """100,000 rewards of 1 in float32 are far from one more."""

    def long(at_least: float) -> bool:
        def program() -> None:
            rlai.act("action_0", torch.zeros(1), dist.Bernoulli(torch.tensor(0.5)))
            for t in range(10):
                rlai.reward(f"reward_{t}", torch.tensor(10_000.0))

        log = pyro.poutine.trace(rlai.given_return(program, at_least)).get_trace().nodes["return_at_least"]["fn"]
        return math.isfinite(float(log.log_factor))

    assert long(100_000.0)
    assert not long(100_001.0)
