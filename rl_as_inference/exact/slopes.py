"""How exact objectives change with the temperature."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from rl_as_inference.processes import MarkovDecisionProcess

__all__ = ["slope_in_inverse_temperature"]


P = TypeVar("P", bound=MarkovDecisionProcess)


def slope_in_inverse_temperature(mdp: P, objective: Callable[[P], Tensor]) -> Tensor:
    """Returns ``d objective / d(1/α)``, 0-dimensional, in reward units, for an objective in nats."""
    like = objective(mdp)
    differentiable = like.requires_grad
    with torch.enable_grad():
        alpha = torch.as_tensor(mdp.temperature, dtype=like.dtype, device=like.device)
        alpha = alpha if alpha.requires_grad else alpha.detach().requires_grad_()
        (slope,) = torch.autograd.grad(objective(mdp.at_temperature(alpha)), alpha, create_graph=differentiable)
    answer = -(alpha**2) * slope
    return answer if differentiable else answer.detach()
