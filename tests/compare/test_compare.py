"""The comparison of ELBO and SAC objective: identities, gaps, critics, and what has no exact answer."""

import math

import pytest
import torch
from problems import random_mdp

import rl_as_inference as rlai
from rl_as_inference import exact, models
from rl_as_inference.critics import TableCritic
from rl_as_inference.estimate import Estimate
from rl_as_inference.guides import LinearGaussianPolicy, TabularPolicy
from rl_as_inference.models import corridor, double_integrator
from rl_as_inference.report.pairs import paired_blocks


def some_policy(mdp: rlai.TabularMDP, seed: int = 0) -> TabularPolicy:
    policy = TabularPolicy(mdp.num_states, mdp.num_actions, horizon=mdp.horizon).double()
    torch.nn.init.normal_(policy.logits, generator=torch.Generator().manual_seed(seed))
    return policy


@pytest.mark.parametrize("discount", [1.0, 0.9])
@pytest.mark.parametrize("terminal", [False, True])
def test_identities(discount: float, terminal: bool) -> None:
    """N = 20,000 rollouts, seed 1: z-scores; the identities among rows are exact."""
    mdp = random_mdp(5, num_states=4, num_actions=3, horizon=6, discount=discount, terminal=terminal)
    policy = some_policy(mdp)
    torch.manual_seed(1)
    found = rlai.compare(mdp, policy, num_trajectories=20_000)
    assert found.elbo_exact == pytest.approx(float(exact.elbo(mdp, policy).detach()), abs=1e-12)
    assert abs(found.elbo - found.elbo_exact) < 4 * found.elbo_standard_error
    assert found.sac_objective == pytest.approx(found.temperature * found.elbo + found.prior_term, abs=1e-9)
    assert found.sac_objective == pytest.approx(found.expected_return + found.temperature * found.entropy, abs=1e-9)
    gaps = found.dynamics_gap + found.policy_gap
    assert found.log_evidence - found.elbo_exact == pytest.approx(gaps, abs=1e-12)
    assert found.dynamics_gap >= 0
    assert found.policy_gap >= 0
    guide = found.rules[0]
    assert guide.believed_return == guide.expected_return
    assert abs(found.expected_return - guide.expected_return) < 0.1


def test_uniform_prior_and_fixed_length_differ_by_a_constant() -> None:
    mdp = random_mdp(2, num_actions=2, horizon=5, discount=0.8, uniform_prior=True)
    constant = float(mdp.temperature) * sum(0.8**t for t in range(5)) * torch.tensor(2.0, dtype=torch.float64).log()
    for seed in range(3):
        found = rlai.compare(mdp, some_policy(mdp, seed), num_trajectories=10)
        assert found.prior_term == pytest.approx(float(constant), abs=1e-12)


def test_optimal_policies_leave_no_policy_gap() -> None:
    mdp = random_mdp(3, horizon=5)
    assert rlai.compare(mdp, exact.plan(mdp), num_trajectories=2).policy_gap == pytest.approx(0.0, abs=1e-12)
    system = double_integrator(horizon=4)
    assert rlai.compare(system, exact.plan(system), num_trajectories=2).policy_gap == pytest.approx(0.0, abs=1e-4)


def test_deterministic_dynamics_have_no_dynamics_gap() -> None:
    g = torch.Generator().manual_seed(0)
    move = torch.nn.functional.one_hot(torch.randint(4, (4, 2), generator=g), 4).double()
    mdp = rlai.TabularMDP(move, torch.randn(4, 2, generator=g).double(), [1.0, 0.0, 0.0, 0.0], horizon=6)
    assert rlai.compare(mdp, None, num_trajectories=2).dynamics_gap == pytest.approx(0.0, abs=1e-12)


