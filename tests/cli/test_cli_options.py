"""The options of ``rlai``: named as their Python arguments, told where misspelt, and tabled in the documentation."""

import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from command_line import refused, rlai
from typer.testing import CliRunner

from rl_as_inference import compare, fit, load_run, models, posterior
from rl_as_inference.agents import MPO, ModelBasedAgent, SoftActorCritic, SoftQLearning, perturb, train
from rl_as_inference.cli import app, application
from rl_as_inference.cli.sweeping import sweep
from rl_as_inference.guides import amortized_policy
from rl_as_inference.option_names import meant
from rl_as_inference.problems import load_problem
from rl_as_inference.report import draw_sources
from tools.option_tables import PAGES, with_tables

application.load()
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
OF_THE_SHELL = {"out", "overwrite", "progress", "resume"}
"""What a shell needs, or shows, and every command may have: where files go."""

PYTHON: dict[str, tuple[list[Any], dict[str, str]]] = {
    "compare": (
        [
            compare,
            fit,
            posterior,
            load_problem,
            amortized_policy,
        ],
        {
            "fit_num_trajectories": "compare's own argument of the name is --num-trajectories",
            "gradients_num_trajectories": "likewise, of compare_gradients",
            "gradients": "calls compare_gradients",
        },
    ),
    "fit": ([fit, load_problem, amortized_policy], {}),
    "train": (
        [train, MPO, ModelBasedAgent, SoftActorCritic, SoftQLearning],
        {"trust": "of find_problem, with --resume", "algorithm": "chooses the class", "video": "calls record_videos"},
    ),
    "evaluate": (
        [SoftActorCritic.evaluate, load_run],
        {"video": "calls record_videos"},
    ),
    "export": ([SoftActorCritic.export, load_run], {}),
    "robustness": ([perturb, load_run], {"perturbations": "perturb's name and sizes"}),
    "inspect": ([draw_sources, load_run], {}),
    "list": ([], {}),
    "open": ([load_run], {}),
    "sweep": ([sweep], {"set_": "one of sweep's values"}),
    "bench": ([], {"quick": "of python -m benchmarks.run"}),
}
"""For each command: the functions that it calls, and options that are an argument of none of them, with the reason."""


def options_of(command: str) -> list[Any]:
    return [each for each in COMMANDS[command].params if each.param_type_name == "option" and each.name != "help"]


def test_every_command_is_looked_at() -> None:
    assert set(PYTHON) == set(COMMANDS)


def test_commands_say_before_they_are_imported_what_they_say_after() -> None:
    assert {name: each.help for name, each in application.COMMANDS.items()} == {
        name: command.help for name, command in COMMANDS.items()
    }


@pytest.mark.parametrize("command", PYTHON)
def test_h_is_help(command: str) -> None:
    code, out, _ = rlai(command, "-h")
    assert code == 0
    assert application.COMMANDS[command].help.split()[0] in out
    assert out == rlai(command, "--help")[1]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("co", ["compare"]),
        ("compare ", models.__all__),
        ("fit random", ["random_mdp"]),
        ("train po", ["point_mass"]),
        ("sweep river", ["river_swim"]),
        ("train CartPole-v", ["CartPole-v0", "CartPole-v1"]),
        ("train CartPole-v1 --algorithm s", ["sac", "sql"]),
        ("compare corridor --estimator p", ["pathwise", "path_consistency"]),
        ("inspect runs/lake --method ex", ["exact"]),
        ("sweep corridor --command ", ["train", "fit", "compare"]),
        ("fit --learning", ["--learning-rate"]),
        ("fit corridor --learning", ["--learning-rate"]),
        ("fit my_own", []),  # the shell looks for files
    ],
)
def test_completion(line: str, words: list[str]) -> None:
    place = {"COMP_WORDS": f"rlai {line}", "COMP_CWORD": str(line.count(" ") + 1), "_RLAI_COMPLETE": "complete_bash"}
    result = CliRunner().invoke(app, [], prog_name="rlai", env=place)
    assert sorted(result.stdout.split()) == sorted(words)


@pytest.mark.parametrize("command", PYTHON)
def test_options_are_named_as_their_arguments_in_python(command: str) -> None:
    functions, others = PYTHON[command]
    arguments = {name for function in functions for name in inspect.signature(function).parameters}
    names = {option.name for option in options_of(command)} - OF_THE_SHELL
    assert names - arguments == set(others)
    for option in options_of(command):
        if option.name not in others:  # and it is written so
            shorter = {"asynchronous": "--async"}  # as the design names it
            assert option.opts[0] == shorter.get(option.name, "--" + option.name.replace("_", "-"))


