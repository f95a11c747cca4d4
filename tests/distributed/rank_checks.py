"""What ranks compute in :mod:`test_two_ranks`: each function is run by both, and returns numbers as JSON holds them.

A single process's answers are taken by each rank beside, with the same noise.
"""

import hashlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.distributed as dist_
from gymnasium.spaces import Box
from problems import random_mdp
from torch import Tensor, nn

import rl_as_inference as rlai
from rl_as_inference import exact
from rl_as_inference.agents import train
from rl_as_inference.critics import LearnedTable, QEnsemble, SoftQ, SoftV, TableCritic
from rl_as_inference.distributed import ALONE, RankError, Ranks, joined
from rl_as_inference.guides import CategoricalPolicy, amortized_policy
from rl_as_inference.objectives import Projection
from rl_as_inference.processes.programs import ProgramProcess, as_process
from rl_as_inference.sharing import held_alike, in_shares
from rl_as_inference.whole_noise import whole_noise

F64 = torch.float64
LONG = os.environ.get("RLAI_SCALE") == "long"
"""Whether more is tried, as ``make test-scale`` does."""
NUMBER = 23
"""Trajectories of a batch: an odd number, so that ranks have other shares, and no other size."""


def digest(*modules: nn.Module) -> str:
    """The bits of all parameters."""
    held = hashlib.sha256()
    for module in modules:
        for value in module.state_dict().values():
            held.update(value.detach().numpy().tobytes())
    return held.hexdigest()


def tabular() -> rlai.TabularMDP:
    return random_mdp(3, num_states=4, num_actions=3, horizon=5, discount=0.9, terminal=True)


def sure() -> rlai.TabularMDP:
    """A process without luck, but for where it begins."""
    transition = torch.eye(4, dtype=F64)[torch.tensor([[1, 2], [3, 0], [2, 1], [0, 3]])]
    reward = torch.tensor([[1.0, 0.2], [-0.5, 0.3], [0.1, 0.9], [0.4, -1.0]], dtype=F64)
    return rlai.TabularMDP(transition, reward, torch.tensor([0.5, 0.5, 0, 0], dtype=F64), horizon=3, temperature=0.6)


def line() -> rlai.LinearGaussianMDP:
    eye = torch.eye(1, dtype=F64)
    return rlai.LinearGaussianMDP(
        0.9 * eye, eye, 0.1 * eye, eye, 0.5 * eye, torch.ones(1, dtype=F64), eye, eye, horizon=4, temperature=0.8
    )


class Walk(rlai.MarkovDecisionProcess):
    """Continuous actions in the unit box."""

    state_space, action_space = Box(-9.0, 9.0, (2,)), Box(-1.0, 1.0, (2,))
    horizon, temperature = 4, 0.5

    def initial(self) -> Any:
        return dist.Normal(torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64)).to_event(1)

    def transition(self, state: Tensor, action: Tensor) -> Any:
        return dist.Normal(state + action, torch.full((2,), 0.1, dtype=F64)).to_event(1)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return -next_state.square().sum(-1)


def coins() -> None:
    """A free program, which has the plate that it is run in."""
    state = pyro.sample("state_0", dist.Categorical(torch.full((3,), 1 / 3, dtype=F64)))
    for t in rlai.steps(3, discount=0.9):
        action = rlai.act(f"action_{t}", state, dist.Categorical(torch.full((2,), 0.5, dtype=F64)))
        rlai.reward(f"reward_{t}", (action * (state - 1)).to(F64), temperature=0.7)
        state = pyro.sample(f"state_{t + 1}", dist.Categorical(move[action]))


move = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]], dtype=F64)


Case = tuple[Any, nn.Module, str, Any, dict[str, Any]]


def cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    """Yields every estimator, with every critic that it takes, where it works differently."""

    def finite(estimator: str, make: Any = None, mdp: Any = tabular, **options: Any) -> Callable[[], Case]:
        def case() -> Case:
            torch.manual_seed(5)
            process = mdp()
            critic = None if make is None else make(process).to(F64)
            policy = CategoricalPolicy(process.state_space, process.num_actions, horizon=process.horizon)
            return process, policy.to(F64), estimator, critic, options

        return case

    def soft_v(mdp: Any) -> nn.Module:
        return SoftV(mdp.state_space, horizon=mdp.horizon, hidden_sizes=(8,))

    def soft_q(mdp: Any) -> nn.Module:
        return SoftQ(mdp.state_space, mdp.num_actions, horizon=mdp.horizon, hidden_sizes=(8,))

    def table(mdp: Any) -> nn.Module:
        return LearnedTable(mdp.num_states, horizon=mdp.horizon)

    yield "auto", finite("auto")
    yield "full_return", finite("full_return")
    yield "score", finite("score")
    yield "baseline", finite("baseline", soft_v)
    yield "advantage", finite("advantage", soft_v, lambda_=0.5)
    yield "exact_sum", finite("exact_sum", soft_q)
    yield "n_step", finite("n_step", soft_q, n=2)
    yield "em, soft Q", finite("em", soft_q)
    yield "em, soft Q, trust region", finite("em", soft_q, projection=Projection(epsilon=0.05))
    yield "em, soft V", finite("em", soft_v, projection=Projection(eta=1.5))
    yield "em, soft V, trust region", finite("em", soft_v, projection=Projection(epsilon=0.05))
    yield "em, trajectories", finite("em")
    yield "em, trajectories, trust region", finite("em", projection=Projection(epsilon=0.1))
    yield "em, teacher", finite("em", projection=Projection(teacher=exact.plan(tabular())))
    yield "path_consistency, single steps", finite("path_consistency", table)
    yield "path_consistency, whole", finite("path_consistency", table, mdp=sure, n=3)
    yield "path_consistency, variance", finite("path_consistency", mdp=sure)

    def smooth(estimator: str, make: Any, with_q: bool = False, **options: Any) -> Callable[[], Case]:
        def case() -> Case:
            torch.manual_seed(5)
            process = make()
            space = process.state_space, process.action_space
            critic = QEnsemble(*space, num_critics=2, horizon=process.horizon, hidden_sizes=(8,)) if with_q else None
            policy = amortized_policy(process, hidden_sizes=(8,)).to(F64)
            return process, policy, estimator, None if critic is None else critic.to(F64), options

        return case

    yield "auto, linear-Gaussian", smooth("auto", line)
    yield "pathwise, box", smooth("pathwise", Walk)
    yield "score, box", smooth("score", Walk)
    yield "em, draws", smooth("em", Walk, with_q=True)
    yield "em, draws, trust region", smooth("em", Walk, with_q=True, projection=Projection(epsilon=0.002))


def gradient(case: Case, ranks: Ranks) -> tuple[float, list[Tensor]]:
    """The loss of a batch and its gradient in the policy, and in the critic if one learns."""
    process, policy, estimator, critic, options = case
    modules = [policy, *([] if critic is None else [critic])]
    objective = rlai.TrajectoryELBO(estimator, critic, distributed=ranks.size > 1, **options)  # type: ignore[arg-type]
    torch.manual_seed(11)
    with whole_noise(ranks, NUMBER):
        loss = objective.differentiable_loss(process, rlai.follow(process, policy), ranks.share(NUMBER))
    loss.backward()
    pyro.clear_param_store()
    grads = [[torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()] for module in modules]
    return float(loss.detach()), [torch.cat([each.flatten() for each in module]) for module in grads]


def gradients() -> dict[str, list[float]]:
    """Of every estimator: how far two ranks' loss and gradient are from those of one process, over their size."""
    found = {}
    for name, make in cases():
        with joined() as ranks:
            loss, mine = gradient(make(), ranks)
        alone, whole = gradient(make(), ALONE)
        found[name] = [abs(loss - alone) / abs(alone)]
        for ours, theirs in zip(mine, whole, strict=True):
            size = float(theirs.abs().max())
            assert size > 1e-6, name
            found[name].append(float((ours - theirs).abs().max()) / size)
    return found


