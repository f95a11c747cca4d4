"""The trajectory ELBO as a Pyro objective: the maximum-entropy objective, with its estimators."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal, get_args

import gymnasium
import torch
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer.elbo import ELBO
from pyro.infer.enum import get_importance_trace
from pyro.infer.util import MultiFrameTensor
from pyro.poutine.messenger import Messenger
from pyro.util import warn_if_nan
from torch import Tensor

from rl_as_inference.objectives import estimators
from rl_as_inference.processes.mdp import MarkovDecisionProcess
from rl_as_inference.program.readings import Guide, register_module
from rl_as_inference.program.recording import prior_of, record
from rl_as_inference.program.sites import ACTION, REWARD, is_action, is_reward, step_of
from rl_as_inference.trajectories import Trajectories

__all__ = ["Estimator", "TrajectoryELBO"]

Estimator = Literal["auto", "pathwise", "full_return", "score", "baseline", "advantage", "exact_sum"]

_WITH_CRITIC = ("baseline", "advantage", "exact_sum")


class TrajectoryELBO(ELBO):
    """The ELBO of a trajectory program against a guide: ``-loss`` is the ELBO, in nats, summed over plates.

    It is used as any of Pyro's: ``SVI(program, follow(program, policy), optim, TrajectoryELBO())``.
    What it adds is time. Terms are grouped by step in the order of execution, and a draw is only
    charged with what comes after it, by one cumulative sum. Three kinds of pair are read with
    rising speed: any model and guide (two runs, as Pyro does), a program and its own
    :func:`follow` (one run), a :class:`MarkovDecisionProcess` and its own ``follow`` (no handlers).

    Estimators of the gradient (DESIGN, "Gradients of the ELBO"):

    - ``"auto"``: unbiased for every tagged program whose rewards, where they can be differentiated at
      all, have no jumps besides. Pathwise where actions are reparameterized, nothing ends early and
      rewards have slopes; else ``"baseline"`` with a critic and ``"score"`` without. For rewards
      that are a slope plus a step function of continuous actions, say ``"score"``.
    - ``"pathwise"``: through the actions and the dynamics, SVG(∞) (Heess et al. 2015, arXiv:1510.09142).
    - ``"full_return"``: score function times the whole trajectory's return.
    - ``"score"``: score function times the return-to-go.
    - ``"baseline"``: the same less a critic's soft V, a ``(state, t)`` function in reward units.
    - ``"advantage"``: the λ soft advantage with a soft V; λ=1 is ``"baseline"``, below it biased by the
      critic's error.
    - ``"exact_sum"``: exact expectation over discrete actions with a soft Q, ``(state, t)`` to one
      value an action; unbiased where the critic is the policy's own soft Q.

    A critic that is a module is trained alongside by squared error, as Pyro trains a baseline.

    Args:
        estimator: one of the above.
        critic: a callable ``(state, t)``, in reward units.
        lambda_: λ in [0, 1], for ``"advantage"``.
        **options: Pyro's: ``num_particles``, ``vectorize_particles``, ``max_plate_nesting``, ….

    Raises:
        ValueError: for an unknown estimator, a λ outside [0, 1], or a critic missing where it is
            needed; and on use, where the program does not allow the estimator (the reason is given).

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from rl_as_inference.program import act, follow, reward, steps
        >>> def coins():
        ...     with pyro.plate("trajectories", 1000):
        ...         for t in steps(3):
        ...             action = act(f"action_{t}", torch.zeros(1000), dist.Bernoulli(0.5))
        ...             reward(f"reward_{t}", action)
        >>> fair = lambda state, t: dist.Bernoulli(torch.full(state.shape, 0.5))
        >>> _ = pyro.set_rng_seed(0)
        >>> round(TrajectoryELBO().loss(coins, follow(coins, fair)) / 1000, 1)
        -1.5
    """

    def __init__(
        self,
        estimator: Estimator = "auto",
        critic: Callable[[Any, Any], Tensor] | None = None,
        lambda_: float = 1.0,
        **options: Any,
    ) -> None:
        if estimator not in get_args(Estimator):
            raise ValueError(f"estimator must be one of {', '.join(get_args(Estimator))}; got {estimator!r}")
        if not 0 <= lambda_ <= 1:
            raise ValueError(f"lambda_ must be in [0, 1], got {lambda_}")
        if estimator in _WITH_CRITIC and critic is None:
            raise ValueError(f"estimator={estimator!r} needs a critic: pass critic=(state, t) -> soft values")
        super().__init__(**options)
        self.estimator = estimator
        self.critic = critic
        self.lambda_ = lambda_

    def __call__(self, model: Any, guide: Any) -> Any:
        """Returns the loss as a module, as Pyro's ELBOs do; its parameters include the critic's."""
        module = super().__call__(model, guide)
        if isinstance(self.critic, torch.nn.Module):
            module.critic = self.critic
        return module

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Returns an estimate of ``-ELBO``, in nats, summed over plates."""
        with torch.no_grad():
            loss = sum(float(elbo) for elbo, _ in self._particles(model, guide, args, kwargs))
        loss = -loss / self._shares
        warn_if_nan(loss, "loss")
        return loss

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Returns ``-ELBO`` as a tensor whose gradient is the estimator's."""
        loss: Any = 0.0
        for elbo, surrogate in self._particles(model, guide, args, kwargs):
            loss = loss - (elbo.detach() + surrogate - surrogate.detach()) / self._shares
        warn_if_nan(loss, "loss")
        return loss

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Returns ``-ELBO`` and accumulates the estimator's gradient in the parameters."""
        loss = 0.0
        for elbo, surrogate in self._particles(model, guide, args, kwargs):
            if surrogate.requires_grad:
                (-surrogate / self._shares).backward(retain_graph=self.retain_graph)
            loss -= float(elbo.detach()) / self._shares
        warn_if_nan(loss, "loss")
        return loss

    @property
    def _shares(self) -> int:
        """What the sum over particles is divided by."""
        return self.num_particles

    def _particles(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields ``(elbo, surrogate)`` of each particle; vectorized particles come as one."""
        if isinstance(self.critic, torch.nn.Module):
            register_module("critic", self.critic)
        own = isinstance(guide, Guide) and guide.program is model
        vectorized = self.vectorize_particles and self.num_particles > 1
        if vectorized and self.max_plate_nesting == float("inf"):
            self._guess_max_plate_nesting(model, guide, args, kwargs)
        for _ in range(1 if vectorized else self.num_particles):
            if own and not vectorized and not kwargs and self._is_in_parts(model):
                register_module("policy", guide.policy)
                yield self._read_rollout(model, guide.policy, *args, **kwargs)
                continue
            pair = (self._vectorized_num_particles(fn) if vectorized else fn for fn in (model, guide))
            run, other = (partial(fn, *args, **kwargs) for fn in pair)
            read = partial(_read_program, run, guide.policy) if own else partial(self._read_pair, run, other)
            yield self._combine(self._settle(read))

    def _is_in_parts(self, model: Any) -> bool:
        """Whether the model has a reading without handlers that gives every gradient that is wanted."""
        if not isinstance(model, MarkovDecisionProcess):
            return False
        # Draws without a derivative reach the dynamics' parameters by scores, which rollouts do not keep.
        return self.estimator == "pathwise" or not model.learns_dynamics()

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)

    # Programs: sites with their plates.

    def _read_pair(self, model: Any, guide: Any, pathwise: bool) -> "list[_Term]":
        marks = _Marks()
        guide = guide if pathwise else _DetachedActions()(guide)
        model_trace, guide_trace = self._get_trace(marks(model), guide, (), {})
        return _terms_of_traces(model_trace, guide_trace, marks.of, pathwise)

    def _settle(self, read: "Callable[[bool], list[_Term]]") -> "list[_Term]":
        """Returns the terms of one run, with actions drawn as the estimator wants them."""
        if self.estimator not in ("auto", "pathwise"):
            return read(False)
        terms = read(True)
        drawn_pathwise = any(term.action is not None and term.score is None for term in terms)
        if self.estimator == "auto" and drawn_pathwise and torch.is_grad_enabled():
            # Where an episode ends depends on where actions led, with a jump that no derivative sees; and a
            # reward that is a step function has a slope of zero almost everywhere.
            jumps = any(term.ends_early for term in terms)
            slopes = any(term.differentiable for term in terms if term.is_factor)
            if jumps or not slopes:
                return read(False)
        return terms

    def _combine(self, terms: "list[_Term]") -> tuple[Tensor, Tensor]:
        elbo: Any = torch.zeros(())
        surrogate: Any = torch.zeros(())
        for term in terms:
            elbo = elbo + term.cost.sum()
            for part in term.differentiable:
                surrogate = surrogate + part.sum()
        learning = isinstance(self.critic, torch.nn.Module) and any(p.requires_grad for p in self.critic.parameters())
        scored = [
            term
            for term in terms
            if term.score is not None and (term.score.requires_grad or (learning and term.action is not None))
        ]
        if self.estimator == "pathwise" and scored:
            raise ValueError(
                f"estimator='pathwise' needs reparameterized draws, but site {scored[0].name!r} has none; use 'auto'"
            )
        segments = _segments(terms)
        for frames in dict.fromkeys(term.frames for term in scored):
            costs = [segment.sum_to(frames) for segment in segments]
            mine = [term for term in scored if term.frames == frames]
            to_go = _suffix_sums(costs)
            for term in mine:
                if term.action is None:  # a draw whose distribution the policy's actions shape
                    surrogate = surrogate + (term.score * to_go[term.segment]).sum()
            acts = [term for term in mine if term.action is not None]
            if acts:
                surrogate = surrogate + self._score_part(_steps_of_terms(acts, costs, _temperature(terms)))
        return elbo, surrogate

    # Processes in parts: time-major tensors.

    def _read_rollout(
        self, mdp: MarkovDecisionProcess, policy: Any, num_trajectories: int = 1
    ) -> tuple[Tensor, Tensor]:
        pathwise = self.estimator == "pathwise" or (self.estimator == "auto" and _is_smooth(mdp, policy))
        trajectories = mdp.rollout(policy, num_trajectories, pathwise=pathwise)
        flat = torch.is_grad_enabled() and not trajectories.log_factors.requires_grad
        if self.estimator == "auto" and pathwise and flat:  # rewards without slope, as in _settle
            pathwise, trajectories = False, mdp.rollout(policy, num_trajectories)
        terms = trajectories.terms()
        if pathwise:
            return terms.sum(), terms.sum()
        direct = trajectories.log_factors + trajectories.log_prior
        surrogate = self._score_part(_steps_of_rollout(mdp, policy, trajectories, terms.detach()))
        if direct.requires_grad:
            surrogate = surrogate + (trajectories.scales * direct).sum()
        return terms.sum(), surrogate

    # What both have in common.

    def _score_part(self, steps: "_Steps") -> Tensor:
        """Returns the surrogate of the action draws, and of the critic that is trained alongside."""
        estimator = self.estimator
        if estimator == "auto":
            estimator = "score" if self.critic is None else "baseline"
        if estimator == "full_return":
            return estimators.score_surrogate(steps.log_policy, steps.terms.sum(0).expand_as(steps.terms))
        if estimator == "score":
            return estimators.score_surrogate(steps.log_policy, estimators.return_to_go(steps.terms))
        assert self.critic is not None
        if steps.temperature is None:
            raise ValueError(
                "critic: its values are in reward units, so all rewards of the program need one temperature, and "
                "they have several or none"
            )
        critic = _over_time(self.critic, steps.states, steps.times) / steps.temperature
        alive = steps.weights > 0
        safe = torch.where(alive, steps.weights, 1.0)
        if estimator == "exact_sum":
            surrogate = estimators.exact_sum_surrogate(*steps.distributions(), critic, steps.weights)
            if not critic.requires_grad:
                return surrogate
            taken = critic.gather(-1, steps.actions.long()[..., None]).squeeze(-1)
            after = estimators.return_to_go(steps.terms) - steps.own_terms
            return surrogate - estimators.critic_loss(taken, after / safe, alive)
        if critic.shape != steps.terms.shape:
            raise ValueError(
                f"estimator={estimator!r} needs a soft V, one value a state, of shape {tuple(steps.terms.shape)}; "
                f"the critic gave {tuple(critic.shape)}"
            )
        values = torch.where(alive, steps.weights * critic.detach(), 0.0)
        lambda_ = self.lambda_ if estimator == "advantage" else 1.0
        advantage = estimators.lambda_advantage(steps.terms, values, lambda_)
        surrogate = estimators.score_surrogate(steps.log_policy, advantage)
        if critic.requires_grad:
            surrogate = surrogate - estimators.critic_loss(critic, (advantage + values) / safe, alive)
        return surrogate


@dataclass
class _Steps:
    """Action draws that stand in the same plates, time first, ``(T, *batch)``."""

    terms: Tensor
    """All ELBO terms from one action to before the next, scaled, without gradient."""
    own_terms: Tensor
    """Of these, the action's own: ``log p - log π``, scaled."""
    log_policy: Tensor
    weights: Tensor
    """γ^t where the trajectory is alive, 0 elsewhere."""
    states: Tensor
    actions: Tensor
    times: Sequence[int]
    temperature: Any
    distributions: Callable[[], tuple[Any, Any]]
    """Policy and action prior of all the draws at once; asked for when needed."""


@dataclass
class _Term:
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


def _read_program(run: Callable[[], Any], policy: Any, pathwise: bool) -> list[_Term]:
    """Returns the terms of one run of a program that is its own guide.

    What is neither action nor observed has the same density in both, so it costs nothing.
    """
    terms = []
    for msg in record(run, policy, pathwise=pathwise):
        if is_action(msg) or msg["is_observed"]:
            log_p = prior_of(msg).log_prob(msg["value"])
            log_q = msg["fn"].log_prob(msg["value"]) if is_action(msg) else None
            terms.append(_term(msg, log_p, log_q, pathwise and msg["fn"].has_rsample, msg))
        elif torch.is_grad_enabled() and not msg["fn"].has_rsample:
            log_q = msg["fn"].log_prob(msg["value"])
            if log_q.requires_grad:
                terms.append(_Term(msg["name"], _frames(msg), torch.zeros_like(log_q.detach()), [], log_q))
    return terms


def _terms_of_traces(model_trace: Any, guide_trace: Any, marks: dict[str, Any], pathwise: bool) -> list[_Term]:
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


def _term(site: Any, log_p: Tensor | None, log_q: Tensor | None, reparameterized: bool, drawn: Any) -> _Term:
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
        if reparameterized and log_q.requires_grad:
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
    return _Term(
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


def _segments(terms: list[_Term]) -> list[MultiFrameTensor]:
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


def _suffix_sums(costs: list[Any]) -> list[Any]:
    sums: list[Any] = []
    for cost in reversed(costs):
        sums.append(cost + (sums[-1] if sums else 0.0))
    return sums[::-1]


def _temperature(terms: list[_Term]) -> Any:
    """Returns the program's temperature; None, where it has several or none, forbids a critic."""
    found = {float(term.temperature): term.temperature for term in terms if term.temperature is not None}
    return next(iter(found.values())) if len(found) == 1 else None


def _steps_of_terms(acts: list[_Term], costs: list[Any], temperature: Any) -> _Steps:
    scores = torch.broadcast_tensors(*[term.score for term in acts])
    shape = scores[0].shape
    # Costs of segments in between, whose action stands in other plates, belong to the act before.
    bounds = [term.segment for term in acts] + [len(costs)]
    terms = [torch.as_tensor(sum(costs[i:j])).to(scores[0]).expand(shape) for i, j in pairwise(bounds)]

    def aligned(value: Any) -> Tensor:
        return torch.as_tensor(value).to(scores[0]).expand(shape)

    def distributions() -> tuple[Any, Any]:
        pairs = [(term.action["policy"], term.action["prior"]) for term in acts]
        for pair in pairs:
            for fn in pair:
                if not isinstance(fn, torch.distributions.Categorical):
                    raise ValueError(
                        f"estimator='exact_sum' needs categorical actions, got {type(fn).__name__}; use 'auto'"
                    )
        policy, prior = (torch.stack([fn.logits.expand(*shape, -1) for fn in fns]) for fns in zip(*pairs, strict=True))
        return _Logits(policy), _Logits(prior)

    weights = []
    for term in acts:
        alive = term.action["alive"]
        weights.append(aligned(term.action["scale"]) * (1.0 if alive is None else alive))
    return _Steps(
        terms=torch.stack(terms),
        own_terms=torch.stack([aligned(term.cost) for term in acts]),
        log_policy=torch.stack(scores),
        weights=torch.stack(weights),
        states=_stack_states([term.action["state"] for term in acts]),
        actions=torch.stack([term.action["value"].detach() for term in acts]),
        times=[term.action["step"] or 0 for term in acts],
        temperature=temperature,
        distributions=distributions,
    )


def _stack_states(states: list[Any]) -> Any:
    if not all(isinstance(state, Tensor) for state in states):
        return states
    return torch.stack(torch.broadcast_tensors(*[state.detach() for state in states]))


def _steps_of_rollout(mdp: MarkovDecisionProcess, policy: Any, trajectories: Trajectories, terms: Tensor) -> _Steps:
    states = trajectories.states[: trajectories.horizon]

    def distributions() -> tuple[Any, Any]:
        if getattr(policy, "batch_steps", False):
            return policy(states, _time_tensor(range(len(states)), states, terms.dim())), mdp.prior(states)
        return _Logits(torch.stack([policy(s, t).logits for t, s in enumerate(states)])), mdp.prior(states)

    def categorical() -> tuple[Any, Any]:
        pair = distributions()
        for fn in pair:
            if not hasattr(fn, "logits"):
                raise ValueError(
                    f"estimator='exact_sum' needs categorical actions, got {type(fn).__name__}; use 'auto'"
                )
        return pair

    scales = trajectories.scales * trajectories.mask
    return _Steps(
        terms=terms,
        own_terms=(trajectories.scales * (trajectories.log_prior - trajectories.log_policy)).detach(),
        log_policy=trajectories.log_policy,
        weights=scales,
        states=states,
        actions=trajectories.actions,
        times=range(trajectories.horizon),
        temperature=trajectories.temperature,
        distributions=categorical,
    )


def _over_time(critic: Callable[[Any, Any], Tensor], states: Any, times: Sequence[int]) -> Tensor:
    """Returns the critic at every step, asked once where it takes all steps at once."""
    if getattr(critic, "batch_steps", False) and isinstance(states, Tensor):
        return critic(states, _time_tensor(times, states, 2))
    return torch.stack([critic(state, t) for t, state in zip(times, states, strict=True)])


def _time_tensor(times: Sequence[int], states: Tensor, dims: int) -> Tensor:
    """Returns times ``(T, N)`` that go with states ``(T, N, ...)``."""
    return torch.as_tensor(list(times), device=states.device)[:, None].expand(states.shape[:dims])


def _is_smooth(mdp: MarkovDecisionProcess, policy: Any) -> bool:
    """Whether rewards can be differentiated through actions and dynamics."""
    if isinstance(mdp.action_space, gymnasium.spaces.Discrete):
        return False
    with torch.no_grad():
        state = mdp.initial().expand([1]).sample()
        if mdp.terminated(state) is not None:
            return False
        action = policy(state, 0)
        return bool(action.has_rsample and mdp.transition(state, action.sample()).has_rsample)


class _Logits:
    """Just enough of a categorical distribution for the exact sum."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class _Marks(Messenger):
    """Keeps the model's marks, which replaying a guide's draw overwrites by the guide's."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        self.of[msg["name"]] = msg["infer"]


class _DetachedActions(Messenger):
    """Draws actions without a path for gradients."""

    def _pyro_sample(self, msg: Any) -> None:
        if is_action(msg) and msg["value"] is None:
            with torch.no_grad():
                msg["value"] = msg["fn"].sample()
