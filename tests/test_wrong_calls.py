"""Wrong calls of every public function: each is a ValueError or TypeError that names the argument and the mend.

The table is made from the signatures: for every public function a call that is right, and for each of its arguments
whatever a value of that kind must not be (a word for a number, a bool for a count, what is negative, zero, NaN,
infinite, complex, of another shape, None). An argument that is not in the table fails a test too.
"""

import inspect
import json
import math
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from problems import random_mdp

import rl_as_inference as rlai
from rl_as_inference import exact, guides, models
from rl_as_inference.agents import train
from rl_as_inference.agents.options import LearnerOptions
from rl_as_inference.agents.reading_options import options_of
from rl_as_inference.inspect import diagnose, foresee, from_trajectories, load_posterior, plots, save_posterior
from rl_as_inference.processes import Environments
from rl_as_inference.sampling import ProgramFilter

ROOT = Path(rlai.__file__).parents[1]
NAN, INF = math.nan, math.inf
HALF = torch.tensor([0.5, 0.5])
WORDS, EMPTY = Discrete(2), object()

# What an argument must not be, by its kind. A complex number and a word are no number at all; True is no count.
COUNT: list[Any] = ["three", 2.5, True, -1, 0, NAN, 1j, [3]]
NUMBER: list[Any] = ["one", NAN, INF, 1j, True, [1.0, 2.0]]
POSITIVE = [*NUMBER, 0.0, -1.0]
CHANCE = [*NUMBER, -0.1, 1.1]
SEED: list[Any] = ["zero", -1, 1.5, True, NAN, 1j]
FLAG: list[Any] = ["no", 2, NAN, 1j]
CALLABLE: list[Any] = [3, "uniform", HALF]
SIZES: list[Any] = ["wide", 64, (0,), (-1,), (2.5,), (True,), ("a",)]
CHOICE: list[Any] = ["other", 3, ["exact"]]
DTYPE: list[Any] = ["float33", 3, torch.int64, torch.complex64, float]
DEVICE: list[Any] = ["nowhere", 2.5, "cuda:99", []]
PROCESS: list[Any] = [3, "FrozenLake", HALF, {"transition": HALF}]
TABLE: list[Any] = [
    "a table",
    3,
    torch.ones(5, 7),
    torch.ones(3, 2, 3) * NAN,
    torch.ones(3, 2, 3, dtype=torch.complex64),
]
SPACE: list[Any] = [3, "Box", (2,), Box]

KINDS: dict[str, list[Any]] = {
    "ray": [3, ""],
    # By an argument's name, where it has one meaning everywhere.
    "temperature": [*POSITIVE, torch.ones(2), torch.ones((), dtype=torch.complex64)],
    "temperatures": ["cold", [0.0, 1.0], [NAN], [1j], []],
    "discount": ["near", -0.1, 1.1, NAN, 1j, torch.ones(2)],
    "horizon": ["long", 0, -1, 2.5, True, NAN, 1j],
    "hidden_sizes": SIZES,
    "dtype": DTYPE,
    "device": DEVICE,
    "process": PROCESS,
    "mdp": PROCESS,
    "policy": CALLABLE,
    "critic": [3, "soft", {}],
    "near": ["Thai", 3, None],
    "map_name": ["5x5", 3, None],
    "start": [],
    "estimator": CHOICE,
    "method": CHOICE,
    "dynamics": CHOICE,
    "direction": CHOICE,
    "strategy": CHOICE,
    "rendering": CHOICE,
    "sees": CHOICE,
    "activation": CHOICE,
    "architecture": CHOICE,
    "progress": [3, "bar"],
    "state_space": SPACE,
    "action_space": SPACE,
    "observation_space": SPACE,
    "family": [3, "bandit"],
    "program": [3, "corridor"],
    "prior": CALLABLE,
    "log_scale_bounds": [3, (1.0, 0.0), ("a", "b"), (NAN, 1.0), (1.0,)],
    "learning_rate": POSITIVE,
    "lambda_": CHANCE,
    "initial_scale": POSITIVE,
    "reward_noise": [*NUMBER, -1.0],
    "seed": SEED,
    "generator": [3, "cpu", torch.Generator],
    "mapping_seed": SEED,
}
CHANCES = {
    "slip",
    "becomes_hungry",
    "cries_hungry",
    "cries_sated",
    "cries_to_song",
    "note_accuracy",
    "breaks",
    "spoils",
    "reward_probability",
    "cue_validity",
    "accuracy",
}


class Call(NamedTuple):
    """A call that is right, and what its arguments must not be where name and annotation do not say it."""

    function: Callable[..., Any]
    given: Callable[[], dict[str, Any]] = dict
    wrong: dict[str, list[Any]] = {}  # noqa: RUF012 - never written to
    leave: tuple[str, ...] = ()
    """Arguments that may be anything, or are wrong only together with others; held by tests of their own."""


