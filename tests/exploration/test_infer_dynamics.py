"""infer_dynamics against closed forms, enumeration, quadrature and its own calibration."""

import math
import warnings
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor

from rl_as_inference import (
    ConjugatePosterior,
    LinearGaussianMDP,
    MarkovDecisionProcess,
    TabularMDP,
    TabularPOMDP,
    Trajectories,
    infer_dynamics,
)

F64 = torch.float64
UNIFORM = torch.ones(2, dtype=F64) / 2


def switch(stay: Tensor, reward: Tensor | None = None, **options: Any) -> TabularMDP:
    """Two states and two actions: the first stays with this probability, the second is known."""
    moves = torch.stack([torch.stack([stay, 1 - stay]), torch.stack([1 - stay, stay])])
    known = torch.tensor([[0.3, 0.7], [0.5, 0.5]], dtype=F64)
    reward = torch.zeros(2, 2, dtype=F64) if reward is None else reward
    return TabularMDP(torch.stack([moves, known], 1), reward, UNIFORM, horizon=12, **options)


def beta_family() -> TabularMDP:
    stay = pyro.sample("stay", dist.Beta(torch.tensor(2.0, dtype=F64), torch.tensor(1.0, dtype=F64)))
    return switch(stay, pyro.sample("worth", dist.Normal(torch.zeros(2, 2, dtype=F64), 1.0).to_event(2)))


@pytest.fixture(scope="module")
def seen() -> Trajectories:
    pyro.set_rng_seed(1)
    reward = torch.tensor([[0.5, -1.0], [0.0, 2.0]], dtype=F64)
    return switch(torch.tensor(0.8, dtype=F64), reward).rollout(None, 3)


def stayed(seen: Trajectories) -> tuple[int, int]:
    """How often the first action was taken, and how often it stayed."""
    first = (seen.actions == 0) & seen.mask
    return int(first.sum()), int((first & (seen.states[1:] == seen.states[:-1])).sum())


def log_joint(stay: Tensor, worth: Tensor, seen: Trajectories, noise: float) -> tuple[Tensor, Tensor]:
    """Log prior in unconstrained coordinates and log likelihood by trajectory, written out."""
    prior = dist.Beta(torch.tensor(2.0, dtype=F64), 1.0).log_prob(stay) + (stay * (1 - stay)).log()
    prior = prior + dist.Normal(0.0, 1.0).log_prob(worth).sum()
    table = switch(stay).kernel.dense()
    told = table[seen.states[:-1], seen.actions, seen.states[1:]].log()
    paid = dist.Normal(worth[seen.states[:-1], seen.actions], noise).log_prob(seen.rewards)
    return prior, (told + paid).sum(0)


def test_exact_answers_are_closed_forms_in_arviz_groups(seen: Trajectories) -> None:
    answer = infer_dynamics(beta_family, seen, reward_noise=0.5, num_draws=41, num_chains=2)
    count, same = stayed(seen)
    assert answer.attrs["method"] == "exact"
    assert abs(answer.constant_data["mean_stay"].item() - (2 + same) / (3 + count)) < 1e-9
    number = torch.zeros(2, 2, dtype=F64)
    total = torch.zeros(2, 2, dtype=F64)
    for s, a, r in zip(seen.states[:-1].flatten(), seen.actions.flatten(), seen.rewards.flatten(), strict=True):
        number[s, a] += 1
        total[s, a] += r
    precision = 1 + number / 0.25
    assert np.abs(answer.constant_data["mean_worth"].values - (total / 0.25 / precision).numpy()).max() < 1e-9
    assert np.abs(answer.constant_data["variance_worth"].values - (1 / precision).numpy()).max() < 1e-9
    assert answer.posterior["worth"].shape == (2, 21, 2, 2)
    assert answer.prior["stay"].shape == (1, 200)
    assert answer.log_likelihood["trajectory"].shape == (2, 21, 3)
    assert answer.log_likelihood["trajectory"].dims[-1] == "which_trajectory"
    assert (answer.observed_data["reward"].values == seen.rewards.numpy()).all()
    assert answer.constant_data["mask"].values.all()
    values = answer.posterior.sel(chain=1, draw=3)
    prior, likelihood = log_joint(
        torch.as_tensor(values["stay"].values), torch.as_tensor(values["worth"].values), seen, 0.5
    )
    found = answer.log_likelihood["trajectory"].sel(chain=1, draw=3).values
    assert np.abs(found - likelihood.numpy()).max() < 1e-9
    assert abs(float(answer.sample_stats["lp"].sel(chain=1, draw=3)) - float(prior + likelihood.sum())) < 1e-9


