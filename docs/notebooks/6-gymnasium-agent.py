# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 6. An agent for Gymnasium
#
# From an environment to a policy in a file, end to end: make the environment, train soft
# actor-critic for a few thousand steps, evaluate it, look at what it does, ask what its critic
# believes, save it, load it, and export it to a format that runs without this library.

# %%
# %matplotlib inline
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # by Pyro, without ipywidgets

import gymnasium
import matplotlib.pyplot as plt
import numpy as np
import onnxruntime
import torch

import rl_as_inference as rlai
from rl_as_inference.inspect import plots

# %% [markdown]
# ## The environment
#
# Gymnasium's pendulum hangs from a motor that is too weak to lift it in one go: it has to be
# swung up, and then held upright. An observation is $(\cos\theta, \sin\theta, \dot\theta)$, an
# action a torque between -2 and 2. Every step costs: up to 10 for not being upright, up to 6
# for speed, and a little for torque. An episode has 200 steps. First, what do random torques
# earn?

# %%
env = gymnasium.make("Pendulum-v1")
print("observation:", env.observation_space)
print("action:     ", env.action_space)


def play(act, num_episodes=10, **options):
    """Returns the returns of episodes in which `act(observation)` gives the action."""
    env = gymnasium.make("Pendulum-v1", **options)
    returns = []
    for episode in range(num_episodes):
        observation, _ = env.reset(seed=100 + episode)
        total, over = 0.0, False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(act(observation))
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    return np.array(returns)


env.action_space.seed(0)
at_random = play(lambda observation: env.action_space.sample())
print(f"random torques: {at_random.mean():.0f} ± {at_random.std():.0f} reward an episode")

# %% [markdown]
# ## Training
#
# `SoftActorCritic` takes the environment's id. `learn(n)` takes n further steps, so that we can
# stop and look as often as we like. `evaluate` plays whole episodes in environments of its own,
# with the mean of the policy in place of draws. Networks are small here to keep the notebook
# quick; the defaults are those of the paper.

# %% tags=["varies"]
agent = rlai.SoftActorCritic(
    "Pendulum-v1",
    seed=0,
    hidden_sizes=(64, 64),
    batch_size=128,
    learning_rate=2e-3,
    learning_starts=500,
    compile=False,
)
curve = []
for _ in range(10):
    agent.learn(500)
    returns = agent.evaluate(10).returns
    curve.append((agent.history[-1]["step"], float(returns.mean()), float(returns.std())))
print(f"after {len(agent.replay):,} steps: {curve[-1][1]:.0f} reward an episode")

# %%
steps, means, spreads = (np.array(column) for column in zip(*curve, strict=True))
_, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained")
left.fill_between(
    steps, means - spreads, means + spreads, color=plots.BLUE, alpha=0.25, linewidth=0
)
left.plot(steps, means, color=plots.BLUE, marker="o", label="agent, ± spread of ten episodes")
left.axhline(at_random.mean(), color=plots.GREY, linestyle=":", label="random torques")
left.set(xlabel="environment steps", ylabel="return (reward)")
left.legend(frameon=False, loc="lower right")
right.plot(
    [row["step"] for row in agent.history],
    [row["temperature"] for row in agent.history],
    color=plots.ORANGE,
)
right.set(xlabel="environment steps", ylabel="temperature α (reward units per nat)", ylim=(0, None))
plt.show()

# %% [markdown]
# For a while nothing seems to happen: the agent is still finding out what torques do. Then it
# learns to swing up, and the return jumps. (Learning curves go up and down. For more than a
# demonstration use several seeds, `seeds=5`, and see [Learners](../learners.md).)
#
# The temperature on the right is tuned by SAC itself, so that the policy keeps a given entropy,
# by default −1 nat for each dimension of the action.
#
# ## Looking at an episode
#
# A number says how much, and not how. Let us walk one episode and look at it.

# %% tags=["varies"]
env = gymnasium.make("Pendulum-v1")
observation, _ = env.reset(seed=3)
observations, torques = [observation], []
for _ in range(200):
    action = agent.act(observation, deterministic=True)
    observation, *_ = env.step(action)
    observations.append(observation)
    torques.append(float(action[0]))
angle = np.degrees(np.arctan2(*np.array(observations)[:, 1::-1].T))

_, (top, bottom) = plt.subplots(2, 1, figsize=(7, 4.4), sharex=True, layout="constrained")
top.plot(angle, ".", color=plots.BLUE, markersize=4)
top.axhline(0, color=plots.GREY, linewidth=1)
top.set(ylabel="angle from upright (degrees)", ylim=(-190, 190), yticks=range(-180, 181, 90))
bottom.step(range(200), torques, color=plots.ORANGE, where="post")
bottom.set(xlabel="step", ylabel="torque (N m)", ylim=(-2.2, 2.2))
plt.show()
distance = np.abs(angle[-100:]).mean()
print(f"mean distance from upright over the last 100 steps: {distance:.1f} degrees")

# %% [markdown]
# The torque goes to its limits while the pendulum swings (it gathers energy), and settles once
# it stands. After so little practice it leans by some degrees, and pays a little torque for
# that in every step. Since the policy is a function of angle and speed alone, we can draw all
# of it at once, with the episode on top.

