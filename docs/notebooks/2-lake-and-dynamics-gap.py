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
# # 2. The lake and the dynamics gap
#
# The [first notebook](1-first-program.ipynb) had a corridor in which every step leads where it
# is aimed. There, acting well and conditioning on success are the same. This one is about what
# changes when luck plays a part: **an agent that simply conditions on success believes in its
# luck.** What that costs is a number, the *dynamics gap*, and you will see it three times: in a
# gamble that can be worked out by hand, on a frozen lake, and in Gymnasium's own simulator.

# %%
# %matplotlib inline
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # by Pyro, without ipywidgets

import math

import gymnasium
import matplotlib.pyplot as plt
import torch

import rl_as_inference as rlai
from rl_as_inference import exact
from rl_as_inference.guides import TabularPolicy
from rl_as_inference.inspect import plots

torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## A gamble, by hand
#
# One decision. The *sure* action pays 0.5. The *gamble* pays 1 with a probability of 30 %, and
# else nothing, so that it is worth 0.3 on average. The temperature is α = 0.1 reward units per
# nat, and the prior is a coin. Anyone who knows the odds takes the sure thing.
#
# A process in parts is given by its tables: where each action leads (`move`), what is paid on
# the way (`paid`) and where one starts.

# %%
ALPHA = 0.1
move = torch.zeros(3, 2, 3)  # move[state, action, next state]; state 0 decides, 1 is lost, 2 won
move[0, 0, 1] = 1.0
move[0, 1] = torch.tensor([0.0, 0.7, 0.3])
move[1:, :, 1] = 1.0
paid = torch.zeros(3, 2, 3)
paid[0, 0, 1], paid[0, 1, 2] = 0.5, 1.0
gamble = rlai.TabularMDP(move, paid, torch.tensor([1.0, 0, 0]), horizon=1, temperature=ALPHA)

# %% [markdown]
# There are two ways to infer the action, given success.
#
# **The posterior** conditions on success outright. Every outcome gets the weight
# $e^{r/\alpha}$, and the gamble is worth the logarithm of the *mean of the weights*:
#
# $$Q_\text{posterior} = \log \left( 0.7\, e^{0} + 0.3\, e^{1/\alpha} \right).$$
#
# **The causal posterior** infers actions only and leaves luck alone. The gamble is worth the
# *mean of the exponents*:
#
# $$Q_\text{causal} = 0.7 \cdot 0 + 0.3 \cdot 1/\alpha.$$
#
# In both, the sure thing is worth $0.5/\alpha = 5$ nats, and the probability of an action is
# proportional to $e^Q$. `exact.plan` computes both, for any finite problem.

# %%
sure = 0.5 / ALPHA
by_hand = {
    "causal": 0.3 / ALPHA,
    "posterior": math.log(0.7 + 0.3 * math.exp(1 / ALPHA)),
}
for dynamics, worth in by_hand.items():
    plan = exact.plan(gamble, dynamics)
    probability = math.exp(worth) / (math.exp(worth) + math.exp(sure))
    print(f"{dynamics:<9}  the gamble is worth {worth:.2f} nats, and taken with probability")
    print(f"           {probability:.3f} by hand, {plan.policy[0, 0, 1]:.3f} by exact.plan")

# %% [markdown]
# The causal rule gambles now and then, as far as the temperature lets it. The posterior takes
# the bad gamble nearly always. It is not wrong about its question: *of those who did well*,
# nearly all gambled and won. But it is an answer about those who did well, and not advice.
# Advice has to leave the dynamics as they are.

# %%
for dynamics in by_hand:
    earned = exact.expected_return(gamble, exact.plan(gamble, dynamics))
    print(f"{dynamics:<9}  earns {earned:.2f} reward on average")
print(f"what the posterior believes to earn: {exact.posterior_return(gamble):.2f} reward")

# %% [markdown]
# ## A frozen lake
#
# Gymnasium's FrozenLake is a grid of ice (F) with holes (H). Each step goes where it is aimed
# in one case of three, and to the left or the right of that otherwise. Reaching the goal (G)
# pays 1, a hole ends it. The whole table of the environment can be read, so that everything
# below is exact.

