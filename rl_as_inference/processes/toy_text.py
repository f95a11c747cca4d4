"""Reading the transition tables of Gymnasium's toy-text environments."""

from typing import Any, NamedTuple

import gymnasium
import numpy as np

__all__ = ["ToyText", "read_toy_text"]

Array = np.ndarray[Any, Any]


Table = dict[int, dict[int, dict[int, tuple[float, float, bool]]]]
"""``table[state][action][successor]``: probability, reward, whether it ends."""

_EPISODES, _EPISODE_STEPS, _GOALS = 300, 60, 30
"""How an environment is held to its table."""


class ToyText(NamedTuple):
    """An environment's tables, ``K`` distinct successors a state and action at most."""

    indices: Array
    """Successors, ``(S, A, K)``; rows with fewer fill up with probability 0."""
    probabilities: Array
    """``(S, A, K)``."""
    rewards: Array
    """``(S, A, K)``, in reward units."""
    initial: Array
    """``(S,)``."""
    terminal: Array
    """``(S,)`` bool."""
    layout: Array | None
    """For grids, a letter a cell, ``(rows, columns)``."""


def read_toy_text(env_id: str, **make_kwargs: Any) -> ToyText:
    """Returns the tables of an environment that has them as ``P`` and ``initial_state_distrib``.

    The tables are held to the environment itself, which is stepped (always alike, and by random numbers of its own):
    an option may act in ``step()`` and not in ``P``, as Taxi's ``fickle_passenger`` does. What acts in one episode of
    50 is missed by a run in 400, and what changes no more than how often things happen is not looked for.

    Raises:
        ValueError: if Gymnasium cannot make it, it has no tables, its rewards and endings are not
            functions of state, action and successor, it does what its tables do not say, or a lake's map has other
            letters than a lake.
    """
    try:
        env = gymnasium.make(env_id, **make_kwargs).unwrapped
    except Exception as error:  # Gymnasium raises its own errors, and the environment's constructor any
        raise ValueError(f"env_id: gymnasium.make({env_id!r}) failed: {type(error).__name__}: {error}") from error
    table, start = getattr(env, "P", None), getattr(env, "initial_state_distrib", None)
    if table is None or start is None:
        raise ValueError(
            f"env_id: {env_id!r} has no transition table (attributes P and initial_state_distrib); "
            f"give FrozenLake, CliffWalking, Taxi or the like, or use GymnasiumProcess({env_id!r})"
        )
    letters = np.asarray(getattr(env, "desc", "F")).astype(str).ravel().tolist()
    if env_id.startswith("FrozenLake-") and (strange := set(letters) - set("SFHG")):
        raise ValueError(
            f"desc: FrozenLake takes {min(strange)!r} for free ice; it has S, F, H and G, and no walls: "
            f"models.gridworld(layout=...) has"
        )
    num_states, num_actions = len(table), len(table[0])
    table = {int(s): {int(a): _merge(env_id, s, a, row[a]) for a in row} for s, row in table.items()}
    most = max(len(outcomes) for row in table.values() for outcomes in row.values())
    indices = np.zeros((num_states, num_actions, most), dtype=np.int64)
    probabilities = np.zeros((num_states, num_actions, most))
    rewards = np.zeros((num_states, num_actions, most))
    for s, row in table.items():
        for a, outcomes in row.items():
            for k, (after, (probability, value, _)) in enumerate(outcomes.items()):
                indices[s, a, k], probabilities[s, a, k], rewards[s, a, k] = after, probability, value
    ends = _terminal_states(env_id, table, np.asarray(start))
    _hold_to_table(env, table, np.asarray(start), f"{env_id!r}", make_kwargs)
    return ToyText(indices, probabilities, rewards, np.asarray(start), ends, _layout(env, np.asarray(start), ends))


