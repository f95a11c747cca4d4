"""Whether draws may be taken for the posterior: one verdict for every method."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rl_as_inference.arguments import checked
from rl_as_inference.arviz_data import PosteriorData, effective_sizes, groups_of, r_hats
from rl_as_inference.data_frames import Frame, frame
from rl_as_inference.inference.pareto import checked_log_weight, pareto_k
from rl_as_inference.inspect.verdicts import (
    LARGEST_DIFFERENCE,
    LARGEST_R_HAT,
    LEAST_ACCEPTANCE,
    LEAST_EFFECTIVE_SIZE,
    advice,
    advice_for_filters,
    doubt_about_ancestors,
    doubt_about_evidence,
    doubt_about_weights,
    praise,
    praise_of_particles,
    refuted,
    rounded,
    too_small,
    verdict_on_weights,
)
from rl_as_inference.sampling.importance import effective_sample_size
from rl_as_inference.tables import counted
from rl_as_inference.turns import silenced

__all__ = ["Diagnosis", "diagnose"]


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`diagnose` finds.

    Attributes:
        text: the verdict in one or two sentences.
        trusted: whether the draws (for a guide, with their weights) may be taken for the posterior.
        pareto_k: k̂ of the weights; None where the method has no weights, or their tail cannot be fitted.
        effective_sample_size: how many independent posterior draws these are worth; for importance
            sampling, SMC and annealing that of all weighted trajectories, of which there are more than draws.
        num_draws: the draws in the data, over all chains.
        r_hat: the largest R̂ over the variables; None where there are no independent chains.
    """

    text: str
    trusted: bool
    pareto_k: float | None
    effective_sample_size: float | None
    num_draws: int
    r_hat: float | None

    def to_frame(self) -> Frame:
        """Returns a row with all of it (see :mod:`rl_as_inference.data_frames`)."""
        return frame({name: [value] for name, value in vars(self).items()})


@checked
def diagnose(data: PosteriorData) -> Diagnosis:
    """Returns whether the draws of :func:`rl_as_inference.posterior` may be taken for the posterior, and why.

    - ``exact``: independent draws, nothing to doubt.
    - ``guide``: the weights of the guide's own draws say how far it is from the posterior, and
      whether weighing them by ``log_weight`` would mend it.
    - ``importance``: k̂ at most :func:`pareto_k_threshold` of the proposals, an effective sample size of
      at least 100, and a standard error of the log evidence of at most 0.5 nats.
    - ``smc``, ``annealed``: an effective sample size of at least 100, as many effective ancestors at the first
      step (and, for ``smc``, different first actions where these are continuous), and a standard error of the log
      evidence that is known and at most 0.5 nats. For ``annealed`` at least 1 % of the moves accepted at each
      temperature.
    - ``nuts``: R̂ at most 1.01, and a bulk effective sample size of at least 100 a chain, both the worst over
      all variables (Vehtari et al. 2021).

    Where the exact log evidence is known (the attribute ``exact_log_evidence``), an estimate of it that is off by more
    than 0.1 nats and three standard errors refutes the draws, whatever their weights look like: weights that are all
    alike may be alike because the proposal never went where the posterior is. Of a guide the exact distance
    (``kl_to_posterior``) is told too.

    Data without a method, or with one that is not among these, is judged as weighted draws.

    Raises:
        ValueError: if a group or variable is missing, there are no draws, or the weights are NaN,
            infinite or all zero.

    Example:
        >>> import rl_as_inference as rlai
        >>> from rl_as_inference.models import gridworld
        >>> found = diagnose(rlai.posterior(gridworld(), method="exact", num_draws=500))
        >>> found.trusted, found.effective_sample_size
        (True, 500.0)
        >>> print(found.text)
        500 independent draws from the exact posterior: nothing to doubt.
    """
    posterior = _group(data, "posterior")
    for dim in ("chain", "draw"):
        if dim not in posterior.sizes:
            raise ValueError(f"data: the group 'posterior' has no dimension {dim!r}; make it with rlai.posterior")
    num_draws = int(posterior.sizes["chain"] * posterior.sizes["draw"])
    if num_draws == 0:
        raise ValueError("data: the group 'posterior' holds no draws")
    judges: Mapping[str, Callable[[Any, int], Diagnosis]] = {
        "exact": _exact,
        "guide": _guide,
        "importance": _importance,
        "smc": _smc,
        "annealed": _annealed,
        "nuts": _nuts,
    }
    return judges.get(str(posterior.attrs.get("method")), _importance)(data, num_draws)


