"""What learners can be told: every option once, with its type, its default, what it is, and what it may be.

The option's line in a ``TypedDict`` is the declaration. From it come the learners' signatures and their help, the
checks of what is given, the options of ``rlai train``, and the table of the documentation.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real
from typing import Annotated, Any, Literal, TypedDict, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from rl_as_inference.agents.return_constraint import check_target_return
from rl_as_inference.checks import check_count, check_discount, check_positive, check_temperature
from rl_as_inference.state_time_network import check_hidden_sizes

__all__ = [
    "ActionPrior",
    "ActorGradient",
    "LearnerOptions",
    "MPOOptions",
    "Memory",
    "ModelBasedOptions",
    "Objective",
    "Option",
    "Planner",
    "Sampler",
    "SoftActorCriticOptions",
    "SoftQLearningOptions",
    "all_options",
    "as_held",
    "filled",
    "from_held",
    "options_of",
    "takes_options",
]

ActionPrior = Literal["uniform", "flat"]
Objective = Literal["maxent", "one_step_entropy", "wrong_bellman", "svg0", "ddpg"]
ActorGradient = Literal["pathwise", "exact_sum", "components", "score"]
Sampler = Literal["stein", "resampling"]
Memory = Literal["gru"]
Planner = Literal["mppi", "smc", "policy"]

Check = Callable[[str, Any], object]
"""``(name, value)``: raises ValueError for a value that may not be."""


@dataclass(frozen=True)
class Option:
    """One option of a learner."""

    name: str
    type: Any
    """Its annotation, such as ``int`` or ``float | None``."""
    default: Any
    help: str
    """One line, without a full stop."""
    of: str | None
    """``"sac"``, ``"sql"``, ``"mpo"`` or ``"model-based"`` where only that algorithm has it; None where all have."""
    check: Check | None

    @property
    def choices(self) -> tuple[Any, ...]:
        """All the words that it may be; empty for other types."""
        return tuple(word for word in _words(self.type) if word is not None)


@dataclass(frozen=True)
class _Row:
    """An option's default, help and check, beside its name and type."""

    default: Any
    help: str
    check: Check | None = None


def _or_none(check: Check) -> Check:
    return lambda name, value: None if value is None else check(name, value)


def _share(name: str, value: Any) -> None:
    check_positive(name, value)
    if value > 1:
        raise ValueError(f"{name} must be in (0, 1], got {value}")


