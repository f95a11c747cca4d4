"""A Pyro program as a process: rollouts by running it."""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import gymnasium
import numpy as np
import pyro
import torch
from pyro.poutine.condition_messenger import ConditionMessenger
from pyro.poutine.do_messenger import DoMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from rl_as_inference.arguments import still_wanted
from rl_as_inference.checks import check_at_least
from rl_as_inference.histories import History
from rl_as_inference.host import in_turn
from rl_as_inference.nouns import Policy, Problem, Process, is_process
from rl_as_inference.processes.recorded_runs import NO_ACTIONS, RecordedRun, join_runs, read_run, seen_state
from rl_as_inference.program.recording import log_prob_of, prior_of, record
from rl_as_inference.program.sites import ACTION, CONDITION, REWARD, is_action, is_observation, is_reward, step_of
from rl_as_inference.trajectories import Trajectories

__all__ = ["ProgramProcess", "as_process"]

_RARE = 200
"""Runs after which a site that has not occurred is said to be none of the program's."""

_OF_BATCHES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)
"""What a program may raise that was written for one trajectory and is run for many."""


def as_process(problem: Problem) -> Process:
    """Returns a process as it is, and a Pyro program as a :class:`ProgramProcess`.

    Raises:
        ValueError: if it is neither, or wants arguments, as a policy does.
    """
    if is_process(problem):
        return problem
    if not callable(problem):
        raise ValueError(f"process must be a process or a Pyro program (a callable), got {type(problem).__name__}")
    if wanted := still_wanted(problem):
        raise ValueError(
            f"process must be a process or a Pyro program without arguments, and {_name_of(problem)} wants "
            f"{' and '.join(wanted)}; a policy (state, t) comes second, after the process, and a program has its "
            f"arguments bound by functools.partial"
        )
    return ProgramProcess(problem)


