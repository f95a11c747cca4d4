"""Which policies keep several solutions alive?

Four goals of equal worth: a point may go to any of them, and the maximum-entropy optimum goes to all
alike. Soft Q-learning's energy-based policy can do that, whether a Stein sampler draws from it or
uniform draws are resampled, and so can a mixture of Gaussians or a normalizing flow (which needs
``pip install 'rl-as-inference[flows]'``). A single Gaussian has one mode in every state, and where the
point starts it must choose.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor

import rl_as_inference as rlai

STEPS = 32_000
REACHED = 0.45
"""A trajectory has reached a goal if it ends this close to it."""


def problem() -> Any:
    """Returns the process: a goal is two steps away, so that the first one decides."""
    return rlai.models.point_mass(horizon=8, speed=0.7, temperature=0.2)


def learners(steps: int, *, compile: bool, seed: int = 0) -> dict[str, Callable[[Any], Any]]:
    """Returns what makes each learner for a process."""
    common = {
        "num_envs": 8,
        "updates_per_step": 0.25,
        "hidden_sizes": (64, 64),
        "batch_size": 128,
        "learning_starts": min(1_000, steps // 2),
        "learning_rate": 1e-3,
        "target_average": 0.02,
        "discount": 0.9,
        "compile": compile,
        "seed": seed,
    }
    return {
        "soft Q-learning, Stein sampler": lambda mdp: rlai.SoftQLearning(mdp, **common),
        "soft Q-learning, resampling": lambda mdp: rlai.SoftQLearning(mdp, sampler="resampling", **common),
        "soft actor-critic, mixture of 8": lambda mdp: rlai.SoftActorCritic(mdp, policy_components=8, **common),
        "soft actor-critic, flow": lambda mdp: rlai.SoftActorCritic(mdp, policy=flow(mdp, seed), **common),
        "soft actor-critic, one Gaussian": lambda mdp: rlai.SoftActorCritic(mdp, **common),
    }


def flow(mdp: Any, seed: int) -> Any:
    """Returns a normalizing flow, with networks of the size of the others."""
    torch.manual_seed(seed)
    return rlai.guides.FlowPolicy(mdp.state_space, 2, horizon=mdp.horizon, hidden_sizes=(64, 64), activation="relu")


def shares(mdp: Any, states: Tensor) -> Tensor:
    """Returns the share of trajectories that end at each goal, ``(num_goals,)``."""
    near: Tensor = (states[-1][:, None] - mdp.goals).norm(dim=-1) < REACHED
    return near.float().mean(0)


def main(quick: bool = False, picture: Path | None = None) -> None:
    steps, count = (400, 50) if quick else (STEPS, 1_000)
    mdp = problem()
    print(f"{'share of trajectories that reach':<32}   east   north    west   south")
    figure, axes = plt.subplots(1, 5, figsize=(17, 3.9), sharex=True, sharey=True, layout="constrained")
    for ax, (name, make) in zip(axes, learners(steps, compile=not quick).items(), strict=True):
        agent = make(mdp)
        agent.learn(steps)
        torch.manual_seed(0)
        with torch.no_grad():
            draws = mdp.rollout(agent.policy, count)
        reached = shares(mdp, draws.states).tolist()
        print(f"{name:<32} {'  '.join(f'{share:6.1%}' for share in reached)}", flush=True)
        paths = draws.states[:, :100].cpu()
        ax.plot(paths[..., 0], paths[..., 1], color="tab:blue", alpha=0.25, linewidth=0.8)
        ax.scatter(*mdp.goals.T.cpu(), marker="*", s=160, color="tab:orange", zorder=3)
        ax.set(title=name, xlabel="x (length)", aspect="equal", xlim=(-1.7, 1.7), ylim=(-1.7, 1.7))
    axes[0].set_ylabel("y (length)")
    if picture is not None:
        figure.savefig(picture, dpi=130)
        print(f"written to {picture}")
    plt.close(figure)


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], picture=Path("multi_goal.png"))