@cache
def tables() -> rlai.TabularMDP:
    return random_mdp(1, uniform_prior=True)


@cache
def hidden() -> rlai.TabularPOMDP:
    return models.tiger(horizon=2)


@cache
def gaussian() -> rlai.LinearGaussianMDP:
    return models.double_integrator(horizon=2)


@cache
def draws() -> rlai.Trajectories:
    return tables().rollout(None, 4)


@cache
def data() -> Any:
    return rlai.posterior(tables(), num_draws=4)


def guide() -> torch.nn.Module:
    return guides.TabularPolicy(3, 2).double()


def of_process(**more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"process": tables(), "policy": None, **more}


def of_mdp(**more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"mdp": tables(), **more}


def _tables() -> dict[str, Any]:
    mdp = tables()
    return {"transition": mdp.kernel.probabilities, "reward": mdp.reward_table, "initial": mdp.initial_probabilities}


def _hidden_tables() -> dict[str, Any]:
    return {**_tables(), "observation": torch.eye(3, dtype=torch.float64), "horizon": 2}


def _gaussian() -> dict[str, Any]:
    one = torch.ones(1, 1)
    names = ("A", "B", "noise_cov", "state_cost", "action_cost", "initial_cov", "action_prior_cov")
    return {**dict.fromkeys(names, one), "initial_mean": torch.zeros(1), "horizon": 2}


def _hidden_gaussian() -> dict[str, Any]:
    return {**_gaussian(), "observation_matrix": torch.ones(1, 1), "observation_cov": torch.ones(1, 1)}


_REWARDS = [*TABLE, torch.tensor([[INF, 0.0]] * 3)]
_MATRIX: list[Any] = [
    "a",
    None,
    NAN,
    torch.ones(2, 3),
    torch.full((1, 1), INF),
    torch.ones(1, 1, dtype=torch.complex64),
]
_MATRICES = dict.fromkeys(
    ("A", "B", "noise_cov", "state_cost", "action_cost", "initial_mean", "initial_cov", "action_prior_cov"), _MATRIX
)
_HIDDEN_MATRICES = {**_MATRICES, "observation_matrix": _MATRIX, "observation_cov": _MATRIX}
_DISTRIBUTION: list[Any] = [3, None, HALF]
_SITE: list[Any] = [3, None]
BOX = Box(-1.0, 1.0, (2,))
_NETWORK = {"state_space": BOX, "action_size": 1}
_PATHS: list[Any] = [3, None]
_DATA: list[Any] = [3, None, "posterior.nc", {}]

