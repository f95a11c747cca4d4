"""What does each step from DDPG to soft actor-critic buy?

The ladder of objectives, each a configuration of one learner, on a problem whose largest ELBO is known:
a walker on a ridge that widens to a plain. The narrow end pays, but there a step aside costs; on the
plain nothing pays and every step is free. The maximum-entropy optimum gives up some reward for freedom to come.

- **ddpg** (equation 1) has one action per state, and the ELBO of one action is -∞.
- **svg0** (equation 2) draws its action, but nothing asks it to: its entropy falls to far below the prior's.
- **one_step_entropy** (equation 4) keeps entropy where it is, and does not walk to where there is more.
- **wrong_bellman** (equations 7-8) puts entropy in the critic and none in the actor, whose best answer is
  one action: what the critic says it should keep, it loses first.
- **maxent** (equations 9-13) is soft actor-critic.
"""

import sys
from pathlib import Path
from typing import Any

import gymnasium
import matplotlib.pyplot as plt
import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

import rl_as_inference as rlai
from rl_as_inference import style, tables

RUNGS = ("ddpg", "svg0", "one_step_entropy", "wrong_bellman", "maxent")
SEEDS = 3


class Ridge(rlai.MarkovDecisionProcess):
    """A walk along a ridge: narrow where it pays, at ``s = -1``, and wide at ``s = 1``.

    s_0 ~ U[-1, 1]
    s'  = (s + a) / 2,                       a in [-1, 1]
    r   = (1 - s)/2 · pay - ((1 - s)/2)² · cost · (a - s)²

    Nothing in it is random but the start, so that both posteriors are one. There is no horizon and γ = 0.8.
    """

    state_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))
    pay, cost = 0.25, 4.0

    def initial(self) -> Any:
        return dist.Uniform(-torch.ones(1), torch.ones(1)).to_event(1)

    def transition(self, state: Tensor, action: Tensor) -> Any:
        return dist.Delta((state + action) / 2, event_dim=1)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        narrow = (1 - state) / 2
        return (narrow * self.pay - narrow**2 * self.cost * (action - state) ** 2).sum(-1)


