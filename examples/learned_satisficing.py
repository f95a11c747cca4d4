"""Can a learner be told what is good enough, and find the temperature itself?

On the frozen lake the best policy reaches the goal in 82 % of its episodes. An agent that should be content with 58 %
may be far less determined, at a temperature that ``satisfice`` computes from the tables. Soft actor-critic only
steps the lake, takes ``target_return``, and its α goes there, as the dual variable of the constraint.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import rl_as_inference as rlai
from rl_as_inference import exact, style


def make(lake: rlai.TabularMDP, target: float) -> rlai.SoftActorCritic:
    """Returns four seeds of discrete soft actor-critic that are to earn ``target``."""
    return rlai.SoftActorCritic(
        lake,
        target_return=target,
        initial_temperature=0.05,
        seeds=4,
        num_envs=4,
        hidden_sizes=(32, 32),
        batch_size=64,
        num_critics=1,
        learning_rate=1e-3,
        learning_starts=500,
        target_average=0.05,
        updates_per_step=0.5,
        compile=False,
    )


def main(quick: bool = False, picture: Path | None = None) -> None:
    lake = rlai.TabularMDP.from_gymnasium("FrozenLake-v1", dtype=torch.float64)
    answer = rlai.satisfice(lake, 0.3)
    print(f"best return {answer.best_return:.4f}, target {answer.target_return:.4f}")
    print(f"exact: α = {answer.temperature:.4f}, return {answer.expected_return:.4f}")

    agent = make(lake, answer.target_return)
    states = torch.arange(lake.num_states)
    steps, temperatures, returns = [0], [agent.temperatures], []

    def earned() -> list[float]:
        """Returns the exact return of each seed's policy."""
        with torch.no_grad():
            return [float(exact.expected_return(lake, policy(states, 0).probs.double())) for policy in agent.policies]

    returns.append(earned())
    for _ in range(4 if quick else 40):
        agent.learn(1000)
        steps.append(agent.num_steps)
        temperatures.append(agent.temperatures)
        returns.append(earned())
    for seed, (alpha, value) in enumerate(zip(temperatures[-1], returns[-1], strict=True)):
        print(f"seed {seed}: α = {alpha:.4f}, exact return of its policy {value:.4f}")
    if picture is not None:
        drawn(steps, temperatures, returns, answer).savefig(picture, dpi=110)


def drawn(
    steps: list[int], temperatures: list[list[float]], returns: list[list[float]], answer: rlai.Satisficing
) -> plt.Figure:
    """Returns the figure: what the seeds earn, and their temperatures, with the exact answer."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    thousands = [step / 1000 for step in steps]
    for seed, (value, alpha) in enumerate(
        zip(zip(*returns, strict=True), zip(*temperatures, strict=True), strict=True)
    ):
        left.plot(thousands, value, color=style.QUALITATIVE[seed])
        right.semilogy(thousands, alpha, color=style.QUALITATIVE[seed], label=f"seed {seed}")
    left.axhline(answer.best_return, color=style.GREY, linestyle=":", label="best of any policy")
    left.axhline(answer.target_return, color=style.BLACK, linestyle="--", label="target")
    right.axhline(answer.temperature, color=style.BLACK, linestyle="--", label="satisfice, exact")
    style.tidy(left, "thousand environment steps of each seed", "exact return of the policy (reward units)")
    style.tidy(right, "thousand environment steps of each seed", "temperature α (reward units per nat)")
    left.legend(frameon=False)
    right.legend(frameon=False, ncols=2, fontsize=8)
    return figure


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], picture=Path("learned_satisficing.png"))
