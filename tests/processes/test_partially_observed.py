"""Problems of a hidden state: the program, the fast rollout, and every reading of both."""

import math
from typing import Any

import gymnasium
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch import Tensor

import rl_as_inference as rlai
from rl_as_inference import History, PartiallyObservedMDP, TabularPOMDP, TrajectoryELBO, exact, follow
from rl_as_inference.guides import BeliefPolicy, CategoricalPolicy, RecurrentPolicy
from rl_as_inference.histories import Histories
from rl_as_inference.processes.programs import as_process
from rl_as_inference.processes.recorded_runs import join_runs, read_run
from rl_as_inference.program.recording import record
from rl_as_inference.sampling.particle_filter import ParticleFilter, ProgramFilter

F = torch.float64


def small(first: bool = True, discount: float = 0.8, terminal: bool = True, horizon: int = 3) -> TabularPOMDP:
    """Returns a problem of three states, two actions and two observations, whose last state may be an end."""
    g = torch.Generator().manual_seed(7)
    shapes = ((3, 2, 3), (3,), (3, 2) if first else (2, 3, 2), (2,))
    rows = [torch.rand(shape, generator=g, dtype=F) + 0.1 for shape in shapes]
    transition, initial, observation, prior = (x / x.sum(-1, keepdim=True) for x in rows)
    reward = torch.randn(3, 2, generator=g, dtype=F)
    ends = torch.tensor([False, False, terminal])
    return TabularPOMDP(
        transition, torch.where(ends[:, None], 0.0, reward), initial, observation,
        horizon=horizon, discount=discount, temperature=0.7, action_prior=prior, terminal=ends,
    )  # fmt: skip


class InParts(PartiallyObservedMDP):
    """The same, told by its parts alone."""

    def __init__(self, tables: TabularPOMDP) -> None:
        super().__init__(horizon=tables.horizon, discount=tables.discount, temperature=tables.temperature)
        self.tables = tables
        self.state_space, self.action_space = tables.state_space, tables.action_space
        self.observation_space = tables.observation_space

    def initial(self) -> Any:
        return self.tables.initial()

    def transition(self, state: Tensor, action: Tensor) -> Any:
        return self.tables.transition(state, action)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return self.tables.reward(state, action, next_state)

    def observation(self, state: Tensor, action: Tensor | None) -> Any:
        return self.tables.observation(state, action)

    def prior(self, seen: Any) -> Any:
        return self.tables.prior(seen)

    def terminated(self, state: Tensor) -> Tensor | None:
        return self.tables.terminated(state)


def lean(history: Any, t: int) -> Any:
    """A policy of the history: what was seen last, and how often action 1 was taken."""
    seen = torch.tensor(0.0, dtype=F) if history.latest is None else history.latest.to(F)
    done = history.actions.to(F).sum(0) if len(history) else torch.tensor(0.0, dtype=F)
    score = 0.8 * seen - 0.5 * done + 0.1 * t
    return dist.Categorical(logits=torch.stack(torch.broadcast_tensors(score, torch.zeros_like(score)), -1))