def test_expected_and_posterior_returns() -> None:
    """The slopes in 1/α against sums over every trajectory."""
    import brute_force

    mdp = random_mdp(8, horizon=3, discount=0.9, terminal=True)
    weights = [(p.dynamics * p.prior * math.exp(p.return_ / 0.7), p) for p in brute_force.paths(mdp)]
    total = sum(w for w, _ in weights)
    believed = sum(w * p.return_ for w, p in weights) / total
    assert float(exact.posterior_return(mdp)) == pytest.approx(believed, abs=1e-12)
    gets = sum(p.dynamics * p.prior * p.return_ for p in brute_force.paths(mdp))
    assert float(exact.expected_return(mdp, None)) == pytest.approx(gets, abs=1e-12)


def test_rounding_is_no_standard_error() -> None:
    """Where each trajectory gives the same number, whatever sums of float32 make of it; and nowhere else."""
    world = models.deep_sea(10)
    for policy, constant in ((exact.plan(world), {"elbo", "sac_objective"}), (None, {"entropy"})):
        found = rlai.compare(world, policy, num_trajectories=300, seed=0)
        notes = {row.field: row.note for block in found.blocks() for row in block}
        with_error = {"elbo", "sac_objective", "expected_return", "entropy"}
        assert {name for name in with_error if "±" not in notes[name]} == constant
        assert ("±" in repr(found)) == ("elbo" not in constant)
        assert all(0 < getattr(found, f"{name.removesuffix('_objective')}_standard_error") < 1e-6 for name in constant)
    assert str(Estimate(2.0, 3e-6)) == "2 ± 3e-06"  # a true one, however small, that float32 resolves
    assert [str(Estimate(2.0, error)) for error in (1e-8, 0.0, math.nan)] == ["2", "2", "2"]
    assert str(Estimate(0.0, 1e-12)) == "0 ± 1e-12"


def test_luck_about_a_large_constant_keeps_its_error() -> None:
    """A millionth of a return of a million is a whole reward; without it a row seems wrong beside the exact one."""
    reward = torch.tensor([[1e6, 1e6 + 10]], dtype=torch.float64)
    world = rlai.TabularMDP(torch.ones(1, 2, 1), reward, torch.ones(1, dtype=torch.float64), horizon=1)
    found = [rlai.compare(world, None, num_trajectories=number, seed=0) for number in (4096, 1000)]
    for each in found:
        assert each.elbo_standard_error > 0.05
        notes = {row.field: row.note for block in each.blocks() for row in block}
        assert notes["elbo"] == f"± {each.elbo_standard_error:.2g}"
        assert notes["elbo"] in repr(each)
        assert "±" not in notes["entropy"]
    differences = {row.field: row.difference for block in paired_blocks(*found) for row in block}
    assert differences["elbo"].endswith(f"± {math.hypot(*(each.elbo_standard_error for each in found)):.2g}")
    assert str(rlai.estimate_elbo(world, None, 4096, seed=0)).endswith("± 0.078")


def test_critics() -> None:
    mdp = random_mdp(4, horizon=4)
    policy = some_policy(mdp)
    plan = exact.evaluate(mdp, policy)
    first = torch.zeros(mdp.num_states, dtype=torch.float64)
    first[1] = 1.0
    start = rlai.TabularMDP(
        mdp.kernel.probabilities, mdp.reward_table, first, horizon=4, temperature=0.7, action_prior=mdp.action_prior
    )
    for table in (plan.soft_v.detach(), plan.soft_q.detach()):
        found = rlai.compare(start, policy, critic=TableCritic(table), num_trajectories=50)
        assert found.elbo_critic == pytest.approx(found.elbo_exact, abs=1e-9)
    with pytest.raises(ValueError, match="critic must give one value a state"):
        rlai.compare(mdp, policy, critic=lambda state, t: torch.zeros(3, 5))


