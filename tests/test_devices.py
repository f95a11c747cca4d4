"""Every reading where its process lives: what is exact is the same on all devices, and what is drawn agrees with it.

Tests of ``gpu`` alone are those whose host's half is elsewhere, and slow.
"""

import math
import random
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import random_mdp
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from small_agents import sac, sql
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import rl_as_inference as rlai
from benchmarks.inverse import family_on_grid
from rl_as_inference import LinearGaussianMDP, TabularMDP, exact, infer_agent, models
from rl_as_inference.agents.compilation import draws_apart
from rl_as_inference.guides import LinearGaussianPolicy, TabularPolicy, amortized_policy
from rl_as_inference.processes.mdp import unvalidated

F64 = torch.float64


def moved(mdp: TabularMDP, device: torch.device) -> TabularMDP:
    """The same process on a device."""
    return TabularMDP(
        mdp.kernel.probabilities.to(device),
        mdp.reward_table.to(device),
        mdp.initial_probabilities.to(device),
        horizon=mdp.horizon,
        discount=mdp.discount,
        temperature=torch.as_tensor(mdp.temperature, dtype=F64).to(device),
        action_prior=mdp.action_prior.to(device),
        terminal=mdp.terminal.to(device),
    )


def same(ours: Any, theirs: Any, tolerance: float = 1e-9) -> None:
    a, b = (torch.as_tensor(each, dtype=F64).detach().cpu() for each in (ours, theirs))
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


# ---- exact ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("horizon", [4, None])
def test_satisficing_and_rationality(device: torch.device, horizon: int | None) -> None:
    host = random_mdp(3, horizon=horizon, discount=0.9, terminal=True)
    here = moved(host, device)
    ours, theirs = rlai.satisfice(here, 0.2), rlai.satisfice(host, 0.2)
    assert ours.policy.device.type == device.type
    same(ours.policy, theirs.policy)
    same([ours.temperature, ours.expected_return], [theirs.temperature, theirs.expected_return])
    a, b = rlai.rationality_curve(here), rlai.rationality_curve(host)
    same(torch.stack([a.expected_return, a.bits]), torch.stack([b.expected_return, b.bits]))


@pytest.mark.parametrize("budgets", [{"reward_budget": 0.3}, {"dynamics_budget": 0.3}])
def test_the_worst_case(device: torch.device, budgets: dict[str, float]) -> None:
    host = random_mdp(3, horizon=2)
    host = host.replace(reward=host.reward_table.abs() + 0.1)
    here = moved(host, device)
    ours, theirs = (
        rlai.worst_case(here, exact.plan(here), **budgets),
        rlai.worst_case(host, exact.plan(host), **budgets),
    )
    assert ours.process.terminal.device.type == device.type
    same([ours.robust_return, ours.bound], [theirs.robust_return, theirs.bound], 1e-6)
    same(exact.expected_return(ours.process, exact.plan(here)), ours.robust_return, 1e-6)


@pytest.mark.parametrize("sophisticated", [False, True])
def test_hyperbolic_planners(device: torch.device, sophisticated: bool) -> None:
    host = models.procrastination(temperature=0.05, dtype=F64)
    here = models.procrastination(temperature=0.05, dtype=F64, device=device)
    ours = rlai.hyperbolic_policy(here, 2.0, sophisticated=sophisticated)
    assert ours.device.type == device.type
    same(ours, rlai.hyperbolic_policy(host, 2.0, sophisticated=sophisticated))


def test_comparisons(device: torch.device) -> None:
    """N = 4,096 rollouts, seed 0; three estimates against their exact values."""
    host = random_mdp(5, horizon=5, discount=0.9)
    here = moved(host, device)
    policy = TabularPolicy(3, 2, horizon=5).to(device, F64)
    found = rlai.compare(here, policy)
    same(found.optimal_elbo, exact.optimal_elbo(host))
    same(found.log_evidence, exact.log_evidence(host))
    assert abs(found.elbo - float(exact.elbo(here, policy).detach())) < 4 * found.elbo_standard_error
    gradients = rlai.compare_gradients(here, policy, num_trajectories=2_000, progress=None)
    assert "biased" not in "".join(row for row in gradients.table().splitlines() if row.startswith("│ score"))


