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
# # 4. Posteriors
#
# *Which trajectories explain success?* The answer is a distribution over whole trajectories,
# and there are many ways to draw from it. Some are exact, some are only right if given enough
# draws, and one answers another question altogether. This notebook draws from the same
# posterior in four ways, holds each against exact answers, and shows how to tell good draws
# from bad ones **where there is no exact answer to hold them against**.

# %%
# %matplotlib inline
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # by Pyro, without ipywidgets

import matplotlib.pyplot as plt
import torch

import rl_as_inference as rlai
from rl_as_inference import exact
from rl_as_inference.guides import TabularPolicy
from rl_as_inference.inspect import diagnose, load_posterior, plots, save_posterior
from rl_as_inference.models import double_integrator, gridworld

# %% [markdown]
# ## The problem
#
# A grid of 4 × 4 cells. With probability 0.3 the slippery ground decides where a step goes.
# There are twelve steps, and each that begins at the goal (bottom right) pays 1.

# %%
grid = gridworld(4, 4, horizon=12, temperature=0.5, slip=0.3)
log_evidence = float(exact.log_evidence(grid))
believed = float(exact.posterior_return(grid))
print(f"log evidence                 {log_evidence:.2f} nats")
print(f"the posterior's mean return {believed:.2f} reward")

# %% [markdown]
# ## Exact draws
#
# For finite processes the posterior can be drawn from directly: soft values are computed
# backwards, then states and actions are drawn forwards. What comes back is an ArviZ
# `InferenceData` (a `DataTree` with ArviZ 1), with one array for states, one for actions, one
# for rewards, and their dimensions named.

# %%
torch.manual_seed(0)
draws = rlai.posterior(grid, method="exact", num_draws=4000)
for name, values in draws.posterior.items():
    print(f"{name:<12} {dict(values.sizes)}")
returns = draws.sample_stats["return"]
print(f"mean return {float(returns.mean()):.2f} reward, exactly {believed:.2f}")

# %% [markdown]
# Draws are there to be looked at. Where do successful trajectories spend their time, and what
# do they do, step by step?

# %%
_, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
plots.plot_occupancy(draws, layout=grid.layout, ax=left, title="where")
plots.plot_actions(draws, names=["left", "down", "right", "up"], ax=right)
right.set_title("what", fontsize=10)
plt.show()

# %% [markdown]
# They go right and down for about six steps. Once they have arrived nothing depends on actions
# any more, so all four become equally likely: the posterior claims no more than it must.
#
# Since the draws are ordinary arrays, any question is a line. Of those who succeed, how many
# are at the goal after six steps, the least that it takes? The exact answer is a row of
# `posterior_occupancy`.

# %%
goal = grid.num_states - 1
arrived = float((draws.posterior["state"].sel(time=6) == goal).mean())
exactly = float(exact.posterior_occupancy(grid)[6, goal])
print(f"at the goal after six steps: {arrived:.3f} of the draws, {exactly:.3f} exactly")

# %% [markdown]
# ## What a policy does is another question
#
# Now train a policy on the ELBO, and let it walk. Its returns are lower than the posterior's,
# and that is no fault of training. The policy has to live with the slippery ground, and the
# posterior believes that the ground was kind ([notebook 2](2-lake-and-dynamics-gap.ipynb) is
# about this).

# %%
torch.manual_seed(0)
policy = TabularPolicy(16, 4, horizon=12)
rlai.fit(grid, policy, steps=200, learning_rate=0.1, seed=0)
acted = rlai.posterior(grid, policy, method="guide", num_draws=4000)
print(f"our policy earns      {float(acted.sample_stats['return'].mean()):.2f} reward")
print(f"the best one, exactly {exact.expected_return(grid, exact.plan(grid)):.2f} reward")
plots.plot_returns({"policy": acted, "posterior": draws}).figure

# %% [markdown]
# (The *best one* is the policy of the largest ELBO, `exact.plan(grid)`.)
#
# ## Importance sampling
#
# Most problems have no exact draws. But every trajectory $\tau$ that some rule $q$ walked has a
# *weight* $p(\tau, O) / q(\tau)$, which says how much more the posterior likes it than $q$ did.
# Resampling by weight turns walks into posterior draws, and the mean weight estimates the
# evidence. It works as well as the weights are even.

# %%
torch.manual_seed(0)
weighed = rlai.posterior(grid, policy, method="importance", num_draws=4000)
mean = float(weighed.sample_stats["return"].mean())
notes = weighed.posterior.attrs
error = notes["log_evidence_standard_error"]
print(f"mean return   {mean:.2f} reward, exactly {believed:.2f}")
print(f"log evidence  {notes['log_evidence']:.2f} ± {error:.2f} nats, exactly {log_evidence:.2f}")
print(f"worth         {notes['effective_sample_size']:.0f} draws of 40,000 walks")

