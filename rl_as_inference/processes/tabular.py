"""Finite Markov decision processes given by tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.checks import holds, is_deferred
from rl_as_inference.nouns import Policy
from rl_as_inference.processes.kernels import DenseKernel, Kernel, SparseKernel, unclamped
from rl_as_inference.processes.log_sums import log_or_minus_inf
from rl_as_inference.processes.mdp import MarkovDecisionProcess
from rl_as_inference.processes.policy_tables import check_no_nan
from rl_as_inference.processes.silent_rewards import warn_of_silent_rewards
from rl_as_inference.processes.successor_tables import (
    as_floating,
    as_terminal,
    check_one_reward_each,
    check_reward_shape,
    check_successors,
    check_transition_shape,
    checked_rows,
    sparse_reward,
    stay_where_terminal,
    successor_lists,
)
from rl_as_inference.processes.table_rollouts import rolled_out
from rl_as_inference.processes.toy_text import read_toy_text
from rl_as_inference.program.readings import check_answer
from rl_as_inference.trajectories import Trajectories

__all__ = ["TabularMDP"]

_DENSE_LIMIT = 4_000_000
"""Tables read from elsewhere are held densely up to this many entries."""


class TabularMDP(MarkovDecisionProcess):
    """A process with ``S`` states and ``A`` actions, given by its tables.

    Every reading of it is differentiable in the tensors given here. In a terminal state nothing
    more is earned and the state stays where it is, whatever the tables say there.

    Args:
        transition: ``p(s'|s,a)``, ``(S, A, S)``, dense or ``torch.sparse_coo``; rows sum to one.
        reward: ``r(s,a)``, ``(S, A)``, or ``r(s,a,s')``, ``(S, A, S)`` (sparse if the transition is,
            on the same support), in reward units.
        initial: ``p(s_0)``, ``(S,)``.
        horizon: number of steps, or None for no horizon.
        discount: γ in [0, 1].
        temperature: α > 0, in reward units per nat.
        action_prior: ``p(a|s)``, ``(A,)`` or ``(S, A)``; uniform by default. A probability of 0
            forbids the action.
        terminal: which states are terminal, ``(S,)`` bool.

    Raises:
        ValueError: naming the argument, where it is wrong, and how to mend it.

    Example:
        >>> stay_or_go = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
        >>> mdp = TabularMDP(stay_or_go, torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.tensor([1.0, 0.0]),
        ...                  horizon=2, terminal=torch.tensor([False, True]))
        >>> mdp.num_states, mdp.num_actions
        (2, 2)
    """

    absorbing = has_exact_answers = True

    def __init__(
        self,
        transition: Any,
        reward: Any,
        initial: Any,
        *,
        horizon: int | None = None,
        discount: float | Tensor = 1.0,
        temperature: float | Tensor = 1.0,
        action_prior: Any = None,
        terminal: Any = None,
    ) -> None:
        transition = as_floating(transition, "transition")
        if transition.layout not in (torch.strided, torch.sparse_coo):
            transition = transition.to_sparse_coo()
        check_transition_shape(transition)
        num_states = transition.shape[0]
        options: dict[str, Any] = {"dtype": transition.dtype, "device": transition.device}
        terminal = as_terminal(terminal, num_states, transition.device)
        if transition.is_sparse:
            indices, probabilities, slots = successor_lists(transition)
            reward = sparse_reward(reward, transition, slots, probabilities.shape, options)
        else:
            indices, probabilities = None, transition
            reward = as_floating(reward, "reward").to(**options)
        self._build(indices, probabilities, reward, initial, terminal, action_prior, horizon, discount, temperature)
        self._tell_of_silent_rewards()

    @classmethod
    @checked
    def from_successors(
        cls,
        indices: Tensor,
        probabilities: Tensor,
        reward: Tensor,
        initial: Tensor,
        *,
        horizon: int | None = None,
        discount: float | Tensor = 1.0,
        temperature: float | Tensor = 1.0,
        action_prior: Any = None,
        terminal: Tensor | None = None,
    ) -> "TabularMDP":
        """Returns a sparse process whose rows are given by their ``K`` successors.

        Args:
            indices: the next states, integers ``(S, A, K)``.
            probabilities: their probabilities, ``(S, A, K)``; rows sum to one. A row with fewer
                successors fills up with probability 0.
            reward: ``(S, A)``, or ``(S, A, K)`` for rewards that depend on the successor.
            initial, horizon, discount, temperature, action_prior, terminal: as in the constructor.

        Raises:
            ValueError: as the constructor does.
        """
        probabilities = as_floating(probabilities, "probabilities")
        if probabilities.dim() != 3 or 0 in probabilities.shape:
            raise ValueError(f"probabilities must have shape (S, A, K), got {tuple(probabilities.shape)}")
        indices = torch.as_tensor(indices, device=probabilities.device)
        check_successors(indices, probabilities)
        indices = indices.long()  # as operations want them that gather and scatter
        terminal = as_terminal(terminal, len(probabilities), probabilities.device)
        self = cls.__new__(cls)
        reward = as_floating(reward, "reward").to(probabilities)
        if reward.shape == probabilities.shape:
            check_one_reward_each(indices, probabilities, reward)
        self._build(indices, probabilities, reward, initial, terminal, action_prior, horizon, discount, temperature)
        self._tell_of_silent_rewards()
        return self

    def _build(
        self,
        indices: Tensor | None,
        probabilities: Tensor,
        reward: Tensor,
        initial: Any,
        terminal: Tensor,
        action_prior: Any,
        horizon: int | None,
        discount: float | Tensor,
        temperature: float | Tensor,
    ) -> None:
        MarkovDecisionProcess.__init__(self, horizon=horizon, discount=discount, temperature=temperature)
        num_states, num_actions, _ = probabilities.shape
        self.num_states, self.num_actions = num_states, num_actions
        self.state_space = gymnasium.spaces.Discrete(num_states)
        self.action_space = gymnasium.spaces.Discrete(num_actions)
        self.name = "tabular"
        self.layout: np.ndarray[Any, Any] | None = None
        """For grids: a letter per cell, ``(rows, columns)``, states numbered row by row, once or, with keys to be had,
        several times; see ``docs/report.md``."""
        self.cells: np.ndarray[Any, Any] | None = None
        """Which cell each state is in, ``(S,)``, where states are numbered otherwise."""
        self.copies: Sequence[str] = ()
        """Names of the states of one cell, in their order: ``("without the key", "with the key")``."""
        self.legend: Mapping[str, str] = {}
        """What letters mean that are none of the usual ones."""

        check_reward_shape(reward, probabilities.shape, "reward[indices]" if indices is not None else None)
        if not holds(reward.isfinite()):
            where = tuple(int(i) for i in (~reward.isfinite()).nonzero()[0])
            raise ValueError(f"reward must be finite; it is {float(reward[where])} at index {where}")
        options: dict[str, Any] = {"dtype": probabilities.dtype, "device": probabilities.device}
        initial = as_floating(initial, "initial").to(**options)
        if initial.shape != (num_states,):
            raise ValueError(f"initial must have shape ({num_states},), got {tuple(initial.shape)}")
        self.has_uniform_prior = action_prior is None
        if action_prior is None:
            prior = torch.full((num_states, num_actions), 1.0 / num_actions, **options)
        else:
            prior = as_floating(action_prior, "action_prior").to(**options)
            if prior.shape not in ((num_actions,), (num_states, num_actions)):
                raise ValueError(
                    f"action_prior must have shape ({num_actions},) or ({num_states}, {num_actions}), got "
                    f"{tuple(prior.shape)}"
                )
            prior = prior.expand(num_states, num_actions)
        probabilities = checked_rows("transition", probabilities)
        initial, prior = checked_rows("initial", initial), checked_rows("action_prior", prior)

        self.terminal = terminal
        self.has_terminal = bool(terminal.any())
        self.reward_table = reward
        self.initial_probabilities = initial
        self.action_prior = prior
        self._given = indices, probabilities
        # Derived once, unless a gradient is wanted: a graph can be gone through only once.
        self._kernel = None if self.has_terminal and probabilities.requires_grad else self._new_kernel()
        self._log_action_prior = None if prior.requires_grad else log_or_minus_inf(prior)

    def _tell_of_silent_rewards(self) -> None:
        if self.has_terminal and not is_deferred():
            table, ends = self.reward_table.detach(), self.terminal
            warn_of_silent_rewards(self.name, table[ends], table[~ends], ends.nonzero().squeeze(-1))

    @property
    def cell_of_state(self) -> np.ndarray[Any, Any] | None:
        """Which cell of the layout each state is in, ``(S,)``, row by row; None without a layout."""
        if self.layout is None:
            return None
        return np.arange(self.num_states) % np.size(self.layout) if self.cells is None else np.asarray(self.cells)

    @property
    def kernel(self) -> Kernel:
        """The transition kernel, in which nothing leaves a terminal state."""
        return self._new_kernel() if self._kernel is None else self._kernel

    @property
    def log_action_prior(self) -> Tensor:
        """``log p(a|s)``, ``(S, A)``; -inf where the action is forbidden."""
        return log_or_minus_inf(self.action_prior) if self._log_action_prior is None else self._log_action_prior

    def _new_kernel(self) -> Kernel:
        indices, probabilities = self._given
        if self.has_terminal:
            indices, probabilities = stay_where_terminal(indices, probabilities, self.terminal)
        return DenseKernel(probabilities) if indices is None else SparseKernel(indices, probabilities)

    def initial(self) -> Any:
        # Not probs=...: Categorical clamps them, and what is impossible would become possible.
        return dist.Categorical(logits=log_or_minus_inf(self.initial_probabilities))

    def transition(self, state: Tensor, action: Tensor) -> Any:
        return self.kernel.distribution(state, action)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        if self.reward_table.dim() == 2:
            return self.reward_table[state, action]
        return self.kernel.lookup(self.reward_table, state, action, next_state)

    def prior(self, state: Tensor) -> Any:
        return dist.Categorical(logits=self.log_action_prior[state])

    def terminated(self, state: Tensor) -> Tensor | None:
        return self.terminal[state] if self.has_terminal else None

    def expected_reward(self) -> Tensor:
        """Returns ``r(s,a) = E_{s'} r(s,a,s')``, ``(S, A)`` in reward units."""
        return self.reward_table if self.reward_table.dim() == 2 else self.kernel.mean(self.reward_table)

    def next_state(self, state: Tensor, action: Tensor, *, pathwise: bool = False) -> Tensor:
        if pathwise:  # to be told why not
            return super().next_state(state, action, pathwise=True)
        uniform = torch.rand(state.shape, dtype=self._like_dtype, device=state.device)
        row = state * self.num_actions + action
        return self.kernel.sampler(row.flatten(), uniform.flatten()).view(row.shape)

    def _rollout(self, policy: Policy | None, num_trajectories: int, horizon: int, pathwise: bool) -> Trajectories:
        if pathwise:  # to be told why not
            return super()._rollout(policy, num_trajectories, horizon, pathwise)
        return rolled_out(self, policy, num_trajectories, horizon)

    def log_probabilities(self, answer: Any, state: Tensor, where: str, *, checks_nan: bool = True) -> Tensor:
        """Returns the log probabilities of a policy's answer in ``state``, ``(*batch, A)``.

        Raises:
            ValueError: if the answer is no Categorical over the process's actions, or NaN (unless it is asked not to
                look); ``where`` it was given is said.
        """
        is_categorical = isinstance(answer, torch.distributions.Categorical)
        if is_categorical and (answer.batch_shape != state.shape or answer._param.shape[-1] != self.num_actions):
            answer = check_answer(answer, self.prior(state), where, state.shape)
        if not is_categorical:
            if not isinstance(answer, torch.distributions.Distribution) or answer.event_shape:
                check_answer(answer, self.prior(state), where)  # which says what is wrong
            raise ValueError(
                f"policy must answer with a Categorical over {self.num_actions} actions, got "
                f"{type(answer).__name__} {where}"
            )
        return check_no_nan(unclamped(answer).logits, where) if checks_nan else unclamped(answer).logits

    @property
    def _like_dtype(self) -> torch.dtype:
        return self.initial_probabilities.dtype

    def learns_dynamics(self) -> bool:
        wanted = self.kernel.probabilities.requires_grad or self.initial_probabilities.requires_grad
        return torch.is_grad_enabled() and wanted

    def replace(self, **changes: Any) -> "TabularMDP":
        """Returns a copy with other ``horizon, discount, temperature, action_prior`` or ``reward`` (same shape).

        Raises:
            ValueError: for a name that cannot be replaced, or a bad value.
        """
        unknown = set(changes) - {"horizon", "discount", "temperature", "reward", "action_prior"}
        if unknown:
            raise ValueError(
                f"replace: cannot replace {sorted(unknown)}; it takes horizon, discount, temperature, "
                f"reward, action_prior"
            )
        return self._copied(
            *self._given,
            changes.get("reward", self.reward_table),
            self.initial_probabilities,
            changes.get("action_prior", None if self.has_uniform_prior else self.action_prior),
            changes.get("horizon", self.horizon),
            changes.get("discount", self.discount),
            changes.get("temperature", self.temperature),
        )

    def to(self, dtype: torch.dtype) -> "TabularMDP":
        """Returns the process in a floating type, in which its rows sum to one; itself if that is its own."""
        if dtype == self._like_dtype:
            return self
        indices, probabilities = self._given
        # For slopes the sums are constants, as they are where rows are checked.
        probabilities, initial, prior = (
            rows / rows.detach().sum(-1, keepdim=True)
            for rows in (x.to(dtype) for x in (probabilities, self.initial_probabilities, self.action_prior))
        )
        reward, own_prior = self.reward_table.to(dtype), None if self.has_uniform_prior else prior
        unchanged = self.horizon, self.discount, self.temperature
        return self._copied(indices, probabilities, reward, initial, own_prior, *unchanged)

    def _copied(self, indices: Any, probabilities: Tensor, reward: Tensor, initial: Tensor, *rest: Any) -> "TabularMDP":
        other = TabularMDP.__new__(TabularMDP)
        other._build(indices, probabilities, reward, initial, self.terminal, *rest)
        other.name, other.layout, other.cells = self.name, self.layout, self.cells
        other.copies, other.legend, other.action_names = self.copies, self.legend, self.action_names
        return other

    @classmethod
    @checked
    def from_gymnasium(
        cls,
        env_id: str,
        *,
        horizon: int | None = None,
        discount: float | Tensor = 1.0,
        temperature: float | Tensor = 1.0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        **make_kwargs: Any,
    ) -> "TabularMDP":
        """Returns the process of a toy-text environment, read from its own transition table.

        Args:
            env_id: ``"FrozenLake-v1"``, ``"CliffWalking-v1"``, ``"Taxi-v4"`` or any environment
                with a table ``P`` and a distribution of initial states.
            horizon, discount, temperature: as in the constructor. The environment's own time limit
                is a truncation, not part of its table: give it as the horizon if it is meant.
            dtype, device: of the tensors.
            **make_kwargs: passed to :func:`gymnasium.make` (``map_name="8x8"``, ``is_slippery=True``).

        Raises:
            ValueError: if Gymnasium cannot make the environment, or it has no table.

        Example:
            >>> lake = TabularMDP.from_gymnasium("FrozenLake-v1", map_name="4x4", horizon=20)
            >>> lake.num_states, lake.num_actions, int(lake.terminal.sum())
            (16, 4, 5)
        """
        table = read_toy_text(env_id, **make_kwargs)
        num_states, num_actions, _ = table.indices.shape
        dtype = dtype or torch.get_default_dtype()
        tensors = [torch.as_tensor(x, dtype=dtype, device=device) for x in table[1:4]]
        options: dict[str, Any] = {
            "horizon": horizon,
            "discount": discount,
            "temperature": temperature,
            "terminal": torch.as_tensor(table.terminal, device=device),
        }
        successors = torch.as_tensor(table.indices, device=device)
        if num_states * num_actions * num_states <= _DENSE_LIMIT:
            rows = SparseKernel(successors, tensors[0])
            mdp = cls(rows.dense(), rows.dense_table(tensors[1]), tensors[2], **options)
        else:
            mdp = cls.from_successors(successors, *tensors, **options)
        mdp.name, mdp.layout = env_id, table.layout
        return mdp