def test_all_forms_of_input_say_the_same(seen: Trajectories) -> None:
    flat = (seen.states[:-1].flatten(), seen.actions.flatten(), seen.rewards.flatten(), seen.states[1:].flatten())
    replay = SimpleNamespace(**dict(zip(("state", "action", "reward", "next_state"), flat, strict=True)))
    lists = [(seen.states[:, n].tolist(), seen.actions[:, n], seen.rewards[:, n].numpy()) for n in range(3)]
    short = [lists[0], tuple(part[:7] for part in lists[1]), lists[2]]  # the seventh action led to an unknown state
    wanted = ConjugatePosterior.exactly(beta_family, reward_noise=0.5).updated(*flat)
    forms = (seen, (seen.states, seen.actions, seen.rewards), lists, replay)
    for form in forms:
        found = infer_dynamics(beta_family, form, reward_noise=0.5, num_draws=2).constant_data
        assert abs(found["mean_stay"].item() - float(wanted.mean()["stay"])) < 1e-12
        assert np.abs(found["mean_worth"].values - wanted.mean()["worth"].numpy()).max() < 1e-12
    part = infer_dynamics(beta_family, short, reward_noise=0.5, num_draws=2)
    assert part.constant_data["mask"].values.sum(0).tolist() == [12, 6, 12]
    mask = torch.as_tensor(part.constant_data["mask"].values)
    where = mask.nonzero(as_tuple=True)
    told = seen.states[:-1][where], seen.actions[where], seen.rewards[where], seen.states[1:][where]
    wanted = ConjugatePosterior.exactly(beta_family, reward_noise=0.5).updated(*told)
    assert abs(part.constant_data["mean_stay"].item() - float(wanted.mean()["stay"])) < 1e-12


def test_without_rewards_they_keep_their_prior(seen: Trajectories) -> None:
    with pytest.warns(UserWarning, match="say nothing about 4 of the 4 numbers of 'worth'"):
        answer = infer_dynamics(beta_family, (seen.states, seen.actions), num_draws=2)
    assert not answer.constant_data["mean_worth"].values.any()
    assert "reward" not in answer.observed_data


def test_exact_rewards_are_known_once_seen(seen: Trajectories) -> None:
    answer = infer_dynamics(beta_family, seen, num_draws=5)
    reward = np.array([[0.5, -1.0], [0.0, 2.0]])
    assert np.abs(answer.posterior["worth"].values - reward).max() < 1e-12
    wrong = seen.rewards.clone()
    wrong[4, 2] += 1
    with pytest.raises(ValueError, match=r"trajectories: step 4 of trajectory 2: its reward .* reward_noise > 0"):
        infer_dynamics(beta_family, (seen.states, seen.actions, wrong))


def by_logit() -> TabularMDP:
    """As :func:`beta_family`: a Beta(2, 1) by its log odds, so that nothing is conjugate."""
    law = dist.TransformedDistribution(
        dist.Beta(torch.tensor(2.0, dtype=F64), 1.0), dist.transforms.SigmoidTransform().inv
    )
    odds = pyro.sample("odds", law)
    worth = pyro.sample("worth", dist.Normal(torch.zeros(2, 2, dtype=F64), 1.0).to_event(2))
    return switch(odds.sigmoid(), worth)


@pytest.mark.filterwarnings("ignore:the trajectories say nothing")
@pytest.mark.parametrize(("method", "count"), [("nuts", 300), ("svi", 1000)])
def test_sampled_answers_agree_with_the_exact_one(seen: Trajectories, method: str, count: int) -> None:
    """Means and variances of five unknowns, seed 0: z within 4 (of SVI's within 0.1 deviations: a Gaussian fits)."""
    exact = infer_dynamics(beta_family, seen, reward_noise=0.5, num_draws=2).constant_data
    found = infer_dynamics(by_logit, seen, method=method, reward_noise=0.5, num_draws=count, num_warmup=60).posterior
    draws = np.concatenate(
        [1 / (1 + np.exp(-found["odds"].values.reshape(-1, 1))), found["worth"].values.reshape(-1, 4)], 1
    )
    mean = np.append(exact["mean_stay"].values, exact["mean_worth"].values)
    spread = np.sqrt(np.append(exact["variance_stay"].values, exact["variance_worth"].values))
    slack = 0.1 if method == "svi" else 0.0
    assert (np.abs(draws.mean(0) - mean) / spread < 4 / math.sqrt(count / 2) + slack).all()
    assert (np.abs(draws.std(0) / spread - 1) < 4 / math.sqrt(count) + slack).all()


