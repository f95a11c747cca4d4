"""Is double soft Q-learning meaningful?

Q-learning's maximum overestimates noisy values; double Q-learning chooses by one estimate and values by
another. The log-sum-exp of soft Q-learning overestimates too, and the same correction can be made: draw
the policy from Q₁ and value it by Q₂. With V* the true soft value, π* its policy, π₁ that of Q₁ = Q* + noise,
Q₂ = Q* + other noise of mean 0,

    single   E[α log Σ p e^{Q₁/α}] - V*                  =  α E KL(π* || π₁)   ≥ 0
    double   E[E_{π₁}[Q₂ - α log π₁/p]] - V*             = -α E KL(π₁ || π*)   ≤ 0
    twin     E[α log Σ p e^{min(Q₁, Q₂)/α}] - V*

are the biases of one backup, in reward units. While noise is small beside α or beside the gaps between
actions, the two divergences are alike: the correction turns the bias around without making it smaller,
and half of each cancels. It pays where noise is larger than both, at α → 0 as at any temperature.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

import rl_as_inference as rlai
from rl_as_inference import exact, style, tables
from rl_as_inference.objectives.soft_critics import log_sum_exp_value, soft_double_q_value

F64 = torch.float64
TARGETS = ("single", "double", "twin minimum", "half single, half double")
HARD = 1e-6
"""A temperature that stands for the limit α → 0."""


def values(q1: Tensor, q2: Tensor, log_prior: Tensor, alpha: float) -> Tensor:
    """Returns what each target takes for the next state's value, ``(4, *batch)`` in reward units."""
    single = log_sum_exp_value(q1, log_prior, alpha)
    double = soft_double_q_value(q1, q2, log_prior, alpha)
    twin = log_sum_exp_value(torch.minimum(q1, q2), log_prior, alpha)
    return torch.stack([single, double, twin, (single + double) / 2])


def process(seed: int, alpha: float) -> rlai.TabularMDP:
    """Returns a random process: 10 states, 4 actions, γ = 0.9, rewards of standard deviation 1."""
    return rlai.models.random_mdp(10, 4, None, 0.9, alpha, seed=seed, dtype=F64)


def backup_bias(mdp: rlai.TabularMDP, noise: float, num_draws: int) -> Tensor:
    """Returns draws of each target's error after one backup, averaged over states, ``(4, num_draws)``, reward units."""
    plan, alpha = exact.plan(mdp), float(mdp.temperature)
    q = plan.soft_q.expand(num_draws, -1, -1)
    q1, q2 = (q + noise * torch.randn_like(q) for _ in range(2))
    log_prior = mdp.log_action_prior.expand_as(q)
    return (values(q1, q2, log_prior, alpha) - plan.soft_v).mean(-1)