# %%
lake = rlai.TabularMDP.from_gymnasium(
    "FrozenLake-v1", map_name="4x4", horizon=30, temperature=0.005, dtype=torch.float64
)
for row in lake.layout:
    print(*row)
causal, posterior = exact.plan(lake, "causal"), exact.plan(lake, "posterior")
print(f"largest ELBO  {causal.objective:7.2f} nats   what control can reach")
print(f"log evidence  {posterior.objective:7.2f} nats   what luck could reach")
print(f"dynamics gap  {posterior.objective - causal.objective:7.2f} nats")

# %% [markdown]
# A temperature as low as 0.005 makes success worth $1/\alpha = 200$ nats. The log evidence is
# nearly all of that: a lucky walk of the coin-tossing prior is improbable, but not by 200 nats.
# No policy can count on such luck, and the best of them falls far short of it.
#
# What do the two rules do? Here are the probabilities of the first action in every cell: the
# longer a bar, the likelier the step.


# %%
def draw_rule(ax, plan, title):
    steps = torch.tensor([[-1.0, 0], [0, 1], [1, 0], [0, -1]])  # left, down, right, up
    for state in range(16):
        row, column = divmod(state, 4)
        ax.text(column - 0.43, row - 0.3, lake.layout[row, column], color=plots.GREY)
        if not lake.terminal[state]:
            for (dx, dy), p in zip(0.45 * steps, plan.policy[0, state], strict=True):
                xs, ys = [column, column + float(p * dx)], [row, row + float(p * dy)]
                ax.plot(xs, ys, color=plots.BLUE, linewidth=5, solid_capstyle="butt")
    edges = [x + 0.5 for x in range(3)]
    ax.set(xlim=(-0.5, 3.5), ylim=(3.5, -0.5), aspect="equal", title=title)
    ax.set(xticks=edges, yticks=edges, xticklabels=[], yticklabels=[])
    ax.grid(color="0.85")


_, axes = plt.subplots(1, 2, figsize=(7.4, 3.8), layout="constrained")
draw_rule(axes[0], causal, "causal: luck is luck")
draw_rule(axes[1], posterior, "posterior: luck will see to it")
plt.show()

# %% [markdown]
# The causal rule is decided, and looks odd at first: beside a hole it steps *away from the
# hole*, even into the wall, since a step may slip to either side but never backwards. (Between
# two holes there is no such step.) That is what one does on real ice.
#
# The posterior's rule hardly minds. Whatever it does, luck will see to it that it arrives, so
# why pay for being decided?
#
# `plot_dynamics_gap` shows where each of them is, on average, over the 30 steps, and what it
# gets.

# %%
axes = plots.plot_dynamics_gap(lake)
axes[0].figure

# %% [markdown]
# From left to right: the posterior's own belief (it arrives for sure), its rule on the real
# ice, and the causal rule on the real ice. The belief of the first and the fate of the second
# are the whole point.
#
# ## In the simulator
#
# Nothing here depends on our tables being right. Both rules can be played in Gymnasium's own
# lake.


# %%
def success_rate(plan, num_episodes):
    """Returns how often the rule of a plan reaches the goal in Gymnasium's lake."""
    env = gymnasium.make("FrozenLake-v1", map_name="4x4", max_episode_steps=30)
    torch.manual_seed(0)
    env.reset(seed=0)
    successes = 0
    for _ in range(num_episodes):
        state, _ = env.reset()
        for t in range(30):
            action = int(torch.multinomial(plan.policy[t, state], 1))
            state, reward, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                successes += reward
                break
    return successes / num_episodes


for name, plan in (("causal", causal), ("posterior", posterior)):
    exactly = float(exact.expected_return(lake, plan))
    played = success_rate(plan, 1000)
    error = math.sqrt(exactly * (1 - exactly) / 1000)
    print(
        f"{name:<9}  arrives: exactly {exactly:.3f}, in 1,000 episodes {played:.3f} ± {error:.3f}"
    )

# %% [markdown]
# ## What a trained policy reaches
#
# A policy that is trained on the ELBO chooses actions, and never the ice. So it is trained
# towards the causal rule. `rlai.compare` measures it and splits the whole distance to the log
# evidence in two: the *policy gap*, which training can close, and the *dynamics gap*, which it
# cannot.
#
# At low temperatures training starts on a plateau: hardly any walk arrives, and so there is
# little to learn from. `tempering=` starts warmer and cools down.