CALLS: dict[str, Call] = {
    # models: every argument has a default, and a kind by its name or its annotation
    **{f"models.{name}": Call(getattr(models, name)) for name in models.__all__},
    **{f"models.families.{name}": Call(getattr(models.families, name)) for name in models.families.__all__},
    # guides
    "guides.BeliefPolicy": Call(
        guides.BeliefPolicy, lambda: {"process": hidden()}, {"head": CALLABLE, "num_particles": COUNT}
    ),
    "guides.CategoricalPolicy": Call(guides.CategoricalPolicy, lambda: {"state_space": WORDS, "num_actions": 2}),
    "guides.FactoredCategoricalPolicy": Call(
        guides.FactoredCategoricalPolicy, lambda: {"state_space": WORDS, "sizes": (2, 2)}, {"sizes": SIZES}
    ),
    "guides.FlowPolicy": Call(guides.FlowPolicy, lambda: _NETWORK),
    "guides.GaussianPolicy": Call(guides.GaussianPolicy, lambda: _NETWORK),
    "guides.TanhGaussianPolicy": Call(guides.TanhGaussianPolicy, lambda: _NETWORK),
    "guides.TanhGaussianMixturePolicy": Call(guides.TanhGaussianMixturePolicy, lambda: _NETWORK),
    "guides.SteinSampler": Call(guides.SteinSampler, lambda: _NETWORK),
    "guides.LinearGaussianPolicy": Call(guides.LinearGaussianPolicy, lambda: {"state_size": 2, "action_size": 1}),
    "guides.TabularPolicy": Call(guides.TabularPolicy, lambda: {"num_states": 2, "num_actions": 2}),
    "guides.RecurrentPolicy": Call(
        guides.RecurrentPolicy, lambda: {"observation_space": WORDS, "action_space": WORDS}, {"head": CALLABLE}
    ),
    "guides.EnergyBasedPolicy": Call(
        guides.EnergyBasedPolicy,
        lambda: {
            "q": torch.nn.Linear(1, 1),
            "sampler": None,
            "temperature": lambda: torch.ones(()),
            "state_dims": 1,
            "action_size": 1,
        },
        {"q": [3, None, "q"], "sampler": [3, "stein"], "temperature": [3, None, "warm"], "state_dims": ["a", -1, True]},
    ),
    "guides.SoftmaxPolicy": Call(
        guides.SoftmaxPolicy,
        lambda: {"q": torch.nn.Linear(1, 1), "temperature": lambda: torch.ones(())},
        {"q": [3, None, "q"], "temperature": [3, None, "warm"], "log_prior": CALLABLE, "sizes": SIZES},
    ),
    "guides.amortized_policy": Call(guides.amortized_policy, lambda: {"process": tables()}),
    # processes
    "TabularMDP": Call(
        rlai.TabularMDP,
        _tables,
        {
            "transition": TABLE,
            "reward": _REWARDS,
            "initial": TABLE,
            "action_prior": TABLE,
            "terminal": ["none", 3, torch.ones(3), torch.ones(2, dtype=torch.bool)],
        },
    ),
    "TabularMDP.from_gymnasium": Call(
        rlai.TabularMDP.from_gymnasium,
        lambda: {"env_id": "FrozenLake-v1"},
        {"env_id": [3, None, "Frozen", "CartPole-v1"]},
    ),
    "TabularMDP.from_successors": Call(
        rlai.TabularMDP.from_successors,
        lambda: {
            "indices": torch.zeros(1, 1, 1, dtype=torch.int64),
            "probabilities": torch.ones(1, 1, 1),
            "reward": torch.zeros(1, 1),
            "initial": torch.ones(1),
        },
        {
            "indices": [3, "first", torch.ones(1, 1, 1), torch.full((1, 1, 1), 5)],
            "probabilities": TABLE,
            "reward": _REWARDS,
            "initial": TABLE,
            "action_prior": TABLE,
            "terminal": ["none", 3, torch.ones(1)],
        },
    ),
    "TabularPOMDP": Call(
        rlai.TabularPOMDP,
        _hidden_tables,
        {
            "transition": TABLE,
            "reward": _REWARDS,
            "initial": TABLE,
            "action_prior": TABLE,
            "observation": TABLE,
            "terminal": ["none", 3, torch.ones(3), torch.ones(2, dtype=torch.bool)],
        },
    ),
    "LinearGaussianMDP": Call(rlai.LinearGaussianMDP, _gaussian, {**_MATRICES, "drift": ["a", torch.ones(3), 1j]}),
    "LinearGaussianPOMDP": Call(
        rlai.LinearGaussianPOMDP, _hidden_gaussian, {**_HIDDEN_MATRICES, "drift": ["a", torch.ones(3), 1j]}
    ),
    "MarkovDecisionProcess": Call(rlai.MarkovDecisionProcess),
    "MarkovDecisionProcess.rollout": Call(tables().rollout, lambda: {"policy": None, "num_trajectories": 2}),
    "MarkovDecisionProcess.at_temperature": Call(tables().at_temperature, lambda: {"temperature": 1.0}),
    "PartiallyObservedMDP": Call(rlai.PartiallyObservedMDP),
    "GymnasiumProcess": Call(
        rlai.GymnasiumProcess,
        lambda: {"env_id": "CartPole-v1"},
        {"env_id": [3, None, "Nowhere-v1"], "statistics": [3, "mean", {"mean": 3}]},
    ),
    "LearnedDynamics": Call(
        rlai.LearnedDynamics,
        lambda: {"state_space": BOX, "action_space": BOX},
        {"reward": CALLABLE, "terminated": CALLABLE, "initial": [3, "here"]},
    ),
    "to_gymnasium": Call(rlai.to_gymnasium, lambda: {"process": tables()}),
    "to_gymnasium_vector": Call(rlai.to_gymnasium_vector, lambda: {"process": tables(), "num_envs": 2}),
    "Trajectories": Call(
        rlai.Trajectories,
        lambda: {name: getattr(draws(), name) for name in inspect.signature(rlai.Trajectories).parameters},
        {
            **{
                name: [3, None, "a", torch.ones(7, 7)]
                for name in ("states", "actions", "rewards", "mask", "log_prior", "log_policy", "log_factors")
            },
            "latents": [3, None],
            "observations": [3, "a"],
        },
    ),
    "History": Call(
        rlai.History, wrong={"observations": [3, None], "actions": [3, None], "batch_shape": [3, None, ("a",)]}
    ),
    # the language
    "act": Call(
        rlai.act,
        lambda: {"name": "a", "state": 0, "prior": dist.Bernoulli(0.5)},
        {"name": _SITE, "prior": _DISTRIBUTION},
        leave=("state",),
    ),
    "observe": Call(
        rlai.observe,
        lambda: {"name": "a", "distribution": dist.Bernoulli(0.5)},
        {"name": _SITE, "distribution": _DISTRIBUTION},
    ),
    "reward": Call(
        rlai.reward,
        lambda: {"name": "a", "value": 1.0},
        {
            "name": _SITE,
            "value": ["much", None, NAN, INF, 1j, torch.tensor(INF)],
            "temperature": ["a", 0.0, -1.0, NAN, INF, 1j, None],
        },
    ),
    "terminate": Call(rlai.terminate, lambda: {"done": True}, {"done": [None, "yes", 1j, 0.5, torch.ones(2)]}),
    "steps": Call(
        lambda *args, **kwargs: list(rlai.steps(*args, **kwargs)),
        lambda: {"horizon": 2},
        {"horizon": ["a", -1, 2.5, True, NAN, None], "like": [3, "a"], "discount": ["a", -0.1, 1.1, NAN, 1j, None]},
    ),
    "follow": Call(rlai.follow, lambda: {"program": models.corridor(), "policy": lambda state, t: None}),
    "simulate": Call(rlai.simulate, lambda: {"program": models.corridor()}),
    "survival": Call(rlai.survival, lambda: {"program": models.corridor()}),
    "given_return": Call(
        rlai.given_return,
        lambda: {"program": models.corridor(), "at_least": 1.0},
        {"at_least": ["much", NAN, 1j, None]},
    ),
    # readings
    "posterior": Call(rlai.posterior, lambda: {"process": tables()}),
    "estimate_elbo": Call(rlai.estimate_elbo, of_process()),
    "estimate_log_evidence": Call(rlai.estimate_log_evidence, lambda: {"process": tables()}),
    "trajectory_kl": Call(rlai.trajectory_kl, of_process()),
    "compare": Call(rlai.compare, of_process(num_trajectories=2)),
    "compare_gradients": Call(
        rlai.compare_gradients,
        lambda: {"process": tables(), "policy": guide(), "num_trajectories": 20, "num_blocks": 10},
        {"policy": [3, None, "uniform", abs]},
    ),
    "fit": Call(
        rlai.fit,
        lambda: {"process": tables(), "policy": guide(), "steps": 1, "progress": False},
        {
            "policy": [3, None, "uniform", abs],
            "steps": COUNT,
            "eta": POSITIVE,
            "epsilon": POSITIVE,
            "teacher": CALLABLE,
            "behavior": CALLABLE,
            "tempering": POSITIVE,
            "callback": [3, "print"],
            "on_report": [3, "print"],
            "n": COUNT,
            "checkpoint": [3, ["a", "b"]],
            "checkpoint_seconds": POSITIVE,
        },
    ),
    "joined": Call(rlai.joined, lambda: {"distributed": False}),
    "TrajectoryELBO": Call(rlai.TrajectoryELBO, wrong={"n": COUNT, "projection": [3, "em"], "behavior": CALLABLE}),
    # exact
    "exact.plan": Call(exact.plan, of_mdp()),
    "exact.evaluate": Call(exact.evaluate, of_mdp(policy=None), {"policy": [3, "a", torch.ones(7)]}),
    "exact.elbo": Call(exact.elbo, of_mdp(policy=None), {"policy": [3, "a", torch.ones(7)]}),
    "exact.expected_return": Call(exact.expected_return, of_mdp(policy=None), {"policy": [3, "a", torch.ones(7)]}),
    "exact.occupancy": Call(exact.occupancy, of_mdp(policy=None), {"policy": [3, "a", torch.ones(7)]}),
    "exact.optimal_elbo": Call(exact.optimal_elbo, of_mdp()),
    "exact.log_evidence": Call(exact.log_evidence, of_mdp()),
    "exact.posterior_return": Call(exact.posterior_return, of_mdp()),
    "exact.posterior_occupancy": Call(exact.posterior_occupancy, of_mdp()),
    "exact.sample_posterior": Call(exact.sample_posterior, of_mdp(num_draws=2)),
    "exact.trajectory_kl": Call(exact.trajectory_kl, of_mdp(policy=None), {"policy": [3, "a", torch.ones(7)]}),
    "exact.optimal_prior": Call(exact.optimal_prior, of_mdp(), {"tolerance": POSITIVE}),
    "exact.enumerate_trajectories": Call(
        exact.enumerate_trajectories, of_mdp(), {"limit": COUNT, "policy": [3, "a", torch.ones(7)]}
    ),
    "exact.backward_step": Call(
        exact.backward_step,
        of_mdp(soft_v=torch.zeros(3).double()),
        {"soft_v": [3, "a", None, torch.ones(7), torch.zeros(3, dtype=torch.complex64)]},
    ),
    "exact.belief": Call(
        exact.belief,
        lambda: {
            "pomdp": hidden(),
            "observations": torch.zeros(1, dtype=torch.int64),
            "actions": torch.zeros(1).long(),
        },
        {
            "pomdp": PROCESS,
            "observations": [3, "a", None, torch.ones(2)],
            "actions": [3, "a", None, torch.ones(7).long()],
        },
    ),
    # planners, learners and what is learned
    "MPPIPlanner": Call(
        rlai.MPPIPlanner,
        lambda: {"process": models.pendulum(horizon=3), "look_ahead": 2, "num_samples": 4},
        {"look_ahead": COUNT, "proposal": CALLABLE, "iterations": COUNT, "scale": POSITIVE, "elites": COUNT},
    ),
    "SMCPlanner": Call(
        rlai.SMCPlanner,
        lambda: {"process": tables(), "look_ahead": 2, "num_particles": 4},
        {"look_ahead": COUNT, "proposal": CALLABLE},
    ),
    "SoftPolicyIteration": Call(rlai.SoftPolicyIteration, of_mdp()),
    "SoftPolicyIteration.learn": Call(
        rlai.SoftPolicyIteration(tables().replace(horizon=None, discount=0.5)).learn, dict, {"tolerance": POSITIVE}
    ),
    "learn_offline": Call(
        rlai.learn_offline,
        lambda: {"dataset": draws(), "observation_space": Discrete(3), "action_space": Discrete(2), "num_updates": 1},
        {
            "dataset": [3, None, [], ["a"]],
            "env": [3, "Nowhere-v1"],
            "expectile": CHANCE,
            "largest_weight": POSITIVE,
            "kl_improvement": POSITIVE,
            "batch_size": COUNT,
            "target_average": CHANCE,
            "compile": [3, "yes"],
            "report_every": COUNT,
            "evaluate_every": COUNT,
            "evaluate_episodes": COUNT,
            "policy": [3, "a", abs],
        },
    ),
    # reasoning and exploration
    "satisfice": Call(rlai.satisfice, of_mdp(epsilon=0.1), {"epsilon": CHANCE}),
    "rationality_curve": Call(rlai.rationality_curve, of_mdp()),
    "hyperbolic_policy": Call(
        rlai.hyperbolic_policy, of_mdp(), {"k": ["a", -1.0, NAN, INF, 1j, torch.ones(2)], "discount": [3, "a"]}
    ),
    "worst_case": Call(
        rlai.worst_case,
        of_mdp(policy=None, reward_budget=0.1),
        {"reward_budget": [*NUMBER, -1.0], "dynamics_budget": [*NUMBER, -1.0], "policy": [3, "a", torch.ones(7)]},
    ),
    "infer_agent": Call(
        rlai.infer_agent,
        lambda: {"family": tables, "demonstrations": draws()},
        {"demonstrations": [3, None, "seen", []]},
    ),
    "infer_dynamics": Call(
        rlai.infer_dynamics,
        lambda: {"family": models.families.bandit(), "trajectories": models.bandit().rollout(None, 2)},
        {"trajectories": [3, None, "seen", []]},
    ),
    "explore": Call(
        rlai.explore,
        lambda: {"family": models.families.bandit(), "truth": models.bandit(), "num_episodes": 1},
        {"truth": PROCESS, "transition_term": CHOICE, "reward_range": POSITIVE, "max_beliefs": COUNT},
    ),
    "bayes_adaptive": Call(rlai.bayes_adaptive, lambda: {"family": models.families.bandit()}, {"max_beliefs": COUNT}),
    "ConjugatePosterior.of": Call(rlai.ConjugatePosterior.of, lambda: {"family": models.families.bandit()}),
    # files, and looking
    "load_run": Call(
        rlai.load_run,
        lambda: {"folder": "nowhere"},
        {"folder": _PATHS},
        leave=("env", "allow_changed", "best", "device"),
    ),
    "sweep": Call(
        rlai.sweep,
        lambda: {"problem": "corridor", "values": {"learning_rate": [0.1]}, "out": "nowhere"},
        {
            "problem": [3, None],
            "values": [3, "a", {"learning_rate": []}],
            "options": [3, "a"],
            "out": [3],
            "command": ["run", 3],
            "ray": [3],
        },
    ),
    "inspect.diagnose": Call(diagnose, lambda: {"data": data()}, {"data": _DATA}),
    "inspect.from_trajectories": Call(
        from_trajectories,
        lambda: {"chains": draws()},
        {
            "chains": [3, None, "a", []],
            "log_weight": [3, "a", torch.ones(7)],
            "proposal_log_weight": [3, "a"],
            "prior": [3, "a"],
            "problem": [3, None],
            "statistics": [3, "a", {"mine": torch.ones(7)}],
            "observed": [3, "a"],
            "state_names": [3, ["a"]],
            "action_names": [3, ["a"]],
        },
    ),
    "inspect.save_posterior": Call(
        save_posterior, lambda: {"data": data(), "path": "/nowhere/a.nc"}, {"data": _DATA, "path": _PATHS}
    ),
    "inspect.load_posterior": Call(load_posterior, lambda: {"path": "a.nc"}, {"path": [*_PATHS, "nowhere.nc"]}),
    "inspect.foresee": Call(
        foresee, lambda: {"agent": 3}, {"agent": [3, None, "agent"]}, leave=("num_steps", "every", "num_draws", "seed")
    ),
}
_LEARNERS = (rlai.SoftActorCritic, rlai.SoftQLearning, rlai.MPO, rlai.ModelBasedAgent)
_OPTIONS: dict[str, list[Any]] = {
    "env": [3, None, "Nowhere-v1", {}],
    "temperature": ["warm", 0.0, -1.0, NAN, INF, 1j, True, [1.0]],
    "env_kwargs": [3, "a"],
    "policy": [3, "a", abs],
    "critic": [3, "a", abs],
    "compile": [3, "yes", None],
    "memory": ["lstm", 3],
    "priority_exponent": [*NUMBER, -1.0],
    "importance_exponent": CHANCE,
    "target_entropy": NUMBER,
    "target_return": NUMBER,
    "exploration_noise": [*NUMBER, -1.0],
    "updates_per_step": POSITIVE,
    "initial_temperature": POSITIVE,
    "value_bound": POSITIVE,
    "action_scale": POSITIVE,
    "adam_beta": [*NUMBER, -0.1, 1.0],
    "target_average": CHANCE,
    "real_share": CHANCE,
    "burn_in": ["a", -1, 1.5, True],
    "reward_function": [3, "a"],
    "dtype": [*DTYPE, torch.float16],
}
# The options that all learners have are declared once, and held once.
_COMMON = tuple(option.name for option in options_of(LearnerOptions))
CALLS |= {
    learner.__name__: Call(
        learner,
        lambda: {"env": "CartPole-v1"},
        _OPTIONS,
        leave=() if learner is rlai.SoftActorCritic else _COMMON,
    )
    for learner in _LEARNERS
}


