"""A Pyro program as a process: rollouts by running it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import gymnasium
import numpy as np
import pyro
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.condition_messenger import ConditionMessenger
from pyro.poutine.do_messenger import DoMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from rl_as_inference.nouns import Policy
from rl_as_inference.program.recording import log_prob_of, prior_of, record
from rl_as_inference.program.sites import ACTION, CONDITION, REWARD, is_action, is_reward, step_of
from rl_as_inference.trajectories import Trajectories

__all__ = ["ProgramProcess", "as_process", "trajectories_at"]

_PER_STEP = ("states", "actions", "rewards", "mask", "log_prior", "log_policy", "log_factors")


_RARE = 200
"""Runs after which a site that has not occurred is said to be none of the program's."""

_OF_BATCHES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)
"""What a program may raise that was written for one trajectory and is run for many."""


def as_process(process: Any) -> Any:
    """Returns ``process`` if it has rollouts, or the Pyro program as a :class:`ProgramProcess`.

    Raises:
        ValueError: if it is neither.
    """
    if hasattr(process, "rollout"):
        return process
    if not callable(process):
        raise ValueError(f"process must be a process or a Pyro program (a callable), got {type(process).__name__}")
    return ProgramProcess(process)


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
        self._sites: dict[int, list[set[str]]] = {}  # of the first run of so many actions; see _Run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.program(*args, **kwargs)

    def rollout(self, policy: Policy | None, num_trajectories: int) -> Trajectories:
        """Returns ``num_trajectories`` trajectories of ``policy``; None for the action prior.

        Trajectories of different lengths are filled up: masked out, staying in their last state.

        Raises:
            ValueError: if the program has no actions, several a step, or states that are not tensors.
        """
        if num_trajectories < 1:
            raise ValueError(f"num_trajectories must be >= 1, got {num_trajectories}")
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

    def _joined(self, runs: list["_Run"]) -> Trajectories:
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
        return _join(runs)

    def _seen(self) -> set[str]:
        return {name for sites in self._sites.values() for names in sites for name in names}

    def _check_sites(self, run: "_Run") -> None:
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
            raise ValueError("the program has no actions: draw them by act(name, state, prior)")
        return messages

    @property
    def horizon(self) -> int:
        """The number of actions in a run; where runs differ, that of one run."""
        return sum(is_action(msg) for msg in self._sample_run)

    @property
    def state_space(self) -> gymnasium.Space[Any]:
        """The space of what the first action looks at, read off one run of the program.

        Raises:
            ValueError: if it is an integer that no single site draws, so that its range is unknown.
        """
        state = next(msg for msg in self._sample_run if is_action(msg))["infer"][ACTION]["state"]
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
            return _join([_read(record(self.in_plate(count), None, values=aligned), batch, self._state_dims)])
        single = (1,) + (1,) * self._nesting
        runs = []
        for index in range(count):
            one = {name: self._left_of_plates(value[index : index + 1]) for name, value in values.items()}
            runs.append(_read(record(self.in_plate(1), None, values=one), single, self._state_dims))
        return _join(runs)

    def first_steps(
        self, policy: Policy | None, count: int, num_actions: int, values: Mapping[str, Tensor]
    ) -> tuple[Trajectories, dict[str, Tensor]]:
        """Returns ``count`` trajectories up to what follows so many actions, and all that was drawn, by site.

        Draws that are given are taken over; the rest is drawn. For programs that run in a plate.
        """
        dims = self._state_dims
        messages = record(self.in_plate(count), policy, values=values, num_actions=num_actions)
        drawn = {m["name"]: m["value"] for m in messages if not m["is_observed"] and not site_is_subsample(m)}
        return _join([_read(messages, (count,) + (1,) * self._nesting, dims)]), drawn

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
                [msg["infer"][ACTION]["state"].shape for msg in record(self.in_plate(n), None) if is_action(msg)]
                for n in (2, 3)
            ]
        except _OF_BATCHES:
            return None
        most = max((len(shape) for shape in shapes[0]), default=0)
        return most if shapes[0] != shapes[1] else most + 1 + self._nesting

    def _run(self, policy: Policy | None, count: int) -> "_Run":
        dims = self._state_dims  # before the run that is recorded
        messages = record(self.in_plate(count), policy)
        if count > 1 and (drawn := _drawn_subsamples(messages)):  # one trajectory at a time, unless told otherwise
            raise ValueError(
                f"plate {drawn[0]!r} draws one subsample for all trajectories of a run, which are then dependent; "
                f"leave out vectorized=True, or subsample_size"
            )
        return _read(messages, (count,) + (1,) * self._nesting, dims)

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


