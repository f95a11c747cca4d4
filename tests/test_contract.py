"""One contract for all readings: the right value whatever the problem has, the same error for the same mistake.

Every reading of a process is run on every feature that a process may have, against exact answers of its tables, and on
every mistake that a policy or a reward may be. A new reading joins the lists here in the commit that brings it.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.utils.env_checker import check_env
from problems import TAXI, random_mdp
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch import Tensor

import rl_as_inference as rlai
from rl_as_inference import MarkovDecisionProcess, TabularMDP, TrajectoryELBO, exact, follow
from rl_as_inference.processes import first_look

N = 4000


class InParts(MarkovDecisionProcess):
    """The process of some tables, told by its parts alone, on spaces that may start elsewhere."""

    def __init__(self, tables: TabularMDP, first_state: int = 0, first_action: int = 0) -> None:
        super().__init__(horizon=tables.horizon, discount=tables.discount, temperature=tables.temperature)
        self.tables, self.first_state, self.first_action = tables, first_state, first_action
        self.state_space = Discrete(tables.num_states, start=first_state)
        self.action_space = Discrete(tables.num_actions, start=first_action)
        self.has_uniform_prior = tables.has_uniform_prior

    def initial(self) -> Any:
        return self._shifted(self.tables.initial())

    def transition(self, state: Tensor, action: Tensor) -> Any:
        assert int(action.min()) >= self.first_action
        return self._shifted(self.tables.transition(state - self.first_state, action - self.first_action))

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Any:
        return self.tables.reward(state - self.first_state, action - self.first_action, next_state - self.first_state)

    def prior(self, state: Tensor) -> Any:
        return self.tables.prior(state - self.first_state)

    def terminated(self, state: Tensor) -> Tensor | None:
        return self.tables.terminated(state - self.first_state)

    def _shifted(self, chances: Any) -> Any:
        return Shifted(chances.logits, self.first_state) if self.first_state else chances


class Shifted(dist.Categorical):
    """A categorical over integers that start elsewhere."""

    def __init__(self, logits: Tensor, first: int) -> None:
        super().__init__(logits=logits, validate_args=False)
        self.first = first

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Shifted":
        return Shifted(self.logits.expand(*batch_shape, -1), self.first)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return super().sample(torch.Size(sample_shape)) + self.first

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value - self.first)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        return super().enumerate_support(expand) + self.first


@dataclass(frozen=True)
class Feature:
    """A process and the tables that say what is right of it."""

    tables: TabularMDP
    process: Any

    @property
    def policy(self) -> Any:
        """Some policy that the action prior allows, the further from it the later."""
        tables = self.tables
        generator = torch.Generator().manual_seed(3)
        lean = torch.randn(tables.horizon, tables.num_states, tables.num_actions, generator=generator).double()
        table = (tables.log_action_prior + 0.5 * lean).log_softmax(-1)
        return lambda state, t: dist.Categorical(logits=table[t, state])


def _with_zeros() -> TabularMDP:
    tables = random_mdp(5, num_states=3, num_actions=3, horizon=3)
    prior = torch.tensor([[0.0, 0.4, 0.6], [1.0, 0.0, 0.0], [0.3, 0.3, 0.4]], dtype=torch.float64)
    return tables.replace(action_prior=prior)


_PLAIN = {
    "plain": random_mdp(1, horizon=3, uniform_prior=True),
    "endings": random_mdp(2, horizon=3, terminal=True),
    "a discount": random_mdp(3, horizon=3, discount=0.7),
    "a discount and endings": random_mdp(4, horizon=3, discount=0.7, terminal=True),
    "an action prior with zeros": _with_zeros(),
    "rewards on successors": random_mdp(6, horizon=3, reward_on_successor=True),
}
FEATURES = {name: Feature(tables, InParts(tables)) for name, tables in _PLAIN.items()}
FEATURES |= {f"{name}, as tables": Feature(tables, tables) for name, tables in _PLAIN.items()}
FEATURES["actions from -1"] = Feature(_PLAIN["plain"], InParts(_PLAIN["plain"], 0, -1))
FEATURES["states from 5"] = Feature(_PLAIN["endings"], InParts(_PLAIN["endings"], 5, 0))
FEATURES["both elsewhere"] = Feature(_PLAIN["a discount and endings"], InParts(_PLAIN["a discount and endings"], -4, 2))

Reading = Callable[[Any, Any], tuple[float, float]]
"""A process and a policy to an estimate and its standard error."""


def _of_draws(values: Any) -> tuple[float, float]:
    values = torch.as_tensor(np.asarray(values)).double().flatten()
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def _of_estimate(found: Any) -> tuple[float, float]:
    return found.mean, found.standard_error


def _compare(process: Any, policy: Any) -> tuple[float, float]:
    found = rlai.compare(process, policy, num_trajectories=N)
    return found.elbo, found.elbo_standard_error


def _guide(process: Any, policy: Any) -> tuple[float, float]:
    return _of_draws(rlai.posterior(process, policy, num_draws=N).sample_stats["log_weight"])


def _losses(elbo: Callable[[], Any], program: Callable[[Any], Any]) -> Reading:
    """Returns the mean of a Pyro objective over groups of trajectories."""

    def read(process: Any, policy: Any) -> tuple[float, float]:
        model, size, groups = program(process), 200, 20
        return _of_draws([-elbo().loss(model, follow(model, policy), size) / size for _ in range(groups)])

    return read


def _off_policy(program: Callable[[Any], Any]) -> Reading:
    """Returns what path consistency on another policy's trajectories says of the one that is trained."""

    def read(process: Any, policy: Any) -> tuple[float, float]:
        def behavior(state: Tensor, t: Any) -> Any:
            return dist.Categorical(logits=0.5 * policy(state, t).logits)

        def critic(state: Tensor, t: Any) -> Tensor:
            return torch.zeros(policy(state, t).batch_shape, dtype=torch.float64)

        objective = partial(TrajectoryELBO, "path_consistency", critic, behavior=behavior)
        return _losses(objective, program)(process, policy)

    return read


