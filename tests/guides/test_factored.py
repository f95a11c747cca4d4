"""Policies over several discrete actions at once, against tables of all joint actions."""

import itertools
import math

import gymnasium
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate

import rl_as_inference as rlai
from rl_as_inference.factored import JOINT_ACTIONS, FactoredCategorical, Factors, JointCategorical
from rl_as_inference.guides import FactoredCategoricalPolicy

F64 = torch.float64
SIZES = (3, 1, 2)
LOGITS = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=F64)


def by_hand(logits, sizes):
    """Log probabilities of all joint actions, by a loop over them."""
    parts = [part.log_softmax(-1) for part in logits.split(sizes, -1)]
    joint = itertools.product(*(range(size) for size in sizes))
    return torch.stack([sum(part[..., a] for part, a in zip(parts, action, strict=True)) for action in joint], -1)


def test_the_product_is_the_table_by_hand():
    product, table = FactoredCategorical(LOGITS, SIZES), by_hand(LOGITS, SIZES)
    torch.testing.assert_close(product.joint_logits, table)
    actions = product.enumerate_support()
    assert actions[:, 0].tolist() == [list(a) for a in itertools.product(range(3), range(1), range(2))]
    torch.testing.assert_close(product.log_prob(actions), table.T)
    torch.testing.assert_close(product.log_prob(actions[:, :1, :].expand(-1, 4, -1)), table.T)
    torch.testing.assert_close(product.entropy(), -(table.exp() * table).sum(-1))
    torch.testing.assert_close(product.factors.action(table.argmax(-1)), product.deterministic)
    torch.testing.assert_close(product.mean, (table.exp()[..., None] * actions.movedim(0, 1)).sum(1))
    wider = product.expand([2, 4])
    torch.testing.assert_close(wider.joint_logits, table.expand(2, 4, -1))
    joint = JointCategorical(table, SIZES)
    torch.testing.assert_close(joint.log_prob(actions), table.T)
    torch.testing.assert_close(joint.entropy(), product.entropy())
    torch.testing.assert_close(joint.deterministic, product.deterministic)


@pytest.mark.parametrize("kind", [FactoredCategorical, JointCategorical])
def test_draws_are_as_often_as_they_should_be(kind):
    """20,000 draws; z-scores of the six joint actions."""
    table = by_hand(LOGITS[0], SIZES)
    chosen = kind(LOGITS[0] if kind is FactoredCategorical else table, SIZES)
    torch.manual_seed(0)
    draws, count = chosen.sample((20_000,)), 20_000
    shares = chosen.factors.index(draws).bincount(minlength=6) / count
    z = (shares - table.exp()) / (table.exp() * (1 - table.exp()) / count).sqrt()
    assert z.abs().max() < 3.5


def test_what_is_forbidden_has_no_probability_and_no_gradient():
    logits = LOGITS.clone().requires_grad_()
    with torch.no_grad():
        logits[:, 1] = -torch.inf
    product = FactoredCategorical(logits, SIZES)
    (product.entropy().sum() + product.log_prob(product.deterministic).sum()).backward()
    assert logits.grad.isfinite().all()
    assert product.entropy().isfinite().all()
    assert not (product.sample((500,))[..., 0] == 1).any()
    assert (product.joint_logits == -torch.inf).sum(-1).tolist() == [2] * 4


def test_values_outside_are_refused():
    product = FactoredCategorical(LOGITS, SIZES, validate_args=True)
    with pytest.raises(ValueError, match="within the support"):
        product.log_prob(torch.tensor([0, 1, 0]))
    with pytest.raises(ValueError, match=r"logits must have 6 numbers.*\(3, 1, 2\).*got shape \(4, 5\)"):
        FactoredCategorical(LOGITS[:, :5], SIZES)
    with pytest.raises(ValueError, match=r"number for each of the 512 joint actions of \(2, 2.*at most 256"):
        JointCategorical(torch.zeros(512), (2,) * 9)
    with pytest.raises(ValueError, match="one number >= 1 for each factor"):
        Factors((2, 0))
    with pytest.raises(ValueError, match="have 512 joint actions, more than 256"):
        FactoredCategorical(torch.zeros(18), (2,) * 9).joint_logits  # noqa: B018
    with pytest.raises(ValueError, match="joint=True needs at most 256 joint actions"):
        FactoredCategoricalPolicy(gymnasium.spaces.Discrete(1), (2,) * 9, joint=True)
    assert math.prod((2,) * 8) == JOINT_ACTIONS