# %% [markdown]
# Forty thousand walks, and they are worth a few hundred draws. A good *policy* is not a good
# *proposal*: it walks as the ground allows, and the lucky trajectories that make up the
# posterior are rare among its walks. When one of them does come, it carries a huge weight.
#
# `plot_weights` shows them in order. Even weights would lie on the dashed line.

# %%
plots.plot_weights(weighed).figure

# %% [markdown]
# ## Should I trust these draws?
#
# Here we know that we should not. Without exact answers, ask `diagnose`. It looks at what the
# method left behind: effective sample size, the tail of the weights (Pareto k̂, which should be
# below 0.7), the spread between runs.

# %%
for name, data in (("exact", draws), ("importance", weighed)):
    verdict = diagnose(data)
    print(f"{name}: {'trusted' if verdict.trusted else 'not trusted'}")
    print(f"  {verdict.text}")

# %% [markdown]
# ## Sequential Monte Carlo
#
# A remedy is not to wait with the weights until the end. Sequential Monte Carlo (SMC) walks
# many particles side by side and resamples after every step, so that hopeless ones are dropped
# early and promising ones are copied. Where the process is known it can also look ahead, by the
# exact messages.

# %%
torch.manual_seed(0)
filtered = rlai.posterior(grid, method="smc", num_draws=4000)
blind = rlai.posterior(grid, policy, method="smc", critic=None, num_draws=4000)
rows = [("exact", draws), ("importance", weighed), ("smc", filtered), ("smc, blind", blind)]
print("method        mean return   log evidence     trusted")
for name, data in rows:
    mean = float(data.sample_stats["return"].mean())
    notes = data.posterior.attrs
    estimate = "              "
    if "log_evidence" in notes:
        error = notes["log_evidence_standard_error"]
        estimate = f"{notes['log_evidence']:6.2f} ± {error:.2f}"
    print(f"{name:<12}  {mean:11.2f}   {estimate:<14}   {diagnose(data).trusted}")
print(f"exactly       {believed:11.2f}   {log_evidence:6.2f}")

# %% [markdown]
# The *blind* filter does not look ahead; it proposes by our policy and only resamples. It is
# off by more, and says so by its larger standard error.
#
# ## Continuous states
#
# The same calls work for a cart that a force should bring to rest at the origin, in gusty wind.
# Its dynamics are linear and its costs quadratic, so that everything is exact here, too.

# %%
torch.manual_seed(0)
cart = double_integrator()
controlled = rlai.posterior(cart, method="exact", dynamics="causal", num_draws=1000)
lucky = rlai.posterior(cart, method="exact", num_draws=1000)
_, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
titles = ("causal: the wind is what it is", "posterior: the wind helps")
for ax, data, title in zip(axes, (controlled, lucky), titles, strict=True):
    plots.plot_fan(data, ax=ax)
    ax.set_title(title, fontsize=10)
    ax.set_ylabel("position")
plt.show()

# %% [markdown]
# Lines are medians, bands hold 50 % and 90 % of the draws. Without steering (grey) the cart
# stays out at 2 and drifts. Both posteriors bring it home, and look alike; but the exact one
# believes in luck here, too: in helpful gusts, and even in a start that was nearer.

# %%
for name, data in (("causal", controlled), ("posterior", lucky)):
    first = float(data.posterior["state"].sel(time=0, state_dim_0=0).mean())
    earned = float(data.sample_stats["return"].mean())
    print(f"{name:<9}  position at the start {first:.2f}, return {earned:.1f} reward, on average")

# %% [markdown]
# ## Keeping draws
#
# Draws are saved as NetCDF, a file format that ArviZ, xarray and many other tools read.

# %%
save_posterior(filtered, "posterior.nc", overwrite=True)
again = load_posterior("posterior.nc")
print(again.posterior.equals(filtered.posterior), again.posterior.attrs["method"])

# %% [markdown]
# ## What to remember
#
# - `"exact"` where it is available, else `"smc"` or `"importance"`; `"guide"` answers what a
#   policy does, which is another question.
# - Always ask `diagnose`. A number of draws says nothing about what they are worth.
# - The better policy may be the worse proposal.
#
# ## Exercise
#
# Look for a better proposal. The posterior has an action rule of its own,
# `exact.plan(grid, "posterior")`; as a policy it is worse than ours. Say what you expect of it
# as a proposal, then compare the two: expected return, effective sample size, verdict.
#
# The solution is folded away below.

# %% jupyter={"source_hidden": true, "outputs_hidden": true} tags=["solution"]
torch.manual_seed(0)
for name, rule in (("our policy", policy), ("posterior's rule", exact.plan(grid, "posterior"))):
    data = rlai.posterior(grid, rule, method="importance", num_draws=4000)
    earns = exact.expected_return(grid, rule)
    size = data.posterior.attrs["effective_sample_size"]
    trusted = diagnose(data).trusted
    print(f"{name:<17} earns {earns:.2f}, worth {size:4.0f} draws, trusted: {trusted}")