def own_program(tables: TabularPOMDP) -> Any:
    """The same as a Pyro program of one's own, of one trajectory."""

    def program() -> None:
        state = pyro.sample("state_0", tables.initial())
        for t in rlai.steps(tables.horizon or 0, tables.discount):
            if t == 0 and tables.sees_first:
                rlai.observe("observation_0", tables.observation(state, None))
            rlai.terminate(tables.fully_observed.terminal[state])
            seen = rlai.history()
            action = rlai.act(f"action_{t}", seen, dist.Categorical(logits=tables.log_action_prior))
            after = pyro.sample(f"state_{t + 1}", tables.transition(state, action))
            rlai.reward(f"reward_{t}", tables.reward(state, action, after), tables.temperature)
            rlai.observe(f"observation_{t + 1}", tables.observation(after, action))
            state = after

    return program


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("reading", ["estimate_elbo", "compare", "guide", "trajectory_elbo", "trace_elbo", "program"])
@pytest.mark.parametrize("in_parts", [False, True])
def test_every_reading_has_the_exact_elbo(reading: str, first: bool, in_parts: bool) -> None:
    """8,000 trajectories (2,000 of a program), seed 0: z below 4.5."""
    tables = small(first)
    right = float(exact.elbo(tables, lean, sees="history"))
    process: Any = InParts(tables) if in_parts else tables
    torch.manual_seed(0)
    pyro.set_rng_seed(0)
    n = 8000
    if reading == "estimate_elbo":
        found = rlai.estimate_elbo(process, lean, n)
        mean, error = found.mean, found.standard_error
    elif reading == "compare":
        table = rlai.compare(process, lean, num_trajectories=n)
        assert not table.broken
        mean, error = table.elbo, table.elbo_standard_error
    elif reading == "guide":
        data = rlai.posterior(process, lean, num_draws=n)
        assert ("observation" if first else "observation_after") in data.posterior
        # Survival is drawn there.
        weights = torch.tensor(data.sample_stats["log_weight"].values).flatten()
        mean, error = float(weights.mean()), float(weights.std()) / math.sqrt(n)
    elif reading == "program":
        found = rlai.estimate_elbo(own_program(tables), lean, 2000)
        mean, error = found.mean, found.standard_error
    else:
        elbo = TrajectoryELBO() if reading == "trajectory_elbo" else Trace_ELBO()
        model = process if reading == "trace_elbo" else (lambda count: process(count))
        losses = torch.tensor([-elbo.loss(model, follow(model, lean), 400) / 400 for _ in range(20)])
        mean, error = float(losses.mean()), float(losses.std()) / math.sqrt(20)
    assert abs(mean - right) < 4.5 * error, (mean, right, error)


@pytest.mark.parametrize("first", [True, False])
def test_a_rollout_is_the_program(first: bool) -> None:
    """What the program says of the draws of a rollout, column by column, to 1e-10."""
    process = small(first)
    torch.manual_seed(0)
    draws = process.rollout(lean, 50)
    sites = draws.sites()
    assert {f"observation_{t}" for t in range(0 if first else 1, 4)} < set(sites)
    messages = record(lambda: process(50), lean, values=sites)
    drawn = {msg["name"] for msg in messages if not msg["is_observed"]}
    assert set(sites) <= drawn  # so that nothing was drawn anew
    found = join_runs([read_run(messages, (50,))])
    assert torch.equal(found.mask, draws.mask)
    assert torch.equal(found.observations, draws.observations)  # type: ignore[arg-type]
    assert found.observed_first == draws.observed_first == first
    for name in ("log_prior", "log_policy", "log_factors", "rewards"):
        assert torch.allclose(getattr(found, name), getattr(draws, name), atol=1e-10), name
    assert torch.allclose(found.log_weight(), draws.log_weight(), atol=1e-10)


@pytest.mark.parametrize("method", ["exact", "importance", "smc", "annealed"])
def test_posteriors_given_optimality(method: Any) -> None:
    """4,000 draws of each method, seed 0: the mean of every state share within 5 standard errors of the exact one."""
    process = small(discount=1.0, terminal=False)
    torch.manual_seed(0)
    data = rlai.posterior(process, method=method, num_draws=4000)
    right = exact.posterior_occupancy(process.fully_observed)
    states = torch.tensor(data.posterior["state"].values).reshape(-1, 3)
    shares = torch.stack([(states == s).double().mean(0) for s in range(3)], -1)
    size = 4000 if method == "exact" else 800  # draws that share ancestors count for less
    error = (right[:3] * (1 - right[:3]) / size).sqrt()
    assert bool(((shares - right[:3]).abs() < 5 * error + 1e-9).all())
    seen = torch.tensor(data.posterior["observation"].values).reshape(-1, 3)
    table = process.observation_table
    for s in range(3):  # what is seen depends on the state alone
        mine = seen[states == s].double()
        p = float(table[s, 1])
        assert abs(float(mine.mean()) - p) < 5 * math.sqrt(p * (1 - p) / (len(mine) * size / 4000))


