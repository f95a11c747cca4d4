"""What do a reverse divergence, a forward one and best-of-n make of a language model that is to be steered?

A Markov model writes strings of at most six letters, and a finished one has a score. With a price α on every nat of
divergence from the model the best policy is known: the model tilted, p*(x) ∝ p_ref(x) exp(score(x)/α), and its 5,461
strings can be enumerated. A family too small to hold it, here one that does not look at what it wrote, has to give
something up. Maximising the ELBO makes KL(π || p*) least; expectation maximization on whole strings KL(p* || π).
"""

import math
import sys
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import rl_as_inference as rlai
from rl_as_inference import exact, style, tables
from rl_as_inference.models.short_strings import short_strings, strings

F64 = torch.float64
TEXTS = strings()
COUNTS = torch.tensor([[float(text.count(letter)) for letter in "abcd"] + [float(len(text) < 6)] for text in TEXTS])
SHORT = torch.tensor([len(text) < 6 for text in TEXTS] + [False])


class Forgetful(nn.Module):
    """A guide that draws every letter, or the end, from one distribution, whatever it wrote."""

    batch_steps = True

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.0, 0.1, 0.0, 0.0, -0.5], dtype=F64))

    def forward(self, state: Tensor, t: int | Tensor) -> dist.Categorical:
        only_end = torch.tensor([-torch.inf] * 4 + [0.0], dtype=F64)
        return dist.Categorical(logits=torch.where(SHORT[state][..., None], self.logits, only_end))

    def log_probabilities(self) -> Tensor:
        """Returns ``log π(x)`` of every string."""
        return COUNTS.to(F64) @ self.logits.log_softmax(-1)


class Row(NamedTuple):
    """What a distribution of strings is: its score, its divergences, and the shares of strings with each reward."""

    score: float
    to_reference: float
    reverse: float
    forward: float
    only_ab: float
    only_dc: float


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * torch.where(log_p > -torch.inf, log_p - log_q, 0.0)).sum()


def row(log_policy: Tensor, reference: Tensor, tilted: Tensor, scores: Tensor) -> Row:
    has_ab, has_dc = (torch.tensor([pair in text for text in TEXTS]) for pair in ("ab", "dc"))
    p = log_policy.exp()
    numbers = (p @ scores, kl(log_policy, reference), kl(log_policy, tilted), kl(tilted, log_policy))
    return Row(*map(float, numbers), float(p[has_ab & ~has_dc].sum()), float(p[has_dc & ~has_ab].sum()))