def _in_disguise(process: Any) -> Any:
    """Returns the process as a program that nothing knows to be in parts."""
    return lambda *args: process(*args)


ELBOS: dict[str, Reading] = {
    "estimate_elbo": lambda process, policy: _of_estimate(rlai.estimate_elbo(process, policy, N)),
    "estimate_elbo of the program": lambda process, policy: _of_estimate(
        rlai.estimate_elbo(_in_disguise(process), policy, N // 10)
    ),
    "compare": _compare,
    "posterior by the guide": _guide,
    "TrajectoryELBO on rollouts": _losses(TrajectoryELBO, lambda process: process),
    "TrajectoryELBO on the program": _losses(TrajectoryELBO, _in_disguise),
    "TrajectoryELBO, em": _losses(partial(TrajectoryELBO, "em"), lambda process: process),
    "TrajectoryELBO, path consistency": _off_policy(lambda process: process),
    "TrajectoryELBO, path consistency of the program": _off_policy(_in_disguise),
    "Trace_ELBO": _losses(Trace_ELBO, _in_disguise),
}


def _evidence(method: Any, with_policy: bool) -> Reading:
    def read(process: Any, policy: Any) -> tuple[float, float]:
        given = policy if with_policy else None
        count = N if method == "importance" else 500
        return _of_estimate(rlai.estimate_log_evidence(process, given, method=method, critic=None, num_draws=count))

    def annealed(process: Any, policy: Any) -> tuple[float, float]:
        return _of_estimate(rlai.estimate_log_evidence(process, method="annealed", num_draws=200))

    return annealed if method == "annealed" else read


def _enumerated(process: Any, policy: Any) -> tuple[float, float]:
    program = rlai.program.survival(lambda: process(1))
    return -TraceEnum_ELBO(max_plate_nesting=1).loss(config_enumerate(program), lambda: None), 1e-9


EVIDENCES: dict[str, Reading] = {
    "importance, the prior": _evidence("importance", False),
    "importance, a policy": _evidence("importance", True),
    "smc, the prior": _evidence("smc", False),
    "smc, a policy": _evidence("smc", True),
    "annealed": _evidence("annealed", False),
    "Pyro's enumeration": _enumerated,
}
STEPPED = ("smc", "annealed")


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("reading", ELBOS)
def test_every_reading_has_the_exact_elbo(reading: str, feature: str) -> None:
    found = FEATURES[feature]
    torch.manual_seed(1)
    mean, error = ELBOS[reading](found.process, found.policy)
    assert abs(mean - float(exact.elbo(found.tables, found.policy))) < 4.5 * error


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("reading", EVIDENCES)
def test_every_reading_has_the_exact_evidence(reading: str, feature: str) -> None:
    found = FEATURES[feature]
    torch.manual_seed(2)
    mean, error = EVIDENCES[reading](found.process, found.policy)
    # The spread of eight filters is known to a fourth of itself; the largest of these z-scores is 3.4.
    wide = 5.0 if reading.startswith(STEPPED) else 4.5
    assert abs(mean - float(exact.log_evidence(found.tables))) < wide * error


@pytest.fixture(scope="module")
def learned() -> Any:
    """Dynamics that were learned, with endings, whose unknowns are drawn once a trajectory."""
    torch.manual_seed(0)
    state, action = torch.randn(200, 2, dtype=torch.float64), torch.randint(2, (200,))
    after = 0.7 * state + 0.4 * (2.0 * action[:, None] - 1) + 0.2 * torch.randn(200, 2, dtype=torch.float64)
    seen = rlai.learned.Transitions(state, action, -state[:, 0].square(), after, after[:, 1] > 1.2)
    process = rlai.LearnedDynamics(
        Box(-9, 9, (2,)), Discrete(2), ensemble=3, hidden_sizes=(8,), horizon=3, dtype=torch.float64
    )
    process.fit(seen, 100, learning_rate=1e-2)
    return process


def _leaning(state: Tensor, t: Any) -> Any:
    return dist.Categorical(logits=torch.stack([0.8 * state[..., 0], torch.zeros_like(state[..., 0])], -1))


@pytest.mark.parametrize("reading", ELBOS)
def test_every_reading_of_learned_dynamics_has_one_elbo(reading: str, learned: Any) -> None:
    # Against 20,000 trajectories, as there is no exact answer.
    torch.manual_seed(3)
    drawn, error = _of_draws(learned.rollout(_leaning, 20_000).log_weight())
    mean, own = ELBOS[reading](learned, _leaning)
    assert abs(mean - drawn) < 4.5 * math.hypot(error, own)


@pytest.mark.parametrize("reading", ["importance, a policy", "smc, a policy", "annealed"])
def test_every_reading_of_learned_dynamics_has_one_evidence(reading: str, learned: Any) -> None:
    torch.manual_seed(4)
    weights = learned.rollout(None, 20_000).log_weight().exp()
    drawn, error = _of_draws(weights)
    mean, own = EVIDENCES[reading](learned, _leaning)
    assert abs(mean - math.log(drawn)) < 5 * math.hypot(error / drawn, own)


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("dynamics", ["causal", "posterior"])
def test_planners_answer_as_exact_messages_do(feature: str, dynamics: Any) -> None:
    found = FEATURES[feature]
    planner = rlai.SMCPlanner(found.process, look_ahead=3, num_particles=3000, dynamics=dynamics, proposal=found.policy)
    torch.manual_seed(0)
    states = torch.arange(found.tables.num_states)[~found.tables.terminal]
    plan = exact.plan(found.tables, dynamics).policy
    for t in range(3):
        torch.testing.assert_close(planner(states, t).probs, plan[t, states], rtol=0, atol=1e-9)


@pytest.mark.parametrize("feature", [name for name, found in FEATURES.items() if found.tables.discount == 1])
def test_its_environment_earns_the_exact_return(feature: str) -> None:
    found, policy = FEATURES[feature], FEATURES[feature].policy
    space, first = found.process.action_space, int(found.process.action_space.start)
    envs = rlai.to_gymnasium_vector(found.process, 2000)
    states, _ = envs.reset(seed=0)
    torch.manual_seed(0)
    total, alive = np.zeros(2000), np.ones(2000, bool)
    for t in range(found.tables.horizon):
        assert all(found.process.state_space.contains(state) for state in states[:3])
        action = policy(torch.as_tensor(states - int(found.process.state_space.start)), t).sample().numpy() + first
        assert space.contains(action[0])
        states, rewards, terminated, truncated, _ = envs.step(action)
        total += np.where(alive, rewards, 0.0)
        alive &= ~(terminated | truncated)
    mean, error = _of_draws(total)
    assert abs(mean - float(exact.expected_return(found.tables, policy))) < 4.5 * error


@pytest.mark.parametrize("feature", FEATURES)
def test_a_walk_is_its_programs_density(feature: str) -> None:
    """Weights of rollouts, filters' draws and annealed ones, against the program's density at the same sites."""
    from rl_as_inference.sampling import annealing, sequential_monte_carlo, survive

    found = FEATURES[feature]
    process, tables = found.process, found.tables
    torch.manual_seed(0)
    for draws in (
        survive(process.rollout(found.policy, 50)),
        sequential_monte_carlo(process, found.policy, 50).trajectories,
        annealing(process, 50).draws.trajectories,
    ):
        assert draws.states.min() >= 0
        assert draws.states.max() < tables.num_states
        before, after, taken = draws.states[:-1], draws.states[1:], draws.actions
        rewards = tables.reward(before, taken, after) * draws.mask
        logs = tables.log_action_prior[before, taken]
        assert torch.equal(draws.mask & tables.terminal[before], torch.zeros_like(draws.mask))
        assert (draws.rewards - rewards).abs().max() < 1e-10
        assert (torch.where(draws.mask, draws.log_prior - logs, 0.0)).abs().max() < 1e-10
        assert (draws.log_prior[~draws.mask] == 0).all()
        assert not bool((~draws.mask & (after != before)).any())


@pytest.mark.filterwarnings("ignore:the trajectories say nothing")
@pytest.mark.parametrize("feature", FEATURES)
def test_which_dynamics_it_was_is_told_by_the_tables(feature: str) -> None:
    """infer_dynamics between a process and one that mixes its moves: Bayes' rule with the tables' probabilities."""
    tables, process = FEATURES[feature].tables, FEATURES[feature].process
    mixed = 0.5 * tables.kernel.dense() + 0.5 / tables.num_states
    other = TabularMDP(mixed, tables.reward_table, tables.initial_probabilities, horizon=3, terminal=tables.terminal)
    if isinstance(process, InParts):
        choices = [process, InParts(other, process.first_state, process.first_action)]
    else:
        choices = [tables, other]

    def family() -> Any:
        return choices[int(pyro.sample("which", dist.Categorical(torch.tensor([0.4, 0.6], dtype=torch.float64))))]

    pyro.set_rng_seed(0)
    draws = process.rollout(None, 6)
    answer = rlai.infer_dynamics(family, draws, num_draws=1, num_chains=1)
    where = draws.states[:-1], draws.actions, draws.states[1:]
    logs = [torch.where(draws.mask, each.kernel.dense()[where].log(), 0.0).sum() for each in (tables, other)]
    odds = math.log(0.4 / 0.6) + float(logs[0] - logs[1])
    assert abs(answer.sample_stats["probability_which"].values[0, 0, 0] - 1 / (1 + math.exp(-odds))) < 1e-9


# The same mistake, the same error.


def _bad_policies() -> dict[str, tuple[Any, str]]:
    return {
        "of the wrong width": (lambda state, t: dist.Categorical(logits=torch.zeros(*state.shape, 7)), "7 actions"),
        "of the wrong batch": (
            lambda state, t: dist.Categorical(logits=torch.zeros(3, *state.shape, 2)),
            "policy's batch_shape",
        ),
        "not a distribution": (lambda state, t: torch.zeros(*state.shape, 2), "policy must return a distribution"),
        "with an event": (
            lambda state, t: dist.Categorical(logits=torch.zeros(*state.shape, 1, 2)).to_event(1),
            "policy's event_shape",
        ),
        "NaN": (lambda state, t: dist.Categorical(logits=torch.full((*state.shape, 2), math.nan)), "policy gives NaN"),
        "a density": (
            lambda state, t: dist.Uniform(torch.zeros(state.shape), 1.999),
            "policy answers with a Uniform|must answer with a Cat",
        ),
        "without end": (
            lambda state, t: dist.Poisson(torch.ones(state.shape)),
            "Poisson, over any number of actions|got Poisson",
        ),
        "of other counts": (
            lambda state, t: dist.Binomial(4, torch.full(state.shape, 0.5)),
            "over 5 actions|got Binomial",
        ),
    }


def _planner(process: Any, policy: Any) -> Any:
    """Asks a planner in the state that processes begin in."""
    first = process.begin(1)
    return rlai.SMCPlanner(process, look_ahead=3, num_particles=2, proposal=policy)(first, 0)


OF_POLICIES: dict[str, Callable[[Any, Any], Any]] = {
    "a planner's proposal": _planner,
    **{
        name: ELBOS[name]
        for name in ("estimate_elbo", "compare", "posterior by the guide", "TrajectoryELBO on rollouts")
    },
    **{name: EVIDENCES[name] for name in ("importance, a policy", "smc, a policy")},
    "posterior by importance": lambda process, policy: rlai.posterior(process, policy, method="importance"),
    "posterior by smc": lambda process, policy: rlai.posterior(process, policy, method="smc"),
    "trajectory_kl": lambda process, policy: rlai.trajectory_kl(process, policy, direction="reverse", method="sample"),
}


@pytest.mark.parametrize("mistake", _bad_policies())
@pytest.mark.parametrize("reading", OF_POLICIES)
@pytest.mark.parametrize("feature", ["plain", "plain, as tables", "a discount and endings"])
def test_every_reading_refuses_a_policy(reading: str, mistake: str, feature: str) -> None:
    policy, message = _bad_policies()[mistake]
    with pytest.raises(ValueError, match=message):
        OF_POLICIES[reading](FEATURES[feature].process, policy)


class BadReward(InParts):
    """A process whose reward is a mistake."""

    def __init__(self, mistake: Callable[[Tensor], Any]) -> None:
        super().__init__(_PLAIN["plain"])
        self.mistake = mistake

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Any:
        return self.mistake(super().reward(state, action, next_state))


BAD_REWARDS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "of shape (N, 1)": (lambda reward: reward[..., None], "reward.* must give one number a trajectory"),
    "NaN": (lambda reward: reward * math.nan, "reward.* is NaN"),
    "None": (lambda reward: None, "reward.* must give one number a trajectory.* got NoneType"),
    "of another length": (lambda reward: torch.zeros(reward.numel() + 1), "reward.* must give one number a trajectory"),
}


