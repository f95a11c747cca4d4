"""Soft values of finite processes without a horizon, as fixed points of their backups."""

import copy
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rl_as_inference.checks import holds, is_deferred
from rl_as_inference.exact.backups import Dynamics, backup, log_survival, reward_in_nats, soft_maximum
from rl_as_inference.exact.linear_systems import (
    Jacobian,
    Slots,
    applied,
    is_dense,
    level_and_rest,
    newton_step,
    of_level_and_rest,
    solved,
)
from rl_as_inference.processes.log_sums import WORTH_LIMIT, span
from rl_as_inference.processes.tabular import TabularMDP

__all__ = ["FixedPoint", "backup_of_rest", "check_fixed_point", "fixed_point", "solve_linear"]

_FIXED_STEPS = 16
"""Newton steps where many rows are solved as one and none can be asked whether it has settled; 3 to 8 are usual."""

_MOST_STEPS = 1_000
"""Newton steps otherwise. A chain whose rule changes in one state at a time takes as many as it is long."""

_LOOKS = frozenset({8, 16, 32, 64, 128, 256, 512})
"""Newton steps after which it is asked whether there is anything to find."""

_BACKUPS = 20
"""Backups that are tried to prove that there is nothing to find."""

_LAST_STEP = 1e-8
"""Relative size of the last of a fixed number; as the method converges quadratically, what is left is rounding."""

_MOST_STEPS_AN_EPISODE = 1e13
"""Expected steps of an episode, under the chain that a fixed point implies, from which its end is rounding."""


_COARSE_FROM = 200
"""States from which elimination takes most of the time of a step, and in single precision half as long."""


class FixedPoint(NamedTuple):
    """Values of a process without horizon, ``V = rest + level``, in nats.

    Attributes:
        rest: ``(S,)``.
        level: a constant of all states, 0-dimensional: where a process never ends, what grows without bound as γ → 1
            while ``rest`` does not; else 0.
        residual: ``max_s |backup(V)(s) - V(s)|``, 0-dimensional, nats.
    """

    rest: Tensor
    level: Tensor
    residual: Tensor


def check_fixed_point(mdp: TabularMDP, policy: Tensor | None = None) -> None:
    """Raises ValueError where an undiscounted process without horizon need not end."""
    if _shrinks(mdp):
        return
    if not mdp.has_terminal:
        raise ValueError(
            "no fixed point: the process is undiscounted and has neither horizon nor terminal states; set "
            "horizon, a discount < 1, or terminal"
        )
    reaches = mdp.terminal.clone()
    allowed = ((mdp.action_prior if policy is None else policy) > 0).to(mdp.initial_probabilities.dtype)
    while True:
        onward = (mdp.kernel.expect(reaches.to(allowed.dtype)).detach() * allowed).sum(-1) > 0
        grown = reaches | onward
        if bool((grown == reaches).all()):
            break
        reaches = grown
    if not bool(reaches.all()):
        state = int((~reaches).nonzero()[0])
        raise ValueError(
            f"no fixed point: the process is undiscounted, has no horizon, and state {state} cannot reach a "
            f"terminal state; set horizon or a discount < 1"
        )


def _shrinks(mdp: TabularMDP) -> bool:
    """Returns whether the discount is below 1, so that causal values exist."""
    below = mdp.discount < 1
    return holds(below) if isinstance(below, Tensor) else below


def fixed_point(mdp: TabularMDP, dynamics: Dynamics, reward: Tensor) -> FixedPoint:
    """Returns the soft values of a process without horizon, in nats, differentiable in its tensors to any order.

    Newton's method from below: each backup is convex and monotone in the values, so the iterates
    rise to the smallest fixed point. For causal dynamics it is soft policy iteration, from the action prior. It ends
    when the Bellman residual is rounding, and where a fixed point need not exist, by a certificate that it does:
    under the chain of the slopes of the backup, episodes end. The gradient is that of the implicit function theorem.

    Within :func:`~rl_as_inference.checks.deferred` the number of steps is fixed, so that it can be batched, and that
    the values have settled is one more condition.

    Raises:
        ValueError: if there is no fixed point, or it is too near to having none to tell.
    """
    check_fixed_point(mdp)
    with torch.no_grad():
        fixed = reward.detach()
        if dynamics == "causal":
            prior = mdp.action_prior.detach()
            own = torch.where(mdp.terminal, 0.0, (prior * fixed).sum(-1))
            found = _newton(mdp, "causal", fixed, (prior, own))
        else:  # by Jensen's inequality the causal values lie below
            below = fixed_point(mdp, "causal", reward_in_nats(mdp, "causal"))
            start = below.rest.detach() + below.level.detach()
            if not is_dense(mdp.num_states) and _grows(mdp, fixed, start):
                raise _infinite(dynamics)
            found = _newton(mdp, dynamics, fixed, start)
    rest, level, _ = found
    if is_deferred():
        # A last Newton step, of the size of rounding; its slope in what it starts from is the theorem's.
        with torch.no_grad():
            jacobian = _jacobian(mdp, dynamics, fixed, backup(mdp, dynamics, fixed, rest), rest)
        improved = _improved(mdp, dynamics, reward, rest, level)
        return found._replace(rest=rest + solved(jacobian, improved - rest))
    tensors = (reward, mdp._given[1], mdp.action_prior, mdp.discount)
    if not (torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in tensors)):
        return found
    rest, level = _Implicit.apply(mdp, dynamics, rest, level, *tensors)  # type: ignore[no-untyped-call]
    return found._replace(rest=rest, level=level)