# ---- draws ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["exact", "importance", "smc", "annealed"])
def test_posteriors_of_finite_processes(device: torch.device, method: str) -> None:
    """4,000 draws, seed 0: the mean return within 4.5 standard errors of the exact posterior's."""
    host = random_mdp(11, num_states=4, horizon=4, temperature=1.5)
    torch.manual_seed(0)
    data = rlai.posterior(moved(host, device), method=method, num_draws=4_000)
    inverse = torch.tensor(1.0, dtype=F64, requires_grad=True)
    tempered = host.replace(reward=host.reward_table * inverse)
    (mean,) = torch.autograd.grad(exact.log_evidence(tempered), inverse)  # E[R]/α under the posterior
    returns = data.sample_stats["return"].values.ravel()
    size = min(float(data.posterior.attrs.get("effective_sample_size", 4_000)), 4_000) / 3
    assert abs(returns.mean() - 1.5 * float(mean)) < 4.5 * returns.std() / math.sqrt(size)
    if "log_evidence" in data.posterior.attrs:
        error = data.posterior.attrs["log_evidence"] - float(exact.log_evidence(host))
        assert abs(error) < 4.5 * data.posterior.attrs["log_evidence_standard_error"]


@pytest.mark.parametrize("method", ["exact", "guide", "nuts"])
def test_posteriors_of_linear_gaussian_processes(gpu: torch.device, method: str) -> None:
    """The last state's mean within 5 standard errors; NUTS's draws count for a tenth."""
    system = models.double_integrator(horizon=4, dtype=F64, device=gpu)
    count = 100 if method == "nuts" else 2_000
    torch.manual_seed(0)
    policy = LinearGaussianPolicy(2, 1, horizon=4, dtype=F64).to(gpu) if method == "guide" else None
    data = rlai.posterior(system, policy, method=method, num_draws=count)
    final = data.posterior["final_state"].values.reshape(count, 2)
    wanted = exact.sample_posterior(models.double_integrator(horizon=4, dtype=F64), 20_000).states[-1]
    if method == "guide":
        wanted = models.double_integrator(horizon=4, dtype=F64).rollout(policy.cpu(), 20_000).states[-1].detach()
    z = (final.mean(0) - wanted.mean(0).numpy()) / (final.std(0) / math.sqrt(count / (10 if method == "nuts" else 1)))
    assert np.abs(z).max() < 5


def family(device: torch.device) -> Any:
    """Weights of a chain's features and how rational its agent is, drawn and planned for on a device."""
    host = random_mdp(2, num_states=5, num_actions=3, horizon=6)
    here = moved(host, device)

    def run() -> TabularMDP:
        one = torch.ones((), dtype=F64, device=device)
        worth = pyro.sample("worth", dist.Uniform(0 * one, 3 * one))
        kind = pyro.sample("kind", dist.Categorical(torch.full((3,), 1 / 3, dtype=F64, device=device)))
        return here.replace(reward=here.reward_table * worth, temperature=0.5 + 0.2 * kind.to(F64))

    return run


@pytest.mark.parametrize("on_device", [False, True])
def test_wants_from_behaviour(gpu: torch.device, on_device: bool) -> None:
    """The mode is the host's; 400 NUTS draws agree with the host's other 400 in their means: z < 4.

    Demonstrations may be on either device.
    """
    host = random_mdp(2, num_states=5, num_actions=3, horizon=6)
    torch.manual_seed(0)
    shown = host.rollout(exact.plan(host), 30)
    given = shown.to(gpu) if on_device else shown
    modes = [infer_agent(family(where), given, method="map") for where in (gpu, torch.device("cpu"))]
    same(*(mode.posterior["worth"].values for mode in modes), 1e-7)
    chains = [infer_agent(family(gpu), given, num_draws=400), infer_agent(family(torch.device("cpu")), given, seed=1)]
    for name in ("worth", "kind"):
        means = [float(chain.posterior[name].mean()) for chain in chains]
        spread = float(chains[1].posterior[name].std())
        assert abs(means[0] - means[1]) < 4 * spread * math.sqrt(1 / 100 + 1 / 125)
    assert infer_agent(family(gpu), given, method="svi", num_draws=50).posterior["worth"].shape == (1, 50)


