"""``rlai robustness`` and the perturbations behind it."""

import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from command_line import refused, rlai
from small_agents import sac, small_mdp, sql, stirred

from rl_as_inference.agents import perturb
from rl_as_inference.agents.perturbations import _Perturbed, _scale_physics, physics_of

TINY = ["--hidden-sizes", "8", "--batch-size", "8", "--learning-starts", "20", "--no-compile", "--num-steps", "60"]
TINY += ["--evaluate-every", "60", "--evaluate-episodes", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "pendulum"
    assert rlai("train", "Pendulum-v1", *TINY, "--out", out, "--seeds", "2")[0] == 0
    return out


def test_no_perturbation_is_the_evaluation() -> None:
    agent = stirred(sac(seed=3))
    plain = agent.evaluate(4, seed=5).returns[None]
    for name in ("observation", "action"):
        torch.testing.assert_close(perturb(agent, name, [0.0], num_episodes=4, seed=5).returns[0], plain)
    torch.testing.assert_close(perturb(agent, "l", [1.0], num_episodes=4, seed=5).returns[0], plain)
    drawn = agent.evaluate(4, seed=5, deterministic=False).returns[None]
    # The reward's actions are drawn, from the same stream.
    torch.testing.assert_close(perturb(agent, "reward", [0.0], num_episodes=4, seed=5).returns[0], drawn)


@pytest.mark.parametrize(("name", "sizes"), [("observation", [0, 0.5]), ("action", [0, 0.5]), ("m", [1, 3])])
def test_perturbations_change_returns_and_repeat(name: str, sizes: list[float]) -> None:
    agent = stirred(sac(seed=1))
    one, two = (perturb(agent, name, sizes, num_episodes=3, seed=7) for _ in range(2))
    assert torch.equal(one.returns, two.returns)
    assert one.sizes == tuple(float(size) for size in sizes)
    assert not torch.equal(one.returns[0], one.returns[1])


def test_the_noise_on_observations_has_the_size_it_says() -> None:
    env = _Perturbed(gymnasium.make("Pendulum-v1"), "observation", 0.3, np.array([1.0, 2.0, 0.5]), 0)
    plain = gymnasium.make("Pendulum-v1")
    noise = [env.reset(seed=k)[0] - plain.reset(seed=k)[0] for k in range(4000)]
    spread, ratio = np.std(noise, 0), np.array([0.3, 0.6, 0.15])
    # The standard error of a standard deviation from n normal draws is itself / sqrt(2 n).
    assert (np.abs(spread - ratio) < 4 * ratio / np.sqrt(8000)).all()


def test_random_actions_are_as_frequent_as_said() -> None:
    class Told(gymnasium.Env):
        observation_space, action_space = gymnasium.spaces.Box(-1, 1, (1,)), gymnasium.spaces.Discrete(4, start=1)
        taken: list[int] = []  # noqa: RUF012

        def step(self, action):
            self.taken.append(int(action))
            return np.zeros(1, np.float32), 0.0, False, False, {}

    env = _Perturbed(Told(), "action", 0.4, 0.0, 0)
    for _ in range(5000):
        env.step(np.int64(2))
    share = np.mean([action != 2 for action in Told.taken])
    assert set(Told.taken) == {1, 2, 3, 4}
    assert abs(share - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 5000)


def test_the_worst_reward_charges_what_the_policy_knows() -> None:
    mdp = small_mdp(horizon=6, discount=1.0)
    agent = sql(mdp, seed=0, temperature=0.5)
    answer = perturb(agent, "reward", [0.0, 1.0, 2.0], num_episodes=400, seed=3)
    charge = answer.returns[0] - answer.returns[1]
    torch.testing.assert_close(answer.returns[0] - answer.returns[2], 2 * charge)
    # Its mean is α E Σ_t KL(π || p), which the tables know.
    from rl_as_inference import exact
    from rl_as_inference.reasoning.returns import account

    log_policy = exact.tabular.log_policy_table(mdp, agent.policy)
    table = log_policy.detach().to(torch.float64).softmax(-1)
    expected = 0.5 * account(mdp, table).information
    z = (float(charge.mean()) - expected) / (float(charge.std()) / 20)
    assert abs(z) < 4


def test_mujoco_physics_reach_the_model() -> None:
    agent = stirred(sac("InvertedPendulum-v5"))
    assert physics_of(agent) == ["body_mass", "friction"]
    env = gymnasium.make("InvertedPendulum-v5")
    model = env.unwrapped.model
    mass, inertia, friction = (np.array(x) for x in (model.body_mass, model.body_inertia, model.geom_friction))
    _scale_physics(env, "body_mass:pole", 2.0)
    pole = [model.body(k).name for k in range(model.nbody)].index("pole")
    factor = np.where(np.arange(model.nbody) == pole, 2.0, 1.0)
    np.testing.assert_allclose(model.body_mass, factor * mass)
    np.testing.assert_allclose(model.body_inertia[pole], 2 * inertia[pole])
    _scale_physics(env, "friction", 0.5)
    np.testing.assert_allclose(model.geom_friction[:, 0], friction[:, 0] / 2)
    np.testing.assert_allclose(model.geom_friction[:, 1:], friction[:, 1:])
    with pytest.raises(ValueError, match=r"body_mass:nose: the physics of a MuJoCo environment are .*pole"):
        _scale_physics(env, "body_mass:nose", 2.0)
    heavy = perturb(agent, "body_mass", [1.0, 4.0], num_episodes=3).returns
    assert not torch.equal(heavy[0], heavy[1])


def test_what_cartpole_derives_is_derived_again() -> None:
    env = gymnasium.make("CartPole-v1")
    _scale_physics(env, "masspole", 3.0)
    plain = env.unwrapped
    assert plain.total_mass == pytest.approx(0.3 + 1.0)
    assert plain.polemass_length == pytest.approx(0.3 * 0.5)
    assert physics_of(sql()) == ["masspole", "length", "force_mag", "gravity"]


def test_bad_perturbations_are_refused() -> None:
    agent = sql()
    with pytest.raises(ValueError, match=r"wings: CartPoleEnv has no number of that name.*masspole"):
        perturb(agent, "wings", [1.0])
    with pytest.raises(ValueError, match="probability of a random action, at most 1; got 2"):
        perturb(agent, "action", [2.0])
    with pytest.raises(ValueError, match="observation: sizes must be finite numbers >= 0"):
        perturb(agent, "observation", [-1.0])
    with pytest.raises(ValueError, match="length: sizes must be finite numbers > 0"):
        perturb(agent, "length", [0.0])
    with pytest.raises(ValueError, match="action: give one size or more"):
        perturb(agent, "action", [])
    with pytest.raises(ValueError, match="observes integers"):
        perturb(sql(small_mdp(horizon=5)), "observation", [0.1])
    with pytest.raises(ValueError, match="need environments of their own"):
        perturb(sql(gymnasium.make("CartPole-v1")), "action", [0.1])


def test_the_command_writes_a_picture_and_its_numbers(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "robust"
    words = ["--perturb", "observation=0,0.2", "--perturb", "l=0.5,1,2", "--num-episodes", "2"]
    code, text, _ = rlai("robustness", run, *words, "--out", out)
    assert code == 0
    assert "observation" in text
    assert (out / "robustness.png").stat().st_size > 5000
    data = json.loads((out / "robustness.json").read_text())
    assert [row["name"] for row in data["perturbations"]] == ["observation", "l"]
    for row in data["perturbations"]:
        returns = np.array(row["returns"])
        assert returns.shape == (len(row["sizes"]), 2, 2)
        np.testing.assert_allclose(returns.mean((1, 2)), row["mean"])
        assert all(low <= mean <= high for low, mean, high in zip(row["low"], row["mean"], row["high"], strict=True))
    assert "exists already" in refused("robustness", run, *words, "--out", out)
    assert rlai("robustness", run, *words, "--out", out, "--overwrite")[0] == 0


def test_the_command_writes_into_the_run_once(run: Path) -> None:
    words = ["--perturb", "action=0,0.3", "--num-episodes", "1"]
    assert rlai("robustness", run, *words)[0] == 0
    record = json.loads((run / "run.json").read_text())
    assert record["command"] == "train"
    assert record["finished"]
    assert {"robustness.png", "robustness.json"} <= set(record["files"])
    assert "has robustness.png already" in refused("robustness", run, *words)
    assert rlai("robustness", run, *words, "--overwrite")[0] == 0
    assert rlai("evaluate", run, "--num-episodes", "1")[0] == 0


def test_by_default_everything_usual_is_perturbed(run: Path, tmp_path: Path) -> None:
    assert rlai("robustness", run, "--num-episodes", "1", "--out", tmp_path / "all")[0] == 0
    data = json.loads((tmp_path / "all" / "robustness.json").read_text())
    assert [row["name"] for row in data["perturbations"]] == ["observation", "action", "reward", "m", "l", "g"]


def test_wrong_words_are_refused(run: Path, tmp_path: Path) -> None:
    assert "is not a run folder" in refused("robustness", tmp_path)
    assert "--perturb must be NAME=SIZES" in refused("robustness", run, "--perturb", "action")
    assert "--perturb must be NAME=SIZES" in refused("robustness", run, "--perturb", "action=a,b")
    assert "PendulumEnv has no number of that name" in refused(
        "robustness", run, "--perturb", "wings=1,2", "--out", tmp_path / "new"
    )
    assert not (tmp_path / "new").exists()
    assert "--num-episodes must be >= 1" in refused("robustness", run, "--num-episodes", "0")
