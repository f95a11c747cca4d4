"""Which temperature should I choose, and does it depend on my rewards?

It does: rewards and α scaled together leave the policy as it is, so that doubling the rewards is halving α.
α near 0 chooses the best action, a large α none. In between it trades return for entropy, along a curve that
is exact here. A fixed α asks for a point of the curve by its slope, a tuned one by its entropy.
"""

import math
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

import rl_as_inference as rlai
from rl_as_inference import exact, style, tables
from rl_as_inference.objectives.soft_critics import log_sum_exp_value, softmax_policy

F64 = torch.float64
Q = torch.tensor([0.2, 1.0, 0.8, -0.5, 0.5], dtype=F64)
"""Soft values of five actions, for the picture."""


def process(alpha: float = 1.0, scale: float = 1.0) -> rlai.TabularMDP:
    """Returns a random process of 6 states and 3 actions without a horizon, its rewards multiplied by ``scale``."""
    mdp = rlai.models.random_mdp(6, 3, None, 0.9, alpha, seed=1, dtype=F64)
    return mdp.replace(reward=scale * mdp.reward_table)


def return_and_entropy(mdp: rlai.TabularMDP, policy: object) -> tuple[float, float]:
    """Returns discounted return (reward units) and entropy a step (nats), its mean over discounted visits."""
    earned = float(exact.expected_return(mdp, policy))
    relative = float(exact.elbo(mdp, policy)) - earned / float(mdp.temperature)  # Σ γ^t (H - log A)
    return earned, relative * (1 - float(mdp.discount)) + math.log(mdp.num_actions)


def learn(temperature: float | str, steps: int, target_entropy: float | None = None) -> rlai.SoftActorCritic:
    """Returns discrete soft actor-critic after ``steps`` steps on the process."""
    agent = rlai.SoftActorCritic(
        process(),
        temperature=temperature,
        target_entropy=target_entropy,
        initial_temperature=1.0,
        hidden_sizes=(32,),
        batch_size=128,
        num_envs=8,
        updates_per_step=0.125,
        learning_starts=200,
        learning_rate=3e-3,
        target_average=0.02,
        compile=False,
    )
    agent.learn(steps)
    return agent


def main(quick: bool = False, picture: Path | None = None) -> None:
    print("Rewards times c with α times c: largest difference of policies, and of returns over c")
    base = exact.plan(process(0.5))
    for c in (0.1, 2.0, 100.0):
        plan = exact.plan(process(0.5 * c, c))
        change = float((plan.policy - base.policy).abs().max())
        returns = [float(exact.expected_return(process(0.5 * x, x), p)) / x for x, p in ((c, plan), (1.0, base))]
        print(f"  c = {c:<5g} {change:.0e}   {abs(returns[0] - returns[1]):.0e}")
    doubled = exact.plan(process(0.5, 2.0)).policy - exact.plan(process(0.25)).policy
    print(f"  rewards doubled at α = 0.5, against α = 0.25: {float(doubled.abs().max()):.0e}\n")

    uniform = torch.full_like(Q, 1 / len(Q)).log()
    rows = []
    for alpha in (0.01, 0.1, 0.3, 1.0, 10.0):
        policy = softmax_policy(Q, uniform, alpha).exp()
        rows.append(
            [f"{alpha:g}", *(f"{p:.3f}" for p in policy.tolist()), f"{float(log_sum_exp_value(Q, uniform, alpha)):.3f}"]
        )
    header = ["α", *(f"Q = {q:g}" for q in Q.tolist()), "soft V"]
    print(tables.render("π(a) ∝ exp(Q(a)/α) for one Q", header, rows, right=range(7)))

    steps = 400 if quick else 8_000
    fixed = [0.3] if quick else [0.3, 1.0, 3.0]
    targets = [0.7] if quick else [0.4, 0.8]
    learned, rows = [], []
    for name, temperature, target in [
        *((f"fixed α = {a:g}", a, None) for a in fixed),
        *((f"tuned to {h:g} nats", "auto", h) for h in targets),
    ]:
        agent = learn(temperature, steps, target)
        with torch.no_grad():
            table = agent.policy(torch.arange(process().num_states), 0).probs.double()
            table /= table.sum(-1, keepdim=True)
        earned, entropy = return_and_entropy(process(), table)
        alpha = float(agent.temperature)
        exactly = return_and_entropy(process(), exact.plan(process(alpha)))
        learned.append((target is not None, entropy, earned))
        rows.append([name, *(f"{x:.3f}" for x in (alpha, entropy, exactly[1], earned, exactly[0]))])
    header = ["discrete soft actor-critic", "α", "entropy", "exact at α", "return", "exact at α"]
    print(
        tables.render(
            f"After {steps:,} steps (entropy a step in nats, return in reward units)", header, rows, right=range(1, 6)
        )
    )
    if picture is not None:
        drawn(learned).savefig(picture, dpi=110)
        print(f"written to {picture}")


def drawn(learned: list[tuple[bool, float, float]]) -> plt.Figure:
    """Returns the picture: the policy for one Q over α, and return against entropy."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    grid = torch.logspace(-2, 1.3, 100, dtype=F64)
    shares: Tensor = torch.stack([softmax_policy(Q, torch.zeros_like(Q), float(alpha)).exp() for alpha in grid])
    for index in Q.argsort(descending=True).tolist():
        left.plot(grid, shares[:, index], color=style.QUALITATIVE[index], label=f"Q = {float(Q[index]):g}")
    left.axhline(1 / len(Q), color=style.GREY, linestyle=":", label="uniform")
    left.set_xscale("log")
    style.tidy(left, "temperature α (reward units per nat)", "probability of the action")
    left.legend(frameon=False, fontsize=8)

    curve = [return_and_entropy(process(), exact.plan(process(float(alpha)))) for alpha in torch.logspace(-2, 2, 60)]
    right.plot([h for _, h in curve], [r for r, _ in curve], color=style.BLACK, label="best policy at each α, exact")
    for tuned, name, colour, marker in (
        (False, "learned, fixed α", style.BLUE, "o"),
        (True, "learned, tuned α", style.ORANGE, "s"),
    ):
        points = [(entropy, earned) for kind, entropy, earned in learned if kind is tuned]
        right.plot(*zip(*points, strict=True), color=colour, marker=marker, linestyle="none", label=name)
    style.tidy(right, "entropy a step (nats)", "discounted return (reward units)")
    right.legend(frameon=False, fontsize=8, loc="lower left")
    plt.close(figure)
    return figure


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], picture=Path("choosing_temperature.png"))