def test_conditions_make_filters_and_smoothers() -> None:
    """10,000 weighted runs, seed 0: what was seen gives the belief of Bayes' rule, within 5 standard errors."""
    tables = small(discount=1.0, terminal=False)
    silent = TabularPOMDP(
        tables.fully_observed.kernel.dense(), torch.zeros(3, 2, dtype=F), tables.fully_observed.initial_probabilities,
        tables.observation_table, horizon=3, action_prior=tables.fully_observed.action_prior[0],
    )  # fmt: skip
    seen, done = [1, 0, 1, 1], [0, 1, 1]
    data = {f"observation_{t}": torch.tensor(y) for t, y in enumerate(seen)}
    data |= {f"action_{t}": torch.tensor(a) for t, a in enumerate(done)}
    torch.manual_seed(0)
    pyro.set_rng_seed(0)
    program = pyro.poutine.condition(lambda: silent(1), data=data)
    found = rlai.posterior(program, method="importance", num_draws=4000, num_proposals=10_000)
    last = torch.tensor(found.posterior["state_3"].values).flatten()
    right = exact.belief(silent, torch.tensor(seen), torch.tensor(done))[-1]
    shares = torch.stack([(last == s).double().mean() for s in range(3)])
    effective = float(found.posterior.attrs["effective_sample_size"])
    assert bool(((shares - right).abs() < 5 * (right * (1 - right) / min(effective, 4000)).sqrt()).all())


class TestFilters:
    def test_particles_of_a_process(self) -> None:
        """20,000 particles, seed 0: every probability, and the evidence, within 5 standard errors of Bayes' rule."""
        for process in (small(), small(first=False)):
            torch.manual_seed(0)
            draws = process.rollout(None, 6)
            draws = draws.select(draws.mask[-1] & ~process.fully_observed.terminal[draws.states[-1]])
            assert draws.observations is not None
            right = exact.belief(process, draws.observations, draws.actions)
            particles = ParticleFilter(InParts(process), 20_000)
            first = draws.observed_first
            belief = particles.start(draws.observations[0] if first else None, draws.num_trajectories)
            for t, action in enumerate(draws.actions):
                belief = particles.move(belief, action, draws.observations[t + first])
                error = (right[t + 1] * (1 - right[t + 1]) / 8000).sqrt() + 1e-12
                assert bool(((belief.probabilities(3) - right[t + 1]).abs() < 5 * error).all())

    def test_particles_of_a_program(self) -> None:
        """20,000 particles, seed 0: the last belief within 5 standard errors of Bayes' rule."""
        tables = small()
        draws_of = tables.rollout(None, 40)
        torch.manual_seed(0)
        alive = draws_of.mask[-1] & ~tables.fully_observed.terminal[draws_of.states[-1]]
        draws = draws_of.select(alive.nonzero()[:1, 0])
        assert draws.observations is not None
        right = exact.belief(tables, draws.observations, draws.actions)[:, 0]
        particles = ProgramFilter(lambda: tables(1), 20_000)
        belief = particles.start(draws.observations[0, 0])
        for t in range(3):
            belief = particles.move(belief, draws.actions[t, 0], draws.observations[t + 1, 0])
        states, weight = belief.values["state_3"].flatten(), belief.log_weight.exp()
        shares = torch.stack([(weight * (states == s)).sum() for s in range(3)])
        assert float(shares[2]) == 0  # going on is seen
        assert bool(((shares - right[3]).abs() < 5 * (right[3] * (1 - right[3]) / 8000).sqrt() + 1e-12).all())

    def test_against_kalman(self) -> None:
        """20,000 particles, seed 0: means within 5 standard errors."""
        one = torch.ones(1, 1, dtype=F)
        process = rlai.LinearGaussianPOMDP(
            0.9 * one, one, 0.3 * one, one, one, one[0], one, one, one, 0.5 * one, horizon=4
        )
        torch.manual_seed(0)
        draws = process.rollout(None, 4)
        assert draws.observations is not None
        right = exact.belief(process, draws.observations, draws.actions)
        particles = ParticleFilter(process, 20_000)
        belief = particles.start(draws.observations[0])
        for t, action in enumerate(draws.actions):
            belief = particles.move(belief, action, draws.observations[t + 1])
            error = (right.covariance[t + 1, 0, 0] / 4000).sqrt()
            assert bool(((belief.mean - right.mean[t + 1]).abs() < 5 * error).all())
            assert bool(((belief.variance[:, 0] / right.covariance[t + 1, 0, 0] - 1).abs() < 0.15).all())

    def test_what_cannot_be_seen(self) -> None:
        sure = torch.eye(2, dtype=F)
        process = TabularPOMDP(sure[:, None], torch.zeros(2, 1), torch.tensor([1.0, 0.0]), sure, horizon=2)
        particles = ParticleFilter(process, 50)
        with pytest.raises(ValueError, match="observation 1 of trajectory 0 has probability 0 under all 50 particles"):
            particles.start(torch.tensor([1]))
        with pytest.raises(ValueError, match="must be a PartiallyObservedMDP"):
            ParticleFilter(process.fully_observed, 50)  # type: ignore[arg-type]