def fits() -> dict[str, list[float]]:
    """Of whole fits: how far histories and policies of two ranks are from those of one process."""
    found = {}
    for name, make in {
        "a process": lambda: (tabular(), "baseline"),
        **{f"a process, {each}": lambda each=each: (tabular(), each) for each in TABLES},
        **({"a hidden state": lambda: (rlai.models.tiger(horizon=3), "baseline")} if LONG else {}),
        "a program": lambda: (coins, "score"),
    }.items():
        answers = []
        for distributed in (True, False):
            with joined(distributed) as ranks:
                torch.manual_seed(3 + ranks.rank)
                process, estimator = make()
                policy = amortized_policy(as_process(process), hidden_sizes=(4,))
                if not distributed:
                    torch.manual_seed(3)  # as rank 0, whose policy all take
                    policy = amortized_policy(as_process(process), hidden_sizes=(4,))
                with whole_noise(ranks, NUMBER):
                    fitted = rlai.fit(
                        process,
                        policy,
                        steps=3,
                        estimator=estimator,  # type: ignore[arg-type]
                        num_trajectories=NUMBER,
                        seed=1,
                        distributed=distributed,
                    )
                answers.append((fitted.elbo, torch.cat([p.detach().flatten() for p in policy.parameters()])))
        (ours, mine), (theirs, whole) = answers
        found[name] = [float((ours - theirs).abs().max()), float((mine - whole).abs().max())]
    return found


TABLES = ("full_return", "score", "advantage", "n_step", "path_consistency")
"""Estimators of rollouts whose policy is asked once, in all states at all times: each rank asks it a part."""


def tables() -> dict[str, list[int]]:
    """Times and states of a network's table at each call of a fit, on this rank and in one process."""
    found = {}
    for name, distributed in (("shared", True), ("alone", False), ("normalised", True)):
        policy = CategoricalPolicy(
            tabular().state_space, 3, horizon=5, architecture="batch_norm" if name == "normalised" else "plain"
        )
        found[name] = rows = []  # type: ignore[var-annotated]
        policy.network.register_forward_hook(lambda _, __, out, rows=rows: rows.append(list(out.shape[:-1])))
        rlai.fit(tabular(), policy, steps=3, estimator="score", num_trajectories=NUMBER, distributed=distributed)
    return found


def exchanges(number: int = 7) -> dict[str, Any]:
    """Sums, rows of all ranks and their gradients, and whether what is done meanwhile is done once."""
    leaf, done, asked = torch.arange(2.0 * number, dtype=F64).view(number, 2).requires_grad_(), [], []

    def ask(part: slice) -> Tensor:
        asked.append([part.start or 0, part.stop])
        return leaf[part] * 3

    with joined() as ranks:
        own = ranks.rank + torch.arange(6.0).view(2, 3)
        ranks.add_up(turned := own.clone().mT)
        ranks.add_up((strided := torch.arange(8.0))[::2])
        ranks.add_up(large := torch.ones(2**20))  # goes another way than small ones
        found = {
            "sum": ranks.sum(own).tolist(),
            "number": ranks.sum(torch.tensor(ranks.rank + 1)).item(),
            "in place": turned.tolist(),
            "strided": strided.tolist(),
            "large": float(large.sum()),
            "gathered": [rows.tolist() for rows in ranks.gather(torch.full((ranks.rank + 1, 2), ranks.rank))],
            "numbers": torch.stack(ranks.gather(torch.ones(1) * ranks.rank)).tolist(),
        }
        with held_alike(ranks, ask):
            rows = in_shares(ask, number, ask, lambda: done.append(len(asked)))
        loss = rows.square().sum() * (ranks.rank + 1)
        loss.backward(retain_graph=True)
        assert leaf.grad is not None
        (slope,) = torch.autograd.grad(loss, leaf, create_graph=True)
        try:  # of the second order there is none, rather than a wrong one
            slope.sum().backward()
            found["second order"] = "there is one"
        except RuntimeError as error:
            found["second order"] = str(error)
        return found | {"rows": rows.tolist(), "asked": asked, "done": done, "slope": ranks.sum(leaf.grad).tolist()}


