"""Batch-normalised critics without target averages: against plain PyTorch, seeds, files, and what is refused."""

import math

import gymnasium
import pytest
import torch
from problems import random_mdp
from pyro.distributions import Independent, Normal, TransformedDistribution
from small_agents import F64, checkpoint, sac, same
from torch import nn
from torch.distributions.transforms import TanhTransform

import rl_as_inference as rlai
from rl_as_inference.agents import SoftActorCritic, train
from rl_as_inference.batch_norm import BatchRenorm, learning_statistics, statistics_of
from rl_as_inference.critics import QEnsemble
from rl_as_inference.threads import multiplies_in_bfloat16

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
CROSSQ = {"architecture": "batch_norm", "critic_hidden_sizes": (9, 6), "updates_per_step": 1}


class Norm(nn.BatchNorm1d):
    """PyTorch's, but for the running variance, which is of ``n`` rows there too, and not of ``n - 1``."""

    def __init__(self, width):
        super().__init__(width, eps=1e-3, momentum=0.01, dtype=F64)

    def forward(self, rows):
        if not self.training:
            return super().forward(rows)
        before = self.running_var.clone()
        out = super().forward(rows)
        self.running_var = 0.99 * before + 0.01 * rows.detach().var(0, correction=0)
        return out


def stack(weights, biases, scales, shifts):
    """Normalisation, then linear layers, each hidden one rectified and normalised."""
    layers = []
    for weight, bias, scale, shift in zip(weights, biases, scales, shifts, strict=True):
        linear, normal = nn.Linear(*weight.shape, dtype=F64), Norm(len(weight))
        linear.weight.data, linear.bias.data = weight.T.clone(), bias.clone()
        normal.weight.data, normal.bias.data = scale.flatten().clone(), shift.flatten().clone()
        layers += [nn.ReLU()] * bool(layers) + [normal, linear]
    return nn.Sequential(*layers)


class Reference:
    """CrossQ as it is usually written: modules in training mode, three optimisers, an actor at every third step."""

    def __init__(self, agent):
        self.agent, modules = agent, agent.modules[0]
        net, critics = modules["policy"].network, modules["critics"]
        linears = [net.state_layer, *(layer for layer in net.layers if isinstance(layer, nn.Linear))]
        norms = [net.norm, *(layer for layer in net.layers if isinstance(layer, BatchRenorm))]
        self.policy = stack(
            [layer.weight.detach().T for layer in linears],
            [layer.bias.detach() for layer in linears],
            [layer.scale.detach() for layer in norms],
            [layer.shift.detach() for layer in norms],
        )
        self.critics = nn.ModuleList(
            stack(
                [weight.detach()[i] for weight in critics.weights],
                [bias.detach()[i] for bias in critics.biases],
                [layer.scale.detach()[i] for layer in critics.norms],
                [layer.shift.detach()[i] for layer in critics.norms],
            )
            for i in range(2)
        )
        self.log_alpha = modules["temperature"].log_temperature.detach().clone().requires_grad_()
        groups = self.critics.parameters(), self.policy.parameters(), [self.log_alpha]
        self.optimisers = [torch.optim.Adam(group, lr=agent.learning_rate, betas=(0.5, 0.999)) for group in groups]

    def chosen(self, state, *, learning):
        self.policy.train(learning)
        loc, log_scale = self.policy(state).chunk(2, -1)
        base = Normal(loc, log_scale.clamp(-20, 2).exp())
        return Independent(TransformedDistribution(base, [TanhTransform(cache_size=1)]), 1)

    def values(self, state, action, *, learning):
        self.critics.train(learning)
        return torch.stack([critic(torch.cat([state, action], -1)).squeeze(-1) for critic in self.critics])

    def update(self, index):
        replay, size = self.agent.replay, self.agent.batch_size
        row = (torch.rand(size, dtype=F64) * len(replay)).floor().long()
        names = ("state", "action", "reward", "next_state", "terminated")
        state, action, reward, next_state, terminated = (getattr(replay, name)[row] for name in names)
        alpha, log_prior = self.log_alpha.exp().detach(), -math.log(2)
        # The actor is asked before the step, as the critics are: one step on the sum of all losses.
        before = {name: buffer.clone() for name, buffer in self.critics.named_buffers()}
        with torch.no_grad():
            chosen = self.chosen(next_state, learning=False)
            next_action = chosen.rsample()
            log_next = chosen.log_prob(next_action)
        both = torch.cat([state, next_state]), torch.cat([action, next_action])
        q, after = self.values(*both, learning=True).split(size, 1)
        value = after.detach().amin(0) - alpha * (log_next - log_prior)
        target = reward + self.agent.discount * (1 - terminated.double()) * value
        critic_loss = sum(0.5 * nn.functional.mse_loss(each, target) for each in q)
        moved = {name: buffer.clone() for name, buffer in self.critics.named_buffers()}
        losses = [critic_loss]
        if index % 3 == 0:
            chosen = self.chosen(state, learning=True)
            new = chosen.rsample()
            log_policy = chosen.log_prob(new)
            for name, buffer in self.critics.named_buffers():
                buffer.data = before[name].clone()
            least = self.values(state, new, learning=False).amin(0)
            losses.append((log_policy - log_prior - least / alpha).mean())
            losses.append(self.log_alpha.exp() * (-log_policy.detach().mean() - self.agent.target_entropy))
        groups = [list(self.critics.parameters()), list(self.policy.parameters()), [self.log_alpha]]
        gradients = [torch.autograd.grad(loss, group) for loss, group in zip(losses, groups, strict=False)]
        for optimiser, group, gradient in zip(self.optimisers, groups, gradients, strict=False):
            for parameter, slope in zip(group, gradient, strict=True):
                parameter.grad = slope
            optimiser.step()
        for name, buffer in self.critics.named_buffers():
            buffer.data = moved[name]

    def act(self, state):
        with torch.no_grad():
            return self.chosen(state, learning=False).sample()


