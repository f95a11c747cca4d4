"""KL divergences between a policy's trajectories and those of success, against every trajectory written out."""

import math

import brute_force
import pytest
import torch
from problems import random_mdp

import rl_as_inference as rlai
from rl_as_inference import LinearGaussianMDP, TabularMDP, exact
from rl_as_inference.guides import LinearGaussianPolicy

F64 = torch.float64


def table(mdp: TabularMDP, seed: int = 0) -> torch.Tensor:
    logits = torch.randn(
        mdp.horizon, mdp.num_states, mdp.num_actions, generator=torch.Generator().manual_seed(seed), dtype=F64
    )
    return logits.softmax(-1)


def enumerated(mdp: TabularMDP, policy: torch.Tensor, direction: str) -> float:
    """The divergence by its definition, over all trajectories and falls of the coin."""
    alpha, rows = float(mdp.temperature), []
    for path in brute_force.paths(mdp):
        acted = math.prod(
            float(policy[t, s, a]) for t, (s, a) in enumerate(zip(path.states, path.actions, strict=False))
        )
        rows.append((path.dynamics * acted, path.dynamics * path.prior * math.exp(path.return_ / alpha)))
    evidence = sum(p for _, p in rows)
    pairs = [(q, p / evidence) if direction == "reverse" else (p / evidence, q) for q, p in rows]
    return sum(left * math.log(left / right) for left, right in pairs if left > 0)


def system(horizon: int = 4) -> LinearGaussianMDP:
    return LinearGaussianMDP(
        A=torch.tensor([[1.0, 0.2], [0.0, 0.9]], dtype=F64),
        B=torch.tensor([[0.0], [0.5]], dtype=F64),
        noise_cov=0.05 * torch.eye(2, dtype=F64),
        state_cost=torch.diag(torch.tensor([1.0, 0.1], dtype=F64)),
        action_cost=0.2 * torch.eye(1, dtype=F64),
        initial_mean=torch.tensor([1.0, 0.0], dtype=F64),
        initial_cov=0.1 * torch.eye(2, dtype=F64),
        action_prior_cov=torch.eye(1, dtype=F64),
        horizon=horizon,
        temperature=0.7,
    )


@pytest.mark.parametrize("direction", ["reverse", "forward"])
@pytest.mark.parametrize("discount", [1.0, 0.7])
@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("reward_on_successor", [False, True])
def test_finite_processes_against_enumeration(direction, discount, terminal, reward_on_successor):
    mdp = random_mdp(5, discount=discount, terminal=terminal, reward_on_successor=reward_on_successor)
    policy = table(mdp)
    found = float(exact.trajectory_kl(mdp, policy, direction))
    assert abs(found - enumerated(mdp, policy, direction)) < 1e-9


def test_equation_34_the_reverse_divergence_is_the_objective():
    """KL(π ‖ p*) = log p(O) - E_π Σ (r/α + log p - log π), seed 002's equation 34 with its constant: to 1e-9."""
    mdp = random_mdp(1, horizon=4)
    for seed in range(3):
        policy = table(mdp, seed)
        objective = float(exact.expected_return(mdp, policy)) / mdp.temperature
        visits = exact.occupancy(mdp, policy)[:-1]
        ratio = (policy * (mdp.log_action_prior - policy.log())).sum(-1)
        objective += float((visits * ratio).sum())
        assert abs(enumerated(mdp, policy, "reverse") - (float(exact.log_evidence(mdp)) - objective)) < 1e-9


def test_each_direction_has_its_own_best_policy():
    """The causal plan is best in reverse and the posterior's action rule forward, among 200 random neighbours."""
    mdp = random_mdp(2, horizon=3)
    generator = torch.Generator().manual_seed(0)
    for direction, dynamics in (("reverse", "causal"), ("forward", "posterior")):
        best = exact.plan(mdp, dynamics)
        least = float(exact.trajectory_kl(mdp, best, direction))
        for _ in range(100):
            noise = 0.1 * torch.randn(best.log_policy.shape, generator=generator, dtype=F64)
            other = (best.log_policy + noise).softmax(-1)
            assert float(exact.trajectory_kl(mdp, other, direction)) > least
    assert (
        abs(float(exact.trajectory_kl(mdp, exact.plan(mdp))) - float(exact.log_evidence(mdp) - exact.optimal_elbo(mdp)))
        < 1e-9
    )


def test_certain_dynamics_leave_no_divergence():
    """Where nothing is luck, the causal plan is the posterior: both directions are 0 to 1e-9."""
    mdp = random_mdp(3, horizon=4)
    certain = TabularMDP(
        torch.nn.functional.one_hot(mdp.kernel.probabilities.argmax(-1), 3).double(),
        mdp.reward_table,
        torch.tensor([1.0, 0.0, 0.0], dtype=F64),
        horizon=4,
        temperature=0.5,
    )
    for direction in ("reverse", "forward"):
        assert abs(float(exact.trajectory_kl(certain, exact.plan(certain), direction))) < 1e-9