def fixed_point_bias(mdp: rlai.TabularMDP, noise: float, num_runs: int, rounds: int = 150, draws: int = 64) -> Tensor:
    """Returns each run's error of the fixed point of noisy backups, averaged over states, ``(4, num_runs)``.

    Q ← r + γ P V̂(Q + fresh noise), with V̂ averaged over ``draws`` noises a round, as a table under small
    steps averages; the last third of the rounds is averaged again. Reward units.
    """
    plan, alpha, gamma = exact.plan(mdp), float(mdp.temperature), float(mdp.discount)
    reward, transition = mdp.expected_reward(), mdp.kernel.probabilities
    q = plan.soft_q.expand(4, num_runs, -1, -1).clone()
    log_prior = mdp.log_action_prior.expand(num_runs, draws, -1, -1)
    total = torch.zeros(4, num_runs, dtype=F64)
    for step in range(rounds):
        estimate = []
        for index in range(4):
            around = q[index][:, None].expand(-1, draws, -1, -1)
            q1, q2 = (around + noise * torch.randn_like(around) for _ in range(2))
            estimate.append(values(q1, q2, log_prior, alpha)[index].mean(1))
        q = reward + gamma * torch.einsum("san,irn->irsa", transition, torch.stack(estimate))
        if step >= rounds * 2 // 3:
            total += (q - plan.soft_q).mean((-2, -1))
    return total / (rounds - rounds * 2 // 3)


def main(quick: bool = False, picture: Path | None = None) -> None:
    torch.manual_seed(0)
    seeds, noise = (1, 0.5) if quick else (3, 0.5)
    draws, runs, rounds = (2_000, 4, 90) if quick else (20_000, 8, 150)
    grid = [HARD, 0.5, 5.0] if quick else [HARD, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]
    best = torch.stack([exact.plan(process(seed, HARD)).soft_q.topk(2).values for seed in range(seeds)])
    print(f"the two best actions are {float((best[..., 0] - best[..., 1]).mean()):.2f} reward units apart on average\n")
    one, fixed = [], []
    for alpha in grid:
        mdps = [process(seed, alpha) for seed in range(seeds)]
        for kept, found in (
            (one, [backup_bias(mdp, noise, draws) for mdp in mdps]),
            (fixed, [fixed_point_bias(mdp, noise, runs, rounds) for mdp in mdps]),
        ):
            joined = torch.stack(found).mean(0)  # the processes are what they are; draws are what varies
            kept.append((joined.mean(-1), joined.std(-1) / joined.shape[-1] ** 0.5))
    for title, found in (("one backup", one), ("the fixed point of noisy backups", fixed)):
        rows = [
            [
                "→ 0" if alpha == HARD else f"{alpha:g}",
                *(f"{m:+.4f} ± {e:.4f}" for m, e in zip(mean, error, strict=True)),
            ]
            for alpha, (mean, error) in zip(grid, found, strict=True)
        ]
        print(tables.render(f"Bias of {title}, noise {noise:g} (reward units)", ["α", *TARGETS], rows, right=range(5)))
    rows = []
    for size in (0.1, 0.5, 1.0, 2.0, 4.0):
        for alpha in (HARD, 0.5, 5.0):
            errors = torch.stack([backup_bias(process(seed, alpha), size, draws) for seed in range(seeds)]).mean(0)
            mean, error = errors.mean(-1), errors.std(-1) / draws**0.5
            entries = (f"{m:+.4f} ± {e:.4f}" for m, e in zip(mean, error, strict=True))
            rows.append([f"{size:g}", "→ 0" if alpha == HARD else f"{alpha:g}", *entries])
    print(tables.render("Bias of one backup, by noise (reward units)", ["noise", "α", *TARGETS], rows, right=range(6)))
    if picture is not None:
        drawn(grid, one, fixed).savefig(picture, dpi=110)
        print(f"written to {picture}")


def drawn(grid: list[float], one: list[tuple[Tensor, Tensor]], fixed: list[tuple[Tensor, Tensor]]) -> plt.Figure:
    """Returns the picture: bias over temperature, of one backup and of the fixed point."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    at = [max(alpha, 0.025) for alpha in grid]
    for ax, found, title in zip(axes, (one, fixed), ("one backup", "fixed point of noisy backups"), strict=True):
        for index, (name, colour) in enumerate(zip(TARGETS, style.QUALITATIVE, strict=False)):
            means, errors = ([float(pair[kind][index]) for pair in found] for kind in (0, 1))
            ax.errorbar(at, means, [2 * e for e in errors], color=colour, marker="o", markersize=4, label=name)
        ax.axhline(0, color=style.GREY, linewidth=0.8)
        ax.set_xscale("log")
        ax.set_xticks([0.025, 0.1, 1, 5], ["→ 0", "0.1", "1", "5"])
        style.tidy(ax, "temperature α (reward units per nat)", "bias (reward units)", title)
    axes[0].legend(frameon=False, fontsize=8)
    plt.close(figure)
    return figure


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], picture=Path("double_soft_q.png"))
