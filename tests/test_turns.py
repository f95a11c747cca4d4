"""Threads of one process take turns, and each gets what it would get alone."""

import contextvars
import os
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from small_agents import sac, sql
from torch import Tensor
from torch.distributions import Distribution

import rl_as_inference as rlai
from rl_as_inference import guides, models
from rl_as_inference.checks import unvalidated
from rl_as_inference.host import in_turn
from rl_as_inference.randomness import RandomStream
from rl_as_inference.sampling import nuts
from rl_as_inference.threads import one_thread_if_small, products_in
from rl_as_inference.turns import Turn, silenced, turn

LONG = 20.0
"""Seconds after which a thread that should have gone on is given up."""


def walk() -> None:
    """A Pyro program of three steps."""
    state = pyro.sample("state_0", dist.Categorical(torch.ones(3)))
    for t in rlai.steps(3):
        action = rlai.act(f"action_{t}", state, prior=dist.Categorical(logits=torch.zeros(2)))
        rlai.reward(f"reward_{t}", 1.0 * action)
        state = pyro.sample(f"state_{t + 1}", dist.Categorical(torch.ones(*action.shape, 3)))


def push() -> None:
    state = pyro.sample("state_0", dist.Normal(torch.zeros(1), 1.0).to_event(1))
    for t in rlai.steps(1):
        action = rlai.act(f"action_{t}", state, prior=dist.Normal(torch.zeros(1), 1.0).to_event(1))
        rlai.reward(f"reward_{t}", -(state + action).square().sum(-1))


def wants() -> Any:
    worth = pyro.sample("worth", dist.Normal(0.0, 1.0))
    return rlai.TabularMDP(torch.ones(1, 2, 1), torch.stack([torch.zeros(()), worth])[None], torch.ones(1), horizon=1)


def learned(agent: Any) -> Tensor:
    for _ in range(2):
        agent.learn(25, progress=False)
    returns = agent.evaluate(1).returns
    return torch.cat([agent._update.tensors["parameters"].flatten(), returns.flatten().float()])


def fitted(process: Any, seed: int, **options: Any) -> Tensor:
    policy = guides.TabularPolicy(3, 2, horizon=3)  # its table begins at 0
    found = rlai.fit(process, policy, steps=12, num_trajectories=16, seed=seed, progress=False, **options)
    return torch.cat([found.elbo.float(), *(p.detach().flatten() for p in policy.parameters())])


def drawn(seed: int) -> Tensor:
    return nuts(push, 4, num_warmup=10, num_chains=1, seed=seed)[0].actions


WORK: list[Callable[[], Tensor]] = [
    lambda: learned(sac(seed=1)),
    lambda: fitted(models.random_mdp(3, 2, horizon=3), 2, estimator="score"),
    lambda: learned(sql(seed=3)),
    lambda: fitted(walk, 4),
    lambda: learned(sac(models.pendulum(horizon=10), seed=5)),
    lambda: drawn(6),
    lambda: torch.as_tensor(
        rlai.infer_agent(wants, [([0], [1])] * 3, num_draws=4, num_warmup=4, seed=7).posterior["worth"].values
    ),
    lambda: torch.as_tensor(rlai.compare(walk, None, num_trajectories=50, seed=8).elbo),
]


@cache
def alone(index: int) -> Tensor:
    return WORK[index]()


def together(work: Sequence[Callable[[], Any]]) -> list[Any]:
    """Returns what each gave in a thread of its own, all begun at once; raises what one raised."""
    begin, answers = threading.Barrier(len(work)), [None] * len(work)

    def run(index: int) -> None:
        begin.wait()
        try:
            answers[index] = work[index]()
        except BaseException as error:
            answers[index] = error  # type: ignore[assignment]

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return answers


@pytest.mark.parametrize("which", [(0, 2), (1, 3), (0, 3, 4, 5), (2, 3, 6, 7)], ids=str)
def test_threads_give_what_each_gives_alone(which: tuple[int, ...]) -> None:
    expected = [alone(index) for index in which]
    pyro.set_rng_seed(11)
    state, filters = torch.get_rng_state(), list(warnings.filters)
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    answers = together([WORK[index] for index in which])
    assert [torch.equal(answer, one) for answer, one in zip(answers, expected, strict=True)] == [True] * len(which)
    assert Distribution._validate_args
    assert pyro.infer.util.is_validation_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (threads, precision)
    assert warnings.filters == filters
    assert len(pyro.get_param_store()) == 0
    assert not pyro.poutine.runtime._PYRO_STACK


