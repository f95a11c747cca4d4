"""Learners under action masks: nothing forbidden is ever done, and targets, entropies and α are of what is allowed."""

import math
import warnings

import gymnasium
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from problems import TAXI
from small_agents import F64, batch_of, mpo, networks, sac, small_mdp, sql, stirred, targets
from torch import nn

from rl_as_inference import GymnasiumProcess, ModelBasedAgent, compare
from rl_as_inference.agents.expectation import expectation
from rl_as_inference.agents.perturbations import perturb
from rl_as_inference.factored import FactoredCategorical


class Forbids(gymnasium.Env):
    """Random masks, of which it fails at once if they are not kept; an action pays the sum of its numbers."""

    def __init__(self, space, *, key=False, joint=False, free=False):
        self.action_space, self.key, self.joint, self.free = space, key, joint, free
        self.sizes = (int(space.n),) if isinstance(space, Discrete) else tuple(getattr(space, "nvec", [2] * 9))
        length = math.prod(int(size) for size in self.sizes) if joint else int(sum(self.sizes))
        seen = Box(-1, 1, (2,))
        self.observation_space = Dict({"seen": seen, "action_mask": MultiBinary(length)}) if key else seen
        self.kept = 0

    def _answer(self):
        def some(size):
            mask = self.np_random.integers(0, 2, size).astype(np.int8)
            mask.reshape(-1)[self.np_random.integers(mask.size)] = 1
            return mask

        parts = [some(self.sizes)] if self.joint else [some(size) for size in self.sizes]
        self.mask = parts[0] if self.joint else np.concatenate(parts)
        seen = np.array([self.time / 10, 0.5], np.float32)
        if self.key:
            return {"seen": seen, "action_mask": self.mask.reshape(-1)}, {}
        return seen, {"action_mask": self.mask}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self._answer()

    def step(self, action):
        counted = np.atleast_1d(action) - getattr(self.action_space, "start", 0)
        starts = np.cumsum([0, *self.sizes[:-1]])
        allowed = self.mask[tuple(counted)] if self.joint else self.mask[starts + counted].all()
        assert self.action_space.contains(action)
        assert self.free or allowed, f"{action} is forbidden by {self.mask}"
        self.kept, self.time = self.kept + 1, self.time + 1
        return (seen := self._answer())[0], float(counted.sum()), False, self.time == 7, seen[1]


PAIR = MultiDiscrete([3, 2], start=[2, 0])


@pytest.mark.parametrize(
    ("make", "space", "options"),
    [
        (sac, Discrete(5, start=-2), {}),
        (sac, Discrete(5), {"key": True, "seeds": 2}),
        (sac, Discrete(5), {"history": 3, "n_step": 2}),
        (sac, Discrete(5), {"memory": "gru", "burn_in": 2, "sequence_length": 4}),  # as sb3-contrib#101 asks
        (sac, Discrete(5), {"action_prior": "flat", "value_network": True}),
        (sac, PAIR, {"key": True}),
        (sac, PAIR, {"joint": True}),
        (sac, MultiBinary(9), {}),
        (sac, Discrete(5), {"actor_gradient": "score"}),  # draws already while it is traced, before the first state
        (sql, Discrete(5), {"action_prior": "flat"}),
        (sql, PAIR, {"joint": True, "key": True, "double": True}),
        (mpo, PAIR, {}),
    ],
)
def test_nothing_forbidden_is_ever_done(make, space, options):
    """20 steps by the action prior and 30 that are learned from, and whole episodes; the environment keeps watch."""
    where = {name: options.pop(name) for name in ("key", "joint") if name in options}
    made = []

    def env():
        made.append(Forbids(space, **where))
        return made[-1]

    agent = make(env, **options)
    agent.learn(50)
    agent.evaluate(2)
    agent.evaluate(2, deterministic=False)
    assert sum(each.kept for each in made) == 50 * options.get("seeds", 1) + 28 * options.get("seeds", 1)
    assert agent._update.tensors["parameters"].isfinite().all()
    assert all(0 < temperature < 10 for temperature in agent.temperatures)
    assert agent.history[-1]["entropy"] > 0


def masked(space=None, *, mask=None, **options):
    """An agent with random networks, and three states: with everything, some, and one action allowed."""
    space = Discrete(4) if space is None else space
    agent = stirred(sac(lambda: Forbids(space), **{"dtype": F64, "temperature": 0.5, **options}))
    masks = [[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 1, 0]] if mask is None else mask
    rows = agent.envs.agent_state(np.full((len(masks), 2), 0.3, np.float32), np.array(masks))
    return agent, torch.as_tensor(rows, dtype=F64)