class TestIdentities:
    @pytest.mark.parametrize("terminal", [False, True])
    @pytest.mark.parametrize("stationary", [False, True])
    def test_hold(self, terminal: bool, stationary: bool) -> None:
        """N = 2,000, seed 0; exact sides come by separate routes and agree to 1e-9."""
        mdp = random_mdp(6, num_states=4, num_actions=3, horizon=5, discount=0.9, terminal=terminal)
        policy = TabularPolicy(4, 3, horizon=None if stationary else 5).double()
        torch.nn.init.normal_(policy.logits, generator=torch.Generator().manual_seed(1))
        torch.manual_seed(0)
        found = rlai.compare(mdp, policy, num_trajectories=2_000)
        assert len(found.identities) == 13
        assert found.broken == ()
        assert "13 identities among these rows hold" in found.table()
        assert abs(found.sac_exact - found.temperature * found.elbo_exact - found.prior_term_exact) < 1e-12
        assert found.action_cost_bits == pytest.approx(found.action_cost / math.log(2))
        assert found.entropy_bits == pytest.approx(found.entropy / math.log(2))
        assert f"{found.action_cost_exact / math.log(2):.4g} bits" in found.table()

    def test_hold_for_linear_gaussian(self) -> None:
        system = double_integrator(horizon=5, dtype=torch.float64)
        rule = LinearGaussianPolicy(2, 1, horizon=5, initial_scale=0.7, dtype=torch.float64)
        torch.nn.init.normal_(rule.gain, std=0.3, generator=torch.Generator().manual_seed(0))
        torch.manual_seed(0)
        found = rlai.compare(system, rule, num_trajectories=2_000)
        assert len(found.identities) == 13
        assert found.broken == ()
        draws = system.rollout(rule, 200_000)  # seed 0: the closed forms against a mean, 4 standard errors
        for exact_value, sample in ((found.entropy_exact, -draws.log_policy), (None, draws.log_prior)):
            total = sample.sum(0)
            expected = exact_value if exact_value is not None else -found.prior_term_exact / found.temperature
            assert abs(float(total.detach().mean()) - expected) < 4 * float(total.detach().std()) / 200_000**0.5

    def test_exact_parts_by_hand(self) -> None:
        """Entropy, prior cost and return as sums over every trajectory of prior draws, weighted to the policy."""
        import brute_force

        mdp = random_mdp(8, horizon=3, discount=0.9, terminal=True)
        policy = some_policy(mdp)
        table = policy.logits.detach().log_softmax(-1)
        found = rlai.compare(mdp, policy, num_trajectories=2)
        entropy = cost = earned = 0.0
        for path in brute_force.paths(mdp):  # the survival coin renders the discount
            pairs = list(zip(range(path.length), path.states, path.actions, strict=False))
            logs = [float(table[t, s, a]) for t, s, a in pairs]
            weight = path.dynamics * math.exp(sum(logs))
            entropy -= weight * sum(logs)
            cost -= weight * math.log(path.prior)
            earned += weight * path.return_
        assert found.entropy_exact == pytest.approx(entropy, abs=1e-12)
        assert found.action_cost_exact == pytest.approx(cost - entropy, abs=1e-12)
        assert found.expected_return_exact == pytest.approx(earned, abs=1e-12)

    def test_broken_ones_are_printed(self) -> None:
        """Exact tables that are not those of the rollouts, and an action prior that is not that of the messages."""

        class Tampered(rlai.TabularMDP):
            def expected_reward(self) -> torch.Tensor:
                return super().expected_reward() + 1.0

        honest = random_mdp(1, horizon=4)
        tables = (honest.kernel.probabilities, honest.reward_table, honest.initial_probabilities)
        torch.manual_seed(0)
        found = rlai.compare(Tampered(*tables, horizon=4), None, num_trajectories=500)
        assert "BROKEN: ELBO by rollouts = exact" in found.table()
        assert {identity.name for identity in found.broken} >= {
            "ELBO by rollouts = exact",
            "return by rollouts = exact",
        }

        mdp = rlai.TabularMDP(*tables, horizon=4)
        mdp.action_prior = honest.action_prior  # whose logarithm the process holds already
        mdp.has_uniform_prior = True
        mdp._log_action_prior = honest.action_prior.log()
        found = rlai.compare(mdp, some_policy(mdp), num_trajectories=500)
        assert "BROKEN" in found.table()
        assert found.broken


