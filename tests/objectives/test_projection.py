"""Expectation maximization: weights and their dual by brute force, its optimum, and what each source converges to."""

import itertools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import random_mdp
from torch import Tensor

import rl_as_inference as rlai
from rl_as_inference import exact
from rl_as_inference.critics import QEnsemble, SoftV, TableCritic
from rl_as_inference.exact.gaussian_projection import expected_log_density, improved_rule, rule_within, sigma_points
from rl_as_inference.exact.tabular import discounted_visits
from rl_as_inference.guides import LinearGaussianPolicy, TabularPolicy, amortized_policy
from rl_as_inference.models import corridor, double_integrator, light_dark_linear
from rl_as_inference.objectives import Projection
from rl_as_inference.objectives.projection import (
    improved_policy,
    projection_loss,
    soft_advantage,
    temperature_dual,
    tilt_kl,
)
from rl_as_inference.processes.programs import as_process

F64 = torch.float64


def gap(process: Any, policy: Any) -> float:
    return float(exact.optimal_elbo(process) - exact.elbo(process, policy).detach())


def table_for(mdp: rlai.TabularMDP, dtype: torch.dtype = F64) -> TabularPolicy:
    return TabularPolicy(mdp.num_states, mdp.num_actions, horizon=mdp.horizon).to(dtype)