def test_updates_are_those_of_plain_pytorch():
    """Seven updates in float64 with the same random numbers, the actor's at the first, fourth and seventh: to 1e-9."""
    agent = sac(dtype=F64, hidden_sizes=(7, 5), num_envs=2, learning_starts=1000, batch_size=16, discount=0.9, **CROSSQ)
    generator = torch.Generator().manual_seed(0)
    parameters = agent._update.tensors["parameters"]
    parameters += 0.3 * torch.randn(parameters.shape, generator=generator, dtype=F64)
    agent.learn(120)
    assert agent.num_updates == 0
    assert agent.learning_rate == 1e-3
    reference = Reference(agent)
    torch.manual_seed(5)
    for index in range(7):
        reference.update(index)
        action = reference.act(agent._observation[0])
    torch.manual_seed(5)
    for index in range(7):
        agent._update.step(index)
    torch.testing.assert_close(agent._action[0], action, **CLOSE)
    modules, state = agent.modules[0], torch.randn(50, 3, dtype=F64)
    torch.testing.assert_close(modules["temperature"].log_temperature, reference.log_alpha, **CLOSE)
    normals = [layer for layer in reference.critics[1] if isinstance(layer, Norm)]
    for own, normal in zip(modules["critics"].norms, normals, strict=True):
        torch.testing.assert_close(own.mean[1, 0], normal.running_mean, **CLOSE)
        torch.testing.assert_close(own.variance[1, 0], normal.running_var, **CLOSE)
    assert [float(layer.batches) for layer in modules["critics"].norms] == [7, 7, 7]
    assert float(modules["policy"].network.norm.batches) == 3
    for index, critic in enumerate(reference.critics):
        layers = [layer for layer in critic if isinstance(layer, nn.Linear)]
        for weight, linear in zip(modules["critics"].weights, layers, strict=True):
            torch.testing.assert_close(weight[index], linear.weight.T, **CLOSE)
    reference.policy.train()
    with learning_statistics(modules["policy"]):
        torch.testing.assert_close(modules["policy"].network(state, 0), reference.policy(state), **CLOSE)


