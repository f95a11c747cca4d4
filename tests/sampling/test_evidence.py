"""Log evidences by every method, annealing, twisted filters and conditions, against exact answers."""

import math

import brute_force
import pyro
import pytest
import torch
from gymnasium.spaces import Discrete
from problems import random_mdp
from pyro.infer import TraceEnum_ELBO, config_enumerate

import rl_as_inference as rlai
from rl_as_inference import exact
from rl_as_inference.critics import TableCritic
from rl_as_inference.inference import evidence
from rl_as_inference.models import double_integrator, gridworld, hidden_goal
from rl_as_inference.sampling import annealing, sequential_monte_carlo
from rl_as_inference.sampling.importance import mean_evidence

F64 = torch.float64


def small(**options):
    settings = {"num_states": 4, "horizon": 4, "discount": 0.8, "terminal": True, "temperature": 0.7}
    return random_mdp(11, **{**settings, **options})


def z_of_mean(logs: list[float], log_truth: float) -> float:
    """How many standard errors the mean of evidences is from the truth."""
    ratios = (torch.tensor(logs, dtype=F64) - log_truth).exp()
    return float((ratios.mean() - 1) / (ratios.std() / len(logs) ** 0.5))


class TestTwistedFilters:
    @pytest.mark.parametrize("discount", [1.0, 0.8])
    def test_any_look_ahead_leaves_the_evidence_unbiased(self, discount: float) -> None:
        """200 filters of 20 particles, seed 0, |z| < 4, with a critic that knows nothing of the problem."""
        mdp = small(discount=discount)
        wrong = TableCritic(torch.linspace(-1, 1, 4, dtype=F64).expand(mdp.horizon + 1, -1))
        torch.manual_seed(0)
        logs = [sequential_monte_carlo(mdp, None, 20, critic=wrong).log_evidence for _ in range(200)]
        assert abs(z_of_mean(logs, float(exact.log_evidence(mdp)))) < 4

    def test_the_exact_look_ahead_makes_the_error_small(self) -> None:
        """60 filters of 200 particles, seed 0: the spread of the log evidence falls to less than a third."""
        mdp = rlai.TabularMDP.from_gymnasium("FrozenLake-v1", horizon=20, temperature=0.1)
        plan = exact.plan(mdp, "posterior")
        truth = float(exact.log_evidence(mdp))
        torch.manual_seed(0)
        runs = {
            name: [sequential_monte_carlo(mdp, None, 200, critic=critic).log_evidence for _ in range(60)]
            for name, critic in (("blind", None), ("twisted", TableCritic(plan.soft_v)))
        }
        assert abs(z_of_mean(runs["twisted"], truth)) < 4
        spread = {name: torch.tensor(logs).std() for name, logs in runs.items()}
        assert spread["twisted"] < spread["blind"] / 3

    def test_a_critic_that_knows_what_is_hopeless(self) -> None:
        """-∞ where the only reward cannot be reached any more; 8 filters of 2,000, seed 0, |z| < 4; no NaN."""
        moves = [[[1, 0, 0], [0, 0.5, 0.5]], [[0, 1, 0], [0, 1, 0]], [[0, 0, 1], [0, 0, 1]]]
        transition = torch.tensor(moves, dtype=F64)
        reward = torch.tensor([[0.0, 0.0], [-1000.0, -1000.0], [1.0, 1.0]], dtype=F64)  # exp(-1000) is 0
        mdp = rlai.TabularMDP(transition, reward, torch.tensor([1.0, 0, 0], dtype=F64), horizon=4)

        def critic(state: torch.Tensor, t: int) -> torch.Tensor:
            return torch.where(state == 1, -math.inf, 0.0).double()

        truth = sum(
            path.dynamics * path.prior * math.exp(path.return_) for path in brute_force.paths(mdp) if path.dynamics
        )
        torch.manual_seed(0)
        for threshold in (0.0, 0.5, 1.1):
            runs = [sequential_monte_carlo(mdp, None, 2000, critic=critic, threshold=threshold) for _ in range(8)]
            assert not any(bool(run.log_weight.isnan().any()) for run in runs)
            assert abs(z_of_mean([run.log_evidence for run in runs], math.log(truth))) < 4
        with pytest.raises(ValueError, match="critic is NaN or infinite at step 1"):
            sequential_monte_carlo(mdp, None, 10, critic=lambda state, t: state * math.nan)


