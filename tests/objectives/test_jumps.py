"""Programs that jump as their actions move: the default gradient stays unbiased, and pathwise says what it misses."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import rl_as_inference as rlai
from rl_as_inference import TrajectoryELBO, act, follow, reward, steps, terminate
from rl_as_inference.objectives.jumps import jump_in
from rl_as_inference.program.recording import record

F64 = torch.float64
ONE = torch.ones((), dtype=F64)
MU = 0.2


class Push(nn.Module):
    """N(μ, 1) at every step."""

    def __init__(self, mu=MU):
        super().__init__()
        self.mu = nn.Parameter(torch.tensor(mu, dtype=F64))

    def forward(self, state, t):
        return dist.Normal(self.mu + 0 * state, 1.0)


def push(t, state):
    return act(f"action_{t}", state, dist.Normal(torch.zeros_like(state), 1.0))


def breaks():
    """An action over ½ ends the episode; each earns 3 and a slope."""
    for t in steps(2):
        action = push(t, 0 * ONE)
        reward(f"reward_{t}", 3 + 0.1 * action)
        if action > 0.5:
            break


def breaks_by_state():
    """The same by a state that is drawn from the action."""
    for t in steps(2):
        action = push(t, 0 * ONE)
        state = pyro.sample(f"state_{t}", dist.Normal(action, 1e-9))
        reward(f"reward_{t}", 3 + 0.1 * state)
        if not state.item() < 0.5:
            break


def goes_on():
    t, action = 0, -ONE
    while float(action) <= 0.5 and t < 2:
        action = push(t, 0 * ONE)
        reward(f"reward_{t}", 3 + 0.1 * action)
        t += 1


def breaks_in_markov():
    for t in steps(2, markov=True):
        action = push(t, 0 * ONE)
        reward(f"reward_{t}", 3 + 0.1 * action)
        if bool(action > 0.5):
            break


def in_plate(chosen):
    """The same as a batch of 50, with the second step's terms chosen by tensors."""

    def program():
        with pyro.plate("pushes", 50):
            start = torch.zeros(50, dtype=F64)
            first = push(0, start)
            reward("reward_0", 3 + 0.1 * first)
            chosen(first, start)

    return program


def masked(first, start):
    with pyro.poutine.mask(mask=first <= 0.5):
        reward("reward_1", 3 + 0.1 * push(1, start))


def where(first, start):
    second = push(1, start)
    # The prior is at 0 and the policy at μ: only where the second push counts does it cost.
    reward("reward_1", torch.where(first <= 0.5, 3 + 0.1 * second, second * 0 + MU * second - MU**2 / 2))


def terminates():
    with pyro.plate("pushes", 50):
        place = torch.zeros(50, dtype=F64)
        for t in steps(2):
            terminate(place > 0.5)
            place = push(t, place)
            reward(f"reward_{t}", 3 + 0.1 * place)


def slope():
    """ELBO(μ) = c + P c with c = 3 + 0.1 μ - μ²/2 and P = Φ(½ - μ), so P' = -φ(½ - μ)."""
    c, dc = 3 + 0.1 * MU - MU**2 / 2, 0.1 - MU
    p = 0.5 * (1 + math.erf((0.5 - MU) / math.sqrt(2)))
    return dc + p * dc - c * math.exp(-((0.5 - MU) ** 2) / 2) / math.sqrt(2 * math.pi)


PROGRAMS = {
    "if": (breaks, 1),
    "item of a state": (breaks_by_state, 1),
    "while": (goes_on, 1),
    "markov": (breaks_in_markov, 1),
    "mask in a plate": (in_plate(masked), 50),
    "terminate": (terminates, 50),
}


def gradients(elbo, program, guide, policy, batch, count):
    rows = []
    for _ in range(count):
        (found,) = torch.autograd.grad(-elbo.differentiable_loss(program, guide) / batch, policy.mu)
        rows.append(found)
    return torch.stack(rows)


