"""A call leaves its answer, and nothing else, in the program that makes it."""

import atexit
import inspect
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.poutine.runtime import _PYRO_STACK
from small_agents import mpo, sac, sql
from torch import Tensor, nn
from tqdm import tqdm

import rl_as_inference as rlai
from rl_as_inference import exact, models
from rl_as_inference.agents import train
from rl_as_inference.host import in_turn
from rl_as_inference.randomness import drawing
from rl_as_inference.sampling import annealing, importance_sampling, nuts, sequential_monte_carlo

MDP = models.random_mdp(4, 2, horizon=3)
LINE = models.double_integrator(horizon=3)
WALK = {
    "observations": [0, 1, 2, 2],
    "actions": [1, 1, 0],
    "rewards": [0.0, 0.0, 1.0],
    "terminations": [False, False, True],
}


class Coin(nn.Module):
    """A policy of two actions."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(2))

    def forward(self, state: Tensor, t: int) -> dist.Categorical:
        return dist.Categorical(logits=self.logits.expand(*state.shape, 2))


class Push(nn.Module):
    """A policy of one number."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1))

    def forward(self, state: Tensor, t: int) -> Any:
        return dist.Normal(self.loc.expand(*state.shape[:-1], 1), 1.0).to_event(1)


def walk() -> None:
    """A Pyro program of two steps."""
    state = pyro.sample("state_0", dist.Categorical(torch.ones(3)))
    for t in rlai.steps(2):
        action = rlai.act(f"action_{t}", state, prior=dist.Categorical(logits=torch.zeros(2)))
        rlai.reward(f"reward_{t}", 1.0 * action)
        state = pyro.sample(f"state_{t + 1}", dist.Categorical(torch.ones(*action.shape, 3)))


def push() -> None:
    """A Pyro program of one step, whose sites are continuous."""
    state = pyro.sample("state_0", dist.Normal(torch.zeros(1), 1.0).to_event(1))
    for t in rlai.steps(1):
        action = rlai.act(f"action_{t}", state, prior=dist.Normal(torch.zeros(1), 1.0).to_event(1))
        rlai.reward(f"reward_{t}", -(state + action).square().sum(-1))


def slips() -> Any:
    slip = pyro.sample("slip", dist.Beta(2.0, 2.0))
    rows = torch.stack([slip, 1 - slip]).expand(2, 1, 2)
    return rlai.TabularMDP(rows, torch.zeros(2, 1), torch.tensor([1.0, 0.0]), horizon=4)


def wants() -> Any:
    worth = pyro.sample("worth", dist.Normal(0.0, 1.0))
    return rlai.TabularMDP(torch.ones(1, 2, 1), torch.stack([torch.zeros(()), worth])[None], torch.ones(1), horizon=1)


SEEN = LINE.rollout(None, 8, seed=0)


def learned() -> rlai.LearnedDynamics:
    with drawing(seed=0):
        return rlai.LearnedDynamics(LINE.state_space, LINE.action_space, hidden_sizes=(4,))


@cache
def run_folder() -> str:
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    train(sac(), 30, folder, evaluate_every=30, evaluate_episodes=1)
    return folder


