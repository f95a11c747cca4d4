"""Linear dynamics, Gaussian noise and quadratic rewards: the continuous process with exact answers."""

from typing import Any

import gymnasium
import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from rl_as_inference.checks import holds, is_deferred
from rl_as_inference.processes.mdp import MarkovDecisionProcess

__all__ = [
    "LinearGaussianMDP",
    "as_tensors",
    "check_finite",
    "check_positive_definite",
    "linear_gaussian_rule",
    "step_index",
]


class LinearGaussianMDP(MarkovDecisionProcess):
    """A process of ``T`` steps with linear dynamics, Gaussian noise and quadratic rewards.

    With state ``s`` of size ``ds``, action ``a`` of size ``da``:

        s_0 ~ N(initial_mean, initial_cov)
        a_t ~ N(0, action_prior_cov)                        the action prior
        s_{t+1} = A s_t + B a_t + drift + w_t,   w_t ~ N(0, noise_cov)
        r_t = -(s_t' state_cost s_t + a_t' action_cost a_t) / 2

    Actions are unbounded and the discount is 1. All variables are jointly Gaussian under the prior,
    and stay so given optimality, so that :mod:`rl_as_inference.exact` has evidence, posterior and
    optimal policy in closed form; all readings are differentiable in the tensors given here.
    This is the linear-quadratic-Gaussian problem read as inference: Toussaint, "Robot trajectory
    optimization using approximate inference", ICML 2009.

    Args:
        A: ``(ds, ds)``.
        B: ``(ds, da)``.
        noise_cov: ``(ds, ds)``, symmetric positive definite.
        state_cost: ``(ds, ds)``, symmetric positive semidefinite, in reward units.
        action_cost: ``(da, da)``, symmetric positive semidefinite, in reward units. It may be 0: the
            action prior already makes actions dear.
        initial_mean: ``(ds,)``.
        initial_cov: ``(ds, ds)``, symmetric positive definite.
        action_prior_cov: ``(da, da)``, symmetric positive definite.
        horizon: ``T``, an integer ≥ 1.
        temperature: α > 0, in reward units per nat.
        drift: ``(ds,)``; 0 by default.

    The tensors' own floating type (the widest, where they differ) and the device of ``A`` are those
    of the process.

    Raises:
        ValueError: naming the argument, what is wrong, and how to mend it.

    Example:
        >>> one = torch.ones(1, 1)
        >>> mdp = LinearGaussianMDP(one, one, one, one, one, torch.zeros(1), one, one, horizon=3)
        >>> mdp.rollout(None, 5).states.shape
        torch.Size([4, 5, 1])
    """

    has_exact_answers = True

    A: Tensor
    B: Tensor
    noise_cov: Tensor
    state_cost: Tensor
    action_cost: Tensor
    initial_mean: Tensor
    initial_cov: Tensor
    action_prior_cov: Tensor
    drift: Tensor

    def __init__(
        self,
        A: Any,
        B: Any,
        noise_cov: Any,
        state_cost: Any,
        action_cost: Any,
        initial_mean: Any,
        initial_cov: Any,
        action_prior_cov: Any,
        *,
        horizon: int,
        temperature: float | Tensor = 1.0,
        drift: Any = None,
    ) -> None:
        if isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1:
            raise ValueError(
                f"horizon must be an integer >= 1, got {horizon!r}; give the number of steps (there is no "
                f"infinite horizon here, since the discount is 1)"
            )
        super().__init__(horizon=horizon, temperature=temperature)
        given = {
            "A": A,
            "B": B,
            "noise_cov": noise_cov,
            "state_cost": state_cost,
            "action_cost": action_cost,
            "initial_mean": initial_mean,
            "initial_cov": initial_cov,
            "action_prior_cov": action_prior_cov,
        }
        if drift is not None:
            given["drift"] = drift
        tensors = as_tensors(given)
        A, B = tensors["A"], tensors["B"]
        if A.dim() != 2 or A.shape[0] != A.shape[1] or 0 in A.shape:
            raise ValueError(f"A must be square, (ds, ds) with ds >= 1, got shape {tuple(A.shape)}")
        if B.dim() != 2 or B.shape[0] != A.shape[0] or 0 in B.shape:
            raise ValueError(
                f"B must have shape (ds, da) with ds = {A.shape[0]}, as A has, and da >= 1, got {tuple(B.shape)}"
            )
        self.state_size, self.action_size = ds, da = B.shape[0], B.shape[1]
        shapes = {
            "noise_cov": (ds, ds),
            "state_cost": (ds, ds),
            "action_cost": (da, da),
            "initial_mean": (ds,),
            "initial_cov": (ds, ds),
            "action_prior_cov": (da, da),
            "drift": (ds,),
        }
        tensors.setdefault("drift", A.new_zeros(ds))
        for name, shape in shapes.items():
            if tensors[name].shape != shape:
                raise ValueError(
                    f"{name} must have shape {shape}, since A is {tuple(A.shape)} and B is "
                    f"{tuple(B.shape)}; got {tuple(tensors[name].shape)}"
                )
        for name, tensor in tensors.items():
            check_finite(name, tensor)
        for name in ("state_cost", "action_cost"):
            _check_positive_semidefinite(name, tensors[name])
        self._factors = {
            name: check_positive_definite(name, tensors[name])
            for name in ("noise_cov", "initial_cov", "action_prior_cov")
        }
        self.A, self.B, self.drift = A, B, tensors["drift"]
        self.noise_cov, self.action_prior_cov = tensors["noise_cov"], tensors["action_prior_cov"]
        self.state_cost, self.action_cost = tensors["state_cost"], tensors["action_cost"]
        self.initial_mean, self.initial_cov = tensors["initial_mean"], tensors["initial_cov"]
        kind: Any = np.float64 if A.dtype == torch.float64 else np.float32
        self.state_space = gymnasium.spaces.Box(-np.inf, np.inf, (ds,), dtype=kind)
        self.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (da,), dtype=kind)
        self.name = "linear-gaussian"

    @property
    def noise_scale_tril(self) -> Tensor:
        """The lower Cholesky factor of ``noise_cov``, ``(ds, ds)``."""
        return self._factor("noise_cov")

    @property
    def initial_scale_tril(self) -> Tensor:
        """The lower Cholesky factor of ``initial_cov``, ``(ds, ds)``."""
        return self._factor("initial_cov")

    @property
    def action_prior_scale_tril(self) -> Tensor:
        """The lower Cholesky factor of ``action_prior_cov``, ``(da, da)``."""
        return self._factor("action_prior_cov")

    def _factor(self, name: str) -> Tensor:
        # A factor kept from a tensor being learned would be stale after the first update, and its
        # graph gone after the first backward pass.
        matrix: Tensor = getattr(self, name)
        learned = matrix.requires_grad or is_deferred()
        factor: Tensor = torch.linalg.cholesky(matrix) if learned else self._factors[name]
        return factor

    def initial(self) -> Any:
        return dist.MultivariateNormal(self.initial_mean, scale_tril=self.initial_scale_tril)

    def transition(self, state: Tensor, action: Tensor) -> Any:
        return dist.MultivariateNormal(self.next_mean(state, action), scale_tril=self.noise_scale_tril)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor | None = None) -> Tensor:
        state_term = ((state @ self.state_cost) * state).sum(-1)
        return -(state_term + ((action @ self.action_cost) * action).sum(-1)) / 2

    def prior(self, state: Tensor) -> Any:
        zero = self.B.new_zeros(self.action_size).expand(*self.batch_shape(state), self.action_size)
        return dist.MultivariateNormal(zero, scale_tril=self.action_prior_scale_tril)

    def next_mean(self, state: Tensor, action: Tensor) -> Tensor:
        """Returns ``A s + B a + drift``, of the shape of ``state``."""
        return state @ self.A.mT + action @ self.B.mT + self.drift

    def next_state(self, state: Tensor, action: Tensor, *, pathwise: bool = False) -> Tensor:
        mean = self.next_mean(state, action)
        return mean + torch.randn_like(mean) @ self.noise_scale_tril.mT


