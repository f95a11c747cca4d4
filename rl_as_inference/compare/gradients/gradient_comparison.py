"""Every estimator of the gradient, and every actor's loss, against the exact gradient of the ELBO."""

import time
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from rl_as_inference import exact
from rl_as_inference.arguments import checked_but
from rl_as_inference.compare.critic_values import check_critic
from rl_as_inference.compare.gradients.block_statistics import best_share, summarize
from rl_as_inference.compare.gradients.estimator_rows import Critics, Estimator, GradientProblem, estimators_of
from rl_as_inference.compare.gradients.finite_problem import FiniteProblem, TableValues
from rl_as_inference.compare.gradients.gaussian_problem import GaussianProblem, QuadraticValues
from rl_as_inference.compare.gradients.gradient_table import GradientComparison, GradientRow
from rl_as_inference.host import in_turn
from rl_as_inference.nouns import Policy, Problem, Process, SoftValue
from rl_as_inference.processes import LinearGaussianMDP, TabularMDP
from rl_as_inference.processes.programs import as_process
from rl_as_inference.progress import ProgressBar, progress_bar

__all__ = ["compare_gradients"]

_Critic: TypeAlias = SoftValue | exact.Plan | exact.LinearGaussianPlan

_PILOT = (100, 50)
"""Blocks, and trajectories in each, from which mixtures take their shares."""