def z(rows, right):
    return abs(float((rows.mean() - right) / (rows.std() / len(rows) ** 0.5)))


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("own", [True, False])
def test_the_default_gradient_is_unbiased(name, own):
    """The slope by hand, of 300 single runs or 30 batches of 50, seed 0: |z| < 4, with a fresh objective each.

    Of 200 runs the pathwise gradient is off by more than 8 standard errors, as the next test says.
    """
    program, batch = PROGRAMS[name]
    policy = Push()
    guide = follow(program, policy)
    other = guide if own else (lambda: guide())
    rows = gradients(TrajectoryELBO(), program, other, policy, batch, 300 if batch == 1 else 30)
    assert z(rows, slope()) < 4
    assert float(rows.std()) > 0.3  # a score's, not the nearly constant pathwise gradient


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name != "terminate"])
@pytest.mark.parametrize("own", [True, False])
def test_pathwise_says_what_it_does_not_see(name, own):
    program, batch = PROGRAMS[name]
    policy = Push()
    guide = follow(program, policy)
    other = guide if own else (lambda: guide())
    with pytest.warns(UserWarning, match=r"jumps as its actions move \(.* in line \d+ of .*use 'auto', 'score'"):
        rows = gradients(TrajectoryELBO("pathwise"), program, other, policy, batch, 200 if batch == 1 else 30)
    assert z(rows, slope()) > 8  # what the default has avoided


def test_vectorized_particles_are_unbiased():
    """40 batches of 40 particles of a plate of one, seed 0: |z| < 4."""
    program, policy = in_plate(masked), Push()
    elbo = TrajectoryELBO(num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    assert z(gradients(elbo, program, follow(program, policy), policy, 50, 40), slope()) < 4


def test_a_guide_that_does_not_mark_its_actions():
    """Scores of actions that a guide draws by plain sites are taken of detached draws: 500 runs, seed 0, |z| < 4."""
    policy = Push()

    def guide():
        for t in range(2):
            action = pyro.sample(f"action_{t}", policy(0 * ONE, t))
            if action > 0.5:
                break

    for estimator in ("auto", "score"):
        assert z(gradients(TrajectoryELBO(estimator), breaks, guide, policy, 1, 500), slope()) < 4


def test_fit_finds_the_best_of_a_program_that_breaks():
    """Two steps, `break` over ½, 2 for each step: the default ends near the largest exact ELBO, seed 0.

    Within 0.05 nats, by the noise of 16 trajectories a step; the pathwise gradient ends 0.2 below.
    """

    def program():
        for t in steps(2):
            action = push(t, 0 * ONE)
            reward(f"reward_{t}", 2 + action * 0)
            if action > 0.5:
                break

    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(2, dtype=F64))
            self.log_scale = nn.Parameter(torch.zeros(2, dtype=F64))

        def forward(self, state, t):
            return dist.Normal(self.loc[t] + 0 * state, self.log_scale[t].exp())

    def elbo(policy):
        stays = dist.Normal(policy.loc[0], policy.log_scale[0].exp()).cdf(ONE / 2)
        first, second = (
            torch.distributions.kl_divergence(policy(0 * ONE, t), dist.Normal(0 * ONE, 1.0)) for t in range(2)
        )
        return 2 - first + stays * (2 - second)

    best = Learned()
    adam = torch.optim.Adam(best.parameters(), lr=0.05)
    for _ in range(300):
        adam.zero_grad()
        (-elbo(best)).backward()
        adam.step()
    largest, least = float(elbo(best).detach()), float(elbo(Learned()).detach())
    policy = Learned()
    rlai.fit(program, policy, steps=120, num_trajectories=16, learning_rate=0.05, seed=0)
    found = float(elbo(policy).detach())
    assert largest - 0.05 < found <= largest + 1e-6
    assert found > least + 0.1


# What counts and what does not.


def looked_at(make):
    def program():
        for t in steps(2):
            action = act(
                f"action_{t}", torch.zeros(1, dtype=F64), dist.Normal(torch.zeros(1, dtype=F64), 1.0).to_event(1)
            )
            reward(f"reward_{t}", make(action))

    policy = lambda state, t: dist.Normal(state + 0.1, 1.0).to_event(1)  # noqa: E731
    return jump_in(lambda: record(program, policy, pathwise=True)).found


