"""Running a program once under a policy, and keeping what happened at each site."""

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rl_as_inference.nouns import Policy
from rl_as_inference.program.readings import Follow
from rl_as_inference.program.sites import is_action

__all__ = ["log_prob_of", "policy_of", "prior_of", "record"]


def record(
    run: Callable[[], Any],
    policy: Policy | None,
    *,
    pathwise: bool = False,
    values: Mapping[str, Tensor] | None = None,
    num_actions: int | None = None,
) -> list[Any]:
    """Returns the Pyro messages of one run of a program under ``policy``, in the order of execution.

    One run serves model and guide at once: an action site's message holds the policy as ``fn`` and
    the action prior under :func:`prior_of`, and everything else is common to both. Factors and
    observations are kept. Put plates inside ``run``, so that the messages know them.

    Args:
        run: the program with its arguments bound.
        policy: None for the action prior.
        pathwise: draw actions by ``rsample`` where the policy can, and let gradients through.
        values: what to take at the sites of these names, instead of drawing.
        num_actions: leave the program before the action after so many.
    """
    recorder = _Recorder(policy, pathwise, values or {}, num_actions)
    with contextlib.suppress(_Left), recorder:
        run()
    messages: list[Any] = recorder.messages
    return messages


def prior_of(message: Any) -> Any:
    """Returns the action prior of an action site's message."""
    return message["infer"].get("rlai_prior", message["fn"])


def policy_of(message: Any) -> Any:
    """Returns what the policy answered at an action site's message, in ended trajectories too; its prior without one.

    Beside the action prior that stands in for it there, probabilities of zero are clamped.
    """
    return message["infer"].get("rlai_policy", message["fn"])


def log_prob_of(fn: Any, value: Tensor) -> Tensor:
    """Returns ``log p(value)`` of the probabilities that a distribution was given, -∞ where that is zero.

    torch clamps the probabilities that a Categorical or Bernoulli is given to ε, so that its own ``log_prob``
    calls all that is less likely about 16 nats unlikely, or 36 in float64.

    Example:
        >>> import pyro.distributions as dist
        >>> log_prob_of(dist.Categorical(torch.tensor([1.0, 0.0, 1e-9])), torch.tensor([1, 2]))
        tensor([   -inf, -20.7233])
    """
    found: Tensor = fn.log_prob(value)
    if isinstance(fn, torch.distributions.Independent):
        base = log_prob_of(fn.base_dist, value)
        dims = tuple(range(-fn.reinterpreted_batch_ndims, 0))
        return base.sum(dims) if dims else base
    given: Tensor = getattr(fn, "_param", found)
    if given is not vars(fn).get("probs"):  # logits were given, which nothing clamps
        return found
    if isinstance(fn, torch.distributions.Categorical):
        shape = torch.broadcast_shapes(value.shape, given.shape[:-1])
        index = value.long().expand(shape)[..., None]
        return given.expand(*shape, -1).gather(-1, index)[..., 0].log()
    if isinstance(fn, torch.distributions.Bernoulli):
        return torch.where(value == 1, given.log(), (-given).log1p())
    return found


class _Left(Exception):
    """Leaves a program in the middle."""


class _Recorder(Follow):
    def __init__(
        self, policy: Policy | None, pathwise: bool, values: Mapping[str, Tensor], num_actions: int | None = None
    ) -> None:
        super().__init__(policy or _no_policy)
        self.prior_only = policy is None
        self.pathwise = pathwise
        self.values = values
        self.actions_left = math.inf if num_actions is None else num_actions
        self.messages: list[Any] = []

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"] = self.values[msg["name"]]
        if not is_action(msg):
            return
        if self.actions_left == 0:
            raise _Left
        self.actions_left -= 1
        if not self.prior_only and not msg["is_observed"]:
            self._act(msg)
        if not self.pathwise and msg["value"] is None:
            with torch.no_grad():
                msg["value"] = msg["fn"].sample()

    def _pyro_rlai_factors_count(self, msg: Any) -> None:
        """Factors are what is to be recorded, so they are not silenced."""

    def _pyro_rlai_sites_so_far(self, msg: Any) -> None:
        msg["value"], msg["done"] = list(self.messages), True

    def _pyro_post_sample(self, msg: Any) -> None:
        self.messages.append(msg)


def _no_policy(state: Any, t: int) -> Any:
    raise AssertionError("the action prior is not asked through a policy")