def _plotted(function: Any) -> Callable[[], dict[str, Any]]:
    """Returns arguments for those that a plot cannot do without; its first is the one that is wrong."""
    needed = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    return lambda: {name: [1.0] for name in needed[1:]}


_PLOTTED: list[Any] = [3, None, "a"]
CALLS |= {
    f"inspect.plots.{name}": Call(
        getattr(plots, name),
        _plotted(getattr(plots, name)),
        {next(iter(inspect.signature(getattr(plots, name)).parameters)): _PLOTTED},
        leave=tuple(inspect.signature(getattr(plots, name)).parameters)[1:],
    )
    for name in plots.__all__
    if name.startswith("plot_")
}


def kind_of(call: Call, parameter: inspect.Parameter) -> list[Any] | None:
    """Returns what an argument must not be: by the call, its name, or its annotation; None if nothing says it."""
    name, annotation = parameter.name, str(parameter.annotation)
    if isinstance(parameter.annotation, type):
        annotation = parameter.annotation.__name__
    wrong = call.wrong.get(name)
    if wrong is None:
        wrong = CHANCE if name in CHANCES else KINDS.get(name)
    if wrong is None and annotation.startswith(("bool", "'bool")):
        wrong = FLAG
    if wrong is None and "int" in annotation and "Sequence" not in annotation and "tuple" not in annotation:
        wrong = COUNT
    if wrong is None and annotation.startswith(("float", "'float")):
        wrong = NUMBER
    if wrong is None and "Literal" in annotation:
        wrong = CHOICE
    if wrong is None and "hidden_sizes" in name:
        wrong = SIZES
    if wrong is None and annotation.startswith(("collections.abc.", "tuple", "torch.Tensor", "Sequence")):
        wrong = [3, "a", [1j]]
    if wrong is not None and not {"None", "NoneType", "Optional"} & set(re.findall(r"\w+", annotation)):
        wrong = [*wrong, None] if parameter.default is not None and not any(each is None for each in wrong) else wrong
    return wrong


