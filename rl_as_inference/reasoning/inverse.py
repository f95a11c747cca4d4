"""What an agent wants, how rational it is and what it believes, from what it did."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rl_as_inference.arguments import checked_but
from rl_as_inference.arviz_data import PosteriorData
from rl_as_inference.distributed import joined
from rl_as_inference.exact import Dynamics
from rl_as_inference.exact.backups import check_dynamics
from rl_as_inference.host import in_turn
from rl_as_inference.nouns import DemonstrationsLike
from rl_as_inference.randomness import seeded
from rl_as_inference.reasoning.demonstrations import Demonstrations, read_demonstrations
from rl_as_inference.reasoning.posterior_draws import as_inference_data, check_asked, draw_posterior, warn_of_priors
from rl_as_inference.reasoning.unknowns import Unknowns
from rl_as_inference.sharing import agree_on

__all__ = ["infer_agent"]


@checked_but("family", "demonstrations", "seed")
@in_turn
def infer_agent(
    family: Callable[[], Any],
    demonstrations: DemonstrationsLike,
    *,
    method: str = "nuts",
    dynamics: Dynamics = "causal",
    num_draws: int = 500,
    num_chains: int = 2,
    num_warmup: int = 100,
    seed: int = 0,
    progress: bool = False,
    distributed: bool = False,
) -> PosteriorData:
    """Returns the posterior of what is unknown about an agent, given demonstrations of its behaviour.

    Bayesian inverse reinforcement learning (Ramachandran & Amir, IJCAI 2007) with the likelihood of maximum
    causal entropy (Ziebart, Bagnell & Dey, ICML 2010): each action has the probability that the soft-optimal
    policy of the family's process gives it. The planning is differentiable, so that the posterior is had by
    gradients, and batched over chains. Discrete unknowns are summed over, and drawn given the rest.

    Where the agent does not see the state, what it believes is inferred beside what it wants, as by Baker,
    Jara-Ettinger, Saxe & Tenenbaum (Nature Human Behaviour 1, 2017): an action has the probability that the best plan
    on the agent's own belief gives it, after what the agent has seen and done.

    The answer has the groups ``posterior`` and ``prior`` (the family's sites, by name), ``sample_stats``
    (``lp``, the log density in nats; ``diverging``; ``probability_NAME`` of each value of a discrete unknown given
    the rest), ``log_likelihood`` (``demonstration``, nats), ``observed_data`` (``state``, ``action``, and
    ``observation`` where the state is hidden) and ``constant_data`` (``mask``).

    Args:
        family: a Pyro program without arguments. It draws what is unknown and returns a TabularMDP or LinearGaussianMDP
            built from that, whose agent plans exactly; or a pair ``(process, policy)`` where the agent plans otherwise
            (wrong beliefs, hyperbolic discounting, a neural policy given the unknowns): ``policy`` is a plan, a table
            ``(T, S, A)`` or ``(S, A)`` of probabilities, or a callable ``(state, t) -> Distribution``. Or, of a hidden
            state, a TabularPOMDP or LinearGaussianPOMDP, whose agent plans exactly; a pair ``(world, model)`` of
            TabularPOMDPs where the model that the agent plans and believes by is not the world; or ``(process,
            policy)`` with a policy ``(history, t) -> Distribution``. It must depend on its draws alone: its tensor
            operations are recorded, and replayed at other values. Planning happens on the device of the process, one
            launch after the other: a GPU gains where tables are large.
        demonstrations: :class:`Trajectories`; a pair of tensors ``(states, actions)`` of shapes ``(T or T+1, N, ...)``
            and ``(T, N, ...)``; or a list of pairs with one demonstration each, which may differ in length; or, where
            the state is hidden, Trajectories with observations, or ``(states, actions, observations)`` with
            observations of shape ``(T or T+1, N, ...)`` from the start on. Write -1 (finite) or NaN for what was not
            seen. Where something was not seen, the forward algorithm sums over it with the process's dynamics; where
            all was, transitions say nothing about the agent and only actions count. Of a TabularPOMDP observations are
            summed over likewise, where they are not given or -1, unless the agent acts by a policy of the history. In a
            terminal state no action is taken: what is written down there, as padding is, counts for nothing, and past
            the horizon it is left out.
        method: ``"nuts"``; ``"svi"``, a Gaussian in unconstrained coordinates fitted to the posterior by its ELBO;
            or ``"map"``, the single most probable value of the sites (of their own density, by L-BFGS).
        dynamics: ``"causal"``, or ``"posterior"`` for an agent that believes in its luck, and sees the state: it acts
            as the posterior given optimality does. They agree where dynamics are deterministic, and only there in
            general.
        num_draws: draws in all, over the chains.
        num_chains: chains of NUTS, in lockstep: their gradients are one batched evaluation where the family can be run
            under ``torch.func.vmap`` (its Python does not look at the unknowns' values), and several times faster.
        num_warmup: warm-up steps a chain. The chains start from the Laplace approximation, in whose
            coordinates the posterior is nearly a standard normal, so that few are needed. Where several modes are
            found, they start from each in turn.
        seed: of all randomness; the caller's own random state is left as it was.
        progress: show a bar.
        distributed: spreads the chains of NUTS over the ranks of a ``torchrun`` job. Each rank calls it with the same
            arguments and has the chains of all, which the seed fixes, to rounding, whatever the number of ranks.

    Raises:
        ValueError: if the method is unknown; the family draws nothing or returns no process, draws a site in some runs
            only or from a support that varies, or loses an unknown's gradient on the way to its density; or the
            demonstrations have the wrong shape, a transition that no value of the unknowns allows, an observation that
            the agent holds to be impossible, or an action that the policy gives no probability; or where what the
            agent saw is not known, and cannot be summed over. If ``distributed``, outside ``torchrun``, for another
            method than ``"nuts"``, fewer chains than ranks, or ranks that disagree on the arguments.

    Warns:
        UserWarning: where more than one mode is found; and where the demonstrations leave an unknown, or a joint
            direction of several, at its prior. Rewards that differ by a factor and temperatures that differ by the
            same are one behaviour, as are rewards that differ by a constant: fix one of them, or normalise.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def family():
        ...     worth = pyro.sample("worth", dist.Normal(0.0, 1.0))
        ...     reward = torch.stack([torch.zeros(()), worth])[None]
        ...     return TabularMDP(torch.ones(1, 2, 1), reward, torch.ones(1), horizon=1)
        >>> from rl_as_inference import TabularMDP
        >>> chose = [([0], [1])] * 8 + [([0], [0])] * 2
        >>> answer = infer_agent(family, chose, method="map")
        >>> round(answer.posterior["worth"].item(), 3)  # log(8/2) without the prior
        0.897
    """
    if method not in ("nuts", "svi", "map"):
        raise ValueError(f"method must be 'nuts', 'svi' or 'map', got {method!r}")
    check_dynamics(dynamics)
    check_asked(family, num_draws, num_chains, num_warmup, seed)
    if distributed and method != "nuts":
        raise ValueError(f"distributed=True spreads the chains of 'nuts', and method is {method!r}; leave one out")
    asked = {"num_draws": num_draws, "num_chains": num_chains, "num_warmup": num_warmup, "seed": seed}
    with joined(distributed) as ranks, seeded(seed), torch.inference_mode(False), torch.enable_grad():
        agree_on(ranks, family=family, demonstrations=demonstrations)
        ranks.agree("options", {**asked, "dynamics": dynamics})
        ranks.share(num_chains, "num_chains")
        unknowns = Unknowns(family, read_demonstrations(demonstrations), dynamics)
        drawn = draw_posterior(unknowns, method, num_draws, num_chains, num_warmup, progress and ranks.is_first, ranks)
        seen, notes = _seen_of(unknowns.data), {"method": method, "dynamics": dynamics}
        answer = as_inference_data(unknowns, drawn, "demonstration", seen, notes, ranks)
        warn_of_priors(unknowns, drawn.mode, answer)
    return answer


def _seen_of(data: Demonstrations) -> dict[str, Tensor]:
    """Returns what the demonstrations show, by name."""
    seen = {"state": data.states, "action": data.actions}
    return seen if data.observations is None else {**seen, "observation": data.observations}