def _hold_to_table(env: Any, table: Table, start: Array, name: str, options: dict[str, Any]) -> None:
    """Raises ValueError if the environment does what its table gives probability 0.

    Episodes go from one state drawn at random to the next by shortest ways in the table, so that a passenger is picked
    up and a goal is reached in most of them, as a random walk hardly ever does.
    """
    rng = np.random.default_rng(0)
    visited = _visited(table, start)
    ways = [_ways_to(int(goal), table) for goal in rng.choice(visited, size=min(_GOALS, len(visited)), replace=False)]
    blame = f" (options {options})" if options else ""
    for episode in range(_EPISODES):
        state = int(env.reset(seed=episode)[0])
        if start[state] == 0:
            raise ValueError(
                f"env_id: {name} starts in state {state}, which its table gives probability 0{blame}; leave out the "
                f"option that does it, or give the tables by hand"
            )
        way = ways[rng.integers(len(ways))]
        for _ in range(_EPISODE_STEPS):
            if state not in way or rng.random() < 0.1:  # reached, or out of reach
                way = ways[rng.integers(len(ways))]
            action = way.get(state, int(rng.integers(len(table[state]))))
            after, reward, ended, _, _ = env.step(action)
            row = table[state][action]
            if int(after) not in row or row[int(after)][1:] != (float(reward), bool(ended)):
                said = row.get(int(after))
                what = "probability 0" if said is None else f"reward {said[1]:g} and {'an' if said[2] else 'no'} ending"
                raise ValueError(
                    f"env_id: {name}{blame} went from state {state} by action {action} to {int(after)} with reward "
                    f"{float(reward):g} and {'an' if ended else 'no'} ending, which its table gives {what}: something "
                    f"acts in step() that the table does not hold; leave out the option that does it, or learn in "
                    f"the environment itself (SoftQLearning, GymnasiumProcess)"
                )
            if ended:
                break
            state = int(after)


def _visited(table: Table, start: Array) -> list[int]:
    """Returns the states that episodes pass through, in order."""
    visited = frontier = {int(s) for s in np.flatnonzero(start > 0)}
    while frontier:
        reached = {t for s in frontier for row in table[s].values() for t, (_, _, ended) in row.items() if not ended}
        frontier = reached - visited
        visited = visited | frontier
    return sorted(visited)


def _ways_to(goal: int, table: Table) -> dict[int, int]:
    """Returns an action of a shortest way to the goal for each state that has one."""
    before: dict[int, list[tuple[int, int]]] = {}
    for s, row in table.items():
        for a, outcomes in row.items():
            for after in outcomes:
                before.setdefault(after, []).append((s, a))
    ways: dict[int, int] = {}
    frontier = [goal]
    while frontier:
        reached = []
        for state in frontier:
            for s, a in before.get(state, ()):
                if s != goal and s not in ways:
                    ways[s] = a
                    reached.append(s)
        frontier = reached
    return ways


def _layout(env: Any, start: Array, ends: Array) -> Array | None:
    letters, shape = getattr(env, "desc", None), getattr(env, "shape", None)
    if letters is not None and letters.size == len(ends):
        return np.asarray(letters).astype(str)
    if shape is not None and len(shape) == 2 and int(np.prod(shape)) == len(ends):
        return np.where(ends, "G", np.where(start > 0, "S", "F")).reshape(shape)
    return None


def _terminal_states(env_id: str, table: dict[int, Any], start: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Returns which states end the episode on arrival.

    Tables also have rows for states that no episode visits (Taxi's passenger at the destination
    from the start), and what those say about endings must not count against the visited ones.
    """
    arrivals = {(s, after, done) for s, row in table.items() for o in row.values() for after, (_, _, done) in o.items()}
    ends = np.zeros(len(table), bool)
    visited = {int(s) for s in np.flatnonzero(start > 0)}
    frontier = set(visited)
    stays: set[int] = set(visited)
    onward: dict[int, list[tuple[int, bool]]] = {}
    for s, after, done in arrivals:
        onward.setdefault(s, []).append((after, done))
    while frontier:
        reached = {step for s in frontier for step in onward.get(s, ())}
        for after, done in reached:
            if done:
                ends[after] = True
            else:
                stays.add(after)
        frontier = {after for after, done in reached if not done} - visited
        visited |= frontier
    if ends[list(stays)].any():
        state = next(s for s in sorted(stays) if ends[s])
        raise ValueError(
            f"env_id: in {env_id!r} arriving in state {state} sometimes ends the episode and sometimes does not, "
            f"so 'terminal' is not a property of its states; give the tables by hand"
        )
    for _, after, done in arrivals:
        if done and after not in stays:
            ends[after] = True
    return ends


def _merge(env_id: str, state: int, action: int, outcomes: Any) -> dict[int, tuple[float, float, bool]]:
    """Returns the outcomes of a Gymnasium table's row by successor: probability, reward, done."""
    merged: dict[int, tuple[float, float, bool]] = {}
    for probability, after, value, done in outcomes:
        if probability == 0:
            continue
        before, earned, ended = merged.get(after, (0.0, value, done))
        if (earned, ended) != (value, done):
            raise ValueError(
                f"env_id: in {env_id!r} action {action} in state {state} leads to state {after} with different "
                f"rewards or endings, so the reward is not a function of (s, a, s'); give the tables by hand"
            )
        merged[int(after)] = (before + probability, float(value), bool(done))
    return merged
