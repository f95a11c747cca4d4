"""What does a policy cost in bits, and which action prior makes it cheapest?

A policy's information cost is E Σ_t γ^t log π(a_t|s_t)/p(a_t), what must be known of the state to act so. The
action prior is part of the model; let it be a parameter, and train it by the same ELBO. The optimum is
p(a) = the policy's own average, the cost is then the mutual information between state and action, and
the temperature buys reward with bits. For one step that is rate-distortion, whose exact answer is the
algorithm of Blahut and Arimoto.
"""

import math
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from torch import Tensor

import rl_as_inference as rlai
from rl_as_inference import exact, style, tables
from rl_as_inference.guides import TabularPolicy

F64 = torch.float64
BIT = math.log(2)


def task(size: int = 8) -> tuple[Tensor, Tensor]:
    """Returns ``p(s)``, ``(S,)``, and the reward ``(S, A)``: say which of ``size`` points on a line it was.

    An answer pays 1 if right and less by the squared distance. The middle points come up more often.
    """
    place = torch.linspace(-1, 1, size, dtype=F64)
    often = (-2 * place**2).exp()
    return often / often.sum(), 1 - (place[:, None] - place) ** 2


def contextual(chance: Tensor, reward: Tensor, alpha: float, prior: Tensor | None = None) -> rlai.TabularMDP:
    """Returns the one-step process: a state is drawn, an action answers it, and that is all."""
    size, count = reward.shape
    stay = torch.eye(size, dtype=F64)[:, None].expand(size, count, size)
    return rlai.TabularMDP(stay, reward, chance, horizon=1, temperature=alpha, action_prior=prior)


def blahut_arimoto(chance: Tensor, reward: Tensor, alpha: float) -> tuple[float, float]:
    """Returns rate (nats) and mean reward of the best channel at slope ``1/α``.

    Blahut (1972), "Computation of channel capacity and rate-distortion functions"; the distortion is minus
    the reward. Nothing of this library is used.
    """
    kernel = (reward / alpha).exp()
    output = torch.full((reward.shape[1],), 1 / reward.shape[1], dtype=F64)
    for _ in range(200_000):
        ratio = chance / (kernel @ output) @ kernel  # what each output's probability is multiplied by
        output = output * ratio
        # Blahut's bounds: the objective is within log max ratio of its optimum.
        if float(ratio.max().log()) < 1e-10:
            break
    channel = kernel * output
    channel = channel / channel.sum(1, keepdim=True)
    joint = chance[:, None] * channel
    marginal = joint.sum(0)
    rate = torch.where(joint > 0, joint * (channel / marginal).log(), 0.0).sum()
    return float(rate), float((joint * reward).sum())


def train_prior(chance: Tensor, reward: Tensor, alpha: float, steps: int = 200) -> tuple[float, Tensor]:
    """Returns the largest ELBO over policies and priors, in nats, and the prior that reaches it.

    The best policy for a prior is known, so the ELBO is :func:`exact.optimal_elbo`, a function of the
    prior alone, differentiable in it; second-order ascent on its logits does the rest.
    """
    logits = torch.zeros(reward.shape[1], dtype=F64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits],
        max_iter=steps,
        tolerance_grad=1e-12,
        tolerance_change=1e-16,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -exact.optimal_elbo(contextual(chance, reward, alpha, logits.softmax(0)))
        loss.backward()
        return loss

    optimizer.step(closure)
    prior = logits.detach().softmax(0)
    return float(exact.optimal_elbo(contextual(chance, reward, alpha, prior))), prior


def train_by_svi(chance: Tensor, reward: Tensor, alpha: float, steps: int) -> tuple[Tensor, Tensor]:
    """Returns prior ``(A,)`` and policy ``(S, A)``, trained together by Pyro's SVI on a program with a parameter."""
    size, count = reward.shape
    pyro.clear_param_store()

    def program() -> None:
        prior = pyro.param("action_prior", torch.full((count,), 1 / count, dtype=F64), dist.constraints.simplex)
        with pyro.plate("questions", 512):
            state = pyro.sample("state_0", dist.Categorical(chance))
            for t in rlai.steps(1):
                action = rlai.act(f"action_{t}", state, prior=dist.Categorical(prior))
                rlai.reward(f"reward_{t}", reward[state, action], temperature=alpha)

    policy = TabularPolicy(size, count, horizon=1).double()
    optimizer = pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.01 ** (1 / steps)}
    )
    svi = SVI(program, rlai.follow(program, policy), optimizer, loss=rlai.TrajectoryELBO())
    for _ in range(steps):
        svi.step()
        optimizer.step()
    with torch.no_grad():
        return pyro.param("action_prior").detach(), policy(torch.arange(size), 0).probs