def _environment(process: Any, policy: Any) -> None:
    env = rlai.to_gymnasium(process)
    env.reset(seed=0)
    env.step(0)


OF_REWARDS: dict[str, Callable[[Any, Any], Any]] = {
    **ELBOS,
    **{name: read for name, read in EVIDENCES.items() if name != "Pyro's enumeration"},
    "a planner": _planner,
    "environment": _environment,
    "fit": lambda process, policy: rlai.fit(process, rlai.guides.TabularPolicy(3, 2, horizon=3), steps=1),
}


@pytest.mark.parametrize("mistake", BAD_REWARDS)
@pytest.mark.parametrize("reading", OF_REWARDS)
def test_every_reading_refuses_a_reward(reading: str, mistake: str) -> None:
    bad, message = BAD_REWARDS[mistake]
    with pytest.raises(ValueError, match=message):
        OF_REWARDS[reading](BadReward(bad), FEATURES["plain"].policy)


class Leaves(InParts):
    """A process that goes, from its second step on, where its state space has nothing."""

    def transition(self, state: Tensor, action: Tensor) -> Any:
        return dist.Delta(state + 2)

    def initial(self) -> Any:
        return dist.Delta(torch.tensor(0))


class Begins(InParts):
    def initial(self) -> Any:
        return dist.Delta(torch.tensor(7))


