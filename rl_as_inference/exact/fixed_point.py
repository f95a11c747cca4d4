"""Soft values of finite processes without a horizon, as fixed points of their backups."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rl_as_inference.checks import holds, is_deferred
from rl_as_inference.exact.backups import Dynamics, backup, log_survival, reward_in_nats, soft_maximum
from rl_as_inference.processes.kernels import gathered
from rl_as_inference.processes.tabular import TabularMDP

__all__ = ["check_fixed_point", "fixed_point", "solve_linear"]

_SOLVE_LIMIT = 3000
"""Fixed points of up to this many states are solved by Newton's method, larger ones by iteration."""

_FIXED_STEPS = 16
"""Newton steps where many rows are solved as one and none can be asked whether it has settled; 3 to 8 are usual."""

_LAST_STEP = 1e-8
"""Relative size of the last of them; as Newton's method converges quadratically, what is left is rounding."""


_UNSETTLED = (
    "no fixed point found: there is one, as the discount is below 1, but the values did not settle; check that "
    "rewards are finite and of a moderate size, or set a smaller discount or a horizon"
)


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


def fixed_point(mdp: TabularMDP, dynamics: Dynamics, reward: Tensor) -> Tensor:
    """Returns the soft values of a process without horizon, in nats, differentiable in its tensors.

    Newton's method from below: each backup is convex and monotone in the values, so the iterates
    rise to the smallest fixed point. For causal dynamics it is soft policy iteration. The gradient
    is that of the implicit function theorem.

    Within :func:`~rl_as_inference.checks.deferred` the number of steps is fixed, so that it can be batched, and that
    the values have settled is one more condition.
    """
    check_fixed_point(mdp)
    with torch.no_grad():
        fixed = reward.detach()
        if dynamics == "causal":
            value = fixed.new_zeros(mdp.num_states)
        else:  # by Jensen's inequality the causal values lie below
            value = fixed_point(mdp, "causal", reward_in_nats(mdp, "causal"))
        if dynamics == "causal" and not mdp.has_terminal:
            value = _level_and_rest(mdp, fixed)
        else:
            value = _rise(mdp, dynamics, fixed, value)
    improved = soft_maximum(mdp, backup(mdp, dynamics, reward, value))
    if is_deferred():
        # A last Newton step, of the size of rounding; its slope in what it starts from is the theorem's.
        with torch.no_grad():
            jacobian = _jacobian(mdp, dynamics, fixed, value, backup(mdp, dynamics, fixed, value))
            system = torch.eye(mdp.num_states, dtype=value.dtype, device=value.device) - jacobian
        return value + torch.linalg.solve(system, improved - value)
    if not improved.requires_grad:
        return value
    return _ImplicitGradient.apply(improved, mdp, dynamics, reward.detach(), value)  # type: ignore[no-untyped-call]


def _level_and_rest(mdp: TabularMDP, reward: Tensor) -> Tensor:
    """Returns the causal values of a process that never ends (γ < 1), by soft policy or relative value iteration.

    They are ``V = g/(1-γ) + h`` with ``h`` bounded while the level grows without bound as γ → 1. Solving for ``V``
    itself would magnify the rounding of a backup by 1/(1-γ); the system of ``g`` and ``h``, with ``h`` zero in the
    first state, is as well conditioned as the process mixes.
    """
    newton = mdp.num_states <= _SOLVE_LIMIT
    rest, gain = reward.new_zeros(mdp.num_states), reward.new_zeros(())
    tolerance, size, before = (100 if newton else 10) * torch.finfo(reward.dtype).eps, math.inf, math.inf
    identity = torch.eye(mdp.num_states, dtype=reward.dtype, device=reward.device) if newton else None
    for _ in range(_FIXED_STEPS if is_deferred() else 200 if newton else 100_000):
        q = backup(mdp, "causal", reward, rest)
        step = soft_maximum(mdp, q) - rest - gain
        if identity is not None:
            system = identity - _jacobian(mdp, "causal", reward, rest, q)
            system[:, 0] = 1.0
            step = torch.linalg.solve(system, step)
            gain, step[0] = gain + step[0], 0.0
        else:
            gain, step = gain + step[0], step - step[0]
        rest = rest + step
        largest = (step.abs() / (1 + rest.abs())).max()
        if is_deferred():
            continue
        before, size = size, float(largest)
        # Classes of states that do not meet have levels of their own, and so rounding that is magnified after all.
        if size <= tolerance or (newton and size <= 1e-3 and size > before / 2):
            return rest + gain / (1 - mdp.discount)
        if not math.isfinite(size):
            break
    if is_deferred() and holds(largest <= _LAST_STEP):
        return rest + gain / (1 - mdp.discount)
    raise ValueError(_UNSETTLED)


