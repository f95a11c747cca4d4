"""Learners: one update against plain PyTorch, seeds, reproducibility, checkpoints, and what they refuse."""

import copy
import math
import os
import signal
import threading
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from problems import random_mdp
from pyro.distributions import Independent, Normal, TransformedDistribution
from small_agents import F64, SMALL, Line, checkpoint, mpo, sac, same, sql, stirred
from torch import nn
from torch.distributions.transforms import TanhTransform

from rl_as_inference.agents import MPO, SoftActorCritic, SoftQLearning
from rl_as_inference.checkpoints import load_tensors, save_policy, save_tensors
from rl_as_inference.processes.environments import NonFiniteError

CHAIN = {"num_states": 4, "num_actions": 3, "horizon": None, "discount": 0.8}


# One update, by PyTorch's own modules, autograd and Adam.


def layers_of(weights, biases):
    """A rectified network of ``nn.Linear`` with these weights ``(in, out)``."""
    layers = []
    for weight, bias in zip(weights, biases, strict=True):
        linear = nn.Linear(*weight.shape).double()
        linear.weight.data, linear.bias.data = weight.T.clone(), bias.clone()
        layers += [nn.ReLU(), linear] if layers else [linear]
    return nn.Sequential(*layers)


class Reference:
    """Soft actor-critic as it is usually written: three optimisers, target networks, ``backward``."""

    def __init__(self, agent):
        tensors, self.agent = agent._update.tensors, agent
        parameters = agent._update.layout.unflatten(tensors["parameters"][0].clone())
        targets = agent._update.target_layout.unflatten(tensors["targets"][0].clone())["critics"]
        net = parameters["policy"]
        names = ["network.state_layer", *sorted({n.rsplit(".", 1)[0] for n in net if ".layers." in n})]
        self.policy = layers_of([net[f"{n}.weight"].T for n in names], [net[f"{n}.bias"] for n in names])
        self.critics = self._members(parameters["critics"])
        self.targets = self._members(targets)
        self.log_alpha = parameters["temperature"]["log_temperature"].clone().requires_grad_()
        rate = agent.learning_rate
        self.optimisers = [
            torch.optim.Adam(p, lr=rate)
            for p in (self.critics.parameters(), self.policy.parameters(), [self.log_alpha])
        ]

    @staticmethod
    def _members(tree):
        depth = sum(name.startswith("weights") for name in tree)
        return nn.ModuleList(
            layers_of(*([tree[f"{kind}.{layer}"][i] for layer in range(depth)] for kind in ("weights", "biases")))
            for i in range(len(tree["weights.0"]))
        )

    def batch(self):
        replay, size = self.agent.replay, self.agent.batch_size
        index = (torch.rand(size, dtype=F64) * len(replay)).floor().long()
        names = ("state", "action", "reward", "next_state", "terminated")
        return [getattr(replay, name)[index] for name in names]

    def step(self, critic_loss, actor_loss, entropy):
        alpha_loss = self.log_alpha.exp() * (entropy.detach().mean() - self.agent.target_entropy)
        for optimiser, loss in zip(self.optimisers, (critic_loss, actor_loss, alpha_loss), strict=True):
            optimiser.zero_grad()
            loss.backward(retain_graph=True)  # also into modules that are not this optimiser's
            if optimiser is self.optimisers[0]:
                critics = [p.grad.clone() for p in self.critics.parameters()]
        for parameter, gradient in zip(self.critics.parameters(), critics, strict=True):
            parameter.grad = gradient
        for optimiser in self.optimisers:
            optimiser.step()
        with torch.no_grad():
            for target, new in zip(self.targets.parameters(), self.critics.parameters(), strict=True):
                target.mul_(1 - self.agent.target_average).add_(self.agent.target_average * new)

    def assert_agrees(self, agent):
        torch.testing.assert_close(agent.modules[0]["temperature"].log_temperature, self.log_alpha, **CLOSE)
        own = agent.modules[0]["policy"]
        state = torch.randn(50, *agent.state_space.shape, dtype=F64)
        torch.testing.assert_close(own.network(state, 0), self.policy(state), **CLOSE)
        targets = agent._update.target_layout.unflatten(agent._update.tensors["targets"][0])["critics"]
        for tree, members in (
            (dict(agent.modules[0]["critics"].named_parameters()), self.critics),
            (targets, self.targets),
        ):
            for i, member in enumerate(members):
                linears = [layer for layer in member if isinstance(layer, nn.Linear)]
                for layer, linear in enumerate(linears):
                    torch.testing.assert_close(tree[f"weights.{layer}"][i], linear.weight.T, **CLOSE)
                    torch.testing.assert_close(tree[f"biases.{layer}"][i], linear.bias, **CLOSE)


CLOSE = {"rtol": 1e-9, "atol": 1e-9, "check_dtype": True}


class Continuous(Reference):
    def chosen(self, state):
        loc, log_scale = self.policy(state).chunk(2, -1)
        base = Normal(loc, log_scale.clamp(-20, 2).exp())
        return Independent(TransformedDistribution(base, [TanhTransform(cache_size=1)]), 1)

    def values(self, members, state, action):
        return torch.stack([member(torch.cat([state, action], -1)).squeeze(-1) for member in members])

    def update(self):
        state, action, reward, next_state, terminated = self.batch()
        alpha, log_prior = self.log_alpha.exp().detach(), -math.log(2)
        with torch.no_grad():
            chosen = self.chosen(next_state)
            next_action = chosen.rsample()
            value = self.values(self.targets, next_state, next_action).amin(0)
            value = value - alpha * (chosen.log_prob(next_action) - log_prior)
            target = reward + self.agent.discount * (1 - terminated.double()) * value
        critic_loss = sum(0.5 * nn.functional.mse_loss(q, target) for q in self.values(self.critics, state, action))
        chosen = self.chosen(state)
        new = chosen.rsample()
        log_policy = chosen.log_prob(new)
        actor_loss = (log_policy - log_prior - self.values(self.critics, state, new).amin(0) / alpha).mean()
        self.step(critic_loss, actor_loss, -log_policy)
        return {"critic_loss": critic_loss, "actor_loss": actor_loss, "entropy": -log_policy.mean()}

    def act(self, state):
        with torch.no_grad():
            return self.chosen(state).sample()