def _exact(data: Any, num_draws: int) -> Diagnosis:
    which = "causal" if data.posterior.attrs.get("dynamics") == "causal" else "exact"
    text = f"{counted(num_draws, 'independent draws')} from the {which} posterior: nothing to doubt."
    return Diagnosis(text, True, None, float(num_draws), num_draws, None)


def _guide(data: Any, num_draws: int) -> Diagnosis:
    weights, notes = _log_weight(data), data.posterior.attrs
    k, size = pareto_k(weights), effective_sample_size(torch.from_numpy(weights))
    evidence = float(np.logaddexp.reduce(weights)) - float(np.log(num_draws))
    shares = np.exp(weights - evidence)  # of mean one
    error = float(shares.std(ddof=1)) / num_draws**0.5 if num_draws > 1 else float("nan")
    known = notes.get("kl_to_posterior")
    # log of the mean weight less the mean log weight: KL(guide || posterior) by these draws.
    gap = evidence - float(weights.mean()) if known is None else float(known)
    if not np.isfinite(gap):
        away = "partly where the posterior is not"
    elif known is None:
        away = f"at least about {rounded(gap)} nats from the posterior"
    else:
        away = f"{rounded(gap)} nats from the posterior (exact)"
    doubt, mend = doubt_about_weights(k, size, num_draws), advice(notes)
    if not doubt and (doubt := refuted(notes, evidence, error)):
        mend = "use method='exact'"
    if doubt:
        text = f"{doubt}: do not take the guide's draws, {away}, for the posterior, weighted or not; {mend}."
    elif known is not None and gap > LARGEST_DIFFERENCE:
        text = (
            f"{praise(k, size, num_draws)}: the guide is {away}, and its draws are its own; weighted by log_weight "
            f"they can be taken for the posterior's."
        )
    else:
        text = (
            f"{praise(k, size, num_draws)}: the guide is {away}, and its draws weighted by log_weight "
            f"can be taken for it."
        )
    return Diagnosis(text, not doubt, k, size, num_draws, None)


def _importance(data: Any, num_draws: int) -> Diagnosis:
    weights, notes = _log_weight(data), data.posterior.attrs
    constants = getattr(data, "constant_data", {})
    # Draws that were resampled say nothing by themselves: what they were drawn from does.
    if "proposal_log_weight" in constants:
        weights = checked_log_weight(np.asarray(constants["proposal_log_weight"].values, dtype=float).ravel())
        k, size, weighed = pareto_k(weights), effective_sample_size(torch.from_numpy(weights)), len(weights)
    elif "effective_sample_size" in notes:
        noted = float(notes.get("pareto_k", np.nan))
        k, size = (noted if np.isfinite(noted) else None), _noted_size(notes)
        weighed = int(notes.get("num_proposals", num_draws))
    else:
        k, size, weighed = pareto_k(weights), effective_sample_size(torch.from_numpy(weights)), num_draws
    text, trusted = verdict_on_weights(k, size, weighed, advice(notes))
    if trusted and (doubt := doubt_about_evidence(notes, weights) or _refuted(notes)):
        text, trusted = f"{doubt}: do not trust these weights; {advice(notes)}.", False
    return Diagnosis(text, trusted, k, size, num_draws, None)


def _smc(data: Any, num_draws: int) -> Diagnosis:
    weights, notes = _log_weight(data), data.posterior.attrs
    size = _noted_size(notes, weights)
    doubt = too_small(size) if size < LEAST_EFFECTIVE_SIZE else doubt_about_ancestors(notes)
    starts = _distinct_first_actions(data)
    if not doubt and starts is not None and starts < LEAST_EFFECTIVE_SIZE:
        roots = counted(starts, "first actions")
        doubt = f"The {num_draws:,} draws descend from {roots} (below {LEAST_EFFECTIVE_SIZE})"
    doubt = doubt or doubt_about_evidence(notes, weights) or _refuted(notes)
    if doubt:
        text = f"{doubt}: do not trust these particles; {advice_for_filters(notes)}."
        return Diagnosis(text, False, None, size, num_draws, None)
    alive = praise_of_particles(size, notes)
    text = f"{alive}: the particles can be trusted. Draws share ancestors, so early steps are worth less."
    return Diagnosis(text, True, None, size, num_draws, None)


