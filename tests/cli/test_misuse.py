"""What a hurried user types: kinds, shapes and values that do not fit, and tensors used twice."""

import math

import gymnasium
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from problems import random_mdp
from pyro.infer import TraceEnum_ELBO, config_enumerate

import rl_as_inference as rlai
from rl_as_inference import exact, guides
from rl_as_inference.guides import TabularPolicy


class Drift(rlai.MarkovDecisionProcess):
    """Settings as class attributes, and nothing else overridden than what must be."""

    state_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,))
    horizon = 10
    discount = 0.9
    temperature = 0.5

    def initial(self):
        return dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def transition(self, state, action):
        return dist.Normal(state + 0.1 * action, 0.1).to_event(1)

    def reward(self, state, action, next_state):
        return (action[..., 0] > 0).float()


BOX, TWO = gymnasium.spaces.Box(-1.0, 1.0, (2,)), gymnasium.spaces.Discrete(2)
WRONG_TYPES = {
    "num_states must be an integer": lambda: TabularPolicy("a", 2),
    "num_actions must be an integer": lambda: TabularPolicy(2, 2.5),
    "horizon must be an integer >= 1, or None": lambda: TabularPolicy(2, 2, horizon=0),
    "num_actions must be an integer >= 1, got 0": lambda: guides.CategoricalPolicy(TWO, 0),
    "prior must be a callable or None": lambda: guides.CategoricalPolicy(TWO, 2, prior=3),
    "horizon must be an integer >= 1, or None for no horizon, got 'a'": lambda: guides.CategoricalPolicy(
        TWO, 2, horizon="a"
    ),
    "action_size must be an integer, got Box": lambda: guides.TanhGaussianPolicy(BOX, BOX),
    "initial_scale must be a finite number > 0, got 0": lambda: guides.GaussianPolicy(BOX, 1, initial_scale=0),
    "log_scale_bounds must be a pair of finite numbers": lambda: guides.GaussianPolicy(BOX, 1, log_scale_bounds=3),
    "num_components must be an integer": lambda: guides.TanhGaussianMixturePolicy(BOX, 1, num_components="a"),
    "action_size must be an integer, got 'a'": lambda: guides.SteinSampler(BOX, "a"),
    "initial_scale must be a finite number, got 'a'": lambda: guides.LinearGaussianPolicy(1, 1, initial_scale="a"),
    "q must be a torch.nn.Module, got 3": lambda: guides.EnergyBasedPolicy(3, None, abs, state_dims=1, action_size=1),
    "critic must be a callable": lambda: rlai.compare(random_mdp(0), None, critic=3),
    "got 'FrozenLake-v1'; .* read by TabularMDP.from_gymnasium\\('FrozenLake-v1'": lambda: rlai.TabularMDP(
        "FrozenLake-v1", 0, 0
    ),
    "initial must be a tensor or an array": lambda: rlai.TabularMDP(torch.ones(1, 1, 1), torch.ones(1, 1), "x"),
    "A must be a tensor or an array": lambda: rlai.LinearGaussianMDP("a", 0, 0, 0, 0, 0, 0, 0, horizon=3),
}


@pytest.mark.parametrize("message", WRONG_TYPES)
def test_an_argument_of_a_wrong_type_is_named(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WRONG_TYPES[message]()


@pytest.mark.parametrize("kind", ["long", "bool", "float64"])
def test_rewards_of_any_number_kind(kind: str) -> None:
    """The discount must not be rounded to an integer with the reward."""

    class Counting(Drift):
        def reward(self, state, action, next_state):
            return (action[..., 0] > 0).to(getattr(torch, kind))

    torch.manual_seed(0)
    wanted = Drift().rollout(None, 50)
    torch.manual_seed(0)
    found = Counting().rollout(None, 50)
    assert torch.allclose(found.log_weight().float(), wanted.log_weight())
    assert math.isfinite(rlai.compare(Counting(), None, num_trajectories=10).sac_objective)


def test_a_reward_may_be_one_number() -> None:
    class Paid(Drift):
        def reward(self, state, action, next_state):
            return 1.0

    assert torch.equal(Paid().rollout(None, 3).rewards, torch.ones(10, 3))


def test_class_attributes_count_unless_arguments_are_given() -> None:
    assert Drift().horizon == 10
    assert (Drift(horizon=3).horizon, Drift(horizon=3).discount) == (3, 0.9)
    assert Drift(horizon=np.int64(4)).horizon == 4
    assert Drift().name == "Drift"


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (lambda s, t: torch.zeros(2), "policy must return a distribution; at step 0 it returned Tensor"),
        (
            lambda s, t: dist.Uniform(-torch.ones(len(s), 1), 1.0).to_event(1),
            r"event_shape \(1,\) differs from .* \(2,\)",
        ),
        (lambda s, t: dist.Uniform(-torch.ones(7, 2), 1.0).to_event(1), r"batch_shape \(7,\) does not fit"),
        (3, "policy must be a callable"),
    ],
)
def test_policies_that_do_not_fit_a_box(policy, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Drift().rollout(policy, 5)
    with pytest.raises(ValueError, match=words):
        rlai.estimate_elbo(Drift(), policy, 5)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (lambda s, t: torch.zeros(2), "policy must return a distribution"),
        (
            lambda s, t: dist.Categorical(torch.ones(len(s), 3)),
            "gives probabilities to 3 actions .* the action prior to 2",
        ),
        (
            lambda s, t: dist.Bernoulli(torch.full(s.shape, 0.5)),
            "must answer with a Categorical over 2 actions, got Bernoulli",
        ),
        (
            lambda s, t: dist.Normal(torch.zeros(s.shape), 1.0),
            "must answer with a Categorical over 2 actions, got Normal",
        ),
        (TabularPolicy(3, 2, horizon=2).double(), "the table has 2 steps"),
    ],
)
def test_policies_that_do_not_fit_a_table(policy, words: str) -> None:
    mdp = random_mdp(0)
    for use in (lambda: mdp.rollout(policy, 5), lambda: exact.elbo(mdp, policy)):
        with pytest.raises(ValueError, match=words):
            use()


