"""Simulators as processes: episodes against exact answers, and the readings that accept them."""

import copy

import gymnasium
import numpy as np
import pytest
import torch

import rl_as_inference as rlai
from rl_as_inference import TabularMDP, exact
from rl_as_inference.guides import TabularPolicy, TanhGaussianPolicy, amortized_policy
from rl_as_inference.processes import Environments, GymnasiumProcess, NonFiniteError
from rl_as_inference.processes.programs import as_process
from rl_as_inference.threads import one_thread_if_small


class Countdown(gymnasium.Env):
    """Lasts as many steps as a die shows at the start (1 to 6), pays 1 a step, and ends or is cut off by parity."""

    observation_space = gymnasium.spaces.Box(0, 10, (2,))
    action_space = gymnasium.spaces.Box(-2.0, 2.0, (3,))

    def __init__(self, bad=None):
        self.bad = bad

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.length, self.time = int(self.np_random.integers(1, 7)), 0
        return np.array([self.length, 0], np.float32), {}

    def step(self, action):
        self.time += 1
        over = self.time == self.length
        reward = np.nan if self.bad == self.time else 1.0
        observation = np.array([self.length, self.time], np.float32)
        return observation, reward, over and self.length % 2 == 0, over and self.length % 2 == 1, {}


def random_table(mdp, seed):
    policy = TabularPolicy(mdp.num_states, mdp.num_actions)
    policy.logits.data = torch.randn(policy.logits.shape, generator=torch.Generator().manual_seed(seed))
    return policy


@pytest.mark.parametrize(("num_envs", "episodes"), [(1, 300), (7, 1500), (64, 4000)])
def test_episodes_are_distributed_as_the_tables_say(num_envs, episodes):
    """300, 1,500 and 4,000 episodes of FrozenLake cut at 20 steps, seeds 0: returns and ELBO, |z| < 4."""
    options = {"horizon": 20, "temperature": 0.3, "discount": 0.95}
    mdp = TabularMDP.from_gymnasium("FrozenLake-v1", **options)
    process = GymnasiumProcess("FrozenLake-v1", num_envs, **options)
    policy = random_table(mdp, 1)
    torch.manual_seed(0)
    drawn = process.rollout(policy, episodes)
    with torch.no_grad():
        expected = {
            "return": float(exact.expected_return(mdp, policy)),
            "elbo": float(exact.elbo(mdp, policy)),
            "length": float(mdp.rollout(policy, 20_000).lengths().double().mean()),
        }
    sampled = {
        "return": drawn.returns(discounted=True),
        "elbo": drawn.log_weight(),
        "length": drawn.lengths().double(),  # short episodes must not come too often
    }
    for name, values in sampled.items():
        assert values.shape == (episodes,)
        error = float(values.std()) / episodes**0.5
        assert abs(float(values.mean()) - expected[name]) < 4 * error, name


def test_rollouts_have_the_layout_of_trajectories():
    """Countdown's trajectories are known from their first states."""
    process = GymnasiumProcess(Countdown, 4, horizon=5, discount=0.9, temperature=0.5, seed=2)
    drawn, truncated = process.rollout_with_ends(None, 14)
    length = drawn.states[0, :, 0].long()
    cut = length > 5
    taken = length.clamp(max=5)
    assert drawn.states.shape == (6, 14, 2)
    assert drawn.actions.shape == (5, 14, 3)
    assert set(length.tolist()) >= {1, 6}, "the seed shows short and cut episodes"
    assert torch.equal(drawn.mask, torch.arange(5)[:, None] < taken)
    assert torch.equal(drawn.rewards, drawn.mask.float())
    assert torch.equal(drawn.states[:, :, 1], torch.minimum(torch.arange(6)[:, None], taken).float())
    assert torch.equal(drawn.states[:, :, 0], length.float().expand(6, 14))
    assert torch.equal(drawn.log_factors, drawn.rewards / 0.5)
    assert torch.allclose(drawn.log_prior, -3 * np.log(2) * drawn.mask)
    assert torch.equal(drawn.log_policy, drawn.log_prior)
    assert torch.equal(truncated, cut | (length % 2 == 1))
    assert (drawn.temperature, drawn.discount, drawn.latents) == (0.5, 0.9, {})
    assert not any(value.requires_grad for value in (drawn.rewards, drawn.log_policy))


