"""How critics that say a categorical distribution learn: from the projected distribution of the soft return."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rl_as_inference.agents.expectation import Expectation
from rl_as_inference.agents.functional import Networks
from rl_as_inference.agents.replay import Batch
from rl_as_inference.agents.task import Task
from rl_as_inference.critics import QEnsemble
from rl_as_inference.objectives.categorical_critics import (
    categorical_critic_loss,
    categorical_projection,
    least_distribution,
)
from rl_as_inference.objectives.soft_critics import n_step_td_target, soft_td_target

__all__ = ["categorical_step"]


def categorical_step(
    task: Task,
    networks: Networks,
    targets: Networks,
    batch: Batch,
    asked: tuple[Tensor, Tensor | None, Tensor | int],
    pi: Expectation,
    alpha: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the critics' cross entropy in nats, their values ``(num_critics, B)`` and the target's mean ``(B,)``.

    Values and means are in reward units. The target is the distribution of ``r + γ (c z - α (log π - log p))``, with
    ``z`` drawn from the least critic's distribution at what follows, and discrete actions mixed as the policy chooses
    them; all of it over ``c``, the reward scale, and projected onto the atoms. Its mean is the soft target of critics
    that say a number, but for what lies past the atoms. Both present critics and their averages are asked with what
    was done and with what follows in one batch, by whose statistics they are normalised (FlashSAC, Kim et al. 2026,
    arXiv:2604.04539).

    Args:
        task: the problem.
        networks, targets: the present ones and their averages.
        batch: of transitions.
        asked: states, actions and times of what was done, and behind them of what follows.
        pi: the expectation over what follows.
        alpha: reward units per nat; None where entropy does not count there.
    """
    critics = networks.modules["critics"]
    assert isinstance(critics, QEnsemble)
    support, count, lead = critics.support, len(batch.state), task.batch_shape(pi.state)
    unit = critics.scale * networks.statistics["critics"]["reward_scale.value"]
    logits = networks.learning("critics", *asked, True)[:, :count]
    with torch.no_grad():
        after = targets.learning("critics", *asked, True)[:, count:].unflatten(1, lead)
        chances = least_distribution(after.softmax(-1), support)
        cost = torch.zeros_like(chances[..., 0]) if alpha is None else alpha * pi.relative
        worth = unit * support - cost[..., None]
        if pi.weight is not None:  # the mixture over actions, as one distribution of more points
            chances, worth = (pi.weight[..., None] * chances).flatten(-2), worth.flatten(-2)
        positions, chances = _followed(task, batch, worth, chances, pi.mean(-cost))
        target = categorical_projection(positions / unit, chances, support)
    if task.is_discrete:
        logits = task.taken(logits.movedim(-1, 0), batch.action).movedim(0, -1)
    q, y = (unit * (each * support).sum(-1) for each in (logits.softmax(-1), target))
    return categorical_critic_loss(logits, target, batch.weight), q, y


def _followed(task: Task, batch: Batch, worth: Tensor, chances: Tensor, bonus: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the returns ``(B, M)`` in reward units and their probabilities, of those that follow each step."""

    def beside(value: Any) -> Tensor:
        return value[..., None].expand(worth.shape)

    rewards, terminated = beside(batch.rewards), beside(batch.terminated)
    if task.n_step == 1:
        return soft_td_target(rewards[0], worth[0], terminated[0], task.discount), chances[0]
    last = (batch.alive > 0).sum(0).clamp(min=1) - 1  # the step at whose end a segment bootstraps
    chances = chances.gather(0, last[None, :, None].expand(1, *chances.shape[1:]))[0]
    positions = n_step_td_target(rewards, beside(bonus), worth, beside(batch.alive), terminated, task.discount)
    return positions, chances
