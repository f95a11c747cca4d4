"""Memory: an algorithm behind a recurrent encoder of what was seen and done, learned from sequences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from rl_as_inference.agents.algorithm import Algorithm
from rl_as_inference.agents.arena import Arena
from rl_as_inference.agents.functional import Networks
from rl_as_inference.agents.heads import Heads, OnStates
from rl_as_inference.agents.options import LearnerOptions
from rl_as_inference.agents.replay import Batch, Replay
from rl_as_inference.agents.task import Task
from rl_as_inference.agents.values import SoftValue
from rl_as_inference.agents.windows import Window
from rl_as_inference.nouns import Policy
from rl_as_inference.state_layout import LaidOut, Part, StateLayout, layout_of

__all__ = ["GRUEncoder", "Recurrent", "remembering"]


def remembering(make: Callable[[Task], Algorithm], arena: Arena, options: LearnerOptions) -> Algorithm:
    """Returns the algorithm that ``make`` makes, behind an encoder if the options ask for a memory.

    Raises:
        ValueError: for options that do not go with a memory, or with each other.
    """
    if options["memory"] is None:
        return make(arena.task)
    for name in ("history", "n_step"):
        if options[name] > 1:
            given = options[name]
            raise ValueError(f"{name}={given} does not go with memory={options['memory']!r}; leave one of them out")
    if options["priority_exponent"] > 0:
        raise ValueError(
            f"priority_exponent={options['priority_exponent']} is of single steps, and memory learns from sequences; "
            f"leave one of them out"
        )
    rows = (options["burn_in"] + options["sequence_length"]) * arena.num_envs
    for name in ("learning_starts", "buffer_size"):
        if options[name] < rows:  # type: ignore[literal-required]
            given = options[name]  # type: ignore[literal-required]
            raise ValueError(
                f"{name} must be >= {rows}, the steps of a whole sequence (burn_in + sequence_length, in each "
                f"environment), got {given}; raise it, or shorten sequences"
            )
    return Recurrent(make, arena.task, options)


class GRUEncoder(nn.Module):
    """Hidden states of a gated recurrent unit (Cho et al. 2014, arXiv:1406.1078), step after step.

    ``encoder(seen, done, keep, start)`` is ``h_j = GRU(keep_j h_{j-1}, (seen_j, done_j))``, ``(K, *batch, width)``, of
    ``seen`` ``(K, *batch, o)``, of ``done`` ``(K, *batch, a)``, the actions before, and of ``keep`` ``(K, *batch, 1)``,
    0 where an episode begins. Through the hidden state at ``burn_in`` no gradient passes back.

    Args:
        num_inputs: ``o + a``.
        width: of the hidden state.
    """

    def __init__(self, num_inputs: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.inputs, self.recurrent = nn.Linear(num_inputs, 3 * width), nn.Linear(width, 3 * width)

    def forward(
        self, seen: Tensor, done: Tensor, keep: Tensor, start: Tensor | None = None, burn_in: int = 0
    ) -> Tensor:
        inputs = self.inputs(torch.cat([seen, done * keep], -1))
        hidden = inputs.new_zeros((*inputs.shape[1:-1], self.width)) if start is None else start
        states = []
        for step, (given, kept) in enumerate(zip(inputs.unbind(0), keep.unbind(0), strict=True)):
            hidden = hidden.detach() if burn_in and step == burn_in else hidden
            hidden = hidden * kept
            reset, update, new = given.chunk(3, -1)
            reset_h, update_h, new_h = self.recurrent(hidden).chunk(3, -1)
            new = (new + (reset + reset_h).sigmoid() * new_h).tanh()
            hidden = torch.lerp(new, hidden, (update + update_h).sigmoid())
            states.append(hidden)
        return torch.stack(states)


class Recurrent(Algorithm):
    """An algorithm whose state is what a recurrent encoder makes of observations and actions so far.

    Replay holds single steps. A batch is sequences of them, of any part of any episode, and across the ends of
    episodes, where the hidden state begins anew. Sequences start from a zero hidden state; their first ``burn_in``
    steps only bring it to where it can be learned from, which the ``sequence_length`` steps after them are. That is
    the replay of R2D2 with a zero start state (Kapturowski, Ostrovski, Quan, Munos & Dabney 2019). Acting encodes the
    last ``burn_in + sequence_length`` observations likewise: memory reaches as far back as it was trained to, and no
    further. The encoder learns from the critics' loss alone, and has a target average, by which all that follows is
    valued.

    Args:
        make: ``(task) -> algorithm``, of the task whose states are features.
        task: the problem, whose states are windows.
        options: of the learner.

    Raises:
        ValueError: for a process with an action prior of its own.
    """

    def __init__(self, make: Callable[[Task], Algorithm], task: Task, options: LearnerOptions) -> None:
        super().__init__(task)
        if task.prior_of is not None:
            raise ValueError(
                "memory: env is a process with an action prior of its own, which cannot be asked with what an encoder "
                "makes of observations; use history=k"
            )
        assert isinstance(task.window, Window)
        self.window: Window = task.window
        self.width = int((*options["hidden_sizes"], 64)[0])
        self.burn_in, self.length = options["burn_in"], options["sequence_length"]
        features: gymnasium.spaces.Box = gymnasium.spaces.Box(
            -np.inf, np.inf, (self.width + self.window.observation_size,)
        )
        self._layout = layout_of(self.window.observation_space)
        if self._layout is not None:
            hidden = gymnasium.spaces.Box(-np.inf, np.inf, (self.width,))
            memory = Part("memory", "box", (self.width,), slice(0), hidden)
            features = LaidOut(StateLayout.made_of([memory, *self._layout.parts]))
        masks, mask = task.masks, features.layout.mask if isinstance(features, LaidOut) else None
        if masks is not None and mask is not None:
            masks = replace(masks, columns=mask.columns)
        self.inner = make(replace(task, state_space=features, window=None, masks=masks))
        self.metrics, self.targeted = self.inner.metrics, (*self.inner.targeted, "encoder")

    def batch(
        self,
        replay: Replay,
        storage: Tensor,
        size: Tensor,
        position: Tensor,
        count: int,
        first: Tensor | None = None,
    ) -> Batch:
        """Returns sequences with ``count`` transitions behind their burn-in, or a few more."""
        return replay.sequences(storage, size, position, -(-count // self.length), self.burn_in + self.length)

    def loss(self, networks: Networks, targets: Networks, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        rows, dtype = self.window.observation_rows, self.task.dtype
        seen, after = rows(batch.state).to(dtype), rows(batch.next_states).to(dtype)
        done = self.window.action_rows(batch.action).to(dtype)
        keep = torch.cat([torch.zeros_like(batch.alive[:1]), batch.alive[:-1]])[..., None]
        before = torch.cat([torch.zeros_like(done[:1]), done[:-1]])
        hidden = networks("encoder", self._shown(seen), before, keep, None, self.burn_in)
        with torch.no_grad():
            lagging = targets("encoder", self._shown(seen), before, keep)
            then = self._shown(after)[None]
            following = targets("encoder", then, done[None], torch.ones_like(keep)[None], lagging)[0]

        def learned(values: Tensor) -> Tensor:
            return values[self.burn_in :].flatten(0, 1)

        transitions = Batch(
            state=learned(torch.cat([hidden, seen], -1)),
            action=learned(batch.action),
            rewards=learned(batch.rewards)[None],
            next_states=learned(torch.cat([following, after], -1))[None],
            alive=torch.ones_like(learned(batch.alive))[None],
            terminated=learned(batch.terminated)[None],
            time=learned(batch.time) if isinstance(batch.time, Tensor) else batch.time,
            next_times=learned(batch.next_times)[None] if isinstance(batch.next_times, Tensor) else batch.next_times,
        )
        return self.inner.loss(Heads(networks, reaching=True), Heads(targets, reaching=False), transitions)

    def draw(self, networks: Networks, state: Tensor, time: Tensor | int) -> Tensor:
        return self.inner.draw(networks, self._features(lambda *args: networks("encoder", *args), state), time)

    def _features(self, encode: Callable[..., Tensor], state: Tensor) -> Tensor:
        """Returns the features of windows, ``(*batch, features)``."""
        seen, done, marks = self.window.parts(state)
        keep = torch.cat([torch.zeros_like(marks[:1]), marks])
        before = torch.cat([torch.zeros_like(done[:1]), done])
        return torch.cat([encode(self._shown(seen), before, keep)[-1], seen[-1]], -1)

    def _shown(self, seen: Tensor) -> Tensor:
        """Returns what the encoder sees of observations ``(*batch, o)``: of parts no mask, and integers one-hot."""
        return seen if self._layout is None else self._layout.inputs(seen)

    def make_modules(self, *, anew: bool) -> dict[str, nn.Module]:
        size = self.window.observation_size if self._layout is None else self._layout.num_inputs
        encoder = GRUEncoder(size + self.window.action_size, self.width)
        return {**self.inner.make_modules(anew=anew), "encoder": encoder}

    def check(self, modules: dict[str, nn.Module], state: Tensor, time: Tensor | int, *, several: bool) -> None:
        with torch.no_grad():
            self.inner.check(modules, self._features(modules["encoder"], state), time, several=several)

    def policy_of(self, modules: dict[str, nn.Module]) -> Policy:
        return OnStates(self._features, modules["encoder"], self.inner.policy_of(modules))

    def critic_of(self, modules: dict[str, nn.Module]) -> SoftValue:
        value = self.inner.critic_of(modules)
        value.task, value.policy = self.task, self.policy_of(modules)
        value.q = OnStates(self._features, modules["encoder"], modules["critics"])
        return value

    def identity(self) -> dict[str, Any]:
        return {**self.inner.identity(), "memory": "gru", "burn_in": self.burn_in}