def wrong_calls(name: str) -> Iterator[tuple[str, Any]]:
    """Yields each argument of a function with each value that it must not have."""
    call = CALLS[name]
    parameters = inspect.signature(_signature_of(call.function)).parameters.values()
    for parameter in parameters:
        if parameter.name in call.leave or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        for value in kind_of(call, parameter) or ():
            yield parameter.name, value


def _signature_of(function: Any) -> Any:
    return rlai.steps if getattr(function, "__name__", "") == "<lambda>" else function


MENDS = re.compile(r"\b(must|give|use|needs?|pass|choose|leave|make|set|check|mend|lower|act|no file)\b")


@pytest.mark.parametrize("name", CALLS)
def test_wrong_calls_are_named(name: str) -> None:
    missed = []
    for argument, value in wrong_calls(name):
        said = how_refused(CALLS[name], argument, value)
        if said is not None:
            missed.append(f"{argument}={value!r:.60}: {said}")
    assert not missed, "\n".join(missed)


def how_refused(call: Call, argument: str, value: Any) -> str | None:
    """Returns what is wrong with the way in which a wrong call is refused; None if it is as it should be."""
    try:
        call.function(**{**call.given(), argument: value})
    except (ValueError, TypeError) as error:
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        place = Path(frame.tb_frame.f_code.co_filename) if frame is not None else ROOT
        if not re.search(rf"(\b|--){argument.replace('_', '[_-]')}(\b|_)", str(error)):
            return f"not named: {type(error).__name__}: {error!s:.150}"
        if not MENDS.search(str(error)):
            return f"no mend: {error!s:.150}"
        return None if place.is_relative_to(ROOT) else f"from deep inside: {place.name}: {error!s:.150}"
    except Exception as error:
        return f"{type(error).__name__}: {error!s:.150}"
    return "accepted"