def test_options_of_learners_are_those_of_all_classes() -> None:
    learners = (MPO, SoftActorCritic, SoftQLearning)
    arguments = {name for learner in learners for name in inspect.signature(learner).parameters}
    not_here = {"env", "policy", "critic", "env_kwargs", "dtype"}
    assert arguments - not_here <= {option.name for option in options_of("train")}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_tables_of_the_documentation_are_up_to_date(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("<!-- options: ") == text.count("<!-- end -->") >= 1
    assert with_tables(text) == text, "run python tools/option_tables.py"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        # What the command calls otherwise, or did once.
        (["compare", "gridworld", "--num-rollouts", "50"], "did you mean --num-trajectories?"),
        (["compare", "gridworld", "--num-gradients", "500"], "did you mean --gradients-num-trajectories?"),
        (["train", "Pendulum-v1", "--timesteps", "5"], "did you mean --num-steps?"),
        (["train", "Pendulum-v1", "--lr", "1e-3"], "--lr: not an option of Pendulum-v1; it takes --max-episode-steps"),
        (["train", "Pendulum-v1", "--lr", "1e-3"], "did you mean --learning-rate?"),
        (["train", "Pendulum-v1", "--gamma", "0.9"], "did you mean --discount?"),
        (["evaluate", "nowhere", "--episodes", "5"], "--num-episodes"),
        # Slips, of which none may reach the problem in silence.
        (["train", "Pendulum-v1", "compile"], "unexpected argument 'compile'; did you mean --compile?"),
        (["train", "Pendulum-v1", "--learning_rate", "1e-3"], "--learning_rate: did you mean --learning-rate?"),
        (["compare", "gridworld", "--step", "5"], "did you mean --steps?"),
        (["fit", "gridworld", "--step", "5"], "--step: not an option of gridworld; it takes --rows"),
        (["train", "Pendulum-v1", "--no-compil"], "did you mean --compile?"),
        (["train", "point_mass", "--bach-size", "8"], "did you mean --batch-size?"),
        (["fit", "gridworld", "--row", "3"], "did you mean --rows?"),
        (["train", "Pendulum-v1", "--render-mod", "ansi"], "did you mean --render-mode?"),
        (["train", "HalfCheetah-v5", "--hidden-size", "8"], "did you mean --hidden-sizes?"),  # takes **kwargs
        (["train", "Pendulum-v1", "--gee", "3"], "--gee: not an option of Pendulum-v1"),
    ],
)
def test_did_you_mean(words: list[str], message: str) -> None:
    code, out, err = rlai(*words)
    assert (code, out) == (2, "")
    assert message in " ".join(err.replace("│", " ").split())


def test_an_option_is_not_meant_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("from rl_as_inference.models import gridworld\ndef problem():\n    return gridworld()\n")
    for name in ("--horizon", "--discount", "--temperature"):
        told = refused("fit", path, name, "1")
        assert f"{name}: not an option of {path}:problem; it takes none" in told
        assert "did you mean" not in told


def test_slips_in_options_of_a_file_that_takes_any(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from rl_as_inference.models import gridworld\n"
        "def problem(rate=1.0, **others):\n"
        "    return gridworld(**others)\n"
    )
    assert "did you mean --learning-rate?" in refused("fit", path, "--learnin-rate", "1e-3")
    assert "did you mean --steps?" in refused("fit", path, "--step", "1")
    assert rlai("fit", path, "--steps", "1", "--rate", "2", "--rows", "3", "--no-progress")[0] == 0


def test_a_problems_own_option_is_no_slip() -> None:
    """``length`` of the corridor is like no option here, and ``horizon`` of a model is the command's."""
    assert meant("length", ["learning_rate", "steps"]) is None
    assert rlai("fit", "corridor", "--length", "3", "--steps", "1", "--no-progress")[0] == 0


def test_bench_runs_the_clones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert "run it from the folder of a clone" in refused("bench")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "run.py").write_text("import sys\nprint('ran', sys.argv[1:])\nsys.exit(3)\n")
    loaded = sys.modules.get("benchmarks.run")
    code, _, _ = rlai("bench", "--quick")
    assert code == 3
    assert capfd.readouterr().out == "ran ['--quick']\n"
    assert sys.modules.get("benchmarks.run") is loaded
