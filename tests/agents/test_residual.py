"""Residual soft actor-critic: its update against plain PyTorch, unit weights, reward scale, seeds, checkpoints."""

import math
import os
from itertools import pairwise

import gymnasium
import numpy as np
import pytest
import torch
from pyro.distributions import Independent, Normal, TransformedDistribution
from small_agents import F64, Line, checkpoint, sac, same
from torch import nn
from torch.distributions.transforms import TanhTransform
from torch.nn import functional as F

from rl_as_inference.agents import distributional as room
from rl_as_inference.agents.held_noise import HeldNoise
from rl_as_inference.agents.return_scale import ReturnScale
from rl_as_inference.critics import QEnsemble
from rl_as_inference.residual_network import ResidualNetwork, on_spheres

SMALL = {
    "architecture": "residual",
    "hidden_sizes": (4, 4),
    "critic_hidden_sizes": (5,),
    "num_atoms": 7,
    "value_bound": 2.0,
    "initial_temperature": 0.1,
    "target_average": 0.1,
    "noise_repeats": 1,
}
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def residual(env="Pendulum-v1", **options):
    return sac(env, **{**SMALL, "learning_starts": 20, "batch_size": 6, **options})


# One update, by PyTorch's own batch normalisation, autograd and Adam, one network after the other.