def test_nan_in_a_policy_is_said() -> None:
    policy = TabularPolicy(3, 2).double()
    policy.logits.data[1, 0] = torch.nan
    for use in (lambda: random_mdp(0).rollout(policy, 50), lambda: exact.elbo(random_mdp(0), policy)):
        with pytest.raises(ValueError, match="policy gives NaN"):
            use()


def test_one_distribution_for_all_states_will_do() -> None:
    fixed = lambda s, t: dist.Uniform(-torch.ones(2), 1.0).to_event(1)  # noqa: E731
    assert Drift().rollout(fixed, 5).log_policy.shape == (10, 5)
    everywhere = lambda s, t: dist.Categorical(logits=torch.zeros(2, dtype=torch.float64))  # noqa: E731
    assert random_mdp(0).rollout(everywhere, 5).log_policy.shape == (3, 5)


def test_plans_of_sharp_problems_are_policies_in_single_precision() -> None:
    cliff = rlai.TabularMDP.from_gymnasium("CliffWalking-v1", horizon=50, temperature=0.01)
    plan = exact.plan(cliff)
    assert torch.allclose(plan.policy.sum(-1), torch.ones(50, 48), atol=1e-6)
    assert float(plan.objective - exact.elbo(cliff, plan)) == pytest.approx(0.0, abs=0.02)


