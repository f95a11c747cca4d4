"""Ensembles of networks with a prior: as many draws of the posterior over weights, in batched products."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from rl_as_inference.checks import check_at_least, check_positive
from rl_as_inference.state_time_network import check_hidden_sizes

__all__ = ["AnchoredEnsemble", "bounded_log_scale"]

_LOG_SCALES = (-5.0, 1.0)
"""Between which learned noise lies, as the logarithm of its share of what is predicted."""


class AnchoredEnsemble(nn.Module):
    """Networks of one shape, each with weights that a draw of the prior holds: ``forward`` is ``(E, n, num_outputs)``.

    The prior of a weight is ``N(0, scale²)``: ``scale`` is ``prior_scale`` times √(2/inputs) in hidden layers and
    √(1/inputs) in the last, and ``prior_scale`` for what is added. Member ``k`` has a draw ``θ₀`` of it for its anchor,
    where it also begins, and is trained to be the likeliest under the prior moved there, ``N(θ₀, scale²)``. The members
    are then draws of an approximate posterior over weights: an exact one for linear models of known noise whose targets
    are perturbed too, and without that close to it where there is more than a little data (Pearce, Leibfried & Brintrup
    2020, arXiv:1810.05546, *Uncertainty in neural networks: approximately Bayesian ensembling*). Where there is no data
    they keep to their anchors, and differ as draws of the prior do.

    Parameters ask for no gradient: whoever trains them gives others.

    Args:
        num_inputs, num_outputs: of each network.
        ensemble: ``E``, how many.
        hidden_sizes: widths of the layers between, which are SiLU.
        prior_scale: see above.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> networks = AnchoredEnsemble(3, 2, ensemble=5, hidden_sizes=(16,))
        >>> networks(torch.zeros(5, 7, 3)).shape, float(networks.anchor_penalty().sum())
        (torch.Size([5, 7, 2]), 0.0)
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        *,
        ensemble: int = 5,
        hidden_sizes: Sequence[int] = (128, 128),
        prior_scale: float = 1.0,
    ) -> None:
        super().__init__()
        check_at_least("ensemble", ensemble)
        check_hidden_sizes(hidden_sizes)
        check_positive("prior_scale", prior_scale)
        self.ensemble, self.num_inputs, self.num_outputs = ensemble, num_inputs, num_outputs
        sizes = [num_inputs, *hidden_sizes, num_outputs]
        self.num_layers = len(sizes) - 1
        self.scales: dict[str, float] = {}
        for layer, (before, after) in enumerate(pairwise(sizes)):
            last = layer == self.num_layers - 1
            self._add(
                f"weight_{layer}", (ensemble, before, after), prior_scale * math.sqrt((1 if last else 2) / before)
            )
            self._add(f"bias_{layer}", (ensemble, 1, after), prior_scale)

    def _add(self, name: str, shape: tuple[int, ...], scale: float) -> None:
        anchor = scale * torch.randn(shape)
        self.scales[name] = scale
        self.register_buffer(f"anchor_{name}", anchor)
        self.register_parameter(name, nn.Parameter(anchor.clone(), requires_grad=False))

    def forward(self, inputs: Tensor, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """Returns ``(E, n, num_outputs)`` of inputs ``(E, n, num_inputs)``, the first member's first.

        Args:
            inputs: of each member.
            parameters: by name, in place of its own.
        """
        own = dict(self.named_parameters()) if parameters is None else parameters
        values = inputs
        for layer in range(self.num_layers):
            values = torch.baddbmm(own[f"bias_{layer}"], silu(values) if layer else values, own[f"weight_{layer}"])
        return values

    def anchor_penalty(self, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """Returns ``½ Σ ((θ - θ₀)/scale)²`` of each member, ``(E,)`` in nats: minus a log prior, up to a constant."""
        own = dict(self.named_parameters()) if parameters is None else parameters
        apart = [(own[name] - self.get_buffer(f"anchor_{name}")) / scale for name, scale in self.scales.items()]
        return torch.stack([0.5 * each.square().sum((1, 2)) for each in apart]).sum(0)


def bounded_log_scale(raw: Tensor) -> Tensor:
    """Returns log standard deviations that stay within bounds, smoothly (Chua et al. 2018, arXiv:1805.12114, A.1)."""
    low, high = _LOG_SCALES
    return low + softplus(high - softplus(high - raw) - low)