ANSWERS = {
    "Comparison", "Estimate", "Exploration", "FitResult", "GradientComparison", "OfflineResult", "Run", "Satisficing",
    "Sweep", "exact.BeliefEvaluation", "exact.BeliefPlan", "exact.Direction", "exact.Dynamics", "exact.Enumeration",
    "exact.GaussianBelief", "exact.KalmanPlan", "exact.LinearGaussianPlan", "exact.Plan", "exact.PriorPlan",
    "exact.Solvable", "exact.StationaryBeliefPlan", "inspect.Diagnosis", "inspect.DivergenceMethod",
    "inspect.EvidenceMethod", "inspect.Foresight", "inspect.Method", "inspect.Outlook", "guides.TanhFlow",
    "guides.TanhNormal", "guides.TanhNormalMixture",
}  # fmt: skip
"""What is public and made by the library alone: answers, types, and the distributions that guides answer with."""
WITHOUT_ARGUMENTS = {"history", "exact.is_available"}
"""What takes nothing, or anything."""
ELSEWHERE = {
    "ConjugatePosterior",
    *(f"inspect.{name}" for name in ("estimate_log_evidence", "posterior", "trajectory_kl")),
}
"""What is called by one of its methods, or is public under another name."""


def _public() -> Iterator[str]:
    rooms = {"": rlai, "models.": models, "models.families.": models.families, "guides.": guides, "exact.": exact}
    for lead, room in {**rooms, "inspect.": rlai.inspect, "inspect.plots.": plots}.items():
        yield from (f"{lead}{name}" for name in room.__all__ if not inspect.ismodule(getattr(room, name)))