class TestPolicies:
    def test_a_memory_step_by_step_is_that_of_the_whole(self) -> None:
        torch.manual_seed(0)
        for first in (True, False):
            process = small(first)
            policy = RecurrentPolicy.of(process).double()
            for parameter in policy.parameters():
                torch.nn.init.normal_(parameter, std=0.5)
            draws = process.rollout(policy, 9)
            history = draws.history()
            times = torch.arange(3)[:, None].expand(3, 9)
            whole = policy(Histories(history), times).logits
            steps = torch.stack([policy(one, t).logits.expand(9, -1) for t, one in enumerate(history.prefixes()[:3])])
            assert torch.allclose(whole, steps, atol=1e-12)
            assert torch.allclose(policy(history.prefixes()[2].select(torch.tensor([4])), 2).logits[0], whole[2, 4])
            living = draws.mask
            logs = whole.gather(-1, draws.actions[..., None])[..., 0]
            assert torch.allclose(draws.log_policy[living], logs[living], atol=1e-10)

    def test_what_is_remembered_follows_the_parameters(self) -> None:
        process = small()
        policy = RecurrentPolicy.of(process).double()
        history = process.rollout(None, 4).history()
        for parameter in policy.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        before = policy(history, 2).logits.detach()
        with torch.no_grad():
            for parameter in policy.network.parameters():
                parameter.add_(0.3)
        assert not torch.allclose(policy(history, 2).logits, before)

    def test_beliefs_of_tables_and_of_particles(self) -> None:
        """2,000 particles, seed 0."""
        torch.manual_seed(0)
        process = small(terminal=False)
        history = process.rollout(None, 5).history()
        right = BeliefPolicy(process).belief(history)
        found = BeliefPolicy(process, num_particles=2000).belief(history)
        assert torch.allclose(found.double(), right, atol=0.08)

    def test_training(self) -> None:
        """The tiger of four steps: a memory learns to listen before it opens."""
        stay = torch.eye(2)[:, None].repeat(1, 3, 1)
        stay[:, 1:] = 0.5
        heard, nothing = torch.tensor([[0.85, 0.15], [0.15, 0.85]]), torch.full((2, 2), 0.5)
        tiger = TabularPOMDP(
            stay, torch.tensor([[-1.0, -100.0, 10.0], [-1.0, 10.0, -100.0]]), torch.tensor([0.5, 0.5]),
            torch.stack([heard, nothing, nothing]), horizon=4, temperature=10.0,
        )  # fmt: skip
        policy = rlai.guides.amortized_policy(tiger)
        assert isinstance(policy, RecurrentPolicy)
        found = rlai.fit(tiger, policy, steps=250, seed=0, progress=False)
        assert found.estimator == "baseline"
        assert float(found.temperature[0]) > 10
        assert float(found.temperature[-1]) == 10
        gap = float(exact.optimal_elbo(tiger) - exact.elbo(tiger, policy).detach())
        assert gap < 0.1

    def test_pyro_trains_one(self) -> None:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        process = small(discount=1.0, terminal=False)
        policy = RecurrentPolicy.of(process, memory_size=4).double()
        before = float(exact.elbo(process, policy).detach())
        svi = SVI(process, follow(process, policy), pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
        for _ in range(60):
            svi.step(200)
        assert float(exact.elbo(process, policy).detach()) > before + 0.02

    def test_the_wrong_kind_is_named(self) -> None:
        process = small()
        states = CategoricalPolicy(gymnasium.spaces.Discrete(3), 2)
        with pytest.raises(ValueError, match=r"use guides\.RecurrentPolicy or guides\.BeliefPolicy"):
            process.rollout(states, 5)
        with pytest.raises(ValueError, match="RecurrentPolicy needs a History"):
            RecurrentPolicy.of(process)(torch.zeros(3), 0)
        with pytest.raises(ValueError, match="must be a PartiallyObservedMDP"):
            BeliefPolicy(process.fully_observed)  # type: ignore[arg-type]


class TestFreePrograms:
    """A program of one's own with observe() and history(), which is a process of tables too."""

    see = torch.tensor([[0.8, 0.2], [0.3, 0.7]], dtype=F)

    def program(self) -> None:
        place = pyro.sample("place", dist.Categorical(torch.ones(2, dtype=F)))
        for t in rlai.steps(3, discount=0.9):
            rlai.observe(f"seen_{t}", dist.Categorical(self.see[place]))
            action = rlai.act(f"action_{t}", rlai.history(), dist.Categorical(torch.ones(2, dtype=F)))
            rlai.reward(f"reward_{t}", (action == place).double(), temperature=0.5)

    def tables(self) -> TabularPOMDP:
        stay = torch.eye(2, dtype=F)[:, None].expand(2, 2, 2)
        half, payoff = torch.tensor([0.5, 0.5], dtype=F), torch.eye(2, dtype=F)
        return TabularPOMDP(stay, payoff, half, self.see, horizon=3, discount=0.9, temperature=0.5)

    def test_enumeration_is_exact(self) -> None:
        """TraceEnum_ELBO sums over all that is hidden and seen, with a policy that has a memory."""
        torch.manual_seed(0)
        policy = rlai.guides.amortized_policy(as_process(self.program)).double()
        assert isinstance(policy, RecurrentPolicy)
        for parameter in policy.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
        pyro.clear_param_store()
        loss = TraceEnum_ELBO(max_plate_nesting=0).loss(self.program, config_enumerate(follow(self.program, policy)))
        assert abs(-loss - float(exact.elbo(self.tables(), policy).detach())) < 1e-10

    def test_fit(self) -> None:
        policy = rlai.guides.amortized_policy(as_process(self.program)).double()
        rlai.fit(self.program, policy, steps=100, seed=0, num_trajectories=200, progress=False)
        assert float((exact.optimal_elbo(self.tables()) - exact.elbo(self.tables(), policy)).detach()) < 0.05

    def test_posteriors_have_what_is_hidden(self) -> None:
        torch.manual_seed(0)
        for method, policy in (("guide", lambda h, t: dist.Categorical(torch.ones(2, dtype=F))), ("smc", None)):
            data = rlai.posterior(self.program, policy, method=method, num_draws=50)  # type: ignore[arg-type]
            assert {"place", "observation", "action"} <= set(data.posterior)


class TestLanguage:
    def test_history_grows(self) -> None:
        seen = []
        for t in rlai.steps(3):
            rlai.observe(f"observation_{t}", dist.Delta(torch.tensor(float(t))))
            seen.append(rlai.history())
            rlai.act(f"action_{t}", seen[-1], dist.Delta(torch.tensor(10.0 + t)))
        assert [(h.observations.tolist(), h.actions.tolist()) for h in seen] == [
            ([0.0], []),
            ([0.0, 1.0], [10.0]),
            ([0.0, 1.0, 2.0], [10.0, 11.0]),
        ]

    def test_outside_of_steps(self) -> None:
        with pytest.raises(ValueError, match=r"history\(\) outside of steps\(\)"):
            rlai.history()
        with pytest.raises(ValueError, match=r"observe\('y'\) outside of steps\(\)"):
            rlai.observe("y", dist.Normal(0.0, 1.0))

    def test_a_loop_that_was_left_is_forgotten(self) -> None:
        def broken() -> None:
            for t in rlai.steps(2):
                rlai.observe(f"y_{t}", dist.Normal(0.0, 1.0))
                raise KeyError("left")

        with pytest.raises(KeyError):
            broken()
        with pytest.raises(ValueError, match="outside of steps"):
            rlai.history()

    def test_two_observations_in_a_row(self) -> None:
        for t in rlai.steps(1):
            rlai.observe(f"a_{t}", dist.Normal(0.0, 1.0))
            with pytest.raises(ValueError, match="second observation before the next action"):
                rlai.observe(f"b_{t}", dist.Normal(0.0, 1.0))

    def test_not_a_distribution(self) -> None:
        for _ in rlai.steps(1):
            with pytest.raises(ValueError, match="distribution must be a Pyro distribution"):
                rlai.observe("y", torch.zeros(3))

    def test_histories(self) -> None:
        with pytest.raises(ValueError, match="observations must be as many as actions or one more"):
            History(torch.zeros(3, 2), torch.zeros(1, 2))
        history = History(torch.arange(6).view(3, 2), torch.arange(4).view(2, 2))
        assert history.select(torch.tensor([1])).observations.tolist() == [[1], [3], [5]]
        assert [len(one) for one in history.prefixes()] == [0, 1, 2]


class TestGymnasium:
    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("first", [True, False])
    def test_it_shows_what_is_seen(self, first: bool) -> None:
        process = small(first)
        env = rlai.to_gymnasium(process)
        check_env(env)
        assert env.observation_space == gymnasium.spaces.Discrete(2 if first else 3)
        observation, _ = env.reset(seed=1)
        assert (observation == 2) != first  # nothing seen yet is one more
        assert env.step(1)[0] in (0, 1)

    def test_observations_have_their_shares(self) -> None:
        """4,000 environments, seed 0: shares of the first observation within 4 standard errors."""
        process = small()
        envs = rlai.to_gymnasium_vector(process, 4000)
        seen, _ = envs.reset(seed=0)
        p = float(process.fully_observed.initial_probabilities @ process.observation_table[:, 1])
        assert abs(float(np.mean(seen)) - p) < 4 * math.sqrt(p * (1 - p) / 4000)
        again = rlai.to_gymnasium_vector(process, 4000)
        again.reset(seed=3)
        again.restore(envs.snapshot())
        assert np.array_equal(envs.step(np.ones(4000, int))[0], again.step(np.ones(4000, int))[0])


class TestParts:
    def test_an_observation_of_another_shape(self) -> None:
        class Wrong(InParts):
            def observation(self, state: Tensor, action: Tensor | None) -> Any:
                return dist.Normal(torch.zeros(*state.shape, 2), 1.0)

        with pytest.raises(ValueError, match="gives observations of shape"):
            Wrong(small()).rollout(None, 5)

    def test_an_observation_outside_its_space(self) -> None:
        class Wrong(InParts):
            def observation(self, state: Tensor, action: Tensor | None) -> Any:
                return dist.Delta(torch.full(state.shape, 7))

        with pytest.raises(ValueError, match="observation 7"):
            Wrong(small()).rollout(None, 5)

    def test_nothing_is_returned(self) -> None:
        class Wrong(InParts):
            def observation(self, state: Tensor, action: Tensor | None) -> Any:
                return None

        with pytest.raises(ValueError, match="must return a distribution"):
            Wrong(small()).rollout(None, 5)


class TestPictures:
    def test_the_gaps_add_up(self) -> None:
        """The information gap lies between the policy's and the dynamics', on paper and on the page."""
        from rl_as_inference.inspect import plots
        from rl_as_inference.report.figures import gaps_of

        torch.manual_seed(0)
        found = rlai.compare(small(), lean, num_trajectories=100)
        assert found.information_gap is not None
        assert found.policy_gap is not None
        bars = plots.plot_gaps(found).patches
        widths = [bar.get_width() for bar in bars]  # type: ignore[attr-defined]
        assert np.allclose(widths[1:4], [found.policy_gap, found.information_gap, found.dynamics_gap])
        assert np.isclose(sum(widths[:4]), widths[4])
        page = gaps_of(found)
        assert page is not None
        assert np.allclose([bar["width"] for bar in page], widths)

    def test_training_at_higher_temperatures_is_drawn_apart(self) -> None:
        from rl_as_inference.inspect import plots

        ax = plots.plot_elbo_history([-9.0, -5.0, -3.0, -2.0], temperature=[4.0, 2.0, 1.0, 1.0])
        apart, own = ax.get_lines()
        assert list(apart.get_xdata()) == [0, 1]
        assert list(own.get_xdata()) == [2, 3]