def test_the_correction_begins_after_the_warm_up_and_is_ioffes():
    """Normalised by the batch, then r and d of the running statistics: algorithm 1 of the paper, by hand in float64."""
    rows, layer = torch.randn(64, 3, dtype=F64) * 2 + 1, BatchRenorm(3, warm_up=1).double()
    layer.mean.copy_(torch.tensor([0.0, 1.5, 40.0], dtype=F64))
    layer.variance.copy_(torch.tensor([1.0, 4.0, 100.0], dtype=F64))
    mean, deviation = rows.mean(0), (rows.var(0, correction=0) + 1e-3).sqrt()
    with learning_statistics(layer):
        torch.testing.assert_close(layer(rows).detach(), (rows - mean) / deviation, **CLOSE)
    layer.batches.fill_(1)
    running = (layer.variance + 1e-3).sqrt()
    ratio, shift = (deviation / running).clamp(1 / 3, 3), ((mean - layer.mean) / running).clamp(-5, 5)
    assert ratio[2] == 1 / 3
    with learning_statistics(layer) as moved:
        torch.testing.assert_close(layer(rows).detach(), (rows - mean) / deviation * ratio + shift, **CLOSE)
    torch.testing.assert_close(moved["mean"], 0.99 * layer.mean + 0.01 * mean, **CLOSE)
    # Asked plainly, the running ones alone.
    torch.testing.assert_close(layer(rows).detach(), (rows - layer.mean) / running, **CLOSE)


def test_members_of_an_ensemble_have_statistics_of_their_own():
    box = gymnasium.spaces.Box(-1, 1, (3,))
    critics = QEnsemble(box, gymnasium.spaces.Discrete(4), num_critics=3, hidden_sizes=(5,), architecture="batch_norm")
    state = torch.randn(2, 8, 3)
    with learning_statistics(critics) as moved:
        together = critics(state)
    assert together.shape == (3, 2, 8, 4)
    assert moved.keys() == statistics_of(critics).keys()
    assert len({float(value) for value in moved["norms.1.mean"][:, 0, 0]}) == 3
    assert len({float(value) for value in moved["norms.0.mean"][:, 0, 0]}) == 1  # of the inputs, which they share


@pytest.mark.parametrize(
    "options",
    [{"env": "Pendulum-v1"}, {"env": "CartPole-v1", "n_step": 3}, {"env": "Pendulum-v1", "seeds": 2}],
    ids=["continuous", "discrete", "seeds"],
)
def test_a_run_goes_on_from_its_file_bit_for_bit(tmp_path, options):
    """At a step at which the actor does not learn, with its statistics."""
    whole = sac(**options, **CROSSQ)
    whole.learn(60)
    before = sac(**options, **CROSSQ)
    before.learn(41)
    assert before.num_updates % 3 != 0
    before.save(tmp_path / "half")
    after = SoftActorCritic.load(tmp_path / "half")
    assert after.policy.network.norm.batches == before.policy.network.norm.batches > 0
    after.learn(19)
    assert same(checkpoint(whole, tmp_path / "whole"), checkpoint(after, tmp_path / "after"))


def test_several_seeds_are_single_agents_in_shape_and_differ():
    agent = sac(seeds=2, **CROSSQ)
    agent.learn(60)
    means = [modules["critics"].norms[1].mean for modules in agent.modules]
    assert not torch.equal(*means)
    assert agent.recent[0].keys() == {"critic_loss", "actor_loss", "entropy", "q"}


def test_reported_numbers_of_the_actor_are_means_over_its_own_updates():
    agent = sac(target_entropy=None, **CROSSQ)
    agent.learn(20)
    agent._update.tensors["sums"].copy_(torch.tensor([[7.0, 6.0, 4.0, 14.0, 2.0]]))
    assert agent._update.means(7) == [{"critic_loss": 1.0, "actor_loss": 3.0, "entropy": 2.0, "q": 2.0}]