def _newton(mdp: TabularMDP, dynamics: Dynamics, reward: Tensor, start: Tensor | tuple[Tensor, Tensor]) -> FixedPoint:
    """Returns the fixed point by Newton's method.

    Values of a process that never ends are found as ``g/(1-γ) + h``, with ``h`` zero in the first state. Solving for
    their sum would magnify the rounding of a backup by 1/(1-γ); the system of ``g`` and ``h`` is as well conditioned
    as the process mixes.

    Args:
        start: values to start from, or a policy with what it earns, whose values to start from.
    """
    by_level, rate = _by_level(mdp, dynamics), _rate(mdp, reward)
    eps, largest = torch.finfo(reward.dtype).eps, reward.abs().max()
    rest, gain = reward.new_zeros(mdp.num_states), reward.new_zeros(())
    # With a discount a causal fixed point exists whatever the rewards, and a backup is a contraction.
    exists = dynamics == "causal" and _shrinks(mdp)
    # Newton's method mends what its last step was off by, so that steps in single precision will do while they help.
    coarse = exists and is_dense(mdp.num_states) and mdp.num_states >= _COARSE_FROM
    best, since, last = math.inf, 0, math.inf
    for count in range(_FIXED_STEPS if is_deferred() else _MOST_STEPS):
        if count == 0 and isinstance(start, tuple):
            policy, step = start
            jacobian = _chain(mdp, policy, mdp.discount)
        else:
            if count == 0:
                assert isinstance(start, Tensor)
                rest = start
            q = backup(mdp, dynamics, reward, rest)
            step = soft_maximum(mdp, q) - rest - gain
            if not is_deferred():
                residual, widest = torch.stack([step.abs().max(), rest.abs().max() + gain.abs() + largest]).tolist()
                if not math.isfinite(residual):
                    break
                best, since = (residual, 0) if residual < 0.5 * best else (best, since + 1)
                scale = widest or 1.0
                # Rounding of many states may leave more than one backup's, and then it no longer falls.
                if residual <= 16 * eps * scale or (residual <= 1e4 * eps * scale and since >= 5):
                    if not exists and not bool(_ends(_jacobian(mdp, dynamics, reward, q, rest), step)):
                        break
                    return FixedPoint(rest, gain / rate if by_level else gain, reward.new_tensor(residual))
                coarse = coarse and (count < 2 or residual < 0.1 * last)
                last = residual
            jacobian = _jacobian(mdp, dynamics, reward, q, rest)
            # Where there is no fixed point the values may rise by a nat a step, for ever.
            if dynamics == "posterior" and not is_deferred() and count in _LOOKS and _grows(mdp, reward, rest):
                break
        if coarse and isinstance(jacobian, Tensor):
            jacobian, step = jacobian.float(), step.float()
        more, step = newton_step(jacobian, step, rate.to(step) if by_level else None)
        # The first step may go anywhere below the solution; after it the values can only rise.
        if not (is_deferred() or exists or count == 0) and not bool((step >= -1e-3 * (1 + rest.abs())).all()):
            break
        gain, rest = gain + more, rest + step
    else:
        if is_deferred():
            holds(((step.abs() / (1 + rest.abs())).max() <= _LAST_STEP) & rest.isfinite().all())
            if not exists:
                holds(_ends(jacobian, torch.zeros_like(step)))
            return FixedPoint(rest, gain / rate if by_level else gain, step.abs().max())
    if exists:
        raise ValueError(
            f"no fixed point found: there is one, as the discount is below 1, but the values did not settle (Bellman "
            f"residual {best:.3g} nats); check that rewards are finite and of a moderate size, or set a smaller "
            f"discount or a horizon"
        )
    raise _infinite(dynamics)


def _infinite(dynamics: Dynamics) -> ValueError:
    what = "log evidence" if dynamics == "posterior" else "largest ELBO"
    return ValueError(
        f"no fixed point: with no horizon the {what} of this process is infinite, or too large to find; set a "
        f"horizon, a smaller discount, or a higher temperature"
    )


