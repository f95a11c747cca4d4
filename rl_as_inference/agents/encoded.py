"""Images: an algorithm behind a convolutional encoder, which policy and critics share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rl_as_inference.agents.algorithm import Algorithm
from rl_as_inference.agents.arena import Arena
from rl_as_inference.agents.functional import Networks
from rl_as_inference.agents.heads import Heads, OnStates
from rl_as_inference.agents.image_encoder import ImageEncoder
from rl_as_inference.agents.options import LearnerOptions
from rl_as_inference.agents.parameters import Tree
from rl_as_inference.agents.recurrent import remembering
from rl_as_inference.agents.replay import Batch
from rl_as_inference.agents.task import Task
from rl_as_inference.agents.values import SoftValue
from rl_as_inference.nouns import Policy
from rl_as_inference.state_layout import layout_of

__all__ = ["Encoded", "behind_encoder"]


def behind_encoder(make: Callable[[Task], Algorithm], arena: Arena, options: LearnerOptions) -> Algorithm:
    """Returns the algorithm that ``make`` makes: behind an encoder of images, or of a memory, where there are such.

    Raises:
        ValueError: for options that do not go with an encoder.
    """
    layout = layout_of(arena.task.state_space)
    return Encoded(make, arena.task) if layout is not None and layout.images else remembering(make, arena, options)


class Encoded(Algorithm):
    """An algorithm whose state is what an :class:`ImageEncoder` makes of one.

    Policy and critics stand on the same features. The encoder learns from the critics' loss alone, as in SAC-AE and DrQ
    (Yarats et al. 2021, arXiv:1910.01741, arXiv:2004.13649): an actor that moves it too takes from the critics what
    they stand on. What follows is encoded by the encoder as it is, and only the heads have target averages, as in
    DrQ-v2 (Yarats et al. 2021, arXiv:2107.09645): each image then goes through the convolutions once in an update.

    Args:
        make: ``(task) -> algorithm``, of the task whose states are features.
        task: the problem, whose states have images in them.

    Raises:
        ValueError: for a process with an action prior of its own.
    """

    def __init__(self, make: Callable[[Task], Algorithm], task: Task) -> None:
        super().__init__(task)
        if task.prior_of is not None:
            raise ValueError(
                "env is a process with an action prior of its own, which cannot be asked with what an encoder makes of "
                "images; give its states as numbers"
            )
        with torch.device("meta"):  # only to know the features
            features = ImageEncoder(task.state_space).space
        layout, masks = layout_of(features), None
        if task.masks is not None and layout is not None and layout.mask is not None:
            masks = replace(task.masks, columns=layout.mask.columns)
        self.inner = make(replace(task, state_space=features, window=None, masks=masks))
        self.metrics, self.targeted = self.inner.metrics, self.inner.targeted
        self.delayed, self.delayed_metrics = self.inner.delayed, self.inner.delayed_metrics
        self.period, self.projects = self.inner.period, self.inner.projects

    def loss(self, networks: Networks, targets: Networks, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.inner.loss(*self._behind(networks, targets, batch))

    def critic_loss(self, networks: Networks, targets: Networks, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.inner.critic_loss(*self._behind(networks, targets, batch))

    def _behind(self, networks: Networks, targets: Networks, batch: Batch) -> tuple[Networks, Networks, Batch]:
        """Returns heads and features in place of networks and images."""
        seen = networks("encoder", batch.state)
        with torch.no_grad():
            following = networks.frozen()("encoder", batch.next_states)
        features = batch._replace(state=seen, next_states=following)
        return Heads(networks, reaching=True), Heads(targets, reaching=False), features

    def project(self, modules: Mapping[str, nn.Module], tree: Tree) -> Tree:
        return self.inner.project(modules, tree)

    def draw(self, networks: Networks, state: Tensor, time: Tensor | int) -> Tensor:
        return self.inner.draw(networks, networks("encoder", state), time)

    def make_modules(self, *, anew: bool) -> dict[str, nn.Module]:
        return {**self.inner.make_modules(anew=anew), "encoder": ImageEncoder(self.task.state_space)}

    def check(self, modules: dict[str, nn.Module], state: Tensor, time: Tensor | int, *, several: bool) -> None:
        with torch.no_grad():
            self.inner.check(modules, modules["encoder"](state), time, several=several)

    def policy_of(self, modules: dict[str, nn.Module]) -> Policy:
        return OnStates(_encoded, modules["encoder"], self.inner.policy_of(modules))

    def critic_of(self, modules: dict[str, nn.Module]) -> SoftValue:
        value = self.inner.critic_of(modules)
        value.task, value.policy = self.task, self.policy_of(modules)
        value.q = OnStates(_encoded, modules["encoder"], modules["critics"])
        return value

    def identity(self) -> dict[str, Any]:
        return self.inner.identity()


def _encoded(encoder: nn.Module, state: Tensor) -> Tensor:
    features: Tensor = encoder(state)
    return features