class Reference:
    """FlashSAC's update as its paper says it, but for gradients that are all taken at the parameters before."""

    def __init__(self, agent):
        update, self.agent, self.log_prior = agent._update, agent, -math.log(2)
        tensors = update.tensors
        self.now = {
            module: {name: value.clone().requires_grad_() for name, value in tree.items()}
            for module, tree in update.layout.unflatten(tensors["parameters"][0]).items()
        }
        targets = update.target_layout.unflatten(tensors["targets"][0])["critics"]
        self.targets = {name: value.clone() for name, value in targets.items()}
        running = update.statistics_layout.unflatten(tensors["statistics"][0])
        self.running = {module: {n: v.clone() for n, v in tree.items()} for module, tree in running.items()}
        late = [*self.now["policy"].values(), *self.now["temperature"].values()]
        self.critic_adam = torch.optim.Adam(self.now["critics"].values(), lr=agent.learning_rate)
        self.late_adam = torch.optim.Adam(late, lr=agent.learning_rate)
        self.atoms = torch.linspace(-2.0, 2.0, 7, dtype=F64)
        self.scale = self._scale()
        self.discrete = agent.is_discrete

    def _scale(self):
        """Of the returns seen so far, from what replay holds of one environment."""
        returns, now = [], 0.0
        for reward, over in zip(self.agent.replay.reward.tolist(), self.agent.replay.terminated.tolist(), strict=True):
            now = self.agent.discount * now + reward
            returns.append(now)
            now = 0.0 if over else now
        return max(np.sqrt(np.var(returns) + 1e-8), np.abs(returns).max() / 2.0)

    def net(self, parameters, prefix, rows, blocks, running, member=None, learned=None):
        """One network; normalised by its rows where ``learned`` is what its statistics become."""

        def own(name):
            value = parameters[f"{prefix}{name}"]
            return (
                value
                if member is None
                else value[member].squeeze(0)
                if name.split(".")[-1] != "weight"
                else value[member]
            )

        def norm(rows, name):
            scale, shift = own(f"{name}.scale"), own(f"{name}.shift")
            held = [running[f"{prefix}{name}.{each}"] for each in ("mean", "variance")]
            held = held if member is None else [each[member, 0] for each in held]
            if learned is None:
                return F.batch_norm(rows, *held, scale, shift, training=False, eps=1e-5)
            moved = rows.mean(0), rows.var(0, correction=0)
            for each, old, new in zip(("mean", "variance"), held, moved, strict=True):
                learned[f"{prefix}{name}.{each}", member] = (0.99 * old + 0.01 * new).detach()
            return F.batch_norm(rows, None, None, scale, shift, training=True, eps=1e-5)

        rows = norm(rows, "inputs") @ own("first.weight")
        for block in range(blocks):
            at = f"blocks.{block}"
            wide = norm(rows @ own(f"{at}.expand.weight"), f"{at}.expanded").relu()
            rows = rows + norm(wide @ own(f"{at}.contract.weight"), f"{at}.contracted").relu()
        rows = rows / (rows.square().mean(-1, keepdim=True) + 1e-6).sqrt() * own("features.scale")
        return rows @ own("head.weight") + own("head.bias")

    def critics(self, parameters, rows, running, learned=None):
        """Log probabilities of the atoms, ``(2, B, [A,] K)``."""
        logits = [self.net(parameters, "residual.", rows, 1, running, i, learned) for i in range(2)]
        logits = torch.stack(logits)
        return (logits.unflatten(-1, (-1, 7)) if self.discrete else logits).log_softmax(-1)

    def chosen(self, state, learned=None):
        outputs = self.net(self.now["policy"], "network.residual.", state, 2, self.running["policy"], None, learned)
        if self.discrete:
            return torch.distributions.Categorical(logits=outputs)
        loc, log_scale = outputs.chunk(2, -1)
        base = Normal(loc, log_scale.clamp(-20, 2).exp())
        return Independent(TransformedDistribution(base, [TanhTransform(cache_size=1)]), 1)

    def batch(self):
        replay, size = self.agent.replay, self.agent.batch_size
        index = (torch.rand(size, dtype=F64) * len(replay)).floor().long()
        return [getattr(replay, name)[index] for name in ("state", "action", "reward", "next_state", "terminated")]

    def projected(self, reward, ended, chances, cost):
        """Bellemare et al.'s algorithm 1 on rewards and entropies over the scale, ``(B, K)``."""
        target = torch.zeros(len(reward), 7, dtype=F64)
        for row in range(len(reward)):
            for points, prices in zip(chances[row], cost[row], strict=True):
                for chance, atom in zip(points, self.atoms, strict=True):
                    follows = atom - prices / self.scale
                    y = reward[row] / self.scale + self.agent.discount * (0 if ended[row] else 1) * follows
                    place = float((y.clamp(-2.0, 2.0) + 2.0) / (4 / 6))
                    below = min(int(place), 5)
                    target[row, below] += chance * (below + 1 - place)
                    target[row, below + 1] += chance * (place - below)
        return target

    def update(self, whole):
        state, action, reward, next_state, ended = self.batch()
        alpha, size = self.scale * self.now["temperature"]["log_temperature"].exp().detach(), len(reward)
        learned, aside = {"critics": {}, "policy": {}}, {}
        with torch.no_grad():
            following = self.chosen(next_state)
            if self.discrete:
                rows, joint = torch.cat([state, next_state]), None
                log_policy = following.logits
                weight = log_policy.exp()
            else:
                joint = following.sample()
                rows = torch.cat([torch.cat([state, action], -1), torch.cat([next_state, joint], -1)])
                log_policy, weight = following.log_prob(joint)[:, None], torch.ones(size, 1, dtype=F64)
            after = self.critics(self.targets, rows, self.running["critics"], aside)[:, size:].exp()
            after = after if self.discrete else after[:, :, None]
            which = (after * self.atoms).sum(-1).argmin(0)
            least = torch.stack(
                [torch.stack([after[which[b, a], b, a] for a in range(after.shape[2])]) for b in range(size)]
            )
            cost = alpha * (log_policy - self.log_prior)
            target = self.projected(reward, ended, weight[..., None] * least, cost)
        present = self.critics(self.now["critics"], rows, self.running["critics"], learned["critics"])[:, :size]
        present = present[:, torch.arange(size), action] if self.discrete else present
        critic_loss = -(target * present).sum(-1).mean(1).sum()
        metrics = {"critic_loss": critic_loss, "q": self.scale * (present.exp() * self.atoms).sum(-1).mean()}
        gradients = torch.autograd.grad(critic_loss, list(self.now["critics"].values()))
        if whole:
            chosen = self.chosen(state, learned["policy"])
            if self.discrete:
                q = self.scale * (
                    self.critics(self.now["critics"], state, self.running["critics"]).exp() * self.atoms
                ).sum(-1)
                policy = chosen.probs
                worth = (policy * (chosen.logits - self.log_prior - q.amin(0) / alpha)).sum(-1)
                entropy = -(policy * chosen.logits).sum(-1)
            else:
                new = chosen.rsample()
                asked = torch.cat([state, new], -1)
                q = self.scale * (
                    self.critics(self.now["critics"], asked, self.running["critics"]).exp() * self.atoms
                ).sum(-1)
                entropy = -chosen.log_prob(new)
                worth = -entropy - self.log_prior - q.amin(0) / alpha
            log_alpha = self.now["temperature"]["log_temperature"]
            missing = entropy.detach().mean() - self.agent.target_entropy
            loss = worth.mean() + log_alpha.exp() * missing
            late = [*self.now["policy"].values(), log_alpha]
            for parameter, gradient in zip(late, torch.autograd.grad(loss, late), strict=True):
                parameter.grad = gradient
            self.late_adam.step()
            self.restored("policy")
            metrics |= {"actor_loss": worth.mean(), "entropy": entropy.mean()}
        for parameter, gradient in zip(self.now["critics"].values(), gradients, strict=True):
            parameter.grad = gradient
        self.critic_adam.step()
        self.restored("critics")
        for module, moved in learned.items():
            for (name, member), value in moved.items():
                (self.running[module][name] if member is None else self.running[module][name][member, 0]).copy_(value)
        with torch.no_grad():
            for name, target in self.targets.items():
                target.lerp_(self.now["critics"][name], 0.1)
        return {name: value.item() for name, value in metrics.items()}

    @torch.no_grad()
    def restored(self, module):
        """Unit vectors of weights; scales, or scales and shifts together, as long as the root of their number."""
        tree = self.now[module]
        for name, value in tree.items():
            if name.endswith("weight"):
                value.copy_(F.normalize(value, dim=-2))
            elif name.endswith("scale"):
                shift = tree.get(name.replace("scale", "shift"), torch.zeros_like(value))
                length = (value.square() + shift.square()).sum(-1, keepdim=True).sqrt() / math.sqrt(value.shape[-1])
                value.div_(length)
                shift.div_(length)

    def act(self, state):
        with torch.no_grad():
            chosen = self.chosen(state)
            if not self.discrete:
                return chosen.sample()
            return (chosen.logits - (-torch.rand_like(chosen.logits).log()).log()).argmax(-1)


