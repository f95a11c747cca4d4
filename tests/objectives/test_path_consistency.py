"""Path consistency: zero at the optimum by enumeration, its gradient on-policy, its optimum, and where it holds."""

import json
import sys
from pathlib import Path
from typing import Any

import gymnasium
import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import random_mdp
from torch import Tensor

import rl_as_inference as rlai
from rl_as_inference import exact
from rl_as_inference.critics import LearnedTable, SoftV, TableCritic
from rl_as_inference.exact.enumeration import enumerate_trajectories
from rl_as_inference.guides import TabularPolicy, amortized_policy
from rl_as_inference.models import double_integrator, gridworld, tiger
from rl_as_inference.models import random_mdp as model_of_random_mdp
from rl_as_inference.objectives import path_consistency_loss
from rl_as_inference.objectives.path_consistency import (
    log_partition_variance,
    path_residuals,
    squared_residuals,
    trajectory_balance,
)
from rl_as_inference.processes.programs import as_process

F64 = torch.float64
ROOT = Path(__file__).parents[2]


def deterministic(seed: int, **options: Any) -> rlai.TabularMDP:
    """A random process each of whose actions leads to one state."""
    base = random_mdp(seed, **options)
    generator = torch.Generator().manual_seed(seed)
    shape = (base.num_states, base.num_actions)
    move = torch.nn.functional.one_hot(torch.randint(shape[0], shape, generator=generator), shape[0])
    return rlai.TabularMDP(
        move.to(base.reward_table),
        torch.where(base.terminal[:, None], 0.0, base.reward_table),
        base.initial_probabilities,
        horizon=base.horizon,
        discount=base.discount,
        temperature=base.temperature,
        action_prior=base.action_prior,
        terminal=base.terminal if base.has_terminal else None,
    )


def gap(process: Any, policy: Any) -> float:
    return float(exact.optimal_elbo(process) - exact.elbo(process, policy).detach())


def table_for(mdp: rlai.TabularMDP, spread: float = 0.0) -> TabularPolicy:
    policy = TabularPolicy(mdp.num_states, mdp.num_actions, horizon=mdp.horizon).to(mdp.reward_table.dtype)
    torch.nn.init.normal_(policy.logits, std=spread, generator=torch.Generator().manual_seed(0))
    return policy


OPTIONS: dict[str, Any] = {"num_states": 4, "num_actions": 3, "horizon": 4}


class TestAtTheOptimum:
    @pytest.mark.parametrize("discount", [1.0, 0.8])
    @pytest.mark.parametrize("terminal", [False, True])
    def test_every_trajectory_is_consistent(self, discount: float, terminal: bool) -> None:
        """``V(s_0) = Σ γ^t c_t`` of 2,000 trajectories of the action prior, to rounding, however long the paths."""
        mdp = deterministic(1, discount=discount, terminal=terminal, **OPTIONS)
        plan = exact.plan(mdp)
        draws = mdp.rollout(None, 2_000)
        critic = TableCritic(plan.soft_v)
        for n in (1, 2, 3, 4, 9):
            assert float(path_consistency_loss(plan, draws, critic, n)) < 1e-24
        assert float(path_consistency_loss(plan, draws)) < 1e-24
        other = exact.plan(mdp.at_temperature(1.0))
        assert float(path_consistency_loss(other, draws)) > 1e-4

    def test_with_luck_it_holds_on_average_alone(self) -> None:
        """Step by step the mean over the next state is 0; a whole trajectory's residual is not."""
        mdp = random_mdp(1, discount=0.9, **OPTIONS)
        plan = exact.plan(mdp)
        critic = TableCritic(plan.soft_v)
        assert float(path_consistency_loss(plan, mdp.rollout(None, 2_000), critic, n=4)) > 1e-2
        log_ratio = mdp.log_action_prior - plan.log_policy
        onward = mdp.kernel.expect(plan.soft_v[1])
        residual = plan.soft_v[0][:, None] - (mdp.expected_reward() + 0.7 * log_ratio[0] + 0.9 * onward)
        assert float(residual.abs().max()) < 1e-12

    @pytest.mark.parametrize("terminal", [False, True])
    def test_gradient_is_zero_there(self, terminal: bool) -> None:
        """Of the step form on another's trajectories, by enumerating what follows: only its luck has a mean of 0."""
        mdp = random_mdp(3, terminal=terminal, **OPTIONS)
        plan = exact.plan(mdp)
        policy, critic = table_for(mdp), LearnedTable(4, horizon=4).double()
        with torch.no_grad():
            policy.logits.copy_(plan.log_policy)
            critic.table.copy_(plan.soft_v[:-1])
        torch.manual_seed(0)
        loss = path_consistency_loss(policy, mdp.rollout(None, 400_000), critic)
        slopes = torch.autograd.grad(loss, [policy.logits, critic.table])
        assert max(float(slope.abs().max()) for slope in slopes) < 5e-3  # N = 400,000, seed 0; 1.0e-3 expected
        far = path_consistency_loss(table_for(mdp, 1.0), mdp.rollout(None, 2_000), critic)
        assert float(far.detach()) > 3 * float(loss.detach())