def nearest(tilted: Tensor, forward: bool) -> Tensor:
    """Returns the forgetful guide nearest to the tilted model, as ``log π(x)``: the best of several starts."""
    found = []
    for lean in ([0, 0, 0, 0, 0], [2, 2, 0, 0, 0], [0, 0, 2, 2, 0]):
        guide = Forgetful()
        guide.logits.data = torch.tensor(lean, dtype=F64)
        optimizer = torch.optim.LBFGS(guide.parameters(), max_iter=100, line_search_fn="strong_wolfe")

        def distance(guide: Forgetful = guide) -> Tensor:
            mine = guide.log_probabilities()
            return kl(tilted, mine) if forward else kl(mine, tilted)

        def closure(distance=distance, optimizer=optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = distance()
            loss.backward()
            return loss

        optimizer.step(closure)
        found.append((float(distance().detach()), guide.log_probabilities().detach()))
    return min(found, key=lambda pair: pair[0])[1]


def best_of(n: int, reference: Tensor, scores: Tensor) -> Tensor:
    """Returns the logarithm of what the best of ``n`` strings of the reference is distributed as, exactly.

    Among equals the first is taken, so that within one score it is the reference's own choice.
    """
    values, which = scores.unique(return_inverse=True)
    mass = torch.zeros(len(values), dtype=F64).index_add(0, which, reference.exp())
    below = mass.cumsum(0)
    won = below**n - (below - mass).clamp(min=0) ** n
    return reference + (won / mass).log()[which]


def learned(mdp: rlai.TabularMDP, quick: bool) -> dict[str, Forgetful]:
    """Returns forgetful guides trained by the library: on the ELBO, and by expectation maximization of both kinds."""
    steps, options = (
        60 if quick else 400,
        {"learning_rate": 0.15 if quick else 0.1, "seed": 0, "num_trajectories": 1_000},
    )
    guides = {name: Forgetful() for name in ("ELBO", "EM, state by state", "EM, whole strings")}
    rlai.fit(mdp, guides["ELBO"], steps=steps, estimator="score", **options)
    rlai.fit(mdp, guides["EM, state by state"], steps=steps, estimator="em", **options)
    guide = guides["EM, whole strings"]  # no critic: the weights are those of whole trajectories
    objective, optimizer = rlai.TrajectoryELBO("em"), torch.optim.Adam(guide.parameters(), lr=0.05 if quick else 0.02)
    program = rlai.follow(mdp, guide)
    for _ in range(steps):
        optimizer.zero_grad()
        (objective.differentiable_loss(mdp, program, 1_000) / 1_000).backward()
        optimizer.step()
    return guides


def main(quick: bool = False, picture: Path | None = None) -> None:
    torch.manual_seed(0)
    alpha = 0.4
    mdp = short_strings(temperature=alpha, dtype=F64)
    reference, scores = chain(mdp, mdp.action_prior.log()), mdp.reward_table[:-1, -1]
    tilted = (reference + scores / alpha).log_softmax(0)
    plan = exact.plan(mdp)
    print(f"{len(TEXTS):,} strings, α = {alpha}: the exact plan and the tilted reference differ by at most", end=" ")
    print(f"{float((chain(mdp, plan.log_policy) - tilted).exp().sub(1).abs().max()):.0e}")
    evidence = float((reference + scores / alpha).logsumexp(0))
    print(f"log Z = {evidence:.4f} nats; largest ELBO {float(plan.objective):.4f}\n")

    found = {"reference": reference, "tilted, p*": tilted}
    found |= {f"nearest, {way} KL": nearest(tilted, way == "forward") for way in ("reverse", "forward")}
    found |= {f"fit: {name}": guide.log_probabilities().detach() for name, guide in learned(mdp, quick).items()}
    found |= {f"best of {n}": best_of(n, reference, scores) for n in (4, 64)}
    shown = []
    for name, log_policy in found.items():
        one = row(log_policy, reference, tilted, scores)
        numbers = [f"{x:.4f}" if x < math.inf else "∞" for x in one[:4]]
        shown.append([name, *numbers, f"{one.only_ab:.1%}", f"{one.only_dc:.1%}"])
    header = ["strings of", "score", "KL(π || ref)", "KL(π || p*)", "KL(p* || π)", "ab alone", "dc alone"]
    print(tables.render("Score in reward units, divergences in nats", header, shown, right=tuple(range(1, 7))))
    for n in (4, 64):
        exactly = row(best_of(n, reference, scores), reference, tilted, scores).to_reference
        print(
            f"best of {n}: KL {exactly:.4f} nats, and not {math.log(n) - (n - 1) / n:.4f} = log n - (n-1)/n: scores tie"
        )
    if picture is not None:
        drawn(reference, scores).savefig(picture, dpi=110)
        print(f"written to {picture}")


def chain(mdp: rlai.TabularMDP, log_policy: Tensor) -> Tensor:
    """Returns the log probability of every finished string, letter by letter, ``(5461,)``."""
    steps = log_policy.expand(7, -1, -1)
    index = {text: i for i, text in enumerate(TEXTS)}
    begun = torch.zeros(len(TEXTS), dtype=F64)
    for i, text in enumerate(TEXTS[1:], 1):
        before = index[text[:-1]]
        begun[i] = begun[before] + steps[len(text) - 1, before, "abcd".index(text[-1])]
    lengths = torch.tensor([len(text) for text in TEXTS])
    return begun + steps[lengths, torch.arange(len(TEXTS)), 4]


def drawn(reference: Tensor, scores: Tensor) -> plt.Figure:
    """Returns the picture: what each earns at what divergence, and the two divergences over temperature."""
    alphas = torch.logspace(math.log10(0.12), math.log10(3), 25, dtype=F64).tolist()
    curves: dict[str, list[Row]] = {name: [] for name in ("tilted, p*", "reverse KL (ELBO)", "forward KL (EM)")}
    for alpha in alphas:
        tilted = (reference + scores / alpha).log_softmax(0)
        policies = (tilted, nearest(tilted, False), nearest(tilted, True))
        for name, policy in zip(curves, policies, strict=True):
            curves[name].append(row(policy, reference, tilted, scores))
    best = [
        row(best_of(n, reference, scores), reference, reference, scores) for n in (1, 2, 4, 8, 16, 32, 64, 128, 256)
    ]
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    colours = dict(zip(curves, (style.GREY, style.BLUE, style.ORANGE), strict=True))
    for name, rows in curves.items():
        width = 4 if name.startswith("tilted") else 2
        axes[0].plot([r.to_reference for r in rows], [r.score for r in rows], color=colours[name], lw=width, label=name)
    green = {"color": style.GREEN, "marker": "o", "ms": 4, "label": "best of n = 1, 2, 4, … 256"}
    axes[0].plot([r.to_reference for r in best], [r.score for r in best], **green)
    axes[0].set_xlim(0, 6)
    style.tidy(axes[0], "KL(π || reference) (nats)", "expected score (reward units)", "What a nat buys")
    for name in list(curves)[1:]:
        rows = curves[name]
        axes[1].plot(alphas, [r.reverse for r in rows], color=colours[name], lw=2, label=f"{name}: KL(π || p*)")
        axes[1].plot(
            alphas, [r.forward for r in rows], color=colours[name], lw=2, ls="--", label=f"{name}: KL(p* || π)"
        )
    axes[1].set_yscale("log")
    axes[1].set_yticks([0.5, 1, 2, 5], ["0.5", "1", "2", "5"], minor=False)
    axes[1].minorticks_off()
    style.tidy(axes[1], "temperature α (reward units per nat)", "divergence (nats)", "How near a forgetful guide comes")
    for name, rows in curves.items():
        axes[2].plot(alphas, [r.only_ab for r in rows], color=colours[name], lw=2, label=f"{name}: ab alone")
        axes[2].plot(alphas, [r.only_dc for r in rows], color=colours[name], lw=2, ls=":", label=f"{name}: dc alone")
    style.tidy(axes[2], "temperature α (reward units per nat)", "share of strings", "One way of scoring, or both")
    for ax in axes[1:]:
        ax.set_xscale("log")
        ax.set_xticks([0.2, 0.5, 1, 2], ["0.2", "0.5", "1", "2"])
        ax.minorticks_off()
    for ax in axes:
        ax.legend(frameon=False, fontsize=7)
    plt.close(figure)
    return figure


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], picture=Path("short_strings.png"))