@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
def test_an_update_is_that_of_plain_pytorch(env):
    """Four updates, two of them of the critics alone, in float64 with the same random numbers, to 1e-9."""
    agent = residual(env, dtype=F64, learning_starts=1000, learning_rate=0.01, discount=0.9)
    agent.learn(90)
    update = agent._update
    assert agent.num_updates == 0
    assert env == "Pendulum-v1" or agent.replay.terminated.any()
    reference = Reference(agent)
    assert float(agent.modules[0]["critics"].reward_scale.value) == pytest.approx(reference.scale, rel=1e-12)
    assert agent.temperature == pytest.approx(0.1 * reference.scale, rel=1e-12)
    totals = dict.fromkeys(agent.metrics, 0.0)
    torch.manual_seed(5)
    for index in range(4):
        for name, value in reference.update(index % 2 == 0).items():
            totals[name] += value
        action = reference.act(agent._observation[0])
    torch.manual_seed(5)
    for index in range(4):
        update.step(index)
    for module, tree in update.layout.unflatten(update.tensors["parameters"][0]).items():
        for name, value in tree.items():
            torch.testing.assert_close(value, reference.now[module][name].detach(), **CLOSE, msg=f"{module}.{name}")
    for name, value in update.target_layout.unflatten(update.tensors["targets"][0])["critics"].items():
        torch.testing.assert_close(value, reference.targets[name], **CLOSE, msg=name)
    for module, tree in update.statistics_layout.unflatten(update.tensors["statistics"][0]).items():
        for name, value in tree.items():
            if not name.endswith("batches"):
                torch.testing.assert_close(value, reference.running[module][name], **CLOSE, msg=name)
    torch.testing.assert_close(agent._action[0], action, **CLOSE)
    means = update.means(4)[0]
    for name, total in totals.items():
        count = 4 if name in ("critic_loss", "q") else 2
        assert means[name] == pytest.approx(total / count, rel=1e-9), name