DRAWS: dict[str, Callable[..., Any]] = {
    "compare": lambda **s: rlai.compare(MDP, Coin(), num_trajectories=50, **s).elbo,
    "compare of a program": lambda **s: rlai.compare(walk, Coin(), num_trajectories=50, **s).elbo,
    "compare_gradients": lambda **s: rlai.compare_gradients(MDP, Coin(), num_trajectories=20, num_blocks=10, **s).rows,
    "estimate_elbo": lambda **s: rlai.estimate_elbo(walk, Coin(), 50, **s).mean,
    "estimate_log_evidence": lambda **s: rlai.estimate_log_evidence(walk, Coin(), num_particles=50, **s).mean,
    "estimate_log_evidence, smc": lambda **s: (
        rlai.estimate_log_evidence(MDP, Coin(), method="smc", num_particles=20, **s).mean
    ),
    "fit": lambda **s: rlai.fit(walk, Coin(), steps=2, num_trajectories=8, progress=False, **s).elbo,
    "fit, with a critic": lambda **s: (
        rlai.fit(walk, Coin(), steps=2, estimator="baseline", num_trajectories=8, progress=False, **s).elbo
    ),
    "posterior": lambda **s: rlai.posterior(walk, Coin(), num_draws=8, **s).posterior["state"].values,
    "posterior, exact": lambda **s: rlai.posterior(MDP, method="exact", num_draws=8, **s).posterior["state"].values,
    "posterior, importance": lambda **s: (
        rlai.posterior(walk, Coin(), method="importance", num_draws=8, **s).posterior["state"].values
    ),
    "trajectory_kl": lambda **s: rlai.trajectory_kl(MDP, Coin(), method="sample", num_trajectories=50, **s).mean,
    "exact.sample_posterior": lambda **s: exact.sample_posterior(MDP, 8, **s).states,
    "rollout": lambda **s: MDP.rollout(Coin(), 8, **s).states,
    "importance_sampling": lambda **s: importance_sampling(walk, Coin(), 8, **s).log_weight,
    "sequential_monte_carlo": lambda **s: sequential_monte_carlo(MDP, Coin(), 8, **s).log_weight,
    "annealing": lambda **s: annealing(MDP, 8, **s).draws.log_weight,
    "nuts": lambda **s: nuts(push, 2, num_warmup=4, num_chains=1, **s)[0].states,
    "ConjugatePosterior": lambda **s: rlai.ConjugatePosterior.exactly(slips).draw(4, **s)["slip"],
    "LearnedDynamics": lambda **s: learned().fit(SEEN, num_updates=2, batch_size=4, held_out=0.0, **s).log_likelihood,
}
"""What draws from PyTorch's generator, or from a seed."""

SEEDED: dict[str, Callable[[], Any]] = {
    "explore": lambda: rlai.explore(models.families.bandit(2), models.bandit(), num_episodes=2),
    "infer_agent": lambda: rlai.infer_agent(wants, [([0], [1])] * 3, num_draws=4, num_chains=2, num_warmup=4),
    "infer_dynamics": lambda: rlai.infer_dynamics(slips, [([0, 1, 1], [0, 0])], num_draws=4),
    "infer_dynamics, nuts": lambda: rlai.infer_dynamics(
        slips, [([0, 1, 1], [0, 0])], method="nuts", num_draws=4, num_warmup=4
    ),
    "learn_offline": lambda: rlai.learn_offline([WALK] * 4, num_updates=4, hidden_sizes=(4,), batch_size=4),
    "SoftActorCritic": lambda: used(sac()),
    "SoftActorCritic, of a process": lambda: used(sac(models.pendulum(horizon=10))),
    "SoftQLearning": lambda: used(sql(compile=False)),
    "MPO": lambda: used(mpo(compile=False)),
    "ModelBasedAgent": lambda: used(
        rlai.ModelBasedAgent(
            "Pendulum-v1",
            hidden_sizes=(8,),
            model_hidden_sizes=(8,),
            batch_size=8,
            learning_starts=20,
            model_updates=4,
            ensemble=2,
            imagined_transitions=20,
            look_ahead=2,
            num_samples=4,
            compile=False,
        )
    ),
    "to_gymnasium": lambda: rlai.to_gymnasium(MDP).reset(seed=0),
    "to_gymnasium_vector": lambda: rlai.to_gymnasium_vector(MDP, 2).reset(seed=0),
    "train": lambda: run_folder(),
    "load_run": lambda: rlai.load_run(run_folder()),
    "inspect.diagnose": lambda: rlai.inspect.diagnose(rlai.posterior(MDP, method="exact", num_draws=8, seed=0)),
}
"""What draws from a seed of its own."""

DETERMINISTIC: dict[str, Callable[[], Any]] = {
    "joined": lambda: rlai.joined(False).__enter__(),
    "SoftPolicyIteration": lambda: rlai.SoftPolicyIteration(MDP).learn(),
    "bayes_adaptive": lambda: rlai.bayes_adaptive(models.families.bandit(2, dtype=torch.float64), num_episodes=2),
    "exact.plan": lambda: exact.plan(MDP),
    "exact.elbo": lambda: exact.elbo(MDP, Coin()),
    "hyperbolic_policy": lambda: rlai.hyperbolic_policy(models.procrastination(temperature=0.05), 2.0),
    "rationality_curve": lambda: rlai.rationality_curve(MDP, [0.1, 1.0]),
    "satisfice": lambda: rlai.satisfice(MDP, 0.1),
    "sweep": lambda: swept(),
    "worst_case": lambda: rlai.worst_case(MDP, exact.plan(MDP).policy, reward_budget=0.1),
}

