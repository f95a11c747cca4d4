"""How far a guide is from the exact posterior, against an enumeration of trajectories; programs in part."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

import rl_as_inference as rlai
from rl_as_inference.guides import TabularPolicy
from rl_as_inference.processes.programs import ProgramProcess, as_process


@pytest.mark.parametrize("discount", [1.0, 0.7])
def test_kl_to_posterior_is_that_of_enumerated_trajectories(discount: float) -> None:
    torch.manual_seed(0)
    states, actions, horizon, alpha = 3, 2, 3, 0.6
    moves = torch.rand(states, actions, states, dtype=torch.float64)
    moves /= moves.sum(-1, keepdim=True)
    reward = torch.randn(states, actions, dtype=torch.float64)
    mdp = rlai.TabularMDP(
        moves, reward, torch.ones(states).double() / states, horizon=horizon, discount=discount, temperature=alpha
    )
    policy = TabularPolicy(states, actions, horizon=horizon).double()
    torch.nn.init.normal_(policy.logits)
    table = policy.logits.detach().softmax(-1)

    # A trajectory is its length (how far the survival coins let it go), states and actions.
    log_q, log_joint = [], []
    for length in range(1, horizon + 1):
        coins = discount ** (length - 1) * (1 - discount if length < horizon else 1.0)
        if coins == 0:
            continue
        for path in itertools.product(range(states), repeat=length + 1):
            for acts in itertools.product(range(actions), repeat=length):
                luck = math.log(coins / states)
                luck += sum(math.log(moves[path[t], acts[t], path[t + 1]]) for t in range(length))
                log_q.append(luck + sum(math.log(table[t, path[t], acts[t]]) for t in range(length)))
                earned = sum(float(reward[path[t], acts[t]]) for t in range(length))
                log_joint.append(luck + length * math.log(0.5) + earned / alpha)
    q, joint = torch.tensor(log_q, dtype=torch.float64), torch.tensor(log_joint, dtype=torch.float64)
    assert float(q.exp().sum()) == pytest.approx(1.0, abs=1e-9)
    expected = float((q.exp() * (q - joint + joint.logsumexp(0))).sum())

    found = rlai.posterior(mdp, policy, method="guide", num_draws=5).posterior.attrs["kl_to_posterior"]
    assert found == pytest.approx(expected, abs=1e-9)


def part_of(size: int) -> Callable[[], None]:
    """Forty rewards for action 1, of which a run looks at ``size``; the log weight of all is their sum / α, or 0."""

    def program() -> None:
        action = rlai.act("action_0", torch.zeros(1), dist.Categorical(torch.ones(2)))
        with pyro.plate("rewards", 40, subsample_size=size) as index:
            rlai.reward("reward_0", WORTH[index] * action, temperature=2.0)

    return program


WORTH = torch.linspace(-1, 2, 40)


class TestSubsampledPlates:
    """A plate that draws a part of itself: all trajectories of one run would share the part."""

    @pytest.mark.slow
    def test_the_claimed_error_is_right(self) -> None:
        """200 estimates of 16 rollouts each, seed 0: root mean square of the z-scores 1 ± 0.15 (t of 15: 1.07)."""
        truth = float(WORTH.sum()) / 4
        process = as_process(part_of(4))
        torch.manual_seed(0)
        found = [rlai.estimate_elbo(process, None, 16) for _ in range(200)]
        z = torch.tensor([(each.mean - truth) / each.standard_error for each in found])
        assert abs(float(z.square().mean().sqrt()) - 1) < 0.15

    def test_compare_claims_the_error_of_independent_parts(self) -> None:
        """300 rollouts, seed 0, against the variance by hand: parts without replacement, and the coin; to 20 %."""
        total, parts = float(WORTH.sum()) / 2, 40 / 4 * 4 / 2  # of a mean of four, scaled up, over α
        of_part = float(WORTH.var()) / 4 * (1 - 4 / 40) * parts**2
        variance = (of_part + total**2) / 2 - (total / 2) ** 2
        torch.manual_seed(0)
        found = rlai.compare(part_of(4), None, num_trajectories=300)
        assert found.elbo_standard_error == pytest.approx((variance / 300) ** 0.5, rel=0.2)
        assert abs(found.elbo - total / 2) < 4 * found.elbo_standard_error

    def test_a_whole_plate_runs_as_before(self) -> None:
        process = as_process(part_of(40))
        assert process.is_vectorized()
        assert not as_process(part_of(4)).is_vectorized()
        truth = math.log((1 + math.exp(float(WORTH.sum()) / 2)) / 2)
        torch.manual_seed(0)
        found = rlai.estimate_log_evidence(process, num_proposals=1000)
        assert abs(found.mean - truth) < 4 * found.standard_error

    @pytest.mark.parametrize(
        "ask",
        [
            rlai.estimate_log_evidence,
            lambda program: rlai.posterior(program, method="importance"),
            lambda program: rlai.posterior(program, method="smc"),
            lambda program: rlai.posterior(program, method="nuts"),
            lambda program: rlai.trajectory_kl(program, None),
        ],
    )
    def test_no_evidence_comes_of_a_part(self, ask: Callable[[Any], Any]) -> None:
        with pytest.raises(ValueError, match=r"plate 'rewards' draws a subsample: .* leave out subsample_size"):
            ask(part_of(4))

    def test_sharing_one_part_is_refused(self) -> None:
        with pytest.raises(ValueError, match="plate 'rewards' draws one subsample for all trajectories of a run"):
            ProgramProcess(part_of(4), vectorized=True).rollout(None, 3)


def test_no_kl_where_there_are_no_exact_answers() -> None:
    data = rlai.posterior(rlai.models.corridor(), method="guide", num_draws=5)
    assert "kl_to_posterior" not in data.posterior.attrs
