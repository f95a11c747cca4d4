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
# # 1. A first program
#
# A reinforcement-learning problem can be written as a *probabilistic program*: a program that
# tells how trajectories come about. This notebook writes one, and then asks it five questions
# without writing it again:
#
# 1. What happens if nobody steers?
# 2. How likely is success then?
# 3. What should a policy do, and how good is it?
# 4. Which trajectories explain success?
# 5. What does the temperature do?
#
# You need to know Python, a little PyTorch, and what states, actions, rewards and policies are.
# You need not know [Pyro](https://pyro.ai), in which the program is written: two lines of it
# will do.

# %%
# %matplotlib inline
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # by Pyro, without ipywidgets

import itertools
import math

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch

import rl_as_inference as rlai
from rl_as_inference.guides import TabularPolicy
from rl_as_inference.inspect import diagnose, plots

# %% [markdown]
# ## The problem
#
# Four cells in a row. An agent starts in cell 0 and steps left or right, eight times; at the
# ends it stays where it is. Stepping right in cell 2 or 3 pays a reward of 1. So the best that
# can be had is two steps for nothing and then six that pay: a return of 6.

# %%
START = torch.tensor([1.0, 0.0, 0.0, 0.0])
# The next cell after each action: 0 is left, 1 is right.
MOVE = torch.tensor([[0, 1], [0, 2], [1, 3], [2, 3]])
PAYOFF = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
HORIZON = 8


def corridor(temperature=0.5):
    state = pyro.sample("state_0", dist.Categorical(START))
    for t in rlai.steps(HORIZON):
        action = rlai.act(f"action_{t}", state, prior=dist.Categorical(logits=torch.zeros(2)))
        rlai.reward(f"reward_{t}", PAYOFF[state, action], temperature=temperature)
        state = pyro.sample(f"state_{t + 1}", dist.Delta(MOVE[state, action]))


# %% [markdown]
# Read it as a story. `pyro.sample(name, distribution)` draws something by chance. Three words
# are new:
#
# - `rlai.steps(8)` counts the steps, like `range(8)`.
# - `rlai.act(name, state, prior)` draws an action. The `prior` says how an agent acts that
#   wants nothing: here it tosses a coin. `state` is what a policy may look at when it takes
#   over from the prior.
# - `rlai.reward(name, value, temperature)` says that this reward was paid. It multiplies the
#   probability of the whole trajectory by $e^{r/\alpha}$, where $\alpha$ is the temperature. A
#   trajectory that earns a lot gets a large weight.
#
# That last line is the one idea of this library. Rewards are evidence, so that *acting well*
# becomes *inferring which actions were taken by one who did well*.

# %% [markdown]
# ## 1. What happens if nobody steers?
#
# `rlai.simulate` silences the rewards and leaves the rest. Running it once is one walk of an
# agent that tosses coins.

# %%
pyro.set_rng_seed(3)
walk = pyro.poutine.trace(rlai.simulate(corridor)).get_trace()
print("cells visited:", *(int(walk.nodes[f"state_{t}"]["value"]) for t in range(HORIZON + 1)))

# %% [markdown]
# ## 2. How likely is success?
#
# The *evidence* $p(O)$ is the mean weight of such walks,
# $\mathbb{E}\,[e^{\text{return}/\alpha}]$, and its logarithm is measured in *nats* (a nat is
# nearly one and a half bits). The problem is so small that we can write down all $2^8$ action
# sequences and add up. That is the exact answer, in plain Python.


# %%
def earned(actions):
    """Returns the return of a sequence of actions."""
    state, total = 0, 0.0
    for action in actions:
        total += float(PAYOFF[state, action])
        state = int(MOVE[state, action])
    return total


sequences = list(itertools.product((0, 1), repeat=HORIZON))
returns = torch.tensor([earned(actions) for actions in sequences])
log_evidence = float(torch.logsumexp(returns / 0.5, 0) - math.log(len(sequences)))
print(f"mean return without steering  {float(returns.mean()):.2f}")
print(f"log evidence, exactly         {log_evidence:.2f} nats")

# %% [markdown]
# Larger problems cannot be written down like this. There one draws: let the agent toss its
# coins many times, and average the weights. The estimate comes with its standard error.

# %%
torch.manual_seed(0)
estimate = rlai.estimate_log_evidence(corridor, num_proposals=4000)
print(f"log evidence, from 4,000 walks {estimate.mean:.2f} ± {estimate.standard_error:.2f} nats")

# %% [markdown]
# ## 3. What should a policy do?
#
# Now let a policy take the place of the coin. A policy is anything that maps `(state, t)` to a
# distribution over actions; the simplest is a table with one row for each cell and each step.
#
# How good is it? The measure is the *evidence lower bound*, or ELBO:
#
# $$
# \mathrm{ELBO}(\pi) = \mathbb{E}_\pi \Big[ \sum_t \frac{r_t}{\alpha} + \log p(a_t \mid s_t)
# - \log \pi(a_t \mid s_t) \Big] \;\le\; \log p(O).
# $$
#
# The first part rewards earning. The rest is what it costs to differ from the coin: a policy
# that always goes right pays $\log 2$ nats a step. `rlai.fit` climbs the ELBO by gradients.

# %%
policy = TabularPolicy(4, 2, horizon=HORIZON)
before = rlai.estimate_elbo(corridor, policy)
result = rlai.fit(corridor, policy, steps=250, learning_rate=0.1, seed=0)
after = rlai.estimate_elbo(corridor, policy)
print(f"ELBO before training  {before.mean:6.2f} ± {before.standard_error:.2f} nats")
print(f"ELBO after training   {after.mean:6.2f} ± {after.standard_error:.2f} nats")
print(f"log evidence          {log_evidence:6.2f} nats")