def trajectories_at(run: Callable[[], Any], values: dict[str, Tensor], count: int) -> Trajectories:
    """Returns the trajectories of a program in a plate of ``count`` whose draws are given by site name."""
    return _join([_read(record(run, None, values=values), (count,))])


@dataclass
class _Run:
    """One run's rows, one a step; every tensor begins with the trajectory."""

    rows: list[dict[str, Tensor]] = field(default_factory=list)
    final_state: Tensor | None = None
    latents: dict[str, Tensor] = field(default_factory=dict)
    temperature: Any = None
    discount: Any = 1.0
    sites: list[set[str]] = field(default_factory=lambda: [set()])  # up to each action, and after the last


def _read(messages: list[Any], batch: tuple[int, ...], state_dims: int | None = None) -> _Run:
    """Reads the messages of a run in a plate of shape ``batch``, the trajectories leftmost."""
    run, count, last_step = _Run(), batch[0], object()

    def per_trajectory(value: Tensor) -> Tensor:
        return value.expand(torch.broadcast_shapes(value.shape, batch)).reshape(count, -1).sum(1)

    dims = [msg["infer"][ACTION]["state"].dim() for msg in messages if is_action(msg) and _is_tensor_state(msg)]
    most = max(dims, default=0) if state_dims is None else state_dims

    def leading(value: Any) -> Tensor:
        tensor = torch.as_tensor(value)
        return tensor if tensor.shape[:1] == (count,) else tensor.expand(count, *tensor.shape)

    def leading_state(state: Tensor) -> Tensor:
        # A state that is the same for all trajectories (conditioned on, say) has fewer dimensions than the others,
        # whatever its size.
        return _spread(state, count, most) if state.dim() < most else leading(state)

    most_of_actions = max((msg["value"].dim() for msg in messages if is_action(msg)), default=0)

    def leading_action(action: Tensor) -> Tensor:
        return _spread(action, count, most_of_actions) if action.dim() < most_of_actions else leading(action)

    head: dict[str, Tensor] = {}  # what is observed before the first action
    drawn_since: list[Tensor] = []
    states: list[Tensor] = []
    for msg in messages:
        if site_is_subsample(msg):
            continue
        run.sites[-1].add(msg["name"])
        if is_action(msg):
            run.sites.append(set())
        place, row = step_of(msg), run.rows[-1] if run.rows else head
        # Terms are kept without the discount of the row they stand in, which weights put back.
        index = len(run.rows) if is_action(msg) else max(len(run.rows) - 1, 0)
        discount = place["discount"] if is_action(msg) else run.discount
        scale = _beyond(msg["scale"], discount**index)
        if is_action(msg):
            state = msg["infer"][ACTION]["state"]
            if not isinstance(state, Tensor):
                raise ValueError(
                    f"act({msg['name']!r}): state must be a tensor for trajectories to be recorded, got "
                    f"{type(state).__name__}"
                )
            if place["step"] is not None and place["step"] == last_step:
                raise ValueError(
                    f"act({msg['name']!r}) is a second action in step {last_step}; trajectories need one a step: "
                    f"make both one site with .to_event(1)"
                )
            last_step = place["step"] if place["step"] is not None else object()
            alive = place["alive"]
            living = torch.ones((), dtype=torch.bool, device=state.device) if alive is None else alive
            mask = living.expand(torch.broadcast_shapes(living.shape, batch)).reshape(count, -1).any(1)
            priors, policies = (
                per_trajectory(scale_and_mask(log_prob, scale, alive))
                for log_prob in (log_prob_of(prior_of(msg), msg["value"]), msg["fn"].log_prob(msg["value"]))
            )
            zero = torch.zeros_like(priors)
            if msg["is_observed"]:  # nobody chose it, so it weighs as much as the action prior gives it
                policies = zero
            new = {"states": leading_state(state), "actions": leading_action(msg["value"]), "mask": mask}
            run.rows.append({**new, "log_prior": priors, "log_policy": policies, "rewards": zero, "log_factors": zero})
            for name in head if len(run.rows) == 1 else ():
                run.rows[0][name] = run.rows[0][name] + head[name]
            run.discount = place["discount"]
            states.append(state)
            drawn_since = []
        elif msg["is_observed"]:
            factor = per_trajectory(scale_and_mask(log_prob_of(msg["fn"], msg["value"]), scale, msg["mask"]))
            row["log_factors"] = row.get("log_factors", 0.0) + factor
            mark = msg["infer"].get(REWARD)
            if mark is not None:
                run.temperature = mark["temperature"]
                value = torch.as_tensor(mark["value"]).to(factor)
                row["rewards"] = row.get("rewards", 0.0) + per_trajectory(scale_and_mask(value, 1.0, msg["mask"]))
            elif isinstance(msg["value"], Tensor):
                drawn_since.append(msg["value"])  # a last state that is conditioned on
        else:
            drawn_since.append(msg["value"])
            if place["step"] is None:
                run.latents[msg["name"]] = msg["value"]
    if not run.rows:
        raise ValueError("the program has no actions: draw them by act(name, state, prior)")
    last = run.rows[-1]["states"]
    for value in drawn_since:
        if value.dtype == last.dtype and value.dim() <= most and leading_state(value).shape == last.shape:
            run.final_state = leading_state(value)
    run.latents = {
        name: leading(value) for name, value in run.latents.items() if not any(value is state for state in states)
    }
    _drop_single_plates(run, len(batch) - 1)
    return run