def test_discount_is_termination():
    """Footnote 2 of seed 002: γ is a step to a terminal state with probability 1 - γ; all to 1e-9."""
    gamma = 0.8
    mdp = random_mdp(4, num_states=4, num_actions=3, horizon=5, discount=gamma)
    states, actions = mdp.num_states, mdp.num_actions
    transition = torch.zeros(states + 1, actions, states + 1, dtype=F64)
    transition[:-1, :, :-1] = gamma * mdp.kernel.probabilities
    transition[:-1, :, -1] = 1 - gamma
    transition[-1, :, -1] = 1
    ended = TabularMDP(
        transition,
        torch.cat([mdp.reward_table, torch.zeros(1, actions, dtype=F64)]),
        torch.cat([mdp.initial_probabilities, torch.zeros(1, dtype=F64)]),
        horizon=5,
        temperature=mdp.temperature,
        action_prior=torch.cat([mdp.action_prior, torch.full((1, actions), 1 / actions, dtype=F64)]),
        terminal=torch.tensor([False] * states + [True]),
    )
    policy = table(mdp)
    beside = torch.cat([policy, torch.full((5, 1, actions), 1 / actions, dtype=F64)], 1)
    for one, other in (
        (exact.elbo(mdp, policy), exact.elbo(ended, beside)),
        (exact.log_evidence(mdp), exact.log_evidence(ended)),
        (exact.optimal_elbo(mdp), exact.optimal_elbo(ended)),
        (exact.expected_return(mdp, policy), exact.expected_return(ended, beside)),
        (exact.trajectory_kl(mdp, policy, "forward"), exact.trajectory_kl(ended, beside, "forward")),
    ):
        assert abs(float(one - other)) < 1e-9
    assert torch.allclose(exact.plan(mdp).policy, exact.plan(ended).policy[:, :-1], atol=1e-12)


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_linear_gaussian_processes_by_draws(direction):
    """Exact against 200,000 draws, seed 0: |z| < 4."""
    mdp = system()
    torch.manual_seed(0)
    policy = LinearGaussianPolicy(2, 1, horizon=4).double()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    truth = rlai.trajectory_kl(mdp, policy, direction)
    found = rlai.trajectory_kl(mdp, policy, direction, method="sample", num_trajectories=200_000)
    assert truth.standard_error == 0
    assert truth.mean > 0.1
    assert abs(found.mean - truth.mean) < 4 * found.standard_error < 0.1


@pytest.mark.parametrize("direction", ["reverse", "forward"])
@pytest.mark.parametrize("discount", [1.0, 0.7])
def test_finite_processes_by_draws(direction, discount):
    """50,000 draws, seed 1: |z| < 4."""
    mdp = random_mdp(6, horizon=4, discount=discount, terminal=True)
    policy = table(mdp)

    def act(state, t):
        return torch.distributions.Categorical(policy[t, state])

    torch.manual_seed(1)
    found = rlai.trajectory_kl(mdp, act, direction, method="sample", num_trajectories=50_000)
    assert abs(found.mean - float(exact.trajectory_kl(mdp, policy, direction))) < 4 * found.standard_error < 0.1


def test_a_program_without_exact_answers():
    """The process's own program under ``pyro`` has no messages: 40,000 weighted draws, seed 0, |z| < 4 both ways."""
    mdp = random_mdp(7, horizon=3, temperature=2.0, uniform_prior=True)
    policy = table(mdp)

    def act(state, t):
        return torch.distributions.Categorical(policy[t, state])

    program = rlai.given_return(mdp, -1e9)  # the same trajectories, as a program
    for direction in ("reverse", "forward"):
        torch.manual_seed(0)
        found = rlai.trajectory_kl(program, act, direction, num_trajectories=40_000)
        assert found.standard_error > 0
        assert abs(found.mean - float(exact.trajectory_kl(mdp, policy, direction))) < 4 * found.standard_error < 0.1


def test_what_the_other_never_does_is_infinitely_far():
    mdp = random_mdp(8, horizon=2)
    never = torch.tensor([1.0, 0.0], dtype=F64).expand(3, 2)
    assert float(exact.trajectory_kl(mdp, never, "forward")) == math.inf
    assert 0 < float(exact.trajectory_kl(mdp, never)) < math.inf
    forbidden = mdp.replace(action_prior=never)
    assert float(exact.trajectory_kl(forbidden, table(mdp))) == math.inf
    assert 0 <= float(exact.trajectory_kl(forbidden, table(mdp), "forward")) < math.inf


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "backward"}, "direction must be 'reverse' or 'forward', got 'backward'"),
        ({"method": "enumerate"}, "method must be one of exact, sample, or None; got 'enumerate'"),
        ({"num_trajectories": 1}, "num_trajectories must be >= 2"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        rlai.trajectory_kl(random_mdp(0), None, **options)
    with pytest.raises(ValueError, match="horizon"):
        exact.trajectory_kl(random_mdp(0, horizon=None, discount=0.5, temperature=5.0), None, "forward")