class OtherActions(InParts):
    def prior(self, state: Tensor) -> Any:
        return dist.Categorical(torch.ones(*state.shape, 3))


OUTSIDE: dict[str, tuple[type[InParts], str]] = {
    "a transition": (
        Leaves,
        r"transition\(state, action\) of Leaves at step 1 is state 4, and state_space Discrete\(3\)",
    ),
    "a start": (Begins, r"initial\(\) of Begins is state 7, and state_space Discrete\(3\) holds integers from 0 to 2"),
    "a prior": (OtherActions, r"prior\(state\) of OtherActions is over 3 actions, and action_space is Discrete\(2\)"),
}


def _whole_episode(process: Any, policy: Any) -> None:
    env = rlai.to_gymnasium(process)
    env.reset(seed=0)
    for _ in range(3):
        env.step(0)


@pytest.mark.parametrize("what", OUTSIDE)
@pytest.mark.parametrize("reading", [name for name in OF_REWARDS if name not in ("environment", "fit")] + ["episode"])
def test_every_reading_refuses_what_lies_outside_the_spaces(reading: str, what: str) -> None:
    kind, message = OUTSIDE[what]
    if reading == "episode" and what == "a prior":  # which an environment does not look at
        return
    process = kind(_PLAIN["plain"])
    with pytest.raises(ValueError, match=message):
        {**OF_REWARDS, "episode": _whole_episode}[reading](process, FEATURES["plain"].policy)