def _drop_single_plates(run: _Run, nesting: int) -> None:
    """Takes the program's own plates out of states and actions if there is one trajectory in them.

    So it is with a process under ``pyro.condition``: a plate of one trajectory inside the plate of all.
    """
    inner = slice(1, 1 + nesting)
    columns = [row[name] for row in run.rows for name in ("states", "actions")]
    if not nesting or any(set(value.shape[inner]) != {1} or value.dim() <= nesting for value in columns):
        return
    for row in run.rows:
        for name in ("states", "actions"):
            row[name] = row[name].flatten(0, nesting)
    if run.final_state is not None:
        run.final_state = run.final_state.flatten(0, nesting)
    run.latents = {
        name: value.flatten(0, nesting) if set(value.shape[inner]) == {1} and value.dim() > nesting else value
        for name, value in run.latents.items()
    }


def _spread(value: Tensor, count: int, dims: int) -> Tensor:
    """Returns a value of one trajectory, without its plates, for ``count`` of them, in ``dims`` dimensions."""
    return value.reshape((1,) * (dims - value.dim()) + value.shape).expand(
        count, *(1,) * (dims - value.dim() - 1), *value.shape
    )


def _join(runs: list[_Run]) -> Trajectories:
    """Returns the trajectories of several runs, the short ones filled up."""
    longest = max(len(run.rows) for run in runs)
    with_final = all(run.final_state is not None for run in runs)
    columns: dict[str, list[Tensor]] = {name: [] for name in _PER_STEP}
    for run in runs:
        missing = longest - len(run.rows)
        for name in _PER_STEP:
            column = [row[name] for row in run.rows]
            filler = column[-1] if name in ("states", "actions") else torch.zeros_like(column[-1])
            if name == "states" and with_final:
                filler = run.final_state  # type: ignore[assignment]
                column.append(filler)
            columns[name].append(torch.stack(column + [filler] * missing))
    tables = {name: torch.cat(parts, 1) for name, parts in columns.items()}
    latents = {
        name: torch.cat([run.latents[name] for run in runs])
        for name in runs[0].latents
        if all(name in run.latents for run in runs)
    }
    first = runs[0]
    return Trajectories(
        **tables,
        temperature=1.0 if first.temperature is None else first.temperature,
        discount=first.discount,
        latents=latents,
    )


def _is_tensor_state(msg: Any) -> bool:
    return isinstance(msg["infer"][ACTION]["state"], Tensor)


def _beyond(scale: Any, step_scale: Any) -> Any:
    """Returns a site's scale without the discount of its row; 1 where that is zero."""
    if isinstance(scale, Tensor) or isinstance(step_scale, Tensor):
        step = torch.as_tensor(step_scale)
        return torch.where(step > 0, torch.as_tensor(scale) / step, 1.0)
    return scale / step_scale if step_scale > 0 else 1.0