def test_terminated_and_cut_at_once_is_an_ending():
    process = GymnasiumProcess(Countdown, horizon=2)
    drawn, truncated = process.rollout_with_ends(None, 40)
    length = drawn.states[0, :, 0]
    assert (length == 2).any()
    assert torch.equal(truncated, length != 2)


def test_actions_are_in_the_unit_box_and_reach_the_environment_in_its_own():
    class Listening(Countdown):
        heard = []  # noqa: RUF012

        def step(self, action):
            self.heard.append(action.copy())
            return super().step(action)

    drawn = GymnasiumProcess(Listening, horizon=6).rollout(None, 1)
    assert torch.equal(2 * drawn.actions[drawn.mask], torch.as_tensor(np.stack(Listening.heard)))


def test_the_policy_decides_precision_and_sees_time():
    seen = []

    class Spy(TanhGaussianPolicy):
        def forward(self, state, t):
            seen.append((t, state.dtype, tuple(state.shape), torch.is_grad_enabled()))
            return super().forward(state, t)

    process = GymnasiumProcess("Pendulum-v1", 2, horizon=4)
    drawn = process.rollout(Spy(process.state_space, 1, horizon=4).double(), 3)
    assert {value.dtype for value in (drawn.states, drawn.actions, drawn.rewards, drawn.log_policy)} == {torch.float64}
    assert seen == [(t, torch.float64, (2, 3), False) for _ in range(2) for t in range(4)]


def test_log_policies_are_the_policys():
    process = GymnasiumProcess("Pendulum-v1", 3, horizon=5)
    policy = TanhGaussianPolicy(process.state_space, 1).double()
    drawn = process.rollout(policy, 3)
    with torch.no_grad():
        again = policy(drawn.states[:-1], 0).log_prob(drawn.actions)
    assert torch.allclose(drawn.log_policy, again, atol=1e-8)


def test_runs_repeat_and_each_rollout_goes_on_to_new_episodes():
    def two(seed):
        process = GymnasiumProcess("Pendulum-v1", 2, horizon=3, seed=seed)
        torch.manual_seed(0)
        return [process.rollout(None, 4) for _ in range(2)]

    (a, b), (c, d), (e, _) = two(1), two(1), two(2)
    assert torch.equal(a.states, c.states)
    assert torch.equal(b.states, d.states)
    assert not torch.equal(a.states[0], b.states[0])
    assert not torch.equal(a.states[0], e.states[0])


# The horizon.


def test_the_horizon_is_the_time_limit_unless_given():
    assert GymnasiumProcess("Pendulum-v1").horizon == 200
    assert GymnasiumProcess("Pendulum-v1", max_episode_steps=30).horizon == 30
    limited = gymnasium.wrappers.TimeLimit(Countdown(), 4)
    assert GymnasiumProcess(limited).horizon == 4
    assert GymnasiumProcess(limited, horizon=3).rollout(None, 2).horizon == 3
    longer = GymnasiumProcess("Pendulum-v1", 2, horizon=250)
    drawn, truncated = longer.rollout_with_ends(None, 2)
    assert drawn.mask.all()
    assert truncated.all()
    assert drawn.horizon == 250
    with pytest.raises(ValueError, match="horizon is None, and Countdown has no time limit; set horizon"):
        GymnasiumProcess(Countdown)
    with pytest.raises(ValueError, match="horizon is 9, but the environment is cut at 4"):
        GymnasiumProcess(limited, horizon=9)


# The readings.


def test_readings_accept_a_simulator():
    process = GymnasiumProcess("Pendulum-v1", 4, horizon=20)
    assert as_process(process) is process
    policy = amortized_policy(process)
    comparison = rlai.compare(process, policy, num_trajectories=8)
    assert comparison.problem == "Pendulum-v1"
    assert comparison.log_evidence is None
    assert comparison.sac_objective == pytest.approx(comparison.elbo + comparison.prior_term, rel=1e-5)
    assert "ELBO of the guide, by rollouts" in comparison.table()
    assert rlai.estimate_elbo(process, None, 8).standard_error > 0
    for method in ("guide", "importance"):
        data = rlai.posterior(process, policy, method=method, num_draws=6)
        assert dict(data.posterior["state"].sizes) == {"chain": 1, "draw": 6, "time": 20, "state_dim_0": 3}
        assert set(data.posterior.data_vars) == {"state", "action", "reward", "final_state"}
        assert data.sample_stats["return"].shape == (1, 6)