def _rise(mdp: TabularMDP, dynamics: Dynamics, reward: Tensor, value: Tensor) -> Tensor:
    newton = mdp.num_states <= _SOLVE_LIMIT
    tolerance, size = 100 * torch.finfo(value.dtype).eps, math.inf
    identity = torch.eye(mdp.num_states, dtype=value.dtype, device=value.device) if newton else None
    # Then a fixed point exists whatever the rewards.
    exists = dynamics == "causal" and _shrinks(mdp)
    # Long episodes magnify the rounding of a backup, so that steps stop shrinking before they are rounding themselves.
    near = 1e-3 if exists else _LAST_STEP
    for count in range(_FIXED_STEPS if is_deferred() else 200 if newton else 100_000):
        q = backup(mdp, dynamics, reward, value)
        step = soft_maximum(mdp, q) - value
        if identity is not None:
            step, failed = torch.linalg.solve_ex(identity - _jacobian(mdp, dynamics, reward, value, q), step)
            if not holds(failed == 0):  # a loop that is never left, whose value has no bound
                break
        value = value + step
        # The first Newton step may go anywhere below the solution; after it the values can only rise.
        falls = not exists and count > 0 and not holds(~(step < -1e-3 * (1 + value.abs())))
        if falls or not holds(value.isfinite()) or (not exists and not holds(value.abs() <= 1e12)):
            break
        largest = (step.abs() / (1 + value.abs())).max()
        if is_deferred():
            continue
        before, size = size, float(largest)
        slow = 1.0 if newton else max(1 - float(torch.as_tensor(mdp.discount).max()), 1e-3)
        if size <= tolerance * slow or (newton and size <= near and size > before / 2):
            return value
    if is_deferred() and holds(largest <= _LAST_STEP):
        return value
    if exists:
        raise ValueError(_UNSETTLED)
    what = "log evidence" if dynamics == "posterior" else "largest ELBO"
    raise ValueError(
        f"no fixed point: with no horizon the {what} of this process is infinite, or too large to find; set a "
        f"horizon, a smaller discount, or a higher temperature"
    )


def _jacobian(mdp: TabularMDP, dynamics: Dynamics, reward: Tensor, value: Tensor, q: Tensor) -> Tensor:
    """Returns ``∂ backup(s) / ∂ value(s')``, ``(S, S)``."""
    weights = torch.softmax(q + mdp.log_action_prior, -1)
    if dynamics == "causal":
        jacobian = _policy_kernel(mdp, weights) * mdp.discount
    else:
        onward = mdp.discount * (value - log_survival(mdp.discount, value)).exp()
        exponent = log_survival(mdp.discount, value)
        factor = reward if reward.dim() == 3 else reward[..., None]
        indices, probabilities = mdp.kernel.rows()
        tilted = probabilities * (factor + exponent[indices] - q[..., None]).exp() * onward[indices]
        if mdp.has_terminal:
            tilted = torch.where(mdp.terminal[:, None, None], 0.0, tilted)
        jacobian = gathered(indices.flatten(1), (weights[..., None] * tilted).flatten(1), mdp.num_states)
    return torch.where(mdp.terminal[:, None], 0.0, jacobian) if mdp.has_terminal else jacobian


def _policy_kernel(mdp: TabularMDP, probabilities: Tensor) -> Tensor:
    """Returns ``Σ_a π(a|s) p(s'|s,a)``, ``(S, S)``, with nothing leaving a terminal state."""
    moved = mdp.kernel.under(probabilities)
    return torch.where(mdp.terminal[:, None], 0.0, moved) if mdp.has_terminal else moved


def solve_linear(mdp: TabularMDP, probabilities: Tensor, own: Tensor, transpose: bool = False) -> Tensor:
    """Solves ``x = own + γ M x`` with ``M`` the policy's kernel, or its transpose."""
    if mdp.num_states <= _SOLVE_LIMIT:
        system = torch.eye(mdp.num_states, dtype=own.dtype, device=own.device)
        system = system - mdp.discount * _policy_kernel(mdp, probabilities)
        return torch.linalg.solve(system.mT if transpose else system, own)
    going = (~mdp.terminal).to(own.dtype)
    value, tolerance = own, 100 * torch.finfo(own.dtype).eps
    for _ in range(100_000):
        if transpose:
            moved = mdp.kernel.push((value * going)[:, None] * probabilities)
        else:
            moved = going * (probabilities * mdp.kernel.expect(value)).sum(-1)
        after = own + mdp.discount * moved
        if float(((after - value).abs() / (1 + value.abs())).detach().max()) <= tolerance:
            return after
        value = after
    raise ValueError("no fixed point: the policy's values did not settle; set a horizon or a smaller discount")


class _ImplicitGradient(torch.autograd.Function):
    """Carries a gradient through a fixed point: ``(I - J)^{-T}`` applied to what comes back."""

    @staticmethod
    def forward(ctx: Any, improved: Tensor, mdp: Any, dynamics: Any, reward: Tensor, value: Tensor) -> Tensor:
        ctx.context = (mdp, dynamics, reward, value)
        return improved.clone()

    @staticmethod
    @once_differentiable  # its own derivative would leave out how the solution moves
    def backward(ctx: Any, grad: Tensor) -> Any:
        mdp, dynamics, reward, value = ctx.context
        if mdp.num_states <= _SOLVE_LIMIT:
            with torch.no_grad():
                q = backup(mdp, dynamics, reward, value)
                jacobian = _jacobian(mdp, dynamics, reward, value, q)
                identity = torch.eye(mdp.num_states, dtype=value.dtype, device=value.device)
                return torch.linalg.solve((identity - jacobian).mT, grad), None, None, None, None
        with torch.enable_grad():
            at = value.detach().requires_grad_()
            improved = soft_maximum(mdp, backup(mdp, dynamics, reward, at))
        total, term = grad, grad
        for _ in range(100_000):
            (term,) = torch.autograd.grad(improved, at, term, retain_graph=True)
            total = total + term
            if float(term.abs().max()) <= 1e-3 * torch.finfo(grad.dtype).eps * float(total.abs().max()):
                break
        else:
            raise ValueError("the gradient of a fixed point did not settle; set a horizon or a smaller discount")
        return total, None, None, None, None
