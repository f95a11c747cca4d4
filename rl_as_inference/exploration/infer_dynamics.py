"""What the dynamics and the rewards of a process may be, from what was seen of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rl_as_inference.arguments import checked_but
from rl_as_inference.arviz_data import PosteriorData
from rl_as_inference.exploration.conjugacy import NotConjugateError
from rl_as_inference.exploration.conjugate import ConjugatePosterior
from rl_as_inference.exploration.exact_draws import exact_inference_data, warn_of_untouched
from rl_as_inference.exploration.transitions import Transitions, read_transitions
from rl_as_inference.host import in_turn
from rl_as_inference.processes import MarkovDecisionProcess
from rl_as_inference.processes.partially_observed import PartiallyObservedMDP
from rl_as_inference.randomness import seeded
from rl_as_inference.reasoning.density import Density, device_of
from rl_as_inference.reasoning.posterior_draws import as_inference_data, check_asked, draw_posterior, warn_of_priors

__all__ = ["UnknownDynamics", "infer_dynamics"]


class UnknownDynamics(Density[Transitions]):
    """A family's sites, and their density given transitions: the process says how probable each is."""

    def _read(self, returned: Any) -> tuple[MarkovDecisionProcess, None]:
        if not isinstance(returned, MarkovDecisionProcess):
            raise ValueError(
                f"family must return a MarkovDecisionProcess, whose transition has a density; it returned "
                f"{type(returned).__name__}"
            )
        if isinstance(returned, PartiallyObservedMDP):
            raise ValueError(
                f"family returns a {type(returned).__name__}, whose state is hidden; infer_dynamics takes transitions "
                f"between states that are seen"
            )
        return returned, None

    def _met(self) -> Transitions:
        if self.data.rewards is None or self.data.reward_noise > 0:
            return self.data
        with torch.no_grad():
            for values in self.combinations:
                paid = []
                for row in self._points():
                    process = self._run(row, values)[0]
                    shown = self.data.to(device_of(process))
                    shown.check(process)
                    expected, rounding = shown.expected(process)
                    paid.append(expected)
                spread = (torch.stack(paid) - paid[0]).abs().amax(0)
                if bool((spread > rounding * (1 + paid[0].abs())).any()):
                    raise ValueError(
                        "reward_noise is 0, so that rewards are seen exactly, and they depend on the family's "
                        "unknowns: then there is no density to draw from by NUTS or SVI; give reward_noise > 0, or "
                        "leave rewards out, (states, actions)"
                    )
        return self.data

    def _impossible(self, refuted: str, widest: Tensor) -> str:
        never = (widest == -torch.inf).nonzero()
        return self.data.improbable(int(never[0])) if len(never) else refuted

    def _cost(self, process: MarkovDecisionProcess, shown: Transitions) -> tuple[int, int]:
        return 1, len(shown.tally)


