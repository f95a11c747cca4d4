"""Readings of a program: what a policy does, what the action prior does, and discount as survival."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.params import param_with_module_name
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints

from rl_as_inference.arguments import checked, takes
from rl_as_inference.host import note_registered
from rl_as_inference.nouns import Policy, Program
from rl_as_inference.program.sites import ACTION, is_action, step_of

__all__ = ["Follow", "Guide", "check_answer", "follow", "register_module", "simulate", "survival"]


def follow(program: Program | None = None, policy: Policy | None = None) -> Any:
    """Returns the guide that acts by ``policy`` in ``program``.

    The guide is the same program in which action sites draw from ``policy(state, t)``, everything
    else is left alone, and factors and observations are silent. Against its own program it gives
    the trajectory ELBO, which is the maximum-entropy objective (docs/mathematics.md).

    A policy that is a module has its parameters registered with Pyro (:func:`pyro.module`), so
    that ``SVI`` trains it; the guide is then a module too, so ``torch.optim`` sees its parameters
    through ``elbo(program, guide)``. What the package runs itself (``fit``, ``posterior``, …) leaves the store without
    them, as it was found: the module keeps its parameters. What a program registers of its own stays there.

    Args:
        program: the program. Without it, ``follow(policy=policy)`` is a ``with`` block.
        policy: a callable ``(state, t) -> Distribution``.

    Raises:
        ValueError: if the policy is missing, or does not take two arguments; and, when the guide runs, if its answer
            is not a distribution or its event shape is not the action prior's.

    Example:
        >>> from rl_as_inference.program import act
        >>> def coin():
        ...     return act("action_0", torch.tensor(0), dist.Bernoulli(0.5))
        >>> always = lambda state, t: dist.Bernoulli(1.0)
        >>> follow(coin, always)()
        tensor(1.)
        >>> with follow(policy=always):
        ...     coin()
        tensor(1.)
    """
    if policy is None:
        raise ValueError("follow: policy is missing; call follow(program, policy), or follow(policy=policy)")
    if not callable(policy):
        raise ValueError(f"follow: policy must be a callable (state, t) -> Distribution, not {policy!r}")
    if not takes(policy, 2):
        raise ValueError(
            f"follow: policy must take (state, t), which {policy!r} does not; the program comes first, as in "
            f"follow(program, policy)"
        )
    if program is None:
        return Follow(policy)
    if not callable(program):
        raise ValueError(f"follow: program must be a callable, not {type(program).__name__}")
    return Guide(program, policy)


@checked
def simulate(program: Program | None = None) -> Any:
    """Returns the prior reading of ``program``: actions from the action prior, reward factors silent.

    Without a program it is a ``with`` block.

    Example:
        >>> from rl_as_inference.program import act, reward
        >>> def coin():
        ...     action = act("action_0", torch.tensor(0), dist.Bernoulli(0.5))
        ...     reward("reward_0", action)
        >>> trace = pyro.poutine.trace(simulate(coin)).get_trace()
        >>> list(trace.stochastic_nodes), list(trace.observation_nodes)
        (['action_0'], [])
    """
    return _Silence() if program is None else _Silence()(program)


@checked
def survival(program: Program | None = None) -> Any:
    """Returns ``program`` with its discount rendered as survival coins, whatever its steps say.

    This is the reading that log evidence and posteriors need when γ < 1. Without a program it is
    a ``with`` block.
    """
    return _Survival() if program is None else _Survival()(program)


class Guide(nn.Module):
    """What :func:`follow` returns: ``program`` acted by ``policy``, as a module."""

    def __init__(self, program: Program, policy: Policy) -> None:
        super().__init__()
        self.program = program
        self.policy = policy

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with Follow(self.policy):
            return self.program(*args, **kwargs)


class Follow(Messenger):
    """The effect behind :func:`follow`: action sites draw from the policy, observations are silent."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def __enter__(self) -> "Follow":
        register_module("policy", self.policy)
        super().__enter__()
        return self

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"]:  # an action too: nobody chose it
            msg["stop"] = True
        elif is_action(msg):
            self._act(msg)

    def _pyro_rlai_factors_count(self, msg: Any) -> None:
        msg["value"], msg["done"] = False, True

    def _act(self, msg: Any) -> None:
        prior = msg["fn"]
        place = step_of(msg)
        proposal = self.policy(msg["infer"][ACTION]["state"], place["step"] or 0)
        proposal = check_answer(proposal, prior, f"at site {msg['name']!r}")
        msg["infer"]["rlai_policy"] = proposal
        if place["alive"] is not None:
            proposal = prior_where_ended(place["alive"], proposal, prior)
        msg["infer"]["rlai_prior"] = prior
        msg["fn"] = proposal


