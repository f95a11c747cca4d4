"""The command line: what it writes, and what it says to wrong input."""

import json
import subprocess
import sys
from pathlib import Path

import arviz as az
import pytest
import torch
from command_line import refused, rlai

from rl_as_inference.checkpoints import load_policy
from rl_as_inference.cli.common import parse_options
from rl_as_inference.guides import amortized_policy
from rl_as_inference.problems import load_problem
from rl_as_inference.processes import TabularMDP

QUICK = ["--steps", "3", "--num-trajectories", "50", "--num-draws", "20", "--fit-num-trajectories", "10"]


class TestCompare:
    def test_writes_everything(self, tmp_path: Path) -> None:
        out = tmp_path / "runs" / "lake"
        code, text, _ = rlai(
            "compare",
            "FrozenLake-v1",
            "--map-name",
            "4x4",
            "--horizon",
            "20",
            "--temperature",
            "0.05",
            "--out",
            out,
            *QUICK,
        )
        assert code == 0
        assert "dynamics gap" in text
        assert "exact causal posterior" in text
        names = {path.name for path in out.iterdir()}
        assert names == {
            "comparison.json",
            "dynamics_gap.png",
            "gaps.png",
            "history.json",
            "model_card.md",
            "policy.safetensors",
            "posterior.nc",
            "returns.png",
            "run.json",
            "training.png",
        }
        numbers = json.loads((out / "comparison.json").read_text())
        gaps = numbers["dynamics_gap"] + numbers["policy_gap"]
        assert numbers["log_evidence"] - numbers["elbo_exact"] == pytest.approx(gaps, abs=1e-5)
        data = az.from_netcdf(str(out / "posterior.nc"))
        assert dict(data.posterior["state"].sizes) == {"chain": 1, "draw": 20, "time": 20}
        assert dict(data.posterior["final_state"].sizes) == {"chain": 1, "draw": 20}
        assert all((out / name).stat().st_size > 5000 for name in names if name.endswith(".png"))

    def test_checkpoint_is_the_trained_guide(self, tmp_path: Path) -> None:
        rlai("fit", "gridworld", "--steps", "20", "--out", tmp_path / "run")
        process = load_problem("gridworld", {})
        policy = amortized_policy(process)
        notes = load_policy(policy, tmp_path / "run" / "policy.safetensors")
        assert notes["problem"] == "gridworld"
        torch.manual_seed(0)
        history = json.loads((tmp_path / "run" / "history.json").read_text())
        from rl_as_inference import exact

        assert float(exact.elbo(process, policy).detach()) > history[-1] - 1e-3 > history[0]

    def test_same_seed_same_result(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            rlai("compare", "corridor", "--seed", "3", "--out", tmp_path / name, *QUICK)
        first, second = ((tmp_path / n / "comparison.json").read_text() for n in ("a", "b"))
        assert first == second

    def test_program_without_exact_answers(self, tmp_path: Path) -> None:
        code, text, _ = rlai("compare", "corridor", "--out", tmp_path / "run", *QUICK)
        assert code == 0
        assert "log evidence" not in text
        assert (tmp_path / "run" / "states.png").exists()


class TestOut:
    def test_is_never_overwritten_silently(self, tmp_path: Path) -> None:
        out = tmp_path / "run"
        rlai("fit", "gridworld", "--steps", "2", "--out", out)
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        message = refused("fit", "gridworld", "--steps", "2", "--out", out)
        assert "exists already" in message
        assert "--overwrite" in message
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
        code, _, _ = rlai("fit", "gridworld", "--steps", "2", "--seed", "9", "--out", out, "--overwrite")
        assert code == 0
        assert json.loads((out / "run.json").read_text())["seed"] == 9

    def test_overwrite_spares_other_folders(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("years of work")
        message = refused("fit", "gridworld", "--out", tmp_path, "--overwrite")
        assert "not a run folder" in message
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    def test_a_file_is_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_text("")
        assert "is a file" in refused("fit", "gridworld", "--out", tmp_path / "x")


class TestProblemNames:
    def test_unknown(self) -> None:
        message = refused("compare", "corridr")
        assert "'corridr' is neither a model (" in message
        assert message.rstrip().endswith("; did you mean corridor?")
        assert "did you mean" not in refused("compare", "quite_another")

    def test_unknown_gymnasium_id(self) -> None:
        assert "FrozenLak-v1" in refused("compare", "FrozenLak-v1")

    def test_environment_without_table(self) -> None:
        said = refused("compare", "CartPole-v1")
        assert "PROBLEM: 'CartPole-v1' has no transition table" in said
        assert "rlai train CartPole-v1" in said
        assert "env_id" not in said

    def test_unknown_option_of_a_model(self) -> None:
        message = refused("compare", "corridor", "--lenght", "3")
        assert "--lenght: not an option of corridor; it takes --length" in message

    def test_unknown_option_of_an_environment(self) -> None:
        message = refused("compare", "FrozenLake-v1", "--map-nam", "8x8")
        assert "--map-nam: not an option of FrozenLake-v1; it takes " in message
        assert message.endswith("did you mean --map-name?\n")

    def test_stray_word(self) -> None:
        assert "unexpected argument '8x8'" in refused("compare", "FrozenLake-v1", "8x8")

    @pytest.mark.parametrize(
        ("option", "value", "words"),
        [
            ("--temperature", "0", "temperature must be"),
            ("--temperature", "-1", "temperature must be"),
            ("--discount", "1.5", "discount must be in [0, 1]"),
            ("--horizon", "0", "horizon must be"),
            ("--steps", "0", "steps must be"),
            ("--learning-rate", "0", "learning_rate must be"),
            ("--estimator", "magic", "estimator must be"),
            ("--hidden-sizes", "a,b", "--hidden-sizes must be widths"),
        ],
    )
    def test_values_out_of_range(self, option: str, value: str, words: str) -> None:
        assert words in refused("compare", "gridworld", f"{option}={value}")


class TestOwnFile:
    def write(self, folder: Path, text: str) -> Path:
        path = folder / "mine.py"
        path.write_text(text)
        return path

    def test_process_program_and_factories(self, tmp_path: Path) -> None:
        path = self.write(
            tmp_path,
            "import torch, pyro, pyro.distributions as dist, rl_as_inference as rlai\n"
            "def make(reward=1.0, horizon=3):\n"
            "    table = torch.tensor([[0.0, reward]])\n"
            "    return rlai.TabularMDP(torch.ones(1, 2, 1), table, torch.ones(1), horizon=horizon)\n"
            "problem = make()\n"
            "def coin():\n"
            "    state = pyro.sample('state_0', dist.Categorical(torch.ones(2)))\n"
            "    action = rlai.act('action_0', state, dist.Categorical(torch.ones(2)))\n"
            "    rlai.reward('reward_0', (action == state).float())\n"
            "class Toy(rlai.MarkovDecisionProcess):\n"
            "    pass\n",
        )
        assert isinstance(load_problem(str(path), {}), TabularMDP)
        made = load_problem(f"{path}:make", {"reward": 2.0}, horizon=5)
        assert made.horizon == 5
        assert float(made.reward_table[0, 1]) == 2.0
        code, text, _ = rlai("compare", f"{path}:coin", *QUICK)
        assert code == 0
        assert "ELBO of the guide" in text

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("import not_there\n", "cannot be imported: ModuleNotFoundError: No module named 'not_there' (line 1)"),
            ("x = 1\ny = (\n", "cannot be imported: SyntaxError: '(' was never closed (line 2)"),
            ("x = 1\n\nraise RuntimeError('oh no')\n", "cannot be imported: RuntimeError: oh no (line 3)"),
            ("import sys\nsys.exit(3)\n", "exits on import (code 3)"),
            ("x = 1\n", "defines no 'problem'"),
            ("problem = 3\n", "'problem' is int, neither a process"),
            ("def problem(size=1):\n    return 'nothing'\n", "returned str, neither a process nor a Pyro program"),
            ("def problem():\n    return 1 / 0\n", "problem() failed: ZeroDivisionError: division by zero (line 2)"),
        ],
    )
    def test_files_that_do_not_work(self, tmp_path: Path, text: str, words: str) -> None:
        path = self.write(tmp_path, text)
        message = refused("compare", path)
        assert str(path) in message
        assert words in message

    def test_missing_file(self, tmp_path: Path) -> None:
        assert "there is no file" in refused("compare", tmp_path / "nowhere.py")

    def test_no_traceback_from_the_installed_command(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, "1/0\n")
        done = subprocess.run(
            [sys.executable, "-c", "from rl_as_inference.cli import main; main()", "compare", str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert "ZeroDivisionError: division by zero (line 1)" in done.stderr


def test_parse_options() -> None:
    words = ["--map-name", "8x8", "--no-is-slippery", "--size=3", "--rate", "-0.5", "--flag"]
    assert parse_options(words) == {"map_name": "8x8", "is_slippery": False, "size": 3, "rate": -0.5, "flag": True}


def test_version_and_help() -> None:
    assert rlai("--version")[1].startswith("rlai 0.")
    assert "compare" in rlai("--help")[1]


class TestCheckpoints:
    def test_damaged_foreign_and_unfitting(self, tmp_path: Path) -> None:
        import safetensors.torch

        process = load_problem("gridworld", {})
        policy = amortized_policy(process)
        before = {name: value.clone() for name, value in policy.state_dict().items()}
        damaged, foreign = tmp_path / "damaged.safetensors", tmp_path / "foreign.safetensors"
        damaged.write_bytes(b"not a checkpoint")
        safetensors.torch.save_file({"x": torch.ones(1)}, str(foreign))
        rlai("fit", "gridworld", "--steps", "1", "--hidden-sizes", "8", "--out", tmp_path / "small")
        for path, words in (
            (tmp_path / "none", "there is no file"),
            (damaged, "not a readable checkpoint"),
            (foreign, "no policy written by save_policy"),
            (tmp_path / "small" / "policy.safetensors", "does not fit"),
        ):
            with pytest.raises(ValueError, match=words):
                load_policy(policy, path)
        assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())


class TestRunFolders:
    def test_overwriting_removes_the_earlier_runs_files(self, tmp_path: Path) -> None:
        out = tmp_path / "run"
        rlai("compare", "gridworld", "--out", out, *QUICK)
        assert (out / "comparison.json").exists()
        (out / "notes.txt").write_text("mine")
        rlai("fit", "gridworld", "--steps", "2", "--out", out, "--overwrite")
        assert not (out / "comparison.json").exists()
        assert (out / "notes.txt").read_text() == "mine"

    def test_a_killed_run_can_be_replaced(self, tmp_path: Path) -> None:
        from rl_as_inference.cli.runs import new_run_folder

        new_run_folder(tmp_path / "run", overwrite=False)  # and nothing more: it was killed
        assert rlai("fit", "gridworld", "--steps", "2", "--out", tmp_path / "run", "--overwrite")[0] == 0

    def test_a_forged_list_of_files_reaches_nothing_outside(self, tmp_path: Path) -> None:
        out = tmp_path / "run"
        out.mkdir()
        (tmp_path / "thesis.tex").write_text("years of work")
        (out / "run.json").write_text(json.dumps({"files": ["../thesis.tex", str(tmp_path / "thesis.tex")]}))
        rlai("fit", "gridworld", "--steps", "2", "--out", out, "--overwrite")
        assert (tmp_path / "thesis.tex").exists()

    def test_an_unknown_problem_leaves_no_folder(self, tmp_path: Path) -> None:
        refused("compare", "corridr", "--out", tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_dtype() -> None:
    assert (
        load_problem("random_mdp", parse_options(["--dtype", "float64"])).initial_probabilities.dtype == torch.float64
    )
    assert "--dtype must be one of torch's" in refused("compare", "random_mdp", "--dtype", "float65")
