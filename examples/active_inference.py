"""Does an agent need a drive to explore, if it plans in beliefs?

In the T-maze one arm holds cheese and the other a shock, and a cue tells which is where to who spends a step on it.
Plans of actions alone, made without regard to what will be seen on the way, see no worth in the cue. Active inference
adds one, the information that observations are expected to give about the state: expected free energy (EFE), which
de Vries et al. (2025, arXiv:2504.14898) write as epistemic priors, factors of the program. The best policy of beliefs
needs none: it knows that it will act on what it sees, so that the cue is worth the reward it leads to, and no more.
"""

import math
import sys
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

import rl_as_inference as rlai
from rl_as_inference import exact, models, tables
from rl_as_inference.models.t_maze import CUE

F64 = torch.float64
BIT = math.log(2)

Epistemic = Callable[[Tensor, Tensor], Tensor]


def entropy(probabilities: Tensor) -> Tensor:
    """Returns the entropy of each row, in nats."""
    return torch.special.entr(probabilities).sum(-1)


def nothing(state: Tensor, seeing: Tensor) -> Tensor:
    """Returns no epistemic prior, KL control: ``(N,)`` zeros."""
    return state.new_zeros(state.shape[:-1])


def risk_and_ambiguity(state: Tensor, seeing: Tensor) -> Tensor:
    """Returns the log of the priors ``e^{H[q(x|u)]}`` and ``e^{-H[p(y|x)]}``, ``(N,)`` nats.

    With rewards as log preferences of states they make the free energy of plans risk, ``KL(q(x|u) ‖ e^{r/α})``, and
    ambiguity.
    """
    return entropy(state) - state @ entropy(seeing)


def information_gain(state: Tensor, seeing: Tensor) -> Tensor:
    """Returns the log of the priors ``e^{H[q(y|u)]}`` and ``e^{-H[p(y|x)]}``, ``(N,)`` nats: ``I(x; y|u)`` together."""
    return entropy(state @ seeing) - state @ entropy(seeing)


def planning(maze: rlai.TabularPOMDP, belief: Tensor, left: int, epistemic: Epistemic) -> Callable[[], None]:
    """Returns the program of plans: ``left`` actions from a belief, and what is predicted of each step, a factor each.

    Args:
        belief: ``(S,)``.
        epistemic: from predicted states ``(N, S)`` and ``p(y|x)``, ``(S, O)``, to nats ``(N,)``.
    """
    mdp = maze.fully_observed
    transition, reward = mdp.kernel.dense(), mdp.expected_reward()
    count = maze.num_actions**left

    def program() -> None:
        with pyro.plate("plans", count):
            state = belief.expand(count, -1)
            for t in rlai.steps(left):
                prior = dist.Categorical(logits=maze.log_action_prior.expand(count, -1))
                action = rlai.act(f"action_{t}", state, prior=prior)
                rlai.reward(f"reward_{t}", (state * reward.mT[action]).sum(-1), temperature=maze.temperature)
                state = torch.einsum("ns,nsz->nz", state, transition.movedim(1, 0)[action])
                rlai.reward(f"epistemic_{t}", epistemic(state, maze.observation_table))

    return program


def open_loop(maze: rlai.TabularPOMDP, epistemic: Epistemic, precision: float = 1.0) -> Callable[[Tensor, Any], Any]:
    """Returns the policy of beliefs that draws a plan from the program's posterior, takes one action, and replans.

    Args:
        precision: γ, the power to which the program's density of plans is raised; 1 is its posterior.
    """
    assert maze.horizon is not None
    horizon = maze.horizon

    def first_action(belief: Tensor, left: int) -> Tensor:
        plans = torch.tensor(list(product(range(maze.num_actions), repeat=left)))
        actions = {f"action_{t}": plans[:, t] for t in range(left)}
        trace = poutine.trace(poutine.condition(planning(maze, belief, left, epistemic), actions)).get_trace()
        trace.compute_log_prob()
        joint = sum(site["log_prob"] for site in trace.nodes.values() if "log_prob" in site and site["name"] != "plans")
        return joint.new_zeros(maze.num_actions).index_add(0, plans[:, 0], (precision * joint).softmax(0))

    def policy(belief: Tensor, t: Any) -> Any:
        rows = [first_action(row, horizon - int(t)) for row in belief.reshape(-1, maze.num_states)]
        return dist.Categorical(torch.stack(rows).reshape(*belief.shape[:-1], -1))

    return policy