@checked_but("policy")
@in_turn
def compare_gradients(
    process: Problem,
    policy: Policy,
    *,
    critic: _Critic | None = None,
    num_trajectories: int = 100_000,
    num_blocks: int = 100,
    progress: bool | ProgressBar | None = False,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> GradientComparison:
    """Returns every estimator of the ELBO's gradient, and every actor's loss, beside the exact gradient ``g*``.

    The gradient is that of the trajectory ELBO in the policy's parameters, nats, and a row is its estimate
    from one trajectory. Critics are exact for the policy in hand, each by the Bellman equation of its own loss,
    so that a bias is the loss's own; a given ``critic`` takes the place of the soft one. What each row is, and
    which are gradients of the ELBO: docs/elbo-and-sac.md.

    *Bias.* Trajectories fall into independent blocks, whose means give standard errors. Each row has two numbers to
    judge it by, both of which exceed 3 about once in a thousand rows without bias, however many
    parameters there are: ``z_along``, the bias along ``g*`` in its own standard errors, and ``z_global``, a bias in
    any direction as a normal deviate (an F test of ``‖ĝ - g*‖²``; it is one-sided, and very negative values mean
    nothing). Rows share trajectories, so that their deviations are correlated. A loss whose expectation is a sum over
    states has it computed exactly too (``relative_bias_exact``), and that says whether it is unbiased.

    *Variance* is the sum over all parameters of the variance of one trajectory's gradient, nats².

    Args:
        process: a finite process with a horizon, or a linear-Gaussian one.
        policy: a module; for a linear-Gaussian process a linear-Gaussian one.
        critic: in reward units: soft values ``(state, t)``, one a state (soft V), or for discrete actions one an action
            (soft Q); or a plan from :func:`rl_as_inference.exact.evaluate`, which has both.
        num_trajectories: for each row; a multiple of ``num_blocks`` is used.
        num_blocks: ≥ 10. Standard errors have a relative error of ``1/√(2 num_blocks)``.
        progress: whether to show a bar, None on a terminal only; or a bar to go on with.
        seed: of what is drawn; None follows PyTorch's generator, from where it is.
        generator: instead of a seed, where random numbers come from, :func:`rl_as_inference.randomness.drawing`.

    Raises:
        ValueError: if the process has no exact gradient or no horizon, the policy has no parameters, no exact form,
            or takes an action that the prior forbids, or the critic is of another process.

    Example:
        >>> from rl_as_inference.guides import TabularPolicy
        >>> from rl_as_inference.models import random_mdp
        >>> mdp, _ = random_mdp(4, 2, horizon=3), torch.manual_seed(0)
        >>> found = compare_gradients(mdp, TabularPolicy(4, 2, horizon=3), num_trajectories=2000)
        >>> found["score, return-to-go"].unbiased, found["DDPG"].reason
        (True, 'discrete actions have no derivative')
    """
    if num_blocks < 10:
        raise ValueError(f"num_blocks must be >= 10 for a standard error to be trusted, got {num_blocks}")
    if num_trajectories < num_blocks:
        raise ValueError(f"num_trajectories must be >= num_blocks = {num_blocks}, got {num_trajectories}")
    process = check_critic(as_process(process), critic)
    started = time.perf_counter()
    problem, parameters = _problem(process, policy)
    elbo, truth = _exact_gradient(process, policy, parameters)
    rows = estimators_of(problem, _critics(problem, policy, critic))
    shares = _shares(problem, [row for row in rows if row is not None and row.mixture is not None], parameters)
    rows = [row.mixed(shares[row.name]) if row is not None and row.name in shares else row for row in rows]
    living = [row for row in rows if row is not None and row.surrogate is not None]
    per_block = num_trajectories // num_blocks
    blocks = torch.zeros(len(living), num_blocks, len(truth), dtype=truth.dtype, device=truth.device)
    seconds = torch.zeros(len(living), dtype=torch.float64)
    with progress_bar("gradients", num_blocks, show=progress) as bar:
        for index in range(num_blocks):
            blocks[:, index], took = _block(problem, living, parameters, per_block)
            seconds += took
            bar.advance(f"{(index + 1) * per_block:,} trajectories for each of {len(living)} rows")
    found: list[GradientRow] = []
    sections = []
    measured = dict(zip((row.name for row in living), range(len(living)), strict=True))
    for row in rows:
        if row is None:
            sections.append(len(found))
            continue
        if row.surrogate is None:
            found.append(GradientRow(row.name, reason=row.reason))
            continue
        at = measured[row.name]
        each = float(seconds[at]) / (num_blocks * per_block)
        measured_row = _row(problem, row, parameters, blocks[at], truth, per_block, each)
        found.append(replace(measured_row, sampled_share=shares.get(row.name)))
    return GradientComparison(
        problem=process.name,
        num_trajectories=num_blocks * per_block,
        num_blocks=num_blocks,
        num_parameters=len(truth),
        elbo=elbo,
        gradient_norm=float(truth.norm()),
        rows=tuple(found),
        sections=tuple(sections),
        seconds=time.perf_counter() - started,
    )


def _problem(process: Process, policy: Policy) -> tuple[GradientProblem, list[Tensor]]:
    if not isinstance(process, TabularMDP | LinearGaussianMDP):
        raise ValueError(
            f"process: compare_gradients measures against the exact gradient, which {type(process).__name__} does not "
            f"have; give a TabularMDP or a LinearGaussianMDP, or train by TrajectoryELBO, which takes any"
        )
    if not isinstance(policy, torch.nn.Module):
        raise ValueError(
            f"policy must be a module with parameters to differentiate, such as guides.TabularPolicy; got "
            f"{'the action prior' if policy is None else type(policy).__name__}"
        )
    parameters: list[Tensor] = [p for p in policy.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("policy has no parameters with requires_grad=True: there is no gradient to compare")
    with torch.enable_grad():
        if isinstance(process, TabularMDP):
            return FiniteProblem(process, policy), parameters
        return GaussianProblem(process, policy), parameters


def _exact_gradient(process: Process, policy: Policy, parameters: list[Tensor]) -> tuple[float, Tensor]:
    with torch.enable_grad():
        elbo = exact.elbo(process, policy)
        if not bool(elbo.isfinite()):
            raise ValueError(
                f"policy has an ELBO of {float(elbo.detach())}: it takes an action that the action prior forbids, so "
                f"there is no gradient; give it probability 0 there (a policy built with prior=process.prior does)"
            )
        gradient = _flat(torch.autograd.grad(elbo, parameters, allow_unused=True), parameters)
    return float(elbo.detach()), gradient


def _critics(problem: GradientProblem, policy: Policy, critic: _Critic | None) -> Critics:
    own, bare = problem.values(policy), problem.values(policy, entropy=False)
    stale = problem.values(None)
    if critic is None:
        return Critics(own, bare, stale)
    given = problem.values_of(critic)
    if isinstance(given, QuadraticValues) and given.call is not None:
        return Critics(given, bare, stale, has_q=False, is_exact=False)
    pairs = zip(_tables(own), _tables(given), strict=True)
    close = all(
        bool(((a - b).abs() <= 1e4 * torch.finfo(a.dtype).eps * a.abs().max().clamp(min=1)).all()) for a, b in pairs
    )
    return Critics(given, bare, stale, is_exact=close)


def _tables(values: TableValues | QuadraticValues) -> list[Tensor]:
    tables = (values.q, values.v) if isinstance(values, TableValues) else (values.P, values.p, values.c)
    return [table for table in tables if table is not None]


def _shares(problem: GradientProblem, rows: list[Estimator], parameters: list[Tensor]) -> dict[str, float]:
    """Returns each mixture's best share of its second part, from trajectories of their own so that no bias arises."""
    pairs = [Estimator(row.name, part) for row in rows if row.mixture is not None for part in row.mixture]
    if not pairs:
        return {}
    pilot = torch.stack([_block(problem, pairs, parameters, _PILOT[1])[0] for _ in range(_PILOT[0])], 1)
    return {row.name: best_share(pilot[2 * i], pilot[2 * i + 1]) for i, row in enumerate(rows)}


def _block(
    problem: GradientProblem, rows: list[Estimator], parameters: list[Tensor], count: int
) -> tuple[Tensor, Tensor]:
    """Returns each row's mean gradient over ``count`` trajectories, ``(R, D)``, and the seconds it took."""
    seconds = torch.zeros(len(rows), dtype=torch.float64)
    with torch.enable_grad():
        started = time.perf_counter()
        draws = problem.draw(count)
        drawing = time.perf_counter() - started
        gradients = []
        for index, row in enumerate(rows):
            assert row.surrogate is not None
            started = time.perf_counter()
            gradients.append(_of_leaves(row.surrogate(draws) / count, problem.leaves))
            # The pathwise row draws its own trajectories, since its dynamics carry gradients.
            seconds[index] = time.perf_counter() - started + (0.0 if "model" in row.name else drawing)
        started = time.perf_counter()
        stacked = [torch.stack(parts) for parts in zip(*gradients, strict=True)]
        flat = _to_parameters(problem, parameters, stacked, len(rows))
        seconds += (time.perf_counter() - started) / len(rows)
    return flat, seconds


def _of_leaves(surrogate: Tensor, leaves: tuple[Tensor, ...]) -> list[Tensor]:
    gradients = torch.autograd.grad(surrogate, leaves, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, leaves, strict=True)]


def _to_parameters(problem: GradientProblem, parameters: list[Tensor], gradients: list[Tensor], count: int) -> Tensor:
    """Returns gradients in the policy's outputs ``(R, *output)`` as gradients in its parameters, ``(R, D)``."""
    found = torch.autograd.grad(
        problem.outputs, parameters, gradients, retain_graph=True, allow_unused=True, is_grads_batched=True
    )
    parts = [
        (p.new_zeros(count, p.numel()) if g is None else g.reshape(count, -1))
        for g, p in zip(found, parameters, strict=True)
    ]
    return torch.cat(parts, 1)


def _flat(gradients: Any, parameters: list[Tensor]) -> Tensor:
    pairs = zip(gradients, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in pairs]).detach()


def _row(
    problem: GradientProblem,
    row: Estimator,
    parameters: list[Tensor],
    blocks: Tensor,
    truth: Tensor,
    per_block: int,
    seconds: float,
) -> GradientRow:
    summary = summarize(blocks, truth, per_block)
    unbiased, share = row.unbiased, None
    if row.expected is not None:
        with torch.enable_grad():
            leaves = [g[None] for g in _of_leaves(row.expected(), problem.leaves)]
            off = float((_to_parameters(problem, parameters, leaves, 1)[0] - truth).norm())
        size = float(truth.norm())
        share = off / size if size > 0 else None
        tolerance = 1e4 * torch.finfo(truth.dtype).eps
        unbiased = off <= tolerance * max(size, tolerance)
    return GradientRow(
        name=row.name,
        unbiased=unbiased,
        cause="" if unbiased else row.cause,
        z_along=summary.z_along,
        z_global=summary.z_global,
        relative_bias=summary.relative_bias,
        relative_bias_exact=share,
        variance=summary.variance,
        variance_standard_error=summary.variance_standard_error,
        cosine=summary.cosine,
        seconds=seconds,
        variance_seconds=summary.variance * seconds,
    )
