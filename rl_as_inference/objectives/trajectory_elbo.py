"""The trajectory ELBO as a Pyro objective: the maximum-entropy objective, with its estimators."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, get_args
from weakref import WeakSet

import gymnasium
import torch
from pyro import poutine
from pyro.infer.elbo import ELBO
from pyro.infer.enum import get_importance_trace
from pyro.util import warn_if_nan
from torch import Tensor

from rl_as_inference.arguments import checked_but, still_wanted
from rl_as_inference.checks import check_share
from rl_as_inference.distributed import ALONE, Ranks, stay_joined
from rl_as_inference.nouns import Policy
from rl_as_inference.objectives.action_steps import ActionSteps, steps_of_rollout, steps_of_terms
from rl_as_inference.objectives.action_surrogate import ActionSurrogate, Estimator
from rl_as_inference.objectives.jumps import Jumps
from rl_as_inference.objectives.luck import luck_of_process, luck_of_program
from rl_as_inference.objectives.pooled_loss import PooledLoss
from rl_as_inference.objectives.program_terms import (
    DetachedActions,
    Marks,
    Term,
    read_program,
    segment_costs,
    suffix_sums,
    temperature_of,
    terms_of_traces,
)
from rl_as_inference.objectives.weighted_regression import Projection
from rl_as_inference.processes import MarkovDecisionProcess, PartiallyObservedMDP
from rl_as_inference.program.readings import Guide, register_module
from rl_as_inference.program.sites import ACTION

__all__ = ["Estimator", "TrajectoryELBO"]

_JUMPS = Jumps()

_WITH_CRITIC = ("baseline", "advantage", "exact_sum", "n_step")


class TrajectoryELBO(ELBO):
    """The ELBO of a trajectory program against a guide: ``-loss`` is the ELBO, in nats, summed over plates.

    It is used as any of Pyro's: ``SVI(program, follow(program, policy), optim, TrajectoryELBO())``.
    What it adds is time. Terms are grouped by step in the order of execution, and a draw is only
    charged with what comes after it, by one cumulative sum. Three kinds of pair are read with
    rising speed: any model and guide (two runs, as Pyro does), a program and its own
    :func:`follow` (one run), a :class:`MarkovDecisionProcess` and its own ``follow`` (no handlers).

    Estimators of the gradient (docs/mathematics.md):

    - ``"auto"``: unbiased for every tagged program. Pathwise where actions are reparameterized, nothing
      ends early, and trial runs show no jump: that Python asks for the value of what depends on an action (``if``,
      ``while``, ``float``, ``.item()``), that a number is made of a step function of it (a comparison in
      ``torch.where``, ``round``, ``argmax``, an index), or that its gradient is cut off (``detach``). Else
      ``"baseline"`` with a critic and ``"score"`` without. Where the pieces of a ``torch.where`` meet there
      is no jump, and ``"pathwise"`` may be asked for by name.
    - ``"pathwise"``: through the actions and the dynamics, SVG(∞) (Heess et al. 2015, arXiv:1510.09142). Jumps of
      the same kinds are warned of.
    - ``"full_return"``: score function times the whole trajectory's return.
    - ``"score"``: score function times the return-to-go.
    - ``"baseline"``: the same less a critic's soft V, a ``(state, t)`` function in reward units.
    - ``"advantage"``: the λ soft advantage with a soft V; λ=1 is ``"baseline"``, below it biased by the
      critic's error.
    - ``"exact_sum"``: exact expectation over discrete actions with a soft Q, ``(state, t)`` to one
      value an action; unbiased where the critic is the policy's own soft Q.
    - ``"n_step"``: the same, corrected by the n-step soft return with analytic entropies (docs/elbo-and-sac.md).
      It takes a soft Q too, whose error it discounts by γ^n; from ``n = T`` on it is unbiased for any.

    Two are no gradients of the ELBO, but reach its optimum (docs/projection.md):

    - ``"em"``: expectation maximization. The policy is regressed on ``q*(a|s) ∝ π(a|s) exp(A(s,a)/η)``. ``A`` is from a
      critic, a soft Q (of continuous actions a :class:`rl_as_inference.critics.QEnsemble`); from a soft V and what
      trajectories earned after each action; or, without a critic, from whole trajectories. What is from trajectories
      reckons on luck: at η = α it is the posterior of actions given optimality.
    - ``"path_consistency"``: the square of what is left of path consistency. With a soft V it is taken over paths of n
      steps; n = 1 is right for any dynamics, n ≥ T is trajectory balance, with the critic at ``t = 0`` as
      ``log Z(s_0)``. Without a critic it is the variance among trajectories that start alike. Its trajectories may be
      those of another policy, ``behavior``.

    A critic that is a module is trained alongside by squared error, as Pyro trains a baseline.

    Args:
        estimator: one of the above.
        critic: a callable ``(state, t)``, in reward units.
        lambda_: λ in [0, 1], for ``"advantage"``.
        n: the number of steps, ≥ 1, for ``"n_step"`` and ``"path_consistency"``.
        projection: η, ε or a teacher, for ``"em"``.
        behavior: who draws the trajectories of ``"path_consistency"``; None for the policy itself. The value of the
            loss is then minus the ELBO of as many further trajectories of the policy.
        distributed: the runs of all ranks of a ``torchrun`` job are one batch, as if the program's plates held those of
            all: losses and gradients are summed over the ranks, in one vector, and ranks draw other random numbers.
            So each rank runs its part, ``with pyro.plate("trajectories", ranks.share(256))``. Of several particles, of
            which ``num_particles`` is the number of all ranks together, each rank takes its share.
        **options: Pyro's: ``num_particles``, ``vectorize_particles``, ``max_plate_nesting``, ….

    Warns:
        UserWarning: if ``"pathwise"`` is asked of a program that jumps as its actions move.

    Raises:
        ValueError: for an unknown estimator, a λ outside [0, 1], an n < 1, or a critic missing where it is
            needed; and on use, where the program does not allow the estimator (the reason is given).
        RankError: if another rank has ended.

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

    @checked_but("lambda_")
    def __init__(
        self,
        estimator: Estimator = "auto",
        critic: Callable[[Any, Any], Tensor] | None = None,
        lambda_: float = 1.0,
        n: int = 1,
        projection: Projection | None = None,
        behavior: Policy | None = None,
        distributed: bool = False,
        **options: Any,
    ) -> None:
        if estimator not in get_args(Estimator):
            raise ValueError(f"estimator must be one of {', '.join(get_args(Estimator))}; got {estimator!r}")
        check_share("lambda_", lambda_)
        if estimator in _WITH_CRITIC and critic is None:
            raise ValueError(f"estimator={estimator!r} needs a critic: pass critic=(state, t) -> soft values")
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"n must be an integer >= 1, got {n!r}")
        for name, given, of in (("projection", projection, "em"), ("behavior", behavior, "path_consistency")):
            if given is not None and estimator != of:
                raise ValueError(f"{name} is for estimator={of!r}, got estimator={estimator!r}; leave it out")
        super().__init__(**options)
        self.projection, self.behavior = projection or Projection(), behavior
        self._deterministic: WeakSet[Any] = WeakSet()
        self.estimator = estimator
        self.critic = critic
        self.lambda_ = lambda_
        self.n = n
        self.distributed = distributed
        self.pooled = PooledLoss()
        self._of_all = options.get("num_particles", 1)
        if self._of_all > 1:
            self.num_particles = self._ranks.share(self._of_all, "num_particles")

    def __call__(self, model: Any, guide: Any) -> Any:
        """Returns the loss as a module, as Pyro's ELBOs do; its parameters include the critic's."""
        module = super().__call__(model, guide)
        if isinstance(self.critic, torch.nn.Module):
            module.critic = self.critic
        return module

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Returns an estimate of ``-ELBO``, in nats, summed over plates."""
        ranks = self._ranks
        with torch.no_grad():
            if ranks.size > 1:
                loss = float(self.pooled(ranks, lambda: self._differentiable(model, guide, args, kwargs)))
            else:
                loss = -sum(float(elbo) for elbo, _ in self._particles(model, guide, args, kwargs)) / self.num_particles
        warn_if_nan(loss, "loss")
        return loss

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Returns ``-ELBO`` as a tensor whose gradient is the estimator's."""
        loss = self.pooled(self._ranks, lambda: self._differentiable(model, guide, args, kwargs))
        warn_if_nan(loss, "loss")
        return loss

    def _differentiable(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Tensor:
        """Returns this rank's part."""
        loss: Any = 0.0
        for elbo, surrogate in self._particles(model, guide, args, kwargs):
            loss = loss - (elbo.detach() + surrogate - surrogate.detach()) / self._of_all
        return torch.as_tensor(loss)

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Returns ``-ELBO`` and accumulates the estimator's gradient in the parameters."""
        if self._ranks.size > 1:
            pooled = self.differentiable_loss(model, guide, *args, **kwargs)
            if pooled.requires_grad:
                pooled.backward()
            return float(pooled.detach())
        loss = 0.0
        for elbo, surrogate in self._particles(model, guide, args, kwargs):
            if surrogate.requires_grad:
                (-surrogate / self.num_particles).backward(retain_graph=self.retain_graph)
            loss -= float(elbo.detach()) / self.num_particles
        warn_if_nan(loss, "loss")
        return loss

    @property
    def _ranks(self) -> Ranks:
        return stay_joined() if self.distributed else ALONE

    def _particles(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields ``(elbo, surrogate)`` of each particle; vectorized particles come as one."""
        if isinstance(self.critic, torch.nn.Module):
            register_module("critic", self.critic)
        own = isinstance(guide, Guide) and guide.program is model
        for name, given in () if own else (("model", model), ("guide", guide)):
            if wanted := still_wanted(given, len(args), kwargs):
                raise ValueError(
                    f"{name} wants {' and '.join(wanted)}, which it is not given; of a policy (state, t) the guide is "
                    f"follow(program, policy), as in SVI(program, follow(program, policy), ...); a program's own "
                    f"arguments are given to step()"
                )
        vectorized = self.vectorize_particles and self.num_particles > 1
        if vectorized and self.max_plate_nesting == float("inf"):
            self._guess_max_plate_nesting(model, guide, args, kwargs)
        if self.estimator == "path_consistency":
            self._check_consistency(model, own, args, kwargs)
        for _ in range(1 if vectorized else self.num_particles):
            if own and not vectorized and not kwargs and self._is_in_parts(model):
                register_module("policy", guide.policy)
                elbo, surrogate = self._read_rollout(model, self.behavior or guide.policy, guide.policy, *args)
                if self.behavior is not None:
                    with torch.no_grad():
                        elbo = model.rollout(guide.policy, *(args or (1,))).terms().sum()
                yield elbo, surrogate
                continue
            pair = (self._vectorized_num_particles(fn) if vectorized else fn for fn in (model, guide))
            run, other = (partial(fn, *args, **kwargs) for fn in pair)
            plain = partial(model, *args, **kwargs), partial(guide, *args, **kwargs)
            if own:
                read = partial(read_program, run, self.behavior or guide.policy)
                look = partial(self._look, model, guide.policy, partial(read_program, plain[0], guide.policy, True))
            else:
                names = _JUMPS.note(model, guide).names
                read = partial(self._read_pair, run, other, names)
                look = partial(self._look, model, guide, partial(_run_pair, *plain, names))
            elbo, surrogate = self._combine(self._settle(read, look), guide.policy if own else None)
            if self.behavior is not None:
                register_module("policy", guide.policy)
                with torch.no_grad():
                    elbo, _ = self._combine(read_program(run, guide.policy, False), guide.policy)
            yield elbo, surrogate

    def _check_consistency(self, model: Any, own: bool, args: Any, kwargs: Any) -> None:
        """Raises ValueError unless path consistency holds of this pair."""
        if not own:
            raise ValueError(
                "guide: estimator='path_consistency' needs follow(program, policy), which says which draws are actions"
            )
        if (self.critic is not None and self.n == 1) or model in self._deterministic:
            return
        in_parts = isinstance(model, MarkovDecisionProcess)
        luck = luck_of_process(model) if in_parts else luck_of_program(partial(model, *args, **kwargs))
        if luck:
            what = f"paths of n = {self.n} steps" if self.critic is not None else "whole trajectories"
            raise ValueError(
                f"estimator='path_consistency' over {what} needs deterministic dynamics, and {luck}; take single "
                f"steps, with critic=(state, t) -> soft V and n=1"
            )
        self._deterministic.add(model)

    def _is_in_parts(self, model: Any) -> bool:
        """Whether the model has a reading without handlers that gives every gradient that is wanted."""
        if not isinstance(model, MarkovDecisionProcess):
            return False
        # Draws without a derivative reach the dynamics' parameters by scores, which rollouts do not keep.
        return self.estimator == "pathwise" or not model.learns_dynamics()

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)

    # Programs: sites with their plates.

    def _read_pair(self, model: Any, guide: Any, names: set[str], pathwise: bool) -> list[Term]:
        marks = Marks()
        drawing = guide if pathwise else DetachedActions(names)(guide)
        model_trace, guide_trace = self._get_trace(marks(model), drawing, (), {})
        if not pathwise and torch.is_grad_enabled():
            drawn = {n: guide_trace.nodes[n]["value"] for n in _actions(marks.of) if n in guide_trace.nodes}
            unmarked = {name for name, value in drawn.items() if value.requires_grad}
            if unmarked - names:  # the guide did not say that these are actions; it is remembered
                names |= unmarked
                return self._read_pair(model, guide, names, pathwise)
        return terms_of_traces(model_trace, guide_trace, marks.of, pathwise)

    def _look(self, model: Any, actor: Any, trial: Callable[[], Any]) -> bool:
        """Returns whether the model jumps as its actions move; of ``"pathwise"`` it is warned."""
        note = _JUMPS.look(model, actor, trial)
        if note.found is not None and self.estimator == "pathwise":
            warnings.warn(
                f"estimator='pathwise' does not see that the program jumps as its actions move ({note.found}), so that "
                f"its gradient is biased unless both sides meet there; use 'auto', 'score' or 'baseline'",
                UserWarning,
                stacklevel=6,
            )
        return note.found is not None or note.ends

    def _settle(self, read: Callable[[bool], list[Term]], look: Callable[[], bool]) -> list[Term]:
        """Returns the terms of one run, with actions drawn as the estimator wants them."""
        if self.estimator not in ("auto", "pathwise"):
            return read(False)
        terms = read(True)
        drawn_pathwise = any(term.action is not None and term.score is None for term in terms)
        if not drawn_pathwise or not torch.is_grad_enabled():
            return terms
        # Where an episode ends depends on where actions led, with a jump that no derivative sees.
        jumps = look() or any(term.ends_early for term in terms)
        return read(False) if jumps and self.estimator == "auto" else terms

    def _combine(self, terms: list[Term], policy: Any = None) -> tuple[Tensor, Tensor]:
        if self._of_all == 1 and self._ranks.size > 1:
            for term in terms:
                if all(getattr(frame, "full_size", None) not in (None, frame.size) for frame in term.frames):
                    raise ValueError(
                        f"distributed: site {term.name!r} stands in no plate that ranks share out (or in a subsampled "
                        f"one), so that each rank would count it; say num_particles= {self._ranks.size} or more, which "
                        f"are runs of the whole program whose mean is taken"
                    )
        elbo: Any = torch.zeros(())
        surrogate: Any = torch.zeros(())
        for term in terms:
            elbo = elbo + term.cost.sum()
            for part in term.differentiable:
                surrogate = surrogate + part.sum()
        learning = isinstance(self.critic, torch.nn.Module) and any(p.requires_grad for p in self.critic.parameters())
        learning = learning or self.behavior is not None  # whose log probabilities have no gradient
        scored = [
            term
            for term in terms
            if term.score is not None and (term.score.requires_grad or (learning and term.action is not None))
        ]
        if self.estimator == "pathwise" and scored:
            raise ValueError(
                f"estimator='pathwise' needs reparameterized draws, but site {scored[0].name!r} has none; use 'auto'"
            )
        segments = segment_costs(terms)
        if self.estimator == "path_consistency" and len({t.frames for t in scored if t.action is not None}) > 1:
            raise ValueError(
                "estimator='path_consistency' needs all actions of the program in the same plates; use 'auto'"
            )
        for frames in dict.fromkeys(term.frames for term in scored):
            costs = [segment.sum_to(frames) for segment in segments]
            mine = [term for term in scored if term.frames == frames]
            to_go = suffix_sums(costs)
            for term in mine:
                if term.action is None:  # a draw whose distribution the policy's actions shape
                    surrogate = surrogate + (term.score * to_go[term.segment]).sum()
            acts = [term for term in mine if term.action is not None]
            if acts:
                surrogate = surrogate + self._score_part(steps_of_terms(acts, costs, temperature_of(terms)), policy)
        return elbo, surrogate

    # Processes in parts: time-major tensors.

    def _read_rollout(
        self, mdp: MarkovDecisionProcess, policy: Any, own: Any, num_trajectories: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Returns ELBO and surrogate of rollouts of a policy, with ``own`` as the one that is trained."""
        pathwise = self.estimator == "pathwise" or (self.estimator == "auto" and _is_smooth(mdp, policy))
        if pathwise and torch.is_grad_enabled():
            trial = partial(read_program, partial(mdp, min(num_trajectories, 2)), policy, True)
            pathwise = not self._look(mdp, policy, trial) or self.estimator == "pathwise"
        trajectories = mdp.rollout(policy, num_trajectories, pathwise=pathwise)
        flat = torch.is_grad_enabled() and not trajectories.log_factors.requires_grad
        if self.estimator == "auto" and pathwise and flat:  # rewards without slope
            pathwise, trajectories = False, mdp.rollout(policy, num_trajectories)
        terms = trajectories.terms()
        if pathwise:
            return terms.sum(), terms.sum()
        surrogate = self._score_part(steps_of_rollout(mdp, policy, trajectories, terms.detach()), own)
        # All that is not the draws' own: what factors and prior depend on, and the discount.
        direct = replace(trajectories, log_policy=trajectories.log_policy.detach())
        if any(of.requires_grad for of in (direct.log_factors, direct.log_prior, direct.scales)):
            surrogate = surrogate + direct.terms().sum()
        return terms.detach().sum(), surrogate

    def _score_part(self, steps: ActionSteps, policy: Any) -> Tensor:
        options = (self.estimator, self.critic, self.lambda_, self.n, self.projection, self.behavior)
        # Particles in a loop are batches of their own.
        alone = self._of_all > 1 and not self.vectorize_particles
        return ActionSurrogate(*options, ALONE if alone else self._ranks)(steps, policy)


def _actions(marks: dict[str, Any]) -> list[str]:
    return [name for name, infer in marks.items() if ACTION in (infer or ())]


def _run_pair(model: Callable[[], Any], guide: Callable[[], Any], names: set[str]) -> None:
    """Runs a guide and its model as a trial, twice: that a site is an action may be known from the model alone."""
    for _ in range(2):
        marks = Marks()
        trace = poutine.trace(poutine.replay(marks(model), trace=poutine.trace(guide).get_trace())).get_trace()
        trace.compute_log_prob()
        names.update(_actions(marks.of))


def _is_smooth(mdp: MarkovDecisionProcess, policy: Any) -> bool:
    """Whether rewards can be differentiated through actions and dynamics."""
    if isinstance(mdp.action_space, gymnasium.spaces.Discrete):
        return False
    with torch.no_grad():
        state = mdp.begin(1)
        if mdp.has_ended(state) is not None:
            return False
        seen = mdp.view(state)
        action = policy(seen, 0)
        # Its actions are continuous, and so are its states, or the transition has no rsample.
        if not (action.has_rsample and mdp.transition(state, action.sample()).has_rsample):
            return False
        return not isinstance(mdp, PartiallyObservedMDP) or mdp.sees_smoothly(state, action.sample())