def test_exact_answers_are_not_rounded_by_another_s_learning() -> None:
    """The precision of products is the process's: what is computed beside one that lowers it waits its turn."""
    mdp = models.random_mdp(4, 2, horizon=3)
    answers: list[Tensor] = []
    thread = threading.Thread(target=lambda: answers.append(rlai.exact.plan(mdp).soft_v))
    with products_in("bfloat16"):
        thread.start()
        thread.join(0.05)
        assert not answers
    thread.join(LONG)
    assert torch.equal(answers[0], rlai.exact.plan(mdp).soft_v)


CONTEXTS: dict[str, Callable[[], Any]] = {
    "unvalidated": unvalidated,
    "a stream": lambda: RandomStream(3),
    "one thread": lambda: one_thread_if_small(10),
    "products": lambda: products_in("bfloat16"),
    "silenced": silenced,
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_what_is_global_is_switched_by_one_thread_at_a_time(name: str) -> None:
    inside = threading.Event()

    def second() -> None:
        with CONTEXTS[name]():
            inside.set()

    other = threading.Thread(target=second)
    with CONTEXTS[name]():
        with CONTEXTS[name]():  # again, by who has it
            other.start()
        given_up = time.monotonic() + LONG
        while not turn.is_wanted and time.monotonic() < given_up:
            time.sleep(0.001)
        assert turn.is_wanted
        assert not inside.is_set()
    assert inside.wait(LONG)
    other.join()
    assert not turn.is_wanted


def test_an_agent_acts_while_another_learns() -> None:
    """Learning gives way between steps, so that who asks in another thread need not wait for its end."""
    learner, actor = sac(), sac(seed=1)
    actor.learn(22, progress=False)
    learns, acted = threading.Event(), threading.Event()

    def act() -> None:
        learns.wait(LONG)
        actor.act([1.0, 0.0, 0.0])
        learner.act([1.0, 0.0, 0.0])  # the one that learns, too
        acted.set()

    thread = threading.Thread(target=act)
    thread.start()
    learner.learn(400, progress=False, report_every=10, on_report=lambda row: learns.set())
    assert acted.is_set()  # before the four hundred steps were over
    thread.join()


def test_the_number_of_threads_stays_the_host_s() -> None:
    """A thread that first computes within another's turn would take its one thread for the process's number."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    begun, numbers = threading.Event(), list[int]()

    def second() -> None:
        numbers.append(torch.get_num_threads())  # PyTorch's number is now this thread's own
        begun.set()
        with one_thread_if_small(10**9):
            numbers.append(torch.get_num_threads())
        numbers.append(torch.get_num_threads())

    try:
        thread = threading.Thread(target=second)
        with one_thread_if_small(10):
            thread.start()
            assert begun.wait(LONG)
        thread.join()
        assert numbers == [1, 2, 2]
        assert torch.get_num_threads() == 2
        (later,) = together([torch.get_num_threads])
        assert later == 2
    finally:
        torch.set_num_threads(before)


def test_a_thread_with_the_context_of_a_call_waits_for_its_turn() -> None:
    """As one that ``asyncio.to_thread`` begins in the middle of a call has it."""
    inside, order = threading.Event(), []

    @in_turn
    def call(name: str) -> None:
        order.append(name)

    @in_turn
    def outer() -> threading.Thread:
        thread = threading.Thread(target=contextvars.copy_context().run, args=(lambda: (inside.set(), call("thread")),))
        thread.start()
        assert inside.wait(LONG)
        time.sleep(0.05)
        call("own")
        return thread

    outer().join(LONG)
    assert order == ["own", "thread"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that are forked")
def test_a_forked_process_does_not_wait_for_threads_that_it_has_not() -> None:
    """Another thread has the turn when the process is forked, which would have it for ever in the child."""
    taken, over = threading.Event(), threading.Event()

    def hold() -> None:
        with turn:
            taken.set()
            over.wait(LONG)

    thread = threading.Thread(target=hold)
    thread.start()
    assert taken.wait(LONG)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of forks beside threads
        child = os.fork()
    if child == 0:
        with turn, turn:
            os._exit(7)
    over.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_turn_is_over_when_what_it_did_fails() -> None:
    own = Turn()
    with pytest.raises(KeyError), own, own:
        raise KeyError("mine")
    assert together([lambda: own.__enter__() or True])[0]