def alternate(mdp: rlai.TabularMDP, rounds: int) -> tuple[float, Tensor]:
    """Returns the ELBO and the prior after soft planning and averaging in turn, for a process with no horizon.

    Each half raises the ELBO: planning over policies, and the average of the policy over its discounted
    visits, p(a) ∝ Σ_s d(s) π(a|s), over priors that do not know the state.
    """
    for _ in range(rounds):
        plan = exact.plan(mdp)
        visits = torch.where(mdp.terminal, 0.0, exact.occupancy(mdp, plan))
        prior = visits @ plan.policy
        mdp = mdp.replace(action_prior=prior / prior.sum())
    return float(exact.optimal_elbo(mdp)), mdp.action_prior[0]


def information(mdp: rlai.TabularMDP, policy: object) -> float:
    """Returns ``E Σ_t γ^t log π/p``, in nats: what the ELBO takes off the return over α."""
    return float(exact.expected_return(mdp, policy) / mdp.temperature - exact.elbo(mdp, policy))


def main(quick: bool = False, picture: Path | None = None) -> None:
    pyro.set_rng_seed(0)
    chance, reward = task()
    temperatures = [0.05, 0.2, 0.8] if quick else [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.8]
    rows, worst = [], 0.0
    for alpha in temperatures:
        rate, mean = blahut_arimoto(chance, reward, alpha)
        _, prior = train_prior(chance, reward, alpha)
        mdp = contextual(chance, reward, alpha, prior)
        learned, earned = information(mdp, exact.plan(mdp)), float(exact.expected_return(mdp, exact.plan(mdp)))
        uniform = contextual(chance, reward, alpha)
        fixed, paid = (f(uniform, exact.plan(uniform)) for f in (information, exact.expected_return))
        worst = max(worst, abs(learned - rate), abs(earned - mean))
        columns = (learned, learned / BIT, rate / BIT, earned, mean, fixed / BIT, float(paid))
        rows.append([f"{alpha:g}", *(f"{x:.4f}" for x in columns)])
    header = ["α", "nats", "bits", "bits, B-A", "reward", "reward, B-A", "bits, uniform", "reward, uniform"]
    print(
        tables.render(
            "Information and reward: learned prior, Blahut-Arimoto, uniform prior", header, rows, right=range(8)
        )
    )
    print(f"largest difference from Blahut-Arimoto: {worst:.1e} (nats, reward units)\n")

    alpha, steps = 0.2, 300 if quick else 2_000
    best, _ = train_prior(chance, reward, alpha)
    prior, policy = train_by_svi(chance, reward, alpha, steps)
    reached = float(exact.elbo(contextual(chance, reward, alpha, prior), policy))
    fixed = float(exact.optimal_elbo(contextual(chance, reward, alpha)))
    print(f"α = {alpha}: ELBO by SVI, prior and policy together {reached:.4f} nats, largest {best:.4f}")
    print(f"         largest with the uniform prior      {fixed:.4f} nats\n")

    grid = rlai.models.gridworld(4, 4, None, 0.9, 0.1, slip=0.1, dtype=F64)
    rounds = 50 if quick else 500
    alternated, prior = alternate(grid, rounds)
    before, after = exact.plan(grid), grid.replace(action_prior=prior)
    print(f"A 4 × 4 grid, {rounds} rounds of soft planning and averaging")
    print(f"  uniform prior  ELBO {float(before.objective):8.4f} nats, {information(grid, before) / BIT:6.3f} bits")
    print(f"  learned prior  ELBO {alternated:8.4f} nats, {information(after, exact.plan(after)) / BIT:6.3f} bits")
    print("  learned prior of left, down, right, up: " + "  ".join(f"{abs(p):.3f}" for p in prior.tolist()))
    if picture is not None:
        drawn(chance, reward).savefig(picture, dpi=110)
        print(f"written to {picture}")


def drawn(chance: Tensor, reward: Tensor) -> plt.Figure:
    """Returns the picture of reward against bits."""
    figure, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
    grid = torch.logspace(-2.3, 0.5, 60).tolist()
    curve = [blahut_arimoto(chance, reward, alpha) for alpha in grid]
    ax.plot([r / BIT for r, _ in curve], [m for _, m in curve], color=style.BLACK, label="Blahut-Arimoto")
    for name, colour, marker, learned in (
        ("prior learned by the ELBO", style.BLUE, "o", True),
        ("uniform prior", style.ORANGE, "s", False),
    ):
        points = []
        for alpha in (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.8):
            mdp = contextual(chance, reward, alpha, train_prior(chance, reward, alpha)[1] if learned else None)
            plan = exact.plan(mdp)
            points.append((information(mdp, plan) / BIT, float(exact.expected_return(mdp, plan))))
        ax.plot(*zip(*points, strict=True), color=colour, marker=marker, linestyle="none", label=name)
    style.tidy(ax, "information cost E log π/p (bits)", "mean reward (reward units)")
    ax.legend(frameon=False, loc="lower right")
    plt.close(figure)
    return figure


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], picture=Path("learned_prior.png"))