def test_what_lies_outside_is_asked_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps and the start, on the first walk; boxes by the prior's bounds, a rounding beyond which passes."""
    asked = []
    monkeypatch.setattr(first_look, "check_states", lambda *given: asked.append(given[-1]))
    process = InParts(_PLAIN["plain"])
    for _ in range(3):
        process.rollout(None, 5)
    assert len(asked) == 4

    class Wide(PaidInABox):
        def prior(self, state: Tensor) -> Any:
            return dist.Uniform(-torch.ones(*state.shape, 1), 2.0).to_event(1)

    with pytest.raises(ValueError, match=r"prior\(state\) of Wide is over \[-1, 2\], and action_space is Box"):
        Wide(horizon=2).rollout(None, 5)


# The user's own handlers around the words of the language.

MASKED = 0.99 - (0.99 * math.log(0.99 / 0.5) + 0.01 * math.log(0.01 / 0.5))
"""One step of reward 1 for action 1 by a Bernoulli(0.99) policy, less its cost: 0.3529 nats."""


def _masked() -> None:
    state = pyro.sample("state_0", dist.Bernoulli(0.5))
    for t in rlai.steps(2):
        with pyro.poutine.mask(mask=torch.tensor(t < 1)):
            action = rlai.act(f"action_{t}", state, dist.Bernoulli(0.5))
            rlai.reward(f"reward_{t}", action)


