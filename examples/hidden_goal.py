"""What does the agent want, and what would it take to succeed?

In ``hidden_goal`` a prize lies behind the left or the right door; a note points to it and is right four times
out of five; the left door is nearer. One program answers three kinds of question about the goal, which is
drawn once and stands beside the trajectory:

- given that all went well, where was the prize? (wishful thinking: at the nearer door)
- given the first steps of somebody who knows what they are doing, what do they want? (inverse planning)
- what should an agent do that sees the note but not the prize? (the guide; it leaves the goal alone)
"""

import sys
from collections.abc import Callable
from typing import Any

import gymnasium
import pyro
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.poutine import condition

import rl_as_inference as rlai
from rl_as_inference.guides import CategoricalPolicy
from rl_as_inference.models import hidden_goal

LEFT, RIGHT = torch.tensor(0), torch.tensor(1)


def log_evidence(program: Callable[[], Any], **known: torch.Tensor) -> float:
    """Returns ``log p(O, known)`` by Pyro's enumeration, in nats."""
    conditioned = condition(program, known)
    return -TraceEnum_ELBO(max_plate_nesting=0).loss(config_enumerate(conditioned), lambda: None)


def probability_right(program: Callable[[], Any], **known: torch.Tensor) -> float:
    """Returns ``p(goal = right | O, known)``."""
    log_odds = log_evidence(program, goal=RIGHT, **known) - log_evidence(program, goal=LEFT, **known)
    return float(torch.tensor(log_odds).sigmoid())


def show(what: str, probability: float) -> None:
    """Prints a probability with a bar."""
    print(f"  {what:<42} {probability:5.2f}  {'█' * round(30 * probability)}")


def main(quick: bool = False) -> None:
    pyro.set_rng_seed(0)
    program = hidden_goal()

    print("probability that the prize is behind the right door")
    show("before anything is known", 0.5)
    show("given that all went well", probability_right(program))
    show("  and the note said right", probability_right(program, note=RIGHT))
    steps: dict[str, torch.Tensor] = {}
    for t in range(3):
        steps[f"action_{t}"] = RIGHT
        show(f"  and the agent went right {t + 1} ×", probability_right(program, **steps))

    # What the policy sees is the position and the note, two numbers.
    policy = CategoricalPolicy(gymnasium.spaces.Box(-1, 1, (2,)), 2, horizon=8)
    rlai.fit(program, policy, steps=60 if quick else 400, learning_rate=0.03, seed=0)
    elbo = -TraceEnum_ELBO(max_plate_nesting=0).loss(
        config_enumerate(program), config_enumerate(rlai.follow(program, policy))
    )
    print()
    print(f"ELBO of the trained guide       {elbo:.3f} nats")
    print(f"log evidence                    {log_evidence(program):.3f} nats, believing the prize nearer than it is")
    print()
    print("probability that the guide steps right at t = 0")
    start = 2 * 2 / 6 - 1
    for note, says in ((0, "left"), (1, "right")):
        view = torch.tensor([start, 2.0 * note - 1])
        show(f"the note says {says}", policy(view, 0).probs[1].item())


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:])
