"""The posterior density of what is unknown about an agent, as a function of one unconstrained vector."""

from collections.abc import Callable
from typing import Any

import torch

from rl_as_inference.exact import Dynamics
from rl_as_inference.processes import MarkovDecisionProcess, TabularMDP
from rl_as_inference.processes.kernels import DenseKernel
from rl_as_inference.processes.partially_observed import PartiallyObservedMDP
from rl_as_inference.reasoning.demonstrations import Acting, Demonstrations
from rl_as_inference.reasoning.density import Density
from rl_as_inference.reasoning.hidden_demonstrations import as_hidden
from rl_as_inference.reasoning.returned_agents import agent_of

__all__ = ["Unknowns"]


class Unknowns(Density[Demonstrations]):
    """A family's sites, and their density given demonstrations, each action of which planning gives a probability."""

    def __init__(
        self, family: Callable[[], Any], demonstrations: Demonstrations, dynamics: Dynamics, num_prior: int = 200
    ) -> None:
        self._dynamics = dynamics
        super().__init__(family, demonstrations, num_prior)

    def _read(self, returned: Any) -> tuple[MarkovDecisionProcess, Acting]:
        return agent_of(returned, self._dynamics)

    def _met(self) -> Demonstrations:
        """Returns the demonstrations, as agents of the family's kind are told by, which have met some of them."""
        rows = self._points()
        if not self.prior:  # where all unknowns are 0, much may be equal by chance
            rows = torch.cat([rows, torch.linspace(0.3, 1.7, self.size, dtype=rows.dtype)[None].sqrt()])
        with torch.no_grad():
            process, acting, _ = self._run(rows[0], self.combinations[0])
            given = as_hidden(self.data, process)
            for row in rows if isinstance(process, PartiallyObservedMDP) else ():
                for values in self.combinations:
                    process, acting, _ = self._run(row, values)
                    given.prepare(process, acting)
        return given

    def _cost(self, process: MarkovDecisionProcess, shown: Demonstrations) -> tuple[int, int]:
        return process.horizon or 1, shown.width(process) or _width(process, self._dynamics)


def _width(process: MarkovDecisionProcess, dynamics: Dynamics) -> int:
    """Returns how many numbers a step of planning goes through."""
    if not isinstance(process, TabularMDP):
        return 1
    probabilities = process.kernel.probabilities
    product = isinstance(process.kernel, DenseKernel) and dynamics == "causal" and process.reward_table.dim() == 2
    return probabilities.shape[:2].numel() if product else probabilities.numel()