class TestFamilies:
    def test_a_rule_for_every_step_has_no_gap(self) -> None:
        mdp = random_mdp(3, horizon=5)
        found = rlai.compare(mdp, some_policy(mdp), num_trajectories=10)
        assert found.family_gap == pytest.approx(0, abs=1e-12)
        assert found.training_gap == pytest.approx(found.policy_gap, abs=1e-12)

    def test_stationary_table_against_a_grid(self) -> None:
        """One state, two actions, rewards that a stationary policy cannot serve both: one number to search over."""
        move = torch.tensor([[[0.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]], dtype=torch.float64)
        pay = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        mdp = rlai.TabularMDP(move, pay, torch.tensor([1.0, 0.0]), horizon=3, temperature=0.5)
        found = rlai.compare(mdp, TabularPolicy(2, 2).double(), num_trajectories=10)
        grid = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
        best = -math.inf
        second = max(
            float(exact.elbo(mdp, torch.stack([torch.tensor([0.5, 0.5]), torch.stack([p, 1 - p])]))) for p in grid
        )
        first_only = [
            torch.stack([torch.stack([p, 1 - p]), torch.tensor([0.5, 0.5], dtype=torch.float64)]) for p in grid
        ]
        base = float(exact.elbo(mdp, torch.full((2, 2), 0.5, dtype=torch.float64)))
        best = second + max(float(exact.elbo(mdp, table)) for table in first_only) - base  # the states do not interact
        assert found.optimal_elbo - found.family_gap == pytest.approx(best, abs=1e-5)
        assert found.reasons["family"].startswith("best found")

    def test_stationary_families_lie_between(self) -> None:
        mdp = random_mdp(4, num_states=3, num_actions=3, horizon=6, discount=0.9)
        policy = TabularPolicy(3, 3).double()
        torch.manual_seed(0)
        found = rlai.compare(mdp, policy, num_trajectories=10)
        assert found.family_gap > 1e-6
        assert found.training_gap > 0
        rlai.fit(mdp, policy, steps=600, estimator="exact", learning_rate=0.1, seed=0)
        trained = rlai.compare(mdp, policy, num_trajectories=10)
        assert 0 <= trained.training_gap < 1e-4
        assert trained.family_gap == pytest.approx(found.family_gap, abs=1e-6)
        system = double_integrator(horizon=5, dtype=torch.float64)
        rule = rlai.compare(system, LinearGaussianPolicy(2, 1, dtype=torch.float64), num_trajectories=10)
        assert 0 < rule.family_gap < rule.policy_gap
        assert (
            rlai.compare(system, LinearGaussianPolicy(2, 1, 5, dtype=torch.float64), num_trajectories=10).family_gap
            == 0
        )

    def test_networks_say_why_not(self) -> None:
        mdp = random_mdp(4, horizon=3)
        found = rlai.compare(mdp, rlai.guides.CategoricalPolicy(mdp.state_space, 2).double(), num_trajectories=10)
        assert found.family_gap is None
        assert "CategoricalPolicy" in found.reasons["family_gap"]


class TestReasons:
    def test_of_empty_rows(self) -> None:
        found = rlai.compare(corridor(), None, num_trajectories=100)
        assert "no exact answers for ProgramProcess" in found.reasons["log_evidence"]
        assert found.reasons["elbo_critic"] == "no critic was given"
        assert found.broken == ()

    def test_support(self) -> None:
        base = random_mdp(1, num_states=3, num_actions=3, horizon=3)
        tables = (base.kernel.probabilities, base.reward_table, base.initial_probabilities)
        less = TabularPolicy(3, 3, horizon=3).double()
        with torch.no_grad():
            less.logits[1, 2, 0] = -torch.inf
        found = rlai.compare(rlai.TabularMDP(*tables, horizon=3), less, num_trajectories=500)
        assert "never takes action 0 in state 2 at step 1" in found.table()
        assert found.broken == ()
        narrow = rlai.TabularMDP(*tables, horizon=3, action_prior=[0.5, 0.5, 0.0])
        found = rlai.compare(narrow, TabularPolicy(3, 3, horizon=3).double(), num_trajectories=500)
        assert found.elbo_exact == -math.inf
        assert found.broken == ()
        assert "takes action 2 in state 0 at step 0, which the action prior forbids" in found.table()
        assert "nan" not in found.table().lower()

    def test_point_masses(self) -> None:
        import pyro.distributions as dist

        system = double_integrator(horizon=3)
        with pytest.raises(ValueError, match="policy is a point mass"):
            rlai.compare(system, lambda state, t: dist.Delta(-state[..., :1]).to_event(1), num_trajectories=10)

    def test_at_the_prompt_it_is_one_line(self) -> None:
        found = rlai.compare(random_mdp(0), None, num_trajectories=10)
        shown = repr(found)
        assert len(shown) < 140
        assert f"ELBO {found.elbo:.4f} ± {found.elbo_standard_error:.2g}" in shown
        assert f"largest {found.optimal_elbo:.4f}, log p(O) {found.log_evidence:.4f} nats" in shown
        assert str(found) == found.table()

    def test_old_records_can_be_read(self) -> None:
        """A comparison written before there were identities has none."""
        record = rlai.compare(random_mdp(0), None, num_trajectories=10).to_dict()
        for name in ("identities", "reasons", "family_gap", "sac_exact", "action_cost"):
            del record[name]
        assert "policy gap" in rlai.Comparison(**{**record, "rules": ()}).table()


def test_rows_without_exact_answers_are_none() -> None:
    found = rlai.compare(corridor(), None, num_trajectories=100)
    assert found.log_evidence is None
    assert found.optimal_elbo is None
    assert found.policy_gap is None
    assert found.rules == ()
    assert "nan" not in found.table().lower()


def test_policy_outside_the_linear_gaussian_family() -> None:
    system = double_integrator(horizon=3)

    def bent(state: torch.Tensor, t: int) -> rlai.Trajectories:
        import pyro.distributions as dist

        return dist.Normal(state[..., :1].tanh(), 1.0).to_event(1)

    found = rlai.compare(system, bent, num_trajectories=50)
    assert found.elbo_exact is None
    assert found.policy_gap is None
    assert found.dynamics_gap is not None


def test_bad_arguments() -> None:
    mdp = random_mdp(0)
    with pytest.raises(ValueError, match="num_trajectories must be >= 2"):
        rlai.compare(mdp, None, num_trajectories=1)
    with pytest.raises(ValueError, match="process must be a process or a Pyro program"):
        rlai.compare(3, None)

    class Odd:
        def shape(self) -> int:
            return 3

    for answer, name in ((Odd(), "Odd"), (3.0, "float")):
        with pytest.raises(ValueError, match=rf"critic must answer .* of shape \(2,\) for .*; it gave {name}"):
            rlai.compare(mdp, None, num_trajectories=2, critic=lambda state, t, answer=answer: answer)


class TestFit:
    def test_exact_gradient_reaches_the_ceiling(self) -> None:
        mdp = random_mdp(1, num_states=4, horizon=5, discount=0.9)
        policy = TabularPolicy(4, 2, horizon=5).double()
        result = rlai.fit(mdp, policy, steps=400, learning_rate=0.1, seed=0)
        assert "estimator='exact'" in repr(result)
        assert "tensor(" not in repr(result)
        assert result.estimator == "exact"
        assert result.policy is policy
        assert len(result.elbo) == 400
        gap = float(exact.optimal_elbo(mdp) - exact.elbo(mdp, policy).detach())
        assert 0 <= gap < 1e-3

    @pytest.mark.parametrize("estimator", ["score", "baseline", "exact_sum"])
    def test_sampled_gradients_come_close(self, estimator: str) -> None:
        """A learned critic is made and trained alongside; seed 0."""
        mdp = random_mdp(1, num_states=4, horizon=5, discount=0.9, dtype=torch.float32)
        policy = TabularPolicy(4, 2, horizon=5)
        result = rlai.fit(mdp, policy, steps=300, estimator=estimator, learning_rate=0.05, num_trajectories=128, seed=0)
        assert result.estimator == estimator
        assert (result.critic is None) == (estimator == "score")
        gap = float(exact.optimal_elbo(mdp) - exact.elbo(mdp, policy).detach())
        start = float(exact.optimal_elbo(mdp) - exact.elbo(mdp, TabularPolicy(4, 2, horizon=5)).detach())
        assert 0 <= gap < 0.15 * start

    def test_pathwise_on_a_linear_gaussian_process(self) -> None:
        system = double_integrator(horizon=5)
        policy = LinearGaussianPolicy(2, 1, horizon=5)
        before = float(exact.elbo(system, policy).detach())
        rlai.fit(system, policy, steps=300, learning_rate=0.05, num_trajectories=64, seed=0)
        gap = float(exact.optimal_elbo(system) - exact.elbo(system, policy).detach())
        assert 0 <= gap < 0.1 < float(exact.optimal_elbo(system)) - before

    def test_programs(self) -> None:
        """In a plate, and where Python branches on a draw, one run at a time; seed 0."""
        import pyro
        import pyro.distributions as dist

        def branching() -> None:
            state = pyro.sample("state_0", dist.Categorical(torch.ones(2)))
            for t in rlai.steps(3):
                action = rlai.act(f"action_{t}", state, dist.Categorical(torch.ones(2)))
                rlai.reward(f"reward_{t}", 2.0 * (action == state).float())
                if int(action) != int(state):
                    break

        for program, count in ((corridor(), 64), (branching, 16)):
            from rl_as_inference.processes.programs import as_process

            process = as_process(program)
            policy = rlai.guides.amortized_policy(process)
            result = rlai.fit(process, policy, steps=60, learning_rate=0.02, num_trajectories=count, seed=0)
            assert float(result.elbo[-15:].mean()) > float(result.elbo[0]) + 0.3
            if program is branching:  # its optimum: three rewards of 2, at log 2 nats each
                assert float(result.elbo[-1]) == pytest.approx(6 - 3 * math.log(2), abs=0.01)

    def test_same_seed_same_result(self) -> None:
        mdp = random_mdp(1, horizon=3, dtype=torch.float32)
        histories = [
            rlai.fit(mdp, TabularPolicy(3, 2, horizon=3), steps=5, estimator="score", seed=7).elbo for _ in range(2)
        ]
        assert torch.equal(*histories)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"steps": 0}, "steps must be >= 1"),
            ({"learning_rate": -1.0}, "learning_rate must be a finite number > 0"),
            ({"num_trajectories": 0}, "num_trajectories must be >= 1"),
            ({"estimator": "magic"}, "estimator must be exact or one of"),
            ({"estimator": "pathwise"}, "pathwise gradients need reparameterized draws"),
        ],
    )
    def test_bad_arguments(self, changes: dict[str, object], words: str) -> None:
        mdp = random_mdp(0, dtype=torch.float32)
        with pytest.raises(ValueError, match=words):
            rlai.fit(mdp, TabularPolicy(3, 2, horizon=3), **{"steps": 2, **changes})

    def test_policies_that_cannot_be_trained(self) -> None:
        mdp = random_mdp(0)
        with pytest.raises(ValueError, match="policy has no parameters"):
            rlai.fit(mdp, exact.plan(mdp), steps=1)
        with pytest.raises(ValueError, match="estimator='exact' needs"):
            rlai.fit(corridor(), TabularPolicy(5, 2), steps=1, estimator="exact")


@pytest.mark.parametrize("objective", ["one_step_entropy", "wrong_bellman", "svg0", "ddpg"])
def test_critics_of_other_objectives_are_refused(objective):
    """Their values leave out entropy that the ELBO counts, so that the row would compare two different things."""
    agent = rlai.SoftActorCritic("Pendulum-v1", objective=objective, hidden_sizes=(4,))
    with pytest.raises(ValueError, match=f"objective='{objective}', whose values are not those of the ELBO"):
        rlai.compare(rlai.GymnasiumProcess("Pendulum-v1"), agent.policy, num_trajectories=2, critic=agent.critic)