# Weights.


def lengths(agent, seed=0):
    """The lengths of everything that belongs on a sphere, over what they should be."""
    found = []
    for name in ("policy", "critics"):
        tree = {n: p.detach() for n, p in agent.modules[seed][name].named_parameters()}
        for key, value in tree.items():
            if key.endswith("weight"):
                found.append(value.norm(dim=-2).reshape(-1))
            elif key.endswith("scale"):
                shift = tree.get(key.replace("scale", "shift"), torch.zeros_like(value))
                long = (value.square() + shift.square()).sum(-1).sqrt() / math.sqrt(value.shape[-1])
                found.append(long.reshape(-1))
    return torch.cat(found)


@pytest.mark.parametrize(("env", "seeds"), [("CartPole-v1", 2)])
def test_weights_are_and_stay_unit_vectors(env, seeds):
    agent = residual(env, seeds=seeds, dtype=F64, learning_rate=0.1)
    starts = [lengths(agent, index) for index in range(seeds or 1)]
    before = agent._update.tensors["parameters"].clone()
    agent.learn(25)
    assert (agent._update.tensors["parameters"] - before).abs().max() > 0.1
    for index, start in enumerate(starts):
        assert len(start) > 100
        torch.testing.assert_close(start, torch.ones_like(start), rtol=0, atol=1e-6)
        torch.testing.assert_close(lengths(agent, index), torch.ones_like(start), rtol=0, atol=1e-8)


def test_a_module_without_residual_networks_is_left_as_it_is():
    module = nn.Sequential(nn.Linear(3, 2), ResidualNetwork(2, 1, (4,)))
    parameters = {name: 3 * value.detach() for name, value in module.named_parameters()}
    found = on_spheres(module, parameters)
    assert torch.equal(found["0.weight"], parameters["0.weight"])
    torch.testing.assert_close(found["1.head.weight"], module[1].head.weight.detach())
    assert torch.equal(found["1.head.bias"], parameters["1.head.bias"])


def test_values_are_means_of_the_distribution_in_reward_units():
    box, discrete = gymnasium.spaces.Box(-1, 1, (3,)), gymnasium.spaces.Discrete(4)
    critics = QEnsemble(box, discrete, hidden_sizes=(8,), architecture="residual", num_atoms=11, value_bound=2.0)
    critics.reward_scale.value.fill_(30.0)
    state = torch.randn(5, 3)
    logits, values = critics(state, logits=True), critics(state)
    assert (logits.shape, values.shape) == ((2, 5, 4, 11), (2, 5, 4))
    atoms = torch.arange(11) * 0.4 - 2
    torch.testing.assert_close(values, 30 * (logits.softmax(-1) * atoms).sum(-1), rtol=1e-5, atol=1e-5)


# Noise that is held.


def test_noise_is_held_for_as_long_as_the_zeta_distribution_says():
    """20,000 steps of two environments: how long a draw is held, against 1/n², |z| < 4 for each n up to 5."""
    held, found, last = HeldNoise(5, num=2), [], [0, 0]
    torch.manual_seed(0)
    for step in range(20_000):
        for index in held.passed().nonzero().flatten().tolist():
            found.append(step - last[index])
            last[index] = step
    counts, total = np.bincount(found[2:], minlength=6)[1:], len(found) - 2
    chances = np.arange(1, 6) ** -2.0 / sum(n**-2.0 for n in range(1, 6))
    assert len(counts) == 5
    z = (counts - total * chances) / np.sqrt(total * chances * (1 - chances))
    assert np.abs(z).max() < 4, z