def lines(slip: Tensor) -> TabularMDP:
    """A line of three states for each slip: moves go the other way with that probability."""
    count = len(slip)
    ahead = torch.tensor([[0, 1], [0, 2], [1, 2]])
    indices = torch.stack([ahead, ahead.flip(-1)], -1) + 3 * torch.arange(count)[:, None, None, None]
    chances = torch.stack([1 - slip, slip], -1)[:, None, None].expand(count, 3, 2, 2)
    size = 3 * count
    return TabularMDP.from_successors(
        indices.reshape(size, 2, 2),
        chances.reshape(size, 2, 2),
        torch.zeros(size, 2, dtype=F64),
        torch.ones(size, dtype=F64) / size,
        horizon=12,
    )


def test_calibration_of_nuts() -> None:
    """Simulation-based calibration: ranks of true slips among 99 draws are uniform.

    The prior is logistic-normal, so that nothing is conjugate. A hundred lines have slips, and twelve steps, of their
    own: a hundred independent posteriors drawn as one, seed 0. χ² of the 100 ranks in ten bins, p > 0.01.
    """
    count = 100

    def family() -> TabularMDP:
        odds = pyro.sample("odds", dist.Normal(torch.full((count,), -1.0, dtype=F64), 1.5).to_event(1))
        return lines(odds.sigmoid())

    pyro.set_rng_seed(0)
    odds = torch.randn(count, dtype=F64) * 1.5 - 1
    truth = lines(odds.sigmoid())
    states, actions = [3 * torch.arange(count) + 1], torch.randint(2, (12, count))
    for action in actions:
        states.append(truth.next_state(states[-1], action))
    answer = infer_dynamics(family, (torch.stack(states), actions), num_draws=200, num_warmup=60)
    assert answer.attrs["method"] == "nuts"
    assert not answer.sample_stats["diverging"].values.any()
    draws = answer.posterior["odds"].values[:, ::2].reshape(-1, count)[:99]
    bins = np.bincount((draws < odds.numpy()).sum(0) // 10, minlength=10)
    assert stats.chisquare(bins).pvalue > 0.01


def test_discrete_unknowns_are_summed_over(seen: Trajectories) -> None:
    """Which of three probabilities it is, by enumeration; one that a transition refutes has none."""
    chances = torch.tensor([0.8, 0.3, 1.0], dtype=F64)

    def family() -> TabularMDP:
        which = pyro.sample("which", dist.Categorical(torch.tensor([0.2, 0.5, 0.3], dtype=F64)))
        return switch(chances[which])

    count, same = stayed(seen)
    answer = infer_dynamics(family, (seen.states, seen.actions), num_draws=400)
    weights = torch.tensor([0.2 * 0.8**same * 0.2 ** (count - same), 0.5 * 0.3**same * 0.7 ** (count - same), 0.0])
    wanted = (weights / weights.sum()).numpy()
    found = answer.sample_stats["probability_which"].values
    assert np.abs(found - wanted).max() < 1e-6
    assert answer.attrs["method"] == "nuts"


class Damped(MarkovDecisionProcess):
    """A speed that is slowed by its own square, with noise; the reward is minus the friction's work."""

    state_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float64)

    def __init__(self, friction: Tensor) -> None:
        super().__init__(horizon=8)
        self.friction = friction

    def initial(self) -> Any:
        return dist.Normal(torch.ones(1, dtype=F64), 1.0).to_event(1)

    def transition(self, state: Tensor, action: Tensor) -> Any:
        return dist.Normal(state + action - self.friction * state * state.abs(), 0.3).to_event(1)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return -self.friction * state[..., 0] ** 2

    def terminated(self, state: Tensor) -> Tensor:
        return state[..., 0] > 4


def damped_family() -> Damped:
    return Damped(pyro.sample("friction", dist.LogNormal(torch.tensor(-1.5, dtype=F64), 0.7)))