def test_a_prior_on_the_host_and_planning_on_the_device(device: torch.device) -> None:
    host = family_on_grid(3, 5)
    torch.manual_seed(0)
    pyro.set_rng_seed(0)
    process = host()
    shown = process.rollout(exact.plan(process), 20)

    def planned_here() -> TabularMDP:
        return moved(host(), device)

    modes = [infer_agent(each, shown, method="map") for each in (planned_here, host)]
    same(modes[0].posterior["weights"].values, modes[1].posterior["weights"].values, 1e-6)


def costly(base: LinearGaussianMDP, cost: Tensor) -> LinearGaussianMDP:
    names = ("A", "B", "noise_cov", "state_cost", "action_cost", "initial_mean", "initial_cov", "action_prior_cov")
    parts = {name: getattr(base, name) for name in names}
    return LinearGaussianMDP(**{**parts, "state_cost": base.state_cost * cost}, horizon=base.horizon)


def test_gains_from_demonstrations(device: torch.device) -> None:
    def system() -> LinearGaussianMDP:
        cost = pyro.sample("cost", dist.LogNormal(torch.zeros((), dtype=F64), 0.5)).to(device)
        base = models.double_integrator(horizon=5, dtype=F64, device=device)
        return costly(base, cost)

    torch.manual_seed(0)
    base = models.double_integrator(horizon=5, dtype=F64, device=device)
    shown = base.rollout(exact.plan(base), 20)
    found = infer_agent(system, shown, method="map")
    pairs = (shown.states.cpu(), shown.actions.cpu())

    def on_host() -> LinearGaussianMDP:
        cost = pyro.sample("cost", dist.LogNormal(torch.zeros((), dtype=F64), 0.5))
        base = models.double_integrator(horizon=5, dtype=F64)
        return costly(base, cost)

    same(found.posterior["cost"].values, infer_agent(on_host, pairs, method="map").posterior["cost"].values, 1e-6)


def test_the_callers_random_numbers_are_left_alone(device: torch.device) -> None:
    host = random_mdp(2, num_states=5, num_actions=3, horizon=6)
    shown = host.rollout(exact.plan(host), 5)

    def streams() -> list[Any]:
        return [torch.rand(3, device=device).tolist(), torch.rand(3).tolist(), random.random(), np.random.rand()]  # noqa: NPY002

    pyro.set_rng_seed(7)
    wanted = streams()
    pyro.set_rng_seed(7)
    infer_agent(family(device), shown, num_draws=20, num_warmup=20)
    rlai.to_gymnasium(models.double_integrator(device=device))
    assert streams() == wanted


# ---- learning ---------------------------------------------------------------------------------------


def test_guides_fit(device: torch.device) -> None:
    """300 steps reach within 5 % of the largest ELBO from the prior's."""
    here = moved(random_mdp(5, horizon=5), device)
    policy = TabularPolicy(3, 2, horizon=5).to(device, F64)
    before, best = float(exact.elbo(here, policy).detach()), float(exact.optimal_elbo(here))
    rlai.fit(here, policy, steps=300, seed=0, progress=False)
    assert float(exact.elbo(here, policy).detach()) > best - 0.05 * (best - before)


@pytest.mark.parametrize("name", ["double_integrator", "point_mass"])
def test_guides_of_continuous_actions_fit(device: torch.device, name: str) -> None:
    problem = getattr(models, name)(device=device)
    policy = amortized_policy(problem, hidden_sizes=(16,)).to(device)
    found = rlai.fit(problem, policy, steps=30, num_trajectories=64, seed=0, progress=False)
    assert found.elbo[-10:].mean() > found.elbo[:10].mean()