def _annealed(data: Any, num_draws: int) -> Diagnosis:
    weights, notes = _log_weight(data), data.posterior.attrs
    size, accepted = _noted_size(notes, weights), float(notes.get("least_acceptance", 1.0))
    doubt = too_small(size) if size < LEAST_EFFECTIVE_SIZE else doubt_about_ancestors(notes)
    if not doubt and accepted < LEAST_ACCEPTANCE:
        doubt = f"At one temperature only {100 * accepted:.2g} % of the moves were accepted"
    doubt = doubt or doubt_about_evidence(notes, weights) or _refuted(notes)
    if doubt:
        text = f"{doubt}: do not trust these draws; use more draws, or method='smc'."
        return Diagnosis(text, False, None, size, num_draws, None)
    return Diagnosis(
        f"{praise_of_particles(size, notes)}: the annealed draws can be trusted.", True, None, size, num_draws, None
    )


def _nuts(data: Any, num_draws: int) -> Diagnosis:
    chains, per_chain = int(data.posterior.sizes["chain"]), int(data.posterior.sizes["draw"])
    if per_chain < 4:  # what ArviZ needs for either number
        text = f"{per_chain} draws a chain are too few to tell anything: do not trust them; use more draws."
        return Diagnosis(text, False, None, None, num_draws, None)
    posterior = groups_of(data)["posterior"]
    drawn = posterior[[name for name, values in posterior.items() if np.issubdtype(values.dtype, np.floating)]]
    if not drawn:
        raise ValueError("data: the group 'posterior' has no continuous variable, and method 'nuts' draws only these")
    with np.errstate(all="ignore"), silenced():  # constants (a known first state) have no R̂
        size = _extreme(effective_sizes(drawn), np.nanmin)
        r_hat = _extreme(r_hats(drawn), np.nanmax) if chains > 1 else None
    wanted = LEAST_EFFECTIVE_SIZE * chains
    if r_hat is not None and r_hat > LARGEST_R_HAT:
        text = f"R̂ = {r_hat:.3f} (above {LARGEST_R_HAT}): the chains have not met, do not trust them; use more draws."
        return Diagnosis(text, False, None, size, num_draws, r_hat)
    if size is None or size < wanted:
        text = f"{too_small(size or 0.0, wanted)}: do not trust these chains; use more draws."
        return Diagnosis(text, False, None, size, num_draws, r_hat)
    agree = "A single chain cannot be checked by R̂" if r_hat is None else f"R̂ = {r_hat:.3f} (at most {LARGEST_R_HAT})"
    text = f"{agree}, effective sample size {size:,.0f} (at least {wanted}): the chains can be trusted."
    return Diagnosis(text, True, None, size, num_draws, r_hat)


def _refuted(notes: Mapping[str, Any]) -> str:
    """Returns how the exact log evidence refutes the noted one, or an empty string."""
    if "log_evidence" not in notes:
        return ""
    return refuted(notes, float(notes["log_evidence"]), float(notes.get("log_evidence_standard_error", np.nan)))


def _noted_size(notes: Mapping[str, Any], log_weight: Any = None) -> float:
    """Returns the noted effective sample size, else that of the draws' own weights."""
    if "effective_sample_size" not in notes:
        return effective_sample_size(torch.from_numpy(log_weight))
    size = float(notes["effective_sample_size"])
    if not np.isfinite(size):
        raise ValueError(
            f"data: the attribute 'effective_sample_size' is {size}; the weights it came from were not finite"
        )
    return size


def _distinct_first_actions(data: Any) -> int | None:
    """Returns how many different first actions continuous draws have; equal ones come from one ancestor."""
    action = data.posterior.get("action")
    if action is None or not np.issubdtype(action.dtype, np.floating):
        return None
    first = action.isel(time=0).stack(sample=("chain", "draw")).transpose("sample", ...).values
    return len(np.unique(first.reshape(len(first), -1), axis=0))


def _extreme(found: Any, pick: Callable[[Any], Any]) -> float | None:
    """Returns the extreme over all entries of all variables, None where none of them is a number."""
    numbers = np.concatenate([np.ravel(values.values) for values in found.values()])
    return float(pick(numbers)) if np.isfinite(numbers).any() else None


def _group(data: Any, name: str) -> Any:
    group = getattr(data, name, None)
    if group is None:
        raise ValueError(f"data: there is no group {name!r}; make it with rlai.posterior or from_trajectories")
    return group


def _log_weight(data: Any) -> Any:
    stats = _group(data, "sample_stats")
    if "log_weight" not in stats:
        raise ValueError("data: the group 'sample_stats' has no 'log_weight'; make it with rlai.posterior")
    return checked_log_weight(np.asarray(stats["log_weight"].values, dtype=float).ravel())