# %%
angles, speeds = np.meshgrid(np.linspace(-180, 180, 91), np.linspace(-8, 8, 81))
radians = torch.as_tensor(np.radians(angles.ravel()), dtype=torch.float32)
speed = torch.as_tensor(speeds.ravel(), dtype=torch.float32)
points = torch.stack([radians.cos(), radians.sin(), speed], -1)
with torch.no_grad():
    actions = agent.policy(points, 0).sample((64,)).mean(0)[..., 0]  # on [-1, 1]
_, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
image = ax.pcolormesh(
    angles, speeds, 2 * actions.reshape(angles.shape), cmap="RdBu", vmin=-2, vmax=2
)
ax.plot(angle, np.array(observations)[:, 2], "k.", markersize=3, label="the episode")
ax.set(xlabel="angle from upright (degrees)", ylabel="angular speed (rad/s)")
ax.legend(loc="upper right")
plt.colorbar(image, label="mean torque (N m)")
plt.show()

# %% [markdown]
# ## What the critic believes
#
# The agent's policy is the guide of a probabilistic program, the simulator with SAC's action
# prior, and so it has an ELBO ([notebook 3](3-elbo-against-sac.ipynb)). It can be measured in
# two ways: by walking, and by asking the critic for the soft value of the first state. The
# difference is what the critic believes too much.

# %% tags=["varies"]
torch.manual_seed(0)
simulator = rlai.GymnasiumProcess("Pendulum-v1", num_envs=8)
comparison = rlai.compare(simulator, agent.policy, critic=agent.critic, num_trajectories=32)
print(comparison.table())

# %% [markdown]
# After so few steps the critic is far off, and the policy is good all the same: an actor needs
# to know which action is *better*, not what it is worth.
#
# ## Saving, loading, going on
#
# `save` writes everything into one file: networks, optimisers, replay, random numbers. `load`
# makes the agent anew. It acts the same, and can go on learning as if nothing had happened.

# %%
agent.save("pendulum.safetensors")
again = rlai.SoftActorCritic.load("pendulum.safetensors")
observation, _ = env.reset(seed=5)
same = np.array_equal(
    agent.act(observation, deterministic=True), again.act(observation, deterministic=True)
)
again.learn(100)
print(f"acts the same: {same}; went on to {len(again.replay):,} steps")

# %% [markdown]
# ## Out into the world
#
# `export` writes the policy alone, as ONNX, which ONNX Runtime plays on servers, phones and
# robots without PyTorch and without this library. Before the file gets its name, its actions
# are compared with the agent's.

# %% tags=["varies"]
written = agent.export("pendulum.onnx")
print(f"{written.format}: actions as the agent's in {written.num_compared} states")

session = onnxruntime.InferenceSession("pendulum.onnx")


def exported(observation):
    """Returns the exported policy's action."""
    return session.run(None, {"observation": observation[None].astype(np.float32)})[0][0]


by_agent = play(lambda observation: agent.act(observation, deterministic=True))
by_file = play(exported)
print(f"by the agent {by_agent.mean():.1f}, by the file {by_file.mean():.1f} reward an episode")

# %% [markdown]
# The same from a terminal, without a line of Python:
#
# ```console
# $ rlai train Pendulum-v1 --num-steps 5000 --hidden-sizes 64,64 --out runs/pendulum
# $ rlai evaluate runs/pendulum
# $ rlai inspect runs/pendulum      # a page with trajectories to step through
# $ rlai export runs/pendulum
# ```
#
# ## What to remember
#
# - `SoftActorCritic(env).learn(n)`, `evaluate`, `act`, `save`, `load`, `export`.
# - `agent.policy` is a policy like any other: `compare`, `posterior` and the pictures take it.
# - Look at episodes, and not only at returns.
#
# ## Exercise
#
# How robust is the policy? It learned under a gravity of g = 10. Play it under g = 2, 6, 10, 14
# and 18 without further training (`play(..., g=14.0)`), and draw the return over g. Is weaker
# gravity easier?
#
# The solution is folded away below.

# %% jupyter={"source_hidden": true, "outputs_hidden": true} tags=["varies", "solution"]
gravities = [2.0, 6.0, 10.0, 14.0, 18.0]
found = [play(exported, g=gravity) for gravity in gravities]
for gravity, returns in zip(gravities, found, strict=True):
    print(f"g = {gravity:4.1f}: {returns.mean():6.0f} ± {returns.std():.0f} reward an episode")
_, ax = plt.subplots(figsize=(6.4, 3), layout="constrained")
ax.errorbar(
    gravities, [r.mean() for r in found], [r.std() for r in found], color=plots.BLUE, marker="o"
)
ax.set(xlabel="gravity g (m/s²)", ylabel="return (reward)")
plt.show()

# %% [markdown] jupyter={"source_hidden": true} tags=["solution"]
# A policy knows the pendulum that it learned on. Under stronger gravity it fails, and weaker
# gravity does not simply make things easier. To be good at all of them it would have to learn
# on all of them.
