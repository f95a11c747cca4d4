"""Runs looked at again: what a folder holds, as the objects that it was written from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from rl_as_inference.agents import Learner
from rl_as_inference.agents.checkpoint import MadeOtherwiseError
from rl_as_inference.agents.curves import CurveRow, curve_frame, read_curve
from rl_as_inference.agents.logbook import BEST, CHECKPOINT, evaluation_seed
from rl_as_inference.agents.made_again import make_agent
from rl_as_inference.arguments import checked
from rl_as_inference.arviz_data import PosteriorData
from rl_as_inference.checkpoints import load_policy
from rl_as_inference.compare import Comparison, GradientComparison
from rl_as_inference.data_frames import Frame, frame
from rl_as_inference.guides import amortized_policy
from rl_as_inference.inspect import load_posterior
from rl_as_inference.nouns import EnvironmentLike, LearnedSoftValue, Policy, Process
from rl_as_inference.problems import NamedEnvironment, load_environment, load_problem
from rl_as_inference.processes import GymnasiumProcess
from rl_as_inference.records import RECORD, RunRecord

__all__ = ["Run", "load_run"]

R = TypeVar("R")

_POLICY, _COMPARISON, _DRAWS = "policy.safetensors", "comparison.json", "posterior.nc"
_CURVE, _HISTORY, _GRADIENTS = "curve.csv", "history.json", "gradients.json"
_NUM_ENVS = 10


@dataclass(frozen=True)
class Run:
    """What a run was; what it has none of is None."""

    folder: Path
    record: RunRecord
    """What was run: ``run.json``."""
    policy: Policy
    """The trained guide, or the learner's; the first seed's, of several."""
    problem_changed: bool
    """Whether the problem's file has changed since the run began."""
    agent: Learner | None
    """The learner of a run of ``train``, at its last checkpoint, or at the best evaluation."""
    comparison: Comparison | None
    """What a run of ``compare`` wrote."""
    _process: Process | None

    @cached_property
    def process(self) -> Process:
        """The problem; of a learner's run at the temperature that it reached, and an environment as a simulator."""
        if self._process is not None:
            return self._process
        assert self.agent is not None
        agent = self.agent
        # Algorithms without entropy have no temperature; then the problem's own stands, or 1.
        temperature = agent.temperatures[0] if agent.temperatures[0] > 0 else None
        if agent.process is not None:
            return agent.process if temperature is None else agent.process.at_temperature(temperature)
        simulator: Any = GymnasiumProcess(
            agent.arena.source,
            num_envs=_NUM_ENVS,
            discount=agent.discount,
            temperature=temperature,
            seed=evaluation_seed(agent.seed),
            statistics=_statistics_of_first_seed(agent),
            normalization=agent.arena.normalization,
            action_masks=agent.task.masks is not None,
            **agent.arena.env_kwargs,
        )
        return simulator

    @property
    def critic(self) -> LearnedSoftValue | None:
        """The learner's soft value; None where there is none, or its values are not of the ELBO."""
        critic = None if self.agent is None else self.agent.critic
        return critic if isinstance(critic, LearnedSoftValue) and critic.objective == "maxent" else None

    @cached_property
    def curve(self) -> list[CurveRow] | None:
        """Every evaluation of a run of ``train``."""
        return read_curve(self.folder / _CURVE, 2**63) if self.record.command == "train" else None

    @cached_property
    def elbo(self) -> torch.Tensor | None:
        """The ELBO before each step of a run of ``fit`` or ``compare``, ``(steps,)`` in nats: ``FitResult.elbo``."""
        if self.record.command == "train":
            return None
        self.record.check_file(self.folder, _HISTORY)
        return _read(self.folder / _HISTORY, lambda values: torch.tensor(values, dtype=torch.float64))

    @cached_property
    def gradients(self) -> GradientComparison | None:
        """What a run of ``compare --gradients`` measured."""
        path = self.folder / _GRADIENTS
        if not path.exists():
            return None
        self.record.check_file(self.folder, _GRADIENTS)
        return _read(path, GradientComparison.from_dict)

    def to_frame(self) -> Frame:
        """Returns how the run went: of ``train`` its evaluations, else the ELBO before each step.

        See :mod:`rl_as_inference.data_frames`.
        """
        if self.curve is not None:
            return curve_frame(self.curve)
        assert self.elbo is not None
        return frame({"step": range(len(self.elbo)), "elbo": self.elbo})

    @cached_property
    def data(self) -> PosteriorData | None:
        """The posterior's draws that the run wrote, as ArviZ data.

        Raises:
            ValueError: if the file is damaged.
        """
        path = self.folder / _DRAWS
        return load_posterior(path) if path.exists() else None