def test_a_process_in_parts_by_quadrature() -> None:
    """One unknown of a nonlinear process, NUTS with 300 draws, seed 0: mean and deviation within 4 errors."""
    pyro.set_rng_seed(2)
    truth = Damped(torch.tensor(0.2, dtype=F64)).rollout(None, 4)
    noisy = truth.rewards + 0.5 * torch.randn(truth.rewards.shape, dtype=F64)
    answer = infer_dynamics(damped_family, (truth.states, truth.actions, noisy), reward_noise=0.5, num_draws=300)
    grid = torch.linspace(-5, 2, 4001, dtype=F64)
    logs = dist.Normal(torch.tensor(-1.5, dtype=F64), 0.7).log_prob(grid)
    going = truth.states[:-1, :, 0] <= 4
    for point, friction in enumerate(grid.exp()):
        process = Damped(friction)
        told = process.transition(truth.states[:-1], truth.actions).log_prob(truth.states[1:])
        paid = dist.Normal(process.reward(truth.states[:-1], truth.actions, truth.states[1:]), 0.5).log_prob(noisy)
        logs[point] += ((told + paid) * going).sum()
    weights = logs.softmax(0)
    mean = float(weights @ grid)
    spread = math.sqrt(float(weights @ (grid - mean) ** 2))
    found = np.log(answer.posterior["friction"].values)
    assert abs(found.mean() - mean) < 4 * spread / math.sqrt(100)
    assert abs(found.std() / spread - 1) < 4 / math.sqrt(200)
    # A list that ends where the state is terminal says no more when it is padded by anything.
    assert answer.constant_data["mask"].values.all()


def test_linear_dynamics_are_exact() -> None:
    """As dense regression has it; in test_conjugate beside drift and correlated noise."""
    one = torch.ones(1, 1, dtype=F64)

    def family() -> LinearGaussianMDP:
        a = pyro.sample("a", dist.Normal(torch.zeros(1, 1, dtype=F64), 1.0).to_event(2))
        b = pyro.sample("b", dist.Normal(torch.zeros(1, 1, dtype=F64), 1.0).to_event(2))
        return LinearGaussianMDP(a, b, 0.25 * one, one, one, one[0], one, one, horizon=20)

    pyro.set_rng_seed(0)
    truth = LinearGaussianMDP(0.9 * one, -0.5 * one, 0.25 * one, one, one, one[0], one, one, horizon=20)
    seen = truth.rollout(None, 2)
    answer = infer_dynamics(family, seen, num_draws=40)
    features = torch.cat([seen.states[:-1], seen.actions], -1).flatten(0, 1)
    precision = torch.eye(2, dtype=F64) + features.T @ features / 0.25
    mean = torch.linalg.solve(precision, features.T @ seen.states[1:].flatten(0, 1)[:, 0] / 0.25)
    found = [answer.constant_data[f"mean_{name}"].item() for name in "ab"]
    assert np.abs(np.array(found) - mean.numpy()).max() < 1e-9
    values = answer.posterior.sel(chain=0, draw=7)
    off = seen.states[1:] - seen.states[:-1] * values["a"].item() - seen.actions * values["b"].item()
    likelihood = dist.Normal(torch.zeros((), dtype=F64), 0.5).log_prob(off).sum((0, 2))
    assert np.abs(answer.log_likelihood["trajectory"].sel(chain=0, draw=7).values - likelihood.numpy()).max() < 1e-9


