"""Amortized policies with a memory, for problems whose state is hidden."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import gymnasium
import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from rl_as_inference.arguments import checked
from rl_as_inference.checks import check_count
from rl_as_inference.guides.heads import policy_for
from rl_as_inference.histories import Histories, History
from rl_as_inference.nouns import takes_all_steps
from rl_as_inference.processes import PartiallyObservedMDP, TabularPOMDP
from rl_as_inference.spaces import first_of

__all__ = ["RecurrentPolicy"]


class RecurrentPolicy(nn.Module):
    """A gated recurrent network over observations and actions, and a policy on its memory.

    ``π(a|h_t) = f(m_t, t)`` with ``m_t = GRU(m_{t-1}; y_t, a_{t-1})`` (Cho et al. 2014, arXiv:1406.1078; as the policy
    of a hidden state: Wierstra, Förster, Peters & Schmidhuber 2010, Logic Journal of the IGPL 18). Asked step by step
    it moves its memory on by one step; asked for all steps at once it runs once over the whole history, with the same
    numbers.

    Args:
        observation_space: ``Discrete`` or ``Box``.
        action_space: ``Discrete`` or ``Box``.
        horizon: the number of steps; None leaves time out.
        memory_size: numbers that it remembers.
        hidden_sizes: widths of the hidden layers between memory and action.
        prior: the action prior of discrete actions, ``history -> Categorical``; uniform by default.
        head: what is put upon the memory, a callable ``(memory, t)``; a network for the action space by default. (A
            critic as a head, :class:`rl_as_inference.critics.SoftV` say, makes a critic of histories.)

    Raises:
        ValueError: for other spaces, or sizes below 1.

    Example:
        >>> policy = RecurrentPolicy(gymnasium.spaces.Discrete(2), gymnasium.spaces.Discrete(3), horizon=5)
        >>> seen = History(torch.tensor([[0, 1]])).then(torch.tensor([2, 2]), torch.tensor([1, 0]))
        >>> policy(seen, 1).probs.shape
        torch.Size([2, 3])
    """

    sees = "history"

    @checked
    def __init__(
        self,
        observation_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        *,
        horizon: int | None = None,
        memory_size: int = 32,
        hidden_sizes: Sequence[int] = (32,),
        prior: Callable[[Any], Any] | None = None,
        head: Callable[[Tensor, Any], Any] | None = None,
    ) -> None:
        super().__init__()
        check_count("memory_size", memory_size)
        self.observation_space, self.action_space, self.prior = observation_space, action_space, prior
        sizes = [_size(space, name) for name, space in (("observation", observation_space), ("action", action_space))]
        self.sizes = sizes
        # A flag beside each: nothing may have been seen, and before the first action none was done.
        self.network = nn.GRU(sum(sizes) + 2, memory_size)
        memory = gymnasium.spaces.Box(-1.0, 1.0, (memory_size,), dtype=np.float32)
        own: dict[str, Any] = {"horizon": horizon, "hidden_sizes": hidden_sizes}
        self.head = policy_for(memory, action_space, **own) if head is None else head
        self.batch_steps = takes_all_steps(self.head)

    @classmethod
    def of(cls, process: PartiallyObservedMDP, **options: Any) -> Self:
        """Returns a policy for a process, in its precision; options as of the constructor.

        Raises:
            ValueError: if the process sees its state, and as the constructor does.
        """
        if not isinstance(process, PartiallyObservedMDP):
            raise ValueError(
                f"process must be a PartiallyObservedMDP, got {type(process).__name__}; where the state is seen use "
                f"guides.amortized_policy(process)"
            )
        discrete = isinstance(process.action_space, gymnasium.spaces.Discrete)
        own = discrete and not process.has_uniform_prior and options.get("head") is None
        prior = process.prior_at if own else None
        made = cls(process.observation_space, process.action_space, horizon=process.horizon, prior=prior, **options)
        like = process.observation_table if isinstance(process, TabularPOMDP) else process.begin(1)
        return made.to(device=like.device, dtype=like.dtype) if like.is_floating_point() else made.to(like.device)

    def forward(self, state: Any, t: int | Tensor) -> Any:
        if isinstance(state, Histories):
            memory = self._of_all(state)
        elif isinstance(state, History):
            memory = state.recall(self._key(), self._start, self._move)
        else:
            raise ValueError(
                f"RecurrentPolicy needs a History, which rlai.history() and partially observed processes give, got "
                f"{type(state).__name__}; where the state is seen use guides.amortized_policy(process)"
            )
        answer = self.head(memory, t)
        return answer if self.prior is None else dist.Categorical(logits=answer.logits + self.prior(state).logits)

    def _key(self) -> Any:
        """Returns whose memory it is, at the present parameters: a remembered gradient is of these."""
        parameters = list(self.network.parameters())
        kept = tuple((parameter._version, parameter.dtype, parameter.device) for parameter in parameters)
        return self, torch.is_grad_enabled(), kept

    def _start(self, observation: Tensor | None) -> Tensor:
        if observation is None:
            return next(self.network.parameters()).new_zeros(self.network.hidden_size)
        return self._run(self._encoded(None, observation)[None])[-1]

    def _move(self, memory: Tensor, action: Tensor, observation: Tensor | None) -> Tensor:
        return self._run(self._encoded(action, observation)[None], memory)[-1]

    def _of_all(self, every: Histories) -> Tensor:
        """Returns the memories before each action, ``(T, N, memory_size)``."""
        steps = list(every)
        rows = [one for one in steps if one.action is not None or one.observation is not None]
        latest, action = every.history.latest, every.history.action
        like, space = (action, self.action_space) if latest is None else (latest, self.observation_space)
        assert like is not None
        event = len(space.shape or ())
        batch = like.shape[: like.dim() - event]
        empty = self._start(None).expand(len(steps) - len(rows), *batch, -1)
        if not rows:
            return empty
        return torch.cat([empty, self._run(torch.stack([self._encoded(one.action, one.observation) for one in rows]))])

    def _run(self, inputs: Tensor, memory: Tensor | None = None) -> Tensor:
        """Returns memories after each of ``(T, *batch, inputs)``."""
        batch, size = inputs.shape[1:-1], self.network.hidden_size
        start = None
        if memory is not None:  # enumerated sites may have given it dimensions of its own
            batch = torch.broadcast_shapes(batch, memory.shape[:-1])
            inputs = inputs.expand(len(inputs), *batch, -1)
            start = memory.expand(*batch, size).reshape(1, -1, size).contiguous()
        out: Tensor = self.network(inputs.reshape(len(inputs), -1, inputs.shape[-1]), start)[0]
        return out.reshape(len(inputs), *batch, size)

    def _encoded(self, action: Tensor | None, observation: Tensor | None) -> Tensor:
        like = next(self.network.parameters())
        parts, batch = [], torch.Size()
        spaces = (self.observation_space, self.action_space)
        firsts = (first_of(self.observation_space), 0)  # actions of policies count from 0
        for value, space, size, first in zip((observation, action), spaces, self.sizes, firsts, strict=True):
            if value is None:
                parts.append(like.new_zeros(size + 1))
                continue
            if isinstance(space, gymnasium.spaces.Discrete):
                flat = one_hot((value - first).long(), size).to(like)
            else:
                event = len(space.shape or ())
                flat = value.to(like)[..., None] if event == 0 else value.to(like).flatten(-event)
            parts.append(torch.cat([flat, flat.new_ones(*flat.shape[:-1], 1)], -1))
            batch = torch.broadcast_shapes(batch, flat.shape[:-1])
        return torch.cat([part.expand(*batch, -1) for part in parts], -1)


def _size(space: gymnasium.Space[Any], name: str) -> int:
    if isinstance(space, gymnasium.spaces.Discrete):
        return int(space.n)
    if isinstance(space, gymnasium.spaces.Box):
        return math.prod(space.shape)
    raise ValueError(f"{name}_space must be Discrete or Box, got {space}")
