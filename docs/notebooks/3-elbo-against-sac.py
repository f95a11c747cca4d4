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
# # 3. The ELBO against soft actor-critic
#
# Soft actor-critic (SAC) is one of the most used algorithms of deep reinforcement learning. Its
# papers say that it maximizes *return plus entropy*. This library maximizes an *evidence lower
# bound*. This notebook shows that the two are the same objective in different units, that three
# quite different learners climb to the same exact ceiling, and which well-known losses do
# **not** climb it.

# %%
# %matplotlib inline
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # by Pyro, without ipywidgets

import math

import matplotlib.pyplot as plt
import torch

import rl_as_inference as rlai
from rl_as_inference import exact
from rl_as_inference.guides import TabularPolicy
from rl_as_inference.inspect import plots
from rl_as_inference.models import gridworld

# %% [markdown]
# A small grid with a wall and slippery ground. The walker has twelve steps, and each step that
# begins at the goal pays 1. The temperature α is 0.3 reward units per nat.

# %%
grid = gridworld(4, 4, horizon=12, temperature=0.3, walls=[(1, 1), (1, 2)])
for row in grid.layout:
    print(*row)

# %% [markdown]
# ## Two objectives
#
# For a policy $\pi$, an action prior $p(a \mid s)$ (here uniform over four actions) and no
# discount:
#
# $$
# \mathrm{ELBO}(\pi) = \mathbb{E}_\pi \sum_t \Big( \frac{r_t}{\alpha} + \log p(a_t \mid s_t)
# - \log \pi(a_t \mid s_t) \Big) \quad \text{[nats]}
# $$
#
# $$
# J_\text{SAC}(\pi) = \mathbb{E}_\pi \sum_t \Big( r_t - \alpha \log \pi(a_t \mid s_t) \Big)
# \quad \text{[reward]}
# $$
#
# Multiply the first by α and compare. What is left over is
# $-\alpha\, \mathbb{E} \sum_t \log p(a_t \mid s_t)$. With four actions, all alike a priori, and
# episodes of twelve steps, that is $\alpha \cdot 12 \log 4$, whatever the policy does. So the
# two objectives differ by a factor and a constant.
#
# Let us take a policy that is half trained, walk it, and add up both by hand.

# %%
torch.manual_seed(0)
policy = TabularPolicy(16, 4, horizon=12)
rlai.fit(grid, policy, steps=25, learning_rate=0.1, seed=0)

walks = grid.rollout(policy, 4096)
alpha = grid.temperature
elbo = (walks.rewards / alpha + walks.log_prior - walks.log_policy).sum(0).mean()
sac = (walks.rewards - alpha * walks.log_policy).sum(0).mean()
print(f"ELBO             {elbo:.3f} nats")
print(f"SAC objective    {sac:.3f} reward")
print(f"α ELBO           {alpha * elbo:.3f} reward")
print(f"SAC - α ELBO     {sac - alpha * elbo:.3f} reward")
print(f"α · 12 · log 4   {alpha * 12 * math.log(4):.3f} reward")

# %% [markdown]
# `rlai.compare` does this bookkeeping for any process and policy, adds what is exact, and
# checks every identity between the numbers. Where a row says *exact*, nothing was drawn.

# %%
torch.manual_seed(0)
comparison = rlai.compare(grid, policy, num_trajectories=4096)
print(comparison.table())

# %% [markdown]
# ## One step at a time
#
# SAC never writes down the whole sum. It has a *soft Q*: what taking action a in state s is
# worth, all later rewards and entropies counted. The soft value of a state is then one line,
#
# $$
# V(s) = \mathbb{E}_{a \sim \pi} \big[ Q(s, a) - \alpha \log \pi(a \mid s)
# + \alpha \log p(a \mid s) \big],
# $$
#
# and the value of the first state is the whole objective: $V(s_0) = \alpha\, \mathrm{ELBO}$.
# Note where the entropy starts: $Q(s, a)$ does not count the entropy of the step that it
# values, only of later ones.

