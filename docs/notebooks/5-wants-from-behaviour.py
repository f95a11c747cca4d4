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
# # 5. Wants from behaviour
#
# So far a reward was given, and we asked what to do. Turn it round: **someone acts; what must
# they want?** The same program answers, read backwards. Put priors on what is unknown about the
# agent, condition on what it did, and infer. This is inverse reinforcement learning, with
# honest error bars.

# %%
# %matplotlib inline
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # by Pyro, without ipywidgets

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch

import rl_as_inference as rlai
from rl_as_inference import exact
from rl_as_inference.inspect import plots
from rl_as_inference.models import gridworld

torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## A gambler
#
# Someone has the choice between a *sure* reward of 1 and a *gamble* that wins a prize in one
# case of two. We watch ten choices: eight gambles, two sure things. What is the prize worth to
# them?
#
# A *family* is a program that draws what is unknown, and returns the process that the agent
# faces. Here the value of the prize is unknown, a priori around 2 give or take 1. The agent
# acts softly, at a temperature of 0.25: better actions are likelier, and none is ruled out.

# %%
START = torch.tensor([1.0, 0.0, 0.0])
MOVE = torch.zeros(
    3, 2, 3
)  # MOVE[state, action, next state]; state 0 chooses, in 2 the prize is won
MOVE[0, 0, 1] = 1.0
MOVE[0, 1, 1] = MOVE[0, 1, 2] = 0.5
MOVE[1:, :, 1] = 1.0
SURE, WON = torch.zeros(2, 3, 2, 3)
SURE[0, 0, 1] = WON[0, 1, 2] = 1.0


def game(prize, temperature=0.25):
    return rlai.TabularMDP(MOVE, SURE + prize * WON, START, horizon=1, temperature=temperature)


def gambler():
    prize = pyro.sample("prize", dist.Normal(2.0, 1.0))
    return game(prize)


# %% [markdown]
# Demonstrations are states and actions: here four gambles that were lost (the end is state 1),
# four that were won (state 2), and two sure things.

# %% tags=["varies"]
LOST, WIN, SAFE = ([0, 1], [1]), ([0, 2], [1]), ([0, 1], [0])
seen = [LOST] * 4 + [WIN] * 4 + [SAFE] * 2
found = rlai.infer_agent(gambler, seen, num_draws=500, seed=0)
prizes = found.posterior["prize"].values.ravel()
print(f"the prize is worth {prizes.mean():.2f} ± {prizes.std():.2f}")

# %% [markdown]
# More than 2, then: at 2 the gamble would be worth exactly the sure thing, and it would be
# taken every other time.
#
# `infer_agent` drew these values by Hamiltonian Monte Carlo (NUTS), planning anew for every
# value that it tried. With a single unknown we can check it: plan at every point of a fine
# grid, multiply the probabilities of the ten choices with the prior, and normalise.

# %%
grid = torch.linspace(-1, 6, 701)
log_density = dist.Normal(2.0, 1.0).log_prob(grid)
for index, prize in enumerate(grid):
    sure, gamble = exact.plan(game(prize)).policy[0, 0].log()
    log_density[index] += 8 * gamble + 2 * sure
density = log_density.softmax(0) / (grid[1] - grid[0])
mean = float((grid * log_density.softmax(0)).sum())
spread = float(((grid - mean).square() * log_density.softmax(0)).sum().sqrt())
print(f"exactly            {mean:.2f} ± {spread:.2f}")

_, ax = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
ax.hist(prizes, bins=30, density=True, color=plots.BLUE, alpha=0.35, label="500 draws")
ax.plot(grid, density, color=plots.BLUE, label="exact posterior")
ax.plot(grid, dist.Normal(2.0, 1.0).log_prob(grid).exp(), color=plots.GREY, label="prior")
ax.set(xlabel="value of the prize (reward)", ylabel="density")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Does the gambler know that luck is luck?
#
# The inference has a model of the agent in it. By default the agent knows the odds
# (`dynamics="causal"`). Suppose that it believes in its luck instead, and acts as the exact
# posterior given success would ([notebook 2](2-lake-and-dynamics-gap.ipynb)). Then the same
# choices mean something else. `method="map"` gives the single likeliest value.

# %%
for dynamics in ("causal", "posterior"):
    likeliest = rlai.infer_agent(gambler, seen, method="map", dynamics=dynamics)
    print(f"{dynamics:<9}  the prize is worth {likeliest.posterior['prize'].item():.2f}")

# %% [markdown]
# One who believes in luck needs no large prize to gamble. Behaviour alone does not tell the two
# apart: wants and beliefs have to be inferred together.
#
# ## Wants and temperature
#
# What if the temperature is unknown as well? Is this someone who wants the prize a lot and
# chooses carelessly, or who wants it a little and chooses well? Let the temperature have a
# prior, too, and watch for longer: a hundred choices, with gambles again eight times of ten.
# The call warns; we keep what it says, since it is the lesson.


# %% tags=["varies"]
def any_gambler():
    prize = pyro.sample("prize", dist.Normal(2.0, 1.0))
    temperature = pyro.sample("temperature", dist.LogNormal(np.log(0.25), 0.8))
    return game(prize, temperature)