def test_every_public_function_is_in_the_table() -> None:
    colours = {f"inspect.plots.{name}" for name in plots.__all__ if not callable(getattr(plots, name))}
    assert {*_public()} - CALLS.keys() == ANSWERS | WITHOUT_ARGUMENTS | ELSEWHERE | colours


def test_every_argument_has_its_wrong_values() -> None:
    """So that a new argument joins the table, or is left out of it by name."""
    count = 0
    for name, call in CALLS.items():
        for parameter in inspect.signature(_signature_of(call.function)).parameters.values():
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or parameter.name in call.leave:
                continue
            assert kind_of(call, parameter), f"{name}: nothing says what {parameter.name} must not be"
        count += sum(1 for _ in wrong_calls(name))
    assert count >= 400


SLOW = {
    "infer_agent",
    "fit",
    "compare_gradients",
    "observe",
    "infer_dynamics",
    "learn_offline",
    "sweep",
    *(learner.__name__ for learner in _LEARNERS),
}
"""Calls that take a while to go through, or go through inside of a loop alone."""


RIGHT = [name for name in CALLS if not name.startswith(("inspect.", "load_run")) and name not in SLOW]
"""Calls that need neither files nor time."""


@pytest.mark.parametrize("name", RIGHT)
def test_calls_that_are_right_are_not_refused(name: str) -> None:
    """What the table varies is a call that goes through, so that nothing is refused for another reason."""
    CALLS[name].function(**CALLS[name].given())


class Given(gymnasium.Env[Any, Any]):
    """An environment whose step gives what it is told to."""

    observation_space, action_space = Box(-9.0, 9.0, (2,)), Discrete(2)

    def __init__(self, **told: Any) -> None:
        self.answer = {"observation": np.zeros(2, np.float32), "reward": 0.0, "terminated": False, "truncated": False}
        self.answer |= told

    def reset(self, **_: Any) -> Any:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        return (*self.answer.values(), {})


