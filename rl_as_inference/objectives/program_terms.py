"""What each site of a program adds to the ELBO, and how a gradient reaches its draw."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer.util import MultiFrameTensor
from pyro.poutine.messenger import Messenger
from torch import Tensor

from rl_as_inference.nouns import Policy
from rl_as_inference.program.recording import prior_of, record
from rl_as_inference.program.sites import ACTION, REWARD, is_action, is_reward, step_of

__all__ = [
    "DetachedActions",
    "Marks",
    "Term",
    "read_program",
    "segment_costs",
    "suffix_sums",
    "temperature_of",
    "terms_of_traces",
]


@dataclass
class Term:
    """What one site adds to the ELBO, and how the gradient reaches its draw."""

    name: str
    frames: frozenset[Any]
    cost: Tensor
    """``log p - log q``, scaled and masked, without gradient."""
    differentiable: list[Tensor]
    """Parts of the ELBO to be differentiated as they stand."""
    score: Tensor | None = None
    """``log q`` of a draw that is not reparameterized, unscaled."""
    action: Any = None
    ends_early: bool = False
    is_factor: bool = False
    temperature: Any = None
    segment: int = 0


def read_program(run: Callable[[], Any], policy: Policy | None, pathwise: bool) -> list[Term]:
    """Returns the terms of one run of a program that is its own guide.

    What is neither action nor observed has the same density in both, so it costs nothing.
    """
    terms = []
    for msg in record(run, policy, pathwise=pathwise):
        if is_action(msg) or msg["is_observed"]:
            log_p = prior_of(msg).log_prob(msg["value"])
            log_q = None if msg["is_observed"] else msg["fn"].log_prob(msg["value"])  # nobody chose what is observed
            terms.append(_term(msg, log_p, log_q, pathwise and msg["fn"].has_rsample, msg))
        elif torch.is_grad_enabled() and not msg["fn"].has_rsample:
            log_q = msg["fn"].log_prob(msg["value"])
            if log_q.requires_grad:
                terms.append(Term(msg["name"], _frames(msg), torch.zeros_like(log_q.detach()), [], log_q))
    return terms


def terms_of_traces(model_trace: Any, guide_trace: Any, marks: dict[str, Any], pathwise: bool) -> list[Term]:
    """Returns the terms of a model's trace against a guide's."""
    model_trace.compute_log_prob()
    terms = []
    for name, site in model_trace.nodes.items():
        if site["type"] != "sample":
            continue
        site = {**site, "infer": marks[name]}
        drawn = None if site["is_observed"] else guide_trace.nodes[name]
        log_q = None if drawn is None else drawn["fn"].log_prob(drawn["value"])
        reparameterized = drawn is not None and drawn["fn"].has_rsample and (pathwise or not is_action(site))
        terms.append(_term(site, site["unscaled_log_prob"], log_q, reparameterized, drawn))
    names = [term.name for term in terms]
    latent = [n for n, site in guide_trace.nodes.items() if site["type"] == "sample" and not site["is_observed"]]
    for name in (n for n in latent if n not in names):  # auxiliary draws of the guide's own
        drawn = guide_trace.nodes[name]
        log_q = drawn["fn"].log_prob(drawn["value"])
        terms.append(_term(drawn, None, log_q, drawn["fn"].has_rsample, drawn))
    if latent != [n for n in names if n in latent]:
        # Drawn in another order than the model's, so what comes after what is unknown:
        # charge every draw with everything.
        for term in terms:
            term.action = None
    return terms


def _term(site: Any, log_p: Tensor | None, log_q: Tensor | None, reparameterized: bool, drawn: Any) -> Term:
    scale, mask = site["scale"], site["mask"]
    cost: Any = 0.0
    differentiable = []
    if log_p is not None:
        log_p = scale_and_mask(log_p, scale, mask)
        cost = log_p.detach()
        if log_p.requires_grad:
            differentiable.append(log_p)
    if log_q is not None:
        scaled = scale_and_mask(log_q, drawn["scale"], drawn["mask"])
        cost = cost - scaled.detach()
        if not reparameterized:
            # The score reaches the draw; what is left is how much it counts, where a discount is learned.
            scaled = scale_and_mask(log_q.detach(), drawn["scale"], drawn["mask"])
        if scaled.requires_grad:
            differentiable.append(-scaled)
    mark = site["infer"].get(ACTION)
    action = None
    if mark is not None and log_q is not None:
        action = {
            "state": mark["state"],
            "value": drawn["value"],
            "policy": drawn["fn"],
            "prior": prior_of(site),
        }
        action |= {**step_of(site), "scale": scale}
    return Term(
        name=site["name"],
        frames=_frames(site),
        cost=torch.as_tensor(cost),
        differentiable=differentiable,
        score=None if reparameterized else log_q,
        action=action,
        ends_early=mark is not None and step_of(site)["alive"] is not None,
        is_factor=log_q is None,
        temperature=site["infer"][REWARD]["temperature"] if is_reward(site) else None,
    )


def _frames(site: Any) -> frozenset[Any]:
    return frozenset(frame for frame in site["cond_indep_stack"] if frame.vectorized)


def segment_costs(terms: list[Term]) -> list[MultiFrameTensor]:
    """Groups costs by the action they follow, in the order of execution, and numbers the terms so.

    A draw reaches only what is executed after it, so it need not be charged with earlier segments.
    """
    segments = [MultiFrameTensor()]
    for term in terms:
        if term.action is not None:
            segments.append(MultiFrameTensor())
        term.segment = len(segments) - 1
        if not is_identically_zero(term.cost):
            segments[-1].add((tuple(term.frames), term.cost))
    return segments


def suffix_sums(costs: list[Any]) -> list[Any]:
    sums: list[Any] = []
    for cost in reversed(costs):
        sums.append(cost + (sums[-1] if sums else 0.0))
    return sums[::-1]


def temperature_of(terms: list[Term]) -> Any:
    """Returns the program's temperature; None, where it has several or none, forbids a critic."""
    given = [term.temperature for term in terms if term.temperature is not None]
    found = {float(torch.as_tensor(temperature).detach()): temperature for temperature in given}
    return next(iter(found.values())) if len(found) == 1 else None


class Marks(Messenger):
    """Keeps the model's marks, which replaying a guide's draw overwrites by the guide's."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        self.of[msg["name"]] = msg["infer"]


class DetachedActions(Messenger):
    """Draws actions without a path for gradients; a guide of one's own does not say which those are."""

    def __init__(self, names: Collection[str] = ()) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        if (is_action(msg) or msg["name"] in self.names) and msg["value"] is None:
            with torch.no_grad():
                msg["value"] = msg["fn"].sample()