@pytest.mark.parametrize("reading", ["estimate_elbo", "compare", "posterior by the guide"])
def test_every_reading_of_a_program_keeps_the_users_mask(reading: str) -> None:
    torch.manual_seed(0)
    mean, error = ELBOS[reading](_masked, lambda state, t: dist.Bernoulli(torch.full_like(state, 0.99)))
    assert abs(mean - MASKED) < 4.5 * error


def test_the_users_mask_in_evidences() -> None:
    torch.manual_seed(0)
    right = math.log((1 + math.e) / 2)
    for method in ("importance", "smc"):
        found = rlai.estimate_log_evidence(_masked, method=method, num_draws=1000)
        assert abs(found.mean - right) < 6 * found.standard_error


# What the issue of each was, in the numbers in which it was found.


def test_a_filter_of_a_policy_that_lacks_an_action_is_refused() -> None:
    mdp = TabularMDP(torch.ones(1, 4, 1), torch.tensor([[0.0, 0.0, 0.0, 3.0]]), torch.ones(1), horizon=2)
    assert abs(float(exact.log_evidence(mdp)) - 3.5058) < 1e-4
    for method in ("smc", "importance"):
        with pytest.raises(ValueError, match="3 actions at step 0, but the action prior to 4"):
            rlai.estimate_log_evidence(
                mdp, lambda s, t: dist.Categorical(logits=torch.zeros(*s.shape, 3)), method=method
            )


class PaidInABox(MarkovDecisionProcess):
    state_space, action_space = Discrete(1), Box(-1, 1, (1,))

    def initial(self) -> Any:
        return dist.Categorical(torch.ones(1))

    def transition(self, state: Tensor, action: Tensor) -> Any:
        return dist.Categorical(torch.ones(*state.shape, 1))

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return action[..., 0]


def test_probabilities_are_not_weighed_against_densities() -> None:
    process = PaidInABox(horizon=2)
    right = 2 * math.log(math.sinh(1.0))  # 0.323; a coin's weights would have it at 1.24
    torch.manual_seed(0)
    found = rlai.estimate_log_evidence(
        process, lambda s, t: dist.Uniform(-torch.ones(*s.shape, 1), 1.0).to_event(1), method="importance"
    )
    assert abs(found.mean - right) < 4.5 * found.standard_error
    coin = lambda s, t: dist.Bernoulli(torch.full((*s.shape, 1), 0.5)).to_event(1)  # noqa: E731
    for method in ("smc", "importance"):
        with pytest.raises(ValueError, match="has probabilities at step 0, but the action prior has densities"):
            rlai.estimate_log_evidence(process, coin, method=method)