@pytest.mark.parametrize("loss", [Trace_ELBO, TraceEnum_ELBO, rlai.TrajectoryELBO])
def test_pyros_own_inference(device: torch.device, loss: Any) -> None:
    """One loss of 20,000 particles in a plate, seed 0, against the exact ELBO: z < 4, by 20 losses of 1,000."""
    here = moved(random_mdp(5, horizon=3), device)
    policy = TabularPolicy(3, 2, horizon=3).to(device, F64)

    def model() -> Tensor:
        return here(1_000)

    svi = SVI(model, rlai.follow(model, policy), pyro.optim.Adam({"lr": 0.0}), loss=loss())
    losses = torch.tensor([-svi.evaluate_loss() / 1_000 for _ in range(20)], dtype=F64)
    z = (losses.mean() - float(exact.elbo(here, policy).detach())) / (losses.std() / math.sqrt(20))
    assert abs(float(z)) < 4


@pytest.mark.parametrize("seeds", [None, 3])
@pytest.mark.parametrize("make", [sac, sql])
def test_compiled_updates_are_the_traced_ones(gpu: torch.device, make: Any, seeds: int | None) -> None:
    """After 40 updates in float64 from the same draws: to 1e-8."""
    found = []
    for compiles in (False, True):
        agent = make(device=gpu, compile=compiles, seeds=seeds, dtype=F64)
        agent.learn(60, progress=False)
        found.append(agent._update.tensors["parameters"].clone())
        assert agent._update.compiled is compiles
    assert found[0].device.type == gpu.type
    same(*found, 1e-8)


@pytest.mark.parametrize(("make", "env"), [(sac, "Pendulum-v1"), (sql, "CartPole-v1"), (sql, "Pendulum-v1")])
@pytest.mark.parametrize("seeds", [None, 3])
def test_draws_can_be_taken_out_of_an_update(make: Any, env: str, seeds: int | None) -> None:
    """As a GPU's compiler wants it: a graph without draws, given what is drawn beside it, does exactly the same."""
    agent = make(env, dtype=F64, seeds=seeds)
    agent.learn(30, progress=False)
    update = agent._update
    given = [tensor.clone() for tensor in (*update._written, *update._read)]
    with unvalidated():
        graphs = [make_fx(lambda *tensors: update._write_step(True, *tensors))(*given) for _ in range(2)]
    draw = draws_apart(graphs[1])
    left = [node for node in graphs[1].graph.nodes if "rand" in str(node.target)]
    assert left == []
    for _ in range(2):
        answers = []
        for graph in graphs:
            torch.manual_seed(3)
            tensors = [tensor.clone() for tensor in given]
            graph(*tensors, *(draw() if graph is graphs[1] else []))
            answers.append((tensors, torch.rand(3)))
        for ours, theirs in zip(answers[0][0], answers[1][0], strict=True):
            assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())
        assert torch.equal(answers[0][1], answers[1][1])  # and no more is drawn
    assert not torch.equal(answers[0][0][0], given[0])


def test_learners_take_up_where_they_were(device: torch.device) -> None:
    """30 steps and 30 more are 60: the graph of a device draws from the learner's own stream."""
    whole, parts = sac(device=device, dtype=F64), sac(device=device, dtype=F64)
    whole.learn(60, progress=False)
    for _ in range(2):
        parts.learn(30, progress=False)
        torch.rand(5, device=device)
    same(whole._update.tensors["parameters"], parts._update.tensors["parameters"], 1e-12)


@pytest.mark.parametrize("make", [sac, sql])
def test_learners_satisfice(device: torch.device, make: Any) -> None:
    """A process on the device, a learner on it, and a target return: the temperature moves."""
    here = moved(random_mdp(4, horizon=5), device)
    agent = make(here, device=device, target_return=0.5, num_envs=4, learning_rate=0.01)
    before = agent.temperature
    agent.learn(400, progress=False)
    assert agent.device.type == device.type
    assert math.isfinite(agent.temperature)
    assert abs(math.log(agent.temperature / before)) > 0.01
    assert len(agent.evaluate(3).returns) == 3


def test_environments_as_processes(device: torch.device) -> None:
    process = rlai.GymnasiumProcess("Pendulum-v1", horizon=5)
    policy = amortized_policy(process, hidden_sizes=(8,)).to(device)
    drawn = process.rollout(policy, 3)
    assert drawn.states.device.type == device.type
    assert bool(drawn.log_weight().isfinite().all())