def _grows(mdp: TabularMDP, reward: Tensor, value: Tensor) -> bool:
    """Returns whether backups prove an evidence infinite: ``M e^V > e^V`` in some states, by what these lead to alone.

    Then the spectral radius of ``M`` is above 1 (Collatz and Wielandt). All is kept as logarithms: ``V`` may be of any
    size. Newton's method may take for ever to see it, and systems of many states are slow to solve where there is no
    solution.
    """
    eps = torch.finfo(value.dtype).eps
    ended = torch.where(mdp.terminal, 0.0, -torch.inf).to(value)
    own = soft_maximum(mdp, backup(mdp, "posterior", reward, ended))

    def onward(value: Tensor) -> Tensor:
        """Returns ``log M e^V``, what is earned by going on."""
        after = soft_maximum(mdp, backup(mdp, "posterior", reward, value))
        return after + torch.log1p(-(own - after).exp().clamp(max=1.0))

    for _ in range(_BACKUPS):
        after = onward(value)
        if not bool(after.isfinite().any()):
            return False
        growing = (after - value > 8 * eps * (1 + value.abs())) & ~mdp.terminal
        while bool(growing.any()):
            inside = torch.where(growing, value, -torch.inf)
            still = growing & (onward(inside) - value > 8 * eps * (1 + value.abs()))
            if bool((still == growing).all()):
                return True
            growing = still
        value = torch.maximum(value, soft_maximum(mdp, backup(mdp, "posterior", reward, value)))
    return False


def _by_level(mdp: TabularMDP, dynamics: Dynamics) -> bool:
    """Returns whether values are found as a level and what is left: of a chain times a discount that never ends."""
    return dynamics == "causal" and not mdp.has_terminal


def _rate(mdp: TabularMDP, like: Tensor) -> Tensor:
    """Returns ``1-γ``, at which trajectories end that have no other end; its slopes are elsewhere."""
    return 1 - torch.as_tensor(mdp.discount, dtype=like.dtype, device=like.device).detach()


def _ends(jacobian: Jacobian, residual: Tensor) -> Tensor:
    """Returns whether the backup's slopes at values with such a residual prove that a fixed point exists.

    With ``K = diag(e^residual) J`` values are finite if and only if the spectral radius of ``K`` is below 1 (of the
    rescaled linear system of ``e^V``, or of the chain of the soft policy). ``y > 0`` with ``(I - K) y >= 1/2`` proves
    it (Collatz and Wielandt); ``y`` are the expected steps of an episode.
    """
    ones = torch.ones_like(residual)
    try:
        steps = solved(jacobian, ones)
    except ValueError:
        return torch.zeros((), dtype=torch.bool)
    left = steps - residual.exp() * applied(jacobian, steps)
    return ((steps > 0) & (steps < _MOST_STEPS_AN_EPISODE) & (left > 0.5)).all()


def _improved(mdp: TabularMDP, dynamics: Dynamics, reward: Tensor, rest: Tensor, level: Tensor) -> Tensor:
    """Returns one backup of ``rest + level``, less ``level``: as exact as a backup of ``rest`` is."""
    improved = soft_maximum(mdp, backup_of_rest(mdp, dynamics, reward, rest, level))
    return improved - (1 - mdp.discount) * level if _by_level(mdp, dynamics) else improved


def backup_of_rest(mdp: TabularMDP, dynamics: Dynamics, reward: Tensor, rest: Tensor, level: Tensor) -> Tensor:
    """Returns the backup of ``rest + level``, less ``γ level``, ``(S, A)`` in nats."""
    q = backup(mdp, dynamics, reward, rest)
    if _by_level(mdp, dynamics) and mdp.kernel.probabilities.requires_grad:
        sums = mdp.kernel.probabilities.sum(-1)  # one, but a slope in a single probability changes it
        q = q + mdp.discount * level * (sums - sums.detach())
    return q


def _jacobian(mdp: TabularMDP, dynamics: Dynamics, reward: Tensor, q: Tensor, value: Tensor) -> Jacobian:
    """Returns ``∂ V(s) / ∂ V(s')`` of a backup ``q`` of ``value``."""
    weights = torch.softmax(q + mdp.log_action_prior, -1)
    if dynamics == "causal":
        return _chain(mdp, weights, mdp.discount)
    exponent = log_survival(mdp.discount, value)
    plain = reward.dim() == 2 and is_dense(mdp.num_states) and not torch.is_grad_enabled() and not is_deferred()
    if plain and (scale := span(exponent).scale) is not None:  # with one exponential a state
        weights = torch.where(mdp.terminal[:, None], 0.0, weights * (reward - q + scale).exp())
        return mdp.kernel.under(weights) * (mdp.discount * (value - scale).exp() if mdp.discount > 0 else 0.0)
    ahead = value - exponent
    onward = mdp.discount * (ahead if mdp.discount > 0 else ahead.clamp(max=WORTH_LIMIT)).exp()
    factor = reward if reward.dim() == 3 else reward[..., None]
    indices, probabilities = mdp.kernel.rows()
    exponents = factor + exponent[indices] - q[..., None]
    # What cannot happen may be worth more than the range of numbers; slopes in it are limited as those of a backup are.
    exponents = torch.where(probabilities > 0, exponents, exponents.clamp(max=WORTH_LIMIT))
    if mdp.has_terminal:  # before the exponential, as 0 times infinity would be no slope
        exponents = torch.where(mdp.terminal[:, None, None], 0.0, exponents)
    tilted = probabilities * exponents.exp() * onward[indices]
    if mdp.has_terminal:
        tilted = torch.where(mdp.terminal[:, None, None], 0.0, tilted)
    return _as_jacobian(indices, weights[..., None] * tilted)


