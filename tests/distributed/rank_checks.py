"""What ranks compute in :mod:`test_two_ranks`: each function is run by both, and returns numbers as JSON holds them.

A single process's answers are taken by each rank beside, with the same noise.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from gymnasium.spaces import Box
from problems import random_mdp
from torch import Tensor, nn

import rl_as_inference as rlai
from rl_as_inference import exact
from rl_as_inference.critics import LearnedTable, QEnsemble, SoftQ, SoftV
from rl_as_inference.distributed import ALONE, Ranks, joined
from rl_as_inference.guides import CategoricalPolicy, amortized_policy
from rl_as_inference.objectives import Projection
from rl_as_inference.whole_noise import whole_noise

F64 = torch.float64
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