def some_logits(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


class TestWeights:
    def test_eta_alpha_is_soft_policy_iteration(self) -> None:
        """``q* ∝ p e^{Q/α}`` whatever the policy; a hand-written loop over states and actions."""
        q, log_policy, log_prior = some_logits(0, 5, 3), some_logits(1, 5, 3), some_logits(2, 5, 3)
        log_policy, log_prior = log_policy.log_softmax(-1), log_prior.log_softmax(-1)
        found = improved_policy(soft_advantage(q, log_policy, log_prior, 0.7), log_policy, 0.7).exp()
        for s in range(5):
            weights = [math.exp(float(log_prior[s, a] + q[s, a] / 0.7)) for a in range(3)]
            for a in range(3):
                assert float(found[s, a]) == pytest.approx(weights[a] / sum(weights), abs=1e-12)

    def test_it_is_the_best_of_its_trust_region(self) -> None:
        """At η it maximises ``E_q[Q] - α KL(q || p) - (η - α) KL(q || π)``: no better one among 2,000 draws, seed 3."""
        q, alpha, eta = some_logits(0, 3), 0.5, 1.3
        log_policy, log_prior = some_logits(1, 3).log_softmax(-1), some_logits(2, 3).log_softmax(-1)

        def worth(p: Tensor) -> Tensor:
            own = (p * p.log()).sum(-1)
            return p @ q - alpha * (own - p @ log_prior) - (eta - alpha) * (own - p @ log_policy)

        best = improved_policy(soft_advantage(q, log_policy, log_prior, alpha), log_policy, eta).exp()
        torch.manual_seed(3)
        others = torch.distributions.Dirichlet(torch.ones(3, dtype=F64)).sample((2000,))
        assert bool((worth(others) <= worth(best)).all())
        assert float(worth(0.999 * best + 0.001 * others[0])) < float(worth(best))

    @pytest.mark.parametrize("epsilon", [1e-4, 0.03, 0.5])
    @pytest.mark.parametrize("dtype", [torch.float32, F64])
    def test_dual(self, epsilon: float, dtype: torch.dtype) -> None:
        """The divergence at the answer is ε, and the dual is least there, among 4,001 temperatures."""
        advantage, log_policy = some_logits(4, 6, 4).to(dtype), some_logits(5, 6, 4).to(dtype).log_softmax(-1)
        weights = some_logits(6, 6).to(dtype).exp()
        eta = temperature_dual(advantage, log_policy, epsilon, weights)
        share = weights / weights.sum()
        assert float((share * tilt_kl(advantage, log_policy, eta)).sum()) == pytest.approx(epsilon, rel=1e-2)

        def dual(eta: Tensor) -> Tensor:
            inside = (log_policy + advantage / eta[:, None, None]).logsumexp(-1)
            return eta * epsilon + eta * (inside * share).sum(-1)

        if dtype == F64:
            assert float((share * tilt_kl(advantage, log_policy, eta)).sum()) == pytest.approx(epsilon, rel=1e-7)
            grid = eta * torch.logspace(-1, 1, 4001, dtype=dtype)
            assert float(grid[dual(grid).argmin()] / eta) == pytest.approx(1, abs=2e-3)

    def test_dual_where_nothing_binds(self) -> None:
        advantage, log_policy = some_logits(4, 6, 4), some_logits(5, 6, 4).log_softmax(-1)
        free = temperature_dual(advantage, log_policy, 0.05)
        assert float(temperature_dual(advantage, log_policy, 0.05, minimum=2 * float(free))) == 2 * float(free)
        assert float(temperature_dual(torch.zeros(2, 3), torch.zeros(2, 3), 0.1, minimum=0.3)) == pytest.approx(0.3)
        most = -float(log_policy.gather(-1, advantage.argmax(-1, keepdim=True)).mean())
        small = temperature_dual(advantage, log_policy, most + 0.1)  # the furthest that any tilt goes
        assert float(small) < 1e-3
        assert bool(improved_policy(advantage, log_policy, small).exp().isfinite().all())

    def test_what_cannot_be_done(self) -> None:
        """An action of probability zero stays there, one that the prior forbids gets it."""
        log_policy = torch.tensor([[0.0, 0.5, 0.5]]).log()
        log_prior = torch.tensor([[0.4, 0.0, 0.6]]).log()
        advantage = soft_advantage(torch.tensor([[9.0, 9.0, 1.0]]), log_policy, log_prior, 0.5)
        target = improved_policy(advantage, log_policy, 0.5)
        assert target.exp().tolist() == [[0.0, 0.0, 1.0]]
        assert bool(temperature_dual(advantage, log_policy, 0.1).isfinite())
        logits = torch.zeros(1, 3, requires_grad=True)
        projection_loss(logits.log_softmax(-1), target, torch.ones(1)).backward()
        assert bool(logits.grad.isfinite().all())

    def test_on_a_batch_of_its_own(self) -> None:
        """The dual is vmapped over seeds as the learners' losses are."""
        advantage, log_policy = some_logits(7, 3, 6, 4), some_logits(8, 3, 6, 4).log_softmax(-1)
        together = torch.func.vmap(lambda a, p: temperature_dual(a, p, 0.1))(advantage, log_policy)
        apart = [temperature_dual(a, p, 0.1) for a, p in zip(advantage, log_policy, strict=True)]
        assert torch.allclose(together, torch.stack(apart))

    @pytest.mark.parametrize(
        ("call", "words"),
        [
            (
                lambda: soft_advantage(torch.zeros(2, 3), torch.zeros(2, 2), torch.zeros(3), 1.0),
                "log_policy_a must have",
            ),
            (lambda: improved_policy(torch.zeros(2, 3), torch.zeros(3), 1.0), "log_policy_a must have the shape"),
            (lambda: improved_policy(torch.zeros(3), torch.zeros(3), torch.ones(2)), "eta must be a number"),
            (lambda: temperature_dual(torch.zeros(2, 3), torch.zeros(2, 3), 0.1, torch.ones(3)), "weights must have"),
            (lambda: projection_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(3)), "weights must have"),
        ],
    )
    def test_shapes(self, call: Any, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            call()


class TestLinearGaussian:
    def rule(self, system: rlai.LinearGaussianMDP) -> LinearGaussianPolicy:
        rule = LinearGaussianPolicy(system.state_size, system.action_size, system.horizon, 0.8, dtype=F64)
        with torch.no_grad():
            rule.gain.copy_(0.4 * exact.plan(system).gain)
            rule.offset.add_(0.1)
        return rule

    @pytest.mark.parametrize("ratio", [1.0, 3.0])
    def test_rule_on_a_grid_of_actions(self, ratio: float) -> None:
        """The mean and variance of ``π e^{A/η}`` by summing over 20,001 actions."""
        system = double_integrator(horizon=4, dtype=F64)
        with torch.no_grad():
            plan: Any = exact.evaluate(system, self.rule(system))
        eta = ratio * system.temperature
        gain, offset, factor = improved_rule(system, plan, eta)
        state, t = torch.tensor([0.7, -0.4], dtype=F64), 1
        actions = torch.linspace(-12, 12, 20_001, dtype=F64)[:, None]
        states = state.expand(len(actions), 2)
        after = system.next_mean(states, actions)
        log_policy, log_prior = plan(states, t).log_prob(actions), system.prior(states).log_prob(actions)
        q = system.reward(states, actions) + plan.soft_v(after, t + 1)  # the noise adds a constant
        log_weight = (
            log_policy + soft_advantage(q[None], log_policy[None], log_prior[None], system.temperature)[0] / eta
        )
        weights = log_weight.softmax(0)
        mean = (weights * actions[:, 0]).sum()
        assert float(gain[t] @ state + offset[t]) == pytest.approx(float(mean), abs=1e-8)
        spread = (weights * (actions[:, 0] - mean) ** 2).sum().sqrt()
        assert float(factor[t]) == pytest.approx(float(spread), abs=1e-8)

    def test_trust_region(self) -> None:
        system = double_integrator(horizon=4, dtype=F64)
        with torch.no_grad():
            plan: Any = exact.evaluate(system, self.rule(system))
        own, (states, weights) = (plan.gain, plan.offset, plan.scale_tril), sigma_points(system, plan)
        for epsilon in (0.01, 0.05):
            rule, eta = rule_within(system, plan, epsilon)
            apart = expected_log_density(states, rule, rule) - expected_log_density(states, rule, own)
            assert float((weights * apart).sum() / weights.sum()) == pytest.approx(epsilon, rel=1e-6)
            assert float(eta) > float(system.temperature)
        _, eta = rule_within(system, plan, 1e4)
        assert float(eta) == pytest.approx(float(system.temperature))

    @pytest.mark.parametrize("options", [{}, {"epsilon": 0.1}, {"eta": 4.0}])
    def test_optimum(self, options: dict[str, float]) -> None:
        system = double_integrator(horizon=6, dtype=F64)
        policy = amortized_policy(system)
        before = gap(system, policy)
        rlai.fit(system, policy, steps=120, estimator="em", learning_rate=0.1, **options)
        assert 0 <= gap(system, policy) < 0.01 < before


class TestOptimum:
    @pytest.mark.parametrize("options", [{}, {"epsilon": 0.05}, {"eta": 2.0}])
    @pytest.mark.parametrize("seed", range(3))
    def test_exact_messages(self, seed: int, options: dict[str, float]) -> None:
        mdp = random_mdp(seed, num_states=5, num_actions=3, horizon=6, discount=0.95, terminal=seed == 1)
        policy = table_for(mdp)
        fitted = rlai.fit(mdp, policy, steps=120, estimator="em", learning_rate=0.1, seed=0, **options)
        assert 0 <= gap(mdp, policy) < 0.01
        assert float(fitted.elbo[-1]) == pytest.approx(float(exact.elbo(mdp, policy).detach()), abs=1e-2)
        assert fitted.critic is None

    def test_no_horizon(self) -> None:
        mdp = random_mdp(4, num_states=4, horizon=None, discount=0.8)
        policy = TabularPolicy(4, 2).double()
        rlai.fit(mdp, policy, steps=150, estimator="em", learning_rate=0.1)
        assert 0 <= gap(mdp, policy) < 1e-3

    def test_learned_soft_q(self) -> None:
        """Without tables: N = 256 trajectories a step, seed 0."""
        tables = random_mdp(2, num_states=4, num_actions=3, horizon=5, dtype=torch.float32)
        policy = table_for(tables, torch.float32)
        critic = TableCritic(exact.plan(tables).soft_q)
        rlai.fit(tables, policy, steps=100, estimator="em", critic=critic, learning_rate=0.1, seed=0)
        assert 0 <= gap(tables, policy) < 0.01, "a given critic"
        policy = table_for(tables, torch.float32)
        wanted = rlai.fit(tables, policy, steps=1, estimator="exact_sum", seed=0).critic
        before = gap(tables, policy)
        rlai.fit(tables, policy, steps=200, estimator="em", critic=wanted, learning_rate=0.1, seed=0)
        assert 0 <= gap(tables, policy) < 0.05 < before, "one trained alongside"

    def test_continuous_actions(self) -> None:
        """Draws with self-normalised weights and a learned soft Q of actions, N = 128, seed 0."""
        one = torch.ones(1, 1)
        system = rlai.LinearGaussianMDP(
            0.9 * one, one, 0.1 * one, one, 0.2 * one, one[0], one, one, horizon=2, temperature=0.7
        )
        policy = amortized_policy(system)
        before = gap(system, policy)
        critic = QEnsemble(system.state_space, system.action_space, num_critics=2, horizon=2, hidden_sizes=(64, 64))
        rlai.fit(
            system, policy, steps=150, estimator="em", critic=critic, learning_rate=0.03, num_trajectories=128, seed=0
        )
        assert gap(system, policy) < 0.1 * before

    def test_program(self) -> None:
        program = corridor()
        policy = amortized_policy(as_process(program))
        fitted = rlai.fit(program, policy, steps=150, estimator="em", seed=0)
        assert float(fitted.elbo[-20:].mean()) > 1.3, "the largest is 1.485, and the prior's 0"


class TestTrajectories:
    """What weights of trajectories converge to: the posterior of actions, luck included."""

    def bandit(self, sure: bool) -> rlai.TabularMDP:
        """A safe action, and a gamble that is worth as much on average; or, if sure, always its mean."""
        win = 0.5
        move = torch.tensor([[[0.0, 1, 0], [0.0, 1 - win, win]], [[0.0, 1, 0]] * 2, [[0.0, 0, 1]] * 2], dtype=F64)
        if sure:
            move[0, 1] = torch.tensor([0.0, 1.0, 0.0], dtype=F64)
        reward = torch.zeros(3, 2, 3, dtype=F64)
        reward[0, 0] = 1.0
        reward[0, 1] = torch.tensor([1.0, 1.0, 1.0] if sure else [0.0, 0.0, 2.0], dtype=F64)
        return rlai.TabularMDP(move, reward, torch.tensor([1.0, 0, 0], dtype=F64), horizon=1, temperature=0.5)

    @pytest.mark.parametrize("sure", [True, False])
    def test_whole_trajectories(self, sure: bool) -> None:
        """1,000 trajectories a step, seed 0: the posterior's share of the gamble, 0.5 where nothing is luck."""
        mdp = self.bandit(sure)
        policy = TabularPolicy(3, 2, horizon=1).double()
        optimizer = torch.optim.Adam(policy.parameters(), lr=0.05)
        objective, guide = rlai.TrajectoryELBO("em"), rlai.follow(mdp, policy)
        torch.manual_seed(0)
        for _ in range(200):
            optimizer.zero_grad()
            objective.differentiable_loss(mdp, guide, 1_000).backward()
            optimizer.step()
        share = float(policy(torch.tensor([0]), 0).probs[0, 1].detach())
        lucky, causal = (float(exact.plan(mdp, d).policy[0, 0, 1]) for d in ("posterior", "causal"))
        assert share == pytest.approx(lucky, abs=0.03)
        assert causal == pytest.approx(0.5)
        assert (lucky > 0.6) != sure

    def test_soft_v_and_lambda(self) -> None:
        """With a soft V, η large against luck: the causal optimum nearly; 256 trajectories a step, seed 0."""
        mdp = self.bandit(False)
        shares = {}
        for eta in (0.5, 10.0):
            policy = TabularPolicy(3, 2, horizon=1).double()
            critic = SoftV(mdp.state_space, horizon=1).double()
            rlai.fit(mdp, policy, steps=150, estimator="em", critic=critic, eta=eta, learning_rate=0.1, seed=0)
            shares[eta] = float(policy(torch.tensor([0]), 0).probs[0, 1].detach())
        assert shares[0.5] > 0.6
        assert abs(shares[10.0] - 0.5) < 0.08

    def test_gradient_approaches_the_elbos(self) -> None:
        """``η → ∞``: ``η/α`` times the forward divergence's gradient is the all-action policy gradient."""
        mdp = random_mdp(5, num_states=4, num_actions=3, horizon=4, discount=0.9)
        policy = table_for(mdp)
        with torch.no_grad():
            policy.logits.copy_(some_logits(3, 4, 4, 3))
        (truth,) = torch.autograd.grad(exact.elbo(mdp, policy), policy.logits)
        plan = exact.evaluate(mdp, policy)
        off = []
        for eta in (0.7, 7.0, 7e4):
            logits = policy.logits.log_softmax(-1)
            projection = Projection(eta=eta)
            weights = discounted_visits(mdp, policy).detach()
            surrogate = projection.on_tables(logits, plan.soft_q, mdp.log_action_prior.expand(4, -1, -1), weights, 0.7)
            (slope,) = torch.autograd.grad(surrogate, policy.logits)
            off.append(float((slope - truth).norm() / truth.norm()))
        assert off[0] > 5 * off[1] > 50 * off[2]
        assert off[2] < 1e-4


class TestTeacher:
    def test_categorical(self) -> None:
        """Distilling the optimal plan: N = 256 trajectories of the guide a step, seed 0."""
        mdp = random_mdp(6, num_states=5, horizon=5, terminal=True, dtype=torch.float32)
        policy = table_for(mdp, torch.float32)
        fitted = rlai.fit(mdp, policy, steps=100, teacher=exact.plan(mdp), learning_rate=0.2, seed=0)
        assert fitted.estimator == "em"
        assert 0 <= gap(mdp, policy) < 0.01

    def test_it_is_asked_once_a_state(self) -> None:
        mdp = random_mdp(6, num_states=5, horizon=5, dtype=torch.float32)
        plan, asked = exact.plan(mdp), []

        def teacher(state: Tensor, t: Any) -> Any:
            asked.append(len(state))
            return plan(state, t)

        rlai.fit(mdp, table_for(mdp, torch.float32), steps=2, teacher=teacher, seed=0)
        assert len(asked) == 10
        assert max(asked) <= 5

    def test_continuous(self) -> None:
        system = double_integrator(horizon=4)
        policy = amortized_policy(system)
        before = gap(system, policy)
        rlai.fit(system, policy, steps=120, teacher=exact.plan(system), learning_rate=0.1, num_trajectories=64, seed=0)
        assert gap(system, policy) < 0.05 * before

    def test_hidden_state(self) -> None:
        """A policy of beliefs is distilled into one with a memory."""
        pomdp = rlai.models.t_maze()
        plan = exact.plan(pomdp)
        teacher = rlai.guides.BeliefPolicy(pomdp, plan.policy)
        policy = amortized_policy(pomdp)
        before = float(exact.elbo(pomdp, policy).detach())
        rlai.fit(
            pomdp, policy, steps=80, teacher=teacher, num_trajectories=64, learning_rate=0.04, tempering=1.0, seed=0
        )
        after = float(exact.elbo(pomdp, policy).detach())
        best = float(exact.optimal_elbo(pomdp))
        assert best - after < 0.2 * (best - before)

    def test_of_other_actions(self) -> None:
        mdp, other = (random_mdp(6, num_actions=n, horizon=2) for n in (2, 3))
        with pytest.raises(ValueError, match="teacher: its answer at step 0 is over 3 actions"):
            rlai.fit(mdp, table_for(mdp), steps=1, teacher=exact.plan(other))
        with pytest.raises(ValueError, match="teacher must return a distribution; at step 0 it returned Tensor"):
            rlai.fit(mdp, table_for(mdp), steps=1, teacher=lambda state, t: state)


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"eta": 0.0}, "eta must be a finite number > 0"),
            ({"epsilon": -1.0}, "epsilon must be a finite number > 0"),
            ({"eta": 1.0, "epsilon": 1.0}, "eta and epsilon: .* give one of them"),
            ({"eta": 1.0, "teacher": lambda s, t: None}, "eta: a teacher's answers are taken as they are"),
            ({"teacher": 3}, "teacher must be a policy"),
            ({"estimator": "score", "eta": 1.0}, "eta is for estimator='em', got estimator='score'"),
            ({"estimator": "exact", "teacher": lambda s, t: None}, "teacher is for estimator='em'"),
            ({"n": 2}, "n is for estimator='n_step' or 'path_consistency'"),
            ({"behavior": lambda s, t: None}, "behavior is for estimator='path_consistency'"),
        ],
    )
    def test_of_fit(self, options: dict[str, Any], words: str) -> None:
        mdp = random_mdp(0, horizon=2)
        with pytest.raises(ValueError, match=words):
            rlai.fit(mdp, table_for(mdp), **({"steps": 1, "estimator": "em"} | options))

    def test_of_the_objective(self) -> None:
        with pytest.raises(ValueError, match="projection is for estimator='em'"):
            rlai.TrajectoryELBO("score", projection=Projection(eta=1.0))
        mdp = random_mdp(0, horizon=2)
        critic = QEnsemble(mdp.state_space, rlai.models.point_mass().action_space, horizon=2).double()
        objective = rlai.TrajectoryELBO("baseline", critic)
        with pytest.raises(ValueError, match="a QEnsemble of actions is for estimator='em'"):
            objective.differentiable_loss(mdp, rlai.follow(mdp, table_for(mdp)), 8)

    def test_one_trajectory_alone(self) -> None:
        """A program that is run one trajectory at a time has nothing to weigh it against."""
        pyro.clear_param_store()

        def program() -> None:
            for t in rlai.steps(2):
                action = rlai.act(f"action_{t}", torch.zeros(()), dist.Bernoulli(torch.tensor(0.5)))
                rlai.reward(f"reward_{t}", 1.0 if action else 0.0)

        class Coin(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.logit = torch.nn.Parameter(torch.zeros(()))

            def forward(self, state: Tensor, t: Any) -> Any:
                return dist.Bernoulli(logits=self.logit.expand(state.shape))

        objective = rlai.TrajectoryELBO("em")
        with pytest.raises(ValueError, match="weighs trajectories against each other, and there is one"):
            objective.differentiable_loss(program, rlai.follow(program, Coin()))

    @pytest.mark.parametrize("make", [light_dark_linear, rlai.models.tiger])
    def test_hidden_state(self, make: Any) -> None:
        """A critic of one's own is needed there, and one that is given will do."""
        pomdp = make()
        policy = amortized_policy(pomdp)
        with pytest.raises(ValueError, match="critic: estimator='em' learns no soft Q where the state is hidden"):
            rlai.fit(pomdp, policy, steps=1, estimator="em", num_trajectories=8)
        fitted = rlai.fit(pomdp, policy, steps=2, estimator="em", critic=lambda state, t: torch.zeros(len(state)))
        assert bool(fitted.elbo.isfinite().all())


def test_brute_force_of_one_e_step() -> None:
    """All sequences of actions of a process, by hand: the E-step's target at each state is the reference's tilt."""
    mdp = random_mdp(8, num_states=2, num_actions=2, horizon=2, uniform_prior=True)
    table = some_logits(9, 2, 2, 2).softmax(-1)
    move, reward, alpha = mdp.kernel.dense(), mdp.reward_table, mdp.temperature
    plan = exact.evaluate(mdp, table)
    for s, a in itertools.product(range(2), range(2)):
        later = 0.0
        for after, b in itertools.product(range(2), range(2)):
            soft = reward[after, b] + alpha * (math.log(0.5) - table[1, after, b].log())
            later += float(move[s, a, after] * table[1, after, b] * soft)
        assert float(plan.soft_q[0, s, a]) == pytest.approx(float(reward[s, a]) + later, abs=1e-12)