LANGUAGE = {
    "act",
    "follow",
    "given_return",
    "history",
    "observe",
    "reward",
    "simulate",
    "steps",
    "survival",
    "terminate",
}
"""What a user's program is written in: it runs in the user's own calls."""


def swept() -> None:
    """One run that does little, in processes of its own."""
    with tempfile.TemporaryDirectory() as out:
        options = {"steps": 2, "hidden_sizes": (4,), "num_trajectories": 4}
        rlai.sweep("corridor", {"learning_rate": [0.1]}, out=out, options=options, jobs=1)


def used(agent: Any) -> None:
    agent.learn(24, progress=False)
    agent.act(np.zeros(agent.envs.state_space.shape, np.float32))
    agent.evaluate(1)
    with tempfile.TemporaryDirectory() as folder:
        agent.save(Path(folder) / "agent.safetensors")
        agent.restore(Path(folder) / "agent.safetensors")
    agent.close()


def test_every_public_function_is_in_the_tables() -> None:
    names = {n for n in rlai.__all__ if inspect.isfunction(getattr(rlai, n))}
    told = {name.partition(",")[0].partition(" ")[0] for name in {**DRAWS, **SEEDED, **DETERMINISTIC}}
    assert names <= told | LANGUAGE
    assert {"SoftActorCritic", "SoftQLearning", "MPO", "ModelBasedAgent", "LearnedDynamics"} <= told


def found() -> dict[str, Any]:
    """What a process has but one of."""
    loggers = [logging.getLogger(), *(each for each in logging.root.manager.loggerDict.values())]
    store = pyro.get_param_store()
    return {
        "Python's random numbers": random.getstate(),
        "NumPy's": [str(part) for part in np.random.get_state()],  # noqa: NPY002
        "PyTorch's": torch.get_rng_state().tolist(),
        "filters of warnings": [str(each) for each in warnings.filters],
        "showing of warnings": warnings.showwarning,
        "environment": dict(os.environ),
        "Pyro's handlers": list(_PYRO_STACK),
        "Pyro's store": {name: id(value) for name, value in store._params.items()},
        "validation": (
            torch.distributions.Distribution._validate_args,
            pyro.distributions.distribution.Distribution.__dict__.get("_validate_args"),
            pyro.infer.util.is_validation_enabled(),
            pyro.poutine.util.is_validation_enabled(),
        ),
        "handlers of logs": {
            each.name: (each.handlers, each.level, each.propagate)
            for each in loggers
            if isinstance(each, logging.Logger)
        },
        "threads": threading.enumerate(),
        "PyTorch's threads": torch.get_num_threads(),
        "precision": torch.get_float32_matmul_precision(),
        "number type": torch.get_default_dtype(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "signals": signal.getsignal(signal.SIGINT),
        "NumPy's errors": np.geterr(),
        "folder": os.getcwd(),
        "hook": sys.excepthook,
    }


@pytest.mark.parametrize("name", [*DRAWS, *SEEDED, *DETERMINISTIC])
def test_a_call_leaves_all_as_it_was(name: str) -> None:
    call = {**SEEDED, **DETERMINISTIC}.get(name) or (lambda: DRAWS[name](seed=1))
    if name == "load_run":
        run_folder()
    pyro.param("of the host", torch.ones(1))
    before = found()
    with warnings.catch_warnings(record=True):
        inside = [str(each) for each in warnings.filters]
        call()
        assert [str(each) for each in warnings.filters] == inside
    after = found()
    # A library that is loaded on the way brings loggers of its own.
    after["handlers of logs"] = {
        n: each for n, each in after["handlers of logs"].items() if n in before["handlers of logs"]
    }
    assert {part for part in before if before[part] != after[part]} == set()


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor | np.ndarray):
        return bool(np.array_equal(np.asarray(one), np.asarray(other), equal_nan=True))
    if isinstance(one, tuple) and hasattr(one[0], "variance"):  # rows, of which the seconds differ
        return [row.variance for row in one] == [row.variance for row in other]
    return bool(one == other)