def check_answer(answer: Any, prior: Any, where: str, batch: torch.Size | None = None) -> Any:
    """Returns a policy's answer with the batch shape of the action prior.

    Args:
        answer: what the policy returned.
        prior: the action prior there.
        where: for messages.
        batch: what the batch shape must be; None where the answer may have more dimensions than the prior.

    Raises:
        ValueError: if it is not a distribution, over other actions than the prior's, or has another batch shape.
    """
    if not isinstance(answer, torch.distributions.Distribution):
        raise ValueError(f"policy must return a distribution; {where} it returned {type(answer).__name__}")
    if answer.event_shape != prior.event_shape:
        raise ValueError(
            f"policy's event_shape {tuple(answer.event_shape)} differs from the action prior's "
            f"{tuple(prior.event_shape)} {where}; declare what is one action with .to_event(n) on both"
        )
    if isinstance(answer, torch.distributions.Categorical) and isinstance(prior, torch.distributions.Categorical):
        sizes = [fn._param.shape[-1] for fn in (answer, prior)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"policy gives probabilities to {sizes[0]} actions {where}, but the action prior to {sizes[1]}"
            )
    else:
        _check_kind(answer, prior, where)
    if answer.batch_shape == prior.batch_shape:
        return answer
    try:
        shape = torch.broadcast_shapes(answer.batch_shape, prior.batch_shape)
        fits = batch is None or shape == batch
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"policy's batch_shape {tuple(answer.batch_shape)} does not fit the action prior's "
            f"{tuple(prior.batch_shape)} {where}; answer with one distribution a state"
        )
    return answer.expand(shape)


_ANY_KIND = (dist.Delta, dist.MaskedMixture)
"""Distributions that do not say by their support whether actions are discrete."""


def _check_kind(answer: Any, prior: Any, where: str) -> None:
    """Raises ValueError if a policy's answer has densities where the prior has probabilities, or other actions.

    A density weighed against probabilities is no weight, and draws in between would pass for the actions beside them.
    """
    if isinstance(answer, _ANY_KIND) or isinstance(prior, _ANY_KIND):
        return
    try:
        kinds = ["probabilities" if fn.support.is_discrete else "densities" for fn in (answer, prior)]
    except NotImplementedError:  # one of the user's own, that does not say
        return
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"policy answers with a {type(answer).__name__}, which has {kinds[0]} {where}, but the action prior has "
            f"{kinds[1]}; answer with a distribution over the same actions"
        )
    wanted, found = _num_values(prior.support), _num_values(answer.support)
    if wanted is not None and kinds[0] == "probabilities" and found != wanted:
        given = "any number of" if found is None else found
        raise ValueError(
            f"policy answers with a {type(answer).__name__}, over {given} actions {where}, but the action prior is "
            f"over {wanted}; answer with a Categorical over {wanted} actions"
        )


def _num_values(support: Any) -> int | None:
    """Returns how many values one discrete number may have; None where there is no end of them."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if support is constraints.boolean:
        return 2
    if not isinstance(support, constraints.integer_interval):
        return None
    return int(torch.as_tensor(support.upper_bound - support.lower_bound).max()) + 1


def prior_where_ended(alive: Tensor, proposal: Any, prior: Any) -> Any:
    """Returns a distribution that is ``proposal`` where ``alive`` and ``prior`` elsewhere."""
    shape = torch.broadcast_shapes(proposal.batch_shape, alive.shape)
    alive, proposal, prior = alive.expand(shape), proposal.expand(shape), prior.expand(shape)
    if isinstance(proposal, torch.distributions.Categorical) and isinstance(prior, torch.distributions.Categorical):
        # Its own case because a mixture cannot be enumerated.
        logits = torch.where(alive[..., None], proposal.logits, prior.logits)
        mixed = dist.Categorical(logits=logits)
        mixed.logits = logits  # normalized already; normalizing again moves the last digit
        return mixed
    if isinstance(proposal, torch.distributions.Bernoulli) and isinstance(prior, torch.distributions.Bernoulli):
        return dist.Bernoulli(logits=torch.where(alive, proposal.logits, prior.logits))
    return dist.MaskedMixture(alive, prior, proposal)


def register_module(name: str, module: Any) -> None:
    """Registers a module's parameters with Pyro's store under ``name``, or ``name_2``, … if taken.

    :func:`pyro.module` under a taken name would leave this module untrained without a word, since
    the store would go on holding the other module's parameters.
    """
    if not isinstance(module, nn.Module):
        return
    parameters = [(key, value) for key, value in module.named_parameters() if value.requires_grad]
    for _, value in parameters:
        if not value.is_contiguous():  # the store would hold, and train, a contiguous copy
            value.data = value.data.contiguous()
    if not parameters:
        return
    store = pyro.get_param_store()._params
    candidate, tries = name, 1
    while any(
        (held := store.get(param_with_module_name(candidate, key))) is not None and held is not value
        for key, value in parameters
    ):
        tries += 1
        candidate = f"{name}_{tries}"
    for key, value in parameters:
        if (whole := param_with_module_name(candidate, key)) not in store:
            note_registered(whole, value)
        pyro.param(whole, value)


class _Silence(Messenger):
    def _pyro_rlai_factors_count(self, msg: Any) -> None:
        msg["value"], msg["done"] = False, True


class _Survival(Messenger):
    def _pyro_rlai_rendering(self, msg: Any) -> None:
        msg["value"], msg["done"] = "survival", True