def interpolation(nodes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Returns the matrix from values at the nodes to those of their polynomial at the points."""
    degree = len(nodes) - 1
    vander = np.polynomial.legendre.legvander
    return np.linalg.solve(vander(nodes, degree).T, vander(points, degree).T).T


def largest_elbo(mdp: Ridge, num_nodes: int = 48) -> tuple[float, np.ndarray, np.ndarray]:
    """Returns the largest ELBO in nats, and the soft values in nats at Gauss-Legendre nodes.

    The soft Bellman equation on polynomials of degree 47: its answer is smooth, so the error falls
    exponentially with their degree.
    """
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    s, a = torch.tensor(nodes)[:, None, None], torch.tensor(nodes)[None, :, None]
    after = (s + a) / 2
    reward = mdp.reward(s, a, after).numpy() / float(mdp.temperature)
    arrive = interpolation(nodes, after.numpy().ravel()).reshape(num_nodes, num_nodes, num_nodes)
    value = np.zeros(num_nodes)
    for _ in range(1000):
        q = reward + float(mdp.discount) * arrive @ value
        new = np.log((weights / 2 * np.exp(q)).sum(1))
        change, value = np.abs(new - value).max(), new
        if change < 1e-13:
            break
    return float(weights / 2 @ value), nodes, value


def evaluated(mdp: Ridge, policy: Any, *, point: bool = False, num_nodes: int = 48) -> tuple[float, float, float]:
    """Returns a tanh-Gaussian policy's ELBO (nats), discounted return, and mean entropy (nats) over states.

    Soft policy evaluation by quadrature: Gauss-Hermite over the action, polynomials over the state. A
    ``point`` is the policy's deterministic action, whose entropy is -∞.
    """
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    draws, shares = np.polynomial.hermite_e.hermegauss(64)
    shares = shares / shares.sum()
    with torch.no_grad():
        loc, scale = (
            x.double() for x in policy.location_and_scale(torch.tensor(nodes, dtype=torch.float32)[:, None], 0)
        )
        noise, s = torch.tensor(draws), torch.tensor(nodes)[:, None, None]
        before = loc + (0.0 if point else scale) * noise  # (S, K)
        action = before.tanh()[..., None]
        after = (s + action) / 2
        # log(1 - tanh²) in its stable form.
        log_jacobian = 2 * (np.log(2) - before - torch.nn.functional.softplus(-2 * before))
        log_policy = -(noise**2) / 2 - scale.log() - np.log(2 * np.pi) / 2 - log_jacobian
        reward = mdp.reward(s, action, after).numpy() @ shares
    entropy = np.full(num_nodes, -np.inf) if point else -log_policy.numpy() @ shares
    arrive = interpolation(nodes, after.numpy().ravel()).reshape(num_nodes, len(draws), num_nodes)
    system = np.eye(num_nodes) - float(mdp.discount) * np.einsum("k,skn->sn", shares, arrive)
    visits = np.linalg.solve(system.T, weights / 2)  # discounted, of the polynomial's values
    total = visits @ reward
    if point:
        return -np.inf, float(total), -np.inf
    return (
        float(total / float(mdp.temperature) + visits @ (entropy - np.log(2))),
        float(total),
        float(weights / 2 @ entropy),
    )


def train(mdp: Ridge, rung: str, steps: int, chunks: int, *, compile: bool) -> list[list[tuple[float, float, float]]]:
    """Returns ELBO, return and entropy of each seed's policy, after each chunk of environment steps."""
    agent = rlai.SoftActorCritic(
        mdp,
        objective=rung,
        seeds=SEEDS,
        num_envs=8,
        updates_per_step=0.25,
        hidden_sizes=(32, 32),
        batch_size=256,
        learning_starts=min(200, steps // 4),
        learning_rate=1e-3,
        target_average=0.02,
        compile=compile,
    )
    curve = []
    for _ in range(chunks):
        agent.learn(steps // chunks)
        curve.append([evaluated(mdp, policy, point=rung == "ddpg") for policy in agent.policies])
    return curve


def main(quick: bool = False, picture: Path | None = None) -> None:
    steps, chunks = (320, 1) if quick else (12_000, 15)
    mdp = Ridge(horizon=None, discount=0.8, temperature=0.25)
    ceiling, *_ = largest_elbo(mdp)
    print(f"largest ELBO {ceiling:.6f} nats; {largest_elbo(mdp, 32)[0]:.6f} with a third fewer nodes\n", flush=True)
    curves, rows = {}, []
    for rung in ("ddpg", "wrong_bellman", "maxent") if quick else RUNGS:
        curves[rung] = np.array(train(mdp, rung, steps, chunks, compile=not quick))  # (chunks, seeds, 3)
        elbo, earned, entropy = curves[rung][-1].T
        shown = (np.median(elbo), elbo.min(), elbo.max(), np.median(earned), np.median(entropy))
        rows.append([rung, *(f"{x:.2f}" for x in shown)])
    header = ["objective", "ELBO, median", "least", "most", "return", "entropy"]
    title = f"After {steps:,} steps, {SEEDS} seeds (ELBO and entropy in nats; uniform: {np.log(2):.2f})"
    print(tables.render(title, header, rows, right=range(1, 6)))
    if picture is not None:
        drawn(curves, ceiling, steps).savefig(picture, dpi=110)
        print(f"written to {picture}")


def drawn(curves: dict[str, np.ndarray], ceiling: float, steps: int) -> plt.Figure:
    """Returns the picture: how far the ELBO is below the exact ceiling, and entropy, over training."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for (rung, curve), colour in zip(curves.items(), style.QUALITATIVE, strict=False):
        at = steps / len(curve) * np.arange(1, len(curve) + 1)
        for ax, values in ((left, ceiling - curve[..., 0]), (right, curve[..., 2])):
            if np.isfinite(values).all():
                ax.plot(at, np.median(values, 1), color=colour, label=rung)
                ax.fill_between(at, values.min(1), values.max(1), color=colour, alpha=0.2, linewidth=0)
            else:
                ax.plot([], [], color=colour, label=f"{rung} (ELBO and entropy: -∞)")
    left.set_yscale("log")
    left.invert_yaxis()  # better is higher
    right.axhline(np.log(2), color=style.GREY, linestyle=":", label="uniform")
    right.set_ylim(-12, 1.5)
    style.tidy(left, "environment steps", f"largest ELBO ({ceiling:.3f}) - ELBO (nats)")
    style.tidy(right, "environment steps", "entropy of π, mean over states (nats)")
    figure.legend(*right.get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside lower center", ncols=6)
    plt.close(figure)
    return figure


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], picture=Path("ladder.png"))
