"""Random problems that several test files use."""

import warnings
from typing import Any

import gymnasium
import torch
from hypothesis import strategies as st

from rl_as_inference import TabularMDP


def newest(name: str) -> str:
    """The newest version of a Gymnasium environment that is installed."""
    versions = [key for key in gymnasium.registry if key.startswith(f"{name}-v")]
    return max(versions, key=lambda key: int(key.rsplit("-v", 1)[1]))


TAXI = newest("Taxi")


def random_mdp(
    seed: int,
    *,
    num_states: int = 3,
    num_actions: int = 2,
    horizon: int | None = 3,
    discount: float = 1.0,
    temperature: float = 0.7,
    terminal: bool = False,
    reward_on_successor: bool = False,
    uniform_prior: bool = False,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> TabularMDP:
    """A dense random process; every fifth transition is impossible."""
    g = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=g, dtype=torch.float64)

    transition = rand(num_states, num_actions, num_states) * (rand(num_states, num_actions, num_states) > 0.2)
    transition[..., 0] += 0.05
    transition /= transition.sum(-1, keepdim=True)
    shape = (num_states, num_actions, num_states) if reward_on_successor else (num_states, num_actions)
    reward = torch.randn(*shape, generator=g, dtype=torch.float64)
    initial = rand(num_states) + 0.1
    prior = rand(num_states, num_actions) + 0.1
    ends = torch.zeros(num_states, dtype=torch.bool)
    if terminal:
        ends[-1] = True
    with warnings.catch_warnings():  # that what terminal states would pay is silent is just what is tested
        warnings.filterwarnings("ignore", message="reward of tabular")
        return TabularMDP(
            transition.to(dtype),
            reward.to(dtype),
            (initial / initial.sum()).to(dtype),
            horizon=horizon,
            discount=discount,
            temperature=temperature,
            action_prior=None if uniform_prior else (prior / prior.sum(-1, keepdim=True)).to(dtype),
            terminal=ends if terminal else None,
            **options,
        )


small_mdps = st.builds(
    random_mdp,
    st.integers(0, 10_000),
    num_states=st.integers(1, 3),
    num_actions=st.integers(1, 2),
    horizon=st.integers(1, 3),
    discount=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    temperature=st.sampled_from([0.2, 1.0, 5.0]),
    terminal=st.booleans(),
    reward_on_successor=st.booleans(),
    uniform_prior=st.booleans(),
)