def test_importance_sampling_of_a_simulator_estimates_the_evidence():
    """5,000 episodes of FrozenLake cut at 8 steps, seed 0, against exact messages: |z| < 4."""
    options = {"horizon": 8, "temperature": 0.5, "is_slippery": False}
    mdp = TabularMDP.from_gymnasium("FrozenLake-v1", **options)
    torch.manual_seed(0)
    data = rlai.posterior(GymnasiumProcess("FrozenLake-v1", 100, **options), method="importance", num_draws=500)
    attributes = data.posterior.attrs
    error = attributes["log_evidence_standard_error"]
    assert 0 < error < 0.05
    assert abs(attributes["log_evidence"] - float(exact.log_evidence(mdp))) < 4 * error


def test_discrete_simulators_have_categorical_guides():
    process = GymnasiumProcess("CartPole-v1", 2)
    policy = copy.deepcopy(amortized_policy(process))
    assert process.prior(torch.zeros(5, 4)).probs.tolist() == [[0.5, 0.5]] * 5
    drawn = process.rollout(policy, 3)
    assert drawn.actions.dtype == torch.long
    assert torch.allclose(drawn.log_policy, drawn.log_prior)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (lambda p: p(3), "black-box simulator and cannot be run as a Pyro program"),
        (lambda p: p.transition(torch.zeros(1, 3), torch.zeros(1, 1)), "transition's density"),
        (lambda p: p.initial(), "initial distribution"),
        (lambda p: rlai.posterior(p, method="nuts"), "black-box simulator"),
        (lambda p: rlai.posterior(p, method="smc"), "use 'importance'"),
        (lambda p: rlai.posterior(p, method="exact"), "no exact answers for GymnasiumProcess"),
    ],
)
def test_what_needs_densities_is_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        asked(GymnasiumProcess("Pendulum-v1"))


class Learned:
    temperature, discount, action_prior, objective = 0.2, 0.99, "uniform", "maxent"

    def __call__(self, state, t):
        return torch.zeros(state.shape[:1])


def test_a_simulator_adopts_what_a_critic_was_learned_with():
    process = GymnasiumProcess("Pendulum-v1")
    assert (process.temperature, process.discount) == (1.0, 1.0)
    adopted = process.adopt(Learned())
    assert (adopted.temperature, adopted.discount) == (0.2, 0.99)
    assert (process.temperature, process.discount) == (1.0, 1.0)
    assert adopted.rollout(None, 2).temperature == 0.2
    assert GymnasiumProcess("Pendulum-v1", discount=0.99).adopt(Learned()).temperature == 0.2
    assert process.adopt(object()).discount == 1.0
    for given in ({"discount": 0.9}, {"temperature": 0.21}):
        with pytest.raises(ValueError, match=f"{next(iter(given))} of Pendulum-v1 was given as .* leave"):
            GymnasiumProcess("Pendulum-v1", **given).adopt(Learned())
    with pytest.raises(ValueError, match="temperature of Pendulum-v1 was given"):
        process.at_temperature(2.0).adopt(Learned())


def test_learners_get_environments_of_their_own():
    process = GymnasiumProcess("Pendulum-v1", horizon=17)
    envs = Environments.make(process, num_envs=3, seed=4)
    assert (envs.num_envs, envs.seed, envs.max_episode_steps) == (3, 4, 17)
    direct = Environments.make("Pendulum-v1", num_envs=3, seed=4)
    assert np.array_equal(envs.reset(), direct.reset())
    factory = Environments.make(GymnasiumProcess(Countdown, horizon=2), num_envs=2)
    factory.reset()
    steps = [factory.step(np.zeros((2, 3), np.float32)) for _ in range(2)]
    assert (steps[1].terminated | steps[1].truncated | steps[0].truncated | steps[0].terminated).all()


