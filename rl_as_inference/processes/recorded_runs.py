"""Reading a recorded run of a program: its messages as the rows of trajectories."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from rl_as_inference.histories import History
from rl_as_inference.processes.point_masses import log_density
from rl_as_inference.program.recording import log_prob_of, policy_of, prior_of, record
from rl_as_inference.program.sites import ACTION, COIN, FIRST, REWARD, both, is_action, is_observation, step_of
from rl_as_inference.trajectories import Trajectories

__all__ = ["NO_ACTIONS", "RecordedRun", "join_runs", "read_run", "trajectories_at"]

_PER_STEP = ("states", "actions", "rewards", "mask", "log_prior", "log_policy", "log_factors")

NO_ACTIONS = "the program has no actions: draw them by act(name, state, prior); if it makes a program, call it"


def trajectories_at(run: Callable[[], Any], values: dict[str, Tensor], count: int) -> Trajectories:
    """Returns the trajectories of a program in a plate of ``count`` whose draws are given by site name."""
    return join_runs([read_run(record(run, None, values=values), (count,))])


@dataclass
class RecordedRun:
    """One run's rows, one a step; every tensor begins with the trajectory."""

    rows: list[dict[str, Tensor]] = field(default_factory=list)
    final_state: Tensor | None = None
    latents: dict[str, Tensor] = field(default_factory=dict)
    temperature: Any = None
    discount: Any = 1.0
    observations: list[Tensor] = field(default_factory=list)
    observed_first: bool = False
    sites: list[set[str]] = field(default_factory=lambda: [set()])  # up to each action, and after the last


def read_run(messages: list[Any], batch: tuple[int, ...], state_dims: int | None = None) -> RecordedRun:
    """Reads the messages of a run in a plate of shape ``batch``, the trajectories leftmost."""
    run, count, last_step = RecordedRun(), batch[0], object()

    def per_trajectory(value: Tensor) -> Tensor:
        return value.expand(torch.broadcast_shapes(value.shape, batch)).reshape(count, -1).sum(1)

    dims = [state.dim() for msg in messages if is_action(msg) and isinstance(state := seen_state(msg), Tensor)]
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

    hidden = any(is_action(msg) and isinstance(msg["infer"][ACTION]["state"], History) for msg in messages)
    head: dict[str, Tensor] = {}  # what is observed before the first action
    drawn_since: list[Tensor] = []
    states: list[Tensor] = []
    for msg in messages:
        if site_is_subsample(msg):
            continue
        run.sites[-1].add(msg["name"])
        if is_observation(msg):
            run.observed_first = run.observed_first or not run.rows
            run.observations.append(msg["value"])
            if hidden:  # what the policy looks at is what stands for its state
                drawn_since.append(msg["value"])
        if is_action(msg):
            run.sites.append(set())
        place, row = step_of(msg), run.rows[-1] if run.rows else head
        # Terms are kept without the discount of the row they stand in, which weights put back.
        index = len(run.rows) if is_action(msg) else max(len(run.rows) - 1, 0)
        discount = place["discount"] if is_action(msg) else run.discount
        scale = _beyond(msg["scale"], discount**index)
        if is_action(msg):
            state = seen_state(msg)
            if not isinstance(state, Tensor):
                raise ValueError(
                    f"act({msg['name']!r}): state must be a tensor or history() for trajectories to be recorded, got "
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
            counts = both(alive, msg["mask"])
            priors, policies = (
                per_trajectory(scale_and_mask(log_prob, scale, counts))
                for log_prob in (
                    log_prob_of(prior_of(msg), msg["value"]),
                    log_density(policy_of(msg), prior_of(msg), msg["value"]),
                )
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
            elif isinstance(msg["value"], Tensor) and not hidden:
                drawn_since.append(_counted(msg))  # a last state that is conditioned on
        elif not is_observation(msg) and COIN not in msg["infer"]:
            if not hidden:
                drawn_since.append(_counted(msg))
            if place["step"] is None or hidden:  # of a hidden state every one, by its name
                run.latents[msg["name"]] = msg["value"]
    if not run.rows:
        raise ValueError(NO_ACTIONS)
    most_seen = max((value.dim() for value in run.observations), default=0)
    rows = (value.reshape((1,) * (most_seen - value.dim()) + value.shape) for value in run.observations)
    # One that is the same for all (conditioned on, say) has fewer dimensions, or one entry in the first.
    run.observations = [row.expand(count, *row.shape[1:]) if row.shape[:1] == (1,) else leading(row) for row in rows]
    last = run.rows[-1]["states"]
    for value in drawn_since:
        if value.dtype == last.dtype and value.dim() <= most and leading_state(value).shape == last.shape:
            run.final_state = leading_state(value)
    run.latents = {
        name: leading(value) for name, value in run.latents.items() if not any(value is state for state in states)
    }
    _drop_single_plates(run, len(batch) - 1)
    return run


def _drop_single_plates(run: RecordedRun, nesting: int) -> None:
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
    if all(set(value.shape[inner]) == {1} and value.dim() > nesting for value in run.observations):
        run.observations = [value.flatten(0, nesting) for value in run.observations]
    run.latents = {
        name: value.flatten(0, nesting) if set(value.shape[inner]) == {1} and value.dim() > nesting else value
        for name, value in run.latents.items()
    }


def _spread(value: Tensor, count: int, dims: int) -> Tensor:
    """Returns a value of one trajectory, without its plates, for ``count`` of them, in ``dims`` dimensions."""
    return value.reshape((1,) * (dims - value.dim()) + value.shape).expand(
        count, *(1,) * (dims - value.dim() - 1), *value.shape
    )


def join_runs(runs: list[RecordedRun]) -> Trajectories:
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
    first = runs[0]
    if all(len(run.observations) - len(run.rows) in (0, 1) for run in runs):  # one before each action, or after it
        most = max(len(run.observations) for run in runs)
        rows = [run.observations + [run.observations[-1]] * (most - len(run.observations)) for run in runs]
        tables["observations"] = torch.cat([torch.stack(row) for row in rows], 1)
    latents = {
        name: torch.cat([run.latents[name] for run in runs])
        for name in runs[0].latents
        if all(name in run.latents for run in runs)
    }
    return Trajectories(
        **tables,
        observed_first=first.observed_first,
        temperature=1.0 if first.temperature is None else first.temperature,
        discount=first.discount,
        latents=latents,
    )


def seen_state(msg: Any) -> Any:
    """Returns what the policy looks at: of a history what was seen last, or 0 where nothing was."""
    state = msg["infer"][ACTION]["state"]
    if isinstance(state, History):
        return state.latest if state.latest is not None else torch.zeros(())
    return state


def _counted(msg: Any) -> Tensor:
    """Returns the value of a site, where it is a process's state of integers as counted from 0."""
    first = msg["infer"].get(FIRST, 0)
    value: Tensor = msg["value"]
    return value - first if first else value


def _beyond(scale: Any, step_scale: Any) -> Any:
    """Returns a site's scale without the discount of its row; 1 where that is zero."""
    if isinstance(scale, Tensor) or isinstance(step_scale, Tensor):
        step = torch.as_tensor(step_scale)
        return torch.where(step > 0, torch.as_tensor(scale) / step, 1.0)
    return scale / step_scale if step_scale > 0 else 1.0
