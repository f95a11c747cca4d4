"""A learner's policy as a file that acts without this package: a ``torch.export`` program, or ONNX."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import gymnasium
import numpy as np
import torch
from gymnasium import wrappers
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

from rl_as_inference.agents.functional import log_probabilities
from rl_as_inference.agents.task import Task
from rl_as_inference.guides import EnergyBasedPolicy
from rl_as_inference.guides.modes import mode_of
from rl_as_inference.processes.action_masks import MaskBeside, MasksBeside
from rl_as_inference.processes.mdp import unvalidated
from rl_as_inference.processes.normalization import NormalizedObservation
from rl_as_inference.randomness import RandomStream
from rl_as_inference.spaces import first_of
from rl_as_inference.state_layout import is_image
from rl_as_inference.turns import silenced
from rl_as_inference.whole_files import written_whole

if TYPE_CHECKING:
    from rl_as_inference.agents.learner import Learner

__all__ = ["SUFFIXES", "Exported", "Format", "export_policy"]

Format = Literal["torch", "onnx"]
SUFFIXES: dict[Format, str] = {"torch": ".pt2", "onnx": ".onnx"}
"""How files of each format end."""

_TRIED = 64
"""Observations on which the file and the agent must act alike."""
_EPISODES = 4
_TOLERANCE = 1e-5
"""Of the width of the box: how far apart continuous actions may be."""

_TRANSPARENT = (
    wrappers.TimeLimit,
    wrappers.OrderEnforcing,
    wrappers.PassiveEnvChecker,
    wrappers.RecordEpisodeStatistics,
    wrappers.NormalizeReward,
    wrappers.TransformReward,
    wrappers.TransformAction,
    wrappers.vector.NormalizeReward,
    wrappers.vector.RecordEpisodeStatistics,
    wrappers.vector.TransformReward,
    wrappers.vector.TransformAction,
)
"""Wrappers that leave observations as they are."""


_NORMALIZING = (wrappers.NormalizeObservation, NormalizedObservation, wrappers.vector.NormalizeObservation)

Array = np.ndarray[Any, Any]


class Exported(NamedTuple):
    """What :meth:`Learner.export` wrote."""

    path: Path
    format: Format
    num_compared: int
    """Observations on which its actions were compared with the agent's."""
    difference: float
    """The largest difference found, in the environment's units; 0 where actions are integers."""


class _Deployed(nn.Module):
    """Observations of the environment to its actions, the best that the policy knows, ``(batch, ...)``."""

    mean: Tensor
    deviation: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self, task: Task, policy: nn.Module, first: int, actions: Box | Discrete, normalizer: _Normalizer | None
    ) -> None:
        super().__init__()
        self.task, self.policy, self.first, self.own = task, policy, first, actions
        self.kind = _dtype_of(actions)  # not in the forward pass, where PyTorch before 2.10 trips over its tensor
        self.scales = normalizer is not None
        if normalizer is not None:
            self.register_buffer("mean", torch.as_tensor(normalizer.mean, dtype=torch.float64))
            self.register_buffer("deviation", torch.as_tensor(normalizer.deviation, dtype=torch.float64))
        if isinstance(actions, Box):
            self.register_buffer("low", torch.as_tensor(actions.low.reshape(-1), dtype=torch.float64))
            self.register_buffer("high", torch.as_tensor(actions.high.reshape(-1), dtype=torch.float64))

    def forward(self, observation: Tensor, t: Tensor | None = None) -> Tensor:
        state = observation
        if self.scales:
            state = ((state.double() - self.mean) / self.deviation).float()  # as the wrapper: double, then rounded
        state = (state - self.first if self.first else state).to(self.task.state_dtype)
        chosen = self.policy(state, 0 if t is None else t)
        if isinstance(self.own, Discrete):
            action = log_probabilities(chosen, self.task.num_actions).argmax(-1) + int(self.own.start)
            return action.to(self.kind)
        share = mode_of(chosen).double()
        action = self.low * (0.5 - 0.5 * share) + self.high * (0.5 + 0.5 * share)
        action = action if self.kind.is_floating_point else action.round()
        return action.to(self.kind).unflatten(-1, self.own.shape)


