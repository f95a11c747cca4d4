"""The learned action prior: rate-distortion against Blahut and Arimoto, and the ELBO that trains it."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import random_mdp
from pyro.infer import SVI

import rl_as_inference as rlai
from rl_as_inference import TabularMDP, exact
from rl_as_inference.guides import TabularPolicy

F64 = torch.float64


def source(temperature: float, seed: int = 0, letters: int = 5, actions: int = 4) -> TabularMDP:
    """Describe a letter by an action: one step, random distortion."""
    generator = torch.Generator().manual_seed(seed)
    reward = -torch.rand(letters, actions, generator=generator, dtype=F64)
    weights = torch.rand(letters, generator=generator, dtype=F64) + 0.1
    stay = torch.eye(letters, dtype=F64)[:, None].expand(letters, actions, letters)
    return TabularMDP(stay, reward, weights / weights.sum(), horizon=1, temperature=temperature)


def blahut_arimoto(mdp: TabularMDP, rounds: int = 20_000) -> tuple[float, float, np.ndarray]:
    """Rate in nats, distortion and output distribution at slope 1/α, in plain NumPy."""
    weight = np.exp(mdp.reward_table.numpy() / mdp.temperature)
    letters = mdp.initial_probabilities.numpy()
    q = np.full(mdp.num_actions, 1 / mdp.num_actions)
    for _ in range(rounds):
        channel = q * weight
        channel /= channel.sum(1, keepdims=True)
        q = letters @ channel
    joint = letters[:, None] * channel
    rate = float((joint * np.log(np.where(joint > 0, channel / np.where(q > 0, q, 1), 1))).sum())
    return rate, float(-(joint * mdp.reward_table.numpy()).sum()), q


@pytest.mark.parametrize("temperature", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_one_step_is_rate_distortion(temperature: float, seed: int) -> None:
    """Lagrangian to 1e-7 nats, rate and distortion (less steep) to 1e-5, against 20,000 rounds."""
    mdp = source(temperature, seed)
    rate, distortion, _ = blahut_arimoto(mdp)
    found = exact.optimal_prior(mdp)
    assert abs(float(found.plan.objective) - (-distortion / temperature - rate)) < 1e-7
    assert abs(found.information - rate) < 1e-5
    assert abs(-found.expected_return - distortion) < 1e-5


@pytest.mark.parametrize("temperature", [0.05, 0.2])
def test_training_prior_and_guide_by_the_elbo_reaches_the_curve(temperature: float) -> None:
    """Gradient of the exact ELBO in both, L-BFGS from uniform: within 1e-6 nats of Blahut and Arimoto's Lagrangian."""
    mdp = source(temperature)
    prior = torch.zeros(4, dtype=F64, requires_grad=True)
    guide = torch.zeros(1, 5, 4, dtype=F64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [prior, guide], max_iter=2000, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = -exact.elbo(mdp.replace(action_prior=prior.softmax(-1)), guide.softmax(-1))
        value.backward()
        return value

    optimizer.step(loss)
    rate, distortion, _ = blahut_arimoto(mdp)
    assert abs(-float(loss().detach()) - (-distortion / temperature - rate)) < 1e-6


def test_svi_trains_the_prior_inside_the_program() -> None:
    """Pyro's SVI on TrajectoryELBO, 1,500 steps of 256 letters, seed 0: the exact objective within 0.01 nats."""
    mdp = source(0.2)
    reward, letters = mdp.reward_table.float(), mdp.initial_probabilities.float()

    def program() -> None:
        logits = pyro.param("prior", torch.zeros(4))
        with pyro.plate("letters", 256):
            state = pyro.sample("state_0", dist.Categorical(letters))
            for t in rlai.steps(1):
                action = rlai.act(f"action_{t}", state, dist.Categorical(logits=logits.expand(256, 4)))
                rlai.reward(f"reward_{t}", reward[state, action], temperature=0.2)

    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    guide = TabularPolicy(5, 4, horizon=1)
    optimizer = pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.998})
    svi = SVI(program, rlai.follow(program, guide), optimizer, loss=rlai.TrajectoryELBO())
    for _ in range(1500):
        svi.step()
    trained = mdp.replace(action_prior=pyro.param("prior").detach().double().softmax(-1))
    with torch.no_grad():
        objective = float(exact.elbo(trained, guide.logits.double().softmax(-1)))
    rate, distortion, _ = blahut_arimoto(mdp)
    assert 0 <= (-distortion / 0.2 - rate) - objective < 0.01


@pytest.mark.parametrize("horizon", [3, None])
def test_several_steps_end_where_no_prior_is_better(horizon: int | None) -> None:
    """Against 200 random priors nearby, and the mean of the policy over the states where it acts."""
    mdp = random_mdp(3, num_states=4, num_actions=3, horizon=horizon, discount=0.8, terminal=True, uniform_prior=True)
    found = exact.optimal_prior(mdp)
    best = float(found.plan.objective)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        logits = found.prior.clamp(min=1e-12).log() + 0.3 * torch.randn(3, generator=generator, dtype=F64)
        assert float(exact.optimal_elbo(mdp.replace(action_prior=logits.softmax(-1)))) < best + 1e-7
    assert best > float(exact.optimal_elbo(mdp))
    objective = found.expected_return / float(mdp.temperature) - found.information
    assert abs(objective - best) < 1e-9
    assert math.isclose(found.expected_return, float(exact.expected_return(mdp, found.plan)), abs_tol=1e-9)


def test_actions_that_are_impossible_stay_so() -> None:
    mdp = source(0.2).replace(action_prior=torch.tensor([0.5, 0.0, 0.25, 0.25], dtype=F64))
    assert exact.optimal_prior(mdp).prior[1] == 0


@pytest.mark.parametrize(
    ("mdp", "options", "message"),
    [
        (rlai.models.double_integrator(), {}, "mdp must be a TabularMDP"),
        (random_mdp(0), {}, "action_prior of mdp depends on the state"),
        (random_mdp(0, uniform_prior=True, dtype=torch.float32), {}, "mdp must be in float64"),
        (random_mdp(0, uniform_prior=True), {"tolerance": 0}, "tolerance must be a finite number > 0"),
        (random_mdp(0, uniform_prior=True), {"max_rounds": 0}, "max_rounds must be an integer >= 1"),
    ],
)
def test_refusals(mdp: object, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        exact.optimal_prior(mdp, **options)
