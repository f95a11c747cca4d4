"""What an agent wants, how rational it is and what it believes, from what it did."""

import inspect
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import Tensor

from rl_as_inference.checks import check_count
from rl_as_inference.exact import Dynamics
from rl_as_inference.exact.backups import check_dynamics
from rl_as_inference.nouns import DemonstrationsLike
from rl_as_inference.processes import MarkovDecisionProcess
from rl_as_inference.progress import progress_bar
from rl_as_inference.randomness import seeded
from rl_as_inference.reasoning.batching import batched_gradient, batched_parts, gradient_by_row, parts_by_row
from rl_as_inference.reasoning.demonstrations import read_demonstrations
from rl_as_inference.reasoning.lockstep import lockstep
from rl_as_inference.reasoning.modes import distinct_modes, laplace_scale, modes
from rl_as_inference.reasoning.unknowns import Unknowns

if TYPE_CHECKING:
    import arviz

__all__ = ["infer_agent"]

_AT_ONCE = 8
"""Draws whose likelihoods are computed together; so few, because each has tables of a whole plan."""


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
) -> "arviz.InferenceData":
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

    Raises:
        ValueError: if the method is unknown; the family draws nothing or returns no process, draws a site in some runs
            only or from a support that varies, or loses an unknown's gradient on the way to its density; or the
            demonstrations have the wrong shape, a transition that no value of the unknowns allows, an observation that
            the agent holds to be impossible, or an action that the policy gives no probability; or where what the
            agent saw is not known, and cannot be summed over.

    Warns:
        UserWarning: where more than one mode is found; and where the demonstrations leave an unknown, or a joint
            direction of several, at its prior. Rewards that differ by a factor and temperatures that differ by the
            same are one behaviour, as are rewards that differ by a constant: fix one of them, or normalise.

    Example:
        >>> import pyro.distributions as dist
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
    if not callable(family) or isinstance(family, MarkovDecisionProcess):
        raise ValueError(
            f"family must be a Pyro program without arguments, which draws what is unknown and returns a process, got "
            f"{type(family).__name__}"
        )
    for name, value in (("num_draws", num_draws), ("num_chains", num_chains), ("num_warmup", num_warmup)):
        check_count(name, value)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an integer from 0 to 2**32 - 1, got {seed!r}")
    _check_takes_nothing(family)
    with seeded(seed), torch.inference_mode(False), torch.enable_grad():
        unknowns = Unknowns(family, read_demonstrations(demonstrations), dynamics)
        found = modes(unknowns, volume=method != "map")
        mode = found[0]
        stats: dict[str, Tensor] = {}
        if method == "map":
            draws = mode[None, None]
        else:
            scale = laplace_scale(unknowns, mode)
            starts = distinct_modes(unknowns, found, scale)
            if len(starts) > 1:
                _warn_of_modes(method)
            per_chain = -(-num_draws // num_chains)
            if unknowns.size == 0:
                draws = mode.expand(num_chains, per_chain, 0)
            elif method == "nuts":
                draws, stats = _nuts(unknowns, starts, scale, per_chain, num_chains, num_warmup, progress)
            else:
                draws, stats = _svi(unknowns, mode, scale, num_draws)
        answer = _as_inference_data(unknowns, draws, stats, method, dynamics)
        _warn_of_priors(unknowns, mode, answer)
    return answer


def _check_takes_nothing(family: Callable[[], Any]) -> None:
    try:
        inspect.signature(family).bind()
    except TypeError as problem:
        raise ValueError(f"family must be a program without arguments ({problem}); bind them, lambda: …") from None
    except ValueError:  # of a callable that has no signature to look at
        return


def _warn_of_modes(method: str) -> None:
    what = (
        "chains of NUTS start at different ones and may not pass between them: more chains help, and r_hat tells"
        if method == "nuts"
        else "the Gaussian is fitted at the highest alone; method='nuts' starts chains at several"
    )
    warnings.warn(f"the posterior has more than one mode, and {what}", UserWarning, stacklevel=3)


def _nuts(
    unknowns: Unknowns,
    centres: list[Tensor],
    scale: Tensor,
    per_chain: int,
    num_chains: int,
    num_warmup: int,
    progress: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Runs Pyro's NUTS in the coordinates ``x`` of ``u = centres[0] + scale x``, chains about each centre in turn."""
    mode = centres[0]
    about = [torch.linalg.solve_triangular(scale, (each - mode)[:, None], upper=False)[:, 0] for each in centres]
    starts = [about[index % len(about)] + torch.randn(unknowns.size).double() for index in range(num_chains)]
    examples = mode + torch.randn(2, num_chains, unknowns.size, dtype=torch.float64) @ scale.T
    gradient = batched_gradient(unknowns, examples) or gradient_by_row(unknowns)

    def answer(points: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        values, slopes = gradient(mode + torch.stack(points) @ scale.T)
        return list(zip(values, slopes @ scale, strict=True))

    def chain(start: Tensor, ask: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        def potential(values: dict[str, Tensor]) -> Tensor:
            x = values["x"]
            value, slope = ask(x.detach())
            return value + slope @ (x - x.detach())  # which has this value, and this gradient

        kernel = NUTS(potential_fn=potential, max_tree_depth=8, full_mass=True)
        kernel.initial_params = values = {"x": start}
        kernel.setup(num_warmup)
        draws = []
        for index in range(num_warmup + per_chain):
            values = kernel.sample(values)
            bar.advance("warm-up" if index < num_warmup else "sampling")
            draws.append(values["x"])
        diverged = torch.zeros(per_chain, dtype=torch.bool)
        diverged[list(kernel.diagnostics()["divergences"])] = True
        return torch.stack(draws[num_warmup:]), diverged

    seeds = torch.randint(2**62, (num_chains,)).tolist()
    # As in Pyro's own MCMC: handlers around the caller see nothing, and no distribution checks its arguments.
    with (
        pyro.poutine.block(),
        pyro.validation_enabled(False),
        progress_bar("NUTS", num_chains * (num_warmup + per_chain), show=progress) as bar,
    ):
        draws, diverged = zip(*lockstep([partial(chain, start) for start in starts], answer, seeds), strict=True)
    return mode + torch.stack(draws) @ scale.T, {"diverging": torch.stack(diverged)}


def _svi(unknowns: Unknowns, mode: Tensor, scale: Tensor, num_draws: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Fits a Gaussian that starts as the Laplace approximation, by Adam with a falling learning rate."""
    support = dist.constraints.independent(dist.constraints.real, 1)

    def program() -> None:
        u = pyro.sample("u", dist.ImproperUniform(support, (), (unknowns.size,)))
        pyro.factor("posterior", -unknowns.potential(mode + scale @ u))

    store = pyro.get_param_store()
    own = f"{AutoMultivariateNormal.__name__}."
    state = store.get_state()
    kept = {part: {n: v for n, v in values.items() if not n.startswith(own)} for part, values in state.items()}
    with store.scope(kept):  # the family's parameters are the caller's
        guide = AutoMultivariateNormal(
            program, init_loc_fn=lambda site: torch.zeros(unknowns.size, dtype=torch.float64), init_scale=1.0
        )
        steps = 200
        optim = pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.03 ** (1 / steps)})
        svi = SVI(program, guide, optim, loss=Trace_ELBO(num_particles=4))
        for _ in range(steps):
            svi.step()
        with torch.no_grad():
            u = guide.get_posterior().sample((num_draws,))
    return (mode + u @ scale.T)[None], {}


def _as_inference_data(
    unknowns: Unknowns, draws: Tensor, stats: dict[str, Tensor], method: str, dynamics: str
) -> "arviz.InferenceData":
    chains, count = draws.shape[:2]
    flat = draws.flatten(0, 1)
    values = {
        name: value.reshape(chains, count, *value.shape[1:]) for name, value in unknowns.constrained(flat)[0].items()
    }
    logs, likelihood = _logs(unknowns, flat)
    which = logs.argmax(-1) if method == "map" else dist.Categorical(logits=logs).sample()
    chances = logs.softmax(-1)
    for name, support in unknowns.discrete.items():
        index = torch.tensor([_position(support, each[name]) for each in unknowns.combinations])
        values[name] = support[index[which]].reshape(chains, count)
        share = chances.new_zeros(len(flat), len(support)).index_add(1, index, chances)
        stats[f"probability_{name}"] = share.reshape(chains, count, -1)
    stats["lp"] = (torch.logsumexp(logs, -1) + unknowns.constrained(flat)[1]).reshape(chains, count)
    picked = likelihood[torch.arange(len(flat)), which].reshape(chains, count, -1)
    return _to_arviz(unknowns, values, stats, picked, {"method": method, "dynamics": dynamics})


def _logs(unknowns: Unknowns, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Returns log joint densities ``(D, K)`` and log likelihoods ``(D, K, N)``, for joint values of discrete sites."""
    parts = parts_by_row(unknowns)
    if unknowns.size and len(draws) >= 10 * _AT_ONCE:  # fewer do not pay for the record
        parts = batched_parts(unknowns, draws[: 2 * _AT_ONCE].reshape(2, _AT_ONCE, -1)) or parts
    joint, likelihood = [], []
    # With nothing continuous unknown, all draws share their density.
    for u in draws.split(_AT_ONCE) if unknowns.size else draws[None, :1]:
        prior, seen = parts(u)
        joint.append(prior + seen @ unknowns.data.weights.sum(0))
        likelihood.append(seen @ unknowns.data.weights.T)
    found = torch.cat(joint), torch.cat(likelihood)
    return found if unknowns.size else (found[0].expand(len(draws), -1), found[1].expand(len(draws), -1, -1))


def _to_arviz(
    unknowns: Unknowns,
    values: dict[str, Tensor],
    stats: dict[str, Tensor],
    likelihood: Tensor,
    attributes: dict[str, str],
) -> "arviz.InferenceData":
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\s*ArviZ is undergoing", category=FutureWarning)
        import arviz

    def arrays(group: dict[str, Tensor]) -> dict[str, np.ndarray[Any, Any]]:
        return {name: value.detach().cpu().numpy() for name, value in group.items()}

    seen = {"state": unknowns.data.states, "action": unknowns.data.actions}
    if unknowns.data.observations is not None:
        seen["observation"] = unknowns.data.observations
    groups: dict[str, Any] = {
        "posterior": arrays(values),
        "sample_stats": arrays(stats),
        "log_likelihood": arrays({"demonstration": likelihood}),
        "observed_data": arrays(seen),
        "constant_data": arrays({"mask": unknowns.data.mask}),
    }
    if unknowns.prior:
        groups["prior"] = {name: value[None] for name, value in arrays(unknowns.prior).items()}
    dims = {"demonstration": ["which_demonstration"], "mask": ["time", "which_demonstration"]}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="More chains")
        return arviz.from_dict(**groups, dims=dims, attrs=attributes)


def _position(support: Tensor, value: Tensor) -> int:
    return int((support == value).nonzero()[0])


def _warn_of_priors(unknowns: Unknowns, mode: Tensor, answer: Any) -> None:
    """Warns of what the demonstrations leave at its prior.

    For continuous unknowns: a direction of the unconstrained vector along which the posterior's variance, by the
    prior's covariance and the demonstrations' Fisher information, is more than 98% of the prior's. For a discrete
    one: its posterior within 0.01 of its prior in total variation.
    """
    advice = (
        "the posterior equals the prior there, so give other demonstrations or fix the unknown. Rewards and "
        "temperature are known only up to a common factor, and rewards up to a constant"
    )
    if unknowns.size and unknowns.prior:
        prior = torch.atleast_2d(torch.cov(unknowns.prior_u().T))
        root = torch.linalg.cholesky(prior + 1e-12 * prior.diagonal().mean() * torch.eye(len(prior)))
        gained, directions = torch.linalg.eigh(root.T @ unknowns.information(mode) @ root)
        labels = [
            name if values[0].numel() == 1 else f"{name}[{i}]"
            for name in unknowns.names
            for i in range(unknowns.shape(name).numel())
            for values in [unknowns.prior[name]]
        ]
        for gain, direction in zip(gained, directions.T, strict=True):
            if 1 / (1 + float(gain)) > 0.98:
                u = root @ direction / prior.diagonal().sqrt()
                u = u / u[u.abs().argmax()]
                terms = [f"{float(c):+.2f} {label}" for c, label in zip(u, labels, strict=True) if abs(c) > 0.1]
                warnings.warn(
                    f"the demonstrations say nothing about the direction {' '.join(terms)} (unconstrained, in prior "
                    f"standard deviations): {advice}",
                    UserWarning,
                    stacklevel=3,
                )
    for name, support in unknowns.discrete.items():
        after = torch.as_tensor(answer.sample_stats[f"probability_{name}"].values).mean((0, 1))
        before = unknowns.discrete_prior(name)
        if len(support) > 1 and float((after - before).abs().sum()) / 2 < 0.01:
            warnings.warn(f"the demonstrations say nothing about {name}: {advice}", UserWarning, stacklevel=3)