def test_actions_are_the_policys_at_the_noise_that_is_held():
    agent = residual(noise_repeats=16, num_envs=3, dtype=F64)
    agent.learn(60)
    noises = []
    with torch.no_grad(), agent._random:
        for _ in range(12):
            agent._loop.step()
            noise, state = agent.modules[0]["noise"]().clone(), agent._observation[0]
            loc, scale = agent.policy.location_and_scale(state, 0)
            torch.testing.assert_close(agent._action[0], (loc + scale * noise).tanh(), **CLOSE)
            noises.append(noise)
    repeats = sum(int((one == other).all(-1).sum()) for one, other in pairwise(noises))
    assert 5 < repeats < 33  # of 33; on average 1 - 1/E[n], 0.53
    with pytest.raises(ValueError, match="noise_repeats holds the noise of a tanh-Gaussian policy"):
        residual(noise_repeats=16, policy_components=2)


# The scale of rewards.


def steps(agent, count):
    """Steps before learning starts, without what learning is made ready for."""
    with torch.no_grad(), agent._random:
        for _ in range(count):
            agent._loop.step()


@pytest.mark.parametrize("bound", [0.5, 50.0])
def test_the_scale_is_that_of_all_returns_so_far(bound):
    """Two seeds of three environments for 40 steps, episodes ending and steps skipped at random, against lists."""
    random = np.random.default_rng(0)
    scale = ReturnScale(bound, discount=0.9, num_seeds=2, num_envs=3)
    assert scale.values.tolist() == [1.0, 1.0]
    running, seen = np.zeros(6), [[], []]
    for _ in range(40):
        reward, ended, valid = random.normal(2, 1, 6), random.random(6) < 0.2, random.random(6) < 0.8
        found = scale.observe(reward, ended=ended, valid=valid)
        for index in range(6):
            if valid[index]:
                running[index] = 0.9 * running[index] + reward[index]
                seen[index // 3].append(running[index])
            if ended[index]:
                running[index] = 0.0
        expected = [max(math.sqrt(np.var(each) + 1e-8), max(map(abs, each)) / bound) for each in seen]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_nothing_earned_is_no_scale():
    scale = ReturnScale(5.0, discount=0.9, num_seeds=1, num_envs=1)
    step = {"ended": np.array([False]), "valid": np.array([True])}
    assert [float(scale.observe(np.array([r]), **step)[0]) for r in (0.0, 0.0)] == [1.0, 1.0]
    assert 0 < float(scale.observe(np.array([1.0]), **step)[0]) < 1


def test_a_temperature_that_is_given_does_not_move_with_the_scale():
    agent = residual(temperature=0.3)
    steps(agent, 15)
    assert agent.temperature == pytest.approx(0.3)
    assert float(agent.modules[0]["critics"].reward_scale.value) > 5
    unscaled = residual(reward_scaling=False, value_bound=100.0)
    steps(unscaled, 15)
    assert float(unscaled.modules[0]["critics"].reward_scale.value) == 1
    assert unscaled._loop.scale is None


def test_networks_that_begin_anew_know_the_scale_and_keep_their_noise():
    agent = residual(reset_every=5, noise_repeats=16)
    steps(agent, 15)
    update, told = agent._update, (agent.modules[0]["critics"].reward_scale.value, agent.modules[0]["noise"]())
    before, kept = update.tensors["parameters"].clone(), [value.clone() for value in told]
    agent._loop.ledger.num_updates = 5
    with torch.no_grad(), agent._random:
        agent._loop._begin_anew_if_due()
    assert not torch.equal(update.tensors["parameters"], before)
    assert float(kept[0]) > 5
    for value, old in zip(told, kept, strict=True):
        assert torch.equal(value, old)
    assert agent.temperature == pytest.approx(0.1 * float(kept[0]), rel=1e-5)


# Seeds, and runs that go on.


class Draws:
    """Random numbers of one seed, handed out in the order in which an update asks for them."""

    def __init__(self, patch, numbers=None):
        self.calls, self.numbers = [], numbers
        for name in ("rand", "randn", "rand_like", "randn_like"):
            patch.setattr(torch, name, self._drawer(name, getattr(torch, name)))

    def _drawer(self, name, original):
        def draw(*args, **options):
            value = original(*args, **options)
            self.calls.append((name.removesuffix("_like"), tuple(value.shape), value.dtype))
            return value if self.numbers is None else self.numbers[len(self.calls) - 1]

        return draw


@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
def test_seeds_learn_together_as_they_would_alone(env):
    """Two updates of two seeds at once, and of two agents with the same numbers, in float64 to 1e-10."""
    together = residual(env, seeds=2, dtype=F64, learning_starts=1000)
    together.learn(30)
    alone = [residual(env, dtype=F64) for _ in range(2)]
    assert float(together._update.tensors["statistics"].std(0).max()) > 0.1  # scales of their own
    for seed, agent in enumerate(alone):
        for name, tensor in agent._update.tensors.items():
            tensor.copy_(together._update.tensors[name][seed : seed + 1])
        rows = together.replay.storage[seed : seed + 1, :30]
        agent.replay.load_state_dict({"rows": rows, "position": together.replay.position})
        agent._observation.copy_(together._observation[seed : seed + 1])
    for index, whole in enumerate((True, False)):
        torch.manual_seed(index)
        together._update.step(index)
        with pytest.MonkeyPatch.context() as patch:
            calls = Draws(patch)
            written = [tensor.clone() for tensor in alone[0]._update._written]
            alone[0]._update._write_step(whole, *written, *alone[0]._update._read)
        torch.manual_seed(index)
        numbers = [getattr(torch, name)(2, *shape, dtype=dtype) for name, shape, dtype in calls.calls]
        for seed, agent in enumerate(alone):
            with pytest.MonkeyPatch.context() as patch:
                Draws(patch, [number[seed] for number in numbers])
                agent._update._write_step(whole, *agent._update._written, *agent._update._read)
    for seed, agent in enumerate(alone):
        for name, tensor in agent._update.tensors.items():
            torch.testing.assert_close(tensor[0], together._update.tensors[name][seed], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(agent._action[0], together._action[seed], rtol=1e-10, atol=1e-10)


def test_a_run_that_was_saved_goes_on_bit_for_bit(tmp_path):
    first = residual(seeds=2, n_step=2, noise_repeats=16)
    first.learn(27)
    first.save(tmp_path / "half")
    second = residual(seeds=2, n_step=2, noise_repeats=16)
    second.restore(tmp_path / "half")
    assert second.temperatures == first.temperatures
    for agent in (first, second):
        agent.learn(9)
    one, other = (checkpoint(agent, tmp_path / name) for agent, name in ((first, "one"), (second, "other")))
    assert same(one, other)
    assert first._loop.scale.state_dict() == second._loop.scale.state_dict()
    assert first._loop.held.state_dict() == second._loop.held.state_dict()
    assert first.critic(torch.zeros(3, *first.state_space.shape), 0).shape == (3,)


def test_n_steps_bootstrap_where_the_segment_ends():
    """Of a target without entropy, the mean is the n-step return of the least critic's means, to 1e-9."""
    agent = residual(
        lambda: Line(ends_at=7), n_step=3, dtype=F64, objective="svg0", value_bound=60.0, reward_scaling=False,
        num_atoms=241, learning_starts=40, discount=0.9,
    )  # fmt: skip
    agent.learn(39)
    found = {}
    kept = room.categorical_projection
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "categorical_projection", lambda *args: found.setdefault("target", kept(*args)))
        update = agent._update
        tree = update.layout.unflatten(update.tensors["parameters"][0])
        running = update.statistics_layout.unflatten(update.tensors["statistics"][0])
        own = room.Networks(update.template, tree, dict(running))
        again = room.Networks(update.template, tree, dict(running))
        torch.manual_seed(0)
        drawn = agent.algorithm.batch(agent.replay, *update._read[2:], 12)
        torch.manual_seed(1)
        agent.algorithm.critics_step(own, own.frozen(), again, drawn)
        torch.manual_seed(1)
        pi = agent.algorithm.followed(own.frozen(), drawn)
    asked = agent.algorithm.together(drawn, pi)
    values = again.learning("critics", *asked)[:, 12:].unflatten(1, (3, 12)).amin(0)
    means = (found["target"] * own.modules["critics"].support).sum(-1)
    assert drawn.alive.sum(0).unique().tolist() == [1.0, 2.0, 3.0]
    for row in range(12):
        length, y = int(drawn.alive[:, row].sum()), 0.0
        for k in range(length):
            y += 0.9**k * float(drawn.rewards[k, row])
        if not drawn.terminated[length - 1, row]:
            y += 0.9**length * float(values[length - 1, row])
        assert float(means[row]) == pytest.approx(y, abs=1e-9)


@pytest.mark.skipif(os.environ.get("RLAI_SCALE") != "long", reason="compiles for minutes; make test-scale runs this")
def test_a_compiled_update_is_the_traced_one():
    """Ten updates with the same random numbers, parameters to 1e-4."""
    made = []
    for compile in (False, True):
        agent = residual(compile=compile)
        agent.learn(29)
        assert (agent.num_updates, agent._update.compiled) == (10, compile)
        made.append(agent)
    for name, tensor in made[0]._update.tensors.items():
        torch.testing.assert_close(made[1]._update.tensors[name], tensor, rtol=1e-4, atol=1e-4, msg=name)


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_sizes": (4, 5)}, "hidden_sizes must be one width for each residual block"),
        ({"critic_hidden_sizes": ()}, "critic_hidden_sizes must be one width for each residual block"),
        ({"num_atoms": 1}, "num_atoms"),
        ({"value_bound": 0.0}, "value_bound"),
        ({"reward_scaling": "yes"}, "reward_scaling must be True or False"),
        ({"memory": "gru", "learning_starts": 30}, "memory goes with architecture='plain'"),
        ({"value_network": True}, "value_network goes with architecture='plain'"),
        ({"objective": "wrong_bellman"}, "objective='wrong_bellman' goes with"),
        ({"architecture": "residuals"}, "architecture must be one of plain, batch_norm, residual; got 'residuals'"),
    ],
)
def test_options_that_do_not_go_together_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        residual(**options)


def test_the_architecture_brings_its_own_defaults():
    options = sac(architecture="residual", hidden_sizes=(8,), critic_hidden_sizes=(8,), batch_size=6).options
    assert (options["actor_every"], options["target_average"], options["initial_temperature"]) == (2, 0.01, 0.01)
    assert (options["num_atoms"], options["value_bound"], options["reward_scaling"]) == (101, 5.0, True)
    made = [residual(), residual(target_entropy=-2.0), residual(action_scale=0.3), residual("CartPole-v1")]
    wanted = [0.5 * math.log(2 * math.pi * math.e * 0.15**2), -2.0, 0.5 * math.log(2 * math.pi * math.e * 0.09)]
    assert [agent.target_entropy for agent in made] == pytest.approx([*wanted, 0.5 * math.log(2)])
    assert residual(temperature=0.3).target_entropy is None


def test_a_file_of_another_scale_is_refused(tmp_path):
    residual().save(tmp_path / "two")
    with pytest.raises(ValueError, match="value_bound"):
        residual(value_bound=3.0).restore(tmp_path / "two")