def test_probabilities_of_zero_stay_zero() -> None:
    """Categorical(probs=...) clamps; an action that neither policy nor prior takes must cost nothing."""
    prior = torch.tensor([[0.2, 0.8], [1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    mdp = random_mdp(3, uniform_prior=True)
    mdp = rlai.TabularMDP(
        mdp.kernel.probabilities, mdp.reward_table, mdp.initial_probabilities, horizon=3, action_prior=prior
    )
    found = exact.elbo(mdp, lambda s, t: dist.Categorical(probs=prior[s]))
    assert float(found) == pytest.approx(float(exact.elbo(mdp, prior)), abs=1e-12)


@pytest.mark.parametrize("wanted", ["action_prior", "transition"])
@pytest.mark.parametrize("horizon", [3, None])
def test_gradients_can_be_taken_again(wanted: str, horizon: int | None) -> None:
    base = random_mdp(2, terminal=True)
    parts = {"transition": base.kernel.probabilities.clone(), "action_prior": base.action_prior.clone()}
    parts[wanted].requires_grad_()
    mdp = rlai.TabularMDP(
        parts["transition"], base.reward_table, base.initial_probabilities, horizon=horizon, discount=0.5,
        action_prior=parts["action_prior"], terminal=base.terminal,
    )  # fmt: skip
    for objective in (exact.optimal_elbo, exact.log_evidence, lambda m: exact.elbo(m, base.action_prior.detach())):
        grads = [torch.autograd.grad(objective(mdp), parts[wanted])[0] for _ in range(2)]
        assert torch.equal(*grads)


def test_expected_returns_are_differentiable() -> None:
    base = random_mdp(2, dtype=torch.float64)

    def returns(reward: torch.Tensor) -> torch.Tensor:
        mdp = base.replace(reward=reward)
        return torch.stack([exact.expected_return(mdp, None), exact.posterior_return(mdp)])

    assert torch.autograd.gradcheck(returns, base.reward_table.clone().requires_grad_())


@pytest.mark.parametrize("value", ["a", None, torch.tensor([1.0, 2.0]), -1.0, math.nan, math.inf])
def test_temperatures_and_discounts_of_the_wrong_kind(value) -> None:
    with pytest.raises(ValueError, match="temperature must be a finite number > 0"):
        random_mdp(0, temperature=value)
    with pytest.raises(ValueError, match="discount must be in"):
        random_mdp(0, discount=value)


def test_shapes_of_parts_are_checked() -> None:
    class Loose(Drift):
        def transition(self, state, action):
            return dist.Normal(state[..., None] + torch.zeros(2, 3), 1.0).to_event(2)

    class Wide(Drift):
        def reward(self, state, action, next_state):
            return action[..., :1]

    class Bare(rlai.MarkovDecisionProcess):
        def initial(self):
            return dist.Normal(torch.zeros(2), 1.0).to_event(1)

    for process, words in (
        (Loose(), r"transition\(state, action\) must give states of shape \(4, 2\)"),
        (
            Wide(),
            r"reward\(state, action, next_state\) must give one number a trajectory, of shape \(4,\), got \(4, 1\)",
        ),
        (Bare(horizon=2), "state_space of Bare is not set"),
    ):
        with pytest.raises(ValueError, match=words):
            process.rollout(None, 4)
    with pytest.raises(ValueError, match="num_trajectories must be >= 1"):
        Drift()(0)


def test_parts_that_are_no_distribution() -> None:
    """Certain dynamics are written as a tensor at first."""

    class Certain(Drift):
        def transition(self, state, action):
            return state + action

    class Placed(Drift):
        def initial(self):
            return torch.zeros(2)

    for process, words in (
        (Certain(), r"transition\(state, action\) of Certain must return a distribution, got Tensor; .*dist.Delta"),
        (Placed(), r"initial\(\) of Placed must return a distribution, got Tensor; .*dist.Delta"),
    ):
        with pytest.raises(ValueError, match=words):
            process.rollout(None, 4)


def test_endings_as_zeros_and_ones() -> None:
    class Ending(Drift):
        def initial(self):
            return dist.Delta(torch.tensor([1.0, 0.0]), event_dim=1)

        def transition(self, state, action):
            return dist.Delta(state + 1.0, event_dim=1)

        def terminated(self, state):
            return (state[..., 0] > 2.5).long()  # in the third state

    lengths = Ending().rollout(None, 5).mask.sum(0)
    assert torch.equal(lengths, torch.full((5,), 2))


@pytest.mark.parametrize("number", ["10", 2.5, None, True])
def test_numbers_of_the_wrong_kind(number) -> None:
    mdp = random_mdp(0, horizon=3)
    policy = TabularPolicy(mdp.num_states, mdp.num_actions, horizon=3)
    for name, call in (
        ("steps", lambda: rlai.fit(mdp, policy, steps=number)),
        ("num_trajectories", lambda: rlai.fit(mdp, policy, steps=1, num_trajectories=number)),
        ("num_trajectories", lambda: rlai.compare(mdp, policy, num_trajectories=number)),
        ("num_trajectories", lambda: mdp.rollout(policy, number)),
        ("num_draws", lambda: rlai.posterior(mdp, method="importance", num_draws=number or 1.5)),
        ("num_repeats", lambda: rlai.estimate_log_evidence(mdp, method="smc", num_repeats=number or 1.5)),
        ("num_draws", lambda: exact.sample_posterior(mdp, number)),
    ):
        with pytest.raises(ValueError, match=f"{name} must be an integer"):
            call()
    for rate in ("0.1", True):
        with pytest.raises(ValueError, match="learning_rate must be a finite number"):
            rlai.fit(mdp, policy, steps=1, learning_rate=rate)


def test_nan_rewards_are_said_by_particle_filters() -> None:
    class Broken(Drift):
        def reward(self, state, action, next_state):
            return torch.full(state.shape[:1], torch.nan)

    with pytest.raises(ValueError, match="reward is NaN at step 0"):
        rlai.posterior(Broken(discount=1.0), method="smc", num_draws=10)


def test_sparse_transitions_take_any_kind_of_reward() -> None:
    base = random_mdp(5, reward_on_successor=True)
    sparse = base.kernel.probabilities.to_sparse()
    reward = base.reward_table.clone()
    reward[0] = 0.0  # entries that a sparse reward does not have
    rest = {"initial": base.initial_probabilities, "horizon": 3, "temperature": 0.7}
    wanted = float(exact.log_evidence(rlai.TabularMDP(base.kernel.probabilities, reward, **rest)))
    for kind in (reward, reward.to_sparse()):
        assert float(exact.log_evidence(rlai.TabularMDP(sparse, kind, **rest))) == pytest.approx(wanted, abs=1e-12)


def test_constant_states_as_long_as_the_batch() -> None:
    def still() -> None:
        for t in rlai.steps(2):
            action = rlai.act(f"action_{t}", torch.zeros(3), dist.Categorical(torch.ones(2)))
            rlai.reward(f"reward_{t}", action.float())

    from rl_as_inference.processes.programs import as_process

    assert as_process(still).rollout(None, 3).states.shape == (2, 3, 3)
    assert as_process(still).state_space.shape == (3,)


def test_impossible_first_states_stay_impossible() -> None:
    """Categorical(probs=...) would give state 1 a chance of 1e-7, and a reward of e^60 make it certain."""
    stay = torch.eye(2)[:, None, :].expand(2, 1, 2)
    mdp = rlai.TabularMDP(stay, torch.tensor([[0.0], [60.0]]), torch.tensor([1.0, 0.0]), horizon=1)
    assert mdp.initial().log_prob(torch.tensor([0, 1])).tolist() == [0.0, -math.inf]
    found = -TraceEnum_ELBO(max_plate_nesting=1).loss(config_enumerate(mdp, "parallel"), lambda: None)
    assert found == pytest.approx(float(exact.log_evidence(mdp)), abs=1e-6)