def on_beliefs(maze: rlai.TabularPOMDP) -> Callable[[Tensor, Any], Any]:
    """Returns the policy that averages the soft Q of the seen state over the belief (Littman et al. 1995: QMDP)."""
    seen = exact.plan(maze.fully_observed)
    return lambda belief, t: dist.Categorical(logits=maze.log_action_prior + belief @ seen.soft_q[t] / maze.temperature)


class Row(NamedTuple):
    """What a policy does in the maze, exactly."""

    reward: float
    """Expected return, in reward units."""
    bits: float
    """Information cost ``E Σ log π/p``."""
    elbo: float
    """In nats."""
    cue: float
    """The probability that its first action reads the cue."""


def row(maze: rlai.TabularPOMDP, policy: Any, sees: Any = None) -> Row:
    """Returns the row of a policy of beliefs, or of histories."""
    found = exact.evaluate(maze, policy, sees)
    start = maze.fully_observed.initial_probabilities[None]
    first = policy(rlai.History(torch.tensor([[0]])) if sees == "history" else start, 0).probs[0, CUE]
    cost = found.prior_cost - found.entropy
    return Row(*(float(x) for x in (maze.temperature * found.expected_return, cost / BIT, found.objective, first)))


def seen_row(maze: rlai.TabularPOMDP) -> Row:
    """Returns the row of maximum-entropy control with the context seen, which nobody in the maze can do."""
    mdp = maze.fully_observed
    plan = exact.plan(mdp)
    earned, first = exact.expected_return(mdp, plan), (mdp.initial_probabilities @ plan.policy[0])[CUE]
    bits = (earned / mdp.temperature - plan.objective) / BIT
    return Row(*(float(x) for x in (earned, bits, plan.objective, first)))


def rows(maze: rlai.TabularPOMDP) -> dict[str, Row]:
    """Returns all the rows by name."""
    return {
        "KL control: plans, no epistemic prior": row(maze, open_loop(maze, nothing)),
        "maximum entropy, context seen": seen_row(maze),
        "the same on beliefs (QMDP)": row(maze, on_beliefs(maze)),
        "EFE: risk and ambiguity": row(maze, open_loop(maze, risk_and_ambiguity)),
        "EFE: information gain": row(maze, open_loop(maze, information_gain)),
        "EFE: information gain, γ = 16": row(maze, open_loop(maze, information_gain, 16.0)),
        "belief optimum, no epistemic prior": row(maze, exact.plan(maze)),
    }


MAZES = {
    "The cue tells what matters": {"reward_probability": 0.98, "win": 1.0, "loss": -1.0},
    "The cue tells what does not": {"reward_probability": 0.5, "win": 0.2, "loss": 0.0},
}
"""Two steps each. In the first an arm entered blindly pays 0; in the second it pays 0.1 a step, whichever it is."""


def maze_of(title: str) -> rlai.TabularPOMDP:
    """Returns the maze of that name in :data:`MAZES`."""
    return models.t_maze(horizon=2, temperature=0.25, dtype=F64, **MAZES[title])


def table(found: dict[str, dict[str, Row]]) -> str:
    """Returns the rows of all mazes as one table."""
    body: list[list[str] | None] = []
    for title, named in found.items():
        body += [None, [title, "", "", "", ""]] if body else [[title, "", "", "", ""]]
        for name, values in named.items():
            body.append([f"  {name}", *(f"{0.0 if abs(x) < 5e-5 else x:.4f}" for x in values)])
    header = ["who acts", "reward", "bits", "ELBO (nats)", "reads the cue first"]
    return tables.render("The T-maze: what two steps earn, and what they cost", header, body, right=range(1, 5))


def main(quick: bool = False) -> None:
    found = {title: rows(maze_of(title)) for title in MAZES}
    print(table(found))
    for title, named in found.items():
        best = named["belief optimum, no epistemic prior"]
        driven = max((one for name, one in named.items() if name.startswith("EFE")), key=lambda one: one.elbo)
        lost = best.elbo - driven.elbo
        print(f"{title}: the belief optimum is {lost:.4f} nats above the best with an epistemic prior")


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:])