class TestBadInput:
    """What cannot be answered is refused, with what is wrong and the mend."""

    @pytest.mark.parametrize("method", ["exact", "nuts"])
    def test_a_transition_that_is_impossible(self, method: str) -> None:
        def family() -> TabularMDP:
            if method == "exact":
                row = pyro.sample("row", dist.Dirichlet(torch.ones(2, dtype=F64)))
            else:
                row = pyro.sample("odds", dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1)).softmax(-1)
            table = torch.zeros(3, 1, 3, dtype=F64)
            table[0, 0, :2], table[1:, 0, 2] = row, 1.0
            return TabularMDP(table, torch.zeros(3, 1), torch.eye(3, dtype=F64)[0], horizon=3)

        told = [([0, 1, 2], [0, 0]), ([0, 0, 0, 2], [0, 0, 0])]
        match = "step 2 of trajectory 1.*action 0 in state 0 leads to state 2, which the family gives no probability"
        with pytest.raises(ValueError, match=match):
            infer_dynamics(family, told, method=method)

    @pytest.mark.parametrize("method", ["exact", "nuts"])
    @pytest.mark.parametrize(
        ("told", "match"),
        [
            ([([0, 1, 2], [0, 0])], "next state 2 at step 1 of trajectory 0 is outside 0 … 1"),
            ([([0, 1], [2])], "action 2 at step 0 of trajectory 0 is outside 0 … 1"),
            ([([0, -1], [0])], "next state -1 at step 0"),
            ([([0], [0])], "no transitions"),
            ([], "no transitions"),
            (3, "must be Trajectories, a tuple"),
            ([([0, 1], [0], [1.0], [0])], "got 4 parts"),
            ([([0, 1], [0], [1.0]), ([0, 1], [0])], "some have rewards and others do not"),
            ([([0, 1], [0], [math.nan])], "the reward at step 0 of trajectory 0 is nan"),
            ([([0, 1, 0, 1], [0, 0])], "trajectory 0 has 4 states, 2 actions"),
            ([([0.0, 1.0], [0])], "must be one integer a step"),
        ],
    )
    def test_what_was_seen(self, told: Any, match: str, method: str) -> None:
        family = beta_family if method == "exact" else by_logit
        with pytest.raises(ValueError, match=match):
            infer_dynamics(family, told, method=method, reward_noise=0.5)

    def test_a_tuple_of_lists_is_time_first_and_one_trajectory_goes_in_a_list(self) -> None:
        """Two lists of three rows are states and actions of three steps, not two trajectories with rewards."""

        def coin() -> TabularMDP:
            chance = pyro.sample("chance", dist.Beta(torch.ones((), dtype=torch.float64), 1.0))
            rows = torch.stack([chance, 1 - chance]).expand(2, 2, 2)
            return TabularMDP(rows, torch.zeros(2, 2), torch.tensor([1.0, 0.0]), horizon=3)

        states, actions = [[0, 1], [1, 0], [0, 0]], [[0, 1], [1, 1], [0, 0]]
        told = [
            infer_dynamics(coin, given, num_draws=10).constant_data["mean_chance"].item()
            for given in ((states, actions), (torch.tensor(states), torch.tensor(actions)))
        ]
        assert told == pytest.approx([4 / 6, 4 / 6], abs=1e-12)  # 0 was come to in 3 of 4 steps
        with pytest.raises(ValueError, match="give one alone in a list"):
            infer_dynamics(coin, ([0, 1, 0], [0, 0]))

    def test_states_that_are_no_numbers(self) -> None:
        states = torch.zeros(3, 2, 1, dtype=F64)
        states[2, 1] = math.nan
        with pytest.raises(ValueError, match=r"the next state at step 1 of trajectory 1 is \[nan\]"):
            infer_dynamics(damped_family, (states, torch.zeros(2, 2, 1, dtype=F64)))
        with pytest.raises(ValueError, match=r"actions must be floating and of shape \(time, trajectory, 1\)"):
            infer_dynamics(damped_family, (states[:2, :, :1], torch.zeros(1, 2, 3, dtype=F64)))

    def test_families(self, seen: Trajectories) -> None:
        told = (seen.states, seen.actions)
        with pytest.raises(ValueError, match="family has no unknowns"):
            infer_dynamics(lambda: switch(UNIFORM[0]), told)
        with pytest.raises(ValueError, match="method='exact' takes conjugate families, and the family has no unknowns"):
            infer_dynamics(lambda: switch(UNIFORM[0]), told, method="exact")
        with pytest.raises(ValueError, match=r"and 'odds' is drawn from Transformed.*; use method='nuts' or 'svi'"):
            infer_dynamics(by_logit, told, method="exact")
        with pytest.raises(ValueError, match="family must be a Pyro program"):
            infer_dynamics(switch(UNIFORM[0]), told)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"family must return a MarkovDecisionProcess.*returned Tensor"):
            infer_dynamics(lambda: pyro.sample("x", dist.Gamma(1.0, 1.0)), told)

        def hidden() -> TabularPOMDP:
            p = pyro.sample("p", dist.Uniform(0.1, 0.9)).double()
            base = switch(p)
            return TabularPOMDP(base.kernel.dense(), base.reward_table, UNIFORM, torch.eye(2, dtype=F64), horizon=2)

        with pytest.raises(ValueError, match="TabularPOMDP, whose state is hidden"):
            infer_dynamics(hidden, told)

    def test_arguments(self, seen: Trajectories) -> None:
        with pytest.raises(ValueError, match="method must be 'auto', 'exact', 'nuts' or 'svi', got 'map'"):
            infer_dynamics(beta_family, seen, method="map")
        with pytest.raises(ValueError, match="reward_noise must be a finite number >= 0"):
            infer_dynamics(beta_family, seen, reward_noise=-1.0)
        with pytest.raises(ValueError, match="reward_noise must be a finite number >= 0"):
            ConjugatePosterior.of(beta_family, reward_noise="none")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"values must have the sites \['stay', 'worth'\], got \['stay'\]"):
            ConjugatePosterior.exactly(beta_family).process_of({"stay": torch.tensor(0.5)})
        with pytest.raises(ValueError, match="num_draws must be an integer >= 1"):
            infer_dynamics(beta_family, seen, num_draws=0)

    def test_exact_rewards_have_no_density(self, seen: Trajectories) -> None:
        with pytest.raises(ValueError, match=r"reward_noise is 0.*give reward_noise > 0, or leave rewards out"):
            infer_dynamics(by_logit, seen)

    def test_exact_rewards_refute(self) -> None:
        """Seen exactly, a reward tells which of three goals it is; one that none pays is named."""

        def family() -> TabularMDP:
            goal = pyro.sample("goal", dist.Categorical(torch.ones(3, dtype=F64) / 3))
            paid = (torch.arange(3) == goal).double()[:, None]
            return TabularMDP(torch.ones(3, 1, 3, dtype=F64) / 3, paid, torch.ones(3, dtype=F64) / 3, horizon=3)

        answer = infer_dynamics(family, [([0, 1, 2], [0, 0], [0.0, 0.0])], num_draws=4)
        assert np.abs(answer.sample_stats["probability_goal"].values - np.array([0.0, 0.0, 1.0])).max() < 1e-12
        with pytest.raises(ValueError, match=r"at step 1 of trajectory 0, the reward is 0\.5, in state 1 by action 0"):
            infer_dynamics(family, [([0, 1, 2], [0, 0], [0.0, 0.5])])

    def test_what_nothing_was_seen_of_is_told(self) -> None:
        def family() -> TabularMDP:
            rows = pyro.sample("rows", dist.Dirichlet(torch.ones(2, 2, 2, dtype=F64)).to_event(2))
            sums = pyro.sample("sums", dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1))
            pyro.sample("idle", dist.Beta(torch.ones((), dtype=F64), 1.0))
            return TabularMDP(rows, sums.sum().expand(2, 2), UNIFORM, horizon=3)

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            infer_dynamics(family, [([0, 1, 1], [0, 1], [1.0, 2.0])], reward_noise=0.1, num_draws=2)
        told = " | ".join(str(each.message) for each in caught)
        assert "say nothing about 2 of the 4 rows of 'rows'" in told
        assert "say nothing about 'idle'" in told
        assert "say nothing about 1 joint direction of 'sums'" in told
        assert all(each.filename == __file__ for each in caught)

    def test_nuts_tells_too(self) -> None:
        def family() -> TabularMDP:
            odds = pyro.sample("odds", dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1)).sigmoid()
            return TabularMDP(torch.stack([odds, 1 - odds], -1)[:, None], torch.zeros(2, 1), UNIFORM, horizon=3)

        with pytest.warns(UserWarning, match=r"the trajectories say nothing about the direction \+1.00 odds\[1\]"):
            infer_dynamics(family, [([0, 0, 0, 1], [0, 0, 0])], num_draws=10, num_warmup=10)


def test_terminal_states_say_nothing() -> None:
    """What is written down of them, as padding is, counts for nothing, by either method."""
    pad = [([0, 1, 1, 0], [0, 1, 1], [1.0, 5.0, 7.0])]
    cut = [([0, 1], [0], [1.0])]
    for conjugate in (True, False):

        def family() -> TabularMDP:
            if conjugate:  # noqa: B023 - it is run within the loop
                p = pyro.sample("p", dist.Beta(torch.ones((), dtype=F64), 1.0))
            else:
                p = pyro.sample("z", dist.Normal(torch.zeros((), dtype=F64), 1.0)).sigmoid()
            return switch(p, torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=F64), terminal=torch.tensor([False, True]))

        long, short = (infer_dynamics(family, told, num_draws=8, num_warmup=10, num_chains=1) for told in (pad, cut))
        for name in long.posterior.data_vars:
            assert np.abs(long.posterior[name].values - short.posterior[name].values).max() < 1e-9
        assert np.abs(long.log_likelihood["trajectory"] - short.log_likelihood["trajectory"]).max() < 1e-9
