"""How far a guide is from the exact posterior, against an enumeration of trajectories."""

import itertools
import math

import pytest
import torch

import rl_as_inference as rlai
from rl_as_inference.guides import TabularPolicy


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


def test_no_kl_where_there_are_no_exact_answers() -> None:
    data = rlai.posterior(rlai.models.corridor(), method="guide", num_draws=5)
    assert "kl_to_posterior" not in data.posterior.attrs
