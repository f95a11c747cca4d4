"""What learners can be told: every option once, with its type, its default, what it is, and what it may be.

The option's line in a ``TypedDict`` is the declaration. From it come the learners' signatures and their help, the
checks of what is given, the options of ``rlai train``, and the table of the documentation: see
:mod:`~rl_as_inference.agents.reading_options`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, TypedDict

import torch
from torch import nn

from rl_as_inference.agents.option_rows import (
    SEVERAL,
    Row,
    address,
    below_one,
    compile,
    dtype,
    env_kwargs,
    function,
    or_none,
    share,
    temperature,
    zero_or_positive,
    zero_or_share,
)
from rl_as_inference.agents.return_constraint import check_target_return
from rl_as_inference.checks import check_count, check_discount, check_positive, check_temperature
from rl_as_inference.state_time_network import Architecture, check_hidden_sizes
from rl_as_inference.threads import Precision

__all__ = [
    "ACTION_SCALES",
    "ARCHITECTURES",
    "ActionPrior",
    "ActorGradient",
    "LearnerOptions",
    "MPOOptions",
    "Memory",
    "ModelBasedOptions",
    "Objective",
    "Planner",
    "Sampler",
    "SoftActorCriticOptions",
    "SoftQLearningOptions",
]

ActionPrior = Literal["uniform", "flat"]
Objective = Literal["maxent", "one_step_entropy", "wrong_bellman", "svg0", "ddpg"]
ActorGradient = Literal["pathwise", "exact_sum", "factors", "components", "score"]
Sampler = Literal["stein", "resampling"]
Memory = Literal["gru"]
Planner = Literal["mppi", "smc", "policy"]

ARCHITECTURES: dict[Architecture, dict[str, Any]] = {
    # After 1,000 random steps one half cheetah of three learned to run on its back, and never turned over.
    "plain": {"learning_starts": 5_000},
    # Bhatt et al. 2024, arXiv:1902.05605, and its code; but critics an eighth as wide as there, which learn twice a
    # step: for less work they earn more (docs/architectures.md)
    "batch_norm": {
        "critic_hidden_sizes": (256, 256),
        "updates_per_step": 2,
        "learning_starts": 5_000,
        "adam_beta": 0.5,
        "actor_every": 3,
    },
    # Kim et al. 2026, arXiv:2604.04539 (FlashSAC), with the settings of its authors' code for MuJoCo
    "residual": {
        "learning_rate": 3e-4,
        "hidden_sizes": (128, 128),
        "critic_hidden_sizes": (256, 256),
        "batch_size": 512,
        "learning_starts": 10_000,
        "initial_temperature": 0.01,
        "target_average": 0.01,
        "actor_every": 2,
        "noise_repeats": 16,
    },
}
"""What other options are by default, with each architecture."""
ACTION_SCALES: dict[Architecture, float] = {"residual": 0.15}  # arXiv:2604.04539
"""What ``action_scale`` is by default, where actions are continuous and nothing else is said of α."""


class LearnerOptions(TypedDict, total=False):
    """The options of every learner."""

    seed: Annotated[int, Row(0, "of everything random")]
    seeds: Annotated[
        int | None, Row(None, "learn this many seeds at once, in one batched update", or_none(check_count))
    ]
    device: Annotated[
        torch.device | str | None,
        Row(None, "where everything lives: cpu, cuda or cuda:N; a GPU if there is one"),
    ]
    dtype: Annotated[torch.dtype, Row(torch.float32, "of everything learned", dtype)]
    hidden_sizes: Annotated[
        Sequence[int],
        Row((256, 256), "widths of the hidden layers", lambda _, value: check_hidden_sizes(value)),
    ]
    temperature: Annotated[
        float | Literal["auto"] | None,
        Row(
            None,
            "α in reward units per nat, or 'auto': tuned to the target entropy; a process brings its own",
            temperature,
        ),
    ]
    initial_temperature: Annotated[
        float, Row(1.0, "where a tuned α starts", lambda name, value: check_temperature(value, name))
    ]
    target_entropy: Annotated[
        float | None,
        Row(None, "nats; by default -d for d continuous actions, half of log|A| for the discrete ones allowed"),
    ]
    action_scale: Annotated[
        float | None,
        Row(
            None,
            "instead of target_entropy: that of Gaussians of this standard deviation on [-1, 1], below 0.484",
            or_none(check_positive),
        ),
    ]
    target_return: Annotated[
        float | None,
        Row(
            None,
            "reward units: tune α so that the exploring policy earns this an episode (satisficing)",
            or_none(lambda _, value: check_target_return(value)),
        ),
    ]
    action_prior: Annotated[
        ActionPrior, Row("uniform", "'uniform', the model's; 'flat' takes log p for 0, as the papers do")
    ]
    action_masks: Annotated[
        bool,
        Row(True, "keep to what the environment allows: info['action_mask'], or a part 'action_mask' of what it shows"),
    ]
    learning_starts: Annotated[
        int, Row(1000, "steps by the action prior before learning; of soft actor-critic 5,000 and more", check_count)
    ]
    batch_size: Annotated[int, Row(256, "transitions an update", check_count)]
    buffer_size: Annotated[int, Row(1_000_000, "transitions that replay holds, for each seed", check_count)]
    learning_rate: Annotated[float, Row(1e-3, "Adam's step size", check_positive)]
    adam_beta: Annotated[float, Row(0.9, "Adam's β₁: what its mean of gradients keeps", below_one)]
    discount: Annotated[
        float | None,
        Row(None, "γ in [0, 1]; a process's own, elsewhere 0.99", or_none(lambda _, value: check_discount(value))),
    ]
    target_average: Annotated[
        float, Row(0.005, "how far the target networks move in an update (Polyak averaging's τ)", share)
    ]
    updates_per_step: Annotated[
        float,
        Row(1.0, "gradient steps an environment step (update-to-data ratio, UTD); may be below 1", check_positive),
    ]
    reset_every: Annotated[
        int | None,
        Row(
            None,
            "updates after which networks, targets, optimiser and a tuned α begin anew and replay stays",
            or_none(check_count),
        ),
    ]
    num_envs: Annotated[int, Row(1, "environments stepped together, for each seed", check_count)]
    asynchronous: Annotated[
        bool, Row(False, "each environment in a process of its own, for simulators that take a millisecond or more")
    ]
    num_actors: Annotated[
        int | None,
        Row(
            None,
            "processes with an environment and a copy of the policy each, which act while this one learns",
            or_none(check_count),
        ),
    ]
    actor_steps: Annotated[int, Row(8, "with num_actors: steps that an actor sends together", check_count)]
    parameters_every: Annotated[
        int, Row(100, "with num_actors: steps of all after which the policy's parameters go out to them", check_count)
    ]
    ray: Annotated[
        str | None,
        Row(
            None,
            "with num_actors: address of a Ray cluster to have them in: HOST:PORT, auto, or local for one made here",
            or_none(address),
        ),
    ]
    n_step: Annotated[
        int, Row(1, "steps of reward, with the entropies on the way, before a critic bootstraps", check_count)
    ]
    priority_exponent: Annotated[
        float,
        Row(
            0.0,
            "of prioritised replay: transitions are drawn in proportion to |TD error| to this power; 0: all alike",
            zero_or_positive,
        ),
    ]
    importance_exponent: Annotated[
        float,
        Row(
            0.4,
            "β of its importance weights, which the critics' loss has: 1 undoes the priorities in the mean",
            zero_or_share,
        ),
    ]
    importance_annealing: Annotated[
        int | None, Row(None, "updates over which β rises to 1; by default it stays", or_none(check_count))
    ]
    history: Annotated[
        int,
        Row(
            1,
            "observations, with the actions between them, that are the state; more than 1 where one does not tell it",
            check_count,
        ),
    ]
    frame_stack: Annotated[
        int,
        Row(
            1,
            "observations that are the state, without the actions between; images are stacked along their channels",
            check_count,
        ),
    ]
    normalize_observations: Annotated[
        bool, Row(False, "bring observed numbers to mean 0 and variance 1, by running statistics")
    ]
    normalize_rewards: Annotated[
        bool,
        Row(False, "learn from rewards divided by the running deviation of a return; those reported stay as they are"),
    ]
    memory: Annotated[Memory | None, Row(None, "a recurrent encoder before policy and critics, for hidden state")]
    sequence_length: Annotated[
        int, Row(16, "with memory: successive steps that are learned from together", partial(check_count, least=2))
    ]
    burn_in: Annotated[
        int, Row(8, "with memory: steps before these that only warm the encoder up", partial(check_count, least=0))
    ]
    distributed: Annotated[
        bool,
        Row(
            False,
            "learn with the other ranks of a torchrun job: environments and replay each its own, one gradient, the "
            "mean of theirs (docs/scaling.md)",
        ),
    ]
    precision: Annotated[
        Precision,
        Row(
            "float32",
            "of matrix products: 'bfloat16' rounds what is multiplied, not the sums, where a processor gains by it "
            "(without AMX it is large products, which are rounded too)",
        ),
    ]
    compile: Annotated[bool | Literal["auto"], Row("auto", "compile the update, once; 'auto' where it repays", compile)]
    env_kwargs: Annotated[Mapping[str, Any] | None, Row(None, "options for gymnasium.make", env_kwargs)]


class SoftActorCriticOptions(LearnerOptions, total=False):
    """The options of soft actor-critic."""

    policy: Annotated[
        nn.Module | None,
        Row(None, "a guide (state, t) -> Distribution of your own, on normalised actions; else one is made"),
    ]
    policy_components: Annotated[int, Row(1, "Gaussians in a mixture policy", check_count)]
    num_critics: Annotated[int, Row(2, "critics, the least of which counts", check_count)]
    architecture: Annotated[
        Architecture,
        Row(
            "plain",
            "of policy and critics: 'batch_norm' is CrossQ's, normalised layers without target averages "
            "(arXiv:1902.05605); 'residual' is FlashSAC's, blocks with weights on spheres and categorical critics "
            "(arXiv:2604.04539); each brings its own defaults of other options (docs/architectures.md)",
        ),
    ]
    critic_hidden_sizes: Annotated[
        Sequence[int] | None,
        Row(
            None,
            "widths of the critics' hidden layers; by default hidden_sizes",
            or_none(lambda name, value: check_hidden_sizes(value, name)),
        ),
    ]
    num_atoms: Annotated[
        int,
        Row(101, "with architecture='residual': atoms of the critics' distribution (arXiv:1707.06887)", SEVERAL),
    ]
    value_bound: Annotated[
        float,
        Row(
            5.0,
            "with architecture='residual': how far the atoms reach to either side of 0, in units of the reward scale "
            "(G_max of arXiv:2502.15280)",
            check_positive,
        ),
    ]
    reward_scaling: Annotated[
        bool,
        Row(
            True,
            "with architecture='residual': the reward scale is kept up from the returns seen (arXiv:2502.15280), and "
            "a tuned α is learned in its units; else it is 1",
        ),
    ]
    actor_every: Annotated[int, Row(1, "updates of the critics for each one of policy and temperature", check_count)]
    noise_repeats: Annotated[
        int,
        Row(
            1,
            "continuous actions: steps at most for which a draw's noise is held, n with chance ∝ 1/n² "
            "(arXiv:2604.04539)",
            check_count,
        ),
    ]
    critic: Annotated[
        nn.Module | None,
        Row(
            None,
            "critics of your own, (state, action, t) -> (num_critics, *batch) in reward units; of discrete actions "
            "(state, t=t) -> (num_critics, *batch, A); else they are made",
        ),
    ]
    value_network: Annotated[
        bool, Row(False, "learn a state value too, with the target average on it (arXiv:1801.01290v1)")
    ]
    objective: Annotated[Objective, Row("maxent", "what is maximised: 'maxent', or a rung below it")]
    actor_gradient: Annotated[
        ActorGradient | None, Row(None, "how the actor's expectation is taken; by default the exactest there is")
    ]
    exploration_noise: Annotated[
        float, Row(0.1, "standard deviation of ddpg's noise, on normalised actions", zero_or_positive)
    ]


class SoftQLearningOptions(LearnerOptions, total=False):
    """The options of soft Q-learning."""

    double: Annotated[bool, Row(False, "soft double Q-learning: the online network chooses; discrete actions only")]
    num_critics: Annotated[int, Row(1, "critics, the least of which counts", check_count)]
    sampler: Annotated[Sampler, Row("stein", "how continuous actions are drawn")]
    num_particles: Annotated[int, Row(16, "draws of the Stein sampler for each state", SEVERAL)]
    num_value_draws: Annotated[
        int, Row(64, "uniform draws for a continuous soft value, and for each resampled action", SEVERAL)
    ]


class MPOOptions(LearnerOptions, total=False):
    """The options of maximum a posteriori policy optimisation."""

    num_critics: Annotated[int, Row(2, "critics, the least of which counts", check_count)]
    num_action_draws: Annotated[
        int, Row(10, "draws from the old policy that stand for it in each state; continuous actions only", SEVERAL)
    ]
    kl_improvement: Annotated[
        float, Row(0.1, "nats: how far the improvement may be from the old policy (ε of the E-step)", check_positive)
    ]
    kl_policy: Annotated[float, Row(0.01, "nats: how far a discrete policy may be from its average", check_positive)]
    kl_mean: Annotated[
        float, Row(0.02, "nats a dimension: how far a Gaussian's mean may be from its average", check_positive)
    ]
    kl_scale: Annotated[
        float, Row(1e-4, "nats a dimension: how far a Gaussian's scale may be from its average", check_positive)
    ]


class ModelBasedOptions(LearnerOptions, total=False):
    """The options of model-based agents."""

    num_critics: Annotated[int, Row(2, "critics, the least of which counts", check_count)]
    planner: Annotated[
        Planner | None,
        Row(
            None,
            "what acts: a plan in the model, or the policy learned in it; by default mppi, smc for discrete actions",
        ),
    ]
    look_ahead: Annotated[int, Row(20, "steps of a plan", check_count)]
    num_samples: Annotated[
        int, Row(100, "action sequences (mppi; each in every member), or particles of each member (smc)", SEVERAL)
    ]
    plan_iterations: Annotated[int, Row(2, "importance steps of a plan of mppi", check_count)]
    optimistic: Annotated[
        bool,
        Row(
            False,
            "of mppi, while it learns: an action sequence has one member and is chosen for its hopes; else their mean",
        ),
    ]
    guided: Annotated[
        bool, Row(True, "plans begin from the policy and end in the critics that are learned in the model")
    ]
    ensemble: Annotated[int, Row(5, "members of the model: draws of what is not known", check_count)]
    model_hidden_sizes: Annotated[
        Sequence[int],
        Row((128, 128), "widths of the model's hidden layers", lambda name, value: check_hidden_sizes(value, name)),
    ]
    model_every: Annotated[int, Row(200, "environment steps between fits of the model", check_count)]
    model_updates: Annotated[int, Row(600, "gradient steps of a fit at most", check_count)]
    model_learning_rate: Annotated[float, Row(1e-3, "Adam's step size for the model", check_positive)]
    imagined_steps: Annotated[int, Row(5, "steps of a walk that is imagined, from a state that was lived", check_count)]
    imagined_transitions: Annotated[
        int, Row(10_000, "transitions imagined after each fit, for policy and critics to learn from", SEVERAL)
    ]
    real_share: Annotated[float, Row(0.05, "of transitions that were lived, among those", zero_or_share)]
    reward_function: Annotated[
        Callable[..., Any] | None,
        Row(None, "the reward where it is known, (state, action, next_state) -> reward; else it is learned", function),
    ]