def export_policy(
    agent: Learner, path: str | Path, *, format: Format | None = None, seed_index: int = 0, normalization: bool = True
) -> Exported:
    """Writes one seed's policy; see :meth:`Learner.export`."""
    path = Path(path)
    format = _checked_format(format, path)
    if isinstance(seed_index, bool) or not isinstance(seed_index, int) or not 0 <= seed_index < agent.num_seeds:
        raise ValueError(f"seed_index must be in 0 … {agent.num_seeds - 1}, the agent's seeds, got {seed_index!r}")
    policy, actions = _policy(agent, seed_index), agent.envs.own_action_space
    if not isinstance(actions, Box | Discrete):
        raise ValueError(
            f"export: actions must be Box or Discrete, and these are {actions}; deploy the agent itself (load, act)"
        )
    normalizer = _Normalizer.of(agent, seed_index) if normalization else None
    first = first_of(_observation_space(agent.envs.outermost))
    task = dataclasses.replace(agent.task, device=torch.device("cpu"))
    # A copy, whose parameters are no longer parts of one long vector.
    module = _Deployed(task, copy.deepcopy(policy).to("cpu"), first, actions, normalizer).eval().requires_grad_(False)
    states = _states(agent, seed_index)
    given = states + first if isinstance(task.state_space, Discrete) else states
    inputs = [torch.from_numpy(given if normalizer is None else normalizer.undone(given))]
    if task.horizon is not None:
        inputs.append(torch.arange(len(given)) % task.horizon)
    with written_whole(path) as temporary, unvalidated(), torch.no_grad():
        program = _program(module, [each[:2] for each in inputs], type(policy).__name__)
        if format == "torch":
            torch.export.save(program, temporary)
            play: Callable[..., Any] = torch.export.load(temporary).module()
        else:
            play = _written_onnx(program, temporary, timed=len(inputs) > 1)
        difference = _compared(agent, seed_index, play, states, inputs)
    return Exported(path, format, len(given), difference)


def _checked_format(format: Any, path: Path) -> Format:
    if format is None:
        found: list[Format] = [name for name, suffix in SUFFIXES.items() if path.suffix == suffix]
        if not found:
            raise ValueError(
                f"format: {str(path)!r} ends in none of {', '.join(SUFFIXES.values())}; say 'torch' or 'onnx'"
            )
        return found[0]
    if format not in get_args(Format):
        raise ValueError(f"format must be 'torch' or 'onnx', got {format!r}")
    checked: Format = format
    return checked


def _policy(agent: Learner, seed_index: int) -> nn.Module:
    """Returns a seed's policy.

    Raises:
        ValueError: if it is none that a file can hold.
    """
    policy = agent.policies[seed_index]
    if agent.task.window is not None:
        raise ValueError(
            "export: with history or frame_stack above 1, or memory, the policy acts on what it saw before, and an "
            "exported one sees one observation; deploy the agent itself (load, act), or learn without where one tells "
            "the state"
        )
    if isinstance(policy, EnergyBasedPolicy):
        raise ValueError(
            "export: soft Q-learning's best continuous action is the best of random draws, which a file cannot repeat; "
            "learn with SoftActorCritic or MPO"
        )
    if not isinstance(policy, nn.Module):
        raise ValueError(
            f"export: {type(policy).__name__} plans in a model, and a file holds one network; make the agent with "
            f"planner='policy'"
        )
    return policy


def _observation_space(env: Any) -> gymnasium.Space[Any]:
    space: gymnasium.Space[Any] = env.single_observation_space if isinstance(env, VectorEnv) else env.observation_space
    return space