# %%
torch.manual_seed(0)
policy = TabularPolicy(16, 4, horizon=30)
rlai.fit(lake, policy, steps=400, learning_rate=0.1, tempering=0.5, seed=0)
comparison = rlai.compare(lake, policy)
print(comparison.table())

# %%
plots.plot_gaps(comparison).figure

# %% [markdown]
# ## The gap and the temperature
#
# The gap depends on how much there is to be had from luck. At high temperatures nobody cares
# about the reward, neither rule differs from the prior, and the gap closes.

# %%
temperatures = torch.logspace(-2.5, 0.5, 25)
rows = []
for alpha in temperatures.tolist():
    at = lake.replace(temperature=alpha)
    rows.append(
        [
            alpha * float(exact.log_evidence(at)),
            alpha * float(exact.optimal_elbo(at)),
            float(exact.expected_return(at, exact.plan(at, "causal"))),
            float(exact.expected_return(at, exact.plan(at, "posterior"))),
        ]
    )
evidence, elbo, by_causal, by_posterior = zip(*rows, strict=True)

_, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
left.plot(temperatures, evidence, color=plots.GREY, label="α · log evidence")
left.plot(temperatures, elbo, color=plots.BLUE, label="α · largest ELBO")
left.fill_between(
    temperatures, elbo, evidence, color=plots.GREEN, alpha=0.25, label="α · dynamics gap"
)
left.set(xscale="log", xlabel="temperature α (reward units per nat)", ylabel="reward units")
left.legend(frameon=False)
right.plot(temperatures, by_causal, color=plots.BLUE, label="causal rule")
right.plot(temperatures, by_posterior, color=plots.ORANGE, label="posterior's rule")
right.set(xscale="log", xlabel="temperature α (reward units per nat)", ylabel="share that arrives")
right.legend(frameon=False)
plt.show()

# %% [markdown]
# (Multiplied by α, nats become reward units, so that the curves of different temperatures can
# share an axis.) The right picture has the practical side. As α falls the causal rule gets
# better and better, and ends as the best there is. The posterior's rule never does: it becomes
# surer of its luck.
#
# ## What to remember
#
# - *Posterior* answers "which trajectories, luck included, explain success?", *causal* answers
#   "how should one act?". They agree where dynamics are deterministic.
# - Maximum-entropy RL, soft actor-critic among it, is the causal one. So is everything in this
#   library that acts: policies that are trained on the ELBO, and planners by default.
# - log evidence = ELBO of the policy + policy gap + dynamics gap.
#
# ## Exercise
#
# On ice that is not slippery, how large is the dynamics gap? Say what you expect, then read the
# table with `is_slippery=False`. And how much slipperiness does it take? Mix the two lakes,
# `(1 - s) * firm + s * slippery`, and draw the gap over `s` from 0 to 1. (The tables are
# `lake.kernel.probabilities`, `lake.reward_table`, `lake.initial_probabilities` and
# `lake.terminal`.)
#
# The solution is folded away below.

# %% jupyter={"source_hidden": true, "outputs_hidden": true} tags=["solution"]
firm = rlai.TabularMDP.from_gymnasium(
    "FrozenLake-v1", map_name="4x4", is_slippery=False, horizon=30, temperature=0.005
)
shares = torch.linspace(0, 1, 21)
gaps = []
for s in shares:
    mixed = rlai.TabularMDP(
        (1 - s) * firm.kernel.probabilities + s * lake.kernel.probabilities,
        (1 - s) * firm.reward_table + s * lake.reward_table,
        lake.initial_probabilities,
        horizon=30,
        temperature=0.005,
        terminal=lake.terminal,
    )
    gaps.append(float(exact.log_evidence(mixed) - exact.optimal_elbo(mixed)))
for index in (0, 1, 20):
    print(f"s = {float(shares[index]):.2f}: dynamics gap {gaps[index]:6.2f} nats")
_, ax = plt.subplots(figsize=(6.4, 3), layout="constrained")
ax.plot(shares, gaps, color=plots.GREEN)
ax.set(xlabel="slipperiness s", ylabel="dynamics gap (nats)")
plt.show()
