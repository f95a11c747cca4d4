"""A run's folder: one writer, files told of before they are there, and nothing else touched."""

import errno
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from apart import Apart
from command_line import refused, rlai

from rl_as_inference import SoftActorCritic
from rl_as_inference.agents import train
from rl_as_inference.checkpoints import save_tensors
from rl_as_inference.records import RunRecord, files_of
from rl_as_inference.run_folders import LOCK, RunFolder
from rl_as_inference.whole_files import UNFINISHED, Owner, draft_folder, remove_leftovers, written_whole

FIT = ["fit", "gridworld", "--rows", "2", "--steps", "1", "--hidden-sizes", "4", "--no-progress"]
TRAIN = ["train", "Pendulum-v1", "--hidden-sizes", "4", "--batch-size", "4", "--learning-starts", "10", "--no-compile"]
TRAIN += ["--num-steps", "100000", "--evaluate-every", "100000", "--no-progress", "--checkpoint-every", "50"]


def dead() -> Owner:
    """A process that was here and is no more."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return Owner(ended.pid, "1", Owner.here().host)


def leftover(folder: Path, owner: Owner) -> Path:
    path = folder / f"{UNFINISHED}{owner.pid}-{owner.started}-{owner.host}-x1"
    path.mkdir(parents=True)
    (path / ".tmpAbC").write_text("half a file")
    return path


class TestOneWriter:
    def test_a_second_one_is_refused_with_the_name_of_the_first(self, tmp_path: Path) -> None:
        out = tmp_path / "run"
        running = Apart(*TRAIN, "--out", out, scratch=tmp_path)
        try:
            while not (out / "checkpoint.safetensors").exists():
                assert running.process.is_alive(), running.ends()
            named = f"is being written to by process {running.pid} on {socket.gethostname()} since 20"
            assert named in refused(*FIT, "--out", out, "--overwrite")
            assert named in refused("train", "--out", out, "--resume")
            assert named in refused("inspect", out, "--num-draws", "2")
            with pytest.raises(ValueError, match=r"folder: .*is being written to by process"):
                train(SoftActorCritic("Pendulum-v1", hidden_sizes=(4,)), 10, out, resume=True)
            assert rlai("evaluate", out, "--num-episodes", "1")[0] == 0  # which only reads
        finally:
            running.process.kill()
            running.process.join()
        assert (out / LOCK).exists()  # of nobody who lives
        RunFolder(out).close()
        assert not (out / LOCK).exists()

    def test_within_one_process_too(self, tmp_path: Path) -> None:
        with RunFolder(tmp_path), pytest.raises(ValueError, match=f"process {os.getpid()} on"):
            RunFolder(tmp_path)
        RunFolder(tmp_path).close()

    def test_a_forked_process_has_no_part_in_it(self, tmp_path: Path) -> None:
        folder = RunFolder(tmp_path)
        child = os.fork()
        if child == 0:
            while os.getppid() != 1 and not (tmp_path / "over").exists():
                time.sleep(0.01)
            os._exit(0)
        try:
            folder.close()
            RunFolder(tmp_path).close()  # though the child is there still
        finally:
            (tmp_path / "over").touch()
            os.waitpid(child, 0)

    def test_without_locks_of_the_system_the_name_decides(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_locks(*_: Any) -> None:
            raise OSError(errno.ENOSYS, "Function not implemented")

        monkeypatch.setattr("rl_as_inference.run_folders.fcntl.flock", no_locks)
        with RunFolder(tmp_path), pytest.raises(ValueError, match="is being written to"):
            RunFolder(tmp_path)
        (tmp_path / LOCK).write_text(json.dumps({**dead()._asdict(), "since": "then"}))
        RunFolder(tmp_path).close()


class TestLeftovers:
    def test_of_the_dead_are_removed_and_of_the_living_never(self, tmp_path: Path) -> None:
        elsewhere = Owner(1, "1", "another.host")
        parent = Owner.of(os.getppid())
        killed, alive, far = dead(), parent, elsewhere._replace(pid=2)
        paths = {owner: leftover(tmp_path, owner) for owner in (killed, alive, elsewhere, far)}
        old = tmp_path / f"{UNFINISHED}abc123.safetensors"  # as earlier versions named them
        old.touch()
        save_tensors(tmp_path / "tensors", {}, {})
        assert [path.exists() for path in (*paths.values(), old)] == [False, True, True, True, True]
        (tmp_path / LOCK).write_text(json.dumps({**elsewhere._asdict(), "since": "then"}))  # and did not give it back
        with RunFolder(tmp_path):
            assert [path.exists() for path in (*paths.values(), old)] == [False, True, False, True, False]

    def test_ones_own_stay_while_they_are_written_in(self, tmp_path: Path) -> None:
        lost = leftover(tmp_path, Owner.here())  # by an interruption
        with draft_folder(tmp_path) as first, draft_folder(tmp_path) as second:
            assert [path.exists() for path in (lost, first, second)] == [False, True, True]

    def test_another_process_of_the_same_number_is_told_from_it(self, tmp_path: Path) -> None:
        before = Owner.here()._replace(started="1")
        assert not before.is_alive
        assert Owner.here().is_alive

    def test_what_a_library_leaves_beside_is_in_the_draft(self, tmp_path: Path) -> None:
        def stops() -> None:
            with draft_folder(tmp_path) as draft:
                (draft / ".tmpXyZ").touch()
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            stops()
        assert list(tmp_path.iterdir()) == []
        remove_leftovers(tmp_path / "nowhere")


class TestOverwriting:
    def test_leaves_nothing_of_a_run_that_was_killed_before_it_told_what_it_wrote(self, tmp_path: Path) -> None:
        """Every moment of ``compare`` is one before which its files were told of."""
        out = tmp_path / "run"
        words = ["compare", "gridworld", "--rows", "2", "--steps", "1", "--num-draws", "5", "--num-trajectories", "5"]
        assert rlai(*words, "--hidden-sizes", "4", "--out", out)[0] == 0
        record = RunRecord.read(out)
        (out / "notes.txt").write_text("mine")
        begun = {"policy.safetensors", "history.json", "training.png", "comparison.json", "gradients.json"}
        begun |= {"posterior.nc", "gaps.png", "dynamics_gap.png", "states.png", "returns.png"}
        record.changed(finished=False, files=tuple(begun)).write(out)  # as it was while it ran
        assert "did not finish" in refused("inspect", out)
        assert rlai(*FIT, "--out", out, "--overwrite")[0] == 0
        names = {path.name for path in out.iterdir()}
        written = {"policy.safetensors", "history.json", "training.png", "model_card.md", "run.json"}
        assert names == written | {"notes.txt"}

    def test_another_program_s_run_json_is_no_run(self, tmp_path: Path) -> None:
        out = tmp_path / "models"
        out.mkdir()
        (out / "run.json").write_text('{"a": 1}')
        (out / "policy.safetensors").write_text("theirs")
        assert "is not one that a run wrote" in refused(*FIT, "--out", out, "--overwrite")
        assert (out / "policy.safetensors").read_text() == "theirs"
        assert "is not a run folder (its run.json is another's)" in refused("evaluate", out)

    def test_a_stop_while_files_are_removed_leaves_them_told(self, tmp_path: Path, monkeypatch: Any) -> None:
        out = tmp_path / "run"
        assert rlai(*FIT, "--out", out)[0] == 0
        unlink = Path.unlink

        def stopped(path: Path, missing_ok: bool = False) -> None:
            if path.name == "history.json":
                raise KeyboardInterrupt
            unlink(path, missing_ok=missing_ok)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", stopped)
            assert rlai(*FIT, "--out", out, "--overwrite")[0] == 130
        assert [path.name for path in files_of(out)] == ["history.json", "training.png", "model_card.md"]
        assert not (out / "policy.safetensors").exists()
        assert rlai(*FIT, "--out", out, "--overwrite")[0] == 0

    def test_a_killed_beginner_leaves_a_folder_that_is_as_good_as_new(self, tmp_path: Path) -> None:
        out = tmp_path / "run"
        out.mkdir()
        leftover(out, dead())
        (out / LOCK).write_text("")
        assert rlai(*FIT, "--out", out)[0] == 0
        assert {path.name for path in out.iterdir()} == {
            "policy.safetensors",
            "history.json",
            "training.png",
            "model_card.md",
            "run.json",
        }


class TestFullDisks:
    @pytest.fixture
    def full(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_space(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("rl_as_inference.whole_files.os.fsync", no_space)

    @pytest.mark.usefixtures("full")
    def test_leave_a_folder_that_is_new_still(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        out = tmp_path / "run"
        assert "No space left on device" in refused(*FIT, "--out", out)
        assert list(out.iterdir()) == []
        monkeypatch.undo()
        assert rlai(*FIT, "--out", out)[0] == 0

    @pytest.mark.usefixtures("full")
    def test_leave_the_file_that_was_there(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("old")
        with (
            pytest.raises(ValueError, match=r"path: cannot write .*No space left"),
            written_whole(tmp_path / "a") as path,
        ):
            path.write_text("new")
        assert (tmp_path / "a").read_text() == "old"
        assert [path.name for path in tmp_path.iterdir()] == ["a"]

    def test_what_stops_a_run_is_told_though_it_cannot_be_saved(self, tmp_path: Path, monkeypatch: Any) -> None:
        agent = SoftActorCritic("Pendulum-v1", hidden_sizes=(4,), batch_size=4, learning_starts=10, compile=False)

        def fails(*_: Any, **__: Any) -> None:
            raise ValueError("path: cannot write: No space left on device")

        monkeypatch.setattr(type(agent), "save", fails)
        with pytest.raises(ValueError, match="No space left") as stop:
            train(agent, 30, tmp_path, checkpoint_every=20, evaluate_every=30, evaluate_episodes=1)
        assert stop.value.__notes__ == [
            "at step 20, which cannot be saved (path: cannot write: No space left on device)"
        ]


class TestLinksAndNames:
    def test_a_linked_record_is_not_followed(self, tmp_path: Path) -> None:
        out, mine = tmp_path / "run", tmp_path / "thesis.json"
        out.mkdir()
        mine.write_text(json.dumps({"finished": False, "files": []}))
        (out / "run.json").symlink_to(mine)
        before = mine.read_bytes()
        assert "is a link, which --overwrite does not follow" in refused(*FIT, "--out", out, "--overwrite")
        with RunFolder(out) as folder:
            folder.begin(RunRecord.of("fit", "gridworld", out))
        assert mine.read_bytes() == before
        assert not (out / "run.json").is_symlink()

    def test_linked_files_are_replaced_and_linked_folders_refused(self, tmp_path: Path) -> None:
        out, mine = tmp_path / "run", tmp_path / "mine"
        (mine / "inside").mkdir(parents=True)
        (mine / "curve.csv").write_text("mine")
        out.mkdir()
        (out / "curve.csv").symlink_to(mine / "curve.csv")
        (out / "tensorboard").symlink_to(mine / "inside")
        agent = SoftActorCritic("Pendulum-v1", hidden_sizes=(4,), batch_size=4, learning_starts=10, compile=False)
        with pytest.raises(ValueError, match="tensorboard' is a link, which a run does not follow"):
            train(agent, 30, out)
        (out / "tensorboard").unlink()
        train(agent, 30, out, evaluate_every=30, evaluate_episodes=1)
        assert (mine / "curve.csv").read_text() == "mine"
        assert list((mine / "inside").iterdir()) == []

    @pytest.mark.parametrize("name", ["../x", "/x", "a/b/c", "", "a/../../x", "tensorboard/../../x"])
    def test_names_lead_nowhere_else(self, tmp_path: Path, name: str) -> None:
        with RunFolder(tmp_path / "run") as folder:
            folder.begin(RunRecord.of("fit", "gridworld", tmp_path / "run"))
            with pytest.raises(ValueError, match="name must be that of a file in the run's folder"):
                folder.tell(name)
            with pytest.raises(ValueError, match="name must be"), folder.writing(name):
                pass

    def test_a_forged_list_takes_nothing_of_yours(self, tmp_path: Path) -> None:
        out = tmp_path / "run"
        out.mkdir()
        for name in ("notes.txt", "kept.txt"):
            (out / name).write_text("mine")
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside" / "events.out.tfevents.1").write_text("mine")
        (out / "tensorboard").symlink_to(tmp_path / "outside")
        files = [
            "*",
            "**",
            "no*.txt",
            "../outside/*",
            "tensorboard/events.out.tfevents.*",
            str(tmp_path / "outside"),
            "run.json",
        ]
        files += [3, None, "a\0b", "kept.txt"]  # type: ignore[list-item]
        (out / "run.json").write_text(json.dumps({"files": files}))
        assert [path.name for path in files_of(out)] == ["kept.txt"]