class TestFunctions:
    def test_residuals_by_hand(self) -> None:
        values = torch.tensor([[1.0], [0.5], [0.25]], dtype=F64, requires_grad=True)
        terms = torch.tensor([[0.1], [0.2], [0.4]], dtype=F64, requires_grad=True)
        assert path_residuals(values, terms, 1).flatten().tolist() == pytest.approx([0.4, 0.05, -0.15])
        assert path_residuals(values, terms, 2).flatten().tolist() == pytest.approx([0.45, -0.1, -0.15])
        assert path_residuals(values, terms, 7)[0].item() == pytest.approx(1.0 - 0.7)
        path_residuals(values, terms, 1)[0].sum().backward()
        assert values.grad.flatten().tolist() == [1.0, 0.0, 0.0], "what follows is held fixed"

    def test_variance_by_hand(self) -> None:
        terms = torch.randn(5, 30, dtype=F64, generator=torch.Generator().manual_seed(0))
        starts = torch.arange(30) % 3
        weight = terms.sum(0)
        mine = log_partition_variance(terms, starts)
        groups = [weight[starts == k].var() * 10 for k in range(3)]
        assert float(mine) == pytest.approx(float(sum(groups)) / 30)
        assert float(log_partition_variance(terms, correction=0)) == pytest.approx(float(weight.var(correction=0)))

    def test_best_log_z_is_the_mean(self) -> None:
        terms = torch.randn(5, 30, dtype=F64, generator=torch.Generator().manual_seed(0))
        assert float(trajectory_balance(terms.sum(0).mean(), terms)) == pytest.approx(
            float(log_partition_variance(terms, correction=0))
        )

    @pytest.mark.parametrize(
        ("call", "words"),
        [
            (lambda: path_residuals(torch.zeros(3, 2), torch.zeros(2, 2)), "values_t must have the shape"),
            (lambda: path_residuals(torch.zeros(3, 2), torch.zeros(3, 2), 0), "n must be an integer >= 1"),
        ],
    )
    def test_bad_shapes(self, call: Any, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            call()


class TestGradient:
    def expectation(self, mdp: rlai.TabularMDP, policy: TabularPolicy, values: Tensor | None, n: int) -> Tensor:
        """The exact mean over all trajectories of the gradient in the logits, minus half the square."""
        found = enumerate_trajectories(mdp.replace(discount=1.0))  # else survival coins are drawn
        states, actions = found.states, found.actions
        log_policy = policy.logits.log_softmax(-1)
        times = torch.arange(mdp.horizon)[:, None]
        taken = log_policy[times, states[:-1], actions]
        move = mdp.kernel.dense()[states[:-1], actions, states[1:]]
        chance = (mdp.initial_probabilities[states[0]] * (move * taken.detach().exp()).prod(0)).detach()
        scales = float(mdp.discount) ** times.to(F64)
        rewards = mdp.reward_table[states[:-1], actions] / mdp.temperature
        terms = scales * (rewards + mdp.log_action_prior[states[:-1], actions] - taken)
        total: Any = 0.0
        for k in range(len(chance)):
            column = None if values is None else (scales * values[times, states[:-1]])[:, k : k + 1] / mdp.temperature
            square = squared_residuals(terms[:, k : k + 1], scales.expand(-1, 1), column, n)
            total = total - chance[k] * square
        (slope,) = torch.autograd.grad(total, policy.logits)
        return slope

    def test_on_policy_it_is_the_elbos(self) -> None:
        """By enumeration, γ = 1: of whole trajectories whatever log Z, of steps with the policy's own values.

        Malkin et al. (2023, arXiv:2210.00580), proposition 1.
        """
        mdp = random_mdp(2, num_states=2, num_actions=2, horizon=3)
        policy = table_for(mdp, 1.0)
        (truth,) = torch.autograd.grad(exact.elbo(mdp, policy), policy.logits)
        own = exact.evaluate(mdp, policy).soft_v[:-1].detach()
        for values in (own, torch.full_like(own, 3.0)):
            assert torch.allclose(self.expectation(mdp, policy, values, 3), truth, atol=1e-12)
        assert torch.allclose(self.expectation(mdp, policy, own, 1), truth, atol=1e-12)
        assert not torch.allclose(self.expectation(mdp, policy, own + own.roll(1, 0), 1), truth, atol=1e-3)

    def test_discounted(self) -> None:
        """With γ < 1 single steps still have it; whole trajectories weigh late steps by γ^2t."""
        mdp = random_mdp(2, num_states=2, num_actions=2, horizon=3, discount=0.7)
        policy = table_for(mdp, 1.0)
        (truth,) = torch.autograd.grad(exact.elbo(mdp, policy), policy.logits)
        own = exact.evaluate(mdp, policy).soft_v[:-1].detach()
        assert torch.allclose(self.expectation(mdp, policy, own, 1), truth, atol=1e-12)
        weighed = truth * (0.7 ** torch.arange(3, dtype=F64))[:, None, None]
        assert torch.allclose(self.expectation(mdp, policy, own, 3), weighed, atol=1e-12)

    @pytest.mark.parametrize("discount", [1.0, 0.7])
    def test_rows(self, discount: float) -> None:
        """N = 20,000, seed 0."""
        mdp = random_mdp(2, num_states=3, num_actions=2, horizon=4, discount=discount)
        torch.manual_seed(0)
        found = rlai.compare_gradients(mdp, table_for(mdp, 1.0), num_trajectories=20_000)
        for name in ("trajectory balance, log Z = V(s₀)", "trajectory balance, variance"):
            row = found[name]
            assert row.unbiased == (discount == 1.0)
            assert (abs(row.z_along) < 4) == row.unbiased
            assert row.unbiased or row.cause.startswith("state weighting")
        step = found["path consistency, one step"]
        assert step.unbiased
        assert abs(step.z_along) < 4
        assert step.variance == pytest.approx(found["advantage, λ = 0"].variance, rel=1e-9)
        em, wider = found["EM, η = α"], found["EM, η = 10 α"]
        assert em.relative_bias_exact > 5 * wider.relative_bias_exact > 0
        assert em.cosine > 0.5

    def test_program_and_parts_agree(self) -> None:
        """Whole trajectories and steps on a Pyro program against the reading in parts, N = 30,000 each, seed 0."""
        mdp = deterministic(5, discount=0.9, terminal=True, num_states=3, num_actions=2, horizon=3)
        policy = table_for(mdp, 0.5)
        critic = TableCritic(exact.plan(mdp.at_temperature(1.2)).soft_v)

        def program() -> None:
            mdp(30_000)

        for given, n in ((None, 1), (critic, 1), (critic, 3)):
            objective = rlai.TrajectoryELBO("path_consistency", given, n=n)
            slopes = []
            for model, args in ((mdp, (30_000,)), (program, ())):
                torch.manual_seed(0)
                loss = objective.differentiable_loss(model, rlai.follow(model, policy), *args) / 30_000
                slopes.append(torch.autograd.grad(loss, policy.logits)[0])
            assert float((slopes[0] - slopes[1]).norm() / slopes[0].norm()) < 0.06


class TestOptimum:
    @pytest.mark.parametrize("discount", [1.0, 0.9])
    @pytest.mark.parametrize("seed", range(2))
    def test_deterministic(self, seed: int, discount: float) -> None:
        """Whole trajectories, 256 a step, 150 steps, seed 0."""
        mdp = deterministic(seed, discount=discount, num_states=5, num_actions=3, horizon=6, terminal=seed == 1)
        policy = table_for(mdp)
        fitted = rlai.fit(mdp, policy, steps=150, estimator="path_consistency", learning_rate=0.1, seed=0)
        assert fitted.critic is None
        assert 0 <= gap(mdp, policy) < 0.05

    @pytest.mark.parametrize("discount", [1.0, 0.9])
    def test_stochastic(self, discount: float) -> None:
        """Single steps with a learned soft V, 256 a step, 200 steps, seed 0."""
        mdp = random_mdp(1, discount=discount, num_states=5, num_actions=3, horizon=6, terminal=True)
        policy = table_for(mdp)
        fitted = rlai.fit(mdp, policy, steps=200, estimator="path_consistency", learning_rate=0.1, seed=0)
        assert isinstance(fitted.critic, LearnedTable)
        assert 0 <= gap(mdp, policy) < 0.05
        assert float(fitted.elbo[-50:].mean()) == pytest.approx(float(exact.elbo(mdp, policy).detach()), abs=0.1)

    @pytest.mark.parametrize("kind", [deterministic, random_mdp])
    def test_off_policy(self, kind: Any) -> None:
        """All trajectories are the action prior's; the history is the policy's own ELBO. Seed 0."""
        mdp = kind(4, num_states=4, num_actions=3, horizon=4)
        policy = table_for(mdp)
        before = gap(mdp, policy)
        fitted = rlai.fit(
            mdp,
            policy,
            steps=200,
            estimator="path_consistency",
            behavior=lambda state, t: mdp.prior_at(state),
            learning_rate=0.1,
            seed=0,
        )
        assert 0 <= gap(mdp, policy) < 0.05 < before
        assert float(fitted.elbo[-50:].mean()) == pytest.approx(float(exact.elbo(mdp, policy).detach()), abs=0.1)

    def test_values_that_move_with_the_square_do_not_get_there(self) -> None:
        """The full gradient, through V(s') too, is biased by the variance of luck: double sampling. Seed 0."""
        mdp = random_mdp(7, num_states=4, num_actions=2, horizon=5, temperature=0.3)
        errors = {}
        for held in (True, False):
            torch.manual_seed(0)
            policy, critic = table_for(mdp), LearnedTable(4, horizon=5).double()
            optimizer = torch.optim.Adam([*policy.parameters(), *critic.parameters()], lr=0.1)
            for _ in range(250):
                draws = mdp.rollout(None, 256)
                terms = (
                    draws.log_factors
                    + draws.log_prior
                    - policy(draws.states[:-1], _times(draws)).log_prob(draws.actions)
                )
                values = critic(draws.states[:-1], _times(draws)) / mdp.temperature
                after = torch.cat([values[1:], torch.zeros_like(values[:1])])
                residual = values - terms - (after.detach() if held else after)
                optimizer.zero_grad()
                residual.square().mean().backward()
                optimizer.step()
            errors[held] = gap(mdp, policy)
        assert errors[True] < 0.05 < 3 * errors[True] + 0.05 < errors[False]

    def test_learned_log_z_of_real_starts(self) -> None:
        """Where no two trajectories start alike, log Z(s₀) is learned; a deterministic line, seed 0."""
        line = Line(horizon=3)
        policy = amortized_policy(line)
        fitted = rlai.fit(line, policy, steps=120, estimator="path_consistency", learning_rate=0.04, seed=0)
        assert isinstance(fitted.critic, SoftV)
        base = rlai.fit(line, amortized_policy(line), steps=120, learning_rate=0.04, seed=0)
        assert float(fitted.elbo[-30:].mean()) > float(base.elbo[-30:].mean()) - 0.3
        with pytest.raises(ValueError, match="critic: no two trajectories start in the same state"):
            rlai.TrajectoryELBO("path_consistency").differentiable_loss(line, rlai.follow(line, policy), 50)

    def test_program(self) -> None:
        program = gridworld_program()
        policy = amortized_policy(as_process(program))
        fitted = rlai.fit(program, policy, steps=60, estimator="path_consistency", learning_rate=0.05, seed=0)
        assert fitted.critic is None
        assert float(fitted.elbo[-20:].mean()) > 0.9 * 2.5

    @pytest.mark.parametrize(
        ("make", "steps", "rate"),
        [(tiger, 60, 0.05), (lambda: double_integrator(horizon=8), 250, 0.02)],
        ids=["tiger", "double_integrator"],
    )
    def test_hidden_and_linear_gaussian(self, make: Any, steps: int, rate: float) -> None:
        """Step by step; as many steps of training as are given get most of the way, seed 0."""
        process = make()
        policy = amortized_policy(process)
        before = float(exact.optimal_elbo(process) - exact.elbo(process, policy).detach())
        rlai.fit(
            process,
            policy,
            steps=steps,
            estimator="path_consistency",
            learning_rate=rate,
            seed=0,
            num_trajectories=128,
        )
        after = float(exact.optimal_elbo(process) - exact.elbo(process, policy).detach())
        assert after < 0.5 * before


def _times(draws: rlai.Trajectories) -> Tensor:
    return torch.arange(draws.horizon)[:, None].expand(draws.rewards.shape)


class Line(rlai.MarkovDecisionProcess):
    """A place that moves as it is told."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.state_space = gymnasium.spaces.Box(-10.0, 10.0, (1,))
        self.action_space = gymnasium.spaces.Discrete(2)

    def initial(self) -> Any:
        return dist.Uniform(-torch.ones(1), torch.ones(1)).to_event(1)

    def transition(self, state: Tensor, action: Tensor) -> Any:
        return dist.Delta(state + 0.5 * (2 * action[..., None].to(state.dtype) - 1), event_dim=1)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return -next_state.abs().squeeze(-1)


def gridworld_program() -> Any:
    """Three steps to the right are worth 3, each to the left nothing."""

    def program() -> None:
        state = torch.zeros(())
        for t in rlai.steps(3):
            action = rlai.act(f"action_{t}", state, dist.Categorical(torch.ones(2)))
            rlai.reward(f"reward_{t}", 2.0 * action)
            state = state + action

    return program


class TestWhereItHolds:
    def test_stochastic_dynamics(self) -> None:
        """Whole trajectories are refused, and the mend works."""
        mdp = random_mdp(0, horizon=3)
        policy = table_for(mdp)
        words = "needs deterministic dynamics, and its transition from state 0 by action 0 is drawn; take single"
        with pytest.raises(ValueError, match=words):
            rlai.TrajectoryELBO("path_consistency").differentiable_loss(mdp, rlai.follow(mdp, policy), 8)
        with pytest.raises(ValueError, match="over whole trajectories needs deterministic"):
            rlai.fit(mdp, policy, steps=1, estimator="path_consistency", n=3)
        critic = SoftV(mdp.state_space, horizon=3).double()
        objective = rlai.TrajectoryELBO("path_consistency", critic, n=2)
        with pytest.raises(ValueError, match="over paths of n = 2 steps needs deterministic"):
            objective.loss(mdp, rlai.follow(mdp, policy), 8)
        rlai.TrajectoryELBO("path_consistency", critic).differentiable_loss(mdp, rlai.follow(mdp, policy), 8)

    def test_in_parts(self) -> None:
        class Windy(Line):
            def transition(self, state: Tensor, action: Tensor) -> Any:
                return dist.Normal(state, 0.1).to_event(1)

        windy = Windy(horizon=2)
        critic = SoftV(windy.state_space, horizon=2)
        with pytest.raises(ValueError, match="its transition at step 0 is drawn"):
            rlai.fit(windy, amortized_policy(windy), steps=1, estimator="path_consistency", critic=critic, n=2)
        rlai.fit(windy, amortized_policy(windy), steps=1, estimator="path_consistency")

    def test_hidden_state(self) -> None:
        pomdp = tiger()
        policy = amortized_policy(pomdp)
        with pytest.raises(ValueError, match="needs deterministic dynamics, and its state is hidden"):
            rlai.TrajectoryELBO("path_consistency").loss(pomdp, rlai.follow(pomdp, policy), 8)

    @pytest.mark.parametrize("kind", ["late", "hidden", "first", "none"])
    def test_programs(self, kind: str) -> None:
        """What is drawn is luck, but for what the policy is shown at first."""

        def program() -> None:
            state = torch.zeros((), dtype=torch.long)
            if kind in ("hidden", "first"):
                drawn = pyro.sample("goal", dist.Categorical(torch.ones(2)))
                state = drawn if kind == "first" else state
            for t in rlai.steps(2):
                action = rlai.act(f"action_{t}", state, dist.Categorical(torch.ones(2)))
                rlai.reward(f"reward_{t}", action.float())
                if kind == "late":
                    pyro.sample(f"wind_{t}", dist.Bernoulli(0.5))

        def policy(state: Tensor, t: Any) -> Any:
            return dist.Categorical(torch.ones(*state.shape, 2))

        batch = as_process(program).in_plate(8)
        objective = rlai.TrajectoryELBO("path_consistency")
        if kind in ("late", "hidden"):
            with pytest.raises(ValueError, match=r"its site '(goal|wind_0)' is drawn"):
                objective.loss(batch, rlai.follow(batch, policy))
        else:
            assert objective.loss(batch, rlai.follow(batch, policy)) < 0

    def test_survival_coins_are_luck(self) -> None:
        def program() -> None:
            for t in rlai.steps(3, discount=0.9, rendering="survival"):
                rlai.reward(
                    f"reward_{t}", rlai.act(f"action_{t}", torch.zeros(8), dist.Bernoulli(torch.full((8,), 0.5)))
                )

        def policy(state: Tensor, t: Any) -> Any:
            return dist.Bernoulli(torch.full(state.shape, 0.5))

        batch = as_process(program).in_plate(8)
        with pytest.raises(ValueError, match="is drawn"):
            rlai.TrajectoryELBO("path_consistency").loss(batch, rlai.follow(batch, policy))

    def test_a_guide_of_ones_own(self) -> None:
        mdp = gridworld()
        with pytest.raises(ValueError, match="needs follow\\(program, policy\\)"):
            rlai.TrajectoryELBO("path_consistency").loss(mdp, lambda *args: mdp(*args), 4)

    def test_a_soft_q(self) -> None:
        mdp = random_mdp(0, horizon=3)
        critic = TableCritic(exact.plan(mdp).soft_q)
        with pytest.raises(ValueError, match="estimator='path_consistency' needs a soft V"):
            rlai.TrajectoryELBO("path_consistency", critic).loss(mdp, rlai.follow(mdp, table_for(mdp)), 8)


def test_torchgfn() -> None:
    """torchgfn's own answers, kept in benchmarks/results, against ours on the same trajectories: to 1e-12."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.peers.against_torchgfn import hypergrid, ours

    data = json.loads((ROOT / "benchmarks" / "results" / "torchgfn.json").read_text())
    for grid in data["grids"]:
        mine = ours(grid["options"], grid["peer"])
        assert len(mine) == 4
        for name, theirs in grid["peer"]["losses"].items():
            assert mine[name]["loss"] == pytest.approx(theirs["loss"], abs=1e-12)
            slopes = (torch.tensor(one["gradient"], dtype=F64) for one in (mine[name], theirs))
            assert torch.allclose(*slopes, rtol=0, atol=1e-12)
            assert max(max(map(abs, line)) for line in theirs["gradient"]) > 0.01
            if theirs["log_z_gradient"] is not None:
                assert mine[name]["log_z_gradient"] == pytest.approx(theirs["log_z_gradient"], abs=1e-12)
            assert max(grid["differences"][name].values()) < 1e-6
        # The grid is a process as any other: its causal optimum is the posterior, and consistent.
        process, _ = hypergrid(grid["options"], grid["peer"])
        plan = exact.plan(process)
        assert float(plan.objective) == pytest.approx(float(exact.log_evidence(process)), abs=1e-12)
        assert float(path_consistency_loss(plan, process.rollout(None, 200))) < 1e-20


def test_model_in_float32() -> None:
    mdp = model_of_random_mdp(4, 2, horizon=3)
    policy = TabularPolicy(4, 2, horizon=3)
    for estimator in ("em", "path_consistency"):
        assert rlai.fit(mdp, policy, steps=3, estimator=estimator).elbo.isfinite().all()