# %%
values = exact.evaluate(grid, policy)
start = int(grid.initial_probabilities.argmax())
pi = policy.logits.detach()[0, start].softmax(-1)
one_step = (pi * (values.soft_q[0, start] - alpha * pi.log() + alpha * math.log(1 / 4))).sum()
print(f"E[Q - α log π + α log p] at the start  {one_step:.4f} reward")
print(
    f"α times the exact ELBO                 {alpha * exact.elbo(grid, policy).detach():.4f} reward"
)

# %% [markdown]
# ## Three learners, one ceiling
#
# The largest ELBO is known exactly (`exact.optimal_elbo`). Three learners look for it.
#
# **Soft policy iteration** knows the tables: evaluate the policy exactly, make every state's
# policy proportional to $p(a \mid s)\, e^{Q(s,a)/\alpha}$, repeat. This is the algorithm that
# SAC is an approximation of.

# %%
iteration = rlai.SoftPolicyIteration(grid)
iteration.learn()
ceiling = float(exact.optimal_elbo(grid))
print("ELBO after each iteration:", *(f"{value:.2f}" for value in iteration.objectives))
print(f"largest ELBO: {ceiling:.2f} nats")

# %% [markdown]
# **Gradient ascent** on the ELBO is what `rlai.fit` does. It uses Adam, and needs more steps,
# since it changes the policy a little at a time.

# %%
torch.manual_seed(0)
policy = TabularPolicy(16, 4, horizon=12)
ascent = rlai.fit(grid, policy, steps=200, learning_rate=0.1, seed=0)
print(f"ELBO after 200 gradient steps: {exact.elbo(grid, policy).detach():.2f} nats")

# %% [markdown]
# **Soft actor-critic** may only *step* the process, as any agent in an unknown world. It stores
# what it saw, and trains two critics and an actor on it. The policy it leaves is a policy like
# any other, so we can ask for its exact ELBO as it learns. The temperature is fixed at that of
# the process; usually SAC tunes it.

# %% tags=["varies"]
agent = rlai.SoftActorCritic(
    grid,
    seed=0,
    temperature=0.3,
    hidden_sizes=(64, 64),
    batch_size=128,
    learning_rate=3e-3,
    learning_starts=500,
    num_envs=8,
    updates_per_step=0.25,
    target_average=0.02,
    compile=False,
)
curve = []
for _ in range(16):
    agent.learn(500)
    curve.append((agent.num_updates, float(exact.elbo(grid, agent.policy).detach())))
print(f"ELBO of soft actor-critic after 8,000 steps: {curve[-1][1]:.1f} nats of {ceiling:.1f}")

# %%
_, axes = plt.subplots(1, 3, figsize=(10, 3.2), sharey=True, layout="constrained")
axes[0].plot(iteration.objectives, color=plots.GREEN, marker="o")
axes[0].set(title="soft policy iteration", xlabel="iterations", ylabel="exact ELBO (nats)")
axes[1].plot(ascent.elbo, color=plots.BLUE)
axes[1].set(title="gradient ascent", xlabel="gradient steps")
axes[2].plot(*zip(*curve, strict=True), color=plots.ORANGE, marker=".")
axes[2].set(title="soft actor-critic", xlabel="updates")
for ax in axes:
    ax.axhline(ceiling, color=plots.GREY, linestyle="--", linewidth=1)
plt.show()

# %% [markdown]
# All three end at the dashed line or just below. They differ in what they must know (tables,
# tables, nothing) and in what that costs (a handful of sweeps, hundreds of steps, thousands of
# updates), and not in what they want.
#
# ## Which losses are gradients of the ELBO?
#
# Many actor losses look alike on paper. `rlai.compare_gradients` holds the mean of each against
# the exact gradient $g^*$ of the ELBO. A relative bias of 0 means that the loss climbs the
# ELBO; 100 % means that it is as wrong as not moving at all. We look at a policy picked at
# random, on a random process with a discount.