def particles() -> float:
    """How far the gradient of particles in a loop is from the mean over those of each rank."""
    process, number = ProgramProcess(coins, vectorized=False), 5
    policy = amortized_policy(process, hidden_sizes=(4,)).double()
    with torch.no_grad():
        for value in policy.parameters():
            value.fill_(0.1)
    guide, grads = rlai.follow(coins, policy), []
    with joined() as ranks:
        share = ranks.share(number)
        for count, distributed in ((number, True), (share, False)):
            policy.zero_grad()
            torch.manual_seed(ranks.rank)
            ranks.draws_apart = True
            objective = rlai.TrajectoryELBO("score", num_particles=count, distributed=distributed)
            objective.differentiable_loss(coins, guide).backward()
            grads.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
        ranks.draws_apart = False
        ours, own = grads
        return float((ours - ranks.sum(own * share) / number).abs().max() / ours.abs().max())


def alike(steps: int = 30) -> dict[str, Any]:
    """What of a fit with streams of their own is the same on all ranks, and what PyTorch's generator gives next."""
    with joined() as ranks:
        torch.manual_seed(ranks.rank)  # so that policies and generators differ at first
        policy = CategoricalPolicy(tabular().state_space, 3, horizon=5)
        fitted = rlai.fit(
            tabular(), policy.double(), steps=steps, estimator="baseline", num_trajectories=8, distributed=True
        )
        return {
            "policy": digest(policy),
            "critic": digest(fitted.critic),
            "elbo": fitted.elbo[-1].item(),
            "next": torch.rand(()).item(),
        }


def svi(steps: int = 5) -> dict[str, Any]:
    """Pyro's own SVI, on a program whose parameters Pyro makes, beginning with another on each rank.

    One of them is met by one rank alone from the second step on, and so is one that nobody met before.
    """

    def program(number: int) -> None:
        bias = pyro.param("bias", lambda: torch.randn(2))
        with pyro.plate("trajectories", number):
            for t in rlai.steps(3):
                action = rlai.act(f"action_{t}", torch.zeros(number), dist.Categorical(logits=torch.zeros(2)))
                rlai.reward(f"reward_{t}", action.float() * bias.detach()[0])

    def policy(state: Tensor, t: int) -> Any:
        logits = pyro.param("bias", lambda: torch.randn(2))
        if t == 2 and (ranks.is_first or not losses):
            logits = logits + pyro.param("sometimes", lambda: torch.zeros(2))
        if t == 1 and ranks.is_first and losses:
            logits = logits + pyro.param("late")
        return dist.Categorical(logits=logits.expand(*state.shape, 2))

    pyro.clear_param_store()
    losses: list[float] = []
    with joined() as ranks:
        pyro.set_rng_seed(ranks.rank)
        pyro.param("late", torch.full((2,), float(ranks.rank)))
        objective = rlai.TrajectoryELBO(distributed=True)
        inference = pyro.infer.SVI(program, rlai.follow(program, policy), pyro.optim.Adam({"lr": 0.1}), loss=objective)
        for _ in range(steps):
            losses.append(inference.step(ranks.share(40)))
        return {name: pyro.param(name).tolist() for name in ("bias", "sometimes", "late")} | {"losses": losses}


