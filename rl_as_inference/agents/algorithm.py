"""What an algorithm is: modules, a loss and a draw. It knows nothing of the loop that holds it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from rl_as_inference.agents.companion import Companion
from rl_as_inference.agents.functional import Networks
from rl_as_inference.agents.parameters import Tree
from rl_as_inference.agents.replay import Batch, Replay
from rl_as_inference.agents.task import Task
from rl_as_inference.agents.values import SoftValue
from rl_as_inference.critics import QEnsemble
from rl_as_inference.nouns import Policy
from rl_as_inference.state_time_network import Architecture

__all__ = ["Algorithm"]


class Algorithm(ABC):
    """A way to learn a policy and a soft critic from transitions.

    To write one, say which modules it has, what their loss is, how it acts, and what its policy and its critic are;
    ``SoftQLearning``'s is the simplest. A :class:`~rl_as_inference.agents.Learner` does everything else.

    Args:
        task: the problem.

    Attributes:
        metrics: the names of the numbers that the loss reports.
        targeted: the modules that have target averages.
        delayed: the modules that are learned at every ``period``-th update only.
        delayed_metrics: the metrics that are theirs, and reported by those updates.
        period: as said.
        projects: whether :meth:`project` moves parameters.
    """

    metrics: tuple[str, ...]
    targeted: tuple[str, ...] = ("critics",)
    delayed: tuple[str, ...] = ()
    delayed_metrics: tuple[str, ...] = ()
    period: int = 1
    projects: bool = False

    def __init__(self, task: Task) -> None:
        self.task = task

    @abstractmethod
    def make_modules(self, *, anew: bool) -> dict[str, nn.Module]:
        """Returns freshly initialised modules, ``"temperature"`` and ``"critics"`` among them.

        ``anew``: copies of what the user gave, so that several sets share nothing.
        """

    @abstractmethod
    def check(self, modules: dict[str, nn.Module], state: Tensor, time: Tensor | int, *, several: bool) -> None:
        """Asks the policy once for two states, so that one that does not fit fails here and not in a traced graph.

        Args:
            modules: what :meth:`make_modules` returned.
            state: two states that episodes begin in.
            time: of them.
            several: whether updates are batched over seeds.

        Raises:
            ValueError: if the policy, or an option, does not fit the task.
        """

    def make_critics(
        self, num_critics: int, hidden_sizes: Sequence[int], architecture: Architecture = "plain", **residual: Any
    ) -> QEnsemble:
        """Returns freshly initialised critics that fit the task."""
        task = self.task
        return QEnsemble(
            task.state_space,
            task.critic_space,
            num_critics=num_critics,
            horizon=task.horizon,
            hidden_sizes=hidden_sizes,
            architecture=architecture,
            **residual,
        )

    def values(self, networks: Networks, state: Tensor, time: Tensor | int, action: Tensor | None) -> Tensor:
        """Returns every critic's value of actions, ``(num_critics, *batch)``; of all discrete ones without any."""
        if self.task.is_discrete:
            return self.task.taken(networks("critics", state, None, time), action)
        q: Tensor = networks("critics", state, action, time)
        return q

    def batch(
        self,
        replay: Replay,
        storage: Tensor,
        size: Tensor,
        position: Tensor,
        count: int,
        first: Tensor | None = None,
    ) -> Batch:
        """Returns transitions to learn from, by a pure function of replay's tensors: see :meth:`Replay.batch`."""
        return replay.batch(storage, size, position, count, self.task.n_step, first)

    @abstractmethod
    def loss(self, networks: Networks, targets: Networks, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the sum of all losses, each of which trains modules of its own, and numbers to report.

        Beside these, ``"td_error"``, ``(B,)`` in reward units, is what prioritised replay draws by; and where
        ``batch.weight`` is given, the critics' loss counts each transition by it.
        """

    def critic_loss(self, networks: Networks, targets: Networks, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns what :meth:`loss` does in the updates between, in which the modules in ``delayed`` wait."""
        raise NotImplementedError(f"{type(self).__name__} has period {self.period} and no loss for the updates between")

    def project(self, modules: Mapping[str, nn.Module], tree: Tree) -> Tree:
        """Returns parameters as a step of Adam left them, by module, back in the set where they have to stay."""
        return tree

    @abstractmethod
    def draw(self, networks: Networks, state: Tensor, time: Tensor | int) -> Tensor:
        """Returns exploring actions for a batch of states."""

    @abstractmethod
    def policy_of(self, modules: dict[str, nn.Module]) -> Policy:
        """Returns the policy that these modules are."""

    @abstractmethod
    def critic_of(self, modules: dict[str, nn.Module]) -> SoftValue:
        """Returns the soft value that these modules are."""

    def companion(self, modules: list[dict[str, nn.Module]], num_envs: int) -> Companion | None:
        """Returns what learns and acts beside the update, between steps (a model of the world); by default nothing.

        Args:
            modules: of each seed.
            num_envs: environments of each.
        """
        return None

    def identity(self) -> dict[str, Any]:
        """Returns what of the algorithm makes the learned numbers mean what they do, for a checkpoint to be held to."""
        return {}