class Discrete(Reference):
    def values(self, members, state):
        return torch.stack([member(state) for member in members])

    def update(self):
        state, action, reward, next_state, terminated = self.batch()
        alpha, log_prior = self.log_alpha.exp().detach(), -math.log(2)
        with torch.no_grad():
            log_policy = self.policy(next_state).log_softmax(-1)
            q = self.values(self.targets, next_state).amin(0)
            value = (log_policy.exp() * (q - alpha * (log_policy - log_prior))).sum(-1)
            target = reward + self.agent.discount * (1 - terminated.double()) * value
        taken = self.values(self.critics, state)[:, torch.arange(len(action)), action]
        critic_loss = sum(0.5 * nn.functional.mse_loss(q, target) for q in taken)
        log_policy = self.policy(state).log_softmax(-1)
        q = self.values(self.critics, state).amin(0).detach()
        actor_loss = (log_policy.exp() * (log_policy - log_prior - q / alpha)).sum(-1).mean()
        entropy = -(log_policy.exp() * log_policy).sum(-1)
        self.step(critic_loss, actor_loss, entropy)
        return {"critic_loss": critic_loss, "actor_loss": actor_loss, "entropy": entropy.mean()}

    def act(self, state):
        """Gumbel's trick."""
        with torch.no_grad():
            logits = self.policy(state).log_softmax(-1)
            return (logits - (-torch.rand_like(logits).log()).log()).argmax(-1)


@pytest.mark.parametrize(("env", "kind"), [("Pendulum-v1", Continuous), ("CartPole-v1", Discrete)])
def test_an_update_is_that_of_plain_pytorch(env, kind):
    """Five updates in float64 with the same random numbers: every parameter and target, to 1e-9."""
    agent = stirred(
        sac(env, dtype=F64, hidden_sizes=(7, 5), num_envs=2, learning_starts=1000, learning_rate=0.01, discount=0.9)
    )
    agent.learn(120)
    assert agent.num_updates == 0
    if env == "CartPole-v1":
        assert agent.replay.terminated.any()
    reference, metrics = kind(agent), defaultdict(float)
    torch.manual_seed(5)
    for _ in range(5):
        for name, value in reference.update().items():
            metrics[name] += value.item()
        state = agent._observation[0]
        action = reference.act(state)
    torch.manual_seed(5)
    for _ in range(5):
        agent._update.step()
    reference.assert_agrees(agent)
    torch.testing.assert_close(agent._action[0], action, **CLOSE)
    sums = dict(zip(agent.metrics, agent._update.tensors["sums"][0].tolist(), strict=True))
    for name, value in metrics.items():
        assert sums[name] == pytest.approx(value, rel=1e-9), name


