"""Videos of a policy at work, through Gymnasium's own wrapper."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

from rl_as_inference.agents.evaluation import play
from rl_as_inference.agents.learner import Learner
from rl_as_inference.checks import check_count
from rl_as_inference.processes import MarkovDecisionProcess
from rl_as_inference.randomness import RandomStream
from rl_as_inference.turns import silenced
from rl_as_inference.whole_files import draft_folder

__all__ = ["check_videos", "record_videos"]


def check_videos(agent: Learner) -> None:
    """Says whether the agent's environment can be filmed on this machine, by drawing one picture.

    Raises:
        ValueError: if not, with the cause.
    """
    source, name = agent.arena.source, agent.envs.name
    if importlib.util.find_spec("moviepy") is None:
        raise ValueError("video: MoviePy is not installed; pip install 'rl-as-inference[video]'")
    if isinstance(source, str | EnvSpec):
        plain = gymnasium.make(source, disable_env_checker=True, **agent.arena.env_kwargs)
        modes = list(plain.metadata.get("render_modes", ()))
        plain.close()
        if "rgb_array" not in modes:
            raise ValueError(
                f"video: {name} has no render mode rgb_array (it has {', '.join(map(str, modes)) or 'none'}), so it "
                f"cannot be filmed"
            )
    elif isinstance(source, gymnasium.Env | VectorEnv | MarkovDecisionProcess) or not callable(source):
        raise ValueError(
            f"video: {name} is {type(source).__name__}, and films are made of an environment's id, or of a factory of "
            f"environments with render_mode='rgb_array'"
        )
    try:
        env = _renderable(agent)
        try:
            env.reset(seed=0)
            picture = env.render()
        finally:
            env.close()
    except Exception as error:  # of pygame, of OpenGL, of the environment's own
        raise ValueError(f"video: {name} cannot be drawn on this machine: {type(error).__name__}: {error}") from error
    if np.ndim(picture) != 3:  # type: ignore[arg-type]
        raise ValueError(f"video: {name} draws {type(picture).__name__}, not pictures; set render_mode='rgb_array'")


def record_videos(
    agent: Learner,
    folder: str | Path,
    num_episodes: int = 1,
    *,
    seed: int = 10_000,
    deterministic: bool = True,
) -> list[Path]:
    """Films whole episodes of ``agent.policy`` into ``folder``, and returns the files.

    Files of the same names are replaced. Several seeds' learners show the first.

    Args:
        agent: a learner made with an environment's id, or with a factory of environments that have
            ``render_mode="rgb_array"``.
        folder: it is made if need be.
        num_episodes: ≥ 1; one file each, ``episode-0.mp4`` and so on.
        seed: of the environment and of the policy's draws.
        deterministic: the policy's mode, else draws.

    Raises:
        ValueError: if the environment cannot be filmed, or the folder not be written to.
    """
    check_count("num_episodes", num_episodes)
    check_videos(agent)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"folder: cannot make {str(folder)!r}: {error.strerror}") from error
    with draft_folder(folder) as temporary, silenced(".*Overwriting existing videos"):

        def filmed() -> gymnasium.Env[Any, Any]:
            return gymnasium.wrappers.RecordVideo(
                _renderable(agent),
                str(temporary),
                episode_trigger=lambda episode: episode < num_episodes,
                name_prefix="film",
            )

        envs = agent.arena.made_from(filmed, seed=seed)
        try:
            # The policy has learned under the wrappers' running statistics, and knows no others.
            agent.arena.carry_statistics(envs)
            with RandomStream(seed, agent.device), agent.threads():
                play(envs, agent.chooser(agent.policy, deterministic=deterministic), num_episodes)
        finally:
            envs.close()
        files = []
        for episode in range(num_episodes):
            files.append(folder / f"episode-{episode}.mp4")
            (temporary / f"film-episode-{episode}.mp4").replace(files[-1])
    return files


def _renderable(agent: Learner) -> gymnasium.Env[Any, Any]:
    source: Any = agent.arena.source
    if isinstance(source, str | EnvSpec):
        options = {**agent.arena.env_kwargs, "render_mode": "rgb_array"}
        return gymnasium.make(source, disable_env_checker=True, **options)
    made: gymnasium.Env[Any, Any] = source()
    return made
