"""The posterior density of what is unknown in a family, as a function of one unconstrained vector."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import pyro
import torch
from torch import Tensor
from torch.distributions import biject_to

from rl_as_inference.checks import all_hold, deferred, holds
from rl_as_inference.processes import LinearGaussianMDP, MarkovDecisionProcess, TabularMDP
from rl_as_inference.reasoning.seen import Seen

__all__ = ["Density", "device_of"]

_SOMETIMES = (
    "family: {name!r} is drawn in some runs and not in others; draw it always, and use it where it counts "
    "(torch.where keeps families fast)"
)
_LIMIT = 1_000
"""Joint values of discrete unknowns that are summed over, one plan each."""


Data = TypeVar("Data", bound=Seen)


class Density(ABC, Generic[Data]):
    """A family's sites, and their density given what was seen.

    Continuous sites are laid end to end in one vector ``u`` of unbounded float64 numbers. It and all that is
    returned are on the host; the likelihood is computed on the device of the family's process, with its sites' values
    on the devices that they are drawn on. Discrete sites are summed over: all joint values at once where the family can
    be batched over them, else one after the other.

    A subclass says how the likelihood comes about:
    - :meth:`_read` tells what the family returned: a process, and what else the likelihood takes;
    - :meth:`_met` may read the data in the light of what the family returns;
    - :meth:`_cost` tells how much work a likelihood is.

    Attributes:
        names: of the continuous sites.
        discrete: the values of each discrete site, ``(K_i,)``, by name.
        data: what was seen, without what follows the process's horizon.
        combinations: joint values of the discrete sites, one dictionary each; one, empty, where there are none.
        prior: draws from the prior, ``(D, ...)`` by name, on the host; empty if the prior cannot be drawn from.
        size: the length of ``u``.
        num_backups: the steps that one density takes, one after the other.
        num_entries: the numbers, roughly, in each kind of table that is kept for the gradient of one density.
        eps: the rounding error of the coarsest floating type that a density goes through.
    """

    def __init__(self, family: Callable[[], Any], data: Data, num_prior: int = 200) -> None:
        self._family, self.data = family, data
        traces = [self._look()]
        if self._can_draw:
            traces += [self._look() for _ in range(num_prior - 1)]
        _check_sites(traces)
        self.discrete: dict[str, Tensor] = {}
        self._sites: dict[str, tuple[Any, torch.Size, Tensor]] = {}  # the last has the site's type and device
        self._devices = {name: site["value"].device for name, site in traces[0].items()}
        for name, site in traces[0].items():
            value = site["value"]
            if site["fn"].support.is_discrete:
                self.discrete[name] = _values(name, site["fn"]).cpu()
            else:
                inverse = biject_to(site["fn"].support).inv
                self._sites[name] = (inverse.inv, inverse(value.detach()).shape, value.detach().new_empty(0))
        self.names = list(self._sites)
        if not self.names and not self.discrete:
            raise ValueError("family has no unknowns: draw what is to be inferred with pyro.sample")
        count = 1
        for values in self.discrete.values():
            count *= len(values)
        if count > _LIMIT:
            raise ValueError(f"family: its discrete unknowns have {count} joint values; {_LIMIT} is the limit")
        joint = itertools.product(*(values.unbind() for values in self.discrete.values()))
        self.combinations = [dict(zip(self.discrete, values, strict=True)) for values in joint]
        self.size = sum(shape.numel() for _, shape, _ in self._sites.values())
        self.prior: dict[str, Tensor] = {}
        if self._can_draw:
            stacked = {name: torch.stack([trace[name]["value"] for trace in traces]) for name in traces[0]}
            self.prior = {name: values.detach().cpu() for name, values in stacked.items()}
        self._together = False
        self._check()
        self._check_gradient()
        if len(self.combinations) > 2 and self._can_run_together():
            self._together = True
            self.num_backups //= len(self.combinations)

    @abstractmethod
    def _read(self, returned: Any) -> tuple[MarkovDecisionProcess, Any]:
        """Returns the process that the family's return value stands for, and what else the likelihood takes."""

    def _met(self) -> Data:
        """Returns the data, which has met some of the family's processes."""
        return self.data

    @abstractmethod
    def _cost(self, process: MarkovDecisionProcess, shown: Data) -> tuple[int, int]:
        """Returns the steps that a likelihood takes, one after the other, and the numbers that each goes through."""

    def shape(self, name: str) -> torch.Size:
        """Returns the shape of a continuous site's part of ``u``."""
        return self._sites[name][1]

    def discrete_prior(self, name: str) -> Tensor:
        """Returns a discrete site's prior probabilities, ``(K,)``, averaged over prior draws of the rest."""
        rows = self.prior_u()[:50] if self.size and self.prior else torch.zeros(1, self.size, dtype=torch.float64)
        total = torch.zeros(len(self.discrete[name]), dtype=torch.float64)
        for u in rows:
            with torch.no_grad():
                logs = self.parts(u)[0]
            for share, values in zip(logs.softmax(0), self.combinations, strict=True):
                total[self.discrete[name] == values[name]] += share / len(rows)
        return total

    def _look(self) -> dict[str, Any]:
        """Returns the unknown sites of one run of the family, by name."""
        self._can_draw = True
        starts = _Starts(self)
        with pyro.poutine.block(), torch.no_grad(), starts:
            trace = pyro.poutine.trace(self._family).get_trace()
        found = {}
        for name, site in trace.nodes.items():
            if site["type"] != "sample" or (site["is_observed"] and name not in starts.filled):
                continue
            if type(site["fn"]).__name__ != "_Subsample":
                found[name] = site
        return found

    def _check(self) -> None:
        """Raises ValueError where what was seen is impossible in the family, and notes for which joint values."""
        lengths, best = set(), torch.full((), -torch.inf)
        widest = best
        refuted: list[list[str | None]] = []
        self.eps = max([torch.finfo(like.dtype).eps for _, _, like in self._sites.values()], default=0.0)
        given = self._met()
        for row in self._points():
            refuted.append([])
            for values in self.combinations:
                with torch.no_grad():
                    process, policy, _ = self._run(row, values)
                    shown = given.to(device_of(process))
                    shown.check(process)
                    self._shown, self.data = shown.within(process), given.within(process)
                    lengths.add(len(self.data.mask))
                    if len(lengths) > 1:
                        raise ValueError(
                            f"family: its process has another horizon in other runs, and the {self.data.noun} go past "
                            f"the shortest; give it one horizon, or cut the {self.data.noun}"
                        )
                    logs = self._shown.log_probabilities(process, policy)
                    refuted[-1].append(self._shown.refuted(process, policy, logs))
                    steps, width = self._cost(process, self._shown)
                    self.num_backups = steps * len(self.combinations)
                    self.num_entries = self.num_backups * width
                    self.eps = max(self.eps, torch.finfo(logs.dtype).eps)
                    widest = torch.maximum(widest, logs.double().cpu())
                    if refuted[-1][-1] is None:
                        best = torch.maximum(best, logs.double().cpu())
        self._refuted = torch.tensor([all(each) for each in zip(*refuted, strict=True)])
        if bool(self._refuted.all()):
            raise ValueError(f"{self.data.noun}: {self._impossible(str(refuted[0][0]), widest)}")
        if bool((best == -torch.inf).any()):
            raise ValueError(f"{self.data.noun}: {self.data.improbable(int((best == -torch.inf).nonzero()[0]))}")

    def _impossible(self, refuted: str, widest: Tensor) -> str:
        """Returns what to say where each joint value of the discrete unknowns is refuted.

        Args:
            refuted: what refutes the first.
            widest: the largest log probability of each entry, ``(M,)``.
        """
        return refuted

    def _points(self) -> Tensor:
        """Returns some vectors to try the family at, ``(D, size)``."""
        return self.prior_u()[: 3 if self.size else 1] if self.prior else torch.zeros(1, self.size, dtype=torch.float64)

    def _check_gradient(self) -> None:
        """Raises ValueError where the density is random, or where its gradient is not its slope.

        Slopes are differences at some prior draws. An unknown's gradient is wrong if it is at all of them: at one, the
        density may have a kink.
        """
        judged, step = 0, self.eps ** (1 / 3)
        wrong, undefined = torch.ones(2, self.size, dtype=torch.bool).unbind()
        for u in self._points() if self.size else ():
            at = u.clone().requires_grad_()
            try:
                value = self.potential(at)
                slope = torch.zeros_like(u)
                if value.requires_grad:
                    (slope,) = torch.autograd.grad(value, at, allow_unused=True, materialize_grads=True)
                with torch.no_grad():
                    again = float(self.potential(u))
                    rows = torch.eye(self.size, dtype=u.dtype) * step
                    rises = torch.stack([self.potential(u + row) - self.potential(u - row) for row in rows])
            except (ValueError, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
                continue  # numbers that the family refuses
            here, slopes = float(value.detach()), rises / (2 * step)
            if not math.isfinite(here) or not bool(slopes.isfinite().all()):
                continue
            if abs(again - here) > self.eps**0.5 * (1 + abs(here)):
                raise ValueError(
                    "family: its density differs from one run to the next at the same values; it must depend on its "
                    "pyro.sample sites alone, so draw no other random numbers in it, and change no state"
                )
            judged += 1
            noise = 1e-3 + 10 * self.eps * abs(here) / step
            wrong = wrong & ((slope - slopes).abs() > noise + 0.05 * (slope.abs() + slopes.abs()))
            undefined = undefined & ~slope.isfinite()
        names = [name for name, (_, shape, _) in self._sites.items() for _ in range(shape.numel())]
        if judged and bool(undefined.any()):
            raise ValueError(
                f"family: the gradient for {names[int(undefined.nonzero()[0])]!r} is no number, where the density is "
                f"one; look for a torch.where with log, sqrt or a division on the side that is not taken, and clamp "
                f"what they are taken of"
            )
        if judged and bool(wrong.any()):
            raise ValueError(
                f"family: the gradient for {names[int(wrong.nonzero()[0])]!r} is not the density's slope, so its value "
                f"leaves autograd on the way; compute with tensors, without .item(), float(), .detach(), NumPy or "
                f"torch.no_grad()"
            )

    def constrained(self, u: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Returns the continuous sites' values, of batch shape ``u.shape[:-1]``, and the log volume of the map."""
        values, volume, start = {}, u.new_zeros(u.shape[:-1]), 0
        for name, (transform, shape, like) in self._sites.items():
            own = u[..., start : start + shape.numel()].reshape((*u.shape[:-1], *shape)).to(like.device)
            start += shape.numel()
            value = transform(own)
            log_det = transform.log_abs_det_jacobian(own, value)
            volume = volume + log_det.reshape((*u.shape[:-1], -1)).sum(-1).cpu()
            values[name] = value.to(like)
        return values, volume

    def prior_u(self) -> Tensor:
        """Returns the prior draws as unconstrained vectors, ``(D, size)``."""
        count = len(next(iter(self.prior.values())))
        rows = [
            transform.inv(self.prior[name].double().to(like.device)).reshape(count, shape.numel()).cpu()
            for name, (transform, shape, like) in self._sites.items()
        ]
        return torch.cat(rows, 1) if rows else torch.zeros(count, 0, dtype=torch.float64)

    def _run(self, u: Tensor, values: dict[str, Tensor]) -> tuple[MarkovDecisionProcess, Any, Tensor]:
        discrete = {name: value.to(self._devices[name]) for name, value in values.items()}
        data = {**self.constrained(u)[0], **discrete}
        with pyro.poutine.block():
            trace = pyro.poutine.trace(pyro.poutine.condition(self._family, data=data)).get_trace()
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and not site["is_observed"] and type(site["fn"]).__name__ != "_Subsample":
                raise ValueError(_SOMETIMES.format(name=name))
        process, policy = self._read(trace.nodes["_RETURN"]["value"])
        return process, policy, torch.as_tensor(trace.log_prob_sum()).double().cpu()

    def _seen(self, process: MarkovDecisionProcess, policy: Any) -> Tensor:
        """Returns the log probabilities of what was seen, ``(M,)`` in nats."""
        return self._shown.log_probabilities(process, policy).double().cpu()

    def parts(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Returns log prior densities ``(K,)`` and log probabilities of what was seen ``(K, M)``, in nats.

        One row for each joint value of the discrete sites.
        """
        if self._together and (found := self._parts_together(u)) is not None:
            return found
        priors, seen = [], []
        for values in self.combinations:
            process, policy, prior = self._run(u, values)
            priors.append(prior)
            seen.append(self._seen(process, policy))
        return torch.stack(priors), self._unless_refuted(torch.stack(seen))

    def _unless_refuted(self, seen: Tensor) -> Tensor:
        return torch.where(self._refuted[:, None], -torch.inf, seen) if bool(self._refuted.any()) else seen

    def _parts_together(self, u: Tensor) -> tuple[Tensor, Tensor] | None:
        """Returns :meth:`parts` by one run of the family under ``vmap``; None where a joint value fails a check."""

        def one(values: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            with deferred() as conditions:
                process, policy, prior = self._run(u, values)
                seen = self._seen(process, policy)
            return prior, seen, all_hold(conditions)

        stacked = {name: torch.stack([values[name] for values in self.combinations]) for name in self.discrete}
        with pyro.validation_enabled(False):  # distributions' checks of arguments look at values
            priors, seen, passed = torch.func.vmap(one, randomness="same")(stacked)
        return (priors, self._unless_refuted(seen)) if holds(passed) else None

    def _can_run_together(self) -> bool:
        """Returns whether running the family for all joint values at once gives what running it for each does."""
        u = self._points()[0]
        with torch.no_grad():
            expected = self.parts(u)
            try:
                found = self._parts_together(u)
            except Exception:  # whatever a family does that cannot be batched; one by one it ran before
                return False
        tolerance = self.eps**0.5
        return found is not None and all(
            torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance)
            for ours, theirs in zip(found, expected, strict=True)
        )

    def log_joint(self, u: Tensor) -> Tensor:
        """Returns ``log p(u, k, what was seen)`` for each joint value ``k`` of the discrete sites, ``(K,)``."""
        prior, seen = self.parts(u)
        return prior + seen @ self.data.tally

    def log_likelihood(self, u: Tensor) -> Tensor:
        """Returns the log probability of what was seen of each, ``(K, N)`` in nats."""
        return self.data.by_one(self.parts(u)[1])

    def potential(self, u: Tensor, volume: bool = True) -> Tensor:
        """Returns minus the log posterior density, up to a constant: of ``u``, or of the sites without ``volume``."""
        density = torch.logsumexp(self.log_joint(u), 0)
        return -(density + self.constrained(u)[1]) if volume else -density

    def gradient(self, u: Tensor, volume: bool = True) -> tuple[float, Tensor]:
        """Returns the potential and its gradient; the potential is infinite where there is none."""
        at = u.detach().clone().requires_grad_()
        try:
            value = self.potential(at, volume)
            (slope,) = torch.autograd.grad(value, at)
        except (ValueError, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
            # A step so long that the family refuses its numbers.
            return float("inf"), torch.zeros_like(u)
        if not bool(value.isfinite()) or not bool(slope.isfinite().all()):
            return float("inf"), torch.zeros_like(u)
        return float(value.detach()), slope

    def information(self, u: Tensor) -> Tensor:
        """Returns the Fisher information that what was seen holds on ``u``, ``(size, size)``.

        The empirical one, by differences of what is most probable among the discrete sites' values. It vanishes
        along every direction that no probability depends on.
        """
        step = 1e-4
        with torch.no_grad():
            best = int(self.log_joint(u).argmax())
            rows = torch.eye(self.size, dtype=u.dtype) * step
            slopes = [(self.parts(u + row)[1][best] - self.parts(u - row)[1][best]) / (2 * step) for row in rows]
            scores = torch.stack(slopes, 1)
            return scores.T @ (self.data.tally[:, None] * scores)


def _check_sites(traces: list[dict[str, Any]]) -> None:
    """Raises ValueError unless all runs of a family have the same sites, each with the same values to choose from."""
    for trace in traces[1:]:
        for name in {*traces[0], *trace}:
            if name not in traces[0] or name not in trace:
                raise ValueError(_SOMETIMES.format(name=name))
    for name, site in traces[0].items():
        first = _reach(name, site)
        for trace in traces[1:]:
            reach = _reach(name, trace[name])
            if reach.shape != first.shape or not torch.allclose(reach, first, rtol=1e-5, atol=1e-8):
                raise ValueError(
                    f"family: the values that {name!r} may take differ from run to run, as where its support depends "
                    f"on another unknown; draw it from a fixed support and transform it, such as width * "
                    f"pyro.sample({name!r}, Uniform(0, 1))"
                )


def _reach(name: str, site: dict[str, Any]) -> Tensor:
    """Returns numbers that tell supports and shapes of sites from one another."""
    fn = site["fn"]
    if fn.support.is_discrete:
        return _values(name, fn).double()
    transform = biject_to(fn.support)
    return transform(torch.full_like(transform.inv(site["value"].detach()), 0.3)).double()


class _Starts(pyro.poutine.messenger.Messenger):
    """Gives improper sites, which cannot be drawn, a value to start from."""

    def __init__(self, owner: Any) -> None:
        super().__init__()
        self._owner = owner
        self.filled: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        base = fn.base_dist if isinstance(fn, torch.distributions.Independent) else fn
        if msg["is_observed"] or type(base).__name__ != "ImproperUniform":
            return
        transform = biject_to(fn.support)
        shape = transform.inverse_shape(fn.shape())
        msg["value"] = transform(torch.zeros(shape, dtype=torch.float64))
        msg["is_observed"] = True
        self.filled.add(msg["name"])
        self._owner._can_draw = False


def device_of(process: MarkovDecisionProcess) -> torch.device:
    """Returns the device that a process's states are on."""
    if isinstance(process, TabularMDP):
        return process.terminal.device
    if isinstance(process, LinearGaussianMDP):
        return process.A.device
    return process.initial().sample().device


def _values(name: str, distribution: Any) -> Tensor:
    if not getattr(distribution, "has_enumerate_support", False) or distribution.shape() != ():
        raise ValueError(
            f"family: the discrete unknown {name!r} must be a single draw from finitely many values (Categorical, "
            f"Bernoulli), got {distribution}"
        )
    return torch.as_tensor(distribution.enumerate_support(expand=False)).reshape(-1)