def test_adam_is_pytorchs_over_many_steps():
    """300 steps on given gradients of very different sizes, to 1e-12 of torch.optim.Adam."""
    agent = sql(dtype=F64, learning_rate=0.02)
    size = agent._update.layout.size
    generator = torch.Generator().manual_seed(1)
    scale = 10.0 ** torch.randint(-6, 4, (size,), generator=generator).double()
    parameter = nn.Parameter(agent._update.tensors["parameters"][0].clone())
    optimiser = torch.optim.Adam([parameter], lr=0.02)
    state = [agent._update.tensors[name][0].clone() for name in agent._update.tensors]
    noise = torch.randn(300, size, generator=generator, dtype=F64) * scale
    update = copy.copy(agent._update)
    for gradient in noise:
        update._gradient = lambda loss, tree, g=gradient: (update.layout.unflatten(g), (torch.zeros(3, dtype=F64), {}))
        *state, _ = update._stepped(True, *state, *update._read)
        padding = update.layout.flatten(update.layout.unflatten(gradient))
        parameter.grad = padding
        optimiser.step()
    torch.testing.assert_close(state[0], parameter.data, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_a_compiled_update_is_the_traced_one():
    """20 updates with the same random numbers, parameters to 1e-5."""
    made = []
    for compile in (False, True):
        agent = sac(hidden_sizes=(16, 16), batch_size=16, compile=compile)
        agent.learn(39)
        assert (agent.num_updates, agent._update.compiled) == (20, compile)
        made.append(agent)
    for name, tensor in made[0]._update.tensors.items():
        torch.testing.assert_close(made[1]._update.tensors[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
    torch.testing.assert_close(made[1].replay.action, made[0].replay.action, rtol=1e-5, atol=1e-5)


# Several seeds.


class Draws:
    """Random numbers of one seed, handed out in the order in which an update asks for them."""

    names = ("rand", "randn", "rand_like", "randn_like")

    def __init__(self, patch, numbers=None):
        self.calls, self.numbers = [], numbers
        for name in self.names:
            patch.setattr(torch, name, self._drawer(name, getattr(torch, name)))

    def _drawer(self, name, original):
        def draw(*args, **options):
            value = original(*args, **options)
            self.calls.append((name.removesuffix("_like"), tuple(value.shape), value.dtype))
            return value if self.numbers is None else self.numbers[len(self.calls) - 1]

        return draw


@pytest.mark.parametrize(
    ("make", "env"),
    [
        (sac, "Pendulum-v1"),
        (sac, "CartPole-v1"),
        (sql, "CartPole-v1"),
        (sql, "Pendulum-v1"),
        (mpo, "Pendulum-v1"),
        (mpo, "CartPole-v1"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_seeds_learn_together_as_they_would_alone(make, env):
    """Three updates of three seeds at once, and of three agents with the same numbers, in float64 to 1e-10."""
    together = stirred(make(env, seeds=3, num_envs=2, dtype=F64, learning_starts=1000))
    together.learn(30)
    alone = [make(env, num_envs=2, dtype=F64) for _ in range(3)]
    for seed, agent in enumerate(alone):
        for name, tensor in agent._update.tensors.items():
            tensor.copy_(together._update.tensors[name][seed : seed + 1])
        agent.replay.load_state_dict(
            {"rows": together.replay.storage[seed : seed + 1, :30], "position": together.replay.position}
        )
        agent._observation.copy_(together._observation[seed : seed + 1])
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        state = generator.get_state()
        torch.set_rng_state(state)
        together._update.step()
        with pytest.MonkeyPatch.context() as patch:
            calls = Draws(patch)
            alone[0]._update._write_step(True, *(t.clone() for t in alone[0]._update._written), *alone[0]._update._read)
        torch.set_rng_state(state)
        numbers = [getattr(torch, name)(3, *shape, dtype=dtype) for name, shape, dtype in calls.calls]
        generator.manual_seed(int(torch.randint(10**6, ())))
        for seed, agent in enumerate(alone):
            with pytest.MonkeyPatch.context() as patch:
                Draws(patch, [number[seed] for number in numbers])
                agent._update._write_step(True, *agent._update._written, *agent._update._read)
    for seed, agent in enumerate(alone):
        for name, tensor in agent._update.tensors.items():
            torch.testing.assert_close(tensor[0], together._update.tensors[name][seed], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(agent._action[0], together._action[seed], rtol=1e-10, atol=1e-10)


def test_seeds_do_not_touch_each_other():
    """Another second seed, and the first and the third are what they were, bit for bit."""
    agents = [sac(seeds=3, num_envs=2) for _ in range(2)]
    agents[1]._update.tensors["parameters"][1] += 0.1
    for agent in agents:
        agent.learn(60)
    for tensors in zip(*(agent._update.tensors.values() for agent in agents), strict=True):
        assert torch.equal(tensors[0][[0, 2]], tensors[1][[0, 2]])
    one, other = (agent._update.tensors["parameters"][1] for agent in agents)
    assert not torch.equal(one, other)
    assert torch.equal(agents[0].replay.state[[0, 2]], agents[1].replay.state[[0, 2]])


def test_seeds_have_parameters_and_experience_of_their_own():
    agent = sac("CartPole-v1", seeds=3, num_envs=2)
    before = agent._update.tensors["parameters"].clone()
    agent.learn(60)
    after = agent._update.tensors["parameters"]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        for tensor in (before, after, after - before):
            assert not torch.equal(tensor[one], tensor[other])
        assert not torch.equal(agent.replay.state[one], agent.replay.state[other])
        assert not torch.equal(agent.replay.action[one], agent.replay.action[other])
    assert (agent.replay.state.shape, agent.replay.action.shape) == ((3, 60, 4), (3, 60))
    assert (agent.num_steps, len(agent.replay), agent.envs.num_envs, agent.num_envs) == (60, 60, 6, 2)
    assert len(agent.policies) == len(agent.critics) == len(agent.temperatures) == 3
    assert agent.temperature == pytest.approx(sum(agent.temperatures) / 3)
    assert {row[1] for row in agent.episodes} == {0, 1, 2}
    state = torch.randn(4, generator=torch.Generator().manual_seed(0))
    assert len({tuple(policy(state, 0).probs.tolist()) for policy in agent.policies}) == 3
    evaluation = agent.evaluate(4)
    assert evaluation.returns.shape == evaluation.lengths.shape == (3, 4)
    torch.testing.assert_close(evaluation.returns, evaluation.lengths.double())


def test_modules_follow_the_learned_numbers():
    """The policies that users hold are those that learning moves, of every seed."""
    agent = sac(seeds=2)
    held = [(policy, policy(torch.ones(3), 0).base_dist.loc.clone()) for policy in agent.policies]
    agent.learn(40)
    for seed, (policy, before) in enumerate(held):
        assert policy is agent.policies[seed]
        assert not torch.equal(policy(torch.ones(3), 0).base_dist.loc, before)
        tree = agent._update.layout.unflatten(agent._update.tensors["parameters"][seed])["policy"]
        assert all(torch.equal(parameter, tree[name]) for name, parameter in policy.named_parameters())


# The loop.


@pytest.mark.parametrize(("num_envs", "updates_per_step"), [(1, 1), (3, 0.25), (2, 2)])
def test_updates_are_counted_per_environment_step(num_envs, updates_per_step):
    agent = sac(num_envs=num_envs, updates_per_step=updates_per_step)
    agent.learn(30)
    after = sum(num_envs for step in range(num_envs, 31, num_envs) if step >= 20)
    assert agent.num_steps == len(agent.replay) == 30
    assert agent.num_updates == int(after * updates_per_step)
    torch.testing.assert_close(agent._update.tensors["decays"][0], torch.tensor([0.9, 0.999]) ** agent.num_updates)


def test_every_stored_transition_is_one_that_happened():
    """Episodes of 7 steps, 2 environments, 60 steps: rows follow each other, and the true last state is kept."""
    agent = sac(lambda: Line(ends_at=7), num_envs=2)
    agent.learn(60)
    replay = agent.replay
    place, clock = replay.state.unbind(-1)
    after, later = replay.next_state.unbind(-1)
    torch.testing.assert_close(after, place + 0.1 * replay.action[:, 0])
    torch.testing.assert_close(later, clock + 0.1)
    torch.testing.assert_close(replay.reward, -after.abs())
    assert torch.equal(replay.terminated, (later * 10).round() == 7)
    assert not replay.truncated.any()
    for env in range(2):
        going = ~replay.terminated[env::2][:-1]
        assert torch.equal(replay.state[env::2][1:][going], replay.next_state[env::2][:-1][going])
        assert (replay.state[env::2][1:][~going][:, 1] == 0).all()
        starts = [0, *(i + 1 for i in replay.terminated[env::2].nonzero()[:, 0].tolist())]
        returns = [float(replay.reward[env::2][i : i + 7].sum()) for i in starts[:-1]]
        found = agent.episodes[env::2]
        assert [(row[0], row[1], row[3]) for row in found] == [(14 * (i + 1), 0, 7) for i in range(4)]
        assert [row[2] for row in found] == pytest.approx(returns, rel=1e-5)


def test_a_time_limit_is_a_truncation():
    agent = sac(lambda: gymnasium.wrappers.TimeLimit(Line(), 5))
    agent.learn(30)
    assert not agent.replay.terminated.any()
    assert agent.replay.truncated.nonzero()[:, 0].tolist() == [4, 9, 14, 19, 24, 29]
    assert [row[3] for row in agent.episodes] == [5] * 6


def test_actions_are_uniform_before_learning_and_the_policys_after():
    """400 actions of each kind, seed 0: |z| < 4 for mean and mean square of the uniform ones."""
    agent = sac(learning_starts=400, learning_rate=1e-12, buffer_size=800, updates_per_step=0.1)
    policy = agent.policy.network.layers[-1]
    with torch.no_grad():
        policy.weight.zero_()
        policy.bias.copy_(torch.tensor([0.7, -5.0]))
    agent.learn(800)
    first, second = agent.replay.action[:400, 0].double(), agent.replay.action[400:, 0].double()
    assert abs(float(first.mean())) / math.sqrt(1 / 3 / 400) < 4
    assert abs(float(first.square().mean()) - 1 / 3) / math.sqrt(4 / 45 / 400) < 4
    before = second.atanh()
    assert abs(float(before.mean()) - 0.7) / (math.exp(-5) / 20) < 4
    assert float(before.std()) == pytest.approx(math.exp(-5), rel=0.15)


def test_history_has_a_row_for_every_report():
    rows = []
    agent = sac("CartPole-v1")
    agent.learn(55, report_every=20, on_report=rows.append)
    assert rows == agent.history
    assert [row["step"] for row in rows] == [20, 40, 55]
    assert [row["episodes"] for row in rows] == [
        sum(low < step <= high for step, *_ in agent.episodes) for low, high in ((0, 20), (20, 40), (40, 55))
    ]
    ended = [value for step, _, value, _ in agent.episodes if 20 < step <= 40]
    assert rows[1]["return"] == pytest.approx(sum(ended) / len(ended)) if ended else math.isnan(rows[1]["return"])
    assert set(agent.metrics) <= rows[-1].keys()
    assert rows[-1]["temperature"] == pytest.approx(agent.temperature)


def test_metrics_are_means_over_the_updates_of_a_row():
    """Also after an interruption: what was summed before it belongs to no row."""
    agent, twin = sac(updates_per_step=2), sac(updates_per_step=2)

    def interrupt(row):
        if row["step"] == 30:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        agent.learn(60, report_every=10, on_report=interrupt)
    agent.learn(10)
    twin.learn(30)
    twin.learn(10)
    for name in agent.metrics:
        assert agent.history[-1][name] == twin.history[-1][name]
        assert abs(agent.history[-1][name]) < 1e3


# The same seed, the same result.


def test_the_same_seed_gives_the_same_bits(tmp_path):
    runs = []
    for seed, parts in ((3, [60]), (3, [30, 30]), (4, [60])):
        torch.manual_seed(len(runs))
        agent = sac(seed=seed, num_envs=2)
        for steps in parts:
            agent.learn(steps)
        runs.append(checkpoint(agent, tmp_path / "a"))
    assert same(runs[0], runs[1])
    assert not torch.equal(runs[0]["parameters"], runs[2]["parameters"])


def test_the_global_random_numbers_are_left_alone(tmp_path):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    for make, env in ((sql, lambda: gymnasium.wrappers.TimeLimit(Line(), 9)), (sac, random_mdp(0, terminal=True))):
        agent = make(env)
        agent.learn(30, report_every=15, on_report=lambda row, agent=agent: agent.evaluate(1))
        agent.act(agent.envs.state[0])
        agent.evaluate(1, deterministic=False)
        agent.save(tmp_path / "a")
        agent.restore(tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluating_and_acting_for_the_best_change_nothing(tmp_path):
    agent = sac("CartPole-v1", seeds=2)
    agent.learn(40)
    before = checkpoint(agent, tmp_path / "a")
    first = agent.evaluate(5, deterministic=False)
    agent.act(np.zeros(4), deterministic=True)
    assert same(checkpoint(agent, tmp_path / "a"), before)
    again, other = agent.evaluate(5, deterministic=False), agent.evaluate(5, deterministic=False, seed=1)
    assert torch.equal(first.returns, again.returns)
    assert not torch.equal(first.returns, other.returns)
    assert agent.act(np.zeros((7, 4))).shape == (7,)


def test_evaluation_plays_whole_episodes():
    agent = sac(lambda: gymnasium.wrappers.TimeLimit(Line(), 6))
    for count in (1, 10, 13):
        evaluation = agent.evaluate(count)
        assert evaluation.lengths.tolist() == [6] * count
        assert (evaluation.returns < 0).all()
        assert evaluation.mean == pytest.approx(float(evaluation.returns.sum()) / count)


def test_draws_are_those_of_the_policy():
    """3,000 draws of act() at one state, seed 0: the mean within 4 standard errors."""
    agent = stirred(sac("CartPole-v1"))
    state = torch.tensor([0.5, -0.5, 0.2, 0.1])
    p = agent.policy(state, 0).probs[1].item()
    draws = agent.act(state.expand(3000, 4))
    assert 0.05 < p < 0.95
    assert abs(draws.mean() - p) / math.sqrt(p * (1 - p) / 3000) < 4
    assert int(agent.act(state, deterministic=True)) == int(p > 0.5)


# Checkpoints.


@pytest.mark.parametrize(
    ("make", "env"),
    [
        (sac, "Pendulum-v1"),
        (sac, "CartPole-v1"),
        (sql, "CartPole-v1"),
        (sac, lambda: random_mdp(0, terminal=True)),
        (mpo, "Pendulum-v1"),
        (mpo, "CartPole-v1"),
    ],
    ids=["sac-pendulum", "sac-cartpole", "sql-cartpole", "sac-process", "mpo-pendulum", "mpo-cartpole"],
)
def test_a_run_that_was_saved_goes_on_bit_for_bit(make, env, tmp_path):
    """From checkpoints written while learning, into new agents: before the first update, and in mid episode."""
    env = env if isinstance(env, str) else env()
    options = {"num_envs": 2, "seeds": 2, "buffer_size": 40, "updates_per_step": 0.3}
    agent, saved = make(env, **options), []

    def save(row):
        saved.append(tmp_path / f"{len(saved)}")
        agent.save(saved[-1], row=row["step"])

    agent.learn(90, report_every=14, on_report=save)
    end, history = checkpoint(agent, tmp_path / "end"), agent.history
    other = make(env, **options)
    for path in (saved[0], saved[3]):
        notes = other.restore(path)
        assert notes["row"] == other.num_steps
        assert other.episodes == [row for row in agent.episodes if row[0] <= other.num_steps]
        other.learn(90 - other.num_steps)
        assert same(checkpoint(other, tmp_path / "other"), end)
        assert (other.num_steps, other.num_updates, other.episodes) == (90, agent.num_updates, agent.episodes)
        assert [row["step"] for row in other.history[:-1]] == [row["step"] for row in history][: len(other.history) - 1]


def test_an_agent_can_go_back(tmp_path):
    """Loading into the agent itself, after it went on, is as good as into a new one."""
    agent = sac("CartPole-v1", num_envs=2)
    agent.save(tmp_path / "start")
    agent.learn(50)
    agent.save(tmp_path / "a")
    ends = []
    for path in ("a", "a", "start"):
        agent.restore(tmp_path / path)
        agent.learn(100 - agent.num_steps)
        ends.append(checkpoint(agent, tmp_path / "end"))
    assert same(ends[0], ends[1])
    assert same(ends[0], ends[2])


def test_an_environment_that_does_not_repeat_itself_begins_new_episodes(tmp_path):
    class Noisy(Line):
        def step(self, action):
            self.place += np.random.default_rng().normal()
            return super().step(action)

    agent = sac(Noisy)
    agent.learn(30)
    agent.save(tmp_path / "a")
    other = sac(Noisy)
    other.restore(tmp_path / "a")
    assert other.num_steps == 30
    assert other.envs.state[0, 1] == 0
    other.learn(10)
    assert other.replay.state[30, 1] == 0
    assert torch.equal(other.replay.state[:30], agent.replay.state)


def test_what_a_checkpoint_says_of_compiling_counts_where_the_agent_does_not(tmp_path):
    for saved in (False, True):
        sac(compile=saved).save(tmp_path / "a")
        for own, expected in ((False, False), (True, True), ("auto", saved)):
            agent = sac(compile=own)
            agent.restore(tmp_path / "a")
            assert agent._compiles is expected


def other_agents(tmp_path):
    """Checkpoints that do not fit, and what is said of them."""
    small = {**SMALL, "compile": False}
    return {
        "agent": (lambda: SoftQLearning("CartPole-v1", **small), "another agent: it has SoftQLearning"),
        "env": (lambda: sac("Acrobot-v1"), "another environment: it has Acrobot-v1, and this agent CartPole-v1"),
        "width": (lambda: sac("CartPole-v1", hidden_sizes=(9,)), "another network layout; make the agent the same way"),
        "critics": (lambda: sac("CartPole-v1", num_critics=3), "another network layout"),
        "temperature": (lambda: sac("CartPole-v1", temperature=0.1), "another network layout"),
        "discount": (lambda: sac("CartPole-v1", discount=0.9), "another discount: it has 0.9, and this agent 0.99"),
        "objective": (lambda: sac("CartPole-v1", objective="one_step_entropy"), "another objective"),
        "seeds": (lambda: sac("CartPole-v1", seeds=2), "another number of seeds: it has 2, and this agent 1"),
        "envs": (lambda: sac("CartPole-v1", num_envs=2), "another number of environments: it has 2"),
        "dtype": (lambda: sac("CartPole-v1", dtype=F64), "another dtype: it has torch.float64"),
    }


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """An agent that has learned, and its checkpoint."""
    agent = sac("CartPole-v1")
    agent.learn(40)
    path = tmp_path_factory.mktemp("learned") / "agent"
    agent.save(path, note="kept")
    return agent, path


def test_a_parameter_that_learning_would_not_reach_is_refused():
    """A slice of a ParameterList keeps the parameters that the module was made with."""

    class Sliced(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = torch.nn.ParameterList([torch.zeros(2), torch.zeros(2)])

        def forward(self, state, t):
            logits = self.weights[1:][0] + self.weights[0]
            return torch.distributions.Categorical(logits=logits.expand(*state.shape[:-1], 2))

    agent = sac("CartPole-v1", policy=Sliced())
    with pytest.raises(ValueError, match="parameters are read past their module"):
        agent.learn(40)


def test_checkpoints_of_other_agents_are_refused_and_change_nothing(learned, tmp_path):
    agent, path = learned
    before = load_tensors(path)[0]
    for name, (make, message) in other_agents(tmp_path).items():
        make().save(tmp_path / name)
        with pytest.raises(ValueError, match=message):
            agent.restore(tmp_path / name)
        assert same(checkpoint(agent, tmp_path / "now"), before), name
    larger = sac("CartPole-v1", buffer_size=1000, learning_starts=10_000)
    larger.learn(600)
    larger.save(tmp_path / "larger")
    with pytest.raises(ValueError, match=r"replay: the checkpoint has rows .* buffer_size"):
        agent.restore(tmp_path / "larger")
    assert same(checkpoint(agent, tmp_path / "now"), before)


def test_damaged_and_foreign_files_are_refused_and_change_nothing(learned, tmp_path):
    agent, path = learned
    content = path.read_bytes()
    tensors, record = load_tensors(path)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("not a checkpoint")
    (tmp_path / "cut").write_bytes(content[: len(content) // 2])
    (tmp_path / "flipped").write_bytes(content[:200] + bytes([content[200] ^ 255]) + content[201:])
    save_policy(agent.policy, tmp_path / "policy")
    save_tensors(tmp_path / "foreign", {"weight": torch.zeros(3)}, {})
    save_tensors(tmp_path / "lacking", {n: t for n, t in tensors.items() if n != "targets"}, record)
    for name, message in {
        "nothing": "there is no file",
        "empty": "not a readable checkpoint",
        "text": "not a readable checkpoint",
        "cut": "not a readable checkpoint",
        "flipped": "not a readable checkpoint",
        "policy": r"holds tensors, but no agent written by save\(\)",
        "foreign": r"holds tensors, but no agent written by save\(\)",
        "lacking": "lacks targets",
    }.items():
        with pytest.raises(ValueError, match=message):
            agent.restore(tmp_path / name)
        assert same(checkpoint(agent, tmp_path / "now"), tensors), name
    assert agent.restore(path) == {"note": "kept"}


def test_a_checkpoint_that_cannot_be_written_is_an_error(learned, tmp_path):
    with pytest.raises(ValueError, match="path: cannot write to the folder"):
        learned[0].save(tmp_path / "no such folder" / "a")


# What may go wrong on the way.


@pytest.mark.parametrize("field", ["observation", "reward"])
def test_what_is_not_finite_stops_learning_before_it_is_stored(field, tmp_path):
    """In the second of two environments at its 17th step, the 34th of all: 32 rows, and a run that can go on."""
    fails = iter([None, 17, None, None])

    def make():
        return Line(fails_at=next(fails), field=field)

    agent = sac(make, num_envs=2)
    with pytest.raises(NonFiniteError, match=rf"Line gave a non-finite {field} at step 34 in environment 1 of 2"):
        agent.learn(60)
    assert (agent.num_steps, len(agent.replay)) == (32, 32)
    assert all(part.isfinite().all() for part in (agent.replay.state, agent.replay.next_state, agent.replay.reward))
    if field == "reward":  # the run goes on from where it stopped, once the environment is mended
        agent.save(tmp_path / "a")
        healthy = sac(make, num_envs=2)
        healthy.restore(tmp_path / "a")
        healthy.learn(28)
        fails = iter([None, None])
        twin = sac(make, num_envs=2)
        twin.learn(60)
        assert torch.equal(healthy._update.tensors["parameters"], twin._update.tensors["parameters"])


def test_a_learner_that_diverges_is_told_from_an_environment_that_fails():
    with pytest.raises(ValueError, match=r"learning diverged by step \d+: .* lower learning_rate") as caught:
        sac(learning_rate=1e25).learn(60)
    assert not isinstance(caught.value, NonFiniteError)
    with pytest.raises(ValueError, match=r"learning diverged by step 30: .*critic_loss.* is no longer finite"):
        sac("CartPole-v1", learning_rate=1e25).learn(60, report_every=30)


def test_ctrl_c_ends_learning_where_it_can_go_on_exactly(tmp_path):
    agent, twin = sac(num_envs=2, seeds=2), sac(num_envs=2, seeds=2)
    agent.learn(30)
    handler = signal.getsignal(signal.SIGINT)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        agent.learn(1_000_000)
    timer.join()
    assert signal.getsignal(signal.SIGINT) is handler
    reached = agent.num_steps
    assert 30 < reached < 100_000
    agent.save(tmp_path / "a")
    other = sac(num_envs=2, seeds=2)
    other.restore(tmp_path / "a")
    twin.learn(reached + 20)
    for each in (agent, other):
        each.learn(20)
        assert same(checkpoint(each, tmp_path / "one"), checkpoint(twin, tmp_path / "two"))


def test_ctrl_c_in_the_last_step_is_not_lost():
    agent = sac()
    agent.learn(20)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(5, on_report=lambda row: signal.raise_signal(signal.SIGINT))
    assert agent.num_steps == 25


def test_a_second_ctrl_c_inside_a_step_leaves_an_agent_that_is_not_whole(tmp_path):
    agent = sac()
    agent.learn(30)
    before = checkpoint(agent, tmp_path / "a")
    step = agent._update.step

    def interrupted(index):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    agent._update.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        agent.learn(10)
    agent._update.step = step
    for use in (lambda: agent.save(tmp_path / "b"), lambda: agent.learn(10)):
        with pytest.raises(ValueError, match=r"interrupted inside a step .* restore its last checkpoint"):
            use()
    agent.restore(tmp_path / "a")
    assert same(checkpoint(agent, tmp_path / "b"), before)


def test_learning_in_another_thread_works_without_signals():
    agent, caught = sac(), []

    def learn():
        try:
            agent.learn(25)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=learn)
    thread.start()
    thread.join()
    assert (caught, agent.num_steps) == ([], 25)


# Configuration and bad input.

WRONG = [
    ({"seed": -1}, "seed must be an integer >= 0, got -1"),
    ({"seed": 0.5}, r"seed must be an integer >= 0, got 0\.5"),
    ({"seeds": 0}, "seeds must be an integer >= 1, got 0"),
    ({"seeds": 2.0}, r"seeds must be an integer >= 1, got 2\.0"),
    ({"device": "gpu"}, "device must be 'cpu' or 'cuda', got 'gpu'"),
    ({"device": "meta"}, "device is 'meta', which this machine does not have"),
    ({"dtype": torch.int64}, r"dtype must be torch\.float32 or torch\.float64, got torch\.int64"),
    ({"dtype": torch.float16}, r"dtype must be torch\.float32 or torch\.float64"),
    ({"hidden_sizes": (0,)}, r"hidden_sizes must be >= 1, got \(0,\)"),
    ({"hidden_sizes": 64}, r"hidden_sizes must be a sequence of integers such as \(64, 64\), got 64"),
    ({"hidden_sizes": (8.5,)}, r"hidden_sizes must be a sequence of integers .* got \(8\.5,\)"),
    ({"num_critics": 0}, "num_critics must be an integer >= 1, got 0"),
    ({"num_critics": 1.5}, r"num_critics must be an integer >= 1, got 1\.5"),
    ({"temperature": 0.0}, r"temperature must be a finite number > 0 .* got 0\.0"),
    ({"temperature": -1}, "temperature must be a finite number > 0"),
    ({"temperature": math.nan}, "temperature must be a finite number > 0"),
    ({"temperature": "tuned"}, "temperature must be 'auto' or a number > 0, got 'tuned'"),
    ({"initial_temperature": 0.0}, r"initial_temperature must be a finite number > 0 .* got 0\.0"),
    ({"initial_temperature": math.inf}, "initial_temperature must be a finite number > 0"),
    ({"target_entropy": "low"}, "target_entropy must be a number of nats, or None for the default, got 'low'"),
    ({"target_entropy": math.nan}, "target_entropy is nan nats, which no policy"),
    ({"action_prior": "normal"}, "action_prior must be one of uniform, flat; got 'normal'"),
    ({"learning_starts": 0}, "learning_starts must be an integer >= 1, got 0"),
    ({"learning_starts": 10.0}, r"learning_starts must be an integer >= 1, got 10\.0"),
    ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
    ({"batch_size": True}, "batch_size must be an integer >= 1, got True"),
    ({"buffer_size": 0}, "buffer_size must be an integer >= 1, got 0"),
    ({"buffer_size": 1e6}, r"buffer_size must be an integer >= 1, got 1000000\.0"),
    ({"buffer_size": 10**13}, r"buffer_size 10000000000000 needs .* GiB .* lower buffer_size"),
    ({"learning_rate": 0.0}, r"learning_rate must be a finite number > 0, got 0\.0"),
    ({"learning_rate": math.nan}, "learning_rate must be a finite number > 0, got nan"),
    ({"learning_rate": "3e-4"}, "learning_rate must be a finite number > 0, got '3e-4'"),
    ({"discount": 1.1}, r"discount must be in \[0, 1\], got 1\.1"),
    ({"discount": -0.1}, r"discount must be in \[0, 1\]"),
    ({"discount": math.nan}, r"discount must be in \[0, 1\]"),
    ({"target_average": 0.0}, "target_average must be a finite number > 0"),
    ({"target_average": 1.5}, r"target_average must be in \(0, 1\], got 1\.5"),
    ({"updates_per_step": 0}, "updates_per_step must be a finite number > 0, got 0"),
    ({"updates_per_step": math.inf}, "updates_per_step must be a finite number > 0, got inf"),
    ({"num_envs": 0}, "num_envs must be an integer >= 1, got 0"),
    ({"n_step": 0}, "n_step must be an integer >= 1, got 0"),
    ({"compile": "yes"}, "compile must be True, False or 'auto', got 'yes'"),
    ({"env_kwargs": 3}, "env_kwargs must be a mapping of options for gymnasium.make, got 3"),
    ({"env_kwargs": {"nonsense": 1}}, r"env: gymnasium\.make\('CartPole-v1'\) failed"),
]


@pytest.mark.parametrize("kind", [SoftActorCritic, SoftQLearning])
@pytest.mark.parametrize(("options", "message"), WRONG, ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_arguments_out_of_range_are_named(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind("CartPole-v1", **options)


@pytest.mark.parametrize("kind", [SoftActorCritic, SoftQLearning])
@pytest.mark.parametrize(
    ("env", "target", "message"),
    [
        ("CartPole-v1", math.log(2), r"target_entropy is 0\.69\d* nats, which no policy .* log 2 = 0\.6931 nats"),
        ("CartPole-v1", 5.0, r"target_entropy is 5\.0 nats, which no policy on Discrete\(2\) can hold"),
        ("CartPole-v1", -0.1, r"target_entropy is -0\.1 nats, and the entropy of discrete actions is never below 0"),
        ("Pendulum-v1", math.log(2), r"target_entropy is 0\.69\d* nats, which no policy .* d log 2 = 0\.6931 nats"),
        ("Pendulum-v1", math.inf, "target_entropy is inf nats, which no policy"),
    ],
)
def test_target_entropies_that_no_policy_reaches_are_refused(kind, env, target, message):
    with pytest.raises(ValueError, match=message):
        kind(env, target_entropy=target)


def test_target_entropies_have_their_defaults_and_may_be_set():
    assert sac("CartPole-v1").target_entropy == pytest.approx(0.5 * math.log(2))
    assert sac("Acrobot-v1").target_entropy == pytest.approx(0.5 * math.log(3))
    assert sac("Pendulum-v1").target_entropy == -1
    assert sac("CartPole-v1", target_entropy=0).target_entropy == 0
    assert sac("Pendulum-v1", target_entropy=0.69).target_entropy == 0.69


class Spaces(gymnasium.Env):
    """An environment with these spaces, whose episodes never end."""

    def __init__(self, states, actions):
        self.observation_space, self.action_space = states, actions
        self.taken = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.taken.append(action)
        return self.observation_space.sample(), 1.0, False, False, {}


UNIT = gymnasium.spaces.Box(-1, 1, (2,), np.float32)


@pytest.mark.parametrize("kind", [MPO, SoftActorCritic, SoftQLearning])
@pytest.mark.parametrize(
    ("states", "actions", "message"),
    [
        (gymnasium.spaces.Text(3), UNIT, r"observation_space of Spaces is Text.*TransformObservation"),
        (UNIT, gymnasium.spaces.Box(-np.inf, np.inf, (2,)), r"action_space of Spaces is Box with unbounded sides"),
        (UNIT, gymnasium.spaces.Tuple([UNIT]), r"action_space of Spaces is Tuple"),
    ],
)
def test_spaces_without_a_learner_are_refused(kind, states, actions, message):
    with pytest.raises(ValueError, match=message):
        kind(lambda: Spaces(states, actions))


@pytest.mark.parametrize(
    ("make", "actions", "options", "shape"),
    [
        (sac, UNIT, {}, ()),
        (sac, gymnasium.spaces.Discrete(3), {}, (3, 4)),
        (sql, gymnasium.spaces.Discrete(3), {"double": True}, (3, 4)),
        (sql, UNIT, {}, ()),
        (sql, UNIT, {}, (3, 4)),
        (sac, UNIT, {"policy_components": 2}, ()),
        (sac, UNIT, {"policy_components": 2}, (3, 4)),
        (sac, gymnasium.spaces.Box(0, 3, (2, 2), np.float32), {"value_network": True}, (3, 4)),
        (mpo, gymnasium.spaces.Box(0, 3, (2, 2), np.float32), {}, (3, 4)),
        (mpo, gymnasium.spaces.Discrete(3), {}, ()),
    ],
)
def test_observations_of_any_shape(make, actions, options, shape):
    env = Spaces(gymnasium.spaces.Box(-1, 1, shape), actions)
    agent = make(env, hidden_sizes=(4,), batch_size=3, learning_starts=3, **options)
    agent.learn(5)
    observations = np.stack([env.observation_space.sample() for _ in range(6)])
    for observation, batch in ((observations[0], ()), (observations, (6,))):
        for deterministic in (True, False):
            assert agent.act(observation, deterministic).shape == (*batch, *(actions.shape or ()))
        assert agent.critic(torch.as_tensor(observation), 0).shape == batch
    if shape:
        with pytest.raises(ValueError, match=r"observation must have shape .* or be a batch of such, got"):
            agent.act(np.zeros((*shape[:-1], 7)))
    with pytest.raises(ValueError, match="observation has NaN or infinite entries"):
        agent.act(np.full(shape, np.nan))


@pytest.mark.parametrize("make", [sac, sql])
def test_observations_that_are_integers(make):
    agent = make("FrozenLake-v1", env_kwargs={"is_slippery": False}, n_step=3)
    agent.learn(40)
    assert agent.replay.state.dtype == torch.int64
    assert agent.replay.state.max() < 16
    assert agent.policy(torch.arange(16), 0).probs.shape == (16, 4)
    assert agent.critic(torch.arange(16), 0).shape == (16,)
    assert agent.act(np.arange(16)).shape == (16,)
    for wrong in (16, -1, 1.5):
        with pytest.raises(ValueError, match=r"observation must be in Discrete\(16\), or a batch of such, got"):
            agent.act(wrong)


def test_integers_may_start_anywhere():
    """Observations from 3 and actions from -1: the policy sees states from 0, and the environment its own actions."""
    env = Spaces(gymnasium.spaces.Discrete(5, start=3), gymnasium.spaces.Discrete(2, start=-1))
    agent = sac(env, hidden_sizes=())
    with torch.no_grad():
        agent.policy.network.state_layer.weight.copy_(torch.tensor([[50.0, 0], [0, 50], [50, 0], [0, 50], [50, 0]]))
    assert agent.act(np.arange(3, 8)).tolist() == [-1, 0, -1, 0, -1]
    assert [int(agent.act(i, deterministic=True)) for i in range(3, 8)] == [-1, 0, -1, 0, -1]
    agent.learn(10)
    assert agent.replay.state.min() >= 0
    assert agent.replay.state.max() < 5
    assert [a + 1 for a in env.taken] == agent.replay.action.tolist()
    for wrong in (2, 8, 3.0):
        with pytest.raises(ValueError, match=rf"must be in Discrete\(5, start=3\), or a batch of such, got {wrong}"):
            agent.act(wrong)


def vector(mode, count):
    return gymnasium.vector.SyncVectorEnv([lambda: Line(ends_at=4)] * count, autoreset_mode=mode)


@pytest.mark.parametrize("options", [{"n_step": 2}, {"seeds": 2}])
def test_vectors_that_skip_steps_have_no_segments_and_no_seeds(options):
    with pytest.raises(ValueError, match=r"resets in a step of its own, .* autoreset_mode=AutoresetMode.SAME_STEP"):
        sac(vector(AutoresetMode.NEXT_STEP, 4), **options)
    agent = sac(vector(AutoresetMode.SAME_STEP, 4), **options)
    agent.learn(24)
    seeds = options.get("seeds", 1)
    ends = agent.replay.terminated.reshape(seeds, -1, 4 // seeds)
    assert ends.any(-1).eq(ends.all(-1)).all()
    for row in ends[..., 0]:
        assert row.nonzero()[:, 0].tolist() == [step for step in range(len(row)) if step % 4 == 3]


def test_vectors_that_skip_steps_store_no_reset():
    agent = sac(vector(AutoresetMode.NEXT_STEP, 2))
    agent.learn(30)
    replay = agent.replay
    assert len(replay) == 24  # of 15 steps three were resets
    torch.testing.assert_close(replay.next_state[:, 1], replay.state[:, 1] + 0.1)
    assert [row[3] for row in agent.episodes] == [4] * 6


def test_environments_are_shared_out_or_refused():
    with pytest.raises(ValueError, match="env has 3 environments, which do not share out to 2 seeds"):
        sac(vector(AutoresetMode.SAME_STEP, 3), seeds=2)
    assert sac(vector(AutoresetMode.SAME_STEP, 6), seeds=2).num_envs == 3


def test_an_agent_in_a_given_environment_has_none_for_evaluation():
    with pytest.raises(ValueError, match="evaluate needs an environment of its own"):
        sac(Line()).evaluate()
    with pytest.raises(ValueError, match="num_episodes must be an integer >= 1, got 0"):
        sac().evaluate(0)


def test_episodes_that_never_end_are_not_evaluated():
    with pytest.raises(ValueError, match=r"evaluate plays whole episodes, .* never end: .*give it a horizon"):
        sac(random_mdp(0, **CHAIN)).evaluate()
    for ends in ({"terminal": True}, {"horizon": 5}):
        assert sac(random_mdp(0, **{**CHAIN, **ends})).evaluate(3).lengths.min() >= 1


@pytest.mark.parametrize("kind", [SoftActorCritic, SoftQLearning])
@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("NoSuch-v0", r"env: gymnasium\.make\('NoSuch-v0'\) failed"),
        (3, "env must be a Gymnasium id, an environment, a factory .* got int"),
        (lambda: 3, "env is a factory that returns int; it must return one gymnasium"),
    ],
)
def test_what_is_no_environment_is_refused(kind, env, message):
    with pytest.raises(ValueError, match=message):
        kind(env)


def test_arguments_of_learn_are_checked():
    agent = sac()
    for wrong in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="num_steps must be an integer >= 1, got"):
            agent.learn(wrong)
    with pytest.raises(ValueError, match="report_every must be an integer >= 1, got 0"):
        agent.learn(10, report_every=0)


def test_a_process_brings_its_discount_and_temperature():
    mdp = random_mdp(0, **CHAIN, temperature=0.3)
    for make in (sac, sql):
        agent = make(mdp, dtype=F64)
        assert (agent.discount, agent.temperature) == (0.8, pytest.approx(0.3, rel=1e-15))
        assert not agent.learns_temperature
        agent = make(mdp, discount=0.5, temperature="auto")
        assert (agent.discount, agent.learns_temperature, agent.temperature) == (0.5, True, 1.0)


def test_agents_learn_on_their_device(device, tmp_path):
    for make, env in ((sac, "Pendulum-v1"), (sql, "CartPole-v1")):
        agent = make(env, device=device, num_envs=2)
        agent.learn(40)
        assert {t.device.type for t in agent._update.tensors.values()} == {device.type}
        assert agent._update.tensors["parameters"].isfinite().all()
        agent.act(agent.envs.state)
        before = checkpoint(agent, tmp_path / "a")
        agent.restore(tmp_path / "a")
        assert same(checkpoint(agent, tmp_path / "b"), before)


class TestRunningStatistics:
    """Under NormalizeObservation a policy has learned in numbers that fresh statistics do not give."""

    @staticmethod
    def shifted() -> gymnasium.Env[Any, Any]:
        """Two steps from 100 or 102, which pay 1 for a push away from 101: only the mean tells which is which."""

        class Walk(gymnasium.Env[Any, Any]):
            observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
            action_space = gymnasium.spaces.Discrete(2)

            def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
                super().reset(seed=seed)
                self.time, self.side = 0, int(self.np_random.integers(2))
                return np.array([100.0 + 2 * self.side], np.float32), {}

            def step(self, action: Any) -> Any:
                self.time += 1
                reward = float(action == self.side)
                return np.array([100.0 + 2 * self.side], np.float32), reward, self.time == 2, False, {}

        return gymnasium.wrappers.NormalizeObservation(Walk())

    def test_evaluation_and_loading_carry_them(self, tmp_path: Path) -> None:
        make = partial(
            SoftQLearning, self.shifted, seed=0, hidden_sizes=(32,), batch_size=64, learning_starts=100,
            learning_rate=3e-3, temperature=0.02, discount=0.0, compile=False,
        )  # fmt: skip
        agent = make()
        agent.learn(1000, progress=False)
        assert agent.evaluate(40).mean == 2.0
        agent.save(tmp_path / "agent")
        other = make()
        other.restore(tmp_path / "agent")
        assert other.evaluate(40).mean == 2.0
        ours, theirs = agent.envs.statistics(), other.envs.statistics()
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