# %%
# The library's pictures are Matplotlib axes. A notebook shows what a cell ends with: their figure.
plots.plot_elbo_history(result.elbo, optimal_elbo=log_evidence).figure

# %% [markdown]
# The curve ends at the dashed line, and can go no higher, but for noise: every point is an
# estimate from 256 walks. In this corridor every step leads where it is aimed, so the best
# policy reaches the log evidence itself. (Where luck plays a part it cannot, as the [next
# notebook](2-lake-and-dynamics-gap.ipynb) shows.)
#
# And what does the policy do? Here is its probability of stepping right, cell by cell and step
# by step.

# %%
probabilities = policy.logits.detach().softmax(-1)[..., 1].T
_, ax = plt.subplots(figsize=(6.4, 2.6), layout="constrained")
image = ax.imshow(probabilities, cmap="cividis", vmin=0, vmax=1, aspect="auto")
for cell, t in itertools.product(range(4), range(HORIZON)):
    value = probabilities[cell, t]
    shade = "black" if value > 0.5 else "white"
    ax.text(t, cell, f"{float(value):.2f}", ha="center", va="center", color=shade, fontsize=8)
ax.set(xlabel="step t", ylabel="cell", yticks=range(4))
plt.colorbar(image, label="probability of a step right")
plt.show()

# %% [markdown]
# Where a step right pays, it goes right about nine times of ten, or more often if more follows
# from it. In cells 0 and 1 it becomes undecided towards the end, when there is nothing left to
# earn from there: to differ from the coin would cost nats and buy nothing. (Cells that cannot
# be reached at a step keep the table's first value, one half.) The last step can be checked by
# hand: with one reward of 1 to be had, a step right has the probability
# $e^{1/\alpha} / (e^{1/\alpha} + 1)$.

# %%
by_hand = math.exp(1 / 0.5) / (math.exp(1 / 0.5) + 1)
print(f"last step in cell 3: by hand {by_hand:.3f}, the trained policy {probabilities[3, -1]:.3f}")

# %% [markdown]
# ## 4. Which trajectories explain success?
#
# The *posterior* is the distribution of trajectories given success: every walk with its weight
# $e^{\text{return}/\alpha}$. `rlai.posterior` draws from it. Here it takes walks of the trained
# policy, and corrects by weights what the policy gets wrong. `diagnose` says whether the draws
# can be trusted.

# %%
torch.manual_seed(0)
draws = rlai.posterior(corridor, policy, method="importance", num_draws=4000)
print(diagnose(draws).text)

# %%
weights = (returns / 0.5).softmax(0)
exactly = float((weights * returns).sum())
print(f"posterior mean return, from draws {float(draws.sample_stats['return'].mean()):.2f} reward")
print(f"posterior mean return, exactly    {exactly:.2f} reward")

# %% [markdown]
# The draws are [ArviZ](https://python.arviz.org) data, a standard container for samples, so
# that all its tools work on them. The library has pictures of its own, too: here the returns of
# the coin, of the trained policy and of the posterior.

# %%
torch.manual_seed(0)
acted = rlai.posterior(corridor, policy, method="guide", num_draws=4000)
coin = rlai.posterior(corridor, None, method="guide", num_draws=4000)
plots.plot_returns({"coin": coin, "trained policy": acted, "posterior": draws}).figure

# %% [markdown]
# Policy and posterior are nearly the same here, as the ELBO said: what it lacks to the log
# evidence *is* the divergence between the two.

# %% [markdown]
# ## 5. What does the temperature do?
#
# The temperature $\alpha$ is in reward units per nat: the price of differing from the coin. At
# a high temperature nothing is worth the effort and the agent tosses coins; at a low one it
# does whatever earns the most. We have all 256 sequences, so the whole curve is exact.

# %%
temperatures = torch.logspace(-1.5, 1.5, 60)
mean_return = [float(((returns / alpha).softmax(0) * returns).sum()) for alpha in temperatures]
_, ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
ax.plot(temperatures, mean_return, color=plots.BLUE, label="posterior")
ax.axhline(float(returns.mean()), color=plots.GREY, linestyle=":", label="coin")
ax.axhline(
    float(returns.max()), color=plots.GREY, linestyle="--", label="the most that can be earned"
)
ax.axvline(0.5, color=plots.ORANGE, linewidth=1, label="α = 0.5, as above")
ax.set(xscale="log", xlabel="temperature α (reward units per nat)", ylabel="mean return (reward)")
ax.legend(frameon=False, loc="center left")
plt.show()

# %% [markdown]
# ## Exercise
#
# Put something in the agent's way: let a step left in cell 0 pay 0.7, so that eight steps at
# home earn nearly as much as the best of the long ways. At α = 0.5, what share of the
# posterior's trajectories stays at home all the time (all eight actions are 0)? And at α = 1?
# Work it out from the list of sequences, then train a policy and see whether it agrees.
#
# The solution is folded away below.

# %% jupyter={"source_hidden": true, "outputs_hidden": true} tags=["solution"]
PAYOFF[0, 0] = 0.7
returns = torch.tensor([earned(actions) for actions in sequences])
for alpha in (0.5, 1.0):
    share = float((returns / alpha).softmax(0)[sequences.index((0,) * HORIZON)])
    policy = TabularPolicy(4, 2, horizon=HORIZON)
    torch.manual_seed(0)
    rlai.fit(lambda alpha=alpha: corridor(alpha), policy, steps=300, learning_rate=0.1, seed=0)
    stays = float(policy.logits.detach()[:, 0].softmax(-1)[:, 0].prod())
    print(f"α = {alpha}: stays at home, exactly {share:.3f}, the trained policy {stays:.3f}")