def _zero_or_share(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise ValueError(f"{name} must be a number in [0, 1], got {value!r}")


def _zero_or_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or value != 0:
        check_positive(name, value)


def _yes_or_no(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def _function(name: str, value: Any) -> None:
    if value is not None and not callable(value):
        raise ValueError(f"{name} must be a function (state, action, next_state) -> reward, or None; got {value!r}")


def _temperature(name: str, value: Any) -> None:
    if value is None or (isinstance(value, str) and value == "auto"):
        return
    if isinstance(value, str):
        raise ValueError(f"{name} must be 'auto' or a number > 0, got {value!r}")
    check_temperature(value, name)


def _dtype(name: str, value: Any) -> None:
    if value not in (torch.float32, torch.float64):
        raise ValueError(f"{name} must be torch.float32 or torch.float64, got {value!r}")


def _compile(name: str, value: Any) -> None:
    if value not in (True, False, "auto"):
        raise ValueError(f"{name} must be True, False or 'auto', got {value!r}")


def _env_kwargs(name: str, value: Any) -> None:
    if not isinstance(value, Mapping | None):
        raise ValueError(f"{name} must be a mapping of options for gymnasium.make, got {value!r}")


_SEVERAL: Check = partial(check_count, least=2)


class LearnerOptions(TypedDict, total=False):
    """The options of every learner."""

    seed: Annotated[int, _Row(0, "of everything random")]
    seeds: Annotated[
        int | None, _Row(None, "learn this many seeds at once, in one batched update", _or_none(check_count))
    ]
    device: Annotated[
        torch.device | str | None, _Row(None, "where everything lives: cpu, cuda or cuda:N; a GPU if there is one")
    ]
    dtype: Annotated[torch.dtype, _Row(torch.float32, "of everything learned", _dtype)]
    hidden_sizes: Annotated[
        Sequence[int],
        _Row((256, 256), "widths of the hidden layers", lambda _, value: check_hidden_sizes(value)),
    ]
    temperature: Annotated[
        float | Literal["auto"] | None,
        _Row(
            None,
            "α in reward units per nat, or 'auto': tuned to the target entropy; a process brings its own",
            _temperature,
        ),
    ]
    initial_temperature: Annotated[
        float, _Row(1.0, "where a tuned α starts", lambda name, value: check_temperature(value, name))
    ]
    target_entropy: Annotated[
        float | None,
        _Row(None, "nats; by default -d for d continuous actions, half of log|A| for the discrete ones allowed"),
    ]
    action_scale: Annotated[
        float | None,
        _Row(
            None,
            "instead of target_entropy: that of Gaussians of this standard deviation on [-1, 1], below 0.484",
            _or_none(check_positive),
        ),
    ]
    target_return: Annotated[
        float | None,
        _Row(
            None,
            "reward units: tune α so that the exploring policy earns this an episode (satisficing)",
            _or_none(lambda _, value: check_target_return(value)),
        ),
    ]
    action_prior: Annotated[
        ActionPrior, _Row("uniform", "'uniform', the model's; 'flat' takes log p for 0, as the papers do")
    ]
    learning_starts: Annotated[int, _Row(1000, "steps by the action prior before learning", check_count)]
    batch_size: Annotated[int, _Row(256, "transitions an update", check_count)]
    buffer_size: Annotated[int, _Row(1_000_000, "transitions that replay holds, for each seed", check_count)]
    learning_rate: Annotated[float, _Row(3e-4, "Adam's step size", check_positive)]
    discount: Annotated[
        float | None,
        _Row(None, "γ in [0, 1]; a process's own, elsewhere 0.99", _or_none(lambda _, value: check_discount(value))),
    ]
    target_average: Annotated[
        float, _Row(0.005, "how far the target networks move in an update (Polyak averaging's τ)", _share)
    ]
    updates_per_step: Annotated[
        float,
        _Row(1.0, "gradient steps an environment step (update-to-data ratio, UTD); may be below 1", check_positive),
    ]
    num_envs: Annotated[int, _Row(1, "environments stepped together, for each seed", check_count)]
    n_step: Annotated[
        int, _Row(1, "steps of reward, with the entropies on the way, before a critic bootstraps", check_count)
    ]
    history: Annotated[
        int,
        _Row(
            1,
            "observations, with the actions between them, that are the state; more than 1 where one does not tell it",
            check_count,
        ),
    ]
    memory: Annotated[Memory | None, _Row(None, "a recurrent encoder before policy and critics, for hidden state")]
    sequence_length: Annotated[
        int, _Row(16, "with memory: successive steps that are learned from together", partial(check_count, least=2))
    ]
    burn_in: Annotated[
        int, _Row(8, "with memory: steps before these that only warm the encoder up", partial(check_count, least=0))
    ]
    compile: Annotated[
        bool | Literal["auto"], _Row("auto", "compile the update, once; 'auto' where it repays", _compile)
    ]
    env_kwargs: Annotated[Mapping[str, Any] | None, _Row(None, "options for gymnasium.make", _env_kwargs)]


class SoftActorCriticOptions(LearnerOptions, total=False):
    """The options of soft actor-critic."""

    policy: Annotated[
        nn.Module | None,
        _Row(None, "a guide (state, t) -> Distribution of your own, on normalised actions; else one is made"),
    ]
    critic: Annotated[
        nn.Module | None,
        _Row(
            None,
            "critics of your own, (state, action, t) -> (num_critics, *batch) in reward units; of discrete actions "
            "(state, t=t) -> (num_critics, *batch, A); else they are made",
        ),
    ]
    policy_components: Annotated[int, _Row(1, "Gaussians in a mixture policy", check_count)]
    num_critics: Annotated[int, _Row(2, "critics, the least of which counts", check_count)]
    value_network: Annotated[
        bool, _Row(False, "learn a state value too, with the target average on it (arXiv:1801.01290v1)")
    ]
    objective: Annotated[Objective, _Row("maxent", "what is maximised: 'maxent', or a rung below it")]
    actor_gradient: Annotated[
        ActorGradient | None, _Row(None, "how the actor's expectation is taken; by default the exactest there is")
    ]
    exploration_noise: Annotated[
        float, _Row(0.1, "standard deviation of ddpg's noise, on normalised actions", _zero_or_positive)
    ]


class SoftQLearningOptions(LearnerOptions, total=False):
    """The options of soft Q-learning."""

    double: Annotated[bool, _Row(False, "soft double Q-learning: the online network chooses; discrete actions only")]
    num_critics: Annotated[int, _Row(1, "critics, the least of which counts", check_count)]
    sampler: Annotated[Sampler, _Row("stein", "how continuous actions are drawn")]
    num_particles: Annotated[int, _Row(16, "draws of the Stein sampler for each state", _SEVERAL)]
    num_value_draws: Annotated[
        int, _Row(64, "uniform draws for a continuous soft value, and for each resampled action", _SEVERAL)
    ]


class MPOOptions(LearnerOptions, total=False):
    """The options of maximum a posteriori policy optimisation."""

    num_critics: Annotated[int, _Row(2, "critics, the least of which counts", check_count)]
    num_action_draws: Annotated[
        int, _Row(10, "draws from the old policy that stand for it in each state; continuous actions only", _SEVERAL)
    ]
    kl_improvement: Annotated[
        float, _Row(0.1, "nats: how far the improvement may be from the old policy (ε of the E-step)", check_positive)
    ]
    kl_policy: Annotated[float, _Row(0.01, "nats: how far a discrete policy may be from its average", check_positive)]
    kl_mean: Annotated[
        float, _Row(0.02, "nats a dimension: how far a Gaussian's mean may be from its average", check_positive)
    ]
    kl_scale: Annotated[
        float, _Row(1e-4, "nats a dimension: how far a Gaussian's scale may be from its average", check_positive)
    ]


class ModelBasedOptions(LearnerOptions, total=False):
    """The options of model-based agents."""

    num_critics: Annotated[int, _Row(2, "critics, the least of which counts", check_count)]
    planner: Annotated[
        Planner | None,
        _Row(
            None,
            "what acts: a plan in the model, or the policy learned in it; by default mppi, smc for discrete actions",
        ),
    ]
    look_ahead: Annotated[int, _Row(20, "steps of a plan", check_count)]
    num_samples: Annotated[
        int, _Row(100, "action sequences (mppi; each in every member), or particles of each member (smc)", _SEVERAL)
    ]
    plan_iterations: Annotated[int, _Row(2, "importance steps of a plan of mppi", check_count)]
    optimistic: Annotated[
        bool,
        _Row(
            False,
            "of mppi, while it learns: an action sequence has one member and is chosen for its hopes; else their mean",
        ),
    ]
    guided: Annotated[
        bool, _Row(True, "plans begin from the policy and end in the critics that are learned in the model")
    ]
    ensemble: Annotated[int, _Row(5, "members of the model: draws of what is not known", check_count)]
    model_hidden_sizes: Annotated[
        Sequence[int],
        _Row((128, 128), "widths of the model's hidden layers", lambda _, value: check_hidden_sizes(value)),
    ]
    model_every: Annotated[int, _Row(200, "environment steps between fits of the model", check_count)]
    model_updates: Annotated[int, _Row(600, "gradient steps of a fit at most", check_count)]
    model_learning_rate: Annotated[float, _Row(1e-3, "Adam's step size for the model", check_positive)]
    imagined_steps: Annotated[
        int, _Row(5, "steps of a walk that is imagined, from a state that was lived", check_count)
    ]
    imagined_transitions: Annotated[
        int, _Row(10_000, "transitions imagined after each fit, for policy and critics to learn from", _SEVERAL)
    ]
    real_share: Annotated[float, _Row(0.05, "of transitions that were lived, among those", _zero_or_share)]
    reward_function: Annotated[
        Callable[..., Any] | None,
        _Row(
            None, "the reward where it is known, (state, action, next_state) -> reward; else it is learned", _function
        ),
    ]


_OF: dict[type, str | None] = {
    LearnerOptions: None,
    SoftActorCriticOptions: "sac",
    SoftQLearningOptions: "sql",
    MPOOptions: "mpo",
    ModelBasedOptions: "model-based",
}
"""Whose options these are, as the command line calls the algorithm."""


def options_of(declaration: type) -> tuple[Option, ...]:
    """Returns the options that a learner takes, the common ones first.

    Args:
        declaration: :class:`LearnerOptions`, or one of those that extend it.

    Example:
        >>> [option.name for option in options_of(SoftQLearningOptions) if option.of == "sql"]
        ['double', 'num_critics', 'sampler', 'num_particles', 'num_value_draws']
    """
    common = LearnerOptions.__annotations__
    found = []
    for name, annotation in get_type_hints(declaration, include_extras=True).items():
        kind, row = get_args(annotation)[0], annotation.__metadata__[0]
        check = row.check
        if check is None and (words := _words(kind)):
            check = partial(_check_word, words=words)
        if check is None and kind is bool:
            check = _yes_or_no
        found.append(Option(name, kind, row.default, row.help, None if name in common else _OF[declaration], check))
    return tuple(found)


def all_options() -> Iterator[Option]:
    """Yields every option of every algorithm: the common ones, then each algorithm's own."""
    for declaration in _OF:
        yield from (option for option in options_of(declaration) if option.of == _OF[declaration])


Options = TypeVar("Options", bound=LearnerOptions)


def filled(declaration: type[Options], given: Mapping[str, Any], *, by: str = "a learner") -> Options:
    """Returns the options given with the defaults of the others, each checked by itself.

    Args:
        declaration: the options there are.
        given: by name.
        by: who takes them, for messages.

    Raises:
        TypeError: for an option that there is not.
        ValueError: for a value that may not be.
    """
    options = options_of(declaration)
    for name in given.keys() - {option.name for option in options}:
        meant = _meant(name, [option.name for option in options])
        raise TypeError(f"{by} has no option {name!r}" + (f"; did you mean {meant}?" if meant else ""))
    values = {option.name: given.get(option.name, option.default) for option in options}
    for option in options:
        if option.check is not None:
            option.check(option.name, values[option.name])
    return {name: _plain(value) for name, value in values.items()}  # type: ignore[return-value]


def _plain(value: Any) -> Any:
    """Returns a number as Python's own, which files hold: NumPy's and tensors are taken too."""
    if isinstance(value, Tensor):
        return value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


Learning = TypeVar("Learning", bound=type)


def takes_options(declaration: type) -> Callable[[Learning], Learning]:
    """Returns a class decorator: the signature and the help say each option with its default and its words."""

    def told(learner: Learning) -> Learning:
        keyword, plain = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
        rows = options_of(declaration)
        keywords = [inspect.Parameter(o.name, keyword, default=o.default, annotation=o.type) for o in rows]
        env = inspect.signature(learner.__init__).parameters["env"]  # type: ignore[misc]
        parameters = [inspect.Parameter("env", plain, annotation=env.annotation), *keywords]
        learner.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        lines = "\n".join(f"        {option.name}: {option.help}." for option in rows)
        learner.__doc__ = (learner.__doc__ or "").replace("        OPTIONS\n", f"{lines}\n")
        return learner

    return told


def _words(kind: Any) -> list[Any]:
    """Returns the words that a type allows, and None among them if it does; empty for other types."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    parts = get_args(kind)
    if len(parts) == 2 and type(None) in parts and (words := _words(parts[0])):
        return [*words, None]
    return []


def _check_word(name: str, value: Any, words: Sequence[Any]) -> None:
    if value not in words:
        shown = ", ".join(word for word in words if word is not None)
        raise ValueError(f"{name} must be one of {shown}; got {value!r}")


def _meant(name: str, names: Sequence[str]) -> str | None:
    """Returns the name that was meant: one much like it, or one that it abbreviates."""
    close = difflib.get_close_matches(name, names, 1)
    short = [each for each in names if "".join(part[0] for part in each.split("_")) == name]
    return next(iter([*close, *short]), None)


def as_held(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options as JSON holds them; for a policy of the user's own, which it cannot hold, its class's name."""
    return {name: _held(value) for name, value in options.items()}


def from_held(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options from what :func:`as_held` returned."""
    dtypes = {_held(dtype): dtype for dtype in (torch.float32, torch.float64)}
    found = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return {**found, "dtype": dtypes[found["dtype"]]} if found.get("dtype") in dtypes else found


def _held(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return type(value).__name__
    if callable(value):
        return getattr(value, "__name__", type(value).__name__)
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return list(value) if isinstance(value, tuple) else value