@pytest.mark.parametrize(
    "told",
    [
        {"reward": INF}, {"reward": NAN}, {"reward": None}, {"reward": 1j}, {"terminated": None}, {"terminated": 0},
        {"truncated": None}, {"truncated": "no"}, {"observation": np.zeros((1, 2), np.float32)},
        {"observation": np.zeros(2, complex)}, {"observation": np.full(2, NAN)}, {"observation": None},
    ],
    ids=str,
)  # fmt: skip
def test_what_an_environment_must_not_give(told: dict[str, Any]) -> None:
    envs = Environments.make(lambda: Given(**told))
    envs.reset()
    with pytest.raises(ValueError, match=rf"gave an? .*{next(iter(told))}.*(mend|must|return|check)"):
        envs.step(np.zeros(1, np.int64))


class Earning(rlai.MarkovDecisionProcess):
    """A process in parts whose reward is what it is told."""

    state_space, action_space, horizon = Box(-INF, INF, (2,)), Discrete(2), 2
    pays: float = 0.0

    def initial(self) -> Any:
        return dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def transition(self, state: Any, action: Any) -> Any:
        return dist.Normal(state, 1.0).to_event(1)

    def reward(self, state: Any, action: Any, next_state: Any) -> Any:
        return torch.full((len(state),), self.pays)


def test_rewards_that_nothing_can_weigh() -> None:
    process = Earning()
    for told, words in ((INF, r"reward is \+inf.* at step 0; check reward\(\)"), (NAN, "reward is NaN at step 0")):
        process.pays = told
        with pytest.raises(ValueError, match=words):
            process.rollout(None, 3)
    process.pays = -INF  # a way that is forbidden
    assert process.rollout(None, 3).rewards.isneginf().all()


def test_observations_of_another_shape_are_no_observations() -> None:
    def program() -> None:
        for t in rlai.steps(2):
            rlai.observe(f"seen_{t}", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            rlai.act(f"action_{t}", rlai.history(), dist.Bernoulli(0.5))

    filtered = ProgramFilter(program, 5)
    for wrong in (torch.zeros(1, 2), torch.zeros(3), torch.zeros(())):
        with pytest.raises(ValueError, match=r"observation must be of one trajectory, of shape \(2,\)"):
            filtered.start(wrong)
    assert filtered.start(torch.zeros(2)).log_evidence < 0


@pytest.mark.parametrize("method", ["exact", "annealed", "nuts"])
def test_policies_that_a_method_has_no_use_for(method: Any) -> None:
    with pytest.raises(ValueError, match=f"policy is no part of method='{method}'.*leave it out"):
        rlai.posterior(tables(), guide(), method=method)
    with pytest.raises(ValueError, match="dynamics='causal' is of method='exact'"):
        rlai.posterior(tables(), dynamics="causal")


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    """As a sweep over an array gives them; what is written holds Python's own."""
    twelve, six = np.int64(12), np.int64(6)
    agent = rlai.SoftActorCritic("Pendulum-v1", hidden_sizes=(8,), batch_size=4, learning_starts=8, compile=False)
    train(agent, twelve, tmp_path / "run", evaluate_every=six, evaluate_episodes=np.int64(1), checkpoint_every=six)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["num_steps"] == 12
    assert torch.equal(agent.evaluate(1, seed=np.int64(3)).returns, agent.evaluate(1, seed=3).returns)
    assert models.random_mdp(np.int64(4), np.int64(2), horizon=3).num_states == 4
    assert rlai.estimate_elbo(tables(), None, np.int64(9), seed=np.int64(3)) == rlai.estimate_elbo(
        tables(), None, 9, seed=3
    )
    rlai.posterior(tables(), method=np.str_("smc"), num_draws=5)
    with pytest.raises(ValueError, match="agent must be a Learner"):
        train("Pendulum-v1", 12)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="folder must name a folder"):
        train(agent, 24, "")


def test_tables_as_other_programs_hold_them() -> None:
    """Of a foreign byte order, turned around, as a list of tensors: the same tables."""
    transition = np.random.default_rng(0).dirichlet(np.ones(3), (3, 2))
    reward, initial = np.zeros((3, 2)), np.ones(3) / 3
    wanted = exact.elbo(rlai.TabularMDP(torch.tensor(transition), reward, initial, horizon=3), None)
    for told in (transition.astype(">f8"), transition[::-1].copy()[::-1], [torch.tensor(rows) for rows in transition]):
        assert exact.elbo(rlai.TabularMDP(told, reward, initial, horizon=3), None) == wanted


def test_what_is_found_after_the_door() -> None:
    env = rlai.to_gymnasium(tables())
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action must be an integer from 0 to"):
        env.step(99)
    with pytest.raises(ValueError, match="must name what it shows"):
        plots.plot_returns(rlai.posterior(tables(), num_draws=5))
    frozen = guides.TabularPolicy(tables().num_states, tables().num_actions, horizon=2).requires_grad_(False)
    with pytest.raises(ValueError, match="none requires a gradient"):
        rlai.fit(tables(), frozen, steps=2)