def _chain(mdp: TabularMDP, probabilities: Tensor, scale: float | Tensor) -> Jacobian:
    """Returns ``γ Σ_a π(a|s) p(s'|s,a)``, with nothing leaving a terminal state."""
    if mdp.has_terminal:
        probabilities = torch.where(mdp.terminal[:, None], 0.0, probabilities)
    if is_dense(mdp.num_states):
        return scale * mdp.kernel.under(probabilities)
    indices, chances = mdp.kernel.rows()
    return _as_jacobian(indices, scale * probabilities[..., None] * chances)


def _as_jacobian(indices: Tensor, values: Tensor) -> Jacobian:
    slots = Slots(indices.flatten(1), values.flatten(1))
    return slots.dense() if is_dense(len(indices)) else slots


def solve_linear(mdp: TabularMDP, probabilities: Tensor, own: Tensor, transpose: bool = False) -> Tensor:
    """Solves ``x = own + γ M x`` with ``M`` the policy's kernel, or its transpose."""
    chain = _chain(mdp, probabilities, mdp.discount)
    if mdp.has_terminal:
        return solved(chain, own, transpose)
    if transpose:
        return of_level_and_rest(chain, own.sum(), own, _rate(mdp, own))
    level, rest = level_and_rest(chain, own, _rate(mdp, own))
    return rest + level


class _Implicit(torch.autograd.Function):
    """Attaches a fixed point to the tensors it depends on, by the implicit function theorem, to any order.

    With ``V = T(V, θ)`` what comes back is ``(∂T/∂θ)^T (I - ∂T/∂V)^{-T} grad``. The saved outputs are attached
    to this same node, so that the slope's own slopes know that the solution moves.
    """

    @staticmethod
    def forward(ctx: Any, mdp: Any, dynamics: Dynamics, rest: Tensor, level: Tensor, *tensors: Any) -> Any:
        outputs = rest.clone(), level.clone()
        ctx.problem, ctx.tensors = (mdp, dynamics), tensors
        ctx.save_for_backward(*outputs, *(x for x in tensors if isinstance(x, Tensor)))
        return outputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_of_level: Tensor) -> Any:
        mdp, dynamics = ctx.problem
        rest, level, *saved = ctx.saved_tensors
        further = torch.is_grad_enabled()
        if not further:
            rest, level = rest.detach(), level.detach()
        with torch.enable_grad():
            # New nodes, as the slope wanted is that in them at a value that stays where it is.
            copies = [x.view_as(x) if further else x.detach().requires_grad_() for x in saved]
            own = iter(copies)
            reward, probabilities, prior, discount = (next(own) if isinstance(x, Tensor) else x for x in ctx.tensors)
            moved = _with_tensors(mdp, probabilities, prior, discount)
            improved = _improved(moved, dynamics, reward, rest, level)
            wanted = [x for x in copies if x.requires_grad]
        with torch.set_grad_enabled(further):
            jacobian = _jacobian(moved, dynamics, reward, backup_of_rest(moved, dynamics, reward, rest, level), rest)
            if _by_level(mdp, dynamics):
                passed = of_level_and_rest(jacobian, grad_of_level, grad, _rate(mdp, grad))
            else:
                passed = solved(jacobian, grad, transpose=True)
        slopes = torch.autograd.grad(improved, wanted, passed, create_graph=further, allow_unused=True)
        by_copy = dict(zip(map(id, wanted), slopes, strict=True))
        own = iter(copies)
        answers = [by_copy.get(id(next(own))) if isinstance(x, Tensor) else None for x in ctx.tensors]
        return None, None, None, None, *answers


def _with_tensors(mdp: TabularMDP, probabilities: Tensor, prior: Tensor, discount: Any) -> TabularMDP:
    """Returns the process with other tensors in place of those it has."""
    other = copy.copy(mdp)
    other._given = mdp._given[0], probabilities
    other.action_prior, other.discount = prior, discount
    other._kernel = other._log_action_prior = None
    return other