class Layered(nn.Module):
    """A policy in two parts, which may be trained one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ParameterList([nn.Parameter(torch.zeros(3, dtype=F64)) for _ in range(2)])

    def forward(self, state: Tensor, t: int) -> Any:
        return dist.Categorical(logits=(self.parts[0] + self.parts[1]).expand(*state.shape, 3))


def staged() -> list[list[float]]:
    """Trains the parts of a policy in turn, so that at some step all that learns is new; what each was after it."""
    policy, mdp, found = Layered(), tabular(), []
    pyro.clear_param_store()
    objective = rlai.TrajectoryELBO("score", distributed=True)
    with joined() as ranks:
        for stage in (0, 1, 0):
            for number, part in enumerate(policy.parts):
                part.requires_grad_(number == stage)
            optimizer = torch.optim.SGD([policy.parts[stage]], lr=0.1)
            optimizer.zero_grad()
            objective.differentiable_loss(mdp, rlai.follow(mdp, policy), ranks.share(NUMBER)).backward()
            optimizer.step()
            found.append(torch.stack(list(policy.parts)).flatten().tolist())
    return found


def estimates() -> dict[str, Any]:
    """Estimates and comparisons, beside those of one process with the same noise."""
    mdp, plan = tabular(), exact.plan(tabular())
    critic = TableCritic(plan.soft_v)
    found: dict[str, Any] = {}
    for distributed in (True, False):
        with joined(distributed) as ranks:
            torch.manual_seed(2)
            with whole_noise(ranks, NUMBER):
                estimate = rlai.estimate_elbo(mdp, None, NUMBER, distributed=distributed)
                compared = rlai.compare(mdp, plan, num_trajectories=NUMBER, critic=critic, distributed=distributed)
        held = {name: value for name, value in compared.to_dict().items() if isinstance(value, float)}
        found["two" if distributed else "one"] = {**held, "mean": estimate.mean, "error": estimate.standard_error}
    with joined():
        own = rlai.estimate_elbo(mdp, None, 4000, seed=0, distributed=True)
    found["own"] = [own.mean, own.standard_error, float(exact.elbo(mdp, None))]
    return found


def outside() -> None:
    """A program with a site outside of the plate of trajectories."""
    pyro.sample("theta", dist.Normal(0.0, 1.0))
    with pyro.plate("trajectories", 4):
        rlai.act("action", torch.zeros(4), dist.Bernoulli(0.5 * torch.ones(4)))


def disagreements(folder: str) -> dict[str, str]:
    """What ranks are told that do not fit together, or of whose files one is damaged."""
    told = {}
    damaged = Path(folder, "damaged.safetensors")
    with joined() as ranks:
        rank = ranks.rank
        if ranks.is_first:
            Path(folder, "run").mkdir()
            for path in (damaged, Path(folder, "run", "checkpoint.safetensors")):
                path.write_bytes(b"no checkpoint")
        cases: dict[str, Callable[[], Any]] = {
            "process": lambda: rlai.estimate_elbo(tabular().at_temperature(1.0 + rank), None, 8, distributed=True),
            "tables": lambda: rlai.estimate_elbo(random_mdp(rank), None, 8, distributed=True),
            "options": lambda: rlai.estimate_elbo(tabular(), None, 8 + rank, distributed=True),
            "learning rate": lambda: rlai.fit(
                tabular(),
                CategoricalPolicy(tabular().state_space, 3, horizon=5),
                steps=2,
                estimator="score",
                learning_rate=0.1 * (rank + 1),
                distributed=True,
            ),
            "share": lambda: (
                rlai.compare(tabular(), None, num_trajectories=2, distributed=True)
                and rlai.estimate_elbo(tabular(), None, 1, distributed=True)
            ),
            "particles": lambda: (
                [rlai.TrajectoryELBO(num_particles=each, distributed=True) for each in (2, ranks.size * 2 - 1, 1)]
                and ranks.share(1, "num_particles")
            ),
            "outside": lambda: rlai.TrajectoryELBO(distributed=True).loss(outside, outside),
            "planner": lambda: rlai.ModelBasedAgent("Pendulum-v1", distributed=True),
            "learner": lambda: rlai.SoftQLearning("CartPole-v1", batch_size=8 + rank, distributed=True),
            "held return": lambda: rlai.SoftQLearning("CartPole-v1", target_return=9.0, distributed=True),
            "gpus": lambda: ranks.check_devices(torch.device("cuda", 0)),
            "damaged fit": lambda: rlai.fit(
                tabular(),
                CategoricalPolicy(tabular().state_space, 3, horizon=5),
                steps=2,
                estimator="score",
                checkpoint=damaged,
                distributed=True,
            ),
            "spoiled": lambda: _fit_of_halves(spoiled=True),
            "short": lambda: _fit_of_halves(steps=3),
            "damaged learner": lambda: rlai.SoftQLearning("CartPole-v1", **SMALL).restore(damaged),
            "another run": lambda: rlai.agents.train(rlai.SoftQLearning("CartPole-v1", **SMALL), 9, f"{folder}/run"),
            "damaged run": lambda: rlai.agents.train(
                rlai.SoftQLearning("CartPole-v1", **SMALL), 9, f"{folder}/run", resume=True
            ),
        }
        for name, call in cases.items():
            try:
                call()
            except ValueError as error:
                told[name] = str(error)
    return told


class Halves(nn.Module):
    """A table of which two ranks ask each a part, with so many steps."""

    batch_steps = row_by_row = True

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(steps, 4, 3))

    def forward(self, state: Tensor, t: Any) -> Any:
        if int(torch.as_tensor(t).max()) >= len(self.logits):
            raise ValueError(f"there are {len(self.logits)} steps")
        return dist.Categorical(logits=self.logits[t, state])


def _fit_of_halves(steps: int = 5, *, spoiled: bool = False) -> None:
    """Fits a policy that fails at the last steps, which rank 1 asks for: at once, or after the first gradient."""
    policy = Halves(steps)

    def spoil(step: int, _: float) -> None:
        with torch.no_grad():
            policy.logits[-1] = math.nan if spoiled else 0.0

    options: dict[str, Any] = {"steps": 3, "estimator": "score", "num_trajectories": NUMBER, "callback": spoil}
    rlai.fit(tabular(), policy, distributed=True, **options)


def host() -> dict[str, Any]:
    """What is left when the library's own group ends, and what when it is the program's."""
    before = sys.excepthook, threading.active_count(), dict(os.environ)
    with joined() as ranks:
        ranks.sum(torch.ones(()))
    left = [dist_.is_initialized(), sys.excepthook is before[0], dict(os.environ) == before[2]]
    store = dist_.TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]) + 1, 2, os.environ["RANK"] == "0")
    dist_.init_process_group("gloo", store=store, rank=int(os.environ["RANK"]), world_size=2)
    estimate = rlai.estimate_elbo(tabular(), None, 10, distributed=True)
    stays = dist_.is_initialized()
    dist_.destroy_process_group()
    again = rlai.estimate_elbo(tabular(), None, 10, seed=0, distributed=True)
    num_threads = [threads()]
    with joined() as ranks:
        ranks.sum(torch.ones(()))
        num_threads.append(threads())
    return {
        "left": left,
        "stays": stays,
        "mean": [estimate.mean, again.mean],
        "ended": not dist_.is_initialized(),
        "threads": [*num_threads, threads()],
    }


def threads() -> int:
    """Returns how many threads this process has, those of libraries too; 0 where nobody tells."""
    return len([*Path("/proc/self/task").glob("*")])


LEARNERS: dict[str, Callable[[], Any]] = {
    "sac": lambda: rlai.SoftActorCritic("Pendulum-v1", **SMALL, temperature="auto"),
    "sql, priorities, two seeds": lambda: rlai.SoftQLearning("CartPole-v1", **SMALL, seeds=2, priority_exponent=0.6),
    "mpo": lambda: rlai.MPO("Pendulum-v1", **SMALL),
    "sac, batch_norm": lambda: rlai.SoftActorCritic(
        "Pendulum-v1", **{**SMALL, "architecture": "batch_norm", "critic_hidden_sizes": (8,)}
    ),
    "a process": lambda: rlai.SoftQLearning(tabular_32(), **SMALL),
}
SMALL: dict[str, Any] = {
    "hidden_sizes": (8,),
    "batch_size": 4,
    "learning_starts": 6,
    "compile": False,
    "buffer_size": 200,
    "distributed": True,
}


def tabular_32() -> rlai.TabularMDP:
    return random_mdp(3, num_states=4, num_actions=3, horizon=5, dtype=torch.float32)


def learners(steps: int = 40) -> dict[str, Any]:
    """Learned numbers and replays of learners."""
    found = {}
    with joined():
        for name, make in LEARNERS.items() if LONG else list(LEARNERS.items())[:2]:
            agent = make()
            rows: list[Any] = []
            agent.learn(steps, report_every=20, on_report=rows.append)
            found[name] = {
                "told": [row["step"] for row in rows],
                "kept": [row["step"] for row in agent.history],
                "learned": digest(*(module for modules in agent.modules for module in modules.values())),
                "moments": float(agent._update.tensors["second_moment"].sum()),
                "replay": float(agent.replay.storage[:, :steps].double().sum()),
                "updates": agent.num_updates / agent.updates_per_step,
            }
            agent.close()
    return found


def compiled() -> dict[str, Any]:
    """A learner whose two halves are compiled, beside one whose are not."""
    ends = []
    with joined():
        for compile in (True, False):
            agent = rlai.SoftQLearning("CartPole-v1", **{**SMALL, "compile": compile, "dtype": F64})
            agent.learn(20)
            ends.append(torch.cat([p.detach().flatten() for m in agent.modules[0].values() for p in m.parameters()]))
            learned = digest(*agent.modules[0].values())
            agent.close()
    return {"learned": learned, "apart": float((ends[0] - ends[1]).abs().max())}


def long_alike() -> dict[str, Any]:
    """As :func:`alike`, after a thousand steps."""
    return alike(1000)


def saved(folder: str) -> dict[str, Any]:
    """A learner that was saved after 40 steps and went on to 60, and one that was restored from there."""
    with joined() as ranks:
        path = f"{folder}/agent.safetensors"
        agent = LEARNERS["sac"]()
        agent.learn(40)
        agent.save(path)
        agent.learn(20)
        ranks.sum(torch.zeros(()))
        again = rlai.SoftActorCritic.load(path, distributed=True)
        steps = again.num_steps
        again.learn(20)
        ends = [digest(*each.modules[0].values()) for each in (agent, again)]
        rows = [float(each.replay.storage[:, :60].double().sum()) for each in (agent, again)]
        return {"ends": ends, "rows": rows, "steps": steps}


def gone_on(folder: str) -> dict[str, Any]:
    """Two ranks that go on from one process's file."""
    with joined() as ranks:
        path = f"{folder}/alone.safetensors"
        if ranks.is_first:
            alone = rlai.SoftActorCritic("Pendulum-v1", **{**SMALL, "distributed": False})
            alone.learn(40)
            alone.save(path)
        ranks.sum(torch.zeros(()))
        agent = rlai.SoftActorCritic.load(path, distributed=True)
        began = agent.num_steps, len(agent.replay), digest(*agent.modules[0].values())
        agent.learn(20)
        rows = float(agent.replay.storage[:, 40:60].double().sum())
        return {"began": began, "learned": digest(*agent.modules[0].values()), "rows": rows}


