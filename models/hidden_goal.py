"""A prize behind one of two doors, and an agent that is only told by a note which one.

  ?                                   ?
┌───┬───┬───┬───┬───┬───┬───┐
│ 0 │ 1 │ 2 │ 3 │ 4 │ 5 │ 6 │     ◀ action 0     action 1 ▶
└───┴───┴───┴───┴───┴───┴───┘
          start
"""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.models._arguments import check_integer, check_probability, check_program
from rl_as_inference.program import act, reward, steps

__all__ = ["hidden_goal"]


@checked
def hidden_goal(
    length: int = 7,
    start: int = 2,
    horizon: int = 8,
    discount: float | Tensor = 1.0,
    temperature: float | Tensor = 1.0,
    note_accuracy: float = 0.8,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Callable[[], None]:
    """Returns the program of a search for a prize that lies at one end of a corridor.

        goal     ~ left or right, with probability 1/2 each
        note     = goal, or the other end with probability 1 - note_accuracy
        position = start, then one cell left or right each step; walls stop it
        r        = 1 if the position after the step is the goal, else 0

    The sites ``goal`` and ``note`` (0 left, 1 right) stand beside the trajectory and are drawn once.
    The policy sees position and note as a vector of two numbers in [-1, 1], and never the goal. Moves
    are certain, so that the goal is the only luck there is, and the program's readings differ by what
    they believe about it:

    - given the actions, the goal is what the agent must have wanted (inverse planning);
    - given optimality, goals that are easy to reach are likelier than they were: wishful thinking.
      Here the left door is nearer.
    - :func:`~rl_as_inference.follow` leaves the goal alone, so that its ELBO is what acting can earn.

    Source: Baker, Saxe & Tenenbaum, "Action understanding as inverse planning", Cognition 113(3),
    2009; the note is the road sign of the T-maze in Bakker, "Reinforcement learning with long
    short-term memory", NeurIPS 2001.

    Args:
        length: the number of cells, ≥ 2.
        start: the first cell, in ``0 … length - 1``.
        horizon: the number of steps. Enumeration makes ``2^horizon`` cases of it.
        discount: γ in [0, 1].
        temperature: α > 0, in reward units per nat.
        note_accuracy: the probability in [0, 1] that the note is right; 0.5 makes it worthless.
        dtype, device: of the probabilities and rewards.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> _ = pyro.set_rng_seed(0)
        >>> trace = pyro.poutine.trace(hidden_goal(horizon=3)).get_trace()
        >>> list(trace.stochastic_nodes)
        ['goal', 'note', 'action_0', 'action_1', 'action_2']
    """
    check_integer("length", length, 2, ", so that there are two ends")
    check_integer("start", start, 0)
    if start >= length:
        raise ValueError(f"start must be a cell in 0 … {length - 1}, got {start}")
    check_probability("note_accuracy", note_accuracy)
    check_program(horizon, discount, temperature)
    even = torch.zeros(2, dtype=dtype or torch.get_default_dtype(), device=device)
    agreement = torch.eye(2).to(even)
    says = (note_accuracy * agreement + (1 - note_accuracy) * (1 - agreement)).log()
    ends = torch.tensor([0, length - 1], device=device)

    def program() -> None:
        goal = pyro.sample("goal", dist.Categorical(logits=even))
        note = pyro.sample("note", dist.Categorical(logits=says[goal]))
        position = torch.tensor(start, device=device)
        for t in steps(horizon, discount, like=even):
            view = torch.broadcast_tensors(2 * position / (length - 1) - 1, 2.0 * note - 1)
            action = act(f"action_{t}", torch.stack(view, -1).to(even), prior=dist.Categorical(logits=even))
            position = (position + 2 * action - 1).clamp(0, length - 1)
            reward(f"reward_{t}", (position == ends[goal]).to(even), temperature)

    program.__name__ = "hidden_goal"
    return program