def test_updates_of_the_critics_alone_are_reported_without_the_actor():
    """A step at a time, of which each third has the actor's turn."""
    agent = sac(target_entropy=None, **{**CROSSQ, "actor_every": 3}, learning_starts=20)
    agent.learn(20)
    for _ in range(3):
        agent.learn(1)
    assert ["actor_loss" in row for row in agent.history[-4:]] == [True, False, False, True]
    assert all("critic_loss" in row for row in agent.history[-4:])
    agent.learn(1)
    assert agent.recent[0]["entropy"] == agent.history[-2]["entropy"]  # curves have the last that there was


def test_it_learns_a_small_process():
    """To within 3 % of the largest objective, in 452 updates (seed 0, float64)."""
    mdp = random_mdp(0, num_states=4, num_actions=3, horizon=None, discount=0.8)
    agent = sac(
        mdp,
        dtype=F64,
        batch_size=64,
        hidden_sizes=(16,),
        learning_starts=100,
        num_envs=4,
        updates_per_step=0.5,
        architecture="batch_norm",
        critic_hidden_sizes=(32,),
        learning_rate=3e-3,
        actor_every=1,
        buffer_size=2000,
        temperature=float(mdp.temperature),
    )
    agent.learn(1000)
    reached = float(rlai.exact.elbo(mdp, agent.policy).detach())
    best = float(rlai.exact.optimal_elbo(mdp))
    uniform = float(rlai.exact.elbo(mdp, lambda state, t: mdp.prior(state)))
    assert (best - reached) / (best - uniform) < 0.03


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "batchnorm"}, "architecture must be one of plain, batch_norm"),
        ({"architecture": "batch_norm", "value_network": True}, "value_network goes with architecture='plain'"),
        (
            {"architecture": "batch_norm", "memory": "gru", "learning_starts": 30},
            "memory goes with architecture='plain'",
        ),
        (
            {"architecture": "batch_norm", "target_average": 0.1},
            "target_average means nothing with architecture='batch_n",
        ),
        ({"num_atoms": 7}, "num_atoms means nothing with architecture='plain'; leave it out"),
        ({"architecture": "batch_norm", "reward_scaling": False}, "reward_scaling means nothing with"),
        ({"actor_every": 0}, "actor_every must be an integer >= 1"),
        ({"adam_beta": 1.5}, r"adam_beta must be a number in \[0, 1\)"),
        ({"critic_hidden_sizes": (0,)}, "critic_hidden_sizes must be >= 1"),
        ({"precision": "bfloat16", "dtype": F64}, "precision='bfloat16' rounds products of float32"),
        ({"precision": "half"}, "precision must be one of float32, bfloat16"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sac(**options)


def test_an_architecture_brings_defaults_that_what_is_given_replaces():
    agent = sac(architecture="batch_norm")
    options = agent.options
    names = ("learning_rate", "critic_hidden_sizes", "updates_per_step", "adam_beta", "actor_every")
    found = {name: options[name] for name in names}
    assert found == {
        "learning_rate": 1e-3,
        "critic_hidden_sizes": (256, 256),
        "updates_per_step": 2,
        "adam_beta": 0.5,
        "actor_every": 3,
    }
    assert sac(architecture="batch_norm", actor_every=1, learning_rate=0.5).options["learning_rate"] == 0.5


def test_a_run_that_ends_before_it_learns_is_warned_of():
    """Batch-normalised critics begin at 5,000 steps, which a short run never sees."""
    agent = sac(architecture="batch_norm", critic_hidden_sizes=(8,), learning_starts=30)
    with pytest.warns(UserWarning, match="num_steps is 20, and learning begins after learning_starts=30"):
        train(agent, 20, evaluate_episodes=1)
    assert agent.num_updates == 0


@pytest.mark.skipif(not multiplies_in_bfloat16(), reason="this processor does not multiply in bfloat16")
def test_products_in_bfloat16_are_near_those_in_float32_and_leave_the_setting():
    """Parameters within a few steps of Adam's."""
    made = []
    for precision in ("float32", "bfloat16"):
        agent = sac(hidden_sizes=(256, 256), precision=precision)
        agent.learn(40)
        made.append(agent._update.tensors["parameters"])
        assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.equal(*made)
    torch.testing.assert_close(*made, rtol=0, atol=0.02)
