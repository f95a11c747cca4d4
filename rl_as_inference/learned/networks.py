"""The networks of learned dynamics, with the units that they are learned in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from rl_as_inference.learned.anchored import AnchoredEnsemble, bounded_log_scale

__all__ = ["DynamicsNetworks"]

_FARTHEST = 10.0
"""Inputs further from the mean, in standard deviations, are taken for as far: what comes of them is not known."""


class DynamicsNetworks(nn.Module):
    """Ensembles for changes of state and rewards, and for endings, that work on normalised numbers.

    Args:
        num_states: ``d``.
        num_actions: how many numbers an action is; of discrete ones their number.
        ensemble, hidden_sizes, prior_scale: of :class:`AnchoredEnsemble`.
        learns_reward: whether the reward is an output.
        learns_endings: whether there are networks for endings.

    Attributes:
        num_outputs: ``o``: ``d``, and 1 for the reward.
        noise: what learned noise is multiplied by, ``(o,)``.
        num_seen, num_endings: how many transitions, and ends among them, they were fitted to last.
    """

    def __init__(
        self,
        num_states: int,
        num_actions: int,
        *,
        ensemble: int,
        hidden_sizes: Sequence[int],
        prior_scale: float,
        learns_reward: bool,
        learns_endings: bool,
    ) -> None:
        super().__init__()
        self.num_states, self.num_actions, self.ensemble = num_states, num_actions, ensemble
        self.num_inputs, self.num_outputs = num_states + num_actions, num_states + learns_reward
        self.transition = AnchoredEnsemble(
            self.num_inputs,
            2 * self.num_outputs,
            ensemble=ensemble,
            hidden_sizes=hidden_sizes,
            prior_scale=prior_scale,
        )
        self.ending: AnchoredEnsemble | None = None
        if learns_endings:
            self.ending = AnchoredEnsemble(
                num_states, 1, ensemble=ensemble, hidden_sizes=hidden_sizes, prior_scale=prior_scale
            )
        self.input_mean: Tensor
        self.input_scale: Tensor
        self.output_mean: Tensor
        self.output_scale: Tensor
        self.noise: Tensor
        self.num_seen: Tensor
        self.num_endings: Tensor
        for name, size in (("input", self.num_inputs), ("output", self.num_outputs)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_scale", torch.ones(size))
        self.register_buffer("noise", torch.ones(self.num_outputs))
        for name in ("num_seen", "num_endings"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))

    def raw_inputs(self, state: Tensor, action: Tensor) -> Tensor:
        """Returns ``(n, num_inputs)`` as they are; discrete actions are one-hot."""
        numbers = action if action.is_floating_point() else one_hot(action, self.num_actions)
        return torch.cat([state, numbers.to(state.dtype)], -1)

    def inputs(self, state: Tensor, action: Tensor) -> Tensor:
        """Returns what the networks are told of ``(n, d)`` states and ``(n, *action)`` actions, ``(n, num_inputs)``."""
        apart = (self.raw_inputs(state, action) - self.input_mean) / self.input_scale
        return apart.clamp(-_FARTHEST, _FARTHEST)

    def ending_inputs(self, state: Tensor) -> Tensor:
        """Returns what the networks of endings are told of states, ``(n, d)``."""
        size = self.num_states
        return ((state - self.input_mean[:size]) / self.input_scale[:size]).clamp(-_FARTHEST, _FARTHEST)

    def gaussian(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and standard deviation of change of state and reward, ``(E, n, o)``, of inputs ``(E, n, ·)``."""
        mean, raw = self.transition(inputs).chunk(2, -1)
        scale = bounded_log_scale(raw).exp() * (self.noise * self.output_scale)
        return torch.addcmul(self.output_mean, mean, self.output_scale), scale

    def gaussian_stacked(self, inputs: Tensor) -> Tensor:
        """Returns both behind one another, ``(E, n, 2 o)``."""
        return torch.cat(self.gaussian(inputs), -1)

    def ending_logits(self, inputs: Tensor) -> Tensor:
        """Returns the log odds that states are terminal, ``(E, n, 1)``, of inputs ``(E, n, d)``."""
        assert self.ending is not None
        logits: Tensor = self.ending(inputs)
        return logits

    def has_endings(self) -> bool:
        """Whether endings are learned and some were seen."""
        return self.ending is not None and int(self.num_endings) > 0

    def by_member(self, function: Callable[[Tensor], Tensor], inputs: Tensor, member: Tensor) -> Tensor:
        """Returns what each row's own member says, ``(n, outputs)``: no member sees the rows of another.

        Args:
            function: ``(E, m, ·) -> (E, m, outputs)``.
            inputs: ``(n, ·)``.
            member: ``(n,)`` integers.
        """
        count, number = len(inputs), self.ensemble
        if count % number == 0 and count:
            turns = torch.arange(number, device=member.device).repeat(count // number)
            if torch.equal(turns, member):  # in turn, as planners have them: nothing is to be sorted
                stacked = inputs.view(-1, number, inputs.shape[-1]).transpose(0, 1)
                return function(stacked).transpose(0, 1).reshape(count, -1)
        order = member.argsort(stable=True)
        counts = torch.bincount(member, minlength=number)
        ordered = member[order]
        slot = torch.arange(count, device=member.device) - (counts.cumsum(0) - counts)[ordered]
        padded = inputs.new_zeros(number, int(counts.max()) if count else 0, inputs.shape[-1])
        padded[ordered, slot] = inputs[order]
        found = function(padded)[ordered, slot]
        return torch.empty_like(found).index_copy(0, order, found)