@checked
def load_run(
    folder: str | Path,
    *,
    env: EnvironmentLike | None = None,
    device: torch.device | str | None = None,
    trust: bool = False,
    best: bool = False,
) -> Run:
    """Returns what the run in ``folder`` was, whether ``rlai`` wrote it or :func:`rl_as_inference.agents.train`.

    Args:
        folder: that ``rlai compare``, ``rlai fit`` or ``rlai train`` wrote.
        env: of a run of ``train``, in place of an environment that cannot be found by name.
        device: of the learner; by default the run's, or the CPU where there is no GPU.
        trust: run the problem's Python file though it is not the one recorded here: it has changed since the run
            began, or came with a run from elsewhere. Opening a run runs that file: see "Trust" in
            ``docs/command-line.md``.
        best: of a run of ``train``, the agent of its best evaluation (``keep_best=True``) instead of the last one.

    Raises:
        ValueError: if the folder is not a run's, something in it is damaged or missing, or the problem's file has
            changed, is gone, or comes from elsewhere and is not said to be trusted.

    Example:
        >>> import tempfile
        >>> from rl_as_inference.agents import SoftActorCritic, train
        >>> agent = SoftActorCritic("Pendulum-v1", hidden_sizes=(8,), batch_size=8, learning_starts=20)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     training = train(agent, 30, folder, evaluate_episodes=1)
        ...     run = load_run(folder)
        >>> run.record.problem, run.agent.num_steps, run.process.horizon, run.comparison
        ('Pendulum-v1', 30, 200, None)
    """
    if not isinstance(folder, str | Path):
        raise ValueError(f"folder must be the path of a run's folder, got {folder!r}")
    folder = Path(folder)
    record = RunRecord.read(folder, commands=("compare", "fit", "train"))
    if record.command == "train":
        return _load_agent(folder, record, env, device, trust, BEST if best else CHECKPOINT)
    if best:
        raise ValueError(f"best is for runs of train, and the run in {str(folder)!r} is of {record.command}")
    if env is not None:
        raise ValueError(f"env is for runs of train, and the run in {str(folder)!r} is of {record.command}")
    return _load_guide(folder, record, trust)


def _load_guide(folder: Path, record: RunRecord, trust: bool) -> Run:
    problem, changed = record.find_problem(folder, trust=trust)
    common = {name: record.setting(name) for name in ("horizon", "discount", "temperature")}
    sizes = record.setting("hidden_sizes")
    process = load_problem(problem, dict(record.options), **common)
    try:
        policy = amortized_policy(process, hidden_sizes=tuple(int(size) for size in sizes))
    except TypeError as error:
        raise _damaged(folder / RECORD, f"its hidden_sizes are {sizes!r}") from error
    try:
        load_policy(policy, folder / _POLICY)
    except ValueError as error:
        raise _damaged(folder / _POLICY, str(error).removeprefix("path: ")) from error
    record.check_file(folder, _COMPARISON)
    comparison = _read(folder / _COMPARISON, Comparison.from_dict) if record.command == "compare" else None
    return Run(folder, record, policy, changed, None, comparison, process)


def _read(path: Path, take: Callable[[Any], R]) -> R:
    """Returns what ``take`` makes of a file's JSON."""
    try:
        return take(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(path, error) from error


def _load_agent(
    folder: Path,
    record: RunRecord,
    env: EnvironmentLike | None,
    device: torch.device | str | None,
    trust: bool,
    file: str,
) -> Run:
    if file == BEST and not (folder / BEST).is_file():
        raise ValueError(
            f"RUN: {str(folder)!r} has no {BEST}, which rlai train --keep-best writes (keep_best=True in Python); "
            f"leave best out for the agent as it ended"
        )
    if not (folder / file).is_file():
        raise ValueError(f"RUN: {str(folder)!r} has no {CHECKPOINT} yet; go on with rlai train --out {folder} --resume")
    changed = False
    if env is None:
        problem, changed = record.find_problem(folder, trust=trust)
        made = load_environment(problem, dict(record.options))
    else:
        made = NamedEnvironment(env, dict(record.options) if isinstance(env, str) else {})
    if device is None and not torch.cuda.is_available():
        device = "cpu"
    agent = make_agent(record, *made, device=device, compile=False)
    try:
        agent.restore(folder / file)
    except MadeOtherwiseError as error:
        agent.close()
        what = "env does not fit" if env is not None else "RUN: the problem as it is now does not fit"
        told = str(error).removeprefix("path: ").rpartition(";")[0]
        raise ValueError(f"{what} the run in {str(folder)!r}: {told}; give the one it learned in") from error
    except ValueError as error:
        agent.close()
        raise _damaged(folder / file, str(error).removeprefix("path: ")) from error
    return Run(folder, record, agent.policy, changed, agent, None, None)


def _statistics_of_first_seed(agent: Learner) -> dict[str, np.ndarray[Any, Any]]:
    """Returns the running statistics that the first seed's policy has learned under."""
    own = {"batch", *(str(index) for index in range(agent.num_envs))}
    return {name: value for name, value in agent.envs.statistics().items() if name.partition("/")[0] in own}


def _damaged(path: Path, cause: object) -> ValueError:
    return ValueError(f"RUN: {str(path)!r} is damaged ({cause}); run it again with --overwrite")