def stopped(folder: str) -> dict[str, Any]:
    """Where two ranks stop when one is told to between steps: while it writes, or while it waits for the other."""
    found = {}
    with joined() as ranks:

        def tell() -> None:
            os.kill(os.getpid(), signal.SIGTERM)

        class WhileWriting(rlai.SoftActorCritic):
            def save(self, path: Any, **options: Any) -> None:
                super().save(path, **options)
                if not ranks.is_first:
                    tell()

        class WhileWaiting(rlai.SoftActorCritic):
            def save(self, path: Any, **options: Any) -> None:
                super().save(path, **options)
                if self.num_steps > 30:
                    return
                if ranks.is_first:
                    threading.Timer(0.5, tell).start()
                else:
                    time.sleep(1.5)

        for kind in (WhileWriting, WhileWaiting):
            agent, by, notes = kind("Pendulum-v1", **SMALL), None, []
            try:
                out = f"{folder}/{kind.__name__}"
                train(agent, 90, folder=out, evaluate_every=90, evaluate_episodes=1, checkpoint_every=30)
            except KeyboardInterrupt as stop:
                by, notes = type(stop).__name__, stop.__notes__
            found[kind.__name__] = [by, agent.num_steps, *notes]
    return found


def kept(folder: str) -> dict[str, Any]:
    """A fit that is cut off after six steps and gone on with, beside one that is not, alone and by two ranks."""

    class CutOff(Exception):
        pass

    noise: list[bytes] = []

    def cut(step: int, _: float) -> None:
        noise.append(torch.get_rng_state().numpy().tobytes())
        if step == 6:
            raise CutOff

    def watch(_: int, __: float) -> None:
        noise.append(torch.get_rng_state().numpy().tobytes())

    found: dict[str, Any] = {}
    for name, distributed in (("alone", False), ("two", True)):
        with joined(distributed) as ranks:
            path = f"{folder}/{name}-{os.environ['RANK'] if not distributed else 0}.safetensors"
            ends = []
            noise.clear()
            for callback in (None, cut, watch):
                torch.manual_seed(0)
                policy = CategoricalPolicy(tabular().state_space, 3, horizon=5).double()
                options: dict[str, Any] = {"steps": 12, "estimator": "baseline", "num_trajectories": 6, "seed": 0}
                keeps = {} if not ends else {"checkpoint": path, "checkpoint_seconds": 1e-9}
                try:
                    fitted = rlai.fit(tabular(), policy, **options, **keeps, callback=callback, distributed=distributed)
                except CutOff:
                    ends.append("cut off")
                    ranks.sum(torch.zeros(()))
                    continue
                ends.append(f"{digest(policy)} {len(fitted.elbo)} {fitted.elbo.isfinite().all()}")
            found[name] = ends
    found["repeated"] = len(noise) - len(set(noise))  # of the two ranks
    return found