class OneChoice(rlai.MarkovDecisionProcess):
    """One state, one step, and two actions at once."""

    state_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.MultiDiscrete([3, 2])
    horizon, temperature = 1, 0.5
    table = torch.tensor([[0.0, 1.0], [1.0, 0.2], [0.3, 0.3]])

    def initial(self):
        return dist.Delta(torch.zeros(1), event_dim=1)

    def transition(self, state, action):
        return dist.Delta(state, event_dim=1)

    def reward(self, state, action, next_state):
        return self.table[action[..., 0], action[..., 1]]


def test_a_process_takes_several_actions_at_once():
    """Its program is enumerated by Pyro itself; the ELBO is that of the table of joint actions."""
    process = OneChoice()
    policy = rlai.guides.amortized_policy(process)
    assert isinstance(policy, FactoredCategoricalPolicy)
    with torch.no_grad():
        policy.network.layers[-1].bias.copy_(torch.tensor([0.3, -0.2, 0.0, 1.0, 0.5]))
    chosen = policy(torch.zeros(1), 0)
    table, log_policy = process.table.flatten() / 0.5, chosen.joint_logits.detach()
    elbo = (log_policy.exp() * (table - math.log(6) - log_policy)).sum().item()

    def model():
        return process(1)

    guide = config_enumerate(rlai.follow(model, policy), "parallel")
    assert -TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide) == pytest.approx(elbo, abs=1e-5)
    found = rlai.estimate_elbo(process, policy, 4000)
    assert abs(found.mean - elbo) < 4 * found.standard_error
    env = rlai.to_gymnasium(process)
    env.reset(seed=0)
    assert env.step(np.array([1, 0]))[1] == 1.0


@pytest.mark.parametrize("joint", [False, True])
def test_fit_finds_the_best_of_the_family(joint):
    """With joint logits the log evidence itself; a product of factors is held to what coordinate ascent finds."""
    process = OneChoice()
    policy = FactoredCategoricalPolicy(process.state_space, (3, 2), horizon=1, hidden_sizes=(8,), joint=joint)
    rlai.fit(process, policy, steps=120, num_trajectories=128, learning_rate=0.1, progress=False)
    table = process.table / 0.5
    chosen = policy(torch.zeros(1), 0)
    log_policy = chosen.joint_logits.detach().reshape(3, 2)
    elbo = (log_policy.exp() * (table - math.log(6) - log_policy)).sum().item()
    if joint:
        assert elbo == pytest.approx(table.exp().mean().log().item(), abs=0.02)
        return
    best = -math.inf
    for start in range(10):
        q = torch.rand(2, generator=torch.Generator().manual_seed(start)).softmax(-1)
        for _ in range(200):
            p = (table @ q).softmax(-1)
            q = (p @ table).softmax(-1)
        log = (p[:, None] * q).log()
        best = max(best, (log.exp() * (table - math.log(6) - log)).sum().item())
    assert elbo <= best + 1e-4
    assert elbo == pytest.approx(best, abs=0.03)


def test_an_unlike_prior_or_space_is_refused():
    class Other(OneChoice):
        def prior(self, state):
            return FactoredCategorical(torch.zeros(*state.shape[:-1], 5), (2, 3))

    with pytest.raises(ValueError, match=r"over factors of \(2, 3\) values, and action_space is MultiDiscrete"):
        Other().rollout(None, 2)

    class Shifted(OneChoice):
        action_space = gymnasium.spaces.MultiDiscrete([3, 2], start=[1, 0])

    with pytest.raises(ValueError, match=r"no uniform prior here.*of integers from 0"):
        Shifted().rollout(None, 2)