def _states(agent: Learner, seed_index: int) -> Array:
    """Returns states in the agent's units, ``(n, *state)``: the latest of replay; if it is empty, of new episodes."""
    states: Array = agent.replay.latest_states(_TRIED)[:_TRIED].cpu().numpy()
    if len(states) < 2:  # of an agent that has learned nothing yet, or was kept without its replay
        states = _played(agent, seed_index)
    return states.astype(np.int64 if isinstance(agent.task.state_space, Discrete) else np.float32)


def _played(agent: Learner, seed_index: int) -> Array:
    """Returns the states that a seed's policy comes through in the first steps of a few episodes."""
    if isinstance(agent.arena.source, gymnasium.Env | VectorEnv):  # of which there is but one, that is learned in
        now = agent.envs.reset() if agent.envs.state is None else agent.envs.state
        return np.concatenate([now, now])
    choose = agent.chooser(agent.policies[seed_index], deterministic=True)
    envs = agent.arena.another(_EPISODES, seed=0)
    try:
        agent.arena.carry_statistics(envs, seed_index)
        with RandomStream(0, agent.device):
            states, times = [envs.reset()], np.zeros(_EPISODES, int)
            for _ in range(_TRIED // _EPISODES - 1):
                step = envs.step(choose(states[-1], times))
                times = np.where(step.terminated | step.truncated, 0, times + step.valid)
                states.append(step.state)
    finally:
        envs.close()
    return np.concatenate(states)


def _program(module: nn.Module, examples: list[Tensor], kind: str) -> Any:
    """Returns the module as a program of any number of observations.

    Raises:
        ValueError: if it cannot be taken down, as a policy of the user's may not.
    """
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} for _ in examples)
    try:
        return torch.export.export(module, tuple(examples), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # the policy may be the user's own, and raises anything
        raise ValueError(
            f"export: {kind} cannot be taken down by torch.export ({error}); its forward must not branch on values"
        ) from error


def _written_onnx(program: Any, path: Path, *, timed: bool) -> Callable[..., Any]:
    """Writes the program as ONNX, and returns what plays the file.

    Raises:
        ImportError: without the packages.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - what torch.onnx writes with
    except ImportError as error:
        raise ImportError(
            f"export: ONNX needs onnx, onnxscript and onnxruntime ({error}): pip install 'rl-as-inference[onnx]'"
        ) from error
    names = ["observation", "t"] if timed else ["observation"]
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    try:
        exporter.setLevel(logging.ERROR)
        # Of the exporter's own parts; before PyTorch 2.10 they also print what they have rewritten.
        with silenced(), contextlib.redirect_stdout(io.StringIO()):
            torch.onnx.export(
                program,
                f=str(path),
                dynamo=True,
                external_data=False,
                input_names=names,
                output_names=["action"],
                verbose=False,
            )
    finally:
        exporter.setLevel(level)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda *inputs: session.run(None, dict(zip(names, (each.numpy() for each in inputs), strict=True)))[0]


def _compared(agent: Learner, seed_index: int, play: Callable[..., Any], states: Array, inputs: list[Tensor]) -> float:
    """Returns the largest difference between a file's actions and the agent's in states, of which inputs are the same.

    Raises:
        ValueError: if they are not the same.
    """
    times: Any = inputs[1].numpy() if len(inputs) > 1 else 0
    choose = agent.chooser(agent.policies[seed_index], deterministic=True)
    states = states.astype(np.uint8) if is_image(agent.task.state_space) else states
    wanted = np.asarray(agent.envs.environment_action(choose(states, times)))
    parts = [np.asarray(play(*(each[:1] for each in inputs))), np.asarray(play(*(each[1:] for each in inputs)))]
    found = np.concatenate(parts)  # one observation, then many
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        raise ValueError(
            f"export: the file gives actions {found.dtype} of shape {found.shape}, and the agent {wanted.dtype} of "
            f"shape {wanted.shape}; please report this"
        )
    difference = np.abs(found.astype(np.float64) - wanted.astype(np.float64))
    space = agent.envs.own_action_space
    width: Any = 1.0 if isinstance(space, Discrete) else space.high.astype(np.float64) - space.low  # type: ignore[attr-defined]
    apart = (difference > _TOLERANCE * width).reshape(len(found), -1).any(1)
    if apart.any():
        raise ValueError(
            f"export: the file acts otherwise than the agent on {int(apart.sum())} of {len(found)} observations, by up "
            f"to {difference.max():.3g}; a policy of the user's must not draw random numbers in its mode"
        )
    return float(difference.max())


class _Normalizer:
    """What ``gymnasium.wrappers.NormalizeObservation`` does to observations, by the statistics of one seed.

    Attributes:
        mean, deviation: float64, of an observation's shape.
    """

    def __init__(self, mean: Any, var: Any, epsilon: float) -> None:
        self.mean, self.deviation = mean, np.sqrt(var + epsilon)

    @classmethod
    def of(cls, agent: Learner, seed_index: int) -> _Normalizer | None:
        """Returns it; None where observations are not normalised.

        Raises:
            ValueError: if something else stands between it and the agent.
        """
        statistics = agent.envs.statistics()
        held = [name for name in statistics if name.endswith(".mean") and "Reward." not in name]
        if not held:
            return None
        layers = _layers(agent.envs.outermost)
        outside = list(itertools.takewhile(lambda layer: type(layer) not in _NORMALIZING, layers))
        changing = [type(layer).__name__ for layer in outside if not _leaves_observations(layer)]
        kinds = tuple(f"{kind.__name__}." for kind in _NORMALIZING)
        own = [name for name in held if name.split("/")[1].startswith(kinds)]
        changing += [type(layer).__name__ for layer in layers if type(layer) in _NORMALIZING][1:]
        if len(own) != len(held) or changing or len(outside) == len(layers):
            what = ", ".join(dict.fromkeys([*changing, *(name.split("/")[1] for name in held if name not in own)]))
            raise ValueError(
                f"export: observations are normalised by running statistics, and {what} stands between these and the "
                f"agent, or holds others; make gymnasium.wrappers.NormalizeObservation the outermost, or say "
                f"normalization=False (--no-normalization): the file then takes what the agent sees"
            )
        index = str(seed_index * agent.num_envs)
        name = next((name for name in own if name.startswith(f"{index}/")), own[0]).removesuffix(".mean")
        layer = layers[len(outside)]
        mean, var = statistics[f"{name}.mean"], statistics[f"{name}.var"]
        if isinstance(layer, NormalizedObservation):  # which leaves some columns of rows in parts as they are
            mean, var = np.where(layer.numbers, mean, 0.0), np.where(layer.numbers, var, 1.0 - layer.epsilon)
        return cls(mean, var, float(layer.epsilon))

    def undone(self, observations: Array) -> Array:
        """Returns observations as they were before, float32."""
        raw: Array = observations.astype(np.float64) * self.deviation + self.mean
        return raw.astype(np.float32)


def _layers(env: Any) -> list[Any]:
    """Returns an environment's wrappers, outermost first."""
    layers = []
    while isinstance(env, gymnasium.Wrapper | gymnasium.vector.VectorWrapper):
        layers.append(env)
        env = env.env
    return layers


def _leaves_observations(layer: Any) -> bool:
    """Whether a wrapper is known to leave observations as they are."""
    changes = gymnasium.ObservationWrapper | MaskBeside | MasksBeside
    own = type(layer).__module__.startswith("rl_as_inference.") and not isinstance(layer, changes)
    return own or isinstance(layer, _TRANSPARENT)


def _dtype_of(space: gymnasium.Space[Any]) -> torch.dtype:
    return torch.from_numpy(np.zeros(0, space.dtype)).dtype
