"""The action that a distribution holds for best."""

from typing import Any

from torch import Tensor

__all__ = ["mode_of"]


def mode_of(distribution: Any) -> Tensor:
    """Returns the action that a policy holds for best: the likeliest, or the image of the mean.

    Raises:
        ValueError: if the distribution has no ``logits``, ``deterministic`` or ``mean``.

    Example:
        >>> import pyro.distributions as dist, torch
        >>> mode_of(dist.Categorical(torch.tensor([0.2, 0.8])))
        tensor(1)
    """
    logits = getattr(distribution, "logits", None)
    if logits is not None:
        likeliest: Tensor = logits.argmax(-1)
        return likeliest
    try:
        best: Tensor = distribution.deterministic if hasattr(distribution, "deterministic") else distribution.mean
    except NotImplementedError as error:
        raise ValueError(
            f"policy: {type(distribution).__name__} has no mean, so no best action; draw actions with "
            f"deterministic=False, or give the distribution a property deterministic"
        ) from error
    return best