def _point(state: Tensor, t: int) -> Any:
    return dist.Delta(torch.zeros(*state.shape, 1), event_dim=1)


@pytest.mark.parametrize("disguise", [False, True])
def test_a_point_mass_in_a_box_has_no_elbo(disguise: bool) -> None:
    """Its returns are as good as any; a density of 1 would give it 2 log(1/2)."""
    process: Any = PaidInABox(horizon=2)
    problem = _in_disguise(process) if disguise else process
    assert rlai.estimate_elbo(problem, _point, 10).mean == -math.inf
    weights = rlai.posterior(problem, _point, num_draws=5).sample_stats["log_weight"].values
    assert (weights == -math.inf).all()
    for method in ("importance", "smc"):
        with pytest.raises(ValueError, match="weight"):
            rlai.estimate_log_evidence(problem, _point, method=method, num_draws=100)
    with pytest.raises(ValueError, match="policy is a point mass"):
        rlai.compare(problem, _point)
    with pytest.raises(ValueError, match="policy is a point mass"):
        rlai.fit(problem, _Point(), steps=1)
    assert torch.equal(process.rollout(_point, 3).returns(), torch.zeros(3))


class _Point(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.place = torch.nn.Parameter(torch.zeros(1))

    def forward(self, state: Tensor, t: int) -> Any:
        return dist.Delta(self.place.expand(*state.shape, 1), event_dim=1)


class PaidForMinusOne(MarkovDecisionProcess):
    state_space, action_space = Discrete(1), Discrete(3, start=-1)

    def initial(self) -> Any:
        return dist.Categorical(torch.ones(1))

    def transition(self, state: Tensor, action: Tensor) -> Any:
        return dist.Categorical(torch.ones(*state.shape, 1))

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return (action == -1).double()


def test_actions_that_start_below_zero_are_learned() -> None:
    process = PaidForMinusOne(horizon=4, temperature=0.2)
    right = 4 * math.log((2 + math.exp(5)) / 3)  # 15.659
    policy = rlai.guides.amortized_policy(process, hidden_sizes=(16,))
    rlai.fit(process, policy, steps=300, learning_rate=0.05, seed=0)
    found = rlai.estimate_elbo(process, policy, 4000)
    assert abs(right - 15.659) < 1e-3
    assert -0.02 < right - found.mean < 0.3
    env = rlai.to_gymnasium(process)
    env.reset(seed=0)
    assert env.step(-1)[1] == 1.0
    assert env.step(1)[1] == 0.0
    check_env(env, skip_render_check=True)


class GoalPays(MarkovDecisionProcess):
    """A walk to the right whose reward is written on the goal, the third cell, where the episode has ended."""

    state_space, action_space = Discrete(3), Discrete(2)

    def initial(self) -> Any:
        return dist.Categorical(torch.tensor([1.0, 0.0, 0.0]))

    def transition(self, state: Tensor, action: Tensor) -> Any:
        return dist.Delta((state + 1).clamp(max=2))

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return torch.where(state == 2, 5.0, -1.0)

    def terminated(self, state: Tensor) -> Tensor:
        return state == 2


def test_a_reward_on_a_terminal_state_is_told_to_be_silent() -> None:
    move = torch.tensor([[[0.0, 1.0]], [[0.0, 1.0]]])
    ends = torch.tensor([False, True])
    with pytest.warns(UserWarning, match=r"is 5 in the terminal state 1, where it is silent"):
        mdp = TabularMDP(move, torch.tensor([[0.0], [5.0]]), torch.tensor([1.0, 0.0]), horizon=3, terminal=ends)
    assert float(exact.log_evidence(mdp)) == 0
    with pytest.warns(UserWarning, match=r"GoalPays is 5 in the terminal state 2"):
        assert float(GoalPays(horizon=4).rollout(None, 2).returns()[0]) == -2
    with warnings.catch_warnings():  # a cost of every step is no news
        warnings.simplefilter("error")
        TabularMDP(move, torch.full((2, 1), -1.0), torch.tensor([1.0, 0.0]), horizon=3, terminal=ends)
        TabularMDP.from_gymnasium("CliffWalking-v1", horizon=10)
        TabularMDP.from_gymnasium(TAXI, horizon=10)
        mdp.at_temperature(0.5).replace(horizon=2).to(torch.float64)
