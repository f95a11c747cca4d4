"""Two ranks of a job give what one process gives: gradients, fits, estimates; and they learn as one."""

import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from two_processes import results, start

import rl_as_inference as rlai
from rl_as_inference.distributed import ALONE, Ranks, joined
from rl_as_inference.process_groups import PATIENCE, _patience
from rl_as_inference.processes.gymnasium_process import own_episodes
from rl_as_inference.sharing import parts_of
from rl_as_inference.whole_noise import whole_noise

LONG = os.environ.get("RLAI_SCALE") == "long"
"""Whether what takes its time is tested too, as ``make test-scale`` does."""

CHECKS = [
    *("gradients", "fits", "tables", "particles", "alike", "svi", "staged", "estimates", "disagreements", "host"),
    *("learners", "saved", "gone_on", "stopped", "kept"),
    *(("long_alike", "compiled") if LONG else ()),
    *("lost", "killed"),  # last, as rank 1 does not come back
]

Both = list[dict[str, Any]]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """What each of two ranks found; they are started once for all tests."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    processes = start("rank_checks", CHECKS, folder)
    found = results(processes, folder, 600 if LONG else 240)
    assert processes[1].exitcode == -signal.SIGKILL
    for rank in found:
        for name, value in rank.items():
            assert not (isinstance(value, dict) and "traceback" in value), f"{name}: {value['traceback']}"
    return found


def test_gradients_of_every_estimator_are_those_of_one_process(both: Both) -> None:
    for rank in both:
        assert len(rank["gradients"]) >= 22
        assert not {name: far for name, far in rank["gradients"].items() if max(far) > 1e-12}
        assert rank["particles"] < 1e-12


def test_fits_are_those_of_one_process(both: Both) -> None:
    for rank in both:
        for name, (history, policy) in rank["fits"].items():  # the last two are in float32
            assert max(history, policy) < (1e-12 if name.startswith("a process") else 2e-6), name


def test_ranks_ask_a_policy_for_a_part_of_its_table_each(both: Both) -> None:
    for rank, found in enumerate(both):
        whole, part = [5, 4], [3 - rank, 4]
        assert found["tables"]["alone"] == [whole] * 3
        assert found["tables"]["shared"] == [
            whole,
            part,
            part,
        ]  # at first all, and fail alike at what they cannot be asked
        assert found["tables"]["normalised"] == [whole] * 3  # it depends on all that it is asked at once


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_exchange_what_each_has(tmp_path: Path, size: int) -> None:
    """Two ranks send each other all at once, more of them sums of parts; seven rows are two or three for each."""
    found = results(start("rank_checks", ["exchanges"], tmp_path, size), tmp_path)
    everywhere = [rank["exchanges"] for rank in found]
    whole = 3 * torch.arange(14.0).view(7, 2)
    bounds = [Ranks(rank, size).bounds(7) for rank in range(size)]
    total = size * torch.arange(6.0).view(2, 3) + sum(range(size))
    for rank, here in enumerate(everywhere):
        assert here["sum"] == total.tolist()
        assert here["number"] == sum(range(size + 1))
        assert here["in place"] == total.mT.tolist()
        assert here["strided"] == [number * (1 if number % 2 else size) for number in range(8)]
        assert here["large"] == size * 2**20
        assert "once_differentiable" in here["second order"]
        assert here["gathered"] == [[[other, other]] * (other + 1) for other in range(size)]
        assert here["numbers"] == [[float(other)] for other in range(size)]
        assert (here["asked"], here["done"]) == ([list(bounds[rank])], [1])
        assert here["rows"] == whole.tolist()
        # The loss of rank r is r + 1 times the sum of squares of 3 x.
        assert here["slope"] == (sum(range(size + 1)) * 6 * whole).tolist()


def test_policies_are_bit_for_bit_alike(both: Both) -> None:
    for name in ("alike", "long_alike") if LONG else ("alike",):
        assert both[0][name] == both[1][name]


def test_pyros_own_svi(both: Both) -> None:
    assert both[0]["svi"] == both[1]["svi"]
    assert all(math.isfinite(loss) for loss in both[0]["svi"]["losses"])
    assert both[0]["svi"]["losses"][0] != both[0]["svi"]["losses"][1]
    first, second = both[0]["svi"]["late"]  # which began at 0 on rank 0; a shift of both alike changes nothing
    assert first == pytest.approx(-second)
    assert first != 0


def test_parts_of_a_policy_learn_one_after_the_other(both: Both) -> None:
    assert both[0]["staged"] == both[1]["staged"]
    first, second, third = both[0]["staged"]
    assert first[3:] == [0.0] * 3 != first[:3] == second[:3] != third[:3]
    assert second[3:] == third[3:] != first[3:]


def test_estimates_are_pooled(both: Both) -> None:
    for rank in both:
        one, two = rank["estimates"]["one"], rank["estimates"]["two"]
        assert one.keys() == two.keys()
        for name, value in one.items():
            assert two[name] == pytest.approx(value, rel=1e-12, abs=1e-14), name
        mean, error, truth = rank["estimates"]["own"]  # 4,000 trajectories, streams of their own
        assert abs(mean - truth) < 4 * error
        assert 0.018 < error < 0.026  # 1/√4000 of the spread of one
    assert both[0]["estimates"]["own"] == both[1]["estimates"]["own"]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("process", "process: ranks must agree, and temperature is 1.0 on rank 0 and 2.0 on rank 1"),
        ("tables", "process: ranks must agree, and kernel is"),
        ("options", "options: ranks must agree, and num_trajectories is 8 on rank 0 and 9 on rank 1"),
        ("learning rate", "learning_rate is 0.1 on rank 0 and 0.2 on rank 1"),
        ("share", "num_trajectories must be >= 2, one for each rank, got 1"),
        ("particles", "num_particles must be >= 2"),
        ("learner", "batch_size is 8 on rank 0 and 9 on rank 1"),
        ("held return", "distributed does not go with target_return=9.0"),
        ("gpus", "rank 1 and rank 0 both use cuda:0"),
        ("outside", "site 'theta' stands in no plate that ranks share out"),
        ("damaged fit", "damaged.safetensors'"),
        ("damaged learner", "damaged.safetensors'"),
        ("spoiled", "policy gives NaN as a log probability for all steps"),
        ("short", "there are 3 steps"),
        ("another run", "has a checkpoint of an earlier run"),
        ("damaged run", "checkpoint.safetensors'"),
        ("planner", "distributed: model-based agents fit a model of the world on each rank"),
    ],
)
def test_what_does_not_fit_together_is_said_on_every_rank(both: Both, case: str, words: str) -> None:
    for rank in both:
        assert words in rank["disagreements"][case]


def test_the_host_is_left_as_found(both: Both) -> None:
    for rank in both:
        found = rank["host"]
        assert found["left"] == [False, True, True]
        assert found["stays"]  # the program's own group
        assert found["ended"]
        before, during, after = found["threads"]
        assert after == before, "a thread that outlives its group can end the program in an abort"
        assert during > before or sys.platform != "linux"
    assert both[0]["host"]["mean"] == both[1]["host"]["mean"]


def test_learners_are_bit_for_bit_alike_on_replays_of_their_own(both: Both) -> None:
    assert both[0]["learners"].keys() == both[1]["learners"].keys()
    for name, first in both[0]["learners"].items():
        second = both[1]["learners"][name]
        own = {"replay": 0, "told": []}
        assert {**first, **own} == {**second, **own}, name
        assert first["told"] == first["kept"] == [20, 40], name
        assert second["told"] == [], name  # a tracker hears of a run once
        assert first["replay"] != second["replay"], name
        assert first["updates"] == 35
        assert first["moments"] > 0
    if LONG:
        assert both[0]["compiled"] == both[1]["compiled"]
        assert both[0]["compiled"]["apart"] < 1e-9


def test_learners_go_on_from_their_files(both: Both) -> None:
    for rank in both:
        first, second = rank["saved"]["ends"]
        assert first == second
        assert rank["saved"]["rows"][0] == rank["saved"]["rows"][1]
        assert rank["saved"]["steps"] == 40
    assert both[0]["saved"]["ends"] == both[1]["saved"]["ends"]
    assert both[0]["saved"]["rows"] != both[1]["saved"]["rows"]


def test_ranks_stop_together_when_one_is_told_to_between_steps(both: Both) -> None:
    for rank in both:
        for how in ("WhileWriting", "WhileWaiting"):
            assert rank["stopped"][how] == ["Terminated", 30, "at step 30, of which there is a checkpoint"]


def test_another_number_of_ranks_goes_on(both: Both) -> None:
    first, second = (rank["gone_on"] for rank in both)
    assert first["began"] == second["began"]
    assert first["began"][:2] == [40, 40]
    assert first["learned"] == second["learned"]
    assert first["rows"] != second["rows"]


def test_fits_go_on_from_their_checkpoint(both: Both) -> None:
    assert both[0]["kept"]["two"] == both[1]["kept"]["two"]
    for rank in both:
        whole, cut, again = rank["kept"]["alone"]
        assert cut == "cut off"
        assert whole == again  # bit for bit
        assert rank["kept"]["two"][2].endswith(" 12 True")
    assert both[1]["kept"]["repeated"] == 0


def test_who_has_ended_is_said(both: Both) -> None:
    assert both[0]["lost"]["failed"].startswith("RankError: rank 1 of 2 (process ")
    assert both[0]["lost"]["failed"].endswith(" failed: ZeroDivisionError: of one rank alone")
    said = both[0]["killed"]
    assert said["ranks"] == [1]
    assert "ended without a word" in said["error"]
    assert "go on from " in said["error"]
    assert "kept.safetensors, with any number of ranks" in said["error"]
    assert said["seconds"] < 30
    assert not said["group"]


@pytest.mark.skipif(not LONG, reason="waits; RLAI_SCALE=long")
def test_who_hangs_is_said(tmp_path: Path) -> None:
    """By both of those that wait, at different times."""
    for rank, found in enumerate(results(start("rank_checks", ["hung"], tmp_path, 3), tmp_path)[:2]):
        said = found["hung"]
        assert "RLAI_RANK_SECONDS must be a number of seconds > 0 and <= 1e9, got 'soon'" in said["refused"], rank
        assert said["ranks"] == [2], said
        assert said["said"].endswith("gives no sign: it hangs, or is not to be reached")
        assert said["seconds"] < 29


def test_a_process_alone() -> None:
    with pytest.raises(ValueError, match=r"distributed: this process is no rank of a job.*type: torchrun --nproc-per-"):
        rlai.estimate_elbo(rlai.models.corridor(), None, 8, distributed=True)
    with joined(False) as ranks:
        assert ranks is ALONE
    assert [Ranks(rank, 3).bounds(8) for rank in range(3)] == [(0, 3), (3, 6), (6, 8)]
    with pytest.raises(ValueError, match="num_draws must be >= 3, one for each rank, got 2"):
        Ranks(0, 3).share(2, "num_draws")


def test_ranks_may_each_have_a_gpu_of_their_own() -> None:
    one, other = ({"device": torch.device("cuda", number)} for number in (0, 1))
    assert parts_of(one) == parts_of(other) != parts_of({"device": torch.device("cpu")})


def test_simulators_play_other_episodes_on_each_rank() -> None:
    firsts = []
    for rank in (0, 1, 0):
        process = rlai.GymnasiumProcess("CartPole-v1", horizon=2, seed=5)
        with own_episodes(process, Ranks(rank, 2)):
            firsts.append(process.rollout(None, 2).states[0])
            if rank:
                again = process.rollout(None, 2).states[0]
        assert process._envs.seed == 5
    assert torch.equal(firsts[0], firsts[2])
    assert not torch.equal(firsts[0], firsts[1])
    assert not torch.equal(firsts[1], again)


def test_whole_noise_is_that_of_torch_where_it_can_be() -> None:
    torch.manual_seed(0)
    plain = torch.randn(7), torch.rand(2, 7), torch.distributions.Exponential(torch.ones(7)).sample()
    torch.manual_seed(0)
    with whole_noise(ALONE, 7):
        same = torch.randn(7), torch.rand(2, 7), torch.distributions.Exponential(torch.ones(7)).sample()
        counts = torch.multinomial(torch.tensor([[0.1, 0.9]]).expand(7, 2), 4000, replacement=True).double().mean()
    assert all(torch.equal(one, other) for one, other in zip(plain, same, strict=True))
    assert abs(float(counts) - 0.9) < 4 * 0.3 / 28_000**0.5  # z = 4 of 28,000 draws
    with whole_noise(ALONE, 7), pytest.raises(NotImplementedError, match="_standard_gamma"):
        torch.distributions.Gamma(torch.ones(7), torch.ones(7)).sample()


@pytest.mark.parametrize("said", ["soon", "nan", "inf", "0", "-1", "1e15"])
def test_what_is_no_time_to_wait_for_ranks_is_refused(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv(PATIENCE, said)
    with pytest.raises(ValueError, match=f"{PATIENCE} must be a number of seconds"):
        _patience()
    monkeypatch.setenv(PATIENCE, "1.5")
    assert _patience().total_seconds() == 1.5