JUMPY = {
    "comparison as a number": lambda a: (a > 1).to(F64).sum(-1),
    "where": lambda a: torch.where(a > 0, a, 1 - a).sum(-1),
    "mask": lambda a: a[a > 0].sum(),
    "filled": lambda a: a.masked_fill(a > 0, 0.0).sum(-1),
    "round": lambda a: torch.round(a).sum(-1),
    "floor division": lambda a: (a // 2).sum(-1),
    "remainder": lambda a: (a % 1.0).sum(-1),
    "sign": lambda a: a.sign().sum(-1),
    "index": lambda a: torch.arange(9.0, dtype=F64)[(a.clamp(-3, 3) + 4).long()].sum(-1),
    "python index": lambda a: float([0, 1][int(a > 0)]),
    "argmax": lambda a: torch.cat([a, 1 - a]).argmax().to(F64),
    "set": lambda a: _set(a),
    "detached": lambda a: (a - 2 * a.detach()).sum(-1),
    "data": lambda a: a.data.sum(-1),
    "no_grad": lambda a: torch.no_grad()(lambda: a.square().sum(-1))(),
    "list": lambda a: sum(a.tolist()),
    "numpy": lambda a: torch.as_tensor(a.detach().numpy()).sum(-1),
    "python max": lambda a: max(a.sum(-1), 0 * ONE),
}


def _set(a):
    buffer = torch.zeros(1, dtype=F64)
    buffer[a > 0] = 1.0
    return buffer.sum(-1)


@pytest.mark.parametrize("name", JUMPY)
def test_what_jumps_is_seen(name):
    assert "in line" in looked_at(JUMPY[name])


SMOOTH = {
    "square": lambda a: -a.square().sum(-1),
    "clamp": lambda a: a.clamp(-1, 1).sum(-1),
    "relu": lambda a: nn.functional.relu(a).sum(-1),
    "smooth l1": lambda a: nn.functional.smooth_l1_loss(a, 0 * a, reduction="none").sum(-1),
    "minimum": lambda a: torch.minimum(a, 1 - a).sum(-1),
    "amax": lambda a: torch.cat([a, 1 - a]).amax(-1),
    "shapes": lambda a: a.sum(-1) if a.dim() == 1 and len(a) == 1 and a.shape[-1] else a,
    "a distribution": lambda a: dist.Normal(a, 1.0).to_event(1).log_prob(torch.zeros_like(a)),
    "a support": lambda a: dist.Uniform(-9 * torch.ones_like(a), 9.0).to_event(1).log_prob(a.clamp(-8, 8)),
    "a printed number": lambda a: (f"{a}", a.sum(-1))[1],
    "a check of its own": lambda a: torch.where(a.isfinite(), a, 0.0).sum(-1),
    "a network": lambda a: nn.Linear(1, 1).double()(a).sum(-1),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_what_does_not_jump_is_left_alone(name):
    assert looked_at(SMOOTH[name]) is None


def test_discrete_draws_are_reached_by_their_scores_and_may_branch():
    """State ~ Bernoulli(σ(a)), then a branch: pathwise besides is unbiased. 600 runs, seed 0, |z| < 4."""

    def program():
        action = push(0, 0 * ONE)
        state = pyro.sample("state_1", dist.Bernoulli(torch.sigmoid(action)))
        reward("reward_0", 2.0 * state if state else 0.3 * action)

    policy = Push()
    guide = follow(program, policy)
    assert jump_in(lambda: record(program, policy, pathwise=True)).found is None
    rows = gradients(TrajectoryELBO(), program, guide, policy, 1, 600)
    grid = torch.linspace(-9, 9, 20_001, dtype=F64)
    mu = torch.tensor(MU, dtype=F64, requires_grad=True)
    weight = torch.exp(-((grid - mu) ** 2) / 2) / math.sqrt(2 * math.pi) * (grid[1] - grid[0])
    up = torch.sigmoid(grid)
    value = (weight * (2 * up + (1 - up) * 0.3 * grid)).sum() - mu**2 / 2
    assert z(rows, float(torch.autograd.grad(value, mu)[0])) < 4


def test_a_rare_branch_is_found_by_later_trials_and_for_good():
    """One run in five asks; no trial moves the random numbers of the runs that count. 1,000 runs, seed 0, |z| < 4."""

    def program():
        start = pyro.sample("start", dist.Bernoulli(torch.tensor(0.2)))
        action = push(0, 0 * ONE)
        reward("reward_0", 3.0 if start and action > 0 else 0.1 * action)

    policy = Push()
    guide, elbo = follow(program, policy), TrajectoryELBO()
    for _ in range(40):
        elbo.differentiable_loss(program, guide)
    rows = gradients(elbo, program, guide, policy, 1, 1000)
    grid = torch.linspace(-9, 9, 20_001, dtype=F64)
    mu = torch.tensor(MU, dtype=F64, requires_grad=True)
    weight = torch.exp(-((grid - mu) ** 2) / 2) / math.sqrt(2 * math.pi) * (grid[1] - grid[0])
    paid = torch.where(grid > 0, 3.0, 0.1 * grid)
    value = (weight * (0.8 * 0.1 * grid + 0.2 * paid)).sum() - mu**2 / 2
    assert z(rows, float(torch.autograd.grad(value, mu)[0])) < 4


def test_trials_move_no_random_numbers():
    program, policy = in_plate(lambda first, start: reward("reward_1", -first.square())), Push()
    torch.manual_seed(3)
    first = TrajectoryELBO().differentiable_loss(program, follow(program, policy))  # with a trial
    torch.manual_seed(3)
    second = TrajectoryELBO("pathwise").differentiable_loss(program, follow(program, policy))
    TrajectoryELBO().differentiable_loss(program, follow(program, policy))
    torch.manual_seed(3)
    third = TrajectoryELBO().differentiable_loss(program, follow(program, policy))  # without one
    assert float(first) == float(second) == float(third)


def test_a_process_whose_reward_jumps_beside_a_slope():
    """ELBO(μ) = -μ²/2 + 0.1 μ + 3 Φ(μ - 1) by the fast reading: 20 batches of 300, seed 0, |z| < 4."""
    import gymnasium
    import numpy as np

    class Leap(rlai.MarkovDecisionProcess):
        state_space = gymnasium.spaces.Box(-np.inf, np.inf, ())
        action_space = gymnasium.spaces.Box(-np.inf, np.inf, ())

        def initial(self):
            return dist.Normal(0 * ONE, 1e-6)

        def prior(self, state):
            return dist.Normal(torch.zeros_like(state), 1.0)

        def transition(self, state, action):
            return dist.Normal(action, 1e-6)

        def reward(self, state, action, next_state):
            return 0.1 * next_state + torch.where(next_state > 1, 3.0, 0.0)

    mdp, policy = Leap(horizon=1), Push()
    guide, elbo = follow(mdp, policy), TrajectoryELBO()
    rows = torch.stack(
        [torch.autograd.grad(-elbo.differentiable_loss(mdp, guide, 300) / 300, policy.mu)[0] for _ in range(20)]
    )
    right = -MU + 0.1 + 3 * math.exp(-((MU - 1) ** 2) / 2) / math.sqrt(2 * math.pi)
    assert z(rows, right) < 4
    with pytest.warns(UserWarning, match="jumps as its actions move"):
        TrajectoryELBO("pathwise").differentiable_loss(mdp, guide, 300)


def test_models_of_continuous_actions_stay_pathwise():
    for process in (rlai.models.double_integrator(horizon=3), rlai.models.point_mass(horizon=3)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            policy = rlai.guides.amortized_policy(process, hidden_sizes=(4,))
            TrajectoryELBO("pathwise").differentiable_loss(process, follow(process, policy), 4)