def linear_gaussian_rule(state: Tensor, t: int | Tensor, gain: Tensor, offset: Tensor, scale_tril: Tensor) -> Any:
    """Returns ``π_t(a|s) = N(gain_t s + offset_t, L_t L_t')``, of the batch shape of ``state``.

    Args:
        state: ``(*batch, ds)``.
        t: the step, or integers broadcastable to ``batch``.
        gain: ``(T, da, ds)``.
        offset: ``(T, da)``.
        scale_tril: ``L``, lower triangular, ``(T, da, da)``.

    Raises:
        ValueError: if ``t`` is an integer outside ``0 … T - 1``.
    """
    index = step_index(t, len(gain))
    mean = torch.einsum("...ij,...j->...i", gain[index], state) + offset[index]
    return dist.MultivariateNormal(mean, scale_tril=scale_tril[index])


def step_index(t: int | Tensor, length: int) -> int | Tensor:
    """Returns ``t`` to index tables over time with: checked, and without the repeats of ``expand``."""
    if not isinstance(t, Tensor):
        if not 0 <= t < length:
            raise ValueError(f"t must be in 0 … {length - 1}, got {t}")
        return t
    for dim, stride in enumerate(t.stride()):
        if stride == 0 and t.shape[dim] > 1:  # one entry of the table then serves the whole dimension
            t = t.narrow(dim, 0, 1)
    return t


