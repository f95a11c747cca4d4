"""learn_offline: its fixed points against dynamic programming on the data, its estimates, and what it refuses."""

import math

import gymnasium
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from small_agents import F64, Line, sac, small_mdp
from torch import nn

import rl_as_inference as rlai
from rl_as_inference.guides import CategoricalPolicy, TabularPolicy, TanhGaussianPolicy
from rl_as_inference.offline import weighted_return

QUICK = {"hidden_sizes": (8,), "batch_size": 16, "num_updates": 30, "compile": False}
TABLE = {"hidden_sizes": (), "batch_size": 64, "learning_rate": 0.01, "dtype": F64, "compile": False}
"""Networks without a layer between: a number for every state, or state and action."""


def walks(count=60, seed=0):
    """Behaviour in a process of four states that takes each action with a known probability, cut off after 12 steps."""
    process = small_mdp(horizon=12, discount=1.0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trajectories = process.rollout(TabularPolicy(4, 3), count)
    return trajectories


SPACES = {"observation_space": gymnasium.spaces.Discrete(4), "action_space": gymnasium.spaces.Discrete(3)}


def transitions(trajectories):
    """All ``(s, a, r, s', terminated)`` of the data."""
    found = []
    for n, length in enumerate(trajectories.lengths().tolist()):
        for t in range(length):
            s, a, after = (
                int(x[n]) for x in (trajectories.states[t], trajectories.actions[t], trajectories.states[t + 1])
            )
            found.append((s, a, float(trajectories.rewards[t, n]), after, length < 12 and t == length - 1))
    return found


def expectile_of(values, tau):
    low, high = min(values), max(values)
    for _ in range(200):
        middle = 0.5 * (low + high)
        balance = sum((tau if x > middle else 1 - tau) * (x - middle) for x in values)
        low, high = (middle, high) if balance > 0 else (low, middle)
    return 0.5 * (low + high)


@pytest.mark.parametrize("tau", [0.5, 0.8])
def test_implicit_q_learning_finds_the_in_sample_fixed_point(tau):
    """60 walks (seed 0), tables, 2,000 updates: V is the expectile of Q over what was done, by iteration to rest."""
    data, gamma = walks(), 0.8
    rows = transitions(data)
    v = dict.fromkeys(range(4), 0.0)
    for _ in range(200):
        q = {}
        for s, a, r, after, ended in rows:
            q.setdefault((s, a), []).append(r + gamma * (0.0 if ended else v[after]))
        mean = {key: sum(each) / len(each) for key, each in q.items()}
        for state in range(3):
            v[state] = expectile_of([mean[s, a] for s, a, *_ in rows if s == state], tau)
    result = rlai.learn_offline(
        data, method="iql", discount=gamma, expectile=tau, target_average=0.05, num_updates=2000, **SPACES, **TABLE
    )
    learned = result.critic.action_values(torch.arange(4), t=0)
    for (s, a), value in mean.items():
        assert learned[s, a].item() == pytest.approx(value, abs=0.06)


def test_behaviour_cloning_is_the_share_of_each_action():
    """60 walks (seed 0), a table, 800 updates: shares in the data, to 0.05."""
    data = walks()
    result = rlai.learn_offline(data, method="bc", num_updates=800, **SPACES, **{**TABLE, "learning_rate": 0.006})
    rows = transitions(data)
    for state in range(3):
        taken = [a for s, a, *_ in rows if s == state]
        shares = [taken.count(a) / len(taken) for a in range(3)]
        assert result.policy(torch.tensor(state), 0).probs.tolist() == pytest.approx(shares, abs=0.05)
    assert result.critic is None


@pytest.mark.parametrize("method", ["iql", "awr", "mpo"])
def test_what_was_learned_is_better_than_what_was_done(method):
    """60 walks (seed 0), 700 updates: the exact discounted return beats the behaviour's by half of what there is."""
    process = small_mdp(horizon=None, discount=0.8)
    result = rlai.learn_offline(walks(), method=method, env=process, target_average=0.05, num_updates=700, **TABLE)
    behaviour = float(rlai.exact.expected_return(process, TabularPolicy(4, 3)))
    nearly_greedy = rlai.exact.plan(process.at_temperature(1e-3))
    best = float(rlai.exact.expected_return(process, nearly_greedy.policy))
    assert result.estimate.method == "exact"
    assert result.estimate.trusted
    assert result.estimate.mean > behaviour + 0.5 * (best - behaviour)


def half_drawn(seed=0, episodes=400):
    """One step each: a known probability of 0.3 for action 1, which pays 1; behaviour and return by hand."""
    generator = np.random.default_rng(seed)
    data = []
    for _ in range(episodes):
        action = int(generator.random() < 0.3)
        data.append(
            {
                "observations": [0, 1],
                "actions": [action],
                "rewards": [float(action)],
                "terminations": True,
                "log_policy": [math.log(0.3 if action else 0.7)],
            }
        )
    return data


def test_the_importance_weighted_estimate_is_of_the_learned_policy():
    """400 episodes, seed 0: z-score below 4 of the return by hand, the probability of the action that pays."""
    spaces = {"observation_space": gymnasium.spaces.Discrete(2), "action_space": gymnasium.spaces.Discrete(2)}
    result = rlai.learn_offline(half_drawn(), method="awr", num_updates=300, **spaces, **TABLE)
    truth = result.policy(torch.tensor(0), 0).probs[1].item()
    estimate = result.estimate
    assert truth > 0.5
    assert estimate.method == "importance"
    assert abs(estimate.mean - truth) < 4 * estimate.standard_error + 1e-3
    weight = [(truth if e["actions"][0] else 1 - truth) / math.exp(e["log_policy"][0]) for e in half_drawn()]
    by_hand = sum(w * e["rewards"][0] for w, e in zip(weight, half_drawn(), strict=True)) / sum(weight)
    assert estimate.mean == pytest.approx(by_hand, rel=1e-6)
    assert estimate.effective_episodes == pytest.approx(sum(weight) ** 2 / sum(w * w for w in weight), rel=1e-6)


def test_weights_with_a_heavy_tail_are_not_trusted():
    """2,000 draws, seed 0: lognormal weights of scale 0.3 are trusted, of scale 5 are not."""
    normal = np.random.default_rng(0).normal(size=2000)
    returns = np.zeros(2000)
    assert weighted_return(0.3 * normal, returns).trusted
    heavy = weighted_return(5.0 * normal, returns)
    assert not heavy.trusted
    assert heavy.pareto_k > 0.7
    assert "do not trust it" in str(heavy)
    assert weighted_return(np.zeros(50), returns[:50]).trusted  # the behaviour itself


CONTINUOUS = {
    "observations": np.linspace(-1, 1, 8).reshape(4, 2),
    "actions": np.array([[0.5], [-1.0], [1.0]]),
    "rewards": np.array([0.0, 1.0, 0.5]),
    "truncations": np.array([False, False, True]),
}


@pytest.mark.parametrize("method", ["iql", "awr", "mpo", "bc"])
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_every_method_learns_from_data_of_every_kind(method, kind):
    data = half_drawn(episodes=20) if kind == "discrete" else [CONTINUOUS] * 5
    result = rlai.learn_offline(data, method=method, report_every=10, **QUICK)
    assert [row["update"] for row in result.history] == [10, 20, 30]
    assert all(math.isfinite(value) for row in result.history for value in row.values())
    observation = data[0]["observations"][0]
    action = result.act(observation)
    assert np.shape(action) == np.shape(data[0]["actions"][0])
    again = rlai.learn_offline(data, method=method, report_every=10, **QUICK)
    assert again.history == result.history
    other = rlai.learn_offline(data, method=method, report_every=10, seed=1, **QUICK)
    assert other.history != result.history
    if method != "bc":
        assert result.critic.objective == "return"
        assert result.critic(
            torch.as_tensor(np.asarray(data[0]["observations"])[:2]).to(result.task.state_dtype), 0
        ).shape == (2,)


def test_truncation_is_bootstrapped_and_termination_is_not():
    """One state that pays 1 for ever, cut off or ended after a step: 1/(1 - γ) = 2, and 1; 700 updates."""
    step = {"observations": [0, 0], "actions": [0], "rewards": [1.0]}
    for ending, value in (("truncations", 2.0), ("terminations", 1.0)):
        for method in ("iql", "awr"):
            result = rlai.learn_offline(
                [{**step, ending: True}], method=method, discount=0.5, num_updates=700, target_average=0.1, **TABLE
            )
            assert result.critic(torch.tensor(0), 0).item() == pytest.approx(value, abs=0.1)


def test_policies_act_in_the_environments_units():
    space = gymnasium.spaces.Box(np.array([0.0, 10.0]), np.array([1.0, 30.0]), dtype=np.float64)
    aim = np.array([0.75, 15.0])  # at (0.5, -0.5) of the unit box
    walk = {
        "observations": np.zeros((9, 1)),
        "actions": np.tile(aim, (8, 1)),
        "rewards": np.zeros(8),
        "truncations": True,
    }
    result = rlai.learn_offline(
        [walk], method="bc", action_space=space, **{**QUICK, "num_updates": 600, "learning_rate": 0.01}
    )
    np.testing.assert_allclose(result.act(np.zeros(1)), aim, rtol=0.05)
    assert result.act(np.zeros((4, 1)), deterministic=False).shape == (4, 2)
    shifted = {"observations": [3, 4], "actions": [7], "rewards": [0.0], "terminations": True}
    spaces = {
        "observation_space": gymnasium.spaces.Discrete(2, start=3),
        "action_space": gymnasium.spaces.Discrete(2, start=6),
    }
    result = rlai.learn_offline(
        [shifted], method="bc", **spaces, **{**QUICK, "num_updates": 200, "learning_rate": 0.05}
    )
    assert int(result.act(3)) == 7


def test_a_replay_is_learned_from_and_played_where_it_was_lived():
    agent = sac(lambda: Line(ends_at=5))
    agent.learn(40)
    result = rlai.learn_offline(agent.replay, method="awr", env=lambda: Line(ends_at=5), evaluate_every=10, **QUICK)
    assert len(result.history) == 3
    assert all("return" in row for row in result.history)
    assert result.evaluation.lengths.tolist() == [5] * 10
    assert len(result.data_returns) == 8
    given = rlai.learn_offline(agent.replay, method="bc", env=Line(ends_at=5), evaluate_episodes=2, **QUICK)
    assert given.evaluation.lengths.tolist() == [5, 5]
    named = sac("Pendulum-v1")
    named.learn(30)
    assert rlai.learn_offline(named.replay, evaluate_episodes=1, **QUICK).evaluation.lengths.tolist() == [200]
    with pytest.raises(ValueError, match=r"env has the observation_space Box.*, and the data are of Box"):
        rlai.learn_offline(agent.replay, env="Pendulum-v1", **QUICK)


def test_a_horizon_is_seen():
    process = small_mdp(horizon=3, discount=1.0)
    result = rlai.learn_offline(process.rollout(TabularPolicy(4, 3), 40), env=process, evaluate_episodes=2, **QUICK)
    assert result.task.horizon == 3
    assert result.policy(torch.tensor([0, 0]), torch.tensor([0, 2])).probs.shape == (2, 3)
    with pytest.raises(ValueError, match="ends at step 3"):
        result.act(0, t=3)


def test_a_policy_of_the_users_is_trained_as_a_copy():
    guide = CategoricalPolicy(gymnasium.spaces.Discrete(2), 2, hidden_sizes=(4,))
    before = [p.clone() for p in guide.parameters()]
    result = rlai.learn_offline(half_drawn(episodes=20), guide, method="mpo", **QUICK)
    assert isinstance(result.policy, CategoricalPolicy)
    assert all(torch.equal(a, b) for a, b in zip(before, guide.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(before, result.policy.parameters(), strict=True))


class Unsquashed(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1))

    def forward(self, state, t):
        return dist.Normal(self.loc.expand(*state.shape[:-1], 1), 3.0).to_event(1)


class Beta(Unsquashed):
    def forward(self, state, t):
        one = self.loc.exp().expand(*state.shape[:-1], 1)
        scaled = torch.distributions.transforms.AffineTransform(-1.0, 2.0, event_dim=1)
        return dist.TransformedDistribution(dist.Beta(one, one).to_event(1), [scaled])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "dqn"}, "method must be one of iql, awr, mpo, bc"),
        ({"num_updates": 0}, "num_updates must be"),
        ({"expectile": 1.0}, "expectile must be between 0 and 1"),
        ({"lambda_": 1.1}, r"lambda_ must be a number in \[0, 1\]"),
        ({"temperature": 0.0}, "temperature must be"),
        ({"discount": 1.5}, "discount must be"),
        ({"kl_improvement": -1.0}, "kl_improvement must be"),
        ({"largest_weight": 0.5}, "largest_weight is in means of all weights, and must be >= 1"),
        ({"policy": Unsquashed()}, "draws outside the unit box"),
        ({"policy": Beta(), "method": "mpo"}, "method='mpo' bounds mean and scale of a squashed Gaussian"),
        ({"policy": TanhGaussianPolicy(gymnasium.spaces.Box(-1, 1, (3,)), 1)}, "policy fails for two states"),
        ({"policy": TanhGaussianPolicy(gymnasium.spaces.Box(-1, 1, (2,)), 2)}, r"event shape \(2,\)"),
        ({"policy": nn.Identity()}, "policy has no parameters to train"),
        ({"dtype": torch.int64}, "dtype must be"),
        ({"device": "tpu"}, "device"),
    ],
)
def test_arguments_that_are_wrong_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        rlai.learn_offline([CONTINUOUS], **{**QUICK, **options})


def test_a_minari_dataset_is_learned_from_by_its_id(tmp_path, monkeypatch):
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    agent = sac("Pendulum-v1")
    agent.learn(210)
    agent.replay.to_minari("mine/mixed-v0", algorithm_name="ours")
    by_id, directly = (
        rlai.learn_offline(each, evaluate_episodes=1, **QUICK) for each in ("mine/mixed-v0", agent.replay)
    )
    assert by_id.history == directly.history  # the same rows in the same order, and the environment by its name
    assert by_id.evaluation.lengths.tolist() == [200]