def test_targets_and_entropies_are_of_what_is_allowed():
    """By hand: the policy's softmax over allowed logits, and the soft value against the prior that is uniform there."""
    agent, state = masked()
    own = networks(agent)
    chosen = own("policy", state, 0)
    logits = agent.policy.network(state, 0)
    q = targets(agent)("critics", state, None, 0).amin(0)
    batch = batch_of(agent, [[1.0, 2.0, 3.0]])._replace(next_states=state[None])
    found = agent.algorithm.target(own.frozen(), targets(agent), batch)
    entropies = []
    for row, allowed in enumerate([[0, 1, 2, 3], [0, 2], [2]]):
        policy = logits[row, allowed].softmax(-1)
        torch.testing.assert_close(chosen.probs[row, allowed], policy)
        value = (policy * (q[row, allowed] - 0.5 * (policy.log() + math.log(len(allowed))))).sum()
        torch.testing.assert_close(found[row], row + 1 + 0.99 * value)
        entropies.append(-(policy * policy.log()).sum())
    pi = expectation(agent.task, chosen, state, 0, "exact_sum")
    torch.testing.assert_close(pi.entropy, torch.stack(entropies))
    less = agent.algorithm.shortfall(chosen) if agent.task.target_entropy else None
    assert less is None  # α is fixed here


def test_each_state_is_asked_for_half_of_what_it_allows():
    agent, state = masked(temperature="auto")
    asked = agent.target_entropy + agent.algorithm.shortfall(agent.policy(state, 0))
    torch.testing.assert_close(asked, 0.5 * torch.tensor([4.0, 2, 1], dtype=F64).log())
    for space, mask, allowed in (
        (PAIR, [[1, 1, 1, 1, 1], [1, 0, 1, 0, 1]], (6, 2)),
        (PAIR, [[1, 1, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0]], (5, 1)),  # of the joint actions
        (MultiBinary(9), [[1] * 18, [1, 0] * 8 + [1, 1]], (512, 2)),
    ):
        joint = len(mask[0]) == 6
        env = lambda space=space, joint=joint: Forbids(space, joint=joint)  # noqa: E731
        agent = stirred(sac(env, dtype=F64, temperature="auto"))
        state = torch.as_tensor(agent.envs.agent_state(np.zeros((2, 2), np.float32), np.array(mask)), dtype=F64)
        asked = agent.target_entropy + agent.algorithm.shortfall(agent.policy(state, 0))
        torch.testing.assert_close(asked, 0.5 * torch.tensor(allowed, dtype=F64).log())
        torch.testing.assert_close(agent.task.log_counts(state), torch.tensor(allowed, dtype=F64).log())


def test_sums_by_factor_under_a_mask_are_unbiased():
    """40 means of 50 draws, z-scores, against the sum over the joint actions that are allowed."""
    agent, state = masked(PAIR, mask=[[1, 0, 1, 1, 1]])
    values = []
    for how, count in (("factors", 2000), ("exact_sum", 1)):
        torch.manual_seed(0)
        states = state.expand(count, -1)
        pi = expectation(agent.task, agent.policy(states, 0), states, 0, how)
        values.append((pi.mean(agent.algorithm.least(networks(agent), pi)), pi.mean(pi.relative), pi.entropy))
    (drawn, gain, entropy), (wanted, exact_gain, exact_entropy) = values
    assert abs(drawn.mean() - wanted) < 4 * drawn.std() / math.sqrt(2000)
    torch.testing.assert_close(gain, exact_gain.expand(2000))
    torch.testing.assert_close(entropy, exact_entropy.expand(2000))


def test_acting_asks_for_the_mask():
    agent, _ = masked()
    seen = np.zeros(2, np.float32)
    assert all(agent.act(seen, action_mask=[0, 1, 0, 1]) in (1, 3) for _ in range(20))
    assert agent.act(np.zeros((2, 2)), True, action_mask=np.eye(4)[:2]).tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"action_mask is needed beside an observation of Forbids; pass info"):
        agent.act(seen)
    with pytest.raises(ValueError, match=r"action_mask forbids every action, \[0, 0, 0, 0\]"):
        agent.act(seen, action_mask=np.zeros(4))
    with pytest.raises(ValueError, match=r"action_mask has shape \(3,\), and Discrete\(4\) has 4 actions"):
        agent.act(seen, action_mask=np.ones(3))
    with pytest.raises(ValueError, match="gives no masks that are kept to; leave it out"):
        sac("CartPole-v1").act(np.zeros(4), action_mask=[1, 0])
    keyed = sac(lambda: Forbids(Discrete(4), key=True))
    assert int(keyed.act({"seen": seen, "action_mask": np.eye(4)[2]})) == 2
    assert int(keyed.act({"seen": seen, "action_mask": np.eye(4)[2]}, action_mask=np.eye(4)[3])) == 3