def as_tensors(given: dict[str, Any], like: Tensor | None = None) -> dict[str, Tensor]:
    """Returns everything as floating tensors of one type and device, those of ``like`` if it is given."""
    arrays = {n: torch.as_tensor(v) for n, v in given.items() if isinstance(v, Tensor | np.ndarray)}
    dtype: torch.dtype | None = None if like is None else like.dtype
    for value in arrays.values() if like is None else ():
        if value.is_floating_point():
            dtype = value.dtype if dtype is None else torch.promote_types(dtype, value.dtype)
    if dtype is None:
        dtype = torch.get_default_dtype()
    device = arrays["A"].device if "A" in arrays else None if like is None else like.device
    tensors = {}
    for name, value in given.items():
        if name in arrays and arrays[name].is_complex():
            raise ValueError(f"{name} must hold real numbers, got {arrays[name].dtype}; give its .real")
        try:
            tensors[name] = torch.as_tensor(arrays.get(name, value), dtype=dtype, device=device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name} must be a tensor or an array of numbers, got {value!r:.80}") from error
    return tensors


def check_finite(name: str, value: Tensor) -> None:
    finite = value.detach().isfinite()
    if not holds(finite):
        where = tuple(int(i) for i in (~finite).nonzero()[0])
        raise ValueError(f"{name} must be finite; it is {float(value[where])} at index {where}")


def _tolerance(matrix: Tensor) -> float:
    return 1e-4 if matrix.dtype == torch.float32 else 1e-9


def _check_symmetric(name: str, matrix: Tensor) -> None:
    difference = (matrix - matrix.mT).abs()
    if not holds(~(difference > _tolerance(matrix) * matrix.abs().max())):
        where = divmod(int(difference.argmax()), len(matrix))
        raise ValueError(
            f"{name} must be symmetric; entries {where} and {where[::-1]} differ by "
            f"{float(difference[where]):g}; use ({name} + {name}.mT) / 2"
        )


def _check_positive_semidefinite(name: str, matrix: Tensor) -> None:
    matrix = matrix.detach()
    _check_symmetric(name, matrix)
    smallest = torch.linalg.eigvalsh(matrix)[0]
    if not holds(~(smallest < -_tolerance(matrix) * matrix.abs().max())):
        raise ValueError(
            f"{name} must be positive semidefinite, but its smallest eigenvalue is {float(smallest):g}; "
            f"the reward is minus this cost: check its sign"
        )


def check_positive_definite(name: str, matrix: Tensor) -> Tensor:
    """Returns the Cholesky factor, without gradient."""
    matrix = matrix.detach()
    _check_symmetric(name, matrix)
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if not holds(failed == 0):
        smallest = float(torch.linalg.eigvalsh(matrix)[0])
        raise ValueError(
            f"{name} must be positive definite, but its smallest eigenvalue is {smallest:g}; "
            f"where no variance is meant add a small jitter, {name} + 1e-6 * torch.eye({len(matrix)})"
        )
    return factor