@pytest.mark.parametrize("name", [n for n in DRAWS if n not in ("compare_gradients", "compare of a program")])
def test_a_seed_a_generator_and_pyro_s_own_seed_give_the_same(name: str) -> None:
    draw = DRAWS[name]
    with drawing(seed=9):  # the modules' own first parameters
        expected = draw(seed=7)
        generator = torch.Generator().manual_seed(7)
        by_generator = draw(generator=generator)
        further = generator.get_state()
        pyro.set_rng_seed(7)
        by_host = draw()
        host = torch.get_rng_state()
    assert same(expected, by_generator)
    assert same(expected, by_host)
    assert torch.equal(further, host)  # both moved on by what was drawn


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": -1}, "seed must be an integer from 0 to"),
        ({"seed": 1.5}, "seed must be an integer from 0 to"),
        ({"seed": True}, "seed must be an integer from 0 to"),
        ({"seed": 2**63}, "seed must be an integer from 0 to"),
        ({"generator": 3}, "generator must be a Generator or None"),
        ({"seed": 1, "generator": torch.Generator()}, "leave one of them out"),
    ],
)
def test_wrong_sources_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rlai.estimate_elbo(MDP, None, **given)


# Pyro's store.


def test_the_module_keeps_its_parameters_and_the_store_does_not() -> None:
    policy = Coin()
    rlai.fit(walk, policy, steps=5, num_trajectories=64, progress=False, seed=0)
    rlai.posterior(walk, policy, num_draws=10)
    assert len(pyro.get_param_store()) == 0
    assert bool(policy.logits[1] > policy.logits[0])


def test_what_a_program_registers_itself_stays_and_learns() -> None:
    """``pyro.param`` of the user's own program is the user's; a policy that SVI trains stays too, through our calls."""

    def program() -> None:
        bias = pyro.param("bias", torch.tensor(0.5))
        action = rlai.act("action_0", torch.zeros(()), prior=dist.Normal(0.0, 1.0))
        rlai.reward("reward_0", -(action - bias).square())

    def policy(state: Tensor, t: int) -> Any:
        return dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0)

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(()))

        def forward(self, state: Tensor, t: int) -> Any:
            return dist.Normal(self.loc, 1.0)

    store = pyro.get_param_store()
    rlai.posterior(program, policy, num_draws=10)
    assert set(store.keys()) == {"bias", "loc"}
    module = Scaled()
    guide = rlai.follow(program, module)
    svi = SVI(program, guide, pyro.optim.Adam({"lr": 0.1}), loss=rlai.TrajectoryELBO())
    svi.step()
    learned = float(pyro.param("bias").detach()), float(module.loc.detach())
    assert learned != (0.5, 0.0)
    rlai.estimate_elbo(program, module, 10)
    assert store["policy$$$loc"] is module.loc or torch.equal(store["policy$$$loc"], module.loc)
    svi.step()
    assert float(pyro.param("bias").detach()) != learned[0]
    assert float(module.loc.detach()) != learned[1]


def test_a_call_that_fails_leaves_all_as_it_was() -> None:
    class Wrong(Coin):
        def forward(self, state: Tensor, t: int) -> Any:
            if t:
                raise KeyError("mine")
            return super().forward(state, t)

    before = found()
    for call in (rlai.estimate_elbo, rlai.posterior, rlai.compare):
        with pytest.raises(KeyError, match="mine"):
            call(walk, Wrong(), seed=3)
    assert {part for part, value in found().items() if value != before[part]} == set()


def test_a_function_of_ones_own_can_be_a_turn() -> None:
    @in_turn
    def warned(*, seed: int | None = None) -> float:
        warnings.simplefilter("ignore")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = "somewhere"
        list(tqdm([1], disable=True))  # which begins a thread all the same
        return float(torch.rand(()))

    before = found()
    assert warned(seed=3) == warned(seed=3)
    assert found() == before