class TestAnnealing:
    @pytest.mark.parametrize("discount", [1.0, 0.8])
    def test_the_evidence_is_unbiased_on_a_settled_ladder(self, discount: float) -> None:
        """150 runs of 20 particles, seed 0, |z| < 4, at every rung."""
        mdp = small(discount=discount)
        ladder = torch.tensor([0.0, 0.4, 0.9, 1 / 0.7], dtype=F64)
        torch.manual_seed(0)
        runs = [annealing(mdp, 20, inverse_temperatures=ladder, num_moves=1) for _ in range(150)]
        for rung in (1, 2, 3):
            truth = float(exact.log_evidence(mdp.at_temperature(1 / float(ladder[rung]))))
            assert abs(z_of_mean([float(run.log_evidence[rung]) for run in runs], truth)) < 4

    @pytest.mark.parametrize("make", [small, double_integrator])
    def test_the_free_energy_curve_is_the_exact_one(self, make) -> None:
        """8 runs of 1,000 particles on one ladder, seed 0: |z| < 4 at every temperature, by weights and by returns."""
        mdp = make(horizon=5, dtype=F64) if make is double_integrator else make()
        torch.manual_seed(0)
        first = annealing(mdp, 1000)
        runs = [annealing(mdp, 1000, inverse_temperatures=first.inverse_temperatures) for _ in range(8)]
        betas = first.inverse_temperatures[1:]
        truth = torch.stack([exact.log_evidence(mdp.at_temperature(1 / float(beta))) for beta in betas])
        for name in ("log_evidence", "thermodynamic_integral"):
            found = torch.stack([getattr(run, name)[1:] for run in runs]).double()
            error = found.std(0) / 8**0.5
            # The rule of integration has an error of its own, far below this.
            assert bool(((found.mean(0) - truth).abs() < 4 * error + 2e-3 * truth.abs()).all()), name
        curve = torch.stack([run.free_energy for run in runs]).double()
        assert bool(((curve.mean(0)[1:] + truth / betas).abs() < 4 * curve.std(0)[1:] / 8**0.5).all())

    def test_draws_are_of_the_posterior(self) -> None:
        """8 × 2,000 particles, 8,000 draws, seed 0: the last state, |z| < 4.5 with a third independent."""
        mdp = small(discount=0.8)
        torch.manual_seed(0)
        data = rlai.posterior(mdp, method="annealed", num_draws=8_000, num_particles=2000)
        assert data.posterior.attrs["method"] == "annealed"
        last = torch.as_tensor(data.posterior["final_state"].values[0])
        share = torch.bincount(last, minlength=4).double() / len(last)
        wanted = exact.posterior_occupancy(mdp)[-1]
        error = (wanted * (1 - wanted) / (8_000 / 3)).sqrt()
        assert bool(((share - wanted).abs() <= 4.5 * error).all())

    def test_cold_runs_know_how_far_off_they_are(self) -> None:
        """15 means of 8 cold runs of 20 particles, seed 0: z-scores of at most 1.3 in root mean square; 4.1 by deltas.

        A run's logarithm spreads by 4 nats here, so that most means of eight miss the tail.
        """
        mdp = small(discount=0.8, temperature=0.3)
        ladder = torch.linspace(0, 1 / 0.3, 8, dtype=F64)
        truth = float(exact.log_evidence(mdp))
        torch.manual_seed(0)
        runs = (annealing(mdp, 20, inverse_temperatures=ladder, num_moves=1) for _ in range(120))
        logs = [run.draws.log_evidence for run in runs]
        means = [mean_evidence(logs[start : start + 8]) for start in range(0, 120, 8)]
        z = torch.tensor([(each.mean - truth) / each.standard_error for each in means])
        assert float(z.square().mean().sqrt()) < 1.3

    def test_returns_of_minus_infinity_are_ruled_out(self) -> None:
        """Of the first action 0, in either state; 8 runs of 2,000, seed 0: |z| < 4 against the paths that are left."""

        class Forbids(rlai.MarkovDecisionProcess):
            state_space, action_space = Discrete(2), Discrete(2)

            def initial(self):
                return pyro.distributions.Categorical(torch.ones(2, dtype=F64))

            def transition(self, state, action):
                return pyro.distributions.Delta(action)

            def reward(self, state, action, next_state):
                return torch.where((state == 0) & (action == 0), -math.inf, state + action.double())

        # From 0: 01 earns 1, from 1 action 0 earns 1 and 1 earns 2; three steps, each path of prior 1/16.
        paths = [(s, a, b, c) for s in (0, 1) for a in (0, 1) for b in (0, 1) for c in (0, 1)]
        returns = [2 * (a + b) + s + c for s, a, b, c in paths if (0, 0) not in ((s, a), (a, b), (b, c))]
        truth = math.log(sum(math.exp(each) for each in returns) / 16)
        torch.manual_seed(0)
        found = rlai.estimate_log_evidence(Forbids(horizon=3), method="annealed", num_particles=2000)
        assert abs(found.mean - truth) < 4 * found.standard_error < 0.2
        run = annealing(Forbids(horizon=3), 500)
        assert bool(run.draws.trajectories.returns().isfinite().all())

    def test_refusals(self) -> None:
        mdp = small()
        for ladder, message in (
            ([0.1, 1 / 0.7], "rise from 0"),
            ([0.0, 1.0, 1.0], "strictly"),
            ([0.0, 1.0], r"must end at 1/α = 1.42857"),
        ):
            with pytest.raises(ValueError, match=message):
                annealing(mdp, 10, inverse_temperatures=torch.tensor(ladder))
        with pytest.raises(ValueError, match="needs a MarkovDecisionProcess"):
            rlai.posterior(hidden_goal, method="annealed")
        with pytest.raises(ValueError, match="starts from the action prior"):
            rlai.posterior(mdp, exact.plan(mdp), method="annealed")