@checked_but("family", "trajectories", "seed", "reward_noise")
@in_turn
def infer_dynamics(
    family: Callable[[], Any],
    trajectories: Any,
    *,
    method: str = "auto",
    reward_noise: float = 0.0,
    num_draws: int = 500,
    num_chains: int = 2,
    num_warmup: int = 100,
    seed: int = 0,
    progress: bool = False,
) -> PosteriorData:
    """Returns the posterior of a family's unknowns, given transitions (and rewards) seen in its process.

    Each transition has the probability that the process gives it, ``p(s'|s, a)``, and each reward that of Gaussian
    noise about ``r(s, a, s')``. Where trajectories begin, and what was done, is taken as given: it says nothing about
    the dynamics. Where the unknowns are conjugate, as :class:`ConjugatePosterior` finds by looking at the family's
    sites, the posterior is exact and its draws are independent. Else it is had by gradients, as in
    :func:`infer_agent`, and discrete unknowns are summed over and drawn given the rest.

    The answer has the groups ``posterior`` and ``prior`` (the family's sites, by name), ``sample_stats`` (``lp``, the
    log density of sites and data in unconstrained coordinates, in nats; ``diverging``; ``probability_NAME`` of each
    value of a discrete unknown given the rest), ``log_likelihood`` (``trajectory``, nats; without rewards that are seen
    exactly, which have no density), ``observed_data`` (``state``, ``action`` and ``reward``) and ``constant_data``
    (``mask``, of what counted; of exact answers also ``mean_NAME`` and ``variance_NAME`` of each site in closed form).
    The attribute ``method`` says which was used.

    Args:
        family: a Pyro program without arguments, which draws what is unknown and returns a process in parts: a
            TabularMDP, a LinearGaussianMDP or any MarkovDecisionProcess whose transition has a ``log_prob``. It must
            depend on its draws alone. Unknown discounts, horizons, first states and action priors are not told by
            transitions, and keep their prior.
        trajectories: :class:`Trajectories`; a tuple of tensors ``(states, actions)`` or ``(states, actions,
            rewards)`` of shapes ``(T or T+1, N, ...)``, ``(T, N, ...)`` and ``(T, N)``; a list of such tuples with one
            trajectory each, which may differ in length; or a replay, with ``state, action, reward, next_state``. Where
            the last state is not given, the last action counts for nothing, and so does what is written down of
            terminal states. Without rewards there is no conditioning on them.
        method: ``"exact"``; ``"nuts"``; ``"svi"``, a Gaussian in unconstrained coordinates fitted by its ELBO; or
            ``"auto"``, exact where the family is conjugate, else NUTS.
        reward_noise: the standard deviation of the Gaussian noise that rewards are seen with, in reward units. With 0
            they are seen exactly: one is known once it is seen, and draws of others agree with it.
        num_draws: draws in all, over the chains.
        num_chains: chains of NUTS, in lockstep; of other methods the draws are split into as many.
        num_warmup: warm-up steps a chain, of NUTS.
        seed: of all randomness; the caller's own random state is left as it was.
        progress: show a bar.

    Raises:
        ValueError: if an argument is out of its range; the family draws nothing, returns no process, is not conjugate
            where ``method="exact"`` (and why), or gives a transition that was seen no probability at any value of its
            unknowns (step, trajectory, state, action and next state are named); or trajectories have no transitions,
            NaN among them, states or actions outside the process's spaces, or rewards seen exactly that contradict one
            another or the family.

    Warns:
        UserWarning: where what was seen leaves an unknown, rows of it, or a joint direction of several, at its prior.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from rl_as_inference import TabularMDP
        >>> def family():
        ...     slip = pyro.sample("slip", dist.Beta(1.0, 1.0))
        ...     rows = torch.stack([slip, 1 - slip]).expand(2, 1, 2)
        ...     return TabularMDP(rows, torch.zeros(2, 1), torch.tensor([1.0, 0.0]), horizon=4)
        >>> answer = infer_dynamics(family, [([0, 1, 1, 0, 1], [0, 0, 0, 0])])
        >>> answer.attrs["method"], round(answer.constant_data["mean_slip"].item(), 4)  # (1 + 1) / (2 + 4)
        ('exact', 0.3333)
    """
    if method not in ("auto", "exact", "nuts", "svi"):
        raise ValueError(f"method must be 'auto', 'exact', 'nuts' or 'svi', got {method!r}")
    check_asked(family, num_draws, num_chains, num_warmup, seed)
    seen = read_transitions(trajectories, reward_noise)
    with seeded(seed), torch.inference_mode(False), torch.enable_grad():
        if method in ("auto", "exact"):
            try:
                prior = ConjugatePosterior.exactly(family, reward_noise=seen.reward_noise)
            except NotConjugateError as problem:
                if method == "exact":
                    raise ValueError(
                        f"method='exact' takes conjugate families, and {problem}; use method='nuts' or 'svi'"
                    ) from None
            else:
                belief = prior.given(seen)
                answer = exact_inference_data(belief, seen, num_draws, num_chains)
                warn_of_untouched(belief, seen.noun, seen.advice)
                return answer
        unknowns = UnknownDynamics(family, seen)
        drawn = draw_posterior(
            unknowns, "nuts" if method == "auto" else method, num_draws, num_chains, num_warmup, progress
        )
        answer = as_inference_data(unknowns, drawn, "trajectory", seen.observed, {"method": drawn.method})
        warn_of_priors(unknowns, drawn.mode, answer)
    return answer