# Misuse.


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("NoSuch-v0",), {}, "NameNotFound"),
        (("Pendulum-v1", 0), {}, "num_envs must be an integer >= 1"),
        (("Pendulum-v1",), {"horizon": 0}, "horizon must be an integer >= 1"),
        (("Pendulum-v1",), {"discount": 1.5}, r"discount must be in \[0, 1\]"),
        (("Pendulum-v1",), {"temperature": 0.0}, "temperature must be a finite number > 0"),
        (("Pendulum-v1",), {"seed": -3}, "seed must be an integer from 0 to"),
        ((Countdown(), 2), {"horizon": 3}, "env is one environment; pass its id, or a factory"),
        ((gymnasium.make_vec("Pendulum-v1", 2),), {}, "env_id must be a Gymnasium id.*num_envs makes a batch"),
        ((rlai.models.point_mass(),), {}, "a process in parts needs no wrapping"),
        ((3,), {}, "env_id must be a Gymnasium id"),
        ((lambda: 3,), {"horizon": 3}, "factory that returns int"),
    ],
)
def test_misuse_is_told(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        GymnasiumProcess(*arguments, **options)


def test_misuse_of_rollouts_is_told():
    process = GymnasiumProcess(Countdown, 2, horizon=6)
    with pytest.raises(ValueError, match="num_trajectories must be >= 1, got 0"):
        process.rollout(None, 0)
    with pytest.raises(ValueError, match="policy must be a callable"):
        process.rollout("greedy", 2)
    with pytest.raises(ValueError, match="policy must return a distribution; at step 0 it returned float"):
        process.rollout(lambda state, t: 0.0, 2)
    policy = TanhGaussianPolicy(process.state_space, 3)
    policy.network.layers[-1].bias.data[3] = torch.nan
    with pytest.raises(ValueError, match="policy gives NaN"):
        process.rollout(policy, 2)
    with pytest.raises(NonFiniteError, match="Countdown gave a non-finite reward at step"):
        GymnasiumProcess(lambda: Countdown(bad=2), horizon=6).rollout(None, 10)
    with pytest.raises(ValueError, match="temperature"):
        process.at_temperature(-1.0)
    process.close()


class Drift(gymnasium.Env):
    """Two steps whose reward says whether the action was right: 1 where the observation was 3, 0 where it was 1."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.ones(1, np.float32), {}

    def step(self, action):
        right = action == self.time
        self.time += 1
        return np.full(1, 3, np.float32), float(right), False, self.time == 2, {}


def normalized():
    return gymnasium.wrappers.NormalizeObservation(gymnasium.wrappers.TimeLimit(Drift(), 2))


def test_a_policy_sees_the_observations_that_it_learned_on_or_is_refused():
    """Under mean 2 the observations 1 and 3 are -1 and 1, and a threshold at 0 is right both times: a return of 2."""
    statistics = {
        "0/NormalizeObservation.obs_rms.mean": np.array([2.0], np.float32),
        "0/NormalizeObservation.obs_rms.var": np.array([1.0], np.float32),
        "0/NormalizeObservation.obs_rms.count": np.array(1e6),
    }

    def policy(state, t):
        return torch.distributions.Categorical(logits=torch.cat([-99 * state, 99 * state], -1))

    process = GymnasiumProcess(normalized, num_envs=3, statistics=statistics)
    drawn = process.rollout(policy, 3)
    assert drawn.returns().tolist() == [2.0] * 3
    assert drawn.states[:, 0, 0].tolist() == pytest.approx([-1, 1, 1])
    assert process._envs.statistics()["2/NormalizeObservation.obs_rms.mean"] == 2.0  # they stayed as they are
    with pytest.raises(ValueError, match=r"holds running statistics .*started afresh.*statistics=agent\.envs"):
        GymnasiumProcess(normalized).rollout(policy, 1)
    assert GymnasiumProcess(normalized).rollout(None, 1).states.shape == (3, 1, 1)
    with pytest.raises(ValueError, match=r"NormalizeObservation\.obs_rms, and these environments hold no such"):
        GymnasiumProcess("CartPole-v1", statistics=statistics)


def test_rollouts_of_small_policies_use_one_thread_and_leave_the_number_as_it_was():
    seen = []

    def policy(state, t):
        seen.append(torch.get_num_threads())
        return torch.distributions.Categorical(logits=torch.zeros(len(state), 2))

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        GymnasiumProcess("CartPole-v1").rollout(policy, 1)
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
        with one_thread_if_small(10**8):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