class TestEstimateLogEvidence:
    @pytest.mark.parametrize("method", ["importance", "smc", "annealed"])
    @pytest.mark.parametrize("discount", [1.0, 0.8])
    def test_every_method_is_near_the_truth_and_knows_how_near(self, method: str, discount: float) -> None:
        """8 × 2,000 draws, seed 1: |z| < 4, standard error below 0.05 nats."""
        mdp = small(discount=discount, temperature=1.5)
        torch.manual_seed(1)
        found = rlai.estimate_log_evidence(mdp, method=method, num_draws=2000)
        assert found.standard_error < 0.05
        assert abs(found.mean - float(exact.log_evidence(mdp))) < 4 * found.standard_error

    def test_the_default_is_the_best_there_is(self) -> None:
        mdp = small()
        assert rlai.estimate_log_evidence(mdp) == rlai.Estimate(float(exact.log_evidence(mdp)), 0.0)
        torch.manual_seed(0)
        point = rlai.models.point_mass(horizon=5)
        assert 0 < rlai.estimate_log_evidence(point, num_draws=2000).standard_error < 0.05
        program = rlai.estimate_log_evidence(rlai.given_return(mdp, -10.0), num_draws=2000)
        assert abs(program.mean - float(exact.log_evidence(mdp))) < 4 * program.standard_error

    def test_filters_look_ahead_by_exact_messages_unless_told_otherwise(self) -> None:
        """A slippery lake of 60 steps at a temperature of 0.01, 8 × 2,000 particles, seed 0.

        By default |z| < 3 and a standard error below 0.05 nats; the bootstrap filter is lost here.
        """
        lake = rlai.TabularMDP.from_gymnasium("FrozenLake-v1", horizon=60, temperature=0.01)
        truth = float(exact.log_evidence(lake))
        torch.manual_seed(0)
        found = rlai.estimate_log_evidence(lake, method="smc", num_draws=2000)
        assert found.standard_error < 0.05
        assert abs(found.mean - truth) < 3 * found.standard_error
        blind = rlai.estimate_log_evidence(lake, method="smc", critic=None, num_draws=2000)
        assert abs(blind.mean - truth) > 0.5
        attributes = rlai.posterior(lake, method="smc", num_draws=2000).posterior.attrs
        error = attributes["log_evidence"] - truth
        assert abs(error) < 3 * attributes["log_evidence_standard_error"] < 0.15
        seen = []

        def critic(state: torch.Tensor, t: int) -> torch.Tensor:
            seen.append(t)
            return torch.zeros(len(state))

        rlai.posterior(lake, method="smc", num_draws=10, critic=critic)
        assert set(seen) == set(range(1, 60))

    def test_the_pooled_error_is_the_spread_of_the_mean(self) -> None:
        """Of 64 runs, against the sample standard deviation of the logarithm over 2,000 repetitions, to 10 %."""
        torch.manual_seed(0)
        logs = 0.1 * torch.randn(2000, 64, dtype=F64)
        found = [mean_evidence(row.tolist()) for row in logs]
        spread = torch.tensor([each.mean for each in found]).std()
        stated = torch.tensor([each.standard_error for each in found]).square().mean().sqrt()
        assert abs(float(stated / spread) - 1) < 0.1

    @pytest.mark.parametrize("number", [6, 8, 16])
    @pytest.mark.parametrize("spread", [0.05, 0.5, 2.0])
    def test_a_mean_of_few_is_off_by_one_pooled_error(self, number: int, spread: float) -> None:
        """2,000 means of lognormal evidences of mean one, seed 0: root mean square of the z-scores 1 ± 0.15."""
        torch.manual_seed(0)
        logs = spread * torch.randn(2000, number, dtype=F64) - spread**2 / 2
        found = [mean_evidence(row.tolist()) for row in logs]
        z = torch.tensor([each.mean / each.standard_error for each in found])
        assert abs(float(z.square().mean().sqrt()) - 1) < 0.15

    def test_the_pooled_error_by_hand(self) -> None:
        """Evidences 1 and 3, twice: mean 2, deviation 2/√3; four runs have the factor √3.

        Their logarithms have mean log(3)/2 and variance log²(3)/3; what is made of these is as of six runs.
        """
        found = mean_evidence([0.0, math.log(3), 0.0, math.log(3)])
        assert found.mean == pytest.approx(math.log(2))
        squared = math.log(3) ** 2 / 3
        missed, unsure = math.log(3) / 2 + squared / 2 - math.log(2), squared * (5 / 6) ** 0.5
        by_deltas = (2 / 3**0.5) / 2 / 4**0.5 * 3**0.5
        assert found.standard_error == pytest.approx(math.hypot(by_deltas, missed, unsure))
        assert mean_evidence([0.7, 0.7]).standard_error == pytest.approx(0, abs=1e-12)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["few states", "rare goal", "cart"])
    def test_filters_know_how_far_off_they_are(self, name: str) -> None:
        """200 estimates of 8 plain filters each, seed 0: root mean square of the z-scores 1 ± 0.15.

        Logarithms of one filter spread by 0.5, 1.2 (few particles find the goal: skewed to the left) and 0.3 nats.
        Skewed so, they have no heavy tail above, and an error that expects a normal's is too wide: z-scores from 0.5,
        and 100 estimates are enough.
        """
        mdp, particles = {
            "few states": (small(), 200),
            "rare goal": (gridworld(4, 4, horizon=12, temperature=0.5, slip=0.3, dtype=F64), 300),
            "cart": (double_integrator(horizon=6, dtype=F64), 100),
        }[name]
        truth = float(exact.log_evidence(mdp))
        torch.manual_seed(0)
        options = {"method": "smc", "critic": None, "num_particles": particles}
        found = [rlai.estimate_log_evidence(mdp, **options) for _ in range(100 if name == "rare goal" else 200)]
        z = torch.tensor([(each.mean - truth) / each.standard_error for each in found])
        assert (0.5 if name == "rare goal" else 0.85) < float(z.square().mean().sqrt()) < 1.15

    def test_the_numbers_say_what_they_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Particles of each run, proposals in all; ``num_draws`` is what calls from before say for particles."""
        asked: dict[str, list[int]] = {"smc": [], "importance": [], "annealed": []}
        for name, function in (
            ("smc", "repeated_filters"),
            ("importance", "importance_sampling"),
            ("annealed", "repeated_annealing"),
        ):
            real = getattr(evidence, function)

            def noted(process, *args, name=name, real=real, **options):
                asked[name].append(args[-1])
                return real(process, *args, **options)

            monkeypatch.setattr(evidence, function, noted)
        mdp = small()
        rlai.estimate_log_evidence(mdp, method="smc", num_particles=5)
        rlai.estimate_log_evidence(mdp, method="smc", num_draws=6)
        rlai.estimate_log_evidence(mdp, method="annealed", num_particles=7)
        rlai.estimate_log_evidence(mdp, method="importance", num_proposals=50)
        rlai.estimate_log_evidence(mdp, method="importance", num_particles=5, num_repeats=2)
        assert asked == {"smc": [5, 6], "importance": [50, 10], "annealed": [7]}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"method": "nuts"}, "method must be one of exact, importance, smc, annealed, or None; got 'nuts'"),
            ({"num_draws": 1}, "num_draws must be >= 2"),
            ({"num_particles": 1}, "num_particles must be >= 2"),
            ({"num_proposals": 1}, "num_proposals must be >= 2"),
            ({"method": "smc", "num_proposals": 9}, "num_proposals is of method='importance', and method is 'smc'"),
            ({"num_repeats": 1}, "num_repeats must be >= 2"),
            ({"method": "importance", "critic": lambda state, t: 0}, "critic is the look-ahead of method='smc'"),
            ({"method": "smc", "critic": "exact"}, r"critic must be a callable \(state, t\) -> V, None or 'auto', got"),
            ({"method": "annealed", "policy": lambda state, t: None}, "starts from the action prior"),
        ],
    )
    def test_refusals(self, options: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            rlai.estimate_log_evidence(small(), **options)


CONDITIONS = {
    "start and end": (
        lambda mdp: pyro.condition(mdp, data={"state_0": torch.tensor(1), "state_3": torch.tensor(2)}),
        lambda path: path.states[0] == 1 and path.states[3] == 2,
    ),
    "an action": (
        lambda mdp: pyro.condition(mdp, data={"action_1": torch.tensor(1)}),
        lambda path: path.actions[1] == 1,
    ),
    "a return": (lambda mdp: rlai.given_return(mdp, 0.5), lambda path: path.return_ >= 0.5),
    "an end and a return": (
        lambda mdp: pyro.condition(rlai.given_return(mdp, 0.5), data={"state_3": torch.tensor(0)}),
        lambda path: path.return_ >= 0.5 and path.states[3] == 0,
    ),
}


class TestConditions:
    """Draws under conditions, against enumeration of every trajectory: 20,000 draws, seed 0, |z| < 4.5."""

    @pytest.mark.parametrize("name", list(CONDITIONS))
    def test_against_enumeration(self, name: str) -> None:
        mdp = random_mdp(5, num_states=3, num_actions=2, horizon=3, temperature=0.8)
        program, holds = CONDITIONS[name][0](mdp), CONDITIONS[name][1]
        weights: dict[tuple[int, ...], float] = {}
        for path in brute_force.paths(mdp):
            if holds(path):
                key = (*path.states, *path.actions)
                weights[key] = weights.get(key, 0) + path.dynamics * path.prior * math.exp(path.return_ / 0.8)
        total = sum(weights.values())
        torch.manual_seed(0)
        data = rlai.posterior(program, method="importance", num_draws=20_000)
        notes = data.posterior.attrs
        z = (notes["log_evidence"] - math.log(total)) / notes["log_evidence_standard_error"]
        assert abs(z) < 4.5
        states = torch.as_tensor(data.posterior["state"].values[0])
        final = torch.as_tensor(data.posterior["final_state"].values[0])
        actions = torch.as_tensor(data.posterior["action"].values[0])
        draws = torch.cat([states, final[:, None], actions], 1)
        assert {tuple(row) for row in draws.tolist()} <= weights.keys()
        size = min(notes["effective_sample_size"], 20_000)
        for column in range(draws.shape[1]):
            for value in range(3):
                p = sum(w for key, w in weights.items() if key[column] == value) / total
                share = float((draws[:, column] == value).double().mean())
                assert abs(share - p) <= 4.5 * math.sqrt(p * (1 - p) / size) + 1e-9

    def test_enumeration_by_pyro_agrees_to_rounding(self) -> None:
        mdp = random_mdp(5, num_states=3, num_actions=2, horizon=3, temperature=0.8)
        for make, holds in CONDITIONS.values():
            total = sum(
                path.dynamics * path.prior * math.exp(path.return_ / 0.8)
                for path in brute_force.paths(mdp)
                if holds(path)
            )
            loss = TraceEnum_ELBO(max_plate_nesting=1).loss(config_enumerate(make(mdp)), lambda: None)
            assert abs(-loss - math.log(total)) < 1e-9

    def test_what_cannot_be_is_said(self) -> None:
        mdp = random_mdp(5, num_states=3, num_actions=2, horizon=3, temperature=0.8)
        with pytest.raises(ValueError, match="importance weights are zero"):
            rlai.posterior(rlai.given_return(mdp, 1e6), method="importance", num_draws=100)
        with pytest.raises(ValueError, match="at_least must be a finite number"):
            rlai.given_return(mdp, math.nan)

        def unrewarded() -> None:
            rlai.act("action_0", torch.zeros(2), pyro.distributions.Categorical(torch.ones(2)))

        with pytest.raises(ValueError, match="the program has no rewards"):
            rlai.given_return(unrewarded, 0.0)()

    def test_the_name_is_the_processs(self) -> None:
        mdp = random_mdp(5, num_states=3, num_actions=2, horizon=3)
        mdp.name = "small"
        data = rlai.posterior(CONDITIONS["an end and a return"][0](mdp), method="guide", num_draws=3)
        assert data.posterior.attrs["problem"] == "small"