class ProgramProcess:
    """Rollouts of a Pyro program, by running it inside a plate.

    Args:
        program: takes no arguments; its actions are drawn by :func:`rl_as_inference.act`, one a step.
        vectorized: whether one run in a plate of all trajectories serves; otherwise the program is
            run for one trajectory at a time. None tries, and turns to single runs if that fails (as
            it does where Python branches on a draw) or where a plate draws a subsample, which the
            trajectories of one run would share.
    """

    has_exact_answers = has_uniform_prior = False

    def __init__(self, program: Callable[[], Any], *, vectorized: bool | None = None) -> None:
        self.program = program
        self.vectorized = vectorized
        self.name = _name_of(program)
        self._sites: dict[int, list[set[str]]] = {}  # of the first run of so many actions; see RecordedRun

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.program(*args, **kwargs)

    @in_turn
    def rollout(
        self,
        policy: Policy | None,
        num_trajectories: int,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Trajectories:
        """Returns ``num_trajectories`` trajectories of ``policy``; None for the action prior.

        Trajectories of different lengths are filled up: masked out, staying in their last state. Random numbers come
        from the seed or the generator, if one is given (:func:`rl_as_inference.randomness.drawing`).

        Raises:
            ValueError: if the program has no actions, several a step, or states that are not tensors.
        """
        check_at_least("num_trajectories", num_trajectories)
        if self.vectorized is None and num_trajectories > 1:
            try:
                together = self._run(policy, num_trajectories)
            except _OF_BATCHES:
                # A single run will say what is wrong, unless it was the batch that failed.
                self.vectorized = False
            else:
                self.vectorized = True
                return self._joined([together])
        if self.vectorized:
            return self._joined([self._run(policy, num_trajectories)])
        return self._joined([self._run(policy, 1) for _ in range(num_trajectories)])

    def observed(self) -> dict[str, Tensor]:
        """Returns what the program is conditioned on, by site: ``obs=``, Pyro's handlers and :func:`given_return`."""
        seen = {
            msg["name"]: torch.as_tensor(msg["infer"].get(CONDITION, msg["value"]))
            for msg in self._sample_run
            if msg["is_observed"] and not site_is_subsample(msg) and not is_reward(msg)
        }
        return {name: value for name, value in seen.items() if value.numel()}  # a factor of one's own has no value

    def subsampled_plates(self) -> list[str]:
        """Returns the plates that draw a subsample; a run's log density is right on average; its exponential is not."""
        return _drawn_subsamples(self._sample_run)

    def check_sites(self, num_runs: int = 20) -> None:
        """Raises ValueError if sites change between runs, or a condition is on a site that does not occur."""
        self.rollout(None, num_runs)

    def conditions_never_met(self, policy: Policy | None, num_runs: int = 100) -> list[str]:
        """Returns the observed sites whose probability is zero in each of ``num_runs`` runs."""
        if self.is_vectorized():
            runs = [record(self.in_plate(num_runs), policy)]
        else:
            runs = [record(self.in_plate(1), policy) for _ in range(num_runs)]
        found = [
            [m["name"] for m in run if m["is_observed"] and bool(log_prob_of(m["fn"], m["value"]).isneginf().all())]
            for run in runs
        ]
        return [name for name in found[0] if all(name in names for names in found)]

    def _joined(self, runs: list[RecordedRun]) -> Trajectories:
        """Returns the trajectories of the runs, whose sites must be the same; a run that ends early may lack some."""
        # One run of many trajectories is compared with a second one.
        for run in runs if len(runs) > 1 or self._sites else (*runs, self._run(None, 1)):
            self._check_sites(run)
        conditioned = set(_conditioned(self.program))
        for _ in range(0 if self.vectorized else _RARE):  # a step that few episodes live to see
            if conditioned <= self._seen():
                break
            self._check_sites(self._run(None, 1))
        for name in sorted(conditioned):
            if name not in (seen := self._seen()):
                raise ValueError(
                    f"the program is conditioned on site {name!r}, which does not occur in it; its sites are "
                    f"{', '.join(sorted(seen, key=_naturally))}"
                )
        return join_runs(runs)

    def _seen(self) -> set[str]:
        return {name for sites in self._sites.values() for names in sites for name in names}

    def _check_sites(self, run: RecordedRun) -> None:
        """Compares a run's sites with those of an earlier one of as many actions, and of the one of most.

        What follows the last action may be missing, since an episode may end there.
        """
        own = len(run.rows)
        for length in {own, max(self._sites, default=own)} & self._sites.keys():
            known = self._sites[length]
            pairs = list(zip(run.sites[:own], known[:length], strict=False))  # up to each action that both took
            if length == own and run.sites[own] - known[own] and known[own] - run.sites[own]:
                pairs.append((run.sites[own], known[own]))
            for here, there in pairs:
                if here != there:
                    told = ", ".join(map(repr, sorted(here ^ there, key=_naturally)))
                    raise ValueError(
                        f"the program's sites change between runs: {told} occurred in one run and not in another; draw "
                        f"the same sites in every run"
                    )
        self._sites.setdefault(own, run.sites)

    def in_plate(self, count: int) -> Callable[[], None]:
        """Returns the program of ``count`` trajectories at once, inside a plate left of its own."""

        dim = -1 - self._nesting  # found out here and not inside the run, which is being recorded

        def run() -> None:
            with pyro.plate("rlai_trajectories", count, dim=dim):
                self.program()

        return run

    @cached_property
    def _sample_run(self) -> list[Any]:
        messages = record(self.in_plate(1), None)
        if not any(is_action(msg) for msg in messages):
            raise ValueError(NO_ACTIONS)
        return messages

    @property
    def horizon(self) -> int:
        """The number of actions in a run; where runs differ, that of one run."""
        return sum(is_action(msg) for msg in self._sample_run)

    @property
    def discount(self) -> float | Tensor:
        """γ of the steps, as they scale the first action; 1 where survival is drawn."""
        found: float | Tensor = step_of(next(msg for msg in self._sample_run if is_action(msg)))["discount"]
        return found

    @property
    def temperature(self) -> float | Tensor:
        """α of the rewards, in reward units per nat: of the last, should they differ; 1 where there are none."""
        found = [msg["infer"][REWARD]["temperature"] for msg in self._sample_run if is_reward(msg)]
        return found[-1] if found else 1.0

    @property
    def state_space(self) -> gymnasium.Space[Any]:
        """The space of what the first action looks at, read off one run of the program.

        Raises:
            ValueError: if it is an integer that no single site draws, so that its range is unknown.
        """
        state = seen_state(next(msg for msg in self._sample_run if is_action(msg)))
        if state.is_floating_point():
            constant = self._state_dims is not None and state.dim() < self._state_dims
            shape = tuple(state.shape if constant else state.shape[1 + self._nesting :])
            return gymnasium.spaces.Box(-np.inf, np.inf, shape)
        for msg in self._sample_run:
            if msg["value"] is state and hasattr(msg["fn"].support, "upper_bound"):
                return gymnasium.spaces.Discrete(int(torch.as_tensor(msg["fn"].support.upper_bound).max()) + 1)
        raise ValueError(
            "the range of the program's integer state is unknown, as no site draws it; pass a policy of your own, or "
            "give act() a floating-point state"
        )

    @property
    def sees_history(self) -> bool:
        """Whether the policy looks at a history, by :func:`rl_as_inference.history`."""
        first = next(msg for msg in self._sample_run if is_action(msg))
        return isinstance(first["infer"][ACTION]["state"], History)

    @property
    def observation_space(self) -> gymnasium.Space[Any]:
        """The space of what is seen, read off the first site of :func:`rl_as_inference.observe`.

        Raises:
            ValueError: if nothing is ever seen, or an integer whose range its distribution does not tell.
        """
        seen = next((msg for msg in self._sample_run if is_observation(msg)), None)
        if seen is None:
            raise ValueError("the program has no observations: draw them by observe(name, distribution)")
        event = tuple(seen["fn"].event_shape)
        if seen["value"].is_floating_point() and not getattr(seen["fn"].support, "is_discrete", False):
            return gymnasium.spaces.Box(-np.inf, np.inf, event)
        support = seen["fn"].support
        if event == () and hasattr(support, "upper_bound"):
            return gymnasium.spaces.Discrete(int(torch.as_tensor(support.upper_bound).max()) + 1)
        if event == () and support is torch.distributions.constraints.boolean:
            return gymnasium.spaces.Discrete(2)
        raise ValueError(
            f"observe({seen['name']!r}): the range of its {type(seen['fn']).__name__} is unknown; pass a policy of "
            f"your own"
        )

    @property
    def action_space(self) -> gymnasium.Space[Any]:
        """The space of the first action, read off its prior.

        Raises:
            ValueError: for priors other than categorical, uniform on the unit box, or on all reals.
        """
        prior = prior_of(next(msg for msg in self._sample_run if is_action(msg)))
        if isinstance(prior, torch.distributions.Categorical):
            return gymnasium.spaces.Discrete(prior.logits.shape[-1])
        support = getattr(prior.support, "base_constraint", prior.support)
        low, high = getattr(support, "lower_bound", -np.inf), getattr(support, "upper_bound", np.inf)
        if prior.event_dim == 1 and bool((torch.as_tensor(low) == -1).all() and (torch.as_tensor(high) == 1).all()):
            return gymnasium.spaces.Box(-1.0, 1.0, tuple(prior.event_shape))
        if prior.event_dim == 1 and support is torch.distributions.constraints.real:
            return gymnasium.spaces.Box(-np.inf, np.inf, tuple(prior.event_shape))
        raise ValueError(
            f"no policy is known for actions of prior {type(prior).__name__} with event shape "
            f"{tuple(prior.event_shape)}; pass a policy of your own"
        )

    def is_vectorized(self) -> bool:
        """Returns whether one run in a plate gives many trajectories; finds out by trying, if need be."""
        if self.vectorized is None:
            self.rollout(None, 2)
        return bool(self.vectorized)

    def at(self, values: dict[str, Tensor], count: int) -> Trajectories:
        """Returns the trajectories whose draws are given by site name, each ``(count, *site)``."""
        if self.is_vectorized():
            # A site's own shape is that of a single run; the new plate stands left of the program's.
            aligned = {name: self._left_of_plates(value) for name, value in values.items()}
            batch = (count,) + (1,) * self._nesting
            return join_runs([read_run(record(self.in_plate(count), None, values=aligned), batch, self._state_dims)])
        single = (1,) + (1,) * self._nesting
        runs = []
        for index in range(count):
            one = {name: self._left_of_plates(value[index : index + 1]) for name, value in values.items()}
            runs.append(read_run(record(self.in_plate(1), None, values=one), single, self._state_dims))
        return join_runs(runs)

    def first_steps(
        self, policy: Policy | None, count: int, num_actions: int, values: Mapping[str, Tensor]
    ) -> tuple[Trajectories, dict[str, Tensor]]:
        """Returns ``count`` trajectories up to what follows so many actions, and all that was drawn, by site.

        Draws that are given are taken over; the rest is drawn. For programs that run in a plate.
        """
        dims = self._state_dims
        messages = record(self.in_plate(count), policy, values=values, num_actions=num_actions)
        drawn = {m["name"]: m["value"] for m in messages if not m["is_observed"] and not site_is_subsample(m)}
        return join_runs([read_run(messages, (count,) + (1,) * self._nesting, dims)]), drawn

    def _left_of_plates(self, value: Tensor) -> Tensor:
        missing = max(self._nesting + 1 - value.dim(), 0)
        return value.reshape(value.shape[0], *(1,) * missing, *value.shape[1:])

    @cached_property
    def _state_dims(self) -> int | None:
        """How many dimensions a state has with its plates; None where one run at a time is all there is.

        Running in plates of two sizes tells a batch of states from a state of its own length.
        """
        try:
            shapes = [
                [seen_state(msg).shape for msg in record(self.in_plate(n), None) if is_action(msg)] for n in (2, 3)
            ]
        except _OF_BATCHES:
            return None
        most = max((len(shape) for shape in shapes[0]), default=0)
        return most if shapes[0] != shapes[1] else most + 1 + self._nesting

    def _run(self, policy: Policy | None, count: int) -> RecordedRun:
        dims = self._state_dims  # before the run that is recorded
        messages = record(self.in_plate(count), policy)
        if count > 1 and (drawn := _drawn_subsamples(messages)):  # one trajectory at a time, unless told otherwise
            raise ValueError(
                f"plate {drawn[0]!r} draws one subsample for all trajectories of a run, which are then dependent; "
                f"leave out vectorized=True, or subsample_size"
            )
        return read_run(messages, (count,) + (1,) * self._nesting, dims)

    @cached_property
    def _nesting(self) -> int:
        """How many plates the program has of its own."""

        def run() -> None:
            with pyro.plate("rlai_trajectories", 1, dim=-6):
                self.program()

        dims = [
            frame.dim
            for msg in record(run, None)
            for frame in msg["cond_indep_stack"]
            if frame.vectorized and frame.name != "rlai_trajectories"
        ]
        return -min(dims, default=0)


def _drawn_subsamples(messages: list[Any]) -> list[str]:
    """Returns the plates that draw which part of them is run."""
    plates = [msg for msg in messages if site_is_subsample(msg) and msg["fn"].subsample_size is not None]
    return [msg["name"] for msg in plates if msg["fn"].subsample_size < msg["fn"].size]


def _conditioned(program: Any) -> list[str]:
    """Returns the sites that Pyro's handlers around a program condition on, or set."""
    handlers = [handler for handler, _ in _handlers(program)]
    return [name for each in handlers if isinstance(each, ConditionMessenger | DoMessenger) for name in each.data]


def _handlers(program: Any) -> Iterator[tuple[Any, Any]]:
    """Yields what is wrapped around a program, from the outside, with what is inside of it."""
    while hasattr(program, "func") or hasattr(program, "__wrapped__"):
        # A handler binds itself and the program as a partial's arguments; any other partial is of the program.
        bound: Any = getattr(program, "args", ())
        if len(bound) == 2 and isinstance(bound[0], Messenger):
            handler, program = bound
        else:
            handler, program = program, getattr(program, "func", None) or program.__wrapped__
        yield handler, program


def _naturally(name: str) -> tuple[str, int, str]:
    """Returns a key that sorts ``state_2`` before ``state_10``."""
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or -1), name


def _name_of(program: Any) -> str:
    """Returns a program's own name, of one under Pyro's handlers too."""
    program = [program, *(inside for _, inside in _handlers(program))][-1]
    name = getattr(program, "name", None) or getattr(program, "__qualname__", type(program).__name__)
    return str(name).split(".")[0]