def test_masks_can_be_left_aside():
    """The environment then is as any other; a part of the observation stays one that nobody keeps to."""
    agent = sac(lambda: Forbids(Discrete(5), free=True), action_masks=False)
    agent.learn(30)
    assert type(agent.state_space) is Box
    assert agent.task.masks is None
    keyed = sac(lambda: Forbids(Discrete(5), key=True, free=True), action_masks=False)
    keyed.learn(30)
    assert not keyed.task.has_prior


class Plain(nn.Module):
    """A policy that knows of no mask."""

    def __init__(self, size, make):
        super().__init__()
        self.logits, self.make = nn.Parameter(torch.randn(size)), make

    def forward(self, state, t):
        return self.make(self.logits.expand(*state.shape[:-1], -1))


@pytest.mark.parametrize(
    ("space", "size", "make"),
    [
        (Discrete(5), 5, lambda logits: dist.Categorical(logits=logits)),
        (PAIR, 5, lambda logits: FactoredCategorical(logits, (3, 2))),
        (MultiBinary(9), 18, lambda logits: FactoredCategorical(logits, (2,) * 9)),
    ],
)
def test_a_policy_of_ones_own_is_held_to_masks(space, size, make):
    agent = sac(lambda: Forbids(space), policy=Plain(size, make))
    agent.learn(40)
    agent.evaluate(1, deterministic=False)


def test_an_action_prior_with_zeros_forbids_also_where_it_is_flat():
    """20,000 draws in the state in which the small process forbids an action."""
    for make in (sac, sql):
        agent = stirred(make(small_mdp(), action_prior="flat"))
        assert agent.policy(torch.tensor(1), 0).sample((20_000,)).max() < 2


def test_a_target_that_masks_put_out_of_reach_is_told():
    agent = sac(lambda: Forbids(Discrete(5)), target_entropy=1.6, temperature="auto")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        agent.learn(40)
    (told,) = [str(each.message) for each in said if "target_entropy" in str(each.message)]
    assert "target_entropy is 1.6 nats, and in the states visited the action prior allows" in told


def test_taxi_gives_masks_and_a_saved_agent_keeps_to_them(tmp_path):
    """Gymnasium's own environment with masks; the agent is made anew from its file."""
    agent = sql(TAXI, num_envs=4)
    agent.learn(48)
    row = agent.replay.state[0]
    assert agent.envs.mask_size == 6
    mask = row[agent.envs.masks.columns].numpy()
    assert 0 < mask.sum() < 6
    agent.save(tmp_path / "agent")
    again = type(agent).load(tmp_path / "agent")
    for each in (agent, again):
        each.learn(12)
    assert torch.equal(agent.replay.action, again.replay.action)
    assert torch.equal(agent._update.tensors["parameters"], again._update.tensors["parameters"])
    actions = [int(again.act(3, action_mask=np.array([0, 0, 1, 0, 0, 1], np.int8))) for _ in range(20)]
    assert set(actions) <= {2, 5}


def test_a_model_of_the_world_knows_no_masks():
    with pytest.raises(ValueError, match="gives action masks, of which a model of the world knows nothing"):
        ModelBasedAgent(lambda: Forbids(Discrete(3)))


def test_what_was_learned_under_masks_is_compared_with_its_simulator():
    """Rollouts keep to the masks, of the prior and of the policy; both hold the masks' prior in their logs."""
    agent = sql(TAXI, num_envs=2, temperature=0.5)
    agent.learn(40)
    process = GymnasiumProcess(TAXI, num_envs=4, horizon=8, action_masks=True)
    for policy in (None, agent.policy):
        drawn = process.rollout(policy, 8)
        allowed = drawn.states[:-1][..., agent.envs.masks.columns]
        assert allowed.gather(-1, drawn.actions[..., None]).min() == 1
        torch.testing.assert_close(drawn.log_prior, -allowed.sum(-1).log())
    found = compare(process, agent.policy, critic=agent.critic, num_trajectories=8)
    assert math.isfinite(found.elbo)
    assert found.temperature == 0.5


def test_random_actions_of_a_perturbation_keep_to_masks():
    """Half of the actions are random ones, of whole episodes in environments that keep watch."""
    for space in (Discrete(5, start=-2), PAIR):
        agent = sac(lambda space=space: Forbids(space))
        agent.learn(5)
        for name in ("action", "reward"):
            assert perturb(agent, name, [0.5], num_episodes=4, progress=False).returns.isfinite().all()
