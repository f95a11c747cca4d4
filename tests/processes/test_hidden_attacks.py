"""Hidden states from the side that nobody asks: plans of other processes, ends, stale memories, wrong inputs."""

import math
from typing import Any

import gymnasium
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import rl_as_inference as rlai
from rl_as_inference import (
    History,
    LinearGaussianPOMDP,
    PartiallyObservedMDP,
    TabularPOMDP,
    TrajectoryELBO,
    exact,
    follow,
)
from rl_as_inference.guides import BeliefPolicy, RecurrentPolicy
from rl_as_inference.sampling import ParticleFilter, ProgramFilter

F = torch.float64


def two_doors(see: Any, horizon: int = 3, **options: Any) -> TabularPOMDP:
    stay = torch.eye(2, dtype=F)[:, None].repeat(1, 2, 1) * 0.9 + 0.05
    payoff = torch.tensor([[3.0, -3.0], [-3.0, 3.0]], dtype=F)
    half = torch.tensor([0.5, 0.5], dtype=F)
    return TabularPOMDP(stay, payoff, half, torch.tensor(see, dtype=F), horizon=horizon, **options)


def surely_ends(horizon: int = 3) -> TabularPOMDP:
    onward = torch.tensor([[[0.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    payoff, ends = torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.tensor([False, True])
    return TabularPOMDP(onward, payoff, torch.tensor([1.0, 0.0]), torch.eye(2), horizon=horizon, terminal=ends)


def linear(**changes: Any) -> LinearGaussianPOMDP:
    one = torch.ones(1, 1, dtype=F)
    parts = {
        "A": 0.9 * one, "B": one, "noise_cov": 0.3 * one, "state_cost": one, "action_cost": 0.1 * one,
        "initial_mean": one[0], "initial_cov": one, "action_prior_cov": one, "observation_matrix": one,
        "observation_cov": 0.5 * one,
    } | changes  # fmt: skip
    return LinearGaussianPOMDP(**parts, horizon=3)


class TestPoliciesOfAnotherModel:
    """What a policy believes by a wrong model is not what is right, and exact answers know it."""

    @pytest.mark.parametrize("kind", ["plan", "belief policy"])
    def test_tables(self, kind: str) -> None:
        """20,000 rollouts, seed 0: z below 4, and every identity of compare."""
        torch.manual_seed(0)
        world, wrong = two_doors([[0.9, 0.1], [0.1, 0.9]]), two_doors([[0.1, 0.9], [0.9, 0.1]])
        plan = exact.plan(wrong)
        policy = plan if kind == "plan" else BeliefPolicy(wrong, head=plan)
        found = rlai.estimate_elbo(world, policy, 20_000)
        for value in (exact.elbo(world, policy), exact.elbo(world, policy, sees="history")):
            assert abs(found.mean - float(value)) < 4 * found.standard_error
        assert not rlai.compare(world, policy, num_trajectories=5000).broken
        again = two_doors([[0.9, 0.1], [0.1, 0.9]])  # another of the same tables
        assert torch.allclose(exact.elbo(world, exact.plan(again)), exact.optimal_elbo(world))

    def test_linear_gaussian(self) -> None:
        world, wrong = linear(), linear(observation_cov=torch.full((1, 1), 50.0, dtype=F))
        for sees in (None, "history"):
            with pytest.raises(ValueError, match="beliefs of another process"):
                exact.elbo(world, exact.plan(wrong), sees)  # type: ignore[arg-type]
        assert rlai.compare(world, exact.plan(wrong), num_trajectories=100).elbo_exact is None

    def test_particles(self) -> None:
        world = two_doors([[0.9, 0.1], [0.1, 0.9]])
        with pytest.raises(ValueError, match="particles, which are drawn"):
            exact.elbo(world, BeliefPolicy(world, num_particles=5))
        found = rlai.compare(linear(), BeliefPolicy(linear(), num_particles=30), num_trajectories=50)
        assert found.elbo_exact is None


def test_gradients_reach_later_actions_through_the_belief() -> None:
    """Linear-Gaussian, gains away from where they start: the default gradient against the exact one, z below 4.5.

    40 blocks of 4,000 trajectories, seed 0.
    """
    torch.manual_seed(0)
    process = linear()
    policy = BeliefPolicy(process)
    with torch.no_grad():
        policy.head.gain.fill_(-1.2)
    parameters = [policy.head.gain, policy.head.offset, policy.head.log_diagonal]
    right = torch.autograd.grad(exact.elbo(process, policy), parameters)
    elbo = TrajectoryELBO()
    blocks = []
    for _ in range(40):
        loss = elbo.differentiable_loss(process, follow(process, policy), 4000) / 4000
        blocks.append(torch.cat([-g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    found = torch.stack(blocks)
    z = (found.mean(0) - torch.cat([g.flatten() for g in right])) / (found.std(0) / math.sqrt(40))
    assert float(z.abs().max()) < 4.5


class TestEnds:
    def test_nobody_is_left_to_act(self) -> None:
        process = surely_ends()
        plan = exact.plan(process)
        assert abs(float(plan.objective) - float(exact.optimal_elbo(process.fully_observed))) < 1e-6
        draws = process.rollout(plan, 5)
        assert draws.mask.sum(0).tolist() == [1] * 5
        assert not rlai.compare(process, plan, num_trajectories=100).broken
        assert plan.policy(torch.tensor([1.0, 0.0]), 2).probs.shape == (2,)
        assert rlai.posterior(process, method="exact", num_draws=5)

    def test_a_start_at_the_end_is_seen(self) -> None:
        stay, payoff = torch.eye(2)[:, None].repeat(1, 2, 1), torch.tensor([[0.0, 1.0], [0.0, 0.0]])
        half, ends = torch.tensor([0.5, 0.5]), torch.tensor([False, True])
        process = TabularPOMDP(stay, payoff, half, torch.eye(2), horizon=2, terminal=ends)
        process.rollout(BeliefPolicy(process), 6)
        fitted = rlai.fit(process, RecurrentPolicy.of(process), steps=3, seed=0, progress=False)
        assert bool(fitted.elbo.isfinite().all())
        process.rollout(BeliefPolicy(process, num_particles=20), 6)

    def test_the_last_observation_of_what_has_ended_is_not_looked_at(self) -> None:
        """20,000 runs, seed 0: a condition on the last observation counts where the episode goes on, as others do."""
        stay, ends = torch.tensor([[[0.5, 0.5]], [[0.0, 1.0]]]), torch.tensor([False, True])
        see = torch.tensor([[0.5, 0.5], [0.1, 0.9]])
        process = TabularPOMDP(stay, torch.zeros(2, 1), torch.tensor([1.0, 0.0]), see, horizon=1, terminal=ends)
        torch.manual_seed(0)
        pyro.set_rng_seed(0)
        seen = pyro.poutine.condition(lambda: process(1), data={"observation_1": torch.tensor([[1]])})
        found = rlai.estimate_log_evidence(seen, num_particles=2500)
        right = math.log(0.5 * 0.5 + 0.5)  # half go on and show it half the time; the others show nothing
        assert abs(found.mean - right) < 4.5 * found.standard_error + 1e-6

    def test_a_filter_of_a_program_sees_that_it_goes_on(self) -> None:
        """40,000 particles, seed 0."""

        def program() -> None:
            state = pyro.sample("state", dist.Categorical(torch.ones(2)))
            for t in rlai.steps(2):
                if t:
                    rlai.terminate(state == 1)
                rlai.observe(f"seen_{t}", dist.Categorical(torch.tensor([[0.8, 0.2], [0.3, 0.7]])[state]))
                rlai.act(f"action_{t}", rlai.history(), dist.Categorical(torch.ones(2)))
                rlai.reward(f"reward_{t}", 1.0)

        pyro.set_rng_seed(0)
        particles = ProgramFilter(program, 40_000)
        belief = particles.move(particles.start(torch.tensor(0)), torch.tensor(0), torch.tensor(0))
        assert abs(belief.log_evidence - math.log(0.5 * 0.8**2)) < 0.02
        assert float(belief.log_weight.exp()[belief.values["state"].flatten() == 1].sum()) == 0
        with pytest.raises(ValueError, match="shows nothing after its action"):
            particles.move(belief, torch.tensor(0), torch.tensor(0))


class TestMemories:
    def test_tables_that_move(self) -> None:
        process = two_doors([[0.9, 0.1], [0.1, 0.9]])
        policy, seen = BeliefPolicy(process), History(torch.tensor([[0]]))
        assert float(policy.belief(seen)[0, 0]) == pytest.approx(0.9)
        process.observation_table.copy_(torch.tensor([[0.2, 0.8], [0.8, 0.2]], dtype=F))
        assert float(policy.belief(seen)[0, 0]) == pytest.approx(0.2)

    def test_precisions(self) -> None:
        process = two_doors([[0.9, 0.1], [0.1, 0.9]])
        policy = RecurrentPolicy.of(process)
        assert next(policy.parameters()).dtype == F
        rlai.fit(process, policy, steps=2, seed=0, progress=False)
        single = RecurrentPolicy.of(process).float()
        history = process.rollout(single, 3).history()
        assert single.double()(history, 3 - 1).logits.dtype == F
        BeliefPolicy(process).float()(history, 1)

    def test_heads_that_take_one_step_at_a_time(self) -> None:
        process = two_doors([[0.9, 0.1], [0.1, 0.9]])
        plan = exact.plan(process)
        draws = process.rollout(BeliefPolicy(process, head=lambda belief, t: plan(belief, int(t))), 200)
        assert draws.num_trajectories == 200

    def test_programs_that_see_nothing_first_have_critics(self) -> None:
        see = torch.tensor([[[0.9, 0.1], [0.1, 0.9]], [[0.5, 0.5], [0.5, 0.5]]], dtype=F)
        process = two_doors(see.tolist())
        policy = RecurrentPolicy.of(process)
        for estimator in ("baseline", "exact_sum"):
            rlai.fit(lambda: process(1), policy, steps=2, estimator=estimator, seed=0, progress=False)  # type: ignore[arg-type]

    def test_a_condition_on_what_is_seen_first(self) -> None:
        process = two_doors([[0.9, 0.1], [0.1, 0.9]])
        seen = pyro.poutine.condition(lambda: process(1), data={"observation_0": torch.tensor(1)})
        rlai.fit(seen, RecurrentPolicy.of(process), steps=2, seed=0, progress=False)


class Dim(PartiallyObservedMDP):
    """Nothing is seen first, and the action prior is the default one."""

    state_space, action_space = gymnasium.spaces.Discrete(2), gymnasium.spaces.Discrete(2)
    observation_space: gymnasium.Space[Any] = gymnasium.spaces.Box(-9.0, 9.0, ())
    value = 0.0

    def initial(self) -> Any:
        return dist.Categorical(torch.ones(2))

    def transition(self, state: Tensor, action: Tensor) -> Any:
        return dist.Categorical(torch.ones(*state.shape, 2))

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return (action == state).float()

    def observation(self, state: Tensor, action: Tensor | None) -> Any:
        return None if action is None else dist.Delta(state.float() + self.value)


class OwnPrior(Dim):
    def prior(self, seen: Any) -> Any:
        return dist.Categorical(torch.tensor([0.3, 0.7]).expand(*self.batch_shape(seen), 2))


class TestInParts:
    def test_it_runs(self) -> None:
        for kind in (Dim, OwnPrior):
            process = kind(horizon=2)
            process(3)
            rlai.fit(process, RecurrentPolicy.of(process), steps=2, seed=0, progress=False)

    def test_nan(self) -> None:
        process = Dim(horizon=2)
        process.value = float("nan")
        with pytest.raises(ValueError, match=r"observation.* at step 1 is NaN"):
            process.rollout(None, 4)

    def test_no_space(self) -> None:
        class Without(Dim):
            observation_space = None  # type: ignore[assignment]

        with pytest.raises(ValueError, match="observation_space of Without is not set"):
            Without(horizon=2).rollout(None, 4)


class TestWrongInputs:
    def test_histories_and_steps(self) -> None:
        process = two_doors([[0.9, 0.1], [0.1, 0.9]])
        plan, seen = exact.plan(process), History(torch.tensor([[1]]))
        with pytest.raises(ValueError, match="t must be the number of actions taken, 0 in this history, got 1"):
            plan(seen, 1)
        with pytest.raises(ValueError, match="t must be one integer"):
            plan(torch.tensor([0.5, 0.5]), 0.7)
        with pytest.raises(ValueError, match="every observation must be an integer from 0 to 1"):
            plan(History(torch.tensor([[7]])), 0)
        with pytest.raises(ValueError, match="must be a PartiallyObservedMDP"):
            RecurrentPolicy.of(process.fully_observed)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="sees='history'"):
            exact.elbo(process, lambda history, t: dist.Categorical(logits=history.observations.float()))
        with pytest.raises(ValueError, match="policy failed on beliefs"):
            exact.elbo(process, exact.plan(process.fully_observed))
        with pytest.raises(ValueError, match="integers from 0 to 1"):
            exact.belief(process, torch.tensor([True, False]), torch.tensor([0]))
        assert exact.belief(process, torch.tensor([1]), torch.tensor([], dtype=torch.long)).shape == (1, 2)

    def test_linear_gaussian(self) -> None:
        plan = exact.plan(linear())
        with pytest.raises(ValueError, match=r"belief must be its mean, of shape \(…, 1\)"):
            plan(torch.zeros(4, 3, dtype=F), 0)
        with pytest.raises(ValueError, match=r"observation must have shape \(…, 1\)"):
            plan(History(torch.zeros(1, 4, 2, dtype=F)), 0)
        with pytest.raises(ValueError, match="no observation before its first action"):
            plan(History(), 0)

    def test_filters(self) -> None:
        particles = ParticleFilter(two_doors([[0.9, 0.1], [0.1, 0.9]]), 10)
        with pytest.raises(ValueError, match="observation must be a tensor"):
            particles.start(torch.tensor(0))
        belief = particles.start(torch.tensor([0]))
        with pytest.raises(ValueError, match="action must be a tensor"):
            particles.move(belief, torch.tensor(0), None)

    def test_no_fixed_point(self) -> None:
        stay, see = torch.eye(2, dtype=F)[:, None], torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=F)
        process = TabularPOMDP(stay, torch.ones(2, 1, dtype=F), torch.tensor([0.5, 0.5], dtype=F), see)
        with pytest.raises(ValueError, match="no fixed point"):
            exact.plan(process)
        with pytest.raises(ValueError, match="probabilities >= 0 that sum to one"):
            exact.plan(two_doors([[0.9, 0.1], [0.1, 0.9]], None, discount=0.3))(torch.tensor([2.0, -1.0], dtype=F))
