"""Checkpoints with a right checksum and wrong records: they change nothing, and the error says what is wrong."""

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from apart import LONG
from torch import Tensor

from rl_as_inference import SoftActorCritic
from rl_as_inference.agents import Learner
from rl_as_inference.checkpoints import load_tensors, save_tensors

TINY: dict[str, Any] = {"hidden_sizes": (4,), "batch_size": 4, "learning_starts": 10, "compile": False}
AGENTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "prioritised, of two seeds, whose return is held": {"priority_exponent": 0.6, "seeds": 2, "target_return": -200.0},
}


def crafted(
    tensors: dict[str, Tensor], record: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Tensor], dict[str, Any]]]:
    """Yields files with one thing wrong, and what it is."""
    for name, tensor in tensors.items():
        yield name, {n: t for n, t in tensors.items() if n != name}, record
        yield name, {**tensors, name: tensor.flatten()[:0]}, record
        yield name, {**tensors, name: tensor[None]}, record
        yield name, {**tensors, name: tensor.bool() if tensor.dtype != torch.bool else tensor.int()}, record
    yield "stranger", {**tensors, "stranger": torch.zeros(1)}, record
    for path, value in leaves(record):
        if path[0] == "made" or path[:2] in (["progress", "history"], ["notes"]) or path[-1] == "reached":
            continue
        for change in changes(value):
            if change is None and path[0] == "identity":  # which files of earlier versions may lack
                continue
            other = copy.deepcopy(record)
            at: Any = other
            for step in path[:-1]:
                at = at[step]
            if change is None and isinstance(at, dict):
                del at[path[-1]]
            else:
                at[path[-1]] = change
            if path[0] != "progress" or path[-1] not in ("seed", "reported"):
                yield ".".join(map(str, path)), tensors, other


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[list[Any], Any]]:
    """Yields everything that is not the whole, and where it is."""
    if path:
        yield list(path), value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, own in items:
        yield from leaves(own, (*path, name))


def changes(value: Any) -> list[Any]:
    """What else may stand in a value's place; None is nothing, in a dictionary."""
    if isinstance(value, list):
        return [None, "a", value + value[-1:] if value else ["a"]]
    if isinstance(value, dict):
        return [None, "a", {**value, "stranger": 1}]
    return [None, "a", [value]]


@pytest.fixture(params=AGENTS)
def learned(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Learner, Path]]:
    agent = SoftActorCritic("Pendulum-v1", **TINY, **AGENTS[request.param])
    agent.learn(15)
    agent.save(tmp_path / "agent")
    yield agent, tmp_path / "agent"
    agent.close()


def test_are_refused_and_change_nothing(learned: tuple[Learner, Path], tmp_path: Path) -> None:
    agent, path = learned
    before = path.read_bytes()
    files = list(crafted(*load_tensors(path)))
    assert len(files) > 150
    chosen = files if LONG else random.Random(0).sample(files, 40)
    wrong: list[Any] = []
    for name, tensors, record in chosen:
        save_tensors(tmp_path / "crafted", tensors, record)
        try:
            agent.restore(tmp_path / "crafted")
            wrong.append(name)
        except ValueError as error:
            told = (
                name.split(".")[-1] in str(error) or name.startswith(("identity", "format")) or "stranger" in str(error)
            )
            wrong += [] if told else [(name, error)]
    assert not wrong
    agent.save(tmp_path / "after")
    assert (tmp_path / "after").read_bytes() == before
    agent.restore(path)


def test_episodes_that_cannot_be_played_again_change_nothing(tmp_path: Path) -> None:
    agent = SoftActorCritic("CartPole-v1", **TINY)
    agent.learn(15)
    agent.save(tmp_path / "agent")
    tensors, record = load_tensors(tmp_path / "agent")
    save_tensors(tmp_path / "crafted", {**tensors, "env.actions_0": tensors["env.actions_0"] + 7}, record)
    with pytest.raises(ValueError, match="does not fit: the running episodes cannot be played again"):
        agent.restore(tmp_path / "crafted")
    agent.save(tmp_path / "after")
    assert (tmp_path / "after").read_bytes() == (tmp_path / "agent").read_bytes()
    agent.learn(5)  # and the environment goes on


def test_the_seed_is_part_of_what_an_agent_is(tmp_path: Path) -> None:
    SoftActorCritic("Pendulum-v1", **TINY, seed=1).save(tmp_path / "agent")
    with pytest.raises(ValueError, match="another seed: it has 1, and this agent 0"):
        SoftActorCritic("Pendulum-v1", **TINY).restore(tmp_path / "agent")
    tensors, record = load_tensors(tmp_path / "agent")
    del record["identity"]["seed"]  # as earlier versions wrote
    save_tensors(tmp_path / "earlier", tensors, record)
    SoftActorCritic("Pendulum-v1", **TINY).restore(tmp_path / "earlier")


def test_a_row_of_the_history_begins_where_the_last_ended_whatever_lies_between(tmp_path: Path) -> None:
    """Saved in the middle of a row, an agent goes on with the same means as one that was not."""
    agents = [SoftActorCritic("Pendulum-v1", **TINY) for _ in range(2)]
    agents[0].learn(40, report_every=20)
    seen: list[int] = []

    def save() -> None:
        seen.append(agents[1].num_steps)
        if agents[1].num_steps == 27:
            agents[1].save(tmp_path / "middle")

    agents[1].learn(40, report_every=20, on_step=save)
    other = SoftActorCritic("Pendulum-v1", **TINY)
    other.restore(tmp_path / "middle")
    other.learn(13, report_every=20)
    rows = [
        [{name: value for name, value in sorted(row.items()) if "per_second" not in name} for row in agent.history]
        for agent in (agents[0], other)
    ]
    assert seen == list(range(1, 41))
    assert repr(rows[0]) == repr(rows[1])  # NaN, too


def test_a_file_that_says_wrongly_how_it_was_made_makes_nothing(tmp_path: Path) -> None:
    SoftActorCritic("Pendulum-v1", **TINY).save(tmp_path / "agent")
    tensors, record = load_tensors(tmp_path / "agent")
    made = record["made"]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"env": "Pendulum-v1"}, "lacks env_given_as, env_kwargs, options"),
        ({**made, "options": {**made["options"], "stranger": 1}}, "stranger"),
        ({**made, "options": {**made["options"], "hidden_sizes": [5]}}, "another network layout"),
    ]
    for other, told in wrong:
        save_tensors(tmp_path / "crafted", tensors, {**record, "made": other})
        with pytest.raises(ValueError, match=told):
            SoftActorCritic.load(tmp_path / "crafted")
