"""A checkpoint that was damaged anywhere is refused, and the agent stays as it was."""

import random
import threading
from pathlib import Path

import pytest
import torch

from rl_as_inference import SoftActorCritic
from rl_as_inference.checkpoints import load_tensors, save_tensors


def test_damage_at_any_byte_is_noticed(tmp_path: Path) -> None:
    agent = SoftActorCritic("Pendulum-v1", hidden_sizes=(8,), batch_size=8, learning_starts=20, compile=False)
    agent.learn(30)
    path = tmp_path / "agent.safetensors"
    agent.save(path)
    assert agent.restore(path) == {}
    whole, before = path.read_bytes(), agent._update.tensors["parameters"].clone()
    # The last byte is of a tensor; the others may be of the header.
    places = [len(whole) - 1, *random.Random(0).sample(range(len(whole)), 60)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(bytes(damaged))
        with pytest.raises(ValueError, match="path: "):
            agent.restore(path)
        assert torch.equal(agent._update.tensors["parameters"], before)


def test_tensors_of_every_kind_are_summed(tmp_path: Path) -> None:
    path = tmp_path / "tensors.safetensors"
    tensors = {
        "scalar": torch.tensor(2.0),
        "alone": torch.zeros((), dtype=torch.int64).expand(1),
        "none": torch.zeros(0, 3),
        "truth": torch.tensor([True, False]),
        "turned": torch.arange(6.0).reshape(2, 3).T,
    }
    save_tensors(path, tensors, {"a": 1})
    again, record = load_tensors(path)
    assert record == {"a": 1}
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


def test_what_is_read_while_another_is_written_is_whole(tmp_path: Path) -> None:
    """1,500 readings or more beside a writer that does nothing else: each is a state written, never a mixture."""
    path, over = tmp_path / "tensors.safetensors", threading.Event()

    def write() -> None:
        number = 0
        while not over.is_set():
            number += 1
            save_tensors(path, {"numbers": torch.full((1 + number % 3,), number)}, {"number": number})

    save_tensors(path, {"numbers": torch.zeros(1)}, {"number": 0})
    writer = threading.Thread(target=write)
    writer.start()
    try:
        read = [load_tensors(path) for _ in range(1500)]
        while (
            len({record["number"] for _, record in read}) <= 20 and len(read) < 30_000
        ):  # a busy machine writes seldom
            read += [load_tensors(path) for _ in range(500)]
    finally:
        over.set()
        writer.join()
    assert all(set(tensors["numbers"].tolist()) == {record["number"]} for tensors, record in read)
    assert len({record["number"] for _, record in read}) > 20
