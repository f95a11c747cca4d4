"""pymdp's agent in the T-maze of ``models/t_maze.py``: what it would do after every history, as JSON.

    make .peers/pymdp/.installed
    .peers/pymdp/bin/python benchmarks/peers/pymdp_t_maze.py '{"horizon": 2, "temperature": 0.25, …}'

It plans to the end at every step, with all plans as its policies, its preferences ``r/α`` on the outcome of an arm, and
its other options at their defaults: utility and information gain about states. A history is ``"y_0,a_0,y_1,…"``, in the
numbers of the T-maze; its value are the probabilities of the four actions.
"""

import importlib.metadata
import itertools
import json
import sys

import jax.numpy as jnp
import numpy as np
from pymdp.agent import Agent

PLACES, ARMS, CUE = 4, (1, 2), 3
# The T-maze's observations as (place, outcome, cue): outcomes 0 none, 1 won, 2 lost; cues 0 none, 1 left, 2 right.
SEEN = [(0, 0, 0), (1, 1, 0), (1, 2, 0), (2, 1, 0), (2, 2, 0), (3, 0, 1), (3, 0, 2)]


def agent(options: dict[str, float], left: int, precision: float) -> Agent:
    """Returns pymdp's agent with ``left`` steps to plan."""
    outcome, cue = np.zeros((3, PLACES, 2)), np.zeros((3, PLACES, 2))
    for context in range(2):
        for place in range(PLACES):
            wins = options["reward_probability"] if place == 1 + context else 1 - options["reward_probability"]
            outcome[:, place, context] = (0, wins, 1 - wins) if place in ARMS else (1, 0, 0)
            right = [options["cue_validity"], 1 - options["cue_validity"]]
            cue[:, place, context] = (0, *(right if context == 0 else right[::-1])) if place == CUE else (1, 0, 0)
    moves = np.zeros((PLACES, PLACES, PLACES))
    for here, action in itertools.product(range(PLACES), range(PLACES)):
        moves[here if here in ARMS else action, here, action] = 1.0
    preference = np.array([0.0, options["win"], options["loss"]]) / options["temperature"]
    return Agent(
        A=[jnp.eye(PLACES), jnp.asarray(outcome), jnp.asarray(cue)],
        B=[jnp.asarray(moves), jnp.eye(2)[..., None]],
        C=[jnp.zeros(PLACES), jnp.asarray(preference), jnp.zeros(3)],
        D=[jnp.eye(PLACES)[0], jnp.full(2, 0.5)],
        A_dependencies=[[0], [0, 1], [0, 1]],
        B_dependencies=[[0], [1]],
        control_fac_idx=[0],
        policy_len=left,
        gamma=precision,
    )


def answers(options: dict[str, float], precision: float) -> dict[str, list[float]]:
    """Returns the probabilities of actions by history."""
    found: dict[str, list[float]] = {}
    horizon = int(options["horizon"])
    agents = [agent(options, horizon - t, precision) for t in range(horizon)]
    reached = [("0", 0, agents[0].D)]
    for t, planner in enumerate(agents):
        after = []
        for history, observation, prior in reached:
            seen = [jnp.array([value]) for value in SEEN[observation]]
            belief = planner.infer_states(seen, prior)
            plans, _ = planner.infer_policies(belief)
            found[history] = [float(p) for p in planner.multiaction_probabilities(plans)[0]]
            place = SEEN[observation][0]
            for action in range(PLACES):
                there = place if place in ARMS else action
                empirical = planner.update_empirical_prior(jnp.array([[action, 0]]), belief)
                after += [
                    (f"{history},{action},{number}", number, empirical)
                    for number, one in enumerate(SEEN)
                    if one[0] == there
                ]
        reached = after if t + 1 < horizon else []
    return found


def main() -> None:
    options = json.loads(sys.argv[1])
    names = ("inferactively-pymdp", "jax", "numpy")
    found = {str(precision): answers(options, precision) for precision in (1.0, 16.0)}
    print(json.dumps({"versions": {name: importlib.metadata.version(name) for name in names}, "answers": found}))


if __name__ == "__main__":
    main()
