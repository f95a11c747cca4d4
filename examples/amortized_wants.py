"""How well does a neural policy stand in for exact planning when we infer what somebody wants?

The driver of a cart wants it at the origin, and how much she wants that is unknown: the weight of the position's cost.
The dynamics are linear and Gaussian, so that her soft-optimal plan is exact for every weight, and so is the posterior
of the weight given what she did. Where planning is not exact, a policy can be amortized instead: one network that is
told the weight, trained on the ELBO over weights drawn from the prior, takes the plan's place in the likelihood.
"""

import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import rl_as_inference as rlai
from rl_as_inference.guides import GaussianPolicy
from rl_as_inference.models import double_integrator

HORIZON = 8
CART = double_integrator(HORIZON, dt=0.5, dtype=torch.float64)
TRUTH = torch.tensor(2.0).double()
SPREAD = torch.tensor(0.7).double()


def cart(weight: Tensor) -> rlai.LinearGaussianMDP:
    """Returns the cart whose position costs ``weight``."""
    cost = torch.diag(torch.stack([weight, CART.state_cost[1, 1]]))
    return rlai.LinearGaussianMDP(
        CART.A,
        CART.B,
        CART.noise_cov,
        cost,
        CART.action_cost,
        CART.initial_mean,
        CART.initial_cov,
        CART.action_prior_cov,
        horizon=HORIZON,
    )


def carts() -> None:
    """The program of all the carts at once: it draws the weight first, and shows it to whoever acts."""
    velocity_cost, force_cost = CART.state_cost[1, 1], CART.action_cost[0, 0]
    log_weight = pyro.sample("log_weight", dist.Normal(torch.zeros_like(SPREAD), SPREAD))
    state = pyro.sample("state_0", CART.initial())
    for t in rlai.steps(HORIZON):
        action = rlai.act(f"action_{t}", told(state, log_weight), CART.prior(state))
        position, velocity = state.unbind(-1)
        cost = log_weight.exp() * position**2 + velocity_cost * velocity**2 + force_cost * action[..., 0] ** 2
        rlai.reward(f"reward_{t}", -cost / 2)
        state = pyro.sample(f"state_{t + 1}", CART.transition(state, action))


def told(state: Tensor, log_weight: Tensor) -> Tensor:
    """Returns what the network sees: position, velocity and log weight."""
    return torch.cat([state, log_weight.expand(state.shape[:-1])[..., None]], -1)


def amortized(steps: int, rate: float = 0.03) -> GaussianPolicy:
    """Returns a network from position, velocity, log weight and time to the force, trained on the ELBO."""
    torch.manual_seed(0)
    seen = gymnasium.spaces.Box(-np.inf, np.inf, (3,), dtype=np.float64)
    policy = GaussianPolicy(seen, 1, horizon=HORIZON, hidden_sizes=(32, 32)).double()
    with pyro.validation_enabled(False):  # a third faster
        rlai.fit(carts, policy, steps=steps, estimator="pathwise", learning_rate=rate, seed=0, progress=False)
    return policy.requires_grad_(False)


def exact_family() -> Any:
    weight = pyro.sample("weight", dist.LogNormal(torch.zeros_like(SPREAD), SPREAD))
    return cart(weight)


def amortized_family(policy: GaussianPolicy) -> Any:
    """The same unknown, with the network told the weight in the place of the exact plan."""
    weight = pyro.sample("weight", dist.LogNormal(torch.zeros_like(SPREAD), SPREAD))
    return cart(weight), lambda state, t: policy(told(state, weight.log()), t)


def policy_gap(policy: GaussianPolicy, weight: Tensor) -> rlai.Estimate:
    """Returns how far the network's ELBO is below the plan's, from rollouts that share their random numbers."""
    process, logs = cart(weight), []
    for actor in (rlai.exact.plan(process), lambda state, t: policy(told(state, weight.log()), t)):
        pyro.set_rng_seed(1)
        logs.append(process.rollout(actor, 10_000).log_weight())
    return rlai.Estimate.of(logs[0] - logs[1])


def draw(posteriors: dict[str, np.ndarray[Any, Any]], path: Path) -> None:
    from matplotlib.figure import Figure
    from scipy.stats import gaussian_kde

    from rl_as_inference.style import BLACK, BLUE, GREY, ORANGE, tidy

    axes = Figure(figsize=(6.4, 3.8), layout="constrained").subplots()
    weights = np.linspace(0.02, 4.5, 300)
    prior = dist.LogNormal(0.0, SPREAD).log_prob(torch.as_tensor(weights)).exp()
    axes.plot(weights, prior, color=GREY, linestyle=":", label="prior")
    for (name, draws), color, style in zip(posteriors.items(), (BLUE, ORANGE), ("-", "--"), strict=True):
        # The density of the logarithm, which is nearly Gaussian, carried over to the weight.
        density = gaussian_kde(np.log(draws))(np.log(weights)) / weights
        axes.plot(weights, density, color=color, linestyle=style, linewidth=2, label=name)
    axes.axvline(float(TRUTH), color=BLACK, linewidth=1, label="truth")
    axes.set_xlim(0, weights[-1])
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    tidy(axes, "weight of the position's cost (reward units per m²)", "density")
    axes.figure.savefig(path, dpi=130)


def main(quick: bool = False, picture: Path | None = None) -> None:
    import arviz

    pyro.set_rng_seed(0)
    driver = cart(TRUTH)
    shown = driver.rollout(rlai.exact.plan(driver), 20)

    policy = amortized(110 if quick else 800)
    print("policy gap of the network, told the weight (nats ± standard error)")
    for weight in (0.5, 1.0, 2.0):
        print(f"  weight {weight:3.1f}        {policy_gap(policy, torch.tensor(weight).double())}")

    # A Gaussian of the log weight is close to this posterior, and its draws are independent.
    how: dict[str, Any] = {"method": "svi", "num_draws": 2000}
    if quick:
        how = {"method": "nuts", "num_draws": 40, "num_chains": 1, "num_warmup": 10}
    posteriors, errors = {}, {}
    for name, family in (("exact plan", exact_family), ("amortized policy", lambda: amortized_family(policy))):
        answer = rlai.infer_agent(family, shown, seed=0, **how)
        posteriors[name] = answer.posterior["weight"].values.ravel()
        errors[name] = float(arviz.mcse(answer.posterior)["weight"])
    print(f"weight given 20 demonstrations, by {how['method']}: mean ± standard deviation (truth {float(TRUTH)})")
    for name, draws in posteriors.items():
        print(f"  {name:16}   {draws.mean():5.2f} ± {draws.std():.2f}   (error of the mean {errors[name]:.2f})")
    exactly, amortizing = posteriors.values()
    print(
        f"difference of means   {(amortizing.mean() - exactly.mean()) / exactly.std():5.2f} exact standard deviations"
    )
    print(f"ratio of deviations   {amortizing.std() / exactly.std():5.2f}")
    if picture is not None:
        draw(posteriors, picture)


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], picture=Path("amortized_wants.png"))