def lost() -> dict[str, Any]:
    """What the other rank says when one fails, and when one is killed; the last check."""
    told: dict[str, Any] = {}
    try:
        with joined() as ranks:
            if ranks.rank == 1:
                raise ZeroDivisionError("of one rank alone")
            ranks.sum(torch.ones(()))
    except (RankError, ZeroDivisionError) as error:
        told["failed"] = f"{type(error).__name__}: {error}"
    return told


def hung() -> dict[str, Any]:
    """What the others say of a rank that does not come, and whom they take for it."""
    os.environ["RLAI_RANK_SECONDS"] = "soon"
    told: dict[str, Any] = {}
    try:
        with joined():
            pass
    except ValueError as error:
        told["refused"] = str(error)
    os.environ["RLAI_RANK_SECONDS"] = "4"
    last = int(os.environ["WORLD_SIZE"]) - 1
    began = time.monotonic()
    try:
        with joined() as ranks:
            if ranks.rank == last:
                time.sleep(30)
            else:
                time.sleep(2 * ranks.rank)  # whoever comes first gives up first
                ranks.sum(torch.ones(()))
    except RankError as error:
        told |= {"said": str(error), "ranks": error.ranks, "seconds": time.monotonic() - began}
    return told


def killed(folder: str) -> dict[str, Any]:
    """A fit during which rank 1 is killed."""

    def kill(step: int, _: float) -> None:
        if step == 9 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)

    policy = CategoricalPolicy(tabular().state_space, 3, horizon=5).double()
    began = time.monotonic()
    try:
        rlai.fit(
            tabular(),
            policy,
            steps=10_000,
            estimator="score",
            num_trajectories=8,
            callback=kill,
            checkpoint=f"{folder}/kept.safetensors",
            checkpoint_seconds=1e-9,
            distributed=True,
        )
    except RankError as error:
        return {
            "error": " ".join([str(error), *error.__notes__]),
            "ranks": error.ranks,
            "seconds": time.monotonic() - began,
            "group": dist_.is_initialized(),
        }
    return {}