# %%
torch.manual_seed(0)
process = rlai.models.random_mdp(6, 3, horizon=8, discount=0.9, dtype=torch.float64)
policy = TabularPolicy(6, 3, horizon=8).double()
torch.nn.init.normal_(policy.logits)
gradients = rlai.compare_gradients(process, policy, num_trajectories=2000)

shown = [
    "exact sum over actions, soft Q",
    "SAC, on-policy discounted states",
    "SAC, on-policy undiscounted states",
    "SAC, replay states (of the prior)",
    "one-step entropy (Williams & Peng)",
    "SVG(0), no entropy",
]
for name in shown:
    row = gradients[name]
    bias = 0.0 if row.unbiased else row.relative_bias_exact
    print(f"{name:<36} {bias:6.1%}  {row.cause}")

# %% [markdown]
# SAC's actor loss *is* the gradient, if its critic is right and states are weighted as the
# policy visits them, with the discount. In practice states come from a replay, and late ones
# count as much as early ones: that tilts the gradient, though not the optimum (a policy that is
# best in every state is best under every weighting). The lower rows are worse: leaving out
# entropies changes what is optimal.
#
# Unbiased estimators differ, too: in their noise. Here is the variance of one trajectory's
# gradient, for estimators that are all right on average. A critic is worth a lot.

# %%
estimators = [
    "score, full return",
    "score, return-to-go",
    "score, soft value baseline",
    "advantage, λ = 0",
    "exact sum over actions, soft Q",
]
variances = [gradients[name].variance for name in estimators]
_, ax = plt.subplots(figsize=(7, 2.6), layout="constrained")
bars = ax.barh(estimators, variances, color=plots.BLUE)
ax.bar_label(bars, [f"{value:.3g}" for value in variances], padding=4)
ax.set(xscale="log", xlabel="variance of one trajectory's gradient (nats²)")
ax.margins(x=0.15)
ax.invert_yaxis()
plt.show()

# %% [markdown]
# ## What to remember
#
# - SAC's objective = α · ELBO + a term of the action prior.
# - The ELBO is in nats and has a ceiling that can be computed on small problems. So learners
#   can be compared with the truth, and not only with each other.
# - An actor loss is more than its looks: the entropies of all later steps belong into the
#   critic.
#
# ## Exercise
#
# The constant was a constant because every episode had twelve steps. On the frozen lake
# episodes end early, in a hole or at the goal. Take `lake` below. Compute the prior term
# (`prior_term_exact` of `rlai.compare`) for its best policy and for the action prior
# (`policy=None`). Are they the same? What follows for an agent that maximizes $J_\text{SAC}$ in
# place of the ELBO: does it like long episodes or short ones?
#
# The solution is folded away below.

# %%
lake = rlai.TabularMDP.from_gymnasium(
    "FrozenLake-v1", map_name="4x4", horizon=30, temperature=0.02, dtype=torch.float64
)

# %% jupyter={"source_hidden": true, "outputs_hidden": true} tags=["solution"]
for name, policy in (("best policy", exact.plan(lake)), ("action prior", None)):
    found = rlai.compare(lake, policy, num_trajectories=100)
    steps = found.prior_term_exact / (lake.temperature * math.log(4))
    print(f"{name:<12}  prior term {found.prior_term_exact:.3f} reward, {steps:.1f} steps alive")

# %% [markdown] jupyter={"source_hidden": true} tags=["solution"]
# They differ: the term is α log 4 for each step that an episode lasts. So $J_\text{SAC}$ pays α
# log 4 for every further step, on top of the rewards, and an agent that maximizes it likes to
# stay alive. That is why the learners here count entropy relative to the prior unless told
# otherwise (`action_prior="flat"` is the papers' version).