with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    both = rlai.infer_agent(any_gambler, seen * 10, num_draws=500, seed=0)
prize = both.posterior["prize"].values.ravel()
temperature = both.posterior["temperature"].values.ravel()
print(f"prize        {prize.mean():.2f} ± {prize.std():.2f}")
print(f"temperature  {temperature.mean():.2f} ± {temperature.std():.2f}")
print(textwrap.fill(str(said[-1].message), 96))

# %%
_, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
ax.scatter(temperature, prize, s=8, color=plots.BLUE, alpha=0.5, label="posterior draws")
line = np.geomspace(temperature.min(), temperature.max(), 50)
ax.plot(line, 2 + 2 * np.log(4) * line, color=plots.ORANGE, label="gambles 8 times of 10")
ax.set(xscale="log", ylim=(0, 5), xlabel="temperature α (reward units per nat)")
ax.set(ylabel="value of the prize (reward)")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# Every point on the orange line gambles eight times of ten: the probability depends on
# $(\text{prize}/2 - 1)/\alpha$ alone. The data pick the line, and only the prior says where on
# it. More choices of the same kind make the cloud thinner and no shorter; choices with *other*
# odds would shorten it.
#
# ## Where is she going?
#
# Wants can be goals. A walker crosses a grid, and has one of three goals in three corners. We
# do not know which. After each of her steps, what should we believe? The goal is a discrete
# unknown, which is summed over exactly: nothing is sampled.

# %%
SIZE = 5
GOALS = {"top right": (0, 4), "bottom right": (4, 4), "bottom left": (4, 0)}
LEFT, DOWN, RIGHT, UP = range(4)
walk = [RIGHT, RIGHT, DOWN, RIGHT, DOWN, RIGHT, DOWN, DOWN]


def walker():
    goal = pyro.sample("goal", dist.Categorical(torch.ones(3) / 3))
    place = list(GOALS.values())[int(goal)]
    return gridworld(SIZE, SIZE, None, 0.9, 0.2, slip=0.0, goal=place)


row = column = 0
cells = [(row, column)]
for action in walk:
    down, right = ((0, -1), (1, 0), (0, 1), (-1, 0))[action]
    row, column = row + down, column + right
    cells.append((row, column))
states = [row * SIZE + column for row, column in cells]

beliefs = [[1 / 3] * 3]
for steps in range(1, len(walk) + 1):
    seen = [(states[: steps + 1], walk[:steps])]
    data = rlai.infer_agent(walker, seen, num_draws=1, num_chains=1)
    beliefs.append(data.sample_stats["probability_goal"].values.ravel().tolist())
print("steps seen ", *(f"{name:>13}" for name in GOALS))
for steps, belief in enumerate(beliefs):
    print(f"{steps:>10} ", *(f"{p:13.3f}" for p in belief))

# %%
_, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), width_ratios=(1, 1.7), layout="constrained")
left.plot([c for _, c in cells], [r for r, _ in cells], color="black", marker="o", markersize=4)
for index, (name, (r, c)) in enumerate(GOALS.items()):
    colour = (plots.BLUE, plots.ORANGE, plots.GREEN)[index]
    left.plot(c, r, marker="*", markersize=18, color=colour)
    right.plot([belief[index] for belief in beliefs], marker="o", color=colour, label=name)
left.set(xlim=(-0.5, 4.5), ylim=(4.5, -0.5), aspect="equal", xlabel="column", ylabel="row")
right.set(xlabel="steps seen", ylabel="posterior probability of the goal", ylim=(-0.03, 1.03))
right.legend(frameon=False)
plt.show()

# %% [markdown]
# The first step to the right rules out the bottom left. Of the other two it speaks for the top
# right, whose walker has no other way to go, and leaves it open. The first step down decides.
# From then on we know where she goes, long before she gets there.
#
# ## What to remember
#
# - A family draws the unknown and returns a process, or a process and a policy for agents that
#   plan in some other way. The rest is inference.
# - Behaviour says what is wanted *relative to the temperature*, and *given* what the agent
#   believes.
# - With one unknown, check on a grid. It is a few lines.
#
# ## Exercise
#
# How many choices does it take to know the prize within ± 0.1? Let the gambler gamble 8 times
# of 10 again, but in 10, 40, 160 and 640 choices, and look at the posterior's standard
# deviation (use the grid, or `infer_agent`). By which factor does it shrink each time?
#
# The solution is folded away below.

# %% jupyter={"source_hidden": true, "outputs_hidden": true} tags=["solution"]
sure, gamble = torch.stack([exact.plan(game(prize)).policy[0, 0].log() for prize in grid], -1)
for count in (10, 40, 160, 640):
    log_density = dist.Normal(2.0, 1.0).log_prob(grid) + count * (0.8 * gamble + 0.2 * sure)
    weights = log_density.softmax(0)
    mean = (grid * weights).sum()
    spread = ((grid - mean).square() * weights).sum().sqrt()
    print(f"{count:>4} choices: {mean:.2f} ± {spread:.3f}")

# %% [markdown] jupyter={"source_hidden": true} tags=["solution"]
# Four times as many choices halve the error, once the data say more than the prior. It takes
# about 160 to know the prize within ± 0.1.
