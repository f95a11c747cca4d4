"""Small learners that several test files use, and ways to look into them."""

from typing import Any

import gymnasium
import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from rl_as_inference import MarkovDecisionProcess, TabularMDP
from rl_as_inference.agents import MPO, SoftActorCritic, SoftQLearning
from rl_as_inference.agents.expectation import expectation
from rl_as_inference.agents.functional import Networks
from rl_as_inference.agents.parameters import FlatParameters
from rl_as_inference.agents.replay import Batch
from rl_as_inference.checkpoints import load_tensors

F64 = torch.float64

SMALL: dict[str, Any] = {"hidden_sizes": (8,), "batch_size": 6, "learning_starts": 20, "buffer_size": 500}


EASY: dict[str, Any] = {
    "dtype": F64,
    "hidden_sizes": (16,),
    "batch_size": 32,
    "learning_rate": 0.01,
    "learning_starts": 100,
    "num_envs": 4,
    "target_average": 0.1,
    "buffer_size": 2000,
    "updates_per_step": 0.5,
}
"""What learns the small process below in half a thousand updates."""


def sac(env: Any = "Pendulum-v1", **options: Any) -> SoftActorCritic:
    return SoftActorCritic(env, **{**SMALL, "compile": False, **options})


def sql(env: Any = "CartPole-v1", **options: Any) -> SoftQLearning:
    return SoftQLearning(env, **{**SMALL, "compile": False, **options})


def mpo(env: Any = "Pendulum-v1", **options: Any) -> MPO:
    return MPO(env, **{**SMALL, "compile": False, **options})


def stirred(agent: Any, seed: int = 0, size: float = 0.4) -> Any:
    """The agent with every parameter and target moved at random, so that nothing is at its start."""
    generator = torch.Generator().manual_seed(seed)
    for name in ("parameters", "targets"):
        tensor = agent._update.tensors[name]
        tensor += size * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
    return agent


def constant(module: torch.nn.Module, *biases: tuple[str, Any]) -> None:
    """Makes a module's outputs the same everywhere: all parameters 0 but these."""
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.zero_()
        for name, value in biases:
            parameters[name].copy_(torch.as_tensor(value))


def networks(agent: Any, modules: Any = None) -> Networks:
    modules = agent.modules[0] if modules is None else modules
    return Networks(agent.modules[0], FlatParameters.tree(modules))


def targets(agent: Any) -> Networks:
    return Networks(agent.modules[0], agent._update.target_layout.unflatten(agent._update.tensors["targets"][0]))


def set_targets(agent: Any) -> None:
    """Makes the target networks equal to the present ones."""
    layout, tensors = agent._update.layout, agent._update.tensors
    tensors["targets"].copy_(torch.cat([tensors["parameters"][:, layout.spans[n]] for n in agent.targeted], 1))


def actor(agent: Any, own: Networks, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The actor's loss in these states, and the policy's entropy and soft value in each of them."""
    algorithm = agent.algorithm
    batch = batch_of(agent, torch.zeros(1, len(state)))._replace(state=state)
    loss = algorithm.loss(own, own, batch)[1]["actor_loss"]
    pi = expectation(agent.task, own("policy", state, 0), state, 0, algorithm.acting)
    value = pi.mean(algorithm.least(own, pi) - own("temperature") * pi.relative)
    return loss, pi.entropy, value


def checkpoint(agent: Any, path: Any) -> dict[str, Tensor]:
    """Every tensor that learning goes on from, as the agent saves them."""
    agent.save(path)
    return load_tensors(path)[0]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two checkpoints are equal bit for bit."""
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype and one[n].numpy().tobytes() == other[n].numpy().tobytes() for n in one
    )


def batch_of(
    agent: Any, rewards: Any, *, terminated: Any = 0.0, alive: Any = 1.0, action: Any = None, seed: int = 0
) -> Batch:
    """A batch with these rewards ``(n, B)`` and random states."""
    rewards = torch.as_tensor(rewards, dtype=agent.dtype)
    shape = tuple(agent.state_space.shape or ())
    generator = torch.Generator().manual_seed(seed)

    def states(*lead: int) -> Tensor:
        if isinstance(agent.state_space, gymnasium.spaces.Discrete):
            return torch.randint(int(agent.state_space.n), lead, generator=generator)
        return torch.randn(*lead, *shape, generator=generator, dtype=agent.dtype)

    if action is None:
        size = rewards.shape[1]
        action = (
            torch.zeros(size, dtype=torch.int64)
            if agent.is_discrete
            else torch.rand(size, *agent.action_space.shape, generator=generator, dtype=agent.dtype) - 0.5
        )
    like = torch.ones_like(rewards)
    return Batch(
        state=states(rewards.shape[1]),
        action=torch.as_tensor(action),
        rewards=rewards,
        next_states=states(*rewards.shape),
        alive=like * torch.as_tensor(alive, dtype=agent.dtype),
        terminated=like * torch.as_tensor(terminated, dtype=agent.dtype),
    )


class Line(gymnasium.Env):
    """A walk on a line that counts its steps; what it observes and rewards can be told in advance."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))

    def __init__(self, *, ends_at: int | None = None, fails_at: int | None = None, field: str = "observation"):
        self.action_space = gymnasium.spaces.Box(-1, 1, (1,))
        self.ends_at, self.fails_at, self.field, self.total = ends_at, fails_at, field, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place, self.time = float(self.np_random.normal()), 0
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        self.time, self.total = self.time + 1, self.total + 1
        self.place += 0.1 * float(action[0])
        reward, observation = -abs(self.place), self._observation()
        if self.total == self.fails_at:
            reward, observation = (np.nan, observation) if self.field == "reward" else (reward, observation * np.inf)
        return observation, reward, self.time == self.ends_at, False, {}

    def _observation(self) -> Any:
        return np.array([self.place, 0.1 * self.time], dtype=np.float32)


def small_mdp(**options: Any) -> TabularMDP:
    """Four states, of which the last is terminal, and three actions; one action is impossible in one state."""
    successor = torch.tensor([[1, 2, 0], [2, 3, 1], [3, 0, 2], [3, 3, 3]])
    transition = torch.zeros(4, 3, 4, dtype=F64).scatter_(2, successor[..., None], 1.0)
    reward = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    prior = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.4, 0.0], [1 / 3] * 3, [1 / 3] * 3], dtype=F64)
    return TabularMDP(
        transition,
        reward,
        torch.tensor([0.4, 0.3, 0.3, 0.0], dtype=F64),
        **{
            "discount": 0.8,
            "temperature": 0.5,
            "action_prior": prior,
            "terminal": torch.tensor([False, False, False, True]),
            **options,
        },
    )


class Wide(MarkovDecisionProcess):
    """Actions in a box of two units, with a prior of their own."""

    state_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))

    def __init__(self, high):
        super().__init__(horizon=5)
        self.action_space = gymnasium.spaces.Box(-1, high, (1,))

    def initial(self):
        return dist.Normal(torch.zeros(1), 1.0).to_event(1)

    def transition(self, state, action):
        return dist.Normal(0.5 * state + action, 0.1).to_event(1)

    def reward(self, state, action, next_state):
        return -next_state.square().sum(-1)

    def prior(self, state):
        return dist.Uniform(torch.zeros_like(state) - 1, torch.ones_like(state) * 0.5).to_event(1)
